"""How long the device was idle between two steps, by its own clock.

Two events are recorded each step on the current stream: when the loop asks for a batch and when it has it. The time
between them is time in which the device had nothing queued. Events are drained by `query()` one or more steps later; nothing here
synchronises, initialises a device, or acts inside a graph capture.

Standard library only, Python >= 3.8: every worker imports this.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from typing import Any, Deque, Dict, List, Optional, Tuple

from loaderprof.capture.hooks.frames import unseen
from loaderprof.recording import journal as layout
from loaderprof.recording.journal import Journal

POOL = 64
# Devices whose module in torch has CUDA's names: `is_initialized`, `current_device`, `Event(enable_timing=True)`.
BACKENDS = ("cuda", "xpu", "npu")


@unseen
def in_use() -> Any:
    """Return torch's module of the device that the job uses; None where none is initialised."""
    # Not `getattr`: for a name that it lacks torch searches its lazy modules, at every step.
    held = getattr(sys.modules.get("torch"), "__dict__", {})
    for name in BACKENDS:
        module = held.get(name)
        if module is not None and module.is_initialized():
            return module
    return None


@unseen
def captures(module: Any) -> bool:
    """Return whether a graph of the device is being captured, in which events are no moments."""
    capturing = getattr(module, "is_current_stream_capturing", None)
    return capturing is not None and bool(capturing())


class Events:
    """Events of the devices, used again and again; one that was recorded on a device stays that device's."""

    def __init__(self) -> None:
        self._free: Dict[int, List[Any]] = {}

    @unseen
    def record(self, module: Any) -> Tuple[Any, int]:
        """Record an event on the current stream of the current device; return it and the device's number."""
        device = module.current_device()
        free = self._free.setdefault(device, [])
        event = free.pop() if free else module.Event(enable_timing=True)
        event.record()
        return event, device

    def give_back(self, mark: Tuple[Any, int]) -> None:
        """Take back an event that nobody waits for any more."""
        event, device = mark
        free = self._free.setdefault(device, [])
        if len(free) < POOL:
            free.append(event)


# An event with the number of its device.
Mark = Tuple[Any, int]


class DeviceClock:
    """The device's idle time between the steps of one loop; does nothing where no device was initialised."""

    def __init__(self) -> None:
        self._thread = threading.main_thread().ident
        self._events = Events()
        self._pending: Deque[Tuple[Optional[Mark], Mark, Mark, Mark]] = deque()
        self._ended: Optional[Mark] = None
        self._asked: Optional[Mark] = None
        self._start: Optional[Mark] = None
        self._broken = False

    def asked(self) -> None:
        """The loop asks for a batch: the device's work so far ends here."""
        module = self._module()
        self._asked = self._record(module) if module is not None and len(self._pending) < POOL else None

    def rests(self) -> None:
        """The loop asks for a batch that is not stamped, and for more of them: a stamped step's work ends here."""
        module = self._module()
        if module is not None and self._start is not None and self._ended is None and len(self._pending) < POOL:
            self._ended = self._record(module)

    def taken(self, journal: Journal, iterator: int) -> None:
        """The loop has its batch: the device was empty since its work ended, if it ended before this."""
        module = self._module()
        if module is None:
            return
        start = self._record(module) if self._asked is not None else None
        if self._asked is not None and start is not None:
            self._pending.append((self._start, self._ended or self._asked, self._asked, start))
        self._start, self._ended, self._asked = start, None, None
        self._drain(journal, iterator)

    def _module(self) -> Any:
        if self._broken or threading.get_ident() != self._thread:
            return None
        module = in_use()
        return None if module is None or captures(module) else module

    def _record(self, module: Any) -> Optional[Mark]:
        try:
            return self._events.record(module)
        except Exception:
            self._broken = True
            return None

    def _drain(self, journal: Journal, iterator: int) -> None:
        try:
            while self._pending and self._pending[0][3][0].query():
                before, ended, asked, start = self._pending.popleft()
                # Events of two devices have no time between them: the loop has moved to another device.
                if asked[1] == start[1]:
                    starved = asked[0].elapsed_time(start[0])
                    known = before is not None and before[1] == ended[1]
                    busy = before[0].elapsed_time(ended[0]) if before is not None and known else 0.0
                    journal.write(layout.DEVICE, 0, 0, iterator, start[1], int(starved * 1e6), int(busy * 1e6))
                self._events.give_back(asked)
                if ended is not asked:
                    self._events.give_back(ended)
                if before is not None:
                    self._events.give_back(before)
        except Exception:
            self._broken = True
