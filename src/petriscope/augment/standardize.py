"""Make images of different microscopes alike, each by itself: its background white, its darkest stain of one strength."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from petriscope.augment.appearance import FAINT, LEAST, background, darkest
from petriscope.core.recipe import Standard

STAIN = 1.5  # optical density that the most stained parts get in the channel where it is largest
GAINS = (0.4, 3.0)  # smallest and largest factor on optical densities, so that noise is not made into stain
DARK = 0.2  # background that is brightened fully; a darker one, of an image without light, is brightened by the same factor


class Standardize:
    """Standardize the background and the stain of images; see `Standard`.

    ``background``: colors are divided by that of the background, so that it becomes white (white balance by a known white,
    after von Kries, 1902). ``stain``: optical densities are scaled, by one factor per image, so that the most stained
    parts have `STAIN`; Macenko et al., 2009, "A method for normalizing histology slides for quantitative analysis", scale
    amounts of stains in the same way. What is not standardized keeps its value.

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
        light = background(x)
        factor = light.clamp_min(DARK)[:, :, None, None]
        out = (x / factor).clamp_max(1)
        if self.stain:
            # Not per channel: in one where nothing is dark, that would turn noise into stain.
            most = darkest(x, light).amax(1).clamp_min(FAINT)
            gain = (STAIN / most).clamp(*GAINS)[:, None, None, None]
            out = torch.exp(out.clamp_min(LEAST).log() * gain)
        return out if self.background else out * factor
