"""Players and figures: every pixel at its place, every number at its frame."""

import base64
import io
import re
import subprocess

import imageio.v3 as iio
import ipywidgets
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from imageio_ffmpeg import get_ffmpeg_exe
from PIL import Image

from cvae_lab.views import figures, player, to_uint8

T, H, W = 5, 6, 10


@pytest.fixture(autouse=True)
def _no_window():
    matplotlib.use("Agg")
    yield
    plt.close("all")


@pytest.fixture
def clips():
    """Labels, prediction and truth whose single lit pixel moves right by one column per frame."""
    black = torch.zeros(T, 3, H, W, dtype=torch.uint8)
    labels, prediction, truth = black.clone(), black.clone(), black.clone()
    for t in range(T):
        labels[t, 0, 0, t] = 250
        prediction[t, 1, 2, t] = 200
        truth[t, 2, 5, t] = 150
    return labels, prediction, truth


def children(widget, kind):
    """All widgets of one kind below this one, in order."""
    found = [widget] if isinstance(widget, kind) else []
    return found + [item for child in getattr(widget, "children", ()) for item in children(child, kind)]


def sheets(page):
    found = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", page)
    return [Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB") for text in found]


def test_values_outside_the_range_clamp_and_do_not_wrap():
    values = torch.tensor([-0.5, 0.0, 0.4999, 1.0, 1.2, float("nan"), float("inf")])
    frames = values.view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    assert to_uint8(frames)[:, 0, 0, 0].tolist() == [0, 0, 127, 255, 255, 0, 255]


def test_panels_put_each_pixel_in_its_place(clips):
    labels, prediction, truth = clips
    shown = player.panels(labels, truth, prediction, scale=3)
    gap = player.GAP
    assert shown.shape == (T, 3 * H, 3 * (3 * W + 2 * gap), 3)
    expected = np.full((T, H, 3 * W + 2 * gap, 3), 0, np.uint8)
    expected[:, :, [W, 2 * W + gap]] = 255
    for t in range(T):
        expected[t, 0, t, 0] = 250
        expected[t, 5, W + gap + t, 2] = 150
        expected[t, 2, 2 * (W + gap) + t, 1] = 200
    assert (shown == np.kron(expected, np.ones((1, 3, 3, 1), np.uint8))).all()


def test_panels_without_truth_are_two(clips):
    labels, prediction, _ = clips
    assert player.panels(labels, None, prediction.float() / 255, scale=1).shape == (
        T,
        H,
        2 * W + player.GAP,
        3,
    )


def test_clips_of_different_length_are_refused(clips):
    labels, prediction, _ = clips
    with pytest.raises(ValueError, match="leave the given first frame out"):
        player.panels(labels, None, prediction[1:])
    with pytest.raises(ValueError, match="give at least one"):
        player.panels(labels[:0], None, prediction[:0])
    with pytest.raises(ValueError, match="give one value for each"):
        player.html_player(labels, prediction, psnr=np.ones(T - 1))


def test_scrubber_shows_the_frame_the_slider_names(clips):
    labels, prediction, truth = clips
    psnr, still = np.array([30, 29, 28, 27, 26.04]), np.array([np.inf, 22, 21, 20, 19])
    widget = player.scrubber(labels, prediction, truth, psnr, still, title="A <clip>", horizon=2)
    (slider,), (image,) = children(widget, ipywidgets.IntSlider), children(widget, ipywidgets.Image)
    expected = player.panels(labels, truth, prediction, scale=1)
    for frame in (2, T, 1):
        slider.value = frame
        assert (iio.imread(image.value) == expected[frame - 1]).all()
        texts = [page.value for page in children(widget, ipywidgets.HTML)]
        still_text = "inf" if frame == 1 else f"{still[frame - 1]:.1f}"
        assert f"frame {frame} · {psnr[frame - 1]:.1f} dB · still picture {still_text} dB" in texts
    assert "A &lt;clip&gt;" in texts[0]


def test_scrubber_moves_the_cursor_and_draws_the_curve_once(clips):
    labels, prediction, _ = clips
    widget = player.scrubber(labels, prediction, psnr=np.linspace(30, 20, T))
    pages = children(widget, ipywidgets.HTML)
    (curve,) = [page for page in pages if "<svg" in page.value]
    (slider,), before = children(widget, ipywidgets.IntSlider), curve.value
    places = []
    for frame in range(1, T + 1):
        slider.value = frame
        places.append(float(re.search(r"left:([\d.]+)%", pages[-1].value)[1]))
    assert np.ptp(np.diff(places)) < 0.02
    assert places[-1] > places[0] + 80
    assert curve.value == before
    plain = player.scrubber(labels, prediction)
    assert not any("<svg" in page.value for page in children(plain, ipywidgets.HTML))


def test_frames_left_out_keep_the_numbers_of_the_others(clips):
    labels, prediction, _ = clips
    numbers, scores = list(range(6, 6 * T + 1, 6)), np.linspace(30, 20, T)
    widget = player.scrubber(labels, prediction, psnr=scores, numbers=numbers)
    (slider,) = children(widget, ipywidgets.IntSlider)
    slider.value = T
    texts = [page.value for page in children(widget, ipywidgets.HTML)]
    assert f"frame {6 * T} · 20.0 dB" in texts
    page = player.html_player(labels, prediction, psnr=scores, numbers=numbers)
    for drawn in (page, *(text for text in texts if "<svg" in text)):
        ticks = re.findall(r'text-anchor="middle">(?:frame )?(\d+)</text>', drawn)
        assert ticks
        assert {int(tick) for tick in ticks} <= set(numbers)
    with pytest.raises(ValueError, match="argument"):
        player.scrubber(labels, prediction, numbers=numbers[:-1])


def test_page_is_self_contained_and_holds_every_frame(clips):
    labels, prediction, truth = clips
    page = player.html_player(labels, prediction, truth, np.ones(T), np.zeros(T), title="Clip & more")
    assert not re.search(r"https?://|//cdn|@import|<link", page)
    assert "<title>Clip &amp; more</title>" in page
    columns = int(re.search(r"&quot;columns&quot;: (\d+)", page)[1])
    for sheet, clip in zip(sheets(page), (labels, truth, prediction), strict=True):
        assert sheet.size == (columns * W, -(-T // columns) * H)
        for t in range(T):
            x, y = t % columns * W, t // columns * H
            cell = np.asarray(sheet.crop((x, y, x + W, y + H)))
            assert (cell == clip[t].permute(1, 2, 0).numpy()).all()


def test_written_page_is_the_page(clips, tmp_path):
    labels, prediction, truth = clips
    path = tmp_path / "player.html"
    player.write_html(path, labels, prediction, truth=truth, title="Clip")
    assert path.read_text(encoding="utf-8") == player.html_player(labels, prediction, truth, title="Clip")
    assert [file.name for file in tmp_path.iterdir()] == ["player.html"]


def test_gif_reads_back_with_its_frames_duration_and_loop(clips, tmp_path):
    labels, prediction, truth = clips
    frames, path = player.panels(labels, truth, prediction), tmp_path / "clip.gif"
    player.write_gif(path, frames, fps=25)
    assert (iio.imread(path) == frames).all()  # few colours, so nothing is lost
    assert iio.immeta(path)["duration"] == 40
    assert iio.immeta(path)["loop"] == 0
    player.write_gif(path, frames[[0, 0, 1]], fps=25)  # equal neighbours last as long as two
    with Image.open(path) as gif:
        assert gif.n_frames == 2
        assert gif.info["duration"] == 80


def test_mp4_has_every_frame_and_even_sides(tmp_path):
    frames = np.full((7, 33, 65, 3), 30, np.uint8) * np.arange(7, dtype=np.uint8)[:, None, None, None]
    player.write_mp4(tmp_path / "clip.mp4", frames)
    decode = [get_ffmpeg_exe(), "-i", tmp_path / "clip.mp4", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    decoded = subprocess.run(decode, capture_output=True, check=True)
    assert b"66x34" in decoded.stderr
    pixels = np.frombuffer(decoded.stdout, np.uint8).reshape(7, 34, 66, 3)
    assert (abs(pixels.mean((1, 2, 3)) - 30 * np.arange(7)) < 4).all()
    assert [file.name for file in tmp_path.iterdir()] == ["clip.mp4"]


def test_nothing_is_left_behind_when_writing_fails(tmp_path):
    with pytest.raises(ValueError, match="no frames to write"):
        player.write_gif(tmp_path / "clip.gif", np.zeros((0, 4, 4, 3), np.uint8))
    with pytest.raises(TypeError):
        player.write_gif(tmp_path / "clip.gif", np.zeros((2, 4, 4, 3), np.uint8), fps="fast")
    assert not list(tmp_path.iterdir())


def test_film_strip_shows_the_frames_asked_for(clips):
    labels, prediction, _ = clips
    figure = figures.film_strip({"label": labels, "prediction": prediction}, [0, 3], title="Two", pixels=4)
    (ax,) = figure.axes
    sheet = np.asarray(ax.images[0].get_array())
    gap = sheet.shape[1] - 2 * W
    assert sheet.shape == (2 * H + gap, 2 * W + gap, 3)
    assert sheet[0, 0, 0] == 250
    assert sheet[0, W + gap + 3, 0] == 250
    assert sheet[H + gap + 2, W + gap + 3, 1] == 200
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["frame 1", "4"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["label", "prediction"]
    box = ax.get_position().width * figure.get_figwidth() * figure.dpi
    assert box == pytest.approx(4 * sheet.shape[1])  # whole screen pixels, so nothing blurs


def test_schedule_holds_one_step_per_epoch():
    (ax,) = figures.schedule({"none": [0, 0], "ramp": [0, 0.5, 1]}, "KL weight", "Title").axes
    steps = ax.patches[1].get_data()
    assert steps.values.tolist() == [0, 0.5, 1]
    assert steps.edges.tolist() == [0.5, 1.5, 2.5, 3.5]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "KL weight")


def test_histories_draw_a_panel_per_column_and_a_line_per_run():
    table = {
        "epoch": [1, 2, 3],
        "mse": [1, 0.1, 0.01],
        "kl_nats": [0.0, 0, 0],
        "val_psnr_prior": [20, np.nan, 22],
    }
    runs = {"a": pd.DataFrame(table), "b": pd.DataFrame(table).iloc[:1]}
    figure = figures.histories(runs, baseline=25)
    figure.draw_without_rendering()
    assert [ax.get_yscale() for ax in figure.axes] == ["log", "linear", "linear"]
    assert [len(ax.lines) for ax in figure.axes] == [2, 2, 3]
    assert figure.axes[2].lines[0].get_xydata().tolist() == [[1, 20], [3, 22]]
    assert figure.axes[2].lines[2].get_ydata() == [25, 25]
    assert [text.get_text() for text in figure.legends[0].texts] == ["a", "b", "still picture"]


def test_psnr_per_frame_counts_from_one_and_leaves_perfect_frames_out():
    rising = np.arange(20.0)
    figure = figures.psnr_per_frame({"run": rising}, {"still": np.array([np.inf, *[10.0] * 19])}, horizon=4)
    still, raw, smooth = figure.axes[0].lines
    assert raw.get_xydata()[[0, -1]].tolist() == [[1, 0], [20, 19]]
    assert smooth.get_ydata()[10] == pytest.approx(rising[3:18].mean())
    assert np.isnan(still.get_ydata()[0])
    labels = [text.get_text() for text in figure.legends[0].texts]
    assert labels == ["still, mean 10.0 dB", "run, mean 9.5 dB", "trained unroll, 4 frames"]


@pytest.mark.parametrize("with_std", [True, False])
def test_strategy_bars_put_the_best_on_top(with_std):
    table = pd.DataFrame({"strategy": ["low", "high"], "psnr_mean": [20.0, 25.0], "psnr_std": [0.5, np.nan]})
    table = table if with_std else table.drop(columns="psnr_std")
    (ax,) = figures.strategy_bars(table, baseline=22).axes
    ax.figure.draw_without_rendering()
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["low", "high"]
    assert ax.lines[0].get_xdata() == [22, 22]
    assert ax.lines[1].get_xdata().tolist() == [20, 25]
    assert [text.get_text() for text in ax.texts] == ["20.00 ± 0.50" if with_std else "20.00", "25.00"]


def test_band_lies_between_low_and_high():
    ax = figures.quiet(plt.subplots()[1])
    figures.with_band(ax, [0, 1], [1, 2], [0, 1], [3, 4], "mean", figures.PALETTE[0])
    bounds = ax.collections[0].get_datalim(ax.transData)
    assert (bounds.ymin, bounds.ymax) == (0, 4)
    assert ax.lines[0].get_ydata().tolist() == [1, 2]
    assert not ax.spines["top"].get_visible()


def test_pictures_stay_small_enough_for_a_notebook():
    generator = np.random.default_rng(0)
    runs = {f"run {i}": 25 + generator.normal(0, 0.3, 629).cumsum() * 0.1 for i in range(2)}
    buffer = io.BytesIO()
    figures.psnr_per_frame(runs, {"still": np.full(629, 20.0)}, 16, "Title").savefig(buffer)
    assert len(buffer.getvalue()) < 60_000
