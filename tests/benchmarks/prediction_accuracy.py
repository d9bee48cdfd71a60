"""What loaderprof predicts of a loader's settings from one run, against what they do.

    python tests/benchmarks/prediction_accuracy.py                             every pipeline, from a run with 2 workers
    python tests/benchmarks/prediction_accuracy.py --workers 0                 from runs without workers
    python tests/benchmarks/prediction_accuracy.py --case jpeg                 the pipelines whose name holds this
    python tests/benchmarks/prediction_accuracy.py --keep DIR                  keep the recordings and what was measured;
                                                                               again: measure all once more
    python tests/benchmarks/prediction_accuracy.py --again DIR                 predict anew from what was kept
    python tests/benchmarks/prediction_accuracy.py --write docs/predictions.md keep the tables

Each pipeline of `pipelines.py` runs once under `loaderprof run`; `conclude.predict` tells from that recording what each
setting would do. Then the settings are measured, without loaderprof, in processes of their own; the base setting runs
before and after every few of them, so that a machine whose pace drifts does so for both. How far those repeats of one
setting lie apart is the machine's own noise, which no prediction can beat; a setting that was measured several times is
as fast as the mean of these. A pipeline takes about two minutes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from pipelines import PIPELINES, Pipeline, train

from loaderprof.conclude import predict
from loaderprof.recording import reader

PROFILED_S, SECONDS = 6.0, 1.6
MEASURED = "measured*.json"
# Settings measured between two runs of the base.
BLOCK = 4
WORKERS, PREFETCH, SIZES = (1, 2, 4, 8), (1, 2, 4, 8), (0.5, 2, 4)
# What the project promises: median and 90th percentile of the error, and how often an interval holds the truth.
PROMISED = (0.05, 0.12, 0.9)

Settings = dict[str, Any]


def points(pipeline: Pipeline, base: Settings) -> dict[str, list[Settings]]:
    """Return the settings to measure, by the kind of their change."""
    kinds: dict[str, list[Settings]] = {
        "num_workers, prefetch_factor": [
            {"num_workers": 0},
            *({"num_workers": count, "prefetch_factor": factor} for count in WORKERS for factor in PREFETCH),
        ],
        "persistent_workers": [{"num_workers": count, "persistent_workers": True} for count in (2, 4)],
        "in_order": [{"num_workers": count, "in_order": False} for count in (2, 4)],
        "batch_size": [{**base, "batch_size": round(pipeline.batch_size * ratio)} for ratio in SIZES],
        "all": [{"num_workers": 4, "prefetch_factor": 4, "persistent_workers": True, "in_order": False}],
    }
    for settings in (settings for kind in kinds.values() for settings in kind):
        if settings["num_workers"]:
            settings.setdefault("prefetch_factor", 2)
    return {kind: [each for each in chosen if each != base] for kind, chosen in kinds.items()}


def rate(number: int, settings: Settings, seconds: float) -> float:
    """Return samples per second of a pipeline at some settings, in a process of its own."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    # What torch's threads were doing here would be lost in a fork, and waited for.
    process = multiprocessing.get_context("spawn").Process(target=_rate, args=(theirs, number, settings, seconds))
    process.start()
    theirs.close()
    found = float(ours.recv())
    process.join()
    return found


def _rate(answer: Connection, number: int, settings: Settings, seconds: float) -> None:
    answer.send(train(PIPELINES[number], seconds, **settings))


@dataclass(frozen=True, slots=True)
class Point:
    """One setting of one pipeline: its speed over the base setting's, predicted with its interval, and measured."""

    pipeline: str
    kind: str
    settings: str
    predicted: float
    low: float
    high: float
    measured: float

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1

    @property
    def held(self) -> bool:
        return self.low <= self.measured <= self.high


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured of a pipeline: the base's speed again and again, over its mean, and each setting's over the base's."""

    base: list[float]
    settings: list[tuple[str, Settings, float]]

    def noise(self) -> list[float]:
        """Return by how much the base's repeats differ from their mean."""
        return [abs(each - 1) for each in self.base]


def profile(number: int, base: Settings, folder: Path) -> None:
    """Record a pipeline at the base setting."""
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in base.items()]
    script = Path(__file__).with_name("pipelines.py")
    command = [sys.executable, "-m", "loaderprof", "run", "--no-html", "--no-status", "-o", str(folder), str(script)]
    subprocess.run([*command, str(number), *flags, f"--seconds={PROFILED_S}"], capture_output=True, check=True)


def measure(number: int, base: Settings, seconds: float, folder: Path) -> None:
    """Measure a pipeline's settings once, and keep what was found beside its recording."""
    wanted = [(kind, each) for kind, chosen in points(PIPELINES[number], base).items() for each in chosen]
    repeats = [rate(number, base, seconds)]
    found = []
    for start in range(0, len(wanted), BLOCK):
        block = [(kind, each, rate(number, each, seconds)) for kind, each in wanted[start : start + BLOCK]]
        repeats.append(rate(number, base, seconds))
        now = statistics.mean(repeats[-2:])
        found += [(kind, each, samples / now) for kind, each, samples in block]
    place = folder / MEASURED.replace("*", str(len(list(folder.glob(MEASURED))) + 1))
    place.write_text(json.dumps({"base": repeats, "settings": found}, indent=1))


