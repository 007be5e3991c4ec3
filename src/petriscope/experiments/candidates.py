"""Networks and trainings that `petriscope.experiments.auto` chooses among, for images of any size.

They are those of the shipped recipes that did best at their size and time (docs/results.md): at 28 px d4-resnet where images
may be turned, at 64 and 96 px se-cnn, of digits of 8 px simple-cnn, for masks unet.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from petriscope.core.notebook import without_widgets
from petriscope.experiments.orientation import Orientation

PRETRAINED = (
    "timm/tf_efficientnet_lite0",
    "timm/tf_efficientnet_lite0.in1k",
    "model.safetensors",
)  # name, and its file

SIMPLE = {"name": "simple-cnn", "norm": "batch", "dropout": 0.2}
WIDE = {"name": "simple-cnn", "norm": "batch", "widths": [64, 128, 256]}
SE_SMALL = {"name": "se-cnn", "widths": [32, 64, 128], "depths": [2, 2, 1]}
SE_LARGE = {"name": "se-cnn", "widths": [32, 64, 128, 256], "depths": [1, 2, 2, 2]}
D4_SMALL = {"name": "d4-resnet", "widths": [32, 64, 128], "depths": [2, 2, 2]}
D4_LARGE = {"name": "d4-resnet", "widths": [64, 128, 256], "depths": [2, 2, 2]}
UNET_SMALL = {"name": "unet", "patch": 2, "widths": [16, 32, 64]}
UNET = {"name": "unet", "patch": 2}
UNET_LARGE = {"name": "unet", "patch": 2, "standardize": True, "residual": True, "attention": "se", "dropout": 0.2}

SMALLEST = 8  # pixels of the shorter side that all of these take
GRAIN = 4  # sides of images that are not square are multiples of it
SQUARE = 1.1  # sides that differ by less make a square


@dataclass(frozen=True)
class Candidate:
    """A network, and how it is trained.

    Args:
        side: of its images, the root of their area; they are never enlarged.
        model: as a recipe has it.
        passes: over 10,000 images that are enough.
        small: side of the images of the first half of the epochs; None: all epochs have whole ones.
        dense: whether it is for masks.
    """

    side: int
    model: dict[str, Any]
    passes: float
    small: int | None = None
    dense: bool = False


def ladder(side: float, dense: bool, turns: bool, gpu: bool, weights: bool) -> list[Candidate]:
    """The candidates for images of a side, the most accurate first.

    Args:
        side: in the files, the root of the area.
        dense: whether targets are masks.
        turns: whether images are squares that may be turned and mirrored in any way.
        gpu: whether larger images can be afforded.
        weights: whether there are pretrained weights.
    """
    return list(_masks(side, gpu) if dense else _labels(side, turns, gpu, weights))


def _labels(side: float, turns: bool, gpu: bool, weights: bool) -> Iterator[Candidate]:
    whole = math.ceil(side)
    if side >= 48 and weights:
        yield Candidate(min(whole, 96), {"name": PRETRAINED[0], "weights": "pretrained"}, 2)
    if side >= 112:
        large = min(whole, 192 if gpu else 128)
        yield Candidate(large, SE_LARGE, 24, small=2 * large // 3)
    if side >= 80:
        yield Candidate(min(whole, 96), SE_LARGE, 24, small=64)
    if side >= 48:
        yield Candidate(min(whole, 64), SE_LARGE, 16)
        yield Candidate(min(whole, 64), SE_SMALL, 12)
    base = min(whole, 32)
    if side >= 20:
        if turns:
            if side < 48:
                yield Candidate(base, D4_LARGE, 20)
            yield Candidate(base, D4_SMALL, 12)
            yield Candidate(base, SE_SMALL, 20)
        else:
            yield Candidate(base, {**SE_LARGE, "pool": False}, 16)
            yield Candidate(base, {**SE_SMALL, "pool": False}, 12)
    yield Candidate(base, SIMPLE if side >= 20 else WIDE, 8)


def _masks(side: float, gpu: bool) -> Iterator[Candidate]:
    whole = math.ceil(side)
    if gpu and side > 128:
        yield Candidate(min(whole, 256), UNET_LARGE, 12, dense=True)
    yield Candidate(min(whole, 128), UNET_LARGE, 12, dense=True)
    yield Candidate(min(whole, 128), UNET, 8, dense=True)
    yield Candidate(min(whole, 64), UNET_SMALL, 5, dense=True)


def size_at(height: float, width: float, side: int) -> tuple[int, int]:
    """Height and width of images whose area is that of a square of ``side``, in the proportions of the files; those of the
    files if these are not larger. A side of less than `SMALLEST` is enlarged to it."""
    whole = (max(SMALLEST, round(height)), max(SMALLEST, round(width)))
    shrink = side / math.sqrt(height * width)
    if shrink >= 1:
        return whole
    if max(height / width, width / height) < SQUARE:
        return (max(SMALLEST, side),) * 2
    rounded = (GRAIN * max(1, round(shrink * each / GRAIN)) for each in (height, width))
    return tuple(max(SMALLEST, each) for each in rounded)  # type: ignore[return-value]


def batch_of(images: int, dense: bool) -> int:
    """Images of a step, for a training set of so many."""
    largest, tenth = (32 if dense else 128), images / 20
    return max(8, min(largest, 1 << max(0, int(math.log2(max(tenth, 1))))))


def tree_of(
    candidate: Candidate, size: tuple[int, int], orientation: Orientation, batch: int, classes: int, rare: bool
) -> dict[str, Any]:
    """The keys of a recipe for a candidate, but for its data and its length.

    Args:
        size: height and width of the images.
        batch: images of a step.
        classes: their number.
        rare: whether some classes are much rarer than others.
    """
    name, dense = candidate.model["name"], candidate.dense
    tree: dict[str, Any] = {
        "sampler": "square-root" if rare else "none",
        "augment": augmentations(size, orientation, dense, candidate.model),
        "model": candidate.model,
        "loss": {"name": "cross-entropy", "label_smoothing": 0.1 if classes > 2 else 0.05},
        "optimizer": {"name": "sgd", "lr": 0.1 * batch / 128, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
        "schedule": "one-cycle",
        "training": {"batch_size": batch, "keep": "last"},
        "evaluation": {"tta": "none"},
    }
    if name == "d4-resnet":
        tree["optimizer"]["weight_decay"] = 5e-4 if candidate.model == D4_LARGE else 1e-3
    elif orientation.turns:
        tree["evaluation"]["tta"] = "d4"
    elif "mirrored" in orientation.used:
        tree["evaluation"]["tta"] = "mirror"
    if name not in ("se-cnn", "d4-resnet"):
        rate = 1e-3 if candidate.model.get("weights") else 3e-3
        tree["optimizer"] = {"name": "adamw", "lr": rate * min(1.0, math.sqrt(batch / 64)), "weight_decay": 0.05}
    if name == "simple-cnn":
        tree["training"]["keep"] = "best"
    if dense:
        tree["loss"] = {"name": "sum", "terms": ["cross-entropy", "dice"]}
        tree["training"]["keep"] = "best"
        tree["evaluation"]["batch_size"] = 64
    shorter = min(size)
    if candidate.small is not None and candidate.small < candidate.side:
        tree["training"]["progressive"] = {"size": round(shorter * candidate.small / candidate.side), "share": 0.5}
    return tree


def augmentations(
    size: tuple[int, int], orientation: Orientation, dense: bool, model: dict[str, Any]
) -> list[dict[str, Any]]:
    """Augmentations for images of a size: those of the shipped recipes, with the symmetries that the data allow."""
    used = orientation.used
    out: list[dict[str, Any]] = [{"name": "translate", "fraction": 0.125 if min(size) < 20 else 0.08}]
    if chances := {key: 0.5 for key, name in (("horizontal", "mirrored"), ("vertical", "upside down")) if name in used}:
        out.append({"name": "flip", **{"horizontal": 0.0, **chances}})
    if "turned" in used:
        out.append({"name": "quarter-turn"})
    if min(size) >= 48:  # what is resampled loses detail, of which smaller images have little
        out.append({"name": "scale", "amount": 0.2, "p": 0.5})
        if orientation.turns:
            out.append({"name": "rotate", "degrees": 45, "p": 0.5})
    if min(size) >= 48 or dense:
        out += [
            {"name": "brightness", "amount": 0.15, "p": 0.5},
            {"name": "contrast", "amount": 0.2, "p": 0.5},
        ]
    if dense and model == UNET_LARGE:
        out.append({"name": "cutmix", "p": 0.5})
    return out


def has_weights() -> bool:
    """Whether timm is installed and the pretrained weights are in the local cache of the hub's files."""
    if find_spec("timm") is None or find_spec("huggingface_hub") is None:
        return False
    with without_widgets():
        from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(*PRETRAINED[1:]), str)
