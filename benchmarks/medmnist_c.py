"""A run on the eleven corruptions of BloodMNIST-C as the code of MedMNIST-C makes them, not Petriscope's. Cells of any size are
resized to 224 pixels, for which those corruptions are defined, corrupted, and resized to the input size of the network.

It needs the medmnistc package (Di Salvo, Doerrich and Ledig, 2024, arXiv:2406.17536), which reads its ink blots with pickle,
and ImageMagick:

    apt-get install libmagickwand-6.q16-6
    pip install --no-deps medmnistc==0.1.0 wand opencv-python-headless scikit-image lazy_loader imageio tifffile
    python benchmarks/medmnist_c.py RUN
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from PIL import Image

from common import corruption_arguments, corruption_parser, percent, print_table
from petriscope.core.progress import progress
from petriscope.data.decode import resize
from petriscope.inference.predictor import Predictor
from petriscope.metrics.passes import judge_labels
from petriscope.models.backbones import import_timm

SIDE = 224
SEVERITIES = range(5)
BATCH = 128


def main() -> None:
    predictor, images, args = corruption_arguments(corruption_parser(__doc__))
    corruptions = blood_corruptions()
    passes = [(None, 0), *((name, severity) for name in corruptions for severity in SEVERITIES)]
    hits = []
    with progress("corrupted images", len(passes) * len(images)) as bar:
        for name, severity in passes:
            random.seed(severity)
            np.random.seed(severity)  # noqa: NPY002  its code draws from the global generator
            found = []
            for start in range(0, len(images), BATCH):
                pixels = images.images[start : start + BATCH]
                batch = np.stack([corrupted(p, corruptions.get(name), severity, predictor) for p in pixels])
                found.append(predictor.probabilities(batch, args.tta).argmax(1))
                bar.advance(len(batch), name or "")
            hits.append(np.concatenate(found) == images.targets)
    metrics = judge_labels(np.stack(hits), images.targets, len(images.classes), 1000)
    rows = [("none", percent(metrics.mean([0])))]
    for index, name in enumerate(corruptions):
        own = [1 + index * len(SEVERITIES) + severity for severity in SEVERITIES]
        rows.append((name, percent(metrics.mean(own)), *(f"{100 * metrics.values[i]:.1f}" for i in own)))
    rows.append(("mean", percent(metrics.mean(range(1, len(passes))))))
    print(f"{args.split}, {len(images):,} images, tta {args.tta}; balanced accuracy in %, at severities 1 to 5")
    print_table(
        ("corruption", "mean (95 % interval)", "1", "2", "3", "4", "5"), [(*r, *[""] * (7 - len(r))) for r in rows]
    )


def blood_corruptions() -> dict[str, object]:
    """The corruptions of MedMNIST-C by the names it gives them."""
    import_timm()  # repairs the import of torchvision beside a torch for CPUs
    np.fromstring = np.frombuffer  # its motion blur calls a function that NumPy has removed
    from medmnistc.corruptions.registry import CORRUPTIONS_DS

    return CORRUPTIONS_DS["bloodmnist"]


def corrupted(image: np.ndarray, corruption: Any, severity: int, predictor: Predictor) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [h, w, 3] of the network's input size."""
    large = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    out = np.asarray(large) if corruption is None else corruption.apply(large, severity)
    return resize(out, predictor.shape[:2], predictor.recipe.data.filter)


if __name__ == "__main__":
    main()
