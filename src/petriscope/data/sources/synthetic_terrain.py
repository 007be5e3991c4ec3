"""Drawn ground of another planet, with masks of soil, bedrock, sand, big rocks, and unlabeled ground.

Images come in scenes: those of one scene share the light, the sensor and what the ground is mostly made of, as crops of
one photograph do, and are one group. All lengths are relative to the image's shorter side, so one description serves
every size.
"""

from __future__ import annotations

import numpy as np

from petriscope.core.errors import RequestError
from petriscope.core.masks import IGNORE
from petriscope.core.recipe import DataSection
from petriscope.data.imageset import ImageSet
from petriscope.data.sources.canvas import Canvas, Range, uniform, wide

CLASSES = ("soil", "bedrock", "sand", "big rock")
SCENE = 8  # images
SIZE = (64, 128)
LEAN = np.array([0.1, 0.3, -0.5], dtype=np.float32)  # offsets of the fields of soil, bedrock and sand
SPREAD = 0.8  # standard deviation of each scene's own offsets
UNLABELED = 0.55  # ground is unlabeled where a field of unit variance exceeds this
HORIZON: Range = (-0.75, -0.2)  # above it are unlabeled hills
BRIGHTNESS = np.array([118, 150, 92], dtype=np.float32)
ROCKS = 2  # the most in an image
ROCKY = 0.35  # the probability of each of them
ROCK_RADIUS: Range = (0.07, 0.2)
LIGHT: Range = (0.75, 1.2)
NOISE: Range = (2.0, 6.0)  # standard deviation of the sensor's noise, in gray levels


def read(section: DataSection, count: int = 1200) -> dict[str, ImageSet]:
    """Draw the data set: without splits; each group is a scene.

    Args:
        section: its size (64 by 128 where it names none) and its channels (``auto`` is gray) are used.
        count: images to draw.
    """
    images, masks = draw_terrain(count, section.height_width or SIZE)
    ids = np.array([f"terrain/{index:06d}" for index in range(count)], dtype=str)
    scenes = np.array([f"scene {index // SCENE}" for index in range(count)], dtype=str)
    if section.channels == "rgb":
        images = np.repeat(images, 3, axis=3)
    return {"all": ImageSet(images, masks, CLASSES, ids, scenes)}


def draw_terrain(count: int, size: tuple[int, int] = SIZE, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw images of ground with their masks.

    Image i depends on ``seed``, i and ``size`` alone: a larger count only adds images.

    Args:
        count: number of images N.
        size: height and width in pixels.
        seed: from 0.

    Returns:
        uint8 [N, H, W, 1] images, and uint8 [N, H, W] masks that index `CLASSES`, with `IGNORE` where unlabeled.

    Raises:
        RequestError: the count is negative, or a side is shorter than a pixel.
    """
    height, width = size
    if count < 0 or height < 1 or width < 1:
        raise RequestError(f"{count} images of {height} by {width} pixels cannot be drawn")
    images = np.empty((count, height, width, 1), dtype=np.uint8)
    masks = np.empty((count, height, width), dtype=np.uint8)
    for scene, start in enumerate(range(0, count, SCENE)):
        part = slice(start, min(start + SCENE, count))
        # Scenes are always drawn whole, so that no image depends on the count.
        pixels, mask = _draw_scene(np.random.default_rng([seed, scene]), height, width)
        images[part, ..., 0], masks[part] = pixels[: part.stop - start], mask[: part.stop - start]
    return images, masks


def _draw_scene(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The images and the masks of a scene, both uint8 [SCENE, H, W]."""
    canvas = Canvas(rng, SCENE, height, width)
    lean = LEAN + SPREAD * rng.standard_normal(3, dtype=np.float32)
    fields = [canvas.texture(2) + shift for shift in lean]
    highest = np.maximum(np.maximum(fields[0], fields[1]), fields[2])
    soil, bedrock = fields[0] == highest, fields[1] == highest
    mask = np.where(soil, 0, np.where(bedrock, 1, 2)).astype(np.uint8)
    gray = BRIGHTNESS[mask] + np.where(soil, _grains(canvas), np.where(bedrock, _slabs(canvas), _ripples(canvas)))
    unlabeled = canvas.texture(2) > UNLABELED

    down, across = canvas.side // 24, canvas.side // 16  # the length of shadows
    bend = 0.12 * canvas.texture(6)
    for _ in range(ROCKS):
        inside, lit = _rock(canvas, bend)
        shadow = np.zeros_like(inside)
        shadow[:, down:, across:] = inside[:, : height - down, : width - across]
        gray = np.where(inside, 105 + 45 * lit, np.where(shadow, 0.55 * gray, gray))
        mask[inside] = CLASSES.index("big rock")
        unlabeled &= ~inside

    far = np.broadcast_to(canvas.y < rng.uniform(*HORIZON) + 0.08 * canvas.texture(3), mask.shape)
    gray = np.where(far, 135 + 8 * canvas.texture(4), gray)
    mask[unlabeled | far] = IGNORE
    gray = gray * rng.uniform(*LIGHT) + rng.uniform(*NOISE) * rng.standard_normal(gray.shape, dtype=np.float32)
    return np.clip(np.rint(gray), 0, 255).astype(np.uint8), mask


def _grains(canvas: Canvas) -> np.ndarray:
    """Soil: loose and fine."""
    return 9 * canvas.texture(20)


def _slabs(canvas: Canvas) -> np.ndarray:
    """Bedrock: flat slabs with dark cracks between them, where a smooth field passes through zero."""
    cracks = np.clip(1 - 6 * np.abs(canvas.texture(5)), 0, 1)
    return 8 * canvas.texture(4) - 55 * cracks


def _ripples(canvas: Canvas) -> np.ndarray:
    """Sand: waves made by wind."""
    angle, length = uniform(canvas.rng, (-0.5, 0.5), canvas.n), uniform(canvas.rng, (0.06, 0.14), canvas.n)
    along = wide(np.cos(angle) / length) * canvas.y + wide(np.sin(angle) / length) * canvas.x
    return 9 * np.sin(2 * np.pi * along + 1.5 * canvas.texture(3))


def _rock(canvas: Canvas, bend: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pixels of rocks, bool [n, H, W], and the light on them, -1 to 1; some images have none."""
    rng, n = canvas.rng, canvas.n
    there = rng.random(n) < ROCKY
    reach = canvas.width / canvas.side / 2
    top, left = uniform(rng, (-0.3, 0.45), n), uniform(rng, (-reach, reach), n)
    radius, flat = uniform(rng, ROCK_RADIUS, n), uniform(rng, (1.0, 1.5), n)
    down, across = (canvas.y - wide(top)) * wide(flat / radius), (canvas.x - wide(left)) / wide(radius)
    inside = (np.square(down) + np.square(across) < 1 + 4 * bend) & there[:, None, None]
    return inside, np.clip(-0.6 * down - 0.6 * across, -1, 1)
