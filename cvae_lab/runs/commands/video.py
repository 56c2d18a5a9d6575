"""Commands that make a data set from a video."""

import argparse
import sys
from pathlib import Path

from cvae_lab.runs.commands import Add


def add_commands(add: Add) -> None:
    _add_video(add)
    setup = add("video-setup", "download and install the pose estimator for `video`", "")
    setup.add_argument("--python", default=sys.executable, help="a Python interpreter, version 3.9 to 3.12")


def _add_video(add: Add) -> None:
    video = add(
        "video", "make a data set from a video of one person, recorded with a fixed camera",
        "clip.mp4 --out data/mine", "clip.mp4 --out data/mine --pose openpose/ --fps 25 --fit crop",
    )  # fmt: skip
    video.add_argument("file", type=Path, metavar="FILE", help="a video file")
    text = "an empty or new folder; required, no default"
    video.add_argument("--out", type=Path, required=True, metavar="DATA", help=text)
    text = "source of the joints: mediapipe, or a file or folder of keypoints"
    video.add_argument("--pose", default="mediapipe", help=text)
    sizes = ["32x64", "64x128", "128x256"]
    video.add_argument("--size", choices=sizes, default="32x64", help="height x width")
    text = "number of frames per second to keep; default: all frames"
    video.add_argument("--fps", type=float, help=text)
    text = "length of the used beginning of the video in seconds; default: the whole video"
    video.add_argument("--seconds", type=float, help=text)
    edges = ("LEFT", "TOP", "WIDTH", "HEIGHT")
    text = "crop in pixels of the upright video; default: no crop"
    video.add_argument("--crop", type=int, nargs=4, metavar=edges, help=text)
    fits = ["letterbox", "crop"]
    text = "add black bars, or remove the edges"
    video.add_argument("--fit", choices=fits, default="letterbox", help=text)
    text = "longest gap, in frames, over which the position of a joint is interpolated"
    video.add_argument("--max-gap", type=int, default=5, help=text)
    text = "number of frames in the smoothing window; 0: no smoothing"
    video.add_argument("--smooth", type=int, default=7, help=text)


def video(options: argparse.Namespace) -> None:
    from cvae_lab.data.video import make_data_set

    names = ("file", "out", "pose", "fps", "seconds", "fit", "max_gap", "smooth")
    crop = tuple(options.crop) if options.crop else None
    size = tuple(map(int, options.size.split("x")))
    report = make_data_set(**{name: getattr(options, name) for name in names}, size=size, crop=crop)
    print(
        *report.lines,
        f"Wrote {options.out}; open {options.out / 'index.html'} and check the labels before training.",
        sep="\n",
    )


def video_setup(options: argparse.Namespace) -> None:
    from cvae_lab.data.video import estimator

    folder = estimator.environment()
    print(f"Installing {estimator.MEDIAPIPE} in {folder}; about 140 MB are downloaded.", flush=True)
    estimator.install(options.python)
    print(f"The pose estimator is ready in {folder}.")
