"""Recording -> Chrome trace: opens in Perfetto and chrome://tracing, and lies beside a torch.profiler trace.

One process lane a rank: its training loop is the main thread, each worker a thread, counters beside them. Names, clock
and header are those of torch.profiler, so that its readers find what they look for. Pure: no torch, no clock.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import count
from typing import Any

from loaderprof.analyze.loop import Loop
from loaderprof.analyze.timeline import Timeline, build
from loaderprof.recording.reader import Process, Recording
from loaderprof.report.pagedata import page_data
from loaderprof.report.sentences import script

# torch.profiler counts microseconds from the last multiple of this many seconds (kineto's ChromeTraceBaseTime), so
# that they fit into a double; the same base puts both traces on one clock.
QUARTER_S = 7_889_238
# Real thread numbers are larger than the lanes of workers: loop 2, worker 3 is lane 2004.
LANES = 1000
# A process lane of its own for what belongs to no rank.
MACHINE_PID = 0

Event = dict[str, Any]


def render(recording: Recording) -> str:
    """Return the trace as JSON, one event a line; times and durations are in microseconds."""
    timeline = build(recording)
    base, origin = _clock(recording)
    events = [json.dumps(event) for event in trace_events(recording, timeline, origin - base)]
    ranks = {process.rank or 0 for process in recording.processes if process.worker is None}
    # A reader of one rank's file (HTA) looks for `"rank": N`, with the space.
    head = {
        "schemaVersion": 1,
        "displayTimeUnit": "ms",
        "baseTimeNanoseconds": base,
        "deviceProperties": [],
        "distributedInfo": {"rank": min(ranks, default=0), "world_size": max(1, len(ranks))},
    }
    return json.dumps(head)[:-1] + ', "traceEvents": [\n' + ",\n".join(events) + "\n]}\n"


def _clock(recording: Recording) -> tuple[int, int]:
    """Return (base, origin of the timeline) in nanoseconds since 1970."""
    meta = recording.meta
    origin = meta.started_unix_ns
    if origin is None:
        moments = (process.header.unix_ns for process in recording.processes)
        origin = next((each for each in moments if each is not None), 0)
    base = origin // (QUARTER_S * 10**9) * QUARTER_S * 10**9
    return base, origin


def trace_events(recording: Recording, timeline: Timeline, shift_ns: int) -> Iterator[Event]:
    """Yield the events of a recording.

    Args:
        recording: what was seen.
        timeline: its loops, in seconds since the run began.
        shift_ns: from the trace's base to the run's beginning.
    """
    clock = _Clock(shift_ns)
    pids = _pids(timeline)
    command = recording.meta.command
    name = script(" ".join(map(str, command))) if isinstance(command, list) else "a job"
    for number, pid in pids.items():
        process = recording.processes[number]
        rank = "" if process.rank is None else f"rank {process.rank}: "
        yield from _named(pid, f"{rank}{name} ({process.host} {process.pid})", process.rank or 0)
        yield from _thread(pid, pid, "training loop", 0)
    for place, loop in enumerate(timeline.loops):
        yield from _loop_events(loop, place, pids[loop.process.number], clock)
    yield from _machine(recording, clock)


class _Clock:
    """Seconds of the timeline -> microseconds of the trace."""

    def __init__(self, shift_ns: int) -> None:
        self._shift_us = shift_ns / 1000

    def us(self, seconds: float) -> float:
        return round(self._shift_us + float(seconds) * 1e6, 3)


def _pids(timeline: Timeline) -> dict[int, int]:
    """Return each training process's lane, by its number: its process id, made unique where two hosts gave the same."""
    pids: dict[int, int] = {}
    for loop in timeline.loops:
        process: Process = loop.process
        if process.number not in pids:
            pid = process.pid
            while pid in pids.values():
                pid += 1 << 22  # above any process number of Linux
            pids[process.number] = pid
    return pids


