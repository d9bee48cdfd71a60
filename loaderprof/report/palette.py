"""One colour and one short name for every stage: the terminal, the pictures and the page all take them here.

The stages that stand side by side in a bar take the Okabe-Ito colours, which people with red-green
colour blindness can distinguish; all are middle tones, so that they show on white and on black.
"""

from __future__ import annotations

from loaderprof.findings import STAGES, Stage

COLOURS: dict[Stage, str] = {
    "device": "#009e73",
    "host": "#9c6b4e",
    "read": "#2477b3",
    "decode": "#d55e00",
    "transform": "#c9709f",
    "collate": "#56b4e9",
    "handover": "#e69f00",
    "copy": "#7a5fc0",
    "startup": "#8a8f2c",
    "straggler": "#a3395b",
    "contention": "#b8433a",
    "sampler": "#3f9c9c",
    "sync": "#5b6fb5",
    "none": "#7d838c",
    "unknown": "#8f959e",
}

WORKER_STAGES: tuple[Stage, ...] = ("read", "decode", "transform", "collate", "handover")
"""The stages a loader worker goes through for a batch, in the order in which data flows."""

STEP_STAGES: tuple[Stage, ...] = ("copy", "device", "host")
"""The stages of a step once its batch is there."""

NAMES: dict[Stage, str] = dict(zip(STAGES, STAGES, strict=True)) | {
    "handover": "hand-over",
    "none": "nothing",
    "unknown": "unknown",
}


def stage(name: str) -> Stage:
    """Return the stage of that name, `unknown` for any other text."""
    for each in STAGES:
        if each == name:
            return each
    return "unknown"
