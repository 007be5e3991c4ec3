"""One HTML file that predicts in the browser: model, runtime and code are in it, and images do not leave the computer.

The model is run by onnxruntime-web, compiled to WebAssembly. Image files are decoded and resized by code of the page that gives
the pixels that Petriscope gives (``templates/png.js``, ``resize.js``, ``pixels.js``).
"""

from __future__ import annotations

import base64
import gzip
import json
import shutil
import subprocess
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256 as hashed
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from petriscope.core.drawing import class_colors
from petriscope.core.errors import DataError, RequestError
from petriscope.core.files import parse_json, parsing, read_text, write_text
from petriscope.inference.package import (
    ARRAYS,
    LABELER,
    LIMITS,
    MANIFEST,
    MODEL,
    SEGMENTER,
    TESTS,
    Input,
    Manifest,
    likeness_of,
    read_arrays,
)
from petriscope.inference.verification import VECTORS
from petriscope.models import ENSEMBLE
from petriscope.trust.abstention import NO_CLASS, NOT_SURE, UNCLAIMED
from petriscope.trust.two_sample import Likeness
from petriscope.trust.verdict import WITHDRAWN, remedy

if TYPE_CHECKING:
    from jinja2 import Environment

VERSION = "1.30.0"  # of onnxruntime-web
PACKAGE = "onnxruntime-web"
CODE, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
# SHA-256 of the files as npm has them.
DIGESTS = {
    CODE: "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    WASM: "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
LICENSE = """\
This file contains onnxruntime-web (ONNX Runtime).

MIT License

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE."""
TEMPLATES = Path(__file__).parent / "templates"
SCRIPTS = ("resize.js", "png.js", "pixels.js", "files.js", "answers.js", "likeness.js", "model.js", "page.js")
SUFFIXES = (".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp")  # that the page takes from folders
MOST_MODEL = 300_000_000  # bytes; browsers do not hold a text much longer than what these become
MOST_TESTS = 4_000_000  # bytes of all test images
COLUMNS_FIRST = 13  # the major version of Pillow since which tall images are first made lower when they shrink
CLAIM = "Guarantees hold for images like those of val, taken in the same way."
TESTED = (
    f"{CLAIM} If one is chosen, the images given are compared with val as petriscope predict compares them, and guarantees are "
    "withdrawn where the images are shown not to be like val's."
)
UNTESTED = (
    f"{CLAIM} Whether the images given are like them is not tested by this page, since its package does not say what val is "
    "like. Each image is judged by its out-of-distribution score alone."
)


@dataclass(frozen=True)
class Test:
    """A test image, in its file's bytes, and its class; for masks, the share of each class; of several labels, 1 for each that is
    present, else 0."""

    name: str
    content: bytes
    expected: int | list[float]


@dataclass(frozen=True)
class Carried:
    """What a page has of a package.

    Args:
        parts: model and runtime by name, compressed, as base64.
        likeness: what images of val are like; None: unknown, so images are not compared.
        answerable: for each error rate on offer, whether an answer can be given at it.
    """

    parts: dict[str, str]
    tests: list[Test]
    likeness: Likeness | None
    answerable: tuple[bool, ...]


def write_page(package: Path, out: Path, runtime: Path | None = None) -> None:
    """Write the page of a package.

    Args:
        package: its folder.
        out: the HTML file; an existing one is replaced.
        runtime: where onnxruntime-web is; see `find_runtime`.

    Raises:
        RequestError: the package has what a page cannot do, or onnxruntime-web is not there.
        PetriscopeError: the disk is full or read-only.
    """
    manifest = Manifest.read(package / MANIFEST)
    check_package(manifest)
    model = package / MODEL
    check_input(manifest.input, model.stat().st_size)
    with parsing(package / ARRAYS, "export the run again"):
        arrays = read_arrays(package / ARRAYS)
        likeness, answerable = likeness_of(manifest, arrays), _answerable(manifest, arrays[LIMITS])
    files = read_runtime(find_runtime(runtime))
    parts = {"runtime": files[CODE], "wasm": files[WASM], "model": model.read_bytes()}
    carried = Carried(
        {name: _packed(content) for name, content in parts.items()},
        read_tests(package / TESTS, manifest),
        likeness,
        answerable,
    )
    write_text(out, _html(manifest, carried))


def _answerable(manifest: Manifest, limits: np.ndarray) -> tuple[bool, ...]:
    if manifest.outputs == LABELER:  # each answer of each label has a limit of its own
        return tuple(bool(each) for each in np.isfinite(limits).any((1, 2)))
    return tuple(each.threshold is not None for each in manifest.error_rates)


def check_package(manifest: Manifest) -> None:
    """
    Raises:
        RequestError: a page cannot run the package's model.
    """
    if manifest.format != "onnx":
        raise RequestError(f"a page runs ONNX models, and this one is in the format {manifest.format}; give the run")


def check_input(taken: Input, size: int) -> None:
    """
    Args:
        taken: the input of a model.
        size: bytes of the model, at least.

    Raises:
        RequestError: a page cannot read such images, or hold the model.
    """
    if not taken.plain:
        raise RequestError(
            "a page reads gray and RGB images with 8 bits, and this model takes images with 16 bits, a range of values or other "
            "channels; export it with --format onnx"
        )
    if taken.scale is not None:
        raise RequestError(
            f"this model scales images (data.scale {taken.scale}), which a page does not do; export it with "
            "--format onnx"
        )
    if taken.filter == "draft":
        raise RequestError(
            "this model reads large JPEG files at a fraction of their size (data.filter draft), which a browser does not do; "
            "export it with --format onnx"
        )
    if taken.overlap is not None:
        raise RequestError(
            "this model predicts by tiles (data.tiles), which a page does not do; export it with --format onnx"
        )
    if size > MOST_MODEL:
        raise RequestError(
            f"a page holds a model of at most {MOST_MODEL // 1_000_000} MB, and this one has {size / 1e6:,.0f} MB; "
            "export it with --format onnx, or train a smaller network"
        )


def find_runtime(given: Path | None) -> Path:
    """The folder with the files of onnxruntime-web.

    Args:
        given: the folder of the npm package, its folder ``dist``, or one with ``node_modules``; None: it is looked for in
            ``./node_modules``, and then among what npm installed globally.

    Raises:
        RequestError: it is not there, or another version is.
    """
    get = (
        f"get it with npm install {PACKAGE}@{VERSION}, and name its folder with --runtime FOLDER if npm runs elsewhere"
    )
    roots = [given] if given is not None else [Path(), *_global()]
    for root in roots:
        for folder in (root / "node_modules" / PACKAGE, root / PACKAGE, root, root.parent):
            about = folder / "package.json"
            if about.is_file() and parse_json(read_text(about, MOST_TESTS, "a file of npm")).get("name") == PACKAGE:
                found = parse_json(read_text(about, MOST_TESTS, "a file of npm")).get("version")
                if found != VERSION:
                    raise RequestError(
                        f"{folder} has version {found} of {PACKAGE}, and the page needs {VERSION}; {get}"
                    )
                return folder / "dist"
    where = f"in {given}" if given is not None else "in ./node_modules, or where npm installs globally"
    raise RequestError(f"the page needs {PACKAGE} {VERSION}, which is not {where}; {get}")


def _global() -> list[Path]:
    npm = shutil.which("npm")
    if npm is None:
        return []
    found = subprocess.run([npm, "root", "-g"], capture_output=True, text=True, check=False)
    return [Path(found.stdout.strip())] if found.returncode == 0 and found.stdout.strip() else []


def read_runtime(folder: Path) -> dict[str, bytes]:
    """The files of onnxruntime-web, by name.

    Raises:
        RequestError: one is missing, or differs from what was published.
    """
    out = {}
    for name, digest in DIGESTS.items():
        path = folder / name
        if not path.is_file():
            raise RequestError(f"{path} is missing; install it again with npm install {PACKAGE}@{VERSION}")
        out[name] = path.read_bytes()
        if sha256(out[name]) != digest:
            raise RequestError(
                f"{path} is not the file that was published with {PACKAGE} {VERSION}: its SHA-256 differs. Install it again"
            )
    return out


def sha256(content: bytes) -> str:
    """In hexadecimal digits."""
    return hashed(content).hexdigest()


def read_tests(folder: Path, manifest: Manifest) -> list[Test]:
    """The test images of a package that the page reads, up to `MOST_TESTS` bytes.

    ``vectors.npz`` has the names of the image files in ``names`` and what the run answers on them in ``label``, ``labels`` or
    ``classes``.
    """
    vectors = folder / VECTORS
    arrays = read_arrays(vectors)
    key = {SEGMENTER: "classes", LABELER: "labels"}.get(manifest.outputs, "label")
    names, answers = arrays["names"].tolist(), arrays[key]
    out: list[Test] = []
    room = MOST_TESTS
    for name, answer in zip(names, answers, strict=True):
        path = folder / name
        if path.parent != folder or not path.is_file():
            raise DataError(f"{vectors} names {name}, which is not beside it")
        if path.suffix.lower() not in SUFFIXES or (room := room - path.stat().st_size) < 0:
            continue
        out.append(Test(name, path.read_bytes(), _expected(manifest, answer)))
    return out


def _expected(manifest: Manifest, answer: np.ndarray) -> int | list[float]:
    if manifest.outputs == SEGMENTER:
        return (np.bincount(np.ravel(answer), minlength=len(manifest.classes)) / np.size(answer)).tolist()
    return answer.astype(int).tolist() if manifest.outputs == LABELER else int(answer)


def carried_likeness(likeness: Likeness) -> dict[str, Any]:
    """A likeness as the script reads it: whole numbers in lists, others as the base64 of float32."""

    def numbers(values: np.ndarray) -> str:
        return base64.b64encode(values.astype("<f4").tobytes()).decode()

    traits = likeness.traits
    looks = likeness.center is not None
    return {
        "target": likeness.target.tolist(),
        "predicted": traits.predicted.tolist(),
        "group": None if likeness.index is None else likeness.index.tolist(),
        "center": None if likeness.center is None else likeness.center.tolist(),
        "project": likeness.project.T.tolist() if looks else None,
        "points": numbers(traits.points),
        "directions": traits.points.shape[1],
        "appearance": numbers(traits.appearance),
        "measures": traits.appearance.shape[1],
        "ood": numbers(traits.ood),
        "uncertainty": numbers(traits.uncertainty),
    }


def _packed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, mtime=0)).decode()


