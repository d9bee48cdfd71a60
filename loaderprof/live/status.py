"""The status line of `loaderprof run`: on the last row of the terminal, while the job runs, written by the supervisor.

The job shares the terminal, and it is not known when it will write next. So the last row is taken out of what scrolls,
as apt does for its progress: whatever the job writes scrolls above, and the line never stands among its output. Only
where stderr is a terminal in whose foreground we are; elsewhere not a byte is written.
"""

from __future__ import annotations

import os
import select
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from loaderprof.capture.hooks import overhead

if TYPE_CHECKING:
    from loaderprof.analyze.glance import Glance, Journals
    from loaderprof.capture.samplers import WatchedJob

MIN_ROWS, MIN_COLUMNS = 6, 20
"""A terminal smaller than this has no row to spare."""

LONG_S = 2.0
"""From here on it is worth a word that no batch came."""

BUDGET = 0.002
"""Share of one core that the line may take; it is drawn less often where it would take more, as samplers are."""

# DEC and ECMA-48: index, reverse index, save and restore cursor, margins, position, attributes off, erase the row.
_ROOM, _SAVE, _RESTORE, _PLAIN, _ERASE = "\x1bD\x1bM", "\x1b7", "\x1b8", "\x1b[0m", "\x1b[2K"


def wanted(stream: IO[str] | None) -> bool:
    """Return whether a status line can stand on a stream: a terminal that knows how to move its cursor."""
    try:
        return stream is not None and stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    except ValueError:  # closed
        return False


def line(glance: Glance) -> str:
    """Return a glance in one line."""
    from loaderprof import formatting

    if not glance.steps:
        return "loaderprof  waiting for the first batch"
    parts = [f"step {glance.steps:,}"]
    if glance.steps_per_s is None or glance.wait_share is None:
        parts.append(f"no batch for {formatting.duration(glance.idle_s)}" if (glance.idle_s or 0) >= LONG_S else "")
    else:
        parts += [f"{formatting.number(glance.steps_per_s)} steps/s", f"waits {formatting.percent(glance.wait_share)}"]
        parts.append(guess(glance))
    return "  ".join(["loaderprof", *filter(None, parts)])


def guess(glance: Glance) -> str:
    """Return the likely limit in words; empty where too little was seen."""
    from loaderprof.report.palette import NAMES

    stage = glance.likely()
    if stage is None:
        return ""
    return "likely the step itself" if stage == "device" else f"likely {NAMES[stage]}"


class StatusLine:
    """Draws the line once a second; a sampler, so that its cost is counted with theirs.

    Args:
        journals: the folder in which the job's processes keep their journals.
        descriptor: the terminal.
    """

    def __init__(self, journals: Path, descriptor: int) -> None:
        self.period_s = 1.0
        self.missing: str | None = None
        self._folder, self._terminal = journals, descriptor
        self._journals: Journals | None = None
        self._row = 0

    def sample(self, job: WatchedJob) -> dict[str, Any] | None:  # noqa: ARG002 - the protocol's signature
        """Draw the line anew; nothing is recorded."""
        if self._journals is None:
            from loaderprof.analyze.glance import Journals

            self._journals = Journals(self._folder)
        begun = time.thread_time()
        self._draw(line(self._journals.look(time.perf_counter_ns())))
        self.period_s = max(1.0, (time.thread_time() - begun) / overhead.allowed(BUDGET))
        return None

    def close(self) -> None:
        """Give the row back."""
        if self._row:
            with suppress(OSError):  # the terminal is gone
                self._write(f"{_SAVE}\x1b[r\x1b[{self._row};1H{_ERASE}{_RESTORE}")
            self._row = 0

    def _draw(self, text: str) -> None:
        columns, rows = os.get_terminal_size(self._terminal)
        if rows < MIN_ROWS or columns < MIN_COLUMNS or os.tcgetpgrp(self._terminal) != os.getpgrp():
            return
        old = f"\x1b[{self._row};1H{_ERASE}" if self._row not in (0, rows) else ""
        # One write, so that no output of the job comes in between. The margins are set each time: a resize, or a program
        # that had the whole screen, undoes them. First a row is freed below the cursor, which may be on the last one.
        self._write(
            f"{_ROOM}{_SAVE}{old}\x1b[1;{rows - 1}r\x1b[{rows};1H{_PLAIN}{_ERASE}{text[: columns - 1]}{_RESTORE}"
        )
        self._row = rows

    def _write(self, text: str) -> None:
        # A terminal that was stopped with Ctrl-S would hold us up; the next line is as good.
        if select.select([], [self._terminal], [], 0)[1]:
            os.write(self._terminal, text.encode())
