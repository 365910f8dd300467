"""A browser for the report's pages, and hand-made summaries with everything that may stand in one.

The browser is headless Chromium, driven over a pipe by its DevTools protocol: no network, no driver.
"""

from __future__ import annotations

import base64
import copy
import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


class Browser:
    """One page. What it logs as an error is kept in `errors`."""

    def __init__(self, read: int, write: int) -> None:
        self.stream, self.write = os.fdopen(read, "rb", buffering=1 << 16), write
        self.number, self.session, self.errors = 0, "", list[str]()
        page = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        """Asks for one thing and waits for the answer; events on the way are looked at."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": arguments}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while (answer := self.receive()).get("id") != self.number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def receive(self) -> dict[str, Any]:
        """The next message."""
        text = bytearray()
        while (byte := self.stream.read(1)) != b"\0":
            assert byte, "Chromium ended"
            text += byte
        message = json.loads(text)
        found = message.get("params", {})
        if message.get("method") == "Log.entryAdded" and found["entry"]["level"] == "error":
            self.errors.append(found["entry"]["text"])
        if message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(found["exceptionDetails"]))
        if message.get("method") == "Runtime.consoleAPICalled" and found["type"] in ("error", "warning"):
            self.errors.append(json.dumps(found["args"]))
        return message

    def open(self, page: Path, width: int = 1280, dark: bool = False, script: bool = True) -> None:
        """Loads a file at a width, in a colour scheme, with its script or without."""
        self.errors.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        self.call("Page.navigate", url=page.resolve().as_uri())
        while self.receive().get("method") != "Page.loadEventFired":
            pass

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression on the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def shoot(self, path: Path, top: float = 0, height: float | None = None) -> None:
        """A picture of the page, of its whole height if none is given."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": top, "width": size["width"], "height": height or size["height"] - top, "scale": 1}
        data = self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))


@contextmanager
def open_browser(folder: Path) -> Iterator[Browser]:
    """A browser with a profile of its own in `folder`."""
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    # The protocol's pipes are descriptors 3 and 4 of the process.
    command = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
    process = subprocess.Popen(
        ["bash", "-c", command, str(CHROMIUM), *FLAGS, f"--user-data-dir={folder}", "about:blank"],
        pass_fds=(theirs_in, theirs_out),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    browser = Browser(ours_in, ours_out)
    try:
        yield browser
    finally:
        browser.session = ""
        browser.call("Browser.close")
        process.wait(20)
        os.close(ours_out)
        browser.stream.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for a module; its tests are skipped where there is none."""
    if not CHROMIUM.is_file():
        pytest.skip(f"no Chromium at {CHROMIUM}: the pages are not looked at")
    with open_browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def enriched(summary: Mapping[str, Any]) -> dict[str, Any]:
    """A summary of planted results (methods lora and memory; tasks people, ships; probes facts, text) with every
    optional part, its numbers made up by hand."""
    full = copy.deepcopy(dict(summary))
    for moment in ("now", "end"):
        frontier = full["frontier"][moment]
        for own in frontier["points"].values():
            for point in own:
                point |= {"steps": None, "learning_low": point["learning"] - 0.1, "forgetting_low": 0.05}
                point |= {"learning_high": point["learning"] + 0.1, "forgetting_high": 0.45}
        frontier["bands"] = {
            name: [{"learning": x, "forgetting": 0.2, "low": 0.1, "high": 0.3} for x in (0.2, 0.4, 0.6)]
            for name in frontier["points"]
        }
        leaf = {"value": 0.21, "low": 0.11, "high": 0.31}
        other = {"value": -0.123, "low": -0.2, "high": -0.05, "p": 0.031, "n": 6, "range": [0.25, 0.55]}
        frontier["hypervolume"] = {
            "range": [0.2, 0.6],
            "reference": "lora",
            "methods": {"lora": leaf | {"against_reference": None}, "memory": leaf | {"against_reference": other}},
        }
        frontier["within_budget"] = [{"budget": 0.01, "methods": {"lora": {"value": None}, "memory": {"value": 0.42}}}]
    losses = {"total": 0.30, "overwriting": 0.22, "routing": 0.08, "no_router": 0.11}
    levels = {"snapshot": 0.8, "oracle": 0.58, "on": 0.5, "ungated": 0.39}
    own = next(run for run in full["runs"] if run["method"] == "memory")
    full["where"] = [
        {
            **{name: own[name] for name in ("run_id", "method", "lr", "seed", "order")},
            "tasks": {"people": {**levels, **losses, "n": 20}, "ships": {**dict.fromkeys(losses, 0.0), "n": 20}},
            "probes": {"facts": {"base": 0.9, "off": 0.9, "on": 0.6, "ungated": 0.3, "leakage": 0.3}},
            "ablation": {"people": {"people": 0.44, "ships": 0.0}, "ships": {"people": -0.02, "ships": 0.51}},
            "recovery": {"people": {"before": 0.5, "after": 0.77, "snapshot": 0.8}},
            "mixed": {"facts": {"alone": -0.1, "mixed": -0.35}},
            "identity": {"accuracy": 0.97, "chance": 0.5, "n": 40},
            "overlap": {"parts": ["people", "ships"], "jaccard": [[1.0, 0.07], [0.07, 1.0]]},
            "false_fire": {"facts": 0.123},
        }
    ]
    full["bounds"] = {
        "single": {"lora": {task: {"value": v, "lr": 1e-3, "n": 2} for task, v in (("people", 0.95), ("ships", 0.85))}},
        "multitask": {"lora": {"people": {"value": 0.88, "lr": 1e-3, "n": 1}}},
    }
    for entry in full["methods"]:
        entry["told_task"] = entry["method"] == "memory"
        more = {"optimizer_bytes": 2048.0, "latency_ratio": 1.25, "replay_bytes": None}
        entry["values"]["costs"] |= {name: {"value": value, "n": 1} for name, value in more.items()}
    for run in full["runs"]:
        run["overlap"] = {"facts": {"train": 0.025, "background": None, "n": 8}}
        run["values"]["costs"] |= {"optimizer_bytes": 2048, "latency_ratio": 1.25, "task_bytes": 3 << 19}
    return full


@pytest.fixture
def enrich() -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """`enrich(summary)` gives a copy with every optional part."""
    return enriched
