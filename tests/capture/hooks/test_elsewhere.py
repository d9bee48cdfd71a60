"""Another system than Linux: nothing that only Linux has is needed, and what only /proc tells is not measured."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
ELSEWHERE = Path(__file__).parents[1] / "programs" / "elsewhere.py"
TRAIN = """
import sys
import time
import torch
from torch.utils.data import DataLoader, Dataset

class Remote(Dataset):
    def __len__(self):
        return 160
    def __getitem__(self, index):
        time.sleep(0.005)
        return torch.ones(4)

if __name__ == "__main__":
    loader = DataLoader(Remote(), batch_size=4, num_workers=int(sys.argv[1]), multiprocessing_context=sys.argv[2] or None)
    print(sum(float(batch.sum()) for batch in loader))
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "site").mkdir()
    shutil.copy(ELSEWHERE, tmp_path / "site" / "sitecustomize.py")
    return {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path / "site"), str(ROOT)))}


def test_the_stand_in_takes_away_what_it_says(environment: dict[str, str]) -> None:
    program = """
from loaderprof.capture import cpu_budget, ranks
from loaderprof.capture.hooks import kernel
from loaderprof.live import view
print(kernel.unread(), kernel.thread_usage()(), cpu_budget.cpu_budget().affinity, view.termios, ranks.fcntl)
"""
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout == "['schedstat', 'io'] None None None None\n"


@pytest.mark.slow
@pytest.mark.parametrize("job", [["0", ""], ["1", "spawn"]])
def test_a_job_comes_to_its_findings(tmp_path: Path, environment: dict[str, str], job: list[str]) -> None:
    (tmp_path / "train.py").write_text(TRAIN)
    command = [sys.executable, "-m", "loaderprof", "run", "--no-html", "-o", "seen", "train.py", *job]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "640.0\n"
    assert "capture stopped" not in done.stderr
    assert "is off" not in done.stderr
    found = json.loads((tmp_path / "seen" / "findings.json").read_text())
    assert found["run"]["steps"] == 40
    assert found["verdict"]["bottleneck"] == "read" if job[0] == "0" else found["verdict"]["wait_s"] > 0
    reasons = {each["id"]: each["evidence"][0] for each in found["causes"] if each["status"] == "not_measured"}
    assert {"run-queue", "bytes-read"} <= set(reasons)
    assert reasons["run-queue"]["value"] is None
