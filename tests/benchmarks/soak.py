"""Does a long run stay small? Memory and open files of a job and of its supervisor while workers come and go.

    python tests/benchmarks/soak.py --minutes 60
    python tests/benchmarks/soak.py --minutes 2        the short form

The job makes a loader anew every so many epochs, and every epoch starts and ends its workers. The same job runs without
loaderprof beside it, so that what torch itself grows by is not ours. A row is printed about every twentieth of the time;
the last lines say how much each process grew in the second half.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

# In the second half: memory and open files may grow by this much for another reason than a leak.
MOST_MIB, MOST_FILES = 8.0, 8

SCRIPT = """
import sys, time
import torch
from torch.utils.data import DataLoader, Dataset

class Numbers(Dataset):
    def __len__(self):
        return 64
    def __getitem__(self, index):
        time.sleep(0.002)
        return torch.full((3, 32, 32), float(index))

model = torch.nn.Linear(3 * 32 * 32, 4)
until = time.time() + float(sys.argv[1])
while time.time() < until:
    train_loader = DataLoader(Numbers(), batch_size=8, num_workers=2)
    for epoch in range(5):
        for batch in train_loader:
            model(batch.flatten(1)).sum().backward()
"""


@dataclass(frozen=True, slots=True)
class Size:
    """Of one process: resident MiB, open files."""

    mib: float
    files: int


def size_of(process: psutil.Process) -> Size | None:
    with contextlib.suppress(psutil.Error):
        return Size(process.memory_info().rss / (1 << 20), process.num_fds())
    return None


def watched(supervisor: psutil.Process, alone: psutil.Process) -> dict[str, Size]:
    with contextlib.suppress(psutil.Error):
        jobs = [child for child in supervisor.children() if "train.py" in " ".join(child.cmdline())]
        found = {"supervisor": size_of(supervisor), "job": size_of(jobs[0]) if jobs else None, "alone": size_of(alone)}
        return {name: size for name, size in found.items() if size is not None}
    return {}


def folder_mib(folder: Path) -> float:
    # A journal's file is mapped ahead of what is written; blocks are what the disk holds.
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file()) / (1 << 20)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    asked = parser.parse_args()
    seconds = asked.minutes * 60
    with tempfile.TemporaryDirectory() as name:
        script, recording = Path(name) / "train.py", Path(name) / "seen"
        script.write_text(SCRIPT)
        job = [str(script), str(seconds)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        run = [sys.executable, "-m", "loaderprof", "run", "--no-html", "--no-status", "-o", str(recording), *job]
        begun = time.monotonic()
        profiled, alone = subprocess.Popen(run, **quiet), subprocess.Popen([sys.executable, *job], **quiet)
        supervisor, bare = psutil.Process(profiled.pid), psutil.Process(alone.pid)
        rows: list[tuple[float, dict[str, Size]]] = []
        while alone.poll() is None and profiled.poll() is None:
            time.sleep(min(10.0, seconds / 40))
            now, sizes = time.monotonic() - begun, watched(supervisor, bare)
            if len(sizes) == 3:
                rows.append((now, sizes))
                if len(rows) % 2 == 0:
                    message = "   ".join(
                        f"{key} {size.mib:6.1f} MiB {size.files:3} files" for key, size in sizes.items()
                    )
                    print(f"{now / 60:5.1f} min   {message}   recording {folder_mib(recording):.1f} MiB", flush=True)
        code, _ = profiled.wait(), alone.wait()
    half = [sizes for now, sizes in rows if now > seconds / 2]
    if len(half) < 4:
        print("too short to tell")
        return 1
    grew = 0
    third = max(1, len(half) // 3)
    for key in ("supervisor", "job", "alone"):
        first, last = half[:third], half[-third:]
        mib = min(sizes[key].mib for sizes in last) - min(sizes[key].mib for sizes in first)
        files = min(sizes[key].files for sizes in last) - min(sizes[key].files for sizes in first)
        print(f"{key:10} grew by {mib:+.1f} MiB and {files:+d} files in the second half")
        grew += key != "alone" and (mib > MOST_MIB or files > MOST_FILES)
    print(f"exit code {code}")
    return 1 if grew or code else 0


if __name__ == "__main__":
    sys.exit(main())
