"""Images without labels from another place, read as a model reads images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from petriscope.core.csv_tables import csv_text
from petriscope.core.errors import DataError
from petriscope.core.files import user_path, write_text
from petriscope.core.names import label_text
from petriscope.core.progress import progress, say
from petriscope.core.results import Scaling
from petriscope.core.scale import Scale
from petriscope.data import ImageSet, sources
from petriscope.data.batches import Batches
from petriscope.data.in_memory import AnyFile
from petriscope.data.sources import NAMED
from petriscope.experiments.own_data import section_elsewhere
from petriscope.inference.decoding import decoded, find_images
from petriscope.inference.labeling import most_useful
from petriscope.inference.multilabel import plan_labels
from petriscope.inference.predictor import Predictor
from petriscope.inference.sampling import sample_rows
from petriscope.inference.scaling import choose_scale, scale_set, sizes_in
from petriscope.inference.table import readable_row

MOST = 4000  # images that are looked at
MOST_BYTES = 2**29  # that they take
CHUNK = 256


@dataclass(frozen=True)
class Unlabeled:
    """Images without labels.

    Args:
        images: at most `MOST`. Their targets are 0 and mean nothing; their ids are paths of files, or what the source calls them.
        of: how many the source has.
        source: what they were read from.
        scaling: how they were scaled; None: not at all.
    """

    images: ImageSet
    of: int
    source: str
    scaling: Scaling | None


def load_unlabeled(
    predictor: Predictor,
    source: str,
    known: Iterable[bytes],
    quiet: bool,
    scale: Scale | None = None,
    tell_scale: bool = False,
) -> Unlabeled:
    """Images of a source without their labels, in the shape of a model. Of many, some are drawn at random, always the same.

    Args:
        source: a folder of images, in whatever subfolders, or any source; labels that it has are not used.
        known: digests of images to leave out. So are copies, files that cannot be read, and images that the model has seen.
        scale: of these images, as `petriscope.core.scale.asked_scale` has it; None: as the model reads images.
        tell_scale: say how they are scaled.

    Raises:
        RequestError: there is no such source.
        DataError: no image is left.
    """
    most = max(1, min(MOST, MOST_BYTES // prod(predictor.shape)))
    notes: list[str] = []
    images, of = read_images(predictor, source, most, notes, quiet)
    seen = set(known)
    if predictor.exposure is not None:
        seen |= predictor.exposure.train | predictor.exposure.val
    rows = []
    for row, digest in enumerate(images.digests()):
        if digest not in seen:
            rows.append(row)
        seen.add(digest)
    if out := len(images) - len(rows):
        notes.append(f"{out:,} {'is' if out == 1 else 'are'} labeled or seen already, or copies, and left out")
    if most < of:
        notes.insert(0, f"{most:,} were drawn at random")
    if not rows:
        raise DataError(f"none of the {of:,} images of {source} is new and readable; " + "; ".join(notes))
    if notes:
        say(f"note: of {of:,} images of {source}, {'; '.join(notes)}")
    images = images.subset(np.array(rows))
    chosen = choose_scale(predictor, scale, lambda: sizes_in(images))
    scaled, scaling = scale_set(predictor.recipe.data, images, chosen, quiet or not tell_scale)
    return Unlabeled(scaled, of, source, scaling)


def read_images(predictor: Predictor, source: str, most: int, notes: list[str], quiet: bool) -> tuple[ImageSet, int]:
    """Images of a source, whatever their labels, in the shape of a model and not scaled, and how many the source has, of which
    at most ``most`` are drawn. Their targets are 0 and mean nothing. What cannot be read is added to ``notes``."""
    path = user_path(source)
    cut_out = predictor.recipe.data.crop is not None
    if source.partition(":")[0] in NAMED or predictor.task.dense or cut_out:
        return _from_arrays(predictor, source, most)
    if path.is_dir() and not sources.is_stored(path):
        return _from_files(predictor, find_images([path], predictor.reading.pages), most, notes, quiet)
    if path.is_file() and (listed := sources.list_paths(path, predictor.recipe.data)) is not None:
        return _from_files(predictor, listed, most, notes, quiet)
    return _from_arrays(predictor, source, most)


def _from_arrays(predictor: Predictor, source: str, most: int) -> tuple[ImageSet, int]:
    section = section_elsewhere(predictor.recipe.data, source, predictor.shape)
    section = section.model_copy(update={"audit": None, "classes": None})
    parts = list(sources.read_nonempty(source, section, []).values())
    bounds = np.cumsum([0, *map(len, parts)])
    rows = sample_rows(int(bounds[-1]), most)
    chosen = [
        part.subset(rows[(rows >= start) & (rows < end)] - start)
        for part, start, end in zip(parts, bounds, bounds[1:], strict=False)
    ]
    ids = np.concatenate([part.ids.astype(np.str_) for part in chosen])
    sizes = [np.zeros((len(part), 2), np.int64) if part.sizes is None else part.sizes for part in chosen]
    pixels = np.concatenate([part.images for part in chosen])
    return _without_labels(predictor, pixels, ids, np.concatenate(sizes)), int(bounds[-1])


def _from_files(
    predictor: Predictor, files: Sequence[AnyFile], most: int, notes: list[str], quiet: bool
) -> tuple[ImageSet, int]:
    chosen = [files[row] for row in sample_rows(len(files), most)]
    pixels, ids, failed = [np.empty((0, *predictor.shape), predictor.dtype)], list[str](), list[str]()
    sizes: list[tuple[int, int]] = []
    with progress("reading images", len(chosen)) as bar:
        for block, found in decoded(predictor.at_scale(None), chosen, CHUNK):
            for path, image in zip(block, found, strict=True):
                if isinstance(image, str):
                    failed.append(image)
                else:
                    pixels.append(image.plain[None])
                    sizes.append(image.size)
                    ids.append(str(path))
            if not quiet:
                bar.advance(len(block))
    if failed:
        notes.append(f"{len(failed):,} cannot be read and are left out (the first: {failed[0]})")
    size = np.array(sizes, dtype=np.int64).reshape(-1, 2)
    return _without_labels(predictor, np.concatenate(pixels), np.array(ids, dtype=np.str_), size), len(files)


def _without_labels(predictor: Predictor, pixels: np.ndarray, ids: np.ndarray, sizes: np.ndarray) -> ImageSet:
    targets = np.zeros(len(pixels), dtype=np.int64)
    return ImageSet(pixels, targets, predictor.classes, ids, sizes=sizes, channels=predictor.channels).hashed()


def write_suggestions(path: Path, predictor: Predictor, unlabeled: ImageSet, count: int, seed: int, quiet: bool) -> int:
    """Write a CSV file of the images that it would be most useful to label, the most useful first: image, rank, predicted,
    confidence; of several labels that of the label that is least certain.

    Returns:
        how many there are.
    """
    import pandas as pd

    seen: list[np.ndarray] = []
    batches = Batches(unlabeled, predictor.device, predictor.recipe.data.memory)
    tell = None if quiet else "choosing images to label"
    raw = predictor.look(batches, "none", tell, lambda features, _: seen.append(features))
    p = predictor.judge(raw, "none", None).probabilities
    present, confidence = np.arange(p.shape[1]) == p.argmax(1)[:, None], p.max(1)
    if not predictor.task.exclusive:
        present = p >= plan_labels(predictor, "none", None).cutoffs
        confidence = np.where(present, p, 1 - p).min(1)
    rows = most_useful(p, np.concatenate(seen), count, seed, present)
    table = [
        readable_row(
            {
                "image": str(unlabeled.ids[row]),
                "rank": rank,
                "predicted": label_text([predictor.classes[k] for k in np.flatnonzero(present[row])]),
                "confidence": round(float(confidence[row]), 6),
            }
        )
        for rank, row in enumerate(rows.tolist(), start=1)
    ]
    write_text(path, csv_text(pd.DataFrame(table, columns=["image", "rank", "predicted", "confidence"])))
    return len(rows)
