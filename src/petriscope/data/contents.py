"""What many images hold beside what was taken from them, and how bright they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

NOTES = {
    "pages": "{amount} pages or frames, of which the first is taken",
    "slices": "{amount} slices, of which the first is taken; data.projection takes their maximum, mean or middle",
    "series": "{amount} pages or images of other shapes than the first, which are not taken",
    "positions": "{amount} positions that its metadata do not name, of which the first is taken",
    "unpicked": "{amount} channels that data.channels leaves out",
    "no window": "no window, so that black and white are the smallest and largest of {amount} bits",
    "windows": "{amount} windows, of which the first is applied",
    "channels": "{amount} channels, of which only those of color and transparency are taken",
    "transparent": "transparent pixels, which are shown on white",
    "blank": "transparent pixels alone, so that nothing but white is left",
    "bits": "{amount} bits per channel, of which the upper 8 are taken",
    "color": "colors, which are turned into gray",
    "clipped": "values outside data.range, which are taken as black or white",
    "bright": "pixels brighter than data.bits={bits} allows, which are taken as white",
}
HOT = 0.001  # share of the pixels of an image that say nothing of its brightness; at least one
ODD = 0.01  # share of the images that say nothing of the brightness of a set
SAMPLE = 1 << 13  # pixels of an image that are looked at
DARK = 16  # images that use less than this part of their range are nearly black


@dataclass(frozen=True)
class Content:
    """What one image holds.

    Args:
        peak: its brightness, as `peak_of` has it.
        bits: 16 if ``peak`` is of values with 16 bits, else 8.
        notes: kinds of `NOTES`, with their amounts.
        size: height and width in pixels of the file's image when upright; (0, 0): not noted.
        micrometers: height and width of a pixel of the file; None: it does not say.
    """

    peak: int
    bits: int
    notes: Mapping[str, int] = field(default_factory=dict)
    size: tuple[int, int] = (0, 0)
    micrometers: tuple[float, float] | None = None


@dataclass
class _Seen:
    first: str
    count: int = 0
    low: int = 1 << 62
    high: int = 0


class Contents:
    """Collects what images hold.

    Args:
        bits: ``data.bits``.
        gray: whether ``data.channels`` asks for gray, so that lost colors are no news.
        depth: ``data.depth``, where it is to be said that it keeps less than there is, or takes more; None: it is known.
    """

    def __init__(self, bits: int, gray: bool = False, depth: int | None = None) -> None:
        self.bits, self.gray, self.depth = bits, gray, depth
        self.deep = ""  # the first image with 16 bits
        self.seen: dict[str, _Seen] = {}
        self.peaks: dict[int, list[int]] = {8: [], 16: []}

    def add(self, name: str, content: Content) -> None:
        self.peaks[content.bits].append(content.peak)
        if content.bits == 16:
            self.deep = self.deep or name
        self.note(name, content.notes)

    def note(self, name: str, notes: Mapping[str, int]) -> None:
        for kind, amount in notes.items():
            if kind == "color" and self.gray:
                continue
            seen = self.seen.setdefault(kind, _Seen(name))
            seen.count += 1
            seen.low, seen.high = min(seen.low, amount), max(seen.high, amount)

    def warnings(self) -> list[str]:
        """One sentence for each kind of note, with its count and the first image; one if the images are nearly black, and one
        if ``data.bits`` does nothing."""
        idle = self.bits < 16 and self.peaks[8] and not self.peaks[16]
        said = [f"data.bits={self.bits} is for images stored with 16 bits, and there are none"] if idle else []
        if self.deep and self.depth == 8:
            said.append(
                f"images are stored with 16 bits, such as {self.deep}, and are read with 8; --set data.depth=16 keeps all"
            )
        if self.depth == 16 and self.peaks[8] and not self.deep:
            said.append("the images are stored with 8 bits, so data.depth=16 only takes twice the memory")
        return [*self._noted(), *said, *dim_warning(self.peaks[16], self.bits), *dim_warning(self.peaks[8], 8)]

    def _noted(self) -> Iterator[str]:
        for kind, words in NOTES.items():
            if seen := self.seen.get(kind):
                amount = f"{seen.low:,}" if seen.low == seen.high else f"{seen.low:,} to {seen.high:,}"
                have = "1 image has" if seen.count == 1 else f"{seen.count:,} images have"
                yield f"{have} {words.format(amount=amount, bits=self.bits)}, such as {seen.first}"


def peak_of(image: np.ndarray) -> int:
    """The brightest value of an image, unsigned [H, W, ...], the brightest thousandth left out, so that a hot pixel hides
    nothing. It is 255 for all 8-bit images that are not nearly black, which are never asked for more."""
    step = max(int((image.shape[0] * image.shape[1] / SAMPLE) ** 0.5), 1)
    values = image[::step, ::step].reshape(1, -1)
    hot = min(max(int(HOT * values.size), 1), values.size - 1)
    # Pillow counts bytes in a fifth of the time that numpy takes, which matters for small images.
    if values.dtype == np.uint8:
        if np.count_nonzero(values >= 256 // DARK) > hot:  # in a fifth of the time of a histogram
            return 255
        counts = Image.frombuffer("L", (values.size, 1), values, "raw", "L", 0, 1).histogram()
    else:
        counts = np.bincount(values[0]).tolist()
    value, above = len(counts) - 1, counts[-1]
    while above <= hot:
        value -= 1
        above += counts[value]
    return value


def dim_warning(peaks: list[int], bits: int) -> list[str]:
    """A warning if images use less than a sixteenth of their range, else none.

    Args:
        peaks: of each image. A hundredth of them, the brightest, are not regarded.
        bits: the significant bits of a value.
    """
    if not peaks:
        return []
    peak = int(np.quantile(peaks, 1 - ODD, method="lower"))
    if peak >= 2**bits / DARK:
        return []
    fit = max(8, peak.bit_length())
    remedy = f"if the camera has {fit} bits, use --set data.bits={fit}" if bits > 8 else "scale them to 0..255"
    return [f"the brightest pixels have the value {peak} of {2**bits - 1}, so the images are nearly black; {remedy}"]
