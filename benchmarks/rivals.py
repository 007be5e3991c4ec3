"""The same images and the same processor minutes for Petriscope without a recipe and for other libraries, from scratch.

Each rival is a script in benchmarks/rivals/, by the rival's own documented quick start, and runs in an environment of its own:
a virtual environment in which it is installed, and which takes what the rival shares with Petriscope, such as torch, from the
environment of this program. A rival that asks for other releases of torch or torchvision does not install, which the table
says. All get the same folders of PNG files; a rival that looks at val for anything does so itself. A script trains until its
time is used up, in seconds of the processor from the start of its process, by the rival's own limit of time or callback,
which is told the time of the processor; orchard-ml, which has neither, times one epoch first. Then it predicts test images in a
second process, which is not counted, and all predictions are scored here, by the same code.

    python benchmarks/rivals.py --data cells=SOURCE --minutes 5 --out rivals/
    python benchmarks/rivals.py --data cells=SOURCE cifar10=SOURCE,images=10000 mars=SOURCE,ignore=background --out rivals/
    python benchmarks/rivals.py --data cells=SOURCE --rivals petriscope --recipes blood/fast,data.size=28,training.epochs=4

With ``images=N``, as many images of train and val together, classes in their proportions; with ``ignore=NAME``, pixels of this
class are unlabeled; with ``folds=N``, for small sets, each of N folds is test once and every rival is trained N times, each
with these minutes, and scored on all images together. Intervals are then over images, for the networks that were trained.
``--recipes`` trains recipes of Petriscope beside the rivals, with settings; choose their epochs so that they take the same time,
since nothing else limits it. What is done is kept, one JSON file for each rival, data, number of minutes and seed, and is not
done again; remove a file to repeat it. ``table.md`` and ``table.json`` are written after each. Peak memory is that of the
largest process. Lines are those of a script that are neither blank nor comments, without those that are there for the benchmark
alone, such as its clock.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from petriscope.core.errors import DataError
from petriscope.core.files import write_text
from petriscope.core.recipe import DataSection, FoldsSection
from petriscope.data import Dataset, ImageSet, load_dataset
from petriscope.metrics.calibration import calibration_errors
from petriscope.metrics.intervals import group_index, percentile95, proportion95
from petriscope.metrics.segmentation import class_counts, confusion_each, scenes_of
from petriscope.metrics.statistics import Sample, difference, resample, resample_miou
from petriscope.run.folder import hardware
from petriscope.trust.robustness import stratified

SCRIPTS = Path(__file__).parent / "rivals"
OURS = "petriscope"
MOST = 2  # times the processor time that was given, after which a rival is stopped
NOT_COUNTED = "# benchmark"
COLUMNS = (
    "",
    "accuracy or mean IoU, %",
    "Petriscope less it, points",
    "calibration error, %",
    "processor, s",
    "wall, s",
    "peak, MiB",
    "lines",
)
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "YOLO_OFFLINE": "true",
    "YOLO_AUTOINSTALL": "false",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "WANDB_MODE": "disabled",
    "MLFLOW_TRACKING_URI": "",
    "MPLBACKEND": "agg",
}


@dataclass(frozen=True)
class Rival:
    """A script and what it needs.

    Args:
        script: its file in benchmarks/rivals/.
        packages: what pip installs; none: the environment of this program.
        settings: further arguments of ``train``.
    """

    script: str
    packages: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()


LABELS = {
    OURS: Rival("petriscope_auto.py"),
    "torchvision": Rival("torchvision_resnet18.py"),
    "fastai": Rival("with_fastai.py", ("fastai",)),
    "ultralytics": Rival("with_ultralytics.py", ("ultralytics",)),
    "keras": Rival("with_keras.py", ("keras",)),
    "autogluon": Rival("with_autogluon.py", ("autogluon.multimodal",)),
    "orchard-ml": Rival("with_orchard.py", ("orchard-ml",)),
}
MASKS = {
    OURS: Rival("masks_petriscope_auto.py"),
    "smp": Rival("masks_smp.py", ("segmentation-models-pytorch",)),
    "torchvision-fcn": Rival("masks_torchvision_fcn.py"),
}


def recipe_rival(text: str) -> Rival:
    """A recipe of Petriscope and its settings, ``NAME,KEY=VALUE...``."""
    return Rival("petriscope_recipe.py", settings=tuple(text.split(",")))


class Failed(Exception):
    """A rival did not install, or its script failed."""


def lines_of(script: Path) -> int:
    """The lines that a user of a rival would write."""
    body = script.read_text(encoding="utf-8").split('"""', 2)[2].splitlines()
    written = [line for line in body if line.strip() and not line.lstrip().startswith("#") and NOT_COUNTED not in line]
    return len(written)


