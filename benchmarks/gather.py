#!/usr/bin/env python3
"""The same work in Python: asyncio.gather under a Semaphore, as one would write it there. Prints Google Benchmark's JSON.

  gather.py [--quick] [--repetitions=N]
"""
import asyncio
import json
import sys
import time


async def predict(x):
    return x * 2


async def predict_rescheduling(x):
    await asyncio.sleep(0)
    return x * 2


async def predict_sleeping(x):
    await asyncio.sleep(0.001)
    return x * 2


async def gather(samples, predict, limit):
    semaphore = asyncio.Semaphore(limit)

    async def one(x):
        async with semaphore:
            return await predict(x)

    return await asyncio.gather(*(one(x) for x in samples), return_exceptions=True)


def measure(name, predict, count, limit, ideal=None):
    samples = range(count)
    wall, cpu = time.perf_counter(), time.process_time()
    results = asyncio.run(gather(samples, predict, limit))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    row = {"name": name, "run_type": "iteration", "samples": count, "ns_per_sample": wall * 1e9 / count,
           "samples_per_second": count / wall, "cpu_seconds": cpu, "cpu_ns_per_sample": cpu * 1e9 / count}
    if ideal is not None:
        row["wall_over_ideal"] = wall / ideal
    if results != [2 * x for x in samples]:
        row |= {"error_occurred": True, "error_message": "wrong results"}
    return row


def main():
    quick = "--quick" in sys.argv
    repetitions = next((int(a.split("=")[1]) for a in sys.argv if a.startswith("--repetitions=")), 1)
    count = 10_000 if quick else 100_000
    rows = []
    for _ in range(repetitions):
        rows.append(measure("fan_out/coroutine/python/asyncio_gather", predict, count, 64))
        rows.append(measure("fan_out/reschedule/python/asyncio_gather", predict_rescheduling, count // 2, 64))
        rows.append(measure("timer/20000_of_1ms_limit_1000/python/asyncio_gather", predict_sleeping, 20_000, 1000, 0.020))
    json.dump({"context": {"python": sys.version.split()[0]}, "benchmarks": rows}, sys.stdout, indent=1)


main()
