"""Running a model over a set, with or without turned, mirrored and enlarged copies of each image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from petriscope.core.device import Format, autocast
from petriscope.core.progress import progress
from petriscope.core.recipe import TTA
from petriscope.data.batches import Batches

CROP = 7 / 8  # of the side


def views(images: Tensor, tta: TTA) -> list[Tensor]:
    """Copies of a batch that a class does not depend on, [B, C, H, W] each.

    Args:
        images: [B, C, H, W].
        tta: ``none``: the batch itself; ``mirror``: and its left-right mirror image, for images that have an up;
            ``flips``: the 4 mirror images; ``d4``: the 8 symmetries of the square (the 4
            mirror images where images are not square); ``crops``: the batch itself, and its corners and middle, each
            7/8 of the side long and enlarged to the size of the whole.
    """
    return [view.of(images) for view in _views(tta, (images.shape[2], images.shape[3]))]


@dataclass(frozen=True)
class _View:
    """One way to show a batch.

    Args:
        flips: dimensions that are mirrored.
        across: whether rows and columns are swapped then.
        box: top, left, height and width of the part that is shown; None: the whole.
    """

    flips: tuple[int, ...] = ()
    across: bool = False
    box: tuple[int, int, int, int] | None = None

    def of(self, images: Tensor) -> Tensor:
        if self.box is not None:
            top, left, height, width = self.box
            part = images[..., top : top + height, left : left + width]
            return F.interpolate(part, images.shape[2:], mode="bilinear", align_corners=False)
        out = images.flip(self.flips) if self.flips else images
        return out.transpose(2, 3) if self.across else out

    def put_back(self, maps: Tensor) -> Tensor:
        """What a model says of each pixel of the view, where that pixel lies in the image; 0 where the view has none."""
        if self.box is not None:
            top, left, height, width = self.box
            part = F.interpolate(maps, (height, width), mode="bilinear", align_corners=False)
            return F.pad(part, (left, maps.shape[3] - left - width, top, maps.shape[2] - top - height))
        out = maps.transpose(2, 3) if self.across else maps
        return out.flip(self.flips) if self.flips else out


def _views(tta: TTA, size: tuple[int, int]) -> list[_View]:
    """The views of images of a size, the plain one first."""
    if tta == "none":
        return [_View()]
    if tta == "mirror":
        return [_View(), _View((3,))]
    if tta == "crops":
        return [_View(), *(_View(box=box) for box in _boxes(*size))]
    flips: list[tuple[int, ...]] = [(), (3,), (2,), (2, 3)]
    square = size[0] == size[1]
    return [_View(dims, across) for across in ((False, True) if tta == "d4" and square else (False,)) for dims in flips]


def _boxes(height: int, width: int) -> list[tuple[int, int, int, int]]:
    """The four corners and the middle: top, left, height and width of each."""
    high, wide = (max(1, round(CROP * side)) for side in (height, width))
    down, right = height - high, width - wide
    places = [(0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)]
    return [(top, left, high, wide) for top, left in places]


@torch.inference_mode()
def predict_batch(
    model: nn.Module, images: Tensor, normalize: Callable[[Tensor], Tensor], number_format: Format, tta: TTA
) -> Tensor:
    """Log-probabilities, float32 [B, K] or of every pixel [B, K, H, W]: of the mean probability over the views. What a
    model says of each pixel is put back in its place first, and averaged over the views that show the pixel.

    Args:
        images: uint8 [B, H, W, C] on the model's device.
    """
    normalized = normalize(images)
    total: Tensor | float = 0.0
    shown = _views(tta, (normalized.shape[2], normalized.shape[3])) if normalized.ndim == 4 else [_View()]
    for view in shown:
        with autocast(images.device, number_format):
            logits = model(view.of(normalized))
        if len(shown) == 1:
            return logits.float().log_softmax(1)
        probabilities = logits.float().softmax(1)
        total = total + (view.put_back(probabilities) if logits.ndim == 4 else probabilities)
    total = torch.as_tensor(total)
    # Of the views that show a pixel, each adds 1 over its classes.
    times = total.sum(1, keepdim=True) if tta == "crops" and total.ndim == 4 else len(shown)
    return (total / times).clamp_min(1e-12).log()


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
            for indices, (images, targets) in zip(chunks, batches.iterate(chunks), strict=True):
                log_p = predict_batch(model, images, normalize, number_format, tta)
                if each is not None:
                    each(images)
                yield indices, log_p, targets
                if label:
                    bar.advance(len(images))
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
    """Probabilities for every image of a set, float32 [N, K]. The model is left in the mode it was in.

    Args:
        each: called with a batch, uint8 [B, H, W, C], when it is done.
    """
    parts = predict_batches(model, batches, normalize, number_format, tta, batch_size, label, each)
    return torch.cat([log_p.exp().cpu() for _, log_p, _ in parts]).numpy()
