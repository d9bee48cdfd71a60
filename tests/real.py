"""Recordings of real, short runs, made once and shared by the tests that read them."""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Waits 4 ms for each sample, so that workers speed it up however busy the machine is.
SCRIPT = """
import sys, time
import torch
from torch.utils.data import DataLoader, Dataset

class Slow(Dataset):
    def __len__(self):
        return 480

    def __getitem__(self, index):
        time.sleep(0.004)
        return torch.zeros(8) + index

def main():
    torch.set_num_threads(1)
    loader = DataLoader(Slow(), batch_size=4)
    if loader.num_workers and "--alone" in sys.argv:
        sys.exit("no workers here")
    weights = torch.zeros(8, requires_grad=True)
    for batch in loader:
        ((batch * weights).sum() * 1e-6).backward()
    print("trained")

main()
"""
_keep = tempfile.TemporaryDirectory(prefix="loaderprof-tests-")


def loaderprof(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Type a command."""
    command = [sys.executable, "-m", "loaderprof", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=100, check=False)


@functools.lru_cache
def recording(*arguments: str) -> Path:
    """Return the recording of a run of SCRIPT; tests that write into it take a copy."""
    folder = Path(tempfile.mkdtemp(dir=_keep.name))
    (folder / "train.py").write_text(SCRIPT)
    done = loaderprof("run", "--no-html", "-o", "seen", "train.py", *arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "seen"


@contextmanager
def started(program: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a Python that says something once it is ready and ends when its standard input closes."""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        try:
            yield child, child.stdout.readline().strip()
        finally:
            child.communicate()
