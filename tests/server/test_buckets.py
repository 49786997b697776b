"""Buckets, collections, and who may use which."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from kvproto.errors import ConfigError
from kvproto.server import Bucket, KVServer, Manifest, ServerSettings, UserTable
from kvproto.store import MemoryStore
from kvproto.wire.binary import encode_request
from kvproto.wire.collections import join_key
from kvproto.wire.constants import Feature, Opcode, Status
from tests.server.support import NOW, Link

K = b"key"
PUT = bytes(8)
PASSWORDS = {"alice": "a", "bob": "b", "carol": "c"}


def server(**settings: bool) -> KVServer:
    """Make a server: bob may use "second" and "first", carol only a bucket that does not exist."""
    manifest = Manifest([("shop", "carts"), ("shop", "orders"), ("_default", "notes")])
    return KVServer(
        [
            Bucket("first", MemoryStore(lambda: NOW, uuid=1), manifest),
            Bucket("second", MemoryStore(lambda: NOW, uuid=2)),
            Bucket("third", MemoryStore(lambda: NOW, uuid=3)),
        ],
        ServerSettings(**settings),  # type: ignore[arg-type]
        UserTable.of_passwords(
            PASSWORDS, {"bob": ["second", "first"], "carol": ["gone"]}, iterations=1
        ),
        now=lambda: NOW,
    )


def login(link: Link, name: str) -> Link:
    """Log in with the right password."""
    word = PASSWORDS[name]
    value = f"\0{name}\0{word}".encode()
    assert link.call(Opcode.SASL_AUTH, key=b"PLAIN", value=value).status == 0
    return link


def hello(link: Link, *features: int) -> Link:
    """Enable features."""
    value = b"".join(number.to_bytes(2) for number in features)
    assert link.call(Opcode.HELLO, value=value).value == value
    return link


class BucketTests(SynchronousTestCase):
    """Where a session's documents are."""

    def put(self, link: Link, value: bytes) -> int:
        return link.call(Opcode.SET, key=K, value=value, extras=PUT).status

    def test_default(self) -> None:
        """Without selecting one, a user is in the first bucket that is there and allowed."""
        one = server(anonymous=True)
        self.put(login(Link(one), "alice"), b"alice's")
        self.put(login(Link(one), "bob"), b"bob's")
        stores = [bucket.store for bucket in one.buckets.values()]
        self.assertEqual(stores[0].get(K).value, b"alice's")  # type: ignore[union-attr]
        self.assertEqual(stores[1].get(K).value, b"bob's")  # type: ignore[union-attr]
        self.assertEqual(Link(one).call(Opcode.GET, key=K).value, b"alice's")

    def test_come_and_go(self) -> None:
        """A bucket can be added; when it is removed, those who work in it have to go."""
        one = server()
        other, link = login(Link(one), "alice"), login(Link(one), "alice")
        one.add_bucket(Bucket("fourth", MemoryStore(lambda: NOW, uuid=4)))
        self.assertEqual(link.call(Opcode.SELECT_BUCKET, key=b"fourth").status, 0)
        self.put(link, b"4")
        one.remove_bucket("fourth")
        self.assertTrue(link.transport.disconnecting)
        self.assertFalse(other.transport.disconnecting)
        self.assertEqual(other.call(Opcode.SELECT_BUCKET, key=b"fourth").status, Status.NO_ACCESS)

    def test_select(self) -> None:
        """Selecting a bucket moves the session there."""
        one = server()
        link = login(Link(one), "alice")
        self.put(link, b"1")
        self.assertEqual(link.call(Opcode.SELECT_BUCKET, key=b"third").status, 0)
        self.assertEqual(link.call(Opcode.GET, key=K).status, Status.NOT_FOUND)
        self.put(link, b"3")
        self.assertEqual(link.call(Opcode.SELECT_BUCKET, key=b"first").status, 0)
        self.assertEqual(link.call(Opcode.GET, key=K).value, b"1")

    def test_select_refused(self) -> None:
        """One that does not exist and one that is not allowed are refused alike."""
        link = login(Link(server()), "bob")
        for name in (b"third", b"fourth", b"", b"\xff", b"FIRST"):
            response = link.call(Opcode.SELECT_BUCKET, key=name)
            self.assertEqual(response.status, Status.NO_ACCESS)
        self.assertEqual(self.put(link, b"still in second"), 0)
        link = Link(server())
        self.assertEqual(link.call(Opcode.SELECT_BUCKET, key=b"first").status, Status.AUTH_ERROR)

    def test_shape(self) -> None:
        """What does not belong into SELECT_BUCKET is refused."""
        link = login(Link(server()), "alice")
        response = link.call(Opcode.SELECT_BUCKET, key=b"first", value=b"x")
        self.assertEqual(response.status, Status.INVALID)

    def test_no_bucket(self) -> None:
        """A user without any bucket can do what needs none."""
        link = login(Link(server()), "carol")
        for opcode in (Opcode.GET, Opcode.GETQ, Opcode.SET, Opcode.STAT, Opcode.FLUSH):
            self.assertEqual(link.call(opcode, key=K).status, Status.NO_BUCKET)
        large = encode_request(Opcode.SET, key=K, value=bytes(30 << 20), extras=PUT)
        self.assertEqual([r.status for r in link.responses(large)], [Status.NO_BUCKET])
        self.assertEqual(link.call(Opcode.NOOP).status, 0)
        self.assertEqual(link.call(Opcode.GET_CLUSTER_CONFIG).status, 0)

    def test_no_bucket_text(self) -> None:
        """In the text protocol too."""
        link = Link(server())
        self.assertEqual(link.ask(b"set x 0 0 7\r\ncarol c\r\n"), b"STORED\r\n")
        refused = b"CLIENT_ERROR no bucket\r\n"
        self.assertEqual(link.ask(b"get a b c\r\n"), refused)
        self.assertEqual(link.ask(b"set a 0 0 1\r\nx\r\n"), refused)
        self.assertEqual(link.ask(b"delete a noreply\r\nmn\r\n"), b"MN\r\n")

    def test_text_uses_the_default(self) -> None:
        """A text client is in its user's default bucket."""
        one = server()
        link = Link(one)
        link.ask(b"set x 0 0 5\r\nbob b\r\nset k 0 0 1\r\nx\r\n")
        self.assertIsNotNone(one.buckets["second"].store.get(b"k"))

    def test_another_login(self) -> None:
        """Another login keeps the selected bucket if it may, and leaves it if not."""
        link = login(Link(server()), "alice")
        link.call(Opcode.SELECT_BUCKET, key=b"first")
        self.put(link, b"1")
        login(link, "bob")
        self.assertEqual(link.call(Opcode.GET, key=K).value, b"1")
        login(link, "alice")
        link.call(Opcode.SELECT_BUCKET, key=b"third")
        self.put(link, b"3")
        login(link, "bob")
        self.assertEqual(link.call(Opcode.GET, key=K).status, Status.NOT_FOUND)

    def test_failed_login_leaves_the_bucket(self) -> None:
        """After a failed login nothing is left of the earlier one."""
        link = login(Link(server()), "alice")
        link.call(Opcode.SELECT_BUCKET, key=b"third")
        link.call(Opcode.SASL_AUTH, key=b"PLAIN", value=b"\0alice\0wrong")
        self.assertEqual(link.call(Opcode.GET, key=K).status, Status.AUTH_ERROR)

    def test_statistics(self) -> None:
        """STAT is about the session's own bucket."""
        link = login(Link(server()), "alice")
        self.put(link, b"1")
        link.call(Opcode.SELECT_BUCKET, key=b"third")
        items = {r.key: r.value for r in link.responses(encode_request(Opcode.STAT))}
        self.assertEqual(items[b"curr_items"], b"0")

    def test_statistics_are_reset_by_bucket(self) -> None:
        """A reset in one bucket takes nothing from the statistics of another."""
        link = login(Link(server()), "alice")
        self.put(link, b"1")
        link.responses(encode_request(Opcode.STAT, key=b"reset"))
        link.call(Opcode.SELECT_BUCKET, key=b"third")
        self.put(link, b"1")
        items = {r.key: r.value for r in link.responses(encode_request(Opcode.STAT))}
        self.assertEqual(items[b"cmd_set"], b"1")


