"""Ensembles: several runs as one run, which is evaluated, predicted with and compared as any other.

Every choice (weights of votes, stacking, which runs go into a soup) is made on val; test is not read.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import nn

from petriscope.api import evaluate_into
from petriscope.calibrating import calibrate
from petriscope.classifier import Classifier, load_model, save_model
from petriscope.data import Dataset, load_dataset
from petriscope.data.batches import Batches
from petriscope.errors import DataError, RequestError
from petriscope.evaluation.cost import cost, parameters
from petriscope.evaluation.inference import TTA
from petriscope.evaluation.metrics import nll_each
from petriscope.evaluation.statistics import difference, resample
from petriscope.models import ENSEMBLE, build_model
from petriscope.models.ensemble import FLOOR, Member
from petriscope.progress import say
from petriscope.recipe import Part, Recipe
from petriscope.report.page import write_report
from petriscope.run import Run, check_free, create_run, free_folder, open_run
from petriscope.training.averaging import SWA

Method = Literal["soft", "weighted", "stacking", "soup", "greedy-soup"]
METHODS: tuple[Method, ...] = get_args(Method)
ABOUT = {
    "soft": "the mean of the members' probabilities",
    "weighted": "the weighted mean of the members' probabilities, weights by val",
    "stacking": "a linear model on the members' log-probabilities, fitted on val",
    "soup": "one network, the mean of the members' weights",
    "greedy-soup": "one network, the mean of the weights of those members that helped on val",
}
TTA_ORDER: tuple[TTA, ...] = ("none", "mirror", "flips", "crops", "d4")  # by the number of views
RECALIBRATION_BATCHES = 32  # of training pictures, from which a soup's batch norm takes its statistics anew
EM_STEPS = 500
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)  # inverse, of stacking; chosen by cross-validation on val
FOLDS = 5


def ensemble(
    folders: Sequence[str | Path], method: Method = "soft", out: str | Path | None = None, quiet: bool = False
) -> Run:
    """Make one run of several. Val is evaluated; test is not read.

    Args:
        folders: two finished runs or more, of the same classes, picture shape and data.
        method: ``soft`` vote; ``weighted`` vote, its weights the likeliest on val; ``stacking``; ``soup``, the mean of
            the weights of runs of one architecture (Wortsman et al., 2022, arXiv:2203.05482), sensible where they
            were fine-tuned from the same weights; ``greedy-soup``, which takes a run in only if val gains.
        out: the folder to make; default ``runs/ensemble-<method>-seed<N>``.

    Raises:
        RequestError: a run is missing or unfinished, or they do not fit together.
        DataError: the data have changed, or there is no val to choose on.
    """
    if method not in METHODS:
        raise RequestError(f"no way to join runs {method!r}; known: {', '.join(METHODS)}")
    runs = [open_run(folder) for folder in dict.fromkeys(Path(folder) for folder in folders)]
    if len(runs) < 2:
        raise RequestError("an ensemble takes two different runs or more")
    members = [load_model(run.model) for run in runs]
    if any(member.segments for member in members):
        raise RequestError("ensembles join classifiers; one of these runs is a model of masks")
    _check_alike(runs, members)
    tta = max((m.recipe.evaluation.tta for m in members), key=TTA_ORDER.index)
    recipe = _recipe(members, method, tta)
    folder = Path(out) if out is not None else free_folder(recipe)
    check_free(folder)
    dataset = load_dataset(runs[0].recipe.data)
    if dataset.fingerprint != _fingerprint(runs[0]):
        raise DataError(f"the data at {recipe.data.source} have changed since {runs[0].folder} was trained")
    if dataset.val is None:
        raise DataError(f"{recipe.data.source} has no val split, on which an ensemble is chosen and judged")

    each = np.stack([_answers(m, dataset, tta, quiet, str(run.folder)) for run, m in zip(runs, members, strict=True)])
    targets = dataset.val.targets
    classifier, chosen, weights = _join(method, runs, members, recipe, dataset, each, quiet)
    facts = {
        "device": str(classifier.device),
        "precision": classifier.number_format,
        "parameters": parameters(classifier.model),
        "members": [str(run.folder) for run in runs],
    }
    made = create_run(folder, classifier.recipe, dataset, facts)
    state = {key: value.detach().cpu() for key, value in classifier.model.state_dict().items()}
    seconds = sum(float(run.results["training"].get("seconds") or 0) for run in runs)
    summary = {"seconds": round(seconds, 2), "monitor": None, "kept": "last"}
    answers = calibrate(classifier, dataset.train, dataset.val, None, quiet)
    save_model(made.model, state, classifier, {"environment": made.environment, "training": summary})
    _, probabilities = evaluate_into(made, classifier, dataset, "val", None, quiet, answers)
    assert probabilities is not None
    table = [
        {"run": str(run.folder), "val_accuracy": float(accuracy), "weight": weight, "taken": taken}
        for run, accuracy, weight, taken in zip(runs, _accuracies(each, targets), weights, chosen, strict=True)
    ]
    gain = _gain(probabilities, each, targets, runs)
    made.add_results(cost=cost(classifier), training=summary, ensemble={"method": method, "members": table, **gain})
    write_report(made)
    if not quiet:
        _tell(made, gain)
    return made


def _check_alike(runs: Sequence[Run], members: Sequence[Classifier]) -> None:
    first = members[0]
    for run, member in zip(runs, members, strict=True):
        if "training" not in run.results:
            raise RequestError(f"{run.folder} is not finished; go on with it: petriscope train --resume {run.folder}")
        if member.classes != first.classes or member.shape != first.shape:
            raise RequestError(
                f"{run.folder} has {len(member.classes)} classes and pictures of {member.shape}, {runs[0].folder} "
                f"{len(first.classes)} and {first.shape}; members of an ensemble have the same"
            )
        if _fingerprint(run) != _fingerprint(runs[0]):
            raise RequestError(
                f"{run.folder} was trained on other data or splits than {runs[0].folder}: what is val for one may be "
                "train for the other"
            )


def _fingerprint(run: Run) -> str:
    return str((run.environment.get("data") or {}).get("fingerprint"))


def _recipe(members: Sequence[Classifier], method: Method, tta: TTA) -> Recipe:
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


def _answers(member: Classifier, dataset: Dataset, tta: TTA, quiet: bool, name: str) -> np.ndarray:
    """A model's own probabilities on val, float64 [N, K]; the temperature is for the ensemble as a whole."""
    assert dataset.val is not None
    batches = Batches(dataset.val, member.device, member.recipe.data.memory)
    return member.look(batches, tta, None if quiet else f"val by {name}").astype(np.float64)


