#!/usr/bin/env python3
"""Puts the runs of benchmarks/run.sh together: one JSON file, and a Markdown table beside the baselines and the goals.

  report.py RUNS_DIRECTORY RESULTS.json RESULTS.md [--quick] [--readme=README.md]
  report.py --scaling SCALING.txt README.md   puts what scaling_benchmark printed into the README, nothing else
"""
import datetime
import json
import pathlib
import platform
import re
import statistics
import sys

begin_mark, end_mark = "<!-- results: benchmarks/run.sh --readme -->", "<!-- end of results -->"
scaling_marks = "<!-- scaling: benchmarks/run.sh --scaling --readme -->", "<!-- end of scaling -->"


class Results:
    """The medians of all repetitions, by name."""

    def __init__(self, rows):
        self.rows = {}
        self.failed = {}
        for row in rows:
            if row.get("run_type") != "iteration":
                continue
            name = re.sub(r"/iterations:\d+|/real_time", "", row["name"])
            if row.get("error_occurred"):
                self.failed[name] = row.get("error_message", "failed")
            else:
                self.rows.setdefault(name, []).append(row)
        for name in self.failed:
            self.rows.pop(name, None)

    def values(self, name, metric):
        return [row[metric] for row in self.rows.get(name, []) if metric in row]

    def median(self, name, metric="ns_per_sample"):
        values = self.values(name, metric)
        return statistics.median(values) if values else None

    def spread(self, name, metric="ns_per_sample"):
        """Half of the middle half, relative to the median."""
        values = sorted(self.values(name, metric))
        if len(values) < 3 or not statistics.median(values):
            return None
        quartiles = statistics.quantiles(values, n=4, method="inclusive")
        return (quartiles[2] - quartiles[0]) / 2 / statistics.median(values)


def number(x):
    if x is None:
        return "-"
    if x == 0:
        return "0"
    if abs(x) >= 1e5:
        return f"{x:.3g}"
    if abs(x) >= 100:
        return f"{x:,.0f}"
    return f"{x:.1f}" if abs(x) >= 10 else f"{x:.2f}" if abs(x) >= 0.01 else f"{x:.4f}"


# ---- The goals ----
# (what, benchmark, metric, goal as text, the most (or, with ">=", the least) that it may be, baseline, compared to)
# A row with `over` is the ratio to that benchmark.

F, S, E, T = "fan_out/", "semaphore/", "executor/", "timer/"
ST, O, A = "stream/", "observer/", "adaptive/"


def goal(title, name, limit, metric="ns_per_sample", over=None, at_least=False, unit="ns", peers=()):
    return {"title": title, "name": name, "limit": limit, "metric": metric, "over": over, "at_least": at_least,
            "unit": "x" if over else unit, "peers": peers}


def coroutine_peers(executor, kind="coroutine"):
    named = {"pullers by hand": "pullers", "a coroutine each and a semaphore, by hand": "semaphore_by_hand",
             "Asio, pullers": "asio_pullers", "Asio, a coroutine each and a channel": "asio_semaphore"}
    peers = [(label, f"{F}{kind}/{executor}/{who}") for label, who in named.items()]
    return peers + [("asyncio.gather", f"{F}{kind}/python/asyncio_gather")]


def sleepers_peers(work, executor):
    return [("by hand", f"{T}{work}/{executor}/semaphore_by_hand"), ("Asio", f"{T}{work}/{executor}/asio_semaphore"),
            ("asyncio", f"{T}{work}/python/asyncio_gather")]


