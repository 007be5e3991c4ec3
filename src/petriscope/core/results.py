"""The typed results of a run: what rooms hand to one another, and what is written to its JSON files.

Every model here is a pydantic model. ``results.json`` and ``environment.json`` are dumps of `Results` and
`Environment`. Metrics are written flat, ``accuracy`` beside ``accuracy_ci95``, and read back as `Metric`. Files of schema
version 1, which had no version number, are upgraded when they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from petriscope.core.errors import RequestError, shortened, shown
from petriscope.core.files import parsing
from petriscope.core.names import SPLITS
from petriscope.core.shift_results import ShiftTest

SCHEMA_VERSION = 2
CLASSIFICATION, SEGMENTATION = "classification", "segmentation"
FEW_IMAGES = 10  # a part of a split with fewer is not named as the worst, unless all but one have
FEW_GROUPS = 10  # a bootstrap of fewer does not have its nominal coverage
LARGE_GROUP = 0.25  # share of the images in one group; beyond it, neither has it
OLD_KEYS = {  # of schema version 1
    "pictures": "images",
    "pictures_per_second": "images_per_second",
    "inference_pictures_per_second": "inference_images_per_second",
    "figure": "metric",
    "promises": "guarantees",
}
OLD_TARGETS = {"labels": CLASSIFICATION, "masks": SEGMENTATION}

Interval = tuple[float | None, float | None]
R = TypeVar("R", bound="Result")
M = TypeVar("M", bound=BaseModel)


class Result(BaseModel):
    """Part of a result. Unknown keys, which a newer version may write, are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values, with the fields that were given."""
        return self.model_dump(mode="json", exclude_unset=True)


class Metric(Result):
    """The value of a metric and its 95 % interval.

    Args:
        value: None where the metric is not defined.
        ci95: None where no interval was computed.
    """

    value: float | None
    ci95: Interval | None = None


class Measured(Result):
    """A result that holds metrics, which are written flat beside its other fields.

    Args:
        metrics: by name.
        series: metrics that have one value per level, by name.
    """

    metrics: dict[str, Metric] = Field(default_factory=dict)
    series: dict[str, tuple[Metric, ...]] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, tree: Any) -> Any:
        if not isinstance(tree, dict) or "metrics" in tree or "series" in tree:
            return tree
        known, metrics, series = dict[str, Any](), dict[str, Any](), dict[str, Any]()
        for key, value in tree.items():
            if key in cls.model_fields:
                known[key] = value
            elif key.endswith("_ci95"):
                continue
            elif isinstance(value, list) and _may_be_metric(key, tree, *value):
                spans = tree.get(f"{key}_ci95") or [None] * len(value)
                series[key] = [_metric(each, span) for each, span in zip(value, spans, strict=True)]
            elif not isinstance(value, list) and _may_be_metric(key, tree, value):
                metrics[key] = _metric(value, tree.get(f"{key}_ci95"))
        return {**known, "metrics": metrics, "series": series}

    @model_serializer(mode="wrap")
    def _flatten(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        out = handler(self)
        out.pop("metrics", None)
        out.pop("series", None)
        for key, metric in self.metrics.items():
            out[key] = metric.value
            if metric.ci95 is not None:
                out[f"{key}_ci95"] = list(metric.ci95)
        for key, members in self.series.items():
            out[key] = [member.value for member in members]
            if all(member.ci95 is not None for member in members):
                out[f"{key}_ci95"] = [list(member.ci95) for member in members if member.ci95 is not None]
        return out

    def metric(self, name: str) -> Metric:
        """The metric of that name; one without a value where it was not computed."""
        return self.metrics.get(name, Metric(value=None))

    def value(self, name: str) -> float | None:
        return self.metric(name).value


def _metric(value: Any, ci95: Any) -> dict[str, Any]:
    return {"value": value, "ci95": ci95}


def _may_be_metric(key: str, tree: dict[str, Any], *values: Any) -> bool:
    """Whether an unknown key is a metric: it has an interval, or holds numbers. Other unknown keys are ignored."""
    return f"{key}_ci95" in tree or all(value is None or type(value) in (int, float) for value in values)


# ------------------------------------------------------------------------------------------------- one split evaluated


class ClassMetrics(Measured):
    """Metrics of one class.

    Args:
        n: images of the class; ``pixels``: its labeled pixels, where targets are masks.
    """

    n: int | None = None
    pixels: int | None = None


class CalibrationErrors(Result):
    ece_equal_mass: float
    ece: float
    nll: float
    brier: float


class Calibration(Result):
    """Calibration errors before and after the temperature that was fitted on val."""

    temperature: float
    before: CalibrationErrors
    after: CalibrationErrors


class SelectiveRow(Result):
    """Selective prediction at one wanted error rate. Geifman and El-Yaniv, 2017, arXiv:1705.08500.

    Args:
        guaranteed: whether val supports a threshold for it.
        threshold: lowest confidence that is answered; ``coverage``: share of images answered.
        error: share of the answers that are wrong; None where nothing is answered.
    """

    max_error: float
    guaranteed: bool
    delta: float
    threshold: float | None
    coverage: float
    answered: int
    wrong: int
    error: float | None
    error_ci95: Interval | None


class LabelAnswers(Result):
    """How often one label is said to be present, or absent, at one wanted error rate, where images have any number of labels.

    Args:
        name: the class; ``answer``: present or absent.
        guaranteed: whether val supports it: of the images that get this answer, at most ``max_error`` are wrong.
        said: images for which it is more likely than not, by the cutoff; ``answered``: those of them that get the answer, the
            others being left open; ``wrong``: of these; ``error``: their share, None where nothing is answered.
    """

    name: str
    answer: str
    max_error: float
    guaranteed: bool
    said: int
    answered: int
    wrong: int
    error: float | None
    error_ci95: Interval | None


class ConformalRow(Result):
    """Prediction sets of one method at one wanted coverage."""

    level: float
    method: str
    coverage: float
    coverage_ci95: Interval
    mean_size: float
    empty: float
    single: float
    worst_class: str
    worst_class_coverage: float
    too_few_val: list[str]


class OODSummary(Result):
    """How many images the out-of-distribution detector flags."""

    inside_of_val: float
    threshold: float
    flagged: int
    share: float


class TrustMetrics(Result):
    """What `Evaluation` has of calibration, selective prediction, prediction sets and out-of-distribution detection.

    Args:
        aurc, excess_aurc: area under the risk-coverage curve, and how far it is above the best order of the same answers.
        val_groups: groups of images of val that thresholds and prediction sets are over; None: they are over images.
    """

    calibration: Calibration
    aurc: float
    excess_aurc: float
    selective: list[SelectiveRow] | None
    conformal: list[ConformalRow] | None
    ood: OODSummary | None
    val_groups: int | None = None


class ConfusedPair(Result):
    true: str
    predicted: str
    count: int
    n: int
    ids: list[str]


class ErrorGroup(Result):
    """Accuracy over images that have an attribute in common; see `petriscope.experiments.error_groups`."""

    name: str
    low: float | None
    high: float | None
    color: tuple[float, ...] | None
    n: int
    accuracy: float
    ci95: Interval
    rest: float | None
    p: float
    p_within: float


class ErrorAttribute(Result):
    name: str
    about: str
    groups: list[ErrorGroup]


class NeighborsOfMistake(Result):
    id: str
    true: str
    predicted: str
    confidence: float
    labels: list[str]
    ids: list[str]
    similarity: list[float]


class Neighbors(Result):
    """The training images nearest to mistakes.

    Args:
        among: training images that were searched, ``of`` all.
    """

    among: int
    of: int
    mistakes: list[NeighborsOfMistake]


class ErrorAnalysis(Result):
    pairs: list[ConfusedPair]
    groups: list[ErrorAttribute]
    neighbors: Neighbors | None


class PixelOrder(Result):
    """Deletion and insertion scores of one order of pixels."""

    deletion: float
    insertion: float
    score: float


class CheckedMethod(Measured):
    """How an explanation method compares with other orders of pixels (``over_<order>``) and with shuffled weights
    (``randomized``)."""

    inside: float | None = None
    verdict: str
    trusted: bool


class ExplanationCheck(Result):
    n: int
    area: float | None = None
    orders: dict[str, PixelOrder]
    methods: dict[str, CheckedMethod]


class Explanations(Result):
    """What was explained of a split, and whether the methods can be trusted.

    Args:
        ids: of the images in the gallery; where targets are masks, ``of`` is the class that each is explained for,
            ``share`` the share of the image predicted as it, ``confidence`` its mean probability there.
    """

    method: str | None
    shown: int = 0
    check: ExplanationCheck | None = None
    left_out: list[str] = Field(default_factory=list)
    reason: str | None = None
    ids: list[str] = Field(default_factory=list)
    of: list[str] = Field(default_factory=list)
    share: list[float] = Field(default_factory=list)
    confidence: list[float] = Field(default_factory=list)
    classes: list[str] = Field(default_factory=list)


# -------------------------------------------------------------------------------------------------------- robustness


class CorruptionResult(Measured):
    """One corruption: ``mean`` over the severities, and the task's metrics as series over them."""

    kind: str
    unit: str
    levels: list[float]
    medmnist_c: bool
    seen: bool
    held_out: bool