def measured(folder: Path) -> Measured:
    """Return what was measured of a pipeline, a setting's speed as the geometric mean of all times."""
    times = [json.loads(file.read_text()) for file in sorted(folder.glob(MEASURED))]
    speeds = np.exp(np.mean([[np.log(speed) for _, _, speed in each["settings"]] for each in times], axis=0))
    settings = [(kind, each, float(speed)) for (kind, each, _), speed in zip(times[0]["settings"], speeds, strict=True)]
    return Measured([rate / statistics.mean(each["base"]) for each in times for rate in each["base"]], settings)


def predicted(name: str, folder: Path, seen: Measured) -> list[Point]:
    """Return the points of a pipeline: what its recording predicts beside what was measured."""
    expected = predict(reader.read(folder), [settings for _, settings, _ in seen.settings])
    found = []
    for (kind, settings, speed), each in zip(seen.settings, expected, strict=True):
        if each is None or each.speedup is None or each.low is None or each.high is None:
            raise RuntimeError(f"{name}, {settings}: nothing is predicted")
        found.append(Point(name, kind, sentence(settings), each.speedup, each.low, each.high, speed))
    return found


def sentence(settings: Settings) -> str:
    return " ".join(f"{key}={value}" for key, value in settings.items())


def table(found: list[Point], noise: list[float]) -> Iterator[str]:
    """Yield the figures as Markdown: by kind of change, then by pipeline."""
    for title, attribute in (("change", "kind"), ("pipeline", "pipeline")):
        yield f"| {title} | settings | error, median | 90th percentile | worst | interval holds |"
        yield "|---|---|---|---|---|---|"
        for name in dict.fromkeys(getattr(each, attribute) for each in found):
            yield _row(name, [each for each in found if getattr(each, attribute) == name])
        if attribute == "kind":
            yield _row("**all**", found)
            median, p90 = np.quantile(noise, (0.5, 0.9))
            yield f"| the base against itself | {len(noise)} | {median:.1%} | {p90:.1%} | {max(noise):.1%} | |"
        yield ""


def _row(name: str, found: list[Point]) -> str:
    errors = np.abs([each.error for each in found])
    median, p90 = np.quantile(errors, (0.5, 0.9))
    held = sum(each.held for each in found) / len(found)
    return f"| {name} | {len(found)} | {median:.1%} | {p90:.1%} | {errors.max():.1%} | {held:.0%} |"


def document(found: list[Point], noise: list[float], workers: int, times: int) -> Iterator[str]:
    """Yield the page that is kept in docs: of runs with so many workers, all settings measured so many times."""
    command = (
        f"python tests/benchmarks/prediction_accuracy.py --workers {workers} --keep DIR --write docs/predictions.md"
    )
    yield "# How good predictions are\n"
    yield f"Made by `{command}`, typed {times} times, on {os.cpu_count()} cores; see there for what is measured, and how."
    yield "The error is of the predicted speedup over the base setting; `*` marks an interval that does not hold what was measured.\n"
    yield from table(found, noise)
    yield "What one run cannot show:\n"
    yield '- "Two reads at once" is a source that serves no more than two requests at a time, just what a run with two workers'
    yield "  asks of it: intervals of more workers reach down to no gain wherever reading dominates."
    yield "- How a step grows with its batch: `batch_size` is predicted between two laws, and the interval spans both.\n"
    yield "Every setting:\n"
    yield "| pipeline | settings | predicted | measured | error |"
    yield "|---|---|---|---|---|"
    for each in found:
        interval = f"{each.predicted:.2f} ({each.low:.2f} to {each.high:.2f})"
        yield f"| {each.pipeline} | {each.settings} | {interval} | {each.measured:.2f}{'' if each.held else ' *'} | {each.error:+.1%} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="of the run from which is predicted")
    parser.add_argument("--case", default="", help="only pipelines whose name holds this")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="to measure each setting")
    parser.add_argument("--keep", type=Path, help="keep the recordings and what was measured in this folder")
    parser.add_argument("--again", type=Path, metavar="DIR", help="predict from what was kept there, measure nothing")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page with all tables")
    asked = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*worker processes in total.*")
    multiprocessing.set_start_method("fork")
    base: Settings = {"num_workers": asked.workers}
    if asked.workers:
        base["prefetch_factor"] = 2
    found: list[Point] = []
    noise: list[float] = []
    times = 1
    with tempfile.TemporaryDirectory() as scratch:
        keep = asked.again or asked.keep or Path(scratch)
        keep.mkdir(exist_ok=True)
        for number, pipeline in enumerate(PIPELINES):
            folder = keep / str(number)
            if asked.case not in pipeline.name:
                continue
            if not folder.exists():
                profile(number, base, folder)
            if not asked.again:
                measure(number, base, asked.seconds, folder)
            seen = measured(folder)
            mine = predicted(pipeline.name, folder, seen)
            for each in mine:
                mark = " " if each.held else "!"
                print(
                    f"{mark} {each.pipeline:30} {each.settings:75} {each.predicted:6.2f} [{each.low:5.2f} {each.high:5.2f}]"
                    f" {each.measured:6.2f} {each.error:+7.1%}",
                    flush=True,
                )
            found += mine
            noise += seen.noise()
            times = len(list(folder.glob(MEASURED)))
    print("\n".join(table(found, noise)))
    if asked.write:
        asked.write.write_text("\n".join(document(found, noise, asked.workers, times)) + "\n")
    errors = np.abs([each.error for each in found])
    median, p90, share = *np.quantile(errors, (0.5, 0.9)), statistics.mean(each.held for each in found)
    return 0 if median <= PROMISED[0] and p90 <= PROMISED[1] and share >= PROMISED[2] else 1


if __name__ == "__main__":
    sys.exit(main())
