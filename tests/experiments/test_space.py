"""The space of a tuning: what a file may say, and what follows from a recipe."""

from __future__ import annotations

import random

import pytest
import yaml

from petriscope.core.errors import RequestError
from petriscope.core.recipe import load_recipe, recipe_names, with_values
from petriscope.experiments.space import Choices, Span, auto_space, label, load_space, read_space, value_in
from petriscope.models import sketch_model

MASKS = ("mars/", "synthetic-terrain/")


def drawn_from(space, rng):
    """A draw from every parameter, its ends included."""
    out = {}
    for each in space.parameters:
        if isinstance(each, Choices):
            out[each.key] = rng.choice([label(value) for value in each.values])
        else:
            share = rng.choice([0.0, 1.0, rng.random()])
            value = each.low + share * (each.high - each.low)
            out[each.key] = round(value) if each.whole else value
    return out


@pytest.mark.parametrize("name", recipe_names())
def test_the_automatic_space_of_every_recipe_gives_valid_recipes_and_has_the_recipe_itself(name):
    start, rng = load_recipe(name), random.Random(name)
    dense = name.startswith(MASKS)
    space = auto_space(start, dense)
    keys = [each.key for each in space.parameters]
    assert len({*keys}) == len(keys) and {"optimizer.lr", "optimizer.weight_decay", "schedule"} <= {*keys}
    own, outside = space.position(start)
    assert outside == []
    for each in space.parameters:
        value = each.value(own[each.key])
        assert value == value_in(start, each.key) or {"name": value} == value_in(start, each.key), each.key
    for number in range(8):
        recipe = space.recipe(start, drawn_from(space, rng))
        assert recipe.data == start.data and recipe.seed == start.seed and None not in recipe.augment
        if number < 2 and "model.widths" in keys:
            sketch_model(recipe.model, 8, (96, 96, 3))


def test_an_automatic_space_can_be_written_and_read_again():
    start = load_recipe("demo")
    space = auto_space(start, dense=False)
    again = read_space(yaml.safe_load(space.to_yaml()), start, "auto")
    assert again == space


