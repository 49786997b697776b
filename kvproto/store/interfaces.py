"""The store contract, `IStore`.

Whatever keeps values behind a session provides this; the mix-in
`kvproto.testing.store.StoreContract` tests it.  The rules of CAS, expiry, locks
and counters are on the reference page "Stores".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from kvproto.store.document import Document, Key, Refusal
from kvproto.store.meta import MetaAnswer, MetaRead, MetaWrite
from kvproto.store.multi import LookupResult, MutationResult
from kvproto.wire.meta import MetaCommand
from kvproto.wire.subdoc_terms import LookupSpec, MutationSpec, PathStatus

__all__ = [
    "IConnectionStore",
    "IGroupingStore",
    "IImmediateStore",
    "IListableStore",
    "IStore",
    "Outcome",
]

MetaOutcome = MetaRead | MetaAnswer | Document | MetaWrite | Refusal | None
Outcome = Document | Refusal | Deferred[Document | Refusal]


class IStore(Interface):
    """Where values live.

    Every method answers at once or, in a store that has to wait, with a
    Deferred of the same; a caller checks once.  A refused operation has
    changed nothing.  Nothing here raises for what a client may have sent.

    A store that depends on others may fail, at once or by its Deferred, with
    `kvproto.errors.StoreUnavailable`, `OutcomeUnknown` or `DurabilityImpossible`; what clients are
    told then is the session's business.

    ``expiry`` is what a client sends: 0 never, 1 to 2592000 seconds from now,
    above that unix time; a time in the past, and any negative number (memcached's
    text protocol), is "expired at once": the operation succeeds, the document is gone.
    ``cas`` 0 is "whatever is there"; any other must match the document's.
    """

    seqno = Attribute("int: Sequence number of the last mutation, 0 before the first.")
    persisted_seqno = Attribute(
        "int: Sequence number up to which every mutation is on disk; 0 where none ever is."
    )
    uuid = Attribute("int: 48 random bits that name this store's history of sequence numbers.")

    persists = Attribute("bool: whether documents outlive this process.")

    tokens = Attribute(
        "bool: whether its sequence numbers are one history, so that clients may be given tokens."
    )

    def ready() -> str | None:
        """Return why requests cannot be served now, for people; None when they can."""

    def durable(level: int, timeout: float | None) -> IStore | None:
        """Return this store as it is for requests that ask for durability.

        Its mutations answer when they are durable; it fails with `DurabilityImpossible` where it
        knows before that they will not be, with `OutcomeUnknown` where it cannot tell.

        Args:
            level: 1: known to a majority; 2: and on the disk of the active node; 3: on the disks
                of a majority.
            timeout: Seconds that a request may wait for it; None leaves it to the store.

        Returns:
            None when this store never has this level.
        """

    def get(key: Key) -> Document | Deferred[Document | None] | None:
        """Read a document, locked or not; None when there is none."""

    def set(
        key: Key,
        value: bytes,
        flags: int = 0,
        expiry: int = 0,
        cas: int = 0,
        *,
        datatype: int = 0,
        preserve_expiry: bool = False,
    ) -> Outcome:
        """Store whatever was there before.

        Args:
            key: Which document.
            value: Its new value.
            flags: Its new flags.
            expiry: Its new expiry.
            cas: When not 0, the document must exist with this CAS.
            datatype: The client's datatype bits.
            preserve_expiry: An existing document keeps its own expiry.
        """

    def add(
        key: Key,
        value: bytes,
        flags: int = 0,
        expiry: int = 0,
        cas: int = 0,
        *,
        datatype: int = 0,
        preserve_expiry: bool = False,
    ) -> Outcome:
        """Store only where nothing is: else EXISTS, locked or not."""

    def replace(
        key: Key,
        value: bytes,
        flags: int = 0,
        expiry: int = 0,
        cas: int = 0,
        *,
        datatype: int = 0,
        preserve_expiry: bool = False,
    ) -> Outcome:
        """Store only where something is: else NOT_FOUND."""

    def append(key: Key, value: bytes, cas: int = 0) -> Outcome:
        """Put bytes behind a value; flags and expiry stay.  Missing: NOT_STORED."""

    def prepend(key: Key, value: bytes, cas: int = 0) -> Outcome:
        """Put bytes before a value; flags and expiry stay.  Missing: NOT_STORED."""

    def delete(key: Key, cas: int = 0) -> Outcome:
        """Remove a document; the answer is a tombstone with its own CAS and seqno."""

    def increment(key: Key, delta: int, initial: int, expiry: int, cas: int = 0) -> Outcome:
        """Add to a counter, modulo 2**64.

        Args:
            key: Which document; one that exists keeps its flags and expiry.
            delta: What to add, 0 to 2**64 - 1.
            initial: The value of a missing counter, which is created without adding delta.
            expiry: The expiry of a created counter; `DO_NOT_CREATE` makes missing NOT_FOUND.
            cas: When not 0, the document must exist with this CAS.
        """

    def decrement(key: Key, delta: int, initial: int, expiry: int, cas: int = 0) -> Outcome:
        """Subtract from a counter, not below 0; everything else as in `increment`."""

    def touch(key: Key, expiry: int) -> Outcome:
        """Give a document another expiry (and so another CAS)."""

    def get_and_touch(key: Key, expiry: int) -> Outcome:
        """Do as `touch`; the store's statistics count it as a read too."""

    def get_and_lock(key: Key, seconds: int) -> Outcome:
        """Lock a document and give it a new CAS, which opens the lock.

        Args:
            key: Which document.  One that is locked already: LOCKED.
            seconds: How long, at most; 0 and anything above 30 mean 15.
        """

    def unlock(key: Key, cas: int) -> Refusal | Deferred[Refusal | None] | None:
        """Release a lock; None when done.

        Not locked: NOT_LOCKED; another CAS than the lock's: LOCKED.
        """

    def meta(key: Key, command: MetaCommand) -> MetaOutcome | Deferred[MetaOutcome]:
        """Do one of memcached's meta commands on a document, in the words of its flags.

        Args:
            key: Which document.
            command: Verb and flags; its own key is not looked at.

        Returns:
            mg, ma and me: a `MetaRead`, None where nothing is (ma: NOT_FOUND).  ms and md: the
            document as it is now.  What was not done: a `MetaWrite` or a `Refusal`.
        """

    def lookup_in(
        key: Key, specs: Sequence[LookupSpec], doc_flags: int = 0
    ) -> LookupResult | PathStatus | Refusal | Deferred[LookupResult | PathStatus | Refusal]:
        """Look up several paths in one document, locked or not.

        Args:
            key: Which document.  Missing: NOT_FOUND.
            specs: 1 to 16, those about extended attributes first.
            doc_flags: `DocFlag` bits that mean something to a lookup.  REPLICA_READ asks for what
                a store never is: NOT_A_REPLICA.

        Returns:
            Each path's result; or a status for the whole request, which was not well formed.
        """

    def mutate_in(
        key: Key,
        specs: Sequence[MutationSpec],
        doc_flags: int = 0,
        expiry: int = 0,
        cas: int = 0,
        *,
        flags: int | None = None,
        preserve_expiry: bool = False,
    ) -> MutationResult | PathStatus | Refusal | Deferred[MutationResult | PathStatus | Refusal]:
        """Change several paths in one document, all or none.

        Args:
            key: Which document.
            specs: 1 to 16, those about extended attributes first.
            doc_flags: `DocFlag` bits.  Without MKDOC and ADD, missing is NOT_FOUND; with ADD,
                existing is EXISTS.
            expiry: Its new expiry.
            cas: When not 0, the document must exist with this CAS.
            flags: Its new flags; None keeps what it has, 0 for a new one.
            preserve_expiry: An existing document keeps its own expiry.

        Returns:
            What came of it, a failed path included; or a status for the whole request.
        """

    def discard(key: Key) -> Deferred[None] | None:
        """Remove a document, locked or not; for memcached's rule that a failed SET removes."""

    def flush(delay: int = 0) -> Deferred[None] | None:
        """Remove all documents.

        Args:
            delay: As an expiry: when.  Then everything older than that moment vanishes.  A later
                flush replaces one that still waits.
        """

    def drop_collection(collection: int) -> Deferred[None] | None:
        """Remove all documents of a collection, at once for readers; memory follows piecemeal."""

    def stats() -> dict[str, int | str] | Deferred[dict[str, int | str]]:
        """Return counters, named as memcached's ``stats`` names them."""


