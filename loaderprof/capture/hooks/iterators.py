"""The main process: when its loops ask a loader, or a watched iterable, for a batch, and when they have it.

Standard library only, Python >= 3.8: every worker imports this.
"""

from __future__ import annotations

import sys
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
# A stamped batch, with the sum of those after it, costs the loop's process about this much where workers make it, and
# where it is made there (docs/overhead.md). Where that would be more than this share of a batch, one is stamped each time
# that the budget allows it, and those between are summed: one record for all of them.
STAMP_NS, STAMP_OWN_NS = 150_000, 200_000
STAMP_MOST, STAMP_BUDGET = 0.03, 0.002
# So many of a loader's batches are stamped before any are summed, and so many at the beginning of each later epoch, in
# which workers catch up.
LEARNT, FIRST, FIRST_OWN = 64, 8, 2
# Of a pace, what was longer ago than some of these batches counts for half.
FORGOTTEN = 2000


@unseen
def iterator_init(original: Any) -> Any:
    def __init__(self: Any, loader: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        begun, cpu, outer, spent = _NOW(), _CPU(), *open_account()
        process.resting = process.rests()
        try:
            original(self, loader, *args, **kwargs)
        except BaseException as error:
            _failed(begun, error)
            raise
        finally:
            close_account(outer)
        if process.off or "_loaderprof" in self.__dict__ or _is_ahead(loader):
            return
        try:
            self._loaderprof = Iteration(self, loader, begun, _CPU() - cpu, spent[INDEX])
        except Exception as error:
            stand_aside(error)

    return __init__


def _is_ahead(loader: Any) -> bool:
    generators = sys.modules.get("loaderprof.capture.hooks.other_generators")
    return generators is not None and generators.is_ahead(loader)


@unseen
def reset(original: Any) -> Any:
    def _reset(self: Any, loader: Any, first_iter: bool = False, *args: Any, **kwargs: Any) -> Any:
        if first_iter:
            return original(self, loader, first_iter, *args, **kwargs)
        begun, cpu, outer, spent = _NOW(), _CPU(), *open_account()
        try:
            result = original(self, loader, first_iter, *args, **kwargs)
        finally:
            close_account(outer)
        iteration = self.__dict__.get("_loaderprof")
        if iteration is not None and not process.off:
            try:
                iteration.restarted(begun, _CPU() - cpu, spent[INDEX])
            except Exception as error:
                stand_aside(error)
        return result

    return _reset


@unseen
def next_data(original: Any) -> Any:
    def _next_data(self: Any) -> Any:
        iteration = self.__dict__.get("_loaderprof")
        if iteration is None:
            return original(self)
        # The way of most batches of a quick loop, so it is all here. One that is inherited over a fork, or that goes on
        # where capture has ended, sums up what nobody writes.
        asked = _NOW()
        if asked >= iteration.until or process.step is not None:
            if process.off or iteration.journal is not process.journal:
                return original(self)
            return iteration.take(self, original)
        try:
            data = original(self)
        except BaseException as error:
            iteration.ended(asked, error)
            raise
        iteration.t_last = taken = _NOW()
        iteration.wait_ns += taken - asked
        iteration.count += 1
        return data

    return _next_data


@unseen
def next_index(original: Any) -> Any:
    def _next_index(self: Any) -> Any:
        spent = process.spending.get(_IDENT()) if process.spending else None
        if spent is None:
            return original(self)
        begun = _NOW()
        try:
            return original(self)
        finally:
            spent[INDEX] += _NOW() - begun

    return _next_index


def _failed(begun: int, error: BaseException) -> None:
    """Note that no iterator could be made."""
    try:
        journal = process.open()
        if journal is not None:
            _write_end(journal, 0, begun, error)
    except Exception as failure:
        stand_aside(failure)


def _write_end(journal: Any, number: int, asked: int, error: BaseException, workers: Sequence[int] = ()) -> None:
    raised = 0 if isinstance(error, StopIteration) else 1
    known = failures.kind(error, workers) if raised else None
    journal.write(
        layout.END, 0, 0, number, asked, _NOW(), raised, _CPU(), _PROCESS_CPU(), journal.text(known) if known else 0
    )


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
            # A watched iterable: its facts stand for the loader's.
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
                # These workers, forked before this, are timed in depth; those of the epochs right after are not.
                due[id(loader.dataset)] = _NOW() + max(DEPTH_PERIOD_NS, earned_ns(DEPTH_COST_NS))
        self.queue = getattr(iterator, "_data_queue", None)
        self.stat = SchedStat()
        self.device = DeviceClock()
        self.phases = phases.Phases(self.number)
        # Before the first step, so that a compiled one is compiled with the hooks in place.
        phases.install()
        # A loop that was left has no end of its last step.
        process.step = None
        self.workers = [worker.pid for worker in workers if worker.pid]
        self.pace = process.paces.setdefault(self.loader, [0, 0])
        # How long batches are summed after a stamped one, 0 for not at all; how many have been stamped in this epoch.
        self.sums = self.stamped = 0
        # In times the usual budget.
        self.budget, self.keeps_all = overhead.allowed(1.0), overhead.keeps_all()
        # When the last stamped batch, or the first of those summed, was asked for, and how many batches ago that is.
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
        # `until`: when the sum that has begun ends.
        self.until = self.count = self.wait_ns = self.t_first = self.t_last = 0
        self.before = (0, 0, 0)

    def restarted(self, begun: int, cpu_ns: int, index_ns: int) -> None:
        """Note that an epoch began on workers that are kept."""
        process.step = None
        # What was summed before the loop left the last epoch is that epoch's.
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
                self._clear()
        except Exception as error:
            stand_aside(error)

    def ended(self, asked: int, error: BaseException) -> None:
        """Note that no batch came: the epoch is over, or the loader failed."""
        if process.off or self.journal is not process.journal:
            return
        self._flush()
        try:
            _write_end(self.journal, self.number, asked, error, self.workers)
        except Exception as failure:
            # Meanwhile torch may have told which worker was killed.
            if is_the_jobs(failure):
                _write_end(self.journal, self.number, asked, failure)
            stand_aside(failure)

    def _ready(self) -> int:
        try:
            return int(self.queue.qsize()) if self.queue is not None else -1
        except (NotImplementedError, OSError, ValueError):
            return -1  # macOS has no sem_getvalue; a closed queue has no size


class Watched:
    """An iterable that is no DataLoader, recorded as a loader without workers; made by `loaderprof.watch`."""

    def __init__(self, iterator: Any, iteration: Optional["Iteration"]) -> None:
        self.collate_fn = None
        self._iterator = iterator
        self._loaderprof = iteration

    @classmethod
    def begin(cls, iterable: Any, name: str) -> Optional["Watched"]:
        """Return the watched iterator, None where nothing is recorded."""
        if process.off:
            return None
        begun, cpu = _NOW(), _CPU()
        iterator = iter(iterable)
        try:
            facts = describe.watched(iterable, name)
            return cls(iterator, Iteration.of_iterable(iterable, facts, begun, _CPU() - cpu))
        except Exception as error:
            stand_aside(error)
            return cls(iterator, None)

    def __iter__(self) -> "Watched":
        return self

    @unseen
    def __next__(self) -> Any:
        iteration = self._loaderprof
        if iteration is None or process.off or iteration.journal is not process.journal:
            return next(self._iterator)
        return iteration.take(self, next_watched)

    @unseen
    def pull(self, _: Any = None) -> Any:
        """Take the next item of what is watched."""
        return next(self._iterator)


@unseen
def next_watched(watched: Any) -> Any:
    """Take an item by its `pull`, as a batch that this process makes."""
    fetches = process.fetching.get(_IDENT())
    if fetches is None:
        return watched.pull()
    return fetches.fetch(type(watched).pull, watched, None)
