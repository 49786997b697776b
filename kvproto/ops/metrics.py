"""Metrics in Prometheus' forms, read from what the rooms count anyway when somebody asks.

Nothing is counted for this alone on the way of a request.  The names are fixed, every family is
declared from the start, and no label is of a client's choosing.  Formats and `process_*` are
prometheus_client's, with a registry of our own: a program that has one keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.utils import floatToGoString

from kvproto import __version__
from kvproto.base.histogram import Histogram
from kvproto.listeners import AcceptorService, Ledger
from kvproto.server import KVServer
from kvproto.tls.rotation import Rotation

__all__ = ["EngineServer", "ServiceCollector", "exposition"]


class EngineServer(Protocol):
    """A server of the engine behind, as `kvproto.dataplane.IStores` may list them (``servers``)."""

    @property
    def name(self) -> str:
        """``HOST:PORT``."""

    @property
    def up(self) -> bool:
        """Whether it answers."""

    @property
    def seconds(self) -> Histogram:
        """How long its answers took."""

    @property
    def errors(self) -> Mapping[str, int]:
        """Failures by reason, from a fixed set."""


class ServiceCollector:
    """Everything that ``/metrics`` says.

    Args:
        ledger: All accepted connections.
        acceptors: The listeners with TLS, in the order of the configuration.
        plain: The listeners without.
        rotation: The credentials that are served.
        server: The buckets.
        ready: Returns why clients are not served, ``""`` when they are.
        numbers_of: Returns the numbers of a bucket's store, given its name and the store.
        engine: Returns the servers behind.
    """

    def __init__(
        self,
        ledger: Ledger,
        acceptors: Iterable[AcceptorService],
        plain: Iterable[AcceptorService],
        rotation: Rotation,
        server: KVServer,
        ready: Callable[[], str],
        numbers_of: Callable[[str, Any], Mapping[str, Any]],
        engine: Callable[[], Iterable[EngineServer]] = tuple,
    ) -> None:
        self._ledger = ledger
        self._secured = [acceptor.name for acceptor in acceptors]
        self._names = [*self._secured, *(acceptor.name for acceptor in plain)]
        self._rotation = rotation
        self._server = server
        self._ready = ready
        self._engine = engine
        self._numbers_of = numbers_of

    def collect(self) -> Iterator[Metric]:
        """Yield every family with what there is now."""
        yield from self._process()
        yield from self._connections()
        yield from self._requests()
        yield from self._stores()
        yield from self._credentials()
        yield from self._servers()

    def _process(self) -> Iterator[Metric]:
        info = GaugeMetricFamily("kvtls_build_info", "Version of kvproto.", labels=["version"])
        info.add_metric([__version__], 1)
        yield info
        yield GaugeMetricFamily(
            "kvtls_ready", "Whether clients are served.", value=0 if self._ready() else 1
        )
        yield GaugeMetricFamily("kvtls_workers", "Processes that serve clients.", value=1)
        yield CounterMetricFamily(
            "kvtls_worker_restarts", "Worker processes that were started again.", value=0
        )

    def _connections(self) -> Iterator[Metric]:
        ledger = self._ledger
        now = GaugeMetricFamily(
            "kvtls_connections", "Connections there are.", labels=["listener", "state"]
        )
        counts = ledger.counts_by_listener()
        for name in self._listeners(listener for listener, _ in counts):
            for state in ledger.states():
                now.add_metric([name, state], counts[name, state])
        yield now
        yield GaugeMetricFamily(
            "kvtls_connections_limit",
            "Verified connections that there may be, 0 for any number.",
            value=ledger.limits.connections,
        )
        accepted = CounterMetricFamily(
            "kvtls_accepted", "Connections that were accepted.", labels=["listener"]
        )
        for name in self._listeners(ledger.accepted_by):
            accepted.add_metric([name], ledger.accepted_by[name])
        yield accepted
        yield _counter(
            "kvtls_ended", "Connections that ended, by what ended them.",
            ("listener", "reason"), ledger.ended_by,
        )  # fmt: skip
        yield _histogram(
            "kvtls_handshake_seconds", "From accept to the end of the TLS handshake.", {
                (): ledger.handshakes
            }, (),
        )  # fmt: skip
        yield _counter(
            "kvtls_handshake_failures", "Handshakes that failed.",
            ("listener", "reason"), ledger.failed_handshakes,
        )  # fmt: skip
        yield _counter(
            "kvtls_logins", "Attempts to log in.", ("mechanism", "result"), ledger.logins
        )

    def _listeners(self, seen: Iterable[str]) -> list[str]:
        """Return the names of all listeners, that of node links included if it was used."""
        return list(dict.fromkeys([*self._names, *seen]))

    def _requests(self) -> Iterator[Metric]:
        server = self._server
        requests = CounterMetricFamily(
            "kvtls_requests",
            "Requests, by what became of them.",
            labels=["bucket", "operation", "result"],
        )
        named = [("", server.requests)]
        named += [(bucket.name, bucket.requests) for bucket in server.buckets.values()]
        for bucket, counted in named:
            for (operation, result), number in sorted(counted.report().items()):
                requests.add_metric([bucket, operation, result], number)
        yield requests
        yield _histogram(
            "kvtls_request_seconds",
            "How long requests took to serve: one plain GET or SET in 128, one other in eight.",
            {(operation,): times for operation, times in server.times.items()},
            ("operation",),
        )
        moved = CounterMetricFamily(
            "kvtls_bytes", "Bytes of requests and replies, without TLS.", labels=["direction"]
        )
        moved.add_metric(["in"], server.counters.bytes_read)
        moved.add_metric(["out"], server.counters.bytes_written)
        yield moved

    def _stores(self) -> Iterator[Metric]:
        families: dict[str, Any] = {
            "curr_items": GaugeMetricFamily("kvtls_items", "Documents.", labels=["bucket"]),
            "bytes": GaugeMetricFamily(
                "kvtls_store_bytes", "Bytes in use, keys and overhead counted.", labels=["bucket"]
            ),
            "limit_maxbytes": GaugeMetricFamily(
                "kvtls_store_limit_bytes", "Bytes that may be in use.", labels=["bucket"]
            ),
            "evictions": CounterMetricFamily(
                "kvtls_evictions", "Documents dropped to make room.", labels=["bucket"]
            ),
        }
        for bucket in self._server.buckets.values():
            found = self._numbers_of(bucket.name, bucket.store)
            for name, family in families.items():
                if name in found:
                    family.add_metric([bucket.name], float(found[name]))
        yield from families.values()

    def _credentials(self) -> Iterator[Metric]:
        expiry = GaugeMetricFamily(
            "kvtls_certificate_expiry_timestamp_seconds",
            "When the first certificate of the chain expires.",
            labels=["listener"],
        )
        for name in self._secured:
            expiry.add_metric([name], self._rotation.current.not_after)
        yield expiry
        yield GaugeMetricFamily(
            "kvtls_credentials_generation",
            "Number of the generation that new connections are served with.",
            value=self._rotation.current.number,
        )
        rotations = CounterMetricFamily(
            "kvtls_rotations", "Reloads and rollbacks, by how they ended.", labels=["result"]
        )
        for result in ("served", "unchanged", "refused"):
            rotations.add_metric([result], self._rotation.verdicts[result])
        yield rotations

    def _servers(self) -> Iterator[Metric]:
        servers = list(self._engine())
        up = GaugeMetricFamily(
            "kvtls_store_up", "Whether a server behind answers.", labels=["server"]
        )
        for server in servers:
            up.add_metric([server.name], int(server.up))
        yield up
        yield _histogram(
            "kvtls_store_request_seconds",
            "How long a server behind took to answer.",
            {(server.name,): server.seconds for server in servers},
            ("server",),
        )
        yield _counter(
            "kvtls_store_errors",
            "Requests to a server behind that failed.",
            ("server", "reason"),
            {
                (server.name, reason): number
                for server in servers
                for reason, number in server.errors.items()
            },
        )


def _label(text: str) -> str:
    """Return a word of ours as the value of a label."""
    return text.replace(" ", "_")


def _counter(
    name: str, help: str, labels: tuple[str, ...], counts: Mapping[tuple[str, str], int]
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, help, labels=labels)
    for values, number in sorted(counts.items()):
        family.add_metric([_label(value) for value in values], number)
    return family


def _histogram(
    name: str,
    help: str,
    histograms: Mapping[tuple[str, ...], Histogram],
    labels: tuple[str, ...],
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, help, labels=labels)
    for values, histogram in sorted(histograms.items()):
        rows = [(floatToGoString(bound), seen) for bound, seen in histogram.cumulative()]
        family.add_metric(list(values), buckets=rows, sum_value=histogram.total)
    return family


def exposition(collector: ServiceCollector) -> Callable[[str], tuple[bytes, str]]:
    """Return what makes the text of a scrape.

    Args:
        collector: What there is to say.

    Returns:
        Called with the request's ``Accept`` header, it returns body and content type: OpenMetrics
        where that was asked for, else Prometheus' text format.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    ProcessCollector(registry=registry)

    def scrape(accept: str) -> tuple[bytes, str]:
        encode, content_type = choose_encoder(accept)
        body: bytes = encode(registry)
        return body, content_type

    return scrape
