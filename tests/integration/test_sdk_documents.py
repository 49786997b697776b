"""The Couchbase SDK: each operation on whole documents, and what it raises when it fails."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from typing import Any

from tests.integration.sdk import SDKTestCase
from tests.integration.service import ENGINES, PATIENCE, not_on

ABSENT_CAS = 12345


class DocumentTests(SDKTestCase):
    """Reading and writing."""

    def test_everyday_life(self) -> None:
        """A document is inserted, read, replaced, overwritten and removed, and its CAS follows."""
        key, documents = self.key(), self.collection
        inserted = documents.insert(key, {"a": 1, "ü": [None, True, 1.5]})
        found = documents.get(key)
        self.assertEqual(found.content_as[dict], {"a": 1, "ü": [None, True, 1.5]})
        self.assertEqual(found.cas, inserted.cas)
        replaced = documents.replace(key, {"a": 2})
        upserted = documents.upsert(key, [3])
        removed = documents.remove(key)
        cas = [inserted.cas, replaced.cas, upserted.cas, removed.cas]
        self.assertEqual((len(set(cas)), 0 in cas), (4, False))
        self.assertFalse(documents.exists(key).exists)

    def test_exists(self) -> None:
        """``exists`` tells a document, and no document, apart, and knows the CAS."""
        key, documents = self.key(), self.collection
        self.assertFalse(documents.exists(key).exists)
        cas = documents.upsert(key, 1).cas
        found = documents.exists(key)
        self.assertEqual((found.exists, found.cas), (True, cas))

    def test_missing(self) -> None:
        """Everything that needs a document says that there is none."""
        from couchbase.exceptions import DocumentNotFoundException

        key, documents = self.key(), self.collection
        for call in (
            lambda: documents.get(key),
            lambda: documents.replace(key, 1),
            lambda: documents.remove(key),
            lambda: documents.touch(key, timedelta(seconds=9)),
            lambda: documents.get_and_touch(key, timedelta(seconds=9)),
            lambda: documents.get_and_lock(key, timedelta(seconds=9)),
            lambda: documents.unlock(key, ABSENT_CAS),
            lambda: documents.binary().append(key, b"x"),
            lambda: documents.binary().prepend(key, b"x"),
        ):
            self.assertRaises(DocumentNotFoundException, call)

    def test_insert_existing(self) -> None:
        """Nothing is inserted where something is."""
        from couchbase.exceptions import DocumentExistsException

        self.collection.insert(self.key(), 1)
        self.assertRaises(DocumentExistsException, self.collection.insert, self.key(), 2)
        self.assertEqual(self.collection.get(self.key()).content_as[int], 1)

    def test_cas_mismatch(self) -> None:
        """A change for another version of the document is refused; for this version it is made."""
        from couchbase.exceptions import CasMismatchException
        from couchbase.options import RemoveOptions, ReplaceOptions

        key, documents = self.key(), self.collection
        old = documents.upsert(key, 1).cas
        new = documents.upsert(key, 2).cas
        for call in (
            lambda: documents.replace(key, 3, ReplaceOptions(cas=old)),
            lambda: documents.remove(key, RemoveOptions(cas=old)),
        ):
            self.assertRaises(CasMismatchException, call)
        self.assertEqual(documents.get(key).content_as[int], 2)
        newer = documents.replace(key, 3, ReplaceOptions(cas=new)).cas
        documents.remove(key, RemoveOptions(cas=newer))

    def test_values(self) -> None:
        """JSON, text, bytes and emptiness come back as they went, with their kind."""
        from couchbase.options import GetOptions, UpsertOptions
        from couchbase.transcoder import (
            RawBinaryTranscoder,
            RawJSONTranscoder,
            RawStringTranscoder,
        )

        key, documents = self.key(), self.collection
        for transcoder, value in (
            (RawBinaryTranscoder(), b""),
            (RawBinaryTranscoder(), bytes(range(256))),
            (RawStringTranscoder(), "grüße\r\n"),
            (RawJSONTranscoder(), b'{"spaces":  [ ] }'),
        ):
            documents.upsert(key, value, UpsertOptions(transcoder=transcoder))
            found = documents.get(key, GetOptions(transcoder=transcoder)).value
            self.assertEqual(found, value)
        plain: object
        for plain in (None, True, 0, "", [], {}, "x" * 100_000):
            documents.upsert(key, plain)
            self.assertEqual(documents.get(key).value, plain)

    def test_keys(self) -> None:
        """Keys of 1 to 250 bytes of any text work, longer ones are refused."""
        from couchbase.exceptions import InvalidArgumentException

        for key in ("k", " ", "ключ 🔑", "\x01\n", "x" * 250):
            self.collection.upsert(key, key)
            self.assertEqual(self.collection.get(key).content_as[str], key)
            self.collection.remove(key)
        self.assertRaises(InvalidArgumentException, self.collection.upsert, "x" * 251, 1)

    def test_many_at_once(self) -> None:
        """A thousand documents are written, read and removed by pipelined requests."""
        documents = {self.key(str(number)): {"number": number} for number in range(1000)}
        self.assertTrue(self.collection.upsert_multi(documents).all_ok)
        found = self.collection.get_multi(list(documents))
        self.assertTrue(found.all_ok)
        values = {key: result.content_as[dict] for key, result in found.results.items()}
        self.assertEqual(values, documents)
        self.assertTrue(self.collection.remove_multi(list(documents)).all_ok)
        self.assertFalse(self.collection.exists(self.key("0")).exists)

    def test_mutation_tokens(self) -> None:
        """Each change has a token: the bucket's history, and a number that grows."""
        not_on(ENGINES, "an engine keeps no history that tokens could name")
        tokens = [self.collection.upsert(self.key(), n).mutation_token() for n in range(3)]
        self.assertEqual({token.bucket_name for token in tokens}, {"default"})
        self.assertEqual(len({token.partition_uuid for token in tokens}), 1)
        numbers = [token.sequence_number for token in tokens]
        self.assertEqual(numbers, sorted(set(numbers)))

    def test_projection(self) -> None:
        """Parts of a document are read alone."""
        from couchbase.options import GetOptions

        self.collection.upsert(self.key(), {"a": {"b": 1, "c": 2}, "d": 3})
        found = self.collection.get(self.key(), GetOptions(project=["a.b", "d", "no"]))
        self.assertEqual(found.content_as[dict], {"a": {"b": 1}, "d": 3})

    def test_replicas(self) -> None:
        """Reading from a replica reads the one copy there is."""
        from couchbase.exceptions import DocumentUnretrievableException

        self.collection.upsert(self.key(), 1)
        found = self.collection.get_any_replica(self.key())
        self.assertEqual((found.content_as[int], found.is_replica), (1, False))
        everything = list(self.collection.get_all_replicas(self.key()))
        self.assertEqual([one.content_as[int] for one in everything], [1])
        self.assertRaises(
            DocumentUnretrievableException, self.collection.get_any_replica, self.key("no")
        )

    def test_data_structures(self) -> None:
        """The SDK's lists, maps, sets and queues, which are sub-documents, work."""
        documents = self.collection
        numbers = documents.couchbase_list(self.key("list"))
        numbers.append(1)
        numbers.prepend(0)
        self.assertEqual((list(numbers), numbers.size()), ([0, 1], 2))
        names = documents.couchbase_map(self.key("map"))
        names.add("a", 1)
        self.assertEqual((names.get("a"), names.exists("b"), names.size()), (1, False, 1))
        words = documents.couchbase_set(self.key("set"))
        words.add("x")
        words.add("x")
        self.assertEqual((words.contains("x"), words.size()), (True, 1))
        queue = documents.couchbase_queue(self.key("queue"))
        queue.push(1)
        queue.push(2)
        self.assertEqual((queue.pop(), queue.pop(), queue.size()), (1, 2, 0))

    def test_ping(self) -> None:
        """The SDK finds the key-value service alive, and believes in no other."""
        self.cluster.bucket("default")
        self.cluster.wait_until_ready(timedelta(seconds=5))
        result = self.cluster.ping()
        self.assertEqual([kind.value for kind in result.endpoints], ["key_value"])
        states = {point.state.value for points in result.endpoints.values() for point in points}
        self.assertEqual(states, {"ok"})


