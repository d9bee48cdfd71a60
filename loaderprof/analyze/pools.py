"""Who makes the batches of a hand-written pipeline: threads and processes behind an iterable that is only watched.

Told by stacks of all threads of the loop's process and of its children, and by the kernel's account of the same
windows. A maker is a thread, or a child process, that runs the user's code below the machinery of a pool, an executor,
or a plain thread. Pure: no torch, no clock, no processes.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from loaderprof.analyze.loop import Loop
from loaderprof.analyze.loop_side import shown_place
from loaderprof.analyze.stages import split_frame, stage_of_stack
from loaderprof.findings import Stage
from loaderprof.recording.files import WATCHED_FRAME
from loaderprof.recording.reader import Recording
from loaderprof.recording.stacks import StackSamples

MIN_SAMPLES = 20
# Fewer samples at work than this are no maker's: a thread that wakes up now and then.
MIN_WORK = 5
# Threads that wait for the interpreter's lock this share of their work, beyond what one core does, are held up by it.
LOCKED_SHARE = 0.25
# So many of them must want to compute at once, and together use no more than about one core.
LOCKED_THREADS, ONE_CORE = 1.3, 1.2
# Below this share of the time, in which the lock is held, it is not what they wait for. Threads that unpack with zlib
# in turn with Python hold it half of the time.
HELD = 0.75
# The makers themselves hold it where their CPU is at least this share of the time in which it is held.
OWN_HOLD = 0.5
# Makers that wait this share of their work need no processes of their own; above the other end they mostly compute.
MOSTLY_WAITING, MOSTLY_COMPUTING = 0.8, 0.2

# Makers no busier than this times the share of the time in which the loop waits work only while it waits; where it
# nearly always waits the two cannot be told apart, nor does it matter.
IN_TURN, ALWAYS_WAITS = 1.25, 0.8

Kind = Literal["threads", "processes"]

# Where the user's task begins in a stack: the frame of the machinery that calls it, file and function.
_START = re.compile(
    r"^(?:[\w<>]+\.)*(?:_worker|run|_bootstrap_inner|worker|mapstar|starmapstar|_process_worker|_process_chunk|__call__|"
    r"<listcomp>) \(.*(?:concurrent/futures/(?:thread|process)|multiprocessing/(?:pool|process)|/threading|"
    r"joblib/(?:parallel|_utils|externals/.*))\.py:|"
    r"^_map_task \(.*/ray/data/.*\.py:|^(?:\w+\.)?main_loop \(.*/ray/_private/worker\.py:"
)
# A process of Ray between two tasks of a dataset.
_BETWEEN_TASKS = re.compile(r"main_loop \(.*/ray/")
# How processes of Ray are titled while a task runs in them.
_RAY_TASK = re.compile(r"^ray::(?!IDLE|_|\w*Agent\b)")
# Of a pool's machinery, not of a plain thread's or process's.
_POOL_START = re.compile(r"/(?:concurrent/futures/(?:thread|process)|multiprocessing/pool|joblib/.*|ray/.*)\.py:")
_MACHINERY = re.compile(
    r"/(?:threading|queue|selectors|weakref)\.py$|/concurrent/futures/\w+\.py$|"
    r"/asyncio/(?:base_events|events|futures|locks|queues|runners|selector_events|tasks|threads|unix_events)\.py$|"
    r"/multiprocessing/\w+\.py$|/joblib/|/ray/(?:_private|_raylet|thirdparty_files|data/(?:_internal|block))\b|<frozen |<string>"
)
_RAY = re.compile(r"\(.*/ray/")
_PICKLING = re.compile(r"/multiprocessing/reduction\.py$")
# Where the loop asks for a batch: what is watched, or a DataLoader without workers.
_ASKING = re.compile(
    rf"{re.escape(WATCHED_FRAME)}$|_SingleProcessDataLoaderIter\._next_data \(|_next_data \(.*torch/utils/data/"
)
# A line that takes from or puts into a queue written in C.
_QUEUE_LINE = re.compile(r"(?i)\b\w*(?:queue|_q|\bq|tasks|jobs|inbox|outbox)\w*\.(?:get|put)\(|\.result\(|\.acquire\(")
_LOADER_WORKER = re.compile(r"torch/utils/data/_utils/(?:worker|pin_memory)\.py")


@dataclass(frozen=True, slots=True)
class Work:
    """One kind of work that makers were seen at: its share of all their work."""

    stage: Stage
    name: str
    where: str | None
    share: float


@dataclass(frozen=True, slots=True)
class Pool:
    """The makers of one pipeline: those that limit it where several follow one another.

    Attributes:
        kind: threads of the loop's process, or processes of their own.
        makers: how many there are.
        busy: how many were at work at once, on average.
        cores: cores that they used; None where the kernel's account was not recorded.
        runq: cores that they waited for in a run queue.
        waiting: share of their work in which they waited for a read.
        locked: share of their work in which they waited for the interpreter's lock; 0 for processes.
        held: share of the time in which a thread held that lock; None: not measured.
        held_at_most: the same, as far as so few looks can tell.
        work: what they did, dearest first; shares add up to 1.
        samples: stack samples at work.
        pids: the child processes among them.
        beside: the kinds of other makers of the same pipeline.
        overlapped: they work while the loop steps; else the loop waits for them and they for the loop.
        step_locked_s: seconds of a step in which the loop's own thread slept on a lock; None: not measured.
    """

    kind: Kind
    producers: int
    busy: float
    cores: float | None
    runq: float
    waiting: float
    locked: float
    held: float | None
    held_at_most: float | None
    work: tuple[Work, ...]
    samples: int
    pids: frozenset[int]
    beside: tuple[Kind, ...] = ()
    overlapped: bool = True
    step_locked_s: float | None = None

    def share(self, stage: Stage) -> float:
        """Return the share of their work that is of one stage."""
        return sum(each.share for each in self.work if each.stage == stage)

    def seconds(self, period_s: float) -> tuple[float, float]:
        """Return seconds of CPU and blocked seconds of all makers together per batch that comes every `period_s`.

        Where the kernel's account is missing, everything but reading counts as CPU.
        """
        blocked = self.waiting * self.busy
        if self.cores is None:
            return (self.busy - blocked) * period_s, blocked * period_s
        if not self.locked:
            blocked = max(0.0, self.busy - self.cores - self.runq)
        return min(self.cores, self.busy) * period_s, blocked * period_s

    def holds_lock(self) -> bool:
        """Return whether their process's lock is held nearly all of the time, as far as was measured."""
        if self.held_at_most is not None:
            return self.held_at_most >= HELD
        return (self.cores or 0.0) + self.runq <= ONE_CORE

    def words(self) -> str:
        """Return who they are: `4 threads`."""
        return (
            f"{self.producers} {self.kind}"
            if self.producers > 1
            else f"one {'thread' if self.kind == 'threads' else 'process'}"
        )


