# cython: language_level=3
"""The compiled scan of `kvproto.server.scan`: usual requests, from the bytes of a read to replies.

It finds requests in the bytes of a read, has them executed, and writes the replies into one
buffer.  What they mean is asked of the store or of the dialect, and what is out of the ordinary is
answered by the functions that the dialect uses too: nothing is decided here that is not decided
there.

Sizes.  Neither C nor Cython checks any bounds here, so the code does: a header is read where 24
bytes are left, a body where all of it is.  The lengths that a peer sends, of 16 and 32 bits, are
compared with what is left before anything is added to them.  The buffer holds less than `limit`
bytes and one reply, which is at most `COPY_LIMIT` bytes and a head; it lives as long as one call.

Sources: memcached ``protocol_binary.h`` and ``doc/protocol.txt``.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.math cimport ceil
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport sprintf
from libc.string cimport memcmp, memcpy

from kvproto.wire._numbers cimport read_16, read_32, read_64, write_32, write_64, write_number

from kvproto.server import decorators, documents, replies
from kvproto.store import LOCKED_CAS as _LOCKED
from kvproto.store import MARK_BITS as _MARK_BITS
from kvproto.store import Document as _StoreDocument
from kvproto.store import Mark
from kvproto.store import last_access as _last_access
from kvproto.store import marks_at as _marks_at
from kvproto.wire import constants, frames
from kvproto.wire import meta as meta_wire
from kvproto.wire import text as text_wire

__all__ = ["scan_binary", "scan_text"]

# Variables of C, because a module's names would be looked up at each use.
cdef object Document = _StoreDocument
cdef object Request = frames.Request
cdef object TextCommand = text_wire.TextCommand
cdef object encode_outcome = documents.encode_outcome
cdef object encode_hit = documents.encode_hit
cdef object holds_json = documents.holds_json
cdef object set_refused = documents.set_refused
cdef object duration = decorators.duration
cdef object stamped = decorators.stamped
cdef object last_access = _last_access
cdef object marks_at = _marks_at
cdef uint64_t FETCHED = Mark.FETCHED
cdef int MARK_BITS = _MARK_BITS
cdef uint64_t LOCKED_CAS = _LOCKED
cdef size_t MAX_OPAQUE = meta_wire.MAX_OPAQUE
cdef bytes END = text_wire.END
cdef bytes STORED = text_wire.STORED
cdef size_t COPY_LIMIT = replies.COPY_LIMIT
cdef size_t MAX_KEY = constants.MAX_KEY
cdef size_t MAX_WIRE_KEY = constants.MAX_KEY + constants.MAX_COLLECTION_PREFIX
cdef uint16_t GET = constants.Magic.REQUEST << 8 | constants.Opcode.GET
cdef uint16_t SET = constants.Magic.REQUEST << 8 | constants.Opcode.SET
cdef uint16_t JSON = constants.Datatype.JSON
cdef uint8_t REQUEST = constants.Magic.REQUEST
cdef uint8_t FLEX_REQUEST = constants.Magic.FLEX_REQUEST
cdef uint8_t RESPONSE = constants.Magic.RESPONSE
cdef uint8_t FLEX_RESPONSE = constants.Magic.FLEX_RESPONSE

cdef enum:
    HEADER_SIZE = 24
    GET_REPLY_EXTRAS = 4
    SET_EXTRAS = 8
    TOKEN_SIZE = 16
    # Of a text reply, beside key and value: "VALUE ", two numbers, two blanks, line ends, "END".
    VALUE_OVERHEAD = 64
    # Of a meta reply, beside key and value: a code, five numbers, an opaque, blanks, line ends.
    META_OVERHEAD = 192


cdef struct Buffer:
    # Replies that are not in `out` yet, and how many bytes went there by way of it.
    uint8_t *start
    size_t size
    size_t room
    size_t passed


cdef int hand_over(Buffer *buffer, list out) except -1:
    """Append what is in the buffer to `out`, as one part, and empty it."""
    if buffer.size:
        out.append(PyBytes_FromStringAndSize(<char *>buffer.start, buffer.size))
        buffer.passed += buffer.size
        buffer.size = 0
    return 0


cdef inline uint8_t *make_room(Buffer *buffer, size_t more) except NULL:
    """Return where `more` bytes can be written behind what is in the buffer."""
    cdef size_t room
    cdef void *start
    if buffer.room - buffer.size < more:
        room = 2 * (buffer.size + more)
        start = PyMem_Realloc(buffer.start, room)
        if start is NULL:
            raise MemoryError
        buffer.start, buffer.room = <uint8_t *>start, room
    return buffer.start + buffer.size


cdef int put(Buffer *buffer, bytes reply, list out) except -1:
    """Append a reply that Python has made: a short one to what is in the buffer."""
    cdef size_t size = PyBytes_GET_SIZE(reply)
    if size > COPY_LIMIT:
        hand_over(buffer, out)
        out.append(reply)
        buffer.passed += size
    elif size:
        memcpy(make_room(buffer, size), PyBytes_AS_STRING(reply), size)
        buffer.size += size
    return 0


cdef uint8_t *begin(
    Buffer *buffer,
    const uint8_t *header,
    bytes framing,
    uint8_t extras_size,
    uint8_t datatype,
    size_t value_size,
    uint64_t cas,
) except NULL:
    """Begin the reply to a request that succeeded; make room for its extras and value.

    Args:
        buffer: Where it goes; the reply counts from now on.
        header: The request's; gives opcode and opaque.
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
    cdef uint8_t *to = make_room(buffer, HEADER_SIZE + body_size)
    buffer.size += HEADER_SIZE + body_size
    to[0] = FLEX_RESPONSE if framing_size else RESPONSE
    to[1] = header[1]
    to[2] = <uint8_t>framing_size
    to[3] = 0
    to[4] = extras_size
    to[5] = datatype
    to[6] = to[7] = 0
    write_32(to + 8, <uint32_t>body_size)
    memcpy(to + 12, header + 12, 4)
    write_64(to + 16, cas)
    memcpy(to + HEADER_SIZE, PyBytes_AS_STRING(framing), framing_size)
    return to + HEADER_SIZE + framing_size


