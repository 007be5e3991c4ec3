"""The Python API. The command line parses its arguments, calls these functions, and prints their results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petriscope.audit import runner
from petriscope.core.arguments import checked_arguments
from petriscope.core.device import enough_memory
from petriscope.core.errors import RequestError
from petriscope.core.files import is_device, new_folder, path_text, readable
from petriscope.core.notebook import stoppable
from petriscope.core.progress import say
from petriscope.core.recipe import TTA, DataSection, Part, Recipe
from petriscope.core.scale import Scale, asked_scale
from petriscope.data.in_memory import AnyFile
from petriscope.experiments import auto, in_shards
from petriscope.experiments.adapt import adapt as adapt
from petriscope.experiments.bench import run_suite as run_suite
from petriscope.experiments.beside_val import write_compared
from petriscope.experiments.budget import Budget, Clock
from petriscope.experiments.calibrate import calibrate as calibrate
from petriscope.experiments.calibrate import recalibrate as recalibrate
from petriscope.experiments.calibrate import short_name
from petriscope.experiments.compare import compare as compare
from petriscope.experiments.cross_validate import Final, cross_validate, cross_validate_in_time
from petriscope.experiments.ensemble import ensemble as ensemble
from petriscope.experiments.evaluate import evaluate as evaluate
from petriscope.experiments.train import resume as resume
from petriscope.experiments.train import train as train_recipe
from petriscope.experiments.tune import tune as tune
from petriscope.explain.image_files import explain_files
from petriscope.inference.decoding import find_images, pixels_to_show
from petriscope.inference.exported import open_model
from petriscope.inference.given import as_files
from petriscope.inference.likeness import Compared
from petriscope.inference.predict import predict_files
from petriscope.inference.predictor import Predictor
from petriscope.inference.scaling import ChosenScale, choose_scale, sentence, sizes_in_files
from petriscope.inference.table import Rows
from petriscope.report.audit import write_audit_page
from petriscope.report.explanations import checked, write_page
from petriscope.report.notebook import Report
from petriscope.report.page import write_report
from petriscope.run.folder import Run, check_free, is_run, open_run
from petriscope.run.trackers import check_trackers
from petriscope.run.trackers.process import send
from petriscope.ship.export import export as export
from petriscope.ship.export import export_bioimageio as export_bioimageio
from petriscope.ship.export import export_page as export_page
from petriscope.ship.server.limits import Limits as Limits
from petriscope.ship.server.start import serve as serve
from petriscope.trust.prior import Names, Shares, parse_prior

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from PIL.Image import Image

    Model = str | PathLike[str] | Predictor
    Images = str | PathLike[str] | np.ndarray | Image | bytes

AUDITS = Path("audits")


@stoppable()
@checked_arguments
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
    """Look for problems in a source, and write the findings into a folder. The source is not changed.

    Args:
        out: the folder to make, default ``audits/<source>``. It gets ``findings.csv`` and ``.parquet``,
            ``decisions.yaml``, ``summary.json`` and ``report.html``, and appears only when it is complete.
        section, labels, features, seed, quiet: see `petriscope.audit.audit`.

    Returns:
        the audit, and the folder.

    Raises:
        RequestError: the source, the features or the folder cannot be used; nothing was made.
    """
    if out is not None:
        check_free(Path(out))
    folder = AUDITS / short_name(str(source)) if out is None else Path(out)
    found = runner.audit(source, section, labels=labels, features=features, seed=seed, quiet=quiet)
    with new_folder(folder, numbered=out is None) as (staging, folder):
        found.write(staging)
        write_audit_page(found, staging / "report.html", folder)
    return found, folder


@checked_arguments
def train(
    recipe: Recipe | str | PathLike[str] | None = None,
    out: str | Path | None = None,
    quiet: bool = False,
    *,
    data: str | PathLike[str] | None = None,
    minutes: float | None = None,
    processor_minutes: float | None = None,
    settings: Sequence[str] = (),
    seed: int = 0,
    audit: str | None = None,
    folds: int | None = None,
    repeats: int = 1,
    final: Final | None = None,
    jobs: int | None = None,
    on: str | None = None,
    cpus: int = 1,
    gpus: float | None = None,
) -> Run:
    """Train according to a recipe, or on a source without one, and write a run folder with a report. Val is evaluated; test is
    not read.

    Args:
        recipe: see `petriscope.core.recipe.load_recipe`; or the name or file of one; or None, with ``data``.
        out: the folder to make; default ``runs/<recipe>-seed<N>`` or ``runs/auto-<source>-seed<N>``.
        quiet: show no progress.
        data: a source to train on without a recipe: one is planned for it and for this machine. See
            `petriscope.experiments.auto`.
        minutes: with ``data``, that all may take: training, calibration, a short stress test and the report; default 20.
        processor_minutes: in place of ``minutes``, those of the processors, all cores together.
        settings, seed, audit: with ``data``: ``KEY=VALUE`` of the recipe, its seed, and the folder of an audit whose
            decisions are carried out.
        folds: judge by cross-validation with so many folds; ``out`` is then the folder of all its runs, and the same call goes
            on where it was stopped. See `petriscope.experiments.cross_validate`, also for ``repeats`` and ``final``.
        jobs, on, cpus, gpus: with ``folds``, where these are trained, as of `run_suite`.

    Raises:
        RequestError: the recipe, the data or the folder cannot be used; nothing was made.
        Interrupted: Ctrl-C; `resume` continues from there.
    """
    place: dict[str, Any] = {"jobs": jobs, "on": on, "cpus": cpus, "gpus": gpus}
    if folds is None and (repeats, final, *place.values()) != (1, None, None, None, 1, None):
        raise RequestError("repeats, final, jobs, on, cpus and gpus are for cross-validation; give folds too")
    if (recipe is None) == (data is None):
        raise RequestError("train takes a recipe, whose data.source names the data, or data without a recipe")
    if recipe is not None:
        if minutes is not None or processor_minutes is not None or settings or seed or audit:
            raise RequestError("with a recipe, minutes, settings, seed and audit are set in the recipe itself")
        if folds is not None:
            return cross_validate(recipe, folds, repeats, final, out, quiet, **place)
        return train_recipe(recipe, out, quiet)
    assert data is not None
    if folds is not None:
        budget = _budget(minutes, processor_minutes)
        return cross_validate_in_time(data, folds, repeats, final, out, budget, settings, seed, audit, quiet, **place)
    return auto.train_in_time(data, out, _budget(minutes, processor_minutes), settings, seed, audit, quiet)


@stoppable()
@enough_memory()
@checked_arguments
def plan(
    data: str | PathLike[str],
    minutes: float | None = None,
    processor_minutes: float | None = None,
    settings: Sequence[str] = (),
    seed: int = 0,
    audit: str | None = None,
) -> list[str]:
    """What `train` would do with a source, in five lines and what else should be known. Nothing is trained or made."""
    found = auto.plan(data, Clock(_budget(minutes, processor_minutes)), settings, seed, audit)
    return [*found.lines, *(f"warning: {note}" for note in (*found.notes, *found.dataset.warnings))]


def _budget(minutes: float | None, processor_minutes: float | None) -> Budget:
    if minutes is not None and processor_minutes is not None:
        raise RequestError("minutes and processor_minutes exclude one another")
    if processor_minutes is not None:
        return Budget(processor_minutes, processor=True)
    return Budget(auto.MINUTES if minutes is None else minutes)


@stoppable()
@enough_memory()
@checked_arguments
def predict(
    model: Model,
    images: Images | Iterable[Images],
    tta: TTA | None = None,
    device: str = "auto",
    quiet: bool = False,
    max_error: float | None = None,
    set_coverage: float | None = None,
    out: str | Path | None = None,
    classes: Names | None = None,
    prior: Shares | None = None,
    without_guarantee: bool = False,
    scale: Scale | None = None,
    tiles: float | None = None,
) -> pd.DataFrame:
    """Predict the classes of image files, or their masks.

    Args:
        model: a run folder, a model file, a package, or a predictor that was loaded from one.
        images: image files or folders of them; uint8 arrays [H, W], [H, W, C] or [N, H, W, C]; PIL images; the bytes of image
            files; or a list of these. What has no path is called ``image-0``, ``image-1`` ... in the order given.
        tta: test-time augmentation; None: the recipe's.
        max_error: the largest error rate allowed among answers, such as 0.01; None: abstain only on images that are out of
            distribution.
        set_coverage: how often a prediction set should contain the true class, such as 0.95; None: no sets.
        out: classification: a CSV file to write, or None. Segmentation: a folder for the masks and ``masks.csv``; required.
        classes: names of the classes that occur among these images, two or more; the others get probability 0. None: all do.
        prior: the share of each class among these images, such as ``{"a": 0.7, "b": 0.3}``; classes without one do not occur.
            None: the shares are those of val. See `petriscope.trust.prior`.
        without_guarantee: with ``max_error`` or ``set_coverage``, the images are compared with those of val as a set, and if
            they are shown not to be like them, nothing is answered, which is said; with ``out``, a page beside the file shows
            some of them beside some of val. True: answer all the same, without any claim about errors or coverage.
        scale: how many times objects are enlarged first, such as 1.3; or micrometers per pixel of the files, such as ``0.23um``,
            for a model that knows its field of view; or ``estimated``, from the sizes of objects here and in val, for 20 images
            or more. None: as the model reads images; an adapted run reads them at the scale of the place it was adapted to.
        tiles: segmentation: images keep their own sizes, and are predicted by tiles of the model's size, neighbors of which
            overlap by this share of their side, 0 to 0.5. None: as the model was trained.

    Returns:
        one row per image. Classification: image, predicted, confidence, error, answer, why, set (if asked for), assumed (if
        ``classes`` or ``prior`` is given, or images are scaled), and one probability per class (``p_<class>``). ``answer`` is
        the predicted class, or ``not sure`` with the reason in ``why``. An image that cannot be read has an error, and neither
        prediction nor answer. Segmentation: see `petriscope.inference.segmentation.predict_files`.

    Raises:
        RequestError: there is no such model or image, or the model cannot give what ``max_error``, ``set_coverage``,
            ``classes``, ``prior`` or ``scale`` ask for.
    """
    from petriscope.report.predictions import Predictions

    predictor, files, found = _predicted(
        model, images, tta, device, quiet, max_error, set_coverage, out, classes, prior, without_guarantee, scale, tiles
    )
    table = Predictions([row for rows in found for row in rows], columns=list(found.columns))
    named = {readable(str(file)): file for file in files}
    reading, channels = predictor.reading, predictor.shape[2]
    table.pixels_of = lambda name: pixels_to_show(named[name], reading, channels)
    return table


@checked_arguments
def predict_rows(
    model: Model,
    images: Images | Iterable[Images],
    tta: TTA | None = None,
    device: str = "auto",
    quiet: bool = False,
    max_error: float | None = None,
    set_coverage: float | None = None,
    out: str | Path | None = None,
    classes: Names | None = None,
    prior: Shares | None = None,
    without_guarantee: bool = False,
    scale: Scale | None = None,
    tiles: float | None = None,
) -> Rows:
    """`predict` for any number of images: rows are predicted, and written to ``out``, while they are read."""
    return _predicted(
        model, images, tta, device, quiet, max_error, set_coverage, out, classes, prior, without_guarantee, scale, tiles
    )[2]


def _predicted(
    model: Model,
    images: Images | Iterable[Images],
    tta: TTA | None,
    device: str,
    quiet: bool,
    max_error: float | None,
    set_coverage: float | None,
    out: str | Path | None,
    classes: Names | None,
    prior: Shares | None,
    without_guarantee: bool,
    scale: Scale | None,
    tiles: float | None,
) -> tuple[Predictor, list[AnyFile], Rows]:
    asked = asked_scale(scale)
    if without_guarantee and max_error is None and set_coverage is None:
        raise RequestError("without_guarantee needs max_error or set_coverage: without them, nothing is guaranteed")
    predictor = _predictor(model, device).by_tiles(tiles)
    files = find_images(as_files(images), predictor.reading.pages)
    if predictor.recipe.data.crop is not None and not quiet:
        say(
            "note: the model learned from objects that were cut out of images (data.crop); an image here must show one object"
        )
    fitted = {*predictor.trust.references, *predictor.trust.labels}
    if tta is not None and fitted and tta not in fitted and not quiet:
        own = predictor.recipe.evaluation.tta
        used = f"the temperature of {own} is used" if own in fitted else "no temperature is used"
        say(
            f"note: nothing was fitted on val for test-time augmentation {tta}, so {used}; petriscope calibrate RUN --tta {tta} "
            "fits one"
        )
    known = parse_prior(predictor.classes, classes, prior)
    predictor = predictor.under(known)
    if known is not None and not quiet:
        say(f"note: {known.sentence()}")
    chosen = choose_scale(predictor, asked, lambda: sizes_in_files(predictor, files, quiet))
    predictor = predictor.at_scale(chosen.scale)
    if chosen.scale is not None and not quiet:
        say(f"note: {sentence(chosen)}")
    place = None if out is None else Path(out)

    def show(compared: Compared) -> None:
        if place is not None and not is_device(place):  # beside which no file belongs
            named = "RUN" if isinstance(model, Predictor) else path_text(model)
            source = str(files[0].parent) if isinstance(files[0], Path) else "NEW"
            write_compared(
                place.with_name(f"{place.stem}-shift.html"),
                compared,
                predictor.classes,
                named,
                source,
                None,
                predictor.channels,
            )

    rows = predict_files(predictor, files, place, tta, max_error, set_coverage, quiet, without_guarantee, show)
    return predictor, files, rows


@enough_memory()
@checked_arguments
def predict_in_shards(
    model: str | PathLike[str],
    sources: str | PathLike[str] | Iterable[str | PathLike[str]],
    out: str | PathLike[str],
    shards: int,
    jobs: int | None = None,
    device: str = "auto",
    quiet: bool = False,
    tta: TTA | None = None,
    max_error: float | None = None,
    set_coverage: float | None = None,
    classes: Names | None = None,
    prior: Shares | None = None,
    without_guarantee: bool = False,
    scale: Scale | None = None,
    on: str | None = None,
    cpus: int = 1,
    gpus: float | None = None,
) -> in_shards.Summary:
    """Predict any number of images in shards, one Parquet file each, with memory that does not grow with their number. Called
    again with the same arguments, it goes on where it was stopped; called on several machines with one folder, they share the
    work.

    Args:
        model: a run folder, a model file, or a package of a model for labels.
        sources: image files, folders of them, tar files with images (a folder of them, or a pattern such as
            ``cells-{000..009}.tar``), Parquet files with the bytes of images, or addresses of these, such as ``s3://bucket/cells``.
        out: a folder for ``shard-00000.parquet`` ... and ``summary.json``, which is new, or was begun by the same call.
        shards: how many files; fewer, if the sources have fewer parts that are read one by one: image files, tar files, or row
            groups of Parquet files.
        jobs: processes; None: one per core, or one on a GPU, or on a cluster as many as it has room for.
        on, cpus, gpus: a cluster; see `petriscope.experiments.pools.open_pool`.
        max_error, set_coverage, without_guarantee: as of `predict`. Each shard, and all images together, are compared with those
            of val; answers are written when that is done. Where a shard alone is not like val, it alone is not answered.
        device, quiet, tta, classes, prior, scale: as of `predict`; the scale cannot be estimated.

    Returns:
        the summary. The rows have the columns of `predict`, and ``ood``, the out-of-distribution score.

    Raises:
        RequestError: something cannot be used, or the folder was begun with something else.
        PetriscopeError: a source cannot be read, or a process failed. The same call goes on from there.
    """
    each = [sources] if isinstance(sources, str | PathLike) else list(sources)
    return in_shards.predict_in_shards(
        model,
        [path_text(source) for source in each],
        out,
        shards,
        jobs,
        device,
        quiet,
        tta,
        max_error,
        set_coverage,
        classes,
        prior,
        without_guarantee,
        scale,
        on,
        cpus,
        gpus,
    )


@stoppable()
@enough_memory()
@checked_arguments
def explain(
    model: Model,
    images: Images | Iterable[Images],
    out: str | Path,
    method: str = "auto",
    of: str | None = None,
    device: str = "auto",
    quiet: bool = False,
) -> pd.DataFrame:
    """Explain the predictions for image files: write an overlay per image and a page of all into the folder ``out``.

    Args:
        model: a run folder, a model file, or a predictor that was loaded from one.
        images: image files or folders of them; uint8 arrays [H, W], [H, W, C] or [N, H, W, C]; PIL images; the bytes of image
            files; or a list of these. What has no path is called ``image-0``, ``image-1`` ... in the order given.
        out: a folder that does not exist or is empty.
        method: a name in `petriscope.explain.EXPLAINERS`, or ``auto``.
        of: the class to explain; None: the predicted class of each image, or for segmentation the class with the most
            pixels (the background only if there is no other).

    Returns:
        one row per image: image, predicted, confidence, explained (the explained class), overlay (the file), error. For
        segmentation, predicted is the class with the most pixels, confidence the mean probability of the explained class
        over the pixels predicted as it, ``share`` their share of the image, and ``note`` the reason if an image has no such
        pixels and therefore no overlay.
    """
    check_free(Path(out))
    predictor = _predictor(model, device)
    files = find_images(as_files(images), predictor.reading.pages)
    if (scale := predictor.recipe.data.scale) is not None and not quiet:
        say(f"note: {sentence(ChosenScale(scale, asked=False))}")
    with new_folder(Path(out)) as (staging, folder):
        table, shown, part = explain_files(predictor, files, staging, folder, method, of, quiet)
        if shown:
            errors = [error for error in table["error"] if error is not None]
            check = None
            if not isinstance(model, Predictor) and is_run(model):
                check = checked(part.name, open_run(model).results)
            total, name = len(table) - len(errors), predictor.recipe.name
            write_page(staging / "index.html", shown, part.name, name, total, errors, check, predictor.classes)
    return table


def report(folder: str | PathLike[str]) -> Report:
    """Write ``report.html`` again from the files in the run folder, also while the run is trained. Returns the page, which can
    stand where its path can, and which a notebook shows."""
    run = open_run(folder)
    with run.claimed() if run.finished else nullcontext():
        return Report(write_report(run))


def track(folder: str | PathLike[str], to: str | Iterable[str], quiet: bool = False) -> None:
    """Send a run to trackers, as far as they do not have it: a run that was trained without, one whose tracker failed, or one
    that has new results.

    Args:
        to: the name of a tracker, or several, see `petriscope.run.trackers`. Options are those of the run's recipe.

    Raises:
        RequestError: there is no such run or tracker, its library is not installed, or the run is being trained.
        PetriscopeError: a tracker failed; the message is what it said.
    """
    run = open_run(folder)
    known = {part.name: part for part in run.recipe.training.track}
    parts = [known.get(name) or Part(name=name) for name in dict.fromkeys([to] if isinstance(to, str) else to)]
    check_trackers(parts)
    for part in parts:
        send(run, part, quiet)


def _predictor(model: Model, device: str) -> Predictor:
    return model if isinstance(model, Predictor) else open_model(model, device)
