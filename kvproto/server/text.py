"""The text session: what each command of one connection means, in memcached's words.

Source: memcached ``doc/protocol.txt``, ``proto_text.c``; an integration test compares the answers
with those of the memcached that is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias, cast

from kvproto.errors import NotSupported, OutcomeUnknown, RemoteProtocolError, StoreUnavailable
from kvproto.server.buckets import Bucket
from kvproto.server.meta import META_HANDLERS
from kvproto.server.replies import COPY_LIMIT, ErrorLine, Hangup, LateError, Reply, then
from kvproto.server.scan import scan_text
from kvproto.server.server import KVServer, Peer
from kvproto.server.statistics import Report, report
from kvproto.server.text_admin import ADMIN_HANDLERS
from kvproto.server.watch import Watcher, streams_of
from kvproto.server.watched import WatchedStore, observed
from kvproto.server.window import BARRIER, FREE, Subject
from kvproto.store import DO_NOT_CREATE, LOCKED_CAS, Document, IStore, Refusal
from kvproto.wire import text as wire
from kvproto.wire.text import TextCommand, TextDecoder, TextRefusal

__all__ = ["TextSession"]

MAX_LOGIN = 2048
"""Bytes of the value that a client without a login may send: a name and a password."""

UNAUTHENTICATED = wire.client_error(b"unauthenticated")
BAD_TOKEN = wire.client_error(b"bad authentication token format")
BAD_LOGIN = wire.client_error(b"authentication failure")
NOT_WATCHED = wire.client_error(b"watch commands not allowed")
TOO_MANY_WATCHERS = b"WATCHER_TOO_MANY log watcher limit reached\r\n"
NOT_ALLOWED = wire.client_error(b"flush_all not allowed")
NO_BUCKET = wire.client_error(b"no bucket")
INTERNAL = wire.server_error(b"internal error")

TEMPORARY = wire.server_error(b"temporary failure")

_REFUSED: dict[Refusal, bytes] = {
    Refusal.NOT_FOUND: wire.NOT_FOUND,
    Refusal.EXISTS: wire.EXISTS,
    Refusal.NOT_STORED: wire.NOT_STORED,
    Refusal.TOO_BIG: wire.TOO_LARGE,
    Refusal.NOT_A_NUMBER: wire.NOT_A_NUMBER,
    # memcached knows no locks: whoever hears this should come again later.
    Refusal.LOCKED: TEMPORARY,
    Refusal.NO_MEMORY: wire.server_error(b"out of memory storing object"),
}
_NOT_STORED = {**_REFUSED, Refusal.NOT_FOUND: wire.NOT_STORED, Refusal.EXISTS: wire.NOT_STORED}
"""add, replace, append and prepend have one word for all of this."""

Handler: TypeAlias = "Callable[[TextSession, TextCommand], Reply]"


class TextSession:
    """The text protocol's `kvproto.server.session.Dialect`.

    Args:
        server: What all sessions share.
        peer: Who the other side is.

    Attributes:
        meta_seen: Whether the store has been asked in the words of meta commands: it then knows
            that somebody wants to know which documents are read.
    """

    __slots__ = (
        "_decoder",
        "_failed_keys",
        "_late_error",
        "bucket",
        "feed",
        "max_value",
        "meta_seen",
        "peer",
        "plain_get",
        "plain_read",
        "plain_set",
        "server",
        "store",
    )

    scan = staticmethod(scan_text) if scan_text else None
    store: IStore

    def __init__(self, server: KVServer, peer: Peer) -> None:
        self.server = server
        self.bucket: Bucket | None = None
        self.peer = peer
        self._decoder = TextDecoder(MAX_LOGIN)
        self.feed = self._decoder.feed
        # A retrieval that was answered with an error: a client takes that line for the whole
        # answer, so neither further values nor END may follow.
        self._failed_keys = False
        # What a retrieval ends with in place of END, of which a key could not be looked up.
        self._late_error = b""
        self.meta_seen = False
        self.plain_get: Callable[[bytes], Any] | None = None
        self.plain_read: Callable[[bytes, float, int, int, bool], Any] | None = None
        self.plain_set: Callable[..., Any] | None = None
        self._update_rights()

    @property
    def error(self) -> RemoteProtocolError | None:
        """Why the stream cannot be read any further."""
        return self._decoder.error

    @property
    def held(self) -> bool:
        """Whether the next bytes continue something, or a retrieval has not ended yet."""
        return self._decoder.held or self._failed_keys or bool(self._late_error)

    @property
    def partial(self) -> bool:
        """Whether a command has been received in part."""
        return self._decoder.partial

    @property
    def buffered(self) -> int:
        """Bytes that are held of a request that has been received in part."""
        return self._decoder.buffered

    forwarding = False
    """Whether forwarded requests are under way: this protocol's are not forwarded."""

    def give_back(self) -> None:
        """Do nothing: nothing is forwarded."""

    def detach(self) -> None:
        """Let go of what is not complete: the client is gone."""
        self._decoder.discard()

    in_order = True
    """Replies come in the order of requests: there is nothing else to tell them apart by."""

    def execute(self, item: TextCommand | TextRefusal) -> Reply:
        """Serve one command, all before it having been answered."""
        if self._failed_keys:
            return self.conclude(item, b"")
        reply = self.begin(item)
        if reply.__class__ is ErrorLine or (self._late_error and item.verb == "end"):
            return self.conclude(item, reply)
        return reply

    def begin(self, item: TextCommand | TextRefusal) -> Reply:
        """Start one command, whatever becomes of those before it, and count it."""
        if self.plain_get is not None and item.__class__ is TextCommand:
            handler = _PLAIN.get(item.verb)
            if handler is not None:
                return handler(self, item)  # the store itself counts these
        counts = self.server.requests if self.bucket is None else self.bucket.requests
        reply: Reply = counts.text(self._begin, item)
        return reply

    def _begin(self, item: TextCommand | TextRefusal) -> Reply:
        if self.peer.user is None:
            return self._stranger(item)
        if isinstance(item, TextRefusal):
            return self._refused(item)
        if self.bucket is None and item.verb not in _WITHOUT_BUCKET:
            return b"" if item.noreply or item.verb in _KEYS else NO_BUCKET
        return _HANDLERS[item.verb](self, item)

    def conclude(self, item: Any, reply: Reply) -> Reply:
        """Return what is sent now that it is the turn of this reply.

        Nothing follows an error within a retrieval, not even its END.
        """
        if self._failed_keys:
            # A key that cannot be one ends a retrieval too.
            self._failed_keys = item.verb != "end" and isinstance(item, TextCommand)
            return b""
        if reply.__class__ is LateError:
            self._late_error = cast("bytes", reply)
            return b""
        self._failed_keys = reply.__class__ is ErrorLine
        if self._late_error and (self._failed_keys or item.verb == "end"):
            late, self._late_error = self._late_error, b""
            return reply if self._failed_keys else late
        return reply

    def subject(self, item: TextCommand | TextRefusal, *, started: bool = False) -> Subject:
        """Return what a command is about, so that it waits for the right others."""
        if self.peer.user is None:
            return BARRIER
        at_once = isinstance(item, TextRefusal) or item.verb in _POSITIONED
        return item.key or (FREE if at_once else BARRIER)

    def failed(self, item: Any, error: BaseException | None = None) -> Reply:
        """Answer a command that could not be served."""
        if isinstance(error, OutcomeUnknown):
            return Hangup(reason=str(error))
        if isinstance(error, StoreUnavailable):
            if item.verb in _KEYS:
                return LateError(TEMPORARY)
            return b"" if getattr(item, "noreply", False) else TEMPORARY
        if isinstance(error, NotSupported):
            return b"" if item.noreply else wire.server_error(b"not supported by this store")
        if item.verb in _KEYS:
            return ErrorLine(INTERNAL)
        return b"" if getattr(item, "noreply", False) else INTERNAL

    def refuse_key(self, refusal: Refusal) -> bytes:
        """Answer one key of a retrieval: with nothing if it is only missing."""
        return b"" if refusal is Refusal.NOT_FOUND else ErrorLine(_REFUSED[refusal])

    def not_stored(
        self, refusal: Refusal, command: TextCommand, refused: dict[Refusal, bytes] = _REFUSED
    ) -> Reply:
        """Answer what was not stored; as memcached does, let nobody read a stale value.

        Args:
            refusal: What the store said.
            command: What it was asked.
            refused: Words for refusals.
        """
        line = b"" if command.noreply else refused[refusal]
        no_room = refusal is Refusal.TOO_BIG or refusal is Refusal.NO_MEMORY
        if no_room and command.verb == "set" and self.server.settings.oversized_set_deletes:
            return then(self.store.discard(command.key), lambda _: line)
        return line

    def refuse_meta(self, refusal: Refusal, key: bytes = b"") -> Reply:
        """Answer a meta command that the store refused.

        Args:
            refusal: What the store said.
            key: Of what could not be stored: nobody shall read the old value.
        """
        line = _REFUSED[refusal]
        no_room = refusal is Refusal.TOO_BIG or refusal is Refusal.NO_MEMORY
        if no_room and key and self.server.settings.oversized_set_deletes:
            return then(self.store.discard(key), lambda _: line)
        return line

    def set_outcome(self, outcome: Any, command: TextCommand) -> Reply:
        """Answer a set."""
        return then(outcome, _stored, self, command, _REFUSED)

    def last_words(self, error: RemoteProtocolError) -> bytes:
        """Answer nothing: a wrong line has been answered."""
        return b""

    def _refused(self, item: TextRefusal) -> Reply:
        """Pass on the decoder's answer; as memcached does, let nobody read a stale value."""
        if item.too_large:
            self.server.counters.too_large += 1
            if self.bucket is not None and isinstance(self.store, WatchedStore):
                self.store.too_large(item.key, item.verb.encode())
        removes = item.too_large and item.verb in _DISCARDING and self.bucket is not None
        if removes and self.server.settings.oversized_set_deletes:
            return then(self.store.discard(item.key), lambda _: item.line)
        return item.line

    # login

    def _update_rights(self) -> None:
        user = self.peer.user
        self._decoder.login = user is None
        self.limit_values()
        if user is not None:
            self.bucket = self.server.default_bucket(user)
            if self.bucket is not None:
                self.store = self.bucket.store_for_connection()
                self.observe()

    def limit_values(self) -> None:
        """Take values as long as settings and login allow; called when these have changed."""
        if self.peer.user is None:
            self._decoder.max_value = MAX_LOGIN
        else:
            self.max_value = self._decoder.max_value = self.server.settings.value_limit

    def observe(self) -> None:
        """Use the store as it is, or watched."""
        bucket = self.bucket
        if bucket is not None:
            self.store = observed(self.store, self.server.watch, bucket, self.peer.number)
            usual = self.store is bucket.store
            self.plain_get = bucket.plain_get if usual else None
            self.plain_read = bucket.plain_read if usual else None
            self.plain_set = bucket.plain_set if usual else None

    def _stranger(self, item: TextCommand | TextRefusal) -> Reply:
        """Take a login, in the form of a set, or a goodbye; nothing else."""
        if self.peer.refused:
            return Hangup(UNAUTHENTICATED, "its certificate names no known user")
        if item.verb == "quit":
            return Hangup()
        if isinstance(item, TextCommand) and item.verb in _KEYS:
            return b""  # the end of the line answers for all of its keys
        if item.verb != "set" or (isinstance(item, TextRefusal) and not item.value):
            return UNAUTHENTICATED
        name, space, password = item.value.partition(b" ")
        if not name or not space or not password:
            return BAD_TOKEN
        self.peer.begin("text")
        right = self.peer.check(name.decode("utf-8", "replace"), password)
        return then(right, self._logged_in)

    def _logged_in(self, right: bool) -> Reply:
        self._update_rights()
        return wire.STORED if right else BAD_LOGIN


