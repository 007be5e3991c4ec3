"""A tuning: a table for the terminal, and one self-contained page."""

from __future__ import annotations

import base64
import hashlib
import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from petriscope.core.errors import command
from petriscope.core.files import write_text
from petriscope.core.progress import duration
from petriscope.report import rendering, wording
from petriscope.report.charts import Axis, dot, nice_ticks, svg, text_at
from petriscope.report.compare import SORTING, difference_words, p_words, points, verdict_words
from petriscope.report.metrics import in_sentence
from petriscope.run.comparison import Contrast, Row
from petriscope.run.tuning import THE_RECIPE, Confirmed, Parameter, Trial, Tuning, ranked
from petriscope.tasks import find_task

MOST_AXES = 8  # keys with parallel coordinates
MOST_BARS = 16
HISTORY = (760, 250, 54, 14, 16, 40)  # width, height, margins: left, right, top, bottom
STEP, TALL = 132, 300  # between parallel coordinates, and their height with labels
LETTERS = 22  # of a key above an axis


@dataclass(frozen=True)
class Line:
    """A recipe that was trained with fresh seeds, as the page has it; numbers are what columns are sorted by."""

    label: str
    searched: str
    fresh: str
    interval: str
    shrinkage: str
    difference: str
    span: str
    p: str
    verdict: str
    need: str
    values: tuple[float, float | None]
    best: bool


@dataclass(frozen=True)
class TrialLine:
    """A trial as the page has it."""

    number: int
    what: str
    value: float | None
    metric: str
    epochs: int
    seconds: float
    time: str
    drawn: list[str]


def as_text(tuning: Tuning) -> str:
    """The tuning as aligned columns for a terminal, and what follows."""
    lines = _lines(tuning)
    rows = [["", "search", "fresh seeds", "shrinkage", f"minus {_baseline(tuning)}, points", "p, Holm", ""]]
    rows += [
        [e.label, e.searched, e.fresh, e.shrinkage, f"{e.difference} {e.span}".strip(), e.p, e.verdict] for e in lines
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    table = []
    for row in rows if lines else ():
        cells = [cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True)]
        table.append("  ".join([row[0].ljust(widths[0]), *cells, row[-1]]).rstrip())
    return "\n".join([*table, *([""] if table else []), *_standing(tuning), *tuning.notes]) + "\n"


def write_tuning(tuning: Tuning, path: Path) -> Path:
    """Write the page and return its path."""
    write_text(path, render(tuning))
    return path


def render(tuning: Tuning) -> str:
    """The page as one string of HTML that refers to nothing outside itself; its script only sorts the tables."""
    digest = base64.b64encode(hashlib.sha256(SORTING.encode()).digest()).decode()
    return rendering.render("tuning.html", {**_context(tuning), "script": Markup(SORTING), "digest": digest})


def _context(tuning: Tuning) -> dict[str, Any]:
    """The variables of the template."""
    keys, folder = _keys(tuning), Path(tuning.folder)
    best = next((each for each in tuning.confirmed if each.label == tuning.best), None)
    first = tuning.best_trial
    changes = best.changes if best is not None else {}
    value = best.mean if best is not None else None if first is None else first.value
    return {
        "tuning": tuning,
        "metric": _metric(tuning),
        "big": "" if value is None else _shown(tuning)(value),
        "headline": _headline(tuning),
        "standing": [*_standing(tuning), *tuning.notes],
        "lines": _lines(tuning),
        "baseline": _baseline(tuning),
        "paired": tuning.comparison is not None,
        "compared": ""
        if tuning.comparison is None
        else in_sentence(find_task(tuning.task).info(tuning.comparison.metric)),
        "other_metric": tuning.comparison is not None and tuning.comparison.metric != tuning.metric,
        "comparison_notes": () if tuning.comparison is None else tuning.comparison.notes,
        "changes": [(key, _few_digits(was), _few_digits(now)) for key, (was, now) in changes.items()],
        "train": f"petriscope train {shlex.quote(str(folder / 'best.yaml'))}",
        "finish": command("train", "--resume", folder / "trials" / "0000"),
        "fresh": str(folder / "fresh" / "comparison.html"),
        "history": history_chart(tuning),
        "bars": importance_chart(keys),
        "parallel": parallel_chart(tuning, keys[:MOST_AXES]),
        "left_out": max(len(keys) - MOST_AXES, 0),
        "trials": [_trial_line(each, tuning, keys) for each in tuning.trials],
        "keys": [each.key for each in keys],
        "epochs_spent": sum(each.epochs for each in tuning.trials if each.same_as is None),
        "epochs_whole": tuning.epochs * sum(each.same_as is None for each in tuning.trials),
        "seconds": duration(sum(each.seconds for each in tuning.trials)),
        "counts": _counts(tuning),
    }


