"""The composition root: a `Config` becomes a running service.

The only module that knows all the others.  It decides nothing that a room can
decide: it names listeners, joins rooms by their interfaces, and says what
happens first at start and last at stop.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from twisted.application.internet import TimerService
from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.threads import deferToThreadPool
from twisted.logger import ILogObserver
from twisted.python.components import Componentized

from kvproto.base.clock import keep_monotonic
from kvproto.base.histogram import QUICK_SECONDS, Histogram, merged
from kvproto.base.log import make_logger
from kvproto.config import Config, endpoint_is_local, with_interface
from kvproto.config.settings import Settings
from kvproto.dataplane import (
    Administration,
    Backups,
    IKeepingStores,
    PeerWatch,
    Seeds,
    UsersReload,
    make_server,
    make_stores,
)
from kvproto.errors import ConfigError, KVProtoError
from kvproto.listeners import AcceptorService, Event, Ledger, Limits, server_endpoint
from kvproto.listeners.ages import AgeLimits
from kvproto.listeners.probe import probe, validate
from kvproto.nodes import NodeService
from kvproto.ops.config_parts import ConfigParts, timeouts
from kvproto.ops.config_reload import ConfigReload
from kvproto.ops.control_socket import ControlSocket, StateLock
from kvproto.ops.exit_status import end_with_failure
from kvproto.ops.history import History
from kvproto.ops.keylog import KeyLog
from kvproto.ops.logs import reopen_logs
from kvproto.ops.memory import MemoryTrim, glibc_trim
from kvproto.ops.open_files_limit import fit_open_files
from kvproto.ops.privileges import FutureUser
from kvproto.ops.service_control import ServiceControl
from kvproto.ops.signals import SignalService
from kvproto.ops.status import ServiceState
from kvproto.ops.systemd import SystemdNotifier
from kvproto.ops.traffic import Traffic
from kvproto.server import KVController
from kvproto.server.faults import FaultPlan
from kvproto.server.topology import ServicePorts
from kvproto.tls import (
    CredentialFiles,
    KVTLSFactory,
    Rotation,
    ServerPolicy,
    ensure_development_credentials,
)
from kvproto.tls import Options as CredentialOptions
from kvproto.tls.generation import Generation
from kvproto.tls.watch import FileWatch

if TYPE_CHECKING:
    from kvproto.base.http import HTTPService

__all__ = ["KVTLSService", "check"]

log = make_logger()

UNAUTHENTICATED = 1024
"""Connections that may always be in their handshake or login, whatever the others do."""


LISTENER_MODE = "660"
PLAIN_MODE = "600"
"""Modes of Unix sockets whose description names none: the group may connect where TLS and logins
are in between, only the owner where nothing is."""


_CREDENTIAL_OPTIONS = CredentialOptions(
    "--certificate", "--private-key", "--key-passphrase-file", "--client-ca", "--crl"
)
"""How an operator spells them."""


class KVTLSService(MultiService):
    """A TLS key-value service, for ``twistd kvtls`` or under another program's application.

    Args:
        config: What the operator decided.
        reactor: Where it runs; the global one when None.
        signals: Where the process is ours: makes SIGHUP reload and SIGTERM drain.  The limit
            of open files may be raised then, and the reactor's clock becomes monotonic
            (`kvproto.base.clock.keep_monotonic`).  None under somebody else's reactor.
        settings: Where each value of the configuration comes from, for ``kvtls config``.
        owner: Whom the process becomes after `privilegedStartService`; None: it stays who it is.

    Attributes:
        log_observer: Writes the log of the application that this becomes a part of; None: as
            twistd was told.

    Raises:
        ConfigError: Something in the configuration cannot be used.  Nothing listens yet,
            and nothing is left open.
    """

    def __init__(
        self,
        config: Config,
        reactor: Any = None,
        *,
        signals: SignalService | None = None,
        owner: FutureUser | None = None,
        settings: Settings | None = None,
    ) -> None:
        super().__init__()
        self._config = config
        self._reactor = _reactor_or_global(reactor)
        if signals is not None:
            keep_monotonic(self._reactor)
        self._validate(config)
        self.log_observer: Any = None
        self._owner = owner
        self._signals = signals
        if owner is not None:
            owner.check_installation()
            owner.make_directory(config.state_directory)
        faults = self._plan_faults()
        with self._acting_as_owner():
            files = _credential_files(config, self._now())
        policy = _server_policy(config)
        self.rotation = Rotation(files, policy, self._reactor, self._in_thread, now=self._now)
        self.stores = make_stores(
            config, self._reactor if faults is None else faults.moved_clock(), self._in_thread
        )
        self.server = make_server(config, self._reactor, self._in_thread, self.stores)
        self.peers = PeerWatch(config.peers, self._reactor, self.server.name_peers)
        self.controller = KVController(self.server, faults)
        self.users = UsersReload(config, self.server, self._reactor, self._in_thread)
        self.users.setServiceParent(self)
        self.administration = Administration(
            config, self.server, self.stores, self.users, self._reactor, self._in_thread
        )
        self.ledger = Ledger(
            self._reactor,
            self._fitted_limits(config),
            timeouts(config),
            self._now,
        )
        self.acceptors = [self._acceptor(number) for number in range(len(config.listen))]
        for acceptor in self.acceptors:
            self.rotation.subscribe(acceptor.name, self._retirer(acceptor))
        self.acceptors += [self._plain_acceptor(number) for number in range(len(config.plain))]
        self._ages = AgeLimits(
            self.ledger,
            [acceptor.name for acceptor in self.acceptors],
            config.idle_timeout,
            config.max_lifetime,
            self._reactor,
        )
        self.nodes = self._node_service(files, policy)
        self._traffic = Traffic(self.ledger, self._reactor, self._requests)
        self.control = ServiceControl(
            config,
            self.ledger,
            self.acceptors,
            self.rotation,
            self._reactor,
            self._end_process,
            self.nodes,
            settings,
            self.server,
            self.stores,
            Backups(self.server.buckets, self._reactor, self._in_thread),
            faults,
            Seeds(self.server, self.administration, self._reactor, self._in_thread),
            self._traffic,
        )
        parts = ConfigParts(
            self.server,
            self.stores,
            self.users,
            self.administration,
            self.peers,
            self.ledger,
            self.acceptors,
            self._ages,
            self._fitted_limits,
        )
        self.config_reload = ConfigReload(
            config,
            settings,
            parts.parts(config),
            self.users.jobs,
            self._check_anew,
            self._changed,
            self._in_thread,
        )
        self.control.reload_config = self.config_reload.reload
        self._systemd = SystemdNotifier(
            self._reactor, self._status_line, os.environ if signals is not None else {}
        )
        self._announced = False
        self._opened = False
        self._memory = MemoryTrim(self.ledger.steps, self._reactor, glibc_trim())
        if signals is not None:
            self._own_process(signals)
        self._control_socket = ControlSocket(self.control, config.state_directory, self._reactor)
        self._control_socket.check_path()
        self._listening: list[Any] = [*self.acceptors, *filter(None, [self.nodes])]
        self._seconds = self._equip_server(faults)
        for service in (
            *(self._seconds, self._ages, self._control_socket, self._traffic, self.rotation),
            *self._listening,
        ):
            service.setServiceParent(self)
        self._http = self._http_service()
        self._management = self._management_service()
        self._watch = self._file_watch()

    def _plan_faults(self) -> FaultPlan | None:
        """Return what `--faults` can let go wrong, and have the time of day told by it."""
        faults = FaultPlan(self._reactor, self._reactor.seconds) if self._config.faults else None
        self._now = time.time if faults is None else faults.wall
        return faults

    def _equip_server(self, faults: FaultPlan | None) -> TimerService:
        """Give the sessions what only the service has; return what looks at the clock for them."""
        if self._config.enable_shutdown:
            self.server.shutdown = self._shut_down
        if faults is not None:
            self.server.advance = faults.advance
            faults.moved = self.ledger.time_moved
        self.server.listening = lambda: [
            acceptor.host for acceptor in self.acceptors if acceptor.host is not None
        ]
        seconds = TimerService(1.0, self.server.tick)
        seconds.clock = self._reactor
        return seconds

    def _file_watch(self) -> FileWatch | None:
        """Make what looks at the credential files, unless the operator wants no watching."""
        if not self._config.watch_interval:
            return None
        watch = FileWatch(self.rotation, self._reactor, self._config.watch_interval)
        watch.setServiceParent(self)
        return watch

    def setServiceParent(self, parent: Any) -> None:
        """Join an application; twistd takes the log's observer from it."""
        if self.log_observer is not None and isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self.log_observer)
        super().setServiceParent(parent)

    def _validate(self, config: Config) -> None:
        """See that every endpoint makes sense."""
        for description in config.listen:
            validate(self._reactor, description)
            config.check_reach(description)
        for description in config.plain:
            validate(self._reactor, description, "--plain")
        if config.nodes is not None:
            validate(self._reactor, config.nodes.listen, "--node-listen")
        if config.http is not None and not config.http.startswith("kvtls:"):
            validate(self._reactor, config.http, "--http")
        if config.management is not None:
            validate(self._reactor, config.management, "--management")
            config.check_reach(with_interface(config.management), "--management")

    def _own_process(self, signals: SignalService) -> None:
        """Hear signals, tell systemd, and give memory back: the process is ours."""
        signals.connect(self._reload_for_signal, self._end_process, self._end_at_once, reopen_logs)
        for service in (signals, self._systemd, self._memory):
            service.setServiceParent(self)

    def _fitted_limits(self, config: Config) -> Limits:
        """Return the limits, cut down to the open files of a process of ours."""
        return _limits(config) if self._signals is None else fit_open_files(_limits(config))

    def _reload_for_signal(self) -> Deferred[Any]:
        """Reload as SIGHUP asks for, and tell systemd about its beginning and end."""
        self._systemd.reloading()

        def ended(outcome: Any) -> Any:
            self._systemd.reloaded()
            return outcome

        return maybeDeferred(self.control.reload).addBoth(ended)

    def _status_line(self) -> str:
        """Return what ``systemctl status`` shows."""
        reason = self.control.not_ready()
        count = len(self.ledger)
        return reason or f"serving {count} connection{'' if count == 1 else 's'}"

    def _check_anew(self, config: Config) -> None:
        """See that the service could start with a configuration."""
        self._validate(config)
        make_stores(config, self._reactor)

    def _changed(self, config: Config, settings: Settings | None) -> None:
        """Go by another configuration from now on."""
        self._config = config
        self.control.change(config, settings)

    def _acting_as_owner(self) -> AbstractContextManager[None]:
        """Act as the user that the process becomes, for what has to belong to that user."""
        return nullcontext() if self._owner is None else self._owner.acting()

    def warnings(self) -> list[str]:
        """Return what the operator should know although the service works, a sentence each."""
        rotations = [self.rotation]
        if self.nodes is not None:
            rotations.append(self.nodes.rotation)
        found = [text for rotation in rotations for text in rotation.current.warnings]
        found += self._unreadable()
        return list(dict.fromkeys(found))

    def _unreadable(self) -> list[str]:
        """Return which files could not be read again after ``--uid``."""
        if self._owner is None:
            return []
        paths = [path for _, path in self.rotation.files.named()]
        if self._config.users_file is not None:
            paths.append(self._config.users_file)
        return [
            f"{path} cannot be read by uid {self._owner.uid}, which the service becomes: a reload "
            "will be refused; let that user or its group read it"
            for path in self._owner.unreadable(paths)
        ]

    def _in_thread(self, function: Any, *arguments: Any) -> Deferred[Any]:
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), function, *arguments)

    def _acceptor(self, number: int) -> AcceptorService:
        config = self._config
        name = "data" if len(config.listen) == 1 else f"data-{number + 1}"

        def with_tls(handoffs: IProtocolFactory) -> IProtocolFactory:
            factory: Any = KVTLSFactory(self.rotation.contexts, False, handoffs, self._reactor)
            # The ledger has the deadline, and counts from accept() on.
            factory.handshake_timeout = None
            factory.close_timeout = self.ledger.timeouts.close
            factory.serves = True
            secured: IProtocolFactory = factory
            return secured

        return AcceptorService(
            name,
            server_endpoint(self._reactor, _with_mode(config.listen[number], LISTENER_MODE)),
            self.controller,
            self.ledger,
            self._reactor,
            wrap=with_tls,
            proxy=number in config.proxy_protocol,
            required=len(config.listen) == 1,
            drain_timeout=config.drain_timeout,
            watch_idle=config.idle_timeout > 0,
        )

    def _plain_acceptor(self, number: int) -> AcceptorService:
        config = self._config
        return AcceptorService(
            "plain" if len(config.plain) == 1 else f"plain-{number + 1}",
            server_endpoint(self._reactor, _with_mode(config.plain[number], PLAIN_MODE)),
            self.controller,
            self.ledger,
            self._reactor,
            option="--plain",
            drain_timeout=config.drain_timeout,
            watch_idle=config.idle_timeout > 0,
        )

    def _retirer(self, acceptor: AcceptorService) -> Callable[[Generation, Generation], Any]:
        """Return what applies the policy for live connections to one listener."""

        def retire(_old: Generation, new: Generation) -> Deferred[dict[str, Any]]:
            return acceptor.retire(
                self._config.on_rotate,
                new.number,
                verify=lambda chain: new.verify_peer(chain, self._now()),
                window=self._config.drain_window,
            )

        return retire

    def _node_service(self, files: CredentialFiles, policy: ServerPolicy) -> NodeService | None:
        config = self._config
        if config.nodes is None:
            return None

        def control(command: str) -> Any:
            assert self.control.nodes is not None, "made below, before anybody can ask"
            return self.control.nodes.from_node(command)

        return NodeService(
            config.nodes,
            files,
            policy,
            self.ledger,
            self._reactor,
            in_thread=self._in_thread,
            control=control,
            watch_interval=config.watch_interval,
        )

    def _requests(self) -> int:
        """Return how many requests were served since the start."""
        counts = [self.server.requests]
        counts += [bucket.requests for bucket in self.server.buckets.values()]
        return sum(sum(one.report().values()) for one in counts)

    def _http_service(self) -> HTTPService | None:
        """Make what answers health checks, scrapers and browsers, and what it shows."""
        times = self.server.times
        seen: list[Histogram] = []

        def sample() -> dict[str, Any]:
            everybody = merged(times.values(), QUICK_SECONDS)
            recent = everybody.minus(seen.pop() if seen else None)
            seen.append(everybody)
            return {
                "requests": self._requests(),
                "connections": len(self.ledger),
                "p50": recent.quantile(0.5),
                "p99": recent.quantile(0.99),
            }

        self._history = History(sample, self._reactor, time.time)
        self._history.setServiceParent(self)
        if self._config.http is None:
            return None
        # All that is imported here is for who asks for it: without, a start takes less.
        from kvproto.base.http import HTTPService
        from kvproto.ops.http import StatusSite
        from kvproto.ops.metrics import ServiceCollector, exposition

        collector = ServiceCollector(
            self.ledger,
            self.acceptors[: len(self._config.listen)],
            self.acceptors[len(self._config.listen) :],
            self.rotation,
            self.server,
            self.control.not_ready,
            self.control.numbers_of,
            getattr(self.stores, "servers", tuple),
        )
        site = StatusSite(
            self.control.status,
            self.control.not_ready,
            exposition(collector),
            self._history.report,
            self._reactor,
        )
        try:
            endpoint = serverFromString(self._reactor, with_interface(self._config.http))
        except Exception as error:
            raise ConfigError("--http", f"{self._config.http!r}: {error}") from error
        http = HTTPService(endpoint, site)
        http.setServiceParent(self)
        return http

    def _management_service(self) -> HTTPService | None:
        """Make what serves Couchbase's management REST."""
        description = self._config.management
        if description is None:
            return None
        from kvproto.base.http import HTTPService
        from kvproto.management import ManagementFactory, ManagementSite

        site = ManagementSite(self.server, self.administration, self._reactor, self.ledger)
        secured: Any = KVTLSFactory(self.rotation.contexts, False, site, self._reactor)
        factory = ManagementFactory(site, secured, self._plain_management, self._reactor)
        described = _with_mode(with_interface(description), LISTENER_MODE)
        endpoint = server_endpoint(self._reactor, described)
        management = HTTPService(endpoint, factory, "management")
        management.setServiceParent(self)
        return management

    @property
    def _plain_management(self) -> bool:
        """Whether the management port takes plain HTTP: as KV does without TLS."""
        description = self._config.management
        local = description is not None and endpoint_is_local(with_interface(description))
        return local and bool(self._config.plain)

    def _name_ports(self) -> None:
        """Tell clients which ports there are."""
        count = len(self._config.listen)
        ports = [_port_of(acceptor.address) for acceptor in self.acceptors]
        management = 0 if self._management is None else self._management.port
        self.server.name_ports(
            ServicePorts(
                secured=tuple(port for port in ports[:count] if port),
                plain=tuple(port for port in ports[count:] if port),
                management=management,
                plain_management=management if self._plain_management else 0,
            )
        )

    # starting

    def probe(self) -> None:
        """Check that there is somewhere to listen, before the process becomes a daemon.

        One address of several that is taken is tried again later.

        Raises:
            ConfigError: No address is free, or another process uses the state directory
                that was asked for.
        """
        if self._config.state_dir is not None:
            lock = StateLock(self._config.state_dir)
            with self._acting_as_owner():
                lock.acquire()
            lock.release()
        if self._config.nodes is not None:
            probe(self._reactor, self._config.nodes.listen, "--node-listen")
        if self._config.http is not None and not self._config.http.startswith("kvtls:"):
            probe(self._reactor, with_interface(self._config.http), "--http")
        if self._config.management is not None:
            probe(self._reactor, with_interface(self._config.management), "--management")
        with self._acting_as_owner():
            self.stores.prepare()
        failures: list[ConfigError] = []
        for description in self._config.plain:
            probe(self._reactor, description, "--plain")
        for description in self._config.listen:
            try:
                probe(self._reactor, description)
            except ConfigError as error:
                failures.append(error)
        if len(failures) == len(self._config.listen):
            raise failures[0]

    def startService(self) -> None:
        """Start everything; ``kvtls ready`` is logged when it listens."""
        Service.startService(self)
        for child in self:
            later = (*self._listening, self._control_socket, self._http, self._management)
            if child not in later:
                child.startService()
        self._start_control()
        if self._http is not None:
            self._http.startService().addErrback(self._not_started)
        self.stores.startService()
        opening = self.stores.opened().addCallback(lambda _: self.administration.restore())
        opening.addCallback(lambda _: self._start_management())
        opening.addCallbacks(self._listen, self._not_started)
        # Not before the reactor runs and has installed its signal handlers: whoever waits for
        # the announcement may send SIGTERM at once.
        self._reactor.callWhenRunning(self._announce)

    def _start_management(self) -> Deferred[None] | None:
        """Serve the management port before clients can read of it."""
        return None if self._management is None else self._management.startService()

    def _listen(self, _opened: object) -> None:
        """Begin to listen: the stores take requests."""
        if not self.running:
            return
        self._opened = True
        self.peers.startService()
        for service in self._listening:
            service.startService().addCallbacks(self._started, self._not_started)

    def _start_control(self) -> None:
        """Open the control socket; a second service in one directory can do without."""
        try:
            self._control_socket.startService()
        except ConfigError as error:
            if self._config.state_dir is not None:
                raise
            log.warn("no control socket for this process: {reason}", reason=str(error))

    def _started(self, listening: bool) -> None:
        if listening:
            self._name_ports()
            self._reactor.callWhenRunning(self._announce)

    def _not_started(self, failure: Any) -> None:
        if failure.check(KVProtoError):
            log.error("the service cannot start: {reason}", reason=failure.getErrorMessage())
        else:
            log.failure("a part cannot start, the service ends", failure=failure)
        if self._signals is not None:  # the process is ours
            end_with_failure()
        self._end_process()

    def _announce(self) -> None:
        """Log once that clients are served, and where."""
        addresses = [acceptor.address for acceptor in self.acceptors if acceptor.address]
        every = [*self.acceptors] if self.nodes is None else [*self.acceptors, self.nodes.acceptor]
        trying = [a for a in every if not a.address and not a.status()["error"]]
        if self._announced or trying or not addresses or not self.running or not self._opened:
            return
        self._announced = True
        for text in self._unreadable():
            log.warn("after --uid: {text}", text=text)
        self.control.state = ServiceState.READY
        log.info("kvtls ready on {addresses}", addresses=", ".join(addresses))
        self._systemd.ready()
        if self._config.development:
            self._announce_development(addresses[0])

    def _announce_development(self, address: str) -> None:
        """Log that the certificate is for this machine only, and how to try it."""
        certificate = self.rotation.files.certificate
        assert certificate is not None, "development credentials have files"
        ca = str(certificate.with_name("ca.pem").resolve())
        log.info("development certificate, for this machine only: clients must trust {ca}", ca=ca)
        host, _, port = address.rpartition(":")
        if port.isdigit() and self._config.anonymous_allowed:
            log.info("try it:\n{snippet}", snippet=client_snippet(ca, host.strip("[]"), int(port)))

    # stopping

    def _end_process(self) -> None:
        self._reactor.callLater(0, self._reactor.stop)

    def _shut_down(self) -> None:
        log.info("a client has ended the service: shutdown")
        self._end_process()

    def _end_at_once(self) -> None:
        for entry in self.ledger.entries():
            entry.accepted.fire(Event.PROCESS_STOPPING, "the process was told to stop twice")

    def stopService(self) -> Deferred[None]:
        """Stop accepting, answer what was asked, close; bounded by the drain timeout."""
        self.control.state = ServiceState.STOPPING
        self._systemd.stopping()
        Service.stopService(self)
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self._watch is not None:
            self._watch.stopService()
        if self.peers.running:
            self.peers.stopService()
        self.users.stopService()
        self._ages.stopService()
        self._memory.stopService()
        if self._management is not None:
            await maybeDeferred(self._management.stopService)
        await DeferredList([maybeDeferred(service.stopService) for service in self._listening])
        await maybeDeferred(self.stores.stopService)
        self._history.stopService()
        self._seconds.stopService()
        self._traffic.stopService()
        if self._http is not None:
            await maybeDeferred(self._http.stopService)
        await maybeDeferred(self.rotation.stopService)
        self.server.budget.stop()
        # Last, so that an operator can watch, and ask a second time.
        await maybeDeferred(self._control_socket.stopService)
        self._systemd.stopService()
        if self._signals is not None:
            self._signals.stopService()


