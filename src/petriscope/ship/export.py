"""Export: a run becomes a package, which appears only when it was shown to answer as the run does.

The package has everything that decides about an answer: how bytes become the input of the network, the network, test-time
augmentation, temperature, thresholds, prediction sets, the out-of-distribution score, and what images of val are like.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from petriscope.core.arguments import checked_arguments
from petriscope.core.device import Format, enough_memory
from petriscope.core.errors import PetriscopeError, RequestError, command, shown
from petriscope.core.files import new_folder, user_path, write_text
from petriscope.core.notebook import stoppable
from petriscope.core.progress import progress, say
from petriscope.data.imageset import Dataset, ImageSet
from petriscope.data.membership import pack
from petriscope.data.tile_sets import one_tile_each
from petriscope.experiments.own_data import own_split
from petriscope.inference.exported import open_package
from petriscope.inference.package import (
    ARRAYS,
    CUTOFFS,
    LIMITS,
    MANIFEST,
    MODEL,
    SEEN,
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
from petriscope.inference.runtime import FORMATS
from petriscope.inference.verification import BATCHES, OF_VAL, TOLERANCE, VECTORS, Differences, compare_outputs, verify
from petriscope.run.folder import Run, check_free, open_run
from petriscope.ship import bioimage, carried, test_images
from petriscope.ship.card import card
from petriscope.ship.expected import Answers, Outputs, cutoffs_of, offers
from petriscope.ship.formats import NEEDED, check_libraries, write_model
from petriscope.ship.graph import Graph, outputs_of, refuse
from petriscope.ship.lowered import NO_IMAGES, PRECISIONS, lower
from petriscope.ship.page import check_input, check_package, find_runtime, write_page
from petriscope.ship.signing import read_key, sign
from petriscope.trust.robustness import stratified

BLOCK = 256  # images that are compared at a time
IN_EACH = 64  # images that are predicted in each size of batches but the largest
MOST_VECTORS, MOST_MASKS = 2000, 32  # images of val whose answers, or masks, the package keeps
PACKAGES = Path("packages")
LIBRARIES = ("petriscope", "torch", "numpy", "pillow")
SCRIPT = '''"""Predict image files with this package: python predict.py IMAGES... It needs numpy, Pillow and {library}."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.dont_write_bytecode = True  # nothing is added to the package
sys.path.insert(0, str(HERE / "lib"))

try:
    from petriscope.inference.offline import main  # noqa: E402
except (ImportError, SyntaxError) as error:
    if (getattr(error, "name", None) or "petriscope").startswith("petriscope"):
        sys.exit(f"error: a file in {{HERE / 'lib'}} is missing or damaged: {{error}}; export the package again")
    sys.exit(f"error: {{error}}; this program needs numpy, Pillow and {library}")

if __name__ == "__main__":
    sys.exit(main(HERE))
