"""Checkpoints: a resumed run equals an uninterrupted run, course checkpoints load, other files raise an error."""

import copy
import itertools
import math
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cvae_lab import CVAE, ModelConfig, RunConfig
from cvae_lab.data import Dataset, Video
from cvae_lab.training import TrainState, fit
from cvae_lab.training.checkpoint import CheckpointError, create_state, load_model, read_history, resume, save

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
    """Set the number of threads, because sums in two processes are equal only with equal numbers of threads."""
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
    """Return the history without measured times, as text, so that nan equals nan."""
    return [{k: repr(v) for k, v in r.items() if k not in ("seconds", "frames_per_s")} for r in state.history]


def averaged(state):
    """Return the averaged weights, or an empty dict if there is no average."""
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
    """Train and save after every epoch; after the second epoch, sleep until the process is killed.

    This function is called when the file is run as a script.
    """
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
def test_init_from_copies_only_the_weights(tmp_path):
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
    assert all(
        torch.equal(before[name], averaged(first)[name]) for name in before
    )  # the two tensors do not share memory


def test_init_from_another_network_is_refused(tmp_path):
    save(tmp_path / "best.pt", fresh(config_of()), config_of())
    with pytest.raises(
        CheckpointError,
        match=r"are those of another network than the network of this run; give -p width 8\.$",
    ):
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
    """A checkpoint of the course. As in most public copies, its entry `optimizer` contains weights."""
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


@pytest.mark.parametrize("read", [load_model, lambda path: resume(path, config_of())])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, read, kept):
    path = tmp_path / "last.pt"
    save(path, fresh(config_of()), config_of())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(CheckpointError, match=r"last\.pt"):
        read(path)


@pytest.mark.parametrize(
    ("name", "value"), [("lr", 0.5), ("width", 16), ("seed", 1), ("kl_strategy", "cyclical")]
)
def test_resuming_with_another_configuration_names_the_difference(tmp_path, name, value):
    path = tmp_path / "last.pt"
    save(path, fresh(config_of()), config_of())
    with pytest.raises(CheckpointError, match=f"{name} = .*{value}"):
        resume(path, config_of(**{name: value}))
    assert resume(path, config_of(epochs=9)).epoch == 0


# -- damaged or unknown content ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """The content of a checkpoint after one epoch, and its configuration."""
    path = tmp_path_factory.mktemp("run") / "last.pt"
    config = config_of()
    save(path, train(fresh(config), config, noise(), epochs=1), config)
    return torch.load(path, weights_only=True)


REPLACEMENTS = (
    None,
    0,
    -1,
    10**30,
    0.5,
    math.nan,
    "",
    "text",
    [],
    [None],
    {},
    {"a": 1},
    torch.zeros(2),
    True,
)


HARMLESS = ("threads", "optimizer", "kl_weight", "history")
"""Entries that may be changed in a valid checkpoint: another number in its range, and the settings of the optimizer,
which are not read from the file."""


def places(value, path=()):
    """Yield the path of every dict entry and list item, down to three levels.

    Below the top level, only the first two entries are included.
    """
    if path:
        yield path
    if isinstance(value, dict | list) and len(path) < 4:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in itertools.islice(items, None if not path else 2):
            yield from places(item, (*path, key))


def with_change(content, path, change):
    """Return a copy of the content in which `change` is applied to the entry at `path`."""
    changed = copy.deepcopy(content)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    change(inner, path[-1])
    return changed


def test_a_changed_entry_gives_an_error_in_one_line_or_a_state_that_trains(tmp_path, content):
    """Each entry is first removed, and then replaced by values of other types. Only CheckpointError may be raised."""
    path, config, data = tmp_path / "last.pt", config_of(epochs=2), noise()
    refused = used = 0
    for number, place in enumerate(places(content)):
        values = (REPLACEMENTS[(2 * number + k) % len(REPLACEMENTS)] for k in range(2))
        changes = [lambda inner, key: inner.pop(key)]
        changes += [lambda inner, key, value=value: inner.__setitem__(key, value) for value in values]
        for change in changes:
            torch.save(with_change(content, place, change), path)
            try:
                state = resume(path, config)
            except CheckpointError as error:
                message = str(error)
                refused += 1
            else:
                train(state, config, data)
                message, used = "", used + 1
                assert place[0] in HARMLESS, place
            assert len(message) < len(str(path)) + 400
            assert len(message.splitlines()) <= 1
    assert refused > 60
    assert used < refused / 2


@pytest.mark.parametrize("read", [load_model, read_history, lambda path: resume(path, config_of())])
def test_a_checkpoint_of_a_newer_version_raises_an_error_that_names_the_version(tmp_path, content, read):
    path = tmp_path / "last.pt"
    torch.save(content | {"format": 4, "state_dict": "another layout"}, path)
    with pytest.raises(
        CheckpointError, match=r"newer version of cvae_lab \(checkpoint format 4, .* up to 3\)"
    ):
        read(path)


@pytest.mark.parametrize("read", [load_model, lambda path: resume(path, config_of())])
@pytest.mark.parametrize("version", [{}, {"format": 1}, {"format": 2}])
def test_a_compact_checkpoint_of_an_earlier_format_raises_an_error_that_says_so(
    tmp_path, content, read, version
):
    path = tmp_path / "last.pt"
    torch.save({name: value for name, value in content.items() if name != "format"} | version, path)
    with pytest.raises(CheckpointError, match=r"`compact` of an earlier version .* train the run again"):
        read(path)