def check(config: Config, owner: FutureUser | None = None) -> list[str]:
    """Try everything that can be tried without listening.

    Args:
        config: What the operator decided.
        owner: As for `KVTLSService`.

    Returns:
        What the operator should know although it works, a line each.

    Raises:
        ConfigError: Something cannot be used.
    """
    service = KVTLSService(config, owner=owner)
    for description in config.listen:
        probe(service._reactor, description, may_be_taken=True)
    if owner is None and IKeepingStores.providedBy(service.stores):
        service.stores.check()
    return service.warnings()


def client_snippet(ca: str, host: str, port: int) -> str:
    """Return a shell command that stores and reads a value, in one line to survive pasting."""
    # Python's strings in double quotes, so that the shell's single quotes stay readable.
    trusted, name = json.dumps(ca), json.dumps(host)
    program = (
        f"import socket, ssl; tls = ssl.create_default_context(cafile={trusted}); "
        f"s = tls.wrap_socket(socket.create_connection(({name}, {port})), "
        f"server_hostname={name}); "
        r's.sendall(b"set greeting 0 0 5\r\nhello\r\nget greeting\r\n"); '
        'f = s.makefile("rb"); print(*(f.readline().decode().strip() for _ in range(4)))'
    )
    return f"python3 -c {shlex.quote(program)}"


