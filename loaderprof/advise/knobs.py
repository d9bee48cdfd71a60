"""Settings by the names that a framework has for them where it makes the loader: `dataloader_num_workers` of transformers.

`--set` takes the DataLoader's own names in any case. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from loaderprof.findings import Advice

_SETTINGS = ("num_workers", "prefetch_factor", "pin_memory", "persistent_workers")
_IN_KWARGS = {name: f'dataloader_kwargs["{name}"]' for name in _SETTINGS}


@dataclass(frozen=True, slots=True)
class _Knobs:
    """Where a framework is given its settings, its names for them, and how one is written there.

    `own`: they are settings of the framework's own workers, not of the DataLoader, so that `--set` does not reach them.
    """

    place: str
    names: dict[str, str]
    setting: str = "{name}={value}"
    between: str = ", "
    own: bool = False


# By framework (see `capture/hooks/describe.py`).
_KNOBS = {
    "transformers": _Knobs("TrainingArguments(..., {})", {name: f"dataloader_{name}" for name in _SETTINGS}),
    # Its own TrainingArguments have none of these: they are set on the trainer below it.
    "setfit": _Knobs(
        "{}", {name: f"st_trainer.args.dataloader_{name}" for name in _SETTINGS}, "trainer.{name} = {value}", "\n"
    ),
    "ultralytics": _Knobs("model.train(..., {})", {"num_workers": "workers"}),
    "chemprop": _Knobs("chemprop train ... {}", {"num_workers": "--num-workers"}, "{name} {value}", " "),
    "mace": _Knobs("mace_run_train ... {}", {"num_workers": "--num_workers"}, "{name}={value}", " "),
    "darts": _Knobs("model.fit(..., dataloader_kwargs={{{}}})", _IN_KWARGS, '"{key}": {value}'),
    "open_clip": _Knobs("python -m open_clip_train.main ... {}", {"num_workers": "--workers"}, "{name} {value}", " "),
    "skorch": _Knobs("NeuralNet(..., {})", {name: f"iterator_train__{name}" for name in _SETTINGS}),
    "speechbrain": _Knobs(
        "brain.fit(..., train_loader_kwargs={{{}}})",
        {name: f'train_loader_kwargs["{name}"]' for name in _SETTINGS},
        '"{key}": {value}',
    ),
    # The loader that Keras makes is over the whole PyDataset: with workers each of them would hand out all of it.
    "keras": _Knobs("PyDataset(..., {}, use_multiprocessing=True)", {"num_workers": "workers"}, own=True),
    "neuralforecast": _Knobs("Model(..., dataloader_kwargs={{{}}})", _IN_KWARGS, '"{key}": {value}'),
}


def in_terms_of(framework: object, advice: Advice) -> Advice:
    """Return advice with the names of the framework that makes the loader; unchanged where the user's own code makes it."""
    knobs = _KNOBS.get(str(framework))
    if knobs is None:
        return advice
    names = knobs.names
    action = re.sub(r"\b(" + "|".join(names) + r")\b", lambda match: names[match[1]], advice.action)
    if not advice.change or not set(advice.change) <= set(names):
        return replace(advice, action=action)
    settings = knobs.between.join(
        knobs.setting.format(key=key, name=names[key], value=value) for key, value in advice.change.items()
    )
    change = (
        {"kind": "code", **{names[key]: value for key, value in advice.change.items()}} if knobs.own else advice.change
    )
    return replace(advice, action=action, change=change, code=knobs.place.format(settings))
