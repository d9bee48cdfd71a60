"""How well the replay predicts real DataLoaders: `python tests/benchmarks/replay_accuracy.py [--quick]`.

Small real pipelines run at a base setting, whose costs are measured, and at other settings. The replay
predicts the others' speedup over the base. Each replay is told how busy the machine's other users were during
its run, so that what is scored is the replay and not the weather. Run-queue waits are taken out of the costs:
they are an outcome.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import queues
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from loaderprof.predict.replay import Costs, Settings, replay

BASE = Settings(2, 2)
OTHERS = (
    Settings(0),
    Settings(1),
    Settings(4),
    Settings(2, 4),
    Settings(2, 2, persistent_workers=True),
    Settings(4, 2, persistent_workers=True),
    Settings(4, 4, in_order=False, persistent_workers=True),
)
QUICK = (Settings(0), Settings(4), Settings(2, 2, persistent_workers=True))
BATCHES, EPOCHS = 40, 2
# A run waits for a while until others use less than this many cores, and is tried again if they then used more.
NOISY_CORES, TRIES, PATIENCE_S = 0.3, 2, 4.0
CORES = os.cpu_count() or 1

_NUMBERS = np.random.default_rng(0).random(4096)


class Clocks(NamedTuple):
    """Seconds of wall time, of this thread's CPU and run-queue wait, and of this process's CPU."""

    wall: float
    cpu: float
    delay: float
    process: float

    def until(self, later: Clocks) -> Clocks:
        return Clocks(*(b - a for a, b in zip(self, later, strict=True)))

    @property
    def blocked(self) -> float:
        return max(0.0, self.wall - self.cpu - self.delay)

    @property
    def undisturbed(self) -> float:
        """What this would have taken with a core always free."""
        return self.cpu + self.blocked


@dataclass(frozen=True, slots=True)
class Stamp:
    """A worker's clocks, in seconds, around one batch."""

    worker: int
    begun: Clocks
    done: Clocks


@dataclass(frozen=True, slots=True)
class Case:
    """A pipeline: what its samples and steps do, given the sample's or step's number."""

    name: str
    sample: Callable[[int], Any]
    step: Callable[[int], None]
    batch_size: int = 4
    batches: int = BATCHES
    threads: float = 1.0
    io_slots: int | None = None


@dataclass(slots=True)
class Seen:
    """One run: its wall time in seconds, and the clocks from which its costs are made."""

    total_s: float
    others: float
    stamps: list[Stamp]
    steps: list[Clocks]
    nexts: list[Clocks]
    loads: list[Clocks]
    start_s: list[float]
    stop_s: list[float]


def clocks() -> Clocks:
    with open("/proc/thread-self/schedstat") as stat:
        delay_s = int(stat.read().split()[1]) / 1e9
    return Clocks(time.perf_counter(), time.thread_time(), delay_s, time.process_time())


def busy_s() -> float:
    """CPU seconds spent on the whole machine."""
    with open("/proc/stat") as stat:
        user, nice, system, _, _, irq, soft, steal = map(int, stat.readline().split()[1:9])
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


class Pipeline(Dataset[Any]):
    """Makes a case's samples and stamps when each batch was begun."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.begun = clocks()

    def __len__(self) -> int:
        return self.case.batches * self.case.batch_size

    def __getitems__(self, indices: list[int]) -> list[Any]:
        self.begun = clocks()
        return [self.case.sample(index) for index in indices]

    def collate(self, samples: list[Any]) -> tuple[Any, Stamp]:
        batch = torch.utils.data.default_collate(samples)
        return batch, Stamp(os.getpid(), self.begun, clocks())


def run(case: Case, settings: Settings) -> Seen:
    """Run a case's loop over a real DataLoader, again where the neighbours were too noisy."""
    for _ in range(TRIES):
        await_quiet()
        seen = run_once(case, settings)
        if seen.others <= NOISY_CORES:
            break
    return seen


