"""The service around a node: listener, connectors, epmd, credentials.

Owns: what is started and stopped in which order, credentials for both directions, and
that a new generation of them means new links.  What is spoken is `kvproto.dist`'s
business, who accepts is `kvproto.listeners`'.

Nodes have a `Rotation` of their own, also where they read the files of the data listener:
they always verify their peers, and a file that does not concern them leaves their links
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IProtocolFactory,
    IStreamClientEndpoint,
)
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from kvproto.base.log import make_logger
from kvproto.config import ClientAuth, NodeAddress, NodeConfig, OnRotate
from kvproto.dist import (
    BuiltinProcess,
    Connector,
    ControlCommand,
    EpmdClient,
    EpmdRegistration,
    FixedPorts,
    LinkRotation,
    Node,
    NodeController,
    NodeSettings,
    RestartReport,
)
from kvproto.dist.epmd import Locate
from kvproto.errors import ConfigError, LocalProtocolError
from kvproto.listeners import AcceptorService, Ledger, server_endpoint
from kvproto.nodes.files import node_files, read_cookie
from kvproto.nodes.restarts import Restarts
from kvproto.tls import (
    ClientContext,
    CredentialFiles,
    FileWatch,
    Generation,
    KVTLSFactory,
    Rotation,
    ServerPolicy,
    Verdict,
    build_client_context,
)
from kvproto.tls.endpoints import TLSClientEndpoint
from kvproto.tls.rotation import InThread

__all__ = ["LISTENER", "Began", "NodeService"]

log = make_logger()

LISTENER: Final = "node"
"""Name of the listener in status, logs and commands."""

SETUP_TIMEOUT: Final = 7.0
"""Seconds for a TLS handshake with a node, as ``net_setuptime``."""

CLOSE_TIMEOUT: Final = 1.0
"""Seconds until a peer that does not answer our goodbye is cut."""

Began = Callable[[Generation], None]
"""Called when links are about to be closed: what is written to them now still arrives."""


class NodeService(Service):
    """This process as a hidden node of an Erlang cluster.

    Args:
        settings: What the operator decided.
        data: Credential files of the data listener, for what `settings` leaves out.
        policy: How the data listener's contexts treat peers; nodes are always verified.
        ledger: Where accepted connections are written down.
        reactor: Where it runs.
        in_thread: Where credentials are proved.
        control: Answers the commands of the built-in process.
        watch_interval: Seconds between looks at the credential files, 0 for never.

    Attributes:
        node: For programs that register processes of their own.
        rotation: The credentials that links are made with.
        acceptor: The listener.
        registration: What keeps epmd informed, None as long as nobody listens.

    Raises:
        ConfigError: A file or an option cannot be used.
    """

    name = "nodes"

    def __init__(
        self,
        settings: NodeConfig,
        data: CredentialFiles,
        policy: ServerPolicy,
        ledger: Ledger,
        reactor: Any,
        *,
        in_thread: InThread,
        control: ControlCommand,
        watch_interval: float = 0.0,
    ) -> None:
        if settings.epmd is not None and settings.listen.startswith("unix"):
            raise ConfigError("--epmd", "must be none where --node-listen has no port")
        self._settings = settings
        self._reactor = reactor
        self.node = Node(
            NodeSettings(
                name=settings.name,
                cookie=read_cookie(settings.cookie_file),
                ticktime=settings.ticktime,
                setup_timeout=SETUP_TIMEOUT,
                close_timeout=CLOSE_TIMEOUT,
            ),
            reactor,
        )
        self.node.register(settings.process, BuiltinProcess(reactor, control))
        self._policy = replace(policy, client_auth=ClientAuth.REQUIRED)
        self.rotation = Rotation(
            node_files(settings, data), self._policy, reactor, in_thread, part=self.name
        )
        self.rotation.subscribe(LISTENER, self._credentials_changed)
        self.acceptor = AcceptorService(
            LISTENER,
            server_endpoint(reactor, settings.listen),
            NodeController(self.node),
            ledger,
            reactor,
            wrap=self._with_tls,
            required=True,
            option="--node-listen",
            drain_timeout=CLOSE_TIMEOUT,
        )
        self.connectors = [self._connector(address) for address in settings.connect]
        links = LinkRotation(self.node, self.connectors, self._restart_listener)
        self._restarts = Restarts(links)
        self.registration: EpmdRegistration | None = None
        self._watch: FileWatch | None = None
        if watch_interval:
            self._watch = FileWatch(self.rotation, reactor, watch_interval)
        self._client_context: tuple[int, Any] = (0, None)
        self._beginnings: list[Began] = []

    @property
    def follows_data(self) -> bool:
        """Whether all credential files are the data listener's."""
        return not self._settings.has_own_credentials

    # TLS in both directions

    def _with_tls(self, handoffs: IProtocolFactory) -> IProtocolFactory:
        factory: Any = KVTLSFactory(self.rotation.contexts, False, handoffs, self._reactor)
        factory.handshake_timeout = SETUP_TIMEOUT
        factory.close_timeout = CLOSE_TIMEOUT
        secured: IProtocolFactory = factory
        return secured

    def _connector(self, address: NodeAddress) -> Connector:
        return Connector(
            self.node,
            address.name,
            self._locate(address),
            self._secured_endpoint,
            self._reactor,
            generation=lambda: self.rotation.current.number,
        )

    def _locate(self, address: NodeAddress) -> Locate:
        epmd = self._settings.epmd
        if address.port is not None or epmd is None:
            return FixedPorts(address.port).locate
        return EpmdClient(
            lambda host: HostnameEndpoint(self._reactor, host, epmd[1]), self._reactor
        ).locate

    def _secured_endpoint(self, host: str, port: int) -> IStreamClientEndpoint:
        """Return an endpoint that uses, and tells, the credentials of this moment."""
        generation = self.rotation.current
        number, context = self._client_context
        if number != generation.number:
            credentials = generation.credentials
            context = build_client_context(
                credentials, credentials.client_cas, keylog=self._policy.keylog
            )
            self._client_context = (generation.number, context)
        below = HostnameEndpoint(self._reactor, host, port, timeout=SETUP_TIMEOUT)
        creator = _Numbered(ClientContext(context, host), generation.number)
        return TLSClientEndpoint(below, creator, self._reactor)

    # starting and stopping

    def privilegedStartService(self) -> None:
        """Bind, before privileges are dropped.

        Raises:
            ConfigError: The port cannot be bound.
        """
        super().privilegedStartService()
        self.acceptor.privilegedStartService()

    def startService(self) -> Deferred[bool]:
        """Listen, register, and call other nodes.

        Returns:
            As `kvproto.listeners.AcceptorService.startService`.
        """
        super().startService()
        self.rotation.startService()
        if self._watch is not None:
            self._watch.startService()
        return self.open()

    def open(self) -> Deferred[bool]:
        """Take part in the cluster (again)."""
        for connector in self.connectors:
            if not connector.running:
                connector.startService()
        return self.acceptor.startService().addCallback(self._listening)

    def _listening(self, listening: bool) -> bool:
        """Register with epmd, now that the port is known."""
        epmd = self._settings.epmd
        if listening and epmd is not None and self.registration is None:
            port = int(self.acceptor.address.rpartition(":")[2])
            endpoint = HostnameEndpoint(self._reactor, *epmd)
            short_name = self.node.name.partition("@")[0]
            self.registration = EpmdRegistration(endpoint, self._reactor, short_name, port)
            self.registration.startService()
        return listening

    def close(self) -> Deferred[None]:
        """Leave the cluster: unregister, close the port and every link, call nobody."""
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        registration, self.registration = self.registration, None
        leaving: list[Service] = [*self.connectors, self.acceptor]
        if registration is not None:
            leaving.insert(0, registration)
        await DeferredList([maybeDeferred(service.stopService) for service in leaving])
        await DeferredList([self.node.disconnect(name) for name in self.node.nodes()])

    def stopService(self) -> Deferred[None]:
        """Leave the cluster; a second or two at most."""
        super().stopService()
        if self._watch is not None:
            self._watch.stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        await self.close()
        self._restarts.stop()
        await self.rotation.stopService()

    # rotation

    @contextmanager
    def before_restart(self, began: Began) -> Iterator[None]:
        """Have somebody told when links are about to be closed, whoever asked for that.

        Args:
            began: Called at most once, while what is in the context goes on.
        """
        self._beginnings.append(began)
        try:
            yield
        finally:
            if began in self._beginnings:
                self._beginnings.remove(began)

    def rotate(self, *, allow_fewer_names: bool = False) -> Deferred[tuple[Verdict, RestartReport]]:
        """Read the credential files; if they are new and good, make every link again.

        Args:
            allow_fewer_names: See `kvproto.tls.Rotation.reload`.

        Returns:
            A Deferred of the verdict on the files, and of who is back; without a change
            the report is an empty one.
        """
        return Deferred.fromCoroutine(
            self._rotate(lambda: self.rotation.reload(allow_fewer_names=allow_fewer_names))
        )

    def rollback(self) -> Deferred[tuple[Verdict, RestartReport]]:
        """Make every link again with the credentials before these; returns as `rotate`."""
        return Deferred.fromCoroutine(self._rotate(self.rotation.rollback))

    def restart_tls(self) -> Deferred[tuple[Verdict, RestartReport]]:
        """Read the credential files; unless they are bad make every link again.

        Returns:
            As `rotate`.
        """
        return Deferred.fromCoroutine(self._restart_tls())

    async def _restart_tls(self) -> tuple[Verdict, RestartReport]:
        verdict, report = await self._rotate(self.rotation.reload)
        if verdict.ok and not verdict.changed:
            await self._relink(self.rotation.current)
            report = await self._restarts.report()
        return verdict, report

    async def _rotate(
        self, change: Callable[[], Deferred[Verdict]]
    ) -> tuple[Verdict, RestartReport]:
        verdict = await change()
        report = await self._restarts.report() if verdict.changed else RestartReport()
        return verdict, report

    def _relink(self, generation: Generation) -> Deferred[tuple[str, ...]]:
        """Close all links, to be made again; everybody who waits is told first."""
        beginnings, self._beginnings = self._beginnings, []
        for began in beginnings:
            began(generation)
        return self._restarts.begin()

    def _credentials_changed(self, _old: Generation, new: Generation) -> Deferred[str]:
        return self._relink(new).addCallback(_restarted)

    async def _restart_listener(self) -> list[str]:
        """Restart the listener, and so end what it accepted; return its name if it is down.

        Where the listener is being stopped, this waits until all it accepted is gone.
        """
        result = await self.acceptor.restart(OnRotate.DISCONNECT)
        wanted = bool(self.acceptor.running)
        return [LISTENER] if wanted and result["state"] != "listening" else []

    # seeing

    def status(self) -> dict[str, Any]:
        """Describe it; no secrets, JSON can hold it."""
        registration, last = self.registration, self._restarts.last
        return {
            **self.node.status(),
            "connectors": [connector.status() for connector in self.connectors],
            "epmd": None if registration is None else registration.status(),
            "last_restart": {
                "ok": last.ok,
                "listeners": list(last.listeners),
                "missing": list(last.nodes),
            },
        }


@implementer(IOpenSSLClientConnectionCreator)
class _Numbered:
    """Notes on a protocol which generation's context it is given."""

    def __init__(self, creator: ClientContext, generation: int) -> None:
        self._creator = creator
        self._generation = generation

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> Any:
        tlsProtocol.generation = self._generation  # type: ignore[attr-defined]
        return self._creator.clientConnectionForTLS(tlsProtocol)


def _restarted(listeners: tuple[str, ...]) -> str:
    """Return a subscriber's word for the verdict, or raise it."""
    if listeners:
        raise LocalProtocolError(str(RestartReport(listeners)))
    return "all links closed, to be made again"
