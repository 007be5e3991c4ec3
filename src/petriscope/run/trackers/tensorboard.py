"""TensorBoard: event files in the folder ``tensorboard`` of the run, so that ``tensorboard --logdir runs`` shows all runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petriscope.run.trackers.base import Entry, Outcome, Start, Status

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

MAX_QUEUE = 1000  # events that wait for the writer
END = ".end"  # of the name of the file that says how the run ended


class TensorBoardTracker:
    def begin(self, start: Start, known: Entry | None) -> Entry:
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.folder = folder = start.folder / "tensorboard"
        for path in folder.glob(f"*{END}"):  # TensorBoard takes the first end that it finds
            path.unlink()
        self.writer = EventFileWriter(str(folder), max_queue_size=MAX_QUEUE)
        self._add(hparams_pb(start.settings, start_time_secs=start.started), start.started)
        self._add(_text("recipe", f"```yaml\n{start.recipe.to_yaml()}```"), start.started)
        self._add(_text("environment", _table(start.facts)), start.started)
        self._add(_text("about", start.about), start.started)
        return Entry(id=folder.name, where=str(folder))

    def log(self, epoch: int, metrics: Mapping[str, float], at: float) -> None:
        self._add(_scalars(metrics), at, epoch)

    def deliver(self, outcome: Outcome) -> None:
        self._add(_scalars(outcome.metrics), outcome.at, outcome.epochs)
        for name, path in outcome.figures.items():
            self._add(_image(name, path), outcome.at, outcome.epochs)
        files = [*outcome.files, *([] if outcome.model is None else [outcome.model])]
        self._add(_text("files", "\n".join(f"- `{path}`" for path in files)), outcome.at, outcome.epochs)

    def close(self, status: Status, why: str, at: float) -> None:
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._add(_text("status", f"{status}: {why}" if why else status), at)
        self.writer.close()
        known = {"finished": api_pb2.STATUS_SUCCESS, "failed": api_pb2.STATUS_FAILURE}
        ended = known.get(status, api_pb2.STATUS_UNKNOWN)  # there is none for what was interrupted
        info = plugin_data_pb2.SessionEndInfo(status=ended, end_time_secs=at)
        about = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=info))
        value = {"tag": metadata.SESSION_END_INFO_TAG, "metadata": about, "tensor": metadata.NULL_TENSOR}
        self.writer = EventFileWriter(str(self.folder), max_queue_size=MAX_QUEUE, filename_suffix=END)
        self._add(_summary(value), at)
        self.writer.close()

    def _add(self, summary: Summary, at: float, step: int = 0) -> None:
        """Write a summary so that it is in the file when this returns."""
        from tensorboard.compat.proto.event_pb2 import Event

        self.writer.add_event(Event(wall_time=at, step=step, summary=summary))
        self.writer.flush()


def _summary(*values: Mapping[str, Any]) -> Summary:
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Summary(value=[Summary.Value(**value) for value in values])


def _scalars(metrics: Mapping[str, float]) -> Summary:
    """TensorBoard keeps scalars in single precision."""
    return _summary(*({"tag": name, "simple_value": value} for name, value in metrics.items()))


def _image(name: str, path: Path) -> Summary:
    from PIL import Image
    from tensorboard.compat.proto.summary_pb2 import Summary

    with Image.open(path) as image:
        width, height = image.size
    pixels = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes())
    return _summary({"tag": name, "image": pixels})


def _text(name: str, markdown: str) -> Summary:
    from tensorboard.compat.proto.summary_pb2 import SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING

    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
    tensor = TensorProto(dtype=DT_STRING, string_val=[markdown.encode()], tensor_shape=shape)
    about = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    return _summary({"tag": f"{name}/text_summary", "metadata": about, "tensor": tensor})


def _table(facts: Mapping[str, object]) -> str:
    rows = [f"| {key} | {str(value).replace('|', chr(92) + '|')} |" for key, value in facts.items()]
    return "\n".join(["| | |", "|---|---|", *rows])
