"""Label errors: when a new label is suggested, and when only a review."""

from __future__ import annotations

import numpy as np
import pytest

from petriscope.audit.base import Listing
from petriscope.audit.checks.wrong_labels import findings_of_labels
from petriscope.audit.label_errors import LabelErrors

LISTING = Listing(*(np.array(column, dtype=object) for column in (["x", "y", "z"], ["train"] * 3, ["a"] * 3)))


@pytest.mark.parametrize(("faulty", "first"), [((), "relabel"), ({0}, "review")])
def test_only_sure_errors_in_images_without_faults_are_relabeled(faulty: set[int], first: str) -> None:
    found = LabelErrors(np.array([True, True, False]), np.array([1, 1, 0]), np.array([0.97, 0.6, 0.1], np.float32))
    rows = list(findings_of_labels(LISTING, found, ("a", "b"), faulty))
    assert [(row.image, row.decision, row.suggested) for row in rows] == [(0, first, "b"), (1, "review", "b")]
    assert "labeled a, looks like b" in rows[0].evidence