@dataclass(frozen=True, slots=True)
class _Seen:
    """One line of stack samples of a thread that machinery runs: its stage, None between tasks, and the user's line."""

    sample: StackSamples
    stage: Stage | None
    place: str


def pool_of(recording: Recording, loop: Loop, sources: dict[str, str]) -> Pool | None:
    """Return the makers behind a watched iterable or a stream; None where it is no such, or none were seen at work."""
    if not (loop.facts.get("watched") or _may_be_made_ahead(loop)):
        return None
    groups = _groups(recording, loop.process.pid, sources)
    looks = _looks(recording, loop)
    producers = [
        pool for (kind, _), seen in groups.items() if (pool := _pool(recording, kind, seen, looks)) is not None
    ]
    if loop.facts.get("framework") == "ray":
        producers = [_sharing_tasks(recording, pool) for pool in producers]
    if not producers:
        return None
    threads = [one for (kind, _), seen in groups.items() if kind == "threads" for one in seen]
    together = _pool(recording, "threads", threads, looks)
    # Threads share one lock whatever pool they are of; else the busiest makers hold up the others.
    chosen = max(producers, key=lambda each: each.busy / each.producers)
    others = [each for each in producers if each is not chosen]
    if together is not None and together.locked >= LOCKED_SHARE:
        chosen, others = together, [each for each in producers if each.kind == "processes"]
    wait, step = loop.mean(loop.wait) or 0.0, loop.mean(loop.step) or 0.0
    waits = wait / (wait + step) if wait + step > 0 else 0.0
    overlapped = chosen.busy / chosen.producers > IN_TURN * waits or waits > ALWAYS_WAITS
    asleep = _asleep(recording, [(loop.process.pid, "MainThread")]) if chosen.kind == "threads" else None
    return replace(
        chosen,
        beside=tuple(sorted({each.kind for each in others})),
        overlapped=overlapped and _waits_for_them(loop),
        # What it sleeps while it waits for a batch is for the batch.
        step_locked_s=None if asleep is None else max(0.0, asleep * (wait + step) - wait),
    )


