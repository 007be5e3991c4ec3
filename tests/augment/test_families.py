"""Every disturbance belongs to one family, and recipes can be trained without one."""

from itertools import chain

import pytest
import torch
from augmenting import plain, run, some_images

from petriscope.augment import AUGMENTATIONS
from petriscope.augment.corruption_mix import CorruptionMix
from petriscope.augment.corruptions import CORRUPTIONS
from petriscope.augment.families import (
    FAMILIES,
    GENERAL,
    MEMBERS,
    family_of,
    has_left_out,
    kept,
    parts_without,
    recipe_without,
)
from petriscope.augment.policies import AUG_MIX, RAND_AUGMENT, TRIVIAL_AUGMENT
from petriscope.core.errors import RequestError
from petriscope.core.recipe import Part, Recipe, load_recipe, recipe_names
from petriscope.training.build import check_parts

OPERATIONS = [name for name in AUGMENTATIONS.members if not has_left_out(name)]
POLICIES = [name for name in AUGMENTATIONS.members if has_left_out(name)]
every_family = pytest.mark.parametrize("family", FAMILIES)


def test_no_name_is_in_two_families():
    names = list(chain.from_iterable(MEMBERS.values()))
    assert len(names) == len(set(names))
    assert set(MEMBERS) == {*FAMILIES, GENERAL}


@pytest.mark.parametrize("name", sorted({*OPERATIONS, *CORRUPTIONS, *RAND_AUGMENT, *TRIVIAL_AUGMENT, *AUG_MIX}))
def test_every_corruption_and_operation_is_in_a_family(name):
    assert family_of(name) in MEMBERS, f"put {name} into a family in augment/families.py"


def test_families_name_nothing_that_does_not_exist():
    assert set(chain.from_iterable(MEMBERS.values())) == {*OPERATIONS, *CORRUPTIONS, *RAND_AUGMENT}


@pytest.mark.parametrize("name", POLICIES)
def test_policies_are_in_no_family(name):
    with pytest.raises(RequestError, match="no family"):
        family_of(name)


@every_family
def test_every_family_has_a_corruption(family):
    assert any(family_of(name) == family for name in CORRUPTIONS)


@every_family
def test_without_a_family_no_operation_of_it_is_left_and_policies_draw_none(family):
    parts = [Part(name=name) for name in AUGMENTATIONS.members if name not in ("copy-paste", "crop-around")]
    left = parts_without(parts, family)
    assert {part.name for part in parts} - {part.name for part in left} == set(MEMBERS[family]) & {
        part.name for part in parts
    }
    for part in left:
        built = AUGMENTATIONS.build(part)
        pool = built.names if isinstance(built, CorruptionMix) else getattr(built, "menu", ())
        assert all(family_of(name) != family for name in pool)
        assert bool(pool) == has_left_out(part.name)


def test_leaving_out_adds_to_what_is_left_out_already():
    (part,) = parts_without([Part(name="corruption-mix", left_out=["blur"], held_out=["bubble"], p=0.3)], "noise")
    assert part.options == {"left_out": ["blur", "noise"], "held_out": ["bubble"], "p": 0.3}
    assert parts_without([part], "blur") == (part,)
    assert not {"defocus-blur", "motion-blur", "gaussian-noise", "bubble"} & set(AUGMENTATIONS.build(part).names)


def test_a_policy_that_leaves_out_a_family_draws_the_others_and_nothing_of_it():
    """Bright images of two colors: without color, tone and occlusion, what is left keeps a flat image as it is."""
    flat = torch.full((64, 12, 12, 3), 200, dtype=torch.uint8)
    out = run("corruption-mix", flat, left_out=["color", "tone", "occlusion", "noise"], severity=(5, 5), p=1.0)
    torch.testing.assert_close(out, plain(flat), atol=0.02, rtol=0)
    assert ((run("corruption-mix", flat, severity=(5, 5), p=1.0) - plain(flat)).abs() > 0.1).any()
    still = run("rand-augment", flat, left_out=["color", "tone"], magnitude=30)
    torch.testing.assert_close(still, plain(flat), atol=1e-5, rtol=0)
    assert ((run("rand-augment", flat, magnitude=30) - plain(flat)).abs() > 0.1).any()


def test_nothing_left_out_draws_what_it_always_drew():
    images = some_images()
    for name in POLICIES:
        assert torch.equal(run(name, images), run(name, images, left_out=[]))


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_can_be_trained_without_each_family(name):
    recipe = load_recipe(name)
    for family in FAMILIES:
        check_parts(recipe_without(recipe, family))


def test_a_recipe_keeps_all_else():
    recipe = Recipe(augment=("flip", "noise", "mixup"), evaluation={"augment_val": ["noise", "hue"]}, seed=3)
    left = recipe_without(recipe, "noise")
    assert [part.name for part in left.augment] == ["flip", "mixup"]
    assert [part.name for part in left.evaluation.augment_val] == ["hue"]
    assert left.seed == 3
    assert Recipe.model_validate(left.model_dump()) == left


def test_unknown_families_and_empty_pools_are_refused():
    with pytest.raises(RequestError, match="no family 'fog'; there are geometry"):
        parts_without([Part(name="noise")], "fog")
    with pytest.raises(RequestError, match="left_out"):
        AUGMENTATIONS.build(Part(name="rand-augment", left_out=["fog"]))
    with pytest.raises(RequestError, match="aug-mix has nothing left to draw from"):
        AUGMENTATIONS.build(Part(name="aug-mix", left_out=["geometry", "tone"]))
    with pytest.raises(RequestError, match="corruption-mix has nothing left"):
        parts_without([Part(name="corruption-mix", left_out=[f for f in FAMILIES if f != "blur"])], "blur")
    assert kept(["identity", "noise"], (), "it") == ["identity", "noise"]


def test_a_pool_that_changes_no_gray_image_is_refused():
    left_out = [family for family in FAMILIES if family not in ("color", "geometry")]
    with pytest.raises(RequestError, match="draws only saturation and color-cast, which change no gray images"):
        run("corruption-mix", some_images(channels=1), left_out=left_out, p=1.0)
