"""The page as text: whole, escaped, small, and the terminal's words."""

from __future__ import annotations

import base64
import hashlib
import html as entities
import json
import re
import subprocess
import sys
from functools import cache

import page_samples
import pytest
import report_samples
from golden_sentences import Check

from loaderprof.report import html, plots, sentences
from loaderprof.report.merge import MAX_POINTS
from loaderprof.report.page import PageData, Samples

LIMIT = 300_000
"""A page must be smaller than this, its data apart."""


@cache
def page(name: str) -> str:
    return drawn(name, None)


def drawn(name: str, data: PageData | None) -> str:
    chosen = page_samples.hostile() if name == "hostile" else page_samples.page(80)
    return html.render(report_samples.ALL[name](), chosen if data is None else data, folder="train-0412")


def page_data(text: str) -> str:
    found = re.search(r'<script type="application/json" id="page-data">(.*?)</script>', text, re.DOTALL)
    assert found
    return found[1]


@pytest.mark.parametrize("name", report_samples.ALL)
def test_first_lines_are_the_terminals(name: str) -> None:
    lead = sentences.lead(report_samples.ALL[name]())
    text = entities.unescape(page(name))
    assert lead.bottleneck in text
    if name != "unknown":
        assert lead.cost in text
    if name not in ("none", "unknown"):
        assert lead.ceiling in text


@pytest.mark.parametrize("name", ["decode", "none", "unknown", "device"])
def test_title(said: Check, name: str) -> None:
    (title,) = re.findall("<title>(.*?)</title>", page(name))
    said(f"title {name}", title)
    assert title.endswith(" - train.py")


@pytest.mark.parametrize("name", report_samples.ALL)
def test_page_is_small_and_loads_nothing(name: str) -> None:
    text = page(name)
    assert len(text.encode()) - len(page_data(text)) < LIMIT
    assert not re.search(r"""(?:src|href|action)\s*=\s*["']?(?:https?:|//)""", text)
    assert "url(http" not in text
    assert "@import" not in text


def test_policy_allows_this_script_alone() -> None:
    text = page("decode")
    script = text.rsplit("<script>", 1)[1].split("</script>", 1)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in text


def test_hostile_names_cannot_leave_their_place() -> None:
    text = page("hostile")
    assert text.count("<script") == 2
    assert text.count("</script>") == 2
    assert "<img" not in text
    assert "49" not in re.findall(r"quoted&#39; (\S+) \$x", text)
    assert not re.search("[\u2028\u2029\u202e\x07\x1b]", text)
    text.encode()


def test_page_data_holds_no_markup_and_is_json() -> None:
    held = page_data(page("hostile"))
    assert not set("<>&\u2028\u2029") & set(held)
    assert json.loads(held)["bottleneck"] == "decode"


@pytest.mark.parametrize("name", report_samples.ALL)
def test_raw_findings_are_in_the_page(name: str) -> None:
    raw = re.search(r'<pre class="raw"><code>(.*?)</code>', page(name), re.DOTALL)
    assert raw
    assert json.loads(entities.unescape(raw[1])) == json.loads(report_samples.ALL[name]().to_json())


def test_the_same_findings_give_the_same_page() -> None:
    assert drawn("gpu", None) == page("gpu")


@pytest.mark.parametrize("name", report_samples.ALL)
def test_page_without_data(name: str) -> None:
    text = drawn(name, PageData())
    assert 'id="timeline"' not in text
    assert 'id="flame"' not in text
    assert "<h2>Environment</h2>" in text


def test_readable_without_scripts() -> None:
    text = re.sub(r"<script.*?</script>", "", page("decode"), flags=re.DOTALL)
    for words in (
        "Raise num_workers from 2 to 4",
        "2.0x ± 0.1",
        "convert (Image.py:993)",
        "not measured",
        "disk 7 % busy",
    ):
        assert words in text


def test_samples_are_told_in_words_and_numbers(said: Check) -> None:
    text = re.sub(r"<(script|svg).*?</\1>", "", page("decode"), flags=re.DOTALL)
    (caption,) = re.findall(r"[^<>]*\b400 samples of batches[^<>]*", text)
    said("samples", " ".join(caption.split()))
    assert all(number in caption for number in ("80 ms", "13 times"))
    row = re.search(r'<tr><td class="where">80</td>(.*?)</tr>', text)
    assert row
    assert re.findall(r">([^<]+)<", row[1]) == ["76 ms", "70 ms", "3"]
    assert 'id="samples"' not in drawn("decode", PageData(samples=Samples([0.1] * (plots.FEW_SAMPLES - 1))))


def test_each_rank_has_a_lane_of_its_own(said: Check) -> None:
    shown = json.loads(page_data(drawn("ranks", page_samples.with_ranks(4))))
    assert [lane["rank"] for lane in shown["ranks"]] == [0, 1, 2, 3]
    assert all(len(lane["t"]) == len(lane["step"]) == len(lane["wait"]) == 200 for lane in shown["ranks"])
    assert json.loads(page_data(page("decode")))["ranks"] == []
    many = drawn("ranks", page_samples.with_ranks(20, batches=60))
    (note,) = re.findall(r"[^<>.]*\b20 ranks\b[^<>.]*\.", re.sub("<script.*?</script>", "", many, flags=re.DOTALL))
    said("some ranks", note)
    lanes = json.loads(page_data(many))["ranks"]
    assert len(lanes) == 8
    assert lanes[-1]["rank"] == 19
    assert sum(len(lane["t"]) for lane in lanes) <= 2 * MAX_POINTS


def test_a_measured_gain_stands_beside_the_expected_one() -> None:
    text = page("gpu")
    assert re.search(r'class="gain">2\.0x ± 0\.1</span> <span class="verified">\S+x ± \S+ measured in', text)
    assert "Diamond: measured by" in text


def test_report_imports_nothing_of_the_job() -> None:
    code = (
        "import sys; from loaderprof.report import html, terminal, plots; "
        "print(sorted({'torch', 'psutil', 'pynvml'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"