def _named(pid: int, name: str, order: int) -> Iterator[Event]:
    yield {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": name}}
    yield {"ph": "M", "name": "process_sort_index", "pid": pid, "tid": 0, "args": {"sort_index": order}}


def _thread(pid: int, tid: int, name: str, order: int) -> Iterator[Event]:
    yield {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": name}}
    yield {"ph": "M", "name": "thread_sort_index", "pid": pid, "tid": tid, "args": {"sort_index": order}}


def _slice(name: str, category: str, lane: tuple[int, int], begun_us: float, length_s: float, args: Event) -> Event:
    return {
        "ph": "X",
        "cat": category,
        "name": name,
        "pid": lane[0],
        "tid": lane[1],
        "ts": begun_us,
        "dur": round(max(0.0, float(length_s)) * 1e6, 3),
        "args": args,
    }


def _loop_events(loop: Loop, place: int, pid: int, clock: _Clock) -> Iterator[Event]:
    main = (pid, pid if loop.main_thread else pid + place)
    if not loop.main_thread:
        yield from _thread(pid, main[1], f"loop over {loop.name}", place)
    yield from _epochs(loop, main, clock)
    yield from _steps(loop, main, clock)
    yield from _made(loop, place, pid, clock)


def _epochs(loop: Loop, main: tuple[int, int], clock: _Clock) -> Iterator[Event]:
    for number, epoch in enumerate(loop.epochs):
        args = {"loader": loop.name, "epoch": number}
        yield _slice(f"{loop.name}: start", "loaderprof", main, clock.us(epoch.begun), epoch.ready - epoch.begun, args)
        if epoch.ended is not None:
            begun = clock.us(epoch.ended - epoch.shutdown_s)
            yield _slice(f"{loop.name}: end", "loaderprof", main, begun, epoch.shutdown_s, args)


def _steps(loop: Loop, main: tuple[int, int], clock: _Clock) -> Iterator[Event]:
    """Yield a step's slice, with the waiting for its batch inside, and the batches that were ready when it asked."""
    iterator = "_MultiProcessingDataLoaderIter" if loop.num_workers else "_SingleProcessDataLoaderIter"
    asking = f"enumerate(DataLoader)#{iterator}.__next__"
    rows = zip(
        loop.asked.tolist(),
        loop.wait.tolist(),
        loop.step.tolist(),
        loop.ready.tolist(),
        loop.epoch.tolist(),
        loop.position.tolist(),
        loop.count.tolist(),
        strict=True,
    )
    done = count()
    for asked, wait, step, ready, epoch, position, batches in rows:
        begun, number = clock.us(asked), next(done)
        args = {"loader": loop.name, "epoch": epoch, "batch": position, "batches": batches}
        if loop.training and math.isfinite(step):
            yield _slice(f"ProfilerStep#{number}", "user_annotation", main, begun, wait + step, args)
        yield _slice(asking, "user_annotation", main, begun, wait, args)
        if ready >= 0:
            yield _counter(f"ready batches of {loop.name}", main[0], begun, "batches", ready)


def _made(loop: Loop, place: int, pid: int, clock: _Clock) -> Iterator[Event]:
    """Yield each batch in the thread lane of the worker that made it; without workers, in the loop's own."""
    made, lanes = loop.made, set()
    runq_known = "schedstat" not in loop.process.header.unread
    for row in range(len(made.wall)):
        worker = int(made.worker[row])
        tid = (place * LANES + worker + 1) if worker >= 0 else pid
        if worker >= 0 and tid not in lanes:
            lanes.add(tid)
            yield from _thread(pid, tid, f"{loop.name} worker {worker}", worker + 1)
        args = {
            "cpu_ms": _ms(made.cpu[row]),
            "blocked_ms": _ms(made.blocked[row]),
            "run_queue_ms": _ms(made.runq[row]) if runq_known else None,
            "collate_ms": _ms(made.collate[row]),
            "samples": int(made.samples[row]),
            "batch": int(made.task[row]),
            "epoch": int(made.epoch[row]),
            "pid": int(made.pid[row]),
        }
        name = f"batch {int(made.task[row])}"
        yield _slice(
            name, "loaderprof", (pid, tid), clock.us(made.begun[row]), float(made.done[row] - made.begun[row]), args
        )


def _ms(seconds: Any) -> float | None:
    value = float(seconds)
    return round(value * 1e3, 3) if math.isfinite(value) else None


def _machine(recording: Recording, clock: _Clock) -> Iterator[Event]:
    """Yield counters of the machine: CPU of the job in cores, each GPU's utilisation."""
    host = page_data(recording).host
    series = {name: (values, "percent") for name, values in host.gpu_percent.items()}
    if not len(host.t_s):
        return
    yield from _named(MACHINE_PID, "machine", 1 << 20)
    for moment, percent in zip(host.t_s, host.cpu_percent, strict=True):
        if moment is not None and percent is not None:
            yield _counter("CPU of the job", MACHINE_PID, clock.us(moment), "cores", round(float(percent) / 100, 3))
    for name, (values, unit) in series.items():
        for moment, value in zip(host.t_s, values, strict=True):
            if moment is not None and value is not None and math.isfinite(value):
                yield _counter(f"{name} utilisation", MACHINE_PID, clock.us(moment), unit, float(value))


def _counter(name: str, pid: int, moment_us: float, unit: str, value: float) -> Event:
    return {"ph": "C", "name": name, "pid": pid, "tid": 0, "ts": moment_us, "args": {unit: value}}
