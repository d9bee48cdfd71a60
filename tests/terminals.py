"""Real terminals for tests: a pseudo-terminal that is read byte by byte, and tmux, which shows what a user sees."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A busy machine takes a minute to import torch at the lowest priority.
DEADLINE_S = 120.0
needs_tmux = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")

# A job that says what it does, trains until there is a file `stop`, and ends with code 3. It leaves its input alone.
JOB = """
import os, sys, torch
from torch.utils.data import DataLoader

def batches():
    while True:
        yield from DataLoader(range(64), batch_size=4, num_workers=0, collate_fn=collate)

def collate(numbers):
    return torch.stack([torch.full((20_000,), float(number)).sort().values for number in numbers])

print("begins", flush=True)
for number, batch in enumerate(batches()):
    batch.sum()
    if number % 50 == 0:
        print(f"line {number}", flush=True)
        sys.stderr.write("an error\\n")
    if os.path.exists("stop"):
        break
print("ends", flush=True)
sys.exit(3)
"""


def environment(**more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS", "LINES", "TMUX")}
    return {**kept, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", **more}


class Terminal:
    """A program on a pseudo-terminal of 80 columns and 24 rows, as the leader of its foreground."""

    def __init__(self, arguments: Sequence[str], cwd: Path, **more: str) -> None:
        self.pid, self.master = pty.fork()
        if self.pid == 0:  # no test code runs from here on
            try:
                fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
                os.chdir(cwd)
                os.execve(sys.executable, [sys.executable, *arguments], environment(**more))
            finally:
                os._exit(127)
        self.seen = b""
        self._status: int | None = None

    def read_until(self, pattern: bytes) -> bytes:
        """Read until a pattern has come; return all that was seen."""
        end = time.monotonic() + DEADLINE_S
        while not re.search(pattern, self.seen):
            assert time.monotonic() < end, self.seen[-2000:]
            assert self._more(), self.seen[-2000:]
        return self.seen

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def end(self) -> int:
        """Read to the end; return the exit code."""
        while self._more():
            pass
        _, status = os.waitpid(self.pid, 0)
        self._status = status
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        if self._status is None:
            with contextlib.suppress(OSError):
                os.kill(self.pid, 9)
                os.waitpid(self.pid, 0)
        os.close(self.master)

    def _more(self) -> bool:
        readable = select.poll()  # pytest may hold more descriptors than select() knows
        readable.register(self.master, select.POLLIN)
        if not readable.poll(1000 * DEADLINE_S):
            raise AssertionError(f"nothing came: {self.seen[-2000:]!r}")
        try:
            read = os.read(self.master, 65536)
        except OSError:  # Linux: all who had the other end are gone
            return False
        self.seen += read
        return bool(read)


class Tmux:
    """A shell in a tmux window of 80 columns and 24 rows."""

    def __init__(self, cwd: Path, name: str) -> None:
        self._cwd, self._name = cwd, name
        self._sockets = tempfile.mkdtemp(prefix="tmux-")  # a socket's path must be short
        settings = " ".join(f"{key}={value}" for key, value in (("PYTHONPATH", ROOT), ("PS1", "'$ '")))
        shell = f"env {settings} bash --norc --noprofile"
        self._tmux("-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24", "-c", str(cwd), shell)

    def type(self, *keys: str) -> None:
        """Send keys, by tmux's names where they have one: Enter, C-c, q."""
        self._tmux("send-keys", *keys)

    def screen(self) -> list[str]:
        return self._tmux("capture-pane", "-p").split("\n")[:24]

    def history(self) -> str:
        return self._tmux("capture-pane", "-p", "-S", "-2000")

    def until(self, shows: Callable[[list[str]], object]) -> list[str]:
        """Wait until the screen shows something; return it."""
        end = time.monotonic() + DEADLINE_S
        while not shows(screen := self.screen()):
            assert time.monotonic() < end, "\n".join(screen)
            time.sleep(0.05)  # tmux tells nobody that its screen has changed
        return screen

    def close(self) -> None:
        self._tmux("kill-server")
        shutil.rmtree(self._sockets)

    def _tmux(self, *arguments: str) -> str:
        done = subprocess.run(
            ["tmux", "-L", self._name, *arguments],
            capture_output=True,
            text=True,
            check=True,
            cwd=self._cwd,
            env=environment(TMUX_TMPDIR=self._sockets),
        )
        return done.stdout


@pytest.fixture
def tmux(tmp_path: Path) -> Iterator[Tmux]:
    """A tmux server of this test's own."""
    window = Tmux(tmp_path, f"loaderprof-{os.getpid()}-{tmp_path.name}")
    yield window
    window.close()


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """A factory of programs on terminals, none of which outlives the test."""
    with contextlib.ExitStack() as ends:

        def start(*arguments: str, **more: str) -> Terminal:
            started = Terminal(arguments, tmp_path, **more)
            ends.callback(started.close)
            return started

        yield start
