"""The file of ``--config`` is read again: all that can change is taken over, or nothing."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase
from txaio import tx

from kvproto.base.serial import Serial
from kvproto.config import Config
from kvproto.config.options import OPTIONS, Reload
from kvproto.config.settings import Settings, build_config, describe, merge
from kvproto.config.toml_file import read_config_file
from kvproto.ops.config_reload import ConfigReload, Part
from kvproto.server import hash_password
from kvproto.server.users_file import UserRecord, change_users
from kvproto.service import KVTLSService
from kvproto.store import Document
from kvproto.testing.certificates import root_authority

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "options.md"
HASHES = hash_password("secret", 4096)

Probe = Callable[[KVTLSService], object]


def session_settings(name: str) -> Probe:
    """Return what looks at a field of the settings of sessions."""
    return lambda service: getattr(service.server.settings, name)


def bucket_store(service: KVTLSService) -> Any:
    """Return the store of the only bucket."""
    return service.server.buckets["default"].store


PROBES: dict[str, tuple[str, Probe, object]] = {
    "user": ('user = ["alice:pw"]', lambda service: sorted(service.server.users), ["alice"]),
    "users": ('users = "users"', lambda service: sorted(service.server.users), ["bob"]),
    "user-buckets": (
        'user = ["alice:pw"]\nuser-buckets = ["alice:default"]',
        lambda service: service.server.users.buckets_of("alice"),
        ("default",),
    ),
    "anonymous": ("anonymous = false", session_settings("anonymous"), False),
    "allow-flush": ("allow-flush = true", session_settings("allow_flush"), True),
    "watcher": (
        'user = ["alice:pw"]\nwatcher = ["alice"]',
        session_settings("watchers"),
        frozenset({"alice"}),
    ),
    "memcached-version": ('memcached-version = "1.2.3"', session_settings("version"), "1.2.3"),
    "memory-limit": (
        'memory-limit = "32MiB"', lambda service: bucket_store(service).table.limit, 32 << 20
    ),
    "refuse-when-full": (
        "refuse-when-full = true", lambda service: bucket_store(service).table.evict, False
    ),
    "max-value": (
        'max-value = "1KiB"', lambda service: bucket_store(service)._limits.max_value, 1024
    ),
    "max-unfinished": (
        'max-unfinished = "99MiB"', lambda service: service.server.budget.limit, 99 << 20
    ),
    "max-connections": (
        "max-connections = 7", lambda service: service.ledger.limits.connections, 7
    ),
    "requests-per-event": ("requests-per-event = 7", session_settings("requests_per_event"), 7),
    "max-connections-per-peer": (
        "max-connections-per-peer = 7", lambda service: service.ledger.limits.per_peer, 7
    ),
    "handshake-timeout": (
        "handshake-timeout = 7", lambda service: service.ledger.timeouts.handshake, 7.0
    ),
    "close-timeout": (
        "close-timeout = 7",
        lambda service: vars(service.acceptors[0]._factory.current)["close_timeout"],
        7.0,
    ),
    "drain-timeout": (
        "drain-timeout = 7",
        lambda service: (service.ledger.timeouts.drain, service.acceptors[0]._drain_timeout),
        (7.0, 7.0),
    ),
    "idle-timeout": (
        "idle-timeout = 7",
        lambda service: (service._ages._idle, service.acceptors[0]._handoffs.watch_idle),
        (7.0, True),
    ),
    "max-lifetime": ("max-lifetime = 7", lambda service: service._ages._lifetime, 7.0),
    "on-rotate": (
        'on-rotate = "drain"',
        lambda service: service.control.status()["listeners"][0]["on_rotate"],
        "drain",
    ),
    "drain-window": ("drain-window = 7", lambda service: service._config.drain_window, 7.0),
    "log-levels": (
        'log-levels = ["tls:debug"]', lambda service: tx.get_global_log_level(), "debug"
    ),
    "log-level": ('log-level = "warn"', lambda service: tx.get_global_log_level(), "warn"),
}  # fmt: skip
"""Lines of the file by the option that they change, what to look at then, and what is there."""

ELSEWHERE = {"peer", "cert-user", "no-flush"}
"""Options that need others beside them; they have tests of their own."""


class ServiceCase(SynchronousTestCase):
    """A service that does not listen, and its file."""

    def setUp(self) -> None:
        # Not trial's: the name of a Unix socket must be short.
        self.directory = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.path = self.directory / "kvtls.toml"
        self.addCleanup(tx.set_global_log_level, tx.get_global_log_level())
        self.base = "listen = ['tcp:0:interface=127.0.0.1']\nstate-dir = 'state'\n"

    def make(self, text: str = "") -> KVTLSService:
        settings = self.settings(text)
        self.patch(KVTLSService, "_in_thread", lambda _, *call: maybeDeferred(*call))
        return KVTLSService(build_config(settings), reactor, settings=settings)

    def settings(self, text: str) -> Settings:
        self.path.write_text(self.base + text, encoding="utf-8")
        return merge({}, read_config_file(self.path))

    def reload(self, service: KVTLSService, text: str) -> dict[str, Any]:
        self.path.write_text(self.base + text, encoding="utf-8")
        answer: dict[str, Any] = self.successResultOf(service.config_reload.reload())
        return answer


class LiveTests(ServiceCase):
    """What a running service takes over."""

    def test_each_option(self) -> None:
        """Every option that needs no restart is in force after a reload, and goes back again."""
        live = {name for name, one in OPTIONS.items() if one.reload is not Reload.RESTART}
        self.assertEqual({*PROBES, *ELSEWHERE}, live)
        with change_users(self.directory / "users") as users:
            users["bob"] = UserRecord(HASHES)
        service = self.make()
        for name, (text, look, wanted) in PROBES.items():
            before = look(service)
            answer = self.reload(service, text)
            self.assertEqual((answer["ok"], answer["reason"], answer["restart"]), (True, "", []))
            self.assertIn(name, answer["changed"])
            self.assertEqual(look(service), wanted, name)
            self.assertEqual(self.shown(service, name)["source"].partition(":")[0], str(self.path))
            self.assertTrue(self.reload(service, "")["ok"])
            self.assertEqual(look(service), before, name)
            self.assertEqual(self.shown(service, name)["source"], "default")

    def shown(self, service: KVTLSService, name: str) -> dict[str, Any]:
        rows: list[dict[str, Any]] = service.control.config()["options"]
        return next(row for row in rows if row["name"] == name)

    def test_no_flush(self) -> None:
        """In memcached mode, where flushing is usual, it can be forbidden, and allowed again."""
        service = self.make("mode = 'memcached'\n")
        for text, allowed in (("no-flush = true\n", False), ("", True)):
            answer = self.reload(service, "mode = 'memcached'\n" + text)
            self.assertEqual(answer["changed"], ["allow-flush", "no-flush"])
            self.assertEqual(service.server.settings.flush_allowed, allowed)
            self.assertEqual(service.administration.may_flush("default"), allowed)

    def test_cert_user(self) -> None:
        """Certificates name their users by other rules, for whoever comes from now on."""
        authority = root_authority()
        (self.directory / "ca.pem").write_bytes(authority.certificate_pem)
        base = "client-ca = 'ca.pem'\nuser = ['alice:pw']\n"
        service = self.make(base)
        leaf = authority.issue("somebody", ["alice"])
        chain = (leaf.der,)
        self.assertIsNone(service.server.identify(chain))
        answer = self.reload(service, base + "cert-user = ['san.dns']\n")
        self.assertEqual(answer["changed"], ["cert-user"])
        self.assertEqual(service.server.identify(chain), "alice")
        answer = self.reload(service, base + "cert-user = ['san.what']\n")
        self.assertIn(":5: cert-user: ", answer["reason"])
        self.assertEqual(service.server.identify(chain), "alice")

    def test_peers(self) -> None:
        """Other services on the same engine can come and go."""
        base = "store = 'redis://127.0.0.1:1'\n"
        service = self.make(base)
        answer = self.reload(service, base + "peer = ['127.0.0.1:2']\n")
        self.assertEqual((answer["changed"], answer["reason"]), (["peer"], ""))
        self.assertEqual([*service.peers._there], [("127.0.0.1", 2)])
        answer = self.reload(service, base + "peer = ['127.0.0.1:2']\nmax-value = '1KiB'\n")
        self.assertEqual(answer["changed"], ["max-value"])
        self.assertTrue(bucket_store(service).limits.refuse(b"k", Document(b"x" * 1025)))

    def test_fleet(self) -> None:
        """A fleet can have other servers; for anything else about it there is a restart."""
        base = "mode = 'memcached'\nstore = 'memcached://{}'\n"
        service = self.make(base.format("127.0.0.1:1"))
        stores: Any = service.stores
        answer = self.reload(service, base.format("127.0.0.1:1,127.0.0.1:2:3"))
        self.assertEqual((answer["changed"], answer["restart"]), (["store"], []))
        self.assertEqual(
            [server.name for server in stores.servers()], ["127.0.0.1:1", "127.0.0.1:2"]
        )
        self.assertEqual(stores.status()["url"], "memcached://127.0.0.1:1,127.0.0.1:2:3")
        answer = self.reload(service, base.format("127.0.0.1:1?distribution=jump"))
        self.assertEqual((answer["changed"], answer["restart"]), ([], ["store"]))
        self.assertEqual(len(stores.servers()), 2)

    def test_file_store(self) -> None:
        """What is kept on a disk has its limits in memory."""
        base = "store = 'file:{}'\n".format(self.directory / "data")
        service = self.make(base)
        self.assertTrue(
            self.reload(
                service, base + "memory-limit = '1MiB'\nmax-value = 100\nrefuse-when-full = true\n"
            )["ok"]
        )
        memory = bucket_store(service)._memory
        self.assertEqual((memory.table.limit, memory.table.evict), (1 << 20, False))
        self.assertTrue(memory._limits.refuse(b"k", Document(b"x" * 101)))

    def test_restart(self) -> None:
        """Any other option stays what it was, and both values can be seen."""
        service = self.make("mode = 'memcached'\n")
        answer = self.reload(service, "mode = 'couchbase'\nmax-connections = 5\n")
        self.assertEqual(
            answer, {"ok": True, "changed": ["max-connections"], "restart": ["mode"], "reason": ""}
        )
        # The default of memcached mode, which is in force.
        self.assertEqual(service.server.settings.value_limit, 1 << 20)
        row = self.shown(service, "mode")
        self.assertEqual((row["value"], row["pending"]), ("memcached", "couchbase"))
        self.assertEqual(self.reload(service, "mode = 'memcached'\n")["restart"], [])
        self.assertNotIn("pending", self.shown(service, "mode"))

    def test_nothing_new(self) -> None:
        """A file that says the same in other words changes nothing."""
        service = self.make("max-connections = 10000\n")
        answer = self.reload(service, "# the default\n")
        self.assertEqual(answer, {"ok": True, "changed": [], "restart": [], "reason": ""})

    def test_page(self) -> None:
        """The documentation says of each option when it is taken over."""
        rows = re.findall(
            r"^\| `--([a-z-]+)`.*?(?<!\\)\|.*?(?<!\\)\| (.*?) \|",
            PAGE.read_text(encoding="utf-8"),
            re.MULTILINE,
        )
        found = {name: when for name, when in rows if name in OPTIONS}
        self.assertEqual(found, {name: option.reload.value for name, option in OPTIONS.items()})


class RefusedTests(ServiceCase):
    """What changes nothing at all."""

    def refused(self, service: KVTLSService, text: str) -> str:
        before = describe(service._config, None), sorted(service.server.users)
        held = service.server.settings, service.ledger.limits, service.ledger.timeouts
        with capturedLogs() as events:
            answer = self.reload(service, text)
        self.assertEqual((answer["ok"], answer["changed"], answer["restart"]), (False, [], []))
        self.assertEqual((describe(service._config, None), sorted(service.server.users)), before)
        for now, then in zip(
            (service.server.settings, service.ledger.limits, service.ledger.timeouts),
            held,
            strict=True,
        ):
            self.assertIs(now, then)
        (line,) = [formatEvent(event) for event in events if event["log_level"] >= LogLevel.warn]
        self.assertEqual(line, f"the configuration stays as it is: {answer['reason']}")
        reason: str = answer["reason"]
        return reason.replace(str(self.path), "FILE")

    def test_file(self) -> None:
        """A mistake anywhere in the file is said with its line, and what is good there waits."""
        service = self.make()
        for text, reason in (
            ("max-connections = 5\nmax-value = -1\n", "--config FILE:4: max-value: '-1' is no"),
            ("max-connections = 5\nmax-vlaue = 1\n", "--config FILE:4: max-vlaue: there is no"),
            ("max-connections = 5\nmode = \n", "--config FILE:4: invalid value"),
            ("max-connections = 5\nplain = ['tpc:1:interface=127.0.0.1']\n",
             "--config FILE:4: plain: "),
            ("max-connections = 5\nstore = 'rediss:x'\n", "--config FILE:4: store: rediss:x"),
            ("max-connections = 5\ncert-user = ['cn']\nclient-ca = 'ca.pem'\n",
             "--config FILE:4: cert-user: "),
            ("max-connections = 5\nusers = 'none'\n", "--config FILE:4: users: "),
            ("user = ['alice:pw']\nwatcher = ['bob']\n", "--config FILE:4: watcher: there is no"),
        ):  # fmt: skip
            self.assertIn(reason, self.refused(service, text))
        self.path.unlink()
        answer = self.successResultOf(service.config_reload.reload())
        self.assertIn("cannot be read: No such file", answer["reason"])

    def test_contradiction(self) -> None:
        """What is good after a restart only changes nothing before it."""
        service = self.make()
        reason = self.refused(service, "client-ca = 'ca.pem'\ncert-user = ['san.dns']\n")
        self.assertEqual(
            reason,
            "--config FILE:4: cert-user: needs --client-ca as well; client-ca can only change "
            "with a restart",
        )

    def test_users_file(self) -> None:
        """A users file that cannot be used holds up the rest, until it is mended."""
        path = self.directory / "users"
        with change_users(path) as users:
            users["bob"] = UserRecord(HASHES)
        service = self.make("users = 'users'\n")
        good = path.read_text(encoding="utf-8")
        path.write_text("{", encoding="utf-8")
        text = "users = 'users'\nmax-connections = 5\n"
        self.assertIn(str(path), self.refused(service, text))
        path.write_text(good, encoding="utf-8")
        self.assertEqual(self.reload(service, text)["changed"], ["max-connections"])

    def test_secrets(self) -> None:
        """Neither the log nor the answer has a password."""
        service = self.make("user = ['alice:old-secret']\n")
        with capturedLogs() as events:
            answer = self.reload(service, "user = ['alice:new-secret']\n")
        said = repr(answer) + "".join(str(formatEvent(event)) for event in events)
        self.assertIn("user is alice:*** now", said)
        self.assertNotIn("secret", said)
        self.assertEqual(answer["changed"], ["user"])


class PartsTests(SynchronousTestCase):
    """`ConfigReload` with parts that note what they are told."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.told: list[tuple[str, int | None, object]] = []
        self.broken: set[int] = set()
        self.path.write_text("max-connections = 1\n", encoding="utf-8")
        settings = merge({}, read_config_file(self.path))
        self.parts = [self.part("first"), self.part("second"), self.part("third")]
        self.reload = ConfigReload(build_config(settings), settings, self.parts, Serial())

    def part(self, name: str) -> Part:
        def apply(config: Config, prepared: object) -> None:
            self.told.append((name, config.max_connections, prepared))
            if name == "second" and config.max_connections in self.broken:
                raise ZeroDivisionError

        return Part(
            ("max-connections",),
            apply,
            lambda config: self.prepare(name, config),
            lambda: f"{name} of now",
        )

    def prepare(self, name: str, config: Config) -> Any:
        return f"{name} {config.max_connections}"

    def test_defect(self) -> None:
        """A part that fails has those before it go back, in turn; the next reload is a new one."""
        self.path.write_text("max-connections = 2\n", encoding="utf-8")
        self.broken.add(2)
        answer = self.successResultOf(self.reload.reload())
        self.assertIn("ZeroDivisionError", answer["reason"])
        self.assertEqual(
            self.told,
            [
                ("first", 2, "first 2"),
                ("second", 2, "second 2"),
                ("second", 1, "second of now"),
                ("first", 1, "first of now"),
            ],
        )
        self.assertEqual(self.reload.config.max_connections, 1)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.broken.clear()
        answer = self.successResultOf(self.reload.reload())
        self.assertEqual((answer["ok"], answer["changed"]), (True, ["max-connections"]))
        self.assertEqual(self.reload.config.max_connections, 2)

    def test_defect_twice(self) -> None:
        """A part that cannot even go back does not keep those before it from that."""
        self.path.write_text("max-connections = 2\n", encoding="utf-8")
        self.broken |= {1, 2}
        self.assertFalse(self.successResultOf(self.reload.reload())["ok"])
        self.assertEqual(self.told[-1], ("first", 1, "first of now"))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_read_elsewhere(self) -> None:
        """A file is read where it holds up nobody."""
        asked: list[Any] = []

        def run(function: Any, *arguments: Any) -> Any:
            asked.append(function)
            return function(*arguments)

        reload = ConfigReload(
            self.reload.config, self.reload.settings, self.parts, Serial(), run=run
        )
        self.assertTrue(self.successResultOf(reload.reload())["ok"])
        self.assertEqual(asked, [read_config_file])

    def test_one_at_a_time(self) -> None:
        """A reload that is asked for during another one sees what the file says afterwards."""
        waiting: list[Deferred[str]] = []

        def prepare(name: str, _config: Config) -> Any:
            if name != "first":
                return name
            waiting.append(Deferred())
            return waiting[-1]

        self.patch(self, "prepare", prepare)
        self.path.write_text("max-connections = 2\n", encoding="utf-8")
        first = self.reload.reload()
        self.path.write_text("max-connections = 3\n", encoding="utf-8")
        others = [self.reload.reload(), self.reload.reload()]
        self.assertEqual(self.told, [])
        waiting.pop().callback("read")
        self.assertEqual(self.successResultOf(first)["changed"], ["max-connections"])
        self.assertEqual(self.reload.config.max_connections, 2)
        waiting.pop().callback("read")
        for other in others:
            self.assertEqual(self.successResultOf(other)["changed"], ["max-connections"])
        self.assertEqual((self.reload.config.max_connections, waiting), (3, []))

    def test_unreadable(self) -> None:
        """What a part cannot read changes nothing; a defect there is logged."""
        self.path.write_text("max-connections = 2\n", encoding="utf-8")
        self.patch(self, "prepare", lambda _name, _config: 1 // 0)
        self.assertFalse(self.successResultOf(self.reload.reload())["ok"])
        self.assertEqual((self.told, self.reload.config.max_connections), ([], 1))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
