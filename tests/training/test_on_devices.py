"""Training, evaluation and prediction on every device. Short enough for a GPU that is there for minutes."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from devices import DEVICES, on_every_device, queued
from petriscope import api
from petriscope.core import device as devices
from petriscope.core.device import free_memory
from petriscope.core.recipe import load_recipe
from petriscope.data import batches as batches_module
from petriscope.data import load_dataset
from petriscope.data.batches import Batches
from petriscope.data.imageset import ImageSet
from petriscope.training import loop
from petriscope.training.build import build_trainer
from petriscope.training.loop import Trainer

GPUS = [device for device in DEVICES if device in ("cuda", "mps")]
LABELS = {
    "data": {"source": "synthetic-smear:60", "size": 16},
    "model": {"name": "simple-cnn", "norm": "batch", "dropout": 0.2, "widths": [4, 8, 8], "hidden": 8},
    "augment": ["flip", {"name": "rotate", "degrees": 20}, "hue", "blur", "cutout", "stain-jitter", "cutmix"],
    "loss": {"name": "cross-entropy", "label_smoothing": 0.1, "class_weights": "balanced"},
}
MASKS = {
    "data": {"source": "synthetic-terrain:40", "size": [16, 16]},
    "model": {"name": "unet", "widths": [4, 8]},
    "augment": ["flip", {"name": "crop-around", "classes": [1], "p": 1}, {"name": "copy-paste", "classes": [3]}],
    "loss": {"name": "sum", "terms": [{"name": "cross-entropy", "borders": 2}, "dice", "lovasz"]},
}


def recipe(kind, device, precision="fp32", **more):
    tree = {
        **kind,
        "optimizer": {"name": "adamw", "lr": 0.01},
        "schedule": "one-cycle",
        "training": {
            **{"epochs": 2, "batch_size": 8, "ema": 0.9, "clip_grad_norm": 1, "checkpoint_seconds": 0},
            **{"precision": precision, "device": device},
        },
        "evaluation": {"bootstrap": 100, "stress": "off"},
        **more,
    }
    return load_recipe("demo", **tree)


def same(one, other):
    a, b = load_file(one.model), load_file(other.model)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@on_every_device
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", [LABELS, MASKS], ids=["labels", "masks"])
def test_a_step_waits_for_nothing(kind, precision, device, monkeypatch):
    if device == "meta":
        monkeypatch.setattr(loop, "autocast", lambda device, number_format: nullcontext())
        for name in ("crop_around", "occlusion"):  # torch has no random generator on meta
            monkeypatch.setattr(f"petriscope.augment.{name}.elsewhere", lambda device, generator: None)
    wanted = recipe(kind, "cpu", precision)
    trainer, _ = build_trainer(wanted, load_dataset(wanted.data), torch.device(device), quiet=True)
    for number, indices in enumerate(trainer.epoch_batches(0)[:3]):
        with nullcontext() if number == 0 else queued(device):  # the first step makes constants and moments
            found = trainer.train_step(*trainer.train.take(indices))
        trainer.at.batch += 1
    assert found.shape == (4,) and found.device.type == device
    assert device == "meta" or found.isfinite().all()


@pytest.mark.parametrize("memory", ["auto", "resident", "mapped"])
@pytest.mark.parametrize("room", [0, 10**9])
def test_images_are_kept_where_a_device_has_room_for_them(room, memory, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(batches_module, "free_memory", lambda device: asked.append(device) or room)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 4, 5, 3), dtype=np.uint8)
    np.save(tmp_path / "x.npy", pixels)
    for array in (pixels, np.load(tmp_path / "x.npy", mmap_mode="r")):
        images = ImageSet(array, np.arange(9) % 2, ("a", "b"), np.arange(9).astype(str))
        batches = Batches(images, torch.device("meta"), memory)
        kept = memory == "resident" or (memory == "auto" and room > 0)
        assert (batches._resident is not None) == kept
        some = [np.array([3, 1]), np.array([8])]
        assert [tuple(found.shape) for found, _ in batches.iterate(some)] == [(2, 4, 5, 3), (1, 4, 5, 3)]
        on_cpu = Batches(images, torch.device("cpu"), memory)
        assert (on_cpu._resident is not None) == (memory == "resident" or not images.mapped)
        for indices, (found, targets) in zip(some, on_cpu.iterate(some), strict=True):
            assert np.array_equal(found, pixels[indices]) and targets.tolist() == (indices % 2).tolist()
    assert set(asked) <= {torch.device("meta")} and bool(asked) == (memory == "auto")


def test_free_memory_is_that_of_the_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (123, 456))
    assert free_memory(torch.device("cuda")) == 123
    assert devices.free_memory(torch.device("cpu")) > 456


@pytest.mark.skipif(not GPUS, reason="no GPU here")
class TestOnAGPU:
    @pytest.mark.parametrize("device", GPUS)
    @pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
    @pytest.mark.parametrize("kind", [LABELS, MASKS], ids=["labels", "masks"])
    def test_a_run_is_trained_evaluated_and_used(self, kind, precision, device, tmp_path):
        run = api.train(
            recipe(kind, device, precision, evaluation={"bootstrap": 100, "stress": "val", "tta": "d4"}),
            tmp_path / "run",
            quiet=True,
        )
        assert run.finished and run.results.val.n
        api.evaluate(run.folder, quiet=True)
        if kind is LABELS:
            api.calibrate(run.folder, tta="crops", quiet=True)

    @pytest.mark.parametrize("device", GPUS)
    @pytest.mark.parametrize("kind", [LABELS, MASKS], ids=["labels", "masks"])
    def test_a_run_that_was_killed_ends_bit_for_bit_the_same(self, kind, device, tmp_path, monkeypatch):
        monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
        plain = recipe({**kind, "augment": ["flip"], "loss": "cross-entropy"}, device)
        whole, again = (api.train(plain, tmp_path / name, quiet=True) for name in ("whole", "again"))
        if not same(whole, again):
            pytest.skip("training is not deterministic on this device")
        steps, count = Trainer.train_step, iter(range(100))

        def killed(self, images, targets):
            if next(count) == 4:
                raise RuntimeError("killed")
            return steps(self, images, targets)

        monkeypatch.setattr(Trainer, "train_step", killed)
        with pytest.raises(RuntimeError, match="killed"):
            api.train(plain, tmp_path / "broken", quiet=True)
        monkeypatch.setattr(Trainer, "train_step", steps)
        assert same(api.resume(tmp_path / "broken", quiet=True), whole)
