"""A package as a `Predictor`, so that it is evaluated and used by the same code as the run it came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from petriscope.core.errors import RequestError
from petriscope.core.files import parsing, user_path
from petriscope.core.progress import progress, say
from petriscope.core.recipe import TTA, check_recipe
from petriscope.data.batches import Batches
from petriscope.data.tile_sets import TileBatches
from petriscope.inference.base import Prediction
from petriscope.inference.package import MANIFEST, Package, is_package
from petriscope.inference.predictor import Predictor, load_model
from petriscope.tasks import find_task
from petriscope.trust.state import Trust
from petriscope.trust.two_sample import Likeness, Traits


@dataclass
class PackagePredictor(Predictor):
    """Predicts with the model of a package. It has no network that could be explained, adapted or calibrated."""

    package: Package = field(kw_only=True)

    @property
    def fixed_tta(self) -> TTA | None:
        return self.recipe.evaluation.tta

    def probabilities(self, images: np.ndarray, tta: TTA | None = None) -> np.ndarray:
        """See `Predictor.probabilities`."""
        tta = self._known(tta)
        found = self.package.run(images)
        return found["probabilities"] if self.task.dense else self.judge(found["raw"], tta, None).probabilities

    def predict(self, images: np.ndarray, tta: TTA | None = None) -> Prediction:
        """See `Predictor.predict`."""
        tta = self._known(tta)
        found = self.package.run(images)
        return self.judge(found["raw"], tta, self._scores(found))

    def traits(self, images: np.ndarray, likeness: Likeness) -> Traits:
        """See `Predictor.traits`."""
        return self.package.traits(images, likeness)

    def predict_and_compare(
        self, images: np.ndarray, likeness: Likeness, rows: np.ndarray, tta: TTA | None = None
    ) -> tuple[Prediction, Traits]:
        """See `Predictor.predict_and_compare`."""
        found = self.package.run(images)
        traits = self.package.traits_in(found, likeness).take(rows)
        return self.judge(found["raw"], self._known(tta), self._scores(found)), traits

    def predict_set(self, batches: Batches, tta: TTA | None = None, label: str | None = None) -> Prediction:
        """See `Predictor.predict_set`."""
        tta = self._known(tta)
        raw, ood = [np.empty((0, len(self.classes)), np.float32)], [np.empty(0, np.float32)]
        for _, found, _ in self._runs(batches, label, self.recipe.evaluation.batch_size):
            raw.append(found["raw"])
            ood.append(found["ood"])
        joined = np.concatenate(ood)
        return self.judge(np.concatenate(raw), tta, None if self.trust.detector is None else joined)

    def look(
        self,
        batches: Batches,
        tta: TTA,
        label: str | None = None,
        note: Callable[[np.ndarray, np.ndarray], object] | None = None,
    ) -> np.ndarray:
        """See `Predictor.look`."""
        if note is not None:
            raise RequestError(f"{self.package.folder} is a package, which gives no features; use the run")
        return self.predict_set(batches, tta, label).raw

    def outputs(
        self, batches: Batches, tta: TTA, label: str | None = None, batch_size: int | None = None
    ) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
        """See `Predictor.outputs`."""
        self._known(tta)
        name = "probabilities" if self.task.dense else "raw"
        if isinstance(batches, TileBatches):
            yield from batches.predict_each(lambda tiles: self.package.run(tiles)[name], label)
            return
        for indices, found, targets in self._runs(batches, label, batch_size or self.recipe.evaluation.batch_size):
            yield indices, torch.from_numpy(found[name]).clamp_min(1e-12).log(), targets

    def _runs(
        self, batches: Batches, label: str | None, size: int
    ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray], Tensor]]:
        order = np.arange(len(batches.images))
        chunks = [order[start : start + size] for start in range(0, len(order), size)]
        with progress(label or "", len(order)) as bar:
            for indices, (images, targets) in zip(chunks, batches.iterate(chunks), strict=True):
                yield indices, self.package.run(images.cpu().numpy()), targets
                if label:
                    bar.advance(len(indices))

    def _known(self, tta: TTA | None) -> TTA:
        own = self.recipe.evaluation.tta
        if tta not in (None, own):
            raise RequestError(
                f"{self.package.folder} predicts with test-time augmentation {own}, which is inside its model; for {tta}, use "
                "the run, or export it with that in its recipe"
            )
        return own

    def _scores(self, found: dict[str, np.ndarray]) -> np.ndarray | None:
        return None if self.trust.detector is None else found["ood"]


class _NoNetwork(nn.Module):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def forward(self, images: Tensor) -> Tensor:
        raise RequestError(f"{self.folder} is a package, which has no network of torch; use the run")


def open_model(path: str | PathLike[str], device: str = "auto") -> Predictor:
    """A run folder, a model file, or a package.

    Args:
        device: of the first two; packages run on the CPU.

    Raises:
        RequestError: there is no model, or it is damaged.
    """
    folder = user_path(path)
    if not is_package(folder):
        return load_model(path, device)
    if device not in ("auto", "cpu"):
        say(f"note: --device {device} has no effect: {folder} is a package, which runs on the CPU")
    return open_package(folder)


def open_package(folder: Path) -> PackagePredictor:
    """
    Raises:
        RequestError: it is no package, or it is damaged or was changed.
    """
    package = Package(folder)
    made, where = package.manifest, folder / MANIFEST
    with parsing(where, "export the package again"):
        recipe = check_recipe(dict(made.recipe), str(where))
        trust = Trust.from_file(dict(made.trust), package.arrays, len(made.classes))
        task = find_task(made.task)
    made_of = PackagePredictor(
        _NoNetwork(folder),
        recipe,
        task,
        made.classes,
        made.input.shape,
        made.mean,
        made.std,
        torch.device("cpu"),
        trust,
        package.exposure,
        package=package,
    )
    if made_of.reading != made.input.reading:
        raise RequestError(f"{where} reads images otherwise than its own recipe says; export the package again")
    return made_of