class WorstCorruption(Measured):
    name: str


class GuaranteeShares(Measured):
    """``answered``, ``wrong`` among those, and ``held`` by prediction sets, as shares."""


class GuaranteesUnderShift(Result):
    """What the guarantees made on val come to on disturbed images; see `petriscope.trust.guarantees`.

    Args:
        together: under several corruptions at once; None in older files.
    """

    max_error: float
    level: float
    clean: GuaranteeShares
    disturbed: GuaranteeShares
    corruptions: dict[str, GuaranteeShares] = Field(default_factory=dict)
    together: GuaranteeShares | None = None


class Robustness(Measured):
    """The stress test of a split; see `petriscope.trust.robustness.stress_test`.

    Its metrics: ``clean``, ``mean``, ``mean_all``, ``drop``, ``relative_drop``, ``seen``, ``unseen``, ``together``,
    ``two_at_once``, ``three_at_once``, and the accuracy of clean images under its own name. Older files lack those of
    several corruptions at once. ``tile``: height and width of the tile that was taken of each image, where images have their
    own sizes.
    """

    split: str
    metric_name: str = Field(alias="metric", default="balanced_accuracy")
    n: int
    of: int
    groups: int | None = None
    scenes: int | None = None
    tta: str
    seed: int = 0
    severities: list[int]
    worst: WorstCorruption
    corruptions: dict[str, CorruptionResult]
    seconds: float | None = None
    guarantees: GuaranteesUnderShift | None = None
    tile: tuple[int, int] | None = None

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True, serialize_by_alias=True)

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, tree: Any) -> Any:
        if not isinstance(tree, dict) or "metrics" in tree:
            return tree
        tree = dict(tree)
        # ``metric`` names what is looked at; a method has that name already.
        name = tree.pop("metric", tree.pop("metric_name", "balanced_accuracy"))
        return {**Measured._gather.__func__(cls, tree), "metric": name}


