"""The stacks of a job that was watched from outside, counted: what its loop and its workers were doing.

Every sample of a main thread lies in one part of the loop's time (`wait`, a stage of making where there are no
workers, `handover`, `sampler`, `startup`, `host`, `device`), every sample of a worker in a stage or in `idle`. Shares
of samples are shares of time, with a sampling error that is stated. Pure: no torch, no clock, no processes.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loaderprof import formatting
from loaderprof.analyze.breakdown import fetch_frame, sources_of
from loaderprof.analyze.loop_side import host_place, shown_place
from loaderprof.analyze.stages import WORK, split_frame, stage_of_stack
from loaderprof.findings import Stage
from loaderprof.recording.reader import Recording
from loaderprof.recording.stacks import StackSamples

LOADER_FILE = "torch/utils/data/dataloader.py"
WORKER_FRAME = "_worker_loop ("
NEXT = {"__next__", "_next_data"}
# Frames in which a batch is received: its bytes have arrived and become tensors.
RECEIVING = (
    "torch/multiprocessing/reductions.py",
    "multiprocessing/resource_sharer.py",
    "multiprocessing/reduction.py",
)
RECEIVING_CALLS = {"recv_bytes", "_recv_bytes", "_recv", "recv", "loads"}
# From so many windows on, their scatter is a better estimate of the error than the number of samples: one slow step fills
# many samples in a row, which then are not independent.
MIN_WINDOWS = 4
# The parts of the main thread's time in which its loop has no batch.
WAITING = ("wait", "handover", "sampler", *WORK)


@dataclass(frozen=True, slots=True)
class Share:
    """A share of time by samples, and the half-width of its 95 % interval."""

    value: float
    error: float
    samples: int

    def text(self) -> str:
        """Return the share and its error in words."""
        return f"{formatting.percent(self.value, whole=True)} ± {max(1, math.ceil(100 * self.error - 0.5))} points"


@dataclass(frozen=True, slots=True)
class Account:
    """What the kernel says of the workers (or of the main processes, without workers), as shares of their time.

    `threads` is the CPU of the whole process over that of its first thread; bytes are a second and process.
    """

    cpu: float
    runq: float
    threads: float | None
    asked_bytes: float | None
    device_bytes: float | None


@dataclass(frozen=True, slots=True)
class Seen:
    """All that the samples hold, counted."""

    main: Counter[str]
    worker: Counter[str]
    windows: tuple[tuple[int, int], ...]
    pieces: Counter[tuple[Stage, str, str | None]]
    operators: frozenset[str]
    host_lines: Counter[str]
    where: str | None
    by_main: Mapping[int, tuple[int, int]]
    elsewhere: str | None
    workers: int
    account: Account | None

    @property
    def main_samples(self) -> int:
        """Samples of main threads."""
        return sum(self.main.values())

    @property
    def worker_samples(self) -> int:
        """Samples of workers."""
        return sum(self.worker.values())


def look(recording: Recording) -> Seen:
    """Count the stacks of a recording."""
    sources = sources_of(recording)
    mains = {pid for pid, _ in watched_mains(recording)}
    main: Counter[str] = Counter()
    worker: Counter[str] = Counter()
    pieces: Counter[tuple[Stage, str, str | None]] = Counter()
    host_lines: Counter[str] = Counter()
    places: Counter[str] = Counter()
    windows: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0])
    threads: Counter[str] = Counter()
    operators: set[str] = set()
    for sample in recording.stacks:
        frames = sample.frames
        if frames and frames[0].startswith(WORKER_FRAME):
            if sample.thread == "MainThread":
                part = worker_part(frames, sources)
                worker[part] += sample.count
                _add_piece(recording, part, sample, sources, pieces, operators)
        elif sample.pid in mains and sample.thread == "MainThread":
            part = main_part(frames, sources)
            main[part] += sample.count
            window = windows[sample.pid, sample.t_begun]
            window[1] += sample.count
            if part in WAITING:
                window[0] += sample.count
                places[_iterated_at(frames, sources)] += sample.count
                _add_piece(recording, part, sample, sources, pieces, operators)
            elif part == "host":
                host_lines[host_place(frames, sources) or ""] += sample.count
        elif sample.pid in mains and any(LOADER_FILE in frame and _called(frame) in NEXT for frame in frames):
            threads[sample.thread] += sample.count
    by_main: dict[int, tuple[int, int]] = {}
    for (pid, _), (waits, total) in windows.items():
        before = by_main.get(pid, (0, 0))
        by_main[pid] = before[0] + waits, before[1] + total
    where = next((place for place, _ in places.most_common(1) if place), None)
    elsewhere = next(iter(threads), None) if threads and not any(main[part] for part in WAITING) else None
    workers = _workers(recording)
    return Seen(
        main,
        worker,
        tuple((waits, total) for waits, total in windows.values()),
        pieces,
        frozenset(operators),
        host_lines,
        shown_place(recording, where or ""),
        by_main,
        elsewhere,
        workers,
        _account(recording, workers),
    )


def main_part(frames: tuple[str, ...], sources: dict[str, str]) -> str:
    """Return the part of the loop's time that a main thread's stack lies in."""
    calls = [(function.rsplit(".", 1)[-1], file) for function, file, _ in map(split_frame, frames)]
    loader = {function for function, file in calls if file.endswith(LOADER_FILE)}
    if not loader:
        return "host" if host_place(frames, sources) is not None else "device"
    # Workers are stopped from within the last `__next__` of an epoch.
    if not loader & NEXT or "_shutdown_workers" in loader:
        return "startup"
    if "_next_index" in loader:
        return "sampler"
    at = fetch_frame(frames)
    if at is not None:
        return _making(frames[at:], sources)
    leaf, leaf_file = calls[-1]
    taken_out = leaf in ("get", "recv") and leaf_file.endswith(("multiprocessing/queues.py", "queue.py"))
    received = any(file.endswith(RECEIVING) or function in RECEIVING_CALLS for function, file in calls)
    return "handover" if received or taken_out else "wait"


def worker_part(frames: tuple[str, ...], sources: dict[str, str]) -> str:
    """Return what a worker does in a stack that begins with its loop: a stage, `idle` or `handover`."""
    at = fetch_frame(frames)
    if at is not None:
        return _making(frames[at:], sources)
    called = _called(frames[1]) if len(frames) > 1 else ""
    return "idle" if called == "get" else "handover" if called == "put" else "other"


def _making(frames: tuple[str, ...], sources: dict[str, str]) -> str:
    stage = stage_of_stack(frames, sources) or "transform"
    return stage if stage in WORK else "transform"


def _called(frame: str) -> str:
    return split_frame(frame)[0].rsplit(".", 1)[-1]


def _iterated_at(frames: tuple[str, ...], sources: dict[str, str]) -> str:
    """Return the user's line that asks the loader for a batch."""
    place = ""
    for frame in frames:
        _, file, line = split_frame(frame)
        if file.endswith(LOADER_FILE):
            return place
        if f"{file}:{line}" in sources:
            place = f"{file}:{line}"
    return place


