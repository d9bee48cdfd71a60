"""The status line: on a terminal and nowhere else, out of the way of what the job writes, gone before the report."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from terminals import JOB, Terminal, Tmux, environment, needs_tmux

from loaderprof.analyze.glance import Glance
from loaderprof.live import status

pytestmark = pytest.mark.timeout(400)
RUN = ("-m", "loaderprof", "run", "--no-html", "-o", "out")
# All that a status line is made of, from freeing a row to restoring the cursor; and what gives the row back.
DRAWN = re.compile(rb"\x1bD\x1bM\x1b7.*?\x1b8", re.DOTALL)
GIVEN_BACK = re.compile(rb"\x1b7\x1b\[r\x1b\[24;1H\x1b\[2K\x1b8")


@pytest.mark.parametrize(
    ("glance", "text"),
    [
        (Glance(), "loaderprof  waiting for the first batch"),
        (Glance(1, idle_s=0.3), "loaderprof  step 1"),
        (Glance(7, idle_s=75.0), "loaderprof  step 7  no batch for 1 min 15 s"),
        (Glance(1412, 7.92, 0.62, 0.1), "loaderprof  step 1,412  7.9 steps/s  waits 62 %"),
        (
            Glance(5, 7.92, 0.62, 0.1, costs={"read": 0.1, "decode": 0.3}),
            "loaderprof  step 5  7.9 steps/s  waits 62 %  likely decode",
        ),
        (
            Glance(5, 120.0, 0.01, 0.1, costs={"decode": 0.3}),
            "loaderprof  step 5  120 steps/s  waits 1 %  likely the step itself",
        ),
    ],
)
def test_a_glance_in_one_line(glance: Glance, text: str) -> None:
    assert status.line(glance) == text


def test_a_line_is_wanted_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = os.openpty()
    with open(master, "wb"), open(slave, "w") as screen:
        monkeypatch.setenv("TERM", "xterm")
        assert status.wanted(screen)
        monkeypatch.setenv("TERM", "dumb")
        assert not status.wanted(screen)
        monkeypatch.delenv("TERM")
        assert not status.wanted(screen)
    monkeypatch.setenv("TERM", "xterm")
    assert not status.wanted(screen)  # closed
    assert not status.wanted(io.StringIO())
    assert not status.wanted(None)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text(JOB)
    return tmp_path


def test_what_the_job_writes_is_left_whole(job: Path, terminal: Callable[..., Terminal]) -> None:
    seen = terminal(*RUN, "train.py")
    seen.read_until(rb"steps/s  waits")
    (job / "stop").touch()
    assert seen.end() == 3
    drawn = DRAWN.findall(seen.seen)
    assert all(each.startswith(b"\x1bD\x1bM\x1b7\x1b[1;23r\x1b[24;1H\x1b[0m\x1b[2Kloaderprof  ") for each in drawn)
    assert len(GIVEN_BACK.findall(seen.seen)) == 1
    before, after = GIVEN_BACK.split(seen.seen)
    assert not DRAWN.search(after)
    assert b"Bottleneck" in after or b"Verdict" in after
    # What is left when the lines are taken out is the job's output, line by line, and what the terminal echoed.
    lines = DRAWN.sub(b"", before).decode().replace("\r\n", "\n").split("\n")
    message = [line for line in lines if line]
    assert message[0] == "begins"
    assert message[-1] == "ends"
    assert set(message[1:-1]) <= {"an error"} | {f"line {number * 50}" for number in range(len(message))}


def test_without_a_status_line_nothing_is_drawn(job: Path, terminal: Callable[..., Terminal]) -> None:
    seen = terminal(*RUN, "--no-status", "train.py")
    seen.read_until(rb"line 50\r")
    (job / "stop").touch()
    assert seen.end() == 3
    assert b"\x1bD" not in seen.seen
    assert b"steps/s" not in seen.seen


def test_the_row_is_given_back_after_an_interrupt(job: Path, terminal: Callable[..., Terminal]) -> None:
    seen = terminal(*RUN, "train.py")
    seen.read_until(rb"steps/s  waits")
    seen.type("\x03")
    assert seen.end() == -2
    assert len(GIVEN_BACK.findall(seen.seen)) == 1
    assert b"KeyboardInterrupt" in GIVEN_BACK.split(seen.seen)[0]


def test_a_pipe_gets_the_report_and_not_a_byte_more(job: Path) -> None:
    (job / "stop").touch()
    done = subprocess.run(
        [sys.executable, *RUN, "train.py"],
        cwd=job,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment(),
    )
    assert done.returncode == 3
    assert "\x1b" not in done.stdout + done.stderr
    assert "waits for the first" not in done.stderr


@needs_tmux
def test_on_a_screen_the_line_stays_below_and_then_goes(job: Path, tmux: Tmux) -> None:
    tmux.type(f"clear; {sys.executable} {' '.join(RUN)} train.py; for i in $(seq 30); do echo after $i; done", "Enter")
    screen = tmux.until(lambda rows: re.search(r"^loaderprof  step \S+  \S+ steps/s  waits \S+ %", rows[23]))
    assert not any("loaderprof  " in row for row in screen[:23])
    tmux.until(lambda rows: sum(bool(row) for row in rows) >= 23)  # until its output scrolls
    (job / "stop").touch()
    screen = tmux.until(lambda rows: [row.strip() for row in rows if row][-2:] == ["after 30", "$"])
    # The last row scrolls again, and nothing of the line is left on any.
    end = screen.index("after 30")
    assert end >= 22
    assert screen[:end] == [f"after {number}" for number in range(30 - end, 30)]
    history = tmux.history()
    assert "steps/s" not in history
    lines = [row for row in history.split("\n") if row.startswith("line ")]
    assert len(lines) > 5
    assert lines == [f"line {50 * number}" for number in range(len(lines))]
