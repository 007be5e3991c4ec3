"""Kill commands at a write, fill the disk at a write, run two at once; then look at what is left.

    make torture                             50 kills, 25 full disks, 12 pairs
    make torture KILLS=500 SEED=7            more, and others
    python -m trials.torture --seed 7 --only "kill 123" --keep DIR     one of them again, with its files

After a kill or a full disk the same command (``train --resume`` for a training) must succeed, leave the files of an undisturbed
run with the same weights, predictions and metrics, and no temporary files. Trial number i of a seed is always the same.
"""

from __future__ import annotations

import argparse
import builtins
import errno
import io
import json
import os
import random
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from small_sources import make_npz, make_unsplit

from petriscope.training import adaptation
from trials.lab import LEFTOVER, Outcome, Started, counted, in_workers, leftovers, run, warm_up
from trials.samples import must, prepare

CALLS = ("fsync", "replace", "rename", "mkdir", "unlink", "rmdir")  # of os; opening a file to write it is one more
DAYS = 2 * 86400  # seconds by which leftovers are made older before the command runs again
VOLATILE = ("second", "started", "command", "memory")  # keys with these words may differ
NAMES = ("run", "run of masks", "ensemble")


@dataclass(frozen=True)
class Work:
    """A command that writes.

    Args:
        sample: the name of the sample in whose folder it runs.
        again: the command that goes on after a kill, if it is another one; it runs if the folder ``made`` is there.
    """

    sample: str
    command: str
    again: str = ""
    made: str = ""


WORKS = (
    Work("run", "train recipe.yaml --out new --quiet --test", "train --resume new --quiet --test", "new/recipe.yaml"),
    Work("run", "evaluate run --split train"),
    Work("run", "evaluate run --split val --tta flips"),
    Work("run", "calibrate run --tta d4"),
    Work("run", "adapt run --data elsewhere/cells.npz --unlabeled images --suggest 2 --out new"),
    Work("run", "report run"),
    Work("run", "predict run images --out answers.csv"),
    Work("run", "explain run images --out maps --method occlusion"),
    Work("run", "audit set/cells.npz --quick --quiet --out audit"),
    Work("run", "data images"),
    Work("run", "bench suite.yaml --quiet --out bench"),
    Work("ensemble", "ensemble run other --out new"),
    Work("ensemble", "compare run other --out page.html"),
    Work("run of masks", "evaluate run --split train"),
    Work("run of masks", "predict run images --out predicted"),
)
PAIRS = (
    ("evaluate run --split train", "evaluate run --split val"),
    ("evaluate run --split test", "calibrate run --tta d4"),
    ("calibrate run --tta d4", "calibrate run --tta flips"),
    ("evaluate run --split val", "report run"),
    ("train recipe.yaml --quiet", "train recipe.yaml --quiet"),
    ("train recipe.yaml --quiet --out new", "train recipe.yaml --quiet --out new"),
    ("bench suite.yaml --quiet --out bench", "bench suite.yaml --quiet --out bench"),
    ("data images", "data images"),
    ("audit set/cells.npz --quick --quiet --out audit", "audit set/cells.npz --quick --quiet --out audit"),
    ("predict run images --out answers.csv", "predict run images --out answers.csv"),
)


class Writes:
    """Counts the writes of this process, and does something at each."""

    def __init__(self, strike: Callable[[int], None]) -> None:
        self.count, self.strike = 0, strike

    def install(self) -> None:
        for name in CALLS:
            setattr(os, name, self._counted(getattr(os, name)))
        opened = io.open

        def open_file(file: Any, mode: str = "r", *args: Any, **how: Any) -> Any:
            if set(mode) & set("wax+") and not isinstance(file, int):
                self._next()
            return opened(file, mode, *args, **how)

        io.open = builtins.open = open_file  # type: ignore[assignment]

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **how: Any) -> Any:
            self._next()
            return call(*args, **how)

        return counted

    def _next(self) -> None:
        self.count += 1
        self.strike(self.count)


def kill_at(number: int) -> Callable[[], None]:
    def strike(count: int) -> None:
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return Writes(strike).install


def full_from(number: int) -> Callable[[], None]:
    """From this write on, nothing more can be written; removing files still works."""

    def strike(count: int) -> None:
        if count >= number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writes = Writes(strike)

    def install() -> None:
        removing = os.unlink, os.rmdir
        writes.install()
        os.unlink, os.rmdir = removing

    return install


def limited_to(size: int) -> Callable[[], None]:
    """No file may grow beyond so many bytes: writes inside libraries fail too."""

    def install() -> None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return install


def slow(rng: random.Random) -> Callable[[], None]:
    """Every write takes up to 20 ms, as on a busy disk."""
    return Writes(lambda count: time.sleep(rng.random() * 0.02)).install


