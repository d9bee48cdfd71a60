"""Advice on what brings indices to the workers and batches back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made import Plan, one_loop
from truths import advice_of, findings_named, light

from loaderprof.conclude import findings_of
from loaderprof.findings import Advice


def handing_over(folder: Path, **fetch: Any) -> dict[str, Advice]:
    """Two workers that take 20 ms to make a batch and 10 to pickle it, and a loop that receives for 18 ms."""
    made = light(cpu=0.02, pickle=0.01, **fetch)
    return advice_of(findings_of(one_loop(folder, Plan(workers=2, wait=0.02, receive=0.018, fetch=made))))


def test_arrays_are_to_become_tensors(tmp_path: Path) -> None:
    advice = handing_over(tmp_path / "r", batch_bytes=1 << 20, pickled_bytes=1 << 20)["shared-memory"]
    assert advice.action == "Return tensors, not arrays: they pass through shared memory"
    # The loop's 28 ms become its step and next to nothing, but a worker's 20 ms for two batches are not its limit.
    assert advice.expected.speedup == pytest.approx(28.0 / 10.6, rel=0.15)
    assert advice.costs.memory_bytes == 1 << 20


def test_many_tensors_are_to_be_stacked(tmp_path: Path) -> None:
    advice = handing_over(tmp_path / "many", batch_bytes=10**5, tensors=250)
    assert advice["fewer-tensors"].change == {"kind": "code", "tensors": 4}
    assert advice["fewer-tensors"].current == {"tensors": 250}
    assert (advice["fewer-tensors"].expected.low or 0) > 2
    assert "shared-memory" not in advice
    few = handing_over(tmp_path / "few", batch_bytes=10**5, tensors=3)
    assert not {"fewer-tensors", "shared-memory"} & few.keys()


def test_objects_gain_less_for_sure_than_arrays_do(tmp_path: Path) -> None:
    objects = {"batch_bytes": 6000, "tensors": 0, "leaves": 9000, "pickled_bytes": 150_000}
    advice = handing_over(tmp_path / "r", **objects)["shared-memory"]
    assert advice.current == {"batches": "objects"}
    expected = advice.expected
    assert (expected.low or 0) < (expected.speedup or 0) < (expected.high or 0)


@pytest.mark.parametrize(("cpu", "offered_"), [(0.002, True), (0.02, False)])
def test_no_workers_are_advised_only_where_batches_are_cheap_to_make(
    tmp_path: Path, cpu: float, offered_: bool
) -> None:
    fetch = light(cpu=cpu, pickle=0.01, batch_bytes=10**5, tensors=250)
    advice = advice_of(findings_of(one_loop(tmp_path / "r", Plan(workers=2, wait=0.02, receive=0.018, fetch=fetch))))
    assert ("no-workers" in advice) == offered_
    if offered_:
        # 28 ms a step become 2 ms of making and a step of 10 ms, of which letting go of 250 tensors took 2 ms.
        assert advice["no-workers"].change == {"num_workers": 0}
        assert advice["no-workers"].expected.speedup == pytest.approx(30 / 10, rel=0.1)


def test_a_cheaper_sampler_gains_half_of_its_cost_to_all_of_it(tmp_path: Path) -> None:
    facts = {"batch_sampler": "__main__.HardMining", "sampler_where": "/home/me/train.py:12"}
    plan = Plan(workers=2, wait=0.03, index=0.03, receive=0.0, fetch=light(), facts=facts)
    advice = advice_of(findings_of(one_loop(tmp_path / "r", plan)))["cheaper-sampler"]
    assert (advice.where, advice.why.split()[0]) == ("train.py:12", "HardMining")
    assert "at once" in advice.action
    assert (advice.expected.low or 0) <= 40 / 25 < (advice.expected.speedup or 0)
    assert (advice.expected.high or 0) >= 40 / 10.5


def test_a_sampler_that_draws_too_much_at_once_is_to_draw_less() -> None:
    advice = advice_of(findings_named("sampler"))["cheaper-sampler"]
    assert "only the indices" in advice.action
    assert advice.why == "MySampler takes 300 ms at the start of every epoch, before the first batch."
