"""Which loader settings to measure next, and which of those measured are the best: the search of `tune`.

A ladder of worker counts, the neighbours of its best rungs, a race of those that are close, and a proof that the winner
gains over the present settings: round by round, so that a machine whose pace drifts slows all of a round alike. The
replay leaves out what is far behind. Pure: numbers in, settings out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from loaderprof.measure import ratios
from loaderprof.measure.ratios import Values
from loaderprof.replay.costs import Settings

PREFETCH = (1, 2, 4, 8)
# Settings that the replay puts this far behind its best are not measured: its error is 13 % at 90 % of settings from a
# run with workers and 19 % from one without (docs/how-it-works.md), and twice that is left for the worst of them.
HOPELESS = 0.65
# Queues that the replay finds no better than their leader's are not measured, but for the next deeper one, lest the
# replay be wrong: each candidate more is one more chance for noise to look like a gain.
PROMISE = 1.01
# Logarithm by which a window is off before repeats tell, 4 % from run to run (see `ratios.RUN_TO_RUN`), and how many
# repeats it takes to outweigh that.
NOISE, PRIOR = 0.04, 3
# Standard errors: surely behind, on one side.
SURE = 1.7
# As good as the best: stays in the race, is taken if it is cheaper.
BEHIND, TIED = 0.97, 0.98
ENTRANTS = 4
MAX_ROUNDS, MAX_PROOFS = 4, 4
# A noisy machine makes windows longer, up to so many times.
LONGEST = 3.0
# So well two candidates need to be told apart, and the gain be known.
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
class SearchLimits:
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


def obstacle(settings: Settings, limits: SearchLimits, needs: Needs) -> str | None:
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


@dataclass(frozen=True, slots=True)
class _Fit:
    """Logarithms of speeds told apart from those of rounds, by least squares.

    Attributes:
        place: where settings stand in the arrays.
        level: logarithm of samples per second in a usual round.
        covariance: of the levels, for windows that are off by a standard deviation of 1.
        noise: that standard deviation.
        freedom: how many windows told it, those assumed among them.
    """

    place: dict[Settings, int]
    level: Values
    covariance: Values
    noise: float
    freedom: int


@dataclass(slots=True)
class Board:
    """What was measured: samples per second, round by round.

    A round is a stretch of time in which the machine's pace counts as one; rounds share settings, by which the others
    are compared.

    Attributes:
        present: the settings that the script has.
        rounds: by settings, in the order measured.
        failed: settings that could not be measured, and why.
    """

    present: Settings
    rounds: list[dict[Settings, float]] = field(default_factory=list)
    failed: dict[Settings, str] = field(default_factory=dict)
    _fitted: tuple[int, _Fit] | None = field(default=None, init=False, repr=False)

    @property
    def measured(self) -> list[Settings]:
        """All settings with a result, in the order in which they came up."""
        return list(dict.fromkeys(settings for each in self.rounds for settings in each))

    def windows(self, settings: Settings) -> int:
        """Return how often settings were measured."""
        return sum(settings in each for each in self.rounds)

    def rate(self, settings: Settings) -> ratios.Ratio:
        """Return samples per second in a usual round."""
        fit = self._fit()
        at = fit.place[settings]
        return ratios.of_log(fit.level[at], fit.noise * math.sqrt(fit.covariance[at, at]), fit.freedom)

    def gain(self, settings: Settings) -> float:
        """Return how many times as fast as the present settings."""
        fit = self._fit()
        return math.exp(fit.level[fit.place[settings]] - fit.level[fit.place[self.present]])

    @property
    def noise(self) -> float:
        """Standard deviation of a window's logarithm."""
        return self._fit().noise

    def behind(self, settings: Settings, best: Settings) -> tuple[float, float]:
        """Return by how much settings are slower than the best ones, as a logarithm, and its standard error."""
        fit = self._fit()
        one, other = fit.place[best], fit.place[settings]
        spread = fit.covariance[one, one] + fit.covariance[other, other] - 2 * fit.covariance[one, other]
        return float(fit.level[one] - fit.level[other]), fit.noise * math.sqrt(max(0.0, spread))

    def ratio(self, settings: Settings, to: Settings) -> ratios.Ratio:
        """Return how many times as fast as others."""
        gap, error = self.behind(to, settings)
        return ratios.of_log(gap, error, self._fit().freedom)

    def best(self, among: Iterable[Settings] | None = None) -> Settings:
        """Return the fastest settings."""
        return max(self.measured if among is None else among, key=self.gain)

    def _fit(self) -> _Fit:
        count = sum(map(len, self.rounds))
        if self._fitted is None or self._fitted[0] != count:
            self._fitted = count, self._fit_anew()
        return self._fitted[1]

    def _fit_anew(self) -> _Fit:
        place = {settings: number for number, settings in enumerate(self.measured)}
        rounds = [each for each in self.rounds if each]
        entries = [(place[one], at, math.log(rate)) for at, each in enumerate(rounds) for one, rate in each.items()]
        logs = np.array([log for _, _, log in entries])
        design = np.zeros((len(entries), len(place) + len(rounds)))
        for row, (settings, at, _) in enumerate(entries):
            design[row, settings] = design[row, len(place) + at] = 1.0
        # Levels and rounds are known but for a constant between them; a usual round has none.
        usual = np.append(np.zeros(len(place)), design[:, len(place) :].sum(axis=0))
        full = np.vstack([design, usual])
        inverse = np.linalg.pinv(full.T @ full)
        found = inverse @ design.T @ logs
        freedom = len(entries) - (len(place) + len(rounds) - 1)
        left = float(((logs - design @ found) ** 2).sum()) if freedom > 0 else 0.0
        noise = math.sqrt((PRIOR * NOISE**2 + left) / (PRIOR + max(0, freedom)))
        spread = inverse @ design.T @ design @ inverse
        size = len(place)
        return _Fit(place, found[:size], spread[:size, :size], noise, PRIOR + max(0, freedom))


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
    deeper = min((factor for factor in PREFETCH if factor > leader.prefetch_factor), default=None)
    others = [each for each in others if each.prefetch_factor == deeper or _promises(each, leader, predicted)]
    if any_order and leader.num_workers > 1:
        others.append(replace(leader, in_order=not leader.in_order))
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
    return [first, *(each for each in rest[:1] if not _beaten(board, each, first))]


