"""What a model costs: parameters, multiply-adds, images per second."""

from __future__ import annotations

import statistics
import time

import numpy as np

from petriscope.core.results import Cost
from petriscope.inference.predictor import Predictor
from petriscope.models.cost import multiply_adds, parameters

SMALL_BATCH = 4  # a large network takes seconds for these alone
GROWTH = 4
REPEATS = 3
ENOUGH_SECONDS = 0.5


def inference_rate(predictor: Predictor, batch: int = 256, budget: float = 3.0) -> float:
    """Images a second, from uint8 to probabilities, without test-time augmentation: the median of repeated batches.

    Args:
        batch: images in one; fewer where so many would take too long.
        budget: seconds that all batches but the first, a small one, may take.
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
    images = np.random.default_rng(0).integers(0, 256, (size, *predictor.shape), dtype=np.uint8)
    start = time.perf_counter()
    predictor.probabilities(images, tta="none")
    return time.perf_counter() - start


def cost(predictor: Predictor) -> Cost:
    """Parameters, multiply-adds per image, bytes of the weights in fp32, images per second at inference."""
    count = parameters(predictor.model)
    return Cost(
        parameters=count,
        multiply_adds=multiply_adds(predictor.model, predictor.shape),
        bytes_fp32=4 * count,
        inference_images_per_second=round(inference_rate(predictor), 1),
    )
