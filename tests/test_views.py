"""Players and GIFs: positions of pixels, scores of frames, and durations of frames are correct."""

import base64
import html
import io
import itertools
import json
import re
from functools import cache

import ipywidgets
import numpy as np
import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from PIL import Image

from cvae_lab.data.clips import Clip
from cvae_lab.views import clip_views, player, sprites

T, H, W = 5, 6, 10


@pytest.fixture
def clips():
    """Black labels, prediction and truth with one bright pixel, which moves right by one column per frame."""
    black = torch.zeros(T, 3, H, W, dtype=torch.uint8)
    labels, prediction, truth = black.clone(), black.clone(), black.clone()
    for t in range(T):
        labels[t, 0, 0, t] = 250
        prediction[t, 1, 2, t] = 200
        truth[t, 2, 5, t] = 150
    return labels, prediction, truth


def random_frames(n, height, width):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, 3, height, width), generator=generator, dtype=torch.uint8)


@cache
def pixels(picture):
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))


def frames_of(sheets, clip):
    """Return the frames on the sheets of one panel, read with the layout that is sent to the browser."""
    height, width = clip["height"], clip["width"]
    for t in range(clip["frames"]):
        sheet, cell = divmod(t, clip["per_sheet"])
        row, column = divmod(cell, clip["columns"])
        yield pixels(sheets[sheet])[row * height : (row + 1) * height, column * width : (column + 1) * width]


def clip_of(page):
    return json.loads(html.unescape(re.search(r'data-clip="([^"]*)"', page)[1]))


def test_panels_put_each_pixel_in_its_place(clips):
    labels, prediction, truth = clips
    shown, gap = player.panels(labels, truth, prediction, scale=3), sprites.GAP
    assert shown.shape == (T, 3 * H, 3 * (3 * W + 2 * gap), 3)
    expected = np.full((T, H, 3 * W + 2 * gap, 3), 0, np.uint8)
    expected[:, :, [W, 2 * W + gap]] = 255
    for t in range(T):
        expected[t, 0, t, 0] = 250
        expected[t, 5, W + gap + t, 2] = 150
        expected[t, 2, 2 * (W + gap) + t, 1] = 200
    assert (shown == np.kron(expected, np.ones((1, 3, 3, 1), np.uint8))).all()


def test_without_truth_there_are_two_panels(clips):
    labels, prediction, _ = clips
    shown = player.panels(labels, None, prediction.float() / 255, scale=1)
    assert shown.shape == (T, H, 2 * W + sprites.GAP, 3)


def test_clips_of_different_length_raise_an_error(clips):
    labels, prediction, _ = clips
    with pytest.raises(ValueError, match="give clips of one shape"):
        player.panels(labels, None, prediction[1:])
    with pytest.raises(ValueError, match="give at least one"):
        player.panels(labels[:0], None, prediction[:0])
    for make in (player.html_player, player.scrubber):
        with pytest.raises(ValueError, match="give one value for each"):
            make(labels, prediction, psnr=np.ones(T - 1))
        with pytest.raises(ValueError, match="give one number for each"):
            make(labels, prediction, numbers=range(T - 1))


@pytest.mark.parametrize(("n", "height", "width"), [(1, 32, 64), (7, 32, 64), (70, 16, 16), (9, 128, 256)])
def test_scrubber_sends_every_frame_unchanged(monkeypatch, n, height, width):
    monkeypatch.setattr(sprites, "SHEET", 520)  # so that several sheets are needed
    frames = random_frames(n, height, width)
    widget = player.scrubber(frames, frames.flip(0), truth=frames)
    for panel, expected in zip(widget.sheets, (frames, frames, frames.flip(0)), strict=True):
        assert max(side for sheet in panel for side in pixels(sheet).shape) <= sprites.SHEET
        shown = list(frames_of(panel, widget.clip))
        assert len(shown) == n
        assert all((a == b.permute(1, 2, 0).numpy()).all() for a, b in zip(shown, expected, strict=True))


