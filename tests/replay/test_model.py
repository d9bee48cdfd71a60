"""A loop's model and its run: short replays stand for long epochs, and a draw is repeated by its seed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made import Fetch, Plan, one_loop
from modelled import lazy, modelled
from truths import recording_of


def test_a_border_weighs_as_much_as_in_the_run_however_short_the_replay(tmp_path: Path) -> None:
    _, _, base = modelled(one_loop(tmp_path / "r", lazy(epochs=3, batches=500)))
    assert base.batches_per_epoch < 500
    assert base.pace_s() == pytest.approx(0.01 + (0.02 + 0.5 + 0.03) / 500, rel=0.02)


def test_a_draw_of_costs_is_repeated_by_its_seed() -> None:
    _, _, base = modelled(recording_of("straggler"))
    assert base.run(3) == base.run(3)
    assert len({base.run(seed).steady_step_s for seed in range(1, 6)}) > 1
    assert np.isfinite(base.run(1).total_s)


def test_much_that_is_outstanding_is_replayed_in_longer_epochs(tmp_path: Path) -> None:
    plan = Plan(workers=8, batches=1000, epochs=2, wait=0.001, step=0.004, fetch=Fetch(cpu=0.04))
    _, _, base = modelled(one_loop(tmp_path / "r", plan))
    assert base.replayed == (base.batches_per_epoch, base.epochs)
    deep = replace(base, settings=replace(base.settings, prefetch_factor=16))
    length, epochs = deep.replayed
    assert length == 3 * 8 * 16
    assert epochs == 2
    assert deep.pace_s() == pytest.approx(base.pace_s(), rel=0.03)