def _html(manifest: Manifest, carried: Carried) -> str:
    from markupsafe import Markup

    text = script()
    digest = base64.b64encode(hashed(text.encode()).digest()).decode()
    notes = [note for each in manifest.error_rates for note in each.notes]
    notes += [note for each in manifest.coverages for note in each.notes]
    return (
        _environment()
        .get_template("browser.html")
        .render(
            manifest=manifest,
            kind=_kind(manifest),
            what={"masks": "Masks", "labels": "Labels"}.get(_kind(manifest), "Classes"),
            answerable=carried.answerable,
            about=Markup(json.dumps(_about(manifest, carried)).replace("<", "\\u003c")),
            parts=carried.parts,
            script=Markup(text),
            digest=digest,
            limits=list(dict.fromkeys(notes)),
            claim=UNTESTED if carried.likeness is None else TESTED,
            colors=class_colors(len(manifest.classes)).tolist(),
            tests=len(carried.tests),
            license=Markup(LICENSE),
            runtime_version=VERSION,
        )
    )


def _kind(manifest: Manifest) -> str:
    """What an image gets: a class, labels, or a mask."""
    return {SEGMENTER: "masks", LABELER: "labels"}.get(manifest.outputs, "class")


def script() -> str:
    """The JavaScript of the page."""
    return "\n".join((TEMPLATES / name).read_text(encoding="utf-8") for name in SCRIPTS)


