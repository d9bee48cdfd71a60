"""Advice on how samples are read."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from made import Fetch, Plan, one_loop
from truths import LOAD, advice_of, findings_named

from loaderprof.conclude import findings_of


def test_latency_that_may_be_saturation_is_promised_with_care() -> None:
    advice = advice_of(findings_named("read"))
    assert {"num-workers", "overlapped-reads"} <= set(advice)
    assert advice["num-workers"].expected.low == 1.0
    assert advice["overlapped-reads"].expected.low == 1.0


def test_rows_of_tensors_are_better_taken_as_a_slice(tmp_path: Path) -> None:
    facts = {"dataset": "torch.utils.data.dataset.TensorDataset", "samples": 1000}
    plan = Plan(wait=0.05, fetch=Fetch(cpu=0.05, collate=0.02), facts=facts)
    found = findings_of(one_loop(tmp_path / "r", plan))
    assert (found.verdict.bottleneck, found.verdict.cause) == ("read", "rows-of-tensors")
    advice = advice_of(found)["slice-batches"].expected
    # Of a batch's 60 ms, 50 are fetching and stacking rows; they become 2.4 to 13 times as fast.
    assert advice.low == pytest.approx(60 / (10 + 50 / 2.4), rel=0.1)
    assert advice.high == pytest.approx(60 / (10 + 50 / 13), rel=0.15)
    assert "cache-in-memory" not in advice_of(found)


def test_an_archive_that_every_sample_opens_is_to_be_kept_open(tmp_path: Path) -> None:
    # 36 of 50 ms are opening the archive and reading its index up to the member; two workers on eight cores.
    opening = [("tarfile.open", 0.006, 0.006), ("tarfile.TarFile.next", 0.03, 0.03)]
    fetch = Fetch(cpu=0.05, operators=[*opening, (LOAD, 0.014, 0.014)])
    found = findings_of(one_loop(tmp_path / "r", Plan(workers=2, wait=0.024, step=0.001, step_cpu=0.0, fetch=fetch)))
    assert advice_of(found)["keep-open"].expected.speedup == pytest.approx(50 / 14, rel=0.06)
    once = Fetch(cpu=0.05, operators=[("tarfile.open", 0.001, 0.001), (LOAD, 0.049, 0.049)])
    kept = findings_of(one_loop(tmp_path / "kept", Plan(workers=2, wait=0.024, step=0.001, fetch=once)))
    assert "keep-open" not in advice_of(kept)


def test_reads_that_are_asked_for_together_are_not_to_be_overlapped(tmp_path: Path) -> None:
    waiting = [("socket.SocketIO.readinto", 0.05, 0.0)]
    plan = Plan(workers=2, wait=0.02, step=0.005, fetch=Fetch(cpu=0.001, blocked=0.05, operators=waiting))
    assert "overlapped-reads" in advice_of(findings_of(one_loop(tmp_path / "one", plan)))
    at_once = [*waiting, ("__main__.Remote.__getitems__@/home/me/train.py:20", 0.001, 0.001)]
    plan = dataclasses.replace(plan, fetch=Fetch(cpu=0.001, blocked=0.05, operators=at_once))
    assert "overlapped-reads" not in advice_of(findings_of(one_loop(tmp_path / "all", plan)))


def test_one_slow_read_among_quick_ones_overlaps_with_nothing(tmp_path: Path) -> None:
    def blocked(task: int) -> float:
        return 0.6 if task % 20 == 7 else 0.004

    fetch = Fetch(cpu=0.001, blocked=blocked, operators=[("socket.SocketIO.readinto", 0.004, 0.0)])
    plan = Plan(workers=2, wait=lambda batch: 0.58 if batch % 20 == 7 else 0.0, step=0.005, fetch=fetch)
    advice = advice_of(findings_of(one_loop(tmp_path / "r", plan))).get("overlapped-reads")
    assert advice is None or (advice.expected.speedup or 0.0) < 1.1
