"""A management site in memory."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any
from urllib.parse import urlencode

from twisted.internet.defer import maybeDeferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from kvproto.config import Config, UserBuckets
from kvproto.config.values import User
from kvproto.dataplane import Administration, UsersReload, make_server, make_stores
from kvproto.listeners import Ledger
from kvproto.management import ManagementSite
from kvproto.server.topology import ServicePorts
from kvproto.testing.scripted import ScriptedTransport
from tests.sites import answer_of, connect_to

__all__ = ["ADMIN", "LIMITED", "SiteCase"]

ADMIN = ("root", "secret12")
LIMITED = ("guest", "secret12")

NOW = 1_750_000_000.0


class SiteCase(SynchronousTestCase):
    """A site that is asked byte by byte.

    Attributes:
        options: Fields of the `Config`.
        who: Who asks unless told otherwise; None for nobody.
    """

    options: dict[str, Any] = {}
    who: tuple[str, str] | None = ADMIN

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        given: dict[str, Any] = {
            "users": (User(*ADMIN), User(*LIMITED)),
            "user_buckets": (UserBuckets("guest", ("default",)),),
            "management": "tcp:0",
        }
        self.serve(Config(**(given | self.options)))

    def serve(self, config: Config) -> None:
        """Make everything anew."""
        self.config = config
        self.stores = make_stores(config, self.clock)
        self.server = make_server(config, self.clock, stores=self.stores)
        self.server.name_ports(ServicePorts((11207,), (11210,), 18091, 18091))
        users = UsersReload(config, self.server, self.clock, maybeDeferred)
        self.administration = Administration(
            config, self.server, self.stores, users, self.clock, maybeDeferred
        )
        ledger = Ledger(self.clock)
        self.logins = ledger.logins
        self.site = ManagementSite(self.server, self.administration, self.clock, ledger)

    def connect(self) -> tuple[Any, ScriptedTransport]:
        return connect_to(self.site)

    def raw(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of an answer."""
        protocol, transport = self.connect()
        protocol.dataReceived(request)
        self.clock.pump([0.0] * 20)
        protocol.connectionLost(Failure(ConnectionDone()))
        return answer_of(transport)

    def ask(
        self,
        method: str,
        path: str,
        form: dict[str, str] | bytes | None = None,
        *,
        who: tuple[str, str] | None = None,
        kind: str = "application/x-www-form-urlencoded",
    ) -> tuple[int, Any]:
        """Return status and body, decoded where it is JSON."""
        body = b"" if form is None else form if isinstance(form, bytes) else _encoded(form)
        lines = [f"{method} {path} HTTP/1.1", "Host: kv.example:18091"]
        sender = who or self.who
        if sender is not None:
            lines.append(f"Authorization: Basic {b64encode(':'.join(sender).encode()).decode()}")
        if form is not None:
            lines += [f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
        code, headers, answer = self.raw("\r\n".join([*lines, "", ""]).encode() + body)
        if headers.get("content-type") == "application/json" and answer:
            return code, json.loads(answer)
        return code, answer.decode()

    def get(self, path: str, **more: Any) -> tuple[int, Any]:
        return self.ask("GET", path, **more)

    def post(self, path: str, _form: Any = None, **fields: str) -> tuple[int, Any]:
        return self.ask("POST", path, fields if _form is None else _form)

    def create_bucket(self, name: str = "made", **settings: str) -> tuple[int, Any]:
        given = {"name": name, "ramQuotaMB": "100", "flushEnabled": "1"}
        return self.post("/pools/default/buckets", given | settings)


def _encoded(form: dict[str, str]) -> bytes:
    return urlencode(form).encode()
