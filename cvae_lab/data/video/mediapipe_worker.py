"""Find one person's 33 mediapipe landmarks in raw frames. This program runs in an environment without cvae_lab.

Usage: python mediapipe_worker.py FRAMES COUNT HEIGHT WIDTH OUT. FRAMES contains COUNT x HEIGHT x WIDTH x 3 bytes (RGB).
The array `keypoints` (COUNT, 33, 3) is written to OUT (npz): column and row in pixels, and visibility in [0, 1]. All
three values are NaN if no person was found. The number of processed frames is printed. No network connection is opened.
"""

import sys

import mediapipe
import numpy as np


def main(file: str, count: int, height: int, width: int, out: str) -> None:
    """Process the frames in order, because the estimator tracks the person from frame to frame."""
    frames = np.memmap(file, np.uint8, "r", shape=(count, height, width, 3))
    keypoints = np.full((count, 33, 3), np.nan)
    # The wheel contains only the model of complexity 1. Other models would be downloaded.
    with mediapipe.solutions.pose.Pose(model_complexity=1, smooth_landmarks=False) as estimator:
        for i, frame in enumerate(frames):
            found = estimator.process(np.ascontiguousarray(frame)).pose_landmarks
            if found is not None:
                keypoints[i] = [(at.x * width, at.y * height, at.visibility) for at in found.landmark]
            print(i + 1, flush=True)  # noqa: T201
    np.savez(out, keypoints=keypoints)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5])
