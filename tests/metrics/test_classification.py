"""Every metric against a second implementation, every interval against its nominal coverage."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from petriscope.inference.tta import views
from petriscope.metrics.classification import (
    auc_influence,
    calibration_bins,
    calibration_error,
    class_aucs,
    confusion_matrix,
    full_metrics,
    quick_metrics,
)
from petriscope.metrics.intervals import bootstrap_weights, percentile95, wilson
from petriscope.metrics.passes import judge_labels
from petriscope.metrics.statistics import resample
from petriscope.models.backbones import import_timm
from petriscope.trust.state import fit_reference, trust_metrics

NAMES = tuple("abcde")


def sample(n=300, classes=5, skill=1.5, seed=0):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, n)
    logits = rng.normal(size=(n, classes)) + skill * np.eye(classes)[targets]
    probabilities = np.exp(logits)
    return probabilities / probabilities.sum(1, keepdims=True), targets


@given(n=st.integers(2, 80), classes=st.integers(2, 6), seed=st.integers(0, 10_000), skill=st.floats(0, 4))
def test_metrics_agree_with_scikit_learn(n, classes, seed, skill):
    probabilities, targets = sample(n, classes, skill, seed)
    predicted = probabilities.argmax(1)
    present = np.unique(targets)
    ours = full_metrics(probabilities, targets, NAMES[:classes] + ("f",) * (classes > 5), resamples=10)
    assert ours["accuracy"] == pytest.approx(sk.accuracy_score(targets, predicted))
    recalls = sk.recall_score(targets, predicted, labels=present, average=None)
    assert ours["balanced_accuracy"] == pytest.approx(recalls.mean())
    macro_f1 = sk.f1_score(targets, predicted, labels=present, average="macro", zero_division=0)
    assert ours["macro_f1"] == pytest.approx(macro_f1)
    assert ours["nll"] == pytest.approx(sk.log_loss(targets, probabilities, labels=np.arange(classes)))
    assert np.array_equal(ours["confusion"], sk.confusion_matrix(targets, predicted, labels=np.arange(classes)))
    quick = quick_metrics(probabilities, targets)
    assert {k: ours[k] for k in ("accuracy", "balanced_accuracy", "macro_f1")} == pytest.approx(
        {k: quick[k] for k in ("accuracy", "balanced_accuracy", "macro_f1")}
    )
    assert quick["loss"] == pytest.approx(ours["nll"])


def test_auc_agrees_with_scikit_learn_also_with_ties():
    probabilities, targets = sample(400)
    for scores in (probabilities, np.round(probabilities, 1)):
        expected = [sk.roc_auc_score(targets == k, scores[:, k]) for k in range(5)]
        assert class_aucs(scores, targets) == pytest.approx(expected)


def test_an_absent_class_has_no_recall():
    probabilities, targets = sample(50, 3)
    rows = full_metrics(probabilities, np.minimum(targets, 1), NAMES[:3], resamples=10)["per_class"].values()
    assert [row["recall"] is None for row in rows] == [False, False, True]
    assert [row["recall_ci95"] == [None, None] for row in rows] == [False, False, True]


def test_auc_of_an_absent_class_is_left_out():
    probabilities, targets = sample(60, classes=3)
    wide = np.concatenate([probabilities, np.zeros((60, 1))], 1)
    result = full_metrics(wide, targets, NAMES[:4], resamples=10)
    assert result["per_class"]["d"]["auc"] is None
    assert result["auc"] == pytest.approx(full_metrics(probabilities, targets, NAMES[:3], resamples=10)["auc"])


def test_a_single_class_has_no_auc():
    result = full_metrics(np.array([[0.9, 0.1], [0.4, 0.6]]), np.array([0, 0]), NAMES[:2], resamples=10)
    assert result["accuracy"] == 0.5
    assert result["auc"] is None
    assert result["auc_ci95"] == [None, None]


@pytest.mark.parametrize("skill", [0.0, 1.0, 3.0])
def test_calibration_error_agrees_with_torchmetrics(skill):
    import_timm()  # lets torchmetrics import torchvision beside a CPU build of torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    probabilities, targets = sample(500, skill=skill)
    theirs = multiclass_calibration_error(
        torch.from_numpy(probabilities), torch.from_numpy(targets), num_classes=5, n_bins=15, norm="l1"
    )
    correct = probabilities.argmax(1) == targets
    assert calibration_error(probabilities.max(1), correct) == pytest.approx(float(theirs), abs=1e-6)
    assert calibration_bins(probabilities.max(1), correct)["count"].sum() == 500


def test_brier_is_the_definition():
    result = full_metrics(np.array([[0.8, 0.2], [0.3, 0.7]]), np.array([0, 0]), NAMES[:2], resamples=10)
    assert result["brier"] == pytest.approx((0.04 + 0.04 + 0.49 + 0.49) / 2)


def test_confusion_has_the_truth_in_its_rows():
    assert confusion_matrix(np.array([0, 0, 1]), np.array([1, 1, 1]), 2).tolist() == [[0, 2], [0, 1]]


class TestIntervals:
    def test_wilson_is_the_published_example(self):
        # 8 of 10: Wilson's interval is 0.490 to 0.943 (Newcombe, 1998, Statistics in Medicine 17:857, method 3)
        assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=5e-4)
        assert wilson(0, 0) == (0, 1)

    @given(n=st.integers(1, 500), share=st.floats(0, 1))
    def test_wilson_contains_its_estimate(self, n, share):
        hits = round(share * n)
        low, high = wilson(hits, n)
        assert 0 <= low <= hits / n + 1e-12
        assert hits / n - 1e-12 <= high <= 1

    def test_bootstrap_draws_n_images_and_is_seeded(self):
        first = np.concatenate(list(bootstrap_weights(50, 30, seed=1, chunk_bytes=8 * 50 * 7)))
        assert first.shape == (30, 50)
        assert (first.sum(1) == 50).all()
        assert np.array_equal(first, np.concatenate(list(bootstrap_weights(50, 30, seed=1, chunk_bytes=8 * 50 * 7))))

    def test_the_bootstrap_of_a_mean_has_its_standard_error(self):
        values = np.random.default_rng(0).normal(size=400)
        means = np.concatenate([w @ values / 400 for w in bootstrap_weights(400, 2000)])
        low, high = percentile95(means)
        assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)

    def test_intervals_contain_their_metrics(self):
        result = full_metrics(*sample(), NAMES, resamples=300)
        for key in ("accuracy", "balanced_accuracy", "macro_f1", "auc", "nll", "brier"):
            low, high = result[f"{key}_ci95"]
            assert low < result[key] < high

    def test_the_interval_of_balanced_accuracy_has_its_nominal_coverage(self):
        probabilities, targets = sample(1_000_000, skill=1.0, seed=12345)
        truth = quick_metrics(probabilities, targets)["balanced_accuracy"]
        covered = 0
        for seed in range(60):
            probabilities, targets = sample(150, skill=1.0, seed=seed + 1)
            low, high = full_metrics(probabilities, targets, NAMES, resamples=200)["balanced_accuracy_ci95"]
            covered += low <= truth <= high
        assert covered >= 51  # 57 expected of 60; fewer than 51 has a chance of 1 in 200


class TestViews:
    def test_there_are_eight_different_symmetries(self):
        images = torch.arange(16.0).view(1, 1, 4, 4)
        d4 = views(images, "d4")
        assert len({tuple(v.flatten().tolist()) for v in d4}) == 8
        turns = {tuple(torch.rot90(images, k, (2, 3)).flatten().tolist()) for k in range(4)}
        assert turns <= {tuple(v.flatten().tolist()) for v in d4}

    def test_images_that_are_not_square_have_four(self):
        assert [v.shape for v in views(torch.zeros(1, 1, 4, 6), "d4")] == [(1, 1, 4, 6)] * 4
        assert len(views(torch.zeros(1, 1, 4, 4), "flips")) == 4
        assert len(views(torch.zeros(1, 1, 4, 4), "mirror")) == 2
        assert len(views(torch.zeros(1, 1, 4, 4), "none")) == 1


@pytest.mark.parametrize("index", [None, np.arange(600) // 10])
def test_the_interval_of_the_auc_is_the_same_where_it_is_linear_in_the_weights(index, monkeypatch):
    probabilities, targets = sample(600, skill=1.0)
    probabilities = np.round(probabilities, 2)  # with ties
    exact = full_metrics(probabilities, targets, NAMES, index=index)
    monkeypatch.setattr("petriscope.metrics.classification.MOST_RANKED", 0)
    linear = full_metrics(probabilities, targets, NAMES, index=index)
    assert linear["auc"] == exact["auc"]
    assert linear["auc_ci95"] == pytest.approx(exact["auc_ci95"], abs=0.05 * np.ptp(exact["auc_ci95"]))
    assert {**linear, "auc_ci95": 0} == {**exact, "auc_ci95": 0}


def test_the_influence_of_an_image_is_the_change_of_the_auc_by_its_weight():
    probabilities, targets = sample(80)
    score, positive = np.round(probabilities[:, 0], 1), targets == 0
    auc, influence = auc_influence(score, positive)
    assert auc == pytest.approx(sk.roc_auc_score(positive, score)) and influence.sum() == pytest.approx(0, abs=1e-12)
    for image in range(0, 80, 7):
        weights = np.ones(80)
        weights[image] += 1e-6
        changed = sk.roc_auc_score(positive, score, sample_weight=weights)
        assert (changed - auc) / 1e-6 == pytest.approx(influence[image], abs=1e-5)


def test_memory_is_proportional_to_classes():
    """A confusion matrix per resample would take 64 MB."""
    images, classes = 500, 400
    rng = np.random.default_rng(0)
    targets, p = rng.integers(0, classes, images), rng.random((images, classes), dtype=np.float32)
    p /= p.sum(1, keepdims=True)
    predicted = rng.integers(0, classes, (2, images))
    full_metrics(p[:2], targets[:2], ("",) * classes, 1)  # imports what is imported at the first call
    tracemalloc.start()
    full_metrics(p, targets, tuple(map(str, range(classes))), 50)
    resample(predicted, targets, classes, "macro_f1", 50)
    judge_labels(predicted == targets, targets, classes, 50)
    reference = fit_reference(p, targets)
    trust_metrics(p, p, targets, None, tuple(map(str, range(classes))), reference, 1.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    confusion = 8 * 6 * classes**2  # as an array, and as lists of numbers
    assert peak < confusion + 4 * p.nbytes
