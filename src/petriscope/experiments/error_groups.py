"""Where a classification model errs: which classes it confuses, and on which kinds of image."""

from __future__ import annotations

from typing import Any

import numpy as np

from petriscope.core.channels import colors_of
from petriscope.core.drawing import BT709
from petriscope.data.imageset import ImageSet
from petriscope.metrics.intervals import group_index, proportion95
from petriscope.metrics.statistics import holm

PAIRS = 5  # the most confused pairs of classes
EXAMPLES = 6  # images per pair
FEWEST = 60  # images needed for groups
FIFTHS_FROM = 500  # images needed for fifths; fewer are split into thirds
STAINS = 4
FAINT = 12  # of 255 levels; an image that nowhere differs more from its border has no foreground
CHUNK_PIXELS = 2**21  # pixels measured at a time
WORDS = {3: ("low", "middle", "high"), 5: ("lowest", "low", "middle", "high", "highest")}


def confused_pairs(targets: np.ndarray, predicted: np.ndarray, confidence: np.ndarray) -> list[dict[str, Any]]:
    """The most frequent mistakes.

    Args:
        targets, predicted: int64 [N].
        confidence: float [N], probability of the predicted class.

    Returns:
        one mapping per pair, the most frequent first: true, predicted (class indices), count, n (images of the true class),
        rows (indices of some examples, the most confident first).
    """
    wrong = np.flatnonzero(targets != predicted)
    codes, counts = np.unique(np.stack([targets[wrong], predicted[wrong]], 1), axis=0, return_counts=True)
    out = []
    for at in np.argsort(-counts, kind="stable")[:PAIRS]:
        true, taken = (int(code) for code in codes[at])
        rows = wrong[(targets[wrong] == true) & (predicted[wrong] == taken)]
        rows = rows[np.argsort(-confidence[rows], kind="stable")][:EXAMPLES]
        n = int((targets == true).sum())
        out.append({"true": true, "predicted": taken, "count": int(counts[at]), "n": n, "rows": rows.tolist()})
    return out


def accuracy_by_group(images: ImageSet, predicted: np.ndarray) -> list[dict[str, Any]]:
    """Accuracy in groups of images: by brightness, by the size of the foreground, and by stain.

    Each group is tested against the rest twice: over all images (Fisher's exact test) and within classes (Cochran, 1954,
    Biometrics 10:417; Mantel and Haenszel, 1959). The second test is needed because a group with many images of a
    difficult class has a low accuracy even if brightness or stain plays no role. Both tests are corrected for the number
    of groups (Holm). Where the source has groups of its own, such as slides, intervals and tests are over these; see
    `score_test`.

    Args:
        images: the images and their true classes.
        predicted: int64 [N].

    Returns:
        one mapping per attribute: name, about, groups. A group has name, low and high (range of the attribute; None for
        stains), color (mean RGB; only for stains), n, accuracy, ci95, rest (accuracy of the other images), p, p_within.
        Empty for fewer than 60 images.
    """
    if len(images) < FEWEST:
        return []
    brightness, foreground, color = measured(images)
    fifths = 5 if len(images) >= FIFTHS_FROM else 3
    attributes = [
        _by_quantile("brightness", "mean luminance, of 255", brightness, fifths),
        _by_quantile(
            "size of the foreground", "share of the image that differs from its border's color", foreground, fifths
        ),
    ]
    if (colors := colors_of(images.channels)) is not None:
        attributes.append(_by_stain(color[:, list(colors)]))
    right, index = predicted == images.targets, group_index(images.groups)
    groups = [(group, group.pop("member")) for attribute in attributes for group in attribute["groups"]]
    members = [member for _, member in groups]
    if index is None:
        plain = [_fisher(right, member) for member in members]
        within = [cochran_mantel_haenszel(right, member, images.targets) for member in members]
    else:
        plain = [score_test(right, member, np.zeros_like(images.targets), index) for member in members]
        within = [score_test(right, member, images.targets, index) for member in members]
    for (group, member), p, p_within in zip(groups, holm(plain), holm(within), strict=True):
        n, hits = int(member.sum()), int(right[member].sum())
        low, high = proportion95(right[member], None if index is None else index[member])
        group |= {"n": n, "accuracy": hits / n, "ci95": [low, high] if np.isfinite(low) else [None, None]}
        group |= {"rest": float(right[~member].mean()) if n < len(right) else None, "p": p, "p_within": p_within}
    return [attribute for attribute in attributes if len(attribute["groups"]) > 1]


