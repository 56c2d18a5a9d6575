"""The notebooks as a person meets them: JupyterLab in headless Chromium; skipped where there is none."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
# Every other notebook with something to move, and the line that shows it.
WIDGETS = {
    "01_derivation": "widgets.VBox(", "02_modules": "widgets.VBox(",
    "03_training": "player.scrubber(", "04_kl_strategies": "widgets.VBox(",
    "05_teacher_forcing": "widgets.VBox(", "06_psnr_per_frame": "scrub = ",
    "07_posterior_collapse": "widgets.VBox(", "08_test_and_submit": "scrub = ",
}  # fmt: skip
# Their trainings, shorter: a person waits, a test beside others need not.
SHORTER = {"03_training": ("epochs = 25", "epochs = 2"), "06_psnr_per_frame": ("(2, 8, 32)", "(1, 2, 4)")}
pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("lab")]


def up_to_the_widget(notebook, folder, widget):
    """A copy that ends with the first cell that shows the widget, so that no training keeps its kernel busy."""
    content = nbformat.read(notebook, 4)
    last = next(
        i for i, cell in enumerate(content.cells) if cell.cell_type == "code" and widget in cell.source
    )
    content.cells = content.cells[: last + 1]
    if notebook.stem in SHORTER:
        long, short = SHORTER[notebook.stem]
        assert long in content.cells[2].source
        content.cells[2].source = content.cells[2].source.replace(long, short)
    nbformat.write(content, folder / notebook.name)


@pytest.fixture(scope="module")
def lab(tmp_path_factory, browser):
    """A JupyterLab server on a copy of the notebooks; yields its address."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(NOTEBOOKS.parent / "figures", folder / "figures")
    (folder / "notebooks").mkdir()
    shutil.copy(NOTEBOOKS / "00_start_here.ipynb", folder / "notebooks")
    for name, widget in WIDGETS.items():
        up_to_the_widget(NOTEBOOKS / f"{name}.ipynb", folder / "notebooks", widget)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        "--IdentityProvider.token=",
        "--ip=127.0.0.1",
    ]
    log = (folder / "log.txt").open("w")
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # more would spin against the tests beside it
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *options], cwd=folder, stdout=log, stderr=log, env=one_thread
    )
    address = f"http://127.0.0.1:{port}"
    for _ in range(120):
        try:
            urllib.request.urlopen(f"{address}/api").close()
            break
        except OSError:
            time.sleep(0.5)
    yield address
    server.terminate()
    server.wait(20)
    log.close()


def run_cells(page, slider):
    """Run all cells until the slider shows: what is run before kernel and widgets are connected shows none."""
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]", timeout=90_000)
    time.sleep(3)
    for _ in range(4):
        page.click('.lm-MenuBar-itemLabel:text-is("Run")')
        page.click('.lm-Menu-itemLabel:text-is("Run All Cells")')
        for _ in range(90):
            if slider.is_visible():
                return
            time.sleep(1)
    pytest.fail("the notebook ran four times, and no slider was seen")


@pytest.fixture
def run_all(lab, browser):
    """Opens a notebook, runs all of it, and gives the page and its last slider."""
    pages = []

    def run(name):
        page = browser.new_page(viewport={"width": 1300, "height": 6000})
        pages.append(page)
        page.goto(f"{lab}/lab/tree/notebooks/{name}.ipynb?reset")
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=90_000)
        slider = page.locator("[role=slider]").first
        run_cells(page, slider)
        return page, slider

    yield run
    for page in pages:
        page.close()


@pytest.mark.parametrize("name", WIDGETS)
def test_a_moved_slider_changes_what_is_shown(name, run_all):
    page, slider = run_all(name)
    shown = """slider => ['img', '.widget-html-content'].map(kind =>
        [...slider.closest('.jp-OutputArea').querySelectorAll(kind)].map(part => part.src || part.innerHTML).join())"""
    page.wait_for_function(f"slider => ({shown})(slider)[1].length > 0", arg=slider.element_handle())
    before = slider.evaluate(shown)
    slider.focus()
    at_its_end = slider.get_attribute("aria-valuenow") == slider.get_attribute("aria-valuemax")
    for _ in range(3):
        page.keyboard.press("ArrowLeft" if at_its_end else "ArrowRight")
    # Every kind of output that is there: the text or drawing and, in a scrubber, the picture, too.
    changed = f"args => ({shown})(args[0]).every((now, i) => !args[1][i] || now !== args[1][i])"
    page.wait_for_function(changed, arg=[slider.element_handle(), before], timeout=30_000)


def test_run_all_then_scrub(run_all):
    page, slider = run_all("00_start_here")
    picture = page.locator("img.widget-image, img.jupyter-widget-image").first
    before = picture.get_attribute("src")
    assert page.locator("text=/frame 1\\b/").count()
    slider.focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    page.wait_for_selector("text=/frame 6\\b/", timeout=20_000)
    page.wait_for_function("args => args[0].src !== args[1]", arg=[picture.element_handle(), before])
