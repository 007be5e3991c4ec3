"""Models, one file a family. `MODELS` lists what a recipe can name; `build_model` makes one for given pictures.

A model is made from the number of input channels, the number of classes and the picture size (height, width); its
keyword-only parameters are its options. It maps normalized float [B, C, H, W] to logits [B, K].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from petriscope.parts import Catalogue
from petriscope.recipe import Part

if TYPE_CHECKING:
    from torch import nn

MODELS = Catalogue(
    "model",
    {
        "simple-cnn": "petriscope.models.simple_cnn:SimpleCNN",
        "resnet18": "petriscope.models.resnet:resnet18",
        "d4-resnet": "petriscope.models.d4_resnet:D4ResNet",
    },
)


def build_model(part: Part, classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """Make the model of a recipe.

    Args:
        part: its name and options.
        classes: the number of logits.
        shape: (height, width, channels) of the pictures.

    Raises:
        RequestError: an unknown name or option, or a model that cannot take pictures of that size.
    """
    height, width, channels = shape
    return MODELS.build(part, channels, classes, (height, width))
