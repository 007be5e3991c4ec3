"""Adapt a trained run to images of another place that have no labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from petriscope.core.errors import DataError
from petriscope.core.progress import progress, say
from petriscope.core.results import (
    SelfTraining,
    SelfTrainingRound,
    TrainingSummary,
)
from petriscope.core.scale import Scale
from petriscope.core.shift_results import ShiftTest
from petriscope.data import Dataset
from petriscope.data.membership import Exposure
from petriscope.experiments.adapted import SUGGESTED, begin_adapted, cost_at_home
from petriscope.experiments.own_data import exposure_of
from petriscope.experiments.unlabeled import Unlabeled, load_unlabeled, write_suggestions
from petriscope.inference.fit import fit_with_unlabeled
from petriscope.inference.likeness import compare_images
from petriscope.inference.predictor import Predictor
from petriscope.run.folder import Run
from petriscope.training.adaptation import joined
from petriscope.training.build import absolute_paths
from petriscope.training.self_training import SHARES, WAY, probabilities_of, self_train
from petriscope.trust.prior import Prior

FEWEST = 50  # images; in fewer, a class has too few to learn from


@dataclass(frozen=True)
class Target:
    """Images of another place, without labels.

    Args:
        unlabeled: the images.
        name: of their domain while training.
        prior: what is known about the classes there.
        shift: how they differ from val of the run.
    """

    unlabeled: Unlabeled
    name: str
    prior: Prior | None
    shift: ShiftTest


def load_target(
    base: Predictor, run: Run, source: str, name: str, prior: Prior | None, scale: Scale | None, quiet: bool
) -> Target:
    """Load the images, and say what they cannot show.

    Raises:
        DataError: there are too few.
    """
    own = set() if run.membership is None else set(run.membership.digests)
    found = load_unlabeled(base, source, own, quiet, scale, tell_scale=True)
    if (count := len(found.images)) < FEWEST:
        raise DataError(
            f"{source} has {count} new images without labels, too few to learn from: at least {FEWEST} are needed. Label 50 or "
            "100 of them, and name them with --data"
        )
    if prior is None:
        say(
            "note: nothing was said about the classes, so images may be taken for any of them; if only some occur there, name "
            "them with --classes"
        )
    shift = compare_images(base, found.images, quiet).test
    if shift.not_tested is None and not shift.withdrawn:
        say(
            f"note: the images of {source} are not shown to differ from val of {run.folder} (p = {shift.p:.2g}, {shift.n:,} "
            "images), so adapting may bring little"
        )
    return Target(found, name, prior, shift)


def write_self_trained(
    folder: Path,
    base: Predictor,
    run: Run,
    home: str | None,
    old: Dataset,
    target: Target,
    suggest: int,
    quiet: bool,
) -> SelfTraining:
    """Adapt, and write all of the run folder but the report."""
    images = target.unlabeled.images
    train, new = joined(old.split("train"), images, target.name, base.recipe.data)
    under = base.under(target.prior)
    before = probabilities_of(under, images).argmax(1)
    with progress("adapting", len(SHARES), "rounds") as bar:
        advance = (lambda: None) if quiet else bar.advance
        predictor, rounds, history = self_train(under, train, new, target.name, advance)
    predictor = replace(predictor, trust=base.trust, recipe=absolute_paths(predictor.recipe))
    if old.val is not None:
        fit_with_unlabeled(predictor, old.split("train"), old.val, images, quiet)
    predictor.exposure = (exposure_of(base, run) or Exposure()) | old.exposure | Exposure(frozenset(images.digests()))
    begun = begin_adapted(folder, predictor, old, TrainingSummary(epochs=len(history)))
    begun.write_history(history)
    at_old = cost_at_home(begun, base, predictor, old, quiet)
    adapted = predictor.under(target.prior)
    after, suggested = probabilities_of(adapted, images).argmax(1), 0
    if suggest:
        suggested = write_suggestions(folder / SUGGESTED, adapted, images, suggest, predictor.recipe.seed, quiet)
    found = SelfTraining(
        base=str(run.folder),
        source=target.unlabeled.source,
        unlabeled=len(images),
        home=home,
        rounds=[SelfTrainingRound(share=each.share, images=each.images, changed=each.changed) for each in rounds],
        way=WAY,
        before=_counts(before, base.classes),
        after=_counts(after, base.classes),
        changed=float((before != after).mean()),
        home_n=0 if old.val is None else len(old.val),
        prior=None if target.prior is None else target.prior.record(),
        suggested=suggested,
        shift=target.shift,
        scale=target.unlabeled.scaling,
        **at_old,
    )
    begun.add_results(self_training=found)
    return found


def _counts(predicted: np.ndarray, classes: tuple[str, ...]) -> dict[str, int]:
    return dict(zip(classes, np.bincount(predicted, minlength=len(classes)).tolist(), strict=True))
