"""A supervised job against the bare one: whatever a program, a shell or a user can tell, must be the same."""

from __future__ import annotations

import ast
import contextlib
import fcntl
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import termios
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from golden_sentences import Check

from loaderprof.capture import launch
from loaderprof.errors import UsageError

PROGRAMS = Path(__file__).parent / "programs"
IDENTITY = str(PROGRAMS / "identity.py")
SIGNALS = str(PROGRAMS / "signals.py")
WAYS = ("bare", "supervised")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="signals are passed on where sigwaitinfo exists")


def command(way: str, *arguments: str) -> list[str]:
    """The command of a job as Python itself takes it, or of its supervisor."""
    if way == "supervised":
        return [sys.executable, str(PROGRAMS / "supervised.py"), "journals", *arguments]
    return [*arguments[1:]] if arguments[0] == "--" else [sys.executable, *arguments]


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def outcome(way: str, folder: Path, *arguments: str, **options: Any) -> tuple[str, str, int]:
    done = subprocess.run(command(way, *arguments), cwd=folder, capture_output=True, text=True, timeout=60, **options)
    return done.stdout, done.stderr, done.returncode


def assert_same(folder: Path, *arguments: str, **options: Any) -> tuple[str, str, int]:
    """Run both ways; return what both gave."""
    bare = outcome("bare", folder, *arguments, **options)
    assert outcome("supervised", folder, *arguments, **options) == bare
    return bare


def no_core() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def ignoring(*numbers: int) -> Callable[[], None]:
    """What a parent that ignores these signals does before it starts a program."""

    def ignore() -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)

    return ignore


class Job:
    """A running process with a line-wise conversation."""

    def __init__(self, way: str, *arguments: str, cwd: Path, **options: Any) -> None:
        self.process = subprocess.Popen(
            command(way, *arguments),
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            **options,
        )
        self.pid = self.process.pid
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout

    def line(self) -> str:
        return str(self.stdout.readline()).rstrip("\n")

    def say(self, text: str) -> None:
        self.stdin.write(text + "\n")
        self.stdin.flush()

    def end(self) -> tuple[str, int]:
        """Return the rest of its output, and its status."""
        self.stdin.close()
        return self.stdout.read(), self.process.wait()

    def stopped_by(self) -> int:
        """Wait until it has stopped; return the signal."""
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        return os.WSTOPSIG(status)


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """A factory of jobs, none of which outlives the test."""
    with contextlib.ExitStack() as ends:

        def start(way: str, *arguments: str, **options: Any) -> Job:
            started = Job(way, *arguments, cwd=tmp_path, **options)
            for stream in (started.stdin, started.stdout):
                ends.callback(stream.close)
            ends.callback(started.process.wait)
            ends.callback(started.process.kill)
            return started

        yield start


class Terminal:
    """A process that leads a session on a terminal of its own."""

    def __init__(self, arguments: list[str], cwd: Path) -> None:
        self.master, slave = os.openpty()
        self.process = subprocess.Popen(
            arguments,
            cwd=cwd,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self.text = ""

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def read_until(self, words: str | None) -> str:
        """Read until these words were shown, or to the end; return all the text so far."""
        while words is None or words not in self.text:
            if not self._read():
                assert words is None, self.text
                break
        return self.text

    def _read(self) -> bool:
        try:
            self.text += os.read(self.master, 4096).decode()
        except OSError:  # nobody holds the other side any more
            return False
        return True

    def end(self) -> tuple[str, int]:
        return self.read_until(None), self.process.wait()

    def hang_up(self) -> None:
        os.close(self.master)
        self.master = -1


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*arguments: str) -> Terminal:
        opened.append(Terminal(list(arguments), tmp_path))
        return opened[-1]

    yield start
    for each in opened:
        each.process.kill()
        each.process.wait()
        if each.master >= 0:
            each.hang_up()


# What the program sees


def locale(**values: str) -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in ("LANG", "LC_ALL", "LC_CTYPE")} | values


@pytest.mark.parametrize(
    "env",
    [
        dict(os.environ),
        locale(),
        locale(LANG="C"),
        locale(LC_CTYPE="C.UTF-8"),
        locale(LC_ALL="C"),
        locale(PYTHONPATH=""),
        locale(PYTHONPATH=":/nowhere::relative:/nowhere"),
        locale(PYTHONDEVMODE="1", PYTHONSAFEPATH="1"),
    ],
)
def test_a_script_sees_no_difference(tmp_path: Path, env: dict[str, str]) -> None:
    stdout, stderr, code = assert_same(tmp_path, IDENTITY, "-x", "two words", env=env)
    assert (stderr, code) == ("", 0)
    assert json.loads(stdout)["argv"][0] == [IDENTITY, "-x", "two words"]