def await_quiet() -> None:
    deadline = time.perf_counter() + PATIENCE_S
    while time.perf_counter() < deadline:
        before_s = busy_s()
        time.sleep(0.25)
        if busy_s() - before_s <= 0.25 * NOISY_CORES:
            return


def neighbours(seen: Seen) -> float:
    """How many threads of others wanted a core: what they used over the share that our own threads got."""
    own = [*seen.nexts, *seen.steps, *(stamp.begun.until(stamp.done) for stamp in seen.stamps)]
    cpu_s, delay_s = sum(one.cpu for one in own), sum(one.delay for one in own)
    return seen.others * (cpu_s + delay_s) / cpu_s


def run_once(case: Case, settings: Settings) -> Seen:
    gc.collect()
    pipeline = Pipeline(case)
    keywords = {} if settings.num_workers == 0 else {"prefetch_factor": settings.prefetch_factor}
    loader = DataLoader(
        pipeline,
        batch_size=case.batch_size,
        collate_fn=pipeline.collate,
        num_workers=settings.num_workers,
        persistent_workers=settings.persistent_workers,
        in_order=settings.in_order,
        **keywords,  # type: ignore[arg-type]
    )
    seen = Seen(0.0, 0.0, [], [], [], [], [], [])
    machine_s, own_s = busy_s(), sum(os.times()[:4])
    begun = time.perf_counter()
    with timed_loads(seen.loads):
        for _ in range(EPOCHS):
            epoch(case, loader, seen)
    seen.total_s = time.perf_counter() - begun
    loader._iterator = None  # stops persistent workers, so that their CPU time is known
    others_s = busy_s() - machine_s - (sum(os.times()[:4]) - own_s)
    seen.others = max(0.0, others_s) / (time.perf_counter() - begun)
    return seen


def epoch(case: Case, loader: DataLoader[Any], seen: Seen) -> None:
    begun = clocks()
    batches: Iterator[Any] = iter(loader)
    asked = clocks()
    seen.start_s.append(begun.until(asked).undisturbed)
    while taken := next(batches, None):
        handed = clocks()
        seen.nexts.append(asked.until(handed))
        seen.stamps.append(taken[1])
        case.step(len(seen.steps))
        asked = clocks()
        seen.steps.append(handed.until(asked))
    seen.stop_s.append(asked.until(clocks()).undisturbed)


@contextlib.contextmanager
def timed_loads(log: list[Clocks]) -> Iterator[None]:
    """Log what it takes to unpickle each batch that the main process receives."""
    pickler, main = queues._ForkingPickler, os.getpid()  # type: ignore[attr-defined]

    def loads(message: bytes) -> Any:
        begun = clocks()
        batch = pickler.loads(message)
        if os.getpid() == main:
            log.append(begun.until(clocks()))
        return batch

    queues._ForkingPickler = type("Timed", (), {"dumps": pickler.dumps, "loads": staticmethod(loads)})  # type: ignore[attr-defined]
    try:
        yield
    finally:
        queues._ForkingPickler = pickler  # type: ignore[attr-defined]


def costs_of(seen: Seen, settings: Settings, case: Case) -> Costs:
    """What the base run shows of its costs."""
    fetch = [stamp.begun.until(stamp.done) for stamp in seen.stamps]
    firsts = {stamp.worker: stamp for stamp in reversed(seen.stamps)}.values()
    # Under contention an answer also waits for a core, which is an outcome: the median sees little of it.
    answer_s = float(np.median([load.blocked for load in seen.loads]))
    turn_s, threads_s = between_batches(seen.stamps)
    return Costs(
        fetch_cpu_s=np.array([one.cpu for one in fetch]) + turn_s,
        fetch_blocked_s=np.array([one.blocked for one in fetch]),
        step_cpu_s=np.array([one.cpu for one in seen.steps]),
        step_blocked_s=np.array([one.blocked for one in seen.steps]),
        receive_cpu_s=float(np.mean([one.cpu for one in seen.nexts])),
        send_cpu_s=max(0.0, threads_s - answer_s),
        answer_cpu_s=answer_s,
        step_threads=case.threads,
        worker_start_s=float(np.median(seen.start_s)) / settings.num_workers,
        worker_boot_s=float(np.median([stamp.begun.process for stamp in firsts])),
        worker_stop_s=float(np.median(seen.stop_s)) / settings.num_workers,
        io_slots=case.io_slots,
    )


