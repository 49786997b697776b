"""Health, metrics and status over HTTP: the third door beside the control socket and signals.

Read-only: GET and HEAD, no bodies, and nothing that a request could change.  What is shown is made
when somebody asks.

It should start before the listeners and stop after them, so that probes hear why clients are not
served.  HTTP itself, and its bounds, are `kvproto.base.http`'s.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from twisted.web.resource import Resource

from kvproto.base.addresses import describe_peer
from kvproto.base.http import BoundedSite
from kvproto.base.limited_log import LimitedLog
from kvproto.base.log import make_logger
from kvproto.ops.page import render_page
from kvproto.ops.page_frame import PAGE_POLICY

__all__ = ["StatusSite"]

log = make_logger()
peer_log = LimitedLog(log)


class StatusSite(BoundedSite):
    """What is served.

    Args:
        status: Returns what ``kvtls status`` says.
        ready: Returns why clients are not served, ``""`` when they are.
        scrape: Returns metrics and their content type for an ``Accept`` header.
        history: Returns what the page draws curves of.
        reactor: For deadlines.
    """

    def __init__(
        self,
        status: Callable[[], dict[str, Any]],
        ready: Callable[[], str],
        scrape: Callable[[str], tuple[bytes, str]],
        history: Callable[[], dict[str, Any]],
        reactor: Any,
    ) -> None:
        super().__init__(_Root(status, ready, scrape, history), reactor)


class _Root(Resource):
    """All paths; those that there are not are 404."""

    isLeaf = True

    def __init__(
        self,
        status: Callable[[], dict[str, Any]],
        ready: Callable[[], str],
        scrape: Callable[[str], tuple[bytes, str]],
        history: Callable[[], dict[str, Any]],
    ) -> None:
        super().__init__()
        self._status = status
        self._ready = ready
        self._scrape = scrape
        self._history = history
        self._paths: dict[bytes, Callable[[Any], tuple[int, str, bytes]]] = {
            b"/livez": lambda _: (200, TEXT, b"ok\n"),
            b"/readyz": self._readyz,
            b"/metrics": self._metrics,
            b"/status.json": self._status_json,
            b"/history.json": lambda _: (200, JSON, _json(self._history())),
            b"/": self._page,
        }

    def render(self, request: Any) -> bytes:
        """Answer one request."""
        request.setHeader(b"Server", b"kvtls")
        request.setHeader(b"Cache-Control", b"no-store")
        request.setHeader(b"X-Content-Type-Options", b"nosniff")
        if request.method not in {b"GET", b"HEAD"}:
            request.setHeader(b"Allow", b"GET, HEAD")
            code, kind, body = 405, TEXT, b"only GET and HEAD\n"
        else:
            # Who asks a proxy names the server as well, and must be understood (RFC 9112, 3.2.2).
            path = re.sub(rb"^https?://[^/?]*", b"", request.path) or b"/"
            answer = self._paths.get(path)
            try:
                code, kind, body = (
                    (404, TEXT, b"not found\n") if answer is None else answer(request)
                )
            except Exception:
                peer_log.failure(
                    "HTTP: {path} could not be answered",
                    path=request.path.decode("latin-1"),
                    peer=describe_peer(request.getClientAddress()),
                )
                code, kind, body = 500, TEXT, b"internal error; the log of the service says more\n"
        request.setResponseCode(code)
        request.setHeader(b"Content-Type", kind.encode())
        request.setHeader(b"Content-Length", b"%d" % len(body))
        return b"" if request.method == b"HEAD" else body

    def _readyz(self, _request: Any) -> tuple[int, str, bytes]:
        reason = self._ready()
        return (503, TEXT, f"{reason}\n".encode()) if reason else (200, TEXT, b"ok\n")

    def _metrics(self, request: Any) -> tuple[int, str, bytes]:
        body, kind = self._scrape((request.getHeader(b"accept") or b"").decode("latin-1"))
        return 200, kind, body

    def _status_json(self, _request: Any) -> tuple[int, str, bytes]:
        return 200, JSON, _json({"protocol": 1, "ok": True, **self._status()})

    def _page(self, request: Any) -> tuple[int, str, bytes]:
        request.setHeader(b"Content-Security-Policy", PAGE_POLICY.encode())
        page = render_page(self._status(), self._ready(), self._history())
        return 200, "text/html; charset=utf-8", page.encode()


TEXT = "text/plain; charset=utf-8"
JSON = "application/json"
NOT_FOUND = 404, TEXT, b"not found\n"


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"
