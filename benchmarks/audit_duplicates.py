"""How well duplicates are found in a set of images: changed copies, leaks between splits, identical files.

    python benchmarks/audit_duplicates.py --data FOLDER

Copies are made of images drawn at random. A found pair is right if both show one image: a copy and its original, two
copies of one, or images with equal pixels. Recall is of copies that share a group with their original; precision is of
grouped images that share it with one that shows the same.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from common import load, print_machine, print_table
from petriscope.audit.duplicates import Duplicates, find_duplicates

Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]
FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)


def encoded(image: np.ndarray, kind: str, quality: int) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(image.squeeze()).save(stream, kind, quality=quality)
    return np.asarray(Image.open(stream).convert("L" if image.shape[2] == 1 else "RGB")).reshape(image.shape)


def resized(image: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    height, width = image.shape[:2]
    way = FILTERS[rng.integers(len(FILTERS))]
    small = Image.fromarray(image.squeeze()).resize((round(width * factor), round(height * factor)), way)
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).reshape(image.shape)


def toned(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    changed = image * rng.uniform(0.8, 1.2) + 255 * rng.uniform(-0.1, 0.1)
    return np.rint(changed).clip(0, 255).astype(np.uint8)


def turned(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    symmetry = rng.integers(1, 8)
    mirrored = image[:, ::-1] if symmetry >= 4 else image
    return np.rot90(mirrored, symmetry % 4)


def several(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return encoded(turned(toned(image, rng), rng), "JPEG", int(rng.integers(70, 91)))


CHANGES: dict[str, Change] = {
    "JPEG, quality 50 to 90": lambda image, rng: encoded(image, "JPEG", int(rng.integers(50, 91))),
    "WebP, quality 50 to 90": lambda image, rng: encoded(image, "WEBP", int(rng.integers(50, 91))),
    "shrunk to 60 to 90 % and back": lambda image, rng: resized(image, rng.uniform(0.6, 0.9), rng),
    "enlarged to 110 to 200 % and back": lambda image, rng: resized(image, rng.uniform(1.1, 2.0), rng),
    "contrast and brightness by up to 20 %": toned,
    "turned or mirrored": turned,
    "toned, turned and encoded": several,
}


def changed_copies(images: np.ndarray, count: int, seed: int) -> list[tuple[str, ...]]:
    rng = np.random.default_rng(seed)
    source = rng.permutation(len(images))[:count]
    kinds = np.arange(count) % len(CHANGES)
    changes = list(CHANGES.values())
    copies = np.stack([changes[k](images[i], rng) for i, k in zip(source, kinds, strict=True)])
    start = time.process_time()
    found = find_duplicates(np.concatenate([images, copies]))
    spent = time.process_time() - start
    shows = np.concatenate([same_pixels(images), same_pixels(images)[source]])
    hit = (found.group[len(images) :] >= 0) & (found.group[len(images) :] == found.group[source])
    rows = [
        (name, f"{hit[kinds == k].sum()} of {(kinds == k).sum()}", f"{hit[kinds == k].mean():.2%}", "", "")
        for k, name in enumerate(CHANGES)
    ]
    return [*rows, ("all", f"{hit.sum()} of {count}", f"{hit.mean():.2%}", precision(found, shows), f"{spent:.1f}")]


def precision(found: Duplicates, shows: np.ndarray) -> str:
    """Of the images in groups, how many share theirs with one that shows the same."""
    grouped = np.flatnonzero(found.group >= 0)
    both = found.group[grouped] * (shows.max() + 1) + shows[grouped]
    _, inverse, counts = np.unique(both, return_inverse=True, return_counts=True)
    right = int((counts[inverse] > 1).sum())
    return f"{right / max(len(grouped), 1):.2%} of {len(grouped)}"


def same_pixels(images: np.ndarray) -> np.ndarray:
    """int64 [N]: the first image with the same pixels, by a search of its own."""
    flat = images.reshape(len(images), -1)
    seen: dict[bytes, int] = {}
    return np.array([seen.setdefault(row.tobytes(), i) for i, row in enumerate(flat)])


def leaks(train: np.ndarray, test: np.ndarray, count: int, seed: int) -> tuple[str, ...]:
    """Test images copied into train, every other one re-encoded."""
    rng = np.random.default_rng(seed)
    source = rng.permutation(len(test))[:count]
    count = len(source)
    copies = [encoded(test[i], "JPEG", int(rng.integers(50, 91))) if k % 2 else test[i] for k, i in enumerate(source)]
    found = find_duplicates(np.concatenate([train, np.stack(copies), test]))
    copied, original = found.group[len(train) : len(train) + count], found.group[len(train) + count :][source]
    hit = (copied >= 0) & (copied == original)
    return "test images in train, half of them re-encoded", f"{hit.sum()} of {count}", f"{hit.mean():.2%}", "", ""


def identical(images: np.ndarray) -> tuple[str, ...]:
    """Images that the set itself has more than once, and what is found besides."""
    first = same_pixels(images)
    copies = np.flatnonzero(first != np.arange(len(first)))
    start = time.process_time()
    found = find_duplicates(images)
    spent = time.process_time() - start
    hit = found.exact[copies] & (found.group[copies] == found.group[first[copies]])
    besides = int(((found.group >= 0) & ~found.exact).sum())
    return (
        "identical images in all splits", f"{hit.sum()} of {len(copies)}",
        f"{hit.mean():.2%}" if len(copies) else "", f"{besides} besides", f"{spent:.1f}",
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="synthetic-smear", help="any source that petriscope reads")
    parser.add_argument("--copies", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    splits = {name: part.images for name, part in load(options.data).splits.items()}
    train = splits["train"]
    rows = changed_copies(train, options.copies, options.seed)
    if "test" in splits:
        rows.append(leaks(train, splits["test"], 100, options.seed))
    rows.append(identical(np.concatenate(list(splits.values()))))
    print_machine()
    print(f"{options.data}: {list(train.shape)} in train")
    print_table(("what", "found", "recall", "precision", "CPU s"), rows)


if __name__ == "__main__":
    main()
