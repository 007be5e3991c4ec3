"""The study of a tuning: Optuna's storage, sampler and pruner, and which process works on which trial.

A trial is a run folder. Who trains it holds a lock beside the folder, which the system frees when the process ends, whatever
ended it. So a trial that is under way by the storage and whose lock is free belongs to nobody, and the next worker goes on
with it from its checkpoint.
"""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from petriscope.core.errors import PetriscopeError, RequestError, shortened
from petriscope.core.files import locked, read_text, write_text
from petriscope.core.recipe import Recipe, check_recipe
from petriscope.experiments.compare import differing, in_words
from petriscope.experiments.space import Space
from petriscope.run.tuning import Trial

if TYPE_CHECKING:
    import optuna

SAMPLERS = ("tpe", "random", "gp")
PRUNERS = ("halving", "hyperband", "median", "none")
REPEATS = 20  # trials in a row with values that were tried before, after which a space counts as exhausted
WAIT = 60  # seconds for another process that writes to an SQLite file
DATABASE, CHOOSING, ID, SUMMARY = "study.db", ".choosing", ".id", "tuning.json"
BEGUN = (DATABASE, CHOOSING, ID)  # one of which a tuning has, also one that was stopped before its first trial
FILES = (*BEGUN, SUMMARY, "tuning.html", "best.yaml")
SETTINGS, FOLDER, SECONDS, FAILURE, SAME, START = "settings", "folder", "seconds", "failure", "same_as", "start"


class _Taken(Exception):
    """Another process holds the lock."""


@dataclass(frozen=True)
class Budget:
    """When a search ends: after ``trials`` trials, or after ``seconds`` of training by ``jobs`` processes at once."""

    trials: int | None
    seconds: float | None
    jobs: int = 1


@dataclass
class Study:
    """A study and the folder that its trials are in.

    Args:
        space: what trials vary.
        start: what to draw for the recipe itself, the first trial; None if it is not in the space.
        sampler: its name; ``seed``: what is drawn for a trial follows from it and the trials before.
    """

    study: optuna.Study
    folder: Path
    space: Space
    start: dict[str, Any] | None
    sampler: str
    seed: int
    _mine: str = field(init=False)

    def __post_init__(self) -> None:
        with self._choosing():
            path = self.folder / ID  # the same storage may serve folders on several machines
            if not path.is_file():
                write_text(path, secrets.token_hex(8))
            self._mine = read_text(path, 100, "the id of a folder")

    @contextmanager
    def take(self, budget: Budget) -> Iterator[optuna.Trial | None]:
        """A trial to train, which no other process takes meanwhile: one whose process ended, or else a new one. None if the
        budget is used up."""
        with self._choosing():
            trial = self._left_behind() or self._new(budget)
            held = None if trial is None else locked(self.lock(trial.number), lambda: None)
            if held is not None:
                held.__enter__()
        try:
            yield trial
        finally:
            if held is not None:
                held.__exit__(None, None, None)

    def _choosing(self) -> Any:
        return locked(self.folder / CHOOSING, lambda: None)

    def lock(self, number: int) -> Path:
        return self.folder / "trials" / f".{number:04d}.lock"

    def run_folder(self, number: int) -> Path:
        return self.folder / "trials" / f"{number:04d}"

    def _left_behind(self) -> optuna.Trial | None:
        optuna = import_optuna()
        for frozen in self.under_way():
            # Who trained it may have ended it, and then freed the lock, since the trials were listed: so look again.
            if not self._is_held(frozen.number) and any(each.number == frozen.number for each in self.under_way()):
                # Of all objects of Optuna, this one alone reports to a trial that another process has begun.
                return optuna.trial.Trial(self.study, frozen._trial_id)
        return None

    def _new(self, budget: Budget) -> optuna.Trial | None:
        """The next trial; what another trial has found out with the same values is taken over."""
        optuna = import_optuna()
        while True:
            trials = self.study.get_trials(deepcopy=False)
            if is_used_up(budget, trials) or self.exhausted():
                return None
            begun = [each for each in trials if START in each.user_attrs and each.state != optuna.trial.TrialState.FAIL]
            if self.start is not None and not begun:
                self.study.enqueue_trial(self.start, user_attrs={START: True})
            self.study.sampler = new_sampler(self.sampler, self.seed, len(trials))
            with _without_warnings():
                trial = self.study.ask(self.space.distributions())
            trial.set_user_attr(FOLDER, self._mine)
            twin = next((each for each in trials if each.params == trial.params and _has_ended(each)), None)
            if twin is None:
                return trial
            for step, value in sorted(twin.intermediate_values.items()):
                trial.report(value, step)
            trial.set_user_attr(SAME, twin.user_attrs.get(SAME, twin.number))
            if FAILURE in twin.user_attrs:
                trial.set_user_attr(FAILURE, twin.user_attrs[FAILURE])
            complete = twin.state == optuna.trial.TrialState.COMPLETE
            self.study.tell(trial, twin.value if complete else None, twin.state)

    def under_way(self) -> list[optuna.trial.FrozenTrial]:
        """The trials of this folder that have not ended."""
        optuna = import_optuna()
        running = self.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
        return [each for each in running if each.user_attrs.get(FOLDER) == self._mine]

    def _is_held(self, number: int) -> bool:
        def busy() -> None:
            raise _Taken

        try:
            with locked(self.lock(number), busy):
                return False
        except _Taken:
            return True

    def exhausted(self) -> bool:
        """Whether everything in the space seems to have been tried."""
        ended = [each for each in self.study.get_trials(deepcopy=False) if _has_ended(each)]
        return len(ended) > REPEATS and all(SAME in each.user_attrs for each in ended[-REPEATS:])

    def trials(self) -> tuple[Trial, ...]:
        return tuple(self._seen(each) for each in self.study.get_trials(deepcopy=False) if each.params)

    def _seen(self, frozen: optuna.trial.FrozenTrial) -> Trial:
        from optuna.trial import TrialState

        about, rungs = frozen.user_attrs, dict(sorted(frozen.intermediate_values.items()))
        failed = FAILURE in about or frozen.state == TrialState.FAIL
        ended = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "stopped"}
        return Trial(
            number=frozen.number,
            state="failed" if failed else ended.get(frozen.state, "under way"),  # type: ignore[arg-type]
            drawn=frozen.params,
            value=frozen.value if frozen.state.is_finished() else next(reversed(rungs.values()), None),
            epochs=max(rungs, default=0),
            seconds=round(about.get(SECONDS, 0.0), 2),
            rungs=rungs,
            folder=self.run_folder(about.get(SAME, frozen.number)).relative_to(self.folder).as_posix(),
            same_as=about.get(SAME),
            failure=about.get(FAILURE, ""),
            start=START in about,
        )


