"""Jobs on a Ray cluster give the runs that one process gives, whatever dies meanwhile."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from petriscope import api
from petriscope.core.errors import PetriscopeError, RequestError
from petriscope.core.worker import error_in
from petriscope.experiments import ray_cluster
from petriscope.experiments.bench import run_suite
from petriscope.experiments.cross_validate import cross_validate
from petriscope.experiments.pools import open_pool
from petriscope.experiments.ray_cluster import look_from
from petriscope.experiments.suite import load_suite
from petriscope.experiments.train import train
from petriscope.experiments.tune import tune
from petriscope.run.folder import Run
from ray_jobs import SMALL, assert_same_runs, changed, command, processes_on, wait_for, write_suite

ray = pytest.importorskip("ray")
pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/cmdline").is_file(), reason="needs /proc to find processes"),
    pytest.mark.timeout(900),  # Ray starts many processes, which takes long where all cores are busy
]


@pytest.fixture
def write(tiny_recipe, tmp_path, monkeypatch):
    """Write a suite beside a recipe file, and give its path."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return partial(write_suite, tmp_path, tiny_recipe())


@pytest.fixture(scope="module")
def cluster():
    """A cluster on this machine with room for two jobs, and its address."""
    ray_cluster.import_ray()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # else a token is written into the home folder
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "CRITICAL"}
    ray.init(address="local", num_cpus=2, **quiet, **SMALL)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.mark.slow
def test_a_suite_is_trained_as_by_one_process_though_a_training_is_killed(write, tmp_path, cluster, capsys):
    long, bad = changed(training__epochs=40), changed(optimizer__lr=1e30)
    path = write({"short": "tiny.yaml", "long": long, "bad": bad}, training__checkpoint_seconds=0.3)
    suite, out = load_suite(path), tmp_path / "out"
    victims = []

    def kill():
        wait_for(lambda: len(Run(out / "long-seed0").history) > 1)
        victims.append(processes_on(out)["long-seed0"])
        os.kill(victims[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    done = run_suite(suite, out, on="ray", quiet=True)
    killer.join()
    stdout, said = capsys.readouterr()
    assert not stdout, "it is for results"
    assert victims and "long-seed0: its process or node died on" in said and "it goes on on" in said
    assert list(done.failures) == ["bad, seed 0"] and "diverged" in done.failures["bad, seed 0"]
    assert [row.label for row in done.comparison.rows] == ["short", "long"]
    assert not list(out.glob(".*.tmp")), "no temporary folder is left"
    run_suite(suite, tmp_path / "alone", quiet=True)
    assert_same_runs(tmp_path / "alone", out)
    path = write({"short": "tiny.yaml", "long": long}, training__checkpoint_seconds=0.3)
    again = run_suite(load_suite(path), out, on="ray", quiet=True)
    assert again.failures == {} and "goes on" not in capsys.readouterr().err


def begin(suite, out, address):
    """Start a suite in a process of its own on the cluster, and wait until two runs are under way."""
    runs = [Run(out / f"{label}-seed0") for label in ("one", "two")]
    before = [len(run.history) if run.folder.exists() else 0 for run in runs]
    process = subprocess.Popen(
        command(suite, out), env={**os.environ, "RAY_ADDRESS": address}, stderr=subprocess.PIPE, text=True
    )

    def under_way():
        assert process.poll() is None, process.stderr.read()
        return all(len(run.history) > count for run, count in zip(runs, before, strict=True))

    wait_for(under_way)
    return process, runs


@pytest.mark.slow
def test_ctrl_c_stops_all_and_leaves_runs_that_go_on(write, tmp_path, cluster):
    suite, out = write({"one": "tiny.yaml", "two": changed(model__hidden=4)}, training__epochs=4000), tmp_path / "out"
    process, runs = begin(suite, out, cluster)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=400)[1]
    assert process.returncode == 130 and "the same command continues" in said
    assert not processes_on(out)
    assert all(run.checkpoint.is_file() and not run.finished for run in runs)
    noise = [line for line in said.splitlines() if "[20" in line or "Warning" in line or "ray::" in line]
    assert not noise


@pytest.mark.slow
def test_trainings_end_with_the_one_that_started_them(write, tmp_path, cluster):
    suite, out = write({"one": "tiny.yaml", "two": changed(model__hidden=4)}, training__epochs=4000), tmp_path / "out"
    process, runs = begin(suite, out, cluster)
    process.kill()
    process.wait()
    wait_for(lambda: not processes_on(out))
    assert all(run.checkpoint.is_file() for run in runs)
    process, _ = begin(suite, out, cluster)  # they have gone on
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=200)
    assert process.returncode == 130


@pytest.mark.slow
def test_a_search_runs_on_the_cluster(tiny_recipe, tmp_path, cluster):
    space = {"optimizer.lr": {"low": 1e-3, "high": 0.1, "log": True}}
    found = tune(tiny_recipe(), space, tmp_path / "out", trials=3, best=0, on="ray", jobs=1, quiet=True)
    alone = tune(tiny_recipe(), space, tmp_path / "alone", trials=3, best=0, quiet=True)
    assert [(each.drawn, each.value) for each in found.trials] == [(each.drawn, each.value) for each in alone.trials]
    assert not (tmp_path / "alone" / "worker-1.log").exists() and (tmp_path / "out" / "worker-1.log").is_file()