def test_sheets_of_ten_thousand_frames_are_square_and_small_enough_for_a_phone():
    columns, per_sheet = sprites.sheet_layout(10_000, 32, 64)
    assert columns * 64 <= 4096
    assert per_sheet // columns * 32 <= 4096
    assert per_sheet * 2 >= 8192  # two sheets hold 64 x 128 frames each
    assert sprites.sheet_layout(3, 128, 8192)[0] == 1


def test_scrubber_frame_is_synchronised_and_stays_inside_the_clip(clips):
    labels, prediction, _ = clips
    widget = player.scrubber(labels, prediction)
    seen = []
    widget.observe(lambda change: seen.append(change["new"]), "frame")
    for frame in (2, 99, -1):
        widget.frame = frame
    assert seen == [2, T, 1]
    assert {"frame", "playing", "speed", "clip", "sheets"} <= set(widget.keys)


def test_kernel_does_not_echo_the_frame_that_the_browser_sends(clips):
    """An old message that arrives late would set the player back to an earlier frame."""
    labels, prediction, _ = clips
    widget, sent = player.scrubber(labels, prediction), []
    widget.comm.send = lambda data=None, **_: sent.append(data)
    widget.set_state({"frame": 3})
    assert widget.frame == 3
    assert not [message for message in sent if "frame" in message["state"]]
    widget.frame = 4
    assert sent[-1]["state"] == {"frame": 4}


def test_player_is_given_curves_captions_and_numbers(clips):
    labels, prediction, truth = clips
    scores, baseline = np.array([30, 29, 28, 27, 26.0414]), np.array([np.inf, 22, np.nan, 20, 19])
    options = {"title": "A <clip>", "horizon": 2, "numbers": range(6, 6 * T + 1, 6), "name": "ours"}
    widget = player.scrubber(labels, prediction, truth, scores, baseline, **options)
    page = player.html_player(labels, prediction, truth, scores, baseline, **options)
    for clip in (widget.clip, clip_of(page)):
        assert clip["captions"] == ["pose label", "truth", "ours"]
        assert clip["numbers"] == [6, 12, 18, 24, 30]
        assert (clip["frames"], clip["height"], clip["width"]) == (T, H, W)
        assert (clip["title"], clip["horizon"]) == ("A <clip>", 2)
        assert [curve["values"] for curve in clip["curves"]] == [
            [30, 29, 28, 27, 26.041],
            [None, 22, None, 20, 19],
        ]
    assert "<title>A &lt;clip&gt;</title>" in page


def test_curve_without_a_finite_value_is_left_out(clips):
    labels, prediction, _ = clips
    assert player.scrubber(labels, prediction).clip["curves"] == []
    curves = player.scrubber(labels, prediction, psnr=np.ones(T), baseline=np.full(T, np.inf)).clip["curves"]
    assert [curve["name"] for curve in curves] == ["prediction"]


def test_page_is_self_contained_and_holds_every_frame(clips):
    labels, prediction, truth = clips
    page = player.html_player(labels, prediction, truth, np.ones(T), np.zeros(T), title="Clip & more")
    assert not re.search(r"https?://|//cdn|@import|<link", page)
    clip = clip_of(page)
    for k, expected in enumerate((labels, truth, prediction)):
        found = re.findall(rf'data-panel="{k}" src="data:image/webp;base64,([A-Za-z0-9+/=]+)"', page)
        sheets = [base64.b64decode(text) for text in found]
        for shown, frame in zip(frames_of(sheets, clip), expected, strict=True):
            assert (shown == frame.permute(1, 2, 0).numpy()).all()  # few colours, so the palette is exact


