#!/usr/bin/env python3
# SPDX-License-Identifier: BSL-1.0
"""Lets a Prometheus scrape inference_server, and asks it what the dashboard asks.

    monitoring_test.py PROGRAM DIGITS_CSV"""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request

sys.dont_write_bytecode = True
folder = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(folder))
from parts import Connection, Parts, ask, get, images_in, patience, post, wait_until

program, csv = sys.argv[1:3]
prometheus = shutil.which("prometheus") or sys.exit("prometheus was not found")
promtool = shutil.which("promtool")
images = images_in(csv)


def check_text(parts, headers, text):
    """What Prometheus' text format asks for, and its own tool does not look at."""
    parts.check("the content type", headers["content-type"] == "text/plain; version=0.0.4")
    types, samples, families = {}, {}, []
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            parts.check(f"{name} has one type, before its samples", name not in types and name not in families)
            types[name] = kind
        elif not line.startswith("# HELP "):
            match = re.fullmatch(r'([a-zA-Z_:][\w:]*)(?:\{((?:[a-zA-Z_]\w*="(?:[^"\\\n]|\\.)*",?)*)\})? (\S+)', line)
            parts.check(f"this is a sample: {line}", match)
            name, value = match[1], float(match[3])
            labels = tuple(sorted(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2] or "")))
            parts.check(f"this comes once: {line}", (name, labels) not in samples)
            samples[name, labels] = value
            family = name if name in types else re.sub(r"_(bucket|sum|count)$", "", name)
            parts.check(f"{name} has a type", family in types)
            if not families or families[-1] != family:
                parts.check(f"the samples of {family} stand together", family not in families)
                families.append(family)
            parts.check(f"a counter is not negative and has its ending: {line}",
                        types[family] != "counter" or (value >= 0 and name.endswith("_total")))
    for family in (name for name, kind in types.items() if kind == "histogram"):
        series = {}
        for (name, labels), value in samples.items():
            if name == family + "_bucket":
                rest = tuple(each for each in labels if each[0] != "le")
                series.setdefault(rest, []).append((float(dict(labels)["le"]), value))
        parts.check(f"{family} has buckets", series)
        for labels, buckets in series.items():
            counts = [count for _, count in sorted(buckets)]
            parts.check(f"the buckets of {family} stand in order", buckets == sorted(buckets))
            parts.check(f"the buckets of {family} never fall", counts == sorted(counts))
            parts.check(f"{family} has +Inf, which is its count",
                        buckets[-1] == (math.inf, samples[family + "_count", labels]))
            parts.check(f"{family} has a sum", (family + "_sum", labels) in samples)
    if promtool:
        found = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True)
        parts.check(f"promtool has nothing to say, but: {found.stdout}{found.stderr}", found.returncode == 0)


