"""Videos of one or more recordings, and clips that are sampled from videos."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from cvae_lab.data.palette import STANDARD, Palette
from cvae_lab.data.pixels import to_float

AnswerFormat = Literal["none", "folder", "2023", "later"]


@dataclass(frozen=True)
class Video:
    """Frames and pose labels of one recording, or of several recordings one after the other.

    `boundaries` contains the index of the first frame of every recording except the first. A video may be empty.
    """

    frames: UInt8[Tensor, "n 3 h w"]
    labels: UInt8[Tensor, "n 3 h w"]
    boundaries: tuple[int, ...] = ()
    name: str = ""

    def __post_init__(self) -> None:
        _check_pictures(self.name, frames=(self.frames, 4), labels=(self.labels, 4))
        if self.frames.shape != self.labels.shape:
            raise ValueError(
                f"video {self.name!r}: frames {tuple(self.frames.shape)} and labels "
                f"{tuple(self.labels.shape)} have different shapes; give one label per frame, of the same size"
            )
        edges = (0, *self.boundaries, len(self)) if len(self) or self.boundaries else ()
        if any(stop <= start for start, stop in itertools.pairwise(edges)):
            raise ValueError(
                f"video {self.name!r}: boundaries {self.boundaries} must increase, from 1 to {len(self) - 1}"
            )

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def recordings(self) -> list[tuple[int, int]]:
        """Index of the first frame and index after the last frame, for every recording."""
        edges = (0, *self.boundaries, len(self)) if len(self) else ()
        return list(itertools.pairwise(edges))

    def clip_starts(self, n_frames: int) -> Int64[Tensor, " s"]:
        """Return every start index for which a clip of `n_frames` lies inside one recording."""
        starts = [torch.arange(a, b - n_frames + 1) for a, b in self.recordings if b - a >= n_frames]
        if not starts:
            longest = max((b - a for a, b in self.recordings), default=0)
            raise ValueError(
                f"video {self.name!r}: no recording is long enough for a clip of {n_frames} frames, because the "
                f"longest recording has {longest}; use clips of {longest} frames or fewer, or check the boundaries "
                f"{self.boundaries}"
            )
        return torch.cat(starts)

    def hold_out(self, fraction: float = 0.1, min_frames: int = 16) -> tuple["Video", "Video"]:
        """Split the video into (kept, held out). The last `fraction` of every recording is held out.

        A held-out segment has at least `min_frames` frames. A recording is not split if fewer than `min_frames` frames
        would be kept.
        """
        if not 0 < fraction < 1 or min_frames < 1:
            raise ValueError(
                f"hold_out(fraction={fraction}, min_frames={min_frames}): give a fraction between 0 and 1 "
                "and at least 1 frame"
            )
        kept, held = [], []
        for start, stop in self.recordings:
            split = stop - max(min_frames, round(fraction * (stop - start)))
            splits = split - start >= min_frames
            kept.append((start, split if splits else stop))
            held += [(split, stop)] if splits else []
        if not held:
            raise ValueError(
                f"video {self.name!r}: no recording is long enough to hold out {min_frames} frames and to keep as many "
                f"for training; use shorter clips (n_frames), set holdout = 0, or use a longer video"
            )
        return self._joined(kept, "kept"), self._joined(held, "held-out")

    def beginnings(self, frames: int) -> "Video":
        """Return the beginnings of all recordings, `frames` frames in total, in proportion to the lengths."""
        if not 0 < frames <= len(self):
            raise ValueError(
                f"video {self.name!r} has {len(self)} frames; choose 1 to {len(self)}, not {frames}"
            )
        stops = [round(frames * stop / len(self)) for _, stop in self.recordings]
        counts = [stop - start for start, stop in itertools.pairwise((0, *stops))]
        pairs = zip(self.recordings, counts, strict=True)
        return self._joined([(start, start + count) for (start, _), count in pairs if count], "beginnings")

    def as_clips(self) -> tuple["Clip", ...]:
        """Return one prediction task per recording. The answer of a task is all frames of its recording."""
        return tuple(
            Clip(f"{self.name}{i}", self.frames[a], self.labels[a:b], self.frames[a:b])
            for i, (a, b) in enumerate(self.recordings)
        )

    def _joined(self, segments: list[tuple[int, int]], suffix: str) -> "Video":
        lengths = torch.tensor([b - a for a, b in segments])
        frames = torch.cat([self.frames[a:b] for a, b in segments])
        labels = torch.cat([self.labels[a:b] for a, b in segments])
        return Video(frames, labels, tuple(lengths.cumsum(0)[:-1].tolist()), f"{self.name} {suffix}".strip())


@dataclass(frozen=True)
class Clip:
    """One prediction task: the first frame, the labels of all frames, and the answer (all true frames) if known.

    `labels[0]` is the label of `first`, and `answer[0]` equals `first`.
    """

    name: str
    first: UInt8[Tensor, "3 h w"]
    labels: UInt8[Tensor, "t 3 h w"]
    answer: UInt8[Tensor, "t 3 h w"] | None = None

    def __post_init__(self) -> None:
        _check_pictures(self.name, first=(self.first, 3), labels=(self.labels, 4))
        if self.labels.shape[1:] != self.first.shape or len(self.labels) < 2:
            raise ValueError(
                f"clip {self.name!r}: labels {tuple(self.labels.shape)} do not match the first frame "
                f"{tuple(self.first.shape)}; give two labels or more, of the frame's size"
            )
        if self.answer is None:
            return
        _check_pictures(self.name, answer=(self.answer, 4))
        if self.answer.shape != self.labels.shape or not torch.equal(self.answer[0], self.first):
            raise ValueError(
                f"clip {self.name!r}: the true frames (shape {tuple(self.answer.shape)}) must begin with the first "
                f"frame and contain one frame per label (labels: shape {tuple(self.labels.shape)})"
            )

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A data set: training video, validation video and test clips. Each of the three may be empty.

    `palette` contains the label colours that are exchanged by mirroring. The palette is None if the labels have other
    colours and therefore cannot be mirrored.

    `answer_format` is the source of the answers. `2023` and `later` are the course's files, for which the course
    defines different averages. `folder` means picture files or data of the user. `none` means that no clip has an
    answer.
    """

    name: str
    train: Video
    val: Video
    tests: tuple[Clip, ...]
    palette: Palette | None = STANDARD
    answer_format: AnswerFormat = "folder"


