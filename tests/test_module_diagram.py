"""Compare connections, shapes and operation counts of the module diagram with the model."""

import matplotlib.pyplot as plt
import pytest
import torch
from torch import nn

from cvae_lab import CVAE, ModelConfig
from cvae_lab.views.module_diagram import diagram, trace


@pytest.fixture(scope="module", params=["handout", "compact"])
def model(request):
    return CVAE(ModelConfig.preset(request.param))


def calls(parts, name):
    return [part for key, part in parts.items() if key.split("(")[0] == name]


def test_the_operations_of_handout_are_those_of_its_convolutions():
    model = CVAE(ModelConfig.preset("handout"))
    parts = trace(model)
    for module in model.children():
        # The output of every layer is 32x64, so each weight is used once per pixel, with two operations.
        weights = sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Conv2d))
        for part in calls(parts, type(module).__name__):
            assert part.flops == 2 * 32 * 64 * weights
            assert part.parameters == sum(p.numel() for p in module.parameters())


def test_the_connections_are_those_of_the_paper(model):
    parts = trace(model)
    previous = r"RGB_Encoder(\hat x_{t-1})"
    assert set(parts["Gaussian_Predictor"].sources) == {"RGB_Encoder(x_t)", "Label_Encoder(p_t)"}
    assert set(parts["z"].sources) == {"Gaussian_Predictor", r"\varepsilon"}
    anchor = {"RGB_Encoder(x_0)", "Label_Encoder(p_0)"} if model.config.anchor else set()
    assert set(parts["Decoder_Fusion"].sources) == {previous, "Label_Encoder(p_t)", "z"} | anchor
    assert parts["Generator(Decoder_Fusion)"].sources == ("Decoder_Fusion",)
    assert {key for key, part in parts.items() if part.once} == anchor


def test_shapes_are_those_of_the_model(model):
    parts = trace(model, 16, 32)
    assert parts["z"].shapes == (model.latent_shape(16, 32),)
    assert parts["Generator(Decoder_Fusion)"].shapes == ((3, 16, 32),)


def test_tracing_does_not_change_the_model(model):
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trace(model)
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_the_diagram_shows_every_call(model):
    parts = trace(model)
    figure = diagram(parts, "title")
    written = " ".join(text.get_text() for text in figure.axes[0].texts)
    for name in ("RGB_Encoder", "Label_Encoder", "Gaussian_Predictor", "Decoder_Fusion", "Generator"):
        assert written.count(name) == len(calls(parts, name)) > 0
        assert f"{calls(parts, name)[0].parameters:,} weights" in written
    plt.close(figure)
