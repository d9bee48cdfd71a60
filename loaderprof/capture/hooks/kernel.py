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
        """Return the file's text for the calling thread; empty where it cannot be read."""
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
        """Close the descriptor; the next read opens it again only in another thread."""
        if self._fd is not None:
            try:
                os.close(self._fd)
            except OSError:
                pass
            self._fd = None

    def __del__(self) -> None:
        self.close()


class SchedStat(_KernelFile):
    """The time that a thread waited in a run queue."""

    path = "/proc/thread-self/schedstat"

    def read(self) -> int:
        """Return the calling thread's nanoseconds so far; 0 where the kernel does not count them."""
        fields = self.raw().split()
        return int(fields[1]) if len(fields) == 3 else 0


class IoStat(_KernelFile):
    """The bytes that a thread has read."""

    path = "/proc/thread-self/io"

    def read(self) -> Tuple[int, int]:
        """Return the bytes that the calling thread asked for so far, and those that came from a device."""
        fields = self.raw().split()
        return (int(fields[1]), int(fields[9])) if len(fields) > 9 else (0, 0)


def unread() -> List[str]:
    """Return the names of those files that this system lacks: what they count is then not measured, rather than zero."""
    missing = []
    for kind in (SchedStat, IoStat):
        file = kind()
        if not file.raw():
            missing.append(os.path.basename(file.path))
        file.close()
    return missing


def thread_usage() -> Callable[[], Any]:
    """Return a function that gives the calling thread's `rusage`, or None where the system has none by thread."""
    try:
        import resource

        return functools.partial(resource.getrusage, resource.RUSAGE_THREAD)
    except (ImportError, AttributeError):
        return lambda: None
