"""A report as headless Chromium shows it, over its DevTools protocol: what was asked for, what did not fit, what went wrong."""

import fcntl
import json
import os
import re
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
#: Seconds that any answer may take: a browser's start, on a machine that is busy.
PATIENCE = 100
#: What the page says of itself, once each of its images is loaded or has failed.
ASK = """
(async () => {
  const images = [...document.images];
  await Promise.all(images.map(i => i.decode().catch(() => 0)));
  return {
    images: images.length,
    loaded: images.filter(i => i.complete && i.naturalWidth > 0).length,
    shown: images.filter(i => i.width > 0 || i.closest("details:not([open])")).length,
    width: document.documentElement.scrollWidth,
    inner: innerWidth,
    sections: document.querySelectorAll("section h2").length,
    dangling: [...document.querySelectorAll("nav a")].filter(a => !document.querySelector(a.getAttribute("href"))).length,
    paper: getComputedStyle(document.body).backgroundColor,
  };
})()
"""
#: Makes two pipes the file descriptors 3 and 4, where Chromium expects them, and becomes the browser.
LAUNCH = "import os, sys; [os.dup2(int(sys.argv[k]), k + 2) for k in (1, 2)]; os.execv(sys.argv[3], sys.argv[3:])"
#: Events that tell of an error.
ERRORS = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Network.loadingFailed")


def browser() -> str:
    """The browser's program; the test is skipped where there is none."""
    for name in NAMES:
        if program := shutil.which(name):
            return program
    pytest.skip(f"no browser on the PATH (looked for {', '.join(NAMES)}; Debian's package is chromium)")


class DevTools:
    """One page of a browser that is spoken to over two pipes, in JSON messages that end with a null byte."""

    def __init__(self, commands: int, answers: int) -> None:
        self.commands, self.answers = commands, answers
        self.buffer, self.last, self.session = b"", 0, ""
        #: What the page told unasked.
        self.events: list[dict[str, Any]] = []

    def attach(self) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.last += 1
        message = {"id": self.last, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self.last:
                assert "error" not in answer, answer
                return dict(answer["result"])
            self.events.append(answer)

    def wait(self, method: str) -> None:
        while not any(event["method"] == method for event in self.events):
            self.events.append(self._read())

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.answers], [], [], PATIENCE)
            assert ready, f"no answer from the browser in {PATIENCE} s"
            content = os.read(self.answers, 1 << 16)
            assert content, "the browser has ended"
            self.buffer += content
        message, _, self.buffer = self.buffer.partition(b"\0")
        return dict(json.loads(message))


@contextmanager
def devtools(profile: Path) -> Iterator[DevTools]:
    """A browser for as long as the block runs."""
    ours_out, theirs_out = os.pipe(), os.pipe()
    # Away from 3 and 4, which they are to become.
    theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, 64) for end in (ours_out[0], theirs_out[1])]
    options = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
        *("--remote-debugging-pipe", f"--user-data-dir={profile}"),
    ]
    launch = [sys.executable, "-S", "-E", "-c", LAUNCH, *map(str, theirs), browser(), *options]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(launch, pass_fds=theirs, stdin=quiet, stdout=quiet, stderr=quiet)
    for end in (*theirs, ours_out[0], theirs_out[1]):
        os.close(end)
    try:
        tools = DevTools(ours_out[1], theirs_out[0])
        tools.attach()
        yield tools
    finally:
        os.close(ours_out[1])  # which ends it
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(theirs_out[0])


def look(tools: DevTools, report: Path, width: int, dark: bool, picture: Path | None = None) -> dict[str, Any]:
    """Open the report at `width` CSS pixels; what `ASK` says, its requests, and its errors."""
    tools.events.clear()
    tools.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    tools.call("Emulation.setEmulatedMedia", features=[scheme])
    tools.call("Page.navigate", url=report.as_uri())
    tools.wait("Page.loadEventFired")
    answer = tools.call("Runtime.evaluate", expression=ASK, awaitPromise=True, returnByValue=True)["result"]
    sent = [e["params"]["request"]["url"] for e in tools.events if e["method"] == "Network.requestWillBeSent"]
    requests = [url for url in sent if not url.startswith("data:")]
    errors = [e for e in tools.events if e["method"] in ERRORS]
    return {**answer["value"], "requests": requests, "errors": errors}


def check_in_browser(report: Path, scratch: Path, images: int) -> None:
    """On a phone in the dark and on a desktop: no error, no request but the file, every image, nothing beyond the window."""
    papers = set()
    with devtools(scratch) as tools:
        for width, dark in ((390, True), (1280, False)):
            seen = look(tools, report, width, dark)
            assert seen["errors"] == [], seen
            assert seen["requests"] == [report.as_uri()], seen
            assert (seen["images"], seen["loaded"], seen["shown"]) == (images, images, images), seen
            assert seen["inner"] == width, seen  # a telephone's would grow to hold what is too wide
            assert seen["width"] <= width, seen
            assert seen["sections"] > 1
            assert seen["dangling"] == 0
            papers.add(seen["paper"])
    assert len(papers) == 2


def check_source(report: Path) -> int:
    """No script, nothing that would be fetched, an `alt` for every image. Returns the number of images."""
    text = report.read_text()
    images = re.findall(r"<img [^>]*>", text)
    assert all(re.search(r' alt="[^"]+"', image) for image in images)
    assert all(re.search(r' src="data:image/(png|webp);base64,[A-Za-z0-9+/=]+"', image) for image in images)
    without = re.sub(r'"data:image/[^"]*"', '""', text)
    for fetching in ("<script", "<link", "<iframe", "@import", "url(", "://", "javascript:"):
        assert fetching not in without, fetching
    assert not re.search(r"\son[a-z]+=", without)
    headings = [int(level) for level in re.findall(r"<h([1-6])", without)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    return len(images)
