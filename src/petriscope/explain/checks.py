"""Checks of explanation methods: whether the parts of an image that maps mark matter more than others, and whether maps
depend on the weights of the network.

Each method has to pass three checks over the same images. Its order of cells is better than a random order. It is better
than a centered blob, since most objects are in the center. Its maps change if the weights of the network are shuffled. For
segmentation, it also has to be better than the predicted region itself.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from petriscope.core.progress import TimeLeft, progress, unlimited
from petriscope.explain import explain
from petriscope.explain.regions import mean_probability
from petriscope.metrics.intervals import bootstrap_weights, percentile95
from petriscope.metrics.segmentation import scenes_of

if TYPE_CHECKING:
    from torch import nn

    from petriscope.inference.predictor import Predictor

GRID = 7  # cells per side; the pixels of a cell are deleted or inserted together
STEPS = 12  # of the deletion and insertion curves
SAME = 0.5  # with a higher rank correlation under shuffled weights, maps do not depend on the network
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
    left: TimeLeft = unlimited,
) -> dict[str, Any] | None:
    """Check explanation methods on images, for the predicted class of each image, or for ``classes``.

    Deletion and insertion (Petsiuk et al., 2018, "RISE", arXiv:1806.07421): the cells of the image are replaced by the mean
    color of the training images, or inserted into a blurred copy, in the order of the map. The area under the probability
    of the class measures how much the cells matter. The score of an order is insertion minus deletion. Maps are compared
    with a random order and with a centered blob, from the center outward. All orders move the same cells of a 7x7 grid:
    deleting random single pixels would add noise, which changes predictions more than a covered area does. For
    segmentation, the probability is the mean over the region predicted as the class in the unchanged image. Deleting that
    region deletes the class, so maps are also compared with the region itself, its cells first.

    Weight randomization (Adebayo et al., 2018, "Sanity Checks for Saliency Maps", arXiv:1810.03292): Spearman's
    correlation between each map and that of the network with the entries of every weight tensor shuffled.

    Args:
        predictor: left unchanged. Its processes share the images.
        images: uint8 [N, H, W, C].
        methods: names in `petriscope.explain.EXPLAINERS`.
        seed: of the random order, the shuffled weights and the bootstrap.
        quiet: show no progress.
        classes: the class explained in each image, int64 [N]; None: the predicted one. Required for segmentation.
        regions: for segmentation, where the class was predicted, bool [N, H, W].
        scenes: the scene of each image, int64 [N], which the bootstrap draws; None: it draws images.
        left: the time that there is for it.

    Returns:
        None if there was not enough time. Otherwise:

        ``n``. ``orders``: deletion, insertion and score, means over the images, of each method, ``random``, ``blob``, and
        for segmentation ``region``. ``methods``: for each method, over_random, over_blob and for segmentation over_region
        (differences of the scores) and randomized (the correlation), each with ``_ci95``; its ``verdict``, and whether it
        is ``trusted``. For segmentation also ``inside``, the share of the maps' total within the regions, and beside n
        ``area``, the share of the images that the regions take.
    """
    if classes is None:
        classes = predictor.probabilities(images, tta="none").argmax(1)
    shuffled = copy.copy(predictor)
    shuffled.model = shuffle_weights(predictor.model, seed)
    maps: dict[str, np.ndarray] = {}
    correlations: dict[str, np.ndarray] = {}
    others = ["random", "blob"] if regions is None else list(ORDERS)

    def of(rows: slice) -> np.ndarray | None:
        return None if regions is None else regions[rows]

    with progress("checking explanations", 2 * len(methods) + len(others), "orders") as bar:
        for method in methods:
            if left() <= 0:
                return None

            def mapped(rows: slice, method: str = method) -> list[np.ndarray]:
                return [explain(each, images[rows], classes[rows], method, of(rows)) for each in (predictor, shuffled)]

            maps[method], without = predictor.ranks.spread_arrays(f"maps by {method}", len(images), mapped)
            correlations[method] = rank_correlation(maps[method], without)
            if not quiet:
                bar.advance(1)
        rng = np.random.default_rng(seed)
        ranks = {name: cell_ranks(found, rng) for name, found in maps.items()}
        ranks["random"] = cell_ranks(np.zeros_like(maps[methods[0]]), rng)
        ranks["blob"] = cell_ranks(np.repeat(centered_blob(*images.shape[1:3])[None], len(images), 0), rng)
        if regions is not None:
            ranks["region"] = cell_ranks(regions.astype(np.float64), rng)
        curves = {}
        for name, order in ranks.items():
            if left() <= 0:
                return None

            def changed(rows: slice, order: np.ndarray = order) -> Sequence[np.ndarray]:
                return deletion_and_insertion(predictor, images[rows], classes[rows], order[rows], of(rows))

            curves[name] = predictor.ranks.spread_arrays(f"curves of {name}", len(images), changed)
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


def forward_passes(methods: Sequence[str], others: int = 2) -> int:
    """The approximate number of forward passes per image checked. A gradient counts as two.

    Args:
        others: number of orders that the methods are compared with.
    """
    of_maps = sum(2 * (50 if method == "occlusion" else 3) for method in methods)
    return of_maps + 2 * (STEPS - 1) * (len(methods) + others)


def verdict(row: dict[str, Any]) -> str:
    """The result of the checks of a method, in words.

    Args:
        row: the metrics of the method, see `check`.
    """
    intervals = {other: row[f"over_{other}_ci95"] for other in ORDERS if f"over_{other}_ci95" in row}
    beaten = [other for other, (low, _) in intervals.items() if low > 0]
    lost = [other for other in intervals if other not in beaten]
    if "random" in lost:  # the other comparisons then do not count
        beaten, lost = [], ["random"]
    better = "better than " + " and than ".join(ORDERS[other] for other in beaten)
    rest = " and ".join(f"{_below(intervals[other])} than {ORDERS[other]}" for other in lost)
    words = ", but ".join([better] * bool(beaten) + [rest] * bool(lost))
    if not _depends_on_weights(row):
        words += f"{', and' if lost else '; but'} much the same, or the reverse, with shuffled weights"
    elif lost == ["region"]:
        return f"{words}: they say no more than the mask does"
    return words if trusted(row) else f"{words}: do not trust these maps"


def _below(interval: Sequence[float]) -> str:
    return "worse" if interval[1] < 0 else "no better"


def trusted(row: dict[str, Any]) -> bool:
    """Whether a method passes all checks."""
    beats = all(row[f"over_{other}_ci95"][0] > 0 for other in ORDERS if f"over_{other}_ci95" in row)
    return bool(beats and _depends_on_weights(row))


def heat_inside(maps: np.ndarray, regions: np.ndarray) -> float:
    """The share of each map's total that is within its region, the mean over maps that are not blank.

    Args:
        maps: float [N, H, W].
        regions: bool [N, H, W].
    """
    total = maps.sum((1, 2))
    shares = (maps * regions).sum((1, 2))[total > 0] / total[total > 0]
    return float(shares.mean()) if len(shares) else 0.0


def _depends_on_weights(row: dict[str, Any]) -> bool:
    """Whether maps change if weights are shuffled. A reversed map has not changed."""
    return max(map(abs, row["randomized_ci95"])) < SAME


def _mean(name: str, values: np.ndarray, seed: int, scenes: np.ndarray | None = None) -> dict[str, Any]:
    """The mean of values, [N], and its 95 % interval from a bootstrap over scenes."""
    scenes = scenes_of(scenes, len(values))
    sums, counts = np.bincount(scenes, values), np.bincount(scenes)
    draws = np.concatenate(
        [
            np.empty(0),
            *(weights @ sums / (weights @ counts) for weights in bootstrap_weights(len(sums), RESAMPLES, seed)),
        ]
    )
    return {name: float(values.mean()), f"{name}_ci95": list(percentile95(draws))}


def deletion_and_insertion(
    predictor: Predictor,
    images: np.ndarray,
    classes: np.ndarray,
    ranks: np.ndarray,
    regions: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Areas under the probability of a class as cells are deleted from an image, and as they are inserted into a blurred one.

    Args:
        images: uint8 [N, H, W, C].
        classes: int64 [N].
        ranks: of each cell of the grid, int64 [N, cells]; rank 0 comes first. See `cell_ranks`.
        regions: for segmentation, where the probability is averaged, bool [N, H, W].

    Returns:
        deletion (lower is better) and insertion (higher is better), float [N] each, 0 to 1.
    """
    cells = _cells(*images.shape[1:3])
    full = np.iinfo(images.dtype).max
    bare = np.broadcast_to(np.round(full * np.array(predictor.mean)).astype(images.dtype), images.shape)
    blurred = _blur(images)
    pixel_ranks = ranks[:, cells]  # [N, H, W]
    whole, nothing, hazy = (_of_class(predictor, each, classes, regions) for each in (images, bare, blurred))
    deletion, insertion = [whole], [hazy]
    for gone in np.linspace(0, ranks.shape[1], STEPS + 1).round().astype(int)[1:-1]:
        moved = (pixel_ranks < gone)[..., None]
        deletion.append(_of_class(predictor, np.where(moved, bare, images), classes, regions))
        insertion.append(_of_class(predictor, np.where(moved, images, blurred), classes, regions))
    return _area(np.stack([*deletion, nothing], 1)), _area(np.stack([*insertion, whole], 1))


