# cython: language_level=3
"""The compiled form of `kvproto.upstream.fast_path`: the same commands, the same answers.

They differ in what is made for each command: its bytes are written in one piece, and a document
without attributes is read where it lies.

Sizes.  C checks no bounds, so the code does: numbers are read from a document that is at least as
long as its header, and what is written goes into an object that is made as long as it will be.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from kvproto.wire._numbers cimport read_32, read_64, write_32, write_64, write_number

from twisted.internet.defer import Deferred as _Deferred
from twisted.python.failure import Failure

from kvproto.base.log import make_logger
from kvproto.errors import UpstreamError
from kvproto.store import Document as _Document
from kvproto.store import Refusal
from kvproto.store.document import MARK_BITS as _MARK_BITS
from kvproto.store.expiry import deadline
from kvproto.store.operations import Operations
from kvproto.upstream import codec

__all__ = ["Call", "GetAndSet", "Queue", "decode"]

log = make_logger()

# Variables of C, because a module's names would be looked up at each use.
cdef object Deferred = _Deferred
cdef object Document = _Document
cdef object new = object.__new__
cdef object decode_any = codec.decode
cdef int MARK_BITS = _MARK_BITS
cdef object NEVER = 0.0

cdef enum:
    HEAD_SIZE = 48
    CAS_SIZE = 8
    NUMBER_SIZE = 24
    # Room for a length: "$", 20 digits, the end of a line.


@cython.freelist(256)
cdef class Call:
    """See `PythonCall`."""

    cdef public object data, answered, context, deferred, epoch, server, rider
    cdef public bint write
    cdef public Py_ssize_t slot
    cdef public int tries

    def __init__(self, data, answered, bint write=False, context=None, Py_ssize_t slot=-1):
        self.data = data
        self.answered = answered
        self.write = write
        self.context = context
        self.slot = slot


cdef class Queue:
    """See `PythonQueue`."""

    cdef public object _clock, _pending, _turn_end
    cdef public list _out
    cdef public Py_ssize_t _room, _unsent
    cdef public bint _paused, _open

    def send(self, call):
        """See `PythonQueue.send`."""
        self.put(call)

    cdef int put(self, call) except -1:
        pending = self._pending
        if len(pending) >= self._room:
            self._refuse(call)
            return 0
        data = (<Call>call).data if isinstance(call, Call) else call.data
        pending.append(call)
        self._out.append(data)
        if self._turn_end is None:
            self._turn_end = self._clock.callLater(0, self._end_turn)
        elif self._paused:
            self._unsent += len(data)
            if self._unsent >= self.MAX_UNSENT:
                self._room = 0
        return 0

    def _take(self, gets, more):
        """See `PythonQueue._take`."""
        take_first = self._pending.popleft
        while True:
            reply = gets()
            if reply is more:
                return
            if len(self._pending) == len(self._out):
                self._end("protocol", "a reply to no command")
                return
            call = take_first()
            try:
                if type(call) is Call:
                    (<Call>call).answered(reply, call)
                else:
                    call.answered(reply, call)
            except Exception:
                log.failure("a reply could not be used")
            if not self._open:
                return


def send_single(engine, Call call not None):
    """See `python_send_single`."""
    links = <list>engine._links
    link = links[call.slot % len(links)]
    queue = link.ready
    if queue is None or (call.rider is not None and call.rider not in <set>link.companions):
        engine._ride(call, engine.server.link(call.slot))
    else:
        call.server = link.server
        (<Queue?>queue).put(call)


cdef uint8_t *write_length(uint8_t *to, size_t number) noexcept:
    """Write a dollar sign, a number and the end of a line; return what is behind it."""
    to[0] = c"$"
    return end_line(write_number(to + 1, number))


cdef inline uint8_t *write_bytes(uint8_t *to, bytes data) noexcept:
    cdef size_t size = PyBytes_GET_SIZE(data)
    memcpy(to, PyBytes_AS_STRING(data), size)
    return to + size


cdef inline uint8_t *end_line(uint8_t *to) noexcept:
    to[0], to[1] = c"\r", c"\n"
    return to + 2


cdef bytes GET = b"*2\r\n$3\r\nGET\r\n"


cdef bytes get_command(bytes name):
    cdef uint8_t length[NUMBER_SIZE]
    cdef size_t digits = write_length(length, PyBytes_GET_SIZE(name)) - length
    cdef bytes made = PyBytes_FromStringAndSize(
        NULL, PyBytes_GET_SIZE(GET) + digits + PyBytes_GET_SIZE(name) + 2
    )
    cdef uint8_t *to = write_bytes(<uint8_t *>PyBytes_AS_STRING(made), GET)
    memcpy(to, length, digits)
    end_line(write_bytes(to + digits, name))
    return made


cdef bytes set_command(
    bytes start, bytes name, uint32_t flags, uint8_t datatype, uint64_t micros, uint64_t cas,
    bytes value, bytes moment,
):
    cdef uint8_t lengths[2 * NUMBER_SIZE]
    cdef uint8_t *second = lengths + NUMBER_SIZE
    cdef size_t size = HEAD_SIZE + PyBytes_GET_SIZE(value)
    cdef size_t digits = write_length(lengths, PyBytes_GET_SIZE(name)) - lengths
    cdef size_t more_digits = write_length(second, size) - second
    cdef bytes made = PyBytes_FromStringAndSize(
        NULL,
        PyBytes_GET_SIZE(start) + digits + PyBytes_GET_SIZE(name) + 2
        + more_digits + size + 2 + PyBytes_GET_SIZE(moment),
    )
    cdef uint8_t *to = write_bytes(<uint8_t *>PyBytes_AS_STRING(made), start)
    memcpy(to, lengths, digits)
    to = end_line(write_bytes(to + digits, name))
    memcpy(to, second, more_digits)
    to += more_digits
    # As `kvproto.upstream.codec` says; no lock, no attributes, no tombstone, no marks.
    to[0] = 1
    to = write_64(write_64(to + 1, cas), 0)
    to = write_32(to, 0)
    to[0] = 0
    to = write_32(to + 1, flags)
    to[0] = datatype
    to = write_64(to + 1, micros)
    to[0] = 0
    to = write_64(write_32(to + 1, 0), cas)
    write_bytes(end_line(write_bytes(to, value)), moment)
    return made


def decode(bytes data not None):
    """See `kvproto.upstream.codec.decode`."""
    cdef const uint8_t *at = <const uint8_t *>PyBytes_AS_STRING(data)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
    cdef uint64_t locked, expires
    cdef uint32_t read_at
    if size < HEAD_SIZE or at[0] != 1 or read_32(at + 17):
        return decode_any(data)
    locked, expires, read_at = read_64(at + 9), read_64(at + 27), read_32(at + 36)
    document = new(Document)
    document.value = PyBytes_FromStringAndSize(<const char *>at + HEAD_SIZE, size - HEAD_SIZE)
    document.flags = read_32(at + 22)
    document.cas = read_64(at + 1)
    document.expires_at = <double>expires / 1e6 if expires else NEVER
    document.locked_until = <double>locked / 1e6 if locked else NEVER
    document.seqno = read_64(at + 40)
    document.datatype = at[26]
    document.due = document.kind = 0
    document.marks = <uint64_t>read_at << MARK_BITS | at[35]
    document.xattrs = None
    document.deleted = at[21] == 1
    return document


cdef class GetAndSet:
    """See `PythonGetAndSet`."""

    cdef public object now, statistics, keeper
    cdef public object _prefix, _prefixes, _turns_over_at, _engine, _slot, _send
    cdef public bytes _set_head, _expiring_head
    cdef public Py_ssize_t _max_value, _max_item
    cdef public double _ahead
    cdef public int64_t _digits, _cas
    cdef object _hear_get, _hear_set

    def __cinit__(self, *args, **kwargs):
        self._hear_get = self._got
        self._hear_set = self._was_set

    cdef int _ask(self, bytes data, answered, bint write, context, name, prefix, waiting) except -1:
        cdef Call call = Call.__new__(Call)
        call.data = data
        call.answered = answered
        call.write = write
        call.context = context
        call.slot = self._slot(name)
        call.deferred = waiting
        call.epoch = prefix
        call.rider = self.keeper
        self._send(call)
        return 0

    def get(self, key):
        """See `PythonGetAndSet.get`."""
        waiting = Deferred()
        prefix = self._prefix
        if type(key) is bytes and prefix is not None and self._turns_over_at is None:
            name = <bytes>prefix + <bytes>key
        else:
            located = self._locate(key)
            if located is None:
                self.when_loaded(waiting, self.get, key)
                return waiting
            prefix, name = located
        self._ask(get_command(name), self._hear_get, False, key, name, prefix, waiting)
        return waiting

    def _got(self, reply, Call call not None):
        key, waiting = call.context, call.deferred
        if call.epoch is not (self._prefix if type(key) is bytes else self._prefixes.get(key[0])):
            self.get(key).chainDeferred(waiting)
            return
        if type(reply) is bytes:
            try:
                document = decode(reply)
            except UpstreamError:
                waiting.errback(Failure())
                return
            if document.expires_at or document.locked_until or document.deleted:
                now = self.now()
                if document.deleted or 0.0 < document.expires_at <= now:
                    self.statistics.get_misses += 1
                    waiting.callback(None)
                    return
                if document.locked_until <= now:
                    document.locked_until = NEVER
            self.statistics.get_hits += 1
            waiting.callback(document)
        elif reply is None:
            self.statistics.get_misses += 1
            waiting.callback(None)
        else:
            failure = self._engine.settle(reply, call)
            if failure is not None:
                waiting.errback(self.error_of(failure, call))

    def set(
        self, key, value, flags=0, expiry=0, cas=0, *, datatype=0, preserve_expiry=False
    ):
        """See `PythonGetAndSet.set`."""
        expires_at = NEVER
        if expiry:
            now = self.now()
            expires_at = deadline(expiry, now)
        if cas or preserve_expiry or (expires_at and expires_at <= now):
            return Operations.set(
                self, key, value, flags, expiry, cas, datatype=datatype,
                preserve_expiry=preserve_expiry,
            )
        cdef Py_ssize_t size = len(value)
        if size > self._max_value or (
            size + len(key if type(key) is bytes else key[1]) > self._max_item
        ):
            self.statistics.cmd_set += 1
            self.statistics.too_large += 1
            return Refusal.TOO_BIG
        waiting = Deferred()
        document = new(Document)
        document.value = value
        document.flags = flags
        document.expires_at = expires_at
        document.locked_until = NEVER
        document.datatype = datatype
        document.due = document.kind = document.marks = document.cas = document.seqno = 0
        document.xattrs = None
        document.deleted = False
        self._set(key, document, waiting)
        return waiting

    def _set(self, key, document, waiting):
        cdef uint64_t micros = 0
        cdef bytes moment = b""
        prefix = self._prefix
        if type(key) is bytes and prefix is not None and self._turns_over_at is None:
            name = <bytes>prefix + <bytes>key
        else:
            located = self._locate(key)
            if located is None:
                self.when_loaded(waiting, self._set_again, key, document)
                return
            prefix, name = located
        cas = self._fresh_cas()
        document.cas = document.seqno = cas
        expires_at = document.expires_at
        if expires_at:
            micros = round(expires_at * 1e6)
            moment = self.moment(expires_at)
        data = set_command(
            self._expiring_head if micros else self._set_head, name, document.flags,
            document.datatype & 0xFF, micros, cas, document.value, moment,
        )
        self._ask(data, self._hear_set, True, (key, document), name, prefix, waiting)

    def _set_again(self, key, document):
        waiting = Deferred()
        self._set(key, document, waiting)
        return waiting

    def _was_set(self, reply, Call call not None):
        key, document = <tuple>call.context
        if call.epoch is not (self._prefix if type(key) is bytes else self._prefixes.get(key[0])):
            self._set(key, document, call.deferred)
            return
        if type(reply) is bytes:
            if len(<bytes>reply) == CAS_SIZE:
                cas = read_64(<const uint8_t *>PyBytes_AS_STRING(reply))
                document.cas = document.seqno = cas
            elif <bytes>reply != b"OK":
                # It is locked, or has attributes that must be kept: the usual way.
                Operations.set(
                    self, key, document.value, document.flags, document.expires_at,
                    datatype=document.datatype,
                ).chainDeferred(call.deferred)
                return
        elif reply != 1:
            failure = self._engine.settle(reply, call)
            if failure is not None:
                self.fail(call.deferred, failure, call)
            return
        statistics = self.statistics
        statistics.cmd_set += 1
        statistics.total_items += 1
        call.deferred.callback(document)

    cdef int64_t _fresh_cas(self) except -1:
        cdef int64_t cas = <int64_t>((<double>self.now() + self._ahead) * 1e6) * 1000 + self._digits
        if cas <= self._cas:
            cas = self._cas + 1000
        self._cas = cas
        return cas

    def next_cas(self, floor):
        """See `PythonGetAndSet.next_cas`."""
        cas = self._fresh_cas()
        return cas if cas > floor else floor + 1
