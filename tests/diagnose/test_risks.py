"""What may end or slow the next run, each risk with its number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from golden_sentences import Check
from made import Made, Plan, ns
from truths import light

from loaderprof.conclude import findings_of
from loaderprof.findings import Risk


def risks(
    folder: Path,
    *,
    workers: int = 4,
    meta: dict[str, Any] | None = None,
    host: dict[str, Any] | None = None,
    size: tuple[int, int] | None = None,
    descriptors: int = 0,
    **facts: Any,
) -> dict[str, Risk]:
    made = Made(folder / "r", **{"cores": 8.0, **(meta or {})})
    process = made.process()
    made.loop(
        process, Plan(workers=workers, step=0.02, wait=0.001, fetch=light(), facts={"start_method": "fork", **facts})
    )
    if size is not None:
        process.size(0, size[0], 16, tensors=size[1])
    if host is not None:
        made.lines.append({"t": ns(5), **host})
    made.stack_lines.append(
        {
            "t": ns(5),
            "t0": ns(1),
            "t1": ns(3),
            "rate": 25,
            "frames": [],
            "stacks": [],
            "files": [[process.pid, descriptors, [["/data/a.bin", 5]]]],
        }
    )
    return {risk.id: risk for risk in findings_of(made.read()).risks}


@pytest.mark.parametrize(
    ("more", "name", "value", "limit"),
    [
        ({"host": {"memory": {"available": 4 << 30}}, "size": (400 << 20, 3)}, "memory", 8 * (400 << 20), 4 << 30),
        ({"host": {"shm": {"total": 1 << 30}}, "size": (200 << 20, 3)}, "shared-memory", 8 * (200 << 20), 1 << 30),
        ({"meta": {"open_files_limit": 1024}, "size": (1000, 100)}, "open-files", 8 * 100 + 64, 1024),
        ({"meta": {"open_files_limit": 1024}, "descriptors": 900}, "open-files", 900, 1024),
        ({"shards": 3}, "few-shards", 3, 4),
        ({"iterable": True, "splits": False}, "duplicated-stream", 4, 1),
        ({"handle": "h5py.File"}, "handle-before-fork", 4, 0),
        ({"guarded": False}, "main-guard", 4, 0),
    ],
)
def test_a_risk_has_its_number(
    tmp_path: Path, said: Check, more: dict[str, Any], name: str, value: float, limit: float
) -> None:
    found = risks(tmp_path, **more)
    assert set(found) == {name}
    assert (found[name].value, found[name].limit) == (value, limit)
    said(f"{name} {value:.0f}", found[name].text)


@pytest.mark.parametrize(
    "more",
    [
        {"host": {"memory": {"available": 64 << 30}, "shm": {"total": 32 << 30}}, "size": (400 << 20, 3)},
        {"meta": {"open_files_limit": 65536}, "size": (1000, 100), "descriptors": 900},
        {"size": (1000, 100), "descriptors": 900},
        {"shards": 4},
        {"workers": 0, "shards": 1, "handle": "h5py.File", "guarded": False, "iterable": True, "splits": False},
        {"workers": 1, "iterable": True, "splits": False},
        {"iterable": True, "splits": True},
        {"iterable": True},
        {"handle": "h5py.File", "start_method": "spawn"},
        {"guarded": True},
    ],
)
def test_what_is_no_risk_is_not_listed(tmp_path: Path, more: dict[str, Any]) -> None:
    assert risks(tmp_path, **more) == {}


def test_a_quota_that_the_script_cannot_see_is_named(tmp_path: Path, said: Check) -> None:
    message = {"cpu_budget": {"cores": 2.0, "cgroup_quota": 2.0, "logical": 64}}
    found = risks(tmp_path, meta=message)["workers-over-budget"]
    assert (found.value, found.limit) == (4, 2)
    said("workers over a quota", found.text)
    assert "64" in found.text
