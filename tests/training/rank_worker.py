"""Trains in float64 as one of the processes that torchrun started: ``rank_worker.py OUT CASE...``. The first writes the weights
and the history of each case to OUT.

Augmentation is computed in float32 as always; each process has the whole batch, so it is the same to the last bit.
"""

import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from petriscope.core.errors import PetriscopeError, RequestError
from petriscope.core.files import json_text
from petriscope.core.ranks import joined, leave
from petriscope.core.recipe import load_recipe
from petriscope.data import load_dataset
from petriscope.training import build

LABELS = {
    "data": {"source": "synthetic-smear:160", "size": 16},
    "augment": ["flip", {"name": "rotate", "degrees": 20}, "brightness", "noise", {"name": "mixup", "alpha": 0.4}],
    "loss": {"name": "cross-entropy", "class_weights": "balanced", "label_smoothing": 0.1},
}
MASKS = {
    "data": {"source": "synthetic-terrain:80", "size": [8, 12]},
    "augment": ["flip", {"name": "rotate", "degrees": 20}, "cutmix"],
    "model": {"name": "unet", "widths": [4, 8], "dropout": 0.2},
    "loss": {"name": "sum", "terms": [{"name": "cross-entropy", "class_weights": "median-frequency"}, "dice"]},
}
STREAMED = "shards"  # in the working folder
SMALL = {"name": "simple-cnn", "norm": "batch", "widths": [4, 8, 8], "hidden": 8, "dropout": 0.2}
CASES = {
    "averaged": {
        **LABELS,
        "model": SMALL,
        "sampler": "weighted",
        "training": {"ema": 0.9, "swa": 0.6, "clip_grad_norm": 1.0, "l1": 1e-4, "l2": 1e-4},
    },
    "streamed": {**LABELS, "model": SMALL, "data": {"source": STREAMED, "stream": {"window": 60}}},
    "masks": {**MASKS, "training": {"swa": 0.6}},
    "lovasz": {**MASKS, "loss": "lovasz"},
    "frozen": {
        **LABELS,
        "model": SMALL,
        "finetune": {"train": "last 1 blocks", "then": [{"epoch": 3, "train": "all", "lr": 0.5}]},
    },
    "views": {
        **LABELS,
        "augment": ["flip", "aug-mix"],
        "loss": {"name": "consistency", "of": "focal"},
        "model": {"name": "d4-resnet", "widths": [8, 16], "depths": [1, 1], "drop_path": 0.4, "dropout": 0.2},
    },
    "own loss": {**LABELS, "model": {"name": "autoencoder", "widths": [4, 8], "hidden": 8, "dropout": 0.2}},
    "head": {**LABELS, "augment": [], "model": SMALL | {"dropout": 0.0}, "finetune": {"train": "head"}},
}


def in_doubles(recipe, ranks):
    """A trainer whose network, loss and averages are in float64."""
    made, dataset = build.build_model, load_dataset(recipe.data)
    with patch.object(build, "build_model", lambda *args: made(*args).double()):
        trainer, normalize = build.build_trainer(recipe, dataset, torch.device("cpu"), quiet=True, ranks=ranks)
    trainer.normalize = lambda images: normalize(images).double()
    with patch.object(torch.Tensor, "float", torch.Tensor.double):
        trainer.run_backbone_once()  # whose features are kept, if only the head is trained
    trainer._prepared = True
    scale, augmented, normalized, step = trainer.scale, trainer.augmented, trainer.normalize, trainer.step_model
    trainer.loss.double()
    trainer.scale = lambda images: scale(images).double()
    trainer.normalize = lambda images: normalized(images).double()

    def step_in_doubles(images):
        with patch.object(torch.Tensor, "float", torch.Tensor.double):  # for losses of models
            return step(images.double())

    trainer.step_model = step_in_doubles

    def augmented_in_doubles(*args):
        images, targets = augmented(*args)
        return images, targets.double() if targets.is_floating_point() else targets

    trainer.augmented = augmented_in_doubles
    return trainer


def trained(cases, ranks):
    """The weights, averaged weights and history of each case after 20 steps, and how far the weights moved."""
    arrays = {}
    for name in cases:
        tree = CASES[name]
        settings = {"epochs": 5, "batch_size": 15, "images_per_epoch": 60, "precision": "fp32", "device": "cpu"}
        common = {
            "name": name,
            "training": {**settings, **tree.get("training", {})},
            "evaluation": {"bootstrap": 100, "batch_size": 31, "stress": "off"},
            "optimizer": {"name": "sgd", "lr": 0.05},
            "schedule": "constant",
        }
        trainer = in_doubles(load_recipe("demo", **{**tree, **common}), ranks)
        begun = {key: value.clone() for key, value in trainer.model.state_dict().items()}
        trainer.fit()
        kept = {"model": trainer.model, **({"ema": trainer.ema.model} if trainer.ema else {})}
        kept |= {"swa": trainer.swa.model} if trainer.swa else {}
        for part, model in kept.items():
            for key, value in model.state_dict().items():
                arrays[f"{name}/{part}/{key}"] = value.numpy().copy()
        weights = trainer.model.named_parameters()
        arrays[f"{name}/moved"] = np.array(max(float((p.detach() - begun[key]).abs().max()) for key, p in weights))
        history = [{key: line[key] for key in ("train", "val", "lr")} for line in trainer.at.history]
        arrays[f"{name}/history"] = np.array(json_text(history))
    return arrays


def exchanged(ranks):
    """What the first process knows after exchanges with the others, and the errors that it is told."""
    rows = torch.arange(14.0).reshape(7, 2)
    found = {
        "rows": ranks.joined_rows(ranks.part(rows), 7).numpy(),
        "texts": np.array(ranks.texts("" if ranks.rank == 1 else f"é {ranks.rank}")),
        "any": np.array([ranks.any(ranks.rank == 1), ranks.any(False)]),
    }
    for name, error in (("alone", "no such folder"), ("all", "no such recipe")):
        try:
            with ranks.together():
                if name == "all" or ranks.rank == 1:
                    raise RequestError(error)
        except RequestError as told:
            found[name] = np.array(str(told))
    try:
        ranks.agree("read the same data", data=f"set {min(ranks.rank, 1)}")
    except PetriscopeError as told:
        found["differ"] = np.array(str(told))
    try:
        with ranks.together("reading" if ranks.rank == 1 else "drawing"):
            pass
    except PetriscopeError as told:
        found["unlike"] = np.array(str(told))
    rows = rows.numpy()
    found["odd"], found["none"] = ranks.spread_arrays("rows", 7, lambda own: [rows[own] % 3 == 1, rows[own, :0]])
    (found["few"],) = ranks.spread_arrays("one row", 1, lambda own: [rows[own]])
    return {f"said/{name}": value for name, value in found.items()}


def main():
    torch.set_num_threads(1)
    with joined() as ranks:
        arrays = {**exchanged(ranks), **trained(sys.argv[2:], ranks)}
        if ranks.first:
            np.savez(Path(sys.argv[1]), **arrays)
    leave()
    if left := [
        name for task in Path("/proc/self/task").glob("*/comm") if "gloo" in (name := task.read_text().strip())
    ]:
        raise SystemExit(f"threads outlive the group of processes, and may abort while Python ends: {', '.join(left)}")


if __name__ == "__main__":
    main()
