"""Out-of-distribution detection of a run: AUROC against the test split, and the share of images that it abstains on. The
images are blank, noise, noise around the color of the background, test images with shuffled pixels or inverted colors, and
images of another source.

    python benchmarks/out_of_distribution.py RUN --others cifar10
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from common import print_machine, print_table
from petriscope.core.recipe import DataSection
from petriscope.data import load_dataset
from petriscope.inference.predictor import load_model
from petriscope.trust.robustness import stratified

BATCH = 128
MILD = 20  # gray levels, standard deviation of the noise around the color of the background


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="or a model file")
    parser.add_argument("--images", type=int, default=400, help="of each kind")
    parser.add_argument("--others", help="a source of images that the run was not made for; its test split is used")
    parser.add_argument("--data", help="read the run's images from here")
    args = parser.parse_args()
    print_machine()
    predictor = load_model(args.run)
    data = predictor.recipe.data
    if args.data is not None:
        data = data.model_copy(update={"source": args.data})
    test = load_dataset(data).split("test")
    plain = test.take(stratified(test.strata, args.images))
    kinds = {"test images": plain, **out_of_distribution(plain)}
    if args.others:
        section = DataSection(source=args.others, size=predictor.shape[:2], channels=data.channels, val_fraction=0)
        kinds[args.others] = load_dataset(section).split("test").images[: args.images]
    scores = {
        kind: np.concatenate([predictor.predict(part, "none").ood for part in in_batches(images)])
        for kind, images in kinds.items()
    }
    own = np.minimum(scores["test images"], 1e30)
    rows = []
    for kind, found in scores.items():
        truth = np.r_[np.zeros(len(own)), np.ones(len(found))]
        auroc = roc_auc_score(truth, np.r_[own, np.minimum(found, 1e30)])
        rows.append((kind, f"{len(found):,}", f"{auroc:.4f}", f"{100 * (found > 1).mean():.1f} %"))
    print_table(("images", "number", "AUROC", "abstained"), rows)


def out_of_distribution(plain: np.ndarray) -> dict[str, np.ndarray]:
    """Images that show nothing, uint8 [N, H, W, C] per kind, drawn at random or made from ``plain``."""
    rng = np.random.default_rng(0)
    n, height, width, channels = plain.shape
    border = np.concatenate([plain[:, 0], plain[:, -1], plain[:, :, 0], plain[:, :, -1]], 1)
    background = np.median(border.reshape(-1, channels), 0)
    pixels = plain.reshape(n, height * width, channels)
    return {
        "blank": np.broadcast_to(rng.integers(0, 256, (n, 1, 1, channels), dtype=np.uint8), plain.shape).copy(),
        "noise": rng.integers(0, 256, plain.shape, dtype=np.uint8),
        "noise around the background": (background + rng.normal(0, MILD, plain.shape)).clip(0, 255).astype(np.uint8),
        "pixels shuffled": np.stack([image[rng.permutation(len(image))] for image in pixels]).reshape(plain.shape),
        "inverted": 255 - plain,
    }


def in_batches(images: np.ndarray) -> list[np.ndarray]:
    return [images[i : i + BATCH] for i in range(0, len(images), BATCH)]


if __name__ == "__main__":
    main()