class LeftOut(Measured):
    """The metrics on one family of disturbances; see `petriscope.trust.left_out.left_out_test`.

    Its metrics: ``clean``; ``alone``, the mean over the family's corruptions and severities, and each corruption by its
    name; ``together``, ``two_at_once`` and ``three_at_once``, where one of several is of the family.
    """

    family: str
    metric_name: str
    n: int
    of: int
    groups: int | None = None
    seed: int = 0


class SeenImages(Result):
    """How many of the images the model learned from (``train``) or was fitted on (``val``), and how many of them the
    metrics leave out."""

    train: int
    val: int
    left_out: int


class ClassPrior(Result):
    """What was known about the classes where a model was evaluated; see `petriscope.trust.prior.Prior`.

    Args:
        classes: those that occur.
        shares: of each class of the model; None: only the classes were known.
        implied: the shares that the probabilities imply before they are reweighted; None where they are not needed.
        excluded_images: evaluated images of classes that do not occur; all of them count as misclassified.
    """

    classes: list[str]
    shares: dict[str, float] | None = None
    implied: dict[str, float] | None = None
    excluded_images: int = 0


class ScaleEstimate(Result):
    """How many times objects are to be enlarged, see `petriscope.trust.object_size.estimate_scale`.

    Args:
        factor: with four digits.
        known, here: median sizes of objects, as a share of the shorter side of an image: where the model was fitted, such as
            val, and in the images before they are scaled; ``known_n``, ``here_n``: images with an object.
    """

    factor: float
    known: float
    here: float
    known_n: int
    here_n: int


