"""The stress test: the robustness of a network to images that are blurred, discolored or partly covered.

Every image is disturbed by every corruption in `petriscope.augment.corruptions`, at five severities. The metric is balanced
accuracy for classification and mean IoU for segmentation; corruptions that move an image also move its mask. The procedure
is that of Hendrycks and Dietterich, 2019, arXiv:1903.12261, with the corruptions that MedMNIST-C uses for blood cells (Di
Salvo, Doerrich and Ledig, 2024, arXiv:2406.17536). Both papers relate errors to those of a reference network. Here, the
reference is the same network on the undisturbed images. A few passes have two or three corruptions at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from petriscope.augment import AUGMENTATIONS
from petriscope.augment.corruption_mix import CorruptionMix
from petriscope.augment.corruptions import CORRUPTIONS, SEVERITIES, Corruption, corrupt, corrupt_masks
from petriscope.augment.corruptions.together import Together, draw_together
from petriscope.augment.families import Family, family_of
from petriscope.core.channels import RGB, Names, colors_of
from petriscope.core.errors import RequestError
from petriscope.core.progress import progress
from petriscope.core.ranks import ALONE, Ranks
from petriscope.core.recipe import Recipe
from petriscope.core.results import CorruptionResult, Metric, Robustness, WorstCorruption
from petriscope.data.imageset import ImageSet
from petriscope.metrics.passes import PassMetrics, Share
from petriscope.trust.guarantees import Watch

IMAGES = 320  # of a split, by default
FEWEST = 64  # with fewer images, intervals are too wide to be useful
BATCH = 200
SHOWN = (1, 3, 5)  # severities of the images that the report shows
PLAIN = "identity"  # the name of the pass over undisturbed images
TOGETHER = "together"  # the name of the passes with several corruptions at once
AT_ONCE = {2: "two_at_once", 3: "three_at_once"}  # how many, and the metric
PARTS = 2  # passes of each number
PILOT = 8  # images by which it is estimated how long disturbing and predicting takes
TOO_LONG = 1.5  # times the time limit: the test is given up

# The corruptions that each augmentation trains a network against.
_LIGHT = ("brightness-up", "brightness-down", "contrast-up", "contrast-down", "saturation")
_PLACE = ("rotation", "translation")
TAUGHT_BY = {
    "brightness": ("brightness-up", "brightness-down"),
    "contrast": ("contrast-up", "contrast-down"),
    "auto-contrast": ("contrast-up",),
    "equalize": ("contrast-up",),
    "saturation": ("saturation",),
    "hue": ("color-cast",),
    **dict.fromkeys(("stain-jitter", "absorbance-jitter"), ("color-cast", "saturation")),
    "noise": ("gaussian-noise",),
    "blur": ("defocus-blur",),
    "spectrum-jitter": ("defocus-blur",),
    "rotate": ("rotation",),
    "translate": ("translation",),
    **dict.fromkeys(
        ("cutout", "random-erasing", "coarse-dropout", "hide-patches", "grid-mask", "disc-mask"), ("occlusion",)
    ),
    "wide-mix": tuple(name for name, corruption in CORRUPTIONS.items() if not corruption.moves),
    "rand-augment": (*_LIGHT, *_PLACE),
    "trivial-augment": (*_LIGHT, *_PLACE),
    "aug-mix": ("contrast-up", *_PLACE),
}


def stress_test(
    predict: Callable[[np.ndarray], np.ndarray],
    images: ImageSet,
    *,
    split: str = "test",
    count: int | None = IMAGES,
    recipe: Recipe | None = None,
    tta: str = "none",
    seed: int = 0,
    resamples: int = 1000,
    seconds: float | None = None,
    label: str | None = None,
    watch: Watch | None = None,
    ranks: Ranks = ALONE,
) -> Robustness | None:
    """Disturb the images of a split with every corruption, and evaluate the predictions.

    Args:
        predict: uint8 [B, H, W, C] -> probabilities, float [B, K]; for segmentation [B, K, H, W].
        images: a split.
        split: its name, for the results.
        count: number of images to use, in the proportions of the classes and at least one per class; None: all.
        recipe: the recipe of the network, from which corruptions count as seen in training; None: no corruption does.
        tta: the test-time augmentation of ``predict``, for the results.
        seed: of all draws. How an image is disturbed does not depend on the other images.
        resamples: number of bootstrap resamples, over images, or over groups where there are any.
        seconds: time limit; fewer images are used if there is not enough time for ``count``. None: no limit.
        label: of the progress bar; None: no progress is shown.
        watch: records every pass by the name of its corruption (`PLAIN` for undisturbed images, `TOGETHER` for several at once);
            ``predict`` is its own then.
        ranks: the processes that share the images of each pass. All call this, and all get the whole result.

    Returns:
        None if ``seconds`` are too few for 64 images, or for all if there are fewer, as far as can be foreseen, or prove to be
        far too few; or if the metric is undefined, because no pixel has a label that counts.

    Raises:
        RequestError: there are no images, or the task has no stress test.
    """
    if not len(images) or (count is not None and count < 1):
        raise RequestError("a stress test needs at least one image")
    task = images.task
    began = time.monotonic()
    order = stratified(images.strata, len(images) if count is None else count, seed)
    tested = applicable(images.channels)
    count_of_passes = len(tested) * len(SEVERITIES) + len(AT_ONCE) * PARTS
    passes = [predict_corrupted(predict, images, order, PLAIN, 0, seed, watch, ranks)]
    if seconds is not None:
        estimate = (time.monotonic() - began) * (1 + count_of_passes)
        fit = int(len(order) * seconds / estimate)
        if fit >= min(FEWEST, len(order)):
            disturbing = _disturbing(images, order[:PILOT], tested, seed) / ranks.size
            estimate += disturbing * len(order) * len(SEVERITIES)
            fit = int(len(order) * seconds / estimate)
        fit = int(ranks.texts(str(fit))[0])  # clocks differ, so the first process decides
        if fit < len(order):
            if fit < min(FEWEST, len(order)):
                return None
            order, passes = order[:fit], [passes[0][:fit]]
    clean = task.judge_passes(passes[0][None], images.subset(order), 0)
    if np.isnan(clean.values[0]):
        return None
    with progress(label or "", count_of_passes * len(order)) as bar:
        for corruption in tested:
            for severity in SEVERITIES:
                if seconds is not None and ranks.any(time.monotonic() - began > TOO_LONG * seconds):
                    return None
                passes.append(predict_corrupted(predict, images, order, corruption.name, severity, seed, watch, ranks))
                if label:
                    bar.advance(len(order), corruption.name)
        for number in AT_ONCE:
            for part in range(PARTS):
                passes.append(
                    predict_together(
                        predict, images, order, number, tested, seed=seed, part=part, watch=watch, ranks=ranks
                    )
                )
                if label:
                    bar.advance(len(order), AT_ONCE[number].replace("_", " "))
    took = time.monotonic() - began
    metrics = task.judge_passes(np.stack(passes), images.subset(order), resamples)
    return _summary(metrics, tested, recipe, split, len(images), images.channels, tta, seed, took)


def _disturbing(images: ImageSet, some: np.ndarray, tested: Sequence[Corruption], seed: int) -> float:
    """Seconds that all corruptions of an image take at one severity, by some images."""
    batch, at, began = torch.from_numpy(images.take(some)), torch.from_numpy(some), time.monotonic()
    for corruption in tested:
        corrupt(batch, corruption.name, SEVERITIES[len(SEVERITIES) // 2], at, seed, images.channels)
    return (time.monotonic() - began) / len(some)


def predict_corrupted(
    predict: Callable[[np.ndarray], np.ndarray],
    images: ImageSet,
    indices: np.ndarray,
    name: str,
    severity: int,
    seed: int,
    watch: Watch | None = None,
    ranks: Ranks = ALONE,
) -> np.ndarray:
    """Predict the images at ``indices``, disturbed by a corruption.

    Args:
        name, severity: of the corruption; see `petriscope.augment.corruptions.corrupt`.
        watch, ranks: as of `stress_test`.

    Returns:
        what `petriscope.tasks.base.Task.mark` keeps of each image, [N, ...], in the order of ``indices``.
    """

    def disturb(batch: Tensor, masks: Tensor | None, at: Tensor) -> tuple[Tensor, Tensor | None]:
        moved = None if masks is None else corrupt_masks(masks, name, severity, at, seed)
        return corrupt(batch, name, severity, at, seed, images.channels), moved

    return _predict_disturbed(predict, images, indices, disturb, name, watch, ranks)


def predict_together(
    predict: Callable[[np.ndarray], np.ndarray],
    images: ImageSet,
    indices: np.ndarray,
    number: int,
    pool: Sequence[Corruption],
    family: Family | None = None,
    seed: int = 0,
    part: int = 0,
    watch: Watch | None = None,
    ranks: Ranks = ALONE,
) -> np.ndarray:
    """Predict the images at ``indices``, each under ``number`` corruptions at once.

    Args:
        pool, family, seed, part: as of `petriscope.augment.corruptions.together.draw_together`.

    Returns:
        as of `predict_corrupted`.
    """

    def disturb(batch: Tensor, masks: Tensor | None, at: Tensor) -> tuple[Tensor, Tensor | None]:
        drawn: Together = draw_together(at, number, pool, family=family, seed=seed, part=part)
        return drawn.images(batch, images.channels), None if masks is None else drawn.masks(masks)

    return _predict_disturbed(predict, images, indices, disturb, TOGETHER, watch, ranks)


def _predict_disturbed(
    predict: Callable[[np.ndarray], np.ndarray],
    images: ImageSet,
    indices: np.ndarray,
    disturb: Callable[[Tensor, Tensor | None, Tensor], tuple[Tensor, Tensor | None]],
    name: str,
    watch: Watch | None,
    ranks: Ranks,
) -> np.ndarray:
    """``disturb`` takes and gives images, uint8 [B, H, W, C], and masks, uint8 [B, H, W], or None for labels; it also takes
    the places of the images in their set, int64 [B]."""
    task, size = images.task, images.task.batch_size(BATCH, images.shape)

    def work(rows: slice) -> list[np.ndarray]:
        own, found, judged = indices[rows], list[np.ndarray](), list[np.ndarray]()
        for start in range(0, len(own), size):
            some = own[start : start + size]
            targets = images.targets[some]
            masks = torch.from_numpy(targets) if task.dense else None
            disturbed, moved = disturb(torch.from_numpy(images.take(some)), masks, torch.from_numpy(some))
            predicted = task.chosen(predict(disturbed.numpy()))
            if watch is not None:
                judged.append(watch.judge(targets))
            found.append(task.mark(predicted, targets if moved is None else moved.numpy(), len(images.classes)))
        return [np.concatenate(each) for each in (found, judged) if each]

    marks, *rest = ranks.spread_arrays(f"stress test, {name}", len(indices), work)
    if watch is not None:
        watch.keep(name, *rest)
    return marks


def stratified(targets: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Indices of ``count`` images in the proportions of the classes, int64. One image of every class comes first. The first
    m indices are the selection of m images."""
    shuffled = np.random.default_rng(seed).permutation(len(targets))
    share = np.empty(len(targets))
    for label in np.unique(targets):
        members = np.flatnonzero(targets[shuffled] == label)
        share[members] = (np.arange(len(members)) + 0.5) / len(members)
        share[members[0]] = 0
    return shuffled[np.argsort(share, kind="stable")][:count]


