"""Find image files that are unreadable, truncated, or of an unusual size."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from petriscope.core.errors import DataError
from petriscope.core.progress import track
from petriscope.data.decode import MAX_BYTES, decode_file, probe_file, workers
from petriscope.data.plain_png import SIGNATURE
from petriscope.data.sources.listing import ImageFile
from petriscope.data.sources.mask_files import read_mask

ODD_FACTOR = 1.5  # of the side or the aspect ratio to the median
ODD_SPREADS = 5.0  # robust standard deviations, for sets whose sizes vary widely
CUT_SHORT = "the file ends before its image is complete"


@dataclass(frozen=True)
class FileFault:
    """A fault of a file.

    Args:
        id: the image's id.
        finding: ``truncated``, ``unreadable`` or ``odd_size``.
        evidence: a description of the fault.
        score: 1; for an odd size, the factor by which its side or aspect ratio differs from the median.
        readable: whether the image could be decoded nevertheless.
    """

    id: str
    finding: str
    evidence: str
    score: float
    readable: bool


def check_files(files: Sequence[ImageFile], readable: Collection[str], *, quiet: bool = True) -> list[FileFault]:
    """Check every file of a source, in the given order.

    Args:
        files: the files of the source.
        readable: the ids of the images that were decoded.
        quiet: show no progress.
    """
    with ThreadPoolExecutor(workers()) as pool:
        looked = pool.map(_look, files, chunksize=64)
        steps = looked if quiet else track(looked, "checking files", len(files))
        sizes, cut = zip(*steps, strict=True) if files else ((), ())
    faults = []
    for file, size, is_cut, odd in zip(files, sizes, cut, _odd_sizes(sizes), strict=True):
        if file.id not in readable:
            reason = _why_unreadable(file)
            is_cut = is_cut or "truncated" in reason
            faults.append(FileFault(file.id, "truncated" if is_cut else "unreadable", reason, 1.0, False))
            continue
        if is_cut:
            evidence = f"{CUT_SHORT}; the rest was read"
            faults.append(FileFault(file.id, "truncated", evidence, 1.0, True))
        if odd is not None:
            usual = _median_size(sizes)
            evidence = f"{size[0]} x {size[1]} pixels (height x width); {usual[0]:.0f} x {usual[1]:.0f} is usual"
            faults.append(FileFault(file.id, "odd_size", evidence, odd, True))
    return faults


def is_cut_short(data: bytes) -> bool:
    """Whether the bytes of an image file end before the end that its format defines; False for formats without one."""
    if data.startswith(b"\xff\xd8"):
        # Within a scan, 0xFF is followed by 0 or a restart marker, so the end marker cannot occur by chance.
        start = data.find(b"\xff\xda")
        return start < 0 or data.find(b"\xff\xd9", start) < 0
    if data.startswith(SIGNATURE):
        return b"IEND" not in data[-64:] and b"IEND\xaeB`\x82" not in data
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return len(data) < int.from_bytes(data[4:8], "little") + 8
    if data.startswith((b"GIF87a", b"GIF89a")):
        return not data.rstrip(b"\0").endswith(b";")
    if data.startswith(b"BM"):
        claimed = int.from_bytes(data[2:6], "little")
        return 0 < len(data) < claimed
    return False


def _look(file: ImageFile) -> tuple[tuple[int, int] | None, bool]:
    """(height, width) from the header, or None; and whether the file is truncated."""
    path = file.path
    try:
        if isinstance(path, Path) and (not path.is_file() or path.stat().st_size > MAX_BYTES):
            return None, False
        with path.open("rb") as handle:
            cut = is_cut_short(handle.read())
    except Exception:  # there is no end to what is raised if an archive is damaged
        return None, False
    header, _ = probe_file(file.path)
    return (None if header is None else header[:2]), cut


def _why_unreadable(file: ImageFile) -> str:
    try:
        decode_file(file.path)
    except DataError as error:
        return str(error).partition("cannot be read as an image: ")[2]
    try:
        if file.mask is not None:
            read_mask(file.mask, file.path)
    except DataError as error:
        return str(error)
    return "it became readable during the audit; audit again"


def _median_size(sizes: Sequence[tuple[int, int] | None]) -> np.ndarray:
    return np.median(np.array([size for size in sizes if size is not None]), axis=0)


def _odd_sizes(sizes: Sequence[tuple[int, int] | None]) -> list[float | None]:
    """The factor by which the side or aspect ratio of each file differs from the median; None where that is not unusual."""
    known = np.array([index for index, size in enumerate(sizes) if size is not None], dtype=np.int64)
    out: list[float | None] = [None] * len(sizes)
    if not len(known):
        return out
    logs = np.log(np.array([sizes[index] for index in known], dtype=np.float64))
    for metric in (logs.mean(1), logs[:, 0] - logs[:, 1]):  # logarithms of the side and of the aspect ratio
        off = np.abs(metric - np.median(metric))
        least = max(np.log(ODD_FACTOR), ODD_SPREADS * 1.4826 * float(np.median(off)))
        for index in np.flatnonzero(off >= least):
            factor = float(np.exp(off[index]))
            out[known[index]] = max(factor, out[known[index]] or 0.0)
    return out
