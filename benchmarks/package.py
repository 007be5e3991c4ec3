"""Images per second of the networks of shipped recipes, with random weights: torch (fp32, channels_last), and onnxruntime on
the graph that is exported. Both do the same work: test-time augmentation, calibration, out-of-distribution scores."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

from common import in_turn, print_machine, print_table, ratio
from petriscope.core.device import lay_out
from petriscope.core.recipe import load_recipe
from petriscope.data.imageset import ImageSet
from petriscope.inference.fit import calibrate
from petriscope.inference.predictor import Predictor
from petriscope.inference.tta import predict_batch
from petriscope.models import build_model
from petriscope.ship.graph import INPUT, Graph, write_graph
from petriscope.tasks import find_task

CLASSES = tuple("abcdefgh")
COMPARISON = ("points", "plain_label", "plain_uncertainty", "appearance")  # outputs that only comparisons with val need


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", default=["blood/fast", "blood/simple-cnn", "blood96/robust"])
    parser.add_argument("--batches", default="1,32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--wall", action="store_true", help="time on the clock; default: of the processor, on a shared machine"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.perf_counter if args.wall else time.process_time
    print_machine()
    rows = []
    for name in args.recipes:
        predictor = fitted(name)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            write_graph(Graph(predictor), path)
            whole, least = session(path, args.threads), session(without_comparison(path), args.threads)
        for batch in map(int, args.batches.split(",")):
            rows.append(measure(name, predictor, whole, least, batch, args.rounds, clock))
    print_table(
        ["recipe", "batch", "predictor", "network", "graph", "to predictor", "to network", "comparison costs"], rows
    )


def measure(
    name: str,
    predictor: Predictor,
    whole: onnxruntime.InferenceSession,
    least: onnxruntime.InferenceSession,
    batch: int,
    rounds: int,
    clock: Callable[[], float],
) -> list[str]:
    pixels = images(batch, predictor.shape, 7)
    tensor, tta = torch.from_numpy(pixels), predictor.recipe.evaluation.tta

    def timed(action: Callable[[], object]) -> Callable[[], float]:
        def run() -> float:
            start = clock()
            action()
            return clock() - start

        return run

    actions = [
        timed(lambda: predictor.predict(pixels)),
        timed(lambda: predict_batch(predictor.model, tensor, predictor.normalize, "fp32", tta)),
        timed(lambda: whole.run(None, {INPUT: pixels})),
        timed(lambda: least.run(None, {INPUT: pixels})),
    ]
    times = in_turn(actions, rounds)
    rates = [f"{batch / min(each):,.1f}" for each in times[:3]]
    cost = f"{100 * (1 - min(times[3]) / min(times[2])):.1f} %"
    return [name, str(batch), *rates, ratio(times[2], times[0]), ratio(times[2], times[1]), cost]


def fitted(name: str) -> Predictor:
    """The recipe's network, fitted on images of noise."""
    recipe = load_recipe(name, ("training.precision=fp32", "training.device=cpu"))
    side = recipe.data.size or 28
    shape = (side, side, 3)
    torch.manual_seed(0)
    model = lay_out(build_model(recipe.model, len(CLASSES), shape, fresh=False).eval(), True)
    task, cpu = find_task("classification"), torch.device("cpu")
    predictor = Predictor(model, recipe, task, CLASSES, shape, (0.6,) * 3, (0.2,) * 3, cpu)
    parts = [labeled(count, shape, seed) for seed, count in enumerate((200, 200))]
    calibrate(predictor, *parts, quiet=True)
    return predictor


def labeled(count: int, shape: tuple[int, int, int], seed: int) -> ImageSet:
    names = np.array([str(row) for row in range(count)])
    return ImageSet(images(count, shape, seed), np.arange(count) % len(CLASSES), CLASSES, names)


def images(count: int, shape: tuple[int, int, int], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    light = rng.uniform(60, 220, (count, 1, 1, shape[2]))
    return (light + rng.normal(0, 30, (count, *shape))).clip(0, 255).astype(np.uint8)


def session(model: Path | bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model, options)


def without_comparison(path: Path) -> bytes:
    """The graph without the outputs that only comparisons with val need. onnxruntime computes all outputs that a graph has,
    and removes what leads to none when it reads the graph."""
    model = onnx.load(path)
    kept = [each for each in model.graph.output if each.name not in COMPARISON]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    return model.SerializeToString()


if __name__ == "__main__":
    main()