def test_page_of_smooth_frames_is_within_the_stated_40_db():
    ramp = torch.linspace(0, 1, 64)
    frames = torch.stack([torch.stack([(ramp + t / 60) % 1 for _ in range(32)]) for t in range(60)])
    tinted = frames[:, None] * torch.tensor([1.0, 0.8, 0.6])[:, None, None]
    expected = sprites.split_panels(tinted, None, tinted)[0]
    sheets = sprites.sprite_sheets(expected, 256)
    clip = dict(zip(("columns", "per_sheet"), sprites.sheet_layout(60, 32, 64), strict=True))
    shown = np.stack(list(frames_of(sheets, clip | {"frames": 60, "height": 32, "width": 64})))
    error = np.mean((shown.astype(float) - expected) ** 2)
    assert 10 * np.log10(255**2 / error) > 40


def test_written_page_is_the_page(clips, tmp_path):
    labels, prediction, truth = clips
    path = tmp_path / "player.html"
    player.write_html(path, labels, prediction, truth=truth, title="Clip")
    assert path.read_text(encoding="utf-8") == player.html_player(labels, prediction, truth, title="Clip")
    assert [file.name for file in tmp_path.iterdir()] == ["player.html"]


def outputs(clips):
    """Return the notebook outputs (data, metadata) of a scrubber and of an embedded page."""
    labels, prediction, truth = clips
    widget = player.scrubber(labels, prediction, truth, title="A <clip>")
    page = player.embed(player.html_player(labels, prediction, truth, title="A <clip>"))
    formatter = DisplayFormatter()
    return [formatter.format(item) for item in (widget, page)]


STRIP = "Strip of frames. Rows from the top: pose label, truth, prediction. Frames from the left: "
STRIPS = [STRIP + "1, 2, 3, 4, 5.", STRIP + "1, 2, 4, 5."]  # of the scrubber and of the embedded page


def test_interactive_outputs_contain_a_png_with_alternative_text_and_an_invitation(clips):
    """GitHub and untrusted viewers show the PNG, because it needs neither trust nor a kernel nor a script."""
    for (data, metadata), strip, columns in zip(outputs(clips), STRIPS, (5, 4), strict=True):
        assert data["text/plain"] == "Run this cell for the interactive player."
        assert metadata["image/png"]["alt"].startswith(strip)
        high, wide, _ = pixels(base64.b64decode(data["image/png"])).shape
        assert high >= 12 * (3 * (H + 1) - 1)
        assert wide >= 12 * (columns * (W + 1) - 1)


def test_the_strip_of_frames_contains_the_pixels_of_the_clip(clips):
    """The clips have fewer than 256 colours, so the palette of the PNG keeps every pixel."""
    data, _ = outputs(clips)[0]
    picture = pixels(base64.b64decode(data["image/png"]))
    rows = [sprites.split_panels(part, None, part)[0] for part in (clips[0], clips[2], clips[1])]
    row_height, column_width = 12 * (H + 1), 12 * (W + 1)  # a frame and the gap after it
    wanted = [[frame.repeat(12, axis=0).repeat(12, axis=1) for frame in row] for row in rows]

    def equal_below(top):
        places = itertools.product(range(3), range(T))
        corners = ((r, c, top + r * row_height, sprites.MARGIN + c * column_width) for r, c in places)
        return all(
            np.array_equal(picture[y : y + 12 * H, x : x + 12 * W], wanted[r][c]) for r, c, y, x in corners
        )

    assert any(map(equal_below, range(sprites.MARGIN, 60)))  # the title above the strip may have any height


def test_scrubber_output_is_a_widget_and_embedded_page_is_not_shown_twice(clips):
    (widget, _), (page, _) = outputs(clips)
    assert "application/vnd.jupyter.widget-view+json" in widget
    assert "text/html" not in widget
    assert page["text/html"].count("Strip of frames") == 1


