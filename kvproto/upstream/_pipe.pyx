# cython: language_level=3, wraparound=False
"""The compiled twins of `PythonPipe` and `PythonRun` in `kvproto.upstream.pipe`: the same bytes.

They differ in how little is made for each request.  A run writes its frames into one piece of
memory and keeps what belongs to them in an array.  Replies that follow each other in a read and
belong into slots that follow each other are copied in one piece: it stands in the first of these
slots, and the others hold nothing.

Sizes.  C checks no bounds of what was read, so the code does: a header is read where 24 bytes are
left, a body where all of it is.  The lengths that a peer sends, of 16 and 32 bits, are
compared with what is left before anything is added to them.

Source: memcached ``doc/protocol-binary.xml``.
"""

cimport cython
from cpython.bytes cimport (
    PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE, _PyBytes_Resize
)
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

import os

from kvproto.wire import constants
from kvproto.wire.encoding import simple_reply as _simple_reply

__all__ = ["Pipe", "Places", "Run", "take_runs", "use_plans"]

cdef object simple_reply = _simple_reply
cdef int NOOP = constants.Opcode.NOOP
cdef size_t MAX_KEY = constants.MAX_KEY
cdef size_t LARGE_FRAME = 64 * 1024

cdef uint64_t seed = int.from_bytes(os.urandom(8))

cdef enum:
    HEADER_SIZE = 24
    PLACES = 65536
    NOT_KNOWN = -2
    FEW = 2
    # Entries that a run has room for from the beginning.
    MOST_SLOTS = 1024
    # As in `kvproto.upstream.pipe`.


cdef struct Plan:
    uint8_t known
    uint8_t loud
    uint8_t extras
    uint8_t value
    uint8_t write
    uint8_t silent


cdef Plan plans[256]


def use_plans(list table):
    """Take over what `kvproto.upstream.pipe` says of each opcode."""
    for number, plan in enumerate(table):
        plans[number].known = plan is not None
        if plan is not None:
            loud, extras, value, write, silent = plan
            plans[number].loud = loud
            plans[number].extras = extras
            plans[number].value = value
            plans[number].write = write
            plans[number].silent = silent


cdef inline uint32_t u32(const uint8_t *at) noexcept:
    return <uint32_t>at[0] << 24 | <uint32_t>at[1] << 16 | <uint32_t>at[2] << 8 | at[3]


cdef inline uint16_t u16(const uint8_t *at) noexcept:
    return <uint16_t>(<uint16_t>at[0] << 8 | at[1])


cdef inline void patch(
    uint8_t *to, const uint8_t *frame, size_t size, uint8_t opcode, uint32_t opaque
) noexcept:
    """Copy a frame, with another opcode and opaque."""
    memcpy(to, frame, size)
    to[1] = opcode
    to[12] = <uint8_t>(opaque >> 24)
    to[13] = <uint8_t>(opaque >> 16)
    to[14] = <uint8_t>(opaque >> 8)
    to[15] = <uint8_t>opaque


cdef struct Place:
    uint64_t hash
    PyObject *key  # NULL: none
    int32_t index


cdef inline uint64_t hash_of(const uint8_t *at, size_t size) noexcept:
    """Return a number that nobody knows in advance.

    Who guesses keys with the same number makes us forget some of them, and that is all.
    """
    cdef uint64_t number = seed ^ size, word
    while size >= 8:
        memcpy(&word, at, 8)
        number = (number ^ word) * <uint64_t>0x9E3779B97F4A7C15
        number ^= number >> 29
        at += 8
        size -= 8
    word = 0
    memcpy(&word, at, size)
    number = (number ^ word) * <uint64_t>0x9E3779B97F4A7C15
    return number ^ number >> 32


