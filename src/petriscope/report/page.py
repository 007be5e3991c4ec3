"""The page of a run, made from the files of its folder alone."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from petriscope.augment import AUGMENTATIONS
from petriscope.augment.base import Mixing
from petriscope.data.imageset import SPLITS
from petriscope.evaluation.metrics import calibration_bins
from petriscope.files import write_text
from petriscope.models import MODELS
from petriscope.progress import duration
from petriscope.recipe import Part, Recipe
from petriscope.report import rendering, segments, wording
from petriscope.report.error_analysis import errors
from petriscope.report.explanations import looks
from petriscope.report.figures import Picture, Series, interval_mark, line_chart, picture, reliability
from petriscope.report.segments import SegmentView, segment_view
from petriscope.report.silence import silence_views
from petriscope.report.stress import StressView, stress_view
from petriscope.run import Run

if TYPE_CHECKING:
    import pandas as pd
    from markupsafe import Markup

MOST_CLASSES_IN_MATRIX = 60  # a larger matrix is no longer read
FOLD_CLASSES_FROM = 16  # long tables of classes are folded where they are not the point
CONFUSIONS_NAMED = 5
MISTAKES_SHOWN = 48
MISTAKES_OPEN = 12  # the rest is folded
AUDITED_LISTED = 100
AUGMENTED_SHOWN = (12, 12)

# key, name, what it means, written as a share
FIGURES = (
    ("accuracy", "Accuracy", "share of pictures given their true class", True),
    ("balanced_accuracy", "Balanced accuracy", "mean of the classes' recalls: each class counts the same", True),
    ("macro_precision", "Macro precision", "mean of the classes' precisions", True),
    ("macro_f1", "Macro F1", "mean of the classes' F1 scores", True),
    ("auc", "AUC", "area under the ROC curve, one class against the rest, mean; 0.5 is chance", False),
    ("nll", "NLL", "negative log-likelihood of the true class; lower is better", False),
    ("brier", "Brier score", "squared error of the probabilities, 0 to 2; lower is better", False),
    ("ece", "ECE", "gap between confidence and accuracy, over 15 bins; lower is better", True),
)
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
TTA_WORDS = {
    "mirror": "the mean over each picture and its left-right mirror image (test-time augmentation: mirror)",
    "flips": "the mean over 4 mirror images of each picture (test-time augmentation: flips)",
    "crops": "the mean over each picture and five crops of it, enlarged (test-time augmentation: crops)",
    "d4": "the mean over 8 flips and quarter turns of each picture (test-time augmentation: d4)",
}


@dataclass(frozen=True)
class Cell:
    """A cell of the confusion matrix."""

    count: int
    rate: str
    shade: float  # opacity, 0 to 1
    hit: bool


@dataclass(frozen=True)
class Mistake:
    shown: Picture
    id: str
    true: str = ""
    predicted: str = ""
    confidence: str = ""


@dataclass(frozen=True)
class Reconstruction:
    """A picture, and what an autoencoder made of it."""

    shown: Picture
    made: Picture
    id: str
    error: str


@dataclass(frozen=True)
class SplitView:
    """What the page says of a split that was evaluated."""

    name: str
    figures: dict[str, Any]
    classes: list[str]
    matrix: list[tuple[str, list[Cell], int]]
    confusions: list[str]
    per_class: list[dict[str, Any]]
    mark_floor: str
    mistakes: list[Mistake]
    mistakes_total: int
    calibration: Markup | None
    calibration_words: str
    missing: list[str] = field(default_factory=list)

    @property
    def n(self) -> int:
        return int(self.figures["n"])


def write_report(run: Run) -> Path:
    """Write ``report.html`` into the run folder from what is in it, and give its path."""
    path = run.folder / "report.html"
    write_text(path, render(run))
    return path


def render(run: Run) -> str:
    """The page as one string of HTML that refers to nothing outside itself."""
    return rendering.render("report.html", _context(run))


def _context(run: Run) -> dict[str, Any]:
    recipe, history, results = run.recipe, run.history, run.results
    environment = run.environment if (run.folder / "environment.json").is_file() else {}
    predictions, gallery = run.predictions, run.gallery
    data = environment.get("data") or {}
    splits = data.get("splits") or {}
    evaluated = _evaluated(results)
    masks = [segment_view(name, results[name], gallery) for name in evaluated if "miou" in results[name]]
    views = [_split_view(run, name, results[name], predictions, gallery) for name in evaluated if not masks]
    judged: list[SplitView] | list[SegmentView] = masks or views
    training = results.get("training")
    folder = shlex.quote(str(run.folder))
    stress = stress_view(results, gallery)
    return {
        "recipe": recipe,
        "folder": folder,
        "views": views,
        "first": views[0] if views else None,
        "judged": judged[0] if judged else None,
        "others": views[1:],
        "segments": masks,
        "notes": _notes(judged, recipe),
        "open_mistakes": MISTAKES_OPEN,
        "finished": training is not None,
        "headline": segments.headline(masks[0]) if masks else _headline(views, history, recipe),
        "standing": _standing(judged, splits, training, history, recipe, folder) + _under_stress(stress),
        "stress": stress,
        "alarm": _alarm(results, folder, environment),
        "facts": _facts(recipe, environment, training, results.get("cost"), history, results.get("ensemble")),
        "ensemble": _ensemble(results.get("ensemble")),
        "composition": _composition(data),
        "fold_from": FOLD_CLASSES_FROM,
        "balance": _imbalance(data),
        "audited": _audited(run, recipe, data),
        "warnings": data.get("warnings") or [],
        "curves": _curves(history, training, recipe),
        "history": history,
        "epochs": _epochs(history),
        "figures": segments.figure_rows(masks) if masks else _figure_rows(views),
        "most_classes": MOST_CLASSES_IN_MATRIX,
        "augmented": _augmented(gallery.get("augmented")),
        "reconstructions": _reconstructions(gallery, recipe),
        "silence": silence_views([view.name for view in views], results, predictions),
        "errors": errors([view.name for view in views], results, gallery),
        "looks": looks([view.name for view in judged], results, gallery, predictions),
        "cost": _cost(results.get("cost"), training),
        "repeat": _repeat(run.folder, recipe, environment, results),
        "yaml": recipe.to_yaml(),
    }


def _evaluated(results: dict[str, Any]) -> list[str]:
    """The splits that have figures, the one that counts first."""
    order = ("test", "val", "train")
    return [name for name in order if isinstance(results.get(name), dict) and results[name].get("n")]


def _split_view(
    run: Run, name: str, figures: dict[str, Any], predictions: pd.DataFrame, gallery: dict[str, np.ndarray]
) -> SplitView:
    per_class = figures.get("per_class") or {}
    classes = list(per_class)
    confusion = np.array(figures.get("confusion") or np.zeros((0, 0)), dtype=np.int64)
    rows = predictions[predictions["split"] == name] if len(predictions) else predictions
    floor = _floor(per_class)
    missing = []
    again = f"petriscope evaluate {shlex.quote(str(run.folder))}" + ("" if name == "test" else f" --split {name}")
    if not len(rows):
        missing.append(f"The predictions on {name} are not in the run folder. {again} adds them.")
    return SplitView(
        name=name,
        figures=figures,
        classes=classes,
        matrix=_matrix(confusion, classes),
        confusions=_confusions(confusion, classes),
        per_class=_class_rows(per_class, floor),
        mark_floor=wording.percent(floor, 0),
        mistakes=_mistakes(name, rows, gallery),
        mistakes_total=int(confusion.sum() - np.trace(confusion)),
        calibration=_calibration(rows, name),
        calibration_words=_calibration_words(rows, figures),
        missing=missing,
    )


def _notes(views: Sequence[SplitView | SegmentView], recipe: Recipe) -> list[str]:
    """How the predictions were made and of what, where that is not plain."""
    notes = []
    for tta, words in TTA_WORDS.items():
        names = [view.name for view in views if view.figures.get("tta") == tta]
        if names:
            where = "" if len(names) == len(views) else f" on {' and '.join(names)}"
            notes.append(f"Each prediction{where} is {words}.")
    for view in views:
        source = view.figures.get("source")
        if source and source != recipe.data.source:
            notes.append(f"The {view.name} pictures came from {source}, not from the source trained on.")
        if view.name == "train":
            notes.append("The model learned the train pictures: figures on train say nothing about new ones.")
    return notes


# ------------------------------------------------------------------------------------------------ what is said on top


def _headline(views: list[SplitView], history: list[dict[str, Any]], recipe: Recipe) -> dict[str, str]:
    if not views:
        val = history[-1].get("val") if history else None
        if val:
            pictures = "augmented val pictures" if recipe.evaluation.augment_val else "val pictures"
            return {
                "big": wording.percent(val.get("accuracy")),
                "rest": f"of the {pictures} were classified correctly after epoch {history[-1]['epoch']} "
                f"of {recipe.training.epochs}. This is not a final figure.",
            }
        return {"big": "", "rest": "There are no figures on held-back pictures yet."}
    view = views[0]
    words = wording.span(view.figures.get("accuracy_ci95"))
    share = wording.percent(view.figures.get("accuracy"))
    tail = f" (95 % interval {words})" if words else ""
    rest = f"of {wording.plural(view.n, f'{view.name} picture')} classified correctly{tail}."
    mistakes = wording.plural(view.mistakes_total, "mistake") if view.mistakes_total else "No mistakes"
    return {"big": share, "rest": f"{rest} {mistakes}.{_worst_class(view)}"}


def _worst_class(view: SplitView) -> str:
    there = [row for row in view.per_class if row["n"]]
    if len(there) < 2 or not view.mistakes_total:
        return ""
    worst = min(there, key=lambda row: row["recall_value"])
    return f" The class found least often is {worst['name']}: recall {worst['recall']}."


def _standing(
    views: Sequence[SplitView | SegmentView],
    splits: dict[str, Any],
    training: dict[str, Any] | None,
    history: list[dict[str, Any]],
    recipe: Recipe,
    folder: str,
) -> list[tuple[str, str]]:
    """Sentences on what the headline stands on and what is missing, each with the command that adds it."""
    have = {view.name for view in views}
    out: list[tuple[str, str]] = []
    if training is None:
        out.append(
            (
                f"Training is not finished: {wording.plural(len(history), 'epoch')} of {recipe.training.epochs} done. "
                "It goes on with",
                f"petriscope train --resume {folder}",
            )
        )
    if "test" in have:
        out.append(("The test pictures were used neither to train nor to choose the weights kept.", ""))
        val = next((view for view in views if view.name == "val"), None)
        if val is not None:
            key, name = ("miou", "mean IoU") if "miou" in val.figures else ("accuracy", "accuracy")
            figure = wording.percent_with_interval(val.figures.get(key), val.figures.get(f"{key}_ci95"))
            out.append((f"On val, {_use_of_val(training)}, {name} is {figure}.", ""))
        return out
    if "val" in have:
        out.append((f"This figure is from val, {_use_of_val(training)}: expect a little less on new pictures.", ""))
    elif splits and "val" not in splits:
        out.append(("The data have no val split: no epoch was chosen, and the last weights are kept.", ""))
    elif "val" in splits and training is not None:
        out.append(("Val has not been evaluated.", f"petriscope evaluate {folder} --split val"))
    if training is None:
        out.append(("Figures with intervals, mistakes and calibration are added when it is done.", ""))
        return out
    if "test" in splits:
        size = wording.plural(int(splits["test"].get("pictures", 0)), "test picture")
        words = f"The {size} have not been looked at yet. When all choices are made:"
        out.append((words, f"petriscope evaluate {folder}"))
    else:
        out.append(
            (
                "There is no test split, so nothing here was measured on pictures untouched by choices. "
                "Figures on other labeled pictures:",
                f"petriscope evaluate {folder} --data SOURCE",
            )
        )
    return out


def _under_stress(stress: StressView | None) -> list[tuple[str, str]]:
    if stress is None:
        return []
    return [(f"On {stress.split} pictures that are disturbed, {stress.figure}: {stress.headline}.", "")]


def _use_of_val(training: dict[str, Any] | None) -> str:
    if training is not None and training.get("kept") == "best":
        return "which chose the weights kept"
    return "which is there to make choices on"


def _alarm(results: dict[str, Any], folder: str, environment: dict[str, Any]) -> tuple[str, str] | None:
    """Test so far below val that chance does not explain it."""
    test, val = (results.get(name) or {} for name in ("test", "val"))
    (_, high), (low, _) = (r.get("accuracy_ci95") or (None, None) for r in (test, val))
    if high is None or low is None or high >= low:
        return None
    gap = 100 * (val["accuracy"] - test["accuracy"])
    source = (environment.get("data") or {}).get("source") or "SOURCE"
    return (
        f"Test is {gap:.1f} points below val, and their intervals do not meet: more than chance. The splits may "
        "differ in origin, or val may hold copies of training pictures. To look for them:",
        f"petriscope data {shlex.quote(str(source))}",
    )


# ------------------------------------------------------------------------------------------------- what was trained


def _facts(
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
    plain = "the final figures are of plain pictures"
    options = {key: value for key, value in recipe.model.options.items() if key != "weights"}
    each = settings.pictures_per_epoch
    an_epoch = "" if each is None else f", {wording.plural(each, 'picture')} an epoch"
    facts = [
        ("Data", str(data.get("source") or recipe.data.source or wording.NONE)),
        ("Pictures", f"{shape[0]} × {shape[1]} pixels, {'gray' if shape[2] == 1 else 'color'}" if shape else ""),
        ("Normalization", wording.normalization(recipe.data.normalize, recipe.model, environment.get("normalize"))),
        ("Model", wording.part(Part(name=recipe.model.name, **options))),
        ("Parameters", wording.count(parameters) if parameters else ""),
        ("Initial weights", wording.initial_weights(recipe.model)),
        ("Fine-tuning", wording.finetuning(recipe.finetune, settings.epochs)),
        ("Loss", wording.part(recipe.loss)),
        ("Distilled from", wording.distillation(recipe.distill)),
        ("Optimizer", f"{wording.part(recipe.optimizer)}, schedule {wording.part(recipe.schedule)}"),
        ("Averaging", wording.averaging(settings)),
        ("Batches", wording.plural(settings.batch_size, "picture") + an_epoch),
        ("Balancing", "" if recipe.balance == "none" else recipe.balance),
        ("Epochs", _epoch_words(recipe, training, history)),
        ("Augmentation", _parts(recipe.augment) or "none"),
        ("Val augmented", f"{_parts(augment_val)}, while training; {plain}" if augment_val else ""),
        ("Device", str(environment.get("device") or "")),
        ("Precision", str(environment.get("precision") or recipe.training.precision)),
        ("Seed", str(recipe.seed)),
        ("Started", wording.date(environment.get("started"))),
    ]
    if ensemble is not None:  # the members' own pages say how they were trained
        shared = ("Data", "Pictures", "Parameters", "Device", "Precision", "Started")
        facts = [("Model", recipe.about), *(fact for fact in facts if fact[0] in shared)]
    return [(name, value) for name, value in facts if value]


def _ensemble(ensemble: dict[str, Any] | None) -> dict[str, Any] | None:
    """The members of an ensemble, and what joining them gained on val."""
    if ensemble is None:
        return None
    members = ensemble["members"]
    key, figure, test, of = "val_accuracy", "val accuracy", "McNemar's test", ""
    if "val_miou" in members[0]:
        key, figure, test, of = "val_miou", "val mean IoU", "paired test over scenes", " of mean IoU"
    special = ensemble.get("specialist")
    best = "the main model alone" if special else "its best member"
    low, high = (100 * bound for bound in ensemble["gain_ci95"])
    p = ensemble["p"]
    shown = "a difference" if p < 0.05 else "no difference shown"
    chose = "by what rule" if special else "among the members"
    gain = (
        f"On val the ensemble is {100 * ensemble['gain']:+.2f} points{of} from {best}, {ensemble['best_member']} "
        f"(95 % interval {low:+.2f} to {high:+.2f}; {test}, p = {p:.2g}: {shown}). Val chose {chose} "
        "and may flatter the ensemble; the comparison that counts is on test:"
    )
    rivals = members[:1] if special else members  # a specialist has other classes
    runs = " ".join(shlex.quote(row["run"]) for row in rivals)
    parts = ["all classes", f"{special['class']} alone"] if special else [f"{row['weight']:.3f}" for row in members]
    rows = [
        (row["run"], wording.percent(row[key]), part if row["taken"] else "left out")
        for row, part in zip(members, parts, strict=True)
    ]
    columns = (figure, "knows" if special else "weight")
    return {"rows": rows, "columns": columns, "gain": gain, "runs": runs, "rule": _rule(special)}


def _rule(special: dict[str, Any] | None) -> str:
    """By what rule a specialist was joined, and what that changed on val."""
    if special is None:
        return ""
    name, rule, tried = special["class"], special["rule"], special["rules_tried"]
    miou, iou = special["val_miou"], {key: wording.percent(value) for key, value in special["val_class_iou"].items()}
    alone = f"IoU of {name} is {iou['before']} by the main model, {iou['alone']} by the specialist alone"
    if rule == "never":
        return f"None of {tried} rules raised the mean IoU of val, so the specialist has no say. {alone}."
    share = rule["main_share"]
    score = "the specialist's probability"
    if share:
        score = f"{share:g} of the main model's probability and {1 - share:g} of the specialist's together"
    return (
        f"A pixel is {name} where {score} is above {rule['threshold']:g}; elsewhere it is what the main model finds "
        f"likeliest of the other classes. Val chose this of {tried} rules: its mean IoU goes from "
        f"{wording.percent(miou['before'])} to {wording.percent(miou['after'])}. {alone}, {iou['after']} joined."
    )


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


def _composition(data: dict[str, Any]) -> dict[str, Any] | None:
    """Pictures by class and split, each with its share of the largest of the split for a bar."""
    splits = data.get("splits") or {}
    names = [name for name in SPLITS if name in splits]
    classes = data.get("classes") or []
    if not names or not classes:
        return None
    counts = {name: list(splits[name].get("per_class") or []) for name in names}
    rows = []
    for k, label in enumerate(classes):
        cells = []
        for name in names:
            number = counts[name][k] if k < len(counts[name]) else 0
            cells.append((number, round(100 * number / max(1, *counts[name]), 1)))
        rows.append((label, cells))
    totals = [splits[name].get("pictures", 0) for name in names]
    return {"splits": names, "rows": rows, "totals": totals, "unit": _unit(data)}


def _audited(run: Run, recipe: Recipe, data: dict[str, Any]) -> dict[str, Any] | None:
    """What an audit's decisions left out and relabeled: a sentence, and the first rows of the list."""
    counts = data.get("audited") or {}
    if not counts:
        return None
    parts = []
    for decision, words in (("drop", "left out"), ("relabel", "relabeled")):
        splits = counts.get(decision) or {}
        if total := sum(splits.values()):
            where = ", ".join(f"{name} {splits[name]:,}" for name in SPLITS if name in splits)
            all_in = f" ({where})" if where else ""
            parts.append(f"{wording.plural(total, 'picture')} {'was' if total == 1 else 'were'} {words}{all_in}")
    said = f"By the decisions of the audit {recipe.data.audit}, {' and '.join(parts)}. Each is in audited.csv."
    rows = run.audited
    columns = [name for name in ("id", "split", "label", "decision", "new_label", "reason") if name in rows]
    return {
        "said": said,
        "columns": [name.replace("_", " ") for name in columns],
        "rows": rows[columns][:AUDITED_LISTED].to_numpy().tolist(),
        "more": max(len(rows) - AUDITED_LISTED, 0),
    }


