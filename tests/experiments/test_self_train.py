"""Adapting a run to images without labels: the run that comes out of it, and what is refused in a sentence."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from petriscope import api
from petriscope.core.errors import DataError, RequestError
from petriscope.inference.predictor import load_model
from petriscope.training import adaptation, self_training
from stripes import NAMES, drawn, pile, train_at_home


def shortened(patch):
    patch.setattr(adaptation, "STEPS", 6)
    patch.setattr(self_training, "SETTING", adaptation.Setting("all", 5e-3, 2))


def dimmed(count, seed, labels=None, contrast=0.5):
    """Images of the same stripes from elsewhere, with less contrast. The less there is, the fewer are told apart at first."""
    images, labels = drawn(count, seed, labels=labels)
    return (contrast * images + 200 * (1 - contrast)).astype(np.uint8), labels


def folder_of(path, images):
    path.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(path / f"{number:03}.png")
    return path


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    shortened(monkeypatch)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run, ``run``; its data, ``home.npz``; images from elsewhere without labels, ``more``, and with them, ``test.npz``."""
    folder = tmp_path_factory.mktemp("self-training")
    train_at_home(folder, epochs=3)
    folder_of(folder / "more", dimmed(120, 10)[0])
    images, labels = dimmed(150, 11)
    np.savez(folder / "test.npz", test_images=images, test_labels=labels)
    return folder


@pytest.fixture(scope="module")
def made(kept):
    with pytest.MonkeyPatch.context() as patch:
        shortened(patch)
        return api.adapt(kept / "run", unlabeled=kept / "more", out=kept / "made", quiet=True)


def test_the_network_is_better_there_and_the_run_says_what_changed(kept, made):
    found = made.results.self_training
    before, after = (api.evaluate(run, kept / "test.npz", quiet=True).value("accuracy") for run in (kept / "run", made))
    assert after > before + 0.2
    assert found.unlabeled == 120 == sum(found.before.values()) == sum(found.after.values())
    assert 0 < found.changed <= 1 and [each.share for each in found.rounds] == list(self_training.SHARES)
    assert found.rounds[0].images < found.rounds[-1].images < 120
    assert found.home_n == 90 and found.home_after.value == made.results.val.value("accuracy")
    assert found.shift.withdrawn and made.results.adaptation is None


def test_a_scale_has_to_be_given_again(kept, tmp_path, capsys):
    run = api.adapt(kept / "run", unlabeled=kept / "more", out=tmp_path / "made", scale=1.2)
    assert run.recipe.data.scale is None, "what is guaranteed is for images of the old place"
    said = "The run does not do that by itself: to predict images from there, give --scale 1.2."
    assert said in capsys.readouterr().err and said in (run.folder / "report.html").read_text()


def test_guarantees_are_for_images_of_the_old_place(kept, made):
    trust = load_model(made.model).trust
    assert len(trust.references["none"].target) == 90
    there = api.predict(made, np.load(kept / "test.npz")["test_images"], max_error=0.2, quiet=True)
    assert there["why"].str.contains("withdrawn").all()
    limits = api.evaluate(made, kept / "test.npz", quiet=True).ood
    assert limits is None or limits.share < 0.1, "images from there are in distribution"


def test_images_that_were_learned_from_are_known(kept, made, capsys):
    images, labels = dimmed(120, 10)
    np.savez(kept / "again.npz", test_images=images, test_labels=labels)
    with pytest.raises(DataError, match="the model learned from 120"):
        api.evaluate(made, kept / "again.npz", quiet=True)


