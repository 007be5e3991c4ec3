"""Images from elsewhere: classes are found by name, splits by the request, and wrong sources are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_sources import make_folders, make_mask_npz, make_npz

from petriscope.core.errors import DataError, RequestError
from petriscope.core.recipe import DataSection
from petriscope.data.aligned import load_aligned
from petriscope.tasks import find_task

LABELS, MASKS = find_task("classification"), find_task("segmentation")


def section(source: Path, **options: object) -> DataSection:
    return DataSection(source=str(source), **options)  # type: ignore[arg-type]


def test_classes_are_found_by_name(tmp_path: Path) -> None:
    make_folders(tmp_path / "data")
    plain, _ = load_aligned(section(tmp_path / "data"), "val", ("cat", "dog"), LABELS)
    moved, _ = load_aligned(section(tmp_path / "data"), "val", ("emu", "dog", "cat"), LABELS)
    assert moved.classes == ("emu", "dog", "cat")
    assert np.array_equal(moved.targets, 2 - plain.targets)
    with pytest.raises(DataError, match=r"class 'cat'.*did you mean cats"):
        load_aligned(section(tmp_path / "data"), "val", ("cats", "dog"), LABELS)


def test_numbers_stand_for_themselves(tmp_path: Path) -> None:
    source = make_npz(tmp_path)
    images, _ = load_aligned(section(source), "val", ("a", "b", "c"), LABELS)
    assert images.classes == ("a", "b", "c") and set(images.targets) == {0, 1}
    with pytest.raises(DataError, match="class 1; the model knows 1 classes"):
        load_aligned(section(source), "val", ("a",), LABELS)


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    source = make_npz(tmp_path, val_images=None, val_labels=None)
    with pytest.raises(DataError, match="no val split; it has: train, test"):
        load_aligned(section(source), "val", ("0", "1"), LABELS)
    with pytest.raises(DataError, match="has labels; this model was trained on masks"):
        load_aligned(section(source), "test", ("0", "1"), MASKS)
    with pytest.raises(DataError, match="has masks; this model was trained on labels"):
        load_aligned(section(make_mask_npz(tmp_path / "masks")), "test", ("0", "1"), LABELS)
    with pytest.raises(DataError, match="task segmentation must be"):
        load_aligned(section(source, task="segmentation"), "test", ("0", "1"), MASKS)
    with pytest.raises(RequestError, match="no data"):
        load_aligned(DataSection(), "test", ("0", "1"), LABELS)
