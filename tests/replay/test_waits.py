"""Waits fitted by replaying: the model waits for cores, the GIL and new workers as long as the hand-made run did."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from made import Fetch, Plan, one_loop
from modelled import lazy, modelled

from loaderprof.analyze.breakdown import break_down
from loaderprof.analyze.timeline import build
from loaderprof.replay.fit import fit_model
from loaderprof.replay.model import Batch, LoopModel
from loaderprof.replay.removal import remove_stage
from loaderprof.replay.waits import ANSWER_PER_TENSOR_S, with_lock


@pytest.mark.parametrize("cores", [8.0, 2.0, 1.0])
@pytest.mark.parametrize("busy", [0.0, 3.0])
def test_epochs_begin_in_the_replay_as_they_did_in_the_run(tmp_path: Path, cores: float, busy: float) -> None:
    # Whatever cores there are now, those of the run are in what was measured.
    (loop,) = build(recording := one_loop(tmp_path / "r", lazy())).loops
    base = fit_model(loop, break_down(recording, loop), cores, busy)
    assert base is not None
    assert base.run().first_round_s == pytest.approx(0.02 + 0.5 + 2 * 0.01, rel=0.04)


def test_what_workers_waited_for_cores_tells_how_badly_they_were_spread(tmp_path: Path) -> None:
    # Two workers on two cores that wait a fifth of the time in which they want one.
    fetch = Fetch(cpu=0.04, runq=0.01)
    plan = Plan(workers=2, wait=0.0245, step=0.0005, step_cpu=0.0, fetch=fetch)
    _, _, base = modelled(one_loop(tmp_path / "r", plan, cores=2.0), cores=2.0)
    assert 0.0 < base.costs.imbalance < 1.0
    assert base.run().core_wait_share == pytest.approx(0.2, abs=0.02)
    assert base.run().steady_step_s == pytest.approx(0.025, rel=0.03)
    undisturbed = replace(plan, wait=0.0195, fetch=replace(fetch, runq=0.0))
    _, _, base = modelled(one_loop(tmp_path / "s", undisturbed, cores=2.0), cores=2.0)
    assert base.costs.imbalance == 0.0


def test_a_worker_that_keeps_its_core_beside_a_step_of_two_threads(tmp_path: Path) -> None:
    # Of two cores the worker has one; the step's two threads take turns on the other, so that each waits half of the time.
    fetch = Fetch(cpu=0.165, runq=0.001)
    plan = Plan(workers=1, wait=0.08, step=0.086, step_cpu=0.5, step_runq=0.5, step_others=0.5, fetch=fetch)
    _, _, base = modelled(one_loop(tmp_path / "r", plan, cores=2.0), cores=2.0)
    assert base.costs.step_threads == pytest.approx(2.0, rel=0.01)
    seen = base.run()
    assert seen.core_wait_share < 0.03
    assert seen.step_wait_s == pytest.approx(0.043, rel=0.05)
    assert seen.steady_step_s == pytest.approx(0.166, rel=0.03)
    # Alone, the step has both cores.
    alone = replace(base, costs=replace(base.costs, fetch_cpu_s=0.0 * base.costs.fetch_cpu_s))
    assert alone.run().step_wait_s == pytest.approx(0.0, abs=1e-6)


def test_a_step_of_two_threads_that_keeps_its_cores(tmp_path: Path) -> None:
    # Two workers with little to do wait for a core half of the time; the step's threads, a fifth.
    fetch = Fetch(cpu=0.012, runq=0.012)
    plan = Plan(workers=2, wait=0.001, step=0.054, step_cpu=0.8, step_runq=0.2, step_others=0.85, fetch=fetch)
    _, _, base = modelled(one_loop(tmp_path / "r", plan, cores=2.0), cores=2.0)
    seen = base.run()
    assert seen.core_wait_share == pytest.approx(0.5, abs=0.03)
    assert seen.step_wait_s == pytest.approx(0.0108, rel=0.1)
    assert seen.steady_step_s == pytest.approx(0.055, rel=0.05)


def held(base: LoopModel, tensors: int, **costs: float) -> LoopModel:
    return replace(base, costs=replace(base.costs, **costs), batch=Batch(tensors=tensors))


def test_answers_that_wait_for_a_workers_lock_go_with_what_holds_it(tmp_path: Path) -> None:
    # One worker makes 9 ms of Python a batch; its answers for three tensors wait 6 ms behind that, and the step takes 3 ms.
    fetch = Fetch(cpu=0.009, collate=0.0085, tensors=3)
    plan = Plan(workers=1, wait=0.0065, receive=0.0065, step=0.003, fetch=fetch)
    _, parts, base = modelled(one_loop(tmp_path / "r", plan))
    assert base.costs.answer_cpu_s + base.costs.receive_cpu_s == pytest.approx(0.0065, rel=0.01)
    assert base.batch.tensors is None
    fitted_model = with_lock(held(base, 3, answer_cpu_s=0.006, receive_cpu_s=0.0005))
    work = 3 * ANSWER_PER_TENSOR_S
    assert fitted_model.answer_work_s == pytest.approx(work)
    # Held for as long as the run's answers were, as far as the making of one batch lasts; the rest is round trips more.
    assert fitted_model.costs.answer_cpu_s + fitted_model.run().held_s == pytest.approx(0.006, rel=0.1)
    before = fitted_model.run().steady_step_s
    freed, delivered = remove_stage(fitted_model, "collate", parts), remove_stage(fitted_model, "handover", parts)
    assert freed is not None
    assert delivered is not None
    # What is left of receiving, and the step.
    assert freed.run().steady_step_s == pytest.approx(0.0005 + work + 0.003, rel=0.15)
    assert delivered.run().steady_step_s == pytest.approx(0.009, rel=0.03)
    assert before > freed.run().steady_step_s * 2
    # Many tensors are answered one by one, whatever the worker does.
    assert with_lock(replace(base, costs=fitted_model.costs, batch=Batch(tensors=120))).costs == fitted_model.costs
    assert with_lock(base) == base


def test_an_answer_waits_no_longer_than_for_the_batch_in_the_making(tmp_path: Path) -> None:
    plan = Plan(workers=1, wait=0.0035, receive=0.0005, step=0.0005, fetch=Fetch(cpu=0.004, collate=0.004))
    _, parts, base = modelled(one_loop(tmp_path / "r", plan))
    fitted_model = replace(base, costs=replace(base.costs, held_s=1.0))
    # It meets the next batch as it has just begun; so every other batch is late.
    assert 0 < fitted_model.run().held_s <= 0.004
    step = remove_stage(fitted_model, "device", parts)
    assert step is not None
    assert step.run().steady_step_s <= fitted_model.run().steady_step_s * 1.01
