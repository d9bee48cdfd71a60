"""Settings as a framework that makes the loader itself calls them: `dataloader_num_workers` of TrainingArguments.

`--set` speaks of the DataLoader in any case. Pure.
"""

from __future__ import annotations

import re
from dataclasses import replace

from loaderprof.findings import Advice

# By framework (see `capture/describe.py`): where its settings are given, and their names there.
_KNOBS = {
    "transformers": (
        "TrainingArguments",
        {name: f"dataloader_{name}" for name in ("num_workers", "prefetch_factor", "pin_memory", "persistent_workers")},
    ),
    "ultralytics": ("model.train", {"num_workers": "workers"}),
}


def spoken(advice: Advice, framework: object) -> Advice:
    """Return advice in the words of the framework that makes the loader; as it is where its user makes it."""
    place, names = _KNOBS.get(str(framework), ("", {}))
    if not names:
        return advice
    action = re.sub(r"\b(" + "|".join(names) + r")\b", lambda match: names[match[1]], advice.action)
    if not advice.change or not set(advice.change) <= set(names):
        return replace(advice, action=action)
    settings = ", ".join(f"{names[key]}={value}" for key, value in advice.change.items())
    return replace(advice, action=action, code=f"{place}(..., {settings})")
