"""Learning from trained runs beside the labels."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from petriscope.core.device import autocast, choose_format
from petriscope.core.errors import RequestError
from petriscope.core.recipe import DistillSection
from petriscope.inference.predictor import load_model


class Teachers:
    """Trained models whose answers a student learns. Hinton et al., 2015, arXiv:1503.02531.

    Args:
        section: which runs, and how much they count.
        classes, shape: of the student's data; the teachers must have the same.
        device: where the student is trained.

    Raises:
        RequestError: a teacher is missing, or has other classes or images of another shape.
    """

    def __init__(
        self, section: DistillSection, classes: tuple[str, ...], shape: tuple[int, int, int], device: torch.device
    ) -> None:
        self.weight, self.temperature = section.weight, section.temperature
        self.models = [load_model(Path(path).expanduser(), str(device)) for path in section.teachers]
        for path, model in zip(section.teachers, self.models, strict=True):
            if model.classes != classes:
                raise RequestError(
                    f"distill.teachers: {path} knows the classes {', '.join(model.classes)}; "
                    f"the data have {', '.join(classes)}"
                )
            if model.shape != shape:
                raise RequestError(f"distill.teachers: {path} takes images of {model.shape}; the data are {shape}")

    @torch.no_grad()
    def answer(self, images: Tensor) -> Tensor:
        """The teachers' mean softened probabilities, float32 [B, K].

        Args:
            images: augmented but not normalized, as `petriscope.augment.pipeline.Pipeline` gives them: every teacher
                normalizes as it was trained to.
        """
        total = torch.zeros(())
        for teacher in self.models:
            with autocast(images.device, choose_format(teacher.recipe.training.precision, images.device)):
                logits = teacher.model(teacher.normalize(images))
            total = total + (logits.float() / self.temperature).softmax(1)
        return total / len(self.models)

    def loss(self, logits: Tensor, answer: Tensor, labels_loss: Tensor) -> Tensor:
        """The student's loss: of the labels and of the teachers, weighed. The latter is the divergence of the softened
        probabilities times the square of the temperature, so that its gradients keep their size."""
        log_p = (logits / self.temperature).log_softmax(1)
        divergence = F.kl_div(log_p, answer, reduction="batchmean") * self.temperature**2
        return (1 - self.weight) * labels_loss + self.weight * divergence
