"""Evidence that causes of several stages share: how full the prefetch queue was, and how long the device had nothing to do.

Batches are counted when they are produced, before they are pickled: where one is in the queue and the loop waits all the
same, the hand-over or the loop's own thread is what takes long.
"""

from __future__ import annotations

from loaderprof import formatting
from loaderprof.analyze.loop import Loop
from loaderprof.diagnose.causes.cause import share_fact
from loaderprof.diagnose.loop_context import MOSTLY, LoopContext, step_s
from loaderprof.findings import Evidence


def batch_ready(loop: Loop, so: str = "") -> list[Evidence]:
    """Return at how many steps a batch was in the queue already, where it was at most of them; `so`: what follows from it."""
    empty = _empty_share(loop)
    if empty is None or 1.0 - empty < MOSTLY:
        return []
    ready = 1.0 - empty
    return [share_fact(f"a batch was already made at {{}} of the steps{so}", ready, MOSTLY)]


def none_ready(loop: Loop, beyond: float = MOSTLY) -> list[Evidence]:
    """Return at how many steps the queue was empty, where it was at more than this share of them."""
    empty = _empty_share(loop)
    if empty is None or empty <= beyond:
        return []
    return [share_fact("no batch was ready at {} of the steps", empty)]


def device_idle(context: LoopContext) -> list[Evidence]:
    """Return how long the device had nothing to do in a step, where its own clock was read."""
    starved = context.loop.starved
    if not len(starved) or not step_s(context):
        return []
    idle_s = float(starved.mean())
    text = f"the device has nothing to do {formatting.duration(idle_s)} of every step, by its own clock"
    return [Evidence(text, idle_s, "s", None)]


def _empty_share(loop: Loop) -> float | None:
    known = loop.steady & (loop.ready >= 0) & (loop.count == 1)
    return float((loop.ready[known] == 0).mean()) if known.any() else None
