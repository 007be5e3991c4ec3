"""Evaluation of segmentation models: example masks and explanations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import numpy as np
import torch
from torch import Tensor

from petriscope.core.device import widest
from petriscope.core.masks import IGNORE
from petriscope.core.recipe import TTA
from petriscope.core.results import Evaluation, Explanations
from petriscope.data.batches import Batches
from petriscope.data.imageset import Dataset, ImageSet
from petriscope.experiments import generic
from petriscope.experiments.generic import Seen
from petriscope.experiments.generic import evaluate as evaluate
from petriscope.experiments.thumbnails import shrink_images, shrink_masks
from petriscope.explain.segmentation import explain_split
from petriscope.inference.predictor import Predictor
from petriscope.metrics.segmentation import Tally, choose_examples, mean_iou, tally_masks
from petriscope.run.folder import Run

EXAMPLES_EACH = 4  # of the best, median and worst images
ENSEMBLES = ("soft", "weighted", "soup", "greedy-soup", "specialist")
PIXELS = 200_000  # approximate number of labeled val pixels that votes are weighted by


def record(
    run: Run, predictor: Predictor, dataset: Dataset, split: str, evaluation: Evaluation, outputs: Tally, quiet: bool
) -> Evaluation:
    """Save an evaluated split of the run's own data in the run: metrics, one row per image, the best, median and worst
    images, and explanations.

    The gallery gets ``segments_<split>_...``, see `petriscope.run.folder.Run.gallery`; ``explained_<split>`` uint8
    [P, H, W, C]; and ``explained_<split>_maps`` and ``explained_<split>_masks`` (the predicted masks), uint8 [P, H, W].
    """
    images = dataset.split(split)
    generic.record(run, predictor, dataset, split, evaluation, outputs, quiet)
    chosen, words = choose_examples(outputs, EXAMPLES_EACH)
    shown = images.take(chosen)
    probabilities = predictor.probabilities(shown, cast(TTA, evaluation.tta))
    examples = {
        "images": shown,
        "truth": images.targets[chosen],
        "predicted": probabilities.argmax(1).astype(np.uint8),
        "confidence": np.rint(probabilities.max(1) * 255).astype(np.uint8),
        "ids": images.ids[chosen].astype(np.str_),
        "miou": mean_iou(outputs.confusion[chosen]),
        "rank": np.array(words, dtype=np.str_),
    }
    run.write_gallery(f"{split}-examples", **{f"segments_{split}_{name}": array for name, array in examples.items()})
    found, facts = explain_split(predictor, images, outputs.confusion.sum(1), quiet)
    if found:
        rows = found["rows"]
        arrays = {
            f"explained_{split}": shrink_images(images.take(rows)),
            f"explained_{split}_maps": shrink_images(found["maps"][..., None])[..., 0],
            f"explained_{split}_masks": shrink_masks(found["masks"]),
        }
        run.write_gallery(f"{split}-explanations", **arrays)
        facts |= {
            "ids": [str(i) for i in images.ids[rows]],
            "of": [images.classes[label] for label in found["classes"]],
            "share": [round(float(share), 4) for share in found["share"]],
            "confidence": [round(float(sure), 4) for sure in found["confidence"]],
            "classes": list(images.classes),
        }
    evaluation = evaluation.model_copy(update={"explanations": Explanations.model_validate(facts)})
    run.add_results(**{split: evaluation})
    return evaluation


def see(predictor: Predictor, val: ImageSet, tta: TTA, label: str | None) -> Seen:
    """The predictions of a network on val: counts per image, and the probabilities of the true classes at a sample of
    pixels, since all pixels would take too much memory."""
    places, of_truth = sample_pixels(val, PIXELS), list[np.ndarray]()

    def watched() -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
        for indices, log_p, masks in mask_predictions(predictor, val, tta, label):
            truth = torch.where(masks == IGNORE, 0, masks).long()
            p = log_p.gather(1, truth[:, None]).to(widest(log_p.device)).exp().flatten(1).cpu().double().numpy()
            of_truth.extend(row[places[index]] for index, row in zip(indices.tolist(), p, strict=True))
            yield indices, log_p, masks

    tally = tally_masks(watched(), len(val), len(val.classes))
    return Seen(tally, np.concatenate(of_truth), predictor.task.score(tally, val))


def sample_pixels(images: ImageSet, most: int) -> list[np.ndarray]:
    """A fixed random sample of labeled pixels: about ``most`` in total, or all if there are fewer.

    Returns:
        for each of the N masks, int64 [S], indices into the flattened mask.
    """
    share = most / max(int(images.counts.sum()), 1)
    rng = np.random.default_rng(0)
    labeled = (np.flatnonzero(mask != IGNORE) for mask in images.targets)
    return [places[rng.random(len(places)) < share] for places in labeled]


def mask_predictions(
    predictor: Predictor, images: ImageSet, tta: TTA, label: str | None, batch_size: int | None = None
) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
    """See `petriscope.inference.predictor.Predictor.outputs`."""
    batches = Batches(images, predictor.device, predictor.recipe.data.memory)
    return predictor.outputs(batches, tta, label, batch_size)
