"""The errors of a DataLoader that many meet and few understand, identified by the text of the message.

Only which one it was is recorded: a message may hold anything. `diagnose/endings.py` explains them. Standard library
only, Python >= 3.8: every worker imports this.
"""

from __future__ import annotations

import os
import signal
import time
from typing import List, Optional, Sequence

# The first that fits is meant: an error deep down shows as several, each caused by the next.
_KNOWN = (
    ("missing-guard", ("process has finished its bootstrapping phase",)),
    ("cuda-after-fork", ("Cannot re-initialize CUDA in forked subprocess",)),
    (
        "unpicklable",
        ("PicklingError", "Can't pickle", "cannot pickle", "Can't get local object", "Can't get attribute"),
    ),
    ("open-files", ("Too many open files", "received 0 items of ancdata")),
    (
        "shared-memory",
        (
            "Bus error",
            "insufficient shared memory",
            "unable to write to file </torch_",
            "unable to allocate shared memory",
        ),
    ),
    ("killed-worker", ("is killed by signal: Killed",)),
    ("crashed-worker", ("is killed by signal: Segmentation fault", "is killed by signal: Aborted")),
    ("timed-out", ("DataLoader timed out after",)),
    ("lost-worker", ("DataLoader worker (pid", "Pin memory thread exited unexpectedly")),
)
# What a worker's death by a signal is called.
_SIGNALS = {
    "SIGKILL": "killed-worker",
    "SIGBUS": "shared-memory",
    "SIGSEGV": "crashed-worker",
    "SIGABRT": "crashed-worker",
}


def kind(error: BaseException, workers: Sequence[int] = ()) -> Optional[str]:
    """Return which of the known errors this is, None for any other.

    Args:
        error: what the loader raised.
        workers: the process numbers of its workers.
    """
    texts: List[str] = []
    under: Optional[BaseException] = error
    while under is not None and len(texts) < 8:
        texts.append("%s: %s" % (type(under).__name__, under))
        under = under.__cause__ or under.__context__
    known = next((name for name, words in _KNOWN if any(word in text for text in texts for word in words)), None)
    return known or (_death_of(workers) if _was_fetching(error) else None)


def _was_fetching(error: BaseException) -> bool:
    """Return whether a tensor's file descriptor was being fetched from a worker: its death then shows as a lost connection."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.endswith("resource_sharer.py"):
            return True
        trace = trace.tb_next
    return False


def _death_of(workers: Sequence[int]) -> str:
    """Return what the death of one of these processes is called. Leaves it to torch to reap them."""
    # A process that dies closes its connections before it is dead: the job, which ends by this, is held up for a second.
    for _ in range(50):
        for pid in workers:
            try:
                ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except (AttributeError, OSError):
                continue
            if ended is not None:
                killed = ended.si_code in (os.CLD_KILLED, os.CLD_DUMPED)
                return _SIGNALS.get(signal.Signals(ended.si_status).name if killed else "", "lost-worker")
        time.sleep(0.02)
    return "lost-worker"
