"""Adapt a trained run to another place, such as another microscope, with a few labeled images from there."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

import numpy as np

from petriscope.core.arguments import checked_arguments
from petriscope.core.device import enough_memory
from petriscope.core.errors import DataError, Diverged, Interrupted, RequestError, listed
from petriscope.core.files import new_folder, path_text, slug
from petriscope.core.progress import duration, progress, say
from petriscope.core.recipe import TTA, Recipe, SourceSection
from petriscope.core.results import (
    Adaptation,
    Scaling,
    TrainingSummary,
    TriedSetting,
)
from petriscope.core.scale import Scale, asked_scale
from petriscope.core.shift_results import ShiftTest
from petriscope.data import Dataset, ImageSet
from petriscope.data.fingerprint import fingerprint
from petriscope.data.folds import NEVER, units_of
from petriscope.data.membership import UNKNOWN, Exposure
from petriscope.data.recognition import join_sets, membership_of
from petriscope.experiments.adapted import SUGGESTED, begin_adapted, cost_at_home
from petriscope.experiments.calibrate import short_name
from petriscope.experiments.evaluate import evaluate_split
from petriscope.experiments.own_data import exposure_of, other_data, section_elsewhere, whole_data, without_copies
from petriscope.experiments.samples import augmented, reconstructions
from petriscope.experiments.self_train import load_target, write_self_trained
from petriscope.experiments.unlabeled import Unlabeled, load_unlabeled, write_suggestions
from petriscope.inference.fit import fit_on_held_out
from petriscope.inference.likeness import compare_images
from petriscope.inference.predictor import Predictor, load_model
from petriscope.report.adaptation import at_home, at_place
from petriscope.report.page import write_report
from petriscope.report.self_training import told
from petriscope.run.folder import Run, check_free, open_run
from petriscope.training.adaptation import (
    HOME,
    SETTINGS,
    STEPS,
    CrossValidated,
    Setting,
    as_old,
    chosen_first,
    cross_validate,
    fitting,
    folds_of,
    joined,
    part_of_the_way,
    tune,
    with_domain,
    with_setting,
)
from petriscope.training.build import absolute_paths
from petriscope.training.loop import Trainer
from petriscope.trust.prior import Names, Prior, Shares, parse_prior

MINUTES = 10.0
FEWEST = 10  # labeled images; fewer say nothing about whether it helps


@dataclass(frozen=True)
class Place:
    """The new place.

    Args:
        source, split: its labeled images, and the split of the source that they are, if it has splits.
        name: of its domain.
        labeled: the images.
        folds: see `petriscope.training.adaptation.folds_of`.
        prior: what is known about the classes there.
        unlabeled: more images, without labels; None: none were given.
        shift: how the labeled images differ from val of the run.
        scaling: how all of them were scaled; None: not at all.
    """

    source: str
    split: str
    name: str
    labeled: ImageSet
    folds: np.ndarray
    prior: Prior | None
    unlabeled: Unlabeled | None
    shift: ShiftTest
    scaling: Scaling | None


@dataclass(frozen=True)
class Adapted:
    """An adapted predictor, and how it was made.

    Args:
        predictor: with the recipe of the adaptation.
        trainer: None if the network stays as it is.
        dataset: the images of both places: train has them all, val and test are those of the old place.
        tried: all settings, the chosen one first.
    """

    predictor: Predictor
    trainer: Trainer | None
    dataset: Dataset
    tried: list[CrossValidated]


@enough_memory()
@checked_arguments
def adapt(
    model: str | PathLike[str],
    data: str | PathLike[str] | None = None,
    out: str | Path | None = None,
    split: str = "train",
    home: str | PathLike[str] | None = None,
    classes: Names | None = None,
    prior: Shares | None = None,
    seed: int = 0,
    device: str = "auto",
    quiet: bool = False,
    unlabeled: str | PathLike[str] | None = None,
    suggest: int = 0,
    scale: Scale | None = None,
    minutes: float = MINUTES,
) -> Run:
    """Adapt a run to a place by images from there. The run itself does not change.

    With labeled images, the network is trained on with images of both places; how is chosen by cross-validation on the new
    images. The temperature, the thresholds and the prediction sets are then fitted on the predictions for new images that were
    held out. With images without labels alone, the network is trained on by `petriscope.training.self_training`; what it
    guarantees still holds for images like those of the old place, and nothing shows how well it does at the new one.

    Args:
        model: a run folder.
        data: the source of the labeled images; a source without splits is used as a whole. None: there are none.
        out: the folder to make; default ``runs/<run>-<data>-seed<N>``.
        split: the split of ``data`` to use; without ``data``, it has no effect, and nor has ``minutes``, which is said.
        home: where the run's own data are now; None: where its recipe says.
        classes, prior: which classes occur at the place, or the share of each, see `petriscope.predict`. The cross-validated
            metrics are for these; the adapted run predicts all classes unless it is told so again.
        seed: of folds and training.
        unlabeled: a folder, or another source, of images from there, whose labels are not used. With ``data``, only the limits
            of the out-of-distribution detector are fitted to them too.
        suggest: write ``suggested.csv`` into the run, with so many of these that it would be most useful to label next, see
            `petriscope.inference.labeling`.
        scale: of the images from there, see `petriscope.predict`; where it is estimated, they are compared with val in their own
            mix of classes. With ``data``, the adapted run reads images from elsewhere at this scale, and those of the old place
            as before; without, it reads all images as before.
        minutes: that cross-validation and training may take, about. Settings that would take longer are left out, and if only
            one is left, it may be shortened; that is said.

    Returns:
        the adapted run. Its train split are the labeled images of both places, val and test those of the old one. Its results
        have the cross-validated metrics at the new place, if there are labels, and val as evidence of what the adaptation costs
        at the old one.

    Raises:
        RequestError: there is no such run, it predicts masks, or the folder exists; or there are no labels, and it gives images
            any number of them.
        DataError: the images cannot be used: too few, or of classes that the run does not know.
        Interrupted: Ctrl-C; nothing is left.
    """
    run, asked = open_run(model), asked_scale(scale)
    if data is None and unlabeled is None:
        raise RequestError(
            "adapting needs images from there: name labeled ones with --data, or others with --unlabeled, or both"
        )
    if not minutes > 0:
        raise RequestError(f"minutes must be above 0, not {minutes:g}")
    if not 0 <= seed < 2**31:
        raise RequestError(f"the seed must be from 0 to {2**31 - 1}; got {seed}")
    if suggest < 0:
        raise RequestError(f"the number of suggested images cannot be {suggest}")
    if suggest and unlabeled is None:
        raise RequestError("--suggest chooses among images without labels: name them with --unlabeled")
    source, more = (None if each is None else path_text(each) for each in (data, unlabeled))
    base = _load(run, device)
    known = parse_prior(base.classes, classes, prior)
    base.under(known)  # refused before anything is loaded
    if not base.task.exclusive and source is None:
        raise RequestError(
            f"{run.folder} gives images any number of labels, and adapting without labels learns from the one class that the "
            "network is surest of; name labeled images with --data"
        )
    name = _domain(source or more or "", run.recipe)
    recipe = base.recipe.model_copy(update={"name": f"{run.folder.resolve().name}-{name}", "seed": seed})
    folder = Path("runs") / f"{slug(recipe.name)}-seed{seed}" if out is None else Path(out)
    check_free(None if out is None else folder)
    if source is None:
        if split != "train" or minutes != MINUTES:
            say("note: --split and --minutes are for labeled images, and have no effect without --data")
        target = load_target(base, run, more or "", name, known, asked, quiet)
    else:
        place = _place(base, run, source, split, name, known, more, seed, quiet, asked)
    elsewhere = None if home is None else path_text(home)
    old = whole_data(run, elsewhere, "rehearse its images", "--home")
    if relabeled := sum(each.decision == "relabel" for each in old.audited):
        say(
            f"note: the decisions of an audit relabel {relabeled:,} images of {run.folder}; the adapted run learns from these "
            "labels, but cannot be adapted again, because they are not those of the source"
        )
    section = run.recipe.data if elsewhere is None else section_elsewhere(run.recipe.data, elsewhere, base.shape)
    base.recipe = recipe.model_copy(update={"data": section})
    try:
        made = None if source is None else _choose(base, old, place, minutes, quiet)
        with new_folder(folder, numbered=out is None) as (staging, folder):
            if made is None:
                sentences = told(write_self_trained(staging, base, run, elsewhere, old, target, suggest, quiet))
            else:
                found = _write(staging, made, base, run, elsewhere, old, place, suggest, minutes, quiet)
                sentences = [at_place(found), *at_home(found)]
            write_report(Run(staging), folder)
    except Interrupted:
        raise Interrupted("stopped; nothing was written") from None
    for sentence in () if quiet else sentences:
        say(sentence)
    return Run(folder)


def _load(run: Run, device: str) -> Predictor:
    if run.results.joined:
        raise RequestError(f"{run.folder} is an ensemble; adapt a member of it, or the members and join them again")
    base = load_model(run, device)
    if not base.task.calibrates:
        raise RequestError(
            f"{run.folder} is a {base.task.name} model; only models that give an image a class, or any number of labels, can be "
            "adapted"
        )
    if not run.finished:
        raise RequestError(f"{run.folder} is not finished")
    return base


def _domain(source: str, recipe: Recipe) -> str:
    """A name for the new place that no domain has yet."""
    taken, first = {HOME, *(recipe.data.sources or {})}, short_name(source)
    return next(name for name in [first, *(f"{first}-{number}" for number in range(2, 1000))] if name not in taken)


def _place(
    base: Predictor,
    run: Run,
    source: str,
    split: str,
    name: str,
    known: Prior | None,
    more: str | None,
    seed: int,
    quiet: bool,
    asked: Scale | None,
) -> Place:
    """Load the images of the new place, and say what they cannot show.

    Args:
        more: the source of those without labels.
        asked: the scale of all.
    """
    images, scaling = other_data(base, source, split, quiet, asked, by_labels=True)
    images = without_copies(_without_own(images, base, run, source), source, to_fit=True)
    if known is not None and len(others := np.flatnonzero(~known.occurs[images.targets])):
        raise DataError(
            f"{len(others):,} of {len(images):,} labeled images are of classes that are said not to occur, the first: "
            f"{images.ids[others[0]]} ({base.classes[images.targets[others[0]]]}); name their classes too, or leave them out"
        )
    units = units_of(images)
    if (count := len(np.unique(units))) < FEWEST:
        what = "labeled images" if images.groups is None else "groups of labeled images"
        raise DataError(
            f"{source} has {count} {what} to adapt to, too few to tell whether it helps: label at least {FEWEST}, better 50 or "
            "100"
        )
    has = images.task.amounts(images.targets, len(base.classes)) > 0
    folds = folds_of(images.strata, units, seed, has)
    held_out = has[folds != NEVER].any(0)
    alone = [base.classes[k] for k in np.flatnonzero(has.any(0) & ~held_out)]
    unit = "image" if images.groups is None else "group"
    if not held_out.any():
        raise DataError(
            f"{source} has too few {unit}s of each class to hold one out; label more, at least two of a class, so that the "
            "others can tell whether it helps"
        )
    shares = None if known is None else known.shares
    if shares is not None and (lacking := [base.classes[k] for k in np.flatnonzero((shares > 0) & ~held_out)]):
        raise DataError(
            f"prior: no labeled image of {listed(lacking)} can be held out, so nothing says what share of them the model "
            "predicts; label at least two of each, or give --classes in place of --prior"
        )
    if alone:
        say(
            f"note: {source} has too few {unit}s of {listed(alone)} to hold one out; the model learns from them, but nothing "
            "says how well it does on others"
        )
    there = np.ones(len(base.classes), bool) if known is None else known.occurs
    if missing := [base.classes[each] for each in np.flatnonzero(there & (images.counts == 0))]:
        then = ". If these classes do not occur there, name those that do with --classes" if base.task.exclusive else ""
        say(
            f"note: {source} has no image of {listed(missing)}; nothing says how well the model does on such images there{then}"
        )
    scale = None if scaling is None else scaling.scale
    seen = {*images.digests(), *(() if run.membership is None else run.membership.digests)}
    unlabeled = None if more is None else load_unlabeled(base, more, seen, quiet, scale)
    shift = compare_images(base, images, quiet).test
    if shift.not_tested is None and not shift.withdrawn:
        say(
            f"note: the images of {source} are not shown to differ from val of {run.folder} (p = {shift.p:.2g}, {shift.n:,} "
            "images); its guarantees may hold there as they are, and adapting may bring little"
        )
    return Place(source, split, name, images, folds, known, unlabeled, shift, scaling)


def _without_own(images: ImageSet, base: Predictor, run: Run, source: str) -> ImageSet:
    """The images without those of the run's own splits, which say nothing about another place."""
    exposure, known = exposure_of(base, run), run.membership
    if exposure is None:
        say(f"note: {UNKNOWN} whether the model learned from images of {source}")
    roles = (exposure or Exposure()).roles(images.digests()).astype(object)
    tested = set() if known is None else {known.digests[row] for row in np.flatnonzero(known.splits == "test")}
    roles[[each in tested and not role for each, role in zip(images.digests(), roles, strict=True)]] = "test"
    own = np.flatnonzero(roles != "")
    if not len(own):
        return images
    counts = ", ".join(
        f"{split} {(roles == split).sum():,}" for split in ("train", "val", "test") if split in roles[own]
    )
    what = (
        f"of {len(images):,} images of {source}, {len(own):,} are images of {run.folder} ({counts}; the first: "
        f"{images.ids[own[0]]})"
    )
    if len(own) == len(images):
        trained = run.results.self_training
        hint = (
            ""
            if trained is None
            else f"; it learned from images of {trained.source} without labels: adapt {trained.base}"
        )
        raise DataError(f"{what}{hint or '; give images from another place'}")
    say(f"warning: {what}; they are left out")
    return images.subset(np.flatnonzero(roles == ""))


