"""The model of a package, run by the library that its format is for."""

from __future__ import annotations

import json
import os
import re
import threading
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from petriscope.core.device import cores
from petriscope.core.errors import RequestError


@dataclass(frozen=True)
class Format:
    """In what a model is stored.

    Args:
        files: of the model; the first is the one that is opened.
        library: that runs it, as pip calls it.
    """

    files: tuple[str, ...]
    library: str


FORMATS = {
    "onnx": Format(("model.onnx",), "onnxruntime"),
    "pt2": Format(("model.pt2",), "torch"),
    "openvino": Format(("model.xml", "model.bin"), "openvino"),
}
EXTRAS = {"onnxruntime": "export", "openvino": "openvino"}  # of Petriscope, by library


class Session(Protocol):
    """A model that is open. Threads can share one.

    Args:
        outputs: their names.
    """

    outputs: frozenset[str]

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """All outputs by name for images, uint8 or uint16 [N, H, W, C], contiguous; N is 1 or more."""
        ...


def open_session(folder: Path, format: str, threads: int | None) -> Session:
    """Open the model in a folder.

    Args:
        threads: that a prediction may use; None: as many as there are processors that this process may use. Of ``pt2``, all
            models in the process share them.

    Raises:
        RequestError: the library is not installed.
        Exception: whatever the library raises at a damaged file.
    """
    opened: dict[str, Callable[[Path, int | None], Session]] = {"onnx": _Onnx, "pt2": _Torch, "openvino": _OpenVino}
    return opened[format](folder / FORMATS[format].files[0], threads)


def load_onnxruntime() -> Any:
    """The module. Left to itself, it keeps an id of this machine in the home folder, for reports to its maker."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # is read when it is imported
    import onnxruntime

    return onnxruntime


def version(format: str) -> str:
    """That of the library that runs a format, as it is installed."""
    return metadata.version(FORMATS[format].library)


def _missing(library: str) -> RequestError:
    extra = f", or pip install 'petriscope[{EXTRAS[library]}]'" if library in EXTRAS else ""
    return RequestError(f"this package needs {library}, which is not installed: pip install {library}{extra}")


class _Onnx:
    def __init__(self, path: Path, threads: int | None) -> None:
        try:
            onnxruntime = load_onnxruntime()
        except ImportError:
            raise _missing("onnxruntime") from None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors alone
        # Left to itself, onnxruntime binds a thread to every core of the machine, those that this process may not use included.
        options.intra_op_num_threads = cores() if threads is None else threads
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.names = [each.name for each in self.session.get_outputs()]
        self.outputs = frozenset(self.names)

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(self.names, self.session.run(None, {"images": images}), strict=True))


class _Torch:
    def __init__(self, path: Path, threads: int | None) -> None:
        try:
            import torch
        except ImportError:
            raise _missing("torch") from None
        self.torch = torch
        check_program(path)
        if threads is not None:
            torch.set_num_threads(threads)
        program = torch.export.load(path)
        self.module, self.outputs = program.module(), frozenset(program.call_spec.out_spec.context)

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        with self.torch.inference_mode():
            found = self.module(self.torch.from_numpy(images))
        return {name: values.numpy() for name, values in found.items()}


# What torch.export.save writes of a network: numbers, and JSON that says what they are. Inputs of its trial are left out.
_PROGRAM = re.compile(
    r"\.?(data/)?(version|serialization_id)|archive_(format|version)|byteorder|models/model\.json|data/sample_inputs/model\.pt|"
    r"data/(weights/(weight_\d+|model_weights_config\.json)|constants/(tensor_\d+|model_constants_config\.json))"
)
# Symbols, and sympy's functions of them; sympy evaluates other texts as Python.
_SIZES = re.compile(r"(Symbol\('\w+'(, \w+=(True|False))*\)|[A-Z][A-Za-z]*\(|[su]\d+|[\d+*/(), .-])*")


def check_program(path: Path) -> None:
    """Refuse a file of torch.export that holds more than numbers and a graph, before torch opens it: torch unpickles what
    such a file says is pickled.

    Raises:
        ValueError: it does.
        zipfile.BadZipFile: it is damaged.
    """
    with zipfile.ZipFile(path) as file:
        names = [entry.filename.partition("/")[2] for entry in file.infolist()]
        if len({*names}) < len(names):
            raise ValueError("it has two entries of one name")
        if odd := next((name for name in names if not _PROGRAM.fullmatch(name)), None):
            raise ValueError(f"it has {odd}, which a network does not need and which can run code")
        for entry, name in zip(file.infolist(), names, strict=True):
            if name.startswith("data/sample_inputs/") and entry.file_size:
                raise ValueError(f"it has pickled data ({name}), which can run code")
            if name.endswith(".json"):
                _check_values(json.loads(file.read(entry)))


def _check_values(tree: Any) -> None:
    """Refuse what is said to be pickled, other files of numbers, and sizes that are more than a formula; at any depth."""
    if isinstance(tree, dict):
        path = tree.get("path_name")
        if tree.get("use_pickle") or (path is not None and not re.fullmatch(r"(weight|tensor)_\d+", str(path))):
            raise ValueError(f"it has pickled data ({path}), which can run code")
        size = tree.get("expr_str", "")
        if not isinstance(size, str) or not _SIZES.fullmatch(size):
            raise ValueError("a size in it is no formula, and can run code")
    for value in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        _check_values(value)


class _OpenVino:
    def __init__(self, path: Path, threads: int | None) -> None:
        try:
            import openvino
        except ImportError:
            raise _missing("openvino") from None
        # Left to itself, it computes in half precision where a processor is faster in it.
        chosen: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads or cores()}
        self.compiled = openvino.Core().compile_model(path, "CPU", chosen)
        self.outputs = frozenset(name for output in self.compiled.outputs for name in output.get_names())
        self.requests = threading.local()  # one cannot be run by two threads at a time

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        if not hasattr(self.requests, "own"):
            self.requests.own = self.compiled.create_infer_request()
        found = self.requests.own.infer([images])
        return {name: np.array(values) for output, values in found.items() for name in output.names}
