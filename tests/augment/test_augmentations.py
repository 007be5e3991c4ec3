"""What every augmentation keeps to."""

import pytest
import torch
from augmenting import CLASSES, augmented, labels, plain, run, some_images, with_targets

from devices import check_same_kind, on_every_device, queued
from petriscope.augment import AUGMENTATIONS, crop_around, noise_and_blur, occlusion, pattern
from petriscope.augment.base import Color, Geometric, Mixing, Pixelwise, Policy
from petriscope.augment.pipeline import Pipeline, drawn
from petriscope.core.errors import RequestError
from petriscope.core.masks import IGNORE
from petriscope.core.recipe import Part

# name -> options of a strong draw, options at which nothing may change
CASES = {
    "flip": ({"horizontal": 0.5, "vertical": 0.5}, {"horizontal": 0, "vertical": 0}),
    "quarter-turn": ({}, {"p": 0}),
    "translate": ({"fraction": 0.3}, {"fraction": 0}),
    "rotate": ({"degrees": 45}, {"degrees": 0}),
    "scale": ({"amount": 0.5}, {"amount": 0}),
    "shear": ({"degrees": 30}, {"degrees": 0}),
    "brightness": ({"amount": 0.5}, {"amount": 0}),
    "contrast": ({"amount": 0.5}, {"amount": 0}),
    "saturation": ({"amount": 0.9}, {"amount": 0}),
    "hue": ({"amount": 0.3}, {"amount": 0}),
    "stain-jitter": ({"amount": 0.8, "p": 1}, {"amount": 0}),
    "absorbance-jitter": ({"span": (0.2, 0.5), "p": 1}, {"span": (1, 1), "p": 1}),
    "noise": ({"std": 0.2}, {"std": 0}),
    "blur": ({"sigma": 2}, {"sigma": 0}),
    "amplitude-mix": ({"share": (1, 1)}, {"share": (0, 0)}),
    "spectrum-jitter": ({"amount": 3}, {"amount": 0}),
    "random-convolution": ({"share": (1, 1), "repeats": 2}, {"share": (0, 0)}),
    "pattern-mix": ({"amount": 1}, {"amount": 0}),
    "posterize": ({"bits": 1}, {"bits": 8}),
    "solarize": ({"threshold": 0}, {"threshold": 1}),
    "invert": ({}, {"p": 0}),
    "equalize": ({}, {"p": 0}),
    "auto-contrast": ({}, {"p": 0}),
    "sharpness": ({"amount": 2}, {"amount": 0}),
    "cutout": ({"fraction": 0.5}, {"fraction": 0}),
    "random-erasing": ({"area": (0.3, 0.5)}, {"area": (0, 0)}),
    "coarse-dropout": ({"fraction": (0.2, 0.5)}, {"holes": 0}),
    "hide-patches": ({"share": (0.4, 0.6)}, {"share": (0, 0)}),
    "grid-mask": ({"ratio": 0.4, "degrees": 45}, {"ratio": 1}),
    "disc-mask": ({"radius": (0.2, 0.4)}, {"radius": (1, 1)}),
    "corruption-mix": ({"severity": (3, 5), "p": 1}, {"severity": (0, 0)}),
    "wide-mix": ({"p": 1}, {"p": 0}),
    "rand-augment": ({"magnitude": 20}, {"operations": 0}),
    "trivial-augment": ({}, {"p": 0}),
    "aug-mix": ({"severity": 10}, {"p": 0}),
    "mixup": ({"alpha": 1}, {"alpha": 0}),
    "cutmix": ({}, {"alpha": 0}),
    "copy-paste": ({"classes": (1,)}, {"classes": (1,), "p": 0}),
    "crop-around": ({"classes": (1,), "p": 1}, {"classes": (1,), "side": (1, 1)}),
}
COLOR_GRAY = {
    "noise",
    "random-erasing",
    "corruption-mix",
    "wide-mix",
    "stain-jitter",
    "absorbance-jitter",
    "random-convolution",
    "pattern-mix",
}
BETWEEN_IMAGES = {"amplitude-mix"}  # does nothing between equal images
MASKS_ALONE = {"copy-paste", "crop-around"}  # tests/augment/test_moved_masks.py has them
every = pytest.mark.parametrize("name", sorted(CASES.keys() - MASKS_ALONE))
channels_of = pytest.mark.parametrize("channels", [1, 3])


def strong(name, **options):
    return AUGMENTATIONS.build(Part(name=name, **{**CASES[name][0], **options}))


