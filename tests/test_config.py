"""Configurations: invalid values are refused; parameter names; conversion to JSON and back."""

import json
import logging
import math
from dataclasses import replace
from typing import Literal, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvae_lab.__main__ import main
from cvae_lab.config import RENAMED, ConfigError, ModelConfig, RunConfig, TrainConfig, parameters
from cvae_lab.config.run import FINE_TUNING_LR

FIELDS = [
    (kind, name, info)
    for kind in (ModelConfig, TrainConfig)
    for name, info in kind.__pydantic_fields__.items()
]


def bounds(info):
    """Return the smallest and the largest value that pydantic allows."""
    found = {
        side: getattr(rule, side) for rule in info.metadata for side in ("ge", "le") if hasattr(rule, side)
    }
    return found.get("ge"), found.get("le")


NUMBERS = [
    pytest.param(kind, name, info, id=name) for kind, name, info in FIELDS if info.annotation in (int, float)
]
CHOICES = [
    pytest.param(k, name, info, id=name) for k, name, info in FIELDS if get_origin(info.annotation) is Literal
]


@pytest.mark.parametrize(("kind", "name", "info"), NUMBERS)
@pytest.mark.parametrize("side", [0, 1])
def test_a_value_just_outside_its_range_is_refused(kind, name, info, side):
    bound = bounds(info)[side]
    away = 1 if side else -1
    step = away * (1 if info.annotation is int else math.ulp(max(abs(bound), 1e-300)))
    assert getattr(kind(**{name: bound}), name) == bound if name not in BELONGS_TO_HANDOUT else True
    assert bound + step != bound
    with pytest.raises(ConfigError, match=rf"^{name} = .*range"):
        kind(**{name: bound + step})


BELONGS_TO_HANDOUT = ("label_width", "decoder_width")


@pytest.mark.parametrize(("kind", "name", "info"), NUMBERS)
def test_every_number_has_a_range(kind, name, info):
    low, high = bounds(info)
    assert low < high
    assert low <= info.default <= high


@pytest.mark.parametrize(("kind", "name", "info"), NUMBERS)
@pytest.mark.parametrize("wrong", [math.nan, math.inf, True, "1", None, {}, (), 10**30, -(10**999), 1e308])
def test_a_value_of_another_type_or_out_of_range_is_refused_in_one_short_line(kind, name, info, wrong):
    with pytest.raises(ConfigError, match=f"^{name} = ") as error:
        kind(**{name: wrong})
    assert len(str(error.value)) < 200
    assert "\n" not in str(error.value)


def test_a_float_is_not_accepted_as_an_integer_but_an_integer_is_accepted_as_a_float():
    with pytest.raises(ConfigError, match="epochs"):
        TrainConfig(epochs=2.0)
    assert TrainConfig(beta_max=2).beta_max == 2


@pytest.mark.parametrize(("kind", "name", "info"), CHOICES)
def test_a_choice_must_be_one_of_its_options(kind, name, info):
    with pytest.raises(ConfigError, match=f"^{name} = 'sideways'") as error:
        kind(**{name: "sideways"})
    assert all(repr(option) in str(error.value) for option in get_args(info.annotation))


@pytest.mark.parametrize(("kind", "name"), [(ModelConfig, "anchor"), (TrainConfig, "flip")])
def test_a_boolean_parameter_must_be_true_or_false(kind, name):
    with pytest.raises(ConfigError, match=name):
        kind(**{name: 1})


def test_the_width_of_compact_is_a_multiple_of_8():
    assert ModelConfig(width=56).width == 56
    with pytest.raises(ConfigError, match="multiple of 8"):
        ModelConfig(width=52)


@pytest.mark.parametrize("device", ["auto", "cpu", "mps", "cuda", "cuda:1"])
def test_devices_are_accepted_by_name_and_number(device):
    assert TrainConfig(device=device).device == device


@pytest.mark.parametrize("device", ["tpu", "cuda:", "cuda:-1", "cuda:x", "cpu:1 ", ""])
def test_an_unknown_device_is_refused_with_the_list_of_devices(device):
    with pytest.raises(ConfigError, match=r"^device = .* cuda:1"):
        TrainConfig(device=device)


@pytest.mark.parametrize(
    ("option", "value"),
    [("anchor", True), ("norm", "group"), ("invert_labels", True), ("dropout", 0.1), ("prior", "learned")],
)
def test_handout_refuses_options_of_compact(option, value):
    with pytest.raises(ConfigError, match=option):
        ModelConfig.preset("handout", **{option: value})
    with pytest.raises(ConfigError, match=option):
        RunConfig.from_params("tiny", "handout", **{option: value})
    assert getattr(ModelConfig.preset("compact", **{option: value}), option) == value


