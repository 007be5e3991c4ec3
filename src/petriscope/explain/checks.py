"""Whether maps can be trusted: do the places they mark matter more than others, and do they depend on the weights?

Three questions of each method, over the same pictures: is its order of places better than a random one; is it better than
a blob in the middle, where most objects are; do its maps change when the network's weights are shuffled?
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from petriscope.evaluation.intervals import bootstrap_weights, percentile95
from petriscope.explain import explain
from petriscope.progress import progress

if TYPE_CHECKING:
    from torch import nn

    from petriscope.classifier import Classifier

GRID = 7  # places a side that are deleted or inserted as one
STEPS = 12  # from the whole picture to nothing
SAME = (
    0.5  # rank correlation with the maps of shuffled weights from which maps show the picture rather than the network
)
RESAMPLES = 2000


def check(
    classifier: Classifier, images: np.ndarray, methods: Sequence[str], seed: int = 0, quiet: bool = True
) -> dict[str, Any]:
    """Check methods on pictures, each for the class predicted.

    Deletion and insertion (Petsiuk et al., 2018, "RISE", arXiv:1806.07421): the picture's places are replaced by the
    training pictures' mean color, or put back into a blurred copy, the most marked first; the area under the class's
    probability says how much the places matter. A map's score is insertion less deletion, and so is that of a random order
    of places and of a centered blob, from the center outward. All of them move the same squares of a 7x7 grid:
    single pixels at random would be noise, which spoils any network's answer sooner than a covered region does.

    Weight randomization (Adebayo et al., 2018, "Sanity Checks for Saliency Maps", arXiv:1810.03292): Spearman's
    correlation between each map and that of the network with the entries of every weight shuffled.

    Args:
        classifier: left as it was.
        images: uint8 [N, H, W, C].
        methods: names in `petriscope.explain.EXPLAINERS`.
        seed: of the random order, the shuffled weights and the bootstrap over pictures.

    Returns:
        n; ``orders``: of each method, of ``random`` and of ``blob``: deletion, insertion, score, means over the pictures;
        ``methods``: of each method, over_random and over_blob (how far its score is above theirs) and randomized (the
        correlation), each with ``_ci95``, and its verdict in words.
    """
    classes = classifier.probabilities(images, tta="none").argmax(1)
    shuffled = copy.copy(classifier)
    shuffled.model = shuffle_weights(classifier.model, seed)
    maps: dict[str, np.ndarray] = {}
    correlations: dict[str, np.ndarray] = {}
    with progress("checking explanations", 2 * len(methods) + 2, "orders") as bar:
        for method in methods:
            maps[method] = explain(classifier, images, classes, method)
            correlations[method] = rank_correlation(maps[method], explain(shuffled, images, classes, method))
            if not quiet:
                bar.advance(1)
        rng = np.random.default_rng(seed)
        ranks = {name: place_ranks(found, rng) for name, found in maps.items()}
        ranks["random"] = place_ranks(np.zeros_like(maps[methods[0]]), rng)
        ranks["blob"] = place_ranks(np.repeat(centered_blob(*images.shape[1:3])[None], len(images), 0), rng)
        curves = {}
        for name, order in ranks.items():
            curves[name] = deletion_and_insertion(classifier, images, classes, order)
            if not quiet:
                bar.advance(1)
    scores = {name: insertion - deletion for name, (deletion, insertion) in curves.items()}
    found: dict[str, dict[str, Any]] = {}
    for method in methods:
        row: dict[str, Any] = {}
        for other in ("random", "blob"):
            row |= _mean(f"over_{other}", scores[method] - scores[other], seed)
        row |= _mean("randomized", correlations[method], seed)
        found[method] = {**row, "verdict": verdict(row), "trusted": trusted(row)}
    orders = {
        name: {
            "deletion": float(deleted.mean()),
            "insertion": float(inserted.mean()),
            "score": float(scores[name].mean()),
        }
        for name, (deleted, inserted) in curves.items()
    }
    return {"n": len(images), "orders": orders, "methods": found}


def forwards(methods: Sequence[str]) -> int:
    """Pictures that the network sees for each picture checked, about; a gradient counted as two."""
    of_maps = sum(2 * (50 if method == "occlusion" else 3) for method in methods)
    return of_maps + 2 * (STEPS - 1) * (len(methods) + 2)


def verdict(row: dict[str, Any]) -> str:
    """What a method's figures say, in words."""
    beats = {other: row[f"over_{other}_ci95"][0] > 0 for other in ("random", "blob")}
    if beats["random"] and beats["blob"]:
        words = "better than a random order and than a centered blob"
    elif beats["random"]:
        worse = row["over_blob_ci95"][1] < 0
        words = f"better than a random order, but {'worse' if worse else 'no better'} than a centered blob"
    else:
        words = f"{'worse' if row['over_random_ci95'][1] < 0 else 'no better'} than a random order"
    if not _moves(row):
        words += f"{'; but' if all(beats.values()) else ', and'} much the same, or the reverse, with shuffled weights"
    return words if trusted(row) else f"{words}: do not trust these maps"


def trusted(row: dict[str, Any]) -> bool:
    return bool(row["over_random_ci95"][0] > 0 and row["over_blob_ci95"][0] > 0 and _moves(row))


def _moves(row: dict[str, Any]) -> bool:
    """Whether the maps change with the weights; one that is reversed still draws the picture."""
    return max(map(abs, row["randomized_ci95"])) < SAME


def _mean(name: str, values: np.ndarray, seed: int) -> dict[str, Any]:
    draws = np.concatenate(
        [weights @ values / len(values) for weights in bootstrap_weights(len(values), RESAMPLES, seed)]
    )
    return {name: float(values.mean()), f"{name}_ci95": list(percentile95(draws))}


def deletion_and_insertion(
    classifier: Classifier, images: np.ndarray, classes: np.ndarray, ranks: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Areas under the probability of a class as places are deleted from a picture, and as they are put into a blurred one.

    Args:
        images: uint8 [N, H, W, C].
        classes: int64 [N].
        ranks: of each place of the grid, int64 [N, places]; 0 goes first. See `place_ranks`.

    Returns:
        deletion (the lower, the better the order), insertion (the higher): float [N] each, 0 to 1.
    """
    places = _places(*images.shape[1:3])
    bare = np.broadcast_to(np.round(255 * np.array(classifier.mean)).astype(np.uint8), images.shape)
    blurred = _blur(images)
    pixel_ranks = ranks[:, places]  # [N, H, W]
    whole, nothing, hazy = (_of_class(classifier, each, classes) for each in (images, bare, blurred))
    deletion, insertion = [whole], [hazy]
    for gone in np.linspace(0, ranks.shape[1], STEPS + 1).round().astype(int)[1:-1]:
        moved = (pixel_ranks < gone)[..., None]
        deletion.append(_of_class(classifier, np.where(moved, bare, images), classes))
        insertion.append(_of_class(classifier, np.where(moved, images, blurred), classes))
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
    """Pictures of which only broad color is left, uint8 as they are."""
    from scipy.ndimage import gaussian_filter

    height, width = images.shape[1:3]
    return gaussian_filter(images, (0, height / 6, width / 6, 0), mode="nearest")


def _of_class(classifier: Classifier, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    return classifier.probabilities(images, tta="none")[np.arange(len(images)), classes]


def _area(curves: np.ndarray) -> np.ndarray:
    """By trapezoids, over the share of places moved."""
    return (curves[:, 1:] + curves[:, :-1]).mean(1) / 2
