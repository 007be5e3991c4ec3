"""What the pixels of a mask mean."""

from __future__ import annotations

BACKGROUND = "background"  # the class that stands for unlabeled ground, where a source has one
IGNORE = 255  # an unlabeled pixel: it is neither trained on nor scored
