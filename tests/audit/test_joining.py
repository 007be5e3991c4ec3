"""Splits as one image set: of arrays in memory, of views of one array, and of arrays mapped from disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from petriscope.audit.joining import join
from petriscope.data.imageset import ImageSet


def parts(form: str, folder: Path, grouped: bool = False) -> dict[str, ImageSet]:
    pixels = np.random.default_rng(0).integers(0, 256, (10, 3, 4, 3), dtype=np.uint8)
    out = {}
    for name, rows in {"train": np.array([5, 1, 7, 2]), "val": np.array([0]), "test": np.array([9, 3])}.items():
        own: Any = pixels if form == "views" else pixels[rows]
        if form == "mapped":
            np.save(folder / f"{name}.npy", own)
            own = np.load(folder / f"{name}.npy", mmap_mode="r")
        ids = np.array([f"{name}/{row}" for row in rows])
        groups = np.array([f"g{row % 3}" for row in rows]) if grouped else None
        view = rows if form == "views" else None
        out[name] = ImageSet(own, rows.astype(np.int64) % 2, ("a", "b"), ids, groups, rows=view)
    return out


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("form", ["arrays", "views", "mapped"])
def test_all_images_in_the_order_of_their_splits(form: str, grouped: bool, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("PETRISCOPE_CACHE", str(tmp_path / "cache"))
    sets = parts(form, tmp_path, grouped)
    whole, splits = join(sets, "mark")
    assert splits.tolist() == ["train"] * 4 + ["val"] + ["test"] * 2
    assert whole.ids.tolist() == [name for part in sets.values() for name in part.ids]
    np.testing.assert_array_equal(whole.images, np.concatenate([part.images for part in sets.values()]))
    np.testing.assert_array_equal(whole.targets, np.concatenate([part.targets for part in sets.values()]))
    assert whole.mapped == (form == "mapped")
    assert (whole.groups is not None) == grouped
    if form == "views":
        assert whole.pixels is sets["train"].pixels


def test_one_split_is_taken_as_it_is(tmp_path: Path) -> None:
    only = {"all": parts("arrays", tmp_path)["train"]}
    whole, splits = join(only, "mark")
    assert whole is only["all"] and splits.tolist() == ["all"] * 4
