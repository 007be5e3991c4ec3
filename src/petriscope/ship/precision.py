"""Graphs whose network computes with smaller numbers: in half precision, or with whole numbers of 8 bits.

Only the network is changed. Normalization, views, temperature, out-of-distribution scores and thresholds stay as they are, and so
do the types of inputs and outputs. What was fitted on val stays too, so a graph should be verified before it is used.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from petriscope.core.errors import PetriscopeError, RequestError
from petriscope.core.files import atomic
from petriscope.core.progress import progress
from petriscope.inference.runtime import load_onnxruntime
from petriscope.ship.graph import INPUT, NETWORK, quiet

if TYPE_CHECKING:
    from onnx import ModelProto

LAYERS = ("Conv", "Gemm", "MatMul")
MOST_CHANGED = 0.005  # share of images, or of pixels, whose class may change; of several labels, of these
Feeds = list[dict[str, np.ndarray]]


def halve(path: Path, out: Path) -> None:
    """Write a graph whose network has weights and activations in half precision, float16: a file of half the size. Numbers
    beyond its range become the nearest in it. Where a processor has no float16, onnxruntime computes in single precision."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    whole = onnx.load(path)
    with quiet():
        network = convert_float_to_float16(_network(whole), keep_io_types=True)
    _write(_with_network(whole, network), out)


def quantize(
    path: Path, batches: Iterable[np.ndarray], out: Path, most_changed: float = MOST_CHANGED, label: str | None = None
) -> list[str]:
    """Write a graph whose network computes with whole numbers of 8 bits: weights with a scale per channel, activations with
    one that fits the range that they have on given images.

    If the classes of more than a share of these images, or more than that share of their labels, change, the layers that change
    the outputs most are left in single precision: the first, then two, four, and so on, until no more change.

    Args:
        batches: training images, uint8 [N, H, W, C], some hundred in all.
        most_changed: that share; for masks, of the pixels; for several labels, of the labels of all images.
        label: of the progress bar; None: no progress is shown.

    Returns:
        the names of the layers that are in single precision, most sensitive first.

    Raises:
        RequestError: there are no images, or the network has no layer that can be quantized.
        PetriscopeError: too many classes change whatever is left in single precision.
    """
    import onnx

    images = [each for each in batches if len(each)]
    if not images:
        raise RequestError(
            "quantizing needs images to measure the range of activations on; give some of the training images"
        )
    whole = onnx.load(path)
    expected = _classes(whole, images)
    with tempfile.TemporaryDirectory() as folder:
        with quiet():
            quantizer = _Quantizer(whole, images, Path(folder))
        layers, kept = quantizer.layers, list[str]()
        if not layers:
            raise RequestError("the network has no convolution and no linear layer, so there is nothing to quantize")
        order: list[str] = []
        while len(kept) < len(layers):
            made = _with_network(whole, quantizer.quantized([name for name in layers if name not in kept]))
            found = _classes(made, images)
            changed = float(np.mean(np.concatenate([a != b for a, b in zip(expected, found, strict=True)])))
            if changed <= most_changed:
                break
            order = order or quantizer.by_sensitivity(label)
            kept = order[: max(1, 2 * len(kept))]
        else:
            raise PetriscopeError(
                f"with 8 bits, {100 * changed:.2g} % of {_answers(whole)[1]} change, and at most {100 * most_changed:g} % may; "
                "use half precision"
            )
    _write(made, out)
    return kept


def transplant(path: Path, network: Path, out: Path) -> None:
    """Write a graph with the network of another, which `halve` or `quantize` made of a graph with the same network."""
    import onnx

    found = onnx.load(network)
    inner = [node for node in found.graph.node if node.name.startswith(NETWORK)]
    used = {name for node in inner for name in node.input}
    weights = [each for each in found.graph.initializer if each.name in used]
    alone = onnx.helper.make_model(onnx.helper.make_graph(inner, "network", [], [], weights))
    _write(_with_network(onnx.load(path), alone), out)


