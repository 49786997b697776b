"""`OneThread`: functions in a thread, answers in another one."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from kvproto.base.one_thread import OneThread

SECONDS = 60.0


class OneThreadTests(SynchronousTestCase):
    """A real thread; what it hands back waits until the test takes it."""

    def setUp(self) -> None:
        self.readers: list[Any] = []
        reactor: Any = self
        self.thread = OneThread(reactor)
        self.addCleanup(self.thread.stop)

    def addReader(self, reader: Any) -> None:
        self.readers.append(reader)

    def removeReader(self, reader: Any) -> None:
        self.readers.remove(reader)

    def take(self, reader: Any = None) -> None:
        """Do as a reactor does when something can be read."""
        reader = reader or self.readers[-1]
        self.assertEqual(select.select([reader], [], [], SECONDS)[0], [reader])
        reader.doRead()

    def answer(self, answer: Deferred[Any]) -> Any:
        """Return what was answered, once it was."""
        while not answer.called:
            self.take()
        return self.successResultOf(answer)

    def test_in_order(self) -> None:
        """Each function runs after the one before it, in one other thread."""
        seen: list[tuple[int, int]] = []

        def see(number: int) -> int:
            seen.append((number, threading.get_ident()))
            return number

        answers = [self.thread.run(see, number) for number in range(5)]
        self.assertEqual([self.answer(answer) for answer in answers], [0, 1, 2, 3, 4])
        self.assertEqual([number for number, _ in seen], [0, 1, 2, 3, 4])
        self.assertEqual(len({thread for _, thread in seen} - {threading.get_ident()}), 1)

    def test_failure(self) -> None:
        """What a function raises is the failure of its Deferred; the thread goes on."""
        failed, done = self.thread.run(int, "x"), self.thread.run(int, "1")
        self.assertEqual(self.answer(done), 1)
        self.failureResultOf(failed, ValueError)

    def test_stop(self) -> None:
        """The thread ends when what it was given is done, and another one does what comes later."""
        allowed = threading.Event()
        first = self.thread.run(allowed.wait, SECONDS)
        second = self.thread.run(threading.current_thread)
        self.thread.stop()
        (reader,) = self.readers
        again = self.thread.run(threading.current_thread)
        self.assertEqual(len(self.readers), 2)
        other = self.answer(again)
        allowed.set()
        while not second.called:
            self.take(reader)
        self.assertTrue(self.successResultOf(first))
        worker = self.successResultOf(second)
        self.assertIsNot(other, worker)
        worker.join(SECONDS)
        self.assertFalse(worker.is_alive())
        self.assertEqual((reader in self.readers, reader.fileno()), (False, -1))

    def test_stopped_by_an_answer(self) -> None:
        """Who stops it when the last answer comes leaves nothing with the reactor."""
        done = self.thread.run(int, "1").addCallback(lambda _: self.thread.stop())
        self.answer(done)
        self.assertEqual(self.readers, [])

    def test_descriptors(self) -> None:
        """Neither end of what the two speak through is left open, or seen by other programs."""
        before = set(os.listdir("/dev/fd"))
        worker = self.answer(self.thread.run(threading.current_thread))
        opened = {int(name) for name in set(os.listdir("/dev/fd")) - before}
        for descriptor in opened:
            with contextlib.suppress(OSError):  # what listed them
                self.assertFalse(os.get_inheritable(descriptor))
        self.thread.stop()
        worker.join(SECONDS)
        self.assertEqual(set(os.listdir("/dev/fd")), before)

    def test_never_used(self) -> None:
        """There is no thread before there is something to do, and nothing to stop."""
        before = threading.active_count()
        reactor: Any = self
        OneThread(reactor).stop()
        self.assertEqual((threading.active_count(), self.readers), (before, []))
