"""Advice on a loop over Ray Data, in Ray's own terms."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from loaderprof.advise.changes.ray import ray_prefetch, ray_tasks
from loaderprof.analyze.pools import Pool, Work
from loaderprof.recording.facts import LoaderFacts
from loaderprof.replay.costs import RunCosts, Settings
from loaderprof.replay.model import LoopModel


def offered(cores: float, *, prefetch: int = 1, overlapped: bool = True, step_s: float = 0.004) -> dict[str, Any]:
    """Return the changes to a loop whose one Ray task takes 20 ms a batch, by id."""
    work = (Work("transform", "smoothed", "rows.py:26", 1.0),)
    pool = Pool("processes", 1, 0.98, 0.98, 0.0, 0.0, 0.0, None, None, work, 100, frozenset({7}), overlapped=overlapped)
    ones = np.ones(60)
    costs = RunCosts(0.02 * ones, 0.0 * ones, step_s * ones, 0.0 * ones, receive_cpu_s=0.0)
    workers = 1 if overlapped else 0
    base = LoopModel(
        costs, Settings(workers, persistent_workers=True), cores=cores, neighbours=0.0, batches_per_epoch=60, epochs=1
    )
    loop = SimpleNamespace(facts=LoaderFacts(prefetch_batches=prefetch, framework="ray", where="train.py:9"))
    context: Any = SimpleNamespace(parts=SimpleNamespace(pool=pool), loop=loop, cores=cores)
    return {change.id: change for rule in (ray_tasks, ray_prefetch) for change in rule(context, base, None)}  # type: ignore[arg-type]


def test_as_many_tasks_as_help_within_the_cores() -> None:
    change = offered(8.0)["ray-tasks"]
    # Six tasks of 20 ms keep up with steps of 4 ms.
    assert 5 <= change.change["tasks"] <= 6
    assert f"TaskPoolStrategy(size={change.change['tasks']})" in change.code
    assert change.where == "rows.py:26"
    assert offered(2.0)["ray-tasks"].change["tasks"] == 2


def test_no_task_beyond_the_cores() -> None:
    assert offered(1.0) == {}


@pytest.mark.parametrize(("prefetch", "offered_"), [(0, True), (1, False)])
def test_batches_are_fetched_ahead_where_they_are_not(prefetch: int, offered_: bool) -> None:
    changes = offered(4.0, prefetch=prefetch, overlapped=False, step_s=0.02)
    assert ("ray-prefetch" in changes) == offered_
    assert all("prefetch_batches=2" in change.code for change in changes.values())
