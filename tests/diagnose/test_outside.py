"""Conclusions from stacks alone, on hand-made recordings whose shares are known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from golden_sentences import Check
from made import Made, ns

from loaderprof.analyze import samples
from loaderprof.conclude import findings_of
from loaderprof.diagnose import outside
from loaderprof.findings import Findings

TORCH = "/x/site-packages/torch/utils/data"
LOOP = "<module> (/home/me/train.py:50)"
NEXT = f"_BaseDataLoaderIter.__next__ ({TORCH}/dataloader.py:725)"
GET = "Queue.get (/lib/python3.11/multiprocessing/queues.py:113)"
MAIN = {
    "wait": [LOOP, NEXT, GET, "wait (/lib/python3.11/multiprocessing/connection.py:947)"],
    "handover": [LOOP, NEXT, GET, "rebuild_storage_fd (/x/site-packages/torch/multiprocessing/reductions.py:538)"],
    "sampler": [LOOP, NEXT, f"_next_index ({TORCH}/dataloader.py:680)", f"__iter__ ({TORCH}/sampler.py:190)"],
    "startup": [LOOP, f"DataLoader.__iter__ ({TORCH}/dataloader.py:440)", "fork (/lib/python3.11/os.py:1)"],
    "stop": [LOOP, NEXT, f"_shutdown_workers ({TORCH}/dataloader.py:1500)"],
    "decode": [LOOP, NEXT, f"fetch ({TORCH}/_utils/fetch.py:54)", "load (/x/site-packages/PIL/ImageFile.py:300)"],
    "device": [LOOP, "backward (/x/site-packages/torch/_tensor.py:623)"],
    "host": ["<module> (/home/me/train.py:51)"],
}
WORKER = f"_worker_loop ({TORCH}/_utils/worker.py:349)"
WORKERS = {
    "idle": [WORKER, GET, "wait (/lib/python3.11/multiprocessing/connection.py:947)"],
    "decode": [
        WORKER,
        f"fetch ({TORCH}/_utils/fetch.py:54)",
        "Images.__getitem__ (/home/me/train.py:41)",
        "ImageFile.load (/x/site-packages/PIL/ImageFile.py:300)",
    ],
    "read": [WORKER, f"fetch ({TORCH}/_utils/fetch.py:54)", "Images.__getitem__ (/home/me/train.py:40)"],
    "collate": [WORKER, f"fetch ({TORCH}/_utils/fetch.py:57)", f"default_collate ({TORCH}/_utils/collate.py:398)"],
    "handover": [WORKER, "Queue.put (/lib/python3.11/multiprocessing/queues.py:94)"],
}
SOURCES = {
    "/home/me/train.py:50": "for batch in loader:",
    "/home/me/train.py:51": "print(loss.item())",
    "/home/me/train.py:41": "image = Image.open(file).convert('RGB')",
    "/home/me/train.py:40": "data = file.read()",
}


def account(pid: int, second: int) -> dict[str, object]:
    """The kernel's account of a worker that runs a tenth of the time and waits for a core another tenth."""
    spent = second * 10**8
    return {"pid": pid, "main": 10, "cpu_ns": spent, "runq_ns": spent, "process_cpu_s": spent / 1e9}


