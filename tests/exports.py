"""A recording that shows something in every form of export, and its exports."""

from __future__ import annotations

from pathlib import Path

from made import Fetch, Made, Plan, ns

from loaderprof.commands import export
from loaderprof.recording import reader

UNIX_NS = 1_790_000_000_123_456_789
WAIT_S, STEP_S, BATCHES = 0.004, 0.010, 40
PLAN = Plan(
    batches=BATCHES,
    wait=WAIT_S,
    step=STEP_S,
    workers=2,
    ready=1,
    startup=0.05,
    shutdown=0.02,
    fetch=Fetch(cpu=0.006, blocked=0.002, runq=0.001, collate=0.0005),
)


def recorded(folder: Path, ranks: int = 1, plan: Plan = PLAN) -> Path:
    made = Made(folder, started_unix_ns=UNIX_NS)
    ended = 0.0
    for rank in range(ranks):
        process = made.process(environment={"RANK": str(rank)}) if ranks > 1 else made.process()
        ended = made.loop(process, plan)
        made.stacks(process.pid, ["<module> (/home/me/train.py:50)", "step;odd (/home/me/a b.py:7)"], 30)
        made.stacks(process.pid, ["run (/lib/threading.py:9)"], 50, thread="QueueFeederThread")
    for second in range(4):
        made.host(float(second), busy=2.0 * second, job=[(process.pid, 1.5 * second)])
    made.lines.append({"t": ns(1.5), "gpu": [{"index": 0, "utilisation_percent": 37}]})
    return made.finish(ended)


def exported(folder: Path, name: str) -> bytes:
    return export.FORMATS[name].make(reader.read(folder))
