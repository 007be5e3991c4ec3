"""A package as a model folder of bioimage.io, which QuPath, ilastik, deepImageJ and others read.

The folder is described by the classes of bioimageio.spec, and tested by bioimageio.core before it is kept: its own test, and the
comparison with what the run answers on the test images of the package, which bioimageio.core then predicts.
"""

from __future__ import annotations

import io
import re
import string
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from petriscope.core.errors import PetriscopeError, RequestError, shortened
from petriscope.core.files import atomic, new_folder
from petriscope.inference.package import CLASSIFIER, LABELER, SEGMENTER, TESTS, Manifest, Package, digest, read_arrays
from petriscope.inference.verification import BATCHES, VECTORS, Differences, compare_outputs
from petriscope.ship.graph import INPUT, OPSET, quiet

BROKEN = ((0, 5, 12), (2, 13, 0))  # bioimageio.spec up to here cannot write paths with pydantic from there on
EXAMPLES = 4  # test images in the folder
COVER = (512, 256)  # width and height of the image that stands for the model
LETTERS = string.ascii_letters + string.digits + "_+- ()"  # of names
NAME = (5, 64)  # characters
# What other programs are given, by name. What sets of images are compared by with val is for Petriscope alone.
CLASSIFIES = {
    "probabilities": "of the classes, after temperature scaling",
    "label": "index of the most probable class",
    "ood": "out-of-distribution score; above 1, the model abstains",
    "answers": "for each error rate on offer the index of the class, or -1 for an abstention",
    "sets": "for each coverage on offer, the classes in the prediction set",
}
LABELS = {
    "probabilities": "of the labels, scaled as val showed; any number of them can be present",
    "labels": "which labels are present, by a cutoff for each",
    "ood": "out-of-distribution score; above 1, the model abstains",
    "answers": "for each error rate on offer and each label 1 where it is present, 0 where absent, -1 where it is left open",
}
SEGMENTS = {
    "classes": "index of the most probable class of each pixel",
    "confidence": "the largest probability of each pixel",
    "probabilities": "of the classes for each pixel",
}


def check_request(license: str | None) -> None:
    """
    Raises:
        RequestError: bioimageio.core is not installed, or the license is unknown.
    """
    for name in ("bioimageio.spec", "bioimageio.core"):
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            raise RequestError(
                f"--format bioimageio needs {name}, which is not installed: pip install 'petriscope[bioimageio]'"
            ) from None
    spec, pydantic = (metadata.version(name) for name in ("bioimageio.spec", "pydantic"))
    if _number(spec) <= BROKEN[0] and _number(pydantic) >= BROKEN[1]:
        raise RequestError(
            f"bioimageio.spec {spec} does not work with pydantic {pydantic}: pip install "
            "'petriscope[bioimageio]' brings one with which it does"
        )
    _license(license)


def check_package(manifest: Manifest) -> None:
    """
    Raises:
        RequestError: the package is of another format.
    """
    if manifest.format != "onnx":
        raise RequestError(f"models of bioimage.io are made of packages in the format onnx, not {manifest.format}")


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def write_bioimageio(package: Path, out: Path, license: str | None = None) -> None:
    """Write a package as a model folder of bioimage.io.

    Args:
        package: its folder; its model is in the format ``onnx``.
        out: the folder to make.
        license: of the model, as SPDX names it, such as ``MIT``; None: not stated.

    Raises:
        RequestError: see `check_request`; or the package is of another format.
        PetriscopeError: the model answers otherwise there, or bioimageio.core finds it wrong; nothing is left behind.
    """
    check_request(license)
    opened = Package(package)
    check_package(opened.manifest)
    arrays = read_arrays(package / TESTS / VECTORS)
    names, images = [str(name) for name in arrays.pop("names")], arrays.pop("images")
    with new_folder(out) as (staging, _):
        _write_model(package / opened.manifest.model_files[0], staging / "model.onnx", _outputs(opened))
        examples = np.ascontiguousarray(images[:EXAMPLES])
        found = opened.run(examples)
        tensors = {INPUT: examples} | {name: found[name] for name in _outputs(opened)}
        for name, values in tensors.items():
            np.save(staging / f"{name}.npy", values)
        (staging / "cover.png").write_bytes(_cover(images))
        (staging / "README.md").write_text(_documentation(package, opened), encoding="utf-8")
        with quiet():
            described = _describe(opened, staging, tensors, license)
            _test(described)
            other = _There(opened, described)
            apart = Differences()
            for size in dict.fromkeys((*BATCHES, len(images))):
                compare_outputs(other, images, arrays, names, size, apart)  # type: ignore[arg-type]
        if wrong := apart.sentence():
            raise PetriscopeError(
                f"bioimageio.core {metadata.version('bioimageio.core')} does not answer as the run did, and the folder was not "
                f"kept. Of {len(names):,} test images: {wrong}"
            )


