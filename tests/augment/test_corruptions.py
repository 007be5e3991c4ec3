"""What every corruption keeps to, and what single ones promise."""

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from devices import check_same_kind, on_every_device, queued
from petriscope.augment.corruption_mix import CorruptionMix
from petriscope.augment.corruptions import CORRUPTIONS, SEVERITIES, corrupt, corrupt_masks
from petriscope.augment.corruptions.digital import jpeg
from petriscope.augment.corruptions.draws import Draws, image_keys
from petriscope.core.errors import RequestError
from petriscope.core.masks import IGNORE
from petriscope.core.recipe import Part
from petriscope.data.sources.synthetic_smear import draw_smear

MEDMNIST_C = {
    *("pixelate", "jpeg", "defocus-blur", "motion-blur", "brightness-up", "brightness-down"),
    *("contrast-up", "contrast-down", "saturation", "stain-deposit", "bubble"),
}
every = pytest.mark.parametrize("name", sorted(CORRUPTIONS))


def cells(count=32, size=24, channels=3, seed=3):
    images = torch.from_numpy(draw_smear(count, size, seed)[0])
    return images if channels == 3 else images[..., 1:2].contiguous()


def halves(count=8, size=(24, 32)):
    """Images bright in a rectangle of their own, and masks that say where."""
    rng = np.random.default_rng(0)
    masks = np.zeros((count, *size), np.uint8)
    for mask in masks:
        top, left = rng.integers(4, 9, 2)
        mask[top : top + 10, left : left + 14] = 1
    return torch.from_numpy(masks * 200)[..., None].contiguous(), torch.from_numpy(masks)


@every
@on_every_device
def test_it_runs_on_every_device_and_waits_for_none(name, device):
    images, masks = halves()
    indices = torch.arange(len(images))
    check_same_kind(corrupt(images.to(device), name, 3, indices), images, device)
    check_same_kind(corrupt_masks(masks.to(device), name, 3, indices), masks, device)
    images, masks = images.to(device), masks.to(device)
    with queued(device):
        corrupt(images, name, 4, indices)
        corrupt_masks(masks, name, 4, indices)


@every
@pytest.mark.parametrize("severity", [1, 5])
def test_masks_go_where_their_images_go(name, severity):
    images, masks = halves()
    before, indices = masks.clone(), torch.arange(3, 11)
    moved = corrupt_masks(masks, name, severity, indices, seed=2)
    assert torch.equal(masks, before) and moved.dtype == torch.uint8
    parts = [corrupt_masks(masks[at], name, severity, indices[at], seed=2) for at in (slice(0, 3), slice(3, 8))]
    assert torch.equal(torch.cat(parts), moved)
    if not CORRUPTIONS[name].moves:
        assert torch.equal(moved, masks)
        return
    labeled = moved != IGNORE
    assert set(moved.unique().tolist()) == {0, 1, IGNORE}
    assert 0.5 < labeled.float().mean() < 1
    bright = corrupt(images, name, severity, indices, seed=2)[..., 0] > 100
    right, stayed = ((bright == (where == 1))[labeled].float().mean() for where in (moved, masks))
    assert right > 0.99 and stayed < right - 0.02
    assert torch.equal(corrupt_masks(masks, name, 0, indices), masks)


def test_a_mask_at_severity_zero_keeps_its_place_among_others_that_move():
    _, masks = halves(2)
    severity, keys = torch.tensor([0.0, 5.0]), image_keys(torch.arange(2), "rotation", 0)
    moved = CORRUPTIONS["rotation"].follow(masks, severity, keys)
    assert torch.equal(moved[0], masks[0]) and not torch.equal(moved[1], masks[1])


def damage(name, images, severity):
    """Mean absolute change, in gray levels, of each image."""
    after = corrupt(images, name, severity, torch.arange(len(images)))
    return (after.float() - images.float()).abs().mean((1, 2, 3))


def test_the_eleven_of_medmnist_c_are_there():
    assert {corruption.name for corruption in CORRUPTIONS.values() if corruption.medmnist_c} == MEDMNIST_C


