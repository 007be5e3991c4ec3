from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from petriscope.audit import label_errors
from petriscope.audit.label_errors import find_label_errors, out_of_fold_probabilities
from petriscope.core.errors import DataError, RequestError
from petriscope.data.imageset import ImageSet
from petriscope.data.sources.synthetic_smear import CLASSES, draw_smear


def judged(count=3000, classes=5, wrong=0.0, spread=0.3, seed=0):
    """Probabilities that are right as often as they say, true classes, and labels of which a share is changed."""
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(classes, spread / classes), count) * 0.999 + 0.001 / classes
    true = (probabilities.cumsum(1) < rng.random((count, 1))).sum(1).clip(0, classes - 1)
    labels = true.copy()
    chosen = rng.choice(count, round(wrong * count), replace=False)
    labels[chosen] = (true[chosen] + rng.integers(1, classes, len(chosen))) % classes
    return labels, probabilities.astype(np.float32), true


def f1(flagged, changed):
    return 2 * (flagged & changed).sum() / (flagged.sum() + changed.sum())


@pytest.mark.parametrize("wrong", [0.02, 0.05, 0.2])
def test_changed_labels_are_found_as_by_one_who_knows_the_noise(wrong):
    labels, probabilities, true = judged(wrong=wrong, spread=0.2)
    found = find_label_errors(labels, probabilities)
    changed = labels != true
    noise = np.full((5, 5), wrong / 4) + (1 - 1.25 * wrong) * np.eye(5)
    ideal = probabilities * noise[:, labels].T
    assert f1(found.flagged, changed) > f1(ideal.argmax(1) != labels, changed) - 0.03
    assert f1(found.flagged, changed) > 0.7
    assert (found.suggested == true)[found.flagged & changed].mean() > 0.85
    assert np.array_equal(found.suggested[~found.flagged], labels[~found.flagged])


def test_right_labels_are_left_alone():
    labels, probabilities, _ = judged(wrong=0)
    found = find_label_errors(labels, probabilities)
    assert found.flagged.mean() < 0.01


def test_the_score_is_the_chance_of_being_wrong():
    labels, probabilities, true = judged(6000, wrong=0.1, spread=1.0)
    score = find_label_errors(labels, probabilities).score
    assert score.dtype == np.float32 and score.min() >= 0 and score.max() <= 1
    for low, high in ((0.0, 0.1), (0.1, 0.5), (0.5, 0.9), (0.9, 1.01)):
        part = (score >= low) & (score < high)
        assert abs((labels != true)[part].mean() - score[part].mean()) < 0.1


@pytest.mark.parametrize("exponent", [0.4, 2.0])
def test_how_sure_the_network_is_does_not_matter(exponent):
    labels, probabilities, _ = judged(wrong=0.1)
    other = probabilities**exponent
    one = find_label_errors(labels, probabilities)
    two = find_label_errors(labels, other / other.sum(1, keepdims=True))
    assert (one.flagged == two.flagged).mean() > 0.995


def test_labels_changed_to_the_next_class_alone():
    labels, probabilities, true = judged()
    chosen = np.random.default_rng(1).random(len(labels)) < 0.15
    labels = np.where(chosen, (true + 1) % 5, true)
    found = find_label_errors(labels, probabilities)
    assert found.flagged[chosen].mean() > 0.8
    assert chosen[found.flagged].mean() > 0.8


@settings(max_examples=5)
@given(st.permutations(range(5)))
def test_the_names_of_the_classes_do_not_matter(order):
    labels, probabilities, _ = judged(300, wrong=0.1)
    order = np.array(order)
    one, other = (
        find_label_errors(labels, probabilities),
        find_label_errors(order[labels], probabilities[:, order.argsort()]),
    )
    assert np.allclose(one.score, other.score, atol=1e-3)
    assert np.array_equal(order[one.suggested], other.suggested)


def test_a_class_of_few_images_is_neither_judged_nor_suggested():
    labels, probabilities, _ = judged(400, classes=4, wrong=0.1)
    labels = np.where(labels == 2, 1, labels)
    labels[:3] = 2
    found = find_label_errors(labels, probabilities)
    assert not found.flagged[:3].any() and not found.score[:3].any()
    assert not (found.suggested[3:] == 2).any()


def test_one_class_or_none_is_nothing_to_judge():
    assert not find_label_errors(np.zeros(30, np.int64), np.full((30, 2), 0.5, np.float32)).flagged.any()
    assert not len(find_label_errors(np.zeros(0, np.int64), np.zeros((0, 3), np.float32)).flagged)


@pytest.mark.parametrize(
    ("labels", "probabilities"),
    [
        (np.zeros(3, np.int64), np.ones((2, 2))),
        (np.zeros(2, np.int64), np.full((2, 2), np.nan)),
        (np.full(2, 5), np.ones((2, 2))),
    ],
)
def test_arrays_that_do_not_fit_are_refused(labels, probabilities):
    with pytest.raises(DataError):
        find_label_errors(labels, probabilities)


@pytest.fixture
def smear(monkeypatch):
    monkeypatch.setattr(label_errors, "LEAST_STEPS", 2)
    images, labels = draw_smear(64, 12)
    return ImageSet(images, labels, CLASSES, np.arange(64).astype(str))


def test_probabilities_of_networks_that_were_not_shown_the_image(smear, monkeypatch):
    trained_on = []
    train, predict = label_errors.train_small, label_errors.predict_set

    def train_and_note(images, *rest):
        trained_on.append(set(images.ids))
        return train(images, *rest)

    def predict_and_check(model, batches, *rest):
        assert not trained_on[-1] & set(batches.images.ids)
        assert len(trained_on[-1]) + len(batches.images) == 64
        return predict(model, batches, *rest)

    monkeypatch.setattr(label_errors, "train_small", train_and_note)
    monkeypatch.setattr(label_errors, "predict_set", predict_and_check)
    probabilities = out_of_fold_probabilities(smear, folds=2, repeats=2, epochs=1)
    assert len(trained_on) == 4
    assert probabilities.shape == (64, 8) and probabilities.dtype == np.float32
    assert np.allclose(probabilities.sum(1), 1, atol=1e-3)


def test_same_seed_same_probabilities(smear):
    one, again = (out_of_fold_probabilities(smear, folds=2, epochs=1, seed=3) for _ in range(2))
    other = out_of_fold_probabilities(smear, folds=2, epochs=1, seed=4)
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_too_few_images_or_classes(smear):
    with pytest.raises(DataError, match="Leave this check out"):
        out_of_fold_probabilities(smear.subset(np.arange(30)))
    with pytest.raises(DataError, match="64 images of 1 classes are too few"):
        out_of_fold_probabilities(replace(smear, targets=np.zeros(64, np.int64)))


@pytest.mark.parametrize("wrong", [{"folds": 1}, {"repeats": 0}, {"epochs": 0}])
def test_wrong_numbers_are_refused(smear, wrong):
    with pytest.raises(RequestError):
        out_of_fold_probabilities(smear, **wrong)
