"""Planted images: one image that was copied over many others, or blended into them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from petriscope.audit.descriptors import as_bytes, check_images, chunks
from petriscope.audit.spectra import Flattening, Spectra
from petriscope.core.progress import progress
from petriscope.data.imageset import ImageSet

SAMPLE = 30_000  # images in which plants are searched; all images are then compared with those found
GUESSES = 2048  # images that are tried as members of a plant
BATCH = 64  # guesses that are followed at once
ROUNDS = 8  # searches; each leaves out the plants found before
FOLLOWED = 4  # batches of guesses per round
STEPS = 4  # iterations that grow a group by its mean
LEAST_MEMBERS = 8
OUTSTANDING = 6.0  # robust standard deviations by which a member's similarity to a guess exceeds the median
# On the scale of the next constants other images are around 0, and the median member is 1.
SPREAD = 0.15  # robust standard deviation of the others
NEAR = (0.3, 0.5)  # a gap in which no images may lie
STRAY = 0.1  # exceptions that are allowed all the same, relative to the number of members
KIN = 0.3  # cosine similarity from which two plants count as one image, shifted
SHOWN = 400  # images from which a planted image is estimated for the report


@dataclass(frozen=True, eq=False)
class Planted:
    """Which images show a planted image.

    Args:
        group: int64 [N], the group of each image, or -1. Groups are numbered from 0 in the order of their first members.
        score: float32 [N], 0 to 1: how strongly the common image is visible (cosine similarity with it); 0 outside groups.
        templates: uint8 [G, H, W, C], an estimate of each planted image.
    """

    group: np.ndarray
    score: np.ndarray
    templates: np.ndarray


def find_planted(images: ImageSet | np.ndarray, *, quiet: bool = True) -> Planted:
    """Find images that were planted many times, alone or blended into other images.

    The spectrum of each image is whitened by the statistics of the set, so that content shared by a few images stands out
    from content common to all. Random images serve as guesses. The images that are exceptionally similar to a guess give
    a mean, from which the group is grown. Cells of one class form groups too, but cells have all orientations and all
    degrees of similarity, so other images come close to the mean of such a group, rotated or not. A plant has a single
    orientation, and a gap to all other images.

    Plants with at least eight copies that make up about 0.2 % of the set are found at opacities of about 0.3 and more, if
    clearly more than half of the images are genuine. Time grows linearly with the number of images, and the result is
    deterministic.

    Args:
        images: uint8 [N, H, W, C], gray or RGB; a memory-mapped set is read in chunks.
        quiet: show no progress.

    Raises:
        DataError: the images are not uint8 or uint16 [N, H, W, 1 to 16].
    """
    count, height, width, channels = check_images(images)
    group, score = np.full(count, -1), np.zeros(count, np.float32)
    found: list[np.ndarray] = []
    if count >= 2 * LEAST_MEMBERS:
        spectra = Spectra(height, width, channels)
        rng = np.random.default_rng(0)
        sample = np.sort(rng.permutation(count)[:SAMPLE])
        raw, shows = spectra.read(images, sample, quiet)
        sample, raw = sample[shows], raw[shows]
        found = _search(raw, spectra, rng, quiet)
    if not found:
        return Planted(group, score, np.zeros((0, height, width, channels), np.uint8))
    common = _Common(raw, found, spectra)
    closest, score = _assign(images, common, spectra, sample, quiet)
    kind = np.where(closest >= 0, common.kin[closest], -1)
    first = {int(k): int(np.flatnonzero(kind == k)[0]) for k in np.unique(kind[kind >= 0])}
    for number, k in enumerate(sorted(first, key=first.__getitem__)):
        group[kind == k] = number
    return Planted(group, score, _draw(images, group, rng))


def _search(raw: np.ndarray, spectra: Spectra, rng: np.random.Generator, quiet: bool) -> list[np.ndarray]:
    """The members of each plant, as indices into ``raw``."""
    found: list[np.ndarray] = []
    left = np.arange(len(raw))
    with progress("looking for planted images", ROUNDS, "rounds") as bar:
        for _ in range(ROUNDS):
            if len(left) < 2 * LEAST_MEMBERS:
                break
            flatten = Flattening(raw[left])
            if flatten.uniform:
                break
            groups = [left[members] for members in _plants(flatten(raw[left]), spectra, rng)]
            genuine = np.setdiff1d(left, np.concatenate([*groups, left[:0]]))
            if not groups or len(genuine) < len(raw) / 4:  # what most images show was not planted
                break
            found, left = found + groups, genuine
            if not quiet:
                bar.advance()
    return found


def _plants(flat: np.ndarray, spectra: Spectra, rng: np.random.Generator) -> list[np.ndarray]:
    """The members of each plant that guesses lead to, as indices into ``flat``. An image is in at most one plant."""
    guesses, threshold = _promising(flat, rng.permutation(len(flat))[:GUESSES])
    looked_at = np.zeros(len(flat), bool)
    found: list[np.ndarray] = []
    for _ in range(FOLLOWED):
        chosen: list[int] = []
        for place in np.flatnonzero(~looked_at[guesses]).tolist():
            if len(chosen) == BATCH:
                break
            if not (flat[guesses[chosen]] @ flat[guesses[place]] > threshold[place]).any():
                chosen.append(place)
        if not chosen:
            break
        looked_at[guesses[chosen]] = True
        groups = _grow(flat, guesses[chosen])
        taken = np.zeros(len(flat), bool)
        for members in groups[_are_plants(flat, groups, spectra)]:
            fresh = members & ~taken  # several guesses may lead to the same plant
            taken |= members
            if fresh.sum() >= max(LEAST_MEMBERS, 0.5 * members.sum()):
                found.append(np.flatnonzero(fresh))
        looked_at |= groups.any(0)
        if found:
            break  # other plants stand out more once these are removed
    return found


def _are_plants(flat: np.ndarray, groups: np.ndarray, spectra: Spectra) -> np.ndarray:
    """Whether each group, bool [J, n], is a plant: no other image is close to its common image, rotated or not."""
    sizes = groups.sum(1)
    sums = _sums(flat, groups)
    closeness, (middle, typical) = _closeness(flat, groups, sums)
    turned = _turned_closeness(flat, sums, sizes, middle, typical, spectra)
    near = ((closeness > NEAR[0]) & (closeness < NEAR[1])).sum(1)
    misplaced = np.where(groups, closeness <= NEAR[0], closeness >= NEAR[1]).sum(1)
    near_turned = ((turned > NEAR[1]) & ~groups).sum(1)
    spread = 1.4826 * np.median(np.abs(closeness), axis=1)
    most = STRAY * sizes
    strays = (near <= most) & (near_turned <= most) & (misplaced <= most)
    return (sizes >= LEAST_MEMBERS) & (spread <= SPREAD) & strays


def _turned_closeness(
    flat: np.ndarray, sums: np.ndarray, sizes: np.ndarray, middle: np.ndarray, typical: np.ndarray, spectra: Spectra
) -> np.ndarray:
    """How close images are to the rotated or mirrored common image of each group, float32 [J, n].

    Symmetries that hardly change the common image are left out; -1 if none is left.
    """
    out = np.full((len(sums), len(flat)), -1, np.float32)
    for symmetry in spectra.symmetries:
        turned = spectra.turned(sums, symmetry)
        similar = (turned * sums).sum(1) > 0.5 * np.maximum((sums * sums).sum(1), 1e-6)
        alike = turned @ flat.T / np.maximum(sizes, 1)[:, None]
        alike -= np.median(alike[:, :: max(1, len(flat) // 4096)], axis=1, keepdims=True)
        alike /= np.maximum(typical - middle, 1e-3)[:, None]
        out = np.where(similar[:, None], out, np.maximum(out, alike))
    return out


def _promising(flat: np.ndarray, guesses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The guesses to which enough images are similar, the most frequent first, and their thresholds of similarity."""
    crowd, threshold = np.zeros(len(guesses), np.int64), np.zeros(len(guesses), np.float32)
    for start in range(0, len(guesses), BATCH):
        at = slice(start, start + BATCH)
        cosine = flat @ flat[guesses[at]].T
        threshold[at] = _outstanding(cosine)
        crowd[at] = (cosine > threshold[at]).sum(0)
    order = np.argsort(-crowd, kind="stable")[: int((crowd >= LEAST_MEMBERS).sum())]
    return guesses[order], threshold[order]


