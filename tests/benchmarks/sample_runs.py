"""Run the five sample runs under loaderprof, over and over, and say whether each got its right verdict.

python tests/benchmarks/sample_runs.py --times 10       ten rounds of all five
python tests/benchmarks/sample_runs.py --keep           one round; keeps recording and reports beside each train.py
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SAMPLES = Path(__file__).parents[2] / "sample_runs"
TRUTH = {
    "decode_bound": "decode",
    "io_bound": "read",
    "transform_bound": "transform",
    "compute_bound": "device",
    "healthy": "none",
}


def verdict(name: str, folder: Path) -> dict[str, object]:
    """Run one sample into a folder and return its verdict."""
    script = SAMPLES / name / "train.py"
    command = [sys.executable, "-m", "loaderprof", "run", "-o", str(folder), str(script.relative_to(SAMPLES.parent))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=SAMPLES.parent, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{name} exited with {done.returncode}: {done.stderr[-500:]}")
    found = json.loads((folder / "findings.json").read_text())
    return {**found["verdict"], "seconds": found["run"]["duration_s"]}


def keep(name: str) -> None:
    """Make the recording and the reports that stand beside a sample."""
    folder = SAMPLES / name / "recording"
    shutil.rmtree(folder, ignore_errors=True)
    verdict(name, folder)
    shown = subprocess.run(
        [sys.executable, "-m", "loaderprof", "report", str(folder.relative_to(SAMPLES.parent))],
        capture_output=True,
        text=True,
        cwd=SAMPLES.parent,
        check=True,
    )
    (SAMPLES / name / "report.txt").write_text(shown.stdout)


def main() -> int:
    """Print a line a run, and how many were right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--only", choices=TRUTH, action="append")
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    names = options.only or list(TRUTH)
    if options.keep:
        for name in names:
            keep(name)
        return 0
    right = 0
    for _ in range(options.times):
        for name in names:
            with tempfile.TemporaryDirectory() as folder:
                seen = verdict(name, Path(folder) / "recording")
            right += seen["bottleneck"] == TRUTH[name]
            print(
                f"{name:16} {seen['bottleneck']:10} {seen['cause']:18} {seen['confidence']:7} "
                f"wait {seen['wait_share']:.1%}  {seen['seconds']:.0f} s",
                flush=True,
            )
    print(f"{right} of {options.times * len(names)} right")
    return 0 if right == options.times * len(names) else 1


if __name__ == "__main__":
    sys.exit(main())