def kind_is(*kinds):
    """The names of these kinds."""
    names = [name for name in CASES if issubclass(AUGMENTATIONS.find(name), kinds)]
    return pytest.mark.parametrize("name", names)


def test_every_augmentation_has_a_case():
    assert set(CASES) == set(AUGMENTATIONS.members)


@every
@channels_of
@pytest.mark.parametrize("size", [(12, 12), (9, 16)])
@pytest.mark.parametrize("batch", [1, 8])
def test_shape_type_and_range_are_kept(name, channels, size, batch):
    out = run(name, some_images(batch, *size, channels), **CASES[name][0])
    assert out.shape == (batch, channels, *size)
    assert out.dtype == torch.float32
    assert out.min() >= 0
    assert out.max() <= 1


@every
def test_the_input_is_left_as_it_was(name):
    images, targets = some_images(), labels(16)
    before = images.clone(), targets.clone()
    with_targets([Part(name=name, **CASES[name][0])], images, targets)
    assert torch.equal(images, before[0])
    assert torch.equal(targets, before[1])


@every
@channels_of
def test_no_magnitude_is_identity(name, channels):
    images = some_images(channels=channels)
    torch.testing.assert_close(run(name, images, **CASES[name][1]), plain(images), atol=2e-5, rtol=0)


@every
def test_the_same_seed_gives_the_same_and_another_another(name):
    images = some_images(64)
    first = run(name, images, seed=1, **CASES[name][0])
    assert torch.equal(first, run(name, images, seed=1, **CASES[name][0]))
    assert not torch.equal(first, run(name, images, seed=2, **CASES[name][0]))


@every
def test_each_image_has_its_own_draw(name):
    if issubclass(AUGMENTATIONS.find(name), Mixing):
        _, shares = with_targets([Part(name=name, **CASES[name][0])], some_images(64), labels(64))
        assert len(torch.unique(shares.amax(1))) > 10  # equal images mix into themselves; their shares tell
        return
    images = some_images(64) if name in BETWEEN_IMAGES else some_images(1).repeat(64, 1, 1, 1)
    out = run(name, images, **CASES[name][0])
    assert len(torch.unique(out.flatten(1), dim=0)) > 1


@every
def test_gray_stays_gray(name):
    if name in COLOR_GRAY:
        pytest.skip("it gives gray a color, as noise of each channel does")
    gray = some_images(channels=1).repeat(1, 1, 1, 3)
    out = run(name, gray, **CASES[name][0])
    torch.testing.assert_close(out[:, 0], out[:, 2], atol=1e-2 if name == "hue" else 1e-5, rtol=0)


@pytest.mark.parametrize("name", ["hue", "saturation"])
def test_color_operations_leave_one_channel_alone(name):
    images = some_images(channels=1)
    torch.testing.assert_close(run(name, images, **CASES[name][0]), plain(images), atol=1e-6, rtol=0)


@every
def test_half_probability_leaves_some_images_alone(name):
    if "p" not in AUGMENTATIONS.options(name):
        pytest.skip("has a probability for each axis")
    images = some_images(64)
    out = run(name, images, **{**CASES[name][0], "p": 0.5})
    same = (out - plain(images)).abs().amax((1, 2, 3)) < 2e-5
    assert 10 < same.sum() < 54


@kind_is(Color, Pixelwise, Mixing, Policy)
@channels_of
def test_channels_last_gives_the_same_numbers_and_the_input_is_kept(name, channels):
    pixels = plain(some_images(8, 9, 14, channels)).contiguous()
    before = pixels.clone()
    last = pixels.to(memory_format=torch.channels_last)
    for operation in drawn([strong(name)], 8, torch.Generator().manual_seed(0)):
        if isinstance(operation, Geometric):
            continue
        outs = []
        for images in (pixels, last):
            generator = torch.Generator().manual_seed(1)
            if isinstance(operation, Color):
                outs.append(operation.matrices(images.mean((2, 3)), generator))
            elif isinstance(operation, Mixing):
                targets = torch.eye(8) if operation.for_labels else torch.ones(8, 9, 14, dtype=torch.uint8)
                outs.append(operation(images, targets, generator, dense=not operation.for_labels)[0])
            else:
                outs.append(operation(images, generator))
        torch.testing.assert_close(*outs, atol=1e-6, rtol=0)
        assert torch.equal(pixels, before)
        assert torch.equal(last, before)