# Retrieval


def _get(session: TextSession, command: TextCommand) -> Reply:
    key = command.key
    outcome = session.store.get(key)
    if outcome.__class__ is Document:
        return _found(outcome, session, key)
    return then(outcome, _found, session, key)


def _gets(session: TextSession, command: TextCommand) -> Reply:
    return then(session.store.get(command.key), _found_with_cas, session, command.key)


def _gat(session: TextSession, command: TextCommand) -> Reply:
    outcome = session.store.get_and_touch(command.key, command.expiry)
    return then(outcome, _found, session, command.key)


def _gats(session: TextSession, command: TextCommand) -> Reply:
    outcome = session.store.get_and_touch(command.key, command.expiry)
    return then(outcome, _found_with_cas, session, command.key)


def _found(outcome: Any, session: TextSession, key: bytes, cas: int | None = None) -> Reply:
    if session.server.prefixes is not None and cas is None:
        counts = session.server.prefixes.of(key)
        counts.gets += 1
        counts.hits += outcome.__class__ is Document
    if outcome.__class__ is not Document:
        return b"" if outcome is None else session.refuse_key(outcome)
    value = outcome.value
    if len(value) <= COPY_LIMIT:
        return wire.value_reply(key, outcome.flags, value, cas)
    return [wire.value_head(key, outcome.flags, len(value), cas), value, b"\r\n"]


