"""Graphs under onnxruntime answer as the predictors that they were made of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fitted import fitted, images, unfitted
from petriscope.core.errors import PetriscopeError, RequestError
from petriscope.core.recipe import Part
from petriscope.inference.package import CLASSIFIER, SEGMENTER
from petriscope.inference.predictor import Predictor
from petriscope.metrics.conformal import METHOD, sets
from petriscope.metrics.selective import uncertainty
from petriscope.ship.graph import INPUT, NETWORK, Graph, write_graph
from petriscope.trust.prior import parse_prior
from petriscope.trust.shift import appearance_of
from petriscope.trust.state import LEVELS, MAX_ERRORS, answered_by

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

SIMPLE = Part(name="simple-cnn", widths=[4, 8, 8], hidden=8, norm="batch")
SE = Part(name="se-cnn", widths=[8, 16], depths=[1, 1])
UNET = Part(name="unet", widths=[4, 8, 8])
D4 = Part(name="d4-resnet", widths=[8, 16], depths=[1, 1])


def session(predictor: Predictor, path) -> onnxruntime.InferenceSession:
    write_graph(Graph(predictor), path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options)


def answers(session, pixels) -> dict[str, np.ndarray]:
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(None, {INPUT: pixels}), strict=True))


def member(part: Part, weight: float, channels: int = 3) -> dict:
    return {"model": part.model_dump(), "mean": (0.5,) * channels, "std": (0.2,) * channels, "weight": weight}


ENSEMBLE = Part(name="ensemble", members=[member(D4, 1.0), member(SE, 2.0)])
CLASSIFIERS = {
    "groups, the symmetries of the square": lambda: fitted(SIMPLE, (32, 32, 3), "evaluation.tta=d4", groups=True),
    "gray, standardized, mirrored": lambda: fitted(
        SIMPLE, (20, 33, 1), "evaluation.tta=mirror", standardize=["background", "stray-light", "stain"]
    ),
    "adapted, standardized, crops": lambda: fitted(
        SE, (64, 70, 3), "evaluation.tta=crops", adapted=True, standardize=["background", "stain"]
    ),
    "an ensemble without anything fitted": lambda: unfitted(ENSEMBLE, (16, 16, 3), "evaluation.tta=flips"),
}


@pytest.fixture(scope="module", params=CLASSIFIERS)
def pair(request, tmp_path_factory):
    predictor = CLASSIFIERS[request.param]()
    return predictor, session(predictor, tmp_path_factory.mktemp("graph") / "model.onnx")


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_a_classifier_answers_as_its_predictor(pair, count):
    predictor, onnx_session = pair
    pixels = images(count, predictor.shape, count)
    found, expected = answers(onnx_session, pixels), predictor.predict(pixels)
    assert tuple(found) == CLASSIFIER
    for name, values in (("probabilities", expected.probabilities), ("raw", expected.raw)):
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], values, atol=1e-4)
    label = expected.probabilities.argmax(1)
    np.testing.assert_array_equal(found["label"], label)
    doubt = uncertainty(expected.probabilities)
    np.testing.assert_allclose(found["uncertainty"], doubt, rtol=1e-3, atol=1e-9)
    ood = np.zeros(count, np.float32) if expected.ood is None else expected.ood
    np.testing.assert_allclose(found["ood"], ood, rtol=1e-4, atol=1e-4)
    reference = predictor.trust.references.get(predictor.recipe.evaluation.tta)
    for column, max_error in enumerate(MAX_ERRORS):
        threshold = None if reference is None else reference.threshold(max_error)
        answered = answered_by(threshold, doubt, ood)
        np.testing.assert_array_equal(found["answers"][:, column], np.where(answered, label, -1))
    for row, level in enumerate(LEVELS):
        limits = (
            np.full(len(predictor.classes), np.inf)
            if reference is None
            else reference.limits(level, len(predictor.classes))
        )
        np.testing.assert_array_equal(found["sets"][:, row], sets(expected.probabilities, limits, METHOD))


@pytest.mark.parametrize("count", [1, 7])
def test_what_sets_of_images_are_compared_by_is_the_same(pair, count):
    predictor, onnx_session = pair
    pixels = images(count, predictor.shape, count)
    found, plain = answers(onnx_session, pixels), predictor.predict(pixels, "none").raw
    np.testing.assert_array_equal(found["plain_label"], plain.argmax(1))
    np.testing.assert_allclose(found["plain_uncertainty"], uncertainty(plain), rtol=1e-3, atol=1e-9)
    np.testing.assert_allclose(found["appearance"], appearance_of(torch.from_numpy(pixels)), rtol=1e-4, atol=1e-5)
    likeness = predictor.trust.likeness
    if likeness is None or likeness.center is not None:
        assert found["points"].shape == (count, 0)
    else:
        np.testing.assert_allclose(found["points"], predictor.traits(pixels, likeness).points, rtol=1e-3, atol=1e-3)


SEGMENTERS = {
    "symmetries": (UNET, (30, 30, 3), "evaluation.tta=d4"),
    "crops, gray": (
        Part(name="dual-unet", widths=[4, 8, 8], rates=[2, 4], micro_widths=[4, 8]),
        (32, 40, 1),
        "evaluation.tta=crops",
    ),
}


@pytest.mark.parametrize("case", SEGMENTERS)
def test_a_segmenter_answers_as_its_predictor(case, tmp_path):
    predictor = unfitted(*SEGMENTERS[case])
    onnx_session = session(predictor, tmp_path / "model.onnx")
    for count in (1, 2, 7):
        pixels = images(count, predictor.shape, count)
        found, p = answers(onnx_session, pixels), predictor.probabilities(pixels)
        assert tuple(found) == SEGMENTER
        np.testing.assert_allclose(found["probabilities"], p, atol=1e-4)
        np.testing.assert_array_equal(found["confidence"], found["probabilities"].max(1))
        assert found["classes"].dtype == np.uint8
        np.testing.assert_array_equal(found["classes"], found["probabilities"].argmax(1))


def test_what_a_request_says_about_the_classes_is_refused():
    predictor = unfitted(SIMPLE, (16, 16, 1))
    prior = parse_prior(predictor.classes, classes=predictor.classes[:2])
    with pytest.raises(RequestError, match="say it when predicting"):
        Graph(predictor.under(prior))


def test_why_a_network_cannot_be_written_is_said(tmp_path, capfd):
    class Chooses(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :4] if x.sum() > 0 else x.flatten(1)[:, 4:8]

    predictor = replace(unfitted(SIMPLE, (16, 16, 3)), model=Chooses())
    with pytest.raises(PetriscopeError, match="cannot be recorded for any number of images"):
        write_graph(Graph(predictor), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_writing_is_quiet_and_leaves_no_path_of_this_machine(tmp_path, capfd, recwarn):
    write_graph(Graph(unfitted(UNET, (16, 16, 3))), tmp_path / "model.onnx")
    assert capfd.readouterr() == ("", "")
    assert not list(recwarn)
    assert b"/petriscope/" not in (tmp_path / "model.onnx").read_bytes()
    names = [node.name for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert {name for name in names if "Conv" in name} == {name for name in names if name.startswith(f"{NETWORK}Conv")}


OTHERS = {  # small networks that no test above has; benchmarks/catalogue.py exports all, at their size
    "custom-cnn": {"widths": [4, 8, 8]},
    "quiz-dnn": {},
    "vgg": {"widths": [4, 8, 8, 16], "hidden": 16},
    "autoencoder": {"widths": [4, 8, 8], "hidden": 8},
    "inception": {"width": 0.1},
    "attention-unet": {"widths": [4, 8, 8]},
    "timm/test_resnet": {},
    "timm/test_convnext": {},
}


class Several(nn.Module):
    """Networks in one graph, because a graph takes long to write."""

    shape, depth, outputs = (32, 32, 3), 8, tuple(OTHERS)

    def __init__(self) -> None:
        super().__init__()
        made = [unfitted(Part(name=name, **options), self.shape).model for name, options in OTHERS.items()]
        self.networks = nn.ModuleList(made).eval()

    def forward(self, pixels):
        normalized = pixels.permute(0, 3, 1, 2).float() / 255
        return tuple(network(normalized) for network in self.networks)


@pytest.mark.slow
def test_networks_of_the_catalogue_give_the_same_logits(tmp_path):
    networks = Several().eval()
    write_graph(networks, tmp_path / "model.onnx")
    onnx_session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for count in (1, 2, 7):
        pixels = images(count, networks.shape, count)
        with torch.no_grad():
            expected = networks(torch.from_numpy(pixels))
        found = answers(onnx_session, pixels)
        for name, logits in zip(OTHERS, expected, strict=True):
            np.testing.assert_allclose(found[name], logits, rtol=1e-4, atol=1e-4, err_msg=name)
