"""From what was given, on the command line and in a file, to one `Config`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from kvproto.config.nodes import NodeConfig
from kvproto.config.options import OPTIONS, Option
from kvproto.config.service import Config
from kvproto.config.toml_file import FileValues
from kvproto.config.values import DEFAULT_LISTEN
from kvproto.errors import ConfigError

__all__ = ["COMMAND_LINE", "DEFAULT", "Settings", "build_config", "describe", "merge"]

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
    """

    given: Mapping[str, Any]
    file: FileValues | None
    from_file: frozenset[str] = frozenset()
    command_line: Mapping[str, Any] = field(default_factory=dict)

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
        For each option ``name``, ``value`` (as JSON can say it, secrets hidden) and ``source``.
    """
    rows = []
    for option in OPTIONS.values():
        value, default = _field(config, option)
        if settings is not None:
            source = settings.source(option.name)
        else:
            source = DEFAULT if value == default else "program"
        rows.append({"name": option.name, "value": _shown(config, option, value), "source": source})
    return rows


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


def _shown(config: Config, option: Option, value: Any) -> Any:
    if option.name == "proxy-protocol":
        return [config.listen[number] for number in sorted(value)]
    if option.name == "no-flush":
        return not config.flush_allowed
    effective = {
        "allow-flush": config.flush_allowed,
        "anonymous": config.anonymous_allowed,
        "max-value": config.value_limit,
        "max-connections": config.connection_limit,
        "client-auth": config.client_auth_mode,
        "state-dir": config.state_directory,
        "refuse-when-full": not config.evict,
    }
    return option.show(effective.get(option.name, value))
