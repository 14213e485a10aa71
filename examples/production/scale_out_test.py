#!/usr/bin/env python3
# SPDX-License-Identifier: BSL-1.0
"""Starts inference_servers behind nginx, kills one, drains one, and counts what clients notice: nothing.

    scale_out_test.py PROGRAM DIGITS_CSV [REQUESTS [SECONDS]]

REQUESTS (20000): at least so many over two servers. SECONDS (5): how long the throughput of 1, 2 and 4 servers is
measured; 0: not at all."""

import itertools
import json
import os
import shutil
import signal
import sys
import threading
import time

sys.dont_write_bytecode = True
from parts import Connection, Parts, ask, get, images_in, metrics_of, patience, post, wait_until

program, csv = sys.argv[1:3]
wanted = int(sys.argv[3]) if len(sys.argv) > 3 else 20000
seconds = float(sys.argv[4]) if len(sys.argv) > 4 else 5
nginx = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin") or sys.exit("nginx was not found")

images = images_in(csv)
requests = [post("/predict", each) for each in images]


def balancer(parts, ports):
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "nginx.conf")) as file:
        template = file.read()
    servers = "\n    ".join(f"server 127.0.0.1:{each} max_fails=1 fail_timeout=1s;" for each in ports)

    def command(port):
        text = template.replace("@FOLDER@", parts.folder).replace("@SERVERS@", servers).replace("@PORT@", str(port))
        with open(parts.path("nginx.conf"), "w") as conf:
            conf.write(text)
        return [nginx, "-p", parts.folder, "-e", parts.path("stderr"), "-c", parts.path("nginx.conf")]

    return parts.listening(command)


class Load:
    """Clients that ask one request after the other, each on a connection of its own, until they are told to stop."""

    def __init__(self, port, clients, expected):
        self.port = port
        self.expected = expected
        self.numbers = itertools.count()
        self.stopped = False
        self.answered = [0] * clients  # each is written by one thread
        self.asked_twice = [0] * clients
        self.wrong = []
        self.threads = [threading.Thread(target=self.run, args=(each,), daemon=True) for each in range(clients)]
        for each in self.threads:
            each.start()

    def run(self, client):
        connection = None
        while not self.stopped:
            at = next(self.numbers) % len(requests)
            try:
                connection = connection or Connection(self.port)
                status, headers, body = connection.ask(requests[at])
                right = status == 200 and json.loads(body)["digit"] == self.expected[at]
                why = f"{status} {body[:80]}"
                self.asked_twice[client] += "," in headers.get("x-asked", "")
            except (OSError, ValueError, LookupError) as failure:
                right, why, connection = False, repr(failure), None
            if not right:
                self.wrong.append(why)
            self.answered[client] += 1

    def count(self):
        return sum(self.answered)

    def wait_for(self, count):
        wait_until(f"{count} answers", lambda: self.count() >= count)

    def stop(self):
        self.stopped = True
        for each in self.threads:
            each.join(patience)


def answers_of(port):
    return sum(value for name, value in metrics_of(port).items()
               if name.startswith("inference_server_responses_total") and 'handler="predict"' in name)


def nothing_is_lost(parts, expected):
    options = ("--engine", "accelerator", "--drain-grace-ms", "100")
    first, first_port = parts.server(program, *options)
    second, second_port = parts.server(program, *options)
    _, port = balancer(parts, [first_port, second_port])
    load = Load(port, 32, expected)

    load.wait_for(wanted // 5)
    parts.check("both servers answer", answers_of(first_port) > 0 and answers_of(second_port) > 0)
    first.kill()
    first.wait()
    print(f"{load.count():>7} answered: one server was killed with -9")
    load.wait_for(2 * wanted // 5)
    first, _ = parts.server(program, *options, port=first_port)
    wait_until("the balancer uses the server that came back", lambda: answers_of(first_port) > 0)
    print(f"{load.count():>7} answered: it was started again, and has answered")

    load.wait_for(3 * wanted // 5)
    second.send_signal(signal.SIGTERM)
    parts.check("the drained server ends by itself", second.stdout.readline() == "drained\n" and second.wait(patience) == 0)
    print(f"{load.count():>7} answered: the other one had a SIGTERM, and has drained")
    load.wait_for(4 * wanted // 5)
    second, _ = parts.server(program, *options, port=second_port)
    wait_until("the balancer uses the server that came back", lambda: answers_of(second_port) > 0)
    print(f"{load.count():>7} answered: it was started again, and has answered")

    load.wait_for(wanted)
    load.stop()
    print(f"{load.count():>7} answered in all: {len(load.wrong)} of them failed or wrong, {sum(load.asked_twice)} asked of a "
          "second server because the first had gone")
    parts.check(f"every request has its right answer, but: {load.wrong[:3]}", not load.wrong)


def throughput(expected):
    # Batches of 2, so that the simulated accelerators are what limits, and not the cores that all of this shares.
    print("\n| servers | requests/s |\n|---:|---:|")
    for count in (1, 2, 4):
        with Parts(120 + int(seconds)) as parts:
            ports = [parts.server(program, "--engine", "accelerator", "--max-batch", "2")[1] for _ in range(count)]
            _, port = balancer(parts, ports)
            load = Load(port, 64, expected)
            load.wait_for(500)
            begin, before = time.monotonic(), load.count()
            time.sleep(seconds)
            rate = (load.count() - before) / (time.monotonic() - begin)
            load.stop()
            parts.check("every answer is right", not load.wrong)
            print(f"| {count} | {rate:,.0f} |", flush=True)


with Parts(900 if wanted > 5000 else 240) as parts:
    alone, port = parts.server(program)
    answers = []
    for begin in range(0, len(images), 500):
        status, _, body = ask(port, post("/predict", images[begin:begin + 500]))
        parts.check("the server alone answers", status == 200)
        answers += [each["digit"] for each in json.loads(body)["predictions"]]
    alone.kill()
    nothing_is_lost(parts, answers)
    print(f"{parts.checks} checks passed")
if seconds > 0:
    throughput(answers)
