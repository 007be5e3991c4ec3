"""timm, behind one door: it imports torchvision, which needs help beside a torch it was not built for."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

_fragments: list[Any] = []  # a library lives as long as something holds it


def import_timm() -> ModuleType:
    """Import timm, also where torchvision's compiled operators do not match torch.

    A CPU build of torch beside the common build of torchvision makes ``import torchvision`` fail, because it registers
    shapes for operators (``nms``) that its library did not load. Declaring them first lets the rest of torchvision
    work; nothing here calls them.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        import torch

        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _fragments.append(library)
    import timm

    return timm
