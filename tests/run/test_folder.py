"""The run folder: what creation writes, what is added later, older files, and damaged ones."""

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from petriscope.core.errors import PetriscopeError, RequestError
from petriscope.core.recipe import Recipe
from petriscope.core.results import (
    SCHEMA_VERSION,
    Cost,
    Evaluation,
    Normalization,
    Robustness,
    TrainingSummary,
)
from petriscope.data.imageset import Audited, Dataset, ImageSet
from petriscope.run.folder import Run, create_run, open_run


def dataset(**changes):
    def part(count):
        pixels = np.zeros((count, 4, 5, 1), np.uint8)
        return ImageSet(pixels, np.arange(count) % 2, ("a", "b"), np.arange(count).astype(str))

    return Dataset(**{"train": part(5), "val": part(2), "source": "somewhere", "fingerprint": "f00d", **changes})


@pytest.fixture
def run(tmp_path):
    return create_run(tmp_path / "sub" / "run", Recipe(name="small", seed=7), dataset(), device="cpu", parameters=12)


def evaluation(accuracy):
    return Evaluation.model_validate({"split": "val", "n": 2, "accuracy": accuracy, "accuracy_ci95": [0.1, 0.9]})


class TestCreation:
    def test_recipe_and_environment_are_those_given(self, run):
        assert run.recipe == Recipe(name="small", seed=7)
        about = run.environment
        assert (about.schema_version, about.device, about.parameters) == (SCHEMA_VERSION, "cpu", 12)
        assert about.packages["torch"] and about.hardware.threads
        assert (
            about.data.task == "classification" and about.data.classes == ["a", "b"] and about.data.shape == (4, 5, 1)
        )
        assert about.data.splits["train"].images == 5 and about.data.splits["train"].per_class == [3, 2]
        assert about.data.audited == {}
        assert sorted(path.name for path in run.folder.iterdir()) == [
            "environment.json",
            "recipe.yaml",
            "splits.parquet",
        ]

    def test_the_command_is_kept_without_passwords(self, tmp_path, monkeypatch):
        monkeypatch.setattr(sys, "argv", ["petriscope", "tune", "a b", "--storage", "postgresql://me:secret@host/db"])
        kept = create_run(tmp_path / "run", Recipe(), dataset()).environment.command
        assert kept == "petriscope tune 'a b' --storage 'postgresql://me:***@host/db'"

    def test_masks_are_counted_by_pixels(self, tmp_path):
        masks = np.zeros((2, 4, 5), np.uint8)
        masks[0, 0], masks[1] = 1, 255
        part = ImageSet(np.zeros((2, 4, 5, 1), np.uint8), masks, ("a", "b"), np.arange(2).astype(str))
        about = create_run(tmp_path / "run", Recipe(), Dataset(train=part)).environment
        assert about.data.task == "segmentation" and about.data.splits["train"].per_class == [15, 5]

    def test_normalization_is_kept_to_the_last_bit(self, tmp_path):
        given = Normalization(mean=(1 / 3,), std=(0.1 + 0.2,))
        assert create_run(tmp_path / "run", Recipe(), dataset(), normalize=given).environment.normalize == given

    def test_images_left_out_or_relabeled_are_listed(self, tmp_path):
        entries = (Audited("1", "train", "a", "drop", "", "copy"), Audited("NA", "val", "b", "relabel", "a", "wrong"))
        run = create_run(tmp_path / "run", Recipe(), dataset(audited=entries))
        assert run.environment.data.audited == {"drop": {"train": 1}, "relabel": {"val": 1}}
        assert run.audited["id"].tolist() == ["1", "NA"] and run.audited["new_label"].tolist() == ["", "a"]

    def test_a_folder_that_is_not_empty_is_refused_and_left(self, run):
        before = {path: path.read_bytes() for path in run.folder.iterdir()}
        with pytest.raises(RequestError, match=r"not empty; .*--resume"):
            create_run(run.folder, Recipe(), dataset())
        assert {path: path.read_bytes() for path in run.folder.iterdir()} == before

    def test_a_failure_leaves_nothing(self, tmp_path, monkeypatch):
        def full(*args):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("petriscope.run.folder.write_text", full)
        with pytest.raises(PetriscopeError, match="no space left"):
            create_run(tmp_path / "sub" / "run", Recipe(), dataset())
        assert not list((tmp_path / "sub").iterdir())

    def test_a_free_folder_has_a_number_of_its_own(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        recipe = Recipe(name="blood/fast", seed=3)
        folders = [str(create_run(None, recipe, dataset()).folder) for _ in range(3)]
        assert folders == ["runs/blood-fast-seed3", "runs/blood-fast-seed3-2", "runs/blood-fast-seed3-3"]

    def test_at_one_moment_each_gets_a_free_folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with ThreadPoolExecutor(8) as pool:
            runs = list(pool.map(lambda _: create_run(None, Recipe(name="same"), dataset()), range(8)))
        assert len({run.folder for run in runs}) == 8
        assert all(run.environment.data.fingerprint == "f00d" for run in runs)
        assert {path.name for path in Path("runs").iterdir()} == {run.folder.name for run in runs}


class TestResults:
    def test_a_new_run_has_none(self, run):
        assert not run.finished and run.history == [] and run.gallery == {}
        assert run.results.task == "classification" and run.results.evaluated == {}
        assert len(run.predictions) == len(run.audited) == 0

    def test_sections_are_added_and_replaced(self, run):
        run.add_results(val=evaluation(0.5))
        run.add_results(cost=Cost(parameters=1, multiply_adds=2, bytes_fp32=4, inference_images_per_second=8.0))
        run.add_results(val=evaluation(0.75), training=TrainingSummary(epochs=3, seconds=1.5))
        assert run.results.val == evaluation(0.75)
        assert run.results.cost.multiply_adds == 2
        assert run.finished and run.results.training.epochs == 3

    def test_a_split_whose_stress_test_had_no_time_is_kept_as_none(self, run):
        run.add_results(stress={"val": None})
        assert run.results.stress == {"val": None}

    def test_the_file_is_flat_json_with_its_version(self, run):
        run.add_results(val=evaluation(0.5))
        tree = json.loads((run.folder / "results.json").read_text())
        assert (tree["schema_version"], tree["task"]) == (SCHEMA_VERSION, "classification")
        assert tree["val"] == {"split": "val", "n": 2, "accuracy": 0.5, "accuracy_ci95": [0.1, 0.9]}

    def test_predictions_of_a_split_are_replaced(self, run):
        for split, count in (("val", 2), ("test", 3), ("val", 4)):
            run.add_predictions(split, pd.DataFrame({"id": np.arange(count).astype(str), "split": split}))
        assert run.predictions.groupby("split").size().to_dict() == {"test": 3, "val": 4}

    def test_history_is_read_line_by_line(self, run):
        lines = [{"epoch": i, "train": {"loss": 0.5}, "val": {"loss": 1.0}, "lr": 0.1} for i in (1, 2)]
        run.write_history(lines)
        assert [line.epoch for line in run.history] == [1, 2] and run.history[1].val == {"loss": 1.0}

    def test_one_process_at_a_time_has_the_claim(self, run):
        with run.claimed(), pytest.raises(RequestError, match="another process is training"), Run(run.folder).claimed():
            pass
        with run.claimed():
            pass

    def test_who_holds_the_claim_removes_what_killed_processes_left(self, run):
        run.write_gallery("a", x=np.zeros(1))
        with run.claimed():
            kept = sorted(run.folder.rglob("*"))
        left = [
            run.folder / ".results.json.0123456789abcdef.tmp",
            run.folder / "gallery" / ".b.npz.0123456789abcdef.tmp",
        ]
        for path in left:
            path.write_text("half")
        with run.claimed():
            assert sorted(run.folder.rglob("*")) == kept

    def test_a_finished_run_is_waited_for(self, run, capsys):
        run.add_results(training=TrainingSummary(epochs=1))
        order = []

        def second():
            with Run(run.folder).claimed():
                order.append("second")

        with ThreadPoolExecutor(1) as pool:
            with run.claimed():
                waiting = pool.submit(second)
                while "waiting for its end" not in capsys.readouterr().err:
                    assert not waiting.done()
                    time.sleep(0.01)
                order.append("first")
            waiting.result()
        assert order == ["first", "second"]


class TestGallery:
    def test_each_name_is_a_file_and_all_are_read(self, run):
        a, b = np.arange(6, dtype=np.uint8).reshape(2, 3), np.array(["x", "y"])
        run.write_gallery("val-mistakes", mistakes_val=a, mistakes_val_ids=b)
        run.write_gallery("augmented", augmented=a.T)
        run.write_gallery("nothing")
        assert sorted(path.name for path in (run.folder / "gallery").iterdir()) == ["augmented.npz", "val-mistakes.npz"]
        assert {name: array.tolist() for name, array in run.gallery.items()} == {
            "mistakes_val": a.tolist(),
            "mistakes_val_ids": ["x", "y"],
            "augmented": a.T.tolist(),
        }

    def test_a_file_is_replaced_as_a_whole(self, run):
        run.write_gallery("val-errors", confused_val=np.zeros(2), neighbors_val=np.zeros(2))
        run.write_gallery("val-errors", confused_val=np.ones(3))
        assert set(run.gallery) == {"confused_val"} and run.gallery["confused_val"].tolist() == [1, 1, 1]

    def test_the_one_file_of_older_runs_is_read_and_newer_files_come_first(self, run):
        np.savez(run.folder / "gallery.npz", augmented=np.zeros(1), disturbed=np.zeros(1))
        run.write_gallery("disturbed", disturbed=np.ones(1))
        assert run.gallery["augmented"].tolist() == [0] and run.gallery["disturbed"].tolist() == [1]


class TestOlderRuns:
    """Files of schema version 1, which had no version number."""

    @pytest.fixture
    def old(self, run):
        tree = json.loads((run.folder / "environment.json").read_text())
        del tree["schema_version"], tree["data"]["task"]
        tree["data"]["targets"] = "labels"
        for split in tree["data"]["splits"].values():
            split["pictures"] = split.pop("images")
        (run.folder / "environment.json").write_text(json.dumps(tree))
        line = {"epoch": 1, "train": {"loss": 1.0}, "pictures_per_second": 9.0}
        (run.folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        shares = {"answered": 1.0, "wrong": 0.0, "held": 1.0}
        stress = {
            "split": "val",
            "figure": "balanced_accuracy",
            "n": 2,
            "of": 2,
            "tta": "none",
            "severities": [1],
            "clean": 1.0,
            "worst": {"name": "blur", "balanced_accuracy": 0.5},
            "corruptions": {},
            "promises": {"max_error": 0.01, "level": 0.9, "clean": shares, "disturbed": shares},
        }
        results = {
            "training": {"epochs": 1, "pictures_per_second": 9.0},
            "cost": {"parameters": 1, "multiply_adds": 2, "bytes_fp32": 4, "inference_pictures_per_second": 8.0},
            "val": {
                "split": "val",
                "n": 2,
                "accuracy": 0.5,
                "accuracy_ci95": [0.1, 0.9],
                "per_class": {"figure": {"n": 2}},
            },
            "stress": {"val": stress},
        }
        (run.folder / "results.json").write_text(json.dumps(results))
        return run

    def test_they_are_read(self, old):
        assert old.environment.data.task == "classification" and old.environment.data.splits["train"].images == 5
        assert old.history[0].images_per_second == 9.0
        results = old.results
        assert results.training.images_per_second == 9.0 and results.cost.inference_images_per_second == 8.0
        assert results.val.metric("accuracy").ci95 == (0.1, 0.9)
        assert set(results.val.per_class) == {"figure"}  # the name of a class is not a key
        assert results.stress["val"].metric_name == "balanced_accuracy"
        assert results.stress["val"].guarantees.clean.value("held") == 1.0

    def test_adding_results_upgrades_them(self, old):
        before = old.results
        old.add_results(val=evaluation(0.75))
        assert json.loads((old.folder / "results.json").read_text())["schema_version"] == SCHEMA_VERSION
        assert old.results.val == evaluation(0.75)
        assert isinstance(old.results.stress["val"], Robustness) and old.results.stress == before.stress
        assert (old.results.training, old.results.cost) == (before.training, before.cost)


class TestDamage:
    @pytest.mark.parametrize("missing", ["recipe.yaml", "environment.json"])
    def test_a_folder_without_its_files_is_no_run(self, run, missing):
        assert open_run(run.folder) == run
        (run.folder / missing).unlink()
        with pytest.raises(RequestError, match=r"is not a run folder"):
            open_run(run.folder)

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("{", "cannot be read"),
            ("[]", "does not contain a JSON object"),
            ('{"schema_version": 99}', "schema version 99; this Petriscope reads up to"),
            ('{"schema_version": 2, "training": {"epochs": "many"}}', "is damaged: training.epochs"),
            ('{"schema_version": 2, "val": {"n": 2}}', r"is damaged: val\.split"),
        ],
    )
    def test_a_damaged_file_is_named_with_its_fault(self, run, text, says):
        (run.folder / "results.json").write_text(text)
        with pytest.raises(RequestError, match=rf"results\.json .*{says}"):
            _ = run.results

    @pytest.mark.parametrize("text", ['{"epoch": 1, "tra', '{"epoch": 1}\n', "[]\n"])
    def test_a_damaged_history_is_named(self, run, text):
        (run.folder / "metrics.jsonl").write_text(text)
        with pytest.raises(RequestError, match=r"metrics\.jsonl"):
            _ = run.history

    def test_damaged_predictions_are_named(self, run):
        run.add_predictions("val", pd.DataFrame({"id": ["0"], "split": "val"}))
        path = run.folder / "predictions.parquet"
        path.write_bytes(path.read_bytes()[:40])
        with pytest.raises(RequestError, match=r"predictions\.parquet"):
            _ = run.predictions

    @pytest.mark.parametrize("column", ["confidence", "p_a"])
    @pytest.mark.parametrize("value", [np.nan, -0.1, 1.5, np.inf])
    def test_predictions_that_are_no_probabilities_are_refused(self, run, column, value):
        run.add_predictions("val", pd.DataFrame({"id": ["0", "1"], "split": "val", column: [0.5, value]}))
        with pytest.raises(RequestError, match=f"{column} has values that are no probability"):
            _ = run.predictions

    def test_a_damaged_gallery_is_named(self, run):
        run.write_gallery("augmented", augmented=np.zeros(9))
        path = run.folder / "gallery" / "augmented.npz"
        path.write_bytes(path.read_bytes()[:40])
        with pytest.raises(RequestError, match=r"augmented\.npz"):
            _ = run.gallery


