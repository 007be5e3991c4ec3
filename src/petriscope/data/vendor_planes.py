"""Files of microscopes' makers through bioio: CZI of Zeiss, ND2 of Nikon, LIF of Leica."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from petriscope.core.channels import RGB, Names
from petriscope.data.in_memory import AnyFile
from petriscope.data.planes import MissingReader, Stack, channel_names


@contextmanager
def opened(path: AnyFile, kind: str, windowed: bool) -> Iterator[Stack]:
    """The planes of a file. Positions (scenes) and points in time are its pages.

    Args:
        kind: czi, nd2 or lif.

    Raises:
        MissingReader: the reader of the format is not installed.
        Exception: of any kind, if the file is damaged.
    """
    try:
        reader = import_module(f"bioio_{kind}").Reader
    except ImportError:
        raise MissingReader(
            f"reading it needs bioio-{kind}, which is not installed: pip install bioio bioio-{kind}, or pip install "
            f"'petriscope[{kind}]'"
        ) from None
    with warnings.catch_warnings(), _on_disk(path, kind) as place:
        warnings.simplefilter("ignore")
        yield _stack(reader(str(place)), kind, _positions(place) if kind == "czi" else 0)


@contextmanager
def _on_disk(path: AnyFile, kind: str) -> Iterator[Path]:
    """The file itself; or a copy, since these readers need a path."""
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="petriscope-") as folder:
        place = Path(folder) / f"image.{kind}"
        with path.open("rb") as handle:
            place.write_bytes(handle.read())
        yield place


def _positions(path: Path) -> int:
    """How many positions a CZI file has. bioio takes their number from the metadata, which may lack it."""
    with suppress(Exception), import_module("pylibCZIrw.czi").open_czi(str(path)) as file:
        return len(file.scenes_bounding_rectangle)
    return 0


def _stack(image: Any, kind: str, positions: int) -> Stack:
    scenes = list(image.scenes)
    dims = image.dims
    sizes = (int(dims.Y), int(dims.X))
    samples = int(dims.S) if "S" in dims.order else 1
    times, slices, colors = int(dims.T), int(dims.Z), int(dims.C)

    def load(page: int, z: int) -> np.ndarray:
        image.set_scene(scenes[page // times])
        if (int(image.dims.Y), int(image.dims.X)) != sizes:
            raise ValueError(
                f"its position {page // times + 1} has another size than the first; export its images as files of their own"
            )
        order = "YXCS" if samples > 1 else "YXC"
        values = np.asarray(image.get_image_data(order, T=page % times, Z=z))
        if kind == "czi" and samples > 1:  # which stores blue, green and red
            values = values[..., [2, 1, 0, *range(3, samples)]]
        return values.reshape(*sizes, colors * samples)

    return Stack(
        *sizes,
        _names(image, colors, samples),
        load,
        len(scenes) * times,
        slices,
        _micrometers(image),
        True,
        np.dtype(image.dtype).itemsize,
        noted={"positions": positions} if positions > len(scenes) else {},
    )


def _names(image: Any, colors: int, samples: int) -> Names:
    if colors == 1 and samples == 3:
        return RGB
    return channel_names([str(name) for name in image.channel_names or ()], colors * samples)


def _micrometers(image: Any) -> tuple[float, float] | None:
    size = image.physical_pixel_sizes
    if size.Y and size.X and size.Y > 0 and size.X > 0:
        return float(size.Y), float(size.X)
    return None