class Scaling(Result):
    """How images from elsewhere were scaled.

    Args:
        scale: a factor, or micrometers per pixel of the files, such as ``0.1um``.
        factor: the median of the times that objects were enlarged; ``smallest``, ``largest``: the factors differ where
            micrometers per pixel are given and files differ in size.
        estimate: how the factor was estimated; None: it was given.
    """

    scale: float | str
    factor: float
    smallest: float
    largest: float
    estimate: ScaleEstimate | None = None


class Subset(Measured):
    """The images that have one value in a column, judged on their own; see `petriscope.tasks.base.Task.judge_subset`.

    Args:
        name: the value.
        n: images.
        groups: of images, which the intervals are over; None: they are over images.
    """

    name: str
    n: int
    groups: int | None = None


class Breakdown(Result):
    """An evaluation by the values of a column, such as the scanner.

    Args:
        rows: per value, the worst first by the task's first metric.
        empty: images whose value is empty, which are in no row.
        worst: the value with the worst metric, among those with enough images if two have; None where there are not two
            values.
        within: every value is one group of images, so that intervals are over the images of the group.
    """

    rows: tuple[Subset, ...]
    empty: int = 0
    worst: str | None = None
    within: bool = False


class Evaluation(Measured):
    """One split evaluated.

    Args:
        task: the name of a `petriscope.tasks.base.Task`.
        split, tta, source: what was evaluated, and with which test-time augmentation.
        n: images.
        seen: images that the model has seen; None where that is unknown.
        prior: which classes occur, or their shares, if that was given; probabilities and guarantees are for it.
        scale: how images from elsewhere were scaled; None: not at all, or as the recipe scales the run's own.
        groups, largest_group: of images, which intervals are over, and the images of the largest; None: the images are
            independent.
        scenes, pixels, outlined: where targets are masks, groups, or images if there are none; labeled pixels; and images
            in which classes meet.
        resolution: where targets are masks, in which size of the images pixels are counted, in words.
        per_class: by class name; ``confusion``: true by predicted class.
        ece_if_calibrated: where the ECE of a perfectly calibrated model would be, 95 times in 100.
        undefined: why a metric, or all intervals (``ci95``), are None.
        calibration, selective, conformal, ood, val_groups: None where nothing was fitted on val; see `TrustMetrics`.
        answers: where images have any number of labels, how often each is answered at an error rate.
        by: the same images by the values of a column; ``domain``, where images are of domains, and what was asked for.
        shift: whether the images are drawn like those of val; None where that was not asked. Where it says that guarantees
            are withdrawn, ``selective`` and ``conformal`` are what they would have come to.
        errors, explanations: of a run's own data.
        stress: where the stress test was asked for too.
    """

    task: str = CLASSIFICATION
    split: str
    tta: str = "none"
    source: str = ""
    n: int
    groups: int | None = None
    largest_group: int | None = None
    seen: SeenImages | None = None
    prior: ClassPrior | None = None
    scale: Scaling | None = None
    scenes: int | None = None
    pixels: int | None = None
    outlined: int | None = None
    resolution: str | None = None
    per_class: dict[str, ClassMetrics] = Field(default_factory=dict)
    confusion: list[list[int]] | None = None
    ece_if_calibrated: Interval | None = None
    undefined: dict[str, str] = Field(default_factory=dict)
    calibration: Calibration | None = None
    selective: list[SelectiveRow] | None = None
    conformal: list[ConformalRow] | None = None
    ood: OODSummary | None = None
    val_groups: int | None = None
    answers: list[LabelAnswers] | None = None
    by: dict[str, Breakdown] = Field(default_factory=dict)
    shift: ShiftTest | None = None
    errors: ErrorAnalysis | None = None
    explanations: Explanations | None = None
    stress: Robustness | None = None

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, tree: Any) -> Any:
        # Older versions wrote percentiles of the bootstrap for the ECE, which need not hold it.
        known = {key: value for key, value in tree.items() if key != "ece_ci95"} if isinstance(tree, dict) else tree
        return Measured._gather.__func__(cls, known)

    def _repr_html_(self) -> str:
        """What a notebook shows: the metrics as they are on pages, by `petriscope.report`, which is above this room."""
        html: str = import_module("petriscope.report.notebook").evaluation_html(self)
        return html


# --------------------------------------------------------------------------------------------------- a run as a whole