@pytest.mark.parametrize("what", ["source", "folder"])
def test_names_that_no_file_of_a_run_can_hold_are_refused_and_leave_nothing(tmp_path, what):
    name = "caf\udce9"
    recipe = Recipe.model_validate({"data": {"source": name if what == "source" else "somewhere"}})
    with pytest.raises(RequestError, match="is not UTF-8"):
        create_run(tmp_path / (name if what == "folder" else "run"), recipe, dataset())
    assert not list(tmp_path.iterdir())


class TestOtherThingsInPlaceOfFiles:
    @pytest.mark.parametrize(
        "name", ["results.json", "metrics.jsonl", "predictions.parquet", "splits.parquet", "model.safetensors"]
    )
    @pytest.mark.parametrize("kind", ["folder", "pipe", "loop"])
    def test_is_refused_by_name(self, name, kind, run):
        path = run.folder / name
        path.unlink(missing_ok=True)
        {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "loop": lambda: path.symlink_to(path)}[kind]()
        with pytest.raises(RequestError, match=f"{name} is not a file"):
            open_run(run.folder)

    def test_a_link_to_a_file_is_one(self, run, tmp_path):
        (run.folder / "splits.parquet").rename(tmp_path / "elsewhere")
        (run.folder / "splits.parquet").symlink_to(tmp_path / "elsewhere")
        assert open_run(run.folder).membership is not None

    @pytest.mark.parametrize("text", ["", "seed: 3\n", "{}\n"])
    def test_a_recipe_without_its_keys_is_damaged(self, text, run):
        (run.folder / "recipe.yaml").write_text(text)
        with pytest.raises(RequestError, match=r"recipe\.yaml is damaged: it lacks data, model, training"):
            _ = run.recipe
