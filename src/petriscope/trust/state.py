"""What is fitted on val and kept with a predictor: temperature, thresholds for abstention, prediction sets, and the
out-of-distribution detector.

Each kind of test-time augmentation has its own fit, because it is a different predictor. Most runs also choose the epoch on
val, so guarantees made on val are slightly optimistic; test shows whether they hold.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from petriscope.core.errors import RequestError
from petriscope.core.results import (
    Calibration,
    CalibrationErrors,
    ConformalRow,
    Interval,
    OODSummary,
    SelectiveRow,
    TrustMetrics,
)
from petriscope.metrics.calibration import calibration_errors
from petriscope.metrics.conformal import METHOD, METHODS, Method, quantiles, sets, true_scores
from petriscope.metrics.intervals import group_index, proportion95
from petriscope.metrics.selective import DELTA, Threshold, aurc, guaranteed_threshold, uncertainty
from petriscope.trust.multilabel import KINDS as LABEL_KINDS
from petriscope.trust.multilabel import LabelReference
from petriscope.trust.ood import INSIDE, Detector, Mahalanobis, Mixture
from petriscope.trust.prior import Prior, implied_shares, reweight
from petriscope.trust.temperature import fit_temperature, scale
from petriscope.trust.two_sample import KINDS, Likeness

MAX_ERRORS = (0.005, 0.01, 0.02, 0.05, 0.1)
LEVELS = (0.9, 0.95)
SCORED: tuple[Method, ...] = ("lac", "aps", "raps")  # the method class uses the scores of lac
ARRAYS = {"uncertainty": np.float32, "target": np.int64, "right": np.uint8, "ood": np.float32}
KEYS = {"uncertainty": "doubt", "ood": "outlier"}  # names of arrays in model files, where they differ
TENSORS = "trust/"  # how the names of all arrays begin in model files; no weight has a slash in its name
MOST_KEPT = 4_000_000  # probabilities of val that a model file keeps
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Reference:
    """The predictions on val, from which thresholds and prediction sets are computed.

    Args:
        temperature: see `petriscope.trust.temperature`.
        uncertainty: 1 - confidence, scaled with that temperature, float32 [N].
        target: int64 [N].
        right: whether the prediction is right, uint8 [N].
        ood: out-of-distribution score, float32 [N]; see `petriscope.trust.ood.Detector`.
        true_scores: conformal scores of the true classes, float32 [N], for each method in `SCORED`.
        index: groups of the images, int64 [N], as `petriscope.metrics.intervals.group_index` has them; None: images are
            independent.
        raw: probabilities before temperature scaling, float32 [N, K], from which references for other class shares are made;
            None: more than `MOST_KEPT`, or from a file of an older version, which did not keep them.
        occurs: the classes that occur where predictions are made, bool [K]; None: all. The images are of these classes.
        weights: the share of each class there, relative to its share among the images, float64 [K]; None: the same shares.
    """

    temperature: float
    uncertainty: np.ndarray
    target: np.ndarray
    right: np.ndarray
    ood: np.ndarray
    true_scores: dict[Method, np.ndarray]
    index: np.ndarray | None = None
    raw: np.ndarray | None = None
    occurs: np.ndarray | None = None
    weights: np.ndarray | None = None

    @property
    def groups(self) -> int | None:
        """The number of groups; None: images are independent."""
        return None if self.index is None else len(np.unique(self.index))

    def threshold(self, max_error: float, delta: float = DELTA) -> Threshold | None:
        """See `guaranteed_threshold`. Only images that are in distribution count, because others are never answered."""
        inside = self.ood <= 1
        index = None if self.index is None else self.index[inside]
        accept = None if self._accept is None else self._accept[inside]
        right = self.right[inside].astype(bool)
        return guaranteed_threshold(self.uncertainty[inside], right, max_error, delta, index, accept)

    @property
    def _accept(self) -> np.ndarray | None:
        """The probabilities of a rejection sampling that gives the class shares, float64 [N]."""
        return None if self.weights is None else (self.weights / self.weights.max())[self.target]

    @property
    def size(self) -> int:
        """The number of images, or of groups, that thresholds are from. With ``weights`` it is that expected of the
        sampling."""
        if self._accept is None:
            return len(self.target) if self.groups is None else self.groups
        return round(float((self._accept * _each(self.index, len(self.target))).sum()))

    def under(self, prior: Prior, factors: np.ndarray) -> Reference | None:
        """The reference for images of other class shares, whose classes look as they do on val. Images of classes that do not
        occur are left out.

        Args:
            factors: float64 [K], by which probabilities are reweighted.

        Returns:
            None without ``raw``.
        """
        if self.raw is None:
            return None
        rows = np.flatnonzero(prior.occurs[self.target])
        target, index = self.target[rows], None if self.index is None else group_index(self.index[rows])
        weights = None
        if prior.shares is not None:
            here = np.bincount(target, _each(index, len(rows)), minlength=len(factors))
            weights = np.divide(prior.shares, here / here.sum(), out=np.zeros(len(here)), where=here > 0)
        found = _reference(self.raw[rows], target, self.temperature, self.ood[rows], index, factors)
        return replace(found, occurs=prior.occurs, weights=weights)

    def implied(self) -> np.ndarray | None:
        """The class shares that the probabilities imply, float64 [K], see `implied_shares`; None without ``raw``."""
        return None if self.raw is None else implied_shares(scale(self.raw, self.temperature), self.target)

    def lacks(self, classes: int) -> str:
        """Why there is no ``raw``, and what to do, without the period."""
        if len(self.target) * classes > MOST_KEPT:
            return (
                f"the model file does not have the probabilities of val, because {len(self.target):,} images of {classes:,} "
                "classes are too many to keep"
            )
        return (
            "the model file is of an older version, and does not have the probabilities of val; petriscope calibrate RUN "
            "adds them"
        )

    def sound(self, classes: int) -> bool:
        """Whether the arrays are of one length and hold what they should for a model of so many classes."""
        values = [self.uncertainty, self.target, self.right, self.ood, *self.true_scores.values()]
        values += [] if self.index is None else [self.index]
        raw = self.raw
        if raw is not None and not (
            raw.shape == (len(self.target), classes) and bool(((raw >= 0) & (raw <= 1.01)).all())
        ):
            return False
        return (
            all(each.ndim == 1 and len(each) == len(self.target) for each in values)
            and bool(((self.target >= 0) & (self.target < classes)).all() and (self.right <= 1).all())
            and (self.index is None or bool((self.index >= 0).all()))
            and not any(np.isnan(each).any() for each in values)
        )

    def limits(self, level: float, classes: int, method: Method = METHOD) -> np.ndarray:
        """The highest conformal score that a prediction set includes, per class, float64 [K]."""
        found = self.true_scores["lac" if method == "class" else method]
        out = quantiles(found, self.target, classes, level, method, self.index, self.weights)
        return out if self.occurs is None else np.where(self.occurs, out, -np.inf)


def fit_reference(
    raw: np.ndarray, targets: np.ndarray, ood: np.ndarray | None = None, groups: np.ndarray | None = None
) -> Reference:
    """Fit the temperature on val, and keep what thresholds and prediction sets are computed from.

    Args:
        raw: probabilities of the network before temperature scaling, float [N, K].
        targets: int64 [N].
        ood: out-of-distribution scores, float32 [N]; None: all images are in distribution.
        groups: names of the groups of images, [N]; None: images are independent.
    """
    temperature = fit_temperature(raw, targets)
    found = _reference(raw, targets, temperature, ood, group_index(groups))
    return replace(found, raw=np.asarray(raw, dtype=np.float32)) if raw.size <= MOST_KEPT else found


def _reference(
    raw: np.ndarray,
    targets: np.ndarray,
    temperature: float,
    ood: np.ndarray | None,
    index: np.ndarray | None,
    factors: np.ndarray | None = None,
) -> Reference:
    p = scale(raw, temperature)
    p = p if factors is None else reweight(p, factors)
    return Reference(
        temperature,
        uncertainty(p),
        targets,
        (p.argmax(1) == targets).astype(np.uint8),
        np.zeros(len(targets), np.float32) if ood is None else ood,
        {method: true_scores(p, targets, method) for method in SCORED},
        index,
    )


def _each(index: np.ndarray | None, n: int) -> np.ndarray:
    """What each of N images counts, float64 [N], if groups count the same."""
    return np.ones(n) if index is None or not n else 1 / np.bincount(index)[index]


@dataclass(frozen=True, eq=False)
class Reweighting:
    """What a request says about the classes, and what follows for probabilities.

    Args:
        plain: what was fitted on val, without it.
        implied: the class shares that probabilities imply, float64 [K], by test-time augmentation; empty if only the classes
            are known.
    """

    prior: Prior
    plain: Trust
    implied: dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Trust:
    """References by test-time augmentation, and the out-of-distribution detector.

    Args:
        reweighting: set by `under`, for one request; the references are then those for its classes.
        likeness: what images of val are like; None in a file of an older version.
        labels: where images have any number of labels, in place of references.
    """

    references: dict[str, Reference] = field(default_factory=dict)
    detector: Detector | None = None
    reweighting: Reweighting | None = None
    likeness: Likeness | None = None
    labels: dict[str, LabelReference] = field(default_factory=dict)

    def under(self, prior: Prior) -> Trust:
        """The same where other classes occur, or with other shares. References without the probabilities of val are left out.
        The detector is the same, and so is what images of val are like.

        Raises:
            RequestError: shares are given, and there is nothing to measure those by that the probabilities imply, or no
                image of a class in val.
        """
        plain = self if self.reweighting is None else self.reweighting.plain
        implied: dict[str, np.ndarray] = {}
        if prior.shares is not None:
            if not plain.references:
                raise RequestError("prior needs a model with predictions on val, and the model file has none")
            for tta, reference in plain.references.items():
                if (found := reference.implied()) is None:
                    raise RequestError(f"prior: {reference.lacks(len(prior.classes))}")
                absent = prior.occurs & (np.bincount(reference.target, minlength=len(prior.classes)) == 0)
                if absent.any():
                    raise RequestError(
                        f"prior: val has no image of {prior.classes[int(absent.argmax())]}, so nothing is known about its "
                        "probabilities; name the classes that occur with classes"
                    )
                implied[tta] = found
        references = {
            tta: made
            for tta, reference in plain.references.items()
            if (made := reference.under(prior, prior.factors(implied.get(tta)))) is not None
        }
        return Trust(references, plain.detector, Reweighting(prior, plain, implied), plain.likeness)

    def implied(self, tta: str, otherwise: str) -> np.ndarray | None:
        """The class shares that the probabilities imply before they are reweighted, float64 [K], as for `temperature`; None
        if they are not reweighted by shares.

        Raises:
            RequestError: they were measured for neither test-time augmentation.
        """
        if self.reweighting is None or self.reweighting.prior.shares is None:
            return None
        found = self.reweighting.implied.get(tta, self.reweighting.implied.get(otherwise))
        if found is None:
            raise RequestError(
                f"prior: the model file has no predictions on val for test-time augmentation {tta}; petriscope calibrate RUN "
                f"--tta {tta} adds them to a run that has a val split"
            )
        return found

    def reweight(self, probabilities: np.ndarray, tta: str, otherwise: str) -> np.ndarray:
        """Probabilities, float [N, K], for the classes that occur; the same if nothing is said about them."""
        if self.reweighting is None:
            return probabilities
        return reweight(probabilities, self.reweighting.prior.factors(self.implied(tta, otherwise)))

    def temperature(self, tta: str, otherwise: str) -> float:
        """The temperature for a test-time augmentation; if none was fitted, that for ``otherwise``, else 1."""
        references = self.references if self.reweighting is None else self.reweighting.plain.references
        reference = references.get(tta) or references.get(otherwise)
        return 1.0 if reference is None else reference.temperature

    def scaled(self, raw: np.ndarray, tta: str, otherwise: str) -> np.ndarray:
        """Probabilities of the network, float32 [N, K, ...], scaled with what was fitted for a test-time augmentation, or else
        for ``otherwise``."""
        found = self.labels.get(tta) or self.labels.get(otherwise)
        return scale(raw, self.temperature(tta, otherwise)) if found is None else found.scaled(raw)

    def to_file(self) -> tuple[dict[str, Any], Arrays]:
        """The form in a model file: facts for its metadata, and the arrays to which they refer by name. What a request says
        about the classes is not part of it."""
        if self.reweighting is not None:
            return self.reweighting.plain.to_file()
        arrays: Arrays = {}

        def keep(values: np.ndarray, kind: type, *place: str) -> str:
            name = TENSORS + "/".join(place)
            arrays[name] = np.array(values, dtype=kind, order="C")
            return name

        def measure(part: Mahalanobis | Mixture, name: str) -> dict[str, Any]:
            names = [each.name for each in fields(part) if each.name != "limit"]
            kept = {each: keep(getattr(part, each), np.float32, "detector", name, each) for each in names}
            return {"limit": part.limit, **kept}

        references = {}
        for tta, reference in self.references.items():
            parts = {KEYS.get(name, name): (getattr(reference, name), kind) for name, kind in ARRAYS.items()}
            parts |= {method: (values, np.float32) for method, values in reference.true_scores.items()}
            parts |= {} if reference.index is None else {"group": (reference.index, np.int64)}
            parts |= {} if reference.raw is None else {"probabilities": (reference.raw, np.float32)}
            kept = {name: keep(*part, "references", tta, name) for name, part in parts.items()}
            references[tta] = {"temperature": reference.temperature, **kept}
        detector = self.detector
        found = detector and {
            "features": measure(detector.features, "features"),
            "pixels": measure(detector.pixels, "pixels"),
            "limit": detector.limit,
        }
        facts: dict[str, Any] = {"references": references, "detector": found}
        for tta, each in self.labels.items():
            kept = {
                name: keep(values, LABEL_KINDS[name], "labels", tta, name) for name, values in each.arrays().items()
            }
            facts.setdefault("labels", {})[tta] = kept
        if self.likeness is not None:
            facts["likeness"] = {
                name: keep(values, KINDS[name], "likeness", name) for name, values in self.likeness.arrays()
            }
        return facts, arrays

    @classmethod
    def from_file(cls, facts: dict[str, Any], arrays: Arrays, classes: int) -> Trust:
        """The inverse of `to_file` for a model of so many classes. Older files have arrays as base64 within the facts.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: a value is missing or inconsistent.
        """

        def array(found: Any, kind: type = np.float32) -> np.ndarray:
            if not isinstance(found, str):
                return _from_base64(found, kind)
            if arrays[found].dtype != kind:
                raise ValueError(f"{found} is {arrays[found].dtype}, not {np.dtype(kind)}")
            return arrays[found]

        def finite(found: Any) -> np.ndarray:
            values = array(found)
            if not np.isfinite(values).all():
                raise ValueError("the out-of-distribution detector has numbers that are not finite")
            return values

        def mahalanobis(found: dict[str, Any]) -> Mahalanobis:
            centers, whiten = finite(found["centers"]), finite(found["whiten"])
            if centers.ndim != 2 or whiten.ndim != 2 or centers.shape[1] != whiten.shape[1] or not len(centers):
                raise ValueError("the arrays of the out-of-distribution detector have inconsistent shapes")
            return Mahalanobis(centers, whiten, _positive(found["limit"]))

        def mixture(found: dict[str, Any]) -> Mixture:
            centers, whiten, height = (finite(found[name]) for name in ("centers", "whiten", "height"))
            square = (*centers.shape, centers.shape[1])
            if centers.ndim != 2 or whiten.shape != square or height.shape != centers.shape[:1] or not len(centers):
                raise ValueError("the arrays of the out-of-distribution detector have inconsistent shapes")
            return Mixture(centers, whiten, height, _positive(found["limit"]))

        references = {}
        for tta, found in facts["references"].items():
            parts = {name: array(found[KEYS.get(name, name)], kind) for name, kind in ARRAYS.items()}
            scored = {method: array(found[method]) for method in SCORED}
            parts |= {"index": array(found["group"], np.int64)} if "group" in found else {}
            parts |= {"raw": array(found["probabilities"])} if "probabilities" in found else {}
            references[tta] = Reference(_positive(found["temperature"]), **parts, true_scores=scored)
            if not references[tta].sound(classes):
                raise ValueError(f"the arrays fitted on val for test-time augmentation {tta} are inconsistent")
        labels = {}
        for tta, found in facts.get("labels", {}).items():
            labels[tta] = LabelReference(**{name: array(place, LABEL_KINDS[name]) for name, place in found.items()})
            if not labels[tta].sound(classes):
                raise ValueError(f"the arrays fitted on val for test-time augmentation {tta} are inconsistent")
        likeness = None
        if (found := facts.get("likeness")) is not None:
            likeness = Likeness.of({name: array(place, KINDS[name]) for name, place in found.items() if name in KINDS})
            if not likeness.sound(classes):
                raise ValueError("the arrays that say what images of val are like are inconsistent")
        if facts["detector"] is None:
            return cls(references, likeness=likeness, labels=labels)
        found = facts["detector"]
        measure = mixture if "height" in found["pixels"] else mahalanobis
        detector = Detector(mahalanobis(found["features"]), measure(found["pixels"]), _positive(found["limit"]))
        return cls(references, detector, likeness=likeness, labels=labels)


def _positive(value: Any) -> float:
    """A positive, finite number.

    Raises:
        TypeError, ValueError: it is none.
    """
    if not 0 < float(value) < np.inf:
        raise ValueError(f"{value!r} is no positive number")
    return float(value)


def _from_base64(found: dict[str, Any], kind: type) -> np.ndarray:
    """An array from its shape and its little-endian bytes."""
    data = np.frombuffer(base64.b64decode(found["base64"]), dtype=np.dtype(kind).newbyteorder("<"))
    return data.astype(kind).reshape(found["shape"])


def ood_summary(ood: np.ndarray) -> OODSummary:
    """How many images are out of distribution, by their scores, float [N]; those that are not a number count too."""
    far = ~(ood <= 1)
    return OODSummary(inside_of_val=INSIDE, threshold=1.0, flagged=int(far.sum()), share=float(far.mean()))


def trust_metrics(
    raw: np.ndarray,
    probabilities: np.ndarray,
    targets: np.ndarray,
    ood: np.ndarray | None,
    classes: tuple[str, ...],
    reference: Reference | None,
    temperature: float,
    groups: np.ndarray | None = None,
) -> TrustMetrics:
    """Calibration, selective prediction, prediction sets and out-of-distribution detection on labeled images.

    Args:
        raw, probabilities: before and after temperature scaling, float32 [N, K].
        targets: int64 [N].
        ood: out-of-distribution scores, float32 [N]; None: there is no detector.
        classes: K names.
        reference: the predictions on val; None: nothing was fitted for this test-time augmentation.
        temperature: with which ``probabilities`` were scaled.
        groups: names of the groups of images, [N]; None: images are independent.

    Returns:
        ``selective`` has one row per wanted error rate and ``conformal`` one per coverage and method; both are None without a
        reference. ``ood`` is None without a detector.
    """
    uncertainties, right = uncertainty(probabilities), probabilities.argmax(1) == targets
    area, excess = aurc(uncertainties, right)
    index = group_index(groups)
    selective, conformal, flagged = None, None, None
    if reference is not None:
        selective = [_selective(reference, wanted, uncertainties, right, ood, index) for wanted in MAX_ERRORS]
        pairs = [(level, method) for level in LEVELS for method in METHODS]
        conformal = [_conformal(reference, *pair, probabilities, targets, classes, index) for pair in pairs]
    if ood is not None:
        flagged = ood_summary(ood)
    return TrustMetrics(
        calibration=Calibration(
            temperature=temperature,
            before=CalibrationErrors(**calibration_errors(raw, targets)),
            after=CalibrationErrors(**calibration_errors(probabilities, targets)),
        ),
        aurc=area,
        excess_aurc=excess,
        selective=selective,
        conformal=conformal,
        ood=flagged,
        **({} if reference is None or reference.groups is None else {"val_groups": reference.groups}),
    )


def answered_by(threshold: Threshold | None, uncertainties: np.ndarray, ood: np.ndarray | None) -> np.ndarray:
    """Which images are answered, bool [N]: none without a threshold, and none that is out of distribution.

    Args:
        uncertainties: float32 [N].
        ood: out-of-distribution scores, float32 [N]; None: there is no detector.
    """
    if threshold is None:
        return np.zeros(len(uncertainties), bool)
    sure = uncertainties <= threshold.uncertainty
    return sure if ood is None else sure & (ood <= 1)


def _selective(
    reference: Reference,
    max_error: float,
    uncertainties: np.ndarray,
    right: np.ndarray,
    ood: np.ndarray | None,
    index: np.ndarray | None,
) -> SelectiveRow:
    threshold = reference.threshold(max_error)
    answered = answered_by(threshold, uncertainties, ood)
    n, wrong = int(answered.sum()), int((answered & ~right).sum())
    return SelectiveRow(
        max_error=max_error,
        guaranteed=threshold is not None,
        delta=DELTA,
        threshold=threshold.confidence if threshold else None,
        coverage=n / len(uncertainties),
        answered=n,
        wrong=wrong,
        error=wrong / n if n else None,
        error_ci95=_interval(~right[answered], None if index is None else index[answered]) if n else None,
    )


def _conformal(
    reference: Reference,
    level: float,
    method: Method,
    probabilities: np.ndarray,
    targets: np.ndarray,
    classes: tuple[str, ...],
    index: np.ndarray | None,
) -> ConformalRow:
    limits = reference.limits(level, len(classes), method)
    members = sets(probabilities, limits, method)
    covered = members[np.arange(len(targets)), targets]
    sizes = members.sum(1)
    by_class = {name: float(covered[targets == k].mean()) for k, name in enumerate(classes) if (targets == k).any()}
    worst = min(by_class, key=lambda name: by_class[name])
    return ConformalRow(
        level=level,
        method=method,
        coverage=float(covered.mean()),
        coverage_ci95=_interval(covered, index),
        mean_size=float(sizes.mean()),
        empty=float((sizes == 0).mean()),
        single=float((sizes == 1).mean()),
        worst_class=worst,
        worst_class_coverage=by_class[worst],
        too_few_val=[name for name, limit in zip(classes, limits, strict=True) if limit == np.inf],
    )


def _interval(hits: np.ndarray, index: np.ndarray | None) -> Interval:
    low, high = proportion95(hits, index)
    return (low, high) if np.isfinite(low) else (None, None)
