"""Does a package answer as the run does that it came from? From the bytes of image files on, without torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from petriscope.core.errors import DataError, PetriscopeError, RequestError, shown
from petriscope.inference.decoding import read_file
from petriscope.inference.package import MANIFEST, SIGNATURE, TESTS, Input, Package, digest, is_package, read_arrays
from petriscope.inference.runtime import FORMATS, version

VECTORS, OF_VAL = "vectors.npz", "val.npz"  # what the run answers on the test images, and on images of val
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "int8": 2e-2}  # of probabilities, by precision
OF_SCORES = 1e-2  # of out-of-distribution scores, relative to them or to 1
BATCHES = (1, 2, 7)  # beside the largest
EXACT = (".png", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".npy")  # decoded alike by all versions of all decoders
LOSSY = 3  # steps of 255 by which decoders of other files may differ
SHOWN = 3  # images that a message names
# What is compared, as a message calls it.
EQUAL = {
    "label": "another label",
    "labels": "other labels",
    "answers": "another answer, or an answer instead of an abstention",
    "sets": "another prediction set",
    "far": "another verdict on being out of distribution",
    "classes": "pixels of another class",
}


@dataclass
class Differences:
    """How a package differs from what is expected of it.

    Args:
        largest: difference of a probability.
        images: that were compared.
        undecided: pixels of masks whose class differs, though their two most probable classes are as good as equal.
        wrong: what differs -> the names of the images.
    """

    largest: float = 0.0
    images: int = 0
    undecided: int = 0
    wrong: dict[str, list[str]] = field(default_factory=dict)

    def note(self, what: str, names: Sequence[str], rows: np.ndarray) -> None:
        """Record that the images in ``rows``, bool [N], differ."""
        if rows.any():
            self.wrong.setdefault(what, []).extend(names[row] for row in np.flatnonzero(rows).tolist())

    def sentence(self) -> str:
        """What is wrong, without the period; empty if nothing is."""
        parts = []
        for what, names in self.wrong.items():
            more = " ..." if len(names) > SHOWN else ""
            parts.append(f"{len(names):,} with {what} ({', '.join(names[:SHOWN])}{more})")
        return "; ".join(parts)


def compare_outputs(
    package: Package,
    images: np.ndarray,
    expected: Mapping[str, np.ndarray],
    names: Sequence[str],
    size: int,
    into: Differences,
) -> None:
    """Predict images in batches, and record how the outputs differ from the expected ones.

    Args:
        images: uint8 [N, H, W, C].
        expected: of a classifier ``probabilities`` float32 [N, K], ``label`` int64 [N], ``ood`` float32 [N], ``answers`` int64
            [N, E] and ``sets`` bool [N, L, K]; of several labels ``labels`` bool [N, K] and ``answers`` int64 [N, E, K] in
            place of the last four but ``ood``; of masks ``classes`` uint8 [N, H, W] and ``confidence`` float32 [N, H, W].
        names: of the images, in messages.
        size: of a batch.
    """
    tolerance = TOLERANCE[package.manifest.precision]
    for start in range(0, len(images), size):
        rows = slice(start, start + size)
        found, known, some = package.run(images[rows]), {k: v[rows] for k, v in expected.items()}, names[rows]
        into.images += len(some)
        if "classes" in known:
            _compare_masks(found, known, some, tolerance, into)
            continue
        found["far"], known["far"] = ~(found["ood"] <= 1), ~(known["ood"] <= 1)
        apart = _apart(found["probabilities"], known["probabilities"])
        into.largest = max(into.largest, float(apart.max(initial=0)))
        into.note(f"probabilities that differ by more than {tolerance:g}", some, np.asarray(~(apart <= tolerance)))
        scores = _apart(found["ood"], known["ood"]) / np.maximum(np.abs(known["ood"]), 1)
        into.note(
            f"out-of-distribution scores that differ by more than {100 * OF_SCORES:g} %",
            some,
            np.asarray(~(scores <= OF_SCORES)),
        )
        if package.manifest.precision != "fp32":  # cutoffs and near ties are left to rounding
            _compare_labels(found, known, some, tolerance, package.cutoffs, into)
            continue
        for key in (name for name in EQUAL if name in known):
            into.note(EQUAL[key], some, np.asarray(_flat(found[key] != known[key]).any(1)))


def _compare_labels(
    found: Mapping[str, np.ndarray],
    known: Mapping[str, np.ndarray],
    names: Sequence[str],
    tolerance: float,
    cutoffs: np.ndarray | None,
    into: Differences,
) -> None:
    """Labels alone, where the two most probable classes, or the probability of a label and its cutoff, differ by more than
    rounding may change."""
    if cutoffs is not None:
        clear = np.abs(known["probabilities"] - cutoffs) > 2 * tolerance
        into.note(EQUAL["labels"], names, np.asarray(((found["labels"] != known["labels"]) & clear).any(1)))
        return
    p = np.sort(known["probabilities"], 1)
    clear = p[:, -1] - p[:, :-1].max(1, initial=0) > 2 * tolerance
    into.note(EQUAL["label"], names, np.asarray((found["label"] != known["label"]) & clear))


def _compare_masks(
    found: Mapping[str, np.ndarray],
    known: Mapping[str, np.ndarray],
    names: Sequence[str],
    tolerance: float,
    into: Differences,
) -> None:
    apart = _apart(found["confidence"], known["confidence"])
    into.largest = max(into.largest, float(apart.max(initial=0)))
    into.note(f"confidences that differ by more than {tolerance:g}", names, np.asarray(~(apart <= tolerance)))
    p = np.sort(found["probabilities"], 1)
    other, close = found["classes"] != known["classes"], p[:, -1] - p[:, :-1].max(1, initial=0) <= 2 * tolerance
    into.undecided += int((other & close).sum())
    into.note(EQUAL["classes"], names, np.asarray(_flat(other & ~close).any(1)))


def _apart(found: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The largest difference of each image, float64 [N]; 0 where both are infinite."""
    same = found == known
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0, np.abs(found.astype(np.float64) - known.astype(np.float64)))
    return _flat(apart).max(1, initial=0)


