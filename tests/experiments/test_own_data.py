"""Images that a model has seen are recognized wherever they lie; the data of a run keep their splits when they move or grow."""

import shutil

import numpy as np
import pytest
from PIL import Image

from petriscope import api
from petriscope.core.errors import DataError, RequestError
from petriscope.core.recipe import load_recipe
from petriscope.data import load_dataset
from petriscope.data.aligned import load_aligned
from petriscope.experiments.own_data import section_elsewhere
from petriscope.inference.predictor import load_model
from petriscope.run.folder import open_run
from petriscope.tasks import find_task

EACH = 20  # images of each of two classes: 28 train, 6 val, 6 test


def noise(count, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def pile(folder, seed=0, each=EACH):
    for number, pixels in enumerate(noise(2 * each, seed)):
        save(folder / "ab"[number % 2] / f"{number:02d}.png", pixels)
    return folder


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def recipe(source, **more):
    tree = {
        "name": "noise",
        "data": {"source": str(source), **more},
        "augment": [],
        "model": {"name": "simple-cnn", "norm": "batch", "widths": [4, 8, 8], "hidden": 8},
        "training": {"epochs": 1, "batch_size": 16, "precision": "fp32", "device": "cpu", "ema": None},
        "evaluation": {"bootstrap": 100, "stress": "off"},
    }
    return load_recipe("demo", (), **tree)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    api.train(recipe(pile(folder / "pile")), folder / "run", quiet=True)
    return folder


@pytest.fixture
def run(kept, tmp_path, monkeypatch):
    """A trained run and its data, in a folder of the test's own, as ``run`` and ``pile``."""
    monkeypatch.setenv("PETRISCOPE_CACHE", str(tmp_path / "cache"))
    shutil.copytree(kept / "run", tmp_path / "run")
    shutil.copytree(kept / "pile", tmp_path / "pile")
    settings = tmp_path / "run" / "recipe.yaml"
    settings.write_text(settings.read_text().replace(str(kept / "pile"), str(tmp_path / "pile")))
    return open_run(tmp_path / "run")


def files(run, split):
    known = run.membership
    return [run.folder.parent / "pile" / name for name in known.ids[known.splits == split]]


def numbers(evaluation):
    return evaluation.n, evaluation.value("accuracy"), evaluation.value("nll")


def test_the_run_knows_the_split_of_every_image(run):
    known, data = run.membership, load_dataset(run.recipe.data)
    for name, part in data.splits.items():
        assert known.ids[known.splits == name].tolist() == part.ids.tolist()
    assert load_model(run.model).exposure == known.exposure == data.exposure
    assert {len(data.exposure.train), len(data.exposure.val)} == {28, 6}


def test_the_own_data_in_another_place_are_the_own_data(run, tmp_path, capsys):
    own = api.evaluate(run, quiet=True)
    shutil.move(tmp_path / "pile", tmp_path / "moved")
    with pytest.raises(RequestError, match=r"no data source(.|\n)*--data"):
        api.evaluate(run, quiet=True)
    (run.folder / "results.json").rename(tmp_path / "results.json")
    assert numbers(api.evaluate(run, tmp_path / "moved", quiet=True)) == numbers(own)
    assert numbers(run.results.test) == numbers(own), "saved in the run, as without --data"
    assert api.evaluate(run, tmp_path / "moved", "val").n == 6
    assert "no evidence" in capsys.readouterr().err
    fitted, _ = api.recalibrate(run, str(tmp_path / "moved"), tmp_path / "new.safetensors", quiet=True)
    assert fitted.n == 6
    with pytest.raises(DataError, match="learned from 28"):
        api.recalibrate(run, str(tmp_path / "moved"), tmp_path / "x.safetensors", "train", quiet=True)


@pytest.mark.parametrize("form", ["copied", "renamed", "resaved", "npz"])
def test_seen_images_are_left_out_whatever_their_form(run, form, tmp_path, capsys):
    paths = [*files(run, "train")[:10], *files(run, "val")[:3], *files(run, "test")[:4]]
    for number, path in enumerate(paths):
        target = tmp_path / "some" / path.parent.name / (path.name if form == "copied" else f"x{number}.png")
        if form == "resaved":
            save(target.with_suffix(".bmp"), np.asarray(Image.open(path)))
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    source = tmp_path / "some"
    if form == "npz":
        images, labels = np.stack([Image.open(p) for p in paths]), [p.parent.name == "b" for p in paths]
        source = tmp_path / "some.npz"
        np.savez(source, test_images=images, test_labels=np.array(labels, dtype=int))
    before = run.results
    left = api.evaluate(run, source, quiet=True)
    assert (left.n, left.seen.train, left.seen.val, left.seen.left_out) == (4, 10, 3, 13)
    assert left.as_json()["seen"] == {"train": 10, "val": 3, "left_out": 13}
    said = capsys.readouterr().err
    assert "learned from 10" in said and "fitted on 3" in said and "--keep-seen" in said
    assert api.evaluate(run, source, quiet=True, keep_seen=True).n == 17
    assert api.evaluate(run.model, source, quiet=True).n == 4, "the model file knows it too"
    fitted, model = api.recalibrate(run, str(source), tmp_path / "m.safetensors", "test", quiet=True)
    assert fitted.n == 7 and fitted.seen.left_out == 10
    with pytest.raises(DataError, match=r"learned from 10 and was fitted on 7"):
        api.evaluate(model, source, quiet=True)
    assert run.results == before


def test_new_images_are_just_evaluated(run, tmp_path, capsys):
    found = api.evaluate(run, pile(tmp_path / "new", seed=1, each=4), quiet=True)
    assert found.n == 8 and found.seen.left_out == 0
    assert not capsys.readouterr().err


def test_copies_are_no_further_evidence(run, tmp_path, capsys):
    new = pile(tmp_path / "new", seed=1, each=4)
    for copy in ("x", "y"):
        shutil.copy(new / "a" / "00.png", new / "a" / f"{copy}.png")
    assert api.evaluate(run, new, quiet=True).n == 10
    assert "of 10 images of " in (said := capsys.readouterr().err) and "2 are exact copies of others" in said
    assert "the first: a/x.png" in said and "intervals are too narrow" in said
    evaluation, _ = api.recalibrate(run, new, tmp_path / "fitted.safetensors", quiet=True)
    assert evaluation.n == 8 and "they are left out" in capsys.readouterr().err


def test_copies_of_training_images_in_test_are_no_evidence(tmp_path, capsys):
    images, labels = noise(60, 2), np.arange(60) % 2
    images[50:55] = images[:5]
    cuts = {"train": slice(0, 40), "val": slice(40, 50), "test": slice(50, 60)}
    arrays = {f"{name}_images": images[cut] for name, cut in cuts.items()}
    np.savez(tmp_path / "a.npz", **arrays, **{f"{name}_labels": labels[cut] for name, cut in cuts.items()})
    run = api.train(recipe(tmp_path / "a.npz"), tmp_path / "run", quiet=True)
    assert api.evaluate(run, quiet=True).n == 5
    assert "learned from 5" in capsys.readouterr().err
    assert set(run.predictions.query("split == 'test'")["id"]) == {f"test/{index}" for index in range(5, 10)}
    assert "5 test images are left out" in (run.folder / "report.html").read_text()
    assert api.evaluate(run, quiet=True, keep_seen=True).n == 10
    assert "metrics on test are too optimistic" in (run.folder / "report.html").read_text()


def test_runs_are_compared_on_the_images_that_none_of_them_has_seen(tmp_path, capsys):
    images, labels = noise(60, 2), np.arange(60) % 2
    images[50:53] = images[:3]
    cuts = {"train": slice(0, 40), "val": slice(40, 50), "test": slice(50, 60)}
    arrays = {f"{name}_images": images[cut] for name, cut in cuts.items()}
    np.savez(tmp_path / "a.npz", **arrays, **{f"{name}_labels": labels[cut] for name, cut in cuts.items()})
    first = api.train(recipe(tmp_path / "a.npz"), tmp_path / "first", quiet=True)
    second = open_run(shutil.copytree(first.folder, tmp_path / "second"))
    settings = second.folder / "recipe.yaml"
    settings.write_text(settings.read_text().replace("seed: 0", "seed: 1", 1))
    runs = [first, second]
    for run, keep in zip(runs, (False, True), strict=True):
        assert api.evaluate(run, quiet=True, keep_seen=keep).n == 7 + 3 * keep
    found = api.compare(runs, "test")
    assert found.n == 7 and any("has seen" in note for note in found.notes)
    table = runs[0].predictions
    table.query("split != 'test' or id != 'test/9'").to_parquet(runs[0].folder / "predictions.parquet")
    with pytest.raises(RequestError, match="other test images"):
        api.compare(runs, "test")


@pytest.mark.parametrize("way", ["teacher", "weights"])
def test_what_a_model_began_with_has_been_seen_too(way, run, tmp_path):
    test = pile(tmp_path / "next", seed=8, each=6)
    for path in files(run, "train"):
        if path.stem < "04":
            shutil.copy(path, test / path.parent.name / f"x{path.name}")
    for path in list(test.rglob("*.png")):
        target = tmp_path / "split" / ("test" if path.stem.startswith("x") else "train") / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    save(tmp_path / "split" / "test" / "a" / "new.png", noise(1, 9)[0])
    more = {"distill": {"teachers": [str(run.folder)]}} if way == "teacher" else {}
    settings = recipe(tmp_path / "split", val_fraction=0.0)
    tree = settings.model_dump(mode="json") | more
    if way == "weights":
        tree["model"] = {"name": "autoencoder", "widths": [4, 8], "hidden": 8}
        own = run.recipe.model_dump(mode="json") | {"model": tree["model"]}
        first = api.train(load_recipe("demo", (), **own), tmp_path / "first", quiet=True)
        tree["model"] = {**tree["model"], "weights": str(first.model)}
    second = api.train(load_recipe("demo", (), **tree), tmp_path / "second", quiet=True)
    found = api.evaluate(second, quiet=True)
    assert found.n == 1 and found.seen.train > 0


def test_a_grown_source_keeps_its_splits(run, tmp_path, capsys):
    own = api.evaluate(run, quiet=True)
    for number, pixels in enumerate(noise(4, 3)):
        save(tmp_path / "pile" / "ab"[number % 2] / f"0{number}a.png", pixels)
    assert numbers(api.evaluate(run, quiet=True)) == numbers(own)
    said = capsys.readouterr().err
    assert "4 images are new (the first: a/00a.png)" in said and "6 images that were test" in said
    assert api.evaluate(run, tmp_path / "pile", quiet=True).n == 6 + 4, "what the model has not seen"
    before = load_model(run.model)
    assert api.calibrate(run, quiet=True).n == 6
    after = load_model(run.model)
    assert after.exposure == before.exposure
    assert after.trust.temperature("none", "none") == before.trust.temperature("none", "none"), "the same val images"


def test_missing_and_changed_test_images_are_said(run, tmp_path, capsys):
    one, other, *rest = files(run, "test")
    one.unlink()
    save(other, noise(1, 4)[0])
    assert api.evaluate(run, quiet=True).n == 4
    said = capsys.readouterr().err
    assert f"1 image has changed ({other.parent.name}/{other.name})" in said and "1 image is gone" in said
    for path in rest:
        path.unlink()
    with pytest.raises(DataError, match="None of its 6 test images is left"):
        api.evaluate(run, quiet=True)
    with pytest.raises(DataError, match=r"have changed since.*images are gone"):
        api.calibrate(run, quiet=True)


def test_a_training_goes_on_with_moved_and_grown_data(run, tmp_path):
    whole = {path.name: path.read_bytes() for path in [run.folder / "metrics.jsonl"]}
    for name in ("results.json", "model.safetensors"):
        (run.folder / name).unlink()
    shutil.rmtree(run.folder / "checkpoint", ignore_errors=True)
    shutil.move(tmp_path / "pile", tmp_path / "moved")
    save(tmp_path / "moved" / "b" / "000.png", noise(1, 5)[0])
    api.resume(run, quiet=True, data=tmp_path / "moved")
    assert run.finished and run.results.val.n == 6
    assert b'"epoch": 1' in whole["metrics.jsonl"]
    next((tmp_path / "moved").rglob("3*.png")).unlink()
    (run.folder / "results.json").unlink()
    with pytest.raises(DataError, match="1 image is gone"):
        api.resume(run, quiet=True, data=tmp_path / "moved")


def without_record(run):
    """As an older version would have left the run."""
    (run.folder / "splits.parquet").unlink()
    predictor = load_model(run.model)
    predictor.exposure = None
    from petriscope.inference.predictor import save_trust

    save_trust(run.model, predictor)


def test_an_older_run_gets_its_record_from_data_that_have_not_changed(run, tmp_path):
    known = run.membership
    without_record(run)
    assert api.evaluate(run, pile(tmp_path / "other", seed=6, each=2), quiet=True).seen.left_out == 0
    api.evaluate(run, quiet=True)
    assert run.membership.ids.tolist() == known.ids.tolist() and run.membership.digests == known.digests


def test_an_older_run_with_changed_data_says_what_cannot_be_checked(run, tmp_path, capsys):
    without_record(run)
    new = pile(tmp_path / "other", seed=6, each=2)
    save(tmp_path / "pile" / "a" / "new.png", noise(1, 7)[0])
    found = api.evaluate(run, new, quiet=True)
    assert found.n == 4 and found.seen is None and found.as_json()["seen"] is None
    assert "cannot be checked" in capsys.readouterr().err
    with pytest.raises(DataError, match="no record of its splits"):
        api.evaluate(run, quiet=True)
    assert api.evaluate(run.model, new, quiet=True).seen is None


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_colors_that_a_gray_model_does_not_see_are_said(kind, asked, tmp_path):
    """A model of gray images turns those in color into gray; nobody asked for that, unless the recipe did."""
    pixels = noise(6, 5)
    pixels[3:] = pixels[3:, ..., :1]
    if kind == "folder":
        for number, image in enumerate(pixels):
            save(tmp_path / "new" / "ab"[number % 2] / f"{number}.png", image)
        source, first = tmp_path / "new", "a/0.png"
    else:
        source, first = tmp_path / "new.npz", "val/0"
        np.savez(source, val_images=pixels, val_labels=np.arange(6) % 2)
    section = recipe(tmp_path, channels="gray" if asked else "auto").data
    for _ in range(2):  # the second time, images come from the cache
        elsewhere = section_elsewhere(section, str(source), (8, 8, 1))
        _, warnings = load_aligned(elsewhere, "val", ("a", "b"), find_task("classification"))
        said = [text for text in warnings if "have colors" in text]
        expected = f"3 images have colors, which are turned into gray, such as {first}"
        assert said == ([] if asked else [expected])
