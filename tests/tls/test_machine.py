"""The TLS machine by itself: states, events, and two of them that talk without a transport."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from kvproto.testing.contexts import client_context, server_context
from kvproto.tls._handles import engine_for
from kvproto.tls.machine import TABLE, Event, State, TLSMachine
from kvproto.tls.reasons import BudgetExceeded
from tests.examples import examples
from tests.tls.wired import VERSIONS

GARBAGE = b"\x17\x03\x03\x00\x10" + b"x" * 16


def machine(context: SSL.Context, *, server: bool, **limits: int) -> TLSMachine:
    """Return a machine that has not begun."""
    connection = SSL.Connection(context, None)
    (connection.set_accept_state if server else connection.set_connect_state)()
    return TLSMachine(
        engine_for(connection), limits.get("junk", 10_000), limits.get("renegotiations", 3)
    )


class Pair:
    """A server's and a client's machine, and what each of them has told."""

    def __init__(self, version: int | None = None, **limits: int) -> None:
        self.server = machine(server_context(version), server=True, **limits)
        self.client = machine(client_context(version), server=False)
        self.told: dict[TLSMachine, list[Any]] = {self.server: [], self.client: []}
        self.client.handshake()
        self.talk()

    def talk(self) -> None:
        """Carry what each has to say to the other until neither says anything."""
        while True:
            moved = False
            for here, there in ((self.client, self.server), (self.server, self.client)):
                while (event := here.next_event()) is not None:
                    self.told[here].append(event)
                output = here.take_output()
                while here.has_output and here.state is not State.HANDSHAKING:
                    sealed = here.encrypt()
                    output += sealed
                    if not sealed:
                        break
                if output:
                    moved = True
                    there.receive(output)
            if not moved:
                return

    def plaintext(self, of: TLSMachine) -> bytes:
        """Return all plaintext that one has told."""
        return b"".join(event for event in self.told[of] if isinstance(event, bytes))


def bring_to(state: State, version: int | None = None) -> Pair:
    """Return a pair whose server is in a state."""
    pair = Pair(version)
    if state is State.HANDSHAKING:
        pair.server = machine(server_context(version), server=True)
        pair.told[pair.server] = []
    elif state is State.PEER_ENDED:
        pair.client.close()
        pair.talk()
    elif state is State.SHUT:
        pair.server.close()
    elif state is State.CLOSED:
        pair.server.abort()
    pair.told[pair.server].clear()
    return pair


def peer_ends(pair: Pair) -> None:
    """Let the client say close_notify, or its kernel a FIN where it cannot."""
    if pair.client.state is State.OPEN:
        pair.client.close()
        pair.talk()
    pair.server.end_input()
    pair.talk()


class TableTests(SynchronousTestCase):
    """Every (what happens, state) pair, on a machine that came there by ordinary ways."""

    def test_table_is_whole(self) -> None:
        """Every state has an answer to everything, and nobody leaves CLOSED."""
        for row in TABLE.values():
            self.assertEqual(set(row), set(State))
            self.assertIs(row[State.CLOSED], State.CLOSED)

    def test_handshake_done(self) -> None:
        """The end of a handshake is told once, by both."""
        for version in VERSIONS.values():
            pair = Pair(version)
            for one in (pair.server, pair.client):
                self.assertEqual(pair.told[one], [Event.HANDSHAKE_DONE])
                self.assertIs(one.state, State.OPEN)

    def test_peer_ended(self) -> None:
        """A peer's end is told once; what we may say after it is said."""
        for version in VERSIONS.values():
            for state in (State.OPEN, State.PEER_ENDED, State.SHUT, State.CLOSED):
                pair = bring_to(state, version)
                peer_ends(pair)
                self.assertIs(pair.server.state, TABLE["peer ended"][state], state)
                told = [Event.PEER_ENDED] if state in (State.OPEN, State.SHUT) else []
                self.assertEqual(pair.told[pair.server], told, state)

    def test_close(self) -> None:
        """Our end is said once, and the peer hears it."""
        for version in VERSIONS.values():
            for state in State:
                pair = bring_to(state, version)
                pair.server.close()
                self.assertIs(pair.server.state, TABLE["close"][state], state)
                pair.talk()
                if state in (State.OPEN, State.SHUT, State.PEER_ENDED):
                    self.assertIn(Event.PEER_ENDED, pair.told[pair.client], state)

    def test_fail(self) -> None:
        """What OpenSSL cannot read ends everything, is told once, and says why."""
        for version in VERSIONS.values():
            for state in State:
                pair = bring_to(state, version)
                pair.server.receive(GARBAGE)
                pair.talk()
                hears = state in (State.HANDSHAKING, State.OPEN, State.SHUT)
                self.assertEqual(pair.told[pair.server], [Event.FAILED] if hears else [], state)
                if hears:
                    self.assertIs(pair.server.state, State.CLOSED)
                    self.assertIsInstance(pair.server.error, SSL.Error)
                    self.assertIs(pair.server.last, state)

    def test_abort(self) -> None:
        """Afterwards nothing is told, and nothing queued is sent."""
        for state in State:
            pair = bring_to(state)
            pair.server.outbox.put(b"x" * 100_000)
            pair.server.receive(GARBAGE)
            pair.server.abort()
            self.assertIs(pair.server.state, State.CLOSED)
            self.assertEqual((pair.server.has_output, pair.server.has_input), (False, False))
            pair.talk()
            self.assertEqual(pair.told[pair.server], [], state)


