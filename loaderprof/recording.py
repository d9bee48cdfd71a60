"""What was seen: the recording folder, its files, and reading them into numpy tables.

A folder holds `recording.json` (what was run, where and when), `journals/*.lpj` (one a process, see `journal.py`),
`host.jsonl` and `stacks.jsonl` (the supervisor's samples, one JSON object a line) and what was made from them
(`findings.json`, `report.html`). Reading is strict about versions and lenient about a torn tail: a journal counts to
its last whole record, a JSON-lines file to its last whole line. Nothing read is ever executed.

Imports numpy and the standard library; used by everything that thinks, and by capture for writing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loaderprof import intake
from loaderprof import journal as layout
from loaderprof.errors import RecordingError
from loaderprof.files import FORMAT, HOST, JOURNALS, META, NODES, STACKS, read_bounded

if TYPE_CHECKING:
    from loaderprof.findings import Findings

# A recording is data from elsewhere: no file of it is read beyond these bounds.
MAX_JOURNAL_BYTES = layout.HEADER_BYTES + layout.MAX_RECORDS * layout.RECORD_BYTES
# Of all journals together: links to one file could make any number of them.
MAX_JOURNALS_BYTES = 4 << 30
MAX_LINES_BYTES = 256 << 20
MAX_META_BYTES = 16 << 20
MAX_JOURNALS = 20_000
MAX_NODES = 400
# More are not named one by one.
FEW_NODES = 3
# The kernel's own bound of process ids; ids of one node lie below it.
MAX_PID = 1 << 22

_RECORD = np.dtype(
    [("kind", "u1"), ("flags", "u1"), ("extra", "<u2"), ("thread", "<u4"), ("v", "<i8", 15)], align=False
)  # fmt: skip
Table = np.ndarray[Any, np.dtype[Any]]


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
    header: dict[str, Any]

    @property
    def own_pid(self) -> int:
        """The process id on its own node."""
        return self.pid % MAX_PID


@dataclass(frozen=True, slots=True)
class StackSamples:
    """Samples that shared one stack in one window: root-first frames `function (file:line)`, and how many."""

    t_begun: int
    t_done: int
    rate_hz: float
    pid: int
    thread: str
    frames: tuple[str, ...]
    count: int


@dataclass(frozen=True, slots=True)
class ThreadUse:
    """What one thread used of the CPU within one window of stack samples, and how long it waited for a core."""

    pid: int
    thread: str
    wall_s: float
    cpu_s: float
    runq_s: float


@dataclass(frozen=True, slots=True)
class LockLooks:
    """Looks at where one thread sleeps, within one window of stack samples, and in how many of them it slept on a lock."""

    pid: int
    thread: str
    looks: int
    asleep: int


@dataclass(frozen=True, slots=True)
class OpenFiles:
    """What one process held open when a window of stack samples began: how many descriptors, and data files by size."""

    pid: int
    descriptors: int
    files: dict[str, int]


@dataclass(frozen=True, slots=True)
class SummedLoop:
    """What is kept of a loop of a rank whose records were let go: its steady means, seconds a batch; None: not seen."""

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
    """A process of a job of many ranks that is told by its loops' means alone."""

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
        gil: by window: process, samples in which one of its threads held the interpreter's lock, and samples in all.
        locks: by window and thread of a process with a watched loop: looks at where it sleeps.
        open_files: by window and process; empty where it was not recorded.
        others: of many ranks those that were only summed up; the tables hold nothing of them.
        notes: what could not be read, in words for the report.
        journal_bytes: how much was read of all journals together.
    """

    folder: Path
    meta: dict[str, Any]
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

    def findings(self) -> Findings:
        """Conclude from this recording, and join what `verify` measured of the advice."""
        from loaderprof.conclude import conclude
        from loaderprof.verified import joined

        return joined(conclude(self), self.folder)


KINDS = {name.lower(): getattr(layout, name) for name in (
    "ITERATOR", "TAKE", "END", "FETCH", "PICKLE", "RECEIVE", "PIN", "OPERATOR", "SAMPLE", "SIZE", "WORKER", "DEVICE",
    "PAUSE", "SETUP", "PHASES", "NODE", "CALL",
)}  # fmt: skip


def read(folder: str | os.PathLike[str], whole: Callable[[Process], bool] | None = None) -> Recording:
    """Read a recording folder.

    Args:
        folder: the recording.
        whole: tells which processes' records are read; of the others there is an entry in `processes` and nothing
            else. None: all.

    Raises:
        RecordingError: it is no recording, its `recording.json` is damaged, or it is from a newer loaderprof.
    """
    path = Path(folder)
    meta, left_out = intake.meta(_read_meta(path))
    recording = Recording(path, meta)
    recording.notes.extend(f"{META}: {name} is damaged and was left out" for name in left_out)
    parts: dict[str, list[Table]] = {name: [] for name in KINDS}
    for node, clock in _nodes(path, meta, recording.notes):
        _read_node(node, recording, parts, clock, whole)
    recording.host = [kept for line in _lines(path / HOST) if (kept := intake.host_line(line)) is not None]
    if recording.journal_bytes >= MAX_JOURNALS_BYTES:
        recording.notes.append(f"the journals hold more than {MAX_JOURNALS_BYTES >> 30} GiB; the rest was left out")
    # The names of files are part of some.
    recording.notes[:] = map(intake.printable, recording.notes)
    _join(recording, parts)
    return recording


def one_by_one(folder: str | os.PathLike[str]) -> Iterator[Recording]:
    """Yield a recording of each process that is no worker, with its own records and nothing else.

    Raises:
        RecordingError: as `read`.
    """
    path = Path(folder)
    meta, _ = intake.meta(_read_meta(path))
    for node, clock in _nodes(path, meta, []):
        for file in _journals(node):
            alone, parts = Recording(path, meta), {name: list[Table]() for name in KINDS}
            _read_journal(file, alone, parts, clock, lambda process: process.worker is None)
            if alone.processes and alone.processes[0].worker is None:
                _join(alone, parts)
                yield alone


def _join(recording: Recording, parts: dict[str, list[Table]]) -> None:
    for name, kind in KINDS.items():
        # Each kind's pieces are let go before the next kind's are joined.
        pieces = parts.pop(name)
        recording.tables[name] = np.concatenate(pieces) if pieces else np.zeros(0, _dtype(kind))


@dataclass(frozen=True, slots=True)
class _Clock:
    """What makes a further node's records those of one recording: added to its process ids and to its moments."""

    pids: int
    ns: int