def test_relative_names_stay_relative(tmp_path: Path) -> None:
    shutil.copy(IDENTITY, tmp_path)
    stdout, _, _ = assert_same(tmp_path, "identity.py")
    assert json.loads(stdout)["argv"][0] == ["identity.py"]


def test_modules_packages_folders_and_archives(tmp_path: Path) -> None:
    shutil.copy(IDENTITY, tmp_path / "alone.py")
    (tmp_path / "package").mkdir()
    shutil.copy(IDENTITY, tmp_path / "package" / "__main__.py")
    with zipfile.ZipFile(tmp_path / "packed", "w") as archive:
        archive.write(IDENTITY, "__main__.py")
    for arguments in (["-m", "alone"], ["-m", "package", "-m"], ["package", "a"], ["packed", "a"]):
        _, stderr, code = assert_same(tmp_path, *arguments)
        assert (stderr, code) == ("", 0)


def test_a_launcher_runs_as_given(tmp_path: Path) -> None:
    assert assert_same(tmp_path, "--", "sh", "-c", 'echo "$1" >&2; exit 4', "sh", "a b") == ("", "a b\n", 4)
    stdout, _, code = assert_same(tmp_path, "--", sys.executable, "-X", "dev", IDENTITY, "a")
    assert (json.loads(stdout)["argv"][0], code) == ([IDENTITY, "a"], 0)


def test_input_and_descriptors_pass_through(tmp_path: Path) -> None:
    upper = write(tmp_path / "upper.py", "import sys\nprint(sys.stdin.read().upper())")
    assert assert_same(tmp_path, upper, input="some text")[0] == "SOME TEXT\n"
    script = write(tmp_path / "fd.py", "import os, sys\nos.write(int(sys.argv[1]), b'here')")
    for way in WAYS:
        read, written = os.pipe()
        assert outcome(way, tmp_path, script, str(written), pass_fds=[written]) == ("", "", 0)
        os.close(written)
        assert os.read(read, 9) == b"here"
        os.close(read)


def test_a_closed_standard_stream_stays_closed(tmp_path: Path) -> None:
    script = write(tmp_path / "closed.py", "import sys\nsys.stderr.write(repr(sys.stdin) + repr(sys.stdout))")
    shell = f'"$@" {script} <&- >&-'
    both = [
        subprocess.run(["sh", "-c", shell, "sh", *command(way, script)[:-1]], capture_output=True, cwd=tmp_path)
        for way in WAYS
    ]
    assert both[0].stderr == b"NoneNone"
    assert [each.stderr for each in both] == [b"NoneNone"] * 2


# How the program ends

