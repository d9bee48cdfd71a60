"""Start an unmodified script, module or launcher with the hooks in place, and stand in for it until it ends.

The supervisor shares the job's process group, session and terminal. It passes signals on, stops when the job
stops, and leaves with the job's own status, so that a shell, Slurm or torchrun cannot tell the two apart.
Must not import torch, nor anything that starts a thread: signals have to be blocked before the first one.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TextIO

from loaderprof.errors import LoaderprofError, UsageError

INJECT = Path(__file__).absolute().parent / "inject"
# What PEP 538 may set LC_CTYPE to in a Python that was started in the C locale.
COERCED_LOCALES = ("C.UTF-8", "C.utf8", "UTF-8")
PR_SET_PDEATHSIG = 1  # linux/prctl.h
# A thread that was there before us (a BLAS library's) can swallow SIGCHLD; a look costs a few us.
LOOK_S = 1.0
# Not waited for: KILL and STOP cannot be; CONT wakes us even if blocked (see `_stop_too`); PIPE and XFSZ come
# from our own writes and look as if a process had sent them.
_LEFT_ALONE = ("SIGKILL", "SIGSTOP", "SIGCONT", "SIGPIPE", "SIGXFSZ")
WAITED_FOR = signal.valid_signals() - {getattr(signal, name, None) for name in _LEFT_ALONE}


@dataclass(frozen=True, slots=True)
class Exit:
    """How the job ended: the `code` it exited with, or the `signal` that killed it; the other one is None."""

    code: int | None
    signal: int | None

    @property
    def shell_code(self) -> int:
        """What a shell shows as `$?`."""
        return 128 + self.signal if self.signal is not None else self.code or 0


def job_command(arguments: Sequence[str], module: bool, launcher: bool) -> list[str]:
    """Return the command of the job.

    Args:
        arguments: what to run and its own arguments, as typed after `loaderprof run`.
        module: `-m` was given: the first argument names a module or package.
        launcher: `--` was given: the first argument is a program, which starts Python itself.

    Raises:
        UsageError: it cannot run, for a reason that shows without running it.
    """
    if not arguments:
        raise UsageError("there is nothing to run", "loaderprof run train.py")
    if launcher:
        _check_launcher(arguments)
        return list(arguments)
    if module:
        if Path(arguments[0]).is_file():
            raise UsageError(f"{arguments[0]} is a file, not a module", _run(*arguments))
        return [sys.executable, "-m", *arguments]
    _check_script(arguments)
    return [sys.executable, *arguments]


def job_environment(journals: Path, settings: Mapping[str, object], base: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the job: `base`, and what lets the hooks in.

    Args:
        journals: the folder in which each process of the job keeps its journal.
        settings: what `--set` said, by DataLoader argument.
        base: the environment without us.
    """
    env = {key: value for key, value in base.items() if key != "LOADERPROF_SET"}
    if _locale_was_coerced(base):
        del env["LC_CTYPE"]
    # An empty PYTHONPATH is none; joined, it would be an empty entry, which means the current folder.
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(INJECT), base.get("PYTHONPATH")]))
    env["LOADERPROF_JOURNALS"] = str(journals.absolute())
    if settings:
        env["LOADERPROF_SET"] = json.dumps(dict(settings))
    return env


