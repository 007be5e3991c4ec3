"""From findings to one decision per image, and to the table that an audit writes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from petriscope.audit.base import Finding, Listing
from petriscope.audit.checks import all_findings
from petriscope.core.errors import RequestError, near
from petriscope.data.decisions import Verdict

if TYPE_CHECKING:
    import pandas as pd

STRONGEST_FIRST: tuple[Verdict, ...] = ("drop", "relabel", "review", "keep")
SCORE_DIGITS = 4


def families() -> dict[str, tuple[str, ...]]:
    """What ``--fail-on`` accepts besides the names of findings: a family -> its findings; ``any`` is all of them."""
    out: dict[str, tuple[str, ...]] = {}
    for info in all_findings().values():
        if info.family:
            out[info.family] = (*out.get(info.family, ()), info.name)
    return out | {"any": tuple(all_findings())}


def kinds_of(names: str) -> list[str]:
    """The findings that a comma-separated list names, by themselves or by family.

    Raises:
        RequestError: an unknown name.
    """
    known = {name: (name,) for name in all_findings()} | families()
    out: list[str] = []
    for word in names.split(","):
        name = word.strip().replace("-", "_")
        if name not in known:
            raise RequestError(f"no finding {word.strip()!r}; {near(name, known)}")
        out += known[name]
    return list(dict.fromkeys(out))


def final_decisions(findings: Iterable[Finding]) -> dict[int, tuple[Verdict, str, str]]:
    """For each image its strongest decision, the reasons joined, and the suggested class (or empty)."""
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


def make_table(listing: Listing, findings: Sequence[Finding]) -> pd.DataFrame:
    """One row per finding, with the columns id, split, label, finding, evidence, score, group, decision, reason and
    suggested_label. Decision and reason are the image's final ones."""
    import pandas as pd

    final = final_decisions(findings)
    names = dict.fromkeys([*all_findings(), *(each.finding for each in findings)])  # undeclared findings come last
    order = {name: place for place, name in enumerate(names)}
    rows = sorted(findings, key=lambda each: (order[each.finding], _number(each.group), each.group, each.image))
    at = np.array([each.image for each in rows], dtype=np.int64)
    columns = {
        "id": listing.ids[at],
        "split": listing.splits[at],
        "label": listing.labels[at],
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
    number = group.rpartition("-")[2]
    return int(number) if number.isdecimal() else 0
