"""Gradients of convolutions in bf16 on the CPU, where oneDNN's are wrong or slow.

Wrong: the gradient of the weights where padded images are narrower than the stride. Some columns of a kernel then see only
padding, and their gradient may be what the memory held before instead of zero. Such images are padded first, by an operation of
their own, so that oneDNN is asked for no padding.

Slow: two gradients of depthwise convolutions, for which it has no fast kernels, so that they take most of a training step: that
of the images where the stride is more than 1, and that of the weights where the kernel is larger than 3x3. The first is computed
in single precision here, and the second in blocks of 3x3 weights, for which there is a fast kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from petriscope.core.device import Format

BLOCK = 3  # the side of the kernels that are fast


def bf16_convolutions(model: nn.Module, device: torch.device, number_format: Format) -> AbstractContextManager[Any]:
    """A context for forward passes whose gradients are wanted; it does nothing where torch's are right and fast.

    It may be entered again and again. The forward pass is torch's, and so are gradients, except for how they are rounded.
    """
    layers = [each for each in model.modules() if isinstance(each, nn.Conv2d)]
    needed = any(
        each.stride[1] > 1 or (_is_depthwise(each) and _is_slow(each.kernel_size, each.stride)) for each in layers
    )
    return _Convolutions() if needed and device.type == "cpu" and number_format == "bf16" else nullcontext()


def _is_depthwise(layer: nn.Conv2d) -> bool:
    return layer.groups == layer.in_channels == layer.out_channels > 1


def _is_slow(kernel: Sequence[int], stride: Sequence[int]) -> bool:
    return min(kernel) >= BLOCK and (max(kernel) > BLOCK or max(stride) > 1)


class _Convolutions(TorchFunctionMode):
    """Pads narrow images of strided convolutions first, and sends depthwise ones to `_Depthwise`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.conv2d and not kwargs and len(args) == 7 and torch.is_grad_enabled():
            images, weight, bias, stride, padding, dilation, groups = args
            if images.ndim == 4 and not isinstance(padding, str) and torch.is_autocast_enabled("cpu"):
                if padding[1] and images.shape[3] < stride[1]:
                    images, padding = F.pad(images, (padding[1], padding[1], padding[0], padding[0])), (0, 0)
                    args = (images, weight, bias, stride, padding, dilation, groups)
                if (
                    groups == images.shape[1] == len(weight) > 1
                    and tuple(dilation) == (1, 1)
                    and _is_slow(weight.shape[2:], stride)
                ):
                    dtype = torch.get_autocast_dtype("cpu")
                    cast = [None if each is None else each.to(dtype) for each in (images, weight, bias)]
                    return _Depthwise.apply(*cast, tuple(stride), tuple(padding))
        return func(*args, **(kwargs or {}))


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(images, weight, bias, stride, padding, 1, len(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = ctx.saved_tensors
        stride, padding = ctx.stride, ctx.padding
        of_images, of_weight, of_bias = ctx.needs_input_grad[:3]
        first = second = third = None
        if of_images and max(stride) > 1:
            blank = torch.empty_like(images, dtype=torch.float32)  # of which the shape alone is looked at
            first = _gradients(grad.float(), blank, weight.float(), stride, padding, 0).to(images.dtype)
        elif of_images:
            first = _gradients(grad, images, weight, stride, padding, 0)
        if of_weight:
            second = _of_weight(grad, images, weight, stride, padding)
        if of_bias:
            third = grad.sum((0, 2, 3), dtype=torch.float32).to(grad.dtype)
        return first, second, third, None, None


def _gradients(
    grad: Tensor, images: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], which: int
) -> Tensor:
    """torch's gradient of the images (0) or of the weight (1)."""
    wanted = [which == 0, which == 1, False]
    found = torch.ops.aten.convolution_backward(
        grad, images, weight, None, stride, padding, (1, 1), False, (0, 0), len(weight), wanted
    )
    return found[which]


def _of_weight(grad: Tensor, images: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """The gradient of the weight: that of a kernel which is a block of it, for each block, on images shifted to it."""
    height, width = weight.shape[2:]
    if max(height, width) <= BLOCK:
        return _gradients(grad, images, weight, stride, padding, 1)
    rows, columns = (BLOCK + (count - 1) * step for count, step in zip(grad.shape[2:], stride, strict=True))
    bottom = rows - BLOCK + height - images.shape[2] - padding[0]  # what is left over by the stride is cut off
    right = columns - BLOCK + width - images.shape[3] - padding[1]
    padded = F.pad(images, (padding[1], right, padding[0], bottom))
    found = torch.empty_like(weight)
    block = weight[:, :, :BLOCK, :BLOCK].contiguous()
    for top in _starts(height):
        for left in _starts(width):
            seen = padded[:, :, top : top + rows, left : left + columns]
            found[:, :, top : top + BLOCK, left : left + BLOCK] = _gradients(grad, seen, block, stride, (0, 0), 1)
    return found


def _starts(side: int) -> list[int]:
    """Where blocks that cover a side begin; the last may overlap the one before."""
    return sorted({min(start, side - BLOCK) for start in range(0, side, BLOCK)})
