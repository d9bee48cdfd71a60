"""How long and how large is the report of a job of a thousand ranks?

    python tests/benchmarks/many_ranks.py                                 1,024 ranks of 10,000 steps, 2.7 GB on disk
    python tests/benchmarks/many_ranks.py --ranks 32 --steps 1000         a small one

Makes a recording as nodes of eight ranks leave one in a shared folder - each rank with a worker, all of it written by the
journal's own writer, the records of ranks that are alike copied - in which the worker of one rank reads slowly and the
others wait for it in their steps. Then runs `loaderprof report` on it, and prints its time and peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loaderprof.recording import files
from loaderprof.recording import journal as layout
from loaderprof.recording.journal import Journal

RANKS_A_NODE = 8
STEP_S, WAIT_S, SLOW_WAIT_S = 0.050, 0.001, 0.030
START_NS = 5_000_000_000_000


@dataclass(frozen=True, slots=True)
class Job:
    """The job whose recording is made: how many ranks and steps, and which rank reads slowly."""

    ranks: int
    steps: int
    slow: int


def ns(seconds: float) -> int:
    return START_NS + round(seconds * 1e9)


def main_records(journal: Journal, worker: int, job: Job, wait_s: float) -> None:
    """Write what the training process of one rank does: all ranks step together, so that none is ahead."""
    facts = {
        "name": "train_loader",
        "where": "/home/me/train.py:50",
        "num_workers": 1,
        "batch_size": 16,
        "prefetch_factor": 2,
        "in_order": True,
        "pin_memory": False,
        "dataset": "__main__.Images",
        "dataset_where": "/home/me/train.py:30",
    }
    journal.write(layout.ITERATOR, layout.ANEW, 1, 1, ns(0), ns(0.1), journal.text(json.dumps(facts)), 0, 0)
    journal.write(layout.WORKER, 0, 0, 0, 0, 0, 1, worker)
    now, cpu = 0.1, 0
    for step in range(job.steps):
        # A little uneven, as steps are; the same for all ranks.
        wait = wait_s * (1 + 0.1 * (step % 3))
        busy = round((STEP_S - WAIT_S) * 1e9)
        journal.write(
            layout.TAKE, 1, 1, 1, ns(now), ns(now + wait), 0, 0, cpu, cpu, cpu, cpu, 0, step, 0, 0, 1, round(wait * 1e9)
        )
        now, cpu = now + STEP_S + SLOW_WAIT_S, cpu + busy
    journal.write(layout.END, 0, 0, 1, ns(now), ns(now), 0, cpu, cpu)


def worker_records(journal: Journal, job: Job, blocked_s: float) -> None:
    """Write what the worker of one rank does: it reads, blocked, and computes for 5 ms."""
    for task in range(job.steps):
        wall, begun = 0.005 + blocked_s, 0.1 + task * (STEP_S + SLOW_WAIT_S)
        spent = (round(0.005 * 1e9), 0, 0, 0, 0, 0, 0, round(wall * 1e9), 0, 1)
        journal.write(layout.FETCH, 0, 16, 0, task, ns(begun), ns(begun + wall), ns(begun + wall), *spent)


def body(folder: Path, write: Any) -> bytes:
    """Return what a journal holds below its header."""
    path = folder / "model.lpj"
    write(Journal(str(path), {}))
    raw = path.read_bytes()[layout.HEADER_BYTES :].rstrip(b"\0")
    path.unlink()
    return raw + b"\0" * (-len(raw) % layout.RECORD_BYTES)


def put(folder: Path, header: dict[str, Any], records: bytes) -> None:
    path = folder / files.JOURNALS / f"{header['host']}-{header['pid']}-1.lpj"
    os.close(Journal(str(path), header)._fd)  # a thousand journals are open at once nowhere but here
    with open(path, "r+b") as file:
        file.seek(layout.HEADER_BYTES)
        file.write(records)
        file.truncate()


def make(folder: Path, job: Job) -> None:
    """Write the recording of a job."""
    patterns: dict[tuple[int, bool], tuple[bytes, bytes]] = {}
    for rank in range(job.ranks):
        node, local = divmod(rank, RANKS_A_NODE)
        home = folder / files.NODES / f"{node}-node{node}" if node else folder
        host, pid = f"node{node}", 1000 + 2 * local
        if not local:
            (home / files.JOURNALS).mkdir(parents=True)
            files.write_meta(home, _meta(host, job))
        slow = rank == job.slow
        if (local, slow) not in patterns:
            wait, blocked = (SLOW_WAIT_S, 0.070) if slow else (WAIT_S, 0.010)
            patterns[local, slow] = (
                body(home, lambda journal, pid=pid, wait=wait: main_records(journal, pid + 1, job, wait)),
                body(home, lambda journal, blocked=blocked: worker_records(journal, job, blocked)),
            )
        environment = {"RANK": str(rank), "LOCAL_RANK": str(local), "WORLD_SIZE": str(job.ranks)}
        facts = {"host": host, "python": "3.12.3", "torch": "2.7.1", "environment": environment}
        put(home, {"pid": pid, "ppid": 1, **facts}, patterns[local, slow][0])
        put(home, {"pid": pid + 1, "ppid": pid, "worker": 0, **facts}, patterns[local, slow][1])


def _meta(host: str, job: Job) -> dict[str, Any]:
    ended = 0.1 + job.steps * (STEP_S + SLOW_WAIT_S)
    return {
        "command": ["torchrun", "train.py"],
        "cwd": "/home/me",
        "host": host,
        "cpu_budget": {"cores": 64.0},
        "started_ns": START_NS,
        "started_unix_ns": 1_700_000_000_000_000_000,
        "ended_ns": ns(ended),
        "exit_code": 0,
    }


@dataclass(frozen=True, slots=True)
class Cost:
    """What a report took: seconds on the clock, seconds of CPU, and the most MiB that its process held."""

    wall_s: float
    cpu_s: float
    peak_mib: float
    output: str


def measure(folder: Path, *words: str) -> Cost:
    """Run `loaderprof report` and return what it took."""
    begun = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen([sys.executable, "-m", "loaderprof", "report", str(folder), *words], stdout=out)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        text = out.read()
    assert process.returncode == 0
    return Cost(time.perf_counter() - begun, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=10_000)
    options = parser.parse_args()
    job = Job(options.ranks, options.steps, slow=options.ranks * 3 // 4)
    with tempfile.TemporaryDirectory(prefix="many-ranks-") as folder:
        begun = time.perf_counter()
        make(Path(folder), job)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.lpj"))
        print(
            f"{job.ranks:,} ranks x {job.steps:,} steps: {size / 1e9:.2f} GB, made in {time.perf_counter() - begun:.0f} s"
        )
        for words in ((), ("--html", f"{folder}/page.html")):
            cost = measure(Path(folder), *words)
            print(cost.output)
            name = " ".join(("loaderprof report DIR", *(word for word in words[:1])))
            print(f"{name}: {cost.wall_s:.1f} s, {cost.cpu_s:.1f} s of CPU, peak {cost.peak_mib:.0f} MiB")


if __name__ == "__main__":
    main()
