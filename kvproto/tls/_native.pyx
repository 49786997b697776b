# cython: language_level=3
"""Calls into OpenSSL without a foreign function interface between: the compiled part of an engine.

A `Pipe` does for one connection what `kvproto.tls._handles.CffiEngine` does in Python, for the
steps that every request takes.  It knows no pyOpenSSL: it is given the addresses of OpenSSL's
functions and of the connection's objects, and what to call when OpenSSL refuses.

Sizes.  Lengths of Python's objects are checked before they become C's ``int``.  The buffer belongs
to the process; what OpenSSL has written into it is copied out before anything else can run.

Source: SSL_read(3), SSL_write(3), BIO_s_mem(3).
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.limits cimport INT_MAX

from OpenSSL.SSL import Error

__all__ = ["Pipe", "Shortcut", "use"]

cdef enum:
    RECORD_SIZE = 16384
    # Plaintext bytes of the largest TLS record, as in `kvproto.tls.outbox`.
    PIECE_SIZE = 4 * RECORD_SIZE
    HEADER_SIZE = 5
    APPLICATION_DATA = 23
    # As in `kvproto.tls.records`.
    BUFFER_SIZE = 8 * RECORD_SIZE

ctypedef int (*Transfer)(void *, void *, int) noexcept

cdef Transfer BIO_read = NULL
cdef Transfer BIO_write = NULL
cdef Transfer SSL_read = NULL
cdef Transfer SSL_write = NULL

cdef char buffer[BUFFER_SIZE]


def use(size_t bio_read, size_t bio_write, size_t ssl_read, size_t ssl_write):
    """Take the addresses of OpenSSL's functions, each an ``int(void *, void *, int)``."""
    global BIO_read, BIO_write, SSL_read, SSL_write
    BIO_read = <Transfer>bio_read
    BIO_write = <Transfer>bio_write
    SSL_read = <Transfer>ssl_read
    SSL_write = <Transfer>ssl_write


cdef class Pipe:
    """One connection's way into OpenSSL and out of it.

    Args:
        ssl: Address of its ``SSL``.
        into_ssl: Address of the memory BIO that it reads from.
        from_ssl: Address of the one that it writes to.
        keep: What keeps the three alive.
        failed: Called with what SSL_read or SSL_write has returned when that is not positive;
            raises.
    """

    cdef void *_ssl
    cdef void *_into_ssl
    cdef void *_from_ssl
    cdef object _keep
    cdef object _failed

    def __cinit__(self, size_t ssl, size_t into_ssl, size_t from_ssl, keep, failed):
        if SSL_write is NULL or not (ssl and into_ssl and from_ssl):
            raise ValueError("an address is missing")
        self._ssl = <void *>ssl
        self._into_ssl = <void *>into_ssl
        self._from_ssl = <void *>from_ssl
        self._keep = keep
        self._failed = failed

    cpdef open(self, record):
        """Feed one whole small record and return its plaintext."""
        cdef bytes source = record if type(record) is bytes else bytes(record)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(source)
        cdef int got
        if size > BUFFER_SIZE:
            raise ValueError("longer than any record")
        if BIO_write(self._into_ssl, PyBytes_AS_STRING(source), <int>size) != size:
            raise MemoryError("OpenSSL has no room for a record")
        got = SSL_read(self._ssl, buffer, RECORD_SIZE)
        if got <= 0:
            return self._failed(got)
        return PyBytes_FromStringAndSize(buffer, got)

    def seal(self, data):
        """Encrypt all of `data`, and return all ciphertext that waits."""
        cdef bytes source = data if type(data) is bytes else bytes(data)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(source)
        cdef int got
        if size > INT_MAX:
            raise OverflowError("more than OpenSSL takes at once")
        got = SSL_write(self._ssl, PyBytes_AS_STRING(source), <int>size)
        if got <= 0:
            return self._failed(got)
        return self.drain()

    cpdef bytes drain(self):
        """Return all ciphertext that waits, however much; empty when there is none."""
        cdef int got = BIO_read(self._from_ssl, buffer, BUFFER_SIZE)
        cdef list pieces
        if got < BUFFER_SIZE:
            return PyBytes_FromStringAndSize(buffer, got) if got > 0 else b""
        pieces = []
        while got > 0:
            pieces.append(PyBytes_FromStringAndSize(buffer, got))
            # A short read has emptied a memory BIO.
            got = BIO_read(self._from_ssl, buffer, BUFFER_SIZE) if got == BUFFER_SIZE else 0
        return b"".join(pieces)


cdef class Shortcut:
    """The compiled twin of `kvproto.tls.shortcut.Shortcut`: the same, read for read."""

    cdef Pipe _pipe
    cdef object _owner
    cdef object _answer
    cdef object _queued
    cdef object _write
    cdef public bint armed

    def __cinit__(self, Pipe pipe not None, owner, answer, queued, write):
        self._pipe = pipe
        self._owner = owner
        self._answer = answer
        self._queued = queued
        self._write = write
        self.armed = False

    def send(self, bytes data not None):
        """Encrypt and write what nothing waits before; return whether that was done."""
        cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
        if not self.armed or not 0 < size <= PIECE_SIZE or len(self._queued):
            return False
        if SSL_write(self._pipe._ssl, PyBytes_AS_STRING(data), <int>size) <= 0:
            # OpenSSL says the same once more, to who knows what follows from it.
            return False
        self._write(self._pipe.drain())
        return True

    def __call__(self, bytes data not None):
        """Take a read; return what to send, None when nothing was done with it."""
        cdef const unsigned char *header = <const unsigned char *>PyBytes_AS_STRING(data)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(data), at
        cdef bytes plaintext, reply
        cdef list replies = []
        cdef int got
        if (
            size < HEADER_SIZE
            or header[0] != APPLICATION_DATA
            or (header[3] << 8 | header[4]) != size - HEADER_SIZE
        ):
            return None
        try:
            plaintext = self._pipe.open(data)
        except Error as error:
            self._owner.take_odd_record(error, size)
            return b""
        at = self._answer(plaintext, replies)
        if at == len(plaintext):
            size = 0
            for part in replies:
                size += len(part)
            if not size:
                return b""
            # What is more than a record is not joined: that would copy a large value.
            if size <= RECORD_SIZE:
                reply = replies[0] if len(replies) == 1 else b"".join(replies)
                got = SSL_write(self._pipe._ssl, PyBytes_AS_STRING(reply), <int>size)
                if got > 0:
                    return self._pipe.drain()
                # OpenSSL says the same once more, to who knows what follows from it.
                replies = [reply]
        self._owner.finish_read(replies, plaintext[at:])
        return b""
