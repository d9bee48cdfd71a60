"""A stage taken out of the replay: what stays is what arithmetic says stays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made import Fetch, Made, Plan, one_loop
from truths import LOAD, NAMES, RESIZE, recording_of

from loaderprof.analyze.breakdown import WORK, Breakdown, break_down
from loaderprof.analyze.timeline import Loop, build
from loaderprof.findings import Stage
from loaderprof.recording.reader import Recording
from loaderprof.replay.edits import with_settings
from loaderprof.replay.removal import (
    ANSWER_PER_TENSOR_S,
    MAX_BATCHES,
    Batch,
    LoopModel,
    fit_model,
    in_bursts,
    remove_stage,
    unloaded,
    with_lock,
)

MIX = Fetch(
    cpu=0.04,
    blocked=0.02,
    collate=0.004,
    operators=[("io.open", 0.021, 0.001), (LOAD, 0.02, 0.02), (RESIZE, 0.015, 0.015)],
)


def modelled(recording: Recording, cores: float = 8.0) -> tuple[Loop, Breakdown, LoopModel]:
    (loop,) = build(recording).loops
    parts = break_down(recording, loop)
    base = fit_model(loop, parts, cores, None)
    assert base is not None
    return loop, parts, base


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"contention", "handover"}))
def test_the_replay_of_a_run_as_it_was_is_the_run(name: str) -> None:
    loop, _, base = modelled(recording_of(name))
    measured = (loop.mean(loop.wait) or 0.0) + (loop.mean(loop.step) or 0.0)
    assert base.run().steady_step_s == pytest.approx(measured, rel=0.12)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_run_without_any_work_leaves_the_step(tmp_path: Path, workers: int) -> None:
    plan = Plan(workers=workers, wait=0.06 / max(1, workers), step=0.01, fetch=MIX)
    _, parts, base = modelled(one_loop(tmp_path / "r", plan))
    bare = base
    for stage in WORK:
        bare = remove_stage(bare, stage, parts) or bare
    assert float(bare.costs.fetch_cpu_s.mean() + bare.costs.fetch_blocked_s.mean()) == pytest.approx(0, abs=1e-9)
    assert bare.run().steady_step_s == pytest.approx(0.01, rel=0.02)


@pytest.mark.parametrize("stage", WORK)
def test_each_stage_takes_its_own_seconds_with_it(tmp_path: Path, stage: Stage) -> None:
    _, parts, base = modelled(one_loop(tmp_path / "r", Plan(wait=0.06, fetch=MIX)))
    cost = sum(piece.total_s for piece in parts.pieces if piece.stage == stage)
    less = remove_stage(base, stage, parts)
    assert less is not None
    assert cost > 0
    assert base.run().steady_step_s - less.run().steady_step_s == pytest.approx(cost, rel=0.02)


def test_a_stage_that_did_nothing_has_nothing_to_remove(tmp_path: Path) -> None:
    _, parts, base = modelled(
        one_loop(tmp_path / "r", Plan(wait=0.02, fetch=Fetch(cpu=0.02, operators=[(RESIZE, 0.02, 0.02)])))
    )
    assert remove_stage(base, "decode", parts) is None
    assert remove_stage(base, "straggler", parts) is None
    assert remove_stage(base, "handover", parts) is None
    assert remove_stage(base, "copy", parts) is None


def test_without_the_device_nothing_of_the_step_stays(tmp_path: Path) -> None:
    _, parts, base = modelled(one_loop(tmp_path / "r", Plan(workers=2, step=0.05, fetch=Fetch(cpu=0.01))))
    less = remove_stage(base, "device", parts)
    assert less is not None
    assert float(less.costs.step_cpu_s.mean()) == pytest.approx(0, abs=1e-9)
    host = remove_stage(base, "host", parts)
    assert host is not None
    assert float(host.costs.step_cpu_s.mean()) == pytest.approx(0.05)


def test_stacks_divide_a_step_between_the_model_and_the_loops_own_python() -> None:
    _, parts, base = modelled(recording_of("host"))
    steps = {stage: remove_stage(base, stage, parts) for stage in ("device", "host")}
    device, host = (float(variant.costs.step_cpu_s.mean()) for variant in steps.values() if variant)
    # Without the model the loop's own 80 % stay, and the other way round.
    assert (device, host) == pytest.approx((0.04, 0.01), rel=0.01)


def test_slow_batches_come_down_to_the_usual_one() -> None:
    _, parts, base = modelled(recording_of("straggler"))
    less = remove_stage(base, "straggler", parts)
    assert less is not None
    total = less.costs.fetch_cpu_s + less.costs.fetch_blocked_s
    assert total.max() == pytest.approx(0.01)
    assert less.run().steady_step_s == pytest.approx(0.01, rel=0.05)


def test_batches_that_are_often_slow_are_no_stragglers(tmp_path: Path) -> None:
    plan = Plan(workers=2, wait=0.05, fetch=Fetch(cpu=lambda task: 0.2 if task % 3 == 0 else 0.01))
    _, parts, base = modelled(one_loop(tmp_path / "r", plan))
    assert remove_stage(base, "straggler", parts) is None


@pytest.mark.parametrize(
    ("cost", "iterable", "bursts"),
    [
        (lambda task: 0.3 if task % 6 == 0 else 0.0001, True, True),  # nearly all work in the slow ones
        (lambda task: 0.1 if task % 8 == 0 else 0.01, True, False),
        (lambda task: 0.3 if task % 6 == 0 else 0.0001, False, False),  # who asks by index gets what he asks for
        (lambda _: 0.01, True, False),
    ],
)
def test_a_stream_that_unpacks_shards_makes_batches_in_bursts(
    tmp_path: Path, cost: Callable[[int], float], iterable: bool, bursts: bool
) -> None:
    plan = Plan(workers=1, wait=0.02, fetch=Fetch(cpu=cost), facts={"iterable": iterable})
    (loop,) = build(one_loop(tmp_path / "r", plan)).loops
    assert in_bursts(loop) is bursts


def test_starting_workers_again_is_what_startup_takes_away() -> None:
    _, parts, base = modelled(recording_of("startup"))
    less = remove_stage(base, "startup", parts)
    assert less is not None
    saved = base.run().total_s - less.run().total_s
    assert saved == pytest.approx(base.epochs * (0.8 + 0.3), rel=0.1)


def lazy(epochs: int = 12, batches: int = 6, wait_s: float = 0.5) -> Plan:
    """Two workers, each of which builds its data set's table at its first sample of every epoch."""
    return Plan(
        epochs=epochs,
        batches=batches,
        workers=2,
        startup=0.02,
        shutdown=0.03,
        step=0.01,
        wait=lambda batch: wait_s if batch == 0 else 0.0,
        fetch=Fetch(cpu=lambda task: wait_s if task < 2 else 0.002),
    )


