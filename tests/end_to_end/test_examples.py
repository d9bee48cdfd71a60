"""The examples of docs/ranks.md and docs/integrations.md, run as they stand there."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from object_store import bucket, store

HERE = Path(__file__).parents[2]
__all__ = ["bucket", "store"]


def example(page: str, section: str) -> tuple[str, str]:
    """Return language and text of the first example below a heading."""
    text = (HERE / "docs" / page).read_text()
    found = re.search(r"```(bash|python)\n(.*?)```", text[text.index(f"# {section}\n") :], re.DOTALL)
    assert found is not None
    return found[1], found[2]


def run(page: str, section: str, folder: Path) -> str:
    """Run an example in a folder that has what a clone has, and return what it wrote on standard error."""
    for name in ("tests", "sample_runs"):
        (folder / name).symlink_to(HERE / name)
    language, text = example(page, section)
    # `loaderprof` is the one that is tested here, whichever is on PATH.
    ours = f'loaderprof() {{ {shlex.quote(sys.executable)} -m loaderprof "$@"; }}\n'
    command = ["bash", "-ec", ours + text] if language == "bash" else [sys.executable, "-c", SHIM + text]
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    modules = os.pathsep.join((str(HERE), str(HERE / "tests/libraries"), os.environ.get("PYTHONPATH", "")))
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONPATH": modules},
        capture_output=True,
        text=True,
        timeout=115,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Full report" in done.stderr
    return done.stderr


# A torchvision whose compiled operators do not load must not stop a trainer that imports it.
SHIM = "from training import ask_for_torchvision; ask_for_torchvision()\n"


@pytest.mark.slow
def test_ranks(tmp_path: Path) -> None:
    assert "rank 1 on " in run("ranks.md", "Several ranks, several nodes", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("section", "needs"), [("Lightning", "lightning"), ("Hugging Face Trainer", "transformers")])
def test_trainers(section: str, needs: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(needs) is None:
        pytest.skip(f"needs {needs}")
    run("integrations.md", section, tmp_path)
    assert (tmp_path / "fit" / "findings.json").is_file()


@pytest.mark.slow
def test_prometheus(tmp_path: Path) -> None:
    run("integrations.md", "Prometheus", tmp_path)


@pytest.mark.slow
def test_object_stores(bucket: str, store: str, tmp_path: Path) -> None:
    from object_store import call, stored

    call(f"{store}/my-bucket", "PUT")
    run("integrations.md", "Object stores", tmp_path)
    assert "recording.json" in stored("s3://my-bucket/runs/first")
