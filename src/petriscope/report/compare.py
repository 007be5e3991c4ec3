"""A comparison of runs: a table for the terminal, and one self-contained page."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from petriscope.core.files import write_text
from petriscope.core.progress import duration
from petriscope.report import rendering, wording
from petriscope.report.charts import Axis, dot, nice_ticks, spread, svg, text_at
from petriscope.report.metrics import in_sentence
from petriscope.run.comparison import Comparison, Contrast, Row
from petriscope.tasks import find_task

COSTS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("multiply_adds", "multiply-adds per image", lambda v: _size(v)),
    ("parameters", "parameters", lambda v: _size(v)),
    ("seconds", "training time", duration),
)
ALIKE = 1.05  # costs within this factor of each other are not drawn
MOST_NEEDED = 10_000_000  # images; more are not practical
LEFT, RIGHT_OF_PLOT, LABELS, WIDTH, TOP, BOTTOM = 50, 262, 284, 460, 12, 44
LABEL_GAP, LABEL_LETTERS = 15, 27


@dataclass(frozen=True)
class RowView:
    """A recipe in the table of the page; numbers are what columns are sorted by.

    Args:
        mark: the difference drawn on a scale.
        need: what it would take to show the difference seen.
        costs: values, and as they are written.
    """

    label: str
    seeds: int
    mean: float
    metric: str
    interval: str
    difference: float | None
    points: str
    points_interval: str
    mark: Markup | str
    p: float | None
    p_text: str
    verdict: str
    need: str
    costs: list[tuple[float | None, str]]


@dataclass(frozen=True)
class OtherMetrics:
    """Names, and per recipe its label and the mean of each metric, as a number and as it is written."""

    names: list[str]
    rows: list[tuple[str, list[tuple[float | None, str]]]]


def as_text(comparison: Comparison) -> str:
    """The comparison as aligned columns for a terminal: first metrics and tests, then costs."""
    rows = comparison.rows
    heads = ["", "seeds", _metric_name(comparison), "95 % interval"]
    if comparison.tests:
        heads += [f"minus {_cut(comparison.baseline)}, points", "p, Holm", ""]
    first = [heads]
    for row in rows:
        cells = [row.label, str(len(row.values)), _mean_and_sd(row), wording.span(row.ci95) or wording.NONE]
        if comparison.tests:
            cells += ["baseline", "", ""] if row.contrast is None else _contrast_cells(row.contrast)
        first.append(cells)
    second = [["", "parameters", "multiply-adds", "training"]]
    second += [[row.label, *(_cost(row, key, write) for key, write in _costs_in_order())] for row in rows]
    about = f"{comparison.split}, {wording.images(comparison.n, comparison.groups)}"
    return "\n".join([about, "", *_aligned(first), "", *_aligned(second), "", *comparison.notes]).rstrip() + "\n"


def write_comparison(comparison: Comparison, path: Path, title: str = "", about: str = "") -> Path:
    """Write the page and return its path."""
    write_text(path, render(comparison, title, about))
    return path


def render(comparison: Comparison, title: str = "", about: str = "") -> str:
    """The page as one string of HTML that refers to nothing outside itself; its script only sorts the table."""
    digest = base64.b64encode(hashlib.sha256(SORTING.encode()).digest()).decode()
    context = _context(comparison, title, about)
    return rendering.render("comparison.html", {**context, "script": Markup(SORTING), "digest": digest})


def verdict_words(contrast: Contrast) -> str:
    """``better``, ``worse``, or ``no difference shown (about 12,000 images or 9 seeds of each would be needed)``."""
    need = _need_words(contrast)
    return contrast.verdict + (f" ({need})" if need else "")


def _need_words(contrast: Contrast) -> str:
    """What it would take to show the difference that was observed."""
    if contrast.verdict != "no difference shown" or contrast.difference.value == 0:
        return ""
    images, seeds = contrast.needed.images, contrast.needed.seeds
    words = []
    if images is not None and images <= MOST_NEEDED:
        words.append(f"{_round(images):,} images")
    if seeds is not None:
        words.append(f"{_round(seeds):,} seeds of each")
    return f"about {' or '.join(words)} would be needed" if words else "many more images and seeds would be needed"


def _round(number: int) -> int:
    """Two significant digits, upwards."""
    step = 10 ** max(len(str(number)) - 2, 0)
    return math.ceil(number / step) * step


# -------------------------------------------------------------------------------------------------------- cells


def _contrast_cells(contrast: Contrast) -> list[str]:
    return [difference_words(contrast), p_words(contrast.p_holm), verdict_words(contrast)]


def difference_words(contrast: Contrast) -> str:
    """``+0.92 (0.31 to 1.53)``, in points."""
    return f"{points(contrast.difference.value)} ({_span(contrast.difference.ci95)})"


def points(value: float) -> str:
    """A difference of shares in points, as ``+0.92``."""
    return f"{100 * value:+.2f}".replace("+0.00", "0.00").replace("-0.00", "0.00").replace("-", "\N{MINUS SIGN}")


def _span(ci95: tuple[float, float]) -> str:
    return f"{points(ci95[0])} to {points(ci95[1])}" if math.isfinite(ci95[0]) else wording.NONE


def p_words(value: float) -> str:
    """A p-value: ``< 0.001``, ``0.013``, ``0.27``."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def _mean_and_sd(row: Row) -> str:
    return f"{100 * row.mean:.2f} % ± {100 * row.sd:.2f}" if row.sd is not None else wording.percent(row.mean)


