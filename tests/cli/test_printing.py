"""What people read: columns of metrics, of the stress test, and of a source."""

import io
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from petriscope.cli.printing import print_columns, print_data, print_evaluation, print_stress
from petriscope.core.results import Evaluation, Robustness
from petriscope.data import Dataset, ImageSet
from petriscope.data.summary import summarize
from petriscope.metrics.classification import full_metrics
from petriscope.report.metrics import metric_rows
from petriscope.tasks import find_task

ROW = {"max_error": 0.01, "delta": 0.05, "threshold": 0.9, "error_ci95": None}


def lines(text):
    """Columns of printed lines, separated by at least two spaces."""
    return [[word.strip() for word in line.split("  ") if word.strip()] for line in text.splitlines()]


def test_columns_are_aligned():
    out = io.StringIO()
    print_columns([("a", "1"), ("longer", "2"), ("empty", "")], out.write)
    assert out.getvalue() == "a       1\nlonger  2\nempty\n"
    print_columns([], out.write)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            {"guaranteed": True, "coverage": 0.8, "answered": 32, "wrong": 0, "error": 0.0},
            "80.00 % answered, 0.00 % of",
        ),
        ({"guaranteed": True, "coverage": 0.0, "answered": 0, "wrong": 0, "error": None}, "nothing answered"),
        ({"guaranteed": False, "coverage": 0.8, "answered": 32, "wrong": 0, "error": 0.0}, "not guaranteed"),
    ],
)
def test_metrics_have_their_names_intervals_and_units(capsys, row, says):
    tree = {"split": "test", "n": 40, "accuracy": 0.9, "accuracy_ci95": [0.8, 0.95], "auc": None, "nll": 0.25}
    ood = {"inside_of_val": 0.995, "threshold": 1.0, "flagged": 2, "share": 0.05}
    print_evaluation(Evaluation.model_validate({**tree, "tta": "d4", "selective": [{**ROW, **row}], "ood": ood}))
    said = capsys.readouterr()
    assert said.out == ""
    found = lines(said.err)
    assert found[0] == ["test, 40 images, tta d4"]
    assert ["Accuracy", "90.00 %", "(80.00 % to 95.00 %)"] in found
    assert ["NLL", "0.2500"] in found and ["AUC", "–"] in found
    assert next(line[1] for line in found if line[0] == "At most 1 % errors").startswith(says)
    assert ["Out of distribution", "5.00 %"] in found


def test_a_metric_that_is_not_defined_is_a_dash_with_its_reason(capsys):
    images = np.eye(2)[[1, 1, 1]]
    found = full_metrics(images, np.array([1, 1, 1]), ("a", "b"), 100)
    evaluation = Evaluation.model_validate({"split": "val", **found})
    print_evaluation(evaluation)
    assert ["AUC", "–", "(all images are of one class)"] in lines(capsys.readouterr().err)
    (row,) = [row for row in metric_rows(find_task("classification"), {"val": evaluation}) if row.name == "AUC"]
    assert row.cells == [("–", "(all images are of one class)")]


def test_masks_have_a_row_per_class(capsys):
    per_class = {"soil": {"pixels": 10, "iou": 0.5}, "rock": {"pixels": 0, "iou": None}}
    tree = {"task": "segmentation", "split": "val", "n": 4, "miou": 0.5, "miou_ci95": [0.4, 0.6]}
    print_evaluation(Evaluation.model_validate({**tree, "per_class": per_class}))
    found = lines(capsys.readouterr().err)
    assert ["soil", "IoU 50.00 %"] in found and ["rock", "IoU –"] in found


def test_the_stress_test_is_a_table_by_severity(capsys):
    about = {"kind": "blur", "unit": "px", "levels": [1.0, 2.0], "medmnist_c": True}
    tree = {
        "split": "val",
        "metric": "balanced_accuracy",
        "n": 8,
        "of": 40,
        "tta": "none",
        "severities": [1, 3],
        "clean": 0.95,
        "mean": 0.6,
        "worst": {"name": "defocus", "balanced_accuracy": 0.4},
        "corruptions": {
            "defocus": {**about, "seen": True, "held_out": False, "mean": 0.5, "balanced_accuracy": [0.6, 0.4]},
            "gray": {**about, "seen": False, "held_out": True, "mean": 0.7, "balanced_accuracy": [0.8, None]},
        },
    }
    print_stress(Robustness.model_validate(tree))
    text = capsys.readouterr().err
    assert "stress test, 8 of 40 images; balanced accuracy in %" in text
    assert ["defocus", "60.0", "40.0", "50.0", "trained against"] in lines(text)
    assert ["gray", "80.0", "–", "70.0", "held out"] in lines(text)
    assert "clean 95.0 %" in text and "worst 40.0 % (defocus)" in text and "at once" not in text
    print_stress(Robustness.model_validate({**tree, "together": 0.6, "two_at_once": 0.7, "three_at_once": 0.5}))
    assert "two corruptions at once 70.0 %, three 50.0 %" in capsys.readouterr().err


@pytest.mark.parametrize("masks", [False, True])
def test_a_source_is_described_by_its_classes_per_split(capsys, masks):
    targets = np.zeros((4, 6, 5), np.uint8) if masks else np.zeros(4, np.int64)
    targets[1:] = 1
    images = ImageSet(np.zeros((4, 6, 5, 1), np.uint8), targets, ("a", "bb"), np.arange(4).astype(str))
    print_data(summarize(Dataset(train=images, source="somewhere", warnings=("mind the gap",))))
    said = capsys.readouterr()
    found = lines(said.out)
    assert ["images", "6x5, gray, 8 bits"] in found
    assert ["a", "30" if masks else "1"] in found and ["bb", "90" if masks else "3"] in found
    assert found[-1] == ["all images", "4"]
    assert (["all labeled pixels", "120"] in found) == masks
    assert said.err == "warning: mind the gap\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
@pytest.mark.parametrize(
    ("streams", "status", "says"),
    [
        (">&-", 1, "error: "),
        (">/dev/full", 1, "No space left on device"),
        ("2>&-", 0, ""),
        ("2>/dev/full", 0, ""),
        ("<&- >&- 2>&-", 1, ""),
    ],
)
def test_a_result_that_is_not_delivered_is_an_error(streams, status, says):
    words = shlex.join([sys.executable, "-m", "petriscope", "--version"])
    done = subprocess.run(["sh", "-c", f"{words} {streams}"], capture_output=True, text=True, check=False)
    assert done.returncode == status and says in done.stderr and "Traceback" not in done.stderr


def test_names_and_signs_that_a_stream_has_not_are_spelled():
    words = [
        sys.executable,
        "-c",
        "from petriscope.cli import _settle_streams; _settle_streams(); print('\\xe9 \\udce9')",
    ]
    done = subprocess.run(words, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, check=True)
    assert done.stdout.decode().split() == ["é", "\\udce9"]
