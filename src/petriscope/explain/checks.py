"""Whether maps can be trusted: do the places they mark matter more than others, and do they depend on the weights?

Three questions of each method, over the same images: is its order of places better than a random one; is it better than
a blob in the middle, where most objects are; do its maps change when the network's weights are shuffled? Of masks a fourth:
is it better than the mask itself?
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from petriscope.core.progress import progress
from petriscope.explain import explain
from petriscope.explain.regions import mean_probability
from petriscope.metrics.intervals import bootstrap_weights, percentile95
from petriscope.metrics.segmentation import scenes_of

if TYPE_CHECKING:
    from torch import nn

    from petriscope.inference.predictor import Predictor

GRID = 7  # places per side that are deleted or inserted as one
STEPS = 12  # from the whole image to nothing
SAME = 0.5  # rank correlation with the maps of shuffled weights from which maps show the image rather than the network
RESAMPLES = 2000
ORDERS = {"random": "a random order", "blob": "a centered blob", "region": "the predicted region itself"}


def check(
    predictor: Predictor,
    images: np.ndarray,
    methods: Sequence[str],
    seed: int = 0,
    quiet: bool = True,
    classes: np.ndarray | None = None,
    regions: np.ndarray | None = None,
    scenes: np.ndarray | None = None,
) -> dict[str, Any]:
    """Check methods on images, each for the class predicted; of masks, for one class of each.

    Deletion and insertion (Petsiuk et al., 2018, "RISE", arXiv:1806.07421): the image's places are replaced by the
    training images' mean color, or put back into a blurred copy, the most marked first; the area under the class's
    probability says how much the places matter. A map's score is insertion less deletion, and so is that of a random order
    of places and of a centered blob, from the center outward. All of them move the same squares of a 7x7 grid:
    single pixels at random would be noise, which spoils any network's answer sooner than a covered region does. Of masks,
    the probability is the mean over the region that was predicted as the class on the whole image. Deleting that region
    deletes the class, so the region itself, its squares first, is held against the maps too.

    Weight randomization (Adebayo et al., 2018, "Sanity Checks for Saliency Maps", arXiv:1810.03292): Spearman's
    correlation between each map and that of the network with the entries of every weight shuffled.

    Args:
        predictor: left as it was.
        images: uint8 [N, H, W, C].
        methods: names in `petriscope.explain.EXPLAINERS`.
        seed: of the random order, the shuffled weights and the bootstrap over images.
        classes: of masks, the class asked about in each image, int64 [N].
        regions: of masks, where it was predicted, bool [N, H, W].
        scenes: the scene of each image, int64 [N], for the bootstrap to draw; None: images.

    Returns:
        n; ``orders``: of each method, of ``random``, of ``blob`` and of masks of ``region``: deletion, insertion, score,
        means over the images; ``methods``: of each method, over_random, over_blob and of masks over_region (how far its
        score is above theirs) and randomized (the correlation), each with ``_ci95``, and its verdict in words; of masks
        also ``inside``, the share of the maps' heat that lies within the regions, and beside n ``area``, the regions'
        share of the images.
    """
    if classes is None:
        classes = predictor.probabilities(images, tta="none").argmax(1)
    shuffled = copy.copy(predictor)
    shuffled.model = shuffle_weights(predictor.model, seed)
    maps: dict[str, np.ndarray] = {}
    correlations: dict[str, np.ndarray] = {}
    others = ["random", "blob"] if regions is None else list(ORDERS)
    with progress("checking explanations", 2 * len(methods) + len(others), "orders") as bar:
        for method in methods:
            maps[method] = explain(predictor, images, classes, method, regions)
            without = explain(shuffled, images, classes, method, regions)
            correlations[method] = rank_correlation(maps[method], without)
            if not quiet:
                bar.advance(1)
        rng = np.random.default_rng(seed)
        ranks = {name: place_ranks(found, rng) for name, found in maps.items()}
        ranks["random"] = place_ranks(np.zeros_like(maps[methods[0]]), rng)
        ranks["blob"] = place_ranks(np.repeat(centered_blob(*images.shape[1:3])[None], len(images), 0), rng)
        if regions is not None:
            ranks["region"] = place_ranks(regions.astype(np.float64), rng)
        curves = {}
        for name, order in ranks.items():
            curves[name] = deletion_and_insertion(predictor, images, classes, order, regions)
            if not quiet:
                bar.advance(1)
    scores = {name: insertion - deletion for name, (deletion, insertion) in curves.items()}
    found: dict[str, dict[str, Any]] = {}
    for method in methods:
        row: dict[str, Any] = {}
        for other in others:
            row |= _mean(f"over_{other}", scores[method] - scores[other], seed, scenes)
        row |= _mean("randomized", correlations[method], seed, scenes)
        if regions is not None:
            row["inside"] = heat_inside(maps[method], regions)
        found[method] = {**row, "verdict": verdict(row), "trusted": trusted(row)}
    orders = {
        name: {
            "deletion": float(deleted.mean()),
            "insertion": float(inserted.mean()),
            "score": float(scores[name].mean()),
        }
        for name, (deleted, inserted) in curves.items()
    }
    area = {} if regions is None else {"area": float(regions.mean())}
    return {"n": len(images), **area, "orders": orders, "methods": found}


def forwards(methods: Sequence[str], others: int = 2) -> int:
    """Images that the network sees for each image checked, about; a gradient counted as two. ``others``: orders that
    the methods are held against."""
    of_maps = sum(2 * (50 if method == "occlusion" else 3) for method in methods)
    return of_maps + 2 * (STEPS - 1) * (len(methods) + others)


def verdict(row: dict[str, Any]) -> str:
    """What a method's metrics say, in words."""
    intervals = {other: row[f"over_{other}_ci95"] for other in ORDERS if f"over_{other}_ci95" in row}
    beaten = [other for other, (low, _) in intervals.items() if low > 0]
    lost = [other for other in intervals if other not in beaten]
    if "random" in lost:  # the others then say nothing
        beaten, lost = [], ["random"]
    better = "better than " + " and than ".join(ORDERS[other] for other in beaten)
    rest = " and ".join(f"{_below(intervals[other])} than {ORDERS[other]}" for other in lost)
    words = ", but ".join([better] * bool(beaten) + [rest] * bool(lost))
    if not _moves(row):
        words += f"{', and' if lost else '; but'} much the same, or the reverse, with shuffled weights"
    elif lost == ["region"]:
        return f"{words}: they say no more than the mask does"
    return words if trusted(row) else f"{words}: do not trust these maps"


