"""The machine around the job: its CPU budget, what other programs took of it, and what loaderprof itself cost.

Read from the supervisor's samples. Pure: no torch, no psutil, no clock.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from loaderprof import findings as results
from loaderprof.recording.reader import Recording

# Cores that other programs may take before a verdict is less sure, as a share of the budget.
DISTURBANCE = 0.2


def cpu_budget(recording: Recording) -> float:
    """Return the cores that the job may use; 1 where that was not recorded."""
    cores = recording.meta.cpu_budget.cores
    return float(cores) if cores is not None and cores > 0 else 1.0


# CPU seconds in the job that one record of each kind costs, reading its counters included: measured, see docs/overhead.md;
# a process, and one call of a timed operator.
RECORD_COST_S = {
    "take": 65e-6,
    "fetch": 150e-6,
    "size": 2e-3,
    "operator": 5e-6,
    "pickle": 10e-6,
    "phases": 100e-6,
    "sample": 5e-6,
    "node": 90e-6,
    "call": 40e-6,
}
PROCESS_COST_S, CALL_COST_S = 1.5e-3, 1.6e-6


def overhead(recording: Recording, duration_s: float | None) -> results.Overhead:
    """Return loaderprof's own cost: counted records times their measured cost, and the samplers' CPU as measured.

    Of many ranks most records were not kept in memory; they are not counted, and their cost is unknown.
    """
    if recording.others:
        return results.Overhead(None, recording.meta.sampler_cpu_s, None)
    calls = float(recording.tables["operator"]["calls"].sum()) * CALL_COST_S
    capture = calls + sum(len(recording.tables[kind]) * cost for kind, cost in RECORD_COST_S.items())
    capture += PROCESS_COST_S * len(recording.processes)
    sampler = recording.meta.sampler_cpu_s
    budget = cpu_budget(recording)
    share = (capture + (sampler or 0.0)) / (duration_s * budget) if duration_s else None
    return results.Overhead(round(capture, 4), sampler and round(sampler, 4), share and round(share, 5))


def busy_helpers(recording: Recording, producers: frozenset[int] = frozenset()) -> float | None:
    """Return cores that the job's processes besides its loops and their workers kept busy; None: not measured.

    Args:
        recording: the run.
        producers: processes of a pool that make a watched loop's batches.
    """
    watched = {process.pid for process in recording.processes} | producers
    lines = [line for line in recording.host if isinstance(line.get("processes"), list)]
    if len(lines) < 3 or not watched:
        return None
    used: dict[int, list[float]] = {}
    for line in lines:
        for entry in line["processes"]:
            if entry["pid"] not in watched:
                used.setdefault(entry["pid"], []).append(_spent(entry))
    seconds = (lines[-1]["t"] - lines[0]["t"]) / 1e9
    return sum(times[-1] - times[0] for times in used.values()) / seconds if seconds > 0 else None


def busy_others(recording: Recording) -> float | None:
    """Return cores that processes outside the job kept busy while it ran; None where it was not measured."""
    lines = [
        line for line in recording.host if isinstance(line.get("cpu"), dict) and isinstance(line.get("processes"), list)
    ]
    if len(lines) < 3:
        return None
    first, last = lines[1] if len(lines) > 4 else lines[0], lines[-1]
    seconds = (last["t"] - first["t"]) / 1e9
    busy = sum(float(last["cpu"].get(key, 0)) - float(first["cpu"].get(key, 0)) for key in ("user", "system", "nice"))
    mine = sum(used_s(before, after) for before, after in pairwise(lines) if before["t"] >= first["t"])
    return max(0.0, (busy - mine) / seconds) if seconds > 0 else None


def used_s(before: dict[str, Any], after: dict[str, Any]) -> float:
    """Return the CPU seconds that the job's processes used between two samples, those that ended meanwhile included.

    A process that ends leaves its CPU time to the one that waited for it. Recordings of earlier versions lack
    that: what a process used after its last sample is missing there.
    """
    entries = [*before["processes"], *after["processes"]]
    if all(isinstance(entry.get("children"), int | float) for entry in entries):
        return max(0.0, _inherited(after) - _inherited(before))
    known = {entry["pid"]: _spent(entry) for entry in before["processes"]}
    return sum(max(0.0, _spent(entry) - known.get(entry["pid"], 0.0)) for entry in after["processes"])


def _inherited(line: dict[str, Any]) -> float:
    return sum(_spent(entry) + float(entry["children"]) for entry in line["processes"])


def _spent(entry: dict[str, Any]) -> float:
    return float(entry["user"] + entry["system"])
