"""The processes beside a training that send its run folder to trackers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from petriscope.core.errors import Interrupted, PetriscopeError, command
from petriscope.core.files import parse_json, reason
from petriscope.core.progress import say
from petriscope.core.recipe import Part
from petriscope.run.folder import Run
from petriscope.run.trackers.base import Status
from petriscope.run.trackers.follow import FOLDER, Ending

# Seconds that a training waits at its end for trackers to get the rest.
PATIENCE: dict[Status, float] = {"finished": 120.0, "failed": 10.0, "interrupted": 10.0}
GRACE = 5.0  # seconds more until the process ends itself, should nobody be there to do so
SAY_AFTER = 2.0  # seconds
LOOK_EVERY = 0.05  # seconds


class Beside:
    """A process that sends a run folder to one tracker.

    Args:
        replay: the run is not being trained, and who sends it gets the warnings.
        quiet: say warnings only.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, run: Run, part: Part, replay: bool, quiet: bool) -> None:
        self.run, self.name, self.replay, self.quiet = run, part.name, replay, quiet
        self.warnings: list[str] = []
        self.log = run.folder / FOLDER / f"{part.name}.log"
        self.log.parent.mkdir(exist_ok=True)
        words = [str(run.folder), part.model_dump_json(), "replay" if replay else "live"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", __package__, *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the training
            )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def end(self, ending: Ending, seconds: float | None) -> None:
        """Say how the training ended, and that the process has so many seconds left; None: as many as it takes."""
        assert self.process.stdin is not None
        line = json.dumps({"status": ending.status, "why": ending.why, "seconds": seconds})
        with suppress(OSError):  # it has ended already
            self.process.stdin.write(f"{line}\n".encode())
            self.process.stdin.close()

    def wait(self, until: float) -> None:
        """Wait for the end of the process until `time.monotonic` is that, and then end it."""
        say_at = time.monotonic() + SAY_AFTER
        while self.process.poll() is None and (now := time.monotonic()) < until:
            if now > say_at and not self.quiet:
                say(f"still sending the run to {self.name}; press Ctrl-C to stop")
                say_at = until
            time.sleep(LOOK_EVERY)
        late = self.process.poll() is None
        self.kill()
        self.reader.join(timeout=1)
        if late:
            self._warn(f"it did not get all of the run in time; to send it again: {self.again}")
        elif self.process.returncode and not self.warnings:
            self._warn(f"its process ended with status {self.process.returncode}; see {self.log}")

    def kill(self) -> None:
        """End the process, and those that its library started."""
        if self.process.poll() is None:
            with suppress(OSError):
                if hasattr(os, "killpg"):
                    os.killpg(self.process.pid, signal.SIGKILL)
                else:
                    self.process.kill()
        self.process.wait()

    @property
    def again(self) -> str:
        return command("track", self.run.folder, "--to", self.name)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with suppress(ValueError):
                message = parse_json(line)
                if "warning" in message:
                    self._warn(message["warning"])
                elif not self.quiet:
                    say(f"tracked by {self.name}: {message['note']}")

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        if not self.replay:
            say(f"warning: {self.name}: {text}")


@contextmanager
def tracked(run: Run, quiet: bool) -> Iterator[None]:
    """Within, the run is trained, and the trackers of its recipe are told of it. Whatever goes wrong with them is a warning."""
    trackers = list(_started(run, quiet))
    ending = Ending("finished")
    try:
        yield
    except (Interrupted, KeyboardInterrupt):
        ending = Ending("interrupted", "Ctrl-C, or a request to end")
        raise
    except BaseException as error:
        ending = Ending("failed", reason(error) if isinstance(error, Exception) else type(error).__name__)
        raise
    finally:
        _end(trackers, ending)


def _started(run: Run, quiet: bool) -> Iterator[Beside]:
    for part in run.recipe.training.track:
        try:
            yield Beside(run, part, replay=False, quiet=quiet)
        except OSError as error:
            say(f"warning: {part.name}: its process cannot be started: {reason(error)}")


def _end(trackers: list[Beside], ending: Ending) -> None:
    until = time.monotonic() + PATIENCE[ending.status]
    try:
        for tracker in trackers:
            tracker.end(ending, PATIENCE[ending.status] + GRACE)
        for tracker in trackers:
            tracker.wait(until)
    except KeyboardInterrupt:  # what was trained is kept all the same
        for tracker in trackers:
            tracker.wait(0)


def send(run: Run, part: Part, quiet: bool = False) -> None:
    """Send a run that is not being trained to a tracker, as far as the tracker does not have it.

    Raises:
        PetriscopeError: the tracker failed; the message is what it said.
    """
    status: Status = "finished" if run.finished else "interrupted"
    with run.claimed():
        beside = Beside(run, part, replay=True, quiet=quiet)
        try:
            beside.end(Ending(status, "" if run.finished else "it was not trained to its end"), None)
            beside.wait(float("inf"))
        except KeyboardInterrupt:
            beside.kill()
            raise Interrupted(f"stopped; to go on: {beside.again}") from None
    if beside.warnings:
        raise PetriscopeError(f"{part.name}: {'; '.join(beside.warnings)}")
