"""Counters of the kernel that would say more of a loop's producers, where a system does not show them."""

from __future__ import annotations

from loaderprof.diagnose.loop_context import LoopContext
from loaderprof.findings import Cause, Evidence


def unread(context: LoopContext) -> list[Cause]:
    """Return an entry, not measured, for each counter that could not be read while batches were produced."""
    parts, missing = context.parts, tuple(context.loop.process.header.unread)
    entries = []
    if parts.runq_s is None and parts.wall_s is not None and "schedstat" in missing:
        fact = Evidence("this system does not tell it", None, "", None)
        entries.append(Cause("run-queue", "not_measured", "contention", (fact,), None, "Waiting for a core"))
    if parts.asked_bytes is None and parts.wall_s is not None and "io" in missing:
        fact = Evidence("this system does not tell them", None, "", None)
        entries.append(Cause("bytes-read", "not_measured", "read", (fact,), None, "Bytes read by the makers"))
    return entries