def _metric(tuning: Tuning) -> str:
    return in_sentence(find_task(tuning.task).info(tuning.metric))


def _shown(tuning: Tuning) -> Callable[[float], str]:
    return wording.percent if find_task(tuning.task).info(tuning.metric).percent else wording.decimal


def _difference(tuning: Tuning, value: float) -> str:
    """A difference of the metric, in points where it is a share."""
    if find_task(tuning.task).info(tuning.metric).percent:
        return points(value)
    return f"{value:+.4f}".replace("-", "\N{MINUS SIGN}")


def _headline(tuning: Tuning) -> str:
    images = wording.images(tuning.images, None, "val")
    name = _metric(tuning)
    if not tuning.confirmed:
        return (
            f"{name[0].upper()}{name[1:]} of the best trial on {images}, in the search."
            if tuning.best
            else "No trial has ended."
        )
    seeds = wording.plural(len(tuning.confirmed[0].fresh), "fresh seed")
    return f"{name[0].upper()}{name[1:]} of {tuning.best} on {images}, the mean over {seeds}."


def _standing(tuning: Tuning) -> list[str]:
    """What the tuning shows, one sentence each."""
    if not tuning.confirmed:
        return []
    contrasts = _contrasts(tuning)
    said = []
    if tuning.best == THE_RECIPE:
        said.append(
            "None of the best trials has a better mean over fresh seeds than the recipe, so best.yaml is the recipe itself."
        )
    elif (found := contrasts.get(tuning.best or "")) is not None:
        label = f"{tuning.best}"[:1].upper() + f"{tuning.best}"[1:]
        verdict = {
            "better": f"{label} is shown to be better than {_baseline(tuning)}",
            "worse": f"{label} is shown to be worse than {_baseline(tuning)}",
        }.get(found.verdict, f"{label} has the best mean, but it is not shown to be better than {_baseline(tuning)}")
        said.append(f"{verdict}: {difference_words(found)} points, p {p_words(found.p_holm)} after Holm's correction.")
    shrunk = [each for each in tuning.confirmed if each.shrinkage is not None and each.label != THE_RECIPE]
    if shrunk:
        mean = float(np.mean([each.shrinkage for each in shrunk if each.shrinkage is not None]))
        unit = " points" if find_task(tuning.task).info(tuning.metric).percent else ""
        own = None if tuning.own is None else tuning.own.shrinkage
        beside = (
            ""
            if own is None
            else f"; that of the recipe, which nobody chose for its luck, by {_difference(tuning, -own)}"
        )
        said.append(
            f"From the search to fresh seeds, the {_metric(tuning)} of the {wording.plural(len(shrunk), 'best trial')} changes "
            f"by {_difference(tuning, -mean)}{unit}{' on average' if len(shrunk) > 1 else ''}{beside}."
        )
    return said


def _contrasts(tuning: Tuning) -> dict[str, Contrast]:
    rows = () if tuning.comparison is None else tuning.comparison.rows
    return {row.label: row.contrast for row in rows if row.contrast is not None}


def _baseline(tuning: Tuning) -> str:
    return THE_RECIPE if tuning.comparison is None else tuning.comparison.baseline


def _lines(tuning: Tuning) -> list[Line]:
    rows = {} if tuning.comparison is None else {row.label: row for row in tuning.comparison.rows}
    return [_line(each, tuning, rows[each.label]) for each in tuning.confirmed]


def _line(one: Confirmed, tuning: Tuning, row: Row) -> Line:
    shown, contrast = _shown(tuning), row.contrast
    sd = float(np.std(one.fresh, ddof=1)) if len(one.fresh) > 1 else None
    percent = find_task(tuning.task).info(tuning.metric).percent
    spread = "" if sd is None else f" ± {100 * sd:.2f}" if percent else f" ± {sd:.4f}"
    verdict, _, need = ("baseline", "", "") if contrast is None else verdict_words(contrast).partition(" (")
    return Line(
        label=one.label,
        searched=wording.NONE if one.searched is None else shown(one.searched),
        fresh=shown(one.mean) + spread,
        interval=f"({wording.span(row.ci95) or wording.NONE})",
        shrinkage=wording.NONE if one.shrinkage is None else _difference(tuning, one.shrinkage),
        difference="" if contrast is None else points(contrast.difference.value),
        span="" if contrast is None else difference_words(contrast).partition(" ")[2],
        p="" if contrast is None else p_words(contrast.p_holm),
        verdict=verdict,
        need=need.removesuffix(")"),
        values=(one.mean, one.shrinkage),
        best=one.label == tuning.best,
    )