'''


@dataclass(frozen=True)
class Exported:
    """A package that was made.

    Args:
        folder: of it.
        manifest: its contents.
        run_in: the format in which the run predicts on this machine.
    """

    folder: Path
    manifest: Manifest
    run_in: Format

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
            f"{found.largest_difference:.1e} at most{pixels}",
            *self._format(),
        ]

    def _format(self) -> list[str]:
        """That the run predicts in another format here."""
        if self.run_in == "fp32":
            return []
        return [
            f"the run was compared in single precision, in which the package computes; {command('predict', 'RUN')} and the "
            f"metrics in its report are in {self.run_in} on this machine, so probabilities differ a little, and one answer in "
            "some hundreds"
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
    metric, value = found.metric
    return (
        f"{found.of}: {metric} on val {100 * value:.2f} %{apart}{errors}{size}, {found.images_per_second:,.0f} images/s"
    )


@stoppable()
@enough_memory()
@checked_arguments
def export(
    run: str | PathLike[str],
    out: str | PathLike[str] | None = None,
    *,
    images: bool = True,
    key: str | PathLike[str] | None = None,
    license: str | None = None,
    sample: int | None = None,
    format: str = "onnx",
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
        format: of the model: ``onnx``, which onnxruntime runs; ``pt2``, a program of torch; or ``openvino``.
        precision: of the network: ``fp32``; ``fp16``, a file of half the size; or ``int8``, a quarter of it, and faster where
            large convolutions take the time. What is fitted on val is fitted anew for the last two, and val shows what they cost.
        force: export a lower precision although val shows that it is worse by more than half a point.

    Raises:
        RequestError: there is no run, its model cannot be exported, a library is missing, or ``out`` is not empty.
        DataError: the run's data have changed.
        PetriscopeError: the package answers otherwise than the run, or a lower precision is worse; nothing is left behind.
    """
    for name, value, offered in (("format", format, tuple(FORMATS)), ("precision", precision, PRECISIONS)):
        if value not in offered:
            raise RequestError(f"{name} cannot be {shown(value)}; known: {', '.join(offered)}")
    if format != "onnx" and precision != "fp32":
        raise RequestError(f"models in {precision} are in the format onnx, not in {format}")
    source, folder = open_run(run), None if out is None else user_path(out)
    check_free(folder)
    check_libraries(format)
    secret = None if key is None else read_key(user_path(key))
    own = load_model(source.folder, "cpu")
    predictor = _in_float32(own)
    refuse(predictor)
    if precision != "fp32":
        _check_lower(source, precision)
    data = _data(source, quiet)
    val = None if data is None else one_tile_each(data.split("val"), predictor.recipe.data)
    if precision != "fp32" and val is not None and not val.task.exclusive and not val.targets.any():
        raise RequestError(f"no image of val has a label, so nothing shows what {precision} costs; export it in fp32")
    with new_folder(folder or PACKAGES / source.folder.resolve().name, numbered=folder is None) as (staging, made):
        lowered = None
        if data is not None and val is not None and precision != "fp32":
            with TemporaryDirectory() as scratch:
                train = None if data.train is None else one_tile_each(data.train, predictor.recipe.data)
                work = (train, val, Path(scratch), staging / MODEL, force, quiet)
                lowered = lower(predictor, precision, *work)
            predictor = lowered.predictor
        else:
            write_model(Graph(predictor), staging, format)
        manifest = _write(staging, predictor, val if images else None, format)
        if lowered is not None:
            manifest = replace(manifest, precision=precision, measured=lowered.measured, single=lowered.kept)
        package = Package(_listed(staging, manifest))
        # In a lower precision, it is compared with itself: in other batches, and from the bytes of files.
        judge = Answers(predictor if lowered is None else open_package(staging))
        agreement, of_val = _compare(package, judge, val, sample, quiet)
        _write_vectors(staging, judge, package.manifest.input, of_val)
        known = package.manifest
        manifest = replace(known, verification=agreement, fingerprint=known.identity(known.files))
        write_text(staging / "README.md", card(source, manifest, license))
        manifest = replace(manifest, files=_digests(staging))
        write_text(staging / MANIFEST, manifest.text())
        if secret is not None:
            sign(staging, secret)
    return Exported(made, manifest, own.number_format)


@checked_arguments
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
    _check_place(page)
    place = None if runtime is None else user_path(runtime)
    find_runtime(place)  # whatever can be refused is refused before anything is computed
    _check_for_page(source)
    with _package_of(source, images=images, sample=sample, quiet=quiet) as package:
        write_page(package, page, place)
    return page


@checked_arguments
def export_bioimageio(
    model: str | PathLike[str],
    out: str | PathLike[str] | None = None,
    *,
    images: bool = True,
    license: str | None = None,
    sample: int | None = None,
    quiet: bool = False,
) -> Path:
    """Write a run or a package as a model folder of bioimage.io, see `petriscope.ship.bioimage`.

    Args:
        model: a run folder, or a package.
        out: the folder to make; None: ``packages/``, the name of the model, and ``-bioimageio``.
        license: of the model, as SPDX names it; None: not stated.
        images, sample: see `export`, of a run.

    Returns:
        the folder.

    Raises:
        RequestError: the folder is not empty, a library is missing, or the license is unknown; or as `export`.
        PetriscopeError: bioimageio.core does not answer as the run does; nothing is left behind.
    """
    source = user_path(model)
    folder = PACKAGES / f"{source.resolve().name}-bioimageio" if out is None else user_path(out)
    check_free(folder)
    _check_place(folder)
    bioimage.check_request(license)
    if is_package(source):
        bioimage.check_package(Manifest.read(source / MANIFEST))
    with _package_of(source, images=images, sample=sample, license=license, quiet=quiet) as package:
        bioimage.write_bioimageio(package, folder, license)
    return folder


def _check_place(out: Path) -> None:
    """
    Raises:
        RequestError: nothing can be written there.
    """
    above = next(each for each in out.absolute().parents if each.exists())
    if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
        raise RequestError(f"{out} cannot be made, because nothing can be written into {above}; choose another --out")


def _check_for_page(source: Path) -> None:
    """
    Raises:
        RequestError: a page cannot do what a run or a package does.
    """
    if is_package(source):
        manifest = Manifest.read(source / MANIFEST)
        check_package(manifest)
        model = source / MODEL
        check_input(manifest.input, model.stat().st_size if model.exists() else 0)
        return
    predictor = load_model(open_run(source).folder, "cpu")
    refuse(predictor)
    check_input(taken_input(predictor), sum(each.nbytes for each in predictor.model.parameters()))


@contextmanager
def _package_of(source: Path, **chosen: Any) -> Iterator[Path]:
    """A package, verified; of a run it is made first, see `export`, and removed afterwards."""
    if is_package(source):
        verify(source)
        yield source
        return
    with TemporaryDirectory() as folder:
        yield export(source, Path(folder) / "package", **chosen).folder


def _in_float32(predictor: Predictor) -> Predictor:
    """The same in the number format of the package."""
    training = predictor.recipe.training.model_copy(update={"precision": "fp32"})
    return replace(predictor, recipe=predictor.recipe.model_copy(update={"training": training}))


def _check_lower(run: Run, precision: str) -> None:
    """
    Raises:
        RequestError: what is fitted on val cannot be fitted anew, or there is nothing to measure activations on.
    """
    splits = run.environment.data.splits
    if "val" not in splits:
        raise RequestError(
            f"{precision} needs a run with a val split, on which temperature and thresholds are fitted anew"
        )
    if precision == "int8" and "train" not in splits:
        raise RequestError(NO_IMAGES)
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
    read = predictor.reading
    return Input(
        *predictor.shape,
        read.filter,
        read.bits,
        read.gray,
        read.scale,
        read.field_of_view,
        read.depth,
        read.range,
        read.channels,
        read.overlap,
        read.pages,
        read.projection,
    )


def _write(staging: Path, predictor: Predictor, val: ImageSet | None, format: str) -> Manifest:
    """All files but model, vectors, card and manifest."""
    tta = predictor.recipe.evaluation.tta
    trust = replace(
        predictor.trust,
        references={name: each for name, each in predictor.trust.references.items() if name == tta},
        labels={name: each for name, each in predictor.trust.labels.items() if name == tta},
    )
    predictor.trust = trust
    facts, arrays = trust.to_file()
    seen = {} if predictor.exposure is None else predictor.exposure.arrays()
    rates, coverages, limits = offers(predictor)
    arrays = {**arrays, **{f"{SEEN}{role}": each for role, each in seen.items()}, LIMITS: limits}
    if not predictor.task.exclusive:
        arrays[CUTOFFS] = cutoffs_of(predictor)
    _write_arrays(staging / ARRAYS, arrays)
    taken = taken_input(predictor)
    files = (
        test_images.drawn(taken) if val is None else test_images.of_val(val, predictor.recipe.data.source or "", taken)
    )
    (staging / TESTS).mkdir()
    for name, content in files.items():
        (staging / TESTS / name).write_bytes(content)
    write_text(staging / "predict.py", SCRIPT.format(library=FORMATS[format].library))
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
        outputs=outputs_of(predictor),
        error_rates=rates,
        coverages=coverages,
        recipe=predictor.recipe.model_dump(mode="json"),
        trust=facts,
        mean=tuple(map(float, predictor.mean)),
        std=tuple(map(float, predictor.std)),
        versions={name: metadata.version(name) for name in (*LIBRARIES, *NEEDED[format])},
        format=format,
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
    package: Package, judge: Answers, val: ImageSet | None, sample: int | None, quiet: bool
) -> tuple[Agreement, Outputs]:
    """Compare the package with the run on val, from the bytes of files where they lie where the source says.

    Returns:
        how they agree; and what the run answers on some of the images, with their digests, which the package takes along.

    Raises:
        PetriscopeError: they differ.
    """
    found, from_files, taken, predictor = Differences(), 0, package.manifest.input, judge.predictor
    count, kept = 0 if val is None else min(len(val), sample or len(val)), list[Outputs]()
    if val is not None:
        rows = np.sort(stratified(val.strata, count))
        # Images of several sources, and tiles, are compared as arrays.
        source = predictor.recipe.data.source if taken.overlap is None else None
        most = MOST_MASKS if predictor.task.dense else MOST_VECTORS
        known = np.isin(np.arange(count), stratified(val.strata[rows], min(count, most)))
        with progress("" if quiet else "comparing with the run", count) as bar:
            for start in range(0, count, BLOCK):
                block, some = rows[start : start + BLOCK], known[start : start + BLOCK]
                pixels, names = val.take(block), [str(name) for name in val.ids[block]]
                from_files += _from_files(val, block, pixels, source or "", taken, found)
                expected = judge.of(pixels)
                compare_outputs(package, pixels, expected, names, len(block), found)
                if start == 0:
                    few = {name: values[:IN_EACH] for name, values in expected.items()}
                    for size in BATCHES:
                        compare_outputs(package, pixels[:IN_EACH], few, names[:IN_EACH], size, found)
                kept.append({name: values[some] for name, values in expected.items()})
                kept[-1]["digests"] = pack(val.subset(block[some]).digests())
                if not quiet:
                    bar.advance(len(block))
    if wrong := found.sentence():
        raise PetriscopeError(
            f"the package does not answer as the run does, and was not kept. Of {count:,} images of val: {wrong}. Versions: "
            f"{', '.join(f'{name} {version}' for name, version in package.manifest.versions.items())}"
        )
    agreement = Agreement(
        images=count,
        of=0 if val is None else len(val),
        from_files=from_files,
        batches=(*BATCHES, min(BLOCK, count)),
        in_each=min(IN_EACH, count),
        largest_difference=found.largest,
        tolerance=TOLERANCE[package.manifest.precision],
        undecided=found.undecided,
    )
    return agreement, {name: np.concatenate([each[name] for each in kept]) for name in (kept[0] if kept else ())}


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


def _write_vectors(staging: Path, judge: Answers, taken: Input, of_val: Outputs) -> None:
    """What the run answers on the test images, and on images of val that are recognized by their digests."""
    names = sorted(path.name for path in (staging / TESTS).iterdir())
    images = test_images.decoded(staging / TESTS, names, taken)
    _write_arrays(staging / TESTS / VECTORS, {"names": np.array(names), "images": images, **judge.of(images)})
    if of_val:
        _write_arrays(staging / TESTS / OF_VAL, of_val)
