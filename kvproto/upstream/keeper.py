"""The record of a bucket's epochs: read with every turn's commands, changed by flushes.

Owns where the record lies, and what happens when an engine has lost it.  What is in it is
`kvproto.upstream.epochs`'.

In a cluster the record lies in 256 places, spread over all slots, so that every server has it; one
of them, the first, is where changes are made, and from there they are copied to the others before
a change counts as done.  Of two records the newer one is believed, wherever it was read, and
whoever finds an older one or none writes the newer one there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from kvproto.base.log import make_logger
from kvproto.errors import ForeignData, StoreUnavailable, UpstreamError
from kvproto.upstream.connection import Call
from kvproto.upstream.engine import Engine, all_ended
from kvproto.upstream.epochs import Epochs
from kvproto.upstream.link import Link
from kvproto.upstream.resp import EngineFailure, ReplyError, command
from kvproto.upstream.scripts import REPLACE_IF, SET_NEWER

__all__ = ["EpochKeeper"]

log = make_logger()

_MOST_LOSSES = 20


class EpochKeeper:
    """Keeps a bucket's record.

    Args:
        engine: Where it lies.
        bucket: The bucket's name.
        adopted: Called with a record that is newer than the one before.

    Attributes:
        record: The newest that is known; None until `load` has succeeded once.
    """

    def __init__(self, engine: Engine, bucket: bytes, adopted: Callable[[Epochs], object]) -> None:
        self._engine = engine
        self._bucket = bucket
        self._adopted = adopted
        self._raw = b""
        self._repairing: set[bytes] = set()
        self.record: Epochs | None = None

    def ride(self, link: Link) -> None:
        """Let a read of the record travel with the commands of this turn."""
        slot, tag = self._engine.tag_of(link.server)
        name = self._name(tag)
        call = Call(command(b"GET", name), self._checked, context=name, slot=slot)
        call.server = link.server
        link.send(call)

    def load(self) -> Deferred[None]:
        """Read the record, or make the first one."""
        return Deferred.fromCoroutine(self._load())

    def change(self, make: Callable[[Epochs, int], Epochs]) -> Deferred[None]:
        """Change the record; when the Deferred fires, every process that asks sees it.

        Args:
            make: Called with the record and the engine's time in microseconds, perhaps repeatedly;
                returns the new one, or the same for no change.
        """
        return Deferred.fromCoroutine(self._change(make))

    def _name(self, tag: bytes) -> bytes:
        return b"kvtls-epochs:%b:{%b}" % (self._bucket, tag)

    def _checked(self, reply: Any, call: Call) -> None:
        """Take the record that has travelled with commands."""
        if reply == self._raw:
            return
        if isinstance(reply, ReplyError | EngineFailure):
            # The commands beside it have the same trouble; a place that has moved is asked again.
            self._engine.settle(reply, call)
            return
        self._found(reply, call.slot, call.context)

    def _found(self, raw: bytes | None, slot: int, name: bytes) -> None:
        try:
            found = None if raw is None else Epochs.decode(raw)
        except ForeignData as error:
            log.warn("the record of epochs in the engine cannot be read: {reason}", reason=error)
            return
        if self.record is None or (found is not None and found.version > self.record.version):
            if found is not None and raw is not None:
                self._adopt(found, raw)
        elif (found is None or found.version < self.record.version) and self._raw:
            self._repair(slot, name)

    def _adopt(self, record: Epochs, raw: bytes) -> None:
        self.record, self._raw = record, raw
        self._adopted(record)

    def _repair(self, slot: int, name: bytes) -> None:
        """Write the record to where it was lost."""
        if name in self._repairing:
            return
        self._repairing.add(name)
        done = self._engine.ask(SET_NEWER.call(name, self._raw), slot, write=True)
        done.addErrback(lambda failure: failure.trap(UpstreamError))
        done.addBoth(lambda _: self._repairing.discard(name))

    async def _load(self) -> None:
        engine = self._engine
        slot, tag = engine.tags[0]
        # The first answer brings the cluster's map, and with it all servers that have a place.
        replies = [(slot, tag, await engine.ask(command(b"GET", self._name(tag)), slot))]
        others = {engine.tag_of(server) for server in engine.servers} - {(slot, tag)}
        for other_slot, other in sorted(others):
            raw = await engine.ask(command(b"GET", self._name(other)), other_slot)
            replies.append((other_slot, other, raw))
        for found_slot, found, raw in replies:
            self._found(raw, found_slot, self._name(found))
        if self.record is None:
            # The other places get it when somebody looks there.
            await self._change(lambda record, micros: record, copy=False)

    async def _change(self, make: Callable[[Epochs, int], Epochs], *, copy: bool = True) -> None:
        engine = self._engine
        slot, tag = engine.tags[0]
        name = self._name(tag)
        asked = [engine.ask(command(*words), slot) for words in ((b"TIME",), (b"GET", name))]
        (seconds, rest), raw = await all_ended(asked)
        micros = int(seconds) * 1_000_000 + int(rest)
        for _ in range(_MOST_LOSSES):
            try:
                record = None if raw is None else Epochs.decode(raw)
            except ForeignData:
                if self.record is None:
                    raise
                record = None  # what is known is better
            if self.record is not None and (record is None or record.version < self.record.version):
                record = self.record
            made = make(Epochs.first(micros) if record is None else record, micros)
            encoded = made.encode()
            if encoded == raw:
                break
            data = REPLACE_IF.call(name, raw or b"", encoded)
            reply = await engine.ask(data, slot, write=True)
            if reply == 1:
                break
            raw = reply
        else:
            raise StoreUnavailable("too many processes flush the bucket at once")
        copies = [
            engine.ask(SET_NEWER.call(self._name(other), encoded), other_slot, write=True)
            for other_slot, other in engine.tags[1:]
            if copy
        ]
        await all_ended(copies)
        if self.record is None or made.version > self.record.version:
            self._adopt(made, encoded)
