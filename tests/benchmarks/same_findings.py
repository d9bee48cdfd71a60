"""Findings, screens and pages of kept and of made recordings, by two checkouts: what differs between them.

    git worktree add /tmp/before COMMIT
    python tests/benchmarks/same_findings.py /tmp/before

Reads every recording under sample_runs/ and those that the tests make (`truths.PLANS`), with the command line of both
checkouts, and prints each file that differs; exit code 1 where one does. `--numbers` compares the findings alone, and of
them what is no sentence: keys, numbers and ids.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from made import one_loop  # noqa: E402
from truths import PLANS, host, in_stacks, validating  # noqa: E402


def made(folder: Path) -> None:
    """Write the tests' recordings, each into a folder of its own."""
    for name, (plan, cores) in PLANS.items():
        one_loop(folder / name, plan, cores)
    for name, make in (("host", host), ("in_stacks", in_stacks), ("validating", validating)):
        make(folder / name)


def rendered(house: Path, recording: Path, out: Path, *, numbers: bool) -> dict[str, str]:
    """Return what a checkout makes of a recording, by form."""
    environment = {**os.environ, "PYTHONPATH": str(house), "COLUMNS": "100"}
    forms = {"findings.json": ["--json"], "screen.txt": [], "page.html": ["--html", str(out), "--force"]}
    found = {}
    for name, options in list(forms.items())[: 1 if numbers else None]:
        command = [sys.executable, "-m", "loaderprof", "report", recording.name, *options]
        done = subprocess.run(
            command, cwd=recording.parent, env=environment, capture_output=True, text=True, check=False
        )
        found[name] = out.read_text() if name == "page.html" and not done.returncode else done.stdout + done.stderr
    return {"findings.json": without_sentences(found["findings.json"])} if numbers else found


def without_sentences(findings: str) -> str:
    """Return findings with every text that holds a space left out."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list):
            return [plain(item) for item in value]
        return None if isinstance(value, str) and " " in value else value

    return json.dumps(plain(json.loads(findings)), indent=1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="another checkout of this project")
    parser.add_argument("--numbers", action="store_true", help="compare the findings' keys, numbers and ids alone")
    options = parser.parse_args()
    differing = count = seen = 0
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        made(work / "made")
        for kept in sorted(ROOT.glob("sample_runs/*/recording")):
            shutil.copytree(kept, work / "kept" / kept.parent.name)
        for recording in sorted([*(work / "made").iterdir(), *(work / "kept").iterdir()]):
            seen += 1
            houses = (options.before.absolute(), ROOT)
            sides = [rendered(each, recording, work / "page.html", numbers=options.numbers) for each in houses]
            for form in sides[0]:
                texts = [side[form] for side in sides]
                count += 1
                if texts[0] != texts[1]:
                    differing += 1
                    print(f"differs: {recording.parent.name}/{recording.name} {form}")
                    pairs = zip(texts[0].splitlines(), texts[1].splitlines(), strict=False)
                    for old, new in [(old, new) for old, new in pairs if old != new][:3]:
                        print(f"  - {old[:200]}\n  + {new[:200]}")
    print(f"{count} files of {seen} recordings, {differing} differ")
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
