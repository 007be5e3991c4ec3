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
from petriscope.core.channels import Names, colors_of, in_words, is_plain
from petriscope.core.device import choose_format, free_memory, gib
from petriscope.core.errors import RequestError
from petriscope.core.files import user_path
from petriscope.core.launch import launch
from petriscope.core.progress import say
from petriscope.core.ranks import ALONE, Ranks
from petriscope.core.recipe import Part, Recipe
from petriscope.core.results import Normalization
from petriscope.data import Dataset, ImageSet
from petriscope.data.normalization import mean_and_std
from petriscope.data.sources import NAMED
from petriscope.data.sources.webdataset import is_pattern
from petriscope.data.tile_sets import batches_of
from petriscope.data.tiles import AT_ONCE
from petriscope.models import MODELS, build_model, sized_options, sketch_model
from petriscope.models.cost import memory, parameters
from petriscope.training.finetune import Plan
from petriscope.training.loop import Trainer

COUNTED = 65_536  # streamed images that normalization is computed from
MAPS = 4  # of an image in its own size that are in memory at a time, each with a value per class and pixel
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
    if recipe.data.stream is not None and recipe.sampler != "none":
        raise RequestError(
            f"data.stream takes images in the order in which shards are read, each once, so sampler: {recipe.sampler} cannot be "
            "used beside it; set sampler=none, and weight the classes in the loss if need be"
        )


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


