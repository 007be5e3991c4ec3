"""One class against the rest: the same images and splits, other masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_sources import load, make_mask_npz, make_npz

from petriscope.core.errors import RequestError
from petriscope.core.masks import IGNORE
from petriscope.core.recipe import DataSection, load_recipe
from petriscope.data.aligned import load_aligned
from petriscope.tasks import find_task

TERRAIN = "synthetic-terrain:80"
SMALL = {"size": (8, 12), "source": TERRAIN}


def test_masks_say_the_class_or_the_rest_and_keep_what_is_unlabeled() -> None:
    whole, only = load(TERRAIN, size=(8, 12)), load(TERRAIN, size=(8, 12), only="sand")
    assert only.classes == ("rest", "sand") and only.fingerprint != whole.fingerprint
    sand = whole.classes.index("sand")
    for split, part in whole.splits.items():
        told = only.split(split)
        assert np.array_equal(told.ids, part.ids) and np.array_equal(told.images, part.images)
        wanted = np.where(part.targets == IGNORE, IGNORE, (part.targets == sand).astype(np.uint8))
        assert np.array_equal(told.targets, wanted)


def test_splits_are_drawn_by_all_classes(tmp_path: Path) -> None:
    source = make_mask_npz(tmp_path)
    with np.load(source) as arrays:
        pile = {"train_images": arrays["train_images"], "train_masks": arrays["train_masks"]}
    np.savez(tmp_path / "pile.npz", **pile)
    whole, only = load(tmp_path / "pile.npz"), load(tmp_path / "pile.npz", only=2)
    assert only.classes == ("rest", "2")
    for split, part in whole.splits.items():
        assert np.array_equal(only.split(split).ids, part.ids)


def test_a_source_with_all_classes_is_judged_by_the_one() -> None:
    section = DataSection(**SMALL, only="big rock")
    images, _ = load_aligned(section, "test", ("rest", "big rock"), find_task("segmentation"))
    classes = ("soil", "bedrock", "sand", "big rock")
    plain, _ = load_aligned(DataSection(**SMALL), "test", classes, find_task("segmentation"))
    assert images.classes == ("rest", "big rock")
    assert np.array_equal(images.targets == 1, plain.targets == 3)
    assert np.array_equal(images.targets == IGNORE, plain.targets == IGNORE)


def test_what_cannot_be_told_apart_is_said(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"no class 'big rok'; did you mean big rock"):
        load(TERRAIN, size=(8, 12), only="big rok")
    with pytest.raises(RequestError, match=r"data\.only is about masks"):
        load(make_npz(tmp_path), only="0")
    with pytest.raises(RequestError, match="has a class called 'rest'"):
        load(make_mask_npz(tmp_path / "masks"), classes=("a", "rest", "c"), only="rest")


def test_the_shipped_specialist_differs_by_its_class() -> None:
    main, specialist = load_recipe("mars/unet"), load_recipe("mars/big-rock")
    assert specialist.data == main.data.model_copy(update={"only": "big rock"})
