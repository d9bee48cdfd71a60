"""Measure which stage limits each case: run it whole, then with the work of one stage taken away at a time.

    python tests/cases/truth.py                       every case
    python tests/cases/truth.py jpeg_pil sql_scan     these
    python tests/cases/truth.py --family decode       the cases of these family files
    python tests/cases/truth.py --seconds 2 --rounds 3

Prints `case, family, label, measured best stage, gain` and updates truth.json beside this file. The stage whose
removal raises the throughput most is the measured limit, with two rules that DESIGN's definition leaves open:

* contention, straggler and startup are not work of their own but what goes wrong with the work of another
  stage: taking that work away also takes them away. Where their removal alone gains as much (within TIE of
  the best), they are the limit: the smaller change does it.
* a case is healthy ("none") where no stage of the loader or the host gains 5 % and removing the step itself
  gains less than half: the two are matched. Where it gains more, the step is the limit ("device").
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from casework import FAMILIES, FOLDER, Case, every_case

GAIN = 1.05  # DESIGN section 5: a stage that gains less than 5 % is no bottleneck
MATCHED = 1.5  # a loader with less than half its capacity to spare is matched to its step
TIE = 0.8  # two runs of the same case differ by up to this on a shared machine
CROSS = {"contention", "straggler", "startup"}
LAST_LINE = re.compile(r"^batches (\d+) seconds ([\d.]+)$", re.MULTILINE)


@dataclass(frozen=True)
class Truth:
    case: str
    family: str
    label: str
    also: tuple[str, ...]
    measured: str
    gain: float
    batches_per_s: float
    gains: dict[str, float]

    @property
    def agrees(self) -> bool:
        return self.measured in {self.label, *self.also}


def throughput(case: Case, zero: str | None, seconds: float, threads: int) -> float:
    done = subprocess.run(
        [sys.executable, *case.command(zero, seconds, threads)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    found = LAST_LINE.search(done.stdout)
    if done.returncode or not found:
        raise RuntimeError(f"{case.name} --zero {zero}: exit {done.returncode}\n{done.stderr[-2000:]}")
    return int(found[1]) / max(float(found[2]), 1e-9)


def measure(case: Case, seconds: float, rounds: int, threads: int) -> Truth:
    """Rounds are interleaved, so that a busy spell of the machine meets every arm alike."""
    rates: dict[str | None, list[float]] = {zero: [] for zero in (None, *case.stages)}
    for _ in range(rounds):
        for zero, seen in rates.items():
            seen.append(throughput(case, zero, seconds, threads))
    whole = statistics.median(rates[None])
    gains = {zero: statistics.median(seen) / whole for zero, seen in rates.items() if zero is not None}
    measured = limit(gains)
    return Truth(
        case.name,
        case.family,
        case.label,
        case.also,
        measured,
        gains.get(measured, max(gains.values())),
        whole,
        gains,
    )


def limit(gains: dict[str, float]) -> str:
    """The stage that limits the job, from the throughput gained by taking each one away."""
    loader = {stage: gain for stage, gain in gains.items() if stage != "device"}
    best = max(gains, key=lambda stage: gains[stage])
    if max(loader.values(), default=0.0) < GAIN:
        return "device" if gains.get("device", 0.0) >= MATCHED else "none"
    crossing = [stage for stage in CROSS & gains.keys() if gains[stage] >= max(GAIN, TIE * gains[best])]
    return max(crossing, key=lambda stage: gains[stage]) if crossing else best


def row(truth: Truth) -> str:
    others = "  ".join(f"{stage} {gain:.2f}" for stage, gain in sorted(truth.gains.items(), key=lambda one: -one[1]))
    mark = " " if truth.agrees else "!"
    label = "|".join((truth.label, *truth.also))
    return f"{mark} {truth.case:26} {truth.family:24} {label:18} {truth.measured:11} {truth.gain:6.2f}x   {others}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--family", choices=FAMILIES, action="append", default=[])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of the step; 0: torch's own choice")
    parser.add_argument("--output", type=Path, default=FOLDER / "truth.json")
    options = parser.parse_args()
    cases = every_case()
    if unknown := set(options.names) - cases.keys():
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    wanted = [
        one
        for one in cases.values()
        if one.name in options.names or one.module in options.family or not (options.names or options.family)
    ]
    kept = json.loads(options.output.read_text()) if options.output.exists() else {}
    wrong = 0
    print(f"  {'case':26} {'family':24} {'label':18} {'measured':11} {'gain':>7}   throughput without each stage")
    for one in wanted:
        if reason := one.missing():
            print(f"  {one.name:26} skipped: {reason}")
            continue
        try:
            truth = measure(one, options.seconds, options.rounds, options.threads)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            wrong += 1
            print(f"! {one.name:26} failed: {error}", flush=True)
            continue
        wrong += not truth.agrees
        print(row(truth), flush=True)
        kept[one.name] = {
            "family": truth.family,
            "label": truth.label,
            "also": list(truth.also),
            "measured": truth.measured,
            "gain": round(truth.gain, 2),
            "batches_per_s": round(truth.batches_per_s, 2),
            "gains": {stage: round(gain, 2) for stage, gain in truth.gains.items()},
        }
        options.output.write_text(json.dumps({name: kept[name] for name in sorted(kept)}, indent=1) + "\n")
    print(f"{wrong} labels disagree with what was measured")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