def between_batches(stamps: list[Stamp]) -> tuple[float, float]:
    """A worker's mean CPU per batch beyond making it, in seconds: of its making thread, of its others."""
    last: dict[int, Stamp] = {}
    spent = []
    for stamp in stamps:
        if stamp.worker in last:
            before = last[stamp.worker]
            turn = before.begun.until(stamp.begun)
            spent.append((before.done.until(stamp.begun).cpu, turn.process - turn.cpu))
        last[stamp.worker] = stamp
    own_s, others_s = np.mean(spent, axis=0)
    return float(own_s), float(others_s)


def predict(costs: Costs, case: Case, settings: Settings, seen: Seen) -> float:
    """Total seconds of a case at some settings, beside the neighbours of the run that was seen."""
    busy = neighbours(seen)
    return replay(costs, settings, cores=CORES, batches_per_epoch=case.batches, epochs=EPOCHS, neighbours=busy).total_s


def burn(ms: float) -> None:
    """About `ms` of real CPU work, more where the machine is slower: a count of numpy calls, not a clock."""
    for _ in range(int(ms * 100)):
        np.sqrt(_NUMBERS * _NUMBERS + 1.0).sum()


def jitter(index: int, shape: float = 4.0) -> float:
    """A factor of mean 1 for sample `index`, gamma-distributed."""
    return float(np.random.default_rng(index).gamma(shape, 1 / shape))


def nap(ms: float) -> None:
    time.sleep(ms / 1e3)


