"""The networks of segmentation_models_pytorch (Iakubovskii, 2019), as ``smp/ARCH-ENCODER``."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from petriscope.core.errors import RequestError, near
from petriscope.models.backbones import expected_statistics, import_timm
from petriscope.models.segmenter import padded
from petriscope.models.weights import Statistics, Weights, from_hub, load_weights, read_weights

TIMM_ENCODER = "tu-"
INSTALL = "pip install 'petriscope[masks]'"


def import_smp() -> ModuleType:
    """Import segmentation_models_pytorch, which is an optional dependency.

    Raises:
        RequestError: it is not installed; the message says how to.
    """
    import_timm()  # with its fix, because segmentation_models_pytorch imports timm too
    try:
        import segmentation_models_pytorch
    except ModuleNotFoundError as error:
        if error.name != "segmentation_models_pytorch":
            raise
        raise RequestError(f"models smp/... need segmentation_models_pytorch: {INSTALL}") from None
    return segmentation_models_pytorch


class SMPSegmenter(nn.Module):
    """A network of segmentation_models_pytorch that takes images of any size.

    Args:
        network: with an encoder, a decoder and a segmentation head.
    """

    dense = True
    expects: Statistics | None = None
    published = False  # whether its weights were, and so learned from red, green and blue

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.multiple = int(network.encoder.output_stride) if network.requires_divisible_input_shape else 1

    def forward(self, images: Tensor) -> Tensor:
        """Normalized float [B, C, H, W] -> logits [B, K, H, W]."""
        height, width = images.shape[2:]
        return self.network(padded(images, self.multiple))[:, :, :height, :width]

    @property
    def bottleneck(self) -> nn.Module:
        """The encoder, which returns a list of features, the coarsest last."""
        return self.network.encoder

    def get_classifier(self) -> nn.Module:
        return self.network.segmentation_head


def any_segmenter(name: str) -> Callable[..., nn.Module]:
    """The model ``smp/ARCH-ENCODER``, such as ``smp/unet-resnet18`` or, with an encoder of timm's,
    ``smp/fpn-tu-mobilenetv3_small_100``.

    Raises:
        RequestError: the library is missing, or has no such architecture or encoder; the message names the near ones.
    """
    smp = import_smp()
    arch, _, encoder = name.partition("-")
    known = smp.MODEL_ARCHITECTURES_MAPPING
    if arch not in known:
        raise RequestError(f"no architecture {arch!r} for smp/ARCH-ENCODER; {near(arch, known)}")
    names = smp.encoders.get_encoder_names()
    if encoder.startswith(TIMM_ENCODER):
        encoders = [TIMM_ENCODER + each for each in import_timm().list_models()]
        there = encoder.partition(".")[0] in encoders
    else:
        encoders, there = names, encoder in names
    if not there:
        close = near(encoder, encoders)
        raise RequestError(
            f"no encoder {encoder!r} for smp/ARCH-ENCODER; "
            + (close if close.startswith("did") else f"known: {', '.join(names)}, or {TIMM_ENCODER}NAME of timm's")
        )

    def build(channels: int, classes: int, size: tuple[int, int], *, weights: Weights = "none") -> nn.Module:
        return _make(smp, arch, encoder, channels, classes, weights)

    build.__doc__ = f"""{known[arch].__name__} on the encoder {encoder}, from segmentation_models_pytorch.

Args:
    channels, classes: of the input and the output.
    size: (height, width) of the images; they are padded to what the encoder can halve.
    weights: ``none``; ``pretrained``: the encoder's, of ImageNet, from the library's hub; or the path of a .safetensors
        file, Petriscope's own or of such an encoder. What the weights were trained with is in the model's ``expects``.
"""
    return build


def _make(smp: ModuleType, arch: str, encoder: str, channels: int, classes: int, weights: str) -> nn.Module:
    def network(inputs: int) -> Any:
        try:
            return smp.create_model(arch, encoder, encoder_weights=None, in_channels=inputs, classes=classes)
        except (TypeError, ValueError, RuntimeError, AssertionError, KeyError, NotImplementedError) as error:
            raise RequestError(f"smp/{arch}-{encoder} cannot be made: {error}") from None

    if weights == "none":
        return SMPSegmenter(network(channels))
    label = f"smp/{arch}-{encoder}"
    statistics = None
    if weights == "pretrained":
        repository = _repository(smp, encoder)
        facts = json.loads(from_hub(repository, "config.json", label).read_text(encoding="utf-8"))
        statistics = (tuple(facts["mean"]), tuple(facts["std"]))
        file = read_weights(from_hub(repository, "model.safetensors", label))
    else:
        file = read_weights(weights)
    if any(key.startswith("network.") for key in file.tensors):
        model = SMPSegmenter(network(channels))
        load_weights(model, file, ["network.segmentation_head"])
        model.expects = file.statistics
        return model
    if encoder.startswith(TIMM_ENCODER):
        raise RequestError(
            f"model.weights: encoders {TIMM_ENCODER}... take only a model.safetensors of Petriscope's own"
        )
    inner = network(3)
    try:
        inner.encoder.load_state_dict(file.tensors)
    except (RuntimeError, KeyError) as error:
        raise RequestError(f"model.weights: {file.path} does not fit the encoder {encoder}: {error}") from None
    if channels != 3:
        inner.encoder.set_in_channels(channels, pretrained=True)
    model = SMPSegmenter(inner)
    model.expects = expected_statistics(statistics, channels) if statistics else None
    model.published = True
    return model


def _repository(smp: ModuleType, encoder: str) -> str:
    """Where an encoder's ImageNet weights are on the hub."""
    published = {} if encoder.startswith(TIMM_ENCODER) else smp.encoders.encoders[encoder]["pretrained_settings"]
    if "imagenet" not in published:
        raise RequestError(
            f"segmentation_models_pytorch has no ImageNet weights of {encoder} that can be fetched here; "
            "set model.weights=none or a .safetensors file"
        )
    return published["imagenet"]["repo_id"]
