"""Images of val that pages show beside images that are not like them."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np

from petriscope.core.channels import Names
from petriscope.core.errors import PetriscopeError
from petriscope.core.progress import say
from petriscope.data.imageset import Dataset, ImageSet
from petriscope.experiments.thumbnails import shrink_images
from petriscope.inference.likeness import SHOWN, Compared
from petriscope.report.shift import write_page
from petriscope.run.folder import Run, is_run, open_run, read_gallery

MOST = 48  # images of val that are kept
SAMPLE = "val-sample"  # the file in the gallery


def keep_sample(run: Run, val: ImageSet) -> None:
    """Keep some images of val for later, when the data may be elsewhere: ``sample_val``, uint8 [P, H, W, C], and their classes,
    ``sample_val_classes``, int64 [P]. They are the first of each class, then the second, and so on, at most `SHOWN` each."""
    place = np.zeros(len(val), np.int64)
    for label in np.unique(val.strata):
        members = np.flatnonzero(val.strata == label)
        place[members] = np.arange(len(members))
    chosen = np.lexsort((val.strata, place))[:MOST]
    chosen = chosen[place[chosen] < SHOWN]
    run.write_gallery(
        SAMPLE, sample_val=shrink_images(val.take(chosen), val.channels), sample_val_classes=val.strata[chosen]
    )


def keep_compared(run: Run, dataset: Dataset, split: str, compared: Compared) -> None:
    """Keep images of a comparison with val: ``shift_<split>``, uint8 [P, H, W, C], and the classes that they are predicted
    as, ``shift_<split>_classes``, int64 [P]. A run of an older version gets its sample of val too."""
    if dataset.val is not None and not (run.folder / "gallery" / f"{SAMPLE}.npz").is_file():
        keep_sample(run, dataset.val)
    shown = {
        f"shift_{split}": shrink_images(compared.shown, dataset.channels),
        f"shift_{split}_classes": compared.classes,
    }
    run.write_gallery(f"{split}-shift", **shown)


def write_compared(
    path: Path,
    compared: Compared,
    classes: tuple[str, ...],
    model: str,
    source: str,
    into: Run | None = None,
    channels: Names = (),
) -> None:
    """Write a page of images from elsewhere beside those of val, and say where it is. That it cannot be written is said too, and
    no reason to lose the metrics or predictions that it is about.

    Args:
        model: a run folder, whose sample of val is shown, or a model file, which has none.
        source: of the images, as people name it.
        into: the run in whose folder the page is; it is claimed.
        channels: names; empty: gray or RGB.
    """
    gallery: dict[str, np.ndarray] = {}
    shown, adapts = shrink_images(compared.shown, channels), True
    try:
        with nullcontext() if into is None else into.claimed():
            if is_run(model):
                run = open_run(model)
                adapts = not run.results.joined
                if (sample := run.folder / "gallery" / f"{SAMPLE}.npz").is_file():
                    gallery = read_gallery(sample)
            write_page(path, compared.test, shown, compared.classes, gallery, classes, model, source, adapts)
    except PetriscopeError as error:
        say(f"warning: {path}, which would show six of these images, was not written: {error}")
        return
    say(f"six of these images{' beside six of val' if gallery else ''}, and what differs: {path}")
