"""Stacks of the job's processes, by py-spy in short windows as often as the budget allows.

Runs only in loaderprof's own processes.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from loaderprof.capture import usage
from loaderprof.capture.hooks import overhead
from loaderprof.capture.samplers import WatchedJob
from loaderprof.recording.files import WATCHED_FRAME

# Share of a window's time that looking at where threads sleep may take; windows are a small part of a run.
LOOK_BUDGET = 0.01
# py-spy's CPU seconds as a share of the job's. One short window is taken in every run beyond it, and one more after the
# first batch where that comes late.
STACK_BUDGET = 0.005
# CPU seconds that a window is assumed to cost until the first one was measured.
WINDOW_COST_S = 0.15
WINDOW_S = 2
RATE_HZ = 25
FIRST_WINDOW_AFTER_S = 2
# From one look at whether a window is due, or over, to the next; and, in a window, from one look at who sleeps on a lock.
PERIOD_S, LOOK_PERIOD_S = 0.25, 0.05
LAST_WINDOW_S = 1.0
# Starting py-spy on a process costs it about 30 ms of CPU, so only so many are looked at in a window.
MAX_PROCESSES = 5
# A process of Ray that has not rested since its first task of a kind is taken to be set up after so long.
RAY_SET_UP_S = 10.0
# Niceness. On a busy machine py-spy would get a core only once the job's thread sleeps: it would miss short steps and
# report 3 to 17 points too much waiting (tests/benchmarks/attach_accuracy.py).
URGENT = -15


class RayTasks:
    """Since when each process of Ray has been at its task, by which those that still set up are recognised."""

    def __init__(self) -> None:
        # By process and title of its task: since when it has been at its first one, or at one after the other.
        self._since: dict[tuple[int, str], float] = {}

    def processes(self, alive: dict[int, psutil.Process]) -> list[int]:
        """Return Ray's processes, those at a task first; none where what these do may be their set-up.

        A process imports what a task needs when it gets its first of that kind. The next may run in one that rests now.
        """
        titles, now = {pid: _title(process) for pid, process in sorted(alive.items())}, time.monotonic()
        tasks = {pid: title for pid, title in titles.items() if _RAY_TASK.match(title)}
        for done in self._since.keys() - tasks.items():
            self._since[done] = -math.inf
        begun = [self._since.setdefault(task, now) for task in tasks.items()]
        if not any(now - since >= RAY_SET_UP_S for since in begun):
            return []
        return [*tasks, *(pid for pid, title in titles.items() if title == _RAY_RESTS)]


class StackSampler:
    """py-spy over the job in short windows: non-blocking, by process id, as often as its budget allows.

    Args:
        urgent: ask the kernel for its turn at once.
    """

    def __init__(self, urgent: bool = False) -> None:
        self.urgent = urgent
        self.period_s = PERIOD_S
        self.missing: str | None = None
        self.cpu_s = 0.0
        self.rate_hz, self.window_s = RATE_HZ, WINDOW_S
        self._program = find_py_spy()
        self._running: list[tuple[subprocess.Popen[bytes], Path]] = []
        self._begun_ns = 0
        self._used: usage.Account = {}
        self._looks: usage.Looks = {}
        self._locks_of: int | None = None
        self._open: list[list[Any]] = []
        self._windows = 0
        # When the job was first seen to have taken a batch, and whether a window has begun since.
        self._batches_at: float | None = None
        self._saw_batches = False
        self._ray = RayTasks()
        self._folder = tempfile.TemporaryDirectory(prefix="loaderprof-")
        if self._program is None:
            self.missing = "not measured: py-spy is not installed"

    def sample(self, job: WatchedJob) -> dict[str, Any] | None:
        """Start a window if one is due; return its stacks once it has ended."""
        if self._program is None:
            return None
        if self._running:
            if self._locks_of is not None:
                begun = time.thread_time()
                usage.look(self._locks_of, self._looks)
                self.period_s = min(PERIOD_S, max(LOOK_PERIOD_S, (time.thread_time() - begun) / LOOK_BUDGET))
            running = [child for child, _ in self._running if not self._ended(child)]
            return None if running else self._collect()
        due = self.due(job)
        self.start(due, locks=bool(due) and job.watches(due[0]))
        if self._running and self._locks_of is not None:
            self.period_s = LOOK_PERIOD_S
        return None

    def last_window(self) -> dict[str, Any] | None:
        """Return the window under way once the job is gone: py-spy then ends by itself, with what it has seen."""
        until = time.monotonic() + LAST_WINDOW_S
        while self._running and time.monotonic() < until:
            if not [child for child, _ in self._running if not self._ended(child)]:
                return self._collect()
            time.sleep(0.02)
        return None

    def close(self) -> None:
        """End a window under way."""
        for child, _ in self._running:
            child.kill()
            child.wait()
            if child.stderr:
                child.stderr.close()
        self._running = []
        self._folder.cleanup()

    def due(self, job: WatchedJob) -> list[int]:
        """Return the processes of a window that is due; none where it is not, or would pass the budget."""
        now = time.monotonic()
        if job.first_batch_at is None or self._batches_at is None:
            writers = job.writers()
            self._batches_at = now if any(job.has_batches(pid) for pid in writers) else None
        if job.first_batch_at is None or now - job.first_batch_at < FIRST_WINDOW_AFTER_S:
            return []
        cost = self.cpu_s / max(1, self._windows)
        # A window over a job that was still starting shows nothing of its batches.
        missed = not self._saw_batches and self._batches_at is not None
        first = self._windows == 0 or (missed and now - (self._batches_at or now) >= FIRST_WINDOW_AFTER_S)
        allowed_s = overhead.allowed(STACK_BUDGET) * job.cpu_s
        if (first and self._may_begin(allowed_s)) or self.cpu_s + cost <= allowed_s:
            return self._choose(job, job.writers())
        return []

    def _may_begin(self, allowed_s: float) -> bool:
        """Return whether a first window is taken before it is earned: unless less than usual is to be spent."""
        return overhead.max_overhead() >= overhead.USUAL or self.cpu_s + WINDOW_COST_S <= allowed_s

    def _choose(self, job: WatchedJob, writers: list[int]) -> list[int]:
        """Return the processes of this window: a main process and, the workers being alike, a few of its workers."""
        alive = {process.pid: process for process in job.processes()}
        mains = [pid for pid in writers if pid in alive and not _is_child_of(alive[pid], writers)]
        main = mains[self._windows % len(mains)] if mains else job.pid
        if main not in alive:
            return []
        if job.watches(main) and any(_name(process) == "raylet" for process in alive.values()):
            workers = self._ray.processes(alive)
            if not workers or not job.has_batches(main):  # they are starting, or between tasks
                return []
        else:
            workers = sorted(pid for pid, process in alive.items() if pid != main and _parent(process) == main)
        return [main, *workers[: MAX_PROCESSES - 1]]

    def start(self, pids: list[int], locks: bool = False) -> None:
        """Start a window over processes; `locks`: also measure how much of the time the first one holds the GIL."""
        if not pids:
            return
        self._used, self._open = usage.account(pids), usage.open_files(pids)
        self._begun_ns = time.perf_counter_ns()
        self._windows += 1
        self._saw_batches = self._batches_at is not None
        self._looks, self._locks_of = {}, pids[0] if locks else None
        # Threads behind a watched iterable share the GIL: a second py-spy measures how much of the time it is held.
        looks = [(pid, "--idle") for pid in pids] + [(pid, "--gil") for pid in pids[:1] if locks]
        for pid, which in looks:
            output = Path(self._folder.name) / f"{pid}.{self._windows}{which}"
            command = [
                str(self._program),
                "record",
                "--nonblocking",
                "--pid",
                str(pid),
                "--format",
                "raw",
                "--output",
                str(output),
                "--rate",
                str(self.rate_hz),
                "--duration",
                str(self.window_s),
                which,
                "--threads",
                "--full-filenames",
            ]
            try:
                child = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
                )
            except OSError as error:
                self.missing = f"not measured: py-spy cannot be started: {error.strerror}"
                return
            if self.urgent:
                with suppress(OSError):  # only root may
                    os.setpriority(os.PRIO_PROCESS, child.pid, URGENT)
            self._running.append((child, output))

    def _ended(self, child: subprocess.Popen[bytes]) -> bool:
        """Reap a py-spy that has ended, taking its CPU time; the job must never be reaped here."""
        if child.returncode is None:
            if not hasattr(os, "wait4"):  # Windows: what py-spy used is not known there
                return child.poll() is not None
            pid, status, usage = os.wait4(child.pid, os.WNOHANG)
            if pid == child.pid:
                child.returncode = os.waitstatus_to_exitcode(status)
                self.cpu_s += usage.ru_utime + usage.ru_stime
        return child.returncode is not None

    def _collect(self) -> dict[str, Any] | None:
        ended = time.perf_counter_ns()
        used = usage.between(self._used, usage.account(sorted({pid for pid, _ in self._used})))
        window, held = StackWindow(), []
        for child, output in self._running:
            error = child.stderr.read().decode("utf-8", "replace") if child.stderr else ""
            if child.stderr:
                child.stderr.close()
            if output.exists():
                pid, raw = int(output.name.split(".")[0]), output.read_text("utf-8", "replace")
                if output.name.endswith("--gil"):
                    held.append([pid, _samples(raw)])
                else:
                    window.add(pid, raw)
                output.unlink()
            elif "ermission" in error:
                self.missing = "not measured: py-spy was refused (loaderprof env tells what to type)"
        self._running = []
        self.period_s = PERIOD_S
        if not window.stacks:
            return None
        # Threads that py-spy does not name are a library's own: those of them that did something.
        threads = [
            [pid, window.names.get((pid, thread), ""), cpu, runq]
            for (pid, thread), (cpu, runq) in used.items()
            if (pid, thread) in window.names or cpu + runq
        ]
        locks = [
            [pid, window.names[pid, thread], looks, asleep]
            for (pid, thread), (looks, asleep) in self._looks.items()
            if (pid, thread) in window.names
        ]
        return {
            "t0": self._begun_ns,
            "t1": ended,
            "rate": self.rate_hz,
            "frames": list(window.frames),
            "stacks": window.stacks,
            "threads": threads,
            "gil": held,
            "locks": locks,
            "files": self._open,
        }


def _samples(raw: str) -> int:
    """Return how many samples an output of `py-spy record --format raw` holds."""
    return sum(int(count) for count in re.findall(r" (\d+)$", raw, re.MULTILINE))


def _parent(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except psutil.Error:
        return None


def _is_child_of(process: psutil.Process, pids: list[int]) -> bool:
    return _parent(process) in pids


# Ray's processes are no children of the loop's, and are titled by what they run; its own services, and those that
# rest, are identified by their titles too.
_RAY_RESTS = "ray::IDLE"
_RAY_TASK = re.compile(r"^ray::(?!IDLE|_|\w*Agent\b)")


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()[:1])
    except psutil.Error:
        return ""


class StackWindow:
    """The stacks of one window, frames interned."""

    # Command lines, names of threads and of files may hold semicolons; frames are `function (file:line)`.
    LINE = re.compile(
        r'^(?:process \d+:".*";)?(?:thread \((?P<id>\w+)\)(?:: (?P<name>[^;]*?(?:;(?![^;(]+ \()[^;]*?)*))?(?:;|(?= \d+$)))?'
        r"(?P<stack>.*) (?P<count>\d+)$"
    )
    BETWEEN = re.compile(r"(?<=\));")

    def __init__(self) -> None:
        self.frames: dict[str, int] = {}
        self.stacks: list[list[Any]] = []
        # By (process, the system's number of a thread).
        self.names: dict[tuple[int, int], str] = {}

    def add(self, pid: int, raw: str) -> None:
        """Take in one process's output of `py-spy record --format raw`."""
        for line in raw.split("\n"):
            match = self.LINE.match(line)
            if match is None:
                continue
            frames = _trimmed([frame for frame in self.BETWEEN.split(match["stack"]) if frame])
            if frames:
                numbers = [self.frames.setdefault(frame, len(self.frames)) for frame in frames]
                name = match["name"] or _unnamed(pid, match["id"])
                if (match["id"] or "").isdecimal():
                    self.names[pid, int(match["id"])] = name
                self.stacks.append([pid, name, numbers, int(match["count"])])


