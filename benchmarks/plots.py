"""Pictures of what was measured; needs matplotlib (``pip install kvproto[bench]``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["curves", "ratios"]


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    """Return a figure and its axes, without a display."""
    try:
        import matplotlib as mpl
    except ImportError:
        raise SystemExit("plots need matplotlib: pip install kvproto[bench]") from None
    mpl.use("svg")
    from matplotlib import pyplot

    drawn: tuple[Any, Any] = pyplot.subplots(rows, columns, figsize=(width, height), squeeze=False)
    return drawn


def ratios(table: Mapping[str, Mapping[str, float]], columns: Sequence[str], path: Path) -> None:
    """Draw each server's figures as multiples of the first server's, a group for each column."""
    figure, axes = _figure(1, 1, 11, 4.5)
    ax = axes[0][0]
    names = list(table)
    base = table[names[0]]
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        places = [place + (number - (len(names) - 1) / 2) * width for place in range(len(columns))]
        ax.bar(places, [table[name][c] / base[c] for c in columns], width, label=name)
    ax.set_xticks(range(len(columns)), columns, rotation=15)
    ax.set_ylabel(f"times {names[0]}, lower is better")
    ax.axhline(1, color="black", linewidth=0.8)
    ax.legend(fontsize="small", ncols=2)
    ax.grid(axis="y", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)


def curves(
    series: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    labels: Mapping[str, str],
    path: Path,
) -> None:
    """Draw one picture for each series, a line for each server, both axes logarithmic.

    Args:
        series: Title -> server -> points (size, microseconds per operation).
        labels: Title -> what grows to the right.
        path: Where to write; the suffix says in which format.
    """
    figure, axes = _figure((len(series) + 1) // 2, 2, 11, 4 * ((len(series) + 1) // 2))
    flat = [ax for row in axes for ax in row]
    for ax, (title, lines) in zip(flat, series.items(), strict=False):
        for name, points in lines.items():
            ax.plot(*zip(*points, strict=True), marker="o", label=name)
        ax.set(title=title, xlabel=labels[title], ylabel="CPU us per operation")
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.grid(alpha=0.3)
        ax.legend(fontsize="small")
    for ax in flat[len(series) :]:
        ax.set_visible(False)
    figure.tight_layout()
    figure.savefig(path)
