"""Tuning: search the settings of a recipe on val, and train the best with fresh seeds beside the recipe itself."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petriscope.core.arguments import checked_arguments
from petriscope.core.device import choose_device, enough_memory, is_out_of_memory
from petriscope.core.errors import Diverged, Interrupted, PetriscopeError, RequestError, near, shown
from petriscope.core.files import check_files, json_text, locked, path_text, slug, write_text
from petriscope.core.progress import Progress, duration, say
from petriscope.core.recipe import Recipe, load_recipe
from petriscope.core.results import Epoch
from petriscope.data import Dataset, load_dataset
from petriscope.experiments import study as studies
from petriscope.experiments.bench import run_suite_in
from petriscope.experiments.pools import Command, Job, Pool, open_pool
from petriscope.experiments.space import AUTO, Choices, Space, Span, label, load_space, read_space, value_in
from petriscope.experiments.study import FAILURE, SECONDS, Budget, Study
from petriscope.experiments.suite import Method, Suite
from petriscope.experiments.train import begin, reopen
from petriscope.report.metrics import in_sentence
from petriscope.report.tune import write_tuning
from petriscope.report.wording import plural
from petriscope.run.comparison import Comparison
from petriscope.run.folder import Run, is_run
from petriscope.run.trackers import check_trackers
from petriscope.run.tuning import THE_RECIPE, Confirmed, Parameter, Trial, Tuning, ranked
from petriscope.training.build import absolute_paths, check_parts
from petriscope.training.loop import Trainer, interruptible

if TYPE_CHECKING:
    import optuna

LOOK_EVERY = 0.5  # seconds
DEFAULT_TRIALS = 40
STORAGE = "PETRISCOPE_STORAGE"  # the environment variable of --storage


@dataclass(frozen=True)
class Options:
    """How to search; see `tune`."""

    trials: int | None = None
    minutes: float | None = None
    storage: str | None = None
    sampler: str = "tpe"
    pruner: str = "halving"
    first_rung: int | None = None
    reduction: int = 3
    best: int = 3
    seeds: int = 3
    jobs: int = 1

    def check(self) -> None:
        for name, value, known in (
            ("sampler", self.sampler, studies.SAMPLERS),
            ("pruner", self.pruner, studies.PRUNERS),
        ):
            if value not in known:
                raise RequestError(f"--{name} cannot be {shown(value)}; {near(value, known)}")
        least = {"trials": 1, "reduction": 2, "best": 0, "seeds": 1, "jobs": 1}
        for name, number in least.items():
            given = getattr(self, name)
            if given is not None and given < number:
                raise RequestError(f"{name} must be at least {number}; got {given}")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise RequestError(f"minutes must be more than 0; got {self.minutes:g}")


@dataclass(frozen=True)
class Plan:
    """What a tuning does; all of it was checked.

    Args:
        metric: what is searched for on val; ``higher``: whether more of it is better.
        rungs: after how many epochs trials may be stopped.
    """

    recipe: Recipe
    dataset: Dataset
    space: Space
    folder: Path
    metric: str
    higher: bool
    rungs: tuple[int, ...]
    options: Options

    @property
    def budget(self) -> Budget:
        options = self.options
        trials = DEFAULT_TRIALS if options.trials is None and options.minutes is None else options.trials
        return Budget(trials, None if options.minutes is None else 60 * options.minutes, options.jobs)

    @property
    def settings(self) -> dict[str, Any]:
        """What has to be the same for all trials of a study, as plain values."""
        return {
            "digest of the data": self.dataset.fingerprint,
            "recipe": studies.identity(self.recipe),
            "space": {key: str(value) for key, value in self.space.plain.items()},
            "rungs": list(self.rungs),
            "reduction": self.options.reduction,
            "sampler": self.options.sampler,
            "pruner": self.options.pruner,
        }


@enough_memory()
@checked_arguments
def tune(
    recipe: Recipe | str | PathLike[str],
    space: str | PathLike[str] | Mapping[str, Any] = AUTO,
    out: str | Path | None = None,
    *,
    trials: int | None = None,
    minutes: float | None = None,
    storage: str | None = None,
    sampler: str = "tpe",
    pruner: str = "halving",
    first_rung: int | None = None,
    reduction: int = 3,
    best: int = 3,
    seeds: int = 3,
    jobs: int | None = None,
    on: str | None = None,
    cpus: int = 1,
    gpus: float | None = None,
    quiet: bool = False,
) -> Tuning:
    """Search the settings of a recipe, and train the best of what was found with fresh seeds beside the recipe itself.

    The folder gets ``best.yaml``, ``tuning.html``, ``tuning.json``, ``trials/`` with a run per trial, and ``fresh/`` with the
    runs of fresh seeds and their comparison. Only train and val are used. A tuning that ended at any moment goes on with the same
    call, and several processes may work on one study.

    Args:
        recipe: where the search starts; see `petriscope.core.recipe.load_recipe`. Its seed is that of all trials, and what
            is drawn follows from it.
        space: a YAML file, or a mapping, of keys of the recipe with ranges or choices; ``auto``: what follows from the recipe.
        out: the folder, and the name of the study; default ``runs/tune-<recipe>-seed<N>``.
        trials, minutes: when the search ends: after so many trials, or after training for so long; default 40 trials.
        storage: the URL of a database that all workers share; None: a file in the folder.
        sampler: tpe, random or gp; ``pruner``: halving, hyperband, median or none. All are Optuna's.
        first_rung: epochs after which trials may be stopped first; ``reduction``: one in so many goes on at a rung.
        best: how many trials are trained with fresh seeds; 0: none, so that the search alone is done.
        seeds: how many fresh seeds.
        jobs: processes at once; None: 1, or on a cluster as many as it has room for.
        on: where they run, ``ray`` or ``ray://HOST:PORT``; None: here. Each has so many ``cpus`` and ``gpus`` of a cluster; see
            `petriscope.experiments.pools.open_pool`.

    Raises:
        RequestError: the recipe, the space, the data, the storage or the folder cannot be used; nothing was trained.
        PetriscopeError: Optuna is not installed, or the recipe itself cannot be trained.
        Interrupted: Ctrl-C; the same call goes on from there.
    """
    options = Options(trials, minutes, storage, sampler, pruner, first_rung, reduction, best=best, seeds=seeds)
    options.check()
    studies.import_optuna()
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(path_text(recipe))
    with open_pool(on, jobs, cpus, gpus) as pool:
        options = replace(options, jobs=1 if pool is None else jobs or pool.room(recipe.training.device))
        plan = _plan(recipe, space, out, options)
        if pool is not None and pool.hosts > 1 and (storage is None or storage.startswith("sqlite")):
            raise RequestError(
                f"the jobs run on {pool.hosts} machines, and SQLite, which keeps the study in a file, is not safe on a file "
                "system that machines share; give --storage postgresql://USER@HOST/DATABASE, or run on one machine with --jobs"
            )
        try:
            study = _open(plan)
            if not quiet:
                _introduce(plan, study)
            _search(plan, study, pool, quiet)
            return _conclude(plan, study, pool, quiet)
        except (Interrupted, KeyboardInterrupt):
            raise Interrupted(
                f"stopped; what was found is kept in {plan.folder}, and the same command goes on"
            ) from None


def work(recipe: Recipe, space: str, out: Path, options: Options) -> None:
    """Search as one of the processes of a `tune` call with several jobs, and do no more."""
    plan = _plan(recipe, space, out, options)
    _work(plan, _open(plan), quiet=True)


# ------------------------------------------------------------------------------------------------------- what to do


def _plan(
    recipe: Recipe,
    space: str | PathLike[str] | Mapping[str, Any],
    out: str | Path | None,
    options: Options,
) -> Plan:
    """Check all of a request, before anything is trained."""
    choose_device(recipe.training.device)
    check_parts(recipe)
    check_trackers(recipe.training.track)
    rungs = studies.rungs_of(recipe.training.epochs, options.first_rung, options.reduction)
    if not isinstance(space, Mapping) and str(space) != AUTO:
        load_space(path_text(space), recipe, dense=False)  # a wrong key is found before the data are read
    dataset = load_dataset(recipe.data)
    dataset.split("train")
    if dataset.val is None or not len(dataset.val):
        raise RequestError(
            f"tuning chooses by val, and {recipe.data.origin} has none; set data.val_fraction to more than 0, or give images "
            "with a val split"
        )
    task = dataset.task
    metric = task.monitors[0] if recipe.training.monitor == "auto" else recipe.training.monitor
    if metric not in task.monitors:
        raise RequestError(
            f"training.monitor cannot be {metric} for the task {task.name}; known: {', '.join(task.monitors)}"
        )
    if isinstance(space, Mapping):
        found = read_space(dict(space), recipe)
    else:
        found = load_space(path_text(space), recipe, task.dense)
    name = Path(recipe.name).stem if recipe.name.endswith((".yaml", ".yml")) else recipe.name
    folder = Path("runs") / f"tune-{slug(name)}-seed{recipe.seed}" if out is None else Path(out)
    check_files(folder, studies.FILES)
    begun = (folder / "trials").is_dir() or any((folder / name).is_file() for name in studies.BEGUN)
    if folder.exists() and any(folder.iterdir()) and not begun:
        raise RequestError(f"{folder} exists and is not the folder of a tuning; choose another --out")
    return Plan(
        absolute_paths(recipe), dataset, found, folder, metric, task.info(metric).higher_is_better, rungs, options
    )


def _open(plan: Plan) -> Study:
    pruner = studies.new_pruner(plan.options.pruner, plan.rungs, plan.recipe.training.epochs, plan.options.reduction)
    opened = studies.open_study(plan.folder, plan.options.storage, plan.settings, plan.higher, pruner)
    known = plan.folder / studies.SUMMARY
    if plan.options.storage is None and known.is_file() and not opened.get_trials(deepcopy=False):
        raise RequestError(
            f"{plan.folder / 'study.db'} has no trials, and {known} is of a search that had some; restore the file, or choose "
            "another --out"
        )
    drawn, outside = plan.space.position(plan.recipe)
    return Study(opened, plan.folder, plan.space, None if outside else drawn, plan.options.sampler, plan.recipe.seed)


def _introduce(plan: Plan, study: Study) -> None:
    sizes = ", ".join(f"{name} {len(part):,}" for name, part in plan.dataset.splits.items())
    say(f"{plan.recipe.name} on {plan.recipe.data.origin}: {sizes} images; only train and val are used")
    stops = ""
    if plan.rungs and plan.options.pruner != "none":
        stops = f"; trials may be stopped after {' and '.join(map(str, plan.rungs))}"
    info = plan.dataset.task.info(plan.metric)
    say(
        f"search for the {'highest' if plan.higher else 'lowest'} {in_sentence(info)} on val over "
        f"{plural(len(plan.space.parameters), 'key')}: {', '.join(each.key for each in plan.space.parameters)}"
    )
    say(f"a trial has {plan.recipe.training.epochs} epochs{stops}; in {plan.folder}")
    outside = plan.space.position(plan.recipe)[1]
    if outside:
        values = ", ".join(f"{key} {label(value_in(plan.recipe, key))}" for key in outside)
        say(f"note: the recipe itself is no trial, because the space does not have its {values}")
    begun = len(study.trials())
    if begun:
        say(f"trials that were begun before: {begun}")


# ------------------------------------------------------------------------------------------------------- the search


def _search(plan: Plan, study: Study, pool: Pool | None, quiet: bool) -> None:
    if pool is not None and not _is_over(plan, study):
        _work_side_by_side(plan, study, pool, quiet)
    _work(plan, study, quiet)
    while study.under_way():  # by other processes
        time.sleep(LOOK_EVERY)
        _work(plan, study, quiet)


def _is_over(plan: Plan, study: Study) -> bool:
    used = studies.is_used_up(plan.budget, study.study.get_trials(deepcopy=False))
    return (used or study.exhausted()) and not study.under_way()


def _work(plan: Plan, study: Study, quiet: bool) -> None:
    """Train trials until the budget is used up."""
    board = Board(plan, study, quiet)
    try:
        while True:
            with study.take(plan.budget) as trial:
                if trial is None:
                    break
                _train(plan, study, trial, board)
            board.ended(trial.number)
    finally:
        board.close()
    if not quiet and study.exhausted():
        say("the last trials have values that were tried before: the space seems to be exhausted, so the search ends")


def _train(plan: Plan, study: Study, trial: optuna.Trial, board: Board) -> None:
    """Train a trial from rung to rung, until Optuna's pruner stops it or it is at its end."""
    from optuna.trial import TrialState

    started, before = time.monotonic(), float(trial.user_attrs.get(SECONDS, 0.0))

    def note_time() -> None:
        trial.set_user_attr(SECONDS, before + time.monotonic() - started)

    def failed(reason: str) -> None:
        note_time()
        trial.set_user_attr(FAILURE, reason)
        study.study.tell(trial, state=TrialState.PRUNED)  # which samplers take for the worst

    folder = study.run_folder(trial.number)
    try:
        recipe = plan.recipe if studies.START in trial.user_attrs else plan.space.recipe(plan.recipe, trial.params)
        trainer = _trainer(plan, folder, recipe, board)
    except RequestError as error:
        if studies.START in trial.user_attrs:
            study.study.tell(trial, state=TrialState.FAIL)
            raise
        failed(str(error))
        return
    try:
        with Run(folder).claimed():
            _climb(plan, study, trial, trainer, note_time)
    except (Interrupted, KeyboardInterrupt):
        note_time()
        raise
    except Diverged as error:
        failed(str(error))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        failed("the memory was not enough")


