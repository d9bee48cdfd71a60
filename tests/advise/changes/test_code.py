"""Advice on the user's own functions."""

from __future__ import annotations

import pytest
from truths import advice_of, findings_named


def test_threads_are_advised_against_where_they_contend() -> None:
    advice = advice_of(findings_named("contention"))["single-threaded-workers"]
    assert advice.change["kind"] == "code"
    assert advice.current == {"threads_per_worker": pytest.approx(4.0)}


def test_a_loops_own_python_is_named_with_its_line() -> None:
    assert advice_of(findings_named("host"))["lighter-loop"].where == "train.py:60"
