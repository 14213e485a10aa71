#!/usr/bin/env python3
# SPDX-License-Identifier: BSL-1.0
"""Runs bulk_job against an endpoint of its own that fails in many ways, and kills it at random moments.

    bulk_job_test.py PROGRAM [SEED]

Nothing here waits for a time to pass, but to give up."""

import collections
import http.server
import json
import os
import random
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

program = sys.argv[1]
seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 32)
print(f"seed {seed}", flush=True)
dice = random.Random(seed)
patience = 120  # seconds, for everything
folder = tempfile.TemporaryDirectory(prefix="bulk_job_")
running = []
checks = 0


def file(name, content=None):
    path = os.path.join(folder.name, name)
    if content is not None:
        with open(path, "w", newline="") as f:
            f.write(content)
    return path


def read(path):
    with open(path, newline="") as f:
        return f.read()


def check(what, right, *shown):
    global checks
    checks += 1
    if not right:
        raise AssertionError(f"{what} {[repr(each)[:300] for each in shown]}")


def wait_for(what, condition):
    end = time.monotonic() + patience
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"waited in vain: {what}")
        time.sleep(0.002)


class Endpoint:
    """Twice the second number of [id, number]. `faults` has what it does instead, the first times that an id comes."""

    def __init__(self, slowest=0.0):
        self.lock = threading.Lock()  # guards the four
        self.faults = collections.defaultdict(list)
        self.requests = collections.Counter()
        self.answered = collections.Counter()
        self.times = collections.defaultdict(list)
        self.hanging = 0
        self.closed_by_client = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *_):
                pass

            def reply(self, status, text, *headers):
                lines = [f"HTTP/1.1 {status} It", f"Content-Length: {len(text)}", *headers]
                self.wfile.write(("\r\n".join(lines) + "\r\n\r\n" + text).encode())

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                number, value = json.loads(body)
                with outer.lock:
                    outer.requests[number] += 1
                    outer.times[number].append(time.monotonic())
                    fault = outer.faults[number].pop(0) if outer.faults[number] else "none"
                if fault == "hang":
                    with outer.lock:
                        outer.hanging += 1
                    select.select([self.connection], [], [], patience)
                    try:
                        gone = self.connection.recv(1) == b""
                    except OSError:
                        gone = True
                    with outer.lock:
                        outer.hanging -= 1
                        outer.closed_by_client += gone
                    self.close_connection = True
                elif fault == "close":
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                elif fault == "later":
                    self.reply(429, "too many", "Retry-After: 1")
                elif fault == "garbage":
                    self.reply(200, "{no json")
                elif fault == "long":
                    self.reply(200, json.dumps("x" * 100000))
                elif fault != "none":
                    self.reply(int(fault), 'said "no"\x01')
                else:
                    if slowest:
                        time.sleep(random.random() * slowest)
                    with outer.lock:
                        outer.answered[number] += 1
                    self.reply(200, json.dumps({"id": number, "twice": 2 * value}, indent=1))

            def handle(self):
                try:
                    super().handle()
                except OSError:
                    pass  # the client was killed

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/predict"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def count(self):
        with self.lock:
            return sum(self.requests.values())


def start(output, endpoint, input="rows.csv", **options):
    url = endpoint if isinstance(endpoint, str) else endpoint.url
    given = {"concurrency": 16, "attempts": 10, "backoff-ms": 5, "timeout-ms": 60000, "input": file(input),
             "output": file(output), "url": url}
    given |= {name.replace("_", "-"): value for name, value in options.items()}
    command = [program] + [str(part) for name, value in given.items() for part in ("--" + name, value)]
    log = open(file("log.txt"), "w+")
    job = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"no_proxy": "*"})
    job.log = log
    running.append(job)
    return job


def end_of(job):
    """Its exit status and what it printed."""
    status = job.wait(patience)
    job.log.seek(0)
    return status, job.log.read()


def run(*arguments, **options):
    return end_of(start(*arguments, **options))


def rows(count, bad=()):
    return "".join(f"{i},{'x' if i in bad else i + 0.5}\n" for i in range(count))


