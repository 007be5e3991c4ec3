"""Typed results: metrics are written flat and read back, older schema versions are upgraded, damage is named."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest

from petriscope.core.errors import RequestError
from petriscope.core.results import (
    SCHEMA_VERSION,
    CorruptionResult,
    Environment,
    Evaluation,
    Metric,
    Results,
    Robustness,
    TrainingSummary,
    read_environment,
    read_epoch,
    read_results,
)
from petriscope.core.shift_results import ClassShare, Difference, ShiftTest

OLD_EVALUATION = {
    "split": "test",
    "n": 40,
    "accuracy": 0.9,
    "accuracy_ci95": [0.8, 0.95],
    "auc": None,
    "auc_ci95": [None, None],
    "per_class": {
        "pictures": {"n": 25, "recall": 0.92, "recall_ci95": [0.75, 0.98]},
        "figure": {"n": 15, "recall": None, "recall_ci95": [0.0, 1.0]},
    },
    "confusion": [[23, 2], [2, 13]],
}
SHARES = {"answered": 0.5, "answered_ci95": [0.4, 0.6], "wrong": None, "wrong_ci95": None, "held": 0.9}
OLD_STRESS = {
    "split": "val",
    "figure": "miou",
    "n": 10,
    "of": 20,
    "scenes": 4,
    "tta": "none",
    "severities": [1, 2],
    "clean": 0.8,
    "clean_ci95": [0.7, 0.9],
    "worst": {"name": "bubble", "miou": 0.4, "miou_ci95": [0.3, 0.5]},
    "corruptions": {
        "bubble": {
            "kind": "cover",
            "unit": "share",
            "levels": [0.1, 0.2],
            "medmnist_c": True,
            "seen": False,
            "held_out": False,
            "mean": 0.5,
            "mean_ci95": [0.4, 0.6],
            "miou": [0.6, None],
            "miou_ci95": [[0.5, 0.7], [None, None]],
        }
    },
    "promises": {"max_error": 0.01, "level": 0.95, "clean": SHARES, "disturbed": SHARES},
}
OLD_RESULTS = {
    "training": {"epochs": 3, "pictures_per_second": 120.5},
    "cost": {"parameters": 5, "multiply_adds": 6, "bytes_fp32": 20, "inference_pictures_per_second": 99.0},
    "test": OLD_EVALUATION,
    "stress": {"val": OLD_STRESS},
}


def read(tree, task="classification"):
    return read_results(tree, task, "run/results.json")


def written(result):
    return json.loads(json.dumps(result.as_json(), allow_nan=False))


def test_metrics_are_written_flat_and_read_back():
    row = {"kind": "blur", "unit": "px", "levels": [1.0, 2.0], "medmnist_c": True, "seen": False, "held_out": False}
    with_interval, without = Metric(value=0.5, ci95=(0.25, None)), Metric(value=None)
    corruption = CorruptionResult(**row, metrics={"mean": with_interval}, series={"miou": (with_interval, without)})
    tree = written(corruption)
    assert tree == {**row, "mean": 0.5, "mean_ci95": [0.25, None], "miou": [0.5, None]}
    again = CorruptionResult.model_validate(tree)
    assert again.metrics == corruption.metrics
    assert [each.value for each in again.series["miou"]] == [0.5, None]


def test_series_keep_intervals_that_all_levels_have():
    members = (Metric(value=0.5, ci95=(0.25, 0.75)), Metric(value=None, ci95=(None, None)))
    test = read({"stress": {"val": copy.deepcopy(OLD_STRESS)}}).stress["val"]
    row = test.corruptions["bubble"].model_copy(update={"series": {"miou": members}})
    tree = written(row)
    assert tree["miou_ci95"] == [[0.25, 0.75], [None, None]]
    assert CorruptionResult.model_validate(tree).series["miou"] == members


def test_a_metric_that_was_not_computed_has_no_value():
    found = Evaluation.model_validate(OLD_EVALUATION)
    assert found.metric("accuracy") == Metric(value=0.9, ci95=(0.8, 0.95))
    assert found.value("auc") is None and found.metric("auc").ci95 == (None, None)
    assert found.metric("macro_f1") == Metric(value=None)
    assert "macro_f1" not in written(found)


def test_only_fields_that_were_given_are_written():
    assert set(written(Evaluation(split="val", n=3))) == {"split", "n"}
    assert written(Results(schema_version=SCHEMA_VERSION, training=TrainingSummary(epochs=3))) == {
        "schema_version": SCHEMA_VERSION,
        "training": {"epochs": 3},
    }


def test_results_survive_a_round_trip():
    found = read(OLD_RESULTS, "segmentation").model_copy(update={"schema_version": SCHEMA_VERSION})
    again = read(written(found), "another")
    assert again == found and written(again) == written(found)


def test_results_of_schema_version_1_are_upgraded():
    before = copy.deepcopy(OLD_RESULTS)
    found = read(OLD_RESULTS, "segmentation")
    assert before == OLD_RESULTS
    assert found.task == found.test.task == "segmentation"
    assert found.training.images_per_second == 120.5
    assert found.cost.inference_images_per_second == 99.0
    stress = found.stress["val"]
    assert stress.metric_name == "miou" and stress.metric("clean").ci95 == (0.7, 0.9)
    assert stress.worst.name == "bubble" and stress.worst.value("miou") == 0.4
    assert stress.corruptions["bubble"].series["miou"][1] == Metric(value=None, ci95=(None, None))
    assert stress.guarantees.clean.value("held") == 0.9 and stress.guarantees.clean.value("wrong") is None


def test_classes_named_like_old_keys_keep_their_names():
    found = read(OLD_RESULTS).test
    assert set(found.per_class) == {"pictures", "figure"}
    assert found.per_class["pictures"].n == 25 and found.per_class["pictures"].value("recall") == 0.92


def test_robustness_is_written_with_the_key_metric():
    tree = written(read(OLD_RESULTS).stress["val"])
    assert tree["metric"] == "miou" and "metric_name" not in tree and "guarantees" in tree
    assert Robustness.model_validate(tree).metric_name == "miou"


@pytest.mark.parametrize(("targets", "task"), [("labels", "classification"), ("masks", "segmentation")])
def test_environments_of_schema_version_1_are_upgraded(targets, task):
    splits = {"train": {"pictures": 30, "per_class": [10, 20]}}
    found = read_environment(
        {"data": {"targets": targets, "classes": ["a", "b"], "splits": splits}}, "environment.json"
    )
    assert found.data.task == task
    assert found.data.splits["train"].images == 30 and found.data.splits["train"].per_class == [10, 20]
    assert read_environment(written(found), "environment.json") == found


def test_epochs_of_schema_version_1_are_upgraded():
    line = {"epoch": 2, "train": {"loss": 0.5}, "val": {"accuracy": 0.75}, "seconds": 1.5, "pictures_per_second": 80.0}
    found = read_epoch(line, "metrics.jsonl")
    assert found.images_per_second == 80.0 and found.val == {"accuracy": 0.75}
    assert read_epoch(written(found), "metrics.jsonl") == found


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, "2", None])
def test_other_schema_versions_are_refused(version):
    for refused in (lambda tree: read(tree), lambda tree: read_environment(tree, "run/environment.json")):
        with pytest.raises(RequestError, match=r"run/\w+\.json has schema version"):
            refused({"schema_version": version})


@pytest.mark.parametrize(
    ("place", "value", "key"),
    [
        (("test", "n"), "forty", "test.n"),
        (("test", "accuracy"), "high", "test.metrics.accuracy"),
        (("test", "accuracy_ci95"), [0.1], "test.metrics.accuracy"),
        (("test", "per_class", "figure", "n"), 1.5, "test.per_class.figure.n"),
        (("training", "epochs"), "three", "training.epochs"),
        (("stress", "val", "corruptions", "bubble", "levels"), None, "stress.val.corruptions.bubble.levels"),
        (("stress", "val", "corruptions", "bubble", "miou_ci95"), [[0.1, 0.2]], "stress.val.corruptions.bubble"),
    ],
)
def test_a_damaged_value_is_refused_with_file_and_key(place, value, key):
    tree = copy.deepcopy(OLD_RESULTS)
    within = tree
    for name in place[:-1]:
        within = within[name]
    within[place[-1]] = value
    with pytest.raises(RequestError) as refused:
        read(tree)
    assert "run/results.json" in str(refused.value) and key in str(refused.value)


def test_unknown_objects_of_the_same_schema_version_are_ignored():
    new = {"new": {"a": 1}, "word": "x", "list": [{"a": 1}]}
    tree = {"schema_version": SCHEMA_VERSION, **new, "test": {**OLD_EVALUATION, **new}}
    assert read(tree).test.value("accuracy") == 0.9


def test_an_evaluated_split_without_images_does_not_count():
    found = Results(val=Evaluation(split="val", n=3), test=Evaluation(split="test", n=0))
    assert list(found.evaluated) == ["val"]
    assert found.split("val").n == 3 and found.split("train") is None and found.split("other") is None


def test_an_empty_environment_has_defaults():
    assert read_environment({}, "environment.json") == Environment()


def test_a_comparison_with_val_is_read_back_also_from_other_versions():
    test = ShiftTest(n=30, of=40, val=50, level=0.01, p=0.001, withdrawn=True)
    test = replace(test, differs=[Difference("stain", [0.5], [0.3], -2.0)], class_mix=[ClassShare("a", 0.5, 0.1)])
    evaluation = Evaluation.model_validate({**OLD_EVALUATION, "shift": test})
    tree = json.loads(json.dumps(evaluation.as_json()))
    assert Evaluation.model_validate(tree).shift == test
    del tree["shift"]["p_appearance"]
    assert Evaluation.model_validate({**tree, "shift": {**tree["shift"], "newer": 1}}).shift == test
