"""Recording -> a Parquet table with one row a batch taken. Needs pyarrow, an extra."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from loaderprof.analyze.loop import Loop
from loaderprof.analyze.timeline import build
from loaderprof.errors import RecordingError
from loaderprof.recording.reader import Recording


def render(seen: Recording) -> bytes:
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
        "rank": np.full(rows, loop.process.rank or 0),
        "host": np.full(rows, loop.process.host, object),
        "pid": np.full(rows, loop.process.pid),
        "loader": np.full(rows, loop.name, object),
        "training": np.full(rows, loop.training),
        "epoch": loop.epoch,
        "batch": loop.position,
        "asked_s": loop.asked,
        "taken_s": loop.taken,
        "wait_s": loop.wait,
        "step_s": loop.step,
        "step_cpu_s": loop.step_cpu,
        "step_run_queue_s": loop.step_runq,
        "receive_s": loop.receive,
        "sampler_s": loop.index,
        "ready_batches": np.where(loop.ready >= 0, loop.ready, np.nan),
        "parked_batches": loop.parked.astype(float),
        "batches": loop.count,
        "steady": loop.steady,
    }
