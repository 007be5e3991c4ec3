"""A specialist of one class beside a model of all: whether they fit together, and by what rule val joins them best."""

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

# A specialist that was shown its class more often than it comes finds too much of it: high thresholds are tried closely.
THRESHOLDS = (*(i / 20 for i in range(1, 20)), 0.97, 0.98, 0.99, 0.995)
SHARES = (0.0, 0.25, 0.5, 0.75)  # of the main's probability in the score


@dataclass(frozen=True)
class Rule:
    """See `petriscope.models.voting.SpecialistRule`."""

    threshold: float
    share: float


@dataclass(frozen=True)
class Choice:
    """What val says of the rules.

    Args:
        rule: of the largest mean IoU; None: no rule has a larger one than the main model.
        main: what the main model's own answers count.
        alone: IoU of the class by the specialist alone, where it is likelier than the rest; NaN if val has none.
    """

    rule: Rule | None
    main: Tally
    alone: float


def check_pair(runs: Sequence[Run], members: Sequence[Predictor]) -> str:
    """The class of the specialist, the second of two runs.

    Raises:
        RequestError: they are no main model and a specialist of one of its classes.
    """
    if len(runs) != 2:
        raise RequestError("specialist joins two runs: a main model, then the model of one of its classes")
    (main, other), only = members, members[1].recipe.data.only
    if main.recipe.data.only is not None:
        raise RequestError(f"{runs[0].folder} knows {main.recipe.data.only!r} alone; name the main model first")
    if only is None:
        raise RequestError(
            f"{runs[1].folder} is no specialist; one is trained as the main model is, with --set data.only=CLASS, such as "
            "petriscope train mars/big-rock"
        )
    if only not in main.classes:
        raise RequestError(
            f"{runs[1].folder} knows {only!r}, which {runs[0].folder} does not; {near(only, main.classes)}"
        )
    if main.shape != other.shape:
        raise RequestError(f"{runs[0].folder} takes images of {main.shape}, {runs[1].folder} of {other.shape}")
    return only


def fingerprint_of(dataset: Dataset, only: str) -> str:
    """What the fingerprint of the same data is with ``data.only``: equal images, splits and masks, one class told."""
    sets = {name: one_vs_rest(part, only, dataset.source) for name, part in dataset.splits.items()}
    return fingerprint(sets, {name: part.digests() for name, part in sets.items()})


def choose_rule(
    main: Predictor, specialist: Predictor, val: ImageSet, index: int, tta: TTA, label: str | None
) -> Choice:
    """Try all rules on val by mean IoU, never to change the main's answer among them.

    Args:
        index: of the specialist's class among the main's.
        label: of the progress shown, None for none.
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
    """Confusion matrices of all rules at once: pixels by share, by how many thresholds their score is above, by true class,
    and by what the main finds likeliest of the other classes.

    Args:
        index: of the specialist's class.
        classes: K.
    """

    def __init__(self, index: int, classes: int) -> None:
        self.index, self.classes = index, classes
        self.rules = [SpecialistRule(index, 0.5, share) for share in SHARES]
        self.pixels = np.zeros((len(SHARES), len(THRESHOLDS) + 1, classes, classes), dtype=np.int64)

    def add(self, log_p: Tensor, masks: Tensor) -> None:
        """Count a batch: log-probabilities as `SpecialistRule` takes them, float [B, K + 2, H, W], and uint8 [B, H, W]."""
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
        """By true class and predicted class, int64 [shares, thresholds, K, K]."""
        below = self.pixels.cumsum(1)
        above = (below[:, -1:] - below).sum(-1)  # [shares, thresholds + 1, K], by true class
        below[..., self.index] += above
        return below[:, :-1]
