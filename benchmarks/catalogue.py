"""Which networks of the catalogue are exported: each with random weights as a graph, which answers alone, in pairs and in sevens
as torch does. One row per network as it is done; the exit status is 1 if a network answers otherwise or cannot be written."""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

from common import print_machine
from petriscope.core.errors import PetriscopeError
from petriscope.core.recipe import Part, load_recipe
from petriscope.inference.predictor import Predictor
from petriscope.models import MODELS, build_model
from petriscope.models.cost import parameters
from petriscope.models.layers import is_dense
from petriscope.ship.graph import INPUT, Graph, write_graph
from petriscope.tasks import find_task

CLASSES = tuple("abcd")
BATCHES = (1, 2, 7)
TOLERANCE = 1e-4  # of probabilities
SIDES = {"deit-tiny": 224}  # of images; of the others:
SIDE = 64
OTHERS = (  # beside those that `petriscope models` lists by name
    "timm/efficientnet_b0",
    "timm/resnet10t",
    "timm/vit_tiny_patch16_224",
    "timm/swin_tiny_patch4_window7_224",
    "smp/unet-resnet18",
    "smp/unetplusplus-resnet18",
    "smp/fpn-resnet18",
    "smp/deeplabv3plus-resnet18",
    "smp/segformer-resnet18",
    "smp/manet-resnet18",
)
MEMBERS = (Part(name="d4-resnet"), Part(name="resnet18"))  # of the ensemble


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(catalogue()), help="of models; default: all")
    args = parser.parse_args()
    print_machine()
    print("| model | parameters | side | exported | largest difference | MB | seconds |\n|---|---|---|---|---|---|---|")
    failed = [name for name in args.names if not row(name)]
    if failed:
        sys.exit(f"not exported: {', '.join(failed)}")


def catalogue() -> Iterator[str]:
    yield from (*MODELS.members, *OTHERS, "ensemble")


def row(name: str) -> bool:
    """Export one network, and print its row. Whether it answers as torch does."""
    side, start = SIDES.get(name, 224 if name.endswith("_224") else SIDE), time.perf_counter()
    predictor = random_predictor(name, side)
    count = parameters(predictor.model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        try:
            write_graph(Graph(predictor), path)
        except PetriscopeError as error:
            print(f"| {name} | {count:,} | {side} | {error} | | | |", flush=True)
            return False
        apart, size = difference(predictor, path), path.stat().st_size / 1e6
    fine = apart <= TOLERANCE
    said = "yes" if fine else "answers otherwise"
    seconds = time.perf_counter() - start
    print(f"| {name} | {count:,} | {side} | {said} | {apart:.1e} | {size:,.1f} | {seconds:.0f} |", flush=True)
    gc.collect()
    return fine


def random_predictor(name: str, side: int) -> Predictor:
    """With random weights, and statistics of norms that are not those of a fresh network."""
    torch.manual_seed(0)
    shape = (side, side, 3)
    part = Part(name=name, **({"members": [member(each) for each in MEMBERS]} if name == "ensemble" else {}))
    model = build_model(part, len(CLASSES), shape, fresh=False).eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.2)
    recipe = load_recipe("demo", ("training.precision=fp32", "training.device=cpu", "evaluation.tta=mirror"))
    recipe = recipe.model_copy(update={"model": part})
    task = find_task("segmentation" if is_dense(model) else "classification")
    return Predictor(model, recipe, task, CLASSES, shape, (0.6,) * 3, (0.2,) * 3, torch.device("cpu"))


def member(part: Part) -> dict[str, Any]:
    return {"model": part.model_dump(), "mean": (0.5,) * 3, "std": (0.2,) * 3, "weight": 1.0}


def difference(predictor: Predictor, path: Path) -> float:
    """The largest difference of a probability between torch and the graph."""
    session = onnxruntime.InferenceSession(path)
    pixels = np.random.default_rng(0).integers(0, 256, (max(BATCHES), *predictor.shape), dtype=np.uint8)
    largest = 0.0
    for count in BATCHES:
        expected = predictor.probabilities(pixels[:count])
        (found,) = session.run(["probabilities"], {INPUT: pixels[:count]})
        largest = max(largest, float(np.abs(found - expected).max()))
    return largest


if __name__ == "__main__":
    main()
