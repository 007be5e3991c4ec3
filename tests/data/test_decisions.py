"""An audit's decisions: read, checked against the data, carried out, and never by touching a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_sources import MASK_MAKERS, load, make_folders, make_npz, make_table, make_unsplit, save_image, some_images

from petriscope.core.errors import DataError, RequestError
from petriscope.core.recipe import DataSection
from petriscope.data import sources
from petriscope.data.decisions import Decision, Decisions, ReadAs, load_decisions, write_decisions
from petriscope.data.fingerprint import fingerprint

READ_AS = ReadAs(size=(8, 9), filter="bilinear", channels="rgb", bits=16)
SOURCES = [make_npz, make_folders, make_unsplit, make_table]


def decide(source: Path, folder: Path, wanted: dict[str, tuple[str, str | None]], **section: Any) -> Path:
    """Decisions about some images, as an audit of ``source`` would write them."""
    asked = DataSection(source=str(source), unreadable="skip", **section)
    sets = sources.read_nonempty(str(source), asked, [])
    digests = {split: part.digests() for split, part in sets.items()}
    known = {
        name: digest.hex()
        for split, part in sets.items()
        for name, digest in zip(part.ids.tolist(), digests[split], strict=True)
    }
    decisions = Decisions(
        source=str(source),
        fingerprint=fingerprint(sets, digests),
        read_as=ReadAs.of(asked, next(iter(sets.values()))),
        decisions=tuple(
            Decision(id=name, decision=verdict, label=label, reason="said so", digest=known.get(name))
            for name, (verdict, label) in wanted.items()
        ),
    )
    write_decisions(folder / "decisions.yaml", decisions)
    return folder


def ids(data: Any) -> dict[str, list[str]]:
    return {split: part.ids.tolist() for split, part in data.splits.items()}


def edit(folder: Path, change: Callable[[str], str]) -> Path:
    path = folder / "decisions.yaml"
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    return path


@pytest.mark.parametrize("make", SOURCES)
def test_drop_and_relabel(make: Callable[[Path], Path], tmp_path: Path) -> None:
    source = make(tmp_path / "data")
    whole = load(source)
    dropped, relabeled, looked = whole.split("train").ids[[1, 4, 5]].tolist()
    old = whole.classes[whole.split("train").targets[4]]
    new = next(name for name in whole.classes if name != old)
    wanted = {dropped: ("drop", None), relabeled: ("relabel", new), looked: ("review", None)}
    cleaned = load(source, audit=str(decide(source, tmp_path / "audit", wanted)))

    before = ids(whole)
    before["train"].remove(dropped)
    assert ids(cleaned) == before
    at = cleaned.split("train").ids.tolist().index(relabeled)
    assert cleaned.classes[cleaned.split("train").targets[at]] == new
    assert [(entry.id, entry.decision, entry.new_label) for entry in cleaned.audited] == [
        (dropped, "drop", ""),
        (relabeled, "relabel", new),
    ]
    assert all(entry.split == "train" and entry.reason == "said so" for entry in cleaned.audited)
    assert cleaned.fingerprint != whole.fingerprint
    assert not [warning for warning in cleaned.warnings if "audit" in warning]


@pytest.mark.parametrize("make", MASK_MAKERS.values())
def test_images_with_masks_are_dropped_and_not_relabeled(make: Callable[[Path], Path], tmp_path: Path) -> None:
    source = make(tmp_path / "data")
    whole = load(source)
    dropped = whole.split("train").ids[1]
    cleaned = load(source, audit=str(decide(source, tmp_path / "audit", {dropped: ("drop", None)})))
    rest = np.arange(len(whole.split("train"))) != 1
    assert np.array_equal(cleaned.split("train").targets, whole.split("train").targets[rest])
    assert [entry.label for entry in cleaned.audited] == [whole.classes[whole.split("train").strata[1]]]
    for name in whole.classes:
        with pytest.raises(DataError, match="correct the mask"):
            load(source, audit=str(decide(source, tmp_path / "audit", {dropped: ("relabel", name)})))


def test_decisions_move_no_other_image_between_drawn_splits(tmp_path: Path) -> None:
    source = make_unsplit(tmp_path / "data")
    whole = load(source)
    for index in range(0, len(whole.split("train")), 3):
        name = whole.split("train").ids[index]
        cleaned = load(source, audit=str(decide(source, tmp_path / "audit", {name: ("drop", None)})))
        assert ids(cleaned)["test"] == ids(whole)["test"]
        assert ids(cleaned)["val"] == ids(whole)["val"]


@pytest.mark.parametrize("place", ["folder", "file"])
def test_the_audit_is_named_by_its_folder_or_its_file(place: str, tmp_path: Path) -> None:
    source = make_npz(tmp_path / "data")
    folder = decide(source, tmp_path / "audit", {"train/0": ("drop", None)})
    path = folder if place == "folder" else folder / "decisions.yaml"
    assert len(load(source, audit=str(path)).split("train")) == 11


@pytest.mark.parametrize("make", [make_npz, make_folders])
def test_images_may_be_read_at_another_size_than_they_were_audited(make: Any, tmp_path: Path) -> None:
    source = make(tmp_path / "data")
    name = load(source).split("train").ids[0]
    folder = decide(source, tmp_path / "audit", {name: ("drop", None)})
    small = load(source, audit=str(folder), size=4, channels="gray")
    assert small.shape == (4, 4, 1) and name not in ids(small)["train"]
    assert not small.warnings


@pytest.mark.parametrize("section", [{}, {"size": 4}])
def test_a_changed_image_is_an_error_and_a_changed_neighbor_a_warning(section: Any, tmp_path: Path) -> None:
    source = make_folders(tmp_path / "data")
    names = load(source).split("train").ids.tolist()
    folder = decide(source, tmp_path / "audit", {names[0]: ("drop", None)})
    save_image(source / names[1], some_images(1, seed=99)[0])
    (warning,) = load(source, audit=str(folder), **section).warnings
    assert "changed since the audit" in warning and "petriscope audit" in warning
    save_image(source / names[0], some_images(1, seed=98)[0])
    with pytest.raises(DataError, match=f"1 image changed since the audit: {names[0]}. Audit again"):
        load(source, audit=str(folder), **section)


def test_a_image_that_is_gone_is_a_warning(tmp_path: Path) -> None:
    source = make_folders(tmp_path / "data")
    names = load(source).split("train").ids.tolist()
    folder = decide(source, tmp_path / "audit", {names[0]: ("drop", None), names[1]: ("drop", None)})
    (source / names[0]).unlink()
    data = load(source, audit=str(folder))
    assert any(f"1 image is no longer in the data: {names[0]}" in warning for warning in data.warnings)
    assert [entry.id for entry in data.audited] == [names[1]]


def test_decisions_about_another_source_are_refused(tmp_path: Path) -> None:
    folder = decide(make_npz(tmp_path / "npz"), tmp_path / "audit", {"train/0": ("drop", None)})
    with pytest.raises(DataError, match="none of the 1 images"):
        load(make_folders(tmp_path / "data"), audit=str(folder))


def test_unreadable_images_are_left_out_only_where_they_are_dropped(tmp_path: Path) -> None:
    source = make_folders(tmp_path / "data")
    for name in ("x.png", "y.png"):
        (source / "train" / "cat" / name).write_bytes(b"no image")
    both = {f"train/cat/{name}": ("drop", None) for name in ("x.png", "y.png")}
    with pytest.raises(DataError, match="cannot be read"):
        load(source)
    data = load(source, audit=str(decide(source, tmp_path / "audit", both)))
    assert len(data.split("train")) == 12
    assert {(entry.id, entry.split, entry.label) for entry in data.audited} == {(name, "train", "cat") for name in both}
    one = decide(source, tmp_path / "audit", {"train/cat/x.png": ("drop", None)})
    with pytest.raises(DataError, match=r"train/cat/y\.png cannot be read"):
        load(source, audit=str(one))
    assert len(load(source, audit=str(one), unreadable="skip").split("train")) == 12


def test_a_dropped_image_that_was_mended_is_to_be_audited_again(tmp_path: Path) -> None:
    source = make_folders(tmp_path / "data")
    (source / "train" / "cat" / "x.png").write_bytes(b"no image")
    folder = decide(source, tmp_path / "audit", {"train/cat/x.png": ("drop", None)})
    save_image(source / "train" / "cat" / "x.png", some_images(1, seed=7)[0])
    with pytest.raises(DataError, match="changed since the audit"):
        load(source, audit=str(folder))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text.replace("decision: drop", "decision: dorp"), "did you mean drop"),
        (lambda text: text.replace("decision: drop", "decison: drop"), "unknown key"),
        (lambda text: text.replace("decision: drop", "decision: relabel"), "has no label"),
        (lambda text: text.replace("decision: drop", "decision: drop\n  decision: keep"), "stands twice"),
        (lambda text: text + "- {id: train/0, decision: keep}\n", "train/0 has two decisions"),
        (lambda text: text.replace("decision: drop", "decision: relabel\n  label: x"), "not a class"),
        (lambda text: "[1, 2", "not valid YAML"),
        (lambda text: "[1, 2]", "has no decisions"),
        (lambda text: "[" * 10_000, "not valid YAML"),
    ],
)
def test_a_file_that_was_edited_wrongly(change: Callable[[str], str], says: str, tmp_path: Path) -> None:
    source = make_npz(tmp_path / "data")
    path = edit(decide(source, tmp_path / "audit", {"train/0": ("drop", None)}), change)
    with pytest.raises(RequestError, match=says):
        load(source, audit=str(path))


def test_no_decisions(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no decisions at"):
        load(make_npz(tmp_path), audit=str(tmp_path / "nowhere"))


def test_all_dropped(tmp_path: Path) -> None:
    source = make_npz(tmp_path / "data")
    every = {name: ("drop", None) for part in load(source).splits.values() for name in part.ids.tolist()}
    with pytest.raises(DataError, match="drops every image"):
        load(source, audit=str(decide(source, tmp_path / "audit", every)))


def test_an_edited_decision_counts(tmp_path: Path) -> None:
    source = make_npz(tmp_path / "data")
    folder = decide(source, tmp_path / "audit", {"train/0": ("drop", None), "train/1": ("drop", None)})
    edit(folder, lambda text: text.replace("decision: drop", "decision: keep", 1))
    assert [entry.id for entry in load(source, audit=str(folder)).audited] == ["train/1"]


@given(
    entries=st.lists(
        st.tuples(st.text(min_size=1), st.sampled_from(["keep", "drop", "review"]), st.text()),
        max_size=5,
        unique_by=lambda entry: entry[0],
    )
)
def test_what_is_written_is_read_back(entries: list[tuple[str, Any, str]], tmp_path_factory: Any) -> None:
    decisions = Decisions(
        source="cells",
        fingerprint="f00d",
        read_as=READ_AS,
        decisions=tuple(Decision(id=name, decision=verdict, reason=reason) for name, verdict, reason in entries),
    )
    path = tmp_path_factory.mktemp("audit") / "decisions.yaml"
    write_decisions(path, decisions)
    assert load_decisions(path) == decisions


def test_thousands_of_decisions_are_applied_to_the_right_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    count = 3_000
    images = rng.integers(0, 256, (count, 2, 2, 1), dtype=np.uint8)
    path = tmp_path / "many.npz"
    labels = np.arange(count) % 2
    np.savez(path, train_images=images, train_labels=labels, test_images=images[:4], test_labels=labels[:4])
    gone = set(rng.permutation(count)[:1500].tolist())
    folder = decide(path, tmp_path / "audit", {f"train/{index}": ("drop", None) for index in gone})
    kept = load(path, audit=str(folder), val_fraction=0.0).split("train").ids.tolist()
    assert kept == [f"train/{index}" for index in range(count) if index not in gone]


@pytest.mark.parametrize(
    "text",
    ["", "- a", "decisions: 3", "&a [*a]", "[" * 5000, "source: !!int ''", "read_as: {size: [1e999, 8]}", "a: \x00"],
)
def test_a_text_that_is_no_decisions_is_named_with_the_file(tmp_path, text):
    path = tmp_path / "decisions.yaml"
    path.write_text(text)
    with pytest.raises(RequestError, match=r"decisions\.yaml"):
        load_decisions(tmp_path)