def _flat(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1) if values.size else np.zeros((len(values), 1), values.dtype)


def as_input(path: Path, taken: Input) -> np.ndarray:
    """A file as the model takes it, uint8 [H, W, C].

    Raises:
        DataError: it cannot be read.
    """
    found = read_file(path, taken.shape, taken.reading)[0]
    return found.pixels


@dataclass(frozen=True)
class Verified:
    """What `verify` found.

    Args:
        fingerprint: of the package.
        files: whose digests are right.
        images: test images that were predicted from the bytes of their files, in batches of each of ``batches``.
        batches: sizes.
        largest_difference: of a probability.
        signed: whether the signature was checked.
        notes: what is to be said besides, a sentence each.
    """

    fingerprint: str
    files: int
    images: int
    batches: tuple[int, ...]
    largest_difference: float
    signed: bool
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """A tree of JSON values."""
        return asdict(self)

    def sentences(self) -> list[str]:
        """The same for people."""
        by = "; its signature is right" if self.signed else ""
        sizes = ", ".join(map(str, self.batches))
        return [
            f"{self.files:,} files are as they were exported (fingerprint {self.fingerprint}){by}",
            f"{self.images:,} test images, from the bytes of their files, in batches of {sizes}: equal answers; probabilities "
            f"differ by {self.largest_difference:.1e} at most",
            *self.notes,
        ]


def verify(folder: str | os.PathLike[str], key: str | os.PathLike[str] | None = None) -> Verified:
    """Check that a package is whole and answers as the run did.

    Args:
        key: a file with the public key that the package was signed for; None: the signature is not checked.

    Raises:
        RequestError: there is no package, or the library that runs it is not installed.
        PetriscopeError: a file was changed, is missing or was added; the signature is wrong; or an answer differs.
    """
    if key is not None and is_package(folder):
        check_signature(Path(folder), Path(key))
    package = Package(folder)
    count = check_files(package)
    arrays = read_arrays(package.folder / TESTS / VECTORS)
    names, wanted = [str(name) for name in arrays.pop("names")], arrays.pop("images")
    notes: list[str] = []
    images = np.stack([_checked(package, name, known, notes) for name, known in zip(names, wanted, strict=True)])
    found = Differences()
    batches = tuple(dict.fromkeys((*BATCHES, len(images))))
    for size in batches:
        compare_outputs(package, images, arrays, names, size, found)
    if wrong := found.sentence():
        raise PetriscopeError(
            f"{package.folder} does not answer as the run did. Of {len(names):,} test images: {wrong}. {_versions(package)}, or "
            "the machine computes wrongly; do not use it here"
        )
    if found.undecided:
        notes.append(f"{found.undecided:,} pixels differ whose two most probable classes are as good as equal")
    made = package.manifest
    return Verified(made.fingerprint, count, len(names), batches, found.largest, key is not None, tuple(notes))