def _found_with_cas(outcome: Any, session: TextSession, key: bytes) -> Reply:
    if outcome.__class__ is not Document:
        return _found(outcome, session, key)
    if session.server.prefixes is not None:
        counts = session.server.prefixes.of(key)
        counts.gets += 1
        counts.hits += 1
    return _found(outcome, session, key, LOCKED_CAS if outcome.locked_until else outcome.cas)


def _end(session: TextSession, command: TextCommand) -> Reply:
    return wire.END


# Storage


def _set(session: TextSession, command: TextCommand) -> Reply:
    if session.server.prefixes is not None:
        _note_set(session, command)
    key, value, flags, expiry = command.key, command.value, command.flags, command.expiry
    outcome: Any = None
    if session.plain_set is not None:  # the store's `set` would come there first, too
        outcome = session.plain_set(key, value, flags, expiry, 0)
    if outcome is None:
        outcome = session.store.set(key, value, flags, expiry)
    if outcome.__class__ is Document:
        return b"" if command.noreply else wire.STORED
    return then(outcome, _stored, session, command, _REFUSED)


def _storage(method: str, refused: dict[Refusal, bytes]) -> Handler:
    def handler(session: TextSession, command: TextCommand) -> Reply:
        _note_set(session, command)
        outcome = getattr(session.store, method)(
            command.key, command.value, command.flags, command.expiry
        )
        return then(outcome, _stored, session, command, refused)

    return handler