ENDINGS = {
    "nothing": "",
    "code": "sys.exit(7)",
    "message": "sys.exit('msg')",
    "exception": "def fail():\n    raise ValueError('boom')\nfail()",
    "at once": "os._exit(5)",
    "SIGTERM": "os.kill(os.getpid(), signal.SIGTERM)",
    "SIGKILL": "os.kill(os.getpid(), signal.SIGKILL)",
    "SIGSEGV": "os.kill(os.getpid(), signal.SIGSEGV)",
    "SIGPIPE": "signal.signal(signal.SIGPIPE, signal.SIG_DFL); os.kill(os.getpid(), signal.SIGPIPE)",
    "real-time signal": "os.kill(os.getpid(), signal.SIGRTMIN + 1)",
    "abort": "os.abort()",
    "interrupt": "raise KeyboardInterrupt",
    "atexit": "import atexit\natexit.register(print, 'last words')\nsys.exit(3)",
    "warning": "import warnings\nwarnings.warn('careful')\nprint('\\d')",
    "thread": "import threading\nthreading.Timer(0.01, print, ['late']).start()",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_ending_is_the_same(tmp_path: Path, ending: str) -> None:
    script = write(tmp_path / "end.py", "import os, signal, sys\nprint('begun', flush=True)\n" + ENDINGS[ending])
    assert assert_same(tmp_path, script, preexec_fn=no_core)[0].startswith("begun\n")


def test_the_shell_code() -> None:
    assert launch.Exit(3, None).shell_code == 3
    assert launch.Exit(None, signal.SIGTERM).shell_code == 143


@pytest.mark.parametrize("way", WAYS)
def test_a_job_ends_while_its_children_live_on(job: Callable[..., Job], tmp_path: Path, way: str) -> None:
    script = """
        import subprocess, sys
        child = subprocess.Popen(["cat"], stdin=0, stdout=subprocess.DEVNULL)
        print(child.pid, flush=True)
        sys.exit(4)
    """
    running = job(way, write(tmp_path / "leave.py", "if True:" + script))
    child = int(running.line())
    assert running.process.wait(20) == 4
    os.kill(child, 0)
    assert running.end() == ("", 4)  # closing its input ends the child


def test_children_ignored_by_our_parent(tmp_path: Path) -> None:
    ignore = ignoring(signal.SIGCHLD)
    assert assert_same(tmp_path, IDENTITY, preexec_fn=ignore)[2] == 0
    script = write(tmp_path / "code.py", "import sys\nsys.exit(6)")
    assert assert_same(tmp_path, script, preexec_fn=ignore)[2] == 6


# Signals

# A blocking call misses the signal that comes just before it; `idle` does not. A print could be interrupted by the
# print of a handler; `say` cannot.
IDLE = """
import os, signal, sys
receive, send = os.pipe()
os.set_blocking(send, False)
signal.set_wakeup_fd(send)
def idle():
    while True:
        os.read(receive, 1)
def say(text):
    os.write(1, text.encode() + b"\\n")
"""


@linux_only
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["INT", "TERM", "HUP", "USR1", "ALRM", "WINCH", "XCPU", "ABRT"])
def test_a_signal_from_a_process_arrives_once(job: Callable[..., Job], way: str, name: str) -> None:
    running = job(way, SIGNALS)
    assert running.line() == "ready"
    os.kill(running.pid, signal.Signals[f"SIG{name}"])
    assert running.line() == f"SIG{name}"
    os.kill(running.pid, signal.SIGUSR2)  # passed on after whatever is still under way
    assert json.loads(running.line()) == {f"SIG{name}": 1, "SIGUSR2": 1}
    assert running.end() == ("", 0)


@linux_only
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["INT", "TERM", "HUP", "USR1", "QUIT", "ABRT"])
def test_a_signal_that_nobody_handles(job: Callable[..., Job], tmp_path: Path, way: str, name: str) -> None:
    script = write(tmp_path / "wait.py", IDLE + "say('ready')\nidle()")
    running = job(way, script, preexec_fn=no_core, stderr=subprocess.DEVNULL)
    assert running.line() == "ready"
    os.kill(running.pid, signal.Signals[f"SIG{name}"])
    assert running.process.wait(20) == -signal.Signals[f"SIG{name}"]


@linux_only
@pytest.mark.parametrize("way", WAYS)
def test_an_alarm_set_before_the_start(job: Callable[..., Job], way: str) -> None:
    running = job(way, SIGNALS, preexec_fn=lambda: signal.alarm(1))
    assert [running.line(), running.line()] == ["ready", "SIGALRM"]


@linux_only
@pytest.mark.parametrize("way", WAYS)
def test_a_grace_period(job: Callable[..., Job], tmp_path: Path, way: str) -> None:
    script = """if True:
        def save(number, frame):
            say("saving")
            say("saved " + input())
            sys.exit(0)
        signal.signal(signal.SIGTERM, save)
        say("ready")
        idle()
    """
    running = job(way, write(tmp_path / "save.py", IDLE + script))
    assert running.line() == "ready"
    os.kill(running.pid, signal.SIGTERM)
    assert running.line() == "saving"
    running.say("all")
    assert (running.line(), *running.end()) == ("saved all", "", 0)


@linux_only
@pytest.mark.parametrize("way", WAYS)
def test_nohup(job: Callable[..., Job], way: str, tmp_path: Path) -> None:
    script = write(tmp_path / "stay.py", "import sys\nprint('ready', flush=True)\nprint(sys.stdin.read())")
    running = job(way, script, preexec_fn=ignoring(signal.SIGHUP))
    assert running.line() == "ready"
    os.kill(running.pid, signal.SIGHUP)
    running.say("still here")
    assert running.end() == ("still here\n\n", 0)


