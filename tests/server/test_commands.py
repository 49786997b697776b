"""Binary commands about the connection and the server, and logins."""

from __future__ import annotations

import os

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from kvproto.config import Mode
from kvproto.server import KVServer, ServerSettings, UserTable
from kvproto.server.passwords import Hashes
from kvproto.store import MemoryStore
from kvproto.wire.binary import encode_request
from kvproto.wire.constants import Feature, Opcode, Status
from tests.server.support import NOW, Link

K = b"key"
ALICE = {"alice": "secret"}
PLAIN = {"key": b"PLAIN", "value": b"\0alice\0secret"}


class SimpleCommandTests(SynchronousTestCase):
    """NOOP, VERSION, VERBOSITY, QUIT, FLUSH and what does not exist."""

    def test_empty_answers(self) -> None:
        """NOOP and VERBOSITY are answered with nothing but success."""
        for opcode, extras in ((Opcode.NOOP, b""), (Opcode.VERBOSITY, bytes(4))):
            response = Link().call(opcode, extras=extras, opaque=5)
            self.assertEqual(
                (response.status, response.opaque, response.value, response.cas), (0, 5, b"", 0)
            )

    def test_version(self) -> None:
        """VERSION is three numbers: libmemcached parses them."""
        self.assertRegex(Link().call(Opcode.VERSION).value, rb"\A\d+\.\d+\.\d+\Z")

    def test_shapes(self) -> None:
        """What does not belong into a command is refused."""
        for opcode, fields in (
            (Opcode.NOOP, {"value": b"x"}),
            (Opcode.NOOP, {"key": b"x"}),
            (Opcode.VERSION, {"key": b"x"}),
            (Opcode.VERBOSITY, {}),
            (Opcode.FLUSH, {"extras": b"x"}),
            (Opcode.STAT, {"value": b"x"}),
            (Opcode.HELLO, {"value": b"x"}),
            (Opcode.SASL_LIST, {"key": b"x"}),
        ):
            with self.subTest(opcode=opcode.name):
                link = Link(mode=Mode.MEMCACHED)
                self.assertEqual(link.call(opcode, **fields).status, Status.INVALID)

    def test_unknown_opcodes(self) -> None:
        """Every opcode is answered; what is unknown with 0x81, and the connection stays."""
        silent = {Opcode.QUIT, Opcode.QUITQ}
        link = Link()
        known = set(Opcode)
        for opcode in sorted(set(range(256)) - silent):
            with self.subTest(opcode=opcode):
                responses = link.responses(encode_request(opcode, opaque=opcode))
                if opcode not in known:
                    self.assertEqual([r.status for r in responses], [Status.UNKNOWN_COMMAND])
                self.assertEqual(link.call(Opcode.NOOP).status, 0)

    def test_quit(self) -> None:
        """QUIT is answered, QUITQ is not; both close, and what follows them is not served."""
        for opcode, answers in ((Opcode.QUIT, 1), (Opcode.QUITQ, 0)):
            link = Link()
            noop = encode_request(Opcode.NOOP)
            responses = link.responses(noop + encode_request(opcode) + noop)
            self.assertEqual(len(responses), 1 + answers)
            self.assertTrue(link.transport.closed)

    def test_flush(self) -> None:
        """FLUSH removes everything, now or later, and its quiet form is quiet."""
        link = Link(mode=Mode.MEMCACHED)
        link.store.set(K, b"v")
        self.assertEqual(link.call(Opcode.FLUSH).status, 0)
        self.assertIsNone(link.store.get(K))
        link.store.set(K, b"v")
        self.assertTrue(link.silent(Opcode.FLUSHQ, extras=(10).to_bytes(4)))
        self.assertIsNotNone(link.store.get(K))
        link.time = NOW + 11
        self.assertIsNone(link.store.get(K))

    def test_flush_not_allowed(self) -> None:
        """In Couchbase mode FLUSH is refused with a status, unless the operator allows it."""
        link = Link()
        link.store.set(K, b"v")
        for opcode in (Opcode.FLUSH, Opcode.FLUSHQ):
            self.assertEqual(link.call(opcode).status, Status.NO_ACCESS)
        self.assertIsNotNone(link.store.get(K))
        self.assertEqual(Link(allow_flush=True).call(Opcode.FLUSH).status, 0)
        link = Link(mode=Mode.MEMCACHED, allow_flush=False)
        self.assertEqual(link.call(Opcode.FLUSH).status, Status.NO_ACCESS)


