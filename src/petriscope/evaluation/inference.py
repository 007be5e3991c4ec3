"""Running a model over a set, with or without turned and mirrored copies of each picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
    return [_turn(images, flips, across) for flips, across in _turns(tta, images.shape[2] == images.shape[3])]


def _turns(tta: TTA, square: bool) -> list[tuple[tuple[int, ...], bool]]:
    """The dimensions that each view mirrors, and whether it then swaps rows and columns."""
    if tta == "none":
        return [((), False)]
    if tta == "mirror":
        return [((), False), ((3,), False)]
    flips: list[tuple[int, ...]] = [(), (3,), (2,), (2, 3)]
    plain = [(dims, False) for dims in flips]
    return plain if tta == "flips" or not square else plain + [(dims, True) for dims in flips]


def _turn(images: Tensor, flips: tuple[int, ...], across: bool) -> Tensor:
    out = images.flip(flips) if flips else images
    return out.transpose(2, 3) if across else out


def _turn_back(maps: Tensor, flips: tuple[int, ...], across: bool) -> Tensor:
    out = maps.transpose(2, 3) if across else maps
    return out.flip(flips) if flips else out


@torch.inference_mode()
def predict_batch(
    model: nn.Module, images: Tensor, normalize: Callable[[Tensor], Tensor], number_format: Format, tta: TTA
) -> Tensor:
    """Log-probabilities, float32 [B, K] or of every pixel [B, K, H, W]: of the mean probability over the views. What a
    model says of each pixel is turned back before it is averaged.

    Args:
        images: uint8 [B, H, W, C] on the model's device.
    """
    normalized = normalize(images)
    total: Tensor | float = 0.0
    turns = _turns(tta, normalized.shape[2] == normalized.shape[3]) if normalized.ndim == 4 else [((), False)]
    for flips, across in turns:
        with autocast(images.device, number_format):
            logits = model(_turn(normalized, flips, across))
        if len(turns) == 1:
            return logits.float().log_softmax(1)
        probabilities = logits.float().softmax(1)
        total = total + (_turn_back(probabilities, flips, across) if logits.ndim == 4 else probabilities)
    return (torch.as_tensor(total) / len(turns)).clamp_min(1e-12).log()


def predict_batches(
    model: nn.Module,
    batches: Batches,
    normalize: Callable[[Tensor], Tensor],
    number_format: Format,
    tta: TTA = "none",
    batch_size: int = 512,
    label: str | None = None,
    each: Callable[[Tensor], object] | None = None,
) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
    """Go through a set in order: the indices of a batch, its log-probabilities as `predict_batch` gives them, and its
    targets. The model is left in the mode it was in.

    Args:
        each: called with a batch, uint8 [B, H, W, C], when it is done.
    """
    training = model.training
    model.eval()
    try:
        order = np.arange(len(batches.images))
        chunks: Sequence[np.ndarray] = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        with progress(label or "", len(order)) as bar:
            for indices, (pictures, targets) in zip(chunks, batches.iterate(chunks), strict=True):
                log_p = predict_batch(model, pictures, normalize, number_format, tta)
                if each is not None:
                    each(pictures)
                yield indices, log_p, targets
                if label:
                    bar.advance(len(pictures))
    finally:
        model.train(training)


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
    parts = predict_batches(model, batches, normalize, number_format, tta, batch_size, label, each)
    return torch.cat([log_p.exp().cpu() for _, log_p, _ in parts]).numpy()
