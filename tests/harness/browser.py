"""Headless Chromium, driven by chromedriver through the W3C WebDriver protocol."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from . import procs
from .ports import Port
from .wait import wait_until

#: the key under which the protocol gives elements
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


class WebDriverError(AssertionError):
    """The browser refused a command."""


def missing() -> str | None:
    """Why no browser can be had here; None when one can."""
    for program in ("chromium", "chromedriver"):
        if not shutil.which(program):
            return f"no {program} (Debian: apt-get install chromium chromium-driver)"
    return None


class Browser:
    """One window."""

    def __init__(self, base: str) -> None:
        self.base = base
        options = {
            "binary": shutil.which("chromium"),
            "args": [
                "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync", "--lang=en-US",
                "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1 , EXCLUDE localhost",
            ],
        }  # fmt: skip
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self.session = f"/session/{session['sessionId']}"

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"}, method=method)
        # a proxy of the environment is not for the loopback
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=60) as r:
                return json.load(r)["value"]
        except urllib.error.HTTPError as e:
            value = json.load(e)["value"]
            raise WebDriverError(f"{value['error']}: {value['message'].splitlines()[0]}") from None

    def _do(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        return self._call(method, self.session + path, body if method == "GET" or body is not None else {})

    def open(self, url: str) -> None:
        """Loads a page; returns when it has loaded."""
        self._do("POST", "/url", {"url": url})

    @property
    def url(self) -> str:
        return self._do("GET", "/url")

    @property
    def title(self) -> str:
        return self._do("GET", "/title")

    def find(self, css: str) -> str:
        """The element, as soon as it is there."""

        def look() -> str | None:
            found = self._do("POST", "/elements", {"using": "css selector", "value": css})
            return found[0][_ELEMENT] if found else None

        return wait_until(look, 30, f"an element {css!r}")  # type: ignore[return-value]

    def type(self, css: str, text: str) -> None:
        """Types into a field; for a file input, the path of the file."""
        self._do("POST", f"/element/{self.find(css)}/value", {"text": text})

    def clear(self, css: str) -> None:
        """Empties a field."""
        self._do("POST", f"/element/{self.find(css)}/clear")

    def click(self, css: str) -> None:
        """Clicks, and waits for the page that a link or button leads to."""
        self._do("POST", f"/element/{self.find(css)}/click")

    def text(self, css: str = "body") -> str:
        return self._do("GET", f"/element/{self.find(css)}/text")

    def expect(self, css: str, text: str) -> None:
        """Waits until an element shows a text: a click returns before the page it leads to is there."""

        def shown() -> bool:
            try:
                return text in self.text(css)
            except WebDriverError:
                return False  # the element went with its page

        wait_until(shown, 30, f"{text!r} in {css!r}", interval=0.05)

    def run(self, script: str, *args: Any) -> Any:
        """The value of a piece of JavaScript (`return …`)."""
        return self._do("POST", "/execute/sync", {"script": script, "args": list(args)})

    def fetch(self, script: str, *args: Any) -> Any:
        """The same for one that calls its last argument with the value."""
        return self._do("POST", "/execute/async", {"script": script, "args": list(args)})

    def complaints(self) -> list[str]:
        """What the console says at the level of an error."""
        return [e["message"] for e in self._do("POST", "/se/log", {"type": "browser"}) if e["level"] == "SEVERE"]

    def screenshot(self, path: pathlib.Path) -> None:
        """Writes what the window shows as a PNG."""
        import base64

        path.write_bytes(base64.b64decode(self._do("GET", "/screenshot")))

    def quit(self) -> None:
        self._do("DELETE", "")


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A browser that is gone afterwards, with its files."""
    port = Port()
    home = tempfile.mkdtemp(prefix="mwr-browser-")
    env = {**os.environ, "HOME": home, "TMPDIR": home, "XDG_CONFIG_HOME": home, "XDG_CACHE_HOME": home}
    driver = subprocess.Popen(
        ["chromedriver", f"--port={port.number}"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, start_new_session=True, text=True,
    )  # fmt: skip
    seen: set[procs.Process] = set()
    try:
        assert driver.stdout
        for line in driver.stdout:
            if "started successfully" in line:
                break
        else:
            raise WebDriverError("chromedriver did not start")
        window = Browser(f"http://127.0.0.1:{port.number}")
        seen.update(procs.descendants([driver.pid]))
        try:
            yield window
        finally:
            seen.update(procs.descendants([driver.pid]))
            window.quit()
    finally:
        driver.kill()
        driver.wait()
        if driver.stdout:
            driver.stdout.close()
        for p in seen:
            p.kill()
        wait_until(lambda: not [p for p in seen if p.alive()], 10, "the browser's end")
        port.release()
        shutil.rmtree(home, ignore_errors=True)
