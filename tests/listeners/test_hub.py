"""The hub between the reactor and accepted connections, on socket pairs."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import skipIf

from twisted.internet import main
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableDescriptor, IReactorFDSet, IReadDescriptor
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from kvproto.listeners import hub as under_test
from kvproto.listeners.hub import COHORT, TURN, VISITS, Hub, HubReactor, hub_for


class Outer(Clock):
    """The reactor around a hub."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: list[Any] = []

    def addReader(self, reader: Any) -> None:
        self.readers.append(reader)

    def removeReader(self, reader: Any) -> None:
        self.readers.remove(reader)


class Member:
    """A transport that does what the test says."""

    def __init__(self, ours: socket.socket) -> None:
        self.socket = ours
        self.fileno = ours.fileno
        self.reads = 0
        self.writes = 0
        self.lost: list[BaseException | None] = []
        self.on_read: Callable[[], Any] = lambda: None
        self.on_write: Callable[[], Any] = lambda: None
        self.on_lost: Callable[[], Any] = lambda: None

    def doRead(self) -> Any:
        self.reads += 1
        return self.on_read()

    def doWrite(self) -> Any:
        self.writes += 1
        return self.on_write()

    def connectionLost(self, reason: Failure) -> None:
        self.lost.append(reason.value)
        self.on_lost()


@implementer(IHalfCloseableDescriptor)
class HalfCloseable(Member):
    """A transport whose halves may end apart."""

    def __init__(self, ours: socket.socket) -> None:
        super().__init__(ours)
        self.read_lost: list[BaseException | None] = []

    def readConnectionLost(self, reason: Failure) -> None:
        self.read_lost.append(reason.value)

    def writeConnectionLost(self, reason: Failure) -> None:
        """Nobody asks."""


