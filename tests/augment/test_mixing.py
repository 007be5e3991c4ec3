"""MixUp and CutMix: what becomes of the targets."""

import pytest
import torch
import torch.nn.functional as F
from augmenting import CLASSES, some_images, with_targets

from petriscope.core.recipe import Part

both = pytest.mark.parametrize("name", ["mixup", "cutmix"])


def constant(batch=24, side=16):
    """Images of one value each, 10 times their place in the batch."""
    values = torch.arange(batch, dtype=torch.uint8) * 10
    return values[:, None, None, None].repeat(1, side, side, 1)


def mix(name, images, targets, seed=0, **options):
    return with_targets([Part(name=name, p=1, alpha=1, **options)], images, targets, seed)


@both
def test_shares_sum_to_one_and_their_mean_is_that_of_the_classes(name):
    labels = torch.tensor([0] * 16 + [1] * 8 + [2] * 5 + [3] * 3)
    total = torch.zeros(CLASSES)
    for seed in range(150):
        _, targets = mix(name, some_images(32, 8, 8), labels, seed)
        assert targets.shape == (32, CLASSES)
        torch.testing.assert_close(targets.sum(1), torch.ones(32))
        assert targets.min() >= 0
        total += targets.mean(0) / 150
    torch.testing.assert_close(total, F.one_hot(labels, CLASSES).float().mean(0), atol=0.02, rtol=0)


def test_a_cutmix_target_is_the_area_that_was_pasted():
    images = constant(CLASSES)
    partners = set()
    for seed in range(150):
        mixed, targets = mix("cutmix", images, torch.arange(CLASSES), seed)
        values = (mixed[:, 0] * 25.5).round().long()  # whose pixels they are
        shares = F.one_hot(values, CLASSES).float().mean((1, 2))
        torch.testing.assert_close(targets, shares, atol=1e-6, rtol=0)
        assert ((shares > 0).sum(1) <= 2).all()
        partners.update(map(tuple, (shares > 0).nonzero().tolist()))
    assert len(partners) == CLASSES**2  # any image may meet any other


def test_what_cutmix_pastes_is_a_rectangle():
    mixed, _ = mix("cutmix", constant(), torch.zeros(24, dtype=torch.int64))
    for place, image in enumerate(mixed[:, 0]):
        pasted = (image * 25.5).round() != place
        assert pasted.any(1).sum() * pasted.any(0).sum() == pasted.sum()


def test_cutmix_pastes_masks_with_the_pixels():
    images = constant()
    masks = images[..., 0] // 10
    mixed, moved = mix("cutmix", images, masks)
    assert moved.dtype == torch.uint8
    assert torch.equal((mixed[:, 0] * 25.5).round().to(torch.uint8), moved)
    assert not torch.equal(moved, masks)


def test_mixup_shares_are_those_of_the_images():
    mixed, targets = mix("mixup", constant(CLASSES), torch.arange(CLASSES))
    expected = targets @ (torch.arange(CLASSES) * 10 / 255)
    torch.testing.assert_close(mixed.mean((1, 2, 3)), expected, atol=1e-5, rtol=0)


@both
def test_each_image_draws_its_own_share(name):
    _, targets = mix(name, some_images(32, 16, 16), torch.arange(32) % CLASSES)
    assert len(torch.unique(targets.amax(1))) > 10


@both
def test_p_is_how_many_are_mixed(name):
    images, mixed_images = some_images(64, 16, 16), 0
    for seed in range(10):
        part = Part(name=name, p=0.25, alpha=1)
        mixed, _ = with_targets([part], images, torch.arange(64) % CLASSES, seed)
        mixed_images += int((mixed != images.permute(0, 3, 1, 2) / 255).flatten(1).any(1).sum())
    assert 90 < mixed_images < 190


def test_both_in_one_recipe_keep_targets_shares():
    parts = [Part(name="mixup", alpha=1), Part(name="cutmix", p=1)]
    _, targets = with_targets(parts, some_images(), torch.arange(16) % CLASSES)
    torch.testing.assert_close(targets.sum(1), torch.ones(16))
    assert ((targets > 0).sum(1) > 2).any()
