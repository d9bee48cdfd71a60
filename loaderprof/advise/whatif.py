"""What any settings of a loader would gain, advised or not. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loaderprof.advise.change import Change, RunFacts, may_be_full
from loaderprof.advise.changes.delivery import in_process
from loaderprof.advise.weigh import BORDER_ERROR_PER_LOG, expect, interval
from loaderprof.diagnose.loop_context import LoopContext
from loaderprof.findings import Costs, Expected
from loaderprof.replay.edits import with_batch_size, with_settings
from loaderprof.replay.model import LoopModel

# Settings whose effect can be predicted from one run.
KNOWN = ("num_workers", "prefetch_factor", "persistent_workers", "in_order", "pin_memory", "batch_size")
# One run does not show how a step grows with the samples of its batch: at least not at all, at most in proportion.
GROWTHS = (0.0, 1.0)
# The likely growth, as (of the device's time or what else is waited for, of CPU time): a device's time grows somewhat, and
# the CPU only launches kernels; without a device the CPU computes, and what it waits for is latency.
WITH_DEVICE, WITHOUT = (0.5, 0.0), (0.0, 1.0)
# At the limit of a source another number of workers changes the pace by at most this factor.
SATURATED = 1.06


def what_if(settings: Mapping[str, Any], context: LoopContext, base: LoopModel, facts: RunFacts) -> Expected | None:
    """Return what settings would do to a job's speed; None where one run cannot predict it.

    Args:
        settings: as `--set` takes them, for this loop's loader.
        context: the loop and what was seen of it.
        base: the model of the loop as it ran.
        facts: what prediction needs beyond them.
    """
    wanted = {key: value for key, value in settings.items() if key != "batch_size"}
    now = context.loop.facts.batch_size
    size = settings.get("batch_size", now)
    # Without a prefetch_factor torch takes its own; without a batch size nothing is collated.
    if set(settings) - set(KNOWN) or None in wanted.values() or ("batch_size" in settings and not (size and now)):
        return None
    if not facts.cuda:
        # Without a device torch pins nothing.
        wanted.pop("pin_memory", None)
    likely = with_settings(base, **wanted)
    workers = likely.settings.num_workers
    models = [likely]
    if base.settings.num_workers and not workers:
        models = in_process(base)
        likely = models[1]
    ratio = size / now if size and now else 1.0
    if ratio != 1.0:
        models = [with_batch_size(model, ratio, growth, growth) for model in models for growth in GROWTHS]
        likely = with_batch_size(likely, ratio, *(WITH_DEVICE if facts.cuda else WITHOUT))
    before_s = base.pace_s()
    ends: list[float] = []
    for model in models if len(models) > 1 else ():
        after_s = model.pace_s()
        ends += interval(ratio * before_s / after_s, base.settings.num_workers, 0.0, after_s, facts.uneven)
    if may_be_full(context) and workers != base.settings.num_workers:
        ends += (1.0 / SATURATED, SATURATED)
    change = Change(
        id="settings",
        action="",
        why="",
        change=dict(settings),
        model=likely,
        costs=Costs(0.0, None, ""),
        floor=min(ends, default=None),
        ceiling=max(ends, default=None),
        error_per_log=BORDER_ERROR_PER_LOG if wanted.get("persistent_workers") else 0.0,
        samples=ratio,
    )
    return expect(change, context, base, before_s, facts)
