"""One profiling session from start to stop: the recording folder, the samplers beside the job, the last word.

Runs in loaderprof's own process: the supervisor of `loaderprof run`, or the one that the context manager starts
beside the user's process (`python -m loaderprof.capture.session PID FOLDER`). Must not import torch.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import psutil

from loaderprof._version import __version__
from loaderprof.capture import mounts
from loaderprof.capture.cpu_budget import cpu_budget
from loaderprof.capture.gpus import GpuSampler
from loaderprof.capture.hooks import describe, overhead
from loaderprof.capture.samplers import HostSampler, Sampler, WatchedJob
from loaderprof.capture.stack_sampler import StackSampler
from loaderprof.errors import OutputError
from loaderprof.recording import files
from loaderprof.recording import journal as layout

# A live journal is a shared mapping, which these file systems do badly or not at all.
NETWORK_FILE_SYSTEMS = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse", "lustre", "gpfs", "beegfs", "9p", "ceph", "afs")


def make_folder(wanted: str | None, stem: str, force: bool = False) -> Path:
    """Make the recording folder.

    Args:
        wanted: the folder the user named; None: `STEM-MMDD-HHMM` in the current folder.
        stem: the job's short name.
        force: replace a recording that is there already.

    Raises:
        OutputError: it exists and holds something, or cannot be written.
    """
    if wanted and "://" in wanted:
        raise OutputError(
            f"{wanted} is a URL, and only run, attach and profile() record to one", "name a folder with -o"
        )
    folder = Path(wanted) if wanted else free_name(f"{stem}-{time.strftime('%m%d-%H%M')}")
    try:
        _make_room(folder, force)
        (folder / files.JOURNALS).mkdir(parents=True, exist_ok=True)
        probe = folder / (files.META + ".new")
        # A full disk shows only when bytes are asked for.
        with open(probe, "wb") as file:
            file.write(b"\0" * 65536)
            file.flush()
            os.fsync(file.fileno())
        probe.unlink()
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror}", "name another folder with -o") from None
    return folder.absolute()


def _make_room(folder: Path, force: bool) -> None:
    """Remove the recording that is in the way where that is asked for; refuse anything else that is."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file, not a folder", "loaderprof run -o ANOTHER_FOLDER train.py")
    if folder.is_dir() and any(folder.iterdir()):
        if {each.name for each in folder.iterdir()} == {files.NODES}:
            return  # other nodes of this job were quicker
        if not force:
            raise OutputError(
                f"{folder} is not empty", "name another folder with -o, or replace the recording with --force"
            )
        if not (folder / files.META).is_file():
            raise OutputError(f"{folder} holds something that is no recording, so --force leaves it alone")
        for name in files.OWN:
            if name in (files.JOURNALS, files.NODES):
                shutil.rmtree(folder / name, ignore_errors=True)
            else:
                (folder / name).unlink(missing_ok=True)


def free_name(name: str) -> Path:
    """Return the name, or the first of NAME-2, NAME-3 ... that is not taken."""
    path, number = Path(name), 2
    while path.exists():
        path, number = Path(f"{name}-{number}"), number + 1
    return path


