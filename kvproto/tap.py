"""The command line of ``twistd kvtls``: text becomes a `Config`, a `Config` a service.

Every option, its value's form and its help stand in `kvproto.config.options`; the file of
``--config`` is `kvproto.config.toml_file`'s.  What is given on the command line replaces what the
file says.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NoReturn

from twisted.application.service import IService
from twisted.python import usage

from kvproto import __version__
from kvproto.config import Config, NodeConfig
from kvproto.config.options import OPTIONS, Option
from kvproto.config.settings import Settings, build_config, merge
from kvproto.config.toml_file import FileValues, read_config_file
from kvproto.errors import ConfigError
from kvproto.openssl import load_openssl
from kvproto.ops.privileges import FutureUser, future_user

__all__ = ["Options", "makeService"]

USAGE_STATUS = 2
"""Exit status for options that cannot be used, as getopt-style commands have it."""


class Options(usage.Options):
    """Options of ``twistd kvtls``.

    Attributes:
        kvtls_config: What was decided, once parsed.
        settings: The same with where each value comes from.
    """

    synopsis = "[options]"
    longdesc = (
        "Serve the Couchbase KV protocol (memcached binary) and memcached's text protocol over "
        "TLS. Without --certificate a development CA and certificate are made in the state "
        "directory and only loopback addresses are served."
    )

    compData = usage.Completions(
        optActions={
            option.name: usage.CompleteDirs()
            if option.kind.metavar == "DIR"
            else usage.CompleteFiles()
            if option.kind.is_file
            else usage.CompleteList(option.kind.metavar.split("|"))
            for option in OPTIONS.values()
            if option.kind.is_file or "|" in option.kind.metavar
        }
    )

    def __init__(self) -> None:
        super().__init__()
        self._given: dict[str, Any] = {}
        self._file: Path | None = None
        self._check = False
        self.kvtls_config: Config | None = None
        self.settings = Settings({}, None)

    def take(self, option: Option, text: str) -> None:
        """Take one option of the command line."""
        try:
            value = option.kind.parse(option.spelled, text)
        except ConfigError as error:
            raise usage.UsageError(str(error)) from error
        if option.repeatable:
            self._given.setdefault(option.name, []).append(value)
        elif option.name in self._given:
            raise usage.UsageError(f"{option.spelled} is given twice: which one is meant?")
        else:
            self._given[option.name] = value

    def take_flag(self, option: Option) -> None:
        """Take a flag of the command line."""
        if option.name == "proxy-protocol":
            listening = self._given.get("listen")
            if not listening:
                raise usage.UsageError("--proxy-protocol: goes after the --listen it is for")
            self._given.setdefault(option.name, []).append(listening[-1])
        else:
            self._given[option.name] = True

    def opt_config(self, path: str) -> None:
        """FILE: TOML with options as keys, max-connections = 100; the command line wins."""
        if self._file is not None:
            raise usage.UsageError("--config is given twice: which one is meant?")
        self._file = Path(path)

    def opt_check(self) -> None:
        """Validate everything, start nothing."""
        self._check = True

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
            found: FileValues | None = None
            if self._file is not None:
                found = read_config_file(self._file)
            self.settings = merge(self._given, found)
            self.kvtls_config = build_config(self.settings)
        except ConfigError as error:
            if error.option in {"--config", ""}:
                _fail(str(error))
            raise usage.UsageError(str(error)) from error
        if self._check:
            from kvproto.service import check

            try:
                findings = check(self.kvtls_config, _owner(self))
            except ConfigError as error:
                _fail(str(self.settings.relabelled(error)))
            for line in findings:
                print(line)
            print("kvtls: the configuration is good")
            sys.exit(0)


def _handler(option: Option) -> Callable[..., None]:
    """Return what Twisted calls for one option; its documentation is the help."""
    if option.kind.is_flag:

        def flag(self: Options) -> None:
            self.take_flag(option)

        flag.__doc__ = _help(option)
        return flag

    def one(self: Options, text: str) -> None:
        self.take(option, text)

    one.__doc__ = _help(option)
    return one


def _help(option: Option) -> str:
    """Return an option's help as a sentence that begins with what it takes."""
    start = "" if option.kind.is_flag else f"{option.kind.metavar}: "
    text = f"{start}{option.help}."
    return text[0].upper() + text[1:] if option.kind.is_flag else text


for _option in OPTIONS.values():
    # Twisted finds options as methods of these names.
    for _name in filter(None, (_option.name, _option.short)):
        setattr(Options, f"opt_{_name.replace('-', '_')}", _handler(_option))


def _fail(message: str) -> NoReturn:
    sys.stderr.write(f"twistd kvtls: error: {message}\n")
    sys.exit(USAGE_STATUS)


def _observer(config: Config, twistd: Any) -> Any:
    """Return what writes the log of a process of twistd's; None where that was told otherwise."""
    from kvproto.ops.logs import observer_for

    if twistd is None or twistd.get("syslog") or twistd.get("logger"):
        return None
    daemon = not (twistd.get("nodaemon") or twistd.get("debug"))
    return observer_for(
        config.log_format,
        config.log_level,
        twistd.get("logfile"),
        daemon=daemon,
        rooms=config.log_levels,
    )


def _owner(options: Options) -> FutureUser | None:
    """Return the user that ``twistd --uid`` makes of the process."""
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
        service = KVTLSService(
            config, signals=signals, owner=_owner(options), settings=options.settings
        )
        service.probe()
    except ConfigError as error:
        _fail(str(options.settings.relabelled(error)))
    service.log_observer = _observer(config, options.parent)
    return service
