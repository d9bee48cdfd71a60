"""The replay against what must hold, against closed forms, and against real DataLoaders that sleep."""

from __future__ import annotations

import dataclasses
import mmap
import time
import warnings
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from loaderprof.replay.costs import Outcome, RunCosts, Settings
from loaderprof.replay.protocol import replay

AMPLE_CORES = 64.0


def costs(
    fetch_s: Any = 0.0, step_s: Any = 0.0, *, fetch_cpu_s: Any = 0.0, step_cpu_s: Any = 0.0, **others: Any
) -> RunCosts:
    """Costs whose fetch and step are blocked unless given as CPU."""
    fetch = np.broadcast_arrays(np.atleast_1d(fetch_cpu_s), np.atleast_1d(fetch_s))
    step = np.broadcast_arrays(np.atleast_1d(step_cpu_s), np.atleast_1d(step_s))
    return RunCosts(fetch[0], fetch[1], step[0], step[1], **{"receive_cpu_s": 0.0, **others})


def run(of: RunCosts, settings: Settings, batches: int = 200, **others: Any) -> Outcome:
    return replay(of, settings, **{"cores": AMPLE_CORES, "batches_per_epoch": batches, **others})


seconds = st.lists(st.floats(0, 0.05), min_size=1, max_size=12).map(np.array)
settings = st.builds(
    Settings,
    num_workers=st.integers(0, 6),
    prefetch_factor=st.integers(1, 4),
    in_order=st.booleans(),
    persistent_workers=st.booleans(),
    pin_memory=st.booleans(),
)


@st.composite
def any_costs(draw: st.DrawFn) -> RunCosts:
    fetch, step = draw(seconds), draw(seconds)
    return RunCosts(
        fetch * draw(st.floats(0, 1)),
        fetch,
        step,
        step * draw(st.floats(0, 1)),
        receive_cpu_s=draw(st.floats(0, 0.01)),
        send_cpu_s=draw(st.floats(0, 0.01)),
        worker_start_s=draw(st.floats(0, 0.01)),
        worker_boot_s=draw(st.floats(0, 0.01)),
        pin_cpu_s=draw(st.floats(0, 0.01)),
        io_slots=draw(st.none() | st.integers(1, 3)),
    )


@given(any_costs(), settings, st.floats(0.5, 8), st.integers(1, 40), st.integers(1, 3), st.integers(0, 2))
@hypothesis_settings(max_examples=80, deadline=None)
def test_every_batch_once_and_never_faster_than_its_parts(
    of: RunCosts, how: Settings, cores: float, batches: int, epochs: int, seed: int
) -> None:
    arguments: dict[str, Any] = {"cores": cores, "batches_per_epoch": batches, "epochs": epochs, "seed": seed}
    seen = replay(of, how, **arguments)
    assert seen == replay(of, how, **arguments)
    assert seen.batches == batches * epochs
    assert 0 <= seen.parked <= 1
    assert 0 <= seen.worker_busy_share <= 1 + 1e-9
    if seed:
        return
    rows = np.arange(batches * epochs)
    fetch_cpu, fetch, step_cpu, step = (
        column[rows % len(column)].sum()
        for column in (of.fetch_cpu_s, of.fetch_blocked_s, of.step_cpu_s, of.step_blocked_s)
    )
    producers = how.num_workers or 1
    slack = 1 + 1e-9
    assert seen.total_s * slack >= step_cpu + step
    assert seen.total_s * slack >= (fetch_cpu + fetch) / producers
    # Without workers nothing is sent; the loop draws indices, which is all that is left of receiving.
    hand_over = (of.receive_cpu_s + (of.send_cpu_s if how.num_workers else 0.0)) * len(rows)
    assert seen.total_s * slack >= (fetch_cpu + step_cpu + hand_over) / cores
    if of.io_slots:
        assert seen.total_s * slack >= fetch / of.io_slots
    starts = 1 if how.persistent_workers else epochs
    hand_over += of.pin_cpu_s * len(rows)
    start_up = (of.worker_start_s + of.worker_boot_s) * how.num_workers * starts
    one_by_one = (fetch_cpu + step_cpu + hand_over + start_up) / min(1.0, cores) + fetch + step
    assert seen.total_s <= one_by_one * slack + 1e-9


