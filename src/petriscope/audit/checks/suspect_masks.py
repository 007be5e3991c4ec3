"""Masks that are probably wrong, or from which nothing can be learned."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from petriscope.audit.base import Check, Context, Finding, FindingInfo
from petriscope.audit.mask_faults import MaskFindings, check_masks
from petriscope.core.masks import IGNORE
from petriscope.metrics.segmentation import background_of

MANY = 5  # images that share a mask, from which it is taken to be the mask of none of them
WRONG_VALUES = FindingInfo("wrong_mask_values", "The mask has values that are not classes.", "masks", "drop")
WRONG_SIZE = FindingInfo("wrong_mask_size", "The mask has a different size than the others.", "masks", "drop")
EMPTY = FindingInfo("empty_mask", "The mask has no labeled pixels, or only background.", "masks")
SINGLE_CLASS = FindingInfo("single_class_mask", "A single class fills the labeled part of the mask.", "masks")
SHARED = FindingInfo("shared_mask", "Other images have exactly the same mask.", "masks", grouped=True)


class SuspectMasks(Check):
    """Masks with wrong values or sizes are not among its findings: a source that has any cannot be read."""

    findings = (EMPTY, SINGLE_CLASS, SHARED)
    tasks = ("segmentation",)
    order = 70

    def run(self, context: Context) -> Iterator[Finding]:
        targets, classes = context.images.targets, context.images.classes
        masks = np.where(targets == IGNORE, 0, targets + 1).astype(np.uint8)
        if (background := background_of(classes)) is not None:
            masks[targets == background] = 0
        yield from findings_of_masks(check_masks(masks, len(classes) + 1))


def findings_of_masks(found: MaskFindings) -> Iterator[Finding]:
    """All findings about masks, those included that an image set cannot have."""
    for info, flags, evidence in (
        (WRONG_VALUES, found.wrong_values, "the mask has values that are not classes"),
        (WRONG_SIZE, found.wrong_size, "the mask has a different size than the others"),
        (EMPTY, found.empty, "the mask has no labeled pixels, or only background"),
        (SINGLE_CLASS, found.single_class, "one class fills the mask"),
    ):
        for index in np.flatnonzero(flags).tolist():
            yield info.of(index, evidence)
    sizes = np.bincount(found.group[found.group >= 0])
    for index in np.flatnonzero(found.group >= 0).tolist():
        number = int(found.group[index])
        yield SHARED.of(
            index,
            f"{sizes[number]:,} images have exactly this mask",
            decision="drop" if sizes[number] >= MANY else "review",
            group=f"masks-{number + 1}",
        )
