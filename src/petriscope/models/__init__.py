"""Models, one file per family. `MODELS` lists what a recipe can name; `build_model` makes one for given images.

A model is made from the number of input channels, the number of classes and the image size (height, width); its
keyword-only parameters are its options. It maps normalized float [B, C, H, W] to logits [B, K], one row per image. A
dense model gives logits per pixel, [B, K, H, W].

Attributes that a model may have:

- ``dense``: whether it gives logits per pixel. A class or instance attribute; a model without it is not dense. Read it
  with `petriscope.models.layers.is_dense`.
- ``expects``: the mean and std, one value per channel in units of the full range, that its weights were trained with.
- ``published``: whether its weights are, and so were learned from red, green and blue.
- ``forward_with_loss(images) -> (logits, loss)``: a loss of its own to add to the recipe's, a mean over the images.
- ``reconstruct(images) -> images``: what an autoencoder makes of normalized images; the report shows it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from petriscope.core.device import is_out_of_memory
from petriscope.core.errors import RequestError, shown
from petriscope.core.recipe import Part
from petriscope.core.registry import Registry

if TYPE_CHECKING:
    from torch import nn

TIMM = "timm/"
ENSEMBLE = "ensemble"  # made of trained runs, so a recipe cannot name it, and it is not listed
SMP = "smp/"


class _Models(Registry):
    """The registry of models, which also finds those of timm and of segmentation_models_pytorch."""

    def find(self, name: str) -> Callable[..., Any]:
        if name == ENSEMBLE:
            return Registry(self.kind, {ENSEMBLE: "petriscope.models.voting:Ensemble"}).find(name)
        if name.startswith(TIMM):
            from petriscope.models.timm_models import any_backbone

            return any_backbone(name.removeprefix(TIMM))
        if name.startswith(SMP):
            from petriscope.models.smp_models import any_segmenter

            return any_segmenter(name.removeprefix(SMP))
        return super().find(name)


MODELS = _Models(
    "model",
    {
        "simple-cnn": "petriscope.models.simple_cnn:SimpleCNN",
        "custom-cnn": "petriscope.models.custom_cnn:CustomCNN",
        "quiz-dnn": "petriscope.models.quiz_dnn:QuizDNN",
        "se-cnn": "petriscope.models.se_cnn:SECNN",
        "d4-resnet": "petriscope.models.d4_resnet:D4ResNet",
        "vgg": "petriscope.models.vgg:VGG",
        "autoencoder": "petriscope.models.autoencoder:Autoencoder",
        "inception": "petriscope.models.inception:Inception",
        "resnet18": "petriscope.models.resnet:resnet18",
        "resnet34": "petriscope.models.resnet:resnet34",
        "resnet50": "petriscope.models.resnet:resnet50",
        "mobilenet-v3-large": "petriscope.models.timm_models:mobilenet_v3_large",
        "convnext-tiny": "petriscope.models.timm_models:convnext_tiny",
        "convnext-small": "petriscope.models.timm_models:convnext_small",
        "convnext-base": "petriscope.models.timm_models:convnext_base",
        "convnext-large": "petriscope.models.timm_models:convnext_large",
        "deit-tiny": "petriscope.models.timm_models:deit_tiny",
        "unet": "petriscope.models.unet:UNet",
        "attention-unet": "petriscope.models.unet:attention_unet",
        "dual-unet": "petriscope.models.dual_unet:DualUNet",
    },
)


def build_model(part: Part, classes: int, shape: tuple[int, int, int], fresh: bool = True) -> nn.Module:
    """Make the model of a recipe.

    Args:
        part: its name and options.
        classes: the number of logits.
        shape: (height, width, channels) of the images.
        fresh: start from the weights that the recipe names; False: the caller loads weights, and nothing is downloaded.

    Raises:
        RequestError: an unknown name or option, weights that do not fit, or a model that cannot take such images.
        PetriscopeError: pretrained weights that cannot be downloaded.
    """
    height, width, channels = shape
    if fresh and part.name == ENSEMBLE:
        raise RequestError("an ensemble cannot be trained: make it of trained runs with petriscope ensemble RUN RUN...")
    if not fresh and "weights" in part.options:
        part = Part(name=part.name, **{**part.options, "weights": "none"})
    model = MODELS.build(part, channels, classes, (height, width))
    if fresh:
        _try(model, part.name, shape)
    return model


def sketch_model(part: Part, classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """The same model on the device ``meta``: its parameters have shapes and take no memory.

    Raises:
        RequestError: an unknown name or option, or more weights than can be counted.
    """
    import torch

    try:
        with torch.device("meta"):
            return build_model(part, classes, shape, fresh=False)
    except RuntimeError as error:
        raise RequestError(
            f"{part.name} cannot be built with {sized_options(part)} ({str(error).partition(chr(10))[0]}); lower them"
        ) from None


def sized_options(part: Part) -> str:
    """The options of a model that decide its size, for messages: its numbers and lists."""
    sizes = {key: value for key, value in part.options.items() if isinstance(value, int | list | tuple)}
    return ", ".join(f"model.{key}={shown(value)}" for key, value in sizes.items()) or f"model={part.name}"


def _try(model: nn.Module, name: str, shape: tuple[int, int, int]) -> None:
    """Run one blank image through the model, so that an unsupported image size is found before training starts."""
    import torch

    height, width, channels = shape
    device = next(model.parameters()).device
    model.eval()
    try:
        with torch.no_grad():
            model(torch.zeros(1, channels, height, width, device=device))
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        known = "model.resize=224 or " if "resize" in MODELS.options(name) else ""
        reason = str(error).partition("\n")[0]
        raise RequestError(
            f"{name} cannot take images of {height}x{width} ({reason}); set {known}a larger data.size"
        ) from None
    model.train()
