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

from petriscope.data.sources.synthetic_shapes import CLASSES, draw_shapes
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


def _npy(folder: Path) -> None:
    """A model for three channels with 16 bits, and one image of it."""
    pixels = {f"{name}_images": deep_images(count) for name, count in (("train", 12), ("val", 4), ("test", 4))}
    make_npz(folder / "set", **pixels, channels=np.array(["DAPI", "GFP", "RFP"]))
    write_recipes(folder)
    must(folder, "train", "recipe.yaml", "--out", "run", "--quiet", "--set", "data.depth=16")
    (folder / "images").mkdir()
    np.save(folder / "images" / "a.npy", deep_images(1)[0])


def deep_images(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 65536, (count, 8, 9, 3), dtype=np.uint16)


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


def _label_sets(folder: Path) -> None:
    """Images with any number of labels: an npz, a table that lists them, and one with a column for each."""
    place = folder / "set"
    place.mkdir()
    images, labels = draw_shapes(60, (12, 12))
    parts = {"train": slice(0, 40), "val": slice(40, 50), "test": slice(50, 60)}
    arrays = {f"{split}_images": images[part] for split, part in parts.items()}
    np.savez(place / "cells.npz", **arrays, **{f"{split}_labels": labels[part] for split, part in parts.items()})
    lines = ["path,label", *(f"{i}.png,{'|'.join(np.array(CLASSES)[row == 1])}" for i, row in enumerate(labels))]
    flags = [",".join(["path", *CLASSES]), *(",".join([f"{i}.png", *map(str, row)]) for i, row in enumerate(labels))]
    for i, image in enumerate(images):
        Image.fromarray(image).save(place / f"{i}.png")
    (place / "listed.csv").write_text("\n".join(lines))
    (place / "flags.csv").write_text("\n".join(flags))
    write_recipes(folder)


def _trained_on_label_sets(folder: Path) -> None:
    _label_sets(folder)
    must(folder, "train", "recipe.yaml", "--data", "set/cells.npz", "--out", "run", "--quiet", "--test")
    _few_images(folder)


def _few_images(folder: Path) -> None:
    make_unsplit(folder / "images")
    for path in sorted((folder / "images").rglob("*.png"))[3:]:
        path.unlink()


def _in_shards(folder: Path) -> None:
    """A run, images in tar and Parquet files, and a prediction of them in shards that is half done."""
    _trained(folder)
    for name in ("webdataset", "hub"):
        FORMATS[name].write(folder / "set")
    asked = ("--out", "out", "--shards", "2", "--jobs", "1", "--max-error", "0.2")
    must(folder, "predict", "run", "set/shards", *asked)
    for name in ("summary.json", "shard-00001.parquet"):
        (folder / "out" / name).unlink()


def _run_and_images(folder: Path) -> None:
    _trained(folder)
    _few_images(folder)


def _package(folder: Path) -> None:
    _run_and_images(folder)
    must(folder, "export", "run", "--out", "package")


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


PACKAGE_COMMANDS = ("verify package", "predict package images", "evaluate package --split val")


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
    "label sets": Sample(
        _label_sets,
        ("set/*.npz", "set/*.csv"),
        (
            "data set/cells.npz",
            "data set/listed.csv --set data.task=multilabel",
            "data set/flags.csv",
            "audit set/flags.csv --quick --out audit --quiet",
        ),
    ),
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
    "webdataset": Sample(
        _stored("webdataset"),
        ("set/shards/*.tar", "set/shards/*.txt"),
        ("data set/shards", "data set/shards --set data.stream=true --set data.unreadable=skip"),
    ),
    "hdf5": Sample(_stored("hdf5"), ("set/cells.h5",), ("data set/cells.h5",)),
    "zarr": Sample(_stored("zarr 2"), ("set/cells.zarr/*/*", "set/cells.zarr/.zgroup"), ("data set/cells.zarr",)),
    "ome-tiff": Sample(_stored("ome-tiff"), ("set/set/*/*/*.tif",), ("data set/set --set data.depth=16",)),
    "tiff pages": Sample(_stored("tiff pages"), ("set/set/*/*/*.tif",), ("data set/set --set data.pages=images",)),
    "dicom": Sample(
        _stored("dicom"), ("set/set/*/*/*.dcm",), ("data set/set", "audit set/set --quick --quiet --out a")
    ),
    "czi": Sample(_stored("czi"), ("set/set/*/*/*.czi",), ("data set/set",)),
    "hub": Sample(_stored("hub"), ("set/hub/data/*.parquet",), ("data set/hub", "data set/hub --set data.stream=true")),
    "images": Sample(
        _images, ("images/*",), ("predict run images", "explain run images --out maps --method occlusion")
    ),
    "npy": Sample(_npy, ("images/a.npy", "set/cells.npz"), ("predict run images/a.npy", "data set/cells.npz")),
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
    "package": Sample(_package, ("package/package.json", "package/*.npz", "package/*.onnx"), PACKAGE_COMMANDS),
    "tests of a package": Sample(_package, ("package/tests/*",), PACKAGE_COMMANDS[:1]),
    "run of masks": Sample(
        _trained_on_masks,
        ("run/*.json", "run/*.jsonl", "run/*.yaml", "run/*.parquet", "run/gallery/*", "run/model.safetensors"),
        RUN_COMMANDS[:-1],
    ),
    "run of label sets": Sample(
        _trained_on_label_sets,
        ("run/*.json", "run/*.parquet", "run/gallery/*", "run/model.safetensors"),
        (*RUN_COMMANDS[:-1], "predict run images --max-error 0.1"),
    ),
    "shards": Sample(
        _in_shards,
        ("out/*.json", "out/listing.parquet", "set/shards/*.tar", "set/hub/data/*.parquet"),
        (
            "predict run set/shards --out out --shards 2 --jobs 1 --max-error 0.2",
            "work-on-shards out",
            "predict run set/shards --out new --shards 2 --jobs 1",
            "predict run set/hub/data --out new --shards 2 --jobs 1",
        ),
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
