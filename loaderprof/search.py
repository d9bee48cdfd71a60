"""Which loader settings to measure next, and which of those measured are the best: the search of `tune`.

A ladder of worker counts, the neighbours of its best rungs, then a race of those that are close, round by round with
the present settings in every round, so that a machine whose pace drifts slows all alike. The replay leaves out what is
far behind. Pure: numbers in, settings out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from loaderprof import ratios
from loaderprof.predict.replay import Settings

PREFETCH = (1, 2, 4, 8)
# Settings that the replay puts this far behind its best are not measured: its error is 13 % at 90 % of settings from a
# run with workers and 19 % from one without (docs/how-it-works.md), and twice that is left for the worst of them.
HOPELESS = 0.65
# Neighbours that the replay finds no better than their leader are not measured, but for the next deeper queue, lest the
# replay be wrong: each candidate more is one more chance for noise to look like a gain.
PROMISE = 1.01
# Logarithm by which a window is off at least, before repeats tell: 4 % from run to run (see `ratios.RUN_TO_RUN`).
NOISE = 0.04
# Standard errors: two sides of 95 %, and what a single look at many settings is let off with.
SURE, DOUBTFUL = 2.0, 3.0
# As good as the best: enters the race, stays in it, is taken if it is cheaper.
CLOSE, BEHIND, TIED = 0.95, 0.97, 0.98
ENTRANTS = 5
MIN_ROUNDS, MAX_ROUNDS = 3, 8
# A noisy machine makes windows longer, up to so many times.
LONGEST = 3.0
# An interval no wider than this on either side answers the question.
NARROW = 0.03
# A gain below this is not worth a change of code; `advice` has the same.
WORTH = 1.03
# Share of what is free now that a setting may take: the job's own need varies, and other programs want some.
SHARE = 0.5
# Files that a worker's queue, process and result take in the job; measured on torch 2.13.
FILES_PER_WORKER = 8


def normal(settings: Settings) -> Settings:
    """Return settings in one form: without workers nothing else of them has a meaning."""
    return settings if settings.num_workers else Settings(0, pin_memory=settings.pin_memory)


@dataclass(frozen=True, slots=True)
class Limits:
    """What there is for the loader, None where it is not known: cores, free bytes, open files of one process."""

    cores: float
    memory_bytes: float | None = None
    shm_bytes: float | None = None
    open_files: int | None = None


@dataclass(frozen=True, slots=True)
class Needs:
    """What a batch and a worker take, None where it was not measured."""

    batch_bytes: float | None = None
    batch_tensors: float | None = None
    worker_bytes: float | None = None


def obstacle(settings: Settings, limits: Limits, needs: Needs) -> str | None:
    """Return why settings are not tried, in words; None where they may be."""
    workers = settings.num_workers
    if workers > limits.cores:
        return f"more than {int(limits.cores)} workers: the CPU budget is {limits.cores:g} cores"
    # Prefetched, and one that each worker is making.
    batches = workers * (settings.prefetch_factor + 1)
    in_flight = batches * (needs.batch_bytes or 0.0)
    if limits.shm_bytes is not None and in_flight > SHARE * limits.shm_bytes:
        return f"{workers} workers x prefetch {settings.prefetch_factor}: batches in flight would fill /dev/shm"
    memory = in_flight + workers * (needs.worker_bytes or 0.0)
    if limits.memory_bytes is not None and memory > SHARE * limits.memory_bytes:
        return f"{workers} workers x prefetch {settings.prefetch_factor}: memory"
    files = workers * FILES_PER_WORKER + batches * (needs.batch_tensors or 0.0)
    if limits.open_files is not None and files > SHARE * limits.open_files:
        return f"{workers} workers x prefetch {settings.prefetch_factor}: open files (ulimit -n {limits.open_files})"
    return None


@dataclass(slots=True)
class Board:
    """What was measured: samples per second, round by round; the present settings are in every round.

    Attributes:
        present: the settings that the script has.
        rounds: by settings, in the order measured.
        failed: settings that could not be measured, and why.
    """

    present: Settings
    rounds: list[dict[Settings, float]] = field(default_factory=list)
    failed: dict[Settings, str] = field(default_factory=dict)

    @property
    def measured(self) -> list[Settings]:
        """All settings with a result, in the order in which they came up."""
        return list(dict.fromkeys(settings for each in self.rounds for settings in each))

    def rates(self, settings: Settings) -> list[float]:
        """Return the results of some settings."""
        return [each[settings] for each in self.rounds if settings in each]

    def gain(self, settings: Settings) -> float:
        """Return how many times as fast as the present settings, over the rounds that have both."""
        logs = self._logs(settings)
        return math.exp(sum(logs) / len(logs)) if logs else 0.0

    def _logs(self, settings: Settings) -> list[float]:
        return [
            math.log(each[settings] / each[self.present])
            for each in self.rounds
            if settings in each and self.present in each
        ]

    @property
    def noise(self) -> float:
        """Standard deviation of a window's logarithm, from settings measured in several rounds."""
        squares, freedom = 0.0, 0
        for settings in self.measured:
            logs = self._logs(settings)
            if settings != self.present and len(logs) > 1:
                mean = sum(logs) / len(logs)
                squares += sum((log - mean) ** 2 for log in logs)
                freedom += len(logs) - 1
        # Both windows of a pair are off.
        return max(NOISE, math.sqrt(squares / freedom / 2)) if freedom else NOISE

    def behind(self, settings: Settings, best: Settings) -> tuple[float, float]:
        """Return by how much settings are slower than the best ones, as a logarithm, and its standard error."""
        shared = [each for each in self.rounds if settings in each and best in each]
        if shared:
            logs = [math.log(each[best] / each[settings]) for each in shared]
            return sum(logs) / len(logs), self.noise * math.sqrt(2 / len(logs))
        # Never in one round: by way of the present settings.
        counts = [max(1, len(self._logs(each))) for each in (settings, best)]
        return math.log(self.gain(best) / self.gain(settings)), self.noise * math.sqrt(sum(2 / n for n in counts))

    def ratio(self, settings: Settings, to: Settings) -> ratios.Ratio | None:
        """Return how many times as fast as others, from the rounds that have both; None below two."""
        return ratios.of_pairs([(each[to], each[settings]) for each in self.rounds if settings in each and to in each])

    def best(self, among: Iterable[Settings] | None = None) -> Settings:
        """Return the fastest settings."""
        return max(self.measured if among is None else among, key=self.gain)


