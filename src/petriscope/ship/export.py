"""Export: a run becomes a package, which appears only when it was shown to answer as the run does.

The package has everything that decides about an answer: how bytes become the input of the network, the network, test-time
augmentation, temperature, thresholds, prediction sets, the out-of-distribution score, and what images of val are like.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from petriscope.core.device import enough_memory
from petriscope.core.errors import PetriscopeError, RequestError, shown
from petriscope.core.files import new_folder, user_path, write_text
from petriscope.core.progress import progress, say
from petriscope.data.imageset import Dataset, ImageSet
from petriscope.data.membership import pack
from petriscope.experiments.own_data import own_split
from petriscope.inference.exported import open_package
from petriscope.inference.package import (
    ARRAYS,
    CLASSIFIER,
    LIMITS,
    MANIFEST,
    MODEL,
    SEEN,
    SEGMENTER,
    TESTS,
    Agreement,
    Input,
    Manifest,
    Measured,
    Package,
    digest,
    is_package,
)
from petriscope.inference.predictor import Predictor, load_model
from petriscope.inference.verification import BATCHES, TOLERANCE, VECTORS, Differences, compare_outputs, verify
from petriscope.run.folder import Run, check_free, open_run
from petriscope.ship import carried, test_images
from petriscope.ship.card import card
from petriscope.ship.expected import Outputs, answers, offers
from petriscope.ship.graph import Graph, refuse, write_graph
from petriscope.ship.lowered import PRECISIONS, lower
from petriscope.ship.page import find_runtime, write_page
from petriscope.ship.signing import read_key, sign
from petriscope.trust.robustness import stratified

BLOCK = 256  # images that are compared at a time
IN_EACH = 64  # images that are predicted in each size of batches but the largest
MOST_VECTORS = 2000  # images of val whose answers the package keeps
OF_VAL = "val.npz"
PACKAGES = Path("packages")
LIBRARIES = ("petriscope", "torch", "onnx", "onnxscript", "onnxruntime", "numpy", "pillow")
SCRIPT = '''"""Predict image files with this package: python predict.py IMAGES... It needs numpy, Pillow and onnxruntime."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.dont_write_bytecode = True  # nothing is added to the package
sys.path.insert(0, str(HERE / "lib"))

