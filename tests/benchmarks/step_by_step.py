"""Follow the advice on `sample_runs/step_by_step` change by change: what each report predicted, and what came of it.

    python tests/benchmarks/step_by_step.py                 the four runs, under two minutes
    python tests/benchmarks/step_by_step.py --keep DIR      keep their recordings

A change is followed only if the report advises it; its gain is measured from one run's pace to the next one's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[2] / "sample_runs" / "step_by_step" / "train.py"
# Advice, in the order in which it is followed, and what follows it in the script.
STEPS = (("faster-decoder", ["--half-size"]), ("num-workers", ["--num-workers=2"]), ("cache-in-memory", ["--cache"]))


def profile(folder: Path, flags: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "loaderprof", "run", "--no-html", "--no-status", "-o", str(folder), str(SCRIPT)]
    subprocess.run([*command, *flags], capture_output=True, check=True)
    found: dict[str, Any] = json.loads((folder / "findings.json").read_text())
    return found


def batch_ms(found: dict[str, Any]) -> float:
    loader = found["loaders"][0]
    return float(1e3 * loader["batch_size"] / loader["samples_per_s"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="keep the recordings in this folder")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        keep, flags = asked.keep or Path(scratch), []
        found = profile(keep / "0", flags)
        print(f"{'as it was found':34} {batch_ms(found):6.1f} ms a batch   {found['verdict']['headline']}", flush=True)
        wrong = 0
        for number, (id_, more) in enumerate(STEPS, 1):
            advice = {each["id"]: each["expected"] for each in found["advice"]}
            if id_ not in advice:
                print(f"{id_} is not advised, but {', '.join(advice) or 'nothing'}")
                return 1
            expected, before, flags = advice[id_], batch_ms(found), [*flags, *more]
            found = profile(keep / str(number), flags)
            gained = before / batch_ms(found)
            held = expected["low"] <= gained <= expected["high"]
            wrong += not held
            print(
                f"{id_:16} {' '.join(more):17} {batch_ms(found):6.1f} ms a batch   predicted {expected['speedup']:.2f} "
                f"({expected['low']:.2f} to {expected['high']:.2f})   measured {gained:.2f}{'' if held else '  outside'}"
                f"   {found['verdict']['headline']}",
                flush=True,
            )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