class TrainingSummary(Result):
    epochs: int | None = None
    best_epoch: int | None = None
    best: float | None = None
    monitor: str | None = None
    kept: str = "last"
    seconds: float | None = None
    seconds_per_epoch: float | None = None
    images_per_second: float | None = None


class Budgeted(Result):
    """What a training without a recipe was given and took, and its plan in words.

    Args:
        processor: whether the minutes are those of the processors, all cores together.
        wall_seconds, processor_seconds: None as long as it is not finished.
        detector_images: that the out-of-distribution detector is fitted on, where there was no time for as many as else.
    """

    minutes: float
    processor: bool = False
    wall_seconds: float | None = None
    processor_seconds: float | None = None
    plan: list[str] = Field(default_factory=list)
    detector_images: int | None = None


class Cost(Result):
    parameters: int
    multiply_adds: int
    bytes_fp32: int
    inference_images_per_second: float


class EnsembleMember(Result):
    """A member, its score on val in the ensemble's metric, and the weight of its vote."""

    run: str
    val_score: float | None
    weight: float | None
    taken: bool

    @model_validator(mode="before")
    @classmethod
    def _upgrade(cls, tree: Any) -> Any:
        if isinstance(tree, dict) and "val_score" not in tree:
            tree = {**tree, "val_score": tree.get("val_miou", tree.get("val_accuracy"))}
        return tree


class Specialist(Result):
    """The rule by which a specialist of one class was joined; see `petriscope.experiments.specialist`."""

    of_class: str = Field(alias="class")
    rule: dict[str, float] | str
    rules_tried: int
    val_miou: dict[str, float]
    val_class_iou: dict[str, float | None]

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True, serialize_by_alias=True)


class EnsembleSummary(Result):
    """How runs were joined, and the gain over the best member on val with its paired test."""

    method: str
    members: list[EnsembleMember]
    best_member: str
    gain: float
    gain_ci95: Interval
    p: float
    pixels: int | None = None
    specialist: Specialist | None = None


class TriedSetting(Result):
    """A way of adapting, and its metrics on the images that were held out, of several labels ``map`` in place of accuracy; see
    `petriscope.training.adaptation`."""

    setting: str
    accuracy: float | None = None
    map: float | None = None
    nll: float


class Adaptation(Result):
    """How a run was adapted to another place, and what that changed.

    Args:
        base: the run that was adapted.
        source, split, domain: the labeled images of the place, and what their domain is called.
        home: where the data of the base were, if not where its recipe says.
        labeled, unlabeled: images that it was adapted to; ``unlabeled_source``: of the latter.
        held_out: labeled images that were held out in turn, in ``folds`` parts.
        setting: how, in words.
        tried: what was compared by cross-validation, the best first.
        before, after: metrics on the images that were held out, of the base and of networks that did not learn from them.
        home_before, home_after: accuracy, of several labels mAP, on val of the base, of whose images there are ``home_n``; None
            without val.
        prior: what was said about the classes that occur.
        suggested: images among those without labels that it would be most useful to label next.
        minutes: that cross-validation and training were allowed to take.
        shift: how the labeled images differ from val of the base.
        scale: how the images of the place were scaled first; None: not at all.
    """

    base: str
    source: str
    split: str = "train"
    domain: str
    home: str | None = None
    labeled: int = 0
    unlabeled: int = 0
    unlabeled_source: str | None = None
    held_out: int = 0
    folds: int = 0
    setting: str = ""
    tried: list[TriedSetting] = Field(default_factory=list)
    before: Evaluation
    after: Evaluation
    home_before: Metric | None = None
    home_after: Metric | None = None
    home_n: int = 0
    prior: ClassPrior | None = None
    suggested: int = 0
    minutes: float | None = None
    shift: ShiftTest | None = None
    scale: Scaling | None = None


HELD_OUT = "held-out"  # as a split: the predictions of a cross-validation, pooled


class FoldResult(Measured):
    """A fold that was held out, and the metrics of the network that did not learn from its ``n`` images.

    Args:
        run: the run folder of the network.
        repeat, fold: which one, from 1.
    """

    run: str
    repeat: int
    fold: int
    n: int


