"""Headless Chromium, controlled through a pipe by the DevTools protocol."""

import base64
import fcntl
import io
import json
import os
import select
import shutil
import subprocess
import time

import numpy as np
from PIL import Image as Pillow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
BASH = shutil.which("bash")
FLAGS = [
    *("--headless", "--no-sandbox", "--no-first-run", "--disable-sync"),
    *("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
    *("--remote-debugging-pipe", "--window-size=800,700"),
]
PATIENCE = 60  # s to wait for an answer


def pipe_ends():
    """Return the two ends of a pipe, with descriptors that the browser does not use itself."""
    ends = os.pipe()
    moved = tuple(fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in ends)
    for end in ends:
        os.close(end)
    return moved


class Browser:
    """Browser in which pages are opened one after the other."""

    def __init__(self, folder):
        theirs_in, self._to = pipe_ends()
        self._from, theirs_out = pipe_ends()
        start = ["-c", 'exec "${@:3}" 3<&"$1" 4>&"$2"', "bash", str(theirs_in), str(theirs_out)]
        self._process = subprocess.Popen(
            [BASH, *start, CHROMIUM, *FLAGS, f"--user-data-dir={folder}"],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if name != "LD_PRELOAD"},
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._number, self._rest, self.events, self._target = 0, b"", [], None
        self._sessions, self._answers = [], {}

    def close(self):
        self.ask("Browser.close")
        self._process.wait(10)
        os.close(self._to)
        os.close(self._from)

    def ask(self, method, session=None, **params):
        self._number += 1
        wanted = self._number
        message = {"id": self._number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while wanted not in self._answers:
            if not self._read(PATIENCE):
                raise TimeoutError(method)
        told = self._answers.pop(wanted)
        assert "error" not in told, (method, told["error"])
        return told["result"]

    def _read(self, patience):
        """Read one message; return whether there was one."""
        end = time.monotonic() + patience
        while b"\0" not in self._rest:
            ready = select.select([self._from], [], [], max(end - time.monotonic(), 0))[0]
            if not ready:
                return False
            self._rest += os.read(self._from, 1 << 20)
        line, _, self._rest = self._rest.partition(b"\0")
        told = json.loads(line)
        if "id" in told:
            self._answers[told["id"]] = told
        else:
            self.events.append(told)
            if told["method"] == "Target.attachedToTarget":
                self._watch(told["params"]["sessionId"])
        return True

    def _watch(self, session):
        """Listen to the logs and requests of a page, or of a frame in its own process."""
        self._sessions.append(session)
        attach = {"autoAttach": True, "waitForDebuggerOnStart": True, "flatten": True}
        for method, params in (
            *((f"{room}.enable", {}) for room in ("Runtime", "Log", "Network")),
            ("Target.setAutoAttach", attach),
            ("Runtime.runIfWaitingForDebugger", {}),
        ):
            self.ask(method, session, **params)

    def open(self, path, before=""):
        """Open a page from the file system, and close the previous one.

        ``before`` is a script that runs before those of the page.
        """
        if self._target is not None:
            self.ask("Target.closeTarget", targetId=self._target)
        self.events.clear()
        self._sessions.clear()
        self._target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.ask("Target.attachToTarget", targetId=self._target, flatten=True)
        self.page = self._sessions[0]
        self.ask("Page.enable", self.page)
        self.ask("Page.addScriptToEvaluateOnNewDocument", self.page, source=before)
        self.ask("Page.navigate", self.page, url=path.as_uri())
        self.wait_for(lambda: self.seen("Page.loadEventFired"))

    def wait_for(self, condition):
        end = time.monotonic() + PATIENCE
        while not (found := condition()):
            assert time.monotonic() < end, "nothing happened"
            self._read(0.05)
        return found

    def seen(self, method):
        return [event["params"] for event in self.events if event["method"] == method]

    def run(self, script):
        """Evaluate a script in the page, and return its value."""
        told = self.ask(
            "Runtime.evaluate", self.page, expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def press(self, key):
        for kind in ("rawKeyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", self.page, type=kind, key=key, code=key)

    def click(self, x, y):
        place = {"x": x, "y": y, "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", self.page, type=kind, **place)

    def turn_wheel(self, x, y, by):
        self.ask(
            "Input.dispatchMouseEvent", self.page, type="mouseWheel", x=x, y=y, deltaX=0, deltaY=by
        )

    def picture(self, box=None):
        """Take a screenshot of the viewport, or of a box of it: x, y, width, height in px."""
        clip = {}
        if box is not None:
            clip["clip"] = {
                **dict(zip(("x", "y", "width", "height"), box, strict=True)),
                "scale": 1,
            }
        told = self.ask("Page.captureScreenshot", self.page, format="png", **clip)
        content = io.BytesIO(base64.b64decode(told["data"]))
        return np.asarray(Pillow.open(content).convert("RGB"), int)

    def complaints(self):
        """List the errors and warnings of all frames."""
        logged = [image["entry"]["text"] for image in self.seen("Log.entryAdded")]
        called = [
            str(image["args"])
            for image in self.seen("Runtime.consoleAPICalled")
            if image["type"] in ("error", "warning", "assert")
        ]
        thrown = [str(image["exceptionDetails"]) for image in self.seen("Runtime.exceptionThrown")]
        return [*logged, *called, *thrown]

    def fetched(self):
        """List the URLs that were requested, without data: and about: URLs."""
        urls = [image["request"]["url"] for image in self.seen("Network.requestWillBeSent")]
        return [url for url in urls if not url.startswith(("data:", "about:"))]
