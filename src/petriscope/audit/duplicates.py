"""Exact and near duplicates: copies of an image, also re-encoded, resized, brightened, rotated or mirrored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from petriscope.audit.descriptors import (
    SYMMETRIES,
    check_images,
    chunks,
    invariants,
    low_frequencies,
    orient,
    orient_frequencies,
    possible_symmetries,
    shrink,
)
from petriscope.audit.projection_trees import TREES, near_pairs
from petriscope.core.drawing import fit_within
from petriscope.core.progress import progress
from petriscope.data.imageset import ImageSet

LONGEST = 32  # pixels on the longer side of the thumbnails that are compared
FREQUENCIES = 8
CANDIDATE = 0.8  # cosine similarity of two descriptors from which thumbnails are compared
NEAREST = 2  # candidates per image that are compared
ALIKE = 0.97  # share of the variance of an image that its duplicate must explain
LEAST_CONTRAST = 2.0  # gray levels (standard deviation); images that vary less show nothing to compare
ROUGHLY = 0.94  # the same on every second row and column; pairs below it are not compared in full
SHORTEST = 16  # pixels on the shorter side, below which thumbnails are always compared in full
BLOCK = 64  # pairs compared at once, so that they stay in the CPU cache
LEAST_VALID = 0.05  # share of the pixels that must be clipped in neither image
DARKEST, LIGHTEST = 4, 250  # gray levels beyond which pixels count as clipped


@dataclass(frozen=True, eq=False)
class Duplicates:
    """Which images show the same content.

    Args:
        group: int64 [N], the group of each image, or -1. Groups are numbered from 0 in the order of their first members.
        exact: bool [N]; another image of the group has the same pixels.
        similarity: float32 [N], 0 to 1: the share of the variance that the group's first member explains, after the best
            change of orientation, brightness and contrast; 1 for exact copies and first members, 0 outside groups.
        transform: object [N] of str, one of `SYMMETRIES`: how the image is oriented relative to the group's first member.
    """

    group: np.ndarray
    exact: np.ndarray
    similarity: np.ndarray
    transform: np.ndarray


def find_duplicates(images: ImageSet | np.ndarray, *, near: bool = True, quiet: bool = True) -> Duplicates:
    """Find images that are copies of one another.

    Candidates are nearest neighbors in a descriptor that is invariant to brightness, contrast, rotation and mirroring.
    Each candidate pair is then compared as thumbnails of at most 32 pixels. Time grows about linearly with the number of
    images, and the result is deterministic. Images that show nothing (constant ones) can only be exact duplicates.

    Args:
        images: uint8 [N, H, W, C], gray or RGB; a memory-mapped set is read in chunks.
        near: look for modified copies too, not only for identical pixels.
        quiet: show no progress.

    Raises:
        DataError: the images are not uint8 or uint16 [N, H, W, 1 to 16].
    """
    count = check_images(images)[0]
    forms, pairs = _small_forms(images, quiet) if near else None, np.zeros((0, 2), np.int64)
    first = _first_copies(images, forms)
    distinct = np.flatnonzero(first == np.arange(count))
    if forms is not None and len(distinct) > 1:
        pairs = _verified(_candidates(forms, distinct, quiet), forms, quiet)
    root = _join(first, pairs)
    sizes = np.bincount(root, minlength=count)
    grouped = sizes[root] > 1
    group = np.full(count, -1)
    group[grouped] = np.unique(root[grouped], return_inverse=True)[1]
    similarity = grouped.astype(np.float32)
    transform = np.full(count, "", dtype=object)
    changed = np.flatnonzero(grouped & (first != first[root]))
    if forms is not None and len(changed):
        to_first = np.stack([root[changed], changed], 1)
        _, symmetry = _best_symmetry(to_first, forms)
        similarity[changed] = _explained(to_first, symmetry, forms, quiet)
        transform[changed] = np.array(SYMMETRIES, dtype=object)[symmetry]
    return Duplicates(group, np.bincount(first, minlength=count)[first] > 1, similarity, transform)


@dataclass(frozen=True, eq=False)
class _Forms:
    """Thumbnails, uint8 [N, h, w, C]; low frequencies, float32 [N, k, k, C]; and the symmetries that are possible."""

    thumbnails: np.ndarray
    frequencies: np.ndarray
    symmetries: tuple[int, ...]


def _first_copies(images: ImageSet | np.ndarray, forms: _Forms | None) -> np.ndarray:
    """int64 [N]: for each image the first one with the same pixels. If there are thumbnails, only images with equal
    thumbnails are hashed in full."""
    count = len(images)
    if isinstance(images, np.ndarray):
        images = ImageSet(images, np.zeros(count, np.int64), ("",), np.arange(count).astype(str))
    first = np.arange(count)
    some = first if forms is None else _repeated([thumbnail.tobytes() for thumbnail in forms.thumbnails])
    seen: dict[bytes, int] = {}
    for place, digest in zip(some.tolist(), images.subset(some).digests(), strict=True):
        first[place] = seen.setdefault(digest, place)
    return first


def _repeated(values: list[bytes]) -> np.ndarray:
    """int64 [M]: positions of the values that occur more than once."""
    times = Counter(values)
    return np.array([place for place, value in enumerate(values) if times[value] > 1], dtype=np.int64)


def _small_forms(images: ImageSet | np.ndarray, quiet: bool) -> _Forms:
    count, height, width, channels = check_images(images)
    size = fit_within(height, width, LONGEST)
    thumbnails = np.empty((count, *size, channels), np.uint8)
    frequencies = np.empty((count, FREQUENCIES, FREQUENCIES, channels), np.float32)
    for at, block in chunks(images, "reading images", quiet):
        small = shrink(block, size)
        thumbnails[at] = np.rint(small)
        frequencies[at] = low_frequencies(small, FREQUENCIES)
    return _Forms(thumbnails, frequencies, possible_symmetries(height, width))


def _candidates(forms: _Forms, distinct: np.ndarray, quiet: bool) -> np.ndarray:
    """Pairs that may show the same content, int64 [P, 2]."""
    frequencies = forms.frequencies[distinct]
    pixels = int(np.prod(forms.thumbnails.shape[1:3]))
    shows = np.linalg.norm(frequencies.reshape(len(distinct), -1), axis=1) > LEAST_CONTRAST * pixels**0.5
    points = invariants(frequencies[shows], len(forms.symmetries) == len(SYMMETRIES))
    with progress("looking for duplicates", TREES, "rounds") as bar:
        pairs = near_pairs(points, CANDIDATE, keep=NEAREST, report=None if quiet else lambda _: bar.advance())
    return distinct[shows][pairs]


def _verified(candidates: np.ndarray, forms: _Forms, quiet: bool) -> np.ndarray:
    """The pairs that show the same content, int64 [Q, 2]."""
    cosine, symmetry = _best_symmetry(candidates, forms)
    chosen = (cosine >= CANDIDATE) & _nearest(candidates, cosine, len(forms.thumbnails))
    same = np.zeros(len(candidates), bool)
    same[chosen] = _explained(candidates[chosen], symmetry[chosen], forms, quiet) >= ALIKE
    # The nearest neighbors of many copies of one image form several clusters, so pairs that link two clusters are compared too.
    cluster = _join(np.arange(len(forms.thumbnails)), candidates[same])
    in_cluster = np.bincount(cluster, minlength=len(cluster))[cluster] > 1
    one, other = candidates.T
    links = (cosine >= CANDIDATE) & ~chosen & in_cluster[one] & in_cluster[other] & (cluster[one] != cluster[other])
    same[links] = _explained(candidates[links], symmetry[links], forms, quiet) >= ALIKE
    return candidates[same]


def _best_symmetry(pairs: np.ndarray, forms: _Forms) -> tuple[np.ndarray, np.ndarray]:
    """The largest cosine similarity of each pair under all symmetries of its first image, and that symmetry, [P] each."""
    cosine, symmetry = np.zeros(len(pairs), np.float32), np.zeros(len(pairs), np.int64)
    length = np.maximum(np.linalg.norm(forms.frequencies.reshape(len(forms.frequencies), -1), axis=1), 1e-6)
    known = np.array(forms.symmetries)
    # A symmetry swaps the axes or not, and changes signs, so the products are computed only once for all eight.
    ones = np.ones((1, FREQUENCIES, FREQUENCIES, 1), np.float32)
    signs = np.stack([orient_frequencies(ones, each).reshape(-1) for each in forms.symmetries], axis=1)
    for start in range(0, len(pairs), BLOCK):
        at = slice(start, start + BLOCK)
        one, other = (forms.frequencies[place] for place in pairs[at].T)
        upright = np.einsum("nuvc,nuvc->nuv", one, other).reshape(len(one), -1)
        exchanged = np.einsum("nvuc,nuvc->nuv", one, other).reshape(len(one), -1)
        fits = np.where(known % 2, exchanged @ signs, upright @ signs)
        cosine[at] = fits.max(1) / (length[pairs[at, 0]] * length[pairs[at, 1]])
        symmetry[at] = known[fits.argmax(1)]
    return cosine, symmetry


def _nearest(pairs: np.ndarray, cosine: np.ndarray, count: int) -> np.ndarray:
    """bool [P]: whether the pair is among the `NEAREST` nearest of one of its images."""
    order = np.argsort(-cosine, kind="stable")
    chosen = np.zeros(len(pairs), bool)
    for column in pairs.T:
        by_image = order[np.argsort(column[order], kind="stable")]
        starts = np.searchsorted(column[by_image], np.arange(count))
        rank = np.arange(len(pairs)) - starts[column[by_image]]
        chosen[by_image[rank < NEAREST]] = True
    return chosen


def _explained(pairs: np.ndarray, symmetry: np.ndarray, forms: _Forms, quiet: bool) -> np.ndarray:
    """`explained` for each pair after its symmetry, float32 [P]; values below `ROUGHLY` are estimates."""
    with progress("comparing images", len(pairs), "pairs") as bar:
        report = (lambda _: None) if quiet else bar.advance
        if min(forms.thumbnails.shape[1:3]) < SHORTEST:
            return _compared(pairs, symmetry, forms, 1, report)
        share = _compared(pairs, symmetry, forms, 2, report)
        alike = share >= ROUGHLY
        share[alike] = _compared(pairs[alike], symmetry[alike], forms, 1, lambda _: None)
    return share


def _compared(
    pairs: np.ndarray, symmetry: np.ndarray, forms: _Forms, every: int, report: Callable[[int], None]
) -> np.ndarray:
    """`explained` for each pair, float32 [P], computed on one in ``every`` rows and columns of the thumbnails."""
    share = np.zeros(len(pairs), np.float32)
    for each in np.unique(symmetry):
        chosen = np.flatnonzero(symmetry == each)
        for start in range(0, len(chosen), BLOCK):
            some = chosen[start : start + BLOCK]
            one, other = orient(forms.thumbnails[pairs[some, 0]], each), forms.thumbnails[pairs[some, 1]]
            share[some] = explained(*(shown[:, ::every, ::every].astype(np.float32) for shown in (one, other)))
            report(len(some))
    return share


def explained(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The share of the variance that two images have in common after the best change of contrast and brightness.

    Both are slightly blurred first, to suppress noise. A pixel that is clipped in one image only says that the other is at
    least as dark or as bright there.

    Args:
        one, other: float32 [P, H, W, C] of 0 to 255.

    Returns:
        float32 [P], 0 to 1: 1 minus the variance of the difference over the total variance; 0 if too few pixels can be
        compared, or if one image is a negative of the other.
    """
    one, other = (np.ascontiguousarray(each.transpose(0, 3, 1, 2)) for each in (one, other))
    clipped_one, clipped_other = _clipped(one), _clipped(other)
    valid = ((clipped_one | clipped_other) == 0).astype(np.float32)
    weight = np.maximum(valid.sum((2, 3)), 1)
    one = one - (_products(one, valid) / weight)[:, :, None, None]
    other = other - (_products(other, valid) / weight)[:, :, None, None]
    shown_one, shown_other = one * valid, other * valid
    cross, power_one, power_other = (
        _products(*both).sum(1)
        for both in ((shown_one, shown_other), (shown_one, shown_one), (shown_other, shown_other))
    )
    gain = np.sqrt(np.maximum(power_other, 1e-6) / np.maximum(power_one, 1e-6))[:, None, None, None]
    difference = other - gain * one
    lighter = (clipped_other < 0) | (clipped_one > 0)  # the other may be lighter than expected
    darker = (clipped_other > 0) | (clipped_one < 0)
    excused = (lighter & (difference > 0)) | (darker & (difference < 0)) | (lighter & darker)
    np.copyto(difference, 0, where=excused | ((clipped_one != 0) & (clipped_one == clipped_other)))
    total = _power(shown_other) + _power(gain * shown_one)
    share = np.clip(1 - _power(difference) / np.maximum(total, 1e-6), 0, 1)
    enough = valid.mean((1, 2, 3)) > LEAST_VALID
    return np.where(enough & (cross > 0), share, 0).astype(np.float32)


