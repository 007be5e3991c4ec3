"""The same twelve images in every format, written by the library of the format."""

from __future__ import annotations

import io
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from small_sources import some_images

SPLITS = ("train",) * 6 + ("val",) * 3 + ("test",) * 3
LABELS = tuple(("cat", "dog")[number % 2] for number in range(12))
GROUPS = tuple(f"slide{number // 3}" for number in range(12))
IDS = tuple(f"{SPLITS[n]}/{LABELS[n]}/{GROUPS[n]}-{n:02d}.png" for n in range(12))


def pixels() -> np.ndarray:
    """uint8 [12, 8, 9, 3]."""
    return some_images(12, seed=7)


def png(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


@dataclass(frozen=True)
class Format:
    """A way of storing the images.

    Args:
        write: writes them into a folder and returns the source.
        file: the file that tests damage, below the folder.
        needs: libraries without which tests are skipped.
        ids: of the images in the format; empty: it has none.
        options: of ``data``, to read them.
        group: ``data.group`` that finds the groups; None: they are found without it, or there are none.
        grouped: whether the format has groups.
        classes: in the format.
        sums: whether the format has checksums of what it stores, so that damage can be found.
    """

    write: Callable[[Path], str]
    file: str
    needs: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    group: str | None = None
    grouped: bool = True
    classes: tuple[str, ...] = ("cat", "dog")
    sums: bool = True


def _members() -> list[tuple[str, bytes]]:
    return list(zip(IDS, map(png, pixels()), strict=True))


def write_folder(folder: Path) -> str:
    for name, data in _members():
        (folder / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "set" / name).write_bytes(data)
    return str(folder / "set")


def write_zip(folder: Path) -> str:
    with zipfile.ZipFile(folder / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in _members():
            archive.writestr(name, data)
    return str(folder / "set.zip")


def write_tar(folder: Path, name: str = "set.tar") -> str:
    with tarfile.open(folder / name, "w:gz" if name.endswith("gz") else "w") as archive:
        for member, data in _members():
            info = tarfile.TarInfo(f"./{member}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return str(folder / name)


def write_shards(folder: Path, label: str = "cls", names: bool = True) -> str:
    """Two shards per split, by webdataset."""
    import webdataset

    images = pixels()
    home = folder / "shards"
    home.mkdir()
    for split in ("train", "val", "test"):
        with webdataset.ShardWriter(f"{home}/{split}-%06d.tar", maxcount=2, verbose=0) as writer:
            for n in [n for n in range(12) if SPLITS[n] == split]:
                about = {"slide": GROUPS[n], "day": n, "label": LABELS[n]}
                sample = {"__key__": f"{split}{n:02d}", "png": images[n], "json": about}
                if label == "json":
                    writer.write(sample)
                elif label == "txt":
                    writer.write({**sample, "json": {"slide": GROUPS[n]}, "txt": LABELS[n]})
                else:
                    writer.write({**sample, "cls": int(LABELS[n] == "dog")})
    if names and label == "cls":
        (home / "classes.txt").write_text("cat\ndog\n")
    return str(home)


def write_one_shard(folder: Path) -> str:
    import webdataset

    with webdataset.TarWriter(str(folder / "train.tar")) as writer:
        for n, image in enumerate(pixels()):
            writer.write({"__key__": f"{n:02d}", "png": image, "cls": int(LABELS[n] == "dog")})
    return str(folder / "train.tar")


SHARD_IDS = tuple(f"{SPLITS[n]}{n:02d}.png" for n in range(12))


def write_hub(folder: Path, rows: int = 3) -> str:
    """Parquet files as the Hugging Face hub has them, by pyarrow."""
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "hub/data").mkdir(parents=True)
    (folder / "hub/README.md").write_text("x")
    names = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    noted = {b"huggingface": json.dumps({"info": {"features": names}}).encode()}
    images = [png(image) for image in pixels()]
    for split in ("train", "val", "test"):
        chosen = [n for n in range(12) if SPLITS[n] == split]
        table = pa.table(
            {
                "image": pa.array(
                    [{"bytes": images[n], "path": f"{n:02d}.png"} for n in chosen],
                    pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
                ),
                "label": pa.array([int(LABELS[n] == "dog") for n in chosen], pa.int64()),
                "slide": [GROUPS[n] for n in chosen],
            }
        ).replace_schema_metadata(noted)
        where = f"data/{split if split != 'val' else 'validation'}-00000-of-00001.parquet"
        pq.write_table(table, folder / "hub" / where, row_group_size=rows)
    return str(folder / "hub")


def write_pandas_parquet(folder: Path) -> str:
    """One file with binary images, names as labels and columns for splits and groups, by pandas."""
    import pandas as pd

    images = [png(image) for image in pixels()]
    frame = pd.DataFrame({"image": images, "label": LABELS, "split": SPLITS, "group": GROUPS})
    frame.to_parquet(folder / "cells.parquet")
    return str(folder / "cells.parquet")


def write_hdf5(folder: Path) -> str:
    import h5py

    images = pixels()
    with h5py.File(folder / "cells.h5", "w") as file:
        file["classes"] = ["cat", "dog"]
        for split in ("train", "val", "test"):
            chosen = [n for n in range(12) if SPLITS[n] == split]
            file.create_dataset(f"{split}/images", data=images[chosen], compression="gzip", chunks=(2, 8, 9, 3))
            file[f"{split}/labels"] = [int(LABELS[n] == "dog") for n in chosen]
            file[f"{split}/groups"] = [GROUPS[n] for n in chosen]
    return str(folder / "cells.h5")


def write_zarr(folder: Path, version: int = 3) -> str:
    import zarr

    images = pixels()
    root = zarr.open_group(str(folder / "cells.zarr"), mode="w", zarr_format=version)
    for split in ("train", "val", "test"):
        chosen = [n for n in range(12) if SPLITS[n] == split]
        root.create_array(f"{split}_images", data=images[chosen], chunks=(2, 8, 9, 3))
        root.create_array(f"{split}_labels", data=np.array([int(LABELS[n] == "dog") for n in chosen]))
    return str(folder / "cells.zarr")


def _each(folder: Path, suffix: str, write: Callable[[Path, np.ndarray], None]) -> str:
    """A file per image, in class folders."""
    for name, image in zip(IDS, pixels(), strict=True):
        path = (folder / "set" / name).with_suffix(suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, image)
    return str(folder / "set")


def with_suffix(suffix: str) -> tuple[str, ...]:
    return tuple(name.replace(".png", suffix) for name in IDS)


def write_npy(folder: Path) -> str:
    """An array per file, by numpy."""
    return _each(folder, ".npy", np.save)


def write_npy_zip(folder: Path) -> str:
    write_npy(folder / "plain")
    return shutil.make_archive(str(folder / "set"), "zip", folder / "plain" / "set")


def write_npy_table(folder: Path) -> str:
    """A CSV that lists files with an array."""
    write_npy(folder)
    rows = [f"set/{name.replace('.png', '.npy')},{LABELS[n]},{SPLITS[n]},{GROUPS[n]}" for n, name in enumerate(IDS)]
    (folder / "cells.csv").write_text("\n".join(["path,label,split,group", *rows]))
    return str(folder / "cells.csv")


def write_tiff(folder: Path) -> str:
    """Ordinary RGB pages, by tifffile."""
    import tifffile

    return _each(
        folder, ".tif", lambda path, image: tifffile.imwrite(path, image, photometric="rgb", compression="zlib")
    )


def write_ome_tiff(folder: Path) -> str:
    """A page per channel, with the names of the channels, by tifffile."""
    import tifffile

    about = {"axes": "CYX", "Channel": {"Name": ["Red", "Green", "Blue"]}, "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}
    return _each(
        folder,
        ".ome.tif",
        lambda path, image: tifffile.imwrite(
            path, image.transpose(2, 0, 1), ome=True, photometric="minisblack", compression="zlib", metadata=about
        ),
    )


def write_imagej(folder: Path) -> str:
    """A hyperstack of ImageJ with labels, by tifffile."""
    import tifffile

    about = {"axes": "CYX", "Labels": ["red", "green", "blue"]}
    return _each(
        folder,
        ".tif",
        lambda path, image: tifffile.imwrite(path, image.transpose(2, 0, 1), imagej=True, metadata=about),
    )


def write_pages(folder: Path) -> str:
    """A file per slide and class, with a page per image, by tifffile."""
    import tifffile

    images = pixels()
    for name, numbers in slides().items():
        path = folder / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with tifffile.TiffWriter(path) as writer:
            for number in numbers:
                writer.write(images[number], photometric="rgb", compression="zlib", contiguous=False)
    return str(folder / "set")


def slides() -> dict[str, list[int]]:
    """The images of each file of `write_pages`."""
    out: dict[str, list[int]] = {}
    for n in range(12):
        out.setdefault(f"{SPLITS[n]}/{LABELS[n]}/{GROUPS[n]}.tif", []).append(n)
    return out


def _page_ids() -> tuple[str, ...]:
    found = {}
    for name, numbers in slides().items():
        found |= {n: f"{name}#{page}" if len(numbers) > 1 else name for page, n in enumerate(numbers)}
    return tuple(found[n] for n in range(12))


def write_dicom(folder: Path) -> str:
    """Secondary captures in RGB, by pydicom."""
    return _each(folder, ".dcm", lambda path, image: save_dicom(path, image, "RGB"))


def save_dicom(path: Path, values: np.ndarray, photometric: str = "MONOCHROME2", bits: int = 0, **tags: Any) -> None:
    """A DICOM file of [H, W] or, with ``NumberOfFrames``, [N, H, W]; or of [H, W, 3]."""
    import pydicom
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    data = pydicom.Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    for key, value in tags.items():
        setattr(data, key, value)
    data.set_pixel_data(values, photometric, bits or 8 * values.dtype.itemsize, generate_instance_uid=False)
    data.save_as(path, enforce_file_format=True)


def write_czi(folder: Path) -> str:
    """By Zeiss's own library."""
    from pylibCZIrw import czi

    def write(path: Path, image: np.ndarray) -> None:
        with czi.create_czi(str(path)) as file:
            file.write(np.ascontiguousarray(image[..., ::-1]), plane={"C": 0})  # blue, green, red

    return _each(folder, ".czi", write)


NAMES = {"classes": ("cat", "dog")}
PATHS: dict[str, Any] = {"ids": IDS, "group": r"(slide\d)"}
FORMATS: dict[str, Format] = {
    "folder": Format(write_folder, "set/" + IDS[0], **PATHS),
    "zip": Format(write_zip, "set.zip", **PATHS),
    "tar": Format(write_tar, "set.tar", **PATHS),
    "tar.gz": Format(lambda folder: write_tar(folder, "set.tar.gz"), "set.tar.gz", **PATHS),
    "webdataset": Format(write_shards, "shards/train-000001.tar", ("webdataset",), SHARD_IDS, group="slide"),
    "webdataset json": Format(
        lambda folder: write_shards(folder, "json"), "shards/val-000000.tar", ("webdataset",), SHARD_IDS, group="slide"
    ),
    "webdataset txt": Format(
        lambda folder: write_shards(folder, "txt"), "shards/val-000000.tar", ("webdataset",), SHARD_IDS, group="slide"
    ),
    "hub": Format(
        write_hub,
        "hub/data/train-00000-of-00001.parquet",
        ids=tuple(f"{n:02d}.png" for n in range(12)),
        group="slide",
    ),
    "parquet of images": Format(write_pandas_parquet, "cells.parquet"),
    "hdf5": Format(write_hdf5, "cells.h5", ("h5py",)),
    "zarr": Format(write_zarr, "cells.zarr/train_images/zarr.json", ("zarr",), options=NAMES, grouped=False),
    "zarr 2": Format(
        lambda folder: write_zarr(folder, 2), "cells.zarr/train_images/.zarray", ("zarr",), options=NAMES, grouped=False
    ),
    "npy": Format(write_npy, "set/" + with_suffix(".npy")[0], (), with_suffix(".npy"), group=r"(slide\d)", sums=False),
    "npy in a zip": Format(write_npy_zip, "set.zip", (), with_suffix(".npy"), group=r"(slide\d)"),
    "npy in a table": Format(
        write_npy_table,
        "set/" + with_suffix(".npy")[0],
        (),
        tuple(f"set/{name}" for name in with_suffix(".npy")),
        sums=False,
    ),
    "tiff": Format(write_tiff, "set/" + with_suffix(".tif")[0], ("tifffile",), with_suffix(".tif"), group=r"(slide\d)"),
    "ome-tiff": Format(
        write_ome_tiff,
        "set/" + with_suffix(".ome.tif")[0],
        ("tifffile",),
        with_suffix(".ome.tif"),
        group=r"(slide\d)",
        sums=False,  # of the description
    ),
    "imagej": Format(
        write_imagej,
        "set/" + with_suffix(".tif")[0],
        ("tifffile",),
        with_suffix(".tif"),
        group=r"(slide\d)",
        sums=False,
    ),
    "tiff pages": Format(
        write_pages,
        "set/train/cat/slide0.tif",
        ("tifffile",),
        _page_ids(),
        options={"pages": "images"},
        group=r"(slide\d)",
    ),
    "dicom": Format(
        write_dicom, "set/" + with_suffix(".dcm")[0], ("pydicom",), with_suffix(".dcm"), group=r"(slide\d)", sums=False
    ),
    "czi": Format(
        write_czi,
        "set/" + with_suffix(".czi")[0],
        ("bioio_czi", "pylibCZIrw"),
        with_suffix(".czi"),
        group=r"(slide\d)",
        sums=False,
    ),
    "tgz": Format(lambda folder: write_tar(folder, "set.tgz"), "set.tgz", **PATHS),
}


def pack_folder(folder: Path, kind: str) -> Path:
    """A folder packed by the standard library, with entries for its folders."""
    return Path(shutil.make_archive(str(folder.with_name(f"{folder.name}-packed")), kind, folder))
