#!/usr/bin/env python3
# SPDX-License-Identifier: BSL-1.0
"""Starts inference_server on a free port of loopback, and tries what clients do to it, kind and unkind.

    inference_server_test.py PROGRAM DIGITS_CSV

Nothing here waits for a time to pass, but to give up."""

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading

program, csv = sys.argv[1:3]
patience = 60  # seconds, for everything
server = subprocess.Popen(
    [program, "--port", "0", "--engine", "accelerator", "--drain-grace-ms", "0", "--max-connections", "200"],
    stdout=subprocess.PIPE, text=True)
port = int(re.search(r":(\d+)$", server.stdout.readline().strip()).group(1))


def ask(method, path, body=None, headers={}):
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=patience)
    try:
        client.request(method, path, body, headers)
        reply = client.getresponse()
        return reply.status, reply.read(), reply
    finally:
        client.close()


def post(path, value, headers={}):
    status, body, _ = ask("POST", path, value if isinstance(value, (str, bytes)) else json.dumps(value), headers)
    return status, json.loads(body)


def raw(data, half_close=False):
    """Sends bytes as they are; what comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=patience) as client:
        try:
            client.sendall(data)
            if half_close:
                client.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has answered and closed before it had all
        answer = b""
        try:
            while chunk := client.recv(65536):
                answer += chunk
        except ConnectionResetError:
            pass
        return answer


checks = 0


def check(what, right):
    global checks
    checks += 1
    if not right:
        server.kill()
        sys.exit(f"FAILED: {what}")


rows = [list(map(int, line.split(","))) for line in open(csv)][:200]
images = [row[1:] for row in rows]
labels = [row[0] for row in rows]

# ---- What it is for ----

status, one = post("/predict", images[0])
check("one image has a digit", status == 200 and one["digit"] == labels[0])
status, many = post("/predict", images)
right = sum(each["digit"] == label for each, label in zip(many["predictions"], labels))
check("a list of images has a digit each, most of them right", status == 200 and right >= 190)

tensor = {"id": "7", "inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [2, 64], "data": images[:2]}]}
status, reply = post("/v2/models/digits/infer", tensor)
check("the protocol's JSON", status == 200 and reply["id"] == "7" and reply["outputs"][0]["data"] == labels[:2])

pixels = bytes(images[0] + images[1])
head = json.dumps({"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [2, 64],
                               "parameters": {"binary_data_size": len(pixels)}}],
                   "outputs": [{"name": "digit", "parameters": {"binary_data": True}}]}).encode()
status, body, reply = ask("POST", "/v2/models/digits/infer", head + pixels,
                          {"Inference-Header-Content-Length": str(len(head))})
length = int(reply.getheader("Inference-Header-Content-Length"))
digits = [int.from_bytes(body[length + 8 * i:length + 8 * i + 8], "little") for i in range(2)]
check("the protocol's binary tensors", status == 200 and digits == labels[:2])

check("health", ask("GET", "/v2/health/ready")[0] == 200 and ask("GET", "/v2/health/live")[0] == 200)
check("a model's metadata", json.loads(ask("GET", "/v2/models/digits")[1])["inputs"][0]["shape"] == [-1, 64])

# ---- Many at once share the model's calls ----

results = []


def client(number):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=patience)
    for i in range(20):
        at = (number * 20 + i) % len(images)
        connection.request("POST", "/predict", json.dumps(images[at]))
        reply = connection.getresponse()
        results.append((reply.status, json.loads(reply.read())["digit"] == many["predictions"][at]["digit"]))
    connection.close()


silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]  # connected, and never a word
half = socket.create_connection(("127.0.0.1", port))
half.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n[1,")
threads = [threading.Thread(target=client, args=(n,)) for n in range(32)]
for each in threads:
    each.start()
for each in threads:
    each.join()
check("640 requests beside silent clients and half a body are all answered", results == [(200, True)] * 640)

text = ask("GET", "/metrics")[1].decode()
sample = {name: float(value) for name, value in re.findall(r"^(\w+) (\S+)$", text, re.M)}
check("requests shared batches",
      sample["inference_server_batched_samples_total"] > 1.5 * sample["inference_server_batches_total"])

# ---- Mistakes get an answer that names the field ----

for body, field in [("[1, 2", "JSON"), ("[" * 1_000_000, "JSON"), (images[0][:63], "the image"), ([[99] + [0] * 63], "image 0"),
                    ({}, "the body"), ("\0\xff", "JSON")]:
    status, reply = post("/predict", body)
    check(f"400 for {str(body)[:20]!r} names {field}", status == 400 and reply["error"].startswith(field))
for change, field in [({"shape": [3, 64]}, "inputs[0].data"), ({"shape": [2 ** 63, 64]}, "inputs[0].shape"),
                      ({"datatype": "FP64"}, "inputs[0].datatype"),
                      ({"parameters": {"binary_data_size": 2 ** 40}}, "inputs[0].parameters.binary_data_size")]:
    wrong = {"inputs": [{**tensor["inputs"][0], **change}]}
    status, reply = post("/v2/models/digits/infer", wrong)
    check(f"400 names {field}", status == 400 and reply["error"].startswith(field))
status, reply = post("/v2/models/digits/infer", "{}", {"Inference-Header-Content-Length": "99"})
check("a length that lies", status == 400 and reply["error"].startswith("Inference-Header-Content-Length"))
check("an unknown path", ask("GET", "/nothing")[0] == 404)
check("the wrong method", ask("GET", "/predict")[0] == 405)
check("a body that is announced as 100 MB",
      raw(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n").startswith(b"HTTP/1.1 413"))
check("a header without end", raw(b"GET /v2 HTTP/1.1\r\nX: " + b"y" * 100_000).startswith(b"HTTP/1.1 431"))
check("no HTTP", raw(b"hello\r\n\r\n").startswith(b"HTTP/1.1 400"))
check("a deadline that has passed", post("/predict", images[0], {"X-Timeout-Ms": "0"})[0] == 504)

# ---- SIGTERM: all that was asked is answered, then the end ----

waiting = http.client.HTTPConnection("127.0.0.1", port, timeout=patience)
waiting.request("POST", "/predict", json.dumps(images))
server.send_signal(signal.SIGTERM)
reply = waiting.getresponse()
check("a request in flight is answered", len(json.loads(reply.read())["predictions"]) == len(images))
for each in [*silent, half]:
    each.close()
output, _ = server.communicate(timeout=patience)
check("it ends by itself", server.returncode == 0 and output.endswith("drained\n"))
print(f"{checks} checks passed")