@pytest.mark.parametrize("version", [{}, {"format": 1}, {"format": 2}])
def test_a_handout_checkpoint_of_an_earlier_format_is_read(tmp_path, version):
    config = handout_config()
    path, state = tmp_path / "last.pt", fresh(config)
    save(path, state, config)
    content = torch.load(path, weights_only=True)
    torch.save({name: value for name, value in content.items() if name != "format"} | version, path)
    for weights in (resume(path, config).model.state_dict(), load_model(path).state_dict()):
        assert all(torch.equal(weights[name], value) for name, value in content["state_dict"].items())


def test_a_flipped_bit_raises_an_error_or_has_no_effect(tmp_path, content):
    """Bits are flipped in weights, moments, generators and pickled structure.

    Changes in padding and unused fields have no effect.
    """
    path = tmp_path / "last.pt"
    torch.save(content, path)
    whole = path.read_bytes()
    draws, refused = random.Random(0), 0
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[draws.randrange(len(whole))] ^= 1 << draws.randrange(8)
        path.write_bytes(bytes(damaged))
        try:
            state = resume(path, config_of())
        except CheckpointError:
            refused += 1
        else:
            assert all(torch.equal(v, content["state_dict"][k]) for k, v in state.model.state_dict().items())
            assert all(torch.equal(v, content["average"][k]) for k, v in averaged(state).items())
    assert refused > 30


@pytest.mark.parametrize("part", ["state_dict", "average"])
@pytest.mark.parametrize(("value", "kind"), [(math.nan, "NaN"), (-math.inf, "infinity")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, content, part, value, kind):
    path, name = tmp_path / "best.pt", "Generator.out.2.bias"
    torch.save(with_change(content, (part, name), lambda inner, key: inner[key].fill_(value)), path)
    message = rf"best\.pt cannot be used: its tensor {name} contains {kind}"
    with pytest.raises(CheckpointError, match=message):
        resume(path, config_of())
    with pytest.raises(CheckpointError, match=message):
        load_model(path, average=part == "average")
    with pytest.raises(CheckpointError, match=message):
        create_state(config_of(init_from=str(path))) if part == "average" else load_model(path, average=False)


def test_the_history_can_be_read_without_building_a_model(tmp_path, content):
    path = tmp_path / "last.pt"
    torch.save(content, path)
    assert [record["epoch"] for record in read_history(path)] == [1]


def test_init_from_a_course_checkpoint_names_the_preset_to_give(course):
    path, _ = course
    with pytest.raises(
        CheckpointError,
        match=r"epoch=9\.ckpt are those of another network than the network of this run; give -p preset handout\.$",
    ):
        create_state(config_of(init_from=str(path)))
    other = path.with_name("narrow.ckpt")
    torch.save(CVAE(ModelConfig.preset("handout", width=64)).state_dict(), other)
    with pytest.raises(CheckpointError, match=r"give -p preset handout -p width 64\.$"):
        create_state(config_of(init_from=str(other)))


@pytest.mark.parametrize("output", ["linear", "sigmoid"])
def test_a_course_checkpoint_gives_initial_weights_to_either_output(course, output):
    path, right = course
    config = RunConfig.from_params("noise", "handout", init_from=str(path), output=output, device="cpu")
    assert all(
        torch.equal(value, right[name]) for name, value in create_state(config).model.state_dict().items()
    )


@pytest.mark.parametrize("threads", [None, 1, 2])
def test_resuming_with_another_number_of_threads_gives_a_warning(tmp_path, content, caplog, threads):
    """Files of earlier versions do not contain the number of threads, so there is no warning."""
    path = tmp_path / "last.pt"
    torch.save(content | {"threads": threads}, path)
    resume(path, config_of())
    expected = ["The run used 2 CPU threads and resumes with 1"] if threads == 2 else []
    assert [message.split(". ")[0] for message in caplog.messages] == expected


# -- a full disk ---------------------------------------------------------------------------------------------


@pytest.fixture
def file_size_limit():
    """Return a function that limits the size of the files that this process writes, as a disk quota does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_save_beyond_a_size_limit_leaves_the_old_file_and_nothing_else(tmp_path, file_size_limit):
    path, config = tmp_path / "last.pt", config_of()
    state = fresh(config)
    save(path, state, config)
    before = path.read_bytes()
    file_size_limit(len(before) // 2)
    with pytest.raises(OSError, match=rf"{path} needs {len(before) / 1e6:.1f} MB, and .* MB are free"):
        save(path, state, config)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["last.pt"]


def test_a_full_disk_is_reported_with_the_file_and_the_space_that_it_needs(small_disk):
    config = config_of()
    (small_disk / "history.csv").write_text("epoch\n1\n")
    with pytest.raises(
        OSError, match=r"The disk is full: .*last\.pt needs \d+\.\d MB, and 0\.\d MB are free"
    ):
        save(small_disk / "last.pt", fresh(config), config)
    assert [file.name for file in small_disk.iterdir()] == ["history.csv"]


if __name__ == "__main__":
    child()
