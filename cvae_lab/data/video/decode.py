"""Decode a video file to upright frames with time stamps, resize frames, and measure camera movement."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from tqdm import tqdm

from cvae_lab.data.pixels import DataError

WORKING_SIDE = 640  # longest side of a decoded frame in pixels; larger frames are scaled down
HEAD = 0.15  # height of head and hair above the joints, as a fraction of the joints' height
TEXTURE = 3  # smallest standard deviation, in grey levels, of a block that can be compared
CAMERA_WIDTH = 256  # approximate width, in pixels, of the grey frames for measuring camera movement

Frames = UInt8[np.ndarray, "n h w 3"]
Box = tuple[float, float, float, float]
"""Left, top, width, height in pixels."""


@dataclass(frozen=True)
class DecodedVideo:
    """Selected frames of a video file: upright, cropped, scaled down to at most `WORKING_SIDE` pixels.

    `times` are in seconds from the first frame of the file, and `numbers` count the file's frames from 0. `size` is the
    width and height of the whole upright picture. `offset` is the crop's upper left corner in this picture. `scale` is
    the factor from pixels of this picture to pixels of `frames`. `rotation` is the rotation flag of the file in
    degrees, counter-clockwise.
    """

    frames: Frames
    times: Float[np.ndarray, " n"]
    numbers: Int64[np.ndarray, " n"]
    size: tuple[int, int]
    offset: tuple[int, int]
    scale: float
    rotation: int

    def from_source(self, points: Float[np.ndarray, "*n 2"]) -> Float[np.ndarray, "*n 2"]:
        """Convert positions (column, row) in the whole upright picture to pixels of `frames`."""
        return (points - np.array(self.offset)) * self.scale


def read_video(
    file: str | Path,
    scratch: str | Path,
    fps: float | None = None,
    seconds: float | None = None,
    crop: tuple[int, int, int, int] | None = None,
    progress: bool = True,
) -> DecodedVideo:
    """Decode the first `seconds` of a video. Raises DataError if this part is truncated or damaged.

    Args:
        scratch: folder for a file with the decoded frames, which is memory-mapped.
        fps: number of frames per second. The first frame at or after each multiple of 1 / fps seconds is selected, and
            no frame is selected twice. None keeps every frame.
        crop: left, top, width and height in pixels of the upright picture.
    """
    file = Path(file)
    spool = Path(scratch) / "frames.rgb"
    times, numbers, view, tick = [], [], None, 0.0
    with spool.open("wb") as out:
        for number, time, frame in _decode(file, seconds, progress):
            if fps is not None and time * fps < tick - 0.01:  # 0.01, because time stamps are rounded
                continue
            tick = np.floor(time * (fps or 1) + 0.01) + 1
            view = view or _view(file, frame, crop)
            out.write(view.apply(file, number, frame))
            times.append(time)
            numbers.append(number)
    if view is None:
        raise DataError(
            f"{file}: no frame could be decoded; check that a video player can play the file, or convert "
            f"it to MP4"
        )
    frames = np.memmap(spool, np.uint8, "r", shape=(len(times), *view.shape, 3))
    left, top, *_ = view.crop
    return DecodedVideo(
        frames, np.array(times, float), np.array(numbers, np.int64), view.size, (left, top), view.scale, view.rotation
    )  # fmt: skip


def _decode(file: Path, seconds: float | None, progress: bool) -> Iterator[tuple[int, float, av.VideoFrame]]:
    """Yield number, time since the first frame and pixels of every frame. Raises DataError for a truncated file."""
    with _open(file) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        step = 1 / float(stream.average_rate or 25)
        length = _announced_length(container, stream)
        total = round(min(length or np.inf, seconds or np.inf) / step) if length or seconds else None
        count, start, time = 0, None, -step
        bar = tqdm(
            total=total, desc="decoding", unit=" frame", leave=False, disable=None if progress else True
        )
        try:
            with bar:
                for frame in container.decode(stream):
                    stamp = count * step if frame.time is None else frame.time
                    start = stamp if start is None else start
                    if seconds is not None and stamp - start >= seconds:
                        return
                    time = stamp - start
                    yield count, time, frame
                    count += 1
                    bar.update()
        except av.error.FFmpegError as error:
            raise DataError(_broken(file, count, time + step, length, error.strerror)) from error
        if count and length and length - (time + step) > max(0.5, 3 * step):
            raise DataError(_broken(file, count, time + step, length, "the rest is missing"))


def _open(file: Path) -> av.container.InputContainer:
    try:
        container = av.open(str(file))
    except FileNotFoundError as error:
        raise DataError(f"{file}: there is no such file; correct the name") from error
    except (av.error.FFmpegError, OSError) as error:
        raise DataError(
            f"{file}: this is not a video file, or the header or the end of the file is missing ({error.strerror}); "
            f"copy the file again, "
            "or convert it to MP4"
        ) from error
    if not container.streams.video:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        container.close()
        raise DataError(
            f"{file}: the file has no video stream (it contains {kinds}); give a video file, or copy the file again if "
            f"it is incomplete"
        )
    return container


def _announced_length(container: av.container.InputContainer, stream: av.VideoStream) -> float | None:
    """Return the length of the video in seconds from the file's header, or None if the header does not contain it."""
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is None or len(container.streams) > 1:
        return None
    return container.duration / av.time_base