def _below(interval: Sequence[float]) -> str:
    return "worse" if interval[1] < 0 else "no better"


def trusted(row: dict[str, Any]) -> bool:
    beats = all(row[f"over_{other}_ci95"][0] > 0 for other in ORDERS if f"over_{other}_ci95" in row)
    return bool(beats and _moves(row))


def heat_inside(maps: np.ndarray, regions: np.ndarray) -> float:
    """The share of the maps' heat within the regions, the mean over the maps that are not blank; [N, H, W] each."""
    total = maps.sum((1, 2))
    shares = (maps * regions).sum((1, 2))[total > 0] / total[total > 0]
    return float(shares.mean()) if len(shares) else 0.0


def _moves(row: dict[str, Any]) -> bool:
    """Whether the maps change with the weights; one that is reversed still draws the image."""
    return max(map(abs, row["randomized_ci95"])) < SAME


def _mean(name: str, values: np.ndarray, seed: int, scenes: np.ndarray | None = None) -> dict[str, Any]:
    """The mean with its interval; the bootstrap draws scenes, each with all its images."""
    scenes = scenes_of(scenes, len(values))
    sums, counts = np.bincount(scenes, values), np.bincount(scenes)
    draws = np.concatenate(
        [weights @ sums / (weights @ counts) for weights in bootstrap_weights(len(sums), RESAMPLES, seed)]
    )
    return {name: float(values.mean()), f"{name}_ci95": list(percentile95(draws))}


