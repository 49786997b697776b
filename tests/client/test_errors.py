"""Statuses become exceptions; exceptions become sentences."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kvproto.client import errors
from kvproto.client.errors import (
    REPLY_ERRORS,
    CasMismatchError,
    ExistsError,
    ReplyError,
    UnansweredError,
    reply_error,
)
from kvproto.errors import KVProtoError, UpstreamError
from kvproto.wire.constants import Opcode, Status
from kvproto.wire.frames import Response
from tests.examples import examples


class ReplyErrorTests(SynchronousTestCase):
    """Errors that a server answers."""

    def test_table(self):
        """Each class of the tree is made by some status."""
        made = {*REPLY_ERRORS.values(), CasMismatchError}
        classes = {
            one
            for one in vars(errors).values()
            if isinstance(one, type) and issubclass(one, ReplyError)
        }
        self.assertEqual(classes - made, {ReplyError})

    def test_success_is_none(self):
        """Neither success nor "continue" is in the table."""
        self.assertFalse({Status.SUCCESS, Status.AUTH_CONTINUE} & set(REPLY_ERRORS))

    def test_cas(self):
        """Only to a request with a CAS does "exists" mean "changed"."""
        reply = Response(opcode=Opcode.SET, status=Status.EXISTS)
        self.assertIs(type(reply_error(reply)), ExistsError)
        self.assertIs(type(reply_error(reply, cas=1)), CasMismatchError)

    def test_words(self):
        """The server's words are kept, as text or from Couchbase's JSON, made fit for a log."""
        for value, context in (
            (b"Not found", "Not found"),
            (b"", ""),
            (b'{"error":{"context":"no such thing"}}', "no such thing"),
            (b'{"manifest_uid":"1"}', ""),
            (b'{"error":[]}', ""),
            (b"{", ""),
            (b"two\r\nlines\xff", "two  lines\N{REPLACEMENT CHARACTER}"),
            (b"x" * 10_000, "x" * 200),
        ):
            reply = Response(opcode=Opcode.GET, status=Status.INTERNAL, value=value)
            self.assertEqual(reply_error(reply).context, context)

    def test_unknown(self):
        """Numbers without a name are told as numbers."""
        error = reply_error(Response(opcode=0xEE, status=0x7FF0))
        self.assertIs(type(error), ReplyError)
        self.assertEqual(str(error), "0xee was answered 0x7ff0")

    @examples(100)
    @given(st.integers(1, 0xFFFF), st.integers(0, 255), st.binary(max_size=300))
    def test_any_reply(self, status, opcode, value):
        """Every reply makes an error with one printable line."""
        error = reply_error(Response(opcode=opcode, status=status, value=value))
        self.assertEqual(error.status, status)
        self.assertTrue(str(error).isprintable())


class TreeTests(SynchronousTestCase):
    """The tree as its docstring draws it."""

    def test_drawn(self):
        """Each class of the module is in the drawing, and nothing else is."""
        drawn = {
            word
            for line in (errors.__doc__ or "").splitlines()
            if "──" in line
            for word in line.replace("│", " ").replace("├──", " ").replace("└──", " ").split()[:1]
        }
        classes = {name for name in errors.__all__ if name.endswith("Error")}
        self.assertEqual(drawn - {"UpstreamError"}, classes)

    def test_roots(self):
        """No answer is a failure of the server we depend on; an answer is not."""
        self.assertTrue(issubclass(UnansweredError, UpstreamError))
        self.assertTrue(issubclass(ReplyError, KVProtoError))
        self.assertFalse(issubclass(ReplyError, UpstreamError))
