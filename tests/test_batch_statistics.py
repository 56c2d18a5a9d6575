"""Compare the course's network in both modes of batch norm with an independent implementation in plain functions."""

import pytest
import torch
from torch.nn import functional as F

from cvae_lab import CVAE, ModelConfig, RunConfig
from cvae_lab.__main__ import main
from cvae_lab.data import load
from cvae_lab.data.clips import Clip
from cvae_lab.evaluation import predict_clips
from cvae_lab.evaluation.scoring import clip_generator
from cvae_lab.runs import predict as predicting
from cvae_lab.training.checkpoint import is_course, load_model, save
from cvae_lab.training.state import TrainState

FRAMES = 4


def conv(state, name, x, **options):
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2, **options)


def residual(state, name, x):
    y = F.leaky_relu(conv(state, f"{name}.conv2", F.leaky_relu(conv(state, f"{name}.conv1", x), 0.01)), 0.01)
    return y + (conv(state, f"{name}.skip", x) if f"{name}.skip.weight" in state else x)


def depth(state, name, x):
    first, second = f"{name}.block.0", f"{name}.block.1"
    y = F.leaky_relu(conv(state, f"{first}.conv1.0", x), 0.01)
    y = conv(state, f"{first}.conv2", conv(state, f"{first}.depth_conv", y, groups=y.shape[1]))
    x = y + (conv(state, f"{first}.adaptor", x) if f"{first}.adaptor.weight" in state else x)
    wide = conv(state, f"{second}.conv", x)
    half = wide.shape[1] // 2
    return conv(state, f"{second}.conv_out", wide[:, :half] * F.leaky_relu(wide[:, half:], 0.1)) + x


def chain(state, module, x):
    """Apply the blocks of a module in the order of their numbers. The tensor names determine the kind of a block."""
    numbers = sorted({int(key.split(".")[1]) for key in state if key.startswith(f"{module}.")})
    for number in numbers:
        name = f"{module}.{number}"
        if f"{name}.conv1.weight" in state:
            x = residual(state, name, x)
        elif f"{name}.weight" in state:
            x = conv(state, name, x)
        else:
            x = depth(state, name, x)
    return x


def label_features(state, label, batch_statistics):
    name = "label_transformation"
    x = F.pad(label, (3, 3, 3, 3), mode="reflect")
    x = F.conv2d(x, state[f"{name}.1.weight"], state[f"{name}.1.bias"])
    if batch_statistics:
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    else:
        mean, var = state[f"{name}.2.running_mean"], state[f"{name}.2.running_var"]
    scale = state[f"{name}.2.weight"] / (var + 1e-5).sqrt()
    x = (x - mean.view(-1, 1, 1)) * scale.view(-1, 1, 1) + state[f"{name}.2.bias"].view(-1, 1, 1)
    return residual(state, f"{name}.4", x)  # the activation between has slope 1


def loop(state, clip, batch_statistics, seed=0):
    """Predict one clip frame by frame, as the test loop of the course does, with z of `predict_clips`."""
    generator, last, frames = clip_generator(clip, seed), clip.first[None] / 255, []
    for label in clip.labels[1:, None] / 255:
        z = torch.randn(1, 12, 32, 64, generator=generator)
        features = (
            chain(state, "frame_transformation", last),
            label_features(state, label, batch_statistics),
            z,
        )
        last = chain(state, "Generator", chain(state, "Decoder_Fusion", torch.cat(features, 1)))
        frames.append(last)
    return torch.cat(frames).clamp(0, 1)


@pytest.fixture
def model():
    torch.manual_seed(1)
    model = CVAE(ModelConfig.preset("handout"))
    norm = model.label_transformation[2]
    norm.running_mean.normal_(0, 0.2)
    norm.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.fixture
def course_file(model, tmp_path):
    """A checkpoint in the format of the course's trainer."""
    state = model.state_dict()
    content = {"state_dict": state, "optimizer": state, "lr": 1e-3, "tfr": 0.0, "last_epoch": 6}
    torch.save(content, tmp_path / "epoch=6.ckpt")
    return tmp_path / "epoch=6.ckpt"


@pytest.fixture
def clips():
    pictures = torch.randint(0, 256, (2, FRAMES + 1, 3, 32, 64), dtype=torch.uint8)
    return [Clip(f"{k}", shown[0], shown) for k, shown in enumerate(pictures)]


