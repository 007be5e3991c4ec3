"""Explanations of segmenters, on a network whose prediction in one region depends on another."""

import numpy as np
import pytest
import torch
from corner import predictor_of
from torch import nn

from petriscope.core.errors import RequestError
from petriscope.core.recipe import Part
from petriscope.data.imageset import ImageSet
from petriscope.data.sources.synthetic_terrain import draw_terrain
from petriscope.explain import explain, methods_for
from petriscope.explain.cam import feature_layer
from petriscope.explain.checks import check, heat_inside, trusted, verdict
from petriscope.explain.classification import NO_TIME
from petriscope.explain.question import Question
from petriscope.explain.regions import largest_class, mean_probability, predicted_masks
from petriscope.explain.segmentation import explain_split
from petriscope.models import build_model
from petriscope.models.smp_models import import_smp

METHODS = ("hires-cam", "grad-cam", "grad-cam++", "occlusion")
MODELS = {
    "unet": {"widths": [4, 8, 8], "patch": 2},
    "attention-unet": {"widths": [4, 8], "refine": 2},
    "dual-unet": {"widths": [4, 8, 8], "rates": [2, 1], "micro_widths": [4, 8]},
}


class FarCorner(nn.Module):
    """Predicts class 1 in the lower right quarter if the upper left corner is bright, and class 0 elsewhere. Images of
    14x14 are padded to 16x16."""

    dense = True
    multiple = 8

    def __init__(self) -> None:
        super().__init__()
        self.bottleneck = nn.Identity()
        self.weight = nn.Parameter(torch.ones(2, 2))  # not used; something for the checks to shuffle
        corner = torch.zeros(8, 8)
        corner[:2, :2] = 1 / 4
        quarter = torch.zeros(14, 14)
        quarter[8:, 8:] = 1
        self.register_buffer("corner", corner)
        self.register_buffer("quarter", quarter)

    def forward(self, images):
        padded = nn.functional.pad(images, (0, 2, 0, 2))
        maps = self.bottleneck(nn.functional.avg_pool2d(padded, 2).relu())
        bright = (maps[:, 0] * self.corner).sum((1, 2))
        ones = 8 * (bright - 1)[:, None, None] * self.quarter - 4 * (1 - self.quarter)
        return torch.stack([torch.zeros_like(ones), ones], 1)


def far_corner():
    return predictor_of(FarCorner(), 2, (14, 14, 1))


def some_images(count=6):
    images = np.random.default_rng(1).integers(60, 120, (count, 14, 14, 1), dtype=np.uint8)
    images[:, :4, :4] = 250
    return images


