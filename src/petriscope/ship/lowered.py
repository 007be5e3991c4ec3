"""A model in a lower precision: its network is changed, what is fitted on val is fitted anew, and it is compared with the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from petriscope.core.errors import PetriscopeError, RequestError
from petriscope.core.masks import IGNORE
from petriscope.core.progress import progress, say
from petriscope.data.imageset import ImageSet
from petriscope.inference.package import Measured
from petriscope.inference.predictor import Predictor
from petriscope.inference.runtime import load_onnxruntime
from petriscope.inference.sampling import sample_rows
from petriscope.metrics.calibration import calibration_errors
from petriscope.metrics.intervals import bootstrap_weights, group_index, percentile95
from petriscope.metrics.multilabel import label_calibration_errors, label_draws
from petriscope.ship.graph import INPUT, Graph, write_graph
from petriscope.ship.precision import halve, quantize, transplant
from petriscope.trust.multilabel import LabelReference, fit_labels, in_one_mix
from petriscope.trust.robustness import stratified
from petriscope.trust.shift import MOST_OF_VAL
from petriscope.trust.state import Trust, fit_reference
from petriscope.trust.two_sample import Likeness, traits_of

PRECISIONS = ("fp32", "fp16", "int8")
CALIBRATION, AT_ONCE = 256, 8  # training images that ranges of activations are measured on, and how many at a time
BLOCK = 64  # images of val at a time
NO_IMAGES = "int8 needs training images to measure the range of activations on, and the run has none left"
MOST_WORSE = 0.005  # accuracy, or mAP, that may be lost, as far as val shows
RESAMPLES = 2000
Outputs = dict[str, np.ndarray]
Metric = Callable[[np.ndarray], np.ndarray]  # of some predictions, for each row of weights of images, [R, N] -> [R]


@dataclass(frozen=True, eq=False)
class Lowered:
    """A model in a lower precision.

    Args:
        predictor: the run's, with what was fitted on val anew.
        measured: the run, the model in single precision, and this one, on val.
        kept: layers that stay in single precision.
    """

    predictor: Predictor
    measured: tuple[Measured, ...]
    kept: tuple[str, ...]


def lower(
    predictor: Predictor,
    precision: str,
    train: ImageSet | None,
    val: ImageSet,
    folder: Path,
    out: Path,
    force: bool,
    quiet: bool,
) -> Lowered:
    """Write the graph of a predictor in half precision (``fp16``) or with whole numbers of 8 bits (``int8``).

    Args:
        train: images that the ranges of activations are measured on, for ``int8``.
        val: temperature, thresholds and prediction sets are fitted on it anew; of several labels their scaling, cutoffs and
            thresholds.
        folder: for graphs on the way.
        out: the file to write.
        force: write it although it is worse than the run.

    Raises:
        RequestError: there are no training images.
        PetriscopeError: val shows that it is worse than the run by more than half a point.
    """
    whole, changed, fitted = (folder / f"{name}.onnx" for name in ("whole", "changed", "fitted"))
    write_graph(Graph(predictor), whole)
    kept: list[str] = []
    if precision == "fp16":
        halve(whole, changed)
    else:
        if train is None or not len(train):
            raise RequestError(NO_IMAGES)
        rows = stratified(train.strata, min(CALIBRATION, len(train)))
        batches = [train.take(np.sort(rows[start : start + AT_ONCE])) for start in range(0, len(rows), AT_ONCE)]
        kept = quantize(whole, batches, changed, label=None if quiet else "choosing layers")
    single, alone = _seen(whole, val, _label("fp32", quiet))
    found, fast = _seen(changed, val, _label(precision, quiet))
    torch, slow = _timed(lambda: _of_run(predictor, val, _label("the run", quiet)))
    again = replace(predictor, trust=_fitted_again(predictor, val, found))
    write_graph(Graph(again), fitted)
    transplant(fitted, changed, out)
    raws = {"run": torch, "fp32": single, precision: found}
    seconds = {"run": slow, "fp32": alone, precision: fast}
    sizes = {"run": None, "fp32": whole.stat().st_size, precision: out.stat().st_size}
    judges = {name: again if name == precision else predictor for name in raws}
    found_metrics = _compared({name: _metric(judges[name], val, each) for name, each in raws.items()}, val)
    measured = tuple(
        Measured(
            of=name,
            **found_metrics[name],
            **_errors(judges[name], val, each),
            bytes=sizes[name],
            images_per_second=len(val) / seconds[name],
        )
        for name, each in raws.items()
    )
    check_cost(measured[-1], precision, force)
    return Lowered(again, measured, tuple(kept))


def _label(name: str, quiet: bool) -> str | None:
    return None if quiet else f"predicting val, {name}"


def check_cost(found: Measured, precision: str, force: bool) -> None:
    """
    Raises:
        PetriscopeError: val shows that a precision is worse than the run by more than half a point.
    """
    _, high = found.change_ci95
    if high is None or high >= -MOST_WORSE:
        return
    name, value = found.metric
    words = (
        f"in {precision}, the {name} on val is {100 * value:.2f} %, which is {-100 * found.change:.2f} points worse than that "
        f"of the run (95 %: by {-100 * high:.2f} or more)"
    )
    if not force:
        raise PetriscopeError(f"{words}; nothing was exported. Export it in fp32, or all the same with --force")
    say(f"warning: {words}; it is exported all the same, as requested")


def _seen(path: Path, images: ImageSet, label: str | None) -> tuple[Outputs, float]:
    """The outputs of a graph for images, of masks their classes alone, and the seconds that it took."""
    session = load_onnxruntime().InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    wanted = ["classes"] if "classes" in names else names

    def predict(pixels: np.ndarray) -> Outputs:
        return dict(zip(wanted, session.run(wanted, {INPUT: pixels}), strict=True))

    return _timed(lambda: _joined(predict(each) for each in _blocks(images, label)))


def _of_run(predictor: Predictor, images: ImageSet, label: str | None) -> Outputs:
    def predict(pixels: np.ndarray) -> Outputs:
        if predictor.task.dense:
            return {"classes": predictor.probabilities(pixels).argmax(1).astype(np.uint8)}
        return {"raw": predictor.predict(pixels).raw}

    return _joined(predict(each) for each in _blocks(images, label))


def _blocks(images: ImageSet, label: str | None) -> Iterator[np.ndarray]:
    with progress(label or "", len(images)) as bar:
        for start in range(0, len(images), BLOCK):
            block = images.take(np.arange(start, min(start + BLOCK, len(images))))
            yield block
            if label:
                bar.advance(len(block))


def _joined(parts: Iterator[Outputs]) -> Outputs:
    every = list(parts)
    return {name: np.concatenate([part[name] for part in every]) for name in every[0]}


def _timed(work: Callable[[], Outputs]) -> tuple[Outputs, float]:
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def _fitted_again(predictor: Predictor, val: ImageSet, found: Outputs) -> Trust:
    """What was fitted on val, for other outputs. The out-of-distribution detector stays."""
    trust, tta = predictor.trust, predictor.recipe.evaluation.tta
    if tta not in (trust.references if predictor.task.exclusive else trust.labels):  # masks have none
        return trust
    ood = None if trust.detector is None else found["ood"]
    likeness = _likeness(trust.likeness, val, found)
    if predictor.task.exclusive:
        reference = fit_reference(found["raw"], val.targets, ood, val.groups)
        return Trust({tta: reference}, trust.detector, likeness=likeness)
    labels: dict[str, LabelReference] = {tta: fit_labels(found["raw"], val.targets, ood, val.groups)}
    return Trust({}, trust.detector, likeness=likeness, labels=labels)


def _likeness(old: Likeness | None, val: ImageSet, found: Outputs) -> Likeness | None:
    if old is None or old.center is not None:  # else nothing that the network says is compared
        return old
    rows = sample_rows(len(val), MOST_OF_VAL)
    ood = found["ood"][rows] if old.traits.ood.any() else None
    points, doubt, predicted, appearance = (
        found[name][rows] for name in ("points", "plain_uncertainty", "plain_label", "appearance")
    )
    traits = traits_of(points, doubt, predicted, ood, appearance)
    index = group_index(None if val.groups is None else val.groups[rows])
    likeness = Likeness(old.project, traits, val.strata[rows], index)
    return likeness if val.task.exclusive else in_one_mix(likeness)


def _metric(predictor: Predictor, val: ImageSet, found: Outputs) -> Metric:
    """The metric that counts most: accuracy; of masks, the mean over images of the share of labeled pixels that are right; of
    several labels, mAP."""
    if not predictor.task.exclusive:
        p, targets = _judged(predictor, found), val.targets
        return lambda weights: label_draws("map", p, targets, p > 0, weights)  # a ranking, so decisions do not matter
    if predictor.task.dense:
        known = val.targets != IGNORE
        right = (found["classes"] == val.targets) & known
        scores = right.sum((1, 2)) / np.maximum(known.sum((1, 2)), 1)
    else:
        scores = (found["raw"].argmax(1) == val.targets).astype(np.float64)
    return lambda weights: weights @ scores / weights.sum(1)


def _judged(predictor: Predictor, found: Outputs) -> np.ndarray:
    """Probabilities after the scaling that was fitted on val, float32 [N, K]."""
    return predictor.judge(found["raw"], predictor.recipe.evaluation.tta, None).probabilities


def _compared(metrics: Mapping[str, Metric], val: ImageSet) -> dict[str, dict[str, Any]]:
    """Of each model, the metric and its change from the first, as `Measured` has them."""
    values = {name: float(each(np.ones((1, len(val))))[0]) for name, each in metrics.items()}
    first, *_ = metrics
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in metrics}
    for weights in bootstrap_weights(len(val), RESAMPLES, index=group_index(val.groups)):
        before = metrics[first](weights)
        for name, each in metrics.items():
            drawn[name].append((before if name == first else each(weights)) - before)
    out = {}
    for name, value in values.items():
        changes = np.concatenate([np.empty(0), *drawn[name]])
        low, high = percentile95(changes[np.isfinite(changes)])  # mAP is undefined where no image has a label
        span = (float(low), float(high)) if np.isfinite(low) else (None, None)
        metric = {"accuracy": value} if val.task.exclusive else {"accuracy": None, "map": value}
        out[name] = {**metric, "change": value - values[first], "change_ci95": span}
    return out


def _errors(predictor: Predictor, val: ImageSet, found: Outputs) -> dict[str, Any]:
    """Errors of the probabilities after scaling, as `Measured` has them."""
    if predictor.task.dense:
        return {"nll": None, "ece": None}
    errors = calibration_errors if predictor.task.exclusive else label_calibration_errors
    each = errors(_judged(predictor, found), val.targets)
    return {"nll": each["nll"], "ece": each["ece"]}
