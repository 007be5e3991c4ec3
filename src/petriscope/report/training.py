"""What was trained and how, the course of training, and its cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from petriscope.augment import AUGMENTATIONS
from petriscope.augment.base import Mixing
from petriscope.core.progress import duration
from petriscope.core.recipe import Part, Recipe
from petriscope.core.results import Budgeted, Cost, Environment, Epoch, Results, TrainingSummary
from petriscope.report import wording
from petriscope.report.charts import Series, line_chart
from petriscope.report.gallery import has_decoder, trains_decoder
from petriscope.report.metrics import in_sentence
from petriscope.tasks import MetricInfo, Task

OF_ENSEMBLES = (
    "Data",
    "Images",
    "Scale",
    "Parameters",
    "Device",
    "Precision",
    "Started",
)  # the rest is on the members' pages


@dataclass(frozen=True)
class Curves:
    """Titles and charts, and sentences on what they were measured on."""

    charts: list[tuple[str, Markup]]
    notes: list[str]


@dataclass(frozen=True)
class EpochTable:
    columns: list[str]
    rows: list[list[str]]


def facts(
    recipe: Recipe, environment: Environment, results: Results, history: Sequence[Epoch]
) -> list[tuple[str, str]]:
    """Terms and values that describe the data, the model and the training."""
    shape, settings, augment_val = environment.data.shape, recipe.training, recipe.evaluation.augment_val
    parameters = results.cost.parameters if results.cost is not None else environment.parameters
    options = {key: value for key, value in recipe.model.options.items() if key != "weights"}
    per_epoch = settings.images_per_epoch
    each_epoch = "" if per_epoch is None else f", {wording.plural(per_epoch, 'image')} per epoch"
    on_val = f"{_parts(augment_val)}, during training; the final metrics are of plain images" if augment_val else ""
    facts = [
        ("Data", environment.data.source or recipe.data.origin or wording.NONE),
        ("Domains", _domains(recipe, environment)),
        ("Left out", "" if recipe.data.leave_out is None else f"the domain {recipe.data.leave_out}, which is test"),
        ("Images", f"{shape[0]} × {shape[1]} pixels, {'gray' if shape[2] == 1 else 'color'}" if shape else ""),
        ("Channels", wording.channels(recipe.data)),
        ("Scale", wording.scales(recipe.data)),
        ("Normalization", wording.normalization(recipe.data.normalize, recipe.model, environment.normalize)),
        ("Model", wording.part(Part(name=recipe.model.name, **options))),
        ("Parameters", wording.count(parameters) if parameters else ""),
        ("Initial weights", wording.initial_weights(recipe.model)),
        ("Fine-tuning", wording.finetuning(recipe.finetune, settings.epochs)),
        ("Loss", wording.part(recipe.loss)),
        ("Distilled from", wording.distillation(recipe.distill)),
        ("Optimizer", f"{wording.part(recipe.optimizer)}, schedule {wording.part(recipe.schedule)}"),
        ("Averaging", wording.averaging(settings)),
        ("Batches", wording.plural(settings.batch_size, "image") + each_epoch),
        ("Sampler", "" if recipe.sampler == "none" else recipe.sampler),
        ("Epochs", _epochs(recipe, results.training, history)),
        ("Progressive resizing", wording.progressive(settings)),
        ("Augmentation", _parts(recipe.augment) or "none"),
        ("Val augmented", on_val),
        ("Device", environment.device),
        ("Precision", environment.precision or settings.precision),
        ("Seed", str(recipe.seed)),
        *_plan(results.budget),
        ("Started", wording.date(environment.started)),
    ]
    if results.joined:
        facts = [("Model", recipe.about), *(fact for fact in facts if fact[0] in OF_ENSEMBLES)]
    return [(name, value) for name, value in facts if value]


def _domains(recipe: Recipe, environment: Environment) -> str:
    """How many images of each domain are in which split, and how often they are drawn where that differs."""
    sources, words = recipe.data.sources or {}, []
    weighted = len({each.weight for each in sources.values()}) > 1
    for name, sizes in environment.data.domains.items():
        weight = f", weight {sources[name].weight:g}" if weighted and name in sources else ""
        words.append(f"{name} ({', '.join(f'{split} {count:,}' for split, count in sizes.items())}{weight})")
    return ", ".join(words)


def _plan(budget: Budgeted | None) -> list[tuple[str, str]]:
    """What a training without a recipe was given, and its plan."""
    if budget is None:
        return []
    given = f"{budget.minutes:g} {'processor ' * budget.processor}minutes"
    lines = (line.partition(" ") for line in budget.plan)
    return [("Planned for", given), *((f"Plan: {name}", text.strip()) for name, _, text in lines)]


def _parts(parts: Sequence[Part]) -> str:
    return ", ".join(map(wording.part, parts))


def _epochs(recipe: Recipe, training: TrainingSummary | None, history: Sequence[Epoch]) -> str:
    planned = recipe.training.epochs
    if training is None:
        return f"{len(history)} of {planned} done"
    if training.epochs is None and not history:
        return ""  # the model is made of others
    done = training.epochs or len(history)
    words = str(done) if done >= planned else f"{done} of {planned} (stopped early)"
    if corrections := recipe.training.corrections:
        words += f" ({corrections[0].before} were planned at first)"
    if (ended := recipe.training.ended) is not None:
        words += f"; the budget ended the last after {wording.plural(ended.steps, 'step')}"
    if training.kept == "best":
        monitor = str(training.monitor).replace("_", " ")
        return f"{words}; kept: epoch {training.best_epoch}, the best by val {monitor}"
    return f"{words}; kept: the last"


def curves(task: Task, history: Sequence[Epoch], training: TrainingSummary | None, recipe: Recipe) -> Curves:
    """Charts of the loss, of each metric that the task monitors, and of the learning rate."""
    kept = None
    if training is not None and history:
        kept = training.best_epoch if training.kept == "best" else history[-1].epoch

    def on_train(key: str) -> Series:
        return _series("train", "a", history, lambda epoch: epoch.train.get(key))

    def on_val(key: str) -> Series:
        return _series("val", "b", history, lambda epoch: (epoch.val or {}).get(key))

    charts = [("Loss", line_chart("Loss", [on_train("loss"), on_val("loss")], _three_digits, kept))]
    for info in _monitored(task):
        series, write = [on_train(info.key), on_val(info.key)], _share if info.percent else _three_digits
        charts.append((info.name, line_chart(info.name, series, write, kept, share=info.percent)))
    rate = _series("rate", "b", history, lambda epoch: epoch.lr)
    title = "Learning rate, at the end of each epoch"
    charts.append((title, line_chart("Learning rate", [rate], lambda value: f"{value:.2g}", kept)))
    return Curves([(title, chart) for title, chart in charts if chart], _curve_notes(task, history, recipe))


def _monitored(task: Task) -> list[MetricInfo]:
    """The metrics that the task monitors, besides the loss."""
    return [task.info(key) for key in task.monitors if key != "loss"]


def _series(name: str, style: str, history: Sequence[Epoch], value: Callable[[Epoch], float | None]) -> Series:
    found = ((epoch.epoch, value(epoch)) for epoch in history)
    return Series(name, style, tuple((float(at), float(y)) for at, y in found if y is not None and wording.known(y)))


def _curve_notes(task: Task, history: Sequence[Epoch], recipe: Recipe) -> list[str]:
    """Which images and which loss each curve was measured with."""
    if not history:
        return []
    mixed = any(_mixes(part) for part in recipe.augment)
    images = "augmented and mixed images" if mixed else "augmented images" if recipe.augment else "the training images"
    loss = f"the loss of the recipe, {wording.part(recipe.loss)}"
    more = ["the distillation loss"] if recipe.distill else []
    more += ["the reconstruction loss"] if has_decoder(recipe) and trains_decoder(recipe) else []
    loss += f", plus {' and '.join(more)}" if more else ""
    train = f"Train loss and accuracy are measured during the epoch on {images}, with {loss}."
    if mixed and not task.dense:  # each pixel of a mixed mask still has one class
        train += (
            " A mixed image counts as correct if the prediction is the class that it contains most of, so train "
            "accuracy is lower than on plain images."
        )
    notes = [train]
    if smaller := wording.progressive(recipe.training):
        notes.append(
            f"Training used {smaller}. Val always uses full-size images, so its metrics rise where the size changes."
        )
    if any(epoch.val for epoch in history):
        settings, parts = recipe.training, recipe.evaluation.augment_val
        averaged = "" if settings.ema is None and settings.swa is None else ", with averaged weights"
        on = f"val images augmented by {_parts(parts)}, the same in every epoch" if parts else "plain images"
        better = "Val can be better than train"
        final = "The final metrics on val are of plain images"
        notes.append(
            f"Val is measured after the epoch on {on}{averaged}; its loss is the negative log-likelihood. "
            f"{final if parts else better}."
        )
    return notes


def _mixes(part: Part) -> bool:
    if part.name not in AUGMENTATIONS.members:
        return False
    member = AUGMENTATIONS.find(part.name)
    return isinstance(member, type) and issubclass(member, Mixing)


def _share(value: float) -> str:
    text = f"{100 * value:.1f}"
    return (text[:-2] if text.endswith(".0") else text) + " %"


def _three_digits(value: float) -> str:
    return f"{value:.3g}"


def epoch_table(task: Task, history: Sequence[Epoch]) -> EpochTable:
    """One row per epoch; metrics that no epoch has are left out."""
    infos = [task.info("loss"), *_monitored(task)]
    columns: list[tuple[str, list[str]]] = []

    def add(name: str, values: Sequence[float | None], write: Callable[[float | None], str]) -> None:
        if any(value is not None for value in values):
            columns.append((name, list(map(write, values))))

    add("epoch", [epoch.epoch for epoch in history], wording.count)
    for info in infos:
        add(f"train {in_sentence(info)}", [epoch.train.get(info.key) for epoch in history], _writer(info))
    for info in infos:
        add(f"val {in_sentence(info)}", [(epoch.val or {}).get(info.key) for epoch in history], _writer(info))
    add("learning rate", [epoch.lr for epoch in history], lambda value: _digits(value, ".3g"))
    add("seconds", [epoch.seconds for epoch in history], lambda value: _digits(value, ".1f"))
    rows = [[cells[k] for _, cells in columns] for k in range(len(history))]
    return EpochTable([name for name, _ in columns], rows)


def _writer(info: MetricInfo) -> Callable[[float | None], str]:
    return wording.percent if info.percent else wording.decimal


def _digits(value: float | None, form: str) -> str:
    return format(value, form) if wording.known(value) else wording.NONE


def cost(cost: Cost | None, training: TrainingSummary | None) -> list[tuple[str, str]]:
    """Terms and values: size of the model, time and rates."""
    out = []
    if cost is not None:
        out += [
            ("Parameters", wording.count(cost.parameters)),
            ("Multiply-adds per image", wording.short(cost.multiply_adds)),
            ("Weights in fp32", f"{cost.bytes_fp32 / 1e6:,.1f} MB"),
        ]
    if training is not None and training.seconds is not None:
        out.append(("Training time", duration(training.seconds)))
    if training is not None and training.seconds_per_epoch is not None:
        out.append(("Time per epoch", duration(training.seconds_per_epoch)))
    if training is not None and training.images_per_second is not None:
        out.append(("Training rate", f"{wording.rate(training.images_per_second)} images/s"))
    if cost is not None:
        rate = wording.rate(cost.inference_images_per_second)
        out.append(("Inference rate, without test-time augmentation", f"{rate} images/s"))
    return out
