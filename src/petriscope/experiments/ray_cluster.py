"""Jobs on the nodes of a Ray cluster. Ray places them, and starts those again whose process or node has died.

What runs on a node looks first whether the node has the same versions and sees the same files. These functions are defined within
others, so that Ray sends them by value: a node on which Petriscope is missing can still say so.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from platform import python_version
from types import ModuleType
from typing import Any

from petriscope.core.device import cores
from petriscope.core.errors import PetriscopeError, RequestError, shortened, shown
from petriscope.core.files import temporary_folder
from petriscope.core.progress import say
from petriscope.core.version import __version__
from petriscope.core.worker import THREADS, Command, error_in

CLIENT_PORT = 10001  # of Ray's server for clients, if an address has none
REACHED = 5.0  # seconds until an address has to answer
ANSWERED = 120.0  # seconds until all nodes have to answer, which start a process for that
SAVED = 120.0  # seconds that trainings have to save their progress
RELEASED = 60.0  # seconds until a process that Ray has given up has to leave its run alone
LOOK_EVERY = 1.0  # seconds between looks at the jobs, which are asked of the cluster
RESTARTS = 3  # of a job whose process or node has died
OBJECTS = 80 * 2**20  # bytes of Ray's store of objects, about the least that it takes; jobs hand one another nothing


@dataclass(frozen=True)
class Node:
    """A node of the cluster that is alive."""

    id: str
    host: str
    cpus: float
    gpus: float

    def fits(self, cpus: float, gpus: float) -> int:
        """How many jobs with so many processors can run here at once."""
        return int(min(self.cpus // cpus, self.gpus // gpus if gpus else float("inf")))


@dataclass(frozen=True)
class Task:
    """A job on a node.

    Args:
        began: the file with one line for each start, the host.
    """

    reference: Any
    command: Command
    began: Path
    outcome: Callable[[Any], str | None]

    def error(self) -> str | None:
        return self.outcome(self)


@dataclass
class Cluster:
    """A Ray cluster.

    Args:
        most: jobs that are started at once; None: all.
        cpus: of a job; its threads, unless OMP_NUM_THREADS is set.
        gpus: of a job that may use one; None: 1 if its recipe asks for CUDA or, with ``device: auto``, if the cluster has GPUs.
    """

    ray: ModuleType
    most: int | None
    cpus: int
    gpus: float | None
    _starts: dict[Path, int] = field(default_factory=dict)
    _scratch: Path = field(default=Path())
    _look: Callable[[], str] = field(default=lambda: "")

    @property
    def nodes(self) -> list[Node]:
        found = []
        for each in self.ray.nodes():
            if each["Alive"]:
                has = each["Resources"]
                found.append(
                    Node(each["NodeID"], each["NodeManagerHostname"], has.get("CPU", 0.0), has.get("GPU", 0.0))
                )
        return found

    @property
    def hosts(self) -> int:
        return len({node.host for node in self.nodes if node.cpus >= self.cpus})

    @property
    def threads(self) -> int:
        return self.cpus

    def room(self, device: str) -> int:
        return sum(node.fits(self.cpus, self._gpus_for(device)) for node in self.nodes) or 1

    def _gpus_for(self, device: str) -> float:
        if device == "auto":
            if self.gpus is not None:
                return self.gpus
            return 1 if any(node.gpus for node in self.nodes) else 0
        return (1 if self.gpus is None else self.gpus) if device.startswith("cuda") else 0

    @contextmanager
    def scratch(self, folder: Path, named: Sequence[Any], devices: Iterable[str]) -> Iterator[Path]:
        fitting: dict[str, Node] = {}
        for device in set(devices):
            fitting |= {node.id: node for node in self._fitting(device)}
        with temporary_folder(folder.absolute() / "jobs") as made:
            self._scratch, self._look = made, look_from(made, _paths(named), _versions())
            self._check(list(fitting.values()))
            yield made

    def _fitting(self, device: str) -> list[Node]:
        """The nodes that a job on that device can run on."""
        gpus, nodes = self._gpus_for(device), self.nodes
        fitting = [node for node in nodes if node.fits(self.cpus, gpus)]
        if not fitting:
            has = "; ".join(f"{node.host} has {node.cpus:g} CPUs and {node.gpus:g} GPUs" for node in nodes)
            raise RequestError(
                f"no node of the Ray cluster has the {self.cpus} CPUs and {gpus:g} GPUs of a job ({shortened(has, 300)}); "
                "change --cpus or --gpus"
            )
        return fitting

    def _check(self, nodes: Sequence[Node]) -> None:
        """Let each node look whether jobs can run there.

        Raises:
            RequestError: they cannot.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        task = self.ray.remote(self._look)
        asked = {}
        for node in nodes:
            there = NodeAffinitySchedulingStrategy(node.id, soft=False)
            asked[task.options(num_cpus=0, scheduling_strategy=there).remote()] = node
        answered, silent = self.ray.wait(list(asked), num_returns=len(asked), timeout=ANSWERED)
        if silent:
            raise RequestError(
                f"{len(silent)} of {len(asked)} nodes of the Ray cluster did not answer within {ANSWERED:g} seconds, such as "
                f"{asked[silent[0]].host}"
            )
        for reference in answered:
            try:
                said = self.ray.get(reference)
            except Exception as error:  # whatever Ray cannot do there
                said = f"it fails at the first task ({_in_a_line(error)})"
            if said:
                raise RequestError(f"jobs cannot run on node {asked[reference].host} of the Ray cluster: {said}")

    def start(self, command: Command) -> Task:
        gpus = self._gpus_for(command.device)
        began = self._scratch / f"{command.log.name}.began"
        task = self.ray.remote(job_on(self._look))
        options: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": gpus, "name": command.log.stem}
        # A process that was killed is a job to start again; what a job says itself is its result.
        options |= {"max_retries": RESTARTS, "retry_exceptions": [ChildProcessError]}
        environment = {THREADS: os.environ.get(THREADS, str(self.threads)), **command.environment}
        if not gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ""  # the devices of a node may be those of other jobs
        run = None if command.run is None else str(command.run)
        with _sentences("start a job on"):
            reference = task.options(**options).remote(
                list(command.words), run, str(command.log), str(began), environment, RELEASED
            )
        return Task(reference, command, began, self._error)

    def wait(self, jobs: Sequence[Any], seconds: float) -> list[Any]:
        if not jobs:
            time.sleep(seconds)
            return []
        with _sentences("follow the jobs on"):
            ended, _ = self.ray.wait(
                [job.reference for job in jobs], num_returns=len(jobs), timeout=max(seconds, LOOK_EVERY)
            )
        for job in jobs:
            self._tell_starts(job)
        done = set(ended)
        return [job for job in jobs if job.reference in done]

    def _tell_starts(self, job: Task) -> None:
        """Say that a job was started again."""
        with suppress(OSError):
            hosts = job.began.read_text(encoding="utf-8").splitlines()
            before = self._starts.get(job.began, 1)
            if len(hosts) > before:
                self._starts[job.began] = len(hosts)
                say(f"{job.command.log.stem}: its process or node died on {hosts[-2]}; it goes on on {hosts[-1]}")

    def _error(self, job: Task) -> str | None:
        try:
            status, said = self.ray.get(job.reference)
        except ChildProcessError as error:
            cause = getattr(error, "cause", error)
            return f"{cause}, after {_starts(job)}; it may have run out of memory"
        except self.ray.exceptions.RayTaskError as error:
            return f"{type(error.cause).__name__} on its node: {_in_a_line(error.cause)}"
        except Exception as error:  # there are many, of nodes and processes
            return f"its node or process died, after {_starts(job)} ({_in_a_line(error)})"
        if said:
            return str(said)
        return error_in(job.command.log, status) if status else None

    def stop(self, jobs: Sequence[Any]) -> None:
        if not jobs:
            return
        with suppress(Exception):  # a cluster that is gone has no jobs
            for job in jobs:
                self.ray.cancel(job.reference)
            self.ray.wait([job.reference for job in jobs], num_returns=len(jobs), timeout=SAVED)


