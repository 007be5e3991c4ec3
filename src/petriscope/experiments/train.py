"""Training, from a recipe to a run folder with a report."""

from __future__ import annotations

import statistics
from functools import reduce
from operator import or_
from os import PathLike
from pathlib import Path

import torch

from petriscope.augment.pipeline import Normalize
from petriscope.core.device import choose_device, enough_memory, gib
from petriscope.core.errors import Interrupted, command
from petriscope.core.files import path_text
from petriscope.core.progress import duration, say
from petriscope.core.recipe import Recipe, load_recipe
from petriscope.core.results import Normalization, TrainingSummary
from petriscope.data import Dataset, load_dataset
from petriscope.data.membership import Exposure
from petriscope.experiments.evaluate import evaluate_into, stress_after_training
from petriscope.experiments.own_data import whole_data
from petriscope.experiments.samples import augmented, reconstructions
from petriscope.inference.fit import fit_after_training
from petriscope.inference.predictor import Predictor, read_exposure, save_model
from petriscope.inference.speed import cost
from petriscope.models.cost import parameters
from petriscope.report.page import write_report
from petriscope.run.folder import Run, check_free, create_run, open_run
from petriscope.run.trackers import check_trackers
from petriscope.run.trackers.process import tracked
from petriscope.training.build import absolute_paths, build_trainer, check_memory, check_parts
from petriscope.training.loop import Trainer


