"""The space that a tuning searches: keys of a recipe, each with a range or with choices."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

import annotated_types
import yaml
from pydantic import ValidationError, model_validator
from pydantic.fields import FieldInfo

from petriscope.augment import AUGMENTATIONS
from petriscope.augment.base import Mixing
from petriscope.core.errors import RequestError, shortened, shown
from petriscope.core.files import read_text, user_path
from petriscope.core.recipe import MAX_RECIPE_BYTES, Recipe, Section, explain, with_values
from petriscope.core.registry import Registry
from petriscope.core.yaml_text import InvalidYaml, read_yaml
from petriscope.models import MODELS
from petriscope.training.build import check_parts
from petriscope.training.losses import LOSSES
from petriscope.training.optimizers import OPTIMIZERS
from petriscope.training.schedules import SCHEDULES

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

AUTO = "auto"
MOST = 100  # parameters; a search that can be paid for learns about far fewer
PARTS: Mapping[str, Registry] = {"model": MODELS, "loss": LOSSES, "optimizer": OPTIMIZERS, "schedule": SCHEDULES}
FIXED = {  # keys that a space cannot have, and why
    "name": "it changes nothing that is trained",
    "about": "it changes nothing that is trained",
    "seed": "trials with different seeds would differ by luck; the best are trained with further seeds",
    "data": "all trials are compared on the same val images; only data.standardize and data.normalize can vary",
    "evaluation": "trials would be measured in different ways",
    "training.epochs": "it is what a trial costs; for another length, tune with --set training.epochs=N",
    "training.monitor": "trials would be measured in different ways",
    "training.keep": "trials would be measured in different ways",
    "training.device": "it changes nothing that is trained",
    "training.track": "it changes nothing that is trained",
    "training.checkpoint_seconds": "it changes nothing that is trained",
}
FREE = ("data.standardize", "data.normalize")
EXAMPLE = "a range such as {low: 0.001, high: 0.1, log: true}, or a list of choices such as [16, 32]"


class Range(Section):
    """A range as it is written in a space."""

    low: float
    high: float
    log: bool = False
    step: Annotated[float, annotated_types.Gt(0)] | None = None

    @model_validator(mode="after")
    def _is_a_range(self) -> Range:
        if self.low >= self.high:
            raise ValueError("low must be less than high")
        if self.log and self.low <= 0:
            raise ValueError("on a logarithmic scale, low must be greater than 0")
        if self.log and self.step is not None:
            raise ValueError("a logarithmic scale has no step; leave one of them out")
        if self.step is not None and self.step > self.high - self.low:
            raise ValueError("the step is longer than the range")
        return self


@dataclass(frozen=True)
class Span:
    """A key whose values are numbers from ``low`` to ``high``, whole numbers where ``whole`` is set."""

    key: str
    low: float
    high: float
    log: bool = False
    step: float | None = None
    whole: bool = False

    @property
    def ends(self) -> tuple[Any, ...]:
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)

    @property
    def plain(self) -> Any:
        """As it is written in YAML."""
        low, high = self.ends
        more = {"log": True} if self.log else {} if self.step is None else {"step": self.step}
        return {"low": low, "high": high, **more}

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def value(self, drawn: Any) -> Any:
        """The value in a recipe, of what Optuna drew: six digits of it, which people can read."""
        return round(drawn) if self.whole else min(max(float(f"{drawn:.6g}"), self.low), self.high)

    def drawn(self, value: Any) -> float | None:
        """What Optuna would have to draw for a value; None if it is not in the range."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not self.low <= value <= self.high or (self.whole and value != int(value)):
            return None
        steps = 0.0 if self.step is None else (value - self.low) / self.step
        return value if abs(steps - round(steps)) < 1e-6 else None


@dataclass(frozen=True)
class Choices:
    """A key with a few values, which may be whole parts. None in a list of parts: the part is left out."""

    key: str
    values: tuple[Any, ...]

    @property
    def ends(self) -> tuple[Any, ...]:
        return self.values

    @property
    def plain(self) -> Any:
        return list(self.values)

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution([label(value) for value in self.values])

    def value(self, drawn: Any) -> Any:
        return next(value for value in self.values if label(value) == drawn)

    def drawn(self, value: Any) -> str | None:
        return next((label(each) for each in self.values if _named(each) == _named(value)), None)


Parameter = Span | Choices


