"""Several processes under torchrun against one with the joined batch."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cvae_lab.config import ModelConfig, TrainConfig
from cvae_lab.data.clips import ClipBatch
from cvae_lab.objective import handout_beta, kl_standard_normal, psnr_weights, squared_error
from cvae_lab.rollout import Feedback, TrainingForward
from cvae_lab.runs.folder import RunFolder
from cvae_lab.schedules import sample_teacher_forcing
from cvae_lab.training import distributed, train_step
from cvae_lab.training.state import TrainState

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ROOT = Path(__file__).parents[1]


def gradients_of_a_joined_batch(share=lambda rows: rows):
    """Gradients after one backward pass over (this rank's share of) six clips with per-step sample_teacher_forcing."""
    state = TrainState.create(ModelConfig(width=8), TrainConfig(device="cpu"))
    g = torch.Generator().manual_seed(3)
    batch = ClipBatch(*(torch.rand(6, 5, 3, 16, 32, generator=g) for _ in range(2)))
    eps = torch.randn(6, 4, *state.model.latent_shape(16, 32), generator=g)
    tossed = sample_teacher_forcing(0.5, 6, 4, "step", g)
    mine = ClipBatch(*(share(part) for part in batch))
    out = state.network(mine, share(eps), Feedback(share(tossed)))
    dims = mine.x[0, 0].numel()
    error = squared_error(out.prediction, mine.x[:, 1:]) / dims
    joint = (
        distributed.summed(error.mean()) / distributed.world()
    )  # weights and sigma are the joined batch's, not the rank's
    cost = kl_standard_normal(out.mu, out.logvar).mean()
    loss = (psnr_weights(error, joint) * error).mean() + handout_beta(1.0, "elbo", dims, 0.0, joint) * cost
    loss.backward()
    return [p.grad for p in state.model.parameters()]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two processes left behind when they ran this file."""
    out = tmp_path_factory.mktemp("ranks")
    result = subprocess.run([*TORCHRUN, __file__, str(out)], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]
    return out


def test_two_processes_have_the_gradients_of_one(ranks):
    one = gradients_of_a_joined_batch()
    scale = max(
        float(gradient.abs().max()) for gradient in one
    )  # a bias before a norm has a gradient of rounding alone
    for rank in range(2):
        two = torch.load(ranks / f"{rank}.pt", weights_only=True)
        for a, b in zip(one, two, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6 * scale)


def weights_after_a_broken_clip():
    """All weights before a step and after it, where the last rank alone was given a clip of nan."""
    config = TrainConfig(device="cpu", precision="float32")
    state = TrainState.create(ModelConfig(width=8), config)
    batch = ClipBatch(*torch.rand(2, 2, 3, 3, 16, 32, generator=torch.Generator().manual_seed(3)))
    if distributed.rank() == distributed.world() - 1:
        batch.x[0, 1] = math.nan
    before = [p.detach().clone() for p in state.model.parameters()]
    values = train_step(state, batch, config, 1.0, Feedback(torch.ones(2, 2, dtype=torch.bool)))
    return before, [p.detach() for p in state.model.parameters()], values


def test_what_one_process_cannot_use_all_skip(ranks):
    for rank in range(2):
        before, after, values = torch.load(ranks / f"broken{rank}.pt", weights_only=True)
        assert values.isnan().all()
        assert all(map(torch.equal, before, after))


def test_one_process_is_left_alone():
    network = TrainingForward(TrainState.create(ModelConfig(width=8), TrainConfig()).model)
    assert distributed.data_parallel(network) is network
    assert distributed.shard(torch.arange(5)).tolist() == [0, 1, 2, 3, 4]
    assert distributed.from_rank_0(0.3) == 0.3


@pytest.mark.slow
def test_a_run_under_torchrun_is_one_run(tmp_path):
    out = tmp_path / "run"
    small = ["-p", "width", "8", "-p", "clips_per_epoch", "24", "-p", "epochs", "2", "-p", "eval_every", "1"]
    command = [*TORCHRUN, "-m", "cvae_lab", "train", str(out), "--data", "tiny", *small]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-2000:]
    run = RunFolder(out)
    assert run.history["epoch"].tolist() == [1, 2]
    assert run.result["psnr_mean"] > 5
    assert result.stdout.count("epoch   1") == 1  # rank 0 alone prints


if __name__ == "__main__":
    torch.set_num_threads(1)
    with distributed.process_group():
        torch.save(gradients_of_a_joined_batch(distributed.shard), Path(sys.argv[1]) / f"{distributed.rank()}.pt")
        torch.save(weights_after_a_broken_clip(), Path(sys.argv[1]) / f"broken{distributed.rank()}.pt")
