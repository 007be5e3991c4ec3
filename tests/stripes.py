"""Small images of three classes, a bright stripe each, and a recipe that learns them."""

from __future__ import annotations

import numpy as np
from PIL import Image

from petriscope import api
from petriscope.core.recipe import load_recipe

SIDE = 12
NAMES = ("left", "middle", "right")


def drawn(count, seed, elsewhere=False, labels=None):
    """Images of three classes, a bright stripe each; elsewhere, dark on bright. uint8 [N, 12, 12, 3] and int64 [N]."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3 if labels is None else np.asarray(labels)
    images = rng.normal(100, 30, (len(labels), SIDE, SIDE, 3))
    for each in range(3):
        images[labels == each, 4 * each : 4 * each + 4] += 70
    images = 255 - images if elsewhere else images
    return images.clip(0, 255).astype(np.uint8), labels


def pile(folder, images, labels):
    """A folder per class."""
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / NAMES[label] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def recipe(source, **more):
    tree = {
        "name": "stripes",
        "data": {"source": str(source), "classes": NAMES},
        "augment": ["flip"],
        "model": {"name": "simple-cnn", "norm": "batch", "widths": [4, 8, 8], "hidden": 8},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "training": {"epochs": 5, "batch_size": 30, "precision": "fp32", "device": "cpu", "ema": None},
        "evaluation": {"bootstrap": 100, "stress": "off"},
        **more,
    }
    return load_recipe("demo", (), **tree)


def train_at_home(folder, epochs=5):
    """Write ``home.npz``, and train ``run`` on it. After 3 epochs, all of val is right, and little elsewhere; after 5, more."""
    arrays = {}
    for seed, (split, count) in enumerate((("train", 150), ("val", 90), ("test", 60))):
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = drawn(count, seed)
    np.savez(folder / "home.npz", **arrays)
    made = recipe(folder / "home.npz")
    training = made.training.model_copy(update={"epochs": epochs})
    api.train(made.model_copy(update={"training": training}), folder / "run", quiet=True)
