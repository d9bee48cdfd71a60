"""Stacks of threads and processes that may produce the batches of a hand-written pipeline: who they are, what they are at.

A producer is a thread, or a child process, that runs the user's code below the machinery of a pool, an executor, or a
plain thread. Pure: no torch, no clock, no processes.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

from loaderprof.analyze.stages import split_frame, stage_of_stack
from loaderprof.findings import Stage
from loaderprof.recording.reader import Recording
from loaderprof.recording.stacks import StackSamples

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


# The same of a pool alone, not of a plain thread or process.
_POOL_START = re.compile(r"/(?:concurrent/futures/(?:thread|process)|multiprocessing/pool|joblib/.*|ray/.*)\.py:")


MACHINERY = re.compile(
    r"/(?:threading|queue|selectors|weakref)\.py$|/concurrent/futures/\w+\.py$|"
    r"/asyncio/(?:base_events|events|futures|locks|queues|runners|selector_events|tasks|threads|unix_events)\.py$|"
    r"/multiprocessing/\w+\.py$|/joblib/|/ray/(?:_private|_raylet|thirdparty_files|data/(?:_internal|block))\b|<frozen |<string>"
)


_RAY = re.compile(r"\(.*/ray/")


_PICKLING = re.compile(r"/multiprocessing/reduction\.py$")


# A line that waits at a queue, a future or a lock that is written in C, and so has no frame of its own.
_QUEUE_LINE = re.compile(r"(?i)\b\w*(?:queue|_q|\bq|tasks|jobs|inbox|outbox)\w*\.(?:get|put)\(|\.result\(|\.acquire\(")


_LOADER_WORKER = re.compile(r"torch/utils/data/_utils/(?:worker|pin_memory)\.py")


@dataclass(frozen=True, slots=True)
class Seen:
    """A stack of a thread that machinery runs: its stage, None between two tasks, and the user's line; empty: none."""

    sample: StackSamples
    stage: Stage | None
    place: str


def groups(recording: Recording, main: int, sources: dict[str, str]) -> dict[tuple[Kind, str], list[Seen]]:
    """Return the stacks of threads and processes that may be producers, by kind and by the name that a pool's threads share.

    Args:
        recording: the run.
        main: process id of the loop.
        sources: the text of the user's source lines, by `file:line`.
    """
    writers = {process.pid for process in recording.processes}
    pooled: dict[tuple[Kind, str], list[Seen]] = defaultdict(list)
    plain: dict[tuple[Kind, str], list[Seen]] = defaultdict(list)
    for sample in recording.stacks:
        mine, first = sample.pid == main, sample.thread == "MainThread"
        at = _start(sample.frames)
        if at is None or (mine and first) or (not mine and sample.pid in writers):
            continue
        of_pool = _POOL_START.search(sample.frames[at]) is not None
        stage, place = work_of(sample.frames[at + 1 :], sources)
        if _BETWEEN_TASKS.search(sample.frames[at]):
            stage = None
        if mine and not place and _RAY.search(sample.frames[at + 1] if len(sample.frames) > at + 1 else ""):
            continue  # Ray's own threads only send work to its processes
        if mine:
            pooled["threads", _alike(sample.thread)].append(Seen(sample, stage, place))
        elif of_pool or first:
            # Other threads of a plain process are its own affair.
            (pooled if of_pool else plain)["processes", ""].append(Seen(sample, stage, place))
    # A plain process may be a helper of any kind; where a pool of processes is at work, that makes the batches.
    return {**plain, **pooled}


def _start(frames: tuple[str, ...]) -> int | None:
    """Return where in a root-first stack machinery calls the user's task; None where there is no such frame."""
    if any(_LOADER_WORKER.search(frame) for frame in frames):
        return None
    for number in range(len(frames) - 1, -1, -1):
        if _START.match(frames[number]):
            return number
    return None


def work_of(task: tuple[str, ...], sources: dict[str, str]) -> tuple[Stage | None, str]:
    """Return the stage that a producer is at, None while it waits for work or for others, and the user's line.

    Args:
        task: frames below the machinery, root first.
        sources: the text of the user's source lines, by `file:line`.
    """
    leaf = len(task)
    while leaf and MACHINERY.search(split_frame(task[leaf - 1])[1]):
        leaf -= 1
        if _PICKLING.search(split_frame(task[leaf])[1]):
            return "handover", ""
    own = next((line for frame in reversed(task) if (line := _line(frame)) in sources), "")
    if not leaf or leaf < len(task) or (own and own == _line(task[-1]) and _QUEUE_LINE.search(sources[own])):
        return None, own
    return stage_of_stack(task, sources) or "transform", own


def function_of(frames: tuple[str, ...], place: str) -> str:
    return next((split_frame(frame)[0] for frame in reversed(frames) if _line(frame) == place), "") if place else ""


def _alike(thread: str) -> str:
    """Return what threads of one pool have in common: their name without its number."""
    return re.sub(r"\d+(?=$| )", "", thread)


def _line(frame: str) -> str:
    _, file, line = split_frame(frame)
    return f"{file}:{line}"