def _keys(tuning: Tuning) -> list[Parameter]:
    """The keys, the most important first."""
    return sorted(tuning.parameters, key=lambda each: -(each.importance or 0))


def _trial_line(trial: Trial, tuning: Tuning, keys: Sequence[Parameter]) -> TrialLine:
    what = {"finished": "trained to the end", "stopped": "stopped", "failed": "failed", "under way": "under way"}[
        trial.state
    ]
    if trial.same_as is not None:
        what = f"as trial {trial.same_as}"
    return TrialLine(
        number=trial.number,
        what="the recipe" if trial.start and trial.state == "finished" else what,
        value=trial.value,
        metric=wording.NONE if trial.value is None else _shown(tuning)(trial.value),
        epochs=trial.epochs,
        seconds=trial.seconds,
        time=duration(trial.seconds),
        drawn=[_written(trial.drawn.get(each.key)) for each in keys],
    )


def _written(value: Any) -> str:
    if value is None:
        return wording.NONE
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _few_digits(text: str) -> str:
    """A number with four digits; other text as it is."""
    try:
        return f"{float(text):.4g}"
    except ValueError:
        return text


def _counts(tuning: Tuning) -> str:
    states = [each.state for each in tuning.trials]
    words = {"finished": "trained to the end", "stopped": "stopped early", "failed": "failed", "under way": "under way"}
    return ", ".join(f"{states.count(state)} {word}" for state, word in words.items() if state in states)


# ------------------------------------------------------------------------------------------------------------ charts


def history_chart(tuning: Tuning) -> Markup:
    """The metric by trial, and the best of the trials that were trained to the end so far."""
    known = [each for each in tuning.trials if each.value is not None and math.isfinite(each.value)]
    if not known:
        return Markup("")
    width, height, left, right, top, bottom = HISTORY
    shown = _shown(tuning)
    x = Axis(0, max(max(each.number for each in tuning.trials), 1), left + 8, width - right)
    y = Axis(*_value_range(known, tuning.higher), height - bottom, top)
    parts = []
    for tick in nice_ticks(y.low, y.high, 4):
        parts.append(f'<path class="grid" d="M{left} {y(tick):.1f}H{width - right}"/>')
        parts.append(text_at(left - 6, y(tick) + 3.5, _tick(tuning, tick), "end"))
    parts.append(f'<path class="axis" d="M{left} {height - bottom}H{width - right}"/>')
    ticks = [tick for tick in nice_ticks(x.low, x.high, 8) if tick == round(tick)]
    parts += [text_at(x(tick), height - bottom + 14, f"{tick:.0f}") for tick in ticks]
    parts.append(text_at((x.start + x.end) / 2, height - 6, "trial"))
    start = next((each for each in known if each.start), None)
    if start is not None and start.value is not None:
        parts.append(f'<path class="diagonal" d="M{left} {_inside(y, start.value):.1f}H{width - right}"/>')
    parts.append(_best_so_far(known, tuning.higher, x, y))
    for each in sorted(known, key=lambda each: each.state == "finished"):
        assert each.value is not None
        style = "dot-a" if each.start else "dot-b" if each.state == "finished" else "faint"
        tip = f"trial {each.number}, {shown(each.value)} after {wording.plural(each.epochs, 'epoch')}"
        parts.append(dot(x(each.number), _inside(y, each.value), 3.6 if each.state == "finished" else 2.8, style, tip))
    ends = ranked(tuple(known), tuning.higher)
    last = f"best: trial {ends[0].number}, {shown(ends[0].value or 0)}" if ends else "no trial was trained to the end"
    return svg(f"{_metric(tuning)} by trial, {last}", width, height, parts)


def _best_so_far(trials: Sequence[Trial], higher: bool, x: Axis, y: Axis) -> str:
    best, path = None, ""
    for each in trials:
        if each.state != "finished" or each.value is None:
            continue
        if best is None or (each.value > best if higher else each.value < best):
            best = each.value
            path += f"{'M' if not path else 'H'}{x(each.number):.1f}" + (
                f" {_inside(y, best):.1f}" if path == "" else f"V{_inside(y, best):.1f}"
            )
    return f'<path class="line-b" d="{path}H{x.end:.1f}"/>' if path else ""


def _value_range(trials: Sequence[Trial], higher: bool) -> tuple[float, float]:
    """The range of an axis that shows the trials that ended; stopped ones may be far worse."""
    every = [each.value for each in trials if each.value is not None]
    ended = [each.value for each in trials if each.state == "finished" and each.value is not None] or every
    room = (max(ended) - min(ended)) * 0.3 or 0.01
    if higher:
        return min(ended) - room, max(every) + room / 5
    return min(every) - room / 5, max(ended) + room


