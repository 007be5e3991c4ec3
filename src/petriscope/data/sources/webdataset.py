"""WebDataset: tar files, the shards, in which the files of a sample follow one another and share a name up to its first dot."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from petriscope.core.errors import DataError, RequestError, near, shown
from petriscope.core.files import parsing, read_text, user_path
from petriscope.core.names import names_in_lines, tidy
from petriscope.core.recipe import DataSection
from petriscope.data import cache, index
from petriscope.data.decode import SUFFIXES
from petriscope.data.decode_many import decode_files
from petriscope.data.imageset import ImageSet
from petriscope.data.omissions import LeftOut
from petriscope.data.sources.listing import agreed_splits, as_column, groups_of, is_called, labeled_sets, say_may_group
from petriscope.data.sources.packed import TAR, ZIPPED_TAR, Archive, Listing, Members, index_for, list_members
from petriscope.data.sources.pairs import NAMES
from petriscope.data.sources.spelling import split_in, split_of
from petriscope.data.walk import Folder, count_others

SHARDS = (*TAR, *ZIPPED_TAR)
SIDE = ("cls", "txt", "json")  # what labels are read from, the most certain first
MAX_SIDE = 1 << 16  # bytes of such a file
MAX_SHARDS = 100_000
_SAMPLE = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)")
_RANGE = re.compile(r"\{([0-9]{1,9})\.\.([0-9]{1,9})\}")


class Sample(NamedTuple):
    """A sample of a shard.

    Args:
        key: its name.
        images: the suffixes of its images, and where they are: name, size, place.
        texts: what its files in `SIDE` hold, by suffix.
    """

    key: str
    images: dict[str, tuple[str, int, int]]
    texts: dict[str, str]


@dataclass(frozen=True)
class Shard:
    """A shard with its samples, and the split that its name or folder says; None: it says none."""

    archive: Archive
    samples: list[Sample]
    split: str | None


def is_pattern(source: str) -> bool:
    """Whether a source is a pattern of shards, such as ``cells-{000..009}.tar``."""
    return _RANGE.search(source) is not None and source.lower().endswith(SHARDS)


def expand(source: str) -> list[Path]:
    """The shards that a pattern names.

    Raises:
        RequestError: one is missing, or there are too many.
    """
    paths = [user_path(name) for name in expanded(source)]
    if missing := [path for path in paths if not path.is_file()]:
        raise RequestError(f"{source}: {len(missing):,} of {len(paths):,} shards are missing, the first: {missing[0]}")
    return paths


def expanded(source: str) -> list[str]:
    """The names of the shards of a pattern.

    Raises:
        RequestError: there are too many.
    """
    counts = [int(found[2]) - int(found[1]) + 1 for found in _RANGE.finditer(source)]
    if min(counts) < 1 or math.prod(counts) > MAX_SHARDS:
        raise RequestError(f"{source}: numbers in braces count up, to {MAX_SHARDS:,} shards at most")
    names = [source]
    while _RANGE.search(names[0]):
        names = [each for name in names for each in _counted(name)]
    return names


def _counted(name: str) -> list[str]:
    found = _RANGE.search(name)
    assert found is not None
    first, last = found[1], found[2]
    width = len(first) if len(first) == len(last) else 0
    return [
        f"{name[: found.start()]}{number:0{width}d}{name[found.end() :]}" for number in range(int(first), int(last) + 1)
    ]


def find_shards(tree: Folder, left_out: LeftOut) -> list[Path]:
    """The shards in a folder that has no images."""
    found = [part.path / name for part in tree.all() for name in part.others if name.lower().endswith(SHARDS)]
    count_others(tree, left_out, {path.name for path in found} | {NAMES})
    return found


def holds_samples(listing: Listing) -> bool:
    """Whether a tar file has samples rather than class folders: files .cls; or images in one folder alone, each with a text or
    JSON file of its name."""
    suffixes: dict[str, set[str]] = {}
    for place in listing.files:
        if (match := _SAMPLE.fullmatch(place.name)) is not None:
            suffixes.setdefault(match[1], set()).add(match[2].lower())
    images = {key: found for key, found in suffixes.items() if any(map(_is_image, found))}
    if any("cls" in found for found in images.values()):
        return True
    folders = {key.rpartition("/")[0] for key in images}
    return len(folders) == 1 and all(found & {*SIDE} for found in images.values())


def read(
    paths: Sequence[Path], source: str, section: DataSection, warnings: list[str], home: Path | None = None
) -> dict[str, ImageSet]:
    """Read the samples of shards. Their ids are the names of the images in the shards; if two shards have one name, the name of
    the shard stands before it.

    Args:
        paths: of the shards. Words such as train in their names, or in those of their folders below ``home``, are splits.
        source: what the user named.
        section: ``label`` is a suffix of `SIDE`, or a field of the JSON files; ``image`` is a suffix; ``group`` is a field of
            the JSON files, or a pattern that is searched in ids.
        home: the folder that was named. A ``classes.txt`` in it, or beside the first shard, names the classes from 0.

    Raises:
        DataError: a damaged shard, or a sample without a label; the message names both.
        RequestError: it cannot be told which image or label of a sample is meant.
    """
    shards = _open(paths, source, home)
    samples = [(shard, sample) for shard in shards for sample in shard.samples]
    left_out = LeftOut()
    for shard, sample in samples:
        if not sample.images:
            left_out.add("sample{s} without an image", f"{shard.archive.path.name}/{sample.key}")
    samples = [(shard, sample) for shard, sample in samples if sample.images]
    if not samples:
        raise DataError(f"{source} has no sample with an image")
    warnings += left_out.sentences(Path(source))
    places = [chosen_image(shard, sample, section) for shard, sample in samples]
    names = unique_names([name for name, _, _ in places], [shard.archive.path.name for shard, _ in samples], source)
    fields = [fields_of(shard, sample) for shard, sample in samples]
    label, labels = labels_of(samples, fields, section, source, warnings)
    groups = groups_in(fields, section)
    groups = groups_of(section, names) if groups is None else groups
    splits = agreed_splits({shard.archive.path: shard.split for shard in shards}, source)
    known = Members(
        [f"{shard.archive.digest} {at}" for (shard, _), (_, _, at) in zip(samples, places, strict=True)],
        _statuses(shards),
    )
    files = [shard.archive.file_at(*place) for (shard, _), place in zip(samples, places, strict=True)]
    with parsing(source, kind=DataError):
        decoded = decode_files(files, names, section, source, known)
    warnings += decoded.warnings
    listed = class_names([*([home] if home else []), paths[0].parent])
    columns = columns_of(fields, {label, section.group or "group"})
    if groups is None:
        warnings += say_may_group(columns, section, source)
    by_image = [splits[shard.archive.path] for shard, _ in samples]
    about = f"{label} of {source}"
    return labeled_sets(decoded, by_image, labels, about, listed, names, groups, columns, section, source, warnings)


def _open(paths: Sequence[Path], source: str, home: Path | None) -> list[Shard]:
    where = "\n".join(str(path.absolute()) for path in paths)
    found = index.recall(index_for("samples", where), paths, read_samples)
    digests = cache.contents(paths, f"{where} as shards")
    out = []
    for number, path in enumerate(paths):
        if not found.values[number] or not digests.values[number]:
            raise DataError(f"{path} cannot be read; is it a file that may be read?")
        size, samples = json.loads(found.values[number])
        one = index.Recalled([""], [found.statuses[number]], [path])
        archive = Archive(path, Listing([], [], size), digests.values[number], one)
        out.append(Shard(archive, [Sample(*sample) for sample in samples], split_of_shard(path, home)))
    if not any(shard.samples for shard in out):
        raise DataError(f"{source} has no samples: files such as 0001.jpg and 0001.cls")
    return out


def read_samples(path: Path) -> str:
    """The samples of a shard, as JSON; texts are read, images are not."""
    listing = list_members(path)
    digest = (
        cache.index.content_digest(path) if path.name.lower().endswith(ZIPPED_TAR) else ""
    )  # that of what is unpacked
    archive = Archive(path, listing, digest, index.Recalled([""], [None], [path]))
    samples: dict[str, Sample] = {}
    with parsing(path, "copy or download it again", DataError):
        for place in listing.files:
            match = _SAMPLE.fullmatch(place.name)
            if match is None:
                continue
            suffix = match[2].lower()
            sample = samples.setdefault(match[1], Sample(match[1], {}, {}))
            if suffix in SIDE:
                if place.size > MAX_SIDE:
                    raise DataError(f"{path}: {place.name} has {place.size:,} bytes; labels have {MAX_SIDE:,} at most")
                try:
                    sample.texts[suffix] = archive.read(place).decode("utf-8-sig")
                except UnicodeDecodeError:
                    raise DataError(f"{path}: {place.name} is not text in UTF-8") from None
            elif _is_image(suffix):
                sample.images[suffix] = (place.name, place.size, place.at)
    return json.dumps([listing.size, list(samples.values())])


def _is_image(suffix: str) -> bool:
    return f".{suffix.rpartition('.')[2]}" in SUFFIXES


def split_of_shard(path: Path, home: Path | None) -> str | None:
    folders = path.relative_to(home).parts[:-1] if home is not None else ()
    found = [split for folder in folders if (split := split_of(folder))]
    return found[-1] if found else split_in(path.name.partition(".")[0])


def _statuses(shards: Sequence[Shard]) -> index.Recalled:
    every = [shard.archive.found for shard in shards]
    return index.Recalled(
        [""] * len(every), [one.statuses[0] for one in every], [shard.archive.path for shard in shards]
    )


def chosen_image(shard: Shard, sample: Sample, section: DataSection) -> tuple[str, int, int]:
    """The image of a sample: its name, size and place.

    Raises:
        RequestError: it cannot be told which one is meant.
    """
    suffix = section.image.lower().lstrip(".") if section.image else next(iter(sample.images))
    if suffix not in sample.images or (section.image is None and len(sample.images) > 1):
        have = ", ".join(sample.images)
        raise RequestError(
            f"{shard.archive.path}: the sample {sample.key} has the images {have}; choose one with --set data.image=SUFFIX"
        )
    return tuple(sample.images[suffix])  # type: ignore[return-value]  # a list, where it was read from the index


def unique_names(names: Sequence[str], shards: Sequence[str], source: str) -> list[str]:
    """The names of images; where two have one name, that of the shard stands before it.

    Args:
        shards: the name of the shard of each image.

    Raises:
        DataError: two have one name nevertheless.
    """
    if len({*names}) == len(names):
        return [*names]
    names = [f"{shard.partition('.')[0]}/{name}" for shard, name in zip(shards, names, strict=True)]
    if len({*names}) < len(names):
        seen: set[str] = set()
        twice = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise DataError(f"{source} has two samples called {twice}; give the shards different names")
    return names


def fields_of(shard: Shard, sample: Sample) -> dict[str, Any]:
    """What the JSON file of a sample says; empty if it has none."""
    if "json" not in sample.texts:
        return {}
    try:
        found = json.loads(sample.texts["json"])
    except (ValueError, RecursionError):
        raise DataError(f"{shard.archive.path}: {sample.key}.json is no JSON") from None
    if isinstance(found, dict):
        return {tidy(str(key)): value for key, value in found.items()}
    return {"json": found}


def labels_of(
    samples: Sequence[tuple[Shard, Sample]],
    fields: Sequence[dict[str, Any]],
    section: DataSection,
    source: str,
    warnings: list[str],
) -> tuple[str, list[str]]:
    """What labels are read from, and the label of each sample."""
    suffixes = [suffix for suffix in SIDE if any(suffix in sample.texts for _, sample in samples)]
    known = dict.fromkeys(key for found in fields for key in found)
    label = section.label
    if label is None:
        called = [key for key in known if is_called(key, "label")]
        if "cls" in suffixes:
            label = "cls"
        elif len(called) == 1 or "json" in called:
            label = called[0]
        elif len(called) > 1:
            raise RequestError(f"{source}: labels may be {' or '.join(called)}; choose with --set data.label=NAME")
        elif "txt" in suffixes:
            label = "txt"
        else:
            have = ", ".join([*(f".{each}" for each in suffixes), *known]) or "nothing"
            raise RequestError(
                f"{source}: no labels were found beside the images, only {have}; choose them with --set data.label=NAME"
            )
        if label != "cls":
            what = ".txt" if label == "txt" else f"the field {label} of .json"
            warnings.append(f"{source}: labels were read from {what}")
    label = label.lstrip(".") if label.lstrip(".") in suffixes else label
    if label not in suffixes and label not in known:
        raise RequestError(f"data.label: no sample of {source} has {label!r}; {near(label, [*suffixes, *known])}")
    out = []
    for (shard, sample), found in zip(samples, fields, strict=True):
        value = sample.texts.get(label) if label in suffixes and label != "json" else found.get(label)
        if isinstance(value, bool | dict | list) or value is None or not (text := tidy(str(value))):
            said = "no label" if value is None or value == "" else f"the label {shown(value)}"
            raise DataError(
                f"{shard.archive.path}: the sample {sample.key} has {said} in {label}; it needs a name or a number"
            )
        out.append(text)
    return label, out


def groups_in(fields: Sequence[dict[str, Any]], section: DataSection) -> np.ndarray | None:
    """The groups that JSON files say; None if some say none."""
    wanted = section.group or "group"
    if all(_is_plain(found.get(wanted)) for found in fields):
        return np.array([tidy(str(found[wanted])) for found in fields])
    return None


def columns_of(fields: Sequence[dict[str, Any]], used: set[str]) -> dict[str, np.ndarray]:
    """Other fields, as text; empty where a sample lacks one. Fields with lists or objects are left out."""
    known = dict.fromkeys(key for found in fields for key in found if key and key not in used)
    return {
        key: as_column(tidy(str(found[key])) if found.get(key) is not None else "" for found in fields)
        for key in known
        if all(found.get(key) is None or _is_plain(found[key]) for found in fields)
    }


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def class_names(homes: Iterable[Path]) -> tuple[str, ...] | None:
    for home in homes:
        if (file := home / NAMES).is_file():
            return tuple(names_in_lines(read_text(file, 1 << 20, "a list of class names"), str(file)))
    return None
