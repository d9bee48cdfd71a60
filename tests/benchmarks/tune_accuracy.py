"""How near `tune` comes to the best point of a grid, and in which part of the grid's time.

    python tests/benchmarks/tune_accuracy.py                        every pipeline, the whole grid within the CPU budget
    python tests/benchmarks/tune_accuracy.py --quick --case jpeg    a small grid of the pipelines whose name holds this
    python tests/benchmarks/tune_accuracy.py --json FILE            keep the scores
    python tests/benchmarks/tune_accuracy.py --likely DIR           leave out hopeless points (see below)

For each pipeline every point of the grid is measured in a process of its own; then `tune` runs; then the best points of
the grid and tune's choice are measured again, in turn, because the best of many noisy points looks better than it is.
The grid's time is that of one job from its start, times the points. With `--likely` points that
`prediction_accuracy.py --keep DIR` predicts to be 15 % slower than the best are not measured, which halves the whole:
it takes about two minutes a pipeline on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pipelines import PIPELINES
from prediction_accuracy import rate as measured_rate

from loaderprof import recording
from loaderprof.capture.budget import cpu_budget
from loaderprof.conclude import predict
from loaderprof.predict.replay import Settings
from loaderprof.search import normal

SECONDS = 1.6
TOP, ROUNDS = 2, 2
HOPELESS = 0.85
# What the project promises.
REGRET, TIME_SHARE = 0.05, 0.25


def grid(quick: bool) -> list[Settings]:
    """Return the points of the grid, as far as the CPU budget goes."""
    cores = cpu_budget().cores
    counts, factors, flags = ((0, 2), (2, 8), (False,)) if quick else ((0, 1, 2, 4, 8), (1, 2, 4, 8), (False, True))
    points = [
        normal(Settings(workers, factor, in_order, kept))
        for workers in counts
        for factor in factors
        for in_order in ((True, False) if workers > 1 and not quick else (True,))
        for kept in flags
        if workers <= cores
    ]
    return list(dict.fromkeys(points))


def command(number: int) -> list[str]:
    return [str(Path(__file__).with_name("pipelines.py")), str(number)]


def rate(number: int, settings: Settings) -> float:
    """Return samples per second at some settings."""
    chosen = asdict(settings)
    del chosen["pin_memory"]
    if not settings.num_workers:
        chosen = {"num_workers": 0}
    return measured_rate(number, chosen, SECONDS)


def job_s(number: int) -> float:
    """Return how long a point of the grid takes as a job of its own, started from a shell."""
    begun = time.perf_counter()
    words = [*command(number), "--num-workers=2", f"--seconds={SECONDS}"]
    subprocess.run([sys.executable, *words], capture_output=True, check=True)
    return time.perf_counter() - begun


def likely(number: int, points: list[Settings], kept: Path) -> list[Settings]:
    """Return the points that are not predicted to be far slower than the best."""
    expected = predict(recording.read(kept / str(number)), [asdict(point) for point in points])
    speeds = [each.speedup or 0.0 if each is not None else 1.0 for each in expected]
    return [point for point, speed in zip(points, speeds, strict=True) if speed >= HOPELESS * max(speeds)]


def tuned(number: int) -> tuple[Settings, float]:
    """Run `tune`, and return its choice and the seconds that it took."""
    with tempfile.TemporaryDirectory() as name:
        words = ["-m", "loaderprof", "tune", "-o", f"{name}/found", *command(number)]
        begun = time.perf_counter()
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - begun
        if done.returncode:
            raise RuntimeError(done.stderr)
        found = json.loads(Path(name, "found", "tune.json").read_text())
    return normal(Settings(**found["best"])), seconds


@dataclass(frozen=True)
class Score:
    """One pipeline: tune's choice, the best point, how far the choice is below it, and both times in seconds."""

    case: str
    choice: Settings
    best: Settings
    regret: float
    tune_s: float
    grid_s: float

    @property
    def passed(self) -> bool:
        return self.regret <= REGRET and self.tune_s <= TIME_SHARE * self.grid_s


def score(number: int, grid_: list[Settings], points: list[Settings], rounds: int) -> Score:
    rates = {point: rate(number, point) for point in points}
    grid_s = len(grid_) * job_s(number)
    choice, tune_s = tuned(number)
    finalists = list(dict.fromkeys([*sorted(points, key=lambda point: -rates[point])[:TOP], choice]))
    logs: dict[Settings, list[float]] = {each: [] for each in finalists}
    for turn in range(rounds):
        for each in finalists if turn % 2 == 0 else finalists[::-1]:
            logs[each].append(math.log(rate(number, each)))
    means = {each: statistics.mean(values) for each, values in logs.items()}
    best = max(means, key=lambda each: means[each])
    return Score(PIPELINES[number].name, choice, best, 1 - math.exp(means[choice] - means[best]), tune_s, grid_s)


def told(settings: Settings) -> str:
    flags = " persistent" * settings.persistent_workers + " any order" * (not settings.in_order)
    return f"{settings.num_workers} x {settings.prefetch_factor}{flags}" if settings.num_workers else "0"


def chosen(part: str) -> Iterator[int]:
    return (number for number, pipeline in enumerate(PIPELINES) if part in pipeline.name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small grid")
    parser.add_argument("--case", default="", help="only pipelines whose name holds this")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(
        "--likely", type=Path, metavar="DIR", help="leave out points that are predicted to be far slower"
    )
    parser.add_argument("--json", metavar="FILE", help="keep the scores")
    asked = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*worker processes in total.*")
    multiprocessing.set_start_method("fork")
    torch.set_num_threads(1)
    points = grid(asked.quick)
    print(f"{len(points)} grid points, {cpu_budget().cores:g} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{'pipeline':30} {'tune':24} {'best':24} {'regret':>7} {'tune':>6} {'grid':>6}", flush=True)
    scores = []
    for number in chosen(asked.case):
        one = score(number, points, likely(number, points, asked.likely) if asked.likely else points, asked.rounds)
        scores.append(one)
        times = f"{one.tune_s:5.0f}s {one.grid_s:5.0f}s"
        print(f"{one.case:30} {told(one.choice):24} {told(one.best):24} {one.regret:7.1%} {times} {'' if one.passed else 'MISSED'}", flush=True)  # fmt: skip
        if asked.json:
            Path(asked.json).write_text(json.dumps([asdict(each) for each in scores], indent=1))
    passed = sum(each.passed for each in scores)
    print(f"{passed} of {len(scores)} within {REGRET:.0%} of the best, in at most {TIME_SHARE:.0%} of the grid's time")
    return 0 if passed == len(scores) else 1


if __name__ == "__main__":
    sys.exit(main())
