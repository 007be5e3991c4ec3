"""What was trained and how, how it went, and what it cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from petriscope.augment import AUGMENTATIONS
from petriscope.augment.base import Mixing
from petriscope.core.progress import duration
from petriscope.core.recipe import Part, Recipe
from petriscope.report import wording
from petriscope.report.charts import Series, line_chart
from petriscope.report.gallery import has_decoder, trains_decoder

EPOCH_COLUMNS: tuple[tuple[str, tuple[str, ...], Callable[[Any], str]], ...] = (
    ("train loss", ("train", "loss"), wording.decimal),
    ("train accuracy", ("train", "accuracy"), wording.percent),
    ("val loss", ("val", "loss"), wording.decimal),
    ("val accuracy", ("val", "accuracy"), wording.percent),
    ("val balanced", ("val", "balanced_accuracy"), wording.percent),
    ("val macro F1", ("val", "macro_f1"), wording.percent),
    ("val mean IoU", ("val", "miou"), wording.percent),
    ("learning rate", ("lr",), lambda value: f"{value:.3g}" if wording.known(value) else wording.NONE),
    ("seconds", ("seconds",), lambda value: f"{value:.1f}" if wording.known(value) else wording.NONE),
)


def facts(
    recipe: Recipe,
    environment: dict[str, Any],
    training: dict[str, Any] | None,
    cost: dict[str, Any] | None,
    history: list[dict[str, Any]],
    ensemble: dict[str, Any] | None,
) -> list[tuple[str, str]]:
    data = environment.get("data") or {}
    shape = data.get("shape")
    parameters = (cost or {}).get("parameters") or environment.get("parameters")
    settings, augment_val = recipe.training, recipe.evaluation.augment_val
    plain = "the final metrics are of plain images"
    options = {key: value for key, value in recipe.model.options.items() if key != "weights"}
    each = settings.images_per_epoch
    an_epoch = "" if each is None else f", {wording.plural(each, 'image')} an epoch"
    facts = [
        ("Data", str(data.get("source") or recipe.data.source or wording.NONE)),
        ("Images", f"{shape[0]} × {shape[1]} pixels, {'gray' if shape[2] == 1 else 'color'}" if shape else ""),
        ("Normalization", wording.normalization(recipe.data.normalize, recipe.model, environment.get("normalize"))),
        ("Model", wording.part(Part(name=recipe.model.name, **options))),
        ("Parameters", wording.count(parameters) if parameters else ""),
        ("Initial weights", wording.initial_weights(recipe.model)),
        ("Fine-tuning", wording.finetuning(recipe.finetune, settings.epochs)),
        ("Loss", wording.part(recipe.loss)),
        ("Distilled from", wording.distillation(recipe.distill)),
        ("Optimizer", f"{wording.part(recipe.optimizer)}, schedule {wording.part(recipe.schedule)}"),
        ("Averaging", wording.averaging(settings)),
        ("Batches", wording.plural(settings.batch_size, "image") + an_epoch),
        ("Sampler", "" if recipe.sampler == "none" else recipe.sampler),
        ("Epochs", _epoch_words(recipe, training, history)),
        ("Progressive resizing", wording.progressive(settings)),
        ("Augmentation", _parts(recipe.augment) or "none"),
        ("Val augmented", f"{_parts(augment_val)}, while training; {plain}" if augment_val else ""),
        ("Device", str(environment.get("device") or "")),
        ("Precision", str(environment.get("precision") or recipe.training.precision)),
        ("Seed", str(recipe.seed)),
        ("Started", wording.date(environment.get("started"))),
    ]
    if ensemble is not None:  # the members' own pages say how they were trained
        shared = ("Data", "Images", "Parameters", "Device", "Precision", "Started")
        facts = [("Model", recipe.about), *(fact for fact in facts if fact[0] in shared)]
    return [(name, value) for name, value in facts if value]


def _parts(parts: Sequence[Part]) -> str:
    return ", ".join(map(wording.part, parts))


def _epoch_words(recipe: Recipe, training: dict[str, Any] | None, history: list[dict[str, Any]]) -> str:
    planned = recipe.training.epochs
    if training is None:
        return f"{len(history)} of {planned} done"
    done = int(training.get("epochs") or len(history))
    words = f"{done}" + ("" if done >= planned else f" of {planned} (stopped early)")
    if training.get("kept") == "best":
        monitor = str(training.get("monitor")).replace("_", " ")
        return f"{words}; kept: epoch {training.get('best_epoch')}, best by val {monitor}"
    return f"{words}; kept: the last"


def curves(history: list[dict[str, Any]], training: dict[str, Any] | None, recipe: Recipe) -> dict[str, Any]:
    kept = None
    if training is not None and history:
        kept = training.get("best_epoch") if training.get("kept") == "best" else history[-1]["epoch"]

    def points(*path: str) -> tuple[tuple[float, float], ...]:
        found = ((line["epoch"], _dig(line, path)) for line in history)
        return tuple((float(epoch), float(value)) for epoch, value in found if wording.known(value))

    train_val = [("train", "a"), ("val", "b")]
    loss = [Series(name, style, points(name, "loss")) for name, style in train_val]
    accuracy = [Series(name, style, points(name, "accuracy")) for name, style in train_val]
    overlap = [Series("val", "b", points("val", "miou"))]
    rates = [Series("rate", "b", points("lr"))]
    charts = [
        ("Loss", line_chart("Loss", loss, lambda v: f"{v:.3g}", kept)),
        ("Accuracy", line_chart("Accuracy", accuracy, _share, kept, share=True)),
        ("Mean IoU", line_chart("Mean IoU", overlap, _share, kept, share=True)),
        ("Learning rate, at the end of each epoch", line_chart("Learning rate", rates, lambda v: f"{v:.2g}", kept)),
    ]
    return {"charts": [(title, chart) for title, chart in charts if chart], "notes": _curve_notes(history, recipe)}


def _curve_notes(history: list[dict[str, Any]], recipe: Recipe) -> list[str]:
    """What each curve was measured on."""
    if not history:
        return []
    mixed = any(_mixes(part) for part in recipe.augment)
    images = "augmented and mixed" if mixed else "augmented" if recipe.augment else "the training"
    loss = f"the recipe's loss, {wording.part(recipe.loss)}"
    more = ["the teachers'"] if recipe.distill else []
    more += ["that of the reconstructions"] if has_decoder(recipe) and trains_decoder(recipe) else []
    loss += f", and {' and '.join(more)}" if more else ""
    train = f"Train loss and accuracy are measured during the epoch, on {images} images, with {loss}."
    if mixed and not any("miou" in (line.get("val") or {}) for line in history):  # a pixel of a mask has one class
        train += (
            " A mixed image counts as right if it is given the class it holds most of, so train accuracy is lower "
            "than on plain images."
        )
    notes = [train]
    if smaller := wording.progressive(recipe.training):
        notes.append(f"Trained {smaller}; val is always of whole ones, so its metrics rise where the size does.")
    if any(line.get("val") for line in history):
        settings, parts = recipe.training, recipe.evaluation.augment_val
        averaged = "" if settings.ema is None and settings.swa is None else ", with averaged weights"
        on = f"val images augmented by {_parts(parts)}, the same in every epoch" if parts else "plain images"
        better = "it can lie on the better side of train"
        final = "the final metrics on val are of plain images"
        notes.append(
            f"Val is measured after the epoch, on {on}{averaged}, its loss as negative log-likelihood; "
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


def epochs(history: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """The history as the columns and rows of a table; metrics that no epoch has are left out."""
    columns = [
        (name, path, write)
        for name, path, write in EPOCH_COLUMNS
        if not history or any(_dig(line, path) is not None for line in history)
    ]
    rows = [[str(line["epoch"]), *(write(_dig(line, path)) for _, path, write in columns)] for line in history]
    return {"columns": ["epoch", *(name for name, _, _ in columns)], "rows": rows}


def _dig(line: dict[str, Any], path: Sequence[str]) -> Any:
    value: Any = line
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def cost(cost: dict[str, Any] | None, training: dict[str, Any] | None) -> list[tuple[str, str]]:
    cost, training = cost or {}, training or {}
    out = []
    if wording.known(cost.get("parameters")):
        out.append(("Parameters", wording.count(cost["parameters"])))
    if wording.known(cost.get("multiply_adds")):
        out.append(("Multiply-adds for an image", wording.short(cost["multiply_adds"])))
    if wording.known(cost.get("bytes_fp32")):
        out.append(("Weights in fp32", f"{cost['bytes_fp32'] / 1e6:,.1f} MB"))
    if wording.known(training.get("seconds")):
        out.append(("Training time", duration(training["seconds"])))
    if wording.known(training.get("seconds_per_epoch")):
        out.append(("Time for an epoch", duration(training["seconds_per_epoch"])))
    if wording.known(training.get("images_per_second")):
        out.append(("Training rate", f"{wording.rate(training['images_per_second'])} images/s"))
    if wording.known(cost.get("inference_images_per_second")):
        inference = wording.rate(cost["inference_images_per_second"])
        out.append(("Inference rate, without test-time augmentation", f"{inference} images/s"))
    return out
