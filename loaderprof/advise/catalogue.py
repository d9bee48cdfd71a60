"""The catalogue of changes: when each applies, what it costs, how it edits the replay, and the words it is told in.

A change is offered only where the replay says it gains, beyond the replay's own error, and where it is not what is
set already. Settings never ask for more workers than the CPU budget has cores.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from loaderprof.advise.change import Change, Rule, RunFacts, may_be_full
from loaderprof.advise.changes import ray
from loaderprof.advise.changes.data import DATA_RULES
from loaderprof.advise.changes.decoder import faster_decoder
from loaderprof.advise.changes.delivery import DELIVERY_RULES
from loaderprof.advise.changes.device import DEVICE_RULES
from loaderprof.advise.changes.pool import POOL_RULES
from loaderprof.advise.changes.stream import STREAM_RULES, UNPREDICTED_RULES
from loaderprof.advise.knobs import spoken
from loaderprof.advise.together import Offer, together
from loaderprof.advise.weigh import BORDER_ERROR_PER_LOG, weigh
from loaderprof.analyze.pieces import MANY_THREADS
from loaderprof.diagnose.loop_context import LoopContext, of_tensors
from loaderprof.diagnose.verdict import MIN_GAIN
from loaderprof.findings import Advice, Costs, Expected
from loaderprof.replay.edits import WORKER_START_S, faster, with_settings
from loaderprof.replay.model import LoopModel
from loaderprof.replay.removal import STRAGGLER_RATIO, remove_stage

READ_THREADS = 8
# What opens an archive or a database file, what reads its index, and the least share of a batch that is worth a change.
_OPENING = re.compile(
    r"tarfile\.open|ZipFile\.__init__|h5py\._hl\.files\.File\.__init__|lmdb\.open|sqlite3\.connect|zarr\.open"
)
_INDEXING = re.compile(r"TarFile\.(next|extractfile)$")
MIN_OPENING = 0.1
# Below this what stacks call the loop's own may be a few samples gone astray.
MIN_HOST_GAIN = 0.1
# Measured: one indexing call against one for each row and stacking them, 256 rows of 784 to 1,024 rows of 3 floats.
SLICED_RATIOS = (2.4, 8.0, 13.0)
# What a forked worker keeps of setting itself up: what its dataset opens, at least at most, likely, and at best.
FORKED_KEPT = (0.5, 0.15, 0.0)
# A gain that one run cannot tell.
UNKNOWN = Expected(None, None, None, None)


def advise(context: LoopContext, base: LoopModel, facts: RunFacts, least: float = 0.0) -> tuple[Advice, ...]:
    """Return the changes worth making to one loop, best first; last, if there is one, the set that gains the most.

    Args:
        scene: the loop and what was seen of it.
        base: the loop as it ran.
        facts: what advice needs beyond them.
        least: the speedup that the lower end of a change's interval must reach.
    """
    # What is no DataLoader takes none of its settings, and workers would each have a pool of their own.
    rules = WATCHED_RULES if context.loop.facts.watched or context.parts.pool is not None else RULES
    if context.loop.facts.framework == ray.FRAMEWORK and context.loop.facts.watched:
        rules = RAY_RULES
    before_s = base.pace_s()
    offers = [
        Offer(change, expected)
        for rule in rules
        for change in rule(context, base, facts)
        if (expected := weigh(change, context, base, before_s, facts)) is not None and (expected.low or 0.0) >= least
    ]
    offers.sort(key=lambda offer: -(offer.expected.low or 0.0))
    joint = together(offers, rules, context, base, before_s, facts)
    told = [offer.change.advice(offer.expected) for offer in offers]
    if least <= 0.0 and rules is RULES:
        told += [change.advice(UNKNOWN) for rule in UNPREDICTED_RULES for change in rule(context, base, facts)]
    told += [joint] if joint is not None else []
    return tuple(spoken(each, context.loop.facts.framework) for each in told)


def _workers(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    """Raise or lower num_workers to the least number that is within 1 % of the best the budget allows."""
    now, cap = base.settings.num_workers, max(1, int(base.cores))
    candidates = sorted({*range(1, min(cap, 8) + 1), *(n for n in (12, 16, 24, 32) if n <= cap), cap})
    runs = {number: with_settings(base, num_workers=number).pace_s() for number in candidates if number != now}
    # More workers than shards would be idle too; fewer than workers are left as they are.
    if not runs or context.loop.idle_workers:
        return
    best = min(runs.values())
    number = min(n for n, total in runs.items() if total <= 1.01 * best)
    verb = "Raise" if number > now else "Lower"
    loader = context.loop.name
    code = f"{loader} = DataLoader(..., num_workers={number})"
    yield Change(
        "num-workers",
        f"{verb} num_workers from {now} to {number}",
        f"{('Batches are made in the training process', 'One worker makes the batches')[now] if now < 2 else f'{now} workers make the batches'}; "
        f"the CPU budget is {base.cores:g} cores.",
        context.loop.facts.where,
        {"num_workers": number},
        {"num_workers": now},
        with_settings(base, num_workers=number),
        Costs(float(number - now), None, "one argument"),
        code,
        _saturation_floor(context) if number > now else None,
    )


def _saturation_floor(context: LoopContext) -> float | None:
    # More requests at once may gain nothing.
    return 1.0 if may_be_full(context) else None


def _prefetch(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    now = base.settings.prefetch_factor
    if base.settings.num_workers:
        for factor in (4, 8):
            if factor > now:
                yield Change(
                    "prefetch-factor",
                    f"Raise prefetch_factor from {now} to {factor}",
                    "Batches take uneven times; a deeper queue rides over the slow ones.",
                    context.loop.facts.where,
                    {"prefetch_factor": factor},
                    {"prefetch_factor": now},
                    with_settings(base, prefetch_factor=factor),
                    Costs(0.0, _batches_bytes(context, (factor - now) * base.settings.num_workers), "one argument"),
                    f"{context.loop.name} = DataLoader(..., prefetch_factor={factor})",
                )
                return


def _persistent(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    if base.settings.num_workers and not base.settings.persistent_workers and base.epochs > 1:
        kept = with_settings(base, persistent_workers=True)
        # Where every batch was its worker's first, any part of it may have been set-up.
        costs = replace(
            base.costs, fetch_cpu_s=base.costs.fetch_cpu_s * 0.0, fetch_blocked_s=base.costs.fetch_blocked_s * 0.0
        )
        ceiling = base.pace_s() / replace(kept, costs=costs).pace_s() if base.all_first else None
        # Workers live no longer than their loader: one made for each epoch keeps none, whatever it is told.
        anew = sum(epoch.anew for epoch in context.loop.epochs) > len(context.loop.epochs) / 2
        keep = "Keep the workers between epochs (persistent_workers=True)"
        yield Change(
            "one-loader" if anew else "persistent-workers",
            "Make the DataLoader once, before the loop, with persistent_workers=True" if anew else keep,
            f"Workers were started {len(context.loop.epochs)} times.",
            context.loop.facts.where,
            {"kind": "code"} if anew else {"persistent_workers": True},
            {"persistent_workers": False},
            kept,
            Costs(0.0, None, "a line moved" if anew else "one argument"),
            f"{context.loop.name} = DataLoader(..., persistent_workers=True)" + ("  # before the loop" if anew else ""),
            floor=1.0 if base.all_first else None,
            ceiling=ceiling,
            error_per_log=BORDER_ERROR_PER_LOG,
        )


def _start_method(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    """A worker that is forked has the job's modules and its dataset; any other imports them anew."""
    method = context.loop.facts.start_method
    if not base.settings.num_workers or method not in ("spawn", "forkserver") or context.gain("startup") < MIN_GAIN:
        return
    forked = [
        replace(
            base,
            costs=replace(
                base.costs,
                worker_boot_s=base.costs.worker_boot_s * kept,
                worker_start_s=min(base.costs.worker_start_s, WORKER_START_S),
            ),
        )
        for kept in FORKED_KEPT
    ]
    before = base.pace_s()
    yield Change(
        "start-method",
        f"Start workers with fork, not {method} (multiprocessing_context='fork')",
        "Each worker starts a Python of its own, imports the job's modules and unpickles the dataset; a forked one has them. "
        "Only where workers leave CUDA alone and no thread of the job holds a lock when they start.",
        context.loop.facts.where,
        {"multiprocessing_context": "fork"},
        {"multiprocessing_context": method},
        forked[1],
        Costs(0.0, None, "one argument"),
        f"{context.loop.name} = DataLoader(..., multiprocessing_context='fork')",
        before / forked[0].pace_s(),
        before / forked[-1].pace_s(),
        BORDER_ERROR_PER_LOG,
    )


