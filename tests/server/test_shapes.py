"""What Couchbase's request validators refuse, for every opcode that is served here.

The table is kv_engine's ``daemon/mcbp_validators.cc``, ``subdocument_validators.cc`` and
``protocol/mcbp/opcode.cc``, told anew: for each opcode a request that passes, and what may be
changed about it without being refused.  Everything else about it must be.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from kvproto.config import Mode
from kvproto.server import Bucket, KVServer, Manifest, ServerSettings, UserTable
from kvproto.server.shapes import SHAPES
from kvproto.store import MemoryStore
from kvproto.wire.binary import RequestDecoder, encode_request
from kvproto.wire.collections import join_key
from kvproto.wire.constants import LOUD, Feature, Opcode, Status
from kvproto.wire.frames import KeyRequest, Request
from tests.server.support import NOW, Link

EXPIRY, PUT, COUNT = bytes(4), bytes(8), bytes(20)
K = b"key"
LOOKUP = b"\xc5\0\0\1a"
MUTATION = b"\xc8\0\0\1\0\0\0\1a1"
UUID = (1).to_bytes(8)
COLLECTIONS, TRACED = (feature.to_bytes(2) for feature in (Feature.COLLECTIONS, Feature.TRACING))


@dataclass(frozen=True)
class Row:
    """One validator.

    Attributes:
        good: Fields of a request that passes it.
        extras: Lengths of extras that pass, beside those of `good`.
        key: Whether a key is needed, may be there ("any"), or may not.
        value: Whether a value may be there; whether it may be left out is told by `good`.
        cas: Whether a CAS may be there: "no", "any" or "needed".
        json: Whether the value may be called JSON.
        vbucket: Whether a partition may be named.
    """

    good: dict[str, Any]
    extras: tuple[int, ...] = ()
    key: str = "needed"
    value: bool = False
    cas: str = "no"
    json: bool = False
    vbucket: bool = True


KEY = {"key": K}
VALIDATORS: dict[Opcode, Row] = {
    Opcode.GET: Row(KEY),
    Opcode.GETQ: Row(KEY),
    Opcode.GETK: Row(KEY),
    Opcode.GETKQ: Row(KEY),
    Opcode.SET: Row(KEY | {"extras": PUT}, value=True, cas="any", json=True),
    Opcode.SETQ: Row(KEY | {"extras": PUT}, value=True, cas="any", json=True),
    Opcode.ADD: Row(KEY | {"extras": PUT}, value=True, json=True),
    Opcode.ADDQ: Row(KEY | {"extras": PUT}, value=True, json=True),
    Opcode.REPLACE: Row(KEY | {"extras": PUT}, value=True, cas="any", json=True),
    Opcode.REPLACEQ: Row(KEY | {"extras": PUT}, value=True, cas="any", json=True),
    Opcode.APPEND: Row(KEY, value=True, cas="any", json=True),
    Opcode.APPENDQ: Row(KEY, value=True, cas="any", json=True),
    Opcode.PREPEND: Row(KEY, value=True, cas="any", json=True),
    Opcode.PREPENDQ: Row(KEY, value=True, cas="any", json=True),
    Opcode.DELETE: Row(KEY, cas="any"),
    Opcode.DELETEQ: Row(KEY, cas="any"),
    Opcode.INCREMENT: Row(KEY | {"extras": COUNT}),
    Opcode.INCREMENTQ: Row(KEY | {"extras": COUNT}),
    Opcode.DECREMENT: Row(KEY | {"extras": COUNT}),
    Opcode.DECREMENTQ: Row(KEY | {"extras": COUNT}),
    Opcode.TOUCH: Row(KEY | {"extras": EXPIRY}),
    Opcode.GAT: Row(KEY | {"extras": EXPIRY}),
    Opcode.GATQ: Row(KEY | {"extras": EXPIRY}),
    Opcode.GATK: Row(KEY | {"extras": EXPIRY}),
    Opcode.GATKQ: Row(KEY | {"extras": EXPIRY}),
    Opcode.GET_LOCKED: Row(KEY, extras=(4,)),
    Opcode.UNLOCK: Row(KEY | {"cas": 7}, cas="needed"),
    Opcode.GET_META: Row(KEY, extras=(1,)),
    Opcode.GETQ_META: Row(KEY, extras=(1,)),
    Opcode.SUBDOC_MULTI_LOOKUP: Row(KEY | {"value": LOOKUP}, extras=(1,), value=True, cas="any"),
    Opcode.SUBDOC_MULTI_MUTATION: Row(
        KEY | {"value": MUTATION}, extras=(1, 4, 5, 8, 9), value=True, cas="any"
    ),
    Opcode.NOOP: Row({}, key="no"),
    Opcode.VERSION: Row({}, key="no"),
    Opcode.QUIT: Row({}, key="no"),
    Opcode.QUITQ: Row({}, key="no"),
    Opcode.VERBOSITY: Row({"extras": EXPIRY}, key="no"),
    Opcode.HELLO: Row({"value": b"\0\3"}, key="any", value=True),
    Opcode.SASL_LIST: Row({}, key="no"),
    Opcode.SASL_AUTH: Row({"key": b"PLAIN", "value": b"\0a\0b"}, value=True),
    Opcode.SASL_STEP: Row({"key": b"PLAIN", "value": b"\0a\0b"}, value=True),
    Opcode.STAT: Row({}, key="any", value=True, json=True),
    Opcode.SELECT_BUCKET: Row({"key": b"default"}, key="any", cas="any"),
    Opcode.GET_CLUSTER_CONFIG: Row({}, extras=(16,), key="no"),
    Opcode.GET_ERROR_MAP: Row({"value": b"\0\2"}, key="no", value=True, vbucket=False),
    Opcode.GET_MANIFEST: Row({}, key="no", vbucket=False),
    Opcode.GET_COLLECTION_ID: Row(
        {"value": b"_default._default"}, key="any", value=True, vbucket=False
    ),
    Opcode.GET_SCOPE_ID: Row({"value": b"_default"}, key="any", value=True, vbucket=False),
    Opcode.OBSERVE_SEQNO: Row({"value": UUID}, key="no", value=True, cas="any"),
}

OF_ITS_OWN = {Opcode.FLUSH, Opcode.FLUSHQ}
"""kv_engine has no validator for them: it serves them no more."""

PRESERVING = frozenset({
    "SET", "SETQ", "REPLACE", "REPLACEQ", "APPEND", "APPENDQ", "PREPEND", "PREPENDQ", "INCREMENT",
    "INCREMENTQ", "DECREMENT", "DECREMENTQ", "SUBDOC_MULTI_MUTATION",
})  # fmt: skip
DURABLE = frozenset({
    "SET", "ADD", "REPLACE", "DELETE", "INCREMENT", "DECREMENT", "APPEND", "PREPEND", "TOUCH",
    "GAT", "SUBDOC_MULTI_MUTATION",
})  # fmt: skip


def link(mode: Mode = Mode.COUCHBASE) -> Link:
    """Make a link in a bucket with one named collection, whose id is 8."""
    store = MemoryStore(lambda: NOW, uuid=1)
    bucket = Bucket("default", store, Manifest([("scope", "named")]))
    settings = ServerSettings(mode=mode)
    return Link(KVServer([bucket], settings, now=lambda: NOW, timer=lambda: 0.0))


def status(opcode: int, fields: dict[str, Any], made: Link | None = None) -> int:
    """Make one request, and say how it ended; 0 where nothing is said."""
    made = link() if made is None else made
    made.store.set(K, b"{}")
    responses = made.responses(encode_request(opcode, **fields))
    return responses[0].status if responses else 0


def both_forms(opcode: int, key: bytes) -> list[Request]:
    """Return a request that is only a key, as it is decoded, and with all its fields."""
    (decoded,) = RequestDecoder().feed(encode_request(opcode, key=key, vbucket=3, opaque=4))
    whole = Request(opcode=opcode, key=key, vbucket=3, opaque=4)
    assert isinstance(decoded, KeyRequest)
    assert decoded == whole
    return [decoded, whole]


def replied(made: Link, features: bytes, request: Request) -> Any:
    """Return what is replied to a request, and what has been counted."""
    made.store.set(K, b"{}")
    made.call(Opcode.HELLO, value=features)
    dialect: Any = made.session.dialect
    reply = dialect.execute(request)
    return reply if isinstance(reply, bytes | list) else type(reply), dialect.counts.report()


class ValidatorTests(SynchronousTestCase):
    """Each validator takes what it takes, and nothing else."""

    def refused(self, opcode: Opcode, **changes: Any) -> None:
        """Check that a good request with these changes gets 0x04, and that a good one does not."""
        fields = VALIDATORS[opcode].good | changes
        self.assertEqual(status(opcode, fields), Status.INVALID, (opcode.name, changes))

    def passes(self, opcode: Opcode, **changes: Any) -> None:
        """Check that a good request with these changes is not called malformed."""
        fields = VALIDATORS[opcode].good | changes
        self.assertNotIn(
            status(opcode, fields), {Status.INVALID, Status.NOT_SUPPORTED}, (opcode.name, changes)
        )

    def test_complete(self) -> None:
        """There is a row for every opcode that is served, and a shape."""
        for opcode in Opcode:
            served = status(opcode, {}) != Status.UNKNOWN_COMMAND
            self.assertEqual(served, opcode in VALIDATORS or opcode in OF_ITS_OWN, opcode.name)
            self.assertEqual(served, LOUD.get(opcode, opcode) in SHAPES, opcode.name)

    def test_good(self) -> None:
        """What each row calls good passes."""
        for opcode in VALIDATORS:
            self.passes(opcode)

    def test_extras(self) -> None:
        """Extras have the right length."""
        for opcode, row in VALIDATORS.items():
            right = {len(row.good.get("extras", b"")), *row.extras}
            for size in range(25):
                if size not in right:
                    self.refused(opcode, extras=bytes(size))
                elif size != 16:
                    self.passes(opcode, extras=bytes(size))

    def test_key(self) -> None:
        """A key is there where it must be, and nowhere else; 250 bytes are the most."""
        for opcode, row in VALIDATORS.items():
            if row.key == "needed":
                self.refused(opcode, key=b"")
            if row.key == "no":
                self.refused(opcode, key=b"k")
            else:
                self.refused(opcode, key=b"k" * 251)

    def test_key_only(self) -> None:
        """A request that is only a key is answered as its fields say, however it was decoded."""
        keys = (K, b"absent", b"\0" + K, b"k" * 250, b"\x09key")
        for mode in Mode:
            for features in (b"", COLLECTIONS, COLLECTIONS + TRACED):
                made = link(mode), link(mode)
                for opcode, key in product(range(256), keys):
                    asked = both_forms(opcode, key)
                    some, others = (
                        replied(of, features, request)
                        for of, request in zip(made, asked, strict=True)
                    )
                    self.assertEqual(some, others, (mode, features, opcode, key))

    def test_value(self) -> None:
        """A value is nowhere but where there may be one."""
        for opcode, row in VALIDATORS.items():
            if not row.value:
                self.refused(opcode, value=b"v")

    def test_cas(self) -> None:
        """A CAS is nowhere but where it means something."""
        for opcode, row in VALIDATORS.items():
            if row.cas == "no":
                self.refused(opcode, cas=7)
            else:
                self.passes(opcode, cas=7)
            if row.cas == "needed":
                self.refused(opcode, cas=0)

    def test_datatype(self) -> None:
        """Only what is stored may be called JSON; nothing is compressed or has attributes."""
        for opcode, row in VALIDATORS.items():
            if row.json:
                self.passes(opcode, datatype=1)
            else:
                self.refused(opcode, datatype=1)
            for datatype in (2, 3, 4, 5, 8, 0x80):
                self.refused(opcode, datatype=datatype)

    def test_vbucket(self) -> None:
        """Where a partition means nothing it is 0."""
        for opcode, row in VALIDATORS.items():
            if row.vbucket:
                self.passes(opcode, vbucket=5)
            else:
                self.refused(opcode, vbucket=5)

    def test_framing(self) -> None:
        """Preserve-TTL where it means nothing is 0x83, durability 0x04."""
        for opcode, row in VALIDATORS.items():
            preserve = status(opcode, row.good | {"framing": b"\x50", "magic": 0x08})
            self.assertEqual(
                preserve == Status.NOT_SUPPORTED, opcode.name not in PRESERVING, opcode.name
            )
            majority = status(opcode, row.good | {"framing": b"\x11\x01", "magic": 0x08})
            self.assertEqual(majority == Status.INVALID, opcode.name not in DURABLE, opcode.name)

    def test_statistics_with_a_value(self) -> None:
        """STAT's value is JSON, and says so."""
        self.passes(Opcode.STAT, value=b'{"a": 1}', datatype=1)
        self.refused(Opcode.STAT, value=b"{}")
        self.refused(Opcode.STAT, value=b"{", datatype=1)

    def test_values_of_a_length(self) -> None:
        """Some values have a fixed length; of names only one place is used."""
        self.refused(Opcode.HELLO, value=b"\0")
        self.refused(Opcode.GET_ERROR_MAP, value=b"\2")
        self.refused(Opcode.GET_ERROR_MAP, value=b"\0\0\2")
        self.refused(Opcode.OBSERVE_SEQNO, value=bytes(7))
        self.refused(Opcode.GET_META, extras=b"\3")
        for opcode in (Opcode.GET_COLLECTION_ID, Opcode.GET_SCOPE_ID):
            self.refused(opcode, key=b"_default", value=b"_default")


