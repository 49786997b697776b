"""Every option, once: how it is spelled, what it takes, where its value goes.

The command line (`kvproto.tap`) and the file of ``--config`` (`kvproto.config.toml_file`) both read
this table, so that an option is the same word with the same rules in both.  Whether values fit
each other is `Config`'s to say.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from kvproto.config.parsing import (
    parse_choice,
    parse_collection,
    parse_count,
    parse_epmd,
    parse_node_address,
    parse_peer,
    parse_room_level,
    parse_seconds,
    parse_size,
    parse_text,
    parse_user,
    parse_user_buckets,
)
from kvproto.config.stores import without_secrets
from kvproto.config.values import ClientAuth, LogFormat, LogLevel, Mode, OnRotate
from kvproto.errors import ConfigError

__all__ = ["OPTIONS", "Kind", "Option", "Reload"]


class Reload(Enum):
    """When a running service takes over a value that has changed in the file of ``--config``."""

    AT_ONCE = "at once"
    NEW = "new connections"
    RESTART = "restart"


@dataclass(frozen=True, slots=True)
class Kind:
    """What an option takes.

    Attributes:
        metavar: How help calls a value; ``""`` for a flag, which takes none.
        parse: Makes a value of text; called with the option's spelling and the text.
        native: Types of a TOML file, beside text, that are good for it.
        words: What a TOML file has to hold, for errors.
        is_file: Whether it is a path.
    """

    metavar: str
    parse: Callable[[str, str], Any]
    native: tuple[type, ...] = ()
    words: str = "text in quotes"
    is_file: bool = False

    @property
    def is_flag(self) -> bool:
        """Whether it takes no value on the command line."""
        return not self.metavar

    def from_native(self, option: str, value: object) -> Any:
        """Make a value of what a TOML file holds.

        Raises:
            ConfigError: It is of the wrong type, or cannot be used.
        """
        # type(), not isinstance(): for Python true is a number.
        if self.is_flag:
            if type(value) is bool:
                return value
        elif type(value) is str:
            if not value:
                raise ConfigError(option, "is empty")
            if str not in self.native and self.native:
                raise ConfigError(option, f"must be {self.words}, not {value!r}")
            return self.parse(option, value)
        elif type(value) in self.native:
            return self.parse(option, str(value))
        raise ConfigError(option, f"must be {self.words}, not {_shown(value)}")


def _shown(value: object) -> str:
    """Return a TOML value of the wrong type as an operator wrote it, or nearly so."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    return repr(value) if isinstance(value, str) else str(value)


def _text(_option: str, text: str) -> str:
    return text


def _path(option: str, text: str) -> Path:
    if not text:
        raise ConfigError(option, "names no file: it is empty")
    if "\0" in text:
        raise ConfigError(option, f"{text!r} cannot be the name of a file")
    return Path(text)


def _choice(kind: type[Enum]) -> Kind:
    allowed = "|".join(choice.value for choice in kind)
    return Kind(allowed, lambda option, text: parse_choice(option, kind, text))


def _whole(parse: Callable[[str], Any]) -> Callable[[str, str], Any]:
    """Adapt a parser that knows its option's spelling itself."""
    return lambda option, text: parse(parse_text(option, text))


def _version(option: str, text: str) -> str:
    if not re.fullmatch(r"\d{1,4}\.\d{1,4}\.\d{1,4}", text, re.ASCII):
        raise ConfigError(option, f"{text!r} is no version like 1.6.45")
    return text


FLAG = Kind("", _text, (bool,), "true or false")
TEXT = Kind("TEXT", _text)
FILE = Kind("FILE", _path, is_file=True)
DIRECTORY = Kind("DIR", _path, is_file=True)
ENDPOINT = Kind("ENDPOINT", _text)
NAME = Kind("NAME", parse_text)
SIZE = Kind("SIZE", parse_size, (int, str), "a number of bytes, or text like 64MiB")
SECONDS = Kind("SECONDS", parse_seconds, (int, float), "a number of seconds")
COUNT = Kind("N", parse_count, (int,), "a whole number")


@dataclass(frozen=True, slots=True)
class Option:
    """One option.

    Attributes:
        name: Without its dashes; also the key of the TOML file.
        field: Of `Config`, or after ``nodes.`` of `NodeConfig`.
        kind: What it takes.
        help: For ``--help``, without a full stop.
        short: A letter, for those that have one.
        repeatable: Whether it may be given several times; a list in the TOML file.
        secret: Whether values are hidden where the configuration is shown.
        value: For a flag: the field's value when the flag is set.
        unset: For a flag: the field's value where a TOML file says false.
        reload: When a running service takes over another value.
    """

    name: str
    field: str
    kind: Kind
    help: str
    short: str = ""
    repeatable: bool = False
    secret: bool = False
    value: Any = True
    unset: Any = False
    reload: Reload = Reload.RESTART

    @property
    def spelled(self) -> str:
        """The option as an operator types it."""
        return f"--{self.name}"

    def show(self, value: Any) -> Any:
        """Return a value of this option as JSON can say it, secrets hidden."""
        if isinstance(value, tuple | list | frozenset) and self.repeatable:
            return [self.show(one) for one in value]
        if self.secret:
            return f"{value.name}:***"
        if self.name == "store":
            return without_secrets(value)
        if isinstance(value, Enum):
            return value.value
        if value is None or isinstance(value, bool | int | float | str):
            return value
        return str(value)


