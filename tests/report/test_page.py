"""The page of a run: one file, everything in it escaped, and words for what is missing."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest

from pages import Page
from petriscope import tasks
from petriscope.core.recipe import Recipe
from petriscope.core.results import Cost, EnsembleSummary, Environment, Evaluation, Metric, TrainingSummary
from petriscope.metrics.intervals import wilson
from petriscope.report import write_report
from petriscope.run.folder import Run
from petriscope.tasks import MetricInfo, register
from petriscope.tasks.classification import Classification

RECIPE = Recipe(name="tiny", about="Three kinds of cell.", seed=7, data={"source": "cells.npz"}, augment=("flip",))
CLASSES = ("red", "white", "platelet")


def page(run: Run) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))


def evaluation(confusion: np.ndarray, classes: tuple[str, ...], split: str, task: str) -> Evaluation:
    n, hits = int(confusion.sum()), np.diagonal(confusion)
    out: dict[str, Any] = {"task": task, "split": split, "source": "cells.npz", "n": n}
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
    return Evaluation.model_validate(out | {"confusion": confusion.tolist()})


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
    write_environment(Run(folder), Environment.model_validate(environment))
    return Run(folder)


def write_environment(run: Run, environment: Environment) -> None:
    (run.folder / "environment.json").write_text(json.dumps({"schema_version": 2, **environment.as_json()}))


def finish_run(run: Run, val: bool = True, epochs: int = 3) -> Run:
    lines = []
    for epoch in range(1, epochs + 1):
        line: dict[str, Any] = {"epoch": epoch, "train": {"loss": 1 / epoch, "accuracy": 1 - 0.5 / epoch}}
        if val:
            line["val"] = {"accuracy": 0.9, "balanced_accuracy": 0.8, "macro_f1": 0.85, "loss": 0.5}
        lines.append({**line, "lr": 0.01 / epoch, "seconds": 1.5, "images_per_second": 100.0})
    run.write_history(lines)
    kept = {"best_epoch": 2, "best": 0.9, "monitor": "accuracy", "kept": "best"} if val else {"kept": "last"}
    summary = TrainingSummary(epochs=epochs, seconds=95.0, seconds_per_epoch=31.7, images_per_second=812.0, **kept)
    cost = Cost(parameters=1234, multiply_adds=5_600_000, bytes_fp32=4936, inference_images_per_second=9876.5)
    run.add_results(training=summary, cost=cost)
    return run


def evaluate(run: Run, split: str, classes: tuple[str, ...] = CLASSES, channels: int = 3, right: int = 9) -> Run:
    """Each class has ten images. ``right`` of them are given it, the others the next class."""
    count = len(classes)
    confusion = right * np.eye(count, dtype=int) + (10 - right) * np.roll(np.eye(count, dtype=int), 1, axis=1)
    run.add_results(**{split: evaluation(confusion, classes, split, run.environment.data.task)})
    target = np.repeat(np.arange(count), 10)
    predicted = np.where(np.arange(len(target)) % 10 < right, target, (target + 1) % count)
    names = np.array(classes, dtype=object)
    table = {"id": [f"{split}/{i}" for i in range(len(target))], "split": split, "target": names[target]}
    run.add_predictions(split, pd.DataFrame({**table, "predicted": names[predicted], "confidence": 0.876}))
    wrong = np.flatnonzero(target != predicted)
    images = np.random.default_rng(0).integers(0, 256, (len(wrong), 6, 6, channels), dtype=np.uint8)
    ids = np.array([f"{split}/{i}" for i in wrong], dtype=str)
    run.write_gallery(f"mistakes_{split}", **{f"mistakes_{split}": images, f"mistakes_{split}_ids": ids})
    run.write_gallery("augmented", augmented=np.zeros((2, 3, 6, 6, channels), dtype=np.uint8))
    return run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return evaluate(evaluate(finish_run(start_run(tmp_path / "run")), "val"), "test")


def test_it_is_one_file_that_refers_to_nothing_outside(run: Run) -> None:
    found = page(run)
    assert [p.name for p in run.folder.iterdir() if p.suffix in (".html", ".tmp", ".png")] == ["report.html"]
    assert not found.names & {"script", "iframe", "object", "embed"}
    found.check_self_contained()
    text = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "http://" not in text and "https://" not in text and "@import" not in text and "url(" not in text
    assert all("aria-label=" in svg or "aria-hidden=" in svg for svg in re.findall(r"<svg[^>]*>", text))
    assert all(" alt=" in img for img in re.findall(r"<img[^>]*>", text))


def test_metrics_and_intervals_are_those_of_the_results(run: Run) -> None:
    text = page(run).text
    assert "90.00 % of 30 test images classified correctly (95 % interval 74.4 to 96.5). 3 mistakes." in text
    assert "90.00 % (74.4 to 96.5)" in text
    assert "0.9877 (0.9712 to 0.9934)" in text
    assert "0.2468 (0.2000 to 0.3000)" in text
    assert "0.1357" in text and "None" not in text and "nan" not in text.lower()
    assert "90.00 % (59.6 to 98.2)" in text  # recall of a class
    assert "red predicted as white: 1 of 10 (10.0 %)" in text


def test_training_cost_and_repetition_are_told(run: Run) -> None:
    text = page(run).text
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


def test_there_is_a_chart_for_each_monitored_metric(run: Run) -> None:
    titles = re.findall(r"<figcaption>(.*?)</figcaption>", write_report(run).read_text(encoding="utf-8"))
    assert titles[:5] == [
        "Loss",
        "Accuracy",
        "Balanced accuracy",
        "Macro F1",
        "Learning rate, at the end of each epoch",
    ]


def test_mistakes_are_shown_with_their_classes_and_ids(run: Run) -> None:
    found = page(run)
    alts = [value for tag, key, value in found.attributes if tag == "img" and key == "alt" and value]
    assert alts == ["red, predicted white", "white, predicted platelet", "platelet, predicted red"] * 2
    assert "test/9" in found.text and "87.6 %" in found.text


def test_without_test_it_says_so_and_how_to_add_it(tmp_path: Path) -> None:
    run = evaluate(finish_run(start_run(tmp_path / "run")), "val")
    text = page(run).text
    assert "This metric is from val, which chose the weights" in text
    assert "The 63 test images have not been evaluated yet" in text
    assert f"petriscope evaluate {run.folder}" in text


def test_data_without_val_or_test(tmp_path: Path) -> None:
    text = page(finish_run(start_run(tmp_path / "run", splits=("train",)), val=False)).text
    assert "The data have no val split" in text and "There is no test split" in text
    assert "kept: the last" in text


@pytest.mark.parametrize("epochs", [0, 2])
def test_an_unfinished_run(tmp_path: Path, epochs: int) -> None:
    run = finish_run(start_run(tmp_path / "run"), epochs=epochs)
    (run.folder / "results.json").unlink()
    text = page(run).text
    assert f"Training is not finished: {epochs} epochs of 20 done." in text
    assert f"petriscope train --resume {run.folder}" in text
    assert ("No epoch is finished yet" in text) is (epochs == 0)
    assert ("90.00 % accuracy on the val images after epoch" in text) is (epochs > 0)


def test_an_unfinished_run_on_masks_shows_the_metric_of_masks(tmp_path: Path) -> None:
    run = start_run(tmp_path / "run", task="segmentation")
    run.write_history([{"epoch": 1, "train": {"loss": 1.0, "accuracy": 0.5}, "val": {"miou": 0.25, "loss": 1.0}}])
    found = page(run)
    assert "25.00 % mean IoU on the val images" in found.text and "classified" not in found.text
    assert "Labeled pixels" in found.text


def test_metrics_without_predictions_and_images(run: Run) -> None:
    (run.folder / "predictions.parquet").unlink()
    shutil.rmtree(run.folder / "gallery")
    text = page(run).text
    assert "The predictions on test are not in the run folder." in text
    assert "The images of the mistakes are not in the run folder." in text
    assert "no samples of the input" in text


def test_names_from_outside_are_escaped(tmp_path: Path) -> None:
    hostile = ('<script>alert("x")</script>', "a & b", "\" onload='x' <b>")
    warnings = ["<img src=x onerror=alert(1)>"]
    run = start_run(tmp_path / "<i>run", classes=hostile, warnings=warnings, source="</style><script>y</script>")
    recipe = RECIPE.model_copy(update={"name": "<b>bold</b>", "about": "</title><script>"})
    (run.folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    found = page(evaluate(finish_run(run), "test", classes=hostile))
    assert not found.names & {"script", "b", "i"}
    found.check_self_contained()
    assert '<script>alert("x")</script>' in found.text and warnings[0] in found.text and "<b>bold</b>" in found.text


def test_gray_images_of_one_class(tmp_path: Path) -> None:
    run = finish_run(start_run(tmp_path / "run", classes=("cell",), shape=[6, 6, 1]), epochs=1)
    text = page(evaluate(run, "val", classes=("cell",), channels=1, right=10)).text
    assert "6 × 6 pixels, gray" in text and "only one class" in text
    assert "There are no mistakes on 10 val images." in text


def test_gray_mistakes(tmp_path: Path) -> None:
    found = page(evaluate(finish_run(start_run(tmp_path / "run")), "test", channels=1))
    assert sum(value.startswith("data:image/png") for _, key, value in found.attributes if key == "src") == 3 + 6


def test_many_classes_have_no_matrix_but_words(tmp_path: Path) -> None:
    classes = tuple(f"class {i}" for i in range(70))
    text = page(evaluate(finish_run(start_run(tmp_path / "run", classes=classes)), "test", classes=classes)).text
    assert "The matrix of 70 classes is too large to show here" in text
    assert "class 0 predicted as class 1" in text


def test_test_far_below_val_is_an_alarm(tmp_path: Path) -> None:
    run = evaluate(evaluate(finish_run(start_run(tmp_path / "run")), "val", right=10), "test", right=3)
    text = page(run).text
    assert "accuracy on test is 70.0 points below that on val" in text and "petriscope audit cells.npz" in text
    assert "Test and val disagree" not in page(evaluate(run, "test", right=10)).text


def test_an_ensemble_has_members_instead_of_training(run: Run) -> None:
    members = [{"run": f"runs/{name}", "val_score": 0.5, "weight": 0.5, "taken": True} for name in "ab"]
    gain = {"best_member": "runs/a", "gain": 0.0125, "gain_ci95": [-0.005, 0.03], "p": 0.2}
    run.add_results(ensemble=EnsembleSummary.model_validate({"method": "soft", "members": members, **gain}))
    (run.folder / "metrics.jsonl").unlink()
    found = page(run)
    found.check_self_contained()
    assert "val accuracy" in found.text and "McNemar's test" in found.text and "input" not in found.ids
    assert f"petriscope compare {run.folder} runs/a runs/b" in found.text
    assert "petriscope ensemble runs/a runs/b --method soft" in found.text
    assert "Optimizer" not in told(run)


def test_results_of_schema_version_1(run: Run) -> None:
    """As they were written before: without versions and tasks, and all images of the gallery in one file."""
    expected = page(run)
    results = json.loads((run.folder / "results.json").read_text())
    del results["schema_version"], results["task"]
    for split in ("val", "test"):
        del results[split]["task"]
    (run.folder / "results.json").write_text(json.dumps(results))
    environment = json.loads((run.folder / "environment.json").read_text())
    del environment["schema_version"]
    environment["data"]["targets"] = "labels"
    (run.folder / "environment.json").write_text(json.dumps(environment))
    np.savez(run.folder / "gallery.npz", **run.gallery)
    shutil.rmtree(run.folder / "gallery")
    found = page(run)
    assert found.text == expected.text and found.attributes == expected.attributes


class Counting(Classification):
    """A task that the report has no module for."""

    name: ClassVar[str] = "counting"
    monitors: ClassVar[tuple[str, ...]] = ("error", "loss")
    metrics: ClassVar[tuple[MetricInfo, ...]] = (
        MetricInfo("error", "Mean error", "mean difference between counts", percent=False, higher_is_better=False),
        MetricInfo("accuracy", "Accuracy", "share of exact counts"),
    )

    def accepts(self, targets: np.ndarray) -> bool:
        return False


def test_a_task_without_a_module_has_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_TASKS", dict(tasks._TASKS))  # the new task is gone after the test
    register(Counting())
    run = evaluate(finish_run(start_run(tmp_path / "run", task="counting"), val=False), "test")
    found = run.results.test
    assert found is not None
    run.add_results(test=found.model_copy(update={"metrics": {"error": Metric(value=1.5, ci95=(1.25, 1.75))}}))
    result = page(run)
    result.check_self_contained()
    assert "1.5000 mean error on 30 test images (95 % interval 1.2500 to 1.7500)." in result.text
    assert "1.5000 (1.2500 to 1.7500)" in result.text  # in the table of metrics
    assert "classes" in result.ids and "confusion" not in result.ids
    rows = re.findall(r"<tr><th scope=\"row\">red</th>(.*?)</tr>", (run.folder / "report.html").read_text())
    assert "<td>10</td><td>90.00 %</td>" in rows[1]


def rewrite(run: Run, **changes: Any) -> Run:
    """Another recipe in the run folder."""
    (run.folder / "recipe.yaml").write_text(Recipe(**{**RECIPE.model_dump(), **changes}).to_yaml(), encoding="utf-8")
    return run


def told(run: Run) -> dict[str, str]:
    """What the page lists about data, model and training, by name."""
    html = write_report(run).read_text(encoding="utf-8").partition('id="trained"')[2].partition("</dl>")[0]
    return dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", html.replace("&#39;", "'")))


def test_a_plain_run_does_not_mention_methods_that_it_did_not_use(run: Run) -> None:
    facts, text = told(run), page(run).text
    assert not {"Fine-tuning", "Distilled from", "Val augmented", "Sampler"} & set(facts)
    assert not any(word in text for word in ("SWA", "Reconstructions", "mixed"))
    assert facts["Initial weights"] == "random" and facts["Batches"] == "128 images"
    assert facts["Averaging"] == "running mean (EMA, decay 0.998)"


def test_further_methods_are_mentioned(run: Run) -> None:
    stages = [{"epoch": 5, "train": "last 25 %", "lr": 0.1}, {"epoch": 50, "train": "all"}]
    rewrite(
        run,
        model={"name": "resnet18", "stem": "imagenet", "weights": "/models/cells.safetensors"},
        finetune={"train": "head", "then": stages, "lr_decay": 0.7},
        distill={"teachers": ["runs/a", "runs/b"], "weight": 0.25},
        training={"ema": None, "swa": 0.25, "images_per_epoch": 42_000},
        evaluation={"augment_val": [{"name": "rotate", "degrees": 10}]},
        sampler="oversample",
    )
    statistics = {"mean": (0.5, 0.25, 0.125), "std": (0.2, 0.2, 0.1)}
    write_environment(run, Environment.model_validate({**run.environment.as_json(), "normalize": statistics}))
    expected = {
        "Model": "resnet18 (stem imagenet)",
        "Initial weights": "/models/cells.safetensors",
        "Normalization": "statistics of the initial weights: mean 0.500, 0.250, 0.125; std 0.200, 0.200, 0.100",
        "Fine-tuning": "head; from epoch 6: last 25 % at 0.1 × the rate; each block at 0.7 × the rate of the next block",
        "Distilled from": "runs/a, runs/b (weight 0.25, temperature 2)",
        "Averaging": "from epoch 16: mean over the epochs (SWA)",
        "Batches": "128 images, 42,000 images per epoch",
        "Sampler": "oversample",
        "Val augmented": "rotate (degrees 10), during training; the final metrics are of plain images",
    }
    facts = told(run)
    assert {name: facts.get(name) for name in expected} == expected
    text = page(run).text
    assert "cross-entropy, plus the distillation loss" in text
    assert "on val images augmented by rotate (degrees 10), the same in every epoch, with averaged weights" in text


@pytest.mark.parametrize(("name", "mixed"), [("mixup", True), ("cutmix", True), ("rotate", False), ("unknown", False)])
def test_accuracy_on_mixed_images_is_said_to_be_low(run: Run, name: str, mixed: bool) -> None:
    text = page(rewrite(run, augment=["flip", name])).text
    assert ("on augmented and mixed images" in text) is mixed
    assert ("accuracy is lower than on plain images" in text) is mixed
    assert ("on augmented images" in text) is not mixed


def test_a_pixel_of_a_mixed_mask_has_one_class(tmp_path: Path) -> None:
    run = start_run(tmp_path / "run", task="segmentation")
    run.write_history([{"epoch": 1, "train": {"loss": 1.0, "accuracy": 0.5}, "val": {"miou": 0.25, "loss": 1.0}}])
    text = page(rewrite(run, augment=["cutmix"])).text
    assert "on augmented and mixed images" in text and "lower than on plain images" not in text


def test_val_of_an_unfinished_run_is_said_to_be_augmented(tmp_path: Path) -> None:
    run = finish_run(start_run(tmp_path / "run"))
    (run.folder / "results.json").unlink()
    assert "on the augmented val images" in page(rewrite(run, evaluation={"augment_val": ["rotate"]})).text


def test_a_report_is_made_again_in_place(run: Run) -> None:
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


@pytest.mark.parametrize(
    ("rule", "weights", "words"),
    [
        ("auto", "none", "train images"),
        ("train", "pretrained", "train images"),
        ("imagenet", "none", "ImageNet"),
        ("auto", "pretrained", "initial weights"),
    ],
)
def test_the_source_of_the_normalization(run: Run, rule: str, weights: str, words: str) -> None:
    rewrite(run, data={"source": "cells.npz", "normalize": rule}, model={"name": "convnext-small", "weights": weights})
    assert words in told(run)["Normalization"]
