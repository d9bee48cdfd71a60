"""The guide to the causes: what each means, the evidence it rests on, what to do and what to type.

`python -m loaderprof.report.guide > docs/causes.md` writes the page. All its words stand in the catalogues of causes and
of changes; here they are only laid out.
"""

from __future__ import annotations

import sys
import textwrap

from loaderprof.advise.catalogue import CHANGES
from loaderprof.diagnose.causes.catalogue import BY_ID
from loaderprof.diagnose.causes.cause import CauseRule

PAGE = "docs/causes.md"
HEAD = f"""# Causes

Each verdict names a stage and its cause. Here is what every cause means, the evidence it rests on, what to do, and what
to type; `DIR` is the recording's folder. A change with an id in brackets is offered by the report where the replay of
your run says that it gains, with how much.

This page is made by `python -m loaderprof.report.guide > {PAGE}` from the catalogues that the reports use.
"""


def render() -> str:
    """Return the guide as Markdown, a section a cause, under a heading that is the cause's id."""
    return HEAD + "".join(_section(cause) for cause in BY_ID.values())


def place(cause: str) -> str:
    """Return where the guide explains a cause: `docs/causes.md#jpeg-decode`; empty where it does not."""
    return f"{PAGE}#{cause}" if cause in BY_ID else ""


def _section(cause: CauseRule) -> str:
    guide = cause.guide
    offered = [(each, CHANGES[each]) for each in guide.changes]
    do = [_filled(f"- {change.action} (`{each}`).", "  ") for each, change in offered]
    do += [_filled(f"- {text}", "  ") for text in guide.do]
    measured = [f"loaderprof verify DIR --change {each}" for each, change in offered if change.setting]
    shell = [*measured, *guide.commands] or ["loaderprof run train.py  # again, after the change"]
    code = [change.code for _, change in offered if change.code]
    parts = [
        f"## {cause.id}",
        _filled(f"**{cause.title}** (stage `{cause.stage}`). {guide.means}"),
        _filled(f"**Evidence.** {_sentence(guide.identified_by)} {_sentence(cause.evidence.words)}"),
        "**What to do.**",
        "\n".join(do),
        "**What to type.**",
        _block("bash", shell),
        *(_block("python", [each]) for each in code),
    ]
    return "\n" + "\n\n".join(parts) + "\n"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _filled(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _block(language: str, lines: list[str]) -> str:
    return "\n".join([f"```{language}", *lines, "```"])


if __name__ == "__main__":
    sys.stdout.write(render())
