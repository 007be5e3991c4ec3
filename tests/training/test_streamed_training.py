"""Training on shards that are streamed: it resumes within an epoch, reads only what is left of it, and is one experiment on the
disk and at an address."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from petriscope import api
from petriscope.data import streamed
from petriscope.data.streamed import Shard, windowed
from petriscope.training.loop import Trainer
from tar_shards import write_shards


@pytest.fixture
def shards(tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny set in shards of 40 images, in blocks of 10."""
    monkeypatch.setenv("PETRISCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(streamed, "BLOCK_IMAGES", 10)
    monkeypatch.setattr(streamed, "LEAD", 0)
    monkeypatch.setattr(streamed, "AHEAD", 1)
    folder = tmp_path / "shards"
    with np.load(tiny_npz) as arrays:
        for split in ("train", "val", "test"):
            write_shards(folder, split, arrays[f"{split}_images"], arrays[f"{split}_labels"].ravel())
    return folder


def test_stopped_within_an_epoch_it_ends_bit_for_bit_the_same(shards, tiny_recipe, tmp_path, monkeypatch):
    recipe = tiny_recipe(
        data={"source": str(shards), "stream": {"window": 30}},
        training={"images_per_epoch": 96, "swa": 0.5, "ema": None, "batch_size": 8},
    )
    whole = api.train(recipe, tmp_path / "whole", quiet=True)
    steps, images = Trainer.train_step, Shard.images
    seen: list[torch.Tensor] = []
    read: Counter[tuple[str, int]] = Counter()

    def stop(self, batch, targets):
        if self._step == 18:
            raise RuntimeError("killed")
        return steps(self, batch, targets)

    monkeypatch.setattr(Trainer, "train_step", stop)
    with pytest.raises(RuntimeError, match="killed"):
        api.train(recipe, tmp_path / "killed", quiet=True)
    monkeypatch.setattr(
        Trainer, "train_step", lambda self, *batch: seen.append(batch[0].clone()) or steps(self, *batch)
    )
    monkeypatch.setattr(
        Shard,
        "images",
        lambda self, number, *rest: (
            (len(seen) < 6 and read.update([(self.name, number)])) or images(self, number, *rest)
        ),
    )
    resumed = api.resume(tmp_path / "killed", quiet=True)
    one, two = load_file(resumed.model), load_file(whole.model)
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    with np.load(tmp_path / "tiny.npz") as arrays:
        train = arrays["train_images"]
    order = windowed(np.repeat(np.arange(12), 10), 30, recipe.seed, 1, 96)
    assert all((batch.numpy() == train[order[48 + 8 * k :][:8]]).all() for k, batch in enumerate(seen[:6]))
    left = {*(order[48:] // 10).tolist()}  # of the epoch; those before are not read
    assert {*read.values()} == {1} and len(read) <= len(left) < 12


def test_the_same_weights_from_an_address(shards, tiny_recipe, tmp_path):
    system = pytest.importorskip("fsspec").filesystem("memory")
    for path in shards.iterdir():
        system.pipe_file(f"/tiny/{path.name}", path.read_bytes())
    runs = []
    for name, source in (("disk", str(shards)), ("address", "memory://tiny")):
        recipe = tiny_recipe(data={"source": source, "stream": True}, training={"epochs": 1})
        runs.append(api.train(recipe, tmp_path / name, quiet=True))
    system.store.clear()
    one, two = (load_file(run.model) for run in runs)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not (tmp_path / "cache/remote").exists()
