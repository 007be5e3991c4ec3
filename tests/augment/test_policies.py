"""Policies draw for each image, and what they draw is carried out as the operations by themselves are."""

import pytest
import torch
from augmenting import plain, run, some_images

from petriscope.augment.base import Color
from petriscope.augment.color import brightness, compose, contrast, mapped, saturation, unchanged
from petriscope.augment.pipeline import Pipeline
from petriscope.augment.policies import AUG_MIX, RAND_AUGMENT, TRIVIAL_AUGMENT, Drawn, RandAugment

MENUS = {"rand-augment": RAND_AUGMENT, "trivial-augment": TRIVIAL_AUGMENT, "aug-mix": AUG_MIX}


def given(name, strength=1.0, sign=1, batch=8, menu=RAND_AUGMENT):
    """A draw of one operation for every image, as a pipeline's operations."""
    kind = torch.full((batch, 1), list(menu).index(name))
    strength = torch.full((batch, 1), strength)
    return Drawn(menu, kind, sign * strength * menu[name], strength).operations()


def carry_out(operations, images):
    return Pipeline(operations)(images, torch.zeros(len(images), dtype=torch.int64), torch.Generator())[0]


@pytest.mark.parametrize("menu", MENUS.values(), ids=MENUS)
@pytest.mark.parametrize("name", RAND_AUGMENT)
def test_every_operation_changes_images_at_full_strength(menu, name):
    if name not in menu:
        pytest.skip("not in this menu")
    images = some_images(8) // 2 + 30
    changed = (carry_out(given(name, menu=menu), images) - plain(images)).abs().amax((1, 2, 3)) > 1e-3
    assert changed.all() == (name != "identity")


@pytest.mark.parametrize("name", [name for name in RAND_AUGMENT if name not in {"auto-contrast", "equalize"}])
def test_without_strength_every_operation_is_the_identity(name):
    images = some_images(8)
    assert torch.equal(carry_out(given(name, strength=0.0), images), plain(images))


def test_directions_are_opposite():
    dot = torch.zeros(1, 21, 21, 1, dtype=torch.uint8)
    dot[0, 10, 10] = 255
    for name, axis in (("translate-x", 1), ("translate-y", 0)):
        places = [
            int(carry_out(given(name, 0.5, sign, batch=1), dot)[0, 0].nonzero()[0, axis]) - 10 for sign in (1, -1)
        ]
        assert places == [-5, 5]  # half of 150/331 of 21 pixels


def test_moves_are_those_of_the_papers():
    """From output to input, in pixels from the center, x before y."""
    moves = {
        "rotate": [[0.8660254, -0.5, 0], [0.5, 0.8660254, 0], [0, 0, 1]],
        "shear-x": [[1, 0.3, 0], [0, 1, 0], [0, 0, 1]],
        "shear-y": [[1, 0, 0], [0.3, 1, 0], [0, 0, 1]],
        "translate-x": [[1, 0, 18], [0, 1, 0], [0, 0, 1]],  # of 40 pixels
        "translate-y": [[1, 0, 0], [0, 1, 9], [0, 0, 1]],  # of 20
    }
    for name, expected in moves.items():
        maps = given(name, batch=1)[0].matrices(1, (20, 40), torch.Generator())
        torch.testing.assert_close(maps[0], torch.tensor(expected, dtype=torch.float32))


def test_sequence_of_moves_is_their_product():
    images = some_images(4, 24, 24)
    names = ["rotate", "shear-x"]
    kind = torch.tensor([[list(RAND_AUGMENT).index(name) for name in names]]).repeat(4, 1)
    amount = torch.tensor([[20.0, 0.2]]).repeat(4, 1)
    both = Drawn(RAND_AUGMENT, kind, amount, amount).operations()[0]
    maps = both.matrices(4, (24, 24), torch.Generator())
    one_by_one = [
        Drawn(RAND_AUGMENT, kind[:, i : i + 1], amount[:, i : i + 1], amount[:, i : i + 1]).operations()[0]
        for i in range(2)
    ]
    first, second = (op.matrices(4, (24, 24), torch.Generator()) for op in one_by_one)
    torch.testing.assert_close(maps, first @ second)
    assert not torch.allclose(maps, second @ first, atol=1e-3)
    torch.testing.assert_close(carry_out([both], images), carry_out(one_by_one, images))