def test_it_is_a_run_like_any_other(kept, made, tmp_path):
    text = (made.folder / "report.html").read_text()
    assert made.results.self_training.way == self_training.WAY and "of the way from those before" in text
    for words in (
        f"These are images of {made.results.self_training.base}, not of {kept / 'more'}, to which the run was adapted.",
        "was adapted to 120 images of",
        "nothing shows whether predictions there are better",
        "On the 90 val images of",
        "images at the new place predicted as",
        f"petriscope adapt {made.results.self_training.base} --unlabeled {kept / 'more'} --seed 0",
    ):
        assert words in text, words
    assert api.evaluate(made, quiet=True).n == 60
    again = api.adapt(kept / "run", unlabeled=kept / "more", out=tmp_path / "made", quiet=True)
    one, other = (load_file(run.model) for run in (made, again))
    assert one.keys() == other.keys() and all(one[key].tobytes() == other[key].tobytes() for key in one)
    labeled = tmp_path / "labeled"
    for number, (image, label) in enumerate(zip(*dimmed(20, 30), strict=True)):
        (labeled / NAMES[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(labeled / NAMES[label] / f"{number}.png")
    with pytest.raises(DataError, match=r"it learned from images of .*more without labels: adapt .*run$"):
        pile(tmp_path / "known", *dimmed(120, 10))
        api.adapt(made, tmp_path / "known", tmp_path / "never", quiet=True)
    twice = api.adapt(made, labeled, tmp_path / "twice", quiet=True)
    assert twice.results.adaptation.labeled == 20 and twice.results.self_training is None


def test_classes_that_are_lost_are_named(kept, tmp_path, capsys):
    more = folder_of(tmp_path / "more", dimmed(60, 60, contrast=0.3)[0])
    found = api.adapt(kept / "run", unlabeled=more, out=tmp_path / "made").results.self_training
    lost = [name for name in NAMES if not found.after[name]]
    assert lost and f"No image is predicted as {', '.join(lost)}. Either there is none" in capsys.readouterr().err


def test_classes_that_do_not_occur_are_not_learned(kept, tmp_path):
    images, _ = dimmed(80, 40, labels=[0, 2] * 40)
    run = api.adapt(
        kept / "run",
        unlabeled=folder_of(tmp_path / "two", images),
        out=tmp_path / "made",
        classes="left,right",
        suggest=5,
        quiet=True,
    )
    found = run.results.self_training
    assert found.before["middle"] == found.after["middle"] == 0 and found.prior.classes == ["left", "right"]
    assert found.suggested == 5 and len((run.folder / "suggested.csv").read_text().splitlines()) == 6
    assert "--classes left --classes right --suggest 5" in (run.folder / "report.html").read_text()


def test_what_cannot_be_adapted_is_refused_and_leaves_nothing(kept, tmp_path):
    few = folder_of(tmp_path / "few", dimmed(49, 50)[0])
    for more, error, words in (
        ({}, RequestError, "name labeled ones with --data, or others with --unlabeled"),
        ({"unlabeled": few}, DataError, "has 49 new images without labels, too few to learn from"),
        ({"unlabeled": kept / "home.npz"}, DataError, "is new and readable"),
        ({"unlabeled": tmp_path / "nowhere"}, RequestError, "no data source"),
    ):
        with pytest.raises(error, match=words):
            api.adapt(kept / "run", out=tmp_path / "made", quiet=True, **more)
    assert not (tmp_path / "made").exists()


def test_options_for_labeled_images_are_said_to_have_no_effect(kept, tmp_path, capsys):
    api.adapt(kept / "run", unlabeled=kept / "more", out=tmp_path / "made", minutes=3, quiet=True)
    assert "have no effect without --data" in capsys.readouterr().err


def test_the_command(kept, tmp_path, monkeypatch, capsys):
    from petriscope import cli

    monkeypatch.setattr(cli, "_settle_process", lambda: None)
    monkeypatch.chdir(tmp_path)
    words = ["petriscope", "adapt", str(kept / "run"), "--unlabelled", str(kept / "more"), "--out", "made"]
    for more in ([], ["--json"]):
        monkeypatch.setattr("sys.argv", [*words[:-1], f"made{len(more)}", *more])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert not left.value.code
        said = capsys.readouterr()
        if more:
            assert json.loads(said.out)["unlabeled"] == 120
        else:
            assert "images of" in said.err and "label 50 or 100 of them" in said.err and "--classes" in said.err
