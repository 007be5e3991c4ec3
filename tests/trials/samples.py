"""Valid files of every kind that Petriscope reads, and the commands that read them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from formats import FORMATS
from PIL import Image
from small_exports import make_export
from small_sources import (
    make_cifar,
    make_folders,
    make_mask_folders,
    make_mask_npz,
    make_mask_pile,
    make_npz,
    make_parquet,
    make_table,
    make_unsplit,
)

from trials.lab import run

RECIPE = """\
name: small
data: {source: set/cells.npz, size: 8}
augment: [flip, {name: translate, fraction: 0.1}]
model: {name: simple-cnn, widths: [4, 4, 8], hidden: 8}
training: {epochs: 1, batch_size: 8, checkpoint_seconds: 0, device: cpu, precision: fp32}
evaluation: {bootstrap: 100, stress: "off"}
"""
MASK_RECIPE = """\
extends: recipe.yaml
model: {name: unet, widths: [4, 8]}
augment: [flip]
"""
SUITE = """\
name: two
baseline: plain
seeds: [0]
methods:
  plain: {recipe: recipe.yaml}
  slow: {recipe: recipe.yaml, set: {optimizer.lr: 0.001}}
"""


@dataclass(frozen=True)
class Sample:
    """A kind of input.

    Args:
        make: writes the input into a folder.
        files: patterns of the files that a fuzzer may damage.
        commands: command lines that read it, run in that folder.
    """

    make: Callable[[Path], None]
    files: tuple[str, ...]
    commands: tuple[str, ...]


def write_recipes(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "masks.yaml").write_text(MASK_RECIPE)
    (folder / "suite.yaml").write_text(SUITE)


def _source(maker: Callable[[Path], Path]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        maker(folder / "set")
        write_recipes(folder)

    return make


def _stored(name: str) -> Callable[[Path], None]:
    """Twelve images in one of `FORMATS`."""

    def make(folder: Path) -> None:
        (folder / "set").mkdir()
        FORMATS[name].write(folder / "set")
        write_recipes(folder)

    return make


def _images(folder: Path) -> None:
    """Images of every format and mode, all in one folder, and a run that can predict them."""
    _trained(folder)
    place = folder / "images"
    place.mkdir()
    rng = np.random.default_rng(0)
    color = Image.fromarray(rng.integers(0, 256, (12, 9, 3), dtype=np.uint8))
    for suffix in ("png", "jpg", "tif", "bmp", "gif", "webp", "ppm"):
        color.save(place / f"color.{suffix}")
    color.convert("L").save(place / "gray.png")
    color.convert("RGBA").save(place / "alpha.png")
    color.convert("P").save(place / "palette.png")
    color.convert("1").save(place / "bits.tif")
    color.convert("CMYK").save(place / "cmyk.jpg")
    deep = rng.integers(0, 4096, (12, 9), dtype=np.uint16)
    Image.fromarray(deep).save(place / "deep.png")
    Image.fromarray(deep.astype(np.int32)).save(place / "int.tif")
    Image.fromarray(deep.astype(np.float32)).save(place / "float.tif")
    color.save(place / "pages.tif", save_all=True, append_images=[color, color])
    exif = Image.Exif()
    exif[0x0112] = 6
    color.save(place / "rotated.jpg", exif=exif)


def must(folder: Path, *words: str) -> None:
    """Run a command that has to succeed."""
    done = run(list(words), folder, seconds=120)
    if not done.finished:
        raise RuntimeError(f"petriscope {' '.join(words)}: {done.status}\n{done.err[-2000:]}")


def _trained(folder: Path) -> None:
    make_npz(folder / "set")
    write_recipes(folder)
    must(folder, "train", "recipe.yaml", "--out", "run", "--quiet", "--test")


def _trained_on_masks(folder: Path) -> None:
    make_mask_npz(folder / "set")
    write_recipes(folder)
    must(folder, "train", "masks.yaml", "--out", "run", "--quiet", "--test")
    _few_images(folder)


def _few_images(folder: Path) -> None:
    make_unsplit(folder / "images")
    for path in sorted((folder / "images").rglob("*.png"))[3:]:
        path.unlink()


def _run_and_images(folder: Path) -> None:
    _trained(folder)
    _few_images(folder)


def _two_runs(folder: Path) -> None:
    _run_and_images(folder)
    must(folder, "train", "recipe.yaml", "--out", "other", "--quiet", "--seed", "1")
    must(folder, "ensemble", "run", "other", "--out", "joined")


def _export(tool: str, *files: str) -> Sample:
    """An export with polygons, which is read as crops and as masks; Pascal VOC has boxes alone."""

    def make(folder: Path) -> None:
        make_export(folder / "set", tool, outlines=tool != "voc")
        write_recipes(folder)

    crops = "data set --set data.crop.margin=0.1"
    return Sample(make, files, (crops, f"{crops} --set data.unreadable=skip", "data set --set data.unreadable=skip"))


def _audited(folder: Path) -> None:
    make_unsplit(folder / "set")
    write_recipes(folder)
    must(folder, "audit", "set", "--quick", "--out", "audit", "--quiet")


DATA = ("data set",)
TRAIN = "train recipe.yaml --data set --out run --quiet --set model.name=simple-cnn"
RUN_COMMANDS = (
    "report run",
    "evaluate run --split val",
    "predict run images",
    "calibrate run",
    "compare run run",
    "train --resume run --quiet",
)


def _sample(make: Callable[[Path], Path], files: tuple[str, ...], *commands: str) -> Sample:
    return Sample(_source(make), files, commands or (*DATA, "audit set --quick --out audit --quiet"))


NPZ = ("data set/cells.npz",)
SAMPLES: dict[str, Sample] = {
    "npz": _sample(
        make_npz, ("set/cells.npz",), *NPZ, "audit set/cells.npz --quick --quiet", "train recipe.yaml --quiet --out run"
    ),
    "npz of masks": _sample(make_mask_npz, ("set/cells.npz",), *NPZ, "train masks.yaml --quiet --out run"),
    "csv": _sample(make_table, ("set/table.csv",), "data set/table.csv", "train recipe.yaml --data set/table.csv"),
    "parquet": _sample(make_parquet, ("set/table.parquet",), "data set/table.parquet"),
    "cifar": _sample(make_cifar, ("set/*batch*",), *DATA),
    "folders": _sample(make_folders, ("set/*/*/*.png",)),
    "pile": _sample(make_unsplit, ("set/*/*.png",), *DATA, TRAIN),
    "mask folders": _sample(make_mask_folders, ("set/*/masks/*.png", "set/*/images/*.png")),
    "mask pile": _sample(make_mask_pile, ("set/masks/*.png", "set/images/*.png")),
    "coco": _export("coco", "set/annotations/*.json"),
    "voc": _export("voc", "set/Annotations/*.xml", "set/ImageSets/Main/*.txt"),
    "yolo": _export("yolo", "set/labels/*/*.txt", "set/data.yaml"),
    "labelme": _export("labelme", "set/images/*/*.json"),
    "cvat": _export("cvat", "set/annotations.xml"),
    "label studio": _export("label studio", "set/*/*.json"),
    "zip": Sample(
        _stored("zip"), ("set/set.zip",), ("data set/set.zip", "audit set/set.zip --quick --out audit --quiet")
    ),
    "tar": Sample(_stored("tar"), ("set/set.tar",), ("data set/set.tar",)),
    "tar.gz": Sample(_stored("tar.gz"), ("set/set.tar.gz",), ("data set/set.tar.gz",)),
    "webdataset": Sample(_stored("webdataset"), ("set/shards/*.tar", "set/shards/*.txt"), ("data set/shards",)),
    "hdf5": Sample(_stored("hdf5"), ("set/cells.h5",), ("data set/cells.h5",)),
    "zarr": Sample(_stored("zarr 2"), ("set/cells.zarr/*/*", "set/cells.zarr/.zgroup"), ("data set/cells.zarr",)),
    "hub": Sample(_stored("hub"), ("set/hub/data/*.parquet",), ("data set/hub",)),
    "images": Sample(
        _images, ("images/*",), ("predict run images", "explain run images --out maps --method occlusion")
    ),
    "recipe": Sample(
        _source(make_npz),
        ("recipe.yaml",),
        ("train recipe.yaml --quiet --out run", "train masks.yaml --quiet --out run"),
    ),
    "suite": Sample(_source(make_npz), ("suite.yaml",), ("bench suite.yaml --quiet",)),
    "decisions": Sample(
        _audited,
        ("audit/decisions.yaml",),
        (
            "audit set --quick --quiet --set data.audit=audit --out again",
            "train recipe.yaml --data set --audit audit --quiet",
        ),
    ),
    "audit": Sample(_audited, ("audit/*",), ("train recipe.yaml --data set --audit audit --quiet --out run",)),
    "model": Sample(
        _run_and_images,
        ("run/model.safetensors",),
        ("predict run images", "predict run/model.safetensors images", "evaluate run --split val"),
    ),
    "run": Sample(
        _run_and_images,
        ("run/*.json", "run/*.jsonl", "run/*.yaml", "run/*.parquet", "run/gallery/*", "run/checkpoint/*"),
        RUN_COMMANDS,
    ),
    "run of masks": Sample(
        _trained_on_masks,
        ("run/*.json", "run/*.jsonl", "run/*.yaml", "run/*.parquet", "run/gallery/*", "run/model.safetensors"),
        RUN_COMMANDS[:-1],
    ),
    "ensemble": Sample(
        _two_runs,
        ("joined/*.json", "joined/*.yaml", "joined/*.parquet", "joined/model.safetensors", "other/results.json"),
        ("report joined", "predict joined images", "compare run other joined", "ensemble run other --out new"),
    ),
}


def prepare(folder: Path, names: list[str]) -> dict[str, Path]:
    """Write the samples of these names below ``folder``."""
    places = {}
    for name in names:
        places[name] = folder / name.replace(" ", "-")
        shutil.rmtree(places[name], ignore_errors=True)
        places[name].mkdir(parents=True)
        SAMPLES[name].make(places[name])
    return places
