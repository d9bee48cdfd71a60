"""One process's journal: the layout of its records and the writer.

A journal is a text header of `HEADER_BYTES` followed by records of `RECORD_BYTES`, written into a shared file
mapping: no lock, no system call and no flush on a batch path, and whatever was stored survives a SIGKILL.
A record counts once its kind byte is set, which is stored last. Times are `time.perf_counter_ns()`
(CLOCK_MONOTONIC on Linux: one clock for all processes of a host). Reading is in `reader.py` and `tables.py`.

Standard library only: every DataLoader worker imports this, in whatever Python >= 3.8 the job runs.
"""

from __future__ import annotations

import itertools
import json
import mmap
import os
import struct
import threading
from typing import Any, Dict, List, Optional, Tuple

MAGIC = b"loaderprof-journal 1\n"
HEADER_BYTES = 4096
RECORD_BYTES = 128
# The first segment, enough for a worker of a short epoch; each further one doubles the journal, so that a long one takes a
# dozen file descriptors, not hundreds.
SEGMENT_RECORDS = 256
# A month-long run must not fill the disk: past this, hooks write one record for many batches.
MAX_RECORDS = 1024 * SEGMENT_RECORDS
# The limit under `--keep`: a gigabyte.
MAX_KEPT_RECORDS = 32 * MAX_RECORDS
_BODY = struct.Struct("<xBHI15q")
_TEXT_HEAD = struct.Struct("<xBHIqq")
_TEXT_BYTES = RECORD_BYTES - _TEXT_HEAD.size

(
    TEXT, ITERATOR, TAKE, END, FETCH, PICKLE, RECEIVE, PIN, OPERATOR, SAMPLE, SIZE, WORKER, DEVICE, PAUSE, SETUP, PHASES,
    NODE, CALL,
) = range(1, 19)  # fmt: skip

WATCHED, ANEW = 2, 4

