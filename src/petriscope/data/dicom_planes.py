"""DICOM files by pydicom: frames, rescaling, window, and what their colors are."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from petriscope.core.channels import GRAY, RGB
from petriscope.data.in_memory import AnyFile
from petriscope.data.planes import MissingReader, Stack

MONOCHROME = ("MONOCHROME1", "MONOCHROME2")
COLORS = ("RGB", "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT")


@contextmanager
def opened(path: AnyFile, kind: str, windowed: bool) -> Iterator[Stack]:
    """The frames of a DICOM file.

    Gray values are those after rescaling (Hounsfield units in CT). With ``windowed``, they are float32 in 0..1: by the window of
    the file (PS3.3 C.11.2), the first of several; without one, of all values that can be stored. MONOCHROME1 is inverted then, so
    that bright is high. Colors are RGB.

    Raises:
        MissingReader: pydicom, or what it needs for the compression, is not installed.
        Exception: of any kind, if the file is damaged.
    """
    try:
        import pydicom
    except ImportError:
        raise MissingReader(
            "reading it needs pydicom, which is not installed: pip install pydicom, or pip install 'petriscope[dicom]'"
        ) from None
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # what it cannot read is said here, or raised
    with path.open("rb") as handle, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = pydicom.dcmread(handle, defer_size=None)
        yield _stack(data, windowed)


def _stack(data: Any, windowed: bool) -> Stack:
    if "PixelData" not in data:
        found = "floating-point pixels, which are not read" if "FloatPixelData" in data else "no pixels"
        raise ValueError(f"this DICOM file has {found}")
    photometric = str(data.get("PhotometricInterpretation", "MONOCHROME2"))
    if photometric not in (*MONOCHROME, *COLORS):
        raise ValueError(f"its photometric interpretation, {photometric}, is not read")
    gray = photometric in MONOCHROME
    frames = int(data.get("NumberOfFrames") or 1)
    windows = 0
    with suppress(Exception):
        center = data.WindowCenter
        windows = len(center) if not isinstance(center, (str, float, int)) and hasattr(center, "__len__") else 1

    def load(page: int, z: int) -> np.ndarray:
        return _gray(data, page, windowed) if gray else _color(data, page, photometric)

    noted = {}
    if gray and windowed and not windows and "VOILUTSequence" not in data:
        noted["no window"] = int(data.BitsStored)
    if gray and windowed and windows > 1:
        noted["windows"] = windows
    return Stack(
        int(data.Rows),
        int(data.Columns),
        GRAY if gray else RGB,
        load,
        frames,
        1,
        _micrometers(data),
        False,
        4 if gray else 1,
        1,
        noted,
    )


def _pixels(data: Any, page: int) -> np.ndarray:
    """A frame, [H, W] or [H, W, 3], with colors as RGB."""
    from pydicom.pixels import pixel_array

    try:
        return np.asarray(pixel_array(data, index=page))
    except RuntimeError as error:
        if "required dependencies" in str(error) or "missing" in str(error):
            raise MissingReader(
                f"its compression, {data.file_meta.TransferSyntaxUID.name}, needs another package: pip install "
                "'pylibjpeg[all]' (see pydicom's documentation on compressed pixel data)"
            ) from None
        raise


def _gray(data: Any, page: int, windowed: bool) -> np.ndarray:
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    stored = _pixels(data, page)
    values = np.asarray(apply_modality_lut(stored, data))
    if not windowed:
        return values.astype(np.float32)[..., None]
    bits, signed = int(data.BitsStored), int(data.PixelRepresentation) == 1
    ends = np.array([-(1 << bits - 1), (1 << bits - 1) - 1] if signed else [0, (1 << bits) - 1])
    if "WindowCenter" in data or "VOILUTSequence" in data:
        shown = np.asarray(apply_voi_lut(values, data), dtype=np.float64)
        low, high = _shown_range(data, ends)
    else:
        shown = values.astype(np.float64)
        low, high = sorted(np.asarray(apply_modality_lut(ends.astype(stored.dtype), data), dtype=np.float64).tolist())
    out = ((shown - low) / (high - low)).clip(0, 1)
    if data.PhotometricInterpretation == "MONOCHROME1":
        out = 1 - out
    return out.astype(np.float32)[..., None]


def _shown_range(data: Any, ends: np.ndarray) -> tuple[float, float]:
    """The values that `apply_voi_lut` gives to what is darkest and brightest."""
    from pydicom.pixels import apply_modality_lut

    if "VOILUTSequence" in data:
        bits = int(data.VOILUTSequence[0].LUTDescriptor[2])
        return 0.0, float((1 << bits) - 1)
    if "ModalityLUTSequence" in data:
        bits = int(data.ModalityLUTSequence[0].LUTDescriptor[2])
        return 0.0, float((1 << bits) - 1)
    low, high = sorted(np.asarray(apply_modality_lut(ends, data), dtype=np.float64).tolist())
    return low, high


def _color(data: Any, page: int, photometric: str) -> np.ndarray:
    found = _pixels(data, page)
    if photometric != "PALETTE COLOR":
        if found.ndim != 3 or found.shape[2] != 3:
            raise ValueError(f"its photometric interpretation is {photometric}, and it has no three channels")
        return found
    from pydicom.pixels import apply_color_lut

    colors = np.asarray(apply_color_lut(found, data))[..., :3]
    bits = int(data.RedPaletteColorLookupTableDescriptor[2])
    return (colors >> 8).astype(np.uint8) if bits == 16 else colors.astype(np.uint8)


def _micrometers(data: Any) -> tuple[float, float] | None:
    """Height and width of a pixel."""
    with suppress(Exception):
        spacing = (
            data.get("PixelSpacing") or data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
        )
        height, width = (float(each) * 1000 for each in spacing)
        return (height, width) if 0 < height < 1e9 and 0 < width < 1e9 else None
    return None
