"""Where the device stood empty between two steps, by its own clock.

Two events a step on the current stream, at the loop's asking for a batch and at its getting it; what lies between is
time in which the device had nothing queued. Events are drained by `query()` one or more steps later; nothing here
synchronises, initialises a device, or acts inside a graph capture.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from typing import Any, Deque, List, Optional, Tuple

from loaderprof import journal as layout
from loaderprof.journal import Journal

POOL = 64


class DeviceClock:
    """The device's idle time between the steps of one loop; does nothing where no CUDA context exists."""

    def __init__(self) -> None:
        self._thread = threading.main_thread().ident
        self._free: List[Any] = []
        self._pending: Deque[Tuple[Any, Any, Any, Any]] = deque()
        self._ended: Optional[Any] = None
        self._asked: Optional[Any] = None
        self._start: Optional[Any] = None
        self._broken = False

    def asked(self) -> None:
        """The loop asks for a batch: the device's work so far ends here."""
        cuda = self._cuda()
        self._asked = self._record(cuda) if cuda is not None and len(self._pending) < POOL else None

    def rests(self) -> None:
        """The loop asks for a batch that is not stamped, and for more of them: a stamped step's work ends here."""
        cuda = self._cuda()
        if cuda is not None and self._start is not None and self._ended is None and len(self._pending) < POOL:
            self._ended = self._record(cuda)

    def taken(self, journal: Journal, iterator: int) -> None:
        """The loop has its batch: the device was empty since its work ended, if it ended before this."""
        cuda = self._cuda()
        if cuda is None:
            return
        start = self._record(cuda) if self._asked is not None else None
        if self._asked is not None and start is not None:
            self._pending.append((self._start, self._ended or self._asked, self._asked, start))
        self._start, self._ended, self._asked = start, None, None
        self._drain(journal, iterator, cuda)

    def _cuda(self) -> Any:
        cuda = getattr(sys.modules.get("torch"), "cuda", None)
        if cuda is None or self._broken or threading.get_ident() != self._thread or not cuda.is_initialized():
            return None
        return None if cuda.is_current_stream_capturing() else cuda

    def _record(self, cuda: Any) -> Optional[Any]:
        try:
            event = self._free.pop() if self._free else cuda.Event(enable_timing=True)
            event.record()
            return event
        except Exception:
            self._broken = True
            return None

    def _drain(self, journal: Journal, iterator: int, cuda: Any) -> None:
        try:
            while self._pending and self._pending[0][3].query():
                before, ended, asked, start = self._pending.popleft()
                starved = asked.elapsed_time(start)
                busy = before.elapsed_time(ended) if before is not None else 0.0
                journal.write(layout.DEVICE, 0, 0, iterator, cuda.current_device(), int(starved * 1e6), int(busy * 1e6))
                self._free.append(asked)
                if ended is not asked:
                    self._free.append(ended)
                if before is not None:
                    self._free.append(before)
        except Exception:
            self._broken = True