def count_writes(words: list[str], folder: Path) -> int:
    """How many writes a command makes."""

    def install() -> None:
        note = folder.parent / "writes"
        Writes(lambda count: os.pwrite(descriptor, b"%09d" % count, 0)).install()
        descriptor = os.open(note, os.O_CREAT | os.O_WRONLY)

    note = folder.parent / "writes"
    note.unlink(missing_ok=True)
    run(words, folder, 120, install)
    return int(note.read_text() or 0) if note.exists() else 0


def contents(folder: Path) -> dict[str, Any]:
    """What counts of every file below ``folder``: numbers and text without times; of pages and images that they exist."""
    return {
        str(path.relative_to(folder)): _content(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(LEFTOVER.match(part) or part in (".lock", "cache") for part in path.parts)
    }


def _content(path: Path) -> Any:
    if path.suffix == ".json":
        return _steady(json.loads(path.read_text("utf-8")))
    if path.suffix == ".jsonl":
        return [_steady(json.loads(line)) for line in path.read_text("utf-8").splitlines()]
    if path.suffix == ".parquet":
        import pandas as pd

        return pd.read_parquet(path).sort_values(["split", "id"]).to_csv()
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return {name: np.nan_to_num(array).tobytes() for name, array in load_file(path).items()}
    return path.read_bytes() if path.suffix in (".yaml", ".csv") and "results" not in path.name else None


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _steady(each) for key, each in value.items() if not any(word in key for word in VOLATILE)}
    return [_steady(each) for each in value] if isinstance(value, list) else value


def make_old(folder: Path) -> None:
    """As if the command had been killed two days ago."""
    for path in folder.rglob("*"):
        if LEFTOVER.match(path.name):
            then = path.lstat().st_mtime - DAYS
            os.utime(path, (then, then), follow_symlinks=False)