def _imbalance(data: dict[str, Any]) -> str:
    counts = ((data.get("splits") or {}).get("train") or {}).get("per_class") or []
    if len(counts) < 2:
        return "There is only one class: every picture is right by definition." if len(counts) == 1 else ""
    if min(counts) == 0:
        absent = [c for c, n in zip(data.get("classes") or [], counts, strict=False) if n == 0]
        return f"No training picture of: {', '.join(map(str, absent))}."
    ratio = max(counts) / min(counts)
    if ratio <= 1.05:
        return ""
    return f"In train, the largest class has {ratio:.1f} times as many {_unit(data)} as the smallest."


def _unit(data: dict[str, Any]) -> str:
    """What classes are counted in."""
    return "labeled pixels" if data.get("targets") == "masks" else "pictures"


# -------------------------------------------------------------------------------------------------------- training


def _curves(history: list[dict[str, Any]], training: dict[str, Any] | None, recipe: Recipe) -> dict[str, Any]:
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
    pictures = "augmented and mixed" if mixed else "augmented" if recipe.augment else "the training"
    loss = f"the recipe's loss, {wording.part(recipe.loss)}"
    more = ["the teachers'"] if recipe.distill else []
    more += ["that of the reconstructions"] if _has_decoder(recipe) and _trains_decoder(recipe) else []
    loss += f", and {' and '.join(more)}" if more else ""
    train = f"Train loss and accuracy are measured during the epoch, on {pictures} pictures, with {loss}."
    if mixed:
        train += (
            " A mixed picture counts as right if it is given the class it holds most of, so train accuracy is lower "
            "than on plain pictures."
        )
    notes = [train]
    if any(line.get("val") for line in history):
        settings, parts = recipe.training, recipe.evaluation.augment_val
        averaged = "" if settings.ema is None and settings.swa is None else ", with averaged weights"
        on = f"val pictures augmented by {_parts(parts)}, the same in every epoch" if parts else "plain pictures"
        better = "it can lie on the better side of train"
        final = "the final figures on val are of plain pictures"
        notes.append(
            f"Val is measured after the epoch, on {on}{averaged}, its loss as negative log-likelihood; "
            f"{final if parts else better}."
        )
    return notes


