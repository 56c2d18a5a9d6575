"""Compare two processes under torchrun with one process on the whole batch. As a script, this file runs one rank."""

import itertools
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cvae_lab.config import ModelConfig, RunConfig, TrainConfig
from cvae_lab.data.clips import ClipBatch, Dataset, Video
from cvae_lab.rollout import Feedback
from cvae_lab.rollout.teacher_forcing import sample_teacher_forcing
from cvae_lab.runs.folder import RunFolder
from cvae_lab.training import checkpoint, distributed, fit, loop, train_step
from cvae_lab.training.state import TrainingForward, TrainState

RANKS = 2
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
ROOT = Path(__file__).parents[1]
STEP = TrainConfig(device="cpu", precision="float32", scale="elbo", weighting="psnr", clip_norm=0.5)
RUN = RunConfig.from_params(
    "noise", width=8, latents=2, epochs=4, n_frames=4, batch_size=4, clips_per_epoch=8, holdout=0.2, shift=1,
    device="cpu", precision="float32", eval_every=1, tf_strategy="constant", tf_start=0.5, kl_target=0.5,
)  # fmt: skip


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def train_step_on_a_joined_batch(shard=lambda rows: rows):
    """Return result and gradients of a training step on this rank's shard of six clips, or on all six clips."""
    state = TrainState.create(ModelConfig(width=8), STEP)
    draws = seeded(3)
    batch = ClipBatch(*(torch.rand(6, 5, 3, 16, 32, generator=draws) for _ in range(2)))
    mask = sample_teacher_forcing(0.5, 6, 4, "step", draws)
    mine = ClipBatch(*(shard(part) for part in batch))
    result = train_step(state, mine, STEP, 1.0, Feedback(shard(mask)))
    return torch.tensor(result[:3]), [p.grad for p in state.model.parameters()]


def train_step_with_one_broken_clip():
    """Take a step in which the last rank has a clip of NaN. Return the weights before and after it, and `is_finite`."""
    state = TrainState.create(ModelConfig(width=8), STEP)
    batch = ClipBatch(*torch.rand(2, 2, 3, 3, 16, 32, generator=seeded(3)))
    if distributed.rank() == distributed.world() - 1:
        batch.x[0, 1] = math.nan
    before = [p.detach().clone() for p in state.model.parameters()]
    result = train_step(state, batch, STEP, 1.0, Feedback(torch.ones(2, 2, dtype=torch.bool)))
    return before, [p.detach() for p in state.model.parameters()], result.is_finite


def noise():
    def video(n, seed, boundaries=()):
        frames, labels = torch.randint(0, 256, (2, n, 3, 8, 16), generator=seeded(seed), dtype=torch.uint8)
        return Video(frames, labels, boundaries, str(seed))

    return Dataset("noise", video(40, 0, (20,)), video(6, 1), ())


def run(folder, epochs=None):
    """Train a new run or resume from last.pt, for all or some epochs. Return weights, generators and history."""
    torch.distributed.barrier()  # rank 0 has written its last file
    last = folder / "last.pt"
    state = checkpoint.resume(last, RUN) if last.exists() else checkpoint.create_state(RUN)
    for _ in itertools.islice(fit(state, noise(), RUN.train), epochs):
        if not distributed.rank():
            folder.mkdir(exist_ok=True)
            checkpoint.save(last, state, RUN)
    timed = ("seconds", "frames_per_s")
    history = [
        {name: value for name, value in record.items() if name not in timed} for record in state.history
    ]
    return {
        "weights": state.model.state_dict(),
        "generators": {name: generator.get_state() for name, generator in state.generators.items()},
        "history": history,
    }


