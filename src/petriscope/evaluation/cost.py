"""What a model costs: parameters, multiply-adds, pictures a second."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import torch
from torch import nn

from petriscope.classifier import Classifier


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def multiply_adds(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """Multiply-adds of one forward pass of one picture of ``shape`` (height, width, channels)."""
    from torch.utils.flop_counter import FlopCounterMode

    height, width, channels = shape
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, channels, height, width, device=device))
    model.train(training)
    return int(counter.get_total_flops() // 2)


def inference_rate(classifier: Classifier, batch: int = 256, seconds: float = 0.5) -> float:
    """Pictures a second, from uint8 to probabilities, without test-time augmentation: the median of repeated batches."""
    pictures = np.random.default_rng(0).integers(0, 256, (batch, *classifier.shape), dtype=np.uint8)
    classifier.probabilities(pictures, tta="none")
    times: list[float] = []
    while sum(times) < seconds or len(times) < 3:
        start = time.perf_counter()
        classifier.probabilities(pictures, tta="none")
        times.append(time.perf_counter() - start)
    return batch / statistics.median(times)


def cost(classifier: Classifier) -> dict[str, Any]:
    """Parameters, multiply-adds a picture, bytes of the weights in fp32, pictures a second at inference."""
    count = parameters(classifier.model)
    return {
        "parameters": count,
        "multiply_adds": multiply_adds(classifier.model, classifier.shape),
        "bytes_fp32": 4 * count,
        "inference_pictures_per_second": round(inference_rate(classifier), 1),
    }
