"""Packages: a trained model as a folder that predicts with numpy, Pillow and one library that runs it, by default onnxruntime.

A package holds ``package.json`` (the `Manifest`), its model, such as ``model.onnx``, ``arrays.npz`` (what was fitted on val),
``tests/``, and copies of the modules of Petriscope that prediction needs. This module is one of them, so it imports nothing else.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

import numpy as np

from petriscope.core.errors import PetriscopeError, RequestError
from petriscope.core.names import check_class_names
from petriscope.core.scale import Scale, read_scale
from petriscope.data.decode import Filter
from petriscope.data.membership import Exposure
from petriscope.data.planes import Pages, Projection
from petriscope.data.rescale import Field
from petriscope.inference.base import Prediction, Reading, check_tiles
from petriscope.inference.label_answers import ONE_CLASS, LabelPlan
from petriscope.inference.runtime import FORMATS, open_session
from petriscope.metrics.selective import Threshold
from petriscope.trust.abstention import Abstention
from petriscope.trust.two_sample import Likeness, Traits

MANIFEST, ARRAYS, TESTS = "package.json", "arrays.npz", "tests"
MODEL = FORMATS["onnx"].files[0]
SIGNATURE = "package.json.sig"
SCHEMA_VERSION = 1
MOST_BYTES = 2**26  # of a manifest
MOST_UNPACKED = 2**32  # of arrays
LIMITS = "limits"  # the array of the limits of prediction sets; of models for several labels, of the doubts of answers
CUTOFFS = "cutoffs"  # that of the probabilities from which labels are present
SEEN = "seen/"  # how the names of the arrays of `Exposure` begin
AT_ONCE = 2**22  # values of images and their views that the model is given at a time; more take memory and no less time
PRECISIONS = ("fp32", "fp16", "int8")
VIEWS = {"none": 1, "mirror": 2, "flips": 4, "crops": 6, "d4": 8}  # of test-time augmentation
CLASSIFIER = (
    "probabilities",
    "raw",
    "label",
    "uncertainty",
    "ood",
    "answers",
    "sets",
    "points",
    "plain_label",
    "plain_uncertainty",
    "appearance",
)
LABELER = (
    "probabilities",
    "raw",
    "labels",
    "ood",
    "answers",
    "points",
    "plain_label",
    "plain_uncertainty",
    "appearance",
)
SEGMENTER = ("classes", "confidence", "probabilities")


@dataclass(frozen=True)
class Input:
    """The images that a model takes, uint8 or uint16 [N, H, W, C], and how files become them.

    Args:
        height, width, channels: of an image.
        names: of the channels; empty: gray or RGB.
        The others: see `petriscope.inference.base.Reading`.
    """

    height: int
    width: int
    channels: int
    filter: Filter
    bits: int
    gray: bool
    scale: Scale | None = None
    field_of_view: Field | None = None
    depth: int = 8
    range: tuple[float, float] | None = None
    names: tuple[str, ...] = ()
    overlap: float | None = None
    pages: Pages = "auto"
    projection: Projection | None = None

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint8 if self.depth == 8 else np.uint16)

    @property
    def plain(self) -> bool:
        """Whether it takes gray or RGB images with 8 bits, as files have them."""
        return self.depth == 8 and self.range is None and not self.names

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height, self.width, self.channels

    @property
    def reading(self) -> Reading:
        more = (self.depth, self.range, self.names, self.overlap, self.pages, self.projection)
        return Reading(self.filter, self.bits, self.gray, self.scale, self.field_of_view, *more)


@dataclass(frozen=True)
class ErrorRate:
    """An error rate on offer.

    Args:
        max_error: at most this share of the answers is wrong.
        threshold: answers have at most this uncertainty; None: no threshold guarantees the error rate, or each label has its
            own, in `LIMITS`.
        answered, wrong: of the images that the threshold was fitted on.
        delta: upper bound of the probability that the guarantee fails.
        notes: what is guaranteed, a sentence each.
    """

    max_error: float
    threshold: float | None
    answered: int
    wrong: int
    delta: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Coverage:
    """A coverage of prediction sets on offer.

    Args:
        coverage: how often a set contains the true class.
        notes: what is guaranteed, a sentence each.
    """

    coverage: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Agreement:
    """How the package was compared with the run, on images of val.

    Args:
        images: that were compared; of: in val.
        from_files: of them, decoded from the bytes of their files by the code in the package.
        encoded: images whose files do not lie where the source says, which were compared as arrays.
        batches: sizes of batches.
        in_each: images that were predicted in batches of each size.
        largest_difference: of a probability.
        tolerance: of that.
        undecided: pixels of masks whose class differs, because their two most probable classes differ by less than twice the
            tolerance.
    """

    images: int
    of: int
    from_files: int
    batches: tuple[int, ...]
    in_each: int
    largest_difference: float
    tolerance: float
    undecided: int = 0


@dataclass(frozen=True)
class Measured:
    """What a model in a lower precision was compared with on val, and itself.

    Args:
        of: ``run``, ``fp32``, or the precision.
        accuracy: on val; of masks the mean over images of the share of labeled pixels that are right; None for several labels.
        change: of that, or of ``map``, from the run, with its 95 % interval (paired bootstrap over images, or groups); None: too
            few.
        nll, ece: after what was fitted on val; None for masks.
        bytes: of the model; None for the run.
        images_per_second: with all cores of the machine that it was exported on, in one pass over val.
        map: mean average precision on val, for several labels.
    """

    of: str
    accuracy: float | None
    change: float
    change_ci95: tuple[float | None, float | None]
    nll: float | None
    ece: float | None
    bytes: int | None
    images_per_second: float
    map: float | None = None

    @property
    def metric(self) -> tuple[str, float]:
        """The metric that is compared, as people call it, and its value."""
        if self.accuracy is not None:
            return "accuracy", self.accuracy
        assert self.map is not None, "a model has one of them"
        return "mAP", self.map


@dataclass(frozen=True)
class Manifest:
    """The contents of ``package.json``.

    Args:
        name: of the recipe.
        created: date and time, ISO 8601.
        task: of the targets.
        classes: K names.
        fingerprint: of model, arrays and what decides about predictions; 16 hexadecimal digits.
        precision: ``fp32``, ``fp16`` or ``int8``.
        tta: test-time augmentation, which is inside the model.
        temperature: that probabilities are scaled with.
        outputs: of the model, in order.
        error_rates, coverages: on offer; none for masks.
        recipe: the whole recipe, as `petriscope.core.recipe.Recipe` dumps it.
        trust: what was fitted on val, as `petriscope.trust.state.Trust.to_file` has it.
        mean, std: of the training images per channel, 0 to 1.
        versions: of the libraries that the package was made with.
        measured: what a lower precision changes; empty in ``fp32``.
        single: layers of the network that stay in single precision, in ``int8``.
        verification: how it was compared with the run.
        files: the SHA-256 digest of every other file, by its path with forward slashes.
        format: of the model, see `petriscope.inference.runtime.FORMATS`.
    """

    name: str
    created: str
    task: str
    classes: tuple[str, ...]
    input: Input
    precision: str
    tta: str
    temperature: float
    outputs: tuple[str, ...]
    error_rates: tuple[ErrorRate, ...]
    coverages: tuple[Coverage, ...]
    recipe: Mapping[str, Any]
    trust: Mapping[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    versions: Mapping[str, str]
    measured: tuple[Measured, ...] = ()
    single: tuple[str, ...] = ()
    fingerprint: str = ""
    verification: Agreement | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    format: str = "onnx"
    schema_version: int = SCHEMA_VERSION

    @property
    def model_files(self) -> tuple[str, ...]:
        """The files of the model; the first is the one that is opened."""
        return FORMATS[self.format].files

    def as_json(self) -> dict[str, Any]:
        """A tree of JSON values."""
        tree = {each.name: getattr(self, each.name) for each in fields(self)}
        parts = {"input", "verification"}
        for key, value in tree.items():
            if key in parts and value is not None:
                tree[key] = {name: each for name, each in asdict(value).items() if (name, each) != ("overlap", None)}
            elif key in ("error_rates", "coverages", "measured"):
                tree[key] = [asdict(each) for each in value]
            elif isinstance(value, Mapping):
                tree[key] = dict(value)
        return {"schema_version": tree.pop("schema_version"), **tree}

    def text(self) -> str:
        """The contents of the file."""
        return json.dumps(self.as_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def identity(self, digests: Mapping[str, str]) -> str:
        """The fingerprint: of all that decides about predictions, and of the digests of some files."""
        return _identity(json.loads(self.text()), {name: digests[name] for name in (*self.model_files, ARRAYS)})

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read ``package.json``.

        Raises:
            RequestError: there is none, it is damaged, was changed after the export, or is of a newer version.
        """
        with _reading(path):
            if path.stat().st_size > MOST_BYTES:
                raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
            tree = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(tree, dict) or type(tree.get("schema_version")) is not int:
                raise ValueError("it has no schema_version")
            if tree["schema_version"] > SCHEMA_VERSION:
                raise RequestError(f"{path} was written by a newer version of Petriscope; update Petriscope")
            made = _manifest(tree)
            digests = {name: made.files.get(name) for name in (*made.model_files, ARRAYS)}
            if made.fingerprint and made.fingerprint != _identity(tree, digests):  # it is empty during the export
                raise RequestError(f"{path} was changed after the export; export the package again")
            return made


