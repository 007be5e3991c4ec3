"""What images look like beside those of a run or of another source."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from petriscope import api
from petriscope.core.errors import RequestError
from petriscope.core.recipe import DataSection
from petriscope.experiments.side_by_side import side_by_side


@pytest.fixture
def run(tiny_recipe, tmp_path):
    return api.train(tiny_recipe(training={"epochs": 1}), tmp_path / "run", quiet=True)


def darker(tiny_npz, tmp_path, factor=0.5):
    arrays = {
        key: (each * factor).astype(np.uint8) if "images" in key else each for key, each in np.load(tiny_npz).items()
    }
    np.savez(tmp_path / "darker.npz", **arrays)
    return tmp_path / "darker.npz"


def test_the_run_stands_for_its_val_even_if_its_data_are_gone(run, tiny_npz, tmp_path):
    source = darker(tiny_npz, tmp_path)
    tiny_npz.unlink()
    found = side_by_side(source, run.folder, quiet=True)
    assert found.sizes == (200, 40) and found.names == (str(source), f"{run.folder} (val)")
    assert [row.measure for row in found.rows] == [
        *("background, red", "background, green", "background, blue"),
        *("stain", "size of the objects", "sharpness"),
    ]
    for row in found.rows[:3]:
        assert row.first.median == pytest.approx(row.second.median / 2, rel=0.1)
        assert row.first.low <= row.first.median <= row.first.high and row.deviations < 0


def test_a_folder_without_labels_is_read_as_the_run_reads_images(run, tmp_path):
    (tmp_path / "pile").mkdir()
    for number in range(5):
        Image.fromarray(np.full((30, 40, 3), 100 + number, np.uint8)).save(tmp_path / "pile" / f"{number}.png")
    found = side_by_side(tmp_path / "pile", run.folder, quiet=True)
    assert found.sizes == (5, 40) and found.rows[0].first.median == 102
    assert found.rows[3].first.median is None and found.rows[3].deviations is None  # nothing is stained


def test_two_sources(tiny_npz, tmp_path):
    found = side_by_side(darker(tiny_npz, tmp_path), tiny_npz, quiet=True)
    assert found.sizes == (200, 200) and found.names[1] == str(tiny_npz)
    small = side_by_side(darker(tiny_npz, tmp_path), tiny_npz, DataSection(source=str(tiny_npz), size=8), quiet=True)
    assert small.sizes == (200, 200)
    same = side_by_side(tiny_npz, tiny_npz, DataSection(source=str(tiny_npz), size=8), quiet=True)
    assert all(row.first == row.second for row in same.rows)
    assert all(row.deviations == 0 for row in same.rows if row.deviations is not None)


def test_a_difference_from_images_that_do_not_differ_among_each_other_is_shown(tmp_path):
    for name, light in (("a", 120), ("b", 240)):
        images = np.full((20, 16, 16, 3), light, np.uint8)
        images[:, 4:12, 4:12] = light // 2 + np.arange(20, dtype=np.uint8)[:, None, None, None]
        np.savez(tmp_path / f"{name}.npz", train_images=images, train_labels=np.arange(20)[:, None] % 2)
    found = side_by_side(tmp_path / "a.npz", tmp_path / "b.npz", quiet=True)
    background = found.rows[0]
    assert (background.second.low, background.second.high) == (240, 240) and background.deviations < -20


def test_what_does_not_fit_is_refused(run, tiny_npz, tmp_path):
    with pytest.raises(RequestError, match="other settings cannot be combined"):
        side_by_side(tiny_npz, run.folder, DataSection(source=str(tiny_npz), size=8), quiet=True)
    gray = {key: each[..., 0] if "images" in key else each for key, each in np.load(tiny_npz).items()}
    np.savez(tmp_path / "gray.npz", **gray)
    with pytest.raises(RequestError, match="differ in channels"):
        side_by_side(tmp_path / "gray.npz", tiny_npz, quiet=True)
    large = {
        key: each.repeat(2, 1).repeat(2, 2) if "images" in key else each for key, each in np.load(tiny_npz).items()
    }
    np.savez(tmp_path / "large.npz", **large)
    with pytest.raises(RequestError, match=r"are 24x24 and those of .* 12x12, .* --set data\.size=N"):
        side_by_side(tmp_path / "large.npz", tiny_npz, quiet=True)
    with pytest.raises(RequestError, match="no data source"):
        side_by_side(tiny_npz, tmp_path / "none", quiet=True)
