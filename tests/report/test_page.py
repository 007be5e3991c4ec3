"""The page of a run: one file, everything in it escaped, and words for what is missing."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from petriscope.core.recipe import Part, Recipe
from petriscope.metrics.intervals import wilson
from petriscope.report import training, write_report
from petriscope.run.folder import Run

VOID = {"meta", "link", "img", "br"}
RECIPE = Recipe(name="tiny", about="Three kinds of cell.", seed=7, data={"source": "cells.npz"}, augment=("flip",))
CLASSES = ("red", "white", "platelet")


class Tags(HTMLParser):
    """Collects attributes and text, and fails on a tag that is not closed where it should be."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.names: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if not {"style", "title"} & set(self.open):
            self.text += data


def parse(run: Run) -> Tags:
    page = Tags()
    page.feed(write_report(run).read_text(encoding="utf-8"))
    page.close()
    assert not page.open
    page.text = re.sub(r"\s+", " ", page.text)
    return page


def metrics(confusion: np.ndarray, classes: tuple[str, ...], split: str) -> dict[str, Any]:
    n, hits = int(confusion.sum()), np.diagonal(confusion)
    out: dict[str, Any] = {"split": split, "tta": "none", "source": "cells.npz", "n": n}
    for key in ("accuracy", "balanced_accuracy", "macro_precision", "macro_recall", "macro_f1", "ece"):
        out |= {key: float(hits.sum() / n), f"{key}_ci95": list(wilson(float(hits.sum()), n))}
    out |= {"auc": 0.98765, "auc_ci95": [0.9712, 0.9934], "nll": 0.2468, "nll_ci95": [0.2, 0.3]}
    out |= {"brier": 0.1357, "brier_ci95": [None, None]}
    out["per_class"] = {
        name: {
            "n": int(confusion[k].sum()),
            "precision": 0.9,
            "recall": float(hits[k] / max(confusion[k].sum(), 1)),
            "recall_ci95": list(wilson(float(hits[k]), int(confusion[k].sum()))),
            "f1": 0.875,
            "auc": None,
        }
        for k, name in enumerate(classes)
    }
    return out | {"confusion": confusion.tolist()}


