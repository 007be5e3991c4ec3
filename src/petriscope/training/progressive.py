"""Progressive resizing: the first epochs use smaller images, which take less time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from petriscope.core.errors import RequestError
from petriscope.core.recipe import ProgressiveSection


class Progressive:
    """Progressive resizing with one smaller size. Tan and Le, 2021, "EfficientNetV2", arXiv:2104.00298; the idea is from
    Howard, 2018 (fast.ai).

    Args:
        section: the smaller size, and for which share of the epochs it is used.
        shape: (height, width, channels) of the images.
        epochs: number of epochs of the whole training.
        dense: whether targets are masks, which shrink with their images.

    Raises:
        RequestError: the size is not smaller than the images.
    """

    def __init__(
        self, section: ProgressiveSection, shape: tuple[int, int, int], epochs: int, *, dense: bool = False
    ) -> None:
        self.dense = dense
        height, width, self.channels = shape
        ratio = section.size / min(height, width)
        if ratio >= 1:
            raise RequestError(
                f"training.progressive.size is {section.size}, but the images are {height}x{width}: "
                "give a smaller size, or turn it off (--set training.progressive=null)"
            )
        self.size = (round(ratio * height), round(ratio * width))
        self.cost = self.size[0] * self.size[1] / (height * width)  # approximate cost of a step, relative to full size
        self.epochs = section.epochs(epochs)

    def check(self, model: nn.Module, forward: Callable[[Tensor], Any]) -> None:
        """Check that a model takes images of the smaller size.

        Args:
            model: the model in training.
            forward: the function that a training step calls.

        Raises:
            RequestError: it fails on smaller images.
        """
        example = torch.zeros(2, self.channels, *self.size, device=next(model.parameters()).device)
        training = model.training
        try:
            with torch.no_grad():
                model.eval()
                forward(example)
        except (RuntimeError, ValueError, AssertionError) as error:
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise RequestError(
                f"training.progressive: the model does not take images of {self.size[0]}x{self.size[1]} ({why}); turn it "
                "off (--set training.progressive=null), or choose a model with global pooling"
            ) from None
        finally:
            model.train(training)

    def shrink(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """`shrink` to the smaller size."""
        return shrink(images, targets, self.size, self.dense)


def shrink(images: Tensor, targets: Tensor, size: tuple[int, int], dense: bool) -> tuple[Tensor, Tensor]:
    """Resize images, uint8 or uint16 [B, H, W, C], and masks, uint8 [B, H, W], to a smaller size (height, width); labels stay as
    they are."""
    planes = images.permute(0, 3, 1, 2)
    if planes.device.type != "cpu" or planes.dtype != torch.uint8:  # only the CPU resizes bytes
        planes = planes.float()
    small = F.interpolate(planes, size, mode="bilinear", antialias=True)
    if small.is_floating_point():
        small = small.round().to(images.dtype)
    if dense:
        targets = F.interpolate(targets[:, None].float(), size, mode="nearest-exact")[:, 0].to(targets.dtype)
    return small.permute(0, 2, 3, 1).contiguous(), targets
