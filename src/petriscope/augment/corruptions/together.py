"""Two or three corruptions at once, each of another family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from petriscope.augment.corruptions import CORRUPTIONS, Corruption
from petriscope.augment.corruptions.draws import Draws, image_keys
from petriscope.augment.families import FAMILIES, Family, family_of
from petriscope.core.channels import FULL, Names, groups_of
from petriscope.core.device import upload
from petriscope.core.errors import RequestError

STRONGEST = 3  # severity within a combination; three at severity 5 leave little to recognize, for people too


@dataclass(frozen=True)
class Together:
    """Which corruptions each of B images has, and how severe they are.

    Args:
        names: P corruptions, in the order in which they are applied.
        severity: float32 [B, P], on the CPU; 0: the image does not have it.
        keys: int64 [B, P], on the CPU, of each corruption's own draws.
    """

    names: tuple[str, ...]
    severity: Tensor
    keys: Tensor

    def images(self, images: Tensor, channels: Names = ()) -> Tensor:
        """Corrupt images, uint8 or uint16 [B, H, W, C] -> the same. Values are rounded once, at the end.

        Args:
            channels: names; empty: gray or RGB.
        """
        full = FULL[8 * images.element_size()]
        pixels = images.permute(0, 3, 1, 2).contiguous().float().div_(full)
        for place, name in enumerate(self.names):
            rows, severity, keys, here = self._having(place, images.device)
            if len(rows):
                changed = CORRUPTIONS[name](pixels.index_select(0, here), severity, keys, groups_of(channels))
                pixels.index_copy_(0, here, changed.contiguous())
        return pixels.mul_(full).round_().to(images.dtype).permute(0, 2, 3, 1).contiguous()

    def masks(self, masks: Tensor) -> Tensor:
        """Move masks, uint8 [B, H, W], as `images` moves their images."""
        masks = masks.clone()
        for place, name in enumerate(self.names):
            rows, severity, keys, here = self._having(place, masks.device)
            if len(rows) and CORRUPTIONS[name].moves is not None:
                masks.index_copy_(0, here, CORRUPTIONS[name].follow(masks.index_select(0, here), severity, keys))
        return masks

    def _having(self, place: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The images that have a corruption: their rows and severities on the CPU, keys and rows on the device."""
        rows = (self.severity[:, place] > 0).nonzero().squeeze(1)
        return rows, self.severity[rows, place], upload(self.keys[rows, place], device), upload(rows, device)


def draw_together(
    indices: Tensor,
    count: int,
    pool: Sequence[Corruption],
    *,
    family: Family | None = None,
    seed: int = 0,
    part: int = 0,
) -> Together:
    """Draw ``count`` corruptions per image, each of another family, and a whole severity from 1 to `STRONGEST` for each.
    An image's draws are a function of its index, ``count``, ``family``, ``seed`` and ``part``, never of the batch.

    Args:
        indices: of the images in their set, int64 [B], on the CPU.
        count: of corruptions per image.
        pool: the corruptions to draw from.
        family: every image has one of this family; None: any families.
        seed, part: of the draws; a part is another draw for the same images.

    Raises:
        RequestError: the pool has fewer families, or none of ``family``.
    """
    by_family = {each: [c for c in pool if family_of(c.name) == each] for each in FAMILIES}
    families = [each for each in FAMILIES if by_family[each]]
    if family is not None and family not in families:
        raise RequestError(f"no corruption of the family {family} applies to these images")
    if count > len(families):
        raise RequestError(f"{count} corruptions of different families cannot be drawn from {len(families)} families")
    names = tuple(c.name for each in families for c in by_family[each])
    draws = Draws(image_keys(indices, f"together {count} {family} {part}", seed))
    lots = draws.uniform(len(families))
    if family is not None:
        lots[:, families.index(family)] = -1  # the lowest lots are taken
    taken = torch.zeros_like(lots).scatter_(1, lots.argsort(dim=1, stable=True)[:, :count], 1.0)
    which, severity = draws.uniform(len(families)), draws.uniform(len(families)).mul_(STRONGEST).floor_().add_(1)
    out = []
    for place, each in enumerate(families):
        member = (which[:, place] * len(by_family[each])).long()
        for number in range(len(by_family[each])):
            out.append(taken[:, place] * severity[:, place] * (member == number))
    keys = torch.stack([image_keys(indices, f"{name} {part}", seed) for name in names], 1)
    return Together(names, torch.stack(out, 1), keys)
