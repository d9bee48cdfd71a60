"""What every labelled case shares: the knobs that take one stage's work away, the clock, the command line.

    python tests/cases/decode.py jpeg_pil                  run one case for about seven seconds
    python tests/cases/decode.py jpeg_pil --zero decode    the same with the work of one stage taken away
    python tests/cases/decode.py                           list the cases of this family

A case is an ordinary training script inside a function. It never imports loaderprof, except the watched ones of pools.py.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import inspect
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import library as torch_library

FOLDER = Path(__file__).parent
FAMILIES = (
    "read",
    "decode",
    "transform",
    "collate",
    "handover",
    "startup",
    "straggler",
    "contention",
    "sampler",
    "host",
    "device",
    "healthy",
    "mixed",
    "pools",
)
SECONDS = 7.0  # long enough for some 50 steps of the slowest case, short enough for 60 cases in an hour


class Always:
    """Takes the place of a stage's work: any call gives the same ready result."""

    def __init__(self, result: Any) -> None:
        self.result = result

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self.result


class Unchanged:
    """Takes the place of a transform that keeps the shape."""

    def __call__(self, x: Any, *_: Any, **__: Any) -> Any:
        return x


class Knobs:
    """Says which stage, if any, is to cost nothing in this run. `folder` is the case's own."""

    def __init__(self, zero: str | None, folder: Path) -> None:
        self.zero = zero
        self.folder = folder

    def off(self, stage: str) -> bool:
        return stage == self.zero

    def pick(self, stage: str, usual: Any, without: Any) -> Any:
        """The usual work, or what stands in its place when this stage is to cost nothing."""
        return without if self.off(stage) else usual


class Clock:
    """Ends the loop by time. Counts from the end of the first step, unless the case says `clock.begin()`."""

    def __init__(self, seconds: float) -> None:
        self.limit_s = seconds
        self.started: float | None = None
        self.seconds = 0.0
        self.batches = 0
        self.done = False

    def begin(self) -> None:
        self.started = time.perf_counter()

    def over(self) -> bool:
        """Called once after every step; true when the loop should stop."""
        now = time.perf_counter()
        if self.started is None:
            self.started = now
            return False
        self.batches += 1
        self.seconds = now - self.started
        self.done = self.seconds >= self.limit_s
        return self.done


@dataclass(frozen=True)
class Case:
    name: str
    family: str
    module: str
    label: str
    also: tuple[str, ...]
    stages: tuple[str, ...]
    needs: tuple[str, ...]
    body: Callable[[Knobs, Clock], None]

    def missing(self) -> str | None:
        absent = [name for name in self.needs if importlib.util.find_spec(name) is None]
        return f"needs {', '.join(absent)}" if absent else None

    def command(self, zero: str | None = None, seconds: float = SECONDS, threads: int = 1) -> list[str]:
        words = [str(FOLDER / f"{self.module}.py"), self.name, "--seconds", f"{seconds:g}", "--threads", str(threads)]
        return [*words, "--zero", zero] if zero else words


CASES: dict[str, Case] = {}


Body = Callable[[Knobs, Clock], None]


def case(family: str, *, label: str, stages: str, also: str = "", needs: str = "") -> Callable[[Body], Body]:
    """Register a case. `label`: the stage that limits it; `stages`: its knobs; `also`: what ties with it."""

    def register(body: Body) -> Body:
        module = Path(inspect.getfile(body)).stem
        name = body.__name__
        CASES[name] = Case(
            name,
            family,
            module,
            label,
            tuple(also.split()),
            tuple(stages.split()),
            tuple(needs.split()),
            body,
        )
        return body

    return register


def every_case() -> dict[str, Case]:
    for family in FAMILIES:
        importlib.import_module(family)
    return CASES


def ask_for_torchvision() -> None:
    """Let a torchvision without its compiled operators import: the transforms need none of them."""
    try:
        library = torch_library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    except RuntimeError:  # a complete torchvision has defined them
        return
    globals()["_torchvision_operators"] = library  # the definitions live as long as this object


def main() -> int:
    """The command line of every family file."""
    # The cases hold lambdas and local classes, as scripts do; later Pythons no longer fork by default.
    multiprocessing.set_start_method("fork", force=True)
    parser = argparse.ArgumentParser()
    parser.add_argument("name", nargs="?")
    parser.add_argument("--zero", metavar="STAGE")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--threads", type=int, default=1, help="of the step; 0: torch's own choice")
    options = parser.parse_args()
    if options.name is None:
        for one in CASES.values():
            print(f"{one.name:28} {one.label:12} {one.family}")
        return 0
    if options.name not in CASES:
        print(f"no case {options.name!r} here; there are: {' '.join(CASES)}", file=sys.stderr)
        return 2
    chosen = CASES[options.name]
    if reason := chosen.missing():
        print(f"skipped: {chosen.name} {reason}")
        return 0
    torch.manual_seed(0)
    if options.threads:  # with 1, one core for the step, one for the loader: steadier than two that fight for both
        torch.set_num_threads(options.threads)
    clock = Clock(options.seconds)
    with tempfile.TemporaryDirectory() as folder:
        chosen.body(Knobs(options.zero, Path(folder)), clock)
    print(f"batches {clock.batches} seconds {clock.seconds:.3f}", flush=True)
    return 0
