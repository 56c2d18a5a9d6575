"""The mistakes that `doctor` knows: name, rule, reason, remedy."""

import ast
from collections.abc import Callable, Iterator
from typing import NamedTuple

from cvae_lab.teaching.doctor import code_rules, frame_rules


class Rule(NamedTuple):
    """A mistake: how to find it, why it matters, what to write instead. `note` marks a matter of choice."""

    name: str
    find: Callable[[ast.Module], Iterator[int]]
    why: str
    instead: str
    note: bool = False


RULES = (
    Rule("uniform noise", code_rules.uniform_noise,
         "z must be normally distributed; uniform noise on [0, 1) has mean 0.5 and a variance of 1/12",
         "torch.randn_like(mu), or torch.randn(shape)"),
    Rule("logvar used as a standard deviation", code_rules.logvar_as_deviation,
         "the standard deviation is exp(logvar / 2); KL and sample then describe different distributions",
         "mu + torch.exp(0.5 * logvar) * eps"),
    Rule("posterior of the previous frame", frame_rules.posterior_of_previous_frame,
         "the posterior must see the frame that is predicted, or z carries nothing about it",
         "encode frame t, not t - 1, for Gaussian_Predictor"),
    Rule("label of another frame", frame_rules.label_off_by_one,
         "every prediction shows the pose of its neighbour",
         "give the decoder the label of the frame it predicts"),
    Rule("posterior z in evaluation", frame_rules.posterior_in_evaluation,
         "the posterior has seen the true frame, so this score is no prediction",
         "z = torch.randn(shape) in validation and test"),
    Rule("teacher forcing in evaluation", frame_rules.teacher_forced_evaluation,
         "copying the previous true frame already scores 39 to 45 dB on real clips",
         "feed the model's own last prediction"),
    Rule("loss of the last frame only", frame_rules.loss_of_last_frame,
         "the other frames of the clip do not train the model",
         "add the loss of every frame inside the loop"),
    Rule("optimizer state not saved", code_rules.optimizer_not_saved,
         "after a resume the optimizer starts without its moments, and the loss jumps",
         '"optimizer": self.optim.state_dict()'),
    Rule("optimizer state not restored", code_rules.optimizer_not_restored,
         "the resumed optimizer starts without its moments, and the loss jumps",
         "self.optim.load_state_dict(checkpoint[...])"),
    Rule("schedule restarts on resume", code_rules.restarted_schedules,
         "the learning rate returns to its first value",
         "scheduler.load_state_dict(checkpoint[...]), saved with the model"),
    Rule("pixels wrap around", code_rules.wrapped_pixels,
         "values outside [0, 1] become bright or dark specks in the GIF",
         "frame.clamp(0, 1) before the conversion to uint8"),
    Rule("clips in fixed order", code_rules.unshuffled_clips,
         "consecutive batches show almost the same frames, and gradients are biased",
         "DataLoader(..., shuffle=True)"),
    Rule("gradients never reset", code_rules.missing_zero_grad,
         "gradients of all earlier steps add up",
         "optimizer.zero_grad() before loss.backward()"),
    Rule("module hides nn.Module.eval", code_rules.hidden_eval,
         "batch norm keeps using the statistics of the batch in validation and test",
         "another name for the method, and self.train(False) in it"),
    Rule("PSNR mean over one frame too few", code_rules.short_mean,
         "629 frames at 30 dB score 30.05 dB; the assignment of 2023 does this",
         "the sum divided by the number of frames", note=True),
    Rule("clips do not overlap", code_rules.separate_clips,
         "a clip of 16 frames then starts at one of 16 frames only, so the model sees few different clips",
         "start clips at any frame of a recording", note=True),
    Rule("ramp by repeated addition", code_rules.accumulated_ramp,
         "the last value of each cycle is missed, and fractional periods overlap",
         "a closed form such as min(1, phase / ratio)", note=True),
    Rule("one teacher-forcing draw per epoch", code_rules.one_draw_per_epoch,
         "whole epochs train with or without teacher forcing, so the ratio has a large variance",
         "draw per batch, clip or step", note=True),
    Rule("KL averaged over latents", code_rules.averaged_kl,
         "beta then has another scale than in papers, by the number of latents",
         "sum over latents, then average over the batch", note=True),
)  # fmt: skip
