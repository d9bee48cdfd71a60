"""One iterator's record: when its loop asked for each batch and had it, and how many batches stood ready.

Every batch of a slow loop has a record of its own; a quick loop's are summed, so that recording them costs next to
nothing. Standard library only, Python >= 3.8: every worker imports this.
"""

from __future__ import annotations

import threading
import time
from typing import Any, List, Optional, Sequence

from loaderprof.capture.hooks import describe, failures, overhead, phases
from loaderprof.capture.hooks.fetches import DEPTH_COST_NS, DEPTH_PERIOD_NS, Fetches, earned_ns
from loaderprof.capture.hooks.frames import unseen
from loaderprof.capture.hooks.kernel import SchedStat
from loaderprof.capture.hooks.process import (
    INDEX,
    RECEIVE,
    RECEIVE_CPU,
    close_account,
    is_the_jobs,
    open_account,
    process,
    stand_aside,
)
from loaderprof.capture.hooks.steps import DeviceClock
from loaderprof.recording import journal as layout

_NOW = time.perf_counter_ns
_CPU = time.thread_time_ns
_PROCESS_CPU = time.process_time_ns
_IDENT = threading.get_ident
# CPU that a stamped batch (one with a record of its own) and the sum after it cost the loop's process: where workers make
# the batch, and where this process does (docs/overhead.md). Where that is more than STAMP_MOST of a batch, batches are
# stamped only as often as STAMP_BUDGET allows, and those in between share one record.
STAMP_NS, STAMP_OWN_NS = 150_000, 200_000
STAMP_MOST, STAMP_BUDGET = 0.03, 0.002
# Batches of a loader that are stamped before any are summed; then at least so many at the start of each epoch, where
# workers fill the prefetch queue (FIRST: with workers, FIRST_OWN: without).
LEARNT, FIRST, FIRST_OWN = 64, 8, 2
# A loop's pace is a decaying average: once it covers more batches than this, older ones count for half.
FORGOTTEN = 2000


