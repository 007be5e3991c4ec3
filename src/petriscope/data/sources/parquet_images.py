"""Parquet files with the bytes of images, as the Hugging Face hub stores data sets: one file or several, named after splits."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from petriscope.core.errors import DataError, RequestError, near, shown
from petriscope.core.files import parsing, reason
from petriscope.core.names import tidy
from petriscope.core.recipe import DataSection
from petriscope.data import cache, index
from petriscope.data.decode import MAX_BYTES
from petriscope.data.decode_many import decode_files
from petriscope.data.imageset import ImageSet
from petriscope.data.in_memory import Within
from petriscope.data.omissions import LeftOut
from petriscope.data.sources.listing import (
    agreed_splits,
    as_column,
    group_column,
    is_called,
    labeled_sets,
    say_may_group,
)
from petriscope.data.sources.packed import Members, index_for, kept_bytes
from petriscope.data.sources.spelling import split_in, split_of
from petriscope.data.walk import Folder, count_others

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".parquet", ".pq")
ROWS = 64  # read at a time
BUFFER_BYTES = 1 << 20  # of a file; or else the images of a whole row group are in memory
REMEDY = "copy or download it again"


@dataclass(frozen=True, eq=False)
class Table:
    """What a file has beside the bytes of its images.

    Args:
        path: of the file.
        sizes: bytes of each image.
        paths: what the file says that each image was called; empty: nothing.
        cells: of the other columns, as text; None is an empty cell.
        names: of the classes in a column of class numbers, by column.
        digest: of the bytes of the file.
        image: the column of the images.
    """

    path: Path
    sizes: list[int]
    paths: list[str]
    cells: dict[str, list[str | None]]
    names: dict[str, list[str]]
    digest: str
    image: str

    def files(self, places: Sequence[int]) -> list[Within]:
        """The images, as files. Their bytes are kept in the cache, because a row cannot be read alone."""
        starts = np.cumsum([0, *self.sizes])
        data: list[np.ndarray] = []

        def load(row: int) -> bytes:
            if self.sizes[row] > MAX_BYTES:
                raise ValueError(f"its {self.sizes[row]:,} bytes are more than {MAX_BYTES >> 30} GiB")
            if not data:
                key = cache.make_key("images of a table", self.digest, self.image)
                data.append(kept_bytes(key, int(starts[-1]), _pieces(self.path, self.image)))
            return data[0][starts[row] : starts[row + 1]].tobytes()

        return [Within(f"{self.path} row {row}", self.sizes[row], partial(load, row)) for row in places]


def find_tables(tree: Folder, left_out: LeftOut) -> list[Path]:
    """The Parquet files in a folder that has no images."""
    found = [part.path / name for part in tree.all() for name in part.others if name.lower().endswith(SUFFIXES)]
    count_others(tree, left_out, {path.name for path in found})
    return found


def holds_images(path: Path, section: DataSection) -> bool:
    """Whether a Parquet file has the bytes of images rather than their paths."""
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
    except Exception:  # what is wrong with it is said by whoever reads it as a table
        return False
    if _image_columns(schema):
        return True
    name = section.image
    return name is not None and name in schema.names and _has_bytes(schema.field(schema.names.index(name)).type)


def read(
    paths: Sequence[Path], source: str, section: DataSection, warnings: list[str], home: Path | None = None
) -> dict[str, ImageSet]:
    """Read images that are in Parquet files. Their ids are the names that the files have for them, if all have one of their
    own, or else ``split/row``.

    Args:
        paths: of the files. Words such as train in their names, or in those of their folders below ``home``, are splits; so
            is a column ``split``.
        source: what the user named.
        section: ``image``, ``label`` and ``group`` are columns; a column ``group`` is found.
        home: the folder that was named.

    Raises:
        DataError: a file is damaged, or a row has no image or no label; the message names both.
        RequestError: it cannot be told which column is meant.
    """
    image = image_column(paths, section, warnings)
    where = "\n".join(str(path.absolute()) for path in paths)
    found = index.recall(index_for(f"rows {image}", where), paths, partial(read_table, image=image))
    digests = cache.contents(paths, f"{where} as tables of images")
    tables = []
    for path, text, digest in zip(paths, found.values, digests.values, strict=True):
        if not text or not digest:
            raise DataError(f"{path} cannot be read; is it a file that may be read?")
        sizes, called, cells, declared = json.loads(text)
        tables.append(Table(path, sizes, called, cells, declared, digest, image))
    rows = [(table, row) for table in tables for row in range(len(table.sizes))]
    if not rows:
        raise DataError(f"{source} has no rows")
    splits = _splits(tables, home, source)
    names = ids_of([name for table in tables for name in table.paths], splits)
    column = label_column(tables, section, source, warnings)
    labels = [cell(table, column, row) for table, row in rows]
    files = [file for table in tables for file in table.files(range(len(table.sizes)))]
    known = Members([f"{table.digest} {image} {row}" for table, row in rows], found)
    with parsing(source, kind=DataError):
        decoded = decode_files(files, names, section, source, known)
    warnings += decoded.warnings
    about, listed = f"the column {column} of {source}", class_names(tables, column)
    groups, columns = groups_in(rows, section, source, warnings), columns_of(rows, column)
    if groups is None:
        warnings += say_may_group(columns, section, source)
    return labeled_sets(decoded, splits, labels, about, listed, names, groups, columns, section, source, warnings)


def _image_columns(schema: pa.Schema) -> list[str]:
    """The columns that may have the bytes of images."""
    import pyarrow as pa

    found = [field for field in schema if _has_bytes(field.type)]
    structs = [field.name for field in found if pa.types.is_struct(field.type)]
    return structs or [field.name for field in found if "image" in field.name.lower()]


def _has_bytes(kind: pa.DataType) -> bool:
    """Whether a column of this type has bytes, by itself or as a field ``bytes``."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(part.name == "bytes" and _has_bytes(part.type) for part in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _check_bytes(schema: pa.Schema, name: str, path: str) -> None:
    """
    Raises:
        DataError: a column that was asked for has no bytes.
    """
    kind = schema.field(schema.names.index(name)).type
    if not _has_bytes(kind):
        raise DataError(f"{path}: the column {name} has no bytes of images, but is of type {kind}")


