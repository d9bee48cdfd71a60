"""Workers that start again at every epoch: what keeps them depends on who is asked for them."""

from __future__ import annotations

from pathlib import Path

import pytest
from real import loaderprof

import loaderprof as package

PROGRAM = str(Path(__file__).parent / "capture" / "programs" / "loader_each_epoch.py")


@pytest.mark.parametrize(
    ("arguments", "offered", "not_offered"),
    [([], "persistent-workers", "one-loader"), (["new"], "one-loader", "persistent-workers")],
)
def test_a_loader_made_for_each_epoch_cannot_keep_its_workers(
    tmp_path: Path, arguments: list[str], offered: str, not_offered: str
) -> None:
    done = loaderprof("run", "--no-html", "-o", "seen", PROGRAM, *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = package.read(tmp_path / "seen").findings()
    assert found.verdict.bottleneck == "startup"
    ids = {each.id for each in found.advice}
    assert offered in ids
    assert not_offered not in ids