# The fields of each kind, in order; `_ns` are nanoseconds, `t_` are moments on the common clock.
FIELDS = {
    # `flags` 1: an epoch restarted on persistent workers, 2 (`WATCHED`): no DataLoader but `watch()`,
    # 4 (`ANEW`): the first of its loader object. cpu_ns: of the thread that made it,
    # index_ns: of that, spent in the sampler. `extra`: workers started.
    ITERATOR: ("iterator", "t_begun", "t_ready", "loader", "cpu_ns", "index_ns"),
    # `flags` 1: gradients were enabled. `extra`: finished batches waiting when asked, plus 1 (0: unknown). index_ns:
    # spent in the sampler. parked: later batches that waited for an earlier one. runq_ns, cpu and process cpu are the
    # thread's and process's totals so far. count > 1: one record for so many batches, wait_ns the sum of their waits.
    TAKE: (
        "iterator", "t_asked", "t_taken", "index_ns", "parked", "cpu_asked_ns", "cpu_taken_ns", "process_cpu_asked_ns",
        "process_cpu_taken_ns", "runq_ns", "task", "receive_ns", "receive_cpu_ns", "count", "wait_ns",
    ),
    # raised 0: StopIteration. t_done: after the workers of the epoch were shut down. error: which of the known ones
    # (`capture/failures.py`), 0 for none. iterator 0: its making failed.
    END: ("iterator", "t_asked", "t_done", "raised", "cpu_ns", "process_cpu_ns", "error"),
    # worker -1: made in the main process. `flags` 1: timed per operator, so slower than the others. `extra`: samples.
    # count: batches that the counters and wall_ns are of, the last of which begun and done are; the others were too
    # short to carry a record each. threads_cpu_ns: CPU of the process's other threads during the last one, -1 unknown.
    FETCH: (
        "worker", "task", "t_begun", "t_done", "t_put", "cpu_ns", "runq_ns", "collate_ns", "collate_cpu_ns", "rchar",
        "read_bytes", "majflt", "wall_ns", "threads_cpu_ns", "count",
    ),
    PICKLE: ("worker", "task", "t_begun", "t_done", "cpu_ns", "bytes"),
    RECEIVE: ("t_begun", "t_done", "cpu_ns", "bytes"),
    PIN: ("t_begun", "t_done", "cpu_ns"),
    # Self time of one operator within one batch timed in depth. `flags` 1: inside the collate function, 2: named by
    # hand with `loaderprof.stage`. caller: the user's line that called it, `file:line`.
    # iterator: the one that a batch of the main process is of; 0 in a worker, and in recordings older than this field.
    OPERATOR: ("worker", "batch", "name", "calls", "wall_ns", "cpu_ns", "samples", "caller", "iterator"),
    # file: the first that was opened for the sample; 0: not seen, and in recordings older than this field.
    SAMPLE: ("worker", "batch", "position", "index", "wall_ns", "cpu_ns", "iterator", "file"),
    # extra: percent of its bytes that are floating-point numbers; 0 in recordings older than this.
    SIZE: ("worker", "batch", "bytes", "tensors", "leaves", "samples", "iterator"),
    # `flags` 1: written by the worker itself, 0: by the process that started it.
    WORKER: ("worker", "t_entered", "t_ready", "iterator", "pid"),
    DEVICE: ("iterator", "device", "starved_ns", "busy_ns"),
    # What a measured step was, from getting a batch to asking again. device: by whose clock, -1 the host's. How often it
    # went backward, stepped an optimizer, copied by a function that is known to. `flags` 1: bytes are recorded, of the batch's
    # tensors in the host's memory, and of those that are pinned.
    PHASES: (
        "iterator", "t_taken", "t_asked", "device", "copy_ns", "forward_ns", "backward_ns", "optimizer_ns", "rest_ns",
        "backwards", "optimizers", "copies", "bytes", "pinned_bytes",
    ),
    PAUSE: ("t_begun", "t_done", "generation"),
    # What a producer of batches may use, after its worker_init_fn: a mask of its first 63 CPUs, how many, torch threads.
    SETUP: ("worker", "cpu_mask", "cpus", "torch_threads"),
    # One operation of a tf.data pipeline at one reading of TensorFlow's model of it; counters are totals of the iterator.
    # `flags` 1: AUTOTUNE decides its parallelism. position: from the output on; parent: the position of what it feeds, -1
    # none. parallelism, buffer_size: 0 where it has none. cpu_ns, runq_ns: totals of the process, so far.
    NODE: (
        "iterator", "t_read", "position", "parent", "node", "name", "elements", "processing_ns", "parallelism", "buffer_size",
        "buffered", "bytes_produced", "cpu_ns", "runq_ns",
    ),
    # One call of a Python function of a tf.data pipeline, of the few that are timed.
    CALL: ("t_begun", "t_done", "cpu_ns", "runq_ns"),
}  # fmt: skip


