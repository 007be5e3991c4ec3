"""Graphs with smaller numbers answer almost as those in single precision, and only their network is changed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fitted import images, unfitted
from petriscope.core.errors import PetriscopeError, RequestError
from petriscope.core.recipe import Part
from petriscope.ship.graph import INPUT, NETWORK, Graph, write_graph
from petriscope.ship.precision import MOST_CHANGED, halve, quantize

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

SHAPE = (16, 16, 3)


def shaded(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of four classes, each darker than the one before, and their classes."""
    targets = np.arange(count) % 4
    return (images(count, SHAPE, seed) * (1 - 0.22 * targets)[:, None, None, None]).astype(np.uint8), targets


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """The graph of a network that tells them apart: of one that learned nothing, any change turns classes around."""
    path = tmp_path_factory.mktemp("single") / "model.onnx"
    part = Part(name="simple-cnn", widths=[8, 16, 16], hidden=32, norm="batch")
    predictor = unfitted(part, SHAPE, "evaluation.tta=flips")
    pixels, targets = shaded(512, 0)
    model, optimizer = predictor.model.train(), torch.optim.Adam(predictor.model.parameters(), 0.01)
    for step in range(60):
        rows = np.arange(64 * step, 64 * step + 64) % 512
        logits = model(predictor.normalize(torch.from_numpy(pixels[rows])))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, torch.from_numpy(targets[rows])).backward()
        optimizer.step()
    model.eval()
    write_graph(Graph(predictor), path)
    return path


def answers(path, pixels):
    session = onnxruntime.InferenceSession(path)
    return dict(zip([each.name for each in session.get_outputs()], session.run(None, {INPUT: pixels}), strict=True))


def outside(path) -> list[str]:
    """The operations outside of the network, and what they take."""
    nodes = onnx.load(path).graph.node
    return [f"{node.name} {list(node.input)}" for node in nodes if not node.name.startswith(NETWORK)]


def check_alike(path, single, most: float) -> None:
    pixels, _ = shaded(64, 9)
    found, expected = answers(path, pixels), answers(single, pixels)
    assert {name: (each.dtype, each.shape) for name, each in found.items()} == {
        name: (each.dtype, each.shape) for name, each in expected.items()
    }
    np.testing.assert_allclose(found["probabilities"], expected["probabilities"], atol=most)
    np.testing.assert_array_equal(found["appearance"], expected["appearance"])
    assert set(outside(path)) == set(outside(single))
    assert path.stat().st_size < single.stat().st_size


def test_half_precision(single, tmp_path):
    halve(single, tmp_path / "half.onnx")
    check_alike(tmp_path / "half.onnx", single, 0.02)


def test_eight_bits(single, tmp_path):
    batches = [shaded(64, seed)[0] for seed in (1, 2, 3)]
    kept = quantize(single, batches, tmp_path / "int8.onnx")
    check_alike(tmp_path / "int8.onnx", single, 0.3)
    nodes = onnx.load(tmp_path / "int8.onnx").graph.node
    assert sum(node.op_type == "QuantizeLinear" for node in nodes) > 0
    assert len(kept) < 5
    pixels = np.concatenate(batches)
    changed = answers(tmp_path / "int8.onnx", pixels)["label"] != answers(single, pixels)["label"]
    assert changed.mean() <= MOST_CHANGED


def test_a_limit_that_cannot_be_kept_is_an_error_and_writes_nothing(single, tmp_path):
    with pytest.raises(PetriscopeError, match="use half precision"):
        quantize(single, [shaded(64, 1)[0]], tmp_path / "int8.onnx", most_changed=-1.0)
    assert not list(tmp_path.iterdir())


def test_without_images_nothing_is_quantized(single, tmp_path):
    with pytest.raises(RequestError, match="training images"):
        quantize(single, [], tmp_path / "int8.onnx")
