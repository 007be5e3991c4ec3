"""Feed damaged files and odd options to the command line, and report what it must never do.

    make fuzz                               1,000 inputs
    make fuzz INPUTS=20000 SEED=7           more, and others
    python -m trials.fuzz --seed 7 --only 1234 --keep DIR     one of them again, with its files

Every input ends with a result or a sentence: no traceback, no death, no hang, no warning of a library, nothing left behind.
Input number i of a seed is always the same.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from trials.lab import Outcome, counted, in_workers, leftovers, run, warm_up
from trials.mutations import NUMBERS, TEXTS, VALUES, mutate
from trials.samples import SAMPLES, prepare

SECONDS = 10.0
SLOW = ("train", "bench", "evaluate", "calibrate", "ensemble", "adapt")  # commands that take a second; tried less often
OPTIONS = "options"  # the kind of input that is a command line
LINES = (
    "train recipe.yaml --quiet --out new",
    "audit set/cells.npz --quick --quiet --out audit",
    "evaluate run",
    "predict run images",
    "explain run images",
    "calibrate run",
    "compare run run",
    "report run",
    "data set/cells.npz",
    "bench suite.yaml --quiet",
    "ensemble run run",
    "adapt run --data other --out new",
    "data set/cells.npz --like run",
    "recipes",
    "models",
)


@dataclass(frozen=True)
class Found:
    """What went wrong with an input."""

    number: int
    kind: str
    way: str
    command: str
    problem: str


def draw(kind: str, folder: Path, rng: random.Random) -> tuple[list[str], str]:
    """Damage the input in ``folder``. Return the command to run on it, and what was done."""
    if kind == OPTIONS:
        return _odd_options(rng), "options"
    sample = SAMPLES[kind]
    files = sorted(path for pattern in sample.files for path in folder.glob(pattern) if path.is_file())
    ways = []
    for path in rng.sample(files, min(len(files), rng.choice((1, 1, 1, 2, 3)))):
        if path.is_file() and not path.is_symlink():
            ways.append(f"{mutate(path, rng)} of {path.relative_to(folder)}")
    weights = [1 if command.startswith(SLOW) else 4 for command in sample.commands]
    return shlex.split(rng.choices(sample.commands, weights)[0]), ", ".join(ways)


def _odd_options(rng: random.Random) -> list[str]:
    import typer.main

    from petriscope.cli.commands import app

    words = shlex.split(rng.choice(LINES))
    command: Any = typer.main.get_command(app).commands[words[0]]  # type: ignore[attr-defined]
    flags = [option for each in command.params for option in each.opts if option.startswith("--")]
    for _ in range(rng.choice((1, 1, 2))):
        flag = rng.choice([*flags, "--set"] if words[0] in ("train", "audit") else flags or ["--x"])
        if flag in ("--help", "--demo"):
            continue
        value = _setting(rng) if flag == "--set" else _word(rng)
        words += [flag] if rng.random() < 0.15 else [flag, value]
    if rng.random() < 0.3:
        words[rng.randrange(1, len(words))] = _word(rng) if len(words) > 1 else "x"
    return [word.replace("\x00", "") for word in words]  # the system passes none


def _word(rng: random.Random) -> str:
    plain = (
        "val",
        "train",
        "test",
        "soft",
        "soup",
        "d4",
        "flips",
        "cpu",
        "0.01",
        "0.95",
        "1",
        "0,1",
        "run",
        "set",
        "images",
    )
    value = rng.choice((*plain, *plain, *NUMBERS, *VALUES, *TEXTS))
    return (value if isinstance(value, str) else str(value)).encode("utf-8", "replace").decode()


def _setting(rng: random.Random) -> str:
    from petriscope.core.recipe import Recipe

    keys = list(_keys(Recipe))
    keys += [
        "model.widths",
        "model.hidden",
        "model.norm",
        "model.dropout",
        "optimizer.lr",
        "augment.0.p",
        "augment.0",
        "x",
    ]
    value = rng.choice((*NUMBERS, *VALUES))
    text = rng.choice(TEXTS) if rng.random() < 0.3 else json.dumps(value)
    return f"{rng.choice(keys)}={text}".encode("utf-8", "replace").decode()


def _keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += _keys(field.annotation, f"{prefix}{name}.")
    return keys


def one(number: int, seed: int, kinds: dict[str, Path], scratch: Path) -> tuple[Found | None, Outcome]:
    """Try one input in the folder ``scratch``, which is made anew."""
    rng = random.Random(f"{seed} {number}")
    kind = rng.choice(list(kinds))
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(kinds[kind], scratch)
    words, way = draw(kind, scratch, rng)
    outcome = run(words, scratch, SECONDS, lambda: os.environ.update(PETRISCOPE_CACHE=str(scratch / "cache")))
    problem = outcome.problem()
    if not problem and (left := leftovers(scratch)):
        problem = f"leaves {left[0]}"
    return (Found(number, kind, way, shlex.join(words), problem) if problem else None), outcome


def _work(numbers: range, seed: int, kinds: dict[str, Path], scratch: Path) -> Iterator[dict[str, Any]]:
    """Try these inputs. Yields the fields of `Found` of each problem."""
    for number in counted(numbers, "inputs of a worker"):
        found, _ = one(number, seed, kinds, scratch)
        if found:
            yield asdict(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="leave out the inputs before this one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--kind", action="append", choices=[*SAMPLES, OPTIONS], help="only these kinds of input")
    parser.add_argument("--only", type=int, help="try this input alone and show what it prints")
    parser.add_argument("--keep", type=Path, help="with --only: the folder for its files")
    asked = parser.parse_args()
    names = [name for name in asked.kind or SAMPLES if name != OPTIONS]
    warm_up()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as root:
        home = Path(root)
        kinds = prepare(home / "valid", names)
        if OPTIONS in (asked.kind or [OPTIONS]):
            kinds[OPTIONS] = kinds.get("run") or prepare(home / "valid", ["run"])["run"]
        if asked.only is not None:
            found, outcome = one(asked.only, asked.seed, kinds, asked.keep or home / "scratch")
            print(outcome.out + outcome.err, f"\nexit status {outcome.status}; {found or 'no problem'}")
            return int(found is not None)
        began = time.monotonic()
        results = _share_out(asked, kinds, home)
        return _report(results, asked, time.monotonic() - began)


def _share_out(asked: argparse.Namespace, kinds: dict[str, Path], home: Path) -> list[Found]:
    def work(job: int) -> Iterator[dict[str, Any]]:
        return _work(range(asked.first + job, asked.inputs, asked.jobs), asked.seed, kinds, home / f"scratch-{job}")

    return sorted((Found(**each) for each in in_workers(asked.jobs, home, work)), key=lambda each: each.number)


def _report(found: list[Found], asked: argparse.Namespace, seconds: float) -> int:
    counts, count = Counter(each.problem for each in found), asked.inputs - asked.first
    for problem, times in counts.most_common():
        first = next(each for each in found if each.problem == problem)
        print(
            f"{times:5} x {problem}\n        --only {first.number}: {first.kind}, {first.way}: petriscope {first.command}"
        )
    print(
        f"{count:,} inputs (seed {asked.seed}) in {seconds:.0f} s, {count / seconds:.0f} per second: "
        f"{len(found)} failed, of {len(counts)} kinds"
    )
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
