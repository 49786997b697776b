# cython: language_level=3
"""Calls into OpenSSL without a foreign function interface between: the compiled part of an engine.

A `Pipe` does for one connection what `kvproto.tls._handles.CffiEngine` does in Python, for the
steps that every request takes.  It knows no pyOpenSSL: it is given the addresses of OpenSSL's
functions and of the connection's objects, and what to call when OpenSSL refuses.

Sizes.  Lengths of Python's objects are checked before they become C's ``int``.  The buffer belongs
to the process; what OpenSSL or a socket has written into it is copied out, or sent, before anything
else can run.

Source: SSL_read(3), SSL_write(3), BIO_s_mem(3), recv(2), send(2).
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport errno
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
    # Also the most that is read at once, as in `kvproto.listeners.transport`.

cdef extern from "<sys/socket.h>":
    # Sockets here never block, so nobody is kept waiting by not letting go of the interpreter.
    ssize_t recv(int, void *, size_t, int)
    ssize_t send(int, const void *, size_t, int)

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
        return self._open(PyBytes_AS_STRING(source), PyBytes_GET_SIZE(source))

    cdef _open(self, const char *record, Py_ssize_t size):
        cdef int got
        if size > BUFFER_SIZE:
            raise ValueError("longer than any record")
        if BIO_write(self._into_ssl, <void *>record, <int>size) != size:
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
    """The compiled twin of `kvproto.tls.shortcut.Shortcut`: the same, read for read.

    Besides, one that was given a socket reads from it and sends to it, where nothing waits there.
    """

    cdef Pipe _pipe
    cdef object _owner
    cdef object _answer
    cdef object _queued
    cdef object _write
    cdef object _transport  # None where others read and send
    cdef int _socket

    def __cinit__(self, Pipe pipe not None, owner, answer, queued, write):
        self._pipe = pipe
        self._owner = owner
        self._answer = answer
        self._queued = queued
        self._write = write
        self._transport = None
        self._socket = -1

    def take_socket(self, transport):
        """Read from, and send to, the socket of a `kvproto.listeners.transport.DirectServer`."""
        self._socket = transport.socket.fileno()
        self._transport = transport

    def send(self, bytes data not None):
        """Encrypt and write what nothing waits before; return whether that was done."""
        cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
        if not 0 < size <= PIECE_SIZE or len(self._queued):
            return False
        if SSL_write(self._pipe._ssl, PyBytes_AS_STRING(data), <int>size) <= 0:
            # OpenSSL says the same once more, to who knows what follows from it.
            return False
        self._transmit()
        return True

    def __call__(self, bytes data not None):
        """Take a read; return what to send, None when nothing was done with it."""
        cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
        if not is_record(PyBytes_AS_STRING(data), size):
            return None
        return self._pipe.drain() if self._serve(PyBytes_AS_STRING(data), size) else b""

    def read(self):
        """Read from the socket, and do what is to be done.

        Returns:
            None where that was all.  Else what was read, ``b""`` at the end of it, which nothing
            was done with, or an error's number.
        """
        cdef ssize_t size = recv(self._socket, buffer, BUFFER_SIZE, 0)
        if size < 0:
            return errno
        if not is_record(buffer, size):
            return PyBytes_FromStringAndSize(buffer, size)
        if self._serve(buffer, size):
            self._transmit()
        return None

    cdef bint _serve(self, const char *record, Py_ssize_t size) except -1:
        """Have a record answered; return whether ciphertext waits to be sent."""
        cdef bytes plaintext, reply
        cdef list replies = []
        cdef Py_ssize_t at
        try:
            plaintext = self._pipe._open(record, size)
        except Error as error:
            self._owner.take_odd_record(error, size)
            return False
        at = self._answer(plaintext, replies)
        if at == PyBytes_GET_SIZE(plaintext):
            size = 0
            for part in replies:
                size += len(part)
            if not size:
                return False
            # What is more than a record is not joined: that would copy a large value.
            if size <= RECORD_SIZE:
                reply = replies[0] if len(replies) == 1 else b"".join(replies)
                if SSL_write(self._pipe._ssl, PyBytes_AS_STRING(reply), <int>size) > 0:
                    return True
                # OpenSSL says the same once more, to who knows what follows from it.
                replies = [reply]
        self._owner.finish_read(replies, plaintext[at:])
        return False

    cdef int _transmit(self) except -1:
        """Send the ciphertext that waits: at once where nothing waits before it."""
        cdef int size
        cdef ssize_t sent
        transport = self._transport
        if (
            transport is None
            or transport.dataBuffer
            or transport._tempDataLen
            or transport._aborting
            or not transport.connected
        ):
            self._write(self._pipe.drain())
            return 0
        size = BIO_read(self._pipe._from_ssl, buffer, BUFFER_SIZE)
        if size <= 0:
            return 0
        sent = send(self._socket, buffer, size, 0)
        if sent < 0:
            sent = 0  # the transport meets the same error, and knows what follows from it
        if sent < size:
            self._write(PyBytes_FromStringAndSize(buffer + sent, size - sent))
        if size == BUFFER_SIZE:
            self._write(self._pipe.drain())
        return 0


cdef inline bint is_record(const char *data, Py_ssize_t size) noexcept:
    """Return whether a read is one whole record of application data."""
    cdef const unsigned char *header = <const unsigned char *>data
    return (
        size >= HEADER_SIZE
        and header[0] == APPLICATION_DATA
        and (header[3] << 8 | header[4]) == size - HEADER_SIZE
    )