class CollectionTests(SynchronousTestCase):
    """Keys that begin with the id of their collection."""

    def setUp(self) -> None:
        self.server = server(anonymous=True)
        self.link = hello(Link(self.server), Feature.COLLECTIONS, Feature.JSON)
        self.store = self.server.buckets["first"].store

    def test_default_collection_is_shared(self) -> None:
        """What is in the default collection is where clients without collections look."""
        self.link.call(Opcode.SET, key=b"\0" + K, value=b"v", extras=PUT)
        self.assertEqual(Link(self.server).call(Opcode.GET, key=K).value, b"v")

    def test_named(self) -> None:
        """The same key in two collections is two documents."""
        for number in (8, 9):
            key = join_key(number, K)
            value = b"%d" % number
            self.assertEqual(self.link.call(Opcode.SET, key=key, value=value, extras=PUT).status, 0)
        for number in (8, 9):
            found = self.link.call(Opcode.GET, key=join_key(number, K))
            self.assertEqual(found.value, b"%d" % number)
        self.assertEqual(self.link.call(Opcode.GET, key=b"\0" + K).status, Status.NOT_FOUND)

    def test_every_operation(self) -> None:
        """All operations on documents know collections, quiet ones too."""
        key = join_key(9, K)
        for opcode, extras in (
            (Opcode.ADD, PUT),
            (Opcode.REPLACE, PUT),
            (Opcode.APPEND, b""),
            (Opcode.GAT, bytes(4)),
            (Opcode.TOUCH, bytes(4)),
            (Opcode.GET_META, b"\2"),
            (Opcode.GET_LOCKED, b""),
        ):
            value = b"v" if opcode in {Opcode.ADD, Opcode.REPLACE, Opcode.APPEND} else b""
            response = self.link.call(opcode, key=key, value=value, extras=extras)
            self.assertEqual(response.status, 0, opcode.name)
        document = self.store.get((9, K))
        self.assertEqual(document.value, b"vv")  # type: ignore[union-attr]
        self.store.unlock((9, K), document.cas)  # type: ignore[union-attr]
        self.assertTrue(self.link.silent(Opcode.DELETEQ, key=key))
        self.assertTrue(self.link.silent(Opcode.GETQ, key=key))

    def test_key_comes_back_as_sent(self) -> None:
        """GETK and GATK answer with the whole key."""
        for number in (0, 8):
            key = join_key(number, K)
            self.link.call(Opcode.SET, key=key, value=b"v", extras=PUT)
            self.assertEqual(self.link.call(Opcode.GETK, key=key).key, key)
            self.assertEqual(self.link.call(Opcode.GATK, key=key, extras=bytes(4)).key, key)

    def test_unknown(self) -> None:
        """A collection that does not exist is said so, with the manifest's version."""
        response = self.link.call(Opcode.GET, key=join_key(300, K))
        self.assertEqual(response.status, Status.UNKNOWN_COLLECTION)
        self.assertEqual(response.datatype, 1)
        self.assertEqual(json.loads(response.value), {"manifest_uid": "1"})

    def test_malformed(self) -> None:
        """A key without an id, with a bad one, or with nothing behind it is refused."""
        for key in (b"", b"\0", b"\x80", b"\x80\0k", b"\xff\xff\xff\xff\x7fk", b"\0" + b"k" * 251):
            response = self.link.call(Opcode.GET, key=key)
            self.assertEqual(response.status, Status.INVALID, key)
        longest = join_key(8, b"k" * 246)
        self.assertEqual(self.link.call(Opcode.GET, key=longest).status, Status.NOT_FOUND)

    def test_oversized(self) -> None:
        """A body that is thrown away is answered in a collection too."""
        big = bytes((20 << 20) + 1)
        for key, status in ((b"\0k", Status.TOO_BIG), (b"\x20k", Status.UNKNOWN_COLLECTION)):
            response = self.link.call(Opcode.SET, key=key, value=big, extras=PUT)
            self.assertEqual(response.status, status)

    def test_commands_without_key(self) -> None:
        """What is not about a document takes its key as it is."""
        self.assertEqual(self.link.call(Opcode.SELECT_BUCKET, key=b"first").status, 0)
        items = self.link.responses(encode_request(Opcode.STAT, key=b"settings"))
        self.assertGreater(len(items), 2)