class Journal:
    """Writer of one process's journal.

    Args:
        path: the file to create; it must not exist.
        header: facts about the process, as JSON; must fit in `HEADER_BYTES`.
        keep: whether all is to be kept: the journal may become as large as that takes.

    Raises:
        OSError: the file cannot be created or filled.
    """

    def __init__(self, path: str, header: Dict[str, Any], keep: bool = False) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o600)
        try:
            os.write(self._fd, _head(header))
        except OSError:
            os.close(self._fd)
            raise
        self._maps: List[mmap.mmap] = []
        self._starts: List[int] = []
        self._next = itertools.count()
        self._texts: Dict[str, int] = {}
        self._lock = threading.Lock()
        self._most = MAX_KEPT_RECORDS if keep else MAX_RECORDS
        self.written = 0
        self.full = False
        self._grow(0)

    def write(self, kind: int, flags: int, extra: int, *values: int) -> None:
        """Append one record; dropped silently where the disk is full. Never blocks on another thread's write."""
        if self.full:
            return
        slot = next(self._next)
        segment = (slot // SEGMENT_RECORDS).bit_length()
        if segment >= len(self._maps) and not self._grow(segment):
            return
        target = self._maps[segment]
        offset = (slot - self._starts[segment]) * RECORD_BYTES
        pad = values + _ZEROS[len(values) :]
        _BODY.pack_into(target, offset, flags, extra, threading.get_ident() & 0xFFFFFFFF, *pad)
        target[offset] = kind
        self.written = slot

    def text(self, text: str, most: Optional[int] = None) -> int:
        """Return the number of a text, writing it on first use; 0 for a new one where there are `most` already."""
        number = self._texts.get(text)
        if number is None:
            if most is not None and len(self._texts) >= most:
                return 0
            with self._lock:
                number = self._texts.setdefault(text, len(self._texts) + 1)
            self._write_text(number, text.encode("utf-8", "replace")[:65536])
        return number

    def pressure(self) -> int:
        """Return for how many batches one record should stand, so that the journal stays within its limit."""
        left = max(1e-9, 1.0 - self.written / self._most)
        return int(8 ** min(9, int(1 / left).bit_length() - 1))

    def _write_text(self, number: int, raw: bytes) -> None:
        for offset in range(0, max(1, len(raw)), _TEXT_BYTES):
            slot = next(self._next)
            segment = (slot // SEGMENT_RECORDS).bit_length()
            if self.full or (segment >= len(self._maps) and not self._grow(segment)):
                return
            target, at = self._maps[segment], (slot - self._starts[segment]) * RECORD_BYTES
            chunk = raw[offset : offset + _TEXT_BYTES]
            _TEXT_HEAD.pack_into(target, at, 0, 0, 0, number, offset << 32 | len(raw))
            target[at + _TEXT_HEAD.size : at + _TEXT_HEAD.size + len(chunk)] = chunk
            target[at] = TEXT
            self.written = slot

    def _grow(self, segment: int) -> bool:
        """Map further segments; storage is allocated first, because a full disk would else end the job by SIGBUS."""
        with self._lock:
            while len(self._maps) <= segment and not self.full:
                first = SEGMENT_RECORDS << len(self._maps) >> 1 if self._maps else 0
                offset, size = HEADER_BYTES + first * RECORD_BYTES, max(first, SEGMENT_RECORDS) * RECORD_BYTES
                try:
                    if first >= self._most:
                        raise OSError("journal is at its bound")
                    if hasattr(os, "posix_fallocate"):
                        os.posix_fallocate(self._fd, offset, size)
                    else:
                        os.ftruncate(self._fd, offset + size)
                    self._starts.append(first)
                    self._maps.append(mmap.mmap(self._fd, size, offset=offset))
                except (OSError, ValueError):
                    self.full = True
        return not self.full


def watches(path: str) -> bool:
    """Return whether a journal's first records show a watched iterable; False where it cannot be read."""
    return any(kind == ITERATOR and flags & WATCHED for kind, flags in _first_records(path))


def has_batches(path: str) -> bool:
    """Return whether a journal's first records show a batch that a loop took; False where it cannot be read."""
    return any(kind == TAKE for kind, _ in _first_records(path))


def _first_records(path: str) -> List[Tuple[int, int]]:
    try:
        with open(path, "rb") as file:
            raw = file.read(HEADER_BYTES + SEGMENT_RECORDS * RECORD_BYTES)[HEADER_BYTES:]
    except OSError:
        return []
    return [(raw[at], raw[at + 1]) for at in range(0, len(raw) - RECORD_BYTES + 1, RECORD_BYTES)]


def _head(header: Dict[str, Any]) -> bytes:
    """Return the header as it stands in the file; facts that would not fit are left out, the long ones first."""
    kept = dict(header)
    while True:
        head = MAGIC + json.dumps(kept).encode()
        if len(head) < HEADER_BYTES or not kept:
            return head[: HEADER_BYTES - 1].ljust(HEADER_BYTES, b"\0")
        del kept[max(kept, key=lambda name: len(json.dumps(kept[name])))]


_ZEROS = (0,) * 15
