"""Models of loops, fitted to hand-made recordings: what the tests of `replay` begin with."""

from __future__ import annotations

from made import Fetch, Plan

from loaderprof.analyze.breakdown import Breakdown, break_down
from loaderprof.analyze.loop import Loop
from loaderprof.analyze.timeline import build
from loaderprof.recording.reader import Recording
from loaderprof.replay.fit import fit_model
from loaderprof.replay.model import LoopModel


def modelled(recording: Recording, cores: float = 8.0) -> tuple[Loop, Breakdown, LoopModel]:
    (loop,) = build(recording).loops
    parts = break_down(recording, loop)
    base = fit_model(loop, parts, cores, None)
    assert base is not None
    return loop, parts, base


def lazy(epochs: int = 12, batches: int = 6, wait_s: float = 0.5) -> Plan:
    """Two workers, each of which builds its data set's table at its first sample of every epoch."""
    return Plan(
        epochs=epochs,
        batches=batches,
        workers=2,
        startup=0.02,
        shutdown=0.03,
        step=0.01,
        wait=lambda batch: wait_s if batch == 0 else 0.0,
        fetch=Fetch(cpu=lambda task: wait_s if task < 2 else 0.002),
    )