def _broken(file: Path, count: int, readable: float, length: float | None, why: str) -> str:
    announced = f" of {length:.1f} s" if length else ""
    return (
        f"{file}: the file is truncated or damaged after {count} frames, {max(readable, 0):.1f} s{announced} ({why}); "
        "copy the file again, or read only the first part with the option seconds"
    )


@dataclass(frozen=True)
class _View:
    """Transform of a decoded frame: rotation, crop, downscaling."""

    rotation: int
    size: tuple[int, int]
    crop: tuple[int, int, int, int]
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of a transformed frame."""
        return max(1, round(self.crop[3] * self.scale)), max(1, round(self.crop[2] * self.scale))

    def apply(self, file: Path, number: int, frame: av.VideoFrame) -> bytes:
        picture = _upright(frame)
        if picture.shape[1::-1] != self.size:
            raise DataError(
                f"{file}: frame {number} has another size than frame 0; convert the video to one frame size"
            )
        left, top, width, height = self.crop
        picture = Image.fromarray(picture[top : top + height, left : left + width])
        return picture.resize(self.shape[::-1], Image.Resampling.BILINEAR).tobytes()


def _upright(frame: av.VideoFrame) -> UInt8[np.ndarray, "h w 3"]:
    """Return the pixels of a frame after applying its rotation flag, which PyAV does not apply."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)))


def _view(file: Path, frame: av.VideoFrame, crop: tuple[int, int, int, int] | None) -> _View:
    height, width, _ = _upright(frame).shape
    left, top, wide, high = crop or (0, 0, width, height)
    if left < 0 or top < 0 or wide < 1 or high < 1 or left + wide > width or top + high > height:
        raise DataError(
            f"{file}: the crop {wide} x {high} at ({left}, {top}) is not inside the upright picture of {width} x "
            f"{height} pixels; correct left, top, width and height"
        )
    scale = min(1.0, WORKING_SIDE / max(wide, high))
    return _View(round(frame.rotation), (width, height), (left, top, wide, high), scale)


def letterbox(shape: tuple[int, int], size: tuple[int, int]) -> Box:
    """Return the smallest box with the aspect ratio of `size` around a picture of `shape`.

    `size` and `shape` are (height, width).
    """
    (h, w), (height, width) = shape, size
    wide = max(w, round(h * width / height))
    high = max(h, wide * height / width)
    return (w - wide) / 2, (h - high) / 2, wide, high


def crop_around(shape: tuple[int, int], size: tuple[int, int], points: Float[np.ndarray, "*n 2"]) -> Box:
    """Return the largest box with the aspect ratio of `size` inside a picture of `shape`, centred on the person.

    `points` are positions (column, row) of joints, and NaN is ignored. The centre is the middle between the 2nd and the
    98th percentile of the positions. The top is first moved up by `HEAD` times the height, because the top of the head
    is above all joints. A box that is not inside the picture is shifted into the picture.
    """
    (h, w), (height, width) = shape, size
    wide = min(w, h * width / height)
    high = wide * height / width
    low, high_end = np.nanpercentile(points.reshape(-1, 2), [2, 98], axis=0)
    middle = (low + high_end) / 2 - [0, HEAD / 2 * (high_end - low)[1]]
    left, top = np.clip(middle - np.array([wide, high]) / 2, 0, np.array([w - wide, h - high]))
    return float(left), float(top), wide, high