def blobs(batch=32, side=24):
    """Masks of smooth outline, uint8 [B, H, W], and images that are 255 where the mask is 1."""
    at = torch.arange(side) - (side - 1) / 2
    generator = torch.Generator().manual_seed(5)
    center = torch.rand(2, batch, 1, 1, generator=generator) * 8 - 4
    far = (at[:, None] - center[0]) ** 2 + 2 * (at[None, :] - center[1]) ** 2
    masks = (far < 50).to(torch.uint8)
    return masks, masks[..., None] * 255


@kind_is(Geometric, Policy)
@pytest.mark.parametrize("turned", [False, True])
def test_masks_move_with_images(name, turned):
    masks, images = blobs()
    if turned:  # not square
        masks, images = masks[:, 2:-3], images[:, 2:-3]
    generator = torch.Generator().manual_seed(0)
    moves = [op for op in drawn([strong(name)], len(masks), generator) if isinstance(op, Geometric)]
    assert moves
    out, moved = Pipeline(moves, dense=True)(images, masks, generator)
    assert moved.dtype == torch.uint8
    assert moved.shape == masks.shape
    assert not torch.equal(moved, masks)
    inside = moved != IGNORE
    assert inside.float().mean() > 0.5
    if out.dtype == torch.uint8:
        assert torch.equal(out[..., 0][inside], (moved * 255)[inside])
        return
    sure = (out[:, 0] < 0.01) | (out[:, 0] > 0.99)  # no border was interpolated here
    assert sure.float().mean() > 0.7
    sure &= inside
    assert torch.equal((out[:, 0] > 0.5)[sure], (moved > 0)[sure])


@kind_is(Color, Pixelwise)
def test_what_moves_nothing_leaves_masks_alone_or_refuses_them(name):
    masks, images = blobs()
    operation = strong(name)
    if getattr(operation, "for_masks", True):
        _, after = Pipeline([operation], dense=True)(images, masks, torch.Generator())
        assert torch.equal(after, masks)
    else:
        with pytest.raises(RequestError, match="masks"):
            Pipeline([operation], dense=True)(images, masks, torch.Generator())


@kind_is(Mixing)
def test_mixing_moves_masks_or_refuses_them(name):
    masks, images = blobs()
    operation = strong(name, p=1)
    if operation.for_masks:
        out, after = Pipeline([operation], dense=True)(images, masks, torch.Generator())
        assert torch.equal((out[:, 0] > 0.5).to(torch.uint8), after)
        assert not torch.equal(after, masks)
    else:
        with pytest.raises(RequestError, match="masks"):
            Pipeline([operation], dense=True)(images, masks, torch.Generator())


def test_a_policy_and_masks_in_one_recipe():
    masks, images = blobs()
    parts = [Part(name=name) for name in ("flip", "rand-augment", "grid-mask", "cutmix")]
    out, after = with_targets(parts, images, masks)
    assert out.shape == (32, 1, 24, 24)
    assert after.dtype == torch.uint8
    assert {0, 1} <= set(after.unique().tolist()) <= {0, 1, IGNORE}


def test_labels_are_left_as_they_are_where_nothing_mixes():
    _, targets = with_targets([Part(name="rand-augment")], some_images(), labels(16))
    assert torch.equal(targets, labels(16))


def test_nothing_gives_the_bytes_back():
    images = some_images()
    assert augmented([], images) is images


@on_every_device
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("name", sorted(CASES))
def test_it_runs_on_every_device_and_waits_for_none(name, dense, device, monkeypatch):
    if device == "meta":  # torch has no random generator on meta
        for module in (crop_around, noise_and_blur, occlusion, pattern):
            monkeypatch.setattr(module, "elsewhere", lambda device, generator: None)
    operation = strong(name)
    if not getattr(operation, "for_masks" if dense else "for_labels", True):
        pytest.skip("not for such targets")
    images = some_images(8, 16, 24)
    targets = (images[..., 0] % 3) if dense else labels(8)
    pipeline = Pipeline([operation], CLASSES, dense=dense)
    expected = pipeline(images, targets, torch.Generator().manual_seed(0))
    found = pipeline(images.to(device), targets.to(device), torch.Generator().manual_seed(0))
    for there, here in zip(found, expected, strict=True):
        check_same_kind(there, here, device)
    images, targets = images.to(device), targets.to(device)
    if device != "cpu":
        with queued(device):
            pipeline(images, targets, torch.Generator().manual_seed(0))
