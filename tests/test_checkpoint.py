"""Checkpoints: a resumed run equals an uninterrupted one, course files load, and other files are refused."""

import itertools
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cvae_lab import CVAE, ModelConfig, RunConfig
from cvae_lab.data import Dataset, Video
from cvae_lab.training import TrainState, checkpoint, fit
from cvae_lab.training.checkpoint import CheckpointError, create_state, load_model, resume, save

COMPACT = {
    "width": 8,
    "latents": 2,
    "tf_strategy": "adaptive",
    "tf_start": 0.5,
    "tf_first_decay": 2,
    "flip": True,
    "shift": 1,
    "prior": "learned",
    "kl_target": 0.5,
}
HANDOUT = {
    "preset": "handout",
    "n_frames": 3,
    "feedback_noise": 0.1,
    "tf_strategy": "constant",
    "tf_start": 0.5,
}


def config_of(epochs=4, **changes):
    values = {
        "n_frames": 4,
        "batch_size": 4,
        "clips_per_epoch": 8,
        "holdout": 0.2,
        "device": "cpu",
        "eval_every": 1,
    }
    return RunConfig.from_params("noise", **values | COMPACT | {"epochs": epochs} | changes)


def handout_config():
    values = {
        "batch_size": 2,
        "clips_per_epoch": 4,
        "holdout": 0.2,
        "device": "cpu",
        "eval_every": 1,
        "epochs": 3,
    }
    return RunConfig.from_params("noise", **values | HANDOUT)


def noise(height=8, width=16):
    def video(n, seed, boundaries=()):
        shape, generator = (2, n, 3, height, width), torch.Generator().manual_seed(seed)
        return Video(
            *torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8), boundaries, str(seed)
        )

    return Dataset("noise", video(40, 0, (20,)), video(6, 1), ())


