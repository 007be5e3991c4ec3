"""Suites: methods and seeds in one YAML file, and the runs that they define."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from petriscope.core.errors import RequestError, near, shortened, shown
from petriscope.core.files import read_text, slug, user_path
from petriscope.core.recipe import MAX_RECIPE_BYTES, DataSection, Recipe, Section, explain, load_recipe, read_setting
from petriscope.core.yaml_text import InvalidYaml, read_yaml
from petriscope.experiments.compare import in_words, settings_that_differ
from petriscope.experiments.ensemble import Method as Joining
from petriscope.run.folder import Run, check_free
from petriscope.run.trackers import check_trackers
from petriscope.training.build import absolute_paths, check_parts

Split = Literal["val", "test"]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class Method(Section):
    """A recipe with changed settings, ``{recipe: blood/fast, set: {model.dropout: 0.5}}`` or just ``blood/fast``; or an
    ensemble of methods, ``{ensemble: soft, of: [blood/fast, blood/simple-cnn]}``.
    """

    recipe: str | None = None
    set: dict[str, Any] = Field(default_factory=dict)
    ensemble: Joining | None = None
    of: tuple[Method, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"recipe": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Method:
        if (self.recipe is None) == (self.ensemble is None):
            raise ValueError("a method has either a recipe, or an ensemble and its members under of")
        if self.ensemble is None and self.of:
            raise ValueError("of lists the members of an ensemble; name its method too, such as ensemble: soft")
        if self.ensemble is not None and (len(self.of) < 2 or self.set or any(member.of for member in self.of)):
            raise ValueError(
                "an ensemble needs at least two recipes under of; settings go into the set of each of them"
            )
        return self


class Suite(Section):
    """A suite of methods.

    Args:
        data: a source for all methods; None: the sources of the recipes.
        baseline: the label of the method that the others are compared with.
        metric: the metric to compare; None: the task's first, such as accuracy or miou.
        evaluate: the split to compare on; test is read only after all runs are finished.
        set: settings for all recipes; those of a method's own ``set`` take precedence.
        methods: by label.
    """

    name: str
    about: str = ""
    data: str | None = None
    seeds: tuple[Seed, ...] = (0, 1, 2)
    baseline: str
    metric: str | None = None
    evaluate: Split = "val"
    set: dict[str, Any] = Field(default_factory=dict)
    methods: Annotated[dict[str, Method], Field(min_length=1)]

    def with_settings(self, settings: Sequence[str]) -> Suite:
        """The suite with more settings for all recipes, ``KEY=VALUE`` strings. A method's own ``set`` takes precedence.

        Raises:
            RequestError: a text is no setting.
        """
        return self.model_copy(update={"set": {**self.set, **dict(map(read_setting, settings))}})

    @field_validator("seeds")
    @classmethod
    def _differ(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return check_seeds(value)

    @model_validator(mode="after")
    def _has_baseline(self) -> Suite:
        if self.baseline not in self.methods:
            raise ValueError(f"the baseline {self.baseline!r} is not a method; {near(self.baseline, self.methods)}")
        folders: dict[str, str] = {}
        for label in self.methods:
            # File systems of macOS and Windows do not tell upper from lower case.
            other = folders.setdefault(slug(label).casefold(), label)
            if other != label:
                raise ValueError(f"the labels {other!r} and {label!r} would share the folder {slug(label)!r}")
        return self


@dataclass(frozen=True)
class Planned:
    """One run of a suite.

    Args:
        recipe: for an ensemble, the recipe of its first member.
        ensemble: how the members are joined; None for a run that is trained itself.
    """

    label: str
    recipe: Recipe
    folder: Path
    ensemble: Joining | None = None
    members: tuple[Planned, ...] = ()

    @property
    def trainings(self) -> tuple[Planned, ...]:
        """The runs to train: its members, or the run itself."""
        return self.members or (self,)

    @property
    def begun(self) -> bool:
        return (self.folder / "recipe.yaml").is_file()

    @property
    def finished(self) -> bool:
        return self.begun and Run(self.folder).finished and (self.folder / "report.html").is_file()

    def __str__(self) -> str:
        return f"{self.label}, seed {self.recipe.seed}"


def suite_names() -> list[str]:
    """The names of the suites that ship."""
    root = resources.files("petriscope") / "suites"
    return sorted(entry.name[:-5] for entry in root.iterdir() if entry.name.endswith(".yaml"))


def load_suite(reference: str | Path) -> Suite:
    """A shipped suite by name, or a YAML file by path. Paths of recipes in it are relative to the file.

    Raises:
        RequestError: there is no such suite, or a key or value is wrong; the message suggests similar names.
    """
    path = user_path(reference)
    where = str(reference)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise RequestError(f"no suite file {path}")
        text, beside, name = read_text(path, MAX_RECIPE_BYTES, "a suite"), path.resolve().parent, path.stem
    elif where in suite_names():
        text = (resources.files("petriscope") / "suites" / f"{where}.yaml").read_text(encoding="utf-8")
        beside, name = Path.cwd(), where
    else:
        raise RequestError(f"no suite {shown(where)}; {near(where, suite_names())} (or give a path ending in .yaml)")
    try:
        tree = read_yaml(text)
    except InvalidYaml as error:
        raise RequestError(f"{where}: not readable as YAML: {error}") from None
    if not isinstance(tree, dict) or not isinstance(tree.get("methods"), dict):
        raise RequestError(f"{where}: a suite is a mapping whose key methods maps labels to recipes")
    if len({str(label) for label in tree["methods"]}) < len(tree["methods"]):
        raise RequestError(f"{where}: two methods have the same label; labels that are numbers count as text")
    methods = {str(label): _method(value, beside, f"{where}: {label}") for label, value in tree["methods"].items()}
    first = next(iter(methods), "")
    try:
        return Suite.model_validate({"name": name, "baseline": first, **tree, "methods": methods})
    except ValidationError as error:
        raise RequestError(explain(error, Suite, where)) from None


def check_seeds(seeds: tuple[int, ...]) -> tuple[int, ...]:
    """Check that there are seeds and that none is repeated."""
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise ValueError("seeds must be one or more different whole numbers from 0")
    return seeds


def plan(suite: Suite, out: Path, data: str | None = None, seeds: Sequence[int] = ()) -> list[Planned]:
    """The runs of a suite, ordered by seed, so that methods can be compared even if it is stopped early.

    Raises:
        RequestError: a recipe or a setting is wrong, the methods have different data, or a run in ``out`` was trained with
            other settings than the suite has now.
    """
    chosen = check_seeds(tuple(seeds)) if seeds else suite.seeds
    source = data if data is not None else suite.data
    runs = [
        _planned(suite, label, method, seed, source, out / f"{slug(label)}-seed{seed}")
        for seed in chosen
        for label, method in suite.methods.items()
    ]
    _check_one_source(suite, runs)
    for planned in runs:
        _check_unchanged(suite, planned)
    return runs


def _planned(suite: Suite, label: str, method: Method, seed: int, source: str | None, folder: Path) -> Planned:
    if method.recipe is None:
        members = tuple(
            _planned(suite, f"{label}, member {i}", member, seed, source, folder.with_name(f"{folder.name}-member{i}"))
            for i, member in enumerate(method.of, 1)
        )
        return Planned(label, members[0].recipe, folder, method.ensemble, members)
    settings = [_setting(key, value) for key, value in {**suite.set, **method.set}.items()]
    overrides = {} if source is None else {"data": {"source": source}}
    try:
        recipe = load_recipe(method.recipe, settings, name=f"{suite.name}: {label}", seed=seed, **overrides)
        check_parts(recipe)
        check_trackers(recipe.training.track)
    except RequestError as error:
        raise RequestError(f"{shortened(suite.name)}: {shortened(label)}: {error}") from None
    return Planned(label, absolute_paths(recipe), folder)


def _method(value: Any, beside: Path, where: str) -> Method:
    try:
        method = Method.model_validate(value)
    except ValidationError as error:
        raise RequestError(explain(error, Method, where)) from None
    return _located(method, beside)


def _located(method: Method, beside: Path) -> Method:
    """The method with absolute paths of recipes."""
    recipe = method.recipe
    if recipe is not None and recipe.endswith((".yaml", ".yml")):
        recipe = str(user_path(recipe, beside))
    return method.model_copy(update={"recipe": recipe, "of": tuple(_located(member, beside) for member in method.of)})


def _setting(key: str, value: Any) -> str:
    """A key and its value in the form that `load_recipe` takes."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**9)
    scalar = text.removesuffix("...\n")  # YAML's end marker, which follows a bare value
    return f"{key}={scalar.strip()}"


