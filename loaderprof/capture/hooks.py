"""The hooks in the job: DataLoader iterators in the main process, and the loop of every worker.

`patch(module)` is called right after one of `PATCHED_MODULES` was imported. It replaces a few functions at class or
module level; no type, object or argument that the user can see changes. Each hook calls the original exactly once,
returns what it returned and raises what it raised; whatever of ours fails is caught, says one line on stderr and
takes capture out of the job (`_stand_aside`). Hooks store numbers in this process's journal and conclude nothing.

Standard library only, Python >= 3.8: every worker imports this.
"""

from __future__ import annotations

import functools
import json
import mmap
import os
import sys
import threading
import time
import weakref
from typing import Any, Callable, Dict, List, Optional, Tuple

from loaderprof import journal as layout
from loaderprof.capture import describe, settings
from loaderprof.capture.kernel import IoStat, SchedStat, thread_usage
from loaderprof.capture.steps import DeviceClock
from loaderprof.capture.timers import FROM, Timers
from loaderprof.capture.unseen import unseen
from loaderprof.journal import Journal

TORCH = "torch.utils.data.dataloader"
STATEFUL = "torchdata.stateful_dataloader.stateful_dataloader"
PATCHED_MODULES = (TORCH, STATEFUL)

_NOW = time.perf_counter_ns
_CPU = time.thread_time_ns
_PROCESS_CPU = time.process_time_ns

# Two snapshots and a record cost 14 us in a loop of their own and about 30 us between batches, which leave none of it
# in the processor's caches (tests/benchmarks/overhead.py); a batch too short to carry that at this share is
# measured one in K.
FETCH_COST_NS = 30_000
FETCH_BUDGET = 0.003
LONG_FETCH_NS = 4_700_000
# Below this a loop's batches are summed, one record for `GROUP` of them.
FAST_LOOP_NS = 400_000
GROUP = 64
# A batch timed in depth costs about 1.6 us a call; so much of the time may go into it.
CALL_COST_NS = 1_600
DEPTH_BUDGET = 0.002
# 0, for our own tests: every batch but the first of a process.
DEPTH_PERIOD_NS = int(os.environ.get("LOADERPROF_DEPTH_PERIOD_NS", 1_000_000_000))


class _Process:
    """What this process knows of the recording; forgotten and made anew in a forked child."""

    def __init__(self) -> None:
        self.directory = os.environ.get("LOADERPROF_JOURNALS") or None
        self.lock = threading.RLock()
        self.journal: Optional[Journal] = None
        self.header: Dict[str, Any] = {}
        self.iterators = 0
        self.loaders: Dict[int, Tuple[Any, int]] = {}
        self.described: Dict[str, List[Tuple[Any, int]]] = {}
        self.fetching: Dict[int, "_Fetches"] = {}
        self.spending: Dict[int, List[int]] = {}
        self.tables: Dict[int, Any] = {}
        # When a dataset (by id) is due to be timed in depth again: short epochs share what may go into it.
        self.depth_due: Dict[int, int] = {}
        self.off = self.directory is None

    def open(self) -> Optional[Journal]:
        """Return this process's journal, made on first use; None where capture is off."""
        if self.journal is None and not self.off:
            with self.lock:
                if self.journal is None and not self.off:
                    try:
                        name = "%s-%d-%d.lpj" % (describe.host(), os.getpid(), _NOW())
                        path = os.path.join(self.directory or "", name)
                        self.journal = Journal(path, dict(describe.process(), **self.header))
                    except Exception as error:
                        _stand_aside(error)
        return self.journal

    def loader(self, journal: Journal, loader: Any, iterator: Any) -> int:
        """Return the number of the text that describes a loader; one that took the place of another keeps its text."""
        known = self.loaders.get(id(loader))
        if known is not None and known[0]() is loader:
            return known[1]
        with self.lock:
            facts = describe.loader(loader, iterator)
            same = self.described.setdefault(json.dumps(facts), [])
            number = next((text for held, text in same if held() is None), 0)
            if not number:
                count = sum(map(len, self.described.values()))
                facts["name"] = facts["name"] or "loader%d" % (count + 1)
                number = journal.text(json.dumps(dict(facts, number=count)))
            entry = (_weak(loader), number)
            same[:] = [each for each in same if each[1] != number] + [entry]
            self.loaders = {key: each for key, each in self.loaders.items() if each[0]() is not None}
            self.loaders[id(loader)] = entry
        return number


