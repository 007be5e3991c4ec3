"""Segmentation metrics, from counts per image. Counting batch by batch avoids holding all probabilities in memory.

Pixels that are unlabeled in the target mask are ignored. Mean IoU is the mean over the classes that the target masks
have; it is NaN if they have none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from petriscope.core.device import widest
from petriscope.core.masks import BACKGROUND, IGNORE, border_pixels
from petriscope.metrics.intervals import bootstrap_weights, percentile95, size_groups, sum_by

if TYPE_CHECKING:  # torch is imported where it is used: reading data needs the task, and no torch
    import pandas as pd
    from torch import Tensor

TOLERANCE = 0.0075  # share of the diagonal by which outlines may differ
FAR = 8.0  # pixels of that distance from which on dilation costs more than distances
AT_ONCE = 2**25  # pixels times classes whose outlines are compared at a time
MISSING = {
    "boundary_f1": "no image has an outline in its mask"
}  # why a metric is undefined although pixels have labels
JUDGED = 0.1  # an example has at least this share of the largest number of labeled pixels


@dataclass(frozen=True)
class Tally:
    """Counts per image of a split.

    Args:
        confusion: labeled pixels by true class (rows) and predicted class (columns), int64 [N, K, K].
        nll: sum of the negative log-likelihood over labeled pixels, in nats, float64 [N].
        outlines: per class, the number of pixels of the true outline, and of those near the predicted outline; then the
            same for the predicted outline; int64 [N, K, 4]. Zeros if outlines were not traced.
    """

    confusion: np.ndarray
    nll: np.ndarray
    outlines: np.ndarray

    def __len__(self) -> int:
        return len(self.confusion)

    def take(self, rows: np.ndarray) -> Tally:
        """The counts of some of the images."""
        return Tally(self.confusion[rows], self.nll[rows], self.outlines[rows])


def tally_masks(
    predictions: Iterable[tuple[np.ndarray, Tensor, Tensor]], count: int, classes: int, outlines: bool = False
) -> Tally:
    """Count the predictions of a split, batch by batch.

    Args:
        predictions: batches of image indices, log-probabilities float32 [B, K, H, W], and target masks uint8 [B, H, W].
        count: number of images, N.
        classes: K.
        outlines: whether to trace the outlines of the classes too.
    """
    confusion = np.zeros((count, classes, classes), dtype=np.int64)
    nll = np.zeros(count)
    lines = np.zeros((count, classes, 4), dtype=np.int64)
    for indices, log_p, masks in predictions:
        predicted = log_p.argmax(1)
        confusion[indices] = confusion_each(predicted, masks, classes).cpu().numpy()
        nll[indices] = loss_each(log_p, masks).cpu().numpy()
        if outlines:
            lines[indices] = outlines_each(predicted, masks, classes).cpu().numpy()
    return Tally(confusion, nll, lines)


def confusion_each(predicted: Tensor, masks: Tensor, classes: int) -> Tensor:
    """One confusion matrix per image, true by predicted class, int64 [B, K, K].

    Args:
        predicted: class indices, int64 [B, H, W].
        masks: uint8 [B, H, W].
    """
    import torch

    labeled = masks != IGNORE
    first = torch.arange(len(masks), device=masks.device)[:, None, None] * classes
    beyond = len(masks) * classes * classes  # the cell of what is not labeled
    cells = torch.where(labeled, (first + masks) * classes + predicted, beyond).flatten()
    counts = torch.zeros(beyond + 1, dtype=torch.int64, device=masks.device)
    counts.scatter_add_(0, cells, torch.ones_like(cells[:1]).expand_as(cells))
    return counts[:beyond].view(-1, classes, classes)


def loss_each(log_p: Tensor, masks: Tensor) -> Tensor:
    """The negative log-likelihood summed over the labeled pixels of each image, in nats, float [B].

    Args:
        log_p: log-probabilities, float32 [B, K, H, W].
        masks: uint8 [B, H, W].
    """
    import torch

    labeled = masks != IGNORE
    true_log_p = log_p.gather(1, torch.where(labeled, masks, 0).long()[:, None])[:, 0]
    return -(true_log_p * labeled).sum((1, 2), dtype=widest(log_p.device))


def outlines_each(predicted: Tensor, masks: Tensor, classes: int) -> Tensor:
    """Compare the true and the predicted outlines of the classes, int64 [B, K, 4]; see `Tally`.

    A pixel is on the outline of its class if one of its four neighbors is labeled with another class. Borders to unlabeled
    pixels are not outlines. Outlines are near if they are at most `TOLERANCE` of the image's diagonal apart, or one pixel.
    """
    import torch

    height, width = masks.shape[1:]
    reach = max(1.0, TOLERANCE * math.hypot(height, width))
    masks = masks.long()
    predicted = torch.where(masks == IGNORE, IGNORE, predicted)
    borders = [border_pixels(each)[:, None] for each in (masks, predicted)]
    out = []
    at_once = max(AT_ONCE // max(masks.numel(), 1), 1)  # classes
    for first in range(0, classes, at_once):
        known = torch.arange(first, min(first + at_once, classes), device=masks.device)[:, None, None]
        true, guessed = (
            (each[:, None] == known) & border for each, border in zip((masks, predicted), borders, strict=True)
        )
        found, right = true & _widen(guessed, reach), guessed & _widen(true, reach)
        out.append(torch.stack([part.sum((2, 3)) for part in (true, found, guessed, right)], 2))
    return torch.cat(out, 1)


def _widen(lines: Tensor, reach: float) -> Tensor:
    """Dilate by a disc of radius ``reach``; bool [B, K, H, W]. Row by row, or by exact distances where the disc is large."""
    import torch
    import torch.nn.functional as F

    if reach > FAR:
        from scipy.ndimage import distance_transform_edt

        flat = lines.flatten(0, 1).cpu().numpy()
        near = [distance_transform_edt(~each) <= reach if each.any() else each for each in flat]
        return torch.from_numpy(np.stack(near)).view(lines.shape).to(lines.device)
    whole = int(reach)
    out = torch.zeros_like(lines)
    for down in range(-whole, whole + 1):
        side = int(math.sqrt(reach * reach - down * down))
        row = F.max_pool2d(lines.float(), (1, 2 * side + 1), stride=1, padding=(0, side)) > 0
        size = lines.shape[2] - abs(down)
        if size > 0:
            out.narrow(2, max(down, 0), size).logical_or_(row.narrow(2, max(-down, 0), size))
    return out


def quick_mask_metrics(tally: Tally, background: int | None = None) -> dict[str, float]:
    """The metrics computed after every epoch: accuracy of labeled pixels, mean IoU, and loss (mean negative log-likelihood
    per labeled pixel). NaN where no pixel is labeled.

    Args:
        background: the index of the class that mean IoU leaves out, as in `full_mask_metrics`.
    """
    total = tally.confusion.sum(0)
    return {
        "accuracy": float(pixel_accuracy(total)),
        "miou": float(mean_iou(total, background)),
        "loss": float(divide(tally.nll.sum(), total.sum())),
    }


def pixel_accuracy(confusion: np.ndarray) -> np.ndarray:
    """Share of labeled pixels with the right class, from confusion matrices [..., K, K]; NaN where no pixel is labeled."""
    hits = np.trace(confusion, axis1=-2, axis2=-1)
    return divide(hits, confusion.sum((-2, -1)))


def counted_accuracy(counts: np.ndarray) -> np.ndarray:
    """`pixel_accuracy` from `class_counts`, [..., K, 3]."""
    return divide(counts[..., 2].sum(-1), counts[..., 0].sum(-1))


def class_counts(confusion: np.ndarray) -> np.ndarray:
    """Pixels per class, from confusion matrices [..., K, K]: true, predicted, and both; [..., K, 3]."""
    return np.stack([confusion.sum(-1), confusion.sum(-2), np.diagonal(confusion, axis1=-2, axis2=-1)], -1)


def class_iou(confusion: np.ndarray) -> np.ndarray:
    """Intersection over union per class, [..., K], from confusion matrices [..., K, K]; NaN where the target masks have no
    pixel of the class."""
    return counted_iou(class_counts(confusion))


def counted_iou(counts: np.ndarray) -> np.ndarray:
    """`class_iou` from `class_counts`, [..., K, 3]."""
    true, predicted, hits = np.moveaxis(counts, -1, 0)
    return np.where(true > 0, divide(hits, true + predicted - hits), np.nan)


def mean_iou(confusion: np.ndarray, left_out: int | None = None) -> np.ndarray:
    """Mean IoU over the classes that the target masks have, except ``left_out``, [...]; NaN where they have none."""
    return counted_mean_iou(class_counts(confusion), left_out)


def counted_mean_iou(counts: np.ndarray, left_out: int | None = None) -> np.ndarray:
    """`mean_iou` from `class_counts`, [..., K, 3]."""
    iou = counted_iou(counts)
    if left_out is not None:
        iou = np.delete(iou, left_out, axis=-1)
    return defined_mean(iou)


def background_of(classes: tuple[str, ...]) -> int | None:
    """The index of the class that mean IoU leaves out; None if no class is called background."""
    return classes.index(BACKGROUND) if BACKGROUND in classes else None


def boundary_f1_each(outlines: np.ndarray) -> np.ndarray:
    """Boundary F1 per image, [N], from ``Tally.outlines``: the mean over the classes that have an outline in the target
    mask; NaN if none has. Csurka et al., 2013, BMVC, doi:10.5244/C.27.32."""
    true, found, guessed, right = np.moveaxis(outlines, 2, 0)
    recall, precision = divide(found, true), divide(right, guessed)
    f1 = np.nan_to_num(divide(2 * precision * recall, precision + recall))
    return defined_mean(np.where(true > 0, f1, np.nan))


def full_mask_metrics(
    tally: Tally, classes: tuple[str, ...], groups: np.ndarray | None = None, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """All metrics of an evaluation, with 95 % intervals.

    Args:
        classes: K names.
        groups: the scene of each image, strings [N]. The bootstrap draws whole scenes, because images of one scene are not
            independent. None: it draws images.
        resamples: number of bootstrap resamples.
        seed: of the bootstrap.

    Returns:
        n (images), groups and largest_group (where images share one), scenes, pixels (labeled), outlined (images with an
        outline in the target mask, over which boundary_f1 is the mean); miou, pixel_accuracy, boundary_f1, nll (per pixel),
        each with ``<name>_ci95`` [low, high]; per_class (iou with iou_ci95, precision, recall, f1, pixels); confusion
        (pixels, true by predicted). Means are over the classes that the target masks have. If a class is called background,
        miou leaves it out and miou_with_background includes it. A metric that is undefined is None; ``undefined`` says why.
    """
    background = background_of(classes)
    scenes = scenes_of(groups, len(tally))
    edges = boundary_f1_each(tally.outlines)
    parts = {
        "counts": class_counts(tally.confusion),
        "nll": tally.nll,
        "edges": np.nan_to_num(edges),
        "traced": np.isfinite(edges).astype(np.float64),
    }
    sums = {key: sum_by(scenes, values) for key, values in parts.items()}
    count = len(sums["nll"])
    whole = _metrics({key: values.sum(0)[None] for key, values in sums.items()}, background)
    draws: list[dict[str, np.ndarray]] = []
    for weights in bootstrap_weights(count, resamples, seed):
        drawn = {key: np.tensordot(weights, values, 1) for key, values in sums.items()}
        draws.append(_metrics(drawn, background))
    spread = {key: np.concatenate([draw[key] for draw in draws]) for key in whole} if draws else {}

    total = tally.confusion.sum(0)
    outlined = int(sums["traced"].sum())
    out: dict[str, Any] = {"n": len(tally), "scenes": count, "pixels": int(total.sum()), "outlined": outlined}
    out |= size_groups(scenes) if count < len(tally) else {}
    for key, values in whole.items():
        if key != "iou":
            out[key] = _number(values[0])
            out[f"{key}_ci95"] = _interval(spread.get(key))
    undefined = {
        key: "no pixel has a label" if not total.sum() else MISSING.get(key, "no pixel has a label that counts")
        for key, values in whole.items()
        if key != "iou" and not np.isfinite(values[0])
    }
    if count == 1:
        undefined["ci95"] = "there is one group of images, or one image"
    if undefined:
        out["undefined"] = undefined
    hits, true, predicted = np.diagonal(total), total.sum(1), total.sum(0)
    out["per_class"] = {
        name: {
            "pixels": int(true[k]),
            "iou": _number(whole["iou"][0, k]),
            "iou_ci95": _interval(spread["iou"][:, k] if spread else None),
            "precision": _number(divide(hits[k], predicted[k])),
            "recall": _number(divide(hits[k], true[k])),
            "f1": _number(divide(2 * hits[k], true[k] + predicted[k])),
        }
        for k, name in enumerate(classes)
    }
    out["confusion"] = total.astype(np.int64).tolist()
    return out


def _metrics(sums: dict[str, np.ndarray], background: int | None) -> dict[str, np.ndarray]:
    """Each metric for R sums over images, [R]; and ``iou``, [R, K]."""
    counts = sums["counts"]
    out = {"miou": counted_mean_iou(counts, background)}
    if background is not None:
        out["miou_with_background"] = counted_mean_iou(counts)
    return out | {
        "pixel_accuracy": counted_accuracy(counts),
        "boundary_f1": divide(sums["edges"], sums["traced"]),
        "nll": divide(sums["nll"], counts[..., 0].sum(1)),
        "iou": counted_iou(counts),
    }


def mask_table(
    tally: Tally, classes: Sequence[str], ids: np.ndarray, groups: np.ndarray | None, split: str
) -> pd.DataFrame:
    """One row per image: id, split, scene (its group, else its id), labeled (pixels), pixel_accuracy, miou (background
    included), and ``iou_<class>``, which is NaN for classes that the target mask lacks. The numbers of pixels of each class,
    true (``true_<class>``), predicted (``guessed_<class>``) and both (``found_<class>``), give the metrics of any set of
    images.

    Args:
        ids: strings [N].
        groups: strings [N], or None.
    """
    import pandas as pd

    hits = np.diagonal(tally.confusion, axis1=1, axis2=2)
    counts = {"true": tally.confusion.sum(2), "guessed": tally.confusion.sum(1), "found": hits}
    iou = class_iou(tally.confusion)
    columns: dict[str, Any] = {
        "id": ids.astype(object),
        "split": split,
        "scene": (ids if groups is None else groups).astype(object),
        "labeled": tally.confusion.sum((1, 2)),
        "pixel_accuracy": pixel_accuracy(tally.confusion),
        "miou": mean_iou(tally.confusion),
    }
    for key, values in {"iou": iou, **counts}.items():
        columns |= {f"{key}_{name}": values[:, k] for k, name in enumerate(classes)}
    return pd.DataFrame(columns)


def choose_examples(tally: Tally, each: int) -> tuple[np.ndarray, list[str]]:
    """Images to show: those with the highest, median and lowest mean IoU, among those with enough labeled pixels.

    Args:
        each: number of images of each kind.

    Returns:
        indices, int64 [G]; and best, median or worst for each.
    """
    labeled = tally.confusion.sum((1, 2))
    miou = mean_iou(tally.confusion)
    enough = np.flatnonzero(np.isfinite(miou) & (labeled >= JUDGED * labeled.max(initial=0)))
    ranked = enough[np.argsort(-miou[enough], kind="stable")]
    if len(ranked) <= 3 * each:
        middle = len(ranked) // 3
        parts = [ranked[:middle], ranked[middle : len(ranked) - middle], ranked[len(ranked) - middle :]]
    else:
        start = (len(ranked) - each) // 2
        parts = [ranked[:each], ranked[start : start + each], ranked[-each:]]
    words = [word for word, part in zip(("best", "median", "worst"), parts, strict=True) for _ in part]
    return np.concatenate(parts), words


def scenes_of(groups: np.ndarray | None, count: int) -> np.ndarray:
    """The scene of each of ``count`` images, counted from 0, int64 [N]: its group. Without groups, each image is a scene."""
    return np.arange(count) if groups is None else np.unique(groups, return_inverse=True)[1]


def divide(one: Any, other: Any) -> np.ndarray:
    """``one / other``, NaN where ``other`` is not positive."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.asarray(other) > 0, np.divide(one, other), np.nan)


def defined_mean(values: np.ndarray) -> np.ndarray:
    """The mean over the last axis, ignoring NaN; NaN where all values are."""
    return divide(np.nansum(values, axis=-1), np.isfinite(values).sum(-1))


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def _interval(values: np.ndarray | None) -> list[float | None]:
    low, high = (math.nan, math.nan) if values is None else percentile95(values)
    return [_number(low), _number(high)]