def _check_one_source(suite: Suite, runs: Sequence[Planned]) -> None:
    """Methods can be compared only on the same images."""
    first, *others = (training for planned in runs for training in planned.trainings)
    for planned in others:
        mine = _which_images(planned.recipe.data)
        for key, ours in _which_images(first.recipe.data).items():
            if ours != mine.get(key):
                raise RequestError(
                    f"{suite.name}: methods can be compared only on the same images, but data.{key} is "
                    f"{ours!r} for {first.label} and {mine.get(key)!r} for {planned.label}"
                )


def _which_images(section: DataSection) -> dict[str, Any]:
    """The settings that decide which images there are, and in which split; those of several sources by dotted keys."""
    keys = ("origin", "leave_out", "splits", "val_fraction", "test_fraction", "split_seed", "group", "block", "ignore")
    out = {key: getattr(section, key) for key in keys}
    for name, source in (section.sources or {}).items():
        out |= {f"sources.{name}.{key}": getattr(source, key) for key in ("split", "group", "prefix")}
    return out


def _check_unchanged(suite: Suite, planned: Planned) -> None:
    for member in planned.members:
        _check_unchanged(suite, member)
    if not planned.begun:
        check_free(planned.folder)
        return
    if planned.ensemble is not None:
        _check_ensemble(suite, planned)
        return
    pairs = settings_that_differ(Run(planned.folder).recipe, planned.recipe)
    if pairs:
        raise RequestError(
            f"{planned.folder} was trained with other settings than {suite.name} has now: {in_words(pairs)}. "
            "Move this folder away, or choose another --out"
        )


def _check_ensemble(suite: Suite, planned: Planned) -> None:
    """Check that the run where an ensemble should be is that ensemble, or one that was not finished."""
    run, away = Run(planned.folder), "Move this folder away, or choose another --out"
    if not run.environment.members:
        raise RequestError(
            f"{planned.folder} is a run that was trained itself, but {suite.name} has an ensemble there. {away}"
        )
    joined = run.results.ensemble
    if joined is None:
        return
    was, now = joined.method, planned.ensemble
    if was != now:
        raise RequestError(f"{planned.folder} was joined by {was}, but {suite.name} now joins by {now}. {away}")
    of = [Path(member.run).name for member in joined.members]
    if of != [member.folder.name for member in planned.members]:
        raise RequestError(
            f"{planned.folder} was joined from {', '.join(of)}, but {suite.name} now joins {len(planned.members)} runs. "
            f"{away}"
        )
