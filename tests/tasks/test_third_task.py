"""A third task, added in a test: no file of the package knows it."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from petriscope import api, tasks
from petriscope.core.errors import DataError, RequestError
from petriscope.inference.predictor import load_model
from petriscope.metrics.intervals import bootstrap_weights, percentile95
from petriscope.ship.server.opening import open_model
from petriscope.ship.server.served import Asked
from petriscope.tasks import MetricInfo, Task
from petriscope.tasks.base import gather


class Grading(Task):
    """Labels are grades, so a prediction is the better the nearer it is to the true grade."""

    name, about, targets_are, dtype = "grading", "grades", "int64 [N], grades from 0", "<i8"
    monitors = ("mae", "loss")
    metrics = (MetricInfo("mae", "Mean absolute error", "distance from the true grade", False, False),)

    def accepts(self, targets):
        return targets.ndim == 1 and targets.dtype == np.int64

    def check(self, targets, classes, shape, ids):
        if len(targets) and not 0 <= targets.min() <= targets.max() < len(classes):
            raise DataError(f"grades go from 0 to {len(classes) - 1}")

    def amounts(self, targets, classes):
        return np.eye(classes, dtype=np.int64)[targets]

    def strata(self, targets, classes):
        return targets

    def hits(self, logits, targets):
        return (logits.argmax(1) == targets).sum(), logits.new_tensor(len(targets))

    def collect(self, batches, count, classes, full=False):
        return gather(batches)

    def _errors(self, outputs, images):
        return np.abs(outputs @ np.arange(outputs.shape[1]) - images.targets)

    def quick(self, outputs, images):
        true = outputs[np.arange(len(outputs)), images.targets]
        return {"mae": float(self._errors(outputs, images).mean()), "loss": float(-np.log(true + 1e-12).mean())}

    def judge(self, outputs, images, resamples):
        errors = self._errors(outputs, images)
        draws = np.concatenate([w @ errors / len(errors) for w in bootstrap_weights(len(errors), resamples)])
        return {"n": len(errors), "mae": float(errors.mean()), "mae_ci95": list(percentile95(draws))}

    def table(self, outputs, images, split):
        grade = outputs @ np.arange(outputs.shape[1])
        return pd.DataFrame({"id": images.ids.astype(object), "split": split, "target": images.targets, "grade": grade})


def test_trains_evaluates_predicts_and_reports(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "_TASKS", dict(tasks._TASKS))
    tasks.register(Grading())
    run = api.train(tiny_recipe("data.task=grading"), tmp_path / "run", quiet=True)
    assert run.results.task == run.environment.data.task == load_model(run.folder).task.name == "grading"
    assert run.results.training.monitor == "mae" and run.history[-1].val["mae"] < run.history[0].val["mae"]
    test = api.evaluate(run.folder, quiet=True)
    low, high = test.metric("mae").ci95
    assert low <= test.value("mae") <= high < 0.5 and test.as_json()["task"] == "grading"
    assert "Mean absolute error" in (run.folder / "report.html").read_text()
    Image.fromarray(np.full((12, 12, 3), 240, np.uint8)).save(tmp_path / "bright.png")
    (row,) = api.predict(run.folder, [tmp_path / "bright.png"], quiet=True).to_dict("records")
    assert row["p_1"] > row["p_0"] and row["error"] is None
    with pytest.raises(RequestError, match="--shards needs a model for labels; this is a grading model"):
        api.predict_in_shards(run.folder, tmp_path / "bright.png", tmp_path / "out", 1, quiet=True)
    served = open_model(str(run.folder), "cpu")
    image = served.decode("bright.png", (tmp_path / "bright.png").read_bytes())
    (found,) = served.predict(["bright.png"], [image], [served.rules(Asked(), withdrawn=False)])
    assert found.row.probabilities == pytest.approx({"0": row["p_0"], "1": row["p_1"]}, abs=1e-5)
    with pytest.raises(
        RequestError, match="max_error and coverage need a classification model; this is a grading model"
    ):
        served.rules(Asked(max_error=0.1), withdrawn=False)
    with pytest.raises(RequestError, match="cannot show where it looks: there are no explanations for its task"):
        served.overlay(image)
    with pytest.raises(RequestError, match="no explanations"):
        api.explain(run.folder, [tmp_path / "bright.png"], tmp_path / "maps", quiet=True)