class ManifestTests(SynchronousTestCase):
    """What collections there are."""

    def setUp(self) -> None:
        self.link = Link(server(anonymous=True))
        hello(self.link, Feature.COLLECTIONS, Feature.JSON)

    def test_ids(self) -> None:
        """Ids begin at 8 and follow the order of the names."""
        for path, number in (
            (b"_default._default", 0),
            (b".", 0),
            (b"shop.carts", 8),
            (b"shop.orders", 9),
            (b"_default.notes", 10),
            (b".notes", 10),
        ):
            for fields in ({"value": path}, {"key": path}):
                response = self.link.call(Opcode.GET_COLLECTION_ID, **fields)
                self.assertEqual(response.status, 0)
                self.assertEqual(response.extras, (1).to_bytes(8) + number.to_bytes(4))

    def test_unknown(self) -> None:
        """Unknown scopes and unknown collections are different answers, both with the version."""
        for opcode, path, status in (
            (Opcode.GET_COLLECTION_ID, b"nope.carts", Status.UNKNOWN_SCOPE),
            (Opcode.GET_COLLECTION_ID, b"shop.nope", Status.UNKNOWN_COLLECTION),
            (Opcode.GET_SCOPE_ID, b"nope", Status.UNKNOWN_SCOPE),
        ):
            response = self.link.call(opcode, value=path)
            self.assertEqual((response.status, response.datatype), (status, 1))
            self.assertEqual(json.loads(response.value), {"manifest_uid": "1"})
        response = self.link.call(Opcode.GET_COLLECTION_ID, value=b"a.b.c")
        self.assertEqual(response.status, Status.INVALID)

    def test_scope_id(self) -> None:
        """Scopes have ids of their own."""
        for path, number in ((b"_default", 0), (b"shop", 8), (b"shop.carts", 8), (b"", 0)):
            response = self.link.call(Opcode.GET_SCOPE_ID, value=path)
            self.assertEqual(response.extras, (1).to_bytes(8) + number.to_bytes(4))

    def test_manifest(self) -> None:
        """The manifest names everything, in hexadecimal."""
        response = self.link.call(Opcode.GET_MANIFEST)
        self.assertEqual(response.datatype, 1)
        default = [{"name": "_default", "uid": "0"}, {"name": "notes", "uid": "a"}]
        shop = [{"name": "carts", "uid": "8"}, {"name": "orders", "uid": "9"}]
        self.assertEqual(
            json.loads(response.value),
            {
                "uid": "1",
                "scopes": [
                    {"name": "_default", "uid": "0", "collections": default},
                    {"name": "shop", "uid": "8", "collections": shop},
                ],
            },
        )

    def test_names(self) -> None:
        """Names that cannot be, and names given twice, are configuration errors."""
        for names in (
            [("shop", "_default")],
            [("_x", "carts")],
            [("shop", "")],
            [("", "carts")],
            [("a.b", "c")],
            [("shop", "x" * 252)],
            [("shop", "carts"), ("shop", "carts")],
            [("shöp", "carts")],
        ):
            with self.assertRaises(ConfigError):
                Manifest(names)
        self.assertEqual(len(Manifest([("s", f"c{n}") for n in range(64)]).ids), 65)
