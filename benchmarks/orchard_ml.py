"""An epoch against orchard-ml: the same model, images, batches of 128, augmentation, sampler, SGD and cosine.

Orchard's model, built by orchard, for both. The recipe is the defaults of its configuration for BloodMNIST: horizontal
flip, rotation, color jitter, resized crop; a weighted sampler; SGD with momentum, weight decay and clipped gradients; a
cosine. Two things differ from them: batches are of 128, not 16; and MixUp is off, as it is in the BloodMNIST recipe of
orchard's repository. Orchard runs through its own loaders, transforms and trainer, with the
workers and threads that it picks; and with no workers, as in its reproducible mode, but without the deterministic
algorithms of that. Its numbers are fp32: on a CPU it turns mixed precision off.

Measured, the tools in turn: an epoch of training, without validation; and, once, a whole training of two epochs, from
the file on disk to the best weights: reading, loaders, model, training, validation, checkpoints. Petriscope in fp32 and
without averaging of the weights, so that only pipeline and loop differ; and as its recipes have it, in the number format
that it picks, with averaging.

What stays unlike: a random scale and shift of the same reach stand for the resized crop, without its change of aspect;
one resampling, reflecting at the border, stands for two, and color changes in a fixed order; the cosine moves with every
step, not every epoch; weight decay leaves out biases and norms; orchard's validation counts an AUC, ours does not.

    pip install orchard-ml
    python benchmarks/orchard_ml.py --data SOURCE
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from common import arguments, in_turn, load, print_machine, print_table, ratio
from petriscope.augment.pipeline import Normalize
from petriscope.core.recipe import DataSection, Part, Recipe, TrainingSection
from petriscope.data import Dataset, load_dataset
from petriscope.data.batches import Batches
from petriscope.data.normalization import mean_and_std
from petriscope.models.backbones import import_timm
from petriscope.training.loop import Trainer

import_timm()  # before torchvision, which may need its help
try:
    from orchard.architectures import get_model
    from orchard.core import LOGGER_NAME, Config, apply_cpu_threads, set_seed
    from orchard.core.io import md5_checksum
    from orchard.core.metadata.wrapper import get_registry
    from orchard.core.task_registry import get_task
    from orchard.data_handler import get_dataloaders
    from orchard.data_handler import load_dataset as inspect_dataset
    from orchard.trainer import ModelTrainer, get_optimizer, get_scheduler
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "orchard":
        raise
    raise SystemExit(
        "this benchmark measures against orchard-ml, which is not installed: pip install orchard-ml"
    ) from None

CPU = torch.device("cpu")
THREADS = torch.get_num_threads()


def write_npz(dataset: Dataset, path: Path, batch: int) -> None:
    """MedMNIST's layout, which both read. With ``images``, that many of each split at most."""
    arrays = {}
    for name in ("train", "val", "test"):
        images = dataset.split(name)
        kept = np.random.default_rng(0).permutation(len(images))[: batch or None]
        arrays |= {f"{name}_images": images.take(kept), f"{name}_labels": images.targets[kept, None].astype(np.uint8)}
    np.savez_compressed(path, **arrays)


def their_config(path: Path, dataset: Dataset, model: str, epochs: int) -> Config:
    """Orchard's configuration: its defaults but for what is named here. Its checksum is that of our file."""
    side = dataset.shape[0]
    mean, std = mean_and_std(dataset.split("train"))
    facts = {
        "path": path,
        "md5_checksum": md5_checksum(path),
        "classes": list(dataset.classes),
        "mean": mean,
        "std": std,
    }
    metadata = get_registry(side).get_dataset("bloodmnist").model_copy(update=facts)
    return Config(
        dataset={"name": "bloodmnist", "metadata": metadata, "resolution": side},
        architecture={"name": model},
        hardware={"device": "cpu"},
        training={
            "batch_size": 128,
            "epochs": epochs,
            "mixup_alpha": 0.0,
            "mixup_epochs": 0,
            "use_amp": False,  # what it comes to on a CPU, without the warning
            "use_tqdm": False,
        },
    )


def our_recipe(cfg: Config, as_shipped: bool) -> Recipe:
    """The same recipe in our words."""
    training, augmentation = cfg.training, cfg.augmentation
    jitter, crop = augmentation.jitter_val, 1 - augmentation.min_scale**0.5  # of the side
    plain = {} if as_shipped else {"precision": "fp32", "ema": None}
    return Recipe(
        seed=training.seed,
        sampler="weighted" if cfg.dataset.use_weighted_sampler else "none",
        augment=(
            Part(name="flip", horizontal=augmentation.hflip),
            Part(name="rotate", degrees=augmentation.rotation_angle),
            Part(name="scale", amount=crop),
            Part(name="translate", fraction=crop / 2, whole_pixels=False),
            *(Part(name=name, amount=jitter) for name in ("brightness", "contrast", "saturation")),
        ),
        loss=Part(name="cross-entropy", label_smoothing=training.label_smoothing),
        optimizer=Part(
            name="sgd", lr=training.learning_rate, momentum=training.momentum, weight_decay=training.weight_decay
        ),
        schedule=Part(name="cosine", final=training.min_lr / training.learning_rate),
        training=TrainingSection(
            epochs=training.epochs, batch_size=training.batch_size, clip_grad_norm=training.grad_clip, **plain
        ),
    )


