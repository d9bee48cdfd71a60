"""One bottleneck out of what each stage's removal gains: which, what else matters, and how sure that is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loaderprof.diagnose.verdict import (
    CLOSE,
    LOADER,
    LOCK_GAIN,
    MAX_GUESSED,
    MIN_GAIN,
    MIN_STEPS,
    MODEL_ERROR,
    STEP_BOUND,
    SURE_STEPS,
    RunEvidence,
    judge,
    primary,
)
from loaderprof.findings import STAGES, Stage

GAINS = st.dictionaries(st.sampled_from([*LOADER, "host", "device"]), st.floats(0.5, 50), max_size=8)


def judged(gains: dict[Stage, float], **more: Any) -> Any:
    facts = {
        "steps": 500,
        "model_error": 0.01,
        "draws": [gains] * 12,
        **more,
    }
    return judge(gains, RunEvidence(**facts))


@pytest.mark.parametrize(
    ("error", "waits", "stage"),
    [(0.5, 0.73, "handover"), (0.01, 0.73, "device"), (0.5, 0.2, "device"), (0.5, None, "device")],
)
def test_a_replay_that_is_off_may_not_blame_the_step_for_what_the_loop_waited(
    error: float, waits: float | None, stage: Stage
) -> None:
    gains: dict[Stage, float] = {"handover": 1.4, "device": 3.0}
    assert judged(gains, model_error=error, wait_share=waits).stage == stage


def test_a_replay_that_is_off_is_believed_of_the_loader() -> None:
    gains: dict[Stage, float] = {"decode": 2.5, "straggler": 1.7, "device": 1.1}
    assert judged(gains, model_error=0.5, wait_share=0.5).stage == "decode"


@pytest.mark.parametrize("stage", [*LOADER, "host"])
def test_the_stage_that_gains_the_most_is_the_bottleneck(stage: Stage) -> None:
    gains: dict[Stage, float] = dict.fromkeys((*LOADER, "host"), 1.06)
    gains[stage] = 2.0
    judgement = judged(gains)
    assert judgement.stage == stage
    assert set(judgement.others) == set(gains) - {stage}
    assert judgement.confidence == "high"


def test_below_a_gain_of_five_percent_there_is_no_bottleneck() -> None:
    assert primary(dict.fromkeys(LOADER, 1.0 + MIN_GAIN - 0.01)) == "none"
    assert primary({"decode": 1.0 + MIN_GAIN + 0.01}) == "decode"
    assert primary({}) == "none"


def test_the_step_is_the_limit_only_where_the_loader_could_go_much_faster() -> None:
    assert primary({"decode": 1.02, "device": 1.3}) == "none"
    assert primary({"decode": 1.02, "device": 1.6}) == "device"
    assert primary({"decode": 1.2, "device": 6.0}) == "device"
    assert primary({"decode": 2.7, "device": 3.0}) == "decode"
    assert primary({"decode": 1.3, "device": 1.45}) == "decode"


def test_the_loops_own_python_is_held_against_the_model() -> None:
    assert primary({"decode": 1.0, "host": 1.5, "device": 1.2}) == "host"
    assert primary({"decode": 1.0, "host": 1.2, "device": 3.0}) == "device"
    assert primary({"decode": 1.3, "host": 1.2, "device": 1.4}) == "decode"


def test_what_limits_a_job_is_what_its_removal_gains_most() -> None:
    judgement = judged({"decode": 1.10, "host": 1.12, "device": 3.0})
    assert judgement.stage == "device"
    assert judgement.others == ("host", "decode")


def test_a_fight_for_cores_slows_the_step_too() -> None:
    assert primary({"transform": 1.1, "contention": 2.6, "device": 3.9}) == "contention"
    assert primary({"transform": 1.1, "contention": 1.2, "device": 3.9}) == "device"


def test_what_costs_beside_the_model_is_named() -> None:
    judgement = judged({"decode": 1.01, "host": 1.25, "device": 5.0})
    assert judgement.stage == "device"
    assert judgement.others == ("host",)


@pytest.mark.parametrize("narrow", ["straggler", "contention"])
@pytest.mark.parametrize(("wide", "enough", "too_little"), [(1.2, 1.13, 1.11), (2.0, 1.61, 1.59), (3.0, 2.21, 2.19)])
def test_the_narrower_explanation_is_preferred_where_it_explains_most(
    narrow: Stage, wide: float, enough: float, too_little: float
) -> None:
    assert primary({"transform": wide, narrow: enough}) == narrow
    assert primary({"transform": wide, narrow: too_little}) == "transform"


def test_a_narrow_explanation_of_next_to_nothing_is_none() -> None:
    assert primary({"transform": 1.06, "straggler": 1.04}) == "transform"
    assert primary({"transform": 1.06, "straggler": 1.055}) == "straggler"
    assert primary({"transform": 2.0, "straggler": 1.7, "contention": 1.8}) == "contention"


@pytest.mark.parametrize("steps", [0, 1, MIN_STEPS - 1])
def test_under_twenty_steps_nothing_is_concluded(steps: int) -> None:
    judgement = judged({"decode": 5.0}, steps=steps)
    assert (judgement.stage, judgement.others, judgement.confidence) == ("unknown", (), "low")
    assert f"{steps} steps" in judgement.reason
    assert judged({"decode": 5.0}, steps=MIN_STEPS).stage == "decode"


def test_without_gains_nothing_is_concluded() -> None:
    judgement = judged({})
    assert (judgement.stage, judgement.confidence) == ("unknown", "low")
    assert "were not measured" in judgement.reason


@pytest.mark.parametrize(
    ("more", "confidence"),
    [
        ({}, "high"),
        ({"steps": SURE_STEPS - 1}, "medium"),
        ({"draws": []}, "low"),
        ({"draws": [{"decode": 2.0}] * 10 + [{"read": 2.0}] * 2}, "medium"),
        ({"draws": [{"decode": 2.0}] * 6 + [{"read": 2.0}] * 6}, "low"),
        ({"draws": [{"decode": 2.0}] * 19 + [{"read": 2.0}]}, "high"),
        ({"draws": [{"decode": 2.0}] * 18 + [{"read": 2.0}] * 2}, "medium"),
        ({"draws": [{"decode": 2.0}] * 8 + [{"read": 2.0}] * 2}, "medium"),
        ({"draws": [{"decode": 2.0}] * 7 + [{"read": 2.0}] * 3}, "low"),
        ({"model_error": 0.3}, "medium"),
        ({"model_error": -0.3}, "medium"),
        ({"model_error": None}, "high"),
        ({"disturbed": True}, "medium"),
        ({"sources_agree": False}, "medium"),
        ({"sources_agree": True}, "high"),
        ({"disturbed": True, "steps": SURE_STEPS - 1}, "low"),
        ({"disturbed": True, "steps": SURE_STEPS}, "medium"),
        ({"steps": SURE_STEPS}, "high"),
        ({"model_error": MODEL_ERROR}, "high"),
        ({"guessed": MAX_GUESSED}, "high"),
        ({"guessed": MAX_GUESSED + 0.01}, "medium"),
    ],
)
def test_confidence_falls_with_what_speaks_against(more: dict[str, Any], confidence: str) -> None:
    gains: dict[Stage, float] = {"decode": 2.0, "read": 1.5}
    assert judged(gains, **more).confidence == confidence


def test_producers_that_take_turns_are_contention_where_it_gains_enough() -> None:
    enough = 1 + LOCK_GAIN
    assert primary({"decode": 3.0, "contention": enough}, locked=True) == "contention"
    assert primary({"decode": 3.0, "contention": enough}) == "decode"
    assert primary({"decode": 3.0, "contention": enough - 0.01}, locked=True) == "decode"
    assert primary({"decode": 3.0}, locked=True) == "decode"


def test_producers_of_which_too_little_was_seen_leave_no_verdict() -> None:
    judgement = judged({"read": 5.0}, producers_unseen=True)
    assert (judgement.stage, judgement.confidence) == ("unknown", "low")
    assert "too few stack samples" in judgement.reason


def test_what_lies_on_a_border() -> None:
    assert primary({"host": 1.25, "device": 1.25}) == "host"
    assert primary({"host": 1.25, "decode": 1.25, "device": 1.1}) == "decode"
    assert primary({"decode": 1 + CLOSE, "device": 2.0}) == "decode"
    assert primary({"decode": 1.25, "device": STEP_BOUND}) == "device"
    assert primary({"device": STEP_BOUND}) == "device"
    assert primary({"decode": 1.25, "device": STEP_BOUND - 0.01}) == "decode"
    assert judged({"decode": 2.0, "read": 1 + MIN_GAIN, "collate": 1.04}).others == ("read",)


@given(gains=GAINS)
def test_any_gains_lead_to_a_stage_and_the_others_are_worth_naming(gains: dict[Stage, float]) -> None:
    judgement = judged(gains)
    assert judgement.stage in STAGES
    assert judgement.stage not in judgement.others
    assert all(gains[stage] >= 1 + MIN_GAIN for stage in judgement.others)
    assert [gains[stage] for stage in judgement.others] == sorted((gains[s] for s in judgement.others), reverse=True)
    if judgement.stage in LOADER:
        assert gains[judgement.stage] >= 1 + MIN_GAIN
    if judgement.stage == "none":
        assert all(gains.get(stage, 1.0) < 1 + MIN_GAIN for stage in LOADER)
    if judgement.stage == "device":
        assert all(gains.get(stage, 1.0) < gains["device"] for stage in LOADER)


@given(gains=GAINS, more=st.floats(1.0, 3.0))
def test_a_more_expensive_bottleneck_stays_the_bottleneck(gains: dict[Stage, float], more: float) -> None:
    stage = primary(gains)
    if stage in LOADER:
        assert primary({**gains, stage: gains[stage] * more}) == stage
