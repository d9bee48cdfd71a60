"""Hand-made findings: a run of each kind of verdict, and one with hostile names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from loaderprof.findings import (
    Advice,
    Cause,
    Costs,
    Evidence,
    Expected,
    Findings,
    Loader,
    Measured,
    Overhead,
    Part,
    Rank,
    Risk,
    Run,
    StageCost,
    Verdict,
)

RUN = Run(
    command="train.py --epochs 2",
    exit_code=0,
    duration_s=87.2,
    steps=412,
    world_size=1,
    device="cpu",
    cpu_budget=4.0,
    python="3.11.7",
    torch="2.5.1",
    start_method="fork",
    overhead=Overhead(capture_cpu_s=0.21, sampler_cpu_s=0.9, share_of_wall=0.004),
    loaderprof="0.1.0",
)
GPU_RUN = replace(RUN, device="cuda", gpus=("NVIDIA H200",))

DECODE = Cause(
    "jpeg-decode",
    "found",
    "decode",
    (
        Evidence("decode 71 % of worker samples (8,214)", 0.71, "share", 0.3),
        Evidence("queue empty in 94 % of steps", 0.94, "share", 0.5),
        Evidence("workers 99 % CPU", 0.99, "share", 0.9),
        Evidence("disk 38 of 510 MB/s", 38e6, "bytes/s", 408e6),
    ),
    2.3,
    "JPEG decode",
)
GIL = Cause("gil", "not_measured", "contention", (Evidence("run again with --gil", None, "", None),), None, "GIL wait")
RULED_OUT = (
    Cause("storage", "ruled_out", "read", (Evidence("disk 7 % busy", 0.07, "share", 0.8),), None, "storage"),
    Cause("collate", "ruled_out", "collate", (Evidence("6 %", 0.06, "share", 0.2),), None, "collate"),
    Cause("copy", "ruled_out", "copy", (Evidence("1 %", 0.01, "share", 0.1),), None, "copy"),
    Cause("threads", "ruled_out", "contention", (Evidence("3 of 4 cores", 3, "cores", 4),), None, "threads"),
)
CAUSES = (DECODE, *RULED_OUT, GIL)

STAGES = (
    StageCost("read", 0.008, 0.016, ("timer",), (Part("open", "data.py:41", 0.006),)),
    StageCost("decode", 0.298, 0.594, ("timer", "stack"), (Part("Image.convert", "data.py:43", 0.291),)),
    StageCost(
        "transform",
        0.090,
        0.179,
        ("timer",),
        (Part("RandomResizedCrop", "train.py:31", 0.061), Part("ToTensor", "train.py:33", 0.022)),
    ),
    StageCost("collate", 0.024, 0.048, ("timer",)),
    StageCost("handover", None, None),
    StageCost("copy", 0.002, 0.004, ("timer",)),
    StageCost("device", 0.074, 0.147, ("timer",)),
    StageCost("host", 0.006, 0.012, ("timer",)),
)

WORKERS = Advice(
    "more-workers",
    "Raise num_workers from 2 to 4",
    "Two cores of the budget are idle while the queue is empty.",
    "train.py:52",
    {"num_workers": 4},
    {"num_workers": 2},
    Expected(2.0, 1.9, 2.1, 610.0),
    Costs(2.0, 600_000_000, ""),
    None,
    "DataLoader(train_set, batch_size=64, num_workers=4)",
)
DRAFT = Advice(
    "draft-decode",
    "Decode at reduced size (draft mode)",
    "Images of 1,600 pixels are decoded in full and then cut to 224.",
    "data.py:43",
    {"kind": "decoder", "draft": 448},
    {"mean_pixels": 1600},
    Expected(1.5, 1.42, 1.6, 457.0),
    Costs(None, None, "one line"),
    None,
    'image = Image.open(path)\nimage.draft("RGB", (448, 448))',
)
BOTH = Advice(
    "more-workers+draft-decode",
    "Both",
    "The gains do not multiply: with four workers the model is nearly the limit.",
    None,
    {"kind": "decoder", "num_workers": 4, "draft": 448},
    {"num_workers": 2},
    Expected(2.5, 2.3, 2.6, 762.0),
    Costs(2.0, 600_000_000, "one line"),
)
ADVICE = (WORKERS, DRAFT, BOTH)

SETTINGS = {"num_workers": 2, "prefetch_factor": 2, "pin_memory": False, "in_order": True}
LOADER = Loader("train", "train.py:52", SETTINGS, 412, 64, 304.8, 52.7, 0.61, 0.82, 2)


def decode() -> Findings:
    """A run on the CPU whose two workers decode JPEG files too slowly."""
    headline = "JPEG decode in the loader workers"
    verdict = Verdict("decode", "jpeg-decode", "high", headline, 0.210, 0.128, 0.61, 2.56)
    return Findings(RUN, verdict, STAGES, CAUSES, ADVICE, (LOADER,))


def gpu() -> Findings:
    """The same on a GPU, one change verified, with a second loader and a risk."""
    verified = replace(WORKERS, measured=Measured(1.92, 1.86, 1.98, 5))
    risk = Risk("shared-memory", "/dev/shm is 91 % full at its peak: 58 of 64 MB", 0.91, "share", 1.0)
    loaders = (LOADER, replace(LOADER, name="val", where="train.py:57", batches=40, wait_share=0.02))
    return replace(decode(), run=GPU_RUN, advice=(verified, DRAFT, BOTH), risks=(risk,), loaders=loaders)


def none() -> Findings:
    """A loader that keeps up."""
    verdict = Verdict("none", "balanced", "high", "The loader keeps up", 0.082, 0.001, 0.012, 1.01)
    return Findings(RUN, verdict, STAGES, (replace(DECODE, status="ruled_out"), *RULED_OUT), (), (LOADER,))


def device() -> Findings:
    """A model that is the limit itself."""
    headline = "The step itself, on the GPU"
    verdict = Verdict("device", "model-compute", "high", headline, 0.082, 0.002, 0.024, 1.02)
    facts = (Evidence("GPU busy 97 % of the step", 0.97, "share", 0.9),)
    cause = Cause("model-compute", "found", "device", facts, None, "the model")
    return Findings(GPU_RUN, verdict, STAGES, (cause, *RULED_OUT, GIL), (), (LOADER,))


def unknown() -> Findings:
    """Too short a run to say."""
    run = replace(RUN, steps=6, duration_s=1.4, overhead=Overhead(), exit_code=1)
    headline = "Not enough evidence: 6 steps are too few"
    verdict = Verdict("unknown", "too-few-steps", "low", headline, None, None, None, None)
    facts = (Evidence("fewer than 20 steps", 6, "steps", 20),)
    cause = Cause("jpeg-decode", "not_measured", "decode", facts, None, "JPEG decode")
    return Findings(run, verdict, (), (cause, GIL))


def ranks() -> Findings:
    """Eight ranks on two hosts, one of them late."""
    command = "torchrun --nproc-per-node 4 train.py"
    run = replace(GPU_RUN, command=command, world_size=8, gpus=("NVIDIA H200",) * 8)
    each = [Rank(rank, f"node{rank // 4}", 4100 + rank, 0.210 + 0.001 * rank, 0.128) for rank in range(8)]
    each[5] = Rank(5, "node1", 4105, 0.262, 0.171)
    return replace(decode(), run=run, ranks=tuple(each))


BREAK_OUT = "</script><img src=x onerror=alert(1)>"
HOSTILE = BREAK_OUT + "\u2028\u2029\u202egnp.\x1b[31mred\x07 'quoted' {{ 7*7 }} $x_1$ &amp;"
LONG_PATH = "/" + "/".join(["deeply" * 4] * 160)
RIGHT_TO_LEFT = "\u05d0\u05d9\u05de\u05d5\u05df \u0627\u0644\u0635\u0648\u0631"


def hostile() -> Findings:
    """Names that try to break out of the terminal, the page and its script, or that are far too long."""
    run = replace(RUN, command=f"train{HOSTILE}.py", notes=(HOSTILE, LONG_PATH), signal=HOSTILE)
    verdict = replace(decode().verdict, headline=f"{RIGHT_TO_LEFT} {HOSTILE}")
    cause = replace(DECODE, title=HOSTILE, evidence=(Evidence(LONG_PATH, 0.7, HOSTILE, 0.1),))
    ruled_out = replace(RULED_OUT[0], title=RIGHT_TO_LEFT, evidence=(Evidence(HOSTILE, float("inf"), "", None),))
    advice = replace(WORKERS, id=HOSTILE, action=HOSTILE, where=LONG_PATH, code=HOSTILE, why=RIGHT_TO_LEFT)
    stage = replace(STAGES[1], by=(Part(HOSTILE, LONG_PATH, 0.2), Part(RIGHT_TO_LEFT, HOSTILE, 0.01)))
    settings = {HOSTILE: LONG_PATH, "nested": {"a": [1, None]}}
    loader = replace(LOADER, name=HOSTILE, where=LONG_PATH, settings=settings)
    late = (Rank(0, HOSTILE, 1, 0.2, 0.1), Rank(1, LONG_PATH, 2, 0.3, 0.1))
    return Findings(
        run,
        verdict,
        (stage, *STAGES[2:]),
        (cause, ruled_out),
        (advice,),
        (loader,),
        late,
        (Risk(HOSTILE, HOSTILE, float("nan"), HOSTILE, None),),
    )


ALL: dict[str, Callable[[], Findings]] = {
    "decode": decode,
    "gpu": gpu,
    "none": none,
    "device": device,
    "unknown": unknown,
    "ranks": ranks,
    "hostile": hostile,
}
