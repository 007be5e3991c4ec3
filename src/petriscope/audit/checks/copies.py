"""Copies of an image: duplicates, and among them leaks between splits and conflicting labels."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from petriscope.audit.base import Check, Context, Finding, FindingInfo, Listing
from petriscope.audit.duplicates import Duplicates, find_duplicates
from petriscope.data.decisions import Verdict

LEAK = FindingInfo(
    "leak",
    "The image, or a modified copy of it, is also in another split, so metrics on that split are too optimistic.",
    family="leaks",
    decision="drop",
    title="Leaks between splits",
    grouped=True,
)
CONFLICT = FindingInfo(
    "conflicting_labels",
    "Copies of the same image have different labels.",
    family="conflicts",
    title="Copies with different labels",
    grouped=True,
)
EXACT = FindingInfo(
    "exact_duplicate", "Another image has identical pixels.", family="duplicates", decision="drop", grouped=True
)
NEAR = FindingInfo(
    "near_duplicate",
    "Another image shows the same content, re-encoded, resized, brightened, rotated or mirrored.",
    family="duplicates",
    decision="drop",
    grouped=True,
)
KEPT_FIRST = ("test", "val", "train", "all")  # which split keeps its copy


class Copies(Check):
    findings = (LEAK, CONFLICT, EXACT, NEAR)
    order = 20

    def run(self, context: Context) -> Iterator[Finding]:
        found = find_duplicates(context.images, quiet=context.quiet)
        planted = context.planted.group >= 0
        yield from findings_of_copies(context.listing, found, context.digests, planted, context.faulty)


def findings_of_copies(
    listing: Listing,
    found: Duplicates,
    digests: Sequence[bytes],
    planted: np.ndarray,
    faulty: Collection[int] = (),
) -> Iterator[Finding]:
    """Findings about each group of copies.

    Args:
        digests: hash of the pixels of each image.
        planted: bool [N]; planted images look alike anyway, so they count as duplicates only if they are exact.
        faulty: images with other faults; of copies in the same split, one without faults is kept.
    """
    counted = np.flatnonzero((found.group >= 0) & (found.exact | ~planted))
    groups: dict[int, list[int]] = {}
    for index in counted.tolist():
        groups.setdefault(int(found.group[index]), []).append(index)
    number = 0
    for members in groups.values():
        if len(members) > 1:
            number += 1
            kept = min(members, key=lambda each: (KEPT_FIRST.index(listing.splits[each]), each in faulty, each))
            yield from _of_group(listing, found, digests, members, kept, f"duplicates-{number}")


def _of_group(
    listing: Listing, found: Duplicates, digests: Sequence[bytes], members: list[int], kept: int, group: str
) -> Iterator[Finding]:
    splits, labels = listing.splits[members], listing.labels[members]
    conflict, leak = len(set(labels)) > 1, len(set(splits)) > 1
    twins: dict[bytes, list[int]] = {}
    for index in members:
        twins.setdefault(digests[index], []).append(index)
    for index in members:
        same = [other for other in twins[digests[index]] if other != index]
        others = [other for other in members if other != index]
        kind = EXACT if same else NEAR
        if same:
            evidence = f"has the same pixels as {_named(listing, same)}"
        elif index == members[0]:
            evidence = f"shows the same as {_named(listing, others)}"
        else:
            how = f", {found.transform[index]}" if found.transform[index] else ""
            evidence = f"shows the same as {listing.ids[members[0]]}{how}"
        decision, reason = _decide(listing, index, kept, kind, conflict, leak)
        score = float(found.similarity[index])
        yield kind.of(index, evidence, score, decision=decision, reason=reason, group=group)
        elsewhere = [other for other in others if listing.splits[other] != listing.splits[index]]
        if elsewhere:
            evidence = f"is in {listing.splits[index]}, and in another split as {_named(listing, elsewhere)}"
            yield LEAK.of(index, evidence, score, decision=decision, reason=reason, group=group)
        if conflict:
            against = next(other for other in others if listing.labels[other] != listing.labels[index])
            evidence = f"is labeled {listing.labels[index]}; its copy {listing.ids[against]} is labeled {listing.labels[against]}"
            yield CONFLICT.of(index, evidence, score, reason=reason, group=group)


def _decide(
    listing: Listing, index: int, kept: int, kind: FindingInfo, conflict: bool, leak: bool
) -> tuple[Verdict, str]:
    if conflict:
        return "review", "its copies have different labels: decide which label is right, then keep one copy"
    if index == kept:
        if leak:
            return "keep", f"the copy in {listing.splits[index]} is kept; copies in other splits are dropped"
        return "keep", "this copy is kept"
    leaks = f"leaks from {listing.splits[kept]}: " if listing.splits[index] != listing.splits[kept] else ""
    return "drop", f"{leaks}{kind.words} of {listing.ids[kept]}, which is kept"


def _named(listing: Listing, indices: Sequence[int]) -> str:
    names = ", ".join(listing.ids[index] for index in indices[:2])
    return names + (f" and {len(indices) - 2:,} more" if len(indices) > 2 else "")
