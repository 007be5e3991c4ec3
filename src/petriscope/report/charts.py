"""Charts as inline SVG in the colors of the page, and images as PNG data URIs."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from markupsafe import Markup, escape

from petriscope.core.drawing import class_colors
from petriscope.metrics.classification import bin_spans, calibration_bins

LARGEST = 256  # pixels per side that an image keeps in the page
ENLARGE_TO = 112  # pixels per side that small images are shown at, about
WIDTH, HEIGHT = 360, 236
LEFT, RIGHT, TOP, BOTTOM = 46, 62, 22, 34


@dataclass(frozen=True)
class Series:
    """A curve.

    Args:
        style: of its color, ``a`` or ``b``.
        points: x and y.
    """

    name: str
    style: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Axis:
    """Maps values to pixels, on a logarithmic scale where ``log`` is set."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)

    def ticks(self, about: int = 5) -> list[float]:
        return _log_ticks(self.low, self.high) if self.log else nice_ticks(self.low, self.high, about)


@dataclass(frozen=True)
class Thumbnail:
    """An image for an ``img`` element: its data URI and the size to show it at."""

    uri: str
    width: int
    height: int
    small: bool


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values within [low, high], roughly ``about`` of them."""
    reach = high - low
    if reach <= 0 or not math.isfinite(reach):
        return [low]
    raw = reach / max(about, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1,) if len(powers) > 4 else (1, 2, 5)
    return [m * 10.0**p for p in powers for m in steps if low * 0.999 <= m * 10.0**p <= high * 1.001]


def line_chart(
    title: str, series: Sequence[Series], write: Callable[[float], str], kept: int | None = None, share: bool = False
) -> Markup:
    """Curves over epochs, each with its name at the right end; empty without any points.

    Args:
        title: for screen readers; the template shows its own.
        series: points (epoch, value); values that are not finite are left out.
        write: formats a value.
        kept: the epoch to mark.
        share: values are shares, so the axis ends at 1 at most and need not begin at 0.
    """
    series = [Series(s.name, s.style, tuple(p for p in s.points if math.isfinite(p[1]))) for s in series]
    series = [s for s in series if s.points]
    if not series:
        return Markup("")
    epochs = [x for s in series for x, _ in s.points]
    x = Axis(min(epochs), max(epochs), LEFT, WIDTH - RIGHT)
    y = _value_axis([v for s in series for _, v in s.points], share)
    parts = [_grid(y, write), _epoch_axis(x)]
    if kept is not None and x.low <= kept <= x.high:
        parts.append(_kept_mark(x(kept), x, kept))
    labels = spread([y(s.points[-1][1]) for s in series], 28, TOP + 6, HEIGHT - BOTTOM - 14)
    for s, label in zip(series, labels, strict=True):
        parts.append(_curve(s, x, y, kept, write))
        last = s.points[-1]
        parts.append(
            f'<text class="ink-{s.style}" x="{x.end + 8:.1f}" y="{label + 1:.1f}">{escape(s.name)}'
            f'<tspan class="value" x="{x.end + 8:.1f}" dy="12">{escape(write(last[1]))}</tspan></text>'
        )
    ends = "; ".join(f"{s.name}: from {write(s.points[0][1])} to {write(s.points[-1][1])}" for s in series)
    return svg(f"{title} by epoch. {ends}", WIDTH, HEIGHT, parts)


def _value_axis(values: list[float], share: bool) -> Axis:
    low, high = min(values), max(values)
    bottom, top = HEIGHT - BOTTOM, TOP
    if share:
        room = max((high - low) * 0.06, 0.002)
        return Axis(max(0.0, low - room), min(1.0, high + room), bottom, top)
    # On a linear axis, the end of a loss that falls by powers of ten could not be read.
    if low > 0 and high / low > 100 and high / float(np.median(values)) > 8:
        return Axis(low / 1.2, high * 1.2, bottom, top, log=True)
    return Axis(min(0.0, low), high * 1.06 if high > 0 else 1.0, bottom, top)


def text_at(at_x: float, at_y: float, text: str, anchor: str = "middle", style: str = "tick") -> str:
    """Text on a chart, anchored at its ``start``, ``middle`` or ``end``."""
    return f'<text class="{style}" x="{at_x:.1f}" y="{at_y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _rotated_text(at_x: float, at_y: float, text: str) -> str:
    place = f"translate({at_x:.0f} {at_y:.0f}) rotate(-90)"
    return f'<text class="tick" transform="{place}" text-anchor="middle">{escape(text)}</text>'


def dot(at_x: float, at_y: float, radius: float, style: str, tip: str) -> str:
    """A dot with a tooltip; ``style`` is the class of its color, such as ``dot-b``."""
    title = f"<title>{escape(tip)}</title>"
    return f'<circle class="{style}" cx="{at_x:.1f}" cy="{at_y:.1f}" r="{radius:.1f}">{title}</circle>'


def _grid(y: Axis, write: Callable[[float], str]) -> str:
    lines = []
    for tick in y.ticks(4):
        at = y(tick)
        lines.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>')
        lines.append(text_at(LEFT - 6, at + 3.5, write(tick), "end"))
    return "".join(lines)


def _epoch_axis(x: Axis) -> str:
    ticks = [t for t in nice_ticks(x.low, x.high, 5) if t == round(t)]
    if x.low not in ticks:  # the first epoch, 1, is not a multiple of the step
        crowded = ticks and x(ticks[0]) - x(x.low) < 16
        ticks = [x.low, *(ticks[1:] if crowded else ticks)]
    base = HEIGHT - BOTTOM
    out = [f'<path class="axis" d="M{LEFT} {base}H{WIDTH - RIGHT}"/>']
    out += [text_at(x(t), base + 14, f"{t:.0f}") for t in ticks]
    out.append(text_at((x.start + x.end) / 2, HEIGHT - 4, "epoch"))
    return "".join(out)


def _kept_mark(at: float, x: Axis, kept: int) -> str:
    right = at < (x.start + x.end) / 2
    anchor, shift = ("start", -3) if right else ("end", 3)
    line = f'<path class="kept" d="M{at:.1f} {TOP - 6}V{HEIGHT - BOTTOM}"/>'
    return line + text_at(at + shift, TOP - 10, f"kept: epoch {kept}", anchor)


def _curve(s: Series, x: Axis, y: Axis, kept: int | None, write: Callable[[float], str]) -> str:
    path = " ".join(f"{x(epoch):.1f},{y(value):.1f}" for epoch, value in s.points)
    out = f'<polyline class="line-{s.style}" points="{path}"/>' if len(s.points) > 1 else ""
    for epoch, value in s.points:
        shown = epoch == kept or len(s.points) <= 2
        if shown or len(s.points) <= 120:
            style, radius = (f"dot-{s.style}", 3.2) if shown else ("hit", 6)  # an invisible dot has the tooltip
            out += dot(x(epoch), y(value), radius, style, f"epoch {epoch:.0f}, {s.name}: {write(value)}")
    return out


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near the wanted ones, at least ``gap`` apart, within [low, high] and in the same order."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    at = [min(max(wanted[i], low), high) for i in order]
    for i in range(1, len(at)):
        at[i] = max(at[i], at[i - 1] + gap)
    if at and at[-1] > high:
        at[-1] = high
        for i in range(len(at) - 2, -1, -1):
            at[i] = min(at[i], at[i + 1] - gap)
    out = [0.0] * len(at)
    for place, i in enumerate(order):
        out[i] = at[place]
    return out


def reliability(confidence: np.ndarray, correct: np.ndarray, name: str, index: np.ndarray | None = None) -> Markup:
    """Accuracy by confidence, with 95 % intervals, over a histogram of the confidence.

    Args:
        confidence, correct: float [N].
        name: the split.
        index: groups of the images, int64 [N]; None: images are independent.
    """
    bins, spans = calibration_bins(confidence, correct), bin_spans(confidence, correct, index)
    count, means, accuracy = bins["count"], bins["confidence"], bins["accuracy"]
    left, right, size, base, tall = 54, 14, 300, 318, 64
    x, y = Axis(0, 1, left, left + size), Axis(0, 1, base, base - size)
    parts = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts.append(f'<path class="grid" d="M{left} {y(tick):.1f}h{size}M{x(tick):.1f} {base}v{-size}"/>')
        parts.append(text_at(left - 6, y(tick) + 3.5, f"{100 * tick:.0f} %", "end"))
    parts.append(f'<path class="diagonal" d="M{x(0):.1f} {y(0):.1f}L{x(1):.1f} {y(1):.1f}"/>')
    parts.append(text_at(x(0.985), y(0.02), "dashed: confidence equals accuracy", "end"))
    whole = zip(count.tolist(), means.tolist(), accuracy.tolist(), spans, strict=True)
    filled = [(n, c, a, span) for n, c, a, span in whole if n]
    parts += [_bin_mark(x, y, *values) for values in filled]
    parts.append(_rotated_text(11, base - size / 2, "accuracy"))
    parts.append(_histogram(count, x, base + 22, tall))
    bottom = base + 22 + tall
    parts += [text_at(x(t), bottom + 14, f"{100 * t:.0f} %") for t in (0, 0.25, 0.5, 0.75, 1)]
    parts.append(text_at(x(0.5), bottom + 29, "confidence"))
    bins_in_words = "; ".join(f"{n} at {100 * c:.0f} % confidence: accuracy {100 * a:.0f} %" for n, c, a, _ in filled)
    return svg(f"Accuracy by confidence on {name}. {bins_in_words}", left + size + right, bottom + 34, parts)


def _bin_mark(x: Axis, y: Axis, n: int, confidence: float, accuracy: float, span: tuple[float, float]) -> str:
    low, high = span
    at, radius = x(confidence), 2.6 + min(2.4, 0.8 * math.log10(n))
    tip = f"{n:,} images, mean confidence {100 * confidence:.1f} %, accuracy {100 * accuracy:.1f} %"
    whisker = f'<path class="whisker" d="M{at:.1f} {y(low):.1f}V{y(high):.1f}"/>' if math.isfinite(low) else ""
    return whisker + dot(at, y(accuracy), radius, "dot-b", tip)


def _histogram(count: np.ndarray, x: Axis, top: float, tall: float) -> str:
    """Bars on a logarithmic scale, because most images are in the last bin."""
    full = math.log1p(max(int(count.max()), 1))
    out = [f'<path class="axis" d="M{x.start} {top + tall:.1f}H{x.end}"/>']
    for i, n in enumerate(count.tolist()):
        if not n:
            continue
        height = (tall - 12) * math.log1p(n) / full
        left, right = x(i / len(count)) + 1, x((i + 1) / len(count)) - 1
        place = f'x="{left:.1f}" y="{top + tall - height:.1f}" width="{right - left:.1f}" height="{height:.1f}"'
        out.append(f'<rect class="bar" {place}/>')
        out.append(text_at((left + right) / 2, top + tall - height - 3, _compact(n), style="count"))
    return "".join(out)


def _compact(n: int) -> str:
    """A count in at most four characters, which fit above a bar."""
    return str(n) if n < 10_000 else f"{n / 1000:.0f}k" if n < 1_000_000 else f"{n / 1e6:.0f}M"


def interval_mark(value: float | None, ci95: Sequence[float | None] | None, floor: float) -> Markup:
    """A dot and its interval on a scale from ``floor`` to 1, for a table that also shows the number."""
    if value is None:
        return Markup("")
    low, high = ci95 if ci95 is not None else (None, None)
    x = Axis(floor, 1.0, 5, 135)
    parts = ['<path class="grid" d="M5 8H135M5 4v8M135 4v8"/>']
    if low is not None and high is not None:
        parts.append(f'<path class="whisker" d="M{x(max(low, floor)):.1f} 8H{x(high):.1f}"/>')
    parts.append(f'<circle class="dot-b" cx="{x(max(value, floor)):.1f}" cy="8" r="3.2"/>')
    size = 'viewBox="0 0 140 16" width="140" height="16"'
    return Markup(f'<svg class="mark" {size} aria-hidden="true">{"".join(parts)}</svg>')


def thumbnail(pixels: np.ndarray) -> Thumbnail:
    """A PNG of an image uint8 [H, W, C], C 1 or 3; small images are to be shown enlarged."""
    from PIL import Image

    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    if max(image.size) > LARGEST:
        image.thumbnail((LARGEST, LARGEST))
    buffer = BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    side = max(image.size)
    factor = max(1, round(ENLARGE_TO / side)) if side <= ENLARGE_TO else ENLARGE_TO / side
    return Thumbnail(uri, max(1, round(image.width * factor)), max(1, round(image.height * factor)), side <= ENLARGE_TO)


def class_legend(classes: Sequence[str]) -> list[tuple[str, str]]:
    """Names and colors of the classes, the colors as ``#rrggbb``."""
    colors = class_colors(len(classes)).tolist()
    return [(name, "#{:02x}{:02x}{:02x}".format(*color)) for name, color in zip(classes, colors, strict=True)]


def svg(label: str, width: float, height: float, parts: Iterable[str]) -> Markup:
    """A chart of ``width`` by ``height`` units made of its parts; ``label`` is for screen readers."""
    frame = f'class="chart" viewBox="0 0 {width:.0f} {height:.0f}" role="img"'
    return Markup(f'<svg {frame} aria-label="{escape(label)}">{"".join(parts)}</svg>')
