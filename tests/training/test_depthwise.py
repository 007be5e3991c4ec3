"""Depthwise convolutions in bf16: outputs and gradients as in single precision, and used where they should be."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from petriscope.training import depthwise
from petriscope.training.depthwise import fast_depthwise

CPU = torch.device("cpu")


def gradients(layer, images, context, enabled=True):
    """The output of a layer in bf16, if enabled, and the gradients of its images and parameters."""
    images = images.clone().requires_grad_()
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled), context:
        out = layer(images)
    out.float().mul(torch.linspace(-1, 2, out.numel()).bfloat16().float().view(out.shape)).sum().backward()
    return [out, images.grad, *(each.grad for each in layer.parameters())]


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
    assume(depthwise._is_slow(kernel, stride))  # the others are torch's alone
    torch.manual_seed(0)
    layer = nn.Conv2d(channels, channels, kernel, stride, padding, groups=channels, bias=bias)
    sides = [max(1, k - 2 * p) + m for k, p, m in zip(kernel, padding, more, strict=True)]
    images = torch.randn(3, channels, *sides).bfloat16().float()
    if last:
        images = images.to(memory_format=torch.channels_last)
    with torch.no_grad():
        for each in layer.parameters():
            each.copy_(each.bfloat16())
    ours = gradients(layer, images, fast_depthwise(layer, CPU, "bf16"))
    # Not torch's gradients in bf16: those of the weights are wrong at times where the padding is wide.
    exact = gradients(layer, images, nullcontext(), enabled=False)
    assert ours[0].dtype == torch.bfloat16
    for one, other in zip(ours, exact, strict=True):
        assert one.shape == other.shape
        # Results are rounded to 8 bits, and on some processors so are partial sums. A wrong element differs by far more.
        torch.testing.assert_close(one.float(), other, rtol=0, atol=2**-5 * other.abs().max().item() + 1e-6)


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
    apply = depthwise._Depthwise.apply
    monkeypatch.setattr(depthwise._Depthwise, "apply", lambda *args: seen.append(1) or apply(*args))
    images = torch.randn(2, 4, 9, 9)
    context = fast_depthwise(nn.Sequential(slow, layer), CPU, "bf16")
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
    slow, fast = nn.Conv2d(4, 4, 5, 1, 2, groups=4), nn.Conv2d(4, 8, 5)
    assert not isinstance(fast_depthwise(nn.Sequential(fast, slow), CPU, "bf16"), nullcontext)
    assert isinstance(fast_depthwise(fast, CPU, "bf16"), nullcontext)
    assert isinstance(fast_depthwise(slow, CPU, "fp32"), nullcontext)
    assert isinstance(fast_depthwise(slow, torch.device("cuda"), "bf16"), nullcontext)
