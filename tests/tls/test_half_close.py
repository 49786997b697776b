"""Answers to a peer that has ended its side: none is lost, and none is waited for without limit.

The peer says close_notify (RFC 8446 section 6.1: that has no effect on its read side), or its
kernel says FIN.  What it asked before is answered, however late it reads and however late the
application answers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from OpenSSL.SSL import Error
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import alsoProvides

from kvproto.tls import CloseTimeout
from tests.tls.wired import STOCK, VERSIONS, App, Wired

ANSWER = b"x" * 300_000


def end_by_close_notify(wired: Wired) -> None:
    """Let the client say that it will send nothing more, and go on reading."""
    wired.client_app.tls.loseWriteConnection()


def end_by_fin(wired: Wired) -> None:
    """Let the client's kernel say so, without a word from its TLS."""
    wired.clock.advance(0)  # what was written leaves first
    wired.pair.client.loseWriteConnection()


def answer_later(wired: Wired) -> Callable[[bytes], object]:
    """Return a handler that answers 0.3 s after it was asked."""
    return lambda data: wired.clock.callLater(0.3, wired.server_app.tls.write, ANSWER)


ENDS = {"close_notify": end_by_close_notify, "FIN": end_by_fin}


class Told:
    """Makes an application one that is told that its peer has ended its side."""

    def __init__(self, app: App) -> None:
        self.calls = 0
        self.when_told: Callable[[], object] = lambda: None
        for name, method in (("read", self.told), ("write", lambda: None)):
            setattr(app, f"{name}ConnectionLost", method)
        alsoProvides(app, IHalfCloseableProtocol)

    def told(self) -> None:
        self.calls += 1
        self.when_told()


class HalfCloseTestCase(SynchronousTestCase):
    """Every way to end one side, in every version of TLS."""

    def each(self) -> list[tuple[Wired, Callable[[Wired], None], str]]:
        cases: list[tuple[Wired, Callable[[Wired], None], str]] = []
        for version_name, version in VERSIONS.items():
            for end_name, end in ENDS.items():
                wired = Wired(version=version).handshake()
                cases.append((wired, end, f"{end_name}, {version_name}"))
        return cases

    def assert_ended(self, wired: Wired, name: str) -> None:
        """The connection is gone at both ends, and nothing is left of it."""
        self.assertEqual(len(wired.server_app.reasons), 1, name)
        expected = ConnectionLost if name.startswith("FIN") else ConnectionDone
        self.assertEqual(wired.server_app.reasons[0].type, expected, name)
        # The client was told by close_notify, whatever it has said itself.
        self.assertEqual([why.type for why in wired.client_app.reasons], [ConnectionDone], name)
        self.assertEqual(wired.clock.getDelayedCalls(), [], name)


class UnlimitedTests(HalfCloseTestCase):
    """Where waiting for an answer would have no end, or is not wanted, there is none."""

    def test_nobody_waits(self) -> None:
        """Without a pause or a deadline what is not answered when the peer ends is not awaited."""
        for limit, value in (("answer_pause", 0), ("close_timeout", None)):
            for version in VERSIONS.values():
                wired = Wired(version=version, limits={limit: value}).handshake()
                wired.client_app.tls.write(b"question")
                end_by_close_notify(wired)
                wired.flush()
                self.assertEqual([w.type for w in wired.server_app.reasons], [ConnectionDone])
                self.assertEqual(wired.clock.getDelayedCalls(), [])