def _join(
    method: Method,
    runs: Sequence[Run],
    members: Sequence[Classifier],
    recipe: Recipe,
    dataset: Dataset,
    each: np.ndarray,
    quiet: bool,
) -> tuple[Classifier, list[bool], list[float]]:
    """The joined classifier, which runs are in it, and the weight of each."""
    assert dataset.val is not None
    targets, count = dataset.val.targets, len(members)
    if method in ("soup", "greedy-soup"):
        if method == "soup":
            return _soup(members, recipe, dataset), [True] * count, [1 / count] * count
        classifier, taken = _greedy_soup(members, recipe, dataset, each, quiet)
        return classifier, taken, [float(t) / sum(taken) for t in taken]
    weights = vote_weights(each, targets).tolist() if method == "weighted" else [1 / count] * count
    vote = "stacking" if method == "stacking" else "mean"
    parts = [
        Member(model=_without_weights(m.recipe.model), mean=m.mean, std=m.std, weight=w, run=str(run.folder))
        for run, m, w in zip(runs, members, weights, strict=True)
    ]
    part = Part(name=ENSEMBLE, vote=vote, members=[member.model_dump(mode="json") for member in parts])
    classifier = _assemble(recipe.model_copy(update={"model": part}), members[0], dataset)
    joined = classifier.model.get_submodule("members")
    for own, member in zip(joined.children(), members, strict=True):
        own.load_state_dict(member.model.state_dict())
    if method == "stacking":
        _fit_stack(classifier.model.get_submodule("head"), each, targets)
    return classifier, [weight > 1e-3 for weight in weights], weights


def _assemble(recipe: Recipe, like: Classifier, dataset: Dataset) -> Classifier:
    model = build_model(recipe.model, len(dataset.classes), dataset.shape, fresh=False).to(like.device).eval()
    channels = dataset.shape[2]
    return Classifier(model, recipe, dataset.classes, dataset.shape, (0.0,) * channels, (1.0,) * channels, like.device)


def _without_weights(part: Part) -> Part:
    """A model's part without where its first weights came from, which a trained one no longer needs."""
    return Part(name=part.name, **{key: value for key, value in part.options.items() if key != "weights"})


