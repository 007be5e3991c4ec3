"""The result of a comparison of runs."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from petriscope.core.results import CLASSIFICATION, SCHEMA_VERSION
from petriscope.metrics.statistics import Difference, Needed

LEVEL = 0.05
Verdict = Literal["better", "worse", "no difference shown"]


@dataclass(frozen=True)
class Contrast:
    """A method compared with the baseline.

    Args:
        difference: method minus baseline, with its interval and p-value.
        p_holm: the p-value after Holm's correction for the number of methods.
        needed: images or seeds needed to show a difference of this size with 80 % power at the corrected level.
    """

    difference: Difference
    p_holm: float
    needed: Needed

    @property
    def verdict(self) -> Verdict:
        if self.p_holm >= LEVEL:
            return "no difference shown"
        return "better" if self.difference.value > 0 else "worse"


@dataclass(frozen=True)
class Row:
    """The runs of one recipe, one per seed, and their mean results.

    Args:
        values: the compared metric, per run.
        ci95: interval of the mean, NaN if there is none; see `petriscope.metrics.statistics.Sample`.
        others: means of further metrics, by their names in ``results.json``.
        parameters, multiply_adds: of the first run.
        seconds: mean training time.
        contrast: None for the baseline.
    """

    label: str
    runs: tuple[str, ...]
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    mean: float
    sd: float | None
    ci95: tuple[float, float]
    others: dict[str, float | None]
    parameters: int | None
    multiply_adds: int | None
    seconds: float | None
    contrast: Contrast | None


@dataclass(frozen=True)
class Comparison:
    """The result of `petriscope.experiments.compare.compare`; rows are in the order of the groups.

    Args:
        n: number of images.
        notes: what the reader should know, one sentence each.
        task: name of the task of the runs.
        groups: number of groups of images that intervals and tests are over; None: they are over images.
    """

    split: str
    n: int
    metric: str
    baseline: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    task: str = CLASSIFICATION
    groups: int | None = None

    @property
    def tests(self) -> int:
        return sum(row.contrast is not None for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """The comparison as plain values, for JSON."""
        rows = []
        for row in self.rows:
            plain = {f.name: getattr(row, f.name) for f in dataclasses.fields(row) if f.name != "contrast"}
            rows.append({**plain, "difference": None if row.contrast is None else _plain(row.contrast)})
        return {
            "schema_version": SCHEMA_VERSION,
            "task": self.task,
            "split": self.split,
            "n": self.n,
            "groups": self.groups,
            "metric": self.metric,
            "baseline": self.baseline,
            "tests": self.tests,
            "rows": rows,
            "notes": list(self.notes),
        }


def _plain(contrast: Contrast) -> dict[str, Any]:
    found = contrast.difference
    return {
        "value": found.value,
        "ci95": found.ci95,
        "p": found.p,
        "p_holm": contrast.p_holm,
        "verdict": contrast.verdict,
        "se_images": math.sqrt(found.variance.images),
        "se_seeds": math.sqrt(found.variance.seeds),
        "images_needed": contrast.needed.images,
        "seeds_needed": contrast.needed.seeds,
    }
