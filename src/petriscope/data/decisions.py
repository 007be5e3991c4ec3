"""What an audit decided, as a file that a person may edit, and how it is carried out when data are loaded.

Nothing is deleted: a source stays as it is, and each loading of it leaves out or relabels what the file says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from pydantic import Field, ValidationError

from petriscope.core.errors import DataError, RequestError, near
from petriscope.core.files import write_text
from petriscope.core.recipe import DataSection, NoKeyTwice, Section, explain
from petriscope.data import sources
from petriscope.data.fingerprint import fingerprint
from petriscope.data.imageset import Audited, ImageSet
from petriscope.data.sources.listing import ImageFile

FILE = "decisions.yaml"
MAX_BYTES = 256 * 2**20
SHOWN = 3  # images that a message names
HEAD = """\
# What to do with the images that the audit found something about. The images themselves are not touched.
# decision: keep, drop (leave out), review (someone should look; kept until then), or relabel (give it the class in label).
# Change what you know better, then train with it: petriscope train RECIPE --data SOURCE --audit THIS_FILE
"""

Verdict = Literal["keep", "drop", "review", "relabel"]


class Decision(Section):
    """What to do with one image.

    ``label``: the class that relabel gives it. ``digest``: of its pixels as they were audited, in hex; null for an image
    that could not be read.
    """

    id: str
    decision: Verdict
    label: str | None = None
    reason: str = ""
    digest: str | None = None


class ReadAs(Section):
    """How images were turned into pixels, on which their digests depend."""

    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]  # (height, width)
    filter: Literal["nearest", "box", "bilinear", "bicubic", "lanczos"]
    channels: Literal["gray", "rgb"]
    bits: Annotated[int, Field(ge=8, le=16)]

    @classmethod
    def of(cls, section: DataSection, images: ImageSet) -> ReadAs:
        height, width, channels = images.shape
        gray: Literal["gray", "rgb"] = "gray" if channels == 1 else "rgb"
        return cls(size=(height, width), filter=section.filter, channels=gray, bits=section.bits)


class Decisions(Section):
    """An audit's decisions.

    ``fingerprint``: of the source as it was audited, before splits were drawn.
    """

    source: str
    fingerprint: str
    read_as: ReadAs
    decisions: tuple[Decision, ...]


def write_decisions(path: Path, decisions: Decisions) -> None:
    tree = decisions.model_dump(mode="json")
    tree["decisions"] = [{key: value for key, value in entry.items() if value} for entry in tree["decisions"]]
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    text = yaml.dump(tree, Dumper=dumper, sort_keys=False, allow_unicode=True, width=1000)
    write_text(path, HEAD + text)


def load_decisions(path: str | Path) -> Decisions:
    """Read ``decisions.yaml``, or that of an audit's folder.

    Raises:
        RequestError: there is none, or it cannot be understood; the message says where.
    """
    place = Path(path).expanduser()
    place = place / FILE if place.is_dir() else place
    if not place.is_file():
        raise RequestError(f"data.audit: no decisions at {place}; give the folder of a petriscope audit, or its {FILE}")
    if place.stat().st_size > MAX_BYTES:
        raise RequestError(f"data.audit: {place} has more than {MAX_BYTES // 2**20} MiB; are these decisions?")
    try:
        tree = yaml.load(place.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise RequestError(f"data.audit: {place} is not readable as YAML: {error}") from None
    if not isinstance(tree, dict):
        raise RequestError(f"data.audit: {place} holds no decisions; it is the {FILE} of a petriscope audit")
    try:
        found = Decisions.model_validate(tree)
    except ValidationError as error:
        raise RequestError(explain(error, Decisions, str(place))) from None
    seen = set()
    for entry in found.decisions:
        if entry.id in seen:
            raise RequestError(f"{place}: {entry.id} has two decisions; keep one")
        if entry.decision == "relabel" and entry.label is None:
            raise RequestError(f"{place}: {entry.id} is to be relabeled; say to what, in label")
        seen.add(entry.id)
    return found


def check_decisions(decisions: Decisions, sets: Mapping[str, ImageSet], section: DataSection) -> list[str]:
    """See that decisions are about the images that are there.

    Args:
        decisions: of an audit.
        sets: the source as read by ``section``, unreadable images left out, before splits are drawn.

    Returns:
        what the user should know, a sentence each.

    Raises:
        DataError: the decisions are about another source, or an image changed that is to be left out or relabeled.
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
            f"data.audit: {_count(changed)} changed since the audit: {_named(changed)}. Audit again: petriscope audit "
            f"{section.source}"
        )
    warnings = []
    if missing:
        are = "is" if len(missing) == 1 else "are"
        warnings.append(f"of the audit's decisions, {_count(missing)} {are} no longer in the data: {_named(missing)}")
    if fingerprint(then, digests) != decisions.fingerprint:
        warnings.append(
            "the data have changed since they were audited: images may be new, gone or labeled anew, and the audit "
            f"says nothing of them. Audit again: petriscope audit {section.source}"
        )
    return warnings


def apply_decisions(
    decisions: Decisions, sets: Mapping[str, ImageSet], section: DataSection
) -> tuple[dict[str, ImageSet], list[Audited]]:
    """Leave out and relabel. Splits were drawn before, so that a decision moves no other image.

    Returns:
        the splits that still have images, and what was done, in the order of the images.

    Raises:
        DataError: a label that is no class; an unreadable image that is not dropped where ``section.unreadable`` is
            ``stop``.
    """
    acting = _acting(decisions)
    out: dict[str, ImageSet] = {}
    done: list[Audited] = []
    for split, part in sets.items():
        targets, keep = part.targets.copy(), np.ones(len(part), dtype=bool)
        for index, name in enumerate(part.ids.tolist()):
            entry = acting.get(name)
            if entry is None:
                continue
            label = part.classes[targets[index]]
            new = "" if entry.decision == "drop" else str(entry.label)
            if new == label:
                continue
            if entry.decision == "drop":
                keep[index] = False
            elif new in part.classes:
                targets[index] = part.classes.index(new)
            else:
                raise DataError(
                    f"data.audit: {name} is to become {new!r}, which is no class; {near(new, part.classes)}"
                )
            done.append(Audited(name, split, label, entry.decision, new, entry.reason))
        out[split] = replace(part, targets=targets).subset(np.flatnonzero(keep))
    done += _leave_out_unreadable(acting, sets, section)
    return {split: part for split, part in out.items() if len(part)}, done


class _Loader(NoKeyTwice, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """An audit may have tens of thousands of decisions; libyaml reads them ten times as fast, where it is there."""


def _acting(decisions: Decisions) -> dict[str, Decision]:
    return {entry.id: entry for entry in decisions.decisions if entry.decision in ("drop", "relabel")}


def _as_audited(decisions: Decisions, sets: Mapping[str, ImageSet], section: DataSection) -> Mapping[str, ImageSet]:
    """The images in the size and colors in which they were audited, read again if they are wanted in others."""
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
                f"{file.id} cannot be read, and the audit's decisions do not drop it; mend it, drop it, or leave out "
                "all such images with --set data.unreadable=skip"
            )


def _unreadable_files(section: DataSection, sets: Mapping[str, ImageSet]) -> list[ImageFile]:
    there = {name for part in sets.values() for name in part.ids.tolist()}
    return [file for file in sources.list_files(section.source or "") if file.id not in there]


def _count(names: list[str]) -> str:
    return f"{len(names):,} image{'' if len(names) == 1 else 's'}"


def _named(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
