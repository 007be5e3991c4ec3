"""The Python face: train, resume, evaluate, predict, report. The command line parses, calls these, and prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from petriscope.augment.base import Mixing
from petriscope.augment.pipeline import Normalize, Pipeline, to_bytes
from petriscope.classifier import Classifier, load_model, save_model
from petriscope.data import Dataset, ImageSet, load_dataset
from petriscope.data.aligned import load_aligned
from petriscope.data.batches import Batches
from petriscope.data.sources import NAMED
from petriscope.data.statistics import mean_and_std
from petriscope.errors import DataError, PetriscopeError, RequestError
from petriscope.evaluation.cost import cost, parameters
from petriscope.evaluation.inference import TTA, predict_batches, predict_set
from petriscope.evaluation.metrics import full_metrics
from petriscope.evaluation.segmentation import (
    Tally,
    choose_examples,
    full_mask_metrics,
    mask_table,
    mean_iou,
    tally_masks,
)
from petriscope.models import MODELS, build_model
from petriscope.precision import choose_device, choose_format
from petriscope.predicting import find_pictures, predict_files
from petriscope.progress import duration, say
from petriscope.recipe import Part, Recipe
from petriscope.report.page import write_report
from petriscope.run import Run, check_free, create_run, free_folder, open_run
from petriscope.training.loop import Trainer

if TYPE_CHECKING:
    import pandas as pd

MISTAKES_SHOWN = 24
EXAMPLES_EACH = 4  # of masks: best, median, worst
AUGMENTED_SHOWN = (8, 8)  # pictures, views of each
RECONSTRUCTED_SHOWN = 8
VAL_CHUNK = 1024
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def train(recipe: Recipe, out: str | Path | None = None, quiet: bool = False) -> Run:
    """Train by a recipe and write a run folder with a report. Val is evaluated; test is not read.

    Args:
        recipe: see `petriscope.recipe.load_recipe`.
        out: the folder to make; default ``runs/<recipe>-seed<N>``.
        quiet: show no progress.

    Raises:
        RequestError: the recipe, the data or the folder will not do; nothing was made.
        Interrupted: Ctrl-C; `resume` goes on from there.
    """
    folder = Path(out) if out is not None else free_folder(recipe)
    check_free(folder)
    device = choose_device(recipe.training.device)
    check_parts(recipe)
    dataset = load_dataset(recipe.data)
    recipe = absolute_paths(recipe)
    trainer, normalize = _prepare(recipe, dataset, device, quiet)
    facts = {
        "device": str(device),
        "precision": trainer.format,
        "parameters": parameters(trainer.model),
        "normalize": {"mean": normalize.mean, "std": normalize.std},
    }
    run = create_run(folder, recipe, dataset, facts)
    if not quiet:
        _introduce(run, recipe, dataset, facts)
    return _finish(run, trainer, normalize, dataset, quiet)


def resume(folder: str | Path, quiet: bool = False) -> Run:
    """Go on with a run that was interrupted or killed; its end is bit for bit that of a run never stopped (on a CPU).

    Raises:
        RequestError: no run there, or it is finished.
        DataError: the data are not those it was started with.
    """
    run = open_run(folder)
    if "training" in run.results:
        raise RequestError(f"{folder} is finished; nothing to resume. petriscope report {folder} shows it")
    run.clean()
    recipe = run.recipe
    dataset = load_dataset(recipe.data)
    if dataset.fingerprint != run.environment["data"]["fingerprint"]:
        raise DataError(f"the data at {recipe.data.source} have changed since {folder} was started; train a new run")
    threads = run.environment["hardware"]["threads"]
    if threads != torch.get_num_threads() and not quiet:
        say(
            f"note: started with {threads} threads, now {torch.get_num_threads()}: the last bits of the result may differ"
        )
    started = run.environment.get("normalize") if run.checkpoint.is_file() else None
    trainer, normalize = _prepare(recipe, dataset, choose_device(recipe.training.device), quiet, started)
    return _finish(run, trainer, normalize, dataset, quiet)


def evaluate(
    folder: str | Path,
    data: str | None = None,
    split: str = "test",
    tta: TTA | None = None,
    device: str = "auto",
    quiet: bool = False,
) -> dict[str, Any]:
    """Figures of a run on a split, with 95 % intervals.

    Args:
        folder: the run.
        data: another source; a pile that is not split is evaluated whole. None: the run's own, and the figures,
            predictions and report go into the run folder.
        split: train, val or test.
        tta: test-time augmentation; None: as the recipe says.

    Returns:
        see `petriscope.evaluation.metrics.full_metrics`, or `petriscope.evaluation.segmentation.full_mask_metrics` where
        targets are masks; and split, tta, source.
    """
    run = open_run(folder)
    classifier = load_model(run.model, device)
    images = _images_for(run, classifier, data, split, quiet)
    result, found = _evaluate(classifier, images, split, tta, data or str(run.recipe.data.source), quiet)
    if data is None:
        _record(run, classifier, images, split, result, found)
        write_report(run)
    return result


def predict(
    folder: str | Path,
    pictures: Sequence[str | Path],
    tta: TTA | None = None,
    device: str = "auto",
    quiet: bool = False,
) -> pd.DataFrame:
    """Classes of picture files.

    Args:
        folder: a run, or a model file.
        pictures: files, or folders of them.

    Returns:
        a row a picture: picture, predicted, confidence, error, and a probability a class (``p_<class>``). A picture that
        cannot be read has an error and no prediction.
    """
    return predict_files(load_model(Path(folder), device), find_pictures([Path(p) for p in pictures]), tta, quiet)


def report(folder: str | Path) -> Path:
    """Write ``report.html`` anew from what is in the run folder."""
    return write_report(open_run(folder))


def check_parts(recipe: Recipe) -> None:
    """Find a wrong name or option before the data are read."""
    from petriscope.training.losses import LOSSES
    from petriscope.training.optimizers import OPTIMIZERS
    from petriscope.training.schedules import SCHEDULES

    Pipeline.from_recipe(recipe.augment)
    _check_val_augmentation(Pipeline.from_recipe(recipe.evaluation.augment_val))
    MODELS.check(recipe.model)
    LOSSES.check(recipe.loss)
    OPTIMIZERS.check(recipe.optimizer)
    SCHEDULES.check(recipe.schedule)


def _check_val_augmentation(pipeline: Pipeline) -> None:
    if any(isinstance(operation, Mixing) for operation in pipeline.operations):
        raise RequestError("evaluation.augment_val: pictures of val keep their labels; leave mixing out")


def absolute_paths(recipe: Recipe) -> Recipe:
    """Paths in a recipe are kept absolute, so that the run can be resumed from any folder."""

    def absolute(text: str) -> str:
        path = Path(text).expanduser()
        return str(path.resolve()) if path.exists() else text

    changes: dict[str, Any] = {}
    if recipe.data.source is not None:
        known = recipe.data.source.partition(":")[0] in NAMED  # also where a folder is called so
        source = recipe.data.source if known else absolute(recipe.data.source)
        changes["data"] = recipe.data.model_copy(update={"source": source})
    if "weights" in recipe.model.options:
        options = recipe.model.options
        changes["model"] = Part(name=recipe.model.name, **{**options, "weights": absolute(str(options["weights"]))})
    if recipe.distill is not None:
        teachers = tuple(map(absolute, recipe.distill.teachers))
        changes["distill"] = recipe.distill.model_copy(update={"teachers": teachers})
    return recipe.model_copy(update=changes)


def _prepare(
    recipe: Recipe,
    dataset: Dataset,
    device: torch.device,
    quiet: bool,
    started: dict[str, tuple[float, ...]] | None = None,
) -> tuple[Trainer, Normalize]:
    """A trainer for a recipe. ``started``: the normalization of a run that has a checkpoint, so that the weights it
    began with are not needed again."""
    train_set = dataset.split("train")
    torch.manual_seed(int(np.random.SeedSequence([recipe.seed, 0]).generate_state(1)[0]))
    fresh = started is None
    model = build_model(recipe.model, len(dataset.classes), dataset.shape, fresh).to(device)
    normalize = _normalize(recipe, model, train_set) if started is None else Normalize(**started)
    memory = recipe.data.memory
    val = None
    if dataset.val is not None:
        val = Batches(_augmented_val(recipe, dataset.val), device, memory)
    return Trainer(model, recipe, Batches(train_set, device, memory), val, normalize, quiet=quiet), normalize


def _normalize(recipe: Recipe, model: torch.nn.Module, train_set: ImageSet) -> Normalize:
    """By what the model's weights were trained with, where they come from elsewhere; else by the training set."""
    rule, expects = recipe.data.normalize, getattr(model, "expects", None)
    if rule == "imagenet":
        expects = IMAGENET
    if rule == "train" or expects is None:
        return Normalize(*mean_and_std(train_set))
    channels = train_set.shape[2]
    mean, std = (values if len(values) == channels else (float(np.mean(values)),) * channels for values in expects)
    return Normalize(mean, std)


