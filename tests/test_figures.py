"""Figures: their content, the size and contrast of text, and their alternative text."""

import io

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.pylabtools import select_figure_formats
from matplotlib.text import Text
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab

from cvae_lab import CVAE, ModelConfig
from cvae_lab.views import GREY, PALETTE, figures
from cvae_lab.views.module_diagram import diagram, trace

T, H, W = 5, 6, 10


@pytest.fixture(autouse=True)
def _no_window():
    matplotlib.use("Agg")
    yield
    plt.close("all")


def history(n=3, offset=0.0):
    return pd.DataFrame(
        {
            "epoch": np.arange(1, n + 1),
            "mse": 10.0 ** -np.arange(n),
            "kl_nats": np.zeros(n),
            "val_psnr_prior": 20 + offset + np.arange(n),
        }
    )


def strategies(**columns):
    return pd.DataFrame(
        {"variant": ["low", "high"], "psnr_mean": [20.0, 25.0], "psnr_std": [0.5, np.nan]} | columns
    )


def every_figure():
    """Return a function without arguments for each kind of figure."""
    frames = torch.zeros(T, 3, H, W)
    curves = {"run": 20 + np.arange(20.0), "other": 30 - np.arange(20.0)}
    return {
        "frame_strip": lambda: figures.frame_strip({"label": frames, "truth": frames}, [0, 3], "A strip"),
        "schedule": lambda: figures.schedule(
            {"none": [0, 0], "ramp": [0, 0.5, 1]}, "KL weight", "A schedule"
        ),
        "histories": lambda: figures.histories({"a": history(), "b": history(5)}, baseline=25),
        "histories_of_seeds": lambda: figures.histories({"a": [history(), history(5)]}, baseline=25),
        "histories_of_many": lambda: figures.histories({f"run {i}": history(4, i) for i in range(15)}),
        "psnr_per_frame": lambda: figures.psnr_per_frame(curves, {"static": np.full(20, 15.0)}, 4, "Curves"),
        "strategy_bars": lambda: figures.strategy_bars(strategies(), 22),
        "bars_with_long_names": lambda: figures.strategy_bars(
            strategies(variant=["a variant with a long name", "another variant with a longer name"]), 22
        ),
        "module_diagram": lambda: diagram(trace(CVAE(ModelConfig.preset("compact"))), "The modules"),
    }


@pytest.mark.parametrize("name", every_figure())
def test_text_has_at_least_9_points_and_lies_inside_the_figure(name):
    figure = every_figure()[name]()
    figure.draw_without_rendering()
    texts = [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]
    assert texts
    assert min(text.get_fontsize() for text in texts) >= 9
    # The figure is 9 inches wide, and pages show it with at least 96 pixels per inch, so text is not reduced.
    assert figure.get_figwidth() <= 9.01
    assert figure.dpi >= 96
    drawn = figure.get_tightbbox()  # inches
    assert min(drawn.x0, drawn.y0) >= -0.01
    assert drawn.x1 <= figure.get_figwidth() + 0.01
    assert drawn.y1 <= figure.get_figheight() + 0.01


@pytest.mark.parametrize("name", every_figure())
def test_alternative_text_is_stored_in_the_notebook(name):
    """The alternative text is in the metadata of the output, from which nbconvert reads it."""
    figure = every_figure()[name]()
    formatter = DisplayFormatter()
    shell = InteractiveShell(display_formatter=formatter)
    shell.display_formatter = formatter
    select_figure_formats(shell, {"png"})
    data, metadata = formatter.format(figure)
    InteractiveShell.clear_instance()
    assert "image/png" in data
    assert metadata["image/png"]["alt"] == figure.alt
    assert len(figure.alt) > 20


