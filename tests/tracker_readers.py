"""What a tracker has of runs, read by its own library.

Each reader has a ``part`` for a recipe and a list of runs, the oldest first. Where the library keeps no status, none is read.
"""

import json
import os
import shutil
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from petriscope.core.recipe import Part


@dataclass
class Read:
    """A run as its tracker has it: the status in the tracker's words, settings by dotted keys, metrics by name and epoch."""

    status: object
    settings: dict
    history: dict
    results: dict
    figures: list
    model: bytes | None = None
    files: list = field(default_factory=list)


class TensorBoard:
    part = Part(name="tensorboard")
    # Single precision; nor can it tell an interrupted run from one whose end is not known.
    exact = False

    def __init__(self, folder, run):
        pytest.importorskip("tensorboard")
        from tensorboard.plugins.hparams import api_pb2

        self.folder = run.folder / "tensorboard"
        self.status = {
            "finished": api_pb2.STATUS_SUCCESS,
            "failed": api_pb2.STATUS_FAILURE,
            "interrupted": api_pb2.STATUS_UNKNOWN,
        }

    def runs(self):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from tensorboard.plugins.hparams import metadata

        if not self.folder.is_dir():
            return []
        events = EventAccumulator(str(self.folder), {"scalars": 0, "images": 0})
        events.Reload()
        plugin = events.PluginTagToContent("hparams")
        started = metadata.parse_session_start_info_plugin_data(plugin[metadata.SESSION_START_INFO_TAG])
        values = {key: getattr(value, value.WhichOneof("kind")) for key, value in started.hparams.items()}
        ended = metadata.parse_session_end_info_plugin_data(plugin[metadata.SESSION_END_INFO_TAG])
        scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
        results = {tag: each[-1][1] for tag, each in scalars.items() if tag.startswith(("result/", "cost/"))}
        return [
            Read(
                ended.status,
                values,
                {tag: each for tag, each in scalars.items() if tag not in results},
                results,
                events.Tags()["images"],
            )
        ]


class MLflow:
    exact = True
    status = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}  # noqa: RUF012

    def __init__(self, folder, run):
        pytest.importorskip("mlflow")
        pytest.importorskip("sqlalchemy")
        self.uri = f"sqlite:///{folder / 'mlflow.db'}"
        self.part = Part(name="mlflow", experiment="cells")
        os.environ["MLFLOW_TRACKING_URI"] = self.uri
        shutil.copy(self.template(folder), folder / "mlflow.db")

    made: list = []  # noqa: RUF012

    def template(self, folder):
        """A store without runs, made once: that takes seconds."""
        if not self.made:
            from mlflow import MlflowClient

            path = folder.parent / "template.db"
            MlflowClient(f"sqlite:///{path}").search_experiments()
            self.made.append(path)
        return self.made[0]

    def runs(self):
        from mlflow import MlflowClient

        client = MlflowClient(self.uri)
        experiment = client.get_experiment_by_name("cells")
        if experiment is None:
            return []
        return [self._read(client, run) for run in client.search_runs([experiment.experiment_id])]

    def _read(self, client, run):
        identity = run.info.run_id
        own = {name for name in run.data.metrics if not name.startswith(("result/", "cost/"))}
        root = Path(run.info.artifact_uri)
        return Read(
            run.info.status,
            run.data.params,
            {name: sorted((m.step, m.value) for m in client.get_metric_history(identity, name)) for name in own},
            {name: value for name, value in run.data.metrics.items() if name not in own},
            [Path(each.path).stem for each in client.list_artifacts(identity, "figures")],
            (root / "model/model.safetensors").read_bytes() if (root / "model").is_dir() else None,
            [each.path for each in client.list_artifacts(identity)],
        )


