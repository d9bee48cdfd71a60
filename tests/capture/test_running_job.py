"""Which processes stand for no running job, and what is said of them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from loaderprof.capture import running_job
from loaderprof.capture.stack_sampler import find_py_spy
from loaderprof.errors import LoaderprofError

pytestmark = pytest.mark.skipif(sys.platform != "linux" or find_py_spy() is None, reason="needs /proc and py-spy")


def refusal(pid: int) -> LoaderprofError:
    with pytest.raises(LoaderprofError) as caught:
        running_job.find(pid)
    assert caught.value.exit_code == 2
    assert caught.value.hint
    return caught.value


def test_a_process_that_is_not_there_is_refused() -> None:
    done = subprocess.Popen(["true"])
    done.wait()
    assert f"no process {done.pid}" in refusal(done.pid).message
    assert "no process -1" in refusal(-1).message


def test_a_process_that_is_not_python_is_refused() -> None:
    other = subprocess.Popen(["sleep", "60"])
    try:
        assert "is not Python" in refusal(other.pid).message
    finally:
        other.kill()
        other.wait()


def test_python_without_torch_is_refused() -> None:
    code = "import sys; sys.stdout.write('ready\\n'); sys.stdout.flush(); sys.stdin.read()"
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "ready\n"
    try:
        assert "has not loaded torch" in refusal(other.pid).message
    finally:
        other.communicate()


def test_a_process_of_another_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = os.geteuid()
    monkeypatch.setattr(running_job.os, "geteuid", lambda: mine + 1)
    error = refusal(os.getppid())
    assert "belongs to" in error.message
    assert error.hint.startswith("sudo ")