class ToldTests(HalfCloseTestCase):
    """Applications that are told, and say when they have answered."""

    def test_late_answer(self) -> None:
        """What a handler answers much later is sent, then goodbye is said."""
        for wired, end, name in self.each():
            server = Told(wired.server_app)
            wired.client_app.tls.write(b"question")
            end(wired)
            wired.flush()
            self.assertEqual(server.calls, 1, name)
            self.assertEqual(wired.server_app.reasons, [], name)
            wired.clock.advance(20)
            wired.server_app.tls.write(ANSWER)
            wired.server_app.tls.loseConnection()
            wired.flush()
            self.assertEqual(bytes(wired.client_app.received), ANSWER, name)
            self.assertEqual(server.calls, 1, name)
            self.assert_ended(wired, name)

    def test_late_reader(self) -> None:
        """What waits for a peer that reads late is sent, a producer's part included."""
        for wired, end, name in self.each():
            server = Told(wired.server_app)
            tls = wired.server_app.tls
            producer = TwentyAnswers(tls)
            tls.registerProducer(producer, True)
            wired.server_app.on_data = producer.asked
            wired.client_app.tls.write(b"twenty questions")
            end(wired)
            wired.pair.client.paused = True
            wired.flush()
            self.assertEqual(server.calls, 1, name)
            self.assertLess(producer.written, 20, name)
            wired.clock.advance(20)
            wired.pair.client.paused = False
            wired.flush()
            self.assertEqual(len(wired.client_app.received), 20 * len(ANSWER), name)
            self.assert_ended(wired, name)

    def test_nothing_asked(self) -> None:
        """An application that closes when it is told ends the connection at once."""
        for wired, end, name in self.each():
            server = Told(wired.server_app)
            server.when_told = wired.server_app.tls.loseConnection
            end(wired)
            wired.flush()
            self.assert_ended(wired, name)

    def test_deadline(self) -> None:
        """An application that never answers is cut after the deadline, not before."""
        for wired, end, name in self.each():
            Told(wired.server_app)
            end(wired)
            wired.flush()
            wired.clock.advance(29.9)
            wired.flush()
            self.assertEqual(wired.server_app.reasons, [], name)
            wired.clock.advance(0.2)
            wired.flush()
            self.assertEqual([why.type for why in wired.server_app.reasons], [CloseTimeout], name)
            self.assertIn("ended its side", str(wired.server_app.reasons[0].value))
            self.assertEqual(wired.clock.getDelayedCalls(), [], name)

    def test_deadline_of_a_reader(self) -> None:
        """A peer that has ended its side and never reads is cut; one that reads slowly is not."""
        for wired, end, name in self.each():
            Told(wired.server_app)
            wired.server_app.tls.write(ANSWER)
            end(wired)
            wired.flush()
            wired.server_app.tls.loseConnection()
            self.assertEqual(len(wired.client_app.received), len(ANSWER), name)
        for wired, end, name in self.each():
            Told(wired.server_app)
            wired.pair.client.paused = True
            wired.server_app.tls.write(20 * ANSWER)
            end(wired)
            wired.flush()
            for _ in range(4):
                wired.clock.advance(25)
                wired.pair.client.paused = False
                wired.pair.pump()
                wired.pair.client.paused = True
                wired.flush()
                self.assertEqual(wired.server_app.reasons, [], name)
            wired.clock.pump([31, 31])
            wired.flush()
            self.assertEqual([why.type for why in wired.server_app.reasons], [CloseTimeout], name)

    def test_raises(self) -> None:
        """An application that fails while it is told is dropped, and told of that once."""
        for wired, end, name in self.each():
            Told(wired.server_app).when_told = lambda: 1 / 0
            end(wired)
            self.assertRaises(ZeroDivisionError, wired.flush)
            wired.flush()
            self.assertEqual(len(wired.server_app.reasons), 1, name)
            self.assertEqual(wired.clock.getDelayedCalls(), [], name)

    def test_not_told_twice(self) -> None:
        """close_notify and then a FIN are one end."""
        for version in VERSIONS.values():
            wired = Wired(version=version).handshake()
            server = Told(wired.server_app)
            end_by_close_notify(wired)
            end_by_fin(wired)
            wired.flush()
            self.assertEqual(server.calls, 1)
            wired.server_app.tls.write(b"answer")
            wired.server_app.tls.loseConnection()
            wired.flush()
            self.assertEqual(bytes(wired.client_app.received), b"answer")
            self.assert_ended(wired, "close_notify")

    def test_told_after_a_pause(self) -> None:
        """A paused application is told when it has been given what came before."""
        for wired, end, name in self.each():
            server = Told(wired.server_app)
            wired.server_app.tls.pauseProducing()
            wired.client_app.tls.write(b"question")
            end(wired)
            wired.flush()
            self.assertEqual(server.calls, 0, name)
            wired.server_app.tls.resumeProducing()
            wired.flush()
            self.assertEqual(bytes(wired.server_app.received), b"question", name)
            self.assertEqual(server.calls, 1, name)
            wired.server_app.tls.loseConnection()
            wired.flush()
            self.assert_ended(wired, name)

    def test_peer_gone_while_answering(self) -> None:
        """A peer that closed altogether is noticed when the answer meets nobody."""
        wired = Wired().handshake()
        Told(wired.server_app)
        wired.client_app.tls.write(b"question")
        wired.flush()
        wired.pair.client.loseConnection()
        wired.flush()
        self.assertEqual(wired.server_app.reasons, [])
        wired.server_app.tls.write(b"answer")
        wired.flush()
        self.assertEqual([why.type for why in wired.server_app.reasons], [ConnectionLost])
        self.assertEqual(wired.clock.getDelayedCalls(), [])


