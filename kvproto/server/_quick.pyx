# cython: language_level=3
"""The compiled twin of `kvproto.server.quick.serve_in_python`: the same, request for request.

It finds the usual requests in the bytes of a read and writes their replies into one buffer.  What
they mean is asked of the store, and what is out of the ordinary is answered by the functions that
the Python twin asks too: nothing is decided here that is not decided there.

Sizes.  Neither C nor Cython checks any bounds here, so the code does: a header is read where 24
bytes are left, a body where all of it is.  The lengths that a peer sends, of 16 and 32 bits, are
compared with what is left before anything is added to them.  The buffer holds less than `limit`
bytes and one reply, which is at most `COPY_LIMIT` and 28 bytes; it lives as long as one call.

Source: memcached ``protocol_binary.h``.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from kvproto.server import documents, replies
from kvproto.store import Document as _StoreDocument
from kvproto.wire import constants, frames

__all__ = ["serve_quickly"]

# Variables of C, because a module's names would be looked up at each use.
cdef object Document = _StoreDocument
cdef object Request = frames.Request
cdef object answer = documents.answer
cdef object found = documents.found
cdef object set_refused = documents.set_refused
cdef size_t COPY_LIMIT = replies.COPY_LIMIT
cdef size_t MAX_KEY = constants.MAX_KEY
cdef uint16_t GET = constants.Magic.REQUEST << 8 | constants.Opcode.GET
cdef uint16_t SET = constants.Magic.REQUEST << 8 | constants.Opcode.SET
cdef uint8_t RESPONSE = constants.Magic.RESPONSE

cdef enum:
    HEADER_SIZE = 24
    GET_REPLY_EXTRAS = 4
    SET_EXTRAS = 8


cdef struct Buffer:
    # Replies that are not in `out` yet.
    uint8_t *start
    size_t size
    size_t room


cdef uint8_t *reserve(Buffer *buffer, size_t size) except NULL:
    """Return where `size` bytes can be written; adding them to ``buffer.size`` is the caller's."""
    cdef size_t room
    cdef void *start
    if buffer.room - buffer.size < size:
        room = 2 * (buffer.size + size)
        start = PyMem_Realloc(buffer.start, room)
        if start is NULL:
            raise MemoryError
        buffer.start, buffer.room = <uint8_t *>start, room
    return buffer.start + buffer.size


cdef int hand_over(Buffer *buffer, list out) except -1:
    """Append what is in the buffer to `out`, as one part, and empty it."""
    if buffer.size:
        out.append(PyBytes_FromStringAndSize(<char *>buffer.start, buffer.size))
        buffer.size = 0
    return 0


cdef Py_ssize_t take(reply, list out) except -1:
    """Append a reply that Python has made to `out`; return its size in bytes."""
    if type(reply) is bytes:
        out.append(reply)
        return len(<bytes>reply)
    out.extend(reply)
    return sum([len(part) for part in reply])


cdef inline uint16_t read_16(const uint8_t *at) noexcept:
    return <uint16_t>(at[0] << 8 | at[1])


cdef inline uint32_t read_32(const uint8_t *at) noexcept:
    return <uint32_t>read_16(at) << 16 | read_16(at + 2)


cdef inline uint64_t read_64(const uint8_t *at) noexcept:
    return <uint64_t>read_32(at) << 32 | read_32(at + 4)


cdef inline void write_32(uint8_t *to, uint32_t number) noexcept:
    to[0] = number >> 24
    to[1] = number >> 16 & 0xFF
    to[2] = number >> 8 & 0xFF
    to[3] = number & 0xFF


cdef inline void write_header(
    uint8_t *to, const uint8_t *request, uint8_t extras_size, uint32_t body_size, uint64_t cas
) noexcept:
    """Write the header of a success without a key; opcode and opaque are the request's."""
    to[0] = RESPONSE
    to[1] = request[1]
    to[2] = to[3] = 0
    to[4] = extras_size
    to[5] = to[6] = to[7] = 0
    write_32(to + 8, body_size)
    memcpy(to + 12, request + 12, 4)
    write_32(to + 16, <uint32_t>(cas >> 32))
    write_32(to + 20, <uint32_t>cas)


