"""Folders ``images`` and ``masks`` whose files have the same stems, directly in the source or in a folder per split."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from petriscope.core.errors import DataError
from petriscope.core.progress import progress
from petriscope.core.recipe import DataSection
from petriscope.data.decode import decode_files, image_size, open_image, resize, workers
from petriscope.data.imageset import ImageSet
from petriscope.data.sources.folders import SPLIT_FOLDERS, group_of, is_image
from petriscope.data.sources.listing import rows_by_split, sets_over
from petriscope.data.sources.mask_values import name_values

IMAGES, MASKS, NAMES = "images", "masks", "classes.txt"
LOSSLESS = (".png", ".tif", ".tiff", ".bmp", ".gif")


def is_mask_folder(path: Path) -> bool:
    """Whether a folder, or a split in it, has ``images`` and ``masks``."""
    return any((folder / IMAGES).is_dir() and (folder / MASKS).is_dir() for folder in _split_folders(path).values())


def read(path: Path, section: DataSection, warnings: list[str]) -> dict[str, ImageSet]:
    """Read images and their masks. The ids are the images' paths below ``path``, with forward slashes.

    Args:
        path: a folder with the folders ``images`` and ``masks``, or with the folders train, val and test that have them. A
            mask has the stem and the size of its image and one class number per pixel, 255 if unlabeled, in an indexed or
            gray image in a lossless format. An optional ``classes.txt`` names the classes from 0, one per line.
        section: its ``group`` is a pattern that is searched in the id.

    Raises:
        DataError: an image without a mask, a mask without an image, a mask of another size or without class numbers, or an
            unreadable file.
    """
    files: list[str] = []
    mask_files: list[Path] = []
    splits: list[str] = []
    for split, folder in _split_folders(path).items():
        pairs = _pairs(folder)
        files += [image.relative_to(path).as_posix() for image, _ in pairs]
        mask_files += [mask for _, mask in pairs]
        splits += [split] * len(pairs)
    groups = None if section.group is None else np.array([group_of(section.group, name) for name in files])
    decoded = decode_files([path / name for name in files], files, section, str(path))
    warnings += decoded.warnings
    rows = rows_by_split(decoded, splits)
    height, width = decoded.pixels.shape[1:3]
    masks = {}
    for split, indices in rows.items():
        pairs = [(path / files[index], mask_files[index]) for index in indices]
        masks[split] = _read_masks(pairs, (int(height), int(width)), split)
    targets, classes = name_values(masks, _names(path), section, str(path))
    return sets_over(decoded, rows, targets, classes, files, groups)


def _split_folders(path: Path) -> dict[str, Path]:
    if (path / IMAGES).is_dir() and (path / MASKS).is_dir():
        return {"all": path}
    found: dict[str, Path] = {}
    for name, split in SPLIT_FOLDERS.items():
        if (path / name).is_dir():
            if split in found:
                raise DataError(f"{path} has both {found[split].name} and {name}; keep one of them")
            found[split] = path / name
    return found


def _pairs(folder: Path) -> list[tuple[Path, Path]]:
    """Pairs of images and masks, sorted by name."""
    images, masks = (_by_stem(folder / name) for name in (IMAGES, MASKS))
    for stem in sorted(images.keys() - masks.keys()):
        raise DataError(f"{images[stem]} has no mask; put {stem}.png in {folder / MASKS}, or remove the image")
    for stem in sorted(masks.keys() - images.keys()):
        raise DataError(f"{masks[stem]} has no image in {folder / IMAGES}; add it, or remove the mask")
    if not images:
        raise DataError(f"{folder / IMAGES} has no images")
    return [(images[stem], masks[stem]) for stem in sorted(images)]


def _by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; images belong in {IMAGES} and their masks in {MASKS}")
    out: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.is_file() and is_image(file.name) and not file.name.startswith("."):
            if file.stem in out:
                raise DataError(f"{folder} has both {out[file.stem].name} and {file.name}; their stems must differ")
            out[file.stem] = file
    return out


def _names(path: Path) -> list[str] | None:
    if not (path / NAMES).is_file():
        return None
    names = [line.strip() for line in (path / NAMES).read_text(encoding="utf-8").splitlines() if line.strip()]
    if not names or len(set(names)) < len(names):
        raise DataError(f"{path / NAMES} has no names or a name twice; it must name the classes from 0, one per line")
    return names


def _read_masks(pairs: list[tuple[Path, Path]], size: tuple[int, int], split: str) -> np.ndarray:
    """The masks with their stored values, resized to ``size``, uint8 [N, *size]."""
    out = np.empty((len(pairs), *size), dtype=np.uint8)

    def read_one(index: int) -> None:
        image, file = pairs[index]
        mask, wanted = _read_mask(file), image_size(image)
        if mask.shape != wanted:
            raise DataError(
                f"{file} is {mask.shape[0]} x {mask.shape[1]} and its image {wanted[0]} x {wanted[1]} (height x width); "
                "a mask must have the size of its image"
            )
        out[index] = resize(mask[..., None], size, "nearest")[..., 0]

    with ThreadPoolExecutor(workers()) as pool, progress(f"reading {split} masks", len(pairs)) as bar:
        for _ in pool.map(read_one, range(len(pairs))):
            bar.advance()
    return out


def _read_mask(file: Path) -> np.ndarray:
    """The stored numbers, uint8 [H, W]; a palette is ignored."""
    if file.suffix.lower() not in LOSSLESS:
        raise DataError(f"{file}: {file.suffix} files do not keep exact numbers; save masks as PNG")
    try:
        with open_image(file) as image:
            image.load()
            mode, values = image.mode, np.asarray(image)
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files
        raise DataError(f"{file} cannot be read as a mask: {error}") from None
    if mode not in ("P", "L", "1") and not mode.startswith("I"):
        raise DataError(
            f"{file} is a {mode} image; a mask has one class number per pixel: save it as an indexed or gray image"
        )
    if values.size and not 0 <= int(values.min()) <= int(values.max()) <= 255:
        raise DataError(
            f"{file} has the value {values.max()}; masks have class numbers from 0 to 254, and 255 for unlabeled pixels"
        )
    return values.astype(np.uint8)
