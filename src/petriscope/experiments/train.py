"""Training, from a recipe to a run folder with a report."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import reduce
from operator import or_
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from petriscope.augment.pipeline import Normalize
from petriscope.core.channels import color_words, in_words, is_plain
from petriscope.core.device import choose_device, enough_memory, gib
from petriscope.core.errors import Interrupted, command
from petriscope.core.files import path_text
from petriscope.core.notebook import in_notebook
from petriscope.core.progress import TimeLeft, duration, say, unlimited
from petriscope.core.ranks import ALONE, Ranks, begun_before, digest, joined, remember
from petriscope.core.recipe import Recipe, load_recipe
from petriscope.core.results import Hardware, Normalization, TrainingSummary
from petriscope.core.version import __version__
from petriscope.data import Dataset, load_dataset
from petriscope.data.membership import Exposure
from petriscope.experiments.evaluate import evaluate_into, stress_after_training
from petriscope.experiments.own_data import whole_data
from petriscope.experiments.samples import augmented, reconstructions
from petriscope.inference.fit import DETECTOR_IMAGES, fit_after_training
from petriscope.inference.predictor import Predictor, read_exposure, save_model
from petriscope.inference.speed import cost
from petriscope.models.cost import parameters
from petriscope.report.page import write_report
from petriscope.run.folder import ReadOnlyRun, Run, check_free, create_run, open_run
from petriscope.run.trackers import check_trackers
from petriscope.run.trackers.process import tracked
from petriscope.training.build import absolute_paths, build_trainer, check_memory, check_parts
from petriscope.training.loop import Trainer


@dataclass(frozen=True)
class Limits:
    """What keeps a training to a budget; nothing does by default.

    Args:
        look: called after each epoch.
        is_late: whether training has to end at once; asked after each step.
        stress_seconds: what the stress test may take; None: as the recipe says.
        left: the time that there is for explanations, similar images and timing.
        detector_images: that the out-of-distribution detector is fitted on, at most.
        before_report: called with the run when all is done but the report.
    """

    look: Callable[[], object] = lambda: None
    is_late: Callable[[], bool] = lambda: False
    stress_seconds: Callable[[], float] | None = None
    left: TimeLeft = unlimited
    detector_images: Callable[[], int] = lambda: DETECTOR_IMAGES
    before_report: Callable[[Run], object] = lambda run: None


UNLIMITED = Limits()


@contextmanager
def nothing_made() -> Iterator[None]:
    """Within, there is no run yet, and Ctrl-C is an error that says so.

    Raises:
        Interrupted: Ctrl-C.
    """
    try:
        yield
    except (Interrupted, KeyboardInterrupt):
        raise Interrupted("stopped before the training began; nothing was made") from None


@enough_memory()
def train(recipe: Recipe | str | PathLike[str], out: str | Path | None = None, quiet: bool = False) -> Run:
    """Train according to a recipe, and write a run folder with a report. Val is evaluated; test is not read.

    Processes that torchrun started train together, and evaluate the model together. The first alone writes and speaks; the
    others return when it has what it needs of them, so the run may not be finished then. If torchrun starts them again, the
    run goes on from its checkpoint.

    Args:
        recipe: see `petriscope.core.recipe.load_recipe`; or the name or file of one.
        out: the folder to make; default ``runs/<recipe>-seed<N>``.
        quiet: show no progress.

    Raises:
        RequestError: the recipe, the data or the folder cannot be used; nothing was made.
        Interrupted: Ctrl-C; `resume` continues from there.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(path_text(recipe))
    folder, request = None if out is None else Path(out), f"{out} {recipe.to_yaml()}"
    with joined() as ranks:
        if (begun := begun_before(request)) is not None:
            say(f"the processes were started again, and continue the run in {begun}")
            return _resume(begun, quiet, None, ranks)
        with nothing_made(), ranks.together():
            check_free(folder)
            device = choose_device(recipe.training.device)
            check_parts(recipe)
            check_trackers(recipe.training.track)
            dataset = load_dataset(recipe.data)
        with nothing_made():
            run, trainer, normalize, needed = begin(recipe, dataset, device, folder, quiet, ranks)
        remember(request, str(run.folder))
        with resumable(run), _claimed(run, ranks, quiet):
            if not quiet and ranks.first:
                _introduce(run, run.recipe, dataset, needed)
            return train_to_report(run, trainer, normalize, dataset, quiet)


def tell_audited(run: Run, dataset: Dataset) -> None:
    """Say what the decisions of an audit have changed."""
    if dataset.audited:
        dropped = sum(entry.decision == "drop" for entry in dataset.audited)
        say(
            f"the decisions of the audit leave out {dropped:,} images and relabel {len(dataset.audited) - dropped:,}: "
            f"{run.folder / 'audited.csv'}"
        )