def _extension(method: str) -> Handler:
    def handler(session: TextSession, command: TextCommand) -> Reply:
        _note_set(session, command)
        outcome = getattr(session.store, method)(command.key, command.value)
        return then(outcome, _stored, session, command, _NOT_STORED)

    return handler


def _note_set(session: TextSession, command: TextCommand) -> None:
    """Count a storage command under its key's prefix, if anybody wants that."""
    if session.server.prefixes is not None:
        session.server.prefixes.of(command.key).sets += 1


def _cas(session: TextSession, command: TextCommand) -> Reply:
    _note_set(session, command)
    # 0 would mean "whatever is there"; no document has a CAS of 0, so this one cannot match.
    cas = command.cas or LOCKED_CAS
    outcome = session.store.set(command.key, command.value, command.flags, command.expiry, cas)
    return then(outcome, _stored, session, command, _REFUSED)


def _stored(
    outcome: Any, session: TextSession, command: TextCommand, refused: dict[Refusal, bytes]
) -> Reply:
    if outcome.__class__ is Document:
        return b"" if command.noreply else wire.STORED
    return session.not_stored(outcome, command, refused)


# Other operations on a document


def _delete(session: TextSession, command: TextCommand) -> Reply:
    if session.server.prefixes is not None:
        session.server.prefixes.of(command.key).deletes += 1
    return then(session.store.delete(command.key), _changed, command, wire.DELETED)


def _touch(session: TextSession, command: TextCommand) -> Reply:
    outcome = session.store.touch(command.key, command.expiry)
    return then(outcome, _changed, command, wire.TOUCHED)


def _changed(outcome: Any, command: TextCommand, success: bytes) -> Reply:
    if command.noreply:
        return b""
    return success if outcome.__class__ is Document else _REFUSED[outcome]


