"""Charts as inline SVG: widths in percent and heights in pixels, so that text keeps its size on any screen.

Each row of a chart is a line of text with its drawing below it, which reads alike on a phone and on paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from modelium.report import numbers
from modelium.report.svg import element, picture, share, text

Kind = Literal["original", "winner", "other", "failed"]

_ROW = 42
_TRACK = 25
_BAR = 10
_AXIS = 26
STAGE_COLOURS = 6
"""Colours of stages in the style sheet, s0 to s5."""


@dataclass(frozen=True)
class Bar:
    """One row of a bar chart; ``low`` and ``high`` are the noise interval, ``far`` a p95 mark, all in one unit."""

    label: str
    value: float
    written: str
    kind: Kind
    low: float | None = None
    high: float | None = None
    far: float | None = None
    tip: str = ""


@dataclass(frozen=True)
class Dot:
    """One row of a dot chart on a logarithmic axis; ``limit`` is drawn as a mark of its own."""

    label: str
    value: float
    written: str
    kind: Kind
    low: float | None = None
    high: float | None = None
    limit: float | None = None
    tip: str = ""


def noise_interval(rounds: Sequence[float]) -> tuple[float, float] | None:
    """Return the distribution-free 95% interval of the median of ``rounds``, or None below six rounds.

    The k-th least and k-th largest rounds, k the largest for which 2 P(Binomial(n, 1/2) < k) <= 5% (the sign test
    turned round); it assumes no shape of the noise.
    """
    n = len(rounds)
    if n < 6:
        return None
    tail, k = 0.0, 0
    while True:
        tail += math.comb(n, k) * 0.5**n
        if 2 * tail > 0.05:
            break
        k += 1
    ordered = sorted(rounds)
    return ordered[k - 1], ordered[n - k]


def bars(key: str, title: str, description: str, rows: Sequence[Bar], *, least_top: float = 0) -> Markup:
    """Return a bar chart from zero; ``least_top`` is the least value that the right edge stands for."""
    top = max([least_top, *(max(r.value, r.high or 0, r.far or 0) for r in rows)]) or 1.0
    parts: list[Markup] = []
    for i, row in enumerate(rows):
        y = i * _ROW
        parts += _heading(y, row.label, row.written, row.kind, row.tip)
        parts.append(element("rect", x=0, y=y + _TRACK, width="100%", height=_BAR, rx=3, class_="track"))
        parts.append(
            element(
                "rect", x=0, y=y + _TRACK, width=share(row.value / top), height=_BAR, rx=3, class_=f"bar {row.kind}"
            )
        )
        if row.low is not None and row.high is not None:
            parts.append(_span(y + _TRACK + _BAR / 2, row.low / top, row.high / top))
        if row.far is not None:
            x = share(row.far / top)
            parts.append(element("line", x1=x, x2=x, y1=y + _TRACK - 3, y2=y + _TRACK + _BAR + 3, class_="far"))
    return picture(key, title, description, *parts, width="100%", height=max(1, len(rows)) * _ROW, class_="chart")


def speedups(key: str, title: str, description: str, rows: Sequence[Dot]) -> Markup:
    """Return ratios to the original with their intervals, on a logarithmic axis through 1."""
    values = [v for r in rows for v in (r.value, r.low, r.high) if v]
    low = min(-0.5, math.floor(math.log2(min(values, default=1)) * 2) / 2)
    high = max(1.0, math.ceil(math.log2(max(values, default=1)) * 2) / 2)
    step = max(1, math.ceil((high - low) / 8))
    exponents = {0, *range(math.ceil(low / step) * step, math.floor(high) + 1, step)}
    ticks = {2.0**e: f"{2.0**e:,g}{numbers.TIMES}" for e in exponents}

    def place(value: float) -> float:
        return (math.log2(value) - low) / (high - low) if value > 0 else 0.0

    return _dots(key, title, description, rows, place, ticks, base=1.0)


def distances(key: str, title: str, description: str, rows: Sequence[Dot]) -> Markup:
    """Return distances from the original (1 - cosine, 1 - agreement) between 1e-9 and 1; the left edge is 'exact'."""
    least, span = -9.0, 9.0

    def place(value: float) -> float:
        return (math.log10(value) - least) / span if value > 10**least else 0.0

    ticks = {0.0: "equal", 1e-6: "1e-6", 1e-4: "1e-4", 1e-2: "0.01", 1.0: "1"}
    return _dots(key, title, description, rows, place, ticks, base=None)


def _dots(
    key: str,
    title: str,
    description: str,
    rows: Sequence[Dot],
    place: Callable[[float], float],
    ticks: dict[float, str],
    *,
    base: float | None,
) -> Markup:
    height = len(rows) * _ROW + _AXIS
    parts: list[Markup] = []
    for at, label in ticks.items():
        x = share(place(at))
        anchor = "start" if place(at) < 0.02 else "end" if place(at) > 0.98 else "middle"
        parts.append(text(x, height - 4, label, "tick", anchor))
    for i, row in enumerate(rows):
        y = i * _ROW
        middle = y + _TRACK + _BAR / 2
        parts += _heading(y, row.label, row.written, row.kind, row.tip)
        parts.append(element("line", x1=0, x2="100%", y1=middle, y2=middle, class_="rail"))
        for at in ticks:
            x = share(place(at))
            class_ = "grid base" if at == base else "grid"
            parts.append(element("line", x1=x, x2=x, y1=middle - 6, y2=middle + 6, class_=class_))
        if row.limit is not None:
            x = share(place(row.limit))
            parts.append(element("line", x1=x, x2=x, y1=middle - 8, y2=middle + 8, class_="limit"))
        if row.low and row.high:
            parts.append(_span(middle, place(row.low), place(row.high), f"span {row.kind}"))
        # A dot at an edge stays whole.
        x = share(min(0.988, max(0.008, place(row.value))))
        parts.append(element("circle", cx=x, cy=middle, r=5.5, class_=f"dot {row.kind}"))
    return picture(key, title, description, *parts, width="100%", height=height, class_="chart")


def stages(key: str, title: str, description: str, spans: Sequence[tuple[str, float]]) -> Markup:
    """Return one bar cut into the stages' shares of the whole time."""
    whole = sum(seconds for _, seconds in spans) or 1.0
    parts: list[Markup] = []
    at = 0.0
    for i, (name, seconds) in enumerate(spans):
        tip = element("title", f"{name}: {numbers.duration(seconds)}")
        width = share(seconds / whole)
        parts.append(
            element("rect", tip, x=share(at), y=0, width=width, height=16, class_=f"stage s{i % STAGE_COLOURS}")
        )
        at += seconds / whole
    return picture(key, title, description, *parts, width="100%", height=16, class_="chart")


def _heading(y: float, label: str, written: str, kind: Kind, tip: str) -> list[Markup]:
    # Label and value share a line that holds about 42 characters on a phone.
    short = numbers.shorten(numbers.visible(label, lines=False), min(34, max(12, 40 - len(written))))
    return [
        text(0, y + 16, short, f"name {kind}", tip=tip or label),
        text("100%", y + 16, written, f"value {kind}", "end"),
    ]


def _span(y: float, low: float, high: float, class_: str = "noise") -> Markup:
    return element("line", x1=share(low), x2=share(high), y1=y, y2=y, class_=class_)
