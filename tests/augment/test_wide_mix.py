"""Chains of operations of all families."""

import pytest
import torch
from augmenting import plain, run, some_images

from petriscope.augment.families import FAMILIES, GENERAL, family_of
from petriscope.augment.wide_mix import WideMix

EVERY = (*(family for family in FAMILIES if family != "geometry"), GENERAL)


def pixels(batch=32, side=12):
    return plain(some_images(batch, side, side)).contiguous()


def count_calls(mix, monkeypatch):
    """How many images each operation gets, by family."""
    got = dict.fromkeys(EVERY, 0)
    for family, operations in zip(EVERY, mix.pool, strict=True):
        for operation in operations:
            kind = type(operation)
            original = kind.matrices if hasattr(kind, "matrices") else kind.__call__

            def counted(self, images, generator, original=original):
                family = next(f for f, ops in zip(EVERY, mix.pool, strict=True) if self in ops)
                got[family] += len(images)
                return original(self, images, generator)

            if not getattr(original, "counted", False):
                counted.counted = True
                monkeypatch.setattr(kind, "matrices" if hasattr(kind, "matrices") else "__call__", counted)
    return got


def test_families_are_drawn_evenly_and_chains_have_the_mean_length(monkeypatch):
    mix = WideMix(width=1, depth=3, p=1)
    got = count_calls(mix, monkeypatch)
    mix(pixels(2000, 6), torch.Generator().manual_seed(0))
    assert sum(got.values()) == pytest.approx(4000, rel=0.05)
    for family, images in got.items():
        assert images == pytest.approx(4000 / len(EVERY), rel=0.15), family


def test_every_operation_of_the_menu_is_in_the_pool():
    mix = WideMix()
    assert sum(map(len, mix.pool)) == len(mix.menu) == 14 + 12
    assert {family_of(name) for name in mix.menu} == set(EVERY)


def test_copies_that_are_not_drawn_do_not_count():
    """With copies that change nothing, the result is the image, whatever their weights."""
    mix = WideMix(width=4, severity=(0, 0), p=1)
    mix.pool = [[operation] for operation in mix.pool[EVERY.index("compression")]]  # of no severity
    images = pixels()
    torch.testing.assert_close(mix(images, torch.Generator().manual_seed(0)), images, atol=1e-5, rtol=0)


def test_whole_mixes_keep_nothing_of_the_image():
    images = some_images(400, 8, 8) // 2 + 64
    change = lambda whole: (run("wide-mix", images, whole=whole, p=1) - plain(images)).abs().mean()  # noqa: E731
    assert change(1.0) > 1.4 * change(0.0)


def test_severity_and_depth_strengthen():
    images = some_images(200, 12, 12)
    change = lambda **options: (run("wide-mix", images, p=1, **options) - plain(images)).abs().mean()  # noqa: E731
    assert change(severity=(5, 5)) > change(severity=(0, 1))
    assert change(depth=4) > change(depth=1)
