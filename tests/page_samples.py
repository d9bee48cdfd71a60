"""Made-up page data that looks like a run: two slow workers, two epochs, one stall; and hostile names."""

from __future__ import annotations

import random
from dataclasses import replace

from report_samples import HOSTILE, LONG_PATH, RIGHT_TO_LEFT

from loaderprof.report.page import Bar, Host, PageData, Process, Samples, Slow, SlowSample, Stack, Steps

WORK_S = 0.082

WORKER_STACKS = (
    (
        ("main (train.py:60)", "fetch (fetch.py:52)", "__getitem__ (data.py:43)", "convert (Image.py:993)"),
        "decode",
        60,
    ),
    (
        ("main (train.py:60)", "fetch (fetch.py:52)", "__getitem__ (data.py:41)", "open (Image.py:3431)"),
        "read",
        3,
    ),
    (
        ("main (train.py:60)", "fetch (fetch.py:52)", "__getitem__ (data.py:44)", "crop (functional.py:5)"),
        "transform",
        18,
    ),
    (
        (
            "main (train.py:60)",
            "fetch (fetch.py:52)",
            "__getitem__ (data.py:44)",
            "to_tensor (functional.py:9)",
        ),
        "transform",
        7,
    ),
    (
        (
            "main (train.py:60)",
            "fetch (fetch.py:54)",
            "default_collate (collate.py:317)",
            "stack (_ops.py:1)",
        ),
        "collate",
        6,
    ),
    (("main (train.py:60)", "put (queues.py:94)", "dumps (reduction.py:51)"), "handover", 3),
)
MAIN_STACKS = (
    (
        (
            "main (train.py:60)",
            "__next__ (dataloader.py:701)",
            "get (queues.py:113)",
            "poll (connection.py:257)",
        ),
        "unknown",
        58,
    ),
    (("main (train.py:60)", "forward (model.py:20)", "conv2d (conv.py:5)"), "device", 15),
    (("main (train.py:60)", "backward (_tensor.py:581)"), "device", 21),
    (("main (train.py:60)", "step (optimizer.py:484)"), "device", 4),
    (("main (train.py:60)", "log (train.py:71)"), "host", 2),
)


def bars(batches: int = 412, workers: int = 2, seed: int = 1) -> list[Bar]:
    """Replay a loader with an in-order queue: one batch in forty is four times as slow as the others."""
    dice = random.Random(seed)
    free = [0.3 + 0.02 * worker for worker in range(workers)]
    loop, found = 0.0, []
    for batch in range(batches):
        worker = batch % workers
        cost = dice.gauss(0.42, 0.03) * (4 if batch % 40 == 37 else 1)
        # A worker gets its next batch when one of the `2 * workers` batches that may be under way is taken.
        asked = found[batch - 2 * workers].taken_s or 0.0 if batch >= 2 * workers else 0.0
        start = max(free[worker], asked)
        free[worker] = end = start + max(cost, 0.05)
        loop = max(loop + WORK_S, end + 0.002)
        found.append(Bar(worker, start, end, batch, loop))
    return found


