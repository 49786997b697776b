"""``watch``: a connection that is told what the server does, line by line.

A `WatchLog` knows who watches and hands each line to those who want it; a `Watcher` is what becomes
of the session of a connection that has said ``watch``.  Nobody else pays for it: what there is to
tell of documents is noticed by `kvproto.server.watched.WatchedStore`, which stands in front of a
store only while somebody watches.

What a watcher may keep unsent has a limit.  Lines beyond it are left out and counted, and as soon
as there is room again the next line says how many: ``skipped=17``.

Source: memcached 1.6.45, ``logger.c``; ``doc/protocol.txt``, "Watchers".
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntFlag
from typing import Any
from urllib.parse import quote_from_bytes

from kvproto.base.addresses import host_of
from kvproto.server.replies import Hangup
from kvproto.store import Document, Key, Mark, accessed_at
from kvproto.store.slab_classes import item_size, slab_class

__all__ = [
    "BUFFER_BYTES",
    "OF_DOCUMENTS",
    "Stream",
    "WatchLog",
    "Watcher",
    "conn_close",
    "conn_new",
    "deletion",
    "eviction",
    "item_get",
    "item_store",
    "streams_of",
]  # fmt: skip

BUFFER_BYTES = 256 * 1024
"""Bytes that may wait for one watcher; memcached's ``watcher_logbuf_size``."""

MOST_WATCHERS = 20


class Stream(IntFlag):
    """What can be watched."""

    FETCHERS = 1
    MUTATIONS = 2
    DELETIONS = 4
    EVICTIONS = 8
    CONNEVENTS = 16


OF_DOCUMENTS = Stream.FETCHERS | Stream.MUTATIONS | Stream.DELETIONS
"""What a `kvproto.server.watched.WatchedStore` tells of."""

_STREAMS = {
    **{stream.name.lower().encode(): stream for stream in Stream if stream.name},
    # What memcached knows too: it happens in a debug build, in slabs, or in the proxy.
    **dict.fromkeys(
        (b"rawcmds", b"sysevents", b"proxyreqs", b"proxyevents", b"proxyuser"), Stream(0)
    ),
}


def streams_of(words: tuple[bytes, ...]) -> Stream | None:
    """Return which streams a client names, fetchers where it names none; None for a wrong name."""
    wanted = Stream(0)
    for word in words:
        if word not in _STREAMS:
            return None
        wanted |= _STREAMS[word]
    return wanted if words else Stream.FETCHERS


class WatchLog:
    """Who watches, and what.

    Args:
        now: Returns unix time in seconds.
        wanted_changed: Called when another set of streams is wanted than before.
        later: Called with a watcher that has something to send, which is to `proceed` at the end
            of the reactor's turn; None: each line is sent by itself.

    Attributes:
        now: As given.
        watchers: They, in the order in which they came.
        wanted: What any of them wants.
        written: Lines that there were, as long as somebody wanted them.
        sent: Lines that were given to a watcher, for each of them.
        skipped: Lines that did not fit.
    """

    def __init__(
        self,
        now: Callable[[], float],
        wanted_changed: Callable[[], None],
        later: Callable[[Any], None] | None = None,
    ) -> None:
        self.now = now
        self._wanted_changed = wanted_changed
        self.later = later
        self.watchers: dict[Watcher, None] = {}
        self.wanted = Stream(0)
        self.written = self.sent = self.skipped = 0

    @property
    def full(self) -> bool:
        """Whether there are as many watchers as there may be."""
        return len(self.watchers) >= MOST_WATCHERS

    def add(self, watcher: Watcher) -> None:
        """Tell somebody from now on."""
        self.watchers[watcher] = None
        self._look_again()

    def discard(self, watcher: Watcher) -> None:
        """Tell somebody nothing more, if it was told."""
        self.watchers.pop(watcher, None)
        self._look_again()

    def _look_again(self) -> None:
        wanted = Stream(0)
        for watcher in self.watchers:
            wanted |= watcher.streams
        if wanted != self.wanted:
            self.wanted = wanted
            self._wanted_changed()

    def tell(self, stream: Stream, text: bytes, bucket: Any = None) -> None:
        """Tell those who want it.

        Args:
            stream: What it belongs to.
            text: The line, without its time and number, and without its line end.
            bucket: The `kvproto.server.buckets.Bucket` whose watchers hear of it; None: all do.
        """
        if not stream & self.wanted:
            return
        self.written += 1
        # As for all of memcached's numbers of a second's parts, but with the zeros in front.
        seconds, micros = divmod(int(self.now() * 1_000_000), 1_000_000)
        line = b"ts=%d.%06d gid=%d %b\n" % (seconds, micros, self.written, text)
        for watcher in list(self.watchers):
            if watcher.streams & stream and bucket in {None, watcher.bucket}:
                watcher.take(line)


