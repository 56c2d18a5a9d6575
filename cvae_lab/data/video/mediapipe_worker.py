"""Find one person's 33 mediapipe landmarks in raw frames. Runs in the estimator's environment, without cvae_lab.

Usage: python mediapipe_worker.py FRAMES COUNT HEIGHT WIDTH OUT. FRAMES holds COUNT x HEIGHT x WIDTH x 3 bytes, RGB.
OUT (npz) gets `keypoints` (COUNT, 33, 3): column and row in pixels, visibility in [0, 1]; NaN where no person was
found. The number of frames done is printed to the standard output. It opens no network connection.
"""

import sys

import mediapipe
import numpy as np


def main(file: str, count: int, height: int, width: int, out: str) -> None:
    """Process every frame in order, so that the estimator follows the person from frame to frame."""
    frames = np.memmap(file, np.uint8, "r", shape=(count, height, width, 3))
    keypoints = np.full((count, 33, 3), np.nan)
    # Complexity 1 is the one model inside the wheel; any other value would be downloaded.
    with mediapipe.solutions.pose.Pose(model_complexity=1, smooth_landmarks=False) as estimator:
        for i, frame in enumerate(frames):
            found = estimator.process(np.ascontiguousarray(frame)).pose_landmarks
            if found is not None:
                keypoints[i] = [(at.x * width, at.y * height, at.visibility) for at in found.landmark]
            print(i + 1, flush=True)  # noqa: T201
    np.savez(out, keypoints=keypoints)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5])
