"""The Python face: audit, train, resume, evaluate, predict, report. The command line parses, calls these, and prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from petriscope.audit import runner
from petriscope.augment.pipeline import Normalize
from petriscope.core.device import choose_device
from petriscope.core.errors import DataError, PetriscopeError, RequestError
from petriscope.core.files import new_folder, number_folder, slug
from petriscope.core.progress import duration, say
from petriscope.core.recipe import DataSection, Recipe
from petriscope.data import Dataset, ImageSet, load_dataset
from petriscope.data.aligned import load_aligned
from petriscope.data.sources import NAMED
from petriscope.experiments.evaluate import evaluate_into, evaluate_labels
from petriscope.experiments.samples import augmented, reconstructions
from petriscope.experiments.stress_run import stress_after_training, stress_split
from petriscope.inference.calibrate import calibrate as fit_trust
from petriscope.inference.calibrate import calibrate_trained
from petriscope.inference.calibrate import recalibrate as fit_trust_elsewhere
from petriscope.inference.predict import find_images, predict_files
from petriscope.inference.predictor import Predictor, load_model, model_path, save_model, save_trust
from petriscope.inference.segmentation import evaluate_masks, segment_files
from petriscope.inference.speed import cost
from petriscope.inference.tta import TTA
from petriscope.models.cost import parameters
from petriscope.report.audit import write_audit_page
from petriscope.report.page import write_report
from petriscope.run.folder import Run, check_free, create_run, free_folder, open_run
from petriscope.training.build import absolute_paths, check_parts, prepare
from petriscope.training.loop import Trainer
from petriscope.trust.robustness import IMAGES

if TYPE_CHECKING:
    import pandas as pd

AUDITS = Path("audits")


def audit(
    source: str | Path,
    out: str | Path | None = None,
    section: DataSection | None = None,
    *,
    labels: bool = True,
    features: str | None = runner.LEARNED,
    seed: int = 0,
    quiet: bool = False,
) -> tuple[runner.Audit, Path]:
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
    found = runner.audit(source, section, labels=labels, features=features, seed=seed, quiet=quiet)
    with new_folder(folder) as staging:
        found.write(staging)
        write_audit_page(found, staging / "report.html", folder)
    return found, folder


def _short_name(source: str) -> str:
    """What a source is called, as a folder may be."""
    name = Path(source).expanduser()
    stem = source if source.partition(":")[0] in NAMED else name.resolve().name if name.is_dir() else name.stem
    return slug(stem, "audit")


def train(recipe: Recipe, out: str | Path | None = None, quiet: bool = False) -> Run:
    """Train by a recipe and write a run folder with a report. Val is evaluated; test is not read.

    Args:
        recipe: see `petriscope.core.recipe.load_recipe`.
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
    trainer, normalize = prepare(recipe, dataset, device, quiet)
    facts = {
        "device": str(device),
        "precision": trainer.format,
        "parameters": parameters(trainer.model),
        "normalize": {"mean": normalize.mean, "std": normalize.std},
    }
    run = create_run(folder, recipe, dataset, facts)
    with run.claimed():
        if not quiet:
            _introduce(run, recipe, dataset, facts)
        return _finish(run, trainer, normalize, dataset, quiet)


def resume(folder: str | Path, quiet: bool = False) -> Run:
    """Go on with a run that was interrupted or killed; its end is bit for bit that of a run never stopped (on a CPU).

    Raises:
        RequestError: no run there, it is finished, or another process trains it.
        DataError: the data are not those it was started with.
    """
    run = open_run(folder)
    with run.claimed():
        if "training" in run.results:
            raise RequestError(f"{folder} is finished; nothing to resume. petriscope report {folder} shows it")
        run.clean()
        recipe = run.recipe
        dataset = load_dataset(recipe.data)
        if dataset.fingerprint != run.environment["data"]["fingerprint"]:
            raise DataError(
                f"the data at {recipe.data.source} have changed since {folder} was started; train a new run"
            )
        threads = run.environment["hardware"]["threads"]
        if threads != torch.get_num_threads() and not quiet:
            say(
                f"note: started with {threads} threads, now {torch.get_num_threads()}: the last bits of the result may differ"
            )
        started = run.environment.get("normalize") if run.checkpoint.is_file() else None
        trainer, normalize = prepare(recipe, dataset, choose_device(recipe.training.device), quiet, started)
        return _finish(run, trainer, normalize, dataset, quiet)