def _climb(plan: Plan, study: Study, trial: optuna.Trial, trainer: Trainer, note_time: Callable[[], None]) -> None:
    from optuna.trial import TrialState

    reported = set(study.study.get_trials(deepcopy=False)[trial.number].intermediate_values)
    for rung in plan.rungs:
        trainer.train_until(rung)
        if trainer.at.epoch < rung:  # out of patience
            break
        value = standing(trainer.at.history[:rung], plan)
        if rung not in reported:
            trial.report(value, rung)
            note_time()
        if trainer.at.epoch == rung and (trial.should_prune() or math.isnan(value)):
            study.study.tell(trial, state=TrialState.PRUNED)
            return
    trainer.train_until(plan.recipe.training.epochs)
    value = standing(trainer.at.history, plan)
    if trainer.at.epoch not in reported:
        trial.report(value, trainer.at.epoch)
    note_time()
    if math.isnan(value):
        study.study.tell(trial, state=TrialState.PRUNED)
    else:
        study.study.tell(trial, value)


def _trainer(plan: Plan, folder: Path, recipe: Recipe, board: Board) -> Trainer:
    """The trainer of a trial, which goes on from its checkpoint if there is one."""
    if is_run(folder):
        run = Run(folder)
        trainer, _ = reopen(run, plan.dataset, quiet=True)
    else:
        recipe = recipe.model_copy(update={"name": f"{plan.recipe.name}, trial {int(folder.name)}"})
        device = choose_device(recipe.training.device)
        run, trainer, _, _ = begin(recipe, plan.dataset, device, folder, quiet=True)

    def on_epoch(history: list[dict[str, Any]]) -> None:
        run.write_history(history)
        board.epoch(int(folder.name), len(history))

    trainer.checkpoint, trainer.on_epoch = run.checkpoint, on_epoch
    return trainer