class HelloTests(SynchronousTestCase):
    """What HELLO negotiates and changes."""

    def hello(self, link: Link, *features: int) -> list[int]:
        value = b"".join(number.to_bytes(2) for number in features)
        response = link.call(Opcode.HELLO, key=b'{"a":"test"}', value=value)
        self.assertEqual((response.status, response.magic), (0, 0x81))
        answer = response.value
        return [int.from_bytes(answer[at : at + 2]) for at in range(0, len(answer), 2)]

    def test_subset_in_order(self) -> None:
        """The answer is what of the wish is there, in the client's order, each once."""
        wanted = (0x7777, Feature.JSON, Feature.SNAPPY, Feature.TCP_NODELAY, Feature.JSON)
        self.assertEqual(self.hello(Link(), *wanted), [Feature.JSON, Feature.TCP_NODELAY])

    def test_nothing_unasked(self) -> None:
        """Nothing is enabled that was not asked for."""
        self.assertEqual(self.hello(Link()), [])

    def test_delete_cas(self) -> None:
        """DELETE answers CAS 0 to classic clients and a real one after HELLO."""
        link = Link()
        link.store.set(K, b"v")
        self.assertEqual(link.call(Opcode.DELETE, key=K).cas, 0)
        self.hello(link)
        link.store.set(K, b"v")
        self.assertNotEqual(link.call(Opcode.DELETE, key=K).cas, 0)

    def test_error_bodies(self) -> None:
        """Errors have a text for classic clients; after HELLO they have none."""
        link = Link()
        self.assertEqual(link.call(Opcode.GET, key=K).value, b"Not found")
        self.hello(link)
        self.assertEqual(link.call(Opcode.GET, key=K).value, b"")

    def test_json_datatype(self) -> None:
        """Responses say what is JSON only to clients that asked for it."""
        link = Link()
        link.call(Opcode.SET, key=K, value=b"{}", extras=bytes(8), datatype=1)
        self.assertEqual(link.call(Opcode.GET, key=K).datatype, 0)
        self.hello(link, Feature.JSON)
        self.assertEqual(link.call(Opcode.GET, key=K).datatype, 1)
        self.hello(link)
        self.assertEqual(link.call(Opcode.GET, key=K).datatype, 0)