def test_handout_accepts_the_widths_of_the_course_and_an_output_activation():
    options = {
        "width": 100,
        "label_width": 24,
        "latents": 8,
        "decoder_width": 96,
        "output": "sigmoid",
        "logvar_bound": 5.0,
    }
    config = RunConfig.from_params("tiny", "handout", **options)
    assert {name: getattr(config.model, name) for name in options} == options
    assert RunConfig.from_json(config.to_json()) == config


def test_handout_has_the_course_s_widths_by_default():
    config = ModelConfig.preset("handout")
    assert (config.width, config.label_width, config.latents, config.decoder_width) == (128, 32, 12, 192)
    assert (config.output, config.latent_stride) == ("linear", 1)


@pytest.mark.parametrize("option", ["label_width", "decoder_width"])
def test_compact_refuses_widths_of_handout(option):
    with pytest.raises(ConfigError, match=f"{option} belongs to preset handout"):
        ModelConfig(**{option: 64})


@pytest.mark.parametrize("preset", ["handout", "compact"])
def test_each_parameter_is_assigned_to_the_model_or_the_training(preset):
    config = RunConfig.from_params("tiny", preset, logvar_bound=4.0, epochs=3, lr=0.5)
    assert (config.data, config.model.name, config.model.logvar_bound) == ("tiny", preset, 4.0)
    assert (config.train.epochs, config.train.lr) == (3, 0.5)


def test_handout_has_its_own_training_defaults():
    train = RunConfig.from_params("tiny", "handout").train
    assert (train.n_frames, train.optimizer, train.lr, train.ema) == (16, "adam", 1e-4, 0)
    assert RunConfig.from_params("tiny").train == TrainConfig()


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("epoch", "epochs"), ("batchsize", "batch_size"), ("kl_stratgy", "kl_strategy"), ("widht", "width")]
)  # fmt: skip
def test_an_unknown_name_is_refused_with_the_most_similar_name(wrong, meant):
    with pytest.raises(ConfigError, match=f"{wrong}.*Did you mean {meant}"):
        RunConfig.from_params("tiny", **{wrong: 1})


def test_an_unknown_name_without_a_similar_name_gets_no_hint():
    with pytest.raises(ConfigError, match="zzz") as error:
        RunConfig.from_params("tiny", zzz=1)
    assert "mean" not in str(error.value)


def test_an_unknown_preset_is_refused():
    with pytest.raises(ConfigError, match=r"fancy.*handout.*compact"):
        RunConfig.from_params("tiny", "fancy")


STAGES = [["monotonic", 60, 1], ["cyclical", 80.5, 2]]


@pytest.mark.parametrize(
    ("preset", "params"),
    [
        (
            "compact",
            {"width": 16, "dropout": 0.25, "anchor": False, "lr": 1 / 3, "lr_milestones": [0.25, 0.5]},
        ),
        ("compact", {"kl_strategy": "stages", "stages": STAGES, "seed": 7, "flip": True}),
        ("handout", {"minutes": 0.5}),
    ],
)
def test_a_configuration_is_unchanged_after_conversion_to_json_and_back(preset, params):
    config = RunConfig.from_params("some/folder", preset, **params)
    again = RunConfig.from_json(config.to_json())
    assert again == config
    assert hash(again) == hash(config)
    assert json.loads(config.to_json())["model"]["name"] == preset


def test_stages_may_be_lists():
    config = RunConfig.from_params("tiny", kl_strategy="stages", stages=STAGES)
    assert config.train.stages == (("monotonic", 60, 1), ("cyclical", 80.5, 2))


@pytest.mark.parametrize(
    "stages",
    [[], [["cyclical", 60]], [["stages", 60, 1]], [["cyclical", 0, 1]], [["cyclical", 60, 0]],
     [["cyclical", 1e308, 1]], [["cyclical", 10**30, 1]], [["cyclical", 1, 10**30]], [["cyclical", 1, 1]] * 1001,
     [["cyclical", "60", 1]], [["cyclical", math.nan, 1]], [["cyclical", 60, 1.5]], ["cyclical"], [60]],
)  # fmt: skip
def test_impossible_stages_are_refused(stages):
    with pytest.raises(ConfigError, match="stages"):
        RunConfig.from_params("tiny", kl_strategy="stages", stages=stages)


@pytest.mark.parametrize(
    "milestones", [["half"], [math.nan], [True], [-0.1], [1.1], [1e308], [0.5] * 1001, 0.5]
)
def test_milestones_are_fractions_of_training(milestones):
    with pytest.raises(ConfigError, match="lr_milestones"):
        RunConfig.from_params("tiny", lr_milestones=milestones)


def test_with_training_checks_the_changed_values():
    config = RunConfig.from_params("tiny")
    assert config.with_training(epochs=3) == replace(config, train=TrainConfig(epochs=3))
    with pytest.raises(ConfigError, match="epochs"):
        config.with_training(epochs=0)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"sigma": 0.1}, "used only at scale"),
        ({"kl_balance": 0.8}, "needs prior"),
        ({"scale": "elbo", "weighting": "psnr"}, "not an ELBO"),
    ],
)
def test_values_that_would_have_no_effect_are_refused(params, message):
    with pytest.raises(ConfigError, match=message):
        RunConfig.from_params("small", **params)
    RunConfig.from_params("small", sigma=0.1, scale="elbo", kl_balance=0.8, prior="learned")