def _inside(axis: Axis, value: float) -> float:
    return axis(min(max(value, axis.low), axis.high))


def _tick(tuning: Tuning, value: float) -> str:
    return f"{100 * value:.4g} %" if find_task(tuning.task).info(tuning.metric).percent else f"{value:.3g}"


def importance_chart(keys: Sequence[Parameter]) -> Markup:
    """A bar per key, the most important first; empty if importances are not known."""
    known = [each for each in keys if each.importance is not None][:MOST_BARS]
    if not known:
        return Markup("")
    width, left, row = 520, 190, 22
    x = Axis(0, max(max(each.importance or 0 for each in known), 1e-9), left, width - 56)
    parts = []
    for number, each in enumerate(known):
        at, end = 6 + row * number, x(each.importance or 0)
        parts.append(text_at(left - 8, at + 12, _cut(each.key, 30), "end"))
        parts.append(f'<rect class="bar" x="{left}" y="{at + 2}" width="{max(end - left, 1):.1f}" height="13"/>')
        parts.append(text_at(end + 6, at + 12, f"{100 * (each.importance or 0):.0f} %", "start"))
    said = "; ".join(f"{each.key} {100 * (each.importance or 0):.0f} %" for each in known)
    return svg(f"Importance of keys. {said}", width, 10 + row * len(known), parts)


def parallel_chart(tuning: Tuning, keys: Sequence[Parameter]) -> Markup:
    """A line per trial across an axis per key; the last axis is the metric."""
    known = [each for each in tuning.trials if each.value is not None and each.state in ("finished", "stopped")]
    if len(known) < 2:
        return Markup("")
    top, bottom, left = 40, TALL - 26, 70
    scales = [_scale(each, bottom, top) for each in keys]
    y = Axis(*_value_range(known, tuning.higher), bottom, top)
    at = [left + STEP * number for number in range(len(keys) + 1)]
    parts = []
    best = tuning.best_trial
    order = sorted(known, key=lambda each: (each is best, each.start, each.state == "finished"))
    for each in order:
        assert each.value is not None
        heights = [scale(each.drawn.get(key.key)) for key, scale in zip(keys, scales, strict=True)]
        ends = zip(at, [*heights, _inside(y, each.value)], strict=True)
        path = "L".join(f"{x:.1f} {height:.1f}" for x, height in ends)
        style = "chosen" if each is best else "own" if each.start else each.state
        tip = f"trial {each.number}, {_shown(tuning)(each.value)} after {wording.plural(each.epochs, 'epoch')}"
        parts.append(f'<path class="trial {style}" d="M{path}"><title>{escape(tip)}</title></path>')
    for x, key in zip(at, keys, strict=False):
        parts.append(f'<path class="axis" d="M{x} {top}V{bottom}"/>')
        parts.append(f'<text class="tick" x="{x}" y="{top - 22}" text-anchor="middle">{escape(_cut(key.key))}</text>')
        parts += _axis_words(key, x, bottom, top)
    parts.append(f'<path class="axis" d="M{at[-1]} {top}V{bottom}"/>')
    parts.append(text_at(at[-1], top - 22, _metric(tuning)))
    parts += [
        text_at(at[-1] + 7, y(tick) + 3.5, _tick(tuning, tick), "start", "on") for tick in nice_ticks(y.low, y.high, 4)
    ]
    label = f"Parallel coordinates of {len(known)} trials: {', '.join(key.key for key in keys)}, {_metric(tuning)}"
    return svg(label, at[-1] + 64, TALL, parts)


def _scale(key: Parameter, bottom: float, top: float) -> Callable[[Any], float]:
    """Where a value lies on the axis of its key."""
    if key.low is not None and key.high is not None:
        axis = Axis(key.low, key.high, bottom, top, key.log)
        return lambda value: axis(float(value))
    places = {choice: number for number, choice in enumerate(key.choices)}
    axis = Axis(-0.5, len(places) - 0.5, bottom, top)
    return lambda value: axis(places[value])


def _axis_words(key: Parameter, x: float, bottom: float, top: float) -> list[str]:
    if key.low is not None and key.high is not None:
        scale = " log" if key.log else ""
        low, high = f"{key.low:.3g}", f"{key.high:.3g}{scale}"
        return [text_at(x, bottom + 15, low), text_at(x, top - 8, high)]
    scale_of = _scale(key, bottom, top)
    return [text_at(x + 6, scale_of(choice) + 3.5, _cut(choice, 20), "start", "on") for choice in key.choices]


def _cut(text: str, letters: int = LETTERS) -> str:
    return text if len(text) <= letters else f"…{text[1 - letters :]}" if "." in text else f"{text[: letters - 1]}…"
