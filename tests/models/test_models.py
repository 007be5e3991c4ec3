"""What every model keeps to: the contract, over the whole registry."""

import copy
import functools

import pytest
import torch
from torch import nn

from devices import check_same_kind, on_every_device, queued
from petriscope.core.errors import RequestError
from petriscope.core.recipe import Part
from petriscope.models import MODELS, build_model
from petriscope.models.backbones import import_timm
from petriscope.models.cost import multiply_adds, parameters
from petriscope.models.describe import FACTS, describe_model, model_table
from petriscope.models.layers import is_dense

SIDE = 32
QUICK = {  # options that make a model quick to test, and the same at every call
    "simple-cnn": {"widths": [4, 8, 8], "hidden": 8, "norm": "batch"},
    "custom-cnn": {"widths": [4, 8, 8], "dropout": 0},
    "quiz-dnn": {},
    "se-cnn": {"widths": [8, 16], "depths": [1, 1]},
    "d4-resnet": {"widths": [8, 16, 16], "depths": [1, 1, 1]},
    "vgg": {"widths": [4, 8, 8, 16], "hidden": 16, "dropout": 0},
    "autoencoder": {"widths": [4, 8, 8], "hidden": 8},
    "inception": {"width": 0.1, "dropout": 0},
    "resnet18": {},
    "mobilenet-v3-large": {},
    "convnext-tiny": {},
    "deit-tiny": {"resize": 32},
    "timm/resnet10t": {},  # stands for all of timm
    "unet": {"widths": [4, 8, 8]},
    "attention-unet": {"widths": [4, 8, 8]},
    "dual-unet": {"widths": [4, 8, 8], "rates": [2, 4], "micro_widths": [4, 8], "residual": True},
    "smp/unet-resnet18": {},  # stands for all of segmentation_models_pytorch
}
SEGMENTERS = {"unet", "attention-unet", "dual-unet", "smp/unet-resnet18"}  # one class per pixel
BIG = {  # those that differ from one above in depth and width alone
    "resnet34": {},
    "resnet50": {},
    "convnext-small": {},
    "convnext-base": {},
    "convnext-large": {},
}
PARAMETERS = {  # as papers and projects state them, of RGB images: classes, side, options, count
    "quiz-dnn": (10, 32, {}, 299_018),
    "resnet18": (1000, 224, {"stem": "imagenet"}, 11_689_512),
    "resnet34": (1000, 224, {"stem": "imagenet"}, 21_797_672),
    "resnet50": (1000, 224, {"stem": "imagenet"}, 25_557_032),
    "mobilenet-v3-large": (1000, 224, {}, 5_483_032),
    "convnext-tiny": (1000, 224, {}, 28_589_128),
    "convnext-small": (1000, 224, {}, 50_223_688),
    "convnext-base": (1000, 224, {}, 88_591_464),
    "convnext-large": (1000, 224, {}, 197_767_336),
    "deit-tiny": (1000, 224, {}, 5_717_416),
}
every = pytest.mark.parametrize("name", sorted(QUICK))


def need(name):
    """Skip where a model's library is optional and not there."""
    if name.startswith("smp/"):
        import_timm()  # without which its own import fails beside some builds of torch
        pytest.importorskip("segmentation_models_pytorch")


@functools.cache
def _built(name, channels):
    need(name)
    torch.manual_seed(0)
    return build_model(Part(name=name, **QUICK[name]), 3, (SIDE, SIDE, channels))


def make(name, channels=3):
    """The model in training mode, the same weights at every call."""
    return copy.deepcopy(_built(name, channels))


