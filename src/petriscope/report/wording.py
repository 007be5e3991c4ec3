"""Numbers and settings as text."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from petriscope.core.channels import RGB
from petriscope.core.channels import in_words as named
from petriscope.core.drawing import shown_as
from petriscope.core.recipe import DataSection, DistillSection, FinetuneSection, Part, TrainingSection
from petriscope.core.results import Normalization
from petriscope.core.scale import in_words

NONE = "–"


def glue(text: str) -> str:
    """Text in which lines do not break between a number and its unit, or within an interval."""
    return re.sub(r"(?<=\d) (?=%)|(?<=\d) (?=to \d)|(?<=\d to) (?=\d)", "\N{NO-BREAK SPACE}", str(text))


def known(value: Any) -> bool:
    """Whether the value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def percent(value: float | None, decimals: int = 2) -> str:
    """A share as ``98.31 %``."""
    return f"{100 * value:.{decimals}f} %" if value is not None and known(value) else NONE


def decimal(value: float | None, decimals: int = 4) -> str:
    return f"{value:.{decimals}f}" if value is not None and known(value) else NONE


def span(ci95: Sequence[float | None] | None, scale: float = 100, decimals: int = 1) -> str:
    """An interval as ``97.6 to 98.8``; empty where there is none."""
    low, high = ci95 if ci95 is not None and len(ci95) == 2 else (None, None)
    if low is None or high is None or not (known(low) and known(high)):
        return ""
    return f"{scale * low:.{decimals}f} to {scale * high:.{decimals}f}"


def percent_with_interval(value: float | None, ci95: Sequence[float | None] | None) -> str:
    """A share and its interval as ``98.31 % (97.6 to 98.8)``."""
    return _with(percent(value), span(ci95))


def decimal_with_interval(value: float | None, ci95: Sequence[float | None] | None) -> str:
    return _with(decimal(value), span(ci95, scale=1, decimals=4))


def _with(value: str, interval: str) -> str:
    return f"{value} ({interval})" if interval and value != NONE else value


def count(value: float | None) -> str:
    """A whole number with thousands separators."""
    return f"{round(value):,}" if value is not None and known(value) else NONE


def plural(number: int, one: str, many: str | None = None) -> str:
    """``1 image``, ``1,712 images``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def images(number: int, groups: int | None, split: str = "") -> str:
    """``1,712 test images``, or ``1,712 test images of 12 groups``."""
    text = plural(number, f"{split} image".lstrip())
    return text if groups is None else f"{text} of {plural(groups, 'group')}"


def short(value: float | None) -> str:
    """A large number with three significant digits, as ``11.2 million``."""
    if value is None or not known(value):
        return NONE
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{value / size:.3g} {word}"
    return count(value)


def rate(value: float | None) -> str:
    """A rate with three significant digits; a whole number from 100."""
    if value is None or not known(value):
        return NONE
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def date(text: str | None) -> str:
    """An ISO time as ``November 20, 2025, 18:39 UTC``."""
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:
        return text or NONE
    zone = f" {moment.tzname()}" if moment.tzinfo else ""
    return f"{moment:%B} {moment.day}, {moment.year}, {moment:%H:%M}{zone}"


def part(value: Part) -> str:
    """A part of a recipe with its options, as ``rotate (degrees 10, p 0.5)``."""
    options = ", ".join(f"{key} {_option(option)}" for key, option in value.options.items())
    return f"{value.name} ({options})" if options else value.name


def initial_weights(model: Part) -> str:
    """Where the weights of a model came from before training."""
    weights = str(model.options.get("weights", "none"))
    if weights == "pretrained":
        return "pretrained, as published by timm"
    return "random" if weights == "none" else weights


def normalization(rule: str, model: Part, statistics: Normalization | None) -> str:
    """The statistics that images were normalized by.

    Args:
        rule: of the recipe: auto, train or imagenet.
    """
    if rule == "imagenet":
        source = "ImageNet statistics"
    elif rule == "train" or initial_weights(model) == "random":
        source = "statistics of the train images"
    else:
        source = "statistics of the initial weights"
    if statistics is None:
        return source
    mean, std = (", ".join(f"{value:.3f}" for value in values) for values in (statistics.mean, statistics.std))
    return f"{source}: mean {mean}; std {std}"


def channels(data: DataSection) -> str:
    """The channels and the bits of images, and how they are shown; empty for gray and RGB with 8 bits."""
    names = data.channels if isinstance(data.channels, tuple) else ()
    bits = f"{data.depth} bits per value" if data.depth > 8 else ""
    span = "" if data.range is None else f"values from {data.range[0]:g} (black) to {data.range[1]:g} (white)"
    about = ", ".join(filter(None, [named(names) if names else "", bits, span]))
    shown = shown_as(names, data.depth) if names else shown_as(RGB, data.depth)
    return ". ".join(filter(None, [about, shown]))


def scales(data: DataSection) -> str:
    """How images are scaled, by domain, and their field of view; empty where they are left as they are."""
    elsewhere = "" if data.sources is None else "images from elsewhere: "
    words = [f"{f'{name}: ' if name else elsewhere}{in_words(each)}" for name, each in data.scaled.items()]
    if (field := data.field_of_view) is not None:
        words.append(f"field of view {field[0]:.4g} × {field[1]:.4g} µm")
    return ", ".join(words)


def finetuning(section: FinetuneSection, epochs: int) -> str:
    """Which layers were trained from which epoch, and at which rates; empty if all were, at one rate."""
    if section == FinetuneSection():
        return ""
    parts = [section.train]
    for stage in sorted(section.then, key=lambda stage: stage.epoch):
        if stage.epoch < epochs:
            rate = "" if stage.lr == 1 else f" at {stage.lr:g} × the rate"
            parts.append(f"from epoch {stage.epoch + 1}: {stage.train}{rate}")
    if section.unfreeze_every is not None:
        every = "epoch" if section.unfreeze_every == 1 else f"{section.unfreeze_every} epochs"
        parts.append(f"one more block every {every}, starting from the head")
    if section.lr_decay != 1:
        parts.append(f"each block at {section.lr_decay:g} × the rate of the next block")
    return "; ".join(parts)


def distillation(section: DistillSection | None) -> str:
    """The teachers whose predictions were learned besides the targets; empty without any."""
    if section is None:
        return ""
    return f"{', '.join(section.teachers)} (weight {section.weight:g}, temperature {section.temperature:g})"


def averaging(settings: TrainingSection) -> str:
    """Which average of the weights over training is evaluated and kept; empty if none is."""
    parts = [] if settings.ema is None else [f"running mean (EMA, decay {settings.ema:g})"]
    if settings.swa is not None:
        last = max(1, round(settings.swa * settings.epochs))
        parts.append(f"from epoch {settings.epochs - last + 1}: mean over the epochs (SWA)")
    return "; ".join(parts)


def progressive(settings: TrainingSection) -> str:
    """Which epochs were trained on smaller images; empty if none were."""
    section = settings.progressive
    if section is None or not (epochs := settings.small_epochs(settings.epochs)):
        return ""
    return f"the first {plural(epochs, 'epoch')} on images of {section.size} pixels on the shorter side"


def _option(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_option(v) for v in value) + "]"
    return str(value)