@pytest.mark.parametrize("cores", [8.0, 2.0, 1.0])
@pytest.mark.parametrize("busy", [0.0, 3.0])
def test_epochs_begin_in_the_replay_as_they_did_in_the_run(tmp_path: Path, cores: float, busy: float) -> None:
    # Whatever cores there are now, those of the run are in what was measured.
    (loop,) = build(recording := one_loop(tmp_path / "r", lazy())).loops
    base = fit_model(loop, break_down(recording, loop), cores, busy)
    assert base is not None
    assert base.run().first_round_s == pytest.approx(0.02 + 0.5 + 2 * 0.01, rel=0.04)


def test_a_border_weighs_as_much_as_in_the_run_however_short_the_replay(tmp_path: Path) -> None:
    _, _, base = modelled(one_loop(tmp_path / "r", lazy(epochs=3, batches=500)))
    assert base.batches_per_epoch < 500
    assert base.pace_s() == pytest.approx(0.01 + (0.02 + 0.5 + 0.03) / 500, rel=0.02)


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
    alone, told = fit_model(val, parts, 8.0, None), fit_model(val, parts, 8.0, None, loops)
    assert alone is not None
    assert told is not None
    assert alone.all_first
    assert not told.all_first
    assert alone.costs.fetch_cpu_s.mean() == pytest.approx(0.2)
    assert told.costs.fetch_cpu_s.mean() == pytest.approx(0.002)
    assert told.costs.worker_boot_s == pytest.approx(0.2, rel=0.2)


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


def test_a_draw_of_costs_is_repeated_by_its_seed() -> None:
    _, _, base = modelled(recording_of("straggler"))
    assert base.run(3) == base.run(3)
    assert len({base.run(seed).steady_step_s for seed in range(1, 6)}) > 1
    assert np.isfinite(base.run(1).total_s)


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


def test_a_step_whose_other_thread_waits_for_a_core_is_shorter_without_the_loader(tmp_path: Path) -> None:
    # All of the loop's own thread's time in its steps is work or spinning; in a quarter of the time the other one waits.
    plan = Plan(workers=2, wait=0.02, step=0.06, step_others=0.9, fetch=Fetch(cpu=0.1, runq=0.02))
    recording = one_loop(tmp_path / "r", plan, cores=2.0)
    (loop,) = build(recording).loops
    parts = break_down(recording, loop)
    base = fit_model(loop, parts, 2.0, None, team_waited=0.25)
    assert base is not None
    assert float(base.costs.step_cpu_s.mean()) == pytest.approx(0.06 * (1 - 0.25 * 0.08 / 0.06))
    # What spins is no work: without a loader the step takes no longer than it computes.
    alone = unloaded(base, parts).run()
    assert alone.steady_step_s == pytest.approx(0.04, rel=0.05)


def test_without_workers_the_sampler_takes_its_time_with_it(tmp_path: Path) -> None:
    plan = Plan(wait=0.03, step=0.01, index=0.02, fetch=Fetch(cpu=0.01))
    _, parts, base = modelled(one_loop(tmp_path / "r", plan))
    assert base.run().steady_step_s == pytest.approx(0.04, rel=0.02)
    less = remove_stage(base, "sampler", parts)
    assert less is not None
    assert less.run().steady_step_s == pytest.approx(0.02, rel=0.02)
    # Workers cannot draw indices for it.
    assert with_settings(base, num_workers=4).run().steady_step_s == pytest.approx(0.03, rel=0.1)


