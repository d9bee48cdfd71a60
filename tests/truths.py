"""Hand-made runs whose bottleneck is known by how they were made, one for each stage that can be a verdict."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from made import FETCH_FRAME, Fetch, Made, Plan, one_loop

from loaderprof.conclude import findings_of
from loaderprof.findings import Advice, Findings
from loaderprof.recording.reader import Recording

LOAD = "PIL.ImageFile.ImageFile.load"
RESIZE = "torchvision.transforms.transforms.Resize.__call__@/usr/lib/python3/site-packages/torchvision/transforms.py:1"
# 50 ms a batch, most of them decoding.
DECODING = Fetch(cpu=0.05, operators=[(LOAD, 0.04, 0.04), (RESIZE, 0.005, 0.005)])


def light(**more: object) -> Fetch:
    """A fetch of 10 ms that nothing is wrong with."""
    return Fetch(**{"cpu": 0.01, "operators": [(RESIZE, 0.01, 0.01)], **more})  # type: ignore[arg-type]


PLANS: dict[str, tuple[Plan, float]] = {
    "read": (
        Plan(
            wait=0.05,
            fetch=Fetch(cpu=0.005, blocked=0.045, operators=[("io.open", 0.045, 0.001), (RESIZE, 0.004, 0.004)]),
        ),
        8,
    ),
    "decode": (Plan(wait=0.05, fetch=Fetch(cpu=0.05, operators=[(LOAD, 0.04, 0.04), (RESIZE, 0.005, 0.005)])), 8),
    "transform": (Plan(wait=0.05, fetch=Fetch(cpu=0.05, operators=[(LOAD, 0.01, 0.01), (RESIZE, 0.035, 0.035)])), 8),
    "collate": (Plan(wait=0.05, fetch=Fetch(cpu=0.05, collate=0.04, operators=[(LOAD, 0.01, 0.01)])), 8),
    "handover": (
        Plan(workers=2, wait=0.02, receive=0.018, fetch=light(cpu=0.02, pickle=0.018, batch_bytes=10**5, tensors=250)),
        8,
    ),
    "startup": (Plan(epochs=6, batches=30, workers=2, startup=0.8, shutdown=0.3, wait=1e-4, fetch=light()), 8),
    "straggler": (
        Plan(
            workers=2,
            wait=lambda i: 0.2 if i % 15 == 14 else 0.0,
            fetch=light(cpu=lambda i: 0.25 if i % 15 == 14 else 0.01),
        ),
        8,
    ),
    "contention": (Plan(workers=4, wait=0.02, step=0.005, fetch=light(cpu=0.015, runq=0.085, threads=4.0)), 4),
    "sampler": (Plan(epochs=3, batches=40, wait=0.002, step=0.005, epoch_index=0.3, fetch=light(cpu=0.002)), 8),
    "device": (Plan(workers=2, step=0.05, wait=1e-4, fetch=light()), 8),
    "none": (Plan(workers=1, step=0.0103, wait=1e-4, fetch=light()), 8),
    "unknown": (Plan(batches=15, wait=0.05, fetch=Fetch(cpu=0.05, operators=[(LOAD, 0.04, 0.04)])), 8),
}


def host(folder: Path) -> Recording:
    """A loop that logs in most of its step, as its stacks tell."""
    made = Made(folder, sources={"/home/me/train.py:60": "print(loss.item())", "/home/me/train.py:58": "y = model(x)"})
    process = made.process()
    made.finish(made.loop(process, Plan(workers=2, step=0.05, wait=1e-4, fetch=light())))
    made.stacks(process.pid, ["<module> (/home/me/train.py:60)"], 80)
    made.stacks(process.pid, ["<module> (/home/me/train.py:58)", "forward (/lib/torch/nn/linear.py:1)"], 20)
    return made.read()


def validating(folder: Path) -> Recording:
    """A job that validates for as long as it trains."""
    made, now = Made(folder), 0.0
    process = made.process()
    for _ in range(3):
        now = made.loop(process, Plan(name="train", workers=2, batches=30, step=0.01, wait=1e-4, fetch=light()), now)
        now = made.loop(
            process, Plan(name="valid", batches=30, step=0.02, wait=1e-4, training=False, fetch=light(cpu=1e-4)), now
        )
    made.finish(now)
    return made.read()


def in_stacks(folder: Path) -> Recording:
    """Batches that no timer saw into: only stacks tell that they decode."""
    made = Made(folder, sources={"/home/me/train.py:33": "image = cv2.imdecode(raw, 1)"})
    process = made.process()
    made.finish(made.loop(process, Plan(wait=0.05, fetch=Fetch(cpu=0.05, deep_every=1000))))
    made.stacks(process.pid, ["<module> (/home/me/train.py:58)", FETCH_FRAME, "__getitem__ (/home/me/train.py:33)"], 90)
    return made.read()


def _recorded(make: Callable[[Path], Recording]) -> Recording:
    with TemporaryDirectory() as folder:
        return make(Path(folder) / "r")


@cache
def recording_of(name: str) -> Recording:
    """Return a run by its bottleneck."""
    if name == "host":
        return _recorded(host)
    plan, cores = PLANS[name]
    return _recorded(lambda folder: one_loop(folder, plan, cores))


@cache
def findings_named(name: str) -> Findings:
    """Return what is concluded from a run."""
    return findings_of(recording_of(name))


def advice_of(found: Findings) -> dict[str, Advice]:
    """Return the advice of findings by its id."""
    return {advice.id: advice for advice in found.advice}


NAMES = (*PLANS, "host")
