"""What val says of a predictor, kept with it: how far its probabilities hold, and where it should keep silent.

Everything here is fitted on val, for one kind of test-time augmentation at a time, because an average over other views is
another predictor. Val also chose the epoch in most runs, so its own promises are a little rosy; test tells.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from petriscope.metrics.calibration import calibration_errors
from petriscope.metrics.conformal import METHOD, METHODS, Method, quantiles, scores, sets
from petriscope.metrics.intervals import wilson
from petriscope.metrics.selective import DELTA, Threshold, aurc, doubt, guaranteed_threshold
from petriscope.trust.ood import INSIDE, Detector, Gauge, Mixture
from petriscope.trust.temperature import fit_temperature, scale

MAX_ERRORS = (0.005, 0.01, 0.02, 0.05)
LEVELS = (0.9, 0.95)
SCORED: tuple[Method, ...] = ("lac", "aps", "raps")  # class has the score of lac
ARRAYS = {"doubt": np.float32, "target": np.int64, "right": np.uint8, "ood": np.float32}
KEYS = {"ood": "outlier"}  # of arrays in the file, where they are not called as here


@dataclass(frozen=True, eq=False)
class Reference:
    """The images of val as a predictor answers them.

    Args:
        temperature: see `petriscope.trust.temperature`.
        doubt: 1 - confidence, at that temperature, float32 [N].
        target: int64 [N].
        right: uint8 [N].
        ood: of `petriscope.trust.ood.Detector`; above 1, unlike anything seen; float32 [N].
        true_scores: conformal scores of the true classes, for each of `SCORED`, float32 [N].
    """

    temperature: float
    doubt: np.ndarray
    target: np.ndarray
    right: np.ndarray
    ood: np.ndarray
    true_scores: dict[Method, np.ndarray]

    def threshold(self, max_error: float, delta: float = DELTA) -> Threshold | None:
        """See `guaranteed_threshold`; of the images that are like those seen in training, since others get no answer."""
        inside = self.ood <= 1
        return guaranteed_threshold(self.doubt[inside], self.right[inside].astype(bool), max_error, delta)

    def limits(self, level: float, classes: int, method: Method = METHOD) -> np.ndarray:
        """The largest conformal score that is taken into a set, a class, float64 [K]."""
        return quantiles(self.true_scores["lac" if method == "class" else method], self.target, classes, level, method)


def fit_reference(raw: np.ndarray, targets: np.ndarray, ood: np.ndarray | None = None) -> Reference:
    """From val's probabilities as the network gives them, float [N, K], and targets, int64 [N].

    Args:
        ood: float32 [N]; None: all are like those seen.
    """
    temperature = fit_temperature(raw, targets)
    p = scale(raw, temperature)
    own = np.arange(len(targets))
    return Reference(
        temperature,
        doubt(p),
        targets,
        (p.argmax(1) == targets).astype(np.uint8),
        np.zeros(len(targets), np.float32) if ood is None else ood,
        {method: scores(p, method)[own, targets] for method in SCORED},
    )


@dataclass(frozen=True, eq=False)
class Trust:
    """References by test-time augmentation, and the detector of images unlike those trained on."""

    references: dict[str, Reference] = field(default_factory=dict)
    detector: Detector | None = None

    def temperature(self, tta: str, otherwise: str) -> float:
        """The temperature for a kind of test-time augmentation; where none was fitted, that of ``otherwise``, else 1."""
        reference = self.references.get(tta) or self.references.get(otherwise)
        return 1.0 if reference is None else reference.temperature

    def to_json(self) -> dict[str, Any]:
        """What goes into a model file's metadata; arrays as base64."""
        references = {
            tta: {
                "temperature": reference.temperature,
                **{KEYS.get(name, name): _pack(getattr(reference, name), kind) for name, kind in ARRAYS.items()},
                **{method: _pack(values, np.float32) for method, values in reference.true_scores.items()},
            }
            for tta, reference in self.references.items()
        }
        if self.detector is None:
            return {"references": references, "detector": None}
        parts = {"features": _measure(self.detector.features), "pixels": _measure(self.detector.pixels)}
        return {"references": references, "detector": {**parts, "limit": self.detector.limit}}

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> Trust:
        """Raises KeyError, TypeError, ValueError or AttributeError where something lacks or does not fit."""
        references = {}
        for tta, found in facts["references"].items():
            parts = {name: _unpack(found[KEYS.get(name, name)], kind) for name, kind in ARRAYS.items()}
            scored = {method: _unpack(found[method], np.float32) for method in SCORED}
            if (
                len({values.shape for values in (*parts.values(), *scored.values())}) != 1
                or not found["temperature"] > 0
            ):
                raise ValueError(f"what val said of tta {tta} does not fit together")
            references[tta] = Reference(float(found["temperature"]), **parts, true_scores=scored)
        if facts["detector"] is None:
            return cls(references)
        found = facts["detector"]
        features, pixels = _gauge(found["features"]), found["pixels"]
        measure = _mixture(pixels) if "height" in pixels else _gauge(pixels)
        return cls(references, Detector(features, measure, float(found["limit"])))


def _measure(part: Gauge | Mixture) -> dict[str, Any]:
    arrays = {each.name: getattr(part, each.name) for each in fields(part) if each.name != "limit"}
    return {"limit": part.limit, **{name: _pack(values, np.float32) for name, values in arrays.items()}}