def _outstanding(cosine: np.ndarray) -> np.ndarray:
    """For each column the value from which rows stand out, [J]."""
    some = cosine[:: max(1, len(cosine) // 2048)]
    middle = np.median(some, axis=0)
    return middle + OUTSTANDING * 1.4826 * np.median(np.abs(some - middle), axis=0)


def _grow(flat: np.ndarray, guesses: np.ndarray) -> np.ndarray:
    """Grow groups from guesses, indices [J]: their members, bool [J, n]."""
    cosine = flat @ flat[guesses].T
    members = (cosine > _outstanding(cosine)).T
    for _ in range(STEPS):
        closeness, _ = _closeness(flat, members, _sums(flat, members))
        spread = 1.4826 * np.median(np.abs(closeness), axis=1, keepdims=True)
        members = closeness > np.clip(5 * spread, 0.4, 0.6)
    return members


def _closeness(
    flat: np.ndarray, members: np.ndarray, sums: np.ndarray
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """How close images are to the common image of each group: 0 for other images, 1 for the median member.

    Args:
        flat: float32 [n, D], of norm 1.
        members: bool [J, n]. Each member is compared with the other members only, because in a small group it would match
            itself.
        sums: float32 [J, D], sums over the members.

    Returns:
        The closeness, float32 [J, n], and the mean cosine similarities that are 0 and 1 on its scale, [J] each.
    """
    alike = _alike(flat, members, sums, members.sum(1))
    middle = np.median(alike[:, :: max(1, len(flat) // 4096)], axis=1)
    typical = np.array([np.median(a[m]) if m.any() else np.inf for a, m in zip(alike, members, strict=True)])
    typical = typical.astype(np.float32)
    return _scaled(alike, middle, typical), (middle, typical)


def _alike(flat: np.ndarray, members: np.ndarray, sums: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The mean cosine similarity of each image with the other members of each group, float32 [J, n]."""
    return ((sums @ flat.T - members) / np.maximum(sizes[:, None] - members, 1)).astype(np.float32)


def _scaled(alike: np.ndarray, middle: np.ndarray, typical: np.ndarray) -> np.ndarray:
    return (alike - middle[:, None]) / np.maximum(typical - middle, 1e-3)[:, None]


def _sums(flat: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Sums over the members of each group, float32 [J, D]."""
    from scipy.sparse import csr_array

    return csr_array(members.astype(np.float32)) @ flat


class _Common:
    """The common images of all plants that were found, refined together and whitened by the genuine images only.

    Attributes:
        members: bool [J, n], for the images of the sample.
        threshold: closeness from which an image belongs to a plant, [J]: halfway between other images and members.
        kin: int64 [J]; plants with the same number are the same image, shifted.
    """

    def __init__(self, raw: np.ndarray, found: list[np.ndarray], spectra: Spectra) -> None:
        self.members = np.zeros((len(found), len(raw)), bool)
        for row, plant in zip(self.members, found, strict=True):
            row[plant] = True
        genuine = ~self.members.any(0)
        self.flatten = Flattening(raw[genuine])
        flat = self.flatten(raw)
        for _ in range(2):
            self.sizes = self.members.sum(1)
            self.sums = _sums(flat, self.members)
            closeness, (self.middle, self.typical) = _closeness(flat, self.members, self.sums)
            genuine = ~self.members.any(0)
            turned = _turned_closeness(flat[genuine], self.sums, self.sizes, self.middle, self.typical, spectra)
            highest = np.sort(turned, axis=1)[:, -1 - int(genuine.sum() * 5e-4)].clip(0)
            lowest = np.array(
                [np.quantile(c[m], 0.01) if m.any() else 1 for c, m in zip(closeness, self.members, strict=True)]
            )
            self.threshold = ((highest + lowest) / 2).clip(0.25, 0.65)
            self.members = _closest(closeness, self.threshold) == np.arange(len(found))[:, None]
        self.sizes, self.sums = self.members.sum(1), _sums(flat, self.members)
        power = (np.square(self.sums).sum(1) - self.sizes) / np.maximum(self.sizes * (self.sizes - 1), 1)
        self.strength = np.sqrt(np.maximum(power, 1e-6))  # norm of the common part of members of norm 1
        self.kin = self._kin()

    def _kin(self) -> np.ndarray:
        from scipy.sparse.csgraph import connected_components

        means = self.sums / np.maximum(self.sizes, 1)[:, None]
        return connected_components(means @ means.T > KIN * np.outer(self.strength, self.strength), directed=False)[1]

    def alike(self, flat: np.ndarray, own: np.ndarray) -> np.ndarray:
        """See `_alike`, float32 [J, n]. ``own``: bool [J, n], the images that are members themselves."""
        return _alike(flat, own, self.sums, self.sizes)


def _closest(closeness: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    """The group that each image belongs to, int64 [n], or -1. ``closeness``: [J, n]."""
    belongs = closeness >= threshold[:, None]
    return np.where(belongs.any(0), np.where(belongs, closeness, -np.inf).argmax(0), -1)


def _assign(
    images: ImageSet | np.ndarray, common: _Common, spectra: Spectra, sample: np.ndarray, quiet: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The plant that each image shows, int64 [N], or -1, and how strongly, float32 [N]."""
    count = len(images)
    closest, score = np.full(count, -1), np.zeros(count, np.float32)
    place = np.full(count, -1)
    place[sample] = np.arange(len(sample))
    for at, block in chunks(images, "looking at every image", quiet):
        raw = spectra.of(block)
        own = common.members[:, place[at]] & (place[at] >= 0)
        alike = common.alike(common.flatten(raw), own)
        closeness = _scaled(alike, common.middle, common.typical)
        closeness[:, ~spectra.show(raw)] = -1
        closest[at] = _closest(closeness, common.threshold)
        strength = alike[closest[at], np.arange(len(block))] / common.strength[closest[at]]
        score[at] = np.where(closest[at] >= 0, strength.clip(0, 1), 0)
    return closest, score


def _draw(images: ImageSet | np.ndarray, group: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Estimate the planted images, uint8 [G, H, W, C].

    Blends with opacity a have the mean (1 - a) x genuine + a x planted, and (1 - a) times the genuine images' standard
    deviation.
    """

    def some(of: np.ndarray) -> np.ndarray:
        chosen = np.sort(rng.permutation(np.flatnonzero(of))[:SHOWN])
        taken = images.take(chosen) if isinstance(images, ImageSet) else images[chosen]
        return as_bytes(taken).astype(np.float32)

    genuine = some(group < 0)
    drawn = []
    for number in range(group.max() + 1):
        members = some(group == number)
        left = np.median(members.std(0) / np.maximum(genuine.std(0), 1))
        opacity = np.clip(1 - left, 0.2, 1)
        planted = genuine.mean(0) + (members.mean(0) - genuine.mean(0)) / opacity
        drawn.append(np.rint(planted).clip(0, 255).astype(np.uint8))
    return np.stack(drawn)
