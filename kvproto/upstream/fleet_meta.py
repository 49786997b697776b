"""memcached's meta commands on a fleet: told in the operations that its binary protocol has.

What that protocol cannot say is refused: how long a document has left, whether and when it was
read, stale values and who fetches them anew, a CAS of the client's own, emptying.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from kvproto.errors import NotSupported
from kvproto.store import DO_NOT_CREATE, LOCKED_CAS, Document, MetaRead, MetaWrite, Refusal
from kvproto.wire.meta import MetaCommand

__all__ = ["meta"]

_UNSAYABLE = {
    "mg": frozenset(b"hlutENR"),
    "ms": frozenset(b"EI"),
    "md": frozenset(b"EITx"),
    "ma": frozenset(b"ETt"),
}
_UNSAYABLE_OF_EXTENDING = frozenset(b"Ns")
_WHY = "memcached servers are asked in a protocol that cannot say this"
_ADDING, _APPENDING, _PREPENDING, _REPLACING, _SETTING = b"EAPRS"
_DECREMENTING = frozenset(b"D-")


def meta(store: Any, key: bytes, command: MetaCommand) -> Deferred[Any]:
    """Do a meta command by the other operations of a store; see `IStore.meta`.

    Raises:
        NotSupported: They cannot say it.
    """
    unsayable = _UNSAYABLE.get(command.verb)
    if unsayable is None or not unsayable.isdisjoint(command.letters):
        raise NotSupported(_WHY)
    answer: Deferred[Any] = _ASK[command.verb](store, key, command)
    return answer


def _cas(command: MetaCommand) -> int:
    # 0 would mean "whatever is there"; no document has the other one.
    return 0 if command.cas is None else command.cas or LOCKED_CAS


def _mg(store: Any, key: bytes, command: MetaCommand) -> Any:
    asked = store.get(key) if command.expiry is None else store.get_and_touch(key, command.expiry)
    return asked.addCallback(_found)


def _found(outcome: Any) -> Any:
    if isinstance(outcome, Document):
        return MetaRead(outcome, 0.0, 0, 0)
    return None if outcome is Refusal.NOT_FOUND else outcome


def _ms(store: Any, key: bytes, command: MetaCommand) -> Any:
    mode = command.mode or _SETTING
    if mode in {_APPENDING, _PREPENDING}:
        if not _UNSAYABLE_OF_EXTENDING.isdisjoint(command.letters):
            raise NotSupported(_WHY)
        extend = store.append if mode == _APPENDING else store.prepend
        asked = extend(key, command.value, command.cas or 0)
    else:
        store_it = {_ADDING: store.add, _REPLACING: store.replace}.get(mode, store.set)
        cas = 0 if mode == _ADDING else _cas(command)
        asked = store_it(key, command.value, command.client_flags, command.expiry or 0, cas)
    return asked.addCallback(_stored, command)


def _stored(outcome: Any, command: MetaCommand) -> Any:
    if isinstance(outcome, Document):
        return Document(command.value, command.client_flags, outcome.cas)
    if outcome is Refusal.EXISTS:
        return MetaWrite.NOT_STORED if command.mode == _ADDING else MetaWrite.EXISTS
    if outcome is Refusal.NOT_FOUND and command.cas is not None:
        return MetaWrite.NOT_FOUND
    if outcome in {Refusal.NOT_FOUND, Refusal.NOT_STORED}:
        return MetaWrite.NOT_STORED
    return outcome


def _md(store: Any, key: bytes, command: MetaCommand) -> Any:
    return store.delete(key, _cas(command)).addCallback(_changed)


def _changed(outcome: Any) -> Any:
    return _MISSED.get(outcome, outcome) if isinstance(outcome, Refusal) else outcome


_MISSED: dict[Refusal, MetaWrite] = {
    Refusal.NOT_FOUND: MetaWrite.NOT_FOUND,
    Refusal.EXISTS: MetaWrite.EXISTS,
}


def _ma(store: Any, key: bytes, command: MetaCommand) -> Any:
    count = store.decrement if command.mode in _DECREMENTING else store.increment
    expiry = DO_NOT_CREATE if command.vivify is None else command.vivify
    asked = count(key, command.delta, command.initial, expiry, command.cas or 0)
    return asked.addCallback(_counted)


def _counted(outcome: Any) -> Any:
    return MetaRead(outcome, 0.0, 0, 0) if isinstance(outcome, Document) else _changed(outcome)


_ASK = {"mg": _mg, "ms": _ms, "md": _md, "ma": _ma}
