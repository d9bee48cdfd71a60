"""Which libraries loaderprof was seen to read rightly, and in which version: the table of docs/ecosystem.md.

    python tests/benchmarks/ecosystem.py                              what is installed beside loaderprof; a quarter of an hour
    python tests/benchmarks/ecosystem.py --write docs/ecosystem.md    keep the table
    python tests/benchmarks/ecosystem.py --also tf/bin/python         what that Python has installed, where this one has not
    python tests/benchmarks/ecosystem.py --torch 2.2.2 2.5.1 2.15.0   and the tests with these versions (torch_versions.py)

Runs the tests of tests/libraries (`pytest -m slow tests/libraries`), each of which asks for the right stage, operator and
line, and for the same output as without loaderprof. A library that is not installed is said to be not measured.
"""

from __future__ import annotations

import argparse
import ast
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

import torch_versions

LIBRARIES = Path(__file__).parents[1] / "libraries"
NOT_MEASURED = "not measured"
# Of a module, where its package is called otherwise.
PACKAGES = {"cv2": "opencv-python-headless", "fasthtml": "python-fasthtml", "streaming": "mosaicml-streaming"}


def outcomes() -> dict[str, str]:
    """Run the tests, and return what became of each script."""
    with tempfile.TemporaryDirectory() as name:
        report = Path(name, "report.xml")
        command = [sys.executable, "-m", "pytest", "-m", "slow", f"--junit-xml={report}", str(LIBRARIES)]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        cases = list(ET.parse(report).iter("testcase"))
    found = {}
    for case in cases:
        script = case.get("name", "").partition("[")[2].rstrip("]")
        bad = case.find("failure") is not None or case.find("error") is not None
        found[script] = "fails" if bad else NOT_MEASURED if case.find("skipped") is not None else "right"
    return found


def version(module: str) -> str:
    try:
        package = PACKAGES.get(module) or importlib.metadata.packages_distributions()[module][0]
        return f"{package} {importlib.metadata.version(package)}"
    except (KeyError, importlib.metadata.PackageNotFoundError):
        return f"{PACKAGES.get(module, module)}, not installed"


def seen_here() -> dict[str, list[str]]:
    """Return, by script, what became of its test here and the versions of what it needs."""
    sys.path.insert(0, str(LIBRARIES))
    from test_libraries import EXPECTED

    became = outcomes()
    return {
        script: [became.get(script, NOT_MEASURED), ", ".join(version(module) for module in expected.needs.split())]
        for script, expected in EXPECTED.items()
    }


def seen_by(python: str) -> dict[str, list[str]]:
    """Return the same of another environment."""
    done = subprocess.run([python, __file__, "--json"], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="FILE", help="keep the table")
    parser.add_argument("--torch", nargs="+", default=[], metavar="VERSION", help="versions of torch to test as well")
    parser.add_argument("--also", nargs="+", default=[], metavar="PYTHON", help="further environments with libraries")
    parser.add_argument("--json", action="store_true", help="print what was seen, for another environment's table")
    asked = parser.parse_args()
    seen = seen_here()
    if asked.json:
        print(json.dumps(seen))
        return 0
    for python in asked.also:
        seen.update({script: each for script, each in seen_by(python).items() if seen[script][0] == NOT_MEASURED})
    from test_libraries import EXPECTED

    rows = []
    for script, expected in EXPECTED.items():
        about = (ast.get_docstring(ast.parse((LIBRARIES / f"{script}.py").read_text())) or "").splitlines()[0]
        became, versions = seen[script]
        rows.append(
            f"| {about.rstrip('.')} | {versions} | {expected.stage} | {became} | {expected.unmeasured or '-'} |"
        )
    text = "\n".join(
        (
            "# Libraries",
            "",
            "Real pipelines of well-known libraries, unmodified. *Right*: the stage, the operator and the line of the limit were",
            "named, and the output was the same as without loaderprof. Made by `python tests/benchmarks/ecosystem.py --write",
            f"docs/ecosystem.md`, Python {sys.version.split()[0]}, torch {importlib.metadata.version('torch').partition('+')[0]}.",
            "",
            "| pipeline | versions | limit | told | not measured there |",
            "|---|---|---|---|---|",
            *rows,
            "",
            "Whatever else hands out batches - DALI, FFCV, plain generators, hand-written loaders: `loaderprof.watch()`.",
            "",
        )
    )
    versions_of_torch = [torch_versions.tested(each) for each in asked.torch]
    if versions_of_torch:
        text += "\n" + torch_versions.table(versions_of_torch).replace("# ", "## ", 1)
    print(text)
    if asked.write:
        asked.write.write_text(text)
    failed = any(became == "fails" for became, _ in seen.values()) or any(
        each.failed or each.trouble for each in versions_of_torch
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