def _choose(base: Predictor, old: Dataset, place: Place, minutes: float, quiet: bool) -> Adapted:
    """Choose a setting by cross-validation, and adapt with it to all labeled images."""
    section = base.recipe.data
    home, new = joined(old.split("train"), place.labeled, place.name, section)
    images = join_sets([home, new])
    scale = None if place.scaling is None else place.scaling.scale
    where = SourceSection(source=place.source, split=place.split, scale=scale)
    both = absolute_paths(with_domain(base.recipe, images, place.name, where))
    ttas: list[TTA] = list(dict.fromkeys([base.recipe.evaluation.tta, "none"]))
    occurs = None if place.prior is None else place.prior.occurs
    folds = len(np.unique(place.folds[place.folds != NEVER]))
    settings = _in_time(base, both, images, folds, minutes)
    with progress("adapting", len(settings) * folds + 1, "trainings") as bar:

        def advance() -> None:
            if not quiet:
                bar.advance()

        found = cross_validate(base, home, new, place.name, place.folds, ttas, settings, advance)
        tried = chosen_first(found, place.labeled, occurs)
        best = tried[0].setting
        recipe = with_setting(both, best)
        if best.epochs:
            tuned, trainer = tune(base, recipe, images)
            predictor = part_of_the_way(base, tuned, best.way)
        else:
            predictor, trainer = replace(base, recipe=recipe), None
        advance()
    val, test = (
        None if part is None else as_old(part, section, images.groups is not None) for part in (old.val, old.test)
    )
    known = old.membership
    if known is None or recipe.data.leave_out is None:
        membership = None  # that of the images
    else:  # with the images of other domains in test, which are not used
        membership = known.joined(membership_of({"train": new}))
    dataset = Dataset(images, val, test, source=recipe.data.origin, membership=membership)
    hashed = fingerprint(dataset.splits, {name: part.digests() for name, part in dataset.splits.items()})
    dataset = replace(dataset, fingerprint=hashed)
    return Adapted(predictor, trainer, dataset, tried)


