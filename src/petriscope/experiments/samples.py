"""Example images for a run's report: augmented training images, and reconstructions by an autoencoder."""

from __future__ import annotations

import numpy as np
import torch

from petriscope.augment.pipeline import standardized, to_whole
from petriscope.core import drawing
from petriscope.data import Dataset
from petriscope.data.tile_sets import one_tile_each
from petriscope.inference.predictor import Predictor
from petriscope.training.loop import Trainer

AUGMENTED_SHOWN = (8, 8)  # images, views of each
RECONSTRUCTED_SHOWN = 8


def augmented(trainer: Trainer, dataset: Dataset) -> dict[str, np.ndarray]:
    """Training images of all classes with their augmented versions, for the gallery.

    Returns:
        ``augmented``, uint8 [P, V, H, W, C], the image itself first; and if targets are masks, ``augmented_masks``, uint8
        [P, V, H, W].
    """
    train_set = one_tile_each(dataset.split("train"), trainer.recipe.data)
    images, views = AUGMENTED_SHOWN
    firsts = [np.flatnonzero(train_set.strata == label) for label in range(len(train_set.classes))]
    chosen = np.array([members[0] for members in firsts if len(members)][:images])
    plain = train_set.take(chosen)
    given = train_set.targets[chosen]
    batch, targets = (torch.from_numpy(np.repeat(array, views - 1, axis=0)) for array in (plain, given))
    out, moved = trainer.augmented(batch, targets, torch.Generator().manual_seed(0))
    out = out[-len(batch) :]  # if there are several views per image, the last one

    def beside(first: np.ndarray, rest: np.ndarray) -> np.ndarray:
        return np.concatenate([first[:, None], rest.reshape(len(chosen), views - 1, *first.shape[1:])], axis=1)

    shown = {"augmented": drawing.shown(beside(plain, to_whole(out, batch.dtype).numpy()), train_set.channels)}
    return {**shown, "augmented_masks": beside(given, moved.numpy())} if train_set.task.dense else shown


@torch.no_grad()
def reconstructions(predictor: Predictor, dataset: Dataset) -> dict[str, np.ndarray]:
    """Reconstructions by an autoencoder of images of all classes, from val if there is one, else from train.

    Returns:
        for the gallery: images, standardized as the network gets them, and their reconstructions, uint8 [P, 2, H, W, C], and
        ids. Empty if the model has no method ``reconstruct``.
    """
    reconstruct = getattr(predictor.model, "reconstruct", None)
    if reconstruct is None:
        return {}
    split = "val" if dataset.val is not None else "train"
    images = dataset.split(split)
    # The first image of every class, then the second of every class, and so on.
    counted = np.zeros(len(images), dtype=np.int64)
    for label in range(len(images.classes)):
        members = np.flatnonzero(images.strata == label)
        counted[members] = np.arange(len(members))
    chosen = np.lexsort((images.strata, counted))[:RECONSTRUCTED_SHOWN]
    plain = torch.from_numpy(images.take(chosen)).to(predictor.device)
    mean, std = (torch.tensor(v, device=predictor.device)[:, None, None] for v in (predictor.mean, predictor.std))
    made = reconstruct(predictor.normalize(plain)).float() * std + mean
    shown = standardized(plain, predictor.normalize.standardize)
    pairs = np.stack([each.cpu().numpy() for each in (shown, to_whole(made.clamp(0, 1), plain.dtype))], axis=1)
    pairs = drawing.shown(pairs, images.channels)
    return {f"reconstructions_{split}": pairs, f"reconstructions_{split}_ids": images.ids[chosen].astype(np.str_)}
