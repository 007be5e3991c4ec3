"""Tuning: the search, what survives a kill, several processes, and what fresh seeds say of the best."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from pages import Page
from petriscope.core.errors import RequestError
from petriscope.core.recipe import load_recipe, with_values
from petriscope.data import load_dataset
from petriscope.experiments import pools
from petriscope.experiments import tune as tuning
from petriscope.experiments.space import read_space
from petriscope.experiments.study import Budget, Study, new_pruner, open_study, rungs_of
from petriscope.experiments.train import begin, reopen
from petriscope.experiments.tune import tune
from petriscope.run.folder import Run
from petriscope.training.checkpoints import load_checkpoint

pytest.importorskip("optuna")
SPACE = {
    "optimizer.lr": {"low": 1e-3, "high": 0.1, "log": True},
    "augment.1.fraction": {"low": 0.0, "high": 0.3},
    "schedule": ["one-cycle", "constant"],
}


def table(found):
    """What a search has found, without times."""
    return [(each.number, each.state, each.drawn, each.value, each.rungs) for each in found.trials]


def test_a_tuning_from_the_recipe_to_the_page(tiny_recipe, tmp_path, capsys):
    recipe, out = tiny_recipe(), tmp_path / "out"
    found = tune(recipe, SPACE, out, trials=7, best=2, seeds=2)
    first = found.trials[0]
    assert first.start and first.state == "finished" and first.drawn["optimizer.lr"] == 0.01
    assert len(found.trials) == 7 and {each.state for each in found.trials} == {"finished", "stopped"}
    assert found.rungs == (1,), "9 times 1 is beyond 3 epochs, and 3 epochs are a whole training"
    for each in found.trials:
        history = Run(out / each.folder).history
        assert len(history) == each.epochs == (1 if each.state == "stopped" else 3)
        assert each.rungs[1] == history[0].val["accuracy"]
        assert each.value == max(line.val["accuracy"] for line in history)
    own, *others = found.confirmed
    assert own.label == "the recipe" and own.changes == {} and own.searched == first.value
    assert len(own.fresh) == 2 and all("optimizer.lr" in each.changes for each in others)
    for each in found.confirmed:
        assert each.shrinkage == pytest.approx(each.searched - sum(each.fresh) / 2)
        folder = each.label.replace(" ", "-")
        for seed, value in zip((1, 2), each.fresh, strict=True):
            run = Run(out / "fresh" / f"{folder}-seed{seed}")
            assert run.results.test is None and run.recipe.seed == seed
            assert value == max(line.val["accuracy"] for line in run.history)
    assert found.best == max(found.confirmed, key=lambda each: each.mean).label
    best = load_recipe(out / "best.yaml")
    assert best.seed == recipe.seed and best.training == recipe.training
    assert json.loads((out / "tuning.json").read_text())["best"] == found.best
    with pytest.raises(RequestError, match=r"study\.db has no trials, and .*tuning\.json is of a search that had some"):
        database = (out / "study.db").read_bytes()
        (out / "study.db").write_bytes(b"")
        tune(recipe, SPACE, out, trials=7, best=2, seeds=2, quiet=True)
    (out / "study.db").write_bytes(database)
    page = Page((out / "tuning.html").read_text())
    page.check_self_contained()
    assert "7 trials" in page.text and f"petriscope train {out / 'best.yaml'}" in page.text
    said = capsys.readouterr().err
    assert "trial 0, the recipe itself: accuracy" in said and "stopped after 1 epoch," in said

    trained = len(list((out / "trials").iterdir()))
    again = tune(recipe, SPACE, out, trials=7, best=2, seeds=2, quiet=True)
    assert table(again) == table(found) and len(list((out / "trials").iterdir())) == trained
    more = tune(recipe, SPACE, out, trials=8, best=0, quiet=True)
    assert table(more)[:7] == table(found) and len(more.trials) == 8 and more.best is not None
    with pytest.raises(RequestError, match=r"was begun with other settings: space.optimizer.lr was"):
        tune(recipe, SPACE | {"optimizer.lr": [0.01, 0.1]}, out, trials=8)
    with pytest.raises(RequestError, match=r"recipe.training.epochs was 3, is 4"):
        tune(tiny_recipe(training={"epochs": 4}), SPACE, out, trials=8)


@pytest.mark.parametrize("left", ["study.db", ".choosing", ".id", "nothing"])
def test_a_tuning_that_was_killed_before_its_first_trial_goes_on(tiny_recipe, tmp_path, left):
    """Its files come one after the other, and it may have been killed after any of them."""
    out = tmp_path / "out"
    tune(tiny_recipe(), SPACE, out, trials=1, best=0, quiet=True)
    for path in sorted(out.iterdir()):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != left:
            path.unlink()
    (out / "..id.0123456789abcdef.tmp").touch()
    if left == "study.db":
        (out / left).write_bytes(b"")  # as SQLite makes it at first
    if left == "nothing":
        with pytest.raises(RequestError, match="exists and is not the folder of a tuning"):
            tune(tiny_recipe(), SPACE, out, trials=1, best=0, quiet=True)
    else:
        assert len(tune(tiny_recipe(), SPACE, out, trials=1, best=0, quiet=True).trials) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
@pytest.mark.parametrize("name", [".id", "study.db", "tuning.json", "best.yaml"])
def test_a_pipe_in_place_of_a_file_of_a_tuning_is_named(tiny_recipe, tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(RequestError, match=f"{name} is not a file, as it should be"):
        tune(tiny_recipe(), SPACE, tmp_path, trials=1, quiet=True)


def test_the_url_of_a_storage_is_not_in_the_list_of_processes(tiny_recipe, tmp_path, monkeypatch):
    url, started = f"sqlite:///{tmp_path / 'shared.db'}", []
    plain = pools.Processes.start

    def start(pool, command):
        started.append(command)
        return plain(pool, command)

    monkeypatch.setattr(pools.Processes, "start", start)
    found = tune(tiny_recipe(), SPACE, tmp_path / "out", trials=2, best=0, jobs=2, storage=url, quiet=True)
    assert len(found.trials) == 2 and len(started) == 2 and not (tmp_path / "out" / "study.db").exists()
    assert all(url not in each.words and each.environment["PETRISCOPE_STORAGE"] == url for each in started)


def test_a_damaged_study_is_a_sentence(tiny_recipe, tmp_path):
    (tmp_path / "study.db").write_bytes(b"no database" * 100)
    with pytest.raises(
        RequestError, match=r"study\.db, which keeps the trials, cannot be read or written \(.*not a database"
    ):
        tune(tiny_recipe(), SPACE, tmp_path, trials=1, quiet=True)


def test_training_from_rung_to_rung_gives_the_weights_of_training_at_once(tiny_recipe, tmp_path):
    recipe = tiny_recipe()
    dataset = load_dataset(recipe.data)
    run, trainer, _, _ = begin(recipe, dataset, torch.device("cpu"), tmp_path / "whole", quiet=True)
    trainer.checkpoint = run.checkpoint
    whole = trainer.fit()
    climbing, trainer, _, _ = begin(recipe, dataset, torch.device("cpu"), tmp_path / "rungs", quiet=True)
    trainer.checkpoint = climbing.checkpoint
    trainer.train_until(1)
    assert trainer.at.epoch == 1 and climbing.checkpoint.is_file()
    trainer.train_until(1)
    assert trainer.at.epoch == 1
    other, _ = reopen(climbing, dataset, quiet=True)
    other.checkpoint = climbing.checkpoint
    other.train_until(2)
    assert other.at.epoch == 2
    kept = other.fit()
    assert [line["val"] for line in other.at.history] == [line["val"] for line in other.at.history]
    assert kept.keys() == whole.keys() and all(torch.equal(kept[key], whole[key]) for key in whole)
    for key, value in load_file(run.checkpoint).items():
        assert torch.equal(value, load_file(climbing.checkpoint)[key]), key


def start(recipe, out, *more):
    """A tuning in a process of its own."""
    files = {"recipe.yaml": recipe.to_yaml(), "space.yaml": json.dumps(SPACE)}
    for name, text in files.items():
        (out.parent / name).write_text(text)
    paths = [str(out.parent / name) for name in files]
    words = ["tune", paths[0], "--space", paths[1], "--out", str(out), *more]
    return subprocess.Popen(
        [sys.executable, "-m", "petriscope", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


@pytest.mark.parametrize("end", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_tuning_that_was_stopped_goes_on_as_if_it_had_not_been(tiny_recipe, tmp_path, end):
    recipe, out = tiny_recipe(training={"epochs": 12}), tmp_path / "out"
    process = start(recipe, out, "--trials", "3", "--best", "0", "--first-rung", "6")
    wait_for(out / "trials" / "0001" / "checkpoint" / "state.safetensors", process)
    process.send_signal(end)
    _, said = process.communicate()
    assert process.returncode == (130 if end == signal.SIGINT else -9)
    if end == signal.SIGINT:
        assert "the same command goes on: petriscope tune" in said and "--trials 3" in said
    at = load_checkpoint(out / "trials" / "0001" / "checkpoint" / "state.safetensors")[1]["position"]
    done, steps = 7 * at["epoch"] + at["batch"], []
    assert done < 7 * 12
    real = tuning.Trainer.train_step

    def counted(self, images, targets):
        steps.append(1)
        return real(self, images, targets)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning.Trainer, "train_step", counted)
        found = tune(recipe, SPACE, out, trials=3, best=0, first_rung=6, quiet=True)
    assert len(steps) == 7 * (found.trials[1].epochs + found.trials[2].epochs) - done, "no step is done twice"
    whole = tune(recipe, SPACE, tmp_path / "whole", trials=3, best=0, first_rung=6, quiet=True)
    assert table(found) == table(whole)
    assert len(found.trials) == 3 and not (out / "trials" / "0003").exists()


@pytest.mark.slow
def test_two_processes_share_a_search(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    recipe, out = tiny_recipe(training={"epochs": 6}), tmp_path / "out"
    found = tune(recipe, SPACE, out, trials=6, best=0, jobs=2, quiet=True)
    assert [each.number for each in found.trials] == list(range(6))
    assert all(each.state in ("finished", "stopped") for each in found.trials)
    assert all(len(Run(out / each.folder).history) == each.epochs for each in found.trials)
    assert [path.read_text() for path in sorted(out.glob("worker-*.log"))] == ["", ""]


def test_a_trial_that_ends_while_it_is_looked_at_is_not_taken_again(tiny_recipe, tmp_path, monkeypatch):
    """Another process may end a trial between the list of those under way and the look at its lock."""
    recipe = tiny_recipe()
    space = read_space(SPACE, recipe)
    study = open_study(tmp_path / "out", None, {}, True, new_pruner("none", (), 3, 3))
    ours, theirs = (Study(study, tmp_path / "out", space, None, "random", 0) for _ in range(2))
    with ours.take(Budget(2, None)) as first:
        assert first is not None and first.number == 0
        with theirs.take(Budget(2, None)) as second:  # the first is held
            assert second is not None and second.number == 1
    with ours.take(Budget(2, None)) as again:
        assert again is not None and again.number == 0, "nobody holds it, and it has not ended"

    def ended_meanwhile(number):
        study.tell(number, 0.5)
        return False

    monkeypatch.setattr(ours, "_is_held", ended_meanwhile)
    with ours.take(Budget(2, None)) as none:
        assert none is None


def test_trials_that_cannot_be_trained_are_named_and_the_search_goes_on(tiny_recipe, tmp_path, capsys):
    found = tune(
        tiny_recipe(), {"optimizer.lr": [0.01, 1e30], "model.hidden": [4, 8]}, tmp_path / "out", trials=30, best=0
    )
    failed = [each for each in found.trials if each.state == "failed"]
    assert failed and all("diverged" in each.failure for each in failed)
    assert {each.drawn["optimizer.lr"] for each in failed} == {"1e+30"}
    different = [each for each in found.trials if each.same_as is None]
    assert 2 <= len(different) <= 4, "there are four recipes in this space"
    assert any("could not be trained, the first, trial" in note for note in found.notes)
    assert "cannot be trained: the" in capsys.readouterr().err


def test_a_recipe_that_cannot_be_trained_ends_the_tuning(tiny_recipe, tmp_path):
    with pytest.raises(RequestError, match="vgg needs images of 16x16 or more"):
        tune(
            tiny_recipe(model={"name": "vgg"}, data={"size": 4}),
            {"optimizer.lr": {"low": 1e-3, "high": 0.1}},
            tmp_path / "out",
            trials=2,
        )


def test_what_is_wrong_is_said_before_anything_is_made(tiny_recipe, tmp_path):
    recipe, out = tiny_recipe(), tmp_path / "out"
    cases = [
        ({"sampler": "tpee"}, "--sampler cannot be 'tpee'; did you mean tpe"),
        ({"pruner": "x"}, "--pruner cannot be 'x'; known: halving"),
        ({"trials": 0}, "trials must be at least 1"),
        ({"minutes": 0.0}, "minutes must be more than 0"),
        ({"first_rung": 3}, "must lie between 1 and the epochs of the recipe, 3"),
        ({"space": {"optimizer.lrr": [1, 2]}}, "did you mean lr"),
        ({"storage": "nonsense"}, "is no URL of a database"),
    ]
    for options, said in cases:
        with pytest.raises(RequestError, match=said):
            tune(recipe, **{"space": SPACE, "out": out, **options})
    assert not out.exists()
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(RequestError, match="is not the folder of a tuning"):
        tune(recipe, SPACE, out)


def test_data_without_val_are_refused(tiny_recipe, tmp_path):
    import numpy as np

    with np.load(tiny_recipe().data.source) as arrays:
        kept = {key: value for key, value in arrays.items() if key.startswith("train")}
    np.savez(tmp_path / "one.npz", **kept)
    recipe = tiny_recipe(data={"source": str(tmp_path / "one.npz"), "val_fraction": 0.0, "test_fraction": 0.0})
    with pytest.raises(RequestError, match=r"tuning chooses by val, .* has none; set data.val_fraction"):
        tune(recipe, SPACE, tmp_path / "out")


def test_a_study_of_an_older_version_whose_recipe_had_fewer_keys_goes_on(tiny_recipe, tmp_path):
    import optuna

    out = tmp_path / "out"
    before = tune(tiny_recipe(), SPACE, out, trials=1, best=0, quiet=True)
    study = optuna.load_study(study_name="out", storage=f"sqlite:///{out / 'study.db'}")
    settings = study.user_attrs["settings"]
    del settings["recipe"]["training"]["swa"], settings["recipe"]["data"]["scale"]
    study.set_user_attr("settings", settings)
    assert table(tune(tiny_recipe(), SPACE, out, trials=1, best=0, quiet=True)) == table(before)


@pytest.mark.parametrize(("sampler", "pruner"), [("random", "hyperband"), ("gp", "median"), ("tpe", "none")])
def test_samplers_and_pruners_are_those_of_optuna(tiny_recipe, tmp_path, sampler, pruner):
    out = tmp_path / "out"
    found = tune(tiny_recipe(), SPACE, out, trials=3, best=0, sampler=sampler, pruner=pruner, quiet=True)
    assert len(found.trials) == 3 and (found.sampler, found.pruner) == (sampler, pruner)
    assert pruner != "none" or all(each.epochs == 3 for each in found.trials)
    with pytest.raises(RequestError, match=f"pruner was {pruner}, is halving"):
        tune(tiny_recipe(), SPACE, out, trials=3, sampler=sampler)


def test_minutes_end_a_search(tiny_recipe, tmp_path):
    found = tune(tiny_recipe(), SPACE, tmp_path / "out", minutes=1e-3, best=0, quiet=True)
    assert [each.number for each in found.trials] == [0], (
        "the first trial takes longer than that, and is trained to its end"
    )


def test_rungs_lie_within_a_training():
    assert rungs_of(30, None, 3) == (4, 12) and rungs_of(27, None, 3) == (3, 9) and rungs_of(81, 1, 3) == (1, 3, 9, 27)
    assert rungs_of(2, None, 3) == (1,) and rungs_of(1, None, 3) == ()


def test_the_recipe_of_a_search_is_what_was_trained(tiny_recipe, tmp_path):
    """What ``best.yaml`` says of the best trial is what its run has."""
    found = tune(tiny_recipe(), SPACE, tmp_path / "out", trials=3, best=0, quiet=True)
    best = found.best_trial
    ours, theirs = load_recipe(tmp_path / "out" / "best.yaml"), Run(tmp_path / "out" / best.folder).recipe
    same = {"name": "", "about": ""}
    assert ours.model_copy(update=same) == theirs.model_copy(update=same)
    assert with_values(ours, {"name": "x"}).name == "x"


def test_a_recipe_that_diverges_is_a_trial_like_others(tiny_recipe, tmp_path):
    recipe = tiny_recipe(optimizer={"name": "adamw", "lr": 1e30})
    found = tune(recipe, {"optimizer.lr": [1e30, 0.01]}, tmp_path / "out", trials=4, best=1, seeds=1, quiet=True)
    assert found.trials[0].state == "failed" and found.trials[0].start
    assert [each.label for each in found.confirmed] == [found.best] and found.best.startswith("trial ")
    assert any(note.startswith("With a fresh seed, the recipe, seed 1 could not be trained") for note in found.notes)
    Page((tmp_path / "out" / "tuning.html").read_text()).check_self_contained()