class OurEndTests(HalfCloseTestCase):
    """We close while a producer has more to write."""

    def test_a_peer_that_does_not_read(self) -> None:
        """A producer that is kept from writing by its peer does not keep the connection."""
        for version in VERSIONS.values():
            wired = Wired(version=version).handshake()
            tls = wired.server_app.tls
            tls.registerProducer(TwentyAnswers(tls), True)
            wired.pair.client.paused = True
            tls.write(ANSWER)
            tls.loseConnection()
            for _ in range(3):
                wired.flush()
                wired.clock.advance(30)
            self.assertEqual([why.type for why in wired.server_app.reasons], [CloseTimeout])
            self.assertEqual(wired.clock.getDelayedCalls(), [])

    def test_a_producer_that_takes_its_time(self) -> None:
        """A producer that may write and has nothing yet is waited for, however long."""
        for version in VERSIONS.values():
            wired = Wired(version=version).handshake()
            tls = wired.server_app.tls
            producer = TwentyAnswers(tls)
            tls.registerProducer(producer, True)
            tls.loseConnection()
            for _ in range(5):
                wired.flush()
                wired.clock.advance(30)
            self.assertEqual(wired.server_app.reasons, [])
            producer.resumeProducing()
            wired.flush()
            self.assertEqual(len(wired.client_app.received), 20 * len(ANSWER))
            self.assert_ended(wired, "close_notify")


class BothEndTests(HalfCloseTestCase):
    """Both sides end at once."""

    def test_closes_on_the_last_data(self) -> None:
        """Data and close_notify in one read, and an application that closes on the data."""
        for version in VERSIONS.values():
            wired = Wired(version=version, limits={"close_timeout": None}).handshake()
            wired.server_app.on_data = lambda data, app=wired.server_app: (  # type: ignore[misc]
                app.tls.write(b"bye"),
                app.tls.loseConnection(),
            )
            wired.client_app.tls.write(b"last")
            wired.client_app.tls.loseConnection()
            wired.flush()
            self.assertEqual(bytes(wired.client_app.received), b"bye")
            self.assert_ended(wired, "close_notify")


class TwentyAnswers:
    """A push producer of twenty answers, which closes when it has written them."""

    def __init__(self, tls: Any) -> None:
        self.tls = tls
        self.written = 0
        self.paused = True

    def asked(self, _data: bytes) -> None:
        """Begin."""
        self.resumeProducing()

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False
        while not self.paused and self.written < 20:
            self.written += 1
            self.tls.write(ANSWER)
        if self.written == 20:
            self.tls.unregisterProducer()
            self.tls.loseConnection()

    def stopProducing(self) -> None:
        self.paused = True


