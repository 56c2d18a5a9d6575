"""The notebooks as a person meets them: JupyterLab in headless Chromium; skipped where there is none."""

import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("lab")]


@pytest.fixture(scope="module")
def lab(tmp_path_factory, browser):
    """A JupyterLab server on a copy of the notebooks; yields its address."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copy(NOTEBOOKS / "00_start_here.ipynb", folder)
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
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *options], cwd=folder, stdout=log, stderr=log
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


def test_run_all_then_scrub(lab, browser):
    page = browser.new_page(viewport={"width": 1300, "height": 3000})
    page.goto(f"{lab}/lab/tree/00_start_here.ipynb?reset")
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=90_000)
    time.sleep(2)  # the kernel connects after the cells are drawn
    page.click("text=Run >> nth=0")
    page.click("text=Run All Cells")
    slider = page.locator("[role=slider]").first
    slider.wait_for(timeout=180_000)
    picture = page.locator("img.widget-image, img.jupyter-widget-image").first
    before = picture.get_attribute("src")
    assert page.locator("text=/frame 1\\b/").count()
    slider.focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    page.wait_for_selector("text=/frame 6\\b/", timeout=20_000)
    page.wait_for_function("args => args[0].src !== args[1]", arg=[picture.element_handle(), before])
    page.close()
