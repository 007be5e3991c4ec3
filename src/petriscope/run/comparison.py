"""What a comparison of runs finds."""

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
    """A method against the baseline.

    Args:
        difference: with its interval and its p.
        p_holm: p after Holm's correction for all methods compared.
        needed: images or seeds that would show a difference of this size, with 80 % power at the corrected level.
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
    """A recipe: its runs, one a seed, and what they reach on average.

    Args:
        values: the metric compared, of each run.
        ci95: of the mean; see `petriscope.metrics.statistics.Sample`.
        others: means of further metrics, as `results.json` has them.
        parameters, multiply_adds, seconds: of the first run; seconds of training, the mean.
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
    """What `compare` finds; the rows in the order the groups were given.

    Args:
        n: images.
        notes: what the reader should know, a sentence each.
        task: of the runs, by name.
    """

    split: str
    n: int
    metric: str
    baseline: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    task: str = CLASSIFICATION

    @property
    def tests(self) -> int:
        return sum(row.contrast is not None for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        rows = []
        for row in self.rows:
            plain = {f.name: getattr(row, f.name) for f in dataclasses.fields(row) if f.name != "contrast"}
            rows.append({**plain, "difference": None if row.contrast is None else _plain(row.contrast)})
        return {
            "schema_version": SCHEMA_VERSION,
            "task": self.task,
            "split": self.split,
            "n": self.n,
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