def evaluate(
    folder: str | Path,
    data: str | None = None,
    split: str = "test",
    tta: TTA | None = None,
    device: str = "auto",
    quiet: bool = False,
    stress: bool = False,
    stress_images: int | None = IMAGES,
) -> dict[str, Any]:
    """Metrics of a run on a split, with 95 % intervals.

    Args:
        folder: the run; with ``data``, a model file will do.
        data: another source; a pile that is not split is evaluated whole. None: the run's own, and the metrics,
            predictions and report go into the run folder.
        split: train, val or test.
        tta: test-time augmentation; None: as the recipe says.
        stress: disturb the images too; see `petriscope.trust.robustness`. Without test-time augmentation unless
            ``tta`` says so.
        stress_images: how many of the split; None: all.

    Returns:
        see `petriscope.metrics.classification.full_metrics` and `petriscope.trust.state.trust_metrics`, or
        `petriscope.metrics.segmentation.full_mask_metrics` where targets are masks; and split, tta, source; of the
        run's own data, errors (of labels) and explanations (`petriscope.experiments.diagnostics`); with ``stress``, that too.
        Probabilities are at the temperature fitted on val.
    """
    if stress_images is not None and stress_images < 1:
        raise RequestError("a stress test needs at least one image")
    run = open_run(folder) if data is None else None
    predictor = load_model(Path(folder), device)
    if run is not None:
        own = _own_data(run)
        images = own.split(split)
        result, _ = evaluate_into(run, predictor, own, split, tta, quiet)
    else:
        data = str(data)
        images = _other_data(predictor, data, split, quiet)
        judge = evaluate_masks if predictor.segments else evaluate_labels
        result = judge(predictor, images, split, tta, data, quiet)[0]
    if stress:
        tested = stress_split(predictor, images, split, stress_images, tta or "none", quiet, into=run)
        result = {**result, "stress": tested}
    if run is not None:
        write_report(run)
    return result


def calibrate(folder: str | Path, tta: TTA | None = None, device: str = "auto", quiet: bool = False) -> dict[str, Any]:
    """Fit a trained run's probabilities and its thresholds on val anew, and keep them in its model file.

    Training does so for the test-time augmentation of the recipe. This is for another one, and for runs that were
    trained before Petriscope did. `recalibrate` does so on images from elsewhere.

    Returns:
        metrics on val, as `evaluate` gives them; they go into the run folder where ``tta`` is the recipe's.

    Raises:
        RequestError: it is a model of masks.
        DataError: the run's data have changed, or have no val split.
    """
    run = open_run(folder)
    predictor = _load_to_calibrate(folder, device)
    dataset = load_dataset(run.recipe.data)
    if dataset.fingerprint != run.environment["data"]["fingerprint"]:
        raise DataError(
            f"the data at {run.recipe.data.source} have changed since {folder} was trained: train a new run"
        )
    val = dataset.split("val")
    tta = tta or predictor.recipe.evaluation.tta
    answers = fit_trust(predictor, dataset.train, val, tta, quiet)
    save_trust(run.model, predictor.trust)
    if tta != predictor.recipe.evaluation.tta:
        return evaluate_labels(predictor, val, "val", tta, str(run.recipe.data.source), quiet, answers)[0]
    result, _ = evaluate_into(run, predictor, dataset, "val", tta, quiet, answers)
    write_report(run)
    return result


def recalibrate(
    folder: str | Path,
    data: str,
    out: str | Path | None = None,
    split: str = "val",
    tta: TTA | None = None,
    device: str = "auto",
    quiet: bool = False,
) -> tuple[dict[str, Any], Path]:
    """Fit a model's probabilities, its thresholds and its notion of unlike images on labeled images from elsewhere, such
    as another microscope, and write a model file that promises for those. Neither weights nor run are changed.

    Args:
        folder: a run, or a model file.
        data: the images; a pile that is not split is taken whole.
        out: the model file to write; default: ``model-<data>.safetensors`` beside the model.
        split: of ``data``.
        tta: test-time augmentation; None: as the recipe says, and none.

    Returns:
        metrics on these images, as `evaluate` gives them, which are no evidence, since they were fitted on; and the file.

    Raises:
        RequestError: it is a model of masks, or ``out`` exists.
        DataError: the images or their labels will not do.
    """
    path = model_path(Path(folder))
    predictor = _load_to_calibrate(folder, device)
    out = Path(out) if out is not None else path.with_name(f"model-{_short_name(data)}.safetensors")
    if out.exists():
        raise RequestError(f"{out} exists; choose another --out")
    images = _other_data(predictor, data, split, quiet)
    answers = fit_trust_elsewhere(predictor, images, tta, quiet)
    save_trust(path, predictor.trust, out)
    return evaluate_labels(predictor, images, split, tta, data, quiet, answers)[0], out