def start_run(
    folder: Path, classes: tuple[str, ...] = CLASSES, splits: tuple[str, ...] = ("train", "val", "test"), **data: Any
) -> Run:
    """A run folder as it is before the first epoch."""
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(RECIPE.to_yaml(), encoding="utf-8")
    per_class = [20 + k for k in range(len(classes))]
    facts = {
        "source": "cells.npz",
        "fingerprint": "f00dfeed",
        "classes": list(classes),
        "shape": [6, 6, 3],
        "splits": {name: {"images": sum(per_class), "per_class": per_class} for name in splits},
        "warnings": [],
    }
    environment = {
        "started": "2026-01-05T08:09:00+00:00",
        "command": "petriscope train tiny --seed 7",
        "python": "3.12.1",
        "packages": {"petriscope": "0.1.0", "timm": None},
        "hardware": {"system": "Linux", "processor": "Some CPU", "cores": 2, "threads": 2, "gpu": None},
        "data": {**facts, **data},
        "device": "cpu",
        "precision": "fp32",
        "parameters": 1234,
    }
    (folder / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    return Run(folder)


def finish_run(run: Run, val: bool = True, epochs: int = 3) -> Run:
    lines = []
    for epoch in range(1, epochs + 1):
        line: dict[str, Any] = {"epoch": epoch, "train": {"loss": 1 / epoch, "accuracy": 1 - 0.5 / epoch}}
        if val:
            line["val"] = {"accuracy": 0.9, "balanced_accuracy": 0.8, "macro_f1": 0.85, "loss": 0.5}
        lines.append({**line, "lr": 0.01 / epoch, "seconds": 1.5, "images_per_second": 100.0})
    run.write_history(lines)
    kept = {"best_epoch": 2, "best": 0.9, "monitor": "accuracy", "kept": "best"}
    last = {"best_epoch": None, "best": None, "monitor": None, "kept": "last"}
    summary = {"epochs": epochs, "seconds": 95.0, "seconds_per_epoch": 31.7, "images_per_second": 812.0}
    cost = {"parameters": 1234, "multiply_adds": 5_600_000, "bytes_fp32": 4936, "inference_images_per_second": 9876.5}
    run.add_results(training={**summary, **(kept if val else last)}, cost=cost)
    return run


def evaluate(run: Run, split: str, classes: tuple[str, ...] = CLASSES, channels: int = 3, right: int = 9) -> Run:
    """Each class has ten images, ``right`` of them given it and the rest the next class."""
    count = len(classes)
    confusion = right * np.eye(count, dtype=int) + (10 - right) * np.roll(np.eye(count, dtype=int), 1, axis=1)
    run.add_results(**{split: metrics(confusion, classes, split)})
    target = np.repeat(np.arange(count), 10)
    predicted = np.where(np.arange(len(target)) % 10 < right, target, (target + 1) % count)
    names = np.array(classes, dtype=object)
    table = {"id": [f"{split}/{i}" for i in range(len(target))], "split": split, "target": names[target]}
    run.add_predictions(split, pd.DataFrame({**table, "predicted": names[predicted], "confidence": 0.876}))
    wrong = np.flatnonzero(target != predicted)
    images = np.random.default_rng(0).integers(0, 256, (len(wrong), 6, 6, channels), dtype=np.uint8)
    run.add_gallery(
        **{f"mistakes_{split}": images, f"mistakes_{split}_ids": np.array([f"{split}/{i}" for i in wrong], dtype=str)}
    )
    run.add_gallery(augmented=np.zeros((2, 3, 6, 6, channels), dtype=np.uint8))
    return run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return evaluate(evaluate(finish_run(start_run(tmp_path / "run")), "val"), "test")


def test_it_is_one_file_that_refers_to_nothing_outside(run: Run) -> None:
    page = parse(run)
    assert [p.name for p in run.folder.iterdir() if p.suffix in (".html", ".tmp", ".png")] == ["report.html"]
    assert not page.names & {"script", "iframe", "object", "embed"}
    for tag, key, value in page.attributes:
        if key in ("src", "href", "srcset", "xlink:href"):
            assert value.startswith(("data:", "#")), (tag, key, value)
    text = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "http://" not in text and "https://" not in text
    assert "@import" not in text and "url(" not in text


def test_every_link_within_the_page_leads_somewhere(run: Run) -> None:
    page = parse(run)
    ids = {value for _, key, value in page.attributes if key == "id"}
    assert {value[1:] for _, key, value in page.attributes if key == "href" and value.startswith("#")} <= ids


def test_it_opens_on_a_phone_and_in_the_dark(run: Run) -> None:
    text = write_report(run).read_text(encoding="utf-8")
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert "prefers-color-scheme: dark" in text


def test_metrics_and_intervals_are_those_of_the_results(run: Run) -> None:
    text = parse(run).text
    assert "90.00 % of 30 test images classified correctly (95 % interval 74.4 to 96.5). 3 mistakes." in text
    assert "90.00 % (74.4 to 96.5)" in text
    assert "0.9877 (0.9712 to 0.9934)" in text
    assert "0.2468 (0.2000 to 0.3000)" in text
    assert "0.1357" in text and "None" not in text and "nan" not in text.lower()
    assert "90.00 % (59.6 to 98.2)" in text  # a class's recall
    assert "red taken for white: 1 of 10 (10.0 %)" in text


def test_training_cost_and_repetition_are_told(run: Run) -> None:
    text = parse(run).text
    for words in (
        "kept: epoch 2",
        "1,234",
        "5.6 million",
        "1 min 35 s",
        "812 images/s",
        "January 5, 2026, 08:09 UTC",
        "petriscope train tiny --seed 7",
        f"petriscope train {run.folder}/recipe.yaml --seed 7",
        f"petriscope evaluate {run.folder}",
        "f00dfeed",
        "bit for bit",
        "cross-entropy",
    ):
        assert words in text, words


def test_every_metric_has_words_for_those_who_do_not_see_it(run: Run) -> None:
    write_report(run)
    text = (run.folder / "report.html").read_text(encoding="utf-8")
    assert all("aria-label=" in svg or "aria-hidden=" in svg for svg in re.findall(r"<svg[^>]*>", text))
    assert all(" alt=" in img for img in re.findall(r"<img[^>]*>", text))


def test_mistakes_are_shown_with_their_classes_and_ids(run: Run) -> None:
    page = parse(run)
    alts = [value for tag, key, value in page.attributes if tag == "img" and key == "alt" and value]
    assert alts == ["red, predicted white", "white, predicted platelet", "platelet, predicted red"] * 2
    assert "test/9" in page.text and "87.6 %" in page.text


def test_without_test_it_says_so_and_how_to_add_it(tmp_path: Path) -> None:
    run = evaluate(finish_run(start_run(tmp_path / "run")), "val")
    text = parse(run).text
    assert "This metric is from val, which chose the weights kept" in text
    assert "The 63 test images have not been looked at yet" in text
    assert f"petriscope evaluate {run.folder}" in text


def test_data_without_val_or_test(tmp_path: Path) -> None:
    text = parse(finish_run(start_run(tmp_path / "run", splits=("train",)), val=False)).text
    assert "The data have no val split" in text and "There is no test split" in text
    assert "kept: the last" in text


@pytest.mark.parametrize("epochs", [0, 2])
def test_an_unfinished_run(tmp_path: Path, epochs: int) -> None:
    run = finish_run(start_run(tmp_path / "run"), epochs=epochs)
    (run.folder / "results.json").unlink()
    text = parse(run).text
    assert f"Training is not finished: {epochs} epochs of 20 done." in text
    assert f"petriscope train --resume {run.folder}" in text
    assert ("No epoch is done yet" in text) is (epochs == 0)
    assert ("90.00 % of the val images" in text) is (epochs > 0)


def test_metrics_without_predictions_and_images(run: Run) -> None:
    (run.folder / "predictions.parquet").unlink()
    (run.folder / "gallery.npz").unlink()
    text = parse(run).text
    assert "The predictions on test are not in the run folder." in text
    assert "The images of the mistakes are not in the run folder." in text
    assert "no samples of the input" in text


def test_names_from_outside_are_escaped(tmp_path: Path) -> None:
    hostile = ('<script>alert("x")</script>', "a & b", "\" onload='x' <b>")
    warnings = ["<img src=x onerror=alert(1)>"]
    run = start_run(tmp_path / "<i>run", classes=hostile, warnings=warnings, source="</style><script>y</script>")
    recipe = RECIPE.model_copy(update={"name": "<b>bold</b>", "about": "</title><script>"})
    (run.folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    page = parse(evaluate(finish_run(run), "test", classes=hostile))
    assert not page.names & {"script", "b", "i"}
    assert not any(key.startswith("on") for _, key, _ in page.attributes)
    assert '<script>alert("x")</script>' in page.text and warnings[0] in page.text and "<b>bold</b>" in page.text


def test_gray_images_of_one_class(tmp_path: Path) -> None:
    run = finish_run(start_run(tmp_path / "run", classes=("cell",), shape=[6, 6, 1]), epochs=1)
    text = parse(evaluate(run, "val", classes=("cell",), channels=1, right=10)).text
    assert "6 × 6 pixels, gray" in text and "only one class" in text
    assert "There is no mistake among 10 val images." in text


def test_gray_mistakes(tmp_path: Path) -> None:
    page = parse(evaluate(finish_run(start_run(tmp_path / "run")), "test", channels=1))
    assert sum(value.startswith("data:image/png") for _, key, value in page.attributes if key == "src") == 3 + 6


def test_many_classes_have_no_matrix_but_words(tmp_path: Path) -> None:
    classes = tuple(f"class {i}" for i in range(70))
    text = parse(evaluate(finish_run(start_run(tmp_path / "run", classes=classes)), "test", classes=classes)).text
    assert "The matrix of 70 classes is too large to read here" in text
    assert "class 0 taken for class 1" in text


def test_test_far_below_val_is_an_alarm(tmp_path: Path) -> None:
    run = evaluate(evaluate(finish_run(start_run(tmp_path / "run")), "val", right=10), "test", right=3)
    text = parse(run).text
    assert "Test is 70.0 points below val" in text and "petriscope audit cells.npz" in text


def rewrite(run: Run, **changes: Any) -> Run:
    """Another recipe in the run folder."""
    (run.folder / "recipe.yaml").write_text(Recipe(**{**RECIPE.model_dump(), **changes}).to_yaml(), encoding="utf-8")
    return run


def told(run: Run) -> dict[str, str]:
    """What the page lists of data, model and training, by name."""
    html = write_report(run).read_text(encoding="utf-8").partition('id="trained"')[2].partition("</dl>")[0]
    return dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", html.replace("&#39;", "'")))


def test_a_plain_run_tells_of_no_method_it_did_not_use(run: Run) -> None:
    facts, text = told(run), parse(run).text
    assert not {"Fine-tuning", "Distilled from", "Val augmented"} & set(facts)
    assert not any(word in text for word in ("SWA", "Reconstructions", "mixed"))
    assert facts["Initial weights"] == "random" and facts["Normalization"] == "the train images' own"
    assert facts["Averaging"] == "running mean (EMA, decay 0.998)" and facts["Batches"] == "128 images"
    assert "Val is measured after the epoch, on plain images, with averaged weights" in text


def test_methods_beside_the_plain_ones_are_told(run: Run) -> None:
    stages = [{"epoch": 5, "train": "last 25 %", "lr": 0.1}, {"epoch": 50, "train": "all"}]
    rewrite(
        run,
        model={"name": "resnet18", "stem": "imagenet", "weights": "/models/cells.safetensors"},
        finetune={"train": "head", "then": stages, "lr_decay": 0.7},
        distill={"teachers": ["runs/a", "runs/b"], "weight": 0.25},
        training={"ema": None, "swa": 0.25, "images_per_epoch": 42_000},
        evaluation={"augment_val": [{"name": "rotate", "degrees": 10}]},
    )
    environment = run.environment | {"normalize": {"mean": [0.5, 0.25, 0.125], "std": [0.2, 0.2, 0.1]}}
    (run.folder / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    expected = {
        "Model": "resnet18 (stem imagenet)",
        "Initial weights": "/models/cells.safetensors",
        "Normalization": "that of the initial weights: mean 0.500, 0.250, 0.125; std 0.200, 0.200, 0.100",
        "Fine-tuning": "head; from epoch 6: last 25 % at 0.1 × the rate; each block at 0.7 × the rate of the next",
        "Distilled from": "runs/a, runs/b (weight 0.25, temperature 2)",
        "Averaging": "from epoch 16: mean over the epochs (SWA)",
        "Batches": "128 images, 42,000 images per epoch",
    }
    facts = told(run)
    assert {name: facts.get(name) for name in expected} == expected
    assert facts["Val augmented"] == "rotate (degrees 10), while training; the final metrics are of plain images"
    text = parse(run).text
    for words in (
        "with the recipe's loss, cross-entropy, and the teachers'",
        "on val images augmented by rotate (degrees 10), the same in every epoch, with averaged weights",
        "the final metrics on val are of plain images",
    ):
        assert words in text, words


@pytest.mark.parametrize(("name", "mixed"), [("mixup", True), ("cutmix", True), ("rotate", False), ("unknown", False)])
def test_accuracy_on_mixed_images_is_said_to_be_low(run: Run, name: str, mixed: bool) -> None:
    text = parse(rewrite(run, augment=["flip", name])).text
    assert ("on augmented and mixed images" in text) is mixed
    assert ("so train accuracy is lower than on plain images" in text) is mixed
    assert ("on augmented images" in text) is not mixed


def test_of_mixed_masks_no_majority_is_spoken_of() -> None:
    history = [{"epoch": 1, "train": {"loss": 1.0, "accuracy": 0.5}, "val": {"loss": 1.0, "miou": 0.4}}]
    recipe = Recipe(augment=(Part(name="cutmix"),))
    notes = " ".join(training.curves(history, None, recipe)["notes"])
    assert "on augmented and mixed images" in notes
    assert "holds most of" not in notes
    del history[0]["val"]["miou"]
    assert "holds most of" in " ".join(training.curves(history, None, recipe)["notes"])


def test_val_of_an_unfinished_run_is_said_to_be_augmented(tmp_path: Path) -> None:
    run = finish_run(start_run(tmp_path / "run"))
    (run.folder / "results.json").unlink()
    text = parse(rewrite(run, evaluation={"augment_val": ["rotate"]})).text
    assert "of the augmented val images were classified correctly" in text


def test_a_report_is_made_again_in_place(run: Run) -> None:
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


@pytest.mark.parametrize(
    ("rule", "weights", "words"),
    [
        ("auto", "none", "the train images' own"),
        ("train", "pretrained", "the train images' own"),
        ("imagenet", "none", "ImageNet's"),
        ("auto", "pretrained", "that of the initial weights"),
    ],
)
def test_whose_normalization_it_was(run: Run, rule: str, weights: str, words: str) -> None:
    rewrite(run, data={"source": "cells.npz", "normalize": rule}, model={"name": "convnext-small", "weights": weights})
    assert told(run)["Normalization"] == words
