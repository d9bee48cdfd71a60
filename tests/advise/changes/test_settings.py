"""Advice on the DataLoader's own settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from golden_sentences import Check
from made import Fetch, Made, Plan, one_loop
from truths import DECODING, advice_of, findings_named, light

from loaderprof.conclude import findings_of
from loaderprof.findings import Advice


def test_more_workers_gain_what_they_make(tmp_path: Path, said: Check) -> None:
    plan = Plan(workers=1, wait=0.04, step=0.01, fetch=DECODING)
    advice = advice_of(findings_of(one_loop(tmp_path / "r", plan)))["num-workers"]
    # 50 ms of making for each 10 ms of step keep five workers busy.
    assert advice.change == {"num_workers": 5}
    assert advice.current == {"num_workers": 1}
    said("num-workers", advice.action)
    assert advice.expected.speedup == pytest.approx(5, rel=0.12)
    assert advice.costs.cores == 4
    assert advice.where == "/home/me/train.py:50"
    assert "num_workers=5" in advice.code


@pytest.mark.parametrize(("cores", "workers"), [(1.0, None), (2.5, 2), (3.0, 3), (64.0, 5)])
def test_no_more_workers_are_advised_than_the_budget_has_cores(
    tmp_path: Path, cores: float, workers: int | None
) -> None:
    # A step on another device needs no core of these.
    plan = Plan(workers=1, wait=0.04, step=0.01, step_cpu=0.0, fetch=DECODING)
    advice = advice_of(findings_of(one_loop(tmp_path / "r", plan, cores))).get("num-workers")
    assert (advice.change["num_workers"] if advice else None) == workers


def test_ranks_of_a_host_share_its_cores(tmp_path: Path) -> None:
    made = Made(tmp_path / "r", cores=8)
    for rank in range(4):
        process = made.process(environment={"RANK": str(rank), "WORLD_SIZE": "4"})
        made.loop(process, Plan(workers=1, wait=0.04, step=0.01, step_cpu=0.0, fetch=DECODING))
    advice = advice_of(findings_of(made.read()))["num-workers"]
    assert advice.change == {"num_workers": 2}


def test_what_is_set_already_is_not_advised(tmp_path: Path) -> None:
    restarting = advice_of(findings_named("startup"))
    assert restarting["persistent-workers"].change == {"persistent_workers": True}
    plan = Plan(epochs=6, batches=30, workers=2, startup=0.8, wait=1e-4, persistent=True, fetch=light())
    assert "persistent-workers" not in advice_of(findings_of(one_loop(tmp_path / "r", plan)))


def test_spawned_workers_are_advised_to_be_forked(tmp_path: Path) -> None:
    # Two seconds until the first batch of each epoch: two interpreters that import torch, and the dataset's own set-up.
    plan = Plan(epochs=6, batches=30, workers=2, startup=2.0, wait=1e-4, step=0.01, fetch=light())
    spawned = one_loop(tmp_path / "s", dataclasses.replace(plan, facts={"start_method": "spawn"}))
    advice = advice_of(findings_of(spawned))["start-method"]
    assert advice.change == {"multiprocessing_context": "fork"}
    assert advice.current == {"multiprocessing_context": "spawn"}
    assert advice.expected.low is not None
    assert advice.expected.high is not None
    # How much of the set-up is the dataset's is not known.
    assert 1.0 < advice.expected.low < advice.expected.high / 1.5
    for method in ("fork", None):
        other = one_loop(tmp_path / f"o{method}", dataclasses.replace(plan, facts={"start_method": method}))
        assert "start-method" not in advice_of(findings_of(other))


def test_kept_workers_set_up_once_however_many_epochs_follow(tmp_path: Path) -> None:
    # 0.5 s of set-up for each 60 ms of steps: in a long job one start in twelve is not what stays.
    fetch = Fetch(cpu=lambda task: 0.5 if task < 2 else 0.002)
    plan = Plan(epochs=12, batches=6, workers=2, wait=lambda batch: 0.0 if batch else 0.5, step=0.01, fetch=fetch)
    found = findings_of(one_loop(tmp_path / "r", plan))
    expected = advice_of(found)["persistent-workers"].expected
    assert expected.speedup == pytest.approx(0.56 / 0.06, rel=0.1)
    # The pace is the job's, borders included.
    assert found.loaders[0].samples_per_s == pytest.approx(6 * 16 / 0.56, rel=0.01)
    assert expected.samples_per_s == pytest.approx(6 * 16 / 0.06, rel=0.1)


def test_where_no_worker_made_a_second_batch_set_up_cannot_be_separated_from_work(tmp_path: Path) -> None:
    plan = Plan(epochs=40, batches=2, workers=2, startup=0.1, wait=0.1, step=0.01, fetch=Fetch(cpu=0.2))
    expected = advice_of(findings_of(one_loop(tmp_path / "r", plan)))["persistent-workers"].expected
    assert expected.speedup is not None
    assert expected.high is not None
    assert expected.speedup < 2
    assert expected.low == 1.0
    assert expected.high > 10


def straggling(folder: Path, torch: str = "2.7.1", **facts: Any) -> dict[str, Advice]:
    made = Made(folder)
    fetch = light(cpu=lambda i: 0.25 if i % 15 == 14 else 0.01)
    plan = Plan(workers=2, wait=lambda i: 0.2 if i % 15 == 14 else 0.0, fetch=fetch, facts=facts)
    made.loop(made.process(torch=torch), plan)
    return advice_of(findings_of(made.read()))


def test_taking_batches_out_of_order_needs_a_torch_that_can(tmp_path: Path) -> None:
    assert straggling(tmp_path / "new")["out-of-order"].change == {"in_order": False}
    assert "out-of-order" not in straggling(tmp_path / "old", torch="2.6.0+cu124")
    assert "out-of-order" not in straggling(tmp_path / "odd", torch="unknown")
    assert "out-of-order" not in straggling(tmp_path / "set", in_order=False)
