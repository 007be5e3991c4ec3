"""Trackers: each has what the run folder has, its own library says so, and none of them can do a training any harm."""

import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from petriscope import api
from petriscope.core.errors import Interrupted, PetriscopeError, RequestError
from petriscope.core.recipe import Part, Recipe, load_recipe
from petriscope.core.results import Evaluation, TrainingSummary
from petriscope.data.imageset import Dataset, ImageSet
from petriscope.experiments.compare import settings_that_differ
from petriscope.run.folder import create_run
from petriscope.run.trackers import TRACKERS, process
from petriscope.run.trackers.base import Entry
from petriscope.run.trackers.figures import confusion, sheet
from petriscope.run.trackers.follow import Ending, Follower, follow, read_record, said
from tracker_readers import READERS, TensorBoard

SETTINGS = {"training": {"epochs": 4}, "seed": 7, "augment": [{"name": "flip"}]}


def line(epoch, loss):
    val = {"loss": loss + 1 / 7, "accuracy": 1 - loss / 9, "macro_f1": None}
    return {
        "epoch": epoch,
        "train": {"loss": loss, "accuracy": 0.1},
        "val": val,
        "lr": 0.1 / epoch,
        "seconds": 0.25,
        "images_per_second": 1234.5,
    }


HISTORY = [line(epoch, 1 / (epoch + 2)) for epoch in range(1, 5)]


def part(count):
    return ImageSet(
        np.zeros((count, 4, 5, 1), np.uint8), np.arange(count) % 2, ("a", "b"), np.arange(count).astype(str)
    )


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run folder that is begun."""
    monkeypatch.chdir(tmp_path)
    dataset = Dataset(train=part(5), val=part(2), source="somewhere", fingerprint="f00d")
    recipe = Recipe(name="cells", about="white cells | red cells", **SETTINGS)
    return create_run(tmp_path / "runs" / "cells-seed7", recipe, dataset, device="cpu", parameters=12)


def finish(run):
    run.write_history(HISTORY)
    found = {"split": "val", "n": 2, "accuracy": 2 / 3, "accuracy_ci95": [0.1, 0.9], "confusion": [[1, 0], [1, 0]]}
    run.write_gallery("mistakes", mistakes_val=np.full((3, 4, 5, 1), 9, np.uint8))
    run.model.write_bytes(b"weights")
    (run.folder / "report.html").write_text("<p>report")
    run.add_results(val=Evaluation.model_validate(found), training=TrainingSummary(epochs=4, best_epoch=3, seconds=1.0))


@pytest.fixture
def environment():
    """Changes to the environment are undone."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(params=sorted(READERS))
def tracker(request, run, tmp_path, environment):
    return READERS[request.param](tmp_path, run)


def track(run, tracker, ending, warn=pytest.fail, replay=False):
    """What the process beside a training does, when the training ends before it looks for the first time."""
    follower = Follower(run, tracker.part.name, TRACKERS.build(tracker.part), replay)
    return follow(follower, lambda seconds: ending, warn)


def check_history(read, tracker, lines):
    for name, section in (("train/loss", "train"), ("val/loss", "val"), ("val/accuracy", "val")):
        wanted = [(each["epoch"], each[section][name.split("/")[1]]) for each in lines]
        if not tracker.exact:
            wanted = [(epoch, float(np.float32(value))) for epoch, value in wanted]
        assert read.history[name] == wanted
    assert [epoch for epoch, _ in read.history["lr"]] == [each["epoch"] for each in lines]
    assert not any("macro_f1" in name for name in read.history)  # not defined in any epoch


