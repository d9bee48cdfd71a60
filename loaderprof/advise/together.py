"""The set of changes that gains the most together, and what is left to gain after it. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from loaderprof.advise.change import Change, ChangeRule, RunFacts
from loaderprof.advise.weigh import weigh
from loaderprof.diagnose.loop_context import LoopContext
from loaderprof.diagnose.verdict import MIN_GAIN
from loaderprof.findings import JOINED, Advice, Costs, Expected
from loaderprof.replay.edits import with_settings
from loaderprof.replay.model import LoopModel
from loaderprof.replay.removal import unloaded

# Another change joins the set where it multiplies the gain by this, until the set has so many.
MIN_MORE, MAX_CHANGES = 1.1, 3


@dataclass(frozen=True, slots=True)
class Offer:
    """A change that is worth making by itself, and what it gains."""

    change: Change
    expected: Expected


def together(
    offers: Sequence[Offer],
    rules: Sequence[ChangeRule],
    context: LoopContext,
    base: LoopModel,
    before_s: float,
    facts: RunFacts,
) -> Advice | None:
    """Return the set of changes that gains the most together; None where no two gain more than one of them.

    Args:
        offers: the changes that are worth making alone. A set may hold others, which gain nothing by themselves.
        rules: what offers changes.
        context: the loop and what was seen of it.
        base: the model of the loop as it ran.
        before_s: its seconds a batch.
        facts: see `RunFacts`.
    """
    if not offers:
        return None
    alone = {each.change.id: each for each in offers}
    best = max(offers, key=lambda each: each.expected.speedup or 0.0)
    chosen, model = [best.change], best.change.model
    while len(chosen) < MAX_CHANGES:
        options = (change for rule in rules for change in _on(model, rule, alone, context, facts))
        more = _most(chosen, model, options)
        if more is None:
            break
        chosen, model = [*chosen, more], more.model
    if len(chosen) < 2 or not _fit(chosen, facts):
        return None
    order = list(alone)
    chosen.sort(key=lambda change: order.index(change.id) if change.id in alone else len(order))
    settings = {key: value for change in chosen for key, value in change.change.items() if _is_setting(change)}
    coded = not all(_is_setting(change) for change in chosen)
    change = Change(
        id="+".join(change.id for change in chosen),
        action=JOINED.join(change.action for change in chosen),
        why=_left(model, context),
        change={**({"kind": "code"} if coded else {}), **settings},
        current={key: value for change in chosen for key, value in change.current.items() if key in settings},
        model=model,
        costs=_costs(chosen),
        code="\n".join(change.code for change in chosen if change.code),
    )
    expected = weigh(change, context, base, before_s, facts)
    singles = [alone[change.id].expected for change in chosen if change.id in alone]
    return change.advice(_widened(expected, singles)) if expected is not None else None


def _on(
    model: LoopModel, rule: ChangeRule, alone: dict[str, Offer], context: LoopContext, facts: RunFacts
) -> Iterator[Change]:
    """Yield a rule's changes on top of a model; one that is also offered alone has the words and settings it has there."""
    for change in rule(context, model, facts):
        known = alone[change.id].change if change.id in alone else change
        after = change.model
        if _is_setting(known) and known.change != change.change:
            after = with_settings(model, **known.change)
        yield replace(known, model=after)


def _most(chosen: list[Change], model: LoopModel, options: Iterable[Change]) -> Change | None:
    """Return the option that gains the most on top of those chosen; None where none gains enough."""
    best, most_s = None, model.pace_s() / MIN_MORE
    for change in options:
        if not any(change.id == each.id or _collide(change, each) for each in chosen):
            pace_s = change.model.pace_s()
            if pace_s < most_s:
                best, most_s = change, pace_s
    return best


def _is_setting(change: Change) -> bool:
    return "kind" not in change.change


def _collide(one: Change, other: Change) -> bool:
    """Return whether two changes set the same thing, reduce the same work, or one makes the other pointless."""
    if 0 in (one.change.get("num_workers"), other.change.get("num_workers")):
        return True
    settings = _is_setting(one) and _is_setting(other) and bool(one.change.keys() & other.change.keys())
    return settings or bool(one.cheaper & other.cheaper)


def _fit(chosen: list[Change], facts: RunFacts) -> bool:
    needed = sum(each.costs.memory_bytes or 0 for each in chosen)
    return facts.available_memory is None or needed <= facts.available_memory


def _costs(chosen: list[Change]) -> Costs:
    costs = [each.costs for each in chosen]
    return Costs(
        sum(each.cores or 0.0 for each in costs),
        None if any(each.memory_bytes is None for each in costs) else sum(each.memory_bytes or 0 for each in costs),
        "arguments" if all(_is_setting(each) for each in chosen) else "code",
    )


def _left(model: LoopModel, context: LoopContext) -> str:
    """Return what limits the loop once the changes are made."""
    bare = unloaded(model, context.parts)
    bare = replace(bare, costs=replace(bare.costs, worker_start_s=0.0, worker_boot_s=0.0, worker_stop_s=0.0))
    after = bare.pace_s()
    left = model.pace_s() / after if after > 0 else math.inf
    return "After them the step is the limit." if left < 1.0 + MIN_GAIN else "After them loading is still the limit."


def _widened(expected: Expected, singles: list[Expected]) -> Expected:
    """Return what a set gains, with the uncertainties of its changes combined, but no less than the surest of them."""
    gain = expected.speedup or 1.0
    down = math.hypot(*(math.log((each.speedup or 1.0) / (each.low or 1.0)) for each in singles))
    up = math.hypot(*(math.log((each.high or 1.0) / (each.speedup or 1.0)) for each in singles))
    low = min(expected.low or gain, max(gain * math.exp(-down), *(each.low or 0.0 for each in singles)))
    high = max(expected.high or gain, gain * math.exp(up))
    return replace(expected, low=round(low, 3), high=round(high, 3))
