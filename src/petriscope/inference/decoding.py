"""Image files: found, and decoded into the shape of a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np

from petriscope.core.drawing import shown
from petriscope.core.errors import DataError, RequestError
from petriscope.core.progress import say
from petriscope.data.contents import Content, Contents
from petriscope.data.decode import Form, decode_as, pages_of, workers
from petriscope.data.in_memory import AnyFile
from petriscope.data.index import row_digests
from petriscope.data.omissions import LeftOut
from petriscope.data.planes import Pages
from petriscope.data.rescale import rescale, scale_factors
from petriscope.data.walk import count_others, set_arrays_apart, walk
from petriscope.inference.base import Predicts, Reading

CHUNK = 256  # images decoded, and in memory, at a time
TASK = 8  # images that a thread decodes at a time
# Files that hold or list images; the first two kinds are read where predictions go into shards.
CONTAINERS = (".tar", ".parquet", ".csv", ".tsv", ".jsonl", ".npz", ".zip", ".gz", ".tgz", ".h5", ".hdf5", ".xlsx")
KEPT_BYTES = 2**28  # of images that are decoded once for two uses


@dataclass(frozen=True, eq=False)
class DecodedFile:
    """An image file in the shape of a model, or in its own size where masks are predicted by tiles.

    Args:
        pixels: at the scale of its recipe, uint8 or uint16 [H, W, C].
        plain: as it was before it was scaled, by which images are recognized.
        size: height and width in the file.
    """

    pixels: np.ndarray
    plain: np.ndarray
    size: tuple[int, int]


Attempt = tuple[DecodedFile | str, Content | None]  # an image, or what is wrong with its file; and what the file holds


def find_images(paths: Sequence[AnyFile], pages: Pages = "auto") -> list[AnyFile]:
    """The given files, and all images in the given folders and their subfolders; or their pages, where these are images.

    Raises:
        RequestError: a path does not exist, a folder has no images, or the only path is a table or an archive.
    """
    if len(paths) == 1 and isinstance(only := paths[0], Path) and only.suffix.lower() in CONTAINERS and only.is_file():
        shards = " Its images are read with --out FOLDER --shards N" if only.suffix.lower() in CONTAINERS[:2] else ""
        raise RequestError(f"{only} is no image file; name image files or folders of them.{shards}")
    found: list[AnyFile] = []
    for path in paths:
        if not isinstance(path, Path):
            found.append(path)
        elif path.is_dir():
            left_out = LeftOut()
            tree = walk(path, left_out)
            set_arrays_apart(tree)
            count_others(tree, left_out)
            notes = left_out.sentences(path)
            if not tree.count:
                raise RequestError(". ".join([f"no images in {path}", *notes]))
            found += sorted(folder.path / name for folder in tree.all() for name in folder.images)
            for note in notes:
                say(note)
        elif path.exists():
            found.append(path)
        else:
            raise RequestError(f"no such image or folder: {path}")
    return found if pages != "images" else [page for path in found for page in pages_of(path)]


def read_file(
    path: AnyFile, shape: tuple[int, int, int], reading: Reading, form: Form | None = None
) -> tuple[DecodedFile, Content]:
    """An image file in the shape of a model, (height, width, channels), and what the file holds beside it.

    Args:
        form: that of ``reading``, for callers that have it.

    Raises:
        DataError: it cannot be read, or not be scaled.
    """
    size = shape[:2] if reading.overlap is None else None
    plain, content = decode_as(path, size, form or reading.form(shape[2]))
    if reading.scale is None:
        return DecodedFile(plain, plain, content.size), content
    try:
        factors = scale_factors(np.array([content.size]), reading.scale, reading.field_of_view)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    return DecodedFile(rescale(plain[None], factors)[0], plain, content.size), content


def decoded(
    model: Predicts,
    paths: Sequence[AnyFile],
    chunk: int = CHUNK,
    tell: bool = True,
    kept: dict[AnyFile, Attempt] | None = None,
    keep: bool = False,
) -> Iterator[tuple[Sequence[AnyFile], list[DecodedFile | str]]]:
    """Chunks of paths, each with its decoded images. An image that cannot be read is replaced by the error message.

    Args:
        tell: at the end, say what the files hold beside these images.
        kept: files that were decoded before, which are taken from it; with ``keep``, files are added, up to `KEPT_BYTES`.
    """
    held = Contents(model.reading.bits, model.reading.gray)
    blocks = (paths[start : start + chunk] for start in range(0, len(paths), chunk))
    yield from decoded_blocks(model, blocks, held, kept, keep)
    for warning in held.warnings() if tell else ():
        say(f"warning: {warning}")


def decoded_blocks(
    model: Predicts,
    blocks: Iterable[Sequence[AnyFile]],
    held: Contents,
    kept: dict[AnyFile, Attempt] | None = None,
    keep: bool = False,
    threads: int | None = None,
) -> Iterator[tuple[Sequence[AnyFile], list[DecodedFile | str]]]:
    """`decoded` for blocks of any number of files, one block in memory at a time.

    Args:
        held: takes what the files hold beside the images.
        threads: that decode; None: one per core.
    """
    (height, width, channels), reading = model.shape, model.reading
    known: dict[AnyFile, Attempt] = {} if kept is None else kept
    shape, form = model.shape, reading.form(channels)
    size = height * width * channels * reading.depth // 8
    most = KEPT_BYTES // (size * (1 if reading.scale is None else 2)) if keep else 0

    def attempt(path: AnyFile) -> Attempt:
        if not keep and (found := known.pop(path, None)) is not None:
            return found
        try:
            return read_file(path, shape, reading, form)
        except DataError as error:
            return str(error), None

    def attempts(paths: Sequence[AnyFile]) -> list[Attempt]:
        return [attempt(path) for path in paths]

    threads = threads or workers()
    with ThreadPoolExecutor(threads) as pool:
        run = pool.map if threads > 1 else map
        for block in blocks:
            images = []
            each = chain.from_iterable(run(attempts, [block[i : i + TASK] for i in range(0, len(block), TASK)]))
            for path, (image, content) in zip(block, each, strict=True):
                images.append(image)
                if len(known) < most:
                    known[path] = image, content
                if content is not None:
                    held.add(str(path), content)
            yield block, images


def pixels_to_show(path: AnyFile, reading: Reading, channels: int) -> np.ndarray:
    """An image file in its own size, as people can see it, uint8 [H, W, 1 or 3]; in color even if the model takes gray.

    Args:
        channels: that the model takes.

    Raises:
        DataError: it cannot be read.
    """
    form = reading.form(channels)
    if reading.depth == 8 and reading.range is None and not reading.channels:
        form = replace(form, channels="rgb")
    return shown(decode_as(path, None, form)[0], reading.channels)


def digests_of(images: Sequence[DecodedFile]) -> list[bytes]:
    """The digests that images are recognized by, as `petriscope.data.imageset.ImageSet.digests`."""
    return [row_digests(image.plain[None]).tobytes() for image in images]
