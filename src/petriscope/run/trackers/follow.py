"""From a run folder to a tracker: send what it does not have yet, while the run is trained or later."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from petriscope.core.errors import PetriscopeError, command
from petriscope.core.files import json_text, parse_json, parsing, read_text, reason, write_text
from petriscope.core.results import Epoch
from petriscope.run.folder import Run
from petriscope.run.trackers.base import Entry, Outcome, Start, Status, Tracker, metrics_of, metrics_of_results
from petriscope.run.trackers.figures import write_figures

FOLDER = "tracking"  # in the run folder: what is known of its runs in trackers, and what their libraries print
LOOK_EVERY = 1.0  # seconds between looks into the run folder
RETRY_EVERY = 30.0  # seconds after a failure
MOST_BYTES = 100_000  # of a record
FILES = ("report.html", "recipe.yaml", "environment.json", "results.json", "metrics.jsonl")


class Record(BaseModel):
    """A run folder's run in a tracker, ``tracking/<tracker>.json``.

    Args:
        id, where: see `Entry`; empty if there is none yet.
        epochs: the tracker has those up to this one.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: str = ""
    where: str = ""
    epochs: int = Field(default=0, ge=0)

    @property
    def entry(self) -> Entry | None:
        return Entry(self.id, self.where) if self.id else None


def read_record(run: Run, name: str) -> Record:
    """What the run folder knows of its run in a tracker.

    Raises:
        RequestError: the file is damaged.
    """
    path = run.folder / FOLDER / f"{name}.json"
    if not path.is_file():
        return Record()
    with parsing(path, "delete it, and the tracker gets a new run"):
        return Record.model_validate(parse_json(read_text(path, MOST_BYTES, "a record of a tracker")))


@dataclass(frozen=True)
class Ending:
    """How a training ended.

    Args:
        why: what ended it, unless it is finished.
    """

    status: Status
    why: str = ""


class Follower:
    """Sends a run folder to a tracker.

    Args:
        name: of the tracker.
        replay: the run is not being trained now: its epochs are given the times at which they must have ended.
    """

    def __init__(self, run: Run, name: str, tracker: Tracker, replay: bool = False) -> None:
        self.run, self.name, self.tracker, self.replay = run, name, tracker, replay
        self.record = Record()
        self.begun = False
        self._seen: tuple[int, int] | None = None

    def catch_up(self) -> None:
        """Begin the run in the tracker if that was not done, and log the epochs that it does not have.

        After a resumed training has gone back to a checkpoint, epochs that the tracker has are not logged again.
        """
        if not self.begun:
            self._begin()
        signature = self._signature()
        if signature == self._seen:
            return
        done = self.record.epochs
        try:
            for epoch, at in self._timed(self.run.history):
                if epoch.epoch > done:
                    self.tracker.log(epoch.epoch, metrics_of(epoch), at)
                    done = epoch.epoch
        finally:
            if done > self.record.epochs:
                self._keep(self.record.model_copy(update={"epochs": done}))
        self._seen = signature

    def end(self, ending: Ending) -> None:
        """Send the rest, and close the run in the tracker, whatever goes wrong with the rest."""
        at = self._ended()
        try:
            self.catch_up()
            if ending.status == "finished":
                with tempfile.TemporaryDirectory(prefix="petriscope-") as scratch:
                    self.tracker.deliver(self._outcome(Path(scratch), at))
        finally:
            if self.begun:
                self.tracker.close(ending.status, ending.why, at)

    def _begin(self) -> None:
        self.record = read_record(self.run, self.name)
        environment = self.run.environment
        start = Start(self.run.folder.resolve(), self.run.recipe, environment, _seconds(environment.started))
        entry = self.tracker.begin(start, self.record.entry)
        if entry.id != self.record.id:
            self.record = Record()
        self.begun = True
        self._keep(self.record.model_copy(update={"id": entry.id, "where": entry.where}))

    def _keep(self, record: Record) -> None:
        self.record = record
        write_text(self.run.folder / FOLDER / f"{self.name}.json", json_text(record.model_dump(), indent=1))

    def _signature(self) -> tuple[int, int] | None:
        with suppress(OSError):
            found = (self.run.folder / "metrics.jsonl").stat()
            return found.st_mtime_ns, found.st_size
        return None

    def _timed(self, history: list[Epoch]) -> list[tuple[Epoch, float]]:
        """Epochs, and when they ended in seconds since 1970."""
        now = time.time()
        if not self.replay:
            return [(epoch, now) for epoch in history]
        at, out = _seconds(self.run.environment.started), []
        for epoch in history:
            at += epoch.seconds or 0
            out.append((epoch, min(at, now)))
        return out

    def _ended(self) -> float:
        path = self.run.folder / "results.json"
        return path.stat().st_mtime if self.replay and path.is_file() else time.time()

    def _outcome(self, scratch: Path, at: float) -> Outcome:
        folder = self.run.folder
        return Outcome(
            metrics=metrics_of_results(self.run.results),
            figures=write_figures(self.run, scratch),
            files=tuple(path for name in FILES if (path := folder / name).is_file()),
            model=self.run.model if self.run.model.is_file() else None,
            epochs=self.record.epochs,
            at=at,
        )


def _seconds(started: str) -> float:
    """When a run was started, in seconds since 1970; now, if that is not known."""
    with suppress(ValueError):
        found = datetime.fromisoformat(started)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    return time.time()


def follow(follower: Follower, ending: Callable[[float], Ending | None], warn: Callable[[str], None]) -> bool:
    """Send what a training writes until it ends. A tracker that fails is tried again, with all that it lacks.

    Args:
        ending: waits for the end of the training, at most so many seconds; None: it goes on.
        warn: called once, with what the tracker's first failure says, and once more if it lacks something at the end.

    Returns:
        whether the tracker has all.
    """
    told, wait = "", 0.0
    while True:
        end = ending(wait)
        try:
            if end is not None:
                follower.end(end)
                return True
            follower.catch_up()
            wait = LOOK_EVERY
        except Exception as error:  # there is no end to what libraries raise, and training must not end with them
            wait, why = RETRY_EVERY, said(error)
            if not told:
                warn(why)
            told = told or why
            if end is not None:
                again = command("track", follower.run.folder, "--to", follower.name)
                warn(f"it does not have all of the run; to send it again: {again}")
                return False


def said(error: Exception) -> str:
    """What an error says, without passwords in addresses; its kind too, unless it is one of Petriscope's own sentences."""
    text = str(error) if isinstance(error, PetriscopeError) else f"{type(error).__name__}: {reason(error)}"
    return re.sub(r"://[^/\s]*@", "://", text)
