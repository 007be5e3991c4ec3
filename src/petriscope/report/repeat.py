"""How to repeat a run: commands, versions, hardware."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from petriscope.core.recipe import Recipe
from petriscope.core.results import Environment, Hardware, Results
from petriscope.report import wording
from petriscope.report.adaptation import repeated
from petriscope.report.cross_validation import repeated as repeated_folds
from petriscope.report.self_training import repeated_self_training
from petriscope.report.standing import TTA_WORDS


@dataclass(frozen=True)
class Repetition:
    """Commands that train and evaluate again, terms with their values, and how exactly training repeats."""

    train: str
    evaluate: str
    facts: list[tuple[str, str]]
    exactness: str


def repetition(folder: Path, recipe: Recipe, environment: Environment, results: Results) -> Repetition:
    source = environment.data.source
    train = f"petriscope train {shlex.quote(str(folder / 'recipe.yaml'))} --seed {recipe.seed}"
    if results.ensemble is not None:
        members = " ".join(shlex.quote(member.run) for member in results.ensemble.members)
        train = f"petriscope ensemble {members} --method {results.ensemble.method}"
    elif results.adaptation is not None:
        train = repeated(results.adaptation, recipe.seed)
    elif results.cross_validation is not None:
        train = repeated_folds(results.cross_validation, folder)
    elif results.self_training is not None:
        train = repeated_self_training(results.self_training, recipe.seed)
    elif not recipe.data.origin and source:
        train += f" --data {shlex.quote(source)}"
    tta = None if results.test is None else results.test.tta
    flag = f" --tta {tta}" if tta in ("none", *TTA_WORDS) and tta != recipe.evaluation.tta else ""
    versions = [f"{name} {version}" for name, version in environment.packages.items() if version]
    if environment.python:
        versions.insert(0, f"Python {environment.python}")
    facts = [
        ("Command given", environment.command),
        ("Versions", ", ".join(versions)),
        ("Hardware", _hardware(environment.hardware)),
        ("Data fingerprint", environment.data.fingerprint),
    ]
    exactness = ""
    if environment.device.startswith("cpu"):
        exactness = (
            "With this machine, these versions and this number of threads, training gives the same weights bit for bit."
        )
        if results.cross_validation is not None:
            exactness += (
                " A training that was shortened to keep to a budget is repeated by the recipe in its own folder."
            )
    elif environment.device:
        exactness = "On a GPU, training repeats closely but not bit for bit."
    return Repetition(
        train=train,
        evaluate=f"petriscope evaluate {shlex.quote(str(folder))}{flag}",
        facts=[(name, value) for name, value in facts if value],
        exactness=exactness,
    )


def _hardware(hardware: Hardware) -> str:
    parts = (
        hardware.gpu or "",
        hardware.processor,
        wording.plural(hardware.cores, "core") if hardware.cores else "",
        wording.plural(hardware.threads, "thread") + " used" if hardware.threads else "",
        hardware.system,
    )
    return ", ".join(part for part in parts if part)