def vote_weights(each: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Weights of a mean of probabilities that are the likeliest for the targets, float64 [M], sum 1.

    The likelihood of a mixture in its weights has one maximum, which expectation maximization climbs to. Dempster, Laird
    and Rubin, 1977, Journal of the Royal Statistical Society B 39:1.

    Args:
        each: probabilities, float [M, N, K].
        targets: int64 [N].
    """
    of_truth = np.maximum(each[:, np.arange(len(targets)), targets], 1e-12)
    weights = np.full(len(each), 1 / len(each))
    for _ in range(EM_STEPS):
        shares = weights[:, None] * of_truth
        weights = (shares / shares.sum(0)).mean(1)
    return weights


def _fit_stack(stack: nn.Module, each: np.ndarray, targets: np.ndarray) -> None:
    """Multinomial logistic regression on the members' log-probabilities; its penalty by cross-validation on val."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    features = np.log(np.maximum(np.concatenate(list(each), axis=1), FLOOR))
    classes, counts = np.unique(targets, return_counts=True)
    folds = min(FOLDS, int(counts.min()))
    if folds < 2:
        raise RequestError("stacking needs two val pictures or more of every class")
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
    if len(classes) == 2:  # scikit-learn keeps the second class's row alone
        coefficients, intercept = (
            np.stack([-coefficients[0], coefficients[0]]) / 2,
            np.array([-1, 1]) * intercept[0] / 2,
        )
    weight, bias = stack.get_parameter("weight"), stack.get_parameter("bias")
    with torch.no_grad():
        weight.zero_()
        bias.fill_(float(np.log(FLOOR)))  # a class that val does not have
        rows = torch.from_numpy(classes)
        weight[rows] = torch.from_numpy(coefficients).float().to(weight.device)
        bias[rows] = torch.from_numpy(intercept).float().to(bias.device)


def _soup(members: Sequence[Classifier], recipe: Recipe, dataset: Dataset) -> Classifier:
    """The mean of the weights, batch norm's statistics taken anew from training pictures."""
    first = members[0]
    for member in members[1:]:
        if (member.recipe.model, member.mean, member.std) != (first.recipe.model, first.mean, first.std):
            raise RequestError("a soup takes runs of one architecture and one normalization; use soft or weighted")
    swa = SWA(first.model)
    batches = Batches(dataset.split("train"), first.device, recipe.data.memory)
    order = np.random.default_rng(recipe.seed).permutation(len(batches.images))
    size = recipe.training.batch_size
    chunks = [order[i : i + size] for i in range(0, min(len(order), RECALIBRATION_BATCHES * size), size)]
    for number, member in enumerate(members):
        model = copy.deepcopy(member.model).train()
        last = number == len(members) - 1
        inputs = (first.normalize(pictures) for pictures, _ in batches.iterate(chunks if last else []))
        swa.add(model, number, inputs if len(members) > 1 else ())
    return Classifier(swa.model.eval(), recipe, first.classes, first.shape, first.mean, first.std, first.device)


def _greedy_soup(
    members: Sequence[Classifier], recipe: Recipe, dataset: Dataset, each: np.ndarray, quiet: bool
) -> tuple[Classifier, list[bool]]:
    """Members from the best on val down, each kept only if val does not lose by it."""
    assert dataset.val is not None
    targets = dataset.val.targets
    tta = recipe.evaluation.tta
    order = np.argsort(-_accuracies(each, targets), kind="stable")
    taken, best = [int(order[0])], float(_accuracies(each[order[:1]], targets)[0])
    soup = members[taken[0]]
    for index in order[1:].tolist():
        trial = _soup([members[i] for i in (*taken, index)], recipe, dataset)
        accuracy = float(
            (_answers(trial, dataset, tta, quiet, f"soup of {len(taken) + 1}").argmax(1) == targets).mean()
        )
        if accuracy >= best:
            taken, best, soup = [*taken, index], accuracy, trial
    kept = Classifier(soup.model, recipe, soup.classes, soup.shape, soup.mean, soup.std, soup.device)
    return kept, [i in taken for i in range(len(members))]


def _accuracies(each: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return (each.argmax(2) == targets).mean(1)


def _gain(probabilities: np.ndarray, each: np.ndarray, targets: np.ndarray, runs: Sequence[Run]) -> dict[str, Any]:
    """The ensemble against its best member on val, by McNemar's test."""
    best = int(_accuracies(each, targets).argmax())
    predicted = np.stack([probabilities.argmax(1), each[best].argmax(1)])
    sample = resample(predicted, targets, each.shape[2])
    found = difference(sample[:1], sample[1:])
    return {"best_member": str(runs[best].folder), "gain": found.value, "gain_ci95": list(found.ci95), "p": found.p}


def _tell(made: Run, gain: dict[str, Any]) -> None:
    low, high = gain["gain_ci95"]
    shown = "a difference" if gain["p"] < 0.05 else "no difference shown"
    say(
        f"on val {100 * gain['gain']:+.2f} points ({100 * low:+.2f} to {100 * high:+.2f}, p {gain['p']:.2g}: {shown}) "
        f"against its best member, {gain['best_member']}; val chose, so test decides: petriscope evaluate {made.folder}"
    )