class MemcachedModeTests(DocumentTests):
    """The same in memcached mode, whose habits the SDK does not mind."""

    options = ("--user", "alice:secret", "--mode", "memcached")


class ExpiryTests(SDKTestCase):
    """Documents that vanish."""

    def expires_in(self, key: str) -> float:
        """Return in how many seconds a document expires, as the service tells."""
        from couchbase.options import GetOptions

        found = self.collection.get(key, GetOptions(with_expiry=True)).expiry_time
        assert found is not None
        return float(found.timestamp() - time.time())

    def test_expires(self) -> None:
        """A document is gone after its time, for each operation."""
        from couchbase.exceptions import DocumentNotFoundException
        from couchbase.options import InsertOptions, UpsertOptions

        key, documents = self.key(), self.collection
        documents.upsert(key, 1, UpsertOptions(expiry=timedelta(seconds=3)))
        self.assertEqual(documents.get(key).content_as[int], 1)
        self.until(lambda: not documents.exists(key).exists)
        self.assertRaises(DocumentNotFoundException, documents.get, key)
        documents.insert(key, 2, InsertOptions(expiry=timedelta(seconds=100)))
        self.assertEqual(documents.get(key).content_as[int], 2)

    def test_is_told(self) -> None:
        """``with_expiry`` tells when, and None when never; what is above 30 days as well."""
        from couchbase.options import GetOptions, UpsertOptions

        key, documents = self.key(), self.collection
        for seconds in (100, 40 * 86400):
            documents.upsert(key, 1, UpsertOptions(expiry=timedelta(seconds=seconds)))
            self.assertApproximates(self.expires_in(key), seconds, 3)
        documents.upsert(key, 1)
        self.assertIsNone(documents.get(key, GetOptions(with_expiry=True)).expiry_time)

    def test_touch(self) -> None:
        """An expiry is changed, with and without reading."""
        key, documents = self.key(), self.collection
        documents.upsert(key, 1)
        documents.touch(key, timedelta(seconds=100))
        self.assertApproximates(self.expires_in(key), 100, 3)
        found = documents.get_and_touch(key, timedelta(seconds=200))
        self.assertEqual(found.content_as[int], 1)
        self.assertApproximates(self.expires_in(key), 200, 3)

    def test_preserved(self) -> None:
        """A change keeps the expiry where that is asked for, and only there."""
        import couchbase.subdocument as SD
        from couchbase.options import GetOptions, MutateInOptions, UpsertOptions

        key, documents = self.key(), self.collection
        documents.upsert(key, {}, UpsertOptions(expiry=timedelta(seconds=100)))
        documents.upsert(key, {"a": 1}, UpsertOptions(preserve_expiry=True))
        self.assertApproximates(self.expires_in(key), 100, 3)
        changes = [SD.upsert("b", 1)]
        documents.mutate_in(key, changes, MutateInOptions(preserve_expiry=True))
        self.assertApproximates(self.expires_in(key), 100, 3)
        documents.upsert(key, {"a": 2})
        self.assertIsNone(documents.get(key, GetOptions(with_expiry=True)).expiry_time)


