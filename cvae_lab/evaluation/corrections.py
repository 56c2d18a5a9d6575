"""Second looks at test time: what the mirror image and the given frame still tell. Nothing here sees an answer."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from cvae_lab.data.palette import mirror_labels
from cvae_lab.models.cvae import CVAE
from cvae_lab.rollout import predict

SETTLING_STEPS = (
    4  # steps with label 0 after which the model's own version of the first frame no longer changes
)
LABEL_DISTANCE = 0.002  # label distance at which the correction has fallen to 1/e


def predict_corrected(
    model: CVAE,
    first: Float[Tensor, "b 3 h w"],
    labels: Float[Tensor, "b t 3 h w"],
    generator: torch.Generator | None = None,
    mirror: bool = False,
) -> Float[Tensor, "b s 3 h w"]:
    """`predict`, corrected by what is known to be wrong with it: its own picture of the given frame.

    The model is asked for the one frame whose answer is given. What it lacks there, it lacks wherever the person
    stands alike: the difference is added to every prediction, the less the farther its label is from the given one
    (`correction_weights`). `mirror` asks for the mean with the mirror image, too (`predict_with_mirror`).
    """
    method = predict_with_mirror if mirror else predict
    frames = method(model, first, labels, generator)
    still = labels[:, :1].expand(-1, SETTLING_STEPS + 1, -1, -1, -1)
    error = first - method(model, first, still, generator)[:, -1]
    weights = torch.stack([correction_weights(clip) for clip in labels])[..., None, None, None]
    return (frames + weights * error[:, None]).clamp(0, 1)


def correction_weights(labels: Float[Tensor, "t 3 h w"]) -> Float[Tensor, " s"]:
    """exp(-distance / LABEL_DISTANCE) of labels 1 to T-1 from label 0: 1 where they are equal.

    The distance is the mean over pixels of the largest difference of a channel, in [0, 1], of labels blurred by
    5 x 5 pixels, since a detector trembles by one.
    """
    blurred = F.avg_pool2d(labels, 5, stride=1, padding=2, count_include_pad=False)
    distance = (blurred[1:] - blurred[:1]).abs().amax(1).mean((1, 2))
    return torch.exp(-distance / LABEL_DISTANCE)


def predict_with_mirror(
    model: CVAE,
    first: Float[Tensor, "b 3 h w"],
    labels: Float[Tensor, "b t 3 h w"],
    generator: torch.Generator | None = None,
) -> Float[Tensor, "b s 3 h w"]:
    """The mean of `predict` and of what it makes of the mirror image, mirrored back: for models trained with flips.

    Where the two disagree, half of each costs less than all of one: the error's variance falls, for twice the work.
    """
    both = torch.cat([first, first.flip(-1)]), torch.cat([labels, mirror_labels(labels)])
    straight, mirrored = predict(model, *both, generator).chunk(2)
    return (straight + mirrored.flip(-1)) / 2
