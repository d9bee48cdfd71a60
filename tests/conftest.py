"""What all tests share: signals with their usual effect, and real terminals.

This file also puts its folder on the path, so that tests in subfolders find `made`.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from terminals import terminal, tmux

__all__ = ["terminal", "tmux", "usual_signals"]


@pytest.fixture(scope="session", autouse=True)
def usual_signals() -> Iterator[None]:
    """Give signals their usual effect: under nohup or in the background of a shell the jobs of these tests, which
    inherit what is ignored, would ignore Ctrl-C and hang-ups."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL, signal.SIGQUIT: signal.SIG_DFL}
    ignored = [number for number in usual if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, usual[number])
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
