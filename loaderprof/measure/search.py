"""Which loader settings to measure next, and which of those measured are the best: the search of `tune`.

First some worker counts (the ladder), then the best ones with one setting changed (neighbours), then those that are close
to the best once more (the race), then the winner against the present settings (the proof). All is measured in rounds,
because a machine whose speed drifts slows all of a round alike. Settings that the replay predicts to be far behind are
not measured. Pure: numbers in, settings out.
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
# Prefetch factors by which the replay predicts less than this gain are not measured, as each further candidate is one more
# chance for noise to look like a gain. The next deeper queue always is, because the replay may be wrong.
PROMISE = 1.01
# Standard deviation of the logarithm of a window's throughput that is assumed before repeats show it (4 % from run to run,
# see `ratios.RUN_TO_RUN`), and the number of repeats that this assumption counts as.
NOISE, PRIOR = 0.04, 3
# Settings this many standard errors behind the best are slower with 95 % confidence (one-sided).
SURE = 1.7
# Shares of the best throughput: settings above the first stay in the race; those above the second count as equal to the
# best, and the cheapest of them is taken.
BEHIND, TIED = 0.97, 0.98
ENTRANTS = 4
MAX_ROUNDS, MAX_PROOFS = 4, 4
# On a noisy machine windows are made longer, at most this many times.
LONGEST = 3.0
# The distance of two candidates is known well enough at this relative standard error, the gain at this half interval.
NARROW = 0.03
# A gain below this is not worth a change of code; `advise` uses the same threshold.
WORTH = 1.03
# Share of the free memory and files that a setting may take: the job's own need varies, and other programs need some.
SHARE = 0.5
# Files that a worker's queue, process and result take in the job; measured on torch 2.13.
FILES_PER_WORKER = 8


def normal(settings: Settings) -> Settings:
    """Return settings in canonical form: without workers only `pin_memory` has an effect."""
    return settings if settings.num_workers else Settings(0, pin_memory=settings.pin_memory)


@dataclass(frozen=True, slots=True)
class SearchLimits:
    """Resources that the loader may use: cores, free bytes, open files of one process; None where not known."""

    cores: float
    memory_bytes: float | None = None
    shm_bytes: float | None = None
    open_files: int | None = None


@dataclass(frozen=True, slots=True)
class Needs:
    """Resources that a batch and a worker take; None where not measured."""

    batch_bytes: float | None = None
    batch_tensors: float | None = None
    worker_bytes: float | None = None


def obstacle(settings: Settings, limits: SearchLimits, needs: Needs) -> str | None:
    """Return the resource that settings would exhaust, as a sentence; None where they fit."""
    workers = settings.num_workers
    if workers > limits.cores:
        return f"more than {int(limits.cores)} workers: the CPU budget is {limits.cores:g} cores"
    # Each worker produces one batch and has `prefetch_factor` in its queue.
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
    """Throughput of each setting, with the effect of each round removed by least squares, on a logarithmic scale.

    Attributes:
        place: index of settings in the arrays.
        level: logarithm of samples per second in an average round.
        covariance: of the levels, for windows with a standard deviation of 1.
        noise: the standard deviation of a window, as a logarithm.
        freedom: degrees of freedom of `noise`, including the assumed ones (`PRIOR`).
    """

    place: dict[Settings, int]
    level: Values
    covariance: Values
    noise: float
    freedom: int


@dataclass(slots=True)
class Board:
    """What was measured: samples per second, by round.

    The machine's speed is taken to be constant within a round. Rounds share some settings, through which the settings of
    different rounds are compared.

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
        """All settings with a result, in the order in which they were first measured."""
        return list(dict.fromkeys(settings for each in self.rounds for settings in each))

    def windows(self, settings: Settings) -> int:
        """Return how often settings were measured."""
        return sum(settings in each for each in self.rounds)

    def rate(self, settings: Settings) -> ratios.Ratio:
        """Return samples per second in an average round."""
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
        # Levels and rounds are determined up to a constant: the rounds' effects are made to sum to zero.
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
    """Return the worker counts to try: none, powers of two, as many as cores, and the present count."""
    most = max(0, int(cores))
    powers = (2**power for power in range(most.bit_length()))
    return sorted({0, most, present, *(count for count in powers if count <= most)})


