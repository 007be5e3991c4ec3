"""The contract of every explanation method, and that maps mark what a network was built to use."""

import functools

import numpy as np
import pytest
import torch
from corner import Corner, corner_images, corner_predictor, predictor_of

from petriscope.core.errors import RequestError
from petriscope.core.recipe import Part
from petriscope.explain import EXPLAINERS, explain, methods_for
from petriscope.explain.attention_maps import rollout, watched
from petriscope.explain.cam import feature_layer
from petriscope.explain.occlusion_map import windows
from petriscope.models import build_model

SIDE = 32
NETWORKS = {
    "simple-cnn": {"widths": [4, 8, 8], "hidden": 8, "norm": "batch"},
    "custom-cnn": {"widths": [4, 8, 8], "dropout": 0},
    "quiz-dnn": {},
    "se-cnn": {"widths": [8, 16], "depths": [1, 1]},
    "d4-resnet": {"widths": [8, 16, 16], "depths": [1, 1, 1]},
    "vgg": {"widths": [4, 8, 8, 16], "hidden": 16, "dropout": 0},
    "autoencoder": {"widths": [4, 8, 8], "hidden": 8},
    "inception": {"width": 0.1, "dropout": 0},
    "timm/resnet10t": {},
    "mobilenet-v3-large": {"resize": 64},
    "convnext-tiny": {"head": "se-mlp", "hidden": [8]},
    "timm/swin_tiny_patch4_window7_224": {"resize": 112},
    "deit-tiny": {"resize": 32},
}
ATTENTIVE = {"deit-tiny"}
CAMS = ("hires-cam", "grad-cam", "grad-cam++")
LARGE = {"convnext-tiny", "timm/swin_tiny_patch4_window7_224", "inception", "mobilenet-v3-large"}  # too slow for all
METHODS = {
    network: ("attention-rollout", "attention-gradient", "occlusion")
    if network in ATTENTIVE
    else CAMS[:1]
    if network in LARGE
    else (*CAMS, "occlusion")
    for network in NETWORKS
}
MADE_OF = [(network, method) for network, methods in METHODS.items() for method in methods]


def test_every_method_is_tested():
    assert {method for _, method in MADE_OF} == set(EXPLAINERS.members)


@functools.cache
def built(network):
    torch.manual_seed(0)
    return predictor_of(build_model(Part(name=network, **NETWORKS[network]), 3, (SIDE, SIDE, 3)))


def some_images(count=2, side=SIDE, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, channels), dtype=np.uint8)


@pytest.mark.parametrize(("network", "method"), MADE_OF)
def test_maps_have_the_size_of_the_images_and_leave_the_model_unchanged(network, method):
    predictor, images = built(network), some_images()
    model = predictor.model
    model.train()
    next(model.parameters()).requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    try:
        maps = explain(predictor, images, np.array([0, 2]), method)
        again = explain(predictor, images, np.array([0, 2]), method)
        assert [m.training for m in model.modules()] == modes
        assert [p.requires_grad for p in model.parameters()] == flags
    finally:
        model.eval().requires_grad_(True)
    assert maps.shape == (2, SIDE, SIDE) and maps.dtype == np.float32
    assert np.isfinite(maps).all() and maps.min() >= 0 and maps.max() <= 1
    assert all(each.max() in (0, 1) or np.isclose(each.max(), 1, atol=1e-5) for each in maps)
    np.testing.assert_array_equal(maps, again)
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("network", NETWORKS)
def test_each_network_has_its_methods(network):
    methods = methods_for(built(network))
    kind = "attention-" if network in ATTENTIVE else "cam"
    assert kind in methods[0]
    assert methods[-1] == "occlusion"
    assert set(METHODS[network]) <= set(methods)
    with pytest.raises(RequestError):
        explain(built(network), some_images(1), method="grad-cam" if network in ATTENTIVE else "attention-rollout")


@pytest.mark.parametrize("method", ["hires-cam", "grad-cam", "grad-cam++", "occlusion"])
def test_gray_images_that_are_not_square(method):
    shape = (16, 24, 1)
    model = build_model(Part(name="simple-cnn", **NETWORKS["simple-cnn"]), 3, shape)
    images = np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8)
    maps = explain(predictor_of(model, shape=shape), images, method=method)
    assert maps.shape == (3, 16, 24)


@pytest.mark.parametrize("method", ["hires-cam", "occlusion"])
def test_the_map_peaks_where_the_prediction_comes_from(method):
    predictor = corner_predictor()
    images = corner_images()
    assert (predictor.probabilities(images).argmax(1) == 1).all()
    for heat in explain(predictor, images, method=method):
        y, x = np.unravel_index(heat.argmax(), heat.shape)
        assert y <= 5 and x <= 5
        assert heat[8:, 8:].max() < 0.05


def test_a_small_window_finds_the_corner_exactly():
    predictor = corner_predictor()
    maps = explain(predictor, corner_images(), method=Part(name="occlusion", window=0.0625, step=0.0625))
    assert (maps[:, 1:5, 1:5] > 0.5).all()
    assert maps[:, 6:].max() < 0.01


def test_the_map_is_blank_without_evidence_for_the_class():
    predictor = corner_predictor()
    assert (explain(predictor, corner_images(), np.zeros(6, dtype=int), "hires-cam") == 0).all()


