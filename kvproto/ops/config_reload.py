"""The file of ``--config``, read again while the service runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvproto.base.log import make_logger
from kvproto.config import Config
from kvproto.config.options import OPTIONS
from kvproto.config.settings import Settings, build_config, describe, merge
from kvproto.config.toml_file import read_config_file
from kvproto.errors import ConfigError

__all__ = ["ConfigReload"]

log = make_logger()


class ConfigReload:
    """Reads the file again, takes over what can be, and names what needs a restart.

    Args:
        config: What the service was started with.
        settings: What was given then.
        live: How to take over each option that can change, by its name; called with the new
            configuration.
    """

    def __init__(
        self,
        config: Config,
        settings: Settings,
        live: Mapping[str, Callable[[Config], object]],
    ) -> None:
        self._started = self._values(config, settings)
        self._now = dict(self._started)
        self._live = live
        self.settings = settings

    @staticmethod
    def _values(config: Config, settings: Settings) -> dict[str, Any]:
        values = {row["name"]: row["value"] for row in describe(config, settings)}
        values["user"] = config.users  # passwords count, and are not shown
        return values

    def reload(self) -> None:
        """Read the file again; one that cannot be used changes nothing."""
        if self.settings.file is None:
            return
        path = self.settings.file.path
        try:
            settings = merge(self.settings.command_line, read_config_file(path))
            config = build_config(settings)
        except ConfigError as error:
            log.warn("the configuration stays as it is: {reason}", reason=str(error))
            return
        found = self._values(config, settings)
        for name in OPTIONS:
            if found[name] == self._now[name]:
                continue
            if name in self._live:
                self._live[name](config)
                log.info("{option} is {value} now", option=name, value=str(found[name]))
            elif found[name] != self._started[name]:
                log.warn(
                    "{option} has changed in {path}: that takes a restart", option=name,
                    path=str(path),
                )  # fmt: skip
            self._now[name] = found[name]
