"""Drive a headless Chromium over its DevTools pipe: real mouse, touch and key events, with nothing to install beside it.

python tests/browser.py page.html#pair=0 page.png --size 1280x900        a screenshot
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome")
KEYS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Enter": 13, "Escape": 27, "Tab": 9}


def find_chromium() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page in a browser of its own; a context manager."""

    def __init__(self, chromium: str, patience: float = 60) -> None:
        self._patience = patience
        self._home = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        from_us, self._to = os.pipe()
        self._from, to_us = os.pipe()
        flags = [
            "--headless",
            "--no-sandbox",
            "--remote-debugging-pipe",
            "--disable-gpu",
            "--hide-scrollbars",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-dev-shm-usage",
            f"--user-data-dir={self._home.name}",
            "about:blank",
        ]
        # Chromium reads from descriptor 3 and writes to 4, whatever numbers the pipes have here.
        shell = f'exec "$0" "$@" 3<&{from_us} 4>&{to_us}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, chromium, *flags],
            pass_fds=(from_us, to_us),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(from_us)
        os.close(to_us)
        self._count, self._rest, self._session = 0, b"", None
        self.events: list[dict[str, Any]] = []
        page = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)
        self._home.cleanup()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            if not select.select([self._from], [], [], self._patience)[0]:
                raise TimeoutError(f"no answer from Chromium in {self._patience} s")
            part = os.read(self._from, 1 << 20)
            if not part:
                raise RuntimeError(f"Chromium ended with {self._process.wait()}")
            self._rest += part
        message, self._rest = self._rest.split(b"\0", 1)
        return json.loads(message)

    def size(self, width: int, height: int, phone: bool = False) -> None:
        """Of the window, in CSS pixels; a phone has two pixels to each, and touch."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2 if phone else 1, mobile=phone
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)

    def media(self, **features: str) -> None:
        """Media features, with _ for -: prefers_color_scheme="dark"."""
        named = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", features=named)

    def open(self, path: Path, fragment: str = "") -> None:
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=path.resolve().as_uri() + (f"#{fragment}" if fragment else ""))
        self.wait("location.protocol !== 'about:' && document.readyState === 'complete'")
        self.settle()

    def value(self, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        end = time.monotonic() + self._patience
        while not self.value(condition):
            if time.monotonic() > end:
                raise TimeoutError(f"{condition} did not become true in {self._patience} s: {self.errors()}")
            time.sleep(0.02)

    def settle(self) -> None:
        """Until what the last event set off has been drawn."""
        self.value("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def mouse(self, kind: str, x: float, y: float) -> None:
        """kind: mouseMoved, mousePressed or mouseReleased."""
        pressed = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **pressed)

    def click(self, x: float, y: float) -> None:
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.mouse(kind, x, y)
        self.settle()

    def tap(self, x: float, y: float) -> None:
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        self.settle()

    def key(self, name: str, shift: bool = False) -> None:
        text = {"text": "\r"} if name == "Enter" else {}
        options = {"key": name, "code": name, "windowsVirtualKeyCode": KEYS[name], "modifiers": 8 if shift else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown", **options, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **options)
        self.settle()

    def errors(self) -> list[Any]:
        """Exceptions and console errors so far."""
        self.value("0")
        kinds = ("Runtime.exceptionThrown", "Log.entryAdded")
        return [event["params"] for event in self.events if event.get("method") in kinds]

    def requests(self) -> list[str]:
        """Addresses that were asked for so far."""
        self.value("0")
        return [event["params"]["request"]["url"] for event in self.events if event.get("method") == "Network.requestWillBeSent"]

    def screenshot(self, path: Path, whole: bool = False) -> None:
        self.settle()
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a screenshot of a page.")
    parser.add_argument("page", help="file, with a fragment after # if wanted")
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", default="1280x900")
    parser.add_argument("--phone", action="store_true")
    parser.add_argument("--dark", action="store_true")
    args = parser.parse_args()
    file, _, fragment = args.page.partition("#")
    chromium = find_chromium() or parser.error(f"none of {', '.join(NAMES)} is installed")
    with Browser(chromium) as browser:
        browser.size(*map(int, args.size.split("x")), phone=args.phone)
        browser.media(prefers_color_scheme="dark" if args.dark else "light")
        browser.open(Path(file), fragment)
        browser.screenshot(args.out)
        # Colours in steps of four, which nobody sees: a fifth fewer bytes.
        Image.open(args.out).convert("RGB").point(lambda v: v & 252 | v >> 6).save(args.out, optimize=True)
        print(f"written: {args.out}", *browser.errors())


if __name__ == "__main__":
    main()
