"""Which processes make up a running job: those that run a training loop, and their loader workers.

Found from one process id by names, memory maps and stacks, without touching the job. Must not import torch.
"""

from __future__ import annotations

import getpass
import os
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from loaderprof.capture.hooks import describe
from loaderprof.capture.stack_sampler import find_py_spy, stacks_remedy
from loaderprof.errors import LoaderprofError

# torch names its workers so since 2.5.
WORKER_NAME = "pt_data_worker"
WORKER_FRAME = "_worker_loop ("
LOADER_FRAME = "torch/utils/data/"
# Frames in which a launcher waits for the processes it started.
LAUNCHER_FRAMES = ("torch/distributed/elastic/", "subprocess.py", "accelerate/commands/", "multiprocessing/popen_")
# A dump takes a process start of py-spy; in a job of more processes than this only the names of workers are looked at.
MAX_DUMPS = 16


class AttachError(LoaderprofError):
    """The process cannot be watched."""


@dataclass(frozen=True, slots=True)
class AttachTarget:
    """A running job: the process that was named, and those beneath it that run a training loop."""

    pid: int
    mains: tuple[int, ...]


def find(pid: int) -> AttachTarget:
    """Return the job that a process id stands for: a training process, a worker of one, or a launcher above some.

    Raises:
        AttachError: there is no such process, it may not be looked at, or nothing beneath it trains.
    """
    if pid <= 0 or not psutil.pid_exists(pid):
        raise AttachError(f"there is no process {pid}", "find the training process:  pgrep -af python")
    if find_py_spy() is None:
        raise AttachError("py-spy, which reads the stacks of a running job, is not installed", "pip install py-spy")
    if os.getpid() == pid:
        raise AttachError("that is the number of this very process", "find the training process:  pgrep -af python")
    root = psutil.Process(pid)
    _check_owner(root)
    if _name(root) == WORKER_NAME:
        root = root.parent() or root
    family = [root, *_below_of(root.pid)]
    pythons = [process for process in family if is_python(process)]
    if not pythons:
        raise AttachError(
            f"process {pid} ({_name(root)}) is not Python, nor did it start any", "find it:  pgrep -af python"
        )
    with_torch = [process for process in pythons if has_torch(process) is not False]
    if not with_torch:
        raise AttachError(
            f"process {pid} ({_shown(pythons[0])}) has not loaded torch",
            "attach again once it trains; for another kind of loader: for batch in loaderprof.watch(loader)",
        )
    return AttachTarget(root.pid, _trainers(with_torch))


def _check_owner(process: psutil.Process) -> None:
    """Refuse a process of another user: the kernel would."""
    if not hasattr(os, "geteuid") or os.geteuid() == 0:
        return
    with suppress(psutil.Error):
        if process.uids().real != os.geteuid():
            owner, mine = process.username(), getpass.getuser()
            raise AttachError(
                f"process {process.pid} belongs to {owner}, and {mine} may not look into it",
                f"sudo {sys.executable} -m loaderprof attach {process.pid}",
            )


def is_python(process: psutil.Process) -> bool:
    """Return whether a process runs a Python interpreter, by its program or the library it has loaded."""
    try:
        program = Path(process.exe()).name or process.name()
    except psutil.Error:
        program = _name(process)
    return bool(re.match(r"(?i)(python|pypy|pt_)", program)) or "libpython" in memory_maps(process.pid)


def has_torch(process: psutil.Process) -> bool | None:
    """Return whether a process has loaded torch; None where its memory map cannot be read."""
    maps = memory_maps(process.pid)
    return ("libtorch" in maps or "/torch/lib/" in maps) if maps else None


def memory_maps(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _trainers(processes: list[psutil.Process]) -> tuple[int, ...]:
    """Return the processes that run a training loop: those with loader workers, else those seen in a DataLoader.

    Where neither shows at the moment (a long step without workers), it is the topmost process that is not just
    waiting for others.

    Raises:
        AttachError: no process may be looked at.
    """
    pids = {process.pid for process in processes}
    workers = [process for process in processes if _name(process) == WORKER_NAME]
    owners = {owner for worker in workers if (owner := _owner(worker, pids)) is not None}
    if owners:
        dump(min(owners))
        return tuple(sorted(owners))
    stacks = {process.pid: dump(process.pid) for process in processes[:MAX_DUMPS]}
    parents = {process.pid: _parent(process) for process in processes}
    unnamed = {pid for pid, text in stacks.items() if WORKER_FRAME in text}
    owners = {parent for pid in unnamed if (parent := parents[pid]) in pids}
    owners |= {pid for pid, text in stacks.items() if pid not in unnamed and LOADER_FRAME in text}
    if owners:
        return tuple(sorted(owners))
    alone = [pid for pid in stacks if pid not in unnamed]
    busy = [pid for pid in alone if not any(frame in stacks[pid] for frame in LAUNCHER_FRAMES)]
    ranks = [pid for pid in busy if "RANK" in environment(pid)]
    return tuple(sorted(ranks)) if len(ranks) > 1 else tuple((busy or alone or sorted(pids))[:1])


def _owner(worker: psutil.Process, pids: set[int]) -> int | None:
    """Return the training process above a worker; a fork server in between has no torch of its own loop."""
    with suppress(psutil.Error):
        for parent in worker.parents():
            if _name(parent) != WORKER_NAME and parent.pid in pids and "forkserver" not in " ".join(parent.cmdline()):
                return parent.pid
    return None


def dump(pid: int) -> str:
    """Return the stacks of a process at this moment.

    Raises:
        AttachError: py-spy is refused.
    """
    command = [str(find_py_spy()), "dump", "--nonblocking", "--full-filenames", "--pid", str(pid)]
    try:
        tried = subprocess.run(command, capture_output=True, timeout=20, check=False, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    error = tried.stderr.decode("utf-8", "replace")
    if tried.returncode and "ermission" in error and psutil.pid_exists(pid):
        raise AttachError(f"py-spy is not allowed to look into process {pid}", stacks_remedy())
    return tried.stdout.decode("utf-8", "replace")


def loader_workers(main: int) -> list[int]:
    """Return the DataLoader workers of a process as torch names them; where none is named, its children."""
    return named_workers(main) or sorted(process.pid for process in _below_of(main) if _parent(process) == main)


def named_workers(main: int) -> list[int]:
    return sorted(process.pid for process in _below_of(main) if _name(process) == WORKER_NAME)


def _below_of(pid: int) -> list[psutil.Process]:
    """Return all processes beneath one: a fork server may stand between a training process and its workers."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""


def _parent(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except psutil.Error:
        return None


def _shown(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        words = describe.redacted(process.cmdline())
        return " ".join([Path(words[0]).name, *words[1:]])[:60] if words else _name(process)
    return _name(process)


def environment(pid: int) -> dict[str, str]:
    """Return the few variables of a process's environment that hold its place in the job."""
    try:
        found = psutil.Process(pid).environ()
    except psutil.Error:
        return {}
    return {name: found[name] for name in describe.ENVIRONMENT if name in found}
