"""Whether loaderprof works with other versions of torch: an environment for each, and the tests of the hooks in it.

    python tests/benchmarks/torch_versions.py 2.2.2 2.5.1 2.15.0                        an hour on two cores
    python tests/benchmarks/torch_versions.py 2.2.2 2.5.1 2.15.0 --write docs/torch-versions.md    keep the table

Each environment is made in a temporary folder, with this Python, from what `pip install torch==VERSION` gives: some
gigabytes where that is a build for CUDA. Exits with 1 where a test fails or a version cannot be installed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = (
    "tests/capture/hooks/test_install.py",
    "tests/capture/hooks/test_describe.py",
    "tests/capture/hooks/test_discover.py",
    "tests/capture/hooks/test_process.py",
    "tests/capture/hooks/test_stand_ins.py",
    "tests/capture/hooks/test_watched.py",
    "tests/capture/hooks/test_workers.py",
    "tests/capture/hooks/test_identity.py",
    "tests/capture/test_session.py",
    "tests/capture/test_launch.py",
    "tests/test_api.py",
    "tests/end_to_end/test_pipelines.py",
)
NEEDED = ("pytest>=8", "pytest-timeout>=2.3", "hypothesis>=6.100", "pillow>=10")
# torch before this one was built for numpy 1, and shares no memory with arrays of numpy 2.
NUMPY_2 = (2, 3)
# By version: what a DataLoader does not have before it, and loaderprof therefore neither measures nor advises.
SINCE = (
    ((2, 5), "workers by their threads' names (`attach` finds them as children)"),
    ((2, 6), "`in_order`"),
)


@dataclass(frozen=True)
class Outcome:
    """What became of the tests with one version of torch; `trouble`: why there were none."""

    version: str
    counts: Counter[str] = field(default_factory=Counter)
    failed: tuple[str, ...] = ()
    trouble: str = ""


def numbers(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def tested(version: str) -> Outcome:
    """Make an environment with a version of torch, and run the tests in it."""
    with tempfile.TemporaryDirectory(prefix="torch-versions-") as name:
        python = Path(name, "bin", "python")
        subprocess.run([sys.executable, "-m", "venv", name], check=True)
        asked = [f"torch=={version}", str(ROOT), *NEEDED, *(("numpy<2",) if numbers(version) < NUMPY_2 else ())]
        install = [str(python), "-m", "pip", "install", "--quiet", *asked]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        if done.returncode:
            return Outcome(version, trouble=(done.stderr.strip().splitlines() or ["pip failed"])[-1])
        report = Path(name, "report.xml")
        command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junit-xml={report}", *TESTS]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if not report.exists():
            return Outcome(version, trouble=(done.stdout + done.stderr).strip()[-300:])
        cases = list(ET.parse(report).iter("testcase"))
    became = {f"{case.get('classname')}.{case.get('name')}": outcome(case) for case in cases}
    failed = tuple(case for case, what in became.items() if what == "failed")
    return Outcome(version, Counter(became.values()), failed)


def outcome(case: ET.Element) -> str:
    bad = case.find("failure") is not None or case.find("error") is not None
    return "failed" if bad else "skipped" if case.find("skipped") is not None else "passed"


def row(each: Outcome) -> str:
    """Return a version's row of the table."""
    missing = ", ".join(what for since, what in SINCE if numbers(each.version) < since) or "-"
    if each.trouble:
        return f"| {each.version} | not measured: {each.trouble} | | | {missing} |"
    counts = " | ".join(str(each.counts[what]) for what in ("passed", "failed", "skipped"))
    return f"| {each.version} | {counts} | {missing} |"


def table(outcomes: list[Outcome]) -> str:
    python = sys.version.split()[0]
    versions = " ".join(each.version for each in outcomes)
    lines = (
        "# Versions of torch",
        "",
        "The tests of the hooks, of identical output, of sessions, of launching and of whole pipelines, in an environment of",
        f"its own for each version, Python {python}. Made by",
        f"`python tests/benchmarks/torch_versions.py {versions} --write docs/torch-versions.md`.",
        "",
        "| torch | passed | failed | skipped | not there |",
        "|---|---|---|---|---|",
        *map(row, outcomes),
        "",
        "A version whose DataLoader has another shape than these makes the hooks stand aside with one line on stderr, and the",
        "job goes on (`tests/capture/hooks/test_install.py`).",
        "",
    )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="+", metavar="VERSION")
    parser.add_argument("--write", type=Path, metavar="FILE", help="keep the table")
    asked = parser.parse_args()
    outcomes = []
    for version in asked.versions:
        outcomes.append(tested(version))
        print(row(outcomes[-1]), flush=True)
        for each in outcomes[-1].failed:
            print("  failed:", each, flush=True)
    if asked.write:
        asked.write.write_text(table(outcomes))
    return 1 if any(each.failed or each.trouble for each in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
