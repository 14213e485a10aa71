#!/usr/bin/env python3
# SPDX-License-Identifier: BSL-1.0
"""Starts a broker on loopback, in a temporary folder, and kills what works on its queue.

    queue_worker_test.py WORKER CLIENT [--long | --demo]

--long: 20,000 messages over three workers of which one is killed, and nothing else. --demo: the test, then one message
by hand. Nothing here waits for a time to pass, but to give up."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

sys.dont_write_bytecode = True
from parts import Parts

worker_program, client_program = sys.argv[1:3]
mode = sys.argv[3] if len(sys.argv) > 3 else ""


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Broker:
    """Kept by its folder: killed and started again, it has all its durable queues."""

    def __init__(self):
        for _ in range(3):  # a port that was free a moment ago may be taken
            self.port, self.distribution_port, self.epmd_port = free_ports(3)
            # Erlang would start epmd by itself, and leave it running.
            parts.start(["epmd", "-port", str(self.epmd_port), "-address", "127.0.0.1"])
            if self.start():
                return
        raise RuntimeError("rabbitmq-server does not start")

    def start(self):
        at = parts.path
        with open(at("plugins"), "w") as file:
            file.write("[].\n")
        environment = {
            **os.environ, "HOME": parts.folder,
            "RABBITMQ_NODENAME": "cobatch@localhost", "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port), "RABBITMQ_DIST_PORT": str(self.distribution_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1", "ERL_EPMD_PORT": str(self.epmd_port),
            "RABBITMQ_MNESIA_BASE": at("data"), "RABBITMQ_LOG_BASE": at("log"), "RABBITMQ_PID_FILE": at("pid"),
            "RABBITMQ_GENERATED_CONFIG_DIR": at("config"), "RABBITMQ_CONFIG_FILE": at("no.conf"),
            "RABBITMQ_PLUGINS_EXPAND_DIR": at("expanded"), "RABBITMQ_ENABLED_PLUGINS_FILE": at("plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS":  # idle threads sleep; the port for other nodes is on loopback too
                "+sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}"}
        # The program itself, where it is: the one on the path may be a wrapper that changes the user and the folder.
        program = "/usr/lib/rabbitmq/bin/rabbitmq-server"
        if not os.path.exists(program):
            program = shutil.which("rabbitmq-server")
        with open(at("stderr"), "a") as log:
            self.process = parts.start([program], env=environment, stdout=log, start_new_session=True, cwd=parts.folder)
        while self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return True
            except OSError:
                time.sleep(0.1)
        return False

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)  # the group that was made for it
        self.process.wait()

    def restart(self):
        for _ in range(10):  # its name may still be taken, for a moment
            if self.start():
                return
            time.sleep(0.5)
        raise RuntimeError("rabbitmq-server does not start again")


class Worker:
    def __init__(self, **settings):
        arguments = ["--port", str(broker.port), "--heartbeat-s", "60"]
        for name, value in settings.items():
            arguments += ["--" + name.replace("_", "-"), str(value)]
        self.process = parts.start([worker_program, *arguments], stdout=subprocess.PIPE)
        if not self.process.stdout.readline().startswith("consuming"):
            raise AssertionError("a worker consumes")

    def drain(self):
        """What it says of itself at its end, by the word that follows each number."""
        self.process.send_signal(signal.SIGTERM)
        output, _ = self.process.communicate()
        parts.check("a worker that is told to end does so well", self.process.returncode == 0)
        last = output.splitlines()[-1]
        names = ["answered", "unroutable", "dead", "redelivered", "left"]
        return dict(zip(names, map(int, re.findall(r"\d+", last))))


class Client:
    def __init__(self, **settings):
        arguments = ["--port", str(broker.port), "--heartbeat-s", "60"]
        for name, value in settings.items():
            arguments += ["--" + name.replace("_", "-"), str(value)]
        self.process = parts.start([client_program, *arguments], stdout=subprocess.PIPE)

    def wait_for_progress(self):
        parts.check("some are answered", self.process.stdout.readline().endswith("settled\n"))

    def end(self, title=None):
        output, _ = self.process.communicate()
        lines = output.splitlines()
        if title:
            print(f"{title}: {lines[-1] if lines else 'nothing'}", flush=True)
        parts.check(f"nothing is missing or wrong: {lines[-1:]}", self.process.returncode == 0)
        names = ["sent", "again", "missing", "duplicates", "dead", "wrong"]
        self.said = dict(zip(names, map(int, re.findall(r"\d+", lines[-1]))))
        self.lines = lines
        return self.said


def test():
    workers = [Worker(cost_us=2000, max_concurrency=16) for _ in range(3)]

    # ---- What it is for; what is poisonous ----
    client = Client(messages=2000, poison=5)
    said = client.end("three workers")
    reasons = "\n".join(sorted(line for line in client.lines if line.startswith("dead letter")))
    parts.check("2000 are answered, 5 are dead letters", said["sent"] == 2005 and said["missing"] == 0 and said["dead"] == 5)
    for number, fault in [(2000, "JSON: wrong at byte 2"), (2001, "the image: an array of 64 numbers was expected"),
                          (2002, "the image: an array of 64 numbers was expected"),
                          (2003, "JSON: nested deeper than 16"), (2004, "99 is not a whole number within 0 to 16")]:
        parts.check(f"the dead letter {number} names its fault", re.search(rf"dead letter {number}: .*{fault}", reasons))

    # ---- A worker is killed ----
    client = Client(messages=2000, progress=500)
    client.wait_for_progress()
    workers[0].process.kill()
    parts.check("none is lost with a worker that is killed", client.end("a worker killed")["missing"] == 0)

    # ---- The broker is killed ----
    client = Client(messages=2000, progress=500)
    client.wait_for_progress()
    broker.kill()
    broker.restart()
    parts.check("none is lost with a broker that is killed", client.end("the broker killed")["missing"] == 0)
    counts = [each.drain() for each in workers[1:]]
    parts.check("both others worked", all(each["answered"] > 0 for each in counts))

    # ---- SIGTERM in the middle: what was taken is answered, and acknowledged ----
    first = Worker(cost_us=50000, max_concurrency=32)
    client = Client(messages=500, progress=50)
    client.wait_for_progress()
    left = first.drain()
    parts.check("nothing is left undone", left["answered"] >= 50 and left["left"] == 0)
    second = Worker(max_concurrency=32)
    said = client.end("a worker drained")
    # The two prove it: a message that was not acknowledged would be marked as redelivered, or answered twice.
    counts = second.drain()
    parts.check("each was given to one worker only", counts["redelivered"] == 0 and said["duplicates"] == 0)
    parts.check("and answered by it", left["answered"] + counts["answered"] == 500)

    # ---- Nobody waits for the answer ----
    third = Worker(max_concurrency=1)
    Client(messages=10, send_only=1, reply_queue="nobody").end()
    Client(messages=1).end()  # behind the ten in the queue
    counts = third.drain()
    parts.check("answers without a queue are counted", counts["unroutable"] == 10 and counts["answered"] == 11)

    # ---- The broker is gone when it is told to end ----
    fourth = Worker(max_concurrency=1)
    broker.kill()
    fourth.drain()


def long_run():
    workers = [Worker(cost_us=2000, max_concurrency=16) for _ in range(3)]
    client = Client(messages=20000, progress=7000)
    client.wait_for_progress()
    workers[0].process.kill()
    said = client.end("20,000 messages, three workers, one killed")
    parts.check("none is lost", said["missing"] == 0)
    for each in workers[1:]:
        print("  a worker:", each.drain(), flush=True)


def by_hand():
    worker = Worker()
    client = Client(messages=1, poison=1, show=1)
    client.end()
    print(f"\n$ queue_client --messages 1 --poison 1 --show 1 --port {broker.port}")
    print("\n".join(client.lines))
    worker.drain()


with Parts(1800 if mode == "--long" else 240) as parts:
    broker = Broker()
    if mode == "--long":
        long_run()
    else:
        test()
        if mode == "--demo":
            broker.restart()
            by_hand()
    print(f"{parts.checks} checks passed")
