"""The HTML player in headless Chromium. The tests are skipped if Chromium is not installed."""

import numpy as np
import pytest
import torch

from cvae_lab.views import player

pytestmark = pytest.mark.browser
T = 40


@pytest.fixture
def page(browser):
    """Return a new page. A script error in the page makes the test fail."""
    errors = []
    page = browser.new_page(viewport={"width": 1100, "height": 700})
    page.on("pageerror", lambda error: errors.append(error))
    yield page
    page.close()
    assert not errors


def grey_clip(n=T, height=8, width=16):
    """Return frames with one grey level each, which rises by five per frame."""
    levels = (5 * torch.arange(n) % 250).to(torch.uint8)
    return levels.view(n, 1, 1, 1).expand(n, 3, height, width)


@pytest.fixture
def clip_file(tmp_path):
    """The player of a clip whose prediction is `grey_clip()`."""
    grey, path = grey_clip(), tmp_path / "player.html"
    options = {"psnr": np.linspace(30, 20, T), "baseline": np.full(T, 18.0), "title": "Clip", "horizon": 5}
    player.write_html(path, torch.full_like(grey, 255), grey, truth=255 - grey, **options)
    return path


@pytest.fixture
def clip_page(page, clip_file):
    """Open a page that shows the player of `clip_file`."""
    page.goto(clip_file.as_uri())
    wait_for_frame(page, 1)
    return page


def wait_for_frame(page, number):
    page.wait_for_function(f"document.querySelector('output')?.value.startsWith('frame {number} ')")


def state(page):
    """Return the frame numbers of canvases and text. Check that all canvases show the same frame."""
    page.wait_for_timeout(50)
    script = "c => c.map(x => x.getContext('2d').getImageData(3, 3, 1, 1).data[0])"
    label, truth, prediction = page.locator("canvas").evaluate_all(script)
    assert (label, truth) == (255, 255 - prediction)
    return prediction // 5 + 1, int(page.locator("output").evaluate("x => x.value.split(' ')[1]"))


def test_player_starts_at_the_first_frame(clip_page):
    assert state(clip_page) == (1, 1)
    assert "30.0 dB · static baseline 18.0 dB" in clip_page.locator("output").inner_text()


def test_slider_moves_canvas_and_number(clip_page):
    clip_page.locator("input").fill("20")
    assert state(clip_page) == (21, 21)


def test_keys_work_from_the_start_without_a_click(clip_page):
    for key, frame in [
        ("ArrowRight", 2),
        ("Shift+ArrowRight", 12),
        ("ArrowLeft", 11),
        ("PageUp", 15),
        ("PageDown", 11),
        ("End", T),
        ("Home", 1),
    ]:
        clip_page.keyboard.press(key)
        assert state(clip_page) == (frame, frame)


def test_an_arrow_key_on_the_focused_slider_moves_one_frame(clip_page):
    clip_page.locator("input").focus()
    clip_page.keyboard.press("ArrowRight")
    assert state(clip_page) == (2, 2)


def test_space_plays_and_pauses_and_the_text_is_not_announced_while_playing(clip_page):
    text = clip_page.locator("output")
    assert text.get_attribute("aria-live") == "polite"
    clip_page.keyboard.press(" ")
    clip_page.get_by_role("button", name="Pause").wait_for()
    assert text.get_attribute("aria-live") == "off"
    clip_page.keyboard.press(" ")
    clip_page.get_by_role("button", name="Play").wait_for()
    assert text.get_attribute("aria-live") == "polite"


def test_button_plays_and_pauses(clip_page):
    clip_page.get_by_label("speed").select_option("4")
    clip_page.get_by_role("button", name="Play").click()
    clip_page.wait_for_function("!document.querySelector('output').value.startsWith('frame 1 ')")
    clip_page.get_by_role("button", name="Pause").click()
    paused = state(clip_page)
    assert paused[0] == paused[1] > 1
    clip_page.wait_for_timeout(100)
    assert state(clip_page) == paused


def test_click_on_the_curve_seeks(clip_page):
    box = clip_page.locator(".plot").bounding_box()
    clip_page.mouse.click(box["x"] + box["width"] - 3, box["y"] + box["height"] / 2)
    assert state(clip_page) == (T, T)
    cursor = clip_page.locator(".cursor").bounding_box()
    assert cursor["x"] > box["x"] + 0.9 * box["width"]


def test_every_control_and_picture_has_a_name(clip_page):
    for role, name in [("button", "Play"), ("slider", "frame"), ("combobox", "speed"), ("group", "Clip")]:
        assert clip_page.get_by_role(role, name=name).count() == 1
    names = clip_page.locator("canvas, .plot > div > svg").evaluate_all("all => all.map(x => x.ariaLabel)")
    assert [name.split(",")[0] for name in names[:3]] == ["pose label", "truth", "prediction"]
    assert names[3].startswith("PSNR per frame. prediction: mean 25.0 dB")


