"""Notebooks in JupyterLab, in headless Chromium. The tests are skipped if Chromium is not installed.

The server runs under a sub-path, /sub/, as behind a proxy.
"""

import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import execute_notebook
import nbformat
import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
# Notebooks with a widget, and the line of code that shows the widget.
WIDGETS = {
    "00_start_here": "player.scrubber(", "01_derivation": "player.SliderBox(", "02_modules": "player.SliderBox(",
    "03_training": "player.scrubber(", "04_kl_strategies": "player.SliderBox(",
    "05_teacher_forcing": "player.SliderBox(", "06_psnr_per_frame": "scrub = ",
    "07_posterior_collapse": "player.SliderBox(", "08_test_and_submit": "scrub = ",
}  # fmt: skip
# Replacements that make the training of two of these notebooks shorter.
SHORTER = {"03_training": ("epochs = 25", "epochs = 2"), "06_psnr_per_frame": ("(2, 8, 32)", "(1, 2, 4)")}
pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("lab")]

SCRUBBER = """
import ipywidgets, numpy as np, torch
from cvae_lab.views import player
levels = (2 * torch.arange(120)).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 32, 64)
scores = dict(psnr=np.linspace(30, 20, 120), baseline=np.full(120, 18.0))
scrub = player.scrubber(255 - levels, levels, truth=levels, title="A test clip", horizon=15, **scores)
scrub
""".strip()
EMBEDDED = 'player.embed(player.html_player(255 - levels, levels, title="An embedded clip", **scores))'
CONTROLS = """
slider, text = ipywidgets.IntSlider(3), ipywidgets.HTML()
svg = '<svg viewBox="0 0 40 20" aria-label="a square"><rect width="{0}" height="9"/></svg>value {0}'
ipywidgets.interactive_output(lambda v: setattr(text, "value", svg.format(v)), {"v": slider})
player.SliderBox([slider, text])
""".strip()
LINKED = """
from ipywidgets import IntSlider, VBox, jslink
other = player.scrubber(255 - levels, levels, title="Another clip")
linked = IntSlider(1, 1, 120)
jslink((linked, "value"), (other, "frame"))
VBox([linked, other])
""".strip()
# This cell keeps the kernel busy, except when all cells are run for the first time.
BUSY = "import time; time.sleep(60 if 'ran' in globals() else 0); ran = True"

# This script counts how often the picture on the first scrubber's prediction canvas changes.
COUNT_DRAWN = """() => {
    const draw = window.originalDraw ??= CanvasRenderingContext2D.prototype.drawImage;
    window.drawn = [];
    CanvasRenderingContext2D.prototype.drawImage = function (...args) {
        if (this.canvas.ariaLabel.startsWith("prediction")) window.drawn.push(`${args[1]} ${args[2]}`);
        return draw.apply(this, args);
    };
}"""


def notebook_of(*sources):
    """Return a notebook with these code cells, and with constant cell ids."""
    cells = [nbformat.v4.new_code_cell(source, id=f"cell-{i}") for i, source in enumerate(sources)]
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


def up_to_the_widget(notebook, folder, widget):
    """Copy the cells of a notebook up to the first one that shows the widget. Later cells could take long."""
    content = nbformat.read(notebook, 4)
    last = next(i for i, c in enumerate(content.cells) if c.cell_type == "code" and widget in c.source)
    content.cells = content.cells[: last + 1]
    if notebook.stem in SHORTER:
        long, short = SHORTER[notebook.stem]
        assert long in content.cells[2].source
        content.cells[2].source = content.cells[2].source.replace(long, short)
    nbformat.write(content, folder / notebook.name)


class Lab:
    """A JupyterLab server for `folder`, and its settings."""

    def __init__(self, address, folder, environment):
        self.address, self.folder, self.environment = address, folder, environment

    def set(self, plugin, **settings):
        """Write settings of JupyterLab. A page reads them when it is loaded."""
        extension, name = plugin.split(":")
        file = self.folder / "settings" / "@jupyterlab" / extension / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings))


