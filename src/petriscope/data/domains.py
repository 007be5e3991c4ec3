"""Several sources in one data set, each a domain: images of other microscopes, sites or stains."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from petriscope.core.channels import in_words, is_plain
from petriscope.core.errors import DataError, RequestError, listed, near
from petriscope.core.names import look_alike
from petriscope.core.recipe import DataSection
from petriscope.core.scale import Scale
from petriscope.data import cache
from petriscope.data.aligned import align
from petriscope.data.imageset import CHUNK, SPLITS, ImageSet
from petriscope.data.membership import Change, Membership, pack
from petriscope.data.omissions import LeftOutSentence, Omission
from petriscope.data.recognition import join_sets
from petriscope.data.rescale import Field, describe_factors, rescale, set_factors
from petriscope.data.sources.labels import sort_names
from petriscope.data.sources.mask_values import BINARY_NAMES

DOMAIN = "domain"

Parts = Mapping[str, Mapping[str, ImageSet]]  # the image sets of each domain, by split
Factors = Mapping[str, Mapping[str, np.ndarray]]  # how these are scaled


def share_pixels(parts: Parts, memory: str, factors: Factors | None = None) -> dict[str, dict[str, ImageSet]]:
    """The same image sets as views of one array, in memory or mapped from the cache.

    Args:
        memory: as ``data.memory``. Images that are mapped from disk stay so.
        factors: how images are scaled, float64 [N, 2] for each set, see `petriscope.data.rescale.rescale`; None: not at all. They
            keep their digests.

    Raises:
        DataError: the domains have images of different shapes, or there is no room for all images.
    """
    _check_alike({name: next(iter(sets.values())) for name, sets in parts.items()})
    every = [part for sets in parts.values() for part in sets.values()]
    scales = [None if factors is None else factors[name][split] for name, sets in parts.items() for split in sets]
    scales = [None if each is None or (each == 1).all() else each for each in scales]
    if all(each is None for each in scales) and all(
        part.pixels is every[0].pixels and part.rows is not None for part in every
    ):
        return {name: dict(sets) for name, sets in parts.items()}
    shape = (sum(map(len, every)), *every[0].shape)
    hashes = np.concatenate([pack(part.digests()) for part in every])
    what = "all sources together" if len(parts) > 1 else "the scaled images"
    dtype = every[0].pixels.dtype
    size = int(np.prod(shape)) * dtype.itemsize
    mapped = any(part.mapped for part in every) or cache.choose_mapped(size, memory, what)
    cache.check_room(shape, mapped, every[0].bits)
    if mapped:
        key = cache.make_key("domains", shape, _mark(every, scales))
        blocks = _chunks(every, scales)
        pixels, _ = cache.fetch_or_store(key, True, lambda: cache.store(key, shape, dtype, blocks))
    else:
        pixels, start = np.empty(shape, dtype=dtype), 0
        for chunk in _chunks(every, scales):
            pixels[start : start + len(chunk)] = chunk
            start += len(chunk)
    known, first = (pixels, hashes), 0
    out: dict[str, dict[str, ImageSet]] = {}
    for name, sets in parts.items():
        out[name] = {}
        for split, part in sets.items():
            rows = np.arange(first, first + len(part))
            out[name][split] = replace(part, pixels=pixels, rows=rows, known=known)
            first += len(part)
    return out


def _mark(parts: Sequence[ImageSet], scales: Sequence[np.ndarray | None]) -> str:
    """A hash of the stored pixels and of how they are scaled now; the digests of scaled images are of the unscaled ones."""
    digest = hashlib.blake2b(digest_size=16)
    streamed = [part for part in parts if part.blocks is not None]  # which are never scaled
    rows = {id(part.pixels): cache.row_digests(part.array) for part in parts if part.blocks is None}
    for part in streamed:
        digest.update(pack(part.digests()).tobytes())
    for part, scale in zip(parts, scales, strict=True):
        if part.blocks is not None:
            continue
        digest.update(rows[id(part.pixels)][slice(None) if part.rows is None else part.rows].tobytes())
        digest.update(b"" if scale is None else scale.tobytes())
    return digest.hexdigest()


def _chunks(parts: Sequence[ImageSet], scales: Sequence[np.ndarray | None]) -> Iterator[np.ndarray]:
    for part, scale in zip(parts, scales, strict=True):
        for start in range(0, len(part), CHUNK):
            chunk = part.take(np.arange(start, min(start + CHUNK, len(part))))
            yield chunk if scale is None else rescale(chunk, scale[start : start + CHUNK])


def _check_alike(sets: Mapping[str, ImageSet]) -> None:
    sizes = {name: f"{part.shape[0]} x {part.shape[1]} {in_words(part.channels)}" for name, part in sets.items()}
    each = ", ".join(f"{name} {words}" for name, words in sizes.items())
    if len({part.shape[:2] for part in sets.values()}) > 1:
        raise DataError(f"the images of the domains differ in size ({each}); give one with --set data.size=N")
    if len({part.channels for part in sets.values()}) > 1:
        plain = all(is_plain(part.channels) for part in sets.values())
        remedy = "choose with --set data.channels=rgb" if plain else "give their names with --set data.channels=[...]"
        raise DataError(f"the images of the domains differ in channels ({each}); {remedy}")


def at_scale(
    parts: Parts, scales: Mapping[str, Scale | None], field: Field | None, memory: str, warnings: list[str]
) -> dict[str, dict[str, ImageSet]]:
    """The same image sets, scaled. What files of different sizes make of that is said.

    Args:
        scales: of each domain.
        field: the field of view that images are brought to, where a scale is in micrometers per pixel.
        memory: see `share_pixels`.

    Raises:
        RequestError, DataError: see `petriscope.data.rescale.set_factors`.
    """
    factors = {
        name: {split: set_factors(part, scales[name], field) for split, part in sets.items()}
        for name, sets in parts.items()
    }
    for name, each in factors.items():
        scale = scales[name]
        if scale is not None and (said := describe_factors(np.concatenate(list(each.values())), scale, field)):
            warnings.append(f"{name}: {said}" if name else said)
    if all((each == 1).all() for by_split in factors.values() for each in by_split.values()):
        return {name: dict(sets) for name, sets in parts.items()}
    return share_pixels(parts, memory, factors)


def common_classes(parts: Parts, warnings: list[str]) -> tuple[str, ...]:
    """The classes of all domains together, by name: in the order of the domains where all have the same, else sorted. What
    some domains lack is said.

    Raises:
        DataError: some have names and some numbers, or labels and masks, or two names look alike.
    """
    firsts = {name: next(iter(sets.values())) for name, sets in parts.items()}
    kinds = {name: part.task.about for name, part in firsts.items()}
    if len(set(kinds.values())) > 1:
        each = ", ".join(f"{name} {about}" for name, about in kinds.items())
        raise DataError(f"the targets must be of one kind in all domains, not {each}")
    unnamed = [name for name, part in firsts.items() if not part.named]
    if unnamed and len(unnamed) < len(firsts):
        raise DataError(
            f"the source of the domain {unnamed[0]} has numbers for classes, and others have names; name the numbers with "
            "data.classes"
        )
    sets_of = {name: part.classes for name, part in firsts.items()}
    binary = next((name for name, each in sets_of.items() if unnamed and each == BINARY_NAMES), None)
    larger = next((name for name, each in sets_of.items() if len(each) > len(BINARY_NAMES)), None)
    if binary is not None and larger is not None:
        raise DataError(
            f"the masks of the domain {binary} have the values 0 and 255, and those of {larger} have {len(sets_of[larger])} "
            "classes; say which of them 255 is by a classes.txt beside the masks of each source"
        )
    there = list(dict.fromkeys(sets_of.values()))
    classes = max(there, key=len)  # numbers from 0, where they have no names
    if len(there) > 1 and not unnamed:
        classes = sort_names({name for each in there for name in each})
    if len(there) > 1 and (pair := look_alike(classes)) is not None:
        homes = [next(name for name, each in sets_of.items() if one in each) for one in pair]
        raise DataError(
            f"the domains {homes[0]} and {homes[1]} have the classes {pair[0]!r} and {pair[1]!r}, which look alike; spell them "
            "alike in both sources"
        )
    counts = {
        # Classes without names are the same in all domains if they have the same number.
        name: dict(
            zip(
                classes if unnamed else sets_of[name],
                np.sum([part.counts for part in sets.values()], 0).tolist(),
                strict=False,
            )
        )
        for name, sets in parts.items()
    }
    for name, amounts in counts.items():
        alone = [
            f"{label} ({count:,} {firsts[name].task.counted})"
            for label, count in amounts.items()
            if count and not any(each.get(label) for other, each in counts.items() if other != name)
        ]
        if alone and len(counts) > 1:
            warnings.append(f"only the domain {name} has {listed(alone)}")
    return classes


def as_domain(part: ImageSet, name: str, classes: tuple[str, ...], grouped: bool, prefix: bool = True) -> ImageSet:
    """Images as those of a domain: with its name, and before their ids and groups so that these differ between domains, and
    with targets that index the classes of all domains.

    Args:
        grouped: some images of the data set are in groups, so that images without are groups of their own.
        prefix: False: ids and groups stay as they are.
    """
    ids = _marked(part.ids, name) if prefix else part.ids
    groups = ids if part.groups is None else _marked(part.groups, name) if prefix else part.groups
    marked = replace(
        part.with_column(DOMAIN, np.full(len(part), name, dtype=object)), ids=ids, groups=groups if grouped else None
    )
    return replace(align(marked, classes, f"the domain {name}", []), named=part.named)


def own_domains(sets: Mapping[str, ImageSet], name: str, source: str) -> list[str]:
    """What is to be said of a source among several that has a column of domains itself: it is not used."""
    found = sorted({each for part in sets.values() for each in set(_domains_of(part).tolist()) - {"", name}})
    if not found:
        return []
    return [
        f"the column domain of {source} ({listed(found)}) is not used: all of its images are of the domain {name}; to keep its "
        "domains, make a source of each, or call the column something else"
    ]


def check_ids(sets: Mapping[str, ImageSet]) -> None:
    """Check that no two images are called the same, as they may be in sources with ``prefix: false``.

    Raises:
        DataError: two are; the message names one.
    """
    seen: dict[str, str] = {}
    for part in sets.values():
        for name, domain in zip(part.ids.tolist(), _domains_of(part).tolist(), strict=True):
            if seen.setdefault(name, domain) is not domain:
                raise DataError(
                    f"the domains {seen[name]} and {domain} both have an image called {name}; without prefix: false, names "
                    "begin with the domain"
                )


def have_groups(parts: Parts) -> bool:
    """Whether some images are in groups."""
    return any(part.groups is not None for sets in parts.values() for part in sets.values())


def _marked(names: np.ndarray, domain: str) -> np.ndarray:
    return np.array([f"{domain}/{name}" for name in names.tolist()], dtype=np.str_)


def splits_of_domains(had: Mapping[str, set[str]], drawn: Mapping[str, Sequence[str]]) -> list[str]:
    """What is to be said of where the splits are from, where domains differ in that.

    Args:
        had: the splits of each source.
        drawn: those that were drawn for each.
    """
    words = {}
    for name, splits in had.items():
        own = [split for split in SPLITS if split in splits and split not in drawn[name]]
        new = [split for split in SPLITS if split in drawn[name]]
        parts = [f"{_listed(own)} as the source has them"] * bool(own) + [f"{_listed(new)} drawn"] * bool(new)
        words[name] = ", ".join(parts)
    if len(set(words.values())) < 2:
        return []
    return ["splits: " + "; ".join(f"{name}: {text}" for name, text in words.items())]


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def join_changes(changes: Mapping[str, Change], known: Membership) -> Change:
    """How several sources differ from what a run had, from how each differs from what the run had of its domain."""
    own = {name for name in changes if known.domains is not None and name in known.domains}

    def names(kind: str) -> tuple[str, ...]:
        return tuple(f"{name}/{each}" for name, change in changes.items() for each in getattr(change, kind))

    if own:
        gone = tuple(f"{name}/{each}" for name in changes if name in own for each in changes[name].gone)
    else:  # each source was compared with all images of the run
        first, *others = changes.values()
        gone = tuple(each for each in first.gone if all(each in {*change.gone} for change in others))
    return Change(new=names("new"), changed=names("changed"), relabeled=names("relabeled"), gone=gone)


def leave_out(sets: Mapping[str, ImageSet], domain: str, source: str, warnings: list[str]) -> dict[str, ImageSet]:
    """The same images, with all of a domain in test. Images of other domains stay in their splits, also in test, so that
    they are in the same as without a domain left out; `only_left_out` drops them there. Images of unknown domains stay
    too, which is said.

    Raises:
        RequestError: the images have no domains, or not this one.
        DataError: no image is left for train, or another domain's name looks like this one's.
    """
    known = {name for part in sets.values() for name in ([] if part.domains is None else set(part.domains.tolist()))}
    known -= {""}
    if not known:
        raise RequestError(
            f"data.leave_out is {domain!r}, but the images of {source} have no domains; name several sources in data.sources, "
            "or give a table the column domain"
        )
    if domain not in known:
        raise RequestError(f"data.leave_out: there is no domain {domain!r}; {near(domain, known)}")
    if other := next((name for name in sorted(known - {domain}) if look_alike((domain, name))), None):
        raise DataError(
            f"data.leave_out: the domains {domain!r} and {other!r} look alike; spell them alike if they are one, else give one "
            "another name"
        )
    if unknown := {
        split: count
        for split, part in sets.items()
        if (count := int((_domains_of(part) == "").sum())) and split != "test"
    }:
        where = " and ".join(f"{count:,} image{'s' * (count > 1)} of {split}" for split, count in unknown.items())
        warnings.append(
            f"data.leave_out: {where} have no domain; if they are of {domain}, metrics on test will be too optimistic"
        )
    moved, out = [], {}
    for split, part in sets.items():
        inside = _is_in(part, domain)
        if split == "test" or inside.any():
            moved.append(part if split == "test" else part.subset(np.flatnonzero(inside)))
        if split != "test" and not inside.all():
            out[split] = part.subset(np.flatnonzero(~inside))
    if "train" not in out:
        raise DataError(f"data.leave_out: no training image is of another domain than {domain}")
    return {**out, "test": join_sets(moved)}


def only_left_out(sets: Mapping[str, ImageSet], domain: str, warnings: list[str]) -> dict[str, ImageSet]:
    """The splits to use after `leave_out`: of test, the images of the domain whose class the training images have. What is
    left out is said."""
    if "test" not in sets:
        return dict(sets)
    test = sets["test"]
    inside = _is_in(test, domain)
    if others := int((~inside).sum()):
        warnings.append(
            f"data.leave_out: test is the domain {domain}; {others:,} test image{'s' * (others > 1)} of other domains "
            f"{'are' if others > 1 else 'is'} not used"
        )
    out = {**sets, "test": test.subset(np.flatnonzero(inside))}
    train = sets.get("train")
    if train is None or test.task.dense or (train.counts > 0).all():
        return {name: part for name, part in out.items() if len(part)}
    taught, untaught = np.flatnonzero(train.counts > 0), np.flatnonzero(train.counts == 0)
    names = tuple(train.classes[label] for label in taught.tolist())
    if not train.named and names != train.classes[: len(names)]:
        gaps = [each for each in train.classes if each not in names]
        raise DataError(
            f"data.leave_out: the other domains have no training image of {listed(gaps)}, and classes that are "
            "numbers cannot have gaps; name them with data.classes"
        )
    table = np.full(len(train.classes), -1, dtype=np.int64)  # no image is left of the others
    table[taught] = np.arange(len(taught))
    for split, part in out.items():
        unknown = _with_labels(part, untaught)
        if gone := int(unknown.sum()):
            there = np.flatnonzero(part.subset(np.flatnonzero(unknown)).counts)
            lacking = sort_names({part.classes[label] for label in np.intersect1d(there, untaught).tolist()})
            text = (
                f"data.leave_out: {gone:,} image{'s' * (gone > 1)} of {split} {'are' if gone > 1 else 'is'} left out, because "
                f"the other domains have no training image of {listed(lacking)}"
            )
            reason = f"images of {split} of classes without training images in other domains"
            warnings.append(LeftOutSentence(text, [Omission(reason, gone, str(part.ids[unknown][0]))]))
            part = part.subset(np.flatnonzero(~unknown))
        out[split] = replace(part, targets=part.task.relabel(part.targets, table), classes=names)
    return {name: part for name, part in out.items() if len(part)}


def _with_labels(part: ImageSet, labels: np.ndarray) -> np.ndarray:
    """Which images have one of these labels, among others where there can be several, bool [N]."""
    if part.task.exclusive:
        return np.isin(part.targets, labels)
    return np.any(part.task.amounts(part.targets, len(part.classes))[:, labels] > 0, axis=1)


def _is_in(part: ImageSet, domain: str) -> np.ndarray:
    return _domains_of(part) == domain


def _domains_of(part: ImageSet) -> np.ndarray:
    """The domain of each image, empty where it is unknown, [N] strings."""
    return np.full(len(part), "", dtype=object) if part.domains is None else part.domains


def draw_weights(section: DataSection, images: ImageSet) -> np.ndarray | None:
    """How often each training image is drawn, relative to the others, float64 [N]; None: all alike.

    Raises:
        DataError: an image is of a domain that ``section.sources`` does not have.
    """
    if section.sources is None or images.domains is None:
        return None
    weights = {name: each.weight for name, each in section.sources.items()}
    domains = images.domains.tolist()
    if unknown := set(domains) - weights.keys():
        raise DataError(f"there are images of the domain {min(unknown)}, which data.sources does not have")
    if len(set(weights.values())) == 1:
        return None
    return np.array([weights[name] for name in domains])
