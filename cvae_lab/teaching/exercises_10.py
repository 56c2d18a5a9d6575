"""Checks of the exercises in notebook 10.

`check_10_1` is the check of exercise 1. Each docstring names the function that the student writes.
"""

from collections.abc import Callable

import numpy as np

from cvae_lab.teaching.check import as_array, exercise, expect, expect_close


@exercise("for each instant k / fps the first frame at or after it is kept, and no frame is kept twice.")
def check_10_1(answer: Callable) -> None:
    """Check `choose(times, fps)`: the indices of the frames to keep, for increasing time stamps in seconds."""
    steady = np.arange(31) / 30
    pause = np.concatenate([np.arange(6) / 10, 2 + np.arange(6) / 10])
    cases = ((steady, 10), (steady, 60), (pause, 5))
    for times, fps in cases:
        kept, case = as_array(answer(times, fps)), f"{len(times)} frames, {fps} frames/s"
        expect(kept.ndim == 1 and (kept == np.round(kept)).all(), f"{case}: return a list of whole numbers.")
        expect(len(set(kept.tolist())) == len(kept), f"{case}: a frame is chosen twice.")
        chosen, instant = [], 0
        for i, time in enumerate(times):
            if time * fps >= instant - 1e-6:
                chosen.append(i)
                instant = np.floor(time * fps + 1e-6) + 1
        expect_close(kept, chosen, f"{case}: which is the first frame at or after each instant k / fps?")


@exercise("the smaller of the two scales makes the picture fit, and the rest of the target is bars.")
def check_10_2(answer: Callable) -> None:
    """Check `bars(height, width, target_height, target_width)`: the fraction of the target that bars cover."""
    for height, width in ((1080, 1920), (1920, 1080), (500, 1000), (300, 1200)):
        scale = min(32 / height, 64 / width)
        covered = height * scale * width * scale / (32 * 64)
        mistakes = {
            "this is the fraction that the picture covers.": covered,
            "this scale would remove edges of the picture; letterboxing shows all of it.": (
                1 - height * width * max(32 / height, 64 / width) ** 2 / (32 * 64)
            ),
        }
        mistakes = {} if covered == 1 else mistakes
        hint = f"a video of {width} x {height}: both sides have one scale. Which one?"
        expect_close(answer(height, width, 32, 64), 1 - covered, hint, mistakes)
