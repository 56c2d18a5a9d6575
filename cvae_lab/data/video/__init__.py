"""Make a data set in the course's layout from a video of one person, recorded with a fixed camera.

The modules are used in this order: `decode` reads upright frames. `estimator` computes the joints, or `keypoints` reads
them from files. `tracks` repairs and smooths the joints. `make_data_set` draws labels, splits the video and writes the
data set. `report` describes the data set.
"""

import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from cvae_lab.data.clips import Clip, Dataset, Video, find_boundaries
from cvae_lab.data.folder import write_folder
from cvae_lab.data.pixels import SIZES, DataError
from cvae_lab.data.synthetic.drawing import draw_limbs
from cvae_lab.data.video import decode, estimator
from cvae_lab.data.video.decode import DecodedVideo
from cvae_lab.data.video.keypoints import JOINTS, Keypoints, read_keypoints
from cvae_lab.data.video.report import Report, Segment, measure, read_report, sentences, write_pages
from cvae_lab.data.video.tracks import MIN_FRAMES, Tracks, clean

__all__ = ["SIZES", "Report", "make_data_set", "read_report"]

TEST_FRAMES = 630  # as in the course; a test segment has at most a tenth of the frames


def make_data_set(
    file: str | Path,
    out: str | Path,
    pose: str | Path = "mediapipe",
    size: tuple[int, int] = (32, 64),
    fps: float | None = None,
    seconds: float | None = None,
    crop: tuple[int, int, int, int] | None = None,
    fit: Literal["letterbox", "crop"] = "letterbox",
    max_gap: int = 5,
    smooth: int = 7,
    progress: bool = True,
) -> Report:
    """Make a data set from a video: training video, validation video, two test clips with answers, and a report.

    The folder `out` must be new or empty. The course's folders, `video.json` (the report), `contact_sheet.png` and
    `index.html` are written to `out`. Raises DataError for a faulty video, for faulty keypoints, or if too few frames
    show a person.

    Args:
        pose: "mediapipe", or a file or folder of keypoints (see `keypoints`).
        size: height and width of the pictures, one of `SIZES`.
        fps: number of frames per second that are selected by their time stamps; None keeps every frame.
        seconds: length of the used beginning of the video; None uses the whole video.
        crop: left, top, width and height in pixels of the upright video. The crop is applied before `fit`.
        fit: "letterbox" adds black bars. "crop" selects the largest box with the aspect ratio of `size` around the
            person.
        max_gap: length in frames of the longest gap in a joint's track that is interpolated.
        smooth: window of the Savitzky-Golay filter, an odd number of frames; 0 means no smoothing.
    """
    settings = {
        "pose": str(pose), "size": list(size), "fps": fps, "seconds": seconds, "crop": crop, "fit": fit,
        "max_gap": max_gap, "smooth": smooth,
    }  # fmt: skip
    _check_settings(Path(out), size, fit, str(pose))
    with tempfile.TemporaryDirectory(prefix="cvae-lab-video-") as scratch:
        video = decode.read_video(file, scratch, fps, seconds, crop, progress)
        keypoints, crowded = _keypoints(video, pose, scratch, progress)
        found = {"file": Path(file).name, "frames_with_several_persons": crowded}
        return _write(file, Path(out), video, keypoints, settings, found)


def _write(
    file: str | Path,
    out: Path,
    video: DecodedVideo,
    keypoints: Keypoints,
    settings: dict[str, Any],
    found: dict[str, Any],
) -> Report:
    """Repair the tracks, split the video, and write the data set, the report and its pages."""
    size, shape = tuple(settings["size"]), video.frames.shape[1:3]
    whole = decode.letterbox(shape, size)
    boundaries = find_boundaries(torch.from_numpy(decode.fit(video.frames, whole, size)))
    tracks = clean(keypoints, video.times, boundaries, settings["max_gap"], settings["smooth"])
    parts = split(file, tracks)
    box = whole if settings["fit"] == "letterbox" else decode.crop_around(shape, size, tracks.points)
    dataset = _dataset(Path(file).stem, video, tracks, parts, box, size)
    write_folder(dataset, out)
    measured = found | measure(video, tracks, parts, box)
    report = Report(settings, measured, tuple(sentences(settings, measured)))
    write_pages(out, report, video, tracks, parts, dataset)
    return report