def _size(value: float) -> str:
    for unit, word in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g} {word}"
    return f"{value:.0f}"


def _cost(row: Row, key: str, write: Callable[[float], str]) -> str:
    value = getattr(row, key)
    return wording.NONE if value is None else wording.count(value) if key == "parameters" else write(value)


def _costs_in_order() -> list[tuple[str, Callable[[float], str]]]:
    return [
        (key, next(write for k, _, write in COSTS if k == key)) for key in ("parameters", "multiply_adds", "seconds")
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned columns: the first and the last to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        middle = [cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *middle, row[-1]]).rstrip())
    return lines


def _cut(text: str, letters: int = LABEL_LETTERS) -> str:
    return text if len(text) <= letters else text[: letters - 1].rstrip(" ,") + "…"


# --------------------------------------------------------------------------------------------------------- page


def _metric_name(comparison: Comparison) -> str:
    return in_sentence(find_task(comparison.task).info(comparison.metric))


def _context(comparison: Comparison, title: str, about: str) -> dict[str, Any]:
    """The variables of the template."""
    reach = _reach(comparison)
    return {
        "title": title or wording.plural(len(comparison.rows), "recipe") + " compared",
        "about": about,
        "comparison": comparison,
        "images": wording.images(comparison.n, comparison.groups, comparison.split),
        "metric": _metric_name(comparison),
        "headline": _headline(comparison),
        "best": _best(comparison),
        "rows": [_view(row, reach) for row in comparison.rows],
        "reach": f"{100 * reach:.2g}" if reach else "",
        "charts": _charts(comparison),
        "others": _others(comparison),
        "runs": [
            (row.label, seed, value, wording.percent(value), folder)
            for row in comparison.rows
            for seed, value, folder in zip(row.seeds, row.values, row.runs, strict=True)
        ],
        "several": any(len(row.values) > 1 for row in comparison.rows),
        "alone": any(len(row.values) == 1 for row in comparison.rows),
    }


def _headline(comparison: Comparison) -> str:
    images = wording.images(comparison.n, comparison.groups, comparison.split)
    verdicts = [row.contrast.verdict for row in comparison.rows if row.contrast is not None]
    if not verdicts:
        return f"Measured on {images}."
    better, worse = verdicts.count("better"), verdicts.count("worse")
    rest = len(verdicts) - better - worse
    if len(verdicts) == 1:
        verb = {"better": "is better than", "worse": "is worse than"}.get(verdicts[0])
        label = next(row.label for row in comparison.rows if row.contrast is not None)
        if verb is None:
            return f"On {images}, no difference was shown between {label} and {comparison.baseline}."
        return f"On {images}, {label} {verb} {comparison.baseline}."
    parts = [f"{better} better than {comparison.baseline}"] if better else []
    parts += [f"{worse} worse" + ("" if better else f" than {comparison.baseline}")] if worse else []
    parts += [f"{rest} with no difference shown"] if rest else []
    return f"Of {len(verdicts)} recipes on {images}: {', '.join(parts)}."