# Images


def parse_data(text: str) -> tuple[str, str, dict[str, str]]:
    """``NAME=SOURCE,KEY=VALUE...`` as name, source and keys."""
    name, _, rest = text.partition("=")
    source, *keys = rest.split(",")
    found = dict(key.partition("=")[::2] for key in keys)
    if not source or not set(found) <= {"images", "ignore", "folds"}:
        raise SystemExit(f"--data takes NAME=SOURCE with ,images=N, ,ignore=NAME and ,folds=N after it, not {text}")
    return name, source, found


def parts_of(data: str, folds: int) -> Sequence[str]:
    """The folders of images for data: one, or one for each fold."""
    return [f"{data}-fold{number}" for number in range(1, folds + 1)] or [data]


def prepare(source: str, keys: Mapping[str, str], folder: Path, fold: int | None = None) -> None:
    """Write the images of a source as all rivals get them: ``images/{train,val}/CLASS/*.png``, or ``images`` and ``masks`` in
    place of the classes, and ``test/*.png``; and what they are scored by, ``truth.npz``, which they do not get. With ``fold``,
    from 1, test is this one of ``keys["folds"]``."""
    if (folder / "truth.npz").is_file():
        return
    folds = FoldsSection(count=int(keys["folds"]), hold_out=fold) if fold else None
    data = load_dataset(DataSection(source=source, ignore=keys.get("ignore"), folds=folds))
    if data.task.name not in ("classification", "segmentation"):
        raise DataError(f"{source} has targets for {data.task.name}; rivals are compared for labels and masks")
    share = 1.0
    if "images" in keys:
        share = min(1.0, int(keys["images"]) / (len(data.split("train")) + len(data.split("val"))))
    for split in ("train", "val"):
        write_images(part_of(data, split, share), folder / "images" / split)
    test = data.split("test")
    write_files(test.take(np.arange(len(test))), folder / "test")
    truth = {"targets": test.targets, "classes": np.array(test.classes)}
    if test.groups is not None:
        truth["groups"] = test.groups
    np.savez(folder / "truth.npz", **truth)


def part_of(data: Dataset, split: str, share: float) -> ImageSet:
    images = data.split(split)
    return images if share == 1 else images.subset(np.sort(stratified(images.strata, round(share * len(images)))))


def write_images(images: ImageSet, folder: Path) -> None:
    pixels = images.take(np.arange(len(images)))
    if images.task.name == "segmentation":
        write_files(pixels, folder / "images")
        write_files(images.targets[..., None], folder / "masks")
        return
    for label, name in enumerate(images.classes):
        write_files(pixels[images.targets == label], folder / name)


def write_files(pixels: np.ndarray, folder: Path) -> None:
    folder.mkdir(parents=True)
    for number, image in enumerate(pixels):
        Image.fromarray(image.squeeze()).save(folder / f"{number:06d}.png")


# Environments


def python_of(name: str, rival: Rival, envs: Path) -> Path:
    """The Python of a rival's environment, which is made if it is not there.

    Raises:
        Failed: it does not install here.
    """
    if not rival.packages:
        return Path(sys.executable)
    home = envs / name
    python = home / "bin" / "python"
    if (home / "installed").is_file():
        return python
    print(f"installing {name}", flush=True)
    venv.create(home, with_pip=True, clear=True)
    site = next(home.glob("lib/python*/site-packages"))
    shared = [path for path in sys.path if path.endswith("site-packages")]
    (site / "shared.pth").write_text("\n".join(shared))
    pins = [f"{package}=={version(package)}" for package in ("torch", "torchvision")]
    done = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--no-compile", *pins, *rival.packages],
        capture_output=True,
        text=True,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )
    if done.returncode:
        raise Failed(f"does not install here: {last_line(done.stderr)}")
    (home / "installed").touch()
    return python


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"


# Runs


@dataclass(frozen=True)
class Spent:
    """What a process and those that it waited for used."""

    wall_seconds: float
    processor_seconds: float
    peak_mib: float


def start(command: Sequence[str | Path], work: Path, log: Path, seconds: float, isolated: bool) -> Spent:
    """Run a step of a script; what it prints goes to ``log``.

    Args:
        seconds: of the processor, after which it is stopped.
        isolated: whether it does not see this program's PYTHONPATH.

    Raises:
        Failed: it ended with an error.
    """
    env = {**os.environ, **OFFLINE, "HOME": str(work), "YOLO_CONFIG_DIR": str(work)}
    if isolated:
        env.pop("PYTHONPATH", None)
    limit = (int(seconds), int(seconds) + 5)
    began = time.monotonic()
    with log.open("ab") as file:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=work,
            env=env,
            stdout=file,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, limit),
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        text = log.read_text(encoding="utf-8", errors="replace")
        raise Failed(f"failed (exit status {process.returncode}): {last_line(text)}")
    kib = 1024 if sys.platform == "darwin" else 1  # of ru_maxrss
    return Spent(time.monotonic() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / kib / 1024)