def standing(history: Sequence[dict[str, Any] | Epoch], plan: Plan) -> float:
    """The metric of the weights that a training would keep if it ended now; NaN if it is not defined."""
    values = [value for line in history if (value := _val(line, plan.metric)) is not None]
    if not values:
        return math.nan
    if plan.recipe.training.keep == "last":
        return values[-1]
    return max(values) if plan.higher else min(values)


def _val(line: dict[str, Any] | Epoch, metric: str) -> float | None:
    val = line.get("val") if isinstance(line, dict) else line.val
    return None if val is None else val.get(metric)


def _work_side_by_side(plan: Plan, study: Study, pool: Pool, quiet: bool) -> None:
    """Search in several processes."""
    folder = plan.folder.absolute()
    write_text(folder / "recipe.yaml", plan.recipe.to_yaml())
    write_text(folder / "space.yaml", plan.space.to_yaml())
    words = ["tune", str(folder / "recipe.yaml"), "--space", str(folder / "space.yaml")]
    words += ["--out", str(folder), "--sampler", plan.options.sampler, "--pruner", plan.options.pruner, "--worker"]
    words += ["--reduction", str(plan.options.reduction), "--jobs", str(plan.budget.jobs)]
    words += ["--first-rung", str(plan.rungs[0])] if plan.rungs else []
    words += [] if plan.budget.trials is None else ["--trials", str(plan.budget.trials)]
    words += [] if plan.budget.seconds is None else ["--minutes", repr(plan.budget.seconds / 60)]
    storage = {} if plan.options.storage is None else {STORAGE: plan.options.storage}  # it may have a password
    board = Board(plan, study, quiet)
    jobs: list[Job] = []
    ended: list[Job] = []
    device = plan.recipe.training.device
    with pool.scratch(folder, [plan.recipe.model_dump(mode="json")], [device]), interruptible() as stop:
        try:
            for number in range(plan.budget.jobs):
                log = folder / f"worker-{number + 1}.log"
                jobs.append(pool.start(Command(tuple(words), log, device=device, environment=storage)))
            while len(ended) < len(jobs):
                ended = pool.wait(jobs, LOOK_EVERY)
                if stop.is_set():
                    raise Interrupted("interrupted")
                board.look()
        finally:
            pool.stop(jobs)
            board.look()
            board.close()
        failed = next((error for job in jobs if (error := job.error()) is not None), None)
    if failed is not None:
        raise PetriscopeError(f"a process of the search failed: {failed}")


