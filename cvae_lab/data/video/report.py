"""Report about a data set made from a video: measured values, sentences, a contact sheet and an HTML page."""

import base64
import html
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from cvae_lab.data.clips import Dataset
from cvae_lab.data.files import replacing, write_text
from cvae_lab.data.synthetic.drawing import LIMBS
from cvae_lab.data.video.decode import Box, DecodedVideo, camera_path
from cvae_lab.data.video.keypoints import JOINTS
from cvae_lab.data.video.tracks import MIN_FRAMES, Tracks, boxes

REPORT_FILE, SHEET_FILE, PAGE_FILE = "video.json", "contact_sheet.png", "index.html"
# Numbers of frames: in the contact sheet, shown with their label, and compared to detect camera movement.
SHEET_FRAMES, SAMPLES, CAMERA_FRAMES = 24, 6, 300
NAMED_LIMBS = 6
MOVED = 0.01  # fraction of the width; a larger shift of the background is camera movement
COLUMNS, THUMBNAIL, CAPTION, GAP = 4, 320, 30, 6  # pictures per row; pixels
FONT_SIZE = 22  # pixels; notebook 10 shows the sheet at half of its size
Segment = tuple[int, int]
"""Index of the first frame and index after the last frame, among the selected frames."""


@dataclass(frozen=True)
class Report:
    """Report of `make_data_set`: settings, measured values, and sentences about both."""

    settings: dict[str, Any]
    measured: dict[str, Any]
    lines: tuple[str, ...]


def read_report(folder: str | Path) -> Report | None:
    """Return the report of a data set that was made from a video, or None for any other folder."""
    file = Path(folder) / REPORT_FILE
    if not file.is_file():
        return None
    content = json.loads(file.read_text(encoding="utf-8"))
    return Report(content["settings"], content["measured"], tuple(content["lines"]))


def measure(video: DecodedVideo, tracks: Tracks, parts: dict[str, list[Segment]], box: Box) -> dict[str, Any]:
    """Return all measured values. Splits and recordings are described by their first and last frame in the file."""
    _, height, width, _ = video.frames.shape
    used = np.concatenate([tracks.points[a:b] for segments in parts.values() for a, b in segments])
    used = used[~np.isnan(used[..., 0])]
    left, top, wide, high = box
    inside = ((used >= [left, top]) & (used <= [left + wide, top + high])).all(-1)
    return {
        "width": video.size[0], "height": video.size[1], "rotation": video.rotation,
        "frames": len(video.frames), "seconds": float(video.times[-1]),
        "longest_pause": float(np.diff(video.times).max(initial=0)),
        "median_pause": float(np.median(np.diff(video.times))),
        "frames_with_pose": int(tracks.found.sum()),
        "recordings": [[int(video.numbers[a]), int(video.numbers[b - 1])] for a, b in tracks.recordings],
        "frames_in_recordings": sum(b - a for a, b in tracks.recordings),
        "exchanged_sides": tracks.exchanged, "jumps": tracks.jumps, "filled": tracks.filled,
        "lost_limbs": tracks.lost_limbs(),
        "joints_outside": float(1 - inside.mean()),
        "picture_fraction": min(width, wide) * min(height, high) / (wide * high),
        "camera": _camera(video, tracks),
        "parts": {
            part: [[int(video.numbers[a]), int(video.numbers[b - 1])] for a, b in segments]
            for part, segments in sorted(parts.items())
        },
        "part_frames": {part: sum(b - a for a, b in segments) for part, segments in sorted(parts.items())},
    }  # fmt: skip


