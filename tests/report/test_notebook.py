"""Findings in a notebook: words and numbers of the other reports, nothing from elsewhere, nothing that could run."""

from __future__ import annotations

import os
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import report_samples

from loaderprof.api import profile
from loaderprof.report import notebook, sentences

ROOT = Path(__file__).parents[2]
VOID = {"br"}

SCRIPT = """
import torch
from torch.utils.data import DataLoader, Dataset
import loaderprof

class Pictures(Dataset):
    def __len__(self):
        return 320
    def __getitem__(self, index):
        return torch.full((40_000,), float(index)).sort().values

with loaderprof.profile("out") as prof:
    for batch in DataLoader(Pictures(), batch_size=4):
        batch.sum()
prof
"""


class Tags(HTMLParser):
    """Checks that tags are balanced, and keeps their names and the text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


@pytest.mark.parametrize("name", report_samples.ALL)
def test_every_run_shows_safely_and_small(name: str) -> None:
    found = report_samples.ALL[name]()
    shown = found._repr_html_()
    tags = Tags(shown)
    assert tags.names <= {"div", "span", "table", "tr", "td"}
    assert tags.attributes <= {"style", "title"}
    assert not re.search(r"https?:|url\(|<script|javascript:", shown, re.IGNORECASE)
    assert len(shown) < 12_000
    assert sentences.lead(found).label in tags.text


def test_it_says_what_the_terminal_says() -> None:
    text = Tags(report_samples.decode()._repr_html_()).text
    lead = sentences.lead(report_samples.decode())
    for each in (
        lead.bottleneck,
        lead.cost,
        lead.ceiling,
        "Raise num_workers from 2 to 4",
        "loop waits 128",
        "decode 298",
    ):
        assert each in text
    assert "Full report" not in text
    assert "Full report: out/<b>/report.html" in Tags(notebook.render(report_samples.decode(), "out/<b>")).text


def test_a_profile_without_findings_says_so() -> None:
    assert "no findings yet" in Tags(profile("never")._repr_html_()).text
    assert not Path("never").exists()


@pytest.mark.slow
def test_a_real_notebook_shows_the_profile_and_its_findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: pip install '.[test]'")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install '.[test]'")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed: pip install '.[test]'")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")  # else it warns of a change to come
    kernel = tmp_path / "kernels" / "this"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text(
        f'{{"argv": ["{sys.executable}", "-m", "ipykernel_launcher", "-f", "{{connection_file}}"], '
        '"display_name": "this", "language": "python"}'
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    cells = [nbformat.v4.new_code_cell(source) for source in (SCRIPT, "prof.findings")]
    book = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(
        book, timeout=100, kernel_name="this", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    shown = [
        output["data"]["text/html"]
        for cell in book.cells
        for output in cell["outputs"]
        if output["output_type"] == "execute_result"
    ]
    assert len(shown) == 2
    for each in shown:
        assert re.search("Bottleneck: |Verdict: ", Tags(each).text)
    assert "out/report.html" in shown[0]
    assert (tmp_path / "out" / "report.html").is_file()
