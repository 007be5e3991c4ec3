"""Augmentations and corruptions of images whose channels are not gray or red, green and blue."""

import numpy as np
import pytest
import torch

from petriscope.augment.base import by_group
from petriscope.augment.corruptions import CORRUPTIONS, corrupt
from petriscope.augment.pipeline import Pipeline
from petriscope.augment.standardize import Standardize
from petriscope.core.channels import RGB, groups_of
from petriscope.core.errors import RequestError
from petriscope.core.recipe import Part
from petriscope.trust.robustness import applicable

DYES = ("DAPI", "GFP", "RFP")
INFRARED = ("infrared", "red", "green", "blue")
SIDE = 24  # a smaller one has no room for cells of pixelate


def batch(channels, dtype=torch.uint16, count=6):
    noise = np.random.default_rng(0).integers(0, 65536, (count, SIDE, SIDE, channels), dtype=np.uint16)
    return torch.from_numpy(noise if dtype == torch.uint16 else (noise >> 8).astype(np.uint8))


def augmented(parts, images, channels, seed=0):
    pipeline = Pipeline.from_recipe([Part.model_validate(part) for part in parts], classes=2, channels=channels)
    targets = torch.arange(len(images)) % 2
    return pipeline(images, targets, torch.Generator().manual_seed(seed))[0]


def planes(images):
    return images.permute(0, 3, 1, 2).float() / 65535


@pytest.mark.parametrize("name", ["saturation", "hue", "stain-jitter", "absorbance-jitter"])
def test_color_is_refused_without_colors_and_else_acts_on_them_alone(name):
    part = {"name": name} if name in ("saturation", "hue") else {"name": name, "p": 1}
    with pytest.raises(RequestError, match="none called red, green and blue"):
        augmented([part], batch(3), DYES)
    images = batch(4)
    out = augmented([part], images, INFRARED)
    assert torch.equal(out[:, 0], planes(images)[:, 0])
    alone = augmented([part], images[..., 1:].contiguous(), RGB)
    torch.testing.assert_close(out[:, 1:], alone, atol=1e-6, rtol=0)
    assert not torch.equal(alone, planes(images)[:, 1:])


@pytest.mark.parametrize("name", ["rand-augment", "trivial-augment", "corruption-mix", "wide-mix"])
def test_policies_are_told_to_leave_colors_out(name):
    with pytest.raises(RequestError, match=r"left_out: \[color\]"):
        augmented([{"name": name}], batch(3), DYES)
    for channels in (DYES, INFRARED):
        parts = [{"name": name, "p": 1, "left_out": ["color"]}] if channels is DYES else [{"name": name, "p": 1}]
        out = augmented(parts, batch(len(channels)), channels)
        assert (
            out.shape == (6, len(channels), SIDE, SIDE) and out.isfinite().all() and out.min() >= 0 and out.max() <= 1
        )


def test_light_changes_channel_by_channel():
    images = batch(3)
    out = augmented([{"name": "brightness", "amount": 0.5}], images, DYES)
    factors = (out / planes(images).clamp_min(1e-6)).flatten(2).median(2).values
    assert (factors.std(1) > 0.01).all()
    together = augmented([{"name": "brightness", "amount": 0.5}], images, RGB)
    assert (together / planes(images).clamp_min(1e-6)).flatten(2).median(2).values.std(1).max() < 0.01


@pytest.mark.parametrize(
    "name", ["flip", "rotate", "blur", "noise", "cutout", "coarse-dropout", "posterize", "equalize", "mixup"]
)
def test_the_others_take_any_channels(name):
    for channels in (2, 5, 16):
        out = augmented([name], batch(channels), tuple(f"c{i}" for i in range(channels)))
        whole = not out.is_floating_point()
        assert out.shape == ((6, SIDE, SIDE, channels) if whole else (6, channels, SIDE, SIDE))


def test_covered_places_are_those_of_all_channels():
    images = torch.full((6, SIDE, SIDE, 4), 40000, dtype=torch.int32).to(torch.uint16)
    covered = augmented([{"name": "cutout", "fill": "zero", "p": 1}], images, INFRARED) == 0
    assert covered.any() and (covered == covered[:, :1]).all()


@pytest.mark.parametrize("name", list(CORRUPTIONS))
def test_corruptions(name):
    at = torch.arange(6)
    dyes = corrupt(batch(3), name, 3, at, channels=DYES)
    assert dyes.dtype == torch.uint16 and dyes.shape == (6, SIDE, SIDE, 3)
    colored = not CORRUPTIONS[name].gray
    assert torch.equal(dyes.int(), batch(3).int()) == colored
    assert (name in [c.name for c in applicable(DYES)]) == (not colored)
    four = corrupt(batch(4), name, 3, at, channels=INFRARED)
    if CORRUPTIONS[name].by_color:
        alone = corrupt(batch(4)[..., 1:].contiguous(), name, 3, at, channels=RGB)
        assert torch.equal(four[..., 1:].int(), alone.int())
        gray = corrupt(batch(4)[..., :1].contiguous(), name, 3, at)
        assert torch.equal(four[..., :1].int(), batch(4)[..., :1].int() if colored else gray.int())


def test_eight_bits_of_red_green_and_blue_are_as_before():
    images, at = batch(3, torch.uint8), torch.arange(6)
    for name in CORRUPTIONS:
        assert torch.equal(corrupt(images, name, 2, at), corrupt(images, name, 2, at, channels=RGB))


def test_standardizing():
    with pytest.raises(RequestError, match="leave it out"):
        Standardize(("background",), DYES)
    x = planes(batch(4))
    out = Standardize(("background", "stain"), INFRARED)(x)
    assert torch.equal(out[:, 0], x[:, 0])
    torch.testing.assert_close(out[:, 1:], Standardize(("background", "stain"))(x[:, 1:]))


def test_groups_cover_each_channel_once():
    x = planes(batch(4))
    assert torch.equal(by_group(x, groups_of(INFRARED), lambda part: part + 1), x + 1)
    assert torch.equal(by_group(x, (), lambda part: part + 1), x + 1)