def check_memory(recipe: Recipe, dataset: Dataset, device: torch.device, ranks: Ranks = ALONE) -> int:
    """Check, before anything is built, that the memory is enough for a training step and for a batch of predictions.

    Args:
        ranks: the processes that share each batch; those on one machine share its memory too.

    Returns:
        the bytes that these take, roughly; 0 for a model that cannot tell.

    Raises:
        RequestError: the memory is not enough; the message names what to lower.
    """
    from petriscope.training.losses import views_of

    shape, classes = recipe.data.shape_of_model(dataset.shape), len(dataset.classes)
    sketch, options = sketch_model(recipe.model, classes, shape), sized_options(recipe.model)
    free, count = free_memory(device), parameters(sketch)
    if device.type != "cuda":
        free //= launch().local_size if ranks.size > 1 else 1
    if 4 * count > free:
        raise RequestError(
            f"{recipe.model.name} with {options} has {count:.3g} weights, which take {gib(4 * count)}; {gib(free)} of memory "
            "are free. Lower these options"
        )
    plan = Plan(sketch, recipe.finetune, recipe.training.epochs)
    plan.freeze(plan.ever)
    try:
        found = memory(sketch, shape)
    except (RuntimeError, ValueError, NotImplementedError, IndexError, AssertionError):
        return 0  # images that the model cannot take are refused when it is built
    train, settings = dataset.split("train"), recipe.training
    batch = min(settings.batch_size, settings.images_per_epoch or len(train)) * (1 + views_of(recipe.loss).count)
    batch = math.ceil(batch / ranks.size)
    judged = min(recipe.evaluation.batch_size, len(dataset.val) if dataset.val is not None else 1)
    if recipe.data.tiles is not None:
        judged = max(AT_ONCE // (classes * shape[0] * shape[1]), 1)
    step, prediction = found.step * batch + 3 * found.trained, found.prediction * judged
    if recipe.data.tiles is not None:  # the maps of a whole image, and what metrics make of them
        prediction += MAPS * 4 * classes * math.prod(dataset.shape[:2])
    needed = found.weights + max(step, prediction)
    exact = choose_format(settings.precision, device) == "fp32"
    if needed > (free if exact else 2 * free):  # other formats take half of it
        height, width, _ = shape
        key, size = ("training", batch) if step >= prediction else ("evaluation", judged)
        side, fewer = _fitting(min(height, width), free / needed), max(int(size * free / needed), 1)
        sized = "data.size" if recipe.data.tiles is None else "data.tiles.size"
        raise RequestError(
            f"a {'step of training' if key == 'training' else 'batch of predictions'} takes about {gib(needed)}: {size:,} images "
            f"of {height}x{width} in {recipe.model.name} with {options}; {gib(free)} of memory are free. Lower the size or the "
            f"batches, such as --set {sized}={side} or --set {key}.batch_size={fewer}"
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
    ranks: Ranks = ALONE,
) -> tuple[Trainer, Normalize]:
    """A trainer for a recipe, and the normalization of images.

    Args:
        ranks: the processes that train together.
        started: the normalization of a run that has a checkpoint. Weights that the model would start from are then not
            loaded, so their file may be gone.
    """
    train_set = dataset.split("train")
    torch.manual_seed(int(np.random.SeedSequence([recipe.seed, 0]).generate_state(1)[0]))
    fresh = started is None
    shape = recipe.data.shape_of_model(dataset.shape)
    model = build_model(recipe.model, len(dataset.classes), shape, fresh).to(device)
    normalize = (
        _normalize(recipe, model, train_set, quiet)
        if started is None
        else Normalize(started.mean, started.std, recipe.data.standardize, train_set.channels)
    )
    if fresh and getattr(model, "published", False):
        _check_first_layer(train_set.channels, quiet)
    val = None
    if dataset.val is not None:
        val = batches_of(augmented_val(recipe, dataset.val), device, recipe.data)
    train = batches_of(train_set, device, recipe.data)
    return Trainer(model, recipe, train, val, normalize, quiet=quiet, ranks=ranks), normalize


def _check_first_layer(channels: Names, quiet: bool) -> None:
    """Published weights were learned from red, green and blue: refuse these in another order, and say what other channels get.

    Raises:
        RequestError: red, green and blue do not come first.
    """
    if is_plain(channels):
        return
    if colors_of(channels) not in (None, (0, 1, 2)):
        raise RequestError(
            f"published weights take red, green and blue first, and the images have {in_words(channels)}; give them in this "
            "order, where the source names them, such as --set data.channels=[red,green,blue,...]"
        )
    if not quiet:
        colors = ("red", "green", "blue")
        taken = ", ".join(f"{name} as {colors[place % 3]}" for place, name in enumerate(channels))
        say(
            "note: the first layer of published weights and its normalization were made for red, green and blue; "
            f"they take {taken}"
        )


def _normalize(recipe: Recipe, model: torch.nn.Module, train_set: ImageSet, quiet: bool = True) -> Normalize:
    """The normalization that pretrained weights expect, or else that of the training set; of a part of it, if it is streamed and
    large."""
    rule, expects = recipe.data.normalize, getattr(model, "expects", None)
    if rule == "imagenet":
        expects = IMAGENET
    if rule == "train" or expects is None:
        change = _standardized(recipe, train_set.channels)
        if train_set.blocks is not None and len(train_set) > COUNTED:
            if not quiet:
                say(
                    f"note: mean and deviation of the pixels are those of {COUNTED:,} of the {len(train_set):,} training images"
                )
            drawn = np.random.default_rng(0).choice(len(train_set), COUNTED, replace=False)
            train_set = train_set.subset(np.sort(drawn))
        return Normalize(*mean_and_std(train_set, change), recipe.data.standardize, train_set.channels)
    channels = train_set.shape[2]
    mean, std = (values if len(values) == channels else (float(np.mean(values)),) * channels for values in expects)
    return Normalize(mean, std, recipe.data.standardize, train_set.channels)


def _standardized(recipe: Recipe, channels: Names) -> Callable[[np.ndarray], np.ndarray]:
    """uint8 or uint16 [B, H, W, C] -> the same, standardized as the recipe asks for."""
    standardize = Standardize(recipe.data.standardize, channels)

    def change(images: np.ndarray) -> np.ndarray:
        return standardized(torch.from_numpy(images), standardize).numpy()

    return change


def augmented_val(recipe: Recipe, val: ImageSet) -> ImageSet:
    """The val set that training monitors: augmented once if the recipe asks for it, independent of the seed."""
    parts = recipe.evaluation.augment_val
    if not parts:
        return val
    if recipe.data.tiles is not None:
        raise RequestError(
            "evaluation.augment_val takes images of one size, and data.tiles keeps their own; remove one of the two"
        )
    return augmented_set(val, [AUGMENTATIONS.build(part) for part in parts])
