"""Guarantees are withdrawn where images are not like those of val: from a trained run to what predict, evaluate and the report
say."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from petriscope import api, cli
from petriscope.core.errors import PetriscopeError, RequestError
from petriscope.core.files import locked
from petriscope.data.imageset import ImageSet
from petriscope.experiments import beside_val
from petriscope.inference import decoding as image_files
from petriscope.inference import likeness
from petriscope.inference.predictor import load_model
from petriscope.run.folder import open_run
from petriscope.trust.abstention import NOT_SURE, UNCLAIMED
from petriscope.trust.verdict import WITHDRAWN

LOUD = "GUARANTEES WITHDRAWN: these images are not like those the guarantees were fitted on:"


def blobs(n, seed, light=0):
    """Dark discs on a bright ground, large and small: two classes. ``light``: is taken from the ground."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    y, x = np.mgrid[:16, :16] - 7.5
    inside = (x**2 + y**2)[None] < (rng.normal(3, 0.2, n) + 3 * labels)[:, None, None] ** 2
    level = np.where(inside, rng.normal(90, 5, n)[:, None, None], rng.normal(215, 4, n)[:, None, None] - light)
    images = level[..., None] + rng.normal(0, 6, (n, 16, 16, 3))
    return images.clip(0, 255).astype(np.uint8), labels


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("withdrawn")


@pytest.fixture
def run(tiny_recipe, tmp_path, kept):
    """A run with 500 images of val, trained once for all tests."""
    if not (kept / "run").exists():
        arrays = {}
        for seed, (split, count) in enumerate((("train", 160), ("val", 500), ("test", 60))):
            images, labels = blobs(count, seed)
            arrays |= {f"{split}_images": images, f"{split}_labels": labels[:, None].astype(np.uint8)}
        np.savez(kept / "data.npz", **arrays)
        recipe = tiny_recipe(data={"source": str(kept / "data.npz")}, augment=["flip"], training={"epochs": 6})
        api.train(recipe, kept / "run", quiet=True)
    shutil.copytree(kept / "run", tmp_path / "run")
    return open_run(tmp_path / "run")


ASKED = {"max_error": 0.05, "set_coverage": 0.9}


def test_images_like_val_are_answered(run, capsys):
    table = api.predict(run, blobs(60, 7)[0], **ASKED)
    assert (table["answer"] != NOT_SURE).mean() > 0.9
    said = capsys.readouterr().err
    assert LOUD not in said and "answers need " in said


def test_other_images_are_not_answered_and_it_is_said_first(run, capsys):
    table = api.predict(run, blobs(60, 7, light=25)[0], **ASKED)
    assert (table["answer"] == NOT_SURE).all() and table["why"].str.startswith(WITHDRAWN).all()
    assert {frozenset(each.split("; ")) for each in table["set"]} == {frozenset("01")}
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(f"{LOUD} background color 1") and "standard deviations)" in said[0]
    assert "petriscope adapt RUN --data NEW" in said[2]
    assert not any("answers need " in line for line in said)


def test_sets_without_a_guarantee_have_no_class_that_does_not_occur(tiny_recipe, tmp_path, capsys):
    arrays = {}
    for seed, (split, count) in enumerate((("train", 90), ("val", 240), ("test", 30))):
        images, _ = blobs(count, seed)
        labels = np.arange(count) % 3
        arrays |= {f"{split}_images": images, f"{split}_labels": labels[:, None].astype(np.uint8)}
    np.savez(tmp_path / "three.npz", **arrays)
    recipe = tiny_recipe(data={"source": str(tmp_path / "three.npz")}, training={"epochs": 1})
    three = api.train(recipe, tmp_path / "three", quiet=True)
    table = api.predict(three, blobs(60, 7, light=60)[0], classes=["0", "2"], **ASKED, quiet=True)
    assert LOUD in capsys.readouterr().err
    assert {frozenset(each.split("; ")) for each in table["set"]} == {frozenset("02")}


def test_an_explicit_wish_answers_them_without_any_claim(run, capsys):
    table = api.predict(run, blobs(60, 7, light=12)[0], **ASKED, without_guarantee=True)
    answered = table["answer"] != NOT_SURE
    assert answered.mean() > 0.5 and (table.loc[answered, "why"] == UNCLAIMED).all()
    said = capsys.readouterr().err
    assert said.startswith(LOUD) and "nothing is claimed" in said and "are wrong, with probability" not in said


def test_quiet_calls_are_told_too(run, capsys):
    api.predict(run, blobs(60, 7, light=25)[0], **ASKED, quiet=True)
    assert LOUD in capsys.readouterr().err
    api.predict(run, blobs(5, 7, light=25)[0], **ASKED, quiet=True)
    assert capsys.readouterr().err == ""


