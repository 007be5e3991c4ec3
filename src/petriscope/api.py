"""The Python API. The command line parses its arguments, calls these functions, and prints their results."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from petriscope.audit import runner
from petriscope.core.device import enough_memory
from petriscope.core.files import is_device, new_folder, path_text
from petriscope.core.progress import say
from petriscope.core.recipe import TTA, DataSection, Part
from petriscope.core.scale import Scale, asked_scale
from petriscope.experiments.adapt import adapt as adapt
from petriscope.experiments.bench import run_suite as run_suite
from petriscope.experiments.beside_val import write_compared
from petriscope.experiments.calibrate import calibrate as calibrate
from petriscope.experiments.calibrate import recalibrate as recalibrate
from petriscope.experiments.calibrate import short_name
from petriscope.experiments.compare import compare as compare
from petriscope.experiments.ensemble import ensemble as ensemble
from petriscope.experiments.evaluate import evaluate as evaluate
from petriscope.experiments.train import resume as resume
from petriscope.experiments.train import train as train
from petriscope.experiments.tune import tune as tune
from petriscope.explain.image_files import explain_files
from petriscope.inference.decoding import find_images
from petriscope.inference.exported import open_model
from petriscope.inference.given import as_files
from petriscope.inference.likeness import Compared
from petriscope.inference.predict import predict_files
from petriscope.inference.predictor import Predictor
from petriscope.inference.scaling import ChosenScale, choose_scale, sentence, sizes_in_files
from petriscope.inference.table import Rows
from petriscope.report.audit import write_audit_page
from petriscope.report.explanations import checked, write_page
from petriscope.report.page import write_report
from petriscope.run.folder import check_free, is_run, open_run
from petriscope.run.trackers import check_trackers
from petriscope.run.trackers.process import send
from petriscope.ship.export import export as export
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


@enough_memory()
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

    Returns:
        one row per image. Classification: image, predicted, confidence, error, answer, why, set (if asked for), assumed (if
        ``classes`` or ``prior`` is given, or images are scaled), and one probability per class (``p_<class>``). ``answer`` is
        the predicted class, or ``not sure`` with the reason in ``why``. An image that cannot be read has an error, and neither
        prediction nor answer. Segmentation: see `petriscope.inference.segmentation.predict_files`.

    Raises:
        RequestError: there is no such model or image, or the model cannot give what ``max_error``, ``set_coverage``,
            ``classes``, ``prior`` or ``scale`` ask for.
    """
    import pandas as pd

    found = predict_rows(
        model, images, tta, device, quiet, max_error, set_coverage, out, classes, prior, without_guarantee, scale
    )
    return pd.DataFrame([row for rows in found for row in rows], columns=list(found.columns))


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
) -> Rows:
    """`predict` for any number of images: rows are predicted, and written to ``out``, while they are read."""
    asked = asked_scale(scale)
    predictor, files = _predictor(model, device), find_images(as_files(images))
    if predictor.recipe.data.crop is not None and not quiet:
        say(
            "note: the model learned from objects that were cut out of images (data.crop); an image here must show one object"
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
            write_compared(place.with_name(f"{place.stem}-shift.html"), compared, predictor.classes, named, source)

    return predict_files(predictor, files, place, tta, max_error, set_coverage, quiet, without_guarantee, show)


@enough_memory()
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
    predictor, files = _predictor(model, device), find_images(as_files(images))
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


def report(folder: str | PathLike[str]) -> Path:
    """Write ``report.html`` again from the files in the run folder, also while the run is trained. Returns its path."""
    run = open_run(folder)
    with run.claimed() if run.finished else nullcontext():
        return write_report(run)


def track(folder: str | PathLike[str], to: Iterable[str], quiet: bool = False) -> None:
    """Send a run to trackers, as far as they do not have it: a run that was trained without, one whose tracker failed, or one
    that has new results.

    Args:
        to: names of trackers, see `petriscope.run.trackers`. Options are those that the run's recipe has for them.

    Raises:
        RequestError: there is no such run or tracker, its library is not installed, or the run is being trained.
        PetriscopeError: a tracker failed; the message is what it said.
    """
    run = open_run(folder)
    known = {part.name: part for part in run.recipe.training.track}
    parts = [known.get(name) or Part(name=name) for name in dict.fromkeys(to)]
    check_trackers(parts)
    for part in parts:
        send(run, part, quiet)


def _predictor(model: Model, device: str) -> Predictor:
    return model if isinstance(model, Predictor) else open_model(model, device)
