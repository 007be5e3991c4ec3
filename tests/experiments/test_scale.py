"""Images of another scale: evaluated, predicted, adapted to, and recognized all the same."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pages import Page
from petriscope import api
from petriscope.core.errors import DataError, RequestError
from petriscope.core.recipe import DataSection, load_recipe
from petriscope.data import load_dataset
from petriscope.data.appearance import measure
from petriscope.data.rescale import rescale
from petriscope.experiments import adapt as adapting
from petriscope.experiments.side_by_side import side_by_side
from petriscope.inference.likeness import compare_files, compare_images
from petriscope.inference.predictor import load_model
from petriscope.run.folder import open_run
from petriscope.training import adaptation
from petriscope.trust.object_size import estimate_scale

SIDE = 20
NAMES = ("large", "small")


def drawn(count, seed, times=1.0, light=(235, 230, 225), sides=SIDE):
    """Stained discs, large or small, `times` as large as at home: uint8 [N, 20, 20, 3] and int64 [N]."""
    rng = np.random.default_rng(seed)
    labels, at = np.arange(count) % 2, np.arange(sides) - (sides - 1) / 2
    radius = times * np.where(labels == 0, 0.26, 0.2) * sides * rng.uniform(0.9, 1.1, count)
    inside = np.clip(radius[:, None, None] - np.hypot(*np.meshgrid(at, at)) + 0.5, 0, 1)
    images = np.array(light) * np.exp(-rng.uniform(0.6, 0.9, (count, 1, 1, 1)) * inside[..., None])
    return (images + rng.normal(0, 2, images.shape)).clip(0, 255).astype(np.uint8), labels


def pile(folder, images, labels):
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / NAMES[label] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def recipe(source, *settings, **data):
    tree = {
        "name": "discs",
        "data": {"source": str(source), "classes": NAMES, **data},
        "augment": ["flip"],
        "model": {"name": "simple-cnn", "norm": "batch", "widths": [4, 8, 8], "hidden": 8},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "training": {"epochs": 2, "batch_size": 30, "precision": "fp32", "device": "cpu", "ema": None},
        "evaluation": {"bootstrap": 100, "stress": "off"},
    }
    return load_recipe("demo", settings, **tree)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run, ``run``; its data, ``home.npz``; and labeled images from where objects are 1.5 times as large, ``new``."""
    folder = tmp_path_factory.mktemp("scales")
    arrays = {}
    for seed, (split, count) in enumerate((("train", 120), ("val", 80), ("test", 40))):
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = drawn(count, seed)
    np.savez(folder / "home.npz", **arrays)
    pile(folder / "new", *drawn(40, 10, times=1.5, light=(200, 210, 220)))
    api.train(recipe(folder / "home.npz"), folder / "run", quiet=True)
    return folder


@pytest.fixture(scope="module")
def adapted(kept):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adaptation, "STEPS", 5)
        patch.setattr(adapting, "SETTINGS", (adaptation.Setting("head", 1e-2, 1),))
        return api.adapt(kept / "run", kept / "new", kept / "made", scale="estimated", quiet=True)


def median_size(images):
    return measure(torch.from_numpy(images)).size.nanmedian().item()


# ---------------------------------------------------------------------------------------------------------- the estimate


def test_the_scale_is_estimated_and_said(kept, capsys):
    found = api.evaluate(kept / "run", kept / "new", scale="estimated").scale
    assert found.scale == found.factor == found.estimate.factor == pytest.approx(1 / 1.5, rel=0.06)
    assert found.estimate.known / found.estimate.here == pytest.approx(found.factor, rel=1e-3)
    assert (found.estimate.known_n, found.estimate.here_n) == (80, 40)
    said = capsys.readouterr().err
    assert f"note: objects are scaled {found.factor:g} times, which was estimated: their median size is" in said
    given = api.evaluate(kept / "run", kept / "new", scale=0.7, quiet=True).scale
    assert (given.scale, given.factor, given.estimate) == (0.7, 0.7, None)
    assert api.evaluate(kept / "run", kept / "new", quiet=True).scale is None


def test_a_model_file_that_is_calibrated_at_a_scale_keeps_it(kept, tmp_path, capsys):
    there = pile(tmp_path / "there", *drawn(40, 30, times=1.5, light=(200, 210, 220)))
    found, written = api.recalibrate(kept / "run", there, tmp_path / "there.safetensors", scale="estimated")
    assert found.scale.factor == pytest.approx(1 / 1.5, rel=0.06)
    assert (
        load_model(written).recipe.data.scale == found.scale.scale
        and load_model(kept / "run").recipe.data.scale is None
    )
    capsys.readouterr()
    again = api.evaluate(written, kept / "new")
    assert again.scale.scale == found.scale.scale and "as this model reads images" in capsys.readouterr().err
    assert again.value("accuracy") == api.evaluate(
        kept / "run", kept / "new", scale=found.scale.scale, quiet=True
    ).value("accuracy")
    _, plain = api.recalibrate(kept / "run", there, tmp_path / "plain.safetensors", quiet=True)
    assert load_model(plain).recipe.data.scale is None and api.evaluate(plain, kept / "new", quiet=True).scale is None


