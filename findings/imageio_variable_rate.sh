#!/usr/bin/env bash
# imageio 2.38.1: the default video reader (FFMPEG plug-in) fills a variable-rate video with doubled frames.
# 120 different frames, 33 or 67 ms apart, come back as 160 frames, of which 40 equal the frame before.
# imageio's PyAV plug-in and PyAV 18.1.0 itself return 120 frames. PyAV also gives the time of each frame.
# Consequence here: data.video.decode reads with PyAV and chooses frames by their time stamps.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q imageio==2.38.1 imageio-ffmpeg==0.8.1 av==18.1.0 numpy==2.4.6 psutil==7.2.2
"$folder/env/bin/python" - "$folder/video.mp4" <<'PYTHON'
import sys
from fractions import Fraction

import av
import imageio
import imageio.v3 as iio
import numpy as np

file = sys.argv[1]
times = np.cumsum([0] + [67 if i % 3 == 0 else 33 for i in range(119)])
with av.open(file, "w") as container:
    stream = container.add_stream("libx264", rate=30)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
    stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
    for i, time in enumerate(times):
        frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 2 * i, np.uint8), format="rgb24")
        frame.pts, frame.time_base = int(time), Fraction(1, 1000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())

default = iio.imread(file)
doubled = int((np.abs(np.diff(default.astype(int), axis=0)).max((1, 2, 3)) == 0).sum())
counts = {plugin: len(iio.imread(file, plugin=plugin)) for plugin in ("FFMPEG", "pyav")}
with av.open(file) as container:
    decoded = [frame.time for frame in container.decode(video=0)]
meta = iio.immeta(file)
print(f"imageio {imageio.__version__}, PyAV {av.__version__}")
print(f"written: {len(times)} frames, the last at {times[-1] / 1000:.3f} s")
print(f"imageio, default plug-in: {len(default)} frames, {doubled} equal to the frame before, {meta['fps']} frames/s")
print(f"imageio, by plug-in: {counts}")
print(f"PyAV: {len(decoded)} frames, the last at {decoded[-1]:.3f} s")
same = len(default) == counts["FFMPEG"] == 160 and doubled == 40 and counts["pyav"] == len(decoded) == 120
print("unchanged" if same else "CHANGED")
sys.exit(not same)
PYTHON
