"""Run the cases under loaderprof and compare its verdicts with the measured truth.

    python tests/cases/accuracy.py                     every case: about fifteen minutes
    python tests/cases/accuracy.py --named             a dozen of them, one or two of each kind
    python tests/cases/accuracy.py jpeg_pil sql_scan   these
    python tests/cases/accuracy.py --family decode     the cases of these family files
    python tests/cases/accuracy.py --json FILE         the same figures as JSON, "-" for standard output

A row ends with what each source of evidence alone would have said: t(imers in the pipeline), s(tacks) and the kernel's
c(ounters); timers and stacks each with the counters, which neither can do without.

Truth is what truth.py measured (truth.json); a case that was never measured counts with its label and is marked `?`.
A verdict is right where it names the measured stage or one that ties with it. A verdict other than "none" or
"device" on a case that is healthy or limited by its step is a false alarm: the user would mend a loader that works.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from casework import FAMILIES, FOLDER, SECONDS, Case, every_case

from loaderprof.conclude import conclude
from loaderprof.recording import reader

NAMED = (
    "http_latency",
    "small_files",
    "jpeg_pil",
    "json_lines",
    "numpy_classes",
    "pad_in_python",
    "numpy_lists",
    "short_epochs",
    "slow_request",
    "torch_threads",
    "convolutions",
    "matched_store",
)
LIMIT_S = 180  # a case takes SECONDS and a few to start; beyond this it hangs


@dataclass(frozen=True)
class Outcome:
    case: str
    family: str
    truth: tuple[str, ...]
    measured: bool
    verdict: str
    cause: str
    confidence: str
    seconds: float
    headline: str
    alone: dict[str, str]

    @property
    def right(self) -> bool:
        return self.verdict in self.truth

    @property
    def false_alarm(self) -> bool:
        nothing = {"none", "device", "unknown"}
        return not {"none", "device"}.isdisjoint(self.truth) and self.verdict not in nothing | set(self.truth)


def truths(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def accepted(case: Case, known: dict[str, Any]) -> tuple[str, ...]:
    """The stages that count as right: the measured one, and the label's ties where the measurement agrees."""
    labels = (case.label, *case.also)
    found = known.get(case.name, {}).get("measured")
    return labels if found is None or found in labels else (found,)


def profile(case: Case, known: dict[str, Any], seconds: float, threads: int, keep: Path | None) -> Outcome:
    with tempfile.TemporaryDirectory() as scratch:
        folder = (keep or Path(scratch)) / case.name
        command = [sys.executable, "-m", "loaderprof", "run", "--no-html", "-o", str(folder)]
        begun = time.perf_counter()
        try:
            done = subprocess.run(
                [*command, *case.command(seconds=seconds, threads=threads)],
                capture_output=True,
                text=True,
                timeout=LIMIT_S,
                check=False,
            )
            complaint = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        except subprocess.TimeoutExpired:
            complaint = [f"still running after {LIMIT_S} s"]
        took = time.perf_counter() - begun
        verdict = read_verdict(folder / "findings.json") or {"headline": complaint[0]}
        alone = by_source(folder) if "bottleneck" in verdict else {}
    return Outcome(
        case.name,
        case.family,
        accepted(case, known),
        case.name in known,
        verdict.get("bottleneck") or "failed",
        verdict.get("cause") or "-",
        verdict.get("confidence") or "-",
        round(took, 1),
        verdict.get("headline") or "",
        alone,
    )


def by_source(folder: Path) -> dict[str, str]:
    """The verdicts from the same recording without the other sources."""
    whole = reader.read(folder)
    untimed = {**whole.tables, "operator": whole.tables["operator"][:0]}
    parts = {
        "timers": replace(whole, stacks=[]),
        "stacks": replace(whole, tables=untimed),
        "counters": replace(whole, stacks=[], tables=untimed),
    }
    return {name: conclude(part).findings.verdict.bottleneck for name, part in parts.items()}


def read_verdict(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())["verdict"]
    except (OSError, ValueError, KeyError):
        return None


