# cython: language_level=3
"""The compiled form of `kvproto.store.file.tail`: the same bytes in the same places.

Sizes.  C checks no bounds, so the code does: a record is written where all of it fits into the map.
"""

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from zlib import crc32 as _crc32

from kvproto.store.document import ALL_MARKS as _ALL_MARKS
from kvproto.store.file import records

__all__ = ["PlainSets", "Tail"]

cdef object crc32 = _crc32
cdef object body_of = records.body_of
cdef object PUT = records.Kind.PUT
cdef object TOMBSTONE = records.Kind.TOMBSTONE
cdef uint64_t ALL_MARKS = _ALL_MARKS
cdef size_t HEAD_SIZE = records.HEAD_SIZE
cdef Py_ssize_t MARGIN = records.MARGIN


cdef inline uint8_t *write_32(uint8_t *to, uint32_t number) noexcept:
    to[0], to[1], to[2], to[3] = number & 0xFF, number >> 8 & 0xFF, number >> 16 & 0xFF, number >> 24
    return to + 4


cdef inline uint8_t *write_64(uint8_t *to, uint64_t number) noexcept:
    return write_32(write_32(to, <uint32_t>number), <uint32_t>(number >> 32))


cdef bytes plain_body(bytes key, document):
    """Return what `kvproto.store.file.records.body_of` would of a plain document."""
    cdef bytes value = document.value
    cdef size_t key_size = PyBytes_GET_SIZE(key), value_size = PyBytes_GET_SIZE(value)
    cdef size_t size = HEAD_SIZE - 4 + key_size + value_size
    cdef double expires_at = document.expires_at
    cdef uint64_t expiry
    cdef uint8_t datatype = document.datatype & 0x0F
    cdef uint32_t flags = document.flags
    cdef uint64_t cas = document.cas, seqno = document.seqno
    cdef bytes body = PyBytes_FromStringAndSize(NULL, size)
    cdef uint8_t *to = write_32(<uint8_t *>PyBytes_AS_STRING(body), <uint32_t>(size + 4))
    memcpy(&expiry, &expires_at, 8)
    to[0], to[1], to[2], to[3] = 1, datatype, key_size & 0xFF, key_size >> 8 & 0xFF
    to = write_32(write_32(to + 4, 0), flags)
    to = write_64(write_64(write_64(to, cas), seqno), expiry)
    memcpy(to, PyBytes_AS_STRING(key), key_size)
    memcpy(to + key_size, PyBytes_AS_STRING(value), value_size)
    return body


cdef class Tail:
    """See `PythonTail`."""

    cdef public Py_ssize_t at, limit, appended
    cdef public uint32_t _seed
    cdef public object _map

    def put(self, key, document, *, bint newest=True):
        """See `PythonTail.put`."""
        self.append(key, document, newest)

    cdef int append(self, key, document, bint newest) except -1:
        cdef bytes body
        cdef Py_buffer view
        cdef Py_ssize_t size, end
        cdef uint8_t *to
        cdef uint32_t checksum
        if (
            newest
            and type(key) is bytes
            and document.xattrs is None
            and not document.deleted
            and not <uint64_t>document.marks & ALL_MARKS
        ):
            body = plain_body(<bytes>key, document)
        else:
            body = body_of(TOMBSTONE if document.deleted else PUT, key, document, newest=newest)
        size = PyBytes_GET_SIZE(body)
        if self.at + 4 + size > self.limit:
            self._roll(size)
        checksum = crc32(body, self._seed)
        end = self.at + 4 + size
        PyObject_GetBuffer(self._map, &view, PyBUF_WRITABLE)
        try:
            if end > view.len:
                raise IndexError("a record does not fit")
            to = write_32(<uint8_t *>view.buf + self.at, checksum)
            memcpy(to, PyBytes_AS_STRING(body), size)
        finally:
            PyBuffer_Release(&view)
        self.at = (end + 7) & ~<Py_ssize_t>7
        self.appended += 1
        return 0


cdef class PlainSets:
    """See `PythonPlainSets`."""

    cdef public Tail _journal
    cdef public bint _at_once
    cdef public object _set_in_memory

    def set_plainly(self, key, value, flags, expiry, datatype, cas=0):
        """See `PythonPlainSets.set_plainly`."""
        cdef Tail journal = self._journal
        if journal.at + 2 * len(value) + MARGIN > journal.limit or not self._at_once:
            return None
        document = self._set_in_memory(key, value, flags, expiry, datatype, cas)
        if document is not None:
            journal.append(key, document, True)
        return document
