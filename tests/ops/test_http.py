"""Health, metrics and the status page, over HTTP in memory."""

from __future__ import annotations

import html
import json
import re
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from kvproto.base.http import IDLE_SECONDS, MAX_CONNECTIONS, REQUEST_SECONDS
from kvproto.config import with_interface
from kvproto.listeners import Ledger
from kvproto.listeners.entry import NULL_CONNECTION
from kvproto.ops.history import INTERVAL, SAMPLES, History
from kvproto.ops.http import StatusSite
from kvproto.ops.metrics import ServiceCollector, exposition
from kvproto.ops.page import findings, render_page
from kvproto.ops.page_frame import PAGE_POLICY
from kvproto.server import Bucket, KVServer
from kvproto.store import MemoryStore
from kvproto.testing.scripted import ScriptedTransport
from tests.ops.material import generation, served_generation, status, verdict
from tests.sites import answer_of, connect_to
from tests.turns import one_turn

FAMILIES = {
    "kvtls_build_info": ("gauge", {"version"}),
    "kvtls_ready": ("gauge", set()),
    "kvtls_connections": ("gauge", {"listener", "state"}),
    "kvtls_connections_limit": ("gauge", set()),
    "kvtls_accepted": ("counter", {"listener"}),
    "kvtls_ended": ("counter", {"listener", "reason"}),
    "kvtls_handshake_seconds": ("histogram", {"le"}),
    "kvtls_handshake_failures": ("counter", {"listener", "reason"}),
    "kvtls_logins": ("counter", {"mechanism", "result"}),
    "kvtls_requests": ("counter", {"bucket", "operation", "result"}),
    "kvtls_request_seconds": ("histogram", {"operation", "le"}),
    "kvtls_bytes": ("counter", {"direction"}),
    "kvtls_items": ("gauge", {"bucket"}),
    "kvtls_store_bytes": ("gauge", {"bucket"}),
    "kvtls_store_limit_bytes": ("gauge", {"bucket"}),
    "kvtls_evictions": ("counter", {"bucket"}),
    "kvtls_certificate_expiry_timestamp_seconds": ("gauge", {"listener"}),
    "kvtls_credentials_generation": ("gauge", set()),
    "kvtls_rotations": ("counter", {"result"}),
    "kvtls_store_up": ("gauge", {"server"}),
    "kvtls_store_request_seconds": ("histogram", {"server", "le"}),
    "kvtls_store_errors": ("counter", {"server", "reason"}),
    "kvtls_workers": ("gauge", set()),
    "kvtls_worker_restarts": ("counter", set()),
}
"""The fixed names, their kinds and labels."""


def status_with(**changes: Any) -> dict[str, Any]:
    """A service of which some things are otherwise."""
    return {**status(), **changes}


class FakeRotation:
    """As much of a rotation as metrics look at."""

    def __init__(self) -> None:
        from collections import Counter

        self.current = served_generation()
        self.verdicts: Counter[str] = Counter(served=2, refused=1)


class FakeListener:
    """A listener of a name."""

    def __init__(self, name: str) -> None:
        self.name = name


class FakeEngineServer:
    """A server behind."""

    def __init__(self, up: bool) -> None:
        from kvproto.base.histogram import Histogram

        self.name = "10.0.0.1:6379"
        self.up = up
        self.seconds = Histogram()
        self.seconds.observe(0.002)
        self.errors = {"timeout": 3}


class SiteCase(SynchronousTestCase):
    """A site, asked byte by byte."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.not_ready = ""
        self.status: dict[str, Any] = status()
        self.ledger = Ledger(self.clock)
        self.store = MemoryStore(lambda: 1.0)
        self.server = KVServer([Bucket("b", self.store)])
        self.engine: list[Any] = []
        collector: Any = ServiceCollector(
            self.ledger,
            [FakeListener("data")],  # type: ignore[list-item]
            [],
            FakeRotation(),  # type: ignore[arg-type]
            self.server,
            lambda: self.not_ready,
            lambda _name, store: store.stats(),
            lambda: self.engine,
        )
        self.site = StatusSite(
            lambda: self.status,
            lambda: self.not_ready,
            exposition(collector),
            lambda: {"interval_s": 5.0, "samples": []},
            self.clock,
        )
        self.site.startFactory()
        self.addCleanup(self.site.stopFactory)
        self.site_timers = self.clock.getDelayedCalls()

    def connect(self) -> tuple[Any, ScriptedTransport]:
        return connect_to(self.site)

    def ask(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of an answer."""
        protocol, transport = self.connect()
        protocol.dataReceived(request)
        return answer_of(transport)

    def get(self, path: str, extra: str = "") -> tuple[int, dict[str, str], bytes]:
        return self.ask(f"GET {path} HTTP/1.1\r\nHost: x\r\n{extra}\r\n".encode())


