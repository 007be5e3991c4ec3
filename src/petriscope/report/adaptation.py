"""What adapting a run to another place changed there and at home, for the page and for the terminal."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from markupsafe import Markup

from petriscope.core.results import (
    CLASSIFICATION,
    FEW_IMAGES,
    Adaptation,
    ClassPrior,
    Evaluation,
    Metric,
    SelectiveRow,
    SelfTraining,
)
from petriscope.core.scale import in_words
from petriscope.report import wording
from petriscope.report.charts import interval_mark
from petriscope.report.metrics import in_sentence, written
from petriscope.tasks import Task, find_task
from petriscope.tasks.base import MetricInfo
from petriscope.trust.verdict import differences

RECALL = MetricInfo("recall", "Recall", "share of the images of a class given this class")
COSTS = 0.01  # accuracy, or mAP, at home that an adaptation may cost without a warning


@dataclass(frozen=True)
class ClassRow:
    """A class at the new place: its held-out images, and its recall before and after, the latter drawn on a scale."""

    name: str
    images: str
    before: str
    after: str
    mark: Markup


@dataclass(frozen=True)
class AdaptationView:
    """The section on an adaptation.

    Args:
        about: how the run was adapted and to what, a sentence each.
        metrics: name, before and after, at the new place.
        classes: see `ClassRow`; ``metric``: what they show.
        cost: what the adaptation costs at home, a sentence each.
        selective: requested error rate; share answered and errors before; confidence, share answered and errors after.
        guarantee: what the thresholds guarantee, and for which images.
        tried: setting, accuracy or what else ``tried_by`` names, negative log-likelihood.
        chosen: how the setting was chosen.
        suggested: which images to label next; empty if that was not asked for.
    """

    about: list[str]
    metrics: list[tuple[str, str, str]]
    classes: list[ClassRow]
    metric: str
    cost: list[str]
    selective: list[list[str]]
    guarantee: str
    tried: list[tuple[str, str, str]]
    tried_by: str
    chosen: str
    suggested: str


def adaptation_view(task: Task, found: Adaptation) -> AdaptationView:
    """The section on an adaptation of a model for a task."""
    before, after = found.before, found.after
    metrics = [
        (info.name, written(info, before.metric(info.key)), written(info, after.metric(info.key)))
        for info in task.metrics
        if info.key in after.metrics
    ]
    return AdaptationView(
        about=_about(found),
        metrics=metrics,
        classes=_classes(task, before, after),
        metric=in_sentence(task.per_class or RECALL),
        cost=at_home(found),
        selective=_selective(before, after),
        guarantee=_guarantee(after, found),
        tried=[
            (each.setting, wording.percent(getattr(each, task.metrics[0].key)), wording.decimal(each.nll, 3))
            for each in found.tried
        ],
        tried_by=task.metrics[0].name,
        chosen=(
            f"Of {len(found.tried)} settings, the first was chosen: the most promising of those whose negative "
            f"log-likelihood after {'temperature scaling' if task.exclusive else 'the scaling of each label'} is within a "
            "standard error of the lowest. The same images chose it that the metrics are of: the metrics after adapting are "
            "slightly optimistic."
        ),
        suggested=_suggested(found),
    )


def at_place(found: Adaptation) -> str:
    """Accuracy, or mAP, at the new place before and after, in a sentence."""
    images = wording.images(found.after.n, found.after.groups, "labeled")
    metric = _counted_most(found)
    before, after = (_share(each.metric(metric.key)) for each in (found.before, found.after))
    held = "in turn" if found.after.groups is None else "in whole groups, in turn"
    return (
        f"At {found.source}, {in_sentence(metric)} on {images} that were held out {held} is {before} before adapting, {after} "
        "after."
    )


def compared_with_val(found: Adaptation | SelfTraining) -> list[str]:
    """How the images of the new place differ from val of the base, a sentence; empty if that was not tested."""
    shift = found.shift
    if shift is None or shift.not_tested is not None:
        return []
    if shift.withdrawn:
        return [f"Its images are not like those of val of {found.base}: {differences(shift)}."]
    return [f"Its images are not shown to differ from val of {found.base} (p = {shift.p:.2g})."]


def at_home(found: Adaptation | SelfTraining) -> list[str]:
    """What the adaptation costs at home, a sentence each."""
    before, after = found.home_before, found.home_after
    if before is None or after is None or before.value is None or after.value is None:
        return [f"{found.base} has no val split, so what the adaptation costs on its images is not known."]
    images = wording.plural(found.home_n, "val image")
    name = in_sentence(_counted_most(found))
    out = [f"On the {images} of {found.base}, {name} is {_share(before)} before, {_share(after)} after."]
    if (lost := before.value - after.value) > COSTS:
        out.append(
            f"The adapted model is {100 * lost:.1f} points worse on images like those of {found.base}, more than "
            f"{100 * COSTS:g} point: use {found.base} for these."
        )
    return out


def fitted_on(found: Adaptation) -> str:
    """What thresholds and prediction sets were fitted on, in place of val."""
    return f"the held-out images of {found.domain}"


def repeated(found: Adaptation, seed: int) -> str:
    """The command that adapts again."""
    words = ["petriscope", "adapt", found.base, "--data", found.source]
    words += [] if found.split == "train" else ["--split", found.split]
    words += [] if found.home is None else ["--home", found.home]
    words += [] if found.scale is None else ["--scale", f"{found.scale.scale}"]
    words += said(found.prior)
    words += [] if found.unlabeled_source is None else ["--unlabeled", found.unlabeled_source]
    words += ["--suggest", str(found.suggested)] if found.suggested else []
    words += [] if found.minutes is None else ["--minutes", f"{found.minutes:g}"]
    return shlex.join([*words, "--seed", str(seed)])


def said(prior: ClassPrior | None) -> list[str]:
    """What was said about the classes, as options."""
    if prior is None:
        return []
    shares = prior.shares
    values = prior.classes if shares is None else [f"{name}={shares[name]!r}" for name in prior.classes]
    option = "--classes" if shares is None else "--prior"
    return [word for value in values for word in (option, value)]


def _about(found: Adaptation) -> list[str]:
    labeled = wording.plural(found.labeled, "labeled image")
    out = [
        f"{found.base} was adapted to {labeled} of {found.source}. Chosen: {found.setting}.",
        f"The metrics are of {wording.images(found.held_out, found.after.groups)} that were held out, by {found.folds}-fold "
        "cross-validation: each was predicted by a network that did not learn from it. The network of this run learned from all.",
    ]
    if found.unlabeled:
        more = wording.plural(found.unlabeled, "image")
        out.append(
            f"The limits of its out-of-distribution detector are also fitted to {more} from there without labels."
        )
    if never := found.labeled - found.held_out:
        are = "is" if never == 1 else "are"
        out.append(
            f"{wording.plural(never, 'image')} {are} in no metric: nothing could be held out of a class with one image or group."
        )
    out += compared_with_val(found)
    if found.scale is not None:
        estimate = found.scale.estimate
        given = in_words(found.scale.scale)
        out.append(
            f"Images from there are scaled first, also where the metrics are those of before: {given}."
            if estimate is None
            else f"Images from there are scaled {given} first, also where the metrics are those of before. The factor was "
            f"estimated: the median size of objects is {estimate.known:.3g} of the shorter side as {found.base} knows them, and "
            f"{estimate.here:.3g} there."
        )
    if found.prior is not None:
        shares = found.prior.shares
        names = found.prior.classes
        each = names if shares is None else [f"{name} {wording.percent(shares[name], 1)}" for name in names]
        out.append(
            f"It was said that only these classes occur: {', '.join(each)}. Metrics and thresholds in this section are for "
            "these; predictions are too if the same is said to predict."
        )
    return out


def _classes(task: Task, before: Evaluation, after: Evaluation) -> list[ClassRow]:
    info = task.per_class or RECALL
    rows = []
    for name, each in after.per_class.items():
        if each.n:
            first, last = before.per_class.get(name), each.metric(info.key)
            value = wording.percent(None if first is None else first.value(info.key))
            mark = interval_mark(last.value, last.ci95, 0.0)
            few = " (few)" if each.n < FEW_IMAGES else ""
            rows.append(ClassRow(name, f"{wording.count(each.n)}{few}", value, written(info, last), mark))
    return rows


def _selective(before: Evaluation, after: Evaluation) -> list[list[str]]:
    old = {row.max_error: row for row in before.selective or []}
    rows = []
    for row in after.selective or []:
        (first, errors_first, _), (last, errors_last, threshold) = _row(old.get(row.max_error)), _row(row)
        rows.append([f"{100 * row.max_error:g} %", first, errors_first, threshold, last, errors_last])
    return rows


def _row(row: SelectiveRow | None) -> tuple[str, str, str]:
    """The share answered, the errors among the answers, and the confidence from which is answered."""
    if row is None:
        return wording.NONE, wording.NONE, wording.NONE
    if not row.guaranteed:
        return "cannot be guaranteed", wording.NONE, wording.NONE
    threshold = wording.percent(row.threshold, 1) if row.threshold else "any"
    errors = wording.percent_with_interval(row.error, row.error_ci95)
    return wording.percent(row.coverage, 1), errors, threshold


def _guarantee(after: Evaluation, found: Adaptation) -> str:
    if after.answers:
        return (
            "The scaling, the cutoff and the thresholds of each label were fitted on the predictions for "
            f"{fitted_on(found)}. What they guarantee is for images from there, and assumes that the network, which learned from "
            "all labeled images, is not worse than those that learned from fewer; only other labeled images show whether they "
            "hold."
        )
    if not after.selective:
        return ""
    share = 100 * (1 - after.selective[0].delta)
    what = "images" if after.val_groups is None else "groups"
    return (
        f"Temperature, thresholds and prediction sets were fitted on the predictions for {fitted_on(found)}. With a probability "
        f"of {share:g} % over draws of such {what}, at most the requested share of the answers on new {what} from there is "
        "wrong. This assumes that the network, which learned from all labeled images, is not worse than those that learned from "
        "fewer. "
        "These are the images that the thresholds were fitted on: only other labeled images show whether they hold."
    )


def _suggested(found: Adaptation) -> str:
    if not found.suggested:
        return ""
    return (
        f"suggested.csv has {wording.plural(found.suggested, 'image')} that would be most useful to label next, of "
        f"{found.unlabeled:,} that were looked at: those on which the network is uncertain, and that differ from each other."
    )


def _counted_most(found: Adaptation | SelfTraining) -> MetricInfo:
    """The metric that sentences are about; adapting without labels is for classification alone."""
    return find_task(found.after.task if isinstance(found, Adaptation) else CLASSIFICATION).metrics[0]


def _share(metric: Metric) -> str:
    return wording.percent_with_interval(metric.value, metric.ci95)