def is_right(line, number, bad=()):
    record = json.loads(line)
    if record["record"] != number:
        return False
    if number in bad:
        return f'line {number + 1} of the input: column 2 is "x"' in record["error"]
    return record.get("result") == {"id": number, "twice": 2 * number + 1}


def all_right(output, count, bad=()):
    lines = read(file(output)).splitlines()
    return len(lines) == count and all(is_right(line, i, bad) for i, line in enumerate(lines))


def killed_until_done():
    count, bad, window = 1500, {0, 17, 500, 501, 1499}, 32
    file("rows.csv", rows(count, bad))
    kills = torn = 0
    with Endpoint(slowest=0.005) as endpoint:
        for number in range(count):
            if dice.random() < 0.1:
                endpoint.faults[number] = dice.choices(["429", "500", "503", "close"], k=dice.randint(1, 3))
        while True:
            job = start("killed.jsonl", endpoint, window=window, fsync_every=dice.choice([0, 1, 100]))
            enough = endpoint.count() + dice.randint(1, 250)
            wait_for("requests", lambda: endpoint.count() >= enough or job.poll() is not None)
            time.sleep(dice.random() * 0.02)
            job.kill()  # -9
            status, said = end_of(job)
            if status != -signal.SIGKILL:
                break
            kills += 1
            text = read(file("killed.jsonl"))
            check("what is there is right", all(is_right(line, i, bad) for i, line in enumerate(text.splitlines())))
            if text and dice.random() < 0.5:  # the last line is torn
                torn += 1
                os.truncate(file("killed.jsonl"), len(text) - dice.randint(1, len(text.splitlines()[-1])))
        check("the last run knows of errors before it", status == 1 and "5 of them errors" in said, status, said)
        check("nothing is lost, nothing is there twice", all_right("killed.jsonl", count, bad))
        check("each was computed", all(endpoint.answered[i] >= 1 for i in range(count) if i not in bad))
        twice = sum(endpoint.answered.values()) - (count - len(bad))
        check("twice is at most what was under way", twice <= kills * window + torn, twice, kills, torn)
        check("no bad row was sent", not any(endpoint.requests[i] for i in bad))
    print(f"killed {kills} times, last line torn {torn} times: {twice} of {count} rows computed again")


def goes_on_only_with_its_own_job():
    file("rows.csv", rows(50))
    with Endpoint() as endpoint:
        status, said = run("own.jsonl", endpoint)
        whole = read(file("own.jsonl"))
        check("all is well", status == 0 and all_right("own.jsonl", 50), status, said)

        os.truncate(file("own.jsonl"), len(whole) - 5)
        before = endpoint.count()
        status, said = run("own.jsonl", endpoint)
        check("a torn line is made anew", status == 0 and read(file("own.jsonl")) == whole, status, said)
        check("it alone", endpoint.count() == before + 1 and "going on after 49 of 50" in said, said)
        status, said = run("own.jsonl", endpoint)
        check("what is done stays done", status == 0 and endpoint.count() == before + 1, said)

        def is_refused(what, word, *arguments, **options):
            status, said = run(*arguments, **options)
            check(f"{what} is refused", status == 2 and word in said, status, said)
            check("and nothing is touched", read(file("own.jsonl")) == whole)

        is_refused("another endpoint", "another url", "own.jsonl", endpoint.url + "?x")
        is_refused("another format", "another skip-columns", "own.jsonl", endpoint, skip_columns=1)
        file("rows.csv", rows(50).replace("7.5", "7.6"))
        is_refused("a changed input", "another input", "own.jsonl", endpoint)
        file("rows.csv", rows(51))
        is_refused("a longer input", "another input", "own.jsonl", endpoint)
        file("rows.csv", rows(50))
        lines = whole.splitlines(keepends=True)
        whole = "".join(lines[:20] + lines[21:])
        file("own.jsonl", whole)
        is_refused("an output that was edited", "line 21 is not the record 20", "own.jsonl", endpoint)
        os.rename(file("own.jsonl.job"), file("elsewhere"))
        is_refused("a file of another program", "name another --output", "own.jsonl", endpoint)
        is_refused("no input", "cannot be read", "own.jsonl", endpoint, input="none.csv")


