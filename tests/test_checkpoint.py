"""Checkpoints: resuming is not interrupting, course files load, and what is no checkpoint is refused."""

import itertools
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cvae_lab import CVAE, ModelConfig, RunConfig
from cvae_lab import checkpoint as checkpoints
from cvae_lab.data import Dataset, Video
from cvae_lab.training import TrainState, fit
from cvae_lab.training.checkpoint import CheckpointError, begin, load_model, resume, save

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
        return Video(*torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8), cuts, str(seed))

    return Dataset("noise", video(40, 0, (20,)), video(6, 1), ())


@pytest.fixture
def one_thread():
    """Sums come out alike in two processes only when both split them alike."""
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
    """The history as text, so that nan equals nan, without what a clock decides."""
    return [{k: repr(v) for k, v in r.items() if k not in ("seconds", "frames_per_s")} for r in state.history]


def assert_same(one, two):
    assert columns(one) == columns(two)
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, two.model.state_dict()[name]), name
    assert (one.epoch, one.step) == (two.epoch, two.step)
    for name, value in (one.average or {}).items():
        assert torch.equal(value, two.average[name]), name


@pytest.mark.parametrize(("config", "size"), [(config_of(), (8, 16)), (handout_config(), (4, 6))])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, config, size):
    data, path = noise(*size), tmp_path / "last.pt"
    whole = train(fresh(config), config, data)
    save(path, train(fresh(config), config, data, epochs=2), config)
    assert_same(train(resume(path, config), config, data), whole)
    assert len(whole.history) == config.train.epochs


def child():
    """Train, save after every epoch, wait to be killed after the second: run as a script."""
    torch.set_num_threads(1)
    config, path = config_of(), Path(sys.argv[1])
    state = fresh(config)
    for record in fit(state, noise(), config.train):
        save(path, state, config)
        print(record["epoch"], flush=True)  # noqa: T201
        if record["epoch"] == 2:
            signal.pause()


@pytest.mark.usefixtures("one_thread")
def test_a_killed_run_goes_on_where_it_was(tmp_path):
    path, config = tmp_path / "last.pt", config_of()
    command = [sys.executable, __file__, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert [process.stdout.readline() for _ in range(2)] == ["1\n", "2\n"]
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    whole = train(fresh(config), config, noise())
    assert_same(train(resume(path, config), config, noise()), whole)


@pytest.mark.usefixtures("one_thread")
def test_a_run_starts_from_the_weights_of_another_and_all_else_afresh(tmp_path):
    first = train(fresh(config_of()), config_of(), noise(), epochs=1)
    save(tmp_path / "best.pt", first, config_of())
    config = config_of(start=str(tmp_path), seed=1)
    state, plain = begin(config), fresh(config_of(seed=1))
    for name, value in first.average.items():
        assert torch.equal(state.model.state_dict()[name], value)
        assert torch.equal(state.average[name], value)
    assert not any(part["state"] for part in state.optimizer.state_dict().values())
    assert (state.step, state.epoch, state.history) == (0, 0, [])
    for name, generator in plain.generators.items():
        assert torch.equal(state.generators[name].get_state(), generator.get_state())
    before = {name: value.clone() for name, value in state.average.items()}
    train(state, config, noise(), epochs=1)
    assert all(torch.equal(before[name], first.average[name]) for name in before)  # of its own, not shared


def test_a_start_with_another_network_is_refused(tmp_path):
    save(tmp_path / "best.pt", fresh(config_of()), config_of())
    with pytest.raises(CheckpointError, match=r"cannot start this run: .* width = 8, not 16"):
        begin(config_of(start=str(tmp_path), width=16))
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        begin(config_of(start=str(tmp_path / "nowhere")))


def test_averaged_weights_are_preferred(tmp_path):
    config, path = config_of(), tmp_path / "best.pt"
    state = train(fresh(config), config, noise(), epochs=1)
    save(path, state, config)
    for average, wanted in ((True, state.average), (False, state.model.state_dict())):
        model = load_model(path, average=average)
        assert not any(module.training for module in model.modules())
        assert model.config == config.model
        assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())
    assert any(not torch.equal(state.average[n], v) for n, v in state.model.state_dict().items())


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
    """Unpickled, it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_file_with_code_in_it_is_refused_and_does_not_run(tmp_path):
    path, sprung = tmp_path / "bad.pt", tmp_path / "sprung"
    torch.save({"state_dict": {}, "extra": Trap(sprung)}, path)
    with pytest.raises(CheckpointError, match=r"bad\.pt"):
        load_model(path)
    assert not sprung.exists()


@pytest.mark.parametrize("read", [load_model, lambda path: resume(path, config_of())])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, read, kept):
    path = tmp_path / "last.pt"
    save(path, fresh(config_of()), config_of())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(CheckpointError, match=r"last\.pt"):
        read(path)


def test_what_is_missing_or_holds_something_else_is_refused(tmp_path):
    path = tmp_path / "last.pt"
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_model(path)
    for content, said in (({"weights": torch.zeros(1)}, "state_dict"), ({"state_dict": {}}, "handout")):
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=said):
            load_model(path)


@pytest.mark.parametrize(
    ("name", "value"), [("lr", 0.5), ("width", 16), ("seed", 1), ("kl_strategy", "cyclical")]
)
def test_resuming_another_run_names_what_changed(tmp_path, name, value):
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

    monkeypatch.setattr(checkpoints.torch, "save", full_disk)
    with pytest.raises(OSError, match="space"):
        save(path, fresh(config), config)
    assert path.read_bytes() == before
    assert list(tmp_path.glob("last*")) == [path]
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["last.pt"]


if __name__ == "__main__":
    child()
