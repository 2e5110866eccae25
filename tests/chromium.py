"""Headless Chromium, driven over a pipe: nothing but the browser is needed."""

import json
import os
import shutil
import subprocess
import tempfile

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync
--disable-background-networking --disable-component-update --hide-scrollbars
--use-fake-device-for-media-stream --use-fake-ui-for-media-stream --remote-debugging-pipe""".split()


def find_chromium():
    """The browser's program, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Chromium:
    """A browser with one page, by the DevTools protocol."""

    def __init__(self, *flags):
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        (read, out), (into, self.write) = os.pipe(), os.pipe()

        def pipes():  # Chromium reads commands from 3 and writes answers to 4
            for fd, target in ((os.dup(into), 3), (os.dup(out), 4)):
                os.dup2(fd, target)

        command = [find_chromium(), *FLAGS, *flags, f"--user-data-dir={self.profile.name}"]
        null = subprocess.DEVNULL
        self.process = subprocess.Popen(
            command, preexec_fn=pipes, close_fds=False, stdout=null, stderr=null
        )
        os.close(out), os.close(into)
        self.answers = os.fdopen(read, "rb")
        self.rest, self.count, self.session, self.seen = b"", 0, None, []
        self.on_request = None  # a function from an address to content, or None
        page = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.wait()
        self.answers.close()
        os.close(self.write)
        self.profile.cleanup()

    def send(self, method, **values):
        self.count += 1
        message = {"id": self.count, "method": method, "params": values}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, b"")  # fails when the browser is gone
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.write, data) :]
        return self.count

    def next_message(self):
        while b"\0" not in self.rest:
            more = os.read(self.answers.fileno(), 1 << 20)
            if not more:
                raise RuntimeError("Chromium has ended")
            self.rest += more
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def __call__(self, method, **values):
        """Send a command and wait for its result; events are kept in ``seen``."""
        number = self.send(method, **values)
        while True:
            message = self.next_message()
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            if message.get("method") == "Fetch.requestPaused":
                self.on_request(self, message["params"])
            elif "method" in message:
                self.seen.append((message["method"], message["params"]))

    def open(self, address):
        """Go to an address and wait until it is loaded."""
        self.seen.clear()
        self("Page.navigate", url=address)
        while not any(name == "Page.loadEventFired" for name, _ in self.seen):
            self("Runtime.evaluate", expression="0")

    def run(self, code):
        """The JSON value of JavaScript, the body of an async function."""
        code = f"(async () => {{ {code} }})()"
        result = self(
            "Runtime.evaluate",
            expression=code,
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
        )
        if "exceptionDetails" in result:
            raise RuntimeError(result["result"].get("description", result))
        return result["result"].get("value")

    def complaints(self):
        """Errors that the page has had, those of its security policy among them."""
        texts = []
        for name, values in self.seen:
            if name == "Runtime.exceptionThrown":
                texts.append(values["exceptionDetails"]["text"])
            if name == "Log.entryAdded" and values["entry"]["level"] == "error":
                texts.append(values["entry"]["text"])
            if name == "Runtime.consoleAPICalled" and values["type"] in ("error", "warning"):
                texts.append(str([x.get("value") for x in values["args"]]))
        return texts
