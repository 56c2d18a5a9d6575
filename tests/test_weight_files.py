"""Checkpoints with other keys, prefixes, widths and formats, and the errors for files that are not checkpoints."""

import argparse
import collections
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cvae_lab import CVAE, ModelConfig
from cvae_lab.data import Clip
from cvae_lab.evaluation.output_activation import choose_output
from cvae_lab.models.weights import check_weights
from cvae_lab.rollout import predict
from cvae_lab.training import CheckpointError, load_model

WIDTHS = {"width": 16, "label_width": 8, "latents": 4, "decoder_width": 16}
SMALL = ModelConfig.preset("handout", **WIDTHS)


@pytest.fixture
def weights():
    return CVAE(SMALL).state_dict()


@pytest.fixture
def logged():
    """A list, initially empty, that collects the log lines of `load_model`."""
    return []


def saved(tmp_path, content, name="epoch=9.ckpt"):
    path = tmp_path / name
    torch.save(content, path)
    return path


def loaded(path, logged):
    return load_model(path, log=logged.append)


def assert_holds(model, weights):
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net", None])
def test_weights_are_found_at_the_top_level_and_under_the_usual_names(tmp_path, weights, logged, key):
    other = CVAE(SMALL).state_dict()
    content = (
        weights if key is None else {"epoch": 3, "optimizer": other, key: weights, "config": {"lr": 1e-3}}
    )
    model = loaded(saved(tmp_path, content), logged)
    assert_holds(model, weights)
    assert model.config == SMALL
    assert logged == []


@pytest.mark.parametrize(
    ("rename", "prefix"),
    [
        (lambda name: f"module.{name}", "module. (DataParallel)"),
        (lambda name: f"model.{name}", "model. (a wrapping class)"),
        (lambda name: f"_orig_mod.{name}", "_orig_mod. (torch.compile)"),
        (lambda name: f"_orig_mod.module.{name}", "_orig_mod. (torch.compile) and module. (DataParallel)"),
        (lambda name: name.replace("Generator.", "Generator._orig_mod."), "_orig_mod. (torch.compile)"),
    ],
)
def test_prefixes_of_wrapper_classes_are_removed_and_logged(tmp_path, weights, logged, rename, prefix):
    path = saved(tmp_path, {"state_dict": {rename(name): value for name, value in weights.items()}})
    assert_holds(loaded(path, logged), weights)
    assert logged == [f"{path}: removed the prefix {prefix} from the names of the tensors."]


def test_two_networks_with_the_same_names_are_refused(tmp_path, weights, logged):
    both = weights | {f"module.{name}": value for name, value in weights.items()}
    with pytest.raises(CheckpointError, match="two networks"):
        loaded(saved(tmp_path, both), logged)


HARMLESS = {
    "best_psnr": np.float64(28.667),
    "epoch": np.int64(3),
    "flag": np.bool_(True),
    "args": argparse.Namespace(lr=1e-3, DR=Path("data"), seen=collections.deque([1, 2], maxlen=5)),
    "curve": collections.defaultdict(list, {"train": [0.1, 0.2]}),
    "order": collections.OrderedDict(a=1),
    "losses": collections.deque([0.5, 0.25], maxlen=10),
    "where": Path("runs/best.pt"),
}


@pytest.mark.parametrize("name", HARMLESS)
@pytest.mark.parametrize("legacy", [False, True])
def test_harmless_values_beside_the_weights_are_read(tmp_path, weights, logged, name, legacy):
    path = tmp_path / "epoch=9.ckpt"
    content = {"state_dict": weights, name: HARMLESS[name]}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    assert_holds(loaded(path, logged), weights)


@pytest.mark.parametrize("legacy", [False, True])
def test_the_error_for_a_whole_pickled_module_has_two_lines_that_convert_it(tmp_path, logged, legacy):
    path = tmp_path / "whole.pt"
    torch.save(CVAE(SMALL).Generator, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match="whole pickled module") as error:
        loaded(path, logged)
    _, *lines = str(error.value).splitlines()
    assert [line.strip() for line in lines] == [
        "model = torch.load('whole.pt', weights_only=False)",
        "torch.save(model.state_dict(), 'whole_weights.pt')",
    ]


