"""Evaluation of a model on a split, and the stress test with disturbed images."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from os import PathLike
from pathlib import Path
from typing import Any, cast

import numpy as np

from petriscope.core import drawing
from petriscope.core.arguments import checked_arguments
from petriscope.core.device import enough_memory
from petriscope.core.errors import RequestError
from petriscope.core.files import path_text, slug
from petriscope.core.notebook import stoppable
from petriscope.core.progress import TimeLeft, say, unlimited
from petriscope.core.recipe import TTA, DataSection
from petriscope.core.results import ClassPrior, Evaluation, Robustness
from petriscope.core.scale import Scale, asked_scale
from petriscope.data import Dataset, ImageSet
from petriscope.data.tile_sets import one_tile_each
from petriscope.experiments.beside_val import keep_compared, write_compared
from petriscope.experiments.breakdown import DOMAIN, break_down, check_column
from petriscope.experiments.own_data import choose_images
from petriscope.inference.base import Prediction
from petriscope.inference.exported import open_model
from petriscope.inference.likeness import compare_images
from petriscope.inference.package import is_package
from petriscope.inference.predictor import Predictor
from petriscope.report.page import write_report
from petriscope.run.folder import Run, is_run, open_run
from petriscope.tasks import in_room
from petriscope.trust.guarantees import Watch
from petriscope.trust.prior import Names, Prior, Shares, parse_prior
from petriscope.trust.robustness import IMAGES, PLAIN, TOGETHER, disturbed_images, stratified, stress_test
from petriscope.trust.verdict import WOULD_BE, verdict

# The automatic stress test after training: images, and its time limit, the larger of seconds and a share of the training.
AUTO_IMAGES, AUTO_SECONDS, AUTO_SHARE = 200, 20.0, 0.1


@stoppable()
@enough_memory()
@checked_arguments
def evaluate(
    model: str | PathLike[str],
    data: str | Path | None = None,
    split: str = "test",
    tta: TTA | None = None,
    device: str = "auto",
    quiet: bool = False,
    stress: bool = False,
    stress_images: int | None = IMAGES,
    keep_seen: bool = False,
    classes: Names | None = None,
    prior: Shares | None = None,
    by: str | None = None,
    scale: Scale | None = None,
) -> Evaluation:
    """Metrics of a model on a split, with 95 % intervals.

    Args:
        model: a run folder; with ``data``, also a model file or a package.
        data: another source; a source without splits is evaluated as a whole. None: the run's own data, and metrics,
            predictions and report are saved in the run folder. A source that holds the run's own data, whatever its
            place, stands for them.
        split: train, val or test.
        tta: test-time augmentation; None: the recipe's.
        stress: run the stress test too, see `petriscope.trust.robustness`. It uses no test-time augmentation unless
            ``tta`` is given.
        stress_images: number of images of the split in the stress test; None: all.
        keep_seen: keep images that the model learned from or was fitted on. They are recognized by their content, and left
            out unless they are the run's own train or val split, by name.
        classes, prior: which classes occur among the images, or the share of each, see `petriscope.predict`. Images of other
            classes stay and count as misclassified. Nothing is saved in the run folder then.
        by: a column of the images, such as ``scanner``; the metrics are also given for each of its values.
        scale: with ``data``: how many times objects are enlarged first, such as 1.3; or micrometers per pixel of the files, such
            as ``0.23um``, for a run that knows its field of view; or ``estimated``, from the sizes of objects here and in val.
            None: as the run reads images. See `petriscope.inference.scaling`.

    Returns:
        the evaluation. Probabilities are scaled with the temperature that was fitted on val. ``shift`` says whether the images
        are like those of val, unless they are the run's own train or val split. That guarantees are withdrawn is said
        even if ``quiet``.

    Raises:
        RequestError: there is no such run or model, or the request does not fit it.
        DataError: the data cannot be used.
    """
    if stress_images is not None and stress_images < 1:
        raise RequestError("a stress test needs at least one image")
    asked = asked_scale(scale)
    if asked is not None and data is None:
        raise RequestError(
            "a scale is for images from elsewhere, named with --data; the run's own are read as its recipe says"
        )
    packed = is_package(path_text(model))
    if packed and data is None:
        raise RequestError(f"{path_text(model)} is a package, which has no data; name a source with --data")
    run = open_run(model) if data is None or is_run(model) else None
    with ExitStack() as claims:
        if run is not None and data is None:
            claims.enter_context(run.claimed())
        predictor = open_model(model, device)
        known = parse_prior(predictor.classes, classes, prior)
        predictor = predictor.under(known)
        source = None if data is None else path_text(data)
        chosen = choose_images(predictor, run, source, split, keep_seen, quiet, scale=asked)
        if by is not None:
            check_column(chosen.images, by)
        own = None if known is not None else chosen.own  # else the metrics of a run would be for these classes
        if known is not None and chosen.own is not None:
            say("note: metrics for given classes or shares are not saved in the run, which keeps those without")
        if data is not None or own is None:
            run = None if own is None else run
            claims.enter_context(nullcontext() if run is None else run.claimed())
        guaranteed = predictor.task.calibrates and bool(predictor.trust.references or predictor.trust.labels)
        compared = None
        if guaranteed and (chosen.own is None or split == "test"):
            compared = compare_images(predictor, chosen.images, quiet)
            adapts = not is_run(model) or not open_run(model).results.joined
            named = ("RUN" if packed else path_text(model), source or "NEW")
            for sentence in verdict(compared.test, *named, WOULD_BE, known is not None, adapts):
                if compared.test.withdrawn or not quiet:
                    say(sentence)
        facts = {"seen": chosen.seen, "shift": None if compared is None else compared.test, "scale": chosen.scaling}
        if run is not None and own is not None:
            evaluation, _ = evaluate_into(run, predictor, own, split, tta, quiet, by=by, facts=facts)
            if compared is not None:
                keep_compared(run, own, split, compared)
        else:
            source = source or predictor.recipe.data.origin
            evaluation, _ = evaluate_split(predictor, chosen.images, split, tta, source, quiet, by=by)
            evaluation = evaluation.model_copy(update=facts)
            if compared is not None and compared.test.withdrawn and is_run(model) and data is not None:
                beside = open_run(model)
                page = beside.folder / f"shift-{slug(Path(source).stem, 'data')}.html"
                write_compared(page, compared, predictor.classes, path_text(model), source, beside, predictor.channels)
        if known is not None:
            about = _about_classes(predictor, known, chosen.images, evaluation)
            evaluation = evaluation.model_copy(update={"prior": about})
        if stress:
            without = predictor.fixed_tta or "none"
            tested = stress_split(predictor, chosen.images, split, stress_images, tta or without, quiet, into=run)
            evaluation = evaluation.model_copy(update={"stress": tested})
        if run is not None:
            write_report(run)
        return evaluation


def _about_classes(predictor: Predictor, prior: Prior, images: ImageSet, evaluation: Evaluation) -> ClassPrior:
    """What the metrics assume about the classes. Images that contradict it are counted, and the first is named."""
    others = np.flatnonzero(~prior.occurs[images.targets])
    if len(others):
        names = ", ".join(predictor.classes[k] for k in np.unique(images.targets[others]))
        say(
            f"warning: {len(others):,} of {len(images):,} images are of classes that do not occur ({names}; first: "
            f"{images.ids[others[0]]}); they count as misclassified"
        )
    if predictor.task.exclusive and (told := prior.doubt(images.counts, "are of the class")):
        say(f"warning: {told}")
    tta = cast(TTA, evaluation.tta)
    fitted = predictor.trust.reweighting
    if fitted is not None and tta in fitted.plain.references and tta not in predictor.trust.references:
        lack = fitted.plain.references[tta].lacks(len(predictor.classes))
        say(f"note: thresholds and prediction sets for these classes are left out: {lack}")
    return prior.record(predictor.trust.implied(tta, predictor.recipe.evaluation.tta), len(others))


def evaluate_split(
    predictor: Predictor,
    images: ImageSet,
    split: str,
    tta: TTA | None,
    source: str,
    quiet: bool,
    known: Prediction | None = None,
    by: str | None = None,
) -> tuple[Evaluation, Any]:
    """The metrics of a split, and the outputs that they were computed from; see `petriscope.tasks.base.Task.collect`.

    Args:
        known: the predictions for these images, if they were computed before.
        by: a column by whose values they are judged too, as they always are by their domains.

    Raises:
        RequestError: the images have no such column.
    """
    has_domains = images.domains is not None and bool((images.domains != "").any())
    columns = [DOMAIN] * (has_domains and predictor.task.judges_subsets)
    if by is not None:
        check_column(images, by)
        columns = [*dict.fromkeys([*columns, by])]
    room, recipe = in_room(predictor.task, "experiments"), predictor.recipe
    evaluation, outputs = room.evaluate(predictor, images, split, tta or recipe.evaluation.tta, source, quiet, known)
    if predictor.task.dense:
        evaluation = evaluation.model_copy(update={"resolution": resolution(recipe.data, images)})
    if columns:
        resamples = recipe.evaluation.bootstrap
        found = {column: break_down(predictor.task, outputs, images, column, resamples) for column in columns}
        evaluation = evaluation.model_copy(update={"by": found})
    return evaluation, outputs


def resolution(section: DataSection, images: ImageSet) -> str:
    """In which size the pixels of masks are counted, in words."""
    if section.tiles is None:
        height, width, _ = images.shape
        return f"images of {height}x{width}"
    least, most = (
        images.extents[which] for which in (images.extents.prod(1).argmin(), images.extents.prod(1).argmax())
    )
    (height, width), overlap = section.tiles.height_width, section.tiles.overlap
    sizes = "x".join(map(str, least)) + ("" if (least == most).all() else " to " + "x".join(map(str, most)))
    return f"images in their own sizes, {sizes}, by tiles of {height}x{width} that overlap by {overlap:.0%}"


def evaluate_into(
    run: Run,
    predictor: Predictor,
    dataset: Dataset,
    split: str,
    tta: TTA | None = None,
    quiet: bool = False,
    known: Prediction | None = None,
    by: str | None = None,
    facts: Mapping[str, Any] | None = None,
    left: TimeLeft = unlimited,
) -> tuple[Evaluation, Any]:
    """The same for a split of the run's own data; metrics, predictions and images are saved in the run.

    Args:
        facts: further fields of the evaluation.
        left: the time that there is for what can be left out, such as explanations.
    """
    images, source = dataset.split(split), run.recipe.data.origin
    evaluation, outputs = evaluate_split(predictor, images, split, tta, source, quiet, known, by)
    evaluation = evaluation.model_copy(update=facts)
    room = in_room(predictor.task, "experiments")
    return room.record(run, predictor, dataset, split, evaluation, outputs, quiet, left), outputs


def stress_after_training(
    run: Run, predictor: Predictor, val: ImageSet, trained: float, quiet: bool, most: float | None = None
) -> None:
    """The stress test that the recipe asks for after training, which took ``trained`` seconds; it may take ``most`` seconds, if
    that is given."""
    rule = predictor.recipe.evaluation.stress
    if rule == "off" or not len(val) or not predictor.task.has_stress_test:
        return
    if rule == "auto":
        count, seconds = AUTO_IMAGES, max(AUTO_SECONDS, AUTO_SHARE * trained)
    else:
        count, seconds = IMAGES, None
    if most is not None:
        seconds = most
    stress_split(predictor, val, "val", count, "none", quiet, seconds, into=run)


def stress_split(
    predictor: Predictor,
    images: ImageSet,
    split: str,
    count: int | None,
    tta: TTA,
    quiet: bool,
    seconds: float | None = None,
    into: Run | None = None,
) -> Robustness | None:
    """The stress test of a split. If guarantees were fitted on val for ``tta``, it also measures whether they hold. Of images in
    their own sizes, one tile of each is tested.

    Args:
        count: number of images of the split to use; None: all.
        seconds: time limit; None: no limit.
        into: the run in which to save the results and examples of disturbed images.

    Returns:
        None if there was no time for it, or no target to evaluate against.
    """
    watch, resamples = watch_guarantees(predictor, tta), predictor.recipe.evaluation.bootstrap
    tiles = predictor.recipe.data.tiles
    images = one_tile_each(images, predictor.recipe.data)
    tested = stress_test(
        (lambda some: predictor.probabilities(some, tta)) if watch is None else watch.predict,
        images,
        split=split,
        count=count,
        recipe=predictor.recipe,
        tta=tta,
        resamples=resamples,
        seconds=seconds,
        label=None if quiet else f"stress test on {split}",
        watch=watch,
        ranks=predictor.ranks,
    )
    if tested is None:
        return None
    if tiles is not None:
        tested = tested.model_copy(update={"tile": tiles.height_width})
    if watch is not None:
        named = [name for name, corruption in tested.corruptions.items() if corruption.medmnist_c]
        order = stratified(images.strata, tested.n)
        groups = None if images.groups is None else images.groups[order]
        found = watch.metrics(PLAIN, named, tested.n, resamples, groups)
        alone = {name: shares for name, shares in found.corruptions.items() if name != TOGETHER}
        found = found.model_copy(update={"corruptions": alone, "together": found.corruptions[TOGETHER]})
        tested = tested.model_copy(update={"guarantees": found})
    if into is not None:
        shown, names = disturbed_images(images, int(stratified(images.strata, 1)[0]))
        into.add_results(stress={**into.results.stress, split: tested})
        shown = drawing.shown(shown, images.channels)
        into.write_gallery("disturbed", disturbed=shown, disturbed_names=np.array(names, dtype=np.str_))
    return tested


def watch_guarantees(predictor: Predictor, tta: TTA) -> Watch | None:
    """A recorder of whether guarantees hold; None if none were fitted on val for this test-time augmentation."""
    reference = predictor.trust.references.get(tta)
    if reference is None:
        return None

    def answer(images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        found = predictor.predict(images, tta)
        return found.probabilities, found.ood

    return Watch(answer, reference, len(predictor.classes))