def _gauge(found: dict[str, Any]) -> Gauge:
    centers, whiten = (_unpack(found[name], np.float32) for name in ("centers", "whiten"))
    if centers.ndim != 2 or whiten.ndim != 2 or centers.shape[1] != whiten.shape[1]:
        raise ValueError("the detector of unlike images does not fit together")
    return Gauge(centers, whiten, float(found["limit"]))


def _mixture(found: dict[str, Any]) -> Mixture:
    centers, whiten, height = (_unpack(found[name], np.float32) for name in ("centers", "whiten", "height"))
    if centers.ndim != 2 or whiten.shape != (*centers.shape, centers.shape[1]) or height.shape != centers.shape[:1]:
        raise ValueError("the detector of unlike images does not fit together")
    return Mixture(centers, whiten, height, float(found["limit"]))


def _pack(values: np.ndarray, kind: type) -> dict[str, Any]:
    """As JSON: shape, and the bytes, little-endian, as base64."""
    plain = np.ascontiguousarray(values, dtype=np.dtype(kind).newbyteorder("<"))
    return {"shape": list(values.shape), "base64": base64.b64encode(plain.tobytes()).decode("ascii")}


def _unpack(found: dict[str, Any], kind: type) -> np.ndarray:
    data = np.frombuffer(base64.b64decode(found["base64"]), dtype=np.dtype(kind).newbyteorder("<"))
    return data.astype(kind).reshape(found["shape"])


def trust_metrics(
    raw: np.ndarray,
    probabilities: np.ndarray,
    targets: np.ndarray,
    ood: np.ndarray | None,
    classes: tuple[str, ...],
    reference: Reference | None,
    temperature: float,
) -> dict[str, Any]:
    """What is known of a predictor's trustworthiness on labeled images.

    Args:
        raw, probabilities: before and after the temperature, float32 [N, K].
        targets: int64 [N].
        ood: float32 [N]; None: there is no detector.
        reference: what thresholds and quantiles come from; None: nothing was fitted for these views.

    Returns:
        ``calibration``: temperature, and `calibration_errors` ``before`` and ``after`` it; ``aurc``, ``excess_aurc``;
        ``selective``, ``conformal``: a list a wanted error and one list per level and method, None without a reference;
        ``ood``: share flagged, None without a detector.
    """
    doubts, right = doubt(probabilities), probabilities.argmax(1) == targets
    area, excess = aurc(doubts, right)
    return {
        "calibration": {
            "temperature": temperature,
            "before": calibration_errors(raw, targets),
            "after": calibration_errors(probabilities, targets),
        },
        "aurc": area,
        "excess_aurc": excess,
        "selective": None
        if reference is None
        else [_selective(reference, wanted, doubts, right, ood) for wanted in MAX_ERRORS],
        "conformal": None
        if reference is None
        else [
            _conformal(reference, level, method, probabilities, targets, classes)
            for level in LEVELS
            for method in METHODS
        ],
        "ood": None
        if ood is None
        else {
            "inside_of_val": INSIDE,
            "threshold": 1.0,
            "flagged": int((~(ood <= 1)).sum()),
            "share": float((~(ood <= 1)).mean()),
        },
    }


def answered_by(threshold: Threshold | None, doubts: np.ndarray, ood: np.ndarray | None) -> np.ndarray:
    """Which images get an answer, bool [N]: none without a threshold, and none that is unlike those seen in training."""
    if threshold is None:
        return np.zeros(len(doubts), bool)
    sure = doubts <= threshold.doubt
    return sure if ood is None else sure & (ood <= 1)


def _selective(
    reference: Reference, max_error: float, doubts: np.ndarray, right: np.ndarray, ood: np.ndarray | None
) -> dict[str, Any]:
    threshold = reference.threshold(max_error)
    answered = answered_by(threshold, doubts, ood)
    n, wrong = int(answered.sum()), int((answered & ~right).sum())
    return {
        "max_error": max_error,
        "guaranteed": threshold is not None,
        "delta": DELTA,
        "threshold": threshold.confidence if threshold else None,
        "coverage": n / len(doubts),
        "answered": n,
        "wrong": wrong,
        "error": wrong / n if n else None,
        "error_ci95": list(wilson(wrong, n)) if n else None,
    }


def _conformal(
    reference: Reference,
    level: float,
    method: Method,
    probabilities: np.ndarray,
    targets: np.ndarray,
    classes: tuple[str, ...],
) -> dict[str, Any]:
    limits = reference.limits(level, len(classes), method)
    members = sets(probabilities, limits, method)
    covered = members[np.arange(len(targets)), targets]
    sizes = members.sum(1)
    by_class = {name: float(covered[targets == k].mean()) for k, name in enumerate(classes) if (targets == k).any()}
    worst = min(by_class, key=lambda name: by_class[name])
    return {
        "level": level,
        "method": method,
        "coverage": float(covered.mean()),
        "coverage_ci95": list(wilson(float(covered.sum()), len(covered))),
        "mean_size": float(sizes.mean()),
        "empty": float((sizes == 0).mean()),
        "single": float((sizes == 1).mean()),
        "worst_class": worst,
        "worst_class_coverage": by_class[worst],
        "too_few_val": [name for name, limit in zip(classes, limits, strict=True) if limit == np.inf],
    }
