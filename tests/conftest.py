"""What all tests share: signals with their usual effect, and real terminals.

This file also puts its folder on the path, so that tests in subfolders find `made`.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from golden_sentences import GOLDEN, Check, Sentences
from terminals import terminal, tmux

__all__ = ["terminal", "tmux", "usual_signals"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write golden files in place of comparing with them")


@pytest.fixture(scope="session")
def update_golden(pytestconfig: pytest.Config) -> bool:
    return bool(pytestconfig.getoption("--update-golden"))


@pytest.fixture(scope="module")
def sentences(update_golden: bool, request: pytest.FixtureRequest) -> Sentences:
    tests = request.path.relative_to(Path(__file__).parent)
    name = "-".join(tests.with_suffix("").parts).replace("test_", "")
    return Sentences(GOLDEN / f"{name}.txt", f"tests/{tests}", update=update_golden)


@pytest.fixture
def said(sentences: Sentences, tmp_path: Path) -> Check:
    """Compare with an entry of the module's golden file, `said(key, text)`: the test's own folder is HERE in it."""
    return lambda key, text: sentences.check(key, text.replace(str(tmp_path), "HERE"))


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