def test_embedded_page_without_scripts_shows_the_strip_of_frames(clips):
    html = outputs(clips)[1][0]["text/html"]
    static = re.sub(r"<(script|style|iframe).*?</\1>|<iframe[^>]*>", "", html, flags=re.DOTALL)
    assert "Run this cell for the interactive player." in static
    assert "A &lt;clip&gt;" in static
    image = re.search(r'<img src="data:image/png;base64,([^"]+)" alt="([^"]+)"', static)
    assert image[2] == STRIPS[1]
    assert pixels(base64.b64decode(image[1])).shape == (12 * (3 * (H + 1) - 1), 12 * (4 * (W + 1) - 1), 3)


def test_slider_box_is_a_widget_with_an_invitation():
    box = player.SliderBox([ipywidgets.IntSlider(3), ipywidgets.HTML("value 3")])
    data, _ = DisplayFormatter().format(box)
    assert data["text/plain"] == "Run this cell for the interactive version."
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == box.model_id


def test_static_content_is_small():
    frames = random_frames(600, 32, 64)
    large = random_frames(6, 128, 256)
    for part in (
        player.scrubber(large, large, large),
        player.scrubber(frames, frames, frames),
        player.embed(player.html_player(frames[:6], frames[:6])),
    ):
        data = DisplayFormatter().format(part)[0]
        assert len(data["image/png"]) < 120_000  # noise is the hardest content to compress


def test_page_that_is_not_a_player_can_be_embedded():
    data, metadata = player.embed("<p>hello</p>")._repr_mimebundle_()
    assert not metadata
    assert "&lt;p&gt;hello&lt;/p&gt;" in data["text/html"]
    assert data["text/plain"] in data["text/html"]


def read_gif(path):
    """Return the frames of a GIF as RGB, and the duration of each in milliseconds."""
    with Image.open(path) as gif:
        assert gif.info["loop"] == 0
        frames, durations = [], []
        for k in range(gif.n_frames):
            gif.seek(k)
            frames.append(np.asarray(gif.convert("RGB")))
            durations.append(gif.info["duration"])
    return np.stack(frames), durations


def test_gif_reads_back_with_its_frames_and_durations(clips, tmp_path):
    labels, prediction, truth = clips
    frames, path = player.panels(labels, truth, prediction), tmp_path / "clip.gif"
    player.write_gif(path, frames, fps=25)
    found, durations = read_gif(path)
    assert (found == frames).all()  # few colours, so the palette is exact
    assert durations == [40] * T


def moving(n):
    """Return frames with a moving pixel, so that no two consecutive frames are equal."""
    frames = np.zeros((n, 4, n, 3), np.uint8)
    frames[np.arange(n), :, np.arange(n)] = 255
    return frames


@pytest.mark.parametrize("fps", [1, 7, 10, 12.5, 20, 24, 25, 29.97, 30, 50, 60, 120])
def test_gif_lasts_as_long_as_the_video(tmp_path, fps):
    n = 60
    player.write_gif(tmp_path / "clip.gif", moving(n), fps)
    _, durations = read_gif(tmp_path / "clip.gif")
    assert abs(sum(durations) - 1000 * n / fps) <= 10
    assert min(durations) >= 20  # browsers play frames with a shorter duration more slowly


def test_gif_at_30_frames_per_second_alternates_3_3_4(tmp_path):
    player.write_gif(tmp_path / "clip.gif", moving(9), 30)
    _, durations = read_gif(tmp_path / "clip.gif")
    assert sorted(durations[:3]) == sorted(durations[3:6]) == [30, 30, 40]
    assert np.abs(np.cumsum(durations) - 1000 / 30 * np.arange(1, 10)).max() <= 5


def test_gif_frame_that_repeats_lasts_as_long_as_its_repetitions(tmp_path):
    order = [0, 0, 0, 0, 1, 2, 2, 3]
    player.write_gif(tmp_path / "clip.gif", moving(4)[order], 30)
    found, durations = read_gif(tmp_path / "clip.gif")
    assert [int(frame[0, :, 0].argmax()) for frame in found] == [0, 1, 2, 3]
    ends = [sum(durations[: k + 1]) for k in range(4)]
    expected = [1000 / 30 * end for end in (4, 5, 7, 8)]
    assert all(abs(a - b) <= 5 for a, b in zip(ends, expected, strict=True))