@dataclass(frozen=True)
class Space:
    """The parameters of a search.

    Args:
        where: the file that they are from, for messages.
    """

    parameters: tuple[Parameter, ...]
    where: str = AUTO

    def distributions(self) -> dict[str, BaseDistribution]:
        """What Optuna draws, by key."""
        return {parameter.key: parameter.distribution() for parameter in self.parameters}

    def recipe(self, start: Recipe, drawn: Mapping[str, Any]) -> Recipe:
        """The recipe of a trial: ``start`` with the values that were drawn.

        Raises:
            RequestError: the values do not fit together.
        """
        recipe = with_values(start, {each.key: each.value(drawn[each.key]) for each in self.parameters}, self.where)
        check_parts(recipe)
        return recipe

    def position(self, start: Recipe) -> tuple[dict[str, Any], list[str]]:
        """What Optuna would have to draw for the recipe itself, and the keys of which the recipe's value is not in the space."""
        found = {each.key: each.drawn(value_in(start, each.key)) for each in self.parameters}
        return found, [key for key, drawn in found.items() if drawn is None]

    @property
    def plain(self) -> dict[str, Any]:
        """As it is written in YAML."""
        return {each.key: each.plain for each in self.parameters}

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.plain, sort_keys=False, allow_unicode=True, width=10**9)


