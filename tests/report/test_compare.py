"""Runs against one another: who is in which row, what is refused, and what the table and the page say."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pages import Page
from petriscope.core.errors import RequestError
from petriscope.core.recipe import Recipe
from petriscope.core.results import Cost, Evaluation, TrainingSummary
from petriscope.experiments.compare import compare, settings_that_differ
from petriscope.metrics.intervals import wilson
from petriscope.report.compare import as_text, render, verdict_words, write_comparison
from petriscope.run.folder import Run

CLASSES = ("red", "white", "platelet")
IMAGES = 300


def make_run(
    folder: Path,
    name: str = "plain",
    seed: int = 0,
    wrong: int = 40,
    splits: tuple[str, ...] = ("val", "test"),
    images: int = IMAGES,
    fingerprint: str = "f00d",
    multiply_adds: int = 5_000_000,
    **settings,
) -> Run:
    """A finished run that gets ``wrong`` images wrong, others for every seed."""
    folder.mkdir(parents=True)
    recipe = Recipe(name=name, seed=seed, **{"data": {"source": "cells.npz"}, **settings})
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    data = {"source": "cells.npz", "fingerprint": fingerprint}
    (folder / "environment.json").write_text(json.dumps({"data": data}))
    run = Run(folder)
    cost = Cost(
        parameters=1000 + multiply_adds // 1000,
        multiply_adds=multiply_adds,
        bytes_fp32=4000,
        inference_images_per_second=100.0,
    )
    run.add_results(training=TrainingSummary(seconds=60.0 + seed), cost=cost)
    names = np.array(CLASSES, dtype=object)
    for split in splits:
        target = np.arange(images) % 3
        predicted = target.copy()
        at = np.random.default_rng([seed, wrong]).permutation(images)[:wrong]
        predicted[at] = (target[at] + 1) % 3
        table = {"id": [f"{split}/{i}" for i in range(images)], "split": split, "target": names[target]}
        table = pd.DataFrame({**table, "predicted": names[predicted], "confidence": 0.9})
        run.add_predictions(split, table.sample(frac=1, random_state=seed))  # rows in any order
        share = 1 - wrong / images
        metrics = {"accuracy": share, "balanced_accuracy": share, "nll": 0.25}
        run.add_results(**{split: Evaluation.model_validate({"split": split, "n": images, **metrics})})
    return run


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """Three methods, three seeds each: one the baseline, one clearly better, one as good."""
    better = {"model": {"name": "simple-cnn", "norm": "batch"}}
    alike = {"model": {"name": "simple-cnn", "dropout": 0.2}}
    for seed in range(3):
        make_run(tmp_path / f"plain{seed}", seed=seed, wrong=60 + seed)
        make_run(tmp_path / f"better{seed}", "better", seed=seed, wrong=10 + seed, multiply_adds=9_000_000, **better)
        make_run(tmp_path / f"alike{seed}", "alike", seed=seed, wrong=58 + 2 * seed, **alike)
    return [str(tmp_path / f"{name}{seed}") for name in ("plain", "better", "alike") for seed in range(3)]


def test_seeds_of_a_recipe_are_one_row_with_mean_and_spread(runs):
    found = compare(runs)
    assert [(row.label, row.seeds) for row in found.rows] == [
        ("plain", (0, 1, 2)),
        ("better", (0, 1, 2)),
        ("alike", (0, 1, 2)),
    ]
    assert (found.split, found.n, found.baseline, found.tests) == ("test", IMAGES, "plain", 2)
    plain = found.rows[0]
    expected = [1 - wrong / IMAGES for wrong in (60, 61, 62)]
    assert plain.values == pytest.approx(expected)
    assert (plain.mean, plain.sd) == pytest.approx((np.mean(expected), np.std(expected, ddof=1)))
    assert plain.contrast is None and plain.seconds == 61 and plain.others["nll"] == 0.25


def test_verdicts(runs):
    better, alike = compare(runs).rows[1:]
    assert better.contrast.verdict == "better"
    assert better.contrast.difference.value == pytest.approx(50 / IMAGES)
    assert alike.contrast.verdict == "no difference shown"
    assert compare(runs, against=runs[3]).rows[1].contrast.verdict == "worse"
    # Holm: the p of the strongest is multiplied by the number of comparisons.
    assert better.contrast.p_holm == pytest.approx(2 * better.contrast.difference.p)


@pytest.mark.parametrize("metric", ["balanced_accuracy", "macro_f1"])
def test_other_metrics_are_compared_too(runs, metric):
    found = compare(runs, metric=metric)
    assert found.rows[1].contrast.verdict == "better"
    assert found.rows[0].mean == pytest.approx(0.797, abs=0.01)
    assert metric.replace("_", " ").replace("f1", "F1") in as_text(found)


def test_the_split_is_test_where_all_have_it_else_val(tmp_path):
    make_run(tmp_path / "a", wrong=30)
    make_run(tmp_path / "b", "other", wrong=20, splits=("val",), sampler="oversample")
    found = compare([tmp_path / "a", tmp_path / "b"])
    assert found.split == "val"
    assert any("on val" in note.lower() for note in found.notes)
    with pytest.raises(RequestError, match=r"b has no predictions on test; .*petriscope evaluate .*b"):
        compare([tmp_path / "a", tmp_path / "b"], "test")
    with pytest.raises(RequestError, match=r"petriscope evaluate .*a --split train"):
        compare([tmp_path / "a"], "train")


def test_one_seed_each_has_mcnemars_p_and_wilsons_interval_and_says_what_it_does_not_show(tmp_path):
    make_run(tmp_path / "a", wrong=30)
    make_run(tmp_path / "b", "other", wrong=20, sampler="oversample")
    found = compare([tmp_path / "a", tmp_path / "b"])
    assert found.rows[0].ci95 == wilson(270, 300) and found.rows[0].sd is None
    assert "not which recipe" in " ".join(found.notes)
    assert found.rows[1].contrast.needed.seeds is None
    assert "would be needed" in verdict_words(found.rows[1].contrast)
    assert "McNemar" in render(found)


def test_recipes_of_one_name_are_told_apart_by_their_settings(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", wrong=41, model={"name": "simple-cnn", "dropout": 0.5})
    make_run(tmp_path / "c", wrong=42, fingerprint="beef")
    labels = [row.label for row in compare([tmp_path / name for name in "abc"]).rows]
    assert labels == ["plain", "plain, model.dropout=0.5", "plain, other data"]


def test_a_run_named_twice_counts_once_and_one_seed_trained_twice_is_refused(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "copy")
    assert compare([tmp_path / "a", tmp_path / "a"]).rows[0].seeds == (0,)
    with pytest.raises(RequestError, match="seed"):
        compare([tmp_path / "a", tmp_path / "copy"])


def test_other_images_are_refused(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", seed=1, images=200)
    with pytest.raises(RequestError, match=r"b was evaluated on other test images .*200 of 300 .*petriscope evaluate"):
        compare([tmp_path / "a", tmp_path / "b"])


def test_other_classes_of_the_same_images_are_refused(tmp_path):
    make_run(tmp_path / "a")
    run = make_run(tmp_path / "b", seed=1)
    table = run.predictions
    run.add_predictions("test", table[table["split"] == "test"].assign(target="red"))
    with pytest.raises(RequestError, match="for the same"):
        compare([tmp_path / "a", tmp_path / "b"])


def test_an_unfinished_run_and_a_folder_without_one_are_refused(tmp_path):
    run = make_run(tmp_path / "a")
    (run.folder / "results.json").unlink()
    with pytest.raises(RequestError, match=r"petriscope train --resume"):
        compare([run.folder])
    with pytest.raises(RequestError, match="run folder"):
        compare([tmp_path / "nothing"])


def test_settings_that_differ():
    one = Recipe(name="a", seed=1, augment=("flip",), training={"epochs": 3})
    other = Recipe(name="b", seed=2, augment=("flip", "quarter-turn"), training={"epochs": 4})
    found = settings_that_differ(one, other)
    assert found == {"training.epochs": (3, 4), "augment.1.name": (None, "quarter-turn")}


def test_json_holds_all_of_it(runs):
    plain = json.loads(json.dumps(compare(runs).as_dict()))
    better = plain["rows"][1]["difference"]
    assert better["verdict"] == "better" and len(better["ci95"]) == 2 and better["p"] <= better["p_holm"]
    assert plain["rows"][0]["difference"] is None
    alike = compare(runs).rows[2].contrast.difference
    assert plain["rows"][2]["difference"]["images_needed"] > IMAGES
    assert plain["rows"][2]["difference"]["value"] == alike.value == pytest.approx(1 / IMAGES)


def test_the_text_table(runs):
    text = as_text(compare(runs))
    lines = text.splitlines()
    assert lines[0] == "test, 300 images"
    assert re.search(r"^plain +3 +79\.67 % ± 0\.33 +\d\d\.\d to \d\d\.\d +baseline$", text, re.M)
    assert re.search(r"^better +3 .* \+16\.67 \(\+\d+\.\d\d to \+\d+\.\d\d\) +< 0\.001 +better$", text, re.M)
    assert re.search(r"^alike .*no difference shown", text, re.M)
    assert re.search(r"^better +10,000 +9 M +1 min 01 s$", text, re.M)


def test_the_page_is_one_file_that_says_what_was_found(runs, tmp_path):
    found = compare(runs)
    path = write_comparison(found, tmp_path / "page.html", "Three methods", "What matters?")
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    for words in (
        "Three methods",
        "What matters?",
        "Of 2 recipes on 300 test images: 1 better than plain, 1 with no difference shown.",
        "better has the highest mean:",
        "+16.67",
        "no difference shown",
        "Holm's correction for 2 comparisons",
        runs[4],
    ):
        assert words in page.text, words
    page.check_self_contained()
    assert "http://" not in html and "https://" not in html and "url(" not in html
    assert "None" not in page.text and "nan" not in page.text.lower()


def test_the_script_that_may_run_is_the_one_that_is_there(runs):
    html = render(compare(runs))
    script = re.findall(r"<script>(.*?)</script>", html, re.S)
    assert len(script) == 1
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html


def test_every_column_that_sorts_has_values_that_sort(runs):
    page = Page(render(compare(runs)))
    values = [value for tag, key, value in page.attributes if tag == "td" and key == "data-value" and value]
    assert len(values) > 20 and all(np.isfinite(float(value)) for value in values)


def test_charts_show_costs_that_differ(runs, tmp_path):
    html = render(compare(runs))
    assert "By multiply-adds per image" in html and "By parameters" in html
    assert "By training time" not in html  # the same for all
    charts = re.findall(r'<svg class="chart".*?</svg>', html, re.S)
    assert len(charts) == 2
    assert all(chart.count("<circle") == 3 and "aria-label=" in chart for chart in charts)
    assert 'class="diagonal"' in charts[0]  # more multiply-adds reach more


def test_a_single_recipe_has_no_tests_but_a_page(runs):
    found = compare(runs[:3])
    assert found.tests == 0
    assert "baseline" not in as_text(found)
    assert "Measured on 300 test images." in Page(render(found)).text


def test_names_from_outside_are_escaped(tmp_path):
    name = '<script>alert("x")</script>'
    make_run(tmp_path / "a", name, multiply_adds=100)
    make_run(tmp_path / "b", "other & more", wrong=5, sampler="oversample")
    html = render(compare([tmp_path / "a", tmp_path / "b"]), "</title><script>", "<b>bold</b>")
    assert html.count("<script>") == 1
    assert name in Page(html).text
