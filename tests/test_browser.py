"""What people click: driven in headless Chromium, skipped where there is none."""

import numpy as np
import pytest
import torch

from cvae_lab.views import player

pytestmark = pytest.mark.browser
T = 40


@pytest.fixture
def page(browser):
    """A fresh page; any script error in it fails the test."""
    errors = []
    page = browser.new_page(viewport={"width": 1100, "height": 700})
    page.on("pageerror", lambda error: errors.append(error))
    yield page
    page.close()
    assert not errors


@pytest.fixture
def clip_page(page, tmp_path):
    """The player of a clip whose prediction is plain grey, brighter by five with every frame."""
    grey = (5 * torch.arange(T, dtype=torch.uint8)).view(T, 1, 1, 1).expand(T, 3, 8, 16)
    path = tmp_path / "player.html"
    options = {"psnr": np.linspace(30, 20, T), "baseline": np.full(T, 18.0), "title": "Clip"}
    player.write_html(path, torch.full_like(grey, 255), grey, truth=255 - grey, **options)
    page.goto(path.as_uri())
    page.wait_for_function("document.querySelector('output').value.startsWith('frame 1 ')")
    return page


def state(page):
    """The frame that the canvases show (truth and prediction agreeing), and the one that the text names."""
    script = "c => c.map(x => x.getContext('2d').getImageData(3, 3, 1, 1).data[0])"
    label, truth, prediction = page.locator("canvas").evaluate_all(script)
    assert (label, truth) == (255, 255 - prediction)
    return prediction // 5 + 1, int(page.locator("output").evaluate("x => x.value.split(' ')[1]"))


def test_player_starts_at_the_first_frame(clip_page):
    assert state(clip_page) == (1, 1)
    assert "30.0 dB · still picture 18.0 dB" in clip_page.locator("output").inner_text()


def test_player_slider_moves_canvas_and_number(clip_page):
    clip_page.locator("input").fill("20")
    assert state(clip_page) == (21, 21)


def test_player_keys(clip_page):
    clip_page.locator(".cvae-player").focus()
    for key, frame in [
        ("ArrowRight", 2),
        ("Shift+ArrowRight", 12),
        ("ArrowLeft", 11),
        ("End", T),
        ("Home", 1),
    ]:
        clip_page.keyboard.press(key)
        assert state(clip_page) == (frame, frame)
    clip_page.locator("input").focus()  # the slider must not step a second time by itself
    clip_page.keyboard.press("ArrowRight")
    assert state(clip_page) == (2, 2)


def test_player_keeps_its_keys_from_the_page_around_it(clip_page):
    clip_page.evaluate("window.heard = []; document.addEventListener('keydown', e => heard.push(e.key))")
    clip_page.locator(".cvae-player").focus()
    for key in ("ArrowRight", " ", " ", "d", "Control+b"):
        clip_page.keyboard.press(key)
    assert clip_page.evaluate("heard") == ["Control", "b"]


def test_player_plays_and_pauses(clip_page):
    button = clip_page.get_by_role("button", name="Play")
    clip_page.get_by_label("speed").select_option("4")
    button.click()
    clip_page.wait_for_function("!document.querySelector('output').value.startsWith('frame 1 ')")
    clip_page.get_by_role("button", name="Pause").click()
    paused = state(clip_page)
    assert paused[0] == paused[1] > 1
    clip_page.wait_for_timeout(100)
    assert state(clip_page) == paused


def test_player_seeks_on_the_curve(clip_page):
    box = clip_page.locator(".curve").bounding_box()
    clip_page.mouse.click(box["x"] + box["width"] - 3, box["y"] + box["height"] / 2)
    assert state(clip_page) == (T, T)
    cursor = clip_page.locator(".cursor").bounding_box()
    assert cursor["x"] > box["x"] + 0.9 * box["width"]


def test_player_works_again_inside_another_page(clip_page):
    """A notebook puts the page into its own by innerHTML and runs the scripts anew."""
    source = clip_page.content()
    clip_page.goto("about:blank")
    clip_page.evaluate(
        """source => {
            const host = document.body.appendChild(document.createElement('div'));
            host.innerHTML = source;
            for (const old of host.querySelectorAll('script')) {
                const script = document.createElement('script');
                script.textContent = old.textContent;
                old.replaceWith(script);
            }
        }""",
        source,
    )
    clip_page.locator("input").fill("7")
    assert state(clip_page) == (8, 8)