class LockTests(SDKTestCase):
    """Documents that one client keeps for itself."""

    def test_locked(self) -> None:
        """Whoever has not the lock's CAS reads, and changes nothing until it is opened."""
        from couchbase.exceptions import CasMismatchException, DocumentLockedException
        from couchbase.options import GetAndLockOptions, RemoveOptions, UpsertOptions

        key, documents, wait = self.key(), self.collection, timedelta(seconds=0.3)
        documents.upsert(key, 1)
        locked = documents.get_and_lock(key, timedelta(seconds=20))
        self.assertEqual(locked.content_as[int], 1)
        self.assertEqual(documents.get(key).content_as[int], 1)
        for call in (
            lambda: documents.upsert(key, 2, UpsertOptions(timeout=wait)),
            lambda: documents.remove(key, RemoveOptions(timeout=wait)),
            lambda: documents.get_and_lock(
                key, timedelta(seconds=20), GetAndLockOptions(timeout=wait)
            ),
        ):
            self.assertRaises(DocumentLockedException, call)
        self.assertRaises(CasMismatchException, documents.unlock, key, locked.cas + 1)
        documents.unlock(key, locked.cas)
        documents.upsert(key, 2)

    def test_opened_by_a_change(self) -> None:
        """A change with the lock's CAS is made, and opens the lock."""
        from couchbase.options import ReplaceOptions

        key, documents = self.key(), self.collection
        documents.upsert(key, 1)
        locked = documents.get_and_lock(key, timedelta(seconds=20))
        documents.replace(key, 2, ReplaceOptions(cas=locked.cas))
        documents.replace(key, 3)

    def test_lapses(self) -> None:
        """A lock ends by itself: who waits for it goes on."""
        from couchbase.options import UpsertOptions

        key, documents = self.key(), self.collection
        documents.upsert(key, 1)
        documents.get_and_lock(key, timedelta(seconds=1))
        # The SDK tries again and again until it is; nobody unlocks.
        documents.upsert(key, 2, UpsertOptions(timeout=timedelta(seconds=PATIENCE)))
        self.assertEqual(documents.get(key).content_as[int], 2)

    def test_not_locked(self) -> None:
        """What is not locked cannot be unlocked."""
        from couchbase.exceptions import DocumentNotLockedException

        cas = self.collection.upsert(self.key(), 1).cas
        self.assertRaises(DocumentNotLockedException, self.collection.unlock, self.key(), cas)


