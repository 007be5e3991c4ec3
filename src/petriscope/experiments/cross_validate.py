"""Cross-validation as one experiment: each image is predicted by a network that did not learn from it, and the model is the
ensemble of these networks, or trained on all images.

The folds are ordinary runs, whose test split is the fold that is held out. What chooses the epoch is their val, which is drawn
from the other folds; so what is held out chooses nothing, and judges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_
from os import PathLike
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch

from petriscope.core.device import choose_device, enough_memory
from petriscope.core.errors import DataError, PetriscopeError, RequestError
from petriscope.core.files import locked, new_folder, path_text
from petriscope.core.launch import launch
from petriscope.core.progress import duration, progress, say
from petriscope.core.recipe import TTA, FoldsSection, Recipe, load_recipe
from petriscope.core.results import HELD_OUT, CrossValidation, Evaluation, FoldResult, Metric
from petriscope.data import Dataset, ImageSet, load_dataset
from petriscope.data.batches import Batches
from petriscope.data.folds import NEVER, folds_of_set
from petriscope.data.membership import Exposure
from petriscope.data.tile_sets import batches_of
from petriscope.experiments import auto
from petriscope.experiments.bench import check_unchanged, go_on, train_all
from petriscope.experiments.budget import Budget, Clock
from petriscope.experiments.compare import in_words, settings_that_differ
from petriscope.experiments.ensemble import joint_recipe, unite
from petriscope.experiments.evaluate import evaluate_split, resolution
from petriscope.experiments.made import begin_made, trained_together
from petriscope.experiments.own_data import whole_data
from petriscope.experiments.parallel import train_side_by_side
from petriscope.experiments.pools import Pool, open_pool
from petriscope.experiments.suite import Planned
from petriscope.inference.fit import fit_on_folds
from petriscope.inference.predictor import Predictor, load_model, read_exposure
from petriscope.metrics.intervals import resampled95
from petriscope.report import wording
from petriscope.report.page import write_report
from petriscope.run.folder import CROSS_VALIDATED, Run, check_free, default_folder
from petriscope.run.trackers import check_trackers
from petriscope.tasks import Task, in_room
from petriscope.training.build import absolute_paths, check_memory, check_parts

JUDGING = 0.5  # trainings that judging what was held out takes as long as
Final = Literal["ensemble", "all"]
FINALS: tuple[Final, ...] = get_args(Final)


@dataclass(frozen=True)
class _Experiment:
    """What is trained, and where.

    Args:
        recipe: that of a training on all images; the folds differ from it in ``data.folds`` and seed.
        out: the folder of all runs.
    """

    recipe: Recipe
    repeats: int
    final: Final
    out: Path

    @property
    def count(self) -> int:
        assert self.recipe.data.folds is not None
        return self.recipe.data.folds.count

    @property
    def folds(self) -> list[Planned]:
        """The networks of all folds, repeat after repeat."""
        return [
            self._planned(f"repeat {repeat}, fold {fold}", repeat, fold)
            for repeat in range(1, self.repeats + 1)
            for fold in range(1, self.count + 1)
        ]

    @property
    def whole(self) -> list[Planned]:
        """The networks that are trained on all images, one for each repeat."""
        if self.final == "ensemble":
            return []
        return [self._planned(f"all images, network {repeat}", repeat, None) for repeat in range(1, self.repeats + 1)]

    @property
    def unfinished(self) -> list[Planned]:
        return [planned for planned in (*self.folds, *self.whole) if not planned.finished]

    def _planned(self, label: str, repeat: int, fold: int | None) -> Planned:
        place = FoldsSection(count=self.count, repeat=repeat, hold_out=fold)
        changes: dict[str, Any] = {
            "name": f"{self.recipe.name}: {label}",
            "seed": self.recipe.seed + repeat - 1,
            "data": self.recipe.data.model_copy(update={"folds": place}),
            "evaluation": self.recipe.evaluation.model_copy(update={"stress": "off"}),
        }
        if fold is None:  # there is no val to watch
            changes["training"] = self.recipe.training.model_copy(update={"keep": "last", "patience": None})
        folder = f"all{repeat}" if fold is None else f"repeat{repeat}-fold{fold}"
        return Planned(label, self.recipe.model_copy(update=changes), self.out / folder)


@enough_memory()
def cross_validate(
    recipe: Recipe | str | PathLike[str],
    folds: int = auto.FOLDS,
    repeats: int = 1,
    final: Final | None = None,
    out: str | Path | None = None,
    quiet: bool = False,
    jobs: int | None = None,
    on: str | None = None,
    cpus: int = 1,
    gpus: float | None = None,
) -> Run:
    """Train by grouped and stratified cross-validation, judge the model by the predictions for images that were held out, and
    write a run folder of the model with a report. The same call goes on where it was stopped.

    Args:
        recipe: see `petriscope.experiments.train.train`. Train and val of its data are drawn into folds anew; a test split that
            the source has stays test, and is not read.
        folds: 2 or more.
        repeats: how often folds are drawn. The prediction for an image is the mean of those of as many networks.
        final: ``ensemble``: the mean of the networks of all folds and repeats; ``all``: as many networks as repeats, trained on
            all images by the same recipe. None: ``all``; for masks the ensemble.
        out: folder for all runs; the model is the run ``final`` in it. Default ``runs/<recipe>-seed<N>-<folds>folds``.
        jobs, on, cpus, gpus: where the folds are trained; see `petriscope.experiments.bench.run_suite`.

    Returns:
        the run of the model.

    Raises:
        RequestError: the request is wrong; nothing was trained.
        DataError: there are not enough images, or they have changed since the experiment was begun.
        PetriscopeError: a training failed; the others are kept.
        Interrupted: Ctrl-C; the same call continues from there.
    """
    return _cross_validate(recipe, folds, repeats, final, out, quiet, jobs, on, cpus, gpus)


def _cross_validate(
    recipe: Recipe | str | PathLike[str],
    folds: int,
    repeats: int,
    final: Final | None,
    out: str | Path | None,
    quiet: bool,
    jobs: int | None,
    on: str | None,
    cpus: int,
    gpus: float | None,
    begin: Callable[[Planned, int], object] | None = None,
) -> Run:
    """`cross_validate`, with what begins a training; see `petriscope.experiments.bench.train_all`."""
    check_request(folds, repeats, final)
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(path_text(recipe))
    if recipe.data.splits is not None or recipe.data.leave_out is not None:
        raise RequestError("folds are drawn anew, so data.splits and data.leave_out cannot be set; remove them")
    if recipe.data.stream is not None:
        raise RequestError(
            "images that are read while training (data.stream) cannot be drawn into folds; remove data.stream"
        )
    check_parts(recipe)
    check_trackers(recipe.training.track)
    section = recipe.data.model_copy(update={"folds": FoldsSection(count=folds)})
    recipe = absolute_paths(recipe.model_copy(update={"data": section}))
    place = _default(recipe, folds) if out is None else Path(out)
    _check_same(recipe, place)
    dataset = load_dataset(recipe.data)
    experiment = _Experiment(recipe, repeats, _final_for(dataset.task, final, repeats), place)
    if on is None:
        check_memory(recipe, dataset, choose_device(recipe.training.device))
    _check_unseen(recipe, dataset)
    with (
        open_pool(on, jobs, cpus, gpus) if experiment.unfinished else nullcontext() as pool,
        locked(place / ".lock", lambda: say(f"another process works in {place}; waiting for its end")),
    ):
        Run(place).write_recipe(recipe)
        return _run(experiment, dataset, quiet, pool, begin)


def cross_validate_in_time(
    data: str | PathLike[str],
    folds: int = auto.FOLDS,
    repeats: int = 1,
    final: Final | None = None,
    out: str | Path | None = None,
    budget: Budget | None = None,
    settings: Sequence[str] = (),
    seed: int = 0,
    audit: str | None = None,
    quiet: bool = False,
    jobs: int | None = None,
    on: str | None = None,
    cpus: int = 1,
    gpus: float | None = None,
) -> Run:
    """The same without a recipe: one is planned once, so that all trainings together fit into a budget. Each training keeps to
    its share of what is left of it when it begins; its recipe has what was corrected. Simultaneous trainings (``jobs``) only
    follow the plan. The same call goes on with the recipe that was planned, without looking at the time.

    Args:
        budget, settings, seed, audit: see `petriscope.experiments.auto.train_in_time`.
    """
    check_request(folds, repeats, final)
    name = {"name": auto.name_of(path_text(data)), "data": {"source": path_text(data)}, "seed": seed}
    place = _default(load_recipe("demo", (), **name), folds) if out is None else Path(out)
    if (place / "recipe.yaml").is_file():
        asked = {"source": path_text(data)} | ({} if audit is None else {"audit": audit})
        recipe, begin = load_recipe(place / "recipe.yaml", list(settings), seed=seed, data=asked), None
        _check_same(absolute_paths(recipe), place)
        if not quiet:
            say(f"continuing with the plan in {place / 'recipe.yaml'}; the time is not checked again")
    else:
        check_free(place, leftovers=True)
        clock = Clock.of_command(budget or Budget(auto.MINUTES))
        trainings = repeats * (folds + (final != "ensemble"))
        found = auto.plan(data, clock, settings, seed, audit, folds, trainings + JUDGING)
        recipe = found.recipe
        if not quiet:
            say(f"a plan for each of {trainings} trainings:")
            for line in found.lines:
                say(line)
            for sentence in found.notes:
                say(f"warning: {sentence}")
        if found.impossible is not None and not found.fixed:
            raise RequestError(found.impossible)
        at_once = on is not None or (jobs or 1) > 1
        begin = None if at_once else _InTime(found, clock, JUDGING / (trainings + JUDGING), quiet)
        if begin is None and not quiet:
            say("note: with --jobs or --on, trainings follow the plan and do not check the time")
    run = _cross_validate(recipe, folds, repeats, final, place, quiet, jobs, on, cpus, gpus, begin)
    if begin is not None and not quiet:
        say(f"{auto.took(begin.clock)}, of a budget of {begin.clock.budget}")
    return run


@dataclass
class _InTime:
    """Begins trainings that share what is left of a budget.

    Args:
        found: the plan of each.
        clock: of all.
        kept: the part of the budget that is kept for judging what was held out.
    """

    found: auto.AutoPlan
    clock: Clock
    kept: float
    quiet: bool

    def __call__(self, planned: Planned, left: int) -> None:
        budget = self.clock.budget
        seconds = max((self.clock.left - self.kept * budget.seconds) / left, 1.0)
        share = Clock(Budget(seconds / 60, budget.processor))
        slower = auto.train_fold(self.found, planned.recipe, share, planned.folder, self.quiet)
        self.found = replace(self.found, slower=slower)


def check_request(folds: int, repeats: int, final: Final | None) -> None:
    """
    Raises:
        RequestError: a number is out of range, or there is no such model.
    """
    if not 2 <= folds <= 100:
        raise RequestError(f"there must be 2 to 100 folds, not {folds}")
    if not 1 <= repeats <= 100:
        raise RequestError(f"folds can be drawn 1 to 100 times, not {repeats}")
    if final is not None and final not in FINALS:
        raise RequestError(f"the model cannot be {final!r}; known: {', '.join(FINALS)}")
    if (processes := launch().size) > 1:
        raise RequestError(
            f"torchrun started {processes} processes, but folds are trained one by one, by --jobs or --on; start petriscope "
            "without it"
        )


def _default(recipe: Recipe, folds: int) -> Path:
    place = default_folder(recipe)
    return place.with_name(f"{place.name}-{folds}folds")


def _check_same(recipe: Recipe, out: Path) -> None:
    """Check that what is in a folder, if anything, is this experiment."""
    if not (out / "recipe.yaml").is_file():
        check_free(out, leftovers=True)
        return
    before = load_recipe(out / "recipe.yaml")
    pairs = settings_that_differ(before, recipe)
    if before.seed != recipe.seed:
        pairs["seed"] = (before.seed, recipe.seed)
    if (out / "environment.json").is_file():
        raise RequestError(f"{out} is a run; choose another --out")
    if pairs:
        raise RequestError(
            f"{out} was begun with other settings: {in_words(pairs)}. Move this folder away, or choose another --out"
        )


def _final_for(task: Task, final: Final | None, repeats: int) -> Final:
    """What the model is made of, which the task can be."""
    joins = "soft" in in_room(task, "experiments").ENSEMBLES
    if not joins and (final == "ensemble" or repeats > 1):
        what = "several repeats" if repeats > 1 else "the ensemble of the folds"
        raise RequestError(
            f"{task.name} models cannot be joined, so there is no mean of networks, which {what} would need; give --final all "
            "and one repeat"
        )
    if task.dense and repeats > 1:
        raise RequestError("repeats of a cross-validation are for labels; for masks, draw the folds once")
    return final or ("ensemble" if joins and task.dense else "all")  # measured for labels, see docs/log.md


def _check_unseen(recipe: Recipe, dataset: Dataset) -> None:
    """Check that no network that training begins from has seen the images: none would be held out."""
    teachers = () if recipe.distill is None else recipe.distill.teachers
    for path in (*teachers, str(recipe.model.options.get("weights", "none"))):
        exposure = read_exposure(path)
        if exposure is None:
            continue
        images = dataset.split("train")
        seen = np.flatnonzero(exposure.roles(images.digests()) != "")
        if len(seen):
            raise RequestError(
                f"{path} has seen {len(seen):,} of these images, the first: {images.ids[seen[0]]}; what it teaches, a network "
                "knows of images that are held out. Train without it"
            )


def _run(
    experiment: _Experiment,
    dataset: Dataset,
    quiet: bool,
    pool: Pool | None,
    begin: Callable[[Planned, int], object] | None = None,
) -> Run:
    """Train what is not finished, in a pool or in this process, and make the model."""
    made, trainings = Run(experiment.out / CROSS_VALIDATED), [*experiment.folds, *experiment.whole]
    if begun := next((planned for planned in trainings if planned.begun), None):
        check_unchanged(begun, load_dataset(begun.recipe.data))
    if (made.folder / "report.html").is_file():
        return _already_made(experiment, made, quiet)
    todo = experiment.unfinished
    if not quiet:
        train = dataset.split("train")
        count = len(trainings)
        say(
            f"{experiment.recipe.name}: {len(train):,} images, {experiment.count} folds"
            f"{'' if experiment.repeats == 1 else f' drawn {experiment.repeats} times'}, {count} trainings, "
            f"{count - len(todo)} finished; in {experiment.out}"
        )
        for sentence in dataset.warnings:
            say(f"warning: {sentence}")
    failures: dict[str, str] = {}
    if pool is not None and todo:
        with go_on("training"):
            failures = train_side_by_side(todo, pool, experiment.out, quiet)
        todo = [planned for planned in todo if not planned.finished and str(planned) not in failures]
    failures |= train_all(todo, trainings, quiet, begin)
    if failures:
        name, why = next(iter(failures.items()))
        raise PetriscopeError(
            f"{len(failures)} of {len(trainings)} trainings failed, the first: {name}: {why}. The others are kept; the same "
            "command trains only what is missing"
        )
    with go_on("judging what was held out"), new_folder(made.folder) as (staging, folder):
        result = _make(experiment, staging, quiet)
        write_report(Run(staging), folder)
    if not quiet:
        about = "the ensemble of" if experiment.final == "ensemble" else "trained on all images:"
        say(f"the model is {about} {wording.plural(result.networks, 'network')}: {folder}")
        say(f"report: {folder / 'report.html'}")
    return made


def _already_made(experiment: _Experiment, made: Run, quiet: bool) -> Run:
    found = made.results.cross_validation
    asked = (experiment.count, experiment.repeats, experiment.final)
    if found is None or (found.folds, found.repeats, found.final) != asked:
        was = "something else" if found is None else f"{found.folds} folds, {found.repeats} repeats and {found.final}"
        raise RequestError(f"{made.folder} is made of {was}; move it away to make another model of these trainings")
    if not quiet:
        say(f"{made.folder} is finished, so there is nothing to do; its report is {made.folder / 'report.html'}")
    return made


class _Pool:
    """Predictions for images that were held out, of all folds.

    Args:
        images: that were drawn into folds.
        ttas: the test-time augmentations to predict with, that of the recipe first.
    """

    def __init__(self, images: ImageSet, ttas: Sequence[TTA]) -> None:
        self.images, self.ttas = images, ttas
        self.fold = np.full(len(images), NEVER, dtype=np.int64)
        self.counts = np.zeros(len(images), dtype=np.int64)
        shape = (len(images), len(images.classes))
        self.sums = {tta: np.zeros(shape) for tta in ttas if images.task.calibrates}
        self.parts: list[FoldResult] = []
        self._rows: dict[tuple[str, bytes], list[int]] = {}
        for row, key in enumerate(zip(images.ids.tolist(), images.digests(), strict=True)):
            self._rows.setdefault(key, []).append(row)
        self.held: list[tuple[np.ndarray, Predictor, ImageSet]] = []

    def add(self, run: Run, predictor: Predictor, test: ImageSet, place: FoldsSection) -> None:
        """Predict the images that a network did not learn from."""
        keys = list(zip(test.ids.tolist(), test.digests(), strict=True))
        if lost := [name for name, digest in keys if (name, digest) not in self._rows]:
            raise DataError(f"{run.folder} held out {lost[0]}, which is no longer among the images; train it anew")
        rows = np.array([self._rows[key][0] for key in keys], dtype=np.int64)
        fold = cast(int, place.hold_out)
        self.fold[rows] = np.where(self.fold[rows] == NEVER, fold - 1, self.fold[rows])
        self.counts[rows] += 1
        for tta, total in self.sums.items():
            total[rows] += predictor.look(Batches(test, predictor.device, predictor.recipe.data.memory), tta)
        room, source = in_room(predictor.task, "experiments"), predictor.recipe.data.origin
        evaluation, _ = room.evaluate(predictor, test, "test", self.ttas[0], source, True)
        metrics = {key: Metric(value=metric.value) for key, metric in evaluation.metrics.items()}
        self.parts.append(
            FoldResult(run=str(run.folder), repeat=place.repeat, fold=fold, n=len(test), metrics=metrics, series={})
        )
        if not self.sums:
            self.held.append((rows, predictor, test))

    @property
    def raw(self) -> dict[TTA, np.ndarray]:
        """The mean of the probabilities before temperature scaling, by test-time augmentation, float32 [N, K]."""
        count = np.maximum(self.counts, 1)[:, None]
        return {tta: (total / count).astype(np.float32) for tta, total in self.sums.items()}

    def outputs(self, judged: np.ndarray) -> Any:
        """What `petriscope.tasks.base.Task.collect` keeps of all predictions, for tasks that are not calibrated.

        Args:
            judged: rows of the images that were held out, in order.
        """
        task, classes = self.images.task, len(self.images.classes)

        def batches() -> Iterator[tuple[np.ndarray, torch.Tensor, torch.Tensor]]:
            for rows, predictor, test in self.held:
                found = predictor.outputs(batches_of(test, predictor.device, predictor.recipe.data), self.ttas[0])
                for indices, log_p, targets in found:
                    yield np.searchsorted(judged, rows[indices]), log_p, targets

        return task.collect(batches(), len(judged), classes, full=True)


def _make(experiment: _Experiment, folder: Path, quiet: bool) -> CrossValidation:
    """Write all of the model's run folder but the report."""
    dataset = load_dataset(experiment.recipe.data)
    images, task = dataset.split("train"), dataset.task
    ttas: list[TTA] = list(dict.fromkeys([experiment.recipe.evaluation.tta, "none"]))
    pool, members = _Pool(images, ttas), list[Predictor]()
    with progress("judging", len(experiment.folds), "folds") as bar:
        for planned in experiment.folds:
            run, place = Run(planned.folder), planned.recipe.data.folds
            assert place is not None
            members.append(load_model(run.model))
            pool.add(run, members[-1], whole_data(run, None, "judge its fold").split("test"), place)
            if not quiet:
                bar.advance()
    predictor, runs = _joined(experiment, dataset, members)
    judged = np.flatnonzero(pool.fold != NEVER)
    if not len(judged):
        raise DataError("no image was held out, so nothing says how well the model does; add images of each class")
    part, source = images.subset(judged), experiment.recipe.data.origin
    if task.calibrates:
        known = fit_on_folds(predictor, images, pool.fold, pool.raw, quiet)
        pooled, outputs = evaluate_split(predictor, part, HELD_OUT, ttas[0], source, True, known)
    else:
        outputs = pool.outputs(judged)
        metrics = task.judge(outputs, part, experiment.recipe.evaluation.bootstrap)
        about = {"task": task.name, "split": HELD_OUT, "tta": ttas[0], "source": source}
        pooled = Evaluation.model_validate({**about, **metrics})
        if task.dense:
            pooled = pooled.model_copy(update={"resolution": resolution(experiment.recipe.data, part)})
    trained = [Run(each.folder) for each in (*experiment.folds, *experiment.whole)]
    summary = trained_together(trained)
    if len(runs) == 1 and (alone := runs[0].results.training) is not None:
        summary = summary.model_copy(update={"epochs": alone.epochs})
    made = begin_made(folder, predictor, dataset, summary, members=[str(run.folder) for run in runs])
    made.add_predictions(HELD_OUT, task.table(outputs, part, HELD_OUT))
    keep = getattr(in_room(task, "experiments"), "keep_mistakes", None)
    if keep is not None:
        keep(made, part, HELD_OUT, outputs)
    result = CrossValidation(
        folds=experiment.count,
        repeats=experiment.repeats,
        final=experiment.final,
        networks=len(runs),
        images=len(images),
        never=len(images) - len(judged),
        notes=folds_of_set(images, FoldsSection(count=experiment.count), experiment.recipe.data.split_seed)[1],
        parts=pool.parts,
        pooled=widened(pooled, pool.parts, experiment.count, task),
    )
    made.add_results(cross_validation=result)
    if not quiet:
        say(f"trained in {duration(summary.seconds or 0)}, all {len(trained)} networks together")
    return result