def supervise(
    command: Sequence[str],
    env: Mapping[str, str],
    *,
    started: Callable[[int], None] | None = None,
    finished: Callable[[int], None] | None = None,
    terminal: int | None = None,
) -> Exit:
    """Run the job and return how it ended; call it from the main thread, before any other thread exists.

    Threads and processes that `started` creates inherit a mask which blocks every signal.

    Args:
        command: see `job_command`.
        env: see `job_environment`.
        started: called with the job's process id once it runs.
        finished: called with it when the job has ended; the id is not yet free for another process.
        terminal: a descriptor that stands in for the terminal, where the job's output goes to one.

    Raises:
        LoaderprofError: the operating system cannot start the command.
    """
    if not hasattr(signal, "sigwaitinfo"):
        return _supervise_plainly(command, env, started, finished, terminal)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, WAITED_FOR)
    try:
        job = _start(command, env, mask, terminal)
        _call_back(started, job.pid)
        _stand_by(job.pid)
        _call_back(finished, job.pid)
        return _exit(job.wait())
    finally:
        # What came for a job that is gone; without us, it would have found no process.
        while signal.sigtimedwait(WAITED_FOR, 0):
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def leave_as(exit: Exit) -> NoReturn:
    """End this process as the job ended: with its code, or killed by its signal but without a core dump."""
    for stream in (sys.stdout, sys.stderr):
        _flush(stream)
    if exit.signal is None:
        sys.exit(exit.code)
    import resource  # not there on Windows, where no job is killed by a signal

    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with contextlib.suppress(OSError):  # KILL has no other disposition
        signal.signal(exit.signal, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {exit.signal})
    os.kill(os.getpid(), exit.signal)
    sys.exit(exit.shell_code)  # process 1 of a container is spared


def _check_launcher(arguments: Sequence[str]) -> None:
    name = arguments[0]
    if shutil.which(name):
        return
    if not Path(name).is_file():
        raise UsageError(f"there is no program {name} on PATH", _run("--", "torchrun", "train.py"))
    if name.endswith(".py"):
        raise UsageError(f"{name} is a script, not a program on PATH", _run(*arguments))
    raise UsageError(f"{name} may not be executed", f"chmod +x {shlex.quote(name)}")


def _check_script(arguments: Sequence[str]) -> None:
    name, script = arguments[0], Path(arguments[0])
    if script.is_dir():
        if not (script / "__main__.py").is_file():
            raise UsageError(f"the folder {name} has no __main__.py", _run(str(script / "train.py")))
    elif not script.exists():
        if shutil.which(name):
            raise UsageError(f"{name} is a program, not a script in this folder", _run("--", *arguments))
        raise UsageError(f"there is no file {name}", "loaderprof run PATH/TO/train.py, or -m PACKAGE")
    elif script.is_file() and script.suffix != ".pyc":  # a pipe could be read only once
        _check_source(name)


def _check_source(name: str) -> None:
    if zipfile.is_zipfile(name):
        with zipfile.ZipFile(name) as archive:
            if "__main__.py" not in archive.namelist():
                raise UsageError(f"the archive {name} has no __main__.py", "python -m zipapp adds one")
        return
    try:
        source = Path(name).read_bytes()
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror}", f"ls -l {shlex.quote(name)}") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the job's own Python shows them
            compile(source, name, "exec", dont_inherit=True)
    except SyntaxError as error:
        place = f"{name}:{error.lineno}" if error.lineno else name
        raise UsageError(f"{place}: {error.msg}", f"python {shlex.quote(name)} shows the line") from None
    except ValueError as error:  # a null byte, in some versions of Python
        raise UsageError(f"{name}: {error}", f"python {shlex.quote(name)} fails as well") from None


def _run(*arguments: str) -> str:
    return f"loaderprof run {shlex.join(arguments)}"


def _locale_was_coerced(base: Mapping[str, str]) -> bool:
    """Return whether our own Python set LC_CTYPE: passed on, it would turn off the job's UTF-8 mode."""
    if base.get("LC_CTYPE") not in COERCED_LOCALES:
        return False
    try:
        ours = Path("/proc/self/environ").read_bytes().split(b"\0")  # as it was at our start
    except OSError:
        return False
    return not any(entry.startswith(b"LC_CTYPE=") for entry in ours)


def _start(
    command: Sequence[str], env: Mapping[str, str], mask: set[signal.Signals | int], terminal: int | None
) -> subprocess.Popen[bytes]:
    """Start the job with every inherited file, with the signals that we were given, and tied to our life."""
    parent = os.getpid()
    prctl = ctypes.CDLL(None).prctl  # looked up before the fork
    interrupt = signal.getsignal(signal.SIGINT)
    ignores_children = signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN
    if ignores_children:  # inherited: the kernel would drop the job's status, and SIGCHLD with it
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def between_fork_and_exec() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # who kills the supervisor means the job
        if os.getppid() != parent:  # it died before that call
            os.kill(os.getpid(), signal.SIGKILL)
        if callable(interrupt):  # exec would do so; a Ctrl-C until then must not run Python's handler here
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        if ignores_children:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    return _popen(command, env, terminal, between_fork_and_exec)


