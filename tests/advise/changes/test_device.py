"""Advice on what passes between host and device."""

from __future__ import annotations

from truths import NAMES, advice_of, findings_named


def test_pinning_is_for_a_cuda_device_only() -> None:
    assert all("pin-memory" not in advice_of(findings_named(name)) for name in NAMES)
