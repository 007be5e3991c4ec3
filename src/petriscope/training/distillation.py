"""Distillation: learning from trained runs in addition to the labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from petriscope.augment.pipeline import Normalize
from petriscope.core.device import autocast, choose_format
from petriscope.core.errors import RequestError
from petriscope.core.progress import say
from petriscope.core.recipe import DataSection, DistillSection
from petriscope.inference.predictor import load_model


class Teachers:
    """Trained models whose predictions a student learns. Hinton et al., 2015, arXiv:1503.02531.

    Args:
        section: the teachers, their weight in the loss, and the temperature.
        classes, shape: classes and image shape of the student's data; the teachers must have the same.
        device: the device that the student is trained on.
        data: how the student's images are read; what is standardized must be the same for the teachers.

    Raises:
        RequestError: a teacher is missing, has other classes or another image shape, or standardizes images otherwise.
    """

    def __init__(
        self,
        section: DistillSection,
        classes: tuple[str, ...],
        shape: tuple[int, int, int],
        device: torch.device,
        data: DataSection,
    ) -> None:
        self.weight, self.temperature = section.weight, section.temperature
        self.models = [load_model(path, str(device)) for path in section.teachers]
        for path, model in zip(section.teachers, self.models, strict=True):
            if model.classes != classes:
                raise RequestError(
                    f"distill.teachers: {path} has the classes {', '.join(model.classes)}, but the data have "
                    f"{', '.join(classes)}; choose a teacher with the same classes"
                )
            if model.shape != shape:
                raise RequestError(f"distill.teachers: {path} takes images of {model.shape}, but the data have {shape}")
            theirs, ours = (sorted(each.standardize) for each in (model.recipe.data, data))
            if theirs != ours:  # images are standardized once, for the student and its teachers
                raise RequestError(
                    f"distill.teachers: data.standardize of {path} is {theirs}, but that of the recipe is {ours}; "
                    "choose a teacher with the same"
                )
            if model.recipe.data.scaled != data.scaled:
                say(
                    f"note: distill.teachers: {path} was trained at another data.scale; it sees images at that of this recipe, "
                    "which is right only if objects have the size that it knows"
                )

    @torch.no_grad()
    def answer(self, images: Tensor) -> Tensor:
        """The teachers' mean softened probabilities, float32 [B, K].

        Args:
            images: standardized and augmented but not normalized images, from `petriscope.augment.pipeline.Pipeline`; each
                teacher applies its own normalization.
        """
        total = torch.zeros(())
        for teacher in self.models:
            with autocast(images.device, choose_format(teacher.recipe.training.precision, images.device)):
                logits = teacher.model(Normalize(teacher.mean, teacher.std)(images))
            total = total + (logits.float() / self.temperature).softmax(1)
        return total / len(self.models)

    def loss(self, logits: Tensor, answer: Tensor, labels_loss: Tensor) -> Tensor:
        """The weighted sum of the loss on the labels and the loss on the teachers' predictions. The latter is the KL
        divergence of the softened probabilities, times the square of the temperature to keep the size of the gradients."""
        log_p = (logits / self.temperature).log_softmax(1)
        divergence = F.kl_div(log_p, answer, reduction="batchmean") * self.temperature**2
        return (1 - self.weight) * labels_loss + self.weight * divergence