class Board:
    """Progress of a search: a bar, and a line per trial that ends."""

    def __init__(self, plan: Plan, study: Study, quiet: bool) -> None:
        self.plan, self.study, self.quiet = plan, study, quiet
        self.said = {each.number for each in study.trials() if each.state != "under way"}
        self.bar = Progress("search", plan.budget.trials or 0, "trials")
        self.bar.start_from(len(self.said))
        self.best = self._best()

    def epoch(self, number: int, epochs: int) -> None:
        if not self.quiet:
            self.bar.advance(0, f"trial {number}, epoch {epochs} of {self.plan.recipe.training.epochs}{self._more()}")

    def ended(self, number: int) -> None:
        self.look()

    def look(self) -> None:
        """Say which trials have ended since."""
        if self.quiet:
            return
        for trial in self.study.trials():
            if trial.number not in self.said and trial.state != "under way":
                self.said.add(trial.number)
                say(self._line(trial))
                self.bar.advance(1, self._more().lstrip(" ,"))
        self.bar.advance(0, self._more().lstrip(" ,"))

    def close(self) -> None:
        self.bar.close()

    def _line(self, trial: Trial) -> str:
        which = f"trial {trial.number}" + (", the recipe itself" if trial.start else "")
        if trial.state == "failed":
            return f"{which}: cannot be trained: {trial.failure.partition(chr(10))[0]}"
        found = "no value" if trial.value is None else self._shown(trial.value)
        if trial.same_as is not None:
            return f"{which}: the values of trial {trial.same_as}, {found}"
        if trial.state == "stopped":
            return f"{which}: stopped after {plural(trial.epochs, 'epoch')}, {found}"
        best, self.best = self.best, self._best()
        star = " *" if best != self.best else ""
        return f"{which}: {found} after {plural(trial.epochs, 'epoch')}, {duration(trial.seconds)}{star}"

    def _best(self) -> Trial | None:
        return next(iter(ranked(self.study.trials(), self.plan.higher)), None)

    def _more(self) -> str:
        parts = []
        if self.plan.budget.seconds is not None:
            spent = sum(each.seconds for each in self.study.trials()) / self.plan.budget.jobs
            parts.append(f"{duration(max(self.plan.budget.seconds - spent, 0))} of training left")
        if self.best is not None and self.best.value is not None:
            parts.append(f"best {self._shown(self.best.value)}")
        return "".join(f", {part}" for part in parts)

    def _shown(self, value: float) -> str:
        info = self.plan.dataset.task.info(self.plan.metric)
        return f"{in_sentence(info)} " + (f"{100 * value:.2f} %" if info.percent else f"{value:.4f}")


