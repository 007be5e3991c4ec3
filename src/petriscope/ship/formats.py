"""The graph of a predictor in each format of a package. All are written by the exporters of the libraries that run them."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from petriscope.core.errors import RequestError
from petriscope.core.files import atomic
from petriscope.inference.runtime import EXTRAS, FORMATS
from petriscope.ship.graph import Graph, explained, quiet, record, write_graph

CONVERTERS = ("onnx", "onnxscript")  # of torch's graph
NEEDED = {"onnx": (*CONVERTERS, "onnxruntime"), "pt2": (), "openvino": (*CONVERTERS, "openvino")}
FORGOTTEN = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node")  # has paths of this machine


def check_libraries(format: str) -> None:
    """
    Raises:
        RequestError: a library that exporting in a format needs is not installed.
    """
    for name in NEEDED[format]:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            extra = EXTRAS.get(FORMATS[format].library, "export")
            raise RequestError(
                f"export needs {name}, which is not installed: pip install 'petriscope[{extra}]'"
            ) from None


def write_model(graph: Graph, folder: Path, format: str) -> None:
    """Write a graph into a folder as the files that `petriscope.inference.runtime.FORMATS` names.

    Raises:
        PetriscopeError: the network does something that the format cannot hold; or the disk is full or read-only.
    """
    path = folder / FORMATS[format].files[0]
    {"onnx": write_graph, "pt2": _write_program, "openvino": _write_openvino}[format](graph, path)


class _Named(nn.Module):
    """A graph that gives its outputs by name."""

    def __init__(self, whole: Graph) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.whole.outputs, self.whole(images), strict=True))


def _write_program(graph: Graph, path: Path) -> None:
    program = record(_Named(graph), graph.shape, graph.depth)
    program.example_inputs = None  # which would be pickled
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            for name in FORGOTTEN:
                node.meta.pop(name, None)
    with atomic(path) as temporary, quiet(), temporary.open("wb") as file:
        torch.export.save(program, file)


def _write_openvino(graph: Graph, path: Path) -> None:
    import openvino

    with TemporaryDirectory() as folder:
        whole = Path(folder) / "model.onnx"
        write_graph(graph, whole)
        with explained("cannot be written for OpenVINO"):
            openvino.save_model(openvino.Core().read_model(whole), path, compress_to_fp16=False)