plain = F + "coroutine/run_loop/plain_loop"
contended = [("std::counting_semaphore and threads", "std_counting_semaphore_and_threads"), ("Asio channel", "asio_channel")]
sleepers = "20000_of_1ms_limit_1000"
goals = [
    *(goal(f"trivial coroutine, 1 thread ({e})", f"{F}coroutine/{e}/batch_predict", 12,
           peers=[("plain loop", plain), *coroutine_peers(e)]) for e in ("run_loop", "inline", "pool_1")),
    *(goal(f"trivial coroutine, over a plain loop that awaits the task ({e})", f"{F}coroutine/{e}/batch_predict", 1.0, over=plain)
      for e in ("run_loop", "inline", "pool_1")),
    goal("trivial coroutine, 2 threads", F + "coroutine/pool_2/batch_predict", 7,
         peers=[*coroutine_peers("pool_2"), ("std::async", F + "coroutine/threads/std_async")]),
    goal("predict that reschedules itself once, 2 threads", F + "reschedule/pool_2/batch_predict", 25,
         peers=coroutine_peers("pool_2", "reschedule")),
    *(goal(f"heap allocations per sample ({k}, {e})", f"{F}{k}/{e}/batch_predict", 0.0005, "allocs_per_sample", unit="",
           peers=coroutine_peers(e, k)) for k, e in (("coroutine", "run_loop"), ("coroutine", "pool_2"), ("reschedule", "pool_2"))),
    *(goal(f"peak memory beyond inputs and results ({k}, {e})", f"{F}{k}/{e}/batch_predict", 1, "peak_MB", unit="MB",
           peers=coroutine_peers(e, k)) for k, e in (("coroutine", "run_loop"), ("coroutine", "pool_2"), ("reschedule", "pool_2"))),
    *(goal(f"plain callable `x * 2`, ten million, over oneTBB ({n} thread{'s' * (n > 1)})", f"{F}callable/threads_{n}/batch_predict",
           1.1, over=f"{F}callable/threads_{n}/tbb_parallel_for",
           peers=[("TBB", f"{F}callable/threads_{n}/tbb_parallel_for"),
                  ("TBB into slots that are there", f"{F}callable/threads_{n}/tbb_parallel_for_into_given_slots"),
                  ("for loop", F + "callable/threads_1/for_loop")]) for n in (1, 2)),
    *(goal(f"20,000 sleepers of 1 ms, limit 1000, wall over ideal ({e})", f"{T}{sleepers}/{e}/batch_predict", 1.06,
           "wall_over_ideal", unit="", peers=sleepers_peers(sleepers, e)) for e in ("run_loop", "pool_1", "pool_2")),
    goal("20,000 sleepers, CPU seconds a run (pool_1)", f"{T}{sleepers}/pool_1/batch_predict", None, "cpu_seconds", unit="s",
         peers=sleepers_peers(sleepers, "pool_1")),
    goal("20 sleepers of 0.1 s, limit 5, 1 thread, wall over ideal", T + "20_of_100ms_limit_5/pool_1/batch_predict", 1.02,
         "wall_over_ideal", unit=""),
    goal("100,000 sleepers at once, wall over ideal", T + "100000_of_200ms_at_once/pool_2/batch_predict", None,
         "wall_over_ideal", unit="", peers=sleepers_peers("100000_of_200ms_at_once", "pool_2")),
    goal("1 microsecond of computing each, 2 threads, wall over ideal", F + "compute/even/batch_predict_of_coroutines", 1.02,
         "wall_over_ideal", unit="", peers=[("a plain callable", F + "compute/even/batch_predict"),
                                            ("TBB", F + "compute/even/tbb_parallel_for")]),
    *(goal(f"uneven costs, {label}, 2 threads, wall over list scheduling", f"{F}compute/{shape}/batch_predict_of_coroutines",
           1 / 0.95, "wall_over_ideal", unit="", peers=[("a plain callable", f"{F}compute/{shape}/batch_predict"),
                                                        ("TBB", f"{F}compute/{shape}/tbb_parallel_for")])
      for shape, label in (("uneven", "mixed"), ("heavy_first", "heavy ones first"), ("heavy_last", "heavy ones last"))),
    goal("one permit taken and given back, over std::counting_semaphore", S + "uncontended/acquire", 1.2,
         over=S + "uncontended/std_counting_semaphore"),
    goal("one permit taken and given back", S + "uncontended/acquire", 14, peers=[
        ("try_acquire", S + "uncontended/try_acquire"), ("std::counting_semaphore", S + "uncontended/std_counting_semaphore"),
        ("Asio channel", S + "uncontended/asio_channel")]),
    *(goal(f"64 coroutines, 2 threads, a semaphore of 4 ({label})", f"{S}contended/{kind}/async_semaphore", "peers",
           peers=[(who, f"{S}contended/{kind}/{name}") for who, name in contended])
      for kind, label in (("held_over_a_turn", "held over a turn of the queue"), ("given_back_at_once", "given back at once"))),
    *(row for kind in ("rescheduling/4_permits", "rescheduling/32_permits", "trivial/1_permit", "trivial/4_permits")
      for row in (goal(f"two batches, one semaphore ({kind}): what the other had done when the first was done",
                       f"{S}shared_by_two_batches/{kind}", 0.95, "share_of_the_other", at_least=True, unit=""),
                  goal(f"two batches, one semaphore ({kind}): cost over alone", f"{S}shared_by_two_batches/{kind}", 1.5, "cost_over_alone", unit=""))),
    *(row for latency in ("constant", "uniform", "exponential", "lognormal") for start in (1, 1000) for row in (
        goal(f"a limit that finds itself, from {start}, {latency} latencies: throughput over that of the best fixed cap",
             f"{A}capacity:50/{latency}/gradient_from:{start}", 0.8, "of_best_throughput", at_least=True, unit=""),
        goal("the same: p99 over that of the best fixed cap", f"{A}capacity:50/{latency}/gradient_from:{start}", 2.0,
             "of_best_p99", unit=""))),
    *(goal(f"the server's capacity halves, {latency} latencies: throughput over that of the best fixed cap",
           f"{A}capacity:50_halves/{latency}/gradient_from:20", 0.8, "of_best_throughput", at_least=True, unit="")
      for latency in ("constant", "uniform", "exponential", "lognormal")),
    goal("hedging at p95, calls of which 1 % take 100 times as long: p99.9 without over p99.9 with it, worst of 5 seeds",
         "policies/hedge/p95", 10, "p999_cut", at_least=True, unit=""),
    goal("the same: calls per sample", "policies/hedge/p95", 1.06, "calls_per_sample", unit=""),
    goal("a server that rejects above 100 per second, with a rate limiter: rejections", "policies/throttle/rate_limiter", 0,
         "rejected", unit=""),
    goal("the same with retries alone: calls per sample until all have succeeded", "policies/throttle/retry", None,
         "calls_per_sample", unit="", peers=[("where rejections say when to come back", "policies/throttle/retry_after")]),
    *(goal(f"a stream, over batch_predict of the same samples ({stages}, {order} order, {e})",
           f"{ST}{work}/{e}/{order}_order", 2, over=f"{ST}{work}/{e}/batch_predict",
           peers=[("the stream", f"{ST}{work}/{e}/{order}_order"), ("batch_predict", f"{ST}{work}/{e}/batch_predict"),
                  ("of a vector", f"{ST}{work}/{e}/batch_predict_of_a_vector")])
      for work, stages in (("one_stage", "one stage"), ("two_stages", "two stages over two passes"))
      for e in ("run_loop", "pool_1", "pool_2") for order in ("input", "completion")),
    *(goal(f"ten million samples through two stages: peak memory beyond that of 64 samples ({e})", f"{ST}memory/{e}/ten_million",
           1, "peak_MB", unit="MB", peers=[("ten thousand samples", f"{ST}memory/{e}/ten_thousand")])
      for e in ("run_loop", "pool_1", "pool_2")),
    *(goal(f"what metrics add to a trivial sample ({e})", f"{O}{e}/metrics", 60, "more_ns_per_sample",
           peers=[(label, f"{O}{e}/{who}") for label, who in (
               ("hooks that do nothing", "hooks_that_do_nothing"), ("a trace", "trace"), ("both", "metrics_and_trace"))])
      for e in ("run_loop", "pool_1", "pool_2")),
]


