"""The sentences that the terminal and the page share word for word, made from findings and nothing else.

What a cause or a change is called stands in its own catalogue and arrives within the findings; here are only
the words around the numbers.
"""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from loaderprof import formatting
from loaderprof.findings import JOINED, Advice, Findings, Rank, Stage
from loaderprof.report.palette import NAMES

KEEPS_UP = "The loader keeps up. Nothing to change here."
NOT_ENOUGH = "Not enough evidence for a verdict."

LATE = 1.05
"""A rank is late above this multiple of the median: below 5 % a bottleneck is `none` by definition."""

TOGETHER = 1.1
"""Ranks whose steps differ by less than this step together: whoever is late holds up all."""

HELPS = 1.1
"""From here on a free loader would make a job faster by what nobody may call nothing, though its step is the limit."""

_LIMIT_AFTER: dict[Stage, str] = {
    "device": "The step itself is the limit, so changes to the loader will not help.",
    "host": "Then the loop's own Python is the limit.",
    "copy": "Then the copy to the device is the limit.",
    "sync": "Then the slowest rank is the limit.",
}


@dataclass(frozen=True, slots=True)
class Lead:
    """The lines to act on: what was watched, what limits it, what that costs, what is possible."""

    run: tuple[str, ...]
    label: str
    bottleneck: str
    confidence: str
    cost: str
    ceiling: str


def lead(findings: Findings) -> Lead:
    """Return the first lines of every report."""
    verdict = findings.verdict
    headline = formatting.short(verdict.headline, 240)
    if verdict.bottleneck == "none":
        label, text = "Verdict", KEEPS_UP
    elif verdict.bottleneck == "unknown":
        label, text = "Verdict", headline or NOT_ENOUGH
    else:
        label, text = "Bottleneck", headline or f"{NAMES[verdict.bottleneck]}: {formatting.clean(verdict.cause)}"
    confidence = f"confidence {verdict.confidence}"
    return Lead(run_line(findings), label, text, confidence, cost(findings), ceiling(findings))


def run_line(findings: Findings) -> tuple[str, ...]:
    """Return what was watched: script, steps, duration, device, own cost, and how it ended if badly."""
    run = findings.run
    parts = [script(run.command)]
    if run.steps is not None:
        parts.append(formatting.plural(run.steps, "step"))
    if run.duration_s is not None:
        parts.append(formatting.duration(run.duration_s))
    parts += _where(findings)
    share = run.overhead.share_of_wall
    parts.append("own cost not measured" if share is None else f"own cost {formatting.percent(share)}")
    if run.signal:
        parts.append(f"ended by {formatting.short(run.signal, 16)}")
    elif run.exit_code:
        parts.append(f"exit code {run.exit_code}")
    return tuple(parts)


def _where(findings: Findings) -> list[str]:
    run, parts = findings.run, []
    if run.world_size > 1:
        parts.append(formatting.plural(run.world_size, "rank"))
    if on_gpu(findings):
        count = len(run.gpus) or (1 if run.world_size == 1 else 0)
        parts.append(formatting.plural(count, "GPU") if count else "GPU")
    elif run.device == "cpu":
        parts.append("CPU" + (f" with {formatting.number(run.cpu_budget)} cores" if run.cpu_budget else ""))
    elif run.device:
        parts.append(formatting.short(run.device, 16))
    return [", ".join(parts)] if parts else []


def on_gpu(findings: Findings) -> bool:
    """Return whether the model ran on a GPU."""
    device = (findings.run.device or "").lower()
    return device.startswith("cuda") or (bool(findings.run.gpus) and not device.startswith("cpu"))


def waiter(findings: Findings) -> str:
    """Return who waits for batches: the GPU, or the loop where the model runs on the CPU."""
    return "GPU" if on_gpu(findings) else "loop"


def cost(findings: Findings) -> str:
    """Return what waiting costs, the share of the step first."""
    verdict, who = findings.verdict, waiter(findings)
    if verdict.wait_share is None:
        return f"How long the {who} waits for batches was not measured."
    # Steps within an epoch do not show what its start and end cost.
    where = "Between the starts of epochs the" if verdict.bottleneck == "startup" else "The"
    line = f"{where} {who} waits {formatting.percent(verdict.wait_share)} of every step"
    if verdict.wait_s is None or verdict.step_s is None:
        return f"{line}."
    return f"{line}: {formatting.part_of(verdict.wait_s, verdict.step_s)}."


def phases(findings: Findings) -> str:
    """Return what the measured steps consist of, and by whose clock; empty where that was not measured."""
    phases = findings.phases
    if phases is None:
        return ""
    seconds = {
        "copy": phases.copy_s,
        "forward": phases.forward_s,
        "backward": phases.backward_s,
        "optimizer": phases.optimizer_s,
        "rest": phases.rest_s,
    }
    parts = [f"{name} {formatting.duration(value)}" for name, value in seconds.items() if value is not None]
    clock = "the device's clock" if phases.clock == "device" else "the host's clock"
    return f"{', '.join(parts)} ({formatting.plural(phases.steps, 'step')} measured by {clock})"


