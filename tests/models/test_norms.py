"""Group norm in place of batch norm: an image is normalized by itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from petriscope.core.errors import RequestError
from petriscope.core.recipe import Part
from petriscope.models import build_model
from petriscope.models.norms import norm, with_norm

MODELS = ("simple-cnn", "custom-cnn", "se-cnn", "resnet18", "mobilenet-v3-large", "timm/tf_efficientnet_lite0")
SEMLP = {"head": "se-mlp", "hidden": [16]}
LEVIT = {"resize": 224}  # with batch norms of tokens


def make(name: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return build_model(Part(name=name, **options), 3, (32, 32, 3))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in MODELS), ("resnet18", SEMLP), ("timm/levit_128s", LEVIT)]
)
def test_an_image_is_predicted_alike_whatever_is_beside_it(name: str, options: dict[str, object]) -> None:
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))

    def depends_on_others(kind: str) -> bool:
        model = make(name, norm=kind, **options).train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.eval()
        with torch.no_grad():
            together, others = model(images), model(torch.cat([images[:1], -images[1:]]))
        return not torch.allclose(together[0], others[0], atol=1e-4)

    assert depends_on_others("batch")
    assert not depends_on_others("group")
    kept = [key for key in make(name, norm="group", **options).state_dict() if "running" in key]
    assert not kept, "statistics of the training images"


def test_norms_that_cannot_be_replaced_are_refused() -> None:
    model = nn.Sequential(nn.Conv3d(1, 4, 1), nn.BatchNorm3d(4))
    with_norm(model, "batch")
    with pytest.raises(RequestError, match=r"model\.norm=group: 1 is a BatchNorm3d, which predicts with statistics"):
        with_norm(model, "group")


def test_scales_are_kept() -> None:
    """timm's last norm of a block has the scale 0, so that the block starts as its shortcut."""
    zero = [(module.weight == 0).all() for module in make("resnet18").modules() if isinstance(module, nn.BatchNorm2d)]
    kept = [
        (module.weight == 0).all()
        for module in make("resnet18", norm="group").modules()
        if isinstance(module, nn.GroupNorm)
    ]
    assert any(zero) and zero == kept


@pytest.mark.parametrize("channels", [1, 3, 7, 8, 20, 64])
def test_any_number_of_channels_has_groups(channels: int) -> None:
    out = norm("group", channels)(torch.randn(2, channels, 4, 4))
    assert out.shape == (2, channels, 4, 4) and out.isfinite().all()


def test_published_weights_are_of_batch_norms() -> None:
    with pytest.raises(RequestError, match=r"model\.norm=batch"):
        make("timm/tf_efficientnet_lite0", norm="group", weights="pretrained")
