"""The command line of ``twistd kvtls``: text becomes a `Config`, a `Config` a service."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from twisted.application.service import IService
from twisted.python import usage

from kvproto import __version__
from kvproto.config import (
    DEFAULT_BUCKET,
    DEFAULT_LISTEN,
    DEFAULT_STATE_DIR,
    DEFAULT_STORE,
    ClientAuth,
    Collection,
    Config,
    Mode,
    NodeAddress,
    NodeConfig,
    OnRotate,
    User,
    UserBuckets,
    parse_collection,
    parse_epmd,
    parse_node_address,
    parse_seconds,
    parse_size,
    parse_user,
    parse_user_buckets,
)
from kvproto.errors import ConfigError
from kvproto.openssl import load_openssl
from kvproto.ops.privileges import FutureUser, future_user

__all__ = ["Options", "makeService"]

USAGE_STATUS = 2
"""Exit status for options that cannot be used, as getopt-style commands have it."""

NODE_OPTIONS = {
    "node-listen": "listen",
    "node-name": "name",
    "node-cookie-file": "cookie_file",
    "node-certificate": "certificate",
    "node-key": "private_key",
    "node-key-passphrase-file": "key_passphrase_file",
    "node-ca": "ca",
    "node-crl": "crl",
    "node-process": "process",
    "epmd": "epmd",
}
"""Options that make a `NodeConfig`, and its fields."""

Choice = TypeVar("Choice", Mode, ClientAuth, OnRotate)
Parsed = TypeVar("Parsed")


class Options(usage.Options):
    """Options of ``twistd kvtls``."""

    synopsis = "Usage: twistd [twistd options] kvtls [options]"
    longdesc = (
        "Serve the Couchbase KV protocol (memcached binary) and memcached's text protocol over "
        "TLS. Without --certificate a development CA and certificate are made in the state "
        "directory and only loopback addresses are served."
    )

    optParameters = [
        ["certificate", "c", None, "PEM file: certificate chain, leaf first.", Path],
        ["private-key", "k", None, "PEM file: private key of the certificate.", Path],
        ["key-passphrase-file", None, None, "File whose first line opens the key.", Path],
        ["client-ca", None, None, "PEM file: CA that client certificates come from.", Path],
        [
            "client-auth",
            None,
            None,
            "none, optional or required (default: optional with --client-ca, else none).",
        ],
        ["crl", None, None, "PEM file: revocation lists for client certificates.", Path],
        [
            "users",
            None,
            None,
            "File of users that may log in, made by kvtls passwd: passwords that nobody sees.",
            Path,
        ],
        ["mode", "m", Mode.COUCHBASE.value, "couchbase or memcached."],
        [
            "store",
            None,
            DEFAULT_STORE,
            "Where values live, as a URL: memory:.",
        ],
        ["memory-limit", None, "64MiB", "What may be stored: bytes, or 64MiB, 2GiB."],
        ["max-value", None, None, "Largest value (default: 20MiB, in memcached mode 1MiB)."],
        [
            "max-connections",
            None,
            None,
            "Connections at once (default: 10000, in memcached mode 1024).",
        ],
        ["max-connections-per-peer", None, "0", "Connections at once from one address, 0: any."],
        ["handshake-timeout", None, "10", "Seconds from accept to the end of the TLS handshake."],
        ["close-timeout", None, "3", "Seconds a closing connection waits for its peer."],
        ["drain-timeout", None, "10", "Seconds for what was asked to be answered, at shutdown."],
        [
            "on-rotate",
            None,
            OnRotate.RECHECK.value,
            "What happens to live connections on rotation: keep, recheck, drain or disconnect.",
        ],
        ["drain-window", None, "10", "Seconds over which --on-rotate drain spreads the closing."],
        ["watch-interval", None, "2", "Seconds between looks at the credential files, 0: never."],
        [
            "state-dir",
            None,
            None,
            f"Development credentials, control socket (default: {DEFAULT_STATE_DIR}).",
            Path,
        ],
        ["keylog", None, None, "File that TLS secrets are appended to, for debugging.", Path],
        [
            "node-listen",
            None,
            None,
            "Twisted server endpoint to accept Erlang nodes on, over mutual TLS.",
        ],
        ["node-name", None, None, "NAME@HOST that this node of an Erlang cluster is called."],
        ["node-cookie-file", None, None, "File with the cluster's cookie, mode 0600.", Path],
        ["node-certificate", None, None, "PEM file: chain to show nodes (default: data's).", Path],
        ["node-key", None, None, "PEM file: private key of --node-certificate.", Path],
        ["node-key-passphrase-file", None, None, "File whose first line opens that key.", Path],
        ["node-ca", None, None, "PEM file: CA of other nodes (default: --client-ca).", Path],
        ["node-crl", None, None, "PEM file: revocation lists of --node-ca.", Path],
        ["node-process", None, None, "Registered name that answers nodes (default: kvtls)."],
        ["epmd", None, None, "HOST:PORT of epmd, or none (default: 127.0.0.1:4369)."],
    ]
    optFlags = [
        ["anonymous", None, "Let clients work without a login even though users exist."],
        ["allow-flush", None, "Let clients FLUSH (always on in memcached mode)."],
        ["refuse-when-full", None, "Refuse writes when the store is full instead of evicting."],
        ["check", None, "Validate everything, start nothing."],
    ]
    compData = usage.Completions(
        optActions={
            "mode": usage.CompleteList([mode.value for mode in Mode]),
            "client-auth": usage.CompleteList([auth.value for auth in ClientAuth]),
            "on-rotate": usage.CompleteList([policy.value for policy in OnRotate]),
            "certificate": usage.CompleteFiles(),
            "private-key": usage.CompleteFiles(),
            "client-ca": usage.CompleteFiles(),
            "node-certificate": usage.CompleteFiles(),
            "node-cookie-file": usage.CompleteFiles(),
            "users": usage.CompleteFiles(),
            "state-dir": usage.CompleteDirs(),
        }
    )

    def __init__(self) -> None:
        super().__init__()
        self._listen: list[str] = []
        self._proxied: set[int] = set()
        self._users: list[User] = []
        self._user_buckets: list[UserBuckets] = []
        self._cert_users: list[str] = []
        self._buckets: list[str] = []
        self._collections: list[Collection] = []
        self._node_connect: list[NodeAddress] = []
        self.kvtls_config: Config | None = None

    def opt_listen(self, description: str) -> None:
        """Twisted server endpoint to listen on, TLS is put on top (repeatable).

        Default: tcp:11207:interface=127.0.0.1.  Examples: tcp:11207, tcp6:11207,
        unix:/run/kvtls/kv.sock, systemd:domain=INET:index=0
        """
        self._listen.append(description)

    opt_l = opt_listen

    def opt_proxy_protocol(self) -> None:
        """The --listen just before takes a PROXY header (v1 or v2) from its peers first."""
        if not self._listen:
            raise usage.UsageError("--proxy-protocol: goes after the --listen it is for")
        self._proxied.add(len(self._listen) - 1)

    def opt_user(self, text: str) -> None:
        """NAME:PASSWORD that may log in (repeatable).

        For tests only: every user of this machine can see it.  Others go into the file of --users.
        """
        self._users.append(_parsed(parse_user, text))

    opt_u = opt_user

    def opt_user_buckets(self, text: str) -> None:
        """NAME:BUCKET,BUCKET that a user may use, the first where it selects none (repeatable).

        Other users may use every bucket.
        """
        self._user_buckets.append(_parsed(parse_user_buckets, text))

    def opt_cert_user(self, rule: str) -> None:
        r"""How a client certificate names its user (repeatable, the first known user wins).

        subject.cn (the default), san.dns, san.email or san.uri, with :prefix=TEXT,
        :suffix=TEXT and :delimiter=CHARACTERS; a colon in them is written \:
        """
        self._cert_users.append(rule)

    def opt_bucket(self, name: str) -> None:
        """Bucket to serve (repeatable, the first where clients select none; default: default)."""
        self._buckets.append(name)

    opt_b = opt_bucket

    def opt_collection(self, text: str) -> None:
        """SCOPE.NAME to serve in all buckets, BUCKET:SCOPE.NAME in one (repeatable)."""
        self._collections.append(_parsed(parse_collection, text))

    def opt_node_connect(self, text: str) -> None:
        """NAME@HOST of a node to stay linked with, or NAME@HOST:PORT (repeatable).

        With a port no epmd is asked.
        """
        self._node_connect.append(_parsed(parse_node_address, text))

    def opt_version(self) -> NoReturn:
        """Print the version of kvproto and exit."""
        print(f"kvproto {__version__}")
        sys.exit(0)

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Parse, and end the process with one clear line where that fails."""
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            _fail(f"{error} (see twistd kvtls --help)")

    def parseArgs(self, *arguments: str) -> None:
        """Refuse what is no option."""
        if arguments:
            raise usage.UsageError(
                f"unexpected argument {arguments[0]!r}: kvtls takes options only"
            )

    def postOptions(self) -> None:
        """Build the `Config`; with ``--check`` try it and end the process."""
        try:
            self.kvtls_config = self._config()
        except ConfigError as error:
            raise usage.UsageError(str(error)) from error
        if self["check"]:
            from kvproto.service import check

            try:
                findings = check(self.kvtls_config, _owner(self))
            except ConfigError as error:
                _fail(str(error))
            for line in findings:
                print(line)
            print("kvtls: the configuration is good")
            sys.exit(0)

    def _config(self) -> Config:
        return Config(
            listen=tuple(self._listen) or (DEFAULT_LISTEN,),
            proxy_protocol=frozenset(self._proxied),
            certificate=self["certificate"],
            private_key=self["private-key"],
            key_passphrase_file=self["key-passphrase-file"],
            client_ca=self["client-ca"],
            client_auth=self._optional(
                "client-auth", lambda _, text: self._choice(ClientAuth, text)
            ),
            crl=self["crl"],
            users=tuple(self._users),
            users_file=self["users"],
            user_buckets=tuple(self._user_buckets),
            cert_users=tuple(self._cert_users),
            buckets=tuple(self._buckets) or (DEFAULT_BUCKET,),
            collections=tuple(self._collections),
            anonymous=True if self["anonymous"] else None,
            mode=self._choice(Mode, self["mode"], "--mode"),
            store=self["store"],
            allow_flush=True if self["allow-flush"] else None,
            memory_limit=parse_size("--memory-limit", self["memory-limit"]),
            evict=not self["refuse-when-full"],
            max_value=self._optional("max-value", parse_size),
            max_connections=self._optional("max-connections", _count),
            max_connections_per_peer=_count(
                "--max-connections-per-peer", self["max-connections-per-peer"]
            ),
            handshake_timeout=self._seconds("handshake-timeout"),
            close_timeout=self._seconds("close-timeout"),
            drain_timeout=self._seconds("drain-timeout"),
            on_rotate=self._choice(OnRotate, self["on-rotate"], "--on-rotate"),
            drain_window=self._seconds("drain-window"),
            watch_interval=self._seconds("watch-interval"),
            state_dir=self["state-dir"],
            keylog=self["keylog"],
            nodes=self._nodes(),
        )

    def _nodes(self) -> NodeConfig | None:
        given: dict[str, Any] = {
            field: self[option]
            for option, field in NODE_OPTIONS.items()
            if self[option] is not None
        }
        if self._node_connect:
            given["connect"] = tuple(self._node_connect)
        if not given:
            return None
        for option in ("node-listen", "node-name", "node-cookie-file"):
            if self[option] is None:
                raise ConfigError(f"--{option}", "is missing: an Erlang node needs it")
        if "epmd" in given:
            given["epmd"] = parse_epmd(given["epmd"])
        return NodeConfig(**given)

    def _optional(self, name: str, parse: Callable[[str, str], Any]) -> Any:
        text = self[name]
        return None if text is None else parse(f"--{name}", text)

    def _seconds(self, name: str) -> float:
        return parse_seconds(f"--{name}", self[name])

    @staticmethod
    def _choice(choices: type[Choice], text: str, option: str = "--client-auth") -> Choice:
        try:
            return choices(text)
        except ValueError:
            allowed = ", ".join(choice.value for choice in choices)
            raise ConfigError(option, f"{text!r} is none of {allowed}") from None


