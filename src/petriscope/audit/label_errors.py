"""Labels that are likely wrong, by what networks that never saw them expect."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from petriscope.data.imageset import ImageSet


@dataclass(frozen=True, eq=False)
class LabelErrors:
    """What is thought of each label.

    Args:
        flagged: bool [N]: more likely wrong than right.
        suggested: int64 [N]: the most likely class; where the label is not flagged, the label.
        score: float32 [N]: the probability that the label is wrong.
    """

    flagged: np.ndarray
    suggested: np.ndarray
    score: np.ndarray


def out_of_fold_probabilities(
    images: ImageSet, *, folds: int = 4, repeats: int = 1, epochs: int = 8, seed: int = 0, quiet: bool = True
) -> np.ndarray:
    """Class probabilities of every picture from networks that were trained without it. float32 [N, K].

    Raises:
        DataError: fewer than two classes, or too few pictures.
    """
    raise NotImplementedError


def find_label_errors(targets: np.ndarray, probabilities: np.ndarray) -> LabelErrors:
    """Find the labels that are more likely wrong than right.

    Args:
        targets: int64 [N], the given labels.
        probabilities: float32 [N, K], of networks that were trained without the picture.
    """
    raise NotImplementedError
