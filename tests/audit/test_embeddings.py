from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from petriscope.audit import embeddings as features
from petriscope.audit.embeddings import backbone_features, learned_features, run_features
from petriscope.audit.small_network import shrink
from petriscope.core.errors import DataError, RequestError
from petriscope.core.recipe import Recipe
from petriscope.data.imageset import ImageSet
from petriscope.data.sources.synthetic_smear import CLASSES, draw_smear
from petriscope.inference.predictor import Predictor, save_model
from petriscope.models import build_model

IMAGES, LABELS = draw_smear(64, 12)
SMEAR = ImageSet(IMAGES, LABELS, CLASSES, np.arange(64).astype(str))


@pytest.fixture(autouse=True)
def _one_epoch(monkeypatch):
    monkeypatch.setattr(features, "EPOCHS", 1)


def test_same_seed_same_features():
    one, again, other = (learned_features(SMEAR, seed=seed) for seed in (5, 5, 6))
    assert one.shape == (64, 224) and one.dtype == np.float32 and np.isfinite(one).all()
    assert np.array_equal(one, again)
    assert not np.allclose(one, other, atol=0.01)


def test_each_block_weighs_the_same():
    blocks = np.split(learned_features(SMEAR), [32, 96], axis=1)
    assert [block.shape[1] for block in blocks] == [32, 64, 128]
    assert [float(block.var(0).sum()) for block in blocks] == pytest.approx([1, 1, 1], abs=0.01)


def test_equal_images_have_equal_features():
    found = learned_features(replace(SMEAR, pixels=np.concatenate([IMAGES[:32], IMAGES[:32]])))
    assert np.allclose(found[:32], found[32:], atol=1e-4)


def test_a_single_class_is_split_into_clusters():
    found = learned_features(replace(SMEAR, targets=np.zeros(64, np.int64), classes=("cell",)))
    assert found.shape == (64, 224) and np.isfinite(found).all() and found.std() > 0


@pytest.mark.parametrize("count", [0, 1])
def test_features_are_learned_from_several_images(count):
    with pytest.raises(DataError, match="at least 2 images"):
        learned_features(SMEAR.subset(np.arange(count)))


@pytest.fixture
def model_file(tmp_path):
    recipe = Recipe.model_validate({"model": {"name": "simple-cnn", "widths": [4, 4, 4], "hidden": 4}})
    model = build_model(recipe.model, 8, (8, 8, 3))
    predictor = Predictor(model, recipe, SMEAR.task, CLASSES, (8, 8, 3), (0.5,) * 3, (0.2,) * 3, torch.device("cpu"))
    save_model(tmp_path / "model.safetensors", model.state_dict(), predictor, {})
    return tmp_path / "model.safetensors"


def test_features_of_a_run_at_the_size_that_it_takes(model_file):
    small = shrink(SMEAR, 8)
    assert small.shape == (8, 8, 3)
    found = run_features(model_file.parent, small)
    assert found.shape == (64, 24)
    assert np.corrcoef(found.ravel(), run_features(model_file, SMEAR).ravel())[0, 1] > 0.98


def test_no_images_have_no_features(model_file):
    assert len(run_features(model_file, SMEAR.subset(np.arange(0)))) == 0


def test_a_run_on_other_channels_is_refused(model_file):
    with pytest.raises(RequestError, match="takes RGB images, these are gray"):
        run_features(model_file, replace(SMEAR, pixels=IMAGES[..., :1], channels=()))


@pytest.mark.parametrize("name", ["timm/test_resnet", "timm/test_vit", "timm/test_convnext"])
def test_features_of_a_backbone(name):
    images = replace(SMEAR.subset(np.arange(6)), pixels=np.repeat(np.repeat(IMAGES, 3, 1), 3, 2))
    found = backbone_features(name, images, weights="none", resize=160 if "vit" in name else None)
    assert len(found) == 6 and np.isfinite(found).all() and found.std() > 0
    assert np.array_equal(found, backbone_features(name, images, weights="none", resize=160 if "vit" in name else None))


@pytest.mark.parametrize(
    "name", ["simple-cnn", "custom-cnn", "quiz-dnn", "se-cnn", "d4-resnet", "vgg", "autoencoder", "inception"]
)
def test_blocks_of_every_family_are_described(name):
    model = build_model(Recipe.model_validate({"model": name}).model, 3, (16, 16, 3)).eval()
    with features._watch(model) as seen, torch.no_grad():
        model(torch.rand(2, 3, 16, 16))
    assert 1 <= len(seen) <= features.BLOCKS
    assert all(each.shape[0] == 2 and each.ndim == 2 for each in seen)


@pytest.mark.parametrize(("order", "maps"), [("NCHW", 4), ("NHWC", 5)])
def test_maps_may_have_their_channels_last(order, maps):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.output_fmt = order
            self.blocks = nn.Sequential(nn.Sequential(nn.Linear(5, 5)))
            self.head = nn.Linear(5, 2)

        def forward(self, images):
            return self.blocks(images)

    with features._watch(Network()) as seen:
        Network()  # another network is not watched
        assert not seen
    network = Network()
    with features._watch(network) as seen:
        network(torch.rand(2, 4, 3, 5))
    assert seen[0].shape == (2, 2 * maps)


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [((12, 12), 28, (12, 12)), ((12, 12), 10, (10, 10)), ((12, 6), 10, (10, 8)), ((40, 20), 20, (20, 10))],
)
def test_shrinking(size, side, expected):
    pixels = np.full((3, *size, 1), 9, np.uint8)
    images = ImageSet(pixels, np.zeros(3, np.int64), ("cell",), np.arange(3).astype(str))
    small = shrink(images, side)
    assert small.shape == (*expected, 1)
    assert (small.images == 9).all()
