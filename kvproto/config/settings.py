"""From what was given, on the command line and in a file, to one `Config`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from kvproto.config.nodes import NodeConfig
from kvproto.config.options import OPTIONS, Option
from kvproto.config.service import Config
from kvproto.config.toml_file import FileValues
from kvproto.config.values import DEFAULT_LISTEN
from kvproto.errors import ConfigError

__all__ = [
    "COMMAND_LINE",
    "DEFAULT",
    "Settings",
    "build_config",
    "changes",
    "describe",
    "merge",
    "taken_over",
]

COMMAND_LINE = "command line"
DEFAULT = "default"

_NODES = "nodes."


@dataclass(frozen=True, slots=True)
class Settings:
    """What was given.

    Attributes:
        given: Values by option; a list for those that may be repeated.
        file: The file of ``--config``; None where there is none.
        from_file: Which of them come from the file.
        command_line: What was given there alone.
        pending: Values that a restart would bring, as `describe` shows them, by option.
    """

    given: Mapping[str, Any]
    file: FileValues | None
    from_file: frozenset[str] = frozenset()
    command_line: Mapping[str, Any] = field(default_factory=dict)
    pending: Mapping[str, Any] = field(default_factory=dict)

    def source(self, name: str) -> str:
        """Return where an option's value comes from."""
        if name not in self.given:
            return DEFAULT
        if name in self.from_file and self.file is not None:
            return self.file.source(name)
        return COMMAND_LINE

    def relabelled(self, error: ConfigError) -> ConfigError:
        """Return an error as one about the file, if the option at fault stands there."""
        if self.file is None or error.option.removeprefix("--") not in self.from_file:
            return error
        return self.file.relabelled(error)


def merge(given: Mapping[str, Any], file: FileValues | None) -> Settings:
    """Put the command line over the file: an option given there replaces the file's, lists too."""
    if file is None:
        return Settings(given, None, command_line=given)
    replaced = set(given)
    if "allow-flush" in given or "no-flush" in given:
        replaced |= {"allow-flush", "no-flush"}
    if "listen" in given:
        replaced.add("proxy-protocol")  # it names listeners of the file
    kept = {name: value for name, value in file.values.items() if name not in replaced}
    return Settings({**kept, **given}, file, frozenset(kept), given)


def build_config(settings: Settings) -> Config:
    """Build the configuration.

    Raises:
        ConfigError: Values contradict one another.
    """
    try:
        return _build(settings.given)
    except ConfigError as error:
        raise settings.relabelled(error) from None


def _build(given: Mapping[str, Any]) -> Config:
    values: dict[str, Any] = {}
    nodes: dict[str, Any] = {}
    if given.get("allow-flush") and given.get("no-flush"):
        raise ConfigError("--no-flush", "contradicts --allow-flush")
    for name, value in given.items():
        option = OPTIONS[name]
        if name == "proxy-protocol":
            values[option.field] = _proxied(given, value)
        elif option.field.startswith(_NODES):
            nodes[option.field.removeprefix(_NODES)] = _made(option, value)
        elif not option.kind.is_flag or (value or option.unset is not None):
            values[option.field] = _made(option, value)
    if nodes:
        for name in ("node-listen", "node-name", "node-cookie-file"):
            if name not in given:
                raise ConfigError(f"--{name}", "is missing: an Erlang node needs it")
        values["nodes"] = NodeConfig(**nodes)
    return Config(**values)


def _made(option: Option, value: Any) -> Any:
    if option.repeatable:
        return tuple(value)
    if option.kind.is_flag:
        return option.value if value else option.unset
    return value


def _proxied(given: Mapping[str, Any], value: Any) -> frozenset[int]:
    """Return which listeners take a PROXY header, from their descriptions, or true for all."""
    listening = given.get("listen", [DEFAULT_LISTEN])
    if isinstance(value, bool):
        return frozenset(range(len(listening))) if value else frozenset()
    for one in value:
        if one not in listening:
            raise ConfigError("--proxy-protocol", f"{one!r} is none of --listen")
    return frozenset(number for number, one in enumerate(listening) if one in value)


def describe(config: Config, settings: Settings | None) -> list[dict[str, Any]]:
    """Return every option with its effective value and where that comes from.

    Args:
        config: What is in force.
        settings: What was given; None where a program made the configuration itself.

    Returns:
        For each option ``name``, ``value`` (as JSON can say it, secrets hidden) and ``source``;
        and ``pending``, where the file has another value that takes a restart.
    """
    rows = []
    for option in OPTIONS.values():
        value, default = _field(config, option)
        if settings is not None:
            source = settings.source(option.name)
        else:
            source = DEFAULT if value == default else "program"
        row = {"name": option.name, "value": _shown(config, option), "source": source}
        if settings is not None and option.name in settings.pending:
            row["pending"] = settings.pending[option.name]
        rows.append(row)
    return rows


def changes(old: Config, new: Config) -> list[str]:
    """Return the options that have another value, in the order of ``--help``."""
    return [
        name
        for name, option in OPTIONS.items()
        if _effective(old, option) != _effective(new, option)
    ]


def taken_over(
    running: Settings, new: Settings, live: Collection[str]
) -> tuple[Settings, list[str]]:
    """Put what a running service can take over of new settings over those that it runs with.

    Args:
        running: What is in force.
        new: What the file says now; good.
        live: Which options can be taken over.

    Returns:
        What will be in force, and the options that have changed and cannot be.

    Raises:
        ConfigError: What can be taken over contradicts what cannot.
    """
    assert new.file is not None, "a file is what is read again"
    old_config, new_config = build_config(running), build_config(new)
    changed = changes(old_config, new_config)
    given_anew = {name for name in OPTIONS if running.given.get(name) != new.given.get(name)}
    restart = [name for name in changed if name not in live and name in given_anew]
    given, lines, from_file = {}, {}, set()
    for name in OPTIONS:
        # A value that is only said in other words is taken too: its line may have moved.
        source = running if name not in live and name in changed else new
        if name in source.given:
            given[name] = source.given[name]
        if name in source.from_file and source.file is not None:
            from_file.add(name)
            lines[name] = source.file.lines[name]
    pending = {name: _shown(new_config, OPTIONS[name]) for name in restart}
    file = FileValues(new.file.path, new.file.values, lines)
    return Settings(given, file, frozenset(from_file), new.command_line, pending), restart


def _field(config: Config, option: Option) -> tuple[Any, Any]:
    """Return the value of an option's field and its default; None for nodes that are not there."""
    holder: Any = config
    name = option.field
    if name.startswith(_NODES):
        holder, name = config.nodes, name.removeprefix(_NODES)
        if holder is None:
            return None, None
    default = next(one.default for one in fields(holder) if one.name == name)
    return getattr(holder, name), None if default is MISSING else default


def _effective(config: Config, option: Option) -> Any:
    """Return an option's value with its default applied."""
    effective = {
        "proxy-protocol": [config.listen[number] for number in sorted(config.proxy_protocol)],
        "allow-flush": config.flush_allowed,
        "no-flush": not config.flush_allowed,
        "anonymous": config.anonymous_allowed,
        "max-value": config.value_limit,
        "max-unfinished": config.unfinished_limit,
        "max-connections": config.connection_limit,
        "client-auth": config.client_auth_mode,
        "state-dir": config.state_directory,
        "refuse-when-full": not config.evict,
    }
    if option.name in effective:
        return effective[option.name]
    return _field(config, option)[0]


def _shown(config: Config, option: Option) -> Any:
    value = _effective(config, option)
    return value if option.name == "proxy-protocol" else option.show(value)