# -------------------------------------------------------------------------------------------------------- the result


def _conclude(plan: Plan, study: Study, pool: Pool | None, quiet: bool) -> Tuning:
    """Train the best with fresh seeds, and write the recipe and the page."""
    trials = study.trials()
    by_label = {f"trial {each.number}": each for each in trials}
    candidates = [each for each in ranked(trials, plan.higher) if not each.start][: plan.options.best]
    recipes = {THE_RECIPE: plan.recipe} | {f"trial {each.number}": _of_trial(plan, each) for each in candidates}
    comparison: Comparison | None = None
    failures: Mapping[str, str] = {}
    if candidates:
        if not quiet:
            say(f"\nthe best of the search with {plan.options.seeds} fresh seeds, beside the recipe:")
        comparison, failures = _confirm(plan, recipes, pool, quiet)
    started = {} if not trials else {THE_RECIPE: next((each for each in trials if each.start), None)}
    confirmed = [] if comparison is None else _confirmed(plan, recipes, by_label | started)
    best = _best_of(plan, trials, confirmed)
    chosen = None if best is None else _named(plan, best, recipes, by_label)
    yaml = "" if chosen is None else chosen.to_yaml()
    tuning = Tuning(
        folder=str(plan.folder),
        recipe=plan.recipe.name,
        task=plan.dataset.task.name,
        metric=plan.metric,
        higher=plan.higher,
        images=0 if plan.dataset.val is None else len(plan.dataset.val),
        seed=plan.recipe.seed,
        sampler=plan.options.sampler,
        pruner=plan.options.pruner if plan.rungs else "none",
        epochs=plan.recipe.training.epochs,
        rungs=plan.rungs if plan.options.pruner != "none" else (),
        parameters=_parameters(plan, study),
        importances=_importance_words(plan),
        trials=trials,
        confirmed=tuple(confirmed),
        comparison=comparison,
        best=best,
        best_recipe=yaml,
        notes=tuple(_notes(plan, study, trials, failures, bool(confirmed))),
    )
    with locked(plan.folder / ".result", lambda: None):
        if yaml:
            write_text(plan.folder / "best.yaml", yaml)
        write_text(plan.folder / studies.SUMMARY, json_text(tuning.as_dict(), indent=1))
        write_tuning(tuning, plan.folder / "tuning.html")
    return tuning


