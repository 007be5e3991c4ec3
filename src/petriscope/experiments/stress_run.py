"""The stress test of a run: on val when training is done, on any split when asked for."""

from __future__ import annotations

from typing import Any

import numpy as np

from petriscope.data.imageset import ImageSet
from petriscope.inference.predictor import Predictor
from petriscope.inference.tta import TTA
from petriscope.run.folder import Run
from petriscope.trust.guarantees import Watch
from petriscope.trust.robustness import IMAGES, PLAIN, disturbed_images, stratified, stress_test

AUTO = (200, 20.0, 0.1)  # images; and at most so many seconds, or that share of the training's


def stress_after_training(run: Run, predictor: Predictor, val: ImageSet, trained: float, quiet: bool) -> None:
    """What the recipe asks for after ``trained`` seconds of training."""
    rule = predictor.recipe.evaluation.stress
    if rule == "off" or not len(val):
        return
    few, shortest, share = AUTO
    count, seconds = (few, max(shortest, share * trained)) if rule == "auto" else (IMAGES, None)
    stress_split(predictor, val, "val", count, "none", quiet, seconds, into=run)


def stress_split(
    predictor: Predictor,
    images: ImageSet,
    split: str,
    count: int | None,
    tta: TTA,
    quiet: bool,
    seconds: float | None = None,
    into: Run | None = None,
) -> dict[str, Any] | None:
    """Metrics of a split under every corruption; see `petriscope.trust.robustness`. Where val's answers
    with ``tta`` are known, also what its promises come to; see `petriscope.trust.guarantees`.

    Args:
        count: how many of the split; None: all.
        seconds: that it may take; None: as long as it does.
        into: the run that keeps the metrics, and one image under all corruptions.

    Returns:
        None if there was no time for it, or nothing labeled to judge by.
    """
    watch, resamples = watch_promises(predictor, tta), predictor.recipe.evaluation.bootstrap
    tested = stress_test(
        (lambda some: predictor.probabilities(some, tta)) if watch is None else watch.predict,
        images,
        count=count,
        recipe=predictor.recipe,
        tta=tta,
        resamples=resamples,
        seconds=seconds,
        label=None if quiet else f"stress test on {split}",
        note=None if watch is None else watch.note,
    )
    if tested is None:
        return None
    metrics = {"split": split, **tested.as_dict()}
    if watch is not None:
        named = [row.name for row in tested.rows if row.medmnist_c]
        metrics["promises"] = watch.metrics(PLAIN, named, tested.n, resamples)
    if into is not None:
        shown, names = disturbed_images(images, int(stratified(images.strata, 1)[0]))
        into.add_results(stress={**into.results.get("stress", {}), split: metrics})
        into.add_gallery(disturbed=shown, disturbed_names=np.array(names, dtype=np.str_))
    return metrics


def watch_promises(predictor: Predictor, tta: TTA) -> Watch | None:
    """What sees whether val's promises hold; None of masks, and where val made none
    for this test-time augmentation."""
    reference = predictor.trust.references.get(tta)
    if predictor.segments or reference is None:
        return None

    def answer(images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        answers = predictor.answer(images, tta)
        return answers.probabilities, answers.outlier

    return Watch(answer, reference, len(predictor.classes))
