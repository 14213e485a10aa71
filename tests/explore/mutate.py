#!/usr/bin/env python3
"""Spoils the library in one place after another, and sees whether an exploration notices.

    tests/explore/mutate.py [--compiler g++] [--build DIR] [--kind order,notify,check,known] [--file PART] [--runs N]
                            [--list] [--line N]

    order   a weaker memory order
    notify  a wake-up, or what tells somebody, that is left out
    check   a condition that counts as false
    known   faults that the library once had

A mutant is killed where a program of tests/explore fails, or where it does not compile. Prints the survivors, and the score.
"""
import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

here = pathlib.Path(__file__).resolve().parent
include = here.parent.parent / "include"

# Which explorations look at which header; the first one that fails will do.
programs = {
    "detail/turn_taking.hpp": ["turn_taking", "stream"],
    "detail/semaphore_core.hpp": ["semaphore"],
    "semaphore.hpp": ["semaphore"],
    "detail/waiter.hpp": ["semaphore"],
    "detail/work_ring.hpp": ["thread_pool"],
    "detail/idle_count.hpp": ["thread_pool"],
    "detail/sleeping_workers.hpp": ["thread_pool"],
    "detail/pool_shard.hpp": ["thread_pool"],
    "thread_pool.hpp": ["thread_pool"],
    "detail/callback_core.hpp": ["handshake"],
    "sync_wait.hpp": ["handshake"],
    "run_loop.hpp": ["handshake"],
    "engine/head_count.hpp": ["batch", "stream"],
    "engine/crew.hpp": ["batch", "stream"],
    "engine/shelves.hpp": ["batch"],
    "engine/reader.hpp": ["stream"],
    "engine/stream.hpp": ["stream"],
    "engine/lane.hpp": ["policies"],
    "engine/hedges.hpp": ["policies"],
    "engine/alarm.hpp": ["policies"],
    "engine/retries.hpp": ["policies"],
    "engine/permits.hpp": ["batch", "policies"],
    "engine/micro_batch_inbox.hpp": ["micro_batcher"],
    "engine/micro_batch.hpp": ["micro_batcher"],
}

operations = r"\.(load|store|exchange|fetch_add|fetch_sub|fetch_or|fetch_and|compare_exchange_weak|compare_exchange_strong)\("
weaker = {"acquire": ["relaxed"], "release": ["relaxed"], "acq_rel": ["acquire", "release"]}
without = {"load": ["acquire"], "store": ["release"]}


