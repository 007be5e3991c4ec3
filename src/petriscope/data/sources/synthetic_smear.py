"""Drawn blood cells of eight kinds in a stained smear. No download is needed.

A smear absorbs light: each material (red cells, cytoplasm, granules, chromatin) covers the image with a map of
amounts, and the camera sees ``light * exp(-amounts @ absorbance)``. All lengths are relative to the image's shorter
side, so one description serves every size; edges are soft by at least a pixel, which is the antialiasing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from petriscope.core.drawing import BT601
from petriscope.core.errors import RequestError
from petriscope.core.recipe import DataSection
from petriscope.data.imageset import ImageSet
from petriscope.data.sources.canvas import Canvas, Range, uniform, wide

Color = tuple[int, int, int]

LOBES = 5  # the most lobes of a nucleus
RED_CELLS = (2, 6)  # fewest and most around a cell
COARSE, FINE = 24, 40  # granules along one side of an image
# Spread of the logarithm of each channel's absorbance; green varies least, or cells would turn green.
STAIN_HUE = np.array([0.20, 0.08, 0.20], dtype=np.float32)
STAIN_MIX = 0.06  # standard deviation of the mixing between channels
NOISE = (1.0, 7.0)  # standard deviation of the sensor's noise, in gray levels
BLOCK_PIXELS = 1 << 16  # pixels drawn at once: the fields of a chunk stay in the processor's cache


@dataclass(frozen=True)
class Microscope:
    """How a laboratory stains and photographs its smears. Ranges are (low, high), drawn uniformly for each image.

    Args:
        stain: factor on the absorbance of all materials.
        dyes: further factors on it for red, green and blue.
        light: brightness of the background.
        tint: its red, green and blue.
        zoom: how much larger cells appear.
        blur: factor on the softness of edges.
    """

    stain: Range = (0.55, 1.25)
    dyes: tuple[float, float, float] = (1.0, 1.0, 1.0)
    light: Range = (0.75, 1.08)
    tint: tuple[float, float, float] = (0.94, 0.89, 0.86)
    zoom: float = 1.0
    blur: float = 1.0


HOME = Microscope()
OTHER = Microscope(
    stain=(0.35, 0.6), dyes=(1.25, 0.9, 0.5), light=(0.7, 0.85), tint=(0.80, 0.84, 0.95), zoom=1.35, blur=1.6
)


@dataclass(frozen=True)
class Kind:
    """The appearance of one kind of cell. Ranges are (low, high), drawn uniformly for each image.

    Args:
        radius: the cell, in image sides.
        nucleus: the color that a layer of chromatin lets through.
        cytoplasm: the two colors between which the cytoplasm lies.
        granules: the color of the granules.
        lobes: how many lobes the nucleus has, at most `LOBES`.
        lobe: radius of a lobe, in cell radii; 0: no nucleus.
        arc: radius of the arc on which the lobes lie, in cell radii.
        step: angle between neighboring lobes on that arc.
        merge: how sharply lobes join; low values melt them into one body.
        filled: part of the cytoplasm that granules cover.
        coarse: whether the granules are coarse.
        hiding: part of the granules that lies over the nucleus.
    """

    radius: Range
    nucleus: Color
    cytoplasm: tuple[Color, Color]
    granules: Color
    lobes: Range
    lobe: Range
    arc: Range
    step: Range
    merge: Range
    filled: Range
    coarse: bool
    hiding: float


KINDS: dict[str, Kind] = {
    "basophil": Kind(
        radius=(0.25, 0.34),
        nucleus=(140, 90, 165),
        cytoplasm=((205, 175, 205), (190, 165, 205)),
        granules=(90, 50, 130),
        lobes=(2, 4),
        lobe=(0.36, 0.46),
        arc=(0.25, 0.42),
        step=(1.2, 2.2),
        merge=(1.5, 3.0),
        filled=(0.45, 0.65),
        coarse=True,
        hiding=1.0,
    ),
    "eosinophil": Kind(
        radius=(0.27, 0.36),
        nucleus=(120, 75, 160),
        cytoplasm=((235, 195, 190), (230, 200, 200)),
        granules=(222, 125, 105),
        lobes=(2, 2),
        lobe=(0.33, 0.42),
        arc=(0.38, 0.48),
        step=(1.5, 2.4),
        merge=(1.6, 2.6),
        filled=(0.50, 0.75),
        coarse=True,
        hiding=0.15,
    ),
    "erythroblast": Kind(
        radius=(0.18, 0.27),
        nucleus=(75, 40, 105),
        cytoplasm=((205, 165, 180), (165, 165, 200)),
        granules=(180, 150, 190),
        lobes=(1, 1),
        lobe=(0.48, 0.64),
        arc=(0.0, 0.15),
        step=(1.0, 2.0),
        merge=(2.0, 3.0),
        filled=(0.0, 0.1),
        coarse=False,
        hiding=0.0,
    ),
    "immature granulocyte": Kind(
        radius=(0.29, 0.39),
        nucleus=(135, 85, 170),
        cytoplasm=((222, 175, 195), (205, 180, 210)),
        granules=(190, 125, 180),
        lobes=(4, 5),
        lobe=(0.46, 0.56),
        arc=(0.20, 0.32),
        step=(0.35, 0.60),
        merge=(2.0, 3.0),
        filled=(0.30, 0.50),
        coarse=False,
        hiding=0.3,
    ),
    "lymphocyte": Kind(
        radius=(0.20, 0.29),
        nucleus=(105, 65, 150),
        cytoplasm=((150, 175, 225), (175, 190, 225)),
        granules=(170, 110, 180),
        lobes=(1, 2),
        lobe=(0.76, 0.88),
        arc=(0.0, 0.06),
        step=(1.0, 3.0),
        merge=(2.0, 3.0),
        filled=(0.0, 0.05),
        coarse=False,
        hiding=0.0,
    ),
    "monocyte": Kind(
        radius=(0.31, 0.41),
        nucleus=(135, 95, 170),
        cytoplasm=((175, 180, 205), (190, 190, 215)),
        granules=(170, 140, 185),
        lobes=(5, 5),
        lobe=(0.26, 0.36),
        arc=(0.42, 0.54),
        step=(0.55, 0.80),
        merge=(2.0, 3.5),
        filled=(0.0, 0.12),
        coarse=False,
        hiding=0.0,
    ),
    "neutrophil": Kind(
        radius=(0.26, 0.35),
        nucleus=(110, 65, 150),
        cytoplasm=((230, 200, 205), (225, 205, 220)),
        granules=(205, 160, 190),
        lobes=(3, 5),
        lobe=(0.23, 0.30),
        arc=(0.44, 0.54),
        step=(0.95, 1.20),
        merge=(1.0, 1.8),
        filled=(0.05, 0.30),
        coarse=False,
        hiding=0.0,
    ),
    "platelet": Kind(
        radius=(0.08, 0.15),
        nucleus=(150, 100, 175),
        cytoplasm=((195, 165, 210), (185, 160, 205)),
        granules=(135, 80, 160),
        lobes=(1, 1),
        lobe=(0.0, 0.0),
        arc=(0.0, 0.0),
        step=(1.0, 1.0),
        merge=(2.0, 2.0),
        filled=(0.35, 0.6),
        coarse=False,
        hiding=0.0,
    ),
}
CLASSES: tuple[str, ...] = tuple(KINDS)
RED = (232, 178, 168)


def read(section: DataSection, count: int = 6000) -> dict[str, ImageSet]:
    """Draw the data set ``synthetic-smear``: without splits.

    Args:
        section: its size (28 by 28 where it names none) and its channels (``auto`` is RGB) are used.
        count: images to draw.
    """
    return _read(section, draw_smear(count, section.height_width or 28))


def read_other(section: DataSection, count: int = 600) -> dict[str, ImageSet]:
    """`read` for ``synthetic-smear-other``: other cells under another microscope."""
    return _read(section, draw_smear(count, section.height_width or 28, seed=1, microscope=OTHER))


def _read(section: DataSection, drawn: tuple[np.ndarray, np.ndarray]) -> dict[str, ImageSet]:
    images, labels = drawn
    if section.channels == "gray":
        images = np.rint(images @ np.array(BT601, dtype=np.float32)).astype(np.uint8)[..., None]
    ids = np.array([f"cell/{index:06d}" for index in range(len(images))], dtype=str)
    return {"all": ImageSet(images, labels, CLASSES, ids)}


def draw_smear(
    count: int, size: int | tuple[int, int] = 28, seed: int = 0, microscope: Microscope = HOME
) -> tuple[np.ndarray, np.ndarray]:
    """Draw images of blood cells, one cell near the center of each.

    Image i depends on ``seed``, i and ``size`` alone: a larger count only adds images. Each eight in a row hold
    every class once, shuffled.

    Args:
        count: number of images N.
        size: height and width in pixels; one number is a square.
        seed: from 0.
        microscope: that the images are of; it changes no draw.

    Returns:
        uint8 [N, H, W, 3] images, and int64 [N] labels that index `CLASSES`.

    Raises:
        RequestError: the count is negative, or a side is shorter than a pixel.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if count < 0 or height < 1 or width < 1:
        raise RequestError(f"{count} images of {height} by {width} pixels cannot be drawn")
    images = np.empty((count, height, width, 3), dtype=np.uint8)
    labels = np.empty(count, dtype=np.int64)
    kinds = len(CLASSES)
    chunk = kinds * min(max(BLOCK_PIXELS // (kinds * height * width), 1), 8)
    for number, start in enumerate(range(0, count, chunk)):
        rng = np.random.default_rng([seed, number])
        part = slice(start, min(start + chunk, count))
        # Chunks are always drawn whole, so that no image depends on the count.
        drawn = rng.permuted(np.tile(np.arange(kinds), (chunk // kinds, 1)), axis=1).reshape(-1)
        pixels = _draw_chunk(rng, drawn, height, width, microscope)
        labels[part] = drawn[: part.stop - start]
        images[part] = pixels[: part.stop - start]
    return images, labels


def _draw_chunk(
    rng: np.random.Generator, labels: np.ndarray, height: int, width: int, microscope: Microscope
) -> np.ndarray:
    """Draw one image per label, uint8 [n, H, W, 3]."""
    n = len(labels)
    canvas = Canvas(rng, n, height, width, microscope.zoom, microscope.blur)
    radius = _pick(rng, "radius", labels)
    center = uniform(rng, (-0.12, 0.12), (2, n))
    # Distorting the plane makes all outlines of the cell irregular at once.
    bend = radius * uniform(rng, (0.03, 0.10), n)
    y = canvas.y - wide(center[0]) + wide(bend) * canvas.texture(5)
    x = canvas.x - wide(center[1]) + wide(bend) * canvas.texture(5)

    cell = _ellipse(rng, canvas, y, x, radius)
    nucleus = _nucleus(rng, canvas, y, x, radius, labels)
    granules = _granules(rng, canvas, cell, nucleus, labels)
    red = _red_cells(rng, canvas, center, radius) * (1 - 0.9 * np.maximum(cell, nucleus))
    cell *= 1 - 0.7 * nucleus
    nucleus *= 1 + 0.13 * canvas.texture(18)  # clumps of chromatin
    amounts = np.stack([red, cell, granules, nucleus], axis=1).reshape(n, 4, height * width)
    absorbed = np.matmul(_absorbance(rng, labels, microscope), amounts).reshape(n, 3, height, width)
    return _expose(rng, canvas, absorbed, microscope)


def _ellipse(rng: np.random.Generator, canvas: Canvas, y: np.ndarray, x: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """The body of the cell, coverage [n, H, W] of 0 to 1: a slightly flattened disc."""
    stretch = uniform(rng, (0.88, 1.14), canvas.n)
    turn = uniform(rng, (0, np.pi), canvas.n)
    cos, sin = np.cos(turn) / radius, np.sin(turn) / radius
    u = wide(cos * stretch) * x + wide(sin * stretch) * y
    v = wide(cos / stretch) * y - wide(sin / stretch) * x
    u *= u
    v *= v
    u += v
    return canvas.inside(u, radius)


def _nucleus(
    rng: np.random.Generator, canvas: Canvas, y: np.ndarray, x: np.ndarray, radius: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """Coverage by the nucleus, [n, H, W] of 0 to 1: discs along an arc, merged smoothly."""
    n = canvas.n
    lobes = np.floor(_pick(rng, "lobes", labels, over=0.999))
    lobe, arc, step, merge = (_pick(rng, name, labels) for name in ("lobe", "arc", "step", "merge"))
    present = lobe > 0
    lobe = np.where(present, lobe, 1) * radius
    index = np.arange(LOBES, dtype=np.float32)[:, None]
    angle = uniform(rng, (0, 2 * np.pi), n) + (index - (lobes - 1) / 2) * step
    jitter = uniform(rng, (-0.05, 0.05), (2, LOBES, n))
    drawn = (index < lobes) & present
    place = (arc * np.stack([np.sin(angle), np.cos(angle)]) + jitter) * drawn
    place -= 0.85 * place.sum(axis=1, keepdims=True) / lobes * drawn  # the whole nucleus is near the center
    place = (place + uniform(rng, (-0.06, 0.06), (2, 1, n))) * radius
    sizes = lobe * uniform(rng, (0.88, 1.12), (LOBES, n))

    total = np.zeros((n, canvas.height, canvas.width), dtype=np.float32)
    for k in range(LOBES):
        squared = np.square(y - wide(place[0, k])) + np.square(x - wide(place[1, k]))
        squared *= wide(-merge / sizes[k] ** 2)
        squared += wide(merge + np.where(drawn[k], 0, -80))
        total += np.exp(squared, out=squared)
    # A smooth minimum of the squared distances to the lobes. Far from all of them the sum underflows, hence the floor.
    np.log(np.maximum(total, 1e-30, out=total), out=total)
    total *= wide(-1 / merge)
    total += 1
    return canvas.inside(total, lobe)


def _granules(
    rng: np.random.Generator, canvas: Canvas, cell: np.ndarray, nucleus: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """Coverage by granules, [n, H, W] of 0 to 1: the peaks of a texture, inside the cell."""
    filled = np.maximum(_pick(rng, "filled", labels), 1e-3)
    coarse = wide(_each("coarse", labels))
    level = np.log(1 / filled - 1) / 1.702  # approximately the normal quantile with this share above it
    texture = np.where(coarse > 0, canvas.texture(COARSE), canvas.texture(FINE))
    texture -= wide(level)
    # A granule is a ball, not a disc, so its edge fades even in focus.
    texture /= 1 + canvas.soft * (1.2 * np.where(coarse > 0, COARSE, FINE)).astype(np.float32)
    texture += 0.5
    np.clip(texture, 0, 1, out=texture)
    texture *= cell
    texture *= 1 - nucleus * wide(1 - _each("hiding", labels))
    return texture


def _red_cells(rng: np.random.Generator, canvas: Canvas, center: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Thickness of red cells, [n, H, W] from 0: discs around the main cell, thinner in the center."""
    n, most = canvas.n, RED_CELLS[1]
    wanted = rng.integers(RED_CELLS[0], most + 1, n)
    own = uniform(rng, (0.15, 0.22), n) * uniform(rng, (0.9, 1.1), (most, n))
    hollow = uniform(rng, (0.3, 0.8), n)
    turn = (np.argsort(rng.random((most, n)), axis=0) + uniform(rng, (-0.35, 0.35), (most, n))) * (2 * np.pi / most)
    away = np.maximum(radius * 0.9 + own * uniform(rng, (0.7, 1.3), (most, n)), uniform(rng, (0.2, 0.7), (most, n)))
    top, left = center[0] + away * np.sin(turn), center[1] + away * np.cos(turn)
    out = np.zeros((n, canvas.height, canvas.width), dtype=np.float32)
    for k in range(most):
        squared = np.square((canvas.y - wide(top[k])) / wide(own[k])) + np.square(
            (canvas.x - wide(left[k])) / wide(own[k])
        )
        disc = canvas.inside(squared, own[k])
        np.minimum(squared, 1, out=squared)
        squared *= wide(hollow * (k < wanted))
        squared += wide((1 - hollow) * (k < wanted))
        disc *= squared
        out += disc
    return out


def _absorbance(rng: np.random.Generator, labels: np.ndarray, microscope: Microscope) -> np.ndarray:
    """Absorbance of each material under the stain of each image, float32 [n, 3 channels, 4 materials]."""
    n = len(labels)
    mixed = uniform(rng, (0, 1), n)[:, None]
    cytoplasm = (1 - mixed) * PALETTE["cytoplasm"][labels] + mixed * PALETTE["cytoplasm_end"][labels]
    red = np.broadcast_to(PALETTE["red"], (n, 3))
    layers = np.stack([red, cytoplasm, PALETTE["granules"][labels], PALETTE["nucleus"][labels]], axis=2)
    layers = layers * uniform(rng, (0.8, 1.25), (n, 1, 4))
    hue = np.eye(3, dtype=np.float32) * np.exp(STAIN_HUE * rng.standard_normal((n, 3), dtype=np.float32))[:, :, None]
    hue += STAIN_MIX * rng.standard_normal((n, 3, 3), dtype=np.float32)
    strength = uniform(rng, microscope.stain, (n, 1, 1)) * np.array(microscope.dyes, dtype=np.float32)[:, None]
    return np.matmul(hue * strength, layers).astype(np.float32)


def _expose(rng: np.random.Generator, canvas: Canvas, absorbed: np.ndarray, microscope: Microscope) -> np.ndarray:
    """The smear under uneven light, seen by a noisy sensor, uint8 [n, H, W, 3]."""
    n = canvas.n
    tint = np.array(microscope.tint, dtype=np.float32)
    tint = tint * np.exp(0.05 * rng.standard_normal((n, 3), dtype=np.float32)) * uniform(rng, microscope.light, (n, 1))
    slope = uniform(rng, (-0.2, 0.2), (2, n))
    light = wide(slope[0]) * canvas.y + wide(slope[1]) * canvas.x + 0.04 * canvas.texture(3)
    np.maximum(absorbed, 0, out=absorbed)
    absorbed -= light[:, None]
    np.exp(np.negative(absorbed, out=absorbed), out=absorbed)
    absorbed *= 255 * tint[:, :, None, None]
    noise = rng.standard_normal(absorbed.shape, dtype=np.float32)
    noise *= uniform(rng, NOISE, (n, 1, 1, 1))
    absorbed += noise
    np.clip(np.rint(absorbed, out=absorbed), 0, 255, out=absorbed)
    return absorbed.astype(np.uint8).transpose(0, 2, 3, 1)


def _each(name: str, labels: np.ndarray) -> np.ndarray:
    """The value of a field for the kind of each image, float32 [n]."""
    return np.array([getattr(kind, name) for kind in KINDS.values()], dtype=np.float32)[labels]


def _pick(rng: np.random.Generator, name: str, labels: np.ndarray, over: float = 0.0) -> np.ndarray:
    """Draw from the range of a field for the kind of each image, float32 [n]; ``over`` extends it upwards."""
    low, high = np.array([getattr(kind, name) for kind in KINDS.values()], dtype=np.float32).T
    return low[labels] + (high - low + np.float32(over))[labels] * rng.random(len(labels), dtype=np.float32)


def _optical(*colors: Color) -> np.ndarray:
    """The absorbance of materials that transmit these colors, float32 [len(colors), 3]."""
    return -np.log(np.array(colors, dtype=np.float32) / 255)


PALETTE = {
    "red": _optical(RED),
    "cytoplasm": _optical(*(kind.cytoplasm[0] for kind in KINDS.values())),
    "cytoplasm_end": _optical(*(kind.cytoplasm[1] for kind in KINDS.values())),
    "granules": _optical(*(kind.granules for kind in KINDS.values())),
    "nucleus": _optical(*(kind.nucleus for kind in KINDS.values())),
}
