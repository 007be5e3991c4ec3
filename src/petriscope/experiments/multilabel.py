"""Evaluation of models for any number of labels per image: metrics, and how often each label is answered."""

from __future__ import annotations

from typing import Any

import numpy as np

from petriscope.core.progress import TimeLeft, unlimited
from petriscope.core.recipe import TTA
from petriscope.core.results import Evaluation
from petriscope.data.batches import Batches
from petriscope.data.imageset import Dataset, ImageSet
from petriscope.experiments import generic
from petriscope.experiments.beside_val import keep_sample
from petriscope.experiments.generic import Seen
from petriscope.experiments.thumbnails import shrink_images
from petriscope.inference.base import Prediction
from petriscope.inference.predictor import Predictor
from petriscope.metrics.classification import calibration_error
from petriscope.metrics.intervals import group_index
from petriscope.run.folder import Run
from petriscope.tasks.multilabel import HALF, LabelOutputs
from petriscope.trust.label_rules import doubts
from petriscope.trust.multilabel import label_answers
from petriscope.trust.state import MAX_ERRORS, ood_summary

ENSEMBLES = ("soft", "weighted", "soup", "greedy-soup")
MISTAKES_SHOWN = 24


def evaluate(
    predictor: Predictor,
    images: ImageSet,
    split: str,
    tta: TTA,
    source: str,
    quiet: bool,
    known: Prediction | None = None,
) -> tuple[Evaluation, LabelOutputs]:
    """The metrics of a split, and the outputs that they were computed from; see `petriscope.experiments.generic.evaluate`."""
    if known is None:
        batches = Batches(images, predictor.device, predictor.recipe.data.memory)
        known = predictor.predict_set(batches, tta, None if quiet else f"evaluating {split}")
    reference, count = predictor.trust.labels.get(tta), len(predictor.classes)
    cutoffs, facts = np.full(count, HALF, dtype=np.float32), dict[str, np.ndarray]()
    if reference is not None:
        cutoffs = reference.cutoffs
        before = [calibration_error(known.raw[:, k], images.targets[:, k] == 1) for k in range(count)]
        facts = {"slope": reference.slopes, "offset": reference.offsets, "ece_before": np.array(before)}
    outputs = LabelOutputs(known.probabilities, cutoffs, facts)
    found: dict[str, Any] = predictor.task.judge(outputs, images, predictor.recipe.evaluation.bootstrap)
    if reference is not None:
        index = group_index(images.groups)
        found["answers"] = [
            row
            for wanted in MAX_ERRORS
            for row in label_answers(
                reference, wanted, known.probabilities, images.targets, known.ood, predictor.classes, index
            )
        ]
    if known.ood is not None:
        found["ood"] = ood_summary(known.ood)
    about = {"task": predictor.task.name, "split": split, "tta": tta, "source": source}
    return Evaluation.model_validate({**about, **found}), outputs


def record(
    run: Run,
    predictor: Predictor,
    dataset: Dataset,
    split: str,
    evaluation: Evaluation,
    outputs: LabelOutputs,
    quiet: bool,
    left: TimeLeft = unlimited,
) -> Evaluation:
    """Save an evaluated split of the run's own data in the run: metrics, predictions, and the surest mistakes.

    The gallery gets ``mistakes_<split>``, uint8 [M, H, W, C], the images of which a label was said wrongly with the least doubt,
    and their ids. Of val it gets a sample, see `petriscope.experiments.beside_val`.
    """
    images = dataset.split(split)
    if split == "val":
        keep_sample(run, images)
    generic.record(run, predictor, dataset, split, evaluation, outputs, quiet)
    keep_mistakes(run, images, split, outputs)
    return evaluation


def keep_mistakes(run: Run, images: ImageSet, split: str, outputs: LabelOutputs) -> None:
    """Keep the surest mistakes of a split in the gallery."""
    wrong = outputs.decided != (images.targets == 1)
    doubt = np.where(wrong, doubts(outputs.probabilities, outputs.cutoffs), np.inf).min(1)
    rows = np.argsort(doubt, kind="stable")[: min(MISTAKES_SHOWN, int(wrong.any(1).sum()))]
    shown = {
        f"mistakes_{split}": shrink_images(images.take(rows), images.channels),
        f"mistakes_{split}_ids": images.ids[rows].astype(np.str_),
    }
    run.write_gallery(f"{split}-mistakes", **shown)


def see(predictor: Predictor, val: ImageSet, tta: TTA, label: str | None) -> Seen:
    """The predictions of a network on val, without scaling; each label of each image is a question of its own."""
    p = predictor.look(Batches(val, predictor.device, predictor.recipe.data.memory), tta, label)
    outputs = LabelOutputs(p, np.full(p.shape[1], HALF, dtype=np.float32))
    of_truth = np.where(val.targets == 1, p, 1 - p).astype(np.float64).ravel()
    return Seen(outputs, of_truth, predictor.task.score(outputs, val))