def ceiling(findings: Findings) -> str:
    """Return how much faster the run could be if every batch were there at once."""
    verdict = findings.verdict
    if verdict.ceiling_speedup is None:
        return "How much faster free loading would be was not measured."
    after = _LIMIT_AFTER.get(verdict.bottleneck)
    if verdict.bottleneck == "device" and verdict.ceiling_speedup >= HELPS:
        after = "The step itself is the limit: a cheaper step gains more than a faster loader."
    gain = f"{formatting.ratio(verdict.ceiling_speedup)} faster if loading were free"
    if verdict.ceiling_speedup < 1.005:
        gain = "No faster if loading were free"
    if verdict.bottleneck in ("none", "unknown"):
        return f"{gain}."
    return f"{gain}. {after}" if after else f"{gain}; then the model is the limit."


def title(findings: Findings) -> str:
    """Return the page's title: Decode-bound, 2.6x possible - train.py."""
    verdict, name = findings.verdict, script(findings.run.command)
    if verdict.bottleneck == "none":
        return f"The loader keeps up - {name}"
    if verdict.bottleneck == "unknown":
        return f"Not enough evidence - {name}"
    if verdict.bottleneck == "device":
        limited = any(cause.status == "found" and cause.stage not in ("device", "host") for cause in findings.causes)
        return f"Step-bound{'' if limited else ', the loader keeps up'} - {name}"
    possible = "" if verdict.ceiling_speedup is None else f", {formatting.ratio(verdict.ceiling_speedup)} possible"
    return f"{NAMES[verdict.bottleneck].capitalize()}-bound{possible} - {name}"


def script(command: str) -> str:
    """Return what a command runs, in one word: the script's or module's name."""
    try:
        parts = shlex.split(command)
    except ValueError:
        parts = command.split()
    if not parts:
        return "a job"
    scripts = [part for part in parts if part.endswith(".py")]
    if scripts:
        return formatting.short(PurePath(scripts[0]).name, 60)
    if "-m" in parts[:-1]:
        return formatting.short(parts[parts.index("-m") + 1], 60)
    return formatting.short(PurePath(parts[0]).name or parts[0], 60)


def late_rank(findings: Findings) -> str:
    """Return a line on the rank that is late behind the median one; empty for a single rank."""
    ranks = [rank for rank in findings.ranks if rank.step_s is not None]
    if len(findings.ranks) < 2:
        return ""
    if len(ranks) < 2:
        return "step times of the ranks were not measured"
    late, median = _latest(ranks)
    if (late.step_s or 0.0) > median * LATE:
        own, middle = formatting.duration(late.step_s), formatting.duration(median)
        return f"{_named(late)} is late: {own} a step, the median rank {middle}"
    waits = [rank for rank in ranks if rank.wait_s is not None]
    if len(waits) > 1:
        most = max(waits, key=lambda rank: rank.wait_s or 0.0)
        usual = statistics.median(rank.wait_s or 0.0 for rank in waits)
        if (most.wait_s or 0.0) - usual > median * (LATE - 1):
            own, middle = formatting.duration(most.wait_s), formatting.duration(usual)
            return f"{_named(most)} waits {own} a step, the median rank {middle}{_in_collective(waits, most)}"
    return f"all {len(ranks)} ranks are within 5 % of the median, {formatting.duration(median)} a step"


def _in_collective(ranks: Sequence[Rank], late: Rank) -> str:
    """Return how long another rank waits for the late one in its step, where ranks synchronise; else nothing."""
    steps = [rank.step_s or 0.0 for rank in ranks]
    if max(steps) > TOGETHER * min(steps):
        return ""
    # All ranks do the same work in a step: the time by which another rank's is longer, it waits for the late one.
    work = {rank.rank: (rank.step_s or 0.0) - (rank.wait_s or 0.0) for rank in ranks}
    held = max(ranks, key=lambda rank: work[rank.rank])
    waited = work[held.rank] - work[late.rank]
    return f"; rank {held.rank} waits {formatting.duration(waited)} for it in its own step" if held is not late else ""


def _named(rank: Rank) -> str:
    return f"rank {rank.rank} on {formatting.short(rank.host, 24)}" if rank.host else f"rank {rank.rank}"


def _latest(ranks: list[Rank]) -> tuple[Rank, float]:
    median = statistics.median(rank.step_s or 0.0 for rank in ranks)
    return max(ranks, key=lambda rank: rank.step_s or 0.0), median


