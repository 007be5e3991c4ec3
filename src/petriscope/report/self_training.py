"""What adapting a run to images without labels changed, for the page and for the terminal."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from petriscope.core.errors import listed
from petriscope.core.results import SelfTraining
from petriscope.report import wording
from petriscope.report.adaptation import at_home, compared_with_val, said


@dataclass(frozen=True)
class SelfTrainingView:
    """The section on self-training.

    Args:
        about: how the run was adapted and to what, a sentence each.
        classes: class, and how many images are predicted as it before and after, as text.
        rounds: share of the images of each class that was learned, how many these are, and the share of all images whose
            predicted class changed, as text.
        cost: what it costs at home, a sentence each.
        suggested: which images to label; empty if that was not asked for.
    """

    about: list[str]
    classes: list[tuple[str, str, str]]
    rounds: list[tuple[str, str, str]]
    cost: list[str]
    suggested: str


def self_training_view(found: SelfTraining) -> SelfTrainingView:
    """The section on self-training."""
    names = [name for name in found.after if found.before.get(name) or found.after[name]]
    return SelfTrainingView(
        about=_about(found),
        classes=[(name, wording.count(found.before.get(name, 0)), wording.count(found.after[name])) for name in names],
        rounds=[
            (wording.percent(each.share, 0), wording.count(each.images), wording.percent(each.changed, 1))
            for each in found.rounds
        ],
        cost=at_home(found),
        suggested=_suggested(found),
    )


def told(found: SelfTraining) -> list[str]:
    """What the terminal says."""
    return [_changed(found), *_missing(found), _unknown(found), *at_home(found), *_scaled(found)]


def not_of_place(found: SelfTraining) -> str:
    """What has to be known of the metric at the top of the page."""
    return f"These are images of {found.base}, not of {found.source}, to which the run was adapted. {_unknown(found)}"


def repeated_self_training(found: SelfTraining, seed: int) -> str:
    """The command that adapts again."""
    words = ["petriscope", "adapt", found.base, "--unlabeled", found.source]
    words += [] if found.home is None else ["--home", found.home]
    words += [] if found.scale is None else ["--scale", f"{found.scale.scale}"]
    words += said(found.prior)
    words += ["--suggest", str(found.suggested)] if found.suggested else []
    return shlex.join([*words, "--seed", str(seed)])


def _about(found: SelfTraining) -> list[str]:
    images = wording.plural(found.unlabeled, "image")
    out = [
        f"{found.base} was adapted to {images} of {found.source} without labels, by self-training: the network learned from "
        "those that it was most sure of, labeled by itself, and from images that it had learned from before.",
        *_partly(found),
        _changed(found),
        *_missing(found),
        _unknown(found),
    ]
    out += compared_with_val(found)
    out += _scaled(found)
    if found.prior is not None:
        out.append(
            f"It was said that only these classes occur: {', '.join(found.prior.classes)}. To predict images from there, say the "
            "same again."
        )
    return out


def _scaled(found: SelfTraining) -> list[str]:
    """What is not in the recipe, because what was fitted on val is for images that are not scaled."""
    if found.scale is None:
        return []
    return [
        f"Objects were scaled by a factor of {found.scale.factor:.3g}. The run does not do that by itself: to predict images "
        f"from there, give --scale {found.scale.scale}."
    ]


def _partly(found: SelfTraining) -> list[str]:
    if found.way == 1:
        return []
    return [f"Its weights are {100 * found.way:g} % of the way from those before to those after the last round."]


def _changed(found: SelfTraining) -> str:
    images = f"{found.unlabeled:,} images of {found.source}"
    return f"The predicted class of {wording.percent(found.changed, 1)} of {images} has changed."


def _missing(found: SelfTraining) -> list[str]:
    """The classes that are not found among the images, which self-training cannot learn there."""
    known = list(found.after) if found.prior is None else found.prior.classes
    names = [name for name in known if not found.after.get(name)]
    if not names:
        return []
    return [
        f"No image is predicted as {listed(names)}. Either there is none, or the network no longer tells such images from "
        "others: self-training can lose a class that the network hardly knows there."
    ]


def _unknown(found: SelfTraining) -> str:
    return (
        "Without labels, nothing shows whether predictions there are better than before, and guarantees are not for images from "
        "there: label 50 or 100 of them, and adapt "
        f"to these: petriscope adapt {shlex.quote(found.base)} --data LABELED."
    )


def _suggested(found: SelfTraining) -> str:
    if not found.suggested:
        return ""
    return (
        f"suggested.csv has {wording.plural(found.suggested, 'image')} that would be most useful to label, of "
        f"{found.unlabeled:,}: those on which the network is uncertain, and that differ from each other."
    )
