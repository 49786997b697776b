"""When a document's value is looked at, to know whether it is JSON."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.store import Document, MemoryStore, MutationSpec, PathOp, is_json
from kvproto.store.jsoncheck import Kind


class IsJsonTests(SynchronousTestCase):
    """Found out when asked, and only once for each value."""

    def setUp(self) -> None:
        self.store = MemoryStore(Clock().seconds)

    def stored(self) -> Document:
        document = self.store.get(b"k")
        assert document is not None
        return document

    def test_found_out_when_asked(self) -> None:
        """Writing and reading do not look; asking does, whatever the client claimed."""
        for value, datatype, expected in (
            (b"{}", 0, True), (b"5", 1, True), (b"x", 1, False), (b"", 1, False),
            (b"[" * 40 + b"]" * 40, 0, True),
        ):  # fmt: skip
            self.store.set(b"k", value, datatype=datatype)
            self.assertEqual(self.stored().kind, Kind.UNKNOWN)
            self.assertIs(is_json(self.stored()), expected)
            self.assertNotEqual(self.stored().kind, Kind.UNKNOWN)
            self.assertIs(is_json(self.stored()), expected)

    def test_kept_with_the_value(self) -> None:
        """A touch keeps what is known of a value, a lock asks again, a new value too."""
        self.store.set(b"k", b"{}")
        is_json(self.stored())
        self.store.touch(b"k", 50)
        self.assertEqual(self.stored().kind, Kind.JSON)
        self.store.append(b"k", b"x")
        self.assertIs(is_json(self.stored()), False)

    def test_known_after_a_path_was_changed(self) -> None:
        """What a sub-document operation has made is known to be JSON."""
        self.store.set(b"k", b"{}")
        self.store.mutate_in(b"k", [MutationSpec(PathOp.DICT_ADD, 0, b"a", b"1")])
        self.assertEqual(self.stored().kind, Kind.JSON)
        self.store.mutate_in(b"k", [MutationSpec(PathOp.SET_DOC, 0, b"", b"x")])
        self.assertIs(is_json(self.stored()), False)
