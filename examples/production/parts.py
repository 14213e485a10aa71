# SPDX-License-Identifier: BSL-1.0
"""What the programs in Python here share: they start parts on loopback, in a temporary folder, and end each by its pid."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

patience = 60  # seconds, for whatever must come: nothing here waits for a time to pass, but to give up


def stop(number, frame):
    raise TimeoutError("it took too long" if number == signal.SIGALRM else "stopped")


class Parts:
    """`with Parts() as parts:` at its end, also after a failure, all that was started ends, and the folder goes.

    After `seconds` the main thread gets a TimeoutError; a SIGTERM does the same."""

    def __init__(self, seconds):
        signal.signal(signal.SIGALRM, stop)
        signal.signal(signal.SIGTERM, stop)
        signal.alarm(seconds)

    def __enter__(self):
        self.folder = tempfile.mkdtemp(prefix="cobatch_parts.")
        self.started = []
        self.checks = 0
        return self

    def __exit__(self, kind, failure, trace):
        signal.alarm(0)
        for each in reversed(self.started):
            if each.poll() is None:
                if os.getpgid(each.pid) == each.pid:  # one with a group of its own
                    os.killpg(each.pid, signal.SIGKILL)
                else:
                    each.kill()
            each.wait()
            if each.stdout:
                each.stdout.close()
        if kind and kind is not SystemExit:
            with open(self.path("stderr"), errors="replace") as log:
                sys.stderr.write("".join(log.readlines()[-30:]))
        shutil.rmtree(self.folder, ignore_errors=True)

    def path(self, name):
        return os.path.join(self.folder, name)

    def check(self, what, right):
        self.checks += 1
        if not right:
            raise AssertionError(what)

    def start(self, command, **how):
        how.setdefault("stdin", subprocess.DEVNULL)
        with open(self.path("stderr"), "a") as log:
            part = subprocess.Popen(command, stderr=log, text=True, **how)
        self.started.append(part)
        return part

    def server(self, program, *options, port=0):
        """An inference_server that listens: the process, and its port."""
        gives_up = time.monotonic() + patience
        while True:
            server = self.start([program, "--port", str(port), *options], stdout=subprocess.PIPE)
            line = server.stdout.readline()
            if line:
                return server, int(re.search(r":(\d+)$", line.strip()).group(1))
            if port == 0 or time.monotonic() > gives_up:  # a port of one's own choice may be taken for a moment
                raise AssertionError("the server did not start")
            time.sleep(0.1)

    def listening(self, make_command):
        """Starts what cannot choose a port by itself. A port that was free may be taken a moment later: then another."""
        for _ in range(5):
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            part = self.start(make_command(port), stdout=subprocess.DEVNULL)
            while part.poll() is None:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=patience).close()
                    return part, port
                except ConnectionRefusedError:
                    time.sleep(0.05)
        raise AssertionError("no free port was found, or " + make_command(0)[0] + " does not start")


def wait_until(what, condition):
    """Asks again and again until `condition()` holds; what it gave."""
    gives_up = time.monotonic() + patience
    while not (found := condition()):
        if time.monotonic() > gives_up:
            raise TimeoutError(what)
        time.sleep(0.05)
    return found


class Connection:
    """A client that keeps its connection. Plain, so that it is fast: what http.client does besides takes most of its time."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=patience)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.reader = self.socket.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.reader.close()
        self.socket.close()

    def ask(self, request):
        """Status, headers and body of the answer."""
        self.socket.sendall(request)
        status = int(self.reader.readline().split()[1])
        headers = {}
        while (line := self.reader.readline().strip()):
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        return status, headers, self.reader.read(int(headers["content-length"]))


def post(path, body, headers=""):
    """The bytes of a request."""
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    return f"POST {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


def get(path):
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


def ask(port, request):
    with Connection(port) as once:
        return once.ask(request)


def metrics_of(port):
    """Samples of GET /metrics: {'name{labels}': value}."""
    text = ask(port, get("/metrics"))[2].decode()
    return {name: float(value) for name, value in re.findall(r"^([a-z].*) (\S+)$", text, re.M)}


def images_in(csv):
    with open(csv) as lines:
        return [list(map(int, line.split(",")))[1:] for line in lines]