def _augmented_val(recipe: Recipe, val: ImageSet) -> ImageSet:
    """Val as training sees it: augmented once, the same whatever the seed, if the recipe asks for it."""
    parts = recipe.evaluation.augment_val
    if not parts:
        return val
    pipeline = Pipeline.from_recipe(parts, len(val.classes))
    generator = torch.Generator().manual_seed(0)
    chunks = []
    for start in range(0, len(val), VAL_CHUNK):
        indices = np.arange(start, min(start + VAL_CHUNK, len(val)))
        targets = torch.from_numpy(val.targets[indices])
        pictures, targets = pipeline(torch.from_numpy(val.take(indices)), targets, generator)
        chunks.append((to_bytes(pictures).numpy(), targets.numpy()))
    pixels, moved = map(np.concatenate, zip(*chunks, strict=True))
    return replace(val, pixels=pixels, targets=moved, rows=None)


def _introduce(run: Run, recipe: Recipe, dataset: Dataset, facts: dict[str, Any]) -> None:
    height, width, channels = dataset.shape
    sizes = ", ".join(f"{name} {len(part):,}" for name, part in dataset.splits.items())
    say(
        f"{recipe.name} on {recipe.data.source}: {sizes} pictures, {height}x{width}x{channels}, {len(dataset.classes)} classes"
    )
    say(
        f"{recipe.model.name}, {facts['parameters']:,} parameters, {facts['device']}, {facts['precision']}; run in {run.folder}"
    )
    for warning in dataset.warnings:
        say(f"warning: {warning}")


