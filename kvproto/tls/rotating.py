"""A server endpoint that serves new certificates when their files change.

All that it starts (looks at the files, retries, a reload under way) ends when its last port is
closed, however that happens: Twisted's ports tell their factory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, execute
from twisted.internet.interfaces import (
    IListeningPort,
    IProtocolFactory,
    IReactorThreads,
    IReactorTime,
    IStreamServerEndpoint,
)
from twisted.internet.threads import deferToThreadPool
from zope.interface import implementer

from kvproto.tls.contexts import CurrentContext, ServerPolicy
from kvproto.tls.factory import KVTLSFactory
from kvproto.tls.files import CredentialFiles
from kvproto.tls.rotation import InThread, Rotation
from kvproto.tls.watch import FileWatch

__all__ = ["RotatingServerEndpoint"]


@implementer(IStreamServerEndpoint)
class RotatingServerEndpoint:
    """Listens where another endpoint does, with TLS whose credentials are those in the files.

    New connections get what the files hold now; connections that are there stay as they are.
    What cannot be served is logged with the reason, and what was served before is served on.  A
    certificate that lacks names of the one before it is refused as well; a program that means
    it calls ``rotation.reload(allow_fewer_names=True)``.

    Args:
        endpoint: Where to listen.
        files: Where credentials are read from.
        reactor: For deadlines and looks; generations are built in its thread pool if it has one.
        policy: How clients are treated.
        watch: Seconds between two looks at the files; 0 for none, `Rotation.reload` is called then.
        name: What the log calls it.

    Attributes:
        rotation: Reloads when asked, rolls back, and tells who subscribes.

    Raises:
        CredentialError: What the files hold now cannot be served.
    """

    def __init__(
        self,
        endpoint: IStreamServerEndpoint,
        files: CredentialFiles,
        reactor: IReactorTime,
        policy: ServerPolicy = ServerPolicy(),  # noqa: B008 - a constant
        watch: float = 2.0,
        name: str = "",
    ) -> None:
        self._endpoint = endpoint
        self._reactor = reactor
        self.rotation = Rotation(files, policy, reactor, _in_thread_of(reactor), name)
        self._services: list[Service] = [self.rotation]
        if watch:
            self._services.append(FileWatch(self.rotation, reactor, watch))
        self._ports = 0

    @property
    def contexts(self) -> CurrentContext:
        """What handshakes use."""
        return self.rotation.contexts

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Listen; each connection gets a protocol of the factory, under TLS."""
        factory = _RotatingFactory(self.contexts, False, protocolFactory, self._reactor)
        factory.endpoint = self
        listening: Deferred[IListeningPort] = self._endpoint.listen(factory)
        return listening

    def _opened(self) -> None:
        self._ports += 1
        if self._ports == 1:
            for service in self._services:
                service.startService()

    def _closed(self) -> None:
        self._ports -= 1
        if self._ports == 0:
            for service in reversed(self._services):
                service.stopService()


class _RotatingFactory(KVTLSFactory):
    """Tells an endpoint while a port of it is open."""

    endpoint: RotatingServerEndpoint

    def startFactory(self) -> None:
        super().startFactory()
        self.endpoint._opened()

    def stopFactory(self) -> None:
        self.endpoint._closed()
        super().stopFactory()


def _in_thread_of(reactor: Any) -> InThread:
    """Return what calls a function in a thread, or in place where a reactor has no threads."""
    if not IReactorThreads.providedBy(reactor):
        return execute

    def in_thread(function: Callable[[], Any]) -> Deferred[Any]:
        # Not before it is needed: to ask a reactor for its pool makes one.
        return deferToThreadPool(reactor, reactor.getThreadPool(), function)

    return in_thread
