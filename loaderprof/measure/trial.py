"""Run a job once for a measurement: the hooks in place, no samplers, no report, its output in a log.

The job gets a session of its own, so that it and its workers can be ended together, and Ctrl-C reaches only this process.
Must not import torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from loaderprof.capture import launch
from loaderprof.errors import LoaderprofError
from loaderprof.recording import files

POLL_S = 0.1
# torchrun gives its ranks 30 s to end before it kills them.
PATIENCE_S = 35.0
# For processes that outlive the job: resource trackers, which remove its shared memory.
LINGER_S = 3.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a trial ended: its exit code as a shell shows it, and whether it was ended at its time limit."""

    code: int
    stopped: bool


def run(
    command: Sequence[str],
    *,
    cwd: Path,
    settings: Mapping[str, object],
    folder: Path,
    log: IO[bytes],
    limit_s: float,
    tick: Callable[[float], None] | None = None,
) -> Ended:
    """Run the job into a recording folder, and end it `limit_s` seconds after its first loader began.

    Args:
        command: see `launch.job_command`.
        cwd: where it was started from.
        settings: what to `--set`.
        folder: an empty folder; becomes a recording.
        log: takes what the job writes.
        limit_s: seconds from the first loader's beginning.
        tick: called every `POLL_S` with the seconds since then.

    Raises:
        LoaderprofError: the command cannot be started.
    """
    journals = folder / files.JOURNALS
    journals.mkdir()
    now = time.perf_counter_ns(), time.time_ns()
    meta = {"command": list(command), "cwd": str(cwd), "started_ns": now[0], "started_unix_ns": now[1]}
    files.write_meta(folder, meta)
    environment = launch.job_environment(journals, settings, os.environ)
    with started(command, cwd, environment, log) as job:
        stopped = _watch(job, journals, limit_s, tick)
    files.write_meta(folder, {**meta, "ended_ns": time.perf_counter_ns(), "exit_code": job.returncode})
    return Ended(128 - job.returncode if job.returncode < 0 else job.returncode, stopped)


@contextlib.contextmanager
def started(
    command: Sequence[str], cwd: Path, environment: Mapping[str, str], log: IO[bytes]
) -> Iterator[subprocess.Popen[bytes]]:
    """Start the job; when the block is left, for whatever reason, all its processes are ended."""
    prctl: Any = ctypes.CDLL(None).prctl if sys.platform == "linux" else None  # looked up before the fork

    def in_child() -> None:
        if prctl is not None:
            prctl(launch.PR_SET_PDEATHSIG, signal.SIGKILL)  # the job must not outlive this process

    try:
        job = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=in_child,
        )
    except OSError as error:
        raise LoaderprofError(f"{command[0]} cannot be started: {error.strerror}") from None
    try:
        yield job
    finally:
        _end(job)


def _watch(job: subprocess.Popen[bytes], journals: Path, limit_s: float, tick: Callable[[float], None] | None) -> bool:
    """Wait until the job has ended or reached its limit; return whether it reached it."""
    begun: float | None = None
    while job.poll() is None:
        now = time.monotonic()
        # A process opens its journal when its first loader begins.
        if begun is None and any(journals.iterdir()):
            begun = now
        elapsed = 0.0 if begun is None else now - begun
        if elapsed >= limit_s:
            return True
        if tick is not None:
            tick(elapsed)
        time.sleep(POLL_S)
    return False


def _end(job: subprocess.Popen[bytes]) -> None:
    """End the job and what it started: by SIGTERM, then, or at a second Ctrl-C, by SIGKILL."""
    try:
        if job.poll() is None:
            _signal(job.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                job.wait(PATIENCE_S)
        until = time.monotonic() + LINGER_S
        while job.poll() is not None and _signal(job.pid, 0) and time.monotonic() < until:
            time.sleep(POLL_S)
    finally:
        _signal(job.pid, signal.SIGKILL)
        job.wait()


def _signal(group: int, number: int) -> bool:
    """Signal the job's process group; return whether any process of it was left."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True
