"""The configuration of training."""

from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from cvae_lab.config.checks import STRICT, ConfigError, one_sentence, shortened
from cvae_lab.schedules import KL_STRATEGIES

KLStrategy = Literal[(*KL_STRATEGIES, "stages")]
TFStrategy = Literal["none", "constant", "linear", "inverse_sigmoid", "adaptive"]


@one_sentence
@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    """The configuration of training. The defaults are chosen for `compact` on two CPU cores."""

    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of initial weights, clips, masks and noise")
    init_from: str = Field(
        "",
        description="initial weights: pretrained (in the package), a run folder or a checkpoint file; empty: random",
    )
    epochs: int = Field(40, ge=1, le=10**6, description="number of passes over the training frames")
    minutes: float = Field(
        0.0,
        ge=0.0,
        le=10**6,
        description="time limit in minutes; a limit above 0 replaces `epochs` and sets the length of all schedules",
    )
    stop_after: float = Field(
        0.0,
        ge=0.0,
        le=10**6,
        description="stop after this time in minutes, with the schedules of a run of `epochs` epochs; 0: no limit",
    )
    clock: Literal["wall", "cpu"] = Field(
        "wall",
        description="kind of time that `minutes` and `stop_after` limit: elapsed time, or CPU time of the process",
    )
    n_frames: int = Field(4, ge=2, le=512, description="frames in a clip, including the first")
    batch_size: int = Field(10, ge=1, le=65536, description="clips per optimizer step")
    clips_per_epoch: int = Field(
        0, ge=0, le=10**9, description="clips per epoch; with 0, each frame is predicted about once per epoch"
    )
    reference_frame: Literal["random", "first"] = Field(
        "random",
        description="choice of frame 0 of a clip: a random frame of the recording, or the frame directly before frame "
        "1",
    )
    train_frames: int = Field(
        0,
        ge=0,
        le=10**9,
        description="number of training frames, counted from the beginning of each recording; 0: all frames that are "
        "not held out",
    )
    holdout: float = Field(
        0.1, ge=0.0, le=0.5, description="fraction of each training recording held out to select checkpoints"
    )
    eval_every: int = Field(
        10,
        ge=1,
        le=10**6,
        description="epochs between evaluations (1 if tf_strategy is adaptive); the last epoch is always evaluated",
    )

    optimizer: Literal["adam", "adamw", "adamax", "muon"] = Field("muon", description="optimizer")
    lr: float = Field(
        8e-3,
        ge=1e-8,
        le=1.0,
        description="learning rate after warm-up; default 0.001 if `compact` starts from init_from",
    )
    lr_schedule: Literal["constant", "step", "cosine"] = Field("cosine", description="learning-rate schedule")
    lr_warmup: float = Field(
        0.02, ge=0.0, le=0.5, description="fraction of training in which the learning rate rises from 0"
    )
    lr_milestones: tuple[float, ...] = Field(
        (0.5, 0.8),
        max_length=1000,
        description="schedule `step`: fractions of training at which the learning rate is multiplied by lr_gamma",
    )
    lr_milestone_epochs: tuple[int, ...] = Field(
        (),
        max_length=1000,
        description="schedule `step`: numbers of epochs after which the learning rate is multiplied by lr_gamma, "
        "instead of lr_milestones",
    )
    lr_gamma: float = Field(0.1, ge=0.0, le=1.0, description="`step`: factor at each milestone")
    weight_decay: float = Field(0.01, ge=0.0, le=1.0, description="weight decay of the optimizer")
    clip_norm: float = Field(
        1.0,
        ge=0.0,
        le=10**6,
        description="largest gradient norm; a larger gradients are scaled down to this norm; 0: no clipping",
    )
    ema: float = Field(
        0.998,
        ge=0.0,
        le=0.99999,
        description="decay per step of the moving average of weights; the averaged weights are evaluated; 0: no "
        "average",
    )
    bptt: int = Field(
        -1,
        ge=-1,
        le=512,
        description="number of consecutive predicted frames that gradients pass through; -1: all",
    )
    feedback_noise: float = Field(
        0.03,
        ge=0.0,
        le=1.0,
        description="standard deviation of the noise on predicted frames that are fed back",
    )
    flip: bool = Field(True, description="mirror half of the clips and exchange left and right limb colours")
    paste: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="fraction of clips with a rectangle copied from another clip (CutMix)",
    )
    shift: int = Field(
        2, ge=0, le=16, description="shift half of the clips horizontally by up to this many pixels"
    )
    jitter: float = Field(
        0.0, ge=0.0, le=0.5, description="largest random change of a clip's brightness, as a fraction"
    )

    weighting: Literal["equal", "psnr"] = Field(
        "psnr",
        description="weights of frames in the loss: equal (required at scale elbo), or psnr (a frame with a smaller "
        "error gets a larger weight)",
    )
    scale: Literal["handout", "elbo"] = Field("handout", description="scale of the KL term")
    sigma: float = Field(
        0.0,
        ge=0.0,
        le=100.0,
        description="standard deviation of the Gaussian decoder, if scale is `elbo`; 0: its optimum, the error",
    )
    free_bits: float = Field(
        0.0,
        ge=0.0,
        le=10**6,
        description="free bits: KL in nats per frame and channel of z below which the KL has no gradient",
    )
    kl_target: float = Field(
        0.0,
        ge=0.0,
        le=10**6,
        description="KL in nats per frame that a controller of the KL weight maintains; 0: no controller",
    )
    kl_balance: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="KL balancing: fraction of the KL gradient that trains a learned prior; 0: no balancing",
    )
    beta_max: float = Field(1.0, ge=0.0, le=10**6, description="largest KL weight")
    kl_strategy: KLStrategy = Field("constant", description="schedule of the KL weight")
    kl_per: Literal["epoch", "iteration"] = Field(
        "iteration", description="how often the KL weight is updated"
    )
    n_cycles: int = Field(4, ge=1, le=10**6, description="`cyclical`: number of cycles")
    cycle_ratio: float = Field(
        0.5, ge=0.0, le=1.0, description="fraction of a cycle in which the KL weight rises"
    )
    cycle_shape: Literal["linear", "sigmoid", "cosine"] = Field("linear", description="shape of the rise")
    stages: tuple[tuple[str, float, int], ...] = Field(
        (), max_length=1000, description="strategy `stages`: list of (strategy, relative length, n_cycles)"
    )

    tf_strategy: TFStrategy = Field("none", description="schedule of the teacher-forcing ratio")
    tf_start: float = Field(1.0, ge=0.0, le=1.0, description="first teacher-forcing ratio")
    tf_first_decay: int = Field(
        5, ge=1, le=10**6, description="first epoch (from 1) in which the ratio may change"
    )
    tf_step: float = Field(0.1, ge=0.0, le=1.0, description="change of the ratio per epoch")
    tf_decay: float = Field(
        5.0,
        ge=1.0,
        le=10**6,
        description="`inverse_sigmoid`: constant k (epochs) of k / (k + exp(epoch / k))",
    )
    tf_per: Literal["epoch", "batch", "clip", "step"] = Field(
        "step", description="unit for which one random teacher-forcing decision is made"
    )

    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d{1,3})?)$",
        description="auto, cpu, mps, cuda, or one GPU such as cuda:1; auto: CUDA if there is a GPU, else CPU",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="dtype of convolutions; auto: bfloat16 if the hardware has instructions for it"
    )
    cuda_graphs: bool = Field(
        True,
        description="on a GPU, run steps of small batches as CUDA graphs; false: launch every kernel from Python",
    )
    threads: int = Field(0, ge=0, le=1024, description="CPU threads; 0: torch's default")

    def __post_init__(self) -> None:
        if self.kl_target and not self.beta_max:
            raise ConfigError(
                "kl_target needs beta_max above 0, because beta_max is the first KL weight of the controller; try "
                "beta_max = 1e-5."
            )
        if self.minutes and self.stop_after:
            raise ConfigError("minutes and stop_after both limit the time; give only one of the two.")
        if self.kl_strategy == "stages" and not self.stages:
            raise ConfigError(
                'kl_strategy = "stages" needs a value of stages, such as [["monotonic", 60, 1], ["cyclical", 80, 2]].'
            )
        for stage in self.stages:
            strategy, length, n_cycles = stage
            in_range = 0 < length <= 10**6 and 0 < n_cycles <= 10**6
            if strategy not in KL_STRATEGIES or not in_range:
                raise ConfigError(
                    f"stages: {shortened(stage)} is not valid; write (strategy, length, n_cycles). "
                    f"The strategy is one of {', '.join(KL_STRATEGIES)}. "
                    "The two numbers are above 0 and at most 1000000."
                )
        if not all(0 < epoch <= 10**6 for epoch in self.lr_milestone_epochs):
            raise ConfigError(
                f"lr_milestone_epochs = {shortened(self.lr_milestone_epochs)} must be numbers of epochs, 1 to 1000000."
            )
        if not all(0 <= milestone <= 1 for milestone in self.lr_milestones):
            raise ConfigError(
                f"lr_milestones = {shortened(self.lr_milestones)} must be fractions of training, 0 to 1."
            )
