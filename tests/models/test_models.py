"""What every model keeps to, and what is particular to each."""

import pytest
import torch
from torch import nn

from petriscope.errors import RequestError
from petriscope.evaluation.cost import multiply_adds, parameters
from petriscope.models import MODELS, build_model
from petriscope.models.d4_resnet import act
from petriscope.models.describe import describe_model, model_rows
from petriscope.recipe import Part

SMALL = {  # options that make a model quick to test
    "simple-cnn": {"widths": [4, 8, 8], "hidden": 8, "norm": "batch"},
    "resnet18": {},
    "d4-resnet": {"widths": [8, 16, 16], "depths": [1, 1, 1]},
}
every = pytest.mark.parametrize("name", sorted(MODELS.members))


def make(name, classes=3, shape=(16, 16, 3), **options):
    torch.manual_seed(0)
    return build_model(Part(name=name, **{**SMALL[name], **options}), classes, shape)


def batch(count=4, shape=(16, 16, 3), seed=0):
    height, width, channels = shape
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(seed))


def test_every_model_is_tested():
    assert set(SMALL) == set(MODELS.members)


@every
@pytest.mark.parametrize("shape", [(16, 16, 3), (16, 16, 1), (28, 28, 3), (12, 20, 3)])
def test_forward_and_backward(name, shape):
    model = make(name, shape=shape)
    logits = model(batch(shape=shape))
    assert logits.shape == (4, 3)
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@every
def test_a_batch_of_one_in_eval(name):
    model = make(name).eval()
    images = batch()
    together = model(images)
    alone = torch.cat([model(images[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(alone, together, atol=1e-4, rtol=1e-4)


@every
def test_memory_order_does_not_matter(name):
    model = make(name).eval()
    expected = model(batch())
    model = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(batch().to(memory_format=torch.channels_last)), expected, atol=1e-4, rtol=1e-4)


@every
def test_half_precision_is_near_full(name):
    model = make(name).eval()
    with torch.autocast("cpu", torch.bfloat16):
        half = model(batch()).float()
    full = model(batch())
    assert (half - full).abs().max() < 0.1 * max(1.0, full.abs().max().item())


@every
def test_steps_lower_the_loss(name):
    model = make(name)
    images, targets = batch(8), torch.arange(8) % 3
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        loss = nn.functional.cross_entropy(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@every
def test_the_state_dict_is_the_model(name):
    first, second = make(name).eval(), make(name)
    with torch.no_grad():
        for p in second.parameters():
            p.add_(1)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(batch()), second.eval()(batch()))


@every
def test_it_can_be_exported(name):
    model = make(name).eval()
    program = torch.export.export(model, (batch(2),))
    torch.testing.assert_close(program.module()(batch(2)), model(batch(2)), atol=1e-4, rtol=1e-4)


@every
def test_seeded_building_is_repeatable(name):
    first, second = make(name).state_dict(), make(name).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


@every
def test_it_is_described(name):
    assert f"{parameters(build_model(Part(name=name), 8, (28, 28, 3))):,} parameters" in describe_model(name)
    assert dict(model_rows())[name]


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
def test_simple_cnn_has_the_parameters_of_its_description(norm):
    # 3x3 convolutions 3-32-64-128; batch norm has two numbers a channel, layer norm two a place, plain ones a bias
    by_hand = 27 * 32 + 9 * 32 * 64 + 9 * 64 * 128 + 128 * 9 * 128 + 128 + 128 * 8 + 8
    extra = {"none": 224, "batch": 448, "layer": 2 * (28 * 28 * 32 + 14 * 14 * 64 + 7 * 7 * 128)}[norm]
    assert parameters(build_model(Part(name="simple-cnn", norm=norm), 8, (28, 28, 3))) == by_hand + extra


def test_resnet18_has_the_parameters_of_its_paper():
    assert parameters(build_model(Part(name="resnet18", stem="imagenet"), 1000, (224, 224, 3))) == 11_689_512
    model = build_model(Part(name="resnet18"), 10, (32, 32, 3))
    assert parameters(model) == 11_173_962
    assert multiply_adds(model, (32, 32, 3)) == pytest.approx(0.56e9, rel=0.02)


def test_a_picture_too_small_is_refused_with_the_reason():
    with pytest.raises(RequestError, match="8x8"):
        build_model(Part(name="simple-cnn"), 3, (7, 16, 3))
    with pytest.raises(RequestError, match="pixels or more"):
        build_model(Part(name="d4-resnet"), 3, (2, 2, 3))


class TestD4:
    @pytest.mark.parametrize("element", range(8))
    def test_logits_do_not_change_with_turns_and_mirrors(self, element):
        model = make("d4-resnet")
        model.train()
        for seed in range(3):  # running statistics away from their start
            model(batch(8, seed=seed) * 2 + 1)
        model.eval()
        torch.testing.assert_close(model(act(element, batch())), model(batch()), atol=1e-4, rtol=1e-4)

    def test_an_ordinary_network_does_change(self):
        model = make("simple-cnn").eval()
        assert (model(act(1, batch())) - model(batch())).abs().max() > 1e-3

    def test_width_costs_an_eighth_of_the_weights(self):
        one = make("d4-resnet", widths=[64], depths=[1]).blocks[0].conv2.weight.numel()
        assert one == 64 * 64 * 9 / 8

    def test_drop_path_is_for_training_alone(self):
        model = make("d4-resnet", drop_path=0.5)
        assert not torch.equal(model(batch()), model(batch()))
        model.eval()
        assert torch.equal(model(batch()), model(batch()))