def _outputs(package: Package) -> Mapping[str, str]:
    return {CLASSIFIER: CLASSIFIES, LABELER: LABELS, SEGMENTER: SEGMENTS}[package.manifest.outputs]


def _write_model(path: Path, out: Path, outputs: Mapping[str, str]) -> None:
    """The model of a package with these outputs alone; bioimageio.core goes by their order."""
    import onnx

    model = onnx.load(path)
    known = {each.name: each for each in model.graph.output}
    del model.graph.output[:]
    model.graph.output.extend(known[name] for name in outputs)
    with atomic(out) as temporary:
        onnx.save(model, temporary)


def _describe(package: Package, folder: Path, tensors: Mapping[str, np.ndarray], license: str | None) -> Any:
    """Write ``bioimageio.yaml``, and give it as bioimageio.spec reads it.

    Raises:
        PetriscopeError: bioimageio.spec finds it wrong.
    """
    from bioimageio.spec import load_model_description
    from bioimageio.spec.model.v0_5 import ModelDescr
    from bioimageio.spec.utils import write_yaml

    made = package.manifest

    def file(name: str) -> dict[str, Any]:
        return {"source": name, "sha256": digest(folder / name)}

    content: dict[str, Any] = {
        "format_version": ModelDescr.implemented_format_version,
        "type": "model",
        "name": _name(made.name),
        "description": f"{_description(made)}, with all that decides about an answer inside the "
        "model. Exported by Petriscope.",
        "timestamp": made.created,
        "tags": ["petriscope", made.task, "2d"],
        "covers": [file("cover.png")],
        "documentation": file("README.md"),
        "inputs": [{**_input(package), "test_tensor": file(f"{INPUT}.npy")}],
        "outputs": [
            {**_output(package, name, text, tensors[name]), "test_tensor": file(f"{name}.npy")}
            for name, text in _outputs(package).items()
        ],
        "weights": {"onnx": {**file("model.onnx"), "opset_version": OPSET}},
        "config": {"petriscope": {"fingerprint": made.fingerprint, "versions": dict(made.versions)}},
    }
    if license is not None:
        content["license"] = _license(license)
    path = folder / "bioimageio.yaml"
    write_yaml(content, path)
    try:
        return load_model_description(path)
    except ValueError as error:  # of all that is wrong
        raise PetriscopeError(
            f"bioimageio.spec {metadata.version('bioimageio.spec')} does not take the description of this model: "
            f"{shortened(str(error), 400)}"
        ) from error


def _description(made: Manifest) -> str:
    if made.outputs == LABELER:
        return f"Any number of {len(made.classes):,} labels for each image"
    return f"{made.task.capitalize()} of images into {len(made.classes):,} classes"


def _name(name: str) -> str:
    """A name of the letters that are allowed, long enough."""
    shortest, longest = NAME
    known = "".join(letter if letter in LETTERS else "-" for letter in name)
    return (known if len(known) >= shortest else f"{known} model")[:longest]


def _license(name: str | None) -> str | None:
    """A license as SPDX writes it.

    Raises:
        RequestError: SPDX does not know it.
    """
    if name is None:
        return None
    from bioimageio.spec.utils import get_spdx_licenses

    for each in get_spdx_licenses()["licenses"]:
        if each["licenseId"].casefold() == name.casefold():
            return str(each["licenseId"])
    raise RequestError(
        f"--license of a model of bioimage.io is one that SPDX knows, such as MIT or CC-BY-4.0; not {name}"
    )


def _input(package: Package) -> dict[str, Any]:
    taken = package.manifest.input
    colors = {1: ("gray",), 3: ("red", "green", "blue")}
    names = taken.names or colors.get(taken.channels) or tuple(f"channel {number}" for number in range(taken.channels))
    largest = int(np.iinfo(taken.dtype).max)
    return {
        "id": INPUT,
        "description": f"{taken.height} x {taken.width} pixels, 0 to {largest:,}, not normalized",
        "axes": [
            {"type": "batch"},
            *_places(taken.height, taken.width),
            {"type": "channel", "channel_names": list(names)},
        ],
        "data": {"type": str(taken.dtype), "range": [0, largest]},
    }


def _places(height: int, width: int) -> list[dict[str, Any]]:
    return [{"type": "space", "id": "y", "size": height}, {"type": "space", "id": "x", "size": width}]


