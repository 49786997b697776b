"""What the status page shows, as HTML; how it looks is seen in `tests.integration.test_page`."""

from __future__ import annotations

import re
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from kvproto.ops.curves import WIDTH, curves
from kvproto.ops.page import findings, render_page
from kvproto.ops.render import render
from tests.ops.material import generation, listener, status

NOTHING: dict[str, Any] = {"interval_s": 5.0, "samples": []}


def sample(requests: float, p50: float | None) -> dict[str, Any]:
    """One look at a service with three connections."""
    return {"at": 0.0, "requests_per_s": requests, "connections": 3, "p50": p50, "p99": p50}


def server(name: str, *, up: bool = True) -> dict[str, Any]:
    """A server behind, as the store's status has it."""
    reason = "" if up else "connection refused"
    return {"server": name, "up": up, "reason": reason, "errors": {} if up else {"timeout": 1200}}


def behind(*servers: dict[str, Any]) -> dict[str, Any]:
    """The status of a service in front of servers."""
    store = {"url": "memcached://a", "ready": True, "reason": "", "servers": list(servers)}
    return {**status(served=generation(warnings=[])), "store": store}


class CurveTests(SynchronousTestCase):
    """The last quarter of an hour."""

    def test_axes(self) -> None:
        """Each curve goes from 0 to a round number with its unit, and from then to now."""
        html = curves([sample(1300, 0.00017), sample(900, 0.034)])
        self.assertEqual(
            re.findall(r'class="top" aria-hidden="true">([^<]*)<', html),
            ["2,000", "5", "50 ms", "50 ms"],
        )
        self.assertEqual(html.count("15 min ago</span><span>now"), 4)
        self.assertIn("<figcaption>Requests a second: 900, at most 1,300<", html)
        self.assertIn("<figcaption>Median time of a request: 34 ms, at most 34 ms<", html)
        self.assertIn("<figcaption>99th percentile: 34 ms, at most 34 ms<", html)

    def test_units(self) -> None:
        """Times are in the unit that needs the fewest digits."""
        for seconds, shown in (
            (2e-7, "0.2 µs"),
            (1.25e-4, "125 µs"),
            (0.0005, "500 µs"),
            (0.0123, "12.3 ms"),
            (3.0, "3 s"),
        ):
            self.assertIn(f": {shown}, at most", curves([sample(0, seconds)]))

    def test_now_is_right(self) -> None:
        """The last sample is at the right, however few there are; one alone is a dot."""
        (path, *_) = re.findall(r'<path d="([^"]*)"', curves([sample(10, None)]))
        self.assertEqual(path, f"M{WIDTH}.0,3.0h0")
        (path, *_) = re.findall(r'<path d="([^"]*)"', curves([sample(10, None)] * 180))
        self.assertTrue(path.startswith("M0.0,"), path[:20])
        self.assertIn(f"L{WIDTH}.0,", path)

    def test_gaps(self) -> None:
        """Where nothing was asked there is no time of a request: a gap, and not a zero."""
        html = curves([sample(1, time) for time in (0.001, 0.001, None, 0.001, None)])
        path = re.findall(r'<path d="([^"]*)"', html)[2]
        self.assertEqual(path.count("M"), 2)
        self.assertIn("Median time of a request: none now, at most 1 ms", html)

    def test_nothing(self) -> None:
        """Without samples, or without a request, that is said."""
        self.assertEqual(curves([]).count(": nothing yet</figcaption>"), 4)
        html = curves([sample(0, None)])
        self.assertIn("Median time of a request: no requests</figcaption>", html)
        self.assertIn("Requests a second: 0, at most 0</figcaption>", html)