def _may_be_made_ahead(loop: Loop) -> bool:
    """Return whether a loop waits for a stream without workers, which may have threads or processes of its own.

    A dataset that is asked for samples by number cannot make them ahead; what it has of threads shares one batch.
    """
    return bool(loop.facts.get("iterable")) and not loop.facts.get("num_workers") and _waits_for_them(loop)


def _sharing_tasks(recording: Recording, pool: Pool) -> Pool:
    """Return a pool of Ray's with as many makers as tasks ran at once: its processes take turns at them.

    Told by the titles of processes while the loop ran: of the operator that they ran most often, the most at once.
    """
    titles: dict[str, list[int]] = defaultdict(list)
    since = min(sample.t_begun for sample in recording.stacks)
    for sample in (each for each in recording.host if each["t"] >= since):
        names = Counter(str(process.get("name")) for process in sample.get("processes", ()))
        for name, count in names.items():
            if _RAY_TASK.match(name):
                titles[name].append(count)
    if pool.kind != "processes" or not titles:
        return pool
    at_once = min(pool.producers, max(max(titles.values(), key=sum)))
    return replace(pool, producers=at_once, busy=min(pool.busy, float(at_once)))


def _waits_for_them(loop: Loop) -> bool:
    """Return whether the loop's thread waits for its makers more than it works for a batch itself."""
    return float(np.sum(loop.made.blocked)) > float(np.sum(loop.made.cpu))


def too_little_seen(recording: Recording, loop: Loop, pool: Pool | None) -> bool:
    """Return whether others may make the batches of a watched loop, or a stream's, of whom too few samples tell what they do.

    The loop's own thread then waits at a queue or a lock, which tells nothing of what it waits for; or no stacks could be
    taken of it.
    """
    watched = bool(loop.facts.get("watched"))
    if pool is not None or not (watched or _may_be_made_ahead(loop)) or not _waits_for_them(loop):
        return False
    asking = waiting = 0
    for sample in recording.stacks:
        if sample.pid == loop.process.pid and any(_ASKING.match(frame) for frame in sample.frames):
            asking += sample.count
            waiting += sample.count if _MACHINERY.search(split_frame(sample.frames[-1])[1]) else 0
    return waiting > 0.5 * asking or (watched and not asking)


def reading_stacks(recording: Recording, loop: Loop, sources: dict[str, str]) -> list[StackSamples]:
    """Return the stacks in which the makers of a watched loop were reading."""
    groups = _groups(recording, loop.process.pid, sources)
    return [each.sample for seen in groups.values() for each in seen if each.stage == "read"]


def _groups(recording: Recording, main: int, sources: dict[str, str]) -> dict[tuple[Kind, str], list[_Seen]]:
    """Return what was seen of the threads that may be makers, by what they have in common."""
    writers = {process.pid for process in recording.processes}
    groups: dict[tuple[Kind, str], list[_Seen]] = defaultdict(list)
    plain: dict[tuple[Kind, str], list[_Seen]] = defaultdict(list)
    for sample in recording.stacks:
        mine, first = sample.pid == main, sample.thread == "MainThread"
        at = _start(sample.frames)
        if at is None or (mine and first) or (not mine and sample.pid in writers):
            continue
        pooled = _POOL_START.search(sample.frames[at]) is not None
        stage, place = work_of(sample.frames[at + 1 :], sources)
        if _BETWEEN_TASKS.search(sample.frames[at]):
            stage = None
        if mine and not place and _RAY.search(sample.frames[at + 1] if len(sample.frames) > at + 1 else ""):
            continue  # Ray's own threads send its processes to work
        if mine:
            groups["threads", _alike(sample.thread)].append(_Seen(sample, stage, place))
        elif pooled or first:
            # The threads of a plain process are its own affair.
            (groups if pooled else plain)["processes", ""].append(_Seen(sample, stage, place))
    # A plain process may be a helper of any kind; where a pool of processes is at work that is what makes the batches.
    return {**plain, **groups}


