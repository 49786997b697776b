# cython: language_level=3
"""The compiled part of `kvproto.store.walk`: a place in a dictionary that outlives its changes."""

from cpython.dict cimport PyDict_Next
from cpython.object cimport PyObject

__all__ = ["layout", "take"]


cdef extern from "Python.h":
    ctypedef struct PyDictObject:
        void *ma_keys


def layout(entries):
    """Return a number that is another one when the entries of a dictionary have been moved."""
    return <size_t>(<PyDictObject *>entries).ma_keys


def take(entries, Py_ssize_t at, Py_ssize_t most):
    """Return some keys of a dictionary from a place on, and the place behind them."""
    cdef PyObject *key
    cdef list keys = []
    while len(keys) < most and PyDict_Next(entries, &at, &key, NULL):
        keys.append(<object>key)
    return keys, at
