#!/usr/bin/env python3
"""Loads the example `thumbnails`, in turn without crashes and with one request in a hundred that crashes its
worker, and prints what that does to the other ones. Needs wrk.

    cargo build --release --example thumbnails
    benches/thumbnails/run.py target/release/examples/thumbnails [ROUNDS] [SECONDS]
"""

import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

CLIENTS = 4
FIGURES = ["p50", "p90", "p99", "p99.9", "max"]


def get(address, path, upload=None):
    with urllib.request.urlopen(urllib.request.Request(address + path, data=upload)) as answer:
        return answer.read()


def prepare(address, folder):
    """What load.lua reads."""
    good = get(address, "/samples/photo.jpg")
    files = {
        "good": good,
        "crash": get(address, "/samples/aborts.ppmx"),
        "expected": get(address, "/thumbnail?width=96&height=96", good),
    }
    for name, content in files.items():
        with open(os.path.join(folder, name), "wb") as file:
            file.write(content)


def load(address, folder, seconds, every):
    script = os.path.join(os.path.dirname(__file__), "load.lua")
    clients = ["-t", str(CLIENTS), "-c", str(CLIENTS), "--timeout", "10s"]
    command = ["wrk", *clients, "-d", f"{seconds}s", "-s", script, address, "--", folder, str(every)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    run = json.loads(said.splitlines()[-1])
    run["rate"] = run["right"] / run["seconds"]
    return run


def report(calm, crashing):
    def row(name, figure, unit, scale=1):
        of = lambda runs: statistics.median(run[figure] for run in runs) / scale
        ratios = [after[figure] / before[figure] for before, after in zip(calm, crashing)]
        print(f"| {name} | {of(calm):.2f} {unit} | {of(crashing):.2f} {unit} | {statistics.median(ratios):.2f} |")

    print("\n| | without crashes | one in a hundred crashes | ratio |\n| --- | --- | --- | --- |")
    row("good answers a second", "rate", "")
    for figure in FIGURES:
        row(f"{figure} of good answers", figure, "ms", 1000)
    for figure in ["right", "wrong", "crashed", "not_crashed", "lost"]:
        print(f"{figure}: {sum(run[figure] for run in calm)} | {sum(run[figure] for run in crashing)}")


def busy():
    """The processor time that all of the machine has used, and that of processes which are ours and have ended."""
    with open("/proc/stat") as file:
        user, nice, system, _, _, interrupts, soft = map(int, file.readline().split()[1:8])
    ours = resource.getrusage(resource.RUSAGE_CHILDREN)
    everyone = (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")
    return time.monotonic(), everyone, ours.ru_utime + ours.ru_stime


def report_others(before, after):
    span, everyone, ours = (end - start for start, end in zip(before, after))
    share = (everyone - ours) / span / os.cpu_count()
    print(f"others have used {share:.0%} of the processors' time")


def main():
    program, rounds, seconds = sys.argv[1], int((sys.argv[2:] or [5])[0]), int((sys.argv[3:] or [10])[0])
    at_first = busy()
    service = subprocess.Popen([program, "--port", "0"], stdout=subprocess.PIPE, text=True)
    address = service.stdout.readline().split()[-1]
    calm, crashing = [], []
    with tempfile.TemporaryDirectory() as folder:
        prepare(address, folder)
        load(address, folder, 3, 100)  # warms up
        before = json.loads(get(address, "/stats"))
        for _ in range(rounds):
            for runs, every in [(calm, 0), (crashing, 100)]:
                runs.append(load(address, folder, seconds, every))
                print(runs[-1], flush=True)
    after = json.loads(get(address, "/stats"))
    report(calm, crashing)
    for name in ["cancelled", "workers_died", "workers_started"]:
        print(f"the service says, {name}: {after[name] - before[name]}")
    answers = {status: count - before["answers"].get(status, 0) for status, count in after["answers"].items()}
    print(f"the service says, answers: {answers}")
    service.send_signal(signal.SIGTERM)
    code = service.wait()
    report_others(at_first, busy())
    sys.exit(code)


main()
