"""A run of very many epochs, each with workers of its own: its recording stays small, and still tells what batches cost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from loaderprof.recording import reader

LOOP = """
import sys, time
import torch
from torch.utils.data import DataLoader, Dataset

class Numbers(Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, index):
        time.sleep(0.001)
        return torch.tensor(float(index))

def main():
    loader = DataLoader(Numbers(), batch_size=4, num_workers=2, multiprocessing_context=sys.argv[1])
    if "loaderprof.capture.hooks.process" in sys.modules:  # as if hundreds of epochs had gone by
        sys.modules["loaderprof.capture.hooks.process"].ALL_ITERATORS = 4
    print(sum(float(batch.sum()) for _ in range(int(sys.argv[2])) for batch in loader))

if __name__ == "__main__":
    main()
"""


# A worker of a server imports torch anew.
@pytest.mark.slow
@pytest.mark.parametrize(("method", "epochs"), [("fork", 30), ("forkserver", 30)])
def test_workers_of_fewer_and_fewer_epochs_keep_a_journal(tmp_path: Path, method: str, epochs: int) -> None:
    (tmp_path / "train.py").write_text(LOOP)
    command = [sys.executable, "-m", "loaderprof", "run", "--no-html", "-o", "out", "train.py", method, str(epochs)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=110, check=True)
    assert done.stdout == f"{28.0 * epochs}\n"
    assert "capture" not in done.stderr
    seen = reader.read(tmp_path / "out")
    workers = [each for each in seen.processes if each.worker is not None]
    # Of every epoch at first, then of one in two, in three ...
    assert 2 * 8 <= len(workers) < 0.8 * 2 * epochs
    assert json.loads((tmp_path / "out/findings.json").read_text())["run"]["steps"] == 2 * epochs
    loaders = json.loads((tmp_path / "out/findings.json").read_text())["loaders"]
    assert loaders[0]["epochs"] == epochs
