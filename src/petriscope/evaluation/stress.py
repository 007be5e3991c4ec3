"""The stress test: how much of its accuracy a network keeps where pictures are blurred, discolored or partly covered.

Every picture is disturbed by every corruption of `petriscope.augment.corruptions` at five severities. The procedure is
that of Hendrycks and Dietterich, 2019, arXiv:1903.12261, with the corruptions that MedMNIST-C names for blood cells (Di
Salvo, Doerrich and Ledig, 2024, arXiv:2406.17536). Both relate errors to those of a reference network; here the measure
is the network itself on the same pictures, undisturbed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from petriscope.augment import AUGMENTATIONS
from petriscope.augment.corruption_mix import CorruptionMix
from petriscope.augment.corruptions import CORRUPTIONS, SEVERITIES, Corruption, corrupt
from petriscope.data.imageset import ImageSet
from petriscope.errors import RequestError
from petriscope.evaluation.intervals import bootstrap_weights, percentile95, wilson
from petriscope.progress import progress
from petriscope.recipe import Recipe

PICTURES = 400  # of a split, unless told otherwise
FEWEST = 64  # below this, intervals are too wide to say anything
BATCH = 200
SHOWN = (1, 3, 5)  # severities of the pictures that the report shows

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
class Share:
    """A figure from 0 to 1 and its 95 % interval."""

    value: float
    ci95: tuple[float, float]


@dataclass(frozen=True)
class Row:
    """What one corruption does.

    Args:
        name, kind, unit, levels: as in `Corruption`; levels of severities 1 to 5.
        medmnist_c: whether MedMNIST-C names it for blood cells.
        seen: whether the recipe trains against it, by itself or by an augmentation that does much the same.
        held_out: whether the recipe leaves it out of its corruptions, in so many words.
        balanced_accuracy, accuracy: a figure a severity.
        mean: balanced accuracy over the severities.
    """

    name: str
    kind: str
    unit: str
    levels: tuple[float, ...]
    medmnist_c: bool
    seen: bool
    held_out: bool
    balanced_accuracy: tuple[Share, ...]
    accuracy: tuple[Share, ...]
    mean: Share


@dataclass(frozen=True)
class Stress:
    """The outcome of a stress test.

    Args:
        n, of: pictures used, and pictures in the split.
        tta: test-time augmentation.
        seed: of the draws.
        clean: balanced accuracy of the same pictures, undisturbed; ``clean_accuracy``: accuracy.
        mean: balanced accuracy, averaged over the corruptions of MedMNIST-C and the severities; ``mean_all``: over all.
        drop: ``clean`` less ``mean``, in shares; ``relative_drop``: that, as a share of ``clean``.
        worst: name of the corruption of the lowest mean.
        seen, unseen: mean balanced accuracy over the corruptions trained against, and over the others; None where
            there are none.
        rows: a corruption each.
        seconds: that it took.
    """

    n: int
    of: int
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
        """Plain JSON: ``<name>`` and ``<name>_ci95`` of every figure, ``corruptions`` by name."""
        out = _flat({key: value for key, value in vars(self).items() if key != "rows"})
        out["corruptions"] = {row.name: _row(row) for row in self.rows}
        worst = next(row for row in self.rows if row.name == self.worst)
        out["worst"] = {"name": worst.name, **_flat({"balanced_accuracy": worst.mean})}
        return out


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        out[key] = value.value if isinstance(value, Share) else list(value) if isinstance(value, tuple) else value
        if isinstance(value, Share):
            out[f"{key}_ci95"] = list(value.ci95)
    return out


def _row(row: Row) -> dict[str, Any]:
    out = {
        key: value for key, value in asdict(row).items() if key not in ("name", "balanced_accuracy", "accuracy", "mean")
    }
    for key, shares in (("balanced_accuracy", row.balanced_accuracy), ("accuracy", row.accuracy)):
        out[key] = [share.value for share in shares]
        out[f"{key}_ci95"] = [list(share.ci95) for share in shares]
    return {**out, "levels": list(row.levels), **_flat({"mean": row.mean})}


def stress_test(
    predict: Callable[[np.ndarray], np.ndarray],
    images: ImageSet,
    *,
    pictures: int | None = PICTURES,
    recipe: Recipe | None = None,
    tta: str = "none",
    seed: int = 0,
    resamples: int = 1000,
    seconds: float | None = None,
    label: str | None = None,
) -> Stress | None:
    """Disturb pictures in every way, and see what is still recognized.

    Args:
        predict: uint8 [B, H, W, C] -> probabilities [B, K].
        images: a split with labels.
        pictures: how many to use, in the classes' proportions, each class at least once; None: all.
        recipe: what the network was trained by, to tell what it was trained against; None: nothing.
        tta: what ``predict`` does, for the record.
        seed: of all draws; a picture is disturbed in the same way whatever else is tested.
        resamples: of the bootstrap over pictures.
        seconds: time it may take; with more to do, fewer pictures are used.
        label: of the progress shown; None: show none.

    Returns:
        None where ``seconds`` are too short for 64 pictures, or for all where there are fewer.

    Raises:
        RequestError: there are no pictures.
    """
    if not len(images) or (pictures is not None and pictures < 1):
        raise RequestError("a stress test needs pictures: at least one")
    began = time.monotonic()
    order = stratified(images.targets, len(images) if pictures is None else pictures, seed)
    tested = applicable(images.shape[2])
    hits = [predict_corrupted(predict, images, order, "identity", 0, seed)]
    if seconds is not None:
        estimate = (time.monotonic() - began) * (1 + len(tested) * len(SEVERITIES))
        if estimate > seconds:
            fit = int(len(order) * seconds / estimate)
            if fit < min(FEWEST, len(order)):
                return None
            order, hits = order[:fit], [hits[0][:fit]]
    with progress(label or "", len(tested) * len(SEVERITIES) * len(order)) as bar:
        for corruption in tested:
            for severity in SEVERITIES:
                hits.append(predict_corrupted(predict, images, order, corruption.name, severity, seed))
                if label:
                    bar.advance(len(order), corruption.name)
    took = time.monotonic() - began
    figures = _Figures(np.stack(hits), images.targets[order], resamples)
    return _summary(figures, tested, recipe, len(images), images.shape[2], tta, seed, took)


def predict_corrupted(
    predict: Callable[[np.ndarray], np.ndarray],
    images: ImageSet,
    indices: np.ndarray,
    name: str,
    severity: int,
    seed: int,
) -> np.ndarray:
    """Which of the pictures at ``indices`` are recognized when disturbed, bool [n]."""
    hits = []
    for start in range(0, len(indices), BATCH):
        some = indices[start : start + BATCH]
        disturbed = corrupt(torch.from_numpy(images.take(some)), name, severity, torch.from_numpy(some), seed)
        hits.append(predict(disturbed.numpy()).argmax(1) == images.targets[some])
    return np.concatenate(hits)


def stratified(targets: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Indices of ``count`` pictures in the classes' proportions, int64; every class comes first once, and any beginning
    of the result is such a selection too."""
    shuffled = np.random.default_rng(seed).permutation(len(targets))
    share = np.empty(len(targets))
    for label in np.unique(targets):
        members = np.flatnonzero(targets[shuffled] == label)
        share[members] = (np.arange(len(members)) + 0.5) / len(members)
        share[members[0]] = 0
    return shuffled[np.argsort(share, kind="stable")][:count]


