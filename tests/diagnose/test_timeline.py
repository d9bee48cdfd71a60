"""Loops found in hand-made recordings: every wait and step is known, and so is what belongs to whom."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made import Fetch, Made, Plan, one_loop

from loaderprof import journal as layout
from loaderprof.diagnose.timeline import Loop, build

TRAIN: dict[str, Any] = {"name": "train", "num_workers": 0}
VALID: dict[str, Any] = {"name": "valid", "num_workers": 0}


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path / "r")


def loops(made: Made) -> dict[str, Loop]:
    return {loop.name: loop for loop in build(made.read()).loops}


def covered(loop: Loop) -> float:
    """What a loop's parts add up to."""
    starts = sum(epoch.ready - epoch.begun for epoch in loop.epochs)
    return float(starts + loop.wait.sum() + loop.step.sum() + sum(epoch.shutdown_s for epoch in loop.epochs))


def test_waits_and_steps_are_those_of_the_loop(tmp_path: Path) -> None:
    waits, steps = [0.5, 0.02, 0.0, 0.3], [0.01, 0.2, 0.03, 0.4]
    plan = Plan(name="train", batches=4, wait=lambda i: waits[i], step=lambda i: steps[i], startup=0.25, shutdown=0.125)
    timeline = build(one_loop(tmp_path / "r", plan))
    (loop,) = timeline.loops
    assert loop.name == "train"
    assert loop.wait.tolist() == pytest.approx(waits)
    assert loop.step.tolist() == pytest.approx(steps)
    assert loop.asked.tolist() == pytest.approx([0.25, 0.76, 0.98, 1.01])
    # All of a step is the thread's CPU here, and the process has no other.
    assert loop.step_cpu.tolist() == pytest.approx(steps)
    assert loop.step_process_cpu.tolist() == pytest.approx(steps)
    assert loop.position.tolist() == [0, 1, 2, 3]
    assert loop.batches == 4
    (epoch,) = loop.epochs
    assert (epoch.begun, epoch.ready, epoch.ended) == pytest.approx((0, 0.25, 1.835))
    assert (epoch.shutdown_s, epoch.first_batch_s, epoch.batches) == pytest.approx((0.125, 0.75, 4))
    assert loop.span_s == pytest.approx(covered(loop)) == pytest.approx(timeline.duration_s)


@pytest.mark.parametrize(("epochs", "pace_s"), [(1, 0.02), (5, (1.0 + 0.5 + 10 * 0.02) / 10)])
def test_the_pace_holds_the_borders_of_later_epochs(tmp_path: Path, epochs: int, pace_s: float) -> None:
    plan = Plan(epochs=epochs, batches=10, wait=0.01, step=0.01, startup=1.0, shutdown=0.5)
    (loop,) = build(one_loop(tmp_path / "r", plan)).loops
    assert loop.pace_s == pytest.approx(pace_s)


def test_the_pace_of_a_run_that_ends_in_its_second_epoch_holds_both_starts(made: Made) -> None:
    process = made.process()
    for begun, batches in ((0.0, 10), (3.0, 4)):
        number = process.iterator(TRAIN, begun, begun + 1.0)
        for batch in range(batches):
            process.take(number, begun + 1 + batch * 0.1, begun + 1.05 + batch * 0.1)
        if batches == 10:
            process.end(number, begun + 2.0, begun + 2.0)
    # 2 s, then 1 s of starting and four steps of 0.1 s.
    assert loops(made)["train"].pace_s == pytest.approx(3.4 / 14)


def test_the_step_that_a_loop_left_by_a_break_has_no_end(made: Made) -> None:
    process = made.process()
    number = process.iterator(TRAIN, 0, 0)
    for batch in range(3):
        process.take(number, batch, batch + 0.5)
    loop = loops(made)["train"]
    assert loop.step[:2].tolist() == [0.5, 0.5]
    assert np.isnan(loop.step[2])
    assert loop.epochs[0].ended is None
    assert loop.epochs[0].shutdown_s == 0


def test_a_break_out_of_workers_that_are_kept_does_not_last_until_the_next_epoch_ends(made: Made) -> None:
    process = made.process()
    facts = {"name": "train", "num_workers": 2, "persistent_workers": True}
    number = process.iterator(facts, 0, 0)
    process.take(number, 0, 1)
    process.take(number, 2, 3)
    process.iterator(facts, 10, 11, number=number)
    process.take(number, 11, 12)
    process.end(number, 14, 15)
    loop = loops(made)["train"]
    assert loop.step[[0, 2]].tolist() == [1, 2]
    assert np.isnan(loop.step[1])
    assert [epoch.ended for epoch in loop.epochs] == [None, 15]
    assert [epoch.shutdown_s for epoch in loop.epochs] == [0, 1]
    assert loop.epoch.tolist() == [0, 0, 1]
    assert loop.position.tolist() == [0, 1, 0]


