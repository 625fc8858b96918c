"""A page in a real Chromium, over its DevTools protocol (https://chromedevtools.github.io/devtools-protocol/)."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from shutil import which
from typing import Any, Final

import aiohttp
import pytest

REQUIRED_VARIABLE: Final = "LORIKEET_REQUIRE_CHROMIUM"
"""Not empty: without a Chromium a test fails."""
_DRAWN: Final = """(() => {
  const inside = (box, outer) => box.left >= outer.left - 0.5 && box.right <= outer.right + 0.5
    && box.top >= outer.top - 0.5 && box.bottom <= outer.bottom + 0.5;
  const box = element => element.getBoundingClientRect();
  return {
    overflow: document.documentElement.scrollWidth - innerWidth,
    wide: [...document.querySelectorAll('main *')].filter(element => box(element).right > innerWidth + 0.5
      && !element.closest('.scroll')).map(element => element.outerHTML.slice(0, 80)),
    plots: [...document.querySelectorAll('svg.plot')].map(plot => {
      const drawing = plot.querySelector('svg.drawing'), view = drawing.viewBox.baseVal;
      const card = box(plot.closest('figure'));
      const steps = [...plot.querySelectorAll('text.x:not(.name)')].map(box).sort((a, b) => a.left - b.left);
      return {
        title: plot.querySelector('title').textContent,
        width: box(drawing).width,
        height: box(drawing).height,
        lines: [...drawing.querySelectorAll('polyline')].map(line => ({
          points: line.points.length,
          outside: [...line.points].filter(p => p.x < view.x || p.y < view.y
            || p.x > view.x + view.width || p.y > view.y + view.height).length,
          width: box(line).width,
        })),
        bars: [...drawing.querySelectorAll('rect.bar')].map(box).filter(bar => bar.width > 0 && bar.height > 0).length,
        astray: [...plot.querySelectorAll('text')].filter(text => !inside(box(text), card))
          .map(text => text.textContent),
        overlapping: steps.slice(1).filter((next, index) => next.left < steps[index].right).length,
      };
    }),
    samples: [...document.querySelectorAll('.sample')].map(sample => ['before', 'after'].map(name => {
      const {left, top, right, bottom} = box(sample.querySelector(`.answer.${name}`));
      return {left, top, right, bottom};
    })),
  };
})()"""


def chromium() -> str:
    """Return its path; if there is none skip, or fail where it is required."""
    found = which("chromium")
    if found is not None:
        return found
    missing = "there is no Chromium here: Debian's package chromium has it"
    if os.environ.get(REQUIRED_VARIABLE):
        pytest.fail(missing)
    pytest.skip(missing)


class Page:
    """One tab."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = count(1)
        self.requests: list[str] = []
        """URLs that were asked for, the page's own too."""
        self.complaints: list[str] = []
        """Errors, console lines, dialogs."""

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Return the result of a command, and keep what the browser tells meanwhile."""
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            told = await self._hear()
            if told.get("id") == number:
                assert "error" not in told, told
                result: dict[str, Any] = told["result"]
                return result

    async def open(self, path: Path, width: int, height: int, scheme: str = "light") -> None:
        """Open a file in a window of so many pixels, and wait until it is loaded."""
        for domain in ("Page", "Network", "Log", "Runtime"):
            await self.call(f"{domain}.enable")
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        await self.call("Page.navigate", url=path.as_uri())
        while (await self._hear()).get("method") != "Page.loadEventFired":
            pass

    async def evaluate(self, script: str) -> Any:
        """Return the value of an expression on the page."""
        result = await self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"]["value"]

    async def _hear(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(await self._socket.receive_str())
        method, parameters = told.get("method"), told.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        if method in (
            "Log.entryAdded",
            "Runtime.consoleAPICalled",
            "Runtime.exceptionThrown",
            "Page.javascriptDialogOpening",
        ):
            self.complaints.append(json.dumps(parameters))
        return told


@asynccontextmanager
async def page(profile: Path) -> AsyncIterator[Page]:
    """Start Chromium with its profile in a folder; yield its tab."""
    # Root, as in a container, has no sandbox of its own; what is opened is ours.
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", f"--user-data-dir={profile}"]
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(chromium(), *options, "about:blank", stdout=quiet, stderr=quiet)
    try:
        async with aiohttp.ClientSession() as session:
            port = await _port(profile / "DevToolsActivePort", process)
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                (tab,) = [one for one in await answer.json() if one["type"] == "page"]
            async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                yield Page(socket)
    finally:
        process.terminate()
        await process.wait()


async def drawn(html: str, folder: Path, width: int, height: int, scheme: str = "light") -> dict[str, Any]:
    """Open a report, require that nothing but itself is asked for, nothing said and nothing too wide."""
    file = folder / "index.html"
    file.write_text(html, encoding="utf-8")
    async with page(folder / "profile") as tab:
        await tab.open(file, width, height, scheme)
        found: dict[str, Any] = await tab.evaluate(_DRAWN)
        assert tab.requests == [file.as_uri()]
        assert tab.complaints == []
    assert found["overflow"] <= 0
    assert found["wide"] == []
    return found


async def _port(file: Path, process: asyncio.subprocess.Process) -> int:
    """Wait until Chromium has written where it listens."""
    while (port := _written(file)) is None:
        assert process.returncode is None, "Chromium did not start"
        await asyncio.sleep(0.02)
    return port


def _written(file: Path) -> int | None:
    lines = file.read_text().splitlines() if file.exists() else []
    return int(lines[0]) if len(lines) == 2 else None  # port and path
