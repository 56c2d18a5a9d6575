#!/usr/bin/env bash
# imageio 2.38.1: its two video plug-ins disagree on a video with a rotation flag, as phones write it.
# Frames of 64 x 48 pixels with a white upper left quarter get a display rotation of 90 degrees from ffmpeg.
# The FFMPEG plug-in returns the turned picture (48 x 64, white lower left), the PyAV plug-in the stored one (64 x 48).
# PyAV 18.1.0 gives the angle as frame.rotation, counter-clockwise.
# Consequence here: data.video.decode turns each frame by frame.rotation.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q imageio==2.38.1 imageio-ffmpeg==0.8.1 av==18.1.0 numpy==2.4.6 psutil==7.2.2
"$folder/env/bin/python" - "$folder" <<'PYTHON'
import subprocess
import sys

import av
import imageio
import imageio.v3 as iio
import imageio_ffmpeg
import numpy as np

folder = sys.argv[1]
stored, turned = f"{folder}/stored.mp4", f"{folder}/turned.mp4"
frames = np.zeros((12, 48, 64, 3), np.uint8)
frames[:, :24, :32] = 255
iio.imwrite(stored, frames, plugin="pyav", codec="libx264", fps=10)
ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error"]
subprocess.run([*ffmpeg, "-display_rotation", "90", "-i", stored, "-c", "copy", turned], check=True)


def describe(picture):
    height, width, _ = picture.shape
    middle = {"upper": height // 4, "lower": 3 * height // 4}, {"left": width // 4, "right": 3 * width // 4}
    white = [f"{v} {h}" for v, y in middle[0].items() for h, x in middle[1].items() if picture[y, x].mean() > 128]
    return f"{width} x {height}, white: {', '.join(white)}"


with av.open(turned) as container:
    frame = next(container.decode(video=0))
seen = {plugin: describe(iio.imread(turned, plugin=plugin)[0]) for plugin in ("FFMPEG", "pyav")}
upright = describe(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))
print(f"imageio {imageio.__version__}, PyAV {av.__version__}, ffmpeg {imageio_ffmpeg.get_ffmpeg_version()}")
print(f"imageio, FFMPEG plug-in: {seen['FFMPEG']}")
print(f"imageio, PyAV plug-in: {seen['pyav']}")
print(f"PyAV: frame.rotation is {frame.rotation}; numpy.rot90 by it gives {upright}")
same = seen == {"FFMPEG": "48 x 64, white: lower left", "pyav": "64 x 48, white: upper left"}
same = same and frame.rotation == 90 and upright == seen["FFMPEG"]
print("unchanged" if same else "CHANGED")
sys.exit(not same)
PYTHON