def test_epochs_on_kept_workers_are_told_apart(tmp_path: Path) -> None:
    plan = Plan(
        epochs=3, batches=5, wait=0.01, step=0.02, startup=0.5, gap=1.0, workers=2, persistent=True, epoch_index=0.125
    )  # fmt: skip
    (loop,) = build(one_loop(tmp_path / "r", plan)).loops
    assert [epoch.restarted for epoch in loop.epochs] == [False, True, True]
    assert [epoch.batches for epoch in loop.epochs] == [5, 5, 5]
    assert [epoch.index_s for epoch in loop.epochs] == [0.125] * 3
    assert [epoch.begun for epoch in loop.epochs] == pytest.approx([0, 1.775, 3.55])
    assert [epoch.first_batch_s for epoch in loop.epochs] == pytest.approx([0.635] * 3)
    assert loop.epoch.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert loop.position.tolist() == list(range(5)) * 3
    assert loop.step.tolist() == pytest.approx([0.02] * 15)


def test_an_epoch_left_at_once_still_counts(made: Made) -> None:
    process = made.process()
    empty = process.iterator(TRAIN, 0, 1)
    process.end(empty, 1, 1.5)
    number = process.iterator(TRAIN, 2, 3)
    process.take(number, 3, 4)
    process.end(number, 5, 6)
    unused = process.iterator(TRAIN, 7, 8)
    assert unused == 3
    loop = loops(made)["train"]
    assert [(epoch.begun, epoch.batches) for epoch in loop.epochs] == [(0, 0), (2, 1)]
    assert np.isnan(loop.epochs[0].first_batch_s)


def test_a_validation_loop_inside_a_step_is_not_the_steps(made: Made) -> None:
    process = made.process()
    train = process.iterator(TRAIN, 0, 0)
    process.take(train, 0, 1)
    valid = process.iterator(VALID, 2, 3)
    process.take(valid, 3, 4, training=False)
    process.take(valid, 5, 6, training=False)
    process.end(valid, 7, 8)
    process.take(train, 10, 11)
    process.end(train, 12, 12)
    found = loops(made)
    assert found["train"].step.tolist() == [9 - 6, 1]
    assert found["train"].nested_s == 6
    assert found["valid"].step.tolist() == [1, 1]
    assert (found["train"].training, found["valid"].training) == (True, False)


def test_each_validation_on_kept_workers_takes_only_its_own_time(made: Made) -> None:
    process = made.process()
    train = process.iterator(TRAIN, 0, 0)
    valid = None
    for step in range(3):
        begun = 10.0 * step
        process.take(train, begun, begun + 1)
        valid = process.iterator({**VALID, "num_workers": 1}, begun + 2, begun + 3, number=valid)
        process.take(valid, begun + 3, begun + 4, training=False)
        process.end(valid, begun + 5, begun + 5)
    process.end(train, 30, 30)
    found = loops(made)
    # Each step lasts 9 s, of which validation takes 3.
    assert found["train"].step.tolist() == [6, 6, 6]
    assert found["valid"].step.tolist() == [1, 1, 1]


def test_loops_inside_a_loop_inside_a_step_are_subtracted_once(made: Made) -> None:
    process = made.process()
    train, valid = process.iterator(TRAIN, 0, 0), None
    process.take(train, 0, 1)
    valid = process.iterator(VALID, 2, 2)
    process.take(valid, 2, 3)
    inner = process.iterator({"name": "inner"}, 4, 4)
    process.take(inner, 4, 5)
    process.end(inner, 6, 6)
    process.take(valid, 7, 8)
    process.end(valid, 9, 9)
    process.end(train, 20, 20)
    found = loops(made)
    assert found["train"].step.tolist() == [19 - 7]
    assert found["valid"].step.tolist() == [4 - 2, 1]