def label(value: Any) -> str:
    """A choice in words, such as ``cutmix, p 0.5``."""
    if value is None:
        return "none"
    if isinstance(value, dict) and "name" in value:
        return ", ".join([str(value["name"]), *(f"{k} {label(v)}" for k, v in value.items() if k != "name")])
    if isinstance(value, dict):
        return ", ".join(f"{k} {label(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(label, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def load_space(reference: str | Path, start: Recipe, dense: bool) -> Space:
    """The space in a YAML file, or the one that follows from the recipe.

    Args:
        reference: the path of a file, or ``auto``.
        dense: whether the targets are masks.

    Raises:
        RequestError: there is no such file, it has no parameters, or a key or a value is wrong.
    """
    if str(reference) == AUTO:
        return auto_space(start, dense)
    path = user_path(reference)
    if not path.is_file():
        raise RequestError(f"there is no file {path} with a space; --space auto takes one that follows from the recipe")
    try:
        tree = read_yaml(read_text(path, MAX_RECIPE_BYTES, "a space"))
    except InvalidYaml as error:
        raise RequestError(f"{path}: not readable as YAML: {error}") from None
    return read_space({} if tree is None else tree, start, str(path))


def read_space(tree: Any, start: Recipe, where: str = "space") -> Space:
    """A space that was read. Every end of a range and every choice is tried out in the recipe.

    Raises:
        RequestError: see `load_space`.
    """
    if not isinstance(tree, dict):
        raise RequestError(
            f"{where}: a space is a mapping of keys of the recipe, each with {EXAMPLE}; got {shown(tree)}"
        )
    if not tree:
        raise RequestError(f"{where}: there are no parameters; name keys of the recipe, each with {EXAMPLE}")
    if len(tree) > MOST:
        raise RequestError(f"{where}: there are {len(tree)} parameters; at most {MOST} can be searched")
    parameters = [_parameter(str(key).strip(), value, where) for key, value in tree.items()]
    choices = {each.key: each for each in parameters if isinstance(each, Choices)}
    checked = [_checked(each, _above(each.key, choices, where), start, where) for each in parameters]
    return Space(tuple(checked), where)


def _parameter(key: str, value: Any, where: str) -> Parameter:
    for fixed, why in FIXED.items():
        if (key == fixed or key.startswith(f"{fixed}.")) and key not in FREE:
            raise RequestError(f"{where}: {shortened(key)} cannot be searched: {why}")
    if isinstance(value, list):
        if len({label(each) for each in value}) < max(len(value), 2):
            raise RequestError(f"{where}: {shortened(key)} needs two or more different choices; got {shown(value)}")
        return Choices(key, tuple(value))
    if not isinstance(value, dict):
        raise RequestError(f"{where}: {shortened(key)} needs {EXAMPLE}; got {shown(value)}")
    try:
        found = Range.model_validate(value)
    except ValidationError as error:
        raise RequestError(explain(error, Range, f"{where}: {shortened(key)}")) from None
    ends = [value["low"], value["high"], value.get("step") or 1]
    whole = all(isinstance(end, int) and not isinstance(end, bool) for end in ends)
    return Span(key, found.low, found.high, found.log, found.step, whole)


def _above(key: str, choices: Mapping[str, Choices], where: str) -> list[dict[str, Any]]:
    """The values that the space has for the part that a key is an option of; one empty mapping if it has none."""
    steps = key.split(".")
    above = [".".join(steps[:end]) for end in range(1, len(steps))]
    part = next((choices[each] for each in above if each in choices), None)
    if part is not None and None in part.values:
        raise RequestError(f"{where}: {key} is an option of {part.key}, which can be left out; give its choices there")
    return [{}] if part is None else [{part.key: value} for value in part.values]


def _checked(parameter: Parameter, above: list[dict[str, Any]], start: Recipe, where: str) -> Parameter:
    """The parameter, after its ends were tried out. A range between whole numbers is one of all numbers where the recipe takes
    them, such as degrees from 0 to 45."""
    for part in above:
        for value in parameter.ends:
            _try(start, {**part, parameter.key: value}, f"{where}: {parameter.key}")
    if isinstance(parameter, Span) and parameter.whole:
        between = Span(parameter.key, parameter.low, parameter.high, parameter.log, parameter.step)
        try:
            _try(start, {**above[0], parameter.key: math.floor(parameter.low) + 0.5}, where)
        except RequestError:
            return parameter
        return between
    return parameter


def _try(start: Recipe, values: Mapping[str, Any], where: str) -> None:
    try:
        check_parts(with_values(start, values, where))
    except RequestError as error:
        said = str(error)
        raise RequestError(said if said.startswith(where) else f"{where}: {said}") from None


def value_in(recipe: Recipe, key: str) -> Any:
    """The value of a dotted key in a recipe, or the default of an option that the recipe does not state. None if there is
    none, such as for an entry of a list that it does not have."""
    steps = key.split(".")
    node: Any = recipe.model_dump(mode="json")
    part: tuple[Registry, str] | None = None  # the part that `node` is
    for depth, step in enumerate(steps):
        if isinstance(node, list):
            node = node[int(step)] if step.isdecimal() and int(step) < len(node) else None
            part = (AUGMENTATIONS, node["name"]) if steps[:depth] == ["augment"] and node is not None else None
        elif isinstance(node, dict) and step in node:
            node = node[step]
            part = (PARTS[step], node["name"]) if depth == 0 and step in PARTS else None
        elif part is not None:
            default = part[0].options(part[1]).get(step, (None, None))[1]
            node, part = (list(default) if isinstance(default, tuple) else default), None
        else:
            return None
    return node


def _named(value: Any) -> Any:
    """A value in the form in which a recipe holds it: parts with their names, lists, numbers of one kind."""
    if isinstance(value, str):
        return {"name": value}
    return list(value) if isinstance(value, tuple) else value


# ------------------------------------------------------------------------------------- a space that follows from a recipe


@dataclass(frozen=True)
class Bounds:
    """What the schema says of a number."""

    low: float
    high: float
    open_low: bool
    whole: bool
    multiple: int


def auto_space(start: Recipe, dense: bool) -> Space:
    """The parameters that matter for most recipes, around the recipe's values: learning rate, weight decay, momentum, label
    smoothing, the model's widths and dropout, how often and how much images are augmented, mixing, and the schedule.

    What an option may be follows from its annotation; a range always has the recipe's own value.

    Args:
        dense: whether the targets are masks.

    Raises:
        RequestError: the recipe has nothing to vary.
    """
    named = [*_of_optimizer(start), *_of_loss(start), *_of_model(start), *_of_augmentations(start)]
    named += [*_of_mixing(start, dense), *_of_schedule(start)]
    kept = [each for each in map(_rounded, named[:MOST]) if _fits(each, start)]
    if not kept:
        raise RequestError(
            f"{start.name}: there is nothing to vary in this recipe; write a space, and give it with --space"
        )
    return Space(tuple(kept))


def _rounded(parameter: Parameter) -> Parameter:
    """Without what arithmetic adds at the sixteenth digit."""
    if isinstance(parameter, Choices):
        return parameter
    return replace(parameter, low=float(f"{parameter.low:.12g}"), high=float(f"{parameter.high:.12g}"))


def _fits(parameter: Parameter, start: Recipe) -> bool:
    """Whether the recipe can have all of it; losses and models may refuse what their neighbors allow."""
    try:
        _checked(parameter, [{}], start, AUTO)
    except RequestError:
        return False
    return True


def _of_optimizer(start: Recipe) -> Iterator[Parameter]:
    options = OPTIMIZERS.options(start.optimizer.name)
    rate = float(value_in(start, "optimizer.lr"))
    yield Span("optimizer.lr", rate / 5, rate * 5, log=True)
    decay = float(value_in(start, "optimizer.weight_decay"))
    if decay > 0:
        yield Span("optimizer.weight_decay", decay / 10, decay * 10, log=True)
    else:
        yield Choices("optimizer.weight_decay", (0.0, 1e-4, 1e-3, 1e-2))
    if "momentum" in options:
        momentum = float(value_in(start, "optimizer.momentum"))
        yield Span("optimizer.momentum", min(0.8, momentum), max(0.98, momentum))


def _of_loss(start: Recipe) -> Iterator[Parameter]:
    if "label_smoothing" in LOSSES.options(start.loss.name):
        smoothing = float(value_in(start, "loss.label_smoothing"))
        yield Span("loss.label_smoothing", 0.0, max(0.2, min(2 * smoothing, 0.9)))


def _of_model(start: Recipe) -> Iterator[Parameter]:
    options = MODELS.options(start.model.name)
    for name, (annotation, _) in options.items():
        bounds, value = _bounds(annotation), value_in(start, f"model.{name}")
        if name.startswith("drop") and bounds is not None and not bounds.whole:
            usual = 0.3 if "path" in name else 0.5
            yield Span(f"model.{name}", 0.0, max(usual, min(1.5 * value, 0.95)))
    if value_in(start, "model.weights") in (None, "none"):  # trained weights fit one width alone
        yield from _widths(start, options)


def _widths(start: Recipe, options: Mapping[str, tuple[Any, Any]]) -> Iterator[Parameter]:
    if "widths" in options:
        widths = list(value_in(start, "model.widths"))
        step = max([_multiple(options["widths"][0]), *([8] if min(widths) >= 16 else [])])
        sizes = [[max(step, round(factor * width / step) * step) for width in widths] for factor in (0.5, 1.5)]
        different = [sizes[0], widths, sizes[1]]
        yield Choices("model.widths", tuple(each for i, each in enumerate(different) if each not in different[:i]))
    if "width" in options and (bounds := _bounds(options["width"][0])) is not None:
        width = float(value_in(start, "model.width"))
        yield Span("model.width", width / 2, min(1.5 * width, bounds.high))


def _of_augmentations(start: Recipe) -> Iterator[Parameter]:
    """The numbers that the recipe states."""
    for number, part in enumerate(start.augment):
        options = AUGMENTATIONS.options(part.name)
        for name, value in part.options.items():
            bounds = _bounds(options[name][0]) if name in options else None
            if bounds is None or not isinstance(value, int | float) or (value <= 0 and name != "p"):
                continue
            key = f"augment.{number}.{name}"
            if bounds.whole:
                low, high = max(bounds.low, value // 2), min(bounds.high, 2 * value)
                if low < high:
                    yield Span(key, low, high, whole=True)
            elif name in ("p", "horizontal", "vertical"):
                yield Span(key, 0.0, 1.0)
            else:
                low = value / 4 if bounds.open_low or bounds.low > 0 else 0.0
                yield Span(key, max(low, bounds.low), max(float(value), min(bounds.high, 2.0 * value)))


def _of_mixing(start: Recipe, dense: bool) -> Iterator[Parameter]:
    """One more augmentation, unless the recipe mixes images already, or does not augment at all."""
    if not start.augment or any(issubclass(_class(part.name), Mixing) for part in start.augment):
        return
    cutmix = {"name": "cutmix", "p": 0.5}
    others: list[dict[str, Any]] = [cutmix] if dense else [{"name": "mixup", "p": 0.5}, cutmix]
    yield Choices(f"augment.{len(start.augment)}", (None, *others))


def _class(name: str) -> type:
    found = AUGMENTATIONS.find(name)
    return found if isinstance(found, type) else object


def _of_schedule(start: Recipe) -> Iterator[Parameter]:
    own = start.schedule.model_dump(mode="json")
    others = [{"name": name} for name in ("one-cycle", "cosine") if name != start.schedule.name]
    yield Choices("schedule", (own, *others))


def _bounds(annotation: Any) -> Bounds | None:
    """The bounds of an option that is one number; None for anything else."""
    kind, *notes = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    if kind not in (int, float):
        return None
    low, high, open_low, multiple = -math.inf, math.inf, False, 1
    for note in _flattened(notes):
        if isinstance(note, annotated_types.Ge):
            low = float(note.ge)  # type: ignore[arg-type]
        elif isinstance(note, annotated_types.Gt):
            low, open_low = float(note.gt), True  # type: ignore[arg-type]
        elif isinstance(note, annotated_types.Le):
            high = float(note.le)  # type: ignore[arg-type]
        elif isinstance(note, annotated_types.Lt):
            high = float(note.lt) * 0.99  # type: ignore[arg-type]
        elif isinstance(note, annotated_types.MultipleOf):
            multiple = int(note.multiple_of)  # type: ignore[call-overload]
    return Bounds(low, high, open_low, kind is int, multiple)


def _multiple(annotation: Any) -> int:
    """What the whole numbers in a tuple have to be multiples of."""
    inner = get_args(get_args(annotation)[0]) if get_origin(annotation) is Annotated else get_args(annotation)
    bounds = _bounds(inner[0]) if inner else None
    return 1 if bounds is None else bounds.multiple


def _flattened(notes: Iterable[Any]) -> Iterator[Any]:
    for note in notes:
        yield from note.metadata if isinstance(note, FieldInfo) else [note]
