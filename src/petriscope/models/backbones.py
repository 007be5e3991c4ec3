"""The only place that imports timm: its networks with Petriscope's options, and a fix for its import."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Annotated, Any, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from petriscope.core.errors import RequestError
from petriscope.core.notebook import without_widgets
from petriscope.models.heads import SEMLP
from petriscope.models.layers import head_of
from petriscope.models.norms import Norm, with_norm
from petriscope.models.weights import Statistics, WeightFile, from_hub, load_weights, read_weights

Head = Literal["linear", "se-mlp"]
Chance = Annotated[float, Field(ge=0, lt=1)]
Width = Annotated[int, Field(ge=1)]
Side = Annotated[int, Field(ge=8, le=2048)]

OPTIONS = """\
    weights: ``none``; ``pretrained``: timm's, from its hub; or the path of a .safetensors file, timm's or Petriscope's.
        A head of other classes is left out. What the weights were trained with is in the model's ``expects``.
    norm: ``group`` replaces the batch norms of networks that have them, so that an image is normalized by itself; not with
        published weights, which are of batch norms.
    drop_rate: dropout before the logits; of ``se-mlp``, after each dense layer.
    drop_path_rate: stochastic depth: Huang et al., 2016, arXiv:1603.09382.
    head: ``linear``: the network's own; ``se-mlp``: squeeze and excitation on its feature maps, global average pooling,
        dense layers with swish, batch norm and dropout.
    hidden: units of each dense layer of ``se-mlp``.
    resize: side of the square that images are resized to first (bilinear), such as 224; null: as they are."""

_fragments: list[Any] = []  # keeps the operator library alive


def import_timm() -> ModuleType:
    """Import timm, also where torchvision's compiled operators do not match torch.

    With a CPU build of torch and the common build of torchvision, ``import torchvision`` fails, because it registers
    shapes for operators (``nms``) that its library did not load. Declaring these operators first lets the rest of
    torchvision work; nothing here calls them.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        import torch

        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _fragments.append(library)
    with without_widgets():
        import timm

    return timm