class CollectionKeyTests(SynchronousTestCase):
    """Keys of a client that knows collections."""

    def get(self, key: bytes) -> int:
        """Ask for a key; say how that ended."""
        made = link()
        made.call(Opcode.HELLO, value=Feature.COLLECTIONS.to_bytes(2))
        return made.call(Opcode.GET, key=key).status

    def test_length(self) -> None:
        """250 bytes in the default collection, 246 in any other, whatever the length of its id."""
        for key, expected in (
            (b"\0" + b"k" * 250, Status.NOT_FOUND),
            (b"\0" + b"k" * 251, Status.INVALID),
            (b"\x08" + b"k" * 246, Status.NOT_FOUND),
            (b"\x08" + b"k" * 247, Status.INVALID),
            (b"\x08" + b"k" * 250, Status.INVALID),
            (join_key(0xFFFF_FFFF, b"k" * 246), Status.UNKNOWN_COLLECTION),
            (join_key(0xFFFF_FFFF, b"k" * 247), Status.INVALID),
            (b"\0", Status.INVALID),
            (b"\x08", Status.INVALID),
            (b"k", Status.INVALID),
        ):
            self.assertEqual(self.get(key), expected, (key[:8], len(key)))

    def test_reserved(self) -> None:
        """Ids 1 to 7 are nobody's; 9 could be somebody's, but is not here."""
        for collection in range(1, 8):
            self.assertEqual(self.get(join_key(collection, b"k")), Status.INVALID)
        self.assertEqual(self.get(join_key(9, b"k")), Status.UNKNOWN_COLLECTION)

    def test_form(self) -> None:
        """An id has its shortest form."""
        for key in (b"\x88\0k", b"\x80\0k", b"\xff\xff\xff\xff\x1fk", b"\x80\x80\x80\x80\x80\x80"):
            self.assertEqual(self.get(key), Status.INVALID)


