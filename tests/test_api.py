"""`profile()` from code: what its metrics say while a real loop runs, and after it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

LOOP = """
import json, time
import torch
from torch.utils.data import DataLoader, Dataset
import loaderprof

class Slow(Dataset):
    def __len__(self):
        return 240
    def __getitem__(self, index):
        time.sleep(0.005)
        return torch.zeros(4)

prof = loaderprof.profile("out", html=False)
print(json.dumps(prof.metrics()))
with prof:
    for number, batch in enumerate(DataLoader(Slow(), batch_size=4)):
        time.sleep(0.01)
        if number in (0, 50):
            print(json.dumps(prof.metrics()), flush=True)
print(json.dumps(prof.metrics()))
"""


def test_metrics_of_a_loop_under_way(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(LOOP)
    done = subprocess.run(
        [sys.executable, "train.py"], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=True
    )
    before, first, now, after = map(json.loads, done.stdout.splitlines())
    assert before == {}
    assert first["steps"] <= 1
    assert "wait_time_s" not in first
    assert 45 <= now["steps"] <= 51
    # Four samples of 5 ms and a step of 10 ms, more of each where the machine is busy.
    assert now["wait_time_s"] >= 0.02
    assert now["wait_time_s"] == pytest.approx(now["wait_share"] / now["steps_per_s"])
    assert now["wait_time_s"] + 0.01 <= 1.02 / now["steps_per_s"]
    assert now["load_time_s"] == pytest.approx(now["wait_time_s"], rel=0.3)
    assert after["steps"] == 60
    findings = json.loads((tmp_path / "out/findings.json").read_text())
    assert findings["run"]["steps"] == 60
