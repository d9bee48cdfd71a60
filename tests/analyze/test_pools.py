"""The makers of hand-written pipelines, told from stacks and accounts of runs whose truth is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from golden_sentences import Check
from made import Fetch, Made, Plan, ns

from loaderprof.analyze.breakdown import sources_of
from loaderprof.analyze.pools import LOCKED_SHARE, Pool, pool_of, too_little_seen
from loaderprof.analyze.timeline import build
from loaderprof.conclude import findings_of
from loaderprof.recording.reader import Recording

LIB = "/usr/lib/python3.11"
THREAD = [
    f"Thread._bootstrap ({LIB}/threading.py:1002)",
    f"Thread._bootstrap_inner ({LIB}/threading.py:1045)",
    f"Thread.run ({LIB}/threading.py:982)",
]
EXECUTOR = [
    *THREAD,
    f"_worker ({LIB}/concurrent/futures/thread.py:83)",
    f"_WorkItem.run ({LIB}/concurrent/futures/thread.py:58)",
]
IDLE = [*THREAD, f"_worker ({LIB}/concurrent/futures/thread.py:81)"]
FORKED = ["<module> (/home/me/train.py:60)", f"BaseProcess.run ({LIB}/multiprocessing/process.py:108)"]
POOL = [*FORKED, f"worker ({LIB}/multiprocessing/pool.py:125)", f"mapstar ({LIB}/multiprocessing/pool.py:48)"]
WAITING_FOR_TASK = [
    *FORKED,
    f"worker ({LIB}/multiprocessing/pool.py:114)",
    f"SimpleQueue.get ({LIB}/multiprocessing/queues.py:364)",
]
SUBMITTED = [
    *FORKED,
    f"_process_worker ({LIB}/concurrent/futures/process.py:261)",
    f"_process_chunk ({LIB}/concurrent/futures/process.py:210)",
    f"_process_chunk.<locals>.<listcomp> ({LIB}/concurrent/futures/process.py:210)",
]
LOKY = [
    "<module> (<string>:1)",
    f"BaseProcess.run ({LIB}/multiprocessing/process.py:108)",
    "_process_worker (/lib/site-packages/joblib/externals/loky/process_executor.py:490)",
    "BatchedCalls.__call__ (/lib/site-packages/joblib/parallel.py:607)",
    "BatchedCalls.__call__.<locals>.<listcomp> (/lib/site-packages/joblib/parallel.py:608)",
]
RAY_WORKER = [
    "<module> (/lib/ray/_private/workers/default_worker.py:323)",
    "Worker.main_loop (/lib/ray/_private/worker.py:1069)",
]
RAY_TASK = [*RAY_WORKER, "_map_task (/lib/ray/data/_internal/execution/operators/map_operator.py:878)"]
PARSE, READ = "parse (/home/me/train.py:20)", "fetch (/home/me/train.py:30)"
SOURCES = {
    "/home/me/train.py:20": "key = (key * 31 + ord(letter)) & 1023",
    "/home/me/train.py:30": "body = response.read()",
    "/home/me/train.py:40": "tasks.put(batch)",
    "/home/me/train.py:41": "results = queue.get()",
    "/home/me/train.py:50": "image = augment(image)",
}
WAITS = Plan(wait=0.05, step=0.01, fetch=Fetch(cpu=0.001, blocked=0.049), facts={"watched": True})


class Run(Made):
    """A watched loop whose makers are added thread by thread; a window is 50 samples."""

    def __init__(self, folder: Path, plan: Plan = WAITS, asks: tuple[str, ...] = ("next (<watched>)",)) -> None:
        super().__init__(folder, 8.0, sources=SOURCES)
        self.main = self.process()
        self.ended = self.loop(self.main, plan)
        self.stacks(self.main.pid, ["<module> (/home/me/train.py:60)", *asks], 50)

    def thread(
        self, name: str, cpu: float, runq: float, *stacks: tuple[list[str], int], pid: int | None = None
    ) -> None:
        pid = pid or self.main.pid
        for frames, count in stacks:
            self.stacks(pid, frames, count, name)
        self.stack_lines[-1]["threads"] = [[pid, name, round(cpu * 2e9), round(runq * 2e9)]]

    def lock(self, held: int) -> None:
        self.stack_lines[0]["gil"] = [[self.main.pid, held]]

    def looks(self, thread: str, asleep: int) -> None:
        self.stack_lines[-1]["locks"] = [[self.main.pid, thread, 10, asleep]]

    def recorded(self) -> Recording:
        self.finish(self.ended)
        return self.read()


def pool(run: Run) -> Pool:
    found = seen(run)
    assert found is not None
    return found


def seen(run: Run) -> Pool | None:
    recording = run.recorded()
    return pool_of(recording, build(recording).loops[0], sources_of(recording))


def parsing(run: Run, threads: int = 4) -> None:
    for number in range(threads):
        run.thread(f"ThreadPoolExecutor-0_{number}", 0.24, 0.02, ([*EXECUTOR, PARSE], 48), (IDLE, 2))


def test_threads_that_compute_one_at_a_time_wait_for_the_lock(tmp_path: Path) -> None:
    run = Run(tmp_path / "r")
    parsing(run)
    run.lock(48)
    found = pool(run)
    assert (found.kind, found.producers, found.overlapped) == ("threads", 4, True)
    assert found.cores == pytest.approx(0.96)
    assert found.locked == pytest.approx((3.84 - 0.96) / 3.84)
    assert found.held == pytest.approx(0.96)
    assert [(work.stage, work.where) for work in found.work] == [("decode", "train.py:20")]


@pytest.mark.parametrize(("windows", "waits"), [(1, True), (8, False)])
def test_few_looks_do_not_rule_the_lock_out(tmp_path: Path, windows: int, waits: bool) -> None:
    run = Run(tmp_path / "r")
    parsing(run)
    run.lock(33)
    for _ in range(1, windows):
        run.stacks(run.main.pid, ["<module> (/home/me/train.py:60)", "next (<watched>)"], 50)
        run.stack_lines[-1]["gil"] = [[run.main.pid, 33]]
    found = pool(run)
    assert found.held == pytest.approx(0.66)
    assert found.holds_lock() is waits
    assert (found.locked > 0) is waits


def test_a_step_that_sleeps_on_the_lock_is_told_from_one_that_sleeps(tmp_path: Path) -> None:
    # The loop waits 50 ms for a batch, in which it sleeps on a lock too, and steps for 10 ms: 6 of these are the lock's.
    run = Run(tmp_path / "r")
    parsing(run)
    run.stack_lines[0]["locks"] = [[run.main.pid, "MainThread", 60, 56]]
    assert pool(run).step_locked_s == pytest.approx(0.006, abs=1e-4)


def test_without_a_look_at_the_lock_the_account_tells(tmp_path: Path) -> None:
    run = Run(tmp_path / "r")
    parsing(run)
    found = pool(run)
    assert found.held is None
    assert found.locked == pytest.approx((3.84 - 0.96 - 0.08) / 3.84)


def test_threads_that_let_go_of_the_lock_do_not_wait_for_it(tmp_path: Path) -> None:
    run = Run(tmp_path / "r")
    for number in range(4):
        run.thread(f"ThreadPoolExecutor-0_{number}", 0.9, 0.06, ([*EXECUTOR, PARSE], 48), (IDLE, 2))
    run.lock(48)
    assert pool(run).locked == 0.0


def test_on_a_busy_machine_a_free_lock_is_not_what_threads_wait_for(tmp_path: Path) -> None:
    run = Run(tmp_path / "r")
    for number in range(4):
        run.thread(f"ThreadPoolExecutor-0_{number}", 0.2, 0.4, ([*EXECUTOR, PARSE], 48), (IDLE, 2))
    run.lock(10)
    assert pool(run).locked == 0.0


def test_threads_that_wait_for_reads_wait_for_no_lock(tmp_path: Path) -> None:
    run = Run(tmp_path / "r")
    for number in range(4):
        run.thread(f"Thread-{number} (produce)", 0.02, 0.0, ([*THREAD, "produce (/home/me/train.py:41)", READ], 50))
    run.lock(3)
    found = pool(run)
    assert (found.locked, found.waiting, found.share("read"), found.producers) == (0.0, 1.0, 1.0, 4)


def reading(run: Run, cpu: float, asleep: int) -> None:
    """Sixteen threads of which nearly all stand at the line that reads."""
    for number in range(16):
        name = f"ThreadPoolExecutor-0_{number}"
        run.thread(name, cpu, 0.0, ([*EXECUTOR, READ], 45), ([*EXECUTOR, PARSE], 5))
        run.looks(name, asleep)


def test_threads_whose_data_have_come_wait_for_the_lock_at_the_line_that_reads(tmp_path: Path) -> None:
    run = Run(tmp_path / "r")
    reading(run, cpu=0.06, asleep=5)
    run.lock(45)
    found = pool(run)
    assert found.locked == pytest.approx(0.5)
    # Of 14.4 at that line 16 - 8 asleep - 0.96 on a core truly read.
    assert found.waiting == pytest.approx(7.04 / 16)
    assert found.share("read") == pytest.approx(7.04 / (7.04 + 1.6))


@pytest.mark.parametrize(("cpu", "asleep", "held"), [(0.06, 0, 45), (0.03, 5, 25), (0.01, 5, 48)])
def test_threads_that_read_do_not_take_turns(tmp_path: Path, cpu: float, asleep: int, held: int) -> None:
    """None sleeps on a lock; the lock is free half of the time; it is somebody else who holds it."""
    run = Run(tmp_path / "r")
    reading(run, cpu, asleep)
    run.lock(held)
    assert pool(run).locked < LOCKED_SHARE


def test_threads_that_download_and_take_turns_are_told_of_processes_beside_them(tmp_path: Path) -> None:
    run = Run(tmp_path / "r")
    reading(run, cpu=0.06, asleep=5)
    run.lock(45)
    found = findings_of(run.recorded())
    assert found.verdict.cause == "interpreter-lock"
    assert found.advice[0].id == "threads-and-processes"


@pytest.mark.parametrize("frames", [POOL, SUBMITTED, LOKY])
def test_processes_of_every_kind_of_pool_are_makers(tmp_path: Path, frames: list[str]) -> None:
    run = Run(tmp_path / "r")
    for pid in (7001, 7002):
        run.thread(
            "MainThread", 0.1, 0.0, ([*frames, PARSE], 10), ([*frames, READ], 30), (WAITING_FOR_TASK, 10), pid=pid
        )
    found = pool(run)
    assert (found.kind, found.producers, found.pids) == ("processes", 2, {7001, 7002})
    assert found.busy == pytest.approx(1.6)
    assert found.waiting == pytest.approx(0.75)
    assert found.share("read") == pytest.approx(0.75)


def test_of_two_kinds_of_makers_the_busier_ones_limit(tmp_path: Path) -> None:
    run = Run(tmp_path / "r")
    waiting = [
        *EXECUTOR,
        "task (/home/me/train.py:50)",
        f"Future.result ({LIB}/concurrent/futures/_base.py:451)",
        f"Condition.wait ({LIB}/threading.py:327)",
    ]
    for number in range(4):
        run.thread(f"ThreadPoolExecutor-0_{number}", 0.02, 0.0, ([*EXECUTOR, READ], 20), (waiting, 30))
    run.thread("MainThread", 0.9, 0.0, ([*SUBMITTED, PARSE], 48), (WAITING_FOR_TASK, 2), pid=7001)
    found = pool(run)
    assert (found.kind, found.beside) == ("processes", ("threads",))


def test_a_helper_beside_a_pool_and_its_threads_make_no_batches(tmp_path: Path) -> None:
    run = Run(tmp_path / "r")
    run.thread("MainThread", 0.9, 0.0, ([*POOL, PARSE], 50), pid=7001)
    run.thread("MainThread", 0.9, 0.0, ([*FORKED, READ], 50), pid=7002)
    run.thread("Thread-1 (answer)", 0.9, 0.0, ([*THREAD, READ], 50), pid=7002)
    assert pool(run).pids == {7001}


def test_a_plain_process_makes_batches_where_no_pool_does(tmp_path: Path) -> None:
    run = Run(tmp_path / "r")
    run.thread("MainThread", 0.9, 0.0, ([*FORKED, PARSE], 40), ([*FORKED, "main (/home/me/train.py:40)"], 10), pid=7002)
    assert (pool(run).pids, pool(run).busy) == ({7002}, pytest.approx(0.8))


def test_makers_that_rest_while_the_loop_steps_do_not_overlap(tmp_path: Path) -> None:
    run = Run(
        tmp_path / "r", Plan(wait=0.05, step=0.05, fetch=Fetch(cpu=0.001, blocked=0.049), facts={"watched": True})
    )
    run.thread("MainThread", 0.4, 0.0, ([*POOL, PARSE], 25), (WAITING_FOR_TASK, 25), pid=7001)
    assert not pool(run).overlapped


def test_a_loop_without_makers_or_with_a_loader_has_no_pool(tmp_path: Path) -> None:
    assert seen(Run(tmp_path / "alone")) is None
    run = Run(tmp_path / "loader", Plan(wait=0.05, fetch=Fetch(cpu=0.05)))
    parsing(run)
    assert seen(run) is None


NEXT = "_SingleProcessDataLoaderIter._next_data (/lib/torch/utils/data/dataloader.py:785)"


def stream(folder: Path, **fetch: float) -> Run:
    """A DataLoader without workers over a stream, as Keras makes one over a PyDataset."""
    plan = replace(WAITS, fetch=Fetch(**fetch), facts={"iterable": True, "num_workers": 0})
    return Run(folder, plan, (NEXT, f"Condition.wait ({LIB}/threading.py:327)"))


def test_a_stream_without_workers_may_have_threads_of_its_own(tmp_path: Path) -> None:
    run = stream(tmp_path / "waits", cpu=0.001, blocked=0.049)
    parsing(run)
    assert pool(run).kind == "threads"
    # One that makes its batches itself has helpers at most.
    run = stream(tmp_path / "works", cpu=0.049, blocked=0.001)
    parsing(run)
    assert seen(run) is None


def test_a_stream_that_waits_for_others_who_were_not_seen_is_told_so(tmp_path: Path) -> None:
    run = stream(tmp_path / "r", cpu=0.001, blocked=0.049)
    recording = run.recorded()
    assert too_little_seen(recording, build(recording).loops[0], None)


def test_threads_that_follow_one_another_are_counted_once(tmp_path: Path) -> None:
    run = Run(tmp_path / "r")
    for number in range(4):  # two of each epoch, in a window over two epochs
        run.stacks(run.main.pid, [*EXECUTOR, PARSE], 25, f"Thread-{number} (worker)")
    assert (pool(run).producers, pool(run).busy) == (2, pytest.approx(2.0))


def test_the_verdict_on_threads_is_the_lock_and_the_advice_processes(tmp_path: Path, said: Check) -> None:
    run = Run(tmp_path / "r")
    parsing(run)
    run.lock(48)
    found = findings_of(run.recorded())
    assert (found.verdict.bottleneck, found.verdict.cause) == ("contention", "interpreter-lock")
    said("threads that take turns", found.verdict.headline)
    assert "(train.py:20)" in found.verdict.headline
    assert found.advice[0].id == "processes"
    assert 2.0 < (found.advice[0].expected.speedup or 0) < 6.5
    said("evidence of threads that take turns", "\n".join(fact.text for fact in found.causes[0].evidence))
    assert any(" 96 % " in fact.text for fact in found.causes[0].evidence)


def test_on_a_busy_machine_processes_promise_no_more_than_there_are_cores(tmp_path: Path) -> None:
    plan = Plan(wait=0.024, step=0.016, fetch=Fetch(cpu=0.01, blocked=0.009), facts={"watched": True})
    run = Run(tmp_path / "r", plan)
    run.meta["cpu_budget"] = {"cores": 2.0}
    for number in range(4):
        run.thread(f"ThreadPoolExecutor-0_{number}", 0.08, 0.3, ([*EXECUTOR, PARSE], 45), (IDLE, 5))
    run.lock(48)
    found = findings_of(run.recorded())
    advice = next(each for each in found.advice if each.id == "processes")
    assert 1.05 < (advice.expected.speedup or 0) <= 2.0


def test_threads_that_also_download_are_told_to_compute_in_processes(tmp_path: Path) -> None:
    run = Run(tmp_path / "r")
    for number in range(8):
        run.thread(f"ThreadPoolExecutor-0_{number}", 0.11, 0.01, ([*EXECUTOR, READ], 20), ([*EXECUTOR, PARSE], 30))
    run.lock(47)
    found = findings_of(run.recorded())
    assert found.verdict.cause == "interpreter-lock"
    assert found.advice[0].id == "threads-and-processes"
    assert "processes" not in [each.id for each in found.advice]


def test_processes_that_only_wait_are_told_that_threads_are_enough(tmp_path: Path) -> None:
    run = Run(tmp_path / "r")
    for pid in range(7001, 7005):
        run.thread("MainThread", 0.02, 0.0, ([*SUBMITTED, READ], 50), pid=pid)
    found = findings_of(run.recorded())
    assert (found.verdict.bottleneck, found.verdict.cause) == ("read", "waiting-read")
    assert "4 processes of loader" in found.verdict.headline
    advice = next(each for each in found.advice if each.id == "threads")
    assert (advice.change["makers"], advice.expected.low) == ("threads", 1.0)


def test_processes_that_mostly_wait_but_compute_more_than_one_lock_lets_are_told_of_both(tmp_path: Path) -> None:
    run = Run(tmp_path / "r")
    run.meta["cpu_budget"] = {"cores": 2.0}
    for pid in range(7001, 7005):
        run.thread("MainThread", 0.15, 0.0, ([*SUBMITTED, READ], 42), ([*SUBMITTED, PARSE], 8), pid=pid)
    found = findings_of(run.recorded())
    assert [each.id for each in found.advice if each.id.startswith("threads")] == ["threads-and-processes"]


def test_processes_that_wait_and_compute_are_told_of_both(tmp_path: Path) -> None:
    run = Run(tmp_path / "r")
    for pid in range(7001, 7005):
        run.thread("MainThread", 0.5, 0.0, ([*SUBMITTED, READ], 25), ([*SUBMITTED, PARSE], 25), pid=pid)
    found = findings_of(run.recorded())
    assert "threads-and-processes" in [each.id for each in found.advice]


@pytest.mark.parametrize(
    ("titles", "producers"), [((["task", "rests"], ["rests", "task"]), 1), ((["task", "task"],), 2)]
)
def test_processes_of_ray_that_take_turns_at_its_tasks_are_as_many_as_ran_at_once(
    tmp_path: Path, titles: tuple[list[str], ...], producers: int
) -> None:
    plan = Plan(wait=0.05, step=0.01, fetch=WAITS.fetch, facts={"watched": True, "framework": "ray"})
    run = Run(tmp_path / "r", plan)
    run.host(0.0, busy=0.0, job=[(31, 0.0), (32, 0.0), (33, 0.0)])
    for each in run.lines[-1]["processes"]:
        each["name"] = "ray::ReadRange"  # set-up: before the loop's first window
    run.lines[-1]["t"] -= 1
    for second, row in enumerate(titles, 1):
        run.host(second, busy=0.0, job=[(31, 0.0), (32, 0.0)])
        for each, title in zip(run.lines[-1]["processes"], row, strict=True):
            each["name"] = {"task": "ray::MapBatches(parse)", "rests": "ray::IDLE"}[title]
    for pid in (31, 32):
        run.thread("MainThread", 0.4, 0.0, ([*RAY_TASK, PARSE], 21), (RAY_WORKER, 27), pid=pid)
        # Arguments that are unpickled are no work of the user's.
        run.stacks(
            pid, [*RAY_WORKER, "deserialize_objects (/lib/ray/_private/worker.py:960)", "loads (/lib/pickle.py:1)"], 2
        )
    found = pool(run)
    assert (found.kind, found.producers) == ("processes", producers)
    assert found.busy == pytest.approx(0.84)
    assert [(work.stage, work.where) for work in found.work] == [("decode", "train.py:20")]


def test_a_damaged_account_is_left_out(tmp_path: Path) -> None:
    run = Run(tmp_path / "r")
    run.thread("ThreadPoolExecutor-0_0", 0.2, 0.0, ([*EXECUTOR, PARSE], 50))
    run.stack_lines += [
        {**run.stack_lines[-1], "stacks": [], "threads": damage}
        for damage in (None, 3, [[1]], [[1, "a", "x", 2]], [[1, "a", -5, 2]])
    ]
    run.stack_lines += [{**run.stack_lines[0], "gil": damage, "t": ns(3)} for damage in (4, [[1]], [["a", "b"]])]
    run.stack_lines += [
        {**run.stack_lines[0], "locks": damage, "t": ns(3)}
        for damage in (4, [[1]], [[1, "a", 2, 3]], [[1, "a", "b", 0]])
    ]
    recording = run.recorded()
    assert [use.thread for use in recording.threads] == ["ThreadPoolExecutor-0_0"]
    assert (recording.gil, recording.locks) == ([], [])
