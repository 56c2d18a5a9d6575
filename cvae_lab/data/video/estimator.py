"""The pose estimator: mediapipe in a separate Python environment and a separate process.

The last official mediapipe wheel that contains pose models needs numpy below 2. Mediapipe therefore cannot be installed
in the project's environment. Only `install` uses the network. `estimate` works offline and writes frames to a local
file only.
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

# Later wheels contain no pose model, see findings/mediapipe_without_models.sh.
MEDIAPIPE = "mediapipe==0.10.21"
# Only packages that mediapipe's pose solution imports. Its other dependencies, jax and sounddevice, are not needed.
REQUIREMENTS = (
    "numpy==1.26.4",
    "opencv-contrib-python-headless==4.11.0.86",  # mediapipe requires the variant that needs display libraries
    "protobuf>=4.25.3,<5",
    "matplotlib>=3.8,<3.11",
    "absl-py",
    "attrs",
    "flatbuffers>=2",
)
WORKER = Path(__file__).with_name("mediapipe_worker.py")
COMPLETE = "complete.txt"  # this file is written last; an environment without it is not used


def environment() -> Path:
    """Return the environment's folder: CVAE_LAB_MEDIAPIPE, or `mediapipe-0.10.21` in the cache folder."""
    return Path(os.environ.get("CVAE_LAB_MEDIAPIPE") or cache_dir() / MEDIAPIPE.replace("==", "-"))


def install(python: str = sys.executable) -> Path:
    """Create the environment with `python` (3.9 to 3.12) and pip. About 140 MB are downloaded from pip's index."""
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
                f"{folder}: {MEDIAPIPE} could not be installed, because '{' '.join(step)}' failed (see the output "
                f"above); its wheels are for Python 3.9 to 3.12, so give one of these versions with --python"
            )
    (folder / COMPLETE).write_text(MEDIAPIPE + "\n")
    return folder


def _python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def check_installed() -> None:
    """Raise DataError if the environment is missing. Only the command `video-setup` installs the environment."""
    if not (environment() / COMPLETE).is_file():
        raise DataError(
            f"{environment()}: the pose estimator is not installed; run 'cvae-lab video-setup' once (this command "
            f"downloads about 140 MB), or give keypoints from another program with --pose"
        )


def estimate(video: DecodedVideo, scratch: str | Path, progress: bool = True) -> Keypoints:
    """Return one person's `JOINTS` in pixels of `video.frames`; NaN if no person was found."""
    check_installed()
    count, height, width, _ = video.frames.shape
    out, log = Path(scratch) / "landmarks.npz", Path(scratch) / "worker.log"
    # With -I, Python ignores PYTHONPATH and the user's packages.
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