def worker_counts(cores: float, present: int) -> list[int]:
    """Return the rungs of the ladder: none, powers of two, as many as there are cores, and what is set now."""
    most = max(0, int(cores))
    powers = (2**power for power in range(most.bit_length()))
    return sorted({0, most, present, *(count for count in powers if count <= most)})


def ladder(present: Settings, cores: float, predicted: Mapping[Settings, float], by_epoch: bool) -> list[Settings]:
    """Return one setting for each worker count, those that the replay finds hopeless left out.

    Args:
        present: the settings that the script has.
        cores: the CPU budget.
        predicted: the replay's batches per second; empty where it cannot be trusted.
        by_epoch: epochs are short, so that workers are better kept between them.
    """
    rungs = []
    for workers in worker_counts(cores, present.num_workers):
        kept = by_epoch or present.persistent_workers
        offers = [
            normal(replace(present, num_workers=workers, prefetch_factor=factor, persistent_workers=kept))
            for factor in (2, 4, 8)
        ]
        most = max(predicted.get(each, 0.0) for each in offers)
        # The shallowest queue that the replay finds as good.
        rungs.append(next(each for each in offers if predicted.get(each, 0.0) >= 0.99 * most))
    top = max((predicted.get(each, 0.0) for each in rungs), default=0.0)
    return [each for each in rungs if each != present and predicted.get(each, top) >= HOPELESS * top]


def neighbours(
    leader: Settings, board: Board, predicted: Mapping[Settings, float], *, by_epoch: bool, any_order: bool, pin: bool
) -> list[Settings]:
    """Return what differs from a leader in one setting and was not tried.

    Args:
        leader: settings that were measured.
        board: what was measured.
        predicted: see `ladder`.
        by_epoch: see `ladder`.
        any_order: batches may come as they are ready.
        pin: there is a device to pin memory for.
    """
    if not leader.num_workers:
        return []
    others = [replace(leader, prefetch_factor=factor) for factor in PREFETCH]
    if any_order and leader.num_workers > 1:
        others.append(replace(leader, in_order=not leader.in_order))
    deeper = min((factor for factor in PREFETCH if factor > leader.prefetch_factor), default=None)
    others = [each for each in others if each.prefetch_factor == deeper or _promises(each, leader, predicted)]
    if by_epoch:
        others.append(replace(leader, persistent_workers=not leader.persistent_workers))
    if pin:
        others.append(replace(leader, pin_memory=not leader.pin_memory))
    tried = {*board.measured, *board.failed}
    return [each for each in others if each not in tried]


