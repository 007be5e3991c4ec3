"""Where jobs run: in processes of this machine, or on the nodes of a Ray cluster. A job is a command of Petriscope."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from petriscope.core.device import cores
from petriscope.core.errors import RequestError, shown
from petriscope.core.worker import THREADS, Command, Worker, error_in, start_worker, stop_workers, words_now


class Job(Protocol):
    """A command that was started, or waits until there is room for it."""

    def error(self) -> str | None:
        """What went wrong, after it has ended; None: nothing."""


class Pool(Protocol):
    """Where jobs run.

    Args:
        most: jobs that are started at once; None: any number, those that find no room wait.
        hosts: machines that they may run on.
        threads: of each job.
    """

    @property
    def most(self) -> int | None: ...

    @property
    def hosts(self) -> int: ...

    @property
    def threads(self) -> int: ...

    def room(self, device: str) -> int:
        """How many jobs on that device can run at once."""

    def scratch(self, folder: Path, named: Sequence[Any], devices: Iterable[str]) -> AbstractContextManager[Path]:
        """A temporary folder for the files of jobs, such as logs, which all jobs see.

        Args:
            folder: what the jobs write into.
            named: recipes as plain values, or paths; what of them lies on a disk has to be seen by all jobs.
            devices: that jobs ask for.

        Raises:
            RequestError: jobs could not run, because they do not see the folder or the data, for example.
        """

    def start(self, command: Command) -> Job:
        """Start a job as soon as there is room for it."""

    def wait(self, jobs: Sequence[Job], seconds: float) -> list[Job]:
        """Wait for so long, or until all jobs have ended. Returns those that have."""

    def stop(self, jobs: Sequence[Job]) -> None:
        """Ask jobs to end, and wait until they have. A training keeps a checkpoint."""


@dataclass(frozen=True)
class Process:
    """A job in a process of this machine."""

    worker: Worker

    def error(self) -> str | None:
        status = self.worker.process.returncode
        return error_in(self.worker.log, status) if status else None


@dataclass(frozen=True)
class Processes:
    """Processes of this machine.

    Args:
        most: how many at once. The cores are divided among them unless OMP_NUM_THREADS is set.
    """

    most: int
    hosts: int = 1

    @property
    def threads(self) -> int:
        return max(1, cores() // self.most)

    def room(self, device: str) -> int:
        return self.most

    @contextmanager
    def scratch(self, folder: Path, named: Sequence[Any], devices: Iterable[str]) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="petriscope-") as made:
            yield Path(made)

    def start(self, command: Command) -> Process:
        threads = os.environ.get(THREADS, str(self.threads))
        return Process(start_worker(words_now(command), command.log, {THREADS: threads, **command.environment}))

    def wait(self, jobs: Sequence[Any], seconds: float) -> list[Any]:
        time.sleep(seconds)
        return [job for job in jobs if job.worker.process.poll() is not None]

    def stop(self, jobs: Sequence[Any]) -> None:
        stop_workers([job.worker for job in jobs])


@contextmanager
def open_pool(
    on: str | None, jobs: int | None = None, cpus: int = 1, gpus: float | None = None
) -> Iterator[Pool | None]:
    """Where jobs run.

    Args:
        on: ``ray``: a Ray cluster, see `petriscope.experiments.ray_cluster.open_cluster`; ``ray://HOST:PORT``: that of this
            address; None: this machine.
        jobs: how many at once; None: on a cluster as many as there is room for, else 1.
        cpus, gpus: of a job on a cluster.

    Returns:
        None: in this process, one after the other.

    Raises:
        RequestError: there is no such place, or a cluster cannot be reached.
        PetriscopeError: Ray is not installed.
    """
    for name, number, least in (("jobs", jobs, 1), ("cpus", cpus, 1), ("gpus", gpus, 0)):
        if number is not None and not number >= least:
            raise RequestError(f"{name} must be at least {least}; got {number}")
    if on is None:
        if cpus != 1 or gpus is not None:
            raise RequestError("--cpus and --gpus are of jobs on a cluster; give --on ray, too, or --jobs instead")
        yield Processes(jobs) if jobs is not None and jobs > 1 else None
        return
    scheme, _, address = on.partition("://")
    if scheme != "ray" or ("://" in on) != bool(address):
        raise RequestError(f"--on cannot be {shown(on)}; give ray, or ray://HOST:PORT")
    from petriscope.experiments.ray_cluster import open_cluster

    with open_cluster(address or None, jobs, cpus, gpus) as cluster:
        yield cluster
