"""Make the recordings of sample_runs/gpu_*, on a machine with a GPU: `python tests/gpu/keep.py`, then commit what it wrote.

The ordinary tests check what is concluded from each that is there. A GPU as fast as an H100 and 12 cores are assumed by
what is expected of them; where a verdict is another one, look first whether the expectation holds for this machine.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "sample_runs"
# By folder: what is typed after train.py, and what may come out of it.
CASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "gpu_images_2_workers": (("images", "--workers", "2"), ("decode", "transform")),
    "gpu_images_12_workers": (("images", "--workers", "12"), ("device", "none", "decode", "copy")),
    "gpu_tokens": (("tokens",), ("device", "none")),
    "gpu_pageable": (("pageable",), ("copy", "handover", "collate", "transform")),
    "gpu_pinned": (("pinned",), ("copy", "handover", "collate", "transform", "none")),
    "gpu_logger": (("logger",), ("device", "host", "none", "handover")),
    "gpu_compute": (("compute",), ("device",)),
}


def keep(name: str) -> None:
    """Record one case, and write its report beside it."""
    words, expected = CASES[name]
    folder = SAMPLES / name / "recording"
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(exist_ok=True)
    shown = str(folder.relative_to(ROOT))
    command = [sys.executable, "-m", "loaderprof"]
    subprocess.run([*command, "run", "-o", shown, "tests/gpu/train.py", *words], cwd=ROOT, check=True)
    report = subprocess.run([*command, "report", shown], cwd=ROOT, capture_output=True, text=True, check=True)
    (folder.parent / "report.txt").write_text(report.stdout)
    print(f"{name}: expected {' or '.join(expected)}", flush=True)


if __name__ == "__main__":
    for each in sys.argv[1:] or CASES:
        keep(each)