class IListableStore(Interface):
    """A store that can list its documents and take them back, for backups."""

    def pieces() -> Iterator[Sequence[tuple[Key, Document]] | Deferred[Any]]:
        """Yield all documents, tombstones with attributes included, some at a time.

        What is stored or removed meanwhile may be there or not, or twice, the later one last.
        Nothing counts as used by it.
        A piece may be a Deferred of one.
        """

    def put_back(key: Key, document: Document) -> Refusal | Deferred[Refusal | None] | None:
        """Store a document, or tombstone, with the CAS that it has, whatever is there.

        It gets a sequence number of its own.  One that has expired leaves nothing there.
        """

    def saved() -> Deferred[None] | None:
        """Return a Deferred that fires when what was put back is as safe as it will be."""


class IGroupingStore(IStore):
    """A store whose changes are safe only later, many of them with one effort.

    Who is about to ask for several may open a group: then all are answered at once, as far as they
    can be, and their answers are kept back until the group is safe.
    """

    groups = Attribute("bool: whether changes wait for something; if not, a group is of no use.")

    def begin_group() -> None:
        """Open a group; it is ended before anybody else asks for anything."""

    def end_group() -> Deferred[None] | None:
        """End the group.

        Returns:
            None when it has changed nothing; or a Deferred that fires when what was answered at
            once is safe, and fails with `StoreUnavailable` when nobody knows whether it is.
        """


