"""Observations in buckets."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from kvproto.base.histogram import SECONDS, Histogram, merged


class HistogramTests(SynchronousTestCase):
    """One of three bounds."""

    def test_cumulative(self) -> None:
        """A bound includes itself; what is above the last is in infinity only."""
        histogram = Histogram((1.0, 2.0, 4.0))
        for value in (0.5, 1.0, 1.5, 4.0, 9.0):
            histogram.observe(value)
        self.assertEqual(histogram.cumulative(), [(1.0, 2), (2.0, 3), (4.0, 4), (float("inf"), 5)])
        self.assertEqual(histogram.total, 16.0)

    def test_quantile(self) -> None:
        """A quantile is the bound that so many are not above; of nothing there is none."""
        histogram = Histogram((1.0, 2.0))
        self.assertIsNone(histogram.quantile(0.5))
        for value in (0.1,) * 98 + (1.5, 7.0):
            histogram.observe(value)
        self.assertEqual(
            [histogram.quantile(part) for part in (0.5, 0.98, 0.99, 1.0)],
            [1.0, 1.0, 2.0, float("inf")],
        )

    def test_since(self) -> None:
        """Of two states of the same there is what has come between."""
        now, before = Histogram((1.0, 2.0)), Histogram((1.0, 2.0))
        for histogram in (now, before):
            histogram.observe(0.5)
        now.observe(1.5)
        self.assertEqual(now.minus(before).cumulative(), [(1.0, 0), (2.0, 1), (float("inf"), 1)])
        self.assertEqual(now.minus(None).total, 2.0)

    def test_merged(self) -> None:
        """Several are one that has seen everything."""
        one, two = Histogram(), Histogram()
        one.observe(0.001)
        two.observe(20.0)
        whole = merged([one, two])
        self.assertEqual(whole.cumulative()[-1][1], 2)
        self.assertEqual(whole.total, 20.001)
        self.assertEqual(len(whole.cumulative()), len(SECONDS) + 1)
