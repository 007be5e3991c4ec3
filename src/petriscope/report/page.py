"""The page of a run, made from the files of its folder alone."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from petriscope.core.files import write_text
from petriscope.core.results import Evaluation, Explanations
from petriscope.report import data, rendering, training
from petriscope.report.abstention import abstention_views
from petriscope.report.ensemble import ensemble_view
from petriscope.report.error_groups import errors
from petriscope.report.explanations import Maps, explanation_view
from petriscope.report.gallery import augmented, reconstructions
from petriscope.report.headline import Headline, before_evaluation
from petriscope.report.metrics import in_sentence, metric_rows
from petriscope.report.repeat import repetition
from petriscope.report.robustness import robustness_view
from petriscope.report.standing import alarm, notes, standing
from petriscope.run.folder import Run
from petriscope.tasks import Task, find_task, in_room

if TYPE_CHECKING:
    import pandas as pd

FOLD_CLASSES_FROM = 16  # longer tables of classes are folded where they are not the main point


class TaskPage(Protocol):
    """What a page says only for one task: `petriscope.report.classification`, ``segmentation`` and ``generic``."""

    @property
    def TEMPLATE(self) -> str:
        """The template of the task's sections, which gets the ``views`` of all evaluated splits."""

    @property
    def SECTIONS(self) -> tuple[tuple[str, str], ...]:
        """Anchors and titles of these sections."""

    @property
    def ABOUT_METRICS(self) -> str:
        """How the intervals of the metrics are computed."""

    @property
    def PAIRED_TEST(self) -> str:
        """The test that compares an ensemble with its members."""

    def view(
        self,
        task: Task,
        split: str,
        evaluation: Evaluation,
        folder: str,
        rows: pd.DataFrame,
        gallery: Mapping[str, np.ndarray],
    ) -> Any:
        """What the template shows of one split; it has at least ``split`` and ``n``.

        Args:
            folder: of the run, quoted for a command.
            rows: the predictions on the split.
            gallery: see `petriscope.run.folder.Run.gallery`.
        """

    def headline(self, task: Task, split: str, evaluation: Evaluation) -> Headline:
        """The metric at the top of the page."""

    def overlays(self, gallery: Mapping[str, np.ndarray], classes: int) -> Sequence[Sequence[np.ndarray]]:
        """The augmented images with their targets drawn on them, uint8 [H, W, 3]; empty where targets are not drawn."""

    def maps(self, split: str, found: Explanations, rows: pd.DataFrame, gallery: Mapping[str, np.ndarray]) -> Maps:
        """The explanations of a split."""


def write_report(run: Run) -> Path:
    """Write ``report.html`` into the run folder and return its path."""
    path = run.folder / "report.html"
    write_text(path, render(run))
    return path


def render(run: Run) -> str:
    """The page as one string of HTML that refers to nothing outside itself."""
    return rendering.render("report.html", _context(run))


def _context(run: Run) -> dict[str, Any]:
    """The variables of the template."""
    recipe, environment, history, results = run.recipe, run.environment, run.history, run.results
    predictions, gallery, folder = run.predictions, run.gallery, shlex.quote(str(run.folder))
    task = find_task(results.task)
    page = cast(TaskPage, in_room(task, "report"))
    evaluated, described = results.evaluated, environment.data
    rows = {split: predictions[predictions["split"] == split] for split in evaluated}
    first = next(iter(evaluated), None)
    robustness = robustness_view(task, results, gallery)
    statements = standing(task, evaluated, described.splits, results.training, history, recipe, folder)
    if robustness is not None:
        statements.append((f"On corrupted {robustness.split} images, {robustness.metric}: {robustness.headline}.", ""))
    ensemble = None
    if results.ensemble is not None:
        ensemble = ensemble_view(results.ensemble, in_sentence(task.metrics[0]), page.PAIRED_TEST)
    overlays = page.overlays(gallery, len(described.classes))
    return {
        "recipe": recipe,
        "folder": folder,
        "yaml": recipe.to_yaml(),
        "finished": results.training is not None,
        "headline": page.headline(task, first, evaluated[first])
        if first is not None
        else before_evaluation(task, history, recipe),
        "standing": statements,
        "notes": notes(evaluated, recipe),
        "alarm": alarm(task, results, described),
        "warnings": described.warnings,
        "facts": training.facts(recipe, environment, results, history),
        "composition": data.composition(described, task),
        "fold_from": FOLD_CLASSES_FROM,
        "imbalance": data.imbalance(described, task),
        "audited": data.audited(run, recipe, described),
        "ensemble": ensemble,
        "curves": training.curves(task, history, results.training, recipe),
        "epochs": training.epoch_table(task, history),
        "views": [page.view(task, split, one, folder, rows[split], gallery) for split, one in evaluated.items()],
        "task_template": page.TEMPLATE,
        "task_sections": page.SECTIONS,
        "about_metrics": page.ABOUT_METRICS,
        "metrics": metric_rows(task, evaluated),
        "errors": errors(evaluated, gallery),
        "robustness": robustness,
        "explanations": [
            explanation_view(split, one.explanations, page.maps(split, one.explanations, rows[split], gallery))
            for split, one in evaluated.items()
            if one.explanations is not None
        ],
        "abstention": abstention_views(evaluated, predictions),
        "reconstructions": reconstructions(gallery, recipe),
        "augmented": augmented(gallery, overlays),
        "overlaid": len(overlays) > 0,
        "cost": training.cost(results.cost, results.training),
        "repeat": repetition(run.folder, recipe, environment, results),
    }
