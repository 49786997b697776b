"""The file of ``--config``: TOML, every option a key of the top level.

Owns what can be wrong with the file, said with its line.  An option that may be repeated is a list;
names of files are relative to the file's own directory, since that is where an operator looks for
them; ``proxy-protocol`` is ``true`` for every listener, or a list of some of ``listen``.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvproto.config.options import OPTIONS, Option
from kvproto.errors import ConfigError

__all__ = ["ConfigFileError", "FileValues", "read_config_file"]

OPTION = "--config"

MAX_FILE = 1024 * 1024
"""Bytes; a list of ten thousand users has less."""

_SECTION_LINE = re.compile(r"\(at line (\d+), column (\d+)\)$")


class ConfigFileError(ConfigError):
    """Something in the file of ``--config`` cannot be used.

    Args:
        path: The file.
        line: Where, counted from 1; 0 for the file as a whole.
        key: Which key, ``""`` for none.
        reason: What is wrong and what to do about it.
    """

    def __init__(self, path: Path, line: int, key: str, reason: str) -> None:
        super().__init__(OPTION, reason)
        self.args = (path, line, key, reason)
        self.path = path
        self.line = line
        self.key = key

    def __str__(self) -> str:
        where = f"{self.path}:{self.line}" if self.line else str(self.path)
        key = f"{self.key}: " if self.key else ""
        return f"{OPTION} {where}: {key}{self.reason}"


@dataclass(frozen=True, slots=True)
class FileValues:
    """What a file holds.

    Attributes:
        path: The file.
        values: By the option's name; a list for those that may be repeated.
        lines: Where each stands.
    """

    path: Path
    values: dict[str, Any]
    lines: dict[str, int]

    def source(self, name: str) -> str:
        """Return where a value comes from, ``FILE:LINE``."""
        return f"{self.path}:{self.lines.get(name, 0)}"

    def relabelled(self, error: ConfigError) -> ConfigError:
        """Return an error as one about this file, if it is about an option that stands in it."""
        name = error.option.removeprefix("--")
        if name not in self.values:
            return error
        return ConfigFileError(self.path, self.lines.get(name, 0), name, error.reason)


def read_config_file(path: Path) -> FileValues:
    """Read the file of ``--config``.

    Raises:
        ConfigError: It cannot be read, is no TOML, or holds what is no option.
    """
    text = _read(path)
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line, reason = _syntax(str(error))
        raise ConfigFileError(path, line, "", reason) from None
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for name, value in found.items():
        lines[name] = _line_of(text, name)
        try:
            values[name] = _value(name, value, path.parent)
        except ConfigError as error:
            raise ConfigFileError(path, lines[name], name, error.reason) from None
    return FileValues(path, values, lines)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE + 1)
    except OSError as error:
        raise ConfigFileError(path, 0, "", f"cannot be read: {error.strerror}") from error
    if len(content) > MAX_FILE:
        raise ConfigFileError(path, 0, "", f"is larger than {MAX_FILE} bytes")
    try:
        # Windows' editors begin a file so, and TOML does not allow it.
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigFileError(path, line, "", "is not UTF-8") from None


def _syntax(message: str) -> tuple[int, str]:
    """Return line and reason of what tomllib says."""
    found = _SECTION_LINE.search(message)
    reason = _SECTION_LINE.sub("", message).strip() or "is no TOML"
    if "Cannot overwrite a value" in reason:
        reason = "a key is given twice"
    line = int(found[1]) if found else 0
    return line, f"{reason[0].lower()}{reason[1:]}" + (f", column {found[2]}" if found else "")


def _line_of(text: str, name: str) -> int:
    """Return the line on which a key of the top level, or its table, begins."""
    key = re.escape(name)
    pattern = re.compile(rf"^[ \t]*(?:\[\[?[ \t]*)?(?:{key}|\"{key}\"|'{key}')[ \t]*[\]=.]", re.M)
    found = pattern.search(text)
    return text.count("\n", 0, found.start()) + 1 if found else 0


def _unknown(name: str, value: object) -> str:
    if name == OPTION.removeprefix("--"):
        return "a file cannot name another one"
    if name == "check":
        return "is for the command line only"
    nearest = difflib.get_close_matches(name.lower().replace("_", "-"), OPTIONS, 1, 0.5)
    hint = f"; the nearest known one is {nearest[0]}" if nearest else ""
    if isinstance(value, dict):
        return f"tables are not used: every option is a key of the top level{hint}"
    return f"there is no such option{hint}"


def _value(name: str, value: object, directory: Path) -> Any:
    """Check one value by its option's rules."""
    option = OPTIONS.get(name)
    if option is None:
        raise ConfigError(name, _unknown(name, value))
    if option.name == "proxy-protocol" and isinstance(value, list):
        return [_one(OPTIONS["listen"], one, directory) for one in value]
    if option.repeatable:
        if not isinstance(value, list):
            raise ConfigError(option.name, f"must be a list: write {option.name} = [ ... ]")
        if not value:
            raise ConfigError(option.name, "is an empty list: leave it out")
        return [_one(option, one, directory) for one in value]
    if isinstance(value, list):
        raise ConfigError(option.name, f"takes one value, not a list: {option.kind.words}")
    return _one(option, value, directory)


def _one(option: Option, value: object, directory: Path) -> Any:
    if option.secret and not isinstance(value, str):
        raise ConfigError(option.name, f"must be {option.kind.words}")  # it may be the secret
    made = option.kind.from_native(option.name, value)
    return directory / made if option.kind.is_file else made