def _add_piece(
    recording: Recording,
    part: str,
    sample: StackSamples,
    sources: dict[str, str],
    pieces: Counter[tuple[Stage, str, str | None]],
    operators: set[str],
) -> None:
    """Count a producer's sample under the innermost function and the user's line that called it."""
    at = fetch_frame(sample.frames)
    if part not in WORK or at is None:
        return
    frames = sample.frames[at + 1 :]
    operators.update(map(dotted, frames))
    users = [frame for frame in frames if _users_place(frame) in sources]
    where = shown_place(recording, _users_place(users[-1])) if users else None
    inner = frames[frames.index(users[-1]) + 1 :] if users else frames
    # The first frame below the user's line is the library's function that was called; without one, the line itself.
    name = dotted(inner[0]) if inner else split_frame(users[-1])[0] if users else "collate"
    pieces[part, name, where] += sample.count


def _users_place(frame: str) -> str:
    _, file, line = split_frame(frame)
    return f"{file}:{line}"


def dotted(frame: str) -> str:
    """Return a frame as timers name it: module and function, `PIL.ImageFile.ImageFile.load`."""
    function, file, _ = split_frame(frame)
    module = re.sub(
        r"^.*?/(?:(?:site|dist)-packages|python3(?:\.\d+)?)/",
        "",
        re.sub(r"^.*/(?:site|dist)-packages/", "/x/site-packages/", file),
    )
    return f"{module.removesuffix('.py').removesuffix('/__init__').strip('/').replace('/', '.')}.{function}"


