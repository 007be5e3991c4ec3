"""Random convolutions: the same shapes in another texture."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from petriscope.augment.base import Pixelwise, Probability, change_some, chosen, uniform
from petriscope.augment.frequency import Shares


class RandomConvolution(Pixelwise):
    """Mix the image with its convolution by a random kernel over all channels, so that shapes stay while colors and textures
    change. Xu et al., 2021, arXiv:2007.13003. Each channel of the result is brought to the mean and standard deviation that it
    had in the image.

    Args:
        size: of the largest kernel, in pixels; sizes are odd, equally likely from 1 on.
        repeats: the same kernel is applied from 1 to so many times, as in Choi et al., 2023, arXiv:2304.00424, there 10 times
            with size 3.
        share: least and greatest share of the convolution in the result.
    """

    def __init__(
        self,
        *,
        size: Annotated[int, Field(ge=1, le=15)] = 5,
        repeats: Annotated[int, Field(ge=1, le=10)] = 1,
        share: Shares = (0.0, 1.0),
        p: Probability = 0.5,
    ) -> None:
        self.size, self.repeats, self.share, self.p = size, repeats, share, p

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        batch, channels, height, width = images.shape
        sizes = [side for side in range(1, self.size + 1, 2) if side // 2 < min(height, width)]
        falls = chosen(batch, self.p, generator)
        which = torch.randint(len(sizes), (batch,), generator=generator)
        share = uniform(batch, *self.share, generator)
        times = torch.randint(1, self.repeats + 1, (batch,), generator=generator)
        out = images.clone(memory_format=torch.contiguous_format)
        for place, side in enumerate(sizes):
            kernels = torch.randn(batch, channels, channels, side, side, generator=generator)
            change_some(images, falls & (which == place), self._mixed, kernels, share, times, out=out)
        return out

    def _mixed(self, images: Tensor, kernels: Tensor, share: Tensor, times: Tensor) -> Tensor:
        convolved = images
        for done in range(self.repeats):
            again = restored(convolve_each(convolved, kernels), images)
            convolved = torch.lerp(convolved, again, (times > done).float()[:, None, None, None])
        return torch.lerp(images, convolved, share[:, None, None, None])


def convolve_each(images: Tensor, kernels: Tensor) -> Tensor:
    """Convolve each image by kernels of its own, mirrored at the border.

    Args:
        images: float32 [B, C, H, W].
        kernels: float32 [B, C, C, k, k], k odd.
    """
    batch, channels, height, width = images.shape
    reach = kernels.shape[-1] // 2
    padded = F.pad(images, (reach,) * 4, mode="reflect") if reach else images
    grouped = padded.reshape(1, batch * channels, *padded.shape[2:])
    out = F.conv2d(grouped, kernels.flatten(0, 1), groups=batch)
    return out.view(batch, channels, height, width)


def restored(images: Tensor, like: Tensor) -> Tensor:
    """Images with the mean and the standard deviation per channel of others, both float32 [B, C, H, W]."""
    mean, std = images.mean((2, 3), keepdim=True), images.std((2, 3), keepdim=True, correction=0)
    wanted, spread = like.mean((2, 3), keepdim=True), like.std((2, 3), keepdim=True, correction=0)
    return (images - mean) * (spread / std.clamp_min(1e-6)) + wanted