def _of_trial(plan: Plan, trial: Trial) -> Recipe:
    return plan.space.recipe(plan.recipe, trial.drawn)


def _fresh(plan: Plan) -> Path:
    return plan.folder / "fresh"


def _seeds(plan: Plan) -> tuple[int, ...]:
    """Seeds that no trial had."""
    return tuple(plan.recipe.seed + 1 + number for number in range(plan.options.seeds))


def _confirm(
    plan: Plan, recipes: Mapping[str, Recipe], pool: Pool | None, quiet: bool
) -> tuple[Comparison | None, Mapping[str, str]]:
    """Train recipes with fresh seeds, and compare them with the first on val.

    Returns:
        the comparison, and the messages of the runs that failed, by run.
    """
    methods = {}
    for name, recipe in recipes.items():
        path = plan.folder / "candidates" / f"{slug(name)}.yaml"
        write_text(path, recipe.to_yaml())
        methods[name] = Method(recipe=str(path.absolute()))
    task = plan.dataset.task
    suite = Suite(
        name=f"{plan.recipe.name}, tuned",
        about="The recipe and the best of the search, with seeds that the search did not have.",
        seeds=_seeds(plan),
        baseline=THE_RECIPE,
        metric=plan.metric if plan.metric in task.compared else None,
        methods=methods,
    )
    done = run_suite_in(pool, suite, _fresh(plan), split="val", quiet=quiet)
    return done.comparison, done.failures