class CrossValidation(Result):
    """How a model was judged by images that were held out in turn.

    Args:
        folds, repeats: parts of the images, and how often these were drawn.
        final: what the model is: the ``ensemble`` of the networks of all folds, or trained on ``all`` images.
        networks: in the model.
        images: that were drawn into folds; ``never``: those of them that are never held out.
        notes: what the folds cannot show, a sentence each.
        parts: one entry for each fold of each repeat.
        pooled: metrics of the predictions for all held-out images. A prediction is the mean of those of ``repeats`` networks.
            Intervals of the metrics of all images know of the folds, see `petriscope.metrics.intervals.resampled95`.
    """

    folds: int
    repeats: int = 1
    final: str = "ensemble"
    networks: int = 1
    images: int = 0
    never: int = 0
    notes: list[str] = Field(default_factory=list)
    parts: list[FoldResult] = Field(default_factory=list)
    pooled: Evaluation


class SelfTrainingRound(Result):
    """A round of self-training; see `petriscope.training.self_training.Round`."""

    share: float
    images: int
    changed: float


class SelfTraining(Result):
    """How a run was adapted to images of another place that have no labels.

    Args:
        base: the run that was adapted.
        source: of the images, of which there are ``unlabeled``.
        home: where the data of the base were, if not where its recipe says.
        rounds: what was learned from the images.
        way: how far the weights went from those of the base to those after the last round; 1: all of the way.
        before, after: the images that are predicted as each class, before and after.
        changed: the share of the images whose predicted class has changed.
        home_before, home_after: accuracy on val of the base, of whose images there are ``home_n``; None without val.
        prior: what was said about the classes that occur.
        suggested: images that it would be most useful to label.
        shift: how the images differ from val of the base.
        scale: how the images were scaled.
    """

    base: str
    source: str
    unlabeled: int
    home: str | None = None
    rounds: list[SelfTrainingRound] = Field(default_factory=list)
    way: float = 1.0
    before: dict[str, int]
    after: dict[str, int]
    changed: float
    home_before: Metric | None = None
    home_after: Metric | None = None
    home_n: int = 0
    prior: ClassPrior | None = None
    suggested: int = 0
    shift: ShiftTest | None = None
    scale: Scaling | None = None


class Epoch(Result):
    """One line of ``metrics.jsonl``.

    Args:
        train: loss and accuracy while training; ``val``: the task's monitored metrics after the epoch, and loss.
        seconds: spent training in the epoch.
    """

    epoch: int
    train: dict[str, float | None]
    val: dict[str, float | None] | None = None
    lr: float | None = None
    seconds: float | None = None
    images_per_second: float | None = None


class Results(Result):
    """All that ``results.json`` holds."""

    schema_version: int = SCHEMA_VERSION
    task: str = CLASSIFICATION
    training: TrainingSummary | None = None
    budget: Budgeted | None = None
    cost: Cost | None = None
    ensemble: EnsembleSummary | None = None
    adaptation: Adaptation | None = None
    self_training: SelfTraining | None = None
    cross_validation: CrossValidation | None = None
    train: Evaluation | None = None
    val: Evaluation | None = None
    test: Evaluation | None = None
    stress: dict[str, Robustness | None] = Field(default_factory=dict)

    def split(self, name: str) -> Evaluation | None:
        """The evaluation of train, val or test."""
        return {"train": self.train, "val": self.val, "test": self.test}.get(name)

    @property
    def joined(self) -> bool:
        """Whether the model is made of several networks."""
        several = self.cross_validation is not None and self.cross_validation.networks > 1
        return self.ensemble is not None or several

    @property
    def evaluated(self) -> dict[str, Evaluation]:
        """The splits that were evaluated, the one that counts most first."""
        held_out = None if self.cross_validation is None else self.cross_validation.pooled
        found = {"test": self.test, HELD_OUT: held_out, "val": self.val, "train": self.train}
        return {name: evaluation for name, evaluation in found.items() if evaluation is not None and evaluation.n}


def about_groups(images: int, groups: int | None, largest: int | None = None) -> list[str]:
    """What the groups of images mean for intervals and tests, a sentence each.

    Args:
        groups: how many; None: images are independent, and there is nothing to say unless there is only one.
        largest: images of the largest; None: not known.
    """
    if groups is None:
        return ["One image is too few for intervals from resampling, and for tests."] if images == 1 else []
    if groups == 1:
        return [
            "All images are of one group and not independent of each other, so there are no intervals and no tests."
        ]
    few = f" {groups} groups are few: the intervals are rough, and tests show little." if groups < FEW_GROUPS else ""
    if not few and largest is not None and largest > LARGE_GROUP * images:
        few = f" The largest of {groups} has {largest:,} of {images:,} images, so the intervals are rough, and rather too narrow."
    return [f"Intervals and tests draw whole groups of images, because images of one group are not independent.{few}"]