@every
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(24, 24), (9, 16), (32, 11)])
def test_shape_and_type_are_kept_and_the_input_too(name, channels, size):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, *size, channels), dtype=np.uint8))
    before = images.clone()
    after = corrupt(images, name, 5, torch.arange(3))
    assert after.dtype == torch.uint8
    assert after.shape == images.shape
    assert after.is_contiguous()
    assert torch.equal(images, before)


@every
def test_severity_zero_keeps_every_bit(name):
    images = cells(4)
    assert torch.equal(corrupt(images, name, 0, torch.arange(4)), images)
    pixels = images.permute(0, 3, 1, 2).float() / 255
    severity = torch.tensor([0.0, 3.0, 0.0, 5.0])
    after = CORRUPTIONS[name](pixels, severity, image_keys(torch.arange(4), name, 0))
    assert torch.equal(after[[0, 2]], pixels[[0, 2]])
    assert not torch.equal(after[1], pixels[1])
    assert not torch.equal(after[3], pixels[3])


def test_identity_is_the_image():
    images = cells(2)
    assert corrupt(images, "identity", 5, torch.arange(2)) is images


@every
def test_a_image_is_disturbed_alike_in_every_batch(name):
    images, indices = cells(13), torch.arange(13)
    whole = corrupt(images, name, 4, indices, seed=1)
    parts = [corrupt(images[at], name, 4, indices[at], seed=1) for at in (slice(0, 1), slice(1, 6), slice(6, 13))]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(corrupt(images.flip(0), name, 4, indices.flip(0), seed=1).flip(0), whole)


@pytest.mark.parametrize("name", sorted(set(CORRUPTIONS) - {"pixelate", "jpeg", "defocus-blur"}))
def test_draws_differ_by_seed_or_there_are_none(name):
    images, indices = cells(16), torch.arange(16)
    drawn = not name.startswith(("brightness", "contrast"))
    same = torch.equal(corrupt(images, name, 3, indices, seed=0), corrupt(images, name, 3, indices, seed=1))
    assert same != drawn


@every
@pytest.mark.parametrize("channels", [1, 3])
def test_damage_grows_with_severity(name, channels):
    if channels == 1 and not CORRUPTIONS[name].gray:
        pytest.skip("changes color alone")
    means = [float(damage(name, cells(96, 28, channels), severity).mean()) for severity in SEVERITIES]
    assert means[0] > 0.3
    assert means == sorted(means)
    assert means[-1] > 1.5 * means[0]


@pytest.mark.parametrize("name", sorted(set(CORRUPTIONS) - {"jpeg"}))
def test_a_severity_means_the_same_at_any_size(name):
    small = cells(48, 32)
    enlarged = F.interpolate(small.permute(0, 3, 1, 2).float(), scale_factor=3, mode="bicubic").round().clamp(0, 255)
    large = enlarged.to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    for severity in (3, 5):
        ratio = float(damage(name, small, severity).mean() / damage(name, large, severity).mean())
        assert 0.65 < ratio < 1.35, (severity, ratio)


@pytest.mark.parametrize("quality", [7, 20, 50, 90])
@pytest.mark.parametrize(("size", "channels"), [((32, 32), 3), ((28, 28), 3), ((24, 40), 1)])
def test_jpeg_is_what_libjpeg_makes(quality, size, channels):
    images = torch.from_numpy(draw_smear(6, size, 1)[0])[..., :channels].contiguous()
    pixels = images.permute(0, 3, 1, 2).float() / 255
    ours = jpeg(pixels, torch.full((6,), float(quality)), Draws(torch.zeros(6, dtype=torch.int64))) * 255
    gaps, losses = [], []
    for mine, plain in zip(ours.permute(0, 2, 3, 1).numpy(), images.numpy(), strict=True):
        buffer = io.BytesIO()
        Image.fromarray(plain.squeeze()).save(buffer, "JPEG", quality=quality)
        theirs = np.asarray(Image.open(buffer), dtype=float).reshape(plain.shape)
        gaps.append(abs(mine - theirs).mean())
        losses.append(abs(theirs - plain).mean())
    assert np.mean(gaps) < 0.2 * np.mean(losses) + 0.5, (np.mean(gaps), np.mean(losses))


