"""From a recipe and its data to a trainer: check the parts, make paths absolute, build the model and its normalization."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from petriscope.augment import AUGMENTATIONS
from petriscope.augment.base import Mixing
from petriscope.augment.pipeline import Normalize, Pipeline, standardized
from petriscope.augment.sets import augmented_set
from petriscope.augment.standardize import Standardize
from petriscope.core.device import choose_format, free_memory, gib
from petriscope.core.errors import RequestError
from petriscope.core.files import user_path
from petriscope.core.recipe import Part, Recipe
from petriscope.core.results import Normalization
from petriscope.data import Dataset, ImageSet
from petriscope.data.batches import Batches
from petriscope.data.normalization import mean_and_std
from petriscope.data.sources import NAMED
from petriscope.data.sources.webdataset import is_pattern
from petriscope.models import MODELS, build_model, sized_options, sketch_model
from petriscope.models.cost import memory, parameters
from petriscope.training.finetune import Plan
from petriscope.training.loop import Trainer

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def check_parts(recipe: Recipe) -> None:
    """Check the names and options of all parts, before data are loaded.

    Raises:
        RequestError: a name or an option is wrong.
    """
    from petriscope.training.losses import LOSSES, views_of
    from petriscope.training.optimizers import OPTIMIZERS
    from petriscope.training.schedules import SCHEDULES

    Pipeline.from_recipe(recipe.augment, views=views_of(recipe.loss))
    _check_val_augmentation(Pipeline.from_recipe(recipe.evaluation.augment_val))
    MODELS.check(recipe.model)
    LOSSES.check(recipe.loss)
    OPTIMIZERS.check(recipe.optimizer)
    SCHEDULES.check(recipe.schedule)


def _check_val_augmentation(pipeline: Pipeline) -> None:
    if any(isinstance(operation, Mixing) for operation in pipeline.operations):
        raise RequestError(
            "evaluation.augment_val cannot mix images, because val images keep their labels; remove mixing"
        )


def absolute_paths(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths, so that the run can be resumed from any folder."""

    def absolute(text: str) -> str:
        path = user_path(text)
        return str(path.resolve()) if path.exists() else text

    def place(source: str) -> str:
        if source.partition(":")[0] in NAMED:  # even if a folder has the same name
            return source
        return str(user_path(source).absolute()) if is_pattern(source) else absolute(source)

    changes: dict[str, Any] = {}
    if recipe.data.source is not None:
        changes["data"] = recipe.data.model_copy(update={"source": place(recipe.data.source)})
    if recipe.data.sources is not None:
        places = {k: each.model_copy(update={"source": place(each.source)}) for k, each in recipe.data.sources.items()}
        changes["data"] = recipe.data.model_copy(update={"sources": places})
    for key in ("audit", "splits"):
        if (text := getattr(recipe.data, key)) is not None:
            changes["data"] = changes.get("data", recipe.data).model_copy(update={key: absolute(text)})
    if "weights" in recipe.model.options:
        options = recipe.model.options
        changes["model"] = Part(name=recipe.model.name, **{**options, "weights": absolute(str(options["weights"]))})
    if recipe.distill is not None:
        teachers = tuple(map(absolute, recipe.distill.teachers))
        changes["distill"] = recipe.distill.model_copy(update={"teachers": teachers})
    return recipe.model_copy(update=changes)


