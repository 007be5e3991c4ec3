"""Time and memory of what comes after training, for many classes and images: metrics with intervals, calibration and
guarantees, predictions, report and comparison. Probabilities are drawn, so nothing is trained.

Time: of the processor, so that other work on the machine does not count. Memory: the peak of each step less what the process
held before it; the probabilities themselves are the first row.

    python benchmarks/many_classes.py --classes 1000 --images 100000
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from common import print_machine, print_table
from petriscope.core.recipe import Recipe
from petriscope.core.results import Evaluation, TrainingSummary
from petriscope.data.imageset import Dataset, ImageSet
from petriscope.experiments.compare import compare
from petriscope.report.compare import write_comparison
from petriscope.report.page import write_report
from petriscope.run.folder import Run, create_run
from petriscope.trust.state import fit_reference, trust_metrics
from petriscope.trust.temperature import scale

STATUS = Path("/proc/self/status")


def held(key: str) -> int:
    """Bytes that the process holds now (``VmRSS``) or has held at most (``VmHWM``)."""
    return 1024 * int(STATUS.read_text().partition(f"{key}:")[2].split()[0])


def draw(targets: np.ndarray, classes: int, seed: int) -> np.ndarray:
    """Probabilities of a network that is right for three images in four, float32 [N, K]."""
    rng = np.random.default_rng(seed)
    p = rng.standard_exponential((len(targets), classes), dtype=np.float32) ** 2
    p[np.arange(len(targets)), targets] += (
        20 * classes * rng.exponential(size=len(targets)).astype(np.float32) ** 3 / 100
    )
    p /= p.sum(1, keepdims=True)
    return p


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--per-group", type=int, default=0, help="images per group; 0: images are independent")
    parser.add_argument("--resamples", type=int, default=1000)
    args = parser.parse_args()
    print_machine()
    rows: list[list[str]] = []

    def step(name: str, do: Callable[[], Any]) -> Any:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
        before, start = held("VmRSS"), time.process_time()
        found = do()
        rows.append([name, f"{time.process_time() - start:.1f} s", f"{(held('VmHWM') - before) / 2**20:,.0f} MiB"])
        print("  ".join(rows[-1]), flush=True)
        return found

    names = tuple(f"class {k}" for k in range(args.classes))
    targets = np.random.default_rng(0).integers(0, args.classes, args.images)
    groups = np.array([f"g{i // args.per_group}" for i in range(args.images)]) if args.per_group else None
    pixels, everything = np.zeros((1, 8, 8, 1), np.uint8), np.zeros(args.images, dtype=np.int64)
    ids = np.char.add("image ", np.arange(args.images).astype(str))
    images = ImageSet(pixels, targets, names, ids, groups, rows=everything)
    p = step("probabilities, float32", lambda: draw(targets, args.classes, 1))
    step("metrics after an epoch", lambda: images.task.quick(p, images))
    reference = step("temperature and scores of val", lambda: fit_reference(p, targets, groups=groups))
    scaled = step("probabilities, scaled", lambda: scale(p, reference.temperature))
    metrics = step("metrics with intervals", lambda: images.task.judge(scaled, images, args.resamples))
    about = (p, scaled, targets, None, names, reference, reference.temperature, groups)
    trust = step("calibration and guarantees", lambda: trust_metrics(*about))
    evaluation = Evaluation.model_validate({"split": "test", **metrics, **trust.as_json()})

    with tempfile.TemporaryDirectory() as folder:

        def record(seed: int, p: np.ndarray) -> Run:
            run = create_run(Path(folder) / str(seed), Recipe(seed=seed, name=f"recipe {seed}"), Dataset(test=images))
            run.add_predictions("test", images.task.table(p, images, "test"))
            run.add_results(training=TrainingSummary(seconds=1.0), test=evaluation)
            return run

        runs = [step("run folder", lambda: record(1, scaled))]
        page = step("report", lambda: write_report(runs[0]))
        runs.append(record(2, draw(targets, args.classes, 2)))
        for metric in ("accuracy", "macro_f1"):
            found = step(f"comparison of two, {metric}", lambda metric=metric: compare(runs, "test", metric=metric))
        write_comparison(found, Path(folder) / "comparison.html")
        sizes = {path.name: path.stat().st_size for path in (page, *runs[0].folder.glob("[rp]*.[jp]*"))}
    print_table(["", "processor time", "added memory"], rows)
    print(", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in sizes.items()))


if __name__ == "__main__":
    main()
