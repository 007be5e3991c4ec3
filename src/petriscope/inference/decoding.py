"""Image files: found, and decoded into the shape of a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from petriscope.core.errors import DataError, RequestError
from petriscope.core.progress import say
from petriscope.data.contents import Content, Contents
from petriscope.data.decode import Channels, decode_with_content, workers
from petriscope.data.in_memory import AnyFile
from petriscope.data.index import row_digests
from petriscope.data.rescale import rescale, scale_factors
from petriscope.data.walk import LeftOut, count_others, walk
from petriscope.inference.base import Predicts, Reading

CHUNK = 256  # images decoded, and in memory, at a time
KEPT_BYTES = 2**28  # of images that are decoded once for two uses


@dataclass(frozen=True, eq=False)
class DecodedFile:
    """An image file in the shape of a model.

    Args:
        pixels: at the scale of its recipe, uint8 [H, W, C].
        plain: as it was before it was scaled, by which images are recognized.
        size: height and width in the file.
    """

    pixels: np.ndarray
    plain: np.ndarray
    size: tuple[int, int]


Attempt = tuple[DecodedFile | str, Content | None]  # an image, or what is wrong with its file; and what the file holds


def find_images(paths: Sequence[AnyFile]) -> list[AnyFile]:
    """The given files, and all images in the given folders and their subfolders.

    Raises:
        RequestError: a path does not exist, or a folder has no images.
    """
    found: list[AnyFile] = []
    for path in paths:
        if not isinstance(path, Path):
            found.append(path)
        elif path.is_dir():
            left_out = LeftOut()
            tree = walk(path, left_out)
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
    return found


def read_file(path: AnyFile, shape: tuple[int, int, int], reading: Reading) -> tuple[DecodedFile, Content]:
    """An image file in the shape of a model, (height, width, channels), and what the file holds beside it.

    Raises:
        DataError: it cannot be read, or not be scaled.
    """
    channels: Channels = "gray" if shape[2] == 1 else "rgb"
    plain, content = decode_with_content(path, shape[:2], reading.filter, channels, reading.bits)
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
    (height, width, channels), reading = model.shape, model.reading
    held = Contents(reading.bits, reading.gray)
    known: dict[AnyFile, Attempt] = {} if kept is None else kept
    most = KEPT_BYTES // (height * width * channels * (1 if reading.scale is None else 2)) if keep else 0

    def attempt(path: AnyFile) -> Attempt:
        if not keep and (found := known.pop(path, None)) is not None:
            return found
        try:
            return read_file(path, model.shape, reading)
        except DataError as error:
            return str(error), None

    with ThreadPoolExecutor(workers()) as pool:
        for start in range(0, len(paths), chunk):
            block = paths[start : start + chunk]
            images = []
            for path, (image, content) in zip(block, pool.map(attempt, block), strict=True):
                images.append(image)
                if len(known) < most:
                    known[path] = image, content
                if content is not None:
                    held.add(str(path), content)
            yield block, images
    for warning in held.warnings() if tell else ():
        say(f"warning: {warning}")


def digests_of(images: Sequence[DecodedFile]) -> list[bytes]:
    """The digests that images are recognized by, as `petriscope.data.imageset.ImageSet.digests`."""
    return [bytes(each) for each in row_digests(np.stack([image.plain for image in images]))] if images else []
