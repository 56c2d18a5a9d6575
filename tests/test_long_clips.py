"""Clips of thousands of frames: predicted, scored and written in chunks, with the results of the whole clip."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from cvae_lab.config import ModelConfig, TrainConfig
from cvae_lab.data import course_csv
from cvae_lab.data.clips import Clip
from cvae_lab.data.palette import mirror_labels
from cvae_lab.evaluation import predict_clips
from cvae_lab.evaluation.corrections import SETTLING_STEPS, correction_weights
from cvae_lab.evaluation.metrics import psnr, ssim
from cvae_lab.evaluation.scoring import clip_generator, predict_clips_in_chunks
from cvae_lab.models.cvae import CVAE
from cvae_lab.rollout import clip_streams, predict
from cvae_lab.runs.result import gather, score
from cvae_lab.views import clip_views

CONFIG = TrainConfig(flip=True, precision="float32", device="cpu")


def clip_of(name, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels, answer = torch.randint(0, 256, (2, length, 3, 32, 64), generator=generator, dtype=torch.uint8)
    labels[length // 2 :] = labels[0]  # the same pose, so the first-frame correction is large
    return Clip(name, answer[0], labels, answer)


@pytest.fixture(scope="module", params=["normal", "learned"])
def model(request):
    """A network with the prior N(0, I), which uses the folded decoder, or with a learned prior, which does not."""
    torch.manual_seed(0)
    return CVAE(ModelConfig.preset("compact", width=8, latents=2, prior=request.param)).eval()


def corrected_as_a_whole(model, clip):
    """Return the corrected prediction, computed by its definition with all frames in memory."""
    labels, first = clip.labels[None].float() / 255, clip.first[None].float() / 255
    stream = clip_generator(clip, 0)

    def averaged(p):
        mirrored_stream = clip_streams(stream, 1)
        frames = predict(model, first, p, [stream])
        mirrored = predict(model, first.flip(-1), torch.stack([mirror_labels(p[0])]), mirrored_stream)
        return (frames + mirrored.flip(-1)) / 2

    frames = averaged(labels)
    error = first - averaged(labels[:, :1].repeat(1, SETTLING_STEPS + 1, 1, 1, 1))[:, -1]
    return (frames + correction_weights(labels[0])[None, :, None, None, None] * error[:, None]).clamp(0, 1)[0]


def test_the_chunks_of_a_corrected_prediction_equal_the_definition(model):
    clip = clip_of("7", 100)
    (whole,) = predict_clips(model, [clip], CONFIG, corrected=True)
    assert torch.equal(whole, corrected_as_a_whole(model, clip))


@pytest.mark.parametrize("corrected", [False, True])
def test_frames_and_scores_of_chunks_equal_those_of_whole_clips(model, corrected):
    clips = [clip_of("0", 100), replace(clip_of("1", 41, 1), answer=None), clip_of("2", 66, 2)]
    whole = predict_clips(model, clips, CONFIG, corrected=corrected)
    found = gather(clips, predict_clips_in_chunks(model, clips, CONFIG, corrected=corrected))
    table = score(clips, found)
    for clip, frames, pixels in zip(clips, whole, found.frames, strict=True):
        assert np.array_equal(pixels.numpy(), np.rint(255 * frames.numpy()).astype(np.uint8))
        rows = table[table["clip"] == clip.name]
        if clip.answer is None:
            assert rows.empty
            continue
        truth = clip.answer.float() / 255
        assert np.array_equal(rows["psnr"], psnr(frames, truth[1:]))
        assert np.array_equal(rows["baseline_static"], psnr(truth[:1].expand_as(truth[1:]), truth[1:]))
        assert np.allclose(rows["ssim"], ssim(frames, truth[1:]), atol=1e-6)
        assert rows["frame"].tolist() == [*range(1, len(clip))]


def test_prediction_in_chunks_leaves_the_mode_of_the_model(model):
    modes = [module.training for module in model.train().modules()]
    for _ in predict_clips_in_chunks(model, [clip_of("0", 40)], CONFIG, corrected=True):
        assert torch.is_grad_enabled()
    assert [module.training for module in model.modules()] == modes
    model.eval()


def test_long_clips_are_shown_in_real_time_with_fewer_frames(tmp_path, monkeypatch):
    """With a limit of 10 frames, 45 frames are reduced to every fifth: 1, 6, ..., 41."""
    monkeypatch.setattr(clip_views, "MOST_FRAMES", 10)
    clip = clip_of("0", 46)
    clip_views.write_clip_gif(tmp_path / "clip.gif", clip, clip.answer[1:])
    clip_views.write_grid_gif(tmp_path / "grid.gif", [clip], [clip.answer[1:]])
    for name, frames in (("clip.gif", 9), ("grid.gif", 8)):
        with Image.open(tmp_path / name) as picture:
            assert picture.n_frames == frames
            milliseconds = 0
            for i in range(frames):
                picture.seek(i)
                milliseconds += picture.info["duration"]
        assert (
            abs(milliseconds - 1000 * 45 / 20) <= 150
        )  # the last of the frames can begin shortly before the end
    clip_views.write_clip_player(tmp_path / "clip.html", clip, clip.answer[1:])
    page = (tmp_path / "clip.html").read_text()
    assert "Clip 0 (1 of 5 frames is shown)" in page
    assert json.dumps([*range(1, 46, 5)], separators=(",", ":")) in page


def test_text_files_of_long_clips_equal_those_written_in_one_part(tmp_path, monkeypatch):
    clips = [clip_of("0", 20).answer, clip_of("1", 7, 1).answer]
    for rows in (3, 1000):
        monkeypatch.setattr(course_csv, "ROWS_PER_WRITE", rows)
        course_csv.write_submission(tmp_path / f"{rows}.csv", clips)
        course_csv.write_2023(tmp_path / f"{rows}.txt", clips[0])
    for suffix in ("csv", "txt"):
        assert (tmp_path / f"3.{suffix}").read_bytes() == (tmp_path / f"1000.{suffix}").read_bytes()
    table = np.loadtxt(tmp_path / "3.csv", delimiter=",", skiprows=1, dtype=int)
    assert np.array_equal(table, np.column_stack([np.arange(27), torch.cat(clips).flatten(1).numpy()]))


def test_a_long_clip_is_predicted_scored_and_written_in_bounded_memory(tmp_path):
    """2,000 frames with true frames: 12 MB as uint8 and 49 MB as float32, and 260 MB as the pictures of the GIF."""
    code = """
import sys, torch
from pathlib import Path
from cvae_lab import CVAE, ModelConfig
from cvae_lab.config import TrainConfig
from cvae_lab.data.clips import Clip
from cvae_lab.evaluation.scoring import predict_clips_in_chunks
from cvae_lab.runs.predict import _write
from cvae_lab.runs.result import gather

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024

torch.set_num_threads(1)
model = CVAE(ModelConfig.preset("compact", width=8, latents=2))

def run(length, out):
    pixels = torch.randint(0, 256, (1, 3, 32, 64), dtype=torch.uint8).expand(length, -1, -1, -1).contiguous()
    clip = Clip("0", pixels[0], pixels, pixels)
    chunks = predict_clips_in_chunks(model, [clip], TrainConfig(flip=True), corrected=True)
    _write(Path(out), "later", [clip], gather([clip], chunks), print)

run(100, sys.argv[1])  # imports libraries, which allocate their workspace
before = peak()
run(2_000, sys.argv[2])
print(peak() - before)
"""
    folders = [str(tmp_path / name) for name in ("short", "long")]
    done = subprocess.run([sys.executable, "-c", code, *folders], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 200  # MiB, that is 0.1 MiB per frame
