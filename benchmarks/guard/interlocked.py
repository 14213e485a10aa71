#!/usr/bin/env python3
"""Mutexes and interlocked read-modify-writes per sample, counted: what threads share, on a machine of any size.

  interlocked.py PROGRAM TABLE            fails if a limit of TABLE is exceeded
  interlocked.py PROGRAM TABLE --goals    fails if a goal is missed
  interlocked.py PROGRAM TABLE --measure  prints TABLE anew: as a limit the goal where it is met with 25 % to spare, else
                                          25 % above what was measured. So a limit gets tighter once it can.

A line of TABLE: work, threads, limit and goal of the mutexes taken, limit and goal of the read-modify-writes; "-": only
reported. Those inside of a mutex count as well. Callgrind counts how often each instruction runs, objdump tells which of
them are interlocked. Each work runs with two numbers of samples: the difference, by the difference of the numbers, is
what one sample costs. For x86-64.
"""
import collections
import functools
import pathlib
import re
import subprocess
import sys
import tempfile

few, many = 10000, 60000
kinds = ("mutexes", "interlocked", "waits and wakes")
# A lock prefix, or an exchange with memory, which needs none. (xchg of two registers is not interlocked.)
interlocked = re.compile(r"\t(?:repz |repnz |xacquire |xrelease )*(?:lock |xchg\s.*\()")
label = re.compile(r"^[0-9a-f]+ <([^@>]*)(?:@.*)?>:$")
entries = {"mutexes": re.compile(r"_*pthread_(mutex_(try|timed|clock)?lock|rwlock_\w+lock|spin_lock)"),
           "waits and wakes": re.compile(r"_*pthread_cond_(signal|broadcast|wait|timedwait|clockwait)|syscall")}


@functools.lru_cache(maxsize=None)
def interesting(path):
    """{address: kind} of the instructions of a program or library that count."""
    found, entry = {}, None
    listing = subprocess.run(["objdump", "-d", "--no-show-raw-insn", path], capture_output=True, text=True, check=True)
    for line in listing.stdout.splitlines():
        if name := label.match(line):
            entry = next((kind for kind, pattern in entries.items() if pattern.fullmatch(name[1])), None)
        elif ":\t" in line:
            address = int(line.split(":", 1)[0], 16)
            if entry:
                found.setdefault(address, []).append(entry)
                entry = None
            if interlocked.search(line):
                found.setdefault(address, []).append("interlocked")
    return found


def executions(profile):
    """How often each kind has run, from a profile of callgrind with --dump-instr=yes."""
    totals, here, inclusive = collections.Counter(), {}, False
    for line in profile.read_text().splitlines():
        if line.startswith("ob="):
            here = interesting(line[3:]) if pathlib.Path(line[3:]).is_file() else {}
        elif line.startswith("calls="):
            inclusive = True  # the next line is what the callee cost
        elif line.startswith("0x"):
            if not inclusive:
                address, count = line.split()
                for kind in here.get(int(address, 16), ()):
                    totals[kind] += int(count)
            inclusive = False
    return totals


def run(program, work, samples, threads):
    """None where the library has no such thing."""
    with tempfile.TemporaryDirectory() as folder:
        profile = pathlib.Path(folder, "profile")
        done = subprocess.run(
            ["valgrind", "--tool=callgrind", "--dump-instr=yes", "--dump-line=no", "--compress-pos=no",
             "--compress-strings=no", f"--callgrind-out-file={profile}", program, work, str(samples), str(threads)],
            capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{done.stdout}{done.stderr}\n{work} with {samples} samples failed")
        return None if "not there" in done.stdout else executions(profile)


def per_sample(program, work, threads):
    small, large = (run(program, work, samples, threads) for samples in (few, many))
    return small is not None and {kind: (large[kind] - small[kind]) / (many - few) for kind in kinds}


def rows(table):
    for line in pathlib.Path(table).read_text().splitlines():
        if line and not line.startswith("#"):
            work, threads, *numbers = line.split()
            yield work, threads, [None if number == "-" else float(number) for number in numbers]


def text(number):
    return "-" if number is None else f"{number:.3f}"


def main():
    if len(sys.argv) not in (3, 4) or sys.argv[3:] not in ([], ["--goals"], ["--measure"]):
        sys.exit(__doc__)
    program, table, *mode = sys.argv[1:]
    measuring, column = mode == ["--measure"], 1 if mode == ["--goals"] else 0
    if measuring:
        print("".join(f"{line}\n" for line in pathlib.Path(table).read_text().splitlines() if line.startswith("#")), end="")
    else:
        print(f"{'work':14}{'threads':>7}{'mutexes (limit, goal)':>28}{'interlocked (limit, goal)':>30}{'waits, wakes':>14}")
    failures = 0
    for work, threads, bounds in rows(table):
        counted = per_sample(program, work, threads)
        if counted and measuring:
            for i, kind in enumerate(kinds[:2]):
                limit, goal = bounds[2 * i:2 * i + 2]
                generous = counted[kind] * 1.25 + 0.01
                if limit is not None:
                    bounds[2 * i] = goal if goal is not None and generous <= goal else generous
        if measuring:
            print(f"{work:14}{threads:>7}" + "".join(f"{text(bound):>12}" for bound in bounds))
            continue
        if not counted:
            print(f"{work:14}{threads:>7}   not there")
            continue
        cells = [f"{counted[kind]:.3f} ({text(bounds[2 * i])}, {text(bounds[2 * i + 1])})" for i, kind in enumerate(kinds[:2])]
        over = [kind for i, kind in enumerate(kinds[:2])
                if bounds[2 * i + column] is not None and counted[kind] > bounds[2 * i + column]]
        failures += len(over)
        print(f"{work:14}{threads:>7}{cells[0]:>28}{cells[1]:>30}{counted[kinds[2]]:>14.4f}"
              + "".join(f"  TOO MANY {kind.upper()}" for kind in over), flush=True)
    if failures:
        sys.exit(f"{failures} of the {'goals' if column else 'limits'} in {table} are exceeded")


main()