class TestEachTracker:
    def test_a_finished_run_is_there_as_a_whole(self, run, tracker):
        finish(run)
        assert track(run, tracker, Ending("finished"))
        (read,) = tracker.runs()
        check_history(read, tracker, HISTORY)
        assert read.status == tracker.status["finished"]
        assert read.results["result/val/accuracy"] == pytest.approx(2 / 3)
        assert read.results["result/val/accuracy_low"] == pytest.approx(0.1)
        assert read.results["result/best_epoch"] == 3
        assert str(read.settings["training.epochs"]).removesuffix(".0") == "4"
        assert read.settings["augment.0.name"] == "flip"
        assert {"confusion_val", "mistakes_val"} <= set(read.figures)
        if not isinstance(tracker, TensorBoard):  # which has no files
            assert read.model == b"weights"
            assert {"report.html", "recipe.yaml"} <= set(read.files)
        assert read_record(run, tracker.part.name).epochs == 4

    @pytest.mark.parametrize("status", ["failed", "interrupted"])
    def test_a_run_that_ended_early_is_closed_as_that(self, run, tracker, status):
        run.write_history(HISTORY[:2])
        assert track(run, tracker, Ending(status, "the reason"))
        (read,) = tracker.runs()
        check_history(read, tracker, HISTORY[:2])
        assert read.status == tracker.status[status]
        assert not read.results and not read.figures

    def test_a_resumed_run_goes_on_in_the_same_run(self, run, tracker):
        run.write_history(HISTORY[:3])
        assert track(run, tracker, Ending("interrupted", "Ctrl-C"))
        run.write_history(HISTORY[:2])  # the checkpoint was older
        finish(run)
        assert track(run, tracker, Ending("finished"))
        (read,) = tracker.runs()
        check_history(read, tracker, HISTORY)
        assert read.status == tracker.status["finished"]

    def test_new_results_of_a_run_that_is_there_are_added(self, run, tracker):
        finish(run)
        assert track(run, tracker, Ending("finished"), replay=True)
        run.add_results(test=Evaluation.model_validate({"split": "test", "n": 2, "accuracy": 0.5}))
        assert track(run, tracker, Ending("finished"), replay=True)
        (read,) = tracker.runs()
        check_history(read, tracker, HISTORY)
        assert read.results["result/test/accuracy"] == 0.5


def test_a_deleted_run_of_mlflow_gets_a_new_one(run, tmp_path, environment):
    tracker = READERS["mlflow"](tmp_path, run)
    finish(run)
    assert track(run, tracker, Ending("finished"))
    from mlflow import MlflowClient

    before = read_record(run, "mlflow").id
    MlflowClient(tracker.uri).delete_run(before)
    assert track(run, tracker, Ending("finished"))
    (read,) = tracker.runs()
    check_history(read, tracker, HISTORY)
    assert read_record(run, "mlflow").id != before


class Fake:
    """A tracker in memory that fails where it is told to."""

    def __init__(self, failing=lambda call, count: False):
        self.failing, self.calls = failing, []

    def _call(self, name, *about):
        count = sum(call[0] == name for call in self.calls)
        self.calls.append((name, *about))
        if self.failing(name, count):
            raise ConnectionError(f"{name} is not possible\nand more lines")

    def begin(self, start, known):
        self._call("begin", known)
        return Entry("1", "memory")

    def log(self, epoch, metrics, at):
        self._call("log", epoch, at)

    def deliver(self, outcome):
        self._call("deliver")

    def close(self, status, why, at):
        self._call("close", status)


def endings(*each):
    rest = iter(each)
    return lambda seconds: next(rest)


class TestFailures:
    def test_one_that_always_fails_says_so_once_and_what_to_do(self, run):
        finish(run)
        heard = []
        follower = Follower(run, "mlflow", Fake(lambda *_: True))
        assert not follow(follower, endings(None, None, None, Ending("finished")), heard.append)
        assert heard[0] == "ConnectionError: begin is not possible"
        assert len(heard) == 2 and f"petriscope track {run.folder} --to mlflow" in heard[1]

    def test_one_that_fails_in_the_middle_gets_later_what_it_lacks(self, run):
        finish(run)
        heard, fake = [], Fake(lambda call, count: call == "log" and count in (1, 2))
        assert follow(Follower(run, "mlflow", fake), endings(None, None, None, Ending("finished")), heard.append)
        assert [call[1] for call in fake.calls if call[0] == "log"] == [1, 2, 2, 2, 3, 4]
        assert [call[0] for call in fake.calls if call[0] != "log"] == ["begin", "deliver", "close"]
        assert heard == ["ConnectionError: log is not possible"]

    def test_one_that_cannot_take_the_files_is_closed_all_the_same(self, run):
        finish(run)
        fake = Fake(lambda call, count: call == "deliver")
        assert not follow(Follower(run, "mlflow", fake), endings(Ending("finished")), lambda text: None)
        assert fake.calls[-1] == ("close", "finished")

    def test_a_password_in_an_address_is_not_repeated(self):
        assert said(OSError("http://me:secret@host:1/api is not there")) == "OSError: http://host:1/api is not there"

    def test_a_damaged_record_is_a_sentence(self, run):
        finish(run)
        (run.folder / "tracking").mkdir()
        (run.folder / "tracking" / "mlflow.json").write_text('{"id": 3')
        heard = []
        assert not follow(Follower(run, "mlflow", Fake()), endings(Ending("finished")), heard.append)
        assert "mlflow.json is damaged" in heard[0] and "the tracker gets a new run" in heard[0]

    def test_a_replay_has_the_times_of_the_training(self, run):
        finish(run)
        fake = Fake()
        assert follow(Follower(run, "mlflow", fake, replay=True), endings(Ending("finished")), pytest.fail)
        times = [call[2] for call in fake.calls if call[0] == "log"]
        assert all(0 <= later - earlier <= 0.2501 for earlier, later in pairwise(times))