class PathTests(SynchronousTestCase):
    """What Couchbase refuses of paths, whatever the document."""

    def test_long(self) -> None:
        """A path above 1,024 bytes is 0x04 for the whole request, not for its own spec."""
        for size, expected in ((1024, Status.SUBDOC_MULTI_PATH_FAILURE), (1025, Status.INVALID)):
            path = b"a" * size
            lookup = b"\xc5\0\0\1a" + b"\xc5\0" + size.to_bytes(2) + path
            self.assertEqual(status(Opcode.SUBDOC_MULTI_LOOKUP, KEY | {"value": lookup}), expected)
            mutation = b"\xca\0" + size.to_bytes(2) + b"\0\0\0\1" + path + b"1"
            self.assertEqual(
                status(Opcode.SUBDOC_MULTI_MUTATION, KEY | {"value": mutation}), expected
            )

    def test_string(self) -> None:
        """A document that is a string is not one that has paths: 0xc6; a number is: 0xc1."""
        for value, expected in ((b'"abc"', b"\0\xc6"), (b" 12", b"\0\xc1"), (b"[1]", b"\0\xc1")):
            made = link()
            made.store.set(K, value)
            found = made.call(Opcode.SUBDOC_MULTI_LOOKUP, key=K, value=LOOKUP)
            self.assertEqual(found.value[:2], expected, value)
            changed = made.call(Opcode.SUBDOC_MULTI_MUTATION, key=K, value=MUTATION)
            self.assertEqual(changed.value, b"\0" + expected, value)


