"""Petriscope: from a collection of small images to a model that its owner can trust.

    import petriscope
    run = petriscope.train(petriscope.load_recipe("blood/fast", data={"source": "bloodmnist"}))
    petriscope.evaluate(run.folder)

Heavy packages are imported only when they are used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from petriscope.core.version import __version__

_PLACES = {
    "audit": "petriscope.api",
    "train": "petriscope.api",
    "plan": "petriscope.api",
    "resume": "petriscope.api",
    "evaluate": "petriscope.api",
    "calibrate": "petriscope.api",
    "adapt": "petriscope.api",
    "recalibrate": "petriscope.api",
    "predict": "petriscope.api",
    "explain": "petriscope.api",
    "report": "petriscope.api",
    "Report": "petriscope.report.notebook",
    "track": "petriscope.api",
    "compare": "petriscope.api",
    "ensemble": "petriscope.api",
    "export": "petriscope.api",
    "export_page": "petriscope.api",
    "verify": "petriscope.inference.verification",
    "run_suite": "petriscope.api",
    "tune": "petriscope.api",
    "load_suite": "petriscope.experiments.suite",
    "load_recipe": "petriscope.core.recipe",
    "Recipe": "petriscope.core.recipe",
    "load_dataset": "petriscope.data",
    "ImageSet": "petriscope.data",
    "Dataset": "petriscope.data",
    "load_model": "petriscope.inference.predictor",
    "Run": "petriscope.run.folder",
    "open_run": "petriscope.run.folder",
    "PetriscopeError": "petriscope.core.errors",
    "RequestError": "petriscope.core.errors",
    "DataError": "petriscope.core.errors",
}

__all__ = ["__version__", *_PLACES]

if TYPE_CHECKING:
    from petriscope.api import (
        adapt,
        audit,
        calibrate,
        compare,
        ensemble,
        evaluate,
        explain,
        export,
        export_page,
        plan,
        predict,
        recalibrate,
        report,
        resume,
        run_suite,
        track,
        train,
        tune,
    )
    from petriscope.core.errors import DataError, PetriscopeError, RequestError
    from petriscope.core.recipe import Recipe, load_recipe
    from petriscope.data import Dataset, ImageSet, load_dataset
    from petriscope.experiments.suite import load_suite
    from petriscope.inference.predictor import load_model
    from petriscope.inference.verification import verify
    from petriscope.report.notebook import Report
    from petriscope.run.folder import Run, open_run


class _Package(ModuleType):
    """Keeps the public names: when a subpackage is imported that is called like a function, the function stays."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _PLACES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'petriscope' has no attribute {name!r}")
    value = getattr(import_module(_PLACES[name]), name)
    if (room := sys.modules.get(f"{__name__}.{name}")) is not None:
        for each in getattr(room, "__all__", ()):
            getattr(room, each)  # names that the room imports on demand
        value.__dict__ = vars(room)  # petriscope.audit is the function, and petriscope.audit.Audit is still found
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
