"""The stress test: how much of its accuracy a network keeps where images are blurred, discolored or partly covered.

Every image is disturbed by every corruption of `petriscope.augment.corruptions` at five severities. What is looked at is
balanced accuracy, and of masks mean IoU; a mask moves where its image is moved. The procedure is that of Hendrycks and
Dietterich, 2019, arXiv:1903.12261, with the corruptions that MedMNIST-C names for blood cells (Di Salvo, Doerrich and
Ledig, 2024, arXiv:2406.17536). Both relate errors to those of a reference network; here the measure is the network itself
on the same images, undisturbed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from petriscope.augment import AUGMENTATIONS
from petriscope.augment.corruption_mix import CorruptionMix
from petriscope.augment.corruptions import CORRUPTIONS, SEVERITIES, Corruption, corrupt, corrupt_masks
from petriscope.core.errors import RequestError
from petriscope.core.progress import progress
from petriscope.core.recipe import Recipe
from petriscope.data.imageset import ImageSet
from petriscope.metrics.segmentation import (
    background_of,
    class_counts,
    confusion_each,
    counted_mean_iou,
)

IMAGES = 320  # of a split, unless told otherwise
FEWEST = 64  # below this, intervals are too wide to say anything
BATCH = 200
PIXELS = 2**18  # of a batch, where each has one probability per class
SHOWN = (1, 3, 5)  # severities of the images that the report shows
PLAIN = "identity"  # the pass of undisturbed images
BESIDE = {"balanced_accuracy": "accuracy", "miou": "pixel_accuracy"}  # the metric, and what is given beside it

# What ordinary augmentations teach a network of the stress test.
_LIGHT = ("brightness-up", "brightness-down", "contrast-up", "contrast-down", "saturation")
_PLACE = ("rotation", "translation")
TAUGHT_BY = {
    "brightness": ("brightness-up", "brightness-down"),
    "contrast": ("contrast-up", "contrast-down"),
    "auto-contrast": ("contrast-up",),
    "equalize": ("contrast-up",),
    "saturation": ("saturation",),
    "hue": ("color-cast",),
    "stain-jitter": ("color-cast", "saturation"),
    "noise": ("gaussian-noise",),
    "blur": ("defocus-blur",),
    "rotate": ("rotation",),
    "translate": ("translation",),
    **dict.fromkeys(("cutout", "random-erasing", "coarse-dropout", "grid-mask", "disc-mask"), ("occlusion",)),
    "rand-augment": (*_LIGHT, *_PLACE),
    "trivial-augment": (*_LIGHT, *_PLACE),
    "aug-mix": ("contrast-up", *_PLACE),
}


@dataclass(frozen=True)
class Row:
    """What one corruption does.

    Args:
        name, kind, unit, levels: as in `Corruption`; levels of severities 1 to 5.
        medmnist_c: whether MedMNIST-C names it for blood cells.
        seen: whether the recipe trains against it, by itself or by an augmentation that does much the same.
        held_out: whether the recipe leaves it out of its corruptions, in so many words.
        metric: balanced accuracy, or of masks mean IoU, a severity; ``accuracy``: of images, or of pixels.
        mean: of the metric over the severities.
    """

    name: str
    kind: str
    unit: str
    levels: tuple[float, ...]
    medmnist_c: bool
    seen: bool
    held_out: bool
    metric: tuple[Share, ...]
    accuracy: tuple[Share, ...]
    mean: Share


@dataclass(frozen=True)
class Stress:
    """The outcome of a stress test.

    Args:
        metric: what is looked at: ``balanced_accuracy``, or of masks ``miou``, the background left out.
        n, of: images used, and images in the split.
        scenes: of masks, the groups of images that the bootstrap draws, or the images where there are none.
        tta: test-time augmentation.
        seed: of the draws.
        clean: the metric of the same images, undisturbed; ``clean_accuracy``: accuracy.
        mean: the metric, averaged over the corruptions of MedMNIST-C and the severities; ``mean_all``: over all.
        drop: ``clean`` less ``mean``, in shares; ``relative_drop``: that, as a share of ``clean``.
        worst: name of the corruption of the lowest mean.
        seen, unseen: mean over the corruptions trained against, and over the others; None where there are none.
        rows: a corruption each.
        seconds: that it took.
    """

    metric: str
    n: int
    of: int
    scenes: int | None
    tta: str
    seed: int
    severities: tuple[int, ...]
    clean: Share
    clean_accuracy: Share
    mean: Share
    mean_all: Share
    drop: Share
    relative_drop: float
    worst: str
    seen: Share | None
    unseen: Share | None
    rows: tuple[Row, ...]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON: ``<name>`` and ``<name>_ci95`` of every metric, ``corruptions`` by name; None where a metric is not
        defined. Metrics and accuracies are called by their names: balanced_accuracy and accuracy, or miou and
        pixel_accuracy."""
        names = {"clean_accuracy": f"clean_{BESIDE[self.metric]}"}
        skipped = {"rows"} if self.scenes is not None else {"rows", "scenes"}
        out = _flat({names.get(key, key): value for key, value in vars(self).items() if key not in skipped})
        out["corruptions"] = {row.name: _row(row, self.metric) for row in self.rows}
        worst = next(row for row in self.rows if row.name == self.worst)
        out["worst"] = {"name": worst.name, **_flat({self.metric: worst.mean})}
        return out


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        out[key] = list(value) if isinstance(value, tuple) else value
        if isinstance(value, Share):
            out[key], out[f"{key}_ci95"] = _plain(value)
    return out


