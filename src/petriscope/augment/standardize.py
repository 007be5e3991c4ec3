"""Make images of different microscopes alike, each by itself: its background white, its darkest parts equally dark, its stain of
one mean and spread.

A camera adds the same light to all pixels: stray light of the optics, and what its electronics add. An object that lets no
light through is then gray, and the parts of a cell differ less the darker they are, which no factor on light or on optical
density undoes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from petriscope.augment.base import by_group, colors_among, constant
from petriscope.core.channels import Names, groups_of, in_words
from petriscope.core.errors import RequestError
from petriscope.core.recipe import Standard
from petriscope.data.appearance import LEAST, background, darkest

# What images are brought to in red, green and blue: the light in their darkest parts, in units of the background's, and the mean
# and standard deviation of their optical density. They are those of 10,247 cells stained with May-Gruenwald-Giemsa (Acevedo et
# al., 2020, doi 10.1016/j.dib.2020.105474), medians and means, rounded, so that these images hardly change.
DARKEST = (0.28, 0.13, 0.63)
MEAN, STD = (0.28, 0.43, 0.15), (0.34, 0.54, 0.14)
GAINS = (0.25, 4.0)  # smallest and largest factor on optical densities, so that noise is not made into stain
STRAY = (
    -1.0,
    0.75,
)  # least and most light that is taken away: contrast is at least halved, and at most 4 times as high
DARK = 0.2  # background that is brightened fully; a darker one, of an image without light, is brightened by the same factor


class Standardize:
    """Standardize the background, the stray light and the stain of images, in this order; see `Standard`.

    ``background``: colors are divided by that of the background, so that it becomes white (white balance by a known white,
    after von Kries, 1902). ``stray-light``: the light that makes the darkest parts of a channel brighter than a given value is
    taken away from all pixels, as Chavez, 1988 (Remote Sensing of Environment 24:459), does with haze. ``stain``: the optical
    density of each channel is brought to a given mean and standard deviation, as Reinhard et al., 2001, "Color transfer between
    images", do with color in another space. What is not standardized keeps its value.

    Args:
        what: any of ``background``, ``stray-light``, ``stain``.
        channels: names; empty: gray or RGB. Of others, red, green and blue alone are standardized.

    Raises:
        RequestError: there are other channels, and none called red, green and blue.
    """

    def __init__(self, what: Sequence[Standard] = (), channels: Names = ()) -> None:
        groups = groups_of(channels)
        self.colors = colors_among(groups)
        if what and groups and not self.colors:
            raise RequestError(
                f"data.standardize is for the light and the stain of bright-field images, and these have {in_words(channels)}, "
                "none called red, green and blue: leave it out"
            )
        self.background, self.stray_light, self.stain = (
            each in what for each in ("background", "stray-light", "stain")
        )

    def __bool__(self) -> bool:
        return self.background or self.stray_light or self.stain

    def __call__(self, x: Tensor) -> Tensor:
        """float32 [B, C, H, W] in [0, 1] -> the same."""
        return by_group(x, self.colors, self._one) if self else x

    def _one(self, x: Tensor) -> Tensor:
        factor = background(x).clamp_min(DARK)[:, :, None, None]
        out = (x / factor).clamp_max(1)
        if self.stray_light:
            least = _of(DARKEST, x)
            stray = ((darkest(out) - least) / (1 - least)).clamp(*STRAY)[:, :, None, None]
            out = ((out - stray) / (1 - stray)).clamp_min(0)
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
