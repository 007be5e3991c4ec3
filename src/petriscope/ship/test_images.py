"""The image files in a package, on which it shows that it answers as the run does."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from petriscope.core.errors import DataError
from petriscope.data.decode import ARRAY, SUFFIXES
from petriscope.data.encode import encoded_exactly
from petriscope.data.imageset import ImageSet
from petriscope.data.levels import from_levels, to_levels
from petriscope.inference.package import Input
from petriscope.inference.verification import as_input
from petriscope.trust.robustness import stratified

COUNT = 32
JPEGS = 3  # of them, and one more that is turned upright by its EXIF tag
MOST_BYTES = 2**22  # of a file that is taken along as it lies
TURNED = 6  # rotated by 90 degrees
DRAWN_SIDE = 1.5  # of drawn images, in units of the model's


def source_file(images: ImageSet, row: int, source: str) -> Path | None:
    """The file of an image, if its name is a path below the source or beside it; it may be another image.

    Args:
        source: as the recipe names it.
    """
    name = Path(str(images.ids[row]))
    if name.suffix.lower() not in (*SUFFIXES, ARRAY) or name.is_absolute() or ".." in name.parts:
        return None
    for folder in (Path(source), Path(source).parent):
        if (path := folder / name).is_file():
            return path
    return None


def same_input(path: Path, taken: Input, pixels: np.ndarray) -> bool:
    """Whether a file is decoded to an image, uint8 [H, W, C]."""
    try:
        return np.array_equal(as_input(path, taken), pixels)
    except DataError:
        return False


def of_val(images: ImageSet, source: str, taken: Input) -> dict[str, bytes]:
    """Files with images of val, by name: some of each class, as they lie or as PNG, some as JPEG, and one turned;
    of images with 16 bits, a range or other channels, npy files."""
    rows = stratified(images.strata, min(COUNT, len(images)))
    out: dict[str, bytes] = {}
    for number, row in enumerate(rows.tolist()):
        pixels = images.take([row])[0]
        left = min(COUNT, len(images)) - number
        if taken.plain and left <= JPEGS + 1 and number:
            out[_name(number, "jpg")] = encoded(pixels, "JPEG", TURNED if left == 1 else 1)
            continue
        path = source_file(images, row, source)
        if path is not None and path.stat().st_size <= MOST_BYTES and same_input(path, taken, pixels):
            out[_name(number, path.suffix.lower().lstrip("."))] = path.read_bytes()
        elif taken.scale is None:
            suffix, content = encoded_exactly(from_levels(pixels, taken.bits, taken.range))
            out[_name(number, suffix)] = content
    return out


def drawn(taken: Input) -> dict[str, bytes]:
    """Files with images that show nothing of the data: discs of random colors on backgrounds of random colors."""
    rng = np.random.default_rng(0)
    out = {}
    times = DRAWN_SIDE if taken.overlap is None else 1  # a tile is as large as what the model sees
    for number in range(COUNT):
        pixels = _draw(rng, round(taken.height * times), round(taken.width * times), taken.channels)
        if not taken.plain:
            levels = to_levels(pixels, 16, taken.depth)
            suffix, content = encoded_exactly(from_levels(levels, taken.bits, taken.range))
            out[_name(number, suffix)] = content
            continue
        jpeg = COUNT - number <= JPEGS + 1
        kind, suffix = ("JPEG", "jpg") if jpeg else ("PNG", "png")
        out[_name(number, suffix)] = encoded(pixels, kind, TURNED if number == COUNT - 1 else 1)
    return out


def _draw(rng: np.random.Generator, height: int, width: int, channels: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    out = np.empty((height, width, channels), np.float64)
    out[:] = rng.uniform(150, 255, channels)
    for _ in range(int(rng.integers(1, 5))):
        center, radius = rng.uniform(0, 1, 2) * (height, width), rng.uniform(0.1, 0.4) * min(height, width)
        inside = 1 / (1 + np.exp((np.hypot(y - center[0], x - center[1]) - radius).clip(-30, 30)))
        out += inside[..., None] * (rng.uniform(0, 255, channels) - out)
    return (out + rng.normal(0, rng.uniform(0, 12), out.shape)).clip(0, 255).round().astype(np.uint8)


def encoded(pixels: np.ndarray, kind: str, orientation: int = 1) -> bytes:
    """A file with an image, uint8 [H, W, C], which is stored turned so that its EXIF tag turns it upright."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    exif = Image.Exif()
    if orientation == TURNED:
        image = image.transpose(Image.Transpose.ROTATE_90)
        exif[ExifTags.Base.Orientation] = TURNED
    out = io.BytesIO()
    image.save(out, kind, **({"exif": exif, "quality": 95} if kind == "JPEG" else {}))
    return out.getvalue()


def _name(number: int, suffix: str) -> str:
    return f"{number:02d}.{suffix}"


def decoded(folder: Path, names: list[str], taken: Input) -> np.ndarray:
    """The images in files of a folder as the model takes them, uint8 [N, H, W, C]."""
    return np.stack([as_input(folder / name, taken) for name in names])
