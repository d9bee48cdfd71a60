"""The catalogue of causes: names, evidence, and that every cause is found, ruled out or not measured - never two."""

from __future__ import annotations

import importlib
import pkgutil
import re
from itertools import groupby
from pathlib import Path

import pytest
from golden_sentences import Check
from made import Fetch, Made, Plan, one_loop
from truths import LOAD, NAMES, RESIZE, findings_named, light

from loaderprof.conclude import findings_of
from loaderprof.diagnose import causes
from loaderprof.diagnose.causes.catalogue import CATALOGUE
from loaderprof.diagnose.causes.cause import always
from loaderprof.diagnose.causes.no_cause import NO_CAUSES
from loaderprof.findings import STAGES, Findings

VERBS = re.compile(r"^(use|raise|lower|make|add|set|keep|take|give|pin|fix|check|reduce|avoid|increase|decrease)\b")


def test_ids_are_nouns_and_no_two_are_alike() -> None:
    ids = [cause.id for cause in (*CATALOGUE, *NO_CAUSES)]
    assert len(set(ids)) == len(ids)
    for each in ids:
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", each)
        assert not VERBS.match(each)


def test_titles_begin_with_a_capital_and_end_without_a_stop() -> None:
    for cause in CATALOGUE:
        assert cause.title[0].isupper()
        assert not cause.title.endswith(".")
        assert cause.stage in STAGES


def test_each_stage_has_one_cause_that_always_matches_and_tries_it_last() -> None:
    last = {cause.stage: cause for cause in CATALOGUE}
    assert set(last) == set(STAGES) - {"sync", "none", "unknown"}
    assert {cause.id for cause in CATALOGUE if cause.test is always} == {cause.id for cause in last.values()}


def test_causes_of_a_stage_stand_side_by_side() -> None:
    stages = [stage for stage, _ in groupby(cause.stage for cause in CATALOGUE)]
    assert len(set(stages)) == len(stages)


def test_each_module_that_holds_causes_is_in_the_catalogue() -> None:
    names = [f"{causes.__name__}.{module.name}" for module in pkgutil.iter_modules(causes.__path__)]
    held = [cause for name in names for cause in getattr(importlib.import_module(name), "CAUSES", ())]
    assert len(held) > 40
    assert {cause.id for cause in held} == {cause.id for cause in CATALOGUE}


@pytest.mark.parametrize("name", NAMES)
def test_a_cause_is_found_or_ruled_out_or_not_measured(name: str) -> None:
    found = findings_named(name)
    ids = [cause.id for cause in found.causes]
    assert len(set(ids)) == len(ids)
    for cause in found.causes:
        assert cause.evidence
        assert cause.title
        if cause.status == "found":
            assert cause.speedup_if_removed is not None
            assert cause.speedup_if_removed >= 1.05
        else:
            assert cause.speedup_if_removed is None
        if cause.status == "ruled_out":
            (evidence,) = cause.evidence
            assert evidence.value is not None
            assert evidence.threshold is not None
            assert evidence.value < evidence.threshold
        if cause.status == "not_measured":
            assert all(evidence.value is None and evidence.text for evidence in cause.evidence)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"none", "unknown"}))
def test_the_verdicts_cause_is_the_first_one_found(name: str) -> None:
    found = findings_named(name)
    first = found.causes[0]
    assert (first.id, first.status, first.stage) == (found.verdict.cause, "found", name)


@pytest.mark.parametrize(
    ("name", "cause", "words"),
    [
        ("read", "waiting-read", ["train.py:41"]),
        ("decode", "image-decode", ["ImageFile.load"]),
        ("transform", "slow-transform", ["Resize.__call__", "train.py:41"]),
        ("collate", "slow-collate", ["default_collate"]),
        ("handover", "many-tensors", ["loader"]),
        ("startup", "worker-restart", ["6.6 s", "6 epochs"]),
        ("straggler", "slow-samples", ["250 ms", "10 ms"]),
        ("contention", "thread-oversubscription", ["4 workers", "4.0 threads", "4 cores"]),
        ("sampler", "slow-sampler", ["MySampler"]),
        ("host", "host-python", ["train.py:60"]),
        ("device", "compute-bound", []),
        ("none", "balanced", []),
        ("unknown", "not-enough-evidence", []),
    ],
)
def test_headlines_say_what_where_and_how_much(said: Check, name: str, cause: str, words: list[str]) -> None:
    verdict = findings_named(name).verdict
    assert verdict.cause == cause
    said(f"headline {name}", verdict.headline)
    for word in words:
        assert word in verdict.headline


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"none", "unknown"}))
def test_the_evidence_of_a_verdict(said: Check, name: str) -> None:
    said(f"evidence {name}", "\n".join(each.text for each in findings_named(name).causes[0].evidence))


