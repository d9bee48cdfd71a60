"""Which libraries loaderprof was seen to read rightly, and in which version: the table of docs/ecosystem.md.

    python tests/benchmarks/ecosystem.py                              what is installed beside loaderprof; a quarter of an hour
    python tests/benchmarks/ecosystem.py --write docs/ecosystem.md    keep the table

Runs the tests of tests/libraries (`pytest -m slow tests/libraries`), each of which asks for the right stage, operator and
line, and for the same output as without loaderprof. A library that is not installed is said to be not measured.
"""

from __future__ import annotations

import argparse
import ast
import importlib.metadata
import importlib.util
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

LIBRARIES = Path(__file__).parents[1] / "libraries"
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
        found[script] = "fails" if bad else "not measured" if case.find("skipped") is not None else "right"
    return found


def version(module: str) -> str:
    try:
        package = PACKAGES.get(module) or importlib.metadata.packages_distributions()[module][0]
        return f"{package} {importlib.metadata.version(package)}"
    except (KeyError, importlib.metadata.PackageNotFoundError):
        return f"{PACKAGES.get(module, module)}, not installed"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="FILE", help="keep the table")
    asked = parser.parse_args()
    sys.path.insert(0, str(LIBRARIES))
    from test_libraries import EXPECTED

    became = outcomes()
    rows = []
    for script, expected in EXPECTED.items():
        about = (ast.get_docstring(ast.parse((LIBRARIES / f"{script}.py").read_text())) or "").splitlines()[0]
        versions = ", ".join(version(module) for module in expected.needs.split())
        rows.append(f"| {about.rstrip('.')} | {versions} | {expected.stage} | {became.get(script, 'not measured')} |")
    text = "\n".join(
        (
            "# Libraries", "",
            "Real pipelines of well-known libraries, unmodified. *Right*: the stage, the operator and the line of the limit were",
            "named, and the output was the same as without loaderprof. Made by `python tests/benchmarks/ecosystem.py --write",
            f"docs/ecosystem.md`, Python {sys.version.split()[0]}, torch {importlib.metadata.version('torch').partition('+')[0]}.", "",
            "| pipeline | versions | limit | told |", "|---|---|---|---|", *rows, "",
        )
    )  # fmt: skip
    print(text)
    if asked.write:
        asked.write.write_text(text)
    return 0 if all(each != "fails" for each in became.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
