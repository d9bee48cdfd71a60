"""The live view: the whole terminal while a job runs, until `q` or the job's end; the terminal is then as it was.

The job would write over the view. So under `run` what it writes to the terminal goes through a pseudo-terminal of ours,
is kept while the view is up, and is written to the terminal whole when the view is left. Input stays the job's own: a
job that asks at the terminal competes with the view for its keys.
"""

from __future__ import annotations

import os
import re
import select
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from loaderprof.analyze.glance import Glance
from loaderprof.errors import UsageError

try:
    import fcntl
    import termios
    import tty
except ImportError:  # Windows, where `check_terminal` refuses
    termios = None  # type: ignore[assignment]

PERIOD_S = 1.0
MIN_COLUMNS, MIN_ROWS = 40, 10
TAIL_LINES, TAIL_BYTES = 50, 16_384
KEPT_LOOKS = 600
# A terminal that was stopped with Ctrl-S, or whose reader is slow, is not waited for longer than this at the end.
END_S = 2.0
# Alternate screen and cursor: on entering and on leaving.
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[@-Z\\-_])")


def check_terminal() -> None:
    """Refuse where a view cannot stand.

    Raises:
        UsageError: keys or screen are not a terminal, it knows no cursor, or it is too small.
    """
    if termios is None:
        raise UsageError("--live needs a terminal of Linux or macOS", "leave --live out")
    streams = (sys.stdin, sys.stderr)
    if not all(stream is not None and stream.isatty() for stream in streams) or os.environ.get("TERM") == "dumb":
        raise UsageError("--live needs a terminal for its keys and its screen", "leave --live out")
    columns, rows = os.get_terminal_size(sys.stderr.fileno())
    if columns < MIN_COLUMNS or rows < MIN_ROWS:
        raise UsageError(f"--live needs a terminal of {MIN_COLUMNS} columns and {MIN_ROWS} rows", "leave --live out")


class Output:
    """A pseudo-terminal between a job and the terminal: whatever the job writes comes out, now or when the view ends.

    Attributes:
        job_end: the descriptor that the job gets for its output.
    """

    def __init__(self) -> None:
        self.master, self.job_end = os.openpty()
        tty.setraw(self.job_end)  # line endings are translated by the real terminal
        self._spool = tempfile.TemporaryFile()  # noqa: SIM115 - open until the view is closed
        self._tail = b""
        self.fit()

    def fit(self) -> None:
        """Give the pseudo-terminal the size of the real one."""
        size = fcntl.ioctl(sys.stderr.fileno(), termios.TIOCGWINSZ, b"\0" * 8)
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, size)

    def started(self) -> None:
        """Close our copy of the job's end once the job has inherited it."""
        os.close(self.job_end)
        self.job_end = -1

    def read(self, hold: bool) -> bool:
        """Take what the job wrote, and keep it or pass it on; False once there is nobody left to write."""
        try:
            data = os.read(self.master, 65536)
        except OSError:
            return False
        if hold:
            self._spool.write(data)
            self._tail = (self._tail + data)[-TAIL_BYTES:]
        else:
            _write_all(data)
        return bool(data)

    def lines(self) -> list[str]:
        """Return the last lines that the job wrote, as they look now, without what would move the cursor."""
        text = _ESCAPES.sub("", self._tail.decode("utf-8", "replace"))
        lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
        return ["".join(char if char.isprintable() else " " for char in line) for line in lines if line][-TAIL_LINES:]

    def release(self) -> None:
        """Write all that was kept."""
        self._spool.seek(0)
        while data := self._spool.read(65536):
            _write_all(data)
        self._spool.seek(0)
        self._spool.truncate()

    def close(self) -> None:
        """Pass on what is left, and close both ends."""
        while select.select([self.master], [], [], 0)[0] and self.read(hold=False):
            pass
        self._spool.close()
        for descriptor in (self.master, self.job_end):
            if descriptor >= 0:
                os.close(descriptor)


def _write_all(data: bytes) -> None:
    while data:
        data = data[os.write(sys.stderr.fileno(), data) :]