@enough_memory()
def train(recipe: Recipe | str | PathLike[str], out: str | Path | None = None, quiet: bool = False) -> Run:
    """Train according to a recipe, and write a run folder with a report. Val is evaluated; test is not read.

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
    folder = None if out is None else Path(out)
    check_free(folder)
    device = choose_device(recipe.training.device)
    check_parts(recipe)
    check_trackers(recipe.training.track)
    dataset = load_dataset(recipe.data)
    run, trainer, normalize, needed = begin(recipe, dataset, device, folder, quiet)
    with run.claimed():
        if not quiet:
            _introduce(run, run.recipe, dataset, needed)
        with tracked(run, quiet):
            return _train_to_report(run, trainer, normalize, dataset, quiet)


def begin(
    recipe: Recipe, dataset: Dataset, device: torch.device, folder: Path | None, quiet: bool
) -> tuple[Run, Trainer, Normalize, int]:
    """Make the folder of a run whose parts are checked, and its trainer.

    Returns:
        the run, its trainer, the normalization of images, and the bytes that a step takes.

    Raises:
        RequestError: the recipe does not fit the data or the memory, or the folder exists; nothing was made.
    """
    recipe = absolute_paths(recipe)
    if dataset.field_of_view is not None:  # known from now on, whatever files the source gets later
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"field": dataset.field_of_view})})
    needed = check_memory(recipe, dataset, device)
    trainer, normalize = build_trainer(recipe, dataset, device, quiet)
    run = create_run(
        folder,
        recipe,
        dataset,
        device=str(device),
        precision=trainer.format,
        parameters=parameters(trainer.model),
        normalize=Normalization(mean=normalize.mean, std=normalize.std),
    )
    return run, trainer, normalize, needed


def reopen(run: Run, dataset: Dataset, quiet: bool) -> tuple[Trainer, Normalize]:
    """The trainer of a run that was begun, which goes on from its checkpoint if there is one."""
    recipe, started = run.recipe, run.environment.normalize if run.checkpoint.is_file() else None
    return build_trainer(recipe, dataset, choose_device(recipe.training.device), quiet, started)


@enough_memory()
def resume(folder: str | PathLike[str], quiet: bool = False, data: str | Path | None = None) -> Run:
    """Continue a run that was interrupted or killed. On a CPU, the final weights are bit-identical to those of a run that was
    never stopped. A finished run is left as it is, which is said.

    Args:
        data: where the data of the run are now; None: where the recipe says.

    Raises:
        RequestError: there is no run, or another process is training it.
        DataError: the data have changed since the run was started.
    """
    run = open_run(folder)
    with run.claimed():
        if run.finished:
            return _already_finished(run, quiet)
        dataset = whole_data(run, None if data is None else path_text(data), "go on")
        threads = run.environment.hardware.threads
        if threads != torch.get_num_threads() and not quiet:
            say(
                f"note: the run was started with {threads} threads and continues with {torch.get_num_threads()}, so the last "
                "bits of the weights may differ"
            )
        trainer, normalize = reopen(run, dataset, quiet)
        with tracked(run, quiet):
            return _train_to_report(run, trainer, normalize, dataset, quiet)


def _train_to_report(run: Run, trainer: Trainer, normalize: Normalize, dataset: Dataset, quiet: bool) -> Run:
    """Train, and write the files of the run folder."""
    trainer.checkpoint, trainer.on_epoch = run.checkpoint, run.write_history
    try:
        weights = trainer.fit()
    except Interrupted:
        raise Interrupted(f"stopped; to continue: {command('train', '--resume', run.folder)}") from None
    trainer.model.load_state_dict(weights)
    predictor = Predictor(
        trainer.model.eval(),
        trainer.recipe,
        dataset.task,
        dataset.classes,
        dataset.shape,
        normalize.mean,
        normalize.std,
        trainer.device,
        exposure=_exposure(run.recipe, dataset),
    )
    known = None
    if dataset.val is not None and dataset.task.calibrates:
        known = fit_after_training(predictor, dataset.train, dataset.val, quiet)
    summary = _summary(trainer)
    save_model(run.model, weights, predictor, {"environment": run.environment.as_json(), "training": summary.as_json()})
    run.write_gallery("augmented", **augmented(trainer, dataset))
    run.write_gallery("reconstructions", **reconstructions(predictor, dataset))
    if dataset.val is not None:
        evaluate_into(run, predictor, dataset, "val", None, quiet, known)
        stress_after_training(run, predictor, dataset.val, trainer.at.seconds, quiet)
    run.add_results(cost=cost(predictor), training=summary)
    run.finish()
    write_report(run)
    if not quiet:
        say(f"trained in {duration(trainer.at.seconds)}; report: {run.folder / 'report.html'}")
    return run


def _exposure(recipe: Recipe, dataset: Dataset) -> Exposure:
    """The images that a model has seen: its own, and those of its teachers and of the model that its first weights are of."""
    teachers = () if recipe.distill is None else recipe.distill.teachers
    others = map(read_exposure, (*teachers, str(recipe.model.options.get("weights", "none"))))
    return reduce(or_, filter(None, others), dataset.exposure)


def _already_finished(run: Run, quiet: bool) -> Run:
    """Do what a process did not come to that was killed when the results were written."""
    page = run.folder / "report.html"
    if not page.is_file():
        write_report(run)
    run.finish()
    if not quiet:
        say(f"{run.folder} is finished, so there is nothing to resume; its report is {page}")
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
    sizes = ", ".join(f"{name} {len(part):,}" for name, part in dataset.splits.items())
    say(
        f"{recipe.name} on {recipe.data.origin}: {sizes} images, {height}x{width}x{channels}, {len(dataset.classes)} classes, "
        f"{dataset.task.name}"
    )
    takes = "" if needed < 2**30 else f", up to {gib(needed)} of memory a batch (data.size, training.batch_size)"
    say(
        f"{recipe.model.name}, {about.parameters:,} parameters, {about.device}, {about.precision}{takes}; run in {run.folder}"
    )
    if dataset.audited:
        dropped = sum(entry.decision == "drop" for entry in dataset.audited)
        say(
            f"the decisions of the audit leave out {dropped:,} images and relabel {len(dataset.audited) - dropped:,}: "
            f"{run.folder / 'audited.csv'}"
        )
    for warning in dataset.warnings:
        say(f"warning: {warning}")
