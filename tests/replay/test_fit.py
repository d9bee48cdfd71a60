"""Models fitted to hand-made runs: replayed, they take as long as the runs did."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made import Fetch, Made, Plan, one_loop
from modelled import modelled
from truths import NAMES, recording_of

from loaderprof.analyze.breakdown import break_down
from loaderprof.analyze.timeline import build
from loaderprof.replay.fit import MAX_BATCHES, fit_model


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"contention", "handover"}))
def test_the_replay_of_a_run_as_it_was_is_the_run(name: str) -> None:
    loop, _, base = modelled(recording_of(name))
    measured = (loop.mean(loop.wait) or 0.0) + (loop.mean(loop.step) or 0.0)
    assert base.run().steady_step_s == pytest.approx(measured, rel=0.12)


def test_another_loop_over_the_same_data_set_tells_work_from_set_up(tmp_path: Path) -> None:
    made = Made(tmp_path / "r")
    process = made.process()
    # Each worker of the validation loop lives for one batch, nearly all of which is set-up.
    table = Fetch(cpu=0.2)
    ended = made.loop(process, Plan(name="val", epochs=5, batches=2, workers=2, wait=0.1, fetch=table, training=False))
    made.loop(process, Plan(name="train", workers=2, wait=0.0, fetch=Fetch(cpu=0.004, samples=32)), ended + 1)
    recording = made.read()
    loops = build(recording).loops
    val = next(loop for loop in loops if loop.name == "val")
    parts = break_down(recording, val)
    alone, fitted_model = fit_model(val, parts, 8.0, None), fit_model(val, parts, 8.0, None, loops)
    assert alone is not None
    assert fitted_model is not None
    assert alone.all_first
    assert not fitted_model.all_first
    assert alone.costs.fetch_cpu_s.mean() == pytest.approx(0.2)
    assert fitted_model.costs.fetch_cpu_s.mean() == pytest.approx(0.002)
    assert fitted_model.costs.worker_boot_s == pytest.approx(0.2, rel=0.2)


def test_long_runs_are_replayed_in_short(tmp_path: Path) -> None:
    _, _, base = modelled(one_loop(tmp_path / "r", Plan(epochs=9, batches=500, wait=0.001, fetch=Fetch(cpu=0.001))))
    assert base.batches_per_epoch * base.epochs <= MAX_BATCHES


def test_other_programs_are_neighbours(tmp_path: Path) -> None:
    (loop,) = build(recording := one_loop(tmp_path / "r", Plan(wait=0.02, fetch=Fetch(cpu=0.02)))).loops
    parts = break_down(recording, loop)
    quiet, busy = fit_model(loop, parts, 1.0, 0.0), fit_model(loop, parts, 1.0, 1.0)
    assert quiet is not None
    assert busy is not None
    assert (quiet.neighbours, busy.neighbours) == pytest.approx((0.0, 1.0))
    assert busy.run().steady_step_s > 1.5 * quiet.run().steady_step_s


def test_a_loop_that_nobody_measured_has_no_model(tmp_path: Path) -> None:
    made = Made(tmp_path / "r")
    process = made.process()
    number = process.iterator({"name": "loader", "num_workers": 2}, 0, 0)
    for batch in range(30):
        process.take(number, batch, batch + 0.5)
    recording = made.read()
    (loop,) = build(recording).loops
    assert fit_model(loop, break_down(recording, loop), 8.0, None) is None


def test_without_workers_slow_batches_weigh_as_often_as_they_came(tmp_path: Path) -> None:
    # Every second batch is timed in depth and counts for no other, none of the slow ones: one batch in twenty.
    def cost(task: int) -> float:
        return 0.2 if task % 20 == 0 else 0.01

    plan = Plan(wait=cost, step=0.01, fetch=Fetch(cpu=cost, deep_every=2))
    loop, _, base = modelled(one_loop(tmp_path / "r", plan))
    assert float(base.costs.fetch_cpu_s.mean()) == pytest.approx(loop.mean(loop.wait), rel=0.02)


@pytest.mark.parametrize(("neighbours", "answer"), [(0.0, 0.0018), (2.0, 0.0008)])
def test_uneven_answers_count_whole_where_nobody_else_wants_the_cores(
    tmp_path: Path, neighbours: float, answer: float
) -> None:
    made = one_loop(
        tmp_path / "r", Plan(workers=2, batches=81, wait=0.003, receive=0.0008, step=0.001, fetch=Fetch(cpu=0.004))
    )
    (loop,) = build(made).loops
    uneven = np.where(np.arange(len(loop.receive)) % 2 == 0, 0.0008, 0.0028)
    loop = replace(loop, receive=uneven, receive_cpu=np.zeros(len(uneven)))
    base = fit_model(loop, break_down(made, loop), 8.0, neighbours)
    assert base is not None
    assert base.costs.answer_cpu_s == pytest.approx(answer, rel=0.02)
