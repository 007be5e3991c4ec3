"""The page's section on when the classifier keeps silent: risk by coverage, promised errors, sets, unlike images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from petriscope.metrics.classification import calibration_bins
from petriscope.metrics.selective import doubt, risk_coverage
from petriscope.report import wording
from petriscope.report.charts import Axis, dot, nice_ticks, reliability, svg, text_at
from petriscope.trust.temperature import scale

if TYPE_CHECKING:
    import pandas as pd

MOST_POINTS = 400  # of the curve
METHODS = {
    "lac": "all classes likely enough (LAC)",
    "class": "the same, for every class on its own (Mondrian)",
    "aps": "likeliest classes up to a sum (APS)",
    "raps": "the same, unlikely classes held back (RAPS)",
}
CALIBRATION = (
    ("ece_equal_mass", "ECE, bins of equal counts", wording.percent),
    ("ece", "ECE, bins of equal width", wording.percent),
    ("nll", "NLL", wording.decimal),
    ("brier", "Brier score", wording.decimal),
)


@dataclass(frozen=True)
class SilenceView:
    """What the section says of a split."""

    name: str
    headline: str
    fitted: str
    curve: Markup | None
    area: str
    answered: list[list[str]]
    sets: list[list[str]]
    unlike: str
    calibration: list[tuple[str, str, str]]
    temperature: str
    before: Markup | None
    after: Markup | None


def silence_views(names: Sequence[str], results: dict[str, Any], predictions: pd.DataFrame) -> list[SilenceView]:
    """A view for each split evaluated since Petriscope looks at this; in the order of ``names``."""
    return [
        _view(name, results[name], predictions[predictions["split"] == name])
        for name in names
        if isinstance(results[name].get("calibration"), dict)
    ]


def _view(name: str, metrics: dict[str, Any], rows: pd.DataFrame) -> SilenceView:
    p, right = _answers(rows)
    temperature = float(metrics["calibration"]["temperature"])
    before, after = metrics["calibration"]["before"], metrics["calibration"]["after"]
    curve = raw = scaled = None
    if len(p):
        curve = risk_curve(p, right, metrics.get("selective") or [], name)
        raw = _reliability(scale(p, 1 / temperature), right, f"{name}, as the network gives it")
        scaled = _reliability(p, right, f"{name}, at the temperature")
    return SilenceView(
        name=name,
        headline=_headline(metrics, name),
        fitted=_fitted(name, metrics),
        curve=curve,
        area=f"Area under the curve (AURC): {wording.decimal(metrics['aurc'])}; {wording.decimal(metrics['excess_aurc'])} "
        "of it could be taken away by putting all mistakes last.",
        answered=[_answered_row(row) for row in metrics.get("selective") or []],
        sets=[_set_row(row) for row in metrics.get("conformal") or []],
        unlike=_unlike(metrics.get("ood"), name),
        calibration=[(words, write(before[key]), write(after[key])) for key, words, write in CALIBRATION],
        temperature=_temperature_words(temperature),
        before=raw,
        after=scaled,
    )


def _answers(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    columns = [name for name in rows.columns if name.startswith("p_")]
    if not columns or not {"target", "predicted"} <= set(rows.columns):
        return np.zeros((0, 0), np.float32), np.zeros(0, bool)
    return rows[columns].to_numpy(dtype=np.float32), (rows["target"] == rows["predicted"]).to_numpy(dtype=bool)


def _reliability(p: np.ndarray, right: np.ndarray, name: str) -> Markup:
    return reliability(calibration_bins(p.max(1).astype(float), right.astype(float)), name)


def _temperature_words(temperature: float) -> str:
    if temperature == 1:
        return "No temperature was fitted: the probabilities are the network's own."
    change = "less" if temperature > 1 else "more"
    return (
        f"Temperature {temperature:.3g}, fitted on val: the logits are divided by it, which makes the model {change} sure "
        "and moves no image to another class."
    )


def _headline(metrics: dict[str, Any], name: str) -> str:
    rows = metrics.get("selective")
    if not rows:
        return "Nothing was fitted on val for these predictions, so no errors can be promised."
    row = next((row for row in rows if row["max_error"] == 0.01), rows[0])
    wanted = f"{100 * row['max_error']:g} %"
    if not row["guaranteed"]:
        return f"No confidence promises at most {wanted} errors: the images of val are too few or too often wrong."
    if not row["answered"]:
        return f"Asked for at most {wanted} errors, it answers none of the {name} images."
    return (
        f"Asked for at most {wanted} errors, it answers {wording.percent(row['coverage'], 1)} of the {name} images, and "
        f"{wording.percent_with_interval(row['error'], row['error_ci95'])} of these answers are wrong."
    )


def _fitted(name: str, metrics: dict[str, Any]) -> str:
    if not metrics.get("selective"):
        return ""
    delta = metrics["selective"][0]["delta"]
    promise = f"Thresholds come from val, and keep their promise for {100 * (1 - delta):g} of 100 draws of val."
    if name == "val":
        return f"{promise} These are the images they were fitted on: only test shows whether they hold."
    return f"{promise} The {name} images had no part in them."


def _answered_row(row: dict[str, Any]) -> list[str]:
    wanted = f"{100 * row['max_error']:g} %"
    if not row["guaranteed"]:
        return [wanted, "cannot be promised", wording.NONE, wording.NONE, wording.NONE]
    error = wording.percent_with_interval(row["error"], row["error_ci95"])
    threshold = wording.percent(row["threshold"]) if row["threshold"] > 0 else "any"
    return [wanted, threshold, wording.percent(row["coverage"]), f"{row['wrong']:,}", error]


def _set_row(row: dict[str, Any]) -> list[str]:
    return [
        f"{100 * row['level']:g} %",
        METHODS.get(row["method"], row["method"]),
        wording.percent_with_interval(row["coverage"], row["coverage_ci95"]),
        f"{row['mean_size']:.2f}",
        wording.percent(row["single"], 1),
        f"{wording.percent(row['worst_class_coverage'], 1)}, {row['worst_class']}",
    ]


def _unlike(ood: dict[str, Any] | None, name: str) -> str:
    if ood is None:
        return ""
    look, get = ("looks", "gets") if ood["flagged"] == 1 else ("look", "get")
    return (
        f"{wording.plural(ood['flagged'], f'{name} image')} ({wording.percent(ood['share'])}) {look} unlike anything "
        f"seen in training and {get} no answer. The limit lets {100 * ood['inside_of_val']:g} % of val pass."
    )


def risk_curve(p: np.ndarray, right: np.ndarray, rows: Sequence[dict[str, Any]], name: str) -> Markup:
    """Share of wrong answers by share of images answered, the surest first, with a dot at each promised error.

    Args:
        p: probabilities, float [N, K].
        right: bool [N].
        rows: of ``selective``; see `petriscope.trust.state.trust_metrics`.
    """
    coverage, risk = risk_coverage(doubt(p), right)
    chosen = np.unique(np.linspace(0, len(risk) - 1, min(MOST_POINTS, len(risk))).round().astype(int))
    # The first answers are few, and one mistake among them would set the scale of all.
    chosen = chosen[coverage[chosen] >= 0.05]
    shown = [row for row in rows if row["answered"]]
    top = max([float(risk[chosen].max()), *(row["error"] for row in shown), 1e-3]) * 1.15
    left, right_end, ceiling, base = 54, 400, 16, 210
    x, y = Axis(0, 1, left, right_end), Axis(0, top, base, ceiling)
    parts = []
    for tick in nice_ticks(0, top, 4):
        parts.append(f'<path class="grid" d="M{left} {y(tick):.1f}H{right_end}"/>')
        parts.append(text_at(left - 6, y(tick) + 3.5, f"{100 * tick:g} %", "end"))
    parts += [text_at(x(t), base + 14, f"{100 * t:.0f} %") for t in (0, 0.25, 0.5, 0.75, 1)]
    parts.append(f'<path class="axis" d="M{left} {base}H{right_end}"/>')
    path = " ".join(f"{x(float(coverage[i])):.1f},{y(float(risk[i])):.1f}" for i in chosen)
    parts.append(f'<polyline class="line-b" points="{path}"/>')
    for row in shown:
        tip = (
            f"asked for {100 * row['max_error']:g} % errors: {wording.percent(row['coverage'])} answered, "
            f"{wording.percent(row['error'])} of them wrong"
        )
        parts.append(dot(x(row["coverage"]), y(row["error"]), 3.6, "dot-a", tip))
    parts.append(text_at((left + right_end) / 2, base + 30, "answered, the surest first"))
    parts.append(text_at(left, 10, "wrong answers", "start"))
    half = float(risk[max(0, round(len(risk) / 2) - 1)])
    said = f"{wording.percent(half)} at half of the images, {wording.percent(float(risk[-1]))} at all"
    return svg(f"Share of wrong answers by share answered on {name}: {said}", 440, 244, parts)
