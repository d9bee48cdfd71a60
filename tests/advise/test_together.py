"""Sets of changes: what they gain together, and which are never offered together."""

from __future__ import annotations

from pathlib import Path

import pytest
from golden_sentences import Check
from made import Fetch, Plan, one_loop
from truths import LOAD, RESIZE

from loaderprof.commands.verify import plan_of
from loaderprof.conclude import findings_of
from loaderprof.findings import Findings


def found_with(folder: Path, plan: Plan, cores: float = 8.0) -> Findings:
    return findings_of(one_loop(folder / "r", plan, cores))


def test_a_set_gains_what_its_changes_gain_together(tmp_path: Path, said: Check) -> None:
    # 40 ms decoding and 40 ms resizing for each 5 ms of step, on two cores that the step does not need: a second worker
    # makes it 40 ms a batch; half of the resizing less, 30 ms; a decoder 1.5 times as fast, 23 ms.
    fetch = Fetch(cpu=0.08, operators=[(LOAD, 0.04, 0.04), (RESIZE, 0.04, 0.04)])
    found = found_with(tmp_path, Plan(workers=1, wait=0.075, step=0.005, step_cpu=0.0, fetch=fetch), cores=2)
    advice = {each.id: each for each in found.advice}
    assert advice["num-workers"].change == {"num_workers": 2}
    assert "cheaper-transform" in advice
    joint = found.advice[-1]
    assert set(joint.id.split("+")) == {"num-workers", "cheaper-transform", "faster-decoder"}
    assert joint.change["num_workers"] == 2
    assert joint.change["kind"] == "code"
    assert joint.expected.speedup == pytest.approx(0.08 / ((0.08 - 0.02 - 0.04 / 3) / 2), rel=0.06)
    said("a set that leaves loading the limit", joint.why)


def test_what_reduces_the_same_work_is_not_added_up(tmp_path: Path) -> None:
    fetch = Fetch(cpu=0.08, operators=[(LOAD, 0.06, 0.06), (RESIZE, 0.02, 0.02)])
    facts = {"samples": 100}
    found = found_with(tmp_path, Plan(workers=2, wait=0.035, step=0.005, fetch=fetch, facts=facts), cores=2)
    ids = [each.id for each in found.advice]
    assert "faster-decoder" in ids
    for joint in (id_ for id_ in ids if "+" in id_):
        assert not {"faster-decoder", "cache-in-memory"} <= set(joint.split("+"))


def test_a_set_holds_what_gains_only_beside_others(tmp_path: Path) -> None:
    # Short epochs: another worker would be another one to start for each of them, unless they are kept.
    fetch = Fetch(cpu=0.05, operators=[("io.open", 0.05, 0.05)])
    plan = Plan(
        epochs=8,
        batches=10,
        workers=1,
        startup=0.4,
        wait=lambda batch: 0.045 if batch else 0.45,
        step=0.005,
        step_cpu=0.0,
        fetch=fetch,
    )
    found = found_with(tmp_path, plan, cores=4)
    ids = [each.id for each in found.advice]
    assert "num-workers" not in ids
    joint = found.advice[-1]
    assert {"num-workers", "persistent-workers"} <= set(joint.id.split("+"))
    assert "Raise num_workers from 1 to " in joint.action
    assert "persistent_workers=True" in joint.action
    planned = plan_of(found, [joint.id], 4, 60.0, "r")
    assert (planned.change, planned.expected) == (joint.change, joint.expected)


def test_one_change_alone_has_no_set(tmp_path: Path) -> None:
    fetch = Fetch(blocked=0.1, cpu=0.001, operators=[("io.open", 0.1, 0.0)])
    found = found_with(tmp_path, Plan(workers=2, wait=0.05, step=0.005, fetch=fetch, facts={"batch_size": 1}))
    assert [each.id for each in found.advice] == ["num-workers"]
