"""The operations of a store on one document, each in the words of its rule: `Operations`.

A store derives from it and says how a rule is applied: at once, or by reading, deciding and
comparing and swapping.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvproto.store import meta, partial, rules
from kvproto.store.document import Document, Key
from kvproto.store.rules import Rule
from kvproto.wire.meta import MetaCommand
from kvproto.wire.subdoc_terms import LookupSpec, MutationSpec

__all__ = ["Operations"]


class Operations:
    """Operations on one document, on top of `_apply` and `_apply_to_any`.

    Attributes:
        uuid: Name of the history of sequence numbers.
        touch_keeps_cas: Whether a document that gets another expiry keeps its CAS.
    """

    uuid: int
    touch_keeps_cas = False

    def _apply(self, key: Key, rule: Rule[Any], *args: Any) -> Any:
        """Apply a rule to a document; return its answer, a refusal, or a Deferred of these."""
        raise NotImplementedError

    def _apply_to_any(self, key: Key, doc_flags: int, rule: Rule[Any], *args: Any) -> Any:
        """Do as `_apply`; the rule may see a deleted document if ``doc_flags`` say so."""
        raise NotImplementedError

    def _stamp(self, document: Document) -> None:
        """Give a document the numbers that it will have if it is stored, unless it has them."""
        raise NotImplementedError

    # -- storing --------------------------------------------------------------

    def set(
        self,
        key: Key,
        value: bytes,
        flags: int = 0,
        expiry: int = 0,
        cas: int = 0,
        *,
        datatype: int = 0,
        preserve_expiry: bool = False,
    ) -> Any:
        """Store whatever was there before; see `IStore.set`."""
        return self._apply(key, rules.set_, value, flags, expiry, cas, datatype, preserve_expiry)

    def add(
        self,
        key: Key,
        value: bytes,
        flags: int = 0,
        expiry: int = 0,
        cas: int = 0,
        *,
        datatype: int = 0,
        preserve_expiry: bool = False,
    ) -> Any:
        """Store only where nothing is; see `IStore.add`."""
        return self._apply(key, rules.add, value, flags, expiry, cas, datatype, preserve_expiry)

    def replace(
        self,
        key: Key,
        value: bytes,
        flags: int = 0,
        expiry: int = 0,
        cas: int = 0,
        *,
        datatype: int = 0,
        preserve_expiry: bool = False,
    ) -> Any:
        """Store only where something is; see `IStore.replace`."""
        return self._apply(key, rules.replace, value, flags, expiry, cas, datatype, preserve_expiry)

    def append(self, key: Key, value: bytes, cas: int = 0) -> Any:
        """Put bytes behind a value; see `IStore.append`."""
        return self._apply(key, rules.append, value, cas)

    def prepend(self, key: Key, value: bytes, cas: int = 0) -> Any:
        """Put bytes before a value; see `IStore.prepend`."""
        return self._apply(key, rules.prepend, value, cas)

    def delete(self, key: Key, cas: int = 0) -> Any:
        """Remove a document; see `IStore.delete`."""
        return self._apply(key, rules.delete, cas)

    def increment(self, key: Key, delta: int, initial: int, expiry: int, cas: int = 0) -> Any:
        """Add to a counter; see `IStore.increment`."""
        return self._apply(key, rules.increment, delta, initial, expiry, cas)

    def decrement(self, key: Key, delta: int, initial: int, expiry: int, cas: int = 0) -> Any:
        """Subtract from a counter; see `IStore.decrement`."""
        return self._apply(key, rules.decrement, delta, initial, expiry, cas)

    def touch(self, key: Key, expiry: int) -> Any:
        """Give a document another expiry; see `IStore.touch`."""
        return self._apply(key, rules.touch, expiry, self.touch_keeps_cas)

    def get_and_touch(self, key: Key, expiry: int) -> Any:
        """Do as `touch`, counted as a read too; see `IStore.get_and_touch`."""
        return self._apply(key, rules.get_and_touch, expiry, self.touch_keeps_cas)

    def get_and_lock(self, key: Key, seconds: int) -> Any:
        """Lock a document; see `IStore.get_and_lock`."""
        return self._apply(key, rules.get_and_lock, seconds)

    def unlock(self, key: Key, cas: int) -> Any:
        """Release a lock; see `IStore.unlock`."""
        return self._apply(key, rules.unlock, cas)

    def discard(self, key: Key) -> Any:
        """Remove a document, locked or not; see `IStore.discard`."""
        return self._apply(key, rules.discard)

    def meta(self, key: Key, command: MetaCommand) -> Any:
        """Do one of memcached's meta commands; see `IStore.meta`."""
        return self._apply(key, meta.RULES[command.verb], command)

    # -- parts of documents ---------------------------------------------------

    def lookup_in(self, key: Key, specs: Sequence[LookupSpec], doc_flags: int = 0) -> Any:
        """Look up several paths in one document; see `IStore.lookup_in`."""
        status = partial.refuse_lookup(specs, doc_flags)
        if status is not None:
            return status
        return self._apply_to_any(key, doc_flags, partial.lookup_in, specs, self.uuid)

    def mutate_in(
        self,
        key: Key,
        specs: Sequence[MutationSpec],
        doc_flags: int = 0,
        expiry: int = 0,
        cas: int = 0,
        *,
        flags: int | None = None,
        preserve_expiry: bool = False,
    ) -> Any:
        """Change several paths in one document, all or none; see `IStore.mutate_in`."""
        status = partial.refuse_mutation(specs, doc_flags, cas)
        if status is not None:
            return status
        return self._apply_to_any(
            key,
            doc_flags,
            partial.mutate_in,
            specs,
            doc_flags,
            expiry,
            cas,
            flags,
            preserve_expiry,
            self.uuid,
            self._stamp,
        )
