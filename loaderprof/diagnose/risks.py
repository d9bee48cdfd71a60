"""Risks: what did not limit this run but may end or slow the next one, each with its number.

They are foreseen from settings, from what was measured of batches and processes, and from the limits around the job.
Pure: no torch, no clock, no processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from loaderprof import formatting
from loaderprof.analyze.loop import Loop
from loaderprof.findings import Risk
from loaderprof.recording.reader import Recording

# Beyond these shares of shared memory, of available memory and of open files, a few workers or batches more exceed them.
SHM_SHARE, MEMORY_SHARE, FILES_SHARE = 0.8, 0.5, 0.7
# A process's descriptors beside those of its batches. By default, torch hands each tensor over as a descriptor.
BASE_DESCRIPTORS = 64


def risks_of(recording: Recording, loops: Sequence[Loop], budget: float) -> tuple[Risk, ...]:
    """Return the risks of a run.

    Args:
        recording: the run.
        loops: its loops.
        budget: cores that the job may use.
    """
    found = [
        *_workers_over_budget(recording, loops, budget),
        *_in_flight(recording, loops),
        *_open_files(recording, loops),
    ]
    for loop in loops:
        for rule in RULES:
            found.extend(rule(recording, loop))
    return tuple(found)


def _workers_over_budget(recording: Recording, loops: Sequence[Loop], budget: float) -> Iterator[Risk]:
    workers = sum(loop.num_workers for loop in loops)
    if workers <= budget:
        return
    text = f"{workers} workers over all loaders share a CPU budget of {budget:g} cores"
    limits = recording.meta.cpu_budget
    quota, logical = limits.cgroup_quota, limits.logical
    if quota is not None and logical is not None and quota <= budget < logical:
        text += f": a quota, where os.cpu_count() says {logical}"
    yield Risk("workers-over-budget", text, float(workers), "workers", budget)


def _in_flight(recording: Recording, loops: Sequence[Loop]) -> Iterator[Risk]:
    """Yield where the batches that workers hold ready may fill shared memory or memory."""
    sizes = recording.tables["size"]["bytes"]
    host = recording.host[-1] if recording.host else {}
    if not len(sizes):
        return
    batches = _outstanding(loops)
    in_flight = batches * float(np.median(sizes))
    shm = _number(host.get("shm"), "total")
    if shm is not None and in_flight > SHM_SHARE * shm:
        text = "batches in flight would fill /dev/shm: the job may die with a bus error"
        yield Risk("shared-memory", text, in_flight, "bytes", shm)
    memory = _number(host.get("memory"), "available")
    if memory is not None and in_flight > MEMORY_SHARE * memory:
        text = f"{batches} batches in flight take {formatting.size(in_flight)} where {formatting.size(memory)} of memory are available"
        yield Risk("memory", text, in_flight, "bytes", memory)


def _open_files(recording: Recording, loops: Sequence[Loop]) -> Iterator[Risk]:
    """Yield where one process comes close to its limit of descriptors, now or with every batch in flight handed over."""
    limit = recording.meta.open_files_limit
    if limit is None or limit <= 0:
        return
    seen = max((each.descriptors for each in recording.open_files), default=0)
    tensors = recording.tables["size"]["tensors"]
    handed = _outstanding(loops) * float(np.median(tensors)) + BASE_DESCRIPTORS if len(tensors) else 0.0
    worst = max(float(seen), handed)
    if worst > FILES_SHARE * limit:
        if seen >= handed:
            how = f"{seen} files are open in one process"
        else:
            batches = f"{_outstanding(loops)} batches in flight of {np.median(tensors):.0f} tensors"
            how = f"{batches} take {handed:.0f} open files"
        yield Risk("open-files", f"{how}, of {limit:g} allowed (ulimit -n)", worst, "files", float(limit))


def _few_shards(_: Recording, loop: Loop) -> Iterator[Risk]:
    shards = loop.facts.shards
    if shards is not None and 0 < shards < loop.num_workers:
        text = f"{loop.name} has {shards} shards for {loop.num_workers} workers: {loop.num_workers - shards} stay idle"
        yield Risk("few-shards", text, float(shards), "shards", float(loop.num_workers))


def _read_whole(_: Recording, loop: Loop) -> Iterator[Risk]:
    if loop.facts.iterable and loop.facts.splits is False and loop.num_workers > 1:
        text = (
            f"each of {loop.num_workers} workers goes through all of {loop.facts.dataset}, which never asks "
            f"get_worker_info(): every sample comes {loop.num_workers} times an epoch"
        )
        yield Risk("duplicated-stream", text, float(loop.num_workers), "times", 1.0)


def _shared_handle(_: Recording, loop: Loop) -> Iterator[Risk]:
    handle = loop.facts.handle
    if handle is not None and loop.num_workers and loop.facts.start_method in ("fork", None):
        text = f"a {handle} opened before the fork is shared by {loop.num_workers} workers: open it in the worker"
        yield Risk("handle-before-fork", text, float(loop.num_workers), "workers", 0.0)


def _unguarded(_: Recording, loop: Loop) -> Iterator[Risk]:
    if loop.facts.guarded is False and loop.num_workers:
        text = (
            f'the script has no `if __name__ == "__main__"`: started by spawn or forkserver, each of {loop.num_workers} '
            "workers would run it anew"
        )
        yield Risk("main-guard", text, float(loop.num_workers), "workers", 0.0)


RULES: tuple[Callable[[Recording, Loop], Iterator[Risk]], ...] = (_few_shards, _read_whole, _shared_handle, _unguarded)


def _outstanding(loops: Sequence[Loop]) -> int:
    return sum(loop.num_workers * int(loop.facts.prefetch_factor or 2) for loop in loops)


def _number(counters: Any, name: str) -> float | None:
    value = counters.get(name) if isinstance(counters, dict) else None
    return float(value) if isinstance(value, int | float) else None
