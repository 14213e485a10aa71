#!/usr/bin/env python3
# SPDX-License-Identifier: BSL-1.0
"""Keeps 64 clients on inference_server, kind, slow and unkind ones, and looks every second at its memory.

    soak.py PROGRAM DIGITS_CSV SECONDS

Fails if the memory still grows in the second half, or if a client does not get the answer that it deserves. Not for a
server with a sanitizer, which keeps memory that was freed."""

import collections
import json
import random
import re
import socket
import statistics
import sys
import threading
import time

sys.dont_write_bytecode = True
from parts import Connection, Parts, ask, images_in, patience, post

program, csv, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
bound_kb = 1024  # of growth in the second half
images = images_in(csv)
ends = time.monotonic() + seconds
counts = collections.Counter()
wrong = []


def tensor(change):
    return {"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [2, 64], "data": images[:2], **change}]}


# Each with the status that it deserves.
mistakes = [
    (post("/predict", "no image"), 400),
    (post("/predict", b"[" * 500_000), 400),
    (post("/predict", b"{\"a\":" * 100_000), 400),
    (post("/predict", [[99] * 64]), 400),
    (post("/predict", b"x" * 900_000), 400),
    (post("/v2/models/digits/infer", tensor({"shape": [2 ** 63, 64]})), 400),
    (post("/v2/models/digits/infer", tensor({"parameters": {"binary_data_size": 2 ** 40}})), 400),
    (post("/v2/models/digits/infer", b"{}", "Inference-Header-Content-Length: 99\r\n"), 400),
    (post("/predict", images[0], "X-Timeout-Ms: 0\r\n"), 504),
    (b"GET /nothing/" + b"%d" % random.randrange(10 ** 9) + b" HTTP/1.1\r\n\r\n", 404),
    (b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n", 413),
    (b"GET /v2 HTTP/1.1\r\nX: " + b"y" * 7000 * 2, 431),
    (b"hello\r\n\r\n", 400),
]


def kind(seed):
    try:
        ask_kindly(random.Random(seed))
    except (OSError, LookupError, ValueError) as failure:
        wrong.append(f"a kind client got {failure!r}")


def ask_kindly(dice):
    while time.monotonic() < ends:
        with Connection(port) as connection:
            for _ in range(dice.randrange(1, 200)):
                if time.monotonic() > ends:
                    return
                at = dice.randrange(len(images) - 20)
                many = dice.choice([1, 1, 1, 20])
                asked = images[at] if many == 1 else images[at:at + many]
                status, _, body = connection.ask(post("/predict", asked))
                reply = json.loads(body)
                right = reply["digit"] == digits[at] if many == 1 else [
                    each["digit"] for each in reply["predictions"]] == digits[at:at + many]
                counts["kind"] += 1
                if status != 200 or not right:
                    wrong.append(f"a kind client got {status}")


def unkind(seed):
    dice = random.Random(seed)
    while time.monotonic() < ends:
        request, deserved = dice.choice(mistakes)
        try:
            with Connection(port) as connection:
                if dice.random() < 0.2:  # gone before the answer, or in the middle of the request
                    connection.socket.sendall(request[:dice.randrange(len(request))])
                    counts["unkind, gone"] += 1
                else:
                    status = connection.ask(request)[0]
                    counts["unkind, answered"] += 1
                    if status != deserved:
                        wrong.append(f"{status} instead of {deserved} for {request[:60]}")
        except (OSError, LookupError):  # it closed while we were sending
            counts["unkind, dropped"] += 1


def slow(seed):
    dice = random.Random(seed)
    request = post("/predict", images[0])
    while time.monotonic() < ends:
        with socket.create_connection(("127.0.0.1", port), timeout=patience) as client:
            try:
                for byte in request[:dice.choice([0, 10, 30, len(request)])]:
                    client.sendall(bytes([byte]))
                    time.sleep(0.05)
                client.recv(1000)  # until it is dropped
            except OSError:
                pass
        counts["slow, dropped"] += 1


with Parts(int(seconds) + 300) as parts:
    server, port = parts.server(program, "--engine", "accelerator", "--idle-timeout-ms", "3000", "--body-timeout-ms", "3000")
    digits = [each["digit"] for begin in range(0, len(images), 500) for each in json.loads(
        ask(port, post("/predict", images[begin:begin + 500]))[2])["predictions"]]
    threads = []
    for seed in range(64):
        run = kind if seed < 40 else unkind if seed < 52 else slow
        threads.append(threading.Thread(target=run, args=(seed,), daemon=True))
    for each in threads:
        each.start()

    resident = []
    while time.monotonic() < ends:
        time.sleep(1)
        with open(f"/proc/{server.pid}/status") as status:
            resident.append(int(re.search(r"VmRSS:\s*(\d+) kB", status.read()).group(1)))
    for each in threads:
        each.join(patience)

    print(", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    quarter = len(resident) // 4
    quarters = [statistics.median(resident[i * quarter:(i + 1) * quarter]) for i in range(4)]
    print("VmRSS in kB: at first", resident[0], "- medians of the quarters", *quarters, "- most", max(resident))
    parts.check(f"every client got what it deserves, but: {wrong[:3]}", not wrong)
    parts.check("every client has come to its end", not any(each.is_alive() for each in threads))
    growth = quarters[3] - quarters[2]
    parts.check(f"the memory grew by {growth} kB in the second half", growth < bound_kb)
    print(f"grown by {growth:.0f} kB from the third quarter to the fourth")