def test_without_workers_slow_batches_weigh_as_often_as_they_came(tmp_path: Path) -> None:
    # Every second batch is timed in depth and counts for no other, none of the slow ones: one batch in twenty.
    def cost(task: int) -> float:
        return 0.2 if task % 20 == 0 else 0.01

    plan = Plan(wait=cost, step=0.01, fetch=Fetch(cpu=cost, deep_every=2))
    loop, _, base = modelled(one_loop(tmp_path / "r", plan))
    assert float(base.costs.fetch_cpu_s.mean()) == pytest.approx(loop.mean(loop.wait), rel=0.02)


def test_a_step_of_two_threads_that_keeps_its_cores(tmp_path: Path) -> None:
    # Two workers with little to do wait for a core half of the time; the step's threads, a fifth.
    fetch = Fetch(cpu=0.012, runq=0.012)
    plan = Plan(workers=2, wait=0.001, step=0.054, step_cpu=0.8, step_runq=0.2, step_others=0.85, fetch=fetch)
    _, _, base = modelled(one_loop(tmp_path / "r", plan, cores=2.0), cores=2.0)
    seen = base.run()
    assert seen.core_wait_share == pytest.approx(0.5, abs=0.03)
    assert seen.step_wait_s == pytest.approx(0.0108, rel=0.1)
    assert seen.steady_step_s == pytest.approx(0.055, rel=0.05)


def test_much_that_is_outstanding_is_replayed_in_longer_epochs(tmp_path: Path) -> None:
    plan = Plan(workers=8, batches=1000, epochs=2, wait=0.001, step=0.004, fetch=Fetch(cpu=0.04))
    _, _, base = modelled(one_loop(tmp_path / "r", plan))
    assert base.replayed == (base.batches_per_epoch, base.epochs)
    deep = replace(base, settings=replace(base.settings, prefetch_factor=16))
    length, epochs = deep.replayed
    assert length == 3 * 8 * 16
    assert epochs == 2
    assert deep.pace_s() == pytest.approx(base.pace_s(), rel=0.03)


def held(base: LoopModel, tensors: int, **costs: float) -> LoopModel:
    return replace(base, costs=replace(base.costs, **costs), batch=Batch(tensors=tensors))


def test_answers_that_wait_for_a_workers_lock_go_with_what_holds_it(tmp_path: Path) -> None:
    # One worker makes 9 ms of Python a batch; its answers for three tensors wait 6 ms behind that, and the step takes 3 ms.
    fetch = Fetch(cpu=0.009, collate=0.0085, tensors=3)
    plan = Plan(workers=1, wait=0.0065, receive=0.0065, step=0.003, fetch=fetch)
    _, parts, base = modelled(one_loop(tmp_path / "r", plan))
    assert base.costs.answer_cpu_s + base.costs.receive_cpu_s == pytest.approx(0.0065, rel=0.01)
    assert base.batch.tensors is None
    told = with_lock(held(base, 3, answer_cpu_s=0.006, receive_cpu_s=0.0005))
    work = 3 * ANSWER_PER_TENSOR_S
    assert told.answer_work_s == pytest.approx(work)
    # Held for as long as the run's answers were, as far as the making of one batch lasts; the rest is round trips more.
    assert told.costs.answer_cpu_s + told.run().held_s == pytest.approx(0.006, rel=0.1)
    before = told.run().steady_step_s
    freed, delivered = remove_stage(told, "collate", parts), remove_stage(told, "handover", parts)
    assert freed is not None
    assert delivered is not None
    # What is left of receiving, and the step.
    assert freed.run().steady_step_s == pytest.approx(0.0005 + work + 0.003, rel=0.15)
    assert delivered.run().steady_step_s == pytest.approx(0.009, rel=0.03)
    assert before > freed.run().steady_step_s * 2
    # Many tensors are answered one by one, whatever the worker does.
    assert with_lock(replace(base, costs=told.costs, batch=Batch(tensors=120))).costs == told.costs
    assert with_lock(base) == base


def test_an_answer_waits_no_longer_than_for_the_batch_in_the_making(tmp_path: Path) -> None:
    plan = Plan(workers=1, wait=0.0035, receive=0.0005, step=0.0005, fetch=Fetch(cpu=0.004, collate=0.004))
    _, parts, base = modelled(one_loop(tmp_path / "r", plan))
    told = replace(base, costs=replace(base.costs, held_s=1.0))
    # It meets the next batch as it has just begun; so every other batch is late.
    assert 0 < told.run().held_s <= 0.004
    step = remove_stage(told, "device", parts)
    assert step is not None
    assert step.run().steady_step_s <= told.run().steady_step_s * 1.01


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
