#!/usr/bin/env bash
# mediapipe 1.2.3: the package has no `solutions` API, and its wheel holds no model (.tflite, .task or .binarypb).
# mediapipe 0.10.21 has both: `solutions.pose.Pose(model_complexity=1)` processes a picture without the network.
# That is run in a network namespace without interfaces where `unshare` allows it.
# Consequence here: data.video.estimator installs 0.10.21 in an environment of its own, because it needs numpy below 2.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for version in 1.2.3 0.10.21; do python3 -m venv "$folder/$version"; done
"$folder/1.2.3/bin/pip" install -q mediapipe==1.2.3
"$folder/0.10.21/bin/pip" install -q numpy==1.26.4 opencv-contrib-python-headless==4.11.0.86 "protobuf<5" \
    "matplotlib<3.11" absl-py attrs flatbuffers
"$folder/0.10.21/bin/pip" install -q --no-deps mediapipe==0.10.21
cat > "$folder/check.py" <<'PYTHON'
import sys
from importlib.metadata import files, version

import mediapipe
import numpy as np

models = [file.name for file in files("mediapipe") if file.suffix in (".tflite", ".task", ".binarypb")]
pose = sorted(name for name in models if "pose" in name)
print(f"mediapipe {version('mediapipe')}: {len(models)} model files, of these for poses {pose}")
print(f"mediapipe.solutions: {'there' if hasattr(mediapipe, 'solutions') else 'AttributeError'}")
if sys.argv[1] == "old":
    with mediapipe.solutions.pose.Pose(model_complexity=1) as estimator:
        found = estimator.process(np.zeros((120, 160, 3), np.uint8)).pose_landmarks
    print(f"a black picture: pose_landmarks is {found}")
    same = "pose_landmark_full.tflite" in pose and found is None
else:
    same = not models and not hasattr(mediapipe, "solutions")
print("unchanged" if same else "CHANGED")
sys.exit(not same)
PYTHON
"$folder/1.2.3/bin/python" "$folder/check.py" new
offline=()
if unshare -rn true 2>/dev/null; then offline=(unshare -rn); fi
"${offline[@]}" "$folder/0.10.21/bin/python" "$folder/check.py" old 2>"$folder/log" || { tail -5 "$folder/log"; exit 1; }