def test_two_loaders_taken_in_turn_each_see_the_other_as_the_step(made: Made) -> None:
    process = made.process()
    left, right = process.iterator({"name": "left"}, 0, 1), process.iterator({"name": "right"}, 1, 2)
    for batch in range(4):
        begun = 2 + 10.0 * batch
        process.take(left, begun, begun + 1)
        process.take(right, begun + 1, begun + 4)
    process.end(left, 42, 42)
    found = loops(made)
    assert found["left"].wait.tolist() == [1] * 4
    assert found["left"].step.tolist() == [9] * 4
    assert found["right"].wait.tolist() == [3] * 4
    assert found["right"].step[:3].tolist() == [7] * 3
    assert np.isnan(found["right"].step[3])


def test_one_loader_iterated_twice_at_once_keeps_its_waits(made: Made) -> None:
    process = made.process()
    left, right = process.iterator(TRAIN, 0, 1), process.iterator(TRAIN, 1, 2)
    for batch in range(4):
        begun = 2 + 10.0 * batch
        process.take(left, begun, begun + 1)
        process.take(right, begun + 1, begun + 4)
    process.end(left, 42, 42)
    process.end(right, 42, 42)
    loop = loops(made)["train"]
    assert sorted(loop.wait.tolist()) == [1] * 4 + [3] * 4
    assert loop.position.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    # Between the two takes of a pair there is nothing, after them six seconds.
    assert np.nansum(loop.step) == pytest.approx(6 * 4)


def test_records_of_many_batches_stand_for_each_of_them(made: Made) -> None:
    process = made.process()
    number = process.iterator(TRAIN, 0, 0)
    for batch in range(4):
        process.take(number, batch, batch + 0.25)
    for group in range(2):
        begun = 4 + 64.0 * group
        process.take(number, begun, begun + 63.5, count=64, wait=16.0)
    process.end(number, 132, 132)
    loop = loops(made)["train"]
    assert loop.batches == 132
    assert loop.wait.sum() == pytest.approx(132 * 0.25)
    assert loop.step.sum() == pytest.approx(132 * 0.75)
    loop.steady[:] = True
    assert loop.mean(loop.wait) == pytest.approx(0.25)
    assert loop.mean(loop.step) == pytest.approx(0.75)
    assert loop.epochs[0].batches == 132


def test_a_record_of_many_batches_tells_the_cpu_at_its_beginning_and_the_mean_of_the_rest(made: Made) -> None:
    process = made.process()
    number = process.iterator(TRAIN, 0, 0)
    process.take(number, 0, 1, cpu_asked=100, cpu_taken=100.5, index=0.25, receive=0.125)
    process.take(number, 2, 29.5, count=14, wait=16.0, cpu_asked=101.25, cpu_taken=110)
    process.take(number, 30, 31, cpu_asked=111, cpu_taken=111.5, index=0.75, receive=0.375)
    process.end(number, 32, 32, cpu=112)
    loop = loops(made)["train"]
    assert loop.step_cpu[0] == pytest.approx(0.75)
    assert np.isnan(loop.step_cpu[1])
    loop.steady[:] = True
    assert (loop.mean(loop.index), loop.mean(loop.receive)) == pytest.approx((0.5, 0.25))
    assert loop.index[1] == pytest.approx(14 * 0.5)


def test_the_cpu_of_a_step_before_a_record_of_many_of_an_earlier_version_is_not_known(made: Made) -> None:
    process = made.process()
    number = process.iterator(TRAIN, 0, 0)
    process.take(number, 0, 1, cpu_asked=100, cpu_taken=100.5)
    process.take(number, 2, 3, cpu_asked=101.25, cpu_taken=101.5)
    process.take(number, 4, 67.5, count=64, wait=16.0, cpu_taken=120)
    process.end(number, 68, 68, cpu=121)
    loop = loops(made)["train"]
    assert loop.step_cpu[0] == pytest.approx(0.75)
    assert np.isnan(loop.step_cpu[1:]).all()
    assert np.isnan(loop.step_process_cpu[1:]).all()


def test_workers_belong_to_the_loader_that_started_them(made: Made) -> None:
    main, other = made.process(), made.process()
    plans = [Plan(name=name, batches=6, workers=2, step=0.01, fetch=Fetch(cpu=cpu)) for name, cpu in
             (("train", 0.001), ("valid", 0.002))]  # fmt: skip
    ended = made.loop(main, plans[0])
    made.loop(main, plans[1], ended)
    made.loop(other, Plan(name="other", batches=6, workers=1, step=0.01, fetch=Fetch(cpu=0.003)))
    stray = made.process(worker=0, ppid=main.pid)
    stray.fetch(0, 0, 0.0, Fetch(cpu=0.5))
    found = loops(made)
    assert {name: loop.made.wall.tolist() for name, loop in found.items()} == {
        "train": pytest.approx([0.001] * 6), "valid": pytest.approx([0.002] * 6), "other": pytest.approx([0.003] * 6),
    }  # fmt: skip
    assert set(found["train"].made.worker.tolist()) == {0, 1}
    assert not set(found["train"].made.pid.tolist()) & set(found["valid"].made.pid.tolist())


