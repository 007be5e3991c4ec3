"""A compact residual network whose prediction does not change when an image is rotated by quarter turns or mirrored.

Cells have no orientation. The eight symmetries of the square (four rotations, each with its mirror image) form the group
D4. Every layer computes eight versions of each feature, one per symmetry. Rotating the input rotates the features and
permutes the versions, and the last pooling, over places and versions, is invariant to both. So what an ordinary network has
to learn from augmented images holds by construction, with an eighth of the weights for the same width.

Cohen and Welling, 2016, "Group Equivariant Convolutional Networks", arXiv:1602.07576.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from petriscope.core.errors import RequestError
from petriscope.models.drop_path import drop_path

ORDER = 8  # of D4
Width = Annotated[int, Field(ge=8, multiple_of=8)]
Depth = Annotated[int, Field(ge=1, le=100)]


def act(element: int, maps: Tensor) -> Tensor:
    """Apply an element of D4 to the last two axes: mirror if element >= 4, then element % 4 quarter turns."""
    maps = maps.flip(-1) if element >= 4 else maps
    return torch.rot90(maps, element % 4, (-2, -1))


def _table() -> list[list[int]]:
    """table[i][j]: the element that applies j and then i."""
    mark = torch.arange(4, device="cpu").view(2, 2)  # read here, also where the model is built on the meta device
    known = {tuple(act(g, mark).flatten().tolist()): g for g in range(ORDER)}
    return [[known[tuple(act(i, act(j, mark)).flatten().tolist())] for j in range(ORDER)] for i in range(ORDER)]


class Lift(nn.Module):
    """Convolve with every symmetry of each kernel: [B, C, H, W] -> [B, 8 * out, H, W], version by version."""

    def __init__(self, channels: int, out: int, kernel: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out, channels, kernel, kernel))
        nn.init.normal_(self.weight, std=math.sqrt(2 / (channels * kernel**2)))
        self.padding = kernel // 2

    def forward(self, images: Tensor) -> Tensor:
        weight = torch.cat([act(g, self.weight) for g in range(ORDER)])
        return F.conv2d(images, weight.contiguous(memory_format=torch.channels_last), padding=self.padding)


class GroupConv(nn.Module):
    """Convolution over places and symmetries: [B, 8 * channels, H, W] -> [B, 8 * out, H, W].

    Version g of an output sees version h of the inputs through the kernel for g^-1 h, turned by g. The full kernel is
    one gather from the shared weights, so the work is that of an ordinary convolution of 8 times the width.
    """

    index: Tensor

    def __init__(self, channels: int, out: int, kernel: int = 3) -> None:
        super().__init__()
        self.channels, self.out, self.kernel = channels, out, kernel
        self.weight = nn.Parameter(torch.empty(out, ORDER * channels, kernel, kernel))
        nn.init.normal_(self.weight, std=math.sqrt(2 / (ORDER * channels * kernel**2)))
        table = _table()
        inverse = [row.index(0) for row in table]
        places = torch.arange(ORDER * kernel**2).view(ORDER, kernel, kernel)
        index = [act(g, places[[table[inverse[g]][h] for h in range(ORDER)]]) for g in range(ORDER)]
        self.register_buffer("index", torch.stack(index).flatten(), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        out, channels, k = self.out, self.channels, self.kernel
        shared = self.weight.view(out, ORDER, channels, k, k).transpose(1, 2).reshape(out * channels, ORDER * k * k)
        full = shared.index_select(1, self.index).view(out, channels, ORDER, ORDER, k, k)
        full = full.permute(2, 0, 3, 1, 4, 5).reshape(ORDER * out, ORDER * channels, k, k)
        return F.conv2d(features, full.contiguous(memory_format=torch.channels_last), padding=k // 2)


class GroupBatchNorm(nn.Module):
    """Batch norm whose weights and running statistics are shared by the eight versions of a feature.

    In training each version is normalized by its own batch statistics, which differ only by chance if rotated and
    mirrored images are equally likely; sharing these too would take three times as long. In evaluation the shared running
    statistics are used, and the layer is exactly equivariant.
    """

    mean: Tensor
    var: Tensor

    def __init__(self, channels: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))

    def forward(self, features: Tensor) -> Tensor:
        mean, var = self.mean.repeat(ORDER), self.var.repeat(ORDER)
        weight, bias = self.weight.repeat(ORDER), self.bias.repeat(ORDER)
        out = F.batch_norm(features, mean, var, weight, bias, self.training, self.momentum, self.eps)
        if self.training:
            with torch.no_grad():
                self.mean.copy_(mean.view(ORDER, -1).mean(0))
                self.var.copy_(var.view(ORDER, -1).mean(0))
        return out


class Block(nn.Module):
    """Two group convolutions, each after norm and ReLU, beside a shortcut. He et al., 2016, arXiv:1603.05027."""

    def __init__(self, channels: int, out: int, down: bool, drop: float) -> None:
        super().__init__()
        self.down, self.drop = down, drop
        self.norm1, self.conv1 = GroupBatchNorm(channels), GroupConv(channels, out)
        self.norm2, self.conv2 = GroupBatchNorm(out), GroupConv(out, out)
        self.shortcut = GroupConv(channels, out, 1) if channels != out else None

    def forward(self, features: Tensor) -> Tensor:
        if self.down:  # means of 2x2: a strided convolution would favor one corner, and break the symmetry
            features = F.avg_pool2d(features, 2)
        active = F.relu(self.norm1(features))
        kept = features if self.shortcut is None else self.shortcut(active)
        change = self.conv2(F.relu(self.norm2(self.conv1(active))))
        return kept + drop_path(change, self.drop, self.training)


class D4ResNet(nn.Module):
    """Residual network that is equivariant to quarter turns and mirroring; its logits are invariant to them.

    Exactly so for square images whose sides halve evenly, else approximately.

    Args:
        channels, classes: of the input and the output.
        size: (height, width).
        widths: channels of each stage, including the eight versions; the sides halve between stages.
        depths: blocks of each stage.
        dropout: before the logits.
        drop_path: chance that the change of the last block is left out for an image; for earlier blocks linearly less.
            Huang et al., 2016, arXiv:1603.09382.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        size: tuple[int, int],
        *,
        widths: tuple[Width, ...] = (64, 128, 256),
        depths: tuple[Depth, ...] = (2, 2, 2),
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ) -> None:
        super().__init__()
        if len(widths) != len(depths):
            raise RequestError(f"d4-resnet: {len(widths)} widths and {len(depths)} depths; give one of each per stage")
        if min(size) < 2 ** (len(widths) - 1):
            raise RequestError(
                f"d4-resnet: {len(widths)} stages need images of {2 ** (len(widths) - 1)} pixels or more"
            )
        inner = [width // ORDER for width in widths]
        self.stem = Lift(channels, inner[0])
        blocks: list[nn.Module] = []
        before, total = inner[0], sum(depths)
        for stage, (out, depth) in enumerate(zip(inner, depths, strict=True)):
            for position in range(depth):
                down = stage > 0 and position == 0
                blocks.append(Block(before, out, down, drop_path * (len(blocks) + 1) / total))
                before = out
        self.blocks = nn.Sequential(*blocks)
        self.norm = GroupBatchNorm(before)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * before, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Normalized float [B, C, H, W] -> logits [B, K]."""
        features = F.relu(self.norm(self.blocks(self.stem(images))))
        versions = features.mean((2, 3)).unflatten(1, (ORDER, -1))
        return self.head(self.dropout(torch.cat([versions.mean(1), versions.amax(1)], 1)))