def _joined(experiment: _Experiment, dataset: Dataset, members: Sequence[Predictor]) -> tuple[Predictor, list[Run]]:
    """The model, and the runs that it is made of."""
    runs = [Run(planned.folder) for planned in experiment.folds]
    if experiment.final == "all":
        runs = [Run(planned.folder) for planned in experiment.whole]
        members = [load_model(run.model) for run in runs]
    recipe = experiment.recipe
    if len(members) == 1:
        (predictor,) = members
        predictor = replace(predictor, recipe=predictor.recipe.model_copy(update={"name": recipe.name}))
    else:
        what = "folds" if experiment.final == "ensemble" else "networks that were trained on all images"
        joint = joint_recipe(members, "soft", recipe.evaluation.tta).model_copy(
            update={
                "name": recipe.name,
                "about": f"the mean of the probabilities of {len(members)} {what}",
                "data": members[0].recipe.data.model_copy(update={"folds": recipe.data.folds}),
                "augment": recipe.augment,
            }
        )
        predictor = unite(runs, members, joint, dataset, [{}] * len(members))
    seen = (member.exposure or Exposure() for member in members)
    return replace(predictor, exposure=reduce(or_, seen, dataset.exposure)), runs


def widened(pooled: Evaluation, parts: Sequence[FoldResult], folds: int, task: Task) -> Evaluation:
    """The evaluation with intervals of the metrics of all images that know of the folds. They are at least those of the images,
    which take the networks as given.

    Args:
        parts: of each fold of each repeat.
        folds: of a repeat.
    """
    out = dict(pooled.metrics)
    for info in task.metrics:
        metric, values = pooled.metric(info.key), [part.value(info.key) for part in parts]
        known = [value for value in values if value is not None and np.isfinite(value)]
        if metric.value is None or metric.ci95 is None or len(known) < len(parts):
            continue
        reach = resampled95(np.array(known), folds)
        low, high = metric.ci95
        if low is None or high is None or not np.isfinite(reach):
            continue
        low, high = min(low, metric.value - reach), max(high, metric.value + reach)
        out[info.key] = Metric(
            value=metric.value, ci95=(max(low, 0.0), min(high, 1.0) if info.higher_is_better else high)
        )
    return pooled.model_copy(update={"metrics": out})
