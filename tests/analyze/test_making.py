"""What producers recorded, read back from hand-made recordings: which batches are whose, and what each cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made import Fetch, Made, Plan, ns, one_loop, span

from loaderprof.analyze import making
from loaderprof.analyze.loop import Loop
from loaderprof.analyze.making import of_producers
from loaderprof.analyze.timeline import build
from loaderprof.recording import journal as layout

TRAIN: dict[str, Any] = {"name": "train", "num_workers": 0}
VALID: dict[str, Any] = {"name": "valid", "num_workers": 0}


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path / "r")


def loops(made: Made) -> dict[str, Loop]:
    return {loop.name: loop for loop in build(made.read()).loops}


def test_workers_belong_to_the_loader_that_started_them(made: Made) -> None:
    main, other = made.process(), made.process()
    plans = [
        Plan(name=name, batches=6, workers=2, step=0.01, fetch=Fetch(cpu=cpu))
        for name, cpu in (("train", 0.001), ("valid", 0.002))
    ]
    ended = made.loop(main, plans[0])
    made.loop(main, plans[1], ended)
    made.loop(other, Plan(name="other", batches=6, workers=1, step=0.01, fetch=Fetch(cpu=0.003)))
    stray = made.process(worker=0, ppid=main.pid)
    stray.fetch(0, 0, 0.0, Fetch(cpu=0.5))
    found = loops(made)
    assert {name: loop.made.wall.tolist() for name, loop in found.items()} == {
        "train": pytest.approx([0.001] * 6),
        "valid": pytest.approx([0.002] * 6),
        "other": pytest.approx([0.003] * 6),
    }
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


def test_what_the_main_process_makes_outside_of_a_take_is_no_batch_of_the_loop(made: Made) -> None:
    process = made.process()
    number = process.iterator(TRAIN, 0, 2)
    process.fetch(-1, 0, 1, Fetch(cpu=0.125))
    for batch in range(3):
        begun = 10.0 * batch + 2
        process.take(number, begun, begun + 1)
        process.fetch(-1, batch, begun + 0.25, Fetch(cpu=0.5))
        process.fetch(-1, batch, begun + 5, Fetch(cpu=0.25))
    assert loops(made)["train"].made.wall.tolist() == [0.5] * 3


def test_what_makers_wrote_is_found_by_loop(made: Made) -> None:
    process = made.process()
    with_worker = process.iterator({"name": "train", "num_workers": 1}, 0, 0, workers=[500])
    process.take(with_worker, 0, 1)
    itself = [process.iterator({"name": name}, 2, 2) for name in ("valid", "test")]
    for number in itself:
        process.fetch(-1, 0, 10.0 * number, Fetch(cpu=0.5))
        process.take(number, 10.0 * number, 10.0 * number + 1)
    worker = made.process(worker=0, pid=500)
    worker.fetch(0, 0, 0.0, Fetch(cpu=0.5))
    for journal, place, iterator in (
        (process.journal, -1, itself[0]),
        (process.journal, -1, itself[1]),
        (process.journal, -1, 0),
        (worker.journal, 0, 0),
        (worker.journal, -1, 0),
    ):
        journal.write(layout.SIZE, 0, 0, place, 0, 100 * (place + 2) + iterator, 1, 1, 16, iterator)
    seen = made.read()
    sizes = {loop.name: of_producers(seen, loop, seen.tables["size"])["bytes"].tolist() for loop in build(seen).loops}
    # A row without an iterator is of an earlier version: it may be of any loop that makes its batches itself.
    assert sizes == {"train": [200], "valid": [100 + itself[0], 100], "test": [100 + itself[1], 100]}


def test_a_batch_has_the_pickling_of_its_own_task(made: Made) -> None:
    main = made.process()
    number = main.iterator({**TRAIN, "num_workers": 1}, 0, 0, workers=[500])
    main.take(number, 0, 1)
    worker = made.process(worker=0, pid=500)
    for task in range(4):
        worker.fetch(0, task, float(task), Fetch(cpu=0.5))
        if task % 2 == 0:
            # Its feeder thread begins a little later.
            worker.journal.write(
                layout.PICKLE, 0, 0, 0, task, ns(task + 0.625), ns(task + 0.875), span(0.125 + task / 8), 99
            )
    batches = loops(made)["train"].made
    assert batches.pickle_cpu.tolist() == pytest.approx([0.125, np.nan, 0.375, np.nan], nan_ok=True)
    assert batches.pickle_wall.tolist() == pytest.approx([0.25, np.nan, 0.25, np.nan], nan_ok=True)


def test_of_very_many_short_batches_a_few_of_each_record_stand_for_all(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "MAX_MADE", 8)
    main = made.process()
    number = main.iterator({**TRAIN, "num_workers": 1}, 0, 0, workers=[500])
    main.take(number, 0, 1)
    worker = made.process(worker=0, pid=500)
    for task in range(2):
        worker.journal.write(
            layout.FETCH,
            0,
            16,
            0,
            task,
            ns(task),
            ns(task + 0.1),
            ns(task + 0.1),
            span(0.5),
            0,
            0,
            0,
            0,
            0,
            0,
            span(1),
            -1,
            10,
        )
    batches = loops(made)["train"].made
    assert batches.wall.tolist() == pytest.approx([0.1] * 8)
    assert batches.cpu.tolist() == pytest.approx([0.05] * 8)
    assert batches.task.tolist() == [0] * 4 + [1] * 4


def test_the_time_of_a_made_batch_is_split_without_a_rest(tmp_path: Path) -> None:
    fetch = Fetch(
        cpu=0.25,
        blocked=0.125,
        runq=0.0625,
        collate=0.03125,
        pickle=0.5,
        asked_bytes=100,
        device_bytes=30,
        deep_every=3,
    )
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
    assert made.deep.tolist() == [False, False, True] * 2
    assert made.task.tolist() == list(range(6))


def record_of_several(made: Made, count: int, threads_cpu_ns: int) -> Any:
    """Batches that took 10 ms together, the last of them 4, and 5 ms of CPU."""
    main = made.process()
    number = main.iterator({**TRAIN, "num_workers": 1}, 0, 0, workers=[500])
    main.take(number, 0, 1)
    worker = made.process(worker=0, pid=500)
    ms = 1_000_000
    worker.journal.write(
        layout.FETCH,
        0,
        16,
        0,
        3,
        100 * ms,
        104 * ms,
        104 * ms,
        5 * ms,
        0,
        0,
        0,
        0,
        0,
        0,
        10 * ms,
        threads_cpu_ns,
        count,
    )
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
