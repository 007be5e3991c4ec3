"""Features that tell how similar images are: learned from the set itself, or taken from a run or a published network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from petriscope.audit.small_network import shrink, train_small
from petriscope.augment.pipeline import Normalize
from petriscope.core.channels import in_words
from petriscope.core.device import autocast, choose_device, choose_format
from petriscope.core.errors import DataError, RequestError
from petriscope.core.progress import progress
from petriscope.core.recipe import Part, check_recipe
from petriscope.data.batches import Batches
from petriscope.data.imageset import ImageSet
from petriscope.data.normalization import mean_and_std
from petriscope.inference.predictor import load_model
from petriscope.models import build_model
from petriscope.models.layers import ordered_blocks, watching

BATCH = 256
BLOCKS = 4  # whose feature maps are used, at most
SIDE = 28  # pixels
EPOCHS = 5
CLUSTERS = 8  # take the place of classes if there is only one
RECIPE: dict[str, Any] = {
    "name": "features",
    "augment": [{"name": "translate", "fraction": 0.08}, {"name": "flip", "vertical": 0.5}],
    "model": {"name": "simple-cnn", "norm": "batch", "widths": [16, 32, 64], "hidden": 64},
    "loss": {"name": "cross-entropy", "label_smoothing": 0.1},
    "optimizer": {"name": "adamw", "lr": 4e-3, "weight_decay": 0.05},
    "schedule": "one-cycle",
}


def learned_features(images: ImageSet, *, seed: int = 0, quiet: bool = True) -> np.ndarray:
    """Features of a small network that is trained on the labels of the set for a few epochs.

    They are the mean and the standard deviation of every feature map of each block. The last blocks separate the classes,
    but an image of no class looks there like any difficult image; the first blocks tell it by its colors and textures.

    Args:
        images: with labels; reduced to 28 pixels on the longer side first. If there is a single class, clusters of images
            take the place of classes.
        seed: the same seed gives the same features on a CPU with the same number of threads.
        quiet: show no progress.

    Returns:
        float32 [N, D], to be compared by Euclidean distance. All blocks have the same weight.

    Raises:
        DataError: fewer than 2 images.
    """
    if len(images) < 2:
        raise DataError(f"features are learned from at least 2 images, not {len(images)}")
    small = shrink(images, SIDE)
    batch = int(np.clip(len(images) // 32, 16, 128))
    training = {"epochs": EPOCHS, "batch_size": batch, "ema": None, "keep": "last", "precision": "fp32"}
    recipe = check_recipe({**RECIPE, "seed": seed, "training": training})
    labeled = small if np.count_nonzero(small.counts) > 1 else _clustered(small, seed)
    with progress("learning features", EPOCHS, "epochs") as bar:
        model, normalize = train_small(labeled, recipe, lambda: None if quiet else bar.advance(1))
    return _describe(model, normalize, small, quiet)


def run_features(path: str | Path, images: ImageSet, *, quiet: bool = True) -> np.ndarray:
    """Features of each image from the model of a run, float32 [N, D].

    Args:
        path: a run folder, or a model file.
        images: resized (bilinear) to the input size of the model.

    Raises:
        RequestError: there is no model, or it takes a different number of channels.
    """
    predictor = load_model(Path(path))
    if predictor.channels != images.channels:
        raise RequestError(
            f"the model at {path} takes {in_words(predictor.channels)} images, these are {in_words(images.channels)}; "
            "set data.channels to what the model takes, or use other features"
        )
    return _describe(predictor.model, predictor.normalize, images, quiet, predictor.shape[:2])


def backbone_features(
    name: str, images: ImageSet, *, weights: str = "pretrained", resize: int | None = None, quiet: bool = True
) -> np.ndarray:
    """Features of each image from a published network, float32 [N, D].

    Args:
        name: of a model, as in a recipe, such as ``resnet18`` or ``timm/efficientnet_b0``.
        weights: ``pretrained``, ``none``, or the path of a .safetensors file.
        resize: side of the square that images are resized to; None: they keep their size.

    Raises:
        RequestError: the name is unknown, the weights do not fit, or the network cannot take the images.
        PetriscopeError: the weights cannot be loaded.
    """
    torch.manual_seed(0)  # decides the weights if they are ``none``
    part = Part.model_validate({"name": name, "weights": weights, **({"resize": resize} if resize else {})})
    model = build_model(part, max(len(images.classes), 2), images.shape).to(choose_device()).eval()
    expects = getattr(model, "expects", None)
    return _describe(model, Normalize(*(expects or mean_and_std(images))), images, quiet)


def _clustered(images: ImageSet, seed: int) -> ImageSet:
    """Clusters of similar images as classes, as in Caron et al., 2018, "Deep Clustering", arXiv:1807.05520, but from pixels."""
    from sklearn.cluster import MiniBatchKMeans

    tiny = shrink(images, 8).images.reshape(len(images), -1).astype(np.float32)
    count = min(CLUSTERS, len(images))
    labels = MiniBatchKMeans(count, random_state=seed, n_init=3).fit_predict(tiny).astype(np.int64)
    return replace(images, targets=labels, classes=tuple(f"cluster {i}" for i in range(max(count, 2))))


@torch.no_grad()
def _describe(
    model: nn.Module, normalize: Normalize, images: ImageSet, quiet: bool, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Mean and standard deviation of every feature map of some blocks, scaled to unit variance and equal weight per block."""
    if not len(images):
        return np.zeros((0, 1), np.float32)
    device = next(model.parameters()).device
    batches, number_format = Batches(images, device), choose_format("fp32", device)
    order = np.arange(len(images))
    blocks: list[list[np.ndarray]] = []
    with _watch(model) as seen, progress("describing images", len(order)) as bar:
        for batch, _ in batches.iterate([order[i : i + BATCH] for i in range(0, len(order), BATCH)]):
            inputs = normalize(batch)
            if size is not None and inputs.shape[2:] != size:
                inputs = nn.functional.interpolate(inputs, size, mode="bilinear", align_corners=False, antialias=True)
            seen.clear()
            with autocast(device, number_format):
                model(inputs)
            blocks.append([each.float().cpu().numpy() for each in seen])
            if not quiet:
                bar.advance(len(batch))
    return np.concatenate([_scale(np.concatenate(parts)) for parts in zip(*blocks, strict=True)], 1)


