"""Where values live, as an operator writes it: the URL of ``--store``.

Owns what all URLs have in common, and those of the stores in this process, ``memory:`` and
``file:``.  What the URL of an engine or a fleet says is `kvproto.upstream`'s to read.
"""

from __future__ import annotations

import difflib
import enum
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote

from kvproto.errors import ConfigError

__all__ = [
    "DEFAULT_STORE",
    "STORE_OPTION",
    "FileOptions",
    "StoreURL",
    "Sync",
    "check_memory_url",
    "parse_file_url",
    "without_secrets",
]

STORE_OPTION = "--store"

DEFAULT_STORE = "memory:"

_PARAMETERS_WITH_FILES = frozenset({"password-file", "ca", "cert", "key"})
_SCHEMES_WITH_PATHS = frozenset({"file", "redis+unix", "valkey+unix", "memcached+unix"})


_LOGIN = re.compile(r"//[^?]*@")
_NOT_FILES = re.compile(
    r"([?&][^=&]*(?:pass|pwd|secret|token|auth|cred)[^=&]*(?<!-file)=)[^&]*", re.IGNORECASE
)


def without_secrets(url: str) -> str:
    """Return a URL as it may be shown, also one that cannot be used.

    Passwords do not belong into a URL; who writes one there all the same hears so without having it
    repeated in a log.
    """
    return _NOT_FILES.sub(r"\1…", _LOGIN.sub("//…@", url))


class Sync(enum.Enum):
    """When what was written to a file is forced to the disk."""

    ALWAYS = "always"
    EVERY_SECOND = "everysec"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class StoreURL:
    """``SCHEME:REST?NAME=VALUE&NAME=VALUE``, cut into its parts and not looked at further.

    Attributes:
        text: All of it.
        scheme: What stands before the first colon.
        rest: What stands between it and the parameters.
        parameters: Names and values, decoded, in order.
    """

    text: str
    scheme: str
    rest: str
    parameters: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, text: str) -> StoreURL:
        """Cut a URL into its parts.

        Raises:
            ConfigError: It has no scheme, or its parameters are none.
        """
        scheme, colon, rest = text.partition(":")
        if not colon or not scheme:
            raise ConfigError(
                STORE_OPTION,
                f"{without_secrets(text)!r} is no URL: write for example memory: or file:DIRECTORY",
            )
        where, _, query = rest.partition("?")
        try:
            pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
        except ValueError:
            raise cls._wrong(text, "parameters are written ?NAME=VALUE&NAME=VALUE") from None
        names = [name for name, _ in pairs]
        for name in names:
            if names.count(name) > 1:
                raise cls._wrong(text, f"{name} is given twice")
        return cls(text, scheme, where, tuple(pairs))

    @staticmethod
    def _wrong(text: str, reason: str) -> ConfigError:
        return ConfigError(STORE_OPTION, f"{without_secrets(text)}: {reason}")

    def wrong(self, reason: str) -> ConfigError:
        """Return the error that says what is wrong with it."""
        return self._wrong(self.text, reason)

    def unknown_parameter(self, name: str, known: tuple[str, ...]) -> ConfigError:
        """Return the error for a parameter that this kind of store does not have."""
        near = difflib.get_close_matches(name, known, 1)
        meant = f"; did you mean {near[0]}?" if near else ""
        there = f"there are {', '.join(known)}" if known else f"{self.scheme}: has none"
        return self.wrong(f"there is no parameter {name!r}, {there}{meant}")

    def absolute(self) -> StoreURL:
        """Return it with every path in it absolute, so that it means the same anywhere."""
        rest = self.rest
        if self.scheme in _SCHEMES_WITH_PATHS and rest:
            slashes = "//" if rest.startswith("//") else ""
            rest = slashes + quote(str(Path(unquote(rest.removeprefix("//"))).absolute()))
        pairs = [
            (name, str(Path(value).absolute()) if name in _PARAMETERS_WITH_FILES else value)
            for name, value in self.parameters
        ]
        query = "&".join(f"{quote(name)}={quote(value)}" for name, value in pairs)
        return StoreURL.parse(f"{self.scheme}:{rest}{'?' if query else ''}{query}")


def check_memory_url(url: StoreURL) -> None:
    """Check that ``memory:`` says no more than that.

    Raises:
        ConfigError: It does.
    """
    if url.rest:
        raise url.wrong("memory: has nothing behind the colon; its size is --memory-limit")
    for name, _ in url.parameters:
        raise url.unknown_parameter(name, ())


@dataclass(frozen=True, slots=True)
class FileOptions:
    """A store in memory that is kept in a directory.

    Attributes:
        directory: Where.
        sync: When writes are forced to the disk.
    """

    directory: Path
    sync: Sync = Sync.EVERY_SECOND


def parse_file_url(url: StoreURL) -> FileOptions:
    """Read ``file:DIRECTORY?sync=…``.

    Raises:
        ConfigError: It is none.
    """
    rest = url.rest
    if rest.startswith("//"):
        host, _, path = rest[2:].partition("/")
        if host not in {"", "localhost"}:
            raise url.wrong("write file:DIRECTORY, or file:///DIRECTORY for an absolute one")
        rest = f"/{path}" if path else ""
    directory = unquote(rest)
    if not directory or "\0" in directory:
        raise url.wrong("the directory is missing: write file:DIRECTORY")
    sync = Sync.EVERY_SECOND
    for name, value in url.parameters:
        if name != "sync":
            raise url.unknown_parameter(name, ("sync",))
        try:
            sync = Sync(value)
        except ValueError:
            allowed = ", ".join(choice.value for choice in Sync)
            raise url.wrong(f"sync={value} is none of {allowed}") from None
    return FileOptions(Path(directory), sync)