class BinaryTests(SDKTestCase):
    """Counters, and values of bytes."""

    def test_counters(self) -> None:
        """Counters begin with their initial value, count, and stop at 0."""
        from couchbase.options import DecrementOptions, DeltaValue, IncrementOptions, SignedInt64

        key, counters = self.key(), self.collection.binary()
        first = counters.increment(key, IncrementOptions(initial=SignedInt64(40)))
        self.assertEqual(first.content, 40)
        self.assertEqual(counters.increment(key).content, 41)
        more = IncrementOptions(delta=DeltaValue(9))
        self.assertEqual(counters.increment(key, more).content, 50)
        less = DecrementOptions(delta=DeltaValue(20))
        self.assertEqual(counters.decrement(key, less).content, 30)
        self.assertEqual(counters.decrement(key, less).content, 10)
        self.assertEqual(counters.decrement(key, less).content, 0)
        self.assertEqual(self.collection.get(key).content_as[int], 0)

    def test_no_counter(self) -> None:
        """A counter without initial value is not made; what is no number is not counted."""
        from couchbase.exceptions import DeltaInvalidException, DocumentNotFoundException
        from couchbase.options import IncrementOptions, SignedInt64

        key, counters = self.key(), self.collection.binary()
        none = IncrementOptions(initial=SignedInt64(-1))
        self.assertRaises(DocumentNotFoundException, counters.increment, key, none)
        self.collection.upsert(key, "many")
        self.assertRaises(DeltaInvalidException, counters.increment, key)
        self.assertEqual(self.collection.get(key).content_as[str], "many")

    def test_append_and_prepend(self) -> None:
        """Bytes are put behind and before others."""
        from couchbase.exceptions import CasMismatchException
        from couchbase.options import AppendOptions, GetOptions, UpsertOptions
        from couchbase.transcoder import RawBinaryTranscoder

        key, raw = self.key(), RawBinaryTranscoder()
        old = self.collection.upsert(key, b"b", UpsertOptions(transcoder=raw)).cas
        binary = self.collection.binary()
        binary.append(key, b"c")
        binary.prepend(key, b"a")
        self.assertRaises(CasMismatchException, binary.append, key, b"d", AppendOptions(cas=old))
        found = self.collection.get(key, GetOptions(transcoder=raw)).value
        self.assertEqual(found, b"abc")


class DurabilityTests(SDKTestCase):
    """What is promised about the survival of a change, which is not much."""

    def test_majority(self) -> None:
        """One node is the majority of one."""
        from couchbase.durability import DurabilityLevel, ServerDurability
        from couchbase.options import UpsertOptions

        level = ServerDurability(DurabilityLevel.MAJORITY)
        self.collection.upsert(self.key(), 1, UpsertOptions(durability=level))
        self.assertEqual(self.collection.get(self.key()).content_as[int], 1)

    def test_persistence(self) -> None:
        """Nothing is written to disk here: who asks for that hears so, and nothing is stored."""
        not_on(("file",), "everything is written to disk")
        import couchbase.subdocument as SD
        from couchbase.durability import DurabilityLevel, ServerDurability
        from couchbase.exceptions import DocumentNotFoundException, DurabilityImpossibleException
        from couchbase.options import (
            IncrementOptions,
            MutateInOptions,
            RemoveOptions,
            SignedInt64,
            UpsertOptions,
        )

        key, documents = self.key(), self.collection
        documents.upsert(self.key("there"), {"a": 1})
        for level in (
            DurabilityLevel.PERSIST_TO_MAJORITY,
            DurabilityLevel.MAJORITY_AND_PERSIST_TO_ACTIVE,
        ):
            hard = ServerDurability(level)
            counting = IncrementOptions(durability=hard, initial=SignedInt64(1))
            for call in (
                lambda hard=hard: documents.upsert(key, 1, UpsertOptions(durability=hard)),
                lambda counting=counting: documents.binary().increment(key, counting),
                lambda hard=hard: documents.remove(
                    self.key("there"), RemoveOptions(durability=hard)
                ),
                lambda hard=hard: documents.mutate_in(
                    self.key("there"), [SD.upsert("a", 2)], MutateInOptions(durability=hard)
                ),
            ):
                self.assertRaises(DurabilityImpossibleException, call)
        self.assertRaises(DocumentNotFoundException, documents.get, key)
        self.assertEqual(documents.get(self.key("there")).content_as[dict], {"a": 1})

    def test_replicas(self) -> None:
        """The older kind, which counts copies: the SDK knows that there are none."""
        from couchbase.durability import ClientDurability, PersistTo, ReplicateTo
        from couchbase.exceptions import DurabilityImpossibleException
        from couchbase.options import UpsertOptions

        for copies in (
            ClientDurability(replicate_to=ReplicateTo.ONE, persist_to=PersistTo.NONE),
            ClientDurability(replicate_to=ReplicateTo.NONE, persist_to=PersistTo.ONE),
        ):
            self.assertRaises(
                DurabilityImpossibleException,
                self.collection.upsert,
                self.key(),
                1,
                UpsertOptions(durability=copies),
            )


