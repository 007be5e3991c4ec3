"""What covers part of an image covers the part it says."""

import pytest
import torch
from augmenting import plain, run, some_images
from scipy.ndimage import label

from petriscope.augment import AUGMENTATIONS
from petriscope.core.errors import RequestError
from petriscope.core.recipe import Part

WHITE = torch.full((200, 20, 20, 3), 255, dtype=torch.uint8)


def holes(name, images=WHITE, seed=0, **options):
    """Where white images were blackened, bool [B, H, W]."""
    out = run(name, images, seed, fill="zero", **options)
    assert ((out == 0) | (out == 1)).all()
    return out[:, 0] == 0


def test_cutout_covers_a_square_with_the_mean():
    images = some_images(32, 20, 20)
    out = run("cutout", images, fraction=0.3, p=1.0)
    covered = (out != plain(images)).any(1)
    for image, hole, before in zip(out, covered, plain(images), strict=True):
        rows, columns = hole.any(1).nonzero(), hole.any(0).nonzero()
        assert rows.max() - rows.min() < 6
        assert columns.max() - columns.min() < 6
        torch.testing.assert_close(image[:, hole], before.mean((1, 2))[:, None].expand(-1, hole.sum()))


@pytest.mark.parametrize("size", [(20, 20), (16, 30)])
def test_erased_rectangles_have_the_area_and_proportions(size):
    images = torch.full((400, *size, 1), 255, dtype=torch.uint8)
    shares, aspects = [], []
    for hole in holes("random-erasing", images, area=(0.1, 0.3), aspect=(0.5, 2.0), p=1):
        rows, columns = hole.any(1).sum(), hole.any(0).sum()
        assert rows * columns == hole.sum()
        shares.append(float(hole.float().mean()))
        aspects.append(float(rows / columns))
    assert 0.08 < min(shares) < 0.12
    assert 0.28 < max(shares) < 0.33
    assert 0.4 < min(aspects) < 0.7
    assert 1.4 < max(aspects) < 2.5


def test_a_rectangle_fits_whatever_its_proportions():
    for hole in holes("random-erasing", area=(0.8, 0.9), aspect=(0.1, 10.0), p=1):
        assert 0.75 < hole.float().mean() < 0.95


def test_noise_differs_from_pixel_to_pixel_and_falls_in_the_hole_alone():
    images = some_images(16, 20, 20)
    out, before = run("random-erasing", images, fill="noise", area=(0.2, 0.3), p=1.0), plain(images)
    for image, was in zip(out, before, strict=True):
        changed = (image != was).any(0)
        assert 0.15 < changed.float().mean() < 0.35
        assert image[:, changed].std() > 0.2


def test_coarse_dropout_makes_up_to_so_many_holes():
    counts = [label(hole.numpy())[1] for hole in holes("coarse-dropout", holes=3, fraction=(0.1, 0.15), p=1)]
    assert set(counts) == {1, 2, 3}  # holes may touch, so a count may be low, never high


def test_one_coarse_hole_has_the_side_asked_for():
    for hole in holes("coarse-dropout", holes=1, fraction=(0.5, 0.5), p=1):
        assert hole.sum() == 100
        assert hole.any(1).sum() == 10


@pytest.mark.parametrize("ratio", [0.3, 0.6])
def test_grid_mask_covers_its_share_and_repeats(ratio):
    images = torch.full((300, 60, 60, 1), 255, dtype=torch.uint8)
    grid = holes("grid-mask", images, period=(1 / 3, 1 / 3), ratio=ratio, p=1)
    covered = round(20 * (1 - ratio))
    assert (grid.flatten(1).sum(1) == 9 * covered**2).all()
    assert torch.equal(grid[:, 20:, 20:], grid[:, :-20, :-20])
    assert len(torch.unique(grid.flatten(1), dim=0)) > 100  # offsets


def test_a_turned_grid_covers_about_as_much():
    images = torch.full((100, 60, 60, 1), 255, dtype=torch.uint8)
    turned = holes("grid-mask", images, period=(0.2, 0.4), ratio=0.5, degrees=90, p=1)
    assert abs(turned.float().mean() - 0.25) < 0.02
    slanted = turned.any(2).all(1)  # an upright grid leaves whole rows free
    assert slanted.float().mean() > 0.5


def test_grid_mask_draws_periods_from_its_range():
    images = torch.full((300, 60, 60, 1), 255, dtype=torch.uint8)
    sides = [int(hole.any(1).sum()) for hole in holes("grid-mask", images, period=(0.5, 1), ratio=0.5, p=1)]
    assert min(sides) < 32
    assert len(set(sides)) > 5


def test_disc_mask_keeps_a_disc_of_the_radius():
    images = torch.full((300, 40, 60, 1), 255, dtype=torch.uint8)
    kept = ~holes("disc-mask", images, radius=(0.25, 0.4), jitter=0.1, p=1)
    assert not kept.flatten(1).all(1).any()
    widths, centers = kept.any(1).sum(1), []
    for disc in kept:
        rows, columns = disc.nonzero().float().mean(0)
        centers.append((rows - 19.5, columns - 29.5))
    assert 19 <= widths.min() <= 22
    assert 30 <= widths.max() <= 33
    assert 3 < torch.tensor(centers).abs().max() <= 4.3
    areas = kept.flatten(1).sum(1) / (torch.pi * (widths / 2) ** 2)
    assert ((areas > 0.85) & (areas < 1.15)).all()


@pytest.mark.parametrize(
    "part",
    [
        {"name": "random-erasing", "area": [0.4, 0.1]},
        {"name": "random-erasing", "aspect": [0, 1]},
        {"name": "disc-mask", "radius": [0.5, 0.2]},
        {"name": "grid-mask", "period": [0.5]},
        {"name": "cutout", "fill": "white"},
    ],
)
def test_a_range_that_is_none_is_refused(part):
    with pytest.raises(RequestError, match=part["name"]):
        AUGMENTATIONS.build(Part(**part))


@pytest.mark.parametrize("size", [(24, 24), (24, 40)])
def test_hidden_patches_are_whole_squares_of_the_share(size):
    images = torch.full((300, *size, 1), 255, dtype=torch.uint8)
    hidden = holes("hide-patches", images, patches=(6, 6), share=(0.25, 0.25), p=1)
    assert float(hidden.float().mean()) == pytest.approx(0.25, abs=0.02)
    cells = hidden.unflatten(1, (-1, 4)).unflatten(3, (-1, 4)).float().mean((2, 4))
    assert ((cells == 0) | (cells == 1)).all()
    assert len(torch.unique(cells.flatten(1), dim=0)) > 250


def test_patches_have_different_sizes_and_a_full_share_hides_all():
    hidden = holes("hide-patches", patches=(2, 10), share=(0.5, 0.5), p=1)
    borders = (hidden[:, 1:] != hidden[:, :-1]).flatten(1).sum(1).float()
    assert borders.max() > 3 * borders.min()
    assert holes("hide-patches", share=(1, 1), p=1).all()


def test_more_patches_than_pixels_are_single_pixels():
    images = torch.full((50, 5, 7, 1), 255, dtype=torch.uint8)
    assert 0.3 < holes("hide-patches", images, patches=(64, 64), share=(0.5, 0.5), p=1).float().mean() < 0.7
