"""What was seen: the recording folder, its files, and reading them into numpy tables.

A folder holds `recording.json` (what was run, where and when), `journals/*.lpj` (one a process: `journal.py` writes
them, `tables.py` takes their records in), `host.jsonl` and `stacks.jsonl` (the supervisor's samples, one JSON object a
line, for the latter see `stacks.py`) and what was made from them (`findings.json`, `report.html`). Reading is strict
about versions and lenient about a torn tail: a journal counts to its last whole record, a JSON-lines file to its last
whole line. Nothing read is ever executed.

Imports numpy and the standard library; used by everything that thinks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loaderprof import formatting
from loaderprof.errors import RecordingError
from loaderprof.recording import journal as layout
from loaderprof.recording import stacks, tables, validate
from loaderprof.recording.facts import ProcessFacts
from loaderprof.recording.files import FORMAT, HOST, JOURNALS, META, NODES, STACKS, read_bounded, read_lines
from loaderprof.recording.meta import Meta
from loaderprof.recording.stacks import LockLooks, OpenFiles, StackSamples, ThreadUse
from loaderprof.recording.tables import Clock, Table

# A recording is data from elsewhere: no file of it is read beyond these bounds.
MAX_JOURNAL_BYTES = layout.HEADER_BYTES + layout.MAX_RECORDS * layout.RECORD_BYTES
# The bound for a journal that was recorded with `--keep`.
MAX_KEPT_BYTES = layout.HEADER_BYTES + layout.MAX_KEPT_RECORDS * layout.RECORD_BYTES
# Of all journals together: links to one file could make any number of them.
MAX_JOURNALS_BYTES = 4 << 30
MAX_LINES_BYTES = 256 << 20
MAX_META_BYTES = 16 << 20
MAX_JOURNALS = 20_000
MAX_NODES = 400
# Beyond so many, notes give a number in place of names.
FEW_NODES = 3
# The kernel's own bound of process ids; ids of one node lie below it.
MAX_PID = 1 << 22


@dataclass(frozen=True, slots=True)
class Process:
    """One process of the job. `worker` is its DataLoader worker number, None elsewhere.

    `pid` is unique in the recording; `own_pid` is what its node calls it.
    """

    number: int
    pid: int
    ppid: int
    host: str
    worker: int | None
    rank: int | None
    header: ProcessFacts

    @property
    def own_pid(self) -> int:
        """The process id on its own node."""
        return self.pid % MAX_PID


@dataclass(frozen=True, slots=True)
class SummedLoop:
    """What is kept of a loop of a rank whose records were released: steady means, seconds a batch; None: not measured."""

    name: str
    where: str | None
    training: bool
    main_thread: bool
    batches: int
    batch_size: int | None
    epochs: int
    wait_s: float | None
    step_s: float | None
    pace_s: float | None


@dataclass(frozen=True, slots=True)
class SummedRank:
    """A process of a job of many ranks of which only its loops' means are kept."""

    process: Process
    loops: tuple[SummedLoop, ...]


@dataclass(slots=True)
class Recording:
    """A recording in memory.

    Attributes:
        tables: by lower-case kind (`take`, `fetch`, ...): structured arrays with the fields of `journal.FIELDS` plus
            `process` (index into `processes`), `flags`, `extra` and `thread`; times are nanoseconds of one clock.
        texts: what the `loader`, `name` and `caller` fields of the tables number.
        host: the supervisor's samples, oldest first.
        threads: the kernel's account of the threads that stacks were taken of; empty where it was not recorded.
        gil: by window: process, samples in which one of its threads held the GIL, and samples in all.
        locks: by window and thread of a process with a watched loop: looks at where it sleeps.
        open_files: by window and process; empty where it was not recorded.
        others: of many ranks those that were only summed up; the tables hold nothing of them.
        notes: what could not be read, in words for the report.
        journal_bytes: how much was read of all journals together.
    """

    folder: Path
    meta: Meta
    processes: list[Process] = field(default_factory=list)
    tables: dict[str, Table] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    host: list[dict[str, Any]] = field(default_factory=list)
    stacks: list[StackSamples] = field(default_factory=list)
    threads: list[ThreadUse] = field(default_factory=list)
    gil: list[tuple[int, int, int]] = field(default_factory=list)
    locks: list[LockLooks] = field(default_factory=list)
    open_files: list[OpenFiles] = field(default_factory=list)
    others: tuple[SummedRank, ...] = ()
    notes: list[str] = field(default_factory=list)
    journal_bytes: int = 0


