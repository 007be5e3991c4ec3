import re
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from petriscope.augment.pipeline import Pipeline
from petriscope.cli.commands import RECIPE_FOLDERS
from petriscope.core.errors import RequestError
from petriscope.core.recipe import FinetuneSection, Part, Recipe, check_recipe, load_recipe, recipe_names
from petriscope.models import MODELS, build_model
from petriscope.training.finetune import Plan
from petriscope.training.losses import LOSSES
from petriscope.training.optimizers import OPTIMIZERS
from petriscope.training.schedules import SCHEDULES


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_are_valid_to_their_last_option(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.about
    Pipeline.from_recipe(recipe.augment)
    for registry, part in (
        (MODELS, recipe.model),
        (LOSSES, recipe.loss),
        (OPTIMIZERS, recipe.optimizer),
        (SCHEDULES, recipe.schedule),
    ):
        registry.check(part)


def test_documented_recipes_ship():
    documented = {"blood/simple-cnn", "blood/fast", "blood/best", "cifar10/resnet18", "digits/simple-cnn", "demo"}
    assert documented <= set(recipe_names())


@pytest.mark.parametrize("name", [n for n in recipe_names() if load_recipe(n).finetune != FinetuneSection()])
def test_what_shipped_recipes_fine_tune_is_in_their_models(name):
    recipe = load_recipe(name)
    size = recipe.data.height_width or (28, 28)
    with torch.device("meta"):
        model = build_model(recipe.model, 8, (*size, 3), fresh=False)
    plan = Plan(model, recipe.finetune, recipe.training.epochs)
    assert all(len(stage.names) for stage in plan.stages)
    assert len(plan.stages[0].names) < len(list(model.parameters()))


def test_every_folder_of_recipes_has_its_heading():
    assert {name.rpartition("/")[0] for name in recipe_names()} == set(RECIPE_FOLDERS)


def test_nothing_is_required():
    assert Recipe() == check_recipe({})


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_survives_writing_and_reading(name, tmp_path):
    recipe = load_recipe(name)
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    assert load_recipe(path) == recipe


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"trainig": {}}, "did you mean training"),
        ({"training": {"epoch": 3}}, "did you mean epochs"),
        ({"sampler": "oversampel"}, "did you mean oversample"),
        ({"sampler": "Weighted"}, r"did you mean weighted\?"),
        ({"training": {"precision": "bf61"}}, "did you mean bf16"),
        ({"training": {"epochs": 0}}, "training.epochs"),
        ({"training": {"ema": 1.5}}, "training.ema"),
        ({"data": {"group": "("}}, "no regular expression"),
        ({"model": {"norm": "batch"}}, "model.name"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_what_is_near(tree, says):
    with pytest.raises(RequestError, match=says):
        check_recipe(tree)


def test_an_unknown_recipe_names_the_near_ones():
    with pytest.raises(RequestError, match="did you mean blood/fast"):
        load_recipe("blood/fats")


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: MODELS.check(Part(name="resnet81")), "did you mean resnet18"),
        (lambda: MODELS.check(Part(name="simple-cnn", nrom="batch")), "did you mean norm"),
        (lambda: MODELS.check(Part(name="simple-cnn", norm="bacth")), "did you mean batch"),
        (lambda: MODELS.check(Part(name="simple-cnn", dropout=1.5)), "dropout"),
        (lambda: OPTIMIZERS.check(Part(name="adamw", lr="fast")), "lr"),
        (lambda: Pipeline.from_recipe([Part(name="flipp")]), "did you mean flip"),
    ],
)
def test_a_wrong_part_is_named_with_what_is_near(build, says):
    with pytest.raises(RequestError, match=says):
        build()


def test_exponents_without_a_point_are_numbers():
    recipe = load_recipe("demo", ["optimizer.lr=1e-4"])
    assert OPTIMIZERS.check(recipe.optimizer)["lr"] == 1e-4


def test_a_bare_off_is_a_word(tmp_path):
    path = tmp_path / "quick.yaml"
    path.write_text("evaluation: {stress: off}\n")
    assert load_recipe(str(path)).evaluation.stress == "off"
    assert load_recipe("demo", ["evaluation.stress=off"]).evaluation.stress == "off"


def test_set_reaches_nested_keys_list_entries_and_parts_by_bare_name():
    recipe = load_recipe(
        "demo", ["augment.1.vertical=0.25", "schedule.peak=0.3", "training.epochs=2", "model=resnet18"]
    )
    assert recipe.augment[1].options["vertical"] == 0.25
    assert recipe.schedule == Part(name="one-cycle", peak=0.3)
    assert recipe.training.epochs == 2
    assert recipe.model == Part(name="resnet18")