class TalkTests(SynchronousTestCase):
    """What is said in one arrives in the other."""

    @examples(20)
    @given(
        st.lists(st.binary(min_size=1, max_size=40_000), max_size=6),
        st.sampled_from([*VERSIONS.values()]),
        st.integers(1, 20_000),
    )
    def test_any_pieces(self, writes: list[bytes], version: int, piece: int) -> None:
        """Writes of any size, cut anywhere on their way."""
        pair = Pair(version)
        for data in writes:
            pair.client.outbox.put(data)
        ciphertext = b""
        while pair.client.has_output:
            ciphertext += pair.client.encrypt()
        received = b""
        for at in range(0, len(ciphertext), piece):
            pair.server.receive(ciphertext[at : at + piece])
            while (event := pair.server.next_event()) is not None:
                assert isinstance(event, bytes)
                received += event
        self.assertEqual(received, b"".join(writes))
        self.assertTrue(pair.server.idle)

    def test_reads_that_wait(self) -> None:
        """What arrived while nobody took it is decrypted in the order in which it came."""
        pair = Pair(junk=100_000)
        pair.client.outbox.put(b"first" * 30_000)
        pair.client.outbox.put(b"last")
        while pair.client.has_output:
            pair.server.receive(pair.client.encrypt())
        self.assertGreater(len(pair.server.unfed), 1)
        pair.talk()
        self.assertEqual(pair.plaintext(pair.server), b"first" * 30_000 + b"last")

    def test_half_closed(self) -> None:
        """After the peer's end we may write, and it reads."""
        for version in VERSIONS.values():
            pair = Pair(version)
            pair.client.close()
            pair.talk()
            pair.server.outbox.put(b"answer")
            pair.talk()
            self.assertEqual(pair.plaintext(pair.client), b"answer")
            pair.server.close()
            pair.talk()
            self.assertEqual((pair.server.state, pair.client.state), (State.CLOSED,) * 2)

    def test_truncated(self) -> None:
        """A FIN without close_notify is told as an end, and remembered as unannounced."""
        pair = Pair()
        pair.server.end_input()
        self.assertEqual(
            (pair.server.next_event(), pair.server.truncated), (Event.PEER_ENDED, True)
        )
        self.assertFalse(pair.server.takes_fin_for_goodbye())

    def test_truncation_that_is_ignored(self) -> None:
        """Where OpenSSL's options say so, a FIN is as good as a close_notify."""
        context = server_context(None)
        context.set_options(0x80)  # SSL_OP_IGNORE_UNEXPECTED_EOF
        server = machine(context, server=True)
        client = machine(client_context(None), server=False)
        client.handshake()
        for _ in range(3):
            for here, there in ((client, server), (server, client)):
                while here.next_event() is not None:
                    pass
                there.receive(here.take_output())
        self.assertIs(server.state, State.OPEN)
        server.end_input()
        self.assertTrue(server.takes_fin_for_goodbye())

    def test_budget(self) -> None:
        """Records without application data are counted, and cut above the budget."""
        pair = Pair(junk=10_000)
        pair.server.receive(b"\x17\x03\x03\x40\x00" + b"x" * 9_000)
        pair.talk()
        self.assertEqual(pair.told[pair.server], [Event.HANDSHAKE_DONE])
        pair.server.receive(b"x" * 2_000)
        pair.talk()
        self.assertIsInstance(pair.server.error, BudgetExceeded)

    def test_finish_input(self) -> None:
        """What is left when the transport is gone is told, then that it was cut off."""
        pair = Pair()
        pair.client.outbox.put(b"last")
        pair.server.receive(pair.client.encrypt())
        pair.server.finish_input()
        self.assertEqual(pair.server.next_event(), b"last")
        self.assertIs(pair.server.next_event(), Event.FAILED)
        self.assertIsNone(pair.server.next_event())