def _about(manifest: Manifest, carried: Carried) -> dict[str, Any]:
    """What the script knows of the model."""
    return {
        "name": manifest.name,
        "kind": _kind(manifest),
        "classes": manifest.classes,
        "input": {**asdict(manifest.input), "columns_first": columns_first()},
        "error_rates": [asdict(each) for each in manifest.error_rates],
        "coverages": [asdict(each) for each in manifest.coverages],
        "colors": class_colors(len(manifest.classes)).tolist(),
        "suffixes": SUFFIXES,
        "likeness": None if carried.likeness is None else carried_likeness(carried.likeness),
        "words": {
            "not_sure": NOT_SURE,
            "no_class": NO_CLASS,
            "unclaimed": UNCLAIMED,
            "withdrawn": WITHDRAWN,
            "claim": UNTESTED if carried.likeness is None else CLAIM,
            "remedy": remedy(adapts=manifest.recipe["model"]["name"] != ENSEMBLE),
        },
        "tests": [
            {"name": test.name, "content": base64.b64encode(test.content).decode(), "expected": test.expected}
            for test in carried.tests
        ],
    }


def columns_first() -> bool:
    """Whether the Pillow that is installed shrinks the columns of tall images first, as the page then does."""
    import PIL

    return int(PIL.__version__.split(".")[0]) >= COLUMNS_FIRST


@cache
def _environment() -> Environment:
    """Templates of this room, and the style sheet of reports."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=ChoiceLoader([PackageLoader("petriscope.ship"), PackageLoader("petriscope.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