def entrants(board: Board) -> list[Settings]:
    """Return who enters the race: the best, and what may be as good after the few windows that it had."""
    best = board.best()

    def order(settings: Settings) -> tuple[int, tuple[int, bool, float, bool]]:
        # Of those that are tied the cheaper ones.
        return round(board.behind(settings, best)[0] / -math.log(TIED)), _price(settings, board.present)

    return sorted(still_in(board, board.measured), key=order)[:ENTRANTS]


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


def settled(board: Board, racing: Sequence[Settings]) -> bool:
    """Return whether those left in a race are told apart as well as need be."""
    best = board.best(racing)
    return all(board.behind(each, best)[1] <= NARROW for each in racing if each != best)


def choice(board: Board, racing: Sequence[Settings]) -> Settings:
    """Return the cheapest settings that are as good as the best.

    An order that is not fixed is a price of its own: it takes a sure gain.
    """
    best = board.best(racing)
    orderly = [each for each in racing if each.in_order]
    if not best.in_order and orderly and not _beaten(board, board.best(orderly), best):
        racing, best = orderly, board.best(orderly)
    gaps = {each: board.behind(each, best) for each in racing if each != best}
    tied = [best, *(each for each, (gap, error) in gaps.items() if gap <= max(-math.log(TIED), error / 2))]
    return min(tied, key=lambda each: _price(each, board.present))


def proved(board: Board, chosen: Settings) -> bool:
    """Return whether the gain over the present settings is known well enough: a large one needs fewer digits."""
    if chosen == board.present:
        return True
    gain = board.ratio(chosen, board.present)
    return gain.high < WORTH or (gain.high - gain.low) / 2 <= max(NARROW * gain.value, (gain.value - 1.0) / 4)


def taken(board: Board, chosen: Settings) -> Settings:
    """Return the settings to take: the present ones unless the chosen ones are surely faster, by what is worth it."""
    gain = board.ratio(chosen, board.present)
    return chosen if gain.low > 1.0 and gain.value >= WORTH else board.present


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
