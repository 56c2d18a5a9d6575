"""Test-time corrections: averaging with the mirrored prediction, and a first-frame correction.

Both corrections use only the first frame and the labels, which are known at test time. The result is a prediction.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from cvae_lab.data.palette import mirror_labels
from cvae_lab.data.pixels import to_float
from cvae_lab.models.cvae import CVAE
from cvae_lab.rollout import NoiseSource, clip_streams, evaluating, predict_in_chunks
from cvae_lab.rollout.latents import after_steps
from cvae_lab.rollout.predict import Labels, joined

SETTLING_STEPS = 4  # number of steps with label 0 after which the predicted first frame no longer changes
COURSE_HEIGHT = 32  # rows of the course's labels, for which LABEL_DISTANCE was chosen
LABEL_DISTANCE = 0.002  # label distance at which the weight of the correction is 1/e


def predict_corrected(
    model: CVAE,
    first: Float[Tensor, "b 3 h w"],
    labels: Labels,
    generator: NoiseSource = None,
    mirror: bool = False,
) -> Float[Tensor, "b s 3 h w"]:
    """Predict frames 1 to T-1 like `predict`, then correct the frames with the model's error on the first frame.

    The model predicts frame 0 from frame 0 and label 0. The difference between the true frame 0 and this prediction is
    added to each predicted frame. The weight of the difference decreases with the distance of the frame's label from
    label 0 (`correction_weights`).

    Args:
        generator: as in `predict`.
        mirror: also average with the mirrored prediction (`predict_with_mirror`).
    """
    return joined(predict_corrected_in_chunks(model, first, labels, generator, mirror), first, labels)


def predict_corrected_in_chunks(
    model: CVAE,
    first: Float[Tensor, "b 3 h w"],
    labels: Labels,
    generator: NoiseSource = None,
    mirror: bool = False,
) -> Iterator[Float[Tensor, "b n 3 h w"]]:
    """Yield the frames of `predict_corrected` in the chunks of `predict_in_chunks`."""
    method = predict_with_mirror_in_chunks if mirror else predict_in_chunks
    streams = clip_streams(generator, len(first))
    chunks = method(model, first, labels, streams)
    same_pose = labels[:, :1].expand(-1, SETTLING_STEPS + 1, -1, -1, -1)
    later = _streams_after(model, first, streams, labels.shape[1] - 1, mirror)
    error = first - torch.cat(list(method(model, first, same_pose, later)), dim=1)[:, -1]
    start = 1
    for chunk in chunks:
        poses = torch.cat([labels[:, :1], labels[:, start : start + chunk.shape[1]]], dim=1)
        weights = torch.stack([correction_weights(_as_float(clip)) for clip in poses])[..., None, None, None]
        yield chunk.add_(weights * error[:, None]).clamp_(0, 1)
        start += chunk.shape[1]


def _streams_after(
    model: CVAE, first: Tensor, streams: list[torch.Generator], steps: int, mirror: bool
) -> list[torch.Generator]:
    """Copies of the streams in their state after the prediction, which can then be made after the correction."""
    copies = [stream.clone_state() for stream in streams]
    if mirror:
        _mirror_streams(copies)
    return after_steps(model, first, copies, steps)


def correction_weights(labels: Float[Tensor, "t 3 h w"]) -> Float[Tensor, " s"]:
    """Return the weight exp(-distance / LABEL_DISTANCE) of the correction for labels 1 to T-1.

    The distance is measured between a label and label 0, and is 0 if they are equal. The distance is the largest
    absolute difference over channels, averaged over pixels, in [0, 1]. Labels are first blurred over 5 x 5 pixels,
    because the joint positions of pose detectors have an error of about one pixel. Labels with more than 32 rows are
    reduced first, so the distance between two poses is about the same for every frame size.
    """
    labels = F.avg_pool2d(labels, max(1, labels.shape[-2] // COURSE_HEIGHT))
    blurred = F.avg_pool2d(labels, 5, stride=1, padding=2, count_include_pad=False)
    distance = (blurred[1:] - blurred[:1]).abs().amax(1).mean((1, 2))
    return torch.exp(-distance / LABEL_DISTANCE)


def predict_with_mirror(
    model: CVAE,
    first: Float[Tensor, "b 3 h w"],
    labels: Labels,
    generator: NoiseSource = None,
) -> Float[Tensor, "b s 3 h w"]:
    """Predict the clip and its mirror image, mirror the second prediction back, and return the mean.

    Use this function for models that were trained with `flip`. The mean has less variance, but prediction takes twice
    the time.
    """
    return joined(predict_with_mirror_in_chunks(model, first, labels, generator), first, labels)


def predict_with_mirror_in_chunks(
    model: CVAE,
    first: Float[Tensor, "b 3 h w"],
    labels: Labels,
    generator: NoiseSource = None,
) -> Iterator[Float[Tensor, "b n 3 h w"]]:
    """Yield the frames of `predict_with_mirror` in the chunks of `predict_in_chunks`."""
    streams = clip_streams(generator, len(first))
    mirror_streams = _mirror_streams(streams)
    with evaluating(model):  # the two predictions alternate, so neither of them may restore training mode
        chunks = predict_in_chunks(model, first, labels, streams)
        mirrored = predict_in_chunks(
            model, first.flip(-1), labels, mirror_streams, convert=lambda p: mirror_labels(_as_float(p))
        )
        for chunk, other in zip(chunks, mirrored, strict=True):
            yield chunk.add_(other.flip(-1)).div_(2)


def _mirror_streams(streams: list[torch.Generator]) -> list[torch.Generator]:
    return [child for stream in streams for child in clip_streams(stream, 1)]


def _as_float(pixels: Tensor) -> Tensor:
    return to_float(pixels) if pixels.dtype == torch.uint8 else pixels
