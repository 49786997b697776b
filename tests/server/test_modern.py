"""What HELLO enables beyond buckets: tokens, statuses, JSON, durations, parts of documents."""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from kvproto.server import KVServer, ServerSettings
from kvproto.server.features import FEATURES
from kvproto.store import LOCKED_CAS, MemoryStore
from kvproto.wire import subdoc
from kvproto.wire.binary import encode_request
from kvproto.wire.constants import Feature, Opcode, Status
from kvproto.wire.extras import split_mutation_token
from kvproto.wire.framing import decode_response_framing
from kvproto.wire.subdoc_terms import DocFlag, LookupSpec, MutationSpec, PathFlag, PathResult
from tests.server.support import NOW, Link, SlowStore

K = b"key"
PUT = bytes(8)
ONE = bytes(7) + b"\1" + bytes(12)


def modern(*features: int, server: KVServer | None = None) -> Link:
    """Make a link on which these features are enabled."""
    link = Link(server)
    value = b"".join(number.to_bytes(2) for number in features)
    assert link.call(Opcode.HELLO, value=value).value == value
    return link


class TokenTests(SynchronousTestCase):
    """Mutation tokens (0x04)."""

    def test_every_mutation(self) -> None:
        """Each mutation answers with the store's history and its own number in it."""
        link = modern(Feature.MUTATION_SEQNO)
        for number, (opcode, value, extras) in enumerate(
            (
                (Opcode.SET, b"1", PUT),
                (Opcode.REPLACE, b"1", PUT),
                (Opcode.INCREMENT, b"", ONE),
                (Opcode.DECREMENT, b"", ONE),
                (Opcode.APPEND, b"1", b""),
                (Opcode.PREPEND, b"1", b""),
                (Opcode.DELETE, b"", b""),
                (Opcode.ADD, b"1", PUT),
            ),
            1,
        ):
            response = link.call(opcode, key=K, value=value, extras=extras)
            self.assertEqual(split_mutation_token(response.extras), (1, number), opcode.name)
            self.assertNotEqual(response.cas, 0)

    def test_counter_has_its_value(self) -> None:
        """A counter's value stands behind the token."""
        link = modern(Feature.MUTATION_SEQNO)
        link.store.set(K, b"41")
        response = link.call(Opcode.INCREMENT, key=K, extras=ONE)
        self.assertEqual(response.value, (42).to_bytes(8))

    def test_others_have_none(self) -> None:
        """What is no mutation has no token, and neither has anything without the feature."""
        link = modern(Feature.MUTATION_SEQNO)
        link.store.set(K, b"1")
        self.assertEqual(link.call(Opcode.TOUCH, key=K, extras=bytes(4)).extras, b"")
        self.assertEqual(modern().call(Opcode.SET, key=K, extras=PUT).extras, b"")


class StatusTests(SynchronousTestCase):
    """Extended statuses (0x07)."""

    def test_locks(self) -> None:
        """Locked and not locked have statuses of their own; without XERROR they are temporary."""
        for features, locked, not_locked in (
            ((Feature.XERROR,), Status.LOCKED, Status.NOT_LOCKED),
            ((), Status.TEMPORARY_FAILURE, Status.TEMPORARY_FAILURE),
        ):
            link = modern(*features)
            link.store.set(K, b"v")
            self.assertEqual(link.call(Opcode.UNLOCK, key=K, cas=5).status, not_locked)
            link.call(Opcode.GET_LOCKED, key=K)
            self.assertEqual(link.call(Opcode.SET, key=K, extras=PUT).status, locked)
            self.assertEqual(link.call(Opcode.UNLOCK, key=K, cas=5).status, locked)


class HelloTests(SynchronousTestCase):
    """What is acknowledged."""

    def test_sdk(self) -> None:
        """The Python SDK gets of its list exactly what is there, in its order."""
        asked = bytes.fromhex(
            "0003 0006 0007 0008 000b 000c 0010 000f 0011 0015 0012 0017 0014 001c 0021 000e 000d"
            "001e 000a 0004"
        )
        response = Link().call(Opcode.HELLO, key=b'{"a":"python/4.6.3"}', value=asked)
        expected = bytes.fromhex(
            "0003 0006 0007 0008 000b 0010 000f 0011 0015 0012 0017 0014 001c 000e 0004"
        )
        self.assertEqual(response.value, expected)

    def test_again(self) -> None:
        """A second HELLO replaces the first."""
        link = modern(*FEATURES)
        link.call(Opcode.HELLO)
        link.store.set(K, b"{}")
        response = link.call(Opcode.GET, key=K)
        self.assertEqual((response.value, response.datatype, response.magic), (b"{}", 0, 0x81))
        self.assertEqual(link.call(Opcode.SET, key=K, extras=PUT).extras, b"")

    def test_pipelined(self) -> None:
        """What HELLO enables holds for the very next request of the same read."""
        link = Link()
        link.store.set(K, b"v")
        hello = encode_request(Opcode.HELLO, value=Feature.COLLECTIONS.to_bytes(2))
        get = encode_request(Opcode.GET, key=b"\0" + K)
        self.assertEqual([r.status for r in link.responses(hello + get)], [0, 0])


