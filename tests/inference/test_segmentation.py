"""A segmentation model through the API: stress test, masks of image files, explanations, and requests it refuses."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from petriscope import api
from petriscope.core.drawing import class_colors
from petriscope.core.errors import RequestError
from petriscope.core.recipe import load_recipe
from petriscope.experiments import ensemble as ensembling
from petriscope.inference import segmentation


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("segmentation") / "run"
    settings = ["training.epochs=2", "data.size=[16, 32]", "training.precision=fp32", "evaluation.bootstrap=100"]
    recipe = load_recipe("synthetic-terrain/unet", settings, data={"source": "synthetic-terrain:280"})
    return api.train(recipe, folder, quiet=True)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (60, 40)), ("b.jpg", (32, 16))):
        Image.fromarray(rng.integers(0, 256, (size[1], size[0]), dtype=np.uint8)).save(folder / name)
    return folder


def test_training_ends_with_a_stress_test_of_val_and_evaluate_makes_one_of_test(run, tmp_path):
    after = run.results.stress["val"]
    assert after.metric_name == "miou" and after.n == after.of > after.scenes
    assert after.value("clean") == pytest.approx(run.results.val.value("miou"), abs=1e-6)
    assert after.corruptions["brightness-up"].seen and not after.corruptions["rotation"].seen
    shutil.copytree(run.folder, tmp_path / "run")
    result = api.evaluate(tmp_path / "run", stress=True, stress_images=8, tta="crops", quiet=True)
    assert (result.stress.n, result.stress.split, result.stress.tta) == (8, "test", "crops")
    assert api.open_run(tmp_path / "run").results.stress == {"val": after, "test": result.stress}
    assert result.value("miou") == pytest.approx(api.evaluate(tmp_path / "run", quiet=True).value("miou"), abs=0.1)


def test_masks_are_indexed_and_have_the_size_of_their_image(run, images, tmp_path):
    table = api.predict(run.folder, [images], quiet=True, out=tmp_path / "masks")
    assert list(table.columns[:4]) == ["image", "mask", "confidence", "error"]
    with Image.open(tmp_path / "masks" / "a.png") as mask:
        assert mask.mode == "P" and mask.size == (60, 40)
        values = np.asarray(mask)
        colors = np.array(mask.getpalette()[:12]).reshape(4, 3)
    assert values.max() < 4
    np.testing.assert_array_equal(colors, class_colors(4))
    with Image.open(tmp_path / "masks" / "a-overlay.png") as overlay:
        assert overlay.mode == "RGB" and overlay.size == (60, 40)
    shares = table.filter(like="share_").to_numpy()
    np.testing.assert_allclose(shares.sum(1), 1)
    assert ((table["confidence"] > 0.2) & (table["confidence"] <= 1)).all()


def test_an_unreadable_image_has_an_error_and_the_rest_their_masks(run, images, tmp_path):
    (images / "c.png").write_bytes(b"no image")
    table = api.predict(run.folder, [images], quiet=True, out=tmp_path / "masks").set_index("image")
    assert pd.isna(table.loc[str(images / "c.png"), "mask"])
    assert "cannot be read" in table.loc[str(images / "c.png"), "error"]
    assert (tmp_path / "masks" / "b.png").is_file() and not (tmp_path / "masks" / "c.png").exists()


@given(
    stems=st.lists(
        st.sampled_from(["a", "A", "a-2", "a-overlay", "ä" * 120, "ä" * 127, "a" * 251, "a" * 250 + "B"]), min_size=1
    )
)
def test_masks_have_names_of_their_own_that_file_systems_allow(stems, tmp_path):
    paths = [Path(f"{index}/{stem}.jpg") for index, stem in enumerate(stems)]
    files = segmentation._file_names(paths, tmp_path)
    written = [name for file in files.values() for name in (file, f"{Path(file).stem}-overlay.png")]
    assert len({name.casefold() for name in written}) == 2 * len(paths)
    assert max(len(name.encode()) for name in written) <= 255


def test_nothing_is_overwritten_and_equal_names_are_told_apart(run, images, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(images, other)
    api.predict(run.folder, [images, other], quiet=True, out=tmp_path / "masks")
    assert (tmp_path / "masks" / "a.png").is_file() and (tmp_path / "masks" / "a-2.png").is_file()
    with pytest.raises(RequestError, match="exists"):
        api.predict(run.folder, [images], quiet=True, out=tmp_path / "masks")


def test_explanations_are_for_one_class_per_image(run, images, tmp_path):
    (images / "c.png").write_bytes(b"no image")
    masks = api.predict(run.folder, [images], quiet=True, out=tmp_path / "masks").set_index("image")
    for of, out in (("soil", tmp_path / "soil"), (None, tmp_path / "any")):
        table = api.explain(run.folder, [images], out, of=of, quiet=True).set_index("image")
        assert "cannot be read" in table.loc[str(images / "c.png"), "error"]
        for path, row in table[table["error"].isna()].iterrows():
            share = masks.loc[path, f"share_{row['explained']}"]
            assert (row["overlay"] is not None) == (share > 0)
            assert row["share"] == pytest.approx(share, abs=0.05)  # of the image as the model takes it
            if share:
                assert 0 < row["confidence"] <= 1
        assert of in (None, *set(table["explained"].dropna()))
        assert len(list(out.glob("*.png"))) == table["overlay"].notna().sum()
    assert table["explained"].dropna().tolist() == table["predicted"].dropna().tolist()


def test_an_image_without_the_class_has_a_note_and_no_map(run, tmp_path):
    flat = tmp_path / "flat.png"
    Image.fromarray(np.full((16, 32), 118, dtype=np.uint8)).save(flat)
    shares = api.predict(run.folder, [flat], quiet=True, out=tmp_path / "masks").filter(like="share_").iloc[0]
    missing = shares[shares == 0].index[0].removeprefix("share_")
    table = api.explain(run.folder, [flat], tmp_path / "out", of=missing, quiet=True)
    assert table[["overlay", "confidence", "error"]].isna().all(axis=None) and table["share"].tolist() == [0]
    assert table["note"].tolist() == [f"no pixel is predicted as {missing}"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["index.html"]


def test_the_run_keeps_explanations(run):
    found, gallery = run.results.val.explanations, run.gallery
    assert found.method == "hires-cam" and found.check.n >= 16
    assert set(found.check.orders) >= {"hires-cam", "random", "blob", "region"}
    shown = gallery["explained_val"]
    assert len(shown) == len(found.ids) == len(found.of) == found.shown
    assert gallery["explained_val_maps"].shape == gallery["explained_val_masks"].shape == shown.shape[:3]
    for mask, name, share in zip(gallery["explained_val_masks"], found.of, found.share, strict=True):
        assert (mask == found.classes.index(name)).mean() == pytest.approx(share, abs=1e-4)


def test_requests_for_classification_are_refused(run, images, tmp_path):
    folder = run.folder
    with pytest.raises(RequestError, match="--out FOLDER"):
        api.predict(folder, [images], quiet=True)
    with pytest.raises(RequestError, match="--max-error"):
        api.predict(folder, [images], quiet=True, out=tmp_path / "m", max_error=0.01)
    with pytest.raises(RequestError, match="only classification models can be calibrated"):
        api.calibrate(folder, quiet=True)
    shutil.copytree(folder, tmp_path / "twin")
    with pytest.raises(RequestError, match="stacking"):
        ensembling.ensemble([folder, tmp_path / "twin"], "stacking", tmp_path / "e", quiet=True)
    assert not (tmp_path / "m").exists() and not (tmp_path / "e").exists()
