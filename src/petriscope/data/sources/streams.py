"""Shards that are read while training (`data.stream`): tar files of a WebDataset and Parquet files with images, on the disk or
at an address.

Each shard is looked through once: its images are decoded, so that damaged ones, copies and what is said of other sources are
known, and nothing is kept but an entry in the cache with a few bytes per image.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from petriscope.core.channels import Names
from petriscope.core.errors import DataError, PetriscopeError, RequestError
from petriscope.core.files import parsing, user_path
from petriscope.core.names import names_in_lines
from petriscope.core.progress import Progress
from petriscope.core.recipe import DataSection
from petriscope.data import cache, index
from petriscope.data.contents import Content, Contents
from petriscope.data.decode import MAX_BYTES, Channels, Form, Unreadable, probe_file, read_image, workers
from petriscope.data.decode_many import Decoded, form_of, names_of, one_of, refuse_unreadable, say_unreadable
from petriscope.data.imageset import ImageSet
from petriscope.data.in_memory import InMemory
from petriscope.data.index import row_digests
from petriscope.data.omissions import LeftOut
from petriscope.data.sources import parquet_images, remote, webdataset
from petriscope.data.sources.holders import Holder, Kind, Source, kind_of
from petriscope.data.sources.listing import agreed_splits, as_column, groups_of, labeled_sets
from petriscope.data.sources.packed import ZIPPED_TAR, Archive, Listing
from petriscope.data.sources.pairs import NAMES
from petriscope.data.sources.spelling import split_of
from petriscope.data.streamed import Shard, Streamed, Table, blocks_of_tar, on_disk

FIRST = 32  # images whose headers say what all are
TASK = 16  # images that a thread looks at a time
LARGE = 256 << 20  # bytes of a row group that are worth a word
ENTRY = np.dtype(
    [
        ("at", "<i8"),
        ("size", "<i8"),
        ("block", "<i8"),
        ("sum", "<u4"),
        ("digest", "u1", (16,)),
        ("height", "<i8"),
        ("width", "<i8"),
        ("peak", "<u2"),
        ("bits", "u1"),
        ("micrometers", "<f8", (2,)),
    ]
)


@dataclass(frozen=True)
class File:
    """A shard.

    Args:
        path: on the disk, or that which the address would be there.
        name: in messages.
        identity: another one if its content changes.
        bytes: of the file.
        shard: from which images are read, given the column of images of a Parquet file.
        local: a path on the disk, for as long as it is looked through.
    """

    path: Path
    name: str
    identity: str
    bytes: int
    shard: Callable[[str], Shard]
    local: Callable[[], AbstractContextManager[Path]]


@dataclass(frozen=True)
class Shards:
    """The shards of a source.

    Args:
        files: in order.
        home: the folder that they are in, if a folder was named.
        classes: names that a ``classes.txt`` lists.
    """

    files: list[File]
    home: Path | None
    classes: tuple[str, ...] | None


class Listed(NamedTuple):
    """What a shard has, without its images: where these are, and JSON values to keep."""

    at: list[int]
    sizes: list[int]
    blocks: np.ndarray
    about: dict[str, Any]


def read(source: str, section: DataSection, warnings: list[str]) -> dict[str, ImageSet]:
    """Read shards without decoding their images for good. Ids, labels, groups and splits are those of
    `petriscope.data.sources.webdataset` and `petriscope.data.sources.parquet_images`.

    Raises:
        NoShards: the source has none, or ones that cannot be streamed.
        DataError: a shard is damaged, or images differ in size or channels and the recipe does not say what to do.
        PetriscopeError: an address cannot be read.
    """
    shards = _find(source, warnings)
    files, notes, read = shards.files, list[str](), 0
    size, channels = _first_images(files, section, source)
    form = form_of(section, channels)
    tables, abouts = list[np.ndarray](), list[dict[str, Any]]()
    held = Contents(section.bits, section.asks_for_gray, form.depth if form.range is None else None)
    bar = Progress("looking through shards", max(sum(file.bytes for file in files) >> 20, 1), "MiB")
    try:
        for file in files:
            table, about = _looked_through(file, section, size, form, source, bar, read)
            read += file.bytes
            bar.advance(max((read >> 20) - bar.done, 0))
            if section.unreadable == "stop":
                bad = {int(row): why for row, why in about["bad"].items()}
                refuse_unreadable(bad, _row_names(file, table, about), section, len(table))
            if about["label"]:  # what was found in the first shard holds for all
                section = section.model_copy(update={"label": about["label"], "image": about["image"] or section.image})
                notes += about.pop("warnings")
            _note(held, file, table, about)
            tables.append(table)
            abouts.append(about)
    finally:
        bar.close()
    counts = [len(table) for table in tables]
    if not sum(counts):
        raise DataError(f"{source} has no sample with an image")
    of_shard = np.repeat(np.arange(len(files)), counts)
    splits = _splits(files, shards.home, abouts, counts, source)
    names = _names(files, abouts, of_shard, splits, source)
    bad = {
        int(start + int(row)): reason
        for start, about in zip(np.cumsum([0, *counts]), abouts, strict=False)
        for row, reason in about["bad"].items()
    }
    refuse_unreadable(bad, names, section, len(names))
    decoded = _decoded(files, tables, abouts, of_shard, size, form, bad)
    left_out = LeftOut()
    for file, about in zip(files, abouts, strict=True):
        if about["without"]:
            left_out.add("sample{s} without an image", f"{file.path.name}/{about['first']}", about["without"])
    warnings += [*notes, *left_out.sentences(source), *say_unreadable(bad, names), *held.warnings()]
    warnings += _large(decoded.pixels, files)
    labels = as_column(label for about in abouts for label in about["labels"]).tolist()
    groups = None
    if all(about["groups"] is not None for about in abouts):
        groups = np.array([group for about in abouts for group in about["groups"]])
    elif _kind(files[0].path) == "tar":
        groups = groups_of(section, names)
    listed = _declared(abouts, files) if shards.classes is None else shards.classes
    columns = {
        key: as_column(
            value for about, n in zip(abouts, counts, strict=True) for value in about["columns"].get(key, [""] * n)
        )
        for key in dict.fromkeys(key for about in abouts for key in about["columns"])
    }
    about_labels = f"{section.label} of {source}"
    return labeled_sets(
        decoded, splits, labels, about_labels, listed, names, groups, columns, section, source, warnings
    )


def has_shards(source: str) -> bool:
    """Whether a source has shards that `read` reads."""
    try:
        return bool(_find(source, []).files)
    except NoShards:
        return False


def _find(source: str, warnings: list[str]) -> Shards:
    far = remote.is_address(source)
    if not far and not webdataset.is_pattern(source) and not user_path(source).exists():
        raise _no_shards(source)
    place, left_out = Source(source if far else str(user_path(source))), LeftOut()
    found = list[Holder]()
    for holder in place.chosen(left_out, {NAMES}, arrays=False):
        if holder.kind == "image":
            raise _no_shards(source)
        found.append(holder)
    if not found:
        raise _no_shards(source)
    warnings += left_out.sentences(place.name)
    if packed := [name for holder in found if (name := place.shown(holder.path)).lower().endswith(ZIPPED_TAR)]:
        name = PurePosixPath(packed[0]).name
        raise NoShards(f"{name} is compressed as a whole, so that no image in it can be read alone")
    return _at_address(place, found) if far else _on_disk(place, found)


def _kind(path: Path) -> Kind:
    kind = kind_of(path.name)
    assert kind is not None
    return kind


def _on_disk(source: Source, found: Sequence[Holder]) -> Shards:
    paths = [Path(os.fsdecode(holder.path)) for holder in found]
    digests = cache.contents(paths, "\n".join(str(path.absolute()) for path in paths) + " as shards").values
    if "" in digests:
        raise DataError(f"{paths[digests.index('')]} cannot be read; is it a file that may be read?")
    files = [
        File(path, str(path), digest, path.stat().st_size, partial(on_disk, path), partial(_where_it_is, path))
        for path, digest in zip(paths, digests, strict=True)
    ]
    home = Path(source.name) if source.is_folder else None
    return Shards(files, home, webdataset.class_names([*([home] if home else []), paths[0].parent]))


def _where_it_is(path: Path) -> AbstractContextManager[Path]:
    return nullcontext(path)


def _at_address(source: Source, found: Sequence[Holder]) -> Shards:
    system, root = remote.open_system(source.name)
    top = root if source.is_folder else root.rpartition("/")[0]
    home, files = Path(PurePosixPath(top).name or "source"), list[File]()
    for holder in found:
        place = os.fsdecode(holder.path)
        name, path = source.shown(holder.path), home / place[len(top) :].lstrip("/")
        with remote.reading(source.name, name):
            info = system.info(place) if holder.info is None else holder.info
        # A file without a stamp may be another one at each start, so it is looked through again.
        stamp = remote.stamp_of(info) or [secrets.token_hex(8)]
        shard = partial(_remote_shard, name, system, place)
        local = partial(_fetched, system, place, path.name, name)
        files.append(File(path, name, repr(stamp), int(info.get("size") or 0), shard, local))
    return Shards(files, home if source.is_folder else None, _classes_at(source, system, f"{top}/{NAMES}"))


def _classes_at(source: Source, system: Any, place: str) -> tuple[str, ...] | None:
    with remote.reading(source.name, NAMES), parsing(f"{source.name}: {NAMES}", kind=DataError):
        if not system.isfile(place):
            return None
        text = system.cat_file(place, start=0, end=1 << 20).decode("utf-8-sig")
        return tuple(names_in_lines(text, f"{source.name}: {NAMES}"))


def _remote_shard(name: str, system: Any, place: str, column: str) -> Shard:
    return Shard(
        name,
        lambda: system.open(place, "rb"),
        lambda start, stop: system.cat_file(place, start=start, end=stop),
        column,
    )


@contextmanager
def _fetched(system: Any, place: str, file: str, name: str) -> Iterator[Path]:
    """A copy on the disk that is removed afterwards. Errors that name it name the address instead."""
    cache.cache_dir().mkdir(parents=True, exist_ok=True)
    folder = (
        cache.cache_dir() / f".shard.{secrets.token_hex(8)}.tmp"
    )  # one that is left is removed when it is a day old
    folder.mkdir()
    try:
        with remote.reading(name), system.open(place, "rb") as far, (folder / file).open("wb") as near:
            shutil.copyfileobj(far, near, remote.PIECE_BYTES)
        yield folder / file
    except PetriscopeError as error:
        raise type(error)(str(error).replace(str(folder / file), name)) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class NoShards(RequestError):
    """The source has no shards that can be streamed."""


def _no_shards(source: str) -> NoShards:
    return NoShards(f"{source} has no tar shards of a WebDataset and no Parquet files with images")


def _first_images(files: Sequence[File], section: DataSection, source: str) -> tuple[tuple[int, int], Channels]:
    """The size and the channels of all images: what the recipe says, or else what the first ones have."""
    form, file = form_of(section, section.channels), files[0]
    if section.height_width is not None and section.channels != "auto":
        return section.height_width, section.channels
    key = cache.make_key(
        "first images of shards", file.identity, file.path.name, section.height_width, form, section.image
    )

    def look() -> None:
        headers = []
        with file.local() as path:
            listed = _list(path, section, source)
            several = np.flatnonzero(listed.blocks == 0)[:FIRST]
            shard = on_disk(path, listed.about["image"] if _kind(path) == "table" else "", file.name)
            at, sizes = np.array(listed.at, dtype=np.int64), np.array(listed.sizes, dtype=np.int64)
            contents = shard.images(0, at, sizes, several) if len(several) else []
            for content in contents:
                headers.append(probe_file(InMemory(file.name, content), form))
        good = [header for header, _ in headers if header is not None]
        if not good:
            why = f": {headers[0][1]}" if headers else ""
            raise DataError(f"none of the first images of {file.name} can be read{why}")
        channels: Channels = section.channels
        if channels == "auto":
            channels = "gray" if all(header.gray for header in good) else "rgb"
            if any(header.names for header in good):
                channels = one_of({header.names: Path(file.name) for header in good})
        found = section.height_width or good[0][:2]
        cache.store(key, [0], np.dtype(np.uint8), [], {"size": found, "channels": channels})

    _, about = cache.fetch_or_store(key, False, look)
    channels = about["channels"]
    return tuple(about["size"]), tuple(channels) if isinstance(channels, list) else channels


def _list(path: Path, section: DataSection, source: str) -> Listed:
    return _list_table(path, section, source) if _kind(path) == "table" else _list_tar(path, section, source)


def _list_tar(path: Path, section: DataSection, source: str) -> Listed:
    size, samples = json.loads(webdataset.read_samples(path))
    archive = Archive(path, Listing([], [], size), "", index.Recalled([""], [None], [path]))
    every = [webdataset.Sample(*sample) for sample in samples]
    shard = webdataset.Shard(archive, every, None)
    placed = sorted(
        ((webdataset.chosen_image(shard, sample, section), sample) for sample in every if sample.images),
        key=lambda each: each[0][2],
    )
    pairs = [(shard, sample) for _, sample in placed]
    names, sizes, at = (
        (list(each) for each in zip(*(place for place, _ in placed), strict=True)) if placed else ([], [], [])
    )
    fields = [webdataset.fields_of(*pair) for pair in pairs]
    notes: list[str] = []
    label, labels = webdataset.labels_of(pairs, fields, section, source, notes) if pairs else ("", [])
    groups = webdataset.groups_in(fields, section)
    columns = webdataset.columns_of(fields, {label, section.group or "group"})
    without = [sample.key for sample in every if not sample.images]
    about = {
        "names": names,
        "labels": labels,
        "label": label,
        "image": "",
        "groups": None if groups is None else groups.tolist(),
        "columns": {key: values.tolist() for key, values in columns.items()},
        "splits": None,
        "declared": None,
        "without": len(without),
        "first": without[0] if without else "",
        "warnings": notes,
    }
    return Listed(at, sizes, blocks_of_tar(np.array(sizes, dtype=np.int64)), about)


def _list_table(path: Path, section: DataSection, source: str) -> Listed:
    import pyarrow.parquet as pq

    notes: list[str] = []
    image = parquet_images.image_column([path], section, notes)
    sizes, called, cells, declared = json.loads(parquet_images.read_table(path, image))
    table = parquet_images.Table(path, sizes, called, cells, declared, "", image)
    rows = [(table, row) for row in range(len(sizes))]
    label = parquet_images.label_column([table], section, source, notes) if rows else ""
    groups = parquet_images.groups_in(rows, section, source, notes) if rows else None
    columns = parquet_images.columns_of(rows, label) if rows else {}
    with pq.ParquetFile(path) as file:
        counts = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
    about = {
        "names": called if all(called) else [],
        "labels": [parquet_images.cell(table, label, row) for _, row in rows],
        "label": label,
        "image": image,
        "groups": None if groups is None else groups.tolist(),
        "columns": {key: values.tolist() for key, values in columns.items()},
        "splits": cells.get("split"),
        "declared": declared.get(label),
        "without": 0,
        "first": "",
        "warnings": notes,
    }
    return Listed([0] * len(sizes), sizes, np.repeat(np.arange(len(counts)), counts), about)


def _looked_through(
    file: File, section: DataSection, size: tuple[int, int], form: Form, source: str, bar: Progress, read: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """What is in a shard, as `ENTRY` for each image, and what else is known of it.

    Args:
        read: bytes of the shards before.
    """
    options = (section.height_width, size, form, section.image, section.label, section.group)
    key = cache.make_key("streamed", file.identity, file.path.name, options)

    def look() -> None:
        nonlocal read
        with file.local() as path:
            listed = _list(path, section, source)
            table = np.zeros(len(listed.at), dtype=ENTRY)
            table["at"], table["size"], table["block"] = listed.at, listed.sizes, listed.blocks
            table["micrometers"] = np.nan
            shard = on_disk(path, listed.about["image"], file.name)
            bad, notes = dict[int, str](), list[tuple[int, dict[str, int]]]()
            with ThreadPoolExecutor(workers()) as pool:
                for block in range(int(table["block"][-1]) + 1 if len(table) else 0):
                    rows = np.flatnonzero(table["block"] == block)
                    part = table[rows]
                    contents = shard.images(block, part["at"], part["size"], np.arange(len(rows)))
                    starts = range(0, len(rows), TASK)
                    task = partial(_look_at_some, contents, file.name, section.height_width, size, form)
                    for start, looks in zip(starts, pool.map(task, starts), strict=True):
                        for row, (total, digest, content, wrong) in zip(
                            rows[start : start + TASK].tolist(), looks, strict=True
                        ):
                            table[row]["sum"] = total
                            if content is None:
                                bad[row] = wrong
                                continue
                            _refuse_colors(section, form, content, file.name)
                            table[row]["digest"] = np.frombuffer(digest, dtype=np.uint8)
                            table[row]["height"], table[row]["width"] = content.size
                            table[row]["peak"], table[row]["bits"] = content.peak, content.bits
                            if content.micrometers is not None:
                                table[row]["micrometers"] = content.micrometers
                            if content.notes:
                                notes.append((row, dict(content.notes)))
                    read += int(part["size"].sum())
                    bar.advance(max((read >> 20) - bar.done, 0))
        cache.store(key, [len(table)], ENTRY, [table], {**listed.about, "bad": bad, "notes": notes})

    return cache.fetch_or_store(key, False, look)


def _look_at_some(
    contents: Sequence[bytes],
    name: str,
    size: tuple[int, int] | None,
    expected: tuple[int, int],
    form: Form,
    start: int,
) -> list[tuple[int, bytes, Content | None, str]]:
    """CRC-32, digest, what it holds, and what is wrong, of some images.

    Raises:
        DataError: one has another size than expected.
    """
    out: list[tuple[int, bytes, Content | None, str]] = []
    for content in contents[start : start + TASK]:
        total = zlib.crc32(content)
        if len(content) > MAX_BYTES:
            out.append((total, b"", None, f"its {len(content):,} bytes are more than {MAX_BYTES >> 30} GiB"))
            continue
        try:
            image, found = read_image(InMemory(name, content), size, form)
        except Unreadable as error:
            out.append((total, b"", None, str(error)))
            continue
        if image.shape[:2] != expected:
            raise DataError(
                f"{name} has an image of {image.shape[0]} x {image.shape[1]}, and the first ones have {expected[0]} x "
                f"{expected[1]}; what is streamed needs one size: give it with --set data.size=N"
            )
        out.append((total, row_digests(image[None]).tobytes(), found, ""))
    return out


def _refuse_colors(section: DataSection, form: Form, content: Content, name: str) -> None:
    if section.channels == "auto" and form.channels == "gray" and "color" in content.notes:
        raise DataError(
            f"the first images are gray, and {name} has one in color; choose with --set data.channels=rgb or gray"
        )


def _row_names(file: File, table: np.ndarray, about: dict[str, Any]) -> list[str]:
    return about["names"] or [f"{file.path.name} row {row}" for row in range(len(table))]


def _note(held: Contents, file: File, table: np.ndarray, about: dict[str, Any]) -> None:
    """Add what the images of a shard hold."""
    for bits in (8, 16):
        held.peaks[bits] += table["peak"][table["bits"] == bits].tolist()
    deep = np.flatnonzero(table["bits"] == 16)
    names = _row_names(file, table, about)
    if len(deep):
        held.deep = held.deep or names[deep[0]]
    for row, notes in about["notes"]:
        held.note(names[row], notes)


def _splits(
    files: Sequence[File], home: Path | None, abouts: Sequence[dict[str, Any]], counts: Sequence[int], source: str
) -> list[str]:
    """The split of each image."""
    tables = _kind(files[0].path) == "table"
    of = parquet_images.split_of_table if tables else webdataset.split_of_shard
    named = {file.path: of(file.path, home) for file in files}
    if tables and not all(named.values()) and all(about["splits"] is not None for about in abouts):
        out = list[str]()
        for file, about in zip(files, abouts, strict=True):
            for row, cell in enumerate(about["splits"]):
                if (split := split_of(cell or "")) is None:
                    raise DataError(f"{file.name}: unknown split {cell!r} in row {row} (counted from 0)")
                out.append(split)
        return out
    agreed = agreed_splits(named, source)
    return [agreed[file.path] for file, count in zip(files, counts, strict=True) for _ in range(count)]


def _names(
    files: Sequence[File], abouts: Sequence[dict[str, Any]], of_shard: np.ndarray, splits: Sequence[str], source: str
) -> list[str]:
    """The ids of all images."""
    names = [name for about in abouts for name in about["names"]]
    if _kind(files[0].path) == "tar":
        return webdataset.unique_names(names, [files[shard].path.name for shard in of_shard.tolist()], source)
    return parquet_images.ids_of(names if len(names) == len(splits) else [], splits)


def _decoded(
    files: Sequence[File],
    tables: Sequence[np.ndarray],
    abouts: Sequence[dict[str, Any]],
    of_shard: np.ndarray,
    size: tuple[int, int],
    form: Form,
    bad: dict[int, str],
) -> Decoded:
    """The images, as those of other files are handed on after decoding."""
    table = np.concatenate(tables)
    _, first, blocks = np.unique((of_shard << 32) + table["block"], return_index=True, return_inverse=True)
    where = Table(table["at"].copy(), table["size"].copy(), table["sum"].copy(), blocks, of_shard[first])
    shards = [file.shard(about["image"]) for file, about in zip(files, abouts, strict=True)]
    kept = np.setdiff1d(np.arange(len(table)), np.fromiter(bad, dtype=np.int64, count=len(bad)))
    sizes = np.stack([table["height"], table["width"]], axis=1)
    micrometers = table["micrometers"].copy()
    names: Names = names_of(form.channels)
    return Decoded(
        Streamed(shards, where, size, form),
        table["digest"].copy(),
        sizes,
        [],
        kept,
        [],
        names,
        micrometers=None if np.isnan(micrometers).all() else micrometers,
    )


def _declared(abouts: Sequence[dict[str, Any]], files: Sequence[File]) -> list[str] | None:
    """The class names that Parquet files declare."""
    found = [about["declared"] for about in abouts]
    for file, each in zip(files, found, strict=True):
        if each != found[0]:
            raise DataError(f"{files[0].name} and {file.name} differ in the class names that they declare")
    return found[0]


def _large(pixels: Any, files: Sequence[File]) -> list[str]:
    """A warning about row groups that take much memory."""
    table: Table = pixels.table
    held = np.bincount(table.blocks, table.sizes)
    if held.max() <= LARGE:
        return []
    first = files[int(table.shards[held.argmax()])].name
    return [
        f"{first} has a row group of {held.max() / 2**20:,.0f} MiB; each is read as a whole, so write smaller ones (some hundred "
        "images) to take less memory"
    ]
