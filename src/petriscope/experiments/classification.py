"""Evaluation of classification models: metrics, trust, and an analysis of the mistakes."""

from __future__ import annotations

from typing import Any

import numpy as np

from petriscope.core import drawing
from petriscope.core.progress import TimeLeft, unlimited
from petriscope.core.recipe import TTA
from petriscope.core.results import ErrorAnalysis, Evaluation, Explanations
from petriscope.data.batches import Batches
from petriscope.data.imageset import Dataset, ImageSet
from petriscope.experiments import generic
from petriscope.experiments.beside_val import keep_sample
from petriscope.experiments.error_groups import accuracy_by_group, confused_pairs
from petriscope.experiments.generic import Seen
from petriscope.experiments.thumbnails import shrink_images
from petriscope.explain.classification import BUDGET, explain_split
from petriscope.inference.base import Prediction
from petriscope.inference.neighbors import nearest
from petriscope.inference.predictor import Predictor
from petriscope.models.cost import multiply_adds
from petriscope.run.folder import Run
from petriscope.trust.state import trust_metrics

MISTAKES_SHOWN = 24
NEIGHBORS_OF = 12  # the most confident mistakes
NEIGHBORS = 5
ENSEMBLES = ("soft", "weighted", "stacking", "soup", "greedy-soup")


def evaluate(
    predictor: Predictor,
    images: ImageSet,
    split: str,
    tta: TTA,
    source: str,
    quiet: bool,
    known: Prediction | None = None,
) -> tuple[Evaluation, np.ndarray]:
    """The metrics of a split, and the probabilities, float32 [N, K]; see `petriscope.experiments.generic.evaluate`."""
    if known is None:
        batches = Batches(images, predictor.device, predictor.recipe.data.memory)
        known = predictor.predict_set(batches, tta, None if quiet else f"evaluating {split}")
    metrics = predictor.task.judge(known.probabilities, images, predictor.recipe.evaluation.bootstrap)
    trust = trust_metrics(
        known.raw,
        known.probabilities,
        images.targets,
        known.ood,
        predictor.classes,
        predictor.trust.references.get(tta),
        predictor.temperature(tta),
        images.groups,
    )
    about = {"task": predictor.task.name, "split": split, "tta": tta, "source": source}
    return Evaluation.model_validate({**about, **metrics, **trust.as_json()}), known.probabilities


def record(
    run: Run,
    predictor: Predictor,
    dataset: Dataset,
    split: str,
    evaluation: Evaluation,
    outputs: np.ndarray,
    quiet: bool,
    left: TimeLeft = unlimited,
) -> Evaluation:
    """Save an evaluated split of the run's own data in the run: metrics, predictions, and an analysis of the errors.

    The gallery gets these uint8 arrays: ``mistakes_<split>`` [M, H, W, C], the most confident mistakes;
    ``confused_<split>`` [P, H, W, C], examples of the most confused pairs of classes; ``neighbors_<split>``
    [M, 1 + k, H, W, C], mistakes, each followed by its nearest training images; ``explained_<split>`` [P, H, W, C] and
    ``explained_<split>_maps`` [P, 2, H, W]. Of val it gets a sample, see `petriscope.experiments.beside_val`.
    """
    images = dataset.split(split)
    if split == "val":
        keep_sample(run, images)
    generic.record(run, predictor, dataset, split, evaluation, outputs, quiet)
    predicted, confidence = outputs.argmax(1), outputs.max(1)
    keep_mistakes(run, images, split, outputs)
    train = dataset.train if left() > 0 else None
    errors, arrays = _errors(predictor, images, train, split, predicted, confidence, quiet, left)
    run.write_gallery(f"{split}-errors", **arrays)
    found, facts = explain_split(predictor, images, predicted, confidence, quiet, left)
    if found:
        rows = found["rows"]
        maps = shrink_images(found["maps"].reshape(-1, *images.shape[:2], 1))
        maps = maps.reshape(*found["maps"].shape[:2], *maps.shape[1:3])
        shown = {
            f"explained_{split}": shrink_images(images.take(rows), images.channels),
            f"explained_{split}_maps": maps,
        }
        run.write_gallery(f"{split}-explanations", **shown)
        facts["ids"] = [str(i) for i in images.ids[rows]]
    more = {"errors": ErrorAnalysis.model_validate(errors), "explanations": Explanations.model_validate(facts)}
    evaluation = evaluation.model_copy(update=more)
    run.add_results(**{split: evaluation})
    return evaluation