def verdict(results, row):
    """(value, met): met is None where nothing was asked for."""
    value = results.median(row["name"], row["metric"])
    if value is not None and row["over"]:
        base = results.median(row["over"], row["metric"])
        value = value / base if base else None
    if value is None:
        return None, None
    limit = row["limit"]
    if limit is None:
        return value, None
    if limit == "peers":
        others = [results.median(name, row["metric"]) for _, name in row["peers"]]
        return value, all(value < other for other in others if other is not None)
    return value, value >= limit if row["at_least"] else value <= limit


def goal_text(row):
    if row["limit"] is None:
        return "reported"
    if row["limit"] == "peers":
        return "ahead of each"
    if row["metric"] == "allocs_per_sample":
        return "0.000"
    return f"{'>=' if row['at_least'] else '<='} {number(row['limit'])} {row['unit']}".strip()


def goals_table(results, compile_times, quick):
    """A short look gives no verdicts."""
    judge = lambda met: "" if met is None or quick else "met" if met else "**missed**"
    lines = ["| work | cobatch | spread | beside it | goal | |", "|---|---:|---:|---|---|---|"]
    for row in goals:
        value, met = verdict(results, row)
        if value is None:
            if row["name"] in results.failed:
                lines.append(f"| {row['title']} | failed: {results.failed[row['name']]} | | | {goal_text(row)} | {judge(False)} |")
            continue
        metric = "ns_per_sample" if row["over"] else row["metric"]
        unit = "ns" if row["over"] else row["unit"]
        beside = ", ".join(f"{label} {number(v)}{' ' + unit if unit else ''}" for label, name in row["peers"]
                           if (v := results.median(name, metric)) is not None)
        spread = results.spread(row["name"], row["metric"])
        spread = "" if spread is None else f"{spread:.0%}"
        text = f"{value:.3f}" if row["metric"] == "allocs_per_sample" else f"{number(value)} {row['unit']}".strip()
        if cpu_metric := {"ns_per_sample": "cpu_ns_per_sample", "more_ns_per_sample": "more_cpu_ns_per_sample"}.get(row["metric"]):
            cpu = results.median(row["name"], cpu_metric)
            if row["over"]:
                cpu = cpu / results.median(row["over"], cpu_metric)
            text += f" (CPU {number(cpu)})"
        lines.append(f"| {row['title']} | {text} | {spread} | {beside} | {goal_text(row)} | {judge(met)} |")
    for what, title, limit in (("include", "compiling `#include <cobatch/cobatch.hpp>`, -O2", 2), ("quickstart", "compiling the quickstart, -O2", 4)):
        if compile_times.get(what):
            seconds = statistics.median(compile_times[what])
            lines.append(f"| {title} | {number(seconds)} s | | | < {limit} s | {judge(seconds < limit)} |")
    return lines


