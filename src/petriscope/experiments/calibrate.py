"""Refit the temperature, thresholds and out-of-distribution detector of a trained model."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from petriscope.core.arguments import checked_arguments
from petriscope.core.device import enough_memory
from petriscope.core.errors import RequestError, command
from petriscope.core.files import path_text, slug, user_path
from petriscope.core.notebook import stoppable
from petriscope.core.recipe import TTA
from petriscope.core.results import Evaluation
from petriscope.core.scale import Scale, asked_scale
from petriscope.data.membership import Exposure
from petriscope.data.sources import NAMED
from petriscope.experiments.evaluate import evaluate_into, evaluate_split
from petriscope.experiments.own_data import choose_images, exposure_of, whole_data
from petriscope.inference import fit
from petriscope.inference.predictor import Predictor, load_model, model_path, save_trust
from petriscope.report.page import write_report
from petriscope.run.folder import is_run, open_run


@stoppable()
@enough_memory()
@checked_arguments
def calibrate(
    folder: str | PathLike[str], tta: TTA | None = None, device: str = "auto", quiet: bool = False
) -> Evaluation:
    """Refit the probabilities and thresholds of a trained run on val, and save them in its model file.

    Training does this for the recipe's test-time augmentation. Use this function for another augmentation, or for older
    runs, and `recalibrate` for images from elsewhere.

    Returns:
        the evaluation of val; it is also saved in the run folder if ``tta`` is the recipe's.

    Raises:
        RequestError: the task has nothing to calibrate, or the run is adapted to another place.
        DataError: the run's data have changed, or have no val split.
    """
    run = open_run(folder)
    with run.claimed():
        predictor = _load(folder, device)
        if (adapted := run.results.adaptation) is not None:
            raise RequestError(
                f"{run.folder} is adapted to {adapted.source}: its thresholds are fitted on held-out images from there, and val "
                f"is of {adapted.base}. For another place: {command('calibrate', run.folder, '--data', 'SOURCE')}"
            )
        dataset = whole_data(run, purpose="calibrate")
        val = dataset.split("val")
        tta = tta or predictor.recipe.evaluation.tta
        own = tta == predictor.recipe.evaluation.tta
        if own:  # scores of the detector, which is fitted anew, are in all that is fitted
            known = fit.fit_after_training(predictor, dataset.train, val, quiet)
        else:
            known = fit.calibrate(predictor, dataset.train, val, tta, quiet)
        save_trust(run.model, predictor)
        if (budget := run.results.budget) is not None:
            run.add_results(budget=budget.model_copy(update={"detector_images": None}))
        if not own:
            return evaluate_split(predictor, val, "val", tta, run.recipe.data.origin, quiet, known)[0]
        evaluation, _ = evaluate_into(run, predictor, dataset, "val", tta, quiet, known)
        write_report(run)
        return evaluation


@stoppable()
@enough_memory()
@checked_arguments
def recalibrate(
    model: str | PathLike[str],
    data: str | PathLike[str],
    out: str | Path | None = None,
    split: str = "val",
    tta: TTA | None = None,
    device: str = "auto",
    quiet: bool = False,
    keep_seen: bool = False,
    scale: Scale | None = None,
) -> tuple[Evaluation, Path]:
    """Fit a model's probabilities, thresholds and out-of-distribution limits on labeled images from elsewhere, such as
    another microscope. Write a model file whose guarantees hold for such images; the weights and the run do not change.

    Args:
        model: a run folder, or a model file.
        data: the source of the images; a source without splits is used as a whole.
        out: the model file to write; default: ``model-<data>.safetensors`` beside the model.
        split: the split of ``data`` to use.
        tta: test-time augmentation; None: fit both the recipe's and none.
        keep_seen: keep images that the model has seen, see `petriscope.evaluate`.
        scale: of the images, see `petriscope.evaluate`. The new model file reads image files and sources at this scale.

    Returns:
        the evaluation of these images, which is not evidence because the model was fitted on them; and the file.

    Raises:
        RequestError: the task has nothing to calibrate, or ``out`` exists.
        DataError: the images or their labels cannot be used.
    """
    data, path, asked = path_text(data), model_path(user_path(model)), asked_scale(scale)
    predictor = _load(model, device)
    out = Path(out) if out is not None else path.with_name(f"model-{short_name(data)}.safetensors")
    _check_absent(out)
    run = open_run(model) if is_run(model) else None
    chosen = choose_images(predictor, run, data, split, keep_seen, quiet, to_fit=True, scale=asked)
    images = chosen.images
    if chosen.scaling is not None:
        predictor = predictor.at_scale(chosen.scaling.scale)
    known = fit.recalibrate(predictor, images, tta, quiet)
    if (exposure := exposure_of(predictor, run)) is not None:
        predictor.exposure = exposure | Exposure(val=frozenset(images.digests()))
    _check_absent(out)  # another process may have written it meanwhile
    save_trust(path, predictor, out)
    evaluation, _ = evaluate_split(predictor, images, split, tta, data, quiet, known)
    return evaluation.model_copy(update={"seen": chosen.seen, "scale": chosen.scaling}), out


def _check_absent(out: Path) -> None:
    if out.exists():
        raise RequestError(f"{out} exists; choose another --out")


def short_name(source: str) -> str:
    """The name of a source in a form that can be part of a file name."""
    name = user_path(source)
    stem = source if source.partition(":")[0] in NAMED else name.resolve().name if name.is_dir() else name.stem
    return slug(stem, "audit")


def _load(model: str | PathLike[str], device: str) -> Predictor:
    predictor = load_model(model, device)
    if not predictor.task.calibrates:
        raise RequestError(f"{model} is a {predictor.task.name} model; only classification models can be calibrated")
    return predictor
