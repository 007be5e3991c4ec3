"""A trained predictor as one ONNX graph: images of uint8 or uint16 in, the whole prediction out.

What `petriscope.inference.predictor.Predictor` computes with torch and numpy is computed here with torch alone, in single
precision on the CPU, with double precision where the predictor has it. So probabilities, abstentions, prediction sets and what
images are compared by come from one graph, and a program that runs it needs nothing of Petriscope to predict.
"""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from petriscope.augment.pipeline import standardized
from petriscope.core.device import gib, is_out_of_memory, lay_out
from petriscope.core.errors import PetriscopeError, RequestError, shortened
from petriscope.core.files import atomic
from petriscope.core.results import CLASSIFICATION, SEGMENTATION
from petriscope.data.appearance import measure
from petriscope.inference.package import CLASSIFIER, LABELER, SEGMENTER
from petriscope.inference.predictor import Predictor
from petriscope.inference.tta import mean_over, views_of
from petriscope.metrics.conformal import METHOD
from petriscope.tasks.multilabel import Multilabel
from petriscope.trust.label_rules import ABSENT, PRESENT
from petriscope.trust.multilabel import HALF, SURE, LabelReference
from petriscope.trust.ood import LARGEST, Detector, Mahalanobis, Mixture, features_of, image_statistics, observe
from petriscope.trust.state import LEVELS, MAX_ERRORS
from petriscope.trust.temperature import TINY
from petriscope.trust.two_sample import FARTHEST

INPUT = "images"
MOST_BYTES = 2**31 - 2**20  # of weights; protobuf's messages are below 2 GiB
NETWORK = "network/"  # how the names of its operations begin
# The one that torch's exporter writes without conversion. onnxruntime reads it from 1.14 on, and onnxruntime-web with it.
OPSET = 18


def refuse(predictor: Predictor) -> None:
    """
    Raises:
        RequestError: the predictor cannot be one graph; says why, and what to do.
    """
    if predictor.task.name not in (CLASSIFICATION, Multilabel.name, SEGMENTATION):
        raise RequestError(
            f"only models that give images or pixels classes are exported; this is a {predictor.task.name} model, which "
            "petriscope predict and petriscope serve use as it is"
        )
    if predictor.trust.reweighting is not None:
        raise RequestError(
            "what a request says about the classes is not part of a model: export it without, and say it when predicting"
        )
    if (size := sum(each.nbytes for each in predictor.model.state_dict().values())) > MOST_BYTES:
        raise RequestError(
            f"the weights take {gib(size)}, and one ONNX file holds at most {gib(MOST_BYTES)}; train a smaller network"
        )


def outputs_of(predictor: Predictor) -> tuple[str, ...]:
    """The outputs of a predictor's graph, in order."""
    return SEGMENTER if predictor.task.dense else CLASSIFIER if predictor.task.exclusive else LABELER


