"""The page of a run, made from the files of its folder alone."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import numpy as np

from petriscope.core.errors import PetriscopeError
from petriscope.core.files import reason, write_text
from petriscope.core.progress import say
from petriscope.core.recipe import Recipe
from petriscope.core.results import HELD_OUT, Epoch, Evaluation, Explanations, Results, SplitInfo, TrainingSummary
from petriscope.report import data, rendering, training
from petriscope.report.abstention import abstention_views
from petriscope.report.adaptation import adaptation_view, fitted_on
from petriscope.report.breakdown import breakdown_views
from petriscope.report.cross_validation import INTERVALS, cross_validation_view
from petriscope.report.ensemble import EnsembleView, ensemble_view
from petriscope.report.error_groups import errors
from petriscope.report.explanations import Maps, explanation_view
from petriscope.report.gallery import augmented, reconstructions
from petriscope.report.headline import Headline, before_evaluation
from petriscope.report.metrics import in_sentence, metric_rows
from petriscope.report.repeat import repetition
from petriscope.report.robustness import RobustnessView, robustness_view
from petriscope.report.self_training import not_of_place, self_training_view
from petriscope.report.shift import shift_views
from petriscope.report.standing import (
    Statement,
    alarm,
    left_out,
    notes,
    standing,
    standing_of_adapted,
    standing_of_folds,
)
from petriscope.run.folder import Run, read_gallery
from petriscope.tasks import Task, find_task, in_room

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")
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
        """The test that compares an ensemble with its members on independent images."""

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


def write_report(run: Run, folder: Path | None = None) -> Path:
    """Write ``report.html`` into the run folder and return its path.

    Args:
        folder: the run folder as the page calls it, if it will be renamed.
    """
    path = run.folder / "report.html"
    write_text(path, render(run, folder))
    return path


def render(run: Run, folder: Path | None = None) -> str:
    """The page as one string of HTML that refers to nothing outside itself."""
    return rendering.render("report.html", _context(run, run.folder if folder is None else folder))


class _Damage(list[str]):
    """What of a run cannot be shown, one sentence each."""

    def read(self, otherwise: T, read: Callable[[], T]) -> T:
        """A file of the run, or something else if it is damaged."""
        try:
            return read()
        except PetriscopeError as error:
            self.append(str(error))
            return otherwise

    def show(self, name: str, otherwise: T, show: Callable[[], T]) -> T:
        """A part of the page, or something else if the files that it is made of do not fit together."""
        try:
            return show()
        except Exception as error:  # each file may be sound, and a value in one contradict any value in another
            self.append(
                f"results.json and other files of the run contradict one another; left out: {name} ({reason(error)})"
            )
            return otherwise


def _context(run: Run, place: Path) -> dict[str, Any]:
    """The variables of the template. What is damaged is left out and named, except for the recipe and the environment."""
    import pandas as pd

    recipe, environment, damage = run.recipe, run.environment, _Damage()
    described, folder = environment.data, shlex.quote(str(place))
    task = find_task(described.task)
    page = cast(TaskPage, in_room(task, "report"))
    unknown = Results(task=task.name, training=TrainingSummary() if run.model.is_file() else None)
    results = damage.read(unknown, lambda: run.results)
    history = damage.read(list[Epoch](), lambda: run.history)
    predictions = damage.read(pd.DataFrame({"split": []}), lambda: run.predictions)
    gallery: dict[str, np.ndarray] = {}
    for path in run.gallery_files:
        gallery |= damage.read(dict[str, np.ndarray](), partial(read_gallery, path))
    rows = {split: predictions[predictions["split"] == split] for split in results.evaluated}
    del predictions  # with a column per class, it may be large

    def view(split: str, one: Evaluation) -> Any:
        return damage.show(split, None, lambda: page.view(task, split, one, folder, rows[split], gallery))

    def explanations() -> list[Any]:
        found = {split: one.explanations for split, one in evaluated.items() if one.explanations is not None}
        return [
            explanation_view(split, one, page.maps(split, one, rows[split], gallery)) for split, one in found.items()
        ]

    adapted, crossed = results.adaptation, results.cross_validation

    reference = "val" if adapted is None else fitted_on(adapted)
    if crossed is not None:
        reference = HELD_OUT
    views = {split: view(split, one) for split, one in results.evaluated.items()}
    evaluated = {split: one for split, one in results.evaluated.items() if views[split] is not None}
    robustness = damage.show("robustness", None, lambda: robustness_view(task, results, gallery))
    overlays: Sequence[Sequence[np.ndarray]] = ()
    overlays = damage.show("overlays", overlays, lambda: page.overlays(gallery, len(described.classes)))
    no_curves, no_epochs = training.Curves([], []), training.EpochTable([], [])
    parts: dict[str, tuple[Any, Callable[[], Any]]] = {
        "headline": (Headline("", ""), lambda: headline(task, results, evaluated, history, recipe)),
        "standing": (
            [],
            lambda: statements(task, results, evaluated, described.splits, history, recipe, folder, robustness),
        ),
        "notes": ([], lambda: notes(evaluated, recipe)),
        "alarm": (None, lambda: alarm(task, results, described)),
        "facts": ([], lambda: training.facts(recipe, environment, results, history)),
        "composition": (None, lambda: data.composition(described, task)),
        "imbalance": ("", lambda: data.imbalance(described, task)),
        "audited": (None, lambda: data.audited(run, recipe, described)),
        "ensemble": (None, lambda: _ensemble(task, page, results)),
        "adaptation": (None, lambda: None if adapted is None else adaptation_view(task, adapted)),
        "self_training": (
            None,
            lambda: None if results.self_training is None else self_training_view(results.self_training),
        ),
        "cross_validation": (None, lambda: None if crossed is None else cross_validation_view(task, crossed)),
        "curves": (no_curves, lambda: training.curves(task, history, results.training, recipe)),
        "epochs": (no_epochs, lambda: training.epoch_table(task, history)),
        "metrics": ([], lambda: metric_rows(task, evaluated)),
        "breakdowns": ([], lambda: breakdown_views(task, evaluated)),
        "errors": ([], lambda: errors(evaluated, gallery)),
        "explanations": ([], explanations),
        "shift": (
            [],
            lambda: shift_views(evaluated, gallery, described.classes, str(place), not results.joined),
        ),
        "abstention": ([], lambda: abstention_views(evaluated, rows, reference)),
        "reconstructions": (None, lambda: reconstructions(gallery, recipe)),
        "augmented": ([], lambda: augmented(gallery, overlays)),
        "cost": ([], lambda: training.cost(results.cost, results.training)),
    }
    shown = {name: damage.show(name, *part) for name, part in parts.items()}
    for sentence in damage:
        say(f"warning: {sentence}")
    return {
        **shown,
        "damage": damage,
        "recipe": recipe,
        "folder": folder,
        "yaml": recipe.to_yaml(),
        "finished": results.training is not None,
        "warnings": described.warnings,
        "fold_from": FOLD_CLASSES_FROM,
        "views": [views[split] for split in evaluated],
        "task_template": page.TEMPLATE,
        "task_sections": page.SECTIONS,
        "about_metrics": page.ABOUT_METRICS if crossed is None else INTERVALS,
        "robustness": robustness,
        "repeat": repetition(place, recipe, environment, results),
        "overlaid": len(overlays) > 0,
    }


def headline(
    task: Task, results: Results, evaluated: Mapping[str, Evaluation], history: Sequence[Epoch], recipe: Recipe
) -> Headline:
    """The metric at the top of the page: where a run was adapted to, else on the split that counts most."""
    page, adapted = cast(TaskPage, in_room(task, "report")), results.adaptation
    if adapted is not None:
        return page.headline(task, f"held-out {adapted.domain}", adapted.after)
    first = next(iter(evaluated), None)
    return before_evaluation(task, history, recipe) if first is None else page.headline(task, first, evaluated[first])


def statements(
    task: Task,
    results: Results,
    evaluated: Mapping[str, Evaluation],
    splits: Mapping[str, SplitInfo],
    history: Sequence[Epoch],
    recipe: Recipe,
    folder: str,
    robustness: RobustnessView | None,
) -> list[Statement]:
    """What stands below it: what it is based on, what is missing, and the stress test in a sentence.

    Args:
        folder: of the run, quoted for a command.
    """
    if results.cross_validation is not None:
        return standing_of_folds(task, evaluated, splits, results.cross_validation, recipe, folder)
    said = (
        standing(task, evaluated, splits, results.training, history, recipe, folder)
        if results.adaptation is None
        else standing_of_adapted(task, evaluated, splits, results.adaptation, folder)
    )
    if results.self_training is not None:
        said = [(not_of_place(results.self_training), ""), *said]
    lacking = left_out(results, recipe, folder) if results.adaptation is None else []
    said = [
        *said,
        *((f"{sentence[0].upper()}{sentence[1:]}. To make up for it:", again) for sentence, again in lacking),
    ]
    if robustness is None:
        return said
    return [*said, (f"On corrupted {robustness.split} images, {robustness.metric}: {robustness.headline}.", "")]


def _ensemble(task: Task, page: TaskPage, results: Results) -> EnsembleView | None:
    if results.ensemble is None:
        return None
    grouped = results.val is not None and results.val.groups is not None
    test = "paired test over groups" if grouped else page.PAIRED_TEST
    return ensemble_view(results.ensemble, in_sentence(task.metrics[0]), test)