class FactTests(SynchronousTestCase):
    """What is in short, and what needs attention."""

    def fact(self, name: str, said: dict[str, Any], samples: Any = ()) -> tuple[str, str]:
        """Return how bad a fact is, and its value."""
        html = render_page(said, "", {"samples": list(samples)})
        found = re.search(rf'<div class="(\w*)"><dt>{name}</dt><dd>([^<]*)</dd>', html)
        assert found is not None, html
        return found[1], found[2]

    def test_facts(self) -> None:
        """What is near its end is marked."""
        well = status(served=generation(expires_in_s=6_400_000.0))
        self.assertEqual(self.fact("Connections", well), ("", "2 of 10,000"))
        self.assertEqual(self.fact("Certificate", well), ("", "74d1h left"))
        self.assertEqual(self.fact("Requests a second", well), ("", "-"))
        self.assertEqual(self.fact("Requests a second", well, [sample(1234, None)])[1], "1,234")
        soon = status(served=generation(expires_in_s=86400.0))
        self.assertEqual(self.fact("Certificate", soon), ("warn", "1d0h left"))
        late = status(served=generation(expires_in_s=-1.0))
        self.assertEqual(self.fact("Certificate", late), ("bad", "expired"))
        well["limits"]["connections"] = {"used": 95, "limit": 100}
        self.assertEqual(self.fact("Connections", well), ("warn", "95 of 100"))
        well["limits"]["connections"] = {"used": 95, "limit": 0}
        self.assertEqual(self.fact("Connections", well), ("", "95"))

    def test_buckets(self) -> None:
        """The fullest bucket counts; one of which nothing is known yet harms nobody."""
        bucket = {"name": "a", "items": 1, "bytes": 95, "limit_bytes": 100, "evictions": 0}
        unknown = {**bucket, "name": "b", "items": None, "bytes": None}
        said = {**status(served=generation(warnings=[])), "buckets": [unknown, bucket]}
        self.assertEqual(self.fact("Fullest bucket", said), ("warn", "95%"))
        self.assertEqual(findings(said, ""), ["Bucket a is 95% full"])

    def test_servers(self) -> None:
        """Servers that do not answer are named, come first in their table, and share a line."""
        well = behind(server("a:1"), server("b:2"))
        self.assertEqual(self.fact("Servers behind", well), ("", "2 of 2 up"))
        ill = behind(server("a:1"), server("b:2", up=False))
        self.assertEqual(self.fact("Servers behind", ill), ("bad", "1 of 2 up"))
        self.assertEqual(findings(ill, ""), ["Server b:2 does not answer: connection refused"])
        html = render_page(ill, "", NOTHING)
        self.assertLess(html.index(">b:2</th>"), html.index(">a:1</th>"))
        self.assertIn("1,200 timeout", html)
        dead = behind(*(server(f"{number}:1", up=False) for number in range(5)))
        self.assertEqual(
            findings(dead, ""), ["5 servers behind do not answer: 0:1, 1:1, 2:1 and others"]
        )

    def test_listeners(self) -> None:
        """A listener that does not listen comes first in its table, and is marked."""
        failing = listener("data-9", error="in use", retry_in_s=1.0)
        html = render_page(status(listeners=(listener(), failing)), "", NOTHING)
        self.assertLess(html.index(">data-9</th>"), html.index(">data-0</th>"))
        self.assertIn('<tr class="bad"><th scope="row">data-9</th>', html)

    def test_nodes(self) -> None:
        """Node links are listed, those that are missing marked."""
        link = {"node": "a@h", "direction": "in", "state": "up", "age_s": 60.0}
        calling = {"node": "b@h", "state": "waiting", "problem": "refused"}
        said = {
            **status(served=generation(warnings=[])),
            "nodes": {"links": [link], "connectors": [calling]},
        }
        self.assertEqual(findings(said, ""), ["Node b@h: refused"])
        html = render_page(said, "", NOTHING)
        self.assertIn('<tr><th scope="row">a@h</th>', html)
        self.assertIn('<tr class="bad"><th scope="row">b@h</th>', html)

    def test_title(self) -> None:
        """The browser's tab says how the service is."""
        for not_ready, title in (("", "kvtls: All is well"), ("x", "kvtls: Not serving clients")):
            said = status(served=generation(warnings=[]))
            self.assertIn(f"<title>{title}</title>", render_page(said, not_ready, NOTHING))


class TextTests(SynchronousTestCase):
    """The same in ``kvtls status``."""

    def test_not_written(self) -> None:
        """A store that serves and takes no writes says so, by bucket."""
        buckets = {"good": {"fault": ""}, "bad": {"fault": "data: No space left on device"}}
        store = {"url": "file:data", "ready": True, "reason": "", "buckets": buckets}
        said = status(served=generation(warnings=[]))
        row = {"name": "b", "items": 1, "bytes": 1, "limit_bytes": 1, "evictions": 0}
        text = render("status", {"ok": True, **said, "store": store, "buckets": [row]})
        self.assertRegex(text, r"\n  not writing +bucket bad: data: No space left on device\n")
        self.assertNotIn("good", text)

    def test_servers(self) -> None:
        """Servers behind are listed, with what is wrong below them."""
        said = behind(server("a:1"), server("b:2", up=False))
        bucket = {"name": "b", "items": 1, "bytes": 1, "limit_bytes": 1, "evictions": 0}
        text = render("status", {"ok": True, **said, "buckets": [bucket]})
        self.assertRegex(
            text, r"\na:1 +up +none\nb:2 +DOWN +1200 timeout\n    connection refused\n"
        )
