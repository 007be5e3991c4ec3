"""Answers, abstentions and prediction sets for image files, as a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, Self, TypeVar

import numpy as np

from petriscope.core.progress import say
from petriscope.data.in_memory import AnyFile
from petriscope.inference.base import Classifies, Predicts
from petriscope.inference.decoding import CHUNK, Attempt
from petriscope.inference.likeness import compare_files
from petriscope.inference.table import Rows, Wanted, check_table, rows_by_chunk
from petriscope.trust.abstention import Abstention
from petriscope.trust.verdict import NOTHING, UNCLAIMED, verdict


def answer_files(
    model: Classifies,
    paths: Sequence[AnyFile],
    wanted: Wanted,
    plan: Abstention,
    given: str = "",
    adapts: bool = True,
    doubt: Callable[[np.ndarray], str] = lambda counts: "",
) -> Rows:
    """One row per image: image, predicted, confidence, error, answer, why, set (if ``plan`` has limits for it), assumed (what
    was said about the classes, and the scale, if anything), and one probability per class (``p_<class>``). ``answer`` is the
    predicted class, or ``not sure`` with the reasons in ``why``.

    If something is to be guaranteed, the images are compared with val before the first row.

    Args:
        plan: the rules for images like those of val.
        given: what was said about the classes. Guarantees are then for these.
        adapts: whether the model can be adapted to images from elsewhere.
        doubt: images predicted as each class, int64 [K] -> why what was said about the classes may be wrong, or nothing.
    """
    check_table(wanted.out, paths)
    probabilities = [f"p_{name}" for name in model.classes]
    outside, assumed = Outside(), assumptions(model, given)
    counts = np.zeros(len(model.classes), np.int64)

    def rows_of(images: list[np.ndarray], paths: list[AnyFile], rules: Abstention) -> list[dict[str, Any]]:
        found = model.predict(np.stack(images), wanted.tta)
        if found.outside is not None:
            outside.note(paths, found.outside)
        np.add.at(counts, found.probabilities.argmax(1), 1)
        rows = answered(model.classes, found.probabilities, found.ood, rules)
        named = (dict(zip(probabilities, map(float, p), strict=True)) for p in found.probabilities)
        return [{**row, **assumed, **each} for row, each in zip(rows, named, strict=True)]

    def parts() -> Iterator[list[dict[str, Any]]]:
        rules = plan
        kept: dict[AnyFile, Attempt] = {}
        if wanted.max_error is not None or wanted.set_coverage is not None:
            rules = checked_rules(model, paths, wanted, plan, kept, bool(given), adapts)
        rows = partial(rows_of, rules=rules)
        yield from rows_by_chunk(model, paths, columns, rows, CHUNK, wanted.quiet, kept)
        outside.tell()
        if told := doubt(counts):
            say(f"warning: {told}")

    answers = ["answer", "why"] if wanted.set_coverage is None else ["answer", "why", "set"]
    columns = ["image", "predicted", "confidence", "error", *answers, *assumed, *probabilities]

    return Rows(columns, parts(), wanted.out)


def answered(
    classes: tuple[str, ...], probabilities: np.ndarray, ood: np.ndarray | None, rules: Abstention
) -> list[dict[str, Any]]:
    """What is said of images: predicted, confidence, and the fields of `petriscope.trust.abstention.Abstention.rows`, which
    takes the same arguments."""
    answers = rules.rows(probabilities, ood)
    first, highest = probabilities.argmax(1).tolist(), probabilities.max(1).tolist()
    return [
        {"predicted": classes[k], "confidence": p, **answer}
        for k, p, answer in zip(first, highest, answers, strict=True)
    ]


def assumptions(model: Predicts, given: str = "") -> dict[str, str]:
    """The column ``assumed``: what was said about the classes, and the scale, if anything."""
    scale = model.reading.scale
    words = [given] if given else []
    words += [] if scale is None else [f"scale {scale:.6g}" if isinstance(scale, float) else f"{scale} per pixel"]
    return {"assumed": "; ".join(words)} if words else {}


class Outside:
    """Counts the images that look like classes which do not occur."""

    def __init__(self) -> None:
        self.images, self.count = 0, 0
        self.first: AnyFile | str | None = None

    def note(self, paths: Sequence[AnyFile], outside: np.ndarray) -> None:
        """``outside``: the probability of those classes before they were excluded, float32 [B]."""
        rows = np.flatnonzero(outside > 0.5)
        self.images, self.count = self.images + len(paths), self.count + len(rows)
        if self.first is None and len(rows):
            self.first = paths[rows[0]]

    def tell(self) -> None:
        if self.count:
            say(
                f"warning: of {self.images:,} images, {self.count:,} look like classes that do not occur (first: {self.first}): "
                "the model gave those classes more than half of its probability, which was divided among the others anyway"
            )


@dataclass(frozen=True)
class Answering:
    """How a task answers images from their probabilities.

    Args:
        plan: the rules for images like those of val.
        columns: names of the fields that ``rows`` gives.
        rows: probabilities, float32 [N, K], out-of-distribution scores, float32 [N] or None, and rules -> the fields of each row.
        counted: a row -> the answers in it, and whether the model abstains.
        mix_given, adapts: see `petriscope.trust.verdict.verdict`.
    """

    plan: Any
    columns: Sequence[str]
    rows: Callable[[np.ndarray, np.ndarray | None, Any], list[dict[str, Any]]]
    counted: Callable[[Mapping[str, Any]], tuple[Sequence[str], bool]]
    mix_given: bool
    adapts: bool


class Rules(Protocol):
    """Rules by which images are answered.

    Args:
        notes: what they guarantee, a sentence each.
    """

    @property
    def notes(self) -> tuple[str, ...]: ...

    def without_guarantee(self, answer: bool) -> Self:
        """The rules for images that guarantees do not hold for: abstain, or answer all the same."""


R = TypeVar("R", bound=Rules)


def checked_rules(
    model: Classifies,
    paths: Sequence[AnyFile],
    wanted: Wanted,
    plan: R,
    kept: dict[AnyFile, Attempt],
    mix_given: bool,
    adapts: bool,
) -> R:
    """The rules for these images. That guarantees are withdrawn is always said, anything else unless ``wanted.quiet``. What is
    decoded for that is added to ``kept``."""
    compared = compare_files(model, paths, wanted.quiet, kept)
    test = compared.test
    then = UNCLAIMED if wanted.without_guarantee else NOTHING
    said = verdict(test, then=then, mix_given=mix_given, adapts=adapts)
    if test.withdrawn:
        plan = plan.without_guarantee(answer=wanted.without_guarantee)
    for sentence in said if test.withdrawn or not wanted.quiet else ():
        say(sentence)
    if test.withdrawn and wanted.withdrawn is not None:
        wanted.withdrawn(compared)
    for sentence in () if wanted.quiet else plan.notes:
        say(sentence)
    return plan