@pytest.mark.parametrize("method", METHODS)
def test_the_map_marks_what_the_region_depends_on_and_not_the_region(method):
    predictor, images = far_corner(), some_images()
    masks = predicted_masks(predictor, images)
    assert (masks[:, 8:, 8:] == 1).all() and masks.sum() == 6 * 36
    maps = explain(predictor, images, np.ones(6, dtype=int), method)
    peaks = maps.reshape(6, -1).argmax(1)
    assert (peaks // 14 < 5).all() and (peaks % 14 < 5).all()
    assert maps[:, 9:, 9:].max() < 0.02


def test_a_small_window_finds_the_corner_and_padding_moves_nothing():
    predictor, images = far_corner(), some_images()
    fine = explain(predictor, images, np.ones(6, dtype=int), Part(name="occlusion", window=0.15, step=0.07))
    coarse = explain(predictor, images, np.ones(6, dtype=int), "hires-cam")
    marked = np.zeros((14, 14), dtype=bool)
    marked[:4, :4] = True
    assert (fine[:, marked] > 0.2).all() and (fine[:, 6:] == 0).all()
    # Of 8 x 8 maps that cover 16 x 16 pixels the upper left 2 x 2 positions are the corner: half is left at its edge.
    assert (coarse[:, marked] >= 0.5).all() and (coarse[:, 5:] == 0).all() and (coarse[:, :, 5:] == 0).all()


def test_the_map_is_blank_without_a_pixel_of_the_class():
    predictor, images = far_corner(), some_images()
    images[:3, :4, :4] = 0
    for method in METHODS:
        maps = explain(predictor, images, np.ones(6, dtype=int), method)
        assert (maps[:3] == 0).all() and maps[3:].max() == 1


def test_the_largest_class_is_explained_by_default_and_regions_are_checked():
    predictor, images = far_corner(), some_images()
    np.testing.assert_array_equal(explain(predictor, images), explain(predictor, images, np.zeros(6, dtype=int)))
    empty = np.zeros((6, 14, 14), dtype=bool)
    assert (explain(predictor, images, np.ones(6, dtype=int), regions=empty) == 0).all()
    for wrong in (empty[:5], empty.astype(int)):
        with pytest.raises(RequestError, match="regions"):
            explain(predictor, images, np.ones(6, dtype=int), regions=wrong)


def test_the_question_is_the_mean_over_the_region():
    rng = np.random.default_rng(0)
    logits, regions = rng.normal(size=(3, 4, 5, 6)).astype(np.float32), rng.random((3, 5, 6)) < 0.4
    regions[2] = False
    classes = np.array([3, 0, 1])
    question = Question(torch.from_numpy(classes), torch.from_numpy(regions))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for found, values in ((question.score, logits), (question.confidence, p)):
        expected = [values[i, k][regions[i]].mean() for i, k in enumerate(classes[:2])]
        np.testing.assert_allclose(found(torch.from_numpy(logits)), [*expected, 0], rtol=1e-5)
    one = question.take(torch.tensor([1])).score(torch.from_numpy(logits[1:2]))
    np.testing.assert_allclose(one, logits[1, 0][regions[1]].mean(), rtol=1e-5)


def test_mean_probability_is_that_of_the_class_in_the_region():
    predictor, images = far_corner(), some_images()
    regions = np.random.default_rng(0).random((6, 14, 14)) < 0.3
    p = predictor.probabilities(images)
    found = mean_probability(predictor, images, np.array([0, 1, 0, 1, 0, 1]), regions)
    np.testing.assert_allclose(found, [p[i, i % 2][regions[i]].mean() for i in range(6)], rtol=1e-5)


def test_the_largest_class_is_the_background_only_where_there_is_nothing_else():
    masks = np.array([[[0, 0, 0, 1]], [[0, 0, 0, 0]], [[0, 2, 2, 1]]], dtype=np.uint8)
    assert largest_class(masks, ("background", "a", "b")).tolist() == [1, 0, 2]
    assert largest_class(masks, ("a", "b", "c")).tolist() == [0, 0, 2]
    assert largest_class(masks[:0], ("a", "b")).shape == (0,)


@pytest.mark.parametrize("network", MODELS)
def test_every_segmenter_is_explained_at_its_bottleneck_and_left_unchanged(network):
    torch.manual_seed(0)
    model = build_model(Part(name=network, **MODELS[network]), 4, (20, 28, 1))
    predictor = predictor_of(model, 4, (20, 28, 1))
    images, _ = draw_terrain(2, (20, 28))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    layer, last = feature_layer(model, torch.zeros(1, 1, 20, 28), 4)
    assert layer is model.bottleneck and not last
    assert methods_for(predictor) == list(METHODS)
    for method in METHODS:
        maps = explain(predictor, images, method=method)
        assert maps.shape == (2, 20, 28) and np.isfinite(maps).all() and 0 <= maps.min() <= maps.max() <= 1
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with pytest.raises(RequestError, match="use hires-cam"):
        explain(predictor, images, method="attention-rollout")


def test_a_bottleneck_of_one_position_leaves_occlusion():
    model = build_model(Part(name="unet", widths=[4, 8, 8]), 3, (4, 4, 1))
    assert methods_for(predictor_of(model, 3, (4, 4, 1))) == ["occlusion"]


def test_an_smp_model_is_explained_at_the_end_of_its_encoder():
    try:
        import_smp()
    except RequestError as error:
        pytest.skip(str(error))
    model = build_model(Part(name="smp/unet-resnet18"), 3, (64, 64, 3))
    predictor = predictor_of(model, 3, (64, 64, 3))
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    layer, _ = feature_layer(model, torch.zeros(1, 3, 64, 64), 4)
    assert layer is model.network.encoder
    assert explain(predictor, images, method="grad-cam").shape == (1, 64, 64)


def test_checks_compare_maps_with_the_region_itself():
    predictor, images = far_corner(), some_images(24)
    regions = predicted_masks(predictor, images) == 1
    classes = np.ones(24, dtype=int)
    found = check(predictor, images, ["hires-cam"], classes=classes, regions=regions)
    assert set(found["orders"]) == {"hires-cam", "random", "blob", "region"}
    assert found["area"] == pytest.approx(36 / 196)
    row = found["methods"]["hires-cam"]
    assert row["over_random_ci95"][0] > 0.1 and row["over_region_ci95"][0] > 0.1
    assert row["inside"] < 0.01
    # The weights of this network are not used, so shuffling them does not change the map.
    assert not row["trusted"] and "with shuffled weights" in row["verdict"]
    assert row["verdict"].startswith(
        "better than a random order and than a centered blob and than the predicted region"
    )
    few = check(predictor, images, ["hires-cam"], classes=classes, regions=regions, scenes=np.arange(24) // 12)
    assert few["methods"]["hires-cam"]["over_blob"] == pytest.approx(row["over_blob"])


@pytest.mark.parametrize(
    ("over", "moves", "words"),
    [
        ((0.2, 0.3), 0.1, "better than a random order and than a centered blob and than the predicted region itself"),
        (
            (-0.1, 0.1),
            0.1,
            "better than a random order and than a centered blob, but no better than the predicted region itself: they say "
            "no more than the mask does",
        ),
        (
            (-0.2, -0.1),
            0.9,
            "better than a random order and than a centered blob, but worse than the predicted region itself, and much the "
            "same, or the reverse, with shuffled weights: do not trust these maps",
        ),
    ],
)
def test_verdicts_for_segmentation(over, moves, words):
    row = {"over_random_ci95": (0.1, 0.2), "over_blob_ci95": (0.1, 0.2), "over_region_ci95": over}
    row["randomized_ci95"] = (moves, moves)
    assert verdict(row) == words
    assert trusted(row) == (over[0] > 0)


def test_heat_inside_ignores_blank_maps():
    maps, regions = np.zeros((3, 4, 4)), np.zeros((3, 4, 4), dtype=bool)
    regions[:, :2] = True
    maps[0, 0, 0], maps[0, 3, 3] = 0.75, 0.25
    maps[1, 3] = 1
    assert heat_inside(maps, regions) == pytest.approx(0.375)  # of the first two: the third is blank
    assert heat_inside(maps[2:], regions[2:]) == 0


def terrain(count, scenes):
    images, masks = draw_terrain(count, (16, 24))
    groups = np.array([f"scene {i % scenes}" for i in range(count)])
    return ImageSet(images, masks, ("a", "b", "c", "d"), np.array([str(i) for i in range(count)]), groups)


def test_images_with_the_most_of_each_class_are_shown():
    torch.manual_seed(0)
    model = build_model(Part(name="unet", widths=[4, 8]), 4, (16, 24, 1))
    predictor, images = predictor_of(model, 4, (16, 24, 1)), terrain(20, 10)
    masks = predicted_masks(predictor, images.images)
    pixels = np.stack([(masks == label).sum((1, 2)) for label in range(4)], 1)
    arrays, facts = explain_split(predictor, images, pixels)
    for label in range(4):
        rows = arrays["rows"][arrays["classes"] == label]
        assert len(rows) == min(3, (pixels[:, label] > 0).sum())
        assert sorted(pixels[rows, label]) == sorted(np.sort(pixels[:, label])[::-1][: len(rows)])
    np.testing.assert_array_equal(arrays["masks"], masks[arrays["rows"]])
    assert arrays["maps"].shape == arrays["masks"].shape and arrays["maps"].dtype == np.uint8
    assert facts["check"]["n"] == 20 and facts["reason"] is None
    _, facts = explain_split(predictor, terrain(20, 4), pixels)
    assert facts["check"] is None and "fewer than 5 scenes" in facts["reason"]
    _, facts = explain_split(predictor, terrain(10, 10), pixels[:10])
    assert facts["check"] is None and "fewer than 16 images" in facts["reason"]
    arrays, facts = explain_split(predictor, images, pixels, left=lambda: 0.0)
    assert arrays == {} and facts["reason"] == NO_TIME
    arrays, facts = explain_split(predictor, images, pixels, left=lambda: 1e-9)
    assert len(arrays["rows"]) and facts["check"] is None and facts["reason"] == NO_TIME
