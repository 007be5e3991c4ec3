"""Open a file of planes by the library of its format, which is imported then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from petriscope.data import dicom_planes, tiff_planes, vendor_planes
from petriscope.data.in_memory import AnyFile
from petriscope.data.planes import MAX_PIXELS, Stack


@contextmanager
def open_stack(path: AnyFile, kind: str, windowed: bool = True) -> Iterator[Stack]:
    """Open a file of planes. Nothing is decoded yet.

    Args:
        kind: from `kind_of`.
        windowed: whether the window that a DICOM file asks for is applied, after which values go from 0 to 1.

    Raises:
        MissingReader: the message names the package that is not installed.
        Exception: of any kind, if the file is damaged.
    """
    opened = {"tiff": tiff_planes.opened, "dicom": dicom_planes.opened}.get(kind, vendor_planes.opened)
    with opened(path, kind, windowed) as stack:
        if stack.height * stack.width > MAX_PIXELS:
            raise ValueError(f"{stack.width} x {stack.height} is more than {MAX_PIXELS // 1_000_000} megapixels")
        yield stack