class Iteration:
    """One iterator's stamps: when each batch was asked for and taken, and what stood ready."""

    fetches: Optional["Fetches"]

    def __init__(self, iterator: Any, loader: Any, begun: int, cpu_ns: int, index_ns: int) -> None:
        with process.lock:
            process.iterators += 1
            self.number = process.iterators
        journal = process.open()
        if journal is None:
            raise RuntimeError("no journal")
        self.journal = journal
        workers = getattr(iterator, "_workers", None) or ()
        if iterator is None:
            # A watched iterable has no loader; what is known of it is recorded in the loader's place.
            flags = layout.WATCHED
            self.loader, self.fetches = journal.text(loader[1]), Fetches(-1, loader[0], None, self.number)
        else:
            flags = 0 if process.knows(loader) else layout.ANEW
            self.loader = process.loader(journal, loader, iterator)
            self.fetches = None if workers else Fetches(-1, loader.dataset, loader.collate_fn, self.number)
            due = process.depth_due
            if len(due) > 1000:
                due.clear()
            if workers and not process.resting and _NOW() >= due.get(id(loader.dataset), 0):
                # The workers of this epoch are forked already and are timed per operator; those of the next epochs are not due.
                due[id(loader.dataset)] = _NOW() + max(DEPTH_PERIOD_NS, earned_ns(DEPTH_COST_NS))
        self.queue = getattr(iterator, "_data_queue", None)
        self.stat = SchedStat()
        self.device = DeviceClock()
        self.phases = phases.Phases(self.number)
        # Before the first step, so that a compiled one is compiled with the hooks in place.
        phases.install()
        # A loop that was left early never ended its last step.
        process.step = None
        self.workers = [worker.pid for worker in workers if worker.pid]
        self.pace = process.paces.setdefault(self.loader, [0, 0])
        # Nanoseconds for which batches are summed after a stamped one (0: not at all); batches stamped in this epoch.
        self.sums = self.stamped = 0
        # As a multiple of the usual budget (`--max-overhead`).
        self.budget, self.keeps_all = overhead.allowed(1.0), overhead.keeps_all()
        # When the last stamped batch (or the first of the last sum) was asked for, and the number of batches since.
        self.t_stamped, self.between = 0, 1
        self._clear()
        journal.write(layout.ITERATOR, flags, len(workers), self.number, begun, _NOW(), self.loader, cpu_ns, index_ns)
        for number, worker in enumerate(() if process.resting else workers):
            journal.write(layout.WORKER, 0, 0, number, 0, 0, self.number, worker.pid or 0)

    @classmethod
    def of_iterable(cls, iterable: Any, facts: str, begun: int, cpu_ns: int) -> "Iteration":
        """Return the iteration of something that is no DataLoader."""
        return cls(None, (iterable, facts), begun, cpu_ns, 0)

    def _clear(self) -> None:
        # `until`: the time at which the sum that has begun is closed.
        self.until = self.count = self.wait_ns = self.t_first = self.t_last = 0
        self.before = (0, 0, 0)

    def restarted(self, begun: int, cpu_ns: int, index_ns: int) -> None:
        """Note that an epoch began on workers that are kept."""
        process.step = None
        # Batches summed before the loop left the last epoch belong to that epoch.
        self._flush()
        self.stamped = self.t_stamped = self.sums = 0
        self.journal.write(layout.ITERATOR, 1, 0, self.number, begun, _NOW(), self.loader, cpu_ns, index_ns)

    @unseen
    def take(self, iterator: Any, original: Any) -> Any:
        """Take one batch through the original, with its stamps or, where it is too quick for these, summed with others."""
        if process.step is not None:
            self._ends_step()
        asked = _NOW()
        if not self.sums or (self.count and asked >= self.until):
            return self._take_stamped(iterator, original)
        if not self.count:
            self._open()
            self.t_first = asked = _NOW()
            self.until = asked + self.sums
        try:
            data = original(iterator)
        except BaseException as error:
            self.ended(asked, error)
            raise
        self.t_last = taken = _NOW()
        self.wait_ns += taken - asked
        self.count += 1
        return data

    @unseen
    def _take_stamped(self, iterator: Any, original: Any) -> Any:
        self._flush()
        thread, (before, spent) = _IDENT(), open_account()
        # A dataset may iterate a loader of its own: what was set for this thread before comes back afterwards.
        outer = process.fetching.get(thread)
        if self.fetches is not None:
            process.fetching[thread] = self.fetches
        ready = self._asked()
        process_cpu, cpu, asked = _PROCESS_CPU(), _CPU(), _NOW()
        try:
            data = original(iterator)
        except BaseException as error:
            self.ended(asked, error)
            raise
        finally:
            close_account(before)
            if outer is not None:
                process.fetching[thread] = outer
            elif self.fetches is not None:
                process.fetching.pop(thread, None)
        taken = _NOW()
        try:
            self.device.taken(self.journal, self.number)
            self._taken(iterator, ready, asked, taken, cpu, process_cpu, spent)
            self.phases.taken(self.journal, self.pace, data)
        except Exception as error:
            stand_aside(error)
        return data

    def _ends_step(self) -> None:
        try:
            phases.ask(self.journal)
        except Exception as error:
            stand_aside(error)

    def _asked(self) -> int:
        try:
            self.device.asked()
            return self._ready()
        except Exception as error:
            stand_aside(error)
            return -1

    def _taken(
        self, iterator: Any, ready: int, asked: int, taken: int, cpu: int, process_cpu: int, spent: List[int]
    ) -> None:
        parked = 0
        if taken - asked > 1_000_000 and self.queue is not None:
            # A later batch in hand while the loop waited for an earlier one: head-of-line blocking.
            parked = sum(len(info) == 2 for info in list(getattr(iterator, "_task_info", {}).values()))
        task = getattr(iterator, "_rcvd_idx", 0) - 1 if getattr(iterator, "_in_order", True) else -1
        self.journal.write(
            layout.TAKE,
            describe.gradients(),
            ready + 1,
            self.number,
            asked,
            taken,
            spent[INDEX],
            parked,
            cpu,
            _CPU(),
            process_cpu,
            _PROCESS_CPU(),
            self.stat.read(),
            task,
            spent[RECEIVE],
            spent[RECEIVE_CPU],
            1,
            taken - asked,
        )
        self._pace(asked)

    def _pace(self, asked: int) -> None:
        """Decide how long batches are summed before the next one is stamped, by how quickly they follow one another."""
        self.stamped += 1
        pace, pressure = self.pace, self.journal.pressure()
        if self.t_stamped:
            pace[0] += self.between
            pace[1] += asked - self.t_stamped
            if pace[0] > FORGOTTEN:
                pace[:] = pace[0] // 2, pace[1] // 2
        self.t_stamped, self.between = asked, 1
        usual = pace[1] // max(1, pace[0])
        first = max(FIRST, 2 * len(self.workers)) if self.workers else FIRST_OWN
        self.sums = 0
        if pace[0] >= LEARNT and self.stamped >= first:
            cost = STAMP_NS if self.fetches is None else STAMP_OWN_NS
            self.sums = int(cost / (self.budget * STAMP_BUDGET)) if cost > self.budget * STAMP_MOST * usual else 0
        if pressure > 1:
            self.sums = max(self.sums, 2 * pressure * usual)
        if self.keeps_all:
            self.sums = 0
        if self.fetches is not None:
            self.fetches.sparse = self.sums > 0
            if self.fetches.sparse:
                self.fetches.countdown = 1

    def _open(self) -> None:
        """Note where a stamped step ended, before batches that are summed."""
        try:
            self.device.rests()
            self.before = (_CPU(), _PROCESS_CPU(), self.stat.read())
        except Exception as error:
            stand_aside(error)

    def _flush(self) -> None:
        try:
            if self.count:
                cpu, process_cpu, runq = self.before
                self.journal.write(
                    layout.TAKE,
                    describe.gradients(),
                    0,
                    self.number,
                    self.t_first,
                    self.t_last,
                    0,
                    0,
                    cpu,
                    _CPU(),
                    process_cpu,
                    _PROCESS_CPU(),
                    runq,
                    -1,
                    0,
                    0,
                    self.count,
                    self.wait_ns,
                )
                self.t_stamped, self.between = self.t_first, self.count
            # Also a sum that was opened but got no batch, because its first request met the end of the epoch.
            self._clear()
        except Exception as error:
            stand_aside(error)

    def ended(self, asked: int, error: BaseException) -> None:
        """Note that no batch came: the epoch is over, or the loader failed."""
        if process.off or self.journal is not process.journal:
            return
        self._flush()
        try:
            write_end(self.journal, self.number, asked, error, self.workers)
        except Exception as failure:
            # While we wrote, torch's SIGCHLD handler may have reported a killed worker.
            if is_the_jobs(failure):
                write_end(self.journal, self.number, asked, failure)
            stand_aside(failure)

    def _ready(self) -> int:
        try:
            return int(self.queue.qsize()) if self.queue is not None else -1
        except (NotImplementedError, OSError, ValueError):
            return -1  # macOS has no sem_getvalue; a closed queue has no size


def write_end(journal: Any, number: int, asked: int, error: BaseException, workers: Sequence[int] = ()) -> None:
    raised = 0 if isinstance(error, StopIteration) else 1
    known = failures.kind(error, workers) if raised else None
    journal.write(
        layout.END, 0, 0, number, asked, _NOW(), raised, _CPU(), _PROCESS_CPU(), journal.text(known) if known else 0
    )