class Session:
    """Samples one job from outside and keeps its recording.

    Args:
        folder: the recording folder, made by `make_folder`.
        command: the job's command line, for the report; secrets are redacted.
        stacks: how stacks are sampled; by default in short windows within a budget.
        more: samplers beside those of host, GPU and stacks.
    """

    def __init__(
        self, folder: Path, command: Sequence[str], stacks: StackSampler | None = None, more: Sequence[Sampler] = ()
    ) -> None:
        self.folder = folder
        self.journals, self._live = _journal_folder(folder)
        self.meta: dict[str, Any] = {
            "loaderprof": __version__,
            "command": describe.redacted(list(command)),
            "cwd": str(Path.cwd()),
            "script_folder": _script_folder(command),
            "host": describe.host(),
            "started_unix_ns": time.time_ns(),
            "started_ns": time.perf_counter_ns(),
            "cpu_budget": _as_dict(cpu_budget()),
            "open_files_limit": _open_files_limit(),
            "live_journals": str(self._live) if self._live else None,
            "max_overhead": overhead.max_overhead(),
            "keep": overhead.keeps_all(),
        }
        files.write_meta(folder, self.meta)
        self.gpu, self.stacks = GpuSampler(), stacks or StackSampler()
        self._samplers: list[Sampler] = [HostSampler(), self.gpu, self.stacks, *more]
        self._files: dict[str, IO[str]] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._cpu_begun = time.process_time()

    def add(self, sampler: Sampler) -> None:
        """Have one more sampler; before `start`."""
        self._samplers.append(sampler)

    def start(self, pid: int) -> None:
        """Begin to sample the job whose first process is `pid`."""
        self._cpu_begun = time.process_time()
        self._thread = threading.Thread(target=self._loop, args=(pid,), name="loaderprof", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop sampling; waits for the sample under way. Safe to call twice."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10)
            self._thread = None
        for file in self._files.values():
            with suppress(OSError):
                file.close()
        self._files = {}

    def finish(self, exit_code: int | None, signal_name: str | None) -> bool:
        """Write how the job ended, and return whether it could be written. A full disk is one line on stderr, not an error."""
        self.stop()
        ended = time.perf_counter_ns()
        self._keep_last_window()
        self.meta.update(
            ended_ns=ended,
            exit_code=exit_code,
            signal=signal_name,
            gpus=self.gpu.names(),
            missing={"gpu": self.gpu.missing, "stacks": self.stacks.missing},
            sampler_cpu_s=time.process_time() - self._cpu_begun + self.stacks.cpu_s,
            stacks_cpu_s=self.stacks.cpu_s,
        )
        for sampler in self._samplers:
            sampler.close()
        try:
            if self._live is not None:
                for file in self._live.glob("*.lpj"):
                    shutil.copyfile(file, self.folder / files.JOURNALS / file.name)
                shutil.rmtree(self._live, ignore_errors=True)
                self.meta["live_journals"] = None
            _trim(self.folder / files.JOURNALS)
            files.write_meta(self.folder, self.meta)
        except OSError as error:
            sys.stderr.write(f"loaderprof: {self.folder}: {error.strerror}; the recording is incomplete\n")
            return False
        return True

    def _keep_last_window(self) -> None:
        try:
            window = self.stacks.last_window()
            if window is not None:
                with open(self.folder / files.STACKS, "a", encoding="utf-8") as file:
                    file.write(json.dumps({"t": time.perf_counter_ns(), **window}, separators=(",", ":")) + "\n")
        except (OSError, ValueError) as error:
            self.stacks.missing = f"not measured: {error}"

    def _loop(self, pid: int) -> None:
        job = WatchedJob(pid, self.journals)
        due = dict.fromkeys(map(id, self._samplers), 0.0)
        while not self._stop.is_set():
            for sampler in self._samplers:
                if time.monotonic() >= due[id(sampler)]:
                    self._sample(sampler, job)
                    due[id(sampler)] = time.monotonic() + sampler.period_s
            self._stop.wait(max(0.02, min(due.values()) - time.monotonic()))

    def _sample(self, sampler: Sampler, job: WatchedJob) -> None:
        try:
            sample = sampler.sample(job)
            if sample is not None:
                name = files.STACKS if "stacks" in sample else files.HOST
                self._append(name, {"t": time.perf_counter_ns(), **sample})
        except Exception as error:  # noqa: BLE001 - a sampler that fails must not take the session with it
            sampler.missing = f"not measured: {type(error).__name__}: {error}"
            sampler.period_s = 1e9

    def _append(self, name: str, line: dict[str, Any]) -> None:
        if name not in self._files:
            self._files[name] = open(self.folder / name, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        self._files[name].write(json.dumps(line, separators=(",", ":")) + "\n")


def _script_folder(command: Sequence[str]) -> str | None:
    script = next((part for part in command if part.endswith(".py") and Path(part).is_file()), None)
    return str(Path(script).absolute().parent) if script else None


def _trim(journals: Path) -> None:
    """Cut the unused end off the journals of processes that are gone.

    A process that lives on may still write into its mapping, and would die of a file cut short under it.
    """
    own = re.compile(re.escape(describe.host()) + r"-(\d+)-\d+\.lpj")
    for file in journals.glob("*.lpj"):
        # Whether a process of another host is gone cannot be seen from here.
        name = own.fullmatch(file.name)
        if name is None or psutil.pid_exists(int(name[1])):
            continue
        used = len(file.read_bytes().rstrip(b"\0"))
        records = -(-max(0, used - layout.HEADER_BYTES) // layout.RECORD_BYTES)
        os.truncate(file, layout.HEADER_BYTES + records * layout.RECORD_BYTES)


def _as_dict(budget: Any) -> dict[str, Any]:
    return {name: getattr(budget, name) for name in budget.__slots__}


def _open_files_limit() -> int | None:
    try:
        import resource

        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    except (ImportError, OSError):
        return None


def _journal_folder(folder: Path) -> tuple[Path, Path | None]:
    """Return where journals are written, and that place again where it is not in the recording itself."""
    if file_system(folder).split(".")[0] not in NETWORK_FILE_SYSTEMS:
        return folder / files.JOURNALS, None
    import tempfile

    live = Path(tempfile.mkdtemp(prefix="loaderprof-"))
    return live, live


def file_system(path: Path) -> str:
    """Return the type of the file system that holds a path, as the kernel names it; empty where unknown."""
    return mounts.kind(str(path.absolute()), mounts.table())


def beside(pid: int, folder: Path) -> None:
    """Sample process `pid` into `folder` until standard input closes or the process is gone."""
    meta = json.loads((folder / files.META).read_text(encoding="utf-8"))
    session = Session(folder, meta["command"])
    session.meta.update({key: meta[key] for key in ("started_ns", "started_unix_ns", "cwd")})
    session.start(pid)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()
    session.finish(None, None)


if __name__ == "__main__":
    # Ctrl-C is the user's process's to handle; it closes our standard input when it is done.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    beside(int(sys.argv[1]), Path(sys.argv[2]))
