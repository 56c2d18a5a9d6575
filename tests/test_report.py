"""The report is one file with its sections in the order of the assignment and the data of each figure."""

import base64
import io
import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from cvae_lab.runs.folder import RunFolder
from cvae_lab.teaching.report import SECTIONS, run_names, write_report

REFERENCE = Path(__file__).parents[1] / "figures/reference"


@pytest.fixture(scope="module")
def runs():
    return [RunFolder(REFERENCE / name) for name in ("cyclical-seed0", "none-seed0")]


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "report.html"
    files = write_report(runs, out)
    assert [file.name for file in files] == ["report.html", "report.ipynb"]
    return out


def test_sections_are_in_the_order_of_the_assignment(page):
    titles = re.findall(r"<h2>(.*?)</h2>", page.read_text())
    assert titles == [section.title for section in SECTIONS]


def test_the_page_needs_no_other_file(page):
    text = page.read_text()
    links = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert links
    assert all(link.startswith("data:") for link in links)
    assert "http" not in re.sub(r"http://www.w3.org\S*", "", re.sub(r'"data:[^"]*"', "", text))


def test_each_figure_has_its_data_as_csv(page, runs):
    downloads = dict(re.findall(r'download="([^"]+)" href="data:text/csv;base64,([^"]+)"', page.read_text()))
    assert {"teacher_forcing.csv", "kl_annealing.csv", "psnr_per_frame.csv", "protocol.csv"} <= set(downloads)
    table = pd.read_csv(io.BytesIO(base64.b64decode(downloads["psnr_per_frame.csv"])))
    for run in runs:
        truth = run.psnr[run.psnr["clip"] == "0"]["psnr"].to_numpy()
        assert table[run.path.name].to_numpy() == pytest.approx(truth, rel=1e-5)


def test_the_notebook_runs_from_top_to_bottom_in_its_own_folder(page, monkeypatch):
    notebook = nbformat.read(page.with_suffix(".ipynb"), 4)
    nbformat.validate(notebook)
    monkeypatch.chdir(page.parent)
    scope = {}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            exec(cell.source, scope)


def test_runs_with_the_same_name_get_different_labels():
    runs = [RunFolder(Path("a/one")), RunFolder(Path("b/one")), RunFolder(Path("b/two"))]
    assert run_names(runs) == ["a/one", "b/one", "two"]
