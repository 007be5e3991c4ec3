"""Folds: what is held out, what stays together, and what is said of classes that cannot be judged."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from petriscope.core.errors import DataError, RequestError
from petriscope.core.recipe import FoldsSection, data_section
from petriscope.data import load_dataset
from petriscope.data.folds import NEVER, draw_folds, folds_of_set, folds_of_units, units_of
from petriscope.data.imageset import ImageSet
from petriscope.data.load import recall_dataset


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(2, 6), st.integers(0, 9))
def test_folds_part_every_class_evenly(labels, folds, seed):
    targets = np.array(labels)
    fold = draw_folds(targets, folds, seed)
    for members in (fold, *(fold[targets == label] for label in set(labels))):
        sizes = np.bincount(members, minlength=folds)
        assert len(sizes) == folds and sizes.max() - sizes.min() <= 1


def test_groups_are_left_out_together():
    groups = np.repeat(np.arange(12), 5).astype(str)
    fold = draw_folds(np.arange(60) % 3, 4, 0, groups)
    assert all(len(set(fold[groups == group])) == 1 for group in set(groups))
    assert set(fold) == {0, 1, 2, 3}
    with pytest.raises(DataError, match="12 groups cannot be spread over 13 folds"):
        draw_folds(np.arange(60) % 3, 13, 0, groups)


def test_a_class_of_one_fold_takes_its_whole_group_along():
    """If only its images were never held out, networks would learn from a part of the group and be judged by the rest."""
    groups = np.repeat(np.arange(10), 12)
    targets = np.where((groups == 0) & (np.arange(120) < 4), 2, np.arange(120) % 2)
    fold = folds_of_units(targets, groups, 0, 5)
    assert (fold[groups == 0] == NEVER).all() and (fold[groups != 0] != NEVER).all()


def image_set(targets, groups=None, equal=()):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (len(targets), 4, 4, 3), dtype=np.uint8)
    for first, second in equal:
        pixels[second] = pixels[first]
    names = tuple("abcdef"[: max(targets) + 1])
    ids = np.arange(len(targets)).astype(str)
    return ImageSet(pixels, np.array(targets, np.int64), names, ids, None if groups is None else np.array(groups))


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 11)), min_size=12, max_size=60),
    st.integers(2, 5),
    st.integers(1, 3),
)
def test_no_group_is_split_and_every_network_knows_what_it_is_judged_by(pairs, count, repeat):
    pairs += [(0, group) for group in range(12)]
    targets, groups = (np.array(each) for each in zip(*pairs, strict=True))
    images = image_set(targets.tolist(), groups.astype(str))
    fold, notes = folds_of_set(images, FoldsSection(count=count, repeat=repeat), 7)
    for group in np.unique(groups):
        assert len(np.unique(fold[groups == group])) == 1
    for label in np.unique(targets):
        for part in range(count):
            held = targets[fold == part]
            assert label not in held or label in targets[fold != part]
    lone = [label for label in np.unique(targets) if len(np.unique(groups[targets == label])) == 1]
    for label in lone:
        assert (fold[targets == label] == NEVER).all()
        assert any("never held out" in note and images.classes[label] in note for note in notes)


def test_equal_images_are_held_out_together_and_small_classes_are_named():
    images = image_set([0] * 20 + [1] * 10 + [2] * 3 + [3], equal=[(0, 1), (0, 5), (20, 25)])
    fold, notes = folds_of_set(images, FoldsSection(count=5), 0)
    assert fold[0] == fold[1] == fold[5] and fold[20] == fold[25] and fold[33] == NEVER
    assert notes == [
        "all images of d are in one image or one fold: they are never held out, so nothing says how well the model does on such "
        "images",
        "c: fewer images than folds, so some folds hold out none, and metrics say little of it",
    ]
    with pytest.raises(DataError, match="31 images cannot be spread over 40 folds"):
        folds_of_set(images, FoldsSection(count=40), 0)


def test_groups_that_share_an_image_are_held_out_together():
    groups = np.repeat([f"g{i:02}" for i in range(12)], 4)
    images = image_set([0, 1] * 24, groups, equal=[(0, 9), (10, 21), (40, 41)])  # g00 with g02, and that with g05
    assert {*units_of(images)[[0, 8, 20]]} == {"g00"} and (units_of(images)[40:44] == "g10").all()
    fold, notes = folds_of_set(images, FoldsSection(count=5), 0)
    assert len({*fold[np.isin(groups, ["g00", "g02", "g05"])]}) == 1
    assert notes == ["3 groups share equal images with others, such as g00 and g02, and are held out together"]
    by_digest = {digest: fold[row] for row, digest in enumerate(images.digests())}
    assert all(fold[row] == by_digest[digest] for row, digest in enumerate(images.digests()))


def splits_of(npz, hold_out, repeat=1):
    setting = f"data.folds={{count: 4, hold_out: {hold_out}, repeat: {repeat}}}"
    dataset = load_dataset(data_section(str(npz), [setting]))
    return dataset, {name: set(part.digests()) for name, part in dataset.splits.items()}


def test_each_fold_is_test_once_and_the_sources_test_is_kept_for_the_model(tiny_npz):
    whole, every = splits_of(tiny_npz, hold_out="null")
    assert {name: len(part) for name, part in whole.splits.items()} == {"train": 160, "test": 40}
    held = []
    for number in range(1, 5):
        dataset, parts = splits_of(tiny_npz, hold_out=number)
        assert not parts["train"] & parts["test"] and not parts["val"] & (parts["train"] | parts["test"])
        assert parts["train"] | parts["val"] | parts["test"] == every["train"]
        assert len(dataset.val) == 18 and (dataset.test.counts == 20).all()
        held.append(parts["test"])
    assert set.union(*held) == every["train"] and sum(map(len, held)) == 160
    again, _ = splits_of(tiny_npz, hold_out=4, repeat=2)
    assert set(again.test.digests()) != held[3]
    section = data_section(str(tiny_npz), ["data.folds={count: 4, hold_out: 4}"])
    recalled, change = recall_dataset(section, dataset.membership, dataset.classes)
    assert recalled.fingerprint == dataset.fingerprint and not str(change)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.folds={count: 3, hold_out: 4}"], "there is no fold 4 of 3"),
        (["data.folds={count: 1}"], "count"),
        (["data.folds={count: 3}", "data.splits=somewhere"], "data.folds and data.splits both say"),
    ],
)
def test_wrong_folds_are_refused(tiny_npz, settings, message):
    with pytest.raises(RequestError, match=message):
        data_section(str(tiny_npz), settings)
