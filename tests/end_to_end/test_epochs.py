"""Workers that start again at every epoch: what keeps them depends on who is asked for them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from real import loaderprof

import loaderprof as package

PROGRAM = str(Path(__file__).parents[1] / "capture" / "programs" / "loader_each_epoch.py")


OFFERED = {"kept": ("persistent-workers", "one-loader"), "new": ("one-loader", "persistent-workers")}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both jobs, at once: they mostly wait."""
    folder = tmp_path_factory.mktemp("epochs")
    with ThreadPoolExecutor(len(OFFERED)) as pool:
        jobs = {
            how: pool.submit(
                loaderprof, "run", "--no-html", "-o", how, PROGRAM, *([how] if how == "new" else []), cwd=folder
            )
            for how in OFFERED
        }
    for job in jobs.values():
        assert job.result().returncode == 0, job.result().stderr
    return folder


@pytest.mark.parametrize("how", OFFERED)
def test_a_loader_made_for_each_epoch_cannot_keep_its_workers(seen: Path, how: str) -> None:
    found = package.read(seen / how).findings()
    offered, not_offered = OFFERED[how]
    assert found.verdict.bottleneck == "startup"
    ids = {each.id for each in found.advice}
    assert offered in ids
    assert not_offered not in ids
