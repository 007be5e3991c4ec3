"""Make images of different microscopes alike, each by itself: its background white, its stain of one mean and spread."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from petriscope.augment.base import constant
from petriscope.core.recipe import Standard
from petriscope.data.appearance import LEAST, background

# Mean and standard deviation of the optical density in red, green and blue that stain is brought to: those of 10,247 cells
# stained with May-Gruenwald-Giemsa (Acevedo et al., 2020, doi 10.1016/j.dib.2020.105474), rounded, so that these hardly change.
MEAN, STD = (0.28, 0.43, 0.15), (0.34, 0.54, 0.14)
GAINS = (0.25, 4.0)  # smallest and largest factor on optical densities, so that noise is not made into stain
DARK = 0.2  # background that is brightened fully; a darker one, of an image without light, is brightened by the same factor


class Standardize:
    """Standardize the background and the stain of images; see `Standard`.

    ``background``: colors are divided by that of the background, so that it becomes white (white balance by a known white,
    after von Kries, 1902). ``stain``: the optical density of each channel is brought to a given mean and standard deviation, as
    Reinhard et al., 2001, "Color transfer between images", do with color in another space. What is not standardized keeps its
    value.

    Args:
        what: any of ``background``, ``stain``.
    """

    def __init__(self, what: Sequence[Standard] = ()) -> None:
        self.background, self.stain = "background" in what, "stain" in what

    def __bool__(self) -> bool:
        return self.background or self.stain

    def __call__(self, x: Tensor) -> Tensor:
        """float32 [B, C, H, W] in [0, 1] -> the same."""
        if not self:
            return x
        factor = background(x).clamp_min(DARK)[:, :, None, None]
        out = (x / factor).clamp_max(1)
        if self.stain:
            mean, std = (_of(values, x)[:, None, None] for values in (MEAN, STD))
            density = -out.clamp_min(LEAST).log()
            spread, center = torch.std_mean(density, (2, 3), keepdim=True)
            gain = (std / spread.clamp_min(1e-6)).clamp(*GAINS)
            out = torch.exp(-((density - center) * gain + mean).clamp_min(0))
        return out if self.background else out * factor


def _of(values: tuple[float, float, float], x: Tensor) -> Tensor:
    """One value per channel of images, [C]; their mean where the channels are not red, green and blue."""
    return constant(values if x.shape[1] == 3 else (sum(values) / 3,) * x.shape[1], x.device)