class NoBucketTests(SynchronousTestCase):
    """SELECT_BUCKET with the name that stands for none."""

    def test_unselect(self) -> None:
        """Afterwards there is no bucket to work in, until one is selected."""
        made = link()
        self.assertEqual(made.call(Opcode.SELECT_BUCKET, key=b"@no bucket@").status, 0)
        for opcode in (Opcode.GET, Opcode.STAT, Opcode.GET_MANIFEST):
            self.assertEqual(status(opcode, VALIDATORS[opcode].good, made), Status.NO_BUCKET)
        self.assertEqual(made.call(Opcode.NOOP).status, 0)
        config = made.call(Opcode.GET_CLUSTER_CONFIG)
        self.assertNotIn(b"nodeLocator", config.value)
        self.assertEqual(made.call(Opcode.SELECT_BUCKET, key=b"default").status, 0)
        self.assertEqual(status(Opcode.GET, KEY, made), 0)

    def test_logged_in_anew(self) -> None:
        """Whoever becomes a user without a bucket cannot go on in the one before."""
        store = MemoryStore(lambda: NOW)
        buckets = {"alice": ["default"], "bob": []}
        users = UserTable.of_passwords({"alice": "a", "bob": "b"}, buckets, iterations=1)
        made = Link(KVServer([Bucket("default", store)], users=users))
        store.set(K, b"v")
        for word, expected in ((b"\0alice\0a", 0), (b"\0bob\0b", Status.NO_BUCKET)):
            self.assertEqual(made.call(Opcode.SASL_AUTH, key=b"PLAIN", value=word).status, 0)
            self.assertEqual(made.call(Opcode.GET, key=K).status, expected)

    def test_plain_requests(self) -> None:
        """The short way is closed too."""
        made = link()
        made.store.set(K, b"v")
        made.call(Opcode.SELECT_BUCKET, key=b"@no bucket@")
        for opcode, fields in ((Opcode.GET, KEY), (Opcode.SET, KEY | {"extras": PUT})):
            self.assertEqual(made.call(opcode, **fields).status, Status.NO_BUCKET)


