"""Findings about masks that are not part of an image set, as the table that an audit writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from petriscope.audit.base import Listing
from petriscope.audit.checks.suspect_masks import findings_of_masks
from petriscope.audit.findings import make_table
from petriscope.audit.mask_faults import check_masks

if TYPE_CHECKING:
    import pandas as pd


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
        masks, classes, ignore, shape: see `petriscope.audit.mask_faults.check_masks`.
        ids, splits: of the images, [N].

    Raises:
        DataError: a mask is not uint8 [H, W].
    """
    columns = (ids, splits, [""] * len(ids))
    listing = Listing(*(np.array(list(column), dtype=object) for column in columns))
    found = check_masks(masks, classes, ignore=ignore, shape=shape)
    return make_table(listing, list(findings_of_masks(found)))
