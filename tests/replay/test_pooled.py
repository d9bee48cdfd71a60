"""The interpreter's lock taken away from between threads that make batches and the loop that steps."""

from __future__ import annotations

import numpy as np
import pytest

from loaderprof.analyze.pools import Pool, Work
from loaderprof.replay.costs import RunCosts, Settings
from loaderprof.replay.model import LoopModel
from loaderprof.replay.pooled import unlocked

OWN_S = 0.004


def model(blocked: np.ndarray) -> LoopModel:
    steps = np.ones(len(blocked))
    costs = RunCosts(0.02 * steps, 0.0 * steps, 0.004 * steps, blocked, receive_cpu_s=0.0)
    return LoopModel(
        costs, Settings(4, persistent_workers=True), cores=2.0, neighbours=0.0, batches_per_epoch=60, epochs=1
    )


def pool(step_locked_s: float | None) -> Pool:
    work = (Work("decode", "parse", "train.py:20", 1.0),)
    return Pool("threads", 4, 2.0, 0.95, 0.1, 0.0, 0.4, 0.96, 1.0, work, 100, frozenset(), step_locked_s=step_locked_s)


@pytest.mark.parametrize("locked", [0.0, 0.016, 0.032, 0.036, 0.05])
def test_a_step_keeps_what_it_sleeps_but_not_for_the_lock(locked: float) -> None:
    blocked = np.full(60, 0.036)
    kept = unlocked(model(blocked), pool(locked), 2.0).costs.step_blocked_s
    assert kept == pytest.approx(np.full(60, max(0.0, 0.036 - locked)))


def test_where_nobody_saw_it_the_shortest_steps_tell() -> None:
    blocked = np.where(np.arange(60) % 5 == 0, OWN_S, 0.036)
    assert unlocked(model(blocked), pool(None), 2.0).costs.step_blocked_s == pytest.approx(np.full(60, OWN_S))
    assert unlocked(model(blocked * 0), pool(0.01), 2.0).costs.step_blocked_s.max() == 0.0