def _confirmed(plan: Plan, recipes: Mapping[str, Recipe], trials: Mapping[str, Trial | None]) -> list[Confirmed]:
    """The recipes that could be trained with all fresh seeds."""
    found = []
    for name, recipe in recipes.items():
        runs = [Run(_fresh(plan) / f"{slug(name)}-seed{seed}") for seed in _seeds(plan)]
        if not all(is_run(run.folder) and run.finished for run in runs):
            continue
        trial = trials.get(name)
        ended = trial is not None and trial.state == "finished"
        found.append(
            Confirmed(
                label=name,
                trial=None if trial is None else trial.number,
                searched=trial.value if trial is not None and ended else None,
                fresh=tuple(standing(run.history, plan) for run in runs),
                changes=_changes(plan, recipe),
            )
        )
    return found


def _best_of(plan: Plan, trials: tuple[Trial, ...], confirmed: Sequence[Confirmed]) -> str | None:
    """The label of the recipe with the best mean over fresh seeds; without these, of the best trial."""
    if confirmed:
        return (max if plan.higher else min)(confirmed, key=lambda each: each.mean).label
    ended = ranked(trials, plan.higher)
    return None if not ended else f"trial {ended[0].number}"


def _named(plan: Plan, best: str, recipes: Mapping[str, Recipe], trials: Mapping[str, Trial]) -> Recipe:
    """The recipe for ``best.yaml``."""
    recipe = recipes[best] if best in recipes else _of_trial(plan, trials[best])
    if best == THE_RECIPE:
        return recipe
    about = f"{plan.recipe.name} as tuned on val: {best} of {len(trials)}"
    return recipe.model_copy(update={"name": f"{plan.recipe.name}, tuned", "about": about})


def _changes(plan: Plan, recipe: Recipe) -> dict[str, tuple[str, str]]:
    keys = [each.key for each in plan.space.parameters]
    pairs = {key: (value_in(plan.recipe, key), value_in(recipe, key)) for key in keys}
    return {key: (label(was), label(now)) for key, (was, now) in pairs.items() if was != now}


def _parameters(plan: Plan, study: Study) -> tuple[Parameter, ...]:
    rungs = plan.rungs if plan.options.pruner != "none" else ()
    shares = studies.importances(study.study, rungs, plan.recipe.seed) or {}
    start = plan.space.position(plan.recipe)[0]
    found = []
    for each in plan.space.parameters:
        span = each if isinstance(each, Span) else None
        choices = tuple(map(label, each.values)) if isinstance(each, Choices) else ()
        low, high = (None, None) if span is None else (span.low, span.high)
        log = span is not None and span.log
        found.append(Parameter(each.key, low, high, log, choices, start[each.key], shares.get(each.key)))
    return tuple(found)


def _importance_words(plan: Plan) -> str:
    rungs = plan.rungs if plan.options.pruner != "none" else ()
    when = f"after {plural(rungs[0], 'epoch')}, which all trials have" if rungs else "at the end"
    return f"Shares of the variance of the metric {when}, by Optuna's functional ANOVA over a random forest."


def _notes(
    plan: Plan, study: Study, trials: tuple[Trial, ...], failures: Mapping[str, str], confirmed: bool
) -> list[str]:
    notes = [f"With a fresh seed, {run} could not be trained: {message}" for run, message in failures.items()]
    failed = [each for each in trials if each.state == "failed"]
    if failed:
        first = f"trial {failed[0].number}: {failed[0].failure.partition(chr(10))[0]}"
        notes.append(f"{len(failed)} of {len(trials)} trials could not be trained, the first, {first}")
    elsewhere = sum(each.state == "under way" for each in trials)
    if elsewhere:
        notes.append(f"{elsewhere} trials are under way in other folders, and are not among the results.")
    if not confirmed and ranked(trials, plan.higher):
        others = any(not each.start for each in ranked(trials, plan.higher))
        why = "" if others else "; no trial but the recipe itself was trained to the end"
        notes.append(
            f"Nothing was trained with fresh seeds{why}. So the metrics of the search are all there is, and they are too good: "
            "the best of many trials is the best partly by luck."
        )
        if why:
            notes.append(
                "best.yaml is the recipe itself. More trials (--trials), or --pruner none, give others to train."
            )
    if study.exhausted():
        notes.append("The last trials had values that were tried before: the space seems to be exhausted.")
    return notes
