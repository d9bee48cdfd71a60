"""What loaderprof costs a job: `python tests/benchmarks/overhead.py [--pairs N] [--only NAME] [--full]`.

Each loop is run bare and with capture in turns (A B A B ...), and the CPU time (user + system) of the whole process tree
is compared: capture is what runs inside the job. With `--full` a third run in each turn is `loaderprof run`, and what it
takes beyond the job is told apart: samplers beside the job, and the report after it. `--inside` alternates epochs with
and without capture in one process instead, where a machine's noise is smaller than from run to run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from loaderprof.capture.launch import job_environment

ROOT = Path(__file__).parents[2]
PROGRAM = str(ROOT / "tests" / "capture" / "programs" / "cost.py")
LOOPS = {
    "decode": ([str(ROOT / "sample_runs" / "decode_bound" / "train.py")], "sample run: JPEG decoding in a worker"),
    "batches": ([PROGRAM, "batches"], "4,000 batches of 1 ms in 2 workers"),
    "memory": ([PROGRAM, "memory"], "samples of 17 µs from memory, 64 a batch, no workers"),
    "tiny": ([PROGRAM, "tiny"], "batches of one 17 µs sample, no workers: the worst case"),
    "steps": ([PROGRAM, "steps"], "10,000 steps of 1 ms on cheap batches of a worker"),
}


@dataclass(frozen=True)
class Cost:
    """CPU and wall time of a process tree, in seconds."""

    cpu_s: float
    wall_s: float


def cost_of(command: list[str], environment: dict[str, str], folder: str) -> Cost:
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command], env=environment, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {process.returncode}")
    return Cost(usage.ru_utime + usage.ru_stime, time.perf_counter() - begun)


def bare(command: list[str], folder: str) -> Cost:
    return cost_of(command, dict(os.environ), folder)


def captured(command: list[str], folder: str) -> Cost:
    """The job with capture in it and no one beside it."""
    journals = Path(tempfile.mkdtemp(dir=folder))
    return cost_of(command, job_environment(journals, {}, os.environ), folder)


def profiled(command: list[str], folder: str) -> tuple[Cost, float]:
    """`loaderprof run`: its whole cost, and the samplers' share of it."""
    recording = tempfile.mkdtemp(dir=folder)
    whole = cost_of(["-m", "loaderprof", "run", "-o", recording, *command], dict(os.environ), folder)
    return whole, float(json.loads((Path(recording) / "recording.json").read_text())["sampler_cpu_s"])


def middle(values: list[float]) -> str:
    """A median and its standard error, in percent."""
    error = 1.25 * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{100 * statistics.median(values):+5.1f} ± {100 * error:.1f} %"


def compare(name: str, pairs: int, full: bool, folder: str) -> None:
    command, words = LOOPS[name]
    bare(command, folder)  # data is made, files are in the cache
    without, with_, whole, samplers = [], [], [], []
    for turn in range(pairs):
        first, second = (bare, captured) if turn % 2 else (captured, bare)
        costs = {each: each(command, folder) for each in (first, second)}
        without.append(costs[bare])
        with_.append(costs[captured])
        if full:
            cost, share = profiled(command, folder)
            whole.append(cost)
            samplers.append(share)
    cpu = [b.cpu_s / a.cpu_s - 1 for a, b in zip(without, with_, strict=True)]
    wall = [b.wall_s / a.wall_s - 1 for a, b in zip(without, with_, strict=True)]
    base = statistics.median(cost.cpu_s for cost in without)
    print(f"{name:8} {words}\n         bare {base:.2f} s of CPU   capture {middle(cpu)} CPU, {middle(wall)} wall")
    if full:
        beside = statistics.median(samplers)
        report = statistics.median(w.cpu_s - b.cpu_s for w, b in zip(whole, with_, strict=True)) - beside
        print(f"         samplers {beside:.2f} s ({100 * beside / base:.1f} %), report and start {report:.2f} s, once")


def inside(name: str, pairs: int) -> None:
    """Epochs with and without capture in turns, in one process."""
    with tempfile.TemporaryDirectory() as journals:
        environment = {**job_environment(Path(journals), {}, os.environ), "ALTERNATE": str(pairs)}
        command = [sys.executable, *LOOPS[name][0]]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    costs = [json.loads(line) for line in done.stdout.splitlines()]
    ratios = [b["cpu_s"] / a["cpu_s"] - 1 for a, b in costs]
    base = statistics.median(a["cpu_s"] / a["batches"] for a, _ in costs)
    more = statistics.median((b["cpu_s"] - a["cpu_s"]) / a["batches"] for a, b in costs)
    print(
        f"{name:8} {LOOPS[name][1]}\n         {1e6 * base:.1f} µs a batch, capture {1e6 * more:+.2f} µs: {middle(ratios)} CPU"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5, help="how often each is run")
    parser.add_argument("--only", action="append", choices=LOOPS, help="this loop alone; may be repeated")
    parser.add_argument("--full", action="store_true", help="run `loaderprof run` as well")
    parser.add_argument("--inside", action="store_true", help="alternate epochs in one process")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only or LOOPS:
            if not options.inside:
                compare(name, options.pairs, options.full, folder)
            elif name != "decode":
                inside(name, options.pairs)


if __name__ == "__main__":
    main()
