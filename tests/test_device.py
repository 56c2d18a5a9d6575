"""The choice of the device and of the precision of convolutions."""

import pytest
import torch

from cvae_lab import CVAE, ModelConfig, TrainConfig
from cvae_lab.config import ConfigError
from cvae_lab.models.device import pick_device, precision_notice, precision_of, reduced_precision
from cvae_lab.training import TrainState


@pytest.fixture
def machine(monkeypatch):
    """Return a function that makes torch report other hardware."""

    def pretend(gpus=0, capability=(8, 0), mps=False, cpu=()):
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(cpu, True), raising=False)

    return pretend


@pytest.mark.parametrize(
    ("name", "hardware", "expected"),
    [
        ("auto", {}, "cpu"),
        ("auto", {"gpus": 1}, "cuda:0"),
        ("cpu", {"gpus": 1}, "cpu"),
        ("cuda", {"gpus": 2}, "cuda:0"),
        ("cuda:1", {"gpus": 2}, "cuda:1"),
        ("mps", {"mps": True}, "mps"),
    ],
)
def test_a_name_selects_its_device(machine, name, hardware, expected):
    machine(**hardware)
    assert str(pick_device(name)) == expected


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_each_rank_of_torchrun_uses_its_own_gpu(machine, monkeypatch, name):
    machine(gpus=4)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert pick_device(name) == torch.device("cuda", 3)


@pytest.mark.parametrize(
    ("name", "hardware", "message"),
    [
        ("cuda", {}, "no CUDA GPU"),
        ("cuda:1", {}, "no CUDA GPU"),
        ("cuda:2", {"gpus": 2}, "2 GPUs, cuda:0 to cuda:1"),
        ("cuda:1", {"gpus": 1}, "1 GPU, cuda:0"),
        ("mps", {"gpus": 1}, "Apple"),
    ],
)
def test_a_device_that_the_machine_does_not_have_is_refused(machine, name, hardware, message):
    machine(**hardware)
    with pytest.raises(ConfigError, match=f"device = '{name}', .*{message}"):
        pick_device(name)


@pytest.mark.parametrize(
    ("device", "hardware", "expected"),
    [
        ("cuda", {"gpus": 1, "capability": (9, 0)}, torch.bfloat16),
        ("cuda", {"gpus": 1, "capability": (8, 0)}, torch.bfloat16),
        ("cuda", {"gpus": 1, "capability": (7, 5)}, torch.float32),  # T4
        ("cuda", {"gpus": 1, "capability": (6, 0)}, torch.float32),  # P100
        ("mps", {"mps": True}, torch.float32),
        ("cpu", {}, torch.float32),
        ("cpu", {"cpu": ["avx512_bf16"]}, torch.bfloat16),
        ("cpu", {"cpu": ["amx_bf16"]}, torch.bfloat16),
    ],
)
def test_auto_uses_bfloat16_only_where_the_hardware_has_units_for_it(machine, device, hardware, expected):
    machine(**hardware)
    assert precision_of(TrainConfig(), torch.device(device)) == expected


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_a_precision_that_is_set_is_used(machine, precision, dtype):
    machine(gpus=1, capability=(7, 5))
    for device in ("cuda", "cpu"):
        assert precision_of(TrainConfig(precision=precision), torch.device(device)) == dtype


@pytest.mark.parametrize(
    ("capability", "precision", "message"),
    [
        (
            (7, 5),
            "auto",
            "The GPU (compute capability 7.5) has no bfloat16 units, so the precision is float32.",
        ),
        (
            (6, 0),
            "float32",
            "The GPU (compute capability 6.0) has no bfloat16 units, so the precision is float32.",
        ),
        ((7, 5), "bfloat16", "emulated and slow; set precision = 'auto' for float32."),
        ((8, 0), "auto", None),
        ((9, 0), "bfloat16", None),
    ],
)
def test_one_sentence_says_which_precision_a_gpu_without_bfloat16_units_uses(
    machine, capability, precision, message
):
    machine(gpus=1, capability=capability)
    notice = precision_notice(TrainConfig(precision=precision), torch.device("cuda"))
    assert notice is None if message is None else notice.endswith(message)
    assert precision_notice(TrainConfig(precision=precision), torch.device("cpu")) is None


def test_bfloat16_on_mps_is_refused(machine):
    machine(mps=True)
    with pytest.raises(ConfigError, match=r"precision = 'bfloat16' .* mps"):
        precision_of(TrainConfig(precision="bfloat16"), torch.device("mps"))


def test_convolutions_run_at_the_chosen_precision_and_losses_in_float32():
    convolution = torch.nn.Conv2d(1, 1, 1)
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        with reduced_precision(TrainConfig(precision=precision), torch.device("cpu")):
            values = convolution(torch.rand(1, 1, 2, 2))
            assert values.dtype == dtype
            assert torch.nn.functional.mse_loss(values, torch.rand(1, 1, 2, 2)).dtype == torch.float32


@pytest.mark.skipif(not torch.backends.mps.is_available(), reason="this machine has no Apple GPU (mps)")
def test_features_on_mps_equal_those_on_the_cpu():
    state = TrainState.create(ModelConfig(width=8), TrainConfig(device="mps"))
    twin = CVAE(state.model.config)
    twin.load_state_dict({name: value.cpu() for name, value in state.model.state_dict().items()})
    frame = torch.rand(2, 3, 32, 64)
    on_mps = state.model.frame_transformation(frame.to("mps"))
    on_cpu = twin.frame_transformation(frame)
    torch.testing.assert_close(on_mps[-1].cpu(), on_cpu[-1], atol=1e-4, rtol=1e-4)
