"""Masks that go through augmentation: what comes from outside is unlabeled, and what is rare is pasted."""

import numpy as np
import pytest
import torch
from augmenting import labels, some_images, with_targets

from petriscope.augment.geometry import gather, resample
from petriscope.augment.pipeline import Pipeline
from petriscope.core.errors import RequestError
from petriscope.core.masks import IGNORE
from petriscope.core.recipe import Part


def masks_of(batch=16, height=10, width=14, classes=4, seed=0):
    """Random masks, each an eighth unlabeled."""
    rng = np.random.default_rng(seed)
    masks = rng.integers(0, classes, (batch, height, width), dtype=np.uint8)
    masks[rng.random(masks.shape) < 1 / 8] = IGNORE
    return torch.from_numpy(masks)


def shift(x, y):
    out = torch.eye(3)[None].clone()
    out[0, 0, 2], out[0, 1, 2] = x, y
    return out


@pytest.mark.parametrize("move", ["gather", "resample"])
@pytest.mark.parametrize(("x", "y"), [(0, 0), (3, 0), (-2, 4), (0, -9), (20, 0)])
def test_what_a_shift_brings_in_is_unlabeled(move, x, y):
    masks = masks_of(1)
    if move == "gather":
        moved = gather(masks[..., None], shift(x, y), IGNORE)[..., 0]
    else:
        moved = resample(masks[:, None].float(), shift(x, y), "nearest", IGNORE)[:, 0].to(torch.uint8)
    height, width = masks.shape[1:]
    wanted = torch.full_like(masks, IGNORE)
    for row in range(height):
        for column in range(width):
            if 0 <= row + y < height and 0 <= column + x < width:
                wanted[0, row, column] = masks[0, row + y, column + x]
    assert torch.equal(moved, wanted)


@pytest.mark.parametrize("name", ["flip", "quarter-turn"])
def test_what_stays_in_the_frame_loses_no_label(name):
    masks = masks_of(height=12, width=12)
    _, moved = with_targets([Part(name=name)], some_images(16), masks)
    assert not torch.equal(moved, masks)
    assert torch.equal(moved.flatten(1).sort(1).values, masks.flatten(1).sort(1).values)


@pytest.mark.parametrize(
    "part",
    [{"name": "translate", "fraction": 0.3}, {"name": "rotate", "degrees": 40}, {"name": "scale", "amount": 0.6}],
)
def test_values_stay_and_the_input_is_kept(part):
    masks, images = masks_of(classes=3), some_images(16, 10, 14)
    before = masks.clone()
    _, moved = with_targets([Part(**part)], images, masks)
    assert torch.equal(masks, before)
    assert set(moved.unique().tolist()) == {0, 1, 2, IGNORE}
    assert (moved == IGNORE).sum() > (masks == IGNORE).sum()


def paste(images, masks, seed=0, **options):
    return with_targets([Part(name="copy-paste", **{"classes": [3], **options})], images, masks, seed)


def test_pasting_takes_the_rare_class_with_its_pixels():
    masks = torch.zeros(8, 6, 6, dtype=torch.uint8)
    masks[2, 1:3, 1:3], masks[5, 4, 4] = 3, 3
    images = some_images(8, 6, 6, 1)
    out, after = paste(images, masks, p=1)
    from_two = torch.zeros(6, 6, dtype=torch.bool)
    from_two[1:3, 1:3] = True
    for index in (0, 1, 3, 4, 6, 7):
        got = after[index] == 3
        source = 2 if torch.equal(got, from_two) else 5
        assert torch.equal(got, masks[source] == 3)
        wanted = torch.where(got, images[source, ..., 0], images[index, ..., 0])
        assert torch.equal((out[index, 0] * 255).round().to(torch.uint8), wanted)
    assert (masks[0] == 0).all()


def test_nothing_rare_leaves_the_batch_as_it_is():
    masks = masks_of(classes=3)
    _, after = paste(some_images(16, 10, 14), masks, p=1)
    assert torch.equal(after, masks)