def _check_settings(out: Path, size: tuple[int, int], fit: str, pose: str) -> None:
    """Raise an error for a wrong setting before the video is decoded, because decoding takes long."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(
            f"{out}: this folder already exists and is not empty; choose a new or empty folder, or remove it first"
        )
    if tuple(size) not in SIZES:
        raise ValueError(f"size is {size}; choose from {', '.join(f'{h}x{w}' for h, w in SIZES)}")
    if fit not in ("letterbox", "crop"):
        raise ValueError(f"fit is {fit!r}; choose 'letterbox' or 'crop'")
    if pose == "mediapipe":
        estimator.check_installed()


def _keypoints(video: DecodedVideo, pose: str | Path, scratch: str, progress: bool) -> tuple[Keypoints, int]:
    """Return the joints in pixels of `video.frames`, and the number of frames with several persons."""
    if str(pose) == "mediapipe":
        return estimator.estimate(video, scratch, progress), 0
    keypoints, crowded = read_keypoints(pose, video.numbers)
    keypoints[..., :2] = video.from_source(keypoints[..., :2])
    return keypoints, crowded


def split(file: str | Path, tracks: Tracks) -> dict[str, list[Segment]]:
    """Split the recordings into segments for test clip 1, test clip 0, validation and training, in this order.

    Each held-out segment is the end of the longest recording that remains. The length of a held-out segment is a tenth
    of all frames, but at least 16 and at most 630. All other frames are for training.
    """
    left = list(tracks.recordings)
    total = sum(stop - start for start, stop in left)
    if total < 5 * MIN_FRAMES:
        raise DataError(
            f"{file}: {tracks.found.sum()} of {len(tracks.found)} frames show a person, and {total} of these frames "
            f"are in recordings of {MIN_FRAMES} frames or more; {5 * MIN_FRAMES} are needed; use a longer video, or a "
            f"video that shows the whole person"
        )
    held = min(TEST_FRAMES, max(MIN_FRAMES, total // 10))
    parts: dict[str, list[Segment]] = {}
    for name in ("test 1", "test 0", "val"):
        start, stop = max(left, key=lambda segment: segment[1] - segment[0])
        edge = max(start, stop - held)
        edge = edge if edge - start >= MIN_FRAMES else start  # the rest would be too short for training
        parts[name] = [(edge, stop)]
        left = [s for s in left if s != (start, stop)] + ([(start, edge)] if edge > start else [])
    parts["train"] = sorted(left)
    if not left:
        raise DataError(
            f"{file}: no frames remain for training after three held-out segments; use a longer video"
        )
    return parts


def _dataset(
    name: str,
    video: DecodedVideo,
    tracks: Tracks,
    parts: dict[str, list[Segment]],
    box: decode.Box,
    size: tuple[int, int],
) -> Dataset:
    """Return the data set with frames and labels of `size`. All frames are cropped with the same box."""
    left, top, wide, high = box
    points = (tracks.points - [left, top]) * [size[1] / wide, size[0] / high]

    def pictures(segments: list[Segment]) -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]:
        frames = np.concatenate([decode.fit(video.frames[a:b], box, size) for a, b in segments])
        chosen = np.concatenate([points[a:b] for a, b in segments])
        labels = draw_limbs(np.nan_to_num(chosen), np.isnan(chosen[..., 0]), JOINTS, size)
        edges = np.cumsum([b - a for a, b in segments])[:-1].tolist()
        return torch.from_numpy(frames), torch.from_numpy(labels), tuple(edges)

    train, val = (Video(*pictures(parts[part]), name=part) for part in ("train", "val"))
    tests = []
    for k in range(2):
        frames, labels, _ = pictures(parts[f"test {k}"])
        tests.append(Clip(str(k), frames[0].clone(), labels, frames))
    return Dataset(name, train, val, tuple(tests))