def measured(images: ImageSet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean luminance (0 to 255; without colors, the mean over channels) [N], share of foreground [N] and mean color (0 to 255)
    [N, C], per image."""
    brightness, foreground, color = [], [], []
    colors = colors_of(images.channels)
    chunk = max(1, CHUNK_PIXELS // (images.shape[0] * images.shape[1]))
    for start in range(0, len(images), chunk):
        block = images.take(np.arange(start, min(start + chunk, len(images))))
        block = block if images.bits == 8 else block / np.float32(257)
        means = block.mean((1, 2), dtype=np.float64)
        color.append(means)
        brightness.append(means.mean(1) if colors is None else means[:, list(colors)] @ BT709)
        foreground.append(foreground_share(block))
    return np.concatenate(brightness), np.concatenate(foreground), np.concatenate(color)


def foreground_share(images: np.ndarray) -> np.ndarray:
    """The share of each image whose color differs from the median color of its border, by Otsu's threshold on the
    distance. Otsu, 1979, IEEE Transactions on Systems, Man, and Cybernetics 9:62.

    Args:
        images: uint8 [B, H, W, C].

    Returns:
        float [B]; 0 for an image that nowhere differs much from its border.
    """
    count = len(images)
    edges = (images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1])
    background = np.median(np.concatenate(edges, axis=1), axis=1)[:, None, None]
    distance = np.sqrt(((images - background) ** 2).mean(3)).reshape(count, -1)
    levels = np.minimum(distance, 255).astype(np.int64)
    histogram = np.bincount((levels + 256 * np.arange(count)[:, None]).ravel(), minlength=256 * count)
    histogram = histogram.reshape(count, 256) / levels.shape[1]
    below = histogram.cumsum(1)
    moment = (histogram * np.arange(256)).cumsum(1)
    parted = below * (1 - below)
    between = np.where(parted > 1e-12, (moment[:, -1:] * below - moment) ** 2 / np.maximum(parted, 1e-12), 0.0)
    share = (levels > between.argmax(1)[:, None]).mean(1)
    return np.where(levels.max(1) > FAINT, share, 0.0)


def cochran_mantel_haenszel(right: np.ndarray, member: np.ndarray, strata: np.ndarray) -> float:
    """Two-sided p-value of the hypothesis that within strata a group is right as often as the rest, with continuity
    correction.

    Args:
        right, member: bool [N].
        strata: int64 [N].
    """
    from scipy.special import chdtrc

    excess = variance = 0.0
    for stratum in np.unique(strata):
        here = strata == stratum
        n, inside, hits = here.sum(), (here & member).sum(), (here & right).sum()
        if n < 2:
            continue
        excess += (here & member & right).sum() - inside * hits / n
        variance += inside * (n - inside) * hits * (n - hits) / (n * n * (n - 1))
    return float(chdtrc(1, max(abs(excess) - 0.5, 0) ** 2 / variance)) if variance > 0 else 1.0


def score_test(right: np.ndarray, member: np.ndarray, strata: np.ndarray, index: np.ndarray) -> float:
    """p-value of the hypothesis that membership makes no difference within strata: the score test of
    `cochran_mantel_haenszel`, with the variance over groups of images that are not independent (Liang and Zeger, 1986,
    Biometrika 73:13), and Student's distribution. 1 for a single group.

    Args:
        right, member: bool [N].
        strata: int64 [N].
        index: groups of the images, int64 [N].
    """
    from scipy.special import stdtr

    _, places, sizes = np.unique(strata, return_inverse=True, return_counts=True)
    ahead, inside = (values - (np.bincount(places, values) / sizes)[places] for values in (right, member))
    scores = np.bincount(index, ahead * inside)
    groups, variance = len(scores), float((scores**2).sum())
    if groups < 2 or variance == 0:
        return 1.0
    t = abs(float(scores.sum())) / np.sqrt(variance * groups / (groups - 1))
    return float(2 * stdtr(groups - 1, -t))


def _fisher(right: np.ndarray, member: np.ndarray) -> float:
    from scipy.stats import fisher_exact

    table = [[int((right & m).sum()), int((~right & m).sum())] for m in (member, ~member)]
    return float(fisher_exact(table)[1])


def _by_quantile(name: str, about: str, values: np.ndarray, parts: int) -> dict[str, Any]:
    edges = np.quantile(values, np.arange(1, parts) / parts)
    index = np.searchsorted(edges, values, side="left")
    groups = []
    for part in np.unique(index):
        member = index == part
        low, high = float(values[member].min()), float(values[member].max())
        groups.append({"name": WORDS[parts][part], "low": low, "high": high, "color": None, "member": member})
    return {"name": name, "about": about, "groups": groups}


def _by_stain(color: np.ndarray) -> dict[str, Any]:
    """Clusters of the mean color, the brightest first. Colors are taken as optical density, in which stains add up: Ruifrok
    and Johnston, 2001, Analytical and Quantitative Cytology and Histology 23:291."""
    from sklearn.cluster import KMeans

    density = -np.log((color + 1) / 256)
    clusters = min(STAINS, len(np.unique(density, axis=0)))
    index = KMeans(clusters, n_init=4, random_state=0).fit_predict(density)
    means = {part: color[index == part].mean(0) for part in np.unique(index)}
    groups = []
    for number, part in enumerate(sorted(means, key=lambda part: -means[part].sum()), 1):
        shade = [round(float(value)) for value in means[part]]
        groups.append({"name": f"stain {number}", "low": None, "high": None, "color": shade, "member": index == part})
    return {"name": "stain", "about": "clusters of the mean color, by optical density", "groups": groups}