def deletion_and_insertion(
    predictor: Predictor,
    images: np.ndarray,
    classes: np.ndarray,
    ranks: np.ndarray,
    regions: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Areas under the probability of a class as places are deleted from an image, and as they are put into a blurred one.

    Args:
        images: uint8 [N, H, W, C].
        classes: int64 [N].
        ranks: of each place of the grid, int64 [N, places]; 0 goes first. See `place_ranks`.
        regions: of masks, bool [N, H, W], over which the probability is averaged.

    Returns:
        deletion (the lower, the better the order), insertion (the higher): float [N] each, 0 to 1.
    """
    places = _places(*images.shape[1:3])
    bare = np.broadcast_to(np.round(255 * np.array(predictor.mean)).astype(np.uint8), images.shape)
    blurred = _blur(images)
    pixel_ranks = ranks[:, places]  # [N, H, W]
    whole, nothing, hazy = (_of_class(predictor, each, classes, regions) for each in (images, bare, blurred))
    deletion, insertion = [whole], [hazy]
    for gone in np.linspace(0, ranks.shape[1], STEPS + 1).round().astype(int)[1:-1]:
        moved = (pixel_ranks < gone)[..., None]
        deletion.append(_of_class(predictor, np.where(moved, bare, images), classes, regions))
        insertion.append(_of_class(predictor, np.where(moved, images, blurred), classes, regions))
    return _area(np.stack([*deletion, nothing], 1)), _area(np.stack([*insertion, whole], 1))


def place_ranks(maps: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[N, H, W] -> the rank of each place of the grid by its mean, int64 [N, places]; 0 is the highest, ties by chance."""
    places = _places(*maps.shape[1:]).ravel()
    member = np.eye(places.max() + 1)[places]
    means = maps.reshape(len(maps), -1) @ (member / member.sum(0))
    chance = rng.random(means.shape)
    order = np.lexsort((chance, -means.round(9)), axis=1)
    return np.argsort(order, axis=1)


def centered_blob(height: int, width: int) -> np.ndarray:
    """A map that knows nothing but that objects are in the middle, float [H, W]."""
    y, x = ((np.arange(side) + 0.5) / side - 0.5 for side in (height, width))
    return -(y[:, None] ** 2 + x[None] ** 2)


def shuffle_weights(model: nn.Module, seed: int) -> nn.Module:
    """A copy whose weights have their entries shuffled, tensor by tensor: the values of a trained network, and nothing of
    what it has learned. Norms and biases stay as they are."""
    import torch

    out = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in out.parameters():
            if weight.ndim >= 2:
                order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
                weight.copy_(weight.flatten()[order].view(weight.shape))
    return out


def rank_correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each pair of maps, [N, H, W] each -> [N]; 0 where one is the same all over."""
    from scipy.stats import rankdata

    ranks = [rankdata(maps.reshape(len(maps), -1), axis=1) for maps in (first, second)]
    a, b = (each - each.mean(1, keepdims=True) for each in ranks)
    below = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return np.where(below > 0, (a * b).sum(1) / np.maximum(below, 1e-12), 0.0)


def _places(height: int, width: int) -> np.ndarray:
    """The place of the grid that each pixel is in, int64 [H, W]."""
    rows, columns = (np.arange(side) * min(GRID, side) // side for side in (height, width))
    return rows[:, None] * (columns.max() + 1) + columns[None]


def _blur(images: np.ndarray) -> np.ndarray:
    """Images of which only broad color is left, uint8 as they are."""
    from scipy.ndimage import gaussian_filter

    height, width = images.shape[1:3]
    return gaussian_filter(images, (0, height / 6, width / 6, 0), mode="nearest")


def _of_class(predictor: Predictor, images: np.ndarray, classes: np.ndarray, regions: np.ndarray | None) -> np.ndarray:
    if regions is None:
        return predictor.probabilities(images, tta="none")[np.arange(len(images)), classes]
    return mean_probability(predictor, images, classes, regions)


def _area(curves: np.ndarray) -> np.ndarray:
    """By trapezoids, over the share of places moved."""
    return (curves[:, 1:] + curves[:, :-1]).mean(1) / 2
