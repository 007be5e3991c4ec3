import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from petriscope.core.recipe import Recipe, load_recipe

# A shared, busy machine: a slow example is no failure.
settings.register_profile("petriscope", deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
settings.load_profile("petriscope")
torch.set_num_threads(1)


@pytest.fixture
def tiny_npz(tmp_path):
    """120 train, 40 val and 40 test images of 12x12 RGB in two classes, bright and dark, that a network learns."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 120), ("val", 40), ("test", 40)):
        labels = np.arange(count) % 2
        images = rng.integers(0, 160, (count, 12, 12, 3)) + labels[:, None, None, None] * 90
        arrays[f"{split}_images"] = images.astype(np.uint8)
        arrays[f"{split}_labels"] = labels[:, None].astype(np.uint8)
    path = tmp_path / "tiny.npz"
    np.savez(path, **arrays)
    return path


@pytest.fixture
def tiny_recipe(tiny_npz):
    """A recipe on `tiny_npz` that exercises every part of the loop and takes a second."""

    def make(*settings: str, **overrides) -> Recipe:
        tree = {
            "name": "tiny",
            "data": {"source": str(tiny_npz)},
            "augment": ["flip", {"name": "translate", "fraction": 0.1}],
            "model": {"name": "simple-cnn", "norm": "batch", "dropout": 0.2, "widths": [4, 8, 8], "hidden": 8},
            "optimizer": {"name": "adamw", "lr": 0.01},
            "schedule": "one-cycle",
            "training": {"epochs": 3, "batch_size": 16, "precision": "fp32", "device": "cpu", "checkpoint_seconds": 0},
            "evaluation": {"bootstrap": 100, "stress": "off"},  # the stress test takes longer than the training
        }
        for key, value in overrides.items():
            merges = isinstance(value, dict) and "name" not in value and isinstance(tree.get(key), dict)
            tree[key] = {**tree[key], **value} if merges else value
        return load_recipe("demo", settings, **tree)

    return make
