"""The handshake: every state, every message, both directions."""

from __future__ import annotations

import itertools
import struct

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kvproto.dist import flags as dist_flags
from kvproto.dist.flags import MANDATORY, OURS, Flag
from kvproto.dist.handshake import (
    MAX_HANDSHAKE_FRAME,
    TRANSITIONS,
    Handshake,
    NodeIdentity,
    State,
    Status,
    check_node_name,
    digest,
)
from kvproto.errors import LocalProtocolError, RemoteProtocolError
from tests.examples import examples

COOKIE = b"secret"
ERLANG = NodeIdentity("erl@host", COOKIE, 7)
OURSELVES = NodeIdentity("kv@host", COOKIE, 9)

LETTERS = [b"N", b"n", b"s", b"r", b"a", b"p", b""]
"""First byte of each message there is, of one that belongs elsewhere, and of none."""


def name_message(name: bytes = b"erl@host", flags: int = OURS, tail: bytes = b"") -> bytes:
    """Build what a dialling node says first."""
    return struct.pack(">cQIH", b"N", flags, 7, len(name)) + name + tail


def challenge_message(name: bytes = b"erl@host", flags: int = OURS, tail: bytes = b"") -> bytes:
    """Build the challenge of a node that we dialled."""
    return struct.pack(">cQIIH", b"N", flags, 99, 7, len(name)) + name + tail


VALID = {
    State.AWAIT_NAME: name_message(),
    State.AWAIT_ALIVE_ANSWER: b"strue",
    State.AWAIT_REPLY: struct.pack(">cI16s", b"r", 55, digest(COOKIE, 42)),
    State.AWAIT_STATUS: b"sok",
    State.AWAIT_CHALLENGE: challenge_message(),
    State.AWAIT_ACK: b"a" + digest(COOKIE, 42),
}
"""The right message for each state that waits for one."""


def make(state: State) -> Handshake:
    """Bring a handshake into a state, by messages."""
    accepting = Handshake(OURSELVES, challenge=lambda: 42)
    dialling = Handshake(OURSELVES, "erl@host", challenge=lambda: 42)
    routes: dict[State, tuple[Handshake, list[bytes | Status | None]]] = {
        State.NEW: (dialling, []),
        State.AWAIT_STATUS: (dialling, [None]),
        State.AWAIT_CHALLENGE: (dialling, [None, b"sok"]),
        State.ASKED_ALIVE: (dialling, [None, b"salive"]),
        State.AWAIT_ACK: (dialling, [None, b"sok", challenge_message()]),
        State.AWAIT_NAME: (accepting, []),
        State.DECIDING: (accepting, [name_message()]),
        State.AWAIT_ALIVE_ANSWER: (accepting, [name_message(), Status.ALIVE]),
        State.AWAIT_REPLY: (accepting, [name_message(), Status.OK]),
        State.REFUSED: (accepting, [name_message(), Status.NOK]),
        State.UP: (accepting, [name_message(), Status.OK, VALID[State.AWAIT_REPLY]]),
        State.FAILED: (accepting, [b"n"]),
    }
    handshake, steps = routes[state]
    for step in steps:
        if step is None:
            handshake.begin()
        elif isinstance(step, Status):
            handshake.decide(step)
        else:
            try:
                handshake.receive(step)
            except RemoteProtocolError:
                assert state is State.FAILED
    assert handshake.state is state
    handshake.data_to_send()
    return handshake


