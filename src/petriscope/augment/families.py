"""Families of disturbances, and recipes that train without one of them.

Every corruption of the stress test and every operation of augmentation belongs to one family. If a network is trained
without a family and measured on it, the result tells how robustness carries over to disturbances that nobody thought of.
Policies, which draw from several families, have the option ``left_out``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from petriscope.augment import AUGMENTATIONS
from petriscope.core.errors import RequestError
from petriscope.core.recipe import Part, Recipe

# In the order in which they arise: on the slide, in the light, in the optics, on the sensor, in the file.
Family = Literal["geometry", "color", "occlusion", "tone", "blur", "noise", "compression"]
FAMILIES: tuple[Family, ...] = get_args(Family)
GENERAL = "general"  # of operations that imitate no single disturbance: they are never left out

# Corruptions first, then operations, which recipes name or policies draw. One name means one thing in all of them.
MEMBERS: dict[str, tuple[str, ...]] = {
    "geometry": (
        *("rotation", "translation"),
        *("flip", "quarter-turn", "translate", "rotate", "scale", "shear", "crop-around"),
        *("shear-x", "shear-y", "translate-x", "translate-y"),
    ),
    "color": ("saturation", "color-cast", "hue", "stain-jitter", "absorbance-jitter"),
    "occlusion": (
        *("stain-deposit", "bubble", "occlusion"),
        *("cutout", "random-erasing", "coarse-dropout", "hide-patches", "grid-mask", "disc-mask"),
    ),
    "tone": (
        *("brightness-up", "brightness-down", "contrast-up", "contrast-down"),
        *("brightness", "contrast", "posterize", "solarize", "invert", "equalize", "auto-contrast"),
    ),
    "blur": ("defocus-blur", "motion-blur", "blur", "sharpness", "spectrum-jitter"),
    "noise": ("gaussian-noise", "noise"),
    "compression": ("pixelate", "jpeg"),
    GENERAL: ("identity", "amplitude-mix", "random-convolution", "pattern-mix", "mixup", "cutmix", "copy-paste"),
}
_FAMILY_OF = {name: family for family, names in MEMBERS.items() for name in names}


def family_of(name: str) -> str:
    """The family of a corruption or an operation, or `GENERAL`.

    Raises:
        RequestError: the name is in no family, as that of a policy, which draws from several.
    """
    if name not in _FAMILY_OF:
        raise RequestError(f"{name!r} is in no family of disturbances")
    return _FAMILY_OF[name]


def kept(names: Iterable[str], left_out: Sequence[str], what: str) -> list[str]:
    """The names that are in none of the families ``left_out``.

    Raises:
        RequestError: nothing is left for ``what`` to draw from.
    """
    there = [name for name in names if family_of(name) not in left_out]
    if not any(name != "identity" for name in there):
        raise RequestError(f"{what} has nothing left to draw from: leave out fewer families or operations")
    return there


def has_left_out(name: str) -> bool:
    """Whether an augmentation is a policy that can leave out families."""
    return "left_out" in AUGMENTATIONS.options(name)


def parts_without(parts: Sequence[Part], family: Family) -> tuple[Part, ...]:
    """Augmentations without those of a family; policies draw nothing of it.

    Raises:
        RequestError: there is no such family or augmentation, or a policy would have nothing left.
    """
    if family not in FAMILIES:
        raise RequestError(f"no family {family!r}; there are {', '.join(FAMILIES)}")
    out = []
    for part in parts:
        if has_left_out(part.name):
            before = AUGMENTATIONS.check(part)["left_out"]
            limited = {**part.options, "left_out": list(dict.fromkeys((*before, family)))}
            part = Part(name=part.name, **limited)
            AUGMENTATIONS.build(part)  # refuses an empty pool
        elif family_of(part.name) == family:
            continue
        out.append(part)
    return tuple(out)


def recipe_without(recipe: Recipe, family: Family) -> Recipe:
    """A recipe that trains, and chooses on val, without a family of disturbances.

    Raises:
        RequestError: as of `parts_without`; or nothing is left that makes the views of loss consistency.
    """
    augment, evaluation, loss = parts_without(recipe.augment, family), recipe.evaluation, recipe.loss
    if gone := {part.name for part in recipe.augment} - {part.name for part in augment}:
        by = loss.options.get("by", ())
        if by and not (left := [name for name in by if name not in gone]):
            raise RequestError(f"without the family {family}, nothing makes the views of loss {loss.name}")
        if by:
            loss = Part(name=loss.name, **{**loss.options, "by": left})
    chosen_on = evaluation.model_copy(update={"augment_val": parts_without(evaluation.augment_val, family)})
    return recipe.model_copy(update={"augment": augment, "loss": loss, "evaluation": chosen_on})