def _start(frames: tuple[str, ...]) -> int | None:
    """Return where in a stack the machinery calls the user's task, None where nothing of it is there."""
    if any(_LOADER_WORKER.search(frame) for frame in frames):
        return None
    for number in range(len(frames) - 1, -1, -1):
        if _START.match(frames[number]):
            return number
    return None


def work_of(task: tuple[str, ...], sources: dict[str, str]) -> tuple[Stage | None, str]:
    """Return the stage that a maker is at, None while it waits for work or for others, and the user's line.

    Args:
        task: frames below the machinery, root first.
        sources: the text of the user's source lines, by `file:line`.
    """
    leaf = len(task)
    while leaf and _MACHINERY.search(split_frame(task[leaf - 1])[1]):
        leaf -= 1
        if _PICKLING.search(split_frame(task[leaf])[1]):
            return "handover", ""
    own = next((line for frame in reversed(task) if (line := _line(frame)) in sources), "")
    if not leaf or leaf < len(task) or (own and own == _line(task[-1]) and _QUEUE_LINE.search(sources[own])):
        return None, own
    return stage_of_stack(task, sources) or "transform", own


def _looks(recording: Recording, loop: Loop) -> int:
    """Return how often the stacks of the loop's process were taken."""
    main = loop.process.pid
    return sum(sample.count for sample in recording.stacks if sample.pid == main and sample.thread == "MainThread")


def _pool(recording: Recording, kind: Kind, seen: list[_Seen], looks: int) -> Pool | None:
    total: Counter[tuple[int, str]] = Counter()
    working: Counter[tuple[int, str]] = Counter()
    reading: Counter[tuple[int, str]] = Counter()
    work: defaultdict[tuple[Stage, str, str], float] = defaultdict(float)
    for each in seen:
        sample, stage, place = each.sample, each.stage, each.place
        who = sample.pid, sample.thread
        total[who] += sample.count
        if stage is not None:
            working[who] += sample.count
            reading[who] += sample.count if stage == "read" else 0
            work[stage, _function(sample.frames, place), place] += sample.count
    # The user's threads that were never seen at work are somebody else's.
    producers = [who for who in total if working[who]]
    at_work = sum(working.values())
    if at_work < MIN_WORK or sum(total[who] for who in producers) < MIN_SAMPLES:
        return None
    # Threads of a pool that is made anew each epoch follow one another: each was seen in a part of the looks.
    there = sum(min(1.0, total[who] / looks) if kind == "threads" and looks else 1.0 for who in producers)
    count = max(1, round(there))
    alike = min(1.0, count / len(producers))
    busy = alike * sum(working[who] / total[who] for who in producers)
    waiting = alike * sum(reading[who] / total[who] for who in producers)
    cores, runq = _used(recording, producers)
    held, held_at_most = _held(recording, producers[0][0]) if kind == "threads" else (None, None)
    locked = 0.0
    if kind == "threads" and count > 1 and (held_at_most is None or held_at_most >= HELD):
        asleep = _asleep(recording, producers)
        in_turn = None if asleep is None else max(0.0, asleep - (count - busy))
        locked = _locked(busy - waiting, cores, runq, held, in_turn)
        if locked and in_turn is not None:
            # Those whose data have come, and who wait for the lock, stand at the line that reads.
            truly = min(waiting, max(0.0, busy - in_turn - (cores or 0.0) - runq))
            for key in work:
                work[key] *= truly / waiting if key[0] == "read" and waiting > 0 else 1.0
            waiting = truly
    whole = sum(work.values())
    pieces = tuple(
        Work(stage, name, shown_place(recording, place), count / whole)
        for (stage, name, place), count in sorted(work.items(), key=lambda item: -item[1])
    )
    pids = frozenset(pid for pid, _ in producers) if kind == "processes" else frozenset()
    return Pool(
        kind, count, busy, cores, runq, waiting / busy, locked / busy, held, held_at_most, pieces, at_work, pids
    )


