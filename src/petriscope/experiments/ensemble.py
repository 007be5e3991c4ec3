"""Ensembles: several runs joined into one run, which can be evaluated, compared and used like any other.

All choices (weights of votes, stacking, the members of a soup) are made on val; test is not read.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import nn

from petriscope.core.arguments import checked_arguments
from petriscope.core.device import enough_memory
from petriscope.core.errors import DataError, RequestError, command
from petriscope.core.files import new_folder, path_text, user_paths
from petriscope.core.notebook import stoppable
from petriscope.core.progress import say
from petriscope.core.recipe import Part, Recipe
from petriscope.core.results import EnsembleMember, EnsembleSummary
from petriscope.data import Dataset, ImageSet
from petriscope.data.batches import Batches
from petriscope.data.membership import Exposure
from petriscope.data.tile_sets import one_tile_each
from petriscope.experiments.evaluate import evaluate_into
from petriscope.experiments.generic import Seen
from petriscope.experiments.made import begin_made, trained_together
from petriscope.experiments.own_data import whole_data
from petriscope.experiments.specialist import SHARES, THRESHOLDS, check_pair, choose_rule, fingerprint_of
from petriscope.inference.fit import fit_after_training
from petriscope.inference.predictor import Predictor, load_model
from petriscope.inference.tta import TTA
from petriscope.metrics.classification import nll_each
from petriscope.metrics.segmentation import class_iou
from petriscope.metrics.statistics import difference
from petriscope.models import ENSEMBLE, build_model
from petriscope.models.voting import FLOOR, Member
from petriscope.report.page import write_report
from petriscope.run.comparison import LEVEL
from petriscope.run.folder import Run, check_free, default_folder, open_run
from petriscope.tasks import Task, in_room
from petriscope.training.averaging import SWA
from petriscope.training.build import absolute_paths

Method = Literal["soft", "weighted", "stacking", "soup", "greedy-soup", "specialist"]
METHODS: tuple[Method, ...] = get_args(Method)
ABOUT = {
    "soft": "the mean of the members' probabilities",
    "weighted": "the weighted mean of the members' probabilities, weights by val",
    "stacking": "a linear model on the members' log-probabilities, fitted on val",
    "soup": "one network, the mean of the members' weights",
    "greedy-soup": "one network, the mean of the weights of the members that helped on val",
    "specialist": "a model of all classes and a specialist of one class, joined by a rule chosen on val",
}
TTA_ORDER: tuple[TTA, ...] = ("none", "mirror", "flips", "crops", "d4")  # by the number of views
RECALIBRATION_BATCHES = 32  # training batches from which the batch norm statistics of a soup are recomputed
EM_STEPS = 500
LEAST_WEIGHT = 1e-3  # a member with a smaller vote counts as left out
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)  # inverse penalties of stacking; one is chosen by cross-validation on val
FOLDS = 5


@dataclass(frozen=True)
class Joined:
    """The result of joining runs.

    Args:
        predictor: the joined predictor.
        members: one entry per run.
        best: the run that the ensemble has to beat, and its outputs on val.
        facts: fields of `EnsembleSummary` that depend on the method.
    """

    predictor: Predictor
    members: list[EnsembleMember]
    best: tuple[Run, Any]
    facts: dict[str, Any] = field(default_factory=dict)


@stoppable()
@enough_memory()
@checked_arguments
def ensemble(
    folders: Sequence[str | PathLike[str]],
    method: Method = "soft",
    out: str | Path | None = None,
    quiet: bool = False,
    data: str | PathLike[str] | None = None,
) -> Run:
    """Join several runs into one. Val is evaluated; test is not read.

    Args:
        folders: two or more finished runs with the same classes, image shape and data.
        method: one of

            - ``soft``: the mean of the probabilities;
            - ``weighted``: a weighted mean, with the weights of maximum likelihood on val, or for segmentation on a sample
              of its pixels;
            - ``stacking``: a linear model on the log-probabilities; classification only;
            - ``soup``: the mean of the weights of runs of one architecture, for runs that were fine-tuned from the same
              weights. Wortsman et al., 2022, arXiv:2203.05482;
            - ``greedy-soup``: a soup that takes in a run only if the score on val does not get worse;
            - ``specialist``: a main run, and a run that was trained with ``data.only`` on one of its classes, joined by the
              rule that is best on val; segmentation only.
        out: the folder to make; default ``runs/ensemble-<method>-seed<N>``.
        data: where the data of the runs are now; None: where the recipe of the first says.

    Raises:
        RequestError: a run is missing or unfinished, or the runs do not fit together.
        DataError: the data have changed, or there is no val split.
    """
    if method not in METHODS:
        raise RequestError(f"no ensemble method {method!r}; known: {', '.join(METHODS)}")
    runs = [open_run(folder) for folder in user_paths(folders)]
    if len(runs) < 2:
        raise RequestError("an ensemble needs at least two different runs")
    members = [load_model(run.model) for run in runs]
    task = members[0].task
    only = _check_fit(method, runs, members)
    tta = max((m.recipe.evaluation.tta for m in members), key=TTA_ORDER.index)
    recipe = joint_recipe(members, method, tta)
    if data is not None:
        recipe = absolute_paths(recipe.model_copy(update={"data": recipe.data.moved(path_text(data))}))
    check_free(None if out is None else Path(out))
    dataset = whole_data(runs[0], None if data is None else path_text(data), "join its runs")
    if only is not None and fingerprint_of(dataset, only) != _fingerprint(runs[1]):
        raise _other_data(runs[1], runs[0])
    if dataset.val is None:
        raise DataError(f"{recipe.data.origin} has no val split, which an ensemble needs")

    if only is None:
        joined = _join(method, runs, members, recipe, dataset, quiet)
    else:
        joined = _join_specialist(runs, members, recipe, dataset, only, quiet)
    seen = (member.exposure or Exposure() for member in members)
    joined.predictor.exposure = reduce(or_, seen, dataset.exposure)
    folder = default_folder(recipe) if out is None else Path(out)
    with new_folder(folder, numbered=out is None) as (staging, folder):
        table = _write(staging, joined, method, runs, dataset, quiet)
        write_report(Run(staging), folder)
    made = Run(folder)
    if not quiet:
        _tell(made, task, table)
    return made


def _write(
    folder: Path, joined: Joined, method: Method, runs: Sequence[Run], dataset: Dataset, quiet: bool
) -> EnsembleSummary:
    """Write all of an ensemble's run folder but the report."""
    predictor, val = joined.predictor, dataset.split("val")
    known = fit_after_training(predictor, dataset.train, val, quiet) if dataset.task.calibrates else None
    made = begin_made(folder, predictor, dataset, trained_together(runs), members=[str(run.folder) for run in runs])
    _, outputs = evaluate_into(made, predictor, dataset, "val", None, quiet, known)
    best, before = joined.best
    table = EnsembleSummary.model_validate(
        {
            "method": method,
            "members": joined.members,
            "best_member": str(best.folder),
            **_gain(dataset.task, outputs, before, val),
            **joined.facts,
        }
    )
    made.add_results(ensemble=table)
    return table