def ladder(present: Settings, cores: float, predicted: Mapping[Settings, float], by_epoch: bool) -> list[Settings]:
    """Return one setting for each worker count, without those that the replay predicts to be far behind.

    Args:
        present: the settings that the script has.
        cores: the CPU budget.
        predicted: the replay's batches per second; empty where it cannot be trusted.
        by_epoch: epochs are short, so workers should be kept between them.
    """
    rungs = []
    for workers in worker_counts(cores, present.num_workers):
        kept = by_epoch or present.persistent_workers
        offers = [
            normal(replace(present, num_workers=workers, prefetch_factor=factor, persistent_workers=kept))
            for factor in (2, 4, 8)
        ]
        most = max(predicted.get(each, 0.0) for each in offers)
        # The smallest prefetch factor that the replay predicts to be as good as the best.
        rungs.append(next(each for each in offers if predicted.get(each, 0.0) >= 0.99 * most))
    top = max((predicted.get(each, 0.0) for each in rungs), default=0.0)
    return [each for each in rungs if each != present and predicted.get(each, top) >= HOPELESS * top]


def neighbours(
    leader: Settings, board: Board, predicted: Mapping[Settings, float], *, by_epoch: bool, any_order: bool, pin: bool
) -> list[Settings]:
    """Return the settings that differ from a leader in one value and were not tried yet.

    Args:
        leader: settings that were measured.
        board: what was measured.
        predicted: see `ladder`.
        by_epoch: see `ladder`.
        any_order: `in_order` may be changed.
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
    """Return whether the replay predicts a gain over the leader, or has no prediction."""
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
    """Return the settings for the race: the best, and those that may be as good, given how little they were measured."""
    best = board.best()

    def order(settings: Settings) -> tuple[int, tuple[int, bool, float, bool]]:
        # Among equally fast ones the cheaper first.
        return round(board.behind(settings, best)[0] / -math.log(TIED)), _price(settings, board.present)

    return sorted(still_in(board, board.measured), key=order)[:ENTRANTS]


def still_in(board: Board, racing: Sequence[Settings]) -> list[Settings]:
    """Return those of a race that are not significantly slower than its best."""
    best = board.best(racing)
    return [each for each in racing if each == best or not _beaten(board, each, best)]


def _beaten(board: Board, settings: Settings, best: Settings) -> bool:
    gap, error = board.behind(settings, best)
    return gap > max(SURE * error, -math.log(BEHIND))


def length(board: Board) -> float:
    """Return how long the windows of the race should be: longer on a noisy machine."""
    return min(LONGEST, max(1.0, board.noise / NOISE))


def settled(board: Board, racing: Sequence[Settings]) -> bool:
    """Return whether the distances of those left in a race are known well enough."""
    best = board.best(racing)
    return all(board.behind(each, best)[1] <= NARROW for each in racing if each != best)


def choice(board: Board, racing: Sequence[Settings]) -> Settings:
    """Return the cheapest settings that are as good as the best.

    Giving up the order of batches has a price of its own: it needs a significant gain.
    """
    best = board.best(racing)
    orderly = [each for each in racing if each.in_order]
    if not best.in_order and orderly and not _beaten(board, board.best(orderly), best):
        racing, best = orderly, board.best(orderly)
    gaps = {each: board.behind(each, best) for each in racing if each != best}
    tied = [best, *(each for each, (gap, error) in gaps.items() if gap <= max(-math.log(TIED), error / 2))]
    return min(tied, key=lambda each: _price(each, board.present))


def proved(board: Board, chosen: Settings) -> bool:
    """Return whether the gain over the present settings is known well enough; a large gain may be known less precisely."""
    if chosen == board.present:
        return True
    gain = board.ratio(chosen, board.present)
    return gain.high < WORTH or (gain.high - gain.low) / 2 <= max(NARROW * gain.value, (gain.value - 1.0) / 4)


def taken(board: Board, chosen: Settings) -> Settings:
    """Return the chosen settings if they are significantly faster, by at least `WORTH`; else the present ones."""
    gain = board.ratio(chosen, board.present)
    return chosen if gain.low > 1.0 and gain.value >= WORTH else board.present


def _price(settings: Settings, present: Settings) -> tuple[int, bool, float, bool]:
    """Return a sort key for the cost of settings: workers first, then the distance from the present settings."""
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