BROKEN = """
Settings = dict
def init(**options): raise ConnectionError("no network")
"""
HANGING = """
import time
from itertools import pairwise
print("words of a library on stdout", flush=True)
def init(*words, **options): time.sleep(1000)
"""
CRASHING = """
import os
os._exit(3)
"""


@pytest.fixture
def libraries(tmp_path, monkeypatch):
    """Libraries in place of those that are installed: one that raises, one that hangs, and one that ends its process."""
    folder = tmp_path / "libraries"
    for name, text in {"wandb": BROKEN, "trackio": HANGING, "mlflow": CRASHING}.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(text)
    source = Path(process.__file__).parents[3]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(source)]))
    for name in ("wandb", "trackio", "mlflow"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(process, "PATIENCE", {"finished": 4.0, "failed": 4.0, "interrupted": 4.0})


@pytest.fixture
def tensorboard(tmp_path, monkeypatch):
    """A real library, whose process finds this source."""
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("PYTHONPATH", str(Path(process.__file__).parents[3]))


class TestTraining:
    def test_broken_libraries_change_nothing_and_are_said(self, tiny_recipe, tmp_path, libraries, capfd):
        plain = api.train(tiny_recipe(), tmp_path / "plain", quiet=True)
        capfd.readouterr()
        recipe = tiny_recipe(training={"track": ["wandb", "trackio", "mlflow"]})
        started = time.monotonic()
        tracked = api.train(recipe, tmp_path / "tracked", quiet=True)
        assert time.monotonic() - started < 60
        out, said = capfd.readouterr()
        assert not out
        assert said.count("wandb: ConnectionError: no network") == 1
        assert said.count("trackio: it did not get all of the run in time") == 1
        assert said.count("mlflow: its process ended with status 3") == 1
        assert "words of a library" in (tracked.folder / "tracking" / "trackio.log").read_text()
        assert tracked.finished and (tracked.folder / "report.html").is_file()
        before, after = load_file(plain.model), load_file(tracked.model)
        assert all(np.array_equal(before[name], after[name]) for name in before)
        assert settings_that_differ(plain.recipe, tracked.recipe) == {}

    def test_while_it_is_trained_and_resumed(self, tiny_recipe, tmp_path, tensorboard, monkeypatch, capfd):
        recipe = tiny_recipe(training={"track": "tensorboard"})
        from petriscope.training.loop import Trainer

        step = Trainer.train_step

        def stopping(self, *words):
            if self._step == 10:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(self, *words)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "train_step", stopping)
            with pytest.raises(Interrupted):
                api.train(recipe, tmp_path / "run", quiet=True)
        run = api.open_run(tmp_path / "run")
        reader = TensorBoard(tmp_path, run)
        (read,) = reader.runs()
        assert read.status == reader.status["interrupted"] and [epoch for epoch, _ in read.history["lr"]] == [1]
        api.resume(run.folder, quiet=True)
        (read,) = reader.runs()
        assert read.status == reader.status["finished"] and [epoch for epoch, _ in read.history["lr"]] == [1, 2, 3]
        losses = [(each.epoch, float(np.float32(each.val["loss"]))) for each in run.history]
        assert read.history["val/loss"] == losses
        assert read.results["result/val/accuracy"] == pytest.approx(run.results.val.value("accuracy"))
        assert "warning" not in capfd.readouterr().err

    def test_an_error_closes_the_run_as_failed(self, tiny_recipe, tmp_path, tensorboard, monkeypatch):
        def full(*words, **more):
            raise PetriscopeError("no space left")

        monkeypatch.setattr("petriscope.experiments.train.save_model", full)
        with pytest.raises(PetriscopeError, match="no space left"):
            api.train(tiny_recipe(training={"track": "tensorboard", "epochs": 1}), tmp_path / "run", quiet=True)
        reader = TensorBoard(tmp_path, api.open_run(tmp_path / "run"))
        assert [read.status for read in reader.runs()] == [reader.status["failed"]]

    def test_a_killed_training_closes_the_run_as_failed(self, run, tensorboard):
        run.write_history(HISTORY[:2])
        beside = process.Beside(run, Part(name="tensorboard"), replay=False, quiet=True)
        beside.process.stdin.close()  # which the system does for a process that is killed
        assert beside.process.wait(60) == 0
        reader = TensorBoard(None, run)
        assert [read.status for read in reader.runs()] == [reader.status["failed"]]

    def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_made(
        self, tiny_recipe, tmp_path, monkeypatch
    ):
        monkeypatch.setattr("petriscope.run.trackers.find_spec", lambda name: None)
        with pytest.raises(RequestError, match=r"pip install 'petriscope\[wandb\]'"):
            api.train(tiny_recipe(training={"track": ["wandb"]}), tmp_path / "run", quiet=True)
        assert not (tmp_path / "run").exists()


