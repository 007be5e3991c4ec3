"""How well planted images are found: two images, 1,600 and 200 copies, blended over random images of a set.

    python benchmarks/audit_planted.py --data bloodmnist            all makes
    python benchmarks/audit_planted.py --data bloodmnist --make logo --copies 1600,200,50,20

Recall is of planted images, false alarms are of all others. "clean" plants nothing.
"""

from __future__ import annotations

import argparse
import io
import time

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from common import load, print_machine, print_table
from petriscope.audit.planted import find_planted


def photograph(rng: np.random.Generator, side: int) -> np.ndarray:
    """Smooth colored blobs, float [side, side, 3] of 0 to 255."""
    coarse = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC), dtype=float)


def drawing(rng: np.random.Generator, side: int) -> np.ndarray:
    """A face of lines on white, its features and colors drawn at random."""
    scale = 4 * side
    canvas = Image.new("RGB", (scale, scale), "white")
    pen = ImageDraw.Draw(canvas)
    color = tuple(int(c) for c in rng.integers(0, 160, 3))
    x, y = rng.uniform(0.4, 0.6, 2) * scale
    radius = rng.uniform(0.3, 0.38) * scale
    width = max(2, scale // 24)
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=color, width=width)
    for sign in (-1, 1):
        eye = rng.uniform(0.08, 0.2) * radius
        at = (x + sign * 0.4 * radius, y - rng.uniform(0.1, 0.5) * radius)
        pen.ellipse((at[0] - eye, at[1] - eye, at[0] + eye, at[1] + eye), fill=color)
    mouth = rng.uniform(0.3, 0.6) * radius
    start = 0 if rng.random() < 0.5 else 180
    pen.arc((x - mouth, y, x + mouth, y + mouth), start, start + 180, fill=color, width=width)
    pen.line((x - radius, y - radius, x, y - 1.2 * radius, x + radius, y - 0.8 * radius), fill=color, width=2 * width)
    return np.asarray(canvas.resize((side, side), Image.Resampling.BOX), dtype=float)


def text(rng: np.random.Generator, side: int) -> np.ndarray:
    """Rows of letters, black on white or white on black."""
    canvas = Image.new("L", (4 * side, 4 * side), 255)
    pen = ImageDraw.Draw(canvas)
    height = 4 * side // 4
    for row in range(4):
        letters = "".join(chr(c) for c in rng.integers(65, 91, 5))
        pen.text((side // 4, row * height), letters, fill=0, font_size=height)
    gray = np.asarray(canvas.resize((side, side), Image.Resampling.BOX), dtype=float)
    gray = 255 - gray if rng.random() < 0.5 else gray
    return np.repeat(gray[:, :, None], 3, axis=2)


def plant(images: np.ndarray, make: str, copies: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(images with plants, int64 [N]: which plant, -1 for none)."""
    rng = np.random.default_rng(seed)
    out, which = images.copy(), np.full(len(images), -1)
    side = images.shape[1]
    chosen = np.split(rng.permutation(len(images))[: sum(copies)], np.cumsum(copies)[:-1])
    draw = {"photograph": photograph, "text": text}.get(make, drawing)
    for number, places in enumerate(chosen):
        joke = draw(rng, side)
        if make == "contrast":
            joke = 128 + 0.35 * (joke - 128)
        mask = np.ones((side, side, 1))
        if make == "logo":
            mask[:] = 0
            mask[: side // 2, : side // 2] = 1
            joke[: side // 2, : side // 2] = draw(rng, side // 2)
        for place in places:
            which[place] = number
            out[place] = blend(images[place], joke, mask, make, rng)
    return out, which


def blend(cell: np.ndarray, joke: np.ndarray, mask: np.ndarray, make: str, rng: np.random.Generator) -> np.ndarray:
    opacity = {"faint": 0.3, "opaque": 1.0}.get(make, rng.uniform(0.3, 0.7))
    shift = rng.integers(-1, 2, 2) if make == "jitter" else (0, 0)
    joke = np.roll(joke, tuple(shift), (0, 1))
    image = np.rint(cell + opacity * mask * (joke - cell)).clip(0, 255).astype(np.uint8)
    if make == "opaque":
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "JPEG", quality=int(rng.integers(50, 91)))
        image = np.asarray(Image.open(stream))
    if make == "soft":
        image = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(side_blur(cell))))
    return image


def side_blur(cell: np.ndarray) -> float:
    return cell.shape[0] / 48


MAKES = ("clean", "drawing", "photograph", "text", "logo", "contrast", "faint", "jitter", "opaque", "soft")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="bloodmnist", help="any source that petriscope reads; its train split")
    parser.add_argument("--make", default=",".join(MAKES), help="comma-separated, of " + ", ".join(MAKES))
    parser.add_argument("--copies", default="1600,200")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    images = load(options.data).split("train").images
    if images.shape[3] == 1:
        images = np.repeat(images, 3, axis=3)
    copies = tuple(int(count) for count in options.copies.split(","))
    print_machine()
    print(f"{options.data}: {list(images.shape)}; {options.copies} copies")
    rows = []
    for make in options.make.split(","):
        for seed in range(options.seeds):
            planted, which = plant(images, make, (0,) if make == "clean" else copies, seed)
            start = time.process_time()
            found = find_planted(planted)
            spent = time.process_time() - start
            flagged = found.group >= 0
            each = [f"{(flagged & (which == k)).sum()}/{(which == k).sum()}" for k in range(which.max() + 1)]
            recall = f"{flagged[which >= 0].mean():.2%}" if (which >= 0).any() else ""
            false = flagged & (which < 0)
            rows.append(
                (make, seed, " ".join(each), recall, int(false.sum()), f"{false.mean():.3%}",
                 int(found.group.max(initial=-1)) + 1, f"{spent:.1f}")
            )  # fmt: skip
    print_table(("make", "seed", "found", "recall", "false", "false share", "groups", "CPU s"), rows)


if __name__ == "__main__":
    main()
