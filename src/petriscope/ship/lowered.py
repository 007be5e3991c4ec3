"""A model in a lower precision: its network is changed, what is fitted on val is fitted anew, and it is compared with the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from petriscope.core.errors import PetriscopeError, RequestError
from petriscope.core.masks import IGNORE
from petriscope.core.progress import progress, say
from petriscope.data.imageset import ImageSet
from petriscope.inference.package import Measured
from petriscope.inference.predictor import Predictor
from petriscope.inference.sampling import sample_rows
from petriscope.metrics.calibration import calibration_errors
from petriscope.metrics.intervals import bootstrap_weights, group_index, percentile95
from petriscope.ship.graph import INPUT, Graph, write_graph
from petriscope.ship.precision import halve, quantize, transplant
from petriscope.trust.robustness import stratified
from petriscope.trust.shift import MOST_OF_VAL
from petriscope.trust.state import Trust, fit_reference
from petriscope.trust.two_sample import Likeness, traits_of

PRECISIONS = ("fp32", "fp16", "int8")
CALIBRATION, AT_ONCE = 256, 8  # training images that ranges of activations are measured on, and how many at a time
BLOCK = 64  # images of val at a time
MOST_WORSE = 0.005  # accuracy that may be lost, as far as val shows
RESAMPLES = 2000
Outputs = dict[str, np.ndarray]


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
        val: temperature, thresholds and prediction sets are fitted on it anew.
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
            raise RequestError(
                "int8 needs training images to measure the range of activations on, and the run has none left"
            )
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
    of_run = _scores(predictor, val, torch)
    measured = tuple(
        _measured(name, again if name == precision else predictor, val, each, of_run, sizes[name], seconds[name])
        for name, each in raws.items()
    )
    _check(measured[-1], precision, force)
    return Lowered(again, measured, tuple(kept))


def _label(name: str, quiet: bool) -> str | None:
    return None if quiet else f"predicting val, {name}"


def _check(found: Measured, precision: str, force: bool) -> None:
    _, high = found.change_ci95
    if high is None or high >= -MOST_WORSE:
        return
    words = (
        f"in {precision}, the accuracy on val is {100 * found.accuracy:.2f} %, which is {-100 * found.change:.2f} points worse "
        f"than that of the run (95 %: by {-100 * high:.2f} or more)"
    )
    if not force:
        raise PetriscopeError(f"{words}; nothing was exported. Export it in fp32, or all the same with --force")
    say(f"warning: {words}; it is exported all the same, as requested")


def _seen(path: Path, images: ImageSet, label: str | None) -> tuple[Outputs, float]:
    """The outputs of a graph for images, of masks their classes alone, and the seconds that it took."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
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
    if predictor.task.dense or tta not in trust.references:
        return trust
    ood = None if trust.detector is None else found["ood"]
    reference = fit_reference(found["raw"], val.targets, ood, val.groups)
    return Trust({tta: reference}, trust.detector, likeness=_likeness(trust.likeness, val, found))


def _likeness(old: Likeness | None, val: ImageSet, found: Outputs) -> Likeness | None:
    if old is None or old.center is not None:  # else nothing that the network says is compared
        return old
    rows = sample_rows(len(val), MOST_OF_VAL)
    ood = found["ood"][rows] if old.traits.ood.any() else None
    points, doubt, predicted, appearance = (
        found[name][rows] for name in ("points", "plain_uncertainty", "plain_label", "appearance")
    )
    traits = traits_of(points, doubt, predicted, ood, appearance)
    return Likeness(
        old.project, traits, val.targets[rows], group_index(None if val.groups is None else val.groups[rows])
    )


def _scores(predictor: Predictor, val: ImageSet, found: Outputs) -> np.ndarray:
    """How right the answer is for each image, 0 to 1, float64 [N]: for masks, the share of the labeled pixels."""
    if not predictor.task.dense:
        return (found["raw"].argmax(1) == val.targets).astype(np.float64)
    known = val.targets != IGNORE
    right = (found["classes"] == val.targets) & known
    return right.sum((1, 2)) / np.maximum(known.sum((1, 2)), 1)


def _measured(
    name: str,
    predictor: Predictor,
    val: ImageSet,
    found: Outputs,
    of_run: np.ndarray,
    size: int | None,
    seconds: float,
) -> Measured:
    scores = _scores(predictor, val, found)
    change = scores - of_run
    drawn = [
        weights @ change / weights.sum(1) for weights in bootstrap_weights(len(change), RESAMPLES, index=_index(val))
    ]
    low, high = percentile95(np.concatenate(drawn)) if drawn else (np.nan, np.nan)
    errors: dict[str, float] = {}
    if not predictor.task.dense:
        tta = predictor.recipe.evaluation.tta
        p = predictor.judge(found["raw"], tta, None).probabilities
        errors = calibration_errors(p, val.targets)
    return Measured(
        of=name,
        accuracy=float(scores.mean()),
        change=float(change.mean()),
        change_ci95=(float(low), float(high)) if np.isfinite(low) else (None, None),
        nll=errors.get("nll"),
        ece=errors.get("ece"),
        bytes=size,
        images_per_second=len(val) / seconds,
    )


def _index(val: ImageSet) -> np.ndarray | None:
    return group_index(val.groups)
