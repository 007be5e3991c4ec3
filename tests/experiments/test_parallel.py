"""Simultaneous trainings: they give the same runs as trainings one after the other, and no process is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from petriscope.experiments import bench
from petriscope.experiments.bench import run_suite
from petriscope.experiments.suite import load_suite
from petriscope.run.folder import Run


@pytest.fixture
def write(tiny_recipe, tmp_path, monkeypatch):
    """Write a suite of one seed beside a recipe file, and give its path."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "tiny.yaml").write_text(tiny_recipe().to_yaml())

    def make(methods, **settings):
        path = tmp_path / "trial.yaml"
        path.write_text(yaml.safe_dump({"seeds": [0], "methods": methods, "set": settings}, sort_keys=False))
        return path

    return make


@pytest.mark.slow
def test_two_at_a_time_leave_what_one_after_the_other_leaves(write, tmp_path, capsys, monkeypatch):
    both = {"ensemble": "soft", "of": ["tiny.yaml", {"recipe": "tiny.yaml", "set": {"model.hidden": 4}}]}
    bad = {"recipe": "tiny.yaml", "set": {"optimizer.lr": 1e30}}
    methods = {"plain": "tiny.yaml", "bad": bad, "both": both}
    suite, out = load_suite(write(methods, **{"training.epochs": 2})), tmp_path / "out"
    for name in ("train", "resume"):
        monkeypatch.setattr(bench, name, lambda *a: pytest.fail("trained in this process"))
    outcome = run_suite(suite, out, quiet=True, jobs=2)
    assert list(outcome.failures) == ["bad, seed 0"] and "diverged" in outcome.failures["bad, seed 0"]
    assert "failed: bad, seed 0" in capsys.readouterr().err
    assert [row.label for row in outcome.comparison.rows] == ["plain", "both"]
    assert len(Run(out / "plain-seed0").history) == 2
    assert Run(out / "both-seed0-member2").recipe.model.options["hidden"] == 4
    monkeypatch.undo()
    alone = run_suite(
        load_suite(write({"plain": "tiny.yaml"}, **{"training.epochs": 2})), tmp_path / "alone", quiet=True
    )
    # Another number of threads may add in another order; the same training is the same to many digits all the same.
    losses = [[line.train["loss"] for line in Run(f / "plain-seed0").history] for f in (out, tmp_path / "alone")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert alone.failures == {}


@pytest.mark.parametrize(
    "told",
    [
        "all, as by Ctrl-C",
        pytest.param("the first alone", marks=pytest.mark.slow),
        pytest.param("the first by kill -9", marks=pytest.mark.slow),
    ],
)
def test_who_stops_it_stops_all_and_the_same_command_goes_on(write, tmp_path, told):
    methods = {"plain": "tiny.yaml", "small": {"recipe": "tiny.yaml", "set": {"model.hidden": 4}}}
    suite, out = write(methods, **{"training.epochs": 4000}), tmp_path / "out"
    command = [sys.executable, "-m", "petriscope", "bench", str(suite), "--out", str(out), "--jobs", "2"]
    runs = [Run(out / f"{label}-seed0") for label in methods]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, start_new_session=True) as parent:
        deadline = time.monotonic() + 120
        while not all(run.history for run in runs):
            assert parent.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        children = _children(parent.pid)
        assert len(children) == 2
        killed = told == "the first by kill -9"
        (os.killpg if told.startswith("all") else os.kill)(parent.pid, signal.SIGKILL if killed else signal.SIGINT)
        _, stderr = parent.communicate(timeout=120)
    if killed:
        assert parent.returncode == -signal.SIGKILL
        while any(_alive(child) for child in children):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    else:
        assert parent.returncode == 130
        assert "stopped during training" in stderr and "the same command continues" in stderr
    assert not any(_alive(child) for child in children)
    assert all(run.history and not run.finished for run in runs)


def _children(parent: int) -> list[int]:
    """Processes begun by one, where the system lists them."""
    if not Path("/proc/self/stat").is_file():
        pytest.skip("needs /proc")
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = entry.read_text().rpartition(")")[2].split()
        except OSError:  # ended meanwhile
            continue
        if int(after_name[1]) == parent:
            found.append(int(entry.parent.name))
    return found


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
