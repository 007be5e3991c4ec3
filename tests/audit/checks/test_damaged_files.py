"""Damaged files: those without an image are dropped, others reviewed."""

from __future__ import annotations

import numpy as np

from petriscope.audit.base import Listing
from petriscope.audit.checks.damaged_files import findings_of_files
from petriscope.data.file_check import FileFault


def test_files_without_an_image_are_dropped_and_others_reviewed() -> None:
    listing = Listing(*(np.array(column, dtype=object) for column in (["x", "y", "z"], ["train"] * 3, ["a"] * 3)))
    faults = [
        FileFault("z", "truncated", "cut short", 1, False),
        FileFault("z", "odd_size", "large", 3, True),
        FileFault("x", "truncated", "cut short", 1, True),
        FileFault("y", "unreadable", "no image", 1, False),
    ]
    rows = list(findings_of_files(listing, faults))
    assert [(row.image, row.decision, row.score) for row in rows] == [
        *((2, "drop", 1), (2, "review", 3), (0, "review", 1), (1, "drop", 1))
    ]