def _promises(settings: Settings, leader: Settings, predicted: Mapping[Settings, float]) -> bool:
    """Return whether the replay sees a gain, or does not know."""
    if settings not in predicted or leader not in predicted:
        return True
    return predicted[settings] >= PROMISE * predicted[leader]


def leaders(board: Board) -> list[Settings]:
    """Return the best settings of the two best worker counts, the second only if it may be as good."""
    by_count: dict[int, Settings] = {}
    for settings in sorted(board.measured, key=board.gain, reverse=True):
        by_count.setdefault(settings.num_workers, settings)
    first, *rest = by_count.values()
    return [first, *(each for each in rest[:1] if _may_be_as_good(board, each, first))]


def entrants(board: Board) -> list[Settings]:
    """Return who enters the race: the best, and what may be as good after the few windows that it had."""
    best = board.best()
    close = [each for each in board.measured if _may_be_as_good(board, each, best)]
    return sorted(close, key=board.gain, reverse=True)[:ENTRANTS]


def _may_be_as_good(board: Board, settings: Settings, best: Settings) -> bool:
    gap, error = board.behind(settings, best)
    return settings == best or gap < DOUBTFUL * error - math.log(CLOSE)


def still_in(board: Board, racing: Sequence[Settings]) -> list[Settings]:
    """Return those of a race that are not surely behind its best."""
    best = board.best(racing)
    return [each for each in racing if each == best or not _beaten(board, each, best)]


def _beaten(board: Board, settings: Settings, best: Settings) -> bool:
    gap, error = board.behind(settings, best)
    return gap > max(SURE * error, -math.log(BEHIND))


def length(board: Board) -> float:
    """Return how long the windows of the race should be: longer on a noisy machine."""
    return min(LONGEST, max(1.0, board.noise / NOISE))


def settled(board: Board, racing: Sequence[Settings], rounds: int) -> bool:
    """Return whether another round would change nothing: what is left is tied, and its gain known well enough."""
    if rounds < MIN_ROUNDS:
        return rounds >= 1 and list(racing) == [board.present]
    best = board.best(racing)
    if any(board.behind(each, best)[1] > NARROW for each in racing if each != best):
        return False
    ratio = board.ratio(best, board.present)
    return best == board.present or (ratio is not None and (ratio.high - ratio.low) / 2 <= NARROW * ratio.value)


def choice(board: Board, racing: Sequence[Settings]) -> Settings:
    """Return the cheapest settings that are as good as the best; the present ones unless another is surely faster.

    An order that is not fixed is a price of its own: it takes a sure gain.
    """
    best = board.best(racing)
    orderly = [each for each in racing if each.in_order]
    if not best.in_order and orderly and not _beaten(board, board.best(orderly), best):
        racing, best = orderly, board.best(orderly)
    gaps = {each: board.behind(each, best) for each in racing if each != best}
    tied = [best, *(each for each, (gap, error) in gaps.items() if gap <= max(-math.log(TIED), error))]
    chosen = min(tied, key=lambda each: _price(each, board.present))
    ratio = board.ratio(chosen, board.present)
    if chosen != board.present and (ratio is None or not ratio.significant or ratio.value < WORTH):
        return board.present
    return chosen


def _price(settings: Settings, present: Settings) -> tuple[int, bool, float, bool]:
    """Return what settings cost, for comparing: workers first, then how far they are from what is set."""
    deeper = abs(math.log2(settings.prefetch_factor / present.prefetch_factor))
    changed = settings.persistent_workers != present.persistent_workers or settings.pin_memory != present.pin_memory
    return settings.num_workers, not settings.in_order, deeper, changed


def change(chosen: Settings, present: Settings) -> dict[str, bool | int]:
    """Return what `--set` needs to make the present settings the chosen ones."""
    wanted: dict[str, bool | int] = {}
    if chosen.num_workers != present.num_workers:
        wanted["num_workers"] = chosen.num_workers
    if chosen.num_workers:
        for key in ("prefetch_factor", "persistent_workers", "in_order", "pin_memory"):
            if getattr(chosen, key) != getattr(present, key):
                wanted[key] = getattr(chosen, key)
    return wanted
