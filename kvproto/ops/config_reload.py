"""The file of ``--config``, read again while the service runs: all of what can change, or nothing.

First everything is read that can be wrong: the file, and what the parts of the service read for it
(`Part.prepare`).  Only then are the parts given the new configuration, one after the other; a part
that fails at that has a defect, and those before it are given the old one again.

Without a file of ``--config`` the parts still read their own files again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.python.failure import Failure

from kvproto.base.log import make_logger
from kvproto.base.serial import Serial
from kvproto.config import Config
from kvproto.config.options import OPTIONS, Reload
from kvproto.config.settings import Settings, build_config, changes, describe, merge, taken_over
from kvproto.config.toml_file import ConfigFileError, read_config_file
from kvproto.dataplane import same_but_for_servers
from kvproto.errors import ConfigError

__all__ = ["ConfigReload", "Part"]

log = make_logger()


def _nothing(_config: Config) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Part:
    """Something that takes over options while it serves.

    Attributes:
        options: Which; the parts of a service share all options that need no restart.
        apply: Called with a configuration and what was prepared for it; what it returns may be a
            Deferred of the time when everything has taken effect.
        prepare: Called with a configuration before anything is changed; returns what `apply`
            needs, or a Deferred of it.  It raises `ConfigError` for what cannot be used.
        current: Returns what was prepared for the configuration that is in force.
        rereads: Whether it has files of its own, which may have changed when no option has.
    """

    options: tuple[str, ...]
    apply: Callable[[Config, Any], object]
    prepare: Callable[[Config], Any] = _nothing
    current: Callable[[], Any] = lambda: None
    rereads: Callable[[Config], object] = _nothing


class ConfigReload:
    """Reads the file again, takes over what can be, and names what needs a restart.

    Args:
        config: What the service was started with.
        settings: What was given then; None where a program made the configuration.
        parts: Who takes over what, in this order.
        jobs: What must not happen meanwhile runs in the same queue.
        check: Called with the configuration of a changed file; raises `ConfigError` for what only
            shows when the service is made of it.
        changed: Called with what is in force now, and where it comes from.
        run: Where files are read: a thread, since a long one takes its time.

    Attributes:
        config: What is in force.
        settings: Where it comes from.
    """

    def __init__(
        self,
        config: Config,
        settings: Settings | None,
        parts: Sequence[Part],
        jobs: Serial,
        check: Callable[[Config], object] = _nothing,
        changed: Callable[[Config, Settings | None], object] = lambda _config, _settings: None,
        run: Callable[..., Any] = maybeDeferred,
    ) -> None:
        self.config = config
        self.settings = settings
        self._parts = parts
        self._jobs = jobs
        self._check = check
        self._changed = changed
        self._run = run

    def reload(self) -> Deferred[dict[str, Any]]:
        """Read the file again; one that cannot be used changes nothing.

        Returns:
            A Deferred of ``ok``, ``changed`` and ``restart`` (names of options), and ``reason``,
            which is ``""`` when it went well.
        """
        return self._jobs.run(self, self._reload)

    async def _reload(self) -> dict[str, Any]:
        try:
            config, settings, restart = await self._read()
            changed = changes(self.config, config)
            concerned = [
                part
                for part in self._parts
                if part.rereads(config) or not set(part.options).isdisjoint(changed)
            ]
            try:
                prepared = [await maybeDeferred(part.prepare, config) for part in concerned]
            except ConfigError as error:
                raise (error if settings is None else settings.relabelled(error)) from None
        except ConfigError as error:
            log.warn("the configuration stays as it is: {reason}", reason=str(error))
            return _answer(reason=str(error))
        except Exception as error:
            log.failure("the configuration stays as it is")
            return _answer(reason=f"a defect, the log says more: {error!r}")
        try:
            done = self._apply(concerned, config, prepared)
        except Exception as error:
            log.failure("the configuration is as it was: a part could not take it over")
            return _answer(reason=f"a defect, the log says more: {error!r}")
        self.config, self.settings = config, settings
        self._changed(config, settings)
        self._tell(changed, restart)
        for waiting in done:
            if isinstance(waiting, Deferred):
                await waiting.addErrback(_report)
        return _answer(changed=changed, restart=restart)

    async def _read(self) -> tuple[Config, Settings | None, list[str]]:
        """Return what is to be in force, where it comes from, and what takes a restart."""
        running = self.settings
        if running is None or running.file is None:
            return self.config, running, []
        file = await maybeDeferred(self._run, read_config_file, running.file.path)
        new = merge(running.command_line, file)
        wanted = build_config(new)
        try:
            self._check(wanted)
            moved = same_but_for_servers(self.config.store_url, wanted.store_url)
        except ConfigError as error:
            raise new.relabelled(error) from None
        live = {name for name, option in OPTIONS.items() if option.reload is not Reload.RESTART}
        settings, restart = taken_over(running, new, live | {"store"} if moved else live)
        try:
            return build_config(settings), settings, restart
        except ConfigError as error:
            reason = f"{error.reason}; {', '.join(restart)} can only change with a restart"
            if isinstance(error, ConfigFileError):
                raise ConfigFileError(error.path, error.line, error.key, reason) from None
            raise ConfigError(error.option, reason) from None

    def _apply(self, parts: Sequence[Part], config: Config, prepared: list[Any]) -> list[Any]:
        """Give all parts the new configuration, or none; return what they return."""
        before = [part.current() for part in parts]
        done: list[Any] = []
        for number, part in enumerate(parts):
            try:
                done.append(part.apply(config, prepared[number]))
            except Exception:
                for again in reversed(range(number + 1)):
                    self._take_back(parts[again], before[again])
                raise
        return done

    def _take_back(self, part: Part, before: Any) -> None:
        """Give a part the old configuration; what fails once more must not keep others from it."""
        try:
            part.apply(self.config, before)
        except Exception:
            log.failure("a part could not go back to the configuration that it had")

    def _tell(self, changed: Iterable[str], restart: Iterable[str]) -> None:
        if self.settings is None or self.settings.file is None:
            return
        path = str(self.settings.file.path)
        shown = {row["name"]: row["value"] for row in describe(self.config, self.settings)}
        for name in changed:
            log.info("{option} is {value} now", option=name, value=_words(shown[name]))
        for name in restart:
            log.warn("{option} has changed in {path}: that takes a restart", option=name, path=path)
        if not changed and not restart:
            log.info("{path} holds the configuration that is in force", path=path)


def _words(value: object) -> str:
    """Return a value as an operator would write it."""
    if value is None:
        return "not set"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "not set"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _report(failure: Failure) -> None:
    log.failure("the configuration is in force, but a part has not followed", failure=failure)


def _answer(
    changed: Sequence[str] = (), restart: Sequence[str] = (), reason: str = ""
) -> dict[str, Any]:
    return {
        "ok": not reason,
        "changed": [*changed],
        "restart": [*restart],
        "reason": reason,
    }
