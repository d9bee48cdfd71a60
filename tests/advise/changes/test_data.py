"""Advice on what is stored, read and sent: each where its marks are seen, and not where one of them is missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from golden_sentences import Check
from made import Fetch, Made, Plan
from truths import DECODING, LOAD, RESIZE, advice_of

from loaderprof.conclude import findings_of
from loaderprof.findings import Advice

TO_TENSOR = "torchvision.transforms.transforms.ToTensor.__call__"
MIB = 1 << 20


def offered(folder: Path, plan: Plan, available: int | None = None) -> dict[str, Advice]:
    made = Made(folder)
    made.finish(made.loop(made.process(), plan))
    if available is not None:
        made.lines.append({"t": 5, "memory": {"total": 10**12, "available": available}})
    return {each.id: each for each in findings_of(made.read()).advice}


FLOATS = Plan(
    workers=2,
    wait=0.03,
    step=0.002,
    fetch=Fetch(
        cpu=0.06,
        pickle=0.001,
        operators=[(LOAD, 0.02, 0.02), (TO_TENSOR, 0.03, 0.03)],
        batch_bytes=10 * MIB,
        floats=100,
    ),
)


def test_images_made_floats_in_workers_are_sent_as_bytes(tmp_path: Path) -> None:
    advice = offered(tmp_path / "r", FLOATS)["uint8-batches"]
    assert (advice.change["batches"], advice.expected.low) == ("uint8", 1.0)
    # Half of what makes a batch goes, less what the step then does.
    assert 1.4 < (advice.expected.speedup or 0) < 1.8


@pytest.mark.parametrize(
    "fetch",
    [
        replace(FLOATS.fetch, floats=0),
        replace(FLOATS.fetch, operators=[(LOAD, 0.02, 0.02), (RESIZE, 0.03, 0.03)]),
        replace(FLOATS.fetch, operators=[(TO_TENSOR, 0.05, 0.05)]),
    ],
)
def test_what_was_never_bytes_is_not_sent_as_bytes(tmp_path: Path, fetch: Fetch) -> None:
    assert "uint8-batches" not in offered(tmp_path / "r", replace(FLOATS, fetch=fetch))


def test_a_batch_that_is_not_handed_over_is_not_made_smaller(tmp_path: Path) -> None:
    assert "uint8-batches" not in offered(tmp_path / "r", replace(FLOATS, workers=0, wait=0.06))


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        ("ToTensor, Normalize, RandomResizedCrop", "Put RandomResizedCrop before ToTensor"),
        ("Pad, ToDtype, Resize", "Put Resize before ToDtype"),
        ("RandomResizedCrop, ToTensor, Normalize", None),
        ("ToTensor", None),
        ("", None),
        (["ToTensor", "Resize"], None),
        (None, None),
    ],
)
def test_a_crop_after_the_floats_is_put_first(tmp_path: Path, names: object, wanted: str | None) -> None:
    advice = offered(tmp_path / "r", replace(FLOATS, facts={"transforms": names})).get("crop-first")
    assert (advice is None) == (wanted is None)
    if advice is not None:
        assert advice.action.startswith(wanted or "")
        assert advice.expected.low == pytest.approx(1.0, abs=0.05)


SMALL = Fetch(cpu=0.01, blocked=0.05, operators=[("io.open", 0.055, 0.005)], asked_bytes=16 * 4096)


def test_small_files_are_packed(tmp_path: Path, said: Check) -> None:
    advice = offered(tmp_path / "r", Plan(workers=2, wait=0.025, step=0.005, fetch=SMALL))["shards"]
    said("shards", advice.why)
    assert (advice.expected.low or 9) <= 1.0 < (advice.expected.speedup or 0)


def test_large_files_are_not_packed(tmp_path: Path) -> None:
    large = replace(SMALL, asked_bytes=16 * MIB)
    assert "shards" not in offered(tmp_path / "r", Plan(workers=2, wait=0.025, step=0.005, fetch=large))


def test_decoded_samples_that_do_not_fit_in_memory_are_kept_on_disk(tmp_path: Path) -> None:
    fetch = Fetch(
        cpu=0.05,
        blocked=0.002,
        operators=[("io.open", 0.004, 0.002), (LOAD, 0.04, 0.04)],
        batch_bytes=16 * 150_000,
        asked_bytes=16 * 100_000,
    )
    plan = Plan(wait=0.05, fetch=fetch, facts={"samples": 10**6})
    found = offered(tmp_path / "full", plan, available=10**10)
    assert found["cache-on-disk"].change == {"kind": "cache", "place": "disk"}
    assert "cache-in-memory" not in found
    # What decoding takes, and no more: reading stays.
    assert 1.5 < (found["cache-on-disk"].expected.speedup or 0) < 2.9
    found = offered(tmp_path / "roomy", plan, available=10**12)
    assert "cache-on-disk" not in found
    assert "cache-in-memory" in found


def test_a_cache_is_offered_where_the_samples_fit_in_memory(tmp_path: Path) -> None:
    for available, fits in ((10**9, True), (10**6, False), (None, False)):
        made = Made(tmp_path / str(available))
        process = made.process()
        made.loop(process, Plan(wait=0.05, fetch=DECODING, facts={"samples": 1000}))
        process.size(-1, 160_000, 16)
        if available is not None:
            made.lines.append({"t": 5, "memory": {"total": 10**10, "available": available}})
        found = advice_of(findings_of(made.read()))
        assert ("cache-in-memory" in found) == fits
        if fits:
            advice = found["cache-in-memory"]
            # What comes out of the transform is known, not what goes into it.
            assert advice.costs.memory_bytes is None
            assert advice.change["kind"] == "cache"
            assert advice.expected.speedup == pytest.approx(60 / 20, rel=0.02)


def test_what_a_cache_takes_is_known_where_nothing_follows_the_decoder(tmp_path: Path) -> None:
    made = Made(tmp_path / "r")
    process = made.process()
    decoding = Fetch(cpu=0.05, operators=[(LOAD, 0.05, 0.05)])
    made.loop(process, Plan(wait=0.05, fetch=decoding, facts={"samples": 1000}))
    process.size(-1, 160_000, 16)
    made.lines.append({"t": 5, "memory": {"total": 10**10, "available": 10**9}})
    assert advice_of(findings_of(made.read()))["cache-in-memory"].costs.memory_bytes == 1000 * 10_000
