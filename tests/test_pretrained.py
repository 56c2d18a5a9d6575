"""Pretrained weights: their file, their use as initial weights, the record, and the command that makes them."""

import json

import pytest
import safetensors.torch
import torch

from cvae_lab import CVAE, ModelConfig, RunConfig, load_model
from cvae_lab.config import ConfigError
from cvae_lab.models import pretrained
from cvae_lab.models.pretrained import weights_file
from cvae_lab.models.weight_files import CheckpointError
from cvae_lab.runs import pretrain as making
from cvae_lab.training.checkpoint import create_state

SMALL = {"width": 8, "latents": 4}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A package folder with the file of a small network, and the network's weights in full precision."""
    torch.manual_seed(0)
    model = CVAE(ModelConfig(**SMALL))
    file = tmp_path / "compact-32x64.safetensors"
    making.write_weights(file, model.state_dict(), RunConfig.from_params("varied", **SMALL))
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    return tmp_path, model.state_dict()


def test_the_file_holds_the_weights_rounded_to_half_precision(folder):
    loaded = load_model("pretrained").state_dict()
    assert loaded.keys() == folder[1].keys()
    for name, value in folder[1].items():
        rounded = torch.from_numpy(value.numpy().astype("float16").astype("float32"))
        assert torch.equal(loaded[name], rounded)
    stored = safetensors.torch.load_file(folder[0] / "compact-32x64.safetensors")
    assert all(value.dtype == torch.float16 for value in stored.values())


def test_the_name_with_a_size_gives_the_same_file(folder):
    assert (
        weights_file("pretrained-32x64")
        == weights_file("pretrained")
        == folder[0] / "compact-32x64.safetensors"
    )


def test_a_size_without_weights_is_refused_and_the_sizes_are_named(folder):
    with pytest.raises(CheckpointError, match=r"128x256 pixels; sizes: 32x64\."):
        load_model("pretrained-128x256")
    with pytest.raises(CheckpointError, match=r"64x128 pixels; sizes: 32x64\."):
        create_state(RunConfig.from_params("tiny", height=64, init_from="pretrained"))


def test_a_run_starts_from_the_pretrained_weights(folder):
    state = create_state(RunConfig.from_params("tiny", init_from="pretrained", **SMALL))
    expected = load_model("pretrained").state_dict()
    for model in (state.model, state.average.module):
        assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_another_network_is_refused_with_the_options_that_fit(folder):
    with pytest.raises(
        CheckpointError, match=r"another network than this run's; give -p width 8 -p latents 4\."
    ):
        create_state(RunConfig.from_params("tiny", init_from="pretrained"))


def test_weights_above_the_size_limit_are_refused_before_a_file_is_written(tmp_path):
    file = tmp_path / "large.safetensors"
    with pytest.raises(ConfigError, match=r"large\.safetensors would have \d+ bytes, more than 2000000"):
        making.write_weights(file, {"a": torch.zeros(1_000_001)}, RunConfig.from_params("varied"))
    assert not file.exists()


def test_the_two_stages_share_the_time_and_have_about_the_same_number_of_predicted_frames():
    config = RunConfig.from_params("varied", minutes=8.0, batch_size=110)
    short, long = making.stages(config)
    assert short.minutes + long.minutes == 8.0
    assert long.batch_size * (long.n_frames - 1) <= short.batch_size * (short.n_frames - 1)
    assert (short.n_frames, long.n_frames) == (4, making.LONG_FRAMES)


@pytest.mark.parametrize("file", sorted(pretrained.FOLDER.glob("*.safetensors")), ids=lambda file: file.stem)
def test_the_committed_weights_have_a_record_and_are_small_enough(file):
    record = json.loads(file.with_suffix(".json").read_text())
    assert file.stat().st_size == record["bytes"] <= 2_000_000
    assert {"data", "command", "hours", "commit", "torch", "scores"} <= record.keys()
    model = load_model(file)
    assert file.stem == f"compact-{model.config.height}x{2 * model.config.height}"
    assert all(scores["psnr"] > scores["baseline_static"] for scores in record["scores"].values())
