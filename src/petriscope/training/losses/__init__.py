"""Losses: logits and targets -> a scalar.

Logits are float [B, K], with targets either labels, int64 [B], or the share of each class, float [B, K]; or, for masks,
logits are float [B, K, H, W] and targets int64 [B, H, W]. Pixels that are `petriscope.core.masks.IGNORE` in the mask are
left out, and a batch without any labeled pixel has loss 0.
"""

from petriscope.augment.pipeline import NO_VIEWS, Views
from petriscope.core.recipe import Part
from petriscope.core.registry import Registry

LOSSES = Registry(
    "loss",
    {
        "cross-entropy": "petriscope.training.losses.cross_entropy:CrossEntropy",
        "focal": "petriscope.training.losses.cross_entropy:FocalLoss",
        "generalized-cross-entropy": "petriscope.training.losses.cross_entropy:GeneralizedCrossEntropy",
        "dice": "petriscope.training.losses.overlap:DiceLoss",
        "tversky": "petriscope.training.losses.overlap:TverskyLoss",
        "lovasz": "petriscope.training.losses.overlap:LovaszSoftmax",
        "sum": "petriscope.training.losses.sums:SumOfLosses",
        "consistency": "petriscope.training.losses.consistency:Consistency",
    },
)


def views_of(part: Part) -> Views:
    """The augmented views of each image that a loss compares with the image; most losses have none.

    With V views the loss is given logits [(1 + V) B, K], those of the images first, then those of their first views, and
    so on. Targets [B] are those of the images.
    """
    if part.name != "consistency":
        return NO_VIEWS
    options = LOSSES.check(part)
    return Views(options["views"], options["by"])