class Torture:
    """The samples, and for every work the contents that an undisturbed run leaves and the number of its writes."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.valid = prepare(home / "valid", list(NAMES))
        make_unsplit(self.valid["run"] / "images", seed=20)  # of which the run has seen none
        make_npz(self.valid["run"] / "elsewhere", seed=9)
        adaptation.STEPS = 1
        self.undisturbed: dict[Work, tuple[dict[str, Any], int]] = {}

    def expected(self, work: Work) -> tuple[dict[str, Any], int]:
        if work not in self.undisturbed:
            folder = self.fresh(work.sample, self.home / "scratch")  # where trials run, since recipes name paths
            must(folder, *self.words(work.command))
            files = contents(folder)
            writes = count_writes(self.words(work.command), self.fresh(work.sample, folder))
            self.undisturbed[work] = files, writes
        return self.undisturbed[work]

    def fresh(self, sample: str, folder: Path) -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.valid[sample], folder)
        os.environ["PETRISCOPE_CACHE"] = str(folder / "cache")
        return folder

    @staticmethod
    def words(command: str) -> list[str]:
        return shlex.split(command)

    def kill(self, rng: random.Random, folder: Path) -> tuple[str, str]:
        work = rng.choice(WORKS)
        at = rng.randint(1, self.expected(work)[1])
        self.fresh(work.sample, folder)
        run(self.words(work.command), folder, 60, kill_at(at))
        return f"{work.command}, killed at write {at}", self.again(work, folder)

    def full(self, rng: random.Random, folder: Path) -> tuple[str, str]:
        work = rng.choice(WORKS)
        expected, writes = self.expected(work)
        self.fresh(work.sample, folder)
        if rng.random() < 0.5:
            at = rng.randint(1, writes)
            what, before = f"full from write {at}", full_from(at)
        else:
            size = rng.choice((0, 1, 100, 1000, 5000, 20_000, 100_000))
            what, before = f"no file beyond {size} bytes", limited_to(size)
        done = run(self.words(work.command), folder, 60, before)
        name = f"{work.command}, {what}"
        if problem := done.problem():
            return name, problem
        if done.finished and (differs := _differences(contents(folder), expected)):
            return name, f"exit 0, but {differs}"
        return name, self.again(work, folder) if not done.finished else _left(folder)

    def again(self, work: Work, folder: Path) -> str:
        """Run the command again. Return what is wrong with its end or its result."""
        make_old(folder)
        expected = self.expected(work)[0]
        complete = not _differences(contents(folder), expected)
        resumes = bool(work.again) and (folder / work.made).exists()
        done = run(self.words(work.again if resumes else work.command), folder, 120)
        if problem := done.problem():
            return f"again: {problem}"
        if not done.finished and not (complete and "exists" in done.err):
            return f"again: exit {done.status}: {_last(done)}"
        if differs := _differences(contents(folder), expected):
            return f"again: other than undisturbed: {differs}"
        return _left(folder)

    def two(self, rng: random.Random, folder: Path) -> tuple[str, str]:
        pair = rng.choice(PAIRS)
        self.fresh("run", folder)
        started = [Started(self.words(command), folder, slow(random.Random(rng.random()))) for command in pair]
        ends = [each.wait(120) for each in started]
        name = " | ".join(pair)
        for command, done in zip(pair, ends, strict=True):
            if problem := done.problem():
                return name, problem
            if not done.finished and not any(word in done.err for word in ("another", "exists", "wait")):
                return name, f"exit {done.status}: {_last(done)}"
            if done.finished and (missing := _missing(command, folder)):
                return name, f"exit 0, but {missing}"
        return name, "" if any(done.finished for done in ends) else "none of them succeeded"


def _last(done: Outcome) -> str:
    return ([line for line in done.err.splitlines() if line.strip()] or ["no word"])[-1][:150]


def _left(folder: Path) -> str:
    left = leftovers(folder)
    return f"leaves {left[0].split('/')[-1].rsplit('.', 2)[0]}… in {len(left)} places" if left else ""


def _differences(found: dict[str, Any], expected: dict[str, Any]) -> str:
    for name in sorted(set(found) | set(expected)):
        if name not in found:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} is new"
        if found[name] != expected[name]:
            return f"{name} differs{_key(found[name], expected[name])}"
    return ""


def _key(found: Any, expected: Any) -> str:
    """Where two values differ: `` at test.accuracy: 0.5 instead of 0.6``."""
    if isinstance(found, dict) and isinstance(expected, dict):
        keys = [key for key in {**found, **expected} if found.get(key) != expected.get(key)]
        return f".{keys[0]}{_key(found.get(keys[0]), expected.get(keys[0]))}"
    return f": {str(found)[:60]} instead of {str(expected)[:60]}"


def _missing(command: str, folder: Path) -> str:
    """What a command that succeeded should have left in the run and has not."""
    words = shlex.split(command)
    if words[0] != "evaluate":
        return ""
    import pandas as pd

    split = words[words.index("--split") + 1]
    results = json.loads((folder / "run" / "results.json").read_text("utf-8"))
    rows = pd.read_parquet(folder / "run" / "predictions.parquet")
    if not results.get(split):
        return f"the metrics of {split} are lost"
    return "" if (rows["split"] == split).any() else f"the predictions of {split} are lost"


KINDS = {"kill": Torture.kill, "full": Torture.full, "two": Torture.two}
SHARES = {"kill": 1, "full": 2, "two": 4}  # kills per trial of the kind


def one(torture: Torture, kind: str, number: int, seed: int, folder: Path) -> tuple[str, str]:
    """Do one trial. Return what was done, and what was wrong (empty: nothing)."""
    return KINDS[kind](torture, random.Random(f"{seed} {kind} {number}"), folder)


def _work(asked: argparse.Namespace, job: int, home: Path) -> Iterator[list[Any]]:
    """Do a worker's trials. Yields kind, number, what was done and what was wrong of each that failed."""
    home.mkdir()
    torture = Torture(home)
    for kind, share in SHARES.items():
        for number in counted(range(job, asked.kills // share, asked.jobs), f"trials ({kind}) of a worker"):
            name, problem = one(torture, kind, number, asked.seed, home / "scratch")
            if problem:
                yield [kind, number, name, problem]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--kills", type=int, default=50, help="and half as many full disks, and a quarter as many pairs"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", metavar="KIND NUMBER", help="do this trial alone")
    parser.add_argument("--keep", type=Path, help="with --only: the folder for its files")
    asked = parser.parse_args()
    warm_up()
    with tempfile.TemporaryDirectory(prefix="torture-") as root:
        home = Path(root)
        if asked.only:
            kind, number = asked.only.split()
            found = one(Torture(home), kind, int(number), asked.seed, home / "scratch")
            if asked.keep:
                shutil.copytree(home / "scratch", asked.keep, symlinks=True)
            print(*found, sep="\n")
            return int(bool(found[1]))
        began = time.monotonic()
        found_all = sorted(in_workers(asked.jobs, home, lambda job: _work(asked, job, home / str(job))))
        return _report(found_all, asked, time.monotonic() - began)


def _report(found: list[list[Any]], asked: argparse.Namespace, seconds: float) -> int:
    for kind, number, name, problem in found:
        print(f'--only "{kind} {number}": petriscope {name}\n        {problem}')
    counts = Counter(kind for kind, *_ in found)
    said = ", ".join(f"{kind}: {counts[kind]} of {asked.kills // share} failed" for kind, share in SHARES.items())
    print(f"{said} (seed {asked.seed}, {seconds:.0f} s)")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
