"""Who produces the batches of a hand-written pipeline: threads and processes behind an iterable that is only watched.

Found by stacks of all threads of the loop's process and of its children (see `pool_stacks`), and by what the kernel
accounted to them in the same windows. Pure: no torch, no clock, no processes.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, replace

import numpy as np

from loaderprof.analyze.loop import Loop
from loaderprof.analyze.loop_side import shown_place
from loaderprof.analyze.pool_stacks import MACHINERY, Kind, Seen, function_of, groups
from loaderprof.analyze.stages import split_frame
from loaderprof.findings import Stage
from loaderprof.recording.files import WATCHED_FRAME
from loaderprof.recording.reader import Recording
from loaderprof.recording.stacks import StackSamples

# Fewer stack samples have no shares worth showing.
MIN_SAMPLES = 20
# A thread with fewer samples at work wakes up now and then, and is no producer.
MIN_WORK = 5
# Threads that wait for the GIL this share of their work are limited by it.
LOCKED_SHARE = 0.25
# The GIL limits threads where more than the first number want to compute at once and all together use no more cores than
# the second: a little beyond 1, because C code releases the GIL.
LOCKED_THREADS, ONE_CORE = 1.3, 1.2
# Where the GIL is held less of the time than this, it is not what they wait for. Threads that decompress with zlib, which
# releases it, and run Python in between hold it half of the time.
HELD = 0.75
# The producers themselves hold it where their CPU is at least this share of the time in which it is held.
OWN_HOLD = 0.5
# Producers that wait this share of their work need no processes of their own; below the second share they mostly compute.
MOSTLY_WAITING, MOSTLY_COMPUTING = 0.8, 0.2
# Producers that are busy for no more than the first number times the share of the time in which the loop waits work only
# while it waits. Where it waits more than the second share, the two cannot be distinguished, nor does it matter.
IN_TURN, ALWAYS_WAITS = 1.25, 0.8
# How processes of Ray are titled while a task runs in them.
_RAY_TASK = re.compile(r"^ray::(?!IDLE|_|\w*Agent\b)")
# Where the loop asks for a batch: what is watched, or a DataLoader without workers.
_ASKING = re.compile(
    rf"{re.escape(WATCHED_FRAME)}$|_SingleProcessDataLoaderIter\._next_data \(|_next_data \(.*torch/utils/data/"
)


@dataclass(frozen=True, slots=True)
class Work:
    """One kind of work of producers: its stage, the user's function and line, and its share of all their work."""

    stage: Stage
    name: str
    where: str | None
    share: float


@dataclass(frozen=True, slots=True)
class Pool:
    """The producers of one pipeline; of several groups that follow one another, those that limit it.

    Attributes:
        kind: threads of the loop's process, or processes of their own.
        producers: how many there are.
        busy: how many were at work at once, on average.
        cores: cores that they used; None where the kernel's account was not recorded.
        runq: cores that they waited for in a run queue.
        waiting: share of their work in which they waited for a read.
        locked: share of their work in which they waited for the GIL; 0 for processes.
        held: share of the time in which a thread held the GIL; None: not measured.
        held_at_most: the upper end of its interval.
        work: what they did, most expensive first; shares add up to 1.
        samples: stack samples at work.
        pids: the child processes among them.
        beside: the kinds of other producers of the same pipeline.
        overlapped: they work while the loop steps; else the loop waits for them, and they for the loop.
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
        """Return CPU and blocked seconds of all producers together per batch, of which one comes every `period_s`.

        Where the kernel's account is missing, everything but reading counts as CPU.
        """
        blocked = self.waiting * self.busy
        if self.cores is None:
            return (self.busy - blocked) * period_s, blocked * period_s
        if not self.locked:
            blocked = max(0.0, self.busy - self.cores - self.runq)
        return min(self.cores, self.busy) * period_s, blocked * period_s

    def holds_lock(self) -> bool:
        """Return whether the GIL of their process is held nearly all of the time, as far as was measured."""
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


def pool_of(recording: Recording, loop: Loop, sources: dict[str, str]) -> Pool | None:
    """Return the producers behind a watched iterable or a stream; None where the loop has neither, or none were at work."""
    if not (loop.facts.watched or _may_be_made_ahead(loop)):
        return None
    found = groups(recording, loop.process.pid, sources)
    looks = _looks(recording, loop)
    producers = [pool for (kind, _), seen in found.items() if (pool := _pool(recording, kind, seen, looks)) is not None]
    if loop.facts.framework == "ray":
        producers = [_sharing_tasks(recording, pool) for pool in producers]
    if not producers:
        return None
    threads = [one for (kind, _), seen in found.items() if kind == "threads" for one in seen]
    together = _pool(recording, "threads", threads, looks)
    # Threads share the GIL whatever pool they are of; else the busiest producers hold up the others.
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
        # While it waits for a batch it sleeps for the batch, not for the GIL.
        step_locked_s=None if asleep is None else max(0.0, asleep * (wait + step) - wait),
    )


def _may_be_made_ahead(loop: Loop) -> bool:
    """Return whether a loop waits for a stream without workers, which may have threads or processes of its own.

    A map-style dataset cannot produce ahead of the loop, as it does not know which sample is next; its threads share the
    work on one batch.
    """
    return bool(loop.facts.iterable) and not loop.facts.num_workers and _waits_for_them(loop)


def _sharing_tasks(recording: Recording, pool: Pool) -> Pool:
    """Return a pool of Ray's with as many producers as tasks ran at once: its processes take turns at them.

    Ray titles its processes by the task that they run: counted is the most frequent operator, at its most at once.
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
    """Return whether the loop's thread waits for its producers more than it works for a batch itself."""
    return float(np.sum(loop.made.blocked)) > float(np.sum(loop.made.cpu))


