"""Adapting a run to another place: the run that comes out of it, and what is refused in a sentence."""

from __future__ import annotations

import io
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from pages import Page
from petriscope import api
from petriscope.core.errors import DataError, Interrupted, RequestError
from petriscope.data.decisions import load_decisions, write_decisions
from petriscope.data.index import row_digests
from petriscope.experiments import adapt as module
from petriscope.experiments import unlabeled
from petriscope.inference.predictor import load_model
from petriscope.run.folder import open_run
from petriscope.training import adaptation
from petriscope.training.loop import Trainer
from stripes import NAMES, SIDE, drawn, pile, recipe, train_at_home


def shortened(patch):
    patch.setattr(adaptation, "STEPS", 5)
    patch.setattr(module, "SETTINGS", (adaptation.Setting("all", 1e-2, 3), adaptation.Setting("head", 1e-2, 1)))


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    shortened(monkeypatch)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run, ``run``; its data, ``home.npz``; images from elsewhere, ``new`` to learn from and ``test.npz``."""
    folder = tmp_path_factory.mktemp("adapting")
    train_at_home(folder)
    pile(folder / "new", *drawn(45, 10, elsewhere=True))
    images, labels = drawn(150, 11, elsewhere=True)
    np.savez(folder / "test.npz", test_images=images, test_labels=labels)
    return folder


@pytest.fixture(scope="module")
def made(kept):
    with pytest.MonkeyPatch.context() as patch:
        shortened(patch)
        return api.adapt(kept / "run", kept / "new", kept / "made", quiet=True)


def test_an_adapted_run_is_better_there_and_says_so(kept, made):
    found = made.results.adaptation
    assert (found.labeled, found.held_out, found.folds, found.domain) == (45, 45, 5, "new")
    before, after = found.before.value("accuracy"), found.after.value("accuracy")
    assert after > before + 0.2 and found.after.n == 45
    assert len(found.tried) == 7 and found.setting == found.tried[0].setting
    others = [each.nll for each in found.tried[1:]]
    assert others == sorted(others)
    assert found.tried[0].accuracy == pytest.approx(after)
    assert api.evaluate(kept / "run", kept / "test.npz", quiet=True).value("accuracy") < 0.5
    assert api.evaluate(made, kept / "test.npz", quiet=True).value("accuracy") > before + 0.2
    assert found.home_n == 90 and found.home_before.value > 0.9
    assert found.home_after.value == made.results.val.value("accuracy")


def test_thresholds_are_from_predictions_that_were_held_out(made):
    reference = load_model(made.model).trust.references["none"]
    found = made.results.adaptation
    assert len(reference.target) == 45 and found.after.selective is not None
    assert float(reference.right.mean()) == pytest.approx(found.after.value("accuracy"))
    seen = load_model(made.model).predict(drawn(45, 10, elsewhere=True)[0]).raw
    assert not np.allclose(np.sort(seen.max(1)), np.sort(reference.raw.max(1)), atol=1e-3), (
        "they are of the last network"
    )
    row = next(row for row in found.after.selective if row.max_error == 0.1)
    threshold = reference.threshold(0.1)
    assert row.guaranteed == (threshold is not None)


def test_guarantees_stay_where_the_run_was_adapted_to(kept, made, tmp_path):
    likeness = load_model(made.model).trust.likeness
    assert len(likeness.target) == 45 and not likeness.traits.ood.any() and not likeness.traits.uncertainty.any()
    assert likeness.center.shape == (6,), "the appearance is compared, and nothing that the network learned"
    there = api.evaluate(made, kept / "test.npz", quiet=True).shift
    assert there.not_tested is None and not there.withdrawn
    assert there.p == there.p_appearance and there.p_features is there.p_uncertainty is None
    at_home = api.predict(made, drawn(90, 12)[0], max_error=0.9, quiet=True)
    assert at_home["why"].str.contains("withdrawn").all()
    predicted = api.predict(made, drawn(90, 12, elsewhere=True)[0], max_error=0.9, quiet=True)
    assert not predicted["why"].fillna("").str.contains("withdrawn").any()


def test_it_is_a_run_like_any_other(kept, made, tmp_path):
    folder = shutil.copytree(made.folder, tmp_path / "made")
    assert {path.name for path in folder.iterdir()} == {
        *("recipe.yaml", "environment.json", "splits.parquet", "metrics.jsonl", "model.safetensors", "results.json"),
        *("predictions.parquet", "gallery", "report.html"),
    }
    run = open_run(folder)
    assert run.finished and {split: part.images for split, part in run.environment.data.splits.items()} == {
        "train": 195,
        "val": 90,
        "test": 60,
    }
    assert run.environment.data.domains["new"] == {"train": 45}
    assert api.evaluate(folder, quiet=True).n == 60
    assert api.compare([kept / "run", folder], "val").rows
    predicted = api.predict(folder, kept / "new", max_error=0.2, set_coverage=0.9, quiet=True)
    assert len(predicted) == 45 and {"answer", "set"} <= set(predicted.columns)
    api.report(folder)
    again = api.recalibrate(folder, kept / "test.npz", tmp_path / "other.safetensors", split="test", quiet=True)
    assert again[0].n == 150
    with pytest.raises(RequestError, match=r"is adapted to .*new: its thresholds .* calibrate .* --data SOURCE"):
        api.calibrate(folder, quiet=True)
    assert api.resume(folder, quiet=True).folder == folder


def test_the_page_says_what_adapting_changed(made):
    text = Page((made.folder / "report.html").read_text()).text
    found = made.results.adaptation
    assert f"{100 * found.after.value('accuracy'):.2f} % of 45 held-out new images" in text
    for words in (
        "was adapted to 45 labeled images of",
        "45 images that were held out, by 5-fold cross-validation",
        "Guaranteed error rates at the new place",
        "are slightly optimistic",
        "On the 90 val images of",
        "What was tried, the best first",
        "The thresholds were fitted on the held-out images of new",
        "the network as it is",
        "The classes at the new place: recall before and after",
        "The 60 test images of",
    ):
        assert words in text, words
    assert "fitted on val" not in text and "val images are too few" not in text
    assert f"petriscope adapt {found.base} --data {found.source} --minutes 10 --seed 0" in text
    part = text.partition("The classes at the new place: recall before and after")[2].partition("What was tried")[0]
    for name, row in found.after.per_class.items():
        assert name in part and f"{100 * row.value('recall'):.2f} %" in part


def test_the_same_seed_gives_the_same_bytes(kept, made, tmp_path):
    again = api.adapt(kept / "run", kept / "new", tmp_path / "made", quiet=True)
    one, other = (load_file(run.model) for run in (made, again))  # weights, and what was fitted on held-out images
    assert one.keys() == other.keys() and all(one[key].tobytes() == other[key].tobytes() for key in one)
    assert again.results.adaptation.tried == made.results.adaptation.tried
    other = api.adapt(kept / "run", kept / "new", tmp_path / "other", seed=1, quiet=True)
    assert other.results.adaptation.tried != made.results.adaptation.tried


def test_an_adapted_run_is_adapted_again(kept, made, tmp_path):
    images, labels = drawn(30, 20)
    pile(tmp_path / "new", images // 2, labels)  # a third place, of the same name
    run = api.adapt(made, tmp_path / "new", tmp_path / "again", quiet=True)
    assert run.environment.data.domains == {
        "home": {"train": 150, "val": 90, "test": 60},
        "new": {"train": 45},
        "new-2": {"train": 30},
    }
    assert run.results.adaptation.domain == "new-2"
    assert api.evaluate(run, quiet=True).n == 60
    weights = {name: each.weight for name, each in run.recipe.data.sources.items()}
    assert 30 * weights["new-2"] == pytest.approx(150 * weights["home"] + 45 * weights["new"])


def test_only_one_split_of_a_source_is_used(kept, tmp_path, capsys):
    arrays = {}
    for seed, split in ((30, "train"), (31, "test")):
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = drawn(30, seed, elsewhere=True)
    np.savez(tmp_path / "both.npz", **arrays)
    run = api.adapt(kept / "run", tmp_path / "both.npz", tmp_path / "made", split="test", quiet=True)
    assert run.recipe.data.sources["both"].split == "test"
    capsys.readouterr()
    api.evaluate(run, quiet=True)
    assert "changed" not in capsys.readouterr().err
    assert api.evaluate(run, tmp_path / "both.npz", split="train", quiet=True).n == 30
    with pytest.raises(DataError, match="learned from 30"):
        api.evaluate(run, tmp_path / "both.npz", split="test", quiet=True)


def test_a_run_of_several_sources_of_which_one_is_left_out(kept, tmp_path, capsys):
    for name, seed, count in (("a", 130, 90), ("b", 131, 30)):
        pile(tmp_path / name, *drawn(count, seed))
    sources = {name: str(tmp_path / name) for name in ("a", "b")}
    section = {"sources": sources, "source": None, "leave_out": "b"}
    api.train(recipe(None, data=section, training={"epochs": 1, "device": "cpu"}), tmp_path / "run", quiet=True)
    run = api.adapt(tmp_path / "run", kept / "new", tmp_path / "made", quiet=True)
    assert run.environment.data.domains["b"] == {"test": 30} and run.environment.data.domains["new"] == {"train": 45}
    capsys.readouterr()
    assert api.evaluate(run, quiet=True).n == 30
    assert "changed" not in capsys.readouterr().err
    assert api.compare([tmp_path / "run", run], "val").rows
    pile(tmp_path / "third", *drawn(30, 132, elsewhere=True))
    again = api.adapt(run, tmp_path / "third", tmp_path / "again", quiet=True)
    assert api.evaluate(again, quiet=True).n == 30
    shutil.move(tmp_path / "a", tmp_path / "moved")
    with pytest.raises(RequestError, match="name their place with --home"):
        api.adapt(tmp_path / "run", kept / "new", tmp_path / "never", quiet=True)
    moved = api.adapt(tmp_path / "run", kept / "new", tmp_path / "2", home=f"a={tmp_path / 'moved'}", quiet=True)
    assert api.evaluate(moved, quiet=True).n == 30


def test_a_run_without_val(kept, tmp_path):
    pile(tmp_path / "a", *drawn(60, 140))
    section = {"source": str(tmp_path / "a"), "val_fraction": 0}
    api.train(recipe(None, data=section, training={"epochs": 1, "device": "cpu"}), tmp_path / "run", quiet=True)
    run = api.adapt(tmp_path / "run", kept / "new", tmp_path / "made", quiet=True)
    assert run.results.adaptation.home_after is None and run.results.val is None
    assert "has no val split, so what the adaptation costs" in (run.folder / "report.html").read_text()
    assert api.evaluate(run, quiet=True).n == 9


def test_labels_of_an_audit_are_rehearsed(kept, tmp_path, capsys):
    found = load_decisions(api.audit(kept / "home.npz", tmp_path / "audit", labels=False, features=None, quiet=True)[1])
    with np.load(kept / "home.npz") as arrays:
        digests = [row.tobytes().hex() for row in row_digests(arrays["train_images"][:2])]
    entries = [
        {"id": "train/0", "decision": "drop", "label": None, "reason": "x", "digest": digests[0]},
        {"id": "train/1", "decision": "relabel", "label": "right", "reason": "x", "digest": digests[1]},
    ]
    tree = {**found.model_dump(), "decisions": entries}
    write_decisions(tmp_path / "audit" / "decisions.yaml", type(found).model_validate(tree))
    asked = recipe(kept / "home.npz", training={"epochs": 1, "device": "cpu"})
    asked = asked.model_copy(update={"data": asked.data.model_copy(update={"audit": str(tmp_path / "audit")})})
    api.train(asked, tmp_path / "run", quiet=True)
    run = api.adapt(tmp_path / "run", kept / "new", tmp_path / "made", quiet=True)
    assert "relabel 1 images of" in capsys.readouterr().err
    assert run.environment.data.domains["home"]["train"] == 149
    known = run.membership
    assert known.targets[known.ids == "train/1"].tolist() == ["right"]
    assert api.evaluate(run, quiet=True).n == 60


def test_a_table_with_groups(kept, tmp_path):
    images, labels = drawn(48, 40, elsewhere=True)
    (tmp_path / "files").mkdir()
    rows = []
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        Image.fromarray(image).resize((20, 20)).save(tmp_path / "files" / f"{number}.png")
        rows.append({"image": f"files/{number}.png", "label": NAMES[label], "group": f"slide {number // 4}"})
    pd.DataFrame(rows).to_csv(tmp_path / "table.csv", index=False)
    run = api.adapt(kept / "run", tmp_path / "table.csv", tmp_path / "made", quiet=True)
    found = run.results.adaptation
    assert found.after.groups == 12 and found.labeled == 48
    assert load_model(run.model).trust.references["none"].groups == 12
    assert api.evaluate(run, quiet=True).n == 60


# ------------------------------------------------------------------------------------------------------------- what is said


def test_classes_that_cannot_be_judged_are_named(kept, tmp_path, capsys):
    images, labels = drawn(0, 50, elsewhere=True, labels=[0] * 12 + [1])
    pile(tmp_path / "new", images, labels)
    run = api.adapt(kept / "run", tmp_path / "new", tmp_path / "made", classes="left,middle", quiet=True)
    said = capsys.readouterr().err
    assert (
        "has too few images of middle to hold one out; the model learns from them, but nothing says how well it does on others"
        in said
    )
    assert "has no image of" not in said, "right does not occur there"
    found = run.results.adaptation
    assert (found.labeled, found.held_out) == (13, 12) and found.prior.classes == ["left", "middle"]
    assert "--classes left --classes middle" in (run.folder / "report.html").read_text()
    assert found.after.per_class["left"].n == 12
    api.adapt(kept / "run", tmp_path / "new", tmp_path / "other", quiet=True)
    assert "has no image of right; nothing says how well" in capsys.readouterr().err


def test_images_of_the_run_are_left_out(kept, tmp_path, capsys):
    with np.load(kept / "home.npz") as arrays:
        own = {
            split: (arrays[f"{split}_images"][:4], arrays[f"{split}_labels"][:4]) for split in ("train", "val", "test")
        }
    images, labels = drawn(30, 60, elsewhere=True)
    mixed = [np.concatenate([*(part[at] for part in own.values()), (images, labels)[at]]) for at in (0, 1)]
    pile(tmp_path / "new", *mixed)
    run = api.adapt(kept / "run", tmp_path / "new", tmp_path / "made", quiet=True)
    said = capsys.readouterr().err
    assert "12 are images of" in said and "(train 4, val 4, test 4; the first: " in said and "they are left out" in said
    assert run.results.adaptation.labeled == 30
    with pytest.raises(DataError, match=r"give images from another place"):
        api.adapt(kept / "run", kept / "home.npz", tmp_path / "never", quiet=True)


def test_an_image_counts_once_and_not_at_all_under_two_labels(kept, tmp_path, capsys):
    """Ten copies would make intervals and guarantees those of ten times as many images."""
    images, labels = drawn(20, 61, elsewhere=True)
    copies, torn = np.tile(images[2:], (5, 1, 1, 1)), images[:2]
    pile(
        tmp_path / "new",
        np.concatenate([copies, torn, torn]),
        np.r_[np.tile(labels[2:], 5), labels[:2], labels[:2] + 1],
    )
    run = api.adapt(kept / "run", tmp_path / "new", tmp_path / "made", quiet=True)
    said = capsys.readouterr().err
    assert "4 of 94 images" in said and "are there under different labels, pixel for pixel, such as" in said
    assert "of 90 images" in said and "72 are exact copies of others" in said
    found = run.results.adaptation
    assert found.labeled == 18 and found.after.n == 18


def test_shares_of_classes_that_are_never_held_out_are_refused_before_anything_is_trained(kept, tmp_path, monkeypatch):
    images, labels = drawn(0, 50, elsewhere=True, labels=[0, 1] * 8 + [2])
    pile(tmp_path / "new", images, labels)
    monkeypatch.setattr(module, "_choose", None)
    with pytest.raises(DataError, match=r"prior: no labeled image of right can be held out"):
        api.adapt(kept / "run", tmp_path / "new", tmp_path / "made", prior={"left": 0.4, "middle": 0.4, "right": 0.2})
    with pytest.raises(RequestError, match="the seed must be from 0 to 2147483647; got 2147483648"):
        api.adapt(kept / "run", tmp_path / "new", tmp_path / "made", seed=2**31)


def test_what_it_costs_at_home_is_said(kept, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(adaptation, "SHARE", 0.99)  # hardly any rehearsal
    images, labels = drawn(30, 70)
    pile(tmp_path / "new", images, (labels + 1) % 3)  # what was left is middle
    monkeypatch.setattr(module, "SETTINGS", (adaptation.Setting("all", 1e-2, 6),))
    run = api.adapt(kept / "run", tmp_path / "new", tmp_path / "made")
    found = run.results.adaptation
    assert found.home_before.value - found.home_after.value > 0.01
    assert "points worse on images like those of" in capsys.readouterr().err
    assert "points worse on images like those of" in (run.folder / "report.html").read_text()


def test_where_nothing_helps_the_network_stays(kept, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "SETTINGS", (adaptation.Setting("all", 3.0, 1),))
    pile(tmp_path / "new", *drawn(30, 80))
    run = api.adapt(kept / "run", tmp_path / "new", tmp_path / "made", quiet=True)
    assert run.results.adaptation.setting == "the network as it is"
    before, after = (
        load_model(folder / "model.safetensors").model.state_dict() for folder in (kept / "run", run.folder)
    )
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert "The network was not trained further" in (run.folder / "report.html").read_text()
    assert len(load_model(run.model).trust.references["none"].target) == 30
    assert api.evaluate(run, quiet=True).n == 60


def test_what_cannot_be_adapted_is_refused_and_leaves_nothing(kept, made, tmp_path, monkeypatch):
    new = kept / "new"
    few, one = pile(tmp_path / "few", *drawn(9, 0, True)), pile(tmp_path / "one", *drawn(3, 0, True))
    pile(tmp_path / "unknown", *drawn(30, 90, True))
    (tmp_path / "unknown" / "right").rename(tmp_path / "unknown" / "rigth")
    gone = shutil.copytree(kept / "run", tmp_path / "gone")
    text = (gone / "recipe.yaml").read_text().replace(str(kept / "home.npz"), str(tmp_path / "nowhere.npz"))
    (gone / "recipe.yaml").write_text(text)
    other = api.train(
        recipe(kept / "home.npz", seed=1, training={"epochs": 1, "device": "cpu"}), tmp_path / "1", quiet=True
    )
    joined = api.ensemble([kept / "run", other], "soft", tmp_path / "joined", quiet=True).folder
    cases = [
        ((kept / "run", few), {}, "9 labeled images to adapt to, too few"),
        ((kept / "run", one), {}, "3 labeled images to adapt to, too few"),
        (
            (kept / "run", tmp_path / "unknown"),
            {},
            "the class 'rigth' of .*unknown; did you mean right",
        ),
        (
            (kept / "run", new),
            {"classes": "left,middle"},
            "15 of 45 labeled images are of classes that are said not to occur",
        ),
        ((kept / "run", new), {"classes": "left,blue"}, "no class 'blue'"),
        ((kept / "run", tmp_path / "none"), {}, "none"),
        ((kept / "run", new), {"out": kept / "run"}, "exists and is not empty"),
        ((kept / "run", new), {"split": "val", "home": tmp_path / "none"}, "none"),
        ((gone, new), {}, "name their place with --home"),
        ((joined, new), {}, "is an ensemble; adapt a member of it"),
        ((tmp_path / "few", new), {}, "is not a run folder"),
    ]
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for places, more, words in cases:
        with pytest.raises(RequestError, match=words):
            api.adapt(*places, quiet=True, **more)
    assert sorted(tmp_path.rglob("*")) == before
    assert api.adapt(gone, new, home=kept / "home.npz", quiet=True).folder.name.startswith("gone-new-seed0")


def test_ctrl_c_leaves_nothing(kept, tmp_path, monkeypatch):
    once = Trainer._run_epoch

    def stopping(self, stop):
        stop.set()
        return once(self, stop)

    monkeypatch.setattr(Trainer, "_run_epoch", stopping)
    with pytest.raises(Interrupted, match="stopped; nothing was written"):
        api.adapt(kept / "run", kept / "new", tmp_path / "made", quiet=True)
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------------------------- images without labels


def test_images_to_label_next(kept, tmp_path, capsys):
    """Labeled images, copies and damaged files are no suggestions; the labels of a source are not looked at."""
    more = tmp_path / "more"
    images, labels = drawn(30, 100, elsewhere=True)
    pile(more / "deep" / "deeper", images, labels)
    shutil.copytree(kept / "new", more / "labeled")
    shutil.copy(next((more / "deep").rglob("*.png")), more / "copy.png")
    (more / "damaged.png").write_bytes(b"none")
    run = api.adapt(kept / "run", kept / "new", tmp_path / "made", quiet=True, unlabeled=more, suggest=7)
    said = capsys.readouterr().err
    assert "of 77 images" in said and "1 cannot be read and are left out (the first: " in said
    assert "46 are labeled or seen already, or copies, and left out" in said
    table = pd.read_csv(run.folder / "suggested.csv")
    assert list(table.columns) == ["image", "rank", "predicted", "confidence"]
    assert table["rank"].tolist() == list(range(1, 8)) and table["image"].nunique() == 7
    assert table["image"].str.contains("labeled").sum() == 0 and set(table["predicted"]) <= set(NAMES)
    assert table["confidence"].between(1 / 3 - 1e-3, 1).all()
    found = run.results.adaptation
    assert (found.unlabeled, found.suggested) == (30, 7)
    text = (run.folder / "report.html").read_text()
    assert "suggested.csv has 7 images" in text and "also fitted to 30 images from there without labels" in text
    plain = api.adapt(kept / "run", kept / "new", tmp_path / "plain", quiet=True)
    detectors = [load_model(each.model).trust.detector for each in (plain, run)]
    p = load_model(run.model).predict(images)
    assert np.mean(p.ood <= 1) >= 0.95 and detectors[1].limit >= detectors[0].limit
    assert not (plain.folder / "suggested.csv").exists()
    with pytest.raises(
        DataError, match=r"none of the 270 images .* is new and readable; 270 are labeled or seen already"
    ):
        home = tmp_path / "home"
        with np.load(kept / "home.npz") as arrays:
            for split in ("train", "val"):
                pile(home / split, arrays[f"{split}_images"], arrays[f"{split}_labels"])
            pile(home / "test", arrays["test_images"][:30], arrays["test_labels"][:30])
        api.adapt(kept / "run", kept / "new", tmp_path / "never", quiet=True, unlabeled=home, suggest=7)


def test_unlabeled_images_of_any_source(kept, tmp_path, capsys, monkeypatch):
    predictor = load_model(kept / "run" / "model.safetensors")
    found = unlabeled.load_unlabeled(predictor, str(kept / "test.npz"), (), True)
    assert len(found.images) == found.of == 150 and found.images.shape == (SIDE, SIDE, 3)
    rows = [{"path": f"left/{number:03}.png", "label": "unheard of"} for number in range(0, 45, 3)]
    pd.DataFrame(rows).to_csv(kept / "new" / "table.csv", index=False)
    assert len(unlabeled.load_unlabeled(predictor, str(kept / "new" / "table.csv"), (), True).images) == 15
    pd.DataFrame(rows)[["path"]].to_csv(kept / "new" / "table.csv", index=False)
    assert len(unlabeled.load_unlabeled(predictor, str(kept / "new" / "table.csv"), (), True).images) == 15
    (kept / "new" / "table.csv").unlink()
    packed = [{"image": (kept / "new" / row["path"]).read_bytes(), "label": "unheard of"} for row in rows]
    (tmp_path / "packed").mkdir()
    pd.DataFrame(packed).to_parquet(tmp_path / "packed" / "some.parquet")
    for source in (tmp_path / "packed", tmp_path / "packed" / "some.parquet"):
        assert len(unlabeled.load_unlabeled(predictor, str(source), (), True).images) == 15
    (kept / "new" / "broken.png").write_bytes(b"no image")
    capsys.readouterr()
    assert len(unlabeled.load_unlabeled(predictor, str(kept / "new"), (), True).images) == 45
    said = capsys.readouterr().err
    assert "of 46 images of" in said and "1 cannot be read" in said and "drawn at random" not in said
    (kept / "new" / "broken.png").unlink()
    monkeypatch.setattr(unlabeled, "MOST", 20)
    some = unlabeled.load_unlabeled(predictor, str(kept / "new"), (), True)
    assert len(some.images) == 20 and some.of == 45
    assert "note: of 45 images of" in (said := capsys.readouterr().err) and "20 were drawn at random" in said
    assert (
        some.images.ids.tolist() == unlabeled.load_unlabeled(predictor, str(kept / "new"), (), True).images.ids.tolist()
    )
    with pytest.raises(DataError, match=r"none of the 300 images of .* is new"):
        with np.load(kept / "home.npz") as arrays:
            known = [row.tobytes() for row in row_digests(arrays["test_images"])]
        monkeypatch.setattr(unlabeled, "MOST", 4000)
        unlabeled.load_unlabeled(predictor, str(kept / "home.npz"), known, True)


def test_what_is_asked_of_unlabeled_images_is_checked(kept, tmp_path):
    new, out = kept / "new", tmp_path / "made"
    for data, more, words in (
        (None, {}, "adapting needs images from there: name labeled ones with --data, or others with --unlabeled"),
        (new, {"suggest": 3}, "--suggest chooses among images without labels: name them with --unlabeled"),
        (new, {"suggest": -1}, "cannot be -1"),
        (new, {"unlabeled": tmp_path / "none"}, "no data source"),
        (new, {"unlabeled": new}, "none of the 45 images of .*new is new and readable"),
    ):
        with pytest.raises(RequestError, match=words):
            api.adapt(kept / "run", data, out, quiet=True, **more)
    assert list(tmp_path.iterdir()) == []


def test_images_like_those_of_val_get_a_note(kept, tmp_path, capsys):
    pile(tmp_path / "new", *drawn(30, 110))
    run = api.adapt(kept / "run", tmp_path / "new", tmp_path / "made", quiet=True)
    assert "are not shown to differ from val of" in capsys.readouterr().err
    assert "Its images are not shown to differ from val" in (run.folder / "report.html").read_text()
    assert run.results.adaptation.shift.withdrawn is False


# ------------------------------------------------------------------------------------------------------------ the command


def test_the_command(kept, tmp_path, monkeypatch, capsys):
    from petriscope import cli

    monkeypatch.setattr(cli, "_settle_process", lambda: None)
    monkeypatch.chdir(tmp_path)

    def call(*args):
        monkeypatch.setattr("sys.argv", ["petriscope", *map(str, args)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        said = capsys.readouterr()
        return left.value.code or 0, said.out, said.err

    status, out, err = call("adapt", kept / "run", "--data", kept / "new", "--out", "made", "--seed", 3)
    assert status == 0 and out == ""
    assert "accuracy on 45 labeled images that were held out in turn is" in err and "report: made/report.html" in err
    more = pile(tmp_path / "more", *drawn(12, 120, elsewhere=True))
    status, out, err = call(
        *("adapt", kept / "run", "--data", kept / "new", "--unlabelled", more, "--suggest", 5, "--out", "other")
    )
    assert (
        status == 0
        and "images to label next: other/suggested.csv" in err
        and (tmp_path / "other/suggested.csv").exists()
    )
    status, out, err = call("adapt", kept / "run", "--data", kept / "new", "--json")
    tree = json.loads(out)
    assert status == 0 and tree["run"] == "runs/run-new-seed0" and tree["labeled"] == 45
    assert tree["after"]["accuracy"] > tree["before"]["accuracy"] and err == ""
    status, out, _ = call("predict", "made", kept / "new")
    assert status == 0 and len(pd.read_csv(io.StringIO(out))) == 45
    status, _, err = call("adapt", kept / "run", "--data", kept / "new", "--split", "all")
    assert status == 2 and "--split cannot be 'all'" in err
    status, _, err = call("adapt", kept / "run", "--data", kept / "new", "--out", "made")
    assert status == 2 and len(err.strip().splitlines()) == 1
