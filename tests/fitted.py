"""Small networks with random weights, with all that is fitted on val: as after training, in a second."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from petriscope.core.recipe import Part, load_recipe
from petriscope.data.imageset import ImageSet
from petriscope.inference.fit import calibrate
from petriscope.inference.predictor import Predictor
from petriscope.models import build_model
from petriscope.models.layers import is_dense, last_linear
from petriscope.tasks import find_task
from petriscope.trust.shift import appearance_of, fit_looks

CLASSES = ("round", "long", "small", "other")


def images(count: int, shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Discs of any color and size on light ground, with noise: uint8 [N, H, W, C]."""
    rng = np.random.default_rng(seed)
    height, width, channels = shape
    y, x = np.mgrid[:height, :width]
    radius = rng.uniform(0.1, 0.45, (count, 1, 1)) * min(height, width)
    inside = (np.square(y - height / 2) + np.square(x - width / 2))[None] < np.square(radius)
    color = rng.uniform(20, 200, (count, 1, 1, channels))
    light = rng.uniform(190, 240, (count, 1, 1, channels))
    clean = np.where(inside[..., None], color, light)
    return (clean + rng.normal(0, 6, (count, *shape))).clip(0, 255).astype(np.uint8)


def unfitted(model: Part, shape: tuple[int, int, int], *settings: str, **data: Any) -> Predictor:
    """A predictor for images of a shape, with random weights and statistics.

    Args:
        settings: of the recipe, beside the model.
        data: of the section ``data``.
    """
    torch.manual_seed(0)
    network = build_model(model, len(CLASSES), shape, fresh=False).eval()
    for module in network.modules():
        if isinstance(getattr(module, "running_mean", None), torch.Tensor):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    recipe = load_recipe("demo", ("training.precision=fp32", "training.device=cpu", *settings), data=data)
    recipe = recipe.model_copy(update={"model": model})
    task = find_task("segmentation" if is_dense(network) else "classification")
    mean, std = (0.6,) * shape[2], (0.2,) * shape[2]
    return Predictor(network, recipe, task, CLASSES, shape, mean, std, torch.device("cpu"))


def fitted(
    model: Part, shape: tuple[int, int, int], *settings: str, groups: bool = False, adapted: bool = False, **data: Any
) -> Predictor:
    """The same classifier, fitted on images whose classes are mostly those that it says.

    Args:
        groups: whether images have groups, each of four.
        adapted: whether its appearance alone is compared, as after adapting to another place.
    """
    predictor = unfitted(model, shape, *settings, **data)
    _spread_logits(predictor)
    train, val = (_labeled(predictor, count, seed, groups) for count, seed in ((200, 1), (400, 2)))
    calibrate(predictor, train, val, quiet=True)
    if adapted:
        raw = predictor.predict(val.pixels, "none").raw
        looks = fit_looks(raw, appearance_of(torch.from_numpy(val.pixels)), val.targets, val.groups)
        predictor.trust = replace(predictor.trust, likeness=looks)
    return predictor


def _spread_logits(predictor: Predictor) -> None:
    """Bring the logits to one mean and spread per class, so that a network that learned nothing tells images apart."""
    head = last_linear(predictor.model)
    if head is None:
        return
    with torch.no_grad():
        logits = predictor.model(predictor.normalize(torch.from_numpy(images(200, predictor.shape, 3))))
        gain = 3 / logits.std(0)
        head.weight *= gain[:, None]
        head.bias.copy_((head.bias - logits.mean(0)) * gain)


def _labeled(predictor: Predictor, count: int, seed: int, groups: bool) -> ImageSet:
    """Images with the classes that the network says, and with others where it is least certain."""
    pixels = images(count, predictor.shape, seed)
    p = predictor.probabilities(pixels)
    targets = p.argmax(1)
    doubtful = np.argsort(p.max(1))[: count // 20]
    targets[doubtful] = (targets[doubtful] + 1) % len(CLASSES)
    names = np.array([f"{seed}/{row}" for row in range(count)])
    slides = np.array([f"slide {row // 4}" for row in range(count)]) if groups else None
    return ImageSet(pixels, targets, CLASSES, names, slides)