class ClipBatch(NamedTuple):
    """A batch of clips: frames `x` and labels `p` in [0, 1]. Frame 0 is the reference frame."""

    x: Float[Tensor, "b t 3 h w"]
    p: Float[Tensor, "b t 3 h w"]


class ClipSampler:
    """Sampler of shuffled training clips. The pixels of the video are kept on `device` as uint8.

    All random numbers come from `generator` and are drawn when an epoch begins. Saving the generator's state between
    epochs is therefore enough to resume the same sequence. An epoch samples the starts of its clips without
    replacement.

    Args:
        video: source of the clips; a clip never crosses a recording boundary.
        n_frames: frames per clip, including frame 0.
        batch_size: clips per batch; the last batch of an epoch may be smaller.
        generator: a CPU generator.
        clips_per_epoch: number of clips. By default, each frame is predicted about once per epoch and all batches are
            full. The largest allowed value is the number of possible start frames.
        reference_frame: choice of frame 0 of each clip. "random" is any frame of the same recording, so that training
            also contains frames far from frame 0, as the test does. "first" is the frame directly before frame 1.
    """

    def __init__(
        self,
        video: Video,
        n_frames: int,
        batch_size: int,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
        clips_per_epoch: int | None = None,
        reference_frame: Literal["random", "first"] = "random",
    ) -> None:
        if n_frames < 2 or batch_size < 1 or reference_frame not in ("random", "first"):
            raise ValueError(
                f"ClipSampler(n_frames={n_frames}, batch_size={batch_size}, "
                f"reference_frame={reference_frame!r}): give 2 frames or more, "
                "1 clip or more, and reference_frame 'random' or 'first'"
            )
        self.n_frames, self.batch_size = n_frames, batch_size
        self.generator, self.reference_frame = generator, reference_frame
        self.frames, self.labels = video.frames.to(device), video.labels.to(device)
        self.starts = video.clip_starts(n_frames)
        self.recording_edges = torch.tensor([0, *video.boundaries, len(video)])
        if clips_per_epoch is None:
            batches = math.ceil(len(video) / (n_frames - 1) / batch_size)
            clips_per_epoch = min(batches * batch_size, len(self.starts))
        if not 1 <= clips_per_epoch <= len(self.starts):
            raise ValueError(
                f"clips_per_epoch is {clips_per_epoch}, but video {video.name!r} has {len(self.starts)} "
                f"clips of {n_frames} frames; choose 1 to {len(self.starts)}"
            )
        self.clips_per_epoch = clips_per_epoch

    def __len__(self) -> int:
        """Return the number of batches per epoch."""
        return math.ceil(self.clips_per_epoch / self.batch_size)

    def epoch(self) -> Iterator[ClipBatch]:
        """Yield the batches of one epoch."""
        order = torch.randperm(len(self.starts), generator=self.generator)[: self.clips_per_epoch]
        starts = self.starts[order]
        reference = self._random_frames(starts) if self.reference_frame == "random" else starts
        rows = starts[:, None] + torch.arange(self.n_frames)
        rows[:, 0] = reference
        for batch in rows.to(self.frames.device).split(self.batch_size):
            yield ClipBatch(to_float(self.frames[batch]), to_float(self.labels[batch]))

    def _random_frames(self, starts: Int64[Tensor, " b"]) -> Int64[Tensor, " b"]:
        """Return, for every start, the index of a uniformly sampled frame of the same recording."""
        recording = torch.searchsorted(self.recording_edges, starts, right=True) - 1
        first, stop = self.recording_edges[recording], self.recording_edges[recording + 1]
        # Double precision: in single precision, a number just below 1 could be rounded up into the next recording.
        fraction = torch.rand(len(starts), generator=self.generator, dtype=torch.float64)
        return first + (fraction * (stop - first)).long()


