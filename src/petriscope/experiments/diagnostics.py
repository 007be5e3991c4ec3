"""A closer look at an evaluated split, kept in the run folder for the report: where the model errs, and where it looks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from petriscope.data.imageset import Dataset, ImageSet
from petriscope.experiments.error_groups import accuracy_by_group, confused_pairs
from petriscope.explain.gallery import BUDGET, explained
from petriscope.explain.mask_gallery import explained_masks
from petriscope.inference.neighbors import nearest
from petriscope.inference.predictor import Predictor
from petriscope.metrics.segmentation import Tally
from petriscope.models.cost import multiply_adds
from petriscope.run.folder import Run

LARGEST = 96  # pixels per side of the images kept
NEIGHBORS_OF = 12  # mistakes, the most confident
NEIGHBORS = 5


def inspect(
    run: Run, predictor: Predictor, dataset: Dataset, split: str, probabilities: np.ndarray, quiet: bool
) -> dict[str, Any]:
    """Give ``errors`` and ``explanations`` of a split, and add them to its results in the run; to the gallery, their images:
    ``confused_<split>`` examples of the pairs of classes most confused, ``neighbors_<split>`` [M, 1 + k, H, W, C] mistakes
    and the training images next to each, ``explained_<split>`` and ``explained_<split>_maps`` [P, 2, H, W], all uint8.

    Returns:
        errors: pairs (true, predicted, count, n, ids), groups (see
        `petriscope.experiments.error_groups.accuracy_by_group`), neighbors: among, of, mistakes; None where there are none.
        explanations: see `petriscope.explain.gallery.explained`; and ids.
    """
    images = dataset.split(split)
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    errors, arrays = _errors(predictor, images, dataset.train, split, predicted, confidence, quiet)
    found, facts = explained(predictor, images, predicted, confidence, quiet)
    if found:
        rows = found["rows"]
        arrays[f"explained_{split}"] = small(images.take(rows))
        arrays[f"explained_{split}_maps"] = small(found["maps"].transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        facts["ids"] = [str(i) for i in images.ids[rows]]
    run.add_gallery(**arrays)
    found_out = {"errors": errors, "explanations": facts}
    run.add_results(**{split: {**run.results[split], **found_out}})
    return found_out


def inspect_masks(
    run: Run, predictor: Predictor, images: ImageSet, split: str, tally: Tally, quiet: bool
) -> dict[str, Any]:
    """`inspect` where targets are masks: ``explanations`` alone. The gallery gets ``explained_<split>`` uint8 [P, H, W, C],
    ``explained_<split>_maps`` and, as predicted, ``explained_<split>_masks``, uint8 [P, H, W] both.

    Returns:
        explanations: see `petriscope.explain.mask_gallery.explained_masks`; and ids, of (the class that each is for),
        share (of the image), confidence (mean probability over it) and classes, the names that the masks index.
    """
    found, facts = explained_masks(predictor, images, tally.confusion.sum(1), quiet)
    if found:
        arrays = {f"explained_{split}": small(images.take(found["rows"]))}
        arrays[f"explained_{split}_maps"] = small(found["maps"][..., None])[..., 0]
        arrays[f"explained_{split}_masks"] = small_masks(found["masks"])
        run.add_gallery(**arrays)
        facts |= {
            "ids": [str(i) for i in images.ids[found["rows"]]],
            "of": [images.classes[label] for label in found["classes"]],
            "share": [round(float(share), 4) for share in found["share"]],
            "confidence": [round(float(sure), 4) for sure in found["confidence"]],
            "classes": list(images.classes),
        }
    run.add_results(**{split: {**run.results[split], "explanations": facts}})
    return {"explanations": facts}


def _errors(
    predictor: Predictor,
    images: ImageSet,
    train: ImageSet | None,
    split: str,
    predicted: np.ndarray,
    confidence: np.ndarray,
    quiet: bool,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    names = images.classes
    pairs = confused_pairs(images.targets, predicted, confidence)
    examples = np.array([row for pair in pairs for row in pair["rows"]], dtype=np.int64)
    arrays = {f"confused_{split}": small(images.take(examples))}
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
    found = nearest(predictor.model, predictor.normalize, predictor.number_format, batch, train, NEIGHBORS, most, quiet)
    if found is None:
        return errors, arrays
    beside = np.stack([train.take(rows) for rows in found.rows])
    shown = np.concatenate([batch[:, None], beside], axis=1)
    arrays[f"neighbors_{split}"] = small(shown.reshape(-1, *images.shape)).reshape(
        *shown.shape[:2], *_sides(images.shape)
    )
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


def small(images: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, C], sides of 96 pixels at most."""
    height, width = _sides(images.shape[1:])[:2]
    if (height, width) == images.shape[1:3] or not len(images):
        return np.ascontiguousarray(images[:, :height, :width])
    channels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()
    resized = torch.nn.functional.interpolate(channels, (height, width), mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


def small_masks(masks: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W], of the sides that `small` gives: the pixels nearest."""
    height, width = _sides((*masks.shape[1:], 1))[:2]
    rows, columns = (
        (np.arange(new) * 2 + 1) * old // (2 * new) for new, old in zip((height, width), masks.shape[1:], strict=True)
    )
    return masks[:, rows[:, None], columns]


def _sides(shape: tuple[int, ...]) -> tuple[int, int, int]:
    height, width, channels = shape
    factor = min(1.0, LARGEST / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor)), channels
