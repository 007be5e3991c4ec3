"""What is fitted on train and val: the out-of-distribution detector."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from petriscope.augment.corruptions import corrupt
from petriscope.core.recipe import DataSection, load_recipe
from petriscope.data import load_dataset
from petriscope.data.normalization import mean_and_std
from petriscope.inference.fit import calibrate
from petriscope.inference.predictor import Predictor
from petriscope.models import build_model
from petriscope.tasks import find_task

NOISE = {"name": "noise", "std": 0.25}


@pytest.fixture(scope="module")
def drawn():
    return load_dataset(DataSection(source="synthetic-smear:700", size=24, val_fraction=0.3, test_fraction=0.2))


def calibrated(drawn, *augment):
    """An untrained network, calibrated on train and val."""
    torch.manual_seed(0)
    recipe = load_recipe("demo").model_copy(update={"augment": load_recipe("demo", augment=list(augment)).augment})
    model = build_model(recipe.model, len(drawn.classes), drawn.shape).eval()
    mean, std = mean_and_std(drawn.train)
    predictor = Predictor(
        model, recipe, find_task("classification"), drawn.classes, drawn.shape, mean, std, torch.device("cpu")
    )
    calibrate(predictor, drawn.train, drawn.val, "none", quiet=True)
    return predictor


def flagged(predictor, images):
    return (predictor.predict(images, "none").ood > 1).mean()


def test_images_as_training_augments_them_are_in_distribution(drawn):
    naive, taught = calibrated(drawn), calibrated(drawn, NOISE)
    plain = drawn.test.images
    at = torch.arange(len(plain))
    noisy = corrupt(torch.from_numpy(plain), "gaussian-noise", 5, at, 0).numpy()
    assert flagged(naive, plain) < 0.05 and flagged(taught, plain) < 0.05
    assert flagged(naive, noisy) > 0.9
    assert flagged(taught, noisy) < 0.2
    nothing = np.random.default_rng(0).integers(0, 256, plain.shape, dtype=np.uint8)
    for far in (nothing, 255 - plain, np.full_like(plain, 128)):
        assert flagged(taught, far) > 0.9


def test_the_detector_ignores_mixing_augmentations(drawn):
    plain, mixed = calibrated(drawn), calibrated(drawn, {"name": "mixup"})
    images = drawn.test.images
    np.testing.assert_array_equal(plain.predict(images, "none").ood, mixed.predict(images, "none").ood)


def test_what_is_standardized_does_not_make_an_image_out_of_distribution(drawn):
    tint = np.array([0.4, 0.6, 1.0])  # of a light that no image here has
    tinted = (drawn.test.images * tint).round().astype(np.uint8)
    plain = calibrated(drawn)
    section = plain.recipe.data.model_copy(update={"standardize": ("background",)})
    plain.recipe = plain.recipe.model_copy(update={"data": section})
    calibrate(plain, drawn.train, drawn.val, "none", quiet=True)
    assert flagged(plain, tinted) < 0.05
    assert flagged(calibrated(drawn), tinted) > 2 * flagged(plain, tinted)
    one, other = plain.predict(drawn.test.images, "none").raw, plain.predict(tinted, "none").raw
    assert np.abs(one - other).mean() < 0.01