def test_set_adds_an_entry_at_the_end_of_a_list(tmp_path):
    before = load_recipe("demo").augment
    end = len(before)
    recipe = load_recipe("demo", [f"augment.{end}=cutmix", f"augment.{end + 1}={{name: flip, horizontal: 1}}"])
    assert recipe.augment == (*before, Part(name="cutmix"), Part(name="flip", horizontal=1))
    (tmp_path / "bare.yaml").write_text("seed: 1\n")
    assert load_recipe(tmp_path / "bare.yaml", ["augment.0=cutmix"]).augment == (Part(name="cutmix"),)


def test_set_past_the_end_of_a_list_says_how_to_add():
    with pytest.raises(RequestError, match=r"2 entries, counted from 0; 2 adds one"):
        load_recipe("demo", ["augment=[hue, blur]", "augment.3=flip"])


@pytest.mark.parametrize("setting", ["nonsense", "=3", "trainig.epochs=3", "augment.9.p=1", "seed.deeper=1", "model={"])
def test_a_wrong_set_is_refused(setting):
    with pytest.raises(RequestError):
        load_recipe("demo", [setting])


class TestExtends:
    def write(self, folder: Path, name: str, **tree) -> Path:
        path = folder / name
        path.write_text(yaml.safe_dump(tree))
        return path

    def base(self, folder: Path) -> None:
        optimizer = {"name": "adamw", "lr": 0.5, "weight_decay": 0.05}
        self.write(folder, "base.yaml", seed=5, about="the base", augment=["hue", "blur"], optimizer=optimizer)

    def test_mappings_merge_and_lists_are_replaced(self, tmp_path):
        self.base(tmp_path)
        top = {"augment": ["flip"], "optimizer": {"name": "adamw", "lr": 1}}
        recipe = load_recipe(self.write(tmp_path, "top.yaml", extends="base.yaml", **top))
        assert recipe.augment == (Part(name="flip"),)
        assert recipe.optimizer.options == {"lr": 1, "weight_decay": 0.05}
        assert recipe.seed == 5
        assert recipe.about == ""

    def test_a_part_of_another_name_brings_its_own_options(self, tmp_path):
        self.base(tmp_path)
        top = self.write(tmp_path, "top.yaml", extends="base.yaml", optimizer={"name": "sgd", "lr": 0.1})
        assert load_recipe(top).optimizer.options == {"lr": 0.1}

    def test_a_shipped_recipe_can_be_extended(self, tmp_path):
        path = self.write(tmp_path, "mine.yaml", extends="blood/fast", training={"epochs": 2})
        recipe = load_recipe(path)
        assert recipe.training.epochs == 2
        assert recipe.model == load_recipe("blood/fast").model

    def test_a_path_is_taken_from_beside_the_recipe(self, tmp_path):
        self.base(tmp_path)
        assert load_recipe(self.write(tmp_path, "top.yaml", extends="base.yaml")).seed == 5

    def test_a_circle_is_refused(self, tmp_path):
        self.write(tmp_path, "a.yaml", extends="b.yaml")
        with pytest.raises(RequestError, match="circle"):
            load_recipe(self.write(tmp_path, "b.yaml", extends="a.yaml"))


@pytest.mark.parametrize(
    "text", ["- a\n- b", "a: [", "seed: 1\nseed: 2", "!!python/object:os.system {}", "3: 4", "\x00"]
)
def test_what_is_no_recipe_is_refused(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(RequestError):
        load_recipe(path)


def test_a_binary_or_huge_file_is_refused(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"\xff\x81\x00")
    with pytest.raises(RequestError, match="UTF-8"):
        load_recipe(path)
    path.write_bytes(b"#" * 2_000_000)
    with pytest.raises(RequestError, match="larger"):
        load_recipe(path)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from([*Recipe.model_fields, "x"]), inner, max_size=4)
        ),
        max_leaves=8,
    )
)
def test_any_tree_is_a_recipe_or_a_clear_error(tree):
    try:
        check_recipe(tree if isinstance(tree, dict) else {"data": tree})
    except RequestError as error:
        assert str(error)


def test_a_recipe_in_the_names_of_an_older_version_loads(tmp_path):
    term = {"loss": {"name": "dice", "per_picture": True}}
    old = {
        "balance": "square-root-sampler",
        "training": {"pictures_per_epoch": 100},
        "loss": {"name": "sum", "terms": [term]},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(old))
    recipe = load_recipe(path)
    assert recipe.sampler == "square-root"
    assert recipe.training.images_per_epoch == 100
    assert recipe.loss.options["terms"] == [{"loss": {"name": "dice", "per_image": True}}]
    assert check_recipe(old).loss == recipe.loss

    settings = ["balance=weighted-sampler", "training.pictures_per_epoch=7"]
    recipe = load_recipe(path, settings)
    assert (recipe.sampler, recipe.training.images_per_epoch) == ("weighted", 7)


