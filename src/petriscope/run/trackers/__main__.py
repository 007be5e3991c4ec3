"""The process that sends a run folder to a tracker: ``python -m petriscope.run.trackers FOLDER PART replay|live``.

On stdin it gets one line, how the training ended; if that is closed without one, the training was killed. On stdout it gives
one JSON object per line for people, as `petriscope.run.trackers.process` reads them. What libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import TextIO

from petriscope.core.files import parse_json
from petriscope.core.recipe import Part
from petriscope.run.folder import Run
from petriscope.run.trackers import TRACKERS
from petriscope.run.trackers.follow import Ending, Follower, follow, said

KILLED = Ending("failed", "the training process ended without a word; it may have been killed")
NICENESS = 10  # the training comes first
PATIENCE = 60.0  # seconds that this process may outlive a training that was killed


def main(folder: str, part: str, mode: str) -> int:
    out = _own_stdout()
    # A signal to all processes of a job is for the training, which says how it ended.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    endings: queue.Queue[Ending] = queue.Queue()
    threading.Thread(target=_listen, args=(endings,), daemon=True).start()

    def ending(seconds: float) -> Ending | None:
        try:
            return endings.get(timeout=max(seconds, 0.01))
        except queue.Empty:
            return None

    chosen = Part.model_validate_json(part)
    try:
        follower = Follower(Run(Path(folder)), chosen.name, TRACKERS.build(chosen), replay=mode == "replay")
    except Exception as error:  # such as a library that is damaged
        _tell(out, warning=said(error))
        return 1
    whole = follow(follower, ending, lambda text: _tell(out, warning=text))
    if follower.record.id:
        _tell(out, note=f"run {follower.record.id} in {follower.record.where}")
    return 0 if whole else 1


def _own_stdout() -> TextIO:
    """stdout for this process alone; libraries print to stderr from now on."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return out


def _tell(out: TextIO, **message: str) -> None:
    try:
        out.write(json.dumps(message) + "\n")
        out.flush()
    except OSError:  # nobody listens any more
        return


def _listen(endings: queue.Queue[Ending]) -> None:
    line = sys.stdin.readline()
    try:
        told = parse_json(line)
        ending, seconds = Ending(told["status"], told["why"]), told["seconds"]
    except (ValueError, KeyError):
        ending, seconds = KILLED, PATIENCE
    if seconds is not None:
        watch = threading.Timer(seconds, os._exit, [1])
        watch.daemon = True
        watch.start()
    endings.put(ending)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