def image_column(paths: Sequence[Path], section: DataSection, warnings: list[str]) -> str:
    import pyarrow.parquet as pq

    found: list[str] = []
    for path in paths:
        if not path.is_file():  # a named pipe would be waited for without end
            raise DataError(f"{path} is no regular file")
        with parsing(path, REMEDY, DataError):
            schema = pq.read_schema(path)
        if section.image is not None:
            if section.image not in schema.names:
                raise RequestError(
                    f"data.image: {path} has no column {section.image!r}; {near(section.image, schema.names)}"
                )
            _check_bytes(schema, section.image, str(path))
            found = [section.image]
            continue
        columns = _image_columns(schema)
        if not columns:
            raise DataError(f"{path} has no column of images (bytes); its columns are {', '.join(schema.names)}")
        if len(columns) > 1 or (found and columns != found):
            every = dict.fromkeys([*found, *columns])
            raise RequestError(f"{path}: images may be {' or '.join(every)}; choose with --set data.image=COLUMN")
        found = columns
    if section.image is None and found[0] != "image":
        warnings.append(f"images were read from the column {found[0]}")
    return found[0]


def image_in(schema: pa.Schema, name: str, asked: str | None) -> str:
    """The column of the images of a file that is called ``name``; ``asked`` if the file has it.

    Raises:
        DataError: it has none.
        RequestError: it has several.
    """
    if asked is not None and asked in schema.names:
        _check_bytes(schema, asked, name)
        return asked
    found = _image_columns(schema)
    if not found:
        raise DataError(f"{name} has no column of images (bytes); its columns are {', '.join(schema.names)}")
    if len(found) > 1:
        raise RequestError(f"{name}: images may be {' or '.join(found)}; keep one of these columns")
    return found[0]


def bytes_in(column: pa.Array) -> Iterator[bytes | None]:
    """The bytes of each image of a column; None where there are none."""
    import pyarrow as pa

    data = column.field("bytes") if pa.types.is_struct(column.type) else column
    for whole, part in zip(column, data, strict=True):
        yield part.as_py() if whole.is_valid else None