def test_pasting_is_a_function_of_the_seed_and_of_p():
    masks, images = masks_of(64), some_images(64, 10, 14)
    first, again, other = (paste(images, masks, seed)[1] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    changed = (first != masks).flatten(1).any(1).sum()
    assert 15 < changed < 50
    assert torch.equal(paste(images, masks, p=0)[1], masks)


def test_pasting_needs_masks_and_a_class():
    with pytest.raises(RequestError, match="needs masks"):
        paste(some_images(), labels(16))
    with pytest.raises(RequestError, match="classes"):
        Pipeline.from_recipe([Part(name="copy-paste")])


def crop(images, masks, seed=0, **options):
    return with_targets([Part(name="crop-around", **{"classes": [3], "p": 1, **options})], images, masks, seed)


def rare(at, height=20, width=40):
    """A mask of class 0 with one pixel of class 3, and an image that is bright there alone."""
    masks = torch.zeros(64, height, width, dtype=torch.uint8)
    masks[:, at[0], at[1]] = 3
    return (masks == 3).to(torch.uint8)[..., None] * 255, masks


@pytest.mark.parametrize("at", [(0, 0), (19, 39), (10, 17), (3, 36)])
def test_a_crop_holds_the_rare_pixel_and_nothing_from_outside(at):
    images, masks = rare(at)
    out, after = crop(images, masks, side=(0.5, 0.5))
    assert set(after.unique().tolist()) == {0, 3}
    found = (after == 3).flatten(1).sum(1)
    assert found.min() >= 1, "cut through by the window's edge at most"
    assert found.float().median() == 4, "twice as wide and as high"
    assert (out[:, 0].flatten(1).sum(1) > 1).all(), "the image goes with its mask"
    brightest = out[:, 0].flatten(1).argmax(1)
    assert (after.flatten(1).gather(1, brightest[:, None]) == 3).all()


def test_the_rare_pixel_lies_anywhere_in_the_crop():
    after = crop(*rare((10, 20)), side=(0.3, 0.6))[1]
    columns = (after == 3).any(1).float().argmax(1)
    assert columns.min() < 8
    assert columns.max() > 30


def test_every_pixel_of_the_class_may_be_the_one_aimed_at():
    images = torch.zeros(64, 20, 40, 1, dtype=torch.uint8)
    masks = torch.zeros(64, 20, 40, dtype=torch.uint8)
    masks[:, 2, 2], masks[:, 17, 37] = 3, 3
    left = (crop(images, masks, side=(0.3, 0.3))[1] == 3)[:, :, :20].flatten(1).any(1)
    assert 10 < left.sum() < 54


def test_what_has_nothing_rare_is_not_cropped_and_p_is_how_many_of_the_rest_are():
    masks, images = masks_of(64), some_images(64, 10, 14)
    masks[::2][masks[::2] == 3] = 0
    changed = (crop(images, masks, p=0.5, side=(0.4, 0.6))[1] != masks).flatten(1).any(1)
    assert not changed[::2].any()
    assert 8 < changed[1::2].sum() < 24
    assert torch.equal(crop(images, masks, side=(1, 1))[1], masks)


def test_a_crop_comes_before_all_other_geometry():
    images, masks = rare((10, 20))
    parts = [Part(name="translate", fraction=0.4), Part(name="crop-around", classes=[3], p=1, side=(0.5, 0.5))]
    after = with_targets(parts, images, masks)[1]
    alone = with_targets(parts[::-1], images, masks)[1]
    assert torch.equal(after, alone)


def test_a_crop_needs_masks_a_class_and_to_be_the_only_one():
    with pytest.raises(RequestError, match="needs masks"):
        crop(some_images(), labels(16))
    with pytest.raises(RequestError, match="classes"):
        Pipeline.from_recipe([Part(name="crop-around")])
    with pytest.raises(RequestError, match="once"):
        Pipeline.from_recipe([Part(name="crop-around", classes=[1])] * 2)
    with pytest.raises(RequestError, match="side"):
        Pipeline.from_recipe([Part(name="crop-around", classes=[1], side=[0.9, 0.5])])
