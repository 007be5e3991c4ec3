"""The cost of a model: parameters, multiply-adds, images per second."""

from __future__ import annotations

import statistics
import time

import numpy as np

from petriscope.core.progress import TimeLeft, unlimited
from petriscope.core.results import Cost
from petriscope.inference.predictor import Predictor
from petriscope.models.cost import multiply_adds, parameters

SMALL_BATCH = 4  # large networks take seconds for 4 images
GROWTH = 4
REPEATS = 3
ENOUGH_SECONDS = 0.5
SECONDS = 3.0


def inference_rate(predictor: Predictor, batch: int = 256, budget: float = SECONDS) -> float:
    """Images per second from uint8 to probabilities, without test-time augmentation: the median over repeated batches.

    Args:
        batch: largest batch size; smaller if such a batch would take too long.
        budget: seconds that all batches may take, except the first, which has `SMALL_BATCH` images.
    """
    size, spent, times = min(SMALL_BATCH, batch), 0.0, list[float]()
    seconds = first = _time_batch(predictor, size)
    while spent + seconds <= budget and (len(times) < REPEATS or sum(times) < ENOUGH_SECONDS):
        seconds = _time_batch(predictor, size)
        spent += seconds
        larger = min(GROWTH * size, batch)
        expected = seconds * larger / size
        if larger > size and spent + REPEATS * expected <= budget:
            size, seconds, times = larger, expected, []
        else:
            times.append(seconds)
    return size / statistics.median(times or [first])


def _time_batch(predictor: Predictor, size: int) -> float:
    most = np.iinfo(predictor.dtype).max
    images = np.random.default_rng(0).integers(0, most + 1, (size, *predictor.shape), dtype=predictor.dtype)
    start = time.perf_counter()
    predictor.probabilities(images, tta="none")
    return time.perf_counter() - start


def cost(predictor: Predictor, left: TimeLeft = unlimited) -> Cost:
    """Parameters, multiply-adds per image, bytes of the weights in fp32, and images per second at inference, which are timed
    within the time that there is."""
    count = parameters(predictor.model)
    return Cost(
        parameters=count,
        multiply_adds=multiply_adds(predictor.model, predictor.shape),
        bytes_fp32=4 * count,
        inference_images_per_second=round(inference_rate(predictor, budget=min(SECONDS, max(left(), 0.0))), 1),
    )
