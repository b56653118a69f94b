"""Charts as inline SVG: text in, text out, no script; colours come from the classes of the page around them.

Everything is drawn 360 units wide, so that its text can still be read on a phone of that width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Any, NamedTuple

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 350, 12, 186
LOG_SPAN = 50.0  # singular values that differ by more are drawn on a logarithmic axis


class Series(NamedTuple):
    """One line of a chart; a value that is None, or not finite, is a gap in it."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float | None]
    css: str = "a"


class Axis(NamedTuple):
    """What maps values to a coordinate, and which values are written beside it."""

    place: Callable[[float], float]
    ticks: list[float]


def scree(components: Sequence[dict[str, Any]], /) -> str:
    """Draw singular values as points, with the certified interval of each as a bar behind it.

    Parameters
    ----------
    components : sequence of dict
        As in `streamsvd.report.summary`: ``s`` and, where there is a certificate, ``lower`` and ``upper``.
    """
    s = [part["s"] or 0.0 for part in components]
    upper = [max(part.get("upper") or value, value) for part, value in zip(components, s, strict=True)]
    y = _height_axis([value for value in s if value > 0], max(upper, default=1.0))
    x = Axis(_linear(0.5, len(s) + 0.5, LEFT, RIGHT), [t for t in _ticks(1, len(s), 6, outside=False) if t == int(t)])
    width = min(14.0, 0.7 * (RIGHT - LEFT) / max(len(s), 1))
    marks = []
    for j, (part, value, high) in enumerate(zip(components, s, upper, strict=True), 1):
        center, top, bottom = x.place(j), y.place(high), y.place(part.get("lower") or value)
        tall = max(bottom - top, 1.5)
        what = f"component {j}: {value:.6g}"
        what += f", certified {part['lower']:.6g} .. {part['upper']:.6g}" if part.get("upper") is not None else ""
        band = f'x="{center - width / 2:.1f}" y="{top:.1f}" width="{width:.1f}" height="{tall:.1f}" rx="1.5"'
        point = f'cx="{center:.1f}" cy="{y.place(value):.1f}" r="{min(2.6, width / 3 + 0.6):.1f}"'
        marks.append(f'<g><title>{what}</title><rect class="band" {band}/><circle class="a" {point}/></g>')
    return _svg("Singular values with certified intervals", x, y, "component", "".join(marks), short, short)


def lines(title: str, series: Sequence[Series], /, *, x_name: str, y_text: Callable[[float], str]) -> str:
    """Draw series over a common axis that begins at 0 where they come near to it."""
    points = [(x, y) for one in series for x, y in zip(one.xs, one.ys, strict=True) if _finite(y)]
    xs, ys = [p[0] for p in points] or [0.0], [float(p[1] or 0.0) for p in points] or [0.0]
    low, high = min(ys), max(ys)
    low, high = (min(low, 0.0), max(high, 0.0)) if low == high or 0 <= low < 0.7 * high else (low, high)
    y_ticks = _ticks(low, high if high > low else low + 1.0, 4)
    y = Axis(_linear(min(low, y_ticks[0]), max(high, y_ticks[-1]), BOTTOM, TOP), y_ticks)
    marks = _ticks(min(xs), max(xs), 4, outside=False)
    whole = all(float(value).is_integer() for value in xs)  # half a component says nothing
    x = Axis(_linear(min(xs), max(xs), LEFT + 4, RIGHT - 4), [t for t in marks if t.is_integer() or not whole])
    return _svg(title, x, y, x_name, "".join(_drawn(one, x, y) for one in series), short, y_text)


def short(value: float, /) -> str:
    """Return a number in few characters.

    >>> [short(x) for x in (0, 12, 1500, 2_000_000, 0.25, 1e-7)]
    ['0', '12', '1.5k', '2M', '0.25', '1e-07']
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size <= abs(value) < 1e12:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _drawn(one: Series, x: Axis, y: Axis) -> str:
    runs: list[list[tuple[float, float]]] = [[]]
    for where, value in zip(one.xs, one.ys, strict=True):
        if value is None or not _finite(value):
            runs.append([])
        else:
            runs[-1].append((x.place(where), y.place(value)))
    paths = [
        f'<path class="line {one.css}" d="M{" L".join(f"{a:.1f} {b:.1f}" for a, b in run)}"/>' for run in runs if run
    ]
    dots = [point for run in runs for point in run] if len(one.xs) <= 60 else []
    return "".join(paths) + "".join(f'<circle class="{one.css}" cx="{a:.1f}" cy="{b:.1f}" r="2"/>' for a, b in dots)


def _svg(
    title: str,
    x: Axis,
    y: Axis,
    x_name: str,
    marks: str,
    x_text: Callable[[float], str],
    y_text: Callable[[float], str],
) -> str:
    parts = [
        f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{y.place(t):.1f}" y2="{y.place(t):.1f}"/>'
        f'<text x="{LEFT - 5}" y="{y.place(t) + 4:.1f}" text-anchor="end">{escape(y_text(t))}</text>'
        for t in y.ticks
    ]
    parts += [
        f'<text x="{x.place(t):.1f}" y="{BOTTOM + 15}" text-anchor="middle">{escape(x_text(t))}</text>' for t in x.ticks
    ]
    parts.append(f'<text x="{RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{escape(x_name)}</text>')
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
    return f"{head}{''.join(parts)}{marks}</svg>"


def _height_axis(positive: list[float], top: float) -> Axis:
    """Return the axis of singular values: from 0, or logarithmic where they span much."""
    if not positive or max(positive) <= LOG_SPAN * min(positive):
        ticks = _ticks(0.0, top if top > 0 else 1.0, 4)
        return Axis(_linear(0.0, max(top, ticks[-1]), BOTTOM, TOP), ticks)
    # Values below 1e-18 of the largest are rounding; they are drawn at the lower edge.
    low, high = math.log10(max(min(positive), 1e-18 * max(positive))) - 0.1, math.log10(top) + 0.1
    step = max(1, math.ceil((high - low) / 5))
    decades = [10.0**power for power in range(math.ceil(low), math.floor(high) + 1, step)]
    scale = _linear(low, high, BOTTOM, TOP)
    return Axis(lambda value: scale(max(math.log10(value), low) if value > 0 else low), decades)


def _linear(low: float, high: float, begin: float, end: float) -> Callable[[float], float]:
    span = high - low
    return lambda value: begin + (end - begin) * ((value - low) / span if span > 0 else 0.5)


def _ticks(low: float, high: float, about: int, *, outside: bool = True) -> list[float]:
    """Return round numbers, about so many, that cover an interval (or lie within it)."""
    if not high - low > 1e-300:  # below, the step would be no number
        return [float(low)]
    power = 10.0 ** math.floor(math.log10((high - low) / about))
    step = next(power * m for m in (1, 2, 5, 10, 20) if (high - low) / (power * m) <= about)
    first, last = (math.floor, math.ceil) if outside else (math.ceil, math.floor)
    return [float(f"{i * step:.12g}") for i in range(int(first(low / step)), int(last(high / step)) + 1)]


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
