"""A stage taken out of the replay: what stays is what arithmetic says stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from made import Fetch, Plan, one_loop
from modelled import modelled
from truths import LOAD, RESIZE, recording_of

from loaderprof.analyze.breakdown import break_down
from loaderprof.analyze.stages import WORK
from loaderprof.analyze.timeline import build
from loaderprof.findings import Stage
from loaderprof.replay.edits import with_settings
from loaderprof.replay.fit import fit_model
from loaderprof.replay.removal import in_bursts, remove_stage, unloaded

MIX = Fetch(
    cpu=0.04,
    blocked=0.02,
    collate=0.004,
    operators=[("io.open", 0.021, 0.001), (LOAD, 0.02, 0.02), (RESIZE, 0.015, 0.015)],
)


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