class Wandb:
    part = Part(name="wandb", project="cells")
    exact = True
    status = {"finished": 0, "failed": 1, "interrupted": 255}  # noqa: RUF012
    home: list = []  # noqa: RUF012

    def __init__(self, folder, run):
        pytest.importorskip("wandb")
        if not self.home:  # wandb reads its settings once
            self.home.append(folder.parent / "wandb-home")
            self.home[0].mkdir()
        os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true", WANDB_DIR=str(self.home[0]))
        for name in ("CONFIG", "CACHE", "DATA", "ARTIFACT"):
            os.environ[f"WANDB_{name}_DIR"] = str(self.home[0] / name.lower())
        self.before = set(self._files())

    def _files(self):
        return sorted(self.home[0].glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime_ns)

    def runs(self):
        """Runs that are continued offline have several files, which the server joins by their id."""
        found = {}
        for path in self._files():
            if path not in self.before:
                until = time.monotonic() + 20
                while not any(record.HasField("exit") for record in wandb_records(path)) and time.monotonic() < until:
                    time.sleep(0.05)  # its writer is a process of its own
                self._add(found, path)
        return list(found.values())

    def _add(self, found, path):
        identity = path.stem
        for record in wandb_records(path):
            kind = record.WhichOneof("record_type")
            read = found.setdefault(identity, Read(None, {}, {}, {}, [], None, []))
            if kind == "run":
                for item in record.run.config.update:
                    read.settings |= _flat({item.key: json.loads(item.value_json)})
            elif kind == "exit":
                read.status = record.exit.exit_code
            elif kind == "history":
                row = {(each.key or each.nested_key[0]): json.loads(each.value_json) for each in record.history.item}
                for key, value in row.items():
                    if key.startswith("figures/"):
                        read.figures.append(key.removeprefix("figures/"))
                    elif not key.startswith("_") and "figures" not in row and len(row) > 5:
                        read.history.setdefault(key, []).append((row["epoch"], value))
            elif kind == "summary":
                update = {(s.key or s.nested_key[0]): json.loads(s.value_json) for s in record.summary.update}
                read.results |= {k: v for k, v in update.items() if k.startswith(("result/", "cost/"))}
            elif kind == "artifact" and record.artifact.type == "model":
                read.model = Path(record.artifact.manifest.contents[0].local_path).read_bytes()
            elif kind == "files":
                read.files += [each.path for each in record.files.files]


def wandb_records(path):
    """The records of an offline run: a log in the format of LevelDB, of messages that wandb defines."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = path.read_bytes(), 7, []
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts.append(data[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(b"".join(parts))
            parts = []


class Trackio:
    exact = True
    status = {"finished": "finished", "failed": "failed", "interrupted": "interrupted"}  # noqa: RUF012
    home: list = []  # noqa: RUF012

    def __init__(self, folder, run):
        if not self.home:  # Trackio reads this once
            os.environ["TRACKIO_DIR"] = str(folder.parent / "trackio")
            self.home.append(os.environ["TRACKIO_DIR"])
        os.environ["TRACKIO_DIR"] = self.home[0]
        pytest.importorskip("trackio")
        self.project = f"cells-{folder.name}"
        self.part = Part(name="trackio", project=self.project)

    def runs(self):
        import trackio
        from trackio.sqlite_storage import SQLiteStorage

        try:
            runs = list(trackio.Api().runs(self.project))
        except ValueError:  # no such project
            return []
        return [self._read(run, SQLiteStorage.get_logs(self.project, run.name, run_id=run.id)) for run in runs]

    def _read(self, run, rows):
        from trackio import cas
        from trackio.sqlite_storage import SQLiteStorage

        history, results, status, figures = {}, {}, None, []
        for row in rows:
            status = row.get("status", status)
            figures += [key.removeprefix("figures/") for key in row if key.startswith("figures/")]
            results |= {key: value for key, value in row.items() if key.startswith(("result/", "cost/"))}
            if "train/loss" in row:
                for key, value in row.items():
                    history.setdefault(key, []).append((row["step"], value))
        artifacts = {each["name"]: each["type"] for each in SQLiteStorage.get_artifacts(self.project)}
        model = None
        if "model" in artifacts.values():
            manifest = SQLiteStorage.get_artifact_manifest(self.project, run.name, "v0")
            model = cas.blob_path(self.project, manifest["manifest"][0]["digest"]).read_bytes()
        files = [name.removeprefix(f"{run.name}-") for name in artifacts]
        return Read(status, _flat(run.config), history, results, figures, model, files)


def _flat(tree, prefix=""):
    if not isinstance(tree, dict | list):
        return {prefix: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {k: v for key, each in items for k, v in _flat(each, f"{prefix}.{key}" if prefix else str(key)).items()}


READERS = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": Wandb, "trackio": Trackio}
