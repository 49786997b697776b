"""The statements that are answered, told from all others: sans-IO.

A suite's set-up sends them by habit.  They are read in exactly the forms that are written here;
what is anything else, be it ever so similar, is not taken for one of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = [
    "CreatePrimaryIndex",
    "DeleteAll",
    "IsIndexOnline",
    "IsKeyspacePresent",
    "Keyspace",
    "SelectRawOne",
    "Statement",
    "kind_of",
    "parse",
    "parse_keyspace",
]


@dataclass(frozen=True, slots=True)
class Keyspace:
    """Where documents are.

    Attributes:
        parts: A bucket; or bucket, scope, collection; or, below a query context, a collection.
    """

    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CreatePrimaryIndex:
    """A primary index is wanted.

    ``CREATE PRIMARY INDEX [IF NOT EXISTS] [name] [IF NOT EXISTS] ON keyspace [USING GSI]``


    Attributes:
        keyspace: Of what.
        name: The index's.
        if_not_exists: Whether it is no error that there is one.
    """

    keyspace: Keyspace
    name: str = "#primary"
    if_not_exists: bool = False


@dataclass(frozen=True, slots=True)
class DeleteAll:
    """All documents are to go: ``DELETE FROM keyspace``, without WHERE, LIMIT or RETURNING."""

    keyspace: Keyspace


@dataclass(frozen=True, slots=True)
class SelectRawOne:
    """``SELECT RAW 1``, by which clients see whether queries are answered at all."""


@dataclass(frozen=True, slots=True)
class IsKeyspacePresent:
    """What testcontainers asks after it has created a bucket."""

    bucket: str


@dataclass(frozen=True, slots=True)
class IsIndexOnline:
    """What testcontainers asks after it has created a primary index."""

    bucket: str


Statement = CreatePrimaryIndex | DeleteAll | SelectRawOne | IsKeyspacePresent | IsIndexOnline

_TOKEN = re.compile(
    r"""\s*(?:
        `((?:[^`]|``)*)`            # a name in backticks
      | ([A-Za-z_][A-Za-z0-9_]*)    # a word
      | "([^"\\]*)"                 # text
      | (\d+)
      | ([.:;()*>=])
    )""",
    re.VERBOSE,
)

MAX_TOKENS = 60
"""More than any of these statements has."""

_KINDS = re.compile(
    r"\s*(EXPLAIN|ADVISE|PREPARE|EXECUTE|SELECT|INSERT|UPSERT|UPDATE|DELETE|MERGE|INFER|WITH"
    r"|(?:CREATE|DROP|ALTER|BUILD)\s+(?:PRIMARY\s+INDEX|[A-Z]+)|GRANT|REVOKE|START|BEGIN|COMMIT"
    r"|ROLLBACK|SAVEPOINT|UPDATE\s+STATISTICS|ANALYZE|TRUNCATE|FLUSH|SET|FROM)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str


class _NotOurs(Exception):
    """The statement is none of those that are answered."""


def kind_of(statement: str) -> str:
    """Return what sort of statement it is, for an error, e.g. ``CREATE INDEX``.

    Returns:
        ``""`` for what begins with no word that begins a statement.
    """
    match = _KINDS.match(statement)
    return "" if match is None else " ".join(match[1].upper().split())


def parse(statement: str) -> Statement | None:
    """Read a statement; None for one that is not answered."""
    tokens = _tokens(statement)
    if tokens is None:
        return None
    for form in (_create_index, _delete, _select_raw_one, _keyspace_present, _index_online):
        reader = _Reader(tokens)
        try:
            found = form(reader)
            reader.end()
        except _NotOurs:
            continue
        return found
    return None


def parse_keyspace(text: str) -> Keyspace | None:
    """Read the name of a keyspace; None for what is none."""
    tokens = _tokens(text)
    if tokens is None:
        return None
    reader = _Reader(tokens)
    try:
        found = reader.keyspace()
        reader.end()
    except _NotOurs:
        return None
    return found


def _tokens(statement: str) -> list[_Token] | None:
    tokens: list[_Token] = []
    at, text = 0, statement.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or len(tokens) == MAX_TOKENS:
            return None
        at = match.end()
        for kind, found in zip(
            ("name", "word", "text", "number", "sign"), match.groups(), strict=True
        ):
            if found is not None:
                tokens.append(_Token(kind, found.replace("``", "`") if kind == "name" else found))
    return tokens


class _Reader:
    """Takes tokens one after the other."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._at = 0

    def _next(self) -> _Token:
        if self._at == len(self._tokens):
            raise _NotOurs
        self._at += 1
        return self._tokens[self._at - 1]

    def maybe(self, *words: str) -> bool:
        """Take these words or signs if they come next."""
        found = self._tokens[self._at : self._at + len(words)]
        if [one.text.upper() for one in found] != list(words) or any(
            one.kind in {"name", "text"} for one in found
        ):
            return False
        self._at += len(words)
        return True

    def need(self, *words: str) -> None:
        """Take these words or signs, which have to come next."""
        if not self.maybe(*words):
            raise _NotOurs

    def name(self) -> str:
        """Take a name, in backticks or not."""
        token = self._next()
        if token.kind not in {"name", "word"} or not token.text:
            raise _NotOurs
        return token.text

    def text(self) -> str:
        """Take a text in double quotes."""
        token = self._next()
        if token.kind != "text":
            raise _NotOurs
        return token.text

    def keyspace(self) -> Keyspace:
        """Take ``[default:]bucket[.scope.collection]``."""
        parts = [self.name()]
        if self.maybe(":"):
            # Of namespaces there is this one.
            if parts != ["default"]:
                raise _NotOurs
            parts = [self.name()]
        while self.maybe("."):
            parts.append(self.name())
        if len(parts) not in {1, 3}:
            raise _NotOurs
        return Keyspace(tuple(parts))

    def end(self) -> None:
        """Take semicolons, and nothing more."""
        while self.maybe(";"):
            pass
        if self._at < len(self._tokens):
            raise _NotOurs


def _create_index(reader: _Reader) -> Statement:
    reader.need("CREATE", "PRIMARY", "INDEX")
    condition = reader.maybe("IF", "NOT", "EXISTS")
    name = "#primary"
    if not reader.maybe("ON"):
        name = reader.name()
        condition = reader.maybe("IF", "NOT", "EXISTS") or condition
        reader.need("ON")
    keyspace = reader.keyspace()
    reader.maybe("USING", "GSI")
    return CreatePrimaryIndex(keyspace, name, condition)


def _delete(reader: _Reader) -> Statement:
    reader.need("DELETE", "FROM")
    return DeleteAll(reader.keyspace())


def _select_raw_one(reader: _Reader) -> Statement:
    reader.need("SELECT", "RAW", "1")
    return SelectRawOne()


def _keyspace_present(reader: _Reader) -> Statement:
    reader.need("SELECT", "COUNT", "(", "*", ")", ">", "0", "AS", "PRESENT")
    reader.need("FROM", "SYSTEM", ":", "KEYSPACES", "WHERE", "NAME", "=")
    return IsKeyspacePresent(reader.text())


def _index_online(reader: _Reader) -> Statement:
    reader.need("SELECT", "COUNT", "(", "*", ")", ">", "0", "AS", "ONLINE")
    reader.need("FROM", "SYSTEM", ":", "INDEXES", "WHERE", "KEYSPACE_ID", "=")
    bucket = reader.text()
    reader.need("AND", "IS_PRIMARY", "=", "TRUE", "AND", "STATE", "=")
    if reader.text() != "online":
        raise _NotOurs
    return IsIndexOnline(bucket)