def _check_fit(method: Method, runs: Sequence[Run], members: Sequence[Predictor]) -> str | None:
    """Check that runs can be joined by a method. Returns the class of the specialist, if there is one."""
    for run in runs:
        if not run.finished:
            raise RequestError(f"{run.folder} is not finished; resume it: {command('train', '--resume', run.folder)}")
    task = members[0].task
    known = in_room(task, "experiments").ENSEMBLES
    if not known:
        raise RequestError(f"{task.name} models cannot be joined; compare them with {command('compare', *runs)}")
    if method not in known:
        raise RequestError(f"{task.name} models cannot be joined by {method}; known: {', '.join(known)}")
    for run, member in zip(runs, members, strict=True):
        ours, theirs = (sorted(each.recipe.data.standardize) for each in (members[0], member))
        if ours != theirs:  # images are standardized once, for all members
            raise RequestError(
                f"data.standardize is {theirs} in {run.folder} and {ours} in {runs[0].folder}; members of an ensemble must agree "
                "in it"
            )
        mine, its = members[0].recipe.data, member.recipe.data
        if (mine.scaled, mine.field_of_view) != (its.scaled, its.field_of_view):
            raise RequestError(
                f"{run.folder} and {runs[0].folder} differ in data.scale, the scale of a source, or data.field; members of an "
                "ensemble must agree in these"
            )
    if method == "specialist":
        return check_pair(runs, members)
    first = members[0]
    for run, member in zip(runs, members, strict=True):
        if member.classes != first.classes or member.shape != first.shape:
            one = member.recipe.data.only
            hint = "" if one is None else f"; it is a specialist of {one!r}: join it with --method specialist"
            raise RequestError(
                f"{run.folder} has {len(member.classes)} classes and images of {member.shape}, {runs[0].folder} "
                f"{len(first.classes)} and {first.shape}; members of an ensemble must agree in both{hint}"
            )
        if _fingerprint(run) != _fingerprint(runs[0]):
            raise _other_data(run, runs[0])
    return None


