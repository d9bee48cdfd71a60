"""What it costs one worker, or the main process, to make batches.

Standard library only, Python >= 3.8: every worker imports this.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any, List, Optional, Tuple

from loaderprof.capture.hooks import describe, overhead
from loaderprof.capture.hooks.frames import unseen
from loaderprof.capture.hooks.kernel import IoStat, SchedStat, thread_usage
from loaderprof.capture.hooks.phases import COPY
from loaderprof.capture.hooks.process import process, stand_aside
from loaderprof.capture.hooks.stand_ins import FROM
from loaderprof.capture.hooks.timers import Timers
from loaderprof.recording import journal as layout
from loaderprof.recording.journal import Journal

_NOW = time.perf_counter_ns
_CPU = time.thread_time_ns
_IDENT = threading.get_ident
_PROCESS_CPU = time.process_time_ns
# Two snapshots and a record cost 14 us in a loop of their own and about 150 us between batches, which leave none of it
# in the processor's caches (docs/overhead.md); a batch too short to carry that at this share is measured one in K, unless
# it takes twice as long as usual and longer than this.
FETCH_COST_NS = 150_000
FETCH_BUDGET = 0.002
SLOW_FETCH_NS = 4_700_000
# Timing a batch per operator costs about 2 ms to begin and 1.6 us a call; DEPTH_BUDGET is its share of the time.
DEPTH_COST_NS, CALL_COST_NS = 2_000_000, 1_600
DEPTH_BUDGET = 0.001
# Unused time of that budget that may be saved up, so that several datasets can be timed one right after another.
DEPTH_SAVED_NS = 20_000_000_000
# Texts of a journal beyond which files of samples get no name: a long run would else write names for ever.
MAX_TEXTS = 1000
# 0, for our own tests: every batch but the first of a process.
DEPTH_PERIOD_NS = int(os.environ.get("LOADERPROF_DEPTH_PERIOD_NS", 1_000_000_000))


@unseen
def fetch_hook(original: Any) -> Any:
    def fetch(self: Any, possibly_batched_index: Any) -> Any:
        fetches = process.fetching.get(_IDENT()) if process.fetching else None
        if fetches is None or process.off:
            return original(self, possibly_batched_index)
        return fetches.fetch(original, self, possibly_batched_index)

    return fetch


class Fetches:
    """What it costs one worker (or the main process) to make batches: kernel counters around them, timers in some.

    A batch too short to carry two snapshots of its own is only clocked; its CPU time is in the next record, which
    then stands for several.
    """

    def __init__(self, worker: int, dataset: Any, collate: Any, iterator: int = 0) -> None:
        self.worker, self.iterator = worker, iterator
        self.timers = Timers(dataset, collate)
        self.stat, self.io, self.usage = SchedStat(), IoStat(), thread_usage()
        self.every = self.countdown = 1
        self.budget, self.keeps_all = overhead.allowed(FETCH_BUDGET), overhead.keeps_all()
        self.slow_ns = SLOW_FETCH_NS
        self.count = self.seen = self.wall_ns = 0
        # Nanoseconds and CPU of collating, of the last batch that was measured and not timed in depth.
        self.collated = [0, 0]
        self.dataset = id(dataset)
        self.depth_due = process.depth_due.get(self.dataset, 0)
        self.before: Optional[Tuple[int, ...]] = None
        self.pending: Optional[Tuple[int, ...]] = None
        self.samples = self.enter_ns = 0
        # The loop hands only its stamped batches to this hook, and all of those are measured.
        self.sparse = False

    @unseen
    def fetch(self, original: Any, fetcher: Any, index: Any) -> Any:
        """Fetch one batch through the original, recorded if it is this one's turn or took long."""
        if self.before is None:
            # In the main process counters run on through the step, so only this turn's batch can be measured.
            if self.worker < 0 and self.countdown > 1:
                self.countdown -= 1
                return original(fetcher, index)
            self.before = self._snapshot()
            if self.before is None:
                return original(fetcher, index)
        # The first batch of a process is its warm-up.
        due = self.seen > 0 and _NOW() >= max(self.depth_due, process.depth_free) and not process.tables
        if self.countdown > 1 and not due:
            return self._clocked(original, fetcher, index)
        collate, collated, table = fetcher.collate_fn, [0, 0], self._enter() if due else None
        fetcher.collate_fn = _timed_collate(collate, collated, table)
        threads = _threads_cpu()
        begun = _NOW()
        try:
            data = original(fetcher, index)
            done = _NOW()
        finally:
            fetcher.collate_fn = collate
            if table is not None:
                self.timers.__exit__()
                process.tables.pop(_IDENT(), None)
        self._add(begun, done)
        try:
            if table is None:
                self.collated = collated
            self._fetched(begun, done, max(0, _threads_cpu() - threads), table, index, data, collated)
        except Exception as error:
            stand_aside(error)
        return data

    @unseen
    def _clocked(self, original: Any, fetcher: Any, index: Any) -> Any:
        """Fetch a batch that the next record stands for too; one that took long has a record of its own."""
        begun = _NOW()
        data = original(fetcher, index)
        done = _NOW()
        self._add(begun, done)
        if done - begun > self.slow_ns:
            try:
                self._fetched(begun, done, -1, None, index, data, self.collated)
            except Exception as error:
                stand_aside(error)
        return data

    def _add(self, begun: int, done: int) -> None:
        self.count += 1
        self.wall_ns += done - begun
        self.countdown -= 1

    def put(self, task: int) -> None:
        """Journal the batch fetched last, now that it is handed over under its task number (-1: not known)."""
        if self.pending is None:
            return
        journal = process.open()
        pending, self.pending = self.pending, None
        if journal is not None:
            deep, begun, done, *rest = pending
            journal.write(layout.FETCH, deep, self.samples, self.worker, task, begun, done, _NOW(), *rest)

    def _snapshot(self) -> Optional[Tuple[int, ...]]:
        try:
            usage = self.usage()
            return _CPU(), self.stat.read(), *self.io.read(), usage.ru_majflt if usage else 0
        except Exception as error:
            stand_aside(error)
            return None

    def _enter(self) -> Any:
        try:
            begun = _NOW()
            table = process.tables[_IDENT()] = self.timers.__enter__()
            self.enter_ns = _NOW() - begun
            return table
        except Exception as error:
            self.timers.__exit__()
            self.depth_due = 1 << 62
            stand_aside(error)
            return None

    def _fetched(
        self, begun: int, done: int, threads_cpu: int, table: Any, index: Any, data: Any, collated: List[int]
    ) -> None:
        after = self._snapshot()
        if after is None:
            return
        cpu, runq, rchar, read, faults = (b - a for a, b in zip(self.before or after, after))
        self.samples = min(65535, len(index)) if hasattr(index, "__len__") else 1
        # Collating is timed in measured batches only; those in between are assumed to have taken as long.
        collate = [mine + usual * (self.count - 1) for mine, usual in zip(collated, self.collated)]
        self.pending = (
            table is not None,
            begun,
            done,
            cpu,
            runq,
            *collate,
            rchar,
            read,
            faults,
            self.wall_ns,
            threads_cpu,
            self.count,
        )
        self.seen += 1
        usual = self.wall_ns // self.count
        self.slow_ns = max(SLOW_FETCH_NS, 2 * usual)
        self.count = self.wall_ns = 0
        journal = process.open()
        if journal is None:
            return
        if table is not None or self.seen == 1:
            self._write_depth(journal, table, data)
        self.every = max(1, min(2000, int(FETCH_COST_NS / (self.budget * max(usual, 1)))), journal.pressure())
        if self.sparse or not DEPTH_PERIOD_NS or self.keeps_all:
            self.every = 1
        # A fixed stride could miss, or hit only, what recurs every K batches; a hash of the count varies it without an RNG.
        self.countdown = 1 + (self.seen * 2654435761 >> 8) % (2 * self.every - 1)
        # In a worker the time until the next batch is asked for is idle; in the main process it is the step's.
        self.before = after if self.worker >= 0 else None
        if self.worker < 0:
            self.put(-1)

    def _write_depth(self, journal: Journal, table: Any, data: Any) -> None:
        bytes_, tensors, leaves, floats = describe.size(data)
        percent = 100 * floats // bytes_ if bytes_ else 0
        journal.write(layout.SIZE, 0, percent, self.worker, -1, bytes_, tensors, leaves, self.samples, self.iterator)
        if table is None:
            journal.write(layout.SETUP, 0, 0, self.worker, *describe.may_use())
            return
        begun, number = _NOW(), self.seen
        for collating, rows in enumerate((table.rows, table.collate_rows)):
            for name, (calls, wall_ns, cpu_ns) in rows.items():
                if calls:
                    journal.write(
                        layout.OPERATOR,
                        collating,
                        0,
                        self.worker,
                        number,
                        journal.text(name.partition(FROM)[0]),
                        calls,
                        wall_ns,
                        cpu_ns,
                        self.samples,
                        journal.text(table.callers.get(name, "")),
                        self.iterator,
                    )
        for position, (key, sample_wall, sample_cpu, file) in enumerate(table.samples):
            journal.write(
                layout.SAMPLE,
                0,
                0,
                self.worker,
                number,
                position,
                key,
                sample_wall,
                sample_cpu,
                self.iterator,
                journal.text(file, MAX_TEXTS) if file else 0,
            )
        now, calls_ns = _NOW(), table.calls * CALL_COST_NS
        self.depth_due = process.depth_due[self.dataset] = now + max(DEPTH_PERIOD_NS, earned_ns(calls_ns))
        spent = calls_ns + self.enter_ns + now - begun
        process.depth_free = max(process.depth_free, now - DEPTH_SAVED_NS) + earned_ns(spent)


