"""The result of a tuning."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from petriscope.core.results import SCHEMA_VERSION
from petriscope.run.comparison import Comparison

THE_RECIPE = "the recipe"  # label of the recipe that a tuning starts from
State = Literal["finished", "stopped", "failed", "under way"]


@dataclass(frozen=True)
class Parameter:
    """A key of the recipe that was searched.

    Args:
        low, high: the ends of a range; None for choices.
        choices: in words; empty for a range.
        start: the value of the recipe that the tuning started from, in words for choices; None if the space lacks it.
        importance: the share of the variance of the metric that the key explains; None if it cannot be estimated.
    """

    key: str
    low: float | None
    high: float | None
    log: bool
    choices: tuple[str, ...]
    start: float | str | None
    importance: float | None


@dataclass(frozen=True)
class Trial:
    """One recipe of the search.

    Args:
        drawn: the value of each key, in words for choices.
        value: the metric after its last epoch; None if there is none.
        rungs: the metric after each rung that it reached, by epochs.
        folder: of its run, relative to that of the tuning.
        same_as: the number of an earlier trial with the same values, which was not trained again.
        failure: why it could not be trained.
        start: whether it is the recipe that the tuning started from.
    """

    number: int
    state: State
    drawn: dict[str, float | str]
    value: float | None
    epochs: int
    seconds: float
    rungs: dict[int, float]
    folder: str
    same_as: int | None = None
    failure: str = ""
    start: bool = False


@dataclass(frozen=True)
class Confirmed:
    """A recipe that was trained with fresh seeds.

    Args:
        label: in `Tuning.comparison`.
        trial: None for the recipe that the tuning started from, if it was no trial.
        searched: the metric in the search.
        fresh: the same metric, per fresh seed.
        changes: the keys that differ from the recipe that the tuning started from, each with its two values in words.
    """

    label: str
    trial: int | None
    searched: float | None
    fresh: tuple[float, ...]
    changes: dict[str, tuple[str, str]]

    @property
    def mean(self) -> float:
        return sum(self.fresh) / len(self.fresh)

    @property
    def shrinkage(self) -> float | None:
        """By how much the search says more than fresh seeds do."""
        return None if self.searched is None else self.searched - self.mean


@dataclass(frozen=True)
class Tuning:
    """The result of `petriscope.experiments.tune.tune`.

    Args:
        folder: of the tuning.
        recipe: the name of the recipe that the tuning started from.
        metric: what was searched for, on val; ``higher``: whether more of it is better.
        epochs: of a trial that is trained to the end; ``rungs``: after how many epochs trials may be stopped.
        importances: how these were computed, in words.
        confirmed: the recipe that the tuning started from and the best trials, trained with fresh seeds; empty if none were.
        comparison: of these on val, with paired tests.
        best: the label of the recipe in ``best.yaml``; None if no trial was trained to the end.
        best_recipe: as YAML.
        notes: what the reader should know, one sentence each.
    """

    folder: str
    recipe: str
    task: str
    metric: str
    higher: bool
    images: int
    seed: int
    sampler: str
    pruner: str
    epochs: int
    rungs: tuple[int, ...]
    parameters: tuple[Parameter, ...]
    importances: str
    trials: tuple[Trial, ...]
    confirmed: tuple[Confirmed, ...]
    comparison: Comparison | None
    best: str | None
    best_recipe: str
    notes: tuple[str, ...] = ()

    @property
    def own(self) -> Confirmed | None:
        """The recipe that the tuning started from, with fresh seeds."""
        return next((each for each in self.confirmed if each.label == THE_RECIPE), None)

    @property
    def best_trial(self) -> Trial | None:
        """The best of those that were trained to the end."""
        ended = ranked(self.trials, self.higher)
        return ended[0] if ended else None

    def as_dict(self) -> dict[str, Any]:
        """The tuning as plain values, for JSON."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            "schema_version": SCHEMA_VERSION,
            **plain,
            "parameters": [dataclasses.asdict(each) for each in self.parameters],
            "trials": [dataclasses.asdict(each) for each in self.trials],
            "confirmed": [
                {**dataclasses.asdict(each), "mean": each.mean, "shrinkage": each.shrinkage} for each in self.confirmed
            ],
            "comparison": None if self.comparison is None else self.comparison.as_dict(),
        }


def ranked(trials: tuple[Trial, ...], higher: bool) -> list[Trial]:
    """The trials that were trained to the end, the best first, each recipe once."""
    ended = [each for each in trials if each.state == "finished" and each.value is not None and each.same_as is None]
    return sorted(ended, key=lambda each: (-(each.value or 0) if higher else (each.value or 0), each.number))
