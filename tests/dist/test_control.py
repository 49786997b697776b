"""Control messages: what is taken, what is refused, what we write."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kvproto.dist import Atom, Pid, Port, Reference, control, encode
from kvproto.dist.control import LAYOUTS, Control, Op, decode_control
from kvproto.dist.session import HANDLED
from kvproto.errors import RemoteProtocolError
from tests.examples import examples

THEIRS = Pid(Atom("erl@host"), 1, 0, 7)
OURS = Pid(Atom("kv@host"), 2, 0, 9)
REF = Reference(Atom("erl@host"), 7, (1, 2, 3))
PORT = Port(Atom("erl@host"), 5, 7)
NAME = Atom("kvtls")
GOOD: dict[str, Any] = {
    "_is_pid": OURS,
    "_is_name": NAME,
    "_is_process": NAME,
    "_is_linkable": PORT,
    "_is_reference": REF,
    "_is_int": 3,
    "_is_anything": [1],
}
"""A value for each check of a layout."""


def frame_of(*control_term: Any, message: bytes = b"") -> bytes:
    """Build a frame from the elements of its control term."""
    return b"p" + encode(control_term) + message


class DecodeTests(SynchronousTestCase):
    """What peers say."""

    def test_every_layout(self) -> None:
        """Each message of the table is taken, with its fields where they belong."""
        for number, layout in LAYOUTS.items():
            with self.subTest(number=number):
                values = [GOOD[check.__name__] for _, check in layout.fields]
                tail = encode((1, b"x")) if layout.message else b""
                found = decode_control(frame_of(number, *values, message=tail))
                self.assertIs(found.op, layout.op)
                for (name, _), value in zip(layout.fields, values, strict=True):
                    if name:
                        self.assertEqual(getattr(found, name), value)
                self.assertEqual(found.message, (1, b"x") if layout.message else None)

    def test_every_wrong_field(self) -> None:
        """A field of the wrong type is refused, in each message."""
        for number, layout in LAYOUTS.items():
            for place, (name, check) in enumerate(layout.fields):
                if check.__name__ == "_is_anything":
                    continue
                values = [GOOD[check.__name__] for _, check in layout.fields]
                values[place] = b"wrong"
                tail = encode(1) if layout.message else b""
                with self.subTest(number=number, field=name):
                    self.assertRaises(
                        RemoteProtocolError, decode_control, frame_of(number, *values, message=tail)
                    )

    def test_malformed(self) -> None:
        """Everything else is refused."""
        link = (1, THEIRS, OURS)
        for data in (
            b"\x44",  # with an atom cache
            b"p",
            b"p" + encode(Atom("x")),
            b"p" + encode(()),
            b"p" + encode((Atom("x"),)),
            frame_of(99, THEIRS),
            frame_of(24, THEIRS, OURS, REF),  # needs a flag that is not ours
            frame_of(29, REF, THEIRS, THEIRS, (NAME, NAME, 0), []),
            frame_of(*link, 1),
            frame_of(1, THEIRS),
            frame_of(*link, message=b"\x00"),
            frame_of(2, NAME, OURS),
            frame_of(2, NAME, OURS, message=encode(1) + b"x"),
        ):
            with self.subTest(data=data[:30]):
                self.assertRaises(RemoteProtocolError, decode_control, data)

    @examples(200)
    @given(st.binary(min_size=1, max_size=80))
    def test_noise(self, noise: bytes) -> None:
        """Noise is refused."""
        self.assertRaises(RemoteProtocolError, decode_control, noise)

    def test_every_op_is_handled(self) -> None:
        """No operation is without a handler in the session."""
        self.assertEqual({layout.op for layout in LAYOUTS.values()}, HANDLED)
        self.assertEqual(set(Op), HANDLED)


class HugeNumberTests(SynchronousTestCase):
    """Integers with more digits than Python prints are a fault of the peer, like any other."""

    def test_everywhere(self) -> None:
        """Wherever a control message has one, the peer is told of its fault in words."""
        huge = 1 << 20_000
        for size in range(1, 6):
            for at in range(size):
                for number in (0, *range(1, 40)):
                    term: list[Any] = [number] + [huge] * (size - 1)
                    term[at] = huge
                    try:
                        decode_control(frame_of(*term))
                    except RemoteProtocolError as error:
                        self.assertLess(len(str(error)), 1000)


class EncodeTests(SynchronousTestCase):
    """What we say is what we would understand."""

    def test_each(self) -> None:
        """Each message of ours is read back by the same table."""
        for data, expected in (
            (control.send(OURS, 1), Control(Op.SEND, to=OURS, message=1)),
            (
                control.reg_send(OURS, "x", 1),
                Control(Op.REG_SEND, sender=OURS, to=Atom("x"), message=1),
            ),
            (
                control.alias_send(OURS, REF, 1),
                Control(Op.ALIAS_SEND, sender=OURS, to=REF, message=1),
            ),
            (control.monitor(OURS, NAME, REF), Control(Op.MONITOR, OURS, NAME, REF)),
            (control.demonitor(OURS, NAME, REF), Control(Op.DEMONITOR, OURS, NAME, REF)),
            (
                control.monitor_exit(NAME, OURS, REF, Atom("normal")),
                Control(Op.MONITOR_EXIT, NAME, OURS, REF, Atom("normal")),
            ),
            (
                control.exit_signal(THEIRS, OURS, 1),
                Control(Op.EXIT, THEIRS, OURS, reason=1),
            ),
            (control.unlink_ack(5, THEIRS, OURS), Control(Op.UNLINK_ID_ACK, THEIRS, OURS, id=5)),
        ):
            self.assertEqual(decode_control(data), expected)