def test_draws_are_uniform_and_normal_and_differ():
    draws = Draws(image_keys(torch.arange(2000), "x", 0))
    uniform = draws.uniform(50)
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 0.01
    assert abs(uniform.var() - 1 / 12) < 0.002
    assert abs(torch.corrcoef(uniform[:, :2].T)[0, 1]) < 0.08
    assert abs(torch.corrcoef(torch.stack([uniform[:-1, 0], uniform[1:, 0]]))[0, 1]) < 0.08
    normal = draws.normal(3, 17)
    assert normal.shape == (2000, 3, 17)
    assert abs(normal.mean()) < 0.02
    assert abs(normal.std() - 1) < 0.02


def test_defocus_and_motion_keep_the_mean():
    images = cells(16, 32)
    for name in ("defocus-blur", "motion-blur"):
        after = corrupt(images, name, 3, torch.arange(16)).float().mean((1, 2))
        torch.testing.assert_close(after, images.float().mean((1, 2)), atol=6, rtol=0)


def covered(name, severity, count=100):
    """The share of an even image that is changed, [count]."""
    even = torch.full((count, 120, 120, 3), 190, dtype=torch.uint8)
    return (corrupt(even, name, severity, torch.arange(count)) != 190).any(3).float().mean((1, 2))


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_what_covers_covers_about_the_share_it_says(severity):
    blots, boxes = covered("stain-deposit", severity), covered("occlusion", severity)
    boxes = boxes[boxes > 0]  # the mean color does not show on an even image
    assert len(boxes) > 50
    for name, share in (("stain-deposit", blots), ("occlusion", boxes)):
        assert 0.8 < float(share.mean()) / CORRUPTIONS[name].levels[severity - 1] < 1.2, name


def test_an_unknown_corruption_names_the_near_ones():
    with pytest.raises(RequestError, match="motion-blur"):
        corrupt(cells(1), "motion-blurr", 3, torch.arange(1))


# ------------------------------------------------------------------------------------------- training against them


def test_what_is_held_out_is_never_drawn(monkeypatch):
    drawn = set()
    for name, corruption in CORRUPTIONS.items():
        original = corruption.carry_out

        def noted(images, level, draws, name=name, original=original):
            drawn.add(name)
            return original(images, level, draws)

        monkeypatch.setitem(CORRUPTIONS, name, type(corruption)(**{**vars(corruption), "carry_out": noted}))
    mix = CorruptionMix(held_out=("bubble", "jpeg"), p=1)
    mix(cells(400, 12).permute(0, 3, 1, 2).float() / 255, torch.Generator().manual_seed(0))
    assert drawn == {name for name in CORRUPTIONS if not CORRUPTIONS[name].moves} - {"bubble", "jpeg"}


def test_gray_images_are_left_out_of_what_changes_color_alone():
    assert {c.name for c in CorruptionMix().pool(True)} - {c.name for c in CorruptionMix().pool(False)} == {
        "saturation",
        "color-cast",
    }


def test_again_disturbs_more():
    pixels = cells(200, 12).permute(0, 3, 1, 2).float() / 255

    def change(again):
        mix = CorruptionMix(p=1, severity=(3, 3), again=again)
        return (mix(pixels, torch.Generator().manual_seed(0)) - pixels).abs().mean()

    assert change(1.0) > 1.2 * change(0.0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"held_out": ["bubbel"]}, "bubble"),
        ({"severity": [4, 2]}, "first of a range"),
        ({"severity": [0, 6]}, "less than or equal to 5"),
    ],
)
def test_wrong_options_are_said(options, said):
    from petriscope.augment import AUGMENTATIONS

    with pytest.raises(RequestError, match=said):
        AUGMENTATIONS.check(Part(name="corruption-mix", **options))