def _plain(share: Share) -> tuple[float | None, list[float | None]]:
    value, low, high = (float(x) if np.isfinite(x) else None for x in (share.value, *share.ci95))
    return value, [low, high]


def _row(row: Row, metric: str) -> dict[str, Any]:
    out = {key: value for key, value in asdict(row).items() if key not in ("name", "metric", "accuracy", "mean")}
    for key, shares in ((metric, row.metric), (BESIDE[metric], row.accuracy)):
        values, intervals = zip(*map(_plain, shares), strict=True)
        out[key], out[f"{key}_ci95"] = list(values), list(intervals)
    return {**out, "levels": list(row.levels), **_flat({"mean": row.mean})}


def stress_test(
    predict: Callable[[np.ndarray], np.ndarray],
    images: ImageSet,
    *,
    count: int | None = IMAGES,
    recipe: Recipe | None = None,
    tta: str = "none",
    seed: int = 0,
    resamples: int = 1000,
    seconds: float | None = None,
    label: str | None = None,
    note: Callable[[str, np.ndarray], object] | None = None,
) -> Stress | None:
    """Disturb images in every way, and see what is still recognized.

    Args:
        predict: uint8 [B, H, W, C] -> probabilities [B, K], or of masks [B, K, H, W].
        images: a split with labels or masks.
        count: how many to use, in the classes' proportions, each class at least once; None: all.
        recipe: what the network was trained by, to tell what it was trained against; None: nothing.
        tta: what ``predict`` does, for the record.
        seed: of all draws; an image is disturbed in the same way whatever else is tested.
        resamples: of the bootstrap over images, or of masks over scenes.
        seconds: time it may take; with more to do, fewer images are used.
        label: of the progress shown; None: show none.
        note: called with the corruption's name, `PLAIN` of none, and the targets, when ``predict`` has seen a batch.

    Returns:
        None where ``seconds`` are too short for 64 images, or for all where there are fewer; and where the images have
        no labeled pixel of a class that counts.

    Raises:
        RequestError: there are no images.
    """
    if not len(images) or (count is not None and count < 1):
        raise RequestError("a stress test needs images: at least one")
    began = time.monotonic()
    order = stratified(images.strata, len(images) if count is None else count, seed)
    tested = applicable(images.shape[2])
    passes = [predict_corrupted(predict, images, order, PLAIN, 0, seed, note)]
    if seconds is not None:
        estimate = (time.monotonic() - began) * (1 + len(tested) * len(SEVERITIES))
        if estimate > seconds:
            fit = int(len(order) * seconds / estimate)
            if fit < min(FEWEST, len(order)):
                return None
            order, passes = order[:fit], [passes[0][:fit]]
    if images.segments and np.isnan(counted_mean_iou(passes[0].sum(0), background_of(images.classes))):
        return None
    with progress(label or "", len(tested) * len(SEVERITIES) * len(order)) as bar:
        for corruption in tested:
            for severity in SEVERITIES:
                passes.append(predict_corrupted(predict, images, order, corruption.name, severity, seed, note))
                if label:
                    bar.advance(len(order), corruption.name)
    took = time.monotonic() - began
    judge = judge_masks if images.segments else judge_labels
    metrics = judge(np.stack(passes), images.subset(order), resamples)
    return _summary(metrics, tested, recipe, len(images), images.shape[2], tta, seed, took)