def measure(name: str, rival: Rival, folder: Path, work: Path, envs: Path, minutes: float, seed: int) -> dict[str, Any]:
    """Train a rival, unless that was done before, and predict test. Its files are in ``work`` afterwards."""
    found: dict[str, Any] = {"lines": lines_of(SCRIPTS / rival.script)}
    log, trained = work / "log.txt", work / "trained.json"
    if not trained.is_file():
        set_aside(work)
        work.mkdir(parents=True)
    try:
        python = python_of(name, rival, envs)
        found["versions"] = versions(name, rival, python)
        step = [python, SCRIPTS / "start.py", rival.script]
        isolated = bool(rival.packages)
        seconds = 60 * minutes
        if not trained.is_file():
            command = [*step, "train", folder, work, str(seconds), str(seed), *rival.settings]
            spent = start(command, work, log, MOST * seconds + 60, isolated)
            write_text(trained, json.dumps(vars(spent)))
        found |= json.loads(trained.read_text(encoding="utf-8"))
        predicted = start([*step, "predict", folder, work], work, log, MOST * seconds + 600, isolated)
        found["predict_processor_seconds"] = predicted.processor_seconds
    except Failed as failure:
        found["failed"] = str(failure)
    return found


def versions(name: str, rival: Rival, python: Path) -> dict[str, str]:
    """The releases of what was installed, and of torch."""
    packages = ["torch", *(rival.packages or (OURS if name == OURS or rival.settings else "torchvision",))]
    program = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    done = subprocess.run([python, "-c", program, *packages], capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else {}


# Scores


@dataclass(frozen=True)
class Truth:
    """What predictions are scored by: targets, class names, and the groups of images that belong together."""

    targets: np.ndarray
    classes: tuple[str, ...]
    groups: np.ndarray | None = None

    @classmethod
    def read(cls, file: Path) -> Truth:
        with np.load(file, allow_pickle=False) as arrays:
            groups = arrays.get("groups")
            return cls(arrays["targets"], tuple(map(str, arrays["classes"])), groups)

    @classmethod
    def join(cls, parts: Sequence[Truth]) -> Truth:
        """Those of several folds, which share their classes."""
        grouped = [part.groups for part in parts if part.groups is not None]
        groups = np.concatenate(grouped) if len(grouped) == len(parts) else None
        return cls(np.concatenate([part.targets for part in parts]), parts[0].classes, groups)

    @property
    def dense(self) -> bool:
        return self.targets.ndim == 3


def read_predictions(work: Path, truth: Truth) -> np.ndarray:
    """What a script wrote: probabilities float64 [N, K] in the order of ``truth.classes``, or masks uint8 [N, H, W].

    Raises:
        Failed: it does not fit the test images.
    """
    file = work / ("masks.npz" if truth.dense else "predictions.csv")
    if not file.is_file():
        raise Failed(f"wrote no {file.name}")
    if truth.dense:
        with np.load(file, allow_pickle=False) as arrays:
            masks = arrays["masks"]
        if masks.shape != truth.targets.shape:
            raise Failed(f"wrote masks of {list(masks.shape)} for {list(truth.targets.shape)}")
        return masks
    table = pd.read_csv(file, dtype={"image": str}).set_index("image").sort_index()
    if set(table.columns) != set(truth.classes) or len(table) != len(truth.targets):
        raise Failed(
            f"wrote {len(table)} rows of {list(table.columns)} for {len(truth.targets)} of {list(truth.classes)}"
        )
    probabilities = table[list(truth.classes)].to_numpy(np.float64)
    sums = probabilities.sum(1, keepdims=True)
    if not (np.isfinite(probabilities).all() and (probabilities >= 0).all() and np.allclose(sums, 1, atol=0.02)):
        raise Failed("wrote rows that are no probabilities")
    return probabilities / sums


def score(predictions: np.ndarray, truth: Truth) -> dict[str, Any]:
    """Accuracy with its interval, and calibration errors; or mean IoU with its interval."""
    index = group_index(truth.groups)
    if truth.dense:
        sample = sampled([predictions], truth)
        return {"miou": float(sample.values[0]), "miou_ci95": list(percentile95(sample.draws[0]))}
    right = (predictions.argmax(1) == truth.targets).astype(float)
    found = {"accuracy": float(right.mean()), "accuracy_ci95": list(proportion95(right, index))}
    return found | calibration_errors(predictions, truth.targets)


def sampled(predictions: Sequence[np.ndarray], truth: Truth) -> Sample:
    """The metric of several sets of predictions, which share their resamples."""
    if truth.dense:
        import torch

        masks = torch.from_numpy(truth.targets)
        found = [
            confusion_each(torch.from_numpy(each.astype(np.int64)), masks, len(truth.classes)) for each in predictions
        ]
        counts = np.stack([class_counts(each.numpy()) for each in found])
        return resample_miou(counts, scenes_of(truth.groups, len(masks)))
    labels = np.stack([each.argmax(1) for each in predictions])
    return resample(labels, truth.targets, len(truth.classes), index=group_index(truth.groups))


# The table


def key_of(data: str, name: str, minutes: float, seed: int) -> str:
    return f"{data}-{name.replace('/', '-')}-{minutes:g}min-seed{seed}"


def measured(out: Path) -> list[dict[str, Any]]:
    """What has been done, the best first, with Petriscope's metric less each rival's over the same images."""
    rows = pooled([json.loads(path.read_text(encoding="utf-8")) for path in sorted((out / "results").glob("*.json"))])
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["data"], row["minutes"], row["seed"]), []).append(row)
    for (_, minutes, seed), members in groups.items():
        parts = members[0]["parts"]
        truths = [Truth.read(out / "data" / part / "truth.npz") for part in parts]
        truth = Truth.join(truths)
        done = [row for row in members if "failed" not in row]
        predictions = []
        for row in done:
            work = [out / "work" / key_of(part, row["rival"], minutes, seed) for part in parts]
            predictions.append(np.concatenate([read_predictions(*each) for each in zip(work, truths, strict=True)]))
            if len(parts) > 1:
                row |= score(predictions[-1], truth)
        if OURS not in (row["rival"] for row in done):
            continue
        sample = sampled(predictions, truth)
        ours = [row["rival"] for row in done].index(OURS)
        for place, row in enumerate(done):
            if place != ours:
                found = difference(sample[[ours]], sample[[place]])
                row["ours_less_this"] = {"value": found.value, "ci95": list(found.ci95), "p": found.p}
    return sorted(rows, key=lambda row: (row["data"], row["minutes"], row["seed"], -row.get(metric_of(row), -1.0)))


