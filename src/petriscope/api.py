"""The Python face: audit, train, resume, evaluate, predict, report. The command line parses, calls these, and prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from petriscope.audit import auditing
from petriscope.augment.base import Mixing
from petriscope.augment.pipeline import Normalize, Pipeline, to_bytes
from petriscope.calibrating import calibrate as fit_trust
from petriscope.classifier import Answers, Classifier, load_model, save_model, save_trust
from petriscope.data import Dataset, ImageSet, load_dataset
from petriscope.data.aligned import load_aligned
from petriscope.data.batches import Batches
from petriscope.data.sources import NAMED
from petriscope.data.statistics import mean_and_std
from petriscope.errors import DataError, PetriscopeError, RequestError
from petriscope.evaluation.cost import cost, parameters
from petriscope.evaluation.inference import TTA
from petriscope.evaluation.metrics import full_metrics
from petriscope.evaluation.segmentation import Tally
from petriscope.evaluation.stress import PICTURES
from petriscope.evaluation.trust import trust_figures
from petriscope.files import new_folder, number_folder
from petriscope.inspecting import inspect, inspect_masks
from petriscope.models import MODELS, build_model
from petriscope.precision import choose_device
from petriscope.predicting import find_pictures, predict_files
from petriscope.progress import duration, say
from petriscope.recipe import DataSection, Part, Recipe
from petriscope.report.audit import write_audit_page
from petriscope.report.page import write_report
from petriscope.run import Run, check_free, create_run, free_folder, open_run
from petriscope.segmenting import evaluate_masks, keep_masks, segment_files
from petriscope.stressing import stress_after_training, stress_split
from petriscope.training.loop import Trainer

if TYPE_CHECKING:
    import pandas as pd

MISTAKES_SHOWN = 24
AUGMENTED_SHOWN = (8, 8)  # pictures, views of each
RECONSTRUCTED_SHOWN = 8
VAL_CHUNK = 1024
AUDITS = Path("audits")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def audit(
    source: str | Path,
    out: str | Path | None = None,
    section: DataSection | None = None,
    *,
    labels: bool = True,
    features: str | None = auditing.LEARNED,
    seed: int = 0,
    quiet: bool = False,
) -> tuple[auditing.Audit, Path]:
    """Look for what is wrong with a source, and write the findings into a folder. The source is not touched.

    Args:
        out: the folder to make: ``findings.csv`` and ``.parquet``, ``decisions.yaml``, ``summary.json``,
            ``report.html``; default ``audits/<source>``. It appears when it is complete.
        section, labels, features, seed, quiet: see `petriscope.audit.audit`.

    Returns:
        what was found, and the folder.

    Raises:
        RequestError: the source, the features or the folder will not do; nothing was made.
    """
    folder = Path(out) if out is not None else number_folder(AUDITS / _short_name(str(source)))
    check_free(folder)
    found = auditing.audit(source, section, labels=labels, features=features, seed=seed, quiet=quiet)
    with new_folder(folder) as staging:
        found.write(staging)
        write_audit_page(found, staging / "report.html", folder)
    return found, folder


def _short_name(source: str) -> str:
    """What a source is called, as a folder may be."""
    name = Path(source).expanduser()
    stem = source if source.partition(":")[0] in NAMED else name.resolve().name if name.is_dir() else name.stem
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in stem).strip(".-") or "audit"


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
    stress: bool = False,
    stress_pictures: int | None = PICTURES,
) -> dict[str, Any]:
    """Figures of a run on a split, with 95 % intervals.

    Args:
        folder: the run.
        data: another source; a pile that is not split is evaluated whole. None: the run's own, and the figures,
            predictions and report go into the run folder.
        split: train, val or test.
        tta: test-time augmentation; None: as the recipe says.
        stress: disturb the pictures too; see `petriscope.evaluation.stress`. Without test-time augmentation unless
            ``tta`` says so.
        stress_pictures: how many of the split; None: all.

    Returns:
        see `petriscope.evaluation.metrics.full_metrics` and `petriscope.evaluation.trust.trust_figures`, or
        `petriscope.evaluation.segmentation.full_mask_metrics` where targets are masks; and split, tta, source; of the
        run's own data, errors (of labels) and explanations (`petriscope.inspecting`); with ``stress``, that too.
        Probabilities are at the temperature fitted on val.
    """
    if stress_pictures is not None and stress_pictures < 1:
        raise RequestError("a stress test needs at least one picture")
    run = open_run(folder)
    classifier = load_model(run.model, device)
    if data is None:
        own = _own_data(run)
        images = own.split(split)
        result, _ = evaluate_into(run, classifier, own, split, tta, quiet)
    else:
        images = _other_data(classifier, data, split, quiet)
        judge = evaluate_masks if classifier.segments else _evaluate
        result = judge(classifier, images, split, tta, data, quiet)[0]
    if stress:
        into = run if data is None else None
        tested = stress_split(classifier, images, split, stress_pictures, tta or "none", quiet, into=into)
        result = {**result, "stress": tested}
    if data is None:
        write_report(run)
    return result


def calibrate(folder: str | Path, tta: TTA | None = None, device: str = "auto", quiet: bool = False) -> dict[str, Any]:
    """Fit a trained run's probabilities and its thresholds on val anew, and keep them in its model file.

    Training does so for the test-time augmentation of the recipe. This is for another one, and for runs that were
    trained before Petriscope did.

    Returns:
        figures on val, as `evaluate` gives them; they go into the run folder where ``tta`` is the recipe's.

    Raises:
        RequestError: it is a model of masks.
        DataError: the run's data have changed, or have no val split.
    """
    run = open_run(folder)
    classifier = load_model(run.model, device)
    if classifier.segments:
        raise RequestError(f"{folder} is a model of masks; calibration is for labels")
    dataset = load_dataset(run.recipe.data)
    if dataset.fingerprint != run.environment["data"]["fingerprint"]:
        raise DataError(
            f"the data at {run.recipe.data.source} have changed since {folder} was trained: train a new run"
        )
    val = dataset.split("val")
    tta = tta or classifier.recipe.evaluation.tta
    answers = fit_trust(classifier, dataset.train, val, tta, quiet)
    save_trust(run.model, classifier.trust)
    if tta != classifier.recipe.evaluation.tta:
        return _evaluate(classifier, val, "val", tta, str(run.recipe.data.source), quiet, answers)[0]
    result, _ = evaluate_into(run, classifier, dataset, "val", tta, quiet, answers)
    write_report(run)
    return result


def predict(
    folder: str | Path,
    pictures: Sequence[str | Path],
    tta: TTA | None = None,
    device: str = "auto",
    quiet: bool = False,
    max_error: float | None = None,
    sets: float | None = None,
    masks: str | Path | None = None,
) -> pd.DataFrame:
    """Classes of picture files, or their masks.

    Args:
        folder: a run, or a model file.
        pictures: files, or folders of them.
        max_error: the largest error rate wanted among answered pictures, such as 0.01; None: all that are like the
            training pictures are answered.
        sets: how often a set of classes should hold the true one, such as 0.95; None: no sets.
        masks: of a model of masks, the folder they are written to; see `petriscope.segmenting.segment_files`.

    Returns:
        a row a picture: picture, predicted, confidence, error, answer, why, set (if asked for), and a probability a
        class (``p_<class>``). ``answer`` is the predicted class, or ``not sure``, and ``why`` says what for; a picture
        that cannot be read has an error, and neither a prediction nor an answer. See docs/trust.md.

    Raises:
        RequestError: the model file does not hold what ``max_error`` or ``sets`` need.
    """
    classifier = load_model(Path(folder), device)
    paths = find_pictures([Path(p) for p in pictures])
    if not classifier.segments:
        return predict_files(classifier, paths, tta, quiet, max_error, sets)
    if max_error is not None or sets is not None:
        raise RequestError(f"{folder} is a model of masks; --max-error and --sets are for labels")
    if masks is None:
        raise RequestError(f"{folder} is a model of masks; say where they go with --out FOLDER")
    return segment_files(classifier, paths, Path(masks), tta, quiet)


def explain(
    folder: str | Path,
    pictures: Sequence[str | Path],
    out: str | Path,
    method: str = "auto",
    of: str | None = None,
    device: str = "auto",
    quiet: bool = False,
) -> pd.DataFrame:
    """Where a model looks in picture files: an overlay of each, and a page of all, in the folder ``out``.

    Args:
        folder: a run, or a model file.
        pictures: files, or folders of them.
        out: a folder that does not exist or is empty.
        method: a name in `petriscope.explain.EXPLAINERS`, or ``auto``.
        of: the class asked about; None: the one predicted, picture by picture; of masks, the one that has most pixels,
            the background only where there is nothing else.

    Returns:
        a row a picture: picture, predicted, confidence, explained (the class asked about), overlay (the file), error. Of a
        model of masks, predicted is the class that has most pixels, confidence the mean probability of the class asked
        about over the pixels predicted as it, and there are share, of the picture that these take, and note: of a picture
        without such a pixel, which has no overlay.
    """
    from petriscope.explaining import explain_files

    results = open_run(folder).results if Path(folder).is_dir() else {}
    classifier, files = load_model(Path(folder), device), find_pictures([Path(p) for p in pictures])
    return explain_files(classifier, files, Path(out), method, of, results, quiet)


def report(folder: str | Path) -> Path:
    """Write ``report.html`` anew from what is in the run folder."""
    return write_report(open_run(folder))


def check_parts(recipe: Recipe) -> None:
    """Find a wrong name or option before the data are read."""
    from petriscope.training.losses import LOSSES, views_of
    from petriscope.training.optimizers import OPTIMIZERS
    from petriscope.training.schedules import SCHEDULES

    Pipeline.from_recipe(recipe.augment, views=views_of(recipe.loss))
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
    if recipe.data.audit is not None:
        data = changes.get("data", recipe.data)
        changes["data"] = data.model_copy(update={"audit": absolute(recipe.data.audit)})
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
    if dataset.audited:
        dropped = sum(entry.decision == "drop" for entry in dataset.audited)
        say(
            f"the audit's decisions leave out {dropped:,} and relabel {len(dataset.audited) - dropped:,}: "
            f"{run.folder / 'audited.csv'}"
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
    answers = None
    if dataset.val is not None and not classifier.segments:
        answers = fit_trust(classifier, dataset.train, dataset.val, None, quiet)
    save_model(run.model, weights, classifier, {"environment": run.environment, "training": summary})
    run.add_gallery(augmented=_augmented_samples(trainer, dataset), **_reconstructions(classifier, dataset))
    if dataset.val is not None:
        evaluate_into(run, classifier, dataset, "val", None, quiet, answers)
        stress_after_training(run, classifier, dataset.val, at.seconds, quiet)
    run.add_results(cost=cost(classifier), training=summary)
    write_report(run)
    if not quiet:
        say(f"trained in {duration(at.seconds)}; report: {run.folder / 'report.html'}")
    return run


def evaluate_into(
    run: Run,
    classifier: Classifier,
    dataset: Dataset,
    split: str,
    tta: TTA | None = None,
    quiet: bool = False,
    answers: Answers | None = None,
) -> tuple[dict[str, Any], np.ndarray | Tally]:
    """Evaluate a split of the run's own data, and keep figures, predictions and pictures in the run.

    Args:
        answers: where the pictures have been looked at already.

    Returns:
        figures, and probabilities, float32 [N, K]; where targets are masks, the counts of each picture.
    """
    images = dataset.split(split)
    if classifier.segments:
        result, tally = evaluate_masks(classifier, images, split, tta, str(run.recipe.data.source), quiet)
        keep_masks(run, classifier, images, split, result, tally)
        return {**result, **inspect_masks(run, classifier, images, split, tally, quiet)}, tally
    result, probabilities = _evaluate(classifier, images, split, tta, str(run.recipe.data.source), quiet, answers)
    _record(run, images, split, result, probabilities)
    return {**result, **inspect(run, classifier, dataset, split, probabilities, quiet)}, probabilities


def _evaluate(
    classifier: Classifier,
    images: ImageSet,
    split: str,
    tta: TTA | None,
    source: str,
    quiet: bool,
    answers: Answers | None = None,
) -> tuple[dict[str, Any], np.ndarray]:
    """Figures and probabilities."""
    settings, classes = classifier.recipe.evaluation, classifier.classes
    tta = tta or settings.tta
    if answers is None:
        batches = Batches(images, classifier.device, classifier.recipe.data.memory)
        answers = classifier.answer_set(batches, tta, None if quiet else f"evaluating {split}")
    figures = full_metrics(answers.probabilities, images.targets, classes, settings.bootstrap)
    trust = trust_figures(
        answers.raw,
        answers.probabilities,
        images.targets,
        answers.outlier,
        classes,
        classifier.trust.references.get(tta),
        classifier.temperature(tta),
    )
    return {"split": split, "tta": tta, "source": source, **figures, **trust}, answers.probabilities


def _own_data(run: Run) -> Dataset:
    dataset = load_dataset(run.recipe.data)
    if dataset.fingerprint != run.environment["data"]["fingerprint"]:
        say(f"warning: the data at {run.recipe.data.source} have changed since this run was trained")
    return dataset


def _other_data(classifier: Classifier, data: str, split: str, quiet: bool) -> ImageSet:
    height, width, channels = classifier.shape
    section = classifier.recipe.data.model_copy(
        update={"source": data, "size": (height, width), "channels": "gray" if channels == 1 else "rgb", "audit": None}
    )
    images, warnings = load_aligned(section, split, classifier.classes, classifier.segments)
    for warning in () if quiet else warnings:
        say(f"warning: {warning}")
    return images


def _record(run: Run, images: ImageSet, split: str, result: dict[str, Any], probabilities: np.ndarray) -> None:
    table = prediction_table(images, split, probabilities)
    run.add_predictions(split, table)
    run.add_results(**{split: result})
    wrong = np.flatnonzero((table["target"] != table["predicted"]).to_numpy())
    worst = wrong[np.argsort(-table["confidence"].to_numpy()[wrong], kind="stable")][:MISTAKES_SHOWN]
    run.add_gallery(
        **{f"mistakes_{split}": images.take(worst), f"mistakes_{split}_ids": images.ids[worst].astype(np.str_)}
    )


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
    out = out[-len(batch) :]  # where views are made, the last of them
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
