"""Changes to the user's own functions: threads inside workers, a slow transform or collate, work in the loop. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from loaderprof import formatting
from loaderprof.advise.change import Change, ChangeGuide, RunFacts, rule
from loaderprof.analyze.pieces import MANY_THREADS
from loaderprof.diagnose.loop_context import LoopContext
from loaderprof.findings import Costs, Stage
from loaderprof.replay.edits import faster, with_costs
from loaderprof.replay.model import LoopModel
from loaderprof.replay.removal import remove_stage

# A function that takes less than this share of making a batch is not worth a change.
MIN_SHARE = 0.2
# A smaller gain from the loop's own Python may be a few stack samples assigned to the wrong line.
MIN_HOST_GAIN = 0.1

SINGLE_THREADED_WORKERS = ChangeGuide(
    "single-threaded-workers",
    "Give each worker one thread",
    code="def one_thread(worker_id):  # worker_init_fn=one_thread\n    torch.set_num_threads(1)\n    cv2.setNumThreads(0)",
)


@rule(SINGLE_THREADED_WORKERS)
def single_threaded_workers(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    """Stop libraries from running threads in each worker, where these contend for the cores."""
    threads = context.parts.threads or 1.0
    if "contention" not in context.gains or threads <= MANY_THREADS:
        return
    waited = 1.0 / context.gains["contention"]
    yield Change(
        id=SINGLE_THREADED_WORKERS.id,
        action="Give each worker one thread: OMP_NUM_THREADS=1, cv2.setNumThreads(0)",
        why=f"Each worker keeps {threads:.1f} threads busy on {context.cores:g} cores.",
        change={"kind": "code", "threads_per_worker": 1},
        current={"threads_per_worker": round(threads, 1)},
        model=with_costs(base, fetch_cpu_s=base.costs.fetch_cpu_s * waited),
        costs=Costs(0.0, 0, "one line in worker_init_fn"),
        code="def one_thread(worker_id):\n    torch.set_num_threads(1)\n    cv2.setNumThreads(0)",
        floor=1.0,
        cheaper=frozenset({"contention"}),
    )


CHEAPER_TRANSFORM = ChangeGuide(
    "cheaper-transform", "Make the dearest transform cheaper; the report names it and its line"
)
CHEAPER_COLLATE = ChangeGuide(
    "cheaper-collate", "Make the dearest part of collate cheaper; the report names it and its line"
)
_CHEAPER: dict[Stage, ChangeGuide] = {"transform": CHEAPER_TRANSFORM, "collate": CHEAPER_COLLATE}


@rule(CHEAPER_TRANSFORM, CHEAPER_COLLATE)
def cheaper_function(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    """Name the most expensive function of transform and of collate, with what half its cost would gain."""
    total = sum(piece.total_s for piece in context.parts.pieces)
    for stage, guide in _CHEAPER.items():
        pieces = [piece for piece in context.parts.pieces if piece.stage == stage]
        if not pieces:
            continue
        # A function of the user's has a piece for each of its lines: it is one thing to make cheaper.
        piece = pieces[0]
        cost = sum(each.total_s for each in pieces if each.name == piece.name)
        if cost < MIN_SHARE * total:
            continue
        yield Change(
            id=guide.id,
            action=f"Make {piece.name} cheaper: half its cost",
            why=f"It is {formatting.percent(cost / total, whole=True)} of making a batch; the gain is what half its cost would bring.",
            where=piece.where,
            change={"kind": "code", "operator": piece.name},
            current={"s_per_batch": round(cost, 6)},
            model=faster(base, context.parts, stage, 1.0 / (1.0 - 0.5 * cost / sum(each.total_s for each in pieces))),
            costs=Costs(0.0, 0, "code"),
            cheaper=frozenset({stage}),
        )


LIGHTER_LOOP = ChangeGuide(
    "lighter-loop", "Take logging, metrics and checkpoints off the step: do them less often, or beside it"
)


@rule(LIGHTER_LOOP)
def lighter_loop(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    """Move the loop's own Python out of the step."""
    model = remove_stage(base, "host", context.parts)
    if model is None or context.gain("host") < MIN_HOST_GAIN:
        return
    yield Change(
        id=LIGHTER_LOOP.id,
        action="Take logging, metrics and checkpoints off the step: less often, or beside it",
        why="The loop's own Python holds up the step.",
        where=context.parts.host_by[0][0] if context.parts.host_by else None,
        change={"kind": "code"},
        model=model,
        costs=Costs(0.0, 0, "code"),
        floor=1.0,
        cheaper=frozenset({"host"}),
    )