def main(out):
    torch.set_num_threads(1)
    with distributed.process_group():
        torch.save(
            {
                "step": train_step_on_a_joined_batch(distributed.shard),
                "broken": train_step_with_one_broken_clip(),
                "whole": run(out / "whole"),
                "first half": run(out / "parts", epochs=2),
                "resumed": run(out / "parts"),
            },
            out / f"{distributed.rank()}.pt",
        )


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Run this file as a script in two processes, and return the files that they wrote."""
    out = tmp_path_factory.mktemp("ranks")
    result = subprocess.run([*TORCHRUN, __file__, str(out)], capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr[-6000:]
    return [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


def test_a_training_step_of_two_processes_has_the_gradients_of_one(ranks, monkeypatch):
    """Each rank draws its own noise. The single process gets the noise of both ranks, in the order of the clips."""

    def noise_of_all_ranks(model, x, generator):
        shape = (len(x) // RANKS, x.shape[1] - 1, *model.latent_shape(*x.shape[-2:]))
        return torch.stack([torch.randn(shape, generator=each) for each in generators], dim=1).flatten(0, 1)

    generators = []
    for rank in range(RANKS):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        generators.append(TrainState.create(ModelConfig(width=8), STEP).generators["noise"])
    monkeypatch.setattr(distributed, "rank", lambda: 0)
    monkeypatch.setattr(loop, "_noise_like_latents", noise_of_all_ranks)
    values, gradients = train_step_on_a_joined_batch()
    scale = max(float(gradient.abs().max()) for gradient in gradients)
    mean = torch.stack([rank["step"][0] for rank in ranks]).mean(0)
    torch.testing.assert_close(mean, values, rtol=1e-4, atol=0)
    for rank in ranks:
        for two, one in zip(rank["step"][1], gradients, strict=True):
            # The gradient of a bias before a norm is only rounding error, so it is compared with the largest gradient.
            torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-6 * scale)


def test_a_step_that_is_not_finite_on_one_rank_is_skipped_on_all(ranks):
    for rank in ranks:
        before, after, is_finite = rank["broken"]
        assert not is_finite
        assert all(map(torch.equal, before, after))


@pytest.mark.parametrize("name", ["whole", "resumed"])
def test_all_ranks_hold_the_same_weights_and_draw_different_noise(ranks, name):
    weights = [rank[name]["weights"] for rank in ranks]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    streams = [rank[name]["generators"] for rank in ranks]
    for stream in ("clips", "teacher_forcing", "augment"):
        assert torch.equal(streams[0][stream], streams[1][stream])
    assert not torch.equal(streams[0]["noise"], streams[1]["noise"])


def test_a_resumed_run_of_two_processes_equals_the_uninterrupted_one(ranks):
    for rank in ranks:
        whole, resumed = rank["whole"], rank["resumed"]
        assert all(torch.equal(whole["weights"][name], value) for name, value in resumed["weights"].items())
        assert all(
            torch.equal(whole["generators"][name], value) for name, value in resumed["generators"].items()
        )
        assert whole["history"] == resumed["history"]
        assert [record["epoch"] for record in rank["resumed"]["history"]] == [1, 2, 3, 4]
        assert rank["resumed"]["history"][:2] == rank["first half"]["history"] == rank["whole"]["history"][:2]
        assert rank["resumed"]["history"][-1]["step"] == rank["whole"]["history"][-1]["step"] == 8


def test_functions_of_distributed_change_nothing_in_a_single_process():
    network = TrainingForward(TrainState.create(ModelConfig(width=8), TrainConfig(device="cpu")).model)
    assert distributed.data_parallel(network) is network
    assert distributed.shard(torch.arange(5)).tolist() == [0, 1, 2, 3, 4]
    assert distributed.from_rank_0(0.3) == 0.3
    assert distributed.summed(torch.tensor([1.0, 2.0])).tolist() == [1.0, 2.0]


@pytest.mark.slow
def test_a_run_under_torchrun_writes_one_run_folder(tmp_path):
    out = tmp_path / "run"
    small = ["-p", "width", "8", "-p", "clips_per_epoch", "24", "-p", "epochs", "2", "-p", "eval_every", "1"]
    command = [*TORCHRUN, "-m", "cvae_lab", "train", str(out), "--data", "tiny", *small]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-6000:]
    run = RunFolder(out)
    assert run.history["epoch"].tolist() == [1, 2]
    by_clip = run.psnr.groupby("clip")["psnr"].mean()
    assert run.result["psnr_by_clip"] == pytest.approx(by_clip.to_dict(), abs=2e-3)
    assert result.stdout.count("epoch   1") == 1  # only rank 0 prints


if __name__ == "__main__":
    main(Path(sys.argv[1]))