cdef class Places:
    """The compiled twin of `kvproto.upstream.places.PythonPlaces`.

    Each key may lie in one of two places, the newer one in the first.
    """

    cdef Place *_table

    def __cinit__(self):
        self._table = <Place *>PyMem_Calloc(PLACES, sizeof(Place))
        if self._table is NULL:
            raise MemoryError

    def __dealloc__(self):
        cdef Py_ssize_t at
        if self._table is not NULL:
            for at in range(PLACES):
                Py_XDECREF(self._table[at].key)
            PyMem_Free(self._table)

    cdef Place *_find(self, const uint8_t *key, size_t size, uint64_t number) noexcept:
        """Return where a key is, NULL when it is nowhere."""
        cdef Place *place = self._table + (number & (PLACES - 2))
        cdef int more
        for more in range(2):
            if (
                place.key is not NULL
                and place.hash == number
                and <size_t>PyBytes_GET_SIZE(<object>place.key) == size
                and not memcmp(PyBytes_AS_STRING(<object>place.key), key, size)
            ):
                return place
            place += 1
        return NULL

    cdef inline int _index_of(self, const uint8_t *key, size_t size) noexcept:
        cdef Place *place = self._find(key, size, hash_of(key, size))
        return NOT_KNOWN if place is NULL else place.index

    def get(self, bytes key not None):
        """Return the number of the server that has a key, None when that is not known."""
        cdef int index = self._index_of(
            <const uint8_t *>PyBytes_AS_STRING(key), <size_t>PyBytes_GET_SIZE(key)
        )
        return None if index == NOT_KNOWN else index

    def put(self, bytes key not None, int index):
        """Remember a key; another may be forgotten for it."""
        cdef const uint8_t *at = <const uint8_t *>PyBytes_AS_STRING(key)
        cdef size_t size = <size_t>PyBytes_GET_SIZE(key)
        cdef uint64_t number = hash_of(at, size)
        cdef Place *place = self._find(at, size, number)
        if place is NULL:
            place = self._table + (number & (PLACES - 2))
            if place[1].key is NULL or place[0].key is not NULL:
                Py_XDECREF(place[1].key)
                place[1] = place[0]
            Py_INCREF(key)
            place.key = <PyObject *>key
            place.hash = number
        place.index = index

    def forget(self, bytes key not None):
        """Forget a key, if it is known."""
        cdef const uint8_t *at = <const uint8_t *>PyBytes_AS_STRING(key)
        cdef size_t size = <size_t>PyBytes_GET_SIZE(key)
        cdef Place *place = self._find(at, size, hash_of(at, size))
        if place is not NULL:
            Py_DECREF(<object>place.key)
            place.key = NULL


cdef struct Entry:
    Py_ssize_t place
    uint32_t opaque
    uint8_t opcode


@cython.freelist(64)
cdef class Run:
    """Requests of one client that go over one connection; as `PythonRun`."""

    cdef readonly Pipe pipe
    cdef readonly object link
    cdef readonly uint32_t opaque
    cdef readonly bytes data
    cdef readonly bint write
    cdef readonly bint several
    cdef readonly bint complete
    cdef readonly Py_ssize_t got
    cdef readonly int tries
    cdef int _index
    cdef Entry *_entries
    cdef Py_ssize_t _count, _room
    cdef Entry[FEW] _few
    cdef PyObject *_frames  # of which `_used` bytes are written; NULL once they are `data`
    cdef size_t _used

    def __cinit__(self):
        self._entries = self._few
        self._room = FEW
        self.several = True

    def __dealloc__(self):
        if self._entries != self._few:
            PyMem_Free(self._entries)
        Py_XDECREF(self._frames)

    cdef int _add(self, Py_ssize_t place, uint32_t opaque, uint8_t opcode) except -1:
        cdef Entry *more
        if self._count == self._room:
            if self._entries == self._few:
                more = <Entry *>PyMem_Malloc(32 * sizeof(Entry))
                self._room = 32
                if more is not NULL:
                    memcpy(more, self._few, FEW * sizeof(Entry))
            else:
                self._room *= 2
                more = <Entry *>PyMem_Realloc(self._entries, self._room * sizeof(Entry))
            if more is NULL:
                self._room = self._count
                raise MemoryError
            self._entries = more
        self._entries[self._count] = Entry(place, opaque, opcode)
        self._count += 1
        return 0

    cdef int _close(self) except -1:
        """Make `data` of the frames."""
        if <Py_ssize_t>self._used != PyBytes_GET_SIZE(<object>self._frames):
            _PyBytes_Resize(&self._frames, <Py_ssize_t>self._used)
        self.data = <bytes>self._frames
        Py_DECREF(self.data)
        self._frames = NULL
        return 0

    @property
    def entries(self):
        """For each request its slot, and the client's opaque and opcode."""
        cdef Py_ssize_t at
        return [
            (self._entries[at].place, self._entries[at].opaque, self._entries[at].opcode)
            for at in range(self._count)
        ]

    cpdef send(self):
        """Send it, or send it again."""
        self.tries += 1
        link = self.link
        connection = link.ready
        (link if connection is None else connection).send(self)

    def take(self, dict touched, bytes data, Py_ssize_t at, Py_ssize_t end):
        """Take replies; see `kvproto.upstream.memcached.FrameCall.take`."""
        touched[self.pipe] = None
        return self._take(data, at, end)

    def answered(self, reply, call):
        """Take the end of the connection."""
        self.pipe.run_failed(self, reply)

    cdef Py_ssize_t _take(self, bytes data, Py_ssize_t begin, Py_ssize_t end) except -2:
        """Take replies out of a read; return where that ends, -1 at a wrong one."""
        cdef const uint8_t *start = <const uint8_t *>PyBytes_AS_STRING(data)
        cdef const uint8_t *header
        cdef Pipe pipe = self.pipe
        cdef Py_ssize_t at = begin, first, stop, place
        cdef size_t body_size, size
        cdef uint16_t status
        cdef uint8_t silent
        cdef uint8_t *to
        cdef Entry *entry
        cdef bytes piece
        cdef bint wrong = False
        while self._got_room(end - at):
            # How many replies can be one piece, and how long it is.
            first, stop, size = self.got, at, 0
            place = self._entries[first].place
            while self.got < self._count and end - stop >= HEADER_SIZE:
                entry = &self._entries[self.got]
                header = start + stop
                if (
                    header[0] != 0x81
                    or u32(header + 12) != <uint32_t>(self.opaque + <uint32_t>self.got)
                ):
                    wrong = True
                    break
                body_size = u32(header + 8)
                if body_size > <size_t>(end - stop - HEADER_SIZE):
                    break
                if entry.place != place + (self.got - first):
                    break
                status = u16(header + 6)
                silent = plans[entry.opcode].silent
                if not ((silent == 1 and status == 1) or (silent == 2 and status == 0)):
                    size += HEADER_SIZE + body_size
                    if HEADER_SIZE + body_size > LARGE_FRAME:
                        pipe.fleet.note_large(pipe.key_of(self, self.got))
                self.got += 1
                stop += HEADER_SIZE + <Py_ssize_t>body_size
            if self.got == first:
                break
            if not pipe.closed:
                piece = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>size) if size else b""
                to = <uint8_t *>PyBytes_AS_STRING(piece)
                while first < self.got:
                    entry = &self._entries[first]
                    header = start + at
                    body_size = u32(header + 8)
                    status = u16(header + 6)
                    silent = plans[entry.opcode].silent
                    if not ((silent == 1 and status == 1) or (silent == 2 and status == 0)):
                        patch(to, header, HEADER_SIZE + body_size, entry.opcode, entry.opaque)
                        to += HEADER_SIZE + body_size
                    pipe.slots[entry.place - pipe.base] = piece if entry.place == place else b""
                    first += 1
                    at += HEADER_SIZE + <Py_ssize_t>body_size
            at = stop
            if wrong:
                break
        self.complete = self.got == self._count
        return -1 if wrong else at

    cdef inline bint _got_room(self, Py_ssize_t left) noexcept:
        return self.got < self._count and left >= HEADER_SIZE


