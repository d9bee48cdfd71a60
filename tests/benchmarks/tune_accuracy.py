"""How near `tune` comes to the best point of a grid, and in which part of the grid's time.

    python tests/benchmarks/tune_accuracy.py                        every pipeline
    python tests/benchmarks/tune_accuracy.py --quick --case jpeg    a small grid of the pipelines whose name holds this
    python tests/benchmarks/tune_accuracy.py --write docs/tuning.md keep the table
    python tests/benchmarks/tune_accuracy.py --likely DIR           leave out hopeless points (see below)

The grid: num_workers 0, 1, 2, 4, 8, prefetch_factor 1, 2, 4, 8, persistent_workers and in_order. For each pipeline every
point within the CPU budget is measured in a process of its own; then `tune` runs; then the best points of the grid and
tune's choice are measured again, in turn, because the best of many noisy points looks better than it is. The grid's time
is that of one job from its start, times the points: of the whole grid, and of the points within the budget. With
`--likely` points that `prediction_accuracy.py --keep DIR` predicts to be 15 % slower than the best are not measured,
which halves the whole: it takes about two minutes a pipeline on 2 cores.
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

from loaderprof.capture.cpu_budget import cpu_budget
from loaderprof.conclude import predict
from loaderprof.measure.search import normal
from loaderprof.recording import reader
from loaderprof.replay.costs import Settings

SECONDS = 1.6
TOP, ROUNDS = 2, 2
HOPELESS = 0.85
# What the project promises.
REGRET, TIME_SHARE = 0.05, 0.25


def grid(quick: bool) -> list[Settings]:
    """Return the points of the grid."""
    counts, factors, flags = ((0, 2), (2, 8), (False,)) if quick else ((0, 1, 2, 4, 8), (1, 2, 4, 8), (False, True))
    points = [
        normal(Settings(workers, factor, in_order, kept))
        for workers in counts
        for factor in factors
        for in_order in ((True, False) if workers > 1 and not quick else (True,))
        for kept in flags
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
    expected = predict(reader.read(kept / str(number)), [asdict(point) for point in points])
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
    """One pipeline.

    Attributes:
        case: its name.
        choice: what `tune` chose.
        best: the best point.
        regret: how far the choice is below it.
        tune_s: how long `tune` took.
        grid_s: how long the whole grid takes.
        allowed_s: how long its points within the CPU budget take.
    """

    case: str
    choice: Settings
    best: Settings
    regret: float
    tune_s: float
    grid_s: float
    allowed_s: float

    @property
    def passed(self) -> bool:
        return self.regret <= REGRET and self.tune_s <= TIME_SHARE * self.grid_s


def score(number: int, whole: list[Settings], kept: Path | None, rounds: int) -> Score:
    allowed = [point for point in whole if point.num_workers <= cpu_budget().cores]
    points = likely(number, allowed, kept) if kept else allowed
    rates = {point: rate(number, point) for point in points}
    one_s = job_s(number)
    choice, tune_s = tuned(number)
    finalists = list(dict.fromkeys([*sorted(points, key=lambda point: -rates[point])[:TOP], choice]))
    logs: dict[Settings, list[float]] = {each: [] for each in finalists}
    for turn in range(rounds):
        for each in finalists if turn % 2 == 0 else finalists[::-1]:
            logs[each].append(math.log(rate(number, each)))
    means = {each: statistics.mean(values) for each, values in logs.items()}
    best = max(means, key=lambda each: means[each])
    regret = 1 - math.exp(means[choice] - means[best])
    return Score(PIPELINES[number].name, choice, best, regret, tune_s, len(whole) * one_s, len(allowed) * one_s)


def sentence(settings: Settings) -> str:
    flags = " persistent" * settings.persistent_workers + " any order" * (not settings.in_order)
    return f"{settings.num_workers} x {settings.prefetch_factor}{flags}" if settings.num_workers else "0"


def chosen(part: str) -> Iterator[int]:
    return (number for number, pipeline in enumerate(PIPELINES) if part in pipeline.name)


def page(scores: list[Score]) -> str:
    """Return the table as a page."""
    rows = [
        f"| {one.case} | {sentence(one.choice)} | {sentence(one.best)} | {one.regret:.1%} | {one.tune_s:.0f} s | {one.tune_s / one.grid_s:.0%} | "
        f"{one.tune_s / one.allowed_s:.0%} |"
        for one in scores
    ]
    return "\n".join(
        (
            "# How good tuning is",
            "",
            "Made by `python tests/benchmarks/tune_accuracy.py --write docs/tuning.md`, which says how it measures; on "
            f"{cpu_budget().cores:g} cores, torch {torch.__version__.partition('+')[0]}.",
            "",
            summary(scores),
            "",
            "| pipeline | tune's choice | best point | below it | tune took | of the grid's time | of the points within the budget |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
        )
    )


def summary(scores: list[Score]) -> str:
    passed = sum(one.passed for one in scores)
    return (
        f"{passed} of {len(scores)} pipelines within {REGRET:.0%} of the best point, in at most {TIME_SHARE:.0%} of the "
        "grid's time. Workers x prefetch_factor; 0: no workers."
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small grid")
    parser.add_argument("--case", default="", help="only pipelines whose name holds this")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(
        "--likely", type=Path, metavar="DIR", help="leave out points that are predicted to be far slower"
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help="keep the table")
    asked = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*worker processes in total.*")
    multiprocessing.set_start_method("fork")
    torch.set_num_threads(1)
    points = grid(asked.quick)
    print(f"{len(points)} grid points, {cpu_budget().cores:g} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{'pipeline':30} {'tune':24} {'best':24} {'regret':>7} {'tune':>6} {'grid':>6}", flush=True)
    scores = []
    for number in chosen(asked.case):
        one = score(number, points, asked.likely, asked.rounds)
        scores.append(one)
        times = f"{one.tune_s:5.0f}s {one.grid_s:5.0f}s"
        print(
            f"{one.case:30} {sentence(one.choice):24} {sentence(one.best):24} {one.regret:7.1%} {times} {'' if one.passed else 'MISSED'}",
            flush=True,
        )
        if asked.write:
            asked.write.write_text(page(scores))
    print(summary(scores))
    return 0 if all(each.passed for each in scores) else 1


if __name__ == "__main__":
    sys.exit(main())
