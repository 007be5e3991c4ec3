"""Train the runs that a suite plans, and compare the finished ones."""

from __future__ import annotations

import json
import shutil
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from petriscope.core.arguments import checked_arguments
from petriscope.core.csv_tables import csv_text
from petriscope.core.errors import DataError, Interrupted, PetriscopeError, RequestError, near
from petriscope.core.files import locked, slug, write_text
from petriscope.core.progress import duration, say
from petriscope.data import Dataset, load_dataset
from petriscope.experiments.compare import Comparison, compare_groups, compared_metric
from petriscope.experiments.ensemble import ensemble
from petriscope.experiments.evaluate import evaluate
from petriscope.experiments.parallel import train_side_by_side
from petriscope.experiments.pools import Pool, open_pool
from petriscope.experiments.suite import Planned, Split, Suite, plan
from petriscope.experiments.train import resume, train
from petriscope.report import wording
from petriscope.report.compare import write_comparison
from petriscope.run.folder import Run
from petriscope.tasks import find_task


@dataclass(frozen=True)
class Outcome:
    """The outcome of a suite.

    Args:
        comparison: of the finished runs; None if no run is finished.
        runs: number of runs in the suite.
        failures: error messages, by run.
        page, table: the files that are written if there is a comparison.
    """

    comparison: Comparison | None
    runs: int
    failures: dict[str, str]
    page: Path
    table: Path


@checked_arguments
def run_suite(
    suite: Suite,
    out: Path | None = None,
    data: str | None = None,
    seeds: Sequence[int] = (),
    split: Split | None = None,
    only: Sequence[str] = (),
    quiet: bool = False,
    jobs: int | None = None,
    on: str | None = None,
    cpus: int = 1,
    gpus: float | None = None,
) -> Outcome:
    """Train the runs of a suite that are not finished, and compare the finished ones.

    Everything is checked before the first training. Finished runs are kept and interrupted ones are resumed. A run that
    fails is reported, and the others continue. The test split is read only after all runs of the suite are finished.

    Args:
        out: folder for the run folders, ``comparison.html`` and ``results.csv``; None: ``runs/<suite>``.
        data: a source to use instead of the suite's.
        seeds: seeds to use instead of the suite's.
        split: the split to compare on; None: the suite's.
        only: labels of the methods to train now.
        jobs: number of simultaneous trainings; if more than 1, each has its own process. None: 1, or on a cluster as many as
            it has room for.
        on: where trainings run, ``ray`` or ``ray://HOST:PORT``; None: here. Each has so many ``cpus`` and ``gpus`` of a
            cluster; see `petriscope.experiments.pools.open_pool`.

    Raises:
        RequestError: the request is wrong; nothing was trained.
        Interrupted: Ctrl-C; the same call continues from there.
    """
    out = out if out is not None else Path("runs") / slug(suite.name)
    begins = _to_train(plan(suite, out, data, seeds), only)
    with open_pool(on, jobs, cpus, gpus) if begins else nullcontext() as pool:
        return run_suite_in(pool, suite, out, data, seeds, split, only, quiet)


def run_suite_in(
    pool: Pool | None,
    suite: Suite,
    out: Path,
    data: str | None = None,
    seeds: Sequence[int] = (),
    split: Split | None = None,
    only: Sequence[str] = (),
    quiet: bool = False,
) -> Outcome:
    """`run_suite` in a pool that is open; None: in this process."""
    for label in only:
        if label not in suite.methods:
            raise RequestError(f"{suite.name} has no method {label!r}; {near(label, suite.methods)}")
    decisive = split or suite.evaluate
    _check_data(_to_train(plan(suite, out, data, seeds), only), decisive, suite.metric)
    with locked(out / ".lock", lambda: say(f"another process runs a suite in {out}; waiting for its end")):
        return _run(suite, plan(suite, out, data, seeds), out, decisive, only, quiet, pool)


def _to_train(runs: Sequence[Planned], only: Sequence[str]) -> list[Planned]:
    return [planned for planned in runs if not planned.finished and (not only or planned.label in only)]


def _run(
    suite: Suite,
    runs: Sequence[Planned],
    out: Path,
    decisive: Split,
    only: Sequence[str],
    quiet: bool,
    pool: Pool | None,
) -> Outcome:
    """Train what is not finished, and compare; see `run_suite`."""
    todo = _to_train(runs, only)
    if not quiet:
        say(f"{suite.name}: {len(runs)} runs, {sum(p.finished for p in runs)} finished, {len(todo)} to train; in {out}")
    failures: dict[str, str] = {}
    if pool is not None and todo:
        trainings = [training for planned in todo for training in planned.trainings if not training.finished]
        with go_on("training"):
            failures = train_side_by_side(trainings, pool, out, quiet)
        todo = [planned for planned in todo if not planned.finished and not _failed(planned, failures)]
    failures |= train_all(todo, runs, quiet)
    unfinished = [planned for planned in runs if not planned.finished]
    notes = []
    if unfinished:
        some = wording.plural(len(runs), "run")
        notes.append(f"{len(unfinished)} of {some} are not finished and not in the table, such as {unfinished[0]}.")
    if decisive == "test" and unfinished:
        decisive = "val"
        notes.append("The test split was not read: this happens only when all runs of the suite are finished.")
    with go_on("evaluation"):
        for planned in runs:
            if planned.finished and Run(planned.folder).results.split(decisive) is None:
                evaluate(planned.folder, split=decisive, quiet=quiet)
    page, table = out / "comparison.html", out / "results.csv"
    groups: dict[str, list[Run]] = {}
    for planned in runs:
        if planned.finished:
            groups.setdefault(planned.label, []).append(Run(planned.folder))
    if not groups:
        return Outcome(None, len(runs), failures, page, table)
    groups = {label: groups[label] for label in suite.methods if label in groups}
    baseline = suite.baseline if suite.baseline in groups else next(iter(groups))
    if baseline != suite.baseline:
        notes.append(f"The suite's baseline, {suite.baseline}, is not finished; the baseline here is {baseline}.")
    comparison = compare_groups(groups, baseline, decisive, suite.metric, notes)
    write_comparison(comparison, page, suite.name, suite.about)
    write_text(table, _results(groups))
    return Outcome(comparison, len(runs), failures, page, table)


