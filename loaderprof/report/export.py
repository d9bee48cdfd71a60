"""`loaderprof export`: a recording in the form that another tool reads.

Chrome traces are made in `chrome`, OpenMetrics in `metrics`; here are stacks (speedscope, collapsed), the table of
steps (Parquet), and writing them without ever replacing a file that was not meant.
"""

from __future__ import annotations

import gzip
import io
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loaderprof import __version__, recording
from loaderprof.diagnose import many_ranks
from loaderprof.diagnose.stages import split_frame
from loaderprof.diagnose.timeline import Loop, build
from loaderprof.errors import OutputError, RecordingError, UsageError
from loaderprof.recording import Recording
from loaderprof.report import chrome, metrics
from loaderprof.report.busy import sign
from loaderprof.stacks import StackSamples

SPEEDSCOPE_SCHEMA = "https://www.speedscope.app/file-format-schema.json"


@dataclass(frozen=True, slots=True)
class Format:
    """A form of export: the file it is written to in the recording's folder, what makes it, and whether sums of most ranks do."""

    file: str
    make: Callable[[Recording], bytes]
    summed: bool = False


def export(folder: Path, name: str, *, output: str | None, force: bool) -> int:
    """Write a recording in another tool's form; returns the exit code.

    Args:
        folder: the recording.
        name: one of `FORMATS`.
        output: the file; None: in the folder, named by the format; `-`: standard output.
        force: replace the file.

    Raises:
        LoaderprofError: there is nothing to export, the file exists or cannot be written.
    """
    form = FORMATS.get(name)
    if form is None:
        raise UsageError(f"--format does not know {name!r}", f"it takes {', '.join(FORMATS)}")
    path = None if output == "-" else Path(output) if output else folder / form.file
    if path is not None and path.exists() and not force:
        raise OutputError(f"{path} exists already", "replace it with --force, or name another file with -o")
    with sign(f"reading {folder}"):
        content = form.make(many_ranks.read(folder) if form.summed else recording.read(folder))
    if path is None:
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return 0
    # The same recording gives the same bytes: no time stamp in the header.
    _write(path, gzip.compress(content, mtime=0) if path.name.endswith(".gz") else content, force)
    sys.stdout.write(f"{path}\n")
    return 0


def _write(path: Path, content: bytes, force: bool) -> None:
    try:
        # "x" refuses a file that came to be since it was looked for.
        with open(path, "wb" if force else "xb") as file:
            file.write(content)
    except FileExistsError:
        raise OutputError(f"{path} exists already", "replace it with --force, or name another file with -o") from None
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}", "name another file with -o") from None


def chrome_trace(seen: Recording) -> bytes:
    """Return the Chrome trace."""
    return chrome.render(seen).encode()


def open_metrics(seen: Recording) -> bytes:
    """Return the findings as OpenMetrics."""
    return metrics.render(seen.findings()).encode()


def _stacks(seen: Recording) -> dict[int, list[StackSamples]]:
    """Return the stacks by process, in the order in which the processes were first seen.

    Raises:
        RecordingError: there are none.
    """
    stacks: dict[int, list[StackSamples]] = defaultdict(list)
    for sample in seen.stacks:
        stacks[sample.pid].append(sample)
    if not stacks:
        raise RecordingError(
            f"{seen.folder} holds no stacks: the run was too short, or py-spy was refused",
            "loaderprof env tells whether py-spy may read stacks",
        )
    return stacks


def _process_name(seen: Recording, pid: int, samples: list[StackSamples]) -> str:
    known = next((process for process in seen.processes if process.pid == pid), None)
    if known is not None and known.worker is not None:
        return f"worker {known.worker} ({pid})"
    if any(sample.frames[0].startswith("_worker_loop (") for sample in samples if sample.frames):
        return f"worker ({pid})"
    rank = f"rank {known.rank}" if known is not None and known.rank is not None else "process"
    return f"{rank} ({pid})"