def predict(
    folder: str | Path,
    images: Sequence[str | Path],
    tta: TTA | None = None,
    device: str = "auto",
    quiet: bool = False,
    max_error: float | None = None,
    sets: float | None = None,
    masks: str | Path | None = None,
) -> pd.DataFrame:
    """Classes of image files, or their masks.

    Args:
        folder: a run, or a model file.
        images: files, or folders of them.
        max_error: the largest error rate wanted among answered images, such as 0.01; None: all that are like the
            training images are answered.
        sets: how often a set of classes should hold the true one, such as 0.95; None: no sets.
        masks: of a model of masks, the folder they are written to; see `petriscope.inference.segmentation.segment_files`.

    Returns:
        one row per image: image, predicted, confidence, error, answer, why, set (if asked for), and a probability a
        class (``p_<class>``). ``answer`` is the predicted class, or ``not sure``, and ``why`` says what for; an image
        that cannot be read has an error, and neither a prediction nor an answer. See docs/trust.md.

    Raises:
        RequestError: the model file does not hold what ``max_error`` or ``sets`` need.
    """
    predictor = load_model(Path(folder), device)
    paths = find_images([Path(p) for p in images])
    if not predictor.segments:
        return predict_files(predictor, paths, tta, quiet, max_error, sets)
    if max_error is not None or sets is not None:
        raise RequestError(f"{folder} is a model of masks; --max-error and --sets are for labels")
    if masks is None:
        raise RequestError(f"{folder} is a model of masks; say where they go with --out FOLDER")
    return segment_files(predictor, paths, Path(masks), tta, quiet)


def explain(
    folder: str | Path,
    images: Sequence[str | Path],
    out: str | Path,
    method: str = "auto",
    of: str | None = None,
    device: str = "auto",
    quiet: bool = False,
) -> pd.DataFrame:
    """Where a model looks in image files: an overlay of each, and a page of all, in the folder ``out``.

    Args:
        folder: a run, or a model file.
        images: files, or folders of them.
        out: a folder that does not exist or is empty.
        method: a name in `petriscope.explain.EXPLAINERS`, or ``auto``.
        of: the class asked about; None: the one predicted, image by image; of masks, the one that has most pixels,
            the background only where there is nothing else.

    Returns:
        one row per image: image, predicted, confidence, explained (the class asked about), overlay (the file), error. Of a
        model of masks, predicted is the class that has most pixels, confidence the mean probability of the class asked
        about over the pixels predicted as it, and there are share, of the image that these take, and note: of an image
        without such a pixel, which has no overlay.
    """
    from petriscope.explain.image_files import explain_files

    results = open_run(folder).results if Path(folder).is_dir() else {}
    predictor, files = load_model(Path(folder), device), find_images([Path(p) for p in images])
    return explain_files(predictor, files, Path(out), method, of, results, quiet)


def report(folder: str | Path) -> Path:
    """Write ``report.html`` anew from what is in the run folder."""
    return write_report(open_run(folder))


def _introduce(run: Run, recipe: Recipe, dataset: Dataset, facts: dict[str, Any]) -> None:
    height, width, channels = dataset.shape
    sizes = ", ".join(f"{name} {len(part):,}" for name, part in dataset.splits.items())
    say(
        f"{recipe.name} on {recipe.data.source}: {sizes} images, {height}x{width}x{channels}, {len(dataset.classes)} classes"
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
    predictor = Predictor(
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
        "images_per_second": float(np.median([line["images_per_second"] for line in at.history])),
    }
    answers = None
    if dataset.val is not None and not predictor.segments:
        answers = calibrate_trained(predictor, dataset.train, dataset.val, quiet)
    save_model(run.model, weights, predictor, {"environment": run.environment, "training": summary})
    run.add_gallery(**augmented(trainer, dataset), **reconstructions(predictor, dataset))
    if dataset.val is not None:
        evaluate_into(run, predictor, dataset, "val", None, quiet, answers)
        stress_after_training(run, predictor, dataset.val, at.seconds, quiet)
    run.add_results(cost=cost(predictor), training=summary)
    write_report(run)
    if not quiet:
        say(f"trained in {duration(at.seconds)}; report: {run.folder / 'report.html'}")
    return run


def _load_to_calibrate(folder: str | Path, device: str) -> Predictor:
    predictor = load_model(Path(folder), device)
    if predictor.segments:
        raise RequestError(f"{folder} is a model of masks; calibration is for labels")
    return predictor


def _own_data(run: Run) -> Dataset:
    dataset = load_dataset(run.recipe.data)
    if dataset.fingerprint != run.environment["data"]["fingerprint"]:
        say(f"warning: the data at {run.recipe.data.source} have changed since this run was trained")
    return dataset


def _other_data(predictor: Predictor, data: str, split: str, quiet: bool) -> ImageSet:
    height, width, channels = predictor.shape
    section = predictor.recipe.data.model_copy(
        update={"source": data, "size": (height, width), "channels": "gray" if channels == 1 else "rgb", "audit": None}
    )
    images, warnings = load_aligned(section, split, predictor.classes, predictor.segments)
    for warning in () if quiet else warnings:
        say(f"warning: {warning}")
    return images
