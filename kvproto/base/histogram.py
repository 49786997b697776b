"""How long things took, in buckets: cheap to add to, cumulative when it is read."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

__all__ = ["QUICK_SECONDS", "SECONDS", "Histogram", "merged"]

SECONDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
"""Upper bounds from a tenth of a millisecond to ten seconds."""

QUICK_SECONDS = (
    *(0.000001, 0.0000025, 0.000005, 0.00001, 0.000025, 0.00005),
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0),
)
"""Upper bounds from a microsecond to a second, for what is served from memory."""


class Histogram:
    """Counts observations by upper bounds.

    Args:
        bounds: Upper bounds, ascending; what is above the last is counted too.

    Attributes:
        total: Sum of all observations.
    """

    __slots__ = ("_counts", "bounds", "total")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self.bounds = tuple(bounds)
        self._counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """Count an observation, or several of the same value."""
        self._counts[bisect_left(self.bounds, value)] += count
        self.total += value * count

    def cumulative(self) -> list[tuple[float, int]]:
        """Return (upper bound, observations up to it) for each bound, infinity last."""
        rows = []
        seen = 0
        for bound, count in zip((*self.bounds, float("inf")), self._counts, strict=True):
            seen += count
            rows.append((bound, seen))
        return rows

    def quantile(self, part: float) -> float | None:
        """Return the bound below which a part (0 to 1) of the observations lies, None for none."""
        rows = self.cumulative()
        wanted = rows[-1][1] * part
        if not rows[-1][1]:
            return None
        return next(bound for bound, seen in rows if seen >= wanted)

    def add(self, other: Histogram) -> None:
        """Count what another one with the same bounds has counted."""
        for at, count in enumerate(other._counts):
            self._counts[at] += count
        self.total += other.total

    def minus(self, earlier: Histogram | None) -> Histogram:
        """Return what has been counted since an earlier state of the same; None: everything."""
        rest = Histogram(self.bounds)
        before = [0] * len(self._counts) if earlier is None else earlier._counts
        rest._counts = [now - then for now, then in zip(self._counts, before, strict=True)]
        rest.total = self.total - (0.0 if earlier is None else earlier.total)
        return rest


def merged(histograms: Iterable[Histogram], bounds: Sequence[float] = SECONDS) -> Histogram:
    """Return one that has counted what all of them have, which must have these bounds."""
    whole = Histogram(bounds)
    for one in histograms:
        whole.add(one)
    return whole