class View:
    """The view and its keys, in a thread.

    Args:
        name: of the job, for the first line.
        look: returns the job as it is at a moment of `time.perf_counter_ns`.
        output: the job's output, where it comes through us.
    """

    def __init__(self, name: str, look: Callable[[int], Glance], output: Output | None = None) -> None:
        self._name, self._look, self._output = name, look, output
        # Opened anew: a job that reads the same terminal may take a key first, and must not be made non-blocking.
        self._keys = os.open(os.ttyname(sys.stdin.fileno()), os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        self._screen = sys.stderr.fileno()
        self._begun = time.monotonic()
        self._waits: deque[float | None] = deque(maxlen=KEPT_LOOKS)
        self._glance, self._paused, self._help = Glance(), False, False
        self._usual: list[Any] | None = None
        self._wake, self._waker = os.pipe()
        self._thread = threading.Thread(target=self._run, name="loaderprof-view", daemon=True)

    def __enter__(self) -> View:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Take the terminal."""
        self._usual = termios.tcgetattr(self._keys)
        mode = termios.tcgetattr(self._keys)
        # Keys come one by one and unseen. Ctrl-C stays; Ctrl-Z would leave the shell with a terminal in this state.
        mode[3] &= ~(termios.ECHO | termios.ICANON)
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        mode[6][termios.VSUSP] = os.fpathconf(self._keys, "PC_VDISABLE").to_bytes(1, "little")
        termios.tcsetattr(self._keys, termios.TCSANOW, mode)
        os.write(self._screen, _ENTER.encode())
        self._thread.start()

    def close(self) -> None:
        """Give the terminal back as it was, and write what the job has written."""
        if self._thread.is_alive():
            os.write(self._waker, b"x")
            self._thread.join(END_S)
        self._leave()
        if self._output is not None:
            self._output.close()
            self._output = None
        for descriptor in (self._wake, self._waker, self._keys):
            os.close(descriptor)

    def _leave(self) -> None:
        if self._usual is None:
            return
        usual, self._usual = self._usual, None
        with suppress(OSError, termios.error):  # the terminal is gone
            termios.tcsetattr(self._keys, termios.TCSANOW, usual)
            os.write(self._screen, _LEAVE.encode())
            if self._output is not None:
                self._output.release()

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as error:  # noqa: BLE001 - the job and its output must not be lost with the view
            self._leave()
            sys.stderr.write(f"loaderprof: no view: {type(error).__name__}: {error}\n")
            with suppress(OSError):
                self._serve()

    def _serve(self) -> None:
        """Draw, take keys and pass output on, until the view is closed."""
        due, writing = 0.0, self._output is not None
        while self._usual is not None or writing:
            sources = [self._wake]
            if self._usual is not None:
                sources.append(self._keys)
            if self._output is not None and writing:
                sources.append(self._output.master)
            wait_s = max(0.0, due - time.monotonic()) if self._usual is not None else None
            ready = select.select(sources, [], [], wait_s)[0]
            if self._wake in ready:
                return
            if self._output is not None and self._output.master in ready:
                writing = self._output.read(hold=self._usual is not None)
            if self._keys in ready and self._usual is not None:
                with suppress(BlockingIOError):
                    keys = os.read(self._keys, 64)
                    self._press(keys.decode("ascii", "replace") or "q")  # an empty read: the terminal has hung up
                due = 0.0
            if self._usual is not None and time.monotonic() >= due:
                self._draw(looks=due > 0 or not self._waits)
                due = time.monotonic() + PERIOD_S

    def _press(self, keys: str) -> None:
        for key in keys:
            if key == "q":
                self._leave()
            elif key == "p":
                self._paused = not self._paused
            elif key == "?":
                self._help = not self._help

    def _draw(self, looks: bool) -> None:
        from loaderprof.live import screen

        if looks and not self._paused:
            self._glance = self._look(time.perf_counter_ns())
            self._waits.append(self._glance.wait_share)
        if self._output is not None:
            self._output.fit()
        columns, rows = os.get_terminal_size(self._screen)
        frame = screen.ScreenFrame(
            self._name,
            time.monotonic() - self._begun,
            self._glance,
            tuple(self._waits),
            self._output.lines() if self._output is not None else (),
            self._paused,
            self._help,
        )
        colour = "NO_COLOR" not in os.environ
        lines = screen.render(frame, width=max(MIN_COLUMNS, columns), height=max(MIN_ROWS, rows), colour=colour)
        # A terminal that was stopped with Ctrl-S would hold up the job's output, too; the next frame is as good.
        if select.select([], [self._screen], [], 0)[1]:
            os.write(self._screen, ("\x1b[H" + "\x1b[K\r\n".join(lines) + "\x1b[K\x1b[J").encode())