def too_little_seen(recording: Recording, loop: Loop, pool: Pool | None) -> bool:
    """Return whether others may produce the batches of a watched loop or a stream, of whom there are too few samples.

    The loop's own thread then waits at a queue or a lock, which does not show what it waits for; or there are no stacks of
    it at all.
    """
    watched = bool(loop.facts.watched)
    if pool is not None or not (watched or _may_be_made_ahead(loop)) or not _waits_for_them(loop):
        return False
    asking = waiting = 0
    for sample in recording.stacks:
        if sample.pid == loop.process.pid and any(_ASKING.match(frame) for frame in sample.frames):
            asking += sample.count
            waiting += sample.count if MACHINERY.search(split_frame(sample.frames[-1])[1]) else 0
    return waiting > 0.5 * asking or (watched and not asking)


def reading_stacks(recording: Recording, loop: Loop, sources: dict[str, str]) -> list[StackSamples]:
    """Return the stacks in which the producers of a watched loop were reading."""
    found = groups(recording, loop.process.pid, sources)
    return [each.sample for seen in found.values() for each in seen if each.stage == "read"]


def _looks(recording: Recording, loop: Loop) -> int:
    """Return how often the stacks of the loop's process were taken."""
    main = loop.process.pid
    return sum(sample.count for sample in recording.stacks if sample.pid == main and sample.thread == "MainThread")


def _pool(recording: Recording, kind: Kind, seen: list[Seen], looks: int) -> Pool | None:
    """Return the producers among some threads or processes; None where too little was seen of them at work.

    Args:
        recording: the run.
        kind: threads or processes.
        seen: their stacks.
        looks: how often stacks of the loop's process were taken.
    """
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
            work[stage, function_of(sample.frames, place), place] += sample.count
    # Threads of the user's that were never seen at work are there for something else.
    producers = [who for who in total if working[who]]
    at_work = sum(working.values())
    if at_work < MIN_WORK or sum(total[who] for who in producers) < MIN_SAMPLES:
        return None
    # A pool created anew each epoch has threads that follow one another: each was seen in a part of the looks.
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
            # A thread whose data has arrived still shows up on its read line while it waits for the GIL.
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
    """Return how many threads at once wait for the GIL, which may be held nearly all of the time.

    Args:
        computing: threads that were in code that computes, on average, by stacks.
        cores: cores that they used; None: not recorded.
        runq: cores that they waited for.
        held: share of the time in which the GIL was held; None: not measured.
        in_turn: threads at work that slept on a lock; None: not measured.
    """
    if (cores or 0.0) > ONE_CORE:
        return 0.0
    if in_turn is not None and held is not None:
        # Where others hold the GIL it is not the producers that take turns.
        return in_turn if cores is None or cores >= OWN_HOLD * held else 0.0
    if computing < LOCKED_THREADS:
        return 0.0
    if held is not None:
        return computing - held
    # Threads that wait for the GIL sleep; those that compute without it run, or wait for a core.
    return max(0.0, computing - cores - runq) if cores is not None and cores + min(runq, 1.0) >= HELD else 0.0


def _held(recording: Recording, pid: int) -> tuple[float, float] | tuple[None, None]:
    """Return the share of the time in which a thread of a process held the GIL, and the upper end of its interval.

    That is two standard errors above the share. Both are None where too few samples were taken.
    """
    held = sum(count for of, count, _ in recording.gil if of == pid)
    taken = sum(count for of, _, count in recording.gil if of == pid)
    if taken < MIN_SAMPLES:
        return None, None
    share = min(1.0, held / taken)
    return share, min(1.0, share + 2 * (share * (1 - share) / taken) ** 0.5)


def _asleep(recording: Recording, threads: list[tuple[int, str]]) -> float | None:
    """Return how many of some threads slept on a lock at once, also for want of work; None where the kernel hides it."""
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
    """Return cores used and cores waited for by the producers together; None where no account was recorded."""
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