@pytest.mark.parametrize("method", ["hires-cam", "grad-cam", "grad-cam++"])
def test_maps_of_an_equivariant_network_turn_with_the_image(method):
    predictor, images = built("d4-resnet"), some_images(3)
    classes = np.array([0, 1, 2])
    maps = explain(predictor, images, classes, method)
    turned = explain(predictor, np.rot90(images, 1, (1, 2)), classes, method)
    assert maps.max() > 0
    np.testing.assert_allclose(turned, np.rot90(maps, 1, (1, 2)), atol=2e-3)


def test_grad_cam_and_hires_cam_agree_where_the_network_averages():
    predictor, images = built("custom-cnn"), some_images(3)
    first, second = (explain(predictor, images, method=Part(name=name, least=2)) for name in ("grad-cam", "hires-cam"))
    np.testing.assert_allclose(first, second, atol=1e-4)


def test_grad_cam_is_the_papers_formula():
    torch.manual_seed(3)
    model, images = Corner().eval(), torch.rand(2, 1, 16, 16)
    model.head[1].weight.data.normal_()
    maps = model.blocks(images).detach().requires_grad_()
    model.head(maps)[:, 1].sum().backward()
    expected = (maps * maps.grad.mean((2, 3), keepdim=True)).sum(1).clamp_min(0)
    expected = (expected - expected.amin((1, 2), keepdim=True)) / (expected.amax((1, 2)) - expected.amin((1, 2)))[
        :, None, None
    ]
    predictor = predictor_of(model, 2, (16, 16, 1))
    predictor.mean, predictor.std = (0.0,), (1.0,)
    bytes_ = (images * 255).round().byte()
    model2 = explain(predictor, bytes_.permute(0, 2, 3, 1).numpy(), np.array([1, 1]), "grad-cam")
    np.testing.assert_allclose(model2, expected.detach().numpy(), atol=0.02)


def test_the_last_layer_with_maps_large_enough_is_taken():
    model = built("simple-cnn").model
    coarse, _ = feature_layer(model, torch.zeros(1, 3, SIDE, SIDE), 2)
    assert coarse is model.features[-1]
    fine, _ = feature_layer(model, torch.zeros(1, 3, SIDE, SIDE), 8)
    assert fine is model.features[-3]  # batch norm, before the pooling
    swin = built("timm/swin_tiny_patch4_window7_224").model
    assert feature_layer(swin, torch.zeros(1, 3, SIDE, SIDE), 2)[1]  # channels last


def test_explaining_in_bf16_is_done_in_fp32():
    images = some_images(2)
    torch.manual_seed(0)
    model = build_model(Part(name="custom-cnn", **NETWORKS["custom-cnn"]), 3, (SIDE, SIDE, 3))
    full = explain(predictor_of(model), images, np.array([0, 1]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_array_equal(explain(predictor_of(model), images, np.array([0, 1])), full)
    half = predictor_of(model.bfloat16())
    np.testing.assert_allclose(explain(half, images, np.array([0, 1])), full, atol=0.1)
    assert next(half.model.parameters()).dtype == torch.bfloat16


def test_rollout_rows_sum_to_1():
    model = built("deit-tiny").model
    with watched(model) as attentions, torch.no_grad():
        model(torch.randn(2, 3, SIDE, SIDE))
    total = rollout(attentions)
    tokens = 1 + (SIDE // 16) ** 2
    assert total.shape == (2, tokens, tokens)
    torch.testing.assert_close(total.sum(-1), torch.ones(2, tokens))
    assert all(m.fused_attn for m in model.modules() if hasattr(m, "fused_attn"))


def test_gradient_weighted_attention_depends_on_the_class_and_rollout_does_not():
    predictor, images = built("deit-tiny"), some_images(1)
    maps = {m: [explain(predictor, images, np.array([k]), m) for k in (0, 1)] for m in methods_for(predictor)[:2]}
    np.testing.assert_array_equal(*maps["attention-rollout"])
    assert not np.allclose(*maps["attention-gradient"])


@pytest.mark.parametrize(
    ("height", "width", "window", "step"), [(28, 28, 0.35, 0.125), (9, 17, 0.3, 0.2), (2, 2, 0.1, 0.1)]
)
def test_windows_cover_the_image(height, width, window, step):
    covers = windows(height, width, window, step)
    assert covers.any(0).all()
    assert len({int(cover.sum()) for cover in covers}) == 1


@pytest.mark.parametrize(
    ("images", "classes", "method", "words"),
    [
        (some_images(2, 16), None, "auto", "uint8"),
        (some_images(2).astype(np.float32), None, "auto", "uint8"),
        (some_images(2), np.array([0]), "auto", "one class per image"),
        (some_images(2), np.array([0, 3]), "auto", "3 classes"),
        (some_images(2), None, "grad-cat", "did you mean grad-cam"),
        (some_images(2), None, Part(name="occlusion", window=2), "window"),
    ],
)
def test_wrong_requests_are_refused(images, classes, method, words):
    with pytest.raises(RequestError, match=words):
        explain(built("simple-cnn"), images, classes, method)


def test_no_images_give_no_maps():
    assert explain(built("simple-cnn"), some_images(0)).shape == (0, SIDE, SIDE)
