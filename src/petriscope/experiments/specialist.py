"""Joining a model of all classes with a specialist of one class, by the rule that is best on val."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from petriscope.core.errors import RequestError, near
from petriscope.core.masks import IGNORE
from petriscope.data.fingerprint import fingerprint
from petriscope.data.imageset import Dataset, ImageSet
from petriscope.data.one_vs_rest import one_vs_rest
from petriscope.experiments.segmentation import mask_predictions
from petriscope.inference.predictor import Predictor
from petriscope.inference.tta import TTA
from petriscope.metrics.segmentation import Tally, background_of, class_iou, mean_iou, tally_masks
from petriscope.models.voting import SpecialistRule
from petriscope.run.folder import Run

# A specialist that saw its class more often than it occurs predicts it too often, so high thresholds are tried in fine steps.
THRESHOLDS = (*(i / 20 for i in range(1, 20)), 0.97, 0.98, 0.99, 0.995)
SHARES = (0.0, 0.25, 0.5, 0.75)  # weight of the main model's probability in the score


@dataclass(frozen=True)
class Rule:
    """See `petriscope.models.voting.SpecialistRule`."""

    threshold: float
    share: float


@dataclass(frozen=True)
class Choice:
    """The rule that was chosen on val.

    Args:
        rule: the one with the largest mean IoU; None if no rule beats the main model alone.
        main: counts of the main model's own predictions.
        alone: IoU of the class when the specialist predicts it alone, at probability 0.5; NaN if val does not have the class.
    """

    rule: Rule | None
    main: Tally
    alone: float


def check_pair(runs: Sequence[Run], members: Sequence[Predictor]) -> str:
    """The class of the specialist, which is the second of two runs.

    Raises:
        RequestError: the runs are not a main model and a specialist of one of its classes.
    """
    if len(runs) != 2:
        raise RequestError(
            "the method specialist joins two runs: first a main model, then a specialist of one of its classes"
        )
    (main, other), only = members, members[1].recipe.data.only
    if main.recipe.data.only is not None:
        raise RequestError(f"{runs[0].folder} is a specialist of {main.recipe.data.only!r}; name the main model first")
    if only is None:
        raise RequestError(
            f"{runs[1].folder} is not a specialist; to train one, use the recipe of the main model with --set "
            "data.only=CLASS, or a recipe such as mars/big-rock"
        )
    if only not in main.classes:
        raise RequestError(
            f"{runs[1].folder} is a specialist of {only!r}, which is not a class of {runs[0].folder}; {near(only, main.classes)}"
        )
    if main.shape != other.shape:
        raise RequestError(f"{runs[0].folder} takes images of {main.shape}, {runs[1].folder} of {other.shape}")
    return only


def fingerprint_of(dataset: Dataset, only: str) -> str:
    """The fingerprint that the same data have with ``data.only``: equal images and splits, masks of one class."""
    sets = {name: one_vs_rest(part, only, dataset.source) for name, part in dataset.splits.items()}
    return fingerprint(sets, {name: part.digests() for name, part in sets.items()})


def choose_rule(
    main: Predictor, specialist: Predictor, val: ImageSet, index: int, tta: TTA, label: str | None
) -> Choice:
    """Try all rules on val and choose the one with the best mean IoU, or none if the main model alone is as good.

    Args:
        index: index of the specialist's class among the main model's classes.
        label: label of the progress bar; None: no bar.
    """
    counts = RuleCounts(index, len(main.classes))

    def watched() -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
        size = main.recipe.evaluation.batch_size
        both = (mask_predictions(main, val, tta, label, size), mask_predictions(specialist, val, tta, None, size))
        for (indices, log_p, masks), (_, of_class, _) in zip(*both, strict=True):
            counts.add(torch.cat([log_p, of_class], 1), masks)
            yield indices, log_p, masks

    tally = tally_masks(watched(), len(val), len(main.classes))
    background = background_of(main.classes)
    confusion = counts.confusion()
    scores = np.nan_to_num(mean_iou(confusion, background))
    at = np.unravel_index(scores.argmax(), scores.shape)
    better = scores[at] > mean_iou(tally.confusion.sum(0), background)
    rule = Rule(THRESHOLDS[at[1]], SHARES[at[0]]) if better else None
    alone = class_iou(confusion[SHARES.index(0.0), THRESHOLDS.index(0.5)])[index]
    return Choice(rule, tally, float(alone))


class RuleCounts:
    """Counts pixels for the confusion matrices of all rules in one pass.

    Pixels are counted by share, by the number of thresholds that their score exceeds, by true class, and by the class that
    the main model finds most likely among the others.

    Args:
        index: index of the specialist's class.
        classes: number of classes, K.
    """

    def __init__(self, index: int, classes: int) -> None:
        self.index, self.classes = index, classes
        self.rules = [SpecialistRule(index, 0.5, share) for share in SHARES]
        self.pixels = np.zeros((len(SHARES), len(THRESHOLDS) + 1, classes, classes), dtype=np.int64)

    def add(self, log_p: Tensor, masks: Tensor) -> None:
        """Count a batch: log-probabilities as `SpecialistRule` takes them, float [B, K + 2, H, W]; masks, uint8 [B, H, W]."""
        labeled = masks != IGNORE
        others = log_p[:, : self.classes].clone()
        others[:, self.index] = -torch.inf
        cells = masks[labeled].long() * self.classes + others.argmax(1)[labeled]
        cuts = torch.tensor(THRESHOLDS, device=log_p.device).logit()
        for share, rule in enumerate(self.rules):
            above = torch.bucketize(rule.log_odds(log_p)[labeled].contiguous(), cuts)
            found = torch.bincount(above * self.classes**2 + cells, minlength=self.pixels[share].size)
            self.pixels[share] += found.view(self.pixels[share].shape).cpu().numpy()

    def confusion(self) -> np.ndarray:
        """Confusion matrices by true and predicted class, int64 [shares, thresholds, K, K]."""
        below = self.pixels.cumsum(1)
        above = (below[:, -1:] - below).sum(-1)  # [shares, thresholds + 1, K], by true class
        below[..., self.index] += above
        return below[:, :-1]