def test_ignored_signals_stay_ignored(tmp_path: Path) -> None:
    ignore = ignoring(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
    assert assert_same(tmp_path, IDENTITY, preexec_fn=ignore)[2] == 0


def test_blocked_signals_stay_blocked(tmp_path: Path) -> None:
    def block() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGCHLD})

    assert assert_same(tmp_path, IDENTITY, preexec_fn=block)[2] == 0


@linux_only
def test_killing_the_supervisor_kills_the_job(job: Callable[..., Job]) -> None:
    running = job("supervised", SIGNALS)
    assert running.line() == "ready"
    running.process.kill()
    assert running.stdout.read() == ""  # ends when the job's end of the pipe does
    assert running.process.wait() == -signal.SIGKILL


@linux_only
@pytest.mark.parametrize("way", WAYS)
def test_ctrl_c_arrives_once(terminal: Callable[..., Terminal], way: str) -> None:
    screen = terminal(*command(way, SIGNALS))
    screen.read_until("ready")
    screen.type("\x03")
    screen.read_until("SIGINT")
    os.kill(screen.process.pid, signal.SIGUSR2)
    text, code = screen.end()
    assert json.loads(text.splitlines()[-1]) == {"SIGINT": 1, "SIGUSR2": 1}
    assert code == 0


@linux_only
@pytest.mark.parametrize("way", WAYS)
def test_ctrl_c_twice(terminal: Callable[..., Terminal], tmp_path: Path, way: str) -> None:
    script = """if True:
        try:
            say("ready")
            idle()
        except KeyboardInterrupt:
            say("once more to end")
            idle()
    """
    screen = terminal(*command(way, write(tmp_path / "twice.py", IDLE + script)))
    screen.read_until("ready")
    screen.type("\x03")
    screen.read_until("once more")
    screen.type("\x03")
    assert screen.end()[1] == -signal.SIGINT


@linux_only
@pytest.mark.parametrize("way", WAYS)
def test_the_terminal_hangs_up(terminal: Callable[..., Terminal], tmp_path: Path, way: str) -> None:
    screen = terminal(*command(way, write(tmp_path / "idle.py", IDLE + "say('ready')\nidle()")))
    screen.read_until("ready\r\n")  # the whole line: a write to a terminal that is gone fails
    screen.hang_up()
    assert screen.process.wait(20) == -signal.SIGHUP


@linux_only
@pytest.mark.parametrize("way", WAYS)
def test_ctrl_z_and_foreground(terminal: Callable[..., Terminal], tmp_path: Path, way: str) -> None:
    script = write(tmp_path / "talk.py", IDLE + "say('ready')\nsay('got ' + input())\nsys.exit(3)")
    screen = terminal(sys.executable, str(PROGRAMS / "shell.py"), *command(way, script))
    screen.read_until("ready")
    for times in (1, 2):
        screen.type("\x1a")
        screen.read_until(f"stopped {signal.SIGTSTP:d}, time {times}")
        screen.read_until(f"continued, time {times}\r\n")
    screen.type("on\n")
    text, code = screen.end()
    assert re.search(r"got on\s+ended 3\s*$", text)
    assert code == 0


@linux_only
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["TSTP", "TTIN"])
def test_stopped_and_continued_by_number(job: Callable[..., Job], tmp_path: Path, way: str, name: str) -> None:
    script = write(tmp_path / "echo.py", "print('ready', flush=True)\nprint('got', input())")
    running = job(way, script, preexec_fn=lambda: os.setpgid(0, 0))
    assert running.line() == "ready"
    os.kill(running.pid, signal.Signals[f"SIG{name}"])
    assert running.stopped_by() == signal.Signals[f"SIG{name}"]
    running.say("this")
    os.kill(running.pid, signal.SIGCONT)
    assert running.end() == ("got this\n", 0)


@linux_only
@pytest.mark.parametrize("way", WAYS)
def test_a_job_that_takes_ctrl_z_does_not_stop(job: Callable[..., Job], tmp_path: Path, way: str) -> None:
    script = """if True:
        def refuse(number, frame):
            say("no")
            say("got " + input())
            sys.exit(0)
        signal.signal(signal.SIGTSTP, refuse)
        say("ready")
        idle()
    """
    running = job(way, write(tmp_path / "go_on.py", IDLE + script), preexec_fn=lambda: os.setpgid(0, 0))
    assert running.line() == "ready"
    os.kill(running.pid, signal.SIGTSTP)
    assert running.line() == "no"
    running.say("this")
    assert running.end() == ("got this\n", 0)


