"""A producer that writes down what it is told."""

from __future__ import annotations

__all__ = ["Producer"]


class Producer:
    """Some application's producer.

    Attributes:
        calls: What it was told, in order: ``"pause"``, ``"resume"``, ``"stop"``.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []

    def pauseProducing(self) -> None:
        self.calls.append("pause")

    def resumeProducing(self) -> None:
        self.calls.append("resume")

    def stopProducing(self) -> None:
        self.calls.append("stop")