def their_trainer(cfg: Config, workers: int, folder: Path) -> ModelTrainer:
    """As `orchard run` makes it."""
    apply_cpu_threads(workers)
    set_seed(cfg.training.seed)
    data = inspect_dataset(cfg.dataset.metadata)
    train, val, _ = get_dataloaders(data, cfg.dataset, cfg.training, cfg.augmentation, workers)
    model = get_model(CPU, cfg.dataset, cfg.architecture, verbose=False)
    task = get_task("classification")
    optimizer = get_optimizer(model, cfg.training)
    return ModelTrainer(
        model=model,
        train_loader=train,
        val_loader=val,
        optimizer=optimizer,
        scheduler=get_scheduler(optimizer, cfg.training),
        criterion=task.criterion_factory.get_criterion(cfg.training, class_weights=None),
        device=CPU,
        training=cfg.training,
        output_path=folder / "theirs.pth",
        training_step=task.training_step,
        validation_metrics=task.validation_metrics,
    )


def our_trainer(cfg: Config, as_shipped: bool, folder: Path, whole: bool) -> Trainer:
    """As `petriscope train` makes it, with orchard's model."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(cfg.training.seed)
    metadata = cfg.dataset.metadata
    dataset = load_dataset(DataSection(source=str(metadata.path), classes=tuple(metadata.classes)))
    train = dataset.split("train")
    model = get_model(CPU, cfg.dataset, cfg.architecture, verbose=False)
    val, checkpoint = None, None
    if whole:
        val, checkpoint = Batches(dataset.split("val"), CPU), folder / "ours.safetensors"
        checkpoint.unlink(missing_ok=True)
    recipe, normalize = our_recipe(cfg, as_shipped), Normalize(*mean_and_std(train))
    return Trainer(model, recipe, Batches(train, CPU), val, normalize, checkpoint, quiet=True)


def their_epoch(cfg: Config, workers: int, folder: Path) -> Callable[[], float]:
    trainer = their_trainer(cfg, workers, folder)

    def epoch() -> float:
        apply_cpu_threads(workers)
        start = time.perf_counter()
        trainer._loop.run_train_step(1)
        return time.perf_counter() - start

    return epoch


def our_epoch(cfg: Config, as_shipped: bool, folder: Path) -> tuple[Callable[[], float], str]:
    trainer = our_trainer(cfg, as_shipped, folder, whole=False)
    trainer.model.train()

    def epoch() -> float:
        torch.set_num_threads(THREADS)
        start = time.perf_counter()
        trainer._run_epoch(threading.Event())
        return time.perf_counter() - start

    return epoch, trainer.format


def their_training(cfg: Config, workers: int, folder: Path) -> tuple[float, float]:
    """Seconds, and the accuracy on val after the last epoch."""
    start = time.perf_counter()
    _, _, history = their_trainer(cfg, workers, folder).train()
    return time.perf_counter() - start, history[-1]["accuracy"]


def our_training(cfg: Config, as_shipped: bool, folder: Path) -> tuple[float, float]:
    start = time.perf_counter()
    trainer = our_trainer(cfg, as_shipped, folder, whole=True)
    trainer.fit()
    return time.perf_counter() - start, trainer.at.history[-1]["val"]["accuracy"]


def main() -> None:
    args = arguments(__doc__, rounds=3, models="mini_cnn,resnet_18", images=0, epochs=2)
    dataset = load(args.data)
    if dataset.shape not in ((28, 28, 3), (64, 64, 3)):
        raise SystemExit(f"orchard's models for a CPU take RGB images of 28x28 or 64x64, not {dataset.shape}")
    logging.getLogger(LOGGER_NAME).setLevel(logging.WARNING)
    print_machine()
    epochs, wholes = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "images.npz"
        write_npz(dataset, path, args.images)
        dataset = load_dataset(DataSection(source=str(path), classes=dataset.classes))
        train = dataset.split("train")
        print(
            f"{len(train):,} images of {'x'.join(map(str, train.shape))}, batches of 128; an epoch of training:\n",
            flush=True,
        )
        for model in args.models.split(","):
            cfg = their_config(path, dataset, model, 60)
            picked = cfg.num_workers
            theirs = [their_epoch(cfg, workers, folder) for workers in (picked, 0)]
            plain, _ = our_epoch(cfg, False, folder)
            shipped, number_format = our_epoch(cfg, True, folder)
            labels = (
                f"orchard, {picked} workers (its choice), fp32",
                "orchard, 0 workers, fp32",
                "petriscope, fp32",
                f"petriscope, {number_format}, averaging",
            )
            times = in_turn([*theirs, plain, shipped], args.rounds)
            for label, taken in zip(labels, times, strict=True):
                median = f"{statistics.median(taken):.2f} s"
                epochs.append((model, label, median, ratio(taken, times[0]), ratio(taken, times[1])))
            del theirs  # and with them the workers
            if not args.epochs:
                continue
            cfg = their_config(path, dataset, model, args.epochs)
            whole = [their_training(cfg, workers, folder) for workers in (picked, 0)]
            whole += [our_training(cfg, as_shipped, folder) for as_shipped in (False, True)]
            for label, (seconds, accuracy) in zip(labels, whole, strict=True):
                faster = [f"{reference / seconds:.2f}" for reference, _ in whole[:2]]
                wholes.append((model, label, f"{seconds:.2f} s", *faster, f"{100 * accuracy:.1f} %"))
    faster = (f"times faster than {picked} workers", "than 0 workers")
    print_table(("model", "loop", "an epoch", *faster), epochs)
    if wholes:
        print(f"\nA whole training of {args.epochs} epochs, once each, from the file to the best weights:\n")
        print_table(("model", "tool", "all", *faster, "val accuracy"), wholes)


if __name__ == "__main__":
    main()