@pytest.mark.parametrize("width", [390, 900])
def test_narrow_window_keeps_the_curve_text_readable_without_scrolling(clip_page, width):
    clip_page.set_viewport_size({"width": width, "height": 700})
    clip_page.wait_for_function(
        "() => document.querySelector('.plot svg').clientWidth <= document.body.clientWidth"
    )
    assert clip_page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    heights = clip_page.locator(".plot text").evaluate_all(
        "all => all.map(x => x.getBoundingClientRect().height)"
    )
    assert min(heights) >= 12  # screen pixels


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(clip_page, scheme):
    clip_page.emulate_media(color_scheme=scheme)
    colours = "x => [getComputedStyle(x).color, getComputedStyle(document.documentElement).backgroundColor]"
    for selector in ("output", "figcaption", "small", ".legend", ".plot"):
        pair = clip_page.locator(selector).first.evaluate(colours)
        assert contrast(*pair) >= 4.5, selector  # WCAG 2.2, level AA


def contrast(first, second):
    """Contrast ratio of two CSS colours by WCAG 2.2."""

    def luminance(colour):
        values = np.array([float(v) for v in colour[colour.index("(") + 1 : -1].split(",")[:3]]) / 255
        linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_two_players_in_another_page_react_only_to_their_own_keys(page, clip_file):
    """A notebook may insert the player into its own page with innerHTML and run the scripts again."""
    page.goto("about:blank")
    page.evaluate(
        """source => {
            window.heard = [];
            document.addEventListener('keydown', (event) => heard.push(event.key));
            for (let copy = 0; copy < 2; copy += 1) {
                const host = document.body.appendChild(document.createElement('div'));
                host.innerHTML = source;
                for (const old of host.querySelectorAll('script')) {
                    const script = document.createElement('script');
                    script.textContent = old.textContent;
                    old.replaceWith(script);
                }
            }
        }""",
        clip_file.read_text(encoding="utf-8"),
    )
    first, second = page.locator("output").all()
    page.locator("input").first.fill("7")
    assert first.inner_text().startswith("frame 8 ")
    assert second.inner_text().startswith("frame 1 ")
    page.locator(".cvae-player").nth(1).focus()
    for key in ("ArrowRight", " ", " ", "d", "Control+b"):
        page.keyboard.press(key)
    assert first.inner_text().startswith("frame 8 ")
    assert not second.inner_text().startswith("frame 1 ")
    assert page.evaluate("heard") == ["Control", "b"]


def embedded(page, html):
    """Show the HTML of a notebook output in a page with scripts enabled."""
    page.set_content(f"<!doctype html><title>t</title><body>{html}</body>")


def test_embedded_frame_is_as_tall_as_its_content(page, clip_file):
    embedded(page, player.embed(clip_file.read_text(encoding="utf-8"))._repr_mimebundle_()[0]["text/html"])
    frame = page.frame_locator("iframe")
    frame.locator("output").wait_for()
    page.wait_for_function("document.querySelector('iframe').style.height !== '420px'")
    for width in (1100, 500):
        page.set_viewport_size({"width": width, "height": 700})
        page.wait_for_timeout(300)
        content = frame.locator("html").evaluate("x => x.scrollHeight")
        assert abs(page.locator("iframe").bounding_box()["height"] - content) <= 16
    assert not page.locator(".cvae-static").is_visible()


@pytest.mark.parametrize(
    ("n", "height", "width"), [(10_000, 8, 16), (50, 128, 256), (3, 64, 64), (1, 32, 64)]
)
def test_clips_of_other_lengths_and_sizes_play(page, tmp_path, n, height, width):
    grey, path = grey_clip(n, height, width), tmp_path / "player.html"
    scores = np.linspace(30, 20, n)
    player.write_html(path, torch.full_like(grey, 255), grey, truth=255 - grey, psnr=scores)
    page.goto(path.as_uri())
    wait_for_frame(page, 1)
    page.keyboard.press("End")
    wait_for_frame(page, n)
    page.wait_for_timeout(300)
    shown, named = state(page)
    assert (shown, named) == ((n - 1) % 50 + 1, n)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    canvas = page.locator("canvas").first.bounding_box()
    assert canvas["width"] == pytest.approx(canvas["height"] * width / height, rel=0.02)


def test_sheets_of_a_large_clip_are_small_enough_for_phones(page, tmp_path):
    """A sheet contains 512 frames of 128x256, so 600 frames of two panels need four sheets."""
    grey, path = grey_clip(600, 128, 256), tmp_path / "player.html"
    player.write_html(path, torch.full_like(grey, 255), grey)
    page.goto(path.as_uri())
    page.wait_for_function("[...document.querySelectorAll('img')].every((image) => image.naturalWidth > 0)")
    sizes = page.locator("img").evaluate_all("all => all.map(x => [x.naturalWidth, x.naturalHeight])")
    assert len(sizes) == 4
    assert max(map(max, sizes)) <= 4096