def _scale(features: np.ndarray) -> np.ndarray:
    centered = features - features.mean(0, dtype=np.float64)
    spread = centered.std(0)
    varies = spread > 1e-6
    centered /= np.where(varies, spread, 1) * np.sqrt(max(varies.sum(), 1))
    return centered.astype(np.float32)


@contextmanager
def _watch(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collects the mean and the standard deviation of every map that some blocks give, float [B, D] per block, in the
    order in which the blocks run."""
    seen: list[Tensor] = []
    channels_last = getattr(getattr(model, "backbone", model), "output_fmt", "NCHW") == "NHWC"

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output.ndim == 4:
            output = (output if channels_last else output.permute(0, 2, 3, 1)).flatten(1, 2)
        seen.append(output if output.ndim == 2 else torch.cat([output.mean(1), output.std(1, correction=0)], 1))

    with watching(_some_blocks(model), note):
        yield seen


def _some_blocks(model: nn.Module) -> list[nn.Module]:
    """A few blocks of the model, from the first to the last. A slice of a sequence never runs itself, so its last layer
    takes its place."""
    run = set(model.modules())
    blocks = [block if block in run else list(block.children())[-1] for _, block in ordered_blocks(model)]
    places = np.unique(np.linspace(0, len(blocks) - 1, min(BLOCKS, len(blocks))).round().astype(int))
    return [blocks[place] for place in places]