def test_without_sigwaitinfo(tmp_path: Path) -> None:
    script = write(
        tmp_path / "plain.py",
        "import os, signal, sys\n"
        "from loaderprof.capture import launch\n"
        "if hasattr(signal, 'sigwaitinfo'):\n    del signal.sigwaitinfo\n"
        "seen = []\n"
        "exit = launch.supervise(sys.argv[1:], os.environ, started=seen.append, finished=seen.append)\n"
        "print(exit, seen[0] == seen[1], signal.getsignal(signal.SIGINT) is signal.default_int_handler)",
    )
    for line, exit in (("exit 3", launch.Exit(3, None)), ("kill -9 $$", launch.Exit(None, 9))):
        done = subprocess.run([sys.executable, script, "sh", "-c", line], capture_output=True, text=True)
        assert (done.stdout, done.stderr) == (f"{exit} True True\n", "")


def test_callbacks_frame_the_job_and_cannot_hurt_it(tmp_path: Path, said: Check) -> None:
    script = write(
        tmp_path / "callbacks.py",
        "import os, signal, sys\n"
        "from loaderprof.capture import launch\n"
        "def started(pid):\n    os.kill(pid, 0); raise RuntimeError('no\\nway')\n"
        "def finished(pid):\n    os.kill(pid, 0); print('finished', flush=True)\n"
        "exit = launch.supervise(['sh', '-c', 'exit 2'], os.environ, started=started, finished=finished)\n"
        "print(exit, signal.pthread_sigmask(signal.SIG_BLOCK, ()))",
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.stdout == f"finished\n{launch.Exit(2, None)} set()\n"
    said("a callback that fails", done.stderr)


@linux_only
def test_a_signal_lost_to_another_thread_does_not_hang_us(tmp_path: Path) -> None:
    script = write(
        tmp_path / "thread.py",
        "import os, signal, threading\n"
        "from loaderprof.capture import launch\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "def started(pid):\n    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)\n"
        "    while signal.SIGCHLD in signal.sigpending():\n        os.sched_yield()\n"
        "print(launch.supervise(['sh', '-c', 'exit 2'], os.environ, started=started))",
    )
    done = subprocess.run([sys.executable, "-W", "ignore", script], capture_output=True, text=True, timeout=20)
    assert (done.stdout, done.stderr) == (f"{launch.Exit(2, None)}\n", "")


@pytest.mark.parametrize("exit", [launch.Exit(3, None), launch.Exit(None, 15)])
def test_leaving_with_a_report_that_nobody_reads(tmp_path: Path, exit: launch.Exit) -> None:
    script = write(
        tmp_path / "leave.py",
        "import sys\nfrom loaderprof.capture.launch import Exit, leave_as\n"
        f"sys.stdin.read()\nprint('the report')\nleave_as({exit})",
    )
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    leaving = subprocess.Popen([sys.executable, script], env=buffered, **pipes)
    assert leaving.stdout is not None
    leaving.stdout.close()
    assert leaving.communicate()[1] == b""
    assert leaving.returncode == (exit.code if exit.signal is None else -exit.signal)


# Child processes, and the hooks in them


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_of_the_job(tmp_path: Path, method: str) -> None:
    stdout, stderr, code = assert_same(tmp_path, str(PROGRAMS / "pools.py"), method)
    assert (stdout, stderr, code) == ("[0, 1, 4, 9, 16]\n[0, 1, 4, 9, 16]\n3\n", "", 0)


@pytest.mark.slow
def test_a_data_loader_is_watched_and_does_not_change(tmp_path: Path) -> None:
    pytest.importorskip("loaderprof.capture.hooks.install")
    script = """
        import sys, torch
        from torch.utils.data import DataLoader, TensorDataset
        torch.manual_seed(1)
        for batch, in DataLoader(TensorDataset(torch.arange(12)), batch_size=4, num_workers=2, shuffle=True):
            print(batch.tolist())
    """
    path = write(tmp_path / "load.py", "if True:" + script)
    assert assert_same(tmp_path, path)[2] == 0
    assert any((tmp_path / "journals").iterdir())


# sitecustomize, in a house of its own: a package whose hooks only take notes, and a torch without torch

