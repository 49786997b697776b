# cython: language_level=3, wraparound=False
"""The compiled twins of the loops in `kvproto.upstream.pipe`: the same, frame for frame.

Sizes.  C checks no bounds of what was read, so the code does: a header is read where 24 bytes are
left, a body where all of it is.  The lengths that a peer sends, of 16 and 32 bits, are
compared with what is left before anything is added to them.

Source: memcached ``doc/protocol-binary.xml``.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from kvproto.wire import constants
from kvproto.wire.encoding import simple_reply as _simple_reply

__all__ = ["scan_requests", "take_out", "take_replies"]

cdef object simple_reply = _simple_reply
cdef int NOOP = constants.Opcode.NOOP
cdef size_t MAX_KEY = constants.MAX_KEY
cdef size_t LARGE_FRAME = 64 * 1024

cdef enum:
    HEADER_SIZE = 24


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


cdef bytes patched(const uint8_t *frame, size_t size, uint8_t opcode, uint32_t opaque):
    """Return a frame with another opcode and opaque."""
    cdef bytes copy = PyBytes_FromStringAndSize(<const char *>frame, <Py_ssize_t>size)
    cdef uint8_t *to = <uint8_t *>PyBytes_AS_STRING(copy)
    to[1] = opcode
    to[12] = <uint8_t>(opaque >> 24)
    to[13] = <uint8_t>(opaque >> 16)
    to[14] = <uint8_t>(opaque >> 8)
    to[15] = <uint8_t>opaque
    return copy


def scan_requests(object pipe, bytes data, dict runs, size_t max_body, Py_ssize_t most_slots):
    """Put the ordinary requests at the beginning of a read into runs; see the Python twin."""
    cdef const uint8_t *start = <const uint8_t *>PyBytes_AS_STRING(data)
    cdef size_t at = 0, end = <size_t>PyBytes_GET_SIZE(data)
    cdef size_t left, key_size, extras_size, body_size, used
    cdef const uint8_t *header
    cdef Plan *plan
    cdef uint8_t opcode
    cdef uint32_t opaque
    cdef list slots = pipe.slots
    cdef Py_ssize_t base = pipe.base
    cdef object fleet = pipe.fleet
    cdef dict places = fleet.places
    cdef object run = None, index, found, last = None
    cdef list entries = None, parts = None
    cdef uint32_t first = 0
    cdef object next_opaque = fleet.next_opaque
    cdef bint writes = False
    while end - at >= HEADER_SIZE and PyList_GET_SIZE(slots) < most_slots:
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
        key = PyBytes_FromStringAndSize(
            <const char *>header + HEADER_SIZE + extras_size, <Py_ssize_t>key_size
        )
        index = places.get(key)
        if index is None:
            index = fleet.index_of(key)
        if index is not last or run is None:
            if run is not None and writes:
                run.write = True
            found = runs.get(index)
            if found is None:
                found = pipe.new_run(index, next_opaque)
                if found is None:
                    run = None
                    break
                runs[index] = found
                next_opaque = (next_opaque + most_slots) & 0xFFFFFFFF
                fleet.next_opaque = next_opaque
            run, last = found, index
            entries, parts = run.entries, run.parts
            first = run.opaque
            writes = False
        parts.append(
            patched(
                header,
                HEADER_SIZE + body_size,
                plan.loud,
                <uint32_t>(first + <uint32_t>PyList_GET_SIZE(entries)),
            )
        )
        if plan.write:
            writes = True
        entries.append((base + PyList_GET_SIZE(slots), opaque, opcode))
        slots.append(None)
        at += HEADER_SIZE + body_size
    if run is not None and writes:
        run.write = True
    return at


def take_replies(object run, bytes data, Py_ssize_t begin, Py_ssize_t end):
    """Take replies to a run out of what a server has sent; see the Python twin."""
    cdef const uint8_t *start = <const uint8_t *>PyBytes_AS_STRING(data)
    cdef const uint8_t *header
    cdef object pipe = run.pipe
    cdef list entries = run.entries
    cdef list slots = pipe.slots
    cdef bint closed = pipe.closed
    cdef Py_ssize_t base = pipe.base
    cdef Py_ssize_t got = run.got, count = PyList_GET_SIZE(entries), at = begin, place
    cdef uint32_t first = run.opaque
    cdef uint32_t opaque
    cdef uint16_t status
    cdef size_t body_size
    cdef uint8_t opcode, silent
    cdef tuple entry
    cdef object answer
    while end - at >= HEADER_SIZE and got < count:
        header = start + at
        if header[0] != 0x81 or u32(header + 12) != <uint32_t>(first + <uint32_t>got):
            run.got = got
            return -1
        body_size = u32(header + 8)
        if body_size > <size_t>(end - at - HEADER_SIZE):
            break
        entry = <tuple>PyList_GET_ITEM(entries, got)
        place = entry[0]
        opaque = entry[1]
        opcode = entry[2]
        status = u16(header + 6)
        silent = plans[opcode].silent
        if (silent == 1 and status == 1) or (silent == 2 and status == 0):
            answer = b""
        else:
            answer = patched(header, HEADER_SIZE + body_size, opcode, opaque)
            if HEADER_SIZE + body_size > LARGE_FRAME:
                pipe.fleet.note_large(run.key(got))
        got += 1
        if not closed:
            slots[place - base] = answer
        at += HEADER_SIZE + <Py_ssize_t>body_size
    run.got = got
    run.complete = got == count
    return at


def take_out(object pipe):
    """Take out of a pipe the answers before which everything has been answered."""
    cdef list slots = pipe.slots
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
    pipe.base += count
    return out
