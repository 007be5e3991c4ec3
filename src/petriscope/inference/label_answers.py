"""Answers and abstentions for each label of image files, as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from petriscope.core.errors import listed
from petriscope.core.names import label_text
from petriscope.data.in_memory import AnyFile
from petriscope.inference.answers import Answering, assumptions, checked_rules
from petriscope.inference.base import Classifies
from petriscope.inference.decoding import CHUNK, Attempt
from petriscope.inference.table import Rows, Wanted, check_table, rows_by_chunk
from petriscope.trust.abstention import FAR, NOT_SURE, UNCLAIMED
from petriscope.trust.label_rules import ANSWERS, answered_labels
from petriscope.trust.verdict import WITHDRAWN

ONE_CLASS = "--set-coverage is for one class per image; --max-error says for which labels an answer is sure enough"


@dataclass(frozen=True)
class LabelPlan:
    """The rules by which each label of an image is answered or left open.

    Args:
        classes: K names.
        cutoffs: the probability from which a label is present, float32 [K].
        limits: as of `petriscope.trust.multilabel.LabelReference.limits`; infinite where no error rate is asked for.
        notes: what is guaranteed, a sentence each.
        why: what is said of images for which guarantees do not hold.
    """

    classes: tuple[str, ...]
    cutoffs: np.ndarray
    limits: np.ndarray
    notes: tuple[str, ...] = ()
    why: str = ""

    def without_guarantee(self, answer: bool) -> LabelPlan:
        """The rules for images that guarantees do not hold for: leave all labels open, or answer all the same."""
        if answer:
            return replace(self, notes=(), why=UNCLAIMED)
        return replace(self, notes=(), limits=np.full_like(self.limits, -np.inf), why=WITHDRAWN)

    def rows(self, probabilities: np.ndarray, ood: np.ndarray | None) -> list[dict[str, Any]]:
        """What is said of images: ``labels`` (``none`` if all are absent), ``open``, ``why``, and ``answers`` by class.

        Args:
            probabilities: float32 [N, K].
            ood: out-of-distribution scores, float32 [N]; None: there is no detector.
        """
        answered = answered_labels(probabilities, ood, self.cutoffs, self.limits)
        rows = []
        for row, here in enumerate(probabilities >= self.cutoffs):
            pairs = zip(self.classes, here, answered[row], strict=True)
            answers = {name: ANSWERS[int(there)] if sure else NOT_SURE for name, there, sure in pairs}
            labels, left = ([name for name in answers if answers[name] == word] for word in (ANSWERS[1], NOT_SURE))
            why = [self.why] * bool(self.why) + [FAR] * (ood is not None and not ood[row] <= 1)
            said = NOT_SURE if left and not labels else label_text(labels)
            rows.append({"labels": said, "open": ", ".join(left), "why": "; ".join(why), "answers": answers})
        return rows


def guarantees(classes: Sequence[str], limits: np.ndarray, max_error: float) -> tuple[str, ...]:
    """What val guarantees of the answers at an error rate, and what it does not, a sentence each.

    Args:
        limits: as of `petriscope.trust.multilabel.LabelReference.limits`.
    """
    why = "too few images of val get it, or too many of them wrongly"
    if not np.isfinite(limits).any():
        return (
            f"val guarantees no error rate of {100 * max_error:g} % for any label, so all are left open: too few images of val "
            "get an answer, or too many of them a wrong one",
        )
    notes = [
        f"for each label, at most {100 * max_error:g} % of the answers 'present' are wrong, and likewise of 'absent', "
        "each with 95 % confidence, for images like those of val"
    ]
    for answer, word in enumerate(ANSWERS):
        lacking = [name for name, each in zip(classes, limits[:, answer], strict=True) if not np.isfinite(each)]
        if lacking:
            notes.append(
                f"val guarantees no error rate of {100 * max_error:g} % for the answer '{word}' of {listed(lacking)}, which is "
                f"not given: {why}"
            )
    return tuple(notes)


def answering_by(model: Classifies, plan: LabelPlan, adapts: bool = True) -> Answering:
    """How images are answered by rules, with the fields of `answer_labels`.

    Args:
        adapts: whether the model can be adapted to images from elsewhere.
    """
    assumed = assumptions(model)

    def rows(probabilities: np.ndarray, ood: np.ndarray | None, rules: LabelPlan) -> list[dict[str, Any]]:
        out = []
        for row in rules.rows(probabilities, ood):
            answers = row.pop("answers")
            out.append({**row, **assumed, **{f"answer_{name}": word for name, word in answers.items()}})
        return out

    def counted(row: Mapping[str, Any]) -> tuple[Sequence[str], bool]:
        there = [name for name in model.classes if row[f"answer_{name}"] == ANSWERS[1]]
        return there or ([] if row["open"] else ["none"]), bool(row["open"])

    columns = ["labels", "open", "why", *assumed, *(f"answer_{name}" for name in model.classes)]
    return Answering(plan, columns, rows, counted, mix_given=False, adapts=adapts)


def answer_labels(model: Classifies, paths: Sequence[AnyFile], wanted: Wanted, how: Answering) -> Rows:
    """One row per image: image, labels (those that are present), open (those about which nothing is said), error, why (a reason
    that holds for the whole image), and for each class its answer (``answer_<class>``: present, absent or not sure) and its
    probability (``p_<class>``).

    With ``--max-error``, the images are first compared with val, and an answer is given where val guarantees its error rate, see
    `petriscope.trust.multilabel.LabelReference.limits`; else all are given by the cutoffs, except for images that are out of
    distribution.

    Args:
        how: see `answering_by`.
    """
    check_table(wanted.out, paths)

    def rows_of(images: list[np.ndarray], _: list[AnyFile], rules: LabelPlan) -> list[dict[str, Any]]:
        found = model.predict(np.stack(images), wanted.tta)
        out = []
        for p, row in zip(found.probabilities, how.rows(found.probabilities, found.ood, rules), strict=True):
            out.append({**row, **{f"p_{name}": float(value) for name, value in zip(model.classes, p, strict=True)}})
        return out

    each = [column for name in model.classes for column in (f"answer_{name}", f"p_{name}")]
    columns = ["image", "labels", "open", "error", "why", *assumptions(model), *each]

    def parts() -> Iterator[list[dict[str, Any]]]:
        rules, kept = how.plan, dict[AnyFile, Attempt]()
        if wanted.max_error is not None:
            rules = checked_rules(model, paths, wanted, how.plan, kept, how.mix_given, how.adapts)
        rows = partial(rows_of, rules=rules)
        yield from rows_by_chunk(model, paths, columns, rows, CHUNK, wanted.quiet, kept)

    return Rows(columns, parts(), wanted.out)