def _starts(job: Task) -> str:
    try:
        starts = len(job.began.read_text(encoding="utf-8").splitlines())
    except OSError:
        starts = 0
    return "1 start" if starts == 1 else f"{starts} starts"


def look_from(scratch: Path, paths: Sequence[str], versions: dict[str, str]) -> Callable[[], str]:
    """A function for a node that looks whether jobs can run there. It returns what is wrong; nothing if nothing is.

    Args:
        scratch: a folder that only this machine and those that see its files have.
        paths: of data; they exist here.
        versions: of Python and packages here.
    """
    here, folder = socket.gethostname(), str(scratch)

    def look() -> str:
        import platform
        from importlib import metadata
        from pathlib import Path

        for name, wanted in versions.items():
            try:
                if name == "petriscope":
                    from petriscope.core.version import __version__ as found
                else:
                    found = platform.python_version() if name == "Python" else metadata.version(name)
            except ImportError:
                return f"{name} is not installed there; install the same versions everywhere"
            if found.partition("+")[0] != wanted.partition("+")[0]:
                return f"it has {name} {found}, and {here} has {wanted}; install the same versions everywhere"
        if not Path(folder).is_dir():
            return (
                f"it does not see the folder {Path(folder).parent} of {here}; choose an --out that all machines see "
                "under the same path"
            )
        missing = [path for path in paths if not Path(path).exists()]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            return f"it does not see {missing[0]}{more}; put the data where all machines see them under the same path"
        return ""

    return look


