"""However workers are started, the hooks are alive in them: each tells what its batches cost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import loaderprof
from loaderprof.conclude import findings_of

TRAIN = """
import sys
import torch
from torch.utils.data import DataLoader, Dataset

class Numbers(Dataset):
    def __len__(self):
        return 64
    def __getitem__(self, index):
        return torch.full((4,), float(index)).sqrt().square()

if __name__ == "__main__":
    for batch in DataLoader(Numbers(), batch_size=4, num_workers=2, multiprocessing_context=sys.argv[1]):
        pass
"""


@pytest.mark.parametrize(
    "method",
    ["fork", pytest.param("spawn", marks=pytest.mark.slow), pytest.param("forkserver", marks=pytest.mark.slow)],
)
def test_workers_tell_what_their_batches_cost(tmp_path: Path, method: str) -> None:
    (tmp_path / "train.py").write_text(TRAIN)
    command = [sys.executable, "-m", "loaderprof", "run", "--no-html", "-o", "seen", "train.py", method]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    seen = loaderprof.read(tmp_path / "seen")
    workers = {process.number: process.worker for process in seen.processes if process.worker is not None}
    assert sorted(workers.values()) == [0, 1]
    fetched = seen.tables["fetch"]
    assert set(np.unique(fetched["process"])) == set(workers)
    assert (fetched["cpu_ns"] > 0).any()
    assert seen.tables["take"]["count"].sum() == 16
    assert findings_of(seen).loaders[0].settings["start_method"] == method