class Graph(nn.Module):
    """The whole prediction for images, uint8 or uint16 [N, H, W, C], in the order of `outputs`.

    Of a classifier with K classes, see `petriscope.inference.package.CLASSIFIER`:

    - ``probabilities``, ``raw``: float32 [N, K], with the test-time augmentation of the recipe; after and before temperature
      scaling.
    - ``label``: int64 [N], the most probable class.
    - ``uncertainty``: float32 [N]; see `petriscope.metrics.selective.uncertainty`.
    - ``ood``: float32 [N]; see `petriscope.trust.ood.Detector.score`. All are 0 without a detector.
    - ``answers``: int64 [N, E], for each error rate in `petriscope.trust.state.MAX_ERRORS` the class, or -1 for an abstention.
    - ``sets``: bool [N, L, K], for each coverage in `petriscope.trust.state.LEVELS` which classes are in the prediction set.
      Without predictions on val for this test-time augmentation, nothing is answered, and all classes are in all sets.
    - ``points``: float32 [N, R], ``plain_label``: int64 [N], ``plain_uncertainty``: float32 [N], ``appearance``: float32
      [N, C + 3]; what sets of images are compared by with val, without test-time augmentation, see
      `petriscope.trust.two_sample.Traits`. R is 0 if there is no likeness or it compares the appearance alone.

    Of a model of several labels, see `petriscope.inference.package.LABELER`, ``label``, ``uncertainty`` and ``sets`` are not
    there. ``labels``: bool [N, K], those that are present, by the cutoffs. ``answers``: int64 [N, E, K], for each error rate 1
    where a label is answered present, 0 where absent, -1 where it is left open. ``plain_label`` and ``plain_uncertainty`` are of
    `petriscope.trust.multilabel.as_one_class`.

    Of a segmenter, see `petriscope.inference.package.SEGMENTER`: ``classes``, uint8 [N, H, W], ``confidence``, float32
    [N, H, W], the largest probability, and ``probabilities``, float32 [N, K, H, W].

    Where the network gives outputs that are not numbers, and the predictor raises an error, probabilities are NaN.

    Args:
        predictor: in single precision on the CPU, of its own copy of the network.

    Raises:
        RequestError: see `refuse`.
    """

    project: Tensor
    thresholds: Tensor
    limits: Tensor
    slopes: Tensor
    offsets: Tensor
    cutoffs: Tensor

    def __init__(self, predictor: Predictor) -> None:
        refuse(predictor)
        super().__init__()
        tta, trust = predictor.recipe.evaluation.tta, predictor.trust
        self.network = lay_out(copy.deepcopy(predictor.model).cpu().float().eval(), False)
        self.depth = predictor.reading.depth
        self.shape, self.classes = predictor.shape, len(predictor.classes)
        self.task, self.dense = predictor.task, predictor.task.dense
        self.normalize, self.tta = predictor.normalize, tta
        self.temperature = predictor.temperature(tta)
        self.views = views_of(tta, predictor.shape[:2])
        self.exclusive = predictor.task.exclusive
        self.outputs = outputs_of(predictor)
        if self.dense:
            return
        self.ood = None if trust.detector is None else _Score(trust.detector)
        likeness = trust.likeness
        project = np.zeros((0, 0), np.float32) if likeness is None or likeness.center is not None else likeness.project
        self.register_buffer("project", torch.from_numpy(project), persistent=False)
        if not self.exclusive:
            self._keep_labels(trust.labels.get(tta))
            self.eval()
            return
        reference = trust.references.get(tta)
        found = [None if reference is None else reference.threshold(each) for each in MAX_ERRORS]
        # No uncertainty is at most that, so without a threshold, nothing is answered.
        thresholds = [-1.0 if each is None else each.uncertainty for each in found]
        self.register_buffer("thresholds", torch.tensor(thresholds, dtype=torch.float32), persistent=False)
        nothing = np.full(self.classes, np.inf)
        limits = [nothing if reference is None else reference.limits(each, self.classes, METHOD) for each in LEVELS]
        self.register_buffer("limits", torch.from_numpy(np.stack(limits)), persistent=False)
        self.eval()

    def _keep_labels(self, reference: LabelReference | None) -> None:
        shape, nothing = (len(MAX_ERRORS), self.classes, 2), np.full(self.classes, HALF, np.float32)
        limits = np.full(shape, -np.inf) if reference is None else np.stack([*map(reference.limits, MAX_ERRORS)])
        self.scales = reference is not None
        for name in ("slopes", "offsets", "cutoffs"):
            values = nothing if reference is None else getattr(reference, name)
            self.register_buffer(name, torch.from_numpy(values), persistent=False)
        self.register_buffer("limits", torch.from_numpy(limits), persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        raw, plain, seen = self._look(images)
        if not self.exclusive:
            return self._labels(images, raw, plain, features_of(seen, images))
        probabilities = _scaled(raw, self.temperature)
        if self.dense:
            confidence, classes = probabilities.max(1)
            return classes.to(torch.uint8), confidence, probabilities
        features = features_of(seen, images)
        label, doubt = _doubt(probabilities)
        ood = self._far(images, features)
        answered = (doubt[:, None] <= self.thresholds) & (ood <= 1)[:, None]
        answers = torch.where(answered, label[:, None], -1)
        plain_label, plain_doubt = _doubt(plain)
        points = self._points(features)
        sets = self._sets(probabilities, label, doubt)
        appearance = measure(images).joined()
        return probabilities, raw, label, doubt, ood, answers, sets, points, plain_label, plain_doubt, appearance

    def _far(self, images: Tensor, features: Tensor) -> Tensor:
        """Out-of-distribution scores."""
        if self.ood is None:
            return torch.zeros_like(features.sum(1))  # of networks without features too
        return self.ood(features, image_statistics(standardized(images, self.normalize.standardize)))

    def _labels(self, images: Tensor, raw: Tensor, plain: Tensor, features: Tensor) -> tuple[Tensor, ...]:
        """The outputs of a model of several labels."""
        probabilities = raw
        if self.scales:  # `petriscope.trust.multilabel.scale_labels`
            p = raw.double().clamp_max(1 - SURE)
            odds = p.clamp_min(TINY).log() - torch.log1p(-p)
            probabilities = (odds * self.slopes.double() + self.offsets.double()).sigmoid().float()
        present, ood = probabilities >= self.cutoffs, self._far(images, features)
        doubt = torch.where(present, 1 - probabilities, probabilities)[:, None].double()
        sure = doubt <= torch.where(present[:, None], self.limits[..., PRESENT], self.limits[..., ABSENT])
        answers = torch.where(sure & (ood <= 1)[:, None, None], present[:, None].long(), -1)
        label, uncertainty = _doubt(_as_one_class(plain))
        points, appearance = self._points(features), measure(images).joined()
        return probabilities, raw, present, ood, answers, points, label, uncertainty, appearance

    def _look(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Probabilities before temperature scaling, those of the first view, and the input of the head for it. All views are
        one batch, so that the network is in the graph once."""
        normalized, count = self.normalize(images), len(self.views)
        batch = torch.cat([view.of(normalized) for view in self.views]) if count > 1 else normalized
        with observe(self.network) as observer:
            logits = self.network(batch).float()
        if count == 1:
            raw = self.task.log_probabilities(logits).exp()
            return raw, raw, observer.first
        each = self.task.probabilities(logits).unflatten(0, (count, -1))
        views = each.unbind(0)
        total = each.sum(0)
        if self.dense:
            total = torch.stack([view.put_back(p) for view, p in zip(self.views, views, strict=True)]).sum(0)
        seen = None if observer.first is None else observer.first[: images.shape[0]]
        return mean_over(total, self.tta, count), views[0], seen

    def _points(self, features: Tensor) -> Tensor:
        if not self.project.shape[1]:
            return features[:, :0]
        points = features.double() @ self.project.double()
        return torch.where(points.isnan(), FARTHEST, points).clamp(-FARTHEST, FARTHEST).float()

    def _sets(self, probabilities: Tensor, label: Tensor, doubt: Tensor) -> Tensor:
        """`petriscope.metrics.conformal.sets` with the method ``class``."""
        most = torch.arange(self.classes) == label[:, None]
        scores = torch.where(most, doubt[:, None], (1 - probabilities.double()).float())
        return scores[:, None].double() <= self.limits


def _scaled(probabilities: Tensor, temperature: float) -> Tensor:
    """`petriscope.trust.temperature.scale`."""
    if temperature == 1:
        return probabilities
    logs = probabilities.double().clamp_min(TINY).log() / temperature
    return (logs - logs.logsumexp(1, keepdim=True)).exp().float()


def _doubt(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """The most probable class, int64 [N], and `petriscope.metrics.selective.uncertainty`, float32 [N]."""
    label = probabilities.argmax(1)
    most = torch.arange(probabilities.shape[1]) == label[:, None]
    return label, torch.where(most, 0.0, probabilities.double()).sum(1).float()


def _as_one_class(raw: Tensor) -> Tensor:
    """`petriscope.trust.multilabel.as_one_class`."""
    doubt = torch.minimum(raw, 1 - raw).mean(1, keepdim=True)
    most = torch.arange(raw.shape[1]) == raw.argmax(1)[:, None]
    return torch.where(most, 1 - doubt, doubt / max(raw.shape[1] - 1, 1))


class _Score(nn.Module):
    """`Detector.score`."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.features, self.pixels = _distance(detector.features), _distance(detector.pixels)
        self.limit = detector.limit

    def forward(self, features: Tensor, statistics: Tensor) -> Tensor:
        """float32 [N, D], [N, S] -> float32 [N]."""
        scores = torch.maximum(self.features(features), self.pixels(statistics)) / self.limit
        return torch.where(scores < math.inf, scores.clamp_max(torch.finfo(torch.float32).max), math.inf).float()


class _Distance(nn.Module):
    """Squared distances in units of a limit, float64 [N], of values, float32 [N, D]; infinite for values that are not finite.

    Args:
        limit: of the values within.
    """

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, values: Tensor) -> Tensor:
        finite = values.isfinite()
        bounded = torch.where(finite, values, 0).clamp(-LARGEST, LARGEST).double()
        return torch.where(finite.all(1), self.square(bounded) / self.limit, math.inf)

    def square(self, values: Tensor) -> Tensor:
        raise NotImplementedError


class _Nearest(_Distance):
    """`Mahalanobis.distance`."""

    centers: Tensor
    whiten: Tensor

    def __init__(self, fitted: Mahalanobis) -> None:
        super().__init__(fitted.limit)
        self.register_buffer("centers", torch.from_numpy(fitted.centers), persistent=False)
        self.register_buffer("whiten", torch.from_numpy(fitted.whiten), persistent=False)

    def square(self, values: Tensor) -> Tensor:
        if not self.whiten.numel():
            return values.new_zeros(values.shape[0])
        points, centers = values @ self.whiten.double(), self.centers.double()
        near = (centers.square().sum(1) - 2 * points @ centers.T).amin(1)
        return (points.square().sum(1) + near).clamp_min(0)


class _Density(_Distance):
    """`Mixture.distance`."""

    whiten: Tensor
    parts: Tensor
    offset: Tensor
    height: Tensor

    def __init__(self, fitted: Mixture) -> None:
        super().__init__(fitted.limit)
        centers, whiten = (torch.from_numpy(each).double() for each in (fitted.centers, fitted.whiten))
        self.register_buffer("whiten", whiten.transpose(0, 1).flatten(1), persistent=False)  # [S, M * S]
        # Sums over the values of each center are a product, because OpenVINO 2026.4 computes sums over parts of rows wrongly.
        parts = torch.eye(len(centers), dtype=torch.float64).repeat_interleave(centers.shape[1], 0)  # [M * S, M]
        self.register_buffer("parts", parts, persistent=False)
        self.register_buffer("offset", (centers[:, None] @ whiten).flatten(), persistent=False)
        self.register_buffer("height", torch.from_numpy(fitted.height).double(), persistent=False)

    def square(self, values: Tensor) -> Tensor:
        squares = (values @ self.whiten - self.offset).square() @ self.parts
        return (2 * (self.height.max() - (self.height - squares / 2).logsumexp(1))).clamp_min(0)


def _distance(fitted: Mahalanobis | Mixture) -> _Distance:
    return _Nearest(fitted) if isinstance(fitted, Mahalanobis) else _Density(fitted)


def write_graph(graph: Graph, path: Path) -> None:
    """Write a graph as one ONNX file with its weights, atomically; see `INPUT` and `Graph.outputs` for the names.

    Raises:
        PetriscopeError: the network does something that cannot be written as ONNX; or the disk is full or read-only.
    """
    recorded = record(graph, graph.shape, graph.depth)
    with torch.no_grad(), quiet(), explained("cannot be written as an ONNX graph"):
        program = torch.onnx.export(
            recorded,
            dynamo=True,
            external_data=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(graph.outputs),
            verbose=False,
        )
    if program is None:
        raise PetriscopeError("torch wrote no ONNX graph of this network and gave no reason")
    _name_parts(program.model.graph)
    _pool(program.model.graph)
    with atomic(path) as temporary:
        program.save(temporary, external_data=False)


def record(graph: nn.Module, shape: tuple[int, ...], depth: int = 8) -> torch.export.ExportedProgram:
    """The operations of a graph for images, uint8 or uint16 [N, H, W, C], of any number N.

    Args:
        shape: of an image.
        depth: bits of a value, 8 or 16.

    Raises:
        PetriscopeError: what the network does depends on the images.
    """
    example = (torch.zeros((2, *shape), dtype=torch.uint8 if depth == 8 else torch.uint16),)
    with torch.no_grad(), quiet():
        graph(*example)  # constants that are made on first use are made here, and not while operations are recorded
        with explained("cannot be recorded for any number of images"):
            return torch.export.export(graph, example, dynamic_shapes=({0: torch.export.Dim("N")},), strict=False)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn whatever an exporter raises into one sentence, which goes on with ``what`` of the network."""
    try:
        yield
    except Exception as error:  # exporters have no common class for what they cannot do
        if is_out_of_memory(error):
            raise
        raise PetriscopeError(f"this network {what}: {_reason(error)}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Within, warnings and prints of exporters, which are about their own code, are not shown."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _reason(error: BaseException) -> str:
    """The first error of a chain, which is about the network; the exporter's own are about its stages."""
    while error.__cause__ is not None:
        error = error.__cause__
    return shortened(str(error).strip().partition("\n")[0], 200) or type(error).__name__


def _name_parts(graph: Any) -> None:
    """Name the operations of the network `NETWORK` and their number, and the others by their number. What the exporter notes
    of each, such as paths of source files, is removed."""
    for number, node in enumerate(graph):
        scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
        node.name = f"{NETWORK if repr('network') in scopes else ''}{node.op_type}_{number}"
        node.metadata_props.clear()
        node.doc_string = None
    for value in (*graph.inputs, *graph.initializers.values(), *(out for node in graph for out in node.outputs)):
        value.metadata_props.clear()
        value.doc_string = None


def _pool(graph: Any) -> None:
    """Means over all places as pooling, which is the same: onnxruntime keeps the memory layout of its convolutions through it."""
    for node in graph:
        if node.op_type != "ReduceMean" or not node.name.startswith(NETWORK) or len(node.inputs) != 2:
            continue
        axes, kept = node.inputs[1].const_value, node.attributes.get("keepdims")
        if axes is not None and axes.numpy().tolist() in ([2, 3], [-2, -1]) and (kept is None or kept.value == 1):
            node.op_type = "GlobalAveragePool"
            node.resize_inputs(1)
            node.attributes.clear()
