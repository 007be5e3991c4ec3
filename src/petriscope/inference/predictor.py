"""Predictors: a trained model with everything that prediction needs, and its safetensors file.

The metadata of the file hold the recipe, the task, class names, image shape, normalization, and what was fitted on val, whose
arrays are tensors beside the weights. So are the digests of the images that the model has seen.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from petriscope.augment.pipeline import Normalize, standardized
from petriscope.core.channels import Names, default_names
from petriscope.core.device import Format, choose_device, choose_format, lay_out, tensor_of
from petriscope.core.errors import RequestError
from petriscope.core.files import atomic, json_text, parse_json, parsing, user_path
from petriscope.core.names import check_class_names
from petriscope.core.ranks import ALONE, Ranks
from petriscope.core.recipe import MOST_PIXELS, TTA, Recipe, TilesSection, check_recipe
from petriscope.core.results import CLASSIFICATION, SEGMENTATION, validated
from petriscope.core.scale import Scale
from petriscope.data.batches import Batches
from petriscope.data.membership import Exposure
from petriscope.data.rescale import scale_factors
from petriscope.inference.base import Prediction, Reading, check_tiles
from petriscope.inference.tta import check_finite, checked, predict_batch, predict_batches, predict_set
from petriscope.models import build_model, sketch_model
from petriscope.models.layers import is_dense
from petriscope.models.weights import differences, not_finite
from petriscope.tasks import Task, find_task
from petriscope.trust.multilabel import as_one_class
from petriscope.trust.ood import Seen, observe
from petriscope.trust.prior import Prior
from petriscope.trust.shift import appearance_of
from petriscope.trust.state import TENSORS, Trust
from petriscope.trust.two_sample import Likeness, Traits

Side = Annotated[int, Field(ge=1, le=MOST_PIXELS)]
Channels = Annotated[int, Field(ge=1, le=64)]

FORMAT = 3  # version 1 had no task; up to version 2, the arrays of `Trust` were in the metadata
SEEN = "seen/"  # how the names of the tensors of `Exposure` begin


@dataclass
class Predictor:
    """A trained model with everything that prediction needs.

    Args:
        model: in evaluation mode, on ``device``.
        recipe: the recipe it was trained with.
        task: of its targets.
        classes: K names.
        shape: (height, width, channels) of the images it takes.
        mean, std: of the training images, per channel, 0 to 1.
        device: that predictions run on.
        trust: what was fitted on val; empty if nothing was.
        exposure: the images that it has seen; None for a model file of an older version, which did not record them.
        ranks: the processes that predict whole splits together (`look`, `outputs`, `predict_set`). Batches that other methods
            are given are predicted by this process alone.
    """

    model: nn.Module
    recipe: Recipe
    task: Task
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device
    trust: Trust = field(default_factory=Trust)
    exposure: Exposure | None = None
    ranks: Ranks = field(default=ALONE, repr=False, compare=False)
    # Hooks and modes of the model belong to one call at a time, so that threads can share a predictor.
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False, compare=False)

    def under(self, prior: Prior | None) -> Predictor:
        """The same model where other classes occur, or with other shares; its probabilities, thresholds and prediction sets
        are for these. None: nothing is known.

        Raises:
            RequestError: the task does not support it, or the model file lacks what it needs; see
                `petriscope.trust.state.Trust.under`.
        """
        if prior is None:
            return self
        if not self.task.calibrates or not self.task.exclusive:
            raise RequestError(f"classes and prior need a classification model; this is a {self.task.name} model")
        return replace(self, trust=self.trust.under(prior))

    def at_scale(self, scale: Scale | None) -> Predictor:
        """The same model for image files and sources that are read at another scale than the recipe says; None: as they are.
        Arrays that are passed to its methods are taken as they are.

        Raises:
            RequestError: the images have masks, or the scale is in micrometers per pixel and the model does not know its field
                of view.
        """
        data = self.recipe.data
        if scale is not None and scale != 1:
            if self.task.dense:
                raise RequestError(f"a scale needs a model for labels; this is a {self.task.name} model")
            scale_factors(np.ones((0, 2)), scale, data.field_of_view)
        return replace(self, recipe=self.recipe.model_copy(update={"data": data.model_copy(update={"scale": scale})}))

    def by_tiles(self, overlap: float | None) -> Predictor:
        """The same model for image files that keep their own sizes and are predicted by tiles of `shape`; None: as its recipe
        says.

        Raises:
            RequestError: it does not predict masks, or the overlap is out of range.
        """
        if overlap is None:
            return self
        check_tiles(overlap, self.task.name, self.task.dense)
        tiles = TilesSection(size=self.shape[:2], overlap=overlap)
        data = self.recipe.data.model_copy(update={"size": None, "tiles": tiles})
        return replace(self, recipe=self.recipe.model_copy(update={"data": data}))

    @property
    def reading(self) -> Reading:
        """How it reads image files."""
        data = self.recipe.data
        names = data.channels if isinstance(data.channels, tuple) else ()
        more = (data.depth, data.range, names, None if data.tiles is None else data.tiles.overlap)
        gray = data.channels == "gray"
        return Reading(data.filter, data.bits, gray, data.scale, data.field_of_view, *more, data.pages, data.projection)

    @property
    def channels(self) -> Names:
        """The names of the channels of the images that it takes."""
        return self.reading.channels or default_names(self.shape[2])

    @property
    def dtype(self) -> np.dtype:
        """Of the images that it takes: uint8 or uint16."""
        return np.dtype(np.uint8 if self.recipe.data.depth == 8 else np.uint16)

    @property
    def likeness(self) -> Likeness | None:
        return self.trust.likeness

    @property
    def normalize(self) -> Normalize:
        return Normalize(self.mean, self.std, self.recipe.data.standardize, self.channels)

    @property
    def number_format(self) -> Format:
        return choose_format(self.recipe.training.precision, self.device)

    @property
    def fixed_tta(self) -> TTA | None:
        """The only test-time augmentation that it can predict with; None: any."""
        return None

    def probabilities(self, images: np.ndarray, tta: TTA | None = None) -> np.ndarray:
        """Probabilities, scaled with the temperature fitted on val.

        Args:
            images: uint8 [B, H, W, C].
            tta: test-time augmentation; None: as in the recipe.

        Returns:
            float32 [B, K]; for segmentation [B, K, H, W].

        Raises:
            RequestError: the images have another shape or dtype.
        """
        tta = tta or self.recipe.evaluation.tta
        return self._reweighted(self._scaled(self._raw(self._batch(images), tta), tta), tta)

    def predict(self, images: np.ndarray, tta: TTA | None = None) -> Prediction:
        """Probabilities and out-of-distribution scores of images, uint8 [B, H, W, C]."""
        tta, batch = tta or self.recipe.evaluation.tta, self._batch(images)
        raw, seen = self._observed(batch, tta)
        return self.judge(raw, tta, self._ood(seen))

    def traits(self, images: np.ndarray, likeness: Likeness) -> Traits:
        """What is compared of images, uint8 [B, H, W, C], with what those of val are like."""
        batch = self._batch(images)
        raw, seen = self._observed(batch, "none")
        told = raw if self.task.exclusive else as_one_class(raw)
        return likeness.see(told, seen[0], self._ood(seen), appearance_of(batch))

    def predict_and_compare(
        self, images: np.ndarray, likeness: Likeness, rows: np.ndarray, tta: TTA | None = None
    ) -> tuple[Prediction, Traits]:
        """`predict` for images, uint8 [B, H, W, C], and `traits` for the ``rows`` of them, int64 [R]; without test-time
        augmentation, by one run of the network."""
        tta, batch = tta or self.recipe.evaluation.tta, self._batch(images)
        if tta != "none":
            return self.predict(images, tta), self.traits(images[rows], likeness)
        raw, seen = self._observed(batch, tta)
        found = self.judge(raw, tta, self._ood(seen))
        told = raw[rows] if self.task.exclusive else as_one_class(raw[rows])
        ood = None if found.ood is None else found.ood[rows]
        return found, likeness.see(told, seen[0][rows], ood, appearance_of(batch[torch.from_numpy(rows)]))

    def predict_set(self, batches: Batches, tta: TTA | None = None, label: str | None = None) -> Prediction:
        """`predict` for a whole split.

        Args:
            label: of the progress bar; None: no progress is shown.
        """
        tta, detector = tta or self.recipe.evaluation.tta, self.trust.detector
        if detector is None:
            return self.judge(self.look(batches, tta, label), tta, None)
        ood: list[np.ndarray] = []
        raw = self.look(batches, tta, label, lambda *seen: ood.append(detector.score(*seen)))
        return self.judge(raw, tta, np.concatenate(ood))

    def look(
        self,
        batches: Batches,
        tta: TTA,
        label: str | None = None,
        note: Callable[[np.ndarray, np.ndarray], object] | None = None,
    ) -> np.ndarray:
        """Probabilities of a whole split before temperature scaling, float32 [N, K].

        Args:
            label: of the progress bar; None: no progress is shown.
            note: called with the features and statistics of each batch; see `petriscope.trust.ood.Observer.take`.
        """
        size, number_format = self.recipe.evaluation.batch_size, self.number_format
        if note is None:
            with self._lock:
                return predict_set(
                    self.model, batches, self.normalize, number_format, tta, size, label, ranks=self.ranks
                )
        with self._lock, observe(self.model) as observer:

            def each(images: Tensor) -> None:
                def take(rows: slice) -> Seen:  # those that this process has just predicted
                    return observer.take(self._as_seen(images[rows]))

                note(*self.ranks.spread_arrays("looking at images", len(images), take))

            return predict_set(self.model, batches, self.normalize, number_format, tta, size, label, each, self.ranks)

    def outputs(
        self, batches: Batches, tta: TTA, label: str | None = None, batch_size: int | None = None
    ) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
        """The log-probabilities of a whole split, batch by batch; see `petriscope.inference.tta.predict_batches`.

        Args:
            label: of the progress bar; None: no progress is shown.
            batch_size: None: the recipe's.
        """
        size = batch_size or self.recipe.evaluation.batch_size
        found = predict_batches(
            self.model, batches, self.normalize, self.number_format, tta, size, label, ranks=self.ranks
        )
        return checked(found, self.ranks)

    def judge(self, raw: np.ndarray, tta: TTA, ood: np.ndarray | None) -> Prediction:
        """The prediction for probabilities of the network, float32 [N, K], and out-of-distribution scores, float32 [N]."""
        p = self._scaled(raw, tta)
        if self.trust.reweighting is None:
            return Prediction(raw, p, ood)
        outside = p[:, ~self.trust.reweighting.prior.occurs].sum(1)
        return Prediction(self._reweighted(raw, tta), self._reweighted(p, tta), ood, outside)

    def _scaled(self, raw: np.ndarray, tta: TTA) -> np.ndarray:
        return self.trust.scaled(raw, tta, self.recipe.evaluation.tta)

    def _reweighted(self, probabilities: np.ndarray, tta: TTA) -> np.ndarray:
        return self.trust.reweight(probabilities, tta, self.recipe.evaluation.tta)

    def temperature(self, tta: TTA) -> float:
        return self.trust.temperature(tta, self.recipe.evaluation.tta)

    def _batch(self, images: np.ndarray) -> Tensor:
        if not isinstance(images, np.ndarray):
            raise RequestError(f"this model takes an array of {self.dtype}, not {type(images).__name__}")
        if images.dtype != self.dtype or images.shape[1:] != self.shape:
            raise RequestError(
                f"this model takes {self.dtype} [B, {', '.join(map(str, self.shape))}], not {images.dtype} {list(images.shape)}"
            )
        return tensor_of(images).to(self.device)

    def _as_seen(self, batch: Tensor) -> Tensor:
        """Images as they are when they have been standardized, uint8 [B, H, W, C] -> the same. What is standardized does not
        make an image out of distribution."""
        return standardized(batch, self.normalize.standardize)

    def _observed(self, batch: Tensor, tta: TTA) -> tuple[np.ndarray, Seen]:
        """Probabilities before temperature scaling, and what the out-of-distribution detector needs."""
        with self._lock, observe(self.model) as observer:
            return self._raw(batch, tta), observer.take(self._as_seen(batch))

    def _ood(self, seen: Seen) -> np.ndarray | None:
        return None if self.trust.detector is None else self.trust.detector.score(*seen)

    def _raw(self, batch: Tensor, tta: TTA) -> np.ndarray:
        with self._lock:
            log_p = predict_batch(self.model, batch, self.normalize, self.number_format, tta, self.task)
        check_finite(log_p)
        return log_p.exp().cpu().numpy()


def save_model(path: Path, weights: dict[str, Tensor], predictor: Predictor, facts: dict[str, Any]) -> None:
    """Write a model file atomically.

    Args:
        weights: the state dict, which may differ from that of ``predictor.model``.
        facts: further metadata, for information only.
    """
    metadata = {
        "recipe": predictor.recipe.model_dump(mode="json"),
        "task": predictor.task.name,
        "classes": list(predictor.classes),
        "shape": list(predictor.shape),
        "mean": list(predictor.mean),
        "std": list(predictor.std),
        **facts,
    }
    _write(path, weights, metadata, predictor)


def save_trust(path: Path, predictor: Predictor, out: Path | None = None) -> None:
    """Replace what was fitted on val in a model file, and the images that it was fitted on, atomically.

    Args:
        out: another file to write, which reads images at the scale of ``predictor``; None: ``path`` itself.
    """
    facts, weights, *_ = _read(path)
    if out is not None:
        facts.recipe["data"] = {**facts.recipe.get("data", {}), "scale": predictor.recipe.data.scale}
    _write(out or path, weights, facts.model_dump(mode="json", exclude_unset=True), predictor)


class Facts(BaseModel):
    """The metadata of a model file: what is needed to build and use the model.

    Args:
        task: None in files of format 1.
        trust: what was fitted on val; see `petriscope.trust.state.Trust.from_file`.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    format: Annotated[int, Field(ge=1)]
    recipe: dict[str, Any]
    task: str | None = None
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    shape: tuple[Side, Side, Channels]
    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0)], ...]
    trust: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _of_one_shape(self) -> Facts:
        if not len(self.mean) == len(self.std) == self.shape[2]:
            raise ValueError(f"mean and std must have one value for each of the {self.shape[2]} channels")
        check_class_names(self.classes)
        return self


