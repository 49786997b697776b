"""A reactor for tests that dial and listen without a network."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import IHostnameResolver, IReactorPluggableNameResolver
from twisted.internet.testing import MemoryReactorClock
from zope.interface import implementer

__all__ = ["ResolvingReactor"]


@implementer(IHostnameResolver)
class NumbersOnly:
    """Resolves what is an address already, as the older Twisted does in a thread."""

    def resolveHostName(
        self,
        resolutionReceiver: Any,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Any = None,
        transportSemantics: str = "TCP",
    ) -> Any:
        resolutionReceiver.resolutionBegan(None)
        resolutionReceiver.addressResolved(IPv4Address("TCP", hostName, portNumber))
        resolutionReceiver.resolutionComplete()


@implementer(IReactorPluggableNameResolver)
class ResolvingReactor(MemoryReactorClock):
    """A reactor that opens nothing and asks nobody."""

    nameResolver = NumbersOnly()

    def installNameResolver(self, resolver: Any) -> Any:
        raise NotImplementedError("there is one already")
