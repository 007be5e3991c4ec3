"""Masks that cannot be right or are of no use: empty, of a single class, with unknown values, or used several times."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from petriscope.core.errors import DataError


@dataclass(frozen=True, eq=False)
class MaskFindings:
    """What is wrong with each mask.

    Args:
        empty: bool [N]; only background and ignored pixels.
        single_class: bool [N]; one class other than background fills all pixels that are not ignored.
        wrong_values: bool [N]; some values are neither a class nor ``ignore``.
        wrong_size: bool [N]; the size is not the given or the most common one.
        group: int64 [N]; masks with identical pixels have the same number, counted from 0 in the order of their first
            members; -1: the mask is unique, empty or of a single class.
    """

    empty: np.ndarray
    single_class: np.ndarray
    wrong_values: np.ndarray
    wrong_size: np.ndarray
    group: np.ndarray


def check_masks(
    masks: np.ndarray | Sequence[np.ndarray],
    classes: int,
    *,
    ignore: int | None = None,
    shape: tuple[int, int] | None = None,
) -> MaskFindings:
    """Check every mask.

    Args:
        masks: uint8 [N, H, W], or N arrays uint8 [H, W] of any sizes.
        classes: K; the values are 0 (background) to K - 1.
        ignore: the value of pixels that do not count, such as 255.
        shape: (height, width) of the images; None: the most common size of the masks.

    Raises:
        DataError: a mask is not uint8 [H, W], or ``classes`` is less than 1.
    """
    if classes < 1:
        raise DataError(f"masks need at least 1 class, not {classes} classes")
    for index, mask in enumerate(masks):
        if mask.dtype != np.uint8 or mask.ndim != 2:
            raise DataError(f"mask {index} must be uint8 [H, W], not {mask.dtype} {list(mask.shape)}")
    count = len(masks)
    has = np.zeros((count, 256), dtype=bool)  # which values each mask has
    for index, mask in enumerate(masks):
        has[index] = np.bincount(mask.ravel(), minlength=256) > 0
    known = np.arange(256) < classes
    counted = np.ones(256, dtype=bool)
    if ignore is not None:
        known[ignore], counted[ignore] = True, False
    seen = has[:, counted]
    values = seen.sum(1)
    empty = (values == 0) | ((values == 1) & has[:, 0] & counted[0])
    single = (values == 1) & ~empty
    shapes = [mask.shape for mask in masks]
    usual = shape or (max(sorted(set(shapes)), key=shapes.count) if shapes else (0, 0))
    return MaskFindings(
        empty,
        single,
        np.asarray((has & ~known).any(1)),
        np.array([each != usual for each in shapes], dtype=bool),
        _groups(masks, empty | single),
    )


def _groups(masks: np.ndarray | Sequence[np.ndarray], trivial: np.ndarray) -> np.ndarray:
    first: dict[bytes, int] = {}
    leader = np.full(len(masks), -1, dtype=np.int64)
    for index in np.flatnonzero(~trivial):
        mask = masks[int(index)]
        digest = hashlib.blake2b(repr(mask.shape).encode(), digest_size=16)
        digest.update(np.ascontiguousarray(mask).data)
        leader[index] = first.setdefault(digest.digest(), int(index))
    members = np.bincount(leader[leader >= 0], minlength=len(masks))
    number = np.cumsum(members > 1) - 1
    return np.where((leader >= 0) & (members[leader] > 1), number[leader], -1)
