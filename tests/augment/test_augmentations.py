"""What every augmentation keeps to, and what is particular to each."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from petriscope.augment import AUGMENTATIONS
from petriscope.augment.base import Geometric
from petriscope.augment.geometry import gather, resample
from petriscope.augment.pipeline import Normalize, Pipeline
from petriscope.augment.quality import gaussian_blur
from petriscope.recipe import Part

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
    "noise": ({"std": 0.2}, {"std": 0}),
    "blur": ({"sigma": 2}, {"sigma": 0}),
    "cutout": ({"fraction": 0.5, "p": 1}, {"fraction": 0}),
    "mixup": ({"alpha": 1}, {"alpha": 0}),
    "cutmix": ({"p": 1}, {"alpha": 0}),
}
COLOR_ONLY = {"saturation", "hue"}
every = pytest.mark.parametrize("name", sorted(AUGMENTATIONS.members))
channels_of = pytest.mark.parametrize("channels", [1, 3])


def pictures(batch=16, height=12, width=12, channels=3, seed=0):
    smooth = np.random.default_rng(seed).integers(0, 256, (batch, height, width, channels), dtype=np.uint8)
    return torch.from_numpy(smooth)


def run(name, images, seed=0, **options):
    """Augmented pictures as float [B, C, H, W] in [0, 1]."""
    out = augmented([Part(name=name, **options)], images, seed)
    return (out.float() / 255).permute(0, 3, 1, 2) if out.dtype == torch.uint8 else out


def augmented(parts, images, seed=0):
    pipeline = Pipeline.from_recipe(parts, classes=8)
    return pipeline(images, labels(len(images)), torch.Generator().manual_seed(seed))[0]


def labels(batch):
    return torch.arange(batch) % 8


def plain(images):
    return (images.float() / 255).permute(0, 3, 1, 2)


def test_every_augmentation_has_a_case():
    assert set(CASES) == set(AUGMENTATIONS.members)


@every
@channels_of
@pytest.mark.parametrize("size", [(12, 12), (9, 16)])
def test_shape_type_and_range_are_kept(name, channels, size):
    out = run(name, pictures(8, *size, channels), **CASES[name][0])
    assert out.shape == (8, channels, *size)
    assert out.dtype == torch.float32
    assert out.min() >= 0
    assert out.max() <= 1


@every
def test_the_input_is_left_as_it_was(name):
    images = pictures()
    before = images.clone()
    run(name, images, **CASES[name][0])
    assert torch.equal(images, before)


@every
@channels_of
def test_no_magnitude_is_identity(name, channels):
    images = pictures(channels=channels)
    torch.testing.assert_close(run(name, images, **CASES[name][1]), plain(images), atol=2e-5, rtol=0)


@every
def test_the_same_seed_gives_the_same_and_another_another(name):
    images = pictures()
    first = run(name, images, seed=1, **CASES[name][0])
    assert torch.equal(first, run(name, images, seed=1, **CASES[name][0]))
    assert not torch.equal(first, run(name, images, seed=2, **CASES[name][0]))


@every
def test_each_picture_has_its_own_draw(name):
    images = pictures(1).repeat(16, 1, 1, 1)
    out = run(name, images, **CASES[name][0])
    assert len(torch.unique(out.flatten(1), dim=0)) > 1


@every
def test_gray_stays_gray(name):
    if name in {"noise"}:
        pytest.skip("noise is drawn for each channel")
    gray = pictures(channels=1).repeat(1, 1, 1, 3)
    out = run(name, gray, **CASES[name][0])
    torch.testing.assert_close(out[:, 0], out[:, 2], atol=1e-2 if name == "hue" else 1e-5, rtol=0)


@pytest.mark.parametrize("name", sorted(COLOR_ONLY))
def test_color_operations_leave_one_channel_alone(name):
    images = pictures(channels=1)
    torch.testing.assert_close(run(name, images, **CASES[name][0]), plain(images), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", [n for n in CASES if n not in {"quarter-turn", "noise", "blur", "cutout"}])
def test_half_probability_leaves_some_pictures_alone(name):
    if "p" not in AUGMENTATIONS.options(name):
        pytest.skip("has a probability for each axis")
    images = pictures(64)
    out = run(name, images, p=0.5, **CASES[name][0])
    same = (out - plain(images)).abs().amax((1, 2, 3)) < 2e-5
    assert 10 < same.sum() < 54


class TestGeometry:
    def test_exact_operations_only_move_pixels(self):
        images = pictures(32)
        for name in ("flip", "quarter-turn"):
            out = augmented([Part(name=name)], images)
            assert out.dtype == torch.uint8
            ours, theirs = out.flatten(1).sort(1).values, images.flatten(1).sort(1).values
            assert torch.equal(ours, theirs)

    @given(turns=st.integers(0, 3), mirror=st.booleans(), side=st.integers(1, 9))
    def test_gather_is_rot90_and_flip(self, turns, mirror, side):
        images = pictures(2, side, side)
        angle = torch.tensor(turns * torch.pi / 2)
        matrix = torch.eye(3)
        matrix[0, 0] = matrix[1, 1] = angle.cos()
        matrix[0, 1], matrix[1, 0] = -angle.sin(), angle.sin()
        expected = torch.rot90(images, turns, (1, 2))
        if mirror:
            # the product's left factor is carried out first
            matrix = torch.diag(torch.tensor([-1.0, 1.0, 1.0])) @ matrix
            expected = torch.rot90(images.flip(2), turns, (1, 2))
        assert torch.equal(gather(images, matrix.repeat(2, 1, 1)), expected)

    @given(dx=st.integers(-4, 4), dy=st.integers(-4, 4), height=st.integers(5, 9), width=st.integers(5, 9))
    def test_gather_shifts_with_reflection(self, dx, dy, height, width):
        images = pictures(2, height, width)
        matrix = torch.eye(3)
        matrix[0, 2], matrix[1, 2] = dx, dy
        padded = np.pad(images.numpy(), ((0, 0), (4, 4), (4, 4), (0, 0)), mode="reflect")
        expected = padded[:, 4 + dy : 4 + dy + height, 4 + dx : 4 + dx + width]
        assert np.array_equal(gather(images, matrix.repeat(2, 1, 1)).numpy(), expected)

    @given(st.integers(0, 1000))
    def test_the_interpolating_way_agrees_with_the_exact_one(self, seed):
        images = pictures(8, 10, 10)
        generator = torch.Generator().manual_seed(seed)
        matrices = torch.eye(3).repeat(8, 1, 1)
        for part in ("flip", "quarter-turn"):
            matrices = matrices @ AUGMENTATIONS.build(Part(name=part)).matrices(8, (10, 10), generator)
        exact = plain(gather(images, matrices))
        torch.testing.assert_close(resample(plain(images).contiguous(), matrices), exact, atol=1e-4, rtol=0)

    def test_order_in_the_recipe_is_the_order_carried_out(self):
        class ShiftRight(Geometric):
            exact = True

            def matrices(self, batch, size, generator):
                out = torch.eye(3).repeat(batch, 1, 1)
                out[:, 0, 2] = -2
                return out

        class TurnLeft(Geometric):
            exact = True

            def matrices(self, batch, size, generator):
                out = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
                return out.repeat(batch, 1, 1)

        images = torch.zeros(1, 9, 9, 1, dtype=torch.uint8)
        images[0, 4, 4] = 255
        generator = torch.Generator()
        shifted = Pipeline([ShiftRight()])(images, labels(1), generator)[0]
        assert shifted[0, 4, 6] == 255
        both = Pipeline([ShiftRight(), TurnLeft()])(images, labels(1), generator)[0]
        assert torch.equal(both, Pipeline([TurnLeft()])(shifted, labels(1), generator)[0])
        assert not torch.equal(both, Pipeline([TurnLeft(), ShiftRight()])(images, labels(1), generator)[0])

    def test_pictures_that_are_not_square_turn_by_halves(self):
        images = pictures(64, 6, 10)
        out = augmented([Part(name="quarter-turn")], images)
        halves = torch.rot90(images, 2, (1, 2))
        assert all(torch.equal(o, i) or torch.equal(o, h) for o, i, h in zip(out, images, halves, strict=True))

    def test_quarter_turns_are_equally_likely(self):
        images = pictures(1).repeat(4000, 1, 1, 1)
        out = augmented([Part(name="quarter-turn")], images)
        counts = torch.unique(out.flatten(1), dim=0, return_counts=True)[1]
        assert len(counts) == 4
        assert counts.min() > 850

    def test_rotation_turns_about_the_center_by_the_angle(self):
        images = torch.zeros(1, 21, 21, 1, dtype=torch.uint8)
        images[0, 10, 18] = 255  # 8 to the right of the center
        angle = torch.tensor(torch.pi / 2)
        matrix = torch.eye(3)[None].clone()
        matrix[0, 0, 0] = matrix[0, 1, 1] = angle.cos()
        matrix[0, 0, 1], matrix[0, 1, 0] = -angle.sin(), angle.sin()
        out = resample(plain(images).contiguous(), matrix)
        assert out[0, 0, 2, 10] > 0.99


class TestColor:
    def test_brightness_multiplies(self):
        images = torch.full((500, 2, 2, 3), 100, dtype=torch.uint8)
        factors = run("brightness", images, amount=0.5)[:, 0, 0, 0] * 255 / 100
        assert 0.5 <= factors.min() < 0.55
        assert 1.45 < factors.max() <= 1.5

    def test_contrast_keeps_the_mean_gray(self):
        images = pictures(32, 16, 16) // 2 + 64
        out = run("contrast", images, amount=0.4)
        weights = torch.tensor([0.299, 0.587, 0.114])
        mean = lambda x: x.mean((2, 3)) @ weights  # noqa: E731
        torch.testing.assert_close(mean(out), mean(plain(images)), atol=1e-4, rtol=0)

    def test_saturation_keeps_gray_value(self):
        images = pictures(8) // 4 + 96
        out = run("saturation", images, amount=0.5)
        weights = torch.tensor([0.299, 0.587, 0.114])[None, :, None, None]
        torch.testing.assert_close((out * weights).sum(1), (plain(images) * weights).sum(1), atol=1e-4, rtol=0)

    def test_operations_compose_as_if_one_after_another(self):
        images = pictures(8) // 4 + 96  # far from the ends, where nothing is clamped
        parts = [Part(name="contrast", amount=0.2), Part(name="brightness", amount=0.1)]
        together = augmented(parts, images, seed=3)
        generator = torch.Generator().manual_seed(3)
        first, _ = Pipeline.from_recipe(parts[:1])(images, labels(8), generator)
        pipeline = Pipeline.from_recipe(parts[1:])
        one_by_one = pipeline._color(first, generator)
        torch.testing.assert_close(together, one_by_one, atol=1e-5, rtol=0)


def test_blur_is_the_textbook_gaussian():
    from scipy.ndimage import gaussian_filter

    image = torch.rand(1, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    ours = gaussian_blur(image, torch.tensor([1.3]), reach=6)[0, 0].numpy()
    theirs = gaussian_filter(image[0, 0].numpy(), 1.3, mode="mirror", radius=6)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_cutout_covers_a_square_with_the_mean():
    images = pictures(32, 20, 20)
    out = run("cutout", images, fraction=0.3, p=1.0)
    covered = (out != plain(images)).any(1)
    for picture, hole, before in zip(out, covered, plain(images), strict=True):
        rows, columns = hole.any(1).nonzero(), hole.any(0).nonzero()
        assert rows.max() - rows.min() < 6
        assert columns.max() - columns.min() < 6
        torch.testing.assert_close(picture[:, hole], before.mean((1, 2))[:, None].expand(-1, hole.sum()))


def test_normalize_of_bytes_and_of_floats_agree():
    images = pictures()
    normalize = Normalize((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    expected = (plain(images) - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor([0.2, 0.25, 0.3])[
        :, None, None
    ]
    torch.testing.assert_close(normalize(images), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(normalize(plain(images)), expected, atol=1e-5, rtol=0)
    assert normalize(images).is_contiguous(memory_format=torch.channels_last)