OPTIONS: dict[str, Option] = {
    option.name: option
    for option in (
        Option(
            "listen", "listen", ENDPOINT,
            "Twisted server endpoint to listen on, TLS is put on top (repeatable; default: "
            "tcp:11207:interface=127.0.0.1; examples: tcp:11207, tcp6:11207, "
            "unix:/run/kvtls/kv.sock, systemd:domain=INET:index=0)",
            short="l", repeatable=True,
        ),
        Option(
            "proxy-protocol", "proxy_protocol", FLAG,
            "the --listen just before takes a PROXY header (v1 or v2) from its peers first",
        ),
        Option(
            "plain", "plain", ENDPOINT,
            "endpoint to listen on without TLS, on a loopback address or a Unix socket, for tests "
            "and sidecars (repeatable)", repeatable=True,
        ),
        Option("certificate", "certificate", FILE, "PEM: certificate chain, leaf first", short="c"),
        Option(
            "private-key", "private_key", FILE,
            "PEM: private key of the certificate (default: in the certificate's file)", short="k",
        ),
        Option("key-passphrase-file", "key_passphrase_file", FILE,
               "file whose first line opens the key"),
        Option("client-ca", "client_ca", FILE, "PEM: CA that client certificates come from"),
        Option(
            "client-auth", "client_auth", _choice(ClientAuth),
            "whether clients are asked for a certificate (default: optional with --client-ca, "
            "else none)",
        ),
        Option("crl", "crl", FILE, "PEM: revocation lists for client certificates"),
        Option(
            "cert-user", "cert_users", Kind("RULE", parse_text),
            "how a client certificate names its user (repeatable, the first known user wins): "
            "subject.cn (the default), san.dns, san.email or san.uri, with :prefix=TEXT, "
            ":suffix=TEXT and :delimiter=CHARACTERS; a colon in them is written \\:",
            repeatable=True, reload=Reload.NEW,
        ),
        Option(
            "user", "users", Kind("NAME:PASSWORD", _whole(parse_user)),
            "a user that may log in (repeatable).  For tests only: every user of this machine can "
            "see it.  Others go into the file of --users",
            short="u", repeatable=True, secret=True, reload=Reload.NEW,
        ),
        Option(
            "users", "users_file", FILE,
            "users that may log in, made by kvtls passwd: passwords that nobody sees",
            reload=Reload.NEW,
        ),
        Option(
            "user-buckets", "user_buckets", Kind("NAME:BUCKET,BUCKET", _whole(parse_user_buckets)),
            "buckets that a user may use, the first where it selects none (repeatable; others may "
            "use every bucket)", repeatable=True, reload=Reload.NEW,
        ),
        Option(
            "bucket", "buckets", NAME,
            "bucket to serve (repeatable, the first where clients select none; default: default)",
            short="b", repeatable=True,
        ),
        Option(
            "collection", "collections", Kind("SCOPE.NAME", _whole(parse_collection)),
            "collection to serve in all buckets; BUCKET:SCOPE.NAME in one (repeatable)",
            repeatable=True,
        ),
        Option("anonymous", "anonymous", FLAG, "let clients work without a login even though "
               "users exist", reload=Reload.NEW),
        Option("mode", "mode", _choice(Mode), "whose habits to follow (default: couchbase)",
               short="m"),
        Option("allow-flush", "allow_flush", FLAG,
               "let clients FLUSH (always on in memcached mode)", unset=None,
               reload=Reload.AT_ONCE),
        Option("no-flush", "allow_flush", FLAG, "refuse FLUSH, in memcached mode too",
               value=False, unset=None, reload=Reload.AT_ONCE),
        Option("enable-shutdown", "enable_shutdown", FLAG,
               "let clients end the service by the text command 'shutdown', as memcached's -A"),
        Option("watcher", "watchers", NAME,
               "user that may watch what all clients of its bucket ask for (repeatable; default: "
               "where there are no users, clients on this machine)", repeatable=True,
               reload=Reload.AT_ONCE),
        Option("memcached-version", "memcached_version", Kind("X.Y.Z", _version),
               "what VERSION answers, for clients that choose their dialect by it "
               "(default: 1.6.45)", reload=Reload.AT_ONCE),
        Option("store", "store", Kind("URL", _text),
               "where values live (default: memory:)"),
        Option(
            "peer", "peers", Kind("HOST:PORT", _whole(parse_peer)),
            "another service on the same engine, as clients reach it (repeatable): the SDK spreads "
            "its connections over all of them", repeatable=True, reload=Reload.AT_ONCE,
        ),
        Option("memory-limit", "memory_limit", SIZE,
               "what may be stored: bytes, or 64MiB, 2GiB (default: 64MiB)", reload=Reload.AT_ONCE),
        Option("refuse-when-full", "evict", FLAG,
               "refuse writes when the store is full instead of evicting", value=False,
               unset=True, reload=Reload.AT_ONCE),
        Option("max-value", "max_value", SIZE,
               "largest value (default: 20MiB, in memcached mode 1MiB)", reload=Reload.AT_ONCE),
        Option("max-unfinished", "max_unfinished", SIZE,
               "what all connections together may hold of requests not complete and replies not "
               "sent (default: 256MiB)", reload=Reload.AT_ONCE),
        Option("max-connections", "max_connections", COUNT,
               "connections at once (default: 10000, in memcached mode 1024)",
               reload=Reload.AT_ONCE),
        Option("requests-per-event", "requests_per_event", COUNT,
               "requests of one connection that are served before others have their turn, 0: as "
               "many as it has sent (default: 0)", reload=Reload.NEW),
        Option("max-connections-per-peer", "max_connections_per_peer", COUNT,
               "connections at once from one address, 0: any (default: 0)", reload=Reload.AT_ONCE),
        Option("handshake-timeout", "handshake_timeout", SECONDS,
               "from accept to the end of the TLS handshake (default: 10)", reload=Reload.NEW),
        Option("close-timeout", "close_timeout", SECONDS,
               "how long a closing connection waits for its peer (default: 3)", reload=Reload.NEW),
        Option("drain-timeout", "drain_timeout", SECONDS,
               "for what was asked to be answered, at shutdown (default: 10)",
               reload=Reload.AT_ONCE),
        Option("idle-timeout", "idle_timeout", SECONDS,
               "after which a connection that asks nothing is closed, 0: never (default: 0)",
               reload=Reload.AT_ONCE),
        Option("max-lifetime", "max_lifetime", SECONDS,
               "after which a connection is drained, spread by up to a tenth, 0: never "
               "(default: 0)", reload=Reload.AT_ONCE),
        Option("on-rotate", "on_rotate", _choice(OnRotate),
               "what happens to live connections on rotation (default: recheck)",
               reload=Reload.AT_ONCE),
        Option("drain-window", "drain_window", SECONDS,
               "over which --on-rotate drain spreads the closing (default: 10)",
               reload=Reload.AT_ONCE),
        Option("watch-interval", "watch_interval", SECONDS,
               "between looks at the credential files, 0: never (default: 2)"),
        Option("state-dir", "state_dir", DIRECTORY,
               "development credentials, control socket (default: kvtls-state)"),
        Option("faults", "faults", FLAG,
               "let kvtls fault make requests fail and move the clock: for tests, loopback only"),
        Option("keylog", "keylog", FILE, "TLS secrets are appended to it, for debugging"),
        Option("http", "http", ENDPOINT,
               "endpoint for health, metrics and the status page, on loopback unless it names an "
               "interface; kvtls:... for TLS"),
        Option("management", "management", ENDPOINT,
               "endpoint for Couchbase's management REST and its set-up queries, over TLS, on "
               "loopback unless it names an interface; with --plain also without TLS"),
        Option("log-format", "log_format", _choice(LogFormat),
               "json: one object a line (default: text)"),
        Option("log-level", "log_level", _choice(LogLevel),
               "the least important lines that are logged (default: info)", reload=Reload.AT_ONCE),
        Option("log-levels", "log_levels", Kind("ROOM:LEVEL", _whole(parse_room_level)),
               "as --log-level for one part of the service, for example tls:debug (repeatable)",
               repeatable=True, reload=Reload.AT_ONCE),
        Option("node-listen", "nodes.listen", ENDPOINT,
               "Twisted server endpoint to accept Erlang nodes on, over mutual TLS"),
        Option("node-name", "nodes.name", Kind("NAME@HOST", parse_text),
               "what this node of an Erlang cluster is called"),
        Option("node-cookie-file", "nodes.cookie_file", FILE,
               "file with the cluster's cookie, mode 0600"),
        Option("node-certificate", "nodes.certificate", FILE,
               "PEM: chain to show nodes (default: data's)"),
        Option("node-key", "nodes.private_key", FILE, "PEM: private key of --node-certificate"),
        Option("node-key-passphrase-file", "nodes.key_passphrase_file", FILE,
               "file whose first line opens that key"),
        Option("node-ca", "nodes.ca", FILE, "PEM: CA of other nodes (default: --client-ca)"),
        Option("node-crl", "nodes.crl", FILE, "PEM: revocation lists of --node-ca"),
        Option("node-process", "nodes.process", NAME,
               "registered name that answers nodes (default: kvtls)"),
        Option(
            "node-connect", "nodes.connect", Kind("NAME@HOST[:PORT]", _whole(parse_node_address)),
            "a node to stay linked with (repeatable); with a port no epmd is asked",
            repeatable=True,
        ),
        Option("node-ticktime", "nodes.ticktime", SECONDS,
               "net_ticktime of the cluster: a link that is silent for so long is closed "
               "(default: 60)"),
        Option("epmd", "nodes.epmd", Kind("HOST:PORT", _whole(parse_epmd)),
               "epmd to register with, or none (default: 127.0.0.1:4369)"),
    )
}  # fmt: skip
"""By name, in the order of ``--help``."""
