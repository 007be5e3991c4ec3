"""Prediction of batches and splits, with or without test-time augmentation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from petriscope.core.device import Format, autocast, tensor_of, upload
from petriscope.core.errors import RequestError
from petriscope.core.progress import progress
from petriscope.core.ranks import ALONE, Ranks
from petriscope.core.recipe import TTA
from petriscope.core.results import CLASSIFICATION
from petriscope.data.batches import Batches
from petriscope.data.tile_sets import TileBatches
from petriscope.tasks import Task, find_task

CROP = 7 / 8  # share of the side
FLOOR = 1e-12  # least mean probability over views, so that its logarithm is a number


def views(images: Tensor, tta: TTA) -> list[Tensor]:
    """The views of a batch that predictions are averaged over, [B, C, H, W] each.

    Args:
        images: [B, C, H, W].
        tta: ``none``: the batch itself. ``mirror``: also its left-right mirror image, for images with a fixed top.
            ``flips``: the 4 combinations of horizontal and vertical flips. ``d4``: the 8 symmetries of the square, or the
            4 flips if images are not square. ``crops``: the batch itself, its four corners and its center, each 7/8 of
            the side and enlarged to the full size.
    """
    return [view.of(images) for view in views_of(tta, (images.shape[2], images.shape[3]))]


@dataclass(frozen=True)
class View:
    """One view of a batch.

    Args:
        flips: dimensions that are flipped.
        transposed: whether rows and columns are swapped afterwards.
        box: top, left, height and width of the crop; None: no crop.
    """

    flips: tuple[int, ...] = ()
    transposed: bool = False
    box: tuple[int, int, int, int] | None = None

    def of(self, images: Tensor) -> Tensor:
        if self.box is not None:
            top, left, height, width = self.box
            part = images[..., top : top + height, left : left + width]
            return F.interpolate(part, images.shape[2:], mode="bilinear", align_corners=False)
        out = images.flip(self.flips) if self.flips else images
        return out.transpose(2, 3) if self.transposed else out

    def put_back(self, maps: Tensor) -> Tensor:
        """Map values per pixel of the view, [B, K, H, W], back to the pixels of the image; 0 outside of the view."""
        if self.box is not None:
            top, left, height, width = self.box
            part = F.interpolate(maps, (height, width), mode="bilinear", align_corners=False)
            return F.pad(part, (left, maps.shape[3] - left - width, top, maps.shape[2] - top - height))
        out = maps.transpose(2, 3) if self.transposed else maps
        return out.flip(self.flips) if self.flips else out


def views_of(tta: TTA, size: tuple[int, int]) -> list[View]:
    """The views of images of a size; the unchanged images come first.

    Raises:
        RequestError: there is no such test-time augmentation.
    """
    if tta == "none":
        return [View()]
    if tta == "mirror":
        return [View(), View((3,))]
    if tta == "crops":
        return [View(), *(View(box=box) for box in _boxes(*size))]
    if tta not in ("flips", "d4"):
        raise RequestError(f"unknown test-time augmentation {tta!r}; known: {', '.join(get_args(TTA))}")
    flips: list[tuple[int, ...]] = [(), (3,), (2,), (2, 3)]
    square = size[0] == size[1]
    return [
        View(dims, transposed)
        for transposed in ((False, True) if tta == "d4" and square else (False,))
        for dims in flips
    ]


def _boxes(height: int, width: int) -> list[tuple[int, int, int, int]]:
    """The four corners and the center: top, left, height and width of each."""
    high, wide = (max(1, round(CROP * side)) for side in (height, width))
    down, right = height - high, width - wide
    places = [(0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)]
    return [(top, left, high, wide) for top, left in places]


@torch.inference_mode()
def predict_batch(
    model: nn.Module,
    images: Tensor,
    normalize: Callable[[Tensor], Tensor],
    number_format: Format,
    tta: TTA,
    task: Task | None = None,
) -> Tensor:
    """Log-probabilities of a batch: the logarithm of the mean probability over the views.

    Predictions per pixel are mapped back to the image first, and averaged over the views that contain the pixel.

    Args:
        images: uint8 [B, H, W, C] on the model's device.
        normalize: uint8 [B, H, W, C] -> float32 [B, C, H, W].
        task: of the model; None: one in which an image, or a pixel, has one class.

    Returns:
        float32 [B, K]; for segmentation [B, K, H, W].
    """
    task = task or find_task(CLASSIFICATION)
    normalized = normalize(images)
    total: Tensor | float = 0.0
    shown = views_of(tta, (normalized.shape[2], normalized.shape[3])) if normalized.ndim == 4 else [View()]
    for view in shown:
        with autocast(images.device, number_format):
            logits = model(view.of(normalized))
        if len(shown) == 1:
            return task.log_probabilities(logits.float())
        probabilities = task.probabilities(logits.float())
        total = total + (view.put_back(probabilities) if logits.ndim == 4 else probabilities)
    return mean_over(torch.as_tensor(total), tta, len(shown)).log()


def mean_over(total: Tensor, tta: TTA, count: int) -> Tensor:
    """The mean probabilities over so many views from their sum, [B, K], or of pixels that were put back, [B, K, H, W]."""
    # Each view that contains a pixel adds probabilities with the sum 1.
    times = total.sum(1, keepdim=True) if tta == "crops" and total.ndim == 4 else count
    return (total / times).clamp_min(FLOOR)


def predict_batches(
    model: nn.Module,
    batches: Batches,
    normalize: Callable[[Tensor], Tensor],
    number_format: Format,
    tta: TTA = "none",
    batch_size: int = 512,
    label: str | None = None,
    each: Callable[[Tensor], object] | None = None,
    ranks: Ranks = ALONE,
) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
    """Predict a split in order. The mode of the model (training or evaluation) is restored.

    Args:
        label: of the progress bar; None: no progress is shown.
        each: called with each batch, uint8 [B, H, W, C], after its prediction; not with tiles.
        ranks: the processes that share each batch. All call this, and all get the predictions for all images.

    Images in their own sizes are predicted one by one, from tiles; see `TileBatches.predict_each`.

    Yields:
        the indices of a batch, its log-probabilities (see `predict_batch`), and its targets.
    """

    def log_p_of(images: Tensor) -> Tensor:
        def work(rows: slice) -> list[Tensor]:
            return [predict_batch(model, images[rows], normalize, number_format, tta, batches.images.task)]

        return ranks.spread("predicting", len(images), work)[0]

    training = model.training
    model.eval()
    try:
        if isinstance(batches, TileBatches):

            def predict(tiles: np.ndarray) -> np.ndarray:
                return log_p_of(upload(tensor_of(tiles), batches.device)).exp().cpu().numpy()

            yield from batches.predict_each(predict, label)
            return
        order = np.arange(len(batches.images))
        chunks: Sequence[np.ndarray] = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        with progress(label or "", len(order)) as bar:
            for indices, (images, targets) in zip(chunks, batches.iterate(chunks), strict=True):
                log_p = log_p_of(images)
                if each is not None:
                    each(images)
                yield indices, log_p, targets
                if label:
                    bar.advance(len(images))
    finally:
        model.train(training)


def checked(
    parts: Iterator[tuple[np.ndarray, Tensor, Tensor]], ranks: Ranks = ALONE
) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
    """The parts of `predict_batches`, of a trained model.

    Raises:
        RequestError: an output is not a number.
    """
    for indices, log_p, targets in parts:
        with ranks.together("checking outputs"):
            check_finite(log_p)
        yield indices, log_p, targets


def check_finite(log_p: Tensor) -> None:
    """
    Raises:
        RequestError: an output is not a number. The class with the first of them would be taken for the most probable one.
    """
    if log_p.isnan().any():
        raise RequestError(
            "the model gives outputs that are not numbers: its weights are damaged, or too large for the number format that it "
            "runs in"
        )


def predict_set(
    model: nn.Module,
    batches: Batches,
    normalize: Callable[[Tensor], Tensor],
    number_format: Format,
    tta: TTA = "none",
    batch_size: int = 512,
    label: str | None = None,
    each: Callable[[Tensor], object] | None = None,
    ranks: Ranks = ALONE,
) -> np.ndarray:
    """Probabilities of all images of a split, float32 [N, K]; see `predict_batches` for the arguments."""
    parts = checked(
        predict_batches(model, batches, normalize, number_format, tta, batch_size, label, each, ranks), ranks
    )
    return torch.cat([log_p.exp().cpu() for _, log_p, _ in parts]).numpy()
