"""A whole audit: faults of all kinds are added to drawn cells, as arrays and as files, and are found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFilter

from petriscope.audit import label_errors, runner
from petriscope.audit.runner import Audit
from petriscope.core.errors import RequestError
from petriscope.core.recipe import DataSection
from petriscope.data import load_dataset
from petriscope.data.decisions import load_decisions

SIDE, COUNT, PLANTED = 28, 480, 40
BASES = range(20, 26)  # images of train that faulty ones are made of
KINDS = ("npz", "folder")
ARRAY_FINDINGS = {  # finding -> the images that were given it
    "exact_duplicate": {"train/1", "train/copy"},
    "near_duplicate": {"train/2", "train/mirrored", "train/turned"},
    "leak": {"test/0", "train/leaked"},
    "conflicting_labels": {"train/3", "train/contradicting"},
    "label_error": {"train/5"},
    "outlier": {"train/noise"},
    "blank": {"train/blank"},
    "dark": {"train/dark"},
    "bright": {"train/bright"},
    "low_contrast": {"train/flat"},
    "blurred": {"train/blurred"},
    "gray_among_color": {"train/gray"},
    "planted": {f"train/planted{number}" for number in range(PLANTED)},
}
FILE_FINDINGS = {"odd_size": {"train/odd"}, "truncated": {"train/truncated"}, "unreadable": {"train/unreadable"}}
DECISIONS = {
    "drop": {"train/copy", "train/mirrored", "train/turned", "train/leaked", "train/blank", *ARRAY_FINDINGS["planted"]},
    "keep": {"train/1", "train/2", "test/0"},
    "relabel": {"train/5"},
    "review": {"train/3", "train/contradicting", "train/dark", "train/bright", "train/flat", "train/blurred"},
}

TRAINED = label_errors.out_of_fold_probabilities


@pytest.fixture(scope="module")
def cells() -> dict[str, tuple[np.ndarray, int]]:
    """Name -> uint8 [H, W, 3] and class: cells in train, val and test, and faulty images in train."""
    rng = np.random.default_rng(0)
    data = load_dataset(DataSection(source=f"synthetic-smear:{COUNT}", size=SIDE, filter="box"))
    out = {}
    for split, part in data.splits.items():
        for index, (pixels, label) in enumerate(zip(part.images, part.targets.tolist(), strict=True)):
            out[f"{split}/{index}"] = (pixels, label)
    image = {index: out[f"train/{index}"][0].astype(float) for index in range(20, 100)}
    for index in BASES:  # otherwise these would be near duplicates of the faulty images
        del out[f"train/{index}"]

    def add(name: str, pixels: np.ndarray, label: int) -> None:
        out[f"train/{name}"] = (np.clip(np.rint(pixels), 0, 255).astype(np.uint8), label)

    label = {index: out[f"train/{index}"][1] for index in range(10)}
    add("copy", out["train/1"][0], label[1])
    add("mirrored", out["train/2"][0][:, ::-1], label[2])
    add("turned", np.rot90(out["train/2"][0]), label[2])
    add("leaked", out["test/0"][0], out["test/0"][1])
    add("contradicting", out["train/3"][0], (label[3] + 1) % 8)
    add("noise", rng.integers(0, 256, (SIDE, SIDE, 3)), 0)
    add("blank", np.full((SIDE, SIDE, 3), 200), 1)
    add("dark", image[20] * 0.2, 2)
    add("bright", 255 - (255 - image[21]) * 0.12, 3)
    add("flat", 150 + (image[22] - image[22].mean()) * 0.12, 4)
    soft = Image.fromarray(image[23].astype(np.uint8)).filter(ImageFilter.GaussianBlur(3))
    add("blurred", np.asarray(soft), 5)
    add("gray", np.repeat(image[24].mean(2, keepdims=True), 3, axis=2), 6)
    joke = np.zeros((SIDE, SIDE, 3))
    joke[4:9, 5:10] = joke[4:9, 18:23] = (255, 240, 40)
    joke[17:23, 4:24:3] = (40, 200, 255)
    for number in range(PLANTED):
        add(f"planted{number}", 0.5 * image[30 + number] + 0.5 * joke, number % 8)
    return out


@pytest.fixture(scope="module", params=KINDS)
def audited(request: Any, cells: Any, tmp_path_factory: Any) -> Iterator[tuple[Path, Audit, dict[str, str]]]:
    """The source, its audit, and the names of the images by their ids."""
    folder = tmp_path_factory.mktemp(request.param)
    source, names = (make_npz if request.param == "npz" else make_folder)(folder / "cells", cells)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PETRISCOPE_CACHE", str(folder / "cache"))
        patch.setattr(label_errors, "out_of_fold_probabilities", sure_but_of_one(names))
        yield source, runner.audit(source), names


def make_npz(path: Path, cells: dict[str, tuple[np.ndarray, int]]) -> tuple[Path, dict[str, str]]:
    arrays, names = {}, {}
    for split in ("train", "val", "test"):
        own = [name for name in cells if name.startswith(split)]
        arrays[f"{split}_images"] = np.stack([cells[name][0] for name in own])
        arrays[f"{split}_labels"] = np.array([cells[name][1] for name in own])
        names |= {f"{split}/{index}": name for index, name in enumerate(own)}
    np.savez(path.with_suffix(".npz"), **arrays)
    return path.with_suffix(".npz"), names


def make_folder(path: Path, cells: dict[str, tuple[np.ndarray, int]]) -> tuple[Path, dict[str, str]]:
    names = {}
    for name, (pixels, label) in cells.items():
        split, stem = name.split("/")
        file = path / split / f"kind{label}" / f"{stem}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
        names[file.relative_to(path).as_posix()] = name
    first = path / "train" / "kind0"
    whole = (first / "noise.png").read_bytes()
    odd = np.random.default_rng(1).integers(0, 256, (3 * SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(odd).save(first / "odd.png")
    (first / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (first / "unreadable.png").write_bytes(b"no image at all")
    return path, names | {f"train/kind0/{stem}.png": f"train/{stem}" for stem in ("odd", "truncated", "unreadable")}


def sure_but_of_one(names: dict[str, str]) -> Any:
    """Stands in for networks that are right about all images but one, for which they confidently predict another class."""

    def probabilities(images: Any, **options: Any) -> np.ndarray:
        wrong = np.array([names[name] == "train/5" for name in images.ids])
        classes = np.where(wrong, (images.targets + 1) % 8, images.targets)
        return (0.98 * np.eye(8)[classes] + 0.0025).astype(np.float32)

    return probabilities


def named(table: pd.DataFrame, names: dict[str, str]) -> set[str]:
    return {names[name] for name in table["id"]}


@pytest.mark.parametrize("finding", [*ARRAY_FINDINGS, *FILE_FINDINGS])
def test_every_fault_is_found(finding: str, audited: Any) -> None:
    source, found, names = audited
    if finding in FILE_FINDINGS and source.suffix == ".npz":
        assert finding not in set(found.table["finding"])
        return
    rows = found.table[found.table["finding"] == finding]
    expected = {**ARRAY_FINDINGS, **FILE_FINDINGS}[finding]
    if finding in ("leak", "exact_duplicate"):
        expected = expected | (ARRAY_FINDINGS["leak"] if finding == "exact_duplicate" else set())
    if finding == "exact_duplicate":
        expected = expected | ARRAY_FINDINGS["conflicting_labels"]
    missed = expected - named(rows, names)
    assert len(missed) <= (0.05 * len(expected) if finding == "planted" else 0), missed
    assert rows["evidence"].str.len().min() > 10


@pytest.mark.parametrize("finding", ["exact_duplicate", "leak", "conflicting_labels", "blank", "planted"])
def test_nothing_else_is_found(finding: str, audited: Any) -> None:
    _, found, names = audited
    expected = set(ARRAY_FINDINGS[finding])
    if finding == "exact_duplicate":
        expected |= ARRAY_FINDINGS["leak"] | ARRAY_FINDINGS["conflicting_labels"]
    assert named(found.table[found.table["finding"] == finding], names) <= expected


@pytest.mark.parametrize("decision", list(DECISIONS))
def test_what_is_suggested(decision: str, audited: Any) -> None:
    _, found, names = audited
    verdicts = {names[name]: verdict for name, verdict in zip(found.table["id"], found.table["decision"], strict=True)}
    given = {name: verdicts.get(name) for name in DECISIONS[decision] - ARRAY_FINDINGS["planted"]}
    assert set(given.values()) == {decision}, given


def test_one_decision_per_image(audited: Any) -> None:
    _, found, _ = audited
    assert (found.table.groupby("id")["decision"].nunique() == 1).all()
    decisions = {entry.id: entry for entry in found.decisions.decisions}
    assert set(decisions) == set(found.table["id"])
    for row in found.table.itertuples():
        assert (row.decision, row.reason) == (decisions[row.id].decision, decisions[row.id].reason)
    assert all(entry.label for entry in decisions.values() if entry.decision == "relabel")


def test_the_summary_counts_what_the_table_holds(audited: Any) -> None:
    _, found, names = audited
    summary = found.summary
    assert json.loads(json.dumps(summary)) == summary
    assert summary["n"] == len(names)
    assert sum(part["n"] for part in summary["per_split"].values()) == len(names)
    for finding, count in summary["findings"].items():
        assert count == (found.table["finding"] == finding).sum()
        assert count == sum(part["findings"][finding] for part in summary["per_split"].values())
    assert sum(summary["decisions"].values()) == found.table["id"].nunique()


def test_a_second_audit_finds_the_same_to_the_byte(audited: Any, tmp_path: Path) -> None:
    source, found, _ = audited
    again = runner.audit(source)
    for number, each in enumerate((found, again)):
        (tmp_path / str(number)).mkdir()
        each.write(tmp_path / str(number))
    for name in ("findings.csv", "findings.parquet", "decisions.yaml", "summary.json"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "1" / name).read_bytes(), name


def test_the_decisions_can_be_carried_out_as_they_are(audited: Any, tmp_path: Path) -> None:
    source, found, names = audited
    found.write(tmp_path)
    assert load_decisions(tmp_path) == found.decisions
    data = load_dataset(DataSection(source=str(source), audit=str(tmp_path)))
    assert not [warning for warning in data.warnings if "audit" in warning]
    counts = found.summary["decisions"]
    verdicts = [entry.decision for entry in data.audited]
    assert (verdicts.count("drop"), verdicts.count("relabel")) == (counts["drop"], counts["relabel"])
    assert sum(len(part) for part in data.splits.values()) == len(names) - counts["drop"]
    assert "test/0" in {names[name] for name in data.split("test").ids.tolist()}


def test_without_training(audited: Any) -> None:
    source, full, _ = audited
    quick = runner.audit(source, labels=False, features=None)
    assert quick.features is None
    trained = {"outlier", "label_error"}
    assert set(quick.table["finding"]) == set(full.table["finding"]) - trained
    assert quick.fingerprint == full.fingerprint


def test_a_changed_image_changes_the_fingerprint(audited: Any, cells: Any, tmp_path: Path) -> None:
    source, found, _ = audited
    changed = {**cells, "train/0": (cells["train/0"][0] ^ 1, cells["train/0"][1])}
    again, _ = (make_npz if source.suffix == ".npz" else make_folder)(tmp_path / "cells", changed)
    assert runner.audit(again, labels=False, features=None).fingerprint != found.fingerprint


def test_a_pile_has_no_leaks(audited: Any, tmp_path: Path) -> None:
    source, _, _ = audited
    if source.suffix == ".npz":
        return
    shutil.copytree(source / "train", tmp_path / "pile")
    shutil.copytree(source / "test", tmp_path / "pile", dirs_exist_ok=True)
    pile = runner.audit(tmp_path / "pile", labels=False, features=None)
    assert set(pile.table["split"]) == {"all"}
    assert "leak" not in set(pile.table["finding"])
    assert (pile.table["finding"] == "exact_duplicate").sum() >= 4
    assert set(pile.summary["per_split"]) == {"all"}


def test_other_checks_run_if_there_are_too_few_images_for_training(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(label_errors, "out_of_fold_probabilities", TRAINED)
    images = np.random.default_rng(0).integers(0, 256, (6, 12, 12, 3), dtype=np.uint8)
    images[1] = images[0]
    np.savez(tmp_path / "few.npz", train_images=images, train_labels=np.zeros(6, int))
    found = runner.audit(tmp_path / "few.npz")
    assert (found.table["finding"] == "exact_duplicate").sum() == 2
    assert any("label errors were not looked for" in note for note in found.notes)


@pytest.mark.parametrize("features", ["lerned", "no/such/run"])
def test_unknown_features(features: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="neither 'learned'"):
        runner.audit(tmp_path, features=features)


def test_an_audit_reads_the_source_whole(audited: Any, tmp_path: Path) -> None:
    """An audit ignores the decisions of an earlier audit."""
    source, found, _ = audited
    found.write(tmp_path)
    section = DataSection(source=str(source), audit=str(tmp_path))
    assert runner.audit(source, section, labels=False, features=None).fingerprint == found.fingerprint
