"""Trackio: one run in its local store, or in the Space of TRACKIO_SPACE_ID."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from petriscope.core.errors import PetriscopeError
from petriscope.core.files import reason
from petriscope.run.trackers.base import PROJECT, Entry, Outcome, Start, Status, new_id, plain_name


class TrackioTracker:
    """Logs into a project.

    Args:
        project: its name; None: ``petriscope``.
    """

    def __init__(self, *, project: str | None = None) -> None:
        self.project = project or PROJECT
        self.name = ""
        self.warned: list[warnings.WarningMessage] = []
        self.listening = ExitStack()

    def begin(self, start: Start, known: Entry | None) -> Entry:
        self._listen()
        import trackio

        if not self.name:  # Trackio finds runs by name, so a name must be of one run
            self.name = f"{plain_name(start.name)}-{new_id()}" if known is None else known.id
        self.run = trackio.init(
            self.project,
            name=self.name,
            config={**start.tree, "environment": start.facts, "about": start.about},
            resume="allow",
            embed=False,
        )
        self._check()
        return Entry(id=self.name, where=f"{self.project}: {self.run.url or trackio.utils.TRACKIO_DIR}")

    def log(self, epoch: int, metrics: Mapping[str, float], at: float) -> None:
        self._log({"epoch": epoch, **metrics}, epoch)

    def deliver(self, outcome: Outcome) -> None:
        import trackio

        figures = {f"figures/{name}": trackio.Image(str(path)) for name, path in outcome.figures.items()}
        self._log({"epoch": outcome.epochs, **outcome.metrics, **figures}, outcome.epochs)
        for path in outcome.files:
            self.run.log_artifact(str(path), name=plain_name(f"{self.name}-{path.name}"), type="file")
        if outcome.model is not None:
            self.run.log_artifact(str(outcome.model), name=self.name, type="model")
        self._check()

    def close(self, status: Status, why: str, at: float) -> None:
        import trackio

        if status != "finished":
            level = trackio.AlertLevel.ERROR if status == "failed" else trackio.AlertLevel.WARN
            self.run.alert(title=f"training {status}", text=why, level=level)
        self.run.log({"status": status})
        self.run.finish()
        self.listening.close()
        self._check()

    def _log(self, values: dict[str, Any], step: int) -> None:
        self.run.log(values, step=step)
        self._check()

    def _listen(self) -> None:
        """Keep all warnings from now on, also those of Trackio's threads."""
        self.listening.close()
        self.warned = self.listening.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always", UserWarning)

    def _check(self) -> None:
        """Raise what Trackio only warns of: where it cannot keep something, it goes on.

        Raises:
            PetriscopeError: with its first warning.
        """
        lost = [each for each in self.warned if each.category is UserWarning]
        self.warned.clear()
        if lost:
            raise PetriscopeError(reason(Exception(str(lost[0].message))))