def find_boundaries(frames: UInt8[Tensor, "n 3 h w"]) -> tuple[int, ...]:
    """Detect recording boundaries from the frames, and return the index of the first frame after each boundary.

    A boundary is a large change between two frames: the mean squared difference is above 2e-3 (a PSNR below 27 dB). The
    change is also more than 4 times as large as each of the 3 changes before and after. Fast motion causes several
    consecutive large changes.
    """
    if len(frames) < 2:
        return ()
    change = frame_changes(frames)
    windows = torch.nn.functional.pad(change, (3, 3)).unfold(0, 7, 1)
    around = windows[:, [0, 1, 2, 4, 5, 6]].amax(1)
    boundary = (change > 2e-3) & (change > 4 * around)
    return tuple((boundary.nonzero().flatten() + 1).tolist())


def frame_changes(frames: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, " m"]:
    """Return the n - 1 mean squared differences between consecutive frames, for pixel values in [0, 1]."""
    change = torch.empty(max(len(frames) - 1, 0))
    for i in range(0, len(change), 32):  # 32 frames at a time, to limit the memory
        change[i : i + 32] = to_float(frames[i : i + 33]).diff(dim=0).square().mean((1, 2, 3))
    return change


def _check_pictures(name: str, **tensors: tuple[Tensor, int]) -> None:
    for what, (tensor, ndim) in tensors.items():
        if tensor.dtype != torch.uint8 or tensor.ndim != ndim or tensor.shape[-3] != 3:
            raise ValueError(
                f"{name!r}: {what} are {tensor.dtype} of shape {tuple(tensor.shape)}; "
                f"give uint8 pictures with 3 channels and {ndim} dimensions"
            )
