"""Evaluation of segmentation models: example masks and explanations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from petriscope.core import drawing
from petriscope.core.device import widest
from petriscope.core.masks import IGNORE
from petriscope.core.progress import TimeLeft, unlimited
from petriscope.core.recipe import TTA
from petriscope.core.results import Evaluation, Explanations
from petriscope.data.decode import resize
from petriscope.data.imageset import Dataset, ImageSet
from petriscope.data.tile_sets import batches_of, one_tile_each
from petriscope.data.tiles import padded
from petriscope.experiments import generic
from petriscope.experiments.generic import Seen
from petriscope.experiments.generic import evaluate as evaluate
from petriscope.experiments.thumbnails import shrink_images, shrink_masks
from petriscope.explain.segmentation import explain_split
from petriscope.inference.predictor import Predictor
from petriscope.metrics.segmentation import Tally, choose_examples, mean_iou, tally_masks
from petriscope.run.folder import Run

EXAMPLES_EACH = 4  # of the best, median and worst images
EXAMPLE_SIDE = 256  # pixels of the longer side of an example whose image has its own size
ENSEMBLES = ("soft", "weighted", "soup", "greedy-soup", "specialist")
PIXELS = 200_000  # approximate number of labeled val pixels that votes are weighted by


def record(
    run: Run,
    predictor: Predictor,
    dataset: Dataset,
    split: str,
    evaluation: Evaluation,
    outputs: Tally,
    quiet: bool,
    left: TimeLeft = unlimited,
) -> Evaluation:
    """Save an evaluated split of the run's own data in the run: metrics, one row per image, the best, median and worst
    images, and explanations.

    The gallery gets ``segments_<split>_...``, see `petriscope.run.folder.Run.gallery`; ``explained_<split>`` uint8
    [P, H, W, C]; and ``explained_<split>_maps`` and ``explained_<split>_masks`` (the predicted masks), uint8 [P, H, W].
    """
    images = dataset.split(split)
    generic.record(run, predictor, dataset, split, evaluation, outputs, quiet)
    chosen, words = choose_examples(outputs, EXAMPLES_EACH)
    examples = {
        **_examples(predictor, images.subset(chosen), cast(TTA, evaluation.tta)),
        "ids": images.ids[chosen].astype(np.str_),
        "miou": mean_iou(outputs.confusion[chosen]),
        "rank": np.array(words, dtype=np.str_),
    }
    run.write_gallery(f"{split}-examples", **{f"segments_{split}_{name}": array for name, array in examples.items()})
    pixels = outputs.confusion.sum(1)
    if predictor.recipe.data.tiles is not None:  # explained are tiles
        images = one_tile_each(images, predictor.recipe.data)
        tally = tally_masks(mask_predictions(predictor, images, "none", None), len(images), len(images.classes))
        pixels = tally.confusion.sum(1)
    found, facts = explain_split(predictor, images, pixels, quiet, left)
    if found:
        rows = found["rows"]
        arrays = {
            f"explained_{split}": shrink_images(images.take(rows), images.channels),
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


def _examples(predictor: Predictor, images: ImageSet, tta: TTA) -> dict[str, np.ndarray]:
    """Images, their masks and what is predicted, for the gallery. Images in their own sizes are shown whole, made smaller."""
    if predictor.recipe.data.tiles is None:
        probabilities = predictor.probabilities(images.images, tta)
        predicted, confidence = probabilities.argmax(1), probabilities.max(1)
        shown: dict[str, Any] = {"images": drawing.shown(images.images, images.channels), "truth": images.targets}
        return shown | {"predicted": predicted.astype(np.uint8), "confidence": _bytes(confidence)}
    rows: list[dict[str, np.ndarray]] = []
    for (row,), log_p, mask in mask_predictions(predictor, images, tta, None):
        sure, best = log_p[0].max(0)
        masks = {"truth": mask[0].numpy(), "predicted": best.numpy().astype(np.uint8)}
        pixels = drawing.shown(images.window(int(row)), images.channels)
        rows.append({"images": pixels, **masks, "confidence": _bytes(sure.exp().numpy())})
    sizes = [drawing.fit_within(len(row["images"]), row["images"].shape[1], EXAMPLE_SIDE) for row in rows]
    room = max(height for height, _ in sizes), max(width for _, width in sizes)
    out: dict[str, list[np.ndarray]] = {"images": [], "truth": [], "predicted": [], "confidence": []}
    for row, size in zip(rows, sizes, strict=True):
        for name, array in row.items():
            is_mask = name in ("truth", "predicted")
            small = resize(array if array.ndim == 3 else array[..., None], size, "nearest" if is_mask else "box")
            small = padded(small, room, IGNORE if is_mask else 255)
            out[name].append(small if array.ndim == 3 else small[..., 0])
    return {name: np.stack(arrays) for name, arrays in out.items()}


def _bytes(shares: np.ndarray) -> np.ndarray:
    return np.rint(shares * 255).astype(np.uint8)


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
        for each of the N masks, int64 [S], indices into the flattened mask of the image's own size.
    """
    share = most / max(int(images.counts.sum()), 1)
    rng = np.random.default_rng(0)
    masks = (mask[:height, :width] for mask, (height, width) in zip(images.targets, images.extents, strict=True))
    labeled = (np.flatnonzero(mask != IGNORE) for mask in masks)
    return [places[rng.random(len(places)) < share] for places in labeled]


def mask_predictions(
    predictor: Predictor, images: ImageSet, tta: TTA, label: str | None, batch_size: int | None = None
) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
    """See `petriscope.inference.predictor.Predictor.outputs`."""
    batches = batches_of(images, predictor.device, predictor.recipe.data)
    return predictor.outputs(batches, tta, label, batch_size)
