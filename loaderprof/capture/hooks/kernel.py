"""The kernel's own counters of one thread: run-queue wait, bytes read, faults and switches.

Cheap enough for a batch path: the small files stay open. Standard library only, Python >= 3.8.
"""

from __future__ import annotations

import functools
import os
import threading
from typing import Any, Callable, List, Optional, Tuple

# Bound here, because `timers` replaces os.pread for the length of a batch.
_PREAD = getattr(os, "pread", lambda *_: b"")


class _KernelFile:
    """A small file of /proc/thread-self kept open by the thread that reads it; absent: reads as zeros."""

    path = ""

    def __init__(self) -> None:
        self._fd: Optional[int] = None
        self._owner = 0

    def raw(self) -> bytes:
        thread = threading.get_ident()
        if self._owner != thread:
            # The descriptor is bound to the thread that opened it.
            self._owner = thread
            self.close()
            try:
                self._fd = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            except OSError:
                self._fd = None
        if self._fd is None:
            return b""
        try:
            return _PREAD(self._fd, 512, 0)
        except OSError:
            return b""

    def close(self) -> None:
        if self._fd is not None:
            try:
                os.close(self._fd)
            except OSError:
                pass
            self._fd = None

    def __del__(self) -> None:
        self.close()


class SchedStat(_KernelFile):
    """Nanoseconds this thread waited in a run queue."""

    path = "/proc/thread-self/schedstat"

    def read(self) -> int:
        fields = self.raw().split()
        return int(fields[1]) if len(fields) == 3 else 0


class IoStat(_KernelFile):
    """Bytes this thread asked to read, and bytes that came from a device."""

    path = "/proc/thread-self/io"

    def read(self) -> Tuple[int, int]:
        fields = self.raw().split()
        return (int(fields[1]), int(fields[9])) if len(fields) > 9 else (0, 0)


def unread() -> List[str]:
    """Return which of these files this system does not have: what they count is then not measured, and not zero."""
    missing = []
    for kind in (SchedStat, IoStat):
        file = kind()
        if not file.raw():
            missing.append(os.path.basename(file.path))
        file.close()
    return missing


def thread_usage() -> Callable[[], Any]:
    try:
        import resource

        return functools.partial(resource.getrusage, resource.RUSAGE_THREAD)
    except (ImportError, AttributeError):
        return lambda: None
