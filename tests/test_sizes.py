"""Frames of 64 x 128 and 128 x 256 pixels: data, training, prediction and the files that show a prediction."""

import numpy as np
import pytest
import torch
from PIL import Image

from cvae_lab import CVAE, ModelConfig, RunConfig, load_model
from cvae_lab.__main__ import main
from cvae_lab.bench import flops_per_frame
from cvae_lab.bench import sizes as bench_sizes
from cvae_lab.data import DataError, Dataset, Video, load, read_folder, write_folder
from cvae_lab.data.clips import Clip
from cvae_lab.data.pixels import to_float
from cvae_lab.data.synthetic import dataset as synthetic
from cvae_lab.data.synthetic import drawing, motion, skeleton
from cvae_lab.evaluation.corrections import correction_weights
from cvae_lab.rollout import predict, reference_predict
from cvae_lab.runs.folder import RunFolder, train_run
from cvae_lab.runs.predict import predict_run
from cvae_lab.training import TrainState, fit
from cvae_lab.views import clip_views, figures
from cvae_lab.views.sprites import SHEET, sheet_layout

HEIGHTS = (32, 64, 128)
SMALL = {"width": 8, "latents": 2, "device": "cpu", "precision": "float32"}


def random_pictures(n, size, seed=0):
    draws = torch.Generator().manual_seed(seed)
    levels = torch.randint(0, 4, (n, 1, *size), generator=draws, dtype=torch.uint8)
    return (85 * levels).repeat(1, 3, 1, 1)  # few colours, because choosing a palette from many takes seconds


def random_data(height, frames=20):
    """Return a data set of random pixels with two test clips of 6 frames."""
    size = (height, 2 * height)
    videos = [Video(random_pictures(n, size), random_pictures(n, size, 1), name=name) for n, name in
              ((frames, "train"), (6, "val"))]  # fmt: skip
    answers = [random_pictures(6, size, 2 + k) for k in range(2)]
    clips = tuple(Clip(str(k), x[0].clone(), random_pictures(6, size, 8), x) for k, x in enumerate(answers))
    return Dataset("random", *videos, clips)


@pytest.fixture
def folder(tmp_path):
    """Return a folder with random pictures of 64 x 128 pixels."""
    write_folder(random_data(64), tmp_path / "data")
    return tmp_path / "data"


# --- data ---


@pytest.mark.parametrize("height", HEIGHTS)
def test_a_data_set_of_any_size_is_unchanged_after_writing_and_reading(tmp_path, height):
    data = random_data(height)
    write_folder(data, tmp_path / "data")
    read = load(tmp_path / "data", height=height, progress=False)
    assert torch.equal(read.train.frames, data.train.frames)
    assert torch.equal(read.train.labels, data.train.labels)
    assert all(torch.equal(a.answer, b.answer) for a, b in zip(read.tests, data.tests, strict=True))