class FullTests(SDKTestCase):
    """A store that is full and may not evict."""

    options = ("--user", "alice:secret", "--memory-limit", "1MiB", "--refuse-when-full")

    def test_refused(self) -> None:
        """What finds no room fails at once, what is there stays."""
        not_on(ENGINES, "the engine's memory has a limit of the engine's own")
        from couchbase.exceptions import TemporaryFailException

        self.collection.upsert(self.key("first"), "x")
        with self.assertRaises(TemporaryFailException):
            for number in range(30):
                self.collection.upsert(self.key(str(number)), "x" * 100_000)
        self.assertGreater(number, 5)
        self.assertEqual(self.collection.get(self.key("first")).content_as[str], "x")


class TransactionTests(SDKTestCase):
    """The SDK's own transactions, which are made of sub-documents and durability."""

    def run_transaction(self, work: Any) -> None:
        from couchbase.options import TransactionOptions

        self.cluster.transactions.run(work, TransactionOptions(timeout=timedelta(seconds=10)))

    def test_committed(self) -> None:
        """Documents are made, changed and removed together, and seen by others only then."""
        documents, keys = self.collection, [self.key(name) for name in ("new", "old", "gone")]
        new, old, gone = keys
        documents.upsert(old, {"n": 1})
        documents.upsert(gone, {"n": 1})
        seen: list[object] = []

        def work(transaction: Any) -> None:
            transaction.insert(documents, new, {"n": 1})
            transaction.replace(transaction.get(documents, old), {"n": 2})
            transaction.remove(transaction.get(documents, gone))
            seen.extend(documents.exists(key).exists for key in keys)
            seen.append(documents.get(old).content_as[dict])

        self.run_transaction(work)
        self.assertEqual(seen, [False, True, True, {"n": 1}])
        self.assertEqual([documents.exists(key).exists for key in keys], [True, True, False])
        self.assertEqual(documents.get(old).content_as[dict], {"n": 2})

    def test_rolled_back(self) -> None:
        """What fails half-way leaves nothing behind."""
        from couchbase.exceptions import TransactionFailed

        documents, new, old = self.collection, self.key("new"), self.key("old")
        documents.upsert(old, {"n": 1})

        def work(transaction: Any) -> None:
            transaction.insert(documents, new, {"n": 1})
            transaction.replace(transaction.get(documents, old), {"n": 2})
            raise ZeroDivisionError

        self.assertRaises(TransactionFailed, self.run_transaction, work)
        self.assertFalse(documents.exists(new).exists)
        self.assertEqual(documents.get(old).content_as[dict], {"n": 1})
        documents.insert(new, {})

    def test_in_each_others_way(self) -> None:
        """Of transactions that change one document at once, each is made as a whole or fails."""
        from couchbase.exceptions import TransactionFailed

        documents, key = self.collection, self.key()
        documents.upsert(key, {"n": 0})

        def work(transaction: Any) -> None:
            found = transaction.get(documents, key)
            transaction.replace(found, {"n": found.content_as[dict]["n"] + 1})

        made: list[bool] = []

        def several() -> None:
            for _ in range(5):
                try:
                    self.run_transaction(work)
                    made.append(True)
                except TransactionFailed:  # the SDK leaves repeating to the application
                    made.append(False)

        threads = [threading.Thread(target=several) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(len(made), 3 * 5)
        self.assertGreaterEqual(made.count(True), 1)
        self.assertEqual(documents.get(key).content_as[dict], {"n": made.count(True)})
