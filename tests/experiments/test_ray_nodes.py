"""A suite on a Ray cluster of two nodes, of which one dies.

This test has a file of its own, so that no cluster of another test lives in its process: Ray ends a process that is connected
to a node when it takes that node for dead.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from petriscope.experiments import ray_cluster
from petriscope.experiments.bench import run_suite
from petriscope.experiments.suite import load_suite
from petriscope.run.folder import Run
from ray_jobs import SMALL, assert_same_runs, changed, command, processes_on, wait_for, write_suite

pytest.importorskip("ray")


def ancestors(process):
    """The processes that one comes from."""
    while process > 1:
        try:
            process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended meanwhile
            return
        yield process


@pytest.mark.skipif(not Path("/proc/self/cmdline").is_file(), reason="needs /proc to find processes")
@pytest.mark.slow
@pytest.mark.timeout(800)
def test_a_node_that_dies_costs_a_restart_and_no_result(tiny_recipe, tmp_path, monkeypatch):
    from ray.cluster_utils import Cluster

    methods = {
        "plain": "tiny.yaml",
        "small": changed(model__hidden=4),
        "fast": changed(optimizer__lr=0.03),
        "long": changed(training__epochs=30),
    }
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path = write_suite(
        tmp_path, tiny_recipe(), methods, seeds=(0, 1, 2), training__epochs=10, training__checkpoint_seconds=0.3
    )
    suite, out = load_suite(path), tmp_path / "out"
    ray_cluster.import_ray()
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # else a token is written into the home folder
    nodes, process = Cluster(), None
    try:
        nodes.add_node(num_cpus=1, include_dashboard=False, **SMALL)
        victim = nodes.add_node(num_cpus=1, **SMALL)
        process = subprocess.Popen(
            command(path, out), env={**os.environ, "RAY_ADDRESS": nodes.address}, stderr=subprocess.PIPE, text=True
        )
        (raylet,) = victim.all_processes["raylet"]

        def trains_there():
            assert process.poll() is None, process.stderr.read()
            return any(
                raylet.process.pid in ancestors(training) and (out / name).exists() and Run(out / name).history
                for name, training in processes_on(out).items()
            )

        wait_for(trains_there)
        nodes.remove_node(victim, allow_graceful=False)
        said = process.communicate(timeout=400)[1]
    finally:
        if process is not None:
            process.kill()
        nodes.shutdown()
    assert process.returncode == 0, said
    assert "it goes on on" in said
    assert len(list(out.glob("*/report.html"))) == 12
    run_suite(suite, tmp_path / "alone", quiet=True)
    assert_same_runs(tmp_path / "alone", out)