def loader_waits(findings: Findings) -> list[str]:
    """Return a few words on each loader where there are several: how long the loop waits for it."""
    if len(findings.loaders) < 2:
        return []
    return [f"{formatting.short(one.name, 24)} waits {formatting.percent(one.wait_share)}" for one in findings.loaders]


def numbering(advice: tuple[Advice, ...]) -> dict[str, str]:
    """Return the number each change goes by: 1, 2, and 1+2 for a set of them, 1+ for one with changes that are not listed."""
    sets = {each.id: parts for each in advice if (parts := _listed_parts(each, advice))}
    single = [each.id for each in advice if each.id not in sets]
    numbers = {each: str(place) for place, each in enumerate(single, 1)}
    for id_, parts in sets.items():
        more = "+" if len(parts) < len(id_.split("+")) else ""
        numbers[id_] = "+".join(numbers[part] for part in parts) + more
    return numbers


def action(each: Advice, advice: tuple[Advice, ...]) -> str:
    """Return what to do: of a set, only what is not listed by itself."""
    parts = _listed_parts(each, advice)
    if not parts or len(parts) == len(each.id.split("+")):
        return "" if parts else each.action
    listed = {other.action for other in advice if other.id in parts}
    return JOINED.join(part for part in each.action.split(JOINED) if part not in listed)


def _listed_parts(each: Advice, advice: tuple[Advice, ...]) -> list[str]:
    """Return the changes of a set that are also listed one by one; none for a change that is not a set."""
    singles = {other.id for other in advice if "+" not in other.id}
    return [part for part in each.id.split("+") if part in singles] if "+" in each.id else []


def shown(advice: tuple[Advice, ...], most: int) -> tuple[Advice, ...]:
    """Return the changes to show where there is room for `most`, and a set of them, which takes one line."""
    first, rest = advice[:most], advice[most:]
    known = {each.id for each in first}
    return (*first, *(each for each in rest if (parts := _listed_parts(each, advice)) and known.issuperset(parts)))


def price(advice: Advice) -> list[str]:
    """Return what a change costs: cores, memory, effort; empty where nothing is known to be spent."""
    parts = []
    if advice.costs.cores:
        cores = formatting.number(abs(advice.costs.cores))
        noun = "core" if cores == "1" else "cores"
        parts.append(f"{cores} {noun}" if advice.costs.cores > 0 else f"frees {cores} {noun}")
    if advice.costs.memory_bytes:
        parts.append(formatting.size(advice.costs.memory_bytes))
    if advice.costs.effort:
        parts.append(formatting.clean(advice.costs.effort))
    return parts


def verified(advice: Advice) -> str:
    """Return what `verify` measured for a change; empty if it has not been run."""
    seen = advice.measured
    if seen is None:
        return ""
    gain = formatting.interval(seen.speedup, seen.low, seen.high)
    return f"{gain} measured in {formatting.plural(seen.runs, 'pair')} of runs"


def is_setting(advice: Advice) -> bool:
    """Return whether `--set` takes the change, so that it can be applied and measured without an edit."""
    return bool(advice.change) and "kind" not in advice.change


def check_command(findings: Findings, folder: str) -> str:
    """Return the command that measures the first change that needs no edit; empty if there is none."""
    numbers = numbering(findings.advice)
    for each in findings.advice:
        if is_setting(each) and each.measured is None and "+" not in numbers[each.id]:
            return f"loaderprof verify {quoted(folder)} --change {quoted(each.id)}"
    return ""


def try_command(findings: Findings, advice: Advice) -> str:
    """Return the command that runs the job with a setting changed."""
    settings = " ".join(f"--set {quoted(f'{key}={value}')}" for key, value in advice.change.items())
    return again_command(findings).replace("loaderprof run", f"loaderprof run {settings}", 1)


def next_try(findings: Findings) -> tuple[str, str]:
    """Return what to type, and what to mind, where there was not enough evidence."""
    if findings.run.mode == "attach":
        return again_command(findings), "or watch it again, for longer: loaderprof attach PID --duration 120"
    if findings.run.failure:
        return again_command(findings), "once what ended it is mended"
    if not findings.run.steps:
        return "for batch in loaderprof.watch(your_loader):", "records a loop whose loader is no torch DataLoader"
    steps = formatting.plural(findings.run.steps, "step")
    return again_command(findings), f"and let it run for more than the {steps} seen here"


def again_command(findings: Findings) -> str:
    """Return the command that profiles the job again."""
    command = formatting.clean(findings.run.command.strip())
    first = command.split(" ", 1)[0]
    plain = first.endswith(".py") or first == "-m"
    return f"loaderprof run {command}" if plain else f"loaderprof run -- {command}"


def quoted(text: str) -> str:
    """Return a name as the shell takes it."""
    return shlex.quote(formatting.clean(text))
