# cython: language_level=3
"""The compiled twin of `kvproto.server.quick.serve_in_python`: the same, request for request.

It finds the usual requests in the bytes of a read and writes their replies into one buffer.  What
they mean is asked of the store, and what is out of the ordinary is answered by the functions that
the Python twin asks too: nothing is decided here that is not decided there.

Sizes.  Neither C nor Cython checks any bounds here, so the code does: a header is read where 24
bytes are left, a body where all of it is.  The lengths that a peer sends, of 16 and 32 bits, are
compared with what is left before anything is added to them.  The buffer holds less than `limit`
bytes and one reply, which is at most `COPY_LIMIT` and 31 bytes; it lives as long as one call.

Source: memcached ``protocol_binary.h``.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from kvproto.server import decorators, documents, replies
from kvproto.store import Document as _StoreDocument
from kvproto.wire import constants, frames

__all__ = ["serve_quickly"]

# Variables of C, because a module's names would be looked up at each use.
cdef object Document = _StoreDocument
cdef object Request = frames.Request
cdef object encode_outcome = documents.encode_outcome
cdef object encode_hit = documents.encode_hit
cdef object holds_json = documents.holds_json
cdef object set_refused = documents.set_refused
cdef object duration = decorators.duration
cdef object stamped = decorators.stamped
cdef size_t COPY_LIMIT = replies.COPY_LIMIT
cdef size_t MAX_KEY = constants.MAX_KEY
cdef uint16_t GET = constants.Magic.REQUEST << 8 | constants.Opcode.GET
cdef uint16_t SET = constants.Magic.REQUEST << 8 | constants.Opcode.SET
cdef uint16_t JSON = constants.Datatype.JSON
cdef uint8_t RESPONSE = constants.Magic.RESPONSE
cdef uint8_t FLEX_RESPONSE = constants.Magic.FLEX_RESPONSE

cdef enum:
    HEADER_SIZE = 24
    GET_REPLY_EXTRAS = 4
    SET_EXTRAS = 8
    TOKEN_SIZE = 16


cdef struct Buffer:
    # Replies that are not in `out` yet.
    uint8_t *start
    size_t size
    size_t room


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


cdef inline void write_64(uint8_t *to, uint64_t number) noexcept:
    write_32(to, <uint32_t>(number >> 32))
    write_32(to + 4, <uint32_t>number)


cdef uint8_t *begin(
    Buffer *buffer,
    const uint8_t *request,
    bytes framing,
    uint8_t extras_size,
    uint8_t datatype,
    size_t value_size,
    uint64_t cas,
) except NULL:
    """Begin the reply to a request that succeeded; make room for its extras and value.

    Args:
        buffer: Where it goes; the reply counts from now on.
        request: Gives opcode and opaque.
        framing: Encoded framing extras, ``b""`` for none.
        extras_size: Bytes of extras.
        datatype: The value's.
        value_size: Bytes of the value.
        cas: The document's.

    Returns:
        Where the extras must be written, and the value behind them.
    """
    cdef size_t framing_size = PyBytes_GET_SIZE(framing)
    cdef size_t body_size = framing_size + extras_size + value_size
    cdef size_t room
    cdef void *start
    cdef uint8_t *to
    if buffer.room - buffer.size < HEADER_SIZE + body_size:
        room = 2 * (buffer.size + HEADER_SIZE + body_size)
        start = PyMem_Realloc(buffer.start, room)
        if start is NULL:
            raise MemoryError
        buffer.start, buffer.room = <uint8_t *>start, room
    to = buffer.start + buffer.size
    buffer.size += HEADER_SIZE + body_size
    to[0] = FLEX_RESPONSE if framing_size else RESPONSE
    to[1] = request[1]
    to[2] = <uint8_t>framing_size
    to[3] = 0
    to[4] = extras_size
    to[5] = datatype
    to[6] = to[7] = 0
    write_32(to + 8, <uint32_t>body_size)
    memcpy(to + 12, request + 12, 4)
    write_64(to + 16, cas)
    memcpy(to + HEADER_SIZE, PyBytes_AS_STRING(framing), framing_size)
    return to + HEADER_SIZE + framing_size


cdef bint write_hit(
    Buffer *buffer, const uint8_t *request, bytes framing, bint json, document
) except -1:
    """Write the reply to a GET if it is an ordinary one; return whether it is."""
    cdef uint32_t flags
    cdef size_t size
    cdef uint8_t *to
    if type(document) is not Document or document.locked_until:
        return False
    value = document.value
    if type(value) is not bytes:
        return False
    size = PyBytes_GET_SIZE(value)
    if size > COPY_LIMIT:
        return False
    flags = document.flags
    json = json and holds_json(document)
    to = begin(buffer, request, framing, GET_REPLY_EXTRAS, json, size, document.cas)
    write_32(to, flags)
    memcpy(to + GET_REPLY_EXTRAS, PyBytes_AS_STRING(value), size)
    return True


cdef int write_stored(
    Buffer *buffer, const uint8_t *request, bytes framing, bint token, store, document
) except -1:
    """Write the reply to a SET that was stored, with its mutation token or without."""
    cdef uint64_t uuid, seqno
    cdef uint8_t *to
    if token:
        uuid, seqno = store.uuid, document.seqno
        to = begin(buffer, request, framing, TOKEN_SIZE, 0, 0, document.cas)
        write_64(to, uuid)
        write_64(to + 8, seqno)
    else:
        begin(buffer, request, framing, 0, 0, 0, document.cas)
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
    cdef size_t prefix = bool(session.collections)
    cdef uint16_t kind, layout, datatype
    cdef uint64_t cas
    cdef bint json = session.json, tokens = session.tokens
    cdef double started = 0, ended = 0
    cdef bytes framing = b""
    cdef Buffer buffer = Buffer(NULL, 0, 0)
    store, timer = session.store, session.timer
    get, set_plainly = session.get, store.set_plainly
    if timer is not None:
        started = timer()
    try:
        try:
            while size < limit and end - at >= HEADER_SIZE:
                request = start + at
                body = request + HEADER_SIZE
                kind, key_size = read_16(request), read_16(request + 2)
                layout, body_size = read_16(request + 4), read_32(request + 8)
                if body_size > end - at - HEADER_SIZE or not prefix < key_size <= prefix + MAX_KEY:
                    break
                if kind == GET and layout == 0 and key_size == body_size and not read_64(request + 16):
                    text = <const char *>body
                    if prefix and text[0]:
                        break
                    document = get(PyBytes_FromStringAndSize(text + prefix, key_size - prefix))
                elif (
                    kind == SET
                    and layout | JSON == SET_EXTRAS << 8 | JSON
                    and body_size >= SET_EXTRAS + key_size
                ):
                    text = <const char *>body + SET_EXTRAS
                    if body_size > max_body or (prefix and text[0]):
                        break
                    key = PyBytes_FromStringAndSize(text + prefix, key_size - prefix)
                    value = PyBytes_FromStringAndSize(
                        text + key_size, body_size - SET_EXTRAS - key_size
                    )
                    flags, expiry, cas = read_32(body), read_32(body + 4), read_64(request + 16)
                    datatype = layout & JSON
                    document = None if cas else set_plainly(key, value, flags, expiry, datatype)
                    if document is None:
                        if not store.at_once:
                            break
                        document = store.set(key, value, flags, expiry, cas, datatype=datatype)
                else:
                    break
                if timer is not None:
                    ended = timer()
                    framing = duration(ended - started)
                written = buffer.size
                reply = None
                if kind == SET:
                    if type(document) is Document:
                        write_stored(&buffer, request, framing, tokens, store, document)
                    else:
                        plain = Request(opcode=1, key=key, opaque=read_32(request + 12))
                        reply = set_refused(document, session, plain)
                elif not write_hit(&buffer, request, framing, json, document):
                    plain = Request(opaque=read_32(request + 12))
                    reply = encode_outcome(document, session, plain, encode_hit)
                if reply is None:
                    size += buffer.size - written
                else:
                    hand_over(&buffer, out)
                    size += take(reply if timer is None else stamped(reply, ended - started), out)
                started = ended
                at += HEADER_SIZE + body_size
        except Exception:
            # A defect of ours.  The usual way meets it again, tells about it, and the client.
            pass
        hand_over(&buffer, out)
    finally:
        PyMem_Free(buffer.start)
    return at
