"""Metrics of any number of labels per image, against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from petriscope.metrics.multilabel import (
    average_precision,
    full_label_metrics,
    judge_label_passes,
    label_draws,
    label_subset_metrics,
    quick_label_metrics,
    ranking_precision_each,
)

NAMES = ("a", "b", "c")


def drawn(seed: int, n: int = 60, ties: bool = False):
    rng = np.random.default_rng(seed)
    targets = (rng.random((n, len(NAMES))) < (0.5, 0.3, 0.1)).astype(np.uint8)
    targets[0], targets[1] = 1, 0
    p = 1 / (1 + np.exp(-(rng.normal(size=targets.shape) + 1.5 * targets - 1)))
    return (np.round(p, 1) if ties else p).astype(np.float32), targets


@given(st.integers(0, 10**6), st.booleans())
def test_metrics_agree_with_scikit_learn(seed: int, ties: bool) -> None:
    p, targets = drawn(seed, ties=ties)
    decided = p >= np.array([0.5, 0.4, 0.3], np.float32)
    found = full_label_metrics(p, targets, decided, NAMES, resamples=0)
    assert found["map"] == pytest.approx(sk.average_precision_score(targets, p, average="macro"))
    assert found["auc"] == pytest.approx(sk.roc_auc_score(targets, p, average="macro"))
    assert found["macro_f1"] == pytest.approx(sk.f1_score(targets, decided, average="macro", zero_division=0))
    assert found["exact_match"] == pytest.approx(sk.accuracy_score(targets, decided))
    assert found["lrap"] == pytest.approx(sk.label_ranking_average_precision_score(targets, p))
    assert found["label_accuracy"] == pytest.approx(1 - sk.hamming_loss(targets, decided))
    inside = np.clip(p.astype(np.float64), 1e-38, 1 - 2.0**-24)
    losses = -np.where(targets, np.log(inside), np.log1p(-inside))  # sk.log_loss of older versions clips at 2e-16
    assert found["nll"] == pytest.approx(losses.mean(), rel=1e-6)
    for k, name in enumerate(NAMES):
        row, true, said = found["per_class"][name], targets[:, k], decided[:, k]
        assert row["n"] == true.sum()
        assert row["ap"] == pytest.approx(sk.average_precision_score(true, p[:, k]))
        assert row["auc"] == pytest.approx(sk.roc_auc_score(true, p[:, k]))
        assert row["f1"] == pytest.approx(sk.f1_score(true, said, zero_division=0))
        assert row["recall"] == pytest.approx(sk.recall_score(true, said))
        if said.any():
            assert row["precision"] == pytest.approx(sk.precision_score(true, said))
    quick = quick_label_metrics(p, targets)
    assert quick == pytest.approx({"map": found["map"], "auc": found["auc"], "loss": found["nll"]})


@given(st.integers(0, 10**6), st.booleans())
def test_resamples_are_weighted_as_scikit_learn_weighs(seed: int, ties: bool) -> None:
    p, targets = drawn(seed, 30, ties)
    weights = np.random.default_rng(seed).integers(0, 3, (4, 30)).astype(float)
    weights[:, :2] = 1  # an image with every label, and one with none
    for k in range(3):
        wanted = [sk.average_precision_score(targets[:, k], p[:, k], sample_weight=row) for row in weights]
        np.testing.assert_allclose(average_precision(p[:, k], targets[:, k] == 1, weights), wanted)
    decided = p >= 0.5
    for metric, of in {
        "map": lambda w: sk.average_precision_score(targets, p, sample_weight=w),
        "auc": lambda w: sk.roc_auc_score(targets, p, sample_weight=w),
        "macro_f1": lambda w: sk.f1_score(targets, decided, average="macro", sample_weight=w, zero_division=0),
        "exact_match": lambda w: sk.accuracy_score(targets, decided, sample_weight=w),
        "lrap": lambda w: sk.label_ranking_average_precision_score(targets, p, sample_weight=w),
    }.items():
        found = label_draws(metric, p, targets, decided, weights)
        np.testing.assert_allclose(found, [of(row) for row in weights], err_msg=metric)


def test_ranking_precision_of_images_with_no_label_or_all_is_one() -> None:
    p = np.array([[0.1, 0.9], [0.2, 0.3], [0.6, 0.2]])
    targets = np.array([[0, 0], [1, 1], [0, 1]])
    np.testing.assert_allclose(ranking_precision_each(p, targets), [1, 1, 0.5])


def test_intervals_hold_the_values_and_narrow_with_more_images() -> None:
    widths = []
    for n in (60, 960):
        p, targets = drawn(3, n)
        found = full_label_metrics(p, targets, p >= 0.5, NAMES, resamples=200)
        for key in ("map", "auc", "macro_f1", "exact_match", "lrap", "label_accuracy", "nll"):
            low, high = found[f"{key}_ci95"]
            assert low <= found[key] <= high, key
        low, high = found["per_class"]["b"]["ap_ci95"]
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_a_class_that_no_image_has_is_left_out_of_means_and_said_to_be_undefined() -> None:
    p, targets = drawn(0)
    targets[:, 2] = 0
    found = full_label_metrics(p, targets, p >= 0.5, NAMES, resamples=20)
    assert found["per_class"]["c"]["ap"] is found["per_class"]["c"]["f1"] is None
    assert found["map"] == pytest.approx(np.mean([found["per_class"][name]["ap"] for name in "ab"]))
    nothing = full_label_metrics(p, np.zeros_like(targets), p >= 0.5, NAMES, resamples=20)
    assert nothing["map"] is None and nothing["undefined"]["map"] == "no image has a label"


def test_groups_widen_intervals() -> None:
    p, targets = drawn(5, 200)
    index = np.arange(200) // 20
    p, targets = p[index * 20], targets[index * 20]  # images of one group are equal
    alone = full_label_metrics(p, targets, p >= 0.5, NAMES, 200)
    grouped = full_label_metrics(p, targets, p >= 0.5, NAMES, 200, index)
    assert grouped["groups"] == 10
    width = {key: found["lrap_ci95"][1] - found["lrap_ci95"][0] for key, found in (("a", alone), ("g", grouped))}
    assert width["g"] > 2 * width["a"]


def test_subsets_and_passes_are_judged_as_the_whole() -> None:
    p, targets = drawn(1)
    whole = full_label_metrics(p, targets, p >= 0.5, NAMES, 50)
    some = label_subset_metrics(p, targets, p >= 0.5, 50, None)
    assert {key: some[key] for key in ("n", "map", "macro_f1", "exact_match")} == pytest.approx(
        {key: whole[key] for key in ("n", "map", "macro_f1", "exact_match")}
    )
    passes = judge_label_passes(np.stack([p, 1 - p]), targets, 50)
    assert passes.values[0] == pytest.approx(whole["map"]) and passes.values[1] < passes.values[0]
    assert passes.accuracy[0].value == pytest.approx(whole["label_accuracy"])
    assert passes.drawn.shape == (50, 2)
