"""Carry out a step of a rival's script. `benchmarks/rivals.py` starts it in the environment of the rival, twice:

    python start.py SCRIPT train FOLDER WORK SECONDS SEED [SETTING...]     # FOLDER/images has train and val
    python start.py SCRIPT predict FOLDER WORK                             # FOLDER/test has images without labels

A script has two functions. ``train(images, work, seconds, seed)`` takes the folder of images, a folder to write to, the seconds
of the processor that are left, the seed, and settings if there are any. ``predict(test, work)`` takes the folder of test images
and the one that was written to, and gives the names of K classes and probabilities [N, K], or masks [N, H, W], of the images in
the order of `shared.files`.
"""

from __future__ import annotations

import csv
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np
from shared import files


def declare_operators() -> None:
    """Let torchvision be imported where its compiled operators do not match torch, as with a CPU build of torch and the common
    build of torchvision. Nothing here calls them."""
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        kept.append(library)


kept: list[object] = []  # the operators are there as long as their library


def write(work: Path, test: Path, found: tuple | np.ndarray) -> None:
    """Write ``predictions.csv`` or ``masks.npz``."""
    if isinstance(found, np.ndarray):
        np.savez_compressed(work / "masks.npz", masks=found.astype(np.uint8))
        return
    classes, probabilities = found
    with (work / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", *classes])
        for path, row in zip(files(test), np.asarray(probabilities), strict=True):
            writer.writerow([path.name, *(f"{value:.7g}" for value in row)])


def main() -> None:
    script, step, folder, work = sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
    declare_operators()
    rival = import_module(Path(script).stem)
    if step == "train":
        rival.train(folder / "images", work, float(sys.argv[5]) - time.process_time(), int(sys.argv[6]), *sys.argv[7:])
    else:
        write(work, folder / "test", rival.predict(folder / "test", work))


if __name__ == "__main__":
    main()
