"""Changes to a tf.data pipeline, in its own terms: when each applies, what it costs, how it edits the chain. Pure.

To add one, write a function that yields it and call that in `_offers`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from loaderprof import formatting
from loaderprof.analyze.tfdata import MOSTLY_BLOCKED, Node, Operation, Pipeline
from loaderprof.findings import JOINED, Advice, Costs, Expected, Stage
from loaderprof.replay.tfdata import PipelineModel, expected

AUTOTUNE = "AUTOTUNE"
# Calls at once for a function that mostly waits: more than there are cores, as a call that waits needs none.
WAITING_CALLS = 16
# Stages that may be functions of the user's, who can make them cheaper.
_OWN: tuple[Stage, ...] = ("decode", "transform", "read")


@dataclass(frozen=True, slots=True)
class PipelineFacts:
    """What advice needs beyond the pipeline and its model.

    `spread`: see `replay.tfdata.expected`. `available_memory` is in bytes, None where it was not measured. `disturbed`: other
    programs took a good part of the cores.
    """

    epochs: int
    epoch_batches: float
    samples_per_s: float | None
    spread: float
    available_memory: int | None
    disturbed: bool = False


# A set is offered where it gains this much more than the best change alone.
MIN_MORE = 1.05
# A cache may take this share of the memory that is free.
CACHE_SHARE_OF_MEMORY = 0.5
# A change whose gain is not weighed yet, and the model of the pipeline with it.
_Offer = tuple[Advice, PipelineModel]
_UNWEIGHED = Expected(None, None, None, None)


def advise(pipeline: Pipeline, model: PipelineModel, facts: PipelineFacts) -> tuple[Advice, ...]:
    """Return the changes that would make the job faster, the best first, and the set of two where it gains more."""
    found = _weighed(_offers(pipeline, model, facts), model, facts)
    best = max(map(_gain, found), default=0.0)
    found += [each for each in _weighed(_together(pipeline, model), model, facts) if _gain(each) > MIN_MORE * best]
    return tuple(sorted(found, key=_gain, reverse=True))


def _weighed(offers: Iterable[_Offer], before: PipelineModel, facts: PipelineFacts) -> list[Advice]:
    """Return the changes that gain something beyond the error, with what they gain."""
    weighed = []
    for advice, after in offers:
        gain = expected(before, after, facts.samples_per_s, facts.spread, facts.disturbed)
        if gain is not None:
            weighed.append(replace(advice, expected=gain))
    return weighed


def _gain(advice: Advice) -> float:
    return advice.expected.speedup or 0.0


def _offers(pipeline: Pipeline, model: PipelineModel, facts: PipelineFacts) -> Iterator[_Offer]:
    yield from _parallel(model)
    yield from _prefetch(pipeline, model)
    yield from _cache(pipeline, model, facts)
    yield from _cheaper(model)


def _together(pipeline: Pipeline, model: PipelineModel) -> Iterator[_Offer]:
    """Offer parallel calls and a prefetch as one change: either alone may gain nothing while the other is missing."""
    for first, parallel in _parallel(model):
        for second, ahead in _prefetch(pipeline, parallel):
            yield (
                Advice(
                    id=f"{first.id}+{second.id}",
                    action=first.action + JOINED + second.action,
                    why=first.why,
                    where=first.where,
                    change={**first.change, **second.change},
                    current={**first.current, **second.current},
                    expected=_UNWEIGHED,
                    costs=Costs(first.costs.cores, None, "two arguments"),
                    code=f"{first.code}\n{second.code}",
                ),
                ahead,
            )


def _parallel(model: PipelineModel) -> Iterator[_Offer]:
    """Offer calls at once where a function is called one at a time, or fewer times at once than there are cores."""
    waits = model.blocked > MOSTLY_BLOCKED
    calls = WAITING_CALLS if waits else max(1, int(model.cores))
    serial = [node for node in model.nodes if _can_be_parallel(node, calls, waits)]
    if not serial:
        return
    most_expensive = max(serial, key=lambda node: node.work_s)
    changed = (replace(node, ahead=True, parallelism=calls) if node in serial else node for node in model.nodes)
    shown = WAITING_CALLS if waits else "tf.data.AUTOTUNE"
    change: dict[str, Any] = {"tf.num_parallel_calls": WAITING_CALLS if waits else AUTOTUNE}
    code = f"dataset = dataset.{_method(most_expensive)}(..., num_parallel_calls={shown})"
    now = max(1, most_expensive.parallelism)
    why = f"{most_expensive.label} takes {formatting.duration(most_expensive.work_s)} a batch, {now} call{'s' if now > 1 else ''} at a time"
    if waits:
        # However many calls are asked for, TensorFlow's own pool runs as many as there are cores.
        why += f", and is blocked {formatting.percent(model.blocked, whole=True)} of it"
        change["tf.private_threadpool_size"] = WAITING_CALLS
        code += (
            f"\noptions = tf.data.Options()\noptions.threading.private_threadpool_size = {WAITING_CALLS}\n"
            "dataset = dataset.with_options(options)"
        )
    yield (
        Advice(
            id="parallel-calls",
            action=f"Set num_parallel_calls={shown} on {most_expensive.label}"
            + (", in a pool of as many threads" if waits else ""),
            why=why,
            where=most_expensive.where,
            change=change,
            current={"num_parallel_calls": now},
            expected=_UNWEIGHED,
            costs=Costs(0.0 if waits else float(calls - now), None, "two settings" if waits else "one argument"),
            code=code,
        ),
        model.of(changed),
    )


def _can_be_parallel(node: Node, calls: int, waits: bool) -> bool:
    operation = node.operation
    if operation is None or operation.family not in ("map", "interleave") or node.work_s <= 0:
        return False
    # AUTOTUNE decides by itself how many; but where functions wait it stops at the number of cores.
    return node.parallelism < calls and (waits or not node.tunable)


def _method(node: Node) -> str:
    return node.operation.family if node.operation is not None else "map"


def _prefetch(pipeline: Pipeline, model: PipelineModel) -> Iterator[_Offer]:
    """Offer to prefetch, where the last operations run only once the loop asks for a batch."""
    last = []
    for node in model.nodes:
        if node.ahead:
            break
        last.append(node)
    asked_s = sum(node.work_s for node in last)
    if asked_s <= 0:
        return
    ahead = Node("Prefetch", "handover", None, 0.0, 0, False, True, 1.0, 0.0)
    yield (
        Advice(
            id="prefetch",
            action="End the pipeline with prefetch(tf.data.AUTOTUNE)",
            why=f"{formatting.duration(asked_s)} of each batch are made only once the loop asks for it",
            where=last[-1].where or _first_line(pipeline),
            change={"tf.prefetch": AUTOTUNE},
            current={"prefetch": None},
            expected=_UNWEIGHED,
            costs=Costs(0.0, round(2 * model.nodes[0].bytes_) or None, "one line"),
            code="dataset = dataset.prefetch(tf.data.AUTOTUNE)",
        ),
        model.of((ahead, *model.nodes)),
    )


def _cache(pipeline: Pipeline, model: PipelineModel, facts: PipelineFacts) -> Iterator[_Offer]:
    """Offer to cache what is the same in every epoch, where a second epoch was seen and the cache fits in memory."""
    last = _same_each_epoch(pipeline.operations)
    at = next((number for number, node in enumerate(model.nodes) if last is not None and node.operation is last), None)
    if at is None or facts.epochs < 2:
        return
    size = round(model.nodes[at].bytes_ * facts.epoch_batches)
    if facts.available_memory is not None and size > CACHE_SHARE_OF_MEMORY * facts.available_memory:
        return
    kept = model.nodes[at:]
    changed = (*model.nodes[:at], *(replace(node, work_s=0.0) for node in kept))
    spared = sum(node.work_s for node in kept)
    label = model.nodes[at].label
    yield (
        Advice(
            id="cache",
            action=f"Cache after {label}: gains from the second epoch on",
            why=f"{label} and what is before it give the same in every epoch, and take {formatting.duration(spared)} a batch",
            where=model.nodes[at].where,
            change={"tf.cache": True},
            current={"cache": False},
            expected=_UNWEIGHED,
            costs=Costs(0.0, size or None, "one line"),
            code=f"dataset = dataset.{_method(model.nodes[at])}(...).cache()",
        ),
        model.of(changed),
    )


def _same_each_epoch(operations: tuple[Operation, ...]) -> Operation | None:
    """Return the last operation before the first that shuffles, batches or repeats; None where a cache there is no use.

    That is where an operation up to it is random, where a cache stands there already, and where nothing is mapped or
    filtered yet. `--set tf.cache=true` looks for the same operation (`capture/hooks/tf_settings.py`).
    """
    last, mapped = None, False
    for each in reversed(operations):
        if each.family == "cache" or each.random:
            return None
        if each.family in ("shuffle", "batch", "repeat"):
            return last if mapped else None
        mapped |= each.family in ("map", "interleave", "flat_map", "filter")
        last = each
    return None


def _cheaper(model: PipelineModel) -> Iterator[_Offer]:
    """Offer to make the most expensive function of the user's cheaper."""
    mine = [node for node in model.nodes if node.stage in _OWN and node.operation is not None and node.work_s > 0]
    if not mine:
        return
    most_expensive = max(mine, key=lambda node: node.work_s)
    changed = (replace(node, work_s=node.work_s / 2) if node is most_expensive else node for node in model.nodes)
    yield (
        Advice(
            id="cheaper-function",
            action=f"Make {most_expensive.label} cheaper: half its cost",
            why=f"{most_expensive.label} takes {formatting.duration(most_expensive.work_s)} a batch",
            where=most_expensive.where,
            change={"kind": "code"},
            current={},
            expected=_UNWEIGHED,
            costs=Costs(0.0, None, "code"),
        ),
        model.of(changed),
    )


def _first_line(pipeline: Pipeline) -> str | None:
    return next((each.where for each in pipeline.operations if each.where), None)
