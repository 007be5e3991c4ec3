"""Axes, labels and images of the report."""

from __future__ import annotations

import base64
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from petriscope.report import wording
from petriscope.report.charts import Series, line_chart, nice_ticks, reliability, thumbnail


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.93, 0.99), (1, 200), (-3, 3), (0, 1e-5), (0, 123456)])
def test_ticks_are_within_and_few(low: float, high: float) -> None:
    ticks = nice_ticks(low, high, 5)
    assert 2 <= len(ticks) <= 11
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)


def test_a_chart_leaves_out_what_is_not_finite() -> None:
    chart = line_chart("Loss", [Series("train", "a", ((1, float("nan")), (2, 0.5), (3, 0.25)))], str, kept=3)
    assert "nan" not in chart and "kept: epoch 3" in chart
    assert line_chart("Loss", [Series("train", "a", ((1, float("inf")),))], str) == ""


def test_a_loss_over_powers_of_ten_is_drawn() -> None:
    values = [3000.0, 20.0, 4.0, 2.0, 1.0, 0.5, 0.2, 0.1]
    chart = line_chart("Loss", [Series("train", "a", tuple(enumerate(values, 1)))], lambda v: f"{v:g}")
    assert ">1000<" in chart and ">0.1<" in chart


def test_labels_of_curves_that_end_together_do_not_overlap() -> None:
    points = ((1, 0.5), (2, 0.9))
    chart = line_chart("Accuracy", [Series("train", "a", points), Series("val", "b", points)], str, share=True)
    heights = [float(text.split('y="')[1].split('"')[0]) for text in chart.split('<text class="ink-')[1:]]
    assert abs(heights[0] - heights[1]) >= 24


def test_reliability_draws_the_bins_that_have_images() -> None:
    confidence = np.array([0.97, 0.98, 0.5, 0.52])
    chart = reliability(confidence, np.array([1.0, 1.0, 0.0, 1.0]), "val")
    assert chart.count('class="bar"') == chart.count('class="dot-b"') == 2
    assert "2 at 98 % confidence: accuracy 100 %" in chart


@pytest.mark.parametrize("shape", [(6, 6, 1), (6, 9, 3), (500, 300, 3)])
def test_an_image_comes_back_from_its_uri(shape: tuple[int, int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    shown = thumbnail(pixels)
    image = Image.open(BytesIO(base64.b64decode(shown.uri.partition(",")[2])))
    assert max(shown.width, shown.height) <= 128 and max(image.size) <= 256
    if shown.small:
        assert np.array_equal(np.asarray(image).reshape(shape), pixels)
        assert shown.width % shape[1] == 0


def test_numbers_in_words() -> None:
    assert wording.percent_with_interval(0.98314, [0.9761, 0.9884]) == "98.31 % (97.6 to 98.8)"
    assert wording.percent_with_interval(None, [None, None]) == "–"
    assert wording.percent_with_interval(0.5, [None, None]) == "50.00 %"
    assert wording.short(11_180_000) == "11.2 million" and wording.short(999) == "999"
    assert wording.date("not a date") == "not a date"
    assert wording.glue("95 % (1 to 2)") == "95\u00a0% (1\u00a0to\u00a02)"