def check_memory(recipe: Recipe, dataset: Dataset, device: torch.device) -> int:
    """Check, before anything is built, that the memory is enough for a training step and for a batch of predictions.

    Returns:
        the bytes that these take, roughly; 0 for a model that cannot tell.

    Raises:
        RequestError: the memory is not enough; the message names what to lower.
    """
    from petriscope.training.losses import views_of

    sketch, options = sketch_model(recipe.model, len(dataset.classes), dataset.shape), sized_options(recipe.model)
    free, count = free_memory(device), parameters(sketch)
    if 4 * count > free:
        raise RequestError(
            f"{recipe.model.name} with {options} has {count:.3g} weights, which take {gib(4 * count)}; {gib(free)} of memory "
            "are free. Lower these options"
        )
    plan = Plan(sketch, recipe.finetune, recipe.training.epochs)
    plan.freeze(plan.ever)
    try:
        found = memory(sketch, dataset.shape)
    except (RuntimeError, ValueError, NotImplementedError, IndexError, AssertionError):
        return 0  # images that the model cannot take are refused when it is built
    train, settings = dataset.split("train"), recipe.training
    batch = min(settings.batch_size, settings.images_per_epoch or len(train)) * (1 + views_of(recipe.loss).count)
    judged = min(recipe.evaluation.batch_size, len(dataset.val) if dataset.val is not None else 1)
    step, prediction = found.step * batch + 3 * found.trained, found.prediction * judged
    needed = found.weights + max(step, prediction)
    exact = choose_format(settings.precision, device) == "fp32"
    if needed > (free if exact else 2 * free):  # other formats take half of it
        height, width, _ = dataset.shape
        key, size = ("training", batch) if step >= prediction else ("evaluation", judged)
        side, fewer = _fitting(min(height, width), free / needed), max(int(size * free / needed), 1)
        raise RequestError(
            f"a {'step of training' if key == 'training' else 'batch of predictions'} takes about {gib(needed)}: {size:,} images "
            f"of {height}x{width} in {recipe.model.name} with {options}; {gib(free)} of memory are free. Lower the size or the "
            f"batches, such as --set data.size={side} or --set {key}.batch_size={fewer}"
        )
    return needed


def _fitting(side: int, share: float) -> int:
    """A shorter side, a power of two, at which images take at most that share of their memory."""
    return 1 << max(int(math.log2(side * math.sqrt(share))), 3)


def build_trainer(
    recipe: Recipe,
    dataset: Dataset,
    device: torch.device,
    quiet: bool,
    started: Normalization | None = None,
) -> tuple[Trainer, Normalize]:
    """A trainer for a recipe, and the normalization of images.

    Args:
        started: the normalization of a run that has a checkpoint. Weights that the model would start from are then not
            loaded, so their file may be gone.
    """
    train_set = dataset.split("train")
    torch.manual_seed(int(np.random.SeedSequence([recipe.seed, 0]).generate_state(1)[0]))
    fresh = started is None
    model = build_model(recipe.model, len(dataset.classes), dataset.shape, fresh).to(device)
    normalize = (
        _normalize(recipe, model, train_set)
        if started is None
        else Normalize(started.mean, started.std, recipe.data.standardize)
    )
    memory = recipe.data.memory
    val = None
    if dataset.val is not None:
        val = Batches(augmented_val(recipe, dataset.val), device, memory)
    return Trainer(model, recipe, Batches(train_set, device, memory), val, normalize, quiet=quiet), normalize


def _normalize(recipe: Recipe, model: torch.nn.Module, train_set: ImageSet) -> Normalize:
    """The normalization that pretrained weights expect, or else that of the training set."""
    rule, expects = recipe.data.normalize, getattr(model, "expects", None)
    if rule == "imagenet":
        expects = IMAGENET
    if rule == "train" or expects is None:
        return Normalize(*mean_and_std(train_set, _standardized(recipe)), recipe.data.standardize)
    channels = train_set.shape[2]
    mean, std = (values if len(values) == channels else (float(np.mean(values)),) * channels for values in expects)
    return Normalize(mean, std, recipe.data.standardize)


def _standardized(recipe: Recipe) -> Callable[[np.ndarray], np.ndarray]:
    """uint8 [B, H, W, C] -> the same, standardized as the recipe asks for."""
    standardize = Standardize(recipe.data.standardize)

    def change(images: np.ndarray) -> np.ndarray:
        return standardized(torch.from_numpy(images), standardize).numpy()

    return change


def augmented_val(recipe: Recipe, val: ImageSet) -> ImageSet:
    """The val set that training monitors: augmented once if the recipe asks for it, independent of the seed."""
    parts = recipe.evaluation.augment_val
    if not parts:
        return val
    return augmented_set(val, [AUGMENTATIONS.build(part) for part in parts])
