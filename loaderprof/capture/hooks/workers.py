"""Hooks in worker processes, and in the queues between them and the main process.

Standard library only, Python >= 3.8: every worker imports this.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from typing import Any, Callable, Dict, Optional, Set, Tuple

from loaderprof.capture.hooks import describe
from loaderprof.capture.hooks.fetches import Fetches
from loaderprof.capture.hooks.frames import unseen
from loaderprof.capture.hooks.process import RECEIVE, RECEIVE_CPU, open_account, process, stand_aside
from loaderprof.recording import journal as layout

_NOW = time.perf_counter_ns
_CPU = time.thread_time_ns
_IDENT = threading.get_ident
# Tasks of this worker whose fetch is recorded and whose pickling is still to be.
_measured: Set[int] = set()


class WorkerEntry:
    """Stands in for torch's `_worker_loop`: arms the hooks in the worker, then runs the original.

    An object of a module-level class, so that spawn and forkserver can send it; the child finds the original by
    importing the module it came from.
    """

    def __init__(self, module: str, original: Any, restore: Callable[[str, Optional[str], bool], Any]) -> None:
        self.module, self.original, self.restore = module, original, restore
        self.__wrapped__ = original
        self.__name__ = "_worker_loop"

    def __reduce__(self) -> Any:
        return self.restore, (self.module, process.directory, process.off or process.resting)

    @unseen
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            process.off = process.off or process.resting
            if not process.off:
                _arm_worker(*loop_arguments(self.original, args, kwargs))
        except Exception as error:
            stand_aside(error)
        return self.original(*args, **kwargs)


def loop_arguments(original: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Tuple[Any, Any, Any, int]:
    """Return the dataset, collate function, data queue and number of a worker, from the arguments of torch's loop."""
    names = original.__code__.co_varnames[: original.__code__.co_argcount]
    given = dict(zip(names, args), **kwargs)
    # From torch 2.15 on the worker takes its dataset out of a list.
    dataset = given["dataset"] if "dataset" in given else given["dataset_holder"][0]
    return dataset, given["collate_fn"], given["data_queue"], given["worker_id"]


@unseen
def _arm_worker(dataset: Any, collate: Any, data_queue: Any, worker: int) -> None:
    entered = _NOW()
    describe.allow_tracing()
    process.header = {"worker": worker}
    journal = process.open()
    if journal is None:
        return
    fetches = Fetches(worker, dataset, collate)
    process.fetching[_IDENT()] = fetches
    put = data_queue.put

    def put_batch(item: Any, *args: Any, **kwargs: Any) -> Any:
        if fetches.pending is None:
            return put(item, *args, **kwargs)
        task = item[0] if isinstance(item, tuple) and isinstance(item[0], int) else -1
        # The queue's own thread may pickle it before `put` returns.
        _measured.add(task)
        result = put(item, *args, **kwargs)
        try:
            fetches.put(task)
        except Exception as error:
            stand_aside(error)
        return result

    data_queue.put = put_batch
    journal.write(layout.WORKER, 1, 0, worker, entered, _NOW(), 0, os.getpid())


@unseen
def patch_pickler() -> None:
    """Time pickling in workers and unpickling in the process that receives, by replacing the class that both look up."""
    import multiprocessing.queues as queues

    base = queues._ForkingPickler  # type: ignore[attr-defined]

    class _ForkingPickler(base):  # type: ignore[misc, valid-type]
        @classmethod
        def dumps(cls, item: Any, *args: Any, **kwargs: Any) -> Any:
            if "worker" not in process.header or process.off or not isinstance(item, tuple):
                return base.dumps(item, *args, **kwargs)
            task = item[0] if item and isinstance(item[0], int) else -1
            if task not in _measured:
                return base.dumps(item, *args, **kwargs)
            _measured.discard(task)
            cpu, begun = _CPU(), _NOW()
            raw = base.dumps(item, *args, **kwargs)
            done = _NOW()
            if task >= 0 and done - begun > 20_000:
                _dumped(task, begun, done, _CPU() - cpu, len(raw))
            return raw

        @staticmethod
        def loads(raw: Any, *args: Any, **kwargs: Any) -> Any:
            spent = process.spending.get(_IDENT()) if process.spending else None
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
        journal = process.open()
        if journal is not None:
            journal.write(layout.PICKLE, 0, 0, process.header["worker"], task, begun, done, cpu_ns, size)
    except Exception as error:
        stand_aside(error)


@unseen
def pin_hook(original: Any) -> Any:
    @functools.wraps(original)
    def _pin_memory_loop(*args: Any, **kwargs: Any) -> Any:
        begun, (_, spent) = _NOW(), open_account()
        try:
            return original(*args, **kwargs)
        finally:
            process.spending.pop(_IDENT(), None)
            journal = None if process.off else process.open()
            if journal is not None:
                journal.write(layout.PIN, 0, 0, begun, _NOW(), _CPU())
                journal.write(layout.RECEIVE, 0, 0, begun, begun + spent[RECEIVE], spent[RECEIVE_CPU], 0)

    return _pin_memory_loop
