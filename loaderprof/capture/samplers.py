"""What is seen of a job from outside, by the supervisor: host and processes (psutil), stacks (py-spy); GPUs: `gpus`.

A sampler's `sample()` returns a JSON-ready dictionary or None, never raises for what the job does, and says in
`missing` why something cannot be measured. Each has its own period and stretches it where its own cost would pass its
budget. Runs only in loaderprof's own processes.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any, Protocol

import psutil

from loaderprof.capture.hooks import overhead
from loaderprof.recording import journal as layout

# Share of one core that psutil and NVML sampling may take; their period stretches to keep it.
HOST_BUDGET = 0.002
# A short run needs its samples close together; a longer one does not.
FIRST_SAMPLES = 6


class Sampler(Protocol):
    """Something that looks at the job from outside now and then."""

    period_s: float
    missing: str | None

    def sample(self, job: WatchedJob) -> dict[str, Any] | None:
        """Return one sample, None where there is nothing new."""

    def close(self) -> None:
        """Give back what the sampler holds."""


# A journal is named after its host, process and moment of making.
_JOURNAL = re.compile(r"-(\d+)-\d+\.lpj$")


class WatchedJob:
    """The processes of a job, found from its first process and from the journals they write."""

    def __init__(self, pid: int, journals: Path | None) -> None:
        self.pid = pid
        self.journals = journals
        self.first_batch_at: float | None = None
        self.cpu_s = 0.0

    def processes(self) -> list[psutil.Process]:
        """Return the job's live processes, the first one first."""
        try:
            root = psutil.Process(self.pid)
            return [root, *root.children(recursive=True)]
        except psutil.Error:
            return []

    def writers(self) -> list[int]:
        """Return the process ids that have opened a journal."""
        if self.journals is None:
            return [self.pid]
        try:
            names = [path.name for path in self.journals.glob("*.lpj")]
        except OSError:
            return []
        if names and self.first_batch_at is None:
            self.first_batch_at = time.monotonic()
        return [int(match[1]) for match in map(_JOURNAL.search, names) if match]

    def watches(self, pid: int) -> bool:
        """Return whether a process takes its batches from an iterable that is no DataLoader."""
        return any(layout.watches(str(file)) for file in self._journals_of(pid))

    def has_batches(self, pid: int) -> bool:
        """Return whether a process has taken a batch."""
        return any(layout.has_batches(str(file)) for file in self._journals_of(pid))

    def _journals_of(self, pid: int) -> list[Path]:
        return list(self.journals.glob(f"*-{pid}-*.lpj")) if self.journals is not None else []


class HostSampler:
    """CPU, memory, disk and network of the host, and every process of the job."""

    def __init__(self) -> None:
        self.period_s = 1.0
        self.missing: str | None = None
        self._taken = 0

    def sample(self, job: WatchedJob) -> dict[str, Any] | None:
        """Return cumulative counters; rates are the reader's business."""
        begun = time.thread_time()
        processes = [entry for entry in map(_process_entry, job.processes()) if entry is not None]
        job.cpu_s = max(job.cpu_s, sum(entry["user"] + entry["system"] for entry in processes))
        times, memory = psutil.cpu_times(), psutil.virtual_memory()
        sample = {
            "cpu": {"cores": psutil.cpu_count(), **{k: getattr(times, k) for k in _CPU_FIELDS if hasattr(times, k)}},
            "memory": {"total": memory.total, "available": memory.available},
            "disk": _disk(),
            "network": _network(),
            "shm": _shm(),
            "processes": processes,
        }
        self._taken += 1
        usual = 1.0 if self._taken < FIRST_SAMPLES else 2.0
        self.period_s = max(usual, (time.thread_time() - begun) / overhead.allowed(HOST_BUDGET))
        return sample

    def close(self) -> None:
        """Nothing is held."""


_CPU_FIELDS = ("user", "system", "nice", "iowait", "irq", "softirq", "steal", "idle")


def _process_entry(process: psutil.Process) -> dict[str, Any] | None:
    try:
        with process.oneshot():
            times, memory = process.cpu_times(), process.memory_info()
            return {
                "pid": process.pid,
                "ppid": process.ppid(),
                "name": process.name()[:32],
                "user": times.user,
                "system": times.system,
                "rss": memory.rss,
                "threads": process.num_threads(),
                "status": process.status(),
                "created": process.create_time(),
                # CPU of children that ended and were waited for; only Linux and macOS report it.
                "children": times.children_user + times.children_system if hasattr(times, "children_user") else None,
                "written": _written(process),
            }
    except psutil.Error:
        return None


def _written(process: psutil.Process) -> int | None:
    """Return the bytes that a process has written to files and pipes so far; None where the system does not report it."""
    try:
        return getattr(process.io_counters(), "write_chars", None)
    except (psutil.Error, AttributeError, OSError):
        return None


def _disk() -> dict[str, int] | None:
    try:
        counters = psutil.disk_io_counters()
    except (OSError, RuntimeError):
        return None
    return {"read_bytes": counters.read_bytes, "write_bytes": counters.write_bytes} if counters else None


def _network() -> dict[str, int] | None:
    try:
        counters = psutil.net_io_counters()
    except OSError:
        return None
    return {"received_bytes": counters.bytes_recv, "sent_bytes": counters.bytes_sent}


def _shm() -> dict[str, int] | None:
    try:
        usage = psutil.disk_usage("/dev/shm")
    except OSError:
        return None
    return {"total": usage.total, "free": usage.free}
