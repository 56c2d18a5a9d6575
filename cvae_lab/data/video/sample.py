"""A video file with known joints, for notebook 10: the synthetic figure, rendered at 256 x 512 pixels."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from jaxtyping import Float
from PIL import Image

from cvae_lab.data.synthetic import drawing, motion, skeleton
from cvae_lab.data.video.keypoints import JOINTS

ENLARGED = 8  # times as high and as wide as a frame of the synthetic data set with 32 x 64 pixels
FPS = 25


def write_sample_video(folder: str | Path, frames: int = 450, seed: int = 0) -> tuple[Path, Path]:
    """Write `clip.mp4` and `clip.npz` to a folder: a video of the synthetic figure, and its joints in pixels.

    A joint outside the picture is missing, as in the output of a pose estimator.
    """
    places = _places(frames, seed)
    pictures = drawing.frames(places, np.zeros(frames), np.ones(frames), _size()[1]).transpose(0, 2, 3, 1)
    video, keypoints = Path(folder) / "clip.mp4", Path(folder) / "clip.npz"
    _write_mp4(video, [Image.fromarray(picture) for picture in pictures])
    np.savez(keypoints, keypoints=sample_joints(frames, seed), joints=np.array(JOINTS))
    return video, keypoints


def sample_joints(frames: int, seed: int = 0) -> Float[np.ndarray, "n joints 3"]:
    """Return column, row and confidence (1) of the `JOINTS` in the sample video; NaN outside the picture."""
    columns = [skeleton.JOINTS.index(name) for name in JOINTS]
    joints = ENLARGED * drawing.project(_places(frames, seed))[:, columns, :2]
    joints[((joints < 0) | (joints > _size())).any(-1)] = np.nan
    return np.concatenate([joints, np.where(np.isnan(joints[..., :1]), np.nan, 1.0)], axis=-1)


def _places(frames: int, seed: int) -> Float[np.ndarray, "n joints 3"]:
    return skeleton.joints(motion.routine(frames, np.random.default_rng(seed)))


def _size() -> tuple[int, int]:
    """Width and height of the video."""
    return ENLARGED * drawing.WIDTH, ENLARGED * drawing.HEIGHT


def exchange_sides(
    keypoints: Float[np.ndarray, "n joints c"], first: int, last: int
) -> Float[np.ndarray, "n joints c"]:
    """Exchange left and right keypoints in frames `first` to `last`, which is a typical error of pose estimators."""
    other = [
        JOINTS.index(f"{n[:-1]}{'rl'['lr'.index(n[-1])]}" if n[-2:] in ("_l", "_r") else n) for n in JOINTS
    ]
    wrong = keypoints.copy()
    wrong[first : last + 1] = keypoints[first : last + 1, other]
    return wrong


def _write_mp4(file: Path, pictures: list[Image.Image]) -> None:
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "18", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = *pictures[0].size, "yuv420p"
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_image(picture)
            frame.pts, frame.time_base = i, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