def faults_are_put_up_with():
    count = 60
    file("rows.csv", rows(count))
    with Endpoint() as endpoint:
        endpoint.faults[3] = ["later"]
        endpoint.faults[4] = ["500", "close", "503", "408"]
        endpoint.faults[5] = ["close"] * 3
        endpoint.faults[6] = ["422"]
        endpoint.faults[7] = ["garbage"]
        endpoint.faults[8] = ["long"] * 50
        endpoint.faults[9] = ["503"] * 50
        endpoint.faults[59] = ["503"] * 50
        status, said = run("faults.jsonl", endpoint, max_answer=50000, attempts=6, metrics=file("metrics.prom"))
        records = [json.loads(line) for line in read(file("faults.jsonl")).splitlines()]
        wrong = {i for i in range(count) if not is_right(json.dumps(records[i]), i)}
        check("what can be answered is", status == 1 and wrong == {6, 7, 8, 9, 59}, status, wrong, said)
        check("Retry-After is kept", endpoint.times[3][1] - endpoint.times[3][0] >= 0.99)
        check("a refusal is final", endpoint.requests[6] == 1 and records[6]["error"] == 'HTTP 422: said "no"\x01', records[6])
        check("an answer that is no JSON is an error", records[7]["error"] == "the answer is not JSON")
        check("so is a very long one", "more than 50000 bytes" in records[8]["error"], records[8])
        check("so many attempts", endpoint.requests[9] == 6 and "HTTP 503" in records[9]["error"], records[9])
        metrics = read(file("metrics.prom"))
        check("the metrics file is whole", 'bulk_job_records{outcome="error"} 5\n' in metrics, metrics)
        retries = re.search(r"^bulk_job\w*retries\w* (\d+)$", metrics, re.M)
        check("and counts retries", retries and int(retries[1]) >= 5 + 5 + 5 + 5, metrics)
        check("no draft is left", not os.path.exists(file("metrics.prom.new")))


def hanging_requests_are_ended():
    file("rows.csv", rows(40))
    with Endpoint() as endpoint:
        for number in (2, 3, 30):
            endpoint.faults[number] = ["hang"]
        status, said = run("hang.jsonl", endpoint, timeout_ms=700, attempts=50)
        check("a timeout ends the request, and another attempt is made", status == 0 and all_right("hang.jsonl", 40), said)
        wait_for("closed connections", lambda: endpoint.closed_by_client == 3)
    with Endpoint() as endpoint:
        endpoint.faults[39] = ["hang"]
        status, said = run("hedged.jsonl", endpoint, timeout_ms=0, hedge_ms=300, hedge_percent=100)
        check("a second request overtakes one that hangs", status == 0 and all_right("hedged.jsonl", 40), said)
        wait_for("the end of the first", lambda: endpoint.closed_by_client == 1)
    with Endpoint() as endpoint:
        endpoint.faults[5] = ["hang"]
        status, said = run("deadline.jsonl", endpoint, timeout_ms=0, deadline_ms=500)
        check("a deadline ends the job", status == 3 and "deadline" in said and "goes on after record" in said, status, said)
        if endpoint.requests[5]:  # on a very slow machine the deadline may have come before it
            wait_for("the end of the request", lambda: endpoint.closed_by_client == 1)
        endpoint.faults.clear()
        status, said = run("deadline.jsonl", endpoint)
        check("and the next run goes on", status == 0 and all_right("deadline.jsonl", 40), status, said)


def stops_on_a_signal():
    file("rows.csv", rows(100, bad={20, 21, 99}))
    for number, sent in enumerate((signal.SIGTERM, signal.SIGINT)):
        with Endpoint() as endpoint:
            endpoint.faults[50] = ["hang"]
            job = start(f"stop{number}.jsonl", endpoint)
            wait_for("the records before the one that hangs",
                     lambda: endpoint.hanging == 1 and read(file(f"stop{number}.jsonl")).count("\n") == 50)
            refused = subprocess.run(job.args, capture_output=True, text=True, timeout=patience)
            check("two cannot write one output", refused.returncode == 2 and "another bulk_job" in refused.stderr, refused)
            job.send_signal(sent)
            status, said = end_of(job)
            check("a signal stops", status == 3 and "goes on after record 50" in said, status, said)
            wait_for("the end of the request", lambda: endpoint.closed_by_client == 1)
            status, said = run(f"stop{number}.jsonl", endpoint)
            check("and the next run goes on", status == 1 and all_right(f"stop{number}.jsonl", 100, {20, 21, 99}), said)