def read(folder: str | os.PathLike[str], whole: Callable[[Process], bool] | None = None) -> Recording:
    """Read a recording folder.

    Args:
        folder: the recording.
        whole: whether a process's records are read; of the others there is an entry in `processes` and nothing
            else. None: all.

    Raises:
        RecordingError: it is no recording, its `recording.json` is damaged, or it is from a newer loaderprof.
    """
    path = Path(folder)
    meta, left_out = validate.meta(_read_meta(path))
    recording = Recording(path, meta)
    recording.notes.extend(f"{META}: {name} is damaged and was left out" for name in left_out)
    parts = tables.no_parts()
    for node, clock in _nodes(path, meta, recording.notes):
        _read_node(node, recording, parts, clock, whole)
    recording.host = [
        kept for line in read_lines(path / HOST, MAX_LINES_BYTES) if (kept := validate.host_line(line)) is not None
    ]
    if recording.journal_bytes >= MAX_JOURNALS_BYTES:
        recording.notes.append(
            f"the journals hold more than {formatting.size(MAX_JOURNALS_BYTES)}; the rest was left out"
        )
    # Some notes contain names of files.
    recording.notes[:] = map(validate.printable, recording.notes)
    recording.tables = tables.joined(parts)
    return recording


def processes(folder: str | os.PathLike[str]) -> list[Process]:
    """Return the processes of a recording; of their journals only the headers are read, of its other files nothing.

    Raises:
        RecordingError: as `read`.
    """
    path = Path(folder)
    meta, _ = validate.meta(_read_meta(path))
    heads = Recording(path, meta)
    for node, clock in _nodes(path, meta, heads.notes):
        for file in _journals(node, len(heads.processes)):
            _enter(file, heads, clock, lambda _: False)
    return heads.processes


def one_by_one(folder: str | os.PathLike[str]) -> Iterator[Recording]:
    """Yield a recording of each process that is no worker, with its own records and nothing else.

    Raises:
        RecordingError: as `read`.
    """
    path = Path(folder)
    meta, _ = validate.meta(_read_meta(path))
    for node, clock in _nodes(path, meta, []):
        for file in _journals(node):
            alone, parts = Recording(path, meta), tables.no_parts()
            _read_journal(file, alone, parts, clock, lambda process: process.worker is None)
            if alone.processes and alone.processes[0].worker is None:
                alone.tables = tables.joined(parts)
                yield alone


def _nodes(path: Path, meta: Meta, notes: list[str]) -> Iterator[tuple[Path, Clock]]:
    """Yield the folders of a job's nodes: their processes get ids of their own, their moments the first node's clock."""
    yield path, Clock(0, 0)
    merged = []
    for number, folder in enumerate(_further_nodes(path, notes), 1):
        try:
            own, _ = validate.meta(_read_meta(folder))
        except RecordingError:
            own = Meta()
        offset, first = _clock_offset(own), _clock_offset(meta)
        if offset is None or first is None:
            notes.append(f"{NODES}/{folder.name} is no recording of a node and was left out")
            continue
        yield folder, Clock(number * MAX_PID, offset - first)
        merged.append(f"the node {own.host or folder.name} was merged")
    if len(merged) > FEW_NODES:
        merged = [f"{len(merged):,} further nodes were merged"]
    notes.extend(f"{each}; samples of machines are the first node's" for each in merged)


def _clock_offset(meta: Meta) -> int | None:
    """Return how far a node's clock is behind the time since 1970, in nanoseconds; None where it is not known."""
    if meta.started_unix_ns is None or meta.started_ns is None:
        return None
    return meta.started_unix_ns - meta.started_ns


def _further_nodes(folder: Path, notes: list[str]) -> list[Path]:
    try:
        return sorted((folder / NODES).iterdir())[:MAX_NODES]
    except FileNotFoundError:
        return []
    except OSError as error:
        notes.append(f"{NODES} could not be read: {error.strerror}")
        return []


def _journals(folder: Path, known: int = 0) -> list[Path]:
    """Return a node's journals; `known`: processes of other nodes, as the bound is of the whole recording."""
    if not (folder / JOURNALS).is_dir():
        return []
    return sorted((folder / JOURNALS).glob("*.lpj"))[: max(0, MAX_JOURNALS - known)]