class Watcher:
    """The session of a connection that watches: it is told, and asks nothing more.

    To its connection it is what a `kvproto.server.session.Session` is, and the session's dialect.

    Args:
        log: Who tells it.
        streams: What it wants to hear.
        bucket: Whose documents it is told of, a `kvproto.server.buckets.Bucket`.
        connection: Sends, when it is asked to `proceed`.
    """

    plain = False
    partial = False
    forwarding = False
    waits = False
    more = yields = False
    reads = True

    def __init__(self, log: WatchLog, streams: Stream, bucket: Any, connection: Any) -> None:
        self.streams = streams
        self.bucket = bucket
        self.hangup: Hangup | None = None
        self.moved = False
        self.dialect = self
        self._log = log
        self._connection = connection
        self._lines: list[bytes] = []
        self.size = 0
        self._skipped = 0
        self._paused = False
        log.add(self)

    # what the log says

    def take(self, line: bytes) -> None:
        """Keep a line to be sent, if there is room for it."""
        if self.size + len(line) > BUFFER_BYTES:
            self._skipped += 1
            self._log.skipped += 1
            return
        if self._skipped:
            line = b"skipped=%d\n%b" % (self._skipped, line)
            self._skipped = 0
        self._log.sent += 1
        self._lines.append(line)
        self.size += len(line)
        if not self._paused:
            if self._log.later is None:
                self._connection.proceed()
            else:
                self._log.later(self._connection)

    # what the connection says

    @property
    def idle(self) -> bool:
        """Whether nothing waits to be sent."""
        return not self._lines

    def receive(self, data: bytes, out: list[bytes]) -> bool:
        """Ignore whatever the client sends."""
        return True

    def proceed(self, out: list[bytes]) -> bool:
        """Hand over what waits to be sent."""
        if self._lines and not self._paused:
            out.append(b"".join(self._lines))
            self._lines.clear()
            self.size = 0
            self.moved = True
        return True

    def pause(self) -> None:
        """Keep what there is to tell: the transport has enough to send."""
        self._paused = True

    def resume(self) -> None:
        """Send again; `proceed` follows."""
        self._paused = False

    def drain(self) -> None:
        """Close."""
        self.hangup = Hangup()

    end_of_input = drain

    def end(self, hangup: Hangup | None = None) -> None:
        """Be told nothing more."""
        self.hangup = self.hangup or hangup or Hangup()
        self._lines.clear()
        self.size = 0
        self._log.discard(self)

    def observe(self) -> None:
        """Do nothing: there is no store here."""


# The lines


def _name(key: Key) -> bytes:
    return quote_from_bytes(key if isinstance(key, bytes) else key[1], safe="").encode()


def _class_of(key: Key, document: Document | None) -> int:
    return 0 if document is None else slab_class(item_size(key, document))


def item_get(key: Key, status: bytes, document: Document | None, connection: int) -> bytes:
    """Tell of a document that was looked for.

    Args:
        key: Which.
        status: ``found``, ``not_found`` or ``expired``.
        document: What was found.
        connection: Whose request it was.
    """
    return b"type=item_get key=%b status=%b clsid=%d cfd=%d size=%d" % (
        _name(key),
        status,
        _class_of(key, document),
        connection,
        0 if document is None else len(document.value),
    )


def item_store(
    key: Key, status: bytes, verb: bytes, ttl: int, document: Document, connection: int
) -> bytes:
    """Tell of a document that was stored, or was not.

    Args:
        key: Which.
        status: ``stored``, ``not_stored``, ``exists``, ``not_found``, ``too_large`` or
            ``no_memory``.
        verb: What was asked for: ``set``, ``add``, ...
        ttl: How many seconds it has to live, 0 for ever.
        document: What was stored, or was to be.
        connection: Whose request it was.
    """
    return b"type=item_store key=%b status=%b cmd=%b ttl=%d clsid=%d cfd=%d size=%d" % (
        _name(key),
        status,
        verb,
        ttl,
        _class_of(key, document),
        connection,
        len(document.value),
    )


def deletion(key: Key, verb: bytes, document: Document | None) -> bytes:
    """Tell of a document that a client has deleted, None where nobody knows what it was."""
    size = 0 if document is None else len(document.value)
    number = _class_of(key, document)
    return b"type=deleted key=%b cmd=%b clsid=%d size=%d" % (_name(key), verb, number, size)


def eviction(key: Key, document: Document, now: float) -> bytes:
    """Tell of a document that has made room for others."""
    fetched = b"yes" if document.marks & Mark.FETCHED else b"no"
    ttl = int(document.expires_at - now) if document.expires_at else -1
    idle = max(0, int(now) - (accessed_at(document) or int(now)))
    return b"type=eviction key=%b fetch=%b ttl=%d la=%d clsid=%d size=%d" % (
        _name(key), fetched, ttl, idle, _class_of(key, document), len(document.value),
    )  # fmt: skip


def _from(peer: Any) -> bytes:
    host: str = host_of(peer)
    transport = "tcp" if host else "local"
    port = getattr(peer, "port", 0)
    return f"rip={host or 'unix'} rport={port} transport={transport}".encode()


def conn_new(peer: Any, connection: int) -> bytes:
    """Tell of a new connection."""
    return b"type=conn_new %b cfd=%d" % (_from(peer), connection)


def conn_close(peer: Any, connection: int, reason: str) -> bytes:
    """Tell of one that has ended."""
    return b"type=conn_close %b reason=%b cfd=%d" % (_from(peer), reason.encode(), connection)
