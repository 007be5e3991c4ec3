"""The section on selective prediction: when the model abstains, which errors it guarantees, and prediction sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from petriscope.core.results import HELD_OUT, Calibration, ConformalRow, Evaluation, OODSummary, SelectiveRow
from petriscope.metrics.blocks import row_blocks
from petriscope.metrics.selective import risk_coverage, uncertainty
from petriscope.report import wording
from petriscope.report.charts import Axis, dot, nice_ticks, reliability, svg, text_at
from petriscope.report.metrics import groups_of
from petriscope.trust.temperature import scale

if TYPE_CHECKING:
    import pandas as pd

MOST_POINTS = 400  # of the curve
VAL = "val"
HEADLINE_ERROR = 0.01  # the requested error rate that the headline is about
METHODS = {
    "lac": "LAC: all classes above one threshold",
    "class": "LAC with a threshold per class (Mondrian)",
    "aps": "APS: most likely classes up to a cumulative probability",
    "raps": "RAPS: APS with a penalty on unlikely classes",
}


@dataclass(frozen=True)
class AbstentionView:
    """Selective prediction on one split.

    Args:
        fitted: on which images the thresholds were fitted.
        own: whether they are those of the split.
        curve: risk by coverage; None without predictions.
        area: under that curve, in a sentence.
        selective, sets: rows of the two tables.
        ood: how many images are flagged as out-of-distribution, in a sentence.
        calibration: name, and value before and after the temperature.
        before, after: reliability diagrams; None without predictions.
    """

    split: str
    headline: str
    fitted: str
    own: bool
    curve: Markup | None
    area: str
    selective: list[list[str]]
    sets: list[list[str]]
    ood: str
    calibration: list[tuple[str, str, str]]
    temperature: str
    before: Markup | None
    after: Markup | None


def abstention_views(
    evaluated: Mapping[str, Evaluation], rows: Mapping[str, pd.DataFrame], reference: str = VAL
) -> list[AbstentionView]:
    """A view for each split with predictions of a calibrated model.

    Args:
        rows: the predictions, by split.
        reference: what temperature and thresholds were fitted on.
    """
    return [
        _view(split, evaluation, evaluation.calibration, rows[split], reference)
        for split, evaluation in evaluated.items()
        if evaluation.calibration is not None
    ]


def _view(
    split: str, evaluation: Evaluation, calibration: Calibration, rows: pd.DataFrame, reference: str
) -> AbstentionView:
    p, correct = _probabilities(rows)
    selective = evaluation.selective or []
    curve = before = after = None
    if len(p):
        curve = risk_curve(p, correct, selective, split)
        right, index = correct.astype(float), groups_of(rows)
        blocks = row_blocks(len(p), 8 * p.shape[1])
        raw = np.concatenate([scale(p[some], 1 / calibration.temperature).max(1) for some in blocks])
        before = reliability(raw.astype(float), right, f"{split}, before temperature scaling", index)
        after = reliability(p.max(1).astype(float), right, f"{split}, after temperature scaling", index)
    area, excess = wording.decimal(evaluation.value("aurc")), wording.decimal(evaluation.value("excess_aurc"))
    return AbstentionView(
        split=split,
        headline=_headline(selective, split, evaluation.val_groups, reference),
        fitted=_fitted(selective, split, evaluation.val_groups, reference),
        own=split == reference,
        curve=curve,
        area=f"Area under the risk-coverage curve (AURC): {area}, which is {excess} more than with a perfect ranking, "
        "where all mistakes have the lowest confidence.",
        selective=[_selective_row(row) for row in selective],
        sets=[_set_row(row) for row in evaluation.conformal or []],
        ood=_ood(evaluation.ood, split, reference),
        calibration=_calibration_rows(calibration),
        temperature=_temperature(calibration.temperature, reference),
        before=before,
        after=after,
    )


def _probabilities(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities float32 [N, K] and whether the prediction is correct, bool [N]; empty where these are not known."""
    columns = [name for name in rows.columns if name.startswith("p_")]
    if not columns or not {"target", "predicted"} <= set(rows.columns):
        return np.zeros((0, 0), np.float32), np.zeros(0, bool)
    return rows[columns].to_numpy(dtype=np.float32), (rows["target"] == rows["predicted"]).to_numpy(dtype=bool)


def _calibration_rows(calibration: Calibration) -> list[tuple[str, str, str]]:
    before, after = calibration.before, calibration.after
    return [
        ("ECE, bins of equal counts", wording.percent(before.ece_equal_mass), wording.percent(after.ece_equal_mass)),
        ("ECE, bins of equal width", wording.percent(before.ece), wording.percent(after.ece)),
        ("NLL", wording.decimal(before.nll), wording.decimal(after.nll)),
        ("Brier score", wording.decimal(before.brier), wording.decimal(after.brier)),
    ]


def _temperature(temperature: float, reference: str) -> str:
    if temperature == 1:
        return "No temperature was fitted: the probabilities are those of the network."
    change = "less" if temperature > 1 else "more"
    return (
        f"The logits are divided by the temperature {temperature:.3g}, which was fitted on {_named(reference)}. This makes the "
        f"model {change} confident and does not change any predicted class."
    )


def _named(reference: str) -> str:
    return "the held-out images" if reference == HELD_OUT else reference