def concluded(
    folder: Path, main: Mapping[str, int], worker: Mapping[str, int] | None = None, thread: str = "MainThread"
) -> Findings:
    made = Made(folder, 2.0, mode="attach", sources=SOURCES, attach={"pid": 10, "mains": [{"pid": 10, "rank": None}]})
    for part, count in main.items():
        made.stacks(10, MAIN[part], count, thread)
    for part, count in (worker or {}).items():
        for pid in (11, 12):
            made.stacks(pid, WORKERS[part], count // 2)
    if worker:
        made.lines = [{"t": ns(second), "accounts": [account(pid, second) for pid in (11, 12)]} for second in (0, 5)]
    made.finish(30.0)
    return findings_of(made.read())


@pytest.mark.parametrize(("part", "frames"), MAIN.items())
def test_a_main_threads_stack_lies_in_its_part(part: str, frames: list[str]) -> None:
    assert samples.main_part(tuple(frames), SOURCES) == {"stop": "startup"}.get(part, part)


@pytest.mark.parametrize(("part", "frames"), WORKERS.items())
def test_a_workers_stack_lies_in_its_part(part: str, frames: list[str]) -> None:
    assert samples.worker_part(tuple(frames), SOURCES) == part


def test_decode_in_the_workers_is_what_a_waiting_loop_waits_for(tmp_path: Path, said: Check) -> None:
    found = concluded(tmp_path / "r", {"wait": 600, "device": 400}, {"decode": 720, "read": 240, "idle": 40})
    verdict = found.verdict
    assert (verdict.bottleneck, verdict.wait_share, verdict.confidence) == ("decode", 0.6, "high")
    said("decode in workers", verdict.headline)
    assert "(ImageFile.load, train.py:41)" in verdict.headline
    assert verdict.ceiling_speedup == 2.5
    gains = {cause.stage: cause.speedup_if_removed for cause in found.causes if cause.status == "found"}
    assert gains == {"decode": 2.5, "read": pytest.approx(1 / (1 - 0.25), abs=0.001)}
    texts = [fact.text for fact in found.causes[0].evidence]
    said("evidence of decode in workers", "\n".join(texts))
    assert "60 % ± 3 points" in texts[0]
    assert "4 % ± 1 points" in texts[2]


def test_workers_that_read_without_running_wait_for_their_reads(tmp_path: Path, said: Check) -> None:
    found = concluded(tmp_path / "r", {"wait": 500, "device": 500}, {"read": 900, "idle": 100})
    assert (found.verdict.bottleneck, found.verdict.cause) == ("read", "waiting-read")
    said("evidence of waiting reads", "\n".join(fact.text for fact in found.causes[0].evidence))
    assert any("for a core 10 % " in fact.text for fact in found.causes[0].evidence)


def test_shares_weigh_workers_by_their_number(tmp_path: Path) -> None:
    found = concluded(tmp_path / "r", {"wait": 500, "device": 500}, {"decode": 1000})
    assert {cost.stage: cost.share for cost in found.stages if cost.share} == {"decode": 0.8, "device": 0.2}


def test_idle_workers_are_a_step_that_is_the_limit(tmp_path: Path) -> None:
    found = concluded(tmp_path / "r", {"wait": 10, "device": 990}, {"decode": 300, "idle": 700})
    assert (found.verdict.bottleneck, found.verdict.cause) == ("device", "compute-bound")


def test_the_loops_own_python_is_the_limit_where_the_workers_keep_up(tmp_path: Path) -> None:
    found = concluded(tmp_path / "r", {"wait": 10, "device": 390, "host": 600}, {"decode": 300, "idle": 700})
    assert (found.verdict.bottleneck, found.verdict.wait_share) == ("host", 0.01)
    assert "train.py:51" in found.verdict.headline


def test_work_of_the_main_thread_gains_nothing_where_busy_workers_are_the_limit() -> None:
    gains = outside.estimate_gains({"wait": 0.5, "host": 0.4, "device": 0.1}, {"decode": 1.0}, 2, None)
    assert gains["host"] == pytest.approx(1.0)
    assert gains["decode"] == pytest.approx(2.0)


def test_without_workers_making_is_waiting(tmp_path: Path, said: Check) -> None:
    found = concluded(tmp_path / "r", {"decode": 500, "device": 500})
    assert (found.verdict.bottleneck, found.verdict.wait_share) == ("decode", 0.5)
    said("decode without workers", found.verdict.headline)
    assert found.verdict.ceiling_speedup == 2.0


def test_startup_of_workers_is_no_wait(tmp_path: Path) -> None:
    found = concluded(tmp_path / "r", {"startup": 500, "stop": 100, "device": 400}, {"decode": 300, "idle": 700})
    assert (found.verdict.bottleneck, found.verdict.wait_share) == ("startup", 0.0)


def test_a_balanced_job_has_nothing_to_gain(tmp_path: Path) -> None:
    found = concluded(tmp_path / "r", {"wait": 20, "device": 980}, {"decode": 900, "idle": 100})
    assert found.verdict.bottleneck == "none"


@pytest.mark.parametrize(
    ("main", "worker", "count"),
    [
        ({"wait": 20, "device": 20}, {"decode": 500}, 40),
        ({"wait": 100, "device": 100}, {"decode": 40}, 40),
        ({"device": 500}, {}, 500),
    ],
)
def test_too_little_is_no_verdict(
    tmp_path: Path, said: Check, main: dict[str, int], worker: dict[str, int], count: int
) -> None:
    verdict = concluded(tmp_path / "r", main, worker).verdict
    assert (verdict.bottleneck, verdict.ceiling_speedup) == ("unknown", None)
    said(f"too little: main thread {main}, workers {worker}", verdict.headline)
    assert f" {count} stack samples" in verdict.headline


def test_a_loader_read_by_another_thread_gives_no_wait_share(tmp_path: Path) -> None:
    made = Made(tmp_path / "r", 2.0, mode="attach", sources=SOURCES, attach={"mains": [{"pid": 10}]})
    made.stacks(10, MAIN["device"], 300)
    made.stacks(10, MAIN["wait"], 300, thread="Prefetcher")
    verdict = findings_of(made.read()).verdict
    assert (verdict.bottleneck, verdict.wait_share) == ("unknown", None)
    assert "Prefetcher" in verdict.headline


def test_few_samples_make_a_low_confidence(tmp_path: Path) -> None:
    found = concluded(tmp_path / "r", {"wait": 40, "device": 40}, {"decode": 60, "read": 50})
    assert found.verdict.confidence == "low"


def test_the_error_is_the_binomial_one_or_the_windows_scatter_where_that_is_larger() -> None:
    assert samples.share(250, 1000).error == pytest.approx(1.96 * (0.25 * 0.75 / 1000) ** 0.5)
    steady = ((25, 100),) * 10
    assert samples.share(250, 1000, steady).error == samples.share(250, 1000).error
    scattered = ((0, 100), (50, 100)) * 5
    assert samples.share(250, 1000, scattered).error > 4 * samples.share(250, 1000).error
    assert 0 < samples.share(0, 1000).error < 0.01


def test_nothing_that_needs_stamps_is_claimed(tmp_path: Path) -> None:
    found = concluded(tmp_path / "r", {"wait": 600, "device": 400}, {"decode": 960, "idle": 40})
    assert (found.run.steps, found.verdict.step_s, found.verdict.wait_s) == (None, None, None)
    assert {cost.s_per_batch for cost in found.stages} == {None}
    assert found.loaders == ()
    assert {cause.id for cause in found.causes if cause.status == "not_measured"} == {"slow-samples", "copy-bound"}


def test_frames_are_named_as_timers_name_them() -> None:
    assert (
        samples.dotted("ImageFile.load (/x/lib/python3.11/site-packages/PIL/ImageFile.py:3)")
        == "PIL.ImageFile.ImageFile.load"
    )
    assert samples.dotted("SocketIO.readinto (/usr/lib/python3.11/socket.py:706)") == "socket.SocketIO.readinto"
    assert samples.dotted("get (/usr/lib/python3/dist-packages/requests/__init__.py:9)") == "requests.get"