def job_on(look: Callable[[], str]) -> Callable[..., tuple[int, str]]:
    """A function for a node that runs a command of Petriscope there.

    Args:
        look: whether it can run there, as from `look_from`; a node may have come later than the others.
    """

    def job(
        words: list[str], run: str | None, log: str, began: str, environment: dict[str, str], released: float
    ) -> tuple[int, str]:
        """Returns the status of the command, and what is wrong with this node.

        Raises:
            ChildProcessError: the process was killed.
        """
        import socket
        import time
        from pathlib import Path

        if said := look():
            return 1, f"node {socket.gethostname()}: {said}"
        from petriscope.core.files import wait_until_free
        from petriscope.core.worker import Command, start_worker, stop_workers, words_now

        with Path(began).open("a", encoding="utf-8") as starts:
            starts.write(f"{socket.gethostname()}\n")
        command = Command(tuple(words), Path(log), None if run is None else Path(run))
        if command.run is not None:
            wait_until_free(command.run / ".lock", released)
        worker = start_worker(words_now(command), command.log, environment)
        try:
            # Ray ends a job by an exception, which comes between two steps of Python.
            while worker.process.poll() is None:
                time.sleep(0.2)
        finally:
            stop_workers([worker])
        status = worker.process.returncode
        if status < 0:
            raise ChildProcessError(f"the process of the job was killed by signal {-status}")
        return status, ""

    return job


@contextmanager
def open_cluster(
    address: str | None, jobs: int | None = None, cpus: int = 1, gpus: float | None = None
) -> Iterator[Cluster]:
    """Connect to a Ray cluster; without one, start Ray on this machine, until the end.

    Args:
        address: ``HOST:PORT`` of the cluster's server for clients; None: the cluster that ``RAY_ADDRESS`` names, or that ``ray
            start`` has started on this machine, or a new one.
        jobs: how many at once; None: as many as there is room for.
        cpus, gpus: see `Cluster`.

    Raises:
        RequestError: there is no cluster at that address, or it has another version of Python or Ray.
        PetriscopeError: Ray is not installed.
    """
    ray = import_ray()
    if ray.is_initialized():  # by whoever calls this from Python
        yield Cluster(ray, jobs, cpus, gpus)
        return
    _connect(ray, address)
    try:
        yield Cluster(ray, jobs, cpus, gpus)
    finally:
        with suppress(Exception):
            ray.shutdown()