def _identity(tree: Mapping[str, Any], digests: Mapping[str, str | None]) -> str:
    """The fingerprint of a manifest as it is in the file, whatever version wrote it."""
    free = ("name", "created", "versions", "measured", "fingerprint", "verification", "files", "format")
    kept = {key: value for key, value in tree.items() if key not in free}
    text = json.dumps([kept, digests], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _manifest(tree: Mapping[str, Any]) -> Manifest:
    known = {each.name for each in fields(Manifest)}
    out = {key: _tuples(value) for key, value in tree.items() if key in known}
    for key in ("recipe", "trust", "versions", "files"):
        if not isinstance(tree[key], dict):
            raise ValueError(f"{key} is no object")
        out[key] = MappingProxyType(tree[key])
    out["input"] = Input(**{key: _tuples(value) for key, value in tree["input"].items()})
    out["error_rates"] = tuple(
        ErrorRate(**{key: _tuples(value) for key, value in each.items()}) for each in tree["error_rates"]
    )
    out["coverages"] = tuple(
        Coverage(**{key: _tuples(value) for key, value in each.items()}) for each in tree["coverages"]
    )
    out["measured"] = tuple(
        Measured(**{key: _tuples(value) for key, value in each.items()}) for each in tree.get("measured", [])
    )
    if (found := tree.get("verification")) is not None:
        out["verification"] = Agreement(**{key: _tuples(value) for key, value in found.items()})
    made = Manifest(**out)
    _check(made)
    return made


def _check(made: Manifest) -> None:
    """
    Raises:
        ValueError: a value is of another type or out of range.
    """
    taken, sides = made.input, made.input.shape
    rates = [each.max_error for each in made.error_rates] + [each.coverage for each in made.coverages]
    numbers = [made.temperature, *made.mean, *made.std, *rates, *(made.input.field_of_view or ())]
    numbers += [] if made.input.overlap is None else [made.input.overlap]
    numbers += [each.threshold for each in made.error_rates if each.threshold is not None]
    texts = [made.name, made.created, made.task, made.precision, made.tta, made.fingerprint, made.input.filter]
    texts += [*made.outputs, *made.versions.values(), *made.files, *made.files.values()]
    texts += [note for rate in made.error_rates for note in rate.notes]
    texts += [note for level in made.coverages for note in level.notes]
    problems = {
        "the sides of images are not whole numbers from 1": all(
            type(each) is int and 0 < each < 2**16 for each in sides
        ),
        "a name is not text": all(isinstance(each, str) for each in texts),
        "a number is none, or not finite": all(map(_finite, numbers)),
        "mean and std do not have a value per channel": len(made.mean) == len(made.std) == sides[2],
        "the images have neither 8 nor 16 bits": type(taken.depth) is int and taken.depth in (8, 16),
        "the significant bits are not a whole number from 8 to 16": type(taken.bits) is int and 8 <= taken.bits <= 16,
        "gray is neither true nor false": type(taken.gray) is bool,
        f"the filter is none of {', '.join(get_args(Filter))}": taken.filter in get_args(Filter),
        f"pages is none of {', '.join(get_args(Pages))}": taken.pages in get_args(Pages),
        f"projection is none of {', '.join(get_args(Projection))}": taken.projection in (None, *get_args(Projection)),
        "the scale is none that a recipe can have": taken.scale is None or read_scale(taken.scale) == taken.scale,
        "the field of view is not two positive numbers": taken.field_of_view is None
        or (len(taken.field_of_view) == 2 and all(each > 0 for each in taken.field_of_view)),
        f"the precision is none of {', '.join(PRECISIONS)}": made.precision in PRECISIONS,
        f"the test-time augmentation is none of {', '.join(VIEWS)}": made.tta in VIEWS,
        "channels do not have a name each": not made.input.names
        or (len(made.input.names) == sides[2] and all(isinstance(each, str) for each in made.input.names)),
        "the range is not two ascending numbers": taken.range is None
        or (len(taken.range) == 2 and all(map(_finite, taken.range)) and taken.range[0] < taken.range[1]),
        "its outputs are not those of a model": made.outputs in (CLASSIFIER, LABELER, SEGMENTER),
        f"its format is none of {', '.join(FORMATS)}": made.format in FORMATS,
    }
    for problem, fine in problems.items():
        if not fine:
            raise ValueError(problem)
    check_class_names(made.classes)
    if not made.temperature > 0 or not all(0 < each < 1 for each in rates) or not 0 <= (made.input.overlap or 0) < 1:
        raise ValueError("the temperature, a rate or the overlap of tiles is out of range")


def _finite(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever reading a file of a package raises into one sentence."""
    try:
        yield
    except PetriscopeError:
        raise
    except FileNotFoundError:
        raise RequestError(f"{path} is missing; a package is a folder that petriscope export wrote") from None
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise RequestError(f"{path} is damaged: {reason}; export the package again") from error


def is_package(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a folder with a manifest."""
    return (Path(path) / MANIFEST).is_file()


def digest(path: Path) -> str:
    """The SHA-256 digest of a file, in hexadecimal digits."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file, without objects.

    Raises:
        RequestError: it is missing or damaged, or unpacks to more than `MOST_UNPACKED`.
    """
    with _reading(path):
        with zipfile.ZipFile(path) as packed:
            if sum(each.file_size for each in packed.infolist()) > MOST_UNPACKED:
                raise ValueError(f"it unpacks to more than {MOST_UNPACKED:,} bytes")
        with np.load(path, allow_pickle=False) as found:
            return {name: found[name] for name in found.files}


def likeness_of(manifest: Manifest, arrays: Mapping[str, np.ndarray]) -> Likeness | None:
    """What images of val are like; None if a package does not say.

    Raises:
        KeyError, ValueError: an array is missing, or they are inconsistent.
    """
    places = manifest.trust.get("likeness")
    if places is None:
        return None
    found = Likeness.of({name: arrays[place] for name, place in places.items()})
    if not found.sound(len(manifest.classes)):
        raise ValueError("the arrays that say what images of val are like are inconsistent")
    return found


class Package:
    """An opened package, which predicts image files like a `petriscope.inference.predictor.Predictor`.

    Threads can share one.

    Args:
        folder: of the package.
        threads: that a prediction may use; None: as many as there are processors that this process may use.

    Raises:
        RequestError: it is no package, a file of it was changed or is damaged, or the library that runs it is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str], threads: int | None = None) -> None:
        self.folder = Path(folder)
        self.manifest = Manifest.read(self.folder / MANIFEST)
        for name in (*self.manifest.model_files, ARRAYS):
            path = self.folder / name
            with _reading(path):
                if path.exists() and not path.is_file():  # a pipe would be waited for
                    raise RequestError(f"{path} is not a file; export the package again")
                if digest(path) != self.manifest.files.get(name):
                    raise RequestError(f"{path} was changed after the export; export the package again")
        self.arrays = read_arrays(self.folder / ARRAYS)
        with _reading(self.folder / ARRAYS):
            self.limits = self.arrays[LIMITS]
            classes, labels = len(self.classes), self.manifest.outputs == LABELER
            rules = (len(self.manifest.error_rates), classes, 2) if labels else (len(self.manifest.coverages), classes)
            if self.limits.shape != rules or (labels and self.arrays[CUTOFFS].shape != (classes,)):
                raise ValueError("the limits of answers or of prediction sets do not fit the classes")
            for numbers in (self.limits, *([self.arrays[CUTOFFS]] if labels else [])):
                if numbers.dtype.kind != "f" or np.isnan(numbers).any():
                    raise ValueError("the limits of answers or of prediction sets are not numbers")
            self.exposure, self.likeness = self._exposure(), likeness_of(self.manifest, self.arrays)
        self._model = self.folder / self.manifest.model_files[0]
        with _reading(self._model):
            self._session = open_session(self.folder, self.manifest.format, threads)
        if missing := [name for name in self.manifest.outputs if name not in self._session.outputs]:
            raise RequestError(f"{self._model} does not give {', '.join(missing)}; export the package again")

    @property
    def classes(self) -> tuple[str, ...]:
        return self.manifest.classes

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the images that it takes."""
        return self.manifest.input.shape

    @property
    def reading(self) -> Reading:
        return self.manifest.input.reading

    def by_tiles(self, overlap: float | None) -> Package:
        """The same model for image files that keep their own sizes; see `petriscope.inference.predictor.Predictor.by_tiles`.

        Raises:
            RequestError: it does not predict masks, or the overlap is out of range.
        """
        if overlap is None:
            return self
        check_tiles(overlap, self.manifest.task, self.manifest.outputs == SEGMENTER)
        same = copy(self)
        same.manifest = replace(self.manifest, input=replace(self.manifest.input, overlap=overlap))
        return same

    @property
    def cutoffs(self) -> np.ndarray | None:
        """The probability from which each label is present, float32 [K]; None where an image has one class."""
        return self.arrays.get(CUTOFFS)

    def _exposure(self) -> Exposure | None:
        seen = {name.removeprefix(SEEN): array for name, array in self.arrays.items() if name.startswith(SEEN)}
        return Exposure.from_arrays(seen) if seen else None

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """All outputs of the model by name.

        Args:
            images: uint8 [N, H, W, C]; N may be 0.

        Raises:
            RequestError: they have another shape or dtype, or an output is not a number.
        """
        shape, dtype = self.shape, self.manifest.input.dtype
        if images.dtype != dtype or images.shape[1:] != shape:
            raise RequestError(
                f"this model takes {dtype} [N, {', '.join(map(str, shape))}], not {images.dtype} {list(images.shape)}"
            )
        size = max(1, AT_ONCE // (math.prod(shape) * VIEWS.get(self.manifest.tta, 1)))
        one = np.zeros((1, *shape), dtype) if len(images) == 0 else images  # not every operator takes no image
        parts = [
            self._session.run(np.ascontiguousarray(one[start : start + size])) for start in range(0, len(one), size)
        ]
        found = {
            name: (parts[0][name] if len(parts) == 1 else np.concatenate([part[name] for part in parts]))[: len(images)]
            for name in self.manifest.outputs
        }
        if np.isnan(found["probabilities"]).any():
            raise RequestError(f"{self._model} gives outputs that are not numbers; export the package again")
        return found

    def predict(self, images: np.ndarray, tta: Any = None) -> Prediction:
        """Probabilities and out-of-distribution scores of images, uint8 [N, H, W, C]. Its test-time augmentation is that of the
        model, whatever ``tta`` is."""
        return self._prediction(self.run(images))

    def probabilities(self, images: np.ndarray, tta: Any = None) -> np.ndarray:
        """Probabilities, float32 [N, K], or [N, K, H, W] for masks, of images, uint8 [N, H, W, C]."""
        return self.run(images)["probabilities"]

    def traits(self, images: np.ndarray, likeness: Likeness) -> Traits:
        """What is compared of images, uint8 [N, H, W, C], with those of val."""
        return self.traits_in(self.run(images), likeness)

    def predict_and_compare(self, images: np.ndarray, likeness: Likeness) -> tuple[Prediction, Traits]:
        """`predict` and `traits`, by one run of the model."""
        found = self.run(images)
        return self._prediction(found), self.traits_in(found, likeness)

    def _prediction(self, found: Mapping[str, np.ndarray]) -> Prediction:
        return Prediction(found["raw"], found["probabilities"], self._scores(found))

    def traits_in(self, found: Mapping[str, np.ndarray], likeness: Likeness) -> Traits:
        """`traits`, from what `run` gave."""
        seen = (found["points"], found["plain_uncertainty"], found["plain_label"])
        return likeness.see_points(*seen, self._scores(found), found["appearance"])

    def _scores(self, found: Mapping[str, np.ndarray]) -> np.ndarray | None:
        return found["ood"] if self.manifest.trust.get("detector") is not None else None

    def plan(self, max_error: float | None, set_coverage: float | None) -> Abstention:
        """The rules for an error rate and a coverage on offer; see `petriscope.trust.plan.plan_abstention`.

        Raises:
            RequestError: they are not on offer.
        """
        threshold, limits, notes = None, None, list[str]()
        if max_error is not None:
            rates = {each.max_error: each for each in self.manifest.error_rates}
            rate = rates[_offered(max_error, list(rates), "--max-error", self.folder)]
            notes += rate.notes
            if rate.threshold is not None:
                threshold = Threshold(rate.max_error, rate.threshold, rate.answered, rate.wrong, rate.delta)
        if set_coverage is not None:
            levels = [each.coverage for each in self.manifest.coverages]
            place = levels.index(_offered(set_coverage, levels, "--set-coverage", self.folder))
            limits = self.limits[place]
            notes += self.manifest.coverages[place].notes
        return Abstention(self.classes, max_error, threshold, limits, tuple(notes))

    def label_plan(self, max_error: float | None, set_coverage: float | None = None) -> LabelPlan:
        """The same for a model of several labels, see `petriscope.inference.multilabel.plan_labels`."""
        limits, notes = np.full((len(self.classes), 2), np.inf), tuple[str, ...]()
        if set_coverage is not None:
            raise RequestError(ONE_CLASS)
        if max_error is not None:
            rates = [each.max_error for each in self.manifest.error_rates]
            place = rates.index(_offered(max_error, rates, "--max-error", self.folder))
            limits, notes = self.limits[place], self.manifest.error_rates[place].notes
        return LabelPlan(self.classes, self.arrays[CUTOFFS], limits, notes)


def _offered(value: float, known: list[float], option: str, folder: Path) -> float:
    """The value on offer that was asked for."""
    for each in known:
        if math.isclose(each, value, rel_tol=1e-9):
            return each
    if not known:
        raise RequestError(f"{option} needs a model for labels; {folder} predicts masks")
    raise RequestError(
        f"{folder} offers {option} {', '.join(f'{each:g}' for each in known)}, and not {value:g}; petriscope predict {folder} "
        "computes any other, where Petriscope is installed"
    )