class Trap:
    """Object that creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("legacy", [False, True])
def test_an_object_that_runs_code_is_refused_without_running_it(tmp_path, weights, logged, legacy):
    path, written = tmp_path / "bad.pt", tmp_path / "written"
    content = {"state_dict": weights, "extra": Trap(written)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        CheckpointError, match=r"bad\.pt holds an object of type _?io\.open, which could run code"
    ):
        loaded(path, logged)
    assert not written.exists()


def zip_around(path, weights):
    torch.save(weights, path.with_name("inner.ckpt"))
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(path.with_name("inner.ckpt"), "inner.ckpt")


def torchscript(path, weights):
    # The layout of a file of torch.jit.save, which newer versions of torch deprecate.
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "code/__torch__.py", "constants.pkl", "version"):
            archive.writestr(f"model/{name}", b"")


def truncated(fraction, **options):
    def write(path, weights):
        torch.save(weights, path, **options)
        content = path.read_bytes()
        path.write_bytes(content[: int(fraction * len(content))])

    return write


def flipped(path, weights):
    torch.save(weights, path)
    content = bytearray(path.read_bytes())
    place = content.find(weights["Generator.0.block.0.conv1.0.weight"].numpy().tobytes()) + 7
    content[place] ^= 1
    path.write_bytes(bytes(content))


def compressed(path, weights):
    """Compress the archive of a checkpoint. A small compressed file can have a very large unpacked size."""
    torch.save(weights | {"zeros": torch.zeros(10**6)}, path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)


REFUSED = {
    "empty": (lambda path, weights: path.write_bytes(b""), "is empty"),
    "HTML page": (lambda path, weights: path.write_text("\n<!DOCTYPE html><html>no access</html>"), "an HTML page"),
    "Git LFS pointer": (
        lambda path, weights: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "Git LFS pointer",
    ),
    "zip around the file": (zip_around, r"zip archive.*holds inner\.ckpt.*unpack it"),
    "compressed like a zip bomb": (compressed, "is compressed, unlike the files of torch.save"),
    "gzip": (lambda path, weights: path.write_bytes(b"\x1f\x8b\x08\x00abc"), "gzip archive"),
    "TorchScript": (torchscript, "TorchScript"),
    "first half": (truncated(0.5), "incomplete"),
    "without its end": (truncated(0.99), "incomplete"),
    "old format, first half": (truncated(0.5, _use_new_zipfile_serialization=False), "incomplete"),
    "flipped bit": (flipped, "the checksum of its record .* is wrong"),
    "text": (lambda path, weights: path.write_text("0.1 0.2 0.3"), "not a checkpoint"),
    "random bytes": (lambda path, weights: path.write_bytes(bytes(range(256)) * 40), "not a checkpoint"),
    "pickle of a list": (lambda path, weights: path.write_bytes(pickle.dumps([1])), "not a checkpoint"),
    "list": (lambda path, weights: torch.save([1], path), "contains a list"),
    "one tensor": (lambda path, weights: torch.save(torch.zeros(3), path), "contains a Tensor"),
    "no weights": (lambda path, weights: torch.save({"epoch": 1, "loss": 0}, path), "no weights under .*epoch"),
    "empty dict": (lambda path, weights: torch.save({}, path), "it contains nothing"),
    "state_dict None": (lambda path, weights: torch.save({"state_dict": None}, path), "the entry state_dict is None"),
    "state_dict empty": (lambda path, weights: torch.save({"state_dict": {}}, path), "the entry state_dict is a dict"),
    "folder": (lambda path, weights: path.mkdir(), "not a regular file"),
    "missing": (lambda path, weights: None, "There is no checkpoint"),
    "other network": (lambda path, weights: torch.save({"fc.weight": torch.zeros(2, 2)}, path), "the course's network"),
    "missing tensor": (
        lambda path, weights: torch.save({k: v for k, v in weights.items() if "depth_conv.bias" not in k}, path),
        r"has no tensor frame_transformation\.1\.block\.0\.depth_conv\.bias",
    ),
    "another shape": (
        lambda path, weights: torch.save(weights | {"Generator.7.bias": torch.zeros(4)}, path),
        r"Generator\.7\.bias has shape \(4,\), not \(3,\)",
    ),
    "extra tensor": (
        lambda path, weights: torch.save(weights | {"Extra.weight": torch.zeros(4)}, path),
        r"a tensor Extra\.weight, which the network does not have",
    ),
    "NaN": (
        lambda path, weights: torch.save(weights | {"Generator.7.bias": torch.tensor([0.0, float("nan"), 0.0])}, path),
        r"its tensor Generator\.7\.bias contains NaN",
    ),
    "infinity": (
        lambda path, weights: torch.save(weights | {"Generator.7.bias": torch.tensor([0.0, float("inf"), 0.0])}, path),
        r"its tensor Generator\.7\.bias contains infinity",
    ),
    "complex values": (
        lambda path, weights: torch.save(weights | {"Generator.7.bias": torch.zeros(3, dtype=torch.complex64)}, path),
        r"Generator\.7\.bias has values of type torch\.complex64",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_a_file_that_cannot_be_used_is_refused_in_one_sentence(tmp_path, weights, logged, kind):
    write, message = REFUSED[kind]
    path = tmp_path / "model.pt"
    write(path, weights)
    with pytest.raises(CheckpointError, match=message) as error:
        loaded(path, logged)
    text = str(error.value)
    assert str(path) in text
    assert len(text.splitlines()) == 1
    assert len(text) < len(str(path)) + 250
    assert logged == []


def test_safetensors_are_read(tmp_path, weights, logged):
    path = tmp_path / "model.safetensors"
    save_file(weights, path)
    assert_holds(loaded(path, logged), weights)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="safetensors"):
        loaded(path, logged)


@pytest.mark.parametrize(
    "widths", [WIDTHS, {"width": 100, "label_width": 24, "latents": 8, "decoder_width": 96}, {}]
)
def test_other_widths_of_the_course_s_network_are_inferred_from_the_tensors(tmp_path, logged, widths):
    """The widths are F_dim, L_dim, N_dim and D_out_dim of the course's command line."""
    config = ModelConfig.preset("handout", **widths)
    path = saved(tmp_path, {"state_dict": CVAE(config).state_dict()})
    assert loaded(path, logged).config == config