class JsonTests(SynchronousTestCase):
    """Which values are JSON (0x0b)."""

    def test_detected(self) -> None:
        """The server decides, whatever the client said when it stored the value."""
        link = modern(Feature.JSON)
        for value, said, is_json in (
            (b'{"a":1}', 0, 1),
            (b'{"a":1}', 1, 1),
            (b"12", 0, 1),
            (b"{", 1, 0),
            (b"", 0, 0),
            (b"\xff", 1, 0),
            (b"[1,2", 0, 0),
        ):
            link.call(Opcode.SET, key=K, value=value, extras=PUT, datatype=said)
            for opcode, extras in (
                (Opcode.GET, b""),
                (Opcode.GETK, b""),
                (Opcode.GAT, bytes(4)),
                (Opcode.GETQ, b""),
            ):
                response = link.call(opcode, key=K, extras=extras)
                self.assertEqual((response.datatype, response.value), (is_json, value))

    def test_long_values_are_not_parsed(self) -> None:
        """Of a long value it is believed what the client said: parsing holds up others."""
        link = modern(Feature.JSON)
        value = b"[" + b"1," * 500_000 + b"1]"
        for said in (0, 1):
            link.call(Opcode.SET, key=K, value=value, extras=PUT, datatype=said)
            self.assertEqual(link.call(Opcode.GET, key=K).datatype, said)


class DurationTests(SynchronousTestCase):
    """How long the server worked (0x0f)."""

    def setUp(self) -> None:
        self.clock = 0.0
        self.step = 0.000_1

        def timer() -> float:
            self.clock += self.step
            return self.clock

        self.store = MemoryStore(lambda: NOW)
        self.server = KVServer(self.store, ServerSettings(), timer=timer)
        self.link = modern(Feature.TRACING, server=self.server)

    def test_every_reply(self) -> None:
        """Replies about documents carry it, whatever their form, and are otherwise the same."""
        for size in (0, 10, 20_000):
            value = bytes(size)
            stored = self.link.call(Opcode.SET, key=K, value=value, extras=PUT, opaque=3)
            found = self.link.call(Opcode.GETK, key=K, opaque=4)
            missing = self.link.call(Opcode.GET, key=b"-", opaque=5)
            for response, opaque in ((stored, 3), (found, 4), (missing, 5)):
                self.assertEqual((response.magic, response.opaque), (0x18, opaque))
                duration = decode_response_framing(response.framing).server_duration_us
                assert duration is not None
                self.assertLess(abs(duration - 100), 10)
            self.assertEqual((found.key, found.value, found.cas), (K, value, stored.cas))
            self.assertEqual(missing.status, Status.NOT_FOUND)

    def test_long(self) -> None:
        """A long time is told too."""
        self.step = 2.5
        response = self.link.call(Opcode.GET, key=K)
        duration = decode_response_framing(response.framing).server_duration_us
        assert duration is not None
        self.assertLess(abs(duration - 2_500_000), 25_000)

    def test_quiet(self) -> None:
        """What is silent stays silent."""
        self.assertTrue(self.link.silent(Opcode.SETQ, key=K, value=b"v", extras=PUT))
        self.assertTrue(self.link.silent(Opcode.GETQ, key=b"-"))

    def test_statistics(self) -> None:
        """A reply of many packets stays readable."""
        responses = self.link.responses(encode_request(Opcode.STAT))
        self.assertGreater(len(responses), 10)
        self.assertEqual(responses[-1].key, b"")

    def test_slow_store(self) -> None:
        """A store that answers later is timed until it does."""
        slow = SlowStore(self.store)
        self.store.set(K, b"v")
        server = KVServer(slow, ServerSettings(), timer=self.server.timer)
        link = modern(Feature.TRACING, server=server)
        link.ask(encode_request(Opcode.GET, key=K))
        self.clock += 1
        slow.release()
        [response] = link.responses()
        duration = decode_response_framing(response.framing).server_duration_us
        assert duration is not None
        self.assertGreater(duration, 900_000)

    def test_not_asked_for(self) -> None:
        """Without the feature the magic is the plain one."""
        self.assertEqual(modern().call(Opcode.GET, key=K).magic, 0x81)


