"""What a notebook shows of a run, its evaluations, and a report. Jupyter and its relatives ask for it by ``_repr_html_``."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup

from petriscope.core.errors import PetriscopeError
from petriscope.core.results import DataInfo, Evaluation
from petriscope.report import rendering, wording
from petriscope.report.metrics import metric_rows
from petriscope.report.page import headline, statements
from petriscope.report.robustness import robustness_view
from petriscope.report.shift import ShiftView, shift_views
from petriscope.report.standing import alarm
from petriscope.run.folder import Run
from petriscope.tasks import find_task

MOST_BYTES = 2**24  # of a page that is shown within a notebook, whose file it becomes part of
HEIGHT = 640  # pixels


@dataclass(frozen=True)
class Report:
    """A page that was written. It can stand wherever its path can, and a notebook shows it.

    Args:
        path: of the file.
    """

    path: Path

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def _repr_html_(self) -> str:
        try:
            size = self.path.stat().st_size
            if size > MOST_BYTES:
                return f"<p>{_link(self.path)} has {size / 2**20:,.0f} MiB, too many to show it here.</p>"
            page = self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            return f"<p>{escape(f'{self.path} cannot be shown: {error}')}</p>"
        # The frame may run the page's script, which sorts tables, but reach neither the notebook nor anything outside.
        frame = f"sandbox='allow-scripts' style='width: 100%; height: {HEIGHT}px; border: 1px solid #8888'"
        return f'<iframe {frame} srcdoc="{escape(page)}"></iframe><p>{_link(self.path)}</p>'


def run_html(run: Run) -> str:
    """The metrics of a run as a table, in the words of its page, with what the page warns of, and a link to it."""
    try:
        return _run_html(run)
    except PetriscopeError as error:  # a notebook would show the traceback in place of the run
        return f"<p>{escape(f'{run.folder}: {error}')}</p>"


def evaluation_html(found: Evaluation) -> str:
    """The metrics of a split as a table."""
    sizes = [wording.images(found.n, found.groups, found.split)]
    rows = metric_rows(find_task(found.task), {found.split: found})
    return rendering.render("_notebook_metrics.html", {"sizes": sizes, "metrics": rows})


def _run_html(run: Run) -> str:
    recipe, described, results, history = run.recipe, run.environment.data, run.results, run.history
    task, evaluated, page = find_task(described.task), results.evaluated, run.folder / "report.html"
    folder, robustness = shlex.quote(str(run.folder)), robustness_view(task, results, {})
    disagree = alarm(task, results, described)
    warnings = [
        *([] if disagree is None else [" ".join(disagree)]),
        *(f"Guarantees are withdrawn. {view.alarm}" for view in _shifted(evaluated, described, folder)),
        *([] if robustness is None or not robustness.alarm else [robustness.alarm]),
        *described.warnings,
    ]
    context = {
        "recipe": recipe,
        "headline": headline(task, results, evaluated, history, recipe),
        "standing": statements(task, results, evaluated, described.splits, history, recipe, folder, robustness),
        "warnings": warnings,
        "sizes": [wording.images(one.n, one.groups, split) for split, one in evaluated.items()],
        "metrics": metric_rows(task, evaluated),
        "folder": run.folder,
        "link": Markup(_link(page)) if page.is_file() else "",
    }
    return rendering.render("notebook_run.html", context)


def _shifted(evaluated: Mapping[str, Evaluation], described: DataInfo, folder: str) -> list[ShiftView]:
    return [view for view in shift_views(evaluated, {}, described.classes, folder) if view.withdrawn]


def _link(path: Path) -> str:
    """A relative link, where the file is below the folder of the notebook: Jupyter opens such files, and browsers no others."""
    try:
        address = path.resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return f"<code>{escape(str(path))}</code>"
    return f'<a href="{escape(quote(address))}" target="_blank"><code>{escape(str(path))}</code></a>'
