"""The contract that every registered task keeps."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from petriscope.core.errors import DataError, RequestError
from petriscope.core.masks import IGNORE
from petriscope.core.results import Evaluation
from petriscope.data.imageset import ImageSet
from petriscope.tasks import _TASKS, choose_task, find_task

NAMES = ("background", "red", "blue")
COUNT, SHAPE = 12, (6, 8, 1)


def labels(rng):
    return np.concatenate([np.arange(3), rng.integers(0, 3, COUNT - 3)])


def masks(rng):
    targets = rng.integers(0, 3, (COUNT, *SHAPE[:2]), dtype=np.uint8)
    targets[rng.random(targets.shape) < 0.1] = IGNORE
    targets[0], targets[1] = 1, IGNORE  # a single class, and no labeled pixel
    return targets


def label_sets(rng):
    targets = (rng.random((COUNT, 3)) < (0.6, 0.4, 0.3)).astype(np.uint8)
    targets[0], targets[1] = 1, 0  # all labels, and none
    return targets


DRAW = {"classification": labels, "segmentation": masks, "multilabel": label_sets}  # targets of each task
every_task = pytest.mark.parametrize("task", _TASKS.values(), ids=list(_TASKS))


def drawn(task, seed=0):
    rng = np.random.default_rng(seed)
    ids = np.array([f"image {i}" for i in range(COUNT)])
    groups = np.array([f"slide {i % 4}" for i in range(COUNT)])
    pixels = rng.integers(0, 256, (COUNT, *SHAPE), dtype=np.uint8)
    return ImageSet(pixels, DRAW[task.name](rng), NAMES, ids, groups)


def one_hot(images):
    """Logits that favor the true class, float [N, K, ...]; the first class where there is none. Of labels, those that an image
    has are above 0 and the others below."""
    targets = torch.from_numpy(images.targets.astype(np.int64))
    if not images.task.exclusive:
        return 2.0 * targets - 1
    known = torch.where(targets < len(NAMES), targets, 0)
    return torch.nn.functional.one_hot(known, len(NAMES)).movedim(-1, 1).float()


def log_probabilities(images, skill, seed=1):
    noise = torch.randn(one_hot(images).shape, generator=torch.Generator().manual_seed(seed))
    return images.task.log_probabilities(skill * one_hot(images) + noise)


def collected(task, images, log_p, batch=5):
    starts = range(0, COUNT, batch)
    targets = torch.from_numpy(images.targets)
    batches = ((np.arange(i, min(i + batch, COUNT)), log_p[i : i + batch], targets[i : i + batch]) for i in starts)
    return task.collect(batches, COUNT, len(NAMES), full=True)


def evaluation(task, images, outputs):
    return Evaluation.model_validate({"task": task.name, "split": "val", **task.judge(outputs, images, 60)})


@every_task
def test_its_targets_are_recognized_and_those_of_others_are_not(task):
    assert find_task(task.name) is task
    for name, draw in DRAW.items():
        targets = draw(np.random.default_rng(0))
        assert task.accepts(targets) == (name == task.name)
        assert choose_task(targets).name == name
    assert not task.accepts(np.zeros(4, dtype=np.float32))


@every_task
def test_a_class_out_of_range_is_refused_with_the_id_of_the_image(task):
    images = drawn(task)
    targets = images.targets.copy()
    targets[5] = len(NAMES)  # of labels, anything above 1 is out of range
    with pytest.raises(DataError, match="image 5"):
        task.check(targets, NAMES, SHAPE, images.ids)


@every_task
def test_amounts_counts_and_strata_agree(task):
    targets = drawn(task).targets
    amounts, strata = task.amounts(targets, 3), task.strata(targets, 3)
    assert amounts.shape == (COUNT, 3) and strata.shape == (COUNT,)
    np.testing.assert_array_equal(task.counts(targets, 3), amounts.sum(0))
    some = amounts.any(1)
    assert (amounts[np.arange(COUNT), strata] > 0)[some].all()
    assert ((strata >= 0) & (strata < 3)).all()
    assert len(task.split_amounts(targets, 3)) == COUNT
    loss_counts = task.loss_counts(targets, 3)
    np.testing.assert_array_equal(loss_counts if loss_counts.ndim == 1 else loss_counts.sum(0), amounts.sum(0))


@every_task
def test_log_probabilities_are_those_of_probabilities(task):
    logits = torch.randn(one_hot(drawn(task)).shape, generator=torch.Generator().manual_seed(2))
    p = task.probabilities(logits)
    torch.testing.assert_close(task.log_probabilities(logits).exp(), p)
    assert ((p > 0) & (p < 1)).all()
    assert bool(torch.allclose(p.sum(1), torch.ones(()))) == task.exclusive


@every_task
def test_every_image_has_a_name_for_what_it_is(task):
    images = drawn(task)
    names = task.names(images.targets, NAMES)
    assert len(names) == COUNT and all(names)
    if not task.exclusive:
        assert names[:2] == ["background, red, blue", "none"]


@every_task
def test_relabeling_permutes_amounts(task):
    targets, table = drawn(task).targets, np.array([2, 0, 1])
    relabeled = task.relabel(targets, table)
    assert task.accepts(relabeled)
    np.testing.assert_array_equal(task.amounts(relabeled, 3)[:, table], task.amounts(targets, 3))


@every_task
def test_hits_of_perfect_and_of_wrong_logits(task):
    images = drawn(task)
    targets = task.loss_targets(torch.from_numpy(images.targets))
    hits, possible = task.hits(one_hot(images), targets)
    assert hits == possible == (task.counts(images.targets, 3).sum() if task.exclusive else images.targets.size)
    assert task.hits(-one_hot(images), targets)[0] == 0


@every_task
def test_quick_metrics_are_the_monitors_and_do_not_depend_on_the_batches(task):
    images = drawn(task)
    log_p = log_probabilities(images, 1.0)
    first, second = (task.quick(collected(task, images, log_p, batch), images) for batch in (5, COUNT))
    assert set(task.monitors) <= set(first)
    assert first == pytest.approx(second)
    perfect = task.quick(collected(task, images, task.log_probabilities(50 * one_hot(images))), images)
    for key in task.monitors:
        better = perfect[key] > first[key] if task.info(key).higher_is_better else perfect[key] < first[key]
        assert better, key


@every_task
def test_the_evaluation_agrees_with_quick_metrics_and_score(task):
    images = drawn(task)
    outputs = collected(task, images, log_probabilities(images, 1.0))
    found, quick = evaluation(task, images, outputs), task.quick(outputs, images)
    assert found.n == COUNT and set(found.per_class) == set(NAMES)
    assert found.value("nll") == pytest.approx(quick["loss"], rel=1e-5)
    assert task.score(outputs, images) == pytest.approx(found.value(task.metrics[0].key))
    for key in {*quick} & {*found.metrics}:  # one name, one metric: what chooses the epoch is what is reported
        assert found.value(key) == pytest.approx(quick[key], rel=1e-5), key
    assert set(found.metrics) >= {each.key for each in task.metrics}
    for key, metric in found.metrics.items():
        assert (metric.ci95 is None) == (key == "ece"), key
        low, high = metric.ci95 or (0, 1)
        assert low <= metric.value <= high, key
    if task.exclusive:
        assert np.array(found.confusion).sum() == task.counts(images.targets, 3).sum()


@every_task
def test_the_evaluation_survives_a_round_trip_through_json(task):
    images = drawn(task)
    found = evaluation(task, images, collected(task, images, log_probabilities(images, 1.0)))
    tree = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert tree[task.metrics[0].key] == found.value(task.metrics[0].key)
    assert Evaluation.model_validate(tree) == found


@every_task
def test_tables_hold_the_ids_and_what_comparisons_need(task):
    images = drawn(task)
    outputs = [collected(task, images, log_probabilities(images, skill)) for skill in (0.5, 3.0)]
    tables = [task.table(each, images, "val") for each in outputs]
    assert all(table["id"].tolist() == images.ids.tolist() and set(table["split"]) == {"val"} for table in tables)
    same = task.same_truth(tables[0].columns)
    assert same and tables[0][same].equals(tables[1][same])
    columns = [{name: table[name].to_numpy() for name in table} for table in tables]
    for metric in task.compared:
        sample = task.sample(columns, metric)
        assert len(sample) == 2 and sample.images == COUNT
        expected = [evaluation(task, images, each).value(metric) for each in outputs]
        assert sample.values == pytest.approx(expected)
    if not task.compared:
        with pytest.raises(RequestError):
            task.sample(columns, "accuracy")


@every_task
def test_passes_of_the_stress_test_agree_with_the_evaluation(task):
    images = drawn(task)
    passes = [log_probabilities(images, skill) for skill in (3.0, 0.5)]
    predicted = [task.chosen(log_p.exp().numpy()) for log_p in passes]
    if not task.has_stress_test:
        with pytest.raises(RequestError):
            task.mark(predicted[0], images.targets, 3)
        return
    marks = np.stack([task.mark(each, images.targets, 3) for each in predicted])
    parts = [task.mark(predicted[0][part], images.targets[part], 3) for part in (slice(5), slice(5, None))]
    np.testing.assert_array_equal(np.concatenate(parts), marks[0])
    found = task.judge_passes(marks, images, 60)
    assert found.n == COUNT and found.drawn.shape[1] == 2
    for index, log_p in enumerate(passes):
        whole = evaluation(task, images, collected(task, images, log_p))
        assert found.values[index] == pytest.approx(whole.value(found.name))
        assert found.accuracy[index].value == pytest.approx(whole.value(found.accuracy_name))
    drop = found.mean([1], less=0)
    assert drop.value == pytest.approx(found.values[0] - found.values[1]) and drop.ci95[0] <= drop.value <= drop.ci95[1]


@every_task
@pytest.mark.parametrize("shape", [(8, 8, 3), (4096, 4096, 1)])
def test_batches_hold_at_least_one_image(task, shape):
    assert 1 <= task.batch_size(64, shape) <= 64


@every_task
def test_loss_counts_as_lower_is_better(task):
    assert not task.info("loss").higher_is_better and not task.info("nll").higher_is_better
    assert task.info(task.monitors[0]).higher_is_better
    assert task.monitors[0] in {each.key for each in task.metrics}


@pytest.mark.parametrize("label", [0, IGNORE])
def test_masks_without_a_labeled_foreground_pixel_have_no_mean_iou_to_compare(label):
    task = find_task("segmentation")
    images = drawn(task)
    images.targets[:] = label
    outputs = collected(task, images, log_probabilities(images, 1.0))
    assert evaluation(task, images, outputs).value("miou") is None
    table = task.table(outputs, images, "val")
    with pytest.raises(RequestError, match="no pixel"):
        task.sample([{name: table[name].to_numpy() for name in table}], "miou")


def test_every_task_is_tested():
    assert set(DRAW) == set(_TASKS)


def test_unknown_names_and_targets_are_refused():
    with pytest.raises(RequestError, match="did you mean classification"):
        find_task("clasification")
    with pytest.raises(DataError, match="float32"):
        choose_task(np.zeros((3, 4), dtype=np.float32))
