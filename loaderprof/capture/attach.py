"""Join a running job by process id, watch it for a while from outside, and leave it as it was.

Nothing is put into the job: py-spy reads its memory without stopping it, the rest is in /proc, psutil and NVML. What
needs stamps in the job (batches, seconds a step, queue depth) is not in such a recording; `diagnose.outside` concludes
from the shares that its stacks hold. Must not import torch.
"""

from __future__ import annotations

import dataclasses
import math
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import psutil

from loaderprof import formatting
from loaderprof.capture.cpu_budget import cpu_budget
from loaderprof.capture.running_job import (
    AttachError,
    AttachTarget,
    environment,
    find,
    loader_workers,
    memory_maps,
    named_workers,
)
from loaderprof.capture.samplers import WatchedJob
from loaderprof.capture.session import Session, make_folder
from loaderprof.capture.stack_sampler import MAX_PROCESSES, StackSampler
from loaderprof.errors import UsageError
from loaderprof.recording import files

# Sampling costs about 0.6 ms of CPU a sample and process (0.35 ms, and 0.085 ms for each Python thread): so many
# samples a second over all processes of a window are a tenth of a core, for the time of the visit only.
SAMPLES_PER_S = 150
FASTEST_HZ, SLOWEST_HZ = 50, 25
# Workers may come and go with every epoch, and py-spy gets its process ids when it starts.
WINDOW_S = 5


def attach(
    pid: int,
    *,
    duration_s: float,
    output: str | None,
    view: Callable[[str, Path], AbstractContextManager[object]] | None = None,
) -> Path:
    """Watch a running job and return the folder of the recording.

    Args:
        pid: the training process, or the launcher above it.
        duration_s: how long to watch; Ctrl-C ends it early.
        output: folder of the recording; None: named after the script.
        view: makes what is shown meanwhile, of the job's name and the recording.

    Raises:
        LoaderprofError: the job cannot be watched, or the folder cannot be written.
    """
    if not duration_s >= 1:
        raise UsageError("--duration is less than a second", f"loaderprof attach {pid} --duration 30")
    target = find(pid)
    main = psutil.Process(target.mains[0])
    try:
        command = job_command(main.cmdline())
    except psutil.Error:
        raise AttachError(f"process {main.pid} has just ended") from None
    folder = make_folder(output, _stem(command))
    stacks = Visit(target.mains, time.monotonic() + duration_s)
    session = Session(folder, command, stacks, [ThreadSampler(target.mains)])
    session.meta.update(_facts(target, main, duration_s))
    files.write_meta(folder, session.meta)  # who is watched, for whoever reads the recording before its end
    names = ", ".join(map(str, target.mains[:4])) + (", ..." if len(target.mains) > 4 else "")
    sys.stderr.write(
        f"loaderprof: watching process {names} for {formatting.duration(duration_s)}; Ctrl-C ends it early\n"
    )
    with view(_stem(command), folder) if view else nullcontext():
        _watch(session, stacks, target, duration_s)
    session.finish(None, None)
    return folder


def _watch(session: Session, stacks: Visit, target: AttachTarget, duration_s: float) -> None:
    """Sample until the time is over, the job has ended or the user has seen enough."""
    try:
        session.start(target.pid)
        end = time.monotonic() + duration_s
        while time.monotonic() < end and any(map(psutil.pid_exists, target.mains)):
            time.sleep(min(0.1, max(0.0, end - time.monotonic())))
    except KeyboardInterrupt:
        session.meta["ended_early"] = True
    # From here on a second Ctrl-C must not lose what was seen; it is a matter of a second.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        stacks.settle()
        session.stop()
    finally:
        signal.signal(signal.SIGINT, before)