def _finish(run: Run, trainer: Trainer, normalize: Normalize, dataset: Dataset, quiet: bool) -> Run:
    """Train, and write all that a run folder holds."""
    trainer.checkpoint, trainer.on_epoch = run.checkpoint, run.write_history
    try:
        weights = trainer.fit()
    except PetriscopeError as error:
        if error.exit_status == 130:
            raise type(error)(f"stopped; go on with: petriscope train --resume {run.folder}") from None
        raise
    at, recipe = trainer.at, trainer.recipe
    trainer.model.load_state_dict(weights)
    classifier = Classifier(
        trainer.model.eval(), recipe, dataset.classes, dataset.shape, normalize.mean, normalize.std, trainer.device
    )
    summary = {
        "epochs": at.epoch,
        "best_epoch": at.best_epoch,
        "best": at.best,
        "monitor": trainer.monitor if at.best is not None else None,
        "kept": "best" if trainer.best_weights is not None else "last",
        "seconds": round(at.seconds, 2),
        "seconds_per_epoch": round(at.seconds / max(at.epoch, 1), 3),
        "pictures_per_second": float(np.median([line["pictures_per_second"] for line in at.history])),
    }
    save_model(run.model, weights, classifier, {"environment": run.environment, "training": summary})
    run.add_gallery(augmented=_augmented_samples(trainer, dataset), **_reconstructions(classifier, dataset))
    if dataset.val is not None:
        result, found = _evaluate(classifier, dataset.val, "val", None, str(recipe.data.source), quiet)
        _record(run, classifier, dataset.val, "val", result, found)
    run.add_results(cost=cost(classifier), training=summary)
    write_report(run)
    if not quiet:
        say(f"trained in {duration(at.seconds)}; report: {run.folder / 'report.html'}")
    return run


def _evaluate(
    classifier: Classifier, images: ImageSet, split: str, tta: TTA | None, source: str, quiet: bool
) -> tuple[dict[str, Any], np.ndarray | Tally]:
    """The figures of a split, and what they are of: probabilities, or what was counted of masks."""
    settings = classifier.recipe.evaluation
    tta = tta or settings.tta
    options = (
        classifier.model,
        Batches(images, classifier.device, classifier.recipe.data.memory),
        classifier.normalize,
        choose_format(classifier.recipe.training.precision, classifier.device),
        tta,
        settings.batch_size,
        None if quiet else f"evaluating {split}",
    )
    found: np.ndarray | Tally
    if images.segments:
        found = tally_masks(predict_batches(*options), len(images), len(classifier.classes), outlines=True)
        figures = full_mask_metrics(found, classifier.classes, images.groups, settings.bootstrap)
    else:
        found = predict_set(*options)
        figures = full_metrics(found, images.targets, classifier.classes, settings.bootstrap)
    return {"split": split, "tta": tta, "source": source, **figures}, found


def _images_for(run: Run, classifier: Classifier, data: str | None, split: str, quiet: bool) -> ImageSet:
    if data is None:
        dataset = load_dataset(run.recipe.data)
        if dataset.fingerprint != run.environment["data"]["fingerprint"]:
            say(f"warning: the data at {run.recipe.data.source} have changed since this run was trained")
        return dataset.split(split)
    height, width, channels = classifier.shape
    section = classifier.recipe.data.model_copy(
        update={"source": data, "size": (height, width), "channels": "gray" if channels == 1 else "rgb"}
    )
    segments = getattr(classifier.model, "segments", False)
    images, warnings = load_aligned(section, split, classifier.classes, segments)
    for warning in () if quiet else warnings:
        say(f"warning: {warning}")
    return images


