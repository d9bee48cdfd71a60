"""The guide to the causes: a section for each, up to date, naming only changes and verbs that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import report_samples

from loaderprof import cli
from loaderprof.advise.catalogue import CHANGES
from loaderprof.diagnose.causes.catalogue import BY_ID, CATALOGUE
from loaderprof.report import guide, html
from loaderprof.report.page import PageData

ROOT = Path(__file__).parents[2]


def test_the_page_in_docs_is_up_to_date() -> None:
    assert (ROOT / guide.PAGE).read_text(encoding="utf-8") == guide.render(), (
        f"stale; type: python -m loaderprof.report.guide > {guide.PAGE}"
    )


def test_each_section_says_all_four_things() -> None:
    sections = guide.render().split("\n## ")[1:]
    assert [section.split("\n")[0] for section in sections] == [
        *(cause.id for cause in CATALOGUE),
        "balanced",
        "no-loader",
        "not-enough-evidence",
    ]
    for section in sections:
        assert re.search(
            r"\*\*Evidence\.\*\* \S.*\n\n\*\*What to do\.\*\*\n\n- .*\n\n\*\*What to type\.\*\*\n\n```bash\n\S",
            section,
            re.DOTALL,
        ), section
        assert re.match(r"[a-z-]+\n\n\*\*.+\*\* \(stage `[a-z]+`\)\. \S", section)


def test_each_change_that_a_cause_names_is_explained() -> None:
    for cause in BY_ID.values():
        assert set(cause.guide.changes) <= set(CHANGES), cause.id


def test_what_to_type_names_verbs_that_there_are() -> None:
    verbs = set(
        re.findall(r"loaderprof ([a-z]+)", " ".join(re.findall(r"```bash\n(.*?)```", guide.render(), re.DOTALL)))
    )
    assert verbs >= {"verify", "run"}
    for verb in verbs:
        with pytest.raises(SystemExit) as left:
            cli.main([verb, "--help"])
        assert left.value.code == 0


@pytest.mark.parametrize("name", ["decode_bound", "io_bound", "transform_bound", "compute_bound", "healthy"])
def test_the_causes_of_the_sample_runs_have_a_place(name: str) -> None:
    found = json.loads((ROOT / "sample_runs" / name / "recording" / "findings.json").read_text())
    headings = re.findall(r"^## (\S+)$", guide.render(), re.MULTILINE)
    for each in {found["verdict"]["cause"], *(cause["id"] for cause in found["causes"])}:
        assert guide.place(each) == f"docs/causes.md#{each}"
        assert each in headings


def test_the_page_says_where_a_found_cause_is_explained_without_a_link() -> None:
    page = html.render(report_samples.decode(), PageData(), folder="r")
    found = [cause for cause in report_samples.decode().causes if cause.status == "found"]
    assert found
    for cause in found:
        assert (guide.place(cause.id) in page) == bool(guide.place(cause.id))
    assert "docs/causes.md#jpeg-decode" in page
    assert 'href="docs' not in page


def test_what_is_no_cause_of_ours_has_no_place() -> None:
    assert guide.place("phase-of-the-moon") == ""
