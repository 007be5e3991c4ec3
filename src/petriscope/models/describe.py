"""Descriptions of the models for the command line."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from petriscope.models import MODELS


@dataclass(frozen=True)
class Facts:
    """The entries of one model in the table of models, for RGB images and 8 classes.

    They are written here, and a test compares them with the models, because counting them takes twenty seconds.
    """

    side: int
    parameters: int
    multiply_adds: int
    paper: str


FACTS = {
    "simple-cnn": Facts(28, 241_864, 8_051_200, "LeCun et al. 1998"),
    "custom-cnn": Facts(96, 390_952, 135_366_656, "Ioffe and Szegedy 2015"),
    "quiz-dnn": Facts(32, 298_888, 112_656_896, "He et al. 2016"),
    "se-cnn": Facts(64, 415_672, 89_537_536, "Hu et al. 2018"),
    "d4-resnet": Facts(28, 347_312, 322_481_664, "Cohen and Welling 2016"),
    "vgg": Facts(64, 15_050_184, 1_445_990_400, "Simonyan and Zisserman 2015"),
    "autoencoder": Facts(64, 819_723, 60_195_840, "Masci et al. 2011"),
    "inception": Facts(64, 1_465_880, 357_208_064, "Szegedy et al. 2015"),
    "resnet18": Facts(28, 11_172_936, 456_702_976, "He et al. 2016"),
    "resnet34": Facts(64, 21_281_096, 4_637_593_600, "He et al. 2016"),
    "resnet50": Facts(64, 23_516_744, 5_191_254_016, "He et al. 2016"),
    "mobilenet-v3-large": Facts(96, 4_212_280, 41_790_400, "Howard et al. 2019"),
    "convnext-tiny": Facts(96, 27_826_280, 818_227_968, "Liu et al. 2022"),
    "convnext-small": Facts(96, 49_460_840, 1_594_832_640, "Liu et al. 2022"),
    "convnext-base": Facts(96, 87_574_664, 2_820_076_544, "Liu et al. 2022"),
    "convnext-large": Facts(96, 196_242_632, 6_311_013_888, "Liu et al. 2022"),
    "deit-tiny": Facts(224, 5_525_960, 1_253_492_736, "Touvron et al. 2021"),
    "unet": Facts(64, 1_012_280, 314_867_712, "Ronneberger et al. 2015"),
    "dual-unet": Facts(64, 570_252, 233_722_752, "Petriscope's own"),
    "attention-unet": Facts(64, 1_048_739, 320_197_632, "Oktay et al. 2018"),
}


def model_table() -> str:
    """Every model with its parameters, multiply-adds, the image side they were counted at, and the paper."""
    rows = [("model", "parameters", "multiply-adds", "at", "paper")]
    for name in MODELS.members:
        facts = FACTS[name]
        size = f"{facts.side}x{facts.side}"
        rows.append((name, f"{facts.parameters / 1e6:.2f} M", f"{facts.multiply_adds / 1e6:,.0f} M", size, facts.paper))
    rows.append(("timm/NAME", "", "", "", "any network of timm's, such as timm/efficientnet_b0"))
    rows.append(("smp/ARCH-ENCODER", "", "", "", "any of segmentation_models_pytorch's, such as smp/unet-resnet18"))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        f"{name:<{widths[0]}}  {count:>{widths[1]}}  {work:>{widths[2]}}  {size:>{widths[3]}}  {paper}"
        for name, count, work, size, paper in rows
    ]
    return "\n".join(lines)


def describe_model(name: str) -> str:
    """A model's documentation, its options with their types and defaults, and its size for RGB images in 8 classes."""
    import torch

    from petriscope.core.recipe import Part
    from petriscope.models import build_model
    from petriscope.models.cost import multiply_adds, parameters

    member = MODELS.find(name)
    side = FACTS[name].side if name in FACTS else 224
    with torch.device("meta"):  # shapes are enough to count
        model = build_model(Part(name=name), 8, (side, side, 3))
        work = multiply_adds(model, (side, side, 3))
    lines = [inspect.getdoc(member) or "", "", "Options, with their defaults:"]
    lines += [f"  {key}: {default!r}  ({_words(kind)})" for key, (kind, default) in MODELS.options(name).items()]
    size = f"{parameters(model):,} parameters, {work / 1e6:,.1f} M multiply-adds"
    return "\n".join([*lines, "", f"At {side}x{side} RGB with 8 classes: {size}"])


def _words(annotation: Any) -> str:
    """An annotation for people: ``none | batch | layer``, ``list of int``, ``int | null``."""
    values = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return _words(values[0])
    if get_origin(annotation) is tuple:
        return f"list of {_words(values[0])}"
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, values))
    if values:
        return " | ".join(map(_words, values))
    return "null" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))
