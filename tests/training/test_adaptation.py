"""Folds, rehearsal and settings of an adaptation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from petriscope.core.errors import Diverged
from petriscope.core.recipe import SourceSection, load_recipe
from petriscope.data.domains import draw_weights
from petriscope.data.folds import NEVER, units_of
from petriscope.data.imageset import ImageSet
from petriscope.data.sampler import epoch_order
from petriscope.inference.predictor import Predictor
from petriscope.models import MODELS, build_model
from petriscope.tasks import find_task
from petriscope.training import adaptation
from petriscope.training.adaptation import (
    AS_IS,
    HOME,
    WAYS,
    CrossValidated,
    Setting,
    chosen_first,
    cross_validate,
    fitting,
    folds_of,
    joined,
    part_of_the_way,
    tune,
    with_domain,
    with_setting,
)

NAMES = ("a", "b", "c")


def image_set(count, seed=0, side=12, domains=None, groups=None):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = rng.integers(0, 120, (count, side, side, 3)) + 60 * labels[:, None, None, None]
    columns = {} if domains is None else {"domain": np.array(domains, dtype=object)}
    ids = np.array([f"{seed}-{number}" for number in range(count)])
    return ImageSet(images.astype(np.uint8), labels, NAMES, ids, groups=groups, columns=columns)


def recipe_of(**more):
    tree = {
        "name": "tiny",
        "data": {"source": "here"},
        "augment": ["flip"],
        "model": {"name": "simple-cnn", "norm": "batch", "widths": [4, 8, 8], "hidden": 8},
        "training": {"precision": "fp32", "device": "cpu"},
        **more,
    }
    return load_recipe("demo", (), **tree)


def predictor_of(recipe, side=12, seed=0):
    torch.manual_seed(seed)
    model = build_model(recipe.model, 3, (side, side, 3)).eval()
    task = find_task("classification")
    values = (0.5,) * 3
    return Predictor(model, recipe, task, NAMES, (side, side, 3), values, values, torch.device("cpu"))


# ------------------------------------------------------------------------------------------------------------------- folds


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 14)), min_size=1, max_size=60), st.integers(0, 9))
@example([(0, 2), (0, 4), (1, 0), (1, 1), (1, 2), (1, 2), (1, 3), (1, 5)], 0)  # both units of class 0 fall in one fold
def test_units_stay_together_and_lone_ones_are_never_held_out(pairs, seed):
    targets, units = (np.array(each) for each in zip(*pairs, strict=True))
    folds = folds_of(targets, units, seed)
    np.testing.assert_array_equal(folds, folds_of(targets, units, seed))
    assert ((folds >= 0) & (folds < adaptation.FOLDS) | (folds == NEVER)).all()
    for unit in np.unique(units):
        held = folds[units == unit]
        assert len(np.unique(held)) == 1, "a network that learned from a part is judged by the rest"
    pure = all(len(np.unique(targets[units == unit])) == 1 for unit in np.unique(units))
    for label in np.unique(targets):
        never = folds[targets == label] == NEVER
        if len(np.unique(units[targets == label])) == 1:
            assert never.all()
        elif pure:
            assert not never.any()
        learned = [np.any((targets == label) & (folds != fold)) for fold in range(adaptation.FOLDS)]
        assert all(learned), "a network is judged on a class that it did not learn"


@given(st.integers(10, 80), st.integers(0, 20))
def test_classes_are_spread_over_the_folds(count, seed):
    targets = np.arange(count) % 2
    folds = folds_of(targets, np.arange(count), seed)
    for label in (0, 1):
        sizes = np.bincount(folds[targets == label], minlength=adaptation.FOLDS)
        assert sizes.max() - sizes.min() <= 1
    assert count < 20 or not np.array_equal(folds, folds_of(targets, np.arange(count), seed + 1))


def test_equal_images_are_one_unit():
    images = image_set(9)
    twice = replace(images, pixels=np.concatenate([images.pixels[:3], images.pixels[:6]]))
    units = units_of(twice)
    assert len(np.unique(units)) == 6 and (units[:3] == units[3:6]).all()
    grouped = replace(images, groups=np.repeat(["x", "y", "z"], 3))
    assert units_of(grouped).tolist() == ["x"] * 3 + ["y"] * 3 + ["z"] * 3


# --------------------------------------------------------------------------------------------------------------- rehearsal


@pytest.mark.parametrize("sources", [None, {"one": {"source": "1", "weight": 3}, "two": "2"}])
@pytest.mark.parametrize(("home_groups", "new_groups"), [(False, False), (True, False), (False, True)])
def test_half_of_the_images_drawn_are_of_the_new_place(sources, home_groups, new_groups):
    domains = None if sources is None else ["one"] * 40 + ["two"] * 20
    old = image_set(60, 0, domains=domains, groups=np.array([f"g{i % 6}" for i in range(60)]) if home_groups else None)
    new = image_set(15, 1, groups=np.array([f"n{i % 5}" for i in range(15)]) if new_groups else None)
    recipe = recipe_of(data={"source": None if sources else "here", "sources": sources})
    home, added = joined(old, new, "there", recipe.data)
    images = adaptation.join_sets([home, added])
    assert images.pixels is home.pixels is added.pixels
    assert set(images.domains) == ({"one", "two", "there"} if sources else {HOME, "there"})
    assert home.ids.tolist() == old.ids.tolist() and added.ids[0] == "there/1-0"
    assert (images.groups is not None) == (home_groups or new_groups)
    if new_groups:
        assert set(added.groups) == {f"there/n{i}" for i in range(5)} and set(home.groups) == set(old.ids)
    adapted = with_domain(recipe, images, "there", SourceSection(source="elsewhere", split="test"))
    assert adapted.data.sources["there"].source == "elsewhere" and adapted.data.sources["there"].split == "test"
    assert adapted.data.size == (12, 12) and adapted.data.channels == "rgb"
    weights = draw_weights(adapted.data, images)
    orders = [epoch_order(images.strata, "none", 0, epoch, 640, weights) for epoch in range(4)]
    share = np.mean(images.domains[np.concatenate(orders)] == "there")
    assert share == pytest.approx(0.5, abs=0.01)
    if sources:  # each image of the first domain is drawn as often as three of the second
        drawn = images.domains[np.concatenate(orders)]
        assert np.mean(drawn == "one") / np.mean(drawn == "two") == pytest.approx(6, rel=0.1)


def test_the_domain_column_of_a_table_gives_way_to_home():
    old = image_set(12, domains=["x", "y"] * 6)
    home, _ = joined(old, image_set(3, 1), "there", recipe_of().data)
    assert set(home.domains) == {HOME}


# ---------------------------------------------------------------------------------------------------------------- training


@pytest.fixture
def few_steps(monkeypatch):
    monkeypatch.setattr(adaptation, "STEPS", 2)
    monkeypatch.setattr(adaptation, "BATCH", 8)


def both(recipe):
    return joined(image_set(30, 0), image_set(15, 1), "there", recipe.data)


def test_every_setting_predicts_what_it_did_not_learn(few_steps, monkeypatch):
    recipe = recipe_of()
    home, new = both(recipe)
    folds = folds_of(new.targets, np.arange(15), 0)
    folds[4] = NEVER
    taught = []
    once = adaptation.tune

    def spy(predictor, recipe, images):
        taught.append(set(images.ids))
        assert images.domains.tolist().count("there") < 15
        return once(predictor, recipe, images)

    monkeypatch.setattr(adaptation, "tune", spy)
    settings = (Setting("all", 1e-2, 2), Setting("head", 1e-2, 1))
    predictor = predictor_of(recipe)
    before = {key: value.clone() for key, value in predictor.model.state_dict().items()}
    found = cross_validate(predictor, home, new, "there", folds, ["none", "flips"], settings)
    assert [each.setting for each in found] == [AS_IS, *(replace(each, way=way) for each in settings for way in WAYS)]
    assert len(taught) == 10
    for number, ids in enumerate(taught):
        held = {str(each) for each in new.ids[folds == number % 5]}
        assert held and not held & ids and {*map(str, home.ids)} <= ids and str(new.ids[4]) in ids
    for each in found:
        assert set(each.raw) == {"none", "flips"} and each.held_out.tolist() == [*range(4), *range(5, 15)]
        np.testing.assert_allclose(each.raw["none"][each.held_out].sum(1), 1, atol=1e-4)
    np.testing.assert_array_equal(found[0].raw["none"][0], predictor.predict(new.take([0]), "none").raw[0])
    assert not np.array_equal(found[1].raw["none"][0], found[0].raw["none"][0])
    assert len({each.raw["none"][0].tobytes() for each in found}) == len(found)
    assert all(torch.equal(value, before[key]) for key, value in predictor.model.state_dict().items())


@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=4), st.integers(2, 5), st.floats(0.01, 1e3), st.floats(0.1, 1e5)
)
def test_what_is_tried_fits_in_the_time_or_is_one_setting(epochs, folds, pace, limit):
    settings = [Setting("all", 10.0**-number, each) for number, each in enumerate(epochs)]
    found = fitting(settings, folds, pace, limit)
    assert len({each.lr for each in found}) == len(found) >= 1
    needed = pace * (folds * sum(each.epochs for each in found) + max(each.epochs for each in found))
    assert needed <= limit or (len(found) == 1 and found[0].epochs == 1)
    if len(found) > 1:
        assert all(each in settings for each in found)
    enough = pace * (folds * sum(epochs) + max(epochs))
    assert enough > limit or found == settings
    assert found == settings or enough > limit


def test_head_alone_changes_nothing_else(few_steps):
    recipe = recipe_of()
    images = adaptation.join_sets(both(recipe))
    predictor = predictor_of(recipe)
    asked = with_setting(with_domain(recipe, images, "there", SourceSection(source="")), Setting("head", 1e-2, 1))
    made, trainer = tune(predictor, asked, images)
    before, after = predictor.model.state_dict(), made.model.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed and all(key.startswith("head") for key in changed)
    assert len(trainer.at.history) == 1 and not made.model.training


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_weights_go_a_part_of_the_way(norm, few_steps):
    recipe = recipe_of(model={"name": "simple-cnn", "widths": [4, 8, 8], "hidden": 8, "norm": norm})
    images = adaptation.join_sets(both(recipe))
    predictor = predictor_of(recipe)
    asked = with_setting(with_domain(recipe, images, "there", SourceSection(source="")), Setting("all", 1e-2, 1))
    made, _ = tune(predictor, asked, images)
    before, after = ({k: v.clone() for k, v in each.model.state_dict().items()} for each in (predictor, made))
    half = part_of_the_way(predictor, made, 0.75)
    assert half.recipe == made.recipe and part_of_the_way(predictor, made, 1) is made
    for name, value in half.model.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, 0.25 * before[name] + 0.75 * after[name])
        else:
            assert torch.equal(value, after[name])
    for each, kept in ((predictor, before), (made, after)):
        assert all(torch.equal(value, kept[name]) for name, value in each.model.state_dict().items())
    none = part_of_the_way(predictor, made, 0.0)
    np.testing.assert_allclose(
        none.predict(images.take([0]), "none").raw, predictor.predict(images.take([0]), "none").raw, atol=1e-5
    )


def test_weights_that_two_layers_share_go_as_far_as_others(few_steps):
    def tied(value):
        first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        torch.nn.init.constant_(first.weight, value)
        second.weight = first.weight
        return torch.nn.Sequential(first, second)

    predictor = predictor_of(recipe_of())
    before, after = (replace(predictor, model=tied(value)) for value in (0.0, 1.0))
    found = part_of_the_way(before, after, 0.5).model
    assert found[0].weight is found[1].weight
    torch.testing.assert_close(found[0].weight.detach(), torch.full((2, 2), 0.5))


def test_a_setting_that_diverges_is_left_out(few_steps, monkeypatch, capsys):
    recipe = recipe_of()
    home, new = both(recipe)
    once = adaptation.tune

    def diverging(predictor, recipe, *rest):
        if recipe.optimizer.options["lr"] > 1:
            raise Diverged("the loss is not finite in epoch 1")
        return once(predictor, recipe, *rest)

    monkeypatch.setattr(adaptation, "tune", diverging)
    folds = folds_of(new.targets, np.arange(15), 0)
    settings = (Setting("all", 9.0, 2), Setting("all", 1e-3, 1))
    found = cross_validate(predictor_of(recipe), home, new, "there", folds, ["none"], settings)
    assert [each.setting for each in found] == [AS_IS, *(replace(settings[1], way=way) for way in WAYS)]
    assert "note: all, rate 9, " in capsys.readouterr().err


SMALL = {
    "simple-cnn": {"widths": [4, 8, 8], "hidden": 8},
    "autoencoder": {"widths": [4, 8], "hidden": 8},
    "vgg": {},
    "resnet18": {},
    "se-cnn": {"widths": [4, 8], "depths": [1, 1]},
    "custom-cnn": {},
    "d4-resnet": {},
    "inception": {},
}


@pytest.mark.parametrize("name", [name for name in SMALL if name in MODELS.members])
def test_models_of_every_family_are_adapted(name, few_steps):
    recipe = recipe_of(model={"name": name, **SMALL[name]})
    side = 32
    home, new = joined(image_set(12, 0, side), image_set(6, 1, side), "there", recipe.data)
    predictor = predictor_of(recipe, side)
    folds = np.arange(6) % 2
    settings = (Setting("all", 1e-3, 1), Setting("head", 1e-3, 1))
    found = cross_validate(predictor, home, new, "there", folds, ["none"], settings)
    assert len(found) == 1 + 2 * len(WAYS)
    for each in found[1:]:
        assert not np.array_equal(each.raw["none"], found[0].raw["none"])


def test_settings_are_judged_after_a_temperature_and_among_the_classes_that_occur():
    targets = np.arange(12) % 3
    ids = np.array([f"{number}" for number in range(12)])
    images = ImageSet(np.zeros((12, 4, 4, 3), np.uint8), targets, ("a", "b", "c"), ids)
    p = np.full((12, 3), 0.05, np.float32)
    p[np.arange(12), targets] = 0.9
    mild, sharp = p, p**4 / (p**4).sum(1, keepdims=True)
    first, second = (CrossValidated(AS_IS, {"none": each}).judge(images) for each in (mild, sharp))
    assert first[0] == second[0] == 1 and first[1] == pytest.approx(second[1], abs=0.05)
    shifted = np.roll(p, 1, axis=1)  # always wrong, by one class
    only = np.array([True, False, True])
    rows = np.where(targets != 1)[0]
    raw = np.full((12, 3), np.nan, np.float32)
    raw[rows] = shifted[rows]
    found = CrossValidated(AS_IS, {"none": raw})
    assert found.judge(images)[0] == 0 and found.judge(images, only)[0] > 0


@pytest.mark.parametrize(
    ("values", "chosen"),
    [
        ({"as is": 0.5, "a": 0.30, "b": 0.29}, "a"),  # as good as can be told, and more promising
        ({"as is": 0.5, "a": 0.45, "b": 0.20}, "b"),
        ({"as is": 0.2, "a": 0.21, "b": 0.3}, "as is"),
        ({"as is": 0.292, "a": 0.295, "b": 0.29}, "b"),  # what is not better than the network as it is, is not taken
    ],
)
def test_the_most_promising_setting_is_taken_of_those_that_cannot_be_told_apart(values, chosen, monkeypatch):
    rng = np.random.default_rng(0)
    noise = {name: rng.normal(size=50) * 0.1 for name in values}
    settings = {"as is": AS_IS, "a": Setting("all", 1e-3, 1), "b": Setting("head", 1e-3, 1)}
    losses = {settings[name]: values[name] + noise[name] - noise[name].mean() for name in values}
    monkeypatch.setattr(CrossValidated, "losses", lambda self, *_: losses[self.setting])
    found = chosen_first([CrossValidated(settings[name], {}) for name in values], image_set(3))
    assert found[0].setting == settings[chosen]
    others = [float(losses[each.setting].mean()) for each in found[1:]]
    assert others == sorted(others) and len(found) == 3
