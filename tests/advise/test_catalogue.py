"""Advice on hand-made runs: only what gains, never what is set already, never beyond the budget, always an interval."""

from __future__ import annotations

import dataclasses
import pkgutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made import Fetch, Made, Plan, one_loop
from truths import DECODING, LOAD, NAMES, advice_of, findings_named, light

from loaderprof.advise import changes
from loaderprof.advise.catalogue import CHANGES, LOADER_RULES, RAY_RULES, WATCHED_RULES
from loaderprof.advise.change import ChangeGuide, ChangeRule
from loaderprof.advise.weigh import MIN_SPEEDUP
from loaderprof.conclude import findings_of
from loaderprof.findings import Findings


def in_files(type_: type) -> list[Any]:
    """Return what the files in advise/changes define of a type."""
    files = [import_module(f"{changes.__name__}.{each.name}") for each in pkgutil.iter_modules(changes.__path__)]
    return [each for file in files for each in vars(file).values() if isinstance(each, type_)]


def test_each_rule_applies_to_some_loader() -> None:
    rules = in_files(ChangeRule)
    assert len(rules) > 8
    assert all(each in (*LOADER_RULES, *WATCHED_RULES, *RAY_RULES) for each in rules)


def test_each_change_is_described_once_beside_a_rule() -> None:
    guides = in_files(ChangeGuide)
    assert len({each.id for each in guides}) == len(guides)
    assert {each.id: each for each in guides} == CHANGES
    assert all(each.guides for each in in_files(ChangeRule))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_advised_is_described(name: str) -> None:
    for advice in findings_named(name).advice:
        assert set(advice.id.split("+")) <= set(CHANGES)


def is_sound(found: Findings, cores: float) -> None:
    """What holds for any advice on any run."""
    ids = [advice.id for advice in found.advice]
    assert len(set(ids)) == len(ids)
    joint = [advice for advice in found.advice if "+" in advice.id]
    assert not joint or joint == [found.advice[-1]]
    for advice in joint:
        singles = [each.expected for each in found.advice if each.id in advice.id.split("+")]
        assert singles
        assert all((advice.expected.speedup or 0) >= (each.speedup or 0) for each in singles)
    lows = [advice.expected.low for advice in found.advice if "+" not in advice.id]
    assert lows == sorted(lows, key=lambda low: -(low or 0))
    for advice in found.advice:
        speedup, low, high = advice.expected.speedup, advice.expected.low, advice.expected.high
        assert speedup is not None
        assert low is not None
        assert high is not None
        assert 0 < low <= speedup <= high
        assert speedup >= MIN_SPEEDUP
        for key, value in advice.change.items():
            assert advice.current.get(key) != value
        if "num_workers" in advice.change:
            assert advice.change["num_workers"] <= max(1, int(cores))
        if advice.expected.samples_per_s is not None:
            rate = advice.expected.samples_per_s / speedup
            assert rate == pytest.approx(found.loaders[0].samples_per_s, rel=0.01)
        assert advice.action[0].isupper()
        assert not advice.action.endswith(".")
        assert advice.why.endswith(".")
        assert advice.measured is None


@pytest.mark.parametrize("name", NAMES)
def test_advice_on_known_runs_is_sound(name: str) -> None:
    is_sound(findings_named(name), 4 if name == "contention" else 8)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    cpu=st.floats(1e-4, 0.1),
    blocked=st.floats(0, 0.1),
    step=st.floats(1e-3, 0.1),
    workers=st.integers(0, 6),
    cores=st.floats(0.5, 12),
    epochs=st.integers(1, 3),
    persistent=st.booleans(),
    pinned=st.booleans(),
)
def test_advice_on_any_run_is_sound(
    tmp_path_factory: pytest.TempPathFactory,
    cpu: float,
    blocked: float,
    step: float,
    workers: int,
    cores: float,
    epochs: int,
    persistent: bool,
    pinned: bool,
) -> None:
    fetch = Fetch(cpu=cpu, blocked=blocked, operators=[("io.open", blocked, 0.0), (LOAD, cpu, cpu)])
    wait = max(0.0, (cpu + blocked) / workers - step) if workers else cpu + blocked
    plan = Plan(
        epochs=epochs,
        batches=30,
        workers=workers,
        wait=wait,
        step=step,
        persistent=persistent,
        fetch=fetch,
        startup=0.05,
        facts={"pin_memory": pinned},
    )
    is_sound(findings_of(one_loop(tmp_path_factory.mktemp("any") / "r", plan, cores)), cores)


def test_a_gain_of_another_loop_counts_for_its_share_of_the_job(tmp_path: Path) -> None:
    made, now = Made(tmp_path / "r"), 0.0
    process = made.process()
    fetch = Fetch(cpu=lambda task: 0.5 if task < 2 else 0.002)
    now = made.loop(process, Plan(name="train", batches=400, workers=1, fetch=light()))
    val = Plan(
        name="val",
        epochs=12,
        batches=6,
        workers=2,
        wait=lambda batch: 0.0 if batch else 0.5,
        fetch=fetch,
        training=False,
    )
    made.finish(made.loop(process, val, now))
    found = findings_of(made.read())
    expected = advice_of(found)["persistent-workers"].expected
    # 4 s of training stay, and of 6.7 s of validation 0.7.
    assert expected.speedup == pytest.approx((4 + 12 * 0.56) / (4 + 12 * 0.06), rel=0.1)


def test_a_watched_iterable_has_no_workers_to_raise(tmp_path: Path) -> None:
    found = findings_of(one_loop(tmp_path / "r", Plan(wait=0.05, fetch=DECODING, facts={"watched": True})))
    assert "num-workers" not in advice_of(found)
    assert "faster-decoder" in advice_of(found)


def test_advice_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        findings_named("decode").advice[0].id = "other"  # type: ignore[misc]