def _read(path: Path) -> tuple[Facts, dict[str, Tensor], Trust, Exposure | None]:
    """The metadata, the weights, what was fitted on val, and the images that the model has seen.

    Raises:
        RequestError: the file is damaged, or is no model file of this or an older version.
    """
    with parsing(path, "give a run folder, or the model.safetensors of one"), safe_open(path, framework="pt") as handle:
        tree = parse_json((handle.metadata() or {})["petriscope"])
        if isinstance(version := tree.get("format"), int) and version > FORMAT:
            raise RequestError(f"{path} was written by a newer version of Petriscope; update Petriscope")
        facts = validated(Facts, tree, str(path))
        tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 (not a mapping)
        fitted = {key: tensor.numpy() for key, tensor in tensors.items() if key.startswith(TENSORS)}
        seen = {key.removeprefix(SEEN): tensor.numpy() for key, tensor in tensors.items() if key.startswith(SEEN)}
        weights = {key: tensor for key, tensor in tensors.items() if not key.startswith((TENSORS, SEEN))}
        trust = Trust() if facts.trust is None else Trust.from_file(facts.trust, fitted, len(facts.classes))
        exposure = Exposure.from_arrays(seen) if seen else None
        if bad := not_finite(weights):
            raise RequestError(f"{path} is damaged: {bad} has numbers that are not finite")
    return facts, weights, trust, exposure


