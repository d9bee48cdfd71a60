"""What a cause is: how it is recognised, the words about it, and the changes that may remove it.

The causes stand in the other modules of this folder, a block each, in the order in which they are tried. To add one, put
its block into the module of its stage, before the stage's last one, which always matches; make the guide anew
(`python -m loaderprof.report.guide > docs/causes.md`); and add a loop that it limits to tests/diagnose/test_causes.py.
Pure: no torch, no clock, no processes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loaderprof import formatting
from loaderprof.diagnose.loop_context import LoopContext
from loaderprof.diagnose.verdict import MIN_GAIN
from loaderprof.findings import Cause, Evidence, Stage

# How the guide begins what speaks for a stage that was found by removing it from the replay.
GAIN = f"the replay of the run without it is at least {formatting.percent(MIN_GAIN)} faster"


def always(_: LoopContext) -> bool:
    """Match every loop: the test of a stage's last cause."""
    return True


def never(_: LoopContext) -> bool:
    """Match no loop: the test of a cause that something other than the catalogue recognises."""
    return False


def uses(pattern: str, stage: Stage) -> Callable[[LoopContext], bool]:
    """Return a test that matches where one of the stage's three most expensive operators is named like this."""
    compiled = re.compile(pattern, re.IGNORECASE)

    def matches(context: LoopContext) -> bool:
        names = [piece.name for piece in context.parts.pieces if piece.stage == stage][:3]
        return any(compiled.search(name) for name in names)

    return matches


def no_facts(_: LoopContext) -> list[Evidence]:
    """Return no evidence beyond the gain."""
    return []


def share_fact(sentence: str, share: float, threshold: float | None = None) -> Evidence:
    """Return a share of one as evidence: `{}` in its sentence becomes the share in whole percents."""
    return Evidence(sentence.replace("{}", formatting.percent(share, whole=True)), share, "share", threshold)


def title_alone(cause: CauseRule, _: LoopContext) -> str:
    """Return a headline that says no more than the title."""
    return cause.title


def always_measured(_: LoopContext) -> str | None:
    """Return None: there is no reason why it could not be measured."""
    return None


@dataclass(frozen=True, slots=True)
class StageEvidence:
    """What speaks for the causes of a stage.

    Attributes:
        words: how the guide says it, for every loop.
        facts: the same for one loop, each with its number; what removing the stage gains comes before them.
    """

    words: str
    facts: Callable[[LoopContext], list[Evidence]] = no_facts


@dataclass(frozen=True, slots=True)
class Guide:
    """What a user should know of a cause; `report.guide` makes a section of docs/causes.md of it.

    Attributes:
        means: what is going on.
        identified_by: what distinguishes it from its neighbours; the words of its stage's evidence follow.
        changes: ids of the changes that may be offered for it.
        do: further things to do, for which no replay predicts a gain.
        commands: lines for a shell beyond those that measure the changes.
    """

    means: str
    identified_by: str
    changes: tuple[str, ...] = ()
    do: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CauseRule:
    """One cause of the catalogue.

    Attributes:
        id: a noun; it is the verdict's `cause` in findings.json and the heading in docs/causes.md.
        stage: the stage that it refines.
        title: its name in reports.
        test: whether a bottleneck of its stage is this cause; the first cause of the stage whose test holds is taken.
        evidence: what speaks for it.
        guide: its section in docs/causes.md.
        headline: the verdict in one sentence, of this cause and the loop.
        before: of a cause that is not the loader's, how the headline begins where a stage of the loader would be the limit
            next; the title of that stage's cause follows.
        unmeasured: why its stage could not be measured; None where it was.
        tf_calls: pattern, in any case, of what a function of a tf.data pipeline calls where this is the cause; empty: none.
    """

    id: str
    stage: Stage
    title: str
    test: Callable[[LoopContext], bool]
    evidence: StageEvidence
    guide: Guide
    headline: Callable[[CauseRule, LoopContext], str] = title_alone
    before: str = ""
    unmeasured: Callable[[LoopContext], str | None] = always_measured
    tf_calls: str = ""

    def found(self, gain: float, facts: Sequence[Evidence]) -> Cause:
        """Return that it limits the job, whose speedup without it is `gain` (1.3: 30 % faster)."""
        return Cause(self.id, "found", self.stage, tuple(facts), round(gain, 3), self.title)

    def ruled_out(self, gain: float, about: str = "") -> Cause:
        """Return that it does not limit the job, by what removing it would gain; `about`: a word before an estimate."""
        text = f"without it the job would gain {about}{formatting.percent(max(0.0, gain - 1), whole=True)}"
        fact = Evidence(text, round(gain - 1, 4), "share", MIN_GAIN)
        return Cause(self.id, "ruled_out", self.stage, (fact,), None, self.title)

    def not_measured(self, reason: str) -> Cause:
        """Return that nothing is known of it, and why."""
        return Cause(self.id, "not_measured", self.stage, (Evidence(reason, None, "", None),), None, self.title)
