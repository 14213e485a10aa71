#!/usr/bin/env python3
# SPDX-License-Identifier: BSL-1.0
"""Three brokers of librdkafka's mock cluster on loopback, and workers that come, go, and are killed.

    queue_worker_kafka_test.py WORKER CLIENT

Nothing here waits for a time to pass, but to give up."""

import re
import signal
import subprocess
import sys

sys.dont_write_bytecode = True
from parts import Parts

worker_program, client_program = sys.argv[1:3]


def start_worker():
    # A worker that is killed is missed after the session timeout, and its partitions go to the others.
    worker = parts.start([worker_program, "--brokers", brokers, "--session-timeout-ms", "6000", "--cost-us", "10000",
                          "--max-concurrency", "16"], stdout=subprocess.PIPE)
    parts.check("a worker gets partitions", worker.stdout.readline().startswith("consuming"))
    return worker


def drain(worker):
    worker.send_signal(signal.SIGTERM)
    output, _ = worker.communicate()
    parts.check("a worker that is told to end does so well", worker.returncode == 0)
    print("  a worker", output.splitlines()[-1], flush=True)


with Parts(240) as parts:
    client = parts.start([client_program, "--mock-brokers", "3", "--messages", "4000", "--poison", "5", "--progress", "500"],
                   stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    brokers = client.stdout.readline().split()[1]
    workers = [start_worker() for _ in range(3)]
    client.stdin.write("\n")
    client.stdin.flush()

    letters = []

    def wait_for(pattern):
        while not re.search(pattern, line := client.stdout.readline()):
            if not line:
                raise AssertionError("the client goes on")
            letters.append(line)
        return line

    wait_for("settled$")
    workers[0].kill()
    wait_for("settled$")
    workers.append(start_worker())
    wait_for("settled$")
    drain(workers[1])
    line = wait_for("^4005 sent")
    print(line, end="", flush=True)
    parts.check("nothing is missing or wrong", " 0 missing" in line and " 0 wrong" in line)
    reasons = "".join(letters)
    for number, fault in [(4000, "JSON: wrong at byte 2"), (4001, "the image: an array of 64 numbers was expected"),
                          (4002, "the image: an array of 64 numbers was expected"),
                          (4003, "JSON: nested deeper than 16"), (4004, "99 is not a whole number within 0 to 16")]:
        parts.check(f"the dead letter {number} names its fault", re.search(rf"dead letter {number}: .*{fault}", reasons))
    line = client.stdout.readline()
    print(line, end="", flush=True)
    parts.check("all is committed", line == "committed 4005 of 4005\n")
    for each in workers[2:]:
        drain(each)
    client.communicate()  # closes its standard input: it ends
    parts.check("the client ends well", client.returncode == 0)
    print(f"{parts.checks} checks passed")