def test_frames_are_weighted_equally_by_default_at_scale_elbo():
    assert RunConfig.from_params("small", scale="elbo").train.weighting == "equal"
    assert RunConfig.from_params("small").train.weighting == "psnr"


def test_difference_names_the_first_value_that_differs():
    one, other = (RunConfig.from_params("small", width=width) for width in (8, 16))
    assert one.difference(other) == "width = 8, not 16"
    assert one.difference(one) == one.difference(other, ignore=("width",)) == ""


VALUES_OF_OLD_NAMES = {"start": "some/run", "given": "first", "optimiser": "adamw"}


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_parameter_name_is_accepted_with_a_message(old, caplog):
    value = VALUES_OF_OLD_NAMES[old]
    with caplog.at_level(logging.WARNING):
        config = RunConfig.from_params("tiny", **{old: value})
    assert getattr(config.train, RENAMED[old]) == value
    (message,) = caplog.messages
    assert (
        message
        == f"The parameter {old} is now called {RENAMED[old]}; the old name works in this version only."
    )


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_parameter_name_in_a_file_is_accepted(old, caplog):
    value = VALUES_OF_OLD_NAMES[old]
    raw = json.loads(RunConfig.from_params("tiny").to_json())
    raw["train"][old] = value
    del raw["train"][RENAMED[old]]
    assert getattr(RunConfig.from_json(json.dumps(raw)).train, RENAMED[old]) == value
    assert caplog.messages == []


@pytest.mark.parametrize("old", RENAMED)
def test_the_old_and_the_new_name_together_are_refused(old):
    value = VALUES_OF_OLD_NAMES[old]
    with pytest.raises(ConfigError, match=f"{old} is the old name of {RENAMED[old]}"):
        RunConfig.from_params("tiny", **{old: value, RENAMED[old]: value})


GOOD = RunConfig.from_params("tiny").to_json()


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", "{}", "7", '"text"', '{"data": "tiny"}', '{"data": "tiny", "model": null, "train": {}}',
     '{"data": 1, "model": {}, "train": {}}', GOOD.replace('"epochs": 40', '"epochs": "40"'),
     GOOD.replace('"epochs"', '"epoch"'), GOOD.replace('"epochs": 40', '"epochs": NaN'), GOOD[:-5], "[" * 100_000],
)  # fmt: skip
def test_a_text_that_is_not_a_configuration_is_refused(text):
    with pytest.raises(ConfigError):
        RunConfig.from_json(text)


def test_parameters_describes_every_field():
    described = {parameter.name: parameter for parameter in parameters()}
    assert list(described) == [name for _, name, _ in FIELDS]
    assert all(parameter.meaning for parameter in described.values())
    assert described["epochs"].range == "1 to 1000000"
    assert described["scale"].choices == ("handout", "elbo")


JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([parameter.name for parameter in parameters() if parameter.name != "name"]), JSON_LIKE)
def test_any_value_is_accepted_or_refused_in_one_line(name, value):
    message = ""
    try:
        config = RunConfig.from_params("tiny", **{name: value})
    except ConfigError as error:
        message = str(error)
    else:
        assert RunConfig.from_json(config.to_json()) == config
    assert len(message) < 300
    assert len(message.splitlines()) <= 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", "{[]:1}"), ("epochs", "9" * 30), ("lr", "1e308"), ("lr_milestones", "[-0.5]"), ("threads", "1000000"),
     ("lr", "[" * 300), ("lr", "nan"), ("preset", "[1]"), ("preset", "{}"), ("lr", "1" * 5000)],
)  # fmt: skip
def test_an_impossible_value_on_the_command_line_is_refused_in_one_line_before_anything_starts(
    tmp_path, name, value, capsys
):
    assert main(["train", str(tmp_path / "run"), "--data", "tiny", "-p", name, value]) == 1
    out, error = capsys.readouterr()
    assert out == ""
    assert len(error.splitlines()) == 1
    assert name in error
    assert not (tmp_path / "run").exists()


def test_compact_has_a_smaller_default_learning_rate_if_it_starts_from_given_weights():
    usual = RunConfig.from_params("tiny").train.lr
    assert RunConfig.from_params("tiny", init_from="pretrained").train.lr == FINE_TUNING_LR < usual
    assert RunConfig.from_params("tiny", init_from="pretrained", lr=usual).train.lr == usual
    handout = RunConfig.from_params("tiny", "handout").train.lr
    assert RunConfig.from_params("tiny", "handout", init_from="runs/one").train.lr == handout
