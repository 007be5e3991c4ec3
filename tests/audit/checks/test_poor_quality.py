"""Poor quality: blank images are dropped, others reviewed."""

from __future__ import annotations

import numpy as np
import pytest

from petriscope.audit.checks.poor_quality import MEASURED, findings_of_quality
from petriscope.audit.quality import FLAGS, Quality

NAMES = [info.name for info in MEASURED]


def quality(values: list[float], flagged: dict[str, list[bool]]) -> Quality:
    nothing = [False] * len(values)
    return Quality(
        {measured: np.array(values, np.float32) for measured, _ in MEASURED.values()},
        {name: np.array(flagged.get(name, nothing)) for name in NAMES},
    )


def test_there_is_a_finding_for_every_flag() -> None:
    assert set(NAMES) == set(FLAGS)


@pytest.mark.parametrize("name", NAMES)
def test_one_finding_per_flag(name: str) -> None:
    (row,) = findings_of_quality(quality([0.5, 0.5, 0.25], {name: [False, False, True]}))
    assert (row.image, row.finding) == (2, name)
    assert row.decision == ("drop" if name == "blank" else "review")
    assert row.score == pytest.approx(0.25) and "median" in row.evidence


def test_nothing_else_is_reported_about_a_blank_image() -> None:
    found = findings_of_quality(quality([0.0], {name: [True] for name in NAMES}))
    assert [row.finding for row in found] == ["blank"]