def _failed(planned: Planned, failures: Mapping[str, str]) -> bool:
    return any(str(training) in failures for training in planned.trainings)


def _check_data(todo: Sequence[Planned], split: Split, metric: str | None) -> None:
    """Load the data once per data section among the runs, and check the metric for their task, so that errors are found
    before hours of training."""
    forms: dict[str, list[Planned]] = {}
    for planned in todo:
        for training in planned.trainings:
            forms.setdefault(json.dumps(training.recipe.data.model_dump(mode="json")), []).append(training)
    for members in forms.values():
        dataset = load_dataset(members[0].recipe.data)
        compared_metric(dataset.task, metric)
        for name in ("train", split):
            dataset.split(name)
        for planned in members:
            if planned.begun:
                check_unchanged(planned, dataset)


def check_unchanged(begun: Planned, dataset: Dataset) -> None:
    """Check that the data of a training are those that it was begun with.

    Raises:
        DataError: they are not.
    """
    if Run(begun.folder).environment.data.fingerprint != dataset.fingerprint:
        raise DataError(
            f"the data at {begun.recipe.data.origin} have changed since {begun.folder} was started; move this folder away, or "
            "choose another --out"
        )


def train_all(
    todo: Sequence[Planned],
    runs: Sequence[Planned],
    quiet: bool,
    begin: Callable[[Planned, int], object] | None = None,
) -> dict[str, str]:
    """Train one run after the other. Returns the error messages of the runs that failed, by run.

    Args:
        begin: trains a run that was not begun; it is also told how many are left, with this one. None: as its recipe says.
    """
    failures: dict[str, str] = {}
    for number, planned in enumerate(todo):
        if not quiet:
            left = _time_left(todo[number:], runs)
            end = f"; about {duration(left)} left" if left is not None else ""
            say(f"\nrun {number + 1} of {len(todo)}: {planned}{end}")
        with go_on(f"run {number + 1} of {len(todo)}, {planned}"):
            try:
                if begin is None or planned.begun:
                    _train(planned, quiet)
                else:
                    begin(planned, len(todo) - number)
            except Interrupted:
                raise
            except PetriscopeError as error:
                failures[str(planned)] = str(error)
            except Exception as error:  # a bug in one method must not stop the other trainings
                failures[str(planned)] = f"{type(error).__name__}: {error}"
                say(traceback.format_exc())
        if str(planned) in failures:
            say(f"failed: {planned}: {failures[str(planned)]}")
    return failures


def _train(planned: Planned, quiet: bool) -> None:
    """Train or resume a run. For an ensemble, train its unfinished members first, then join them."""
    if planned.ensemble is None or (planned.begun and Run(planned.folder).finished):
        if planned.begun:  # if it is finished, it lacks its report
            resume(planned.folder, quiet)
        else:
            train(planned.recipe, planned.folder, quiet)
        return
    for member in planned.members:
        if not member.finished:
            if not quiet:
                say(str(member))
            _train(member, quiet)
    if planned.begun:  # an ensemble of which something is missing
        shutil.rmtree(planned.folder)
    ensemble([member.folder for member in planned.members], planned.ensemble, planned.folder, quiet)


@contextmanager
def go_on(where: str) -> Iterator[None]:
    """On an interrupt, say how to continue the suite."""
    try:
        yield
    except (KeyboardInterrupt, Interrupted):
        raise Interrupted(
            f"stopped during {where}; progress is saved, and the same command continues from here"
        ) from None


def _time_left(todo: Sequence[Planned], runs: Sequence[Planned]) -> float | None:
    """Estimated seconds of training left, from finished runs of the same method, or of any method."""
    spent: dict[str, list[float]] = {}
    for planned in runs:
        training = Run(planned.folder).results.training if planned.begun else None
        if training is not None and training.seconds is not None:
            spent.setdefault(planned.label, []).append(training.seconds)
    every = [seconds for members in spent.values() for seconds in members]
    if not every:
        return None
    expected = [spent.get(planned.label, every) for planned in todo]
    return sum(sum(members) / len(members) for members in expected)


def _results(groups: Mapping[str, Sequence[Run]]) -> str:
    """One line per run and split, as CSV."""
    import pandas as pd

    rows = []
    for label, runs in groups.items():
        for run in runs:
            results = run.results
            cost, training, task = results.cost, results.training, find_task(results.task)
            for split in ("val", "test"):
                evaluation = results.split(split)
                if evaluation is None:
                    continue
                first = task.metrics[0].key
                low, high = evaluation.metric(first).ci95 or (None, None)
                rows.append(
                    {
                        "method": label,
                        "seed": run.recipe.seed,
                        "split": split,
                        "n": evaluation.n,
                        **{info.key: evaluation.value(info.key) for info in task.metrics},
                        f"{first}_low": low,
                        f"{first}_high": high,
                        "best_epoch": None if training is None else training.best_epoch,
                        "epochs": None if training is None else training.epochs,
                        "training_seconds": None if training is None else training.seconds,
                        "parameters": None if cost is None else cost.parameters,
                        "multiply_adds": None if cost is None else cost.multiply_adds,
                        "folder": run.folder.name,
                    }
                )
    return csv_text(pd.DataFrame(rows))
