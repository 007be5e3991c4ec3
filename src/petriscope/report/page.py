"""The page of a run, made from the files of its folder alone."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from petriscope.core.files import write_text
from petriscope.report import classification as labels
from petriscope.report import data, rendering, training
from petriscope.report import segmentation as segments
from petriscope.report.abstention import silence_views
from petriscope.report.classification import LabelView, label_view
from petriscope.report.ensemble import ensemble_view
from petriscope.report.error_groups import errors
from petriscope.report.explanations import looks
from petriscope.report.gallery import augmented, reconstructions
from petriscope.report.repeat import repetition
from petriscope.report.robustness import stress_view
from petriscope.report.segmentation import SegmentView, segment_view
from petriscope.report.standing import alarm, notes, standing, under_stress
from petriscope.run.folder import Run

FOLD_CLASSES_FROM = 16  # long tables of classes are folded where they are not the point
MISTAKES_OPEN = 12  # the rest is folded


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
    of_data = environment.get("data") or {}
    folder = shlex.quote(str(run.folder))
    evaluated = _evaluated(results)
    masks = [segment_view(name, results[name], gallery) for name in evaluated if "miou" in results[name]]
    views = [label_view(name, results[name], folder, predictions, gallery) for name in evaluated if not masks]
    judged: Sequence[LabelView | SegmentView] = masks or views
    names = [view.name for view in views]
    trained, cost, joined = results.get("training"), results.get("cost"), results.get("ensemble")
    stress = stress_view(results, gallery)
    return {
        "recipe": recipe,
        "folder": folder,
        "views": views,
        "first": views[0] if views else None,
        "judged": judged[0] if judged else None,
        "others": views[1:],
        "segments": masks,
        "notes": notes(judged, recipe),
        "open_mistakes": MISTAKES_OPEN,
        "finished": trained is not None,
        "headline": segments.headline(masks[0]) if masks else labels.headline(views, history, recipe),
        "standing": [
            *standing(judged, of_data.get("splits") or {}, trained, history, recipe, folder),
            *under_stress(stress),
        ],
        "stress": stress,
        "alarm": alarm(results, of_data),
        "facts": training.facts(recipe, environment, trained, cost, history, joined),
        "ensemble": ensemble_view(joined),
        "composition": data.composition(of_data),
        "fold_from": FOLD_CLASSES_FROM,
        "balance": data.imbalance(of_data),
        "audited": data.audited(run, recipe, of_data),
        "warnings": of_data.get("warnings") or [],
        "curves": training.curves(history, trained, recipe),
        "history": history,
        "epochs": training.epochs(history),
        "metrics": segments.metric_rows(masks) if masks else labels.metric_rows(views),
        "most_classes": labels.MOST_CLASSES_IN_MATRIX,
        "augmented": augmented(gallery, len(of_data.get("classes") or ())),
        "augmented_masks": "augmented_masks" in gallery,
        "reconstructions": reconstructions(gallery, recipe),
        "silence": silence_views(names, results, predictions),
        "errors": errors(names, results, gallery),
        "looks": looks([view.name for view in judged], results, gallery, predictions),
        "cost": training.cost(cost, trained),
        "repeat": repetition(run.folder, recipe, environment, results),
        "yaml": recipe.to_yaml(),
    }


def _evaluated(results: dict[str, Any]) -> list[str]:
    """The splits that have metrics, the one that counts first."""
    order = ("test", "val", "train")
    return [name for name in order if isinstance(results.get(name), dict) and results[name].get("n")]
