"""The status page in Chromium: on a phone, a desk and a wall, without scripts, and by axe-core."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from kvproto.ops.page import render_page
from tests.integration.browser import Browser
from tests.integration.live import kvtls
from tests.integration.service import KvtlsProcess
from tests.ops.material import NOW, generation, listener, status, verdict

WIDTHS = (390, 1280, 2560)

AXE = "KVPROTO_AXE"
"""Environment variable that names an axe.min.js newer than that of axe-core-python."""

TOO_WIDE = """
const out = [];
for (const one of document.querySelectorAll("body *")) {
  if (one.closest(".wide table, svg")) continue;
  const box = one.getBoundingClientRect();
  if (box.right > innerWidth + 1 || box.left < -1) out.push(one.tagName + "." + one.className);
}
if (document.documentElement.scrollWidth > innerWidth) out.push("page");
return out;
"""

VIOLATIONS = """
const done = arguments[arguments.length - 1];
const said = one => one.id + ": " + one.nodes.map(node => node.html).join(" ");
axe.run().then(found => done(found.violations.map(said))).catch(error => done([String(error)]));
"""

STATE = 'return document.querySelector("#state strong").textContent'
GONE = 'const gone = document.getElementById("gone"); return gone.hidden ? "" : gone.textContent'


def axe() -> str:
    """Return axe-core's script."""
    name = os.environ.get(AXE)
    if name:
        return Path(name).read_text(encoding="utf-8")
    found = importlib.util.find_spec("axe_core_python")
    if found is None or found.origin is None:
        raise SkipTest("axe-core is not installed: pip install axe-core-python")
    return Path(found.origin).with_name("axe.min.js").read_text(encoding="utf-8")


def troubled(names: str) -> dict[str, Any]:
    """Return the status of a large service that has every kind of trouble, with long names."""
    listeners = tuple(
        listener(
            f"data-{number}",
            address=f"[2001:db8:1234:5678:9abc:def0:1234:{number:x}]:11207",
            error="the port is in use " * 5 if number == 3 else "",
            retry_in_s=4.2 if number == 3 else None,
        )
        for number in range(20)
    )
    served = generation(
        expires_in_s=86400.0,
        names=[f"{number}.{names}" for number in range(20)],
        last_verdict={
            "at": "2026-11-18T10:00:00.000Z",
            **verdict(ok=False, stage="check", reason=f"the key does not fit {names}"),
        },
        warnings=[names],
    )
    buckets = [
        {"name": f"{names}{number}", "items": 10**number, "bytes": 95, "limit_bytes": 100,
         "evictions": number}
        for number in range(10)
    ]  # fmt: skip
    buckets.append(dict.fromkeys(("items", "bytes"), None) | {
        "name": "unknown", "limit_bytes": 10, "evictions": 0,
    })  # fmt: skip
    servers = [
        {
            "server": f"{number}-{names}",
            "up": number != 7,
            "reason": names,
            "errors": {"timeout": 3},
        }
        for number in range(20)
    ]
    return {
        **status(served=served, listeners=listeners),
        "buckets": buckets,
        "store": {"url": f"memcached://{names}", "ready": True, "reason": "", "servers": servers},
    }


def history(number: int) -> dict[str, Any]:
    """Return samples, some of them without a request."""
    rows = [
        {"at": NOW + 5 * index, "requests_per_s": 99.0 * index, "connections": index,
         "p50": 0.0001 if index % 5 else None, "p99": 0.002 if index % 7 else None}
        for index in range(number)
    ]  # fmt: skip
    return {"interval_s": 5.0, "samples": rows}


