"""Processes of Petriscope that another one starts, and that end with it, also when that one is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from petriscope.core.progress import say

WORKER = "PETRISCOPE_WORKER"  # the environment variable that says so; the process holds the other end of its stdin
THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True)
class Command:
    """A command of Petriscope that another process runs.

    Args:
        words: its words, with absolute paths.
        log: the file that receives what it prints.
        run: the folder of the run that it makes. If there is a run when the command starts, it is resumed instead.
        device: that it asks for, as ``training.device`` of a recipe.
        environment: variables of the process, for what other users of the machine are not to see.
    """

    words: tuple[str, ...]
    log: Path
    run: Path | None = None
    device: str = "auto"
    environment: Mapping[str, str] = field(default_factory=dict)


def words_now(command: Command) -> tuple[str, ...]:
    """The words of a command if it starts now."""
    if command.run is not None and (command.run / "recipe.yaml").is_file():
        return ("train", "--resume", str(command.run), "--quiet")
    return command.words


@dataclass(frozen=True)
class Worker:
    """A process of Petriscope.

    Args:
        log: the file that receives its output.
    """

    process: subprocess.Popen[bytes]
    log: Path


def start_worker(words: Sequence[str], log: Path, environment: Mapping[str, str]) -> Worker:
    """Start a command of Petriscope in a process of its own.

    Args:
        log: the file that receives its output.
        environment: variables beside those of this process, or in their place.
    """
    with log.open("wb") as handle:
        process = subprocess.Popen(
            [sys.executable, "-m", "petriscope", *words],
            stdin=subprocess.PIPE,  # nothing is written: it ends when this process ends, however it ends
            stdout=handle,
            stderr=handle,
            env={**os.environ, **environment, WORKER: "1"},
        )
    return Worker(process, log)


def stop_workers(workers: Sequence[Worker]) -> None:
    """Ask processes to end, and wait until they have."""
    for worker in workers:
        worker.process.terminate()  # Ctrl-C in a terminal has reached it already; a second signal does no harm
    for worker in workers:
        worker.process.wait()


def error_in(log: Path, status: int) -> str:
    """The error message of a process that failed. An unexpected error is shown in full; the message is its last line.

    Args:
        log: the file that received its output.
        status: how it ended.
    """
    text = log.read_text(encoding="utf-8", errors="replace").strip() if log.is_file() else ""
    _, told, error = f"\n{text}".rpartition("\nerror: ")
    if told:
        return error
    if text:
        say(text)
    last = text.rpartition("\n")[2]
    return last or f"it ended with status {status} and no message; it may have run out of memory"


def end_with_parent() -> None:
    """In a worker: when the process that started it is gone, end this one as SIGTERM does, so that a training keeps a
    checkpoint. Children of this process are not workers."""
    if os.environ.pop(WORKER, None) is not None:
        threading.Thread(target=_wait, name="parent", daemon=True).start()


def _wait() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
