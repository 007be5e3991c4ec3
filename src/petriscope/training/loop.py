"""The training loop. The same recipe, seed and machine give the same weights, even if training is killed and resumed.

No random state is kept between steps: the order of an epoch is a function of (seed, epoch), and every random draw in a step
is a function of (seed, step). A checkpoint therefore needs only weights, moments and a position, and can be taken after any
step.

Several processes can train together (`petriscope.core.ranks`). Each computes the order, the draws and the augmented batch as a
single process does, and runs the network on its rows. The loss is that of the whole batch, whatever it is normalized by.
"""

from __future__ import annotations

import copy
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, TypeAdapter
from torch import Tensor, nn

from petriscope.augment.pipeline import Normalize, Pipeline, check_targets, standardized
from petriscope.core.device import autocast, choose_format, lay_out, tensor_of, upload, widest
from petriscope.core.errors import Diverged, Interrupted, RequestError
from petriscope.core.progress import Progress, duration, say
from petriscope.core.ranks import ALONE, Ranks
from petriscope.core.recipe import CorrectionSection, EndedSection, Recipe
from petriscope.core.results import OLD_KEYS, read_epoch
from petriscope.data.batches import Batches
from petriscope.data.domains import draw_weights
from petriscope.data.sampler import epoch_order
from petriscope.data.streamed import windowed
from petriscope.data.tile_sets import crops_per_image, draw_places
from petriscope.inference.tta import predict_batches
from petriscope.models.layers import is_dense, only_head_of
from petriscope.models.weights import not_finite
from petriscope.training.averaging import EMA, SWA
from petriscope.training.checkpoints import (
    fitting,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    restoring,
    save_checkpoint,
)
from petriscope.training.convolutions import bf16_convolutions
from petriscope.training.distillation import Teachers
from petriscope.training.finetune import Plan
from petriscope.training.frozen import FeatureBatches, frozen_features
from petriscope.training.losses import build_loss, views_of
from petriscope.training.optimizers import OPTIMIZERS
from petriscope.training.progressive import Progressive
from petriscope.training.schedules import SCHEDULES
from petriscope.training.whole_batch import whole_batch

SWA_BATCHES = 64  # batches from which the batch norm statistics of averaged weights are computed


@dataclass
class Position:
    """The position of a training, in plain JSON values."""

    epoch: Annotated[int, Field(ge=0)] = 0  # epochs done
    batch: Annotated[int, Field(ge=0)] = 0  # batches done in the current epoch
    seconds: float = 0.0  # spent training, over all sessions
    epoch_seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: float | None = None
    best_epoch: int | None = None  # counted from 1
    averaged: Annotated[int, Field(ge=0)] = 0  # epochs in the mean of the last epochs' weights