def jpeg(size: int) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (size // 8, size // 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((size, size)).save(file, "JPEG", quality=85)
    return file.getvalue()


JPEG = jpeg(320)
LIMIT = torch.multiprocessing.get_context("fork").BoundedSemaphore(2)
SQUARE = torch.ones(700, 700)


def decode(_: int) -> torch.Tensor:
    return torch.from_numpy(np.asarray(Image.open(io.BytesIO(JPEG)).convert("RGB").resize((224, 224))).copy())


def mixed(read_ms: float, cpu_ms: float, shape: float = 1e9) -> Callable[[int], int]:
    def sample(index: int) -> int:
        factor = jitter(index, shape) if shape < 1e9 else 1.0
        nap(read_ms * factor)
        burn(cpu_ms * factor)
        return index

    return sample


def slow_batches(index: int) -> int:
    nap(12.0 if index // 4 % 10 == 5 else 2.0)
    return index


def limited(index: int) -> int:
    with LIMIT:
        nap(3.0)
    return index


def small_tensors(index: int) -> dict[str, torch.Tensor]:
    nap(1.0)
    return {str(key): torch.full((8,), index) for key in range(20)}


def big_tensors(index: int) -> torch.Tensor:
    return torch.full((3, 256, 256), float(index))


def matmul(_: int) -> None:
    SQUARE @ SQUARE


def sleeps(ms: float) -> Callable[[int], None]:
    return lambda _: nap(ms)


def burns(ms: float) -> Callable[[int], None]:
    return lambda _: burn(ms)


CASES = (
    Case("sleep read, sleep step", mixed(4, 0), sleeps(5)),
    Case("slow batches, 10 % x 6", slow_batches, sleeps(4)),
    Case("heavy-tailed read", mixed(3, 0, 0.5), sleeps(4)),
    Case("two reads at once", limited, sleeps(3), io_slots=2),
    Case("cpu transforms", mixed(0, 2), sleeps(3)),
    Case("cpu transforms, cpu step", mixed(0, 2), burns(5)),
    Case("jpeg, sleep step", decode, sleeps(4), batch_size=6),
    Case("jpeg, 2-thread step", decode, matmul, batch_size=6, threads=2.0),
    Case("read + cpu", mixed(2, 2), sleeps(4)),
    Case("read + cpu jittery, cpu step", mixed(1, 2, 2.0), burns(4)),
    Case("step-bound", mixed(0.5, 0), sleeps(8)),
    Case("many small tensors", small_tensors, sleeps(1)),
    Case("big tensors", big_tensors, sleeps(2), batch_size=16),
    Case("short epochs", mixed(2, 0), sleeps(2), batches=12),
)


@dataclass(frozen=True, slots=True)
class Point:
    """One setting of one case: predicted and measured speedup over the base, averaged over rounds."""

    case: str
    settings: Settings
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


def score(case: Case, settings: tuple[Settings, ...], rounds: int) -> tuple[list[Point], list[float]]:
    """The case's points, and by how much its repeats differed from their mean."""
    logs: dict[Settings, list[tuple[float, float]]] = {one: [] for one in settings}
    totals: dict[Settings, list[float]] = {one: [] for one in (BASE, *settings)}
    for _ in range(rounds):
        base = run(case, BASE)
        costs = costs_of(base, BASE, case)
        totals[BASE].append(base.total_s)
        base_predicted = predict(costs, case, BASE, base)
        say(f"{case.name:30} base: model {base_predicted / base.total_s - 1:+.1%}  {brief(costs, base)}")
        for one in settings:
            seen = run(case, one)
            totals[one].append(seen.total_s)
            predicted = base_predicted / predict(costs, case, one, seen)
            logs[one].append((np.log(predicted), np.log(base.total_s / seen.total_s)))
    points = [Point(case.name, one, *np.exp(np.mean(pairs, axis=0))) for one, pairs in logs.items()]
    noise = [float(abs(total / np.mean(all_) - 1)) for all_ in totals.values() for total in all_]
    return points, noise


def brief(costs: Costs, seen: Seen) -> str:
    """The base's mean costs in ms, on one line."""
    means = {
        "fetch": (costs.fetch_cpu_s, costs.fetch_blocked_s),
        "step": (costs.step_cpu_s, costs.step_blocked_s),
    }
    pairs = "  ".join(f"{key} {a.mean() * 1e3:.1f}+{b.mean() * 1e3:.1f}" for key, (a, b) in means.items())
    hand_over = f"{costs.send_cpu_s * 1e3:.2f}+{costs.receive_cpu_s * 1e3:.2f}+{costs.answer_cpu_s * 1e3:.2f}"
    return f"{pairs}  hand-over {hand_over}  neighbours {neighbours(seen):.2f}"


def label(settings: Settings) -> str:
    flags = ("" if settings.in_order else " any order") + (" persistent" * settings.persistent_workers)
    return f"{settings.num_workers} workers, prefetch {settings.prefetch_factor}{flags}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer settings, one round")
    parser.add_argument("--case", default="", help="only cases whose name holds this")
    parser.add_argument("--rounds", type=int, default=2)
    asked = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*worker processes in total.*")
    torch.multiprocessing.set_start_method("fork")
    points: list[Point] = []
    noise: list[float] = []
    for case in CASES:
        if asked.case in case.name:
            scored = score(case, QUICK if asked.quick else OTHERS, 1 if asked.quick else asked.rounds)
            report(scored[0])
            points += scored[0]
            noise += scored[1]
    errors = np.abs([point.error for point in points])
    say(f"\n{len(points)} points: error of the predicted speedup over {label(BASE)}: {spread(errors)}")
    say(f"a repeat against the mean of its repeats: {spread(np.array(noise))}")


def report(points: list[Point]) -> None:
    for point in points:
        both = f"predicted {point.predicted:5.2f}  measured {point.measured:5.2f}"
        say(f"    {label(point.settings):40} {both}  {point.error:+.1%}")


def say(line: str) -> None:
    print(line, flush=True)


def spread(errors: np.ndarray[Any, Any]) -> str:
    median, p90 = np.quantile(errors, (0.5, 0.9))
    return f"median {median:.1%}, p90 {p90:.1%}, worst {errors.max():.1%}"


if __name__ == "__main__":
    main()