def _popen(
    command: Sequence[str],
    env: Mapping[str, str],
    terminal: int | None,
    in_child: Callable[[], None] | None = None,
) -> subprocess.Popen[bytes]:
    out, err = (terminal if terminal is not None and os.isatty(number) else None for number in (1, 2))
    try:
        return subprocess.Popen(command, env=env, close_fds=False, stdout=out, stderr=err, preexec_fn=in_child)
    except OSError as error:
        message = f"{command[0]} cannot be started: {error.strerror}"
        raise LoaderprofError(message, f"does it run without us?  {shlex.join(command)}") from None


def _stand_by(pid: int) -> None:
    """Pass signals on until the job has ended; its status is left for `wait`."""
    while True:
        received = signal.sigtimedwait(WAITED_FOR, LOOK_S)
        if received is None or received.si_signo == signal.SIGCHLD:
            if _has_ended(pid):
                return
        elif received.si_code <= 0 or _is_for_us_alone(received.si_signo):
            with contextlib.suppress(PermissionError):  # a job that runs as another user, below sudo
                os.kill(pid, received.si_signo)


def _is_for_us_alone(number: int) -> bool:
    """Return whether the kernel sent this to one process; what a key sends, the job received as well."""
    if number == signal.SIGHUP:  # the terminal is gone: the session's leader gets the signal
        return os.getpid() == os.getsid(0)
    return number == signal.SIGALRM  # set before we started: timers outlive exec, but not fork


def _has_ended(pid: int) -> bool:
    change = os.waitid(os.P_PID, pid, os.WEXITED | os.WSTOPPED | os.WNOHANG | os.WNOWAIT)
    if change is None:
        return False
    if change.si_code != os.CLD_STOPPED:
        return True
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG)
    _stop_too(pid, change.si_status)
    return False


def _stop_too(pid: int, number: int) -> None:
    """Stop as the job was stopped, for the shell to see; once continued, see that the job is, too."""
    if signal.getsignal(number) != signal.SIG_DFL:
        number = signal.SIGSTOP
    os.kill(os.getpid(), number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})  # here we stop
    signal.pthread_sigmask(signal.SIG_BLOCK, {number} & WAITED_FOR)
    anything = os.WEXITED | os.WSTOPPED | os.WCONTINUED
    if os.waitid(os.P_PID, pid, anything | os.WNOHANG | os.WNOWAIT) is None:  # only we were continued
        os.kill(pid, signal.SIGCONT)


def _supervise_plainly(
    command: Sequence[str],
    env: Mapping[str, str],
    started: Callable[[int], None] | None,
    finished: Callable[[int], None] | None,
    terminal: int | None,
) -> Exit:
    """Run the job where signals cannot be awaited (macOS): Ctrl-C reaches the job, nothing is passed on."""
    job = _popen(command, env, terminal)
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _call_back(started, job.pid)
        code = job.wait()
        _call_back(finished, job.pid)
        return _exit(code)
    finally:
        signal.signal(signal.SIGINT, previous)


def _exit(returncode: int) -> Exit:
    return Exit(None, -returncode) if returncode < 0 else Exit(returncode, None)


def _call_back(callback: Callable[[int], None] | None, pid: int) -> None:
    """Call back; if that fails, say so in one line: the job goes on."""
    if callback is None:
        return
    try:
        callback(pid)
    except Exception as error:  # noqa: BLE001 - whatever it is, the job is not to pay for it
        reason = " ".join(str(error).split()) or type(error).__name__
        sys.stderr.write(f"loaderprof: watching from outside is off: {reason}\n")


def _flush(stream: TextIO | None) -> None:
    if stream is None:  # its descriptor was closed when Python started
        return
    try:
        stream.flush()
    except OSError:  # the reader has gone; Python would try again at the end, complain, and exit with 120
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except ValueError:  # closed since
        pass
