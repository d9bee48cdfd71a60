"""The sign of life while a recording is read: on a terminal, once it takes long, and nothing of it is left."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Callable

import pytest
from terminals import Terminal

from loaderprof.report.spinner import sign

SCRIPT = """
import sys, time
from loaderprof.report.spinner import sign

with sign("reading [bold]a\\x1b[2Jb"):
    time.sleep(float(sys.argv[1]))
print("done", flush=True)
"""


def test_what_takes_long_says_so(terminal: Callable[..., Terminal]) -> None:
    seen = terminal("-c", SCRIPT, "2").read_until(rb"done")
    assert b"reading [bold]a" in seen
    # A name that holds the code to clear the screen does not clear it.
    assert b"\x1b[2J" not in seen
    # The line is taken away, and the cursor is back.
    assert seen.rindex(b"\x1b[2K") < seen.index(b"done")
    assert seen.rindex(b"\x1b[?25h") > seen.rindex(b"\x1b[?25l")


def test_what_is_quick_says_nothing(terminal: Callable[..., Terminal]) -> None:
    assert b"reading" not in terminal("-c", SCRIPT, "0").read_until(rb"done")


def test_nothing_is_said_or_started_where_stderr_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    message = io.StringIO()
    monkeypatch.setattr(sys, "stderr", message)
    with sign("reading"):
        assert not [each for each in threading.enumerate() if isinstance(each, threading.Timer)]
    assert message.getvalue() == ""


def test_what_fails_on_a_terminal_still_fails(terminal: Callable[..., Terminal]) -> None:
    failing = SCRIPT.replace("time.sleep(", "raise ValueError(")
    shown = terminal("-c", failing, "3")
    assert b"ValueError: 3.0" in shown.read_until(rb"ValueError: .*\n")
    assert shown.end() == 1