class TableTests(SynchronousTestCase):
    """Every pair of state and message."""

    def test_every_pair(self) -> None:
        """A message is taken where the table has it, and fails the handshake elsewhere."""
        for state, letter in itertools.product(State, LETTERS):
            with self.subTest(state=state, letter=letter):
                handshake = make(state)
                if (state, letter) in TRANSITIONS:
                    handshake.receive(VALID[state])
                    self.assertIsNot(handshake.state, state)
                    self.assertIsNot(handshake.state, State.FAILED)
                else:
                    self.assertRaises(RemoteProtocolError, handshake.receive, letter + b"x")
                    self.assertIs(handshake.state, State.FAILED)
                    self.assertEqual(handshake.data_to_send(), [])

    def test_every_decision_in_every_state(self) -> None:
        """The node's own decisions are taken only where they were asked for."""
        for state in State:
            with self.subTest(state=state):
                if state is not State.DECIDING:
                    self.assertRaises(LocalProtocolError, make(state).decide, Status.OK)
                if state is not State.ASKED_ALIVE:
                    self.assertRaises(LocalProtocolError, make(state).answer_alive, True)
                if state is not State.NEW:
                    self.assertRaises(LocalProtocolError, make(state).begin)

    def test_empty_and_truncated_messages(self) -> None:
        """No prefix of a right message is taken for one."""
        for state, message in VALID.items():
            for end in range(len(message)):
                if message[:end] == b"sok"[:end] and end == 3:
                    continue
                handshake = make(state)
                with self.subTest(state=state, end=end):
                    self.assertRaises(RemoteProtocolError, handshake.receive, message[:end])

    def test_long_messages(self) -> None:
        """More than 4 KiB is refused before anything is looked at."""
        for state, message in VALID.items():
            long = message + bytes(MAX_HANDSHAKE_FRAME)
            self.assertRaises(RemoteProtocolError, make(state).receive, long)

    @examples(200)
    @given(st.sampled_from(list(VALID)), st.binary(max_size=60))
    def test_noise(self, state: State, noise: bytes) -> None:
        """Noise moves a handshake on, or fails it; it never comes up by it."""
        handshake = make(state)
        try:
            handshake.receive(noise)
        except RemoteProtocolError:
            self.assertIs(handshake.state, State.FAILED)
        self.assertIsNot(handshake.state, State.UP)


class FlowTests(SynchronousTestCase):
    """Two of ours with each other."""

    def shake(self, near: Handshake, far: Handshake, status: Status) -> None:
        near.begin()
        for _ in range(6):
            for one, other in ((near, far), (far, near)):
                for message in one.data_to_send():
                    other.receive(message)
                    if other.state is State.DECIDING:
                        other.decide(status)
                    elif other.state is State.ASKED_ALIVE:
                        other.answer_alive(True)

    def test_up(self) -> None:
        """Both come up and know each other, for each status that lets them."""
        for status in (Status.OK, Status.OK_SIMULTANEOUS, Status.ALIVE):
            near, far = Handshake(ERLANG, "kv@host"), Handshake(OURSELVES)
            self.shake(near, far, status)
            self.assertEqual((near.state, far.state), (State.UP, State.UP))
            assert near.peer is not None
            assert far.peer is not None
            self.assertEqual((near.peer.name, near.peer.creation), ("kv@host", 9))
            self.assertEqual((far.peer.name, far.peer.creation), ("erl@host", 7))
            self.assertEqual(near.peer.flags, far.peer.flags)

    def test_refused(self) -> None:
        """Both know why they do not come up."""
        for status in (Status.NOK, Status.NOT_ALLOWED):
            near, far = Handshake(ERLANG, "kv@host"), Handshake(OURSELVES)
            self.shake(near, far, status)
            self.assertEqual((near.state, far.state), (State.REFUSED, State.REFUSED))
            self.assertIn(status.value.decode(), near.refusal)

    def test_wrong_cookie(self) -> None:
        """The accepting side notices first, and says nothing more."""
        near = Handshake(NodeIdentity("erl@host", b"other", 7), "kv@host")
        far = Handshake(OURSELVES)
        self.assertRaises(RemoteProtocolError, self.shake, near, far, Status.OK)
        self.assertIs(far.state, State.FAILED)
        self.assertEqual(far.data_to_send(), [])

    def test_wrong_ack(self) -> None:
        """The dialling side does not come up with somebody who does not know the cookie."""
        handshake = make(State.AWAIT_ACK)
        self.assertRaises(RemoteProtocolError, handshake.receive, b"a" + bytes(16))
        self.assertIs(handshake.state, State.FAILED)

    def test_not_insisting(self) -> None:
        """A dialling node that is linked after all says so, and leaves."""
        handshake = make(State.ASKED_ALIVE)
        handshake.answer_alive(False)
        self.assertEqual(handshake.data_to_send(), [b"sfalse"])
        self.assertIs(handshake.state, State.REFUSED)

    def test_peer_does_not_insist(self) -> None:
        """A node that takes back its call is let go."""
        handshake = make(State.AWAIT_ALIVE_ANSWER)
        handshake.receive(b"sfalse")
        self.assertIs(handshake.state, State.REFUSED)

    def test_golden_digest(self) -> None:
        """The digest is MD5 of the cookie and the challenge in decimal digits."""
        # erlang:md5("secret42") on OTP 25.
        self.assertEqual(digest(b"secret", 42).hex(), "5ce06e46867de8252365147b667f1c20")

    def test_challenges_are_random(self) -> None:
        """Two handshakes do not ask the same."""
        sent = set()
        for _ in range(4):
            handshake = Handshake(OURSELVES)
            handshake.receive(name_message())
            handshake.decide(Status.OK)
            sent.add(handshake.data_to_send()[1][9:13])
        self.assertGreater(len(sent), 2)