@pytest.fixture(scope="module")
def lab(tmp_path_factory, browser):
    """Start a JupyterLab server for a copy of the notebooks."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(NOTEBOOKS.parent / "figures", folder / "figures")
    (folder / "notebooks").mkdir()
    for name, widget in WIDGETS.items():
        up_to_the_widget(NOTEBOOKS / f"{name}.ipynb", folder / "notebooks", widget)
    nbformat.write(notebook_of(SCRUBBER, LINKED, BUSY), folder / "notebooks" / "scrubber.ipynb")
    nbformat.write(notebook_of(SCRUBBER, EMBEDDED, CONTROLS), folder / "notebooks" / "executed.ipynb")
    execute_notebook.main(folder / "notebooks" / "executed.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        "--ip=127.0.0.1",
        "--IdentityProvider.token=",
        "--ServerApp.base_url=/sub/",
        f"--LabApp.user_settings_dir={folder / 'settings'}",
    ]
    # With a separate folder for signatures, no notebook is trusted. One thread leaves the other cores to other tests.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "JUPYTER_DATA_DIR": str(folder / "signatures")}
    with (folder / "log.txt").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options],
            cwd=folder,
            stdout=log,
            stderr=log,
            env=environment,
        )
        address = f"http://127.0.0.1:{port}/sub"
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/api").close()
                break
            except OSError:
                time.sleep(0.5)
        yield Lab(address, folder, environment)
        server.terminate()
        server.wait(20)


def open_notebook(lab, browser, name, width=1400, height=2400):
    """Open a notebook in JupyterLab and return the page."""
    page = browser.new_page(viewport={"width": width, "height": height})
    page.goto(f"{lab.address}/lab/tree/notebooks/{name}.ipynb?reset")
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=90_000)
    return page


@pytest.fixture
def opened(lab, browser):
    """A function that opens a notebook in a page. The page is closed after the test."""
    pages = []

    def open_one(*arguments):
        pages.append(open_notebook(lab, browser, *arguments))
        return pages[-1]

    yield open_one
    for page in pages:
        page.close()


def menu(page, first, second):
    page.click(f'.lm-MenuBar-itemLabel:text-is("{first}")')
    page.click(f'.lm-Menu-itemLabel:text-is("{second}")')


def kernel_is_ready(page):
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]", timeout=90_000)
    page.wait_for_timeout(2000)  # the widget manager connects later than the kernel


def run_until(page, shown):
    """Run all cells until an element is visible.

    Several attempts are needed, because no widget is shown before the widget manager is connected.
    """
    kernel_is_ready(page)
    for _ in range(4):
        menu(page, "Run", "Run All Cells")
        for _ in range(200):
            if shown.is_visible():
                return
            page.wait_for_timeout(1000)
    pytest.fail("the notebook ran four times, and no widget was seen")


@pytest.fixture(scope="module")
def session(lab, browser):
    """The notebook with two scrubbers in the dark theme. It is run once for several tests."""
    lab.set("apputils-extension:themes", theme="JupyterLab Dark")
    page = open_notebook(lab, browser, "scrubber")
    run_until(page, page.locator(".cvae-player").nth(1))
    lab.set("apputils-extension:themes", theme="JupyterLab Light")
    yield page
    page.close()


@pytest.fixture
def running(session):
    """The same notebook, with both scrubbers reset to frame 1 and speed 1."""
    session.set_viewport_size({"width": 1400, "height": 2400})
    for player in session.locator(".jp-Notebook .cvae-player").all():
        player.get_by_label("speed").select_option("1")
        player.focus()
        session.keyboard.press("Home")
    return session


def interrupt(page):
    menu(page, "Kernel", "Interrupt Kernel")
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]", timeout=30_000)


def pictures_per_second(page, seconds=3):
    """Play the first scrubber at 80 frames per second, and count the changes of the picture."""
    player = page.locator(".cvae-player").first
    player.get_by_label("speed").select_option("4")
    player.get_by_role("button", name="Play").click()
    page.evaluate(COUNT_DRAWN)
    page.wait_for_timeout(1000 * seconds)
    drawn = page.evaluate("drawn")
    player.get_by_role("button", name="Pause").click()
    return sum(a != b for a, b in itertools.pairwise(drawn)) / seconds


def frame_of(player):
    """Return the frame numbers of the canvas and of the text of the first scrubber."""
    level = player.locator("canvas").last.evaluate("c => c.getContext('2d').getImageData(3, 3, 1, 1).data[0]")
    return level // 2 + 1, int(player.locator("output").inner_text().split()[1])


def test_keys_and_curve_move_a_scrubber_and_do_not_change_the_notebook(running):
    page, cells = running, running.locator(".jp-Cell").count()
    player, other = page.locator(".cvae-player").all()
    player.focus()
    for key, frame in [("ArrowRight", 2), ("End", 120), ("Home", 1), ("PageUp", 13), ("d", 13), ("d", 13)]:
        page.keyboard.press(key)
        assert frame_of(player) == (frame, frame)
    box = player.locator(".plot").bounding_box()
    page.mouse.click(box["x"] + box["width"] - 13, box["y"] + 50)
    assert frame_of(player) == (120, 120)
    assert frame_of(other) == (1, 1)
    assert page.locator(".jp-Cell").count() == cells  # "d d" deletes a cell in command mode


def test_kernel_receives_the_frame_number(running):
    running.locator(".cvae-player").first.focus()
    running.keyboard.press("End")
    running.locator(".jp-Cell").nth(2).click()
    running.keyboard.press("Escape")
    running.keyboard.press("b")
    running.keyboard.press("Enter")
    running.keyboard.type("print('the kernel has frame', scrub.frame)")
    running.keyboard.press("Shift+Enter")
    running.get_by_text("the kernel has frame 120", exact=True).wait_for(timeout=20_000)


def test_second_view_of_an_output_shows_the_same_frame_and_does_not_double_the_speed(running):
    running.locator(".jp-Cell").first.locator(".jp-OutputArea-output").first.click(button="right")
    running.click('.lm-Menu-itemLabel:text-is("Create New View for Cell Output")')
    view = running.locator(".jp-LinkedOutputView .cvae-player")
    view.wait_for(timeout=20_000)
    running.locator(".jp-LinkedOutputView .cvae-player").focus()
    running.keyboard.press("End")
    player = running.locator(".jp-Notebook .cvae-player").first
    assert frame_of(view) == frame_of(player) == (120, 120)
    running.keyboard.press("Home")
    running.keyboard.press(" ")
    running.wait_for_timeout(2000)
    running.keyboard.press(" ")
    assert frame_of(view) == frame_of(player)
    assert 25 <= frame_of(view)[0] <= 60  # two seconds at 20 frames per second; twice the speed would give 80


@pytest.mark.parametrize("width", [1400, 900])
def test_no_horizontal_scrollbar(running, width):
    running.set_viewport_size({"width": width, "height": 2400})
    running.wait_for_timeout(1000)
    overflow = "all => all.map(x => x.scrollWidth - x.clientWidth)"
    areas = running.locator(".jp-OutputArea, .jp-OutputArea-output, .jp-WindowedPanel-outer")
    assert max(areas.evaluate_all(overflow)) <= 0
    bounds = running.locator(".jp-OutputArea-output").first.bounding_box()
    controls = running.locator(".jp-Notebook .cvae-player").locator("button, input, output, select, canvas")
    for box in (control.bounding_box() for control in controls.all()):
        assert box["x"] >= bounds["x"]
        assert box["x"] + box["width"] <= bounds["x"] + bounds["width"]


def test_dark_theme_has_light_text(running):
    for part in ("h2", "output", "figcaption", ".legend", "small"):
        colour = running.locator(f".cvae-player {part}").first.evaluate("x => getComputedStyle(x).color")
        values = [float(v) for v in colour[colour.index("(") + 1 : -1].split(",")]
        assert min(values[:3]) >= 200, part


def make_busy(page):
    """Run the cell that keeps the kernel busy."""
    page.locator(".jp-Cell", has_text="time.sleep").locator(".cm-content").click()
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=busy]", timeout=30_000)


def test_slider_linked_in_the_browser_moves_the_scrubber_while_the_kernel_is_busy(running):
    make_busy(running)
    other = running.locator(".cvae-player").nth(1)
    running.locator("[role=slider]").first.focus()
    for _ in range(4):
        running.keyboard.press("ArrowRight")
    assert frame_of(other) == (5, 5)


@pytest.mark.parametrize("kernel", ["idle", "busy", "restarted"])
def test_scrubber_draws_thirty_pictures_per_second(running, kernel):
    page = running
    if kernel == "busy":
        make_busy(page)
    else:
        interrupt(page)
    if kernel == "restarted":
        menu(page, "Kernel", "Restart Kernel…")
        page.click(".jp-Dialog-button:has-text('Restart')")
        page.wait_for_timeout(3000)
        kernel_is_ready(page)
    rate = pictures_per_second(page)
    assert rate >= 30, f"{rate:.0f} pictures per second"
    shown, named = frame_of(page.locator(".cvae-player").first)
    assert shown == named > 1


def test_untrusted_notebook_shows_static_content(opened):
    """Before a cell is run, every widget output shows a picture with alternative text, and a hint to run the cell."""
    page = opened("executed")
    page.wait_for_selector("text=/Run this cell for the interactive/")  # the text of the embedded page
    page.wait_for_selector(".jp-RenderedImage img")
    outputs = page.locator(".jp-OutputArea-output").all()
    assert len(outputs) == 3
    for output, width in zip(outputs, (700, 500, 100), strict=True):
        assert output.locator("iframe").count() == 0
        assert output.locator("img").is_visible()
        assert output.locator("img").evaluate("x => x.naturalWidth") > width
    assert outputs[1].get_by_text("Run this cell for the interactive player.").is_visible()
    assert page.locator(".jp-OutputArea >> text=/VBox\\(|Error displaying/").count() == 0


def test_alternative_text_of_an_executed_slider_output_contains_its_text(lab):
    cell = nbformat.read(lab.folder / "notebooks" / "executed.ipynb", 4).cells[2]
    assert cell.outputs[0].metadata["image/png"]["alt"] == "a square; value 3"
    assert cell.outputs[0].data["text/plain"] == "Run this cell for the interactive version."


def test_trusted_notebook_that_was_not_run_shows_static_content_or_a_player(lab, opened):
    """In a trusted notebook the embedded page runs. The scrubber has no kernel, so its strip of frames is shown."""
    file = lab.folder / "notebooks" / "trusted.ipynb"
    notebook = nbformat.read(file.with_name("executed.ipynb"), 4)
    notebook.metadata["title"] = (
        "trusted"  # JupyterLab trusts notebooks by their content, so the content must be different
    )
    nbformat.write(notebook, file)
    trust = [sys.executable, "-m", "jupyter", "trust", file]
    subprocess.run(trust, check=True, env=lab.environment, stdout=subprocess.DEVNULL)
    page = opened("trusted")
    page.frame_locator("iframe").locator("output").wait_for(timeout=30_000)
    scrubber, embedded = page.locator(".jp-OutputArea-output").all()[:2]
    assert scrubber.locator("img").is_visible()  # this picture contains the text "Run this cell"
    assert not embedded.locator(".cvae-static").is_visible()
    assert page.locator(".jp-OutputArea >> text=/Error displaying/").count() == 0


def test_executed_notebook_is_small_and_has_no_widget_ids(lab):
    text = (lab.folder / "notebooks" / "executed.ipynb").read_text()
    assert len(text) < 250_000
    assert "model_id" not in text


def test_opening_a_notebook_does_not_change_it(lab, opened):
    """In this test, the interval of automatic saving is two seconds instead of two minutes."""
    file = lab.folder / "notebooks" / "executed.ipynb"
    before = file.read_bytes()
    lab.set("docmanager-extension:plugin", autosaveInterval=2)
    page = opened("executed")
    kernel_is_ready(page)
    page.wait_for_timeout(8000)
    assert file.read_bytes() == before
    assert page.locator(".jp-mod-dirty, .lm-TabBar-tab.jp-mod-dirty").count() == 0
    # Automatic saving works: a change is saved.
    page.locator(".jp-Cell .jp-InputPrompt").first.click()
    page.keyboard.press("Escape")
    page.keyboard.press("b")
    for _ in range(80):
        if file.read_bytes() != before:
            break
        page.wait_for_timeout(500)
    changed = file.read_bytes() != before
    file.write_bytes(before)
    assert changed


@pytest.mark.parametrize("name", WIDGETS)
def test_moving_a_slider_changes_the_output(name, opened):
    page = opened(name, 1300, 6000)
    slider = page.locator(".jp-OutputArea [role=slider], .jp-OutputArea input[type=range]").first
    run_until(page, slider)
    shown = """slider => {
        const area = slider.closest('.jp-OutputArea');
        const canvases = [...area.querySelectorAll('canvas')].map((canvas) => canvas.toDataURL());
        const texts = [...area.querySelectorAll('.widget-html-content, output')].map((x) => x.innerHTML);
        return [canvases.join(), texts.join()];
    }"""
    page.wait_for_function(f"slider => ({shown})(slider)[1].length > 0", arg=slider.element_handle())
    before = slider.evaluate(shown)
    slider.focus()
    place, end = slider.get_attribute("aria-valuenow"), slider.get_attribute("aria-valuemax")
    for _ in range(3):
        page.keyboard.press("ArrowLeft" if place and place == end else "ArrowRight")
    # The text or drawing changes. In a scrubber, the picture changes, too.
    changed = f"args => ({shown})(args[0]).every((now, i) => !args[1][i] || now !== args[1][i])"
    page.wait_for_function(changed, arg=[slider.element_handle(), before], timeout=30_000)
