"""Tables as spreadsheets and other tools write them; labels that are names, and those that are numbers."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_sources import load, save_image, some_images, write_table

from petriscope.core.csv_tables import csv_text
from petriscope.core.errors import DataError, RequestError
from petriscope.core.recipe import DataSection
from petriscope.data import Dataset, load_dataset
from petriscope.data.sources.labels import sort_names

NAMES = ("cat", "dog", "fox")


@pytest.fixture(scope="module")
def shots(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    for number, pixels in enumerate(some_images(12)):
        save_image(folder / f"shots/é{number}.png", pixels)
    return folder


def rows(labels: tuple[object, ...] = NAMES) -> list[tuple[str, object]]:
    return [(f"shots/é{number}.png", labels[number % len(labels)]) for number in range(12)]


def counts(data: Dataset) -> dict[str, int]:
    return dict(zip(data.classes, sum(part.counts for part in data.splits.values()).tolist(), strict=True))


@pytest.mark.parametrize(("every", "said"), [(1, True), (2, False)])
def test_classes_of_one_image_each_are_said(every: int, said: bool, tmp_path: Path) -> None:
    for number, pixels in enumerate(some_images(40)):
        save_image(tmp_path / f"{number}.png", pixels)
    lines = [f"{number}.png,cell {number // every}" for number in range(40)]
    (tmp_path / "a.csv").write_text("path,label\n" + "\n".join(lines))
    warnings = load(tmp_path / "a.csv", val_fraction=0, test_fraction=0).warnings
    assert any("40 of 40 classes have a single image" in text for text in warnings) == said


def table(shots: Path, text: str, encoding: str = "utf-8") -> Path:
    (shots / "t.csv").write_bytes(text.encode(encoding))
    return shots / "t.csv"


@settings(max_examples=40, deadline=None)
@given(
    separator=st.sampled_from(",;\t|"),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    header=st.sampled_from(
        ["path label", "image class", "Filename Label", "file_path category", "extra Image.Path target"]
    ),
)
def test_any_dialect(separator: str, encoding: str, end: str, header: str, shots: Path) -> None:
    columns = header.split()
    extra = ["a, b;c\td|e"] if len(columns) > 2 else []
    lines = [columns, *([*(f'"{cell}"' for cell in extra), path, f" {label} "] for path, label in rows())]
    data = load(table(shots, end.join(map(separator.join, lines)) + end + end, encoding))
    assert counts(data) == dict.fromkeys(NAMES, 4)
    told = [name for name in columns if name not in ("extra", "path", "label")]
    assert all(any(f"the column {name} was read as" in text for text in data.warnings) for name in told)


@pytest.mark.parametrize(
    "spell",
    [
        lambda name: name.replace("/", "\\"),
        lambda name: f"./{name}",
        lambda name: name.replace("/", "//"),
        lambda name: unicodedata.normalize("NFD", name),
    ],
)
def test_any_spelling_of_a_path(spell, shots: Path) -> None:
    data = load(table(shots, "path,label\n" + "".join(f"{spell(path)},{label}\n" for path, label in rows())))
    assert counts(data) == dict.fromkeys(NAMES, 4)
    assert {name for part in data.splits.values() for name in part.ids} == {path for path, _ in rows()}


@pytest.mark.parametrize(
    "labels", [("007", "008", "010"), (10, 20, 50), (1, 2, 3), (0, 90, 180), ("x", "2", "10"), (99999, 0, 5)]
)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_numbers_that_do_not_count_from_0_are_names(labels: tuple[object, ...], kind: str, shots: Path) -> None:
    data = load(write_table(shots / f"t.{kind}", [{"path": path, "label": label} for path, label in rows(labels)]))
    assert counts(data) == dict.fromkeys(sort_names({*map(str, labels)}), 4)
    assert all(part.named for part in data.splits.values())


@pytest.mark.parametrize(
    "labels", [(0, 1, 2), ("0", "1", "2"), ("0.0", "1.0", "2.0"), (0.0, 1.0, 2.0), ("0", "1.00", "2.")]
)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_numbers_that_count_from_0_are_class_numbers(labels: tuple[object, ...], kind: str, shots: Path) -> None:
    path = write_table(shots / f"t.{kind}", [{"path": path, "label": label} for path, label in rows(labels)])
    data = load(path)
    assert counts(data) == dict.fromkeys("012", 4) and not any(part.named for part in data.splits.values())
    assert load(path, classes=("c", "b", "a")).classes == ("c", "b", "a")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_truth_values_are_names(kind: str, shots: Path) -> None:
    path = write_table(shots / f"t.{kind}", [{"path": path, "label": label} for path, label in rows((True, False))])
    assert counts(load(path)) == {"False": 6, "True": 6}


@pytest.mark.parametrize(("one", "other"), [("cat", "cat "), ("né", "ne\u0301"), ("cat", "\ufeffcat")])
def test_names_that_differ_in_nothing_that_shows_are_one_class(one: str, other: str, shots: Path) -> None:
    lines = "".join(f"{path},{label}\n" for path, label in rows((one, "dog", other)))
    assert counts(load(table(shots, f"path,label\n{lines}"))) == {one: 8, "dog": 4}


@pytest.mark.parametrize(
    ("one", "other"), [("cat", "CAT"), ("red cell", "red_cell"), ("7", "007"), ("7", "+7"), ("A", "a")]
)
def test_names_that_look_alike_are_refused_unless_listed(one: str, other: str, shots: Path) -> None:
    path = table(shots, "path,label\n" + "".join(f"{path},{label}\n" for path, label in rows((one, other))))
    with pytest.raises(DataError) as said:
        load(path)
    assert repr(one) in str(said.value) and repr(other) in str(said.value)
    assert load(path, classes=(one, other)).classes == (one, other)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{rows}", "has no header: its first row is .*shots/é0.png"),
        (
            "path,label\n{rows}./shots/é0.png,dog\n",
            "é0.png occurs twice, with the labels 'cat' and 'dog', in rows 0 and 12",
        ),
        ("path,label\n{rows}{rows}", "é0.png occurs twice, in rows 0 and 12"),
        ("file,image,label\nx,y,z\n", "columns file and image, each of which may be the path; rename one"),
        ("path,label,label\nx,y,z\n", "has the column label twice"),
        ("path,label\nx,y,z\n", "row 0 .* has 3 cells, and the header 2, parted by commas"),
        ("path,label\nx,\n", "label of row 0 .* is empty"),
        ("path,label\nx\n", "label of row 0 .* is empty"),
        ("path,label\na\0.png,x\n", "row 0 .* has a NUL character"),
        ('path,label\n"a.png,x\n', "cannot be read as a table"),
        ("", "no column|no rows"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(text: str, says: str, shots: Path) -> None:
    listed = "".join(f"{path},{label}\n" for path, label in rows())
    with pytest.raises(DataError, match=says):
        load(table(shots, text.replace("{rows}", listed)))


def test_other_encodings_are_said(shots: Path) -> None:
    with pytest.raises(RequestError, match=r"not text in UTF-8.* save it in UTF-8"):
        load(table(shots, "path,label\nx.png,né\n", "cp1252"))


def test_a_column_of_splits_is_read(shots: Path) -> None:
    text = "".join(
        f"{path},{label},{['Train', 'Valid', 'Testing'][number % 2]}\n" for number, (path, label) in enumerate(rows())
    )
    data = load(table(shots, f"path,label,Subset\n{text}"))
    assert {name: len(part) for name, part in data.splits.items()} == {"train": 6, "val": 6}
    assert any("the column Subset was read as split" in said for said in data.warnings)


@pytest.mark.parametrize(
    ("name", "cells", "says"),
    [
        ("set", ["train", "test", "unused"], "row 2 .counted from 0. has 'unused'"),
        ("set", ["train", ""], "row 1 .counted from 0. is empty"),
        ("is_test", ["False", "True"], "it has the values False, True"),
        ("isTrain", [1, 0], "it has the values 0, 1"),
        ("fold", [0, 1, 2], "it has the values 0, 1, 2"),
        ("set,subset", ["train,train", "test,val"], "another column may too"),
        ("test_result", ["high", "low"], None),
        ("object", ["train", "bus"], None),
    ],
)
def test_a_column_that_may_say_the_splits_is_not_passed_over(
    name: str, cells: list[object], says: str | None, shots: Path
) -> None:
    text = "".join(f"{path},{label},{cells[number % len(cells)]}\n" for number, (path, label) in enumerate(rows()))
    data = load(table(shots, f"path,label,{name}\n{text}"))
    said = [text for text in data.warnings if "may say the splits" in text]
    assert (says is None and not said) or (says is not None and re.search(says, said[0]))


@pytest.mark.parametrize("word", ["nan", "NA", "null"])
def test_what_programs_write_for_no_label_is_no_class_in_silence(word: str, shots: Path) -> None:
    path = table(shots, "path,label\n" + "".join(f"{path},{label}\n" for path, label in rows(("0", "1", word))))
    assert any(f"4 labels are {word}, first in row 2" in text for text in load(path).warnings)
    assert not any("labels are" in text for text in load(path, classes=("0", "1", word)).warnings)


def test_a_line_that_tells_excel_the_separator_is_no_header(shots: Path) -> None:
    data = load(table(shots, "sep=;\r\npath;label\r\n" + "".join(f"{path};{label}\r\n" for path, label in rows())))
    assert counts(data) == dict.fromkeys(NAMES, 4)


@settings(max_examples=100, deadline=None)
@given(st.sets(st.integers(0, 10**30).map(str) | st.integers(0, 99).map("{:04}".format) | st.just("9" * 5000)))
def test_numbers_are_sorted_by_value(names: set[str]) -> None:
    values = [name.lstrip("0").rjust(5000, "0") for name in sort_names(names)]
    assert values == sorted(values)


def test_strange_cells_of_parquet_are_refused(tmp_path: Path) -> None:
    frames = {
        "several values": pd.DataFrame({"path": [["a"], ["b", "c"]], "label": ["x", "y"]}),
        "empty": pd.DataFrame({"path": ["a", "b"], "label": [None, "x"]}),
        "NaN|nan|empty": pd.DataFrame({"path": ["a", "b"], "label": [0.0, np.nan]}),
        "not a whole number": pd.DataFrame({"path": ["a", "b"], "label": [0.5, 1.0]}),
        "NUL": pd.DataFrame({"path": ["a\0.png", "b"], "label": ["x", "y"]}),
    }
    for says, frame in frames.items():
        frame.to_parquet(tmp_path / "t.parquet")
        with pytest.raises(DataError, match=says):
            load(tmp_path / "t.parquet")


def test_cells_that_were_kept_from_spreadsheets_are_read_as_they_were(shots: Path) -> None:
    frame = pd.DataFrame(rows(("=1+1", "-x", "'@")), columns=["path", "label"])
    assert set(load(table(shots, csv_text(frame))).classes) == {"=1+1", "-x", "'@"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_tabs_in_a_text_file(shots: Path, encoding: str) -> None:
    (shots / "list.txt").write_text("path\tlabel\n" + lines().replace(",", "\t"), encoding)  # as Excel saves it
    assert counts(load(shots / "list.txt")) == dict.fromkeys(NAMES, 4)


def json_lines(shots: Path, *lines: str) -> Path:
    (shots / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return shots / "metadata.jsonl"


@pytest.mark.parametrize("labels", [("cat", "dog"), (0, 1), (True, False), ("NA", "null"), (1.0, 0.0)])
def test_json_lines(shots: Path, labels: tuple[object, ...]) -> None:
    lines = [json.dumps({"file_name": name, "label": label}) for name, label in rows(labels)]
    lines[3] = lines[3][:-1] + ', "day": "monday"}'
    data = load(json_lines(shots, *lines[:5], "  ", *lines[5:]))
    assert counts(data) == dict.fromkeys(sort_names({str(int(n) if type(n) is float else n) for n in labels}), 6)
    assert any("the column file_name was read as path" in text for text in data.warnings)
    days = {id_: day for part in data.splits.values() for id_, day in zip(part.ids, part.columns["day"], strict=True)}
    assert {id_: day for id_, day in days.items() if day} == {"shots/é3.png": "monday"}


def test_several_labels_in_json_lines(shots: Path) -> None:
    flags = [json.dumps({"path": name, "cat": n % 2, "dog": int(n < 6)}) for n, (name, _) in enumerate(rows())]
    several = [
        json.dumps({"path": name, "labels": ["cat"] * (n % 2) + ["dog"] * (n < 6)})
        for n, (name, _) in enumerate(rows())
    ]
    for lines in (flags, several):
        data = load(json_lines(shots, *lines), task="multilabel")
        assert counts(data) == {"cat": 6, "dog": 6}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"path": "a.png", "label"', "row 12 .* is not JSON"),
        ('["a.png", "cat"]', "row 12 .* is not a JSON object"),
        ('{"path": "a.png", "label": "cat", "label": "dog"}', "row 12 .* it has 'label' twice"),
        ("[" * 100_000, "row 12 .* is not JSON"),
        ('{"path": "a.png"}', "the cell label of row 12 .* is empty"),
        ('{"path": "a.png", "label": null}', "the cell label of row 12 .* is empty"),
        ('{"path": "a.png", "label": ["cat"]}', "label of row 12 .* is a list, and that of row 0 is not"),
        ('{"path": "a.png", "label": {"id": 3}}', "label of row 12 .* has several values"),
        ('{"path": ["a.png"], "label": "cat"}', "path of row 12 .* has several values"),
        ('{"path": 5, "label": "cat"}', "5 .no such file"),
    ],
)
def test_wrong_json_lines(shots: Path, line: str, says: str) -> None:
    lines = [json.dumps({"path": name, "label": label}) for name, label in rows()]
    with pytest.raises(DataError, match=says):
        load(json_lines(shots, *lines, line))


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_other_columns_are_chosen(shots: Path, kind: str) -> None:
    listed = [{"path": "x.png", "label": "old", "where": name, "dx": label} for name, label in rows()]
    source = write_table(shots / f"chosen.{kind}", listed)
    data = load(source, image="where", label="dx")
    assert counts(data) == dict.fromkeys(NAMES, 4)
    for name, chosen in (("path", "where"), ("label", "dx")):
        assert any(f"the column {name} was left out, because {chosen} was chosen" in text for text in data.warnings)
    for key in ("image", "label"):
        with pytest.raises(RequestError, match=f"data.{key}: .* has no column 'dc'; did you mean dx"):
            load(source, **{key: "dc"})


def test_a_table_elsewhere_may_call_its_columns_otherwise(shots: Path) -> None:
    section = DataSection(source="there.csv", label="dx", image="where")
    source = write_table(shots / "elsewhere.csv", [{"path": name, "label": label} for name, label in rows()])
    data = load_dataset(section.elsewhere(str(source)))
    assert counts(data) == dict.fromkeys(NAMES, 4)
    assert any("has no column dx, which data.label of the model names; usual names" in text for text in data.warnings)
    with pytest.raises(RequestError, match="no column 'where'"):
        load_dataset(section.moved(str(source)))


def test_a_choice_that_has_no_effect_is_said(shots: Path, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for number, pixels in enumerate(some_images(4)):
            save_image(tmp_path / "s" / name / f"{number}.png", pixels)
    for source in (tmp_path / "s", "digits"):
        warnings = load(source, label="dx", image="x").warnings
        assert [text for text in warnings if text.startswith("data.label has no effect")]
        assert [text for text in warnings if text.startswith("data.image has no effect")]
    assert not any(
        "no effect" in text for text in load(table(shots, "where,label\n" + lines()), image="where").warnings
    )


def lines() -> str:
    return "\n".join(f"{name},{label}" for name, label in rows())


@pytest.mark.parametrize("column", ["id", "image_id", "Image ID", "id_code", "isic_id", "filename"])
@pytest.mark.parametrize("within", ["", "shots/"])
def test_names_without_suffix(shots: Path, column: str, within: str) -> None:
    text = "\n".join(f"{within}{Path(name).stem},{label}" for name, label in rows())
    data = load(table(shots, f"{column},label\n{text}"))
    assert counts(data) == dict.fromkeys(NAMES, 4)
    assert {id_ for part in data.splits.values() for id_ in part.ids} == {name for name, _ in rows()}
    assert any(f"the column {column} was read as path" in text for text in data.warnings)


def test_a_name_without_suffix_of_two_files(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/1.png", "a/2.png"):
        save_image(tmp_path / name, some_images(1)[0])
    (tmp_path / "t.csv").write_text("id,label\n1,x\n2,y")
    with pytest.raises(DataError, match=r"1 may be a/1\.png or b/1\.png"):
        load(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("id,image_id,label\n1,1,x\n2,2,y")
    with pytest.raises(DataError, match=r"id and image_id, .* may be the path; .*--set data\.image='id'"):
        load(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("id,image_id,label\n1,a/1.png,x\n2,a/2,y")
    assert len(load(tmp_path / "t.csv", image="image_id", val_fraction=0, test_fraction=0).splits["train"]) == 2
    (tmp_path / "t.csv").write_text("path,label\n3,x\n4,y")
    with pytest.raises(
        DataError, match="no file that it lists exists, neither 3 nor any other; paths are absolute, or rel"
    ):
        load(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("path,label\n3,x\n2,y")
    with pytest.raises(DataError, match=r"3 \(no such file\)"):
        load(tmp_path / "t.csv")


def beside(folder: Path, name: str, *columns: str) -> Path:
    """A table that lists the images in a folder by their stems, with `NAMES` as labels."""
    stems = sorted(path.stem for path in folder.rglob("*.png"))
    listed = "\n".join(f"{stem},{NAMES[number % 3]}" for number, stem in enumerate(stems))
    (folder / name).write_text(",".join(columns) + "\n" + listed)
    return folder / name


@pytest.mark.parametrize("inner", ["", "images/"])
def test_a_folder_of_images_with_a_table(tmp_path: Path, inner: str) -> None:
    for number, pixels in enumerate(some_images(12)):
        save_image(tmp_path / f"s/{inner}é{number}.png", pixels)
    beside(tmp_path / "s", "labels.csv", "image", "label")
    data = load(tmp_path / "s")
    assert counts(data) == dict.fromkeys(NAMES, 4)
    assert any("has no class folders, so labels.csv in it was read" in text for text in data.warnings)
    assert not any("no effect" in text for text in load(tmp_path / "s", label="label").warnings)
    (tmp_path / "s/other.csv").write_text("well,count\n1,2")  # which of the two is told by the name
    assert load(tmp_path / "s").fingerprint == data.fingerprint
    (tmp_path / "s/labels.csv").rename(tmp_path / "s/mine.csv")
    assert load(tmp_path / "s").fingerprint == data.fingerprint  # the other lists no images
    beside(tmp_path / "s", "other.csv", "image", "label")
    with pytest.raises(DataError, match=r"If mine.csv lists or holds the images, name it as the source"):
        load(tmp_path / "s")


def test_a_table_beside_class_folders_is_said(tmp_path: Path) -> None:
    for number, pixels in enumerate(some_images(12)):
        save_image(tmp_path / f"s/part_{number % 2}/é{number}.png", pixels)
    (tmp_path / "s/counts.csv").write_text("well,count\n1,2")
    assert not any("lists images" in text for text in load(tmp_path / "s").warnings)
    (tmp_path / "s/counts.csv").unlink()
    beside(tmp_path / "s", "metadata.csv", "image_id", "dx")
    data = load(tmp_path / "s")
    assert data.classes == ("part_0", "part_1")
    assert any("metadata.csv in " in text and "lists images, and was not read" in text for text in data.warnings)
    data = load(tmp_path / "s", label="dx")
    assert counts(data) == dict.fromkeys(NAMES, 4)
    assert any("metadata.csv in it was read, which lists images, since data.image or" in text for text in data.warnings)
    place = str(tmp_path / "s")
    for label, classes in (("dx", NAMES), ("diagnosis", ("part_0", "part_1"))):  # as the data of a model were read
        assert load_dataset(DataSection(source="elsewhere", label=label).elsewhere(place)).classes == classes


def swapped(shots: Path, kind: str, classes: list[str]) -> Dataset:
    """Four images, of which the first two are of class 0, with 0 and 1 as labels, as folders, a table or arrays."""
    pixels, labels = some_images(4), [0, 0, 1, 1]
    place = shots / f"swapped {kind}"
    if kind == "npz":
        place.mkdir(exist_ok=True)
        np.savez(place / "a.npz", train_images=pixels, train_labels=np.array(labels, np.uint8)[:, None])
        place = place / "a.npz"
    else:
        for number, image in enumerate(pixels):
            save_image(place / (f"{labels[number]}/{number}.png" if kind == "folders" else f"{number}.png"), image)
        if kind == "csv":
            lines = [f"{number}.png,{label}" for number, label in enumerate(labels)]
            (place / "a.csv").write_text("path,label\n" + "\n".join(lines))
            place = place / "a.csv"
    return load(place, classes=classes, val_fraction=0, test_fraction=0)


@pytest.mark.parametrize("kind", ["folders", "csv", "npz"])
def test_numbers_that_data_classes_lists_in_another_order_are_the_labels(kind: str, shots: Path) -> None:
    train = swapped(shots, kind, ["1", "0"]).split("train")
    first = {image.tobytes() for image in some_images(4)[:2]}
    assert train.classes == ("1", "0")
    assert {image.tobytes() for image in train.images[train.targets == 1]} == first


@pytest.mark.parametrize("kind", ["csv", "npz"])
def test_numbers_that_are_called_by_other_numbers_are_refused(kind: str, shots: Path) -> None:
    with pytest.raises(RequestError, match=r"calls label 1 of .* '2', and another label '1'.*such as 'grade 2'"):
        swapped(shots, kind, ["1", "2"])
    assert swapped(shots, kind, ["10", "20"]).classes == ("10", "20")


@pytest.mark.parametrize(
    ("column", "used"), [("group", True), ("Group", True), ("GROUP_ID", True), ("Patient ID", False)]
)
def test_groups_are_found_or_asked_for(column: str, used: bool, shots: Path) -> None:
    lines = [f"shots/é{number}.png,{NAMES[number % 2]},g{number // 2}" for number in range(12)]
    path = table(shots, f"path,label,{column}\n" + "\n".join(lines))
    data = load(path)
    said = " ".join(data.warnings)
    assert (data.split("train").groups is not None) == used
    assert (f"the column {column} was read as group" in said) == (used and column != "group")
    assert (f"--set data.group={column} keeps them in one split" in said) == (not used)
    assert load(path, group=column).split("train").groups is not None


def test_columns_that_tell_no_images_apart_are_no_groups(shots: Path) -> None:
    lines = [f"shots/é{number}.png,{NAMES[number % 2]},{number},one" for number in range(12)]
    data = load(table(shots, "path,label,patient,slide\n" + "\n".join(lines)))
    assert not any("belong together" in text for text in data.warnings)
