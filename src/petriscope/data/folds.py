"""Folds: parts of a set, each of which is held out once. Groups are not split between them."""

from __future__ import annotations

import warnings

import numpy as np

from petriscope.core.errors import DataError, listed
from petriscope.core.recipe import FoldsSection
from petriscope.data.imageset import ImageSet

NEVER = -1  # the fold of images that are never held out


def draw_folds(targets: np.ndarray, folds: int, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """The fold of each image, int64 [N]. Classes are spread over the folds as evenly as possible; groups are not split.

    Raises:
        DataError: fewer groups than folds, or groups and fewer images of each class than folds.
    """
    out = np.zeros(len(targets), dtype=np.int64)
    if groups is None:
        rng = np.random.default_rng(seed)
        dealt = 0
        for label in range(targets.max(initial=-1) + 1):
            members = rng.permutation(np.flatnonzero(targets == label))
            out[members] = (dealt + np.arange(len(members))) % folds
            dealt += len(members)
        return out
    from sklearn.model_selection import StratifiedGroupKFold

    if (count := len(np.unique(groups))) < folds:
        raise DataError(
            f"{count} groups cannot be spread over {folds} folds; use fewer folds, or images without groups"
        )
    if np.bincount(targets).max() < folds:
        raise DataError(f"no class has as many images as there are folds, {folds}; use fewer folds")
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a class is small is said elsewhere
        parts = list(splitter.split(out, targets, groups))
    for fold, (_, left_out) in enumerate(parts):
        out[left_out] = fold
    return out


def folds_of_units(
    targets: np.ndarray, units: np.ndarray, seed: int, folds: int, has: np.ndarray | None = None
) -> np.ndarray:
    """The same for units that are about equally large, each of which counts as its most frequent class. Images that
    `never_with_units` finds are `NEVER`.

    Args:
        targets: int64 [N].
        units: what stays together, such as the group of each image, [N] of any kind.
        has: which classes each image has, bool [N, K]; None: that of ``targets`` alone.
    """
    rng = np.random.default_rng([seed, 3])
    names, member = np.unique(units, return_inverse=True)
    label = np.zeros(len(names), dtype=np.int64)
    for unit in range(len(names)):
        label[unit] = np.bincount(targets[member == unit]).argmax()
    order = rng.permutation(len(names))
    order = order[np.argsort(label[order], kind="stable")]
    fold = np.empty(len(names), dtype=np.int64)
    fold[order] = np.arange(len(names)) % folds
    held = fold[member]
    has = targets[:, None] == np.unique(targets) if has is None else has
    return np.where(never_with_units(held, has, units), NEVER, held)


def never_held_out(fold: np.ndarray, has: np.ndarray) -> np.ndarray:
    """Which images have a class that lies in one fold alone, bool [N]: a network that did not learn from them would not know
    the class.

    Args:
        fold: of each image, int64 [N].
        has: which classes it has, bool [N, K].
    """
    out = np.zeros(len(fold), dtype=bool)
    for members in has.T:
        if len(held := np.unique(fold[members])) == 1 and held[0] != NEVER:
            out |= members
    return out


def never_with_units(fold: np.ndarray, has: np.ndarray, units: np.ndarray) -> np.ndarray:
    """The images of `never_held_out`, and all that stay together with them, bool [N]: a network that learns from a part of a
    group is not judged by the rest."""
    never = np.zeros(len(fold), dtype=bool)
    while (more := never_held_out(np.where(never, NEVER, fold), has) & ~never).any():
        never = np.isin(units, units[never | more])
    return never


def units_of(images: ImageSet) -> np.ndarray:
    """What stays together when images are held out, [N]: equal images, and groups, which are joined if they share an image.
    Joined groups are called as the first of them."""
    equal = np.array(images.digests())
    if images.groups is None:
        return equal
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    names, group = np.unique(images.groups, return_inverse=True)
    different, image = np.unique(equal, return_inverse=True)
    size = len(names) + len(different)
    graph = coo_array((np.ones(len(group), dtype=bool), (group, len(names) + image)), shape=(size, size))
    _, first, joined = np.unique(
        connected_components(graph, directed=False)[1][: len(names)], return_index=True, return_inverse=True
    )
    units: np.ndarray = names[first[joined]][group]
    return units


def folds_of_set(images: ImageSet, section: FoldsSection, seed: int) -> tuple[np.ndarray, list[str]]:
    """The fold of each image for cross-validation, from 0, int64 [N]; `NEVER` for images that `never_with_units` finds. What
    `units_of` finds stays together.

    Args:
        seed: of the first drawing; each repeat has another.

    Returns:
        the folds, and what they cannot show, a sentence each.

    Raises:
        DataError: there are not enough images or groups.
    """
    groups, units = images.groups, units_of(images)
    names = np.unique(units)
    what = "images" if groups is None else "groups"
    if len(names) < section.count:
        raise DataError(
            f"{len(names):,} {what} cannot be spread over {section.count} folds; use fewer folds, or more {what}"
        )
    together = None if groups is None and len(names) == len(images) else units
    fold = draw_folds(images.strata, section.count, (seed + section.repeat - 1) % 2**32, together)
    has = images.task.amounts(images.targets, len(images.classes)) > 0
    never = never_with_units(fold, has, units)
    notes = [] if groups is None else joined_groups(groups, units, "held out together")
    return np.where(never, NEVER, fold), notes + _lacking(images.classes, fold, has, units, section.count, what)


def joined_groups(groups: np.ndarray, units: np.ndarray, where: str) -> list[str]:
    """What is said of groups that are joined, because they share images.

    Args:
        where: what follows from that, such as ``held out together``.
    """
    others = np.unique(groups[groups != units])
    if not len(others):
        return []
    unit = units[groups == others[0]][0]
    count = len(np.union1d(others, units[groups != units]))
    return [f"{count:,} groups share equal images with others, such as {unit} and {others[0]}, and are {where}"]


def _lacking(
    classes: tuple[str, ...], fold: np.ndarray, has: np.ndarray, units: np.ndarray, count: int, what: str
) -> list[str]:
    """What is said of classes that not every fold has."""
    alone, few = list[str](), list[str]()
    for name, members in zip(classes, has.T, strict=True):
        if (there := len(np.unique(fold[members]))) == 1:
            alone.append(name)
        elif 0 < there < count and len(np.unique(units[members])) < count:
            few.append(name)
    one = what.removesuffix("s")
    out = []
    if alone:
        out.append(
            f"all images of {listed(alone)} are in one {one} or one fold: they are never held out, so nothing says how well "
            f"the model does on {'such images' if len(alone) == 1 else 'images of these classes'}"
        )
    if few:
        out.append(f"{listed(few)}: fewer {what} than folds, so some folds hold out none, and metrics say little of it")
    return out