class Trainer:
    """Trains a model according to a recipe.

    Args:
        model: the model, already on the device.
        train, val: batches; without val, the last weights are kept.
        normalize: applied to images after augmentation.
        checkpoint: the file that resuming reads; None: no checkpoints.
        on_epoch: called with the history after every epoch.
        is_late: asked after every step; training ends where it says so, which the recipe of the trainer then has.
        quiet: show no progress.
        ranks: the processes that train together; the first alone writes checkpoints.

    Raises:
        RequestError: the recipe does not fit the task, the data, the model or the number of processes.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        train: Batches,
        val: Batches | None,
        normalize: Normalize,
        checkpoint: Path | None = None,
        on_epoch: Callable[[list[dict[str, Any]]], None] = lambda history: None,
        quiet: bool = False,
        ranks: Ranks = ALONE,
    ) -> None:
        self.recipe, self.train, self.val, self.ranks = recipe, train, val, ranks
        self.normalize: Callable[[Tensor], Tensor] = normalize
        # Images are standardized before they are augmented, else standardizing would undo what augmentations do to colors.
        self.standardize, self.scale = normalize.standardize, Normalize(normalize.mean, normalize.std)
        self.settings = recipe.training
        if self.settings.compile and ranks.size > 1:
            raise RequestError(
                "training.compile works in one process only: set training.compile=false, or leave torchrun out"
            )
        self.checkpoint, self.on_epoch, self.quiet = checkpoint, on_epoch, quiet
        self.is_late: Callable[[], bool] = lambda: False
        self.device = train.device
        self.format = choose_format(self.settings.precision, self.device)
        self.model = lay_out(model, self.settings.channels_last)
        self.epochs = self.settings.epochs_at(0)
        self.plan = Plan(model, recipe.finetune, self.epochs)
        self.plan.freeze(self.plan.ever)
        # Some models have an additional loss, such as the reconstruction loss of an autoencoder.
        forward = getattr(model, "forward_with_loss", model)
        self.step_model: Callable[[Tensor], Any] = torch.compile(forward) if self.settings.compile else forward
        self.convolutions = (
            nullcontext() if self.settings.compile else bf16_convolutions(model, self.device, self.format)
        )
        self.task = train.images.task
        self.monitor = self._check_targets()
        self.augment = Pipeline.from_recipe(
            recipe.augment,
            len(train.images.classes) if self.task.exclusive else None,
            views_of(recipe.loss),
            dense=self.task.dense,
            channels=train.images.channels,
        )
        check_targets((*self.augment.operations, *self.augment.viewing), self.task.dense)
        if self.augment.views and (self.task.dense or not self.task.exclusive):
            raise RequestError(f"loss consistency works only for classification, but the targets are {self.task.about}")
        self.strata = train.images.strata
        self.weights = draw_weights(recipe.data, train.images)
        self.crops: np.ndarray | None = None  # an image as often as crops of it are drawn, int64 [M]
        if recipe.data.tiles is not None:
            each = crops_per_image(train.images, self._shape[:2])
            self.crops = np.repeat(np.arange(len(each)), each)
        self.loss: nn.Module = build_loss(recipe.loss, train.images).to(self.device)
        self.optimizer: torch.optim.Optimizer = OPTIMIZERS.build(recipe.optimizer, model)
        self.plan.split_rates(self.optimizer)
        self.teachers = self._find_teachers()
        self.progressive = self._plan_sizes(forward)
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.ema = EMA(model, self.settings.ema) if self.settings.ema is not None else None
        self.swa = SWA(model) if self.settings.swa is not None else None
        self.head = ""  # name of the module that is trained on precomputed features, if there is one
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.format == "fp16")
        self.batches_per_epoch = len(self.epoch_batches(0))
        self._check_processes()
        self.schedule = SCHEDULES.build(recipe.schedule, self.batches_per_epoch, self.epochs)
        self.at = Position()
        self.best_weights: dict[str, Tensor] | None = None
        self._sums = torch.zeros(4, dtype=torch.float64)  # over the current epoch, see `train_step`
        self._last_save = time.monotonic()
        self._prepared = False
        self._asked: int | None = None  # epochs after which `train_until` ends; None: with training

    @property
    def averaged(self) -> nn.Module:
        """The model that is evaluated and kept: with averaged weights if the recipe asks for them."""
        if self.swa and self.at.averaged:
            return self.swa.model
        return self.ema.model if self.ema else self.model

    @property
    def _shape(self) -> tuple[int, int, int]:
        """Of what the model sees at a time, (height, width, channels)."""
        return self.recipe.data.shape_of_model(self.train.images.shape)

    def _check_processes(self) -> None:
        if self.ranks.size == 1:
            return
        if (fewest := len(self.epoch_batches(0)[0])) < self.ranks.size:
            raise RequestError(
                f"{self.ranks.size} processes cannot share batches of {fewest} images: start fewer, or raise "
                "training.batch_size"
            )

    def _check_targets(self) -> str:
        """Check that model and settings fit the task. Returns the metric to monitor."""
        task = self.task
        if is_dense(self.model) != task.dense:
            wanted = "pixel, such as unet" if task.dense else "image, such as simple-cnn"
            raise RequestError(
                f"the model {self.recipe.model.name} predicts one class per {'image' if task.dense else 'pixel'}, but the "
                f"targets are {task.about}: choose a model that predicts one class per {wanted}"
            )
        if self.recipe.distill is not None and (task.dense or not task.exclusive):
            raise RequestError(f"distill works only for classification, but the targets are {task.about}; remove it")
        monitor, known = self.settings.monitor, task.monitors
        if monitor != "auto" and monitor not in known:
            raise RequestError(
                f"training.monitor cannot be {monitor} for the task {task.name}; known: {', '.join(known)}"
            )
        return known[0] if monitor == "auto" else monitor

    def _find_teachers(self) -> Teachers | None:
        if self.recipe.distill is None:
            return None
        return Teachers(
            self.recipe.distill, self.train.images.classes, self.train.images.shape, self.device, self.recipe.data
        )

    def _plan_sizes(self, forward: Callable[[Tensor], Any]) -> Progressive | None:
        section = self.settings.progressive
        if section is None or not section.epochs(self.epochs):
            return None
        if self.recipe.distill is not None:
            raise RequestError(
                "distill and training.progressive cannot be combined: teachers take images of one size; remove one"
            )
        progressive = Progressive(section, self._shape, self.epochs, dense=self.task.dense)
        progressive.check(self.model, forward)
        return progressive

    def fit(self) -> dict[str, Tensor]:
        """Train to the end, from the checkpoint if there is one.

        Returns:
            the state dict to keep: of the best epoch by the monitored metric, or of the last epoch.

        Raises:
            Interrupted: Ctrl-C; the run can be resumed.
            Diverged: the loss, a weight or an output is not finite.
        """
        self.train_until(None)
        if self.val is not None and self.at.best is None:
            monitor = self.task.info(self.monitor).name
            say(f"warning: {monitor} is not defined on val in any epoch, so the weights of the last epoch are kept")
        if self.best_weights is not None:
            return self.best_weights
        return {key: value.detach().cpu().clone() for key, value in self.averaged.state_dict().items()}

    def train_until(self, epochs: int | None) -> None:
        """Train until so many epochs are done (None: all), or until patience is over, and save a checkpoint. A later call goes on
        from there, in this process or in another, and leads to the same weights as one call.

        Raises:
            Interrupted, Diverged: as `fit`.
        """
        if not self._prepared:
            if self.checkpoint is not None and self.checkpoint.is_file():
                self._restore()
            self.ranks.agree_on_weights(self.model, "at the start")
            self.run_backbone_once()
            self._prepared = True
        self._asked = epochs
        self.bar = Progress("training", self.epochs * self.batches_per_epoch, "steps", self._cost)
        self._follow_corrections()
        self.bar.start_from(self._step)
        with interruptible() as stop:
            try:
                while not self._ends():
                    self._run_epoch(stop)
            finally:
                self.bar.close()

    def _ends(self) -> bool:
        last = self.epochs if self._asked is None else min(self._asked, self.epochs)
        return self.at.epoch >= last or self._out_of_patience()

    def correct(self, epochs: int) -> None:
        """Plan another number of epochs from the next one on, not fewer than are done; to be called by ``on_epoch``. The recipe
        of the trainer then has the correction, and leads to the same weights."""
        now, earlier = self.at.epoch, self.settings.corrections
        changes = {
            "epochs": max(epochs, now),
            "corrections": (*earlier, CorrectionSection(epoch=now, before=self.settings.epochs)),
        }
        self._change(changes)

    def _end_here(self) -> None:
        """End with the steps of this epoch that are done, and have the recipe of the trainer say so."""
        epochs, planned, earlier = self.at.epoch + 1, self.settings.epochs, self.settings.corrections
        if planned > epochs:
            earlier = (*earlier, CorrectionSection(epoch=epochs, before=planned))
        ended = EndedSection(epoch=epochs, steps=self.at.batch)
        self._change({"epochs": epochs, "corrections": earlier, "ended": ended})

    def _change(self, changes: dict[str, Any]) -> None:
        self.settings = self.settings.model_copy(update=changes)
        self.recipe = self.recipe.model_copy(update={"training": self.settings})

    def _follow_corrections(self) -> None:
        """Plan the number of epochs that the recipe has for the current epoch, and what depends on it."""
        if self.settings.corrections:
            self.epochs = self.settings.epochs_at(self.at.epoch)
            state = self.schedule.state()
            self.schedule = SCHEDULES.build(self.recipe.schedule, self.batches_per_epoch, self.epochs)
            if state:
                self.schedule.restore(state)
            if self.progressive:
                self.progressive.epochs = self.settings.small_epochs(self.at.epoch)
        self.bar.total = self.epochs * self.batches_per_epoch

    def run_backbone_once(self) -> None:
        """If only the head is trained and images do not vary, replace images by the features that the head takes."""
        head = only_head_of(self.model)
        varied = self.augment.varies or self.teachers or self.progressive or hasattr(self.model, "forward_with_loss")
        if head is None or varied or self.task.dense or any(not name.startswith(f"{head}.") for name in self.plan.ever):
            return
        self.plan.freeze(self.plan.stage(0).names)
        started = time.monotonic()

        def features(batches: Batches) -> FeatureBatches | None:
            return frozen_features(self.model, head, batches, self.normalize, self.format, self.quiet, ranks=self.ranks)

        train = features(self.train)
        val = features(self.val) if train and self.val else None
        if train is None or (self.val is not None and val is None):
            return
        self.train, self.val = train, val
        self.at.seconds += time.monotonic() - started
        self.head = head
        self.normalize = lambda features: features
        self.step_model = self.model.get_submodule(head)

    @property
    def _step(self) -> int:
        return self.at.epoch * self.batches_per_epoch + self.at.batch

    def _cost(self, steps: int) -> float:
        """The approximate cost of the first ``steps`` steps, in steps on images of full size."""
        if self.progressive is None:
            return steps
        small = min(steps, self.progressive.epochs * self.batches_per_epoch)
        return steps - small * (1 - self.progressive.cost)

    def epoch_batches(self, epoch: int) -> list[np.ndarray]:
        """The indices of each batch, or the places of crops, see `TileBatches`. A short last batch is dropped; since every
        epoch has another order, no image is lost.

        Of images in their own sizes, each is drawn as often as crops of it cover its area.
        """
        size, settings = self.settings.batch_size, self.settings
        recipe, count = self.recipe, settings.images_per_epoch
        blocks, stream = self.train.images.blocks, recipe.data.stream
        if stream is not None and blocks is not None:
            order = windowed(blocks, stream.window, recipe.seed, epoch, count)
        elif self.crops is None:
            order = epoch_order(self.strata, recipe.sampler, recipe.seed, epoch, count, self.weights)
        else:
            drawn = epoch_order(self.strata[self.crops], recipe.sampler, recipe.seed, epoch, count)
            rng = np.random.default_rng([recipe.seed, 3, epoch])
            order = draw_places(self.train.images, self.crops[drawn], self._shape[:2], rng)
        if len(order) <= size:
            return [order]
        return [order[i : i + size] for i in range(0, len(order) - size + 1, size)]

    def _run_epoch(self, stop: threading.Event) -> None:
        self.plan.freeze(self.plan.stage(self.at.epoch).names)
        if not self.quiet and self.at.batch == 0:
            self._say_stage()
        ended = self.settings.ended
        last = None if ended is None or ended.epoch != self.at.epoch + 1 else ended.steps
        batches = self.epoch_batches(self.at.epoch)[self.at.batch : last]
        sums = self._sums.to(self.device, widest(self.device))
        started = time.monotonic()
        spent_before = self.at.epoch_seconds
        for images, targets in self._taken(batches):
            sums += self.train_step(images, targets)
            self.at.batch += 1
            self.at.epoch_seconds = spent_before + time.monotonic() - started
            due = time.monotonic() - self._last_save > self.settings.checkpoint_seconds
            if (stopped := self.ranks.any(stop.is_set())) or (due and self.ranks.first):
                self._sums = sums.cpu().double()
                self._save()
                if stopped:
                    raise Interrupted("interrupted")
            if not self.quiet:
                self.bar.advance(1, self._note())
            if self.at.batch < self.batches_per_epoch and self.is_late():
                self._end_here()
                break
        self._sums = sums.cpu().double()
        self._end_epoch()

    def _taken(self, batches: list[np.ndarray]) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches in turn. Of streamed images, each process reads some blocks and decodes their images, and all exchange what
        they have."""
        blocks = self.train.images.blocks
        if self.ranks.size == 1 or blocks is None or self.head:
            yield from self.train.iterate(batches)
            return
        owner = blocks % self.ranks.size
        parts = [indices[owner[indices] == self.ranks.rank] for indices in batches]
        for indices, (part, _) in zip(batches, self.train.iterate(parts), strict=True):
            whole = self.ranks.gathered(part.view(torch.uint8), owner[indices])
            index = upload(tensor_of(indices), self.device)
            yield whole.view(part.dtype), self.train.targets.index_select(0, index)

    def augmented(self, batch: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A batch, uint8 [B, H, W, C], and its targets, standardized and augmented; see `Pipeline`."""
        return self.augment(standardized(batch, self.standardize), targets, generator)

    def train_step(self, batch: Tensor, targets: Tensor) -> Tensor:
        """One step on a uint8 batch [B, H, W, C] with targets int64 [B] or masks uint8 [B, H, W].

        Returns:
            float [4]: the loss summed over images, correct predictions, all predictions that are counted (images, or labeled
            pixels), and images.
        """
        step = self._step
        generator = self._seed(step)
        if self.progressive and self.at.epoch < self.progressive.epochs:
            batch, targets = self.progressive.shrink(batch, targets)
        augmented = (batch, targets) if self.head else self.augmented(batch, targets, generator)
        images, targets = augmented[0] if self.head else self.scale(augmented[0]), augmented[1]
        targets = self.task.loss_targets(targets)
        factor = self._factor(step)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor
        count, part = len(images), self.ranks.part(images)
        with autocast(self.device, self.format), self.convolutions, whole_batch(self.ranks, count):
            out = self.step_model(part)
        logits, own_loss = out if isinstance(out, tuple) else (out, None)
        logits = self.ranks.whole(logits.to(torch.promote_types(logits.dtype, torch.float32)), count)
        loss = self.loss(logits, targets)
        size = len(targets)
        logits = logits[:size]  # those of the images themselves; the rest are of further views
        if self.teachers:
            answer = self.teachers.answer(self.ranks.part(augmented[0][:size]))
            loss = self.teachers.loss(logits, self.ranks.whole(answer, size), loss)
        if own_loss is not None:
            loss = loss + self.ranks.mean(own_loss, len(part), count)
        self.scaler.scale(loss).backward()
        self.ranks.add_gradients(self.model.parameters())
        self._penalize_and_clip()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update(step)
        with torch.no_grad():
            hits, judged = self.task.hits(logits, targets)
            return torch.stack([loss.detach() * size, hits.to(loss.dtype), judged, loss.new_full((), size)])

    def _factor(self, step: int) -> float:
        """What the rates of the recipe are multiplied by at a step of the current epoch."""
        return self.schedule.factor(step) * self.plan.stage(self.at.epoch).lr

    def _seed(self, step: int) -> torch.Generator:
        """Seed the global generators (for dropout) from the step, and return a generator for augmentation."""
        for_model, for_augmentation = np.random.SeedSequence([self.recipe.seed, 2, step]).generate_state(2).tolist()
        # torch.manual_seed formats a stack trace for missing devices, which takes as long as a small step.
        torch.default_generator.manual_seed(for_model)
        if self.device.type == "cuda":
            torch.cuda.manual_seed_all(for_model)
        elif self.device.type == "mps":
            torch.mps.manual_seed(for_model)
        return torch.Generator().manual_seed(for_augmentation)

    def _penalize_and_clip(self) -> None:
        settings = self.settings
        if not (settings.l1 or settings.l2 or settings.clip_grad_norm):
            return
        self.scaler.unscale_(self.optimizer)
        weights = [p for p in self.model.parameters() if p.grad is not None]
        decayed: list[Tensor] = [p for p in weights if p.ndim >= 2]
        with torch.no_grad():  # adding the gradients of the penalties is cheaper than adding the penalties to the loss
            grads = [p.grad for p in decayed if p.grad is not None]
            if settings.l1 and grads:
                torch._foreach_add_(grads, torch._foreach_sign(decayed), alpha=settings.l1)
            if settings.l2 and grads:
                torch._foreach_add_(grads, decayed, alpha=2 * settings.l2)
        if settings.clip_grad_norm:
            torch.nn.utils.clip_grad_norm_(weights, settings.clip_grad_norm)

    def _end_epoch(self) -> None:
        loss, hits, judged, images = self._sums.tolist()
        if not math.isfinite(loss):
            raise self._diverged("the loss")
        self._average_epochs()
        if bad := not_finite(self.averaged.state_dict()):
            raise self._diverged(f"the weight {bad}")
        self.ranks.agree_on_weights(self.averaged, f"after epoch {self.at.epoch + 1}")
        line: dict[str, Any] = {
            "epoch": self.at.epoch + 1,
            "train": {"loss": loss / images, "accuracy": hits / max(judged, 1)},
        }
        rate = self.base_rates[0] * self._factor(self._step - 1)  # before the schedule learns of this epoch
        if self.val is not None:
            metrics = self._evaluate(self.val)
            self._judge(metrics[self.monitor], metrics["loss"])
            line["val"] = {key: value if math.isfinite(value) else None for key, value in metrics.items()}
        else:
            if self.at.epoch + 1 == self.settings.epochs:
                next(self._predict(self.train))  # no other batch shows what the last update did
            self.schedule.observe(line["train"]["loss"])
        line["lr"] = rate
        line["seconds"] = round(self.at.epoch_seconds, 3)
        line["images_per_second"] = round(images / max(self.at.epoch_seconds, 1e-9), 1)
        self.at.seconds += self.at.epoch_seconds
        self.at.history.append(line)
        self.at.epoch, self.at.batch, self.at.epoch_seconds = self.at.epoch + 1, 0, 0.0
        self._sums = torch.zeros(4, dtype=torch.float64)
        self._report(line)
        self.on_epoch(self.at.history)
        self._follow_corrections()
        if self._ends() or time.monotonic() - self._last_save > self.settings.checkpoint_seconds:
            self._save()

    def _diverged(self, what: str) -> Diverged:
        return Diverged(
            f"{what} is not finite in epoch {self.at.epoch + 1}: training diverged. Lower optimizer.lr (now "
            f"{self.base_rates[0]:g}), or set training.clip_grad_norm=1 or training.precision=fp32"
        )

    def _evaluate(self, val: Batches) -> dict[str, float]:
        outputs = self.task.collect(self._predict(val), len(val.images), len(val.images.classes))
        return self.task.quick(outputs, val.images)

    def _predict(self, batches: Batches) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
        """The predictions of `averaged`, batch by batch; see `predict_batches`."""
        model, size = self.averaged.get_submodule(self.head), self.recipe.evaluation.batch_size
        for indices, log_p, targets in predict_batches(
            model, batches, self.normalize, self.format, batch_size=size, ranks=self.ranks
        ):
            if log_p.isnan().any():
                raise self._diverged("an output")
            yield indices, log_p, targets

    def _average_epochs(self) -> None:
        """If the epoch is one of the last, add its weights to the mean of the last epochs' weights."""
        share, epochs = self.settings.swa, self.epochs
        if self.swa is None or share is None or self.at.epoch < epochs - max(1, round(share * epochs)):
            return
        order = self.epoch_batches(self.at.epoch)[:SWA_BATCHES]
        inputs = (self.ranks.part(self.normalize(images)) for images, _ in self.train.iterate(order))
        with autocast(self.device, self.format), whole_batch(self.ranks, len(order[0])):
            self.swa.add(self.model, self.at.averaged, inputs, self.head)
        self.at.averaged += 1

    def _judge(self, value: float, loss: float) -> None:
        """Keep the epoch if it is the best so far; of equally good ones, as a small val has many, that with the lower loss."""
        sign = 1 if self.task.info(self.monitor).higher_is_better else -1
        self.schedule.observe(-sign * value)
        if math.isnan(value):
            return
        equal = value == self.at.best and loss < self._loss_of_best()
        if self.at.best is None or sign * value > sign * self.at.best or equal:
            self.at.best, self.at.best_epoch = value, self.at.epoch + 1
            if self.settings.keep == "best":
                self.best_weights = {k: v.detach().cpu().clone() for k, v in self.averaged.state_dict().items()}

    def _loss_of_best(self) -> float:
        assert self.at.best_epoch is not None
        loss = self.at.history[self.at.best_epoch - 1]["val"]["loss"]
        return math.inf if loss is None else float(loss)

    def _out_of_patience(self) -> bool:
        patience, best = self.settings.patience, self.at.best_epoch
        return patience is not None and best is not None and self.at.epoch - best >= patience

    def _say_stage(self) -> None:
        stage, epoch = self.plan.stage(self.at.epoch), self.at.epoch
        if epoch == 0 and self.plan.late:
            say(
                f"warning: finetune.then has a stage from epoch {self.plan.late[0] + 1} on, and there are {self.epochs} epochs"
            )
        if stage.epoch == epoch and (epoch > 0 or len(stage.names) < sum(1 for _ in self.model.parameters())):
            run_once = "; features of the frozen part were computed once" if self.head else ""
            say(f"from epoch {epoch + 1}: training {self.plan.describe(epoch)}{run_once}")
        if self.progressive and epoch in (0, self.progressive.epochs):
            height, width = self.progressive.size if epoch < self.progressive.epochs else self._shape[:2]
            say(f"from epoch {epoch + 1}: images of {height}x{width}")

    def _note(self) -> str:
        done = self.at.epoch
        text = f"epoch {min(done + 1, self.epochs)} of {self.epochs}"
        if self.at.history and "val" in self.at.history[-1]:
            text += f"  val {self._shown(self.at.history[-1]['val'])}"
        return text

    def _shown(self, metrics: dict[str, float | None]) -> str:
        shown = self.task.info(self.task.monitors[0])
        value = metrics[shown.key]
        if value is None:
            return f"{shown.name.lower()} –"
        return f"{shown.name.lower()} " + (f"{100 * value:6.2f} %" if shown.percent else f"{value:.4f}")

    def _report(self, line: dict[str, Any]) -> None:
        if self.quiet:
            return
        epochs = self.epochs
        text = f"epoch {line['epoch']:>{len(str(epochs))}} of {epochs}  loss {line['train']['loss']:.4f}"
        if "val" in line:
            star = " *" if self.at.best_epoch == line["epoch"] else "  "
            loss = line["val"]["loss"]
            text += f"  val loss {'–' if loss is None else format(loss, '.4f')}  val {self._shown(line['val'])}{star}"
        done, total = self._cost(self._step), self._cost(epochs * self.batches_per_epoch)
        left = (total - done) * self.at.seconds / max(done, 1)
        text += f"  {line['seconds']:.1f} s" + (f"  {duration(left)} left" if left else "")
        say(text)

    def _save(self) -> None:
        if self.checkpoint is None or not self.ranks.first:
            return
        moments, rest = optimizer_tensors(self.optimizer)
        groups = {"model": self.model.state_dict(), "optimizer": moments, "sums": {"epoch": self._sums}}
        if self.ema:
            groups["ema"] = self.ema.model.state_dict()
        if self.swa:
            groups["swa"] = self.swa.model.state_dict()
        if self.best_weights is not None:
            groups["best"] = self.best_weights
        facts = {
            "position": copy.deepcopy(self.at.__dict__),
            "optimizer": rest,
            "schedule": self.schedule.state(),
            "scaler": self.scaler.state_dict(),
        }
        save_checkpoint(self.checkpoint, groups, facts)
        self._last_save = time.monotonic()

    def _restore(self) -> None:
        assert self.checkpoint is not None
        groups, facts = load_checkpoint(self.checkpoint)
        with restoring(self.checkpoint):
            self.model.load_state_dict(fitting(self.model, groups["model"]))
            restore_optimizer(self.optimizer, groups.get("optimizer", {}), facts["optimizer"])
            if self.ema:
                self.ema.model.load_state_dict(fitting(self.ema.model, groups["ema"]))
            if self.swa:
                self.swa.model.load_state_dict(fitting(self.swa.model, groups["swa"]))
            self.at = _position(facts["position"])
            self.best_weights = fitting(self.averaged, groups["best"]) if "best" in groups else None
            self._sums = groups["sums"]["epoch"].double().reshape(4)
            self.schedule.restore(facts["schedule"])
            if facts["scaler"]:
                self.scaler.load_state_dict(facts["scaler"])
        self.on_epoch(self.at.history)
        if not self.quiet:
            say(f"resumed after epoch {self.at.epoch}, batch {self.at.batch} of {self.batches_per_epoch}")


def _position(fields: dict[str, Any]) -> Position:
    """The position in a checkpoint. Older versions used other keys in the history."""
    history = [{OLD_KEYS.get(key, key): value for key, value in line.items()} for line in fields["history"]]
    for line in history:
        read_epoch(line, "the history in the checkpoint")
    return TypeAdapter(Position).validate_python({**fields, "history": history})


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Turn Ctrl-C and SIGTERM into an event, so that a step is not cut off. A second Ctrl-C raises KeyboardInterrupt."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(signum: int, frame: Any) -> None:
        if stop.is_set() and signum == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
