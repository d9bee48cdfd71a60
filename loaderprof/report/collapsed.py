"""Recording -> stacks as text, one line a stack with its count, for flamegraph.pl, inferno and speedscope."""

from __future__ import annotations

from collections import defaultdict

from loaderprof.recording.reader import Recording
from loaderprof.report.speedscope import process_name, stacks_by_process


def render(seen: Recording) -> bytes:
    """Return stacks as `process;thread;frame;frame count` lines, for flamegraph.pl, inferno and speedscope.

    Raises:
        RecordingError: there are none.
    """
    lines = []
    for pid, samples in stacks_by_process(seen).items():
        process = process_name(seen, pid, samples)
        counts: dict[tuple[str, ...], int] = defaultdict(int)
        for sample in samples:
            counts[(sample.thread, *sample.frames)] += sample.count
        lines += [f"{';'.join(map(_one_frame, (process, *frames)))} {count}\n" for frames, count in counts.items()]
    return "".join(lines).encode("utf-8", "replace")


def _one_frame(frame: str) -> str:
    # The format has no escapes: `;` parts frames, a line ends a stack.
    return " ".join(frame.replace(";", ":").split()) or "?"