def _has_decoder(recipe: Recipe) -> bool:
    return recipe.model.name in MODELS.members and hasattr(MODELS.find(recipe.model.name), "reconstruct")


def _trains_decoder(recipe: Recipe) -> bool:
    return recipe.model.options.get("reconstruction") != 0


def _mixes(part: Part) -> bool:
    if part.name not in AUGMENTATIONS.members:
        return False
    member = AUGMENTATIONS.find(part.name)
    return isinstance(member, type) and issubclass(member, Mixing)


def _share(value: float) -> str:
    text = f"{100 * value:.1f}"
    return (text[:-2] if text.endswith(".0") else text) + " %"


def _dig(line: dict[str, Any], path: Sequence[str]) -> Any:
    value: Any = line
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _epochs(history: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """The history as the columns and rows of a table; figures that no epoch has are left out."""
    columns = [
        (name, path, write)
        for name, path, write in EPOCH_COLUMNS
        if not history or any(_dig(line, path) is not None for line in history)
    ]
    rows = [[str(line["epoch"]), *(write(_dig(line, path)) for _, path, write in columns)] for line in history]
    return {"columns": ["epoch", *(name for name, _, _ in columns)], "rows": rows}


# -------------------------------------------------------------------------------------------------------- figures


def _figure_rows(views: list[SplitView]) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Name, meaning, and for each split the figure and its interval."""
    rows = []
    for key, name, meaning, share in FIGURES:
        cells = []
        for view in views:
            value, ci95 = view.figures.get(key), view.figures.get(f"{key}_ci95")
            write = wording.percent_with_interval if share else wording.decimal_with_interval
            text = write(value, ci95)
            figure, _, interval = text.partition(" (")
            cells.append((figure, f"({interval}" if interval else ""))
        if any(view.figures.get(key) is not None for view in views):
            rows.append((name, meaning, cells))
    return rows


def _matrix(confusion: np.ndarray, classes: list[str]) -> list[tuple[str, list[Cell], int]]:
    if not len(classes) or len(classes) > MOST_CLASSES_IN_MATRIX or confusion.shape != (len(classes),) * 2:
        return []
    out = []
    for i, name in enumerate(classes):
        total = int(confusion[i].sum())
        cells = []
        for j, number in enumerate(confusion[i].tolist()):
            rate = number / total if total else 0.0
            # Errors are rare: by the root of their rate they show at all.
            shade = rate if i == j else rate**0.5
            cells.append(Cell(number, wording.percent(rate, 1), round(shade, 3), i == j))
        out.append((name, cells, total))
    return out


def _confusions(confusion: np.ndarray, classes: list[str]) -> list[str]:
    """The most frequent mistakes, in words."""
    off = confusion.copy()
    if not off.size or off.shape != (len(classes),) * 2:
        return []
    np.fill_diagonal(off, 0)
    order = np.argsort(-off, axis=None, kind="stable")[:CONFUSIONS_NAMED]
    out = []
    for i, j in zip(*np.unravel_index(order, off.shape), strict=True):
        if off[i, j]:
            share = wording.percent(off[i, j] / confusion[i].sum(), 1)
            out.append(f"{classes[i]} taken for {classes[j]}: {off[i, j]:,} of {confusion[i].sum():,} ({share})")
    return out


def _floor(per_class: dict[str, Any]) -> float:
    """Where the scale of the recalls begins: a round share below the lowest interval."""
    lows = [row["recall_ci95"][0] for row in per_class.values() if row.get("n")]
    return max(0.0, np.floor(10 * min(lows)) / 10) if lows else 0.0


def _class_rows(per_class: dict[str, Any], floor: float) -> list[dict[str, Any]]:
    rows = []
    for name, row in per_class.items():
        there = bool(row.get("n"))
        ci95 = row.get("recall_ci95") if there else None
        rows.append(
            {
                "name": name,
                "n": int(row.get("n") or 0),
                "precision": wording.percent(row.get("precision")) if there else wording.NONE,
                "recall_value": row.get("recall") or 0.0,
                "recall": wording.percent_with_interval(row.get("recall"), ci95) if there else wording.NONE,
                "mark": interval_mark(row.get("recall"), ci95, floor) if there else "",
                "f1": wording.percent(row.get("f1")) if there else wording.NONE,
                "auc": wording.decimal(row.get("auc")),
            }
        )
    return rows


def _mistakes(name: str, rows: pd.DataFrame, gallery: dict[str, np.ndarray]) -> list[Mistake]:
    pictures, ids = gallery.get(f"mistakes_{name}"), gallery.get(f"mistakes_{name}_ids")
    if pictures is None:
        return []
    names = [str(i) for i in ids] if ids is not None else [""] * len(pictures)
    columns = {"id", "target", "predicted", "confidence"}
    wrong = rows[rows["target"] != rows["predicted"]] if columns <= set(rows.columns) else None
    by_id = {} if wrong is None else {str(row["id"]): row for row in wrong.to_dict("records")}
    out = []
    for pixels, key in list(zip(pictures, names, strict=False))[:MISTAKES_SHOWN]:
        row = by_id.get(key)
        if row is None:
            out.append(Mistake(picture(pixels), key))
            continue
        confidence = wording.percent(float(row["confidence"]), 1)
        out.append(Mistake(picture(pixels), key, str(row["target"]), str(row["predicted"]), confidence))
    return out


def _calibration(rows: pd.DataFrame, name: str) -> Markup | None:
    if not {"target", "predicted", "confidence"} <= set(rows.columns) or not len(rows):
        return None
    correct = (rows["target"] == rows["predicted"]).to_numpy().astype(float)
    return reliability(calibration_bins(rows["confidence"].to_numpy(dtype=float), correct), name)


def _calibration_words(rows: pd.DataFrame, figures: dict[str, Any]) -> str:
    if not {"target", "predicted", "confidence"} <= set(rows.columns) or not len(rows):
        return ""
    confidence, accuracy = float(rows["confidence"].mean()), float((rows["target"] == rows["predicted"]).mean())
    gap = 100 * (confidence - accuracy)
    verdict = "on the whole, as sure as right"
    if abs(gap) >= 0.05:
        verdict = f"{abs(gap):.1f} points too {'sure' if gap > 0 else 'unsure'} on the whole"
    ece = wording.percent_with_interval(figures.get("ece"), figures.get("ece_ci95"))
    return (
        f"Mean confidence is {wording.percent(confidence)} at an accuracy of {wording.percent(accuracy)}: {verdict}. "
        f"Expected calibration error: {ece}."
    )


# ------------------------------------------------------------------------------------------ input, cost, repetition


def _augmented(pictures: np.ndarray | None) -> list[list[Picture]]:
    if pictures is None or not pictures.size:
        return []
    rows, columns = AUGMENTED_SHOWN
    return [[picture(pixels) for pixels in row] for row in pictures[:rows, :columns]]


def _reconstructions(gallery: dict[str, np.ndarray], recipe: Recipe) -> dict[str, Any] | None:
    """Pictures and what the decoder made of them; None for models that have no decoder."""
    split = next((name for name in SPLITS if f"reconstructions_{name}" in gallery), None)
    if split is None:
        return None
    pairs = gallery[f"reconstructions_{split}"]
    ids = gallery.get(f"reconstructions_{split}_ids", np.full(len(pairs), ""))
    plain, made = (pairs[:, k].astype(np.float64) / 255 for k in (0, 1))
    errors = ((plain - made) ** 2).mean((1, 2, 3))
    # What is left of the pictures if each is given by its mean color alone.
    flat = ((plain - plain.mean((1, 2), keepdims=True)) ** 2).mean()
    shown = [
        Reconstruction(picture(before), picture(after), str(key), wording.decimal(float(error)))
        for (before, after), key, error in zip(pairs, ids, errors, strict=True)
    ]
    return {
        "split": split,
        "shown": shown,
        "mean": wording.decimal(float(errors.mean())),
        "flat": wording.decimal(float(flat)),
        "trained": _trains_decoder(recipe),
    }


def _cost(cost: dict[str, Any] | None, training: dict[str, Any] | None) -> list[tuple[str, str]]:
    cost, training = cost or {}, training or {}
    out = []
    if wording.known(cost.get("parameters")):
        out.append(("Parameters", wording.count(cost["parameters"])))
    if wording.known(cost.get("multiply_adds")):
        out.append(("Multiply-adds for a picture", wording.short(cost["multiply_adds"])))
    if wording.known(cost.get("bytes_fp32")):
        out.append(("Weights in fp32", f"{cost['bytes_fp32'] / 1e6:,.1f} MB"))
    if wording.known(training.get("seconds")):
        out.append(("Training time", duration(training["seconds"])))
    if wording.known(training.get("seconds_per_epoch")):
        out.append(("Time for an epoch", duration(training["seconds_per_epoch"])))
    if wording.known(training.get("pictures_per_second")):
        out.append(("Training rate", f"{wording.rate(training['pictures_per_second'])} pictures/s"))
    if wording.known(cost.get("inference_pictures_per_second")):
        inference = wording.rate(cost["inference_pictures_per_second"])
        out.append(("Inference rate, without test-time augmentation", f"{inference} pictures/s"))
    return out


def _repeat(folder: Path, recipe: Recipe, environment: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    data = environment.get("data") or {}
    source = data.get("source")
    train = f"petriscope train {shlex.quote(str(folder / 'recipe.yaml'))} --seed {recipe.seed}"
    if joined := results.get("ensemble"):
        members = " ".join(shlex.quote(row["run"]) for row in joined["members"])
        train = f"petriscope ensemble {members} --method {joined['method']}"
    elif recipe.data.source is None and source:
        train += f" --data {shlex.quote(str(source))}"
    tta = (results.get("test") or {}).get("tta")
    flag = f" --tta {tta}" if tta in ("none", *TTA_WORDS) and tta != recipe.evaluation.tta else ""
    hardware = environment.get("hardware") or {}
    packages = environment.get("packages") or {}
    versions = [f"{name} {version}" for name, version in packages.items() if version]
    if environment.get("python"):
        versions.insert(0, f"Python {environment['python']}")
    machine = [
        str(hardware.get("gpu") or ""),
        str(hardware.get("processor") or ""),
        wording.plural(hardware["cores"], "core") if hardware.get("cores") else "",
        wording.plural(hardware["threads"], "thread") + " used" if hardware.get("threads") else "",
        str(hardware.get("system") or ""),
    ]
    facts = [
        ("Command given", str(environment.get("command") or "")),
        ("Versions", ", ".join(versions)),
        ("Hardware", ", ".join(word for word in machine if word)),
        ("Data fingerprint", str(data.get("fingerprint") or "")),
    ]
    on_cpu = str(environment.get("device") or "").startswith("cpu")
    exact = "With this machine, these versions and this number of threads, the weights come out the same bit for bit."
    near = "Training on a GPU repeats closely, not bit for bit."
    return {
        "train": train,
        "evaluate": f"petriscope evaluate {shlex.quote(str(folder))}{flag}",
        "facts": [(name, value) for name, value in facts if value],
        "promise": exact if on_cpu else near if environment.get("device") else "",
    }