def _weak(item: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(item)
    except TypeError:
        return lambda: None


_process = _Process()
# Set once a line was written on stderr; shared with forked workers, which fail for the same reason.
_said = mmap.mmap(-1, 1)


def _after_fork() -> None:
    global _process
    parent, _process = _process, _Process()
    _process.directory, _process.off, _process.depth_due = parent.directory, parent.off, dict(parent.depth_due)
    # A batch timed in depth is its parent's; functions put back twice are put back once.
    for fetches in set(parent.fetching.values()):
        fetches.timers.__exit__()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _stand_aside(error: BaseException) -> None:
    """Take capture out of this process, saying so once."""
    if not _process.off:
        _process.off = True
        if _said[0]:
            return
        _said[0] = 1
        try:
            sys.stderr.write("loaderprof: capture stopped, training goes on: %s: %s\n" % (type(error).__name__, error))
        except Exception:
            return


def begin(directory: str) -> None:
    """Start capture in this process into `directory`, also for loaders imported already."""
    _process.directory, _process.off, _process.journal = directory, False, None
    for name in PATCHED_MODULES:
        if name in sys.modules:
            patch(name)


def end() -> None:
    """Stop capture in this process; the hooks stay, and do nothing but call the originals."""
    _process.off, _process.journal = True, None


def patch(module_name: str) -> None:
    """Install the hooks of one imported module; once a process, and only where its shape is the known one."""
    module = sys.modules[module_name]
    if getattr(module, "_loaderprof_patched", False):
        return
    module._loaderprof_patched = True  # type: ignore[attr-defined]
    settings.install(module)
    if module_name == TORCH and os.environ.get("LOADERPROF_TUNE"):
        from loaderprof.capture import windows

        windows.install(module)
    try:
        replaced = _replacements(module_name, module)
    except (AttributeError, KeyError) as error:
        _stand_aside(RuntimeError("this torch has another DataLoader than the ones known here (no %s)" % error))
        return
    for owner, name, value in replaced:
        setattr(owner, name, value)
    if module_name == TORCH:
        _patch_pickler()


def _replacements(module_name: str, module: Any) -> List[Tuple[Any, str, Any]]:
    """Return (owner, name, hook) of all that is to be replaced; raises where a name is missing, before anything is."""
    prefix = "_Stateful" if module_name == STATEFUL else "_"
    base = getattr(module, prefix + "BaseDataLoaderIter")
    single = getattr(module, prefix + "SingleProcessDataLoaderIter")
    several = getattr(module, prefix + "MultiProcessingDataLoaderIter")
    replaced = [_wrapped(several, "_reset", _reset)]
    for iterator in (single, several):
        replaced += [_wrapped(iterator, "__init__", _iterator_init), _wrapped(iterator, "_next_data", _next_data)]
    if "_next_index" in base.__dict__:
        replaced.append(_wrapped(base, "_next_index", _next_index))
    if module_name == STATEFUL:
        return [*replaced, (module, "_worker_loop", WorkerEntry(STATEFUL, module._worker_loop))]
    utils = module._utils
    for name in ("_MapDatasetFetcher", "_IterableDatasetFetcher"):
        replaced.append(_wrapped(getattr(utils.fetch, name), "fetch", _fetch))
    pin_loop = utils.pin_memory._pin_memory_loop
    return [
        *replaced,
        (utils.worker, "_worker_loop", WorkerEntry(TORCH, utils.worker._worker_loop)),
        (utils.pin_memory, "_pin_memory_loop", _pin_loop(pin_loop)),
    ]


def _wrapped(owner: Any, name: str, hook: Callable[[Any], Any]) -> Tuple[Any, str, Any]:
    original = owner.__dict__[name]
    return owner, name, functools.wraps(original)(hook(original))


@unseen
def _iterator_init(original: Any) -> Any:
    def __init__(self: Any, loader: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        begun, cpu, outer, spent = _NOW(), _CPU(), *_spending()
        try:
            original(self, loader, *args, **kwargs)
        finally:
            _spent(outer)
        if _process.off or "_loaderprof" in self.__dict__:
            return
        try:
            self._loaderprof = _Iteration(self, loader, begun, _CPU() - cpu, spent[INDEX])
        except Exception as error:
            _stand_aside(error)

    return __init__


@unseen
def _reset(original: Any) -> Any:
    def _reset(self: Any, loader: Any, first_iter: bool = False, *args: Any, **kwargs: Any) -> Any:
        if first_iter:
            return original(self, loader, first_iter, *args, **kwargs)
        begun, cpu, outer, spent = _NOW(), _CPU(), *_spending()
        try:
            result = original(self, loader, first_iter, *args, **kwargs)
        finally:
            _spent(outer)
        iteration = self.__dict__.get("_loaderprof")
        if iteration is not None and not _process.off:
            try:
                iteration.restarted(begun, _CPU() - cpu, spent[INDEX])
            except Exception as error:
                _stand_aside(error)
        return result

    return _reset


@unseen
def _next_data(original: Any) -> Any:
    def _next_data(self: Any) -> Any:
        iteration = self.__dict__.get("_loaderprof")
        # An iterator inherited over a fork has its parent's journal, which is not this process's to write.
        if iteration is None or _process.off or iteration.journal is not _process.journal:
            return original(self)
        return iteration.take(self, original)

    return _next_data


@unseen
def _next_index(original: Any) -> Any:
    def _next_index(self: Any) -> Any:
        spent = _process.spending.get(threading.get_ident())
        if spent is None:
            return original(self)
        begun = _NOW()
        try:
            return original(self)
        finally:
            spent[INDEX] += _NOW() - begun

    return _next_index


# What a thread spends inside the loader while it asks for a batch, in nanoseconds.
RECEIVE, RECEIVE_CPU, INDEX = range(3)


def _spending() -> Tuple[Optional[List[int]], List[int]]:
    """Open an account of what this thread is about to spend inside a loader; return the one before it and the new one."""
    accounts, thread = _process.spending, threading.get_ident()
    outer = accounts.get(thread)
    spent = accounts[thread] = [0, 0, 0]
    return outer, spent


def _spent(outer: Optional[List[int]]) -> None:
    """Close the account: a dataset may iterate a loader of its own, inside another's."""
    if outer is None:
        _process.spending.pop(threading.get_ident(), None)
    else:
        _process.spending[threading.get_ident()] = outer


class _Iteration:
    """One iterator's stamps: when each batch was asked for and taken, and what stood ready."""

    fetches: Optional["_Fetches"]

    def __init__(self, iterator: Any, loader: Any, begun: int, cpu_ns: int, index_ns: int) -> None:
        with _process.lock:
            _process.iterators += 1
            self.number = _process.iterators
        journal = _process.open()
        if journal is None:
            raise RuntimeError("no journal")
        self.journal = journal
        workers = getattr(iterator, "_workers", None) or ()
        if iterator is None:
            # A watched iterable: its facts stand for the loader's.
            self.loader, self.fetches = journal.text(loader[1]), _Fetches(-1, loader[0], None)
        else:
            self.loader = _process.loader(journal, loader, iterator)
            self.fetches = None if workers else _Fetches(-1, loader.dataset, loader.collate_fn)
            due = _process.depth_due
            if len(due) > 1000:
                due.clear()
            if workers and _NOW() >= due.get(id(loader.dataset), 0):
                # These workers, forked before this, are timed in depth; those of the epochs right after are not.
                due[id(loader.dataset)] = _NOW() + DEPTH_PERIOD_NS
        self.queue = getattr(iterator, "_data_queue", None)
        self.stat = SchedStat()
        self.device = DeviceClock()
        self.group = 1
        self.fast = 0
        self._clear()
        journal.write(layout.ITERATOR, 0, len(workers), self.number, begun, _NOW(), self.loader, cpu_ns, index_ns)
        for number, worker in enumerate(workers):
            journal.write(layout.WORKER, 0, 0, number, 0, 0, self.number, worker.pid or 0)

    @classmethod
    def of_iterable(cls, iterable: Any, facts: str, begun: int, cpu_ns: int) -> "_Iteration":
        """Return the iteration of something that is no DataLoader."""
        return cls(None, (iterable, facts), begun, cpu_ns, 0)

    def _clear(self) -> None:
        self.count = self.wait_ns = self.t_first = 0

    def restarted(self, begun: int, cpu_ns: int, index_ns: int) -> None:
        """Note that an epoch began on workers that are kept."""
        self.journal.write(layout.ITERATOR, 1, 0, self.number, begun, _NOW(), self.loader, cpu_ns, index_ns)

    @unseen
    def take(self, iterator: Any, original: Any) -> Any:
        """Take one batch through the original, with its stamps."""
        if self.group > 1:
            return self._take_fast(iterator, original)
        thread, (before, spent) = threading.get_ident(), _spending()
        # A dataset may iterate a loader of its own: what was set for this thread before comes back afterwards.
        outer = _process.fetching.get(thread)
        if self.fetches is not None:
            _process.fetching[thread] = self.fetches
        ready = self._asked()
        process_cpu, cpu, asked = _PROCESS_CPU(), _CPU(), _NOW()
        try:
            data = original(iterator)
        except BaseException as error:
            self._ended(asked, error)
            raise
        finally:
            _spent(before)
            if outer is not None:
                _process.fetching[thread] = outer
            elif self.fetches is not None:
                _process.fetching.pop(thread, None)
        taken = _NOW()
        try:
            self.device.taken(self.journal, self.number)
            self._taken(iterator, ready, asked, taken, cpu, process_cpu, spent)
        except Exception as error:
            _stand_aside(error)
        return data

    def _asked(self) -> int:
        try:
            self.device.asked()
            return self._ready()
        except Exception as error:
            _stand_aside(error)
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
            layout.TAKE, describe.gradients(), ready + 1, self.number, asked, taken, spent[INDEX], parked, cpu, _CPU(),
            process_cpu, _PROCESS_CPU(), self.stat.read(), task, spent[RECEIVE], spent[RECEIVE_CPU], 1, taken - asked,
        )  # fmt: skip
        if self.t_first and asked - self.t_first < FAST_LOOP_NS:
            self.fast += 1
        else:
            self.fast = 0
        self.t_first = asked
        if self.fast >= GROUP or self.journal.pressure() > 1:
            self.group = max(GROUP, self.journal.pressure())
            self._clear()

    @unseen
    def _take_fast(self, iterator: Any, original: Any) -> Any:
        """Take one batch of a loop so fast that stamping each would cost too much: sums only."""
        asked = _NOW()
        try:
            data = original(iterator)
        except BaseException as error:
            self._ended(asked, error)
            raise
        taken = _NOW()
        if self.count == 0:
            self.t_first = asked
        self.count += 1
        self.wait_ns += taken - asked
        if self.count >= self.group:
            self._flush(taken)
        return data

    def _flush(self, taken: int) -> None:
        try:
            if self.count:
                self.journal.write(
                    layout.TAKE, describe.gradients(), 0, self.number, self.t_first, taken, 0, 0, 0, _CPU(), 0,
                    _PROCESS_CPU(), 0, -1, 0, 0, self.count, self.wait_ns,
                )  # fmt: skip
                pressure = self.journal.pressure()
                self.group = max(GROUP, pressure)
                if taken - self.t_first > 4 * FAST_LOOP_NS * self.count and pressure == 1:
                    self.group, self.fast = 1, 0
            self._clear()
        except Exception as error:
            _stand_aside(error)

    def _ended(self, asked: int, error: BaseException) -> None:
        if self.group > 1:
            self._flush(asked)
        try:
            raised = 0 if isinstance(error, StopIteration) else 1
            self.journal.write(layout.END, 0, 0, self.number, asked, _NOW(), raised, _CPU(), _PROCESS_CPU())
        except Exception as failure:
            _stand_aside(failure)

    def _ready(self) -> int:
        try:
            return int(self.queue.qsize()) if self.queue is not None else -1
        except (NotImplementedError, OSError, ValueError):
            return -1  # macOS has no sem_getvalue; a closed queue has no size


@unseen
def _fetch(original: Any) -> Any:
    def fetch(self: Any, possibly_batched_index: Any) -> Any:
        fetches = _process.fetching.get(threading.get_ident())
        if fetches is None or _process.off:
            return original(self, possibly_batched_index)
        return fetches.fetch(original, self, possibly_batched_index)

    return fetch


class _Fetches:
    """What it costs one worker (or the main process) to make batches: kernel counters around them, timers in some.

    A batch too short to carry two snapshots of its own is only clocked; its CPU time is in the next record, which
    then stands for several.
    """

    def __init__(self, worker: int, dataset: Any, collate: Any) -> None:
        self.worker = worker
        self.timers = Timers(dataset, collate)
        self.stat, self.io, self.usage = SchedStat(), IoStat(), thread_usage()
        self.every = self.countdown = 1
        self.count = self.seen = self.wall_ns = 0
        self.collate = [0, 0]
        self.dataset = id(dataset)
        self.depth_due = _process.depth_due.get(self.dataset, 0)
        self.before: Optional[Tuple[int, ...]] = None
        self.pending: Optional[Tuple[int, ...]] = None
        self.samples = 0

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
        collate = fetcher.collate_fn
        # The first batch of a process is its warm-up.
        table = self._enter() if self.seen > 0 and _NOW() >= self.depth_due and not _process.tables else None
        fetcher.collate_fn = _timed_collate(collate, self.collate, table)
        threads = _threads_cpu() if self.countdown <= 1 else 0
        begun = _NOW()
        try:
            data = original(fetcher, index)
            done = _NOW()
        finally:
            fetcher.collate_fn = collate
            if table is not None:
                self.timers.__exit__()
                _process.tables.pop(threading.get_ident(), None)
        self.count += 1
        self.wall_ns += done - begun
        self.countdown -= 1
        if self.countdown <= 0 or done - begun > LONG_FETCH_NS or table is not None:
            try:
                self._fetched(begun, done, max(0, _threads_cpu() - threads) if threads else -1, table, index, data)
            except Exception as error:
                _stand_aside(error)
        return data

    def put(self, task: int) -> None:
        """Journal the batch fetched last, now that it is handed over under its task number (-1: not known)."""
        if self.pending is None:
            return
        journal = _process.open()
        pending, self.pending = self.pending, None
        if journal is not None:
            deep, begun, done, *rest = pending
            journal.write(layout.FETCH, deep, self.samples, self.worker, task, begun, done, _NOW(), *rest)

    def _snapshot(self) -> Optional[Tuple[int, ...]]:
        try:
            usage = self.usage()
            return _CPU(), self.stat.read(), *self.io.read(), usage.ru_majflt if usage else 0
        except Exception as error:
            _stand_aside(error)
            return None

    def _enter(self) -> Any:
        try:
            table = _process.tables[threading.get_ident()] = self.timers.__enter__()
            return table
        except Exception as error:
            self.timers.__exit__()
            self.depth_due = 1 << 62
            _stand_aside(error)
            return None

    def _fetched(self, begun: int, done: int, threads_cpu: int, table: Any, index: Any, data: Any) -> None:
        after = self._snapshot()
        if after is None:
            return
        cpu, runq, rchar, read, faults = (b - a for a, b in zip(self.before or after, after))
        self.samples = min(65535, len(index)) if hasattr(index, "__len__") else 1
        self.pending = (
            table is not None, begun, done, cpu, runq, *self.collate, rchar, read, faults, self.wall_ns, threads_cpu,
            self.count,
        )  # fmt: skip
        self.seen += 1
        usual = self.wall_ns / self.count
        self.count = self.wall_ns = 0
        self.collate = [0, 0]
        journal = _process.open()
        if journal is None:
            return
        if table is not None or self.seen == 1:
            self._write_depth(journal, table, data)
        self.every = max(1, min(2000, int(FETCH_COST_NS / (FETCH_BUDGET * max(usual, 1)))), journal.pressure())
        if not DEPTH_PERIOD_NS:
            self.every = 1
        # A fixed stride would miss, or see only, what comes every so many batches; this one wanders, without a RNG.
        self.countdown = 1 + (self.seen * 2654435761 >> 8) % (2 * self.every - 1)
        # In a worker the time until the next batch is asked for is idle; in the main process it is the step's.
        self.before = after if self.worker >= 0 else None
        if self.worker < 0:
            self.put(-1)

    def _write_depth(self, journal: Journal, table: Any, data: Any) -> None:
        size = describe.size(data)
        journal.write(layout.SIZE, 0, 0, self.worker, -1, *size, self.samples)
        if table is None:
            journal.write(layout.SETUP, 0, 0, self.worker, *describe.may_use())
            return
        cost = max(DEPTH_PERIOD_NS, int(table.calls * CALL_COST_NS / DEPTH_BUDGET))
        self.depth_due = _process.depth_due[self.dataset] = _NOW() + min(cost, 600 * DEPTH_PERIOD_NS)
        number = self.seen
        for collating, rows in enumerate((table.rows, table.collate_rows)):
            for name, (calls, wall_ns, cpu_ns) in rows.items():
                if calls:
                    journal.write(
                        layout.OPERATOR, collating, 0, self.worker, number, journal.text(name.partition(FROM)[0]), calls,
                        wall_ns, cpu_ns, self.samples, journal.text(table.callers.get(name, "")),
                    )  # fmt: skip
        for position, (key, sample_wall, sample_cpu) in enumerate(table.samples):
            journal.write(layout.SAMPLE, 0, 0, self.worker, number, position, key, sample_wall, sample_cpu)


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


class Watched:
    """An iterable that is no DataLoader, recorded as a loader without workers; made by `loaderprof.watch`."""

    def __init__(self, iterator: Any, iteration: Optional["_Iteration"]) -> None:
        self.collate_fn = None
        self._iterator = iterator
        self._loaderprof = iteration

    @classmethod
    def begin(cls, iterable: Any, name: str) -> Optional["Watched"]:
        """Return the watched iterator, None where nothing is recorded."""
        if _process.off:
            return None
        begun, cpu = _NOW(), _CPU()
        iterator = iter(iterable)
        try:
            facts = describe.watched(iterable, name)
            return cls(iterator, _Iteration.of_iterable(iterable, facts, begun, _CPU() - cpu))
        except Exception as error:
            _stand_aside(error)
            return cls(iterator, None)

    def __iter__(self) -> "Watched":
        return self

    @unseen
    def __next__(self) -> Any:
        iteration = self._loaderprof
        if iteration is None or _process.off or iteration.journal is not _process.journal:
            return next(self._iterator)
        return iteration.take(self, _next_watched)


@unseen
def _next_watched(watched: Watched) -> Any:
    fetches = _process.fetching.get(threading.get_ident())
    if fetches is None:
        return next(watched._iterator)
    return fetches.fetch(_pull, watched, None)


@unseen
def _pull(watched: Watched, _: Any) -> Any:
    return next(watched._iterator)


def stage_begins(name: str) -> Any:
    """Begin a stage named by hand, where the batch under way is timed in depth; return what `stage_ends` takes."""
    table = _process.tables.get(threading.get_ident())
    return None if table is None else (table, table.begin_stage(name))


def stage_ends(begun: Any) -> None:
    """End a stage named by hand."""
    if begun is not None:
        begun[0].end_stage(begun[1])


class WorkerEntry:
    """Stands in for torch's `_worker_loop`: arms the hooks in the worker, then runs the original.

    An object of a module-level class, so that spawn and forkserver can send it; the child finds the original by
    importing the module it came from.
    """

    def __init__(self, module: str, original: Any) -> None:
        self.module, self.original = module, original
        self.__wrapped__ = original
        self.__name__ = "_worker_loop"

    def __reduce__(self) -> Any:
        return _restore_entry, (self.module, _process.directory, _process.off)

    @unseen
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            if not _process.off:
                _arm_worker(*_loop_arguments(self.original, args, kwargs))
        except Exception as error:
            _stand_aside(error)
        return self.original(*args, **kwargs)


def _restore_entry(module: str, directory: Optional[str], off: bool) -> Any:
    import importlib

    _process.directory, _process.off = directory, off
    source = importlib.import_module(module)
    patch(module)
    return source._worker_loop if module == STATEFUL else source._utils.worker._worker_loop


def _loop_arguments(original: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Tuple[Any, Any, Any, int]:
    names = original.__code__.co_varnames[: original.__code__.co_argcount]
    given = dict(zip(names, args), **kwargs)
    return given["dataset"], given["collate_fn"], given["data_queue"], given["worker_id"]


@unseen
def _arm_worker(dataset: Any, collate: Any, data_queue: Any, worker: int) -> None:
    entered = _NOW()
    describe.allow_tracing()
    _process.header = {"worker": worker}
    journal = _process.open()
    if journal is None:
        return
    fetches = _Fetches(worker, dataset, collate)
    _process.fetching[threading.get_ident()] = fetches
    put = data_queue.put

    def put_batch(item: Any, *args: Any, **kwargs: Any) -> Any:
        if fetches.pending is None:
            return put(item, *args, **kwargs)
        task = item[0] if isinstance(item, tuple) and isinstance(item[0], int) else -1
        result = put(item, *args, **kwargs)
        try:
            fetches.put(task)
        except Exception as error:
            _stand_aside(error)
        return result

    data_queue.put = put_batch
    journal.write(layout.WORKER, 1, 0, worker, entered, _NOW(), 0, os.getpid())


@unseen
def _patch_pickler() -> None:
    """Time pickling of batches in workers and unpickling in whoever takes them, by the one name both look up."""
    import multiprocessing.queues as queues

    base = queues._ForkingPickler  # type: ignore[attr-defined]

    class _ForkingPickler(base):  # type: ignore[misc, valid-type]
        @classmethod
        def dumps(cls, item: Any, *args: Any, **kwargs: Any) -> Any:
            if "worker" not in _process.header or _process.off or not isinstance(item, tuple):
                return base.dumps(item, *args, **kwargs)
            cpu, begun = _CPU(), _NOW()
            raw = base.dumps(item, *args, **kwargs)
            done = _NOW()
            task = item[0] if item and isinstance(item[0], int) else -1
            if task >= 0 and done - begun > 20_000:
                _dumped(task, begun, done, _CPU() - cpu, len(raw))
            return raw

        @staticmethod
        def loads(raw: Any, *args: Any, **kwargs: Any) -> Any:
            spent = _process.spending.get(threading.get_ident())
            if spent is None:
                return base.loads(raw, *args, **kwargs)
            cpu, begun = _CPU(), _NOW()
            try:
                return base.loads(raw, *args, **kwargs)
            finally:
                spent[RECEIVE] += _NOW() - begun
                spent[RECEIVE_CPU] += _CPU() - cpu

    _ForkingPickler.__qualname__ = base.__qualname__
    _ForkingPickler.__module__ = base.__module__
    queues._ForkingPickler = _ForkingPickler  # type: ignore[attr-defined]


def _dumped(task: int, begun: int, done: int, cpu_ns: int, size: int) -> None:
    try:
        journal = _process.open()
        if journal is not None:
            journal.write(layout.PICKLE, 0, 0, _process.header["worker"], task, begun, done, cpu_ns, size)
    except Exception as error:
        _stand_aside(error)


@unseen
def _pin_loop(original: Any) -> Any:
    @functools.wraps(original)
    def _pin_memory_loop(*args: Any, **kwargs: Any) -> Any:
        begun, (_, spent) = _NOW(), _spending()
        try:
            return original(*args, **kwargs)
        finally:
            _process.spending.pop(threading.get_ident(), None)
            journal = None if _process.off else _process.open()
            if journal is not None:
                journal.write(layout.PIN, 0, 0, begun, _NOW(), _CPU())
                journal.write(layout.RECEIVE, 0, 0, begun, begun + spent[RECEIVE], spent[RECEIVE_CPU], 0)

    return _pin_memory_loop
