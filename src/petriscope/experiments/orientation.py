"""Whether images may be mirrored and turned in training: found by a small network, which is tested with images in both ways.

If a class looks the same when it is mirrored, a network that learned from images as they are recognizes mirrored ones as often
as others that it has not seen, whatever it has learned. If it does not, as for digits or for landscapes upside down, mirroring
would teach what is not there. Lin et al., 2020, "Visual Chirality", CVPR, arXiv:2006.09512, ask a network directly whether
images are mirrored, which would not tell b from d.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from petriscope.core.device import tensor_of
from petriscope.core.recipe import check_recipe
from petriscope.data import Dataset, ImageSet
from petriscope.data.batches import Batches
from petriscope.inference.tta import predict_batches
from petriscope.metrics.multilabel import ranking_precision_each
from petriscope.training.build import build_trainer
from petriscope.training.progressive import shrink
from petriscope.trust.robustness import stratified

SIDE = 32  # pixels; larger images are reduced
LEARNED, TESTED = 3000, 1000  # images, at most
EPOCHS, IMAGES = 60, 320  # at most, and images of each
FEWEST = 16  # images to test with
SLIGHT, MOST = 0.02, 0.1  # a loss of accuracy that does not matter, and one that must be ruled out
SIDED = 1.645  # normal quantile of one-sided intervals of 95 %

WAYS: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # of arrays [N, H, W, ...]
    "mirrored": lambda images: images[:, :, ::-1],
    "upside down": lambda images: images[:, ::-1],
    "turned": lambda images: np.rot90(images, 1, (1, 2)),
}


@dataclass(frozen=True)
class Orientation:
    """What was found.

    Args:
        used: the names of `WAYS` that training may use.
        found: the accuracy on images in each way that was tested, in 0..1; of several labels the precision of their ranking.
        plain: the same on images as they are; None: not tested.
        why: why nothing was found; empty if something was.
    """

    used: tuple[str, ...] = ()
    found: dict[str, float] = field(default_factory=dict)
    plain: float | None = None
    why: str = ""

    @property
    def turns(self) -> bool:
        """Whether images may be mirrored and turned by quarters in any way."""
        return set(self.used) == set(WAYS)

    def __str__(self) -> str:
        if self.plain is None:
            return f"neither mirrored nor turned: {self.why}"
        told = ", ".join(f"{name} {100 * value:.0f} %" for name, value in self.found.items())
        kept = ", ".join(self.used)
        says = f"may be {kept}" if kept else "neither mirrored nor turned"
        return f"{says} (a small network recognizes {100 * self.plain:.0f} % as they are, {told})"


def find_orientation(train: ImageSet, device: torch.device, seconds: float, spent: Callable[[], float]) -> Orientation:
    """Train a small network on some of the training images for so many seconds, and test it with others.

    Args:
        spent: the clock that seconds are counted by.
    """
    learned, tested = _halves(train)
    if len(tested) < FEWEST or len(learned) < FEWEST:
        return Orientation(why=f"{len(train):,} training images are too few to tell whether they may be")
    if min(train.shape[:2]) < 8:
        return Orientation(why="images of less than 8 pixels are not tested")
    if not train.task.exclusive:  # a ranking of no label, or of all, is always right
        some = train.targets[tested].any(1) & ~train.targets[tested].all(1)
        tested = tested[some]
        if len(tested) < FEWEST:
            return Orientation(why=f"{len(tested):,} images with labels are too few to tell whether they may be")
    first, second = _reduced(train.subset(learned)), _reduced(train.subset(tested))
    recipe = check_recipe(
        {
            "model": {"name": "unet", "widths": [12, 24, 48]}
            if train.task.dense
            else {"name": "simple-cnn", "norm": "batch", "widths": [16, 32, 64], "hidden": 64},
            "augment": [{"name": "translate", "fraction": 0.1}],
            "optimizer": {"name": "adamw", "lr": 4e-3, "weight_decay": 0.05},
            "schedule": {"name": "constant", "warmup_epochs": 1},
            "training": {
                "epochs": EPOCHS,
                "images_per_epoch": IMAGES,
                "batch_size": 32,
                "ema": 0.95,
            },
        }
    )
    trainer, normalize = build_trainer(recipe, Dataset(train=first), device, quiet=True)
    began = spent()
    for epochs in range(1, EPOCHS + 1):
        trainer.train_until(epochs)
        if spent() - began > seconds * epochs / (epochs + 1):
            break

    def right(images: ImageSet) -> np.ndarray:
        """The share of each image that is predicted right, float64 [N]."""
        out = np.zeros(len(images))
        batches = Batches(images, device)
        for rows, log_p, targets in predict_batches(trainer.averaged, batches, normalize, trainer.format):
            if not images.task.exclusive:
                out[rows] = ranking_precision_each(log_p.exp().cpu().numpy(), targets.cpu().numpy())
                continue
            judged = (targets < log_p.shape[1]).reshape(len(rows), -1).float()  # pixels may have no label
            hits = (log_p.argmax(1) == targets).reshape(len(rows), -1) * judged
            out[rows] = (hits.sum(1) / judged.sum(1).clamp(min=1)).cpu().numpy()
        return out

    plain = right(second)
    common = float(second.counts.max() / max(second.counts.sum(), 1))
    if not second.task.exclusive:
        frequent = np.broadcast_to(first.counts, second.targets.shape)
        common = float(ranking_precision_each(frequent, second.targets).mean())
    if plain.mean() - 2 * plain.std() / math.sqrt(len(plain)) <= common:
        return Orientation(why="a small network does not learn enough in the time to tell whether they may be")
    found, used = {}, []
    for name, way in WAYS.items():
        if name == "turned" and train.shape[0] != train.shape[1]:
            continue
        turned = replace(
            second,
            pixels=np.ascontiguousarray(way(second.array)),
            targets=np.ascontiguousarray(way(second.targets)) if train.task.dense else second.targets,
            known=None,
        )
        loss = plain - (there := right(turned))
        found[name] = float(there.mean())
        if _slight(loss):
            used.append(name)
    return Orientation(tuple(used), found, float(plain.mean()))


def _slight(loss: np.ndarray) -> bool:
    """Whether a loss of accuracy, per image [N], is small or not shown, and a large one is ruled out."""
    mean, error = float(loss.mean()), SIDED * float(loss.std()) / math.sqrt(len(loss))
    return (mean <= SLIGHT or mean - error <= 0) and mean + error < MOST


def _halves(train: ImageSet) -> tuple[np.ndarray, np.ndarray]:
    """Images to learn from and others to test with, in the proportions of the classes. Groups stay together."""
    order = stratified(train.strata, min(len(train), 2 * (LEARNED + TESTED)))
    if train.groups is None:
        odd = np.arange(len(order)) % 4 == 3
    else:
        odd = np.unique(train.groups, return_inverse=True)[1][order] % 3 == 2
    return np.sort(order[~odd][:LEARNED]), np.sort(order[odd][:TESTED])


def _reduced(images: ImageSet) -> ImageSet:
    """The images in memory, with their area reduced to that of a square of `SIDE`, and the sides to even numbers."""
    height, width = images.shape[:2]
    ratio = min(1.0, SIDE / math.sqrt(height * width))
    size = max(8, 4 * round(ratio * height / 4)), max(8, 4 * round(ratio * width / 4))
    pixels, targets = images.images, images.targets
    if size != (height, width):
        small, masks = shrink(tensor_of(pixels), tensor_of(targets), size, images.task.dense)
        pixels, targets = small.numpy(), masks.numpy()
    return replace(images, pixels=pixels, targets=targets, rows=None, known=None, sizes=None)