@pytest.mark.slow
def test_sqlite_is_refused_where_several_machines_would_share_it(tiny_recipe, tmp_path, cluster, monkeypatch):
    monkeypatch.setattr(ray_cluster.Cluster, "hosts", 2)
    with pytest.raises(RequestError, match=r"2 machines, and SQLite.*--storage postgresql"):
        tune(tiny_recipe(), "auto", tmp_path / "out", trials=3, on="ray")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_nodes_that_cannot_run_a_job_are_named_before_anything_starts(write, tmp_path, cluster, monkeypatch):
    suite, out = load_suite(write({"plain": "tiny.yaml"})), tmp_path / "out"
    with pytest.raises(RequestError, match=r"no node of the Ray cluster has the 64 CPUs and 0 GPUs of a job"):
        run_suite(suite, out, on="ray", cpus=64, quiet=True)
    monkeypatch.setattr(ray_cluster, "_versions", lambda: {"torch": "1.0"})
    with pytest.raises(RequestError, match=rf"node {re.escape(socket.gethostname())} .*it has torch 2.*has 1\.0"):
        run_suite(suite, out, on="ray", quiet=True)
    assert [path.name for path in out.iterdir()] == [".lock"]


def test_what_a_node_looks_for(tmp_path):
    there = str(tmp_path / "data.npz")
    Path(there).touch()
    versions = ray_cluster._versions()
    assert look_from(tmp_path, [there], versions)() == ""
    assert look_from(tmp_path, [there], {**versions, "torch": versions["torch"] + "+other"})() == "", "the same release"
    assert "has Python" in look_from(tmp_path, [], {"Python": "3.1.4"})()
    assert "has petriscope" in look_from(tmp_path, [], {"petriscope": "0.0.1"})()
    assert "no-such-package is not installed there" in look_from(tmp_path, [], {"no-such-package": "1"})()
    said = look_from(tmp_path / "out" / ".jobs.tmp", [], versions)()
    assert f"does not see the folder {tmp_path / 'out'}" in said and "--out" in said
    said = look_from(tmp_path, [there, str(tmp_path / "gone"), str(tmp_path / "too")], versions)()
    assert f"does not see {tmp_path / 'gone'} and 1 more" in said


@pytest.mark.parametrize(
    ("on", "said"),
    [
        ("slurm", "--on cannot be 'slurm'; give ray, or ray://HOST:PORT"),
        ("ray://", "--on cannot be 'ray://'"),
        ("http://head:8265", "--on cannot be"),
        ("ray://127.0.0.1:no", "is no address of a Ray cluster"),
        ("ray://127.0.0.1:1", "there is no Ray cluster at ray://127.0.0.1:1 "),
        ("ray://no.such.host.invalid", "there is no Ray cluster at ray://no.such.host.invalid:10001 "),
    ],
)
def test_wrong_addresses_get_a_sentence_soon(on, said, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    started = time.monotonic()
    with pytest.raises(RequestError, match=re.escape(said)), open_pool(on):
        pass
    assert time.monotonic() - started < 60


def test_a_cluster_that_has_ended_is_told_from_none(monkeypatch, tmp_path):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
    with pytest.raises(RequestError, match=r"no Ray cluster at 127\.0\.0\.1:1 .*ray stop"), open_pool("ray"):
        pass


def test_without_ray_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PetriscopeError, match=r"pip install 'petriscope\[ray\]'"), open_pool("ray"):
        pass


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"on": None, "cpus": 2}, "give --on ray"),
        ({"on": None, "jobs": 0}, "jobs must be at least 1"),
        ({"on": "ray", "gpus": -1.0}, "gpus must be at least 0"),
        ({"on": "ray", "gpus": float("nan")}, "gpus must be at least 0"),
    ],
)
def test_numbers_that_cannot_be(request_, said):
    with pytest.raises(RequestError, match=said), open_pool(**request_):
        pass


def test_what_a_process_said_last_is_its_error(tmp_path, capsys):
    log = tmp_path / "log"
    assert "status 137" in error_in(log, 137)
    log.write_text("loading\nerror: no images\nin the folder\n")
    assert error_in(log, 2) == "no images\nin the folder"
    log.write_text("Traceback\nValueError: odd")
    assert error_in(log, 1) == "ValueError: odd" and "Traceback" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_folds_are_trained_on_the_cluster_as_by_one_process(tiny_recipe, tmp_path, cluster, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    recipe, out = tiny_recipe(training={"epochs": 2}), tmp_path / "out"
    alone = cross_validate(recipe, 2, out=tmp_path / "alone", quiet=True)
    run = cross_validate(recipe, 2, out=out, quiet=True, on="ray")
    assert_same_runs(tmp_path / "alone", out)
    assert run.results.cross_validation.pooled == alone.results.cross_validation.pooled
    before = (out / "repeat1-fold1" / "model.safetensors").stat().st_mtime_ns
    for name in ("final", "repeat1-fold2"):
        shutil.rmtree(out / name)
    cross_validate(recipe, 2, out=out, quiet=True, on="ray", jobs=1)
    assert_same_runs(tmp_path / "alone", out)
    assert (out / "repeat1-fold1" / "model.safetensors").stat().st_mtime_ns == before, "it was finished"


@pytest.mark.slow
def test_shards_are_predicted_on_the_cluster(tiny_recipe, tmp_path, cluster):
    run = train(tiny_recipe(training={"epochs": 1}), tmp_path / "run", quiet=True)
    images = np.random.default_rng(0).integers(0, 255, (12, 12, 12, 3), np.uint8)
    (tmp_path / "cells").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "cells" / f"{number:02d}.png")
    api.predict_in_shards(run.folder, tmp_path / "cells", tmp_path / "out", 3, on="ray", jobs=1, quiet=True)
    rows = [pd.read_parquet(path) for path in sorted((tmp_path / "out").glob("shard-*.parquet"))]
    assert len(rows) == 3
    assert [Path(path).name for path in pd.concat(rows)["image"]] == [f"{number:02d}.png" for number in range(12)]