cdef class Pipe:
    """What each request needs of one client's short way; as `PythonPipe`."""

    cdef readonly object fleet
    cdef readonly object lane
    cdef readonly object outlet
    cdef public dict waiting
    cdef public list slots
    cdef public Py_ssize_t base
    cdef public bytes tail
    cdef public bint closed
    cdef Places _places  # those that `_links` are of
    cdef dict _links  # by number of the server

    def __init__(self, fleet, lane, outlet):
        self.fleet = fleet
        self.lane = lane
        self.outlet = outlet
        self.waiting = {}
        self.slots = []
        self.base = 0
        self.tail = b""
        self.closed = False
        self._places = None
        self._links = {}

    cdef object _link(self, index):
        """Return the connection for ordinary requests to a server, None when there is none now."""
        link = self._links.get(index)
        if link is None:
            link = self.fleet.own_link(index, self.lane)
            if link is None:
                return None
            self._links[index] = link
        return self.fleet.plain_link(index, self.lane) if link.ready is None else link

    def forward(self, bytes data, list out, size_t max_body):
        """Send the ordinary requests that a read begins with; see the Python twin."""
        cdef Py_ssize_t kept = PyBytes_GET_SIZE(self.tail), at
        cdef list runs = []
        cdef Run run
        if kept:
            data = self.tail + data
        at = self._scan(data, runs, LARGE_FRAME if max_body > LARGE_FRAME else max_body)
        for run in runs:
            run._close()
        for run in runs:
            run.send()
        if at < PyBytes_GET_SIZE(data) and self.continues(data, at):
            self.tail = data[at:]
            at = PyBytes_GET_SIZE(data)
        elif at < kept:
            return -1
        elif kept:
            self.tail = b""
        if PyList_GET_SIZE(self.slots) and self.slots[0] is not None:
            out += self._take_out()
        return at - kept

    def scan(self, bytes data, list runs, size_t max_body):
        """Put requests into runs; see the Python twin."""
        cdef Py_ssize_t at = self._scan(data, runs, max_body)
        cdef Run run
        for run in runs:
            run._close()
        return at

    cdef Py_ssize_t _scan(self, bytes data, list runs, size_t max_body) except -1:
        cdef const uint8_t *start = <const uint8_t *>PyBytes_AS_STRING(data)
        cdef size_t at = 0, end = <size_t>PyBytes_GET_SIZE(data)
        cdef size_t left, key_size, extras_size, body_size, used
        cdef const uint8_t *header
        cdef Plan *plan
        cdef uint8_t opcode
        cdef uint32_t opaque
        cdef list slots = self.slots
        cdef object fleet = self.fleet
        cdef Places places = fleet.places
        cdef const uint8_t *key
        cdef int index
        cdef Run run = None, found
        if places is not self._places:
            self._places = places
            self._links = {}
        while end - at >= HEADER_SIZE and PyList_GET_SIZE(slots) < MOST_SLOTS:
            header = start + at
            left = end - at - HEADER_SIZE
            body_size = u32(header + 8)
            # Datatype and partition: 0.
            if header[0] != 0x80 or header[5] or header[6] or header[7] or body_size > left:
                break
            opcode = header[1]
            plan = &plans[opcode]
            key_size = u16(header + 2)
            extras_size = header[4]
            opaque = u32(header + 12)
            if not plan.known:
                if opcode != NOOP or body_size or key_size or extras_size:
                    break
                slots.append(simple_reply(NOOP, 0, opaque))
                at += HEADER_SIZE
                continue
            used = extras_size + key_size
            if (
                extras_size != plan.extras
                or key_size == 0
                or key_size > MAX_KEY
                or body_size > max_body
                or used > body_size
                or (used != body_size and not plan.value)
            ):
                break
            key = header + HEADER_SIZE + extras_size
            index = places._index_of(key, key_size)
            if index == NOT_KNOWN:
                index = fleet.index_of(
                    PyBytes_FromStringAndSize(<const char *>key, <Py_ssize_t>key_size)
                )
            if run is None or index != run._index:
                run = None
                for found in runs:
                    if found._index == index:
                        run = found
                        break
                if run is None:
                    link = self._link(index)
                    if link is None:
                        break
                    run = Run.__new__(Run)
                    run.pipe = self
                    run.link = link
                    run._index = index
                    run.opaque = fleet.next_opaque
                    fleet.next_opaque = <uint32_t>(run.opaque + <uint32_t>MOST_SLOTS)
                    # What is left of the read is more than it can need.
                    new_frames(run, <Py_ssize_t>(end - at))
                    runs.append(run)
            run._add(self.base + PyList_GET_SIZE(slots), opaque, opcode)
            patch(
                <uint8_t *>PyBytes_AS_STRING(<object>run._frames) + run._used,
                header,
                HEADER_SIZE + body_size,
                plan.loud,
                run.opaque + <uint32_t>(run._count - 1),
            )
            run._used += HEADER_SIZE + body_size
            if plan.write:
                run.write = True
            slots.append(None)
            at += HEADER_SIZE + body_size
        return <Py_ssize_t>at

    def flush(self):
        """Hand on what may leave; see the Python twin."""
        cdef list slots = self.slots, out
        if self.closed or not PyList_GET_SIZE(slots) or slots[0] is None:
            return
        out = self._take_out()
        if out or not PyList_GET_SIZE(slots):
            self.outlet.forwarded(out, not PyList_GET_SIZE(slots))
        if PyList_GET_SIZE(self.slots) and self.slots[0] is not None:
            self.stop_at_unknown()

    def take_out(self):
        """Take out the answers before which everything has been answered."""
        return self._take_out()

    cdef list _take_out(self):
        cdef list slots = self.slots
        cdef list out = []
        cdef Py_ssize_t count = 0, size = PyList_GET_SIZE(slots)
        cdef object answer
        while count < size:
            answer = <object>PyList_GET_ITEM(slots, count)
            if type(answer) is not bytes:
                break
            if PyBytes_GET_SIZE(answer):
                out.append(answer)
            count += 1
        if count == size:
            slots.clear()
        else:
            del slots[:count]
        self.base += count
        return out


cdef extern from *:
    """
    static PyObject *kvproto_new_bytes(Py_ssize_t size) {
        return PyBytes_FromStringAndSize(NULL, size);
    }
    """
    PyObject *kvproto_new_bytes(Py_ssize_t size)


cdef int new_frames(Run run, Py_ssize_t size) except -1:
    """Give a run memory for its frames."""
    run._frames = kvproto_new_bytes(size)
    if run._frames is NULL:
        raise MemoryError
    return 0


def take_runs(
    object pending, Py_ssize_t unsent, dict touched, bytes data, Py_ssize_t at, Py_ssize_t end
):
    """Give replies to runs; see `kvproto.upstream.memcached.take_in_python`."""
    cdef Py_ssize_t waiting = len(pending)
    cdef Run run
    while waiting > unsent and end - at >= HEADER_SIZE:
        call = pending[0]
        if type(call) is not Run:
            break
        run = <Run>call
        touched[run.pipe] = None
        at = run._take(data, at, end)
        if at < 0 or not run.complete:
            break
        pending.popleft()
        waiting -= 1
    return at