class Visit(StackSampler):
    """py-spy over main processes in turn, each with a few of its workers, window after window without a break.

    Args:
        mains: the processes that run training loops.
        until: when the visit ends, of `time.monotonic`.
    """

    def __init__(self, mains: Sequence[int], until: float) -> None:
        super().__init__(urgent=True)
        self._mains, self._until, self._settled = tuple(mains), until, False

    def settle(self, timeout_s: float = 5.0) -> None:
        """Start no more windows, end the one under way now, and wait until its stacks are taken in."""
        self._settled = True
        end, asked = time.monotonic() + timeout_s, set()
        while self._running and time.monotonic() < end:
            for child, _ in list(self._running):
                # On the first SIGINT py-spy writes what it has; on a second one it may stop before it has.
                if child.returncode is None and child.pid not in asked:
                    asked.add(child.pid)
                    child.send_signal(signal.SIGINT)
            time.sleep(0.02)

    def due(self, job: WatchedJob) -> list[int]:  # noqa: ARG002 - what is looked at was chosen when the visit began
        left = self._until - time.monotonic()
        if self._settled or left < 0.5:
            return []
        # The last window takes a short rest with it; `settle` ends it in time.
        self.window_s = math.ceil(left) if left < 1.5 * WINDOW_S else WINDOW_S
        main = self._mains[self._windows % len(self._mains)]
        pids = [main, *loader_workers(main)[: MAX_PROCESSES - 1]]
        self.rate_hz = min(FASTEST_HZ, max(SLOWEST_HZ, SAMPLES_PER_S // len(pids)))
        return pids


class ThreadSampler:
    """The kernel's account of each training process and worker: CPU and run-queue wait of its first thread.

    Also the CPU of the whole process, and what it read: asked of the system, and taken from a device.
    """

    def __init__(self, mains: Sequence[int]) -> None:
        self.period_s = 1.0
        self.missing: str | None = None
        self._mains = tuple(mains)

    def sample(self, job: WatchedJob) -> dict[str, Any] | None:  # noqa: ARG002 - the protocol's signature
        """Return cumulative counters by process, None where the kernel keeps none."""
        entries = []
        for main in self._mains:
            entries.append(_account(main, None))
            entries += [_account(pid, main) for pid in named_workers(main)]
        known = [entry for entry in entries if entry is not None]
        return {"accounts": known} if known else None

    def close(self) -> None:
        """Nothing is held."""


def _account(pid: int, main: int | None) -> dict[str, Any] | None:
    try:
        cpu, runq, _ = Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()
        times = psutil.Process(pid).cpu_times()
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    except (OSError, ValueError, psutil.Error):
        return None
    read = {name: int(value) for name, _, value in (line.partition(": ") for line in lines)}
    return {
        "pid": pid,
        "main": main,
        "cpu_ns": int(cpu),
        "runq_ns": int(runq),
        "process_cpu_s": times.user + times.system,
        "rchar": read.get("rchar"),
        "read_bytes": read.get("read_bytes"),
    }


def job_command(words: Sequence[str]) -> list[str]:
    """Return a Python process's command line without the interpreter and its own options."""
    at = 1
    while at < len(words) and words[at].startswith("-") and words[at] not in ("-m", "-c"):
        at += 2 if words[at] in ("-X", "-W") else 1
    rest = list(words[at:])
    if rest[:1] == ["-c"]:
        return ["python", "-c", *rest[1:]]
    return rest or list(words)


def _stem(command: Sequence[str]) -> str:
    if command[:1] == ["-m"] and len(command) > 1:
        return command[1].rsplit(".", 1)[-1][:64]
    return (Path(command[0]).name.removesuffix(".py") if command else "")[:64] or "job"


def _facts(target: AttachTarget, main: psutil.Process, duration_s: float) -> dict[str, Any]:
    """Return what a recording says of a job that was joined; what a hooked process would say of itself is read here."""
    cwd = None
    with suppress(psutil.Error):
        cwd = main.cwd()
    budget = cpu_budget(main.pid)
    return {
        "mode": "attach",
        "cwd": cwd,
        "script_folder": _script_folder(main, cwd),
        "cpu_budget": dataclasses.asdict(budget),
        "attach": {
            "pid": target.pid,
            "asked_s": duration_s,
            "mains": [{"pid": pid, "rank": _rank(pid)} for pid in target.mains],
            "device": _device(main.pid),
            "python": _python_version(main),
            "torch": _torch_version(main.pid),
        },
    }


def _script_folder(main: psutil.Process, cwd: str | None) -> str | None:
    with suppress(psutil.Error):
        script = next((word for word in job_command(main.cmdline()) if word.endswith(".py")), None)
        if script is not None:
            return str((Path(cwd or "/") / script).parent)
    return None


def _rank(pid: int) -> int | None:
    found = environment(pid)
    for name in ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK"):
        value = found.get(name, "")
        if value.isdigit() and len(value) < 8:
            return int(value)
    return None


def _device(pid: int) -> str | None:
    """Return `cuda` where a process holds an NVIDIA device open, else `cpu`; None where that cannot be seen."""
    try:
        targets = [str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return None
    return "cuda" if any(re.match(r"/dev/nvidia\d", target) for target in targets) else "cpu"


def _torch_version(pid: int) -> str | None:
    """Read torch's version from the file beside the library that a process has loaded."""
    place = re.search(r"(/\S.*/torch)/lib/", memory_maps(pid))
    if place is None:
        return None
    try:
        # Through the process's own root: in a container the path is the container's.
        text = Path(f"/proc/{pid}/root{place[1]}/version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    version = re.search(r"^__version__ = '([^']+)'", text, re.MULTILINE)
    return version[1] if version else None


def _python_version(process: psutil.Process) -> str | None:
    try:
        version = re.search(r"python(\d+\.\d+)", process.exe())
    except psutil.Error:
        return None
    return version[1] if version else None