def _locked(
    computing: float, cores: float | None, runq: float, held: float | None, in_turn: float | None = None
) -> float:
    """Return how many threads at once wait for the interpreter's lock, which may be held nearly all of the time.

    Args:
        computing: threads that were in code that computes, on average, by stacks.
        cores: cores that they used; None: not recorded.
        runq: cores that they waited for.
        held: share of the time in which the lock was held; None: not measured.
        in_turn: threads at work that slept on a lock; None: not measured.
    """
    if (cores or 0.0) > ONE_CORE:
        return 0.0
    if in_turn is not None and held is not None:
        # Where others hold the lock the makers are not what takes turns.
        return in_turn if cores is None or cores >= OWN_HOLD * held else 0.0
    if computing < LOCKED_THREADS:
        return 0.0
    if held is not None:
        return computing - held
    # Threads that wait for the lock sleep; those that compute without it run, or wait for a core.
    return max(0.0, computing - cores - runq) if cores is not None and cores + min(runq, 1.0) >= HELD else 0.0


def _held(recording: Recording, pid: int) -> tuple[float, float] | tuple[None, None]:
    """Return the share of the time in which a thread of a process held the interpreter's lock, and what it is at most.

    The second is two standard errors above the first. Both are None where it was not measured.
    """
    held = sum(count for of, count, _ in recording.gil if of == pid)
    taken = sum(count for of, _, count in recording.gil if of == pid)
    if taken < MIN_SAMPLES:
        return None, None
    share = min(1.0, held / taken)
    return share, min(1.0, share + 2 * (share * (1 - share) / taken) ** 0.5)


def _asleep(recording: Recording, threads: list[tuple[int, str]]) -> float | None:
    """Return how many of some threads at once slept on a lock, be it for work; None where the kernel did not tell."""
    looks: Counter[tuple[int, str]] = Counter()
    asleep: Counter[tuple[int, str]] = Counter()
    for each in recording.locks:
        looks[each.pid, each.thread] += each.looks
        asleep[each.pid, each.thread] += each.asleep
    known = [who for who in threads if looks[who]]
    # A kernel that does not show where threads sleep shows none of them asleep.
    if sum(looks[who] for who in known) < MIN_SAMPLES or not asleep.total():
        return None
    return len(threads) / len(known) * sum(asleep[who] / looks[who] for who in known)


def _used(recording: Recording, producers: list[tuple[int, str]]) -> tuple[float | None, float]:
    """Return cores used and cores waited for by the makers together; None where no account was recorded."""
    wall: dict[tuple[int, str], float] = defaultdict(float)
    cpu: dict[tuple[int, str], float] = defaultdict(float)
    runq: dict[tuple[int, str], float] = defaultdict(float)
    for use in recording.threads:
        wall[use.pid, use.thread] += use.wall_s
        cpu[use.pid, use.thread] += use.cpu_s
        runq[use.pid, use.thread] += use.runq_s
    known = [who for who in producers if wall[who] > 0]
    if not known:
        return None, 0.0
    scale = len(producers) / len(known)
    return scale * sum(cpu[who] / wall[who] for who in known), scale * sum(runq[who] / wall[who] for who in known)


def _function(frames: tuple[str, ...], place: str) -> str:
    return next((split_frame(frame)[0] for frame in reversed(frames) if _line(frame) == place), "") if place else ""


def _line(frame: str) -> str:
    _, file, line = split_frame(frame)
    return f"{file}:{line}"


def _alike(thread: str) -> str:
    """Return what threads of one pool have in common: their name without its number."""
    return re.sub(r"\d+(?=$| )", "", thread)