def _versions(package: Package) -> str:
    made = package.manifest
    library = FORMATS[made.format].library
    before = made.versions.get(library, "unknown")
    return f"This {library} ({version(made.format)}) is not the one it was exported with ({before})"


def _checked(package: Package, name: str, known: np.ndarray, notes: list[str]) -> np.ndarray:
    """A test image that was decoded here. One of a format with loss that another decoder decodes slightly otherwise is
    replaced by what the run saw."""
    path = package.folder / TESTS / name
    if path.parent != package.folder / TESTS:
        raise PetriscopeError(f"{package.folder / TESTS / VECTORS} names {shown(name)}, which is not beside it")
    try:
        pixels = as_input(path, package.manifest.input)
    except DataError as error:
        raise PetriscopeError(f"a test image of the package cannot be read here: {error}") from None
    apart, full = int(np.abs(pixels.astype(np.int32) - known).max(initial=0)), int(np.iinfo(pixels.dtype).max)
    if apart == 0:
        return pixels
    if path.suffix.lower() in EXACT or apart > LOSSY * full // 255:
        raise PetriscopeError(
            f"{path} is decoded otherwise here than by the run: pixels differ by up to {apart} of {full}. Predictions would be "
            "for other images; use the version of Pillow that the package names"
        )
    notes.append(f"{name} is decoded slightly otherwise here (by up to {apart} of {full}), as its format allows")
    return known


def check_files(package: Package) -> int:
    """Compare all files of a package with the manifest; returns their number.

    Raises:
        PetriscopeError: a file was changed, is missing, or was added.
    """
    known = package.manifest.files
    there = dict(_files(package.folder))
    changed = [
        name for name, path in there.items() if name in known and not (path.is_file() and digest(path) == known[name])
    ]
    missing = [name for name in known if name not in there]
    added = [name for name in there if name not in known]
    parts = [
        f"{len(names):,} {what} ({', '.join(names[:SHOWN])}{' ...' if len(names) > SHOWN else ''})"
        for what, names in (("changed", changed), ("missing", missing), ("added", added))
        if names
    ]
    if parts:
        raise PetriscopeError(
            f"files of {package.folder} are not as they were exported: {', '.join(parts)}; export it again"
        )
    return len(known)


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """All files but the manifest and its signature, by their paths with forward slashes. What Python compiles is among them,
    since Python runs it, and so are links to folders, which can have anything behind them."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if (path.is_symlink() or not path.is_dir()) and name not in (MANIFEST, SIGNATURE):
            yield name, path


def check_signature(folder: Path, key: Path) -> None:
    """Check the detached ed25519 signature of the manifest, which has the digests of all other files.

    Args:
        key: a file with the public key, in PEM.

    Raises:
        RequestError: the key cannot be used, or cryptography is not installed.
        PetriscopeError: there is no signature, or it is not by this key.
    """
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError:
        raise RequestError("signatures need cryptography: pip install 'petriscope[export]'") from None
    try:
        public = load_pem_public_key(key.read_bytes())
    except (OSError, ValueError) as error:
        raise RequestError(f"{key} has no public key in PEM: {error}") from None
    if not isinstance(public, Ed25519PublicKey):
        raise RequestError(f"the key in {key} is not an ed25519 key")
    path = folder / SIGNATURE
    if not path.is_file():
        raise PetriscopeError(f"{folder} is not signed: {SIGNATURE} is missing")
    try:
        public.verify(path.read_bytes(), (folder / MANIFEST).read_bytes())
    except InvalidSignature:
        raise PetriscopeError(
            f"the signature of {folder} is not by the key in {key}, or {MANIFEST} was changed after it was signed"
        ) from None