def batch(count=2, channels=3, seed=0):
    return torch.randn(count, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def answer(labels, name):
    """Labels [B] as the model's targets: themselves, or a mask of several classes each, with unlabeled pixels."""
    if name not in SEGMENTERS:
        return labels
    rows = torch.arange(SIDE) // 4
    masks = ((labels[:, None] + rows) % 3)[:, :, None].repeat(1, 1, SIDE)
    masks[:, :, :5] = 255
    return masks


def logits_and_loss(model, images, targets):
    """As the training loop does: a model may bring a loss of its own."""
    if hasattr(model, "forward_with_loss"):
        logits, extra = model.forward_with_loss(images)
    else:
        logits, extra = model(images), 0.0
    return logits, nn.functional.cross_entropy(logits, targets, ignore_index=255) + extra


def test_every_model_is_tested():
    assert set(QUICK) | set(BIG) == {*MODELS.members, "timm/resnet10t", "smp/unet-resnet18"}
    assert set(FACTS) == set(MODELS.members)


@every
@pytest.mark.parametrize("channels", [1, 3])
def test_forward_and_backward_in_gray_and_rgb(name, channels):
    model = make(name, channels)
    logits, loss = logits_and_loss(model, batch(2, channels), answer(torch.tensor([0, 2]), name))
    assert logits.shape == ((2, 3, SIDE, SIDE) if name in SEGMENTERS else (2, 3))
    assert logits.dtype == torch.float32
    loss.backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@every
@on_every_device
def test_it_runs_on_every_device_and_waits_for_none(name, device):
    model = make(name).eval()
    with torch.no_grad():
        expected = model(batch())
        images = batch().to(device)
        found = model.to(device)(images)
    check_same_kind(found, expected, device)
    if device != "cpu":
        with queued(device):
            model.train()(images).sum().backward()
    if device != "meta":
        torch.testing.assert_close(found.cpu(), expected, atol=1e-2, rtol=1e-2)  # GPUs multiply in TF32


@every
def test_a_batch_of_one_in_eval(name):
    model = make(name).eval()
    images = batch(3)
    alone = torch.cat([model(images[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(alone, model(images), atol=1e-4, rtol=1e-4)


@every
def test_memory_order_does_not_matter(name):
    model = make(name).eval()
    expected = model(batch())
    model = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(batch().to(memory_format=torch.channels_last)), expected, atol=1e-4, rtol=1e-4)


@every
def test_half_precision_is_near_full(name):
    model = make(name).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = model(batch()).float()
    full = model(batch())
    assert (half - full).abs().max() < 0.1 * max(1.0, full.abs().max().item())


@every
def test_a_step_lowers_the_loss(name):
    model = make(name)
    images, targets = batch(4), answer(torch.arange(4) % 3, name)
    _, before = logits_and_loss(model, images, targets)
    before.backward()
    # Downhill along the gradient, by a length at which a descent is sure in a smooth model and seen in fp32.
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.02 / norm * p.grad
        assert logits_and_loss(model, images, targets)[1] < before


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
    program = torch.export.export(model, (batch(),))
    torch.testing.assert_close(program.module()(batch()), model(batch()), atol=1e-4, rtol=1e-4)


@every
def test_it_says_what_it_makes(name):
    assert is_dense(make(name)) == (name in SEGMENTERS)


@every
def test_seeded_building_is_repeatable(name):
    need(name)
    torch.manual_seed(0)
    again = build_model(Part(name=name, **QUICK[name]), 3, (SIDE, SIDE, 3), fresh=False).state_dict()
    first = make(name).state_dict()
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)


@pytest.mark.parametrize("name", sorted(BIG))
def test_the_big_ones_map_images_to_logits(name):
    with torch.device("meta"):
        model = build_model(Part(name=name, **BIG[name]), 3, (SIDE, SIDE, 1), fresh=False)
    model = model.to_empty(device="cpu").eval()  # drawing 200 million weights takes seconds
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(1e-3)
        assert model(batch(1, 1)).isfinite().all()
        assert model(batch(1, 1)).shape == (1, 3)


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_parameters_are_as_stated(name):
    classes, side, options, count = PARAMETERS[name]
    with torch.device("meta"):
        model = build_model(Part(name=name, **options), classes, (side, side, 3), fresh=False)
    assert parameters(model) == count


@pytest.mark.parametrize("name", sorted(MODELS.members))
def test_the_table_says_what_is_counted(name):
    facts = FACTS[name]
    shape = (facts.side, facts.side, 3)
    with torch.device("meta"):
        model = build_model(Part(name=name), 8, shape, fresh=False)
        counted = (parameters(model), multiply_adds(model, shape))
    assert counted == (facts.parameters, facts.multiply_adds)


def test_the_table_lists_all_in_columns():
    lines = model_table().splitlines()
    assert [line.split()[0] for line in lines[1:-2]] == list(MODELS.members)
    paper = lines[0].index("paper")
    assert all(line[paper - 1] == " " and line[paper] != " " for line in lines)


def test_a_model_is_described_with_its_options():
    text = describe_model("se-cnn")
    assert "Squeeze-and-Excitation Networks" in text
    assert "widths: (32, 64, 128)  (list of int)" in text
    assert "activation: 'relu'  (relu | gelu | silu | mish)" in text
    assert f"{FACTS['se-cnn'].parameters:,} parameters" in text
    assert "resize: None  (int | null)" in describe_model("timm/resnet10t")


@pytest.mark.parametrize(
    ("name", "options", "shape", "says"),
    [
        ("simple-cnn", {}, (7, 16, 3), "8x8"),
        ("d4-resnet", {}, (2, 2, 3), "pixels or more"),
        ("vgg", {}, (15, 28, 3), "16x16"),
        ("custom-cnn", {}, (12, 12, 3), "16 pixels"),
        ("custom-cnn", {"widths": []}, (12, 12, 3), "give at least one"),
        ("autoencoder", {}, (12, 12, 3), "16 pixels"),
        ("quiz-dnn", {}, (3, 3, 3), "4x4"),
        ("se-cnn", {"widths": [8], "depths": [1, 1]}, (8, 8, 3), "one of each"),
        ("deit-tiny", {"resize": None}, (28, 28, 3), r"patches of 16x16.*model\.resize"),
        ("deit-tiny", {"resize": 100}, (28, 28, 3), "100x100 is no multiple"),
        ("convnext-tiny", {}, (16, 16, 3), r"cannot take images of 16x16 .* model\.resize=224"),
        ("timm/resnet1O", {}, (28, 28, 3), "did you mean resnet18"),
        ("timm/resnet18.a4_in1k", {}, (28, 28, 3), r"weights 'a4_in1k' of resnet18; did you mean resnet18\.a"),
        ("resnet81", {}, (28, 28, 3), "did you mean resnet18"),
        ("timm/vgg11", {"drop_path_rate": 0.1}, (32, 32, 3), "drop_path_rate"),
        ("resnet18", {"atention": "se"}, (28, 28, 3), "did you mean attention"),
        ("unet", {"widths": [8]}, (28, 28, 3), "two levels"),
        ("dual-unet", {"rates": [2]}, (28, 28, 3), "1 rates for 4 levels"),
        ("dual-unet", {"micro_widths": [2]}, (28, 28, 3), "two levels"),
        ("smp/unett-resnet18", {}, (28, 28, 3), "did you mean unet"),
        ("smp/unet-resnet81", {}, (28, 28, 3), "did you mean resnet18"),
        ("smp/unet-tu-resnet81", {}, (28, 28, 3), "did you mean tu-resnet18"),
        ("smp/unet", {}, (28, 28, 3), "known: resnet18"),
        ("smp/unet-resnet18", {"widths": [8]}, (28, 28, 3), "widths"),
    ],
)
def test_what_cannot_be_made_is_refused_with_the_reason(name, options, shape, says):
    need(name)
    with pytest.raises(RequestError, match=says):
        build_model(Part(name=name, **options), 3, shape)
