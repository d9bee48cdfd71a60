"""`verified.json`: what is saved is read back, damage is left out, and only the change that was measured is joined."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_samples import decode

from loaderprof.findings import Measured
from loaderprof.measure import verified
from loaderprof.measure.verified import Verified

MEASURED = Measured(1.8, 1.7, 1.9, 3)
WORKERS = Verified("num-workers", {"num_workers": 4}, ((100.0, 180.0), (100.0, 181.0)), MEASURED)


def test_a_later_result_of_an_id_takes_the_place_of_the_earlier(tmp_path: Path) -> None:
    other = replace(WORKERS, id="prefetch-factor", measured=None)
    for each in (WORKERS, other, replace(WORKERS, change={"num_workers": 8})):
        verified.save(tmp_path, each)
    assert verified.load(tmp_path) == (other, replace(WORKERS, change={"num_workers": 8}))
    assert verified.measured(tmp_path) == {"num-workers": MEASURED}


@pytest.mark.parametrize(
    "damage",
    [{"pairs": [[1.0]]}, {"measured": {"speedup": float("nan"), "low": 1, "high": 2, "runs": 2}}, {"change": 3}],
)
def test_one_damaged_result_leaves_the_others(tmp_path: Path, damage: dict[str, Any]) -> None:
    verified.save(tmp_path, WORKERS)
    data = json.loads((tmp_path / verified.NAME).read_text())
    data["verified"].append({**data["verified"][0], "id": "damaged", **damage})
    (tmp_path / verified.NAME).write_text(json.dumps(data))
    assert verified.load(tmp_path) == (WORKERS,)


@pytest.mark.parametrize("text", ["", "[]", '{"schema_version": 99, "verified": []}', "[" * 99999])
def test_a_file_of_another_kind_holds_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / verified.NAME).write_text(text)
    assert verified.load(tmp_path) == ()


def test_only_the_change_that_was_measured_is_joined(tmp_path: Path) -> None:
    found = decode()
    first = found.advice[0]
    verified.save(tmp_path, replace(WORKERS, id=first.id, change=first.change))
    assert verified.joined(found, tmp_path).advice == (replace(first, measured=MEASURED), *found.advice[1:])
    verified.save(tmp_path, replace(WORKERS, id=first.id, change={"num_workers": 99}))
    assert verified.joined(found, tmp_path) == found
