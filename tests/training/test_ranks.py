"""Training in several processes: the same experiment at any number of them, one voice, and an end where one is lost."""

import json
import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch
from pandas.testing import assert_frame_equal
from safetensors.torch import load_file

from petriscope import api
from petriscope.cli import _check_processes
from petriscope.core import progress
from petriscope.core.device import choose_device, cores
from petriscope.core.errors import RequestError
from petriscope.core.launch import Launch, launch
from petriscope.core.ranks import ALONE, Ranks
from petriscope.core.recipe import DataSection, load_recipe
from petriscope.data import load_dataset
from petriscope.experiments.auto import train_in_time
from petriscope.training.build import build_trainer
from petriscope.training.whole_batch import whole_batch
from tar_shards import write_shards

HERE = Path(__file__).parent
CLOSE = 1e-10
PATIENCE = 600  # seconds, for machines that do much else
pytestmark = pytest.mark.timeout(3 * PATIENCE)
MOVED = 1e-3
IN_EACH_RUN = ("averaged", "masks", "views", "streamed")


def started(count, *words, cwd, options=()):
    """What a command of torchrun with so many processes on this machine says, and its exit status."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), *options]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "COV"))}
    environment |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    whole = [*command, *words]
    job = subprocess.Popen(whole, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        return job.communicate(timeout=PATIENCE)[0], job.returncode
    finally:
        job.terminate()  # torchrun then ends its processes, which would outlive it otherwise
        job.wait()


def worker():
    spec = spec_from_file_location("rank_worker", HERE / "rank_worker.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arrays_of(count, cases, folder):
    said, status = started(count, str(HERE / "rank_worker.py"), f"{count}.npz", *cases, cwd=folder)
    assert status == 0, said
    return dict(np.load(folder / f"{count}.npz"))


def check_same_experiment(alone, many):
    assert alone.keys() == {key for key in many if not key.startswith("said/")}
    for key, value in alone.items():
        if key.endswith("/history"):
            ours, theirs = json.loads(str(value)), json.loads(str(many[key]))
            assert [line["lr"] for line in ours] == [line["lr"] for line in theirs]
            for one, other in zip(ours, theirs, strict=True):
                for part in ("train", "val"):
                    assert one[part] == pytest.approx(other[part], rel=1e-5), key
        elif key.endswith("/moved"):
            assert value > MOVED, key
        else:
            assert np.abs(value - many[key]).max() <= CLOSE, key


def check_exchanges(many, count):
    assert np.array_equal(many["said/rows"], np.arange(14.0).reshape(7, 2))
    assert many["said/texts"].tolist() == ["" if rank == 1 else f"é {rank}" for rank in range(count)]
    assert many["said/any"].tolist() == [True, False]
    assert str(many["said/alone"]).startswith(f"in process 1 of {count}, on ")
    assert str(many["said/alone"]).endswith(": no such folder")
    assert str(many["said/all"]) == "no such recipe"
    assert str(many["said/differ"]).startswith(
        "the processes differ in their data: set 0 in process 0, set 1 in process 1"
    )
    assert str(many["said/unlike"]).startswith(
        "the processes do different things: drawing in process 0, reading in process 1"
    )
    assert np.array_equal(many["said/odd"], np.arange(14).reshape(7, 2) % 3 == 1)
    assert many["said/none"].shape == (7, 0)
    assert many["said/few"].tolist() == [[0, 1]]


@pytest.fixture
def shards(tmp_path, monkeypatch):
    """What a case streams."""
    for split, part in load_dataset(DataSection(source="synthetic-smear:160", size=16)).splits.items():
        write_shards(tmp_path / worker().STREAMED, split, part.images, part.targets)
    monkeypatch.chdir(tmp_path)


def test_two_processes_train_as_one(shards, tmp_path):
    alone = worker().trained(IN_EACH_RUN, ALONE)
    many = arrays_of(2, IN_EACH_RUN, tmp_path)
    check_exchanges(many, 2)
    check_same_experiment(alone, many)


@pytest.mark.slow
def test_three_processes_train_as_one_whatever_is_trained(shards, tmp_path):
    cases = worker().CASES
    alone, many = worker().trained(cases, ALONE), arrays_of(3, cases, tmp_path)
    check_exchanges(many, 3)
    check_same_experiment(alone, many)


def weights(run):
    return load_file(run / "model.safetensors")


def same_bits(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def near(one, other):
    """Whether the weights are equal but for rounding in float32."""
    assert one.keys() == other.keys()
    network = [key for key in one if not key.startswith(("trust/", "seen/"))]
    return all(torch.allclose(one[key].double(), other[key].double(), rtol=1e-4, atol=1e-5) for key in network)


@pytest.fixture
def recipe_file(tiny_recipe, tmp_path):
    """A recipe whose weights do not depend much on rounding."""
    made = tiny_recipe(optimizer={"name": "sgd", "lr": 0.01}, training={"swa": 0.5})
    path = tmp_path / "tiny.yaml"
    path.write_text(made.to_yaml(), encoding="utf-8")
    return path


@pytest.mark.slow
def test_a_killed_process_ends_the_job_and_it_goes_on(recipe_file, tmp_path):
    killed = str(HERE / "rank_killed.py")
    whole, status = started(2, "-m", "petriscope", "train", str(recipe_file), "--out", "whole", cwd=tmp_path)
    assert status == 0, whole
    for once in ("tiny on ", "2 processes", "epoch 3 of 3", "trained in", "Accuracy"):
        assert whole.count(once) == 1, whole
    assert api.open_run(tmp_path / "whole").environment.hardware.processes == 2
    alone = api.train(recipe_file, tmp_path / "alone", quiet=True)
    assert near(weights(alone.folder), weights(tmp_path / "whole"))

    again = ("--max-restarts", "1")
    said, status = started(2, killed, "10", "train", str(recipe_file), cwd=tmp_path, options=again)
    assert status == 0, said
    assert "started again, and continue the run in runs" in said
    assert "resumed after epoch 1" in said
    (run,) = (tmp_path / "runs").iterdir()
    assert same_bits(weights(run), weights(tmp_path / "whole"))

    said, status = started(2, killed, "10", "train", str(recipe_file), "--out", "broken", cwd=tmp_path)
    assert status != 0
    resumed = api.resume(tmp_path / "broken", quiet=True)
    assert resumed.finished
    assert near(weights(resumed.folder), weights(tmp_path / "whole"))


@pytest.fixture
def launched(monkeypatch):
    """An environment as torchrun makes it."""

    def make(rank=0, size=2, **more):
        words = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size, **more}
        monkeypatch.setenv("MASTER_ADDR", "localhost")
        for name, value in words.items():
            monkeypatch.setenv(name, str(value))

    yield make
    progress.silence(False)


def test_a_process_knows_how_it_was_started(launched):
    assert launch() == Launch()
    launched(1, 4, TORCHELASTIC_RESTART_COUNT=2)
    assert launch() == Launch(1, 4, 1, 4, 2, by_torchrun=True)


@pytest.mark.parametrize("wrong", [{"rank": 2}, {"size": "many"}, {"size": 0}, {"LOCAL_WORLD_SIZE": 3}])
def test_an_environment_that_cannot_be_is_refused(wrong, launched):
    launched(**wrong)
    with pytest.raises(RequestError, match="which cannot be; start the processes with torchrun"):
        launch()


def test_only_train_runs_in_several_processes(launched):
    launched()
    _check_processes(["train", "demo"])
    with pytest.raises(RequestError, match="torchrun started 2 processes, and only train works in several"):
        _check_processes(["evaluate", "runs/x"])


def test_a_training_without_a_recipe_is_planned_in_one_process(launched):
    launched()
    with pytest.raises(
        RequestError, match="without a recipe measures and plans in one process, and torchrun started 2"
    ):
        train_in_time("digits")


def test_all_but_the_first_process_say_nothing(launched, capsys):
    launched(1)
    _check_processes(["train"])
    progress.say("here")
    assert capsys.readouterr().err == ""


def test_processes_on_one_machine_share_its_cores(launched):
    here = cores()
    launched(size=2)
    assert cores() == max(1, here // 2)


def test_each_process_has_a_gpu_of_its_own(launched, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    launched(1, 2)
    assert str(choose_device()) == "cuda:1"
    with pytest.raises(RequestError, match="is one device, and 2 processes train together"):
        choose_device("cuda:1")
    launched(1, 4)
    with pytest.raises(
        RequestError, match=r"4 processes on this machine, which has 2 CUDA devices.*--nproc-per-node 2"
    ):
        choose_device()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"batch_size": 3}, "4 processes cannot share batches of 3 images"),
        ({"compile": True}, "training.compile works in one process only"),
    ],
)
def test_what_several_processes_cannot_do_is_refused(settings, said, tiny_recipe):
    recipe = tiny_recipe(training=settings)
    with pytest.raises(RequestError, match=said):
        build_trainer(recipe, load_dataset(recipe.data), torch.device("cpu"), True, ranks=Ranks(0, 4))


def test_draws_that_are_not_shared_are_said_once(capsys):
    keys = torch.rand(2, 1, 4, 8)
    with whole_batch(Ranks(0, 2), 4):
        for _ in range(2):
            torch.nn.functional.scaled_dot_product_attention(keys, keys, keys, dropout_p=0.1)
        torch.nn.functional.scaled_dot_product_attention(keys, keys, keys)
    assert capsys.readouterr().err.count("draws random numbers with scaled_dot_product_attention") == 1


@pytest.mark.parametrize("count", [5, 6])
def test_a_slice_gets_the_numbers_of_the_whole_batch(count):
    def draws(rows):
        images = torch.ones(rows, 3, 4, 4)
        pieces = images.flatten(0, 1)  # three for each image
        torch.manual_seed(0)
        return [
            torch.rand(rows, 1, 1, 1),
            torch.randn((rows, 2)),
            torch.rand_like(images),
            images.new_empty((rows, 1)).bernoulli_(0.5),
            torch.nn.functional.dropout(images.contiguous(memory_format=torch.channels_last), 0.5),
            torch.nn.functional.dropout2d(images, 0.5),
            torch.nn.functional.dropout(pieces, 0.5).unflatten(0, (rows, 3)),
        ]

    whole, ranks = draws(count), Ranks(1, 2)
    with whole_batch(ranks, count):
        part = draws(count - count // 2)
    for ours, all_of_them in zip(part, whole, strict=True):
        assert torch.equal(ours, ranks.part(all_of_them))


AFTER = str(HERE / "rank_after.py")
ROUNDED = 1e-5
OWN_TIME = ("seconds", "seconds_per_epoch", "images_per_second", "inference_images_per_second")
LABELED = {
    "name": "labels",
    "data": {"source": "synthetic-smear:170", "size": 16},
    "augment": ["flip", "brightness"],
    "model": {"name": "simple-cnn", "norm": "batch", "widths": [4, 8, 8], "hidden": 8},
    "training": {"epochs": 2, "batch_size": 16, "precision": "fp32", "device": "cpu"},
    "evaluation": {"bootstrap": 100, "stress": "val", "tta": "mirror", "batch_size": 13},
}
MASKED = {
    **LABELED,
    "name": "masks",
    "data": {"source": "synthetic-terrain:240", "size": [12, 16]},
    "model": {"name": "unet", "widths": [4, 8]},
}


def written(tree, folder):
    path = folder / f"{tree['name']}.yaml"
    path.write_text(load_recipe("demo", **tree).to_yaml(), encoding="utf-8")
    return str(path)


def after_training(count, mode, *words, cwd):
    if count > 1:
        return started(count, AFTER, mode, "train", *words, cwd=cwd)
    job = subprocess.run([sys.executable, AFTER, mode, "train", *words], cwd=cwd, capture_output=True, text=True)
    return job.stderr, job.returncode


def without_times(tree):
    if isinstance(tree, dict):
        return {key: without_times(value) for key, value in tree.items() if key not in OWN_TIME}
    return [without_times(value) for value in tree] if isinstance(tree, list) else tree


def check_near(one, other, where=""):
    """Whether two trees of results are the same but for rounding."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            check_near(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for number, (first, second) in enumerate(zip(one, other, strict=True)):
            check_near(first, second, f"{where}/{number}")
    else:
        assert one == (pytest.approx(other, abs=ROUNDED) if isinstance(one, float) else other), where