def test_few_images_are_judged_one_by_one(run, capsys):
    table = api.predict(run, blobs(5, 7)[0], **ASKED)
    assert (table["answer"] != NOT_SURE).any()
    assert "was not tested: 5 images are too few; 20 are needed" in capsys.readouterr().err


def test_nothing_is_compared_where_nothing_is_guaranteed(run, monkeypatch):
    monkeypatch.setattr("petriscope.inference.answers.compare_files", None)
    assert len(api.predict(run, blobs(30, 7, light=25)[0], quiet=True)) == 30


def test_images_that_were_learned_are_not_compared(run, capsys):
    with np.load(run.recipe.data.source) as arrays:
        known = arrays["train_images"][:40]
    api.predict(run, known, **ASKED)
    assert "the model has learned from all of them" in capsys.readouterr().err
    api.predict(run, [*known, *blobs(60, 7, light=25)[0]], **ASKED)
    assert LOUD in capsys.readouterr().err


def test_copies_of_an_image_are_compared_once(run, capsys):
    fresh = blobs(24, 7)[0]
    many = np.concatenate([fresh, np.repeat(fresh[:1], 200, 0)])
    found = likeness.compare_files(load_model(run), api.as_files(many), quiet=True).test
    alone = likeness.compare_files(load_model(run), api.as_files(fresh), quiet=True).test
    assert (found.n, found.of, found.copies, found.p) == (24, 24, 200, alone.p)
    ids = np.array([str(i) for i in range(len(many))])
    images = ImageSet(many, np.zeros(len(many), np.int64), load_model(run).classes, ids)
    assert likeness.compare_images(load_model(run), images, quiet=True).test.copies == 200
    api.predict(run, np.repeat(fresh[:1], 200, 0), **ASKED)
    assert "was not tested: 1 image is too few" in capsys.readouterr().err
    api.predict(run, np.repeat(blobs(60, 7, light=25)[0], 2, 0), **ASKED)
    assert "compared: 60 images without 60 copies of them, with" in capsys.readouterr().err


