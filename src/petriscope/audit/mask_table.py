"""What is wrong with masks, as the same table that an audit of labels gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from petriscope.audit.findings import Finding, Listing, make_table
from petriscope.audit.masks import MaskFindings, check_masks
from petriscope.core.masks import IGNORE
from petriscope.data.decisions import Verdict
from petriscope.data.imageset import ImageSet
from petriscope.metrics.segmentation import background_of

if TYPE_CHECKING:
    import pandas as pd

MANY = 5  # images with one mask, from which it is no mask of any of them
MASK_KINDS: dict[str, tuple[Verdict, str]] = {  # finding -> what is suggested, and the evidence
    "wrong_mask_values": ("drop", "the mask has values that are no class"),
    "wrong_mask_size": ("drop", "the mask is of another size than the rest"),
    "empty_mask": ("review", "the mask has nothing but background"),
    "single_class_mask": ("review", "one class fills the mask"),
    "shared_mask": ("review", "{count:,} images have this very mask"),
}


def mask_table(
    masks: np.ndarray | Sequence[np.ndarray],
    classes: int,
    ids: Sequence[str],
    splits: Sequence[str],
    *,
    ignore: int | None = None,
    shape: tuple[int, int] | None = None,
) -> pd.DataFrame:
    """One row per finding, with the columns of `petriscope.audit.findings.make_table`.

    Args:
        masks, classes, ignore, shape: see `petriscope.audit.masks.check_masks`.
        ids, splits: of the images, [N].

    Raises:
        DataError: a mask is not uint8 [H, W].
    """
    columns = (ids, splits, [""] * len(ids))
    images = Listing(*(np.array(list(column), dtype=object) for column in columns))
    found = check_masks(masks, classes, ignore=ignore, shape=shape)
    return make_table(images, list(_findings(found)))


def mask_findings(images: ImageSet) -> Iterator[Finding]:
    """What is wrong with the masks of a set; nothing where its targets are labels.

    A mask without a labeled pixel, or with one class alone, is for a person to look at; a mask that many images have, none
    of which can be right for all, is for leaving out.
    """
    if images.segments:
        masks = np.where(images.targets == IGNORE, 0, images.targets + 1).astype(np.uint8)
        if (background := background_of(images.classes)) is not None:
            masks[images.targets == background] = 0
        yield from _findings(check_masks(masks, len(images.classes) + 1))


def _findings(found: MaskFindings) -> Iterator[Finding]:
    flags = {
        "wrong_mask_values": found.wrong_values,
        "wrong_mask_size": found.wrong_size,
        "empty_mask": found.empty,
        "single_class_mask": found.single_class,
        "shared_mask": found.group >= 0,
    }
    for name, (decision, evidence) in MASK_KINDS.items():
        for index in np.flatnonzero(flags[name]).tolist():
            group, count, suggested = "", 0, decision
            if name == "shared_mask":
                group = f"masks-{found.group[index] + 1}"
                count = int((found.group == found.group[index]).sum())
                suggested = "drop" if count >= MANY else decision
            yield Finding(index, name, evidence.format(count=count), 1.0, suggested, name.replace("_", " "), group)