HOOKS = "import sys\ndef patch(name):\n    sys.modules[name].times = getattr(sys.modules[name], 'times', 0) + 1\n"
TORCH = "torch.utils.data.dataloader"


@pytest.fixture
def house(tmp_path: Path) -> Path:
    inject = tmp_path / "house" / "loaderprof" / "capture" / "inject"
    shutil.copytree(launch.INJECT, inject, ignore=shutil.ignore_patterns("__pycache__"))
    write(tmp_path / "house/loaderprof/__init__.py", "")
    write(tmp_path / "house/loaderprof/capture/__init__.py", "")
    write(tmp_path / "house/loaderprof/capture/hooks/install.py", HOOKS)
    for package in ("torch", "torch/utils", "torch/utils/data"):
        write(tmp_path / "site" / package / "__init__.py", "")
    write(tmp_path / "site/torch/utils/data/dataloader.py", "executed = __name__\n")
    return inject


def python(house: Path, program: str, *options: str, armed: bool = True, path: str = "") -> tuple[str, str, int]:
    """Run a program with this house's sitecustomize, the fake torch, and more entries of PYTHONPATH."""
    site = house.parents[3] / "site"
    env = {"PYTHONPATH": f"{house}:{site}{path}"} | ({"LOADERPROF_JOURNALS": "/nowhere"} if armed else {})
    done = subprocess.run(
        [sys.executable, *options, "-c", program],
        env=env,
        cwd=house.parents[3],
        capture_output=True,
        text=True,
    )
    return done.stdout, done.stderr, done.returncode


def test_a_module_is_patched_once_executed(house: Path) -> None:
    program = f"""if True:
        import sys
        assert "torch" not in sys.modules and "loaderprof" not in sys.modules
        import {TORCH} as module
        assert module.executed == "{TORCH}" and module.times == 1
        assert type(module.__loader__).__name__ == "SourceFileLoader"
        assert "exec_module" not in vars(module.__loader__)
        import importlib
        importlib.reload(module)
        assert module.times == 2
        import loaderprof
        assert loaderprof.__file__.startswith({str(house.parents[2])!r})
        assert not [entry for entry in sys.path if "house" in entry], sys.path
    """
    assert python(house, program) == ("", "", 0)


def test_looking_for_a_module_does_not_import_it(house: Path) -> None:
    program = f"""if True:
        import importlib.util, pkgutil, sys
        spec = importlib.util.find_spec("{TORCH}")
        assert spec.origin.endswith("dataloader.py") and "{TORCH}" not in sys.modules
        package = sys.modules["torch.utils.data"]
        assert [m.name for m in pkgutil.walk_packages(package.__path__)] == ["dataloader"]
        by_hand = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(by_hand)
        assert by_hand.executed and not hasattr(by_hand, "times")
        import {TORCH} as module
        assert module.times == 1
        lazy = importlib.util.find_spec("{TORCH}").loader
        assert lazy is module.__loader__
        assert importlib.util.find_spec("torch.nothing") is None
    """
    assert python(house, program) == ("", "", 0)


def test_lazy_loading(house: Path) -> None:
    program = f"""if True:
        import importlib.util, sys
        spec = importlib.util.find_spec("{TORCH}")
        spec.loader = importlib.util.LazyLoader(spec.loader)
        module = importlib.util.module_from_spec(spec)
        sys.modules["{TORCH}"] = module
        spec.loader.exec_module(module)
        assert module.executed and module.times == 1
    """
    assert python(house, program) == ("", "", 0)


def test_other_finders_and_odd_loaders(house: Path) -> None:
    program = f"""if True:
        import importlib.util, sys, types
        class Asks:  # as tracers do: finds what the others find
            busy = False
            def find_spec(self, name, path=None, target=None):
                if self.busy or not name.startswith("torch"):
                    return None
                self.busy = True
                try:
                    return importlib.util.find_spec(name)
                finally:
                    self.busy = False
        ours = sys.meta_path[0]
        sys.meta_path.append(Asks())
        sys.meta_path.insert(0, Asks())
        import {TORCH} as module
        assert module.times == 1

        class Old:
            def load_module(self, name): ...
        class Static:
            exec_module = staticmethod(print)
        class Slotted:
            __slots__ = ()
            def exec_module(self, module): ...
        for loader in (Old(), Static, Slotted(), None):
            spec = types.SimpleNamespace(loader=loader)
            sys.meta_path[:] = [ours, types.SimpleNamespace(find_spec=lambda *a: spec)]
            assert ours.find_spec("{TORCH}") in (spec, None) and spec.loader is loader
            assert Static.exec_module is print
        def fail(*_):
            raise RuntimeError("a broken finder")
        sys.meta_path[:] = [ours, types.SimpleNamespace(find_spec=fail), types.SimpleNamespace()]
        assert ours.find_spec("{TORCH}") is None
    """
    assert python(house, program) == ("", "", 0)