def _write(path: Path, weights: dict[str, Tensor], metadata: dict[str, Any], predictor: Predictor) -> None:
    fitted, arrays = predictor.trust.to_file()
    if predictor.exposure is not None:
        arrays = {**arrays, **{f"{SEEN}{role}": array for role, array in predictor.exposure.arrays().items()}}
    tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
    tensors |= {name: torch.from_numpy(values) for name, values in arrays.items()}
    # In the same order when a file is written again, so that equal files have equal bytes.
    rest = {key: value for key, value in metadata.items() if key not in ("format", "trust")}
    facts = {"format": FORMAT, **rest, "trust": fitted}
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata={"petriscope": json_text(facts)})


def model_path(path: Path) -> Path:
    """The model file at ``path``, which may be a run folder."""
    return path / "model.safetensors" if path.is_dir() else path


def read_exposure(path: str | PathLike[str]) -> Exposure | None:
    """The images that the model in a file has seen; None if it is no model file of this version."""
    with suppress(RequestError), parsing(str(path)), safe_open(model_path(user_path(path)), framework="np") as handle:
        return Exposure.from_arrays({role: handle.get_tensor(f"{SEEN}{role}") for role in ("train", "val")})
    return None


def load_model(path: str | PathLike[str], device: str = "auto") -> Predictor:
    """Read a model file.

    Args:
        path: a model file or a run folder.
        device: see `petriscope.core.device.choose_device`.

    Raises:
        RequestError: the file does not exist, is damaged, or is no model file of this or an older version.
    """
    path = model_path(user_path(path))
    if not path.is_file():
        raise RequestError(f"no model at {path}; a run folder has one once training has finished")
    facts, weights, trust, exposure = _read(path)
    with parsing(path):
        recipe = check_recipe(facts.recipe, str(path))
        model = _build(recipe, facts, weights)
        task = find_task(facts.task or (SEGMENTATION if is_dense(model) else CLASSIFICATION))
        if recipe.data.tiles is not None:
            check_tiles(recipe.data.tiles.overlap, task.name, task.dense)
    where = choose_device(device)
    return Predictor(
        lay_out(model.to(where), recipe.training.channels_last).eval(),
        recipe,
        task,
        facts.classes,
        facts.shape,
        facts.mean,
        facts.std,
        where,
        trust,
        exposure,
    )


def _build(recipe: Recipe, facts: Facts, weights: dict[str, Tensor]) -> nn.Module:
    """The model of a file.

    Raises:
        ValueError: the weights are not those of the recipe's model.
    """
    sketch = sketch_model(recipe.model, len(facts.classes), facts.shape)  # the recipe may ask for any number of weights
    if wrong := differences(sketch.state_dict(), weights):
        raise ValueError(f"its weights do not fit its recipe; {wrong}")
    model = build_model(recipe.model, len(facts.classes), facts.shape, fresh=False)
    model.load_state_dict(weights)
    return model
