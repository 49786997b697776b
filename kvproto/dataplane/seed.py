r"""Seeds: documents that people have written down, one a line, stored while the service serves.

A line is a JSON object::

    {"key": "hotel_1", "value": {"name": "Adlon"}, "scope": "travel", "collection": "hotels"}

``key`` and one of ``value`` (any JSON), ``text`` and ``base64`` are needed; ``bucket``, ``scope``,
``collection``, ``expiry`` (as clients send it) and ``flags`` may be there.  Lines without anything
but white space mean nothing.  A mistake is told with file and line, and nothing is stored then.
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from kvproto.config import DEFAULT_BUCKET
from kvproto.dataplane.administration import Administration, BucketSettings
from kvproto.errors import CommandError
from kvproto.server import KVServer
from kvproto.server.buckets import MAX_NAMED_KEY
from kvproto.store import Refusal
from kvproto.wire.collections import DEFAULT
from kvproto.wire.constants import MAX_KEY, Datatype

__all__ = ["Seeds"]

Run = Callable[..., Any]

_BATCH_LINES = 100
_BATCH_BYTES = 256 * 1024

_BESIDE_VALUE = 64 * 1024
"""Bytes of a line that are no value."""

_FLAGS = {"value": 0x0200_0000, "text": 0x0400_0000, "base64": 0x0300_0000}
"""Couchbase's common flags: JSON, a string, bytes; SDKs give back what these say."""

_FIELDS = frozenset({"key", "bucket", "scope", "collection", "expiry", "flags", *_FLAGS})

_MOST = 2**32 - 1


@dataclass(frozen=True, slots=True)
class _Line:
    """A document of a seed.

    Attributes:
        number: Its line, from 1.
        keyspace: Bucket, scope and collection.
    """

    number: int
    keyspace: tuple[str, str, str]
    key: bytes
    value: bytes
    flags: int
    expiry: int
    datatype: int


class Seeds:
    """Stores seeds.

    Args:
        server: Where.
        administration: Creates what a seed needs and is not there.
        clock: For pauses.
        run: Runs a function in a thread.
    """

    def __init__(
        self, server: KVServer, administration: Administration, clock: IReactorTime, run: Run
    ) -> None:
        self._server = server
        self._administration = administration
        self._clock = clock
        self._run = run

    def seed(self, path: Path, create: bool) -> Deferred[dict[str, Any]]:
        """Store every document of a file.

        Args:
            path: JSON lines.
            create: Whether buckets, scopes and collections that are not there are created.

        Returns:
            A Deferred of what ``kvtls seed`` answers with; it fails with `CommandError`: ``file``,
            ``bad-seed``, ``unknown-bucket``, ``unknown-collection``; nothing is stored then.
        """
        return Deferred.fromCoroutine(self._seed(path, create))

    async def _seed(self, path: Path, create: bool) -> dict[str, Any]:
        bucket = next(iter(self._server.buckets), DEFAULT_BUCKET)
        reader = _Reader(path, self._server.settings.value_limit, bucket)
        try:
            needed: dict[tuple[str, str, str], int] = await self._run(reader.keyspaces)
            for keyspace, number in needed.items():
                await self._provide(f"{path}:{number}", *keyspace, create=create)
            stored = 0
            batches = await self._run(reader.batches)
            while batch := await self._run(next, batches, None):
                for line in batch:
                    await self._store(path, line)
                    stored += 1
                await deferLater(self._clock, 0)
        except OSError as error:
            raise CommandError("file", f"{path}: {error.strerror}") from error
        finally:
            reader.close()
        return {"file": str(path), "documents": stored}

    async def _provide(
        self, where: str, bucket: str, scope: str, name: str, *, create: bool
    ) -> None:
        """See that a keyspace is there, and create it if that is wanted.

        Raises:
            CommandError: It is not, and cannot be created.
        """
        there = self._server.buckets.get(bucket)
        if there is not None and (scope, name) in there.manifest.collections:
            return
        if not create and there is None:
            raise CommandError(
                "unknown-bucket", f"{where}: there is no bucket {bucket!r}: use --create"
            )
        if not create:
            raise CommandError(
                "unknown-collection",
                f"{where}: bucket {bucket!r} has no collection {scope}.{name}: use --create",
            )
        try:
            await self._create(bucket, scope, name)
        except CommandError as error:
            raise CommandError(error.code, f"{where}: {error.reason}") from error

    async def _create(self, bucket: str, scope: str, name: str) -> None:
        administration = self._administration
        if bucket not in self._server.buckets:
            await administration.create_bucket(bucket, BucketSettings(flush=True))
        manifest = self._server.buckets[bucket].manifest
        if scope not in manifest.scopes:
            await administration.create_scope(bucket, scope)
        if (scope, name) not in manifest.collections:
            await administration.create_collection(bucket, scope, name)

    async def _store(self, path: Path, line: _Line) -> None:
        name, scope, collection = line.keyspace
        bucket = self._server.buckets.get(name)
        if bucket is None or (scope, collection) not in bucket.manifest.collections:
            raise CommandError(
                "unknown-collection", f"{path}:{line.number}: {name} was changed meanwhile"
            )
        number = bucket.manifest.collection_id(scope, collection)
        key: Any = (number, line.key) if number else line.key
        answer: Any = bucket.store.set(
            key, line.value, line.flags, line.expiry, datatype=line.datatype
        )
        if isinstance(answer, Deferred):
            answer = await answer
        if isinstance(answer, Refusal):
            why = answer.name.lower().replace("_", " ")
            raise CommandError("refused", f"{path}:{line.number}: the store has refused it: {why}")


