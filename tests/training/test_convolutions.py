"""Convolutions in bf16: outputs and gradients as in single precision, and ours used where they should be."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from petriscope.training import convolutions
from petriscope.training.convolutions import bf16_convolutions

CPU = torch.device("cpu")


def gradients(layer, images, context, enabled=True):
    """The output of a layer in bf16, if enabled, and the gradients of its images and parameters."""
    images = images.clone().requires_grad_()
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled), context:
        out = layer(images)
    out.float().mul(torch.linspace(-1, 2, out.numel()).bfloat16().float().view(out.shape)).sum().backward()
    return [out, images.grad, *(each.grad for each in layer.parameters())]


def spoil_memory():
    """Leaves NaN in freed memory, where whatever reads what was never written finds it."""
    [torch.full((2**power,), float("nan")) for power in range(2, 17) for _ in range(8)]


def assert_exact(layer, images):
    """Outputs and gradients in bf16 with our convolutions are those in single precision."""
    spoil_memory()
    ours = gradients(layer, images, bf16_convolutions(layer, CPU, "bf16"))
    # Not torch's gradients in bf16: those of the weights are wrong where images are narrower than the stride.
    exact = gradients(layer, images, nullcontext(), enabled=False)
    assert ours[0].dtype == torch.bfloat16
    for one, other in zip(ours, exact, strict=True):
        assert one.shape == other.shape
        # Results are rounded to 8 bits, and on some processors so are partial sums. A wrong element differs by far more.
        torch.testing.assert_close(one.float(), other, rtol=0, atol=2**-5 * other.abs().max().item() + 1e-6)


def rounded(layer):
    """The layer, with weights that bf16 holds exactly."""
    with torch.no_grad():
        for each in layer.parameters():
            each.copy_(each.bfloat16())
    return layer


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.tuples(st.integers(3, 8), st.integers(3, 8)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    more=st.tuples(st.integers(0, 7), st.integers(0, 7)),
    channels=st.integers(2, 9),
    bias=st.booleans(),
    last=st.booleans(),
)
def test_outputs_and_gradients_are_those_of_single_precision(kernel, stride, padding, more, channels, bias, last):
    assume(convolutions._is_slow(kernel, stride))  # the others are torch's alone
    torch.manual_seed(0)
    layer = rounded(nn.Conv2d(channels, channels, kernel, stride, padding, groups=channels, bias=bias))
    sides = [max(1, k - 2 * p) + m for k, p, m in zip(kernel, padding, more, strict=True)]
    images = torch.randn(3, channels, *sides).bfloat16().float()
    if last:
        images = images.to(memory_format=torch.channels_last)
    assert_exact(layer, images)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 16])
@pytest.mark.parametrize(
    ("kernel", "stride", "size"),
    [(3, 2, (1, 1)), (3, 2, (4, 1)), (3, 3, (2, 2)), (7, 2, (1, 1)), (7, 4, (5, 3)), (2, 2, (2, 1)), (3, 2, (1, 2))],
)
def test_gradients_are_right_where_images_are_narrower_than_the_stride(kernel, stride, size, groups, channels_last):
    torch.manual_seed(0)
    layer = rounded(nn.Conv2d(16, 16, kernel, stride, kernel // 2, groups=groups))
    images = torch.randn(3, 16, *size).bfloat16().float()
    if channels_last:
        layer, images = (each.to(memory_format=torch.channels_last) for each in (layer, images))
    for _ in range(3):
        assert_exact(layer, images)


def test_a_network_whose_last_images_are_one_pixel_trains_by_true_gradients():
    torch.manual_seed(0)
    stage = nn.Sequential(nn.Conv2d(3, 16, 3, 4, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1))
    images = torch.randn(4, 3, 4, 4).to(memory_format=torch.channels_last)
    assert_exact(rounded(stage), images.bfloat16().float())


@pytest.mark.parametrize(
    ("layer", "used"),
    [
        (nn.Conv2d(4, 4, 3, 2, 1, groups=4), True),
        (nn.Conv2d(4, 4, 5, 1, 2, groups=4), True),
        (nn.Conv2d(4, 4, 3, 1, 1, groups=4), False),  # torch is fast
        (nn.Conv2d(4, 4, 5, 1, 2), False),
        (nn.Conv2d(4, 4, 5, 1, 2, groups=2), False),
        (nn.Conv2d(4, 8, 5, 1, 2, groups=4), False),
        (nn.Conv2d(4, 4, 5, 1, 4, dilation=2, groups=4), False),
        (nn.Conv2d(4, 4, 5, 1, "same", groups=4), False),
        (nn.Conv2d(4, 4, (1, 5), (1, 2), (0, 2), groups=4), False),
    ],
)
def test_it_is_used_for_what_is_slow(layer, used, monkeypatch):
    slow = nn.Conv2d(4, 4, 5, 1, 2, groups=4)
    seen = []
    apply = convolutions._Depthwise.apply
    monkeypatch.setattr(convolutions._Depthwise, "apply", lambda *args: seen.append(1) or apply(*args))
    images = torch.randn(2, 4, 9, 9)
    context = bf16_convolutions(nn.Sequential(slow, layer), CPU, "bf16")
    gradients(layer, images, context)
    assert bool(seen) is used
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad(), context:
        layer(images)
    assert not seen, "no gradient is wanted"
    with context:
        layer(images)
    assert not seen, "it is in single precision"


def test_it_does_nothing_where_nothing_is_gained():
    slow, strided, fast = nn.Conv2d(4, 4, 5, 1, 2, groups=4), nn.Conv2d(4, 8, 3, 2, 1), nn.Conv2d(4, 8, 5)
    for each in (slow, strided):
        assert not isinstance(bf16_convolutions(nn.Sequential(fast, each), CPU, "bf16"), nullcontext)
        assert isinstance(bf16_convolutions(each, CPU, "fp32"), nullcontext)
        assert isinstance(bf16_convolutions(each, torch.device("cuda"), "bf16"), nullcontext)
    assert isinstance(bf16_convolutions(fast, CPU, "bf16"), nullcontext)
