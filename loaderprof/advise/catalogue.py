"""The catalogue of changes: which rules apply to which loader, and what of their changes is advised. Pure.

A change is offered only where the replay says that it gains, beyond the replay's own error, and where it is not what is
set already. Each change stands in one place, in `changes/`: when it applies, its edit of the model, and all of its words.
"""

from __future__ import annotations

from types import ModuleType

from loaderprof.advise.change import ChangeGuide, ChangeRule, RunFacts
from loaderprof.advise.changes import code, data, decoder, delivery, device, pool, ray, reads, settings, stream
from loaderprof.advise.knobs import in_terms_of
from loaderprof.advise.together import Offer, together
from loaderprof.advise.weigh import weigh
from loaderprof.diagnose.loop_context import LoopContext
from loaderprof.findings import Advice, Expected
from loaderprof.replay.model import LoopModel

# A gain that one run cannot predict.
UNKNOWN = Expected(None, None, None, None)


def _rules(*modules: ModuleType) -> tuple[ChangeRule, ...]:
    """Return the rules that modules define, in the order of their lines."""
    return tuple(each for module in modules for each in vars(module).values() if isinstance(each, ChangeRule))


# Of changes that gain the same, those of the rule that comes first here are advised first.
LOADER_RULES = _rules(settings, device, data, decoder, reads, code, delivery, stream)
# What is no DataLoader takes none of its settings, and workers would each have a pool of their own.
WATCHED_RULES = _rules(pool, decoder, code)
RAY_RULES = _rules(ray, decoder, code)

# What the guide to the causes says of each change, by its id.
CHANGES: dict[str, ChangeGuide] = {
    guide.id: guide for each in (*LOADER_RULES, *WATCHED_RULES, *RAY_RULES) for guide in each.guides
}


def rules_for(context: LoopContext) -> tuple[ChangeRule, ...]:
    """Return the rules that apply to what the loop takes its batches from."""
    watched = context.loop.facts.watched
    if watched and context.loop.facts.framework == ray.FRAMEWORK:
        return RAY_RULES
    return WATCHED_RULES if watched or context.parts.pool is not None else LOADER_RULES


def advise(context: LoopContext, base: LoopModel, facts: RunFacts, least: float = 0.0) -> tuple[Advice, ...]:
    """Return the changes worth making to one loop, best first; last, if there is one, the set that gains the most.

    Args:
        context: the loop and what was seen of it.
        base: the model of the loop as it ran.
        facts: what advice needs beyond them.
        least: the speedup that the lower end of a change's interval must reach; with one, changes whose gain cannot be
            predicted are left out.
    """
    rules = rules_for(context)
    predicted = [each for each in rules if each.predicted]
    before_s = base.pace_s()
    offers = [
        Offer(change, expected)
        for rule in predicted
        for change in rule(context, base, facts)
        if (expected := weigh(change, context, base, before_s, facts)) is not None and (expected.low or 0.0) >= least
    ]
    offers.sort(key=lambda offer: -(offer.expected.low or 0.0))
    advice = [offer.change.advice(offer.expected) for offer in offers]
    if least <= 0.0:
        unpredicted = [each for each in rules if not each.predicted]
        advice += [change.advice(UNKNOWN) for rule in unpredicted for change in rule(context, base, facts)]
    joint = together(offers, predicted, context, base, before_s, facts)
    advice += [joint] if joint is not None else []
    return tuple(in_terms_of(context.loop.facts.framework, each) for each in advice)
