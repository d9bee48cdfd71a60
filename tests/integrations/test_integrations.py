"""The trainers' callbacks, each with the real trainer: the recording, what was logged, and under `loaderprof run`."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loaderprof.conclude import findings_of
from loaderprof.recording import reader

HERE = Path(__file__).parent
NAMES = {"loaderprof/" + name for name in ("steps", "steps_per_s", "wait_share", "wait_time_s", "load_time_s")}
TRAINERS = [
    pytest.param(name, marks=pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"needs {name}"))
    for name in ("lightning", "transformers")
]


def run(folder: Path, *command: str, fails: bool = False) -> tuple[dict[str, Any], str]:
    """Return what a script printed last, and its standard error."""
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=110, check=False
    )
    assert (done.returncode != 0) == fails, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def check_metrics(logged: dict[str, float]) -> None:
    assert set(logged) >= NAMES
    # Four samples of 4 ms, made in the training process: nearly all of a step is waiting for its batch.
    assert logged["loaderprof/load_time_s"] >= 0.016
    assert logged["loaderprof/wait_time_s"] >= 0.016
    assert 0.5 < logged["loaderprof/wait_share"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_fit_is_recorded_and_logged(trainer: str, tmp_path: Path) -> None:
    message, stderr = run(tmp_path, str(HERE / f"{trainer}_callback.py"))
    check_metrics(message["logged"])
    assert message["bottleneck"] == "read"
    assert findings_of(reader.read(tmp_path / "out")).run.steps == 60
    assert stderr.count("Full report") == 1
    if trainer == "transformers":
        assert set(message["history"]) >= NAMES
        # Coming before the reporters calls none of them twice, nor not at all.
        assert message["begun"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("trainer", TRAINERS)
def test_under_a_run_the_callback_only_logs(trainer: str, tmp_path: Path) -> None:
    script = str(HERE / f"{trainer}_callback.py")
    message, stderr = run(tmp_path, "-m", "loaderprof", "run", "--no-html", "-o", "run", script)
    check_metrics(message["logged"])
    assert message["bottleneck"] is None
    assert [path.name for path in tmp_path.iterdir() if (path / "recording.json").exists()] == ["run"]
    assert stderr.count("Full report") == 1


@pytest.mark.slow
@pytest.mark.parametrize("trainer", TRAINERS[:1])
def test_of_a_fit_that_fails_there_is_a_report(trainer: str, tmp_path: Path) -> None:
    message, stderr = run(tmp_path, str(HERE / f"{trainer}_callback.py"), "--fail", fails=True)
    assert message["bottleneck"] == "read"
    assert "RuntimeError: the model is at fault" in stderr


def test_loaderprof_imports_no_trainer() -> None:
    code = "import loaderprof.integrations.fit, sys; print({'lightning', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "set()\n"
