# cython: language_level=3
"""The compiled form of `kvproto.server.answering`: the same behaviour."""

from cpython.bytes cimport PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_SIZE

from time import perf_counter as _perf_counter

from kvproto.server.counters import MEASURED_READS as _MEASURED_READS
from kvproto.server.replies import JOIN_LIMIT as _JOIN_LIMIT

__all__ = ["Answering", "forward"]

cdef object perf_counter = _perf_counter
cdef object MEASURED_READS = _MEASURED_READS
cdef Py_ssize_t JOIN_LIMIT = _JOIN_LIMIT


cdef Py_ssize_t size_of(list replies) except -1:
    cdef Py_ssize_t size = 0
    for reply in replies:
        size += len(reply)
    return size


cdef class Answering:
    """See `PythonAnswering`."""

    cdef public object session, last_read, _counters, _server, _write_alone
    cdef public Py_ssize_t _held, _unread_replies, _written
    cdef public bint _answered, _closed, _paused

    def answer(self, bytes data not None, list replies not None):
        """See `PythonAnswering.answer`."""
        cdef Py_ssize_t size = PyBytes_GET_SIZE(data), written
        cdef bint settled
        session = self.session
        if session is None:
            return 0
        counters = self._counters
        cdef Py_ssize_t unmeasured = counters.unmeasured - 1
        counters.unmeasured = unmeasured
        started = None if unmeasured else perf_counter()
        try:
            settled = session.receive(data, replies)
        except Exception:
            self._not_served(session)
            settled = False
        if started is not None:
            counters.unmeasured = MEASURED_READS
            self._server.requests.took_read(data, perf_counter() - started)
        counters.bytes_read += size
        if PyList_GET_SIZE(replies):
            written = size_of(replies)
            if written > JOIN_LIMIT:
                self._written = written
            counters.bytes_written += written
        self.last_read = counters.recently
        if settled and not self._held:
            return size
        self._answered = True
        return 0

    def forwarded(self, list replies not None, bint last):
        """See `PythonAnswering.forwarded`."""
        cdef Py_ssize_t size
        if self._closed:
            return
        if PyList_GET_SIZE(replies):
            size = size_of(replies)
            if last and size <= JOIN_LIMIT:
                self._written = size
                self._counters.bytes_written += size
                self._write_alone(
                    replies[0] if PyList_GET_SIZE(replies) == 1 else b"".join(replies)
                )
            else:
                self._write(replies)
            if self._paused:
                self._unread()
        session = self.session
        if last and session is not None and not session.plain and session.waits:
            self.proceed()


def forward(session, dialect, bytes data not None, list out, limit):
    """See `python_forward`."""
    cdef Py_ssize_t size = PyBytes_GET_SIZE(data), at
    if dialect._unobserved and not dialect.forwarding:
        dialect.observe()
    pipe = dialect._pipe
    if pipe is None:
        return size
    at = pipe.forward(data, out, dialect.max_body)
    if at >= 0:
        return size - at
    dialect.give_back()  # not ordinary after all
    return size