def _in_time(base: Predictor, recipe: Recipe, images: ImageSet, folds: int, minutes: float) -> list[Setting]:
    """The settings that can be tried in so many minutes. One epoch of the first shows how long an epoch takes."""
    began = time.monotonic()
    try:
        tune(base, with_setting(recipe, replace(SETTINGS[0], epochs=1)), images)
    except Diverged:
        return list(SETTINGS)  # cross-validation says so
    pace = time.monotonic() - began
    settings = fitting(SETTINGS, folds, pace, 60 * minutes)
    if settings != list(SETTINGS):
        tried = "; ".join(map(str, settings))
        say(
            f"note: {STEPS} steps take {duration(pace)}, so in {minutes:g} minutes not all of {len(SETTINGS)} ways of training "
            f"can be tried, but only: {tried}; give more time with --minutes"
        )
    return settings


def _write(
    folder: Path,
    made: Adapted,
    base: Predictor,
    run: Run,
    home: str | None,
    old: Dataset,
    place: Place,
    suggest: int,
    minutes: float,
    quiet: bool,
) -> Adaptation:
    """Write all of the run folder but the report."""
    predictor, best, dataset = made.predictor, made.tried[0], made.dataset
    judged = place.labeled.subset(best.held_out)
    raw = {tta: each[best.held_out] for tta, each in best.raw.items()}
    more = None if place.unlabeled is None else place.unlabeled.images
    outcome = fit_on_held_out(predictor, dataset.split("train"), dataset.val, judged, raw, more, quiet)
    learned = Exposure(train=frozenset(place.labeled.digests()))
    predictor.exposure = (exposure_of(base, run) or Exposure()) | old.exposure | learned
    seconds = None if made.trainer is None else round(made.trainer.at.seconds, 2)
    begun = begin_adapted(folder, predictor, dataset, TrainingSummary(epochs=best.setting.epochs, seconds=seconds))
    if made.trainer is not None:
        begun.write_history(made.trainer.at.history)
        begun.write_gallery("augmented", **augmented(made.trainer, dataset))
    begun.write_gallery("reconstructions", **reconstructions(predictor, dataset))
    tta, under = predictor.recipe.evaluation.tta, predictor.under(place.prior)
    words = f"held-out {place.name}"
    before, _ = evaluate_split(base.under(place.prior), judged, words, tta, place.source, quiet)
    known = under.judge(outcome.raw, tta, outcome.ood)
    after, _ = evaluate_split(under, judged, words, tta, place.source, quiet, known)
    at_old = cost_at_home(begun, base, predictor, dataset, quiet)
    suggested = 0
    if more is not None and suggest:
        suggested = write_suggestions(folder / SUGGESTED, under, more, suggest, predictor.recipe.seed, quiet)
    occurs = None if place.prior is None else place.prior.occurs
    tried = [(each.setting, *each.judge(place.labeled, occurs)) for each in made.tried]
    metric = predictor.task.metrics[0].key
    result = Adaptation(
        base=str(run.folder),
        source=place.source,
        split=place.split,
        domain=place.name,
        home=home,
        labeled=len(place.labeled),
        unlabeled=0 if more is None else len(more),
        unlabeled_source=None if place.unlabeled is None else place.unlabeled.source,
        suggested=suggested,
        minutes=minutes,
        shift=place.shift,
        held_out=len(judged),
        folds=len(np.unique(place.folds[place.folds != NEVER])),
        setting=str(best.setting),
        tried=[TriedSetting(setting=str(setting), **{metric: value, "nll": nll}) for setting, value, nll in tried],
        before=before,
        after=after,
        home_n=0 if old.val is None else len(old.val),
        prior=None if place.prior is None else place.prior.record(),
        scale=place.scaling,
        **at_old,
    )
    begun.add_results(adaptation=result)
    return result