def waiting(seen: Seen) -> Share:
    """Return the share of its time that the loop has no batch, by samples of the main thread."""
    hits = sum(seen.main[part] for part in WAITING)
    return share(hits, seen.main_samples, seen.windows)


def share(hits: int, samples: int, windows: tuple[tuple[int, int], ...] = ()) -> Share:
    """Return a share with its error: the binomial one, or that of the scatter between windows where it is larger.

    Args:
        hits: samples that count.
        samples: all samples.
        windows: (hits, samples) of each window; empty where they are not known.
    """
    if not samples:
        return Share(0.0, 1.0, 0)
    value = hits / samples
    # No share is known better than to one sample, all or none.
    spread = math.sqrt(max(value * (1 - value), 1 / samples) / samples)
    if len(windows) >= MIN_WINDOWS:
        each = [part / whole for part, whole in windows if whole >= 10]
        if len(each) >= MIN_WINDOWS:
            spread = max(spread, statistics.stdev(each) / math.sqrt(len(each)))
    return Share(value, 1.96 * spread, samples)


def watched_mains(recording: Recording) -> list[tuple[int, int | None]]:
    """Return the process id and the rank of each process that runs a training loop, of a job watched from outside."""
    return [(each.pid, each.rank) for each in recording.meta.attach.mains if each.pid is not None]


def _accounts(recording: Recording) -> list[tuple[int, list[dict[str, Any]]]]:
    """Return (moment in ns, entries) of the kernel's accounts."""
    lines = [(line["t"], line["accounts"]) for line in recording.host if isinstance(line.get("accounts"), list)]
    return [(moment, [entry for entry in entries if isinstance(entry, dict)]) for moment, entries in lines]


def _workers(recording: Recording) -> int:
    """Return how many workers a main process has; those that stacks showed where torch gave them no names."""
    mains = len(watched_mains(recording)) or 1
    counts = [sum(entry.get("main") is not None for entry in entries) for _, entries in _accounts(recording)]
    # Between two epochs there are none.
    alive = [count for count in counts if count]
    if alive:
        return max(1, round(statistics.median(alive) / mains))
    return len(
        {sample.pid for sample in recording.stacks if sample.frames and sample.frames[0].startswith(WORKER_FRAME)}
    )


def _account(recording: Recording, workers: int) -> Account | None:
    """Return the kernel's account of the producers over the whole time that the job was watched."""
    first: dict[int, tuple[int, dict[str, Any]]] = {}
    total: Counter[str] = Counter()
    last: dict[int, tuple[int, dict[str, Any]]] = {}
    for moment, entries in _accounts(recording):
        for entry in entries:
            if (entry.get("main") is not None) == bool(workers):
                first.setdefault(int(entry["pid"]), (moment, entry))
                last[int(entry["pid"])] = moment, entry
    for pid, (begun, before) in first.items():
        ended, after = last[pid]
        total["wall"] += ended - begun
        for name in ("cpu_ns", "runq_ns", "process_cpu_s", "rchar", "read_bytes"):
            total[name] += (after.get(name) or 0) - (before.get(name) or 0)
    if total["wall"] <= 0:
        return None
    seconds = total["wall"] / 1e9
    known = all(entry.get("rchar") is not None for _, entry in last.values())
    threads = total["process_cpu_s"] * 1e9 / total["cpu_ns"] if total["cpu_ns"] > 0.05 * total["wall"] else None
    return Account(
        total["cpu_ns"] / total["wall"],
        total["runq_ns"] / total["wall"],
        threads,
        total["rchar"] / seconds if known else None,
        total["read_bytes"] / seconds if known else None,
    )