def _out_of_order(context: LoopContext, base: LoopModel, facts: RunFacts) -> Iterator[Change]:
    # In 2.6, the first release to have it, work was dealt badly; pytorch pull request 142324 mended that in 2.7.
    recent = version(facts.torch) >= (2, 7)
    if recent and base.settings.num_workers > 1 and base.settings.in_order and "straggler" in context.gains:
        yield Change(
            "out-of-order",
            "Take batches as they are ready (in_order=False)",
            "A slow batch holds up later ones that are ready; the order of batches will change.",
            context.loop.facts.where,
            {"in_order": False},
            {"in_order": True},
            with_settings(base, in_order=False),
            Costs(0.0, 0, "one argument; the order of batches is no longer fixed"),
            f"{context.loop.name} = DataLoader(..., in_order=False)",
        )


def _sliced(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    """Offer to take a batch of tensors as one slice instead of row by row."""
    if not of_tensors(context):
        return
    slow, middle, fast = (
        faster(faster(base, context.parts, "read", n), context.parts, "collate", n) for n in SLICED_RATIOS
    )
    before = base.pace_s()
    yield Change(
        "slice-batches",
        "Take each batch as one slice of the tensors, not row by row",
        "The rows are in memory: indexing them one by one, and stacking them again, is all that a batch costs.",
        context.loop.facts.where,
        {"kind": "code"},
        {},
        middle,
        Costs(0.0, 0, "a few lines"),
        "sampler = BatchSampler(RandomSampler(dataset), batch_size, drop_last=False)\n"
        f"{context.loop.name} = DataLoader(dataset, sampler=sampler, batch_size=None)  # dataset[list of indices]",
        before / slow.pace_s(),
        before / fast.pace_s(),
        cheaper=frozenset({"read", "collate"}),
    )


def _read_ahead(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    blocked = sum(piece.blocked_s for piece in context.parts.pieces if piece.stage == "read")
    batch = context.loop.facts.batch_size or 1
    at_once = any(name.endswith(".__getitems__") for name in context.operators)
    # An iterable dataset is not asked for samples by their index.
    if batch < 2 or at_once or context.loop.facts.iterable or blocked < 0.3 * (context.parts.wall_s or math.inf):
        return
    threads = min(READ_THREADS, batch)
    costs = base.costs
    less = (1.0 - 1.0 / threads) * min(1.0, blocked / max(float(costs.fetch_blocked_s.mean()), 1e-12))
    # One slow read among quick ones overlaps with nothing.
    usual = np.minimum(costs.fetch_blocked_s, STRAGGLER_RATIO * np.median(costs.fetch_blocked_s))
    model = replace(base, costs=replace(costs, fetch_blocked_s=costs.fetch_blocked_s - less * usual))
    yield Change(
        "overlapped-reads",
        f"Read the samples of a batch at once: {threads} threads in __getitems__",
        "Makers wait for reads one after another; the waiting overlaps freely until the source is full.",
        context.named("read") or None,
        {"kind": "code", "threads": threads},
        {"threads": 1},
        model,
        Costs(0.0, 0, "a few lines"),
        "def __getitems__(self, indices):\n"
        f"    with ThreadPoolExecutor({threads}) as pool:\n        return list(pool.map(self.__getitem__, indices))",
        1.0,
        cheaper=frozenset({"read"}),
    )


def _keep_open(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    """Offer to open an archive or a database file once in each worker, where batches are seen to open it again."""
    reads = [piece for piece in context.parts.pieces if piece.stage == "read"]
    opening = [piece for piece in reads if _OPENING.search(piece.name)]
    if not opening:
        return
    # Its index is read again with it, and what else stands on the line that opens it.
    line = opening[0].where
    opening += [
        piece
        for piece in reads
        if piece not in opening and ((line and piece.where == line) or _INDEXING.search(piece.name))
    ]
    cpu, blocked = sum(piece.cpu_s for piece in opening), sum(piece.blocked_s for piece in opening)
    share = (cpu + blocked) / sum(piece.total_s for piece in context.parts.pieces)
    if share < MIN_OPENING:
        return
    costs = base.costs
    model = replace(
        base,
        costs=replace(
            costs,
            fetch_cpu_s=np.maximum(costs.fetch_cpu_s - cpu, 0.0),
            fetch_blocked_s=np.maximum(costs.fetch_blocked_s - blocked, 0.0),
        ),
    )
    yield Change(
        "keep-open",
        "Open the archive or database file once in each worker, not for every sample",
        f"Opening it, with its index, is {share:.0%} of making a batch.",
        opening[0].where,
        {"kind": "code"},
        {},
        model,
        Costs(0.0, 0, "a few lines"),
        "def __getitem__(self, index):\n    if self.file is None:  # None in __init__: each worker opens its own\n"
        "        self.file = open_it(self.path)",
        cheaper=frozenset({"read"}),
    )


def _cheaper(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    """Offer the dearest function of transform or collate as code to make cheaper: what half its cost would gain."""
    total = sum(piece.total_s for piece in context.parts.pieces)
    for stage in ("transform", "collate"):
        pieces = [piece for piece in context.parts.pieces if piece.stage == stage]
        if not pieces:
            continue
        # A function of the user's is told line by line; all of its lines are one thing to mend.
        piece = pieces[0]
        cost = sum(each.total_s for each in pieces if each.name == piece.name)
        if cost < 0.2 * total:
            continue
        yield Change(
            f"cheaper-{stage}",
            f"Make {piece.name} cheaper: half its cost",
            f"It is {cost / total:.0%} of making a batch; the gain is what half its cost would bring.",
            piece.where,
            {"kind": "code", "operator": piece.name},
            {"s_per_batch": round(cost, 6)},
            faster(base, context.parts, stage, 1.0 / (1.0 - 0.5 * cost / sum(each.total_s for each in pieces))),
            Costs(0.0, 0, "code"),
            cheaper=frozenset({stage}),
        )


def _threads(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    if "contention" in context.gains and (context.parts.threads or 1.0) > MANY_THREADS:
        costs = base.costs
        waited = 1.0 / context.gains["contention"]
        model = replace(base, costs=replace(costs, fetch_cpu_s=costs.fetch_cpu_s * waited))
        yield Change(
            "single-threaded-workers",
            "Give each worker one thread: OMP_NUM_THREADS=1, cv2.setNumThreads(0)",
            f"Each worker keeps {context.parts.threads or 0:.1f} threads busy on {context.cores:g} cores.",
            None,
            {"kind": "code", "threads_per_worker": 1},
            {"threads_per_worker": round(context.parts.threads or 0, 1)},
            model,
            Costs(0.0, 0, "one line in worker_init_fn"),
            "def one_thread(worker_id):\n    torch.set_num_threads(1)\n    cv2.setNumThreads(0)",
            1.0,
            cheaper=frozenset({"contention"}),
        )


def _lighter_loop(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    model = remove_stage(base, "host", context.parts)
    if model is not None and context.gain("host") >= MIN_HOST_GAIN:
        where = context.parts.host_by[0][0] if context.parts.host_by else None
        yield Change(
            "lighter-loop",
            "Take logging, metrics and checkpoints off the step: less often, or beside it",
            "The loop's own Python holds up the step.",
            where,
            {"kind": "code"},
            {},
            model,
            Costs(0.0, 0, "code"),
            "",
            1.0,
            cheaper=frozenset({"host"}),
        )


RULES: tuple[Rule, ...] = (
    _workers,
    _persistent,
    _start_method,
    _prefetch,
    _out_of_order,
    *DEVICE_RULES,
    *DATA_RULES,
    _sliced,
    faster_decoder,
    _read_ahead,
    _keep_open,
    _threads,
    _cheaper,
    _lighter_loop,
    *DELIVERY_RULES,
    *STREAM_RULES,
)
WATCHED_RULES: tuple[Rule, ...] = (
    *POOL_RULES,
    faster_decoder,
    _threads,
    _cheaper,
    _lighter_loop,
)
RAY_RULES: tuple[Rule, ...] = (*ray.RAY_RULES, faster_decoder, _threads, _cheaper, _lighter_loop)


def _batches_bytes(context: LoopContext, batches: int) -> int | None:
    size = context.batch_bytes
    return int(size * batches) if size else None


def version(text: str | None) -> tuple[int, int]:
    """Return a version's first two numbers; (0, 0) where it has none."""
    parts = (text or "0.0").split("+")[0].split(".")
    try:
        return int(parts[0]), int(parts[1])
    except (ValueError, IndexError):
        return 0, 0