def _other_data(run: Run, first: Run) -> RequestError:
    return RequestError(
        f"{run.folder} was trained on other data or splits than {first.folder}, so val images of one may be training images "
        "of the other; join runs of the same data"
    )


def _fingerprint(run: Run) -> str:
    return run.environment.data.fingerprint


def joint_recipe(members: Sequence[Predictor], method: Method, tta: TTA) -> Recipe:
    first = members[0].recipe
    return Recipe(
        name=f"ensemble-{method}",
        about=f"{len(members)} runs as one: {ABOUT[method]}",
        seed=first.seed,
        data=first.data,
        model=first.model,
        training=first.training,
        evaluation=first.evaluation.model_copy(update={"tta": tta}),
    )


def _see(member: Predictor, dataset: Dataset, tta: TTA, quiet: bool, name: str) -> Seen:
    """The predictions of one model on val. The temperature is fitted later, for the ensemble as a whole."""
    val, label = dataset.split("val"), None if quiet else f"val by {name}"
    return in_room(member.task, "experiments").see(member, val, tta, label)


def _join(
    method: Method,
    runs: Sequence[Run],
    members: Sequence[Predictor],
    recipe: Recipe,
    dataset: Dataset,
    quiet: bool,
) -> Joined:
    tta, count = recipe.evaluation.tta, len(members)
    seen = [_see(m, dataset, tta, quiet, str(run.folder)) for run, m in zip(runs, members, strict=True)]
    scores, weights, facts = [each.score for each in seen], [1 / count] * count, {}
    if method == "soup":
        predictor = _soup(members, recipe, dataset)
    elif method == "greedy-soup":
        predictor, taken = _greedy_soup(members, recipe, dataset, scores, quiet)
        weights = [float(i in taken) / len(taken) for i in range(count)]
    else:
        if method == "weighted":
            weights = vote_weights(np.stack([each.of_truth for each in seen])).tolist()
            facts = {"pixels": len(seen[0].of_truth)} if dataset.task.dense else {}
        own = [{"weight": weight} for weight in weights]
        more = {"vote": "stacking"} if method == "stacking" else {}
        predictor = unite(runs, members, recipe, dataset, own, **more)
        if method == "stacking":
            _fit_stack(
                predictor.model.get_submodule("head"),
                np.stack([each.outputs for each in seen]),
                dataset.split("val").targets,
            )
    best = int(np.argmax(scores))
    rows = [_row(run, score, weight) for run, score, weight in zip(runs, scores, weights, strict=True)]
    return Joined(predictor, rows, (runs[best], seen[best].outputs), facts)


def _join_specialist(
    runs: Sequence[Run], members: Sequence[Predictor], recipe: Recipe, dataset: Dataset, only: str, quiet: bool
) -> Joined:
    """The main model and a specialist, joined by the rule that is best on val; the main model alone if no rule is better."""
    main, specialist = members
    tta, index, val = recipe.evaluation.tta, dataset.classes.index(only), dataset.split("val")
    choice = choose_rule(main, specialist, val, index, tta, None if quiet else "val by both")
    rule, before = choice.rule, dataset.task.score(choice.main, val)
    after = before
    tally = choice.main
    if rule is not None:
        options = {"vote": "specialist", "threshold": rule.threshold, "share": rule.share}
        predictor = unite(runs, members, recipe, dataset, [{}, {"only": index}], **options)
        # Test-time augmentation averages the results of the rule over the views, not its inputs, so the gain may be lost.
        seen = _see(predictor, dataset, tta, quiet, "the joined model")
        if seen.score > before:
            after, tally = seen.score, seen.outputs
        else:
            rule = None
    if rule is None:
        predictor = unite(runs[:1], members[:1], recipe, dataset, [{}])
    ious = {"before": class_iou(choice.main.confusion.sum(0))[index], "alone": choice.alone}
    ious["after"] = class_iou(tally.confusion.sum(0))[index]
    facts = {
        "class": only,
        "rule": "never" if rule is None else {"threshold": rule.threshold, "main_share": rule.share},
        "rules_tried": len(SHARES) * len(THRESHOLDS) + 1,
        "val_miou": {"before": before, "after": after},
        "val_class_iou": {key: float(iou) if np.isfinite(iou) else None for key, iou in ious.items()},
    }
    taken = rule is not None
    rows = [_row(runs[0], before, None), _row(runs[1], None, None).model_copy(update={"taken": taken})]
    return Joined(predictor, rows, (runs[0], choice.main), {"specialist": facts})