class PathTests(SiteCase):
    """What there is, and what not."""

    def test_health(self) -> None:
        """The process lives whatever its state; it is ready, or says why not in one line."""
        self.assertEqual(self.get("/livez")[::2], (200, b"ok\n"))
        self.assertEqual(self.get("/readyz")[::2], (200, b"ok\n"))
        self.not_ready = "the service is draining"
        self.assertEqual(self.get("/livez")[::2], (200, b"ok\n"))
        self.assertEqual(self.get("/readyz")[::2], (503, b"the service is draining\n"))

    def test_status(self) -> None:
        """The status is that of the control socket."""
        code, headers, body = self.get("/status.json")
        self.assertEqual((code, headers["content-type"]), (200, "application/json"))
        self.assertEqual(json.loads(body), {"protocol": 1, "ok": True, **self.status})

    def test_nothing_else(self) -> None:
        """Other paths are not there, other methods and bodies are not taken."""
        for path in ("/x", "/livez/", "//livez", "/../metrics", "/%2e"):
            self.assertEqual(self.get(path)[0], 404, path)
        self.assertEqual(self.get("/livez?verbose=1")[0], 200)
        for method in ("POST", "DELETE", "PUT", "OPTIONS"):
            code, headers, _ = self.ask(f"{method} /livez HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            self.assertEqual((code, headers["allow"]), (405, "get, head"))
        code, _, body = self.ask(b"HEAD /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertEqual((code, body), (200, b""))
        for body_header in ("Content-Length: 5", "Transfer-Encoding: chunked"):
            request = f"POST /livez HTTP/1.1\r\nHost: x\r\n{body_header}\r\n\r\nhello"
            self.assertEqual(self.ask(request.encode())[0], 400, body_header)

    def test_failure(self) -> None:
        """A defect of ours is an answer and a line in the log, without a traceback for the peer."""
        self.status = {}
        code, _, body = self.get("/")
        self.assertEqual((code, body), (500, b"internal error; the log of the service says more\n"))
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)


class BoundTests(SiteCase):
    """Nobody can hold it up."""

    LIVEZ = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"

    def test_connections(self) -> None:
        """So many at once; who has waited longest for a request makes room for the next."""
        first = [self.connect() for _ in range(MAX_CONNECTIONS)]
        first[0][0].dataReceived(self.LIVEZ)
        late, transport = self.connect()
        late.dataReceived(self.LIVEZ)
        self.assertIn(b"200 OK", transport.received)
        self.assertEqual(
            [there.closed for _, there in first],
            [False, True, *[False] * (MAX_CONNECTIONS - 2)],
        )
        self.assertEqual(len(self.site.channels), MAX_CONNECTIONS)
        # Its end is told later, and takes nobody's place.
        first[1][0].connectionLost(Failure(ConnectionLost()))
        self.assertEqual(len(self.site.channels), MAX_CONNECTIONS)

    def test_silent_flood(self) -> None:
        """However many come and say nothing, who asks at once is answered, and nothing is left."""
        silent = [self.connect() for _ in range(10 * MAX_CONNECTIONS)]
        self.assertEqual(self.get("/livez")[0], 200)
        with capturedLogs() as events:
            self.clock.pump([1.0] * 120)
        self.assertEqual(events, [])
        for protocol, transport in silent:
            self.assertTrue(transport.closed or transport.disconnecting)
            protocol.connectionLost(Failure(ConnectionLost()))

    def test_all_are_served(self) -> None:
        """Where every connection is being answered there is no room for one more."""
        first = [self.connect() for _ in range(MAX_CONNECTIONS)]
        self.site.waiting.clear()
        _, late = self.connect()
        self.assertTrue(late.closed)
        self.assertFalse(any(transport.closed for _, transport in first))

    def test_pipelined(self) -> None:
        """Requests that come at once are answered in order, few in a turn of the event loop."""
        protocol, transport = self.connect()
        count = 2000
        ask = b"GET /livez?%d HTTP/1.1\r\nHost: x\r\n\r\n"
        protocol.dataReceived(b"".join(ask % number for number in range(count)))
        turns = 0
        seen = bytes(transport.received).count(b"200 OK")
        self.assertLessEqual(seen, 2)
        while seen < count:
            one_turn(self.clock)
            now = bytes(transport.received).count(b"200 OK")
            self.assertLessEqual(now - seen, 2)
            self.assertGreater(now, seen)
            seen, turns = now, turns + 1
        self.assertGreaterEqual(turns, count // 2 - 1)

    def test_pipelined_and_gone(self) -> None:
        """A client that asks much and leaves has nothing answered any more, and leaves no timer."""
        protocol, transport = self.connect()
        protocol.dataReceived(self.LIVEZ * 100)
        protocol.connectionLost(Failure(ConnectionLost()))
        before = bytes(transport.received)
        self.clock.pump([1.0] * 100)
        self.assertEqual(transport.received, before)
        self.assertEqual([c for c in self.clock.getDelayedCalls() if c.active()], self.site_timers)

    def test_wrong_requests(self) -> None:
        """What is no request, or too long a one, is answered so and ends the connection."""
        for request, code in (
            (b"GET /livez\r\n\r\n", 400),
            (b"GET /livez HTTP/9.9\r\n\r\n", 400),
            (b"\x16\x03\x01\x00\x05hello\r\n\r\n", 400),
            (b"GET /livez HTTP/1.1\r\nX: " + b"a" * 20000, 431),
            (b"GET /livez HTTP/1.1\r\n" + b"X: a\r\n" * 600 + b"\r\n", 400),
            (b"GET /livez HTTP/1.1\r\n" + (b"X: " + b"a" * 1000 + b"\r\n") * 20, 400),
            (b"GET /livez HTTP/1.1\r\nno colon\r\n\r\n", 400),
        ):
            protocol, transport = self.connect()
            protocol.dataReceived(request)
            self.assertEqual(transport.received.split(b" ")[1], b"%d" % code, request[:60])
            self.assertTrue(transport.disconnecting or transport.closed, request[:60])

    def test_old_clients(self) -> None:
        """HTTP/1.0 is answered and closed; a request that names the server is understood."""
        protocol, transport = self.connect()
        protocol.dataReceived(b"GET /livez HTTP/1.0\r\n\r\n")
        self.assertTrue(transport.received.startswith(b"HTTP/1.0 200 OK\r\n"))
        self.assertTrue(transport.disconnecting)
        self.assertEqual(self.get("http://kv.example:9207/readyz")[0], 200)
        self.assertEqual(self.get("http://kv.example:9207/x")[0], 404)
        self.assertEqual(self.get("http://kv.example:9207")[0], 200)

    def test_silence(self) -> None:
        """A connection that does not end its request is closed, and no timer is left."""
        protocol, transport = self.connect()
        protocol.dataReceived(b"GET /livez HT")
        self.clock.advance(IDLE_SECONDS + 1)
        self.assertTrue(transport.disconnecting)
        self.clock.advance(60)
        protocol.connectionLost(None)
        self.assertEqual(self.site.channels, set())

    def test_dribble(self) -> None:
        """A connection that sends a little now and then must end its request all the same."""
        protocol, transport = self.connect()
        protocol.dataReceived(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        for number in range(int(REQUEST_SECONDS // 20)):
            self.assertFalse(transport.closed)
            protocol.dataReceived(
                b"GET /livez HTTP/1.1\r\n" if not number else b"X-%d: 1\r\n" % number
            )
            self.clock.advance(20)
        self.assertTrue(transport.closed)

    def test_deadline_ends(self) -> None:
        """A connection that is lost leaves no timer."""
        protocol, _ = self.connect()
        protocol.connectionLost(None)
        self.assertEqual([c for c in self.clock.getDelayedCalls() if c.active()], self.site_timers)

    def test_interface(self) -> None:
        """Loopback unless told otherwise."""
        for description, full in (
            ("tcp:9207", "tcp:9207:interface=127.0.0.1"),
            ("tcp6:9207", r"tcp6:9207:interface=\:\:1"),
            ("tcp:9207:interface=0.0.0.0", "tcp:9207:interface=0.0.0.0"),
            ("unix:/run/x", "unix:/run/x"),
            ("kvtls:9207:certificate=c", "kvtls:9207:certificate=c"),
        ):
            self.assertEqual(with_interface(description), full)


class MetricsTests(SiteCase):
    """What a scraper reads."""

    def families(self) -> dict[str, Any]:
        code, headers, body = self.get("/metrics")
        self.assertEqual(code, 200)
        self.assertEqual(headers["content-type"], "text/plain; version=0.0.4; charset=utf-8")
        return {family.name: family for family in text_string_to_metric_families(body.decode())}

    def value(self, name: str, **labels: str) -> float:
        for family in self.families().values():
            for sample in family.samples:
                if sample.name == name and sample.labels == labels:
                    return float(sample.value)
        raise AssertionError(f"no {name} {labels}")

    def test_families(self) -> None:
        """Every family is there from the start, of the right kind, with these labels only."""
        for engine in ([], [FakeEngineServer(True)]):
            self.engine = engine
            self.server.counters.bytes_read = 7
            found = self.families()
            ours = {name: found[name] for name in found if name.startswith("kvtls_")}
            self.assertEqual(
                {name: f.type for name, f in ours.items()},
                {name: kind for name, (kind, _) in FAMILIES.items()},
            )
            for name, family in ours.items():
                for sample in family.samples:
                    labels = set(sample.labels)
                    if not sample.name.endswith("_bucket"):
                        labels |= FAMILIES[name][1] & {"le"}
                    self.assertEqual(labels, FAMILIES[name][1], sample)
            self.assertIn("process_resident_memory_bytes", found)

    def test_values(self) -> None:
        """Known traffic gives known numbers."""
        self.store.set(b"k", b"v")
        self.ledger.accepted_by["data"] += 3
        self.ledger.ended_by["data", "peer lost"] += 2
        self.ledger.failed_handshakes["data", "plaintext"] += 1
        self.ledger.logins["PLAIN", "failure"] += 4
        self.ledger.handshakes.observe(0.02)
        self.engine = [FakeEngineServer(False)]
        self.not_ready = "no"
        for name, labels, value in (
            ("kvtls_ready", {}, 0),
            ("kvtls_items", {"bucket": "b"}, 1),
            ("kvtls_accepted_total", {"listener": "data"}, 3),
            ("kvtls_ended_total", {"listener": "data", "reason": "peer_lost"}, 2),
            ("kvtls_handshake_failures_total", {"listener": "data", "reason": "plaintext"}, 1),
            ("kvtls_logins_total", {"mechanism": "PLAIN", "result": "failure"}, 4),
            ("kvtls_handshake_seconds_count", {}, 1),
            ("kvtls_handshake_seconds_bucket", {"le": "0.01"}, 0),
            ("kvtls_handshake_seconds_bucket", {"le": "0.025"}, 1),
            ("kvtls_rotations_total", {"result": "refused"}, 1),
            ("kvtls_store_up", {"server": "10.0.0.1:6379"}, 0),
            ("kvtls_store_errors_total", {"server": "10.0.0.1:6379", "reason": "timeout"}, 3),
            ("kvtls_requests_total", {"bucket": "b", "operation": "set", "result": "ok"}, 1),
        ):
            self.assertEqual(self.value(name, **labels), value, name)

    def test_openmetrics(self) -> None:
        """OpenMetrics where that is asked for."""
        accept = "Accept: application/openmetrics-text;version=1.0.0;q=0.9,text/plain;q=0.1\r\n"
        _, headers, body = self.get("/metrics", accept)
        self.assertIn("application/openmetrics-text", headers["content-type"])
        self.assertTrue(body.endswith(b"# EOF\n"))


class _Unlisted(dict[Any, Any]):
    """Entries that nobody may go through."""

    def __iter__(self) -> Any:
        raise AssertionError("a scrape goes through all connections")

    keys = values = items = __iter__


class ManyConnectionsTests(SiteCase):
    """What a scrape costs the event loop: `benchmarks/scrape.py` has the figures."""

    def test_nobody_is_looked_at(self) -> None:
        """A scrape goes through no list of connections, so that their number is no matter."""
        for number in range(3):
            self.ledger.admit("data", IPv4Address("TCP", "192.0.2.1", number), NULL_CONNECTION)
        self.patch(self.ledger, "_entries", _Unlisted(self.ledger._entries))
        code, _, body = self.get("/metrics")
        self.assertEqual(code, 200)
        self.assertIn(b'kvtls_connections{listener="data",state="handshaking"} 3.0', body)
        self.assertRaises(AssertionError, self.ledger.entries)


class PageTests(SiteCase):
    """What people see."""

    def test_self_contained(self) -> None:
        """Nothing is loaded from anywhere, and the policy forbids it."""
        code, headers, body = self.get("/")
        page = body.decode()
        self.assertEqual((code, headers["content-type"]), (200, "text/html; charset=utf-8"))
        self.assertEqual(headers["content-security-policy"], PAGE_POLICY.lower())
        self.assertEqual(re.findall(r'(?:src|href)="(?!data:,)[^"]*"', page), [])
        self.assertNotIn("url(", page)
        self.assertIn("All is well", page)

    def test_escaped(self) -> None:
        """No name or reason is markup."""
        evil = '<script>alert("x")</script>\x1b'
        self.status = status_with(
            generation=generation(
                names=[evil], warnings=[evil], last_verdict={"at": "2026", **verdict(reason=evil)}
            )
        )
        page = render_page(self.status, evil, {"samples": []})
        self.assertNotIn("<script>alert", page)
        self.assertIn(html.escape('<script>alert("x")</script>\\x1b'), page)

    def test_findings(self) -> None:
        """What is wrong comes first, then what is about to be."""
        self.assertEqual(findings(status_with(generation=generation(warnings=[])), ""), [])
        bad = status_with(
            generation=generation(
                expires_in_s=86400.0,
                warnings=["the key can be read"],
                last_verdict={"at": "2026", **verdict(ok=False, reason="no key")},
            ),
            limits={
                "connections": {"used": 95, "limit": 100},
                "unauthenticated": {"used": 1, "limit": 100},
                "per_peer": {"limit": 0},
            },
            buckets=[{"name": "b", "bytes": 95, "limit_bytes": 100}],
        )
        self.assertEqual(
            findings(bad, "draining"),
            [
                "Clients are not served: draining",
                "The certificate ends in 1d0h",
                "The last reload was refused: no key",
                "the key can be read",
                "95 of 100 connections are taken",
                "Bucket b is 95% full",
            ],
        )

    def test_short_lived_certificate(self) -> None:
        """One that lives for a day needs attention in the last fifth of that day."""
        life = {"not_before": "2026-11-28T00:00:00Z", "not_after": "2026-11-29T00:00:00Z"}
        for left, found in ((18000.0, []), (14400.0, ["The certificate ends in 4h00m"])):
            told = generation(expires_in_s=left, warnings=[], **life)
            self.assertEqual(findings(status_with(generation=told), ""), found)

    def test_states(self) -> None:
        """The headline says which of three it is, and why."""
        for not_ready, words in (
            ("no listener listens", "Not serving clients"),
            ("", "All is well"),
        ):
            page = render_page(status(), not_ready, {"samples": []})
            self.assertIn(f"<strong>{words}</strong>", page)
            self.assertIn(not_ready, page)


class HistoryTests(SynchronousTestCase):
    """A quarter of an hour of numbers."""

    def test_rates(self) -> None:
        """Requests become a rate, old samples go, and the timer ends with the service."""
        clock = Clock()
        requests = iter(range(0, 100_000, 50))
        history = History(
            lambda: {"requests": next(requests), "connections": 1, "p50": None, "p99": 0.5},
            clock,
            lambda: clock.seconds() + 1e9,
        )
        history.startService()
        clock.pump([INTERVAL] * (SAMPLES + 5))
        samples = history.report()["samples"]
        self.assertEqual(len(samples), SAMPLES)
        self.assertEqual(samples[-1]["requests_per_s"], 10.0)
        self.assertEqual(samples[-1]["at"], 1e9 + clock.seconds())
        history.stopService()
        self.assertEqual(clock.getDelayedCalls(), [])
