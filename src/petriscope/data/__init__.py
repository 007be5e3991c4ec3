"""Images in: sources, splits and the one array they become. What reads sources is imported when it is used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_MODULES = {"Dataset": "imageset", "ImageSet": "imageset", "load_dataset": "load"}

__all__ = ["Dataset", "ImageSet", "load_dataset"]

if TYPE_CHECKING:
    from petriscope.data.imageset import Dataset, ImageSet
    from petriscope.data.load import load_dataset


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