@pytest.fixture
def one_thread():
    """Two processes compute equal sums only with equal numbers of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train(state, config, data, epochs=None):
    for _ in itertools.islice(fit(state, data, config.train), epochs):
        pass
    return state


def fresh(config):
    return TrainState.create(config.model, config.train)


def columns(state):
    """The history as text, so that nan equals nan, without the columns of measured time."""
    return [{k: repr(v) for k, v in r.items() if k not in ("seconds", "frames_per_s")} for r in state.history]


def averaged(state):
    """The averaged weights, or none where the run keeps no average."""
    return {} if state.average is None else state.average.module.state_dict()


def assert_equal(one, two):
    assert columns(one) == columns(two)
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, two.model.state_dict()[name]), name
    assert (one.epoch, one.step) == (two.epoch, two.step)
    for name, value in averaged(one).items():
        assert torch.equal(value, averaged(two)[name]), name


@pytest.mark.parametrize(("config", "size"), [(config_of(), (8, 16)), (handout_config(), (4, 6))])
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path, config, size):
    data, path = noise(*size), tmp_path / "last.pt"
    whole = train(fresh(config), config, data)
    save(path, train(fresh(config), config, data, epochs=2), config)
    assert_equal(train(resume(path, config), config, data), whole)
    assert len(whole.history) == config.train.epochs


def child():
    """Train and save after every epoch; after the second, wait to be killed. Called when this file runs as a script."""
    torch.set_num_threads(1)
    config, path = config_of(), Path(sys.argv[1])
    state = fresh(config)
    for record in fit(state, noise(), config.train):
        save(path, state, config)
        print(record["epoch"], flush=True)  # noqa: T201
        if record["epoch"] == 2:
            signal.pause()


@pytest.mark.usefixtures("one_thread")
def test_a_killed_run_continues_from_its_last_checkpoint(tmp_path):
    path, config = tmp_path / "last.pt", config_of()
    command = [sys.executable, __file__, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert [process.stdout.readline() for _ in range(2)] == ["1\n", "2\n"]
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    whole = train(fresh(config), config, noise())
    assert_equal(train(resume(path, config), config, noise()), whole)


@pytest.mark.usefixtures("one_thread")
def test_init_from_copies_the_weights_and_nothing_else(tmp_path):
    first = train(fresh(config_of()), config_of(), noise(), epochs=1)
    save(tmp_path / "best.pt", first, config_of())
    config = config_of(init_from=str(tmp_path), seed=1)
    state, plain = create_state(config), fresh(config_of(seed=1))
    for name, value in averaged(first).items():
        assert torch.equal(state.model.state_dict()[name], value)
        assert torch.equal(averaged(state)[name], value)
    assert not any(part["state"] for part in state.optimizer.state_dict().values())
    assert (state.step, state.epoch, state.history) == (0, 0, [])
    for name, generator in plain.generators.items():
        assert torch.equal(state.generators[name].get_state(), generator.get_state())
    before = {name: value.clone() for name, value in averaged(first).items()}
    train(state, config, noise(), epochs=1)
    assert all(torch.equal(before[name], averaged(first)[name]) for name in before)  # the two share no memory


def test_init_from_another_network_is_refused(tmp_path):
    save(tmp_path / "best.pt", fresh(config_of()), config_of())
    with pytest.raises(CheckpointError, match=r"do not fit this run: .* width = 8, not 16"):
        create_state(config_of(init_from=str(tmp_path), width=16))
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        create_state(config_of(init_from=str(tmp_path / "nowhere")))


def test_load_model_uses_the_averaged_weights_by_default(tmp_path):
    config, path = config_of(), tmp_path / "best.pt"
    state = train(fresh(config), config, noise(), epochs=1)
    save(path, state, config)
    for average, expected in ((True, averaged(state)), (False, state.model.state_dict())):
        model = load_model(path, average=average)
        assert not any(module.training for module in model.modules())
        assert model.config == config.model
        assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert any(not torch.equal(averaged(state)[n], v) for n, v in state.model.state_dict().items())


@pytest.fixture
def course(tmp_path):
    """A course file; as in most public copies, `optimizer` holds (other) weights."""
    right, wrong = (CVAE(ModelConfig.preset("handout")).state_dict() for _ in range(2))
    path = tmp_path / "epoch=9.ckpt"
    torch.save({"state_dict": right, "optimizer": wrong, "lr": 1e-3, "tfr": 0.5, "last_epoch": 9}, path)
    return path, right


def test_a_course_checkpoint_loads(course):
    path, right = course
    model = load_model(str(path))
    assert model.config == ModelConfig.preset("handout")
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(value, right[name]) for name, value in model.state_dict().items())


def test_a_course_checkpoint_cannot_be_resumed(course):
    with pytest.raises(CheckpointError, match=r"epoch=9\.ckpt"):
        resume(course[0], handout_config())


class Trap:
    """An object that writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_file_with_code_in_it_is_refused_and_its_code_does_not_run(tmp_path):
    path, written = tmp_path / "bad.pt", tmp_path / "written"
    torch.save({"state_dict": {}, "extra": Trap(written)}, path)
    with pytest.raises(CheckpointError, match=r"bad\.pt"):
        load_model(path)
    assert not written.exists()


@pytest.mark.parametrize("read", [load_model, lambda path: resume(path, config_of())])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, read, kept):
    path = tmp_path / "last.pt"
    save(path, fresh(config_of()), config_of())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(CheckpointError, match=r"last\.pt"):
        read(path)


def test_a_missing_file_or_one_without_weights_is_refused(tmp_path):
    path = tmp_path / "last.pt"
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_model(path)
    for content, message in (({"weights": torch.zeros(1)}, "state_dict"), ({"state_dict": {}}, "handout")):
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=message):
            load_model(path)


@pytest.mark.parametrize(
    ("name", "value"), [("lr", 0.5), ("width", 16), ("seed", 1), ("kl_strategy", "cyclical")]
)
def test_resuming_with_another_configuration_names_the_difference(tmp_path, name, value):
    path = tmp_path / "last.pt"
    save(path, fresh(config_of()), config_of())
    with pytest.raises(CheckpointError, match=f"{name} = .*{value}"):
        resume(path, config_of(**{name: value}))
    assert resume(path, config_of(epochs=9)).epoch == 0


def test_a_failing_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path, config = tmp_path / "last.pt", config_of()
    save(path, fresh(config), config)
    before = path.read_bytes()

    def full_disk(content, target):
        Path(target).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full_disk)
    with pytest.raises(OSError, match="space"):
        save(path, fresh(config), config)
    assert path.read_bytes() == before
    assert list(tmp_path.glob("last*")) == [path]
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["last.pt"]


if __name__ == "__main__":
    child()