def concluded(folder: Path, fetch: Fetch, **plan: object) -> Findings:
    return findings_of(one_loop(folder, Plan(wait=fetch.wall(0), fetch=fetch, **plan)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("operators", "cause"),
    [
        ([("PIL.JpegImagePlugin.JpegImageFile.load", 0.05, 0.05)], "jpeg-decode"),
        ([(LOAD, 0.045, 0.045), ("PIL.JpegImagePlugin.JpegImageFile._open", 0.001, 0.001)], "jpeg-decode"),
        ([(LOAD, 0.045, 0.045), ("PIL.PngImagePlugin.PngImageFile._open", 0.001, 0.001)], "png-decode"),
        (
            [(LOAD, 0.045, 0.045), ("PIL.PngImagePlugin.x", 0.001, 0.001), ("PIL.JpegImagePlugin.x", 0.001, 0.001)],
            "image-decode",
        ),
        ([("soundfile.read", 0.05, 0.05)], "audio-decode"),
        ([("decord.VideoReader.get_batch", 0.05, 0.05)], "video-decode"),
        ([("transformers.PreTrainedTokenizer.encode", 0.05, 0.05)], "tokenising"),
        ([("zlib.decompress", 0.05, 0.05)], "decompression"),
        ([("json.loads", 0.05, 0.05)], "record-parsing"),
    ],
)
def test_decoding_is_named_by_what_is_decoded(
    tmp_path: Path, operators: list[tuple[str, float, float]], cause: str
) -> None:
    assert concluded(tmp_path / "r", Fetch(cpu=0.05, operators=operators)).verdict.cause == cause


@pytest.mark.parametrize(
    ("operator", "more", "cause"),
    [
        ("urllib.request.urlopen", {}, "remote-latency"),
        ("io.open", {"device_bytes": 10**6, "asked_bytes": 10**6}, "disk-read"),
        ("tarfile.TarFile.extractfile", {}, "archive-read"),
        ("h5py._hl.dataset.Dataset.__getitem__", {}, "database-read"),
        ("io.open", {"device_bytes": 1000, "asked_bytes": 10**6}, "waiting-read"),
    ],
)
def test_reading_is_named_by_what_is_read(tmp_path: Path, operator: str, more: dict[str, int], cause: str) -> None:
    fetch = Fetch(cpu=0.005, blocked=0.045, operators=[(operator, 0.05, 0.005)], **more)
    verdict = concluded(tmp_path / "r", fetch).verdict
    assert (verdict.bottleneck, verdict.cause) == ("read", cause)


def handing_over(folder: Path, ready: int = 0, **fetch: object) -> Findings:
    """A loop that receives for 18 of the 20 ms that it waits."""
    made = light(cpu=0.02, pickle=0.01, **fetch)
    return findings_of(one_loop(folder, Plan(workers=2, wait=0.02, receive=0.018, ready=ready, fetch=made)))


@pytest.mark.parametrize(
    ("held", "cause"),
    [
        # One array of 16 MiB, of which all is in the pickle; in shared memory, none of it is.
        ({"batch_bytes": 16 << 20, "pickled_bytes": 16 << 20}, "pickled-arrays"),
        ({"batch_bytes": 16 << 20, "pickled_bytes": 350}, "large-batches"),
        # One array that a batch holds 16 times is pickled once.
        ({"batch_bytes": 16 << 20, "tensors": 16, "pickled_bytes": 1 << 20}, "pickled-arrays"),
        ({"batch_bytes": 6000, "tensors": 0, "leaves": 9000, "pickled_bytes": 150_000}, "pickled-objects"),
        # Arrays among names and numbers.
        ({"batch_bytes": 1 << 20, "tensors": 4, "leaves": 90, "pickled_bytes": 1 << 20}, "pickled-arrays"),
        # Handles of many tensors make a large pickle of their own.
        ({"batch_bytes": 10**6, "tensors": 1500, "pickled_bytes": 150_000}, "many-tensors"),
        ({"batch_bytes": 32 << 10, "tensors": 2}, "batch-handover"),
        ({}, "batch-handover"),
    ],
)
def test_handing_over_is_named_by_what_a_batch_holds_and_how_it_travels(
    tmp_path: Path, held: dict[str, int], cause: str
) -> None:
    verdict = handing_over(tmp_path / "r", **held).verdict
    assert (verdict.bottleneck, verdict.cause) == ("handover", cause)


def of_the_queue(found: Findings) -> list[str]:
    """Return what the cause that was found says about batches that were ready or not."""
    return [evidence.text for evidence in found.causes[0].evidence if "of the steps" in evidence.text]


def test_the_prefetch_queue_is_evidence_only_where_it_speaks_for_the_cause(tmp_path: Path, said: Check) -> None:
    (text,) = of_the_queue(handing_over(tmp_path / "made", ready=2, batch_bytes=1 << 22))
    said("a batch was ready", text)
    assert of_the_queue(handing_over(tmp_path / "empty", batch_bytes=1 << 22)) == []
    decoding = Fetch(cpu=0.1, operators=[(LOAD, 0.1, 0.1)])
    for ready in (0, 2):
        plan = Plan(workers=2, wait=0.04, ready=ready, fetch=decoding)
        texts = of_the_queue(findings_of(one_loop(tmp_path / f"decode-{ready}", plan)))
        assert len(texts) == (ready == 0)
        for each in texts:
            said("no batch was ready", each)


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        ({"batch_sampler": "torch.utils.data.sampler.BatchSampler"}, "MySampler"),
        ({"batch_sampler": "__main__.HardMining", "sampler_where": "/home/me/train.py:12"}, "HardMining, train.py:12"),
    ],
)
def test_the_sampler_named_is_the_users(tmp_path: Path, facts: dict[str, str], name: str) -> None:
    verdict = sampling(tmp_path / "r", facts).verdict
    assert verdict.bottleneck == "sampler"
    assert f"({name})" in verdict.headline


