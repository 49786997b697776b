"""One thing at a time, and the same wish only once."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from kvproto.base.serial import Serial


class SerialTests(SynchronousTestCase):
    """Jobs whose ends are the test's."""

    def setUp(self) -> None:
        self.serial = Serial()
        self.begun: list[str] = []
        self.ends: list[Deferred[str]] = []

    def run_job(self, key: str) -> Deferred[str]:
        async def job() -> str:
            self.begun.append(key)
            end: Deferred[str] = Deferred()
            self.ends.append(end)
            return await end

        answer: Deferred[str] = self.serial.run(key, job)
        return answer

    def test_one_after_another(self) -> None:
        """A job begins when the one before has ended."""
        first, second = self.run_job("start"), self.run_job("stop")
        self.assertEqual(self.begun, ["start"])
        self.ends[0].callback("started")
        self.assertEqual(self.successResultOf(first), "started")
        self.assertEqual(self.begun, ["start", "stop"])
        self.ends[1].callback("stopped")
        self.assertEqual(self.successResultOf(second), "stopped")
        self.assertFalse(self.serial.busy)

    def test_cancelled_by_another_caller(self) -> None:
        """A caller that is answered may cancel one that is not yet: that one is not answered."""
        self.run_job("restart")
        first, second = self.run_job("restart"), self.run_job("restart")
        first.addCallback(lambda _answer: second.cancel())
        self.ends[0].callback("first")
        self.ends[1].callback("second")
        self.successResultOf(first)
        self.failureResultOf(second, CancelledError)

    def test_twenty_wishes_are_two_jobs(self) -> None:
        """Requests that wait together are one, and everybody gets the answer."""
        callers = [self.run_job("restart") for _ in range(20)]
        self.ends[0].callback("first")
        self.ends[1].callback("second")
        answers = [self.successResultOf(caller) for caller in callers]
        self.assertEqual(answers, ["first"] + ["second"] * 19)
        self.assertEqual(len(self.begun), 2)

    def test_order_is_kept(self) -> None:
        """A wish is not joined to an equal one with another in between."""
        self.run_job("start")
        for key in ("stop", "start", "stop"):
            self.run_job(key)
        for position in range(4):
            self.ends[position].callback("")
        self.assertEqual(self.begun, ["start", "stop", "start", "stop"])

    def test_failure_reaches_everybody(self) -> None:
        """A job that fails fails for all its callers, and the next one runs."""
        callers = [self.run_job("restart") for _ in range(3)]
        after = self.run_job("stop")
        self.ends[0].callback("")
        self.ends[1].errback(Failure(ZeroDivisionError()))
        self.successResultOf(callers[0])
        for caller in callers[1:]:
            self.failureResultOf(caller, ZeroDivisionError)
        self.ends[2].callback("stopped")
        self.assertEqual(self.successResultOf(after), "stopped")

    def test_giving_up_gives_up_the_answer_only(self) -> None:
        """A caller that cancels does not stop the job for others."""
        first, second = self.run_job("a"), self.run_job("b")
        third = self.run_job("b")
        second.cancel()
        self.ends[0].callback("")
        self.ends[1].callback("done")
        self.assertEqual(self.successResultOf(third), "done")
        self.successResultOf(first)
        self.failureResultOf(second)