def _row(run: Run, score: float | None, weight: float | None) -> EnsembleMember:
    return EnsembleMember(
        run=str(run.folder), val_score=score, weight=weight, taken=weight is None or weight > LEAST_WEIGHT
    )


def unite(
    runs: Sequence[Run],
    members: Sequence[Predictor],
    recipe: Recipe,
    dataset: Dataset,
    own: Sequence[dict[str, Any]],
    **options: Any,
) -> Predictor:
    """One network that contains the members, which are predictors of trained runs.

    Args:
        own: further fields of each `Member`.
        options: options of `petriscope.models.voting.Ensemble`; without a vote, the mean of the probabilities.
    """
    options = {"vote": "mean" if dataset.task.exclusive else "labels", **options}
    parts = [
        Member(model=_without_weights(m.recipe.model), mean=m.mean, std=m.std, run=str(run.folder), **fields)
        for run, m, fields in zip(runs, members, own, strict=True)
    ]
    part = Part(name=ENSEMBLE, members=[member.model_dump(mode="json") for member in parts], **options)
    predictor = _assemble(recipe.model_copy(update={"model": part}), members[0], dataset)
    joined = predictor.model.get_submodule("members")
    for network, member in zip(joined.children(), members, strict=True):
        network.load_state_dict(member.model.state_dict())
    return predictor


def _assemble(recipe: Recipe, like: Predictor, dataset: Dataset) -> Predictor:
    shape = recipe.data.shape_of_model(dataset.shape)
    model = build_model(recipe.model, len(dataset.classes), shape, fresh=False).to(like.device).eval()
    channels = shape[2]
    return Predictor(
        model, recipe, dataset.task, dataset.classes, shape, (0.0,) * channels, (1.0,) * channels, like.device
    )


def _without_weights(part: Part) -> Part:
    """A model's part without the source of its first weights, which a trained model no longer needs."""
    return Part(name=part.name, **{key: value for key, value in part.options.items() if key != "weights"})


def vote_weights(of_truth: np.ndarray) -> np.ndarray:
    """The weights of M networks with which the mean of their probabilities has maximum likelihood, float64 [M], sum 1.

    The likelihood of a mixture as a function of its weights has one maximum, which expectation maximization finds.
    Dempster, Laird and Rubin, 1977, Journal of the Royal Statistical Society B 39:1.

    Args:
        of_truth: the probability that each of M networks gives to the true class of each of N images or pixels, [M, N].

    Raises:
        RequestError: N is 0.
    """
    if not of_truth.size:
        raise RequestError("weights are fitted on val, where no pixel has a label; join the runs with --method soft")
    of_truth = np.maximum(of_truth, 1e-12)
    weights = np.full(len(of_truth), 1 / len(of_truth))
    for _ in range(EM_STEPS):
        shares = weights[:, None] * of_truth
        weights = (shares / shares.sum(0)).mean(1)
    return weights


