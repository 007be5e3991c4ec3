"""Suites: what is checked before the first training, what is trained, skipped and resumed, and the results."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from petriscope.core.errors import DataError, Interrupted, PetriscopeError, RequestError
from petriscope.core.results import TrainingSummary
from petriscope.data import load_dataset
from petriscope.experiments import bench as benching
from petriscope.experiments.bench import run_suite
from petriscope.experiments.suite import load_suite, plan, suite_names
from petriscope.run.folder import Run, create_run

TREE = {
    "about": "Two tiny networks",
    "seeds": [0, 1],
    "baseline": "plain",
    "set": {"training.epochs": 1},
    "methods": {"plain": "tiny.yaml", "no dropout": {"recipe": "tiny.yaml", "set": {"model.dropout": 0.0}}},
}


@pytest.fixture
def write(tiny_recipe, tmp_path):
    """Write a suite beside a recipe file, with some of its keys changed, and give its path."""
    (tmp_path / "tiny.yaml").write_text(tiny_recipe().to_yaml())

    def make(**changes):
        path = tmp_path / "trial.yaml"
        path.write_text(yaml.safe_dump({**TREE, **changes}, sort_keys=False))
        return path

    return make


@pytest.fixture
def calls(monkeypatch):
    """Counts the trainings, resumptions and evaluations, which are done all the same."""
    done = []

    def counted(name):
        real = getattr(benching, name)

        def call(first, *args, **kwargs):
            done.append((name, str(args[0] if name == "train" else first).rpartition("/")[2]))
            return real(first, *args, **kwargs)

        return call

    for name in ("train", "resume", "evaluate"):
        monkeypatch.setattr(benching, name, counted(name))
    return done


FOLDERS = ["plain-seed0", "no-dropout-seed0", "plain-seed1", "no-dropout-seed1"]


def test_a_suite_from_training_to_results_and_again(write, calls, tmp_path):
    out = tmp_path / "out"
    loaded = load_suite(write(evaluate="test"))
    outcome = run_suite(loaded, out, quiet=True)
    assert calls == [("train", f) for f in FOLDERS] + [("evaluate", f) for f in FOLDERS]
    comparison = outcome.comparison
    assert [row.label for row in comparison.rows] == ["plain", "no dropout"]
    assert comparison.rows[0].seeds == (0, 1)
    assert (comparison.split, comparison.baseline, outcome.failures) == ("test", "plain", {})
    assert Run(out / FOLDERS[1]).recipe.model.options["dropout"] == 0.0
    assert Run(out / FOLDERS[0]).recipe.training.epochs == 1
    table = pd.read_csv(out / "results.csv")
    assert len(table) == 8 and set(table["split"]) == {"val", "test"} and set(table["seed"]) == {0, 1}
    assert "Two tiny networks" in (out / "comparison.html").read_text()

    calls.clear()
    again = run_suite(loaded, out, quiet=True)
    assert calls == []
    assert again.comparison == comparison


SMALLER = {"recipe": "tiny.yaml", "set": {"model.hidden": 4}}


@pytest.mark.slow
def test_an_ensemble_is_trained_and_compared_as_a_method(write, calls, tmp_path):
    both = {"ensemble": "soft", "of": ["tiny.yaml", SMALLER]}
    loaded, out = load_suite(write(methods={"plain": "tiny.yaml", "both": both})), tmp_path / "out"
    members = [f"both-seed{seed}-member{i}" for seed in (0, 1) for i in (1, 2)]
    outcome = run_suite(loaded, out, quiet=True)
    assert [folder for _, folder in calls] == ["plain-seed0", *members[:2], "plain-seed1", *members[2:]]
    assert [row.label for row in outcome.comparison.rows] == ["plain", "both"]
    assert outcome.comparison.rows[1].seeds == (0, 1)
    assert Run(out / "both-seed1").results.ensemble.method == "soft"
    assert Run(out / members[3]).recipe.model.options["hidden"] == 4
    assert list(pd.read_csv(out / "results.csv")["method"]) == ["plain", "plain", "both", "both"]

    calls.clear()
    assert run_suite(loaded, out, quiet=True).comparison == outcome.comparison and calls == []
    weighted = load_suite(write(methods={"plain": "tiny.yaml", "both": {**both, "ensemble": "weighted"}}))
    with pytest.raises(RequestError, match="both-seed0 was joined by soft, but trial now joins by weighted"):
        plan(weighted, out)
    with pytest.raises(RequestError, match=r"both-seed0 was joined from .*, but trial now joins 3 runs"):
        plan(load_suite(write(methods={"plain": "tiny.yaml", "both": {**both, "of": [*both["of"], "tiny.yaml"]}})), out)
    with pytest.raises(
        RequestError, match="plain-seed0 is a run that was trained itself, but trial has an ensemble there"
    ):
        plan(load_suite(write(methods={"plain": both, "both": both})), out)
    larger = {**both, "of": ["tiny.yaml", {**SMALLER, "set": {"model.hidden": 6}}]}
    with pytest.raises(RequestError, match=r"both-seed0-member2 was trained .*model.hidden was 4, is 6"):
        plan(load_suite(write(methods={"plain": "tiny.yaml", "both": larger})), out)


def test_an_ensemble_that_was_interrupted_is_made_of_what_is_trained(write, calls, tmp_path):
    both = {"ensemble": "soft", "of": ["tiny.yaml", SMALLER]}
    loaded, out = load_suite(write(methods={"both": both}, baseline="both", seeds=[0])), tmp_path / "out"
    run_suite(loaded, out, quiet=True)
    (out / "both-seed0" / "results.json").unlink()
    (out / "both-seed0-member1" / "report.html").unlink()
    (out / "both-seed0-member2" / "results.json").unlink()
    calls.clear()
    outcome = run_suite(loaded, out, quiet=True)
    assert calls == [("resume", "both-seed0-member1"), ("resume", "both-seed0-member2")] and outcome.failures == {}
    assert (out / "both-seed0-member1" / "report.html").is_file()
    assert Run(out / "both-seed0").results.ensemble.method == "soft"


def test_a_member_that_will_not_do_is_an_error_before_the_first_training(write, calls, tmp_path):
    both = {"ensemble": "soft", "of": ["tiny.yaml", {"recipe": "tiny.yaml", "set": {"model.nrom": "batch"}}]}
    with pytest.raises(RequestError, match=r"both, member 2: .*did you mean norm"):
        run_suite(load_suite(write(methods={"both": both}, baseline="both")), tmp_path / "out", quiet=True)
    assert calls == [] and not (tmp_path / "out").exists()


def test_what_was_interrupted_is_resumed_and_test_waits_for_all(write, calls, tmp_path, monkeypatch):
    loaded, out = load_suite(write(evaluate="test")), tmp_path / "out"
    train = benching.train

    def stop_at_third(recipe, folder, quiet):
        if len(calls) < 2:
            return train(recipe, folder, quiet)
        monkeypatch.setattr("petriscope.training.loop.Trainer._end_epoch", stop)
        return train(recipe, folder, quiet)

    def stop(trainer):
        trainer._save()
        raise Interrupted("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr(benching, "train", stop_at_third)
        with pytest.raises(Interrupted, match=r"run 3 of 4, plain, seed 1; .*the same command continues"):
            run_suite(loaded, out, quiet=True)
    monkeypatch.undo()
    assert not (out / "comparison.html").exists()
    assert not Run(out / FOLDERS[2]).finished and Run(out / FOLDERS[0]).results.test is None

    seen = []
    for name in ("train", "resume"):
        real = getattr(benching, name)
        monkeypatch.setattr(benching, name, lambda *a, real=real, name=name: seen.append(name) or real(*a))
    outcome = run_suite(loaded, out, quiet=True)
    assert seen == ["resume", "train"]
    assert outcome.comparison.split == "test"


def test_some_methods_alone_and_other_seeds(write, calls, tmp_path):
    loaded, out = load_suite(write(evaluate="test")), tmp_path / "out"
    outcome = run_suite(loaded, out, seeds=[5], only=["no dropout"], quiet=True)
    assert calls == [("train", "no-dropout-seed5")]
    assert outcome.comparison.split == "val"  # test waits for plain
    notes = " ".join(outcome.comparison.notes)
    assert "plain, seed 5" in notes and "test split was not read" in notes and "the baseline here" in notes
    with pytest.raises(RequestError, match="did you mean no dropout"):
        run_suite(loaded, out, only=["no dropuot"])


def test_a_method_that_fails_is_reported_and_the_others_go_on(write, calls, tmp_path, monkeypatch, capsys):
    def fail(loss):
        raise RuntimeError("out of memory")

    real = benching.train

    def train(recipe, folder, quiet):
        if "no-dropout" in str(folder):
            fail(None)
        return real(recipe, folder, quiet)

    monkeypatch.setattr(benching, "train", train)
    outcome = run_suite(load_suite(write(seeds=[0])), tmp_path / "out", quiet=True)
    assert outcome.failures == {"no dropout, seed 0": "RuntimeError: out of memory"}
    assert [row.label for row in outcome.comparison.rows] == ["plain"]
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setattr(benching, "train", lambda *args: (_ for _ in ()).throw(PetriscopeError("diverged")))
    outcome = run_suite(load_suite(write(seeds=[3])), tmp_path / "out", quiet=True)
    assert outcome.comparison is None and set(outcome.failures.values()) == {"diverged"}


def test_a_run_of_other_settings_is_an_error_that_names_them(write, calls, tmp_path):
    out = tmp_path / "out"
    run_suite(load_suite(write(seeds=[0])), out, quiet=True, only=["plain"])
    changed = load_suite(write(seeds=[0], set={"training.epochs": 2, "model.widths": [4, 8, 16]}))
    with pytest.raises(RequestError, match=r"training.epochs was 1, is 2") as caught:
        run_suite(changed, out, quiet=True)
    assert "model.widths.2 was 8, is 16" in str(caught.value) and "plain-seed0" in str(caught.value)
    # A text that says what it is about changes no weights.
    assert plan(load_suite(write(seeds=[0], about="Otherwise said", name="other")), out)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"methds": {}}, "did you mean methods"),
        ({"baseline": "plian"}, "did you mean plain"),
        ({"seeds": [1, 1]}, "different whole numbers"),
        ({"seeds": []}, "one or more"),
        ({"methods": {}, "baseline": "x"}, "methods"),
        ({"methods": {"a b": "tiny.yaml", "a:b": "tiny.yaml"}, "baseline": "a b"}, "share the folder"),
        ({"methods": {"plain": {"recpie": "tiny.yaml"}}}, "did you mean recipe"),
        ({"methods": ["tiny.yaml"]}, "a suite is a mapping whose key methods"),
        ({"methods": {"plain": {}}}, "either a recipe, or an ensemble"),
        ({"methods": {"plain": {"recipe": "tiny.yaml", "of": ["tiny.yaml"]}}}, "name its method"),
        ({"methods": {"plain": {"ensemble": "sfot", "of": ["tiny.yaml", "tiny.yaml"]}}}, "did you mean soft"),
        ({"methods": {"plain": {"ensemble": "soft", "of": ["tiny.yaml"]}}}, "at least two recipes"),
        (
            {"methods": {"plain": {"ensemble": "soft", "of": ["tiny.yaml", "tiny.yaml"], "set": {"seed": 1}}}},
            "the set of each of them",
        ),
    ],
)
def test_a_wrong_suite_is_told_what_is_wrong(write, changes, says):
    with pytest.raises(RequestError, match=says):
        load_suite(write(**changes))


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ({"recipe": "blood/fats"}, r"last: .*did you mean blood/fast"),
        ({"recipe": "tiny.yaml", "set": {"trainig.epochs": 2}}, "did you mean training"),
        ({"recipe": "tiny.yaml", "set": {"model.nrom": "batch"}}, "did you mean norm"),
        ({"recipe": "tiny.yaml", "set": {"optimizer.lr": "fast"}}, "lr"),
        ({"recipe": "tiny.yaml", "set": {"data.split_seed": 3}}, "data.split_seed is 0 for plain and 3 for last"),
    ],
)
def test_everything_is_checked_before_the_first_training(write, calls, tmp_path, method, says):
    loaded = load_suite(write(methods={**TREE["methods"], "last": method}))
    with pytest.raises(RequestError, match=says):
        run_suite(loaded, tmp_path / "out", quiet=True)
    assert calls == [] and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"data.leave_out": "a"}, "data.leave_out is 'b' for first and 'a' for last"),
        ({"data.splits": "runs/before"}, "data.splits is None for first and '.*runs/before' for last"),
        ({"data.sources.a.split": "train"}, "data.sources.a.split is None for first and 'train' for last"),
        ({"data.sources.b.prefix": False}, "data.sources.b.prefix is True for first and False for last"),
        ({"data.sources.b.weight": 2}, None),
    ],
)
def test_methods_have_the_same_images_of_several_sources(tiny_recipe, tmp_path, settings, says):
    data = {"source": None, "sources": {"a": "digits", "b": str(tmp_path / "tiny.npz")}, "leave_out": "b"}
    (tmp_path / "tiny.yaml").write_text(tiny_recipe(data=data).to_yaml())
    methods = {"first": "tiny.yaml", "last": {"recipe": "tiny.yaml", "set": settings}}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump({"seeds": [0], "methods": methods}))
    loaded = load_suite(tmp_path / "suite.yaml")
    if says is None:
        assert len(plan(loaded, tmp_path / "out")) == 2
        return
    with pytest.raises(RequestError, match=says):
        plan(loaded, tmp_path / "out")


def test_data_are_checked_before_the_first_training(write, calls, tmp_path):
    with pytest.raises(RequestError, match="no data source"):
        run_suite(load_suite(write()), tmp_path / "out", data="/nowhere.npz", quiet=True)
    (tmp_path / "out" / "plain-seed0").mkdir(parents=True)
    (tmp_path / "out" / "plain-seed0" / "notes.txt").write_text("mine")
    with pytest.raises(RequestError, match="exists and is not empty"):
        run_suite(load_suite(write()), tmp_path / "out", quiet=True)
    with pytest.raises(RequestError, match="cannot be compared by acuracy; known: accuracy"):
        run_suite(load_suite(write(metric="acuracy")), tmp_path / "new", quiet=True)
    with pytest.raises(DataError, match="no test split"):
        source = tmp_path / "no-test.npz"
        with np.load(tmp_path / "tiny.npz") as arrays:
            np.savez(source, **{key: value for key, value in arrays.items() if "test" not in key})
        run_suite(load_suite(write(evaluate="test")), tmp_path / "new", data=str(source), quiet=True)
    assert calls == []


def test_time_left_is_by_the_method_where_it_is_known(write, tmp_path):
    runs = plan(load_suite(write()), tmp_path / "out")
    assert benching._time_left(runs, runs) is None
    for planned, seconds in zip(runs[:2], (10, 30), strict=True):
        run = create_run(planned.folder, planned.recipe, load_dataset(planned.recipe.data))
        run.add_results(training=TrainingSummary(seconds=seconds))
    assert benching._time_left(runs[2:], runs) == 40
    assert benching._time_left(runs[3:], runs[:1]) == 10


@pytest.mark.parametrize("name", suite_names())
def test_shipped_suites_are_valid_to_the_last_option(name, tmp_path):
    loaded = load_suite(name)
    assert loaded.name == name and loaded.about
    runs = plan(loaded, tmp_path)
    assert len(runs) == len(loaded.seeds) * len(loaded.methods)
    # No two methods are the same thing under two names.
    without = {"name", "seed"}
    described = {
        json.dumps([r.ensemble, *(t.recipe.model_dump(mode="json", exclude=without) for t in r.trainings)])
        for r in runs
    }
    assert len(described) == len(loaded.methods)


def test_blood_methods_has_the_methods_of_the_comparison_it_repeats(tmp_path):
    runs = {planned.label: planned.recipe for planned in plan(load_suite("blood-methods"), tmp_path)}
    assert len(runs) == 12
    plain = runs["plain"]
    assert plain.optimizer.options == {"lr": 1e-3} and plain.optimizer.name == "adam" and plain.training.ema is None
    assert [part.name for part in plain.augment] == ["flip", "rotate"]
    assert runs["layer norm, dropout 0.5"].model.options == {"norm": "layer", "dropout": 0.5}
    assert runs["weight decay 1e-4"].optimizer.options["weight_decay"] == 1e-4


def test_an_unknown_suite_names_the_near_ones(tmp_path):
    with pytest.raises(RequestError, match="did you mean blood-methods"):
        load_suite("blood-method")
    with pytest.raises(RequestError, match="no suite file"):
        load_suite(tmp_path / "none.yaml")


TOKENS = [
    "!!int ''",
    "~nobody/x",
    "&a [*a]",
    "[",
    "9" * 5000,
    ".inf",
    "- ",
    "null",
    "\x00",
    "x" * 300,
    "{}",
    "!!binary aGk=",
]
TEXT = (
    "seeds: [0, 1]\nbaseline: a\nset: {training.epochs: 2}\nmethods:\n  a: demo\n  b: {recipe: demo, set: {seed: 3}}\n"
)


@settings(max_examples=40)
@given(st.integers(0, len(TEXT)), st.integers(0, 12), st.sampled_from(TOKENS))
def test_an_edited_suite_is_read_or_refused_in_short(tmp_path_factory, start, cut, token):
    path = tmp_path_factory.getbasetemp() / "edited.yaml"
    path.write_text(TEXT[:start] + token + TEXT[start + cut :])
    try:
        load_suite(path)
    except RequestError as error:
        assert len(str(error)) < 2000


def test_labels_that_are_one_as_text_are_refused(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("methods:\n  1: demo\n  '1': demo\n")
    with pytest.raises(RequestError, match="same label"):
        load_suite(path)


def test_further_settings_are_for_the_methods_that_do_not_have_them(write, tmp_path):
    suite = load_suite(write()).with_settings(["model.dropout=0.4", "training.epochs=2"])
    planned = {each.label: each.recipe for each in plan(suite, tmp_path / "out")}
    assert planned["plain"].model.options["dropout"] == 0.4 and planned["no dropout"].model.options["dropout"] == 0.0
    assert {recipe.training.epochs for recipe in planned.values()} == {2}
    with pytest.raises(RequestError, match="takes KEY=VALUE"):
        suite.with_settings(["epochs"])


def test_weights_of_the_transfer_suite_are_for_the_methods_that_start_from_some(tmp_path):
    suite = load_suite("blood96-transfer").with_settings(["model.weights=lite0.safetensors"])
    weights = {each.label: each.recipe.model.options["weights"] for each in plan(suite, tmp_path / "out")}
    assert {label for label, value in weights.items() if value == "none"} == {"scratch", "scratch, 64 px"}
    assert {value for label, value in weights.items() if "scratch" not in label} == {"lite0.safetensors"}