@pytest.mark.parametrize("batch_statistics", [False, True])
@torch.no_grad()
def test_predictions_in_both_modes_equal_an_independent_implementation(
    course_file, model, clips, batch_statistics
):
    loaded, config = load_model(course_file), RunConfig.from_params("", "handout", precision="float32").train
    ours = predict_clips(loaded, clips, config, batch_statistics=batch_statistics)
    other = predict_clips(loaded, clips, config, batch_statistics=not batch_statistics)
    for clip, frames, wrong in zip(clips, ours, other, strict=True):
        right = loop(model.state_dict(), clip, batch_statistics)
        torch.testing.assert_close(frames, right, atol=1e-4, rtol=0)
        assert (wrong - right).abs().max() > 1e-2


def test_predictions_are_bit_equal_after_a_round_trip_to_the_course_s_layout(model, clips, tmp_path):
    """Save the network of a run in the course's format and load it; then save and load it again."""
    config = RunConfig.from_params("tiny", "handout", precision="float32", ema=0.0)
    state = TrainState.create(config.model, config.train)
    state.model.load_state_dict(model.state_dict())
    save(tmp_path / "best.pt", state, config)
    versions = [load_model(tmp_path / "best.pt")]
    for name in ("course.ckpt", "again.ckpt"):
        torch.save({"state_dict": versions[-1].state_dict(), "lr": 1e-3}, tmp_path / name)
        assert is_course(tmp_path / name)
        versions.append(load_model(tmp_path / name))
    first, *others = [predict_clips(version, clips, config.train) for version in versions]
    assert all(torch.equal(a, b) for frames in others for a, b in zip(first, frames, strict=True))
    assert not is_course(tmp_path / "best.pt")


def printed_means(text):
    """Return the mean of each column of the table that `predict` prints."""
    lines = text.splitlines()
    head = next(line for line in lines if line.startswith("clip"))
    mean = next(line for line in lines if line.startswith("mean"))
    names = [head[start : start + 17].strip() for start in range(6, len(head), 17)]
    return dict(zip(names, map(float, mean.split()[1:]), strict=True))


@pytest.fixture
def no_pictures(monkeypatch):
    for name in ("write_clip_gif", "write_clip_player"):
        monkeypatch.setattr(predicting, name, lambda *_: None)


def test_predict_prints_the_scores_of_a_course_checkpoint_in_both_modes(
    course_file, model, capsys, no_pictures, data_folder
):
    assert main(["predict", str(course_file), "--data", str(data_folder), "--output", "linear"]) == 0
    text = capsys.readouterr().out
    means = printed_means(text)
    (clip,) = [clip for clip in load(str(data_folder)).tests if clip.answer is not None]
    for column, mode in (("plain", False), ("batch statistics", True)):
        with torch.no_grad():
            error = (loop(model.state_dict(), clip, mode) - clip.answer[1:] / 255).square().mean((1, 2, 3))
        assert means[column] == pytest.approx(float((-10 * error.log10()).mean()), abs=0.011)
    assert list(means) == ["batch statistics", "plain", "corrected", "static baseline"]
    assert "(corrected prediction)" in text
    assert f"{means['batch statistics'] - means['plain']:+.1f}" in text


def test_the_course_s_mode_is_written_if_it_is_asked_for(
    course_file, model, capsys, no_pictures, data_folder
):
    command = ["predict", str(course_file), "--data", str(data_folder), "--csv", "2023", "--batch-statistics"]
    assert main([*command, "--output", "linear"]) == 0
    assert list(printed_means(capsys.readouterr().out)) == ["plain", "batch statistics", "static baseline"]
    folder = course_file.parent / "epoch=6-test-batch-statistics"
    for clip in load(str(data_folder)).tests:
        written = torch.tensor(
            [float(word) for word in (folder / f"pred{clip.name}.csv").read_text().split()]
        )
        with torch.no_grad():
            right = loop(model.state_dict(), clip, batch_statistics=True)
        torch.testing.assert_close(
            written.view(-1, 3, 32, 64)[1:],
            right,
            atol=0.0025,
            rtol=0,  # values are multiples of 1/255
        )


def test_the_course_s_mode_is_refused_for_a_network_without_batch_norm(tmp_path, capsys):
    config = RunConfig.from_params("tiny", "compact", width=8, latents=2)
    save(tmp_path / "best.pt", TrainState.create(config.model, config.train), config)
    assert main(["predict", str(tmp_path / "best.pt"), "--data", "tiny", "--batch-statistics"]) == 1
    assert "without batch norm (preset compact)" in capsys.readouterr().err
