"""What is done with a model of masks: a split evaluated, and image files of no data set given masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from petriscope.core.drawing import overlay, palette
from petriscope.core.errors import RequestError
from petriscope.core.files import atomic
from petriscope.core.progress import progress
from petriscope.data.batches import Batches
from petriscope.data.decode import decode_file
from petriscope.data.imageset import ImageSet
from petriscope.inference.predict import decoded
from petriscope.inference.predictor import Predictor
from petriscope.inference.tta import TTA, predict_batches
from petriscope.metrics.segmentation import (
    Tally,
    choose_examples,
    full_mask_metrics,
    mask_table,
    mean_iou,
    tally_masks,
)
from petriscope.run.folder import Run

if TYPE_CHECKING:
    import pandas as pd

EXAMPLES_EACH = 4  # of the best, the median and the worst
CHUNK = 32  # images in memory at a time: each has one probability per class and pixel


def mask_predictions(
    predictor: Predictor, images: ImageSet, tta: TTA, label: str | None, batch_size: int | None = None
) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
    """What `petriscope.inference.tta.predict_batches` gives; ``batch_size`` None: as in the recipe."""
    recipe = predictor.recipe
    return predict_batches(
        predictor.model,
        Batches(images, predictor.device, recipe.data.memory),
        predictor.normalize,
        predictor.number_format,
        tta,
        batch_size or recipe.evaluation.batch_size,
        label,
    )


def evaluate_masks(
    predictor: Predictor, images: ImageSet, split: str, tta: TTA | None, source: str, quiet: bool
) -> tuple[dict[str, Any], Tally]:
    """The metrics of a split whose targets are masks, and what they were counted from."""
    settings = predictor.recipe.evaluation
    tta = tta or settings.tta
    predictions = mask_predictions(predictor, images, tta, None if quiet else f"evaluating {split}")
    tally = tally_masks(predictions, len(images), len(predictor.classes), outlines=True)
    metrics = full_mask_metrics(tally, predictor.classes, images.groups, settings.bootstrap)
    return {"split": split, "tta": tta, "source": source, **metrics}, tally


def keep_masks(
    run: Run, predictor: Predictor, images: ImageSet, split: str, result: dict[str, Any], tally: Tally
) -> None:
    """Put metrics, one row per image, and the best, median and worst images into the run; see
    `petriscope.run.folder.Run.gallery`."""
    chosen, words = choose_examples(tally, EXAMPLES_EACH)
    batch = images.take(chosen)
    probabilities = predictor.probabilities(batch, result["tta"])
    arrays = {
        "images": batch,
        "truth": images.targets[chosen],
        "predicted": probabilities.argmax(1).astype(np.uint8),
        "confidence": np.rint(probabilities.max(1) * 255).astype(np.uint8),
        "ids": images.ids[chosen].astype(np.str_),
        "miou": mean_iou(tally.confusion[chosen]),
        "rank": np.array(words, dtype=np.str_),
    }
    run.add_results(**{split: result})
    run.add_predictions(split, mask_table(images, split, tally))
    run.add_gallery(**{f"segments_{split}_{name}": array for name, array in arrays.items()})


def segment_files(
    predictor: Predictor, paths: Sequence[Path], folder: Path, tta: TTA | None, quiet: bool
) -> pd.DataFrame:
    """Write ``NAME.png`` (an indexed mask: pixel value = class, counted from 0) and ``NAME-overlay.png`` an image.

    Args:
        folder: where they go; made if need be. Files of the same names in it are an error, not overwritten.

    Returns:
        one row per image: image, mask, confidence (mean over pixels), error, and the share of the image that each class
        takes (``share_<class>``). An image that cannot be read has an error and no mask.
    """
    import pandas as pd

    names = _file_names(paths, folder)
    rows: list[dict[str, Any]] = []
    with progress("segmenting", len(paths)) as bar:
        for block, images in decoded(predictor, paths, CHUNK):
            good = [image for image in images if isinstance(image, np.ndarray)]
            found = iter(predictor.probabilities(np.stack(good), tta) if good else ())
            for path, image in zip(block, images, strict=True):
                row: dict[str, Any] = {"image": str(path), "mask": None, "confidence": None, "error": None}
                if isinstance(image, str):
                    row["error"] = image
                else:
                    p = next(found)
                    mask = p.argmax(0).astype(np.uint8)
                    row |= {"mask": str(names[path]), "confidence": float(p.max(0).mean())}
                    shares = np.bincount(mask.reshape(-1), minlength=len(predictor.classes)) / mask.size
                    row |= {f"share_{name}": float(s) for name, s in zip(predictor.classes, shares, strict=True)}
                    _write(path, names[path], mask, predictor)
                rows.append(row)
            if not quiet:
                bar.advance(len(block))
    columns = ["image", "mask", "confidence", "error", *(f"share_{name}" for name in predictor.classes)]
    return pd.DataFrame(rows, columns=columns)


def _file_names(paths: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """Where each image's mask goes; images of one name in several folders are numbered."""
    taken: set[str] = set()
    out = {}
    for path in paths:
        stem, number = path.stem, 2
        while stem in taken or f"{stem}-overlay" in taken:
            stem, number = f"{path.stem}-{number}", number + 1
        taken |= {stem, f"{stem}-overlay"}
        for file in (folder / f"{stem}.png", folder / f"{stem}-overlay.png"):
            if file.exists():
                raise RequestError(f"{file} exists; choose another --out, so that nothing is overwritten")
        out[path] = folder / f"{stem}.png"
    return out


def _write(path: Path, file: Path, mask: np.ndarray, predictor: Predictor) -> None:
    pixels = decode_file(path, None, predictor.recipe.data.filter, "rgb", predictor.recipe.data.bits)
    height, width = pixels.shape[:2]
    indexed = Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)
    full = np.asarray(indexed)
    indexed.putpalette(palette(len(predictor.classes)).tobytes())
    for name, image in (
        (file, indexed),
        (file.with_stem(f"{file.stem}-overlay"), _laid_over(pixels, full, predictor)),
    ):
        with atomic(name) as temporary:
            image.save(temporary, format="PNG")


def _laid_over(image: np.ndarray, mask: np.ndarray, predictor: Predictor) -> Image.Image:
    return Image.fromarray(overlay(image, mask, len(predictor.classes)))