def _arithmetic(method: str) -> Handler:
    def handler(session: TextSession, command: TextCommand) -> Reply:
        outcome = getattr(session.store, method)(command.key, command.delta, 0, DO_NOT_CREATE)
        return then(outcome, _counted, command)

    return handler


def _counted(outcome: Any, command: TextCommand) -> Reply:
    if command.noreply:
        return b""
    return outcome.value + b"\r\n" if outcome.__class__ is Document else _REFUSED[outcome]


# About the server


def _flush_all(session: TextSession, command: TextCommand) -> Reply:
    if not session.server.settings.flush_allowed:
        return b"" if command.noreply else NOT_ALLOWED
    answer = b"" if command.noreply else wire.OK
    return then(session.store.flush(command.expiry), lambda _: answer)


def _stats(session: TextSession, command: TextCommand) -> Reply:
    bucket = cast("Bucket", session.bucket)
    return then(report(session.server, bucket.store, command.args), _report)


def _report(found: Report) -> Reply:
    if found.line:
        return found.line + b"\r\n"
    if found.lines:
        return [*found.lines, wire.END]
    lines = [
        wire.stat_line(name.encode(), str(value).encode()) for name, value in found.items.items()
    ]
    return b"".join(lines) + wire.END


def _version(session: TextSession, command: TextCommand) -> Reply:
    return wire.version_line(session.server.settings.version.encode())


def _verbosity(session: TextSession, command: TextCommand) -> Reply:
    return b"" if command.noreply else wire.OK


def _config(session: TextSession, command: TextCommand) -> Reply:
    """Answer auto-discovery: whoever asks a fleet for its servers is to come here.

    Source: AWS, "Adding Auto Discovery To Your Client Library".
    """
    if command.args != (b"get", b"cluster") or not _is_fleet(session):
        return wire.ERROR
    host, port = session.peer.host, session.peer.port
    body = f"1\n{host}|{host}|{port}\n".encode()
    return b"CONFIG cluster 0 %d\r\n%b\r\nEND\r\n" % (len(body), body)


def _is_fleet(session: TextSession) -> bool:
    return session.bucket is not None and hasattr(type(session.bucket.store), "open_pipe")


def _watch(session: TextSession, command: TextCommand) -> Reply:
    """Begin to watch: nothing more is asked on this connection."""
    log, bucket = session.server.watch, session.bucket
    if bucket is None or not session.server.may_watch(session.peer):
        return NOT_WATCHED
    streams = streams_of(command.args)
    if streams is None:
        return wire.ERROR
    if log.full:
        return TOO_MANY_WATCHERS
    return Hangup(wire.OK, successor=partial(Watcher, log, streams, bucket))


def _mn(session: TextSession, command: TextCommand) -> Reply:
    return b"MN\r\n"


def _quit(session: TextSession, command: TextCommand) -> Reply:
    return Hangup()


_DISCARDING = frozenset({"set", "ms"})
_KEYS = frozenset({"get", "gets", "gat", "gats"})
_WITHOUT_BUCKET = frozenset(
    {"version", "verbosity", "mn", "quit", "shutdown", "cache_memlimit", "slabs", "lru"}
)
_POSITIONED = _WITHOUT_BUCKET | {"end"}
"""What is answered at once, and waits for nothing: only its reply has a place."""

_PLAIN: dict[str, Handler] = {"get": _get, "set": _set, "end": _end}
"""What a store that answers at once counts itself."""

_HANDLERS: dict[str, Handler] = {
    **_PLAIN,
    "gets": _gets,
    "gat": _gat,
    "gats": _gats,
    "add": _storage("add", _NOT_STORED),
    "replace": _storage("replace", _NOT_STORED),
    "append": _extension("append"),
    "prepend": _extension("prepend"),
    "cas": _cas,
    "delete": _delete,
    "touch": _touch,
    "incr": _arithmetic("increment"),
    "decr": _arithmetic("decrement"),
    "flush_all": _flush_all,
    "stats": _stats,
    "version": _version,
    "verbosity": _verbosity,
    **META_HANDLERS,
    "config": _config,
    "mn": _mn,
    **ADMIN_HANDLERS,
    "watch": _watch,
    "quit": _quit,
}