def _best(comparison: Comparison) -> str:
    best = max(comparison.rows, key=lambda row: row.mean)
    value = wording.percent_with_interval(best.mean, best.ci95)
    return f"{best.label} has the highest mean: {value}." if len(comparison.rows) > 1 else ""


def _reach(comparison: Comparison) -> float:
    """The end of the scale of differences on both sides: the farthest end of an interval."""
    ends = [abs(end) for row in comparison.rows if row.contrast is not None for end in row.contrast.difference.ci95]
    return max(filter(math.isfinite, ends), default=0.0)


def _view(row: Row, reach: float) -> RowView:
    contrast = row.contrast
    found = contrast.difference if contrast is not None else None
    return RowView(
        label=row.label,
        seeds=len(row.values),
        mean=row.mean,
        metric=_mean_and_sd(row),
        interval=f"({wording.span(row.ci95) or wording.NONE})",
        difference=None if found is None else found.value,
        points="" if found is None else points(found.value),
        points_interval="" if found is None else f"({_span(found.ci95)})",
        mark="" if found is None or not reach else difference_mark(found.value, found.ci95, reach),
        p=None if contrast is None else contrast.p_holm,
        p_text="" if contrast is None else p_words(contrast.p_holm),
        verdict="baseline" if contrast is None else contrast.verdict,
        need="" if contrast is None else _need_words(contrast),
        costs=[(getattr(row, key), _cost(row, key, write)) for key, write in _costs_in_order()],
    )


def _others(comparison: Comparison) -> OtherMetrics:
    """The metrics that were not compared."""
    task = find_task(comparison.task)
    keys = dict.fromkeys(key for row in comparison.rows for key, value in row.others.items() if value is not None)
    infos = [task.info(key) for key in keys]
    rows = []
    for row in comparison.rows:
        values = [(info, row.others.get(info.key)) for info in infos]
        cells = [(value, wording.percent(value) if info.percent else wording.decimal(value)) for info, value in values]
        rows.append((row.label, cells))
    return OtherMetrics([in_sentence(info) for info in infos], rows)


def difference_mark(value: float, ci95: tuple[float, float], reach: float) -> Markup:
    """A dot and its interval on a scale from ``-reach`` to ``reach`` with a line at 0."""
    x = Axis(-reach, reach, 4, 92)
    parts = [
        '<path class="grid" d="M4 8H92"/>',
        f'<path class="axis" d="M{x(0):.1f} 1V15"/>',
        f'<path class="whisker" d="M{x(ci95[0]):.1f} 8H{x(ci95[1]):.1f}"/>',
        f'<circle class="dot-b" cx="{x(value):.1f}" cy="8" r="3.2"/>',
    ]
    size = 'viewBox="0 0 96 16" width="96" height="16"'
    return Markup(f'<svg class="mark" {size} aria-hidden="true">{"".join(parts)}</svg>')


def _charts(comparison: Comparison) -> list[tuple[str, Markup]]:
    name = _metric_name(comparison)
    charts = [(f"By {words}", cost_chart(comparison, key, name, words, write)) for key, words, write in COSTS]
    return [(title, chart) for title, chart in charts if chart]