def steps(found: list[Bar]) -> Steps:
    """The steps of a loop that takes those batches."""
    taken = [bar.taken_s or 0.0 for bar in found]
    begun = [0.0, *(at + WORK_S for at in taken[:-1])]
    waits = [at - start for at, start in zip(taken, begun, strict=True)]
    ready = [sum(1 for each in found[at : at + 4] if each.end_s <= begun[at]) for at in range(len(found))]
    lasted = [wait + WORK_S for wait in waits]
    return Steps(begun, waits, lasted, ready, (0.0, begun[len(begun) // 2]))


def page(batches: int = 412) -> PageData:
    """Everything a page can show."""
    made = bars(batches)
    end = made[-1].taken_s or 1.0
    dice = random.Random(2)
    times = [at / 2 for at in range(int(end * 2))]
    host = Host(
        times,
        [dice.gauss(205, 6) for _ in times],
        {"NVIDIA H200": [max(dice.gauss(38, 8), 0) for _ in times]},
        [max(dice.gauss(38e6, 9e6), 0) for _ in times],
    )
    slow = sorted(made, key=lambda bar: bar.start_s - bar.end_s)[:5]
    return PageData(
        steps(made),
        host,
        made,
        stacks(end),
        [Slow(bar.batch, bar.worker, bar.end_s - bar.start_s, "images/n0153/4417.jpg, 18 MB") for bar in slow],
        Samples(
            [dice.gauss(6e-3, 1e-3) if at % 40 else 0.08 for at in range(400)],
            [SlowSample(40 * at, 0.08 - 0.002 * at, 0.07, 1 + at % 3) for at in range(10)],
        ),
    )


def with_ranks(count: int, batches: int = 200) -> PageData:
    """A run of several ranks, the last of which is late."""
    shown = page(batches)
    ranks = {rank: steps(bars(batches, seed=rank)) for rank in range(count - 1)}
    late = shown.steps
    slower = [each * 1.5 for each in late.step_s if each is not None]
    ranks[count - 1] = replace(late, step_s=slower, t_s=[sum(slower[:at]) for at in range(len(slower))])
    return replace(shown, ranks=ranks)


def stacks(end_s: float, windows: int = 40) -> list[Stack]:
    """Samples of the main process and the workers; in the middle of the run only decoding is seen."""
    found = []
    for window in range(windows):
        t0, t1 = end_s * window / windows, end_s * (window + 1) / windows
        for process, kinds in (("worker", WORKER_STACKS), ("main", MAIN_STACKS)):
            for frames, stage, count in kinds:
                if process == "worker" and window in (20, 21) and stage != "decode":
                    continue
                found.append(Stack(_process(process), frames, stage, count, t0, t1))
    return found


def _process(name: str) -> Process:
    return "main" if name == "main" else "worker"


def hostile() -> PageData:
    """Names from a job that does not wish us well, and values that are no numbers."""
    nan = float("nan")
    frames = (HOSTILE, LONG_PATH, RIGHT_TO_LEFT, "\udcff lone surrogate")
    return PageData(
        Steps((0.0, 0.2, 0.4), (0.1, nan, 0.1), (0.2, 0.2, nan), (None, 1, 2), (0.0,)),
        Host((0.0, 0.3), (nan, 50.0), {HOSTILE: (1.0, nan)}, ()),
        [Bar(0, 0.0, 0.1, 0, None), Bar(1, 0.0, 0.3, 1, 0.31)],
        [
            Stack("worker", frames, HOSTILE, 3, None, None),
            Stack("main", (RIGHT_TO_LEFT,), "decode", 1, 0.1, 0.2),
        ],
        [Slow(0, None, 0.3, HOSTILE), Slow(1, 1, 0.2, LONG_PATH)],
        Samples((nan, 0.0, -1.0, *range(1, 30)), [SlowSample(10**17, nan, nan, 1)]),
        {0: Steps((0.0, nan), (nan,), ()), 1: Steps()},
    )


def large(batches: int = 100_000, samples: int = 500_000) -> PageData:
    """A long run: so many batches, and so many stacks of which most differ."""
    made = bars(batches, workers=8)
    end = made[-1].taken_s or 1.0
    dice = random.Random(3)
    names = [f"function_{at} (module_{at % 97}.py:{at})" for at in range(2_000)]
    stages = ("read", "decode", "transform", "collate", "handover")
    found = []
    for _ in range(samples):
        at = dice.random() * end
        depth = 3 + int(dice.random() * 12)
        start = int(dice.random() ** 3 * 60_000)
        frames = tuple(names[(start * 37 + level * (1 + start % 3)) % 2_000] for level in range(depth))
        found.append(Stack("worker", frames, stages[start % 5], 1, at, at + 0.5))
    return PageData(steps(made), Host(), made, found, ())
