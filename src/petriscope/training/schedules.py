"""Learning rate schedules: a factor on the base rate, per step.

All but `Plateau` depend on the step alone, so they have no state to save.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import Field

from petriscope.core.registry import Registry

SCHEDULES = Registry(
    "schedule",
    {
        "constant": "petriscope.training.schedules:Schedule",
        "cosine": "petriscope.training.schedules:Cosine",
        "one-cycle": "petriscope.training.schedules:OneCycle",
        "step": "petriscope.training.schedules:Step",
        "plateau": "petriscope.training.schedules:Plateau",
    },
)

Epochs = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Below1 = Annotated[float, Field(gt=0, lt=1)]


class Schedule:
    """A constant rate after a linear warm-up; the base class of the others.

    Args:
        steps_per_epoch, epochs: the length of training.
        warmup_epochs: number of epochs in which the rate grows linearly from near 0 to the base rate.
    """

    def __init__(self, steps_per_epoch: int, epochs: int, *, warmup_epochs: Epochs = 0.0) -> None:
        self.per_epoch = steps_per_epoch
        self.total = steps_per_epoch * epochs
        self.warmup = min(round(warmup_epochs * steps_per_epoch), self.total)

    def factor(self, step: int) -> float:
        """The factor at a step, counted from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return self.after_warmup(step - self.warmup, max(self.total - self.warmup, 1))

    def after_warmup(self, step: int, total: int) -> float:
        return 1.0

    def observe(self, value: float) -> None:
        """Take the monitored metric at the end of an epoch; lower is better."""

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass


class Cosine(Schedule):
    """Half a cosine from 1 to ``final``. Loshchilov and Hutter, 2017, arXiv:1608.03983."""

    def __init__(self, steps_per_epoch: int, epochs: int, *, warmup_epochs: Epochs = 0.0, final: Share = 0.0) -> None:
        super().__init__(steps_per_epoch, epochs, warmup_epochs=warmup_epochs)
        self.final = final

    def after_warmup(self, step: int, total: int) -> float:
        return _cosine(1.0, self.final, step / total)


class OneCycle(Schedule):
    """Half a cosine up from ``start`` to 1 at ``peak``, then half a cosine down to ``final``. Smith and Topin, 2018,
    arXiv:1708.07120.

    Args:
        peak: the share of training after which the rate is highest.
        start, final: factors at the beginning and at the end.
    """

    def __init__(
        self,
        steps_per_epoch: int,
        epochs: int,
        *,
        peak: Below1 = 0.2,
        start: Share = 0.04,
        final: Share = 1e-3,
    ) -> None:
        super().__init__(steps_per_epoch, epochs)
        self.peak, self.start, self.final = peak, start, final

    def after_warmup(self, step: int, total: int) -> float:
        done = step / max(total - 1, 1)
        if done < self.peak:
            return _cosine(self.start, 1.0, done / self.peak)
        return _cosine(1.0, self.final, (done - self.peak) / (1 - self.peak))


class Step(Schedule):
    """Multiply the rate by ``decay`` after every ``every`` epochs."""

    def __init__(
        self,
        steps_per_epoch: int,
        epochs: int,
        *,
        every: Annotated[int, Field(ge=1)] = 10,
        decay: Below1 = 0.1,
        warmup_epochs: Epochs = 0.0,
    ) -> None:
        super().__init__(steps_per_epoch, epochs, warmup_epochs=warmup_epochs)
        self.every, self.decay = every, decay

    def after_warmup(self, step: int, total: int) -> float:
        return self.decay ** (step // (self.every * self.per_epoch))


class Plateau(Schedule):
    """Multiply the rate by ``decay`` after ``patience`` epochs without improvement of the monitored metric."""

    def __init__(
        self,
        steps_per_epoch: int,
        epochs: int,
        *,
        decay: Below1 = 0.1,
        patience: Annotated[int, Field(ge=1)] = 3,
        final: Share = 1e-4,
        warmup_epochs: Epochs = 0.0,
    ) -> None:
        super().__init__(steps_per_epoch, epochs, warmup_epochs=warmup_epochs)
        self.decay, self.patience, self.final = decay, patience, final
        self._current, self._best, self._waited = 1.0, math.inf, 0

    def after_warmup(self, step: int, total: int) -> float:
        return self._current

    def observe(self, value: float) -> None:
        if value < self._best:
            self._best, self._waited = value, 0
            return
        self._waited += 1
        if self._waited >= self.patience:
            self._current, self._waited = max(self._current * self.decay, self.final), 0

    def state(self) -> dict[str, Any]:
        best = None if math.isinf(self._best) else self._best
        return {"current": self._current, "best": best, "waited": self._waited}

    def restore(self, state: dict[str, Any]) -> None:
        self._current, self._waited = state["current"], state["waited"]
        self._best = math.inf if state["best"] is None else state["best"]


def _cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(done, 1.0))) / 2
