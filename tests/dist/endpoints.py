"""Endpoints whose connections the test makes, refuses or lets wait."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.interfaces import IStreamClientEndpoint
from zope.interface import implementer

from tests.dist.pairs import Wire

__all__ = ["ManualEndpoint"]


@implementer(IStreamClientEndpoint)
class ManualEndpoint:
    """Connects when the test says so.

    Attributes:
        waiting: Factories and Deferreds of connects that are under way.
        cancelled: How many of them were cancelled.
        wires: The connections that were made, our end of each.
    """

    def __init__(self) -> None:
        self.waiting: list[tuple[Any, Deferred[Any]]] = []
        self.cancelled = 0
        self.wires: list[Wire] = []
        self.asked: list[tuple[Any, ...]] = []

    def __call__(self, *where: Any) -> ManualEndpoint:
        """Stand for every endpoint that is asked for."""
        self.asked.append(where)
        return self

    def connect(self, factory: Any) -> Deferred[Any]:
        connecting: Deferred[Any] = Deferred(self._cancel)
        self.waiting.append((factory, connecting))
        return connecting

    def _cancel(self, connecting: Deferred[Any]) -> None:
        self.cancelled += 1
        self.waiting = [one for one in self.waiting if one[1] is not connecting]

    def accept(self) -> Wire:
        """Make the oldest connect succeed."""
        factory, connecting = self.waiting.pop(0)
        protocol = factory.buildProtocol(None)
        wire = Wire()
        self.wires.append(wire)
        wire.connect(protocol)
        connecting.callback(protocol)
        return wire

    def refuse(self) -> None:
        """Make the oldest connect fail."""
        self.waiting.pop(0)[1].errback(ConnectionRefusedError())