def test_alternative_text_names_rows_frames_and_values():
    made = every_figure()
    assert made["frame_strip"]().alt == "A strip. Rows: label, truth. Frames: 1, 4."
    frames = torch.zeros(4, 3, 8, 16)
    named = figures.frame_strip({"label": frames}, [0, 3], "A strip", names=["best\n30 dB", "worst"])
    assert named.alt == "A strip. Rows: label. Columns: best, 30 dB; worst."
    assert [text.get_text() for text in named.axes[0].get_xticklabels()] == ["best\n30 dB", "worst"]
    assert made["schedule"]().alt == "A schedule: KL weight per epoch. none from 0 to 0; ramp from 0 to 1."
    assert "run, mean 29.5 dB" in made["psnr_per_frame"]().alt
    assert "high 25.00 dB; low 20.00 ± 0.50 dB; static baseline 22.00 dB" in made["strategy_bars"]().alt


@pytest.mark.parametrize("name", every_figure())
def test_background_is_opaque_so_that_text_is_readable_on_a_dark_page(name):
    buffer = io.BytesIO()
    every_figure()[name]().savefig(buffer)
    corners = np.asarray(Image.open(buffer).convert("RGBA"))[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 255).all()


@pytest.mark.parametrize("suffix", [".svg", ".pdf"])
def test_vector_file_is_saved_by_one_call(tmp_path, suffix):
    figure = every_figure()["strategy_bars"]()
    path = figures.save_vector(figure, tmp_path / f"bars{suffix}")
    content = path.read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    if suffix == ".svg":
        assert b"mean PSNR, dB" in content  # text is not converted to shapes
        assert b"static baseline 22.00 dB" in content  # part of the alternative text
        assert b"<image" not in content
    else:
        assert content.startswith(b"%PDF")
    with pytest.raises(ValueError, match=r"\.svg or \.pdf"):
        figures.save_vector(figure, tmp_path / "bars.png")


# Matrices that simulate complete colour-blindness in linear RGB: Machado, Oliveira and Fernandes 2009, severity 1.
COLOUR_BLINDNESS = {
    "none": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}  # fmt: skip


@pytest.mark.parametrize("kind", COLOUR_BLINDNESS)
def test_any_two_colours_differ_for_colour_blind_readers(kind):
    """A difference of 10 in CIEDE2000 is clearly visible. A difference of 1 is barely noticeable."""
    rgb = np.array([matplotlib.colors.to_rgb(colour) for colour in (*PALETTE, GREY)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = (linear @ np.array(COLOUR_BLINDNESS[kind]).T).clip(0, 1)
    seen = np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)
    lab = rgb2lab(seen)
    difference = deltaE_ciede2000(lab[:, None], lab[None])
    pairs = difference[np.triu_indices(len(lab), 1)]
    assert pairs.min() > 10


def test_frame_strip_shows_the_frames_of_the_given_indices():
    labels, prediction = torch.zeros(2, T, 3, H, W, dtype=torch.uint8)
    for t in range(T):
        labels[t, 0, 0, t], prediction[t, 1, 2, t] = 250, 200
    figure = figures.frame_strip({"label": labels, "prediction": prediction}, [0, 3], title="Two", pixels=4)
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
    assert box == pytest.approx(4 * sheet.shape[1])  # whole screen pixels, so the picture is not blurred


@pytest.mark.parametrize("size", [(16, 16), (128, 256), (32, 64)])
def test_frame_strip_of_any_size_fits_the_page(size):
    figure = figures.frame_strip({"truth": torch.zeros(6, 3, *size)}, range(6), "Six")
    # The smallest scale is one screen pixel per frame pixel, so a strip of wide frames may be wider than the page.
    assert figure.get_figwidth() <= max(9.01, 6 * (size[1] + 2) / 100 + 1)


def test_schedule_holds_one_step_per_epoch():
    (ax,) = figures.schedule({"none": [0, 0], "ramp": [0, 0.5, 1]}, "KL weight", "Title").axes
    steps = ax.patches[1].get_data()
    assert steps.values.tolist() == [0, 0.5, 1]
    assert steps.edges.tolist() == [0.5, 1.5, 2.5, 3.5]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "KL weight")


