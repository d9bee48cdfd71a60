"""Loops found in hand-made recordings: every wait and step is known, and so is what belongs to whom."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from made import Made, Plan, one_loop

from loaderprof.analyze.loop import Loop
from loaderprof.analyze.timeline import build
from loaderprof.recording import journal as layout

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


seconds = st.integers(0, 4000).map(lambda each: each / 1000)
PASSES = st.lists(
    st.tuples(st.lists(st.tuples(seconds, seconds), min_size=1, max_size=4), st.booleans(), seconds, seconds, seconds),
    min_size=1,
    max_size=4,
)


@given(passes=PASSES, kept=st.booleans())
@hypothesis_settings(max_examples=60, deadline=None)
def test_any_epochs_come_back_as_they_went(
    tmp_path_factory: pytest.TempPathFactory, passes: list[Any], kept: bool
) -> None:
    """Epochs of any length, gone through to the end or left early, on workers that are kept or anew."""
    made = Made(tmp_path_factory.mktemp("any") / "r")
    process, number, now = made.process(), None, 1.0
    waits, steps, epochs, spent = [], [], [], 0.0
    for batches, left, startup, shutdown, gap in passes:
        begun, ready = now, now + startup
        number = process.iterator(TRAIN, begun, ready, number=number if kept else None, index=startup / 2)
        now = ready
        for wait, step in batches:
            process.take(number, now, now + wait)
            now += wait + step
        waits += [wait for wait, _ in batches]
        # The step that a loop is left in has no end.
        steps += [step for _, step in batches[:-1]] + [np.nan if left else batches[-1][1]]
        if not left:
            process.end(number, now, now + shutdown)
            now += shutdown
        spent += startup + (0 if left else shutdown)
        epochs.append(
            (begun, ready, None if left else now, 0 if left else shutdown, len(batches), startup + batches[0][0])
        )
        now += gap + 0.001
    (loop,) = build(made.read()).loops
    if all(len(batches) == 1 for batches, *_ in passes):
        # `next(iter(loader))`: there the step lasts until the next iterator is made.
        following = [each[0] for each in epochs[1:]] + [np.nan]
        steps = [
            after - begun - first if left else step
            for step, after, (begun, *_, first), (_, left, *_) in zip(steps, following, epochs, passes, strict=True)
        ]
    assert loop.wait.tolist() == pytest.approx(waits)
    assert loop.step.tolist() == pytest.approx(steps, nan_ok=True)
    message = [
        (each.begun, each.ready, each.ended, each.shutdown_s, each.batches, each.first_batch_s) for each in loop.epochs
    ]
    assert message == [pytest.approx(each) for each in epochs]
    assert [each.index_s for each in loop.epochs] == pytest.approx([startup / 2 for _, _, startup, *_ in passes])
    assert [each.restarted for each in loop.epochs] == [False] + [kept] * (len(passes) - 1)
    pairs = [(epoch, place) for epoch, (batches, *_) in enumerate(passes) for place in range(len(batches))]
    assert list(zip(loop.epoch.tolist(), loop.position.tolist(), strict=True)) == pairs
    assert loop.span_s == pytest.approx(spent + sum(waits) + np.nansum(steps))


def test_one_batch_of_each_iterator_is_stepped_on_until_the_next_is_made(made: Made) -> None:
    process = made.process()
    for batch in range(4):
        number = process.iterator(TRAIN, 10 * batch, 10 * batch + 1, anew=batch % 2 == 0)
        process.take(number, 10 * batch + 1, 10 * batch + 3)
    loop = loops(made)["train"]
    assert loop.step[:3].tolist() == [7] * 3
    assert np.isnan(loop.step[3])
    assert [(epoch.anew, epoch.restarted) for epoch in loop.epochs] == [(True, False), (False, False)] * 2


@pytest.mark.parametrize(
    ("main_thread", "own", "others", "while_waiting", "background"),
    [
        # Waits of 1 s and steps of 2, each with so much CPU of the loop's thread and of the process's others.
        (1, 0.5, 0.0, 0.06, True),
        (1, 0.5, 0.0, 0.04, False),
        # Threads of one interpreter take turns: others compute in the step while this thread rests.
        (1, 0.5, 0.5, 0.0, True),
        (1, 1.5, 0.5, 0.0, False),
        (1, 0.5, 0.05, 0.0, False),
        # The main thread itself, and a process that did not say which it is.
        (None, 0.5, 0.5, 0.06, False),
        ("this", 0.5, 0.5, 0.06, False),
    ],
)
def test_a_thread_beside_the_training_is_told_by_who_computes_while_it_waits_or_rests(
    made: Made, main_thread: Any, own: float, others: float, while_waiting: float, background: bool
) -> None:
    this = threading.get_ident() & 0xFFFFFFFF
    process = made.process(main_thread=this if main_thread == "this" else main_thread)
    number = process.iterator(TRAIN, 0, 0)
    for batch in range(4):
        elsewhere = batch * (others + while_waiting)
        process.take(
            number,
            3 * batch,
            3 * batch + 1,
            cpu_asked=batch * own,
            cpu_taken=batch * own,
            others_asked=elsewhere,
            others_taken=elsewhere + while_waiting,
        )
    loop = loops(made)["train"]
    assert loop.background == background
    assert loop.step_cpu[:3].tolist() == pytest.approx([own] * 3)
    assert loop.step_process_cpu[:3].tolist() == pytest.approx([own + others] * 3)


def test_a_steps_wait_for_a_core_lies_between_two_takes(made: Made) -> None:
    process = made.process()
    number = process.iterator(TRAIN, 0, 0)
    for batch, runq in enumerate((1.0, 3.0, 6.0)):
        process.take(number, batch, batch, runq=runq)
    loop = loops(made)["train"]
    assert loop.step_runq.tolist() == pytest.approx([2, 3, np.nan], nan_ok=True)


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
    )
    (loop,) = build(one_loop(tmp_path / "r", plan)).loops
    assert loop.num_workers == 2
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


@pytest.mark.parametrize(
    ("plan", "steady"),
    [
        # Each epoch's first batches, one a worker, are its start; the job's first two are its warm-up.
        (Plan(epochs=2, batches=20, workers=2), [False] * 2 + [True] * 18 + [False] * 2 + [True] * 18),
        (Plan(epochs=1, batches=20, workers=0), [False] * 2 + [True] * 18),
        (Plan(epochs=2, batches=3, workers=0), [False, True, True] * 2),
        # Epochs too short for that lose only their first batch.
        (Plan(epochs=2, batches=8, workers=4), [False] * 2 + [True] * 6 + [False] + [True] * 7),
        (Plan(epochs=2, batches=12, workers=2), [False] * 2 + [True] * 10 + [False] + [True] * 11),
        (Plan(epochs=2, batches=13, workers=2), ([False] * 2 + [True] * 11) * 2),
        # Eight are too few to give up two of them.
        (Plan(epochs=1, batches=9, workers=0), [False] + [True] * 8),
        (Plan(epochs=1, batches=10, workers=0), [False] * 2 + [True] * 8),
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