class StatTests(SynchronousTestCase):
    """STAT, in packets."""

    def stat(self, link: Link, group: bytes = b"") -> dict[bytes, bytes]:
        *items, last = link.responses(encode_request(Opcode.STAT, key=group, opaque=8))
        self.assertEqual((last.status, last.key, last.value, last.opaque), (0, b"", b"", 8))
        for item in items:
            self.assertEqual((item.status, item.opaque, item.extras), (0, 8, b""))
        return {item.key: item.value for item in items}

    def test_general(self) -> None:
        """The general group has what tools look for."""
        link = Link()
        link.time = NOW + 5
        link.call(Opcode.GET, key=K)
        found = self.stat(link)
        self.assertEqual(found[b"pid"], str(os.getpid()).encode())
        self.assertEqual(found[b"uptime"], b"5")
        self.assertEqual(found[b"curr_connections"], b"1")
        self.assertEqual(found[b"cmd_get"], b"1")
        self.assertEqual(found[b"get_misses"], b"1")
        self.assertIn(b"version", found)
        self.assertGreater(int(found[b"bytes_read"]), 0)
        self.assertGreater(int(found[b"bytes_written"]), 0)

    def test_settings(self) -> None:
        """The settings are what memcached's suite insists on."""
        found = self.stat(Link(mode=Mode.MEMCACHED), b"settings")
        for name, value in (
            (b"maxconns", b"1024"),
            (b"domain_socket", b"NULL"),
            (b"evictions", b"on"),
            (b"cas_enabled", b"yes"),
            (b"flush_enabled", b"yes"),
        ):
            self.assertEqual(found[name], value)

    def test_flush_is_counted(self) -> None:
        """cmd_flush counts FLUSH and FLUSHQ."""
        link = Link(mode=Mode.MEMCACHED)
        link.call(Opcode.FLUSH)
        link.silent(Opcode.FLUSHQ)
        self.assertEqual(self.stat(link)[b"cmd_flush"], b"2")

    def test_reset(self) -> None:
        """After a reset counting begins again; what tells the present stays."""
        link = Link()
        link.store.set(K, b"v")
        link.call(Opcode.GET, key=K)
        self.assertEqual(self.stat(link, b"reset"), {})
        found = self.stat(link)
        self.assertEqual((found[b"cmd_get"], found[b"curr_items"]), (b"0", b"1"))

    def test_empty_groups(self) -> None:
        """Without documents there are no slab classes."""
        link = Link()
        self.assertEqual(self.stat(link, b"items"), {})
        empty = {b"active_slabs": b"0", b"total_malloced": b"0"}
        self.assertEqual(self.stat(link, b"slabs"), empty)
        self.assertEqual(self.stat(link, b"sizes"), {b"sizes_status": b"enabled"})

    def test_unknown_group(self) -> None:
        """A group that does not exist is an error."""
        self.assertEqual(Link().call(Opcode.STAT, key=b"nothing").status, Status.NOT_FOUND)

    def test_connections(self) -> None:
        """A connection that ends is no longer counted."""
        link = Link()
        other = Link(link.server)
        self.assertEqual(self.stat(link)[b"curr_connections"], b"2")
        other.transport.lose()
        found = self.stat(link)
        self.assertEqual(found[b"curr_connections"], b"1")
        self.assertEqual(found[b"total_connections"], b"2")


