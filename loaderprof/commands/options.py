"""What several verbs read from their options alike. Light: a verb's own --help imports it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from loaderprof.errors import UsageError


def settings_of(pairs: Sequence[str]) -> dict[str, Any]:
    """Return what `--set` asked for, with Python's values: 4, true, spawn."""
    from loaderprof.capture.hooks import settings as loaders
    from loaderprof.capture.hooks import tf_settings

    words: dict[str, Any] = {"true": True, "false": False, "none": None}
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        of_tf = key in tf_settings.KEYS
        if not equals or not (of_tf or key.split(".")[-1] in loaders.KEYS):
            known = (*loaders.KEYS, *tf_settings.KEYS)
            raise UsageError(
                f"--set does not know {pair!r}", "--set takes " + ", ".join(f"{name}=..." for name in known)
            )
        if value.lower() in words:
            settings[key] = words[value.lower()]
        elif value.isdecimal():
            settings[key] = int(value)
        else:
            settings[key] = value
        if of_tf and not tf_settings.fits(key, settings[key]):
            raise UsageError(
                f"--set {pair} is nothing that tf.data takes",
                "loaderprof run --set tf.num_parallel_calls=AUTOTUNE train.py",
            )
        if not of_tf and not loaders.fits(key.split(".")[-1], settings[key]):
            raise UsageError(
                f"--set {pair} is nothing that a DataLoader takes", "loaderprof run --set num_workers=4 train.py"
            )
    return settings


def share_of(text: str) -> float:
    """Return the share that `--max-overhead` asked for: `1%`, or 1."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)\s*%?", text.strip())
    share = float(match[1]) / 100 if match else 0.0
    if not 0.0 < share <= 1.0:
        raise UsageError(
            f"--max-overhead is a percentage above 0 and up to 100, not {text!r}",
            "loaderprof run --max-overhead 1% train.py",
        )
    return share


def shown_place(place: str) -> str | None:
    """Return what reports call a recording that lies at a URL; None for a folder."""
    from loaderprof.recording import remote

    return remote.shown(place) if remote.is_url(place) else None
