"""Progressive resizing: the first epochs see smaller images, which cost less, so more of them fit into the same time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from petriscope.core.errors import RequestError
from petriscope.core.recipe import ProgressiveSection


class Progressive:
    """Tan & Le, 2021, "EfficientNetV2", arXiv:2104.00298, with one smaller size; the idea is Howard's, 2018 (fast.ai).

    Args:
        section: to what size, and for which share of the epochs.
        shape: (height, width, channels) of the images.
        epochs: of the whole training.
        dense: whether targets are masks, which shrink with their images.

    Raises:
        RequestError: the size is not below the images'.
    """

    def __init__(
        self, section: ProgressiveSection, shape: tuple[int, int, int], epochs: int, *, dense: bool = False
    ) -> None:
        self.dense = dense
        height, width, self.channels = shape
        ratio = section.size / min(height, width)
        if ratio >= 1:
            raise RequestError(
                f"training.progressive.size is {section.size}, and the images are {height}x{width}: "
                "give a smaller one, or leave it out (--set training.progressive=null)"
            )
        self.size = (round(ratio * height), round(ratio * width))
        self.cost = self.size[0] * self.size[1] / (height * width)  # of a step, about, in steps on whole images
        self.epochs = section.epochs(epochs)

    def check(self, model: nn.Module, forward: Callable[[Tensor], Any]) -> None:
        """Refuse a model that takes images of one size alone.

        Args:
            model: what is trained.
            forward: what a step asks of it.

        Raises:
            RequestError: it fails on a smaller image.
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
                f"training.progressive: the model takes images of one size alone, not of {self.size[0]}x{self.size[1]} "
                f"({why}); leave it out (--set training.progressive=null), or choose a model that averages "
                "over places"
            ) from None
        finally:
            model.train(training)

    def shrink(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Images, uint8 [B, H, W, C], and masks, uint8 [B, H, W], brought to the smaller size; labels stay."""
        planes = images.permute(0, 3, 1, 2)
        if planes.device.type != "cpu":  # there bytes are not resized
            planes = planes.float()
        small = F.interpolate(planes, self.size, mode="bilinear", antialias=True)
        if small.is_floating_point():
            small = small.round().to(torch.uint8)
        if self.dense:
            targets = F.interpolate(targets[:, None].float(), self.size, mode="nearest-exact")[:, 0].to(targets.dtype)
        return small.permute(0, 2, 3, 1).contiguous(), targets
