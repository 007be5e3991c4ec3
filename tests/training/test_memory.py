"""Memory: estimated before anything is built, refused with what to lower, and named where it runs out."""

from __future__ import annotations

import pytest
import torch

from petriscope import api
from petriscope.core.device import enough_memory, is_out_of_memory
from petriscope.core.errors import PetriscopeError, RequestError
from petriscope.core.recipe import Part, check_recipe
from petriscope.data import load_dataset
from petriscope.models import MODELS, build_model, sketch_model
from petriscope.models.cost import memory
from petriscope.training import build
from petriscope.training.build import check_memory
from petriscope.training.loop import Trainer

CPU = torch.device("cpu")
PARTS = [
    Part(name="simple-cnn", norm="batch"),
    Part(name="d4-resnet", widths=[8, 16], depths=[1, 1]),
    Part(name="unet", widths=[4, 8]),
]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_the_estimate_is_what_a_step_keeps(part):
    before = torch.get_rng_state()
    found = memory(sketch_model(part, 3, (32, 32, 3)).train(), (32, 32, 3))
    assert torch.equal(torch.get_rng_state(), before)  # weights start as they would without an estimate
    model, kept = build_model(part, 3, (32, 32, 3), fresh=False).train(), {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.zeros(16, 3, 32, 32))
    real = sum(storage.nbytes() for storage in kept.values()) / 16
    assert 0.5 < found.step / real < 2
    assert found.weights == found.trained == 4 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"data": {"size": 96}},
            r"step of training .* of 96x96 .*--set data\.size=\d+ or --set training\.batch_size=\d+",
        ),
        (
            {"model": Part(name="simple-cnn", widths=[100_000, 100_000, 8])},
            r"model\.widths=\[100000, 100000, 8\].* weights",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_made(tiny_recipe, tmp_path, monkeypatch, changes, says):
    monkeypatch.setattr(build, "free_memory", lambda device: 4 * 2**20)
    with pytest.raises(RequestError, match=says):
        api.train(tiny_recipe(**changes), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_batches_of_predictions_count_too(tiny_recipe, monkeypatch):
    recipe = tiny_recipe(training={"batch_size": 1})
    monkeypatch.setattr(build, "free_memory", lambda device: 2**17)
    with pytest.raises(RequestError, match=r"batch of predictions .*evaluation\.batch_size"):
        check_memory(recipe, load_dataset(recipe.data), CPU)


def test_a_small_training_fits(tiny_recipe):
    recipe = tiny_recipe()
    assert 0 < check_memory(recipe, load_dataset(recipe.data), CPU) < 50 * 2**20


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried ..."
        ),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 58.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_memory_that_runs_out_names_what_to_lower(tiny_recipe, tmp_path, monkeypatch, error):
    def full(*args):
        raise error

    monkeypatch.setattr(Trainer, "train_step", full)
    with pytest.raises(PetriscopeError, match=r"memory .*data\.size .*training\.batch_size"):
        api.train(tiny_recipe(), tmp_path / "run", quiet=True)


def test_other_errors_are_left_alone():
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    with pytest.raises(RuntimeError, match="shape"), enough_memory():
        raise RuntimeError("shape mismatch")


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 10**21, 1e21, -1])
@pytest.mark.parametrize(
    "key",
    ["training.epochs", "training.batch_size", "training.images_per_epoch", "training.checkpoint_seconds", "training.l1",
     "training.patience", "training.clip_grad_norm", "data.size", "data.block", "data.split_seed", "evaluation.batch_size",
     "finetune.unfreeze_every", "seed"],
)  # fmt: skip
def test_no_number_is_without_bounds(key, value):
    section, _, name = key.rpartition(".")
    with pytest.raises(RequestError, match=name):
        check_recipe({section: {name: value}} if section else {name: value})


@pytest.mark.parametrize("name", ["simple-cnn", "se-cnn", "d4-resnet", "vgg", "unet", "autoencoder", "custom-cnn"])
@pytest.mark.parametrize("value", [-1, 0, 10**9, float("nan"), 1e21])
def test_no_width_is_without_bounds(name, value):
    with pytest.raises(RequestError, match="widths"):
        MODELS.check(Part(name=name, widths=[value, 8, 8]))


def test_a_list_of_options_has_an_end():
    with pytest.raises(RequestError, match="at most 10,000 entries"):
        MODELS.check(Part(name="custom-cnn", widths=[8] * 20_000))
    with pytest.raises(RequestError, match="depths"):
        MODELS.check(Part(name="se-cnn", depths=[100_000, 1, 1]))