def start_prometheus(parts, target):
    with open(os.path.join(folder, "prometheus.yml")) as file:
        config = file.read()
    for here, there in (("127.0.0.1:8080", f"127.0.0.1:{target}"), ("scrape_interval: 5s", "scrape_interval: 500ms")):
        parts.check(f"prometheus.yml has {here}", here in config)
        config = config.replace(here, there)
    with open(parts.path("prometheus.yml"), "w") as file:
        file.write(config)
    if promtool:
        found = subprocess.run([promtool, "check", "config", parts.path("prometheus.yml")], capture_output=True, text=True)
        parts.check(f"promtool reads prometheus.yml: {found.stdout}{found.stderr}", found.returncode == 0)
    _, monitor = parts.listening(lambda port: [
        prometheus, f"--config.file={parts.path('prometheus.yml')}", f"--storage.tsdb.path={parts.path('data')}",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"])
    wait_until("Prometheus is ready", lambda: ask(monitor, get("/-/ready"))[0] == 200)  # it listens before that
    return monitor


def query(port, expression):
    """What Prometheus' API answers: a list of samples."""
    url = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
    with urllib.request.urlopen(url, timeout=patience) as reply:
        answer = json.load(reply)
    assert answer["status"] == "success", answer
    return answer["data"]["result"]


def value(port, expression):
    result = query(port, expression)
    return float(result[0]["value"][1]) if result else 0.0


def scrapes(port):
    return value(port, "count_over_time(scrape_duration_seconds[1h])")


with Parts(280) as parts:
    _, server = parts.server(program, "--engine", "accelerator")
    monitor = start_prometheus(parts, server)

    def two_more_scrapes():
        before = scrapes(monitor)
        wait_until("two scrapes", lambda: scrapes(monitor) >= before + 2)

    ask(server, post("/predict", images[0]))  # so that the series are there before what is counted
    ask(server, post("/predict", "no image"))
    two_more_scrapes()
    counters = {
        "answers": 'sum(inference_server_responses_total{handler="predict",code="200"})',
        "mistakes": 'sum(inference_server_responses_total{handler="predict",code="400"})',
        "images": 'sum(cobatch_samples_total{outcome="success"})',
        "batched": "sum(inference_server_batched_samples_total)",
        "timed": "sum(cobatch_attempt_duration_seconds_count)",
    }
    before = {name: value(monitor, each) for name, each in counters.items()}

    with Connection(server) as client:
        for at in range(200):
            parts.check("an image is answered", client.ask(post("/predict", images[at]))[0] == 200)
        for at in range(10):
            parts.check("a list is answered", client.ask(post("/predict", images[10 * at:10 * at + 10]))[0] == 200)
        for _ in range(7):
            parts.check("a mistake is refused", client.ask(post("/predict", "no image"))[0] == 400)
    two_more_scrapes()

    sent = {"answers": 210, "mistakes": 7, "images": 300, "batched": 300, "timed": 300}
    for name, each in counters.items():
        grown = value(monitor, each) - before[name]
        parts.check(f"Prometheus counts {sent[name]} {name}, not {grown}", grown == sent[name])
    # increase() guesses what happened beside the first and the last sample of its range, so it may only be more: by a
    # factor of 3.2, where there are but two samples.
    total = value(monitor, 'sum(increase(inference_server_responses_total{handler="predict",code="200"}[10m]))')
    parts.check(f"increase() is about 210, not {total}", 210 <= total <= 3.2 * 211)

    _, headers, body = ask(server, get("/metrics"))
    check_text(parts, headers, body.decode())

    with open(os.path.join(folder, "dashboard.json")) as file:
        dashboard = json.load(file)
    variables = {each["name"] for each in dashboard["templating"]["list"]}
    parts.check("the dashboard lets one choose the data source", "datasource" in variables)
    names = {sample["metric"]["__name__"] for sample in query(monitor, '{__name__!=""}')}
    figures = []
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            expression = target["expr"]
            parts.check(f"{panel['title']} uses the chosen data source", target["datasource"]["uid"] == "${datasource}")
            used = set(re.findall(r"\b(?:cobatch|inference_server)_\w+", expression))
            parts.check(f"the metrics of {panel['title']} are there: {used - names}", used and used <= names)
            for name, instead in (("$__rate_interval", "10m"), ("$job", ".*"), ("$instance", ".*")):
                expression = expression.replace(name, instead)
            parts.check(f"{panel['title']} uses no other variable", "$" not in expression)
            result = query(monitor, expression)
            parts.check(f"{panel['title']} shows something: {expression}", result)
            for sample in result:
                figure = float(sample["value"][1])
                parts.check(f"{panel['title']} shows numbers: {figure}", math.isfinite(figure) and figure >= 0)
                label = target["legendFormat"]
                for key, text in sample["metric"].items():
                    label = label.replace("{{" + key + "}}", text)
                figures.append(f"{panel['title']}: {label} {figure:.4g}")
    print("What the dashboard shows:", *figures, sep="\n  ")
    print(f"{parts.checks} checks passed")
