"""Adapt a trained network to images of another place that have no labels, by self-training.

The network labels the images. It is trained on with those that it is most sure of, and with images that it learned from, as
`petriscope.training.adaptation` does with labeled images. Then it labels all of them again, and learns from a larger share. The
same share of each predicted class is taken, so that classes that it is less sure of are not lost (Zou et al., 2018,
arXiv:1810.07911). In the end the weights go back half of the way, which costs less at home and is often better at the new place
too (Wortsman et al., 2022, arXiv:2109.01903).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from petriscope.core.recipe import SourceSection
from petriscope.data.batches import Batches
from petriscope.data.imageset import ImageSet
from petriscope.data.recognition import join_sets
from petriscope.inference.predictor import Predictor
from petriscope.training.adaptation import Setting, part_of_the_way, tune, with_domain, with_setting

SHARES = (0.5, 0.7, 0.9)  # of the images of each predicted class that a round learns from
SETTING = Setting("all", 5e-4, 3)  # of a round
WAY = 0.5  # how far the weights go from those before the first round to those after the last


@dataclass(frozen=True)
class Round:
    """What a round learned from.

    Args:
        share: of the images of each predicted class.
        images: how many that were.
        changed: share of all images that are predicted as another class after it than before.
    """

    share: float
    images: int
    changed: float


def pseudo_labels(probabilities: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """The images to learn from, int64 [M] in ascending order, and the predicted classes of all, int64 [N].

    Args:
        probabilities: float [N, K].
        share: of the images that are predicted as a class; at least one image of each such class is taken.
    """
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    rows = []
    for label in np.unique(predicted):
        members = np.flatnonzero(predicted == label)
        surest = members[np.argsort(-confidence[members], kind="stable")]
        rows.append(surest[: max(1, round(share * len(members)))])
    return np.sort(np.concatenate(rows)), predicted


def self_train(
    predictor: Predictor,
    old: ImageSet,
    new: ImageSet,
    name: str,
    advance: Callable[[], object] = lambda: None,
) -> tuple[Predictor, list[Round], list[dict[str, Any]]]:
    """Train the network of a predictor on, with images that have no labels. The predictor itself does not change.

    Args:
        predictor: its recipe has the seed. What was said about the classes, see `Predictor.under`, holds for the labels.
        old, new: see `petriscope.training.adaptation.joined`; the targets of ``new`` are not looked at. ``name``: of its domain.
        advance: called after each round.

    Returns:
        the predictor, whose recipe says how the last round was trained; what each round learned from; and the history of all
        epochs.

    Raises:
        Diverged: training failed.
    """
    recipe, now, seed = predictor.recipe, predictor, predictor.recipe.seed
    rounds, history = list[Round](), list[dict[str, Any]]()
    said = probabilities_of(predictor, new)
    for number, share in enumerate(SHARES):
        rows, labels = pseudo_labels(said, share)
        images = join_sets([old, replace(new.subset(rows), targets=labels[rows])])
        drawn = with_domain(recipe.model_copy(update={"seed": seed + number}), images, name, SourceSection(source=""))
        tuned, trainer = tune(now, with_setting(drawn, SETTING), images)
        now = replace(tuned, recipe=with_setting(recipe, SETTING))
        said = probabilities_of(now, new)
        rounds.append(Round(share, len(rows), float((said.argmax(1) != labels).mean())))
        history += [{**line, "epoch": number * SETTING.epochs + line["epoch"]} for line in trainer.at.history]
        advance()
    return part_of_the_way(predictor, now, WAY), rounds, history


def probabilities_of(predictor: Predictor, images: ImageSet) -> np.ndarray:
    """Probabilities of images, without regard to targets, float32 [N, K]."""
    tta = predictor.recipe.evaluation.tta
    batches = Batches(images, predictor.device, predictor.recipe.data.memory)
    return predictor.judge(predictor.look(batches, tta), tta, None).probabilities