def does_not_write_down_that_the_endpoint_was_down():
    file("rows.csv", rows(100, bad={1}))
    with socket.socket() as nobody:  # bound, and does not listen
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/"
        status, said = run("down.jsonl", url, attempts=2, give_up=20)
        check("nobody answers", status == 3 and "too many rows in a row" in said and "goes on after record 0" in said, said)
        check("nothing is written", read(file("down.jsonl")) == "")
    with Endpoint() as endpoint:
        for number in range(60, 100):
            endpoint.faults[number] = ["404"]
        status, said = run("down.jsonl", endpoint, attempts=2, give_up=20)
        check("it is gone again", status == 3 and "HTTP 404" in said, status, said)
        check("what was answered is written", all_right("down.jsonl", 60, {1}))
        endpoint.faults.clear()
        status, said = run("down.jsonl", endpoint)
        check("and the next run goes on", status == 1 and all_right("down.jsonl", 100, {1}), status, said)


def reads_what_people_have():
    with Endpoint() as endpoint:
        file("windows.csv", "id,value\r\n" + rows(5).replace("\n", "\r\n").rstrip())
        status, said = run("windows.jsonl", endpoint, input="windows.csv", skip_lines=1)
        check("line ends of two characters, a header, no last line end", status == 0 and all_right("windows.jsonl", 5), said)
        file("labelled.csv", rows(5).replace("\n", "\nlabel,").join(["label,", ""]).removesuffix("label,"))
        status, said = run("labelled.jsonl", endpoint, input="labelled.csv", skip_columns=1)
        check("a column of labels", status == 0 and all_right("labelled.jsonl", 5), said)
        file("lines.jsonl", "[0, 0.5]\n{]\n[2, 2.5]\n\n[4, 4.5]\n")
        status, said = run("of_lines.jsonl", endpoint, input="lines.jsonl")
        records = [json.loads(line) for line in read(file("of_lines.jsonl")).splitlines()]
        check("JSON lines, two of them bad", status == 1 and len(records) == 5 and
              [i for i in range(5) if "result" in records[i]] == [0, 2, 4] and "line 2 " in records[1]["error"], records)
        file("empty.csv", "")
        status, said = run("empty.jsonl", endpoint, input="empty.csv")
        check("an empty file", status == 0 and read(file("empty.jsonl")) == "", said)
        file("words.csv", "not,a,number\n" * 5000)
        status, said = run("words.jsonl", endpoint, input="words.csv")
        check("a file without any number", status == 1 and read(file("words.jsonl")).count("\n") == 5000, said[-500:])
        file("rows.csv", rows(2500, bad=set(range(1, 2400))))
        endpoint.faults[0] = ["later"]
        status, said = run("gap.jsonl", endpoint)
        check("more bad rows than are kept, behind a slow one", all_right("gap.jsonl", 2500, set(range(1, 2400))), said[-500:])
        file("rows.csv", rows(21))
        began = time.monotonic()
        status, said = run("rate.jsonl", endpoint, rate=50, limit="fixed")
        check("a rate is kept", status == 0 and time.monotonic() - began >= 20 / 50, said)


try:
    goes_on_only_with_its_own_job()
    faults_are_put_up_with()
    hanging_requests_are_ended()
    stops_on_a_signal()
    does_not_write_down_that_the_endpoint_was_down()
    reads_what_people_have()
    killed_until_done()
except BaseException:
    print(f"FAILED with seed {seed}; the last output of bulk_job:\n{read(file('log.txt'))}", flush=True)
    raise
finally:
    for job in running:
        job.kill()
        job.wait()
        job.log.close()
    folder.cleanup()
print(f"{checks} checks passed")