class IConnectionStore(IStore):
    """A store that keeps the requests of each client's connection in order on their way."""

    def for_connection() -> IStore:
        """Return this store as one connection uses it."""


class IImmediateStore(IStore):
    """A store that answers the most frequent requests at once, and so the fastest way.

    Its ``get`` never returns a Deferred.  Sessions then serve plain requests straight from the
    bytes of a read, and count on the store to count them.  It is asked of the class; one that
    inherits the promise and cannot keep it declares ``@implementer_only(IStore)``.
    """

    statistics = Attribute("kvproto.store.statistics.Statistics: what it counts, as it counts.")

    now = Attribute("Callable[[], float]: its clock, in unix seconds, by which documents expire.")

    def read_plainly(
        key: bytes, now: float, seen: int, recache: int, makes: bool
    ) -> tuple[Document | None, int] | None:
        """Read as ``mg`` does where nobody is told to fetch anew, and nothing is made.

        It is only asked once somebody has called `meta`.

        Args:
            key: Which document.
            now: Of its clock, since it was last changed: several reads may share that.
            seen: Marks of what is read now (`kvproto.store.marks_at`).
            recache: Seconds below which one client is told to fetch anew; 0 for none.
            makes: Whether something is made where nothing is.

        Returns:
            The document, None where there is none, and its marks before that; or None when there
            is more to consider, so that only `meta` will do; nothing has happened then that would
            not happen there.
        """

    def set_plainly(
        key: bytes, value: bytes, flags: int, expiry: int, datatype: int, cas: int = 0
    ) -> Document | None:
        """Do as `set` where nothing unusual is in the way, at once.

        Returns:
            None when there is more to consider, so that only `set` will do; nothing has happened
            then that would not happen there.
        """
