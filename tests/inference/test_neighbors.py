"""The nearest training images, by features."""

import numpy as np
import pytest
import torch

from petriscope.augment.pipeline import Normalize
from petriscope.core.recipe import Part
from petriscope.data.imageset import ImageSet
from petriscope.inference.neighbors import nearest
from petriscope.models import build_model
from petriscope.models.layers import last_linear

NETWORKS = {
    "simple-cnn": {"widths": [4, 8, 8], "hidden": 8},
    "d4-resnet": {"widths": [8, 8], "depths": [1, 1]},
    "se-cnn": {"widths": [4, 8], "depths": [1, 1]},
    "autoencoder": {"widths": [4, 8], "hidden": 8},
    "deit-tiny": {"resize": 16},
}


def train_set(count=30):
    coarse = np.random.default_rng(0).integers(0, 256, (count, 2, 2, 3), dtype=np.uint8)
    pixels = coarse.repeat(8, axis=1).repeat(8, axis=2)
    ids = np.array([f"train/{i}" for i in range(count)])
    return ImageSet(pixels, np.arange(count, dtype=np.int64) % 3, ("a", "b", "c"), ids)


def find(model, images, **options):
    return nearest(model, Normalize((0.5,) * 3, (0.25,) * 3), "fp32", images, train_set(), **options)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_training_image_is_nearest_to_itself(name):
    torch.manual_seed(0)
    model = build_model(Part(name=name, **NETWORKS[name]), 3, (16, 16, 3)).eval()
    assert last_linear(model).out_features == 3
    found = find(model, train_set().images[[4, 17]], k=3)
    assert found.rows.shape == found.similarity.shape == (2, 3)
    assert found.rows[:, 0].tolist() == [4, 17]
    np.testing.assert_allclose(found.similarity[:, 0], 1, atol=1e-4)
    assert (np.diff(found.similarity, axis=1) <= 0).all()
    assert found.among == 30
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_fixed_sample_of_a_large_set_is_searched():
    model = build_model(Part(name="simple-cnn", **NETWORKS["simple-cnn"]), 3, (16, 16, 3)).eval()
    first, second = (find(model, train_set().images[:2], k=20, most=10) for _ in range(2))
    assert first.among == 10 and first.rows.shape == (2, 10)
    np.testing.assert_array_equal(first.rows, second.rows)
    assert first.rows.max() < 30


def test_a_search_that_there_is_no_time_for_finds_nothing():
    model = build_model(Part(name="simple-cnn", **NETWORKS["simple-cnn"]), 3, (16, 16, 3)).eval()
    assert find(model, train_set().images[:2], left=lambda: 0.0) is None


def test_a_network_without_a_linear_layer_has_no_neighbors():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 16), torch.nn.Flatten()).eval()
    assert find(model, train_set().images[:2]) is None
