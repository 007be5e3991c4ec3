"""Running a model over a set, with or without turned and mirrored copies of each picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from petriscope.data.batches import Batches
from petriscope.precision import Format, autocast
from petriscope.progress import progress

TTA = Literal["none", "mirror", "flips", "d4"]


def views(images: Tensor, tta: TTA) -> list[Tensor]:
    """Copies of a batch that a class does not depend on, [B, C, H, W] each.

    Args:
        images: [B, C, H, W].
        tta: ``none``: the batch itself; ``mirror``: and its left-right mirror image, for pictures that have an up;
            ``flips``: the 4 mirror images; ``d4``: the 8 symmetries of the square (the 4
            mirror images where pictures are not square).
    """
    if tta == "none":
        return [images]
    if tta == "mirror":
        return [images, images.flip(3)]
    flips = [images, images.flip(3), images.flip(2), images.flip((2, 3))]
    if tta == "flips" or images.shape[2] != images.shape[3]:
        return flips
    return flips + [view.transpose(2, 3) for view in flips]


@torch.inference_mode()
def predict_batch(
    model: nn.Module, images: Tensor, normalize: Callable[[Tensor], Tensor], number_format: Format, tta: TTA
) -> Tensor:
    """Log-probabilities, float32 [B, K]: of the mean probability over the views.

    Args:
        images: uint8 [B, H, W, C] on the model's device.
    """
    normalized = normalize(images)
    total: Tensor | float = 0.0
    copies = views(normalized, tta)
    for view in copies:
        with autocast(images.device, number_format):
            logits = model(view)
        if len(copies) == 1:
            return logits.float().log_softmax(1)
        total = total + logits.float().softmax(1)
    return (torch.as_tensor(total) / len(copies)).clamp_min(1e-12).log()


def predict_set(
    model: nn.Module,
    batches: Batches,
    normalize: Callable[[Tensor], Tensor],
    number_format: Format,
    tta: TTA = "none",
    batch_size: int = 512,
    label: str | None = None,
    each: Callable[[Tensor], object] | None = None,
) -> np.ndarray:
    """Probabilities for every picture of a set, float32 [N, K]. The model is left in the mode it was in.

    Args:
        each: called with a batch, uint8 [B, H, W, C], when it is done.
    """
    training = model.training
    model.eval()
    try:
        order = np.arange(len(batches.images))
        chunks: Sequence[np.ndarray] = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        out = []
        with progress(label or "", len(order)) as bar:
            for pictures, _ in batches.iterate(chunks):
                out.append(predict_batch(model, pictures, normalize, number_format, tta).exp().cpu())
                if each is not None:
                    each(pictures)
                if label:
                    bar.advance(len(pictures))
        return torch.cat(out).numpy()
    finally:
        model.train(training)
