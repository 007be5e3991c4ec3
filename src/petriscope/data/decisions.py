"""The decisions of an audit, in a file that a person may edit, and how they are applied when data are loaded.

Nothing is deleted. The source stays unchanged, and images are left out or relabeled each time it is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from pydantic import Field, ValidationError, field_validator

from petriscope.core.channels import wanted
from petriscope.core.errors import DataError, RequestError, command, listed, near
from petriscope.core.files import read_text, readable, user_path, write_text
from petriscope.core.names import tidy
from petriscope.core.recipe import DataSection, Section, explain
from petriscope.core.yaml_text import InvalidYaml, read_yaml
from petriscope.data import sources
from petriscope.data.fingerprint import fingerprint
from petriscope.data.imageset import Audited, ImageSet
from petriscope.data.sources.listing import ImageFile

FILE = "decisions.yaml"
MAX_BYTES = 256 * 2**20
SHOWN = 3  # images that a message lists
HEAD = """\
# Decisions about the images that the audit has findings about. The image files are not changed.
# decision: keep, drop (leave out), review (a person should look at it; kept until then), or relabel (to the class in label).
# Edit the decisions, then train with them: petriscope train RECIPE --data SOURCE --audit THIS_FILE
"""

Verdict = Literal["keep", "drop", "review", "relabel"]


class Decision(Section):
    """The decision about one image.

    Args:
        id: the image's id.
        decision: keep, drop, review or relabel.
        label: the new class, for relabel.
        reason: the findings that led to the decision.
        digest: a hash of its pixels when audited, in hex; None for an image that could not be read.
    """

    id: str
    decision: Verdict
    label: str | None = None
    reason: str = ""
    digest: str | None = None

    @field_validator("label", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class ReadAs(Section):
    """How images were converted to pixels. Their digests depend on it."""

    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]  # (height, width)
    filter: Literal["nearest", "box", "bilinear", "bicubic", "lanczos", "draft"]
    channels: Literal["gray", "rgb"] | tuple[str, ...]
    bits: Annotated[int, Field(ge=8, le=16)]
    depth: Literal[8, 16] = 8
    range: tuple[float, float] | None = None

    @classmethod
    def of(cls, section: DataSection, images: ImageSet) -> ReadAs:
        height, width, _ = images.shape
        return cls(
            size=(height, width),
            filter=section.filter,
            channels=wanted(images.channels),
            bits=section.bits,
            depth=section.depth,
            range=section.range,
        )


class Decisions(Section):
    """The decisions of an audit.

    Args:
        source: the audited source.
        fingerprint: of the source when audited, before splits were drawn.
        read_as: how its images were converted to pixels.
        decisions: one per image with findings.
    """

    source: str
    fingerprint: str
    read_as: ReadAs
    decisions: tuple[Decision, ...]


def write_decisions(path: Path, decisions: Decisions) -> None:
    tree = {**decisions.model_dump(mode="json"), "source": readable(decisions.source)}
    tree["decisions"] = [{key: value for key, value in entry.items() if value} for entry in tree["decisions"]]
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    text = yaml.dump(tree, Dumper=dumper, sort_keys=False, allow_unicode=True, width=1000)
    write_text(path, HEAD + text)


def load_decisions(path: str | Path) -> Decisions:
    """Read a ``decisions.yaml``, or the one in the folder of an audit.

    Raises:
        RequestError: there is none, or it is not valid; the message says where.
    """
    place = user_path(path)
    place = user_path(place / FILE) if place.is_dir() else place
    if not place.is_file():
        raise RequestError(f"data.audit: no decisions at {place}; give the folder of a petriscope audit, or its {FILE}")
    text = read_text(place, MAX_BYTES, f"the {FILE} of an audit")
    try:
        tree = read_yaml(text)
    except InvalidYaml as error:
        raise RequestError(f"data.audit: {place} is not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise RequestError(f"data.audit: {place} has no decisions; give the {FILE} of a petriscope audit")
    try:
        found = Decisions.model_validate(tree)
    except ValidationError as error:
        raise RequestError(explain(error, Decisions, str(place))) from None
    seen = set()
    for entry in found.decisions:
        if entry.id in seen:
            raise RequestError(f"{place}: {entry.id} has two decisions; keep one")
        if entry.decision == "relabel" and entry.label is None:
            raise RequestError(f"{place}: {entry.id} is to be relabeled but has no label; set label to the new class")
        seen.add(entry.id)
    return found


def check_decisions(decisions: Decisions, sets: Mapping[str, ImageSet], section: DataSection) -> list[str]:
    """Check that decisions are about the images of a source.

    Args:
        decisions: the decisions of an audit.
        sets: the source as read with ``section``, without unreadable images, before splits are drawn.

    Returns:
        what the user should know, one sentence each.

    Raises:
        DataError: the decisions are about another source, or an image to drop or relabel has changed.
    """
    acting = _acting(decisions)
    unreadable = {file.id for file in _unreadable_files(section, sets)}
    there = {name for part in sets.values() for name in part.ids.tolist()}
    missing = [name for name in acting if name not in there and name not in unreadable]
    if acting and len(missing) == len(acting):
        raise DataError(
            f"data.audit: none of the {len(acting):,} images to leave out or relabel is in {section.source}; "
            f"the decisions are about {decisions.source}"
        )
    then = _as_audited(decisions, sets, section)
    digests = {split: part.digests() for split, part in then.items()}
    now = {
        name: digest.hex()
        for split, part in then.items()
        for name, digest in zip(part.ids.tolist(), digests[split], strict=True)
    }
    changed = [name for name, entry in acting.items() if name in now and now[name] != entry.digest]
    changed += [name for name, entry in acting.items() if name in unreadable and entry.digest is not None]
    if changed:
        raise DataError(
            f"data.audit: {_count(changed)} changed since the audit: {_named(changed)}. Audit again: "
            f"{command('audit', section.source or 'SOURCE')}"
        )
    warnings = []
    if missing:
        are = "is" if len(missing) == 1 else "are"
        warnings.append(f"of the audit's decisions, {_count(missing)} {are} no longer in the data: {_named(missing)}")
    if fingerprint(then, digests) != decisions.fingerprint:
        warnings.append(
            "the data have changed since the audit: images may be new, missing or relabeled, and the audit does not "
            f"cover these changes. Audit again: {command('audit', section.source or 'SOURCE')}"
        )
    return warnings


def apply_decisions(
    decisions: Decisions, sets: Mapping[str, ImageSet], section: DataSection
) -> tuple[dict[str, ImageSet], list[Audited]]:
    """Drop and relabel images. Splits are drawn before, so that a decision does not move other images.

    Returns:
        the splits that still have images, and the images that were dropped or relabeled, in order.

    Raises:
        DataError: a new label is not a class, or is for a mask; or an unreadable image is not dropped and
            ``section.unreadable`` is ``stop``.
    """
    acting = _acting(decisions)
    out: dict[str, ImageSet] = {}
    done: list[Audited] = []
    for split, part in sets.items():
        labels, keep = part.strata.copy(), np.ones(len(part), dtype=bool)
        names, relabels = part.task.names(part.targets, part.classes), part.task.exclusive and not part.task.dense
        for index, name in enumerate(part.ids.tolist()):
            entry = acting.get(name)
            if entry is None:
                continue
            label = names[index]
            new = "" if entry.decision == "drop" else tidy(str(entry.label))
            if entry.decision == "drop":
                keep[index] = False
            elif part.task.dense:
                raise DataError(
                    f"data.audit: {name} is to be relabeled to {new!r}, but it has a mask; correct the mask and audit "
                    "again, or drop the image"
                )
            elif new == label:
                continue
            elif not relabels:
                raise DataError(
                    f"data.audit: {name} is to be relabeled to {new!r}, but it may have any number of labels; correct them in "
                    "the source and audit again, or drop the image"
                )
            elif new in part.classes:
                labels[index] = part.classes.index(new)
            else:
                raise DataError(
                    f"data.audit: {name} is to be relabeled to {new!r}, which is not a class; {near(new, part.classes)}"
                )
            done.append(Audited(name, split, label, entry.decision, new, entry.reason))
        kept = replace(part, targets=labels) if relabels else part
        out[split] = kept.subset(np.flatnonzero(keep))
    done += _leave_out_unreadable(acting, sets, section)
    return {split: part for split, part in out.items() if len(part)}, done


def _acting(decisions: Decisions) -> dict[str, Decision]:
    return {entry.id: entry for entry in decisions.decisions if entry.decision in ("drop", "relabel")}


def _as_audited(decisions: Decisions, sets: Mapping[str, ImageSet], section: DataSection) -> Mapping[str, ImageSet]:
    """The images with the size and channels of the audit, read again if ``sets`` have others."""
    if all(ReadAs.of(section, part) == decisions.read_as for part in sets.values()):
        return sets
    return sources.read_nonempty(section.source or "", section.model_copy(update=_fields(decisions.read_as)), [])


def _fields(read_as: ReadAs) -> dict[str, Any]:
    return {name: getattr(read_as, name) for name in ReadAs.model_fields}


def _leave_out_unreadable(
    acting: Mapping[str, Decision], sets: Mapping[str, ImageSet], section: DataSection
) -> Iterator[Audited]:
    for file in _unreadable_files(section, sets):
        entry = acting.get(file.id)
        if entry is not None and entry.decision == "drop":
            yield Audited(file.id, file.split, file.label, "drop", "", entry.reason)
        elif section.unreadable == "stop":
            raise DataError(
                f"{file.id} cannot be read, and the audit's decisions do not drop it; repair it, drop it, or leave out "
                "all such images with --set data.unreadable=skip"
            )


def _unreadable_files(section: DataSection, sets: Mapping[str, ImageSet]) -> list[ImageFile]:
    there = {name for part in sets.values() for name in part.ids.tolist()}
    return [file for file in sources.list_files(section.source or "", section) if file.id not in there]


def _count(names: list[str]) -> str:
    return f"{len(names):,} image{'' if len(names) == 1 else 's'}"


def _named(names: list[str]) -> str:
    return listed(names, SHOWN)
