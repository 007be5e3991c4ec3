"""Losses: logits and targets -> a scalar.

Logits are float [B, K], with targets either labels, int64 [B], or the share of each class, float [B, K]; or, for masks,
logits are float [B, K, H, W] and targets int64 [B, H, W]. Pixels that are `petriscope.core.masks.IGNORE` in the mask are
left out, and a batch without any labeled pixel has loss 0. Losses with ``per_label`` are for images that have any number of
labels: logits float [B, K], and targets float [B, K] from 0 to 1, which need not sum to 1.
"""

from torch import nn

from petriscope.augment.pipeline import NO_VIEWS, Views
from petriscope.core.errors import RequestError
from petriscope.core.recipe import Part
from petriscope.core.registry import Registry
from petriscope.data.imageset import ImageSet

LOSSES = Registry(
    "loss",
    {
        "cross-entropy": "petriscope.training.losses.cross_entropy:CrossEntropy",
        "focal": "petriscope.training.losses.cross_entropy:FocalLoss",
        "generalized-cross-entropy": "petriscope.training.losses.cross_entropy:GeneralizedCrossEntropy",
        "dice": "petriscope.training.losses.overlap:DiceLoss",
        "tversky": "petriscope.training.losses.overlap:TverskyLoss",
        "lovasz": "petriscope.training.losses.overlap:LovaszSoftmax",
        "binary-cross-entropy": "petriscope.training.losses.per_label:BinaryCrossEntropy",
        "binary-focal": "petriscope.training.losses.per_label:BinaryFocal",
        "asymmetric": "petriscope.training.losses.per_label:AsymmetricLoss",
        "sum": "petriscope.training.losses.sums:SumOfLosses",
        "consistency": "petriscope.training.losses.consistency:Consistency",
    },
)


def build_loss(part: Part, train: ImageSet) -> nn.Module:
    """The loss that a recipe asks for, or that of the same name for the task of the training images.

    Raises:
        RequestError: it is not for their targets, or an option is wrong.
    """
    task = train.task
    part = Part(name=task.loss_names.get(part.name, part.name), **part.options)
    loss: nn.Module = LOSSES.build(part, task.loss_counts(train.targets, len(train.classes)))
    if getattr(loss, "per_label", False) == task.exclusive:
        several = "binary-cross-entropy, binary-focal or asymmetric"
        raise RequestError(
            f"loss {part.name} is for images that have any number of labels, and the targets are {task.about}"
            if task.exclusive
            else f"loss {part.name} is for one class per image or pixel, and the targets are {task.about}: choose {several}"
        )
    return loss


def views_of(part: Part) -> Views:
    """The augmented views of each image that a loss compares with the image; most losses have none.

    With V views the loss is given logits [(1 + V) B, K], those of the images first, then those of their first views, and
    so on. Targets [B] are those of the images.
    """
    if part.name != "consistency":
        return NO_VIEWS
    options = LOSSES.check(part)
    return Views(options["views"], options["by"])
