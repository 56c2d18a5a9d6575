"""Pretrained weights: their file, their use as initial weights, the record, and the command that makes them."""

import json
import tomllib
from pathlib import Path

import pytest
import safetensors.torch
import torch
from skimage.metrics import peak_signal_noise_ratio as skimage_psnr

from cvae_lab import CVAE, ModelConfig, RunConfig, load_model
from cvae_lab.config import ConfigError
from cvae_lab.data import load
from cvae_lab.models import pretrained
from cvae_lab.models.pretrained import weights_file
from cvae_lab.models.weight_files import CheckpointError
from cvae_lab.runs import pretraining as making
from cvae_lab.runs.studies import plan
from cvae_lab.training import loop
from cvae_lab.training.checkpoint import create_state

ROOT = Path(__file__).parents[1]
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
    with pytest.raises(CheckpointError, match=r"128x256 pixels; available sizes: 32x64\."):
        load_model("pretrained-128x256")
    with pytest.raises(CheckpointError, match=r"64x128 pixels; available sizes: 32x64\."):
        create_state(RunConfig.from_params("tiny", height=64, init_from="pretrained"))


def test_a_run_starts_from_the_pretrained_weights(folder):
    state = create_state(RunConfig.from_params("tiny", init_from="pretrained", **SMALL))
    expected = load_model("pretrained").state_dict()
    for model in (state.model, state.average.module):
        assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_another_network_is_refused_with_the_options_that_fit(folder):
    with pytest.raises(
        CheckpointError, match=r"another network than the network of this run; give -p width 8 -p latents 4\."
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


def test_a_study_keeps_the_name_pretrained_and_makes_other_paths_absolute(folder, tmp_path):
    jobs = plan(
        "tiny", tmp_path / "runs", {"a": {"init_from": "pretrained"}, "b": {"init_from": "other"}}, [0], {}
    )
    assert jobs[0].params["init_from"] == "pretrained"
    assert Path(jobs[1].params["init_from"]).is_absolute()


def test_a_run_trains_on_the_wanted_number_of_frames_and_holds_out_the_same_segments():
    data = load("tiny", progress=False)
    parts = [loop._held_out(data, RunConfig.from_params("tiny", train_frames=n).train) for n in (0, 30)]
    assert [len(train) for train, _ in parts] == [172, 30]
    for all_frames, few in zip(parts[0][1], parts[1][1], strict=True):
        assert torch.equal(all_frames.answer, few.answer)


def test_the_packaged_files_include_the_weights():
    package_data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "cvae_lab.models.pretrained" in package_data["packages"]
    assert "*.safetensors" in package_data["package-data"]["cvae_lab.models.pretrained"]


def test_the_demo_prints_the_score_of_the_prediction_and_writes_player_and_gif(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(making, "load", lambda name, height: load("tiny", height=height))
    settings = RunConfig.from_params
    monkeypatch.setattr(making.RunConfig, "from_params", lambda *a, **k: settings(*a, **{**k, **SMALL}))
    prediction, baseline = making.demo(tmp_path / "demo")
    clips = load("tiny", progress=False).tests
    static = [
        skimage_psnr(clip.answer[t].numpy(), clip.answer[0].numpy()) for clip in clips for t in range(1, 96)
    ]
    assert baseline == pytest.approx(sum(static) / len(static), abs=1e-2)
    assert prediction != baseline
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {"player.html", "predictions.gif"}


@pytest.mark.parametrize("file", sorted(pretrained.FOLDER.glob("*.safetensors")), ids=lambda file: file.stem)
def test_the_committed_weights_have_a_record_and_are_small_enough(file):
    record = json.loads(file.with_suffix(".json").read_text())
    assert file.stat().st_size == record["bytes"] <= 2_000_000
    assert {"data", "command", "hours", "commit", "torch", "scores"} <= record.keys()
    model = load_model(file)
    assert file.stem == f"compact-{model.config.height}x{2 * model.config.height}"
    assert all(scores["psnr"] > scores["baseline_static"] for scores in record["scores"].values())
