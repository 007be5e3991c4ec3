"""orchard-ml with MiniCNN and the settings of its recipe for BloodMNIST, config_mini_cnn.yaml: batches of 128, no MixUp.

Its command line trains on data sets that it knows, so this says in Python what the command does. One epoch is timed first.
"""

import logging
import time

import numpy as np
import torch
from orchard.architectures import get_model
from orchard.core import LOGGER_NAME, Config, set_seed
from orchard.core.io import md5_checksum
from orchard.core.metadata.wrapper import get_registry
from orchard.core.task_registry import get_task
from orchard.data_handler import get_dataloaders, load_dataset
from orchard.trainer import ModelTrainer, get_optimizer, get_scheduler
from PIL import Image
from shared import Timer, files

CPU = torch.device("cpu")
SIDES = (28, 32, 64)  # that MiniCNN takes


def read(path):
    image = Image.open(path).convert("RGB")
    side = max((each for each in SIDES if each <= image.width), default=SIDES[0])
    return np.asarray(image.resize((side, side)) if image.width != side else image)


def write_npz(images, path):
    classes = sorted(folder.name for folder in (images / "train").iterdir())
    arrays = {}
    for split in ("train", "val", "test"):  # it asks for a test split: here that is val
        folder = images / ("val" if split == "test" else split)
        found = [(file, label) for label, name in enumerate(classes) for file in files(folder / name)]
        arrays[f"{split}_images"] = np.stack([read(file) for file, _ in found])
        arrays[f"{split}_labels"] = np.array([[label] for _, label in found], dtype=np.uint8)
    np.savez(path, **arrays)
    return classes, arrays["train_images"]


def config(path, classes, pixels, epochs, seed):
    scaled = pixels.reshape(-1, 3) / 255
    facts = {"path": path, "md5_checksum": md5_checksum(path), "classes": classes}
    facts |= {"mean": tuple(scaled.mean(0)), "std": tuple(scaled.std(0))}
    side = pixels.shape[1]
    name = "cifar10" if side == 32 else "bloodmnist"
    metadata = get_registry(side).get_dataset(name).model_copy(update=facts)
    training = {"batch_size": 128, "epochs": epochs, "mixup_alpha": 0.0, "mixup_epochs": 0, "seed": seed}
    return Config(
        dataset={"name": name, "metadata": metadata, "resolution": side},
        architecture={"name": "mini_cnn"},
        hardware={"device": "cpu"},
        training={**training, "use_amp": False, "use_tqdm": False},
    )


def fit(cfg, out):
    set_seed(cfg.training.seed)
    loaders = get_dataloaders(load_dataset(cfg.dataset.metadata), cfg.dataset, cfg.training, cfg.augmentation, 0)
    model, task = get_model(CPU, cfg.dataset, cfg.architecture, verbose=False), get_task("classification")
    optimizer = get_optimizer(model, cfg.training)
    trainer = ModelTrainer(
        model=model,
        train_loader=loaders[0],
        val_loader=loaders[1],
        optimizer=optimizer,
        scheduler=get_scheduler(optimizer, cfg.training),
        criterion=task.criterion_factory.get_criterion(cfg.training, class_weights=None),
        device=CPU,
        training=cfg.training,
        output_path=out,
        training_step=task.training_step,
        validation_metrics=task.validation_metrics,
    )
    trainer.train()


def train(images, work, seconds, seed):
    timer = Timer(seconds)  # benchmark
    logging.getLogger(LOGGER_NAME).setLevel(logging.WARNING)
    classes, pixels = write_npz(images, work / "images.npz")
    start = time.process_time()  # benchmark
    fit(config(work / "images.npz", classes, pixels, 1, seed), work / "trial.pth")  # benchmark
    epoch = time.process_time() - start  # benchmark
    epochs = max(1, int(seconds * (1 - timer.share) / epoch))  # benchmark
    cfg = config(work / "images.npz", classes, pixels, epochs, seed)
    fit(cfg, work / "model.pth")
    torch.save({"config": cfg, "classes": classes}, work / "config.pt")


def predict(test, work):
    saved = torch.load(work / "config.pt", weights_only=False)
    cfg = saved["config"]
    model = get_model(CPU, cfg.dataset, cfg.architecture, verbose=False)
    model.load_state_dict(torch.load(work / "model.pth", weights_only=True))
    model.eval()
    metadata = cfg.dataset.metadata
    pixels = torch.tensor(np.stack([read(path) for path in files(test)]) / 255, dtype=torch.float32)
    pixels = ((pixels - torch.tensor(metadata.mean)) / torch.tensor(metadata.std)).float().permute(0, 3, 1, 2)
    with torch.no_grad():
        return saved["classes"], torch.cat([model(batch).softmax(1) for batch in pixels.split(128)]).numpy()