def test_a_worker_of_another_host_with_the_same_pid_is_another_loops(made: Made) -> None:
    main = made.process()
    number = main.iterator({**TRAIN, "num_workers": 1}, 0, 0, workers=[500])
    main.take(number, 0, 1)
    made.process(worker=0, pid=500).fetch(0, 0, 0.0, Fetch(cpu=0.25))
    (made.folder / "journals" / "here-500-1.lpj").rename(made.folder / "journals" / "here-500-2.lpj")
    made.process(worker=0, pid=500, host="there").fetch(0, 0, 0.0, Fetch(cpu=0.5))
    assert loops(made)["train"].made.wall.tolist() == [0.25]


def test_batches_made_in_the_main_process_belong_to_the_loop_that_waited_for_them(made: Made) -> None:
    process = made.process()
    train, valid = process.iterator(TRAIN, 0, 0), process.iterator(VALID, 0, 0)
    for batch in range(5):
        process.fetch(-1, batch, 10.0 * batch, Fetch(cpu=0.5))
        process.take(train, 10.0 * batch, 10.0 * batch + 1)
        process.fetch(-1, batch, 10.0 * batch + 5, Fetch(cpu=0.75))
        process.take(valid, 10.0 * batch + 5, 10.0 * batch + 6)
    found = loops(made)
    assert found["train"].made.wall.tolist() == [0.5] * 5
    assert found["valid"].made.wall.tolist() == [0.75] * 5


def test_the_time_of_a_made_batch_is_split_without_a_rest(tmp_path: Path) -> None:
    fetch = Fetch(cpu=0.25, blocked=0.125, runq=0.0625, collate=0.03125, pickle=0.5, asked_bytes=100, device_bytes=30)
    (loop,) = build(one_loop(tmp_path / "r", Plan(batches=6, workers=1, step=1, fetch=fetch))).loops
    made = loop.made
    assert made.wall.tolist() == pytest.approx((made.cpu + made.runq + made.blocked).tolist())
    assert (made.cpu[1], made.blocked[1], made.runq[1], made.collate[1]) == pytest.approx(
        (0.25, 0.125, 0.0625, 0.03125)
    )
    assert made.pickle_cpu.tolist() == pytest.approx([0.5] * 6)
    assert (made.asked_bytes[2], made.device_bytes[2]) == pytest.approx((100, 30))
    # The single worker makes one after the other, as the loop takes one a second.
    assert made.begun.tolist() == pytest.approx([0, 1, 2, 3, 4, 5])
    assert (made.done - made.begun).tolist() == pytest.approx(made.wall.tolist())
    assert made.put.tolist() == pytest.approx(made.done.tolist())
    assert made.warm.tolist() == [False] + [True] * 5
    assert made.task.tolist() == list(range(6))


def record_of_several(made: Made, count: int, threads_cpu_ns: int) -> Any:
    """Batches that took 10 ms together, the last of them 4, and 5 ms of CPU."""
    main = made.process()
    number = main.iterator({**TRAIN, "num_workers": 1}, 0, 0, workers=[500])
    main.take(number, 0, 1)
    worker = made.process(worker=0, pid=500)
    ms = 1_000_000
    worker.journal.write(
        layout.FETCH, 0, 16, 0, 3, 100 * ms, 104 * ms, 104 * ms, 5 * ms, 0, 0, 0, 0, 0, 0, 10 * ms, threads_cpu_ns, count
    )  # fmt: skip
    return loops(made)["train"].made


def test_a_record_of_several_short_batches_is_spread_over_them(made: Made) -> None:
    batches = record_of_several(made, 4, threads_cpu_ns=5_000_000)
    assert batches.wall.tolist() == pytest.approx([0.002, 0.002, 0.002, 0.004])
    assert batches.cpu.sum() == pytest.approx(0.005)
    assert batches.blocked.sum() == pytest.approx(0.005)
    # The process's other threads were looked at during the last one only.
    assert np.isfinite(batches.threads_cpu).tolist() == [False, False, False, True]
    assert batches.threads_cpu[3] == pytest.approx(0.005)