@contextmanager
def served(page: str) -> Iterator[str]:
    """Serve one page; yield its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = page.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class PageCase(SynchronousTestCase):
    """A browser for each test."""

    def setUp(self) -> None:
        directory = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.browser = self.enterContext(Browser(directory / "profile"))


class LooksTests(PageCase):
    """Pages of services that are well, new, or in every kind of trouble."""

    PAGES = (
        ("well", (status(), "", history(180)), "All is well"),
        ("new", (status(), "", history(0)), "All is well"),
        ("silent", (status(), "no listener listens", history(1)), "Not serving clients"),
        (
            "troubled",
            (troubled("kv.department-with-a-long-name.example.com" * 3), "", history(30)),
            "Serves, and needs attention",
        ),
    )

    def test_fits(self) -> None:
        """Nothing is wider than the window, from a phone to a wall."""
        for name, facts, headline in self.PAGES:
            with served(render_page(*facts)) as url:
                self.browser.open(url)
                self.assertEqual(self.browser.run(STATE), headline)
                for width in WIDTHS:
                    self.browser.resize(width)
                    self.assertEqual(self.browser.run(TOO_WIDE), [], (name, width))

    def test_accessible(self) -> None:
        """axe-core finds nothing, in light and in dark, on a phone and on a wall."""
        script = axe()
        for name, facts, _ in self.PAGES:
            with served(render_page(*facts)) as url:
                self.browser.open(url)
                for width, dark in ((390, False), (390, True), (1280, False), (2560, True)):
                    self.browser.resize(width)
                    self.browser.dark(dark)
                    self.browser.run(script)
                    found = self.browser.run(VIOLATIONS, waits=True)
                    self.assertEqual(found, [], (name, width, dark))

    def test_escaped(self) -> None:
        """No name is ever markup."""
        name = "<img src=x onerror=document.title='caught'>\"'&\x1b[1m"
        with served(render_page(troubled(name), name, history(1))) as url:
            self.browser.open(url)
            self.assertEqual(self.browser.run("return document.images.length"), 0)
            self.assertNotEqual(self.browser.run("return document.title"), "caught")
            self.assertIn(
                name.replace("\x1b", "\\x1b"), self.browser.run("return document.body.innerText")
            )


class LiveTests(PageCase):
    """The page of a service that runs, drains and ends while somebody looks."""

    def setUp(self) -> None:
        super().setUp()
        self.service = KvtlsProcess("--http", "tcp:0")
        self.addCleanup(self.service.__exit__, None, None, None)
        line = self.service.wait_for_line(re.compile(r"http on \S+"))
        self.url = f"http://{line.removeprefix('http on ')}/"

    def test_drains_and_goes(self) -> None:
        """The page brings itself up to date: drained, then gone, in the tab's name too."""
        self.browser.open(self.url)
        self.assertEqual(self.browser.run(STATE), "All is well")
        self.assertEqual(kvtls(self.service, "drain", "--wait").returncode, 0)
        self.browser.until(STATE, lambda found: found == "Not serving clients: drained")
        self.assertEqual(
            self.browser.run("return document.title"), "kvtls: Not serving clients: drained"
        )
        self.assertEqual(self.browser.run(GONE), "")
        self.service.process.send_signal(signal.SIGKILL)
        self.assertIn("Nobody answers since", self.browser.until(GONE))
        self.assertEqual(self.browser.run("return document.title"), "kvtls: nobody answers")

    def test_asks_nobody_else(self) -> None:
        """Every request goes to the service itself, and its policy forbids any other."""
        self.browser.open(self.url)
        self.browser.until("return performance.getEntriesByType('resource').length")
        asked = self.browser.run(
            "return performance.getEntriesByType('resource').map(one => one.name)"
        )
        self.assertEqual({name for name in asked if not name.startswith("data:")}, {self.url})
        refused = self.browser.run(
            "const done = arguments[arguments.length - 1];"
            "addEventListener('securitypolicyviolation', event => done(event.violatedDirective));"
            "fetch('http://127.0.0.1:9/').catch(() => 0);",
            waits=True,
        )
        self.assertEqual(refused, "connect-src")

    def test_without_scripts(self) -> None:
        """The plain facts are there, and the page asks for itself again."""
        self.browser.emulate("setScriptExecutionDisabled", value=True)
        self.browser.open(self.url)
        self.browser.emulate("setScriptExecutionDisabled", value=False)
        self.assertEqual(self.browser.run(STATE), "All is well")
        self.assertIn("127.0.0.1:", self.browser.run("return document.body.innerText"))
        refresh = "return document.querySelector('meta[http-equiv=refresh]').content"
        self.assertEqual(self.browser.run(refresh), "15")
