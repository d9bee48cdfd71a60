"""What loaderprof costs a job, and what others cost it.

    python tests/benchmarks/overhead.py [--only NAME] [--pairs N]   bare and with capture in turns (A B A B ...)
    python tests/benchmarks/overhead.py --full                      with the samplers beside the job, and the report
    python tests/benchmarks/overhead.py --inside --pairs 500        blocks of 0.2 s without and with capture in one process
    python tests/benchmarks/overhead.py --starts --pairs 100        what an epoch's start costs, where workers are made anew
    python tests/benchmarks/overhead.py --instructions              counted by valgrind: no noise at all
    python tests/benchmarks/overhead.py --parts --only memory       what each piece of the hooks takes inside a loop
    python tests/benchmarks/overhead.py --peers                     other profilers on the same loops

Compared is the CPU time (user + system) of the whole process tree; capture is what runs inside the job. Runs of one job
differ by some percent on a shared machine, blocks of one process by less. Instructions are those of an emulated
processor, which knows no noise and no caches; long loops less short ones, so that imports do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loaderprof.capture.launch import job_environment

ROOT = Path(__file__).parents[2]
PROGRAM = str(ROOT / "tests" / "capture" / "programs" / "cost.py")
LOOPS = {
    "decode": ([str(ROOT / "sample_runs" / "decode_bound" / "train.py")], "sample run: JPEG decoding in a worker"),
    "samples": ([PROGRAM, "samples"], "samples of 1.6 ms, 8 a batch, in 2 workers"),
    "batches": ([PROGRAM, "batches"], "4,000 batches of 1 ms in 2 workers"),
    "memory": ([PROGRAM, "memory"], "samples of 17 µs from memory, 64 a batch, no workers"),
    "tiny": ([PROGRAM, "tiny"], "batches of one 17 µs sample, no workers: the worst case"),
    "steps": ([PROGRAM, "steps"], "10,000 steps of 1 ms on cheap batches of a worker"),
}
PROCESSES = 5
# Parts of a loop (see PROGRAM) of which the difference is counted.
LONG, SHORT = "2", "20"
PEERS = {
    "torch.profiler": [sys.executable, str(Path(__file__).with_name("under_torch_profiler.py"))],
    "py-spy": [
        "py-spy",
        "record",
        "--subprocesses",
        "--rate",
        "100",
        "--format",
        "raw",
        "--output",
        "/dev/null",
        "--",
        sys.executable,
    ],
    "scalene": ["scalene", "run"],
    "viztracer": ["viztracer", "--quiet", "--"],
    "TraceML": ["traceml", "run"],
}


@dataclass(frozen=True)
class Cost:
    """CPU and wall time of a process tree, in seconds."""

    cpu_s: float
    wall_s: float


def cost_of(command: list[str], environment: dict[str, str], folder: str, *, python: bool = True) -> Cost:
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command] if python else command,
        env=environment,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise ChildProcessError(f"{' '.join(command)} failed with {process.returncode}")
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


def alternated(name: str, how: str, pairs: int) -> list[Any]:
    """Return the seconds of CPU that pairs of one process, without capture and with it, took."""
    with tempfile.TemporaryDirectory() as journals:
        environment = {**job_environment(Path(journals), {}, os.environ), how: str(pairs)}
        command = [sys.executable, *LOOPS[name][0]]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def inside(name: str, pairs: int) -> None:
    """Compare blocks of batches without and with capture, in several processes: where memory lies is luck, and lasts."""
    costs = [cost for _ in range(PROCESSES) for cost in alternated(name, "ALTERNATE", pairs // PROCESSES)]
    ratios = [b / a - 1 for a, b in costs]
    base, more = statistics.median(a for a, _ in costs), statistics.median(b - a for a, b in costs)
    print(
        f"{name:8} {LOOPS[name][1]}\n         {1e6 * base:.1f} µs a batch, capture {1e6 * more:+.2f} µs: {middle(ratios)} CPU"
    )


def starts(name: str, pairs: int) -> None:
    """Compare epochs of a batch or two, each of which starts its workers."""
    costs = alternated(name, "STARTS", pairs)
    base, more = statistics.median(a for a, _ in costs), [b - a for a, b in costs]
    error = 1.25 * statistics.stdev(more) / len(more) ** 0.5
    print(
        f"{name:8} an epoch's start {1e3 * base:.1f} ms, capture {1e3 * statistics.median(more):+.2f} ± {1e3 * error:.2f} ms"
    )


def parts(name: str) -> None:
    """Show what each piece of the hooks takes inside a loop."""
    with tempfile.TemporaryDirectory() as journals:
        environment = {**job_environment(Path(journals), {}, os.environ), "PARTS": "1"}
        subprocess.run([sys.executable, *LOOPS[name][0]], env=environment, check=True)


def counted(command: list[str], environment: dict[str, str], folder: str) -> int:
    """Return the instructions that a process tree executes, by valgrind."""
    tool = ["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null", "--trace-children=yes"]
    # Tables of names are then laid out alike in every run.
    environment = {**environment, "PYTHONHASHSEED": "0"}
    done = subprocess.run(
        ["valgrind", *tool, sys.executable, *command],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return sum(int(each.replace(",", "")) for each in re.findall(r"I\s+refs:\s+([\d,]+)", done.stderr))


def instructions(name: str, folder: str) -> None:
    """Count what a loop executes with capture and without."""
    command = LOOPS[name][0]
    journals = Path(tempfile.mkdtemp(dir=folder))
    native_s = bare([*command, LONG], folder).cpu_s - bare([*command, SHORT], folder).cpu_s
    begun = time.perf_counter()
    long = counted([*command, LONG], dict(os.environ), folder)
    between = time.perf_counter()
    without = long - counted([*command, SHORT], dict(os.environ), folder)
    emulated_s = (between - begun) - (time.perf_counter() - between)
    environment = {**job_environment(journals, {}, os.environ), "SLOWER": str(emulated_s / native_s)}
    with_ = counted([*command, LONG], environment, folder) - counted([*command, SHORT], environment, folder)
    print(
        f"{name:8} {LOOPS[name][1]}\n         {without / 1e6:.0f} million instructions, capture {with_ / without - 1:+.2%}",
        flush=True,
    )


def under(prefix: list[str] | None, command: list[str], folder: str) -> Cost | None:
    """Return what a loop costs under another profiler, or under ours; None where it did not survive that."""
    try:
        if prefix is None:
            return profiled(command, folder)[0]
        return cost_of([*prefix, *command], dict(os.environ), tempfile.mkdtemp(dir=folder), python=False)
    except ChildProcessError as error:
        print(f"         {error}")
        return None


def peers(name: str, pairs: int, folder: str) -> None:
    """Run a loop bare and under each of the other profilers that are installed, in turns."""
    command, words = LOOPS[name]
    # TraceML takes the script's arguments apart from its own.
    apart = {"TraceML": [command[0], "--args", *command[1:]] if command[1:] else command}
    known = {**{peer: prefix for peer, prefix in PEERS.items() if shutil.which(prefix[0])}, "loaderprof run": None}
    ratios: dict[str, list[tuple[float, float]]] = {peer: [] for peer in known}
    print(f"{name:8} {words}")
    for _ in range(pairs):
        alone = bare(command, folder)
        for peer, prefix in known.items():
            cost = under(prefix, apart.get(peer, command), folder)
            if cost is not None:
                ratios[peer].append((cost.cpu_s / alone.cpu_s - 1, cost.wall_s / alone.wall_s - 1))
    for peer, seen in ratios.items():
        if seen:
            cpu, wall = (middle(list(each)) for each in zip(*seen, strict=True))
            print(f"         {peer:16} {cpu} CPU, {wall} wall", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="how often each is run")
    parser.add_argument("--only", action="append", choices=LOOPS, help="this loop alone; may be repeated")
    parser.add_argument("--full", action="store_true", help="run `loaderprof run` as well")
    parser.add_argument("--inside", action="store_true", help="alternate blocks of batches in one process")
    parser.add_argument("--starts", action="store_true", help="epochs that start their workers for a batch or two")
    parser.add_argument("--instructions", action="store_true", help="count instructions")
    parser.add_argument("--parts", action="store_true", help="what each piece of the hooks takes inside a loop")
    parser.add_argument("--peers", action="store_true", help="run other profilers as well")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only or LOOPS:
            if options.peers:
                peers(name, options.pairs, folder)
            elif options.parts and name != "decode":
                parts(name)
            elif options.starts and name != "decode":
                starts(name, options.pairs)
            elif not (options.inside or options.instructions or options.parts or options.starts):
                compare(name, options.pairs, options.full, folder)
            elif name != "decode" and not (options.parts or options.starts):
                inside(name, options.pairs) if options.inside else instructions(name, folder)


if __name__ == "__main__":
    main()