class LoginTests(SynchronousTestCase):
    """SASL, and what may be done without it."""

    def test_list(self) -> None:
        """The list names mechanisms, separated by spaces."""
        self.assertIn(b"PLAIN", Link(users=ALICE).call(Opcode.SASL_LIST).value.split(b" "))

    def test_before_login(self) -> None:
        """A stranger may say HELLO, log in, ping and leave; everything else is refused."""
        allowed = {
            Opcode.HELLO,
            Opcode.SASL_LIST,
            Opcode.SASL_AUTH,
            Opcode.SASL_STEP,
            Opcode.NOOP,
            Opcode.VERSION,
            Opcode.QUIT,
            Opcode.QUITQ,
            Opcode.GET_ERROR_MAP,
        }
        for opcode in sorted(set(range(256)) - allowed):
            response = Link(users=ALICE).call(opcode, key=K)
            self.assertEqual(response.status, Status.AUTH_ERROR, hex(opcode))
        for opcode in (Opcode.HELLO, Opcode.SASL_LIST, Opcode.NOOP, Opcode.VERSION, Opcode.QUIT):
            self.assertEqual(Link(users=ALICE).call(opcode).status, 0, opcode.name)

    def test_plain(self) -> None:
        """The right password opens the rest; the authorisation id may repeat the name."""
        for value in (b"\0alice\0secret", b"alice\0alice\0secret"):
            link = Link(users=ALICE)
            response = link.call(Opcode.SASL_AUTH, key=b"PLAIN", value=value, opaque=2)
            self.assertEqual((response.status, response.opaque), (0, 2))
            self.assertEqual(link.call(Opcode.GET, key=K).status, Status.NOT_FOUND)

    def test_wrong(self) -> None:
        """Whatever is wrong gets the same answer, and the connection stays unauthenticated."""
        for value in (
            b"\0alice\0guess",
            b"\0alice\0",
            b"\0mallory\0secret",
            b"\0\0",
            b"root\0alice\0secret",
            b"",
            b"alice",
            b"\0alice\0secret\0",
            b"\0\xff\xfe\0secret",
            b"\0alice\0" + b"x" * 10_000,
        ):
            link = Link(users=ALICE)
            with self.subTest(value=value[:40]):
                response = link.call(Opcode.SASL_AUTH, key=b"PLAIN", value=value)
                self.assertEqual(response.status, Status.AUTH_ERROR)
                self.assertEqual(response.value, b"Auth failure.")
                self.assertEqual(link.call(Opcode.GET, key=K).status, Status.AUTH_ERROR)
                self.assertEqual(link.call(Opcode.SASL_AUTH, **PLAIN).status, 0)

    def test_unknown_mechanism(self) -> None:
        """A mechanism that does not exist, and a step of nothing, are failed logins."""
        link = Link(users=ALICE)
        for opcode, fields in (
            (Opcode.SASL_AUTH, {"key": b"ANONYMOUS"}),
            (Opcode.SASL_AUTH, {"key": b"X" * 100}),
            (Opcode.SASL_STEP, {"key": b"PLAIN"}),
            (Opcode.SASL_STEP, PLAIN),
        ):
            self.assertEqual(link.call(opcode, **fields).status, Status.AUTH_ERROR)

    def test_failed_login_ends_the_old_one(self) -> None:
        """After a failed login the peer is not what it was by an earlier one."""
        link = Link(users=ALICE)
        link.call(Opcode.SASL_AUTH, **PLAIN)
        link.call(Opcode.SASL_AUTH, key=b"PLAIN", value=b"\0alice\0guess")
        self.assertEqual(link.call(Opcode.GET, key=K).status, Status.AUTH_ERROR)

    def test_anonymous(self) -> None:
        """Anonymous access is on without users, off with users, or as the operator says."""
        for users, anonymous, status in (
            ({}, None, Status.NOT_FOUND),
            ({}, False, Status.AUTH_ERROR),
            (ALICE, None, Status.AUTH_ERROR),
            (ALICE, True, Status.NOT_FOUND),
        ):
            link = Link(users=users, anonymous=anonymous)
            self.assertEqual(link.call(Opcode.GET, key=K).status, status)

    def test_no_users(self) -> None:
        """Where there are no users any name will do: clients exist that cannot do without."""
        self.assertEqual(Link().call(Opcode.SASL_AUTH, **PLAIN).status, 0)
        link = Link(anonymous=False)
        self.assertEqual(link.call(Opcode.SASL_AUTH, **PLAIN).status, Status.AUTH_ERROR)

    def test_counted(self) -> None:
        """Logins and failures are counted."""
        link = Link(users=ALICE)
        link.call(Opcode.SASL_AUTH, **PLAIN)
        link.call(Opcode.SASL_AUTH, key=b"PLAIN", value=b"\0alice\0guess")
        counters = link.server.counters
        self.assertEqual((counters.auth_cmds, counters.auth_errors), (2, 1))

    def test_large_body_of_a_stranger(self) -> None:
        """Before the login nobody can make the server hold a large body."""
        link = Link(users=ALICE)
        head = encode_request(Opcode.SET, key=K, value=bytes(20 << 20), extras=bytes(8))[:100_000]
        link.ask(head)
        self.assertEqual(link.session.dialect._decoder.buffered, 0)  # type: ignore[attr-defined]

    def test_large_body_after_login(self) -> None:
        """After the login the limit is that of the mode."""
        link = Link(users=ALICE)
        link.call(Opcode.SASL_AUTH, **PLAIN)
        value = bytes(20 << 20)
        self.assertEqual(link.call(Opcode.SET, key=K, value=value, extras=bytes(8)).status, 0)
        value += b"x"
        response = link.call(Opcode.SET, key=K, value=value, extras=bytes(8))
        self.assertEqual(response.status, Status.TOO_BIG)


