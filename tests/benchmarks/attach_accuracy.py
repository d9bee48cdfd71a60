"""How far is the waiting that `loaderprof attach` tells from the stamps of the same job at the same time?

    python tests/benchmarks/attach_accuracy.py                         eight labelled jobs: about seven minutes
    python tests/benchmarks/attach_accuracy.py jpeg_pil convolutions   these, of tests/cases
    python tests/benchmarks/attach_accuracy.py --seconds 10            shorter visits, larger errors

Each job of tests/cases has its loader's `__next__` wrapped in two readings of the clock, and nothing else: the profiler's own
hooks do more between two batches, which a visit would see. Once the job trains, `loaderprof attach` watches it from outside.
The truth is what was stamped between the visit's first sample and its last. A row shows both shares, the error in points
beside the half-width that the visit itself stated, what limits the job by its label, and what the visit named.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loaderprof.analyze import samples
from loaderprof.conclude import findings_of
from loaderprof.recording import reader

CASES = Path(__file__).parents[1] / "cases"
sys.path.append(str(CASES))
JOBS = (
    "http_latency",
    "small_files",
    "jpeg_pil",
    "json_lines",
    "numpy_classes",
    "pad_in_python",
    "convolutions",
    "matched_store",
)
PATIENCE_S = 120
# What each process of the job imports when it starts: a stamp is (asked, taken), nanoseconds of the common clock.
STAMPS = """
import os, struct, sys, time

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name != "torch.utils.data.dataloader":
            return None
        sys.meta_path.remove(self)
        import importlib.util
        spec = importlib.util.find_spec(name)
        run, file = spec.loader.exec_module, open(os.environ["STAMPS"] + str(os.getpid()), "wb", buffering=0)
        def execute(module):
            run(module)
            original = module._BaseDataLoaderIter.__next__
            def __next__(iterator):
                asked = time.perf_counter_ns()
                try:
                    return original(iterator)
                finally:
                    file.write(struct.pack("<qq", asked, time.perf_counter_ns()))
            module._BaseDataLoaderIter.__next__ = __next__
        spec.loader.exec_module = execute
        return spec

sys.meta_path.insert(0, Finder())
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One job: shares of its time that the loop waited, stamped and seen from outside; its label, and what was named."""

    name: str
    stamped: float
    seen: float
    stated: float
    samples: int
    label: str
    stage: str

    @property
    def error(self) -> float:
        """How far the visit was off."""
        return self.seen - self.stamped


def watch(name: str, seconds: float) -> Row:
    """Run a job that stamps, visit it, and return what both saw."""
    from casework import every_case

    case = every_case()[name]
    with tempfile.TemporaryDirectory() as place:
        visited = Path(place) / "visited"
        (Path(place) / "sitecustomize.py").write_text(STAMPS)
        path = os.pathsep.join((place, os.environ.get("PYTHONPATH", "")))
        job = subprocess.Popen(
            [sys.executable, *case.command(seconds=10 * seconds)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path, "STAMPS": f"{place}/stamps-"},
        )
        stamps = Path(place) / f"stamps-{job.pid}"
        try:
            trains(job, stamps)
            visit = ["attach", str(job.pid), "--duration", f"{seconds:g}", "--no-html", "-o", str(visited)]
            command = [sys.executable, "-m", "loaderprof", *visit]
            subprocess.run(command, check=True, capture_output=True, timeout=seconds + PATIENCE_S)
        finally:
            job.send_signal(signal.SIGTERM)
            job.wait(timeout=PATIENCE_S)
        seen = reader.read(visited)
        wait = samples.waiting(samples.look(seen))
        begun, done = min(one.t_begun for one in seen.stacks), max(one.t_done for one in seen.stacks)
        share = stamped_share(stamps, begun, done)
        return Row(name, share, wait.value, wait.error, wait.samples, case.label, findings_of(seen).verdict.bottleneck)


def trains(job: subprocess.Popen[bytes], stamps: Path) -> None:
    """Wait until a job has taken some batches."""
    end = time.monotonic() + PATIENCE_S
    while not stamps.exists() or stamps.stat().st_size < 10 * 16:
        if job.poll() is not None or time.monotonic() > end:
            raise SystemExit("the job does not train")
        time.sleep(0.1)


def stamped_share(stamps: Path, begun: int, done: int) -> float:
    """Return the share of a span that lies between asking for a batch and taking it."""
    asked, taken = np.fromfile(stamps, "<i8").reshape(-1, 2).T
    within = np.minimum(taken, done) - np.maximum(asked, begun)
    return float(np.maximum(within, 0).sum() / (done - begun))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=list(JOBS))
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    print(
        "| job | waits, stamped | waits, from outside | error, points | stated ± | samples | limited by | attach names |"
    )
    print("|---|---|---|---|---|---|---|---|")
    rows = []
    for name in options.cases:
        rows.append(row := watch(name, options.seconds))
        print(
            f"| {name} | {row.stamped:.1%} | {row.seen:.1%} | {100 * row.error:+.1f} | {100 * row.stated:.1f} "
            f"| {row.samples:,} | {row.label} | {row.stage} |",
            flush=True,
        )
    off = [100 * abs(row.error) for row in rows]
    within = sum(abs(row.error) <= row.stated for row in rows)
    print(
        f"\nmedian error {statistics.median(off):.1f} points, largest {max(off):.1f}; {within} of {len(rows)} as stated"
    )


if __name__ == "__main__":
    main()