def test_larger_pictures_are_reduced_as_pillow_reduces_them(folder):
    read = load(folder, height=32, progress=False).train.frames
    for number in (0, 7):
        with Image.open(folder / f"train/train_img/{number}.png") as picture:
            expected = np.asarray(picture.resize((64, 32), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(read[number].permute(1, 2, 0), expected)


def test_each_size_of_a_folder_has_its_own_cache(folder):
    shapes = [load(folder, height=height, progress=False).train.frames.shape[-2:] for height in (64, 32, 64)]
    assert shapes == [(64, 128), (32, 64), (64, 128)]


def test_pictures_that_are_too_small_are_refused_in_one_line(folder):
    with pytest.raises(
        DataError, match=r"0\.png: 64 x 128 pixels .* are too small for frames of 128 x 256"
    ) as found:
        load(folder, height=128, progress=False)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("size", "expected"), [((64, 128), (64, 128)), ((48, 96), (32, 64)), ((16, 40), (32, 64))]
)
def test_without_a_height_the_size_of_the_pictures_is_kept_if_it_is_a_known_one(tmp_path, size, expected):
    video = Video(random_pictures(4, size), random_pictures(4, size, 1), name="val")
    write_folder(
        Dataset("v", Video(*random_pictures(0, size).expand(2, 0, 3, *size)), video, ()), tmp_path / "d"
    )
    assert load(tmp_path / "d", height=None, progress=False).val.frames.shape[-2:] == expected
    assert read_folder(tmp_path / "d", size=None, progress=False).val.labels.shape[-2:] == expected


def test_check_reports_the_pictures_at_their_own_size(folder, capsys, caplog):
    """The static PSNR of the validation video is computed here from the files."""
    assert main(["check", str(folder)]) == 0
    table = capsys.readouterr().out
    pictures = [np.asarray(Image.open(folder / f"val/val_img/{k}.png"), float) / 255 for k in range(6)]
    expected = np.mean([-10 * np.log10(((x - pictures[0]) ** 2).mean()) for x in pictures[1:]])
    row = next(line for line in table.splitlines() if line.strip().startswith("val"))
    assert float(row.split()[-3]) == pytest.approx(expected, abs=0.006)
    assert "resized" not in caplog.text
    main(["check", str(folder), "--height", "32"])
    assert "resized from 128 x 64 to 64 x 32 pixels" in caplog.text


# --- the synthetic data set ---


@pytest.mark.parametrize("height", [64, 128])
def test_synthetic_frames_of_every_size_show_the_same_scene(height):
    """Larger frames, averaged down to 32 x 64, equal the default frames, except for rounding at the edges of shapes."""
    recording = synthetic.Recording(24, (0, 0, 0))
    small, large = (synthetic._render_recording(recording, height=h) for h in (32, height))
    assert large[0].shape == large[1].shape == (24, 3, height, 2 * height)
    for reduced, expected in zip(large, small, strict=True):
        reduced = torch.nn.functional.avg_pool2d(reduced.float(), height // 32)
        difference = (reduced - expected).abs()
        assert difference.mean() < 1
        assert (difference > 40).float().mean() < 1e-4
        # An enlarged copy of the small frames would be equal everywhere.
        assert difference.max() > 2


def test_a_large_figure_has_detail_that_an_enlarged_one_does_not_have():
    recording = synthetic.Recording(4, (0, 0, 0))
    small, large = (synthetic._render_recording(recording, height=h)[0].float() for h in (32, 64))
    enlarged = small.repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert (large - enlarged).abs().max() > 40


def test_a_height_that_is_not_a_multiple_of_32_is_refused():
    places = skeleton.joints(motion.pose()[None])
    with pytest.raises(ValueError, match="height is 48; give a multiple of 32"):
        drawing.frames(places, np.zeros(1), np.ones(1), 48)


def test_the_synthetic_set_is_written_at_the_chosen_height(tmp_path, capsys):
    assert main(["synthetic", str(tmp_path / "d"), "--size", "tiny", "--height", "64"]) == 0
    assert "64 x 128 pixels" in capsys.readouterr().out
    with Image.open(tmp_path / "d/train/train_img/5.png") as picture:
        expected = load("tiny", height=64, progress=False).train.frames[5]
        np.testing.assert_array_equal(np.asarray(picture), expected.permute(1, 2, 0))


# --- the network ---


@pytest.mark.parametrize("height", [64, 128])
def test_the_fast_prediction_equals_the_literal_loop(height):
    torch.manual_seed(1)
    model = CVAE(ModelConfig(height=height, width=8, latents=2)).eval()
    with torch.no_grad():
        for value in model.parameters():  # a new block would equal its skip connection
            value += 0.03 * torch.randn_like(value)
    first, labels = torch.rand(2, 3, height, 2 * height), torch.rand(2, 5, 3, height, 2 * height)
    fast, literal = (
        way(model, first, labels, torch.Generator().manual_seed(3)) for way in (predict, reference_predict)
    )
    assert fast.std() > 0.01
    torch.testing.assert_close(fast, literal, atol=2e-5, rtol=0)


@pytest.mark.parametrize("height", [64, 128])
def test_a_short_training_lowers_the_loss(height):
    data = load("tiny", height=height, progress=False)
    short = Dataset("short", Video(data.train.frames[:24], data.train.labels[:24], (), "train"), data.val, ())
    config = RunConfig.from_params("tiny", height=height, n_frames=4, batch_size=4, epochs=6, eval_every=9,
                                   kl_strategy="none", holdout=0.0, **SMALL)  # fmt: skip
    short = Dataset("short", short.train, Video(data.val.frames[:4], data.val.labels[:4], (), "val"), ())
    history = list(fit(TrainState.create(config.model, config.train), short, config.train))
    assert history[-1]["mse"] < 0.7 * history[0]["mse"]
    assert history[-1]["skipped"] == 0


@pytest.mark.parametrize(("model", "frames"), [(64, 32), (32, 64), (128, 64)])
def test_frames_of_another_size_than_the_model_are_refused_in_one_line(model, frames):
    network = CVAE(ModelConfig(height=model, width=8, latents=2))
    with pytest.raises(ValueError, match=f"The frames have {frames} x {2 * frames} pixels") as found:
        predict(network, torch.rand(1, 3, frames, 2 * frames), torch.rand(1, 3, 3, frames, 2 * frames))
    assert f"read the data with height = {model}" in str(found.value)
    assert "\n" not in str(found.value)


def test_training_refuses_a_data_set_of_another_size_in_one_line():
    config = RunConfig.from_params("x", height=64, n_frames=4, batch_size=2, **SMALL)
    with pytest.raises(ValueError, match=r"The frames have 32 x 64 pixels .* built for 64 x 128"):
        next(fit(TrainState.create(config.model, config.train), random_data(32), config.train))


def test_the_network_of_the_course_refuses_other_sizes_in_one_line(capsys, tmp_path):
    command = [
        "train",
        str(tmp_path / "r"),
        "--data",
        "tiny",
        "-p",
        "preset",
        "handout",
        "-p",
        "height",
        "64",
    ]
    assert main(command) == 1
    assert capsys.readouterr().err == (
        "cvae-lab: preset handout is the course's network and has no option height; use preset compact.\n"
    )


# --- runs and files ---


@pytest.fixture
def run(tmp_path, folder):
    """Return a run that was trained on `folder` at 64 x 128 pixels."""
    config = RunConfig.from_params(str(folder), height=64, n_frames=4, epochs=1, eval_every=1, **SMALL)
    train_run(tmp_path / "run", config)
    return RunFolder(tmp_path / "run")


def test_a_run_at_64_x_128_writes_every_file_in_this_size(run, folder):
    assert run.result["psnr_mean"] > 0
    assert run.predictions()["0"].shape == (5, 3, 64, 128)
    lines = []
    out = predict_run([run.path], str(folder), log=lines.append)
    assert {file.name for file in out.iterdir()} == {
        "clip0.gif", "clip0.html", "clip1.gif", "clip1.html", "predictions.npz",
    }  # fmt: skip
    assert any("formats have frames of 32 x 64 pixels, not 64 x 128" in line for line in lines)
    with np.load(out / "predictions.npz") as written, np.load(run.path / "predictions.npz") as own:
        assert written["0"].shape == (6, 3, 64, 128)
        plain = predict_run([run.path], str(folder), log=lines.append, plain=True) / "predictions.npz"
        with np.load(plain) as without_corrections:
            np.testing.assert_array_equal(without_corrections["0"][1:], own["0"])
            first = load(folder, height=64, progress=False).tests[0].first
            np.testing.assert_array_equal(without_corrections["0"][0], first)


def test_a_checkpoint_and_smaller_pictures_are_refused_in_one_line(run, tmp_path, capsys):
    write_folder(random_data(32), tmp_path / "small")
    assert main(["predict", str(run.path), "--data", str(tmp_path / "small")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "32 x 64 pixels (height x width) are too small for frames of 64 x 128" in error


def test_checkpoints_of_different_heights_are_not_averaged(run, folder, tmp_path, capsys):
    config = RunConfig.from_params(str(folder), height=32, n_frames=4, epochs=1, eval_every=1, **SMALL)
    train_run(tmp_path / "other", config)
    assert main(["predict", str(run.path), str(tmp_path / "other"), "--data", str(folder)]) == 1
    assert "different heights" in capsys.readouterr().err


def test_a_run_does_not_start_from_weights_of_another_height(run, folder, tmp_path, capsys):
    command = ["train", str(tmp_path / "n"), "--data", str(folder), "-p", "init_from", str(run.path)]
    assert main([*command, "-p", "width", "8", "-p", "latents", "2"]) == 1
    assert (
        "are those of another network than the network of this run; give -p height 64"
        in capsys.readouterr().err
    )
    assert load_model(run.path / "best.pt").config.height == 64


@pytest.mark.parametrize(("height", "panel"), [(32, 256), (64, 256), (128, 256)])
def test_gifs_of_every_size_have_panels_of_the_same_width(tmp_path, height, panel):
    data = random_data(height)
    clip_views.write_clip_gif(tmp_path / "clip.gif", data.tests[0], to_float(data.val.frames[1:]))
    clip_views.write_grid_gif(tmp_path / "grid.gif", data.tests, [to_float(data.val.frames[1:])] * 2)
    for name, width in (("clip", panel), ("grid", panel // 2)):
        with Image.open(tmp_path / f"{name}.gif") as picture:
            captions = picture.width - 3 * (width + clip_views.MARGIN)
            assert 20 < captions < 80  # the column of clip names
            assert picture.height >= width // 2


def test_a_reduced_gif_shows_the_mean_of_the_pixels(tmp_path):
    stripes = torch.zeros(3, 128, 256, dtype=torch.uint8)
    stripes[:, :, ::2] = 200
    frames = stripes.expand(4, -1, -1, -1)
    clip = Clip("0", stripes, frames, frames)
    clip_views.write_grid_gif(tmp_path / "grid.gif", [clip], [frames[1:].float() / 255])
    with Image.open(tmp_path / "grid.gif") as picture:
        row = np.asarray(picture.convert("RGB"))[clip_views.CAPTION + 20, -100:-20, 0]
    assert np.abs(row.astype(int) - 100).max() <= 2


@pytest.mark.parametrize("height", HEIGHTS)
def test_a_strip_of_frames_is_never_wider_than_the_other_figures(height):
    frames = torch.rand(6, 3, height, 2 * height)
    for pixels in (None, 2):
        figure = figures.frame_strip({"label": frames, "frame": frames}, range(6), "t", pixels=pixels)
        assert figure.get_figwidth() <= figures.WIDTH + 0.01


def test_sprite_sheets_of_a_long_large_clip_are_small_enough_for_phones():
    columns, per_sheet = sheet_layout(629, 128, 256)
    assert columns * 256 <= SHEET
    assert per_sheet // columns * 128 <= SHEET


def test_the_first_frame_correction_has_on_average_the_same_weight_in_every_size():
    """Labels of the same poses, drawn in three sizes."""
    poses = motion.routine(40, np.random.default_rng(0))
    places = skeleton.joints(poses)
    lost = np.zeros(places.shape[:2], bool)
    weights = [
        correction_weights(torch.from_numpy(drawing.labels(places, lost, h)).float() / 255) for h in HEIGHTS
    ]
    assert weights[0].min() < 0.5
    for other in weights[1:]:
        assert (other - weights[0]).abs().mean() < 0.05
        assert (other - weights[0]).abs().max() < 0.3


# --- measurements ---


def test_bench_measures_cost_memory_and_psnr_of_a_size():
    """A frame of 64 x 128 has 4 times the pixels, and its network one level more."""
    (row,) = bench_sizes.sizes((32,), epochs=1, repeats=1)
    model = CVAE(ModelConfig())
    assert row.parameters == sum(weights.numel() for weights in model.parameters())
    assert min(row.training, row.rollout) > 0
    assert row.peak_mib > 50
    truth = [to_float(clip.answer) for clip in load("tiny", progress=False).tests]
    static = [-10 * (x[1:] - x[:1]).square().mean((1, 2, 3)).log10() for x in truth]
    assert row.static == pytest.approx(float(torch.cat(static).mean()), abs=1e-3)
    assert row.psnr > 5
    assert len(str(row)) == len(bench_sizes.HEAD.split("   (")[0])
    larger = flops_per_frame(CVAE(ModelConfig(height=64))) / 1e9
    assert 2 < larger / row.gflop < 6