class TestSending:
    def test_a_finished_run_is_sent_later(self, run, tensorboard):
        finish(run)
        words = [sys.executable, "-m", "petriscope", "track", str(run.folder), "--to", "tensorboard"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stdout) == (0, "")
        assert "tracked by tensorboard: run tensorboard in" in done.stderr
        reader = TensorBoard(None, run)
        (read,) = reader.runs()
        check_history(read, reader, HISTORY)
        assert read.status == reader.status["finished"]

    def test_what_is_wrong_is_the_error(self, run, libraries):
        finish(run)
        with pytest.raises(PetriscopeError, match="wandb: ConnectionError: no network; it does not have all"):
            api.track(run.folder, ["wandb"], quiet=True)
        with pytest.raises(RequestError, match="did you mean mlflow"):
            api.track(run.folder, ["mlflo"], quiet=True)

    def test_options_are_those_of_the_recipe(self, run, monkeypatch):
        sent = []
        monkeypatch.setattr(api, "send", lambda run, part, quiet: sent.append(part))
        monkeypatch.setattr(api, "check_trackers", lambda parts: None)
        monkeypatch.setattr(
            type(run), "recipe", Recipe(training={"track": [{"name": "mlflow", "experiment": "cells"}]})
        )
        api.track(run.folder, ["mlflow", "wandb", "mlflow"])
        assert sent == [Part(name="mlflow", experiment="cells"), Part(name="wandb")]


class TestRecipe:
    def test_one_name_or_several_with_options(self):
        assert load_recipe("demo", ["training.track=mlflow"]).training.track == (Part(name="mlflow"),)
        loaded = load_recipe("demo", ["training.track=[tensorboard, {name: wandb, project: cells}]"])
        assert [part.options for part in loaded.training.track] == [{}, {"project": "cells"}]
        assert load_recipe("demo").training.track == ()

    def test_twice_the_same_is_refused(self):
        with pytest.raises(RequestError, match="once"):
            load_recipe("demo", ["training.track=[mlflow, mlflow]"])

    def test_an_unknown_option_is_named(self):
        with pytest.raises(RequestError, match="unknown key 'projekt'"):
            TRACKERS.check(Part(name="wandb", projekt="cells"))


class TestFigures:
    def test_images_in_rows(self):
        images = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((1, 32, 40, 1), np.uint8)
        page = sheet(images)
        assert page.shape == (66, 3 * 82, 3) and page.dtype == np.uint8
        assert [page[33, 41 + 82 * column, 0] for column in range(3)] == [0, 1, 2]
        assert sheet(np.zeros((9, 70, 70, 3), np.uint8)).shape == (2 * 72, 8 * 72, 3)

    def test_a_confusion_matrix_is_darkest_where_most_images_are(self):
        page = confusion(np.array([[9, 1], [0, 0]]), ["first", "second"]).astype(int)
        left = page.shape[0] - 2 * 44
        corners = [[page[left + 44 * row + 2, left + 44 * column + 2].sum() for column in (0, 1)] for row in (0, 1)]
        assert corners[0][0] < corners[0][1] < corners[1][0] == corners[1][1] == 765
