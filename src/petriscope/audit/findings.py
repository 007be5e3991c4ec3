"""Findings: what is wrong with which image, on what evidence, and what is suggested."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from petriscope.core.errors import RequestError, near
from petriscope.data.decisions import Verdict
from petriscope.data.file_check import FileFault

if TYPE_CHECKING:
    import pandas as pd

    from petriscope.audit.duplicates import Duplicates
    from petriscope.audit.label_errors import LabelErrors
    from petriscope.audit.outliers import Outliers
    from petriscope.audit.planted import Planted
    from petriscope.audit.quality import Quality

RELABEL_FROM = 0.9  # probability that a label is wrong, from which another is suggested rather than a look
KEPT_FIRST = ("test", "val", "train", "all")  # of copies in several splits, which one stays
STRONGEST_FIRST: tuple[Verdict, ...] = ("drop", "relabel", "review", "keep")
SCORE_DIGITS = 4

# name -> what its images are, in a sentence; in the order of the table and the page
KINDS = {
    "planted": "The same image shows in many that are otherwise different.",
    "leak": "The image, or a changed copy of it, is in another split too: metrics on that split flatter.",
    "conflicting_labels": "Copies of one image have different labels.",
    "exact_duplicate": "Another image has the same pixels.",
    "near_duplicate": "Another image shows the same, re-encoded, resized, brightened, turned or mirrored.",
    "label_error": "Networks that did not see the image in training expect another class.",
    "outlier": "The image is unlike all others.",
    "blank": "There is nothing in the image.",
    "dark": "The image is much darker than the rest.",
    "bright": "The image is much brighter than the rest, and washed out.",
    "low_contrast": "The image has far less contrast than the rest.",
    "blurred": "The image is far less sharp than the rest.",
    "gray_among_color": "The image is gray, and the rest has color.",
    "odd_size": "The file's image is of another size or shape than the rest.",
    "truncated": "The file ends before its image does.",
    "unreadable": "The file cannot be read as an image.",
    "empty_mask": "The mask has no labeled pixel, or nothing but background.",
    "single_class_mask": "One class fills all of the mask that is labeled.",
    "shared_mask": "Other images have the very same mask.",
}
FAMILIES = {
    "duplicates": ("exact_duplicate", "near_duplicate"),
    "conflicts": ("conflicting_labels",),
    "leaks": ("leak",),
    "labels": ("label_error",),
    "outliers": ("outlier",),
    "quality": ("blank", "dark", "bright", "low_contrast", "blurred", "gray_among_color", "odd_size"),
    "files": ("truncated", "unreadable"),
    "masks": ("empty_mask", "single_class_mask", "shared_mask"),
    "any": tuple(KINDS),
}
QUALITY = {  # finding -> what was measured, and how it is said
    "blank": ("contrast", "contrast {value:.3f} of 1; {usual:.2f} is usual"),
    "dark": ("highlights", "its lightest parts are at {value:.2f} of 1; {usual:.2f} is usual"),
    "bright": ("clipped", "{value:.0%} of its pixels are white; {usual:.0%} is usual"),
    "low_contrast": ("contrast", "contrast {value:.2f} of 1; {usual:.2f} is usual"),
    "blurred": ("sharpness", "sharpness {value:.2f}; {usual:.2f} is usual"),
    "gray_among_color": ("saturation", "saturation {value:.3f} of 1; {usual:.2f} is usual"),
}


@dataclass(frozen=True, eq=False)
class Listing:
    """The images of a source, those that could be read first.

    Args:
        ids, splits, labels: object [M] of str.
    """

    ids: np.ndarray
    splits: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Finding:
    """One thing about one image.

    Args:
        image: its index in `Images`.
        finding: one of `KINDS`.
        evidence: what was seen.
        score: of a near duplicate its similarity, of a planted image how strongly the common one shows, of a label error
            the probability of being wrong, of an outlier its distance in robust standard deviations, of quality the
            measured metric, of an odd size the factor it is off by; else 1.
        decision, reason: what is suggested for it, taken alone.
        group: names the images that belong together; empty: none.
        suggested: a class, where another than the given is suggested.
    """

    image: int
    finding: str
    evidence: str
    score: float
    decision: Verdict
    reason: str
    group: str = ""
    suggested: str = ""


def kinds_of(names: str) -> list[str]:
    """The kinds of finding that a comma-separated list names, by themselves or by family.

    Raises:
        RequestError: an unknown name.
    """
    known = {**{name: (name,) for name in KINDS}, **FAMILIES}
    out: list[str] = []
    for word in names.split(","):
        name = word.strip().replace("-", "_")
        if name not in known:
            raise RequestError(f"no finding {word.strip()!r}; {near(name, known)}")
        out += known[name]
    return list(dict.fromkeys(out))


def duplicate_findings(
    images: Listing,
    found: Duplicates,
    digests: Sequence[bytes],
    planted: np.ndarray,
    faulty: Collection[int] = (),
) -> Iterator[Finding]:
    """Exact and near duplicates; among them leaks and conflicting labels.

    Args:
        digests: of the pixels of every image.
        planted: bool [N]; that planted images are alike is known, so they count as duplicates only if they are exact.
        faulty: images that have something else about them; of copies in one split, a sound one stays.
    """
    counted = np.flatnonzero((found.group >= 0) & (found.exact | ~planted))
    groups: dict[int, list[int]] = {}
    for index in counted.tolist():
        groups.setdefault(int(found.group[index]), []).append(index)
    number = 0
    for members in groups.values():
        if len(members) > 1:
            number += 1
            kept = min(members, key=lambda each: (KEPT_FIRST.index(images.splits[each]), each in faulty, each))
            yield from _of_group(images, found, digests, members, kept, f"duplicates-{number}")


def _of_group(
    images: Listing, found: Duplicates, digests: Sequence[bytes], members: list[int], kept: int, group: str
) -> Iterator[Finding]:
    splits, labels = images.splits[members], images.labels[members]
    conflict, leak = len(set(labels)) > 1, len(set(splits)) > 1
    twins: dict[bytes, list[int]] = {}
    for index in members:
        twins.setdefault(digests[index], []).append(index)
    for index in members:
        same = [other for other in twins[digests[index]] if other != index]
        others = [other for other in members if other != index]
        finding = "exact_duplicate" if same else "near_duplicate"
        if same:
            evidence = f"the same pixels as {_named(images, same)}"
        elif index == members[0]:
            evidence = f"shows the same as {_named(images, others)}"
        else:
            how = f", {found.transform[index]}" if found.transform[index] else ""
            evidence = f"shows the same as {images.ids[members[0]]}{how}"
        decision, reason = _copy_decision(images, index, kept, finding, conflict, leak)
        score = float(found.similarity[index])
        yield Finding(index, finding, evidence, score, decision, reason, group)
        if leak:
            elsewhere = [other for other in others if images.splits[other] != images.splits[index]]
            if elsewhere:
                evidence = f"in {images.splits[index]}, and in another split as {_named(images, elsewhere)}"
                yield Finding(index, "leak", evidence, score, decision, reason, group)
        if conflict:
            against = [other for other in others if images.labels[other] != images.labels[index]]
            says = images.labels[against[0]]
            evidence = f"labeled {images.labels[index]}; its copy {images.ids[against[0]]} is labeled {says}"
            yield Finding(index, "conflicting_labels", evidence, score, "review", reason, group)


def _copy_decision(
    images: Listing, index: int, kept: int, finding: str, conflict: bool, leak: bool
) -> tuple[Verdict, str]:
    if conflict:
        return "review", "copies of it have other labels: see which is right, then keep one"
    if index == kept:
        if leak:
            return "keep", f"the copy in {images.splits[index]} stays; those in other splits go"
        return "keep", "of its copies, this one stays"
    where = f"leaks from {images.splits[kept]}: " if images.splits[index] != images.splits[kept] else ""
    return "drop", f"{where}{finding.replace('_', ' ')} of {images.ids[kept]}, which stays"


def planted_findings(found: Planted) -> Iterator[Finding]:
    for index in np.flatnonzero(found.group >= 0).tolist():
        group = int(found.group[index])
        name, count = f"planted-{group + 1}", int((found.group == group).sum())
        score = float(found.score[index])
        evidence = f"the common image of {name} shows in it, strength {score:.2f}"
        yield Finding(index, "planted", evidence, score, "drop", f"one of {count:,} with one image in all", name)


def label_findings(
    images: Listing, found: LabelErrors, classes: Sequence[str], faulty: Collection[int] = ()
) -> Iterator[Finding]:
    """Label errors. ``faulty``: images that have a fault by which a network may be misled; they are not relabeled."""
    for index in np.flatnonzero(found.flagged).tolist():
        suggested, score = classes[found.suggested[index]], float(found.score[index])
        evidence = f"labeled {images.labels[index]}, looks like {suggested}; wrong with probability {score:.2f}"
        sure = score >= RELABEL_FROM and index not in faulty
        reason = f"looks like {suggested}" if sure else f"may be {suggested}"
        yield Finding(index, "label_error", evidence, score, "relabel" if sure else "review", reason, "", suggested)


def outlier_findings(found: Outliers) -> Iterator[Finding]:
    for index in np.flatnonzero(found.flagged).tolist():
        score = float(found.score[index])
        evidence = f"farther from its nearest neighbors than usual by {score:.1f} standard deviations"
        yield Finding(index, "outlier", evidence, score, "review", "unlike all others")


def quality_findings(found: Quality) -> Iterator[Finding]:
    for name, (measured, words) in QUALITY.items():
        values = found.values[measured]
        usual = float(np.median(values)) if len(values) else 0.0
        for index in np.flatnonzero(found.flags[name] & (~found.flags["blank"] | (name == "blank"))).tolist():
            value = float(values[index])
            decision: Verdict = "drop" if name == "blank" else "review"
            yield Finding(index, name, words.format(value=value, usual=usual), value, decision, name.replace("_", " "))


def file_findings(images: Listing, faults: Iterable[FileFault]) -> Iterator[Finding]:
    place = {name: index for index, name in enumerate(images.ids.tolist())}
    for fault in faults:
        decision: Verdict = "review" if fault.readable else "drop"
        reason = fault.finding.replace("_", " ") if fault.readable else f"{fault.finding}: no image to learn from"
        yield Finding(place[fault.id], fault.finding, fault.evidence, fault.score, decision, reason)


def final_decisions(findings: Iterable[Finding]) -> dict[int, tuple[Verdict, str, str]]:
    """Of each image the strongest decision, the reasons for it, joined, and the class suggested (or empty)."""
    by_image: dict[int, list[Finding]] = {}
    for each in findings:
        by_image.setdefault(each.image, []).append(each)
    out = {}
    for image, own in sorted(by_image.items()):
        decision = min((each.decision for each in own), key=STRONGEST_FIRST.index)
        reasons = dict.fromkeys(each.reason for each in own if each.decision != "keep" or decision == "keep")
        suggested = next((each.suggested for each in own if each.suggested), "")
        out[image] = (decision, "; ".join(reasons), suggested)
    return out


def make_table(images: Listing, findings: Sequence[Finding]) -> pd.DataFrame:
    """One row per finding, of all images: id, split, label, finding, evidence, score, group, decision, reason,
    suggested_label. The decision and its reason are the image's final ones."""
    import pandas as pd

    final = final_decisions(findings)
    seen = dict.fromkeys([*KINDS, *(each.finding for each in findings)])  # others come after those known
    order = {name: place for place, name in enumerate(seen)}
    rows = sorted(findings, key=lambda each: (order[each.finding], _number(each.group), each.image))
    at = np.array([each.image for each in rows], dtype=np.int64)
    columns = {
        "id": images.ids[at],
        "split": images.splits[at],
        "label": images.labels[at],
        "finding": [each.finding for each in rows],
        "evidence": [each.evidence for each in rows],
        "score": np.array([round(each.score, SCORE_DIGITS) for each in rows], dtype=np.float64),
        "group": [each.group for each in rows],
        "decision": [final[each.image][0] for each in rows],
        "reason": [final[each.image][1] for each in rows],
        "suggested_label": [each.suggested for each in rows],
    }
    table = pd.DataFrame(columns)
    return table.astype({name: object for name in columns if name != "score"})


def _number(group: str) -> int:
    return int(group.rpartition("-")[2] or 0)


def _named(images: Listing, indices: Sequence[int]) -> str:
    names = ", ".join(images.ids[index] for index in indices[:2])
    return names + (f" and {len(indices) - 2:,} more" if len(indices) > 2 else "")