def _unnamed(pid: int, thread: str | None) -> str:
    """Name a thread that `threading` does not know: on Linux the main thread has its process's number."""
    return "MainThread" if thread in (None, str(pid)) or str(thread).startswith("0x") else f"Thread {thread}"


# Our frame in which a watched iterable is asked for a batch: what lies below it is the loader, not the loop.
_WATCHED = re.compile(r"^(?:[\w<>]+\.)*__next__ \(.*/loaderprof/capture/.*\)$")


def _trimmed(frames: list[str]) -> list[str]:
    """Drop what a forked worker inherited from its parent's stack, and loaderprof's own frames."""
    for place in range(len(frames) - 1, -1, -1):
        if frames[place].startswith("_worker_loop ("):
            frames = frames[place:]
            break
    return [
        _WATCHED.sub(WATCHED_FRAME, frame)
        for frame in frames
        if "/loaderprof/capture/" not in frame or _WATCHED.match(frame)
    ]


def find_py_spy() -> str | None:
    """Return the py-spy program that belongs to this Python, else the one on PATH, else None."""
    beside = Path(sys.executable).parent / "py-spy"
    return str(beside) if beside.exists() else shutil.which("py-spy")


def stacks_remedy() -> str:
    """Return what to type where py-spy is refused."""
    if sys.platform == "darwin":
        return "on macOS run: sudo loaderprof run train.py"
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    if scope.exists() and scope.read_text().strip() != "0":
        return "run: sudo sysctl kernel.yama.ptrace_scope=0"
    if Path("/.dockerenv").exists() or os.environ.get("KUBERNETES_SERVICE_HOST"):
        return (
            "start the container with --cap-add SYS_PTRACE (Kubernetes: securityContext.capabilities.add: [SYS_PTRACE])"
        )
    return "run as the user who owns the job, or as root"