def check_same_run(one, other):
    """Whether all that two runs hold is the same, but for rounding and times."""
    one, other = api.open_run(one), api.open_run(other)
    ours, theirs = (json.loads((run.folder / "results.json").read_text("utf-8")) for run in (one, other))
    assert ours["stress"]["val"]["n"] == ours["val"]["n"] > 16
    assert ours["val"]["explanations"]["check"] is not None
    check_near(without_times(ours), without_times(theirs))
    ours, theirs = weights(one.folder), weights(other.folder)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert torch.allclose(value.double(), theirs[key].double(), atol=ROUNDED, rtol=ROUNDED), key
    assert_frame_equal(one.predictions, other.predictions, rtol=0, atol=ROUNDED)
    ours, theirs = one.gallery, other.gallery
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        if value.dtype == np.uint8:
            assert np.abs(value.astype(int) - theirs[key]).max() <= 1, key
        elif value.dtype.kind == "f":
            assert np.abs(value - theirs[key]).max() <= ROUNDED, key
        else:
            assert np.array_equal(value, theirs[key]), key


@pytest.mark.slow
def test_two_processes_evaluate_as_one(tmp_path):
    recipe = written(LABELED, tmp_path)
    for count in (1, 2):
        said, status = after_training(count, "ok", recipe, "--out", f"{count}", cwd=tmp_path)
        assert status == 0, said
    check_same_run(tmp_path / "1", tmp_path / "2")
    assert api.open_run(tmp_path / "1").results.val.errors.neighbors.among > 0