def test_the_estimate_needs_images_with_objects_and_a_factor_that_can_be(kept, tmp_path):
    run = kept / "run"
    with pytest.raises(
        RequestError, match=r"in these images, 19 images have an object .* and 20 are needed; give a factor"
    ):
        api.predict(run, drawn(19, 20)[0], scale="estimated", quiet=True)
    with pytest.raises(RequestError, match=r"in these images, 0 images have an object"):
        api.predict(run, np.full((30, SIDE, SIDE, 3), 200, np.uint8), scale="estimated", quiet=True)
    sizes = np.full(20, 0.6)
    assert estimate_scale(sizes, sizes / 2.9).factor == pytest.approx(2.9)
    for times in (3.1, 1 / 3.1):
        with pytest.raises(RequestError, match=r"a ratio of .*; factors from 0.33 to 3 are believed"):
            estimate_scale(sizes, sizes / times)
    old = load_model(run)
    old.trust = replace(old.trust, likeness=None)
    with pytest.raises(RequestError, match=r"cannot be estimated: .* petriscope calibrate RUN adds that"):
        api.predict(old, drawn(30, 20)[0], scale="estimated", quiet=True)


def test_the_estimate_is_for_the_classes_that_are_said_to_occur(kept):
    predictor = load_model(kept / "run")
    images = drawn(60, 21)[0][::2]  # only large ones
    alone, said = (
        api.predict_rows(predictor, images, scale="estimated", quiet=True, prior=prior).parts
        for prior in (None, {"large": 0.999, "small": 0.001})
    )
    factors = [float(next(iter(rows))[0]["assumed"].rpartition("scale ")[2]) for rows in (alone, said)]
    assert factors[1] == pytest.approx(1, abs=0.05) and factors[0] < 0.95


def test_two_sources_side_by_side(petriscope_said, kept):
    plain = side_by_side(kept / "new", kept / "run", quiet=True)
    assert plain.scaling is None and plain.estimate.factor == pytest.approx(1 / 1.5, rel=0.06)
    found = side_by_side(kept / "new", kept / "run", quiet=True, scale="estimated")
    assert found.scaling.estimate == found.estimate == plain.estimate
    (before, after), known = ((each.rows[4].first.median for each in (plain, found)), found.rows[4].second.median)
    assert abs(after - known) < 0.25 * abs(before - known)
    section = DataSection(source=str(kept / "new"), size=SIDE)
    twice = side_by_side(kept / "new", kept / "home.npz", section, quiet=True, scale=0.5)
    assert twice.scaling.factor == 0.5 and twice.rows[4].first.median < before
    few = side_by_side(pile(kept / "few", *drawn(5, 22)), kept / "run", quiet=True)
    assert few.estimate is None and "5 images have an object" in few.not_estimated
    _, out, err = petriscope_said("data", kept / "new", "--like", kept / "run", "--scale", "0.7")
    assert f"estimated scale {plain.estimate.factor:g}: " in err and "size of the objects" in out


