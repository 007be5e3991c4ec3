"""One safetensors file that is enough to predict: weights, and in its metadata all that turns a picture into classes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from petriscope.augment.pipeline import Normalize
from petriscope.errors import RequestError
from petriscope.evaluation.inference import TTA, predict_batch
from petriscope.files import atomic
from petriscope.models import build_model
from petriscope.precision import choose_device, choose_format, lay_out
from petriscope.recipe import Recipe, check_recipe

FORMAT = 1


@dataclass
class Classifier:
    """A trained model with all it needs to be used.

    Args:
        model: in eval mode, on ``device``.
        recipe: it was trained by.
        classes: names of the logits.
        shape: (height, width, channels) of the pictures it takes.
        mean, std: of the training pictures, a figure a channel, in units of the full range.
    """

    model: nn.Module
    recipe: Recipe
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device

    @property
    def normalize(self) -> Normalize:
        return Normalize(self.mean, self.std)

    def probabilities(self, images: np.ndarray, tta: TTA | None = None) -> np.ndarray:
        """uint8 [B, H, W, C] -> float32 [B, K], or [B, K, H, W] of a model of masks; ``tta`` None: as in the recipe."""
        if images.dtype != np.uint8 or images.shape[1:] != self.shape:
            raise RequestError(
                f"this model takes uint8 [B, {', '.join(map(str, self.shape))}], not {images.dtype} {list(images.shape)}"
            )
        number_format = choose_format(self.recipe.training.precision, self.device)
        batch = torch.from_numpy(np.ascontiguousarray(images)).to(self.device)
        tta = tta or self.recipe.evaluation.tta
        return predict_batch(self.model, batch, self.normalize, number_format, tta).exp().cpu().numpy()


def save_model(path: Path, weights: dict[str, Tensor], classifier: Classifier, facts: dict[str, Any]) -> None:
    """Write weights and metadata atomically. ``facts`` are kept as they are, for people."""
    metadata = {
        "format": FORMAT,
        "recipe": classifier.recipe.model_dump(mode="json"),
        "classes": list(classifier.classes),
        "shape": list(classifier.shape),
        "mean": list(classifier.mean),
        "std": list(classifier.std),
        **facts,
    }
    contiguous = {name: tensor.contiguous() for name, tensor in weights.items()}
    with atomic(path) as temporary:
        save_file(contiguous, temporary, metadata={"petriscope": json.dumps(metadata)})


def load_model(path: Path, device: str = "auto") -> Classifier:
    """Read a model file, or the one in a run folder.

    Raises:
        RequestError: there is none, or it is damaged, or not Petriscope's.
    """
    path = path / "model.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise RequestError(f"no model at {path}; a run that has finished training has one")
    try:
        with safe_open(path, framework="pt") as handle:
            facts = json.loads((handle.metadata() or {})["petriscope"])
            weights = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 (not a mapping)
        if facts["format"] > FORMAT:
            raise RequestError(f"{path} was written by a newer Petriscope; update this one")
        recipe = check_recipe(facts["recipe"], str(path))
        height, width, channels = facts["shape"]
        model = build_model(recipe.model, len(facts["classes"]), (height, width, channels), fresh=False)
        model.load_state_dict(weights)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        raise RequestError(f"{path} is damaged or no Petriscope model: {error}") from None
    where = choose_device(device)
    return Classifier(
        lay_out(model.to(where), recipe.training.channels_last).eval(),
        recipe,
        tuple(facts["classes"]),
        (height, width, channels),
        tuple(facts["mean"]),
        tuple(facts["std"]),
        where,
    )