class _Reader:
    """Reads a file of JSON lines, some at a time; its methods block.

    Args:
        path: Which.
        longest: Bytes of a value at most.
        bucket: Where documents go that name none.
    """

    def __init__(self, path: Path, longest: int, bucket: str) -> None:
        self._path = path
        self._bucket = bucket
        self._longest = longest
        self._file: IO[bytes] | None = None

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()

    def keyspaces(self) -> dict[tuple[str, str, str], int]:
        """Read everything; return each keyspace with the first line that needs it.

        Raises:
            CommandError: A line cannot be used.
            OSError: The file cannot be read.
        """
        found: dict[tuple[str, str, str], int] = {}
        for batch in self.batches():
            for line in batch:
                found.setdefault(line.keyspace, line.number)
        return found

    def batches(self) -> Iterator[list[_Line]]:
        """Begin at the beginning, and yield documents, some at a time."""
        self.close()
        self._file = self._path.open("rb")
        return self._batches(self._file)

    def _batches(self, file: IO[bytes]) -> Iterator[list[_Line]]:
        batch: list[_Line] = []
        size = 0
        longest = 2 * self._longest + _BESIDE_VALUE  # base64, or what JSON escapes
        number = 0
        while text := file.readline(longest + 1):
            number += 1
            if len(text) > longest:
                raise self._fault(number, f"is longer than {longest} bytes")
            if text.strip():
                batch.append(self._line(number, text))
                size += len(text)
            if len(batch) == _BATCH_LINES or size > _BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _fault(self, number: int, what: str) -> CommandError:
        return CommandError("bad-seed", f"{self._path}:{number}: {what}; nothing was stored")

    def _line(self, number: int, text: bytes) -> _Line:
        try:
            fields = json.loads(text, parse_constant=_refuse_constant)
        except UnicodeDecodeError:
            raise self._fault(number, "is no UTF-8") from None
        except json.JSONDecodeError as error:
            raise self._fault(
                number, f"is no JSON: {error.msg}, at character {error.pos + 1}"
            ) from None
        except (ValueError, RecursionError) as error:
            raise self._fault(number, f"is no JSON: {error}") from None
        try:
            return self._document(number, fields)
        except ValueError as error:
            raise self._fault(number, str(error)) from None

    def _document(self, number: int, fields: Any) -> _Line:
        """Make a document of a JSON object; ValueError says what is wrong with it."""
        if not isinstance(fields, dict):
            raise ValueError("is no JSON object")  # noqa: TRY004 - all mistakes alike
        if unknown := sorted(fields.keys() - _FIELDS):
            raise ValueError(f"has an unknown field {unknown[0]!r}")
        keyspace = (
            _name(fields, "bucket", self._bucket),
            _name(fields, "scope", DEFAULT),
            _name(fields, "collection", DEFAULT),
        )
        kinds = [kind for kind in _FLAGS if kind in fields]
        if len(kinds) != 1:
            raise ValueError('needs one of "value", "text" and "base64"')
        value = _value(kinds[0], fields[kinds[0]])
        if len(value) > self._longest:
            raise ValueError(f"has a value of {len(value)} bytes, {self._longest} are allowed")
        return _Line(
            number,
            keyspace,
            _key(fields, MAX_KEY if keyspace[1:] == (DEFAULT, DEFAULT) else MAX_NAMED_KEY),
            value,
            _number(fields, "flags", _FLAGS[kinds[0]]),
            _number(fields, "expiry", 0),
            Datatype.JSON if kinds[0] == "value" else 0,
        )


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is no number")


def _name(fields: dict[str, Any], field: str, default: str) -> str:
    name = fields.get(field, default)
    if not isinstance(name, str) or not name:
        raise ValueError(f'has a "{field}" that is no name')
    return name


def _key(fields: dict[str, Any], longest: int) -> bytes:
    key = fields.get("key")
    if not isinstance(key, str) or not key:
        raise ValueError('needs a "key", a text that is not empty')
    encoded = key.encode("utf-8", "surrogatepass")
    if len(encoded) > longest:
        raise ValueError(f"has a key of {len(encoded)} bytes, {longest} are allowed")
    return encoded


def _value(kind: str, value: Any) -> bytes:
    if kind == "value":
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(
            "utf-8", "surrogatepass"
        )
    if not isinstance(value, str):
        raise ValueError(f'has a "{kind}" that is no text')  # noqa: TRY004 - all mistakes alike
    if kind == "text":
        return value.encode("utf-8", "surrogatepass")
    try:
        return b64decode(value, validate=True)
    except ValueError as error:
        raise ValueError(f'has a "base64" that is none: {error}') from None


def _number(fields: dict[str, Any], field: str, default: int) -> int:
    number = fields.get(field, default)
    # type(), not isinstance(): for Python true is a number.
    if type(number) is not int or not 0 <= number <= _MOST:
        raise ValueError(f'has "{field}" that is no whole number from 0 to {_MOST}')
    return number