def _nodes(path: Path, meta: dict[str, Any], notes: list[str]) -> Iterator[tuple[Path, _Clock]]:
    """Yield the folders of a job's nodes: their processes get ids of their own, their moments the first node's clock."""
    yield path, _Clock(0, 0)
    merged = []
    for number, folder in enumerate(_further_nodes(path, notes), 1):
        try:
            own, _ = intake.meta(_read_meta(folder))
            clocks = [each["started_unix_ns"] - each["started_ns"] for each in (own, meta)]
        except (RecordingError, KeyError, TypeError):
            notes.append(f"{NODES}/{folder.name} is no recording of a node and was left out")
            continue
        yield folder, _Clock(number * MAX_PID, clocks[0] - clocks[1])
        merged.append(f"the node {own.get('host') or folder.name} was merged")
    if len(merged) > FEW_NODES:
        merged = [f"{len(merged):,} further nodes were merged"]
    notes.extend(f"{each}; samples of machines are the first node's" for each in merged)


def _further_nodes(folder: Path, notes: list[str]) -> list[Path]:
    try:
        return sorted((folder / NODES).iterdir())[:MAX_NODES]
    except FileNotFoundError:
        return []
    except OSError as error:
        notes.append(f"{NODES} could not be read: {error.strerror}")
        return []


def _journals(folder: Path) -> list[Path]:
    return sorted((folder / JOURNALS).glob("*.lpj"))[:MAX_JOURNALS] if (folder / JOURNALS).is_dir() else []


def _read_node(
    folder: Path, recording: Recording, parts: dict[str, list[Table]], clock: _Clock,
    whole: Callable[[Process], bool] | None,
) -> None:  # fmt: skip
    # The bound is of the whole recording, whatever its nodes.
    first = len(recording.processes)
    for file in _journals(folder)[: max(0, MAX_JOURNALS - first)]:
        _read_journal(file, recording, parts, clock, whole)
    if whole is not None and not any(map(whole, recording.processes[first:])):
        return
    for line in _lines(folder / STACKS):
        _move(line, clock)
        recording.stacks.extend(_stack_samples(line))
        recording.threads.extend(_thread_uses(line))
        recording.gil.extend(_lock_samples(line))
        recording.locks.extend(_lock_looks(line))
        recording.open_files.extend(_open_files(line))


