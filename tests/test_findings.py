"""findings.json is a contract: its fields, what is null, and what it refuses to read."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from truths import NAMES, findings_named

from loaderprof import findings as results
from loaderprof.errors import RecordingError
from loaderprof.findings import SCHEMA_VERSION, STAGES, Findings, load

# DESIGN, section 4: fields may be added, never renamed or removed. `?`: may be null.
STAGE = (
    "device",
    "host",
    "read",
    "decode",
    "transform",
    "collate",
    "handover",
    "copy",
    "startup",
    "straggler",
    "contention",
    "sampler",
    "sync",
    "none",
    "unknown",
)
VERDICT = {
    "bottleneck": "str",
    "cause": "str",
    "confidence": "str",
    "headline": "str",
    "step_s": "float?",
    "wait_s": "float?",
    "wait_share": "float?",
    "ceiling_speedup": "float?",
}
RUN = {
    "command": "str",
    "exit_code": "int?",
    "duration_s": "float?",
    "steps": "int?",
    "world_size": "int",
    "device": "str?",
    "cpu_budget": "float?",
    "python": "str?",
    "torch": "str?",
    "start_method": "str?",
    "overhead": "dict",
    "notes": "list",
}
OVERHEAD = {"capture_cpu_s": "float?", "sampler_cpu_s": "float?", "share_of_wall": "float?"}
STAGE_COST = {"stage": "str", "s_per_batch": "float?", "share": "float?", "sources": "list", "by": "list"}
PART = {"name": "str", "where": "str?", "s_per_batch": "float"}
CAUSE = {"id": "str", "status": "str", "stage": "str", "evidence": "list", "speedup_if_removed": "float?"}
EVIDENCE = {"text": "str", "value": "float?", "unit": "str", "threshold": "float?"}
ADVICE = {
    "id": "str",
    "action": "str",
    "why": "str",
    "where": "str?",
    "change": "dict",
    "current": "dict",
    "expected": "dict",
    "costs": "dict",
    "measured": "dict?",
}
EXPECTED = {"speedup": "float?", "low": "float?", "high": "float?", "samples_per_s": "float?"}
COSTS = {"cores": "float?", "memory_bytes": "int?", "effort": "str"}
MEASURED = {"speedup": "float", "low": "float", "high": "float", "runs": "int"}
LOADER = {
    "name": "str",
    "where": "str?",
    "settings": "dict",
    "batches": "int",
    "batch_size": "int?",
    "samples_per_s": "float?",
    "wait_s": "float?",
    "wait_share": "float?",
    "first_batch_s": "float?",
    "epochs": "int",
    "verdict": "dict?",
}
RANK = {"rank": "int", "host": "str", "pid": "int", "step_s": "float?", "wait_s": "float?"}
TOP = ("schema_version", "run", "verdict", "stages", "causes", "advice", "loaders", "ranks")
SETTINGS = (
    "num_workers",
    "prefetch_factor",
    "pin_memory",
    "persistent_workers",
    "in_order",
    "multiprocessing_context",
    "batch_size",
)
KINDS = {
    "str": str,
    "int": int,
    "float": (int, float),
    "list": list,
    "dict": dict,
}


def check(data: Any, fields: dict[str, str]) -> None:
    assert isinstance(data, dict)
    for name, kind in fields.items():
        assert name in data, f"{name} is missing"
        if data[name] is None:
            assert kind.endswith("?"), f"{name} is null"
        else:
            assert isinstance(data[name], KINDS[kind.rstrip("?")]), f"{name} is {data[name]!r}"
            assert not isinstance(data[name], bool)


def validate(data: Any) -> None:
    """Hold a findings.json against the contract."""
    assert set(TOP) <= set(data)
    assert data["schema_version"] == 1
    check(data["run"], RUN)
    check(data["run"]["overhead"], OVERHEAD)
    assert all(isinstance(note, str) for note in data["run"]["notes"])
    check(data["verdict"], VERDICT)
    assert data["verdict"]["bottleneck"] in STAGE
    assert data["verdict"]["confidence"] in ("high", "medium", "low")
    for stage in data["stages"]:
        check(stage, STAGE_COST)
        assert stage["stage"] in STAGE
        assert set(stage["sources"]) <= {"timer", "stack", "kernel"}
        for part in stage["by"]:
            check(part, PART)
    for cause in data["causes"]:
        check(cause, CAUSE)
        assert cause["stage"] in STAGE
        assert cause["status"] in ("found", "ruled_out", "not_measured")
        for evidence in cause["evidence"]:
            check(evidence, EVIDENCE)
    for advice in data["advice"]:
        check(advice, ADVICE)
        check(advice["expected"], EXPECTED)
        check(advice["costs"], COSTS)
        if advice["measured"] is not None:
            check(advice["measured"], MEASURED)
        kind = advice["change"].get("kind")
        assert kind in ("cache", "decoder", "format", "code") or set(advice["change"]) <= set(SETTINGS)
    for loader in data["loaders"]:
        check(loader, LOADER)
        if loader["verdict"] is not None:
            check(loader["verdict"], VERDICT)
    for rank in data["ranks"]:
        check(rank, RANK)


@pytest.mark.parametrize("name", NAMES)
def test_conclusions_keep_the_contract_and_come_back_unchanged(name: str) -> None:
    found = findings_named(name)
    text = found.to_json()
    validate(json.loads(text))
    assert Findings.from_json(text) == found


def test_the_stages_are_those_of_the_contract() -> None:
    assert STAGES == STAGE


def test_measured_advice_and_unmeasured_numbers_come_back() -> None:
    found = findings_named("decode")
    advice = dataclasses.replace(found.advice[0], measured=results.Measured(1.5, 1.4, 1.6, 4))
    verdict = dataclasses.replace(found.verdict, wait_s=None)
    changed = dataclasses.replace(found, advice=(advice,), verdict=verdict)
    data = json.loads(changed.to_json())
    validate(data)
    assert data["verdict"]["wait_s"] is None
    assert Findings.from_json(changed.to_json()) == changed


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_null(number: float) -> None:
    found = findings_named("decode")
    text = dataclasses.replace(found, verdict=dataclasses.replace(found.verdict, step_s=number)).to_json()
    assert json.loads(text, parse_constant=pytest.fail)["verdict"]["step_s"] is None


def test_fields_of_a_later_version_are_passed_over() -> None:
    data = json.loads(findings_named("decode").to_json())
    data["later"] = data["verdict"]["later"] = data["loaders"][0]["later"] = {"x": 1}
    assert Findings.from_json(json.dumps(data)) == findings_named("decode")


def test_a_newer_schema_is_refused() -> None:
    data = json.loads(findings_named("decode").to_json())
    data["schema_version"] = SCHEMA_VERSION + 1
    with pytest.raises(RecordingError, match="has schema 2") as caught:
        Findings.from_json(json.dumps(data))
    assert "upgrade" in caught.value.hint


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"schema_version": "1"}', '{"schema_version": 1}', "[" * 10**5]
)
def test_what_is_no_findings_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(RecordingError) as caught:
        Findings.from_json(text)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("number", ["Infinity", "-Infinity", "NaN", "1e999"])
def test_a_number_that_is_none_is_refused(number: str) -> None:
    text = ORIGINAL.replace('"s_per_batch": ', f'"s_per_batch": {number}, "was": ', 1)
    with pytest.raises(RecordingError, match="s_per_batch is"):
        Findings.from_json(text)


def paths(data: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [at, *(path for key, item in items for path in paths(item, (*at, key)))]


ORIGINAL = findings_named("decode").to_json()
# What a change is made of is free.
PATHS = [path for path in paths(json.loads(ORIGINAL))[1:] if "change" not in path]
VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text(max_size=5)
    | st.just([])
    | st.just({})
)


@settings(max_examples=80, deadline=None)
@given(path=st.sampled_from(PATHS), value=VALUES)
def test_any_value_anywhere_is_read_or_refused(path: tuple[Any, ...], value: Any) -> None:
    data = inside = json.loads(ORIGINAL)
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    try:
        found = Findings.from_json(json.dumps(data))
    except RecordingError:
        return
    validate(json.loads(found.to_json()))


def test_findings_are_loaded_from_their_folder(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="no readable findings"):
        load(tmp_path)
    (tmp_path / "findings.json").write_bytes(b"\xff\xfe")
    with pytest.raises(RecordingError, match="no readable findings") as caught:
        load(tmp_path)
    assert "loaderprof report" in caught.value.hint
    (tmp_path / "findings.json").write_text(ORIGINAL)
    assert load(tmp_path) == findings_named("decode")