@skipIf(not hasattr(select, "epoll"), "no epoll here")
class HubTests(SynchronousTestCase):
    """What a hub does for its members."""

    def setUp(self) -> None:
        self.outer = Outer()
        self.hub = Hub(self.outer)

    def member(self, make: type[Any] = Member) -> tuple[Any, socket.socket]:
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        return make(ours), theirs

    def reader(self, make: type[Any] = Member) -> tuple[Any, socket.socket]:
        member, theirs = self.member(make)
        self.hub.addReader(member)
        return member, theirs

    def test_interfaces(self) -> None:
        """It is a reactor's set of descriptors, and a descriptor."""
        self.assertTrue(verifyObject(IReactorFDSet, self.hub))
        self.assertTrue(verifyObject(IReadDescriptor, self.hub))
        self.assertEqual(self.hub.logPrefix(), "connections")

    def test_the_reactor_in_everything_else(self) -> None:
        """Timers are the reactor's."""
        reactor = HubReactor(self.hub, self.outer)
        call = reactor.callLater(1, lambda: None)
        self.assertEqual(self.outer.getDelayedCalls(), [call])
        member, _ = self.member()
        reactor.addReader(member)
        reactor.addWriter(member)
        self.assertEqual((self.hub.getReaders(), self.hub.getWriters()), ([member], [member]))
        reactor.removeReader(member)
        reactor.removeWriter(member)
        self.assertEqual((self.hub.getReaders(), self.hub.getWriters()), ([], []))

    def test_the_reactor_watches_while_there_are_members(self) -> None:
        """An empty hub is nothing to the reactor: it leaves nothing behind."""
        self.assertEqual(self.outer.readers, [])
        one, _ = self.reader()
        two, _ = self.reader()
        self.assertEqual(self.outer.readers, [self.hub])
        self.hub.removeReader(one)
        self.assertEqual(self.outer.readers, [self.hub])
        self.hub.removeReader(two)
        self.assertEqual(self.outer.readers, [])

    def test_adding_and_removing_twice(self) -> None:
        """The second time is nothing, as with a reactor."""
        member, _ = self.reader()
        self.hub.addReader(member)
        self.hub.removeWriter(member)
        self.assertEqual(self.hub.getReaders(), [member])
        self.hub.removeReader(member)
        self.hub.removeReader(member)
        self.assertEqual(self.hub.getReaders(), [])

    def test_removing_what_was_not_added(self) -> None:
        """Who only reads is not removed as a writer, and who is unknown not at all."""
        member, _ = self.reader()
        self.hub.removeWriter(member)
        self.assertEqual(self.hub.getReaders(), [member])
        others = [self.member() for _ in range(40)]
        for other, _ in others:
            self.hub.removeReader(other)
            self.hub.removeWriter(other)
        self.assertEqual(self.hub.getReaders(), [member])
        self.hub.addReader(others[-1][0])
        self.assertEqual(set(self.hub.getReaders()), {member, others[-1][0]})

    def test_readers_and_writers(self) -> None:
        """Each is told what it asked for, until it asks no more."""
        member, theirs = self.reader()
        self.hub.doRead()
        self.assertEqual((member.reads, member.writes), (0, 0))
        theirs.send(b"x")
        self.hub.doRead()
        self.assertEqual((member.reads, member.writes), (1, 0))
        self.hub.addWriter(member)
        self.assertEqual(self.hub.getWriters(), [member])
        self.hub.doRead()
        self.assertEqual((member.reads, member.writes), (2, 1), "level-triggered")
        self.hub.removeReader(member)
        self.hub.doRead()
        self.assertEqual((member.reads, member.writes), (2, 2))
        self.hub.removeWriter(member)
        self.assertEqual(self.outer.readers, [])

    def test_readable_for_the_reactor(self) -> None:
        """Its descriptor is ready exactly while a member is."""
        outer = select.epoll()
        self.addCleanup(outer.close)
        outer.register(self.hub.fileno(), select.EPOLLIN)
        _, theirs = self.reader()
        self.assertEqual(outer.poll(0), [])
        theirs.send(b"x")
        self.assertEqual(outer.poll(0), [(self.hub.fileno(), select.EPOLLIN)])

    def test_the_end(self) -> None:
        """What doRead or doWrite returns ends the connection, with that reason."""
        for why, expected in (
            (main.CONNECTION_DONE, ConnectionDone),
            (main.CONNECTION_LOST, ConnectionLost),
            (ValueError("odd"), ValueError),
        ):
            member, theirs = self.reader()
            member.on_read = lambda why=why: why
            theirs.send(b"x")
            self.hub.doRead()
            self.assertIsInstance(member.lost[0], expected)
            member, _ = self.member()
            self.hub.addWriter(member)
            member.on_write = lambda why=why: why
            self.hub.doRead()
            self.assertIsInstance(member.lost[0], expected)
        self.assertEqual(self.outer.readers, [])

    def test_one_half(self) -> None:
        """An orderly end of the input ends the reading half only; of the output, all."""
        member, theirs = self.reader(HalfCloseable)
        self.hub.addWriter(member)
        member.on_read = lambda: main.CONNECTION_DONE
        theirs.send(b"x")
        self.hub.doRead()
        self.assertIsInstance(member.read_lost[0], ConnectionDone)
        self.assertEqual(member.lost, [])
        member.on_write = lambda: main.CONNECTION_DONE
        self.hub.doRead()
        self.assertEqual(len(member.read_lost), 1)
        self.assertIsInstance(member.lost[0], ConnectionDone)

    def test_hanging_up(self) -> None:
        """A peer that is gone ends a connection that does not read; nobody waits for it."""
        listening = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listening.close)
        peer = socket.create_connection(listening.getsockname())
        ours, _ = listening.accept()
        self.addCleanup(ours.close)
        member = Member(ours)
        self.hub.addWriter(member)
        ours.shutdown(socket.SHUT_RDWR)
        peer.close()
        self.hub.removeReader(member)
        self.hub.doRead()
        self.assertEqual(member.writes, 0)
        self.assertIsInstance(member.lost[0], ConnectionLost)

    def test_an_exception_ends_one_connection(self) -> None:
        """It is logged, ends the connection it came from, and no other."""
        bad, bad_peer = self.reader()
        good, good_peer = self.reader()
        bad.on_read = lambda: 1 / 0
        bad_peer.send(b"x")
        good_peer.send(b"x")
        self.hub.doRead()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertIsInstance(bad.lost[0], ZeroDivisionError)
        self.assertEqual((good.reads, good.lost), (1, []))

    def test_an_exception_at_the_end(self) -> None:
        """A protocol that fails in connectionLost harms nobody else."""
        bad, bad_peer = self.reader()
        good, good_peer = self.reader()
        bad.on_read = lambda: main.CONNECTION_LOST
        bad.on_lost = lambda: 1 / 0
        bad_peer.send(b"x")
        good_peer.send(b"x")
        self.hub.doRead()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(good.reads, 1)
        self.assertEqual(self.hub.getReaders(), [good])

    def test_ended_by_a_neighbour(self) -> None:
        """One that was ended earlier in the same turn is not called any more."""
        one, one_peer = self.reader()
        two, two_peer = self.reader()
        one.on_read = lambda: self.hub.removeReader(two)
        two.on_read = lambda: self.hub.removeReader(one)
        one_peer.send(b"x")
        two_peer.send(b"x")
        self.hub.doRead()
        self.assertEqual(one.reads + two.reads, 1)

    def test_behind_one_that_was_ended(self) -> None:
        """Whoever is ready behind a member that was ended meanwhile is served in the same turn."""
        members = [self.reader() for _ in range(4)]
        order: list[int] = []

        def read(number: int) -> None:
            order.append(number)
            if len(order) == 1:
                for other in range(4):
                    if other not in {number, 3 - number}:
                        self.hub.removeReader(members[other][0])

        for number, (member, theirs) in enumerate(members):
            member.on_read = partial(read, number)
            theirs.send(b"x")
        self.hub.doRead()
        self.assertEqual(sorted(order), sorted({order[0], 3 - order[0]}))

    def test_not_written_after_it_has_ended(self) -> None:
        """A connection that ends itself while it reads is not asked to write."""
        member, theirs = self.reader()
        self.hub.addWriter(member)
        member.on_read = lambda: self.hub.removeWriter(member)
        theirs.send(b"x")
        self.hub.doRead()
        self.assertEqual((member.reads, member.writes), (1, 0))

    def crowd(self, count: int, on_read: Callable[[Any, socket.socket], Any]) -> list[Any]:
        """Return members that all have something to read.

        Args:
            count: How many.
            on_read: Called with a member and its peer's end for each read.
        """
        members = []
        for _ in range(count):
            member, theirs = self.reader()
            member.on_read = partial(on_read, member, theirs)
            theirs.send(b"x")
            members.append(member)
        return members

    def test_turns_are_bounded_and_fair(self) -> None:
        """More ready members than a turn serves are served by turns, nobody too often."""
        members = self.crowd(TURN + 1, lambda member, theirs: None)
        self.hub.doRead()
        self.assertEqual({member.reads for member in members}, {0, VISITS})
        self.assertEqual(sum(member.reads for member in members), VISITS * TURN)
        self.hub.doRead()
        self.assertTrue(all(member.reads for member in members))

    def test_once_while_there_is_time_for_all(self) -> None:
        """Fewer than a turn serves are served once, whether they ask again or not."""
        members = self.crowd(TURN - 1, lambda member, theirs: None)
        self.hub.doRead()
        self.assertEqual({member.reads for member in members}, {1})

    def test_several_times_in_a_row(self) -> None:
        """Whoever has asked again is served again before others have their first turn."""
        order = []

        def answer(member: Any, theirs: socket.socket) -> None:
            member.socket.recv(1)
            order.append(member)
            if member.reads < VISITS:
                theirs.send(b"x")

        self.crowd(TURN, answer)
        self.hub.doRead()
        self.assertEqual(len(order), VISITS * TURN)
        for at in range(0, len(order), VISITS * COHORT):
            cohort = order[at : at + VISITS * COHORT]
            for visit in range(0, len(cohort), COHORT):
                self.assertEqual(set(cohort[visit : visit + COHORT]), set(cohort))

    def test_only_who_has_asked_again(self) -> None:
        """Whoever has not, or does not read on, is not called a second time."""

        def answer(member: Any, theirs: socket.socket) -> None:
            member.socket.recv(1)
            if member in again or member in stopped:
                theirs.send(b"x")
            if member in stopped:
                self.hub.removeReader(member)

        members = self.crowd(TURN, answer)
        again, stopped = set(members[::3]), set(members[1::3])
        self.hub.doRead()
        self.assertEqual({member for member in members if member.reads == VISITS}, again)
        self.assertEqual({member.reads for member in members}, {1, VISITS})

    def test_whoever_has_ended(self) -> None:
        """A connection that ends when it is first served is not served again, nor ended again."""
        members = self.crowd(TURN, lambda member, theirs: main.CONNECTION_DONE)
        self.hub.doRead()
        self.assertEqual({(member.reads, len(member.lost)) for member in members}, {(1, 1)})
        self.assertEqual(self.outer.readers, [])

    def test_whoever_is_hung_up_on(self) -> None:
        """A peer that goes away meanwhile is heard of once."""

        def answer(member: Any, theirs: socket.socket) -> Any:
            if member.socket.recv(1):
                theirs.close()
                return None
            return main.CONNECTION_DONE

        members = self.crowd(TURN, answer)
        self.hub.doRead()
        self.assertEqual({(member.reads, len(member.lost)) for member in members}, {(2, 1)})

    def test_a_socket_closed_behind_our_back(self) -> None:
        """Its member can still be removed."""
        member, _ = self.reader()
        member.socket.close()
        self.hub.removeReader(member)
        self.assertEqual(self.outer.readers, [])
        self.hub.removeReader(member)

    def test_the_reactors_end(self) -> None:
        """Every connection hears of it, even behind one that fails."""
        one, _ = self.reader()
        two, _ = self.reader()
        one.on_lost = lambda: 1 / 0
        reason = Failure(main.CONNECTION_LOST)
        self.hub.connectionLost(reason)
        self.assertEqual((one.lost, two.lost), ([reason.value], [reason.value]))
        self.assertEqual(self.outer.readers, [])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_only_for_epoll(self) -> None:
        """Other reactors watch connections themselves."""
        self.assertIs(hub_for(self.outer), self.outer)
        # Never initialised: nothing to clean up.
        epoll_reactor = EPollReactor.__new__(EPollReactor)
        self.assertIsInstance(hub_for(epoll_reactor), HubReactor)
        self.patch(under_test, "EPollReactor", None)
        self.assertIs(hub_for(epoll_reactor), epoll_reactor)
