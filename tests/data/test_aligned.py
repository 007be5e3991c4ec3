"""Images from elsewhere: classes are found by name, splits by the request, and wrong sources are refused."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from small_sources import make_folders, make_mask_npz, make_npz, save_image, some_images, write_table

from petriscope.core.errors import DataError, RequestError
from petriscope.core.recipe import DataSection
from petriscope.data import ImageSet
from petriscope.data.aligned import align, lacks_color, load_aligned
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
    images, warnings = load_aligned(section(source), "val", ("a", "b", "c"), LABELS)
    assert images.classes == ("a", "b", "c") and set(images.targets) == {0, 1}
    assert [text.partition(", which ")[2] for text in warnings] == ["count from 0 and were read so: 0 as a, 1 as b"]
    assert load_aligned(section(source), "val", ("0", "1", "2"), LABELS)[1] == []
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


@pytest.mark.parametrize(
    "names", [("1", "2", "3", "4"), ("0", "90", "180", "270"), ("2", "1", "0", "10"), ("a", "²", "10", "é")]
)
@pytest.mark.parametrize("kind", ["folders", "csv"])
def test_names_are_names_whatever_they_are_written_with(names: tuple[str, ...], kind: str, tmp_path: Path) -> None:
    rows = []
    for number, name in enumerate(names[:3]):
        save_image(tmp_path / f"set/{name}/{number}.png", some_images(1, seed=number)[0])
        rows.append({"path": f"set/{name}/{number}.png", "label": unicodedata.normalize("NFD", name)})
    source = tmp_path / "set" if kind == "folders" else write_table(tmp_path / "t.csv", rows)
    if kind == "csv" and {*names[:3]} == {"0", "1", "2"}:
        return  # numbers from 0, which are not names
    images, warnings = load_aligned(section(source), "test", names, LABELS)
    assert [names[label] for label in images.targets] == [name.split("/")[-2] for name in images.ids] and not warnings


def test_numbers_as_places_among_other_numbers_are_said(tmp_path: Path) -> None:
    images, warnings = load_aligned(section(make_npz(tmp_path)), "val", ("1", "2", "10"), LABELS)
    assert set(images.targets) == {0, 1}
    assert any("count from 0 and were read so: 0 as 1, 1 as 2" in text for text in warnings)


@pytest.mark.parametrize("here", [("disk", "square"), ("cross", "square"), ("square", "disk", "cross", "mass")])
def test_labels_that_a_source_does_not_have_are_named_and_count_as_absent(here):
    targets = np.array([[1, 0], [1, 1], [0, 1]], np.uint8)
    targets = np.concatenate([targets, np.zeros((3, len(here) - 2), np.uint8)], 1)
    images = ImageSet(np.zeros((3, 4, 4, 3), np.uint8), targets, here, np.array(["a", "b", "c"]), named=True)
    classes, warnings = ("disk", "square", "cross"), list[str]()
    found = align(images, classes, "there.csv", warnings)
    assert found.classes == classes and found.targets.shape == (3, 3)
    for k, name in enumerate(classes):
        expected = targets[:, here.index(name)] if name in here else np.zeros(3)
        np.testing.assert_array_equal(found.targets[:, k], expected)
    lacking = [name for name in classes if name not in here]
    assert len(warnings) == bool(lacking)
    assert not lacking or warnings[0].startswith(f"there.csv does not have {lacking[0]} among its labels")


def test_a_model_of_several_labels_reads_cells_that_list_labels(tmp_path: Path) -> None:
    for number, pixels in enumerate(some_images(8)):
        save_image(tmp_path / f"{number}.png", pixels)
    several, cells = find_task("multilabel"), ["b|a", "", "b", "c"] * 2
    write_table(tmp_path / "t.csv", [{"path": f"{n}.png", "label": cell} for n, cell in enumerate(cells)])
    images, _ = load_aligned(section(tmp_path / "t.csv"), "test", ("a", "b", "c"), several)
    assert images.targets[:4].tolist() == [[1, 1, 0], [0, 0, 0], [0, 1, 0], [0, 0, 1]]
    lists = [[1, 1, 0], [0, 0, 0], [0, 1, 0], [0, 0, 1]] * 2
    write_table(tmp_path / "t.csv", [{"path": f"{n}.png", "label": str(cell)} for n, cell in enumerate(lists)])
    again, warnings = load_aligned(section(tmp_path / "t.csv"), "test", ("a", "b", "c"), several)
    assert np.array_equal(again.targets, images.targets) and any(
        "read so: 0 as a, 1 as b, 2 as c" in text for text in warnings
    )


@pytest.mark.parametrize("gray", [True, False])
def test_gray_images_for_a_model_of_colors_are_said(gray: bool, tmp_path: Path) -> None:
    source = make_npz(tmp_path, gray=gray)
    images, _ = load_aligned(section(source, channels="rgb"), "val", ("0", "1"), LABELS)
    said = lacks_color(images, (0.7, 0.5, 0.6), str(source))
    assert len(said) == int(gray) and all(
        "are gray, and the model learned from images in color" in text for text in said
    )
    assert lacks_color(images, (0.5, 0.5, 0.501), str(source)) == lacks_color(images, (0.5,), str(source)) == []


def test_groups_of_a_model_may_be_missing_elsewhere(tmp_path: Path) -> None:
    make_folders(tmp_path / "folders")
    rows = [{"path": f"{number}.png", "label": "ab"[number % 2]} for number in range(6)]
    for number, pixels in enumerate(some_images(6)):
        save_image(tmp_path / f"table/{number}.png", pixels)
    table = write_table(tmp_path / "table/a.csv", rows)
    for place, classes in ((table, ("a", "b")), (tmp_path / "folders", ("cat", "dog"))):
        own = section(tmp_path / "elsewhere", group="patient_id")
        images, warnings = load_aligned(own.elsewhere(str(place)), "val", classes, LABELS)
        assert images.groups is None
        assert any("no groups 'patient_id', which data.group of the model names" in text for text in warnings)
        with pytest.raises((DataError, RequestError), match=r"data\.group"):
            load_aligned(section(place, group="patient_id"), "val", classes, LABELS)
