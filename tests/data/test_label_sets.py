"""Any number of labels per image: arrays, columns of 0 and 1, columns that list labels, and a folder with a table."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small_sources import load, save_image, some_images

from petriscope.core.errors import DataError, RequestError
from petriscope.data.sources.synthetic_shapes import CLASSES, draw_shapes

NAMES = ("cyst", "edema", "mass")
COUNT = 20


@pytest.fixture(scope="module")
def flags() -> np.ndarray:
    out = (np.random.default_rng(0).random((COUNT, 3)) < 0.5).astype(np.uint8)
    out[0], out[1] = 0, 1
    return out


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    for number, pixels in enumerate(some_images(COUNT)):
        save_image(folder / f"images/part{number % 2}/{number}.png", pixels)
    return folder


def path_of(number: int) -> str:
    return f"images/part{number % 2}/{number}.png"


def listed(flags: np.ndarray, separator: str) -> list[str]:
    return [separator.join(np.array(NAMES)[row == 1]) for row in flags]


def check(dataset, flags: np.ndarray) -> None:
    assert dataset.task.name == "multilabel" and dataset.classes == NAMES
    found = {}
    for part in dataset.splits.values():
        numbers = [int(Path(name).stem) for name in part.ids]
        found |= dict(zip(numbers, part.targets, strict=True))
    np.testing.assert_array_equal([found[number] for number in range(COUNT)], flags)


@pytest.mark.parametrize("separator", ["|", ";", ", "])
def test_a_column_that_lists_labels(separator: str, scans: Path, flags: np.ndarray) -> None:
    table = pd.DataFrame({"path": map(path_of, range(COUNT)), "label": listed(flags, separator), "day": "monday"})
    table.to_csv(scans / "labels.csv", index=False)
    dataset = load(scans / "labels.csv", task="multilabel")
    check(dataset, flags)
    assert set(dataset.train.columns["day"]) == {"monday"}


def test_a_column_called_labels_and_what_to_do_where_some_are_empty(scans: Path, flags: np.ndarray) -> None:
    table = pd.DataFrame({"file": map(path_of, range(COUNT)), "Labels": listed(flags, "|")})
    table.to_csv(scans / "labels.csv", index=False)
    check(load(scans / "labels.csv", task="multilabel"), flags)
    with pytest.raises(DataError, match=r"row 0 .* is empty; --set data\.task=multilabel reads cells such as a\|b"):
        load(scans / "labels.csv")


def test_lists_in_parquet_are_recognized(scans: Path, flags: np.ndarray) -> None:
    lists = [list(np.array(NAMES)[row == 1]) for row in flags]
    pd.DataFrame({"path": [path_of(n) for n in range(COUNT)], "label": lists}).to_parquet(scans / "t.parquet")
    several = load(scans / "t.parquet")
    check(several, flags)
    single = [[("cat", "dog", "fox")[n % 3]] for n in range(COUNT)]
    pd.DataFrame({"path": [path_of(n) for n in range(COUNT)], "label": single}).to_parquet(scans / "t.parquet")
    dataset = load(scans / "t.parquet")
    assert dataset.task.name == "multilabel"
    said = "each cell label is a list with exactly one label"
    assert any(said in text for text in dataset.warnings) and not any(said in text for text in several.warnings)


def test_columns_of_zero_and_one(scans: Path, flags: np.ndarray) -> None:
    table = pd.DataFrame({"path": map(path_of, range(COUNT)), "age": range(COUNT)})
    for k, name in enumerate(NAMES):
        table[name] = flags[:, k]
    table.to_csv(scans / "t.csv", index=False)
    dataset = load(scans / "t.csv")
    check(dataset, flags)
    assert any("cyst, edema, mass hold 0 and 1" in text for text in dataset.warnings)
    assert set(dataset.train.columns) == {"age"}
    chosen = load(scans / "t.csv", classes=("mass", "cyst"))
    assert chosen.classes == ("mass", "cyst") and "edema" in chosen.train.columns
    with pytest.raises(RequestError, match=r"no column 'mas'.*did you mean mass"):
        load(scans / "t.csv", task="multilabel", classes=("mas", "cyst"))


def test_columns_of_zero_and_one_as_one_class(tmp_path: Path) -> None:
    for number, pixels in enumerate(some_images(12)):
        save_image(tmp_path / path_of(number), pixels)
    names = [("cat", "dog", "fox")[number % 3] for number in range(12)]
    table = pd.get_dummies(pd.Series(names)).astype(int)
    table.insert(0, "path", [path_of(number) for number in range(12)])
    table.to_csv(tmp_path / "a.csv", index=False)
    several = load(tmp_path / "a.csv", val_fraction=0, test_fraction=0)
    assert several.task.name == "multilabel"
    assert any("--set data.task=classification reads one class per image" in text for text in several.warnings)
    data = load(tmp_path / "a.csv", task="classification", val_fraction=0, test_fraction=0)
    train = data.split("train")
    assert [data.classes[k] for k in train.targets] == [names[list(table["path"]).index(path)] for path in train.ids]
    assert data.classes == ("cat", "dog", "fox") and not train.columns
    table.loc[4, "cat"] = 1
    table.to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(DataError, match=r"1 of 12 rows do not have exactly one class .* row 4 .* has cat, dog"):
        load(tmp_path / "a.csv", task="classification")


def test_a_folder_with_a_table_of_file_names(scans: Path, flags: np.ndarray) -> None:
    """As hospitals publish them: images in parts, and one table with the names of the files."""
    for table in scans.glob("*.[cp]*"):
        table.unlink()
    with pytest.raises(RequestError, match="has no table"):
        load(scans, task="multilabel")
    labels = [each or "No Finding" for each in listed(flags, "|")]
    pd.DataFrame({"Image": [f"{n}.png" for n in range(COUNT)], "Category": labels}).to_csv(scans / "a.csv", index=False)
    dataset = load(scans, task="multilabel")
    check(dataset, flags)
    assert any(f"{COUNT} images were found by their names" in text for text in dataset.warnings)
    nothing = int((flags.sum(1) == 0).sum())
    assert any(f"{nothing} images whose label says that nothing was found" in text for text in dataset.warnings)
    (scans / "b.csv").write_text("path,label\n")
    with pytest.raises(RequestError, match=r"2 tables, such as a.csv"):
        load(scans, task="multilabel")
    (scans / "b.csv").unlink()
    save_image(scans / "other/3.png", some_images(1)[0])
    with pytest.raises(DataError, match=r"3.png may be images/part1/3.png or other/3.png"):
        load(scans, task="multilabel")
    (scans / "other/3.png").unlink()
    (scans / "other").rmdir()
    (scans / "a.csv").unlink()


def test_labels_with_bars_are_one_class_unless_asked_for_and_that_is_said(scans: Path, flags: np.ndarray) -> None:
    labels = ["cyst|edema" if n % 2 else "mass" for n in range(COUNT)]
    pd.DataFrame({"path": map(path_of, range(COUNT)), "label": labels}).to_csv(scans / "t.csv", index=False)
    dataset = load(scans / "t.csv")
    assert dataset.classes == ("cyst|edema", "mass")
    assert any("data.task=multilabel" in text for text in dataset.warnings)


@pytest.mark.parametrize("spell", [repr, json.dumps, lambda names: str(np.array(names))])
def test_lists_that_were_written_as_text(spell: Callable[[list[str]], str], scans: Path, flags: np.ndarray) -> None:
    names = [list(np.array(NAMES)[row == 1]) for row in flags]
    cells = [spell([str(name) for name in each]) for each in names]
    pd.DataFrame({"path": map(path_of, range(COUNT)), "label": cells}).to_csv(scans / "t.csv", index=False)
    check(load(scans / "t.csv", task="multilabel"), flags)
    assert any("labels are lists" in text for text in load(scans / "t.csv").warnings)


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_lists_of_zero_and_one_are_no_names_of_labels(name: str, scans: Path, flags: np.ndarray) -> None:
    table = pd.DataFrame({"path": map(path_of, range(COUNT)), "label": flags.tolist()})
    table.to_csv(scans / name, index=False) if name == "t.csv" else table.to_parquet(scans / name)
    check(load(scans / name, task="multilabel", classes=NAMES), flags)
    (scans / name).unlink()


@pytest.mark.parametrize(
    ("labels", "task", "says"),
    [
        (
            ["cyst;edema", "cyst", "edema"],
            "auto",
            r"labels look like several others in one, such as cyst;edema.*multilabel",
        ),
        (["cyst/edema", "cyst", "edema"], "multilabel", "1 label looks like several others in one, such as cyst/edema"),
        (["cyst;edema|mass", "cyst|edema", "mass"], "multilabel", "1 label looks like several .* such as cyst;edema"),
        (["cyst", "red/edema", "edema"], "multilabel", None),
    ],
)
def test_labels_that_list_others_in_another_way(labels: list[str], task: str, says: str | None, scans: Path) -> None:
    cells = [labels[number % len(labels)] for number in range(COUNT)]
    pd.DataFrame({"path": map(path_of, range(COUNT)), "label": cells}).to_csv(scans / "t.csv", index=False)
    said = [text for text in load(scans / "t.csv", task=task).warnings if "several others" in text]
    assert (says is None and not said) or (says is not None and re.search(says, said[0]))


def test_names_of_labels_that_look_alike_are_refused_unless_listed(scans: Path) -> None:
    cells = [["cyst|Mass", "mass"][number % 2] for number in range(COUNT)]
    pd.DataFrame({"path": map(path_of, range(COUNT)), "label": cells}).to_csv(scans / "t.csv", index=False)
    with pytest.raises(DataError, match="'Mass' and 'mass', which look alike"):
        load(scans / "t.csv", task="multilabel")
    assert len(load(scans / "t.csv", task="multilabel", classes=("Mass", "mass", "cyst")).classes) == 3
    flags = {
        name: [number % 3 == place for number in range(COUNT)] for place, name in enumerate(("cyst", "Mass", "mass"))
    }
    pd.DataFrame({"path": map(path_of, range(COUNT)), **flags}).to_csv(scans / "t.csv", index=False)
    with pytest.raises(DataError, match="'Mass' and 'mass', which look alike"):
        load(scans / "t.csv")


def test_columns_that_are_nearly_labels_are_said(scans: Path, flags: np.ndarray) -> None:
    table = pd.DataFrame(flags, columns=NAMES).assign(path=[path_of(number) for number in range(COUNT)])
    odd = table.assign(unsure=[1, -1, *[0] * (COUNT - 2)], never=0, age=range(COUNT))
    odd.to_csv(scans / "t.csv", index=False)
    dataset = load(scans / "t.csv")
    check(dataset, flags)
    said = next(text for text in dataset.warnings if "may be labels, not read so" in text)
    assert "2 more columns" in said and "unsure (row 1, counted from 0, has -1), never (all rows have 0)" in said
    table["mass"] = table["mass"].astype(object).where(table.index != 4, "")
    table[["path", "cyst", "mass"]].to_csv(scans / "t.csv", index=False)
    with pytest.raises(DataError, match=r"no column 'label', .* mass \(row 4, counted from 0, is empty\)"):
        load(scans / "t.csv")
    table.assign(mass=flags[:, 0])[["path", "cyst", "edema", "mass"]].rename(columns={"mass": "cyst "}).to_csv(
        scans / "t.csv", index=False
    )
    with pytest.raises(DataError, match="has the column cyst twice"):
        load(scans / "t.csv")


@pytest.mark.parametrize(
    ("label", "says"),
    [("cyst||mass", "row 3 .*has an empty label"), ("cyst|tumor", "lacks the class 'tumor'")],
)
def test_wrong_cells(label: str, says: str, scans: Path, flags: np.ndarray) -> None:
    labels = listed(flags, "|")
    labels[3] = label
    pd.DataFrame({"path": map(path_of, range(COUNT)), "label": labels}).to_csv(scans / "t.csv", index=False)
    with pytest.raises((DataError, RequestError), match=says):
        load(scans / "t.csv", task="multilabel", classes=NAMES)


def test_arrays_in_the_layout_of_chestmnist(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    arrays = {}
    for split, count in (("train", 40), ("val", 10), ("test", 10)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, 8, 8), dtype=np.uint8)
        arrays[f"{split}_labels"] = (rng.random((count, 14)) < 0.3).astype(np.uint8)
        arrays[f"{split}_labels"][:2] = [[1], [0]]
    np.savez(tmp_path / "chestmnist.npz", **arrays)
    dataset = load(tmp_path / "chestmnist.npz")
    assert dataset.task.name == "multilabel" and dataset.classes[0] == "atelectasis" and len(dataset.classes) == 14
    np.testing.assert_array_equal(dataset.test.targets, arrays["test_labels"])
    np.savez(tmp_path / "mine.npz", **arrays)
    assert load(tmp_path / "mine.npz").classes == tuple(map(str, range(14)))
    with pytest.raises(RequestError, match=r"2 classes; .* 14 labels"):
        load(tmp_path / "mine.npz", classes=("a", "b"))
    arrays["val_labels"][3, 5] = 2
    np.savez(tmp_path / "mine.npz", **arrays)
    with pytest.raises(DataError, match=r"val_labels of .*: image 3 has the label 2"):
        load(tmp_path / "mine.npz", task="multilabel")
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "mine.h5", "w") as file:
        file["images"], file["labels"] = arrays["train_images"], arrays["train_labels"]
    assert sum(map(len, load(tmp_path / "mine.h5").splits.values())) == 40


def test_drawn_shapes_do_not_depend_on_their_number() -> None:
    few, many = draw_shapes(30), draw_shapes(300)
    np.testing.assert_array_equal(few[0], many[0][:30])
    np.testing.assert_array_equal(few[1], many[1][:30])
    assert 0.1 < many[1][:, CLASSES.index("cross")].mean() < 0.2 and (many[1].sum(1) == 0).any()
    dataset = load("synthetic-shapes:200", size=(20, 24), channels="gray")
    assert dataset.shape == (20, 24, 1) and dataset.task.name == "multilabel"