def _camera(video: DecodedVideo, tracks: Tracks) -> dict[str, float | None]:
    """Measure the largest shift of the background relative to the first frame, and the time of the first movement.

    `shift` is a fraction of the width, or None if most frames cannot be compared. `seconds` is the time, or None if the
    camera did not move. `compared` is the fraction of the sampled frames that could be compared.
    """
    every = -(-len(video.frames) // CAMERA_FRAMES)
    path = camera_path(video.frames[::every], boxes(tracks.points[::every], 0.1))
    shift = np.hypot(*path.T) / video.frames.shape[2]
    compared = float(1 - np.isnan(shift).mean())
    moved = np.flatnonzero(shift > MOVED)
    began = float(video.times[::every][moved[0]]) if len(moved) else None
    known = compared > 0.5 or began is not None
    return {"shift": float(np.nanmax(shift)) if known else None, "seconds": began, "compared": compared}


def sentences(settings: dict[str, Any], measured: dict[str, Any]) -> Iterator[str]:
    """Yield sentences with the measured values. Warnings begin with "Warning:"."""
    m, frames = measured, measured["frames"]
    turned = f", turned by its rotation flag of {m['rotation']} degrees" if m["rotation"] else ""
    yield f"Video: {m['file']}, {m['width']} x {m['height']} pixels{turned}."
    yield f"Frames: {frames} in {m['seconds']:.1f} s, the median time between frames is {m['median_pause']:.3f} s."
    if m["longest_pause"] > 1.5 * m["median_pause"]:
        advice = "" if settings["fps"] else "; the option fps selects evenly spaced frames"
        yield f"Warning: the time between frames varies and is up to {m['longest_pause']:.2f} s{advice}."
    by = "mediapipe, on this machine" if settings["pose"] == "mediapipe" else Path(settings["pose"]).name
    yield f"Pose: found in {m['frames_with_pose']} frames ({m['frames_with_pose'] / frames:.1%}) by {by}."
    yield (
        f"Repairs: {m['exchanged_sides']} frames with left and right exchanged, {m['jumps']} joint positions removed "
        f"as jumps, {m['filled']} positions filled in gaps of at most {settings['max_gap']} frames."
    )
    if m["frames_with_several_persons"]:
        yield f"Warning: {m['frames_with_several_persons']} frames show several persons; only one person was tracked."
    yield _limb_sentence(m["lost_limbs"])
    yield (
        f"Recordings of {MIN_FRAMES} frames or more with a person: {len(m['recordings'])}, with "
        f"{m['frames_in_recordings']} frames; {frames - m['frames_in_recordings']} frames are not used."
    )
    yield "Parts: " + ", ".join(f"{part} {n} frames" for part, n in m["part_frames"].items()) + "."
    yield from _fit_sentences(settings, m)
    yield _camera_sentence(m["camera"])


def _limb_sentence(lost: dict[str, float]) -> str:
    """Return a sentence with the limbs that are missing most often."""
    order = sorted(lost.items(), key=lambda item: -item[1])
    named = ", ".join(f"{limb} {fraction:.1%}" for limb, fraction in order[:NAMED_LIMBS]) or "none"
    more = f", and {len(order) - NAMED_LIMBS} others less often" if len(order) > NAMED_LIMBS else ""
    return f"Missing limbs (fraction of the used frames): {named}{more}."


def _fit_sentences(settings: dict[str, Any], m: dict[str, Any]) -> Iterator[str]:
    height, width = settings["size"]
    if m["picture_fraction"] < 0.999:
        yield (
            f"Size: {height} x {width} with black bars on {1 - m['picture_fraction']:.0%} of the picture. A model "
            "predicts bars without error, so the bars increase the PSNR. With fit 'crop', there are no bars."
        )
    else:
        yield f"Size: {height} x {width} without bars."
    if m["joints_outside"] > 0.001:
        yield f"Warning: {m['joints_outside']:.1%} of the joint positions lie outside the picture."


def _camera_sentence(camera: dict[str, float | None]) -> str:
    if camera["shift"] is None:
        return "Warning: camera movement could not be measured, because too little textured background is visible."
    if camera["seconds"] is None:
        return f"Camera: fixed, the background moves by at most {camera['shift']:.1%} of the width."
    return (
        f"Warning: the camera moves, first at {camera['seconds']:.1f} s; the background moves by up to "
        f"{camera['shift']:.0%} of the width. The model assumes a fixed camera."
    )


def write_pages(
    out: Path,
    report: Report,
    video: DecodedVideo,
    tracks: Tracks,
    parts: dict[str, list[Segment]],
    dataset: Dataset,
) -> None:
    """Write the report as JSON, the contact sheet as PNG, and both in a self-contained HTML page."""
    shown = np.unique(np.linspace(0, len(video.frames) - 1, SHEET_FRAMES).round().astype(int))
    captions = [f"frame {video.numbers[i]}, {video.times[i]:.2f} s, {_part_of(int(i), parts)}" for i in shown]
    sheet = contact_sheet(video.frames[shown], tracks.points[shown], captions)
    chosen = np.linspace(0, len(dataset.train) - 1, SAMPLES).round().astype(int)
    samples = pairs(dataset.train.frames[chosen].numpy(), dataset.train.labels[chosen].numpy())
    with replacing(out / SHEET_FILE) as temporary:
        sheet.save(temporary)
    write_text(
        out / PAGE_FILE, page(f"Data set from {report.measured['file']}", report.lines, sheet, samples)
    )
    write_text(out / REPORT_FILE, json.dumps(asdict(report), indent=1) + "\n")


def _part_of(frame: int, parts: dict[str, list[Segment]]) -> str:
    return next((part for part, segments in parts.items() for a, b in segments if a <= frame < b), "not used")


def contact_sheet(
    frames: UInt8[np.ndarray, "n h w 3"],
    points: Float[np.ndarray, "n joints 2"],
    captions: Sequence[str],
) -> Image.Image:
    """Draw the limbs over each frame and a caption below it. A row has `COLUMNS` frames."""
    n, h, w, _ = frames.shape
    scale = THUMBNAIL / w
    height = round(h * scale)
    cell = (THUMBNAIL + GAP, height + CAPTION + GAP)
    sheet = Image.new("RGB", (COLUMNS * cell[0], -(-n // COLUMNS) * cell[1]), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    for i, (frame, person, caption) in enumerate(zip(frames, points * scale, captions, strict=True)):
        corner = (i % COLUMNS * cell[0], i // COLUMNS * cell[1])
        sheet.paste(_with_limbs(frame, person, (THUMBNAIL, height)), corner)
        draw.text((corner[0] + 2, corner[1] + height + 2), caption, "black", font)
    return sheet


def _with_limbs(
    frame: UInt8[np.ndarray, "h w 3"], person: Float[np.ndarray, "joints 2"], size: tuple[int, int]
) -> Image.Image:
    picture = Image.fromarray(np.asarray(frame)).resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    for a, b, colour in LIMBS:
        ends = person[[JOINTS.index(a), JOINTS.index(b)]]
        if not np.isnan(ends).any():
            draw.line([tuple(end) for end in ends.tolist()], colour, width=2)
    return picture


def pairs(
    frames: UInt8[np.ndarray, "n 3 h w"], labels: UInt8[np.ndarray, "n 3 h w"], scale: int = 3
) -> Image.Image:
    """Draw frames of the data set above their labels, enlarged without smoothing."""
    rows = [np.concatenate(list(pictures.transpose(0, 2, 3, 1)), axis=1) for pictures in (frames, labels)]
    both = np.concatenate(rows)
    return Image.fromarray(both).resize(
        (scale * both.shape[1], scale * both.shape[0]), Image.Resampling.NEAREST
    )


def page(title: str, lines: Sequence[str], sheet: Image.Image, samples: Image.Image) -> str:
    """Return a self-contained HTML page: the report, frames with limbs, frames and labels of the data set."""
    items = "\n".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>
<style>body {{ font: 16px/1.5 sans-serif; margin: 2em; max-width: 1320px }} img {{ max-width: 100% }}</style>
<h1>{html.escape(title)}</h1>
<ul>
{items}
</ul>
<h2>Are the limbs where the person is?</h2>
<p>Evenly spaced frames of the video, with the limbs drawn over them.</p>
<img src="{_data_url(sheet)}" alt="frames with limbs drawn over them">
<h2>Which frames and labels does the model get?</h2>
<p>Each frame of the data set is shown above its label.</p>
<img src="{_data_url(samples)}" alt="frames and labels of the data set" style="image-rendering: pixelated">
</html>
"""


def _data_url(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