def _fit_stack(stack: nn.Module, each: np.ndarray, targets: np.ndarray) -> None:
    """Multinomial logistic regression on the members' log-probabilities, with a penalty chosen by cross-validation on val."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    features = np.log(np.maximum(np.concatenate(list(each), axis=1), FLOOR))
    classes, counts = np.unique(targets, return_counts=True)
    folds = min(FOLDS, int(counts.min()))
    if folds < 2 or len(classes) < 2:
        raise RequestError("stacking needs val images of two classes, and at least two of every class that val has")
    scores = []
    for inverse in PENALTIES:
        score = 0.0
        for fit, held in StratifiedKFold(folds, shuffle=True, random_state=0).split(features, targets):
            model = LogisticRegression(C=inverse, max_iter=2000).fit(features[fit], targets[fit])
            known = np.searchsorted(classes, targets[held])
            score += float(nll_each(model.predict_proba(features[held]), known).sum())
        scores.append(score)
    best = LogisticRegression(C=PENALTIES[int(np.argmin(scores))], max_iter=2000).fit(features, targets)
    coefficients, intercept = best.coef_, best.intercept_
    if len(classes) == 2:  # scikit-learn keeps only the row of the second class
        coefficients, intercept = (
            np.stack([-coefficients[0], coefficients[0]]) / 2,
            np.array([-1, 1]) * intercept[0] / 2,
        )
    weight, bias = stack.get_parameter("weight"), stack.get_parameter("bias")
    with torch.no_grad():
        weight.zero_()
        bias.fill_(float(np.log(FLOOR)))  # for classes that val does not have
        rows = torch.from_numpy(classes)
        weight[rows] = torch.from_numpy(coefficients).float().to(weight.device)
        bias[rows] = torch.from_numpy(intercept).float().to(bias.device)


def _soup(members: Sequence[Predictor], recipe: Recipe, dataset: Dataset) -> Predictor:
    """The mean of the weights, with batch norm statistics recomputed from training images."""
    first = members[0]
    for member in members[1:]:
        if (member.recipe.model, member.mean, member.std) != (first.recipe.model, first.mean, first.std):
            raise RequestError("a soup needs runs of one architecture and one normalization; use soft or weighted")
    swa = SWA(first.model)
    batches = Batches(one_tile_each(dataset.split("train"), recipe.data), first.device, recipe.data.memory)
    order = np.random.default_rng(recipe.seed).permutation(len(batches.images))
    size = recipe.training.batch_size
    chunks = [order[i : i + size] for i in range(0, min(len(order), RECALIBRATION_BATCHES * size), size)]
    for number, member in enumerate(members):
        model = copy.deepcopy(member.model).train()
        last = number == len(members) - 1
        inputs = (first.normalize(images) for images, _ in batches.iterate(chunks if last else []))
        swa.add(model, number, inputs if len(members) > 1 else ())
    return Predictor(
        swa.model.eval(), recipe, first.task, first.classes, first.shape, first.mean, first.std, first.device
    )


def _greedy_soup(
    members: Sequence[Predictor], recipe: Recipe, dataset: Dataset, scores: Sequence[float], quiet: bool
) -> tuple[Predictor, list[int]]:
    """A soup of members taken from the best on val down, each kept only if the score on val does not fall.

    Returns:
        the predictor, and the indices of the members kept.
    """
    order = np.argsort(-np.array(scores), kind="stable").tolist()
    taken, best, soup = order[:1], scores[order[0]], members[order[0]]
    for index in order[1:]:
        trial = _soup([members[i] for i in (*taken, index)], recipe, dataset)
        score = _see(trial, dataset, recipe.evaluation.tta, quiet, f"soup of {len(taken) + 1}").score
        if score >= best:
            taken, best, soup = [*taken, index], score, trial
    kept = Predictor(soup.model, recipe, soup.task, soup.classes, soup.shape, soup.mean, soup.std, soup.device)
    return kept, taken


def _gain(task: Task, joined: Any, best: Any, val: ImageSet) -> dict[str, Any]:
    """The gain of the ensemble over its best member on val, with a paired test."""
    tables = [task.table(outputs, val, "val") for outputs in (joined, best)]
    columns = [{str(name): table[name].to_numpy() for name in table} for table in tables]
    sample = task.sample(columns, task.compared[0])
    found = difference(sample[:1], sample[1:])
    low, high = (end if np.isfinite(end) else None for end in found.ci95)
    return {"gain": found.value, "gain_ci95": (low, high), "p": found.p}


def _tell(made: Run, task: Task, table: EnsembleSummary) -> None:
    low, high = table.gain_ci95
    interval = "" if low is None or high is None else f"{100 * low:+.2f} to {100 * high:+.2f}, "
    shown = "a difference" if table.p < LEVEL else "no difference shown"
    best = "the main model alone" if table.specialist is not None else "its best member"
    say(
        f"on val, {task.info(task.compared[0]).name.lower()} changes by {100 * table.gain:+.2f} points "
        f"({interval}p {table.p:.2g}: {shown}) against {best}, {table.best_member}. The "
        f"ensemble was chosen on val, so judge it on test: {command('evaluate', made.folder)}"
    )
