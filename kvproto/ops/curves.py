"""Curves of the status page: SVG with axes, and the same in words for those who do not see it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from kvproto.ops.history import INTERVAL, SAMPLES

__all__ = ["curves"]

WIDTH, HEIGHT = 300, 80
"""Units of the drawing, which is stretched to its place."""

MARGIN = 3
"""Units above the highest and below the lowest point, for the thickness of the line."""

UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))

TIME_SPAN = f"{INTERVAL * SAMPLES / 60:.0f} min ago"


def curves(samples: Sequence[Mapping[str, Any]]) -> str:
    """Return the curves as HTML.

    Args:
        samples: As `kvproto.ops.history.History.report` has them, oldest first.
    """
    drawn = [
        _curve("Requests a second", [row["requests_per_s"] for row in samples], _number),
        _curve("Connections", [row["connections"] for row in samples], _number),
        _curve("Median time of a request", [row["p50"] for row in samples], _time),
        _curve("99th percentile", [row["p99"] for row in samples], _time),
    ]
    return f'<div class="curves">{"".join(drawn)}</div>'


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _time(seconds: float) -> str:
    """Return a time with three digits at most, and its unit."""
    size, unit = next((one for one in UNITS if seconds >= one[0]), UNITS[-1])
    return f"{seconds / size:.3g} {unit}"


def _above(value: float) -> float:
    """Return a round number that is not below a value: 1, 2 or 5 with zeros."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value * (1 - 1e-9))


def _curve(title: str, found: Sequence[float | None], shown: Callable[[float], str]) -> str:
    """Return one curve, its last value and its highest in words."""
    values = [
        value if value is not None and math.isfinite(value) else None for value in found[-SAMPLES:]
    ]
    known = [value for value in values if value is not None]
    if not known:
        said = "nothing yet" if not values else "no requests"
        words, top = f"{title}: {said}", ""
    else:
        now = "none now" if values[-1] is None else shown(values[-1])
        words = f"{title}: {now}, at most {shown(max(known))}"
        top = shown(_above(max(known)))
    return (
        f"<figure><figcaption>{escape(words)}</figcaption>"
        f'<div class="plot"><span class="top" aria-hidden="true">{escape(top)}</span>'
        f'<span class="zero" aria-hidden="true">{"0" if known else ""}</span>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(words)}" '
        f'preserveAspectRatio="none">{_grid()}{_path(values)}</svg>'
        f'<span class="times" aria-hidden="true"><span>{TIME_SPAN}</span><span>now</span></span>'
        "</div></figure>"
    )


def _grid() -> str:
    """Return lines at a half, and every five minutes."""
    lines = [(0.0, HEIGHT / 2, float(WIDTH), HEIGHT / 2)]
    lines += [(WIDTH * part / 3, 0.0, WIDTH * part / 3, float(HEIGHT)) for part in (1, 2)]
    return "".join(
        f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" '
        'vector-effect="non-scaling-stroke"/>'
        for x1, y1, x2, y2 in lines
    )


def _path(values: Sequence[float | None]) -> str:
    """Return the line, with a gap where there is no value; the last one is at the right."""
    top = _above(max((value for value in values if value is not None), default=0.0))
    step = WIDTH / (SAMPLES - 1)
    begins = WIDTH - step * (len(values) - 1)
    moves = []
    drawing = False
    for number, value in enumerate(values):
        if value is None:
            drawing = False
            continue
        x = begins + number * step
        y = HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * value / top
        # A point without neighbours is a line of no length, which has round ends.
        moves.append(f"{'L' if drawing else 'M'}{x:.1f},{y:.1f}{'' if drawing else 'h0'}")
        drawing = True
    return f'<path d="{"".join(moves)}" vector-effect="non-scaling-stroke"/>' if moves else ""
