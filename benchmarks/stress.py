"""What a stress test costs, and how much of that is the network: all corruptions and severities at 28 pixels, in wall-clock and
processor time. The network is untrained, which takes the same time.

    python benchmarks/stress.py --model resnet18 --images 320
"""

from __future__ import annotations

import time

import numpy as np
import torch

from common import arguments, load, print_machine, print_table
from petriscope.core.recipe import Part, load_recipe
from petriscope.data.normalization import mean_and_std
from petriscope.inference.predictor import Predictor
from petriscope.models import build_model
from petriscope.trust.robustness import stress_test


def main() -> None:
    args = arguments(__doc__, model="resnet18", images=320, size=28)
    print_machine()
    dataset = load(args.data, args.size)
    images = dataset.split("train")
    torch.manual_seed(0)
    part = Part(name=args.model)
    model = build_model(part, len(dataset.classes), dataset.shape).eval()
    recipe = load_recipe("demo").model_copy(update={"model": part})
    predictor = Predictor(
        model, recipe, dataset.task, dataset.classes, dataset.shape, *mean_and_std(images), torch.device("cpu")
    )
    network = passed = 0.0

    def predict(batch: np.ndarray) -> np.ndarray:
        nonlocal network, passed
        start = time.process_time()
        out = predictor.probabilities(batch, "none")
        network, passed = network + time.process_time() - start, passed + len(batch)
        return out

    predict(images.images[:256])
    network = passed = 0.0
    clock, processor = time.perf_counter(), time.process_time()
    stress_test(predict, images, count=args.images, label="stress test")
    clock, processor = time.perf_counter() - clock, time.process_time() - processor
    print_table(
        ("model", "format", "images", "wall-clock time", "processor time", "network", "per image"),
        [
            (
                args.model,
                predictor.number_format,
                f"{int(passed):,}",
                f"{clock:.0f} s",
                f"{processor:.0f} s",
                f"{100 * network / processor:.0f} %",
                f"{1000 * processor / passed:.2f} ms",
            )
        ],
    )


if __name__ == "__main__":
    main()