def speedscope(seen: Recording) -> bytes:
    """Return stacks as speedscope's own JSON: one profile a process, its threads as root frames, weights in seconds."""
    numbers: dict[str, int] = {}
    profiles = []
    for pid, samples in _stacks(seen).items():
        rows = [
            [numbers.setdefault(frame, len(numbers)) for frame in (f"thread {sample.thread}", *sample.frames)]
            for sample in samples
        ]
        weights = [round(sample.count / sample.rate_hz, 6) for sample in samples]
        profiles.append(
            {
                "type": "sampled", "name": _process_name(seen, pid, samples), "unit": "seconds", "startValue": 0,
                "endValue": round(sum(weights), 6), "samples": rows, "weights": weights,
            }
        )  # fmt: skip
    command = seen.meta.get("command")
    document = {
        "$schema": SPEEDSCOPE_SCHEMA, "shared": {"frames": [_speedscope_frame(frame) for frame in numbers]},
        "profiles": profiles, "name": " ".join(map(str, command)) if isinstance(command, list) else seen.folder.name,
        "activeProfileIndex": 0, "exporter": f"loaderprof {__version__}",
    }  # fmt: skip
    return json.dumps(document).encode()


def _speedscope_frame(frame: str) -> dict[str, Any]:
    function, file, line = split_frame(frame)
    shown: dict[str, Any] = {"name": function}
    if file:
        shown["file"] = file
    if line is not None:
        shown["line"] = line
    return shown


def collapsed(seen: Recording) -> bytes:
    """Return stacks as `process;thread;frame;frame count` lines, for flamegraph.pl, inferno and speedscope."""
    lines = []
    for pid, samples in _stacks(seen).items():
        process = _process_name(seen, pid, samples)
        counts: dict[tuple[str, ...], int] = defaultdict(int)
        for sample in samples:
            counts[(sample.thread, *sample.frames)] += sample.count
        lines += [f"{';'.join(map(_one_frame, (process, *frames)))} {count}\n" for frames, count in counts.items()]
    return "".join(lines).encode("utf-8", "replace")


def _one_frame(frame: str) -> str:
    # The format has no escapes: `;` parts frames, a line ends a stack.
    return " ".join(frame.replace(";", ":").split()) or "?"


def steps_table(seen: Recording) -> bytes:
    """Return one row a batch taken, as Parquet; what was not measured is null.

    Raises:
        RecordingError: pyarrow is not installed, or no step was stamped.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise RecordingError("Parquet needs pyarrow, which is not installed", "pip install pyarrow") from None
    loops = build(seen).loops
    if not loops:
        raise RecordingError(f"{seen.folder} holds no steps", "loaderprof run -o DIR train.py records them")
    tables = [_columns(loop) for loop in loops]
    columns = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
    # A number that is not a number was not measured.
    table = pyarrow.table({name: pyarrow.array(values, from_pandas=True) for name, values in columns.items()})
    sink = io.BytesIO()
    pyarrow.parquet.write_table(table, sink)
    return sink.getvalue()


def _columns(loop: Loop) -> Mapping[str, np.ndarray[Any, Any]]:
    """Return a loop's steps by column; `_s` are seconds, `asked_s` since the run began."""
    rows = len(loop.asked)
    return {
        "rank": np.full(rows, loop.process.rank or 0), "host": np.full(rows, loop.process.host, object),
        "pid": np.full(rows, loop.process.pid), "loader": np.full(rows, loop.name, object),
        "training": np.full(rows, loop.training), "epoch": loop.epoch, "batch": loop.position, "asked_s": loop.asked,
        "taken_s": loop.taken, "wait_s": loop.wait, "step_s": loop.step, "step_cpu_s": loop.step_cpu,
        "step_run_queue_s": loop.step_runq, "receive_s": loop.receive, "sampler_s": loop.index,
        "ready_batches": np.where(loop.ready >= 0, loop.ready, np.nan), "parked_batches": loop.parked.astype(float),
        "batches": loop.count, "steady": loop.steady,
    }  # fmt: skip


FORMATS: dict[str, Format] = {
    "chrome": Format("chrome.json", chrome_trace),
    "speedscope": Format("speedscope.json", speedscope),
    "collapsed": Format("collapsed.txt", collapsed),
    "openmetrics": Format("openmetrics.txt", open_metrics, summed=True),
    "parquet": Format("steps.parquet", steps_table),
}