class Backbone(nn.Module):
    """A timm network that resizes its images, or has another head.

    Args:
        backbone: the network; if ``head`` is given, without its own.
        resize: side of the square that images are resized to; None: they are not.
        head: maps the features of the network to logits; None: the network has its own.
    """

    def __init__(self, backbone: Any, resize: int | None, head: SEMLP | None) -> None:
        super().__init__()
        self.backbone, self.resize = backbone, resize
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Normalized float [B, C, H, W] -> logits [B, K]."""
        if self.resize:
            size = (self.resize, self.resize)
            images = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=False)
        if self.head is None:
            return self.backbone(images)
        return self.head(self._maps(self.backbone.forward_features(images)))

    def get_classifier(self) -> nn.Module:
        return self.backbone.get_classifier() if self.head is None else self.head

    def _maps(self, features: Tensor) -> Tensor:
        """Features as [B, C, H, W]: transformers give tokens, [B, N, C], and some networks [B, H, W, C]."""
        if features.ndim == 3:
            return features.transpose(1, 2).unsqueeze(3)
        last = getattr(self.backbone, "output_fmt", "NCHW") == "NHWC"
        return features.permute(0, 3, 1, 2) if last else features


def make_backbone(
    name: str,
    channels: int,
    classes: int,
    size: tuple[int, int],
    *,
    weights: str,
    norm: Norm,
    drop_rate: float,
    drop_path_rate: float,
    head: Head,
    hidden: tuple[int, ...],
    resize: int | None,
    adapt: Callable[[Any], None] = lambda network: None,
    optional: Callable[[str], bool] = lambda name: False,
    **more: Any,
) -> nn.Module:
    """Make a timm network.

    Args:
        name: timm's, with or without the tag of its weights.
        channels, classes: of the input and the output.
        size: (height, width).
        weights, norm, drop_rate, drop_path_rate, head, hidden, resize: the options of `OPTIONS`.
        adapt: changes the network before weights are loaded.
        optional: says of a parameter's name whether weights may be without it.
        more: for timm's ``create_model``.

    Returns:
        timm's own module if no more is needed, else a `Backbone`. It has ``expects``: the mean and std its weights were
        trained with, one value per channel, or None.
    """
    if norm == "group" and weights == "pretrained":
        raise RequestError(f"the pretrained weights of {name} are of batch norms; set model.norm=batch")
    timm = import_timm()
    if drop_rate and head == "linear":
        more["drop_rate"] = drop_rate
    if drop_path_rate:
        more["drop_path_rate"] = drop_path_rate
    if getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False):
        more["img_size"] = (resize, resize) if resize else size
    try:
        network: Any = timm.create_model(name, num_classes=classes, in_chans=channels, **more)
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        raise RequestError(
            f"model timm/{name} cannot be made for images of {size[0]}x{size[1]} with these options: {error}"
        ) from None
    _check_patches(name, network, (resize, resize) if resize else size)
    adapt(network)
    with_norm(network, norm)
    before = set(network.state_dict())
    config = network.pretrained_cfg
    classifier = SEMLP(_behead(network), classes, hidden, drop_rate) if head == "se-mlp" else None
    dropped = {key.rpartition(".")[0] for key in before - set(network.state_dict())}
    if classifier is not None:
        with_norm(classifier, norm)
    model: Any = network
    if resize or classifier:
        model = Backbone(network, resize, classifier)
    model.expects, model.published = None, False
    if weights == "none":
        return model
    file = _published(name, config) if weights == "pretrained" else read_weights(weights)
    heads = head_of(model) + [f"backbone.{each}" for each in dropped]
    load_weights(model, _fitted(file, model, network, channels, config), heads, optional)
    statistics = file.statistics or ((config["mean"], config["std"]) if "mean" in config else None)
    model.expects = expected_statistics(statistics, channels) if statistics else None
    model.published = file.statistics is None  # and so learned from red, green and blue
    return model


def _check_patches(name: str, network: Any, size: tuple[int, int]) -> None:
    """Refuse image sizes that are not multiples of the patch size: transformers silently drop the remaining pixels."""
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)
    if isinstance(patch, tuple) and any(side % each for side, each in zip(size, patch, strict=True)):
        raise RequestError(
            f"timm/{name} divides images into patches of {patch[0]}x{patch[1]}, and {size[0]}x{size[1]} is no multiple; "
            f"set model.resize={max(1, -(-max(size) // patch[0])) * patch[0]} or another multiple of {patch[0]}"
        )


def _behead(network: Any) -> int:
    """Remove everything after the feature maps, and return their number of channels. Layers between the maps and the
    classifier are removed too, because nothing would use them."""
    if getattr(network, "head_hidden_size", network.num_features) != network.num_features:  # MobileNetV3, VGG
        network.prune_intermediate_layers(1, prune_norm=False, prune_head=True)
        return int(network.feature_info[-1]["num_chs"])
    other = "reset_other" in inspect.signature(network.reset_classifier).parameters  # ConvNeXt's norm after pooling
    network.reset_classifier(0, "", **({"reset_other": True} if other else {}))
    return int(network.num_features)


def _published(name: str, config: dict[str, Any]) -> WeightFile:
    if not config.get("hf_hub_id"):
        raise RequestError(f"timm has no pretrained weights of {name}; set model.weights=none or a .safetensors file")
    filename = config.get("hf_hub_filename") or "model.safetensors"
    return read_weights(from_hub(config["hf_hub_id"], filename, f"timm/{name}"))


def _fitted(
    file: WeightFile, model: nn.Module, network: nn.Module, channels: int, config: dict[str, Any]
) -> WeightFile:
    """The tensors of a file under the names of the model: renamed if timm knows the origin of the file, and with the input
    channels of the first convolution summed or repeated if the images have fewer or more."""
    from timm.models import adapt_input_conv

    prefix = "backbone."
    own = {key: tensor for key, tensor in file.tensors.items() if not key.startswith(prefix)}
    inner = {key.removeprefix(prefix): tensor for key, tensor in file.tensors.items() if key.startswith(prefix)}
    rest = own if inner else {}
    tensors = inner or own
    rename = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if rename is not None and file.statistics is None:
        try:
            tensors = rename(tensors, network)
        except Exception as error:  # timm's renaming assumes that the file is of this network
            raise RequestError(
                f"model.weights: {file.path} does not fit this model: {type(error).__name__} {error}"
            ) from None
    first = config.get("first_conv")
    for layer in [first] if isinstance(first, str) else first or []:
        weight = tensors.get(f"{layer}.weight")
        if weight is not None and weight.ndim == 4 and weight.shape[1] in (1, 3) and weight.shape[1] != channels:
            tensors[f"{layer}.weight"] = adapt_input_conv(channels, weight, weight.shape[1])
    if isinstance(model, Backbone):
        tensors = {prefix + key: tensor for key, tensor in tensors.items()} | rest
    return WeightFile(file.path, tensors, file.statistics)


def expected_statistics(statistics: Statistics, channels: int) -> Statistics:
    """Statistics for images with other channels than those of the weights: their mean for gray, else repeated in turn."""

    def fit(metrics: tuple[float, ...]) -> tuple[float, ...]:
        if channels == 1:
            return (sum(metrics) / len(metrics),)
        return tuple(metrics[i % len(metrics)] for i in range(channels))

    return fit(statistics[0]), fit(statistics[1])
