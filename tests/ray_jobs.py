"""What tests of jobs on a Ray cluster share."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file

from petriscope.run.folder import Run

SMALL = {"object_store_memory": 80 * 2**20}  # about the least that Ray takes


def write_suite(folder, recipe, methods, seeds=(0,), **settings):
    """Write a suite beside the file of a recipe, tiny.yaml, and give its path."""
    (folder / "tiny.yaml").write_text(recipe.to_yaml())
    path = folder / "trial.yaml"
    changes = {key.replace("__", "."): value for key, value in settings.items()}
    tree = {"seeds": list(seeds), "methods": methods, "set": changes}
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def changed(**settings):
    return {"recipe": "tiny.yaml", "set": {key.replace("__", "."): value for key, value in settings.items()}}


def processes_on(folder):
    """The processes that train runs in a folder, by run."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended meanwhile
            continue
        if "train" in words:
            for word in words:
                if Path(word).parent == folder and not word.endswith(".yaml"):
                    found[Path(word).name] = int(entry.parent.name)
    return found


def wait_for(what, limit=400):
    until = time.monotonic() + limit
    while not what():
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.05)


def assert_same_runs(one, other):
    """Weights and history of the finished runs are equal, bit for bit."""
    runs = sorted(path.parent.name for path in one.glob("*/report.html"))
    assert runs and runs == sorted(path.parent.name for path in other.glob("*/report.html"))
    for name in runs:
        weights, others = load_file(one / name / "model.safetensors"), load_file(other / name / "model.safetensors")
        assert weights.keys() == others.keys()
        assert all(torch.equal(weights[key], others[key]) for key in weights), name
        losses = [[(line.train, line.val) for line in Run(where / name).history] for where in (one, other)]
        assert losses[0] == losses[1], name


def command(suite, out, *more):
    return [sys.executable, "-m", "petriscope", "bench", str(suite), "--out", str(out), "--on", "ray", *more]