def test_a_failed_write_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="no frames to write"):
        player.write_gif(tmp_path / "clip.gif", np.zeros((0, 4, 4, 3), np.uint8))
    for fps in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="a number above 0"):
            player.write_gif(tmp_path / "clip.gif", np.zeros((2, 4, 4, 3), np.uint8), fps=fps)
    assert not list(tmp_path.iterdir())


def grey_clip(name, level, n, size, with_answer):
    frames = torch.full((n, 3, *size), level, dtype=torch.uint8)
    return Clip(name, frames[0], torch.full_like(frames, 255), frames if with_answer else None)


@pytest.mark.parametrize("size", [(32, 64), (16, 16), (64, 128)])
def test_gif_of_several_clips_shows_their_frames_and_captions(tmp_path, size):
    """Predictions become darker by one level per frame, so the level identifies the frame."""
    clips = [grey_clip("a", 60, 22, size, True), grey_clip("b", 60, 30, size, False)]
    predictions = [
        ((200 - 4 * torch.arange(len(clip) - 1)) / 255).view(-1, 1, 1, 1).expand(-1, 3, *size)
        for clip in clips
    ]
    clip_views.write_grid_gif(tmp_path / "grid.gif", clips, predictions)
    found, durations = read_gif(tmp_path / "grid.gif")
    scale = 1 if size[1] > 64 else 2  # a panel is at most 128 pixels wide
    height, width = scale * size[0], scale * size[1]
    assert durations == [100] * 11  # 21 frames at 20 frames per second, every second one
    right = found.shape[2] - clip_views.MARGIN - width // 2
    for row in range(2):
        middle = clip_views.CAPTION + row * (height + clip_views.MARGIN) + height // 2
        assert [int(frame[middle, right, 0]) for frame in found] == [200 - 8 * k for k in range(11)]
        truth = found[0][middle, right - width - clip_views.MARGIN, 0]
        assert abs(int(truth) - (60, clip_views.BLANK)[row]) <= 2  # the palette's nearest grey
        assert (found[:, middle - 6 : middle + 6, :60] < 128).any()  # the clip's name
    captions = found[:, : clip_views.CAPTION]
    assert all((a != b).any() for a, b in itertools.pairwise(captions))  # the frame number changes
    for column in range(3):
        center = right - (2 - column) * (width + clip_views.MARGIN)
        assert (captions[:, :, center - 10 : center + 10] < 128).any()


def test_gif_of_one_clip_has_every_frame(tmp_path):
    clip = grey_clip("a", 60, 6, (32, 64), True)
    prediction = ((200 - 4 * torch.arange(5)) / 255).view(-1, 1, 1, 1).expand(-1, 3, 32, 64)
    clip_views.write_clip_gif(tmp_path / "clip.gif", clip, prediction)
    found, durations = read_gif(tmp_path / "clip.gif")
    assert durations == [50] * 5
    assert [int(frame[80, -80, 0]) for frame in found] == [200, 196, 192, 188, 184]


@pytest.mark.parametrize("size", [(32, 64), (16, 16)])
def test_clip_player_has_scores_if_truth_is_known(tmp_path, size):
    clip = grey_clip("a", 60, 4, size, True)
    prediction = torch.full((3, 3, *size), 85 / 255)
    clip_views.write_clip_player(tmp_path / "player.html", clip, prediction)
    shown = clip_of((tmp_path / "player.html").read_text(encoding="utf-8"))
    assert shown["curves"][0]["values"] == pytest.approx([20 * np.log10(255 / 25)] * 3, abs=1e-3)
    unknown = grey_clip("b", 60, 4, size, False)
    clip_views.write_clip_player(tmp_path / "player.html", unknown, prediction)
    assert clip_of((tmp_path / "player.html").read_text(encoding="utf-8"))["curves"] == []