class MemcachedTests(SynchronousTestCase):
    """In memcached mode only lengths count, as in memcached."""

    def test_lenient(self) -> None:
        """A CAS, JSON and a partition are passed over where they mean nothing."""
        for opcode in (Opcode.GET, Opcode.GETK, Opcode.NOOP, Opcode.VERSION, Opcode.TOUCH):
            fields = VALIDATORS[opcode].good | {"cas": 7, "vbucket": 3, "datatype": 1}
            self.assertEqual(status(opcode, fields, link(Mode.MEMCACHED)), 0, opcode.name)

    def test_lengths(self) -> None:
        """They are checked all the same."""
        for opcode in (Opcode.GET, Opcode.SET, Opcode.INCREMENT, Opcode.TOUCH, Opcode.DELETE):
            good = VALIDATORS[opcode].good
            for wrong in ({"extras": b"x"}, {"key": b""}, {"key": b"k" * 251}):
                self.assertEqual(status(opcode, good | wrong, link(Mode.MEMCACHED)), Status.INVALID)


class ObserveTests(SynchronousTestCase):
    """OBSERVE_SEQNO tells the truth: nothing in memory survives."""

    def test_not_persisted(self) -> None:
        """The current number is the last mutation's, the persisted one is 0."""
        made = link()
        for _ in range(3):
            made.store.set(K, b"v")
        response = made.call(Opcode.OBSERVE_SEQNO, value=UUID, vbucket=5)
        self.assertEqual(
            (response.status, response.value.hex()),
            (0, "000005000000000000000100000000000000000000000000000003"),
        )

    def test_persisted(self) -> None:
        """A store that persists says how far."""
        made = link()
        made.store.set(K, b"v")
        made.store.persisted_seqno = 1
        response = made.call(Opcode.OBSERVE_SEQNO, value=UUID)
        self.assertEqual(int.from_bytes(response.value[11:19]), 1)

    def test_another_history(self) -> None:
        """A UUID of another history is not known."""
        self.assertEqual(link().call(Opcode.OBSERVE_SEQNO, value=bytes(8)).status, Status.NOT_FOUND)