def test_an_old_key_beside_its_new_one_is_refused():
    with pytest.raises(RequestError, match="unknown key 'balance'"):
        check_recipe({"balance": "oversample", "sampler": "none"})


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("training.lr=0.1", "mean optimizer.lr"),
        ("epochs=3", "mean training.epochs"),
        ("batchsize=3", "training.batch_size"),
        ("training.dropout=0.5", "mean model.dropout"),
        ("trainig.epochs=3", "mean training"),
        ("seed=!!int ''", r"seed.*'' is no int"),
        ("seed=!!timestamp x", "seed.*timestamp"),
        ("seed=2001-13-45", r"seed: .*2001-13-45"),
        ("seed=" + "9" * 5000, "seed=99.*64 bits"),
        ("seed=&a [*a]", "seed"),
        ("augment." + "9" * 5000 + "=1", "counted from 0"),
        ("data.source=" + "x" * 5000 + ": [", r"data.source=x.* \.\.\.: "),
    ],
)
def test_a_set_that_cannot_be_names_the_key_in_short(setting, says):
    with pytest.raises(RequestError, match=says) as caught:
        load_recipe("demo", [setting])
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "base", ["~nobodyhere/x", "x" * 300, "missing.yaml", "[a]", "blood/fats", "~nobodyhere", '"a\\0b"']
)
def test_what_a_recipe_cannot_extend_is_named_with_the_recipe(tmp_path, base):
    path = tmp_path / "r.yaml"
    path.write_text(f"extends: {base}\n")
    with pytest.raises(RequestError, match=r"r\.yaml.*extends"):
        load_recipe(path)


def test_a_circle_through_other_spellings_of_a_path_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text(f"extends: ../{tmp_path.name}/a.yaml\n")
    with pytest.raises(RequestError, match="circle"):
        load_recipe(tmp_path / "a.yaml")


RECIPE_TEXT = load_recipe("blood/best").to_yaml()


@given(
    st.lists(
        st.tuples(
            st.integers(0, len(RECIPE_TEXT)),
            st.integers(0, 12),
            st.text("ab0:-[]{}&*!|>%@\"'#,. \n\t~\x00é", max_size=8),
        ),
        max_size=6,
    )
)
def test_an_edited_recipe_is_read_or_refused_by_name(tmp_path_factory, edits):
    text = RECIPE_TEXT
    for start, cut, put in edits:
        text = text[:start] + put + text[start + cut :]
    path = tmp_path_factory.getbasetemp() / "edited.yaml"
    path.write_text(text)
    try:
        load_recipe(path)
    except RequestError as error:
        assert "edited.yaml" in str(error) or "extends" in text


@pytest.mark.parametrize(
    "training",
    [
        {"epochs": 2, "corrections": [{"epoch": 3, "before": 5}]},
        {"epochs": 9, "corrections": [{"epoch": 3, "before": 2}]},
        {"epochs": 9, "corrections": [{"epoch": 3, "before": 8}, {"epoch": 3, "before": 7}]},
    ],
)
def test_corrections_that_cannot_have_been_are_refused(training):
    with pytest.raises(RequestError, match=r"training\.corrections=\[\]"):
        load_recipe("demo", training=training)


@pytest.mark.parametrize("setting", ["seed=true", "training.epochs=yes", "data.val_fraction=on"])
def test_truth_values_are_no_numbers(setting):
    with pytest.raises(RequestError):
        load_recipe("demo", [setting])


def test_truth_values_stay_what_they_are():
    assert load_recipe("demo", ["training.channels_last=false"]).training.channels_last is False
    assert load_recipe("demo", ["data.drop_single_class=yes"]).data.drop_single_class is True


def test_truth_values_are_no_numbers_of_a_part():
    from petriscope.training.optimizers import OPTIMIZERS

    assert OPTIMIZERS.check(Part(name="sgd", lr=1, nesterov=True, momentum=0.9))["nesterov"] is True
    with pytest.raises(RequestError, match=r"lr.*true is not allowed here"):
        OPTIMIZERS.check(Part(name="sgd", lr=True))


@pytest.mark.parametrize("name", ["my cells", "cells.npz", "cells.CSV"])
def test_images_in_place_of_a_recipe_are_named_as_such(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path(name).touch() if "." in name else Path(name).mkdir()
    with pytest.raises(
        RequestError, match="is not a recipe; if it has the images, give it as --data '?" + re.escape(name)
    ):
        load_recipe(name)


def test_a_run_in_place_of_a_recipe_has_one(tmp_path):
    (tmp_path / "recipe.yaml").write_text("seed: 3")
    with pytest.raises(RequestError, match=r"is a run, not a recipe; its recipe is .*recipe\.yaml"):
        load_recipe(tmp_path)
    assert load_recipe(tmp_path / "recipe.yaml").seed == 3


def test_a_folder_with_the_name_of_a_shipped_recipe_is_not_taken_for_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("demo").mkdir()
    assert load_recipe("demo").name == "demo"