@pytest.fixture
def petriscope_said(monkeypatch, capsys):
    from petriscope import cli

    monkeypatch.setattr(cli, "_settle_process", lambda: None)

    def call(*args):
        monkeypatch.setattr("sys.argv", ["petriscope", *map(str, args)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        said = capsys.readouterr()
        return left.value.code or 0, said.out, said.err

    return call


# ------------------------------------------------------------------------------------------------------- what is scaled


def test_files_and_arrays_are_scaled_alike(kept):
    run, images = kept / "run", drawn(40, 10, times=1.5, light=(200, 210, 220))[0]
    wanted = load_model(run).predict(rescale(images, np.full((40, 2), 0.7))).probabilities
    arrays = api.predict(run, images, scale=0.7, quiet=True)
    assert np.allclose(arrays[["p_large", "p_small"]].to_numpy(), wanted, atol=1e-6)
    assert (arrays["assumed"] == "scale 0.7").all()
    files = api.predict(run, kept / "new", scale=0.7, quiet=True)
    by_name = dict(zip(range(40), wanted[:, 0], strict=True))
    numbers = files["image"].str.extract(r"(\d+)\.png")[0].astype(int)
    assert np.allclose(files["p_large"], numbers.map(by_name), atol=1e-6)
    plain = api.predict(run, images, quiet=True)
    assert "assumed" not in plain and not np.allclose(plain["p_large"], arrays["p_large"], atol=1e-3)
    both = api.predict(run, images, scale=0.7, classes=NAMES, quiet=True)
    assert (both["assumed"] == "only large; small; scale 0.7").all()


def test_the_comparison_with_val_sees_scaled_images(kept):
    images = load_dataset(DataSection(source=str(kept / "new"), val_fraction=0, test_fraction=0)).train
    predictor = load_model(kept / "run").at_scale(0.7)
    files = sorted((kept / "new").rglob("*.png"))
    shown = compare_files(predictor, files, quiet=True).shown
    assert any((shown[0] == each).all() for each in rescale(images.images, np.full((40, 2), 0.7)))
    before, after = (
        {
            each.measure: each.here[0]
            for each in api.evaluate(kept / "run", kept / "new", scale=scale, quiet=True).shift.differs
        }
        for scale in (1, 0.7)
    )
    assert after["size of the objects"] == pytest.approx(0.7 * before["size of the objects"], rel=0.1)
    assert compare_images(predictor, images, quiet=True).test.n == 40  # sets are scaled before


def test_images_that_the_model_has_seen_are_recognized_at_any_scale(kept, tmp_path, capsys):
    train = np.load(kept / "home.npz")["train_images"]
    images, labels = np.concatenate([train[:30], drawn(30, 23)[0]]), np.arange(60) % 2
    np.savez(tmp_path / "mixed.npz", test_images=images, test_labels=labels)
    for scale in (1.4, 0.7, "estimated"):
        found = api.evaluate(kept / "run", tmp_path / "mixed.npz", scale=scale, quiet=True)
        assert (found.seen.train, found.seen.left_out, found.n) == (30, 30, 30), scale
    capsys.readouterr()
    api.predict(kept / "run", images, scale=1.4, quiet=True)
    assert "of 60 images, the model learned from 30" in capsys.readouterr().err
    compared = compare_files(load_model(kept / "run").at_scale(1.4), api.as_files(images), quiet=True)
    assert compared.test.n == 30


def test_the_own_images_at_another_scale_are_not_taken_for_the_runs(kept):
    before = (kept / "run" / "results.json").read_bytes()
    found = api.evaluate(kept / "run", kept / "home.npz", scale=0.8, quiet=True)
    assert found.n == 40 and found.scale.factor == 0.8
    assert (kept / "run" / "results.json").read_bytes() == before
    with pytest.raises(RequestError, match="a scale is for images from elsewhere, named with --data"):
        api.evaluate(kept / "run", scale=0.8)


# ---------------------------------------------------------------------------------------------------------- adapted runs


def test_an_adapted_run_scales_images_from_elsewhere_and_not_its_own(kept, adapted, capsys):
    factor, data = adapted.results.adaptation.scale.factor, adapted.recipe.data
    assert factor == pytest.approx(1 / 1.5, rel=0.06)
    assert data.scales == {"home": 1.0, "new": factor} and data.scale == factor == load_model(adapted).recipe.data.scale
    test = api.evaluate(adapted, quiet=True)
    assert test.n == 40 and test.scale is None
    assert "changed" not in capsys.readouterr().err
    images = drawn(10, 30, times=1.5)[0]
    there = api.predict(adapted, images)
    assert f"objects are scaled {factor:g} times, as this model reads images; a scale of 1" in capsys.readouterr().err
    assert (there["assumed"] == f"scale {factor:g}").all()
    plain = api.predict(adapted, images, scale=1, quiet=True)
    predictor = load_model(adapted)
    for found, seen in ((there, rescale(images, np.full((10, 2), factor))), (plain, images)):
        assert np.allclose(found["p_large"], predictor.predict(seen).probabilities[:, 0], atol=1e-6)
    with pytest.raises(DataError, match="learned from 40"):
        api.evaluate(adapted, kept / "new", quiet=True)
    assert api.evaluate(adapted, kept / "new", keep_seen=True, quiet=True).scale.scale == factor


def test_the_report_and_a_second_adaptation(kept, adapted, tmp_path, monkeypatch):
    factor = adapted.recipe.data.scale
    text = Page((adapted.folder / "report.html").read_text()).text
    assert f"Images from there are scaled {factor:.4g} times first" in text and f"new: {factor:.4g} times" in text
    assert f"--scale {factor}" in text
    monkeypatch.setattr(adaptation, "STEPS", 5)
    monkeypatch.setattr(adapting, "SETTINGS", (adaptation.Setting("head", 1e-2, 1),))
    third = pile(tmp_path / "third", *drawn(20, 31, times=0.7))
    more = pile(tmp_path / "more", *drawn(12, 32, times=0.7))
    again = api.adapt(adapted, third, tmp_path / "again", scale=1.4, unlabeled=more, suggest=3, quiet=True)
    assert again.recipe.data.scales == {"home": 1.0, "new": factor, "third": 1.4} and again.recipe.data.scale == 1.4
    assert api.evaluate(again, quiet=True).n == 40
    assert len(pd.read_csv(again.folder / "suggested.csv")) == 3
    fourth = pile(tmp_path / "fourth", *drawn(20, 33))
    with pytest.raises(RequestError, match="have different scales, so one source cannot stand for all"):
        api.adapt(again, fourth, tmp_path / "never", home=kept / "home.npz", quiet=True)


def test_unlabeled_images_are_scaled_with_the_labeled(kept):
    from petriscope.experiments.unlabeled import load_unlabeled

    predictor = load_model(kept / "run")
    plain, scaled = (load_unlabeled(predictor, str(kept / "new"), (), True, scale).images for scale in (None, 0.7))
    assert (scaled.images == rescale(plain.images, np.full((40, 2), 0.7))).all() and scaled.digests() == plain.digests()


def test_members_of_an_ensemble_agree_in_scale(kept, tmp_path):
    api.train(recipe(kept / "home.npz", "training.epochs=1", scale=1.2), tmp_path / "other", quiet=True)
    with pytest.raises(RequestError, match=r"differ in data\.scale"):
        api.ensemble([kept / "run", tmp_path / "other"], out=tmp_path / "both", quiet=True)


def test_a_run_that_is_trained_at_a_scale_uses_it(kept, tmp_path):
    run = api.train(recipe(kept / "home.npz", "training.epochs=1", scale=1.2), tmp_path / "run", quiet=True)
    images = np.load(kept / "home.npz")["val_images"]
    wanted = load_model(run).predict(rescale(images, np.full((80, 2), 1.2))).probabilities
    own = run.predictions
    assert np.allclose(own[own["split"] == "val"]["p_large"], wanted[:, 0], atol=1e-6)
    assert np.allclose(api.predict(run, images, quiet=True)["p_large"], wanted[:, 0], atol=1e-6)
    assert api.evaluate(run, quiet=True).n == 40 and api.evaluate(run, kept / "home.npz", quiet=True).seen.left_out == 0
    assert "1.2 times" in Page((run.folder / "report.html").read_text()).text


# ----------------------------------------------------------------------------------------------------------- micrometers


def test_a_run_that_knows_its_field_of_view_takes_micrometers(kept, tmp_path, petriscope_said):
    home = pile(tmp_path / "home", *drawn(120, 40))
    run = api.train(recipe(home, "training.epochs=1", scale="0.5um"), tmp_path / "run", quiet=True)
    assert run.recipe.data.field == (10.0, 10.0) == load_model(run).recipe.data.field
    assert "field of view 10 × 10 µm" in Page((run.folder / "report.html").read_text()).text
    assert open_run(run.folder).recipe.data.scale == "0.5um"
    large = drawn(30, 41, sides=40)[0]  # the same field in twice as many pixels, and then half of that field
    pile(tmp_path / "new", large, np.arange(30) % 2)
    predictor = load_model(run)
    found = api.evaluate(run, tmp_path / "new", scale="0.25um", quiet=True).scale
    assert (found.scale, found.factor) == ("0.25um", 1.0)
    assert api.evaluate(run, tmp_path / "new", scale="0.125 µm", quiet=True).scale.factor == 0.5
    shrunk = np.stack(
        [np.asarray(Image.fromarray(each).resize((SIDE, SIDE), Image.Resampling.BILINEAR)) for each in large]
    )
    table = api.predict(run, large, scale="0.125um", quiet=True)
    wanted = predictor.predict(rescale(shrunk, np.full((30, 2), 0.5))).probabilities
    assert np.allclose(table["p_large"], wanted[:, 0], atol=1e-6) and set(table["assumed"]) == {"0.125um per pixel"}
    mixed = api.predict(run, [large[0], drawn(1, 42)[0][0], np.zeros((900, 900, 3), np.uint8)], quiet=True)
    assert mixed["error"][2].startswith("image-2: with 0.5 um per pixel, 1 image is not of the size")
    assert mixed["error"][:2].isna().all()
    status, out, _ = petriscope_said("evaluate", run.folder, "--data", tmp_path / "new", "--scale", "0.125um", "--json")
    assert status == 0 and json.loads(out)["scale"]["factor"] == 0.5
    status, _, err = petriscope_said("predict", kept / "run", tmp_path / "new", "--scale", "0.25um")
    assert status == 2 and "0.25 um per pixel needs a field of view" in err and len(err.strip().splitlines()) == 1