def test_histories_draw_a_panel_per_column_and_a_line_per_run():
    table = history().assign(mse=[1, 0.1, 0.01], val_psnr_prior=[20, np.nan, 22])
    figure = figures.histories({"a": table, "b": table.iloc[:1]}, baseline=25)
    figure.draw_without_rendering()
    assert [ax.get_yscale() for ax in figure.axes] == ["log", "linear", "linear"]
    assert [len(ax.lines) for ax in figure.axes] == [2, 2, 3]
    assert figure.axes[2].lines[0].get_xydata().tolist() == [[1, 20], [3, 22]]
    assert figure.axes[2].lines[2].get_ydata() == [25, 25]
    assert [text.get_text() for text in figure.legends[0].texts] == ["a", "b", "static baseline"]


@pytest.mark.parametrize("n", [12, 40])
def test_histories_of_many_runs_show_range_best_and_worst(n):
    runs = {f"run {i}": history(4, offset=(7 * i) % n) for i in range(n)}
    best, worst = max(runs, key=lambda r: runs[r]["val_psnr_prior"].max()), "run 0"
    figure = figures.histories(runs)
    names = [text.get_text() for text in figure.legends[0].texts]
    assert len(names) == 3
    assert names[0] == f"all {n} runs, mean and range"
    assert names[1:] == [
        f"{kind} by validation PSNR, prior z, dB: {run}" for kind, run in (("best", best), ("worst", worst))
    ]
    mean, top, bottom = figure.axes[2].lines
    offsets = [run["val_psnr_prior"].iloc[-1] for run in runs.values()]
    assert mean.get_ydata()[-1] == pytest.approx(np.mean(offsets))
    assert top.get_ydata()[-1] == max(offsets)
    assert bottom.get_ydata()[-1] == min(offsets)
    assert len({line.get_color() for line in (mean, top, bottom)}) == 3


def test_histories_of_eleven_runs_have_a_line_each():
    figure = figures.histories({f"run {i}": history(4, i) for i in range(11)})
    assert [len(ax.lines) for ax in figure.axes] == [11] * 3


def test_psnr_per_frame_counts_from_one_and_leaves_perfect_frames_out():
    rising, baseline = np.arange(20.0), np.array([np.inf, *[10.0] * 19])
    figure = figures.psnr_per_frame({"run": rising}, {"static": baseline}, horizon=4)
    static, raw, smooth = figure.axes[0].lines
    assert raw.get_xydata()[[0, -1]].tolist() == [[1, 0], [20, 19]]
    assert smooth.get_ydata()[10] == pytest.approx(rising[3:18].mean())
    assert np.isnan(static.get_ydata()[0])
    labels = [text.get_text() for text in figure.legends[0].texts]
    assert labels == ["static, mean 10.0 dB", "run, mean 9.5 dB", "trained unroll, 4 frames"]


@pytest.mark.parametrize("with_std", [True, False])
def test_strategy_bars_put_the_best_on_top(with_std):
    table = strategies() if with_std else strategies().drop(columns="psnr_std")
    (ax,) = figures.strategy_bars(table, baseline=22).axes
    ax.figure.draw_without_rendering()
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["low", "high"]
    assert ax.lines[0].get_xdata() == [22, 22]
    assert ax.lines[1].get_xdata().tolist() == [20, 25]
    assert [text.get_text() for text in ax.texts] == ["20.00 ± 0.50" if with_std else "20.00", "25.00"]


@pytest.mark.parametrize(
    ("columns", "title"),
    [
        ({}, "Best: high, 25.00 dB; low is 5.00 dB lower (standard deviation over seeds 0.50 dB)"),
        ({"psnr_std": [np.nan, np.nan]}, "Best: high, 25.00 dB; low is 5.00 dB lower"),
    ],
)
def test_title_of_strategy_bars_states_the_result(columns, title):
    assert figures.strategy_bars(strategies(**columns), 22).get_suptitle() == title


def test_title_of_a_single_strategy_compares_it_with_the_baseline():
    figure = figures.strategy_bars(strategies().iloc[:1], 22)
    assert figure.get_suptitle() == "low: -2.00 dB against the static baseline"


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
    figures.psnr_per_frame(runs, {"static": np.full(629, 20.0)}, 16, "Title").savefig(buffer)
    assert len(buffer.getvalue()) < 60_000
