"""What a process of the job knows of its recording, and the one way in which capture ends for it.

Standard library only, Python >= 3.8: every worker imports this.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
import threading
import time
import weakref
from typing import Any, Callable, Dict, List, Optional, Tuple

from loaderprof.capture.hooks import describe, overhead
from loaderprof.recording.journal import Journal

_NOW = time.perf_counter_ns
# The workers of the first so many iterators are all recorded; of ten times as many iterators, two in five are.
ALL_ITERATORS = 200


class JobProcess:
    """What this process knows of the recording."""

    def __init__(self) -> None:
        self.directory = os.environ.get("LOADERPROF_JOURNALS") or None
        self.off = self.directory is None
        # Whether the workers about to be started keep no journal (see `rests`).
        self.resting = False
        # By id of a dataset: when it is next due to be timed per operator; short epochs share one budget.
        self.depth_due: Dict[int, int] = {}
        # The earliest time at which any dataset may be: a job that makes new datasets all the time shares the budget too.
        self.depth_free = 0
        # Whether the hooks that mark a step's phases are installed, here or in the process this one was forked from.
        self.marked = False
        self.forget()

    def forget(self) -> None:
        """Know no journal and no loader: the state of a new process, and of one just forked."""
        self.lock = threading.RLock()
        self.journal: Optional[Journal] = None
        self.header: Dict[str, Any] = {}
        self.iterators = 0
        self.loaders: Dict[int, Tuple[Any, int]] = {}
        self.described: Dict[str, List[Tuple[Any, int]]] = {}
        # By thread: the `Fetches` that its next batch belongs to, its account (see `open_account`), and the table of a
        # batch that is being timed in depth.
        self.fetching: Dict[int, Any] = {}
        self.spending: Dict[int, List[int]] = {}
        self.tables: Dict[int, Any] = {}
        # By loader: batches, and the nanoseconds that they took.
        self.paces: Dict[int, List[int]] = {}
        # The step whose phases are being measured (`phases.Step`).
        self.step: Any = None

    def rests(self) -> bool:
        """Return whether the workers of the next iterator are to keep no journal, so that the recording stays small.

        After some hundred iterators (one an epoch), workers keep a journal in fewer and fewer of them. Which ones is
        decided by a hash of their number: a fixed stride could always skip the same one of several loaders.
        """
        number = self.iterators + 1
        every = number // ALL_ITERATORS
        return every > 1 and (number * 2654435761 >> 8) % every > 0 and not overhead.keeps_all()

    def open(self) -> Optional[Journal]:
        """Return this process's journal, made on first use; None where capture is off."""
        if self.journal is None and not self.off:
            with self.lock:
                if self.journal is None and not self.off:
                    try:
                        name = "%s-%d-%d.lpj" % (describe.host(), os.getpid(), _NOW())
                        path = os.path.join(self.directory or "", name)
                        facts = dict(describe.process(), **self.header)
                        self.journal = Journal(path, facts, keep=overhead.keeps_all())
                    except Exception as error:
                        stand_aside(error)
        return self.journal

    def knows(self, loader: Any) -> bool:
        """Return whether this very loader was described before."""
        known = self.loaders.get(id(loader))
        return known is not None and known[0]() is loader

    def loader(self, journal: Journal, loader: Any, iterator: Any) -> int:
        """Return the number of the text that describes a loader; one that took the place of another keeps its text."""
        if self.knows(loader):
            return self.loaders[id(loader)][1]
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


process = JobProcess()
# Set once a line was written on stderr; shared with forked workers, which fail for the same reason.
_said = mmap.mmap(-1, 1)


def _after_fork() -> None:
    inherited = set(process.fetching.values())
    process.forget()
    # A batch that was being timed belongs to the parent; here its timers are only removed, which is safe to do twice.
    for fetches in inherited:
        fetches.timers.__exit__()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def stand_aside(error: BaseException) -> None:
    """Take capture out of this process, saying so once: whatever of ours fails, training goes on.

    An exception raised by one of the job's signal handlers while our code ran is re-raised: it is the job's own, as
    torch's is when a worker was killed.
    """
    if is_the_jobs(error):
        raise error
    if not process.off:
        process.off = True
        if _said[0]:
            return
        _said[0] = 1
        try:
            sys.stderr.write("loaderprof: capture stopped, training goes on: %s: %s\n" % (type(error).__name__, error))
        except Exception:
            return


def is_the_jobs(error: BaseException) -> bool:
    """Return whether a signal handler raised this, in the midst of whatever ran."""
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    codes = {getattr(getattr(each, "__func__", each), "__code__", None) for each in handlers} - {None}
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code in codes:
            return True
        trace = trace.tb_next
    return False


# What a thread spends inside the loader while it asks for a batch, in nanoseconds.
RECEIVE, RECEIVE_CPU, INDEX = range(3)


def open_account() -> Tuple[Optional[List[int]], List[int]]:
    """Open an account of what this thread is about to spend inside a loader; return the one before it and the new one."""
    accounts, thread = process.spending, threading.get_ident()
    outer = accounts.get(thread)
    spent = accounts[thread] = [0, 0, 0]
    return outer, spent


def close_account(outer: Optional[List[int]]) -> None:
    """Close the account: a dataset may iterate a loader of its own, inside another's."""
    if outer is None:
        process.spending.pop(threading.get_ident(), None)
    else:
        process.spending[threading.get_ident()] = outer
