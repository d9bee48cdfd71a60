"""What was concluded from a recording: frozen dataclasses, and their JSON form (`schema_version` 1).

The JSON is the contract that programs outside this repository read: fields may be added, never renamed or
removed; times are in seconds; a value that was not measured is `null`, never 0. Imports only the standard library.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from loaderprof.errors import RecordingError
from loaderprof.recording import files

SCHEMA_VERSION = 1
# A recording is data from elsewhere; findings of hundreds of ranks are some 100 kB.
_MAX_BYTES = 64 << 20

Stage = Literal[
    "device",
    "host",
    "read",
    "decode",
    "transform",
    "collate",
    "handover",
    "copy",
    "startup",
    "straggler",
    "contention",
    "sampler",
    "sync",
    "none",
    "unknown",
]
STAGES: tuple[Stage, ...] = typing.get_args(Stage)
Confidence = Literal["high", "medium", "low"]
Status = Literal["found", "ruled_out", "not_measured"]


@dataclass(frozen=True, slots=True)
class Overhead:
    """What loaderprof itself cost: CPU seconds in the job, CPU seconds beside it, share of the run's wall time."""

    capture_cpu_s: float | None = None
    sampler_cpu_s: float | None = None
    share_of_wall: float | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """The run that was watched. `steps` counts batches taken by the loops; `cpu_budget` is in cores; `mode`: how.

    `failure` says why the job ended before its time, where its loader knows; None else.
    """

    command: str
    exit_code: int | None
    duration_s: float | None
    steps: int | None
    world_size: int
    device: str | None
    cpu_budget: float | None
    python: str | None
    torch: str | None
    start_method: str | None
    overhead: Overhead
    notes: tuple[str, ...] = ()
    signal: str | None = None
    started_unix_s: float | None = None
    loaderprof: str | None = None
    gpus: tuple[str, ...] = ()
    mode: Literal["run", "attach"] = "run"
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The one conclusion. `wait_share` is of the steady step; `ceiling_speedup` is the gain if loading were free."""

    bottleneck: Stage
    cause: str
    confidence: Confidence
    headline: str
    step_s: float | None
    wait_s: float | None
    wait_share: float | None
    ceiling_speedup: float | None


@dataclass(frozen=True, slots=True)
class Part:
    """A named piece of a stage: an operator or a source line, and what it costs per batch."""

    name: str
    where: str | None
    s_per_batch: float


@dataclass(frozen=True, slots=True)
class StageCost:
    """Seconds one batch spends in a stage, wherever it runs; `share` is of all the loader's and step's seconds."""

    stage: Stage
    s_per_batch: float | None
    share: float | None
    sources: tuple[Literal["timer", "stack", "kernel"], ...] = ()
    by: tuple[Part, ...] = ()


@dataclass(frozen=True, slots=True)
class Evidence:
    """One measured fact: the sentence, its number and unit, and the threshold it was held against."""

    text: str
    value: float | None
    unit: str
    threshold: float | None


@dataclass(frozen=True, slots=True)
class Cause:
    """A known cause with what was seen of it. `speedup_if_removed` is the replay's, for found causes only."""

    id: str
    status: Status
    stage: Stage
    evidence: tuple[Evidence, ...] = ()
    speedup_if_removed: float | None = None
    title: str = ""


@dataclass(frozen=True, slots=True)
class Expected:
    """Predicted effect of a change over the run as it was: a ratio with its 90 % interval."""

    speedup: float | None
    low: float | None
    high: float | None
    samples_per_s: float | None


@dataclass(frozen=True, slots=True)
class Costs:
    """What a change costs: cores, bytes of memory, and effort in words."""

    cores: float | None = None
    memory_bytes: int | None = None
    effort: str = ""


@dataclass(frozen=True, slots=True)
class Measured:
    """What `verify` measured for a change: a ratio with its 95 % interval over `runs` pairs of runs."""

    speedup: float
    low: float
    high: float
    runs: int


# Between the actions of a set of changes, whose id joins theirs with `+`.
JOINED = "; "


@dataclass(frozen=True, slots=True)
class Advice:
    """One change. `change` holds keys that `--set` takes, or `{"kind": "cache"|"decoder"|"format"|"code"}`."""

    id: str
    action: str
    why: str
    where: str | None
    change: dict[str, Any]
    current: dict[str, Any]
    expected: Expected
    costs: Costs
    measured: Measured | None = None
    code: str = ""


@dataclass(frozen=True, slots=True)
class Loader:
    """One loader of the job: what it is set to, what it delivered, and its own verdict."""

    name: str
    where: str | None
    settings: dict[str, Any]
    batches: int
    batch_size: int | None
    samples_per_s: float | None
    wait_s: float | None
    wait_share: float | None
    first_batch_s: float | None
    epochs: int
    verdict: Verdict | None = None


