"""Recognize the images of a run in a source, by content first and by name among equal images."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from petriscope.core.progress import say
from petriscope.data.imageset import SPLITS, ImageSet
from petriscope.data.membership import Change, Membership, pack

NEW = -1


def membership_of(drawn: Mapping[str, ImageSet], used: Mapping[str, ImageSet] | None = None) -> Membership:
    """The membership of image sets by split.

    Args:
        drawn: the splits as drawn.
        used: what was used of them; None: everything.
    """
    kept = {name: set((used or drawn)[name].ids.tolist()) if name in (used or drawn) else set() for name in drawn}
    groups = [part.groups for part in drawn.values()]
    domains = [part.domains for part in drawn.values()]
    return Membership(
        np.concatenate([np.full(len(part), name) for name, part in drawn.items()]),
        np.concatenate([part.ids.astype(np.str_) for part in drawn.values()]),
        [digest for part in drawn.values() for digest in part.digests()],
        np.array([name for part in drawn.values() for name in _target_names(part)], dtype=np.str_),
        None if any(each is None for each in groups) else np.concatenate([np.asarray(g, np.str_) for g in groups]),
        np.array([name in kept[split] for split, part in drawn.items() for name in part.ids.tolist()], dtype=bool),
        None if any(each is None for each in domains) else np.concatenate([np.asarray(d, np.str_) for d in domains]),
    )


def match(known: Membership, sets: Mapping[str, ImageSet]) -> tuple[dict[str, ImageSet], dict[str, ImageSet], Change]:
    """Find the images of a run among those of a source: by content, and by name among equal images.

    Args:
        known: the splits of the run.
        sets: of the source, before its splits are drawn.

    Returns:
        the images of the run that are there, in the run's splits and order and with its groups and domains; the others, as
        the source has them; and how the source differs.
    """
    ids = [name for part in sets.values() for name in part.ids.tolist()]
    digests = [digest for part in sets.values() for digest in part.digests()]
    place = _pair(known.digests, known.ids.tolist(), digests, ids)
    bounds = np.cumsum([0, *map(len, sets.values())])
    found, regrouped = {}, False
    for split in SPLITS:
        there = (known.splits == split) & (place != NEW)
        if there.any():
            found[split] = _gather(list(sets.values()), bounds, place[there])
            if known.groups is not None:  # which the source may lack, or have otherwise
                regrouped |= not _alike(found[split].groups, known.groups[there])
                found[split] = replace(found[split], groups=known.groups[there])
            if known.domains is not None:
                found[split] = found[split].with_column("domain", known.domains[there].astype(object))
    if regrouped:
        say("note: the source puts images into other groups than the run had; those of the run are used")
    rest = np.ones(len(ids), dtype=bool)
    rest[place[place != NEW]] = False
    others = {
        name: part.subset(np.flatnonzero(left))
        for (name, part), left in zip(sets.items(), np.split(rest, bounds[1:-1]), strict=True)
        if left.any()
    }
    new = [ids[row] for row in np.flatnonzero(rest)]
    missing = known.ids[place == NEW].tolist()
    unknown = set(new)
    changed = [name for name in missing if name in unknown]
    replaced = set(changed)
    targets = np.array([name for part in sets.values() for name in _target_names(part)], dtype=np.str_)
    matched = place != NEW
    relabeled = known.ids[matched][targets[place[matched]] != known.targets[matched]]
    change = Change(
        new=tuple(name for name in new if name not in replaced),
        changed=tuple(changed),
        relabeled=tuple(relabeled.tolist()),
        gone=tuple(name for name in missing if name not in replaced),
    )
    return found, others, change


def _alike(groups: np.ndarray | None, others: np.ndarray) -> bool:
    """Whether groups part images as others do, whatever they are called; None: nothing is known of them."""
    if groups is None:
        return True
    pairs = set(zip(groups.tolist(), others.tolist(), strict=True))
    return len(pairs) == len(set(groups.tolist())) == len(set(others.tolist()))


def follow(known: Membership, images: ImageSet, change: Change) -> np.ndarray:
    """The splits of images that a run did not have, but that belong with images that it had: copies, changed versions, and
    images of one group. [N] strings, empty for the others."""
    by_digest = dict(zip(known.digests, known.splits.tolist(), strict=True))
    by_id = dict(zip(known.ids.tolist(), known.splits.tolist(), strict=True))
    by_group = {} if known.groups is None else dict(zip(known.groups.tolist(), known.splits.tolist(), strict=True))
    changed = set(change.changed)
    groups = [""] * len(images) if images.groups is None else images.groups.tolist()
    out = []
    for digest, name, group in zip(images.digests(), images.ids.tolist(), groups, strict=True):
        split = by_group.get(group) or by_digest.get(digest) or (by_id[name] if name in changed else "")
        out.append(split)
    return np.array(out, dtype=np.str_)


def _target_names(part: ImageSet) -> list[str]:
    """The class of each image, its labels, or a hash of its mask."""
    if part.task.dense:
        masks = np.ascontiguousarray(part.targets)
        return [hashlib.blake2b(mask.data, digest_size=8).hexdigest() for mask in masks]
    return part.task.names(part.targets, part.classes)


def _pair(
    digests: Sequence[bytes], ids: Sequence[str], in_digests: Sequence[bytes], in_ids: Sequence[str]
) -> np.ndarray:
    """For each of N images, the index of the same image among others, or `NEW`. Each of the others is used once."""
    by_both: dict[tuple[bytes, str], list[int]] = defaultdict(list)
    for index in range(len(in_ids) - 1, -1, -1):
        by_both[in_digests[index], in_ids[index]].append(index)
    place = np.full(len(ids), NEW, dtype=np.int64)
    for row, key in enumerate(zip(digests, ids, strict=True)):
        if left := by_both.get(key):
            place[row] = left.pop()
    by_digest: dict[bytes, list[int]] = defaultdict(list)
    for index in sorted((index for left in by_both.values() for index in left), reverse=True):
        by_digest[in_digests[index]].append(index)
    for row in np.flatnonzero(place == NEW).tolist():
        if left := by_digest.get(digests[row]):
            place[row] = left.pop()
    return place


def _gather(parts: Sequence[ImageSet], bounds: np.ndarray, rows: np.ndarray) -> ImageSet:
    """Images of several sets that were counted through, in the order of ``rows``.

    Args:
        bounds: int64 [parts + 1], where the count of each set begins.
    """
    owner = np.searchsorted(bounds, rows, side="right") - 1
    owners = np.unique(owner).tolist()
    if len(owners) == 1:
        part, local = parts[owners[0]], rows - bounds[owners[0]]
        return part if np.array_equal(local, np.arange(len(part))) else part.subset(local)
    taken = [parts[index].subset(rows[owner == index] - bounds[index]) for index in owners]
    order = np.argsort(np.concatenate([np.flatnonzero(owner == index) for index in owners]), kind="stable")
    return join_sets(taken).subset(order)


def join_sets(parts: Sequence[ImageSet]) -> ImageSet:
    """Image sets of the same classes and shape, one after the other. Pixels are copied unless all are views of one array."""
    first = parts[0]
    if len(parts) == 1:
        return first
    views = all(part.pixels is first.pixels and part.rows is not None for part in parts)
    groups, columns = [part.groups for part in parts], dict.fromkeys(name for part in parts for name in part.columns)
    pixels, known, sizes = first.pixels, first.known, [part.sizes for part in parts]
    if not views:
        pixels = np.concatenate([part.images for part in parts])
        # Of images that were scaled, the digests are those of what they were.
        known = (pixels, np.concatenate([pack(part.digests()) for part in parts]))
    elif not all(part.known is first.known for part in parts):
        known = None
    return replace(
        first,
        pixels=pixels,
        rows=np.concatenate([np.asarray(part.rows) for part in parts]) if views else None,
        targets=np.concatenate([part.targets for part in parts]),
        ids=np.concatenate([part.ids for part in parts]),
        groups=None
        if any(each is None for each in groups)
        else np.concatenate([np.asarray(g, np.str_) for g in groups]),
        columns={name: np.concatenate([_column(part, name) for part in parts]) for name in columns},
        known=known,
        sizes=None if any(each is None for each in sizes) else np.concatenate([np.asarray(each) for each in sizes]),
    )


def _column(part: ImageSet, name: str) -> np.ndarray:
    return part.columns[name].astype(object) if name in part.columns else np.full(len(part), "", dtype=object)