def matrix(outcomes: Iterable[Outcome]) -> str:
    """Rows: truth. Columns: verdict. A right answer is counted under its own name where two would do."""
    counts = Counter((one.verdict if one.right else one.truth[0], one.verdict) for one in outcomes)
    rows = sorted({truth for truth, _ in counts})
    columns = sorted({verdict for _, verdict in counts} | set(rows))
    lines = ["truth \\ verdict".ljust(16) + "".join(name[:10].rjust(11) for name in columns)]
    for truth in rows:
        cells = (str(counts[truth, verdict] or ".").rjust(11) for verdict in columns)
        lines.append(truth.ljust(16) + "".join(cells))
    return "\n".join(lines)


def summary(outcomes: list[Outcome], skipped: dict[str, str]) -> dict[str, Any]:
    right = [one for one in outcomes if one.right]
    high = [one for one in outcomes if one.confidence == "high"]
    return {
        "cases": len(outcomes),
        "families": len({one.family for one in outcomes}),
        "right": len(right),
        "accuracy": round(len(right) / len(outcomes), 4) if outcomes else None,
        "high": len(high),
        "high_but_wrong": [one.case for one in high if not one.right],
        "false_alarms": [one.case for one in outcomes if one.false_alarm],
        "unknown": [one.case for one in outcomes if one.verdict == "unknown"],
        "failed": [one.case for one in outcomes if one.verdict == "failed"],
        "right_alone": {
            name: sum(one.alone.get(name) in one.truth for one in outcomes) for name in ("timers", "stacks", "counters")
        },
        "skipped": skipped,
        "outcomes": [{**asdict(one), "right": one.right} for one in outcomes],
    }


def row(one: Outcome) -> str:
    truth = "|".join(one.truth) + ("" if one.measured else "?")
    mark = " " if one.right else "!"
    sources = " ".join(f"{name[0]}:{verdict}" for name, verdict in one.alone.items())
    return f"{mark} {one.case:24} {truth:20} {one.verdict:12} {one.cause:24} {one.confidence:7} {one.seconds:5.1f} s  {sources}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--named", action="store_true", help="the dozen that CI runs")
    parser.add_argument("--family", choices=FAMILIES, action="append", default=[])
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--threads", type=int, default=1, help="of the step; 0: torch's own choice")
    parser.add_argument("--truth", type=Path, default=FOLDER / "truth.json", help="what truth.py wrote")
    parser.add_argument("--keep", type=Path, help="keep the recordings in this folder")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    cases, known = every_case(), truths(options.truth)
    names = [*options.names, *(NAMED if options.named else ())]
    if unknown := set(names) - cases.keys():
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    chosen = [
        one
        for one in cases.values()
        if one.name in names or one.module in options.family or not (names or options.family)
    ]
    lines = sys.stderr if options.json == "-" else sys.stdout
    outcomes, skipped = [], {}
    for one in chosen:
        if reason := one.missing():
            skipped[one.name] = reason
            print(f"  {one.name:26} skipped: {reason}", file=lines, flush=True)
            continue
        outcomes.append(profile(one, known, options.seconds, options.threads, options.keep))
        print(row(outcomes[-1]), file=lines, flush=True)
    figures = summary(outcomes, skipped)
    print(f"\n{matrix(outcomes)}\n", file=lines)
    print(f"accuracy {figures['right']} of {figures['cases']} over {figures['families']} families", file=lines)
    print("right by one source alone:", ", ".join(f"{k} {v}" for k, v in figures["right_alone"].items()), file=lines)
    for name in ("high_but_wrong", "false_alarms", "unknown", "failed"):
        print(f"{name.replace('_', ' ')}: {', '.join(figures[name]) or 'none'}", file=lines)
    if options.json == "-":
        print(json.dumps(figures, indent=1))
    elif options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1) + "\n")
    return 0 if figures["right"] == figures["cases"] else 1


if __name__ == "__main__":
    sys.exit(main())
