"""What is wrong with a set of images: duplicates, planted images, outliers, label errors, quality, masks.

    from petriscope.audit import audit, find_duplicates
    found = audit("cells/")
    found.table[found.table["decision"] == "drop"]

`audit` does all of it; each part may be used alone. Nothing heavy is imported until it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_PLACES = {
    "audit": "auditing",
    "Audit": "auditing",
    "find_duplicates": "duplicates",
    "find_planted": "planted",
    "find_outliers": "outliers",
    "nearest": "outliers",
    "learned_features": "features",
    "run_features": "features",
    "backbone_features": "features",
    "out_of_fold_probabilities": "label_errors",
    "find_label_errors": "label_errors",
    "measure_quality": "quality",
    "check_masks": "masks",
    "mask_table": "mask_table",
}

__all__ = [*_PLACES]

if TYPE_CHECKING:
    from petriscope.audit.duplicates import find_duplicates
    from petriscope.audit.embeddings import backbone_features, learned_features, run_features
    from petriscope.audit.label_errors import find_label_errors, out_of_fold_probabilities
    from petriscope.audit.mask_table import mask_table
    from petriscope.audit.masks import check_masks
    from petriscope.audit.outliers import find_outliers, nearest
    from petriscope.audit.planted import find_planted
    from petriscope.audit.quality import measure_quality
    from petriscope.audit.runner import Audit, audit


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