def earned_ns(spent: int) -> int:
    """Return the nanoseconds that a job must run to pay for `spent` nanoseconds of timing per operator."""
    return min(int(spent / overhead.allowed(DEPTH_BUDGET)), 600 * DEPTH_PERIOD_NS)


def _threads_cpu() -> int:
    """Return the CPU time so far of this process's other threads."""
    return _PROCESS_CPU() - _CPU()


@unseen
def _timed_collate(collate: Any, spent: List[int], table: Any) -> Any:
    def timed_collate(samples: Any) -> Any:
        if table is not None:
            table.collating = True
        cpu, wall = _CPU(), _NOW()
        try:
            return collate(samples)
        finally:
            spent[0] += _NOW() - wall
            spent[1] += _CPU() - cpu
            if table is not None:
                table.collating = False

    return timed_collate


def stage_begins(name: str) -> Any:
    """Begin a stage named by hand, where the batch or step under way is timed in depth; return what `stage_ends` takes."""
    table = process.tables.get(_IDENT())
    if table is not None:
        return table, table.begin_stage(name)
    step = process.step
    if step is None or name != "copy":
        return None
    step.enter(COPY)
    return step, COPY


def stage_ends(begun: Any) -> None:
    """End a stage named by hand."""
    if begun is not None:
        begun[0].end_stage(begun[1])