class NameTests(SynchronousTestCase):
    """Names."""

    def test_bad_names(self) -> None:
        """A name is two halves around one @, at most 255 bytes of UTF-8, and forges no line."""
        for name in (
            b"",
            b"x",
            b"@",
            b"x@",
            b"@x",
            b"a@b@c",
            b"a@" + b"b" * 254,
            b"\xff@x",
            b"a\n@b",
            b"a\x1b[2J@b",
            b"a b@c",
            "a\u202e@b".encode(),
        ):
            self.assertRaises(RemoteProtocolError, check_node_name, name)
            handshake = Handshake(OURSELVES)
            self.assertRaises(RemoteProtocolError, handshake.receive, name_message(name))

    def test_our_own_bad_name(self) -> None:
        """A wrong name of our own is our own fault."""
        self.assertRaises(LocalProtocolError, NodeIdentity, "kv", COOKIE, 1)

    def test_somebody_else_answers(self) -> None:
        """A node that we dialled must have the name that we dialled."""
        handshake = make(State.AWAIT_CHALLENGE)
        self.assertRaises(RemoteProtocolError, handshake.receive, challenge_message(b"evil@host"))

    def test_bytes_after_the_name(self) -> None:
        """What follows a name is for future versions."""
        handshake = Handshake(OURSELVES)
        handshake.receive(name_message(tail=b"future"))
        self.assertIs(handshake.state, State.DECIDING)
        handshake = make(State.AWAIT_CHALLENGE)
        handshake.receive(challenge_message(tail=b"future"))
        self.assertIs(handshake.state, State.AWAIT_ACK)

    def test_the_cookie_is_not_shown(self) -> None:
        """No representation of an identity holds the cookie."""
        self.assertNotIn("secret", repr(OURSELVES))


class FlagTests(SynchronousTestCase):
    """Capabilities."""

    def test_our_flags(self) -> None:
        """They are the sum that was tried against real nodes; we are hidden."""
        self.assertEqual(int(OURS), 0xC07074FBC)
        self.assertFalse(OURS & Flag.PUBLISHED)
        self.assertEqual(int(MANDATORY), 0x1070F94)

    def test_each_mandatory_flag(self) -> None:
        """A caller without one of them is told not_allowed, with the flag in our log."""
        for flag in MANDATORY:
            handshake = Handshake(OURSELVES)
            handshake.receive(name_message(flags=MANDATORY & ~flag))
            self.assertEqual(handshake.data_to_send(), [b"snot_allowed"])
            self.assertIs(handshake.state, State.REFUSED)
            self.assertIn(str(flag.name), handshake.refusal)

    def test_callee_without_a_mandatory_flag(self) -> None:
        """One that we dialled is left."""
        handshake = make(State.AWAIT_CHALLENGE)
        message = challenge_message(flags=MANDATORY & ~Flag.MAP_TAG)
        self.assertRaises(RemoteProtocolError, handshake.receive, message)

    def test_the_digest_stands_for_all(self) -> None:
        """OTP 25's one flag that stands for its mandatory ones is expanded."""
        handshake = Handshake(OURSELVES)
        handshake.receive(name_message(flags=Flag.MANDATORY_25_DIGEST))
        self.assertIs(handshake.state, State.DECIDING)

    def test_only_what_both_have(self) -> None:
        """A capability counts when both have it; unknown ones are no error."""
        both = dist_flags.effective(OURS, (MANDATORY | Flag.FRAGMENTS) | 1 << 60)
        self.assertEqual(both, MANDATORY)