def test_a_loader_that_serves_many_modules(house: Path) -> None:
    site = house.parents[3] / "site"
    with zipfile.ZipFile(site.parent / "torch.zip", "w") as archive:
        archive.writestr("torch/utils/data/dataloader.py", "from torch.utils.data import other\n")
        archive.writestr("torch/utils/data/other.py", "")
        for package in ("torch", "torch/utils", "torch/utils/data"):
            archive.writestr(f"{package}/__init__.py", "")
    shutil.rmtree(site)
    program = f"""if True:
        import importlib.util
        importlib.util.find_spec("{TORCH}")
        import {TORCH} as module
        assert module.times == 1 and not hasattr(module.other, "times")
    """
    assert python(house, program, path=f":{site.parent / 'torch.zip'}") == ("", "", 0)


def test_failing_hooks_say_so_and_the_job_goes_on(house: Path) -> None:
    hooks = house.parents[0] / "hooks" / "install.py"
    program = f"import {TORCH} as module\nprint(module.executed)"
    for text, reason in (
        ("def patch(name):\n    raise RuntimeError('no\\nway')", "no way"),
        ("def patch(name):\n    raise KeyError", "KeyError"),
        ("import nothing_of_this_name", "No module named 'nothing_of_this_name'"),
    ):
        write(hooks, text)
        assert python(house, program) == (f"{TORCH}\n", f"loaderprof: capture is off: {reason}\n", 0)
    closed = f"import sys\nsys.stderr = None\n{program}"
    assert python(house, closed) == (f"{TORCH}\n", "", 0)


def test_a_module_imported_before_us(house: Path) -> None:
    site = house.parents[3] / "site"
    program = f"""if True:
        import sys
        sys.path.insert(0, {str(site)!r})
        import {TORCH} as module
        import site
        site.main()
        assert module.times == 1 and "sitecustomize" in sys.modules
    """
    assert python(house, program, "-S") == ("", "", 0)


def test_nothing_is_armed_without_a_recording(house: Path) -> None:
    program = "import sys; print('Finder' in [type(each).__name__ for each in sys.meta_path])"
    assert python(house, program, armed=True) == ("True\n", "", 0)
    assert python(house, program, armed=False) == ("False\n", "", 0)


def test_our_own_version_wins(house: Path) -> None:
    other = house.parents[3] / "other"
    write(other / "loaderprof" / "__init__.py", "")
    program = "import loaderprof; print(loaderprof.__file__)"
    assert python(house, program, path=f":{other}")[0] == f"{house.parents[1] / '__init__.py'}\n"


@pytest.mark.parametrize(
    "text",
    [
        "import sys\nsys.stderr.write('the site is here\\n')\nimport builtins\nbuiltins.here = 1",
        "raise ValueError('a broken site')",
        "import nothing_of_this_name",
    ],
)
def test_a_hidden_sitecustomize_still_runs(tmp_path: Path, text: str) -> None:
    write(tmp_path / "own" / "sitecustomize.py", text)
    program = "import sys\nprint(getattr(sys.modules.get('sitecustomize'), '__file__', None))\nprint(sys.path)"
    env = dict(os.environ, PYTHONPATH=str(tmp_path / "own"))
    bare = outcome("bare", tmp_path, write(tmp_path / "site.py", program), env=env)
    # The supervisor is a Python of its own, where it runs too.
    with_hooks = launch.job_environment(tmp_path, {}, env)
    assert outcome("bare", tmp_path, str(tmp_path / "site.py"), env=with_hooks) == bare


def test_sitecustomize_keeps_to_old_syntax() -> None:
    ast.parse((launch.INJECT / "sitecustomize.py").read_text(), feature_version=(3, 8))


# The environment and the command