def _products(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Sums of products over the pixels: [P, C, H, W], [P, C, H, W] -> [P, C]."""
    shape = (*one.shape[:2], one.shape[2] * one.shape[3])
    return np.einsum("ncp,ncp->nc", one.reshape(shape), other.reshape(shape))


def _power(images: np.ndarray) -> np.ndarray:
    """Sum of squares of each image after an unnormalized 3 x 3 blur, [P, C, H, W] -> [P]."""
    blurred = images
    if blurred.shape[2] > 2:
        blurred = blurred[:, :, :-2] + 2 * blurred[:, :, 1:-1] + blurred[:, :, 2:]
    if blurred.shape[3] > 2:
        blurred = blurred[..., :-2] + 2 * blurred[..., 1:-1] + blurred[..., 2:]
    return _products(blurred, blurred).sum(1)


def _clipped(values: np.ndarray) -> np.ndarray:
    """1 where pixels are clipped to white, -1 where they are clipped to black, otherwise 0."""
    return (values > LIGHTEST).astype(np.int8) - (values < DARKEST)


def _join(first: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """The smallest index in the connected component of each image, int64 [N]."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(first)
    if not count:
        return np.zeros(0, np.int64)
    links = np.concatenate([np.stack([np.arange(count), first], 1), pairs])
    graph = coo_array((np.ones(len(links), bool), (links[:, 0], links[:, 1])), shape=(count, count))
    label = connected_components(graph, directed=False)[1]
    smallest = np.full(label.max() + 1, count)
    np.minimum.at(smallest, label, np.arange(count))
    return smallest[label]
