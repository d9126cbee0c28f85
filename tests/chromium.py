"""A headless Chromium that loads one page, over the browser's own pipe: no driver, no socket.

with Chromium(profile_folder) as browser:
    page = browser.open(path)
    page.run("document.title")
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROGRAM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
_FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage", "--disable-background-networking",
          "--disable-component-update", "--disable-extensions", "--force-color-profile=srgb", "--remote-debugging-pipe")  # fmt: skip


class Chromium:
    """The process and its pipe: messages are JSON, each ended by a zero byte, on descriptors 3 and 4 of the browser."""

    def __init__(self, folder: Path, *, patience: float = 30.0) -> None:
        assert PROGRAM is not None
        self._patience, self._number, self._rest = patience, 0, b""
        self.events: list[dict[str, Any]] = []
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        # The shell puts the ends where the browser looks for them.
        line = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self._process = subprocess.Popen(
            ["bash", "-c", line, PROGRAM, *_FLAGS, f"--user-data-dir={folder / 'profile'}"],
            pass_fds=(theirs_in, theirs_out), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self._in, self._out, self._folder = ours_in, ours_out, folder

    def __enter__(self) -> Chromium:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._out)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters, **({"sessionId": session} if session else {})}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def until(self, arrived: Callable[[], bool]) -> None:
        """Read what the browser tells until `arrived()`."""
        while not arrived():
            self.events.append(self._next())

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + self._patience
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], max(0.0, end - time.monotonic()))
            assert ready, "Chromium does not answer"
            part = os.read(self._in, 1 << 20)
            assert part, "Chromium has gone"
            self._rest += part
        message, self._rest = self._rest.split(b"\0", 1)
        answer: dict[str, Any] = json.loads(message)
        return answer

    def open(self, path: Path, *, width: int = 1440, height: int = 900, media: dict[str, str] | None = None, scale: float = 1) -> Page:
        return Page(self, path, self._folder, width, height, media or {}, scale)


class Page:
    """A loaded page, and everything it complained about or asked the network for since."""

    def __init__(self, browser: Chromium, path: Path, folder: Path, width: int, height: int, media: dict[str, str], scale: float) -> None:
        self._browser, self.downloads = browser, folder / "downloads"
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False)
        if media:
            self.call("Emulation.setEmulatedMedia", features=[{"name": name, "value": value} for name, value in media.items()])
        browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self.downloads), eventsEnabled=True)
        self.url = path.as_uri()
        self.call("Page.navigate", url=self.url)
        browser.until(lambda: bool(self._seen("Page.loadEventFired")))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **parameters)

    def _seen(self, method: str) -> list[dict[str, Any]]:
        return [
            event["params"] for event in self._browser.events if event.get("method") == method and event.get("sessionId") == self._session
        ]

    @property
    def complaints(self) -> list[Any]:
        """Console output, exceptions, log entries (refused by the Content-Security-Policy, say)."""
        return self._seen("Runtime.consoleAPICalled") + self._seen("Runtime.exceptionThrown") + self._seen("Log.entryAdded")

    @property
    def requests(self) -> list[str]:
        """What was asked for besides the page itself; blobs and data are of the page's own making."""
        urls = [event["request"]["url"] for event in self._seen("Network.requestWillBeSent")]
        return [url for url in urls if url != self.url and not url.startswith(("blob:", "data:"))]

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str, *, modifiers: int = 0) -> None:
        code = {"Enter": 13, "Tab": 9, "Home": 36, "End": 35, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}[key]
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, modifiers=modifiers, **text)

    def hover(self, x: float, y: float) -> None:
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def download(self, script: str) -> Path:
        """The file that `script` makes the page save."""
        before = len(self._ended())
        self.run(script)
        self._browser.until(lambda: len(self._ended()) > before)
        names = [
            event["params"]["suggestedFilename"] for event in self._browser.events if event.get("method") == "Browser.downloadWillBegin"
        ]
        return self.downloads / names[-1]

    def _ended(self) -> list[Any]:
        return [e for e in self._browser.events if e.get("method") == "Browser.downloadProgress" and e["params"]["state"] == "completed"]

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"clip": {**size, "scale": 1}} if whole else {}
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole, **clip)["data"]
        path.write_bytes(base64.b64decode(data))

    def pdf(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.printToPDF", preferCSSPageSize=True, printBackground=True)["data"]))