class PullTwenty:
    """A pull producer of twenty answers."""

    def __init__(self, tls: Any) -> None:
        self.tls = tls
        self.written = 0

    def asked(self, _data: bytes) -> None:
        """Begin."""
        self.tls.registerProducer(self, False)

    def resumeProducing(self) -> None:
        if self.written < 20:
            self.written += 1
            self.tls.write(ANSWER)
        else:
            self.tls.unregisterProducer()

    def stopProducing(self) -> None:
        self.written = 20


class UntoldTests(HalfCloseTestCase):
    """Applications that know nothing of half-closed connections."""

    def test_late_answer(self) -> None:
        """An answer that comes 0.3 s after the peer's end is sent."""
        for wired, end, name in self.each():
            clock = wired.clock
            wired.server_app.on_data = answer_later(wired)
            wired.client_app.tls.write(b"question")
            end(wired)
            wired.flush()
            clock.advance(0.3)
            wired.flush()
            self.assertEqual(bytes(wired.client_app.received), ANSWER, name)
            clock.pump([0.7, 1.0])
            wired.flush()
            self.assert_ended(wired, name)

    def test_answered(self) -> None:
        """One that has answered is not waited for."""
        for wired, end, name in self.each():
            wired.server_app.echo()
            wired.client_app.tls.write(b"question")
            wired.flush()
            end(wired)
            wired.flush()
            self.assertEqual(bytes(wired.client_app.received), b"question", name)
            self.assert_ended(wired, name)

    def test_nothing_asked(self) -> None:
        """One that was asked nothing is not waited for."""
        for wired, end, name in self.each():
            end(wired)
            wired.flush()
            self.assert_ended(wired, name)

    def test_pull_producer(self) -> None:
        """A pull producer, a file for example, is let finish."""
        for wired, end, name in self.each():
            tls = wired.server_app.tls
            wired.server_app.on_data = PullTwenty(tls).asked
            wired.client_app.tls.write(b"question")
            end(wired)
            wired.pair.client.paused = True
            wired.flush()
            wired.clock.pump([1.0] * 5)
            wired.pair.client.paused = False
            # Pull producers are driven by the global cooperator: let it be driven by hand.
            for _ in range(200):
                wired.flush()
                if tls._producer is None:
                    break
                tls._producer.producer._producer.resumeProducing()
            wired.clock.pump([1.0] * 3)
            wired.flush()
            self.assertEqual(len(wired.client_app.received), 20 * len(ANSWER), name)

    def test_client(self) -> None:
        """A client is not kept waiting: what a server says last needs no answer."""
        wired = Wired().handshake()
        wired.server_app.tls.write(b"last words")
        wired.server_app.tls.loseConnection()
        wired.flush()
        self.assertEqual(bytes(wired.client_app.received), b"last words")
        self.assertEqual([why.type for why in wired.client_app.reasons], [ConnectionDone])

    def test_at_once(self) -> None:
        """``answer_pause = 0`` ends the connection with the peer's side."""
        for version in VERSIONS.values():
            wired = Wired(version=version, limits={"answer_pause": 0}).handshake()
            wired.client_app.tls.write(b"unanswered")
            end_by_close_notify(wired)
            wired.flush()
            self.assert_ended(wired, "close_notify")

    def test_stock(self) -> None:
        """Stock Twisted loses all of this."""
        for version in VERSIONS.values():
            wired = Wired(STOCK, version=version).handshake()
            clock = wired.clock
            wired.server_app.on_data = answer_later(wired)
            wired.client_app.tls.write(b"question")
            end_by_close_notify(wired)
            for _ in range(5):
                wired.flush()
                try:
                    clock.advance(0.3)
                except (AttributeError, Error):  # what stock says to a write after its end
                    break
            self.assertEqual(bytes(wired.client_app.received), b"")