def cost_chart(comparison: Comparison, key: str, name: str, words: str, write: Callable[[float], str]) -> Markup:
    """The metric by a cost, with 95 % intervals and a line through the Pareto front: recipes that no cheaper one beats.

    Empty if the costs are unknown or nearly the same.
    """
    rows = [row for row in comparison.rows if math.isfinite(row.ci95[0])]
    points = [(float(cost), row) for row in rows if (cost := getattr(row, key)) is not None and cost > 0]
    unit, unit_name = _time_unit(max((cost for cost, _ in points), default=0)) if key == "seconds" else (1, "")
    points = [(cost / unit, row) for cost, row in points]
    low, high = min((cost for cost, _ in points), default=0), max((cost for cost, _ in points), default=0)
    if high <= low * ALIKE:
        return Markup("")
    height = max(260, TOP + BOTTOM + LABEL_GAP * len(points))
    log = high / low > 8
    room = 0.0 if log else (high - low) * 0.08
    ends = (low / 1.25, high * 1.25) if log else (max(low - room, 0.0), high + room)
    x = Axis(*ends, LEFT, RIGHT_OF_PLOT, log)
    bottom, top = min(row.ci95[0] for _, row in points), max(row.ci95[1] for _, row in points)
    room = max((top - bottom) * 0.05, 0.001)
    y = Axis(max(0.0, bottom - room), min(1.0, top + room), height - BOTTOM, TOP)
    labels = spread([y(row.mean) for _, row in points], LABEL_GAP, TOP + 4, height - BOTTOM)
    parts = [_frame(x, y, words, (lambda v: f"{v:g} {unit_name}") if unit_name else write), _front(points, x, y)]
    for (cost, row), label in zip(points, labels, strict=True):
        style = "a" if row.label == comparison.baseline else "b"
        tip = f"{row.label}: {wording.percent_with_interval(row.mean, row.ci95)}, {write(cost * unit)}"
        at, level = x(cost), y(row.mean)
        parts.append(f'<path class="grid" d="M{at:.1f} {level:.1f}L{LABELS - 12} {label:.1f}h8"/>')
        parts.append(f'<path class="whisker" d="M{at:.1f} {y(row.ci95[0]):.1f}V{y(row.ci95[1]):.1f}"/>')
        parts.append(dot(at, level, 3.4, f"dot-{style}", tip))
        parts.append(f'<text x="{LABELS}" y="{label + 3.8:.1f}">{escape(_cut(row.label))}</text>')
    values = "; ".join(f"{row.label}: {wording.percent(row.mean)} at {write(cost * unit)}" for cost, row in points)
    return svg(f"{name} by {words}. {values}", WIDTH, height, parts)


def _time_unit(seconds: float) -> tuple[int, str]:
    """The unit for ticks up to that many seconds: how many seconds it has, and its name."""
    return (1, "s") if seconds < 120 else (60, "min") if seconds < 7200 else (3600, "h")


def _frame(x: Axis, y: Axis, words: str, write: Callable[[float], str]) -> str:
    out = []
    for tick in nice_ticks(y.low, y.high, 4):
        out.append(f'<path class="grid" d="M{LEFT} {y(tick):.1f}H{RIGHT_OF_PLOT}"/>')
        out.append(text_at(LEFT - 6, y(tick) + 3.5, f"{100 * tick:.4g} %", "end"))
    out.append(f'<path class="axis" d="M{LEFT} {y.start:.1f}H{RIGHT_OF_PLOT}"/>')
    ticks = x.ticks(3)
    ticks = ticks[:: math.ceil(len(ticks) / 5)]
    out += [text_at(x(tick), y.start + 14, write(tick)) for tick in ticks]
    out.append(text_at((x.start + x.end) / 2, y.start + 32, words + (", logarithmic" if x.log else "")))
    return "".join(out)


def _front(points: Sequence[tuple[float, Row]], x: Axis, y: Axis) -> str:
    best, along = -math.inf, []
    for cost, row in sorted(points, key=lambda point: (point[0], -point[1].mean)):
        if row.mean > best:
            best = row.mean
            along.append(f"{x(cost):.1f} {y(row.mean):.1f}")
    return f'<path class="diagonal" d="M{"L".join(along)}"/>' if len(along) > 1 else ""


SORTING = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    if (!head.textContent.trim()) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const falls = head.getAttribute("aria-sort") !== "descending";
      const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
      const compare = (a, b) => {
        const x = key(a), y = key(b);
        if (x === "" || y === "") return (x === "") - (y === "");
        const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
        return falls ? -order : order;
      };
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", falls ? "descending" : "ascending");
      body.append(...[...body.rows].sort(compare));
    });
  });
}
"""