def _parsed(parse: Callable[[str], Parsed], text: str) -> Parsed:
    """Parse the text of an option that may be repeated."""
    try:
        return parse(text)
    except ConfigError as error:
        raise usage.UsageError(str(error)) from error


def _count(option: str, text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise ConfigError(option, f"{text!r} is no whole number")
    return int(text)


def _fail(message: str) -> NoReturn:
    sys.stderr.write(f"twistd kvtls: error: {message}\n")
    sys.exit(USAGE_STATUS)


def _owner(options: Options) -> FutureUser | None:
    """Return whom ``twistd --uid`` makes of the process."""
    parent = options.parent
    return None if parent is None else future_user(parent.get("uid"), parent.get("gid"))


def _anchored(config: Config) -> Config:
    """Return a configuration whose files stay the same when twistd changes its directory.

    That happens between the first look at them and the opening of the control socket; a
    reload would look for other files than the start.
    """
    files = _absolute_paths(config) | {
        "state_dir": config.state_directory.absolute(),
        "store": config.store_url.absolute().text,
    }
    if config.nodes is not None:
        files["nodes"] = replace(config.nodes, **_absolute_paths(config.nodes))
    return replace(config, **files)


def _absolute_paths(config: Config | NodeConfig) -> dict[str, Any]:
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    return {name: path.absolute() for name, path in values.items() if isinstance(path, Path)}


def makeService(options: Options) -> IService:
    """Build the service that ``twistd kvtls`` runs."""
    # Before the reactor: importing that imports pyOpenSSL.
    load_openssl()
    from twisted.internet import reactor

    from kvproto.ops.signals import SignalService

    signals = SignalService(reactor)
    signals.take()
    from kvproto.service import KVTLSService

    assert options.kvtls_config is not None, "parseOptions() makes the configuration"
    config = options.kvtls_config
    if options.parent is not None and options.parent.get("rundir", ".") != ".":
        config = _anchored(config)
    try:
        service = KVTLSService(config, signals=signals, owner=_owner(options))
        service.probe()
    except ConfigError as error:
        _fail(str(error))
    return service
