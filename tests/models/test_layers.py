"""The order within a model, which freezing counts by."""

import pytest
import torch

from petriscope.core.recipe import Part
from petriscope.models import build_model
from petriscope.models.layers import head_of, ordered_blocks, ordered_layers

EXPECTED = {  # blocks, the first of them, the last, the head
    "resnet18": (8, "layer1.0", "layer4.1", ["fc"]),
    "mobilenet-v3-large": (16, "blocks.0.0", "blocks.6.0", ["classifier"]),
    "convnext-tiny": (18, "stages.0.blocks.0", "stages.3.blocks.2", ["head.fc"]),
    "deit-tiny": (12, "backbone.blocks.0", "backbone.blocks.11", ["backbone.head"]),
    "simple-cnn": (3, "features.0-2", "features.6-8", ["head"]),
    "custom-cnn": (4, "blocks.0", "blocks.3", ["head"]),
    "vgg": (12, "blocks.0", "blocks.11", ["head"]),
    "quiz-dnn": (9, "blocks.0", "blocks.8", ["head"]),
    "se-cnn": (5, "blocks.0", "blocks.4", ["head"]),
    "d4-resnet": (6, "blocks.0", "blocks.5", ["head"]),
    "inception": (9, "blocks.0.0", "blocks.2.2", ["head"]),
    "autoencoder": (4, "blocks.0", "blocks.3", ["head"]),
    "timm/vgg11": (8, "features.0-2", "features.18-20", ["head.fc"]),
    "timm/densenet121": (7, "features.denseblock1", "features.denseblock4", ["classifier"]),
    "timm/swin_tiny_patch4_window7_224": (12, "layers.0.blocks.0", "layers.3.blocks.1", ["head.fc"]),
}
every = pytest.mark.parametrize("name", sorted(EXPECTED))


def make(name, **options):
    with torch.device("meta"):
        return build_model(Part(name=name, **options), 3, (224, 224, 3), fresh=False)


@every
def test_blocks_and_head(name):
    model = make(name)
    blocks = ordered_blocks(model)
    names = [block for block, _ in blocks]
    assert (len(names), names[-1], head_of(model)) == (EXPECTED[name][0], EXPECTED[name][2], EXPECTED[name][3])
    assert names[0] == EXPECTED[name][1]


@every
def test_every_parameter_belongs_to_one_layer_and_at_most_one_block(name):
    model = make(name)
    of_layers = [id(p) for _, layer in ordered_layers(model) for p in layer.parameters(recurse=False)]
    assert sorted(of_layers) == sorted(map(id, model.parameters()))
    of_blocks = [id(p) for _, block in ordered_blocks(model) for p in block.parameters()]
    assert len(of_blocks) == len(set(of_blocks))
    assert set(of_blocks) <= set(of_layers)
    modules = dict(model.named_modules())
    heads = {id(p) for head in head_of(model) for p in modules[head].parameters()}
    assert heads
    assert not heads & set(of_blocks)


@every
def test_the_head_comes_last(name):
    model = make(name)
    layers = [layer for layer, _ in ordered_layers(model)]
    assert layers[-1].startswith(head_of(model)[-1])


def test_a_slice_shares_its_layers_with_the_model():
    model = make("simple-cnn", norm="batch", attention="se")
    name, block = ordered_blocks(model)[1]
    assert name == "features.5-9"
    assert all(mine is theirs for mine, theirs in zip(block, model.features[5:10], strict=True))


def test_parameters_beside_children_have_a_layer():
    layers = dict(ordered_layers(make("deit-tiny")))
    assert "cls_token" in dict(layers["backbone"].named_parameters(recurse=False))
    layers = dict(ordered_layers(make("convnext-tiny")))
    assert [key for key, _ in layers["stages.0.blocks.0"].named_parameters(recurse=False)] == ["gamma"]


def test_another_head_is_the_head():
    assert head_of(make("resnet18", head="se-mlp")) == ["head"]
    assert head_of(make("resnet18", resize=64)) == ["backbone.fc"]


def test_a_network_without_known_units_goes_layer_by_layer():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.ReLU(), torch.nn.BatchNorm2d(4))
    assert [name for name, _ in ordered_blocks(model)] == ["0", "2"]
