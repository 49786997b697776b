"""What became of a reload or rollback, as a value for the log, the status and whoever asked."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

__all__ = ["Action", "ListenerResult", "Verdict"]


class Action(enum.Enum):
    """What was asked for."""

    RELOAD = "reload"
    ROLLBACK = "rollback"


@dataclass(frozen=True, slots=True)
class ListenerResult:
    """What a subscriber made of a new generation.

    Args:
        name: The name it subscribed with.
        ok: False when it failed.
        done: False when it was still at work when the verdict was due.
        detail: What it returned, or why it failed.
    """

    name: str
    ok: bool
    done: bool
    detail: Any = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a reload or rollback.

    Args:
        action: What was asked for.
        ok: Whether the files (or the earlier generation) are what is served now.
        changed: Whether that needed a new generation.
        generation: Number of the generation that serves now.
        fingerprint: SHA-256 of the certificate that it shows.
        not_after: When its chain expires, in Unix seconds.
        stage: Where it failed, a value of `Stage`; ``""`` when ok.
        reason: Why it failed; ``""`` when ok.
        warnings: What the operator should know about what serves now.
        listeners: What subscribers made of it.
    """

    action: Action
    ok: bool
    changed: bool
    generation: int
    fingerprint: str
    not_after: float
    stage: str = ""
    reason: str = ""
    warnings: tuple[str, ...] = ()
    listeners: tuple[ListenerResult, ...] = ()