def test_a_file_is_read(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(
        "optimizer.lr: {low: 1e-4, high: 1e-1, log: true}\n"
        "training.batch_size: {low: 16, high: 64, step: 16}\n"
        "augment.0.fraction: {low: 0, high: 1}\n"
        "model.widths: [[4, 8, 8], [8, 16, 16]]\n"
        "augment.3: [null, {name: rotate, degrees: 20}]\n"
        "data.standardize: [[], [background]]\n"
    )
    start = load_recipe("demo")
    space = load_space(path, start, dense=False)
    rate, batch, fraction, widths, rotate, _ = space.parameters
    assert rate == Span("optimizer.lr", 1e-4, 0.1, log=True)
    assert batch.whole and batch.drawn(48) == 48 and batch.drawn(40) is None and batch.drawn(80) is None
    assert not fraction.whole, "the recipe takes any number, so whole ends are no reason for whole numbers"
    recipe = space.recipe(
        start,
        {
            "optimizer.lr": 0.0123456789,
            "training.batch_size": 32,
            "augment.0.fraction": 0.25,
            "model.widths": label(widths.values[0]),
            "augment.3": label(rotate.values[1]),
            "data.standardize": "[background]",
        },
    )
    assert recipe.optimizer.options["lr"] == 0.0123457 and recipe.training.batch_size == 32
    assert recipe.model.options["widths"] == [4, 8, 8] and recipe.model.options["norm"] == "batch"
    assert [part.name for part in recipe.augment] == ["translate", "flip", "quarter-turn", "rotate"]
    assert recipe.data.standardize == ("background",)
    without = with_values(start, {"augment.3": None})
    assert without.augment == start.augment


def test_a_part_is_put_in_before_its_options():
    start = load_recipe("demo")
    space = read_space(
        {"optimizer.weight_decay": {"low": 0.0, "high": 0.1}, "optimizer": ["adamw", {"name": "sgd", "lr": 0.1}]}, start
    )
    recipe = space.recipe(start, {"optimizer": "sgd, lr 0.1", "optimizer.weight_decay": 0.05})
    assert recipe.optimizer.name == "sgd" and recipe.optimizer.options == {"lr": 0.1, "weight_decay": 0.05}


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({}, "there are no parameters"),
        ([1], "a space is a mapping"),
        ({"optimizer.lrr": {"low": 1, "high": 2}}, "did you mean lr?"),
        ({"optimzer.lr": {"low": 1, "high": 2}}, "did you mean optimizer?"),
        ({"augment.7.p": {"low": 0.0, "high": 1.0}}, "augment has 3 entries"),
        ({"augment.0.p": {"low": 0.5, "high": 2.0}}, "less than or equal to 1"),
        ({"optimizer.lr": 0.1}, "needs a range such as"),
        ({"optimizer.lr": {"low": 0.1, "high": 0.1}}, "low must be less than high"),
        ({"optimizer.lr": {"low": 0.0, "high": 0.1, "log": True}}, "low must be greater than 0"),
        ({"optimizer.lr": {"low": 0.01, "hi": 0.1}}, "unknown key 'hi'"),
        ({"optimizer.lr": {"low": 0.01, "high": 0.1, "log": True, "step": 0.01}}, "leave one of them out"),
        ({"training.batch_size": [32]}, "two or more different choices"),
        ({"training.batch_size": [32, 32]}, "two or more different choices"),
        ({"training.batch_size": [32, 0]}, "greater than or equal to 1"),
        ({"model": ["simple-cnn", "no-such"]}, "no model 'no-such'"),
        ({"seed": [0, 1]}, "seed cannot be searched: trials with different seeds would differ by luck"),
        ({"data.val_fraction": [0.1, 0.2]}, "the same val images"),
        ({"evaluation.tta": ["none", "d4"]}, "measured in different ways"),
        ({"training.epochs": [10, 20]}, "it is what a trial costs"),
        ({"augment.3": [None, "blur"], "augment.3.p": [0.1, 0.2]}, "which can be left out"),
    ],
)
def test_what_is_wrong_is_said(tree, said):
    with pytest.raises(RequestError) as error:
        read_space(tree, load_recipe("demo"), "my.yaml")
    assert said in str(error.value) and str(error.value).startswith("my.yaml: ")


def test_a_missing_or_broken_file_is_said(tmp_path):
    start = load_recipe("demo")
    with pytest.raises(RequestError, match=r"there is no file .*none.yaml with a space; --space auto"):
        load_space(tmp_path / "none.yaml", start, dense=False)
    (tmp_path / "bad.yaml").write_text("{a: ")
    with pytest.raises(RequestError, match="not readable as YAML"):
        load_space(tmp_path / "bad.yaml", start, dense=False)
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(RequestError, match="there are no parameters"):
        load_space(tmp_path / "empty.yaml", start, dense=False)


def test_the_place_of_the_recipe_in_a_space():
    start = load_recipe("demo")
    space = read_space(
        {"optimizer.lr": {"low": 0.1, "high": 1.0}, "model.hidden": [64, 128], "schedule": ["one-cycle", "cosine"]},
        start,
    )
    drawn, outside = space.position(start)
    assert outside == ["optimizer.lr"] and drawn == {
        "optimizer.lr": None,
        "model.hidden": "128",
        "schedule": "one-cycle",
    }
    assert value_in(start, "model.widths") == [32, 64, 128] and value_in(start, "augment.9") is None


def test_values_of_recipes_that_were_put_in_do_not_share_their_lists():
    widths = [4, 8, 8]
    recipe = with_values(load_recipe("demo"), {"model.widths": widths})
    widths[0] = 99
    assert recipe.model.options["widths"] == [4, 8, 8]