def _record(
    run: Run,
    classifier: Classifier,
    images: ImageSet,
    split: str,
    result: dict[str, Any],
    found: np.ndarray | Tally,
) -> None:
    run.add_results(**{split: result})
    if isinstance(found, Tally):
        run.add_predictions(split, mask_table(images, split, found))
        run.add_gallery(**_mask_examples(classifier, images, split, found, result["tta"]))
        return
    table = prediction_table(images, split, found)
    run.add_predictions(split, table)
    wrong = np.flatnonzero((table["target"] != table["predicted"]).to_numpy())
    worst = wrong[np.argsort(-table["confidence"].to_numpy()[wrong], kind="stable")][:MISTAKES_SHOWN]
    run.add_gallery(
        **{f"mistakes_{split}": images.take(worst), f"mistakes_{split}_ids": images.ids[worst].astype(np.str_)}
    )


def _mask_examples(
    classifier: Classifier, images: ImageSet, split: str, tally: Tally, tta: TTA
) -> dict[str, np.ndarray]:
    """The best, median and worst pictures of a split for the gallery; see `petriscope.run.Run.gallery`."""
    chosen, words = choose_examples(tally, EXAMPLES_EACH)
    pictures = images.take(chosen)
    probabilities = classifier.probabilities(pictures, tta)
    arrays = {
        "images": pictures,
        "truth": images.targets[chosen],
        "predicted": probabilities.argmax(1).astype(np.uint8),
        "confidence": np.rint(probabilities.max(1) * 255).astype(np.uint8),
        "ids": images.ids[chosen].astype(np.str_),
        "miou": mean_iou(tally.confusion[chosen]),
        "rank": np.array(words, dtype=np.str_),
    }
    return {f"segments_{split}_{name}": array for name, array in arrays.items()}


def prediction_table(images: ImageSet, split: str, probabilities: np.ndarray) -> pd.DataFrame:
    """A row a picture: id, split, target, predicted, confidence, ``p_<class>``."""
    import pandas as pd

    names = np.array(images.classes)
    predicted = probabilities.argmax(1)
    columns: dict[str, Any] = {
        "id": images.ids.astype(object),
        "split": split,
        "target": names[images.targets].astype(object),
        "predicted": names[predicted].astype(object),
        "confidence": probabilities.max(1),
    }
    return pd.DataFrame({**columns, **{f"p_{name}": probabilities[:, k] for k, name in enumerate(names)}})


def _augmented_samples(trainer: Trainer, dataset: Dataset) -> np.ndarray:
    """Training pictures as they are and as the network sees them, uint8 [P, V, H, W, C], over all classes."""
    train_set = dataset.split("train")
    pictures, views = AUGMENTED_SHOWN
    firsts = [np.flatnonzero(train_set.strata == label) for label in range(len(train_set.classes))]
    chosen = np.array([members[0] for members in firsts if len(members)][:pictures])
    plain = train_set.take(chosen)
    batch = torch.from_numpy(np.repeat(plain, views - 1, axis=0))
    targets = torch.from_numpy(np.repeat(train_set.targets[chosen], views - 1, axis=0))
    out, _ = trainer.augment(batch, targets, torch.Generator().manual_seed(0))
    varied = to_bytes(out).numpy().reshape(len(chosen), views - 1, *plain.shape[1:])
    return np.concatenate([plain[:, None], varied], axis=1)


@torch.no_grad()
def _reconstructions(classifier: Classifier, dataset: Dataset) -> dict[str, np.ndarray]:
    """What an autoencoder makes of pictures of val (else train), over all classes, for the gallery: the pictures and
    their reconstructions, uint8 [P, 2, H, W, C], and ids. Nothing for a model that does not ``reconstruct``."""
    reconstruct = getattr(classifier.model, "reconstruct", None)
    if reconstruct is None:
        return {}
    split = "val" if dataset.val is not None else "train"
    images = dataset.split(split)
    # The first of every class, then the second of every class, and so on.
    counted = np.zeros(len(images), dtype=np.int64)
    for label in range(len(images.classes)):
        members = np.flatnonzero(images.strata == label)
        counted[members] = np.arange(len(members))
    chosen = np.lexsort((images.strata, counted))[:RECONSTRUCTED_SHOWN]
    plain = images.take(chosen)
    device = classifier.device
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (classifier.mean, classifier.std))
    made = reconstruct(classifier.normalize(torch.from_numpy(plain).to(device))).float() * std + mean
    pairs = np.stack([plain, to_bytes(made.clamp(0, 1)).cpu().numpy()], axis=1)
    return {f"reconstructions_{split}": pairs, f"reconstructions_{split}_ids": images.ids[chosen].astype(np.str_)}
