"""How a run is repeated: commands, versions, hardware."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from petriscope.core.recipe import Recipe
from petriscope.report import wording
from petriscope.report.standing import TTA_WORDS


def repetition(folder: Path, recipe: Recipe, environment: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    data = environment.get("data") or {}
    source = data.get("source")
    train = f"petriscope train {shlex.quote(str(folder / 'recipe.yaml'))} --seed {recipe.seed}"
    if joined := results.get("ensemble"):
        members = " ".join(shlex.quote(row["run"]) for row in joined["members"])
        train = f"petriscope ensemble {members} --method {joined['method']}"
    elif recipe.data.source is None and source:
        train += f" --data {shlex.quote(str(source))}"
    tta = (results.get("test") or {}).get("tta")
    flag = f" --tta {tta}" if tta in ("none", *TTA_WORDS) and tta != recipe.evaluation.tta else ""
    hardware = environment.get("hardware") or {}
    packages = environment.get("packages") or {}
    versions = [f"{name} {version}" for name, version in packages.items() if version]
    if environment.get("python"):
        versions.insert(0, f"Python {environment['python']}")
    machine = [
        str(hardware.get("gpu") or ""),
        str(hardware.get("processor") or ""),
        wording.plural(hardware["cores"], "core") if hardware.get("cores") else "",
        wording.plural(hardware["threads"], "thread") + " used" if hardware.get("threads") else "",
        str(hardware.get("system") or ""),
    ]
    facts = [
        ("Command given", str(environment.get("command") or "")),
        ("Versions", ", ".join(versions)),
        ("Hardware", ", ".join(word for word in machine if word)),
        ("Data fingerprint", str(data.get("fingerprint") or "")),
    ]
    on_cpu = str(environment.get("device") or "").startswith("cpu")
    exact = "With this machine, these versions and this number of threads, the weights come out the same bit for bit."
    near = "Training on a GPU repeats closely, not bit for bit."
    return {
        "train": train,
        "evaluate": f"petriscope evaluate {shlex.quote(str(folder))}{flag}",
        "facts": [(name, value) for name, value in facts if value],
        "promise": exact if on_cpu else near if environment.get("device") else "",
    }