def test_the_environment_of_the_job(tmp_path: Path) -> None:
    base = {"A": "b", "PYTHONPATH": "x:y", "LOADERPROF_SET": "of another run"}
    env = launch.job_environment(tmp_path, {}, base)
    assert env == {"A": "b", "PYTHONPATH": f"{launch.INJECT}:x:y", "LOADERPROF_JOURNALS": str(tmp_path)}
    env = launch.job_environment(Path("folder"), {"num_workers": 4}, {})
    assert env["PYTHONPATH"] == str(launch.INJECT)
    assert env["LOADERPROF_JOURNALS"] == str(Path.cwd() / "folder")
    assert json.loads(env["LOADERPROF_SET"]) == {"num_workers": 4}


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "train.py", "# -*- coding: latin-1 -*-\nassert False, '\\d'\n")
    assert launch.job_command(["train.py", "a"], False, False) == [sys.executable, "train.py", "a"]
    assert launch.job_command(["pkg.train", "-m"], True, False) == [sys.executable, "-m", "pkg.train", "-m"]
    assert launch.job_command(["sh", "-c", "exit"], False, True) == ["sh", "-c", "exit"]
    write(tmp_path / "folder" / "__main__.py", "not Python, but not looked at")
    assert launch.job_command(["folder"], False, False) == [sys.executable, "folder"]
    (tmp_path / "latin.py").write_bytes(b"# coding: latin-1\nprint('\xe9')\n")
    assert launch.job_command(["latin.py"], False, False) == [sys.executable, "latin.py"]
    os.mkfifo(tmp_path / "pipe")  # as of `<(...)`: nothing may be read from it
    assert launch.job_command(["pipe"], False, False) == [sys.executable, "pipe"]


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ([], "there is nothing to run", "loaderprof run train.py"),
        (["none.py"], "there is no file none.py", "loaderprof run PATH/TO/train.py, or -m PACKAGE"),
        (["sh", "-c", "a b"], "sh is a program, not a script", "loaderprof run -- sh -c 'a b'"),
        (["empty"], "the folder empty has no __main__.py", "loaderprof run empty/train.py"),
        (["empty.zip"], "the archive empty.zip has no __main__.py", "python -m zipapp adds one"),
        (["bad.py"], "bad.py:2: invalid syntax", "python bad.py shows the line"),
        (["tab.py"], "tab.py:3: unindent does not match any", "python tab.py shows the line"),
        (["bytes.py"], "bytes.py", "python bytes.py shows the line"),
        (["cookie.py"], "cookie.py", "python cookie.py shows the line"),
        (["null.py"], "null.py", "python null.py"),
        (["-m"], "there is nothing to run", "loaderprof run train.py"),
        (["-m", "good.py", "a"], "good.py is a file, not a module", "loaderprof run good.py a"),
        (["--"], "there is nothing to run", "loaderprof run train.py"),
        (["--", "no-launcher"], "there is no program no-launcher on PATH", "loaderprof run -- torchrun"),
        (["--", "good.py", "a"], "good.py is a script, not a program on PATH", "loaderprof run good.py a"),
        (["--", "./plain"], "./plain may not be executed", "chmod +x ./plain"),
    ],
)
def test_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str, hint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "good.py", "")
    write(tmp_path / "plain", "")
    write(tmp_path / "bad.py", "a = 1\nb = = 2\n")
    write(tmp_path / "tab.py", "if 1:\n    a\n  b\n")
    write(tmp_path / "null.py", "a\0b\n")
    write(tmp_path / "cookie.py", "# coding: nonsense\n")
    (tmp_path / "bytes.py").write_bytes(b"print('\xe9')\n")
    (tmp_path / "empty").mkdir()
    zipfile.ZipFile(tmp_path / "empty.zip", "w").close()
    module, launcher = arguments[:1] == ["-m"], arguments[:1] == ["--"]
    with pytest.raises(UsageError) as caught:
        launch.job_command(arguments[module or launcher :], module, launcher)
    assert caught.value.message.startswith(message)
    assert caught.value.hint.startswith(hint)


def test_a_script_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    script = write(tmp_path / "secret.py", "")
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UsageError, match=r"secret\.py cannot be read: Permission denied"):
        launch.job_command([script], False, False)


def test_a_program_that_the_system_refuses(tmp_path: Path, said: Check) -> None:
    program = Path(write(tmp_path / "launcher", "no interpreter is named here"))
    program.chmod(0o755)
    _, stderr, code = outcome("supervised", tmp_path, "--", "./launcher", "a")
    said("a program that the system refuses", stderr)
    assert code == 2
