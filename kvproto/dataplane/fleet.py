"""A memcached fleet as the stores of the service: files, TLS, discovery, status.

What goes to which server is `kvproto.upstream`'s business.
"""

from __future__ import annotations

from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint
from twisted.internet.interfaces import IDelayedCall, IStreamClientEndpoint
from twisted.python.failure import Failure

from kvproto.base.log import make_logger
from kvproto.config import Config, StoreURL
from kvproto.errors import ConfigError, KVProtoError
from kvproto.store import IStore
from kvproto.tls import ClientContext, CredentialFiles, build_client_context
from kvproto.tls.credentials import load_credentials
from kvproto.tls.endpoints import TLSClientEndpoint
from kvproto.tls.files import Options, Purpose
from kvproto.upstream.discovery import ask_for_servers
from kvproto.upstream.fleet import Fleet
from kvproto.upstream.fleet_options import parse_fleet, read_pool
from kvproto.upstream.fleet_store import FleetStore
from kvproto.upstream.ring import FleetServer
from kvproto.upstream.server import Server

__all__ = ["FleetStores"]

log = make_logger()

_FILES = Options("cert=", "key=", "", "ca=", "")

DISCOVER_EVERY_S = 60.0
"""Seconds between two questions for the servers of a fleet; AWS's clients ask as often."""


class FleetStores(Service):
    """The one store that a fleet is, for the one bucket that there can be.

    Args:
        url: The fleet.
        config: What the operator decided.
        reactor: For connections and timers.
        run: Not needed.

    Raises:
        ConfigError: The URL, or a file that it names, cannot be used; or the configuration asks
            for what memcached servers do not have.
    """

    name = "stores"

    def __init__(self, url: StoreURL, config: Config, reactor: Any, run: Any = None) -> None:
        self.description = url.text
        self._options = options = parse_fleet(url.text)
        self._reactor = reactor
        if len(config.buckets) > 1:
            raise ConfigError("--bucket", "a memcached fleet is one bucket")
        if config.collections:
            raise ConfigError("--collection", "memcached servers have no collections")
        self._context: Any = None
        self._load_credentials()
        servers = options.servers
        if options.pool_file is not None:
            servers = read_pool(options.pool_file)
        self.fleet = Fleet(options, servers, self._endpoint, reactor)
        self._store = FleetStore(self.fleet)
        self._version = -1
        self._asking: Deferred[Any] | None = None
        self._timer: IDelayedCall | None = None
        self._problem = ""

    # as stores

    def store(self, bucket: str) -> IStore:
        """Return the fleet; see `IStores.store`."""
        store: IStore = self._store
        return store

    def change(self, config: Config) -> None:
        """Have the servers of another URL that is the same but for them; see `IStores.change`."""
        if config.store != self.description:
            self.description = config.store
            self._options = parse_fleet(config.store)
            self.fleet.change(self._options.servers)

    def prepare(self) -> None:
        """Take nothing: connections are made when the service starts."""

    def opened(self) -> Deferred[None]:
        """Return a Deferred that has fired: what cannot be reached is refused meanwhile."""
        return succeed(None)

    def ready(self) -> str | None:
        """Return why clients cannot be served."""
        return self._store.ready()

    def servers(self) -> list[Server]:
        """Return the servers that are known, for metrics."""
        return self.fleet.servers

    def status(self) -> dict[str, object]:
        """Return what ``kvtls status`` says of it."""
        reason = self.ready()
        status: dict[str, object] = {
            "url": self.description,
            "ready": reason is None,
            "reason": reason or "",
            "servers": [
                {
                    "server": server.name,
                    "up": server.up,
                    "protocol": _protocol(server),
                    "reason": server.text,
                    "connections": sum(link.state.value == "ready" for link in server.links),
                    "errors": dict(server.errors),
                }
                for server in self.fleet.servers
            ],
        }
        if self._problem:
            status["problem"] = self._problem
        return status

    # as a service

    def startService(self) -> None:
        """Connect to the servers."""
        super().startService()
        self.fleet.start()
        self._discover()

    def stopService(self) -> Deferred[None]:
        """Close the connections."""
        super().stopService()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._asking is not None:
            self._asking.cancel()
        self.fleet.stop()
        return succeed(None)

    def reload(self) -> str:
        """Read the files again that the URL names; return what has changed, ``""`` for nothing.

        Raises:
            ConfigError: One of them cannot be used; then nothing has changed.
        """
        options = self._options
        servers = self.fleet.addresses
        if options.pool_file is not None:
            servers = read_pool(options.pool_file)
        if self._load_credentials():
            self.fleet.renew()
        if self.fleet.change(servers):
            return f"the fleet has {len(servers)} servers"
        self._discover()
        return ""

    # connections

    def _endpoint(self, server: FleetServer) -> IStreamClientEndpoint:
        timeout = self._options.connect_timeout
        if not server.port:
            unix: IStreamClientEndpoint = UNIXClientEndpoint(
                self._reactor, server.host, timeout=timeout
            )
            return unix
        below = HostnameEndpoint(self._reactor, server.host, server.port, timeout=timeout)
        if self._context is None:
            return below
        return TLSClientEndpoint(below, ClientContext(self._context, server.host), self._reactor)

    def _load_credentials(self) -> bool:
        """Read what TLS needs; return whether connections use it from now on."""
        options = self._options
        if not options.tls:
            return False
        files = CredentialFiles(
            options.cert, options.key, None, options.ca, None, _FILES, Purpose.CLIENT
        )
        own = load_credentials(files, self._reactor.seconds())
        self._context = build_client_context(own, own.client_cas if options.ca else None)
        return True

    # discovery

    def _discover(self) -> None:
        """Ask for the servers of the fleet, and again some time later."""
        where = self._options.discover
        if where is None or self._asking is not None or not self.running:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        endpoint = self._endpoint(FleetServer(*where))
        self._asking = asking = ask_for_servers(endpoint, self._reactor, self._options.timeout)
        asking.addCallbacks(self._discovered, self._not_discovered)
        asking.addErrback(_report)

    def _discovered(self, found: tuple[int, tuple[FleetServer, ...]]) -> None:
        version, servers = found
        self._ask_again("")
        if version > self._version:
            self._version = version
            self.fleet.change(servers)

    def _not_discovered(self, failure: Failure) -> None:
        if failure.check(CancelledError):
            self._asking = None
            return
        if not failure.check(KVProtoError, OSError, Exception):
            return
        reason = failure.getErrorMessage()
        problem = f"the fleet's servers are not known: {reason}"
        if problem != self._problem:
            log.warn("the fleet's servers are not known: {reason}", reason=reason)
        self._ask_again(problem)

    def _ask_again(self, problem: str) -> None:
        self._asking = None
        self._problem = problem
        if self.running:
            wait = DISCOVER_EVERY_S if not problem else DISCOVER_EVERY_S / 12
            self._timer = self._reactor.callLater(wait, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        self._discover()


def _report(failure: Failure) -> None:
    log.failure("the fleet's configuration could not be used", failure=failure)


def _protocol(server: Server) -> str:
    """Return in which protocol a server is asked: ``"binary"``, ``"meta"``; ``""`` if nobody is."""
    for link in server.links:
        connection: Any = link.ready
        if connection is not None:
            return "meta" if connection.text else "binary"
    return ""