def test_colors_of_a_draw_are_the_color_operations_in_the_order_drawn():
    first, second = ["contrast", "brightness", "identity"], ["saturation", "contrast", "rotate"]
    kind = torch.tensor([[list(RAND_AUGMENT).index(name) for name in pair] for pair in zip(first, second, strict=True)])
    amount = torch.tensor([[0.3, -0.4], [0.2, 0.5], [0.0, 0.9]])
    mean = torch.rand(3, 3, generator=torch.Generator().manual_seed(0))
    colors = next(op for op in Drawn(RAND_AUGMENT, kind, amount, amount).operations() if isinstance(op, Color))
    total = unchanged(mean)
    changes = {"contrast": contrast, "brightness": brightness, "saturation": saturation}
    for place, names in enumerate((first, second)):
        moved = mapped(mean, total)
        maps = [
            changes[name](moved, 1 + amount[:, place])[row] if name in changes else unchanged(mean[:1])[0]
            for row, name in enumerate(names)
        ]
        total = compose(total, torch.stack(maps))
    torch.testing.assert_close(colors.matrices(mean, torch.Generator()), total)


def test_each_image_draws_its_own_operations_evenly():
    generator = torch.Generator().manual_seed(0)
    there = torch.ones(7000, 2, dtype=torch.bool)
    drawn = Drawn.of(RAND_AUGMENT, there, torch.ones(7000, 2), generator)
    counts = torch.bincount(drawn.kind.flatten(), minlength=14)
    assert counts.min() > 850
    assert counts.max() < 1150
    torch.testing.assert_close((drawn.amount[drawn.where("rotate")] > 0).float().mean(), torch.tensor(0.5), atol=0.06,
                               rtol=0)  # fmt: skip


def test_magnitude_is_the_strength_of_all_draws():
    drawn = RandAugment(operations=3, magnitude=15).draw(50, torch.Generator().manual_seed(0))[0].drawn
    assert drawn.kind.shape == (50, 3)
    assert (drawn.strength == 0.5).all()
    assert (drawn.amount[drawn.where("rotate")].abs() == 15).all()


@pytest.mark.parametrize("name", ["rand-augment", "trivial-augment", "aug-mix"])
def test_images_left_out_keep_their_bits(name):
    images = some_images(100)
    same = (run(name, images, p=0.4) == plain(images)).flatten(1).all(1)
    assert 45 <= same.sum() <= 80


def test_trivial_augment_is_stronger_than_a_weak_rand_augment():
    images = some_images(200, 16, 16) // 2 + 60
    change = lambda name, **options: (run(name, images, **options) - plain(images)).abs().mean()  # noqa: E731
    assert change("trivial-augment") > 1.5 * change("rand-augment", operations=1, magnitude=2)
    assert change("rand-augment", magnitude=25) > change("rand-augment", magnitude=5)


class TestAugMix:
    def test_blends_what_its_chains_make(self):
        """Of images that no tone operation changes, without strength, the blend is the image."""
        images = (some_images(16) > 127).to(torch.uint8) * 255
        out = run("aug-mix", images, severity=0)
        torch.testing.assert_close(out, plain(images), atol=1e-5, rtol=0)

    def test_weights_sum_to_one(self):
        flat = torch.full((32, 9, 9, 3), 90, dtype=torch.uint8)
        out = run(
            "aug-mix", flat, severity=1
        )  # posterize and solarize do nothing yet, moves do nothing to a flat image
        torch.testing.assert_close(out, plain(flat), atol=1e-5, rtol=0)

    def test_a_large_alpha_takes_half_of_the_image(self):
        """Two copies of weights 1/2 each, mixed half and half with the image: steps of a quarter, where all are moved
        by whole pixels or not at all."""
        images = (some_images(400, 8, 8, 1) > 127).to(torch.uint8) * 255
        out = run("aug-mix", images, width=2, depth=1, alpha=1e6)
        steps = out * 4
        whole = ((steps - steps.round()).abs() < 0.02).flatten(1).all(1)
        assert whole.float().mean() > 0.2
        assert ((steps[whole].round() == 2).flatten(1).any(1)).any()

    def test_severity_strengthens(self):
        images = some_images(64, 16, 16)
        change = lambda severity: (run("aug-mix", images, severity=severity) - plain(images)).abs().mean()  # noqa: E731
        assert change(10) > change(1)
