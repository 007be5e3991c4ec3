"""Masks that cannot be right, or that teach nothing: empty ones, of one class, with unknown values, used twice."""

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
        empty: bool [N]: nothing but background and ignored pixels.
        single_class: bool [N]: one class, not background, fills all that is not ignored.
        wrong_values: bool [N]: a value that is neither a class nor ``ignore``.
        wrong_size: bool [N]: not of the shape asked for, or not of the most common one.
        group: int64 [N]: masks that are the same pixel for pixel share a number, counted from 0 by their first member; -1:
            its like is not in the set, or the mask is empty or of a single class, where likeness says nothing.
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
    """Look at every mask.

    Args:
        masks: uint8 [N, H, W], or N arrays uint8 [H, W] whose sizes may differ.
        classes: K; values are 0, the background, to K - 1.
        ignore: a value of pixels that are not counted, such as 255.
        shape: (height, width) of the images; None: the most common one of the masks.

    Raises:
        DataError: a mask is not uint8 [H, W], or ``classes`` is less than 1.
    """
    if classes < 1:
        raise DataError(f"masks of {classes} classes; there must be 1 or more")
    for index, mask in enumerate(masks):
        if mask.dtype != np.uint8 or mask.ndim != 2:
            raise DataError(f"mask {index} must be uint8 [H, W], not {mask.dtype} {list(mask.shape)}")
    count = len(masks)
    has = np.zeros((count, 256), dtype=bool)  # which values per mask has
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
