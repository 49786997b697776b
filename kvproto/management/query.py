"""The query service: it answers what set-ups send by habit, and says of all else that it cannot.

There are no indexes and no queries.  A primary index is a name that is remembered, for those who
create it again; nothing is ever looked up by it.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from kvproto.errors import CommandError
from kvproto.management.answers import Answer, Call, ok
from kvproto.management.part import Part
from kvproto.management.statements import (
    CreatePrimaryIndex,
    DeleteAll,
    IsIndexOnline,
    IsKeyspacePresent,
    Keyspace,
    SelectRawOne,
    kind_of,
    parse,
    parse_keyspace,
)
from kvproto.server import Bucket
from kvproto.wire.collections import DEFAULT

__all__ = ["Query"]

LONGEST_INDEX_NAME = 220
"""Characters; Couchbase's."""

_ANSWERED = "CREATE PRIMARY INDEX, DELETE FROM a whole keyspace, and SELECT RAW 1"


class _QueryError(Exception):
    """A statement that is answered with an error.

    Args:
        code: Couchbase's.
        message: For people, and for clients that look for words in it.
        status: HTTP status.
    """

    def __init__(self, code: int, message: str, status: int = 400) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.status = status


class Query(Part):
    """Paths of the query service."""

    def routes(self) -> Iterable[tuple[str, str, Any]]:
        """Return method, path and handler of each route."""
        return (
            ("GET", "/admin/ping", lambda _: ok({"status": "OK"})),
            ("POST", "/query/service", self._query),
            ("GET", "/query/service", self._query),
        )

    async def _query(self, call: Call) -> Answer:
        begun = time.perf_counter()
        request: Mapping[str, Any] = {}
        rows: list[Any] = []
        mutations = 0
        error: _QueryError | None = None
        try:
            request = _request(call)
            rows, mutations = await self._execute(call, request)
        except _QueryError as found:
            error = found
        elapsed = f"{(time.perf_counter() - begun) * 1000:.6f}ms"
        body: dict[str, Any] = {"requestID": str(uuid.uuid4())}
        if isinstance(context := request.get("client_context_id"), str):
            body["clientContextID"] = context
        if error is None:
            body["signature"] = {"$1": "number"} if rows else None
        body["results"] = rows
        if error is not None:
            problem = {"code": error.code, "msg": error.message}
            body["errors"] = [{**problem, "retry": False}]
        body["status"] = "success" if error is None else "fatal"
        if request.get("metrics") not in {False, "false"}:
            body["metrics"] = {
                "elapsedTime": elapsed,
                "executionTime": elapsed,
                "resultCount": len(rows),
                "resultSize": sum(len(json.dumps(row)) for row in rows),
            }
            if mutations:
                body["metrics"]["mutationCount"] = mutations
            if error is not None:
                body["metrics"]["errorCount"] = 1
        return ok(body, 200 if error is None else error.status)

    async def _execute(self, call: Call, request: Mapping[str, Any]) -> tuple[list[Any], int]:
        """Return rows, and how many documents have changed."""
        text = _statement(request)
        statement = parse(text)
        match statement:
            case SelectRawOne():
                return [1], 0
            case IsKeyspacePresent(name):
                return [{"present": self._sees(call, name)}], 0
            case IsIndexOnline(name):
                there = self._sees(call, name)
                settings = self.administration.settings.get(name) if there else None
                online = settings is not None and f"{DEFAULT}.{DEFAULT}" in settings.indexes
                return [{"online": online}], 0
            case CreatePrimaryIndex():
                _need_writes(request)
                await self._create_index(call, request, statement)
                return [], 0
            case DeleteAll(keyspace):
                _need_writes(request)
                bucket, scope, collection = self._keyspace(call, request, keyspace)
                return [], await self._delete(bucket, scope, collection)
        what = kind_of(text) or "this statement"
        raise _QueryError(
            1020, f"statement {what} not yet implemented: kvproto answers only {_ANSWERED}"
        )

    def _sees(self, call: Call, bucket: str) -> bool:
        return bucket in self.server.buckets and call.rights.may_use(bucket)

    async def _create_index(
        self, call: Call, request: Mapping[str, Any], statement: CreatePrimaryIndex
    ) -> None:
        bucket, scope, name = self._keyspace(call, request, statement.keyspace)
        if len(statement.name) > LONGEST_INDEX_NAME:
            raise _QueryError(5000, f"Invalid index name: {statement.name[:20]}...", 500)
        try:
            made = await self.administration.create_index(bucket.name, scope, name, statement.name)
        except CommandError as error:
            raise _QueryError(5000, error.reason, 500) from None
        if not made and not statement.if_not_exists:
            raise _QueryError(4300, f"The index {statement.name} already exists.", 409)

    async def _delete(self, bucket: Bucket, scope: str, name: str) -> int:
        try:
            return await self.administration.delete_documents(bucket.name, scope, name)
        except CommandError as error:
            raise _QueryError(5000, error.reason, 500) from None

    def _keyspace(
        self, call: Call, request: Mapping[str, Any], keyspace: Keyspace
    ) -> tuple[Bucket, str, str]:
        """Return bucket, scope and collection that a statement is about.

        Raises:
            _QueryError: There is none, or the user may not use it.
        """
        parts = keyspace.parts
        context = request.get("query_context")
        if len(parts) == 1 and isinstance(context, str) and context:
            parts = (*_context(context), parts[0])
        if len(parts) == 1:
            parts = (parts[0], DEFAULT, DEFAULT)
        name, scope, collection = parts
        bucket = self.server.buckets.get(name)
        if bucket is None:
            raise _QueryError(12003, f"Keyspace not found in CB datastore: default:{name}", 404)
        if not call.rights.may_use(name):
            raise _QueryError(
                13014,
                f"User does not have credentials to run queries on the {name} bucket.",
                401,
            )
        if scope not in bucket.manifest.scopes:
            raise _QueryError(12021, f"Scope not found in CB datastore default:{name}.{scope}", 404)
        if (scope, collection) not in bucket.manifest.collections:
            raise _QueryError(
                12003,
                f"Keyspace not found in CB datastore: default:{name}.{scope}.{collection}",
                404,
            )
        return bucket, scope, collection


def _request(call: Call) -> Mapping[str, Any]:
    if call.kind != "application/json":
        return call.form
    try:
        found = json.loads(call.body)
    except (ValueError, RecursionError) as error:
        raise _QueryError(1100, f"Error processing JSON: {error}") from None
    if not isinstance(found, dict):
        raise _QueryError(1100, "Error processing JSON: it is no object")
    return found


def _statement(request: Mapping[str, Any]) -> str:
    if "prepared" in request:
        raise _QueryError(4040, f"No such prepared statement: {request['prepared']}")
    statement = request.get("statement")
    if statement is None:
        raise _QueryError(1050, "No statement or prepared value")
    if not isinstance(statement, str):
        raise _QueryError(1070, "statement has to be of type string")
    return statement


def _need_writes(request: Mapping[str, Any]) -> None:
    if request.get("readonly") in {True, "true"}:
        raise _QueryError(
            1000, "The server or request is read-only and cannot accept this write statement.", 403
        )


def _context(text: str) -> tuple[str, str]:
    """Read a query context: ``default:bucket.scope``, names perhaps in backticks."""
    parsed = parse_keyspace(f"{text}.x")
    if parsed is None or len(parsed.parts) != 3:
        raise _QueryError(1040, f"Error processing query_context: {text!r} is no bucket.scope")
    return parsed.parts[0], parsed.parts[1]
