"""What every source promises."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from small_sources import MAKERS, MASK_MAKERS, load

from petriscope.core.masks import IGNORE

EMBEDDED = ["digits"]
if importlib.util.find_spec("petriscope.data.sources.synthetic_smear"):
    EMBEDDED.append("synthetic-smear:160")
EMBEDDED.append("synthetic-terrain:64")
MASKED = [*MASK_MAKERS, "synthetic-terrain:64"]
GRAY = ["digits", "mars", "synthetic-terrain:64"]


def source_of(kind: str, folder: Path, gray: bool = False, seed: int = 0) -> str:
    return kind if kind in EMBEDDED else str(MAKERS[kind](folder, gray=gray, seed=seed))


@pytest.mark.parametrize("channels", ["auto", "gray", "rgb"])
@pytest.mark.parametrize("kind", [*MAKERS, *EMBEDDED])
def test_a_source_gives_uint8_images_with_targets_classes_and_ids(kind: str, channels: str, tmp_path: Path) -> None:
    source = source_of(kind, tmp_path / "data")
    data = load(source, channels=channels)
    depth = {"gray": 1, "rgb": 3, "auto": 1 if kind in GRAY else 3}[channels]
    assert data.train is not None and data.test is not None and data.val is not None
    ids = np.concatenate([part.ids for part in data.splits.values()])
    assert len(set(ids)) == len(ids)
    for part in data.splits.values():
        assert part.images.dtype == np.uint8 and part.images.shape == (len(part), *part.shape)
        assert part.shape == data.shape and part.shape[2] == depth
        assert part.task is data.task and part.task.dense == (kind in MASKED)
        if kind in MASKED:
            assert part.targets.dtype == np.uint8 and part.targets.shape == (len(part), *part.shape[:2])
            labeled = part.targets[part.targets != IGNORE]
            assert len(labeled) and labeled.max() < len(part.classes)
            assert np.array_equal(part.counts, np.bincount(labeled, minlength=len(part.classes)))
        else:
            assert part.targets.dtype == np.int64 and part.targets.shape == (len(part),)
        assert part.classes == data.classes and len(data.classes) >= 2 and (part.counts > 0).all()
        assert np.array_equal(part.take([1, 0]), part.images[[1, 0]])


@pytest.mark.parametrize("kind", [*MAKERS, *EMBEDDED])
def test_read_twice_is_the_same(kind: str, tmp_path: Path) -> None:
    source = source_of(kind, tmp_path / "data")
    one, two = load(source), load(source)
    assert one.fingerprint == two.fingerprint and one.warnings == two.warnings
    for name in one.splits:
        assert np.array_equal(one.split(name).images, two.split(name).images)
        assert np.array_equal(one.split(name).targets, two.split(name).targets)
        assert np.array_equal(one.split(name).ids, two.split(name).ids)


@pytest.mark.parametrize("kind", list(MAKERS))
def test_the_fingerprint_follows_the_content(kind: str, tmp_path: Path) -> None:
    one, copy, other = (
        load(MAKERS[kind](tmp_path / name, seed=seed)) for name, seed in (("a", 0), ("b", 0), ("c", 50))
    )
    assert one.fingerprint == copy.fingerprint != other.fingerprint


@pytest.mark.parametrize("kind", [kind for kind in MAKERS if kind != "cifar"])
def test_gray_images_stay_gray(kind: str, tmp_path: Path) -> None:
    source = MAKERS[kind](tmp_path / "data", gray=True)
    assert load(source).shape == (8, 9, 1)
    assert load(source, channels="rgb").shape == (8, 9, 3)


@pytest.mark.parametrize("kind", list(MAKERS))
def test_mapped_and_resident_are_the_same_images(kind: str, tmp_path: Path) -> None:
    source = MAKERS[kind](tmp_path / "data")
    for options in ({}, {"size": 6, "channels": "gray"}):
        mapped, resident = load(source, memory="mapped", **options), load(source, memory="resident", **options)
        assert mapped.fingerprint == resident.fingerprint
        assert not any(part.mapped for part in resident.splits.values())
        if kind not in ("cifar", "mars"):  # read into memory: pickles, and images that share an array with masks
            assert all(part.mapped for part in mapped.splits.values())


@pytest.mark.parametrize("kind", [*MAKERS, *EMBEDDED])
def test_size_and_filter(kind: str, tmp_path: Path) -> None:
    source = source_of(kind, tmp_path / "data")
    data = load(source, size=(5, 7))
    assert data.shape[:2] == (5, 7)
    if kind in MASKED:
        assert data.split("train").targets.shape[1:] == (5, 7)
    if "synthetic" not in kind:
        assert load(source, size=5).fingerprint != load(source, size=5, filter="nearest").fingerprint


def test_files_and_arrays_of_the_same_images_agree(tmp_path: Path) -> None:
    one, two = load(MAKERS["npz"](tmp_path / "a"), channels="gray", size=5), None
    two = load(MAKERS["folders"](tmp_path / "b"), channels="gray", size=5)
    assert sorted(one.split("val").digests()) == sorted(two.split("val").digests())


def test_no_torch_is_imported() -> None:
    import subprocess
    import sys

    code = "import sys, petriscope.data, petriscope.data.sources.npz; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0
