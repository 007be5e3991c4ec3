"""timm's networks: a few under their own names, and all others as ``timm/NAME``."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from petriscope.core.errors import RequestError, near
from petriscope.models.backbones import OPTIONS, Chance, Head, Side, Width, import_timm, make_backbone
from petriscope.models.norms import Norm
from petriscope.models.weights import Weights


def backbone(name: str, about: str, side: int | None = None) -> Callable[..., nn.Module]:
    """A model for the registry.

    Args:
        name: timm's.
        about: first line of its documentation.
        side: default of ``resize``, for networks that take images of one size only.
    """

    def build(
        channels: int,
        classes: int,
        size: tuple[int, int],
        *,
        weights: Weights = "none",
        norm: Norm = "batch",
        drop_rate: Chance = 0.0,
        drop_path_rate: Chance = 0.0,
        head: Head = "linear",
        hidden: tuple[Width, ...] = (256,),
        resize: Side | None = side,
    ) -> nn.Module:
        return make_backbone(
            name,
            channels,
            classes,
            size,
            weights=weights,
            norm=norm,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            head=head,
            hidden=hidden,
            resize=resize,
        )

    build.__doc__ = f"""{about}

timm's ``{name}``.

Args:
    channels, classes: of the input and the output.
    size: (height, width) of the images.
{OPTIONS}
"""
    return build


def any_backbone(name: str) -> Callable[..., nn.Module]:
    """The model ``timm/NAME``, with or without a tag of its weights (``resnet18.a1_in1k``).

    Raises:
        RequestError: timm has none of that name; the message names the near ones.
    """
    timm = import_timm()
    known, _, tag = name.partition(".")
    if not timm.is_model(known):
        close = near(known, timm.list_models())
        raise RequestError(
            f"no model 'timm/{name}'; " + (close if close.startswith("did") else "timm.list_models() names all")
        )
    tags = timm.list_models(f"{known}.*", pretrained=True)
    if tag and name not in tags:
        raise RequestError(f"timm has no weights {tag!r} of {known}; {near(name, tags)}")
    return backbone(name, f"{known}, from timm, the PyTorch Image Models of Ross Wightman, 2019.")


_CONVNEXT = 'Liu et al., 2022, "A ConvNet for the 2020s", arXiv:2201.03545.'

mobilenet_v3_large = backbone(
    "mobilenetv3_large_100", 'MobileNetV3-Large. Howard et al., 2019, "Searching for MobileNetV3", arXiv:1905.02244.'
)
convnext_tiny = backbone("convnext_tiny", f"ConvNeXt-Tiny. {_CONVNEXT}")
convnext_small = backbone("convnext_small", f"ConvNeXt-Small. {_CONVNEXT}")
convnext_base = backbone("convnext_base", f"ConvNeXt-Base. {_CONVNEXT}")
convnext_large = backbone("convnext_large", f"ConvNeXt-Large. {_CONVNEXT}")
deit_tiny = backbone(
    "deit_tiny_patch16_224",
    "DeiT-Tiny, patches of 16, images resized to 224. Touvron et al., 2021, "
    '"Training data-efficient image transformers and distillation through attention", arXiv:2012.12877.',
    side=224,
)