def applicable(channels: Names) -> list[Corruption]:
    """The corruptions that change images with channels of these names: those of color only where these have red, green and
    blue."""
    colors = colors_of(channels) is not None
    return [corruption for corruption in CORRUPTIONS.values() if colors or corruption.gray]


def trained_against(recipe: Recipe | None, channels: Names = RGB) -> tuple[set[str], set[str]]:
    """Names of the corruptions that a recipe trains against, and of those that it explicitly holds out."""
    seen: set[str] = set()
    held_out: set[str] = set()
    for part in recipe.augment if recipe is not None else ():
        if part.name in TAUGHT_BY:
            gone = AUGMENTATIONS.check(part).get("left_out", ())
            seen.update(name for name in TAUGHT_BY[part.name] if family_of(name) not in gone)
        if part.name == "corruption-mix":
            mix = AUGMENTATIONS.build(part)
            assert isinstance(mix, CorruptionMix)
            seen.update(corruption.name for corruption in mix.pool(colors_of(channels) is not None))
            held_out.update(mix.held_out, (name for name in CORRUPTIONS if family_of(name) in mix.left_out))
    return seen, held_out - seen


def disturbed_images(images: ImageSet, index: int, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """One image under all corruptions at severities 0, 1, 3 and 5, uint8 [P, 4, H, W, C], and the P names."""
    image, at = torch.from_numpy(images.take([index])), torch.tensor([index])
    names = [corruption.name for corruption in applicable(images.channels)]
    rows = [
        [corrupt(image, name, severity, at, seed, images.channels)[0].numpy() for severity in (0, *SHOWN)]
        for name in names
    ]
    return np.array(rows), names


def _summary(
    metrics: PassMetrics,
    tested: list[Corruption],
    recipe: Recipe | None,
    split: str,
    of: int,
    channels: Names,
    tta: str,
    seed: int,
    seconds: float,
) -> Robustness:
    seen, held_out = trained_against(recipe, channels)
    passes = {c.name: [1 + len(SEVERITIES) * k + s for s in range(len(SEVERITIES))] for k, c in enumerate(tested)}
    alone = 1 + len(SEVERITIES) * len(tested)
    at_once = {key: range(alone + k * PARTS, alone + (k + 1) * PARTS) for k, key in enumerate(AT_ONCE.values())}

    def over(names: list[str]) -> Metric:
        return as_metric(metrics.mean([row for name in names for row in passes[name]])) if names else Metric(value=None)

    def corruption(c: Corruption) -> CorruptionResult:
        rows = passes[c.name]
        accuracy = tuple(as_metric(metrics.accuracy[row]) for row in rows)
        return CorruptionResult(
            kind=c.kind,
            unit=c.unit,
            levels=list(c.levels),
            medmnist_c=c.medmnist_c,
            seen=c.name in seen,
            held_out=c.name in held_out,
            metrics={"mean": as_metric(metrics.mean(rows))},
            series={metrics.name: tuple(as_metric(metrics.mean([r])) for r in rows), metrics.accuracy_name: accuracy},
        )

    named = [row for c in tested if c.medmnist_c for row in passes[c.name]]
    clean, drop = metrics.mean([0]), metrics.mean(named, less=0)
    means = {c.name: metrics.mean(passes[c.name]) for c in tested}
    worst = min(means, key=lambda name: np.nan_to_num(means[name].value, nan=np.inf))
    return Robustness(
        split=split,
        metric_name=metrics.name,
        n=metrics.n,
        of=of,
        tta=tta,
        seed=seed,
        severities=list(SEVERITIES),
        metrics={
            "clean": as_metric(clean),
            f"clean_{metrics.accuracy_name}": as_metric(metrics.accuracy[0]),
            "mean": as_metric(metrics.mean(named)),
            "mean_all": as_metric(metrics.mean(range(1, alone))),
            "drop": as_metric(drop),
            "relative_drop": Metric(value=_number(drop.value / max(clean.value, 1e-12))),
            "seen": over([c.name for c in tested if c.name in seen]),
            "unseen": over([c.name for c in tested if c.name not in seen]),
            TOGETHER: as_metric(metrics.mean(range(alone, len(metrics.values)))),
            **{key: as_metric(metrics.mean(rows)) for key, rows in at_once.items()},
        },
        worst=WorstCorruption(name=worst, metrics={metrics.name: as_metric(means[worst])}),
        corruptions={c.name: corruption(c) for c in tested},
        seconds=round(seconds, 2),
        **{key: value for key in ("groups", "scenes") if (value := getattr(metrics, key)) is not None},
    )


def as_metric(share: Share) -> Metric:
    """A share for a result, with None where it is undefined."""
    low, high = share.ci95
    return Metric(value=_number(share.value), ci95=(_number(low), _number(high)))


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