@pytest.mark.slow
@pytest.mark.parametrize("tree", [LABELED, MASKED], ids=lambda tree: tree["name"])
def test_three_processes_evaluate_as_one(tree, tmp_path):
    recipe = written(tree, tmp_path)
    for count in (1, 3):
        said, status = after_training(count, "ok", recipe, "--out", f"{count}", cwd=tmp_path)
        assert status == 0, said
    check_same_run(tmp_path / "1", tmp_path / "3")


@pytest.mark.slow
def test_an_error_in_the_stress_test_of_one_process_ends_all(tmp_path):
    said, status = after_training(2, "fails", written(LABELED, tmp_path), "--out", "run", cwd=tmp_path)
    assert status != 0
    assert said.count("a disturbance that cannot be drawn") == 1, said
    assert "error: in process 1 of 2, on " in said


@pytest.mark.slow
def test_a_process_killed_in_the_stress_test_ends_the_job_and_it_goes_on(tmp_path):
    recipe = written(LABELED, tmp_path)
    said, status = after_training(2, "killed", recipe, "--out", "run", cwd=tmp_path)
    assert status != 0
    assert "another process of this training has ended" in said, said
    assert not api.open_run(tmp_path / "run").finished
    said, status = after_training(2, "ok", "--resume", "run", cwd=tmp_path)
    assert status == 0, said
    said, status = after_training(1, "ok", recipe, "--out", "whole", cwd=tmp_path)
    assert status == 0, said
    check_same_run(tmp_path / "whole", tmp_path / "run")
