"""What an audit is made of: a check, the findings that it declares, and the context that it runs in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, TypeVar

import numpy as np

from petriscope.audit.planted import Planted, find_planted
from petriscope.core.errors import DataError
from petriscope.data.decisions import Verdict
from petriscope.data.imageset import ImageSet
from petriscope.data.sources.listing import ImageFile
from petriscope.tasks import Task, find_task

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Listing:
    """All images of a source: first those that could be read, then the files that could not.

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
    """One finding about one image.

    Args:
        image: index of the image in the `Listing`.
        finding: name of a `FindingInfo`.
        evidence: what was observed.
        score: for a near duplicate, its similarity; for a planted image, how strongly the common image is visible; for a
            label error, the probability that the label is wrong; for an outlier, its distance in robust standard
            deviations; for image quality, the measured value; for an odd size, the ratio to the median; otherwise 1.
        decision, reason: what this finding alone suggests for the image.
        group: name of the group of images that belong together; empty if there is none.
        suggested: the class that is suggested instead of the given one; empty if there is none.
    """

    image: int
    finding: str
    evidence: str
    score: float
    decision: Verdict
    reason: str
    group: str = ""
    suggested: str = ""


@dataclass(frozen=True)
class FindingInfo:
    """A kind of finding, as a check declares it.

    Args:
        name: as the table has it; a valid identifier.
        about: what is wrong with the images, in one sentence.
        family: what ``--fail-on`` calls it together with related findings; empty: it is known by its own name only.
        decision: what is suggested unless the check has reasons to suggest something else.
        title: heading of its section on the page; default: the name.
        grouped: whether images belong together in groups.
        higher_is_worse: whether the page shows the highest scores first.
    """

    name: str
    about: str
    family: str = ""
    decision: Verdict = "review"
    title: str = ""
    grouped: bool = False
    higher_is_worse: bool = True

    @property
    def words(self) -> str:
        """The name as people read it."""
        return self.name.replace("_", " ")

    def of(
        self,
        image: int,
        evidence: str,
        score: float = 1.0,
        *,
        decision: Verdict | None = None,
        reason: str | None = None,
        group: str = "",
        suggested: str = "",
    ) -> Finding:
        """A finding of this kind about an image; the default reason is the name."""
        return Finding(
            image,
            self.name,
            evidence,
            score,
            self.decision if decision is None else decision,
            self.words if reason is None else reason,
            group,
            suggested,
        )


class Check(ABC):
    """Looks for related findings.

    A module in `petriscope.audit.checks` that defines a subclass adds a check; nothing else has to be changed. A check
    has no state: what it needs, and what it computes for others, is in the `Context`.
    """

    findings: ClassVar[tuple[FindingInfo, ...]]  # all that `run` can yield, in the order of the table and the page
    tasks: ClassVar[tuple[str, ...] | None] = None  # names of the tasks that it applies to; None: all
    order: ClassVar[int] = 100  # its place among the checks in the table and on the page, lowest first
    misleading: ClassVar[bool] = False  # see `Context.faulty`; such a check must not ask for it

    registered: ClassVar[list[type[Check]]] = []

    def __init_subclass__(cls) -> None:
        Check.registered.append(cls)

    def applies_to(self, task: Task) -> bool:
        return self.tasks is None or task.name in self.tasks

    @abstractmethod
    def run(self, context: Context) -> Iterable[Finding]:
        """Look at the images. The same images and seed give the same findings."""


@dataclass(eq=False)
class Context:
    """What checks are given. What several of them need is computed when it is first asked for.

    Args:
        images: those that could be read, of all splits.
        listing: all images; the first ``len(images)`` are those of ``images``, in the same order.
        digests: hash of the pixels of each image in ``images``.
        checks: those to run, in the order of their findings.
        files: of a source that consists of files; otherwise empty.
        extract: how features are computed, float32 [N, D], from images with labels; None: outliers are not looked for.
        labels: whether label errors are looked for.
        seed: for everything that is trained.
        quiet: show no progress.
        notes: what the user should know, one sentence each.
    """

    images: ImageSet
    listing: Listing
    digests: list[bytes]
    checks: tuple[Check, ...] = ()
    files: list[ImageFile] = field(default_factory=list)
    extract: Callable[[ImageSet], np.ndarray] | None = None
    labels: bool = True
    seed: int = 0
    quiet: bool = True
    notes: list[str] = field(default_factory=list)
    _found: dict[Check, list[Finding]] = field(default_factory=dict, init=False)

    def findings_of(self, check: Check) -> list[Finding]:
        """What a check finds; it runs once."""
        if check not in self._found:
            self._found[check] = list(check.run(self))
        return self._found[check]

    def all_findings(self) -> list[Finding]:
        """What all checks find, in their order."""
        return [finding for check in self.checks for finding in self.findings_of(check)]

    @cached_property
    def faulty(self) -> set[int]:
        """Images whose pixels may mislead a network: they are not relabeled, and a copy without a fault is kept instead."""
        return {each.image for check in self.checks if check.misleading for each in self.findings_of(check)}

    @cached_property
    def planted(self) -> Planted:
        return find_planted(self.images, quiet=self.quiet)

    @cached_property
    def features(self) -> np.ndarray | None:
        """float32 [N, D]; None where outliers are not looked for, or cannot be."""
        extract = self.extract
        if extract is None:
            return None
        labeled = replace(self.images, targets=self.images.strata, task=find_task("classification"))
        return self.unless_impossible("outliers", lambda: extract(labeled))

    def unless_impossible(self, what: str, work: Callable[[], T]) -> T | None:
        """The result of ``work``; None, with a note, if it raises a `DataError`, because the images do not allow it.

        Args:
            what: the findings that ``work`` is for, in the plural.
        """
        try:
            return work()
        except DataError as error:
            self.notes.append(f"{what} were not looked for: {error}")
            return None