class PartialDocumentTests(SynchronousTestCase):
    """Lookups and mutations of several paths."""

    def setUp(self) -> None:
        self.link = modern(Feature.MUTATION_SEQNO, Feature.XATTR, Feature.VATTR)
        self.link.store.set(K, b'{"a":{"b":1},"l":[1,2],"n":5}', 7)

    def lookup(self, *specs: LookupSpec, key: bytes = K) -> tuple[int, list[object]]:
        extras, value = subdoc.encode_lookup(subdoc.Lookup(list(specs)))
        response = self.link.call(
            Opcode.SUBDOC_MULTI_LOOKUP, key=key, extras=extras, value=value, opaque=9
        )
        self.assertEqual(response.opaque, 9)
        if response.status not in {0, Status.SUBDOC_MULTI_PATH_FAILURE}:
            return response.status, []
        self.assertEqual(response.cas, self.link.store.get(key).cas)
        return response.status, list(subdoc.decode_lookup_results(response.value))

    def test_lookup(self) -> None:
        """Each path has its own result; the whole has a status for "some failed"."""
        get, exists = Opcode.SUBDOC_GET, Opcode.SUBDOC_EXISTS
        status, results = self.lookup(
            LookupSpec(get, 0, b"a.b"), LookupSpec(Opcode.SUBDOC_GET_COUNT, 0, b"l")
        )
        self.assertEqual((status, results), (0, [(0, b"1"), (0, b"2")]))
        status, results = self.lookup(LookupSpec(exists, 0, b"nope"), LookupSpec(get, 0, b"l[-1]"))
        self.assertEqual(status, Status.SUBDOC_MULTI_PATH_FAILURE)
        self.assertEqual(results, [(Status.SUBDOC_PATH_NOT_FOUND, b""), (0, b"2")])

    def test_replica(self) -> None:
        """A lookup that wants a replica is told that it is not here, as by any active partition."""
        specs = [LookupSpec(Opcode.SUBDOC_GET, 0, b"n")]
        extras, value = subdoc.encode_lookup(subdoc.Lookup(specs, int(DocFlag.REPLICA_READ)))
        response = self.link.call(Opcode.SUBDOC_MULTI_LOOKUP, key=K, extras=extras, value=value)
        self.assertEqual((response.status, response.value), (Status.NOT_MY_VBUCKET, b""))

    def test_whole_with_expiry(self) -> None:
        """The SDK's get with expiry: two virtual attributes and the document."""
        self.link.store.touch(K, 60)
        xattr = int(PathFlag.XATTR)
        status, results = self.lookup(
            LookupSpec(Opcode.SUBDOC_GET, xattr, b"$document.exptime"),
            LookupSpec(Opcode.SUBDOC_GET, xattr, b"$document.flags"),
            LookupSpec(Opcode.GET, 0, b""),
        )
        expiry = str(int(NOW) + 60).encode()
        value = self.link.store.get(K).value
        self.assertEqual((status, results), (0, [(0, expiry), (0, b"7"), (0, value)]))

    def test_lookup_refused(self) -> None:
        """A missing document, a malformed request and a missing key have statuses of their own."""
        spec = LookupSpec(Opcode.SUBDOC_GET, 0, b"a")
        self.assertEqual(self.lookup(spec, key=b"-"), (Status.NOT_FOUND, []))
        self.assertEqual(self.lookup(spec, key=b""), (Status.INVALID, []))
        self.assertEqual(self.lookup(), (Status.SUBDOC_INVALID_COMBO, []))
        self.assertEqual(self.lookup(*[spec] * 17), (Status.SUBDOC_INVALID_COMBO, []))
        response = self.link.call(Opcode.SUBDOC_MULTI_LOOKUP, key=K, value=b"\xc5\0\0\x09a")
        self.assertEqual(response.status, Status.INVALID)

    def test_locked(self) -> None:
        """A lookup of a locked document shows no CAS that would open it."""
        self.link.store.get_and_lock(K, 15)
        extras, value = subdoc.encode_lookup(
            subdoc.Lookup([LookupSpec(Opcode.SUBDOC_GET, 0, b"n")])
        )
        response = self.link.call(Opcode.SUBDOC_MULTI_LOOKUP, key=K, extras=extras, value=value)
        self.assertEqual((response.status, response.cas), (0, LOCKED_CAS))

    def mutate(self, *specs: MutationSpec, **fields: Any) -> tuple[int, bytes, bytes, int]:
        options = {name: fields.pop(name) for name in ("cas", "key") if name in fields}
        mutation = subdoc.Mutation(list(specs), **fields)
        extras, value = subdoc.encode_mutation(mutation)
        options = {"key": K, **options}
        response = self.link.call(
            Opcode.SUBDOC_MULTI_MUTATION,
            extras=extras,
            value=value,
            **options,
        )
        return response.status, response.extras, response.value, response.cas

    def value(self) -> object:
        return json.loads(self.link.store.get(K).value)

    def test_mutation(self) -> None:
        """All paths change together; only counters have results; the token is there."""
        status, extras, value, cas = self.mutate(
            MutationSpec(Opcode.SUBDOC_DICT_UPSERT, 0, b"a.b", b"2"),
            MutationSpec(Opcode.SUBDOC_COUNTER, 0, b"n", b"3"),
        )
        document = self.link.store.get(K)
        self.assertEqual((status, cas), (0, document.cas))
        self.assertEqual(split_mutation_token(extras), (1, document.seqno))
        results = [PathResult(1, 0, b"8")]
        self.assertEqual(subdoc.decode_mutation_results(value), results)
        self.assertEqual(self.value(), {"a": {"b": 2}, "l": [1, 2], "n": 8})
        self.assertEqual(document.flags, 7)

    def test_mutation_fails_whole(self) -> None:
        """The first path that fails is named, and nothing is changed."""
        before = self.link.store.get(K)
        status, extras, value, cas = self.mutate(
            MutationSpec(Opcode.SUBDOC_DICT_UPSERT, 0, b"a.b", b"2"),
            MutationSpec(Opcode.SUBDOC_DICT_ADD, 0, b"n", b"3"),
        )
        self.assertEqual((status, extras, cas), (Status.SUBDOC_MULTI_PATH_FAILURE, b"", 0))
        results = [PathResult(1, Status.SUBDOC_PATH_EXISTS)]
        self.assertEqual(subdoc.decode_mutation_results(value), results)
        self.assertIs(self.link.store.get(K), before)

    def test_mutation_options(self) -> None:
        """CAS, expiry, user flags and document flags reach the store."""
        spec = MutationSpec(Opcode.SUBDOC_DICT_UPSERT, 0, b"x", b"1")
        self.assertEqual(self.mutate(spec, cas=5)[0], Status.EXISTS)
        self.assertEqual(self.mutate(spec, expiry=60, user_flags=3)[0], 0)
        document = self.link.store.get(K)
        self.assertEqual((document.expiry, document.flags), (int(NOW) + 60, 3))
        self.assertEqual(self.mutate(spec, key=b"-")[0], Status.NOT_FOUND)
        create = int(DocFlag.MKDOC)
        self.assertEqual(self.mutate(spec, key=b"new", doc_flags=create)[0], 0)
        add = int(DocFlag.ADD)
        self.assertEqual(self.mutate(spec, doc_flags=add)[0], Status.EXISTS)
        self.assertEqual(self.mutate()[0], Status.SUBDOC_INVALID_COMBO)

    def test_framing(self) -> None:
        """Durability and preserve-TTL hold for mutations of parts."""
        self.link.store.touch(K, 60)
        spec = MutationSpec(Opcode.SUBDOC_DICT_UPSERT, 0, b"x", b"1")
        extras, value = subdoc.encode_mutation(subdoc.Mutation([spec]))
        for framing, status in ((b"\x11\x02", Status.DURABILITY_IMPOSSIBLE), (b"\x50", 0)):
            response = self.link.call(
                Opcode.SUBDOC_MULTI_MUTATION,
                key=K,
                extras=extras,
                value=value,
                framing=framing,
                magic=0x08,
            )
            self.assertEqual(response.status, status)
        self.assertEqual(self.link.store.get(K).expiry, int(NOW) + 60)

    def test_slow_store(self) -> None:
        """A store that answers later gets the same replies."""
        slow = SlowStore(self.link.store)
        link = Link(KVServer(slow, ServerSettings()))
        extras, value = subdoc.encode_lookup(
            subdoc.Lookup([LookupSpec(Opcode.SUBDOC_GET, 0, b"n")])
        )
        link.ask(encode_request(Opcode.SUBDOC_MULTI_LOOKUP, key=K, extras=extras, value=value))
        slow.release()
        [response] = link.responses()
        self.assertEqual(subdoc.decode_lookup_results(response.value), [(0, b"5")])
