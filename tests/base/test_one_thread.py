"""`OneThread`: functions in a thread, answers in another one."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from kvproto.base.one_thread import OneThread

SECONDS = 60.0


class OneThreadTests(SynchronousTestCase):
    """A real thread; what it hands back waits until the test takes it."""

    def setUp(self) -> None:
        self.answers: SimpleQueue[tuple[Any, ...]] = SimpleQueue()
        self.thread = OneThread(lambda *call: self.answers.put(call))
        self.addCleanup(self.thread.stop)

    def take(self) -> None:
        """Do in this thread what the other one has asked for."""
        function, *args = self.answers.get(timeout=SECONDS)
        function(*args)

    def test_in_order(self) -> None:
        """Each function runs after the one before it, in one other thread."""
        seen: list[tuple[int, int]] = []

        def see(number: int) -> int:
            seen.append((number, threading.get_ident()))
            return number

        answers = [self.thread.run(see, number) for number in range(5)]
        for _ in answers:
            self.take()
        self.assertEqual([self.successResultOf(answer) for answer in answers], [0, 1, 2, 3, 4])
        self.assertEqual([number for number, _ in seen], [0, 1, 2, 3, 4])
        self.assertEqual(len({thread for _, thread in seen} - {threading.get_ident()}), 1)

    def test_failure(self) -> None:
        """What a function raises is the failure of its Deferred; the thread goes on."""
        failed, done = self.thread.run(int, "x"), self.thread.run(int, "1")
        self.take()
        self.take()
        self.failureResultOf(failed, ValueError)
        self.assertEqual(self.successResultOf(done), 1)

    def test_stop(self) -> None:
        """The thread ends when what it was given is done, and another one does what comes later."""
        first, second = (self.thread.run(threading.current_thread) for _ in range(2))
        self.thread.stop()
        self.take()
        self.take()
        worker = self.successResultOf(first)
        self.assertIs(self.successResultOf(second), worker)
        worker.join(SECONDS)
        self.assertFalse(worker.is_alive())
        again = self.thread.run(threading.current_thread)
        self.take()
        self.assertIsNot(self.successResultOf(again), worker)

    def test_never_used(self) -> None:
        """There is no thread before there is something to do, and nothing to stop."""
        before = threading.active_count()
        OneThread(lambda *call: None).stop()
        self.assertEqual(threading.active_count(), before)
