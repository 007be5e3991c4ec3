"""An evaluation by the values of a column."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from petriscope import api
from petriscope.core.errors import RequestError
from petriscope.data.imageset import ImageSet
from petriscope.experiments.breakdown import break_down, check_column
from petriscope.inference.predictor import load_model
from petriscope.metrics.segmentation import Tally
from petriscope.tasks import find_task

CLASSIFICATION, SEGMENTATION = find_task("classification"), find_task("segmentation")


def labeled(values: list[str], groups: list[str] | None = None, seed: int = 0) -> tuple[ImageSet, np.ndarray]:
    """Images with a column, and probabilities of three classes."""
    rng, count = np.random.default_rng(seed), len(values)
    images = ImageSet(
        np.zeros((count, 1, 1, 1), np.uint8),
        rng.integers(0, 3, count),
        ("a", "b", "c"),
        np.arange(count).astype(str),
        None if groups is None else np.array(groups),
        {"scanner": np.array(values, dtype=object)},
    )
    return images, rng.dirichlet(np.ones(3), count).astype(np.float32)


@given(
    st.lists(st.tuples(st.sampled_from(["A", "B", "C", ""]), st.integers(0, 6)), min_size=1, max_size=40), st.booleans()
)
def test_rows_are_what_the_images_of_a_value_alone_would_give(images: list[tuple[str, int]], grouped: bool) -> None:
    values = [value for value, _ in images]
    some, outputs = labeled(values, [f"g{group}" for _, group in images] if grouped else None)
    if not any(values):
        with pytest.raises(RequestError, match="is empty for all"):
            check_column(some, "scanner")
        return
    found = break_down(CLASSIFICATION, outputs, some, "scanner", 100)
    assert {row.name for row in found.rows} == {*values} - {""}
    assert sum(row.n for row in found.rows) + found.empty == len(values)
    accuracies = [row.value("accuracy") for row in found.rows]
    assert accuracies == sorted(accuracies)
    for row in found.rows:
        rows = np.flatnonzero(np.array(values) == row.name)
        alone = CLASSIFICATION.judge(outputs[rows], some.subset(rows), 100)
        assert row.n == alone["n"]
        for key in ("accuracy", "balanced_accuracy", "macro_f1"):
            assert row.value(key) == pytest.approx(alone[key])
        if not found.within and (row.groups is not None or not grouped):
            assert row.metric("accuracy").ci95 == pytest.approx(tuple(alone["accuracy_ci95"]), nan_ok=True)


def test_the_worst_needs_enough_images_and_another_value() -> None:
    values = ["few"] * 3 + ["bad"] * 20 + ["good"] * 20
    images, outputs = labeled(values)
    right = np.array([False] * 3 + [False] * 15 + [True] * 25)
    outputs = np.eye(3, dtype=np.float32)[np.where(right, images.targets, (images.targets + 1) % 3)]
    found = break_down(CLASSIFICATION, outputs, images, "scanner", 100)
    assert [row.name for row in found.rows] == ["few", "bad", "good"] and found.worst == "bad"
    only = np.arange(23)
    assert break_down(CLASSIFICATION, outputs[only], images.subset(only), "scanner", 100).worst == "few", (
        "one has enough"
    )
    assert break_down(CLASSIFICATION, outputs[3:23], images.subset(np.arange(3, 23)), "scanner", 100).worst is None
    right = np.eye(3, dtype=np.float32)[images.targets]
    assert break_down(CLASSIFICATION, right, images, "scanner", 100).worst is None, "all are equal"


def test_values_of_one_group_each_have_intervals_over_their_images() -> None:
    groups = [f"g{index // 12}" for index in range(36)]
    images, outputs = labeled(["A"] * 24 + ["B"] * 12, groups)
    by_group = break_down(CLASSIFICATION, outputs, images, "group", 100)
    assert by_group.within and all(None not in row.metric("accuracy").ci95 for row in by_group.rows)
    by_scanner = break_down(CLASSIFICATION, outputs, images, "scanner", 100)
    assert not by_scanner.within
    spans = {row.name: row.metric("accuracy").ci95 for row in by_scanner.rows}
    assert None not in spans["A"] and spans["B"] == (None, None), "B is one group, which says nothing of others"


def test_masks_by_column() -> None:
    rng, count = np.random.default_rng(0), 30
    tally = Tally(rng.integers(0, 20, (count, 3, 3)), rng.random(count), rng.integers(0, 5, (count, 3, 4)))
    images = ImageSet(
        np.zeros((count, 2, 2, 1), np.uint8),
        np.zeros((count, 2, 2), np.uint8),
        ("a", "b", "c"),
        np.arange(count).astype(str),
        columns={"day": np.array(["x", "y"] * 15, dtype=object)},
    )
    found = break_down(SEGMENTATION, tally, images, "day", 100)
    rows = np.arange(0, count, 2)
    alone = SEGMENTATION.judge(tally.take(rows), images.subset(rows), 100)
    first = next(row for row in found.rows if row.name == "x")
    assert first.n == 15
    assert first.value("miou") == alone["miou"] and list(first.metric("miou").ci95) == alone["miou_ci95"]


@pytest.mark.parametrize(
    ("values", "column", "message"),
    [
        (["A", "B"], "scaner", "no column 'scaner'; did you mean scanner"),
        ([str(n / 10) for n in range(60)], "scanner", "60 different numbers, and at most 50 count as categories"),
    ],
)
def test_columns_that_cannot_be_used(values: list[str], column: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        check_column(labeled(values)[0], column)


@pytest.fixture
def table(tmp_path, tiny_npz):
    """A table of the images of `tiny_npz`, with scanners, days that are empty here and there, and two domains."""
    arrays, rows = np.load(tiny_npz), []
    for split in ("train", "val", "test"):
        for index, pixels in enumerate(arrays[f"{split}_images"]):
            name = f"{split}-{index}.png"
            Image.fromarray(pixels).save(tmp_path / name)
            label = "dark" if arrays[f"{split}_labels"][index, 0] == 0 else "bright"
            day = float(index % 3) if index % 10 else None
            rows.append([name, label, split, "AB"[index % 2], day, f"site {index // 5 % 2}", f"note {split} {index}"])
    columns = ["path", "label", "split", "scanner", "day", "domain", "note"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "table.csv", index=False)
    return tmp_path / "table.csv"


def test_from_a_table_to_the_report(table, tiny_recipe, capsys):
    run = api.train(tiny_recipe(data={"source": str(table)}, training={"epochs": 1}), quiet=True)
    tree = json.loads((run.folder / "results.json").read_text())
    assert {row["name"]: row["n"] for row in tree["val"]["by"]["domain"]["rows"]} == {"site 0": 20, "site 1": 20}
    assert {*run.predictions["domain"]} == {"site 0", "site 1"}
    assert "Val by domain" in (run.folder / "report.html").read_text()
    for column, values, empty in (("scanner", {"A", "B"}, 0), ("day", {"0", "1", "2"}, 4), ("note", None, 0)):
        evaluation = api.evaluate(run, by=column, quiet=True)
        found = run.results.test.by[column]
        assert found == evaluation.by[column] and found.empty == empty
        assert {row.name for row in found.rows} == (values or {f"note test {index}" for index in range(40)})
        assert run.results.test.by["domain"] is not None
    page = (run.folder / "report.html").read_text()
    assert "Test by note" in page
    for column, breakdown in run.results.test.by.items():
        assert (f"Worst by {column}" in page) == (breakdown.worst is not None)
    with pytest.raises(RequestError, match="no column 'site'"):
        api.evaluate(run, by="site", quiet=True)
    assert run.results.test.by["note"], "a wrong column loses nothing"
    elsewhere = api.evaluate(load_model(run.model) and run.model, table, by="scanner", quiet=True, keep_seen=True)
    assert {row.n for row in elsewhere.by["scanner"].rows} == {20}
