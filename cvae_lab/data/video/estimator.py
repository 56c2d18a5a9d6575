"""The pose estimator: mediapipe in a Python environment of its own, run as a separate process.

The last official mediapipe with pose models inside its wheel needs numpy below 2, so it cannot be installed beside the
project. Its own environment keeps the project's dependencies current. Only `install` uses the network; `estimate` works
offline, and frames go to a local file only.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from cvae_lab.data.cache import cache_dir
from cvae_lab.data.pixels import DataError
from cvae_lab.data.video.decode import DecodedVideo
from cvae_lab.data.video.keypoints import Keypoints, to_joints

MEDIAPIPE = "mediapipe==0.10.21"  # later wheels hold no pose model: findings/mediapipe_without_models.sh
REQUIREMENTS = (
    "numpy==1.26.4",
    "opencv-contrib-python-headless==4.11.0.86",  # mediapipe names the variant that needs a display's libraries
    "protobuf>=4.25.3,<5",
    "matplotlib>=3.8,<3.11",
    "absl-py",
    "attrs",
    "flatbuffers>=2",
)  # what mediapipe's pose solution imports; jax and sounddevice, which it also names, are left out
WORKER = Path(__file__).with_name("mediapipe_worker.py")
COMPLETE = "complete.txt"  # written last: an environment without it is not used


def environment() -> Path:
    """The environment's folder: CVAE_LAB_MEDIAPIPE, or `mediapipe-0.10.21` in the cache folder."""
    return Path(os.environ.get("CVAE_LAB_MEDIAPIPE") or cache_dir() / MEDIAPIPE.replace("==", "-"))


def install(python: str = sys.executable) -> Path:
    """Make the environment with `python` (3.9 to 3.12) and pip; about 140 MB are downloaded from pip's index."""
    folder = environment()
    pip = [str(_python(folder)), "-m", "pip", "install", "--disable-pip-version-check"]
    steps = (
        [python, "-m", "venv", "--clear", str(folder)],
        [*pip, *REQUIREMENTS],
        [*pip, "--no-deps", MEDIAPIPE],
        [str(_python(folder)), "-c", "import mediapipe; mediapipe.solutions.pose"],
    )
    for step in steps:
        if subprocess.run(step, check=False).returncode:
            raise DataError(
                f"{folder}: {MEDIAPIPE} could not be installed, '{' '.join(step)}' failed (output above); it has "
                "wheels for Python 3.9 to 3.12, name such a Python with --python"
            )
    (folder / COMPLETE).write_text(MEDIAPIPE + "\n")
    return folder


def _python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def check_installed() -> None:
    """Raise DataError where the environment is missing; nothing is installed without the user's command."""
    if not (environment() / COMPLETE).is_file():
        raise DataError(
            f"{environment()}: the pose estimator is not installed; run 'cvae-lab video-setup' once (it downloads "
            "about 140 MB), or give keypoints made elsewhere with --pose"
        )


def estimate(video: DecodedVideo, scratch: str | Path, progress: bool = True) -> Keypoints:
    """Return one person's `JOINTS` in pixels of `video.frames`, NaN where none was found."""
    check_installed()
    count, height, width, _ = video.frames.shape
    out, log = Path(scratch) / "landmarks.npz", Path(scratch) / "worker.log"
    # -I keeps PYTHONPATH and the user's packages out of the estimator's environment.
    command = [str(_python(environment())), "-I", str(WORKER), str(video.frames.filename)]
    command += [str(count), str(height), str(width), str(out)]
    with log.open("w") as errors, subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=scratch
    ) as worker, tqdm(
        total=count, desc="finding poses", unit=" frame", leave=False, disable=None if progress else True
    ) as bar:  # fmt: skip
        try:
            for _ in worker.stdout:
                bar.update()
        except BaseException:
            worker.kill()
            raise
    if worker.returncode:
        reason = (log.read_text(errors="replace").strip().splitlines() or ["no message"])[-1]
        raise DataError(
            f"{environment()}: the pose estimator stopped with exit code {worker.returncode} ({reason}); run "
            "'cvae-lab video-setup' again"
        )
    return _read(out)


def _read(file: Path) -> Float[np.ndarray, "n joints 3"]:
    with np.load(file) as arrays:
        return to_joints(arrays["keypoints"], "mediapipe-33")