def test_a_sample_of_many_files_is_compared_and_unreadable_ones_are_left_out(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(likeness, "MOST", 40)
    monkeypatch.setattr(likeness, "CHUNK", 16)
    for i, image in enumerate(blobs(70, 7, light=25)[0]):
        Image.fromarray(image).save(tmp_path / f"{i:02}.png")
        (tmp_path / f"{i:02}b.png").write_bytes(b"no image")
    paths = sorted(tmp_path.glob("*.png"))
    found = likeness.compare_files(load_model(run), paths, quiet=True)
    assert found.test.withdrawn and 20 <= found.test.n < 40 and found.test.of == 140
    assert found.shown.shape[1:] == (16, 16, 3) and 0 < len(found.shown) == len(found.classes) <= likeness.SHOWN


def test_the_command_line(run, tmp_path, capsys, monkeypatch):
    (tmp_path / "new").mkdir()
    for i, image in enumerate(blobs(30, 7, light=25)[0]):
        Image.fromarray(image).save(tmp_path / "new" / f"{i}.png")
    words = ["petriscope", "predict", str(run.folder), str(tmp_path / "new")]

    def call(*more: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", [*words, *more])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, capsys.readouterr().err

    out = tmp_path / "rows.csv"
    status, said = call("--max-error", "0.05", "--out", str(out))
    assert status == 0 and said.startswith(LOUD)
    assert (pd.read_csv(out)["answer"] == NOT_SURE).all()
    page = (tmp_path / "rows-shift.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 12 and "background color" in page and "rows-shift.html" in said
    status, said = call("--max-error", "0.05", "--without-guarantee", "--out", str(out))
    assert status == 0 and said.startswith(LOUD) and "as requested" in said
    status, said = call("--without-guarantee")
    assert status == 2 and "needs --max-error or --set-coverage" in said


def older(run) -> None:
    """Remove from a model file what images of val are like."""
    with safe_open(run.model, framework="pt") as handle:
        facts = json.loads(handle.metadata()["petriscope"])
        tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
    del facts["trust"]["likeness"]
    tensors = {key: value for key, value in tensors.items() if not key.startswith("trust/likeness/")}
    save_file(tensors, run.model, metadata={"petriscope": json.dumps(facts)})


def test_older_files_say_that_nothing_was_tested_and_calibrate_adds_it(run, capsys):
    older(run)
    table = api.predict(run, blobs(60, 7)[0], **ASKED)
    assert (table["answer"] != NOT_SURE).any()
    assert re.search(r"was not tested: .*older version.*petriscope calibrate RUN adds", capsys.readouterr().err)
    api.calibrate(run, quiet=True)
    api.predict(run, blobs(60, 7, light=25)[0], **ASKED)
    assert LOUD in capsys.readouterr().err


@pytest.mark.parametrize("name", ["points", "target", "appearance"])
def test_damaged_arrays_are_an_error(run, name):
    with safe_open(run.model, framework="pt") as handle:
        metadata, tensors = handle.metadata(), {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
    tensors[f"trust/likeness/{name}"] = tensors[f"trust/likeness/{name}"][:-1]
    save_file(tensors, run.model, metadata=metadata)
    with pytest.raises(RequestError, match="damaged"):
        load_model(run)


def test_calibrated_elsewhere_images_from_there_are_like_those_of_val(run, tmp_path, capsys):
    images, labels = blobs(400, 11, light=25)
    np.savez(tmp_path / "there.npz", val_images=images, val_labels=labels[:, None])
    _, model = api.recalibrate(run, str(tmp_path / "there.npz"), quiet=True)
    table = api.predict(model, blobs(60, 7, light=25)[0], **ASKED)
    assert LOUD not in capsys.readouterr().err and (table["answer"] != NOT_SURE).mean() > 0.5
    api.predict(model, blobs(60, 7)[0], **ASKED)
    assert LOUD in capsys.readouterr().err


@pytest.fixture
def there(tmp_path):
    """Labeled images of another microscope."""
    images, labels = blobs(80, 12, light=25)
    np.savez(tmp_path / "there.npz", test_images=images, test_labels=labels[:, None])
    return str(tmp_path / "there.npz")


def test_evaluate_says_first_that_guarantees_are_withdrawn(run, there, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["petriscope", "evaluate", str(run.folder), "--data", there])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err
    assert ended.value.code == 0 and said.startswith(LOUD)
    assert f"--data {there}" in said and "withdrawn; it would have been: " in said
    page = (run.folder / "shift-there.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 12 and f"petriscope adapt {run.folder} --data {there}" in page
    found = api.evaluate(run.model, there, quiet=True)
    assert found.shift.withdrawn and found.shift.n == 80 and found.selective is not None
    assert found.shift.differs[0].measure == "background color"
    tree = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert tree["shift"]["withdrawn"] is True and tree["shift"]["p"] < 0.01


def test_images_that_are_kept_although_they_were_learned_are_not_compared(run, tmp_path):
    with np.load(run.recipe.data.source) as arrays:
        known, labels = arrays["train_images"], arrays["train_labels"]
    images, others = blobs(40, 12, light=25)
    np.savez(tmp_path / "a.npz", test_images=[*known, *images], test_labels=[*labels, *others[:, None]])
    found = api.evaluate(run, str(tmp_path / "a.npz"), keep_seen=True, quiet=True)
    assert (found.n, found.shift.n, found.shift.of) == (200, 40, 40) and found.shift.withdrawn
    np.savez(tmp_path / "b.npz", test_images=known, test_labels=labels)
    found = api.evaluate(run, str(tmp_path / "b.npz"), keep_seen=True, quiet=True)
    assert found.n == 160 and found.shift.not_tested == "the model has learned from all of them"


def test_the_page_beside_a_run_is_written_under_its_lock(run, there, monkeypatch):
    held = []
    write = beside_val.write_page

    def watch(page, *rest):
        with pytest.raises(RequestError, match="busy"), locked(run.folder / ".lock", busy):
            pass
        held.append(page)
        write(page, *rest)

    def busy():
        raise RequestError("busy")

    monkeypatch.setattr(beside_val, "write_page", watch)
    api.evaluate(run, there, quiet=True)
    assert held == [run.folder / "shift-there.html"] and held[0].is_file()


def test_a_page_that_cannot_be_written_costs_no_metrics_and_no_predictions(run, there, tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise PetriscopeError("the folder is read-only")

    monkeypatch.setattr(beside_val, "write_page", refuse)
    assert api.evaluate(run, there, quiet=True).n == 80
    assert re.search(r"shift-there\.html, .* was not written: the folder is read-only", capsys.readouterr().err)
    assert len(api.predict(run, blobs(60, 7, light=25)[0], **ASKED, out=tmp_path / "rows.csv")) == 60
    assert re.search(r"rows-shift\.html, .* was not written", capsys.readouterr().err)


def test_the_page_of_predictions_shows_val_and_never_lies_beside_a_device(run, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(beside_val, "write_page", lambda *given: written.append(given))
    for out in (tmp_path / "rows.csv", Path("/dev/null")):
        api.predict(run, blobs(60, 7, light=25)[0], **ASKED, out=out, quiet=True)
    ((page, _, _, _, gallery, _, model, _, _),) = written
    assert page == tmp_path / "rows-shift.html" and "sample_val" in gallery and model == str(run.folder)


@pytest.mark.parametrize("room", [10**9, 10 * 16 * 16 * 3, 0])
def test_files_are_decoded_once_if_there_is_room(run, tmp_path, monkeypatch, capsys, room):
    paths = [tmp_path / f"{i:02}.png" for i in range(30)]
    for path, image in zip(paths, blobs(30, 7)[0], strict=True):
        Image.fromarray(image).save(path)
    Image.fromarray(np.zeros((9, 9, 4), np.uint8)).save(paths[3])
    (tmp_path / "30.png").write_bytes(b"no image")
    decode, asked = image_files.decode_as, []
    monkeypatch.setattr(image_files, "decode_as", lambda path, *rest: asked.append(path) or decode(path, *rest))
    monkeypatch.setattr(image_files, "KEPT_BYTES", room)
    files = [*paths, tmp_path / "30.png"]
    table = api.predict(run, files, **ASKED)
    kept = min(31, room // (16 * 16 * 3))
    assert len(asked) == 62 - kept and {*asked} == {*files}
    assert table["image"].tolist() == list(map(str, files)) and table["error"].notna().tolist() == [False] * 30 + [True]
    said = capsys.readouterr().err
    assert said.count("transparen") == 1, "what the files hold is said once"
    plain = api.predict(run, files, quiet=True)
    assert np.array_equal(table["confidence"][:30], plain["confidence"][:30])


def test_an_ensemble_which_cannot_be_adapted_is_calibrated(run, there, tmp_path, capsys):
    shutil.copytree(run.folder, tmp_path / "other")
    recipe = tmp_path / "other" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("seed: 0", "seed: 1"))
    made = api.ensemble([run.folder, tmp_path / "other"], "soft", tmp_path / "both", quiet=True)
    capsys.readouterr()
    assert api.evaluate(made, there, quiet=True).shift.withdrawn
    api.predict(made, blobs(60, 7, light=25)[0], **ASKED, quiet=True)
    page = (made.folder / "shift-there.html").read_text()
    for said in (capsys.readouterr().err, page):
        assert "petriscope calibrate" in said and "petriscope adapt" not in said


def test_a_test_split_like_val_keeps_its_guarantees_and_the_page_says_so(run):
    found = api.evaluate(run, quiet=True)
    assert not found.shift.withdrawn and found.shift.p > 0.01
    assert run.results.test.shift == found.shift
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert 'id="shift"' in page and "may be drawn like those of val" in page and "Guarantees are withdrawn" not in page
    assert run.results.val.shift is None
    assert api.evaluate(run, split="val", quiet=True).shift is None


def test_a_test_split_unlike_val_is_shown_beside_val(tiny_recipe, tmp_path):
    arrays = {}
    for seed, (split, count, light) in enumerate((("train", 160, 0), ("val", 300, 0), ("test", 60, 25))):
        images, labels = blobs(count, seed, light)
        arrays |= {f"{split}_images": images, f"{split}_labels": labels[:, None].astype(np.uint8)}
    np.savez(tmp_path / "data.npz", **arrays)
    run = api.train(tiny_recipe(data={"source": str(tmp_path / "data.npz")}), tmp_path / "run", quiet=True)
    assert api.evaluate(run, quiet=True).shift.withdrawn
    gallery = run.gallery
    assert gallery["shift_test"].shape == (6, 16, 16, 3) and gallery["sample_val"].shape == (12, 16, 16, 3)
    for sample in (True, False):
        if not sample:
            (run.folder / "gallery/val-sample.npz").unlink()
            api.report(run)
        page = (run.folder / "report.html").read_text(encoding="utf-8")
        assert page.count("Guarantees are withdrawn") == 2 and "background color" in page
        section = page[page.index('<section id="shift">') :].partition("</section>")[0]
        assert section.count("<img ") == (12 if sample else 6) and "petriscope adapt" in section
    api.evaluate(run, quiet=True)  # as for a run of an older version, which has no sample of val
    assert "sample_val" in run.gallery


def test_masks_are_not_compared(run, monkeypatch):
    monkeypatch.setattr("petriscope.tasks.classification.Classification.calibrates", False)
    assert api.evaluate(run, quiet=True).shift is None