def _read_node(
    folder: Path, recording: Recording, parts: tables.Parts, clock: Clock, whole: Callable[[Process], bool] | None
) -> None:
    first = len(recording.processes)
    for file in _journals(folder, first):
        _read_journal(file, recording, parts, clock, whole)
    if whole is not None and not any(map(whole, recording.processes[first:])):
        return
    for line in read_lines(folder / STACKS, MAX_LINES_BYTES):
        stacks.move(line, clock)
        recording.stacks.extend(stacks.samples(line))
        recording.threads.extend(stacks.thread_uses(line))
        recording.gil.extend(stacks.lock_samples(line))
        recording.locks.extend(stacks.lock_looks(line))
        recording.open_files.extend(stacks.open_files(line))


def _read_meta(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise RecordingError(f"{folder} is not a folder", "loaderprof run -o DIR train.py makes a recording")
    try:
        meta = json.loads(read_bounded(folder / META, MAX_META_BYTES))
    except FileNotFoundError:
        raise RecordingError(
            f"{folder} is no recording: it has no {META}", "loaderprof run -o DIR train.py makes one"
        ) from None
    except (OSError, ValueError, RecursionError):
        raise RecordingError(f"{folder / META} cannot be read or is damaged") from None
    version = meta.get("format") if isinstance(meta, dict) else None
    if not isinstance(version, int):
        raise RecordingError(f"{folder / META} is damaged: it names no format")
    if version > FORMAT:
        raise RecordingError(
            f"{folder} was recorded by a newer loaderprof (format {version}, this one reads {FORMAT})",
            "pip install --upgrade loaderprof",
        )
    return dict(meta)


def _read_journal(
    file: Path, recording: Recording, parts: tables.Parts, clock: Clock, whole: Callable[[Process], bool] | None
) -> None:
    number = len(recording.processes)
    body = _enter(file, recording, clock, whole)
    damaged = tables.add(parts, body, number, recording.texts, clock)
    if damaged:
        recording.notes.append(f"{damaged} damaged records of {file.name} were left out")


def _enter(file: Path, recording: Recording, clock: Clock, whole: Callable[[Process], bool] | None) -> bytes:
    """Add a journal's process to the recording, and return its records where they are to be read; else a note says why not."""
    if not file.is_file():
        recording.notes.append(f"{file.name} is no file and was left out")
        return b""
    try:
        # Without a size a buffer is one block of the file system, a megabyte on network ones.
        with open(file, "rb", buffering=layout.HEADER_BYTES) as source:
            header = _header(file.name, source.read(layout.HEADER_BYTES), clock)
            if header is None:
                recording.notes.append(f"{file.name} is damaged and was left out")
                return b""
            recording.processes.append(_process(len(recording.processes), header))
            if whole is not None and not whole(recording.processes[-1]):
                return b""
            most = MAX_KEPT_BYTES if recording.meta.keep else MAX_JOURNAL_BYTES
            body = source.read(min(most, MAX_JOURNALS_BYTES - recording.journal_bytes))
    except OSError as error:
        recording.notes.append(f"{file.name} could not be read: {error.strerror}")
        return b""
    recording.journal_bytes += len(body)
    return body


def _header(name: str, head: bytes, clock: Clock) -> ProcessFacts | None:
    """Return what heads a journal, its process ids those of the whole recording; None where it is damaged."""
    if head.startswith(b"loaderprof-journal ") and not head.startswith(layout.MAGIC):
        raise RecordingError(f"{name} was written by a newer loaderprof", "pip install --upgrade loaderprof")
    header = validate.header(head[len(layout.MAGIC) :].rstrip(b"\0")) if head.startswith(layout.MAGIC) else None
    if header is None or header.pid is None or header.ppid is None:
        return None
    return replace(header, pid=header.pid + clock.pids, ppid=header.ppid + clock.pids)


def _process(number: int, header: ProcessFacts) -> Process:
    rank = None
    for name in ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK"):
        value = header.environment.get(name)
        if value is not None and value.isdecimal() and len(value) < 8:
            rank = int(value)
            break
    return Process(
        number=number,
        pid=header.pid or 0,
        ppid=header.ppid or 0,
        host=header.host or "",
        worker=header.worker,
        rank=rank,
        header=header,
    )
