"""The search on machines that are made up: what it measures, what it keeps off, and what it takes in the end."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from loaderprof.measure import search
from loaderprof.measure.search import Board, Needs, SearchLimits
from loaderprof.replay.costs import Settings

NONE, ONE, TWO = Settings(0), Settings(1), Settings(2)
Truth = Callable[[Settings], float]


def measure(board: Board, truth: Truth, chosen: list[Settings], noise: np.random.Generator | None = None) -> None:
    """Measure one round, on a machine whose pace drifts."""
    drift = 1.0 if noise is None else math.exp(noise.normal(0, 0.1))
    board.rounds.append({})
    for each in chosen:
        wobble = 1.0 if noise is None else math.exp(noise.normal(0, 0.04))
        board.rounds[-1][each] = truth(each) * drift * wobble


def found(truth: Truth, present: Settings, cores: float = 8, seed: int | None = None) -> tuple[Settings, Board]:
    """Search as `tune` does, without a replay."""
    board, noise = Board(present), None if seed is None else np.random.default_rng(seed)
    measure(board, truth, [present, *search.ladder(present, cores, {}, False)], noise)
    leader = None
    while leader != (leader := board.best()):
        others = [
            each
            for first in search.leaders(board)
            for each in search.neighbours(first, board, {}, by_epoch=False, any_order=True, pin=False)
        ]
        if others:
            measure(board, truth, [*search.leaders(board), *others], noise)
    racing = search.entrants(board)
    for _ in range(search.MAX_ROUNDS):
        if search.settled(board, racing):
            break
        measure(board, truth, racing, noise)
        racing = search.still_in(board, racing)
    chosen = search.choice(board, racing)
    for _ in range(search.MAX_PROOFS):
        if search.proved(board, chosen):
            break
        measure(board, truth, [present, chosen], noise)
    return search.taken(board, chosen), board


def reading(settings: Settings) -> float:
    """Batches per second where workers wait for a disk that serves four at once, before a step of 10 ms."""
    return min(100.0, 12.0 * min(max(settings.num_workers, 1), 4))


def bound(settings: Settings) -> float:
    """Where workers take the cores that the step needs."""
    return 100.0 / (1 + 0.1 * settings.num_workers)


def uneven(settings: Settings) -> float:
    """Where a deep queue rides over slow batches, and any order does better still."""
    depth = 0.5 + 0.05 * settings.prefetch_factor if settings.in_order else 1.0
    return 20.0 * max(1, min(settings.num_workers, 4)) * depth


@pytest.mark.parametrize("seed", [None, *range(20)])
@pytest.mark.parametrize("truth", [reading, bound, uneven])
@pytest.mark.parametrize("present", [NONE, TWO])
def test_what_is_found_is_within_a_few_percent_of_the_best(truth: Truth, present: Settings, seed: int | None) -> None:
    chosen, board = found(truth, present, seed=seed)
    grid = [
        Settings(workers, factor, order)
        for workers in (0, 1, 2, 4, 8)
        for factor in (1, 2, 4, 8)
        for order in (True, False)
    ]
    best = max(map(truth, grid))
    assert truth(chosen) >= (0.95 if seed is None else 0.93) * best
    assert len(board.measured) < len(grid) / 2


def test_no_more_workers_are_taken_than_needed() -> None:
    assert found(reading, NONE)[0] == Settings(4)


def test_where_nothing_helps_the_present_settings_stay() -> None:
    assert found(lambda _: 50.0, TWO)[0] == TWO
    assert found(bound, NONE)[0] == NONE


def test_an_order_that_is_not_fixed_takes_a_sure_gain() -> None:
    board = Board(TWO)
    loose = replace(TWO, in_order=False)
    for gain in (1.10, 0.98, 1.06):
        board.rounds.append({TWO: 100.0, loose: 100.0 * gain})
    assert search.choice(board, [TWO, loose]) == TWO
    for gain in (1.10, 1.12, 1.11, 1.09):
        board.rounds.append({TWO: 100.0, loose: 100.0 * gain})
    assert search.choice(board, [TWO, loose]) == loose


def test_a_noisy_machine_is_measured_longer() -> None:
    calm, noisy = Board(NONE), Board(NONE)
    for one, other in ((200.0, 200.0), (202.0, 280.0), (198.0, 140.0)):
        calm.rounds.append({NONE: 100.0, TWO: one})
        noisy.rounds.append({NONE: 100.0, TWO: other})
    assert search.length(calm) == 1.0
    assert search.length(noisy) == search.LONGEST


@pytest.mark.parametrize(
    ("cores", "present", "counts"),
    [(2, 0, [0, 1, 2]), (6, 0, [0, 1, 2, 4, 6]), (0.5, 0, [0]), (2, 5, [0, 1, 2, 5]), (16, 3, [0, 1, 2, 3, 4, 8, 16])],
)
def test_the_rungs_of_the_ladder(cores: float, present: int, counts: list[int]) -> None:
    assert search.worker_counts(cores, present) == counts


def test_the_replay_leaves_out_what_is_hopeless() -> None:
    predicted = {NONE: 10.0, ONE: 12.0, TWO: 24.0, replace(TWO, prefetch_factor=8): 24.1}
    assert search.ladder(NONE, 2, predicted, False) == [TWO]
    assert search.ladder(NONE, 2, {}, False) == [ONE, TWO]


def test_the_replay_chooses_the_depth_of_the_queue() -> None:
    predicted = {replace(TWO, prefetch_factor=factor): pace for factor, pace in ((2, 20.0), (4, 24.0), (8, 24.1))}
    assert replace(TWO, prefetch_factor=4) in search.ladder(NONE, 2, predicted, False)


def test_neighbours_are_what_the_replay_promises_and_one_deeper() -> None:
    board = Board(NONE)
    board.rounds.append({NONE: 1.0, TWO: 2.0})
    loose = replace(TWO, in_order=False)
    predicted = {TWO: 2.0, loose: 2.0, **{replace(TWO, prefetch_factor=factor): 2.0 for factor in (1, 4, 8)}}

    def beside(any_order: bool, predicted: dict[Settings, float]) -> list[Settings]:
        return search.neighbours(TWO, board, predicted, by_epoch=False, any_order=any_order, pin=False)

    assert beside(True, predicted) == [replace(TWO, prefetch_factor=4), loose]
    assert beside(False, predicted) == [replace(TWO, prefetch_factor=4)]
    assert len(beside(True, {})) == 4


LIMITS = SearchLimits(4, memory_bytes=4e9, shm_bytes=1e9, open_files=1000)


@pytest.mark.parametrize(
    ("settings", "needs", "words"),
    [
        (Settings(4, 2), Needs(1e6, 2, 1e8), None),
        (Settings(5, 2), Needs(), "CPU budget is 4 cores"),
        (Settings(4, 8), Needs(20e6, 1, 0), "/dev/shm"),
        (Settings(4, 2), Needs(1e6, 1, 6e8), "memory"),
        (Settings(2, 8), Needs(1e3, 30, 0), "open files"),
        (Settings(4, 8), Needs(), None),
    ],
)
def test_what_is_kept_off(settings: Settings, needs: Needs, words: str | None) -> None:
    reason = search.obstacle(settings, LIMITS, needs)
    assert reason is None if words is None else words in str(reason)


def test_what_to_set() -> None:
    assert search.change(Settings(2, 4, in_order=False), NONE) == {
        "num_workers": 2,
        "prefetch_factor": 4,
        "in_order": False,
    }
    assert search.change(NONE, Settings(2, 4)) == {"num_workers": 0}
    assert search.change(TWO, TWO) == {}
    assert search.normal(Settings(0, 8, False, True, True)) == Settings(0, pin_memory=True)
