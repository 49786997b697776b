"""Every line that the service can log, read from the source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kvproto.base.log import CONNECTION

PACKAGE = Path(__file__).resolve().parent.parent / "kvproto"

ELSEWHERE = frozenset({"client", "testing"})
"""Rooms that are for other people's programs: the service does not use them."""

LEVELS = {
    "debug": "debug",
    "info": "info",
    "warn": "warn",
    "error": "error",
    "failure": "critical",
}
"""Levels by the method that logs."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the log.

    Attributes:
        room: Its room.
        module: Its logger, e.g. ``kvproto.tls.shell``.
        level: As the log calls it.
        format: Of the event.
        limited: Whether peers can provoke only so many of it.
    """

    room: str
    module: str
    level: str
    format: str
    limited: bool

    @property
    def shown(self) -> str:
        """The format as the documentation writes it: ``{state_dir}`` is STATE_DIR."""
        text = re.sub(r"\{([^}:]+)[^}]*\}", _placeholder, self.format)
        return text.replace("\n", " ").removeprefix("PART")


def _placeholder(found: re.Match[str]) -> str:
    return found[1].removesuffix(".value").rpartition(".")[2].removesuffix("()").upper()


def lines() -> Iterator[Line]:
    """Yield every line that the service can log, by module."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        room = parts[1]
        if room in ELSEWHERE:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            call = _log_call(node)
            if call is None:
                continue
            limited = ast.unparse(call.func).startswith("peer_log.")
            method = ast.unparse(call.func).rpartition(".")[2]
            for format in _formats(call.args[0]):
                yield Line(room, ".".join(parts), LEVELS[method], format, limited)


def _log_call(node: ast.AST) -> ast.Call | None:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return None
    owner = ast.unparse(node.func.value)
    if node.func.attr not in LEVELS or owner not in {"log", "peer_log", "self._log"}:
        return None
    passed_on = isinstance(node.args[0], ast.Name) and node.args[0].id == "format"
    return None if passed_on else node


def _formats(node: ast.expr) -> list[str]:
    """Return the formats that an expression can be; another kind of expression is a mistake."""
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    if isinstance(node, ast.IfExp):
        return [*_formats(node.body), *_formats(node.orelse)]
    if isinstance(node, ast.BinOp):
        return [a + b for a in _formats(node.left) for b in _formats(node.right)]
    assert isinstance(node, ast.Name), ast.unparse(node)
    assert node.id == "CONNECTION", ast.unparse(node)
    return [CONNECTION]