def is_used_up(budget: Budget, trials: list[optuna.trial.FrozenTrial]) -> bool:
    """Whether no new trial may begin."""
    from optuna.trial import TrialState

    begun = sum(each.state not in (TrialState.FAIL, TrialState.WAITING) for each in trials)
    spent = sum(each.user_attrs.get(SECONDS, 0.0) for each in trials) / budget.jobs
    return (budget.trials is not None and begun >= budget.trials) or (
        budget.seconds is not None and spent >= budget.seconds
    )


def _has_ended(frozen: optuna.trial.FrozenTrial) -> bool:
    from optuna.trial import TrialState

    return frozen.state in (TrialState.COMPLETE, TrialState.PRUNED)


def open_study(
    folder: Path, storage: str | None, settings: dict[str, Any], higher: bool, pruner: optuna.pruners.BasePruner
) -> optuna.Study:
    """The study of a folder, which is made if there is none yet.

    Args:
        storage: the URL of a database; None: a file in the folder. The study is called as the folder is.
        settings: what has to be the same for all of its trials.

    Raises:
        RequestError: the database cannot be used, or the study was begun with other settings.
    """
    optuna = import_optuna()
    shown, url = _urls(storage, folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        # SQLite waits for other processes, and a connection that a server has closed is replaced.
        options = {"connect_args": {"timeout": WAIT}} if storage is None else {"pool_pre_ping": True}
        database = optuna.storages.RDBStorage(url, engine_kwargs=options)
        study = optuna.create_study(
            storage=database,
            study_name=folder.name,
            direction="maximize" if higher else "minimize",
            load_if_exists=True,
            pruner=pruner,
        )
        before = study.user_attrs.get(SETTINGS)
        if before is None:
            study.set_user_attr(SETTINGS, settings)
    except Exception as error:  # what drivers of databases raise has no common base
        reason = shortened(str(error).strip().partition("\n")[0], 200).replace(url, shown)
        if storage is None:
            raise RequestError(
                f"{shown}, which keeps the trials, cannot be read or written ({reason}). If the disk is full, free some space "
                "and give the same command; if the file is damaged, restore it or choose another --out"
            ) from None
        raise RequestError(
            f"the storage {shown} cannot be used ({reason}); a database of PostgreSQL has an URL such as "
            "postgresql://USER@HOST/DATABASE, and needs pip install 'petriscope[tune]'"
        ) from None
    pairs = {} if before is None else differing(_as_today(before), settings)
    if pairs:
        raise RequestError(
            f"the study {folder.name} in {shown} was begun with other settings: {shortened(in_words(pairs), 400)}. "
            "Repeat these, or choose another --out"
        )
    return study


def identity(recipe: Recipe) -> dict[str, Any]:
    """The settings of a recipe that decide what is trained, except for where its data are, as plain values."""
    tree = recipe.model_dump(mode="json", exclude={"name": True, "about": True, "training": {"track"}})
    tree["data"]["source"] = None  # it may be in other places on other machines
    for each in (tree["data"]["sources"] or {}).values():
        each["source"] = ""
    return tree


def _as_today(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a study that an older version began: its recipe with the keys of today."""
    return {**settings, "recipe": identity(check_recipe(settings["recipe"], "the recipe of the study"))}


def _urls(storage: str | None, folder: Path) -> tuple[str, str]:
    """The URL to show, without a password, and the one to use."""
    if storage is None:
        path = folder / DATABASE
        return str(path), f"sqlite:///{path.absolute()}"
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(storage)
    except ArgumentError:
        raise RequestError(
            f"--storage {shortened(storage)} is no URL of a database, such as postgresql://USER@HOST/DATABASE"
        ) from None
    shown = url.render_as_string(hide_password=True)
    if url.drivername in ("postgres", "postgresql"):
        url = url.set(drivername="postgresql+psycopg")
    return shown, url.render_as_string(hide_password=False)


def import_optuna() -> ModuleType:
    """Optuna, which keeps silent.

    Raises:
        PetriscopeError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise PetriscopeError("tuning needs Optuna; install it with pip install 'petriscope[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Within, Optuna does not say which of its classes may change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", import_optuna().exceptions.ExperimentalWarning)
        yield


def new_sampler(name: str, seed: int, number: int) -> optuna.samplers.BaseSampler:
    """A sampler for the trial of that number. With one sampler for the whole search, a process that resumes a study would repeat
    the draws of the first one."""
    samplers = import_optuna().samplers
    drawn = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    makers: dict[str, Callable[..., Any]] = {
        "tpe": samplers.TPESampler,
        "random": samplers.RandomSampler,
        "gp": samplers.GPSampler,
    }
    with _without_warnings():
        return makers[name](seed=drawn)


def new_pruner(name: str, rungs: tuple[int, ...], epochs: int, reduction: int) -> optuna.pruners.BasePruner:
    """The pruner that decides at the rungs.

    Args:
        rungs: after how many epochs a trial may be stopped.
        epochs: of a whole training.
    """
    pruners = import_optuna().pruners
    if name == "none" or not rungs:
        return pruners.NopPruner()
    if name == "median":
        return pruners.MedianPruner()
    if name == "hyperband":
        return pruners.HyperbandPruner(rungs[0], max_resource=epochs, reduction_factor=reduction)
    return pruners.SuccessiveHalvingPruner(rungs[0], reduction_factor=reduction)


def rungs_of(epochs: int, first: int | None, reduction: int) -> tuple[int, ...]:
    """After how many epochs trials may be stopped: ``first`` and its multiples by powers of ``reduction``.

    Args:
        epochs: of a whole training.
        first: None: so that there are two.

    Raises:
        RequestError: the first rung does not lie within a training.
    """
    if first is not None and not 1 <= first < epochs:
        raise RequestError(f"--first-rung must lie between 1 and the epochs of the recipe, {epochs}; got {first}")
    at, found = first or -(-epochs // reduction**2), []
    while at < epochs:
        found.append(at)
        at *= reduction
    return tuple(found)


def importances(study: optuna.Study, rungs: tuple[int, ...], seed: int) -> dict[str, float] | None:
    """The share of the variance of the metric that each key explains, by a functional ANOVA over a random forest. Hutter et al.,
    2014.

    Over all trials that reached the first rung, by their metric there: those that were trained to the end are few, and alike.

    Returns:
        None if there are fewer than 4 such trials or no more than keys, or the metric is the same for all of them.
    """
    optuna = import_optuna()
    copy = optuna.create_study(direction=study.direction)
    for each in study.get_trials(deepcopy=False):
        value = each.intermediate_values.get(rungs[0]) if rungs else each.value
        if value is not None and np.isfinite(value) and SAME not in each.user_attrs:
            copy.add_trial(optuna.trial.create_trial(params=each.params, distributions=each.distributions, value=value))
    keys = len(copy.trials[0].params) if copy.trials else 0
    if len(copy.trials) < max(4, keys + 1) or len({each.value for each in copy.trials}) == 1:
        return None
    found = optuna.importance.get_param_importances(
        copy, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=seed)
    )
    return {key: float(share) for key, share in found.items()}
