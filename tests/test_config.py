"""Every range and choice is refused just outside; names and JSON."""

import inspect
import json
import math
from dataclasses import fields, replace
from typing import Literal, get_args, get_origin

import pytest

from cvae_lab.config import ConfigError, ModelConfig, RunConfig, TrainConfig

FIELDS = [(kind, item) for kind in (ModelConfig, TrainConfig) for item in fields(kind)]
RANGED = [
    pytest.param(kind, item, side, id=f"{item.name}-{side}")
    for kind, item in FIELDS
    for side in (0, 1)
    if "range" in item.metadata and math.isfinite(item.metadata["range"][side])
]
CHOICES = [pytest.param(k, f, id=f.name) for k, f in FIELDS if get_origin(f.type) is Literal]
NUMBERS = [pytest.param(k, f, id=f.name) for k, f in FIELDS if f.type in (int, float)]


@pytest.fixture(autouse=True)
def _checked_by_us_alone(monkeypatch):
    """These tests give wrong types on purpose: what refuses them must be the lab, not the tests' type checker."""
    for kind in (ModelConfig, TrainConfig):
        monkeypatch.setattr(kind, "__init__", inspect.unwrap(kind.__init__))


@pytest.mark.parametrize(("kind", "item", "side"), RANGED)
def test_a_range_ends_where_it_says(kind, item, side):
    bound = item.metadata["range"][side]
    away = 1 if side else -1
    step = away if item.type is int else away * math.ulp(max(abs(bound), 1e-300))
    assert getattr(kind(**{item.name: bound}), item.name) == bound
    assert bound + step != bound
    with pytest.raises(ConfigError, match=rf"^{item.name} = .*range"):
        kind(**{item.name: bound + step})


def test_every_number_has_a_range():
    assert [
        item.name for _, item in FIELDS if item.type in (int, float) and "range" not in item.metadata
    ] == []


@pytest.mark.parametrize(("kind", "item"), NUMBERS)
@pytest.mark.parametrize("wrong", [math.nan, math.inf, True, "1", None])
def test_what_is_no_number_is_refused(kind, item, wrong):
    with pytest.raises(ConfigError, match=f"^{item.name} = "):
        kind(**{item.name: wrong})


def test_an_int_is_no_float_but_a_float_may_be_whole():
    with pytest.raises(ConfigError, match="epochs"):
        TrainConfig(epochs=2.0)
    assert TrainConfig(beta_max=2).beta_max == 2


@pytest.mark.parametrize(("kind", "item"), CHOICES)
def test_a_choice_is_one_of_those_named(kind, item):
    with pytest.raises(ConfigError, match=f"^{item.name} = 'sideways'") as error:
        kind(**{item.name: "sideways"})
    assert all(repr(option) in str(error.value) for option in get_args(item.type))


@pytest.mark.parametrize(("kind", "name"), [(ModelConfig, "anchor"), (TrainConfig, "flip")])
def test_a_switch_is_true_or_false(kind, name):
    with pytest.raises(ConfigError, match=name):
        kind(**{name: 1})


def test_width_fits_the_group_norm():
    assert ModelConfig(width=56).width == 56
    with pytest.raises(ConfigError, match="multiple of 8"):
        ModelConfig(width=52)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("width", 64), ("latents", 8), ("anchor", True), ("norm", "group"), ("output", "sigmoid"),
        ("invert_labels", True), ("dropout", 0.1),
    ],
)  # fmt: skip
def test_handout_refuses_options(option, value):
    with pytest.raises(ConfigError, match=option):
        ModelConfig.preset("handout", **{option: value})
    with pytest.raises(ConfigError, match=option):
        RunConfig.from_params("tiny", "handout", **{option: value})
    assert getattr(ModelConfig.preset("compact", **{option: value}), option) == value


def test_handout_takes_its_own_values_and_the_bound():
    config = ModelConfig.preset("handout", latents=12, anchor=False, logvar_bound=5.0)
    assert (config.latents, config.logvar_bound, config.latent_stride) == (12, 5.0, 1)


@pytest.mark.parametrize("preset", ["handout", "compact"])
def test_parameters_find_their_place(preset):
    config = RunConfig.from_params("tiny", preset, logvar_bound=4.0, epochs=3, lr=0.5)
    assert (config.data, config.model.name, config.model.logvar_bound) == ("tiny", preset, 4.0)
    assert (config.train.epochs, config.train.lr) == (3, 0.5)


def test_handout_brings_its_own_training():
    train = RunConfig.from_params("tiny", "handout").train
    assert (train.n_frames, train.optimizer, train.lr, train.ema) == (16, "adam", 1e-4, 0)
    assert RunConfig.from_params("tiny").train == TrainConfig()


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("epoch", "epochs"), ("batchsize", "batch_size"), ("kl_stratgy", "kl_strategy"), ("widht", "width")]
)  # fmt: skip
def test_an_unknown_name_is_refused_with_the_nearest(wrong, meant):
    with pytest.raises(ConfigError, match=f"{wrong}.*Did you mean {meant}"):
        RunConfig.from_params("tiny", **{wrong: 1})


def test_an_unknown_name_like_no_other_gets_no_hint():
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
def test_json_round_trip(preset, params):
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
     [["cyclical", "60", 1]], [["cyclical", math.nan, 1]], [["cyclical", 60, 1.5]], ["cyclical"], [60]],
)  # fmt: skip
def test_stages_that_cannot_be_are_refused(stages):
    with pytest.raises(ConfigError, match="stages"):
        RunConfig.from_params("tiny", kl_strategy="stages", stages=stages)


@pytest.mark.parametrize("milestones", [["half"], [math.nan], [True]])
def test_milestones_are_numbers(milestones):
    with pytest.raises(ConfigError, match="lr_milestones"):
        RunConfig.from_params("tiny", lr_milestones=milestones)


def test_with_training_checks_again():
    config = RunConfig.from_params("tiny")
    assert config.with_training(epochs=3) == replace(config, train=TrainConfig(epochs=3))
    with pytest.raises(ConfigError, match="epochs"):
        config.with_training(epochs=0)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"sigma": 0.1}, "belongs to scale"),
        ({"kl_balance": 0.8}, "needs prior"),
        ({"scale": "elbo", "weighting": "psnr"}, "not an ELBO"),
    ],
)
def test_values_that_would_be_ignored_are_refused(params, said):
    with pytest.raises(ConfigError, match=said):
        RunConfig.from_params("small", **params)
    RunConfig.from_params("small", sigma=0.1, scale="elbo", kl_balance=0.8, prior="learned")


def test_frames_are_weighted_equally_by_default_at_scale_elbo():
    assert RunConfig.from_params("small", scale="elbo").train.weighting == "equal"
    assert RunConfig.from_params("small").train.weighting == "psnr"


def test_a_difference_is_named():
    one, other = (RunConfig.from_params("small", width=width) for width in (8, 16))
    assert one.difference(other) == "width = 8, not 16"
    assert one.difference(one) == one.difference(other, but=("width",)) == ""