def applicable(channels: int) -> list[Corruption]:
    """The corruptions that change pictures of so many channels."""
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


def disturbed_pictures(images: ImageSet, index: int, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """One picture under all corruptions at severities 0, 1, 3 and 5, uint8 [P, 4, H, W, C], and the P names."""
    picture, at = torch.from_numpy(images.take([index])), torch.tensor([index])
    names = [corruption.name for corruption in applicable(images.shape[2])]
    rows = [[corrupt(picture, name, severity, at, seed)[0].numpy() for severity in (0, *SHOWN)] for name in names]
    return np.array(rows), names


class _Figures:
    """Shares of hits, with their intervals over one bootstrap of the pictures for all.

    Args:
        hits: bool [P, N], a row a pass; the first is of plain pictures.
        targets: int64 [N].
    """

    def __init__(self, hits: np.ndarray, targets: np.ndarray, resamples: int) -> None:
        self.hits, self.n = hits, len(targets)
        members = np.eye(int(targets.max()) + 1)[targets].T
        self._members = members[members.sum(1) > 0]
        self.balanced = self._balanced(np.ones((1, self.n)))[0]
        self._drawn = np.concatenate([self._balanced(weights) for weights in bootstrap_weights(self.n, resamples)])

    def _balanced(self, weights: np.ndarray) -> np.ndarray:
        """Balanced accuracy of every pass under weights of the pictures [R, N]: [R, P]."""
        total = np.zeros((len(weights), len(self.hits)))
        there = np.zeros((len(weights), 1))
        for member in self._members:
            weight = weights * member
            count = weight.sum(1, keepdims=True)
            total = total + np.where(count > 0, weight @ self.hits.T / np.maximum(count, 1e-12), 0)
            there = there + (count > 0)
        return total / there

    def mean(self, passes: Sequence[int], less: int | None = None) -> Share:
        """Mean balanced accuracy over ``passes``; with ``less``, what it lies below that of this pass."""
        rows = list(passes)
        value, drawn = self.balanced[rows].mean(), self._drawn[:, rows].mean(1)
        if less is not None:
            value, drawn = self.balanced[less] - value, self._drawn[:, less] - drawn
        return Share(float(value), percentile95(drawn))

    def accuracy(self, row: int) -> Share:
        return Share(float(self.hits[row].mean()), wilson(float(self.hits[row].sum()), self.n))


def _summary(
    figures: _Figures,
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
        return figures.mean([row for name in names for row in passes[name]]) if names else None

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
            tuple(figures.mean([row]) for row in passes[c.name]),
            tuple(figures.accuracy(row) for row in passes[c.name]),
            figures.mean(passes[c.name]),
        )
        for c in tested
    )
    clean, drop = figures.mean([0]), figures.mean(named, less=0)
    return Stress(
        n=figures.n,
        of=of,
        tta=tta,
        seed=seed,
        severities=SEVERITIES,
        clean=clean,
        clean_accuracy=figures.accuracy(0),
        mean=figures.mean(named),
        mean_all=figures.mean(range(1, len(figures.hits))),
        drop=drop,
        relative_drop=drop.value / max(clean.value, 1e-12),
        worst=min(rows, key=lambda row: row.mean.value).name,
        seen=over([row.name for row in rows if row.seen]),
        unseen=over([row.name for row in rows if not row.seen]),
        rows=rows,
        seconds=round(seconds, 2),
    )