cdef bint write_hit(
    Buffer *buffer, const uint8_t *header, bytes framing, bint json, document
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
    to = begin(buffer, header, framing, GET_REPLY_EXTRAS, json, size, document.cas)
    write_32(to, flags)
    memcpy(to + GET_REPLY_EXTRAS, PyBytes_AS_STRING(value), size)
    return True


cdef int write_stored(
    Buffer *buffer, const uint8_t *header, bytes framing, bint token, store, document
) except -1:
    """Write the reply to a SET that was stored, with its mutation token or without."""
    cdef uint64_t uuid, seqno
    cdef uint8_t *to
    if token:
        uuid, seqno = store.uuid, document.seqno
        to = begin(buffer, header, framing, TOKEN_SIZE, 0, 0, document.cas)
        write_64(to, uuid)
        write_64(to + 8, seqno)
    else:
        begin(buffer, header, framing, 0, 0, 0, document.cas)
    return 0


def scan_binary(session, dialect, bytes data not None, list out not None, Py_ssize_t limit):
    """Serve binary requests from the beginning of a read; see `kvproto.server.scan.Scan`."""
    cdef const uint8_t *start = <const uint8_t *>PyBytes_AS_STRING(data)
    cdef const uint8_t *header = start
    cdef const char *body
    cdef const char *text
    cdef Py_ssize_t size = 0
    cdef size_t at = 0, end = PyBytes_GET_SIZE(data), prefix = 0, max_body = 0, first = 0, written = 0
    cdef size_t framing_size, extras_size, key_size, body_size, value_size
    cdef uint16_t kind = 0, layout, datatype
    cdef uint64_t cas
    cdef bint json = False, tokens = False, known = False, more = True, plain = True
    cdef double started = 0, ended = 0, took = 0
    cdef bytes framing = b""
    cdef Buffer buffer = Buffer(NULL, 0, 0, 0)
    store = get = set_plainly = timer = collections = None
    request = None  # what is being served, None for a plain GET or SET
    key = None
    try:
        while more:
            # Here the loop goes on after an exception: to enter a "try" for each request costs more
            # than to find it.
            try:
                while size < limit and end - at >= HEADER_SIZE:
                    if not known:
                        # Anything but a plain GET or SET may have changed it.
                        known = True
                        collections, max_body, json, tokens, timer, get, set_plainly, store = (
                            <tuple>dialect.plain_state
                        )
                        prefix = collections is True
                        if timer is not None and get is not None:
                            started = timer()
                    header, first = start + at, at
                    kind, key_size = read_16(header), read_16(header + 2)
                    layout, body_size = read_16(header + 4), read_32(header + 8)
                    if body_size > end - at - HEADER_SIZE or body_size > max_body:
                        break
                    body = <const char *>header + HEADER_SIZE
                    cas = read_64(header + 16)
                    written = buffer.size
                    reply = None
                    if (
                        kind == GET
                        and layout == 0
                        and key_size == body_size
                        and get is not None
                        and prefix < key_size <= prefix + MAX_KEY
                        and not (prefix and body[0])
                        and not cas
                    ):
                        at += HEADER_SIZE + body_size
                        key = PyBytes_FromStringAndSize(body + prefix, key_size - prefix)
                        document = get(key)
                        if timer is not None:
                            ended = timer()
                            took = ended - started
                            framing = duration(took)
                            started = ended
                        if write_hit(&buffer, header, framing, json, document):
                            size += buffer.size - written
                            continue
                        request = Request(key=key, opaque=read_32(header + 12))
                        reply = encode_outcome(document, dialect, request, encode_hit)
                    elif (
                        kind == SET
                        and layout | JSON == SET_EXTRAS << 8 | JSON
                        and get is not None
                        and prefix < key_size <= prefix + MAX_KEY
                        and SET_EXTRAS + key_size <= body_size
                        and not (prefix and body[SET_EXTRAS])
                    ):
                        at += HEADER_SIZE + body_size
                        text = body + SET_EXTRAS
                        key = PyBytes_FromStringAndSize(text + prefix, key_size - prefix)
                        value = PyBytes_FromStringAndSize(
                            text + key_size, body_size - SET_EXTRAS - key_size
                        )
                        flags, expiry = read_32(<uint8_t *>body), read_32(<uint8_t *>body + 4)
                        datatype = layout & JSON
                        document = None if cas else set_plainly(key, value, flags, expiry, datatype)
                        if document is None:
                            document = store.set(key, value, flags, expiry, cas, datatype=datatype)
                        if timer is not None:
                            ended = timer()
                            took = ended - started
                            framing = duration(took)
                            started = ended
                        if type(document) is Document:
                            write_stored(&buffer, header, framing, tokens, store, document)
                            size += buffer.size - written
                            continue
                        request = Request(opcode=1, key=key, opaque=read_32(header + 12))
                        reply = set_refused(document, dialect, request)
                    if reply is not None:
                        if timer is not None:
                            reply = stamped(reply, took)
                    else:
                        extras_size, framing_size = layout >> 8, 0
                        if header[0] == FLEX_REQUEST:
                            framing_size, key_size = key_size >> 8, key_size & 0xFF
                        elif header[0] != REQUEST:
                            break
                        if (
                            key_size > MAX_WIRE_KEY
                            or framing_size + extras_size + key_size > body_size
                        ):
                            break
                        at += HEADER_SIZE + body_size
                        text = body + framing_size + extras_size
                        value_size = body_size - framing_size - extras_size - key_size
                        known = False
                        request = Request(
                            header[0],
                            header[1],
                            read_16(header + 6),
                            layout & 0xFF,
                            read_32(header + 12),
                            cas,
                            PyBytes_FromStringAndSize(body + framing_size, extras_size),
                            PyBytes_FromStringAndSize(text, key_size),
                            PyBytes_FromStringAndSize(text + key_size, value_size),
                            PyBytes_FromStringAndSize(body, framing_size),
                        )
                        reply = dialect.execute(request)
                    if type(reply) is bytes:
                        size += PyBytes_GET_SIZE(reply)
                        put(&buffer, <bytes>reply, out)
                    else:
                        hand_over(&buffer, out)
                        size += session.take_unusual(request, reply, out)
                        if not session.plain:
                            plain = False
                            break
                    request = None
                more = False
            except Exception as error:
                if at == first:
                    raise  # nothing was begun that could be answered
                buffer.size = written
                if request is None:
                    request = Request(opcode=header[1], key=key, opaque=read_32(header + 12))
                hand_over(&buffer, out)
                size += session.take_unusual(request, session.answer_failure(request, error), out)
                request = None
                more = plain = session.plain
        hand_over(&buffer, out)
    finally:
        PyMem_Free(buffer.start)
    return <Py_ssize_t>(end - at) if plain or at < end else -1


cdef size_t skip_key(const uint8_t *text, size_t at, size_t end) noexcept:
    """Return where a key ends that begins at `at`; `at` itself where none does."""
    cdef size_t stop = min(end, at + MAX_KEY + 1), first = at
    while at < stop and 0x21 <= text[at] <= 0x7E:
        at += 1
    return first if at == end or at - first > MAX_KEY else at


cdef size_t read_number(
    const uint8_t *text, size_t at, size_t end, int digits, uint64_t *number
) noexcept:
    """Read a number of at most so many digits, 19; return where it ends, 0 where it is none."""
    cdef size_t first = at
    number[0] = 0
    while at < end and c"0" <= text[at] <= c"9":
        if at - first == <size_t>digits:
            return 0
        number[0] = number[0] * 10 + text[at] - c"0"
        at += 1
    return 0 if at == first or at == end else at


cdef int write_value(Buffer *buffer, bytes key, uint32_t flags, bytes value) except -1:
    """Write the reply to the ``get`` of one key: its value, and the end."""
    cdef size_t key_size = PyBytes_GET_SIZE(key), size = PyBytes_GET_SIZE(value)
    cdef uint8_t *first = make_room(buffer, key_size + size + VALUE_OVERHEAD)
    cdef uint8_t *to = first
    memcpy(to, b"VALUE ", 6)
    memcpy(to + 6, PyBytes_AS_STRING(key), key_size)
    to += 6 + key_size
    to += sprintf(<char *>to, " %u %zu\r\n", flags, size)
    memcpy(to, PyBytes_AS_STRING(value), size)
    memcpy(to + size, b"\r\nEND\r\n", 7)
    buffer.size += to + size + 7 - first
    return 0


cdef struct MetaLine:
    # A line of mg or ms: where its flags begin, which there are, and what four of them say.
    size_t key_at
    size_t key_size
    size_t flags_at
    uint64_t flags
    uint64_t client_flags
    uint64_t expiry
    uint64_t recache
    uint64_t cas


cdef inline uint64_t flag(uint8_t letter) noexcept:
    """Return the bit that stands for a flag, 0 for what is no letter."""
    return <uint64_t>1 << (letter - 0x40) if 0x40 <= letter <= 0x7E else 0


cdef uint64_t flags_of(bytes letters):
    cdef uint64_t flags = 0
    cdef uint8_t letter
    for letter in letters:
        flags |= flag(letter)
    return flags


cdef uint64_t MG_FLAGS = flags_of(b"vqfctshlkONR")
cdef uint64_t MS_FLAGS = flags_of(b"qcskOITFCM")
cdef uint64_t QUIET = flag(c"q")
cdef uint64_t VALUE = flag(c"v")
cdef uint64_t VIVIFY = flag(c"N")


cdef size_t read_flags(
    const uint8_t *text, size_t at, size_t end, uint64_t allowed, MetaLine *line
) noexcept:
    """Read flags of the usual form; return what is behind their line, 0 for all others."""
    cdef uint64_t bit
    cdef size_t most
    cdef uint64_t vivify
    cdef uint8_t letter
    line.flags_at = at
    line.flags = line.client_flags = line.expiry = line.recache = line.cas = 0
    while end - at > 2 and text[at] == c" ":
        letter = text[at + 1]
        bit = flag(letter)
        if not bit & allowed or bit & line.flags:
            return 0
        line.flags |= bit
        at += 2
        if letter == c"O":
            most = min(end, at + MAX_OPAQUE - 1)  # less its letter
            while at < most and 0x21 <= text[at] <= 0x7E:
                at += 1
        elif letter == c"T":
            at = read_number(text, at, end, 9, &line.expiry)
        elif letter == c"R":
            at = read_number(text, at, end, 9, &line.recache)
        elif letter == c"N":
            at = read_number(text, at, end, 9, &vivify)
        elif letter == c"F":
            at = read_number(text, at, end, 9, &line.client_flags)
        elif letter == c"C":
            at = read_number(text, at, end, 19, &line.cas)
            if not line.cas:
                return 0
        elif letter == c"M":
            at = at + 1 if text[at] == c"S" else 0
        if not at:
            return 0
    if end - at < 2 or memcmp(text + at, b"\r\n", 2) != 0:
        return 0
    return at + 2


cdef uint8_t *write_given(
    uint8_t *to, const uint8_t *text, MetaLine *line, document, uint64_t marks, double now
) except NULL:
    """Write what the flags of a line give back, in their order.

    Args:
        to: Where; there is room for `META_OVERHEAD` and the key.
        text: What was read.
        line: Where the flags are in it; they are sound.
        document: What they are about; None where there is nothing.
        marks: What was known of it before.
        now: Unix seconds.

    Returns:
        What is behind it.
    """
    cdef size_t at = line.flags_at, first
    cdef uint64_t seen
    cdef uint8_t letter
    cdef double left
    while text[at] == c" ":
        first = at
        letter = text[at + 1]
        at += 2
        while text[at] != c" " and text[at] != c"\r":
            at += 1
        if letter == c"O":
            memcpy(to, text + first, at - first)
            to += at - first
            continue
        if letter != c"k" and (document is None or not flag(letter) & GIVEN):
            continue
        to[0], to[1] = c" ", letter
        to += 2
        if letter == c"k":
            memcpy(to, text + line.key_at, line.key_size)
            to += line.key_size
        elif letter == c"f":
            to = write_number(to, document.flags)
        elif letter == c"s":
            to = write_number(to, len(document.value))
        elif letter == c"c":
            to = write_number(to, LOCKED_CAS if document.locked_until else document.cas)
        elif letter == c"h":
            to = write_number(to, (marks & FETCHED) != 0)
        elif letter == c"l":
            # Marks tell most of them.
            seen = marks >> MARK_BITS or <uint64_t>last_access(marks, document.cas)
            to = write_number(to, <uint64_t>now - seen if 0 < seen < <uint64_t>now else 0)
        elif document.expires_at:
            left = ceil(<double>document.expires_at - now)
            to = write_number(to, <uint64_t>left if left > 0 else 0)
        else:
            to[0], to[1] = c"-", c"1"
            to += 2
    return to


cdef uint64_t GIVEN = flags_of(b"fschlt")


cdef int answer_meta(
    Buffer *buffer,
    list out,
    const uint8_t *text,
    MetaLine *line,
    const char *code,
    document,
    uint64_t marks,
    double now,
) except -1:
    """Write the answer to mg or ms, with the value where the line asks for it.

    Args:
        buffer: Where it goes.
        out: Takes what is too large for that.
        text: What was read.
        line: Where the line is in it.
        code: Of two letters; of a hit with a value it is ``VA``.
        document: What it is about; None where there is nothing.
        marks: What was known of it before.
        now: Unix seconds.
    """
    cdef bytes value = document.value if document is not None and line.flags & VALUE else None
    cdef uint8_t *first = make_room(buffer, META_OVERHEAD + line.key_size)
    cdef uint8_t *to = first + 2
    if value is not None:
        memcpy(first, b"VA ", 3)
        to = write_number(first + 3, PyBytes_GET_SIZE(value))
    else:
        memcpy(first, code, 2)
    to = write_given(to, text, line, document, marks, now)
    memcpy(to, b"\r\n", 2)
    buffer.size += to + 2 - first
    if value is not None:
        put(buffer, value, out)
        put(buffer, b"\r\n", out)
    return 0


cdef size_t serve_mg(
    Buffer *buffer, list out, read, now, seen, const uint8_t *text, size_t at, size_t end
) except? 0:
    """Serve an mg of the usual form; return what is behind it, 0 for what is left."""
    cdef MetaLine line
    cdef size_t stop
    line.key_at = at + 3
    stop = skip_key(text, line.key_at, end)
    line.key_size = stop - line.key_at
    stop = read_flags(text, stop, end, MG_FLAGS, &line) if line.key_size else 0
    if not stop:
        return 0
    found = read(
        PyBytes_FromStringAndSize(<const char *>text + line.key_at, line.key_size),
        now,
        seen,
        line.recache,
        line.flags & VIVIFY != 0,
    )
    if found is None:
        return 0
    document, marks = <tuple>found
    if document is not None:
        answer_meta(buffer, out, text, &line, b"HD", document, marks, now)
    elif not line.flags & QUIET:
        answer_meta(buffer, out, text, &line, b"EN", None, 0, 0)
    return stop


cdef size_t serve_ms(
    Buffer *buffer, list out, dialect, const uint8_t *text, size_t at, size_t end
) except? 0:
    """Serve an ms of the usual form; return what is behind it, 0 for what is left."""
    cdef MetaLine line
    cdef size_t stop, value_at
    cdef uint64_t size
    line.key_at = at + 3
    stop = skip_key(text, line.key_at, end)
    line.key_size = stop - line.key_at
    if not line.key_size or text[stop] != c" ":
        return 0
    stop = read_number(text, stop + 1, end, 8, &size)
    value_at = read_flags(text, stop, end, MS_FLAGS, &line) if stop else 0
    if (
        not value_at
        or size > <size_t>dialect.max_value
        or end - value_at < size + 2
        or memcmp(text + value_at + size, b"\r\n", 2) != 0
    ):
        return 0
    key = PyBytes_FromStringAndSize(<const char *>text + line.key_at, line.key_size)
    value = PyBytes_FromStringAndSize(<const char *>text + value_at, size)
    document = dialect.plain_set(key, value, line.client_flags, line.expiry, 0, line.cas)
    if document is None and not line.cas and dialect.store.at_once:
        document = dialect.store.set(key, value, line.client_flags, line.expiry)
    if type(document) is not Document:
        if document is None:
            return 0
        put(buffer, dialect.refuse_meta(document, key), out)
    elif not line.flags & QUIET:
        answer_meta(buffer, out, text, &line, b"HD", document, 0, 0)
    return value_at + size + 2


def scan_text(session, dialect, bytes data not None, list out not None, Py_ssize_t limit):
    """Serve ``get`` of one key, ``set``, and plain meta commands; see `Scan`."""
    cdef const uint8_t *text = <const uint8_t *>PyBytes_AS_STRING(data)
    cdef Py_ssize_t size = 0
    cdef size_t at = 0, end = PyBytes_GET_SIZE(data), key_at, stop, value_at, written
    cdef uint64_t flags, expiry, length
    cdef bint noreply, plain = True
    cdef int meta_cmds = 0
    cdef Buffer buffer = Buffer(NULL, 0, 0, 0)
    get, read, set_plainly = dialect.plain_get, dialect.plain_read, dialect.plain_set
    now = seen = None  # the time of reads: asked anew after each write
    if get is None or dialect.server.prefixes is not None:
        return end
    store = dialect.store
    cdef size_t max_value = dialect.max_value
    try:
        while size < limit and end - at > 6:
            written = buffer.passed + buffer.size
            if text[at] == c"m":
                # Before that, the store need not tell which documents are read.
                if text[at + 2] != c" " or not dialect.meta_seen:
                    break
                try:
                    if text[at + 1] == c"g":
                        if now is None:
                            now = store.now()
                            seen = marks_at(FETCHED, now)
                        stop = serve_mg(&buffer, out, read, now, seen, text, at, end)
                    elif text[at + 1] == c"s":
                        now = None
                        stop = serve_ms(&buffer, out, dialect, text, at, end)
                    else:
                        stop = 0
                except Exception:
                    stop = 0  # the dialect meets it again, and tells about it
                if not stop:
                    break
                meta_cmds += 1
                at = stop
                size += buffer.passed + buffer.size - written
                continue
            key_at = at + 4
            stop = skip_key(text, key_at, end)
            if stop == key_at:
                break
            if memcmp(text + at, b"get ", 4) == 0:
                if end - stop < 2 or memcmp(text + stop, b"\r\n", 2) != 0:
                    break
                key = data[key_at:stop]
                try:
                    document = get(key)
                except Exception:
                    break  # the dialect meets it again, and tells about it
                at = stop + 2
                if document is None:
                    put(&buffer, END, out)
                else:
                    value = document.value
                    if <size_t>len(value) <= COPY_LIMIT:
                        write_value(&buffer, key, document.flags, value)
                    else:
                        put(&buffer, b"VALUE %b %d %d\r\n" % (key, document.flags, len(value)), out)
                        put(&buffer, value, out)
                        put(&buffer, b"\r\nEND\r\n", out)
            elif memcmp(text + at, b"set ", 4) == 0:
                if text[stop] != c" ":
                    break
                key = data[key_at:stop]
                stop = read_number(text, stop + 1, end, 9, &flags)
                if not stop or text[stop] != c" ":
                    break
                stop = read_number(text, stop + 1, end, 9, &expiry)
                if not stop or text[stop] != c" ":
                    break
                stop = read_number(text, stop + 1, end, 8, &length)
                if not stop:
                    break
                noreply = end - stop > 8 and memcmp(text + stop, b" noreply", 8) == 0
                if noreply:
                    stop += 8
                value_at = stop + 2
                if (
                    length > max_value
                    or end - stop < length + 4
                    or memcmp(text + stop, b"\r\n", 2) != 0
                    or memcmp(text + value_at + length, b"\r\n", 2) != 0
                ):
                    break
                value = data[value_at : value_at + length]
                at = value_at + length + 2
                reply = now = None
                try:
                    document = set_plainly(key, value, flags, expiry, 0)
                    if document is None:
                        document = store.set(key, value, flags, expiry)
                    if type(document) is not Document:
                        command = TextCommand("set", key, noreply=noreply)
                        reply = dialect.set_outcome(document, command)
                except Exception as error:
                    command = TextCommand("set", key, noreply=noreply)
                    reply = session.answer_failure(command, error)
                if reply is None:
                    if not noreply:
                        put(&buffer, STORED, out)
                elif type(reply) is bytes:
                    put(&buffer, <bytes>reply, out)
                else:
                    hand_over(&buffer, out)
                    size += session.take_unusual(command, reply, out)
                    if not session.plain:
                        plain = False
                        break
            else:
                break
            size += buffer.passed + buffer.size - written
        hand_over(&buffer, out)
    finally:
        PyMem_Free(buffer.start)
        if meta_cmds:
            dialect.server.counters.meta_cmds += meta_cmds
    return <Py_ssize_t>(end - at) if plain or at < end else -1
