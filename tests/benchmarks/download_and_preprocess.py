"""Run `sample_runs/download_and_preprocess` in its three ways: each one's verdict, and what its report said of the best.

    python tests/benchmarks/download_and_preprocess.py                under two minutes
    python tests/benchmarks/download_and_preprocess.py --keep DIR     keep the recordings

"What it would be" is the seconds of the way that ran, over the speedup that its report predicts of threads for the
downloads beside processes for the rest.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[2] / "sample_runs" / "download_and_preprocess" / "train.py"
WAYS, BEST = ("threads", "processes", "both"), "threads-and-processes"


def profile(folder: Path, way: str) -> tuple[str, dict[str, Any]]:
    command = [sys.executable, "-m", "loaderprof", "run", "--no-html", "--no-status", "-o", str(folder), str(SCRIPT)]
    done = subprocess.run([*command, way], capture_output=True, text=True, check=True)
    return done.stdout.strip(), json.loads((folder / "findings.json").read_text())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="keep the recordings in this folder")
    asked = parser.parse_args()
    complete = True
    with tempfile.TemporaryDirectory() as scratch:
        for way in WAYS:
            said, found = profile((asked.keep or Path(scratch)) / way, way)
            verdict = found["verdict"]
            print(f"{said}\n    {verdict['bottleneck']}, {verdict['cause']}: {verdict['headline']}")
            complete = complete and "each once: True" in said
            for each in found["advice"]:
                expected = each["expected"]
                message = f"{expected['speedup']:.2f} ({expected['low']:.2f} to {expected['high']:.2f})"
                seconds = float(re.search(r"([\d.]+) s$", said)[1])  # type: ignore[index]
                would = f", what it would be: {seconds / expected['speedup']:.1f} s" if each["id"] == BEST else ""
                print(f"    {each['action']}: {message}{would}", flush=True)
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