def _move(line: dict[str, Any], clock: _Clock) -> None:
    """Give a window of stack samples the first node's clock, and its processes their ids in the whole recording."""
    if not clock.pids:
        return
    for key in ("t0", "t1"):
        if isinstance(line.get(key), int):
            line[key] += clock.ns
    for key in ("stacks", "threads", "gil", "locks", "files"):
        for row in line[key] if isinstance(line.get(key), list) else ():
            if isinstance(row, list) and row and isinstance(row[0], int):
                row[0] += clock.pids


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


def _dtype(kind: int) -> np.dtype[Any]:
    fields = [("process", "i4"), ("flags", "u1"), ("extra", "u2"), ("thread", "u4")]
    return np.dtype(fields + [(name, "i8") for name in layout.FIELDS[kind]])


def _read_journal(
    file: Path, recording: Recording, parts: dict[str, list[Table]], clock: _Clock,
    whole: Callable[[Process], bool] | None,
) -> None:  # fmt: skip
    if not file.is_file():
        recording.notes.append(f"{file.name} is no file and was left out")
        return
    try:
        with open(file, "rb") as source:
            head = source.read(layout.HEADER_BYTES)
            process = _enter(file, head, recording, clock)
            room = min(MAX_JOURNAL_BYTES, MAX_JOURNALS_BYTES - recording.journal_bytes)
            body = source.read(room) if process and (whole is None or whole(process)) else b""
    except OSError as error:
        recording.notes.append(f"{file.name} could not be read: {error.strerror}")
        return
    if process is None:
        return
    number = process.number
    recording.journal_bytes += len(body)
    records = np.frombuffer(body[: len(body) // _RECORD.itemsize * _RECORD.itemsize], _RECORD)
    texts = _texts(records[records["kind"] == layout.TEXT])
    offset = _number_texts(texts, recording)
    damaged = 0
    for name, kind in KINDS.items():
        rows = records[records["kind"] == kind]
        if len(rows):
            good = intake.possible(kind, rows["v"])
            damaged += len(rows) - int(good.sum())
            parts[name].append(_table(kind, rows[good], number, offset, clock))
    if damaged:
        recording.notes.append(f"{damaged} damaged records of {file.name} were left out")


def _enter(file: Path, head: bytes, recording: Recording, clock: _Clock) -> Process | None:
    """Enter the process that a journal's header is of; None where it is damaged."""
    if head.startswith(b"loaderprof-journal ") and not head.startswith(layout.MAGIC):
        raise RecordingError(f"{file.name} was written by a newer loaderprof", "pip install --upgrade loaderprof")
    header = intake.header(head[len(layout.MAGIC) :].rstrip(b"\0")) if head.startswith(layout.MAGIC) else None
    if header is None:
        recording.notes.append(f"{file.name} is damaged and was left out")
        return None
    header["pid"] += clock.pids
    header["ppid"] += clock.pids
    recording.processes.append(_process(len(recording.processes), header))
    return recording.processes[-1]


def _process(number: int, header: dict[str, Any]) -> Process:
    environment = header.get("environment")
    rank = None
    for name in ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK"):
        value = environment.get(name) if isinstance(environment, dict) else None
        if isinstance(value, str) and value.isdecimal() and len(value) < 8:
            rank = int(value)
            break
    return Process(
        number=number, pid=header["pid"], ppid=header["ppid"], host=header.get("host") or "",
        worker=header.get("worker"), rank=rank, header=header,
    )  # fmt: skip


def _texts(rows: Table) -> dict[int, str]:
    """Put the texts of one journal together again; a text torn by a kill is left out."""
    # By place: two threads that met a text at the same moment both wrote it.
    chunks: dict[int, dict[int, bytes]] = {}
    lengths: dict[int, int] = {}
    for row in rows:
        number, place = int(row["v"][0]), int(row["v"][1])
        chunks.setdefault(number, {})[place >> 32] = row["v"][2:].tobytes()
        lengths[number] = place & 0xFFFFFFFF
    whole = {}
    for number, pieces in chunks.items():
        raw = b"".join(piece for _, piece in sorted(pieces.items()))
        if len(raw) >= lengths[number]:
            whole[number] = raw[: lengths[number]].decode("utf-8", "replace")
    return whole


def _number_texts(texts: dict[int, str], recording: Recording) -> dict[int, int]:
    """Give one journal's texts their numbers in the whole recording."""
    known = {text: number for number, text in enumerate(recording.texts)}
    offset = {}
    for number, text in texts.items():
        if text not in known:
            known[text] = len(recording.texts)
            recording.texts.append(text)
        offset[number] = known[text]
    return offset


def _table(kind: int, rows: Table, process: int, texts: dict[int, int], clock: _Clock) -> Table:
    table = np.zeros(len(rows), _dtype(kind))
    table["process"] = process
    for name in ("flags", "extra", "thread"):
        table[name] = rows[name]
    for column, name in enumerate(layout.FIELDS[kind]):
        values = rows["v"][:, column]
        if name in ("loader", "name", "caller", "file", "error"):
            values = np.array([texts.get(int(value), -1) for value in values], np.int64)
        elif name == "runq_ns":
            values = np.maximum(values, 0)
        elif name == "pid":
            values = values + clock.pids
        elif name.startswith("t_"):
            # 0 stands for a moment that was not taken.
            values = np.where(values > 0, values + clock.ns, values)
        table[name] = values
    return table


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    try:
        raw = read_bounded(file, MAX_LINES_BYTES)
    except OSError:
        return
    for line in raw.split(b"\n"):
        try:
            value = json.loads(line) if line else None
        except (ValueError, RecursionError):
            continue  # the torn last line of a killed supervisor
        if isinstance(value, dict):
            yield value


def _stack_samples(line: dict[str, Any]) -> Iterator[StackSamples]:
    try:
        frames = [intake.printable(str(frame)) for frame in line["frames"]]
        for pid, thread, numbers, count in line["stacks"]:
            sample = StackSamples(
                int(line["t0"]), int(line["t1"]), float(line["rate"]), int(pid), str(thread),
                tuple(frames[number] for number in numbers), int(count),
            )  # fmt: skip
            if intake.is_stack(sample.t_begun, sample.t_done, sample.rate_hz, sample.count) and sample.frames:
                yield sample
    except (KeyError, TypeError, ValueError, IndexError, OverflowError):
        return


def _thread_uses(line: dict[str, Any]) -> Iterator[ThreadUse]:
    try:
        wall_ns = int(line["t1"]) - int(line["t0"])
        for pid, thread, cpu_ns, runq_ns in line.get("threads", ()):
            if 0 < wall_ns < intake.MAX_NS and 0 <= cpu_ns < intake.MAX_NS and 0 <= runq_ns < intake.MAX_NS:
                yield ThreadUse(int(pid), str(thread), wall_ns / 1e9, cpu_ns / 1e9, runq_ns / 1e9)
    except (KeyError, TypeError, ValueError, OverflowError):
        return


def _lock_samples(line: dict[str, Any]) -> Iterator[tuple[int, int, int]]:
    try:
        for pid, held in line.get("gil", ()):
            # Every sample shows the main thread once.
            taken = sum(int(count) for of, thread, _, count in line["stacks"] if of == pid and thread == "MainThread")
            if 0 <= held < intake.MAX_COUNT and 0 < taken < intake.MAX_COUNT:
                yield int(pid), int(held), taken
    except (KeyError, TypeError, ValueError, OverflowError):
        return


def _lock_looks(line: dict[str, Any]) -> Iterator[LockLooks]:
    try:
        for pid, thread, looks, asleep in line.get("locks", ()):
            if 0 <= asleep <= looks < intake.MAX_COUNT:
                yield LockLooks(int(pid), str(thread), int(looks), int(asleep))
    except (KeyError, TypeError, ValueError, OverflowError):
        return


def _open_files(line: dict[str, Any]) -> Iterator[OpenFiles]:
    try:
        for pid, descriptors, files in line.get("files", ()):
            known = {intake.printable(str(path)): int(size) for path, size in files if 0 <= size < intake.MAX_NS}
            if 0 <= descriptors < intake.MAX_COUNT:
                yield OpenFiles(int(pid), int(descriptors), known)
    except (KeyError, TypeError, ValueError, OverflowError):
        return