def begin(
    recipe: Recipe, dataset: Dataset, device: torch.device, folder: Path | None, quiet: bool, ranks: Ranks = ALONE
) -> tuple[Run, Trainer, Normalize, int]:
    """Make the folder of a run whose parts are checked, and its trainer. Of several processes, the first makes the folder.

    Returns:
        the run, its trainer, the normalization of images, and the bytes that a step takes.

    Raises:
        RequestError: the recipe does not fit the data or the memory, or the folder exists; nothing was made.
    """
    recipe = absolute_paths(recipe)
    if dataset.field_of_view is not None:  # known from now on, whatever files the source gets later
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"field": dataset.field_of_view})})
    if not is_plain(dataset.channels):
        named = {"channels": dataset.channels}
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update=named)})
    _agree(recipe, dataset, ranks)
    with ranks.together():
        needed = check_memory(recipe, dataset, device, ranks)
        trainer, normalize = build_trainer(recipe, dataset, device, quiet, ranks=ranks)
    made = None
    with ranks.together():
        if ranks.first:
            made = create_run(
                folder,
                recipe,
                dataset,
                device=str(device),
                precision=trainer.format,
                parameters=parameters(trainer.model),
                normalize=Normalization(mean=normalize.mean, std=normalize.std),
            )
    told = ranks.texts("" if made is None else str(made.folder))[0]
    return made or Run(Path(told)), trainer, normalize, needed


def _agree(recipe: Recipe, dataset: Dataset, ranks: Ranks) -> None:
    """Check that all processes would do the same."""
    ranks.agree(
        "install the same versions everywhere",
        **{"version of petriscope": __version__, "version of torch": str(torch.__version__)},
    )
    ranks.agree("start all with the same command", recipe=digest(recipe.to_yaml()))
    ranks.agree("let all read the same data", data=dataset.fingerprint)


@contextmanager
def _claimed(run: Run, ranks: Ranks, quiet: bool) -> Iterator[None]:
    """Within, this process or, of several, the first one works on the run alone, and its trackers follow it."""
    with ExitStack() as held:
        with ranks.together():
            if ranks.first:
                held.enter_context(run.claimed())
                held.enter_context(tracked(run, quiet))
        yield


@contextmanager
def resumable(run: Run) -> Iterator[None]:
    """Within, whatever of the training of a run Ctrl-C stops, the error says how to go on.

    Raises:
        Interrupted: Ctrl-C.
    """
    try:
        yield
    except (Interrupted, KeyboardInterrupt):
        again = f"petriscope.resume({str(run.folder)!r})" if in_notebook() else command("train", "--resume", run.folder)
        raise Interrupted(f"stopped; to continue: {again}") from None


def reopen(run: Run, dataset: Dataset, quiet: bool, ranks: Ranks = ALONE) -> tuple[Trainer, Normalize]:
    """The trainer of a run that was begun, which goes on from its checkpoint if there is one."""
    recipe, started = run.recipe, run.environment.normalize if run.checkpoint.is_file() else None
    return build_trainer(recipe, dataset, choose_device(recipe.training.device), quiet, started, ranks)


@enough_memory()
def resume(folder: str | PathLike[str], quiet: bool = False, data: str | Path | None = None) -> Run:
    """Continue a run that was interrupted or killed. On a CPU, the final weights are bit-identical to those of a run that was
    never stopped, if as many processes and threads go on; else they differ by rounding. A finished run is left as it is, which
    is said.

    Args:
        data: where the data of the run are now; None: where the recipe says.

    Raises:
        RequestError: there is no run, or another process is training it.
        DataError: the data have changed since the run was started.
    """
    with joined() as ranks:
        return _resume(folder, quiet, data, ranks)


def _resume(folder: str | PathLike[str], quiet: bool, data: str | Path | None, ranks: Ranks) -> Run:
    with ExitStack() as held:
        with ranks.together():
            run = open_run(folder)
            held.enter_context(resumable(run))
            if ranks.first:
                held.enter_context(run.claimed())
        if ranks.any(run.finished):
            return _already_finished(run, quiet, data) if ranks.first else run
        with ranks.together():
            dataset = whole_data(run, None if data is None else path_text(data), "go on")
        _agree(run.recipe, dataset, ranks)
        if not quiet:
            _compare_hardware(run.environment.hardware, ranks)
        with ranks.together():
            trainer, normalize = reopen(run, dataset, quiet, ranks)
            if ranks.first:
                held.enter_context(tracked(run, quiet))
        return train_to_report(run, trainer, normalize, dataset, quiet)


def _compare_hardware(before: Hardware, ranks: Ranks) -> None:
    for was, now, what in (
        (before.threads, torch.get_num_threads(), "threads"),
        (before.processes, ranks.size, "processes"),
    ):
        if was != now:
            say(
                f"note: the run was started with {was} {what} and continues with {now}, so the last bits of the weights may "
                "differ"
            )


