"""Chromium without a window, driven by chromedriver as WebDriver says."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.integration.peers import require
from tests.integration.service import PATIENCE

__all__ = ["Browser"]

_STARTED = re.compile(r"started successfully on port (\d+)")


class Browser:
    """A browser; a context manager that leaves nothing behind.

    Args:
        profile: An empty directory.

    Source: W3C WebDriver; Chrome DevTools Protocol, domain Emulation.
    """

    def __init__(self, profile: Path) -> None:
        chromium = require("chromium", "chromium")
        self._driver = subprocess.Popen(
            [require("chromedriver", "chromium-driver"), "--port=0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._session = ""
        try:
            assert self._driver.stdout is not None
            found = next(filter(None, map(_STARTED.search, self._driver.stdout)), None)
            assert found is not None, "chromedriver did not start"
            self._url = f"http://127.0.0.1:{found[1]}"
            arguments = [
                *["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
                f"--user-data-dir={profile}",
            ]
            options = {"goog:chromeOptions": {"binary": chromium, "args": arguments}}
            answer = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": options}})
            self._session = f"/session/{answer['sessionId']}"
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if self._session:
                self._ask("DELETE", self._session)
        finally:
            self._driver.kill()
            self._driver.wait(PATIENCE)
            if self._driver.stdout is not None:
                self._driver.stdout.close()

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            self._url + path,
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.load(answer)["value"]

    def open(self, url: str) -> None:
        """Show a page, and wait until it is loaded."""
        self._ask("POST", f"{self._session}/url", {"url": url})

    def run(self, script: str, *, waits: bool = False) -> Any:
        """Return what a script returns, or with ``waits`` what it gives to its last argument."""
        kind = "async" if waits else "sync"
        body = {"script": script, "args": []}
        return self._ask("POST", f"{self._session}/execute/{kind}", body)

    def until(self, script: str, good: Callable[[Any], object] = bool) -> Any:
        """Run a script again and again until what it returns is good; return that."""
        deadline = time.monotonic() + PATIENCE
        while not good(found := self.run(script)):
            assert time.monotonic() < deadline, (script, found)
            time.sleep(0.05)
        return found

    def emulate(self, command: str, **arguments: Any) -> None:
        """Send a command of the domain Emulation."""
        body = {"cmd": f"Emulation.{command}", "params": arguments}
        self._ask("POST", f"{self._session}/goog/cdp/execute", body)

    def resize(self, width: int, height: int = 1000) -> None:
        """Show the page as on a screen of this size, in pixels."""
        self.emulate(
            "setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def dark(self, dark: bool) -> None:
        """Ask for the dark, or the light, of pages that have both."""
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.emulate("setEmulatedMedia", features=[feature])

    def picture(self, path: Path) -> None:
        """Write what is seen as PNG."""
        shown = self._ask("GET", f"{self._session}/screenshot")
        path.write_bytes(base64.b64decode(shown))
