"""Small charts as inline SVG: no script and no requests; colours are the page's CSS variables, so dark mode and print follow.

Each function returns markup whose texts are escaped. A chart is 360 units wide and is scaled to its column, so that its letters
stay readable on a phone. ``alt`` says in words what the chart shows; marks carry their numbers as tooltips.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Literal

import numpy as np

WIDTH, HEIGHT = 360, 218
LEFT, RIGHT, TOP, BOTTOM = 44, 348, 24, 178
COLOURS = 6
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
# (unit of numpy, how many of them, about how many milliseconds): what may lie between two ticks of time.
TIME_STEPS: tuple[tuple[str, int, float], ...] = (
    *(("m", n, n * MINUTE) for n in (1, 5, 15, 30)),
    *(("h", n, n * HOUR) for n in (1, 3, 6, 12)),
    *(("D", n, n * DAY) for n in (1, 2, 7, 14)),
    *(("M", n, n * 30.44 * DAY) for n in (1, 2, 3, 6)),
    *(("Y", n, n * 365.25 * DAY) for n in (1, 2, 5, 10, 20, 50, 100)),
)
Kind = Literal["linear", "log", "time"]


def compact(value: float) -> str:
    """A number for an axis: 0, 0.05, 12, 3k, 1.5M, 2T."""
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def percent(value: float) -> str:
    """A share for an axis: 0.1 %, 5 %."""
    return f"{100 * value:.3g} %"


@dataclass(frozen=True)
class Axis:
    """What an axis measures; ``low`` and ``high`` override the range of the data."""

    label: str
    kind: Kind = "linear"
    low: float | None = None
    high: float | None = None
    form: Callable[[float], str] = compact


@dataclass(frozen=True)
class Point:
    """A dot with its tooltip, and an interval in y where ``low`` and ``high`` are given. ``hollow``: an open dot."""

    x: float
    y: float
    tip: str
    low: float | None = None
    high: float | None = None
    hollow: bool = False


@dataclass(frozen=True)
class Line:
    """A curve through ``xs, ys`` in the colour of number ``colour`` (None: a thin grey guide), and dots on top.

    ``lows, highs``: a band around the curve, as long as it.
    """

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: int | None = 0
    points: Sequence[Point] = ()
    lows: Sequence[float] = ()
    highs: Sequence[float] = ()


@dataclass(frozen=True)
class Part:
    """One layer of stacked columns, a value a column."""

    name: str
    values: Sequence[float]
    colour: int = 0


class Scale:
    """A range of data on a range of units."""

    def __init__(self, axis: Axis, values: Sequence[float], start: float, end: float) -> None:
        known = [value for value in values if math.isfinite(value) and (axis.kind != "log" or value > 0)]
        low = axis.low if axis.low is not None else min(known, default=0.1)
        high = axis.high if axis.high is not None else max(known, default=1.0)
        if not high > low:
            spread = abs(low) * 0.05 or 1.0
            low, high = (low / 2, low * 2) if axis.kind == "log" else (low - spread, low + spread)
        self.axis, self.low, self.high, self.start, self.end = axis, low, high, start, end

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        value = min(max(value, low), high)
        if self.axis.kind == "log":
            value, low, high = math.log(value), math.log(low), math.log(high)
        return round(self.start + (value - low) / (high - low) * (self.end - self.start), 1)

    def ticks(self) -> list[tuple[float, str]]:
        if self.axis.kind == "time":
            return time_ticks(self.low, self.high)
        values = log_ticks(self.low, self.high) if self.axis.kind == "log" else linear_ticks(self.low, self.high)
        return [(value, self.axis.form(value)) for value in values]


def linear_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round values between ``low`` and ``high``, at most ``most`` steps apart by 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(power * n for n in (1, 2, 5, 10) if (high - low) / (power * n) <= most + 1e-9)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between ``low`` and ``high``; with 2 and 5 between them on a short range, every second on a long one. Where
    that leaves fewer than three, round values as on a linear axis."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    powers = [10.0**power for power in range(first, last + 1) if low * 0.999 <= 10.0**power <= high * 1.001]
    if len(powers) > 6:
        return powers[:: math.ceil(len(powers) / 6)]
    if len(powers) > 2:
        return powers
    fine = [10.0**power * n for power in range(first, last + 1) for n in (1, 2, 5)]
    fine = [value for value in fine if low * 0.999 <= value <= high * 1.001]
    return fine if len(fine) > 2 else linear_ticks(low, high)


def time_ticks(low: float, high: float, most: int = 5) -> list[tuple[float, str]]:
    """Whole years, months, days, hours or minutes (UTC) between two moments in ms."""
    unit, count, _ = next((step for step in TIME_STEPS if (high - low) / step[2] <= most), TIME_STEPS[-1])
    first, last = (np.datetime64(int(moment), "ms").astype(f"datetime64[{unit}]").astype(int) for moment in (low, high))
    # Years count from 1970 and months from its January: shift them, so that ticks fall on round years.
    shift = 1970 if unit == "Y" else 0
    numbers = np.array([number for number in range(int(first), int(last) + 1) if (number + shift) % count == 0], dtype=np.int64)
    moments = numbers.astype(f"datetime64[{unit}]").astype("datetime64[ms]").astype(np.int64).astype(float).tolist()
    return [(moment, moment_label(moment, unit)) for moment in moments if low <= moment <= high]


def moment_label(moment: float, unit: str) -> str:
    """A moment in ms as its year, month, day or clock time (UTC), as short as ``unit`` allows."""
    at = datetime.fromtimestamp(moment / 1000, UTC)
    if unit == "Y":
        return str(at.year)
    if unit == "M":
        return f"{MONTHS[at.month - 1]} {at.year}"
    return f"{at.day} {MONTHS[at.month - 1]}" if unit == "D" else f"{at:%H:%M}"


def colour_class(colour: int | None) -> str:
    """CSS classes of a series: a colour, and from the seventh series on another dash."""
    return "guide" if colour is None else f"c{colour % COLOURS} d{min(colour // COLOURS, 2)}"


def lines(series: Sequence[Line], x: Axis, y: Axis, alt: str) -> str:
    """Curves with dots and intervals on two axes."""
    dots = [point for line in series for point in line.points]
    in_y = [v for p in dots for v in (p.y, p.low, p.high) if v is not None]
    in_y += [v for line in series for v in (*line.lows, *line.highs)]
    to_x = Scale(x, [*(v for line in series for v in line.xs), *(p.x for p in dots)], LEFT, RIGHT)
    to_y = Scale(y, [*(v for line in series for v in line.ys), *in_y], BOTTOM, TOP)
    drawn = []
    for line in series:
        kind = colour_class(line.colour)
        if len(line.lows) > 0:
            around = [*zip(line.xs, line.highs, strict=True), *reversed(list(zip(line.xs, line.lows, strict=True)))]
            corners = " ".join(f"{to_x(a)},{to_y(b)}" for a, b in around)
            drawn.append(f'<polygon class="band {kind}" points="{corners}"><title>{escape(line.name)}</title></polygon>')
        if len(line.xs) > 0:
            path = " ".join(f"{to_x(a)},{to_y(b)}" for a, b in zip(line.xs, line.ys, strict=True))
            drawn.append(f'<polyline class="line {kind}" points="{path}"><title>{escape(line.name)}</title></polyline>')
        for p in line.points:
            at_x, at_y = to_x(p.x), to_y(p.y)
            bar = ""
            if p.low is not None and p.high is not None:
                bar = f'<path class="line {kind}" d="M{at_x} {to_y(p.low)}V{to_y(p.high)}"/>'
            dot = f'<circle class="dot {kind}{" hollow" if p.hollow else ""}" cx="{at_x}" cy="{at_y}" r="3"/>'
            drawn.append(f"<g>{bar}{dot}<title>{escape(p.tip)}</title></g>")
    return _svg(_frame(to_x, to_y) + "".join(drawn), alt)


def columns(labels: Sequence[str], parts: Sequence[Part], x: str, y: Axis, alt: str, tips: Sequence[str]) -> str:
    """Stacked columns side by side, one a label; labels are thinned where they would touch."""
    total = [sum(layer) for layer in zip(*(part.values for part in parts), strict=True)]
    to_y = Scale(Axis(y.label, low=0.0, high=y.high, form=y.form), total, BOTTOM, TOP)
    wide = (RIGHT - LEFT) / max(1, len(labels))
    gap = min(2.0, wide * 0.15)
    drawn = []
    for number, tip in enumerate(tips):
        base, bars = 0.0, ""
        for part in parts:
            top = base + part.values[number]
            high, low = to_y(top), to_y(base)
            if part.values[number] > 0:
                at = f'x="{LEFT + number * wide + gap / 2:.2f}" width="{wide - gap:.2f}"'
                bars += f'<rect class="bar {colour_class(part.colour)}" {at} y="{high}" height="{max(low - high, 0.6):.1f}"/>'
            base = top
        drawn.append(f"<g>{bars}<title>{escape(tip)}</title></g>")
    longest = max((len(label) for label in labels), default=1)
    every = max(1, math.ceil((longest * 5.6 + 8) / wide))
    for number in range(0, len(labels), every):
        drawn.append(_text(LEFT + (number + 0.5) * wide, BOTTOM + 14, labels[number], "middle"))
    return _svg(_frame(None, to_y, x) + "".join(drawn), alt)


def spans(values: Sequence[float], starts: Sequence[float], end: float, y: Axis, parts: Sequence[Part], alt: str) -> str:
    """Stacked columns on an axis of time: column i reaches from ``starts[i]`` to the next start; ``values`` are its totals."""
    to_x = Scale(Axis("", "time"), [*starts, end], LEFT, RIGHT)
    to_y = Scale(Axis(y.label, low=0.0, form=y.form), values, BOTTOM, TOP)
    drawn = []
    for number, start in enumerate(starts):
        left, right = to_x(start), to_x(starts[number + 1] if number + 1 < len(starts) else end)
        base, bars = 0.0, ""
        shown = datetime.fromtimestamp(start / 1000, UTC).isoformat(" ", "minutes")[:16].removesuffix(" 00:00")
        tip = f"{shown}: {values[number]:,.0f}"
        for part in (part for part in parts if part.values[number] > 0):
            top = base + part.values[number]
            at = f'x="{left}" width="{max(right - left - 0.5, 0.5):.1f}" y="{to_y(top)}"'
            bars += f'<rect class="bar {colour_class(part.colour)}" {at} height="{max(to_y(base) - to_y(top), 0.6):.1f}"/>'
            base = top
        drawn.append(f"<g>{bars}<title>{escape(tip)}</title></g>")
    return _svg(_frame(to_x, to_y) + "".join(drawn), alt)


def strip(scale: Scale, value: float, low: float | None, high: float | None, colour: int | None, tip: str) -> str:
    """A value with its interval on one line, for a cell of a table; all cells of a column share ``scale``."""
    kind = "c5" if colour is None else colour_class(colour)
    ticks = "".join(f'<path class="{"axis" if at == 0 else "grid"}" d="M{scale(at)} 0V22"/>' for at, _ in scale.ticks())
    bar = "" if low is None or high is None else f'<path class="thick {kind}" d="M{scale(low)} 11H{scale(high)}"/>'
    dot = f'<circle class="dot {kind}" cx="{scale(value)}" cy="11" r="4"/>'
    opening = f'<svg class="strip" viewBox="0 0 200 22" role="img" aria-label="{escape(tip)}">'
    return f"{opening}{ticks}<g>{bar}{dot}<title>{escape(tip)}</title></g></svg>"


def strip_scale(values: Sequence[float], *, signed: bool = False) -> Scale:
    """The scale of a column of strips, with zero on it; ``signed`` values may lie on both sides."""
    low, high = min([0.0, *values]), max([0.0, *values])
    margin = 0.04 * (high - low)
    return Scale(Axis("", low=low - margin if signed else 0.0, high=(high + margin) or 1.0), [], 8, 192)


def strip_axis(scale: Scale) -> str:
    """The numbers below a column of strips."""
    words = "".join(_text(scale(value), 12, text, "middle") for value, text in scale.ticks())
    return f'<svg class="strip" viewBox="0 0 200 16" aria-hidden="true">{words}</svg>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _frame(to_x: Scale | None, to_y: Scale, x_label: str = "") -> str:
    """Grid, ticks and names of the axes; the name of y stands level above its axis, where it can be read."""
    drawn = [_text(4, 11, to_y.axis.label, "start")]
    for value, text in to_y.ticks():
        drawn.append(f'<path class="grid" d="M{LEFT} {to_y(value)}H{RIGHT}"/>')
        drawn.append(_text(LEFT - 5, to_y(value) + 3.5, text, "end"))
    drawn.append(f'<path class="axis" d="M{LEFT} {BOTTOM}H{RIGHT}"/>')
    for value, text in to_x.ticks() if to_x is not None else ():
        at = to_x(value) if to_x is not None else 0.0
        drawn.append(f'<path class="axis" d="M{at} {BOTTOM}v4"/>')
        drawn.append(_text(min(max(at, 12), RIGHT + 10 - 2.8 * len(text)), BOTTOM + 15, text, "middle"))
    label = x_label or (to_x.axis.label if to_x is not None else "")
    return "".join(drawn) + (_text(RIGHT, HEIGHT - 8, label, "end") if label else "")


def _svg(content: str, alt: str) -> str:
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(alt)}">{content}</svg>'