def keep_mistakes(run: Run, images: ImageSet, split: str, outputs: np.ndarray) -> None:
    """Keep the most confident mistakes of a split in the gallery.

    Args:
        outputs: probabilities, float32 [N, K].
    """
    predicted, confidence = outputs.argmax(1), outputs.max(1)
    wrong = np.flatnonzero(images.targets != predicted)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:MISTAKES_SHOWN]
    seen = drawing.shown(images.take(worst), images.channels)
    mistakes = {f"mistakes_{split}": seen, f"mistakes_{split}_ids": images.ids[worst].astype(np.str_)}
    run.write_gallery(f"{split}-mistakes", **mistakes)


def see(predictor: Predictor, val: ImageSet, tta: TTA, label: str | None) -> Seen:
    """The predictions of a network on val, without temperature scaling."""
    p = predictor.look(Batches(val, predictor.device, predictor.recipe.data.memory), tta, label).astype(np.float64)
    return Seen(p, p[np.arange(len(p)), val.targets], predictor.task.score(p, val))


def _errors(
    predictor: Predictor,
    images: ImageSet,
    train: ImageSet | None,
    split: str,
    predicted: np.ndarray,
    confidence: np.ndarray,
    quiet: bool,
    left: TimeLeft,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    names = images.classes
    pairs = confused_pairs(images.targets, predicted, confidence)
    examples = np.array([row for pair in pairs for row in pair["rows"]], dtype=np.int64)
    arrays = {f"confused_{split}": shrink_images(images.take(examples), images.channels)}
    for pair in pairs:
        pair |= {"true": names[pair["true"]], "predicted": names[pair["predicted"]]}
        pair["ids"] = [str(images.ids[row]) for row in pair.pop("rows")]
    errors: dict[str, Any] = {"pairs": pairs, "groups": accuracy_by_group(images, predicted), "neighbors": None}
    wrong = np.flatnonzero(images.targets != predicted)
    asked = wrong[np.argsort(-confidence[wrong], kind="stable")][:NEIGHBORS_OF]
    if train is None or split == "train" or not len(asked):
        return errors, arrays
    each = multiply_adds(predictor.model, predictor.shape)
    most = int(max(BUDGET, each * len(images)) // each)
    batch = images.take(asked)
    found = nearest(
        predictor.model,
        predictor.normalize,
        predictor.number_format,
        batch,
        train,
        NEIGHBORS,
        most,
        quiet,
        left,
        predictor.ranks,
    )
    if found is None:
        return errors, arrays
    beside = np.stack([train.take(rows) for rows in found.rows])
    shown = np.concatenate([batch[:, None], beside], axis=1)
    small = shrink_images(shown.reshape(-1, *images.shape), images.channels)
    arrays[f"neighbors_{split}"] = small.reshape(*shown.shape[:2], *small.shape[1:])
    errors["neighbors"] = {
        "among": found.among,
        "of": len(train),
        "mistakes": [
            {
                "id": str(images.ids[row]),
                "true": names[images.targets[row]],
                "predicted": names[predicted[row]],
                "confidence": float(confidence[row]),
                "labels": [names[label] for label in train.targets[rows]],
                "ids": [str(i) for i in train.ids[rows]],
                "similarity": [round(float(value), 4) for value in similarity],
            }
            for row, rows, similarity in zip(asked, found.rows, found.similarity, strict=True)
        ],
    }
    return errors, arrays
