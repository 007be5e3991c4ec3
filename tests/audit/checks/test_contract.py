"""What holds for every check."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from petriscope.audit import embeddings, label_errors
from petriscope.audit.base import Check, Context, Finding, FindingInfo, Listing
from petriscope.audit.checks import all_checks, all_findings
from petriscope.audit.findings import families, kinds_of
from petriscope.audit.runner import audit
from petriscope.data.decisions import Verdict
from petriscope.data.imageset import ImageSet
from petriscope.data.sources.listing import ImageFile
from petriscope.data.sources.synthetic_smear import CLASSES, draw_smear
from petriscope.tasks import find_task

CHECKS = all_checks()
COUNT, SIDE = 160, 24


def named(check: Check) -> str:
    return type(check).__name__


@pytest.fixture
def own_checks(monkeypatch: Any) -> None:
    """Checks that a test defines are forgotten after it."""
    monkeypatch.setattr(Check, "registered", [*Check.registered])


def context_of(pixels: np.ndarray, targets: np.ndarray, folder: Path, **options: Any) -> Context:
    """A context with a file for each image."""
    from PIL import Image

    ids = np.array([f"{index}.png" for index in range(len(pixels))])
    images = ImageSet(pixels, targets, CLASSES, ids)
    for name, image in zip(ids, pixels, strict=True):
        Image.fromarray(image).save(folder / name)
    labels = np.array(CLASSES, dtype=object)[images.strata]
    listing = Listing(ids.astype(object), np.full(len(images), "train", dtype=object), labels)
    files = [ImageFile(name, folder / name, "train", label) for name, label in zip(ids, labels, strict=True)]
    applicable = tuple(check for check in CHECKS if check.applies_to(images.task))
    return Context(images, listing, images.digests(), applicable, files, **options)


@pytest.fixture
def clean(tmp_path: Path, monkeypatch: Any) -> dict[str, Context]:
    """For each task a context of sound cells, with networks that are right and features that are even."""
    monkeypatch.setattr(
        label_errors,
        "out_of_fold_probabilities",
        lambda images, **_: (0.9 * np.eye(len(CLASSES))[images.targets] + 0.1 / len(CLASSES)).astype(np.float32),
    )
    pixels = np.minimum(0.9 * draw_smear(COUNT, SIDE)[0], 225).astype(np.uint8)
    labels = np.arange(COUNT) % len(CLASSES)
    masks = np.random.default_rng(0).integers(0, len(CLASSES), (COUNT, SIDE, SIDE)).astype(np.uint8)
    features = np.random.default_rng(0).normal(size=(COUNT, 6)).astype(np.float32)
    return {
        name: context_of(pixels, targets, tmp_path, extract=lambda _: features)
        for name, targets in (("classification", labels), ("segmentation", masks))
    }


def spoil(context: Context, folder: Path) -> Context:
    """The same images with many faults."""
    pixels, targets = context.images.images.copy(), context.images.targets.copy()
    pixels[1], pixels[3] = pixels[0], pixels[2][:, ::-1]
    pixels[4] = 200
    pixels[5] //= 6
    pixels[6] = pixels[6].mean(2, keepdims=True).astype(np.uint8)
    bars = np.zeros((SIDE, SIDE, 3))
    bars[4:8, 4:20] = bars[16:20, 2:9] = (255, 240, 40)
    pixels[40:80] = 0.5 * pixels[40:80] + 0.5 * bars
    if context.images.task.dense:
        targets[8], targets[9], targets[10:20] = 255, 1, targets[10]
    else:
        targets[0], targets[1] = 0, 1
    features = context.features.copy()
    features[30] = 100
    out = context_of(pixels, targets, folder, extract=lambda _: features)
    (folder / "7.png").write_bytes((folder / "7.png").read_bytes()[:200])
    return out


@pytest.mark.parametrize("check", CHECKS, ids=named)
class TestContract:
    def test_it_declares_its_findings(self, check: Check) -> None:
        assert check.findings
        for info in check.findings:
            assert info.name.isidentifier() and info.name.islower()
            assert info.about.endswith(".") and info.about[0].isupper()
            assert info.decision in get_args(Verdict)
            assert kinds_of(info.name.replace("_", "-")) == [info.name]
            assert info.name in families()[info.family or "any"]
        for task in check.tasks or ():
            assert find_task(task).name == task

    def test_it_finds_nothing_in_clean_images(self, check: Check, clean: dict[str, Context]) -> None:
        contexts = [context for context in clean.values() if check.applies_to(context.images.task)]
        assert contexts
        for context in contexts:
            assert list(check.run(context)) == []
            assert context.notes == []

    def test_what_it_finds_is_declared_and_repeatable(
        self, check: Check, clean: dict[str, Context], tmp_path: Path, monkeypatch: Any
    ) -> None:
        def wrong_about_one(images: ImageSet, **_: Any) -> np.ndarray:
            expected = np.where(np.arange(COUNT) == 20, (images.targets + 1) % len(CLASSES), images.targets)
            return (0.98 * np.eye(len(CLASSES))[expected] + 0.02 / len(CLASSES)).astype(np.float32)

        monkeypatch.setattr(label_errors, "out_of_fold_probabilities", wrong_about_one)
        for context in clean.values():
            if not check.applies_to(context.images.task):
                continue
            spoiled = spoil(context, tmp_path)
            found = list(check.run(spoiled))
            assert found == list(check.run(spoiled))
            assert found, "the faults of this test should be found by every check"
            for finding in found:
                assert finding.finding in {info.name for info in check.findings}
                assert 0 <= finding.image < len(spoiled.listing)
                assert finding.decision in get_args(Verdict)
                assert finding.evidence and finding.reason
                assert np.isfinite(finding.score)
                info = all_findings()[finding.finding]
                assert bool(finding.group) == info.grouped


def test_names_are_unique() -> None:
    names = [info.name for check in CHECKS for info in check.findings]
    assert len(names) == len(set(names))
    assert not {info.family for info in all_findings().values()} & {"any"}


def test_families() -> None:
    assert families() == {
        "leaks": ("leak",),
        "conflicts": ("conflicting_labels",),
        "duplicates": ("exact_duplicate", "near_duplicate"),
        "labels": ("label_error",),
        "outliers": ("outlier",),
        "quality": ("blank", "dark", "bright", "low_contrast", "blurred", "gray_among_color", "odd_size"),
        "files": ("truncated", "unreadable"),
        "masks": ("empty_mask", "single_class_mask", "shared_mask"),
        "any": tuple(all_findings()),
    }


@pytest.mark.usefixtures("own_checks")
def test_a_check_that_is_defined_is_run_and_reported(tmp_path: Path) -> None:
    red = FindingInfo("too_red", "The image is too red.", family="color", decision="drop", grouped=True)

    class TooRed(Check):
        findings = (red,)
        tasks = ("classification",)

        def run(self, context: Context) -> list[Finding]:
            means = context.images.images.mean((1, 2))
            return [
                red.of(int(index), "its red channel is full", float(means[index, 0]), group="reddish")
                for index in np.flatnonzero(means[:, 0] > 250)
            ]

    rng = np.random.default_rng(0)
    images = rng.integers(0, 200, (20, 12, 12, 3), dtype=np.uint8)
    images[[4, 11], ..., 0] = 255
    np.savez(tmp_path / "cells.npz", train_images=images, train_labels=np.arange(20) % 2)
    found = audit(tmp_path / "cells.npz", labels=False, features=None)
    rows = found.table[found.table["finding"] == "too_red"]
    assert rows["id"].tolist() == ["train/4", "train/11"]
    assert rows["decision"].tolist() == ["drop", "drop"] and rows["reason"].str.contains("too red").all()
    assert found.summary["findings"]["too_red"] == 2 and found.summary["groups"]["too_red"] == 1
    assert found.summary["per_split"]["train"]["decisions"]["drop"] == 2
    assert {entry.id for entry in found.decisions.decisions if "too red" in entry.reason} == {"train/4", "train/11"}
    assert kinds_of("color") == ["too_red"]

    np.savez(tmp_path / "masks.npz", train_images=images, train_masks=rng.integers(0, 3, (20, 12, 12), dtype=np.uint8))
    assert audit(tmp_path / "masks.npz", labels=False, features=None).summary["findings"]["too_red"] == 0


def test_what_cannot_be_looked_for_is_a_note(clean: dict[str, Context]) -> None:
    context = clean["classification"]
    one = context_of(context.images.images[:1], context.images.targets[:1], context.files[0].path.parent)
    one.extract = embeddings.learned_features
    assert one.features is None
    assert one.notes and one.notes[0].startswith("outliers were not looked for: ")