def _reactor_or_global(reactor: Any) -> Any:
    if reactor is not None:
        return reactor
    from twisted.internet import reactor as global_reactor

    return global_reactor


def _credential_files(config: Config, now: float) -> CredentialFiles:
    """Return where the credentials are, made on the spot for development."""
    if config.certificate is not None:
        return CredentialFiles(
            config.certificate,
            config.private_key,
            config.key_passphrase_file,
            config.client_ca,
            config.crl,
            _CREDENTIAL_OPTIONS,
        )
    made = ensure_development_credentials(config.state_directory, now, socket.gethostname())
    return CredentialFiles(
        made.certificate,
        made.private_key,
        client_ca=config.client_ca,
        crl=config.crl,
        options=_CREDENTIAL_OPTIONS,
    )


def _port_of(address: str) -> int:
    """Return the port of an address as acceptors have it, 0 if there is none."""
    port = address.rpartition(":")[2]
    return int(port) if port.isdigit() else 0


def _with_mode(description: str, mode: str) -> str:
    """Return an endpoint description whose Unix socket has a stated mode."""
    kind, *arguments = re.split(r"(?<!\\):", description)
    if kind != "unix" or any(argument.startswith("mode=") for argument in arguments):
        return description
    return f"{description}:mode={mode}"


def _limits(config: Config) -> Limits:
    return Limits(
        connections=config.connection_limit,
        unauthenticated=UNAUTHENTICATED,
        per_peer=config.max_connections_per_peer,
        total=config.connection_limit + UNAUTHENTICATED,
    )


def _server_policy(config: Config) -> ServerPolicy:
    keylog = None if config.keylog is None else KeyLog(config.keylog).write
    return ServerPolicy(client_auth=config.client_auth_mode, keylog=keylog)