def _headline(selective: Sequence[SelectiveRow], split: str, groups: int | None, reference: str) -> str:
    if not selective:
        return f"Nothing was fitted on {_named(reference)} for these predictions, so no error rate can be guaranteed."
    row = next((row for row in selective if row.max_error == HEADLINE_ERROR), selective[0])
    requested = f"{100 * row.max_error:g} %"
    if not row.guaranteed:
        images = f"{reference} images" if reference in (VAL, HELD_OUT) else reference
        images = images if groups is None else f"{wording.plural(groups, 'group')} of {_named(reference)}"
        return (
            f"No confidence threshold guarantees at most {requested} errors: the {images} are too few, or too often "
            "predicted incorrectly."
        )
    if not row.answered:
        return f"With at most {requested} errors requested, the model abstains on all {split} images."
    return (
        f"With at most {requested} errors requested, the model answers {wording.percent(row.coverage, 1)} of the {split} "
        f"images and abstains on the rest. {wording.percent_with_interval(row.error, row.error_ci95)} of its answers are "
        "wrong."
    )


def _fitted(selective: Sequence[SelectiveRow], split: str, groups: int | None, reference: str) -> str:
    if not selective:
        return ""
    share = 100 * (1 - selective[0].delta)
    guarantee = (
        f"The thresholds were fitted on {_named(reference)}. Their guarantee holds with a probability of {share:g} % over draws "
        f"of {reference if reference == VAL else 'such images'}."
    )
    if groups is not None:
        guarantee += (
            f" It rests on the {wording.plural(groups, 'group')} of {_named(reference)} and is for images of new groups, because "
            "images of one group are not independent."
        )
    if reference == HELD_OUT:
        guarantee += (
            " It is that of the networks of the folds; for the model that is made after them, it is approximate."
        )
    elif reference != VAL:
        return f"{guarantee} The {split} images are from elsewhere, and nothing is guaranteed for such images."
    if split == reference:
        return (
            f"{guarantee} These are the images that they were fitted on: only {'test shows' if split == VAL else 'others show'} "
            "whether they hold."
        )
    return f"{guarantee} The {split} images were not used to fit them."


def _selective_row(row: SelectiveRow) -> list[str]:
    requested = f"{100 * row.max_error:g} %"
    if not row.guaranteed:
        return [requested, "cannot be guaranteed", wording.NONE, wording.NONE, wording.NONE]
    threshold = wording.percent(row.threshold) if row.threshold else "any"
    error = wording.percent_with_interval(row.error, row.error_ci95)
    return [requested, threshold, wording.percent(row.coverage), f"{row.wrong:,}", error]


def _set_row(row: ConformalRow) -> list[str]:
    return [
        f"{100 * row.level:g} %",
        METHODS.get(row.method, row.method),
        wording.percent_with_interval(row.coverage, row.coverage_ci95),
        f"{row.mean_size:.2f}",
        wording.percent(row.single, 1),
        f"{wording.percent(row.worst_class_coverage, 1)}, {row.worst_class}",
    ]


def _ood(ood: OODSummary | None, split: str, reference: str) -> str:
    if ood is None:
        return ""
    images, is_ = wording.plural(ood.flagged, f"{split} image"), "is" if ood.flagged == 1 else "are"
    return (
        f"{images} ({wording.percent(ood.share)}) {is_} flagged as out-of-distribution, and the model abstains there. The "
        f"detector accepts {100 * ood.inside_of_val:g} % of {VAL if reference != HELD_OUT else _named(reference)}."
    )


def risk_curve(p: np.ndarray, correct: np.ndarray, rows: Sequence[SelectiveRow], split: str) -> Markup:
    """Risk by coverage: the share of wrong answers by the share of images answered, the most confident first, with a dot
    at each guaranteed error rate.

    Args:
        p: probabilities, float [N, K].
        correct: bool [N].
        rows: of the evaluation; see `petriscope.trust.state.trust_metrics`.
        split: train, val or test.
    """
    coverage, risk = risk_coverage(uncertainty(p), correct)
    chosen = np.unique(np.linspace(0, len(risk) - 1, min(MOST_POINTS, len(risk))).round().astype(int))
    # Among the first few answers, a single mistake would set the scale of the whole chart.
    chosen = chosen[coverage[chosen] >= 0.05]
    shown = [(row, row.error) for row in rows if row.answered and row.error is not None]
    top = max([float(risk[chosen].max()), *(error for _, error in shown), 1e-3]) * 1.15
    left, right, ceiling, base = 54, 400, 16, 210
    x, y = Axis(0, 1, left, right), Axis(0, top, base, ceiling)
    parts = []
    for tick in nice_ticks(0, top, 4):
        parts.append(f'<path class="grid" d="M{left} {y(tick):.1f}H{right}"/>')
        parts.append(text_at(left - 6, y(tick) + 3.5, f"{100 * tick:g} %", "end"))
    parts += [text_at(x(t), base + 14, f"{100 * t:.0f} %") for t in (0, 0.25, 0.5, 0.75, 1)]
    parts.append(f'<path class="axis" d="M{left} {base}H{right}"/>')
    path = " ".join(f"{x(float(coverage[i])):.1f},{y(float(risk[i])):.1f}" for i in chosen)
    parts.append(f'<polyline class="line-b" points="{path}"/>')
    for row, error in shown:
        tip = (
            f"at most {100 * row.max_error:g} % errors requested: {wording.percent(row.coverage)} answered, "
            f"{wording.percent(error)} of the answers wrong"
        )
        parts.append(dot(x(row.coverage), y(error), 3.6, "dot-a", tip))
    parts.append(text_at((left + right) / 2, base + 30, "coverage: share answered, most confident first"))
    parts.append(text_at(left, 10, "risk: share of wrong answers", "start"))
    half = float(risk[max(0, round(len(risk) / 2) - 1)])
    label = f"{wording.percent(half)} at a coverage of 50 %, {wording.percent(float(risk[-1]))} at 100 %"
    return svg(f"Risk by coverage on {split}: {label}", 440, 244, parts)
