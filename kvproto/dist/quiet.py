"""A factory that does not log its own start and stop.

Nodes are called again and again, and epmd is asked each time; one factory is made for
each of these connections.
"""

from __future__ import annotations

from twisted.internet.protocol import Factory

__all__ = ["QuietFactory"]


class QuietFactory(Factory):
    """As Twisted's, without its lines in the log."""

    noisy = False