def fit(frames: Frames, box: Box, size: tuple[int, int]) -> UInt8[np.ndarray, "n 3 height width"]:
    """Resize the content of `box` in each frame to `size` (height, width). The box is black outside the picture."""
    left, top, wide, high = box
    # Add padding only where bars are needed. Elsewhere, resizing would mix black padding into the edge pixels.
    x, y = int(np.ceil(max(0, -left))), int(np.ceil(max(0, -top)))
    inside = (left + x, top + y, left + x + wide, top + y + high)
    fitted = np.empty((len(frames), 3, *size), np.uint8)
    for target, frame in zip(fitted, frames, strict=True):
        picture = Image.fromarray(np.pad(frame, ((y, y), (x, x), (0, 0))))
        small = picture.resize(size[::-1], Image.Resampling.BILINEAR, box=inside)
        target[:] = np.asarray(small).transpose(2, 0, 1)
    return fitted


def camera_path(frames: Frames, boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 2"]:
    """Return the shift of the background in each frame relative to the first frame: columns and rows in pixels.

    Phase correlation gives the shift of each background block in whole pixels of a picture about `CAMERA_WIDTH` pixels
    wide. The shift between two frames is the median over blocks with texture that do not overlap the person. The result
    is NaN if there are fewer than three such blocks, or if most blocks differ from the median.

    Each frame is compared with a reference frame. After a large shift, the current frame becomes the new reference, so
    large movements can be measured.

    Args:
        boxes: left, top, right and bottom of the person in each frame; NaN if there is no person.
    """
    step = max(1, round(frames.shape[2] / CAMERA_WIDTH))
    side = 64 if min(frames.shape[1:3]) // step >= 128 else 32  # side of a block in pixels
    grey = [frame[::step, ::step].mean(-1) for frame in frames]
    path = np.full((len(frames), 2), np.nan)
    path[0], reference = 0, 0
    origin = path[0]
    for i in range(1, len(frames)):
        shift = _shift(grey[reference], grey[i], boxes[[reference, i]] / step, side)
        if shift is not None:
            path[i] = origin + step * shift
        if shift is None or np.abs(shift).max() >= side // 8:
            reference, origin = i, origin if shift is None else path[i]
    return path


def _shift(
    a: Float[np.ndarray, "h w"], b: Float[np.ndarray, "h w"], people: Float[np.ndarray, "2 4"], side: int
) -> Float[np.ndarray, "2"] | None:
    """Return the shift of the background of `b` relative to `a` (columns, rows), or None if it cannot be measured."""
    found = []
    for y in range(0, a.shape[0] - side + 1, side // 2):
        for x in range(0, a.shape[1] - side + 1, side // 2):
            block = a[y : y + side, x : x + side]
            if block.std() > TEXTURE and not any(_touches(x, y, side, person) for person in people):
                found.append(_phase_shift(block, b[y : y + side, x : x + side]))
    if len(found) < 3:
        return None
    middle = np.median(found, axis=0)
    agree = np.abs(np.array(found) - middle).max(1) <= 1
    return middle[::-1] if agree.mean() > 0.5 else None


def _touches(x: int, y: int, side: int, person: Float[np.ndarray, "4"]) -> bool:
    """Return whether a block overlaps the person; False if there is no person (NaN)."""
    left, top, right, bottom = person
    return bool(x < right and x + side > left and y < bottom and y + side > top)


def _phase_shift(a: Float[np.ndarray, "s s"], b: Float[np.ndarray, "s s"]) -> tuple[int, int]:
    """Return the shift of `b` relative to `a` (rows, columns), which is the peak of their phase correlation."""
    side = len(a)
    window = np.hanning(side)[:, None] * np.hanning(side)
    cross = np.conj(np.fft.fft2((a - a.mean()) * window)) * np.fft.fft2((b - b.mean()) * window)
    peak = np.fft.ifft2(cross / np.maximum(np.abs(cross), 1e-9)).real.argmax()
    return tuple((int(i) + side // 2) % side - side // 2 for i in divmod(int(peak), side))