def read_table(path: Path, image: str) -> str:
    """The fields of `Table` between path and digest, as JSON."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sizes, names, cells = list[int](), list[str](), dict[str, list[str | None]]()
    with parsing(path, REMEDY, DataError), pq.ParquetFile(path, buffer_size=BUFFER_BYTES) as file:
        schema = file.schema_arrow
        plain = [
            field.name
            for field in schema
            if field.name != image and not pa.types.is_nested(field.type) and schema.names.count(field.name) == 1
        ]
        cells = {name: [] for name in plain}
        try:
            for batch in file.iter_batches(ROWS, columns=[image, *plain]):
                data, called = bytes_and_paths(batch.column(image), path, len(sizes))
                sizes += [len(each) for each in data]
                names += called
                for name in plain:
                    cells[name] += [None if each is None else _text(each) for each in batch.column(name).to_pylist()]
        except DataError:
            raise
        except Exception as error:  # the parser raises many kinds on damaged files
            raise DataError(f"{path} is damaged behind row {len(sizes):,}: {reason(error)}; {REMEDY}") from None
        if len(sizes) != file.metadata.num_rows:
            raise DataError(f"{path} has {len(sizes):,} of its {file.metadata.num_rows:,} rows; {REMEDY}")
        known = _declared(schema)
    return json.dumps([sizes, names, cells, known])


def bytes_and_paths(column: pa.Array, path: Path, start: int) -> tuple[list[Any], list[str]]:
    import pyarrow as pa

    struct = pa.types.is_struct(column.type)
    data = column.field("bytes") if struct else column
    has_paths = struct and any(part.name == "path" for part in column.type)
    called = [str(each or "") for each in column.field("path").to_pylist()] if has_paths else [""] * len(column)
    buffers = [each.as_buffer() for each in data] if not data.null_count and not column.null_count else data.to_pylist()
    for row, each in enumerate(buffers):
        if each is None or not len(each):
            where = f", only the path {shown(called[row])}" if called[row] else ""
            raise DataError(f"{path}: row {start + row} (counted from 0) has no bytes of an image{where}")
    return buffers, called


def _pieces(path: Path, image: str) -> Iterator[np.ndarray]:
    """The bytes of all images."""
    import pyarrow.parquet as pq

    start = 0
    with parsing(path, REMEDY, DataError), pq.ParquetFile(path, buffer_size=BUFFER_BYTES) as file:
        for batch in file.iter_batches(ROWS, columns=[image]):
            for each in bytes_and_paths(batch.column(image), path, start)[0]:
                yield np.frombuffer(each, dtype=np.uint8)
            start += len(batch)


def _declared(schema: pa.Schema) -> dict[str, list[str]]:
    """The class names that the hub notes for columns of class numbers."""
    noted = (schema.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(noted or b"{}")["info"]["features"]
        found = {name: each.get("names") for name, each in features.items() if isinstance(each, dict)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return {
        name: names
        for name, names in found.items()
        if isinstance(names, list) and all(isinstance(n, str) for n in names)
    }


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return tidy(value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value))


def _splits(tables: Sequence[Table], home: Path | None, source: str) -> list[str]:
    """The split of each row."""
    named = {table.path: split_of_table(table.path, home) for table in tables}
    if not all(named.values()) and all("split" in table.cells for table in tables):
        out = list[str]()
        for table in tables:
            for row, cell in enumerate(table.cells["split"]):
                if (split := split_of(cell or "")) is None:
                    raise DataError(f"{table.path}: unknown split {cell!r} in row {row} (counted from 0)")
                out.append(split)
        return out
    agreed = agreed_splits(named, source)
    return [agreed[table.path] for table in tables for _ in table.sizes]


def split_of_table(path: Path, home: Path | None) -> str | None:
    folders = path.relative_to(home).parts[:-1] if home is not None else ()
    found = [split for folder in folders if (split := split_of(folder))]
    return split_in(path.stem) or (found[-1] if found else None)


def ids_of(called: Sequence[str], splits: Sequence[str]) -> list[str]:
    """The names that files have for their images, if all have one of their own, or else ``split/row``."""
    names = [tidy(name) for name in called]
    if len(names) == len(splits) and all(names) and len({*names}) == len(names):
        return names
    counts: Counter[str] = Counter()
    out = []
    for split in splits:
        out.append(f"{split}/{counts[split]}")
        counts[split] += 1
    return out


def label_column(tables: Sequence[Table], section: DataSection, source: str, warnings: list[str]) -> str:
    """The column of labels."""
    every = [name for name in tables[0].cells if all(name in table.cells for table in tables)]
    if section.label is not None:
        if section.label not in every:
            raise RequestError(f"data.label: {source} has no column {section.label!r}; {near(section.label, every)}")
        return section.label
    found = [name for name in every if name == "label"] or [name for name in every if is_called(name, "label")]
    found = found or [name for name in every if name in tables[0].names]
    if len(found) != 1:
        if not every:
            raise RequestError(f"{source}: there is no column of labels, and none but that of the images")
        which = f"labels may be {' or '.join(found)}" if found else f"no labels were found among {', '.join(every)}"
        raise RequestError(f"{source}: {which}; choose with --set data.label=COLUMN")
    if found[0] != "label":
        warnings.append(f"labels were read from the column {found[0]}")
    return found[0]


def class_names(tables: Sequence[Table], column: str) -> list[str] | None:
    found = [table.names.get(column) for table in tables]
    if any(each != found[0] for each in found):
        raise DataError(f"{tables[0].path} and other files differ in the class names of {column}")
    return found[0]


def cell(table: Table, column: str, row: int) -> str:
    if not (value := table.cells[column][row]):
        raise DataError(f"{table.path}: the cell {column} of row {row} (counted from 0) is empty")
    return value


def groups_in(
    rows: Sequence[tuple[Table, int]], section: DataSection, source: str, warnings: list[str]
) -> np.ndarray | None:
    tables = [*dict.fromkeys(table for table, _ in rows)]
    shared = [name for name in tables[0].cells if all(name in table.cells for table in tables)]
    name = group_column(shared, section, source, warnings)
    return None if name is None else np.array([cell(table, name, row) for table, row in rows])


def columns_of(rows: Sequence[tuple[Table, int]], label: str) -> dict[str, np.ndarray]:
    first = rows[0][0].cells
    return {
        name: as_column(table.cells.get(name, [None] * (row + 1))[row] or "" for table, row in rows)
        for name in first
        if name not in (label, "split", "group", "")
    }