@pytest.mark.parametrize("option", WIDTHS)
def test_a_width_outside_its_range_is_refused(tmp_path, weights, logged, option):
    names = {"width": "frame_transformation.6.weight", "label_width": "label_transformation.4.conv2.weight",
             "latents": "Gaussian_Predictor.6.weight", "decoder_width": "Decoder_Fusion.5.weight"}  # fmt: skip
    path = saved(tmp_path, weights | {names[option]: torch.zeros(1, 1, 1, 1)})
    with pytest.raises(CheckpointError, match=option):
        loaded(path, logged)


def test_half_precision_weights_are_read_as_float32(tmp_path, weights, logged):
    half = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    model = loaded(saved(tmp_path, half), logged)
    assert all(value.dtype == weights[name].dtype for name, value in model.state_dict().items())
    assert_holds(model, {name: value.float() for name, value in half.items()})


# -- the output activation -----------------------------------------------------------------------------------


def constant(config, level):
    """Return a network whose raw output is `level` for every pixel."""
    model = CVAE(config)
    with torch.no_grad():
        model.Generator[7].weight.zero_()
        model.Generator[7].bias.fill_(level)
    return model


def clip(grey, answer=True):
    frames = torch.full((5, 3, 8, 16), grey, dtype=torch.uint8)
    return Clip("0", frames[0], frames, frames if answer else None)


@pytest.mark.parametrize("with_answer", [True, False])
@pytest.mark.parametrize(
    ("raw", "expected"), [(0.2, "linear"), (-1.3863, "sigmoid")]
)  # sigmoid(-1.3863) = 0.2
def test_auto_selects_the_activation_that_predicts_the_frames(tmp_path, logged, raw, expected, with_answer):
    path = saved(tmp_path, {"state_dict": constant(SMALL, raw).state_dict()})
    clips = [clip(51, with_answer)]  # 51 / 255 = 0.2
    model = load_model(path, clips=clips, log=logged.append)
    assert model.config.output == expected
    prediction = predict(model, torch.rand(1, 3, 8, 16), torch.rand(1, 3, 3, 8, 16))
    torch.testing.assert_close(prediction, torch.full_like(prediction, 0.2), atol=1e-4, rtol=0)
    (line,) = logged
    assert f"output = {expected}, because" in line
    assert ("true frames" in line) == with_answer


@pytest.mark.parametrize("output", ["linear", "sigmoid"])
def test_an_activation_that_is_set_is_used_without_a_comparison(tmp_path, logged, output):
    path = saved(tmp_path, {"state_dict": constant(SMALL, 0.2).state_dict()})
    assert load_model(path, output=output, clips=[clip(51)], log=logged.append).config.output == output
    assert logged == []


def test_without_frames_the_activation_is_linear_as_in_the_course_s_code(tmp_path, logged):
    path = saved(tmp_path, {"state_dict": constant(SMALL, -3.0).state_dict()})
    assert loaded(path, logged).config.output == "linear"


def test_a_linear_network_whose_outputs_lie_outside_the_range_of_pixels_gets_a_warning():
    choice = choose_output(constant(SMALL, -0.5), [clip(0)])
    assert choice.output == "linear"
    assert choice.outside == 1
    assert "warning: 100% of the raw outputs lie outside [0, 1]" in choice.message
    assert "warning" not in choose_output(constant(SMALL, 0.2), [clip(51)]).message


def test_activations_are_compared_by_the_psnr_of_one_step():
    choice = choose_output(constant(SMALL, 0.3), [clip(51)])
    expected = {"linear": 0.3 - 0.2, "sigmoid": float(torch.tensor(0.3).sigmoid()) - 0.2}
    assert choice.psnr == pytest.approx(
        {name: -20 * np.log10(error) for name, error in expected.items()}, abs=1e-3
    )
    assert choice.frames == 4


def test_a_sigmoid_output_does_not_change_the_names_of_the_tensors():
    with_sigmoid = CVAE(ModelConfig.preset("handout", **WIDTHS, output="sigmoid"))
    check_weights(Path("model.pt"), with_sigmoid.state_dict(), SMALL)