def cell_ranks(maps: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rank the cells of the grid by their mean in each map, [N, H, W] -> int64 [N, cells]. Rank 0 has the highest mean; ties
    are broken at random."""
    cells = _cells(*maps.shape[1:]).ravel()
    member = np.eye(cells.max() + 1)[cells]
    means = maps.reshape(len(maps), -1) @ (member / member.sum(0))
    chance = rng.random(means.shape)
    order = np.lexsort((chance, -means.round(9)), axis=1)
    return np.argsort(order, axis=1)


def centered_blob(height: int, width: int) -> np.ndarray:
    """A map that decreases with the distance from the center, float [H, W]."""
    y, x = ((np.arange(side) + 0.5) / side - 0.5 for side in (height, width))
    return -(y[:, None] ** 2 + x[None] ** 2)


def shuffle_weights(model: nn.Module, seed: int) -> nn.Module:
    """A copy of the model with the entries of every weight tensor shuffled. Biases and the weights of normalization layers
    are unchanged."""
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
    """Spearman's correlation of each pair of maps, [N, H, W] each -> [N]; 0 if one of them is constant."""
    from scipy.stats import rankdata

    ranks = [rankdata(maps.reshape(len(maps), -1), axis=1) for maps in (first, second)]
    a, b = (each - each.mean(1, keepdims=True) for each in ranks)
    below = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return np.where(below > 0, (a * b).sum(1) / np.maximum(below, 1e-12), 0.0)


def _cells(height: int, width: int) -> np.ndarray:
    """The cell of the grid that each pixel belongs to, int64 [H, W]."""
    rows, columns = (np.arange(side) * min(GRID, side) // side for side in (height, width))
    return rows[:, None] * (columns.max() + 1) + columns[None]


def _blur(images: np.ndarray) -> np.ndarray:
    """Strongly blurred images, uint8 [N, H, W, C]."""
    from scipy.ndimage import gaussian_filter

    height, width = images.shape[1:3]
    return gaussian_filter(images, (0, height / 6, width / 6, 0), mode="nearest")


def _of_class(predictor: Predictor, images: np.ndarray, classes: np.ndarray, regions: np.ndarray | None) -> np.ndarray:
    """The probability of each image's class, [N]; for segmentation, its mean over the region."""
    if regions is None:
        return predictor.probabilities(images, tta="none")[np.arange(len(images)), classes]
    return mean_probability(predictor, images, classes, regions)


def _area(curves: np.ndarray) -> np.ndarray:
    """Area under curves, [N, S] -> [N], by the trapezoidal rule."""
    return (curves[:, 1:] + curves[:, :-1]).mean(1) / 2