@given(seconds, seconds, st.floats(0, 1), st.integers(0, 6), st.integers(1, 4))
@hypothesis_settings(max_examples=50, deadline=None)
def test_cheaper_batches_are_never_slower(fetch: Any, step: Any, factor: float, workers: int, prefetch: int) -> None:
    how = Settings(workers, prefetch)
    assert run(costs(fetch * factor, step), how, 50).total_s <= run(costs(fetch, step), how, 50).total_s + 1e-9


def protocol(of: RunCosts, how: Settings, batches: int, epochs: int) -> Outcome:
    """The protocol of a loader with workers, in order, on any number of cores: batch by batch, without a clock."""
    workers, depth = how.num_workers, how.outstanding
    numbers = np.arange(batches * epochs).reshape(epochs, batches)
    fetch, step = (each[numbers % len(each)] for each in (of.fetch_blocked_s, of.step_blocked_s))
    now = first_batch = first_epoch = making = wait = parked = 0.0
    marks = []
    for epoch in range(epochs):
        now += of.epoch_gap_s if epoch else 0.0
        ready = np.zeros(workers)
        if not epoch or not how.persistent_workers:
            ready = now + of.worker_start_s * np.arange(1, workers + 1) + of.worker_boot_s
            now += of.worker_start_s * workers
        opened, ends, done, taken = now, [(now, wait)], np.zeros(batches), np.zeros(batches)
        for index in range(batches):
            # Each batch that is taken makes room for one more.
            for task in range(index + depth - 1 if index else 0, min(index + depth, batches)):
                dealt = taken[task - depth] if task >= depth else opened
                free = done[task - workers] if task >= workers else ready[task]
                done[task] = max(dealt, free) + fetch[epoch, task]
            taken[index] = max(now, done[index])
            wait += taken[index] - now
            later = done[index + 1 : index + depth]
            parked += max(0.0, taken[index] - max(now, later.min())) if len(later) else 0.0
            now = taken[index] + step[epoch, index]
            ends.append((now, wait))
        making += done.max() - opened
        marks.append(np.array(ends))
        first_batch = first_batch or taken[0]
        now += 0.0 if how.persistent_workers else of.worker_stop_s * workers
        first_epoch = first_epoch or now
    skip, last = min(depth, batches // 2), batches - depth if batches >= 3 * depth else batches
    last -= (last - skip) % workers if last - skip > workers else 0
    steady = sum(each[last] - each[skip] for each in marks) / (epochs * (last - skip))
    return Outcome(
        total_s=now,
        steady_step_s=steady[0],
        wait_s=steady[1],
        first_batch_s=first_batch,
        batches=batches * epochs,
        worker_busy_share=fetch.sum() / (making * workers),
        parked=parked / wait,
        first_round_s=marks[0][min(workers, batches)][0],
        later_epoch_s=(now - first_epoch) / (epochs - 1) if epochs > 1 else None,
    )


@given(
    st.lists(st.floats(0.001, 0.05), min_size=1, max_size=12).map(np.array),
    seconds,
    st.integers(1, 5),
    st.integers(1, 3),
    st.booleans(),
    st.integers(1, 30),
    st.integers(1, 3),
    st.tuples(*[st.sampled_from((0.0, 0.01, 0.07))] * 4),
)
@hypothesis_settings(max_examples=60, deadline=None)
def test_batches_in_order_come_when_the_protocol_lets_them(
    fetch: Any, step: Any, workers: int, prefetch: int, kept: bool, batches: int, epochs: int, borders: Any
) -> None:
    names = ("worker_start_s", "worker_boot_s", "worker_stop_s", "epoch_gap_s")
    of, how = (
        costs(fetch, step, **dict(zip(names, borders, strict=True))),
        Settings(workers, prefetch, persistent_workers=kept),
    )
    seen, expected = run(of, how, batches, epochs=epochs), protocol(of, how, batches, epochs)
    assert dataclasses.asdict(seen) == pytest.approx(dataclasses.asdict(expected))


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
@pytest.mark.parametrize("step_s", [0.002, 0.01, 0.05])
def test_constant_costs_run_at_the_slowest_stage(workers: int, step_s: float) -> None:
    seen = run(costs(0.04, step_s, receive_cpu_s=0.001), Settings(workers), 400)
    stage_s = max(step_s + 0.001, 0.04 / workers)
    assert seen.steady_step_s == pytest.approx(stage_s, rel=0.02)
    assert seen.wait_s == pytest.approx(stage_s - step_s - 0.001, abs=0.02 * stage_s)
    assert seen.worker_busy_share == pytest.approx(0.04 / workers / stage_s, rel=0.06)


def test_cores_limit_what_workers_can_do() -> None:
    of = costs(fetch_cpu_s=0.01, step_cpu_s=0.005)
    assert run(of, Settings(4), cores=2).steady_step_s == pytest.approx(0.015 / 2, rel=0.03)
    assert run(of, Settings(4), cores=1).steady_step_s == pytest.approx(0.015, rel=0.03)


def test_neighbours_take_an_even_share_of_busy_cores() -> None:
    of = costs(fetch_cpu_s=0.01)
    assert run(of, Settings(2), cores=2, neighbours=2).steady_step_s == pytest.approx(0.01, rel=0.03)
    assert run(of, Settings(2), cores=4, neighbours=2).steady_step_s == pytest.approx(0.005, rel=0.03)


def test_threads_that_are_spread_badly_wait_beside_an_idle_core() -> None:
    # Two workers all of whose time is CPU: at random they share one of two cores half of the time.
    of, two = costs(fetch_cpu_s=0.02), Settings(2)
    even, random = (run(dataclasses.replace(of, imbalance=share), two, cores=2.0) for share in (0.0, 1.0))
    assert even.steady_step_s == pytest.approx(0.01, rel=0.01)
    assert even.core_wait_share == 0.0
    assert random.steady_step_s == pytest.approx(0.01 / 0.75, rel=0.01)
    assert random.core_wait_share == pytest.approx(0.25, abs=0.01)
    # One thread alone waits for nobody, nor do two among many cores.
    alone = run(dataclasses.replace(of, imbalance=1.0), Settings(1), cores=2.0)
    assert alone.steady_step_s == pytest.approx(0.02, rel=0.01)
    many = run(dataclasses.replace(of, imbalance=1.0), two, cores=64.0)
    assert many.steady_step_s == pytest.approx(0.01, rel=0.02)


def test_three_threads_spread_badly_over_two_cores() -> None:
    # One core has two of them half of the time, and now and then all three: a quarter of a core is idle.
    of = costs(fetch_cpu_s=0.01, imbalance=1.0)
    evenly = run(costs(fetch_cpu_s=0.01), Settings(3), cores=2.0).steady_step_s
    assert run(of, Settings(3), cores=2.0).steady_step_s == pytest.approx(evenly * 2 / 1.75, rel=0.02)
    # A single core has nobody beside it.
    assert run(of, Settings(3), cores=1.0) == run(costs(fetch_cpu_s=0.01), Settings(3), cores=1.0)


def test_a_loop_waits_for_a_core_after_it_was_blocked_only_where_none_is_free() -> None:
    of = costs(fetch_cpu_s=0.001, step_s=0.01, wake_s=0.004)
    assert run(of, Settings(1)).steady_step_s == pytest.approx(0.01)
    assert run(of, Settings(1), cores=1.0, neighbours=1.0).steady_step_s == pytest.approx(0.014)


def test_a_loop_beside_an_idle_core_starts_at_once() -> None:
    # The worker computes nearly all of the time, on the other core.
    seen = run(costs(fetch_cpu_s=0.0099, step_s=0.01, wake_s=0.004), Settings(1), cores=2.0)
    assert seen.steady_step_s == pytest.approx(0.01)
    assert seen.step_wait_s == pytest.approx(0)
    # Four threads for one core: four times what it takes to get it when one is at work.
    crowded = run(costs(step_s=0.01, wake_s=0.004), Settings(0), cores=1.0, neighbours=4.0)
    assert crowded.steady_step_s == pytest.approx(0.026)
    assert crowded.step_wait_s == pytest.approx(0.016)


def test_time_without_a_core_is_told_of_makers_and_of_steps() -> None:
    # One core, and a thread of another program that takes half of it.
    half: dict[str, Any] = {"cores": 1.0, "neighbours": 1.0}
    assert run(costs(step_cpu_s=0.01, step_s=0.005), Settings(0), **half).step_wait_s == pytest.approx(0.01)
    assert run(costs(fetch_cpu_s=0.01, fetch_s=0.005), Settings(1), **half).core_wait_share == pytest.approx(0.5)
    alone = run(costs(0.005, 0.002, fetch_cpu_s=0.01, step_cpu_s=0.01), Settings(1), cores=2.0)
    assert (alone.core_wait_share, alone.step_wait_s) == pytest.approx((0, 0))


@pytest.mark.parametrize("pin", [False, True])
@pytest.mark.parametrize(("held_s", "waits_s"), [(0.005, 0.005), (0.05, 0.02)])
def test_receiving_waits_for_the_lock_of_a_worker_that_computes_its_next_batch(
    pin: bool, held_s: float, waits_s: float
) -> None:
    # Never longer than until that batch is made; nobody computes while the last one is received.
    seen = run(costs(fetch_cpu_s=0.02, held_s=held_s), Settings(1, 3, pin_memory=pin), 100)
    assert seen.held_s == pytest.approx(waits_s * 99 / 100)
    assert run(costs(0.02, held_s=held_s), Settings(1, 3, pin_memory=pin), 100).held_s == 0


def test_steady_state_is_the_same_however_long_the_replay() -> None:
    # Eight workers with eight batches each, of which the last ones are made while the loop steps on alone.
    of, how = costs(fetch_cpu_s=0.01, step_cpu_s=0.005), Settings(8, 8)
    short, long = (run(of, how, batches=number, cores=2.0) for number in (3 * 64, 20 * 64))
    assert short.steady_step_s == pytest.approx(long.steady_step_s, rel=0.02)


def test_a_worker_may_keep_its_core_beside_a_step_of_several_threads() -> None:
    # The worker is always at work, and two threads of the step are on the other of two cores.
    of = costs(fetch_cpu_s=0.02, step_cpu_s=0.004, step_threads=2.0)
    even, kept, in_turns = (
        run(dataclasses.replace(of, favour=favour, lockstep=lockstep), Settings(1), cores=2.0)
        for favour, lockstep in ((0.0, 1.0), (1.0, 1.0), (1.0, 0.0))
    )
    assert even.step_wait_s == pytest.approx(0.005, rel=0.01)
    assert even.steady_step_s == pytest.approx(0.02 + 0.004 / (2 / 3) ** 2 / 3, rel=0.01)
    assert (kept.steady_step_s, kept.core_wait_share) == pytest.approx((0.02, 0), rel=0.01)
    assert (kept.step_wait_s, in_turns.step_wait_s) == pytest.approx((0.012, 0.004), rel=0.01)
    # Or the step comes first, and the worker has next to nothing while that lasts.
    first = run(dataclasses.replace(of, favour=-1.0), Settings(1), cores=2.0)
    assert (first.step_wait_s, first.steady_step_s) == pytest.approx((0, 0.024), rel=0.01, abs=1e-4)
    # Four threads divide evenly: nobody is better off.
    assert run(dataclasses.replace(of, favour=1.0), Settings(2), cores=2.0) == run(of, Settings(2), cores=2.0)


def test_a_step_of_many_threads_needs_its_cores_at_once() -> None:
    alone = run(costs(step_cpu_s=0.01, step_threads=4.0), Settings(1), cores=4)
    assert alone.steady_step_s == pytest.approx(0.01)
    beside = costs(fetch_cpu_s=0.01, step_cpu_s=0.01)
    wide = dataclasses.replace(beside, step_threads=4.0)
    # Five threads for four cores; between barriers all four of the step must be on one at once.
    shared = run(costs(step_cpu_s=0.01, step_threads=4.0), Settings(0), cores=4, neighbours=1.0)
    assert shared.steady_step_s == pytest.approx(0.01 / 0.8**4)
    # More threads than cores keep no more than these busy.
    assert run(costs(step_cpu_s=0.01, step_threads=16.0), Settings(0), cores=4).steady_step_s == pytest.approx(0.01)
    assert run(wide, Settings(2), cores=4).steady_step_s > 1.3 * run(beside, Settings(2), cores=4).steady_step_s


def test_without_workers_the_loop_makes_and_steps() -> None:
    fetch, step = np.array([0.01, 0.03, 0.02]), np.array([0.005, 0.004])
    seen = run(costs(fetch, step, fetch_cpu_s=0.001, receive_cpu_s=0.002, send_cpu_s=1.0), Settings(0), 6)
    # Nothing is sent or received; drawing indices is left of the receiving.
    assert seen.total_s == pytest.approx(2 * fetch.sum() + 3 * step.sum() + 6 * (0.001 + 0.002))
    assert seen.first_batch_s == pytest.approx(0.013)
    assert seen.worker_busy_share == 0


def test_steady_state_without_workers_leaves_out_a_batch_at_either_end() -> None:
    slow_ends = costs(np.array([0.5, 0.01, 0.01, 0.01, 0.9]), 0.002)
    assert run(slow_ends, Settings(0), 5).steady_step_s == pytest.approx(0.012)
    # Of two batches the second counts, of one all there is.
    assert run(slow_ends, Settings(0), 2).steady_step_s == pytest.approx(0.012)
    assert run(slow_ends, Settings(0), 1).wait_s == pytest.approx(0.5)


def test_a_slow_batch_holds_up_those_behind_it_only_in_order() -> None:
    slow = costs(np.where(np.arange(100) % 10 == 5, 0.06, 0.01), 0.003)
    in_order, any_order = (run(slow, Settings(4, 2, in_order=order)) for order in (True, False))
    assert in_order.steady_step_s > 1.15 * any_order.steady_step_s
    assert any_order.steady_step_s == pytest.approx(0.015 / 4, rel=0.1)
    assert in_order.parked > 0.5
    assert any_order.parked == 0
    assert in_order.held_s == 0


@pytest.mark.parametrize(("in_order", "total_s", "parked"), [(True, 1.4, 1.3 / 1.4), (False, 1.1, 0.0)])
def test_batches_in_any_order_go_to_whoever_has_room(in_order: bool, total_s: float, parked: float) -> None:
    # The first worker spends a second on its first batch and has one more; in any order the other makes all the rest, in
    # order it has two to make meanwhile, and from then on is one batch ahead of what the loop waits for.
    of = costs(np.array([1.0] + [0.1] * 9))
    seen = run(of, Settings(2, 2, in_order=in_order), 10)
    assert seen.total_s == pytest.approx(total_s)
    assert seen.parked == pytest.approx(parked)


def test_prefetching_rides_out_slow_batches() -> None:
    slow = costs(np.where(np.arange(100) % 10 == 5, 0.06, 0.01), 0.008)
    assert run(slow, Settings(4, 8)).wait_s < 0.5 * run(slow, Settings(4, 1)).wait_s


def test_reads_beyond_the_slots_wait_their_turn() -> None:
    assert run(costs(0.01, io_slots=2), Settings(8)).steady_step_s == pytest.approx(0.005, rel=0.03)
    assert run(costs(0.01, io_slots=8), Settings(2)).steady_step_s == pytest.approx(0.005, rel=0.03)


def test_workers_start_again_each_epoch_unless_they_persist() -> None:
    of = costs(0.01, 0.01, worker_start_s=0.01, worker_boot_s=0.03, worker_stop_s=0.01)
    once = run(of, Settings(2, persistent_workers=True), 50, epochs=3)
    again = run(of, Settings(2), 50, epochs=3)
    # The first worker boots while the second is started.
    assert once.first_batch_s == pytest.approx(0.01 + 0.03 + 0.01)
    assert again.first_batch_s == once.first_batch_s
    assert again.steady_step_s == pytest.approx(once.steady_step_s)
    assert again.total_s - once.total_s == pytest.approx(2 * 0.04 + 3 * 0.02)


def test_the_gap_between_epochs_counts_once_less_than_epochs() -> None:
    of = costs(0.01, 0.01)
    gap = dataclasses.replace(of, epoch_gap_s=0.5)
    how = Settings(2, persistent_workers=True)
    assert run(gap, how, 9, epochs=3).total_s == pytest.approx(run(of, how, 9, epochs=3).total_s + 1.0)


def test_later_epochs_hold_no_first_start_of_workers_that_are_kept() -> None:
    of = dataclasses.replace(
        costs(0.002, 0.01), worker_start_s=0.1, worker_boot_s=0.5, worker_stop_s=0.1, epoch_gap_s=0.05
    )
    kept, anew = (run(of, Settings(2, persistent_workers=each), 9, epochs=4) for each in (True, False))
    assert kept.later_epoch_s == pytest.approx(9 * 0.01 + 0.05 + 0.002, rel=0.1)
    assert anew.later_epoch_s == pytest.approx(9 * 0.01 + 0.05 + 0.002 + 2 * 0.1 + 0.5 + 0.2, rel=0.1)
    assert (
        kept.first_round_s
        == pytest.approx(anew.first_round_s)
        == pytest.approx(2 * 0.1 + 0.5 + 0.002 + 2 * 0.01, rel=0.1)
    )
    assert run(of, Settings(2), 9, epochs=1).later_epoch_s is None


def test_the_pin_thread_receives_beside_the_step() -> None:
    of = costs(0.001, 0.004, receive_cpu_s=0.003, pin_cpu_s=0.002)
    assert run(of, Settings(2)).steady_step_s == pytest.approx(0.007, rel=0.02)
    assert run(of, Settings(2, pin_memory=True)).steady_step_s == pytest.approx(0.005, rel=0.02)


@pytest.mark.parametrize(
    ("sync_every", "sync_at", "step_s"),
    [(None, "end", 0.013), (1, "end", 0.022), (2, "end", 0.0175), (1, "start", 0.013)],
)
def test_a_device_runs_behind_until_the_loop_syncs(sync_every: int | None, sync_at: Any, step_s: float) -> None:
    device: dict[str, Any] = {"device_step_s": np.array([0.01]), "sync_every": sync_every, "sync_at": sync_at}
    loading = run(costs(0.012, step_cpu_s=0.001, **device), Settings(0), 100)
    assert loading.steady_step_s == pytest.approx(step_s, rel=0.02)
    loaded = run(costs(0.001, step_cpu_s=0.001, **device), Settings(2), 100)
    assert loaded.steady_step_s == pytest.approx(0.01, rel=0.02)


def test_a_loop_that_waits_for_the_device_before_each_step_cannot_ride_out_a_slow_batch() -> None:
    # Nine batches of 5 ms and one of 45 for a device that takes 10. A loop that runs ahead has taken many by then; one that
    # waits has taken one, 9 ms before the device is done with it, so that 26 of the 45 ms are left for the device to wait.
    slow = np.array([0.005] * 9 + [0.045])
    device: dict[str, Any] = {"device_step_s": np.array([0.01]), "sync_at": "start"}
    ahead, waits = (
        run(costs(slow, step_cpu_s=0.001, sync_every=every, **device), Settings(1, 1), 202) for every in (None, 1)
    )
    assert ahead.steady_step_s == pytest.approx(0.01, rel=0.01)
    assert waits.steady_step_s == pytest.approx(0.0126)
    assert waits.device_idle_s == pytest.approx(0.0026)


def test_the_device_idles_only_where_the_loop_is_late() -> None:
    keeps_up = run(costs(0.001, step_cpu_s=0.001, device_step_s=np.array([0.01])), Settings(2))
    starves = run(costs(0.04, step_cpu_s=0.001, device_step_s=np.array([0.01])), Settings(2))
    assert keeps_up.device_idle_s == pytest.approx(0, abs=1e-4)
    assert starves.device_idle_s == pytest.approx(0.01, rel=0.1)


def test_a_seed_draws_the_same_costs_in_another_order() -> None:
    of = costs(np.random.default_rng(0).gamma(2, 0.01, 300), 0.001)
    seen = run(of, Settings(2), 1000).steady_step_s
    drawn = [run(of, Settings(2), 1000, seed=seed).steady_step_s for seed in range(1, 6)]
    assert len(set(drawn)) == 5
    assert np.mean(drawn) == pytest.approx(seen, rel=0.1)


@pytest.mark.parametrize(("stretch", "low", "high"), [(1, 0.7, 1.4), (8, 1.7, 3.2)])
def test_draws_differ_by_as_much_as_runs_would(stretch: int, low: float, high: float) -> None:
    # The sum of 512 costs varies by their deviation times the root of 512, and by up to the root of 8 more where they come
    # in stretches of 8 alike: blocks of as many keep what comes together.
    seen = np.repeat(np.random.default_rng(0).gamma(2, 0.01, 512 // stretch), stretch)
    of = costs(seen)
    totals = [run(of, Settings(0), 512, seed=seed).total_s for seed in range(1, 41)]
    assert np.mean(totals) == pytest.approx(seen.sum(), rel=0.05)
    assert low < np.std(totals) / (seen.std() * 512**0.5) < high


def test_what_makes_no_sense_is_refused() -> None:
    good = costs(0.01, 0.01)
    for bad in (
        dataclasses.replace(good, fetch_cpu_s=np.array([])),
        dataclasses.replace(good, step_cpu_s=np.zeros(3)),
        dataclasses.replace(good, io_slots=0),
    ):
        with pytest.raises(ValueError, match=r"costs|io_slots"):
            run(bad, Settings(2))
    with pytest.raises(ValueError, match="no such loader"):
        run(good, Settings(2, 0))
    with pytest.raises(ValueError, match="cannot replay"):
        run(good, Settings(2), 0)


def test_one_replay_takes_milliseconds() -> None:
    rng = np.random.default_rng(0)
    of = costs(rng.gamma(4, 0.01, 200), 0.005, fetch_cpu_s=rng.gamma(4, 0.01, 200), step_cpu_s=0.005)
    took = []
    for _ in range(5):
        begun = time.perf_counter()
        run(of, Settings(8), cores=2)
        took.append(time.perf_counter() - begun)
    # Measured 2-5 ms; a factor for a busy machine.
    assert min(took) < 0.03


BATCHES, EPOCHS, STEP_S, FETCH_S = 30, 2, 0.008, 0.024


class Sleeper:
    """A dataset whose only cost is sleep: one sample is one batch. It notes when each sleep began and how long it took."""

    def __init__(self, sleeps_s: list[float]) -> None:
        self.sleeps_s = sleeps_s
        # Shared with forked workers. A row an epoch: a sleep takes longer than it was asked to on a busy machine.
        shape = (EPOCHS, len(sleeps_s))
        self.began, self.took = (np.frombuffer(mmap.mmap(-1, 8 * EPOCHS * len(sleeps_s))).reshape(shape) for _ in "12")

    def __len__(self) -> int:
        return len(self.sleeps_s)

    def __getitem__(self, index: int) -> int:
        begun = time.perf_counter()
        time.sleep(self.sleeps_s[index])
        epoch = np.count_nonzero(self.took[:, index])
        self.began[epoch, index], self.took[epoch, index] = begun, time.perf_counter() - begun
        return index


@dataclasses.dataclass(frozen=True)
class Real:
    """What a real run took, in seconds: fetches by sampler order, steps in the order taken, all epochs in a row."""

    total_s: float
    steady_step_s: float
    start_s: float
    stop_s: float
    boot_s: float
    fetch_s: Any
    step_s: Any


def real(sleeps_s: list[float], how: Settings) -> Real:
    """Run a real DataLoader over sleeps; the medians are over its epochs."""
    from torch.utils.data import DataLoader

    keywords: dict[str, Any] = {"prefetch_factor": how.prefetch_factor} if how.num_workers else {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*worker processes in total.*")
        sleeper = Sleeper(sleeps_s)
        loader: DataLoader[int] = DataLoader(
            sleeper,  # type: ignore[arg-type]
            num_workers=how.num_workers,
            in_order=how.in_order,
            persistent_workers=how.persistent_workers,
            multiprocessing_context="fork" if how.num_workers else None,
            **keywords,
        )
        begun = time.perf_counter()
        epochs = [one_epoch(loader, how) for _ in range(EPOCHS)]
        total_s = time.perf_counter() - begun
    # The first worker boots while the others are started.
    forked_s = begun + epochs[0].start_s / max(1, how.num_workers)
    return Real(
        total_s,
        *np.median([(each.steady_step_s, each.start_s, each.stop_s) for each in epochs], axis=0),
        boot_s=max(0.0, float(sleeper.began[0].min()) - forked_s),
        fetch_s=sleeper.took.ravel(),
        step_s=np.concatenate([each.steps_s for each in epochs]),
    )


class EpochTimes(NamedTuple):
    """What an epoch took, in seconds, with the replay's definition of steady."""

    steady_step_s: float
    start_s: float
    stop_s: float
    steps_s: list[float]


def one_epoch(loader: Any, how: Settings) -> EpochTimes:
    begun = time.perf_counter()
    batches = iter(loader)
    start_s = time.perf_counter() - begun
    ends, steps_s = [], []
    while next(batches, None) is not None:
        taken = time.perf_counter()
        time.sleep(STEP_S)
        ends.append(time.perf_counter())
        steps_s.append(ends[-1] - taken)
    stop_s = time.perf_counter() - ends[-1]
    skip = how.num_workers * how.prefetch_factor or 1
    return EpochTimes((ends[-1] - ends[skip - 1]) / (len(ends) - skip), start_s, stop_s, steps_s)


def assert_replayed(sleeps_s: list[float], how: Settings, within: float = 0.15) -> None:
    """The replay must come near the real run, given what its sleeps took; again where the hand-overs were disturbed."""
    for _ in range(3):
        seen = real(sleeps_s, how)
        workers = max(1, how.num_workers)
        # What torch spends on an empty batch: about 0.3 ms on either side.
        of = costs(
            seen.fetch_s + 0.0003,
            seen.step_s + 0.0002,
            receive_cpu_s=0.0006,
            worker_start_s=seen.start_s / workers,
            worker_boot_s=seen.boot_s,
            worker_stop_s=seen.stop_s / workers,
        )
        predicted = replay(of, how, cores=AMPLE_CORES, batches_per_epoch=len(sleeps_s), epochs=EPOCHS)
        errors = (
            predicted.steady_step_s / seen.steady_step_s - 1,
            predicted.total_s / seen.total_s - 1,
        )
        if max(map(abs, errors)) < within:
            return
    raise AssertionError(f"{how}: steady and total are off by {errors}, three times over")


@pytest.mark.parametrize("workers", [0, 2, *(pytest.param(count, marks=pytest.mark.slow) for count in (1, 4))])
def test_real_loaders_follow_the_replay(workers: int) -> None:
    assert_replayed([FETCH_S] * BATCHES, Settings(workers))


@pytest.mark.parametrize("in_order", [True, False])
def test_real_slow_batches_follow_the_replay(in_order: bool) -> None:
    sleeps_s = [0.09 if index % 10 == 5 else 0.015 for index in range(40)]
    assert_replayed(sleeps_s, Settings(3, 2, in_order=in_order))


def test_real_persistent_workers_follow_the_replay() -> None:
    assert_replayed([FETCH_S] * BATCHES, Settings(2, 2, persistent_workers=True), within=0.2)