def import_ray() -> ModuleType:
    """Ray, which reports nothing about its use to anybody and keeps silent.

    Raises:
        PetriscopeError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns that this will change
    os.environ.setdefault("RAY_worker_niceness", "0")  # as processes of --jobs; else 15, which other programs starve
    try:
        import ray
    except ImportError:
        raise PetriscopeError("--on ray needs Ray; install it with pip install 'petriscope[ray]'") from None
    with suppress(AttributeError, ImportError):
        from ray._private import worker

        # It has no setting for this: it prints to stdout which process has died. That is said here, and stdout is for results.
        worker.print_to_stdstream = lambda *args, **options: None
    return ray


def _connect(ray: ModuleType, address: str | None) -> None:
    if address is not None:
        address = f"ray://{address if ':' in address else f'{address}:{CLIENT_PORT}'}"
    else:
        address = _running()
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "CRITICAL"}
    if address is not None:
        _reach(address)
    else:
        options |= {"num_cpus": cores(), "object_store_memory": OBJECTS, "include_dashboard": False}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # With auto, which finds the same address, Ray takes the token of a cluster that asks for one from the home folder.
            found = address if address is not None and address.startswith("ray://") else "auto"
            ray.init(address="local" if address is None else found, **options)
    except Exception as error:  # of sockets, of gRPC, of versions that differ
        where = "Ray cannot be started here" if address is None else f"no connection to the Ray cluster at {address}"
        raise RequestError(f"{where}: {_in_a_line(error)}{_hint(address)}") from None
    finally:
        with suppress(ValueError):  # another thread than the main one
            signal.signal(signal.SIGTERM, on_sigterm)  # which Ray has replaced


def _running() -> str | None:
    """The address of the cluster that the environment names, or that ``ray start`` has noted on this machine."""
    named = os.environ.get("RAY_ADDRESS", "")
    if named not in ("", "auto"):
        return None if named == "local" else named
    temporary = os.environ.get("TMPDIR") if sys.platform == "linux" else None
    note = Path(os.environ.get("RAY_TMPDIR") or temporary or "/tmp") / "ray" / "ray_current_cluster"
    with suppress(OSError):
        return note.read_text(encoding="utf-8").strip() or None
    return None


def _reach(address: str) -> None:
    """Look whether something answers at an address; Ray itself would try for minutes.

    Raises:
        RequestError: nothing does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise RequestError(f"{shown(address)} is no address of a Ray cluster; it has to be HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACHED).close()
    except (OSError, OverflowError, UnicodeError) as error:
        why = "it does not answer" if isinstance(error, TimeoutError) else _in_a_line(error)
        raise RequestError(
            f"there is no Ray cluster at {address} ({why}). ray start --head starts one and prints its address; "
            "ray stop removes what is left of one that has ended"
        ) from None


def _hint(address: str | None) -> str:
    if address is not None and address.startswith("ray://"):
        return (
            f"; the port has to be that of its server for clients, {CLIENT_PORT} unless ray start was told another, and a "
            "cluster that asks for a token needs RAY_AUTH_MODE=token here"
        )
    return ""


def _in_a_line(error: Exception) -> str:
    """What an error of Ray says, which often has many lines."""
    return shortened(" ".join(str(error).split()), 300) or type(error).__name__


@contextmanager
def _sentences(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise PetriscopeError(
            f"cannot {what} the Ray cluster any more ({_in_a_line(error)}); the same command goes on when it is there again"
        ) from error


def _versions() -> dict[str, str]:
    return {"Python": python_version(), "petriscope": __version__, "torch": metadata.version("torch")}


def _paths(named: Sequence[Any]) -> list[str]:
    """The files and folders that plain values name, and the folders that these and patterns are in."""
    found: set[str] = set()

    def add(value: object) -> None:
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list | tuple):
            for each in value:
                add(each)
        elif isinstance(value, str) and value.startswith(os.sep):
            found.update(path for path in (value, str(Path(value).parent)) if Path(path).exists())

    for each in named:
        add(each)
    return sorted(found)