def pooled(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows with ``parts``, their folders of images. Those of the folds of a rival become one, once all are there: with the
    means of what each took, the largest peak, and all test images."""
    out = [{**row, "parts": [row["data"]]} for row in rows if "of" not in row]
    found: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        if "of" in row:
            found.setdefault((row["of"], row["folds"], row["rival"], row["minutes"], row["seed"]), []).append(row)
    for (data, folds, *_), members in found.items():
        if len(members) < folds:
            continue
        first = members[0]
        row = {key: first[key] for key in ("rival", "minutes", "seed", "lines", "machine", "threads", "folds")}
        row |= {"data": data, "parts": parts_of(data, folds), "test": sum(each["test"] for each in members)}
        row |= {split: round(np.mean([each[split] for each in members])) for split in ("train", "val")}
        if failed := next((each for each in members if "failed" in each), None):
            out.append({**row, "failed": f"{failed['data']} {failed['failed']}"})
            continue
        row |= {key: float(np.mean([each[key] for each in members])) for key in ("processor_seconds", "wall_seconds")}
        row["peak_mib"] = max(each["peak_mib"] for each in members)
        row["each"] = [each[metric_of(each)] for each in members]
        out.append(row)
    return out


def metric_of(row: Mapping[str, Any]) -> str:
    return "miou" if "miou" in row else "accuracy"


def percent(value: float, ends: Sequence[float] | None = None, sign: str = "") -> str:
    text = f"{100 * value:{sign}.2f}"
    return (
        text
        if ends is None or not np.isfinite(ends).all()
        else f"{text} ({100 * ends[0]:{sign}.2f} to {100 * ends[1]:{sign}.2f})"
    )


def table_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table for each data, number of minutes and seed."""
    parts: list[str] = []
    last = None
    for row in rows:
        this = (row["data"], row["minutes"], row["seed"])
        if this != last:
            last = this
            parts += [
                "",
                f"{row['data']}: {row['train']:,} train, {row['val']:,} val, {row['test']:,} test images"
                f"{', in ' + str(row['folds']) + ' folds' if 'folds' in row else ''}; "
                f"{row['minutes']:g} processor minutes, seed {row['seed']}",
                "",
                f"| {' | '.join(COLUMNS)} |",
                "|---" * len(COLUMNS) + "|",
            ]
        if "failed" in row:
            parts.append(f"| {row['rival']} | {row['failed']} | | | | | | {row['lines']} |")
            continue
        metric = metric_of(row)
        less = row.get("ours_less_this")
        cells = (
            row["rival"],
            percent(row[metric], row[f"{metric}_ci95"]),
            percent(less["value"], less["ci95"], "+") if less else "",
            percent(row["ece"]) if "ece" in row else "",
            f"{row['processor_seconds']:.0f}",
            f"{row['wall_seconds']:.0f}",
            f"{row['peak_mib']:,.0f}",
            str(row["lines"]),
        )
        parts.append(f"| {' | '.join(cells)} |")
    return "\n".join(parts[1:]) + "\n"


def write_table(out: Path) -> None:
    rows = measured(out)
    write_text(out / "table.md", table_of(rows))
    write_text(out / "table.json", json.dumps(rows, indent=1) + "\n")


def once(
    name: str, rival: Rival, data: str, minutes: float, seed: int, out: Path, envs: Path, of: Mapping[str, Any]
) -> None:
    """Measure a rival and write its result, unless it is there; ``of``: the data and the number of folds of a fold."""
    key = key_of(data, name, minutes, seed)
    result = out / "results" / f"{key}.json"
    if result.is_file():
        print(f"{key}: done before", flush=True)
        return
    folder, work = out / "data" / data, out / "work" / key
    print(f"{key}: training", flush=True)
    found = measure(name, rival, folder.resolve(), work.resolve(), envs.resolve(), minutes, seed)
    truth = Truth.read(folder / "truth.npz")
    if "failed" not in found:
        try:
            found |= score(read_predictions(work, truth), truth)
        except Failed as failure:
            found["failed"] = str(failure)
    images = {split: len(list((folder / "images" / split).rglob("*.png"))) for split in ("train", "val")}
    images = {split: count // 2 if truth.dense else count for split, count in images.items()}
    row = {"data": data, "rival": name, "minutes": minutes, "seed": seed, **images, "test": len(truth.targets)}
    row |= {**of, **found}
    row["machine"] = hardware().model_dump(mode="json")
    row["threads"] = os.environ.get("OMP_NUM_THREADS", "not set")
    result.parent.mkdir(parents=True, exist_ok=True)
    write_text(result, json.dumps(row, indent=1) + "\n")
    print(f"{key}: {found.get('failed') or percent(row[metric_of(row)]) + ' %'}", flush=True)


def set_aside(work: Path) -> None:
    """What a run left that was interrupted gets another name."""
    if work.exists():
        number = next(n for n in range(1, 1000) if not work.with_name(f"{work.name}-interrupted{n}").exists())
        work.rename(work.with_name(f"{work.name}-interrupted{number}"))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, metavar="NAME=SOURCE")
    parser.add_argument("--minutes", type=float, default=5.0, help="of the processor, for each training; default 5")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rivals", nargs="+", help="these alone, such as petriscope and keras")
    parser.add_argument(
        "--recipes", nargs="+", default=[], metavar="NAME,KEY=VALUE", help="of Petriscope, to train too"
    )
    parser.add_argument("--out", type=Path, default=Path("rivals"), help="folder of data, results and the table")
    parser.add_argument("--envs", type=Path, help="folder of the environments; default: within --out")
    args = parser.parse_args(arguments)
    if unknown := set(args.rivals or ()) - {*LABELS, *MASKS}:
        raise SystemExit(f"there is no rival {', '.join(sorted(unknown))}; there are {', '.join({**LABELS, **MASKS})}")
    recipes = {text: recipe_rival(text) for text in args.recipes}
    for text in args.data:
        data, source, keys = parse_data(text)
        folds = int(keys.get("folds", 0))
        parts = parts_of(data, folds)
        print(f"{data}: writing images", flush=True)
        for number, part in enumerate(parts, 1):
            prepare(source, keys, args.out / "data" / part, number if folds else None)
        rivals = MASKS if Truth.read(args.out / "data" / parts[0] / "truth.npz").dense else LABELS
        of = {"of": data, "folds": folds} if folds else {}
        wanted = {name: rival for name, rival in rivals.items() if args.rivals is None or name in args.rivals}
        for seed, (name, rival), part in product(args.seeds, {**wanted, **recipes}.items(), parts):
            once(name, rival, part, args.minutes, seed, args.out, args.envs or args.out / "envs", of)
            write_table(args.out)
    print((args.out / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
