"""MLflow: one run, with parameters, metrics by epoch, tags and artifacts. The place is that of MLFLOW_TRACKING_URI, or MLflow's
own default, ``mlflow.db`` in the current folder."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from petriscope.run.trackers.base import PROJECT, Entry, Outcome, Start, Status

if TYPE_CHECKING:
    from mlflow import MlflowClient

SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # what a laboratory does is told to its own store alone
    # Who follows the run tries again anyway; MLflow alone would try for minutes before it says what is wrong.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",  # seconds
}
STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
# Limits of MLflow, to which longer texts are cut: values of parameters and tags, names, and entries per call.
LONGEST_PARAMETER, LONGEST_TAG, LONGEST_NAME, BATCH = 6000, 5000, 250, 100


class MLflowTracker:
    """Logs into an experiment.

    Args:
        experiment: its name; None: that of MLFLOW_EXPERIMENT_NAME, or ``petriscope``.
    """

    def __init__(self, *, experiment: str | None = None) -> None:
        self.experiment = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT

    def begin(self, start: Start, known: Entry | None) -> Entry:
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        import mlflow

        given = os.environ.get("MLFLOW_TRACKING_URI")
        # Another current folder has another default store, so a run that has a local one goes on there.
        uri = given or (known.where if known is not None and _local(known.where) else mlflow.get_tracking_uri())
        self.client = mlflow.MlflowClient(uri)
        self.run_id = self._resumed(known) or self._created(start)
        self._log(params=start.settings, tags=_tags(start))
        return Entry(id=self.run_id, where=_without_password(uri))

    def _resumed(self, known: Entry | None) -> str | None:
        from mlflow.exceptions import MlflowException

        if known is None:
            return None
        try:
            run = self.client.get_run(known.id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        if run.info.lifecycle_stage != "active":
            return None
        self.client.update_run(known.id, status="RUNNING")
        return known.id

    def _created(self, start: Start) -> str:
        experiment = _experiment(self.client, self.experiment)
        made = self.client.create_run(experiment, start_time=_milliseconds(start.started), run_name=start.name)
        return made.info.run_id

    def log(self, epoch: int, metrics: Mapping[str, float], at: float) -> None:
        self._log(metrics=metrics, epoch=epoch, at=at)

    def deliver(self, outcome: Outcome) -> None:
        self._log(metrics=outcome.metrics, epoch=outcome.epochs, at=outcome.at)
        for path in outcome.figures.values():
            self.client.log_artifact(self.run_id, str(path), "figures")
        for path in outcome.files:
            self.client.log_artifact(self.run_id, str(path))
        if outcome.model is not None:
            self.client.log_artifact(self.run_id, str(outcome.model), "model")

    def close(self, status: Status, why: str, at: float) -> None:
        self._log(tags={"status": status, "why": why})
        self.client.set_terminated(self.run_id, STATUS[status], _milliseconds(at))

    def _log(
        self,
        metrics: Mapping[str, float] | None = None,
        params: Mapping[str, object] | None = None,
        tags: Mapping[str, object] | None = None,
        epoch: int = 0,
        at: float = 0,
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        when = _milliseconds(at)
        measured = [Metric(_name(key), value, when, epoch) for key, value in (metrics or {}).items()]
        given = [Param(_name(key), str(value)[:LONGEST_PARAMETER]) for key, value in (params or {}).items()]
        told = [RunTag(_name(key), str(value)[:LONGEST_TAG]) for key, value in (tags or {}).items()]
        for first in range(0, max(len(measured), len(given), len(told)), BATCH):
            part = slice(first, first + BATCH)
            self.client.log_batch(self.run_id, measured[part], given[part], told[part])


def _tags(start: Start) -> dict[str, object]:
    own = {  # what MLflow shows in columns and at the head of a run
        "mlflow.note.content": start.about,
        "mlflow.source.name": start.environment.command or PROJECT,
        "mlflow.source.type": "LOCAL",
    }
    return {**own, **{f"{PROJECT}.{key}": value for key, value in start.facts.items()}}


def _experiment(client: MlflowClient, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    try:
        return client.create_experiment(name)
    except MlflowException:
        found = client.get_experiment_by_name(name)  # another process has made it meanwhile
        if found is None:
            raise
        return found.experiment_id


def _name(key: str) -> str:
    """A name that MLflow takes: other characters become underscores."""
    return re.sub(r"[^\w.\- /:]", "_", key)[:LONGEST_NAME]


def _milliseconds(at: float) -> int:
    return round(1000 * at)


def _local(uri: str) -> bool:
    return urlsplit(uri).scheme in ("sqlite", "file", "")


def _without_password(uri: str) -> str:
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl() if parts.netloc else uri