def test_a_record_of_two_batches_is_split_in_two(made: Made) -> None:
    batches = record_of_several(made, 2, threads_cpu_ns=-1)
    assert batches.wall.tolist() == pytest.approx([0.006, 0.004])
    assert not np.isfinite(batches.threads_cpu).any()


def test_batches_that_another_rank_makes_itself_are_its_own(made: Made) -> None:
    for rank in range(2):
        process = made.process(environment={"RANK": str(rank)})
        number = process.iterator(TRAIN, 0, 0)
        for batch in range(4):
            process.fetch(-1, batch, 10.0 * batch, Fetch(cpu=0.25 + 0.25 * rank))
            process.take(number, 10.0 * batch, 10.0 * batch + 1)
    found = build(made.read()).loops
    assert sorted(loop.made.wall.tolist() for loop in found) == [[0.25] * 4, [0.5] * 4]


def test_epochs_of_made_batches_are_told_apart_by_their_task_numbers(tmp_path: Path) -> None:
    plan = Plan(epochs=3, batches=4, workers=2, persistent=True, step=0.01, fetch=Fetch(cpu=0.001))
    (loop,) = build(one_loop(tmp_path / "r", plan)).loops
    pairs = sorted(zip(loop.made.epoch.tolist(), loop.made.task.tolist(), strict=True))
    assert pairs == [(epoch, task) for epoch in range(3) for task in range(4)]


@pytest.mark.parametrize(
    ("plan", "steady"),
    [
        # Each epoch's first batches, one a worker, are its start; the job's first two are its warm-up.
        (Plan(epochs=2, batches=20, workers=2), [False] * 2 + [True] * 18 + [False] * 2 + [True] * 18),
        (Plan(epochs=1, batches=20, workers=0), [False] * 2 + [True] * 18),
        (Plan(epochs=2, batches=3, workers=0), [False, True, True] * 2),
        # Epochs too short for that lose only their first batch.
        (Plan(epochs=2, batches=8, workers=4), [False] * 2 + [True] * 6 + [False] + [True] * 7),
        (Plan(epochs=1, batches=1, workers=0), [True]),
    ],
)
def test_steady_batches_lie_past_the_warm_up_and_the_borders(tmp_path: Path, plan: Plan, steady: list[bool]) -> None:
    (loop,) = build(one_loop(tmp_path / "r", plan)).loops
    assert loop.steady.tolist() == steady


def test_a_loop_of_another_thread_is_not_the_main_one_and_not_nested(made: Made) -> None:
    process = made.process()
    train = process.iterator(TRAIN, 0, 0)
    process.take(train, 0, 1)

    def beside() -> None:
        number = process.iterator({"name": "beside"}, 2, 2)
        process.take(number, 2, 3)
        process.end(number, 8, 8)

    thread = threading.Thread(target=beside)
    thread.start()
    thread.join()
    process.end(train, 10, 10)
    found = loops(made)
    assert found["train"].step.tolist() == [9]
    assert (found["train"].main_thread, found["beside"].main_thread) == (True, False)


def test_the_longest_loop_comes_first(made: Made) -> None:
    process = made.process()
    ended = made.loop(process, Plan(name="short", batches=3))
    made.loop(process, Plan(name="long", batches=30), ended)
    assert [loop.name for loop in build(made.read()).loops] == ["long", "short"]


def test_a_recording_without_batches_has_no_loops(made: Made) -> None:
    made.process().iterator(TRAIN, 0, 1)
    timeline = build(made.read())
    assert timeline.loops == []
    assert timeline.duration_s is None


def test_without_a_start_the_first_loop_is_where_time_begins(made: Made) -> None:
    del made.meta["started_ns"]
    process = made.process()
    number = process.iterator(TRAIN, 100, 101)
    process.take(number, 101, 102)
    assert loops(made)["train"].asked.tolist() == [1]


def test_queue_depth_and_the_devices_clock_are_kept(made: Made) -> None:
    process = made.process()
    number = process.iterator(TRAIN, 0, 0)
    process.take(number, 0, 1, ready=3)
    process.take(number, 2, 3, ready=-1)
    process.journal.write(layout.DEVICE, 0, 0, number, 0, 250_000_000, 750_000_000)
    process.journal.write(layout.DEVICE, 0, 0, number + 1, 0, 1, 1)
    loop = loops(made)["train"]
    assert loop.ready.tolist() == [3, -1]
    assert (loop.starved.tolist(), loop.busy.tolist()) == ([0.25], [0.75])
