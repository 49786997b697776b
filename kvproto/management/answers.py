"""What is asked and what is answered, without HTTP: `Call`, `Answer`, `Refused`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kvproto.errors import CommandError
from kvproto.management.rights import Rights

__all__ = ["Answer", "Call", "Refused", "errors", "ok", "refused"]

JSON = "application/json"
TEXT = "text/plain"


@dataclass(slots=True)
class Answer:
    """An answer.

    Attributes:
        code: HTTP status.
        body: What is in it.
        kind: Content type.
        headers: Further ones.
    """

    code: int = 200
    body: bytes = b""
    kind: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Call:
    """A request, its sender known.

    Attributes:
        words: What stands in the places of a route's names.
        form: Fields of the query string and of a form in the body; of several, the last.
        body: The body as it came.
        kind: Its content type, without parameters.
        host: Name that the client has dialled, without a port.
        secured: Whether it came by TLS.
        user: Who sent it, ``""`` for nobody in particular.
        rights: What that user may do.
    """

    words: dict[str, str]
    form: dict[str, str]
    body: bytes
    kind: str
    host: str
    secured: bool
    user: str
    rights: Rights


class Refused(Exception):
    """A request that is answered with an error.

    Args:
        answer: With what.
    """

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer)
        self.answer = answer


def ok(value: Any, code: int = 200) -> Answer:
    """Return an answer that is JSON."""
    return Answer(code, json.dumps(value).encode())


def errors(found: Mapping[str, str], code: int = 400) -> Refused:
    """Return an error as Couchbase's cluster manager has it: a sentence for each field.

    Args:
        found: By field; ``_`` for what is of none.
        code: HTTP status.
    """
    return Refused(ok({"errors": found}, code))


_FIELD = {
    "bad-name": "name",
    "bad-password": "password",
    "no-history": "history",
    "unknown-group": "groups",
}

_STATUS = {"unknown-scope": 404, "unknown-collection": 404}


def refused(error: CommandError) -> Refused:
    """Return what Couchbase answers where the administration has refused something."""
    if error.code == "unknown-bucket":
        return Refused(Answer(404, b"Requested resource not found.\r\n", TEXT))
    if error.code == "unknown-user":
        return Refused(ok(error.reason, 404))
    return errors({_FIELD.get(error.code, "_"): error.reason}, _STATUS.get(error.code, 400))