class SplitInfo(Result):
    """Size of a split, and how much of each class it has: images, or labeled pixels."""

    images: int
    per_class: list[int]


class DataInfo(Result):
    source: str = ""
    fingerprint: str = ""
    task: str = CLASSIFICATION
    classes: list[str] = Field(default_factory=list)
    shape: tuple[int, int, int] | None = None
    splits: dict[str, SplitInfo] = Field(default_factory=dict)
    domains: dict[str, dict[str, int]] = Field(default_factory=dict)  # images of each domain by split
    warnings: list[str] = Field(default_factory=list)
    audited: dict[str, dict[str, int]] = Field(default_factory=dict)


class Hardware(Result):
    system: str = ""
    processor: str = ""
    cores: int | None = None
    threads: int | None = None
    processes: int = 1
    gpu: str | None = None


class Normalization(Result):
    """Per channel, in units of the full range."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class Environment(Result):
    """All that ``environment.json`` holds: versions, hardware, and what the data are."""

    schema_version: int = SCHEMA_VERSION
    started: str = ""
    command: str = ""
    python: str = ""
    packages: dict[str, str | None] = Field(default_factory=dict)
    hardware: Hardware = Hardware()
    data: DataInfo = DataInfo()
    device: str = ""
    precision: str = ""
    parameters: int | None = None
    normalize: Normalization | None = None
    members: list[str] | None = None


def read_results(tree: Mapping[str, Any], task: str, where: str) -> Results:
    """``results.json`` as it was written by this version or by an older one.

    Args:
        task: of the run, which schema version 1 did not say here.
        where: the file, for messages.

    Raises:
        RequestError: something in it is missing or of another type; the message names it.
    """

    def upgraded(tree: dict[str, Any]) -> dict[str, Any]:
        tree = {"task": task, **_rename(tree, OLD_KEYS)}
        for split in SPLITS:
            if isinstance(tree.get(split), dict):
                tree[split] = {"task": task, **tree[split]}
        return tree

    return _read(Results, tree, upgraded, where)


def read_environment(tree: Mapping[str, Any], where: str) -> Environment:
    """The same for ``environment.json``."""

    def upgraded(tree: dict[str, Any]) -> dict[str, Any]:
        tree = _rename(tree, OLD_KEYS)
        data = tree.get("data")
        if isinstance(data, dict) and "targets" in data:
            tree["data"] = {**data, "task": OLD_TARGETS.get(data["targets"], data["targets"])}
        return tree

    return _read(Environment, tree, upgraded, where)


def read_epoch(tree: Mapping[str, Any], where: str) -> Epoch:
    """The same for one line of ``metrics.jsonl``."""
    return _read(Epoch, {**tree, "schema_version": 1}, lambda tree: _rename(tree, OLD_KEYS), where)


def _read(
    kind: type[R], tree: Mapping[str, Any], upgraded: Callable[[dict[str, Any]], dict[str, Any]], where: str
) -> R:
    version = tree.get("schema_version", 1)
    if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
        raise RequestError(f"{where} has schema version {shown(version)}; this Petriscope reads up to {SCHEMA_VERSION}")
    with parsing(where):
        return validated(kind, dict(tree) if version == SCHEMA_VERSION else upgraded(dict(tree)), where)


def validated(kind: type[M], tree: Any, where: str) -> M:
    """A part of a file as its checked type.

    Raises:
        RequestError: a value is missing or of another type; the message names the first.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        place = shortened(".".join(map(str, first["loc"]))) or "the whole file"
        raise RequestError(f"{where} is damaged: {place}: {first['msg']} (got {shown(first['input'])})") from None


def _rename(tree: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Keys renamed at every depth, but for those that are names of classes."""
    out = {}
    for key, value in tree.items():
        below = isinstance(value, dict) and key != "per_class"
        out[names.get(key, key)] = _rename(value, names) if below else value
    return out