@dataclass(frozen=True, slots=True)
class Rank:
    """One rank of the job."""

    rank: int
    host: str
    pid: int
    step_s: float | None
    wait_s: float | None


@dataclass(frozen=True, slots=True)
class Risk:
    """Something that did not limit this run but may end or slow the next one, with its number."""

    id: str
    text: str
    value: float | None
    unit: str
    limit: float | None


@dataclass(frozen=True, slots=True)
class StepPhases:
    """What a step consists of: seconds a step, means of `steps` that were measured, by the device's clock or the host's.

    `forward` is all that leads to a backward pass, copies included where they were not measured by themselves
    (`copy_s` None); `rest` is what is left of the step, the device's waiting for the host included.
    """

    clock: Literal["device", "host"]
    steps: int
    copy_s: float | None
    forward_s: float | None
    backward_s: float | None
    optimizer_s: float | None
    rest_s: float | None


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that the job used, as NVML saw it beside the job: medians, of memory the most.

    `utilisation_percent` is how much of the time any kernel ran, which a busy GPU may share with an idle one.
    `throttled` names what kept its clocks down most of the time; `link_bytes_s` is the speed of its link.
    """

    index: int
    uuid: str | None
    utilisation_percent: float | None
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    sm_clock_mhz: float | None
    power_w: float | None
    throttled: tuple[str, ...]
    received_bytes_s: float | None
    link_bytes_s: float | None


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything concluded from one recording; every report is a rendering of this."""

    run: Run
    verdict: Verdict
    stages: tuple[StageCost, ...] = ()
    causes: tuple[Cause, ...] = ()
    advice: tuple[Advice, ...] = ()
    loaders: tuple[Loader, ...] = ()
    ranks: tuple[Rank, ...] = ()
    risks: tuple[Risk, ...] = ()
    phases: StepPhases | None = None
    gpus: tuple[Gpu, ...] = ()
    schema_version: int = field(default=SCHEMA_VERSION)

    def to_json(self) -> str:
        """Return the JSON form; a number that is not finite becomes `null`."""
        return json.dumps(_plain(self), indent=1, ensure_ascii=True) + "\n"

    @staticmethod
    def from_json(text: str) -> Findings:
        """Read the JSON form.

        Raises:
            RecordingError: the text is no findings, or findings of a newer schema.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            raise RecordingError("findings.json is not JSON", "loaderprof report DIR writes it again") from None
        if not isinstance(data, dict) or not isinstance(data.get("schema_version"), int):
            raise RecordingError("findings.json holds no findings", "loaderprof report DIR writes it again")
        if data["schema_version"] > SCHEMA_VERSION:
            raise RecordingError(
                f"findings.json has schema {data['schema_version']}, this loaderprof reads {SCHEMA_VERSION}",
                "pip install --upgrade loaderprof",
            )
        try:
            return _typed(Findings, data)
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            raise RecordingError(
                f"findings.json is damaged: {error}", "loaderprof report DIR writes it again"
            ) from None


def load(folder: Path) -> Findings:
    """Read `findings.json` of a recording folder.

    Raises:
        RecordingError: there is none, or it cannot be read.
    """
    try:
        text = files.read_bounded(folder / files.FINDINGS, _MAX_BYTES).decode()
    except (OSError, UnicodeDecodeError):
        raise RecordingError(f"{folder} has no readable findings.json", f"loaderprof report {folder}") from None
    return Findings.from_json(text)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


T = TypeVar("T")


def _typed(cls: type[T], data: Any) -> T:
    """Build a dataclass from plain JSON data, checking each field's type; unknown fields are passed over."""
    if not isinstance(data, dict):
        raise TypeError(f"{cls.__name__} is not an object")
    hints = typing.get_type_hints(cls)
    known = {}
    for each in dataclasses.fields(cls):  # type: ignore[arg-type]
        if each.name in data:
            known[each.name] = _value(hints[each.name], data[each.name], f"{cls.__name__}.{each.name}")
    return cls(**known)


def _value(hint: Any, value: Any, name: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        return _value(next(arg for arg in args if arg is not type(None)), value, name)
    if origin is Literal:
        if value not in args:
            raise ValueError(f"{name} is {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise TypeError(f"{name} is not a list")
        return tuple(_value(args[0], item, name) for item in value)
    if origin is dict:
        if not isinstance(value, dict):
            raise TypeError(f"{name} is not an object")
        return value
    if dataclasses.is_dataclass(hint):
        return _typed(typing.cast(type, hint), value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint in (int, float) and isinstance(value, bool)):
        raise TypeError(f"{name} is not of type {hint.__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} is {value}")
    return value
