"""What is fitted on val and train: the detector of unlike images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from petriscope.augment.corruptions import corrupt
from petriscope.core.recipe import DataSection, load_recipe
from petriscope.data import load_dataset
from petriscope.data.normalization import mean_and_std
from petriscope.inference.calibrate import calibrate
from petriscope.inference.predictor import Predictor
from petriscope.models import build_model

NOISE = {"name": "noise", "std": 0.25}


@pytest.fixture(scope="module")
def drawn():
    return load_dataset(DataSection(source="synthetic-smear:700", size=24, val_fraction=0.3, test_fraction=0.2))


def calibrated(drawn, *augment):
    """An untrained network, with what train and val say of it."""
    torch.manual_seed(0)
    recipe = load_recipe("demo").model_copy(update={"augment": load_recipe("demo", augment=list(augment)).augment})
    model = build_model(recipe.model, len(drawn.classes), drawn.shape).eval()
    mean, std = mean_and_std(drawn.train)
    predictor = Predictor(model, recipe, drawn.classes, drawn.shape, mean, std, torch.device("cpu"))
    calibrate(predictor, drawn.train, drawn.val, "none", quiet=True)
    return predictor


def unlike(predictor, images):
    return (predictor.answer(images, "none").outlier > 1).mean()


def test_what_was_trained_against_is_no_reason_to_keep_silent(drawn):
    naive, taught = calibrated(drawn), calibrated(drawn, NOISE)
    plain = drawn.test.images
    at = torch.arange(len(plain))
    noisy = corrupt(torch.from_numpy(plain), "gaussian-noise", 5, at, 0).numpy()
    assert unlike(naive, plain) < 0.05 and unlike(taught, plain) < 0.05
    assert unlike(naive, noisy) > 0.9
    assert unlike(taught, noisy) < 0.2
    nothing = np.random.default_rng(0).integers(0, 256, plain.shape, dtype=np.uint8)
    for strange in (nothing, 255 - plain, np.full_like(plain, 128)):
        assert unlike(taught, strange) > 0.9


def test_mixed_images_are_of_no_class_and_left_out(drawn):
    plain, mixed = calibrated(drawn), calibrated(drawn, {"name": "mixup"})
    images = drawn.test.images
    np.testing.assert_array_equal(plain.answer(images, "none").outlier, mixed.answer(images, "none").outlier)