from petriscope.inference.offline import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(HERE))
'''


@dataclass(frozen=True)
class Exported:
    """A package that was made.

    Args:
        folder: of it.
        manifest: its contents.
    """

    folder: Path
    manifest: Manifest

    def sentences(self) -> list[str]:
        """How it was verified, for people."""
        found = self.manifest.verification
        if found is None or not found.images:
            return []
        files = f", {found.from_files:,} from the bytes of their files" if found.from_files else ""
        pixels = f"; {found.undecided:,} pixels were left to rounding" if found.undecided else ""
        sizes = ", ".join(map(str, found.batches[:-1]))
        if self.manifest.measured:
            return [*map(_words, self.manifest.measured), *self._single()]
        return [
            f"equal answers of the package and the run on {found.images:,} of {found.of:,} images of val{files} (in batches of "
            f"{found.batches[-1]:,}, and {found.in_each:,} in batches of {sizes}); probabilities differ by "
            f"{found.largest_difference:.1e} at most{pixels}"
        ]

    def _single(self) -> list[str]:
        count = len(self.manifest.single)
        return [f"{count} layer{' stays' if count == 1 else 's stay'} in single precision"] if count else []


def _words(found: Measured) -> str:
    """One line of what a lower precision was compared with."""
    low, high = found.change_ci95
    apart = (
        "" if found.of == "run" or low is None or high is None else f" ({100 * low:+.2f} to {100 * high:+.2f} points)"
    )
    errors = "" if found.nll is None else f", nll {found.nll:.4f}, ece {100 * (found.ece or 0):.2f} %"
    size = "" if found.bytes is None else f", {found.bytes / 1e6:.2f} MB"
    accuracy = f"{found.of}: accuracy on val {100 * found.accuracy:.2f} %{apart}"
    return f"{accuracy}{errors}{size}, {found.images_per_second:,.0f} images/s"


@enough_memory()
def export(
    run: str | PathLike[str],
    out: str | PathLike[str] | None = None,
    *,
    images: bool = True,
    key: str | PathLike[str] | None = None,
    license: str | None = None,
    sample: int | None = None,
    precision: str = "fp32",
    force: bool = False,
    quiet: bool = False,
) -> Exported:
    """Write a run as a package.

    Args:
        run: a run folder.
        out: the folder to make; None: ``packages/`` and the name of the run.
        images: take images of val along, on which the package is verified anywhere; False: drawn ones.
        key: a file with a private ed25519 key in PEM, to sign the package with; None: it is not signed.
        license: of the model, for its card, such as ``mit``; None: not stated.
        sample: images of val that the package is compared with the run on; None: all.
        precision: of the network: ``fp32``; ``fp16``, a file of half the size; or ``int8``, a quarter of it, and faster where
            large convolutions take the time. What is fitted on val is fitted anew for the last two, and val shows what they cost.
        force: export a lower precision although val shows that it is worse by more than half a point.

    Raises:
        RequestError: there is no run, its model cannot be exported, a library is missing, or ``out`` is not empty.
        DataError: the run's data have changed.
        PetriscopeError: the package answers otherwise than the run, or a lower precision is worse; nothing is left behind.
    """
    if precision not in PRECISIONS:
        raise RequestError(f"precision cannot be {shown(precision)}; known: {', '.join(PRECISIONS)}")
    source, folder = open_run(run), None if out is None else user_path(out)
    check_free(folder)
    check_libraries()
    secret = None if key is None else read_key(user_path(key))
    predictor = _in_float32(load_model(source.folder, "cpu"))
    refuse(predictor)
    data = _data(source, quiet)
    val = None if data is None else data.split("val")
    if precision != "fp32":
        _check_lower(source, val, precision)
    with new_folder(folder or PACKAGES / source.folder.resolve().name, numbered=folder is None) as (staging, made):
        lowered = None
        if data is not None and val is not None and precision != "fp32":
            with TemporaryDirectory() as scratch:
                work = (data.train, val, Path(scratch), staging / MODEL, force, quiet)
                lowered = lower(predictor, precision, *work)
            predictor = lowered.predictor
        else:
            write_graph(Graph(predictor), staging / MODEL)
        manifest = _write(staging, predictor, val if images else None)
        if lowered is not None:
            manifest = replace(manifest, precision=precision, measured=lowered.measured, single=lowered.kept)
        package = Package(_listed(staging, manifest))
        # In a lower precision, it is compared with itself: in other batches, and from the bytes of files.
        judge = predictor if lowered is None else open_package(staging)
        agreement = _compare(package, judge, val, sample, quiet)
        _write_vectors(staging, judge, val, package.manifest.input)
        known = package.manifest
        manifest = replace(known, verification=agreement, fingerprint=known.identity(known.files))
        write_text(staging / "README.md", card(source, manifest, license))
        manifest = replace(manifest, files=_digests(staging))
        write_text(staging / MANIFEST, manifest.text())
        if secret is not None:
            sign(staging, secret)
    return Exported(made, manifest)


def export_page(
    model: str | PathLike[str],
    out: str | PathLike[str] | None = None,
    *,
    runtime: str | PathLike[str] | None = None,
    images: bool = True,
    sample: int | None = None,
    quiet: bool = False,
) -> Path:
    """Write a run or a package as one HTML file that predicts in the browser, see `petriscope.ship.page`.

    Args:
        model: a run folder, or a package.
        out: the file to make; None: ``packages/``, the name of the model, and ``.html``.
        runtime: the folder of onnxruntime-web; None: where npm puts it.
        images, sample: see `export`, of a run.

    Returns:
        the file.

    Raises:
        RequestError: the file exists, onnxruntime-web is not there, or the model has what a page cannot do; or as `export`.
    """
    source = user_path(model)
    page = PACKAGES / f"{source.resolve().name}.html" if out is None else user_path(out)
    if page.exists():
        raise RequestError(f"{page} exists; choose another --out")
    place = None if runtime is None else user_path(runtime)
    find_runtime(place)  # refused before anything is computed
    if is_package(source):
        verify(source)
        write_page(source, page, place)
        return page
    with TemporaryDirectory() as folder:
        made = export(source, Path(folder) / "package", images=images, sample=sample, quiet=quiet)
        write_page(made.folder, page, place)
    return page


def check_libraries() -> None:
    """
    Raises:
        RequestError: a library that export needs is not installed.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            raise RequestError(
                f"export needs {name}, which is not installed: pip install 'petriscope[export]'"
            ) from None


def _in_float32(predictor: Predictor) -> Predictor:
    """The same in the number format of the package."""
    training = predictor.recipe.training.model_copy(update={"precision": "fp32"})
    return replace(predictor, recipe=predictor.recipe.model_copy(update={"training": training}))


def _check_lower(run: Run, val: ImageSet | None, precision: str) -> None:
    """
    Raises:
        RequestError: what is fitted on val cannot be fitted anew.
    """
    if val is None:
        raise RequestError(
            f"{precision} needs a run with a val split, on which temperature and thresholds are fitted anew"
        )
    if run.results.adaptation is not None:
        raise RequestError(
            f"{run.folder} is adapted: its thresholds are fitted on held-out images, and cannot be fitted anew for {precision}; "
            "export it in fp32"
        )


def _data(run: Run, quiet: bool) -> Dataset | None:
    if "val" not in run.environment.data.splits:
        if not quiet:
            say("note: the run has no val split, so the package is compared with it on its test images alone")
        return None
    with run.claimed():
        return own_split(run, "val")


def taken_input(predictor: Predictor) -> Input:
    """The input of a predictor's package."""
    data = predictor.recipe.data
    return Input(*predictor.shape, data.filter, data.bits, data.channels == "gray", data.scale, data.field_of_view)


def _write(staging: Path, predictor: Predictor, val: ImageSet | None) -> Manifest:
    """All files but model, vectors, card and manifest."""
    tta = predictor.recipe.evaluation.tta
    trust = replace(
        predictor.trust,
        references={name: each for name, each in predictor.trust.references.items() if name == tta},
    )
    predictor.trust = trust
    facts, arrays = trust.to_file()
    seen = {} if predictor.exposure is None else predictor.exposure.arrays()
    rates, coverages, limits = offers(predictor)
    arrays = {**arrays, **{f"{SEEN}{role}": each for role, each in seen.items()}, LIMITS: limits}
    _write_arrays(staging / ARRAYS, arrays)
    taken = taken_input(predictor)
    files = (
        test_images.drawn(taken) if val is None else test_images.of_val(val, predictor.recipe.data.source or "", taken)
    )
    (staging / TESTS).mkdir()
    for name, content in files.items():
        (staging / TESTS / name).write_bytes(content)
    write_text(staging / "predict.py", SCRIPT)
    for name, text in carried.carried_files().items():
        path = staging / "lib" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return Manifest(
        name=predictor.recipe.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        task=predictor.task.name,
        classes=predictor.classes,
        input=taken,
        precision="fp32",
        tta=tta,
        temperature=predictor.temperature(tta),
        outputs=SEGMENTER if predictor.task.dense else CLASSIFIER,
        error_rates=rates,
        coverages=coverages,
        recipe=predictor.recipe.model_dump(mode="json"),
        trust=facts,
        mean=tuple(map(float, predictor.mean)),
        std=tuple(map(float, predictor.std)),
        versions={name: metadata.version(name) for name in LIBRARIES},
    )


def _write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)  # type: ignore[arg-type]
    path.write_bytes(packed.getbuffer())


def _digests(staging: Path) -> dict[str, str]:
    return {
        path.relative_to(staging).as_posix(): digest(path)
        for path in sorted(staging.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }


def _listed(staging: Path, manifest: Manifest) -> Path:
    """The folder, with a manifest that names its files so far."""
    manifest = replace(manifest, files=_digests(staging))
    write_text(staging / MANIFEST, manifest.text())
    return staging


# --------------------------------------------------------------------------------------------- the package and the run


def _compare(
    package: Package, predictor: Predictor, val: ImageSet | None, sample: int | None, quiet: bool
) -> Agreement:
    """Compare the package with the run on val, from the bytes of files where they lie where the source says.

    Raises:
        PetriscopeError: they differ.
    """
    found, from_files, taken = Differences(), 0, package.manifest.input
    count = 0 if val is None else min(len(val), sample or len(val))
    if val is not None:
        rows = np.sort(stratified(val.strata, count))
        source = predictor.recipe.data.source or ""  # images of several sources are compared as arrays
        with progress("" if quiet else "comparing with the run", count) as bar:
            for start in range(0, count, BLOCK):
                block = rows[start : start + BLOCK]
                pixels, names = val.take(block), [str(name) for name in val.ids[block]]
                from_files += _from_files(val, block, pixels, source, taken, found)
                expected = answers(predictor, pixels)
                compare_outputs(package, pixels, expected, names, len(block), found)
                if start == 0:
                    few = {name: values[:IN_EACH] for name, values in expected.items()}
                    for size in BATCHES:
                        compare_outputs(package, pixels[:IN_EACH], few, names[:IN_EACH], size, found)
                if not quiet:
                    bar.advance(len(block))
    if wrong := found.sentence():
        raise PetriscopeError(
            f"the package does not answer as the run does, and was not kept. Of {count:,} images of val: {wrong}. Versions: "
            f"{', '.join(f'{name} {version}' for name, version in package.manifest.versions.items())}"
        )
    return Agreement(
        images=count,
        of=0 if val is None else len(val),
        from_files=from_files,
        batches=(*BATCHES, min(BLOCK, count)),
        in_each=min(IN_EACH, count),
        largest_difference=found.largest,
        tolerance=TOLERANCE[package.manifest.precision],
        undecided=found.undecided,
    )


def _from_files(
    val: ImageSet, rows: np.ndarray, pixels: np.ndarray, source: str, taken: Input, found: Differences
) -> int:
    """Decode the files of images by the code in the package, and record which are not what the run saw. Returns how many files
    there are."""
    count = 0
    for row, image in zip(rows.tolist(), pixels, strict=True):
        path = test_images.source_file(val, row, source)
        if path is None:
            continue
        count += 1
        if not test_images.same_input(path, taken, image):
            found.wrong.setdefault("other pixels when decoded from their files", []).append(str(val.ids[row]))
    return count


def _write_vectors(staging: Path, predictor: Predictor, val: ImageSet | None, taken: Input) -> None:
    """What the run answers on the test images, and on a sample of val that is recognized by its digests."""
    names = sorted(path.name for path in (staging / TESTS).iterdir())
    images = test_images.decoded(staging / TESTS, names, taken)
    _write_arrays(staging / TESTS / VECTORS, {"names": np.array(names), "images": images, **answers(predictor, images)})
    if val is not None and not predictor.task.dense:
        rows = np.sort(stratified(val.strata, min(len(val), MOST_VECTORS)))
        some = val.subset(rows)
        kept: Outputs = answers(predictor, some.images)
        _write_arrays(staging / TESTS / OF_VAL, {"digests": pack(some.digests()), **kept})