def predict_corrupted(
    predict: Callable[[np.ndarray], np.ndarray],
    images: ImageSet,
    indices: np.ndarray,
    name: str,
    severity: int,
    seed: int,
    note: Callable[[str, np.ndarray], object] | None = None,
) -> np.ndarray:
    """Which of the images at ``indices`` are recognized when disturbed, bool [n]; of masks, the pixels of each class
    in each image, as `class_counts` counts them, int64 [n, K, 3]."""
    height, width, _ = images.shape
    size = max(1, min(BATCH, PIXELS // (height * width))) if images.segments else BATCH
    found = []
    for start in range(0, len(indices), size):
        some = indices[start : start + size]
        at, targets = torch.from_numpy(some), images.targets[some]
        disturbed = corrupt(torch.from_numpy(images.take(some)), name, severity, at, seed)
        predicted = predict(disturbed.numpy()).argmax(1)
        if note is not None:
            note(name, targets)
        if images.segments:
            masks = corrupt_masks(torch.from_numpy(targets), name, severity, at, seed)
            confusion = confusion_each(torch.from_numpy(predicted), masks, len(images.classes))
            found.append(class_counts(confusion.numpy()))
        else:
            found.append(predicted == targets)
    return np.concatenate(found)


def stratified(targets: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Indices of ``count`` images in the classes' proportions, int64; every class comes first once, and any beginning
    of the result is such a selection too."""
    shuffled = np.random.default_rng(seed).permutation(len(targets))
    share = np.empty(len(targets))
    for label in np.unique(targets):
        members = np.flatnonzero(targets[shuffled] == label)
        share[members] = (np.arange(len(members)) + 0.5) / len(members)
        share[members[0]] = 0
    return shuffled[np.argsort(share, kind="stable")][:count]


def applicable(channels: int) -> list[Corruption]:
    """The corruptions that change images of so many channels."""
    return [corruption for corruption in CORRUPTIONS.values() if channels == 3 or corruption.gray]


def trained_against(recipe: Recipe | None, channels: int = 3) -> tuple[set[str], set[str]]:
    """Names of the corruptions that a recipe trains against, and of those that it holds out in so many words."""
    seen: set[str] = set()
    held_out: set[str] = set()
    for part in recipe.augment if recipe is not None else ():
        seen.update(TAUGHT_BY.get(part.name, ()))
        if part.name == "corruption-mix":
            mix = AUGMENTATIONS.build(part)
            assert isinstance(mix, CorruptionMix)
            seen.update(corruption.name for corruption in mix.pool(channels))
            held_out.update(mix.held_out)
    return seen, held_out - seen


def disturbed_images(images: ImageSet, index: int, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """One image under all corruptions at severities 0, 1, 3 and 5, uint8 [P, 4, H, W, C], and the P names."""
    image, at = torch.from_numpy(images.take([index])), torch.tensor([index])
    names = [corruption.name for corruption in applicable(images.shape[2])]
    rows = [[corrupt(image, name, severity, at, seed)[0].numpy() for severity in (0, *SHOWN)] for name in names]
    return np.array(rows), names


def _summary(
    metrics: PassMetrics,
    tested: list[Corruption],
    recipe: Recipe | None,
    of: int,
    channels: int,
    tta: str,
    seed: int,
    seconds: float,
) -> Stress:
    seen, held_out = trained_against(recipe, channels)
    passes = {c.name: [1 + len(SEVERITIES) * k + s for s in range(len(SEVERITIES))] for k, c in enumerate(tested)}

    def over(names: list[str]) -> Share | None:
        return metrics.mean([row for name in names for row in passes[name]]) if names else None

    named = [row for c in tested if c.medmnist_c for row in passes[c.name]]
    rows = tuple(
        Row(
            c.name,
            c.kind,
            c.unit,
            c.levels,
            c.medmnist_c,
            c.name in seen,
            c.name in held_out,
            tuple(metrics.mean([row]) for row in passes[c.name]),
            tuple(metrics.accuracy[row] for row in passes[c.name]),
            metrics.mean(passes[c.name]),
        )
        for c in tested
    )
    clean, drop = metrics.mean([0]), metrics.mean(named, less=0)
    return Stress(
        metric=metrics.name,
        n=metrics.n,
        of=of,
        scenes=metrics.scenes,
        tta=tta,
        seed=seed,
        severities=SEVERITIES,
        clean=clean,
        clean_accuracy=metrics.accuracy[0],
        mean=metrics.mean(named),
        mean_all=metrics.mean(range(1, len(metrics.values))),
        drop=drop,
        relative_drop=drop.value / max(clean.value, 1e-12),
        worst=min(rows, key=lambda row: np.nan_to_num(row.mean.value, nan=np.inf)).name,
        seen=over([row.name for row in rows if row.seen]),
        unseen=over([row.name for row in rows if not row.seen]),
        rows=rows,
        seconds=round(seconds, 2),
    )
