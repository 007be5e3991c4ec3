"""Images per second of the networks of shipped recipes, with random weights: torch (fp32, channels_last), and onnxruntime on
the graph that is exported. Both do the same work: test-time augmentation, calibration, out-of-distribution scores.

With --runs, instead: are the answers of packages those of the runs that they are made of, on val?"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

from common import in_turn, print_machine, print_table, ratio
from petriscope.core.device import lay_out
from petriscope.core.errors import PetriscopeError
from petriscope.core.recipe import load_recipe
from petriscope.data.imageset import ImageSet
from petriscope.inference.fit import calibrate
from petriscope.inference.predictor import Predictor
from petriscope.inference.runtime import FORMATS
from petriscope.inference.tta import predict_batch
from petriscope.inference.verification import verify
from petriscope.models import build_model
from petriscope.run.folder import open_run
from petriscope.ship.export import export
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
    parser.add_argument(
        "--profile", type=int, metavar="BATCH", help="also where onnxruntime's time goes, on one thread"
    )
    parser.add_argument("--runs", nargs="*", type=Path, help="run folders to export, and to compare on all of val")
    parser.add_argument("--format", default="onnx", choices=tuple(FORMATS), help="of these packages")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.perf_counter if args.wall else time.process_time
    print_machine()
    if args.runs:
        print_table(
            [
                "run",
                "network",
                "images of val",
                "from their files",
                "labels, answers, sets",
                "largest difference",
                "MB",
                "seconds",
            ],
            [answers_alike(run, args.format) for run in args.runs],
        )
        return
    rows = []
    for name in args.recipes:
        predictor = fitted(name)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            write_graph(Graph(predictor), path)
            whole, least = session(path, args.threads), session(without_comparison(path), args.threads)
            other = openvino_session(path, args.threads)
            if args.profile:
                print(f"{name}: {profile(path, args.profile, Path(folder))}")
        for batch in map(int, args.batches.split(",")):
            rows.append(measure(name, predictor, whole, least, other, batch, args.rounds, clock))
    print_table(
        ["recipe", "batch", "predictor", "network", "graph", "OpenVINO", "graph to predictor", "graph to network",
         "OpenVINO to predictor", "comparison costs"], rows
    )  # fmt: skip


def answers_alike(run: Path, format: str) -> list[str]:
    """Export a run; the comparison with it is a part of that, and finds every image whose label, answers or sets differ."""
    recipe, start = open_run(run).recipe, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            made = export(run, Path(folder) / "package", format=format, quiet=True)
        except PetriscopeError as error:
            return [recipe.name, recipe.model.name, "", "", str(error), "", "", ""]
        size = sum((made.folder / name).stat().st_size for name in made.manifest.model_files) / 1e6
        verify(made.folder)
    found = made.manifest.verification
    assert found is not None and found.images == found.of
    said = "all equal" + (f", but {found.undecided:,} pixels of a tie" if found.undecided else "")
    cells = [f"{found.images:,}", f"{found.from_files:,}", said, f"{found.largest_difference:.1e}"]
    return [recipe.name, recipe.model.name, *cells, f"{size:.1f}", f"{time.perf_counter() - start:.0f}"]


def measure(
    name: str,
    predictor: Predictor,
    whole: onnxruntime.InferenceSession,
    least: onnxruntime.InferenceSession,
    other: Callable[[np.ndarray], object],
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
        timed(lambda: other(pixels)),
        timed(lambda: least.run(None, {INPUT: pixels})),
    ]
    times = in_turn(actions, rounds)
    rates = [f"{batch / min(each):,.1f}" for each in times[:4]]
    cost = f"{100 * (1 - min(times[4]) / min(times[2])):.1f} %"
    ratios = [ratio(times[2], times[0]), ratio(times[2], times[1]), ratio(times[3], times[0])]
    return [name, str(batch), *rates, *ratios, cost]


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


def openvino_session(path: Path, threads: int) -> Callable[[np.ndarray], object]:
    """As packages in the format ``openvino`` are run."""
    import openvino

    core = openvino.Core()
    chosen = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    request = core.compile_model(core.read_model(path), "CPU", chosen).create_infer_request()
    return lambda pixels: request.infer([pixels])


def profile(path: Path, batch: int, folder: Path) -> str:
    """Which operators take the time, most first."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.enable_profiling = 1, True
    options.profile_file_prefix = str(folder / "profile")
    found = onnxruntime.InferenceSession(path, options)
    height, width, channels = found.get_inputs()[0].shape[1:]
    for _ in range(3):
        found.run(None, {INPUT: images(batch, (height, width, channels), 7)})
    spent: Counter[str] = Counter()
    for event in json.loads(Path(found.end_profiling()).read_text()):
        if event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"]
    return ", ".join(f"{name} {100 * time / spent.total():.1f} %" for name, time in spent.most_common(12))


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