def sampling(folder: Path, facts: dict[str, str]) -> Findings:
    plan = Plan(workers=2, wait=0.018, index=0.018, receive=0.0005, ready=3, fetch=light(), facts=facts)
    return findings_of(one_loop(folder, plan))


def test_files_that_are_in_memory_are_read_without_waiting(tmp_path: Path) -> None:
    verdict = concluded(tmp_path / "r", Fetch(cpu=0.05, operators=[("io.open", 0.05, 0.05)])).verdict
    assert (verdict.bottleneck, verdict.cause) == ("read", "file-read")


def test_a_loop_without_workers_does_not_restart_them(tmp_path: Path) -> None:
    found = concluded(tmp_path / "r", light(), epochs=3)
    assert "worker-restart" not in {cause.id for cause in found.causes}


def test_the_loops_own_python_is_ruled_out_only_where_stacks_saw_it(tmp_path: Path) -> None:
    for samples, status in ((0, "not_measured"), (100, "ruled_out")):
        made = Made(tmp_path / str(samples), sources={"/home/me/train.py:58": "y = model(x)"})
        process = made.process()
        made.loop(process, Plan(wait=0.01, fetch=light()))
        if samples:
            made.stacks(process.pid, ["<module> (/home/me/train.py:58)"], samples)
        statuses = {cause.id: cause.status for cause in findings_of(made.read()).causes}
        assert statuses["host-python"] == status


def test_a_stall_now_and_then_is_named(tmp_path: Path) -> None:
    plan = Plan(workers=2, batches=120, step=lambda i: 0.5 if i % 10 == 9 else 0.01, wait=1e-4, fetch=light(cpu=1e-3))
    verdict = findings_of(one_loop(tmp_path / "r", plan)).verdict
    assert (verdict.bottleneck, verdict.cause) == ("host", "periodic-stall")


def test_what_is_not_measured_has_a_reason(tmp_path: Path) -> None:
    made = Made(
        tmp_path / "r", missing={"gpu": "not measured: no NVIDIA driver", "stacks": "not measured: py-spy was refused"}
    )
    made.loop(made.process(), Plan(wait=0.01, fetch=light()))
    reasons = {c.id: c.evidence[0].text for c in findings_of(made.read()).causes if c.status == "not_measured"}
    assert reasons == {"copy-bound": "no NVIDIA driver", "host-python": "py-spy was refused"}


def test_evidence_shares_are_those_of_the_run() -> None:
    (decode,) = [cause for cause in findings_named("decode").causes if cause.stage == "decode"]
    shares = {evidence.text: evidence.value for evidence in decode.evidence if evidence.unit == "share"}
    (text,) = [text for text in shares if "of a batch's making" in text]
    assert shares[text] == pytest.approx(0.8, abs=0.01)
    assert text.startswith("80 %")
    assert RESIZE not in text