def _output(package: Package, name: str, text: str, values: np.ndarray) -> dict[str, Any]:
    made, (height, width, _) = package.manifest, package.shape
    axes: list[dict[str, Any]] = [{"type": "batch"}]
    if name == "sets":
        axes.append({"type": "index", "id": "coverage", "size": len(made.coverages)})
    by_label = name == "answers" and made.outputs == LABELER
    if by_label:
        axes.append({"type": "index", "id": "error_rate", "size": len(made.error_rates)})
    if name in ("probabilities", "labels", "sets") or by_label:
        axes.append({"type": "channel", "channel_names": list(made.classes)})
    elif name == "answers":
        rates = [f"at most {100 * each.max_error:g} % errors" for each in made.error_rates]
        axes.append({"type": "channel", "channel_names": rates})
    if made.outputs == SEGMENTER:
        axes += _places(height, width)
    kind = str(values.dtype)
    data = {"type": kind, "values": [False, True]} if kind == "bool" else {"type": kind}
    return {"id": name, "description": text, "axes": axes, "data": data}


def _test(described: Any) -> None:
    """
    Raises:
        PetriscopeError: bioimageio.core finds the model wrong.
    """
    from bioimageio.core import test_model

    summary = test_model(described, weight_format="onnx")
    if summary.status != "passed":
        said = "; ".join(f"{'.'.join(map(str, each.loc))}: {each.msg}" for each in summary.errors) or summary.status
        raise PetriscopeError(
            f"bioimageio.core {metadata.version('bioimageio.core')} finds the model wrong, and it was not kept: "
            f"{shortened(said, 400)}"
        )


class _There:
    """A model of bioimage.io as bioimageio.core runs it, with what `compare_outputs` takes of a package."""

    def __init__(self, package: Package, described: Any) -> None:
        from bioimageio.core import create_prediction_pipeline

        self.manifest, self.names, self.cutoffs = package.manifest, tuple(_outputs(package)), package.cutoffs
        self.pipeline = create_prediction_pipeline(described, weights_format="onnx")

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        from bioimageio.core import predict

        found = predict(model=self.pipeline, inputs=np.ascontiguousarray(images))
        return {str(name): np.asarray(each.data) for name, each in found.members.items()}


def _cover(images: np.ndarray) -> bytes:
    """Some of the test images side by side, as PNG."""
    width, height = COVER
    shown = images[:2] // (1 if images.dtype == np.uint8 else 256)
    picked = [Image.fromarray((each if each.shape[2] == 3 else each.mean(2)).astype(np.uint8)) for each in shown]
    sheet = Image.new("RGB", COVER, "white")
    for number, image in enumerate(picked):
        sheet.paste(
            image.convert("RGB").resize((width // 2, height), Image.Resampling.BICUBIC), (number * width // 2, 0)
        )
    out = io.BytesIO()
    sheet.save(out, "PNG")
    return out.getvalue()


def _documentation(package: Path, opened: Package) -> str:
    """The model card without the metadata of another hub, and how the model is used here."""
    card = re.sub(r"\A---\n.*?\n---\n", "", (package / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    taken = opened.manifest.input
    lines = _uses(opened.manifest)
    return (
        f"{card.strip()}\n\n## In programs that read bioimage.io\n\nThe model takes images of {taken.height} x {taken.width} "
        f"pixels as {taken.dtype}, with channels last; it normalizes them itself. {_tiles(taken.overlap)}{lines} "
        "`predict.py`, `lib/` and `tests/`, which the text above names, are in the package that this folder was made of.\n\n"
        "## Validation\n\nThe metrics above are of images that the model was not trained on. To validate it on your own labeled "
        "images: `petriscope evaluate PACKAGE --data SOURCE`.\n"
    )


def _tiles(overlap: float | None) -> str:
    """How larger images are predicted, which is left to the program."""
    if overlap is None:
        return ""
    return (
        "It learned from tiles of that size that were cut out of larger images in their own resolution, so cut larger images "
        f"into such tiles instead of reducing them; Petriscope lets neighbors overlap by {100 * overlap:g} % of their side. "
    )


def _uses(made: Manifest) -> str:
    if made.outputs == SEGMENTER:
        return "Masks are without guarantee."
    rates = ", ".join(f"{100 * each.max_error:g} %" for each in made.error_rates)
    abstains = "where the model abstains"
    if made.outputs == LABELER:
        abstains = f"where a label is left open; its error rates are, in order, {rates}"
    return (
        f"`answers` has -1 {abstains}. Whether the images are like those of val is not tested there, so no "
        "guarantee is withdrawn; `predict.py` of the package does that."
    )
