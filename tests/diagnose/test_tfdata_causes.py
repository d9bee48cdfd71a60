"""Causes of a tf.data pipeline: recognised by what the most expensive function of a stage calls, in the catalogue's words."""

from __future__ import annotations

import re

import pytest
from golden_sentences import Check

from loaderprof.analyze.tfdata import Node, Operation, Pipeline
from loaderprof.diagnose.causes.tfdata import cause_of, examine, headline
from loaderprof.diagnose.verdict import Judgement
from loaderprof.findings import Stage

GAINS: dict[Stage, float] = {
    "read": 1.0,
    "decode": 1.8,
    "transform": 1.08,
    "collate": 1.02,
    "sampler": 1.0,
    "handover": 1.0,
    "device": 1.3,
}


def node(stage: Stage, work: float, *calls: str, words: tuple[str, ...] = ()) -> Node:
    operation = Operation("Map", f"map({stage})", "train.py:12", calls, words, False)
    return Node("Map", stage, operation, work, 0, False, False, 8.0, 1000.0)


def pipeline(*nodes: Node, blocked: float | None = None) -> Pipeline:
    return Pipeline(nodes, (), 60, 0.03, 0.0, blocked)


@pytest.mark.parametrize(
    ("calls", "words", "cause"),
    [
        (("ReadFile", "DecodeJpeg"), (), "jpeg-decode"),
        (("DecodePng",), (), "png-decode"),
        (("DecodeImage",), (), "image-decode"),
        (("EagerPyFunc",), ("cv2", "imread"), "image-decode"),
        (("DecodeWav",), (), "audio-decode"),
        (("ParseExampleV2",), (), "record-parsing"),
        (("EagerPyFunc",), ("json", "loads"), "record-parsing"),
        (("DecodeCompressed",), (), "decode"),
    ],
)
def test_decoding_is_named_by_what_is_called(calls: tuple[str, ...], words: tuple[str, ...], cause: str) -> None:
    assert cause_of("decode", pipeline(node("decode", 0.03, *calls, words=words), node("decode", 0.01))).id == cause


def test_reading_waits_where_functions_are_mostly_blocked() -> None:
    reads = node("read", 0.03, "ReadFile")
    assert [cause_of("read", pipeline(reads, blocked=share)).id for share in (None, 0.4, 0.6)] == [
        "file-read",
        "file-read",
        "waiting-read",
    ]


@pytest.mark.parametrize(
    ("stage", "where"),
    [("decode", "(map(decode), train.py:12)"), ("startup", "train"), ("none", ""), ("collate", ""), ("device", "")],
)
def test_headlines(said: Check, stage: Stage, where: str) -> None:
    text = headline(stage, pipeline(node("decode", 0.03, "DecodeJpeg")), GAINS, "train")
    said(f"headline {stage}", text)
    assert where in text


def test_what_is_found_stands_first_and_what_nothing_told_last(said: Check) -> None:
    made = pipeline(node("collate", 0.01), node("decode", 0.03, "DecodePng"))
    causes = examine(made, GAINS, Judgement("decode", ("transform",), "high"))
    assert [(each.id, each.status) for each in causes] == [
        ("png-decode", "found"),
        ("slow-transform", "found"),
        ("slow-collate", "ruled_out"),
        ("file-read", "ruled_out"),
        ("slow-sampler", "ruled_out"),
        ("batch-handover", "ruled_out"),
        ("host-python", "not_measured"),
    ]
    for cause in causes:
        said(f"cause {cause.id}", "\n".join([cause.title, *(each.text for each in cause.evidence)]))
    assert [re.findall(r"[\d.]+", each.text)[0] for each in causes[0].evidence] == ["1.8", "75", "1"]
    assert "2 %" in causes[2].evidence[0].text