cdef bint write_hit(Buffer *buffer, const uint8_t *request, document) except -1:
    """Write the reply to a GET if it is an ordinary one; return whether it is."""
    cdef uint32_t flags
    cdef size_t size
    cdef uint8_t *to
    if type(document) is not Document or document.locked_until:
        return False
    value = document.value
    if type(value) is not bytes or <size_t>PyBytes_GET_SIZE(value) > COPY_LIMIT:
        return False
    flags = document.flags
    size = GET_REPLY_EXTRAS + PyBytes_GET_SIZE(value)
    to = reserve(buffer, HEADER_SIZE + size)
    write_header(to, request, GET_REPLY_EXTRAS, <uint32_t>size, document.cas)
    write_32(to + HEADER_SIZE, flags)
    memcpy(
        to + HEADER_SIZE + GET_REPLY_EXTRAS, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value)
    )
    buffer.size += HEADER_SIZE + size
    return True


cdef int write_stored(Buffer *buffer, const uint8_t *request, document) except -1:
    """Write the reply to a SET that was stored."""
    write_header(reserve(buffer, HEADER_SIZE), request, 0, 0, document.cas)
    buffer.size += HEADER_SIZE
    return 0


def serve_quickly(
    session, bytes data not None, list out not None, Py_ssize_t limit, size_t max_body
):
    """Serve plain requests from the beginning of a read; see the Python twin."""
    cdef const uint8_t *start = <const uint8_t *>PyBytes_AS_STRING(data)
    cdef const uint8_t *request
    cdef const uint8_t *body
    cdef const char *text
    cdef Py_ssize_t size = 0
    cdef size_t at = 0, end = PyBytes_GET_SIZE(data), key_size, body_size, written
    cdef uint16_t kind, layout
    cdef uint64_t cas
    cdef Buffer buffer = Buffer(NULL, 0, 0)
    store = session.store
    get, set_plainly = session.get, store.set_plainly
    try:
        try:
            while size < limit and end - at >= HEADER_SIZE:
                request = start + at
                body = request + HEADER_SIZE
                kind, key_size = read_16(request), read_16(request + 2)
                layout, body_size = read_16(request + 4), read_32(request + 8)
                if body_size > end - at - HEADER_SIZE or not 0 < key_size <= MAX_KEY:
                    break
                written = buffer.size
                reply = None
                if kind == GET and layout == 0 and key_size == body_size:
                    document = get(PyBytes_FromStringAndSize(<const char *>body, key_size))
                    if not write_hit(&buffer, request, document):
                        plain = Request(opaque=read_32(request + 12))
                        reply = answer(document, session, plain, found)
                elif (
                    kind == SET
                    and layout == SET_EXTRAS << 8
                    and body_size >= SET_EXTRAS + key_size
                ):
                    if body_size > max_body:
                        break
                    text = <const char *>body + SET_EXTRAS
                    key = PyBytes_FromStringAndSize(text, key_size)
                    value = PyBytes_FromStringAndSize(
                        text + key_size, body_size - SET_EXTRAS - key_size
                    )
                    flags, expiry, cas = read_32(body), read_32(body + 4), read_64(request + 16)
                    document = None if cas else set_plainly(key, value, flags, expiry, 0)
                    if document is None:
                        document = store.set(key, value, flags, expiry, cas)
                    if type(document) is Document:
                        write_stored(&buffer, request, document)
                    else:
                        plain = Request(opcode=1, key=key, opaque=read_32(request + 12))
                        reply = set_refused(document, session, plain)
                else:
                    break
                if reply is None:
                    size += buffer.size - written
                else:
                    hand_over(&buffer, out)
                    size += take(reply, out)
                at += HEADER_SIZE + body_size
        except Exception:
            # A defect of ours.  The usual way meets it again, tells about it, and the client.
            pass
        hand_over(&buffer, out)
    finally:
        PyMem_Free(buffer.start)
    return at