class _Quantizer:
    """Quantizes the network of a graph, with ranges of activations that are measured once.

    Args:
        images: uint8 [N, H, W, C] each.
        folder: for files that onnxruntime's tools want.
    """

    def __init__(self, whole: ModelProto, images: Sequence[np.ndarray], folder: Path) -> None:
        import onnx
        from onnxruntime.quantization import CalibrationDataReader, create_calibrator
        from onnxruntime.quantization.shape_inference import quant_pre_process

        network = _network(whole)
        self.feeds = _outputs(_front(whole), [{INPUT: each} for each in images])
        before, ready = folder / "network.onnx", folder / "prepared.onnx"
        onnx.save(network, before)
        quant_pre_process(
            before, ready, skip_symbolic_shape=True
        )  # merges norms, and computes what does not depend on images
        self.network = onnx.load(ready)
        names = {each.name for each in self.network.graph.initializer}
        self.layers = [
            node.name for node in self.network.graph.node if node.op_type in LAYERS and not names.isdisjoint(node.input)
        ]
        feeds = iter(self.feeds)

        class Reader(CalibrationDataReader):
            def get_next(self) -> dict[str, np.ndarray] | None:
                return next(feeds, None)

        calibrator = create_calibrator(ready, list(LAYERS), augmented_model_path=str(folder / "augmented.onnx"))
        calibrator.collect_data(Reader())
        self.ranges = calibrator.compute_data()

    def quantized(self, layers: Sequence[str]) -> ModelProto:
        """The network with these layers, at least one, in 8 bits. What is between layers stays in single precision: to quantize
        it too made se-cnn at 96 pixels 5 % faster, no more."""
        import onnx
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        copy = onnx.ModelProto()
        copy.CopyFrom(self.network)
        with quiet():
            made = QDQQuantizer(
                copy,
                per_channel=True,
                reduce_range=False,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=self.ranges,
                nodes_to_quantize=list(layers),
                nodes_to_exclude=[],
                op_types_to_quantize=list(LAYERS),
                extra_options={},
            ).quantize_model()
        return made if isinstance(made, onnx.ModelProto) else made.model

    def by_sensitivity(self, label: str | None) -> list[str]:
        """The layers, those first that change the outputs most if they alone are quantized."""
        feed = self.feeds[:1]
        exact = _outputs(self.network, feed)[0]
        changes = {}
        with progress(label or "", len(self.layers)) as bar:
            for name in self.layers:
                found = _outputs(self.quantized([name]), feed)[0]
                changes[name] = max(float(np.abs(found[key] - exact[key]).mean()) for key in exact)
                if label:
                    bar.advance(1)
        return sorted(changes, key=lambda name: -changes[name])


def _network(whole: ModelProto) -> ModelProto:
    """The network of a graph, as a graph of its own."""
    from onnx.utils import Extractor

    inputs, outputs = _borders(whole)
    return Extractor(whole).extract_model(inputs, outputs)


def _front(whole: ModelProto) -> ModelProto:
    """What comes before the network."""
    from onnx.utils import Extractor

    return Extractor(whole).extract_model([INPUT], _borders(whole)[0])


def _borders(whole: ModelProto) -> tuple[list[str], list[str]]:
    """The names of the tensors that go into the network, and of those that come out."""
    weights = {each.name for each in whole.graph.initializer}
    inner = [node for node in whole.graph.node if node.name.startswith(NETWORK)]
    made = {name for node in inner for name in node.output}
    inputs = {name for node in inner for name in node.input if name and name not in weights and name not in made}
    used = {name for node in whole.graph.node if not node.name.startswith(NETWORK) for name in node.input}
    used |= {each.name for each in whole.graph.output}
    return sorted(inputs), sorted(made & used)


def _with_network(whole: ModelProto, network: ModelProto) -> ModelProto:
    """The graph with another network, which takes and gives tensors of the same names."""
    import onnx

    made = onnx.ModelProto()
    made.CopyFrom(whole)
    after = set(_borders(whole)[1])
    early, late = list[Any](), list[Any]()
    for node in whole.graph.node:
        if node.name.startswith(NETWORK):
            continue
        depends = not after.isdisjoint(node.input)
        after |= set(node.output) if depends else set()
        (late if depends else early).append(node)
    own = {each.name: f"{NETWORK}{each.name}" for each in network.graph.initializer}
    inner = []
    for number, node in enumerate(network.graph.node):
        renamed = onnx.NodeProto()
        renamed.CopyFrom(node)
        renamed.name = f"{NETWORK}{node.op_type}_{number}"
        renamed.input[:] = [own.get(name, name) for name in node.input]
        inner.append(renamed)
    del made.graph.node[:]
    made.graph.node.extend([*early, *inner, *late])
    used = {name for node in (*early, *late) for name in node.input}
    kept = [each for each in whole.graph.initializer if each.name in used]
    del made.graph.initializer[:]
    made.graph.initializer.extend(kept)
    for each in network.graph.initializer:
        copy = made.graph.initializer.add()
        copy.CopyFrom(each)
        copy.name = own[each.name]
    del made.graph.value_info[:]  # the types of what is inside have changed
    return made


def _outputs(model: ModelProto, feeds: Feeds) -> Feeds:
    """All outputs by name, for each input."""
    session = load_onnxruntime().InferenceSession(model.SerializeToString())
    names = [each.name for each in session.get_outputs()]
    return [dict(zip(names, session.run(None, feed), strict=True)) for feed in feeds]


def _answers(whole: ModelProto) -> tuple[str, str]:
    """The output with the answers that should stay, and what these are, for people."""
    kinds = {
        "label": "the classes of the images",
        "labels": "the labels of the images",
        "classes": "the classes of the pixels",
    }
    return next((each.name, kinds[each.name]) for each in whole.graph.output if each.name in kinds)


def _classes(whole: ModelProto, images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The class of each image or of each pixel, or whether each label of each image is present, of each batch."""
    found: list[dict[str, Any]] = _outputs(whole, [{INPUT: each} for each in images])
    return [each[_answers(whole)[0]].reshape(-1) for each in found]


def _write(model: ModelProto, out: Path) -> None:
    import onnx

    with atomic(out) as temporary:
        onnx.save(model, temporary)