class SlowVerifier:
    """A verifier that answers when the test lets it."""

    def __init__(self) -> None:
        self.answers: list[Deferred[bool]] = []

    def check(self, password: bytes) -> Deferred[bool]:
        self.answers.append(Deferred())
        return self.answers[-1]

    hashes: Hashes = {}

    def decoy(self) -> SlowVerifier:
        return self


class SlowLoginTests(SynchronousTestCase):
    """A password that takes its time holds up its own connection, and that one completely."""

    def setUp(self) -> None:
        self.verifier = SlowVerifier()
        server = KVServer(
            MemoryStore(lambda: NOW), ServerSettings(), UserTable({"alice": self.verifier})
        )
        self.link = Link(server)

    def test_nothing_overtakes(self) -> None:
        """Requests behind the login wait for it, in the same read and in later ones."""
        auth = encode_request(Opcode.SASL_AUTH, opaque=1, **PLAIN)  # type: ignore[arg-type]
        get = encode_request(Opcode.GET, key=K, opaque=2)
        hello = encode_request(Opcode.HELLO, opaque=0)
        self.assertEqual([r.opaque for r in self.link.responses(hello + auth + get)], [0])
        noop = encode_request(Opcode.NOOP, opaque=3)
        self.assertEqual(self.link.responses(noop), [])
        self.verifier.answers[0].callback(True)
        responses = self.link.responses()
        self.assertEqual([r.opaque for r in responses], [1, 2, 3])
        self.assertEqual([r.status for r in responses], [0, Status.NOT_FOUND, 0])
        self.assertTrue(self.link.transport.reading)

    def test_others_are_served(self) -> None:
        """Another connection does not wait."""
        self.link.ask(encode_request(Opcode.SASL_AUTH, **PLAIN))  # type: ignore[arg-type]
        self.assertEqual(Link(self.link.server).call(Opcode.NOOP).status, 0)

    def test_unknown_user_is_hashed_too(self) -> None:
        """A user that does not exist costs a verification."""
        self.link.ask(encode_request(Opcode.SASL_AUTH, key=b"PLAIN", value=b"\0nobody\0x"))
        self.assertEqual(len(self.verifier.answers), 1)
        self.verifier.answers[0].callback(False)
        self.assertEqual([r.status for r in self.link.responses()], [Status.AUTH_ERROR])

    def test_peer_leaves(self) -> None:
        """A peer that leaves meanwhile takes its login along."""
        self.link.ask(encode_request(Opcode.SASL_AUTH, **PLAIN))  # type: ignore[arg-type]
        self.link.transport.lose()
        self.assertTrue(self.verifier.answers[0].called)

    def test_verifier_fails(self) -> None:
        """A verifier that breaks is an internal error, not a login."""
        self.link.ask(encode_request(Opcode.SASL_AUTH, **PLAIN))  # type: ignore[arg-type]
        self.verifier.answers[0].errback(ValueError("broken"))
        self.assertEqual([r.status for r in self.link.responses()], [Status.INTERNAL])
        self.assertEqual(self.link.call(Opcode.GET, key=K).status, Status.AUTH_ERROR)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)


class UserTableTests(SynchronousTestCase):
    """Names and passwords."""

    def test_check(self) -> None:
        """Only the right password of a user that exists is right."""
        table = UserTable.of_passwords({"alice": "sécret"}, iterations=1)
        self.assertTrue(table.check("alice", "sécret".encode()))
        self.assertFalse(table.check("alice", b"secret"))
        self.assertFalse(table.check("bob", "sécret".encode()))
        self.assertIn("alice", table)
        self.assertNotIn("bob", table)
        self.assertEqual(len(table), 1)
