"""Finds what is wrong with a set of images: duplicates, planted images, outliers, label errors, poor quality, masks.

    from petriscope.audit import audit, find_duplicates
    found = audit("cells/")
    found.table[found.table["decision"] == "drop"]

`audit` runs all checks. Each part can also be used alone. Modules are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_MODULES = {
    "audit": "runner",
    "Audit": "runner",
    "find_duplicates": "duplicates",
    "find_planted": "planted",
    "find_outliers": "outliers",
    "nearest": "outliers",
    "learned_features": "embeddings",
    "run_features": "embeddings",
    "backbone_features": "embeddings",
    "out_of_fold_probabilities": "label_errors",
    "find_label_errors": "label_errors",
    "measure_quality": "quality",
    "check_masks": "mask_faults",
    "mask_table": "raw_masks",
}

__all__ = [*_MODULES]

if TYPE_CHECKING:
    from petriscope.audit.duplicates import find_duplicates
    from petriscope.audit.embeddings import backbone_features, learned_features, run_features
    from petriscope.audit.label_errors import find_label_errors, out_of_fold_probabilities
    from petriscope.audit.mask_faults import check_masks
    from petriscope.audit.outliers import find_outliers, nearest
    from petriscope.audit.planted import find_planted
    from petriscope.audit.quality import measure_quality
    from petriscope.audit.raw_masks import mask_table
    from petriscope.audit.runner import Audit, audit


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