def closing(text, at):
    """Where the parenthesis at `at` is closed."""
    depth = 0
    for i in range(at, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    return -1


def code_only(text):
    """The same with comments blanked out."""
    return re.sub(r"//[^\n]*", lambda found: " " * len(found.group()), text)


def orders(text):
    code = code_only(text)
    for found in re.finditer(r"std::memory_order_(acquire|release|acq_rel)\b", code):
        for to in weaker[found.group(1)]:
            yield found.start(), found.end(), f"std::memory_order_{to}"
    for found in re.finditer(operations, code):
        end = closing(code, found.end() - 1)
        inside = code[found.end() : end]
        if end < 0 or "memory_order" in inside:
            continue
        name = found.group(1)
        for to in without.get(name, ["acq_rel"]):
            yield end, end, (", " if inside.strip() else "") + f"std::memory_order_{to}"


def notifies(text):
    code = code_only(text)
    pattern = r"^[ \t]+((?:if \([^\n]*\) )?[\w.>\-()\[\]*&:]*\b(?:notify_one|notify_all|wake\w*|start_worker\w*|tell\w*|ring|mind|attend|request_stop|push|signal)\([^\n]*\);)$"
    for found in re.finditer(pattern, code, re.MULTILINE):
        if not found.group(1).startswith(("return", "if (!")):
            yield found.start(1), found.end(1), "{}"


def checks(text):
    code = code_only(text)
    for found in re.finditer(r"\bif \(", code):
        end = closing(code, found.end() - 1)
        if end > 0 and ";" not in code[found.end() : end]:
            yield found.end(), end, "false && (" + text[found.end() : end] + ")"


known = [
    (
        "a reader's sample, taken by another worker first, is taken for the end of the input",
        {
            "engine/reader.hpp": [
                ("if (source.turn().leave() && !source.exhausted()) engine_", "if (source.turn().leave() && answer != claim::exhausted) engine_"),
                ("if (read) to.push(*read);\n", "if (read) came_.store(read);\n    take(to);\n"),
                ("return leave(read ? claim::taken : claim::exhausted);", "return leave(to.empty() ? claim::exhausted : claim::taken);"),
            ]
        },
        ["stream"],
    ),
    (
        "boxes that come back while all workers run are forgotten",
        {"engine/stream.hpp": [("if (seen == supply::fed) return false;", "if (seen != supply::starved) return false;")]},
        ["stream"],
    ),
    (
        "who was told of boxes and found none is not told again",
        {"engine/stream.hpp": [("if (seen == supply::told) reading_.compare_exchange_strong(seen, supply::starved);\n", "\n")]},
        ["stream"],
    ),
]

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--compiler", default="g++")
parser.add_argument("--build", default=None)
parser.add_argument("--kind", default="known,order,notify")
parser.add_argument("--file", default="")
parser.add_argument("--line", type=int, default=0)
parser.add_argument("--runs", default="5000")
parser.add_argument("--list", action="store_true")
arguments = parser.parse_args()
kinds = arguments.kind.split(",")

build = pathlib.Path(arguments.build or tempfile.mkdtemp(prefix="cobatch-mutants-"))
build.mkdir(parents=True, exist_ok=True)
flags = ["-std=c++20", "-g1", f"-I{here}", "-DCOBATCH_EXPLORE=<explorer.hpp>", "-DCOBATCH_RECYCLE_FRAMES=0"]


def compile_to(output, source, *more):
    return subprocess.run(
        [arguments.compiler, *flags, *more, "-c", str(source), "-o", str(output)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ).returncode


def verdict(root, names):
    environment = dict(os.environ, COBATCH_EXPLORE_RUNS=arguments.runs, COBATCH_EXPLORE_RANDOM="500", COBATCH_EXPLORE_STOP="1")
    for name in names:
        object_file, program = build / f"{name}.o", build / name
        if compile_to(object_file, here / f"{name}_explore.cpp", "-O1", "-fsanitize=thread", f"-I{root}") != 0:
            return "does not compile"
        subprocess.run([arguments.compiler, str(object_file), str(build / "explorer.o"), str(build / "main.o"), "-o", str(program), "-ldl"], check=True)
        try:
            run = subprocess.run([str(program)], env=environment, capture_output=True, timeout=600)
        except subprocess.TimeoutExpired:
            return f"killed by {name}: no end"
        if run.returncode != 0:
            lines = (run.stdout + run.stderr).decode(errors="replace").splitlines()
            failed = [line for line in lines if line.rstrip().endswith("FAILED")]
            return f"killed by {failed[0].split('  ')[0] if failed else name}"
    return None


def mutants():
    if "known" in kinds:
        for what, files, names in known:
            if not arguments.file or arguments.file in what:
                yield what, files, names
    generators = {"order": orders, "notify": notifies, "check": checks}
    for name, users in programs.items():
        if arguments.file and arguments.file not in name:
            continue
        text = (include / "cobatch" / name).read_text()
        for kind in kinds:
            if kind not in generators:
                continue
            for begin, end, into in generators[kind](text):
                line = text.count("\n", 0, begin) + 1
                if arguments.line and line != arguments.line:
                    continue
                old = text[begin:end] or text[text.rfind("\n", 0, begin) + 1 : begin].strip()
                yield f"{name}:{line}: {kind}: {old} -> {into}", {name: text[:begin] + into + text[end:]}, users


if arguments.list:
    for what, _, _ in mutants():
        print(what)
    sys.exit()

assert compile_to(build / "explorer.o", here / "explorer.cpp", "-O2") == 0
assert compile_to(build / "main.o", here / "scenario_main.cpp", "-O1", f"-I{include}") == 0
killed, survivors, invalid = 0, [], 0
for what, files, users in mutants():
    root = build / "include"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(include, root)
    for name, change in files.items():
        path = root / "cobatch" / name
        text = path.read_text()
        if isinstance(change, str):
            text = change
        else:
            for old, new in change:
                assert old in text, f"{name}: not there any more: {old}"
                text = text.replace(old, new)
        path.write_text(text)
    begin = time.time()
    answer = verdict(root, users)
    print(f"{what}  =>  {answer or 'SURVIVES'}  ({time.time() - begin:.0f} s)", flush=True)
    if answer is None:
        survivors.append(what)
    elif answer == "does not compile":
        invalid += 1
    else:
        killed += 1
print(f"\n{killed} killed, {len(survivors)} survive, {invalid} do not compile")
for each in survivors:
    print(f"  {each}")