def behind(results):
    """The peers that are ahead of cobatch, the worst first."""
    found = []
    for row in goals:
        if row["metric"] not in ("ns_per_sample", "wall_over_ideal", "cpu_seconds"):
            continue
        ours = results.median(row["name"], row["metric"])
        for label, name in row["peers"]:
            theirs = results.median(name, row["metric"])
            if ours and theirs and theirs < ours * 0.97 and "/batch_predict" not in name and "/try_acquire" not in name:
                found.append((ours / theirs, f"| {row['title']} | {number(ours)} | {label} | {number(theirs)} |"))
    return [line for _, line in sorted(dict((line, (r, line)) for r, line in found).values(), reverse=True)]


def all_rows(results):
    lines = ["| benchmark | ns a sample | spread | samples/s | heap calls a sample | peak MB | CPU ns a sample | more |",
             "|---|---:|---:|---:|---:|---:|---:|---|"]
    extra = {"wall_over_ideal": "wall over ideal", "cost_over_alone": "cost over alone",
             "share_of_the_other": "share of the other", "p50_ms": "p50 ms", "p99_ms": "p99 ms",
             "wait_p99_ms": "p99 beside its own batch ms", "samples_per_call": "samples a call",
             "of_best_throughput": "of the best throughput", "of_best_p99": "of the best p99",
             "more_ns_per_sample": "more ns a sample", "more_cpu_ns_per_sample": "more CPU ns a sample"}
    for name in sorted(results.rows, key=lambda n: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", n)]):
        spread = results.spread(name)
        allocations = results.median(name, "allocs_per_sample")
        more = ", ".join(f"{label} {number(v)}" for key, label in extra.items() if (v := results.median(name, key)) is not None)
        lines.append(f"| {name} | {number(results.median(name))} | {'' if spread is None else f'{spread:.0%}'} | "
                     f"{number(results.median(name, 'samples_per_second'))} | {'-' if allocations is None else f'{allocations:.3f}'} | "
                     f"{number(results.median(name, 'peak_MB'))} | {number(results.median(name, 'cpu_ns_per_sample'))} | {more} |")
    return lines


def machine():
    model = platform.machine()
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    return model


def put(readme, lines, begin, end):
    """Between the marks, instead of what is there."""
    text = pathlib.Path(readme).read_text()
    before, rest = text.split(begin, 1)
    pathlib.Path(readme).write_text("\n".join([before + begin, "", *lines, "", end]) + rest.split(end, 1)[1])


def main():
    if sys.argv[1] == "--scaling":
        table = pathlib.Path(sys.argv[2]).read_text().rstrip().splitlines()
        put(sys.argv[3], [f"{machine()}, {table[0]}", "", "```text", *table[2:], "```"], *scaling_marks)
        return
    directory, json_path, markdown_path = (pathlib.Path(a) for a in sys.argv[1:4])
    readme = next((a.split("=", 1)[1] for a in sys.argv[4:] if a.startswith("--readme=")), None)
    rows, context = [], {}
    runs = sorted(directory.glob("*.json"))
    for path in runs:
        document = json.loads(path.read_text())
        context |= {k: v for k, v in document["context"].items() if k not in ("executable", "host_name", "load_avg")}
        rows += document["benchmarks"]
    compile_times = {}
    for line in (directory / "compile_times").read_text().splitlines():
        what, nanoseconds = line.split()
        compile_times.setdefault(what, []).append(int(nanoseconds) / 1e9)
    context["compile_seconds"] = compile_times
    json_path.write_text(json.dumps({"context": context, "benchmarks": rows}, indent=1) + "\n")

    results = Results(rows)
    quick = "--quick" in sys.argv
    repetitions = max((len(r) for r in results.rows.values()), default=0)
    date = datetime.date.fromisoformat(context["date"][:10]) if "date" in context else datetime.date.today()
    lines = [f"{machine()}, {context.get('num_cpus', '?')} cores, {platform.system()} {platform.release().split('-')[0]}; "
             f"{context.get('compiler', '?')} `{context.get('flags', '')}`; {date}; medians of {repetitions} repetitions"
             f"{' of a short look (--quick): not for comparing' if quick else ''}. "
             "Spread: half of the middle half of the repetitions, relative to the median. "
             "CPU: the processor time of all threads, which other programs disturb less than the time on the clock.", "",
             *goals_table(results, compile_times, quick)]
    if not quick and (lost := behind(results)):
        lines += ["", "Where another is ahead of cobatch:", "", "| work | cobatch | who | |", "|---|---:|---|---:|", *lost]
    if results.failed:
        lines += ["", "Failed: " + "; ".join(f"`{name}`: {why}" for name, why in results.failed.items())]
    details = ["", "<details><summary>Every benchmark</summary>", "", *all_rows(results), "", "</details>"]
    markdown_path.write_text("\n".join(lines + details) + "\n")
    if readme:
        put(readme, [*lines, *details], begin_mark, end_mark)
    sys.exit(1 if results.failed else 0)


main()