def train_to_report(
    run: Run,
    trainer: Trainer,
    normalize: Normalize,
    dataset: Dataset,
    quiet: bool,
    limits: Limits = UNLIMITED,
) -> Run:
    """Train, and write the files of the run folder. Several processes do all that predicts images together."""

    def on_epoch(history: list[dict[str, Any]]) -> None:
        run.write_history(history)
        limits.look()

    trainer.checkpoint, trainer.is_late = run.checkpoint, limits.is_late
    if trainer.ranks.first:
        trainer.on_epoch = on_epoch
    weights = trainer.fit()
    writes = trainer.ranks.first
    run = run if writes else ReadOnlyRun(run.folder)
    trainer.model.load_state_dict(weights)
    predictor = Predictor(
        trainer.model.eval(),
        trainer.recipe,
        dataset.task,
        dataset.classes,
        trainer.recipe.data.shape_of_model(dataset.shape),
        normalize.mean,
        normalize.std,
        trainer.device,
        exposure=_exposure(run.recipe, dataset),
        ranks=trainer.ranks,
    )
    known = None
    if dataset.val is not None and dataset.task.calibrates:
        known = fit_after_training(predictor, dataset.train, dataset.val, quiet, limits.detector_images())
    summary = _summary(trainer)
    if writes:
        facts = {"environment": run.environment.as_json(), "training": summary.as_json()}
        save_model(run.model, weights, predictor, facts)
    run.write_gallery("augmented", **augmented(trainer, dataset))
    run.write_gallery("reconstructions", **reconstructions(predictor, dataset))
    if dataset.val is not None:
        evaluate_into(run, predictor, dataset, "val", None, quiet, known, left=limits.left)
        most = None if limits.stress_seconds is None else limits.stress_seconds()
        stress_after_training(run, predictor, dataset.val, trainer.at.seconds, quiet, most)
    if not writes:
        return run
    run.add_results(cost=cost(predictor, limits.left), training=summary)
    run.finish()
    limits.before_report(run)
    write_report(run)
    if not quiet:
        say(f"trained in {duration(trainer.at.seconds)}; report: {run.folder / 'report.html'}")
    return run


def _exposure(recipe: Recipe, dataset: Dataset) -> Exposure:
    """The images that a model has seen: its own, and those of its teachers and of the model that its first weights are of."""
    teachers = () if recipe.distill is None else recipe.distill.teachers
    others = map(read_exposure, (*teachers, str(recipe.model.options.get("weights", "none"))))
    return reduce(or_, filter(None, others), dataset.exposure)


def _already_finished(run: Run, quiet: bool, data: str | Path | None) -> Run:
    """Do what a process did not come to that was killed when the results were written."""
    page = run.folder / "report.html"
    if not page.is_file():
        write_report(run)
    run.finish()
    if not quiet:
        unused = "" if data is None else f", and {path_text(data)} was not read"
        say(f"{run.folder} is finished, so there is nothing to resume{unused}; its report is {page}")
    return run


def _summary(trainer: Trainer) -> TrainingSummary:
    at = trainer.at
    return TrainingSummary(
        epochs=at.epoch,
        best_epoch=at.best_epoch,
        best=at.best,
        monitor=trainer.monitor if at.best is not None else None,
        kept="best" if trainer.best_weights is not None else "last",
        seconds=round(at.seconds, 2),
        seconds_per_epoch=round(at.seconds / max(at.epoch, 1), 3),
        images_per_second=float(statistics.median(line["images_per_second"] for line in at.history)),
    )


def _introduce(run: Run, recipe: Recipe, dataset: Dataset, needed: int) -> None:
    about = run.environment
    height, width, channels = dataset.shape
    depth = "" if dataset.bits == 8 else f" with {dataset.bits} bits"
    sizes = ", ".join(f"{name} {len(part):,}" for name, part in dataset.splits.items())
    say(
        f"{recipe.name} on {recipe.data.origin}: {sizes} images, {height}x{width}x{channels}{depth}, "
        f"{len(dataset.classes)} classes, {dataset.task.name}"
    )
    if not is_plain(dataset.channels):
        say(f"{in_words(dataset.channels)}; {color_words(dataset.channels)}")
    if recipe.data.tiles is not None:
        tile = "x".join(map(str, recipe.data.tiles.height_width))
        say(f"it learns from random crops of {tile}, and predicts by tiles of that size")
    takes = "" if needed < 2**30 else f", up to {gib(needed)} of memory a batch (data.size, training.batch_size)"
    processes = "" if about.hardware.processes == 1 else f", {about.hardware.processes} processes"
    say(
        f"{recipe.model.name}, {about.parameters:,} parameters, {about.device}{processes}, {about.precision}{takes}; run in "
        f"{run.folder}"
    )
    tell_audited(run, dataset)
    for warning in dataset.warnings:
        say(f"warning: {warning}")
